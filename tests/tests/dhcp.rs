//! What VLANs are handed by a router at work: real clients get addresses, options, the router and the time from the real
//! servers; these are killed, and the router itself is; and no VLAN ever gets what is another's.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::lab::{Lab, Temporary};
use tests::netns::{Netns, feed, run};
use tests::root::Root;
use tests::traffic::{Probe, probe};
use tests::watch::status;

#[test]
fn vlans_are_handed_their_own_and_every_server_comes_back() {
    let Some(mut lab) = Temporary::routed(&site(), 2, false).unwrap() else { return };
    if !has_components() {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "the root lacks the components: make root");
        println!("SKIP: the root lacks the components of tests/root/packages");
        return;
    }
    let _clock = Upstream::start(&lab).unwrap();
    open_client_ports(&lab);
    until("every component runs", || Ok(COMPONENTS.iter().all(|name| is_running(&lab, name))), &lab);

    reserved_addresses_and_options(&lab);
    pool_addresses(&lab);
    addresses_and_advertisements_of_ipv6(&lab);
    nobody_answers_where_nobody_may_ask(&lab);
    the_time(&lab);
    what_is_told(&lab);
    every_component_comes_back(&lab);
    a_restart_keeps_the_leases(&mut lab);
    orphans_are_ended_by_the_next_start(&mut lab);
    lab.stop_router(Signal::SIGTERM).unwrap();
    assert_eq!(components_in(&lab.router()), Vec::<i32>::new(), "a stop leaves none");
}

fn reserved_addresses_and_options(lab: &Lab) {
    // The name, its MAC, its VLAN, and what it is to be handed.
    for (mac, vlan, address, router) in [
        (DESK, 10, "10.0.10.7", "10.0.10.1"),
        (PRINTER, 20, "10.0.20.5", "10.0.20.1"),
        (CAMERA, 30, "10.0.30.5", "10.0.30.1"),
    ] {
        become_card(lab, vlan, mac);
        let told = dhcpcd(lab, vlan, "-4").unwrap();
        let value = |name: &str| told.get(name).map(String::as_str);
        assert_eq!(value("new_ip_address"), Some(address), "{told:?}");
        assert_eq!(value("new_routers"), Some(router), "{told:?}");
        assert_eq!(value("new_subnet_cidr"), Some("24"), "{told:?}");
        let dns = (vlan != 30).then_some(router);
        assert_eq!((value("new_domain_name_servers"), value("new_ntp_servers")), (dns, dns), "{told:?}");
        let domain = if vlan == 20 { "guests.site.test" } else { "site.test" };
        assert_eq!(value("new_domain_name"), Some(domain), "{told:?}");
        assert_eq!(value("new_interface_mtu"), (vlan == 20).then_some("1400"), "{told:?}");
        assert_eq!(value("new_dhcp_lease_time"), Some(if vlan == 20 { "300" } else { "600" }), "{told:?}");
        // The other client there is.
        let lease = dhclient(lab, vlan, &["-4"]).unwrap().unwrap();
        assert!(lease.contains(&format!("fixed-address {address};")), "{lease}");
        assert!(lease.contains(&format!("option dhcp-server-identifier {router};")), "{lease}");
    }
}

fn pool_addresses(lab: &Lab) {
    become_card(lab, 10, STRANGER);
    let told = dhcpcd(lab, 10, "-4").unwrap();
    let address: IpAddr = told["new_ip_address"].parse().unwrap();
    let pool = "10.0.10.100".parse::<IpAddr>().unwrap()..="10.0.10.149".parse().unwrap();
    assert!(pool.contains(&address), "{told:?}");
    // Without a pool there is nothing for a stranger, nor a reservation of another VLAN.
    for mac in [STRANGER, DESK] {
        become_card(lab, 20, mac);
        assert_eq!(dhclient(lab, 20, &["-4"]).unwrap(), None);
    }
}

