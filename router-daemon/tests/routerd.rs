//! The real `routerd` in a network namespace, beside another that plays both ISPs. Names carry our pid; everything
//! made here goes with the test.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "the helpers of a test fail it, or say why they skip")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn routerd_lives_through_what_a_router_meets() {
    let Some(nft) = nft() else { return };
    let site = Site::build(nft);
    let mut daemon = site.start();
    site.within("the ruleset stands", 15, || site.nft("list ruleset").contains("gen_"));
    site.within("WAN tables are filled", 5, || site.ip("route show table 1002").contains("default via 198.51.100.1"));
    site.within("both lines are up", 10, || site.log().matches("to=\"up\"").count() >= 2);

    // The second instance.
    let second = site.command().status().unwrap();
    assert_eq!(second.code(), Some(3), "a second instance refuses");

    // Drift.
    site.ip("rule del priority 10001");
    site.within("a deleted rule is back", 1, || site.ip("rule").contains("10001:"));
    site.nft("delete table inet quadway");
    site.within("a deleted table is back", 1, || site.nft("list ruleset").contains("gen_"));

    // The port of `guests` is not there yet.
    assert!(!site.ip("link").contains("eth3"));
    site.connect(3);
    site.within("a port that appears is taken up", 2, || site.ip("-o link show eth3").contains("master vlan20"));

    // Killed and started again: nothing is loaded, nothing is lost.
    let before = site.nft("-a list ruleset");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let lines = site.log().lines().count();
    let mut daemon = site.start();
    site.within("it runs again", 10, || site.log().lines().skip(lines).any(|line| line.contains("configured")));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(handles(&site.nft("-a list ruleset")), handles(&before), "a restart loads no ruleset");

    // A file that is no good changes nothing.
    fs::write(site.folder.join("site.toml"), "[site\n").unwrap();
    signal("HUP", &daemon);
    site.within("a broken file is refused", 3, || site.log().contains("not reloaded"));
    assert_eq!(handles(&site.nft("-a list ruleset")), handles(&before));

    // Stopped: everything stays.
    signal("TERM", &daemon);
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    assert_eq!(handles(&site.nft("-a list ruleset")), handles(&before));
    assert!(site.ip("rule").contains("10001:"));
}

#[test]
fn a_routing_rule_that_takes_our_packets_stops_a_start_and_an_apply() {
    let Some(nft) = nft() else { return };
    let site = Site::build(nft);
    let add = "rule add fwmark 0x1000000/0xff000000 lookup 77 priority 300";
    let remedy = "ip -4 rule del priority 300";
    site.ip(add);
    assert_eq!(site.command().status().unwrap().code(), Some(4));
    assert!(site.log().contains(remedy), "{}", site.log());

    site.ip("rule del priority 300");
    let mut daemon = site.start();
    site.within("it runs", 10, || site.log().contains("applied"));
    site.ip(add);
    let path = |name: &str| site.folder.join(name);
    let mut apply = Command::new(env!("CARGO_BIN_EXE_routerctl"));
    let apply = apply.arg("--socket").arg(path("run/api.sock")).arg("apply").arg(path("site.toml")).output().unwrap();
    let said = String::from_utf8_lossy(&apply.stderr);
    assert!(apply.status.code() == Some(4) && said.contains(remedy), "{said}");

    site.ip("rule del priority 300");
    site.nft("add table ip other");
    site.nft("add chain ip other rude");
    site.nft("add rule ip other rude meta mark set 0x42");
    let ctl = |arguments: &str| {
        let routerctl = env!("CARGO_BIN_EXE_routerctl");
        run(&format!("{routerctl} --socket {} {arguments}", path("run/api.sock").display()))
    };
    ctl(&format!("apply {}", path("site.toml").display()));
    let status = ctl("status");
    assert!(status.contains("nft table ip other, chain rude"), "{status}");
    signal("TERM", &daemon);
    daemon.wait().unwrap();
}

#[test]
fn without_a_site_file_everything_is_denied_and_routerd_stays_up() {
    let Some(nft) = nft() else { return };
    let site = Site::build(nft);
    fs::remove_file(site.folder.join("site.toml")).unwrap();
    let mut daemon = site.start();
    site.within("it says why", 10, || site.log().contains("everything is denied"));
    assert!(site.nft("list ruleset").contains("policy drop"));
    assert_eq!(daemon.try_wait().unwrap(), None);
    signal("TERM", &daemon);
    daemon.wait().unwrap();
}

