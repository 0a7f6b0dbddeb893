//! Lines whose addresses come from real DHCP servers, one at each ISP: what these grant carries traffic, what they take
//! away costs their line alone, and it heals without anybody.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary, binary};
use tests::netns::run;
use tests::root::Root;
use tests::traffic::{distribution, echoes, open, open_from};
use tests::watch::{line, status};
use toml_edit::DocumentMut;

const SITE: &str = include_str!("../../config/examples/minimal.toml");
const OUT: &str = "198.51.100.20:443";
/// What the servers say is reached by their own router.
const FURTHER: &str = "203.0.113.0/24";
const OUT6: &str = "[2001:db8:100::20]:443";
const PATIENCE: Duration = Duration::from_secs(1);
const LINES: [&str; 4] = ["wan1", "wan2", "wan3", "wan4"];

/// The same subnet and gateway on all lines: only the interface tells one server's answers from another's.
#[test]
fn leases_carry_their_lines_and_cost_no_other() {
    let Some(mut lab) = leased_lab(true, 4, false) else { return };
    let mut servers: Vec<Server> = (1..=4).map(|number| Server::start(&lab, number)).collect();
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    for (wan, name) in lab.site().wans.iter().zip(LINES) {
        let lease = &line(&status(&lab).unwrap(), name, "v4")["lease"];
        assert_eq!(lease["addresses"], json!([wan.router4.to_string()]), "{lease}");
        assert_eq!(lease["gateway"], json!(wan.gateway4.to_string()), "{lease}");
        assert!(lease["expires_seconds"].as_f64().unwrap() <= 20.0, "{lease}");
    }
    let seen = distribution(&lab.host(10), OUT.parse().unwrap(), 200).unwrap();
    let own: Vec<IpAddr> = lab.site().wans.iter().map(|wan| wan.router4.addr().into()).collect();
    assert!(own.iter().all(|own| seen.get(own).is_some_and(|count| *count > 10)), "{seen:?}");
    let told = run(lab.routerctl().unwrap().args(["explain", "wan2"])).unwrap();
    assert!(told.contains("lease 100.64.0.12/24 by 100.64.0.1, ends in"), "{told}");
    let page = run(lab.routerctl().unwrap().arg("status")).unwrap();
    assert!(page.contains("lease 100.64.0.12/24 by 100.64.0.1, ends in"), "{page}");

    // Option 121 is of its own line, whatever the others say.
    let routes =
        run(Command::new("ip").args(["-n", lab.router().name(), "route", "show", "table", "all", FURTHER])).unwrap();
    for name in LINES {
        let route = routes.lines().find(|route| route.contains(&format!("dev {name} ")));
        assert!(route.is_some_and(|route| route.contains("via 100.64.0.1") && route.contains("table ")), "{routes}");
    }

    let mut flows = Flows::open(&lab);
    renewals_change_nothing(&lab, &mut flows);
    malformed_reports_change_nothing(&lab, &mut flows);
    another_gateway_moves_its_line_alone(&lab, &mut flows, &mut servers[1]);
    a_refusal_costs_its_line_alone(&lab, &mut flows, &mut servers[2]);
    a_dead_server_costs_its_line_at_the_end_of_the_lease(&lab, &mut flows, &mut servers[3]);
    a_client_that_is_killed_comes_back_and_its_line_does_not_notice(&lab, &mut flows);
    a_daemon_that_is_killed_keeps_its_lines(&mut lab, &mut flows, &mut servers);
    assert_eq!(status(&lab).unwrap()["applies"]["drift_repaired"], 0);
}

