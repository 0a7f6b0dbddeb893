//! Two routers of one site: one is switched off under load, and the flows go on through the other; the work is handed over
//! and back; what elects and what tells flows is killed; and where both are active, both say so.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::lab::{Temporary, binary, tail};
use tests::netns::{Netns, run};
use tests::root::Root;
use tests::site::TARGETS4;
use tests::traffic::{FlowReport, Probe, UdpFlow, echoes, open, probe};

#[test]
fn flows_survive_the_power_off_of_the_active_router_and_the_work_is_handed_over_and_back() {
    let Some(mut pair) = Twins::up().unwrap() else { return };
    pair.start(LEFT);
    until("left is active", || pair.is_active(LEFT));
    pair.start(RIGHT);
    until("the two hear each other", || pair.hear_each_other());
    assert!(!pair.is_active(RIGHT), "{}", pair.status(RIGHT));
    whose_the_addresses_are(&pair);
    nothing_else_is_open(&pair);

    let mut flows = flows(&pair);
    until("the other kernel knows the flows", || pair.known_flows(RIGHT) >= FLOWS);
    println!("200 TCP flows are known to both kernels");

    // Nobody says goodbye.
    let report = pair.under_load(|pair| pair.power_off(LEFT));
    tell("power-off", &report);
    until("right is active", || pair.is_active(RIGHT));
    let alive = survivors(&mut flows);
    println!("power-off: {alive} of {FLOWS} flows survive");
    assert!(alive * 100 >= FLOWS * 95, "{alive} of {FLOWS}");
    assert!(report.silence < GAP, "{report:?}");
    let status = pair.status(RIGHT);
    assert!(status["pair"]["peer_heard_seconds"].as_f64().unwrap() > 0.0, "{status}");
    assert!(pair.page(RIGHT).contains("left is not heard"), "{}", pair.page(RIGHT));

    // It comes back, learns what the other one knows, and leaves it the work.
    pair.power_on(LEFT);
    pair.start(LEFT);
    until("the two hear each other", || pair.hear_each_other());
    assert!(pair.is_active(RIGHT) && !pair.is_active(LEFT));
    until("left knows the flows that it has missed", || pair.known_flows(LEFT) >= FLOWS * 95 / 100);

    // A rolling upgrade: hand over, restart, hand over back.
    for (from, to) in [(RIGHT, LEFT), (LEFT, RIGHT)] {
        let report = pair.under_load(|pair| {
            pair.routerctl(from, &["pair", "handover", "--for", "10s"]).unwrap();
        });
        tell("handover", &report);
        assert!(pair.is_active(to) && !pair.is_active(from), "{}", pair.status(from));
        assert!(report.silence < GAP, "{report:?}");
        let report = pair.under_load(|pair| pair.restart(from));
        tell("restart of the one that stands by", &report);
        assert!(report.silence < GAP, "{report:?}");
        until("the two hear each other", || pair.hear_each_other());
        let known = || pair.known_flows(from) >= FLOWS * 95 / 100;
        until("the restarted one knows the flows", known);
    }
    let alive = survivors(&mut flows);
    println!("two handovers and two restarts later: {alive} of {FLOWS} flows survive");
    assert!(alive * 100 >= FLOWS * 95, "{alive} of {FLOWS}");
}

