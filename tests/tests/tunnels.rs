//! Tunnels to a second site whose strongSwan has nothing of ours: they come up, carry what the matrix allows and nothing
//! else, take another line when theirs dies, and come back when charon is killed.
//! `QUADWAY_TRIALS=20 cargo test -p tests --test tunnels -- --nocapture` tells a median of the failovers.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::branch::{Branch, HOST, PEER, has_wireguard, keys, secret};
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::netns::{Netns, run};
use tests::root::Root;
use tests::traffic::{Probe, UdpFlow, probe};
use tests::watch::{status, wait_usable};

#[test]
fn a_tunnel_comes_up_obeys_the_matrix_and_survives_its_line_and_its_daemon() {
    let Some((mut lab, branch)) = two_sites("mobike = yes") else { return };
    comes_up(&lab, &branch);
    the_matrix_holds(&lab, &branch);
    what_is_told(&lab);
    let trials: usize = std::env::var("QUADWAY_TRIALS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut gaps: Vec<_> = (0..trials).map(|_| takes_another_line_and_comes_back(&mut lab)).collect();
    gaps.sort();
    println!(
        "the line of the tunnel blackholed, {trials} trials: median {:?}, worst {:?}",
        gaps[trials / 2],
        gaps.last()
    );
    charon_comes_back(&lab);
    nothing_leaks_where_there_is_no_tunnel(&lab);
}

#[test]
fn a_peer_without_mobike_gets_another_association_first() {
    let Some((mut lab, branch)) = two_sites("mobike = no") else { return };
    comes_up(&lab, &branch);
    let gap = takes_another_line_and_comes_back(&mut lab);
    println!("the line of the tunnel blackholed, a peer without MOBIKE: {gap:?}");
}

#[test]
fn wireguard_takes_another_line_with_its_next_packet() {
    if !has_wireguard() {
        assert!(
            std::env::var_os("QUADWAY_MUST_RUN").is_none(),
            "neither the kernel nor the root has WireGuard: make root"
        );
        println!("SKIP: the kernel has no WireGuard, and the root no wireguard-go (tests/root/packages)");
        return;
    }
    let folder = folder("wireguard");
    let trial = Netns::create(&format!("keys-{}", std::process::id())).unwrap();
    let ((own, own_public), (other, other_public)) = (keys(&trial).unwrap(), keys(&trial).unwrap());
    let key = folder.join("branch.key");
    secret(&key, &own).unwrap();
    // All labs have one folder for the sockets of wireguard-go, so that names of interfaces must differ.
    let (near, far) = (format!("wga{}", std::process::id()), format!("wgb{}", std::process::id()));
    let written = format!(
        "[wireguard.branch]\ninterface = \"{near}\"\nendpoint = \"{PEER}:51820\"\nprivate_key = \"{}\"\n\
         public_key = \"{other_public}\"\nremote_networks = [\"10.9.0.0/24\"]\nwans = [\"wan1\", \"wan2\"]\n\
         keepalive = \"1s\"\n",
        key.display()
    );
    let mut lab = Temporary::up(&site(&written), 2, false).unwrap();
    let mut branch = Branch::up(&lab).unwrap();
    let settings = format!(
        "[Interface]\nPrivateKey = {other}\nListenPort = 51820\n[Peer]\nPublicKey = {own_public}\n\
         AllowedIPs = 10.0.10.0/24\n"
    );
    branch.wireguard(&far, &settings, "10.0.10.0/24").unwrap();
    lab.start_router().unwrap();
    wait_until_good(&lab, Duration::from_secs(30)).unwrap();
    until("the tunnel is up", &lab, || tunnel(&lab)["state"] == "up");
    the_matrix_holds(&lab, &branch);
    let gap = takes_another_line_and_comes_back(&mut lab);
    println!("the line of the tunnel blackholed, WireGuard: {gap:?}");
    let logs = fs::read_to_string(lab.log("routerd")).unwrap();
    assert!(!logs.contains(&own), "no key is logged");
}

fn comes_up(lab: &Lab, branch: &Branch) {
    until("the tunnel is up", lab, || tunnel(lab)["state"] == "up");
    until("it goes by its first line", lab, || tunnel(lab)["wan"] == "wan1");
    assert!(branch.associations().unwrap().contains("AES_GCM_16"), "the profile that was asked for");
}

fn the_matrix_holds(lab: &Lab, branch: &Branch) {
    let open = probe(&lab.host(10), None, HOST.into(), Probe::Tcp(80), PATIENCE).unwrap();
    assert!(open.is_open(), "{open:?}");
    denied_is_denied(lab, branch);
}

/// What no cell allows: another port, another VLAN, anything the other way, the router itself.
fn denied_is_denied(lab: &Lab, branch: &Branch) {
    let short = Duration::from_millis(300);
    let office = lab.site().vlans[0].address(false).unwrap();
    let own: IpAddr = "10.0.10.1".parse().unwrap();
    for (from, to, what) in [
        (&lab.host(10), HOST.into(), Probe::Tcp(22)),
        (&lab.host(20), HOST.into(), Probe::Tcp(80)),
        (&branch.place, office, Probe::Tcp(80)),
        (&branch.place, own, Probe::Tcp(22)),
    ] {
        let source = (from.name() == branch.place.name()).then_some(IpAddr::from(HOST));
        let answer = probe(from, source, to, what, short).unwrap();
        assert!(!answer.is_open(), "{} to {to} {what:?}: {answer:?}", from.name());
    }
}

fn what_is_told(lab: &Lab) {
    until("its packets are counted", lab, || tunnel(lab)["received_packets"].as_u64() > Some(0));
    let told = tunnel(lab);
    assert_eq!((&told["kind"], &told["peer"]), (&"ipsec".into(), &PEER.to_string().into()), "{told}");
    assert!(told["rekey_seconds"].as_f64() > Some(60.0), "{told}");
    let page = run(lab.routerctl().unwrap().arg("status")).unwrap();
    assert!(page.contains("tunnel branch (ipsec): up by wan1, peer 203.0.113.50"), "{page}");
    assert!(!page.contains(PSK), "no secret is told");
    let logs = fs::read_to_string(lab.log("routerd")).unwrap();
    assert!(!logs.contains(PSK), "nor logged");
    let files = run(Command::new("grep").args(["-rlF", PSK]).arg(lab.api_socket().parent().unwrap()));
    assert!(files.is_err(), "nor written: {files:?}");
}

/// A stream of 1 kHz through the tunnel while its line goes silent; how long it was interrupted. Then the line is good
/// again, and the tunnel goes back to it without a gap.
fn takes_another_line_and_comes_back(lab: &mut Lab) -> Duration {
    until("the tunnel goes by wan1", lab, || tunnel(lab)["state"] == "up" && tunnel(lab)["wan"] == "wan1");
    let flow = stream(lab);
    thread::sleep(Duration::from_millis(500));
    lab.fail(1, Fault::Blackhole).unwrap();
    thread::sleep(Duration::from_secs(6));
    let report = flow.stop();
    let (from, to) = report.hole.unwrap();
    let gap = to - from;
    println!("{gap:?} without an answer, {} of {} lost", report.lost.len(), report.sent);
    assert!(gap < Duration::from_secs(5), "{gap:?}: {report:?}");
    until("the tunnel is told to go by wan2", lab, || tunnel(lab)["wan"] == "wan2");

    let flow = stream(lab);
    lab.heal(1).unwrap();
    wait_usable(lab, "wan1", "v4", true).unwrap();
    until("the tunnel goes by wan1 again", lab, || tunnel(lab)["wan"] == "wan1");
    thread::sleep(Duration::from_millis(300));
    let report = flow.stop();
    println!("back: {} of {} lost, silence {:?}", report.lost.len(), report.sent, report.silence);
    gap
}

fn stream(lab: &Lab) -> UdpFlow {
    UdpFlow::start(&lab.host(10), None, SocketAddr::new(HOST.into(), 7), 1000).unwrap()
}

fn charon_comes_back(lab: &Lab) {
    let pid = charon(lab);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    loop {
        let answer = probe(&lab.host(10), None, HOST.into(), Probe::Tcp(80), Duration::from_millis(200)).unwrap();
        let told = tunnel(lab);
        if answer.is_open() && told["state"] == "up" && charon(lab) != pid {
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(30), "the tunnel does not come back: {told}");
        // Not back in five seconds is allowed where it is told.
        assert!(killed.elapsed() < Duration::from_secs(5) || told["state"] != "up", "{told}");
        let guest = probe(&lab.host(20), None, HOST.into(), Probe::Tcp(80), Duration::from_millis(50)).unwrap();
        assert!(!guest.is_open(), "{guest:?}");
    }
    println!("charon killed: the tunnel works again after {:?}", killed.elapsed());
}

/// Without charon there is no interface: what is for the other site goes nowhere, and by no line.
fn nothing_leaks_where_there_is_no_tunnel(lab: &Lab) {
    let text = fs::read_to_string(lab.site_file()).unwrap();
    let gone = text.replace("psk             = \"", "psk             = \"/nowhere");
    let file = lab.site_file().with_file_name("gone.toml");
    fs::write(&file, gone).unwrap();
    run(lab.routerctl().unwrap().arg("apply").arg(&file)).unwrap();
    until("what is wrong is told", lab, || tunnel(lab)["why"].as_str().is_some_and(|why| why.contains("/nowhere")));
    // Its interface goes with charon.
    kill(Pid::from_raw(charon(lab)), Signal::SIGSTOP).unwrap();
    let route = || {
        let mut list = Root::find().unwrap().command(&lab.router(), "ip");
        run(list.args(["route", "show", "table", "1121"]))
    };
    assert!(route().unwrap().contains("10.9.0.0/24"));
    kill(Pid::from_raw(charon(lab)), Signal::SIGKILL).unwrap();
    until("what is behind the tunnel is unreachable", lab, || route().unwrap().contains("unreachable 10.9.0.0/24"));
    run(lab.routerctl().unwrap().arg("apply").arg(lab.site_file())).unwrap();
    until("the tunnel is up again", lab, || tunnel(lab)["state"] == "up");
}

/// A router with a tunnel, and the site at its other end.
fn two_sites(peer: &str) -> Option<(Temporary, Branch)> {
    let program = match Root::find() {
        Ok(Root::Directory(root)) => root.join("usr/sbin/charon-systemd"),
        Ok(Root::Host) | Err(_) => PathBuf::from("/usr/sbin/charon-systemd"),
    };
    if !program.exists() {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "the root lacks strongSwan: make root");
        println!("SKIP: the root lacks strongSwan (tests/root/packages)");
        return None;
    }
    let psk = folder("ipsec").join("branch.psk");
    secret(&psk, PSK).unwrap();
    let mut lab = Temporary::up(&site(&ipsec(&psk.display().to_string())), 2, false).unwrap();
    let mut branch = Branch::up(&lab).unwrap();
    branch
        .strongswan(&format!(
            "connections {{\nhq {{\nversion = 2\n{peer}\nlocal {{\nauth = psk\nid = branch.test\n}}\n\
             remote {{\nauth = psk\nid = hq.test\n}}\nchildren {{\nhq {{\nlocal_ts = 10.9.0.0/24\n\
             remote_ts = 10.0.10.0/24\nesp_proposals = aes256gcm16-ecp256\n}}\n}}\n}}\n}}\n\
             secrets {{\nike-hq {{\nsecret = \"{PSK}\"\n}}\n}}\n"
        ))
        .unwrap();
    lab.start_router().unwrap();
    wait_until_good(&lab, Duration::from_secs(30)).unwrap();
    Some((lab, branch))
}