/// A router tells that it is the gateway, Kea gives address and prefix; without the router the line is down in IPv6 alone.
#[test]
fn leases_of_ipv6_take_a_router_and_a_server() {
    let Some(lab) = leased_lab(false, 2, true) else { return };
    let servers: Vec<Server> = (1..=2).map(|number| Server::start(&lab, number)).collect();
    let mut six: Vec<Six> = (1..=2).map(|number| Six::start(&lab, number)).collect();
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    // What the providers lead to their customer.
    for wan in &lab.site().wans {
        let (n, own) = (wan.number, wan.router6.addr());
        lab.isp(n).ip(&format!("route replace 2001:db8:88{n:02}:100::/56 via {own} dev cust\n")).unwrap();
        lab.internet().ip(&format!("route replace 2001:db8:88{n:02}:100::/56 via fd00:100:{n}::2\n")).unwrap();
    }
    wait("the host has addresses of both prefixes", || {
        let hosts = prefixed(&lab);
        Ok(hosts.len() == 2 && hosts.values().all(|(_, deprecated)| !deprecated))
    })
    .unwrap();
    let lease = |name: &str| line(&status(&lab).unwrap(), name, "v6")["lease"].clone();
    for (wan, name) in lab.site().wans.iter().zip(LINES) {
        let lease = lease(name);
        assert_eq!(lease["addresses"], json!([format!("{}/128", wan.router6.addr())]), "{lease}");
        assert_eq!(lease["prefixes"], json!([format!("2001:db8:88{:02}:100::/56", wan.number)]), "{lease}");
        assert!(lease["gateway"].as_str().unwrap().starts_with("fe80::"), "{lease}");
    }
    vlans_have_their_part_of_each_prefix(&lab);
    a_silent_line_has_its_prefix_deprecated(&lab);
    a_lost_router_costs_its_line_in_ipv6_alone(&lab, &mut six[0]);
    drop(servers);
}

fn vlans_have_their_part_of_each_prefix(lab: &Lab) {
    let own = run(Command::new("ip").args(["-n", lab.router().name(), "-br", "-6", "addr", "show", "dev", "vlan10"]));
    let own = own.unwrap();
    let hosts = prefixed(lab);
    assert_eq!(hosts.keys().collect::<Vec<_>>(), [&1, &2], "{hosts:?}");
    let lines: BTreeMap<u8, IpAddr> =
        lab.site().wans.iter().map(|wan| (wan.number, wan.router6.addr().into())).collect();
    for (number, (source, deprecated)) in &hosts {
        assert!(own.contains(&format!("2001:db8:88{number:02}:10a::1/64")), "{own}");
        assert!(!deprecated, "{hosts:?}");
        // By its own line it leaves as it is, by the other it is translated.
        let other = lines.iter().find(|(line, _)| *line != number).map(|(_, own)| *own).unwrap();
        let seen = seen_from(lab, *source, 40);
        assert_eq!(seen.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([*source, other]), "{seen:?}");
    }
    // What another VLAN may not do, it may not do to and with these addresses.
    let source = hosts[&1].0.to_string();
    let told = lab.routerctl().unwrap().args(["explain", &source, "2001:db8:100::20", "tcp/443"]).output();
    let told = String::from_utf8(told.unwrap().stdout).unwrap();
    assert!(told.contains("office") && told.contains("allowed"), "{told}");
    let guests = lab.host(20);
    guests.ip(&format!("addr add {source}/64 dev eth0 nodad\nroute replace default via fe80::1 dev eth0\n")).unwrap();
    let spoofed = || -> f64 {
        let vlans = status(lab).unwrap()["vlans"].clone();
        let guests = vlans.as_array().unwrap().iter().find(|vlan| vlan["name"] == "guests").cloned().unwrap();
        guests["spoofed_packets"].as_f64().unwrap()
    };
    let before = spoofed();
    let router =
        run(Command::new("ip").args(["-n", lab.router().name(), "-br", "link", "show", "dev", "vlan20"])).unwrap();
    let mac = router.split_ascii_whitespace().nth(2).unwrap();
    guests.ip(&format!("neigh replace fe80::1 lladdr {mac} dev eth0\n")).unwrap();
    assert!(open_from(&guests, source.parse().unwrap(), OUT6.parse().unwrap(), PATIENCE).is_err());
    wait("the other VLAN's address is dropped as spoofed", || Ok(spoofed() > before)).unwrap();
    guests.ip(&format!("addr del {source}/64 dev eth0\n")).unwrap();
}