/// Names and handles of chains and rules: they change when anything is loaded anew.
fn handles(listing: &str) -> Vec<String> {
    let lines = listing.lines().filter(|line| line.contains("chain ") && line.contains("# handle"));
    lines.map(|line| line.trim().to_owned()).collect()
}

fn signal(name: &str, daemon: &Child) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(daemon.id().to_string()).status().unwrap();
    assert!(sent.success());
}

/// Two namespaces and a folder.
struct Site {
    router: String,
    world: String,
    folder: PathBuf,
    nft: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Site {
    /// Ports 0 (wan1), 1 (wan2) and 2 (office) of the minimal site are there, port 3 (guests) is not.
    fn build(nft: PathBuf) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().to_owned();
        let name =
            format!("qwd{}{}", std::process::id(), folder.file_name().unwrap().to_string_lossy().replace('.', ""));
        let site = Self { router: format!("{name}-r"), world: format!("{name}-w"), folder, nft, _temporary: temporary };
        run(&format!("ip netns add {}", site.router));
        run(&format!("ip netns add {}", site.world));
        site.ip("link set lo up");
        (0..3).for_each(|port| site.connect(port));
        let world = &site.world;
        run(&format!("ip -n {world} link set lo up"));
        run(&format!("ip -n {world} addr add 203.0.113.1/24 dev p0"));
        run(&format!("ip -n {world} addr add 198.51.100.1/24 dev p1"));
        run(&format!("ip -n {world} addr add 192.0.2.1/32 dev lo"));
        run(&format!("ip -n {world} addr add 192.0.2.2/32 dev lo"));
        fs::write(site.folder.join("site.toml"), include_str!("../../config/examples/minimal.toml")).unwrap();
        site
    }

    fn connect(&self, port: u8) {
        self.ip(&format!("link add eth{port} type veth peer name p{port} netns {}", self.world));
        run(&format!("ip -n {} link set p{port} up", self.world));
    }

    fn command(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.router, env!("CARGO_BIN_EXE_routerd")]);
        let path = |name: &str| self.folder.join(name);
        command.arg("--config").arg(path("site.toml")).arg("--state").arg(path("state"));
        command
            .arg("--run")
            .arg(path("run"))
            .arg("--bpf-dir")
            .arg(path("bpf"))
            .env("QUADWAY_NFT", &self.nft)
            .env("RUST_LOG", "info");
        let log = fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        command.stdin(Stdio::null()).stderr(log);
        command
    }

    /// `ip netns exec` becomes the program it runs: the child is the daemon itself.
    fn start(&self) -> Child {
        self.command().spawn().unwrap()
    }

    fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.router))
    }

    fn nft(&self, arguments: &str) -> String {
        run(&format!("ip netns exec {} {} {arguments}", self.router, self.nft.display()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn within(&self, what: &str, seconds: u64, done: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(seconds);
        while !done() {
            assert!(Instant::now() < until, "not within {seconds} s: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // What a failed test left running is in our namespace, and nothing else is.
        for process in run(&format!("ip netns pids {}", self.router)).lines() {
            run(&format!("kill -KILL {process}"));
        }
        run(&format!("ip netns del {}", self.router));
        run(&format!("ip netns del {}", self.world));
    }
}

/// What it prints; a failure shows in what follows.
fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn nft() -> Option<PathBuf> {
    if !run("id -u").starts_with("0\n") {
        println!("SKIP: routerd needs root");
        return None;
    }
    let nft = std::env::var_os("QUADWAY_NFT").map_or_else(|| PathBuf::from("nft"), PathBuf::from);
    let version =
        Command::new(&nft).arg("--version").output().ok().map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let numbers = version.as_deref().and_then(|text| text.split('v').nth(1)).unwrap_or_default();
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let found: [u32; 3] = std::array::from_fn(|_| numbers.next().unwrap_or(0));
    if found < [1, 1, 3] {
        println!("SKIP: nft of at least 1.1.3 is needed, {} is {version:?}", Path::new(&nft).display());
        return None;
    }
    Some(nft)
}
