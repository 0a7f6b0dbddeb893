//! The real routerd with its programs at the ports of the lab: what they drop is told, they outlive the daemon, and
//! without them the router is the same.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ebpf::abi::Verdict;
use ebpf::{Maps, Programs};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::lab::{Lab, Temporary};
use tests::netns::run;
use tests::traffic::open;

/// `office` may print in `guests`; `cameras` may nothing.
const SITE: &str = concat!(
    include_str!("../../config/examples/minimal.toml"),
    "\n[vlan.cameras]\nid = 30\naddresses = [\"10.0.30.1/24\"]\naccess = [\"eth4\"]\ninternet = \"none\"\n"
);
const PRINTER: &str = "10.0.20.5:631";
const WEB: &str = "198.51.100.1:443";
const PATIENCE: Duration = Duration::from_millis(400);

#[test]
fn what_is_denied_at_the_ports_is_counted_told_and_denied_without_a_daemon() {
    let Some(mut lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    let pins = lab.bpf_directory();
    assert_eq!(status(&lab)["fast_path"]["ports"]["v30"]["mode"], "tcx", "{}", status(&lab));
    assert!(can_open(&lab, 10, PRINTER) && can_open(&lab, 10, WEB));
    for to in [PRINTER, WEB] {
        assert!(!can_open(&lab, 30, to));
    }
    until(&lab, "drops at the ports are among the cells' denials", |status| {
        let cell = |to: &str| {
            let cells = status["cells"].as_array().unwrap();
            cells.iter().any(|cell| cell["from"] == "cameras" && cell["to"] == to && cell["denied_packets"] != 0)
        };
        cell("guests") && cell("internet") && status["fast_path"]["verdicts"]["denied_pair"]["packets"] != 0
    });
    let told = run(lab.routerctl().unwrap().arg("denied")).unwrap();
    assert!(told.contains("10.0.20.5") || told.contains("printer"), "{told}");
    assert!(told.contains("cameras -> Internet: default deny"), "{told}");

    let (programs, before) = (Programs::pinned(&pins).unwrap(), dropped(&lab));
    lab.stop_router(Signal::SIGKILL).unwrap();
    assert!(!can_open(&lab, 30, PRINTER));
    let without_daemon = dropped(&lab);
    assert!(without_daemon > before, "the programs outlive the daemon");
    lab.start_router().unwrap();
    until(&lab, "the fast path is adopted", |status| status["fast_path"]["on"] == true);
    assert_eq!(Programs::pinned(&pins).unwrap(), programs);
    assert!(dropped(&lab) >= without_daemon, "and so do the maps");
    assert!(can_open(&lab, 10, PRINTER) && !can_open(&lab, 30, PRINTER));
}

#[test]
fn without_the_fast_path_the_router_is_the_same_and_says_why() {
    let Some(mut lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    lab.stop_router(Signal::SIGTERM).unwrap();
    let broken = lab.site_file().with_file_name("broken.o");
    std::fs::write(&broken, b"no object").unwrap();
    lab.start_router_with("QUADWAY_FAST_PATH_OBJECT", broken.to_str().unwrap()).unwrap();
    until(&lab, "it says why", |status| {
        status["fast_path"]["reason"].as_str().is_some_and(|reason| reason.contains("no eBPF object"))
    });
    let page = run(lab.routerctl().unwrap().arg("status")).unwrap();
    assert!(page.contains("fast path: off: this is no eBPF object"), "{page}");
    assert_eq!(status(&lab)["applies"]["failing"], Value::Null);
    assert!(Maps::open(&lab.bpf_directory()).is_err(), "nothing of it is left at the ports");
    assert!(can_open(&lab, 10, PRINTER) && can_open(&lab, 10, WEB) && !can_open(&lab, 30, PRINTER));
}

fn can_open(lab: &Lab, vlan: u16, to: &str) -> bool {
    open(&lab.host(vlan), to.parse::<SocketAddr>().unwrap(), PATIENCE).is_ok()
}

fn dropped(lab: &Lab) -> u64 {
    Maps::open(&lab.bpf_directory()).unwrap().verdicts().unwrap()[&Verdict::DeniedPair].packets
}

fn status(lab: &Lab) -> Value {
    serde_json::from_str(&run(lab.routerctl().unwrap().args(["status", "--json"])).unwrap()).unwrap()
}

fn until(lab: &Lab, what: &str, done: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = status(lab);
        if done(&status) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