/// The lease holds, and nothing comes through.
fn a_silent_line_has_its_prefix_deprecated(lab: &Lab) {
    lab.isp(1).ip("link set net0 down\n").unwrap();
    let begun = Instant::now();
    wait("the prefix of wan1 is deprecated", || Ok(prefixed(lab).get(&1).is_some_and(|(_, deprecated)| *deprecated)))
        .unwrap();
    println!("deprecated {:.1} s after the line was silent", begun.elapsed().as_secs_f64());
    let hosts = prefixed(lab);
    assert!(!hosts[&2].1, "{hosts:?}");
    assert!(line(&status(lab).unwrap(), "wan1", "v6")["lease"]["prefixes"][0].is_string());
    // Who uses it still is translated, and others take the one that lives.
    let translated = IpAddr::from(lab.site().wans[1].router6.addr());
    assert_eq!(seen_from(lab, hosts[&1].0, 10), BTreeMap::from([(translated, 10)]));
    let seen = distribution(&lab.host(10), OUT6.parse().unwrap(), 10).unwrap();
    assert_eq!(seen, BTreeMap::from([(hosts[&2].0, 10)]));
    lab.isp(1).ip("link set net0 up\nroute replace default via 100.127.1.1\nroute replace default via fd00:100:1::1\naddr replace fd00:100:1::2/64 dev net0 nodad\n").unwrap();
    lab.isp(1).ip("route replace default via fd00:100:1::1\n").unwrap();
    wait_until_good(lab, Duration::from_mins(1)).unwrap();
    wait("the prefix of wan1 is preferred again", || Ok(!prefixed(lab)[&1].1)).unwrap();
}

fn a_lost_router_costs_its_line_in_ipv6_alone(lab: &Lab, six: &mut Six) {
    let down = |family: &str| {
        let status = status(lab).unwrap();
        ["wan1", "wan2"].map(|name| line(&status, name, family)["state"] == "down")
    };
    six.router.stop();
    wait("the line is down without its router", || Ok(down("v6") == [true, false])).unwrap();
    assert_eq!(down("v4"), [false, false]);
    wait("the prefix is gone, and hosts hear of it", || Ok(prefixed(lab)[&1].1)).unwrap();
    let own = run(Command::new("ip").args(["-n", lab.router().name(), "-br", "-6", "addr", "show", "dev", "vlan10"]));
    assert!(!own.unwrap().contains("2001:db8:8801:"));
    let seen = distribution(&lab.host(10), OUT6.parse().unwrap(), 20).unwrap();
    assert_eq!(seen, BTreeMap::from([(prefixed(lab)[&2].0, 20)]));
    six.router.start(lab);
    wait_until_good(lab, Duration::from_mins(1)).unwrap();
    wait("the prefix of wan1 is preferred again", || Ok(!prefixed(lab)[&1].1)).unwrap();
}

/// The addresses that the host of `office` made of delegated prefixes, by the number of their lines; and whether it avoids
/// them.
fn prefixed(lab: &Lab) -> BTreeMap<u8, (IpAddr, bool)> {
    let host = lab.host(10);
    let told = run(Command::new("ip").args(["-n", host.name(), "-j", "-6", "address", "show", "dev", "eth0"])).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    let all = told[0]["addr_info"].as_array().unwrap().iter();
    let address = |info: &Value| {
        let address: IpAddr = info["local"].as_str()?.parse().ok()?;
        let number = address.to_string().strip_prefix("2001:db8:88")?.split(':').next()?.parse().ok()?;
        Some((number, (address, info["deprecated"] == true || info["preferred_life_time"] == 0)))
    };
    all.filter_map(address).collect()
}

/// As whom the Internet sees connections from this address.
fn seen_from(lab: &Lab, source: IpAddr, count: usize) -> BTreeMap<IpAddr, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let (_, greeting) = open_from(&lab.host(10), source, OUT6.parse().unwrap(), Duration::from_secs(5)).unwrap();
        *seen.entry(greeting.peer).or_default() += 1;
    }
    seen
}