fn addresses_and_advertisements_of_ipv6(lab: &Lab) {
    become_card(lab, 20, PRINTER);
    let lease = dhclient(lab, 20, &["-6", "-D", "LL"]).unwrap().unwrap();
    assert!(lease.contains("iaaddr fd20::5 {"), "{lease}");
    assert!(lease.contains("option dhcp6.name-servers fd20::1;"), "{lease}");
    become_card(lab, 10, STRANGER);
    let lease = dhclient(lab, 10, &["-6", "-D", "LL"]).unwrap().unwrap();
    assert!(lease.contains("iaaddr fd10::10"), "of the pool: {lease}");
    // Flags, prefix and name server of the advertisements, as a host hears them.
    for (vlan, prefix, managed) in [(10, Some("fd10::/64"), true), (20, Some("fd20::/64"), true), (30, None, false)] {
        let told = dhcpcd(lab, vlan, "-6");
        let Some(prefix) = prefix else {
            assert!(told.is_err(), "no advertisements are wanted there: {told:?}");
            continue;
        };
        let told = told.unwrap();
        let value = |name: &str| told.get(name).map(String::as_str);
        assert_eq!(value("nd1_prefix_information1_prefix"), Some(prefix.trim_end_matches("/64")), "{told:?}");
        assert_eq!(value("nd1_flags").is_some_and(|flags| flags.contains('M')), managed, "{told:?}");
        let router = if vlan == 10 { "fd10::1" } else { "fd20::1" };
        assert_eq!(value("nd1_rdnss1_servers"), Some(router), "{told:?}");
    }
}

fn nobody_answers_where_nobody_may_ask(lab: &Lab) {
    // VLAN 40 has no `dhcp` in its `input`.
    become_card(lab, 40, STRANGER);
    assert_eq!(dhclient(lab, 40, &["-4"]).unwrap(), None);
}

fn the_time(lab: &Lab) {
    until("the clock follows its server", || Ok(status(lab)?["clock"]["synchronised"] == true), lab);
    let told = status(lab).unwrap();
    assert_eq!(told["clock"]["stratum"], 6, "{told}");
    let asked = |vlan: u16, router: &str| {
        let mut client = Root::find().unwrap().command(&lab.host(vlan), "chronyd");
        client.args(["-x", "-Q", "-t", "8"]).arg(format!("server {router} iburst maxsamples 1"));
        // A file of its own: chronyd takes it away at its end, whatever it is.
        let number = lab.state_directory().join(format!("asked-{vlan}.pid"));
        client.args(["cmdport 0", "bindcmdaddress /"]).arg(format!("pidfile {}", number.display()));
        client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    };
    assert!(asked(10, "10.0.10.1"));
    assert!(!asked(30, "10.0.30.1"), "nobody may ask for the time there");
}

fn what_is_told(lab: &Lab) {
    until(
        "leases are counted",
        || {
            let told = status(lab)?;
            let of = |vlan: &str, family: &str, what: &str| {
                let lines = told["dhcp"].as_array().into_iter().flatten();
                let mut line = lines.filter(|line| line["vlan"] == vlan && line["family"] == family);
                line.next().and_then(|line| line[what].as_u64())
            };
            Ok(of("office", "v4", "leases") == Some(2)
                && of("office", "v4", "pool_used") == Some(1)
                && of("office", "v4", "pool_size") == Some(50)
                && of("office", "v6", "pool_used") == Some(1)
                && of("guests", "v4", "leases") == Some(1)
                && of("guests", "v4", "pool_size") == Some(0))
        },
        lab,
    );
    let page = run(lab.routerctl().unwrap().arg("status")).unwrap();
    assert!(page.contains("DHCP office IPv4: 2 leases, 1 of 50 of the pool"), "{page}");
    assert!(page.contains("kea-dhcp4: running for "), "{page}");
}

/// kill -9 of each: back within five seconds, or told; and the matrix is what it was, throughout.
fn every_component_comes_back(lab: &Lab) {
    allowed_is_allowed(lab);
    for name in COMPONENTS {
        let before = restarts(lab, name);
        let pid = number(lab, name);
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        let killed = Instant::now();
        loop {
            denied_is_denied(lab);
            let told = component(lab, name);
            if told["state"] == "running" && told["restarts"].as_u64() > Some(before) && number(lab, name) != pid {
                break;
            }
            assert!(killed.elapsed() < Duration::from_secs(30), "{name} does not come back: {told}");
            // Not back in five seconds is allowed where it is told.
            let late = killed.elapsed() > Duration::from_secs(5);
            assert!(!late || told["state"] != "running", "{name}: {told}");
            thread::sleep(Duration::from_millis(50));
        }
        println!("{name} was back after {:?}", killed.elapsed());
    }
    allowed_is_allowed(lab);
    become_card(lab, 10, DESK);
    assert_eq!(dhcpcd(lab, 10, "-4").unwrap()["new_ip_address"], "10.0.10.7");
}