#[test]
fn what_is_killed_comes_back_and_two_active_routers_are_told() {
    let Some(mut pair) = Twins::up().unwrap() else { return };
    pair.start(LEFT);
    until("left is active", || pair.is_active(LEFT));
    pair.start(RIGHT);
    until("the two hear each other", || pair.hear_each_other());

    for component in ["conntrackd", "keepalived"] {
        let before = Instant::now();
        let killed = pair.kill(LEFT, component);
        assert!(killed > 0, "{component} runs");
        until("it runs again", || pair.restarts(LEFT, component) > 0 && pair.runs(LEFT, component));
        println!("{component}: {killed} processes killed, back after {:?}", before.elapsed());
        until("one of the two is active", || pair.is_active(LEFT) != pair.is_active(RIGHT));
        nothing_else_is_open(&pair);
    }
    // routerd itself, on the one that is active: what it ran ends with it.
    let active = if pair.is_active(LEFT) { LEFT } else { RIGHT };
    let other = if active == LEFT { RIGHT } else { LEFT };
    let report = pair.under_load(|pair| pair.end(active, Signal::SIGKILL));
    tell("kill -9 of routerd", &report);
    assert!(pair.is_active(other), "{}", pair.status(other));
    assert!(report.silence < GAP, "{report:?}");
    let addresses = run(pair.place(active).command("ip").args(["-brief", "addr"])).unwrap();
    assert!(!addresses.contains("10.0.10.1/") && !addresses.contains("100.64.1.2/"), "{addresses}");
    pair.start(active);
    until("the two hear each other", || pair.hear_each_other());

    // The VLANs no longer carry what one router says to the other.
    pair.isolate(true);
    until("both are active and both say so", || {
        [LEFT, RIGHT].iter().all(|node| pair.page(*node).contains("SPLIT BRAIN"))
    });
    assert_eq!(pair.status(LEFT)["pair"]["split_brain"], true);
    let told = pair.routerctl(LEFT, &["journal"]).unwrap();
    assert!(told.contains("active router of the pair"), "{told}");
    pair.isolate(false);
    until("one of the two is active", || pair.is_active(LEFT) != pair.is_active(RIGHT));
    until("nobody says otherwise", || ![LEFT, RIGHT].iter().any(|node| pair.page(*node).contains("SPLIT BRAIN")));

    one_config(&mut pair);
}

