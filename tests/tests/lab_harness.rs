//! The lab itself: every fault does what it says and nothing else, and the world answers. The router here is a
//! handful of addresses and rules, so that these tests do not depend on routerd.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::lab::{Lab, Spec, Temporary};
use tests::netns::{Netns, run};
use tests::site::{TARGETS4, TARGETS6, Wan};
use tests::traffic::{Answer, Connections, Probe, UdpFlow, gap, probe, probe_all};

const SITE: &str = include_str!("../../config/examples/minimal.toml");
const PATIENCE: Duration = Duration::from_millis(500);

#[test]
fn every_line_reaches_the_internet_under_its_own_address() {
    for (wans, same_gateway) in [(4, false), (4, true), (16, false)] {
        let Some(lab) = lab(wans, same_gateway) else { return };
        for wan in &lab.site().wans {
            for target in targets() {
                let source = source(wan, target);
                match ask(&lab, wan, target, Probe::Tcp(4321)) {
                    Answer::Open(Some(greeting)) => {
                        assert_eq!(greeting.peer, source);
                        assert_eq!(lab.site().wan_of(greeting.peer), Some(wan));
                        assert!(greeting.server.ends_with("-internet"));
                    }
                    answer @ (Answer::Open(None) | Answer::Refused | Answer::Unreachable | Answer::Silent) => {
                        panic!("{} to {target}: {answer:?}", wan.name)
                    }
                }
                for kind in [Probe::Udp(9999), Probe::Ping, Probe::Tcp(80)] {
                    assert!(ask(&lab, wan, target, kind).is_open(), "{} {target} {kind:?}", wan.name);
                }
            }
        }
    }
}

#[test]
fn hosts_answer_at_their_documented_addresses_on_every_port() {
    let Some(lab) = lab(1, false) else { return };
    let [office, guests] = lab.site().vlans.as_slice() else { panic!("two VLANs") };
    let mut probes = Vec::new();
    for to in &guests.addresses {
        let from = office.address(to.addr().is_ipv6()).unwrap();
        for kind in [Probe::Tcp(1), Probe::Tcp(443), Probe::Tcp(65535), Probe::Udp(1), Probe::Udp(5404), Probe::Ping] {
            probes.push((Some(from), to.addr(), kind));
        }
    }
    assert_eq!(probes.len(), 12, "both families");
    let answers = probe_all(&lab.host(10), &probes, PATIENCE).unwrap();
    for (probe, answer) in probes.iter().zip(answers) {
        assert!(answer.is_open(), "{probe:?}: {answer:?}");
        if let Answer::Open(Some(greeting)) = answer {
            assert!(greeting.server.ends_with("-v20"), "{greeting:?}");
            assert_eq!(Some(greeting.peer), probe.0);
        }
    }
}

#[test]
fn a_blackhole_swallows_everything_and_keeps_the_carrier() {
    let Some(mut lab) = lab(2, false) else { return };
    lab.fail(1, "blackhole".parse().unwrap()).unwrap();
    for target in targets() {
        let wan = lab.site().wans[0].clone();
        for kind in [Probe::Tcp(80), Probe::Udp(7), Probe::Ping] {
            assert_eq!(ask(&lab, &wan, target, kind), Answer::Silent, "{target} {kind:?}");
        }
    }
    assert!(carrier(&lab, 1));
    assert!(reaches(&lab, 2), "the other line is good");
    // ARP is swallowed, too: the gateway cannot be found.
    run(lab.router().command("ip").args(["neigh", "flush", "dev", "wan1"])).unwrap();
    let gateway = lab.site().wans[0].gateway4.into();
    assert!(!ask(&lab, &lab.site().wans[0], gateway, Probe::Ping).is_open());

    lab.heal(1).unwrap();
    assert!(reaches(&lab, 1));
}

#[test]
fn without_carrier_the_router_sees_the_cable_out_and_in_again() {
    for same_gateway in [false, true] {
        let Some(mut lab) = lab(2, same_gateway) else { return };
        lab.fail(2, "carrier".parse().unwrap()).unwrap();
        assert!(!carrier(&lab, 2));
        assert!(!reaches(&lab, 2));
        assert!(carrier(&lab, 1) && reaches(&lab, 1));
        lab.heal(2).unwrap();
        assert!(carrier(&lab, 2));
        assert!(reaches(&lab, 2));
    }
}