fn a_restart_keeps_the_leases(lab: &mut Lab) {
    become_card(lab, 10, STRANGER);
    let before = dhcpcd(lab, 10, "-4").unwrap()["new_ip_address"].clone();
    lab.stop_router(Signal::SIGTERM).unwrap();
    assert_eq!(components_in(&lab.router()), Vec::<i32>::new(), "a stop leaves none");
    denied_is_denied(lab);
    lab.start_router().unwrap();
    until("every component runs", || Ok(COMPONENTS.iter().all(|name| is_running(lab, name))), lab);
    // Another is asked for meanwhile, so that the first free one is not it by chance.
    become_card(lab, 10, OTHER);
    let other = dhcpcd(lab, 10, "-4").unwrap()["new_ip_address"].clone();
    become_card(lab, 10, STRANGER);
    let after = dhcpcd(lab, 10, "-4").unwrap()["new_ip_address"].clone();
    assert_eq!(after, before);
    assert_ne!(other, before);
}

fn orphans_are_ended_by_the_next_start(lab: &mut Lab) {
    let orphans: BTreeMap<_, _> = COMPONENTS.iter().map(|name| (*name, number(lab, name))).collect();
    lab.stop_router(Signal::SIGKILL).unwrap();
    denied_is_denied(lab);
    lab.start_router().unwrap();
    until("every component runs", || Ok(COMPONENTS.iter().all(|name| is_running(lab, name))), lab);
    let there = components_in(&lab.router());
    for (name, orphan) in orphans {
        assert!(!there.contains(&orphan), "{name} of the killed routerd still runs");
    }
    become_card(lab, 10, DESK);
    assert_eq!(dhcpcd(lab, 10, "-4").unwrap()["new_ip_address"], "10.0.10.7");
}

/// office -> printer is allowed by the file.
fn allowed_is_allowed(lab: &Lab) {
    let printer = "10.0.20.5".parse().unwrap();
    let answer = probe(&lab.host(10), None, printer, Probe::Tcp(631), Duration::from_secs(3)).unwrap();
    assert!(answer.is_open(), "{answer:?}");
}

/// guests -> office is denied by the file.
fn denied_is_denied(lab: &Lab) {
    let office = lab.site().vlans[0].address(false).unwrap();
    let answer = probe(&lab.host(20), None, office, Probe::Tcp(80), Duration::from_millis(100)).unwrap();
    assert!(!answer.is_open(), "{answer:?}");
}

fn component(lab: &Lab, name: &str) -> Value {
    let told = status(lab).unwrap();
    let lines = told["components"].as_array().cloned().unwrap_or_default();
    lines.into_iter().find(|line| line["name"] == name).unwrap_or_default()
}

fn is_running(lab: &Lab, name: &str) -> bool {
    let line = component(lab, name);
    line["state"] == "running" && line["why"].is_null()
}

fn restarts(lab: &Lab, name: &str) -> u64 {
    component(lab, name)["restarts"].as_u64().unwrap()
}

/// Of the process that runs.
fn number(lab: &Lab, name: &str) -> i32 {
    let file = lab.api_socket().with_file_name("components").join(name);
    let text = fs::read_to_string(&file).unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or_default()
}

/// Whoever is in the router's namespace besides routerd.
fn components_in(router: &Netns) -> Vec<i32> {
    let text = run(Command::new("ip").args(["netns", "pids", router.name()])).unwrap();
    let named = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        ["kea-", "radvd", "chronyd"].iter().any(|known| name.starts_with(known))
    };
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(named).collect()
}