fn folder(what: &str) -> PathBuf {
    let folder = PathBuf::from(format!("/tmp/quadway-{what}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn ipsec(psk: &str) -> String {
    format!(
        "[ipsec.branch]
interface       = \"ipsec0\"
remote          = \"{PEER}\"
local_id        = \"hq.test\"
remote_id       = \"branch.test\"
psk             = \"{psk}\"
local_networks  = [\"10.0.10.0/24\"]
remote_networks = [\"10.9.0.0/24\"]
wans            = [\"wan1\", \"wan2\"]
"
    )
}

fn site(tunnel: &str) -> String {
    let minimal = include_str!("../../config/examples/minimal.toml");
    format!(
        "{minimal}
{tunnel}
[[cell]]
from     = \"office\"
to       = \"branch\"
services = [\"tcp/80\", \"udp/7\"]

[[assert]]
that = \"branch -> office deny\"
"
    )
}

fn tunnel(lab: &Lab) -> Value {
    status(lab).unwrap()["tunnels"][0].clone()
}

/// The number of its process.
fn charon(lab: &Lab) -> i32 {
    let file = lab.api_socket().with_file_name("components").join("charon");
    let text = fs::read_to_string(&file).unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or_default()
}

fn until(what: &str, lab: &Lab, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !so() {
        if Instant::now() > deadline {
            let told: Result<Value> = status(lab);
            let told = told.unwrap();
            panic!("{what}: it does not come: {} {}", told["tunnels"], told["components"]);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

const PATIENCE: Duration = Duration::from_secs(5);
const PSK: &str = "correct-horse-battery-staple-9";