/// Renewed every four seconds.
fn renewals_change_nothing(lab: &Lab, flows: &mut Flows) {
    let before = Stand::of(lab);
    let expires = |status: &Value| line(status, "wan1", "v4")["lease"]["expires_seconds"].as_f64().unwrap();
    let mut last = expires(&status(lab).unwrap());
    let (mut renewed, told) = (0, fs::read_to_string(lab.log("routerd")).unwrap().len());
    let begun = Instant::now();
    while renewed < 2 {
        assert!(begun.elapsed() < Duration::from_secs(40), "renewed {renewed} times");
        let left = expires(&status(lab).unwrap());
        renewed += u32::from(left > last + 1.0);
        last = left;
        thread::sleep(Duration::from_millis(100));
    }
    // Each of them asks its own server, though all servers have one address.
    wait("every line is renewed without asking everybody", || {
        let log = fs::read_to_string(lab.log("routerd"))?.split_off(told);
        Ok(LINES.iter().all(|name| log.contains(&format!("wan={name} family=IPv4 reason=RENEW"))))
    })
    .unwrap();
    assert!(!fs::read_to_string(lab.log("routerd")).unwrap().contains("rebinding"));
    before.holds(lab, &LINES);
    flows.live(&LINES);
}

fn malformed_reports_change_nothing(lab: &Lab, flows: &mut Flows) {
    let before = Stand::of(lab);
    let socket = UnixDatagram::unbound().unwrap();
    let to = lab.api_socket().with_file_name("dhcpcd").join("leases.sock");
    let reports: [&[u8]; 5] = [
        b"",
        b"\xff\xfe",
        b"reason=BOUND\0interface=wan1\0new_ip_address=$(reboot)\0new_subnet_cidr=24\0new_dhcp_lease_time=60\0",
        b"reason=NAK\0interface=wan77\0",
        b"reason=BOUND\0interface=../../etc\0new_ip_address=1.2.3.4\0",
    ];
    for report in reports {
        socket.send_to(report, &to).unwrap();
    }
    wait("the malformed reports are told", || {
        let log = fs::read_to_string(lab.log("routerd"))?;
        Ok(log.matches("is not understood: it changes nothing").count() >= 3
            && log.contains("for an interface that has none"))
    })
    .unwrap();
    before.holds(lab, &LINES);
    flows.live(&LINES);
}

fn another_gateway_moves_its_line_alone(lab: &Lab, flows: &mut Flows, server: &mut Server) {
    let before = Stand::of(lab);
    // The router of before is gone, and nobody has told yet.
    lab.isp(2).ip("addr delete 100.64.0.1/24 dev cust\naddr add 100.64.0.254/24 dev cust\n").unwrap();
    "100.64.0.254".clone_into(&mut server.gateway);
    server.again(lab);
    wait("the line is down, or already elsewhere", || {
        let line = line(&status(lab)?, "wan2", "v4");
        Ok(line["state"] == "down" || line["lease"]["gateway"] == "100.64.0.254")
    })
    .unwrap();
    wait("the line is good by its other gateway", || {
        let line = line(&status(lab)?, "wan2", "v4");
        Ok(line["lease"]["gateway"] == "100.64.0.254" && line["usable"] == true)
    })
    .unwrap();
    before.holds(lab, &["wan1", "wan3", "wan4"]);
    flows.live(&["wan1", "wan3", "wan4"]);
    flows.again(lab, "wan2");
}