/// The network card of a VLAN's host becomes another.
fn become_card(lab: &Lab, vlan: u16, mac: &str) {
    let host = lab.host(vlan);
    host.ip(&format!("link set eth0 down\nlink set eth0 address {mac}\n")).unwrap();
    // dhcpcd would rather make link-local addresses itself, and leaves it so.
    host.sysctls([("net/ipv6/conf/eth0/addr_gen_mode", "0")]).unwrap();
    host.ip("link set eth0 up\n").unwrap();
    // They went with the link.
    let gateways = lab.site().vlans.iter().find(|known| known.id == vlan).unwrap().gateways.iter();
    let routes = gateways.map(|gateway| format!("route replace default via {}\n", gateway.addr()));
    host.ip(&routes.collect::<String>()).unwrap();
    // The rest is for its own link-local address, which follows the card.
    let ready = || host.enter(|| run(Command::new("ip").args(["-6", "addr", "show", "dev", "eth0", "scope", "link"])));
    let deadline = Instant::now() + Duration::from_secs(5);
    while !ready().unwrap().unwrap().contains("fe80::") {
        assert!(Instant::now() < deadline, "no link-local address");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What the client is told: the environment of its script, for the event that has an address or an advertisement.
fn dhcpcd(lab: &Lab, vlan: u16, family: &str) -> Result<BTreeMap<String, String>> {
    let folder = client_folder(lab, vlan, "dhcpcd");
    let script = folder.join("script");
    let out = folder.join("told").display().to_string();
    fs::write(&script, format!("#!/bin/sh\n[ -e {out}.$reason ] || {{ env > {out}; mv {out} {out}.$reason; }}\n"))?;
    run(Command::new("chmod").arg("755").arg(&script))?;
    let event = if family == "-4" { "BOUND" } else { "ROUTERADVERT" };
    let heard = PathBuf::from(format!("{out}.{event}"));
    let mut client = own_dhcpcd(&lab.host(vlan))?;
    client.args([family, "-B", "--noconfigure", "--noipv4ll", "--nodhcp6", "-t", "8", "-f", "/dev/null"]);
    client.args(["--option", "domain_name_servers,domain_name,ntp_servers,interface_mtu"]);
    client.args(["-c"]).arg(&script).arg("eth0");
    let log = fs::File::create(folder.join("log"))?;
    let mut client = Running(client.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
    let deadline = Instant::now() + Duration::from_secs(12);
    while !heard.exists() && Instant::now() < deadline && client.0.try_wait()?.is_none() {
        thread::sleep(Duration::from_millis(20));
    }
    drop(client);
    ensure!(heard.exists(), "dhcpcd heard nothing: {}", fs::read_to_string(folder.join("log"))?);
    let text = fs::read_to_string(heard)?;
    let told = text.lines().filter_map(|line| line.split_once('='));
    Ok(told.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// dhcpcd with the folders it keeps things in empty and its own: it names files by the interface, as every lab's has it.
fn own_dhcpcd(host: &Netns) -> Result<Command> {
    let root = match Root::find()? {
        Root::Directory(root) => root,
        Root::Host => PathBuf::from("/"),
    };
    let script = "root=$1 enter=$2; shift 2; mkdir -p /run/dhcpcd \"$root/var/lib/dhcpcd\"\n\
                  mount -t tmpfs none /run/dhcpcd; mount -t tmpfs none \"$root/var/lib/dhcpcd\"\n\
                  [ \"$root\" = / ] && exec dhcpcd \"$@\"\n\
                  exec sh -c \"$enter\" enter \"$root\" dhcpcd \"$@\"";
    let mut command = host.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script, "dhcpcd"]).arg(root);
    command.arg(include_str!("../root/enter"));
    Ok(command)
}

/// What the client keeps of its lease; `None` where nobody offers one.
fn dhclient(lab: &Lab, vlan: u16, arguments: &[&str]) -> Result<Option<String>> {
    let folder = client_folder(lab, vlan, "dhclient");
    let leases = folder.join("leases");
    let mut client = Root::find()?.command(&lab.host(vlan), "timeout");
    client.args(["8", "dhclient", "-1", "-d", "-sf", "/bin/true"]).args(arguments);
    client.arg("-lf").arg(&leases).arg("-pf").arg(folder.join("pid")).args(["-cf", "/dev/null", "eth0"]);
    let log = fs::File::create(folder.join("log"))?;
    let mut client = Running(client.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
    let written = || fs::read_to_string(&leases).unwrap_or_default();
    while !written().contains("lease") && client.0.try_wait()?.is_none() {
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(50));
    drop(client);
    Ok(Some(written()).filter(|lease| lease.contains("lease")))
}

/// Empty.
fn client_folder(lab: &Lab, vlan: u16, what: &str) -> PathBuf {
    let folder = lab.state_directory().join(format!("{what}-{vlan}"));
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The hosts of the lab answer on every port: not on those of clients and of the time.
fn open_client_ports(lab: &Lab) {
    let others = "insert rule inet world all_ports udp dport { 68, 123, 546 } return\n";
    for host in [10, 20, 30, 40].map(|vlan| lab.host(vlan)).into_iter().chain([lab.internet()]) {
        feed(Root::find().unwrap().command(&host, "nft").args(["-f", "-"]), others).unwrap();
    }
}

/// A server of time in the Internet, which follows the clock of this machine and leaves it alone.
struct Upstream {
    _server: Running,
}

impl Upstream {
    fn start(lab: &Lab) -> Result<Self> {
        let folder = lab.state_directory().join("upstream");
        fs::create_dir_all(&folder)?;
        let mut server = Root::find()?.command(&lab.internet(), "chronyd");
        server.args(["-x", "-d", "-u", "root", "local stratum 5", "allow", "cmdport 0", "bindcmdaddress /"]);
        server.arg(format!("pidfile {}", folder.join("pid").display()));
        let log = fs::File::create(folder.join("log"))?;
        let server = server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Self { _server: Running(server.context("no server of time")?) })
    }
}

/// Ended with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        kill(pid, Signal::SIGTERM).ok();
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.0.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                self.0.kill().ok();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn has_components() -> bool {
    let program = |name: &str| match Root::find() {
        Ok(Root::Directory(root)) => root.join("usr/sbin").join(name).exists(),
        Ok(Root::Host) | Err(_) => PathBuf::from("/usr/sbin").join(name).exists(),
    };
    ["kea-dhcp4", "kea-dhcp6", "radvd", "chronyd", "dhcpcd", "dhclient"].into_iter().all(program)
}

fn until(what: &str, mut so: impl FnMut() -> Result<bool>, lab: &Lab) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !so().unwrap() {
        if Instant::now() > deadline {
            let told = status(lab).unwrap();
            panic!("{what} does not come: {} {} {}", told["components"], told["dhcp"], told["clock"]);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn site() -> String {
    let minimal = include_str!("../../config/examples/minimal.toml");
    let minimal = minimal.replace("\"10.0.10.1/24\"", "\"10.0.10.1/24\", \"fd10::1/64\"");
    let minimal = minimal.replace("\"10.0.20.1/24\"", "\"10.0.20.1/24\", \"fd20::1/64\"");
    let minimal = minimal.replace(
        "[vlan.guests]",
        "dhcp      = { pool = [\"10.0.10.100-149\", \"fd10::1000-fd10::10ff\"] }\n[vlan.guests]",
    );
    let minimal = minimal.replace(
        "[host.printer]\naddress = \"10.0.20.5\"",
        "dhcp      = { lease = \"5m\", domain = \"guests.site.test\", mtu = 1400 }\n\
         [host.printer]\naddresses = [\"10.0.20.5\", \"fd20::5\"]\nmac = \"02:00:00:00:20:05\"",
    );
    minimal
        + "
[dhcp]
lease  = \"10m\"
domain = \"site.test\"
[ra]
[ntp]
servers   = [\"198.51.100.1\"]
set_clock = false
[vlan.cameras]
id        = 30
addresses = [\"10.0.30.1/24\"]
access    = [\"eth4\"]
input     = [\"dhcp\"]
ra        = false
[vlan.shut]
id        = 40
addresses = [\"10.0.40.1/24\"]
access    = [\"eth5\"]
[host.desk]
address = \"10.0.10.7\"
mac     = \"02:00:00:00:10:07\"
[host.camera]
address = \"10.0.30.5\"
mac     = \"02:00:00:00:30:05\"
"
}

const COMPONENTS: [&str; 4] = ["kea-dhcp4", "kea-dhcp6", "radvd", "chrony"];
const DESK: &str = "02:00:00:00:10:07";
const PRINTER: &str = "02:00:00:00:20:05";
const CAMERA: &str = "02:00:00:00:30:05";
const STRANGER: &str = "02:00:00:00:99:01";
const OTHER: &str = "02:00:00:00:99:02";
