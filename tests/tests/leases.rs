//! Lines whose addresses come from real DHCP servers, one at each ISP: what these grant carries traffic, what they take
//! away costs their line alone, and it heals without anybody.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary, binary};
use tests::netns::run;
use tests::root::Root;
use tests::traffic::{distribution, echoes, open};
use tests::watch::{line, status};
use toml_edit::DocumentMut;

const SITE: &str = include_str!("../../config/examples/minimal.toml");
const OUT: &str = "198.51.100.20:443";
const PATIENCE: Duration = Duration::from_secs(1);
const LINES: [&str; 4] = ["wan1", "wan2", "wan3", "wan4"];

/// The same subnet and gateway on all lines: only the interface tells one server's answers from another's.
#[test]
fn leases_carry_their_lines_and_cost_no_other() {
    let Some(mut lab) = leased_lab(true) else { return };
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
fn leased_lab(same_gateway: bool) -> Option<Temporary> {
    if let Err(reason) = tests::can_run().and_then(|()| binary("routerd").and(binary("routerctl")).map(drop)) {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "this test must run, and cannot: {reason:#}");
        println!("SKIP: {reason:#}");
        return None;
    }
    let mut lab = Temporary::up(SITE, 4, same_gateway).unwrap();
    let mut file: DocumentMut = lab.site().text.parse().unwrap();
    for (_, wan) in file["wan"].as_table_mut().unwrap().iter_mut() {
        let wan = wan.as_table_like_mut().unwrap();
        for key in ["addresses", "gateway", "gateway6"] {
            wan.remove(key);
        }
        wan.insert("method", toml_edit::value("dhcp"));
        let targets = wan.get_mut("probe").and_then(|probe| probe.get_mut("targets")).unwrap().as_array_mut().unwrap();
        targets.retain(|target| !target.as_str().unwrap().contains(':'));
    }
    fs::write(lab.site_file(), file.to_string()).unwrap();
    lab.start_router().unwrap();
    wait("every line waits for its lease", || {
        let status = status(&lab)?;
        Ok(LINES.iter().all(|name| line(&status, name, "v4")["why"] == "no lease yet"))
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

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