fn a_refusal_costs_its_line_alone(lab: &Lab, flows: &mut Flows, server: &mut Server) {
    let before = Stand::of(lab);
    lab.internet().ip("route replace 100.64.0.33/32 via 100.127.3.2\n").unwrap();
    // Kea is silent about addresses that are not its own; dnsmasq says no.
    "100.64.0.33".clone_into(&mut server.address);
    server.dnsmasq = true;
    server.again(lab);
    wait("another lease after a NAK", || {
        let line = line(&status(lab)?, "wan3", "v4");
        Ok(line["lease"]["addresses"] == json!(["100.64.0.33/24"]) && line["usable"] == true)
    })
    .unwrap();
    let journal = run(lab.routerctl().unwrap().arg("journal")).unwrap();
    assert!(journal.contains("wan3 IPv4 has no lease to use: lease refused by the server"), "{journal}");
    assert!(journal.contains("wan3 IPv4: up -> down: lease refused by the server"), "{journal}");
    before.holds(lab, &["wan1", "wan2", "wan4"]);
    flows.live(&["wan1", "wan2", "wan4"]);
    assert!(!flows.is_live("wan3"), "the flows of the old address have ended");
    flows.seen.insert("wan3", "100.64.0.33".parse().unwrap());
    flows.again(lab, "wan3");
}

fn a_dead_server_costs_its_line_at_the_end_of_the_lease(lab: &Lab, flows: &mut Flows, server: &mut Server) {
    let before = Stand::of(lab);
    server.stop();
    let begun = Instant::now();
    wait("the lease of wan4 is over", || Ok(line(&status(lab)?, "wan4", "v4")["why"] == "lease expired")).unwrap();
    println!("the lease ended {:.1} s after its server", begun.elapsed().as_secs_f64());
    assert_eq!(line(&status(lab).unwrap(), "wan4", "v4")["state"], "down");
    let page = run(lab.routerctl().unwrap().arg("status")).unwrap();
    assert!(page.contains("no lease: lease expired"), "{page}");
    before.holds(lab, &["wan1", "wan2", "wan3"]);
    flows.live(&["wan1", "wan2", "wan3"]);
    assert!(!flows.is_live("wan4"));
    assert!(!addresses(lab, "wan4").contains("100.64.0.14"), "the kernel does not have it any more");
    server.again(lab);
    wait_until_good(lab, Duration::from_mins(1)).unwrap();
    before.holds(lab, &["wan1", "wan2", "wan3"]);
    flows.again(lab, "wan4");
}

fn a_client_that_is_killed_comes_back_and_its_line_does_not_notice(lab: &Lab, flows: &mut Flows) {
    let before = Stand::of(lab);
    let component = |status: &Value| {
        let all = status["components"].as_array().unwrap();
        all.iter().find(|line| line["name"] == "dhcpcd-wan1").cloned().unwrap()
    };
    assert_eq!(component(&status(lab).unwrap())["state"], "running");
    let log = fs::read_to_string(lab.log("routerd")).unwrap();
    let started = log.rsplit("started component=dhcpcd-wan1 pid=").next().unwrap();
    let client: i32 = started.split_ascii_whitespace().next().unwrap().parse().unwrap();
    assert!(fs::read_to_string(format!("/proc/{client}/cmdline")).unwrap().contains("dhcpcd"), "{client}");
    kill(Pid::from_raw(client), Signal::SIGKILL).unwrap();
    let begun = Instant::now();
    wait("dhcpcd runs again", || {
        let component = component(&status(lab)?);
        Ok(component["state"] == "running" && component["restarts"].as_u64() >= Some(1))
    })
    .unwrap();
    println!("dhcpcd was back after {:.1} s", begun.elapsed().as_secs_f64());
    // It asks for what it had, and gets it.
    wait("its server has answered", || {
        Ok(line(&status(lab)?, "wan1", "v4")["lease"]["expires_seconds"].as_f64() > Some(19.0))
    })
    .unwrap();
    before.holds(lab, &LINES);
    flows.live(&LINES);
}