#[test]
fn loss_is_as_asked_both_ways() {
    let Some(mut lab) = lab(1, false) else { return };
    lab.fail(1, "loss=30".parse().unwrap()).unwrap();
    let wan = lab.site().wans[0].clone();
    for target in targets() {
        // A shared machine may stand still for longer than a socket can hold what arrives; that says nothing of the line.
        let report = (0..5)
            .map(|_| {
                let to = SocketAddr::new(target, 7);
                let flow = UdpFlow::start(&lab.router(), Some(source(&wan, target)), to, 1000).unwrap();
                std::thread::sleep(Duration::from_secs(2));
                flow.stop()
            })
            .find(|report| report.sent > 1900 && report.silence < Duration::from_millis(200))
            .expect("two seconds without a stand-still");
        // 30 % each way leaves 49 %; six standard deviations of 2,000 are 6.7 points.
        let arrived = 1.0 - ratio(report.lost.len(), report.sent);
        assert!((0.42..0.56).contains(&arrived), "{target}: {arrived} of {} came back", report.sent);
    }
    lab.heal(1).unwrap();
    let flow = UdpFlow::start(&lab.router(), None, SocketAddr::new(TARGETS4[0].into(), 7), 1000).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let report = flow.stop();
    assert!(report.lost.is_empty() && report.duplicates == 0, "{report:?}");
}

#[test]
fn delay_is_added_to_round_trips_and_goes_again() {
    let Some(mut lab) = lab(2, false) else { return };
    for fault in ["delay=80", "delay=20"] {
        lab.fail(1, fault.parse().unwrap()).unwrap();
        let added = Duration::from_millis(fault[6..].parse().unwrap());
        for target in targets() {
            // On a busy machine some are late; the quickest of several tells the line.
            let quickest = |line, probe| (0..5).map(|_| round_trip(&lab, line, target, probe)).min().unwrap();
            for probe in [Probe::Ping, Probe::Udp(7)] {
                let took = quickest(1, probe);
                assert!(took >= added && took < added + Duration::from_millis(15), "{fault} {target}: {took:?}");
            }
            assert!(quickest(2, Probe::Ping) < Duration::from_millis(15), "the other line is quick");
        }
        // Big segments pass, whole and in order.
        assert!(bulk(&lab, 1, 300_000) >= added);
    }
    lab.heal(1).unwrap();
    let healed = (0..5).map(|_| round_trip(&lab, 1, targets()[0], Probe::Ping)).min().unwrap();
    assert!(healed < Duration::from_millis(15), "{healed:?}");
    assert!(!Netns::named(&format!("{}-isp1-wire", lab.name())).exists());
}

#[test]
fn dns_and_http_can_fail_alone() {
    let Some(mut lab) = lab(1, false) else { return };
    let open = |lab: &Lab, kind| ask(lab, &lab.site().wans[0], TARGETS4[0].into(), kind).is_open();
    lab.fail(1, "dns".parse().unwrap()).unwrap();
    assert!(!open(&lab, Probe::Tcp(53)));
    assert!(open(&lab, Probe::Tcp(80)) && open(&lab, Probe::Ping) && open(&lab, Probe::Udp(54)));
    lab.fail(1, "http".parse().unwrap()).unwrap();
    assert!(
        !open(&lab, Probe::Tcp(80)) && !open(&lab, Probe::Udp(443)) && !open(&lab, Probe::Tcp(53)),
        "faults add up"
    );
    assert!(open(&lab, Probe::Tcp(22)));
    lab.heal(1).unwrap();
    assert!(open(&lab, Probe::Tcp(53)) && open(&lab, Probe::Tcp(80)) && open(&lab, Probe::Udp(443)));
}

