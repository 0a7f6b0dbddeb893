//! Tunnels to a second site whose strongSwan has nothing of ours: they come up, carry what the matrix allows and nothing
//! else, take another line when theirs dies, and come back when charon is killed.
//! `QUADWAY_TRIALS=20 cargo test -p tests --test tunnels -- --nocapture` tells a median of the failovers. In the guest
//! the kernel does ESP and `WireGuard`; elsewhere strongSwan and wireguard-go may have to.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::BTreeSet;
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
use tests::branch::{Branch, HOST, PEER, has_esp, has_wireguard, keys, sealed, secret};
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary, binary};
use tests::link::Fault;
use tests::netns::{Netns, run};
use tests::patience;
use tests::root::Root;
use tests::traffic::{Probe, UdpFlow, probe};
use tests::watch::{astray, status, strict, wait_usable};

#[test]
fn a_tunnel_comes_up_obeys_the_matrix_and_survives_its_line_and_its_daemon() {
    let Some((mut lab, branch)) = two_sites("mobike = yes", &GCM) else { return };
    comes_up(&lab, &branch, &GCM);
    the_matrix_holds(&lab, &branch);
    what_is_told(&lab);
    the_kernel_sealed(&lab, &GCM);
    fails_over(&mut lab, "IPsec, a peer with MOBIKE");
    charon_comes_back(&lab);
    nothing_leaks_where_there_is_no_tunnel(&lab);
    what_is_left_is_flushed(&mut lab, "xfrm", "ipsec0");
}

#[test]
fn a_peer_without_mobike_gets_another_association_first_and_the_profile_of_the_card_carries_it() {
    let Some((mut lab, branch)) = two_sites("mobike = no", &QAT) else { return };
    comes_up(&lab, &branch, &QAT);
    the_matrix_holds(&lab, &branch);
    the_kernel_sealed(&lab, &QAT);
    fails_over(&mut lab, "IPsec, a peer without MOBIKE");
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
    wait_until_good(&lab, patience(Duration::from_secs(30))).unwrap();
    until("the tunnel is up", &lab, || tunnel(&lab)["state"] == "up");
    the_matrix_holds(&lab, &branch);
    fails_over(&mut lab, "WireGuard");
    let logs = fs::read_to_string(lab.log("routerd")).unwrap();
    assert!(!logs.contains(&own), "no key is logged");
    what_is_left_is_flushed(&mut lab, "wireguard", &near);
}

/// A cipher profile: in our words, in the peer's, as both tell it, and as the kernel has it.
struct Profile {
    word: &'static str,
    proposal: &'static str,
    told: &'static str,
    algorithms: &'static [&'static str],
}

const GCM: Profile =
    Profile { word: "aes-gcm", proposal: "aes256gcm16-ecp256", told: "AES_GCM_16", algorithms: &["rfc4106(gcm(aes))"] };
const QAT: Profile = Profile {
    word: "qat",
    proposal: "aes256-sha256-ecp256",
    told: "AES_CBC",
    algorithms: &["hmac(sha256)", "cbc(aes)"],
};

fn comes_up(lab: &Lab, branch: &Branch, profile: &Profile) {
    until("the tunnel is up", lab, || tunnel(lab)["state"] == "up");
    until("it goes by its first line", lab, || tunnel(lab)["wan"] == "wan1");
    assert!(branch.associations().unwrap().contains(profile.told), "the profile that was asked for");
    until("its cipher is told", lab, || {
        tunnel(lab)["cipher"].as_str().is_some_and(|cipher| cipher.starts_with(profile.told))
    });
}

/// Where the kernel does ESP: what it has by then sealed and opened, and with what.
fn the_kernel_sealed(lab: &Lab, profile: &Profile) {
    if !has_esp() {
        println!("what sealed the packets is strongSwan's word alone: the kernel has no ESP; `make guest` has");
        return;
    }
    let sealed = sealed(&lab.router()).unwrap();
    println!("{}: {sealed:?}", profile.word);
    let carried = sealed.iter().filter(|one| one.bytes > 0).collect::<Vec<_>>();
    assert!(carried.len() >= 2, "one for each way: {sealed:?}");
    for one in carried {
        assert_eq!(one.algorithms, profile.algorithms);
        assert!(!one.extended, "sequence numbers as both ends agreed");
    }
}