/// No server answers while the daemon starts again: what was granted before holds.
fn a_daemon_that_is_killed_keeps_its_lines(lab: &mut Lab, flows: &mut Flows, servers: &mut [Server]) {
    servers.iter_mut().for_each(Server::stop);
    let before: Vec<_> = LINES.iter().map(|name| addresses(lab, name)).collect();
    lab.stop_router(Signal::SIGKILL).unwrap();
    flows.live(&LINES);
    lab.start_router().unwrap();
    wait_until_good(lab, Duration::from_secs(10)).unwrap();
    assert_eq!(LINES.iter().map(|name| addresses(lab, name)).collect::<Vec<_>>(), before);
    flows.live(&LINES);
    let journal = run(lab.routerctl().unwrap().arg("journal")).unwrap();
    let since = journal.rsplit("routerd started").next().unwrap();
    assert!(!since.contains("-> down"), "{since}");
    for server in servers {
        server.again(lab);
    }
    wait("each server has answered", || {
        let status = status(lab)?;
        let left = |name: &&str| line(&status, name, "v4")["lease"]["expires_seconds"].as_f64() > Some(15.0);
        Ok(LINES.iter().all(left))
    })
    .unwrap();
    let journal = run(lab.routerctl().unwrap().arg("journal")).unwrap();
    let since = journal.rsplit("routerd started").next().unwrap();
    println!("{since}");
    flows.live(&LINES);
}

/// The lab with the addresses of its lines left to its servers, and no server there yet; `None` where labs cannot be.
fn leased_lab(same_gateway: bool, lines: u8, ipv6: bool) -> Option<Temporary> {
    if let Err(reason) = tests::can_run().and_then(|()| binary("routerd").and(binary("routerctl")).map(drop)) {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "this test must run, and cannot: {reason:#}");
        println!("SKIP: {reason:#}");
        return None;
    }
    let mut lab = Temporary::up(SITE, lines, same_gateway).unwrap();
    let mut file: DocumentMut = lab.site().text.parse().unwrap();
    for (_, wan) in file["wan"].as_table_mut().unwrap().iter_mut() {
        let wan = wan.as_table_like_mut().unwrap();
        for key in ["addresses", "gateway", "gateway6"] {
            wan.remove(key);
        }
        wan.insert("method", toml_edit::value("dhcp"));
        let targets = wan.get_mut("probe").and_then(|probe| probe.get_mut("targets")).unwrap().as_array_mut().unwrap();
        if ipv6 {
            wan.insert("prefix_delegation", toml_edit::value(56));
        } else {
            targets.retain(|target| !target.as_str().unwrap().contains(':'));
        }
    }
    if ipv6 {
        file["vlan"]["office"]["delegate"] = toml_edit::value(toml_edit::Array::from_iter(["wan1", "wan2"]));
        file["ra"]["lifetime"] = toml_edit::value("2m");
        lab.host(10).enter(|| fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "2")).unwrap().unwrap();
    }
    fs::write(lab.site_file(), file.to_string()).unwrap();
    lab.start_router().unwrap();
    wait("every line waits for its lease", || {
        let status = status(&lab)?;
        let lines = LINES.iter().take(lines.into());
        Ok(lines.clone().all(|name| line(&status, name, "v4")["why"] == "no lease yet"))
    })
    .unwrap();
    Some(lab)
}