/// What is applied on one is applied on the other, unless each has a change that the other has not.
fn one_config(pair: &mut Twins) {
    let same = |pair: &Twins| [LEFT, RIGHT].iter().all(|node| pair.status(*node)["pair"]["same_config"] == true);
    until("they have the same config", || same(pair));
    let write = |pair: &Twins, name: &str, service: &str| {
        let file = pair.folder(LEFT).join(name);
        fs::write(&file, pair.lab.site().text.replace("tcp/631", service)).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let in_force = |pair: &Twins, node| pair.status(node)["digest"].clone();
    let before = in_force(pair, RIGHT);

    // Tried, and taken back: the other one never hears of it.
    let file = write(pair, "tried.toml", "tcp/632");
    pair.routerctl(LEFT, &["apply", "--confirm", "60s", &file]).unwrap();
    until("the difference is told", || pair.page(RIGHT).contains("has another config in force"));
    thread::sleep(Duration::from_secs(2));
    assert_eq!(in_force(pair, RIGHT), before);
    pair.routerctl(LEFT, &["confirm"]).unwrap();
    let begun = Instant::now();
    until("it is taken over", || same(pair) && in_force(pair, RIGHT) != before);
    println!("confirmed on one, in force on both after {:?}", begun.elapsed());
    let history = pair.routerctl(RIGHT, &["history"]).unwrap();
    assert!(history.contains("pair left: applied") && history.contains("as on left"), "{history}");
    // And the other way round.
    pair.routerctl(RIGHT, &["rollback", "1"]).unwrap();
    until("it is taken back on both", || same(pair) && in_force(pair, LEFT) == before);

    // One that was off takes over what it has missed.
    let standby = if pair.is_active(LEFT) { RIGHT } else { LEFT };
    let other = 1 - standby;
    pair.end(standby, Signal::SIGTERM);
    let file = write(pair, "missed.toml", "tcp/633");
    pair.routerctl(other, &["apply", &file]).unwrap();
    pair.start(standby);
    until("it has what it has missed", || same(pair) && in_force(pair, standby) != before);

    // A change on each while they do not hear each other.
    pair.deafen(true);
    for (node, name, service) in [(LEFT, "left.toml", "tcp/634"), (RIGHT, "right.toml", "tcp/635")] {
        let file = write(pair, name, service);
        pair.routerctl(node, &["apply", &file]).unwrap();
    }
    pair.deafen(false);
    until("it is told that nobody knows which", || {
        [LEFT, RIGHT].iter().all(|node| pair.page(*node).contains("apply on both the one that shall be"))
    });
    let file = write(pair, "both.toml", "tcp/636");
    for node in [LEFT, RIGHT] {
        pair.routerctl(node, &["apply", &file]).unwrap();
    }
    until("they have the same config again", || same(pair));
}

fn whose_the_addresses_are(pair: &Twins) {
    let has = |node: usize, address: &str| {
        run(pair.place(node).command("ip").args(["-brief", "addr"])).unwrap().contains(address)
    };
    for own in ["10.0.10.1/", "10.0.20.1/", "10.0.99.1/", "100.64.1.2/", "100.64.2.2/", "fd10:10:10::1/"] {
        assert!(has(LEFT, own) && !has(RIGHT, own), "{own}");
    }
    for (node, own) in [(LEFT, "10.0.10.2/"), (RIGHT, "10.0.10.3/"), (LEFT, "10.0.99.2/"), (RIGHT, "10.0.99.3/")] {
        assert!(has(node, own) && !has(1 - node, own), "{own}");
    }
}

/// The matrix holds, and a host that is no router of the pair is not listened to.
fn nothing_else_is_open(pair: &Twins) {
    let patience = Duration::from_secs(2);
    let guests = pair.lab.host(20);
    let denied = probe(&guests, None, "10.0.10.200".parse().unwrap(), Probe::Tcp(22), patience).unwrap();
    assert!(!denied.is_open(), "{denied:?}");
    let allowed = || {
        let host = pair.lab.host(10);
        probe(&host, None, IpAddr::V4(TARGETS4[0]), Probe::Tcp(80), patience).is_ok_and(|answer| answer.is_open())
    };
    until("the office reaches the Internet", allowed);
    for port in [3780, 3781] {
        for to in ["10.0.99.2", "10.0.99.3", "10.0.99.1"] {
            let denied = probe(&pair.lab.host(99), None, to.parse().unwrap(), Probe::Udp(port), patience / 4).unwrap();
            assert!(!denied.is_open(), "{denied:?}");
        }
    }
}

fn flows(pair: &Twins) -> Vec<TcpStream> {
    let to = SocketAddr::new(IpAddr::V4(TARGETS4[0]), 4321);
    let host = pair.lab.host(10);
    (0..FLOWS).map(|_| open(&host, to, PATIENCE).unwrap().0).collect()
}

fn survivors(flows: &mut [TcpStream]) -> usize {
    thread::scope(|scope| {
        let alive: Vec<_> = flows.iter_mut().map(|flow| scope.spawn(|| echoes(flow, PATIENCE / 3))).collect();
        alive.into_iter().map(|flow| usize::from(flow.join().unwrap())).sum()
    })
}

fn tell(what: &str, report: &FlowReport) {
    println!("{what}: {} of {} datagrams lost, silence {:?}", report.lost.len(), report.sent, report.silence);
}

/// A site with two routers, which share its lines and its hosts.
struct Twins {
    lab: Temporary,
    second: Netns,
    routers: [Option<Child>; 2],
}

impl Twins {
    fn up() -> Result<Option<Self>> {
        if let Err(reason) = tests::can_run().and_then(|()| binary("routerd").map(drop)) {
            println!("SKIP: {reason:#}");
            return Ok(None);
        }
        fs::write(SECRET, "0123456789abcdef0123456789abcdef\n")?;
        fs::set_permissions(SECRET, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let lab = Temporary::up(&site(), 2, false)?;
        let second = Netns::create(&format!("{}-peer", lab.name()))?;
        second.sysctls([("net/ipv6/conf/default/accept_dad", "0"), ("net/ipv4/ip_forward", "1")])?;
        second.ip("link set lo up\n")?;
        for wan in &lab.site().wans {
            let addresses = [
                format!("{}/{}", wan.gateway4, wan.router4.prefix_len()),
                format!("{}/{} nodad", wan.gateway6, wan.router6.prefix_len()),
            ];
            shared(&lab.isp(wan.number), "cust", &format!("wan{}", wan.number), &second, &addresses, "")?;
        }
        for vlan in &lab.site().vlans {
            let nodad = |address: &ipnet::IpNet| if address.addr().is_ipv6() { " nodad" } else { "" };
            let addresses: Vec<_> =
                vlan.addresses.iter().map(|address| format!("{address}{}", nodad(address))).collect();
            let routes: Vec<_> =
                vlan.gateways.iter().map(|gateway| format!("route add default via {}\n", gateway.addr())).collect();
            shared(&lab.host(vlan.id), "eth0", &vlan.port(), &second, &addresses, &routes.concat())?;
        }
        Ok(Some(Self { lab, second, routers: [None, None] }))
    }

    fn place(&self, node: usize) -> Netns {
        if node == LEFT { self.lab.router() } else { Netns::named(self.second.name()) }
    }

    fn folder(&self, node: usize) -> PathBuf {
        self.lab.site_file().parent().unwrap().join(NAMES[node])
    }

    fn start(&mut self, node: usize) {
        let folder = self.folder(node);
        fs::create_dir_all(&folder).unwrap();
        let log = File::options().append(true).create(true).open(folder.join("log")).unwrap();
        let mut command = Root::find().unwrap().program(&self.place(node), &binary("routerd").unwrap());
        command.env_remove("QUADWAY_NFT").arg("--config").arg(self.lab.site_file());
        command.arg("--state").arg(folder.join("state")).arg("--run").arg(folder.join("run"));
        command.arg("--bpf-dir").arg(self.lab.bpf_directory().join(NAMES[node])).args(["--node", NAMES[node]]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.routers[node] = Some(command.spawn().unwrap());
        until("routerd answers", || self.routerctl(node, &["status"]).is_ok());
    }

    fn end(&mut self, node: usize, signal: Signal) {
        let Some(mut child) = self.routers[node].take() else { return };
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        child.wait().unwrap();
    }

    fn restart(&mut self, node: usize) {
        self.end(node, Signal::SIGTERM);
        self.start(node);
    }

    fn routerctl(&self, node: usize, words: &[&str]) -> Result<String> {
        run(Command::new(binary("routerctl")?).arg("--socket").arg(self.folder(node).join("run/api.sock")).args(words))
    }

    fn status(&self, node: usize) -> Value {
        let told = self.routerctl(node, &["status", "--json"]);
        told.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    fn page(&self, node: usize) -> String {
        let page = self.routerctl(node, &["status"]).unwrap_or_default();
        page.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn is_active(&self, node: usize) -> bool {
        self.status(node)["pair"]["active"] == true
    }

    /// And nothing is wrong between them.
    fn hear_each_other(&self) -> bool {
        [LEFT, RIGHT].iter().all(|node| {
            let pair = &self.status(*node)["pair"];
            pair["peer_active"].is_boolean() && pair["same_config"] == true && pair["trouble"].is_null()
        })
    }

    fn component(&self, node: usize, name: &str) -> Value {
        let status = self.status(node);
        let all = status["components"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|line| line["name"] == name).unwrap_or_default()
    }

    fn runs(&self, node: usize, name: &str) -> bool {
        self.component(node, name)["state"] == "running"
    }

    fn restarts(&self, node: usize, name: &str) -> u64 {
        self.component(node, name)["restarts"].as_u64().unwrap_or_default()
    }

    fn pids(&self, node: usize) -> Vec<i32> {
        let pids = run(Command::new("ip").args(["netns", "pids", self.place(node).name()])).unwrap();
        pids.lines().filter_map(|pid| pid.trim().parse().ok()).collect()
    }

    /// How many processes of this program there were.
    fn kill(&self, node: usize, program: &str) -> usize {
        let named =
            |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == program);
        let pids: Vec<_> = self.pids(node).into_iter().filter(named).collect();
        for pid in &pids {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap_or_default();
        }
        pids.len()
    }

    /// Nobody gets to say anything before the cables are dead.
    fn power_off(&mut self, node: usize) {
        let pids = self.pids(node);
        let all = |signal| {
            for pid in &pids {
                kill(Pid::from_raw(*pid), signal).unwrap_or_default();
            }
        };
        all(Signal::SIGSTOP);
        self.cables(node, "down");
        all(Signal::SIGKILL);
        if let Some(mut child) = self.routers[node].take() {
            child.wait().unwrap();
        }
    }

    /// As after a boot: nothing is there of what was configured.
    fn power_on(&mut self, node: usize) {
        let place = self.place(node);
        let root = Root::find().unwrap();
        run(root.command(&place, "nft").args(["flush", "ruleset"])).unwrap();
        run(root.command(&place, "conntrack").arg("-F")).unwrap();
        let bridges: Vec<_> =
            self.lab.site().vlans.iter().map(|vlan| format!("link delete vlan{}\n", vlan.id)).collect();
        place.ip_lenient(&bridges.concat());
        for wan in &self.lab.site().wans {
            place.ip(&format!("addr flush dev wan{}\n", wan.number)).unwrap();
        }
        fs::remove_dir_all(self.folder(node).join("run")).unwrap();
        self.cables(node, "up");
    }

    fn cables(&self, node: usize, state: &str) {
        let end = ["a", "b"][node];
        for wan in &self.lab.site().wans {
            self.lab.isp(wan.number).ip(&format!("link set cust{end} {state}\n")).unwrap();
        }
        for vlan in &self.lab.site().vlans {
            self.lab.host(vlan.id).ip(&format!("link set eth0{end} {state}\n")).unwrap();
        }
    }

    /// The routers do not hear each other in the VLANs with hosts; the hosts hear both.
    fn isolate(&self, on: bool) {
        let word = if on { "on" } else { "off" };
        for vlan in self.lab.site().vlans.iter().filter(|vlan| vlan.id != 99) {
            for end in ["a", "b"] {
                let line = format!("link set eth0{end} type bridge_slave isolated {word}\n");
                self.lab.host(vlan.id).ip(&line).unwrap();
            }
        }
    }

    /// Nothing passes in the VLAN between the two.
    fn deafen(&self, on: bool) {
        let word = if on { "on" } else { "off" };
        for end in ["a", "b"] {
            let line = format!("link set eth0{end} type bridge_slave isolated {word}\n");
            self.lab.host(99).ip(&line).unwrap();
        }
    }

    /// TCP flows of the test that this kernel knows.
    fn known_flows(&self, node: usize) -> usize {
        let list = Root::find().unwrap().command(&self.place(node), "conntrack").args(["-L", "-p", "tcp"]).output();
        let text = String::from_utf8_lossy(&list.unwrap().stdout).into_owned();
        text.lines().filter(|line| line.contains("dport=4321") && line.contains("ESTABLISHED")).count()
    }

    /// What becomes of a thousand datagrams a second of one flow meanwhile.
    fn under_load(&mut self, work: impl FnOnce(&mut Self)) -> FlowReport {
        let to = SocketAddr::new(IpAddr::V4(TARGETS4[1]), 4321);
        let flow = UdpFlow::start(&self.lab.host(10), None, to, 500).unwrap();
        thread::sleep(Duration::from_secs(1));
        work(self);
        thread::sleep(Duration::from_secs(4));
        flow.stop()
    }
}

impl Drop for Twins {
    fn drop(&mut self) {
        for node in [LEFT, RIGHT] {
            if thread::panicking() {
                println!("{} said:\n{}", NAMES[node], tail(&self.folder(node).join("log")));
                println!("{}", self.page(node));
            }
            for pid in self.pids(node) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default();
            }
            if let Some(mut child) = self.routers[node].take() {
                child.wait().unwrap();
            }
        }
    }
}

/// Makes the end of a cable a switch with a cable for each router.
fn shared(place: &Netns, end: &str, port: &str, second: &Netns, addresses: &[String], routes: &str) -> Result<()> {
    // What is bridged is no business of the place's own rules. Without br_netfilter it never is.
    for family in ["ip", "ip6"] {
        place.sysctls([(&*format!("net/bridge/bridge-nf-call-{family}tables"), "0")]).ok();
    }
    let addresses: Vec<_> = addresses.iter().map(|address| format!("addr add {address} dev {end}\n")).collect();
    let addresses = addresses.concat();
    place
        .ip(&format!(
            "link set {end} down\n\
             addr flush dev {end}\n\
             link set {end} name {end}a\n\
             link add {end} type bridge\n\
             link add {end}b index 2001 type veth peer name {port} netns {second}\n\
             link set {end}a master {end}\n\
             link set {end}b master {end}\n\
             link set {end} up\n\
             link set {end}a up\n\
             link set {end}b up\n\
             {addresses}{routes}",
            second = second.name()
        ))
        .with_context(|| format!("{end} is not shared"))
}

fn site() -> String {
    let text = include_str!("../../config/examples/minimal.toml");
    let pair = format!(
        r#"
[vlan.sync]
id        = 99
addresses = ["10.0.99.1/24"]
access    = ["eth4"]

[pair]
sync   = "sync"
secret = "{SECRET}"

[pair.node.left]
addresses = ["10.0.10.2", "10.0.20.2", "10.0.99.2"]

[pair.node.right]
addresses = ["10.0.10.3", "10.0.20.3", "10.0.99.3"]
"#
    );
    text.replace("[router]\n", "[router]\nfast_path = false\n") + &pair
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

const NAMES: [&str; 2] = ["left", "right"];
const LEFT: usize = 0;
const RIGHT: usize = 1;
const FLOWS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(30);
/// Of a silence. The measured ones are a third of a second at most; a test machine may be busy.
const GAP: Duration = Duration::from_secs(3);
const SECRET: &str = "/tmp/quadway-test-pair.secret";