/// How long a stream was interrupted, as often as is asked for.
fn fails_over(lab: &mut Lab, what: &str) {
    let trials: usize = std::env::var("QUADWAY_TRIALS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut gaps: Vec<_> = (0..trials).map(|_| takes_another_line_and_comes_back(lab)).collect();
    gaps.sort();
    let (median, worst) = (gaps[trials / 2], gaps[trials - 1]);
    println!("the line of the tunnel blackholed, {what}, {trials} trials: median {median:?}, worst {worst:?}");
}

fn the_matrix_holds(lab: &Lab, branch: &Branch) {
    let open = probe(&lab.host(10), None, HOST.into(), Probe::Tcp(80), patience(PATIENCE)).unwrap();
    assert!(open.is_open(), "{open:?}");
    denied_is_denied(lab, branch);
}

/// What no cell allows: another port, another VLAN, anything the other way, the router itself.
fn denied_is_denied(lab: &Lab, branch: &Branch) {
    let short = patience(Duration::from_millis(300));
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
    thread::sleep(patience(Duration::from_secs(6)).min(Duration::from_secs(10)));
    let report = flow.stop();
    let (from, to) = report.hole.unwrap();
    // An emulated machine loses packets of its own.
    let gap = if emulated() { report.silence } else { to - from };
    println!("{gap:?} without an answer, {} of {} lost", report.lost.len(), report.sent);
    assert!(gap < patience(Duration::from_secs(5)).min(Duration::from_secs(9)), "{gap:?}: {report:?}");
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
    let rate = if emulated() { 100 } else { 1000 };
    UdpFlow::start(&lab.host(10), None, SocketAddr::new(HOST.into(), 7), rate).unwrap()
}

fn emulated() -> bool {
    std::env::var_os("QUADWAY_GUEST").is_some()
}

fn charon_comes_back(lab: &Lab) {
    let pid = charon(lab);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    loop {
        let answer =
            probe(&lab.host(10), None, HOST.into(), Probe::Tcp(80), patience(Duration::from_millis(200))).unwrap();
        let told = tunnel(lab);
        if answer.is_open() && told["state"] == "up" && charon(lab) != pid {
            break;
        }
        assert!(killed.elapsed() < patience(Duration::from_secs(30)), "the tunnel does not come back: {told}");
        // Not back in five seconds is allowed where it is told.
        assert!(killed.elapsed() < patience(Duration::from_secs(5)) || told["state"] != "up", "{told}");
        let guest = probe(&lab.host(20), None, HOST.into(), Probe::Tcp(80), Duration::from_millis(50)).unwrap();
        assert!(!guest.is_open(), "{guest:?}");
    }
    println!("charon killed: the tunnel works again after {:?}", killed.elapsed());
}

/// What is for the other site goes nowhere and by no line without charon: without its interface, where that is charon's
/// own, or without an association, where the kernel does ESP and an interface of ours stays.
fn nothing_leaks_where_there_is_no_tunnel(lab: &Lab) {
    let text = fs::read_to_string(lab.site_file()).unwrap();
    let gone = text.replace("psk             = \"", "psk             = \"/nowhere");
    let file = lab.site_file().with_file_name("gone.toml");
    fs::write(&file, gone).unwrap();
    run(lab.routerctl().unwrap().arg("apply").arg(&file)).unwrap();
    until("what is wrong is told", lab, || tunnel(lab)["why"].as_str().is_some_and(|why| why.contains("/nowhere")));
    strict(lab).unwrap();
    if has_esp() {
        kill(Pid::from_raw(charon(lab)), Signal::SIGKILL).unwrap();
        run(Command::new("ip").args(["-netns", lab.router().name(), "xfrm", "state", "flush"])).unwrap();
        let answer = probe(&lab.host(10), None, HOST.into(), Probe::Tcp(80), patience(Duration::from_secs(1))).unwrap();
        assert!(!answer.is_open(), "{answer:?}");
    } else {
        // Its interface goes with charon.
        kill(Pid::from_raw(charon(lab)), Signal::SIGSTOP).unwrap();
        let route = || {
            let mut list = Root::find().unwrap().command(&lab.router(), "ip");
            run(list.args(["route", "show", "table", "1121"]))
        };
        assert!(route().unwrap().contains("10.9.0.0/24"));
        kill(Pid::from_raw(charon(lab)), Signal::SIGKILL).unwrap();
        until("what is behind the tunnel is unreachable", lab, || route().unwrap().contains("unreachable 10.9.0.0/24"));
    }
    assert_eq!(astray(lab).unwrap(), 0, "packets for the other site left by a line");
    run(lab.routerctl().unwrap().arg("apply").arg(lab.site_file())).unwrap();
    until("the tunnel is up again", lab, || tunnel(lab)["state"] == "up");
}

/// routerd that stops leaves the near ends of tunnels that the kernel has; `flush` takes them away, and nothing of others.
fn what_is_left_is_flushed(lab: &mut Lab, kind: &str, near: &str) {
    let flush = |lab: &Lab| {
        let mut flush = lab.router().command(binary("routerctl").unwrap());
        run(flush.arg("--socket").arg(lab.api_socket()).arg("flush"))
    };
    let refused = flush(lab).unwrap_err().to_string();
    assert!(refused.contains("routerd runs"), "{refused}");
    lab.stop_router(Signal::SIGTERM).unwrap();
    let links = |lab: &Lab| {
        let text = run(Command::new("ip").args(["-netns", lab.router().name(), "-brief", "link"])).unwrap();
        text.lines().map(|line| line.split([' ', '@']).next().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let number = if kind == "xfrm" { " if_id 77" } else { "" };
    let foreign = lab.router().ip(&format!("link add foreign type {kind}{number}\n"));
    if let Err(lacking) = foreign {
        println!("without kernel {kind} there is nothing to flush: {lacking}");
        assert_eq!(flush(lab).unwrap(), "nothing of a tunnel was left\n");
        return;
    }
    let before = links(lab);
    assert!(before.contains(near) && before.contains("foreign"), "{before:?}");
    assert!(flush(lab).unwrap().contains(near));
    let after = links(lab);
    assert_eq!(before.difference(&after).collect::<Vec<_>>(), [near]);
    assert_eq!(flush(lab).unwrap(), "nothing of a tunnel was left\n");
}

/// A router with a tunnel, and the site at its other end.
fn two_sites(peer: &str, profile: &Profile) -> Option<(Temporary, Branch)> {
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
    let mut lab = Temporary::up(&site(&ipsec(&psk.display().to_string(), profile.word)), 2, false).unwrap();
    let mut branch = Branch::up(&lab).unwrap();
    branch
        .strongswan(&format!(
            "connections {{\nhq {{\nversion = 2\n{peer}\nlocal {{\nauth = psk\nid = branch.test\n}}\n\
             remote {{\nauth = psk\nid = hq.test\n}}\nchildren {{\nhq {{\nlocal_ts = 10.9.0.0/24\n\
             remote_ts = 10.0.10.0/24\nesp_proposals = {}\n}}\n}}\n}}\n}}\n\
             secrets {{\nike-hq {{\nsecret = \"{PSK}\"\n}}\n}}\n",
            profile.proposal
        ))
        .unwrap();
    lab.start_router().unwrap();
    wait_until_good(&lab, patience(Duration::from_secs(30))).unwrap();
    Some((lab, branch))
}

fn folder(what: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("quadway-{what}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn ipsec(psk: &str, profile: &str) -> String {
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
profile         = \"{profile}\"
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
    let deadline = Instant::now() + patience(Duration::from_secs(40));
    while !so() {
        if Instant::now() > deadline {
            let told: Result<Value> = status(lab);
            let told = told.unwrap();
            panic!("{what}: it does not come: {} {}", told["tunnels"], told["components"]);
        }
        thread::sleep(patience(Duration::from_millis(50)));
    }
}

const PATIENCE: Duration = Duration::from_secs(5);
const PSK: &str = "correct-horse-battery-staple-9";