/// Waits until something is so. A lease that nobody renews takes twenty seconds to end.
fn wait(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !so()? {
        anyhow::ensure!(begun.elapsed() < Duration::from_mins(1), "it is not so that {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn addresses(lab: &Lab, interface: &str) -> String {
    run(Command::new("ip").args(["-n", lab.router().name(), "-br", "-4", "address", "show", "dev", interface])).unwrap()
}

/// What a line was, to see that it still is.
struct Stand(BTreeMap<&'static str, (Value, u64)>, Instant);

impl Stand {
    fn of(lab: &Lab) -> Self {
        let status = status(lab).unwrap();
        let stand = |name: &&'static str| {
            let line = line(&status, name, "v4");
            (*name, (line["state"].clone(), line["failovers"].as_u64().unwrap()))
        };
        Self(LINES.iter().map(stand).collect(), Instant::now())
    }

    /// These lines are as they were, and were so all the time.
    fn holds(&self, lab: &Lab, lines: &[&'static str]) {
        let status = status(lab).unwrap();
        for name in lines {
            let (line, (state, failovers)) = (line(&status, name, "v4"), &self.0[name]);
            assert_eq!((&line["state"], line["failovers"].as_u64()), (state, Some(*failovers)), "{name}: {line}");
            let since = line["since_seconds"].as_f64().unwrap();
            assert!(since >= self.1.elapsed().as_secs_f64(), "{name} changed {since} s ago");
        }
    }
}

/// The bytes of DHCP's classless routes (RFC 3442) by one router.
fn classless(destinations: &[&str], router: &str) -> String {
    let router: Ipv4Addr = router.parse().unwrap();
    let route = |destination: &&str| {
        let net: Ipv4Net = destination.parse().unwrap();
        let bytes = usize::from(net.prefix_len().div_ceil(8));
        [&[net.prefix_len()], &net.network().octets()[..bytes], &router.octets()].concat()
    };
    let bytes: Vec<_> = destinations.iter().flat_map(route).map(|byte| format!("{byte:02X}")).collect();
    bytes.concat()
}

/// A connection by each line.
struct Flows {
    seen: BTreeMap<&'static str, IpAddr>,
    open: BTreeMap<&'static str, TcpStream>,
}

impl Flows {
    fn open(lab: &Lab) -> Self {
        let seen = LINES.into_iter().zip(lab.site().wans.iter().map(|wan| wan.router4.addr().into())).collect();
        let mut flows = Self { seen, open: BTreeMap::new() };
        for name in LINES {
            flows.again(lab, name);
        }
        flows
    }

    /// Another by this line.
    fn again(&mut self, lab: &Lab, name: &'static str) {
        let to: SocketAddr = OUT.parse().unwrap();
        // A line that was lost is held for some seconds.
        let begun = Instant::now();
        let found = loop {
            assert!(begun.elapsed() < Duration::from_secs(30), "no connection by {name}");
            match open(&lab.host(10), to, PATIENCE) {
                Ok((stream, greeting)) if greeting.peer == self.seen[name] => break stream,
                Ok(_) | Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        self.open.insert(name, found);
    }

    fn is_live(&mut self, name: &'static str) -> bool {
        echoes(self.open.get_mut(name).unwrap(), PATIENCE)
    }

    fn live(&mut self, lines: &[&'static str]) {
        for name in lines {
            assert!(self.is_live(name), "the connection by {name} has ended");
        }
    }
}

/// Kea at one ISP, with leases of twenty seconds that are renewed after four; or dnsmasq, with its shortest of two minutes.
struct Server {
    number: u8,
    file: PathBuf,
    address: String,
    gateway: String,
    dnsmasq: bool,
    child: Option<Child>,
}

impl Server {
    fn start(lab: &Lab, number: u8) -> Self {
        let wan = &lab.site().wans[usize::from(number) - 1];
        let mut server = Self {
            number,
            file: lab.site_file().with_file_name(format!("kea-{number}.conf")),
            address: wan.router4.addr().to_string(),
            gateway: wan.gateway4.to_string(),
            dnsmasq: false,
            child: None,
        };
        server.again(lab);
        server
    }

    /// With the address and gateway it has by now.
    fn again(&mut self, lab: &Lab) {
        self.stop();
        let wan = &lab.site().wans[usize::from(self.number) - 1];
        let Self { address, gateway, .. } = &*self;
        let config = json!({ "Dhcp4": {
            "interfaces-config": { "interfaces": ["cust"], "re-detect": false },
            "lease-database": { "type": "memfile", "persist": false },
            "valid-lifetime": 20, "renew-timer": 4, "rebind-timer": 12,
            "authoritative": true,
            "subnet4": [{
                "id": 1, "subnet": wan.router4.trunc().to_string(),
                "pools": [{ "pool": format!("{address} - {address}") }],
                "option-data": [
                    { "name": "routers", "data": gateway },
                    { "name": "domain-name-servers", "data": "198.51.100.53" },
                    { "code": 121, "csv-format": false, "always-send": true, "data": classless(&[FURTHER], gateway) },
                ],
            }],
            "loggers": [{ "name": "kea-dhcp4", "severity": "INFO", "output-options": [{ "output": "stdout" }] }],
        }});
        let mut program = "kea-dhcp4";
        let mut text = config.to_string();
        if self.dnsmasq {
            program = "dnsmasq";
            text = format!(
                "port=0\nuser=root\ninterface=cust\nbind-interfaces\nno-ping\nkeep-in-foreground\nlog-facility=-\n\
                 dhcp-authoritative\ndhcp-range={address},{address},255.255.255.0,2m\ndhcp-option=3,{gateway}\n\
                 dhcp-leasefile={}\npid-file={}\n",
                self.file.with_extension("leases").display(),
                self.file.with_extension("pid").display()
            );
        }
        fs::write(&self.file, text).unwrap();
        let log = fs::File::options().create(true).append(true).open(self.file.with_extension("log")).unwrap();
        let mut command = Root::find().unwrap().command(&lab.isp(self.number), program);
        command.arg(if self.dnsmasq { "-C" } else { "-c" }).arg(&self.file);
        command.env("KEA_LOCKFILE_DIR", "none").env("KEA_PIDFILE_DIR", self.file.parent().unwrap());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// IPv6 at one ISP: radvd, and Kea for an address and a prefix.
struct Six {
    router: Program,
    _server: Program,
}

impl Six {
    fn start(lab: &Lab, number: u8) -> Self {
        let wan = &lab.site().wans[usize::from(number) - 1];
        let file = |name: &str| lab.site_file().with_file_name(format!("{name}-{number}.conf"));
        let radvd = "interface cust {\nAdvSendAdvert on;\nMinRtrAdvInterval 3;\nMaxRtrAdvInterval 5;\n\
                     AdvDefaultLifetime 20;\nAdvManagedFlag on;\n};\n";
        let own = wan.router6.addr();
        let kea = json!({ "Dhcp6": {
            "server-id": { "type": "EN", "persist": false, "enterprise-id": 55555, "identifier": "0A0B0C0D" },
            "interfaces-config": { "interfaces": ["cust"], "re-detect": false },
            "lease-database": { "type": "memfile", "persist": false },
            "preferred-lifetime": 15, "valid-lifetime": 20, "renew-timer": 4, "rebind-timer": 12,
            "subnet6": [{
                "id": 1, "interface": "cust", "subnet": wan.router6.trunc().to_string(),
                "pools": [{ "pool": format!("{own} - {own}") }],
                "pd-pools": [
                    { "prefix": format!("2001:db8:88{number:02}:100::"), "prefix-len": 56, "delegated-len": 56 },
                ],
            }],
            "loggers": [{ "name": "kea-dhcp6", "severity": "INFO", "output-options": [{ "output": "stdout" }] }],
        }});
        fs::write(file("radvd"), radvd).unwrap();
        fs::write(file("kea6"), kea.to_string()).unwrap();
        let program = |name: &'static str, arguments: Vec<PathBuf>, log: PathBuf| {
            let mut program = Program { number, name, arguments, log, child: None };
            program.start(lab);
            program
        };
        let words = |words: &[&str]| words.iter().map(PathBuf::from).collect::<Vec<_>>();
        let pid = file("radvd").with_extension("pid");
        let radvd = [words(&["-n", "-m", "stderr", "-C"]), vec![file("radvd")], words(&["-p"]), vec![pid]].concat();
        let kea = [words(&["-c"]), vec![file("kea6")]].concat();
        Self {
            router: program("radvd", radvd, file("radvd").with_extension("log")),
            _server: program("kea-dhcp6", kea, file("kea6").with_extension("log")),
        }
    }
}

/// One that runs at an ISP.
struct Program {
    number: u8,
    name: &'static str,
    arguments: Vec<PathBuf>,
    log: PathBuf,
    child: Option<Child>,
}

impl Program {
    fn start(&mut self, lab: &Lab) {
        let log = fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Root::find().unwrap().command(&lab.isp(self.number), self.name);
        command.args(&self.arguments);
        command.env("KEA_LOCKFILE_DIR", "none").env("KEA_PIDFILE_DIR", self.log.parent().unwrap());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// As a power failure does: without a last word.
    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{} of isp{}:\n{}", self.name, self.number, fs::read_to_string(&self.log).unwrap_or_default());
        }
        self.stop();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