#[test]
fn the_gap_that_a_client_sees_is_the_gap_that_was_made() {
    let Some(mut lab) = lab(1, false) else { return };
    let to = SocketAddr::new(TARGETS4[0].into(), 7);
    let client = Connections::start(&lab.router(), to, Duration::from_millis(10), Duration::from_millis(50));
    std::thread::sleep(Duration::from_millis(200));
    let fault = Instant::now();
    lab.fail(1, "blackhole".parse().unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    lab.heal(1).unwrap();
    let healed = fault.elapsed();
    std::thread::sleep(Duration::from_millis(300));
    let attempts = client.stop().unwrap();
    let gap = gap(&attempts, fault).expect("it ended");
    // The last connection that failed may have begun up to its patience before the line was good.
    assert!(gap >= Duration::from_millis(250) && gap < healed + Duration::from_millis(100), "{gap:?} of {healed:?}");
}

#[test]
fn down_removes_all_of_it_and_up_replaces_what_is_left() {
    let Some(mut lab) = lab(2, false) else { return };
    lab.fail(1, "delay=10".parse().unwrap()).unwrap();
    let spec = Spec { name: lab.name().to_owned(), site: SITE.to_owned(), wans: 1, same_gateway: false };
    let before: Vec<String> = lab.namespaces().to_vec();
    let processes: Vec<i32> = lab.processes().map(|(_, pid)| pid).collect();
    assert_eq!(processes.len(), 4, "internet, two hosts, one emulator");

    let again = Lab::up(&spec).unwrap();
    assert!(!again.isp(2).exists());
    assert!(processes.iter().all(|pid| again.processes().all(|(_, new)| new != *pid)));
    Lab::down(lab.name()).unwrap();
    assert!(before.iter().all(|name| !Netns::named(name).exists()));
    assert!(Lab::open(lab.name()).is_err());
    Lab::down(lab.name()).expect("nothing to do is no error");
}

/// A lab with a router of addresses and rules; `None` where labs cannot be.
fn lab(wans: u8, same_gateway: bool) -> Option<Temporary> {
    if let Err(reason) = tests::can_run() {
        println!("SKIP: {reason:#}");
        return None;
    }
    let lab = Temporary::up(SITE, wans, same_gateway).unwrap();
    stand_in(&lab).unwrap();
    Some(lab)
}

/// Each line is chosen by the source address; VLANs are routed.
fn stand_in(lab: &Lab) -> Result<()> {
    let router = lab.router();
    router.sysctls([("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")])?;
    for wan in &lab.site().wans {
        let (n, table) = (wan.number, 100 + u32::from(wan.number));
        router.ip(&format!(
            "addr add {}/32 dev wan{n}\n\
             addr add {}/128 dev wan{n} nodad\n\
             link set wan{n} up\n\
             route add default via {} dev wan{n} onlink table {table}\n\
             route add default via {} dev wan{n} onlink table {table}\n\
             rule add from {} lookup {table}\n",
            wan.router4.addr(),
            wan.router6.addr(),
            wan.gateway4,
            wan.gateway6,
            wan.router4.addr(),
        ))?;
        // A batch takes the family of a rule from its options only.
        let (from, table) = (wan.router6.addr().to_string(), table.to_string());
        run(router.command("ip").args(["-6", "rule", "add", "from", &from, "lookup", &table]))?;
        if n == 1 {
            router.ip(&format!(
                "route add default via {} dev wan1 onlink src {}\nroute add default via {} dev wan1 onlink src {}\n",
                wan.gateway4,
                wan.router4.addr(),
                wan.gateway6,
                wan.router6.addr()
            ))?;
        }
    }
    for vlan in &lab.site().vlans {
        let port = vlan.port();
        for gateway in &vlan.gateways {
            router.ip(&format!("addr add {gateway} dev {port}\n"))?;
        }
        router.ip(&format!("link set {port} up\n"))?;
    }
    // The kernel takes up to a second to use links that come up together.
    let deadline = Instant::now() + Duration::from_secs(5);
    for name in lab.namespaces() {
        while run(Netns::named(name).command("ip").args(["-brief", "link"]))?.contains(" DOWN ") {
            assert!(Instant::now() < deadline, "a link of {name} stays down");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn targets() -> [IpAddr; 2] {
    [TARGETS4[0].into(), TARGETS6[0].into()]
}

fn source(wan: &Wan, to: IpAddr) -> IpAddr {
    if to.is_ipv4() { wan.router4.addr().into() } else { wan.router6.addr().into() }
}

fn ask(lab: &Lab, wan: &Wan, to: IpAddr, kind: Probe) -> Answer {
    probe(&lab.router(), Some(source(wan, to)), to, kind, PATIENCE).unwrap()
}

/// Whether a line is good in both families. A neighbour may have to be found again first.
fn reaches(lab: &Lab, number: u8) -> bool {
    let wan = &lab.site().wans[usize::from(number) - 1];
    targets().into_iter().all(|target| {
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            match ask(lab, wan, target, Probe::Ping).is_open() {
                true => return true,
                false if Instant::now() > deadline || !carrier(lab, number) => return false,
                false => {}
            }
        }
    })
}

fn round_trip(lab: &Lab, number: u8, target: IpAddr, kind: Probe) -> Duration {
    let start = Instant::now();
    let answer = ask(lab, &lab.site().wans[usize::from(number) - 1], target, kind);
    assert!(answer.is_open(), "{target} {kind:?}: {answer:?}");
    start.elapsed()
}

fn carrier(lab: &Lab, number: u8) -> bool {
    let link = run(lab.router().command("ip").args(["-brief", "link", "show", &format!("wan{number}")])).unwrap();
    link.contains("LOWER_UP")
}

/// Sends bytes to the echo server and reads them back.
fn bulk(lab: &Lab, number: u8, length: usize) -> Duration {
    use std::io::{BufRead, BufReader, Read, Write};
    let wan = &lab.site().wans[usize::from(number) - 1];
    let sent: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let start = Instant::now();
    let stream = lab
        .router()
        .enter(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(wan.router4.addr().into(), 0).into())?;
            socket.connect(&SocketAddr::new(TARGETS4[0].into(), 7).into())?;
            std::io::Result::Ok(std::net::TcpStream::from(socket))
        })
        .unwrap()
        .unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy));
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut String::new()).unwrap();
    let mut got = vec![0; length];
    reader.read_exact(&mut got).unwrap();
    writing.join().unwrap().unwrap();
    assert_eq!(got, sent);
    start.elapsed()
}

fn ratio(part: usize, whole: u32) -> f64 {
    f64::from(u32::try_from(part).unwrap()) / f64::from(whole)
}
