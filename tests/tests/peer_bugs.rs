//! What hurt the users of other routers does not happen here. Every test is named after the row of the list of
//! peers' bugs that it pins, and plays it with the real routerd and real packets. What of them needs no kernel is
//! pinned in `mwan`.
//!
//! The ISPs of these labs are strict: a packet that leaves by another line than its own is dropped and counted.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary, binary};
use tests::netns::{Netns, feed, run};
use tests::root::Root;
use tests::site::{TARGETS4, TARGETS6};
use tests::traffic::{self, Answer, Probe, UdpFlow, distribution, echoes, probe};
use tests::watch::{astray, flows, line, number_of, status, strict, usable, wait, wait_usable};

#[test]
fn peer_bug_01_open_tcp_is_reset_when_its_line_dies() {
    let Some(mut lab) = lab(SITE, 4, false) else { return };
    for (number, fault) in [(2, "blackhole"), (3, "carrier")] {
        let host = lab.host(10);
        let mut open: BTreeMap<u8, Vec<_>> = BTreeMap::new();
        // A machine that stands still for a moment costs a line its health for as long as its hold time.
        wait("every line has connections", || {
            open.clear();
            for _ in 0..24 {
                let (stream, greeting) = traffic::open(&host, internet(7100), PATIENCE)?;
                open.entry(number_of(&lab, greeting.peer)?).or_default().push(stream);
            }
            Ok(open.len() == 4)
        })
        .unwrap();

        let died = Instant::now();
        lab.fail(number, fault.parse().unwrap()).unwrap();
        let ends: Vec<_> = open
            .remove(&number)
            .unwrap()
            .into_iter()
            .enumerate()
            .map(|(i, mut stream)| {
                thread::spawn(move || {
                    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                    while died.elapsed() < PATIENCE {
                        // Every second one is active; the others wait for the far end to speak.
                        let sent = if i % 2 == 0 { stream.write_all(b"!") } else { Ok(()) };
                        match sent.and_then(|()| stream.read(&mut [0; 64])) {
                            Ok(0) => return Err("an orderly end".to_owned()),
                            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(died.elapsed()),
                            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                            Err(error) => return Err(error.to_string()),
                            Ok(_) => {}
                        }
                    }
                    Err("it hangs".to_owned())
                })
            })
            .collect();
        for end in ends {
            let took = end.join().unwrap().unwrap_or_else(|end| panic!("{fault}: {end}"));
            println!("{fault}: reset after {} ms", took.as_millis());
            assert!(took < Duration::from_secs(2), "{fault}: {took:?}");
        }
        for (other, streams) in &mut open {
            assert!(
                streams.iter_mut().all(|stream| echoes(stream, PATIENCE)),
                "{fault} on wan{number}: wan{other} too"
            );
        }
        let left: Vec<_> = flows(&lab).unwrap().into_iter().filter(|flow| flow.wan == u32::from(number)).collect();
        assert!(left.is_empty(), "{fault}: {left:?}");
        lab.heal(number).unwrap();
        wait_until_good(&lab, Duration::from_secs(15)).unwrap();
    }
}

#[test]
fn peer_bug_04_failback_strands_no_client_that_reconnects_fast() {
    let Some(mut lab) = lab(SITE, 2, false) else { return };
    let host = lab.host(10);
    let clients: Vec<_> = (0..16).map(|_| Reconnector::start(&host, internet(FORCE))).collect();
    thread::sleep(Duration::from_millis(200));
    for fault in ["blackhole", "carrier", "blackhole"] {
        lab.fail(1, fault.parse().unwrap()).unwrap();
        wait_usable(&lab, "wan1", "v4", false).unwrap();
        wait("every client is on the backup", || Ok(clients.iter().all(|client| client.line(&lab) == Some(2))))
            .unwrap();
        lab.heal(1).unwrap();
        wait_usable(&lab, "wan1", "v4", true).unwrap();
        wait("every client is back on the line its policy uses", || {
            Ok(clients.iter().all(|client| client.line(&lab) == Some(1)))
        })
        .unwrap();
    }
    drop(clients);
    assert_eq!(astray(&lab).unwrap(), 0, "packets left by a line that is not theirs");
}

#[test]
fn peer_bug_05_a_keepalive_flow_returns_to_the_primary_as_its_policy_says() {
    let Some(mut lab) = lab(SITE, 2, false) else { return };
    let host = lab.host(10);
    // As WireGuard does: the same addresses and ports for ever, a packet now and then.
    let start = |port| UdpFlow::start(&host, None, internet(port), 10).unwrap();
    let tunnels = [FORCE, DRAIN, STAY].map(start);
    let on = |port, wan| {
        wait(&format!("the flow to port {port} is on wan{wan}"), || Ok(pinned(&lab, port) == BTreeSet::from([wan])))
    };
    for port in [FORCE, DRAIN, STAY] {
        on(port, 1).unwrap();
    }
    lab.fail(1, "blackhole".parse().unwrap()).unwrap();
    for port in [FORCE, DRAIN, STAY] {
        wait("the flow is on the backup", || Ok(pinned(&lab, port) == BTreeSet::from([2]))).unwrap();
    }
    lab.heal(1).unwrap();
    wait_usable(&lab, "wan1", "v4", true).unwrap();
    let back = Instant::now();
    let returned = |port| wait("the flow is on the primary", || Ok(pinned(&lab, port) == BTreeSet::from([1])));
    assert!(returned(FORCE).unwrap() < Duration::from_secs(1));
    assert_eq!(pinned(&lab, DRAIN), BTreeSet::from([2]), "it has its time");
    returned(DRAIN).unwrap();
    let drained = back.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_secs(5)).contains(&drained), "{drained:?}");
    assert_eq!(pinned(&lab, STAY), BTreeSet::from([2]));
    for tunnel in tunnels {
        let report = tunnel.stop();
        assert!(report.silence < Duration::from_secs(3), "{report:?}");
    }
}

#[test]
fn peer_bug_07_a_target_that_nobody_can_reach_ends_no_flow() {
    let Some(lab) = lab(SITE, 2, false) else { return };
    let host = lab.host(10);
    let mut open: Vec<_> = (0..8).map(|_| traffic::open(&host, internet(7100), PATIENCE).unwrap().0).collect();
    let quiet = "table inet quiet {\nchain incoming {\ntype filter hook prerouting priority -300\n\
                 ip daddr 198.51.100.1 icmp type echo-request drop\n}\n}\n";
    feed(Root::find().unwrap().command(&lab.internet(), "nft").args(["-f", "-"]), quiet).unwrap();
    wait("the target is known to be bad", || {
        let status = status(&lab)?;
        let targets = ["wan1", "wan2"].map(|wan| line(&status, wan, "v4")["targets"].clone());
        Ok(targets.iter().all(|list| list.as_array().is_some_and(|list| list.iter().any(|t| t["bad"] == true))))
    })
    .unwrap();
    assert!(usable(&lab, "wan1", "v4").unwrap() && usable(&lab, "wan2", "v4").unwrap());
    assert!(open.iter_mut().all(|stream| echoes(stream, PATIENCE)));
}

#[test]
fn peer_bug_08_the_rules_of_the_router_never_eat_its_probes() {
    let Some(mut lab) = lab(CLOSED, 3, false) else { return };
    let host = lab.host(10);
    assert!(!probe(&host, None, TARGETS4[0].into(), Probe::Ping, SHORT).unwrap().is_open(), "nobody may go out");
    // Rules that ate probes would do so always; a machine that stands still for a moment does not.
    let good = |lab: &Lab| -> anyhow::Result<bool> {
        let status = status(lab)?;
        let fine = |wan: &str, family: &str| {
            let line = line(&status, wan, family);
            let up = line["targets"].as_array().is_some_and(|all| all.iter().all(|target| target["up"] != false));
            line["usable"] == true && up
        };
        Ok(["wan1", "wan2", "wan3"].iter().all(|wan| fine(wan, "v4") && fine(wan, "v6")))
    };
    let stays_good = |lab: &Lab, when: &str| {
        wait(&format!("every line is good for 800 ms {when}"), || {
            let end = Instant::now() + Duration::from_millis(800);
            while Instant::now() < end {
                if !good(lab)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .unwrap();
    };
    stays_good(&lab, "with everything closed");
    run(Root::find().unwrap().command(&lab.router(), "conntrack").arg("-F")).unwrap();
    stays_good(&lab, "after a flush of conntrack");
    lab.fail(1, "blackhole".parse().unwrap()).unwrap();
    wait_usable(&lab, "wan1", "v4", false).unwrap();
    assert_eq!(host_routes(&lab), [""; 0], "while wan1 is dead");
    lab.heal(1).unwrap();
    wait_until_good(&lab, Duration::from_secs(15)).unwrap();
    stays_good(&lab, "after a failover");
    assert_eq!(host_routes(&lab), [""; 0]);
    assert_eq!(astray(&lab).unwrap(), 0, "probes left by a line that is not theirs");
}

#[test]
fn peer_bug_09_lines_with_the_same_gateway_are_judged_each_by_itself() {
    let Some(mut lab) = lab(SITE, 4, true) else { return };
    for family in ["v4", "v6"] {
        let macs: BTreeSet<_> = ["wan1", "wan2", "wan3", "wan4"]
            .map(|wan| {
                let known = || Ok(line(&status(&lab)?, wan, family)["gateway_mac"].as_str().map(str::to_owned));
                wait("the gateway is known", || known().map(|mac| mac.is_some())).unwrap();
                known().unwrap().unwrap()
            })
            .into();
        assert_eq!(macs.len(), 4, "one gateway address, four gateways: {macs:?}");
    }
    for (number, fault) in [(2u8, "blackhole"), (4, "carrier")] {
        let dead = format!("wan{number}");
        lab.fail(number, fault.parse().unwrap()).unwrap();
        for family in ["v4", "v6"] {
            wait_usable(&lab, &dead, family, false).unwrap();
            for wan in ["wan1", "wan2", "wan3", "wan4"].into_iter().filter(|wan| *wan != dead) {
                assert!(usable(&lab, wan, family).unwrap(), "{fault} on {dead} took {wan} along in {family}");
            }
        }
        let seen = distribution(&lab.host(10), internet(7100), 60).unwrap();
        let used: BTreeSet<_> = seen.keys().map(|seen| number_of(&lab, *seen).unwrap()).collect();
        assert_eq!(used, (1..=4).filter(|wan| *wan != number).collect());
        lab.heal(number).unwrap();
        wait_until_good(&lab, Duration::from_secs(15)).unwrap();
    }
    assert_eq!(astray(&lab).unwrap(), 0);
}

#[test]
fn peer_bug_10_gateways_in_one_subnet_have_a_neighbour_and_a_table_each() {
    let Some(lab) = lab(SITE, 4, true) else { return };
    let seen = distribution(&lab.host(10), internet(7100), 100).unwrap();
    assert_eq!(seen.len(), 4, "{seen:?}");
    let mut neighbours = BTreeSet::new();
    for number in 1..=4u8 {
        let link = format!("wan{number}");
        let table = (1000 + u32::from(number)).to_string();
        for (family, gateway) in [("-4", "100.64.0.1"), ("-6", "fe80::1")] {
            let known = ip(&lab, &[family, "neigh", "show", gateway, "dev", &link]);
            let mac = known.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).map(str::to_owned);
            neighbours.insert((family, mac.unwrap_or_else(|| panic!("{link} does not know {gateway}: {known:?}"))));
            let routes = ip(&lab, &[family, "route", "show", "table", &table]);
            assert!(routes.lines().all(|route| route.contains(&format!("dev {link} "))), "{table}:\n{routes}");
            assert!(routes.contains(&format!("default via {gateway} dev {link} ")), "{table}:\n{routes}");
        }
    }
    assert_eq!(neighbours.len(), 8, "{neighbours:?}");
    assert_eq!(astray(&lab).unwrap(), 0);
}

#[test]
fn peer_bug_13_what_is_for_a_vlan_never_leaves_by_a_line() {
    let Some(mut lab) = lab(SITE, 2, false) else { return };
    let host = lab.host(10);
    let everybody: Vec<IpAddr> =
        lab.site().vlans[1].addresses.iter().map(ipnet::IpNet::addr).chain(["10.0.20.77".parse().unwrap()]).collect();
    let knock = |lab: &Lab, when: &str| {
        for to in &everybody {
            for kind in [Probe::Tcp(443), Probe::Udp(443), Probe::Ping] {
                let answer = probe(&host, None, *to, kind, SHORT).unwrap();
                assert!(!answer.is_open(), "{when}: {to} {kind:?} {answer:?}");
            }
            // The router's own packets keep to the same.
            drop(probe(&lab.router(), None, *to, Probe::Udp(443), SHORT));
        }
        assert_eq!(astray(lab).unwrap(), 0, "{when}");
    };
    assert!(probe(&host, None, everybody[0], Probe::Tcp(443), PATIENCE).unwrap().is_open());
    lab.host(20).ip("link set eth0 down\n").unwrap();
    knock(&lab, "with the cable out");
    lab.host(20).ip("link delete eth0\n").unwrap();
    knock(&lab, "without the port");
    lab.router().ip("link set vlan20 down\n").unwrap();
    knock(&lab, "amid the repair");
    lab.stop_router(Signal::SIGKILL).unwrap();
    lab.router().ip("link set vlan20 down\n").unwrap();
    knock(&lab, "with the VLAN down and nobody to repair it");
    lab.router().ip("link delete vlan20\n").unwrap();
    knock(&lab, "without the VLAN");
    assert!(probe(&host, None, TARGETS4[0].into(), Probe::Tcp(443), PATIENCE).unwrap().is_open(), "the lines work");
}

#[test]
fn peer_bug_14_flows_between_vlans_lose_nothing_when_a_line_dies() {
    let Some(mut lab) = lab(SITE, 2, false) else { return };
    let host = lab.host(10);
    let inside = |v6, port| SocketAddr::new(lab.site().vlans[1].address(v6).unwrap(), port);
    let inner = [inside(false, 7300), inside(true, 7300)].map(|to| UdpFlow::start(&host, None, to, 500).unwrap());
    let mut open: Vec<_> =
        [inside(false, 7301), inside(true, 7301)].map(|to| traffic::open(&host, to, PATIENCE).unwrap().0).into();
    for fault in ["blackhole", "carrier"] {
        lab.fail(1, fault.parse().unwrap()).unwrap();
        wait_usable(&lab, "wan1", "v4", false).unwrap();
        assert!(open.iter_mut().all(|stream| echoes(stream, PATIENCE)), "{fault}");
        thread::sleep(Duration::from_millis(400));
        lab.heal(1).unwrap();
        wait_until_good(&lab, Duration::from_secs(15)).unwrap();
    }
    assert!(open.iter_mut().all(|stream| echoes(stream, PATIENCE)));
    for flow in inner {
        let report = flow.stop();
        assert!(report.sent > 500 && report.lost.is_empty() && report.duplicates == 0, "{report:?}");
    }
}

#[test]
fn peer_bug_15_a_replugged_interface_has_its_table_rules_and_addresses_again() {
    let Some(lab) = lab(SITE, 2, false) else { return };
    let before = of_line(&lab, 1);
    for round in 0..2 {
        lab.router().ip("link delete wan1\n").unwrap();
        wait_usable(&lab, "wan1", "v4", false).unwrap();
        let seen = distribution(&lab.host(10), internet(7100), 20).unwrap();
        assert!(seen.keys().all(|seen| number_of(&lab, *seen).unwrap() == 2), "{seen:?}");
        let wan = &lab.site().wans[0];
        lab.isp(1)
            .ip(&format!(
                "link add cust type veth peer name wan1 netns {}\nlink set cust up\n\
                 addr add {}/24 dev cust\naddr add {}/64 dev cust nodad\n",
                lab.router().name(),
                wan.gateway4,
                wan.gateway6
            ))
            .unwrap();
        wait_until_good(&lab, Duration::from_secs(15)).unwrap();
        assert_eq!(of_line(&lab, 1), before, "round {round}");
        for target in [internet(7100), internet6(7100)] {
            let seen = distribution(&lab.host(10), target, 40).unwrap();
            assert_eq!(seen.len(), 2, "both lines carry: {seen:?}");
        }
    }
    assert_eq!(astray(&lab).unwrap(), 0);
}

#[test]
fn peer_bug_16_a_route_or_address_that_somebody_removed_is_back_within_a_second() {
    let Some(lab) = lab(SITE, 2, false) else { return };
    let before = of_line(&lab, 1);
    let own = &lab.site().wans[0];
    for removal in [
        "-4 route delete default table 1001".to_owned(),
        "-6 route delete default table 1001".to_owned(),
        format!("-4 addr delete {} dev wan1", own.router4),
        format!("-6 addr delete {} dev wan1", own.router6),
        "-4 rule delete priority 10001".to_owned(),
        "-6 rule delete priority 10001".to_owned(),
        "-4 route flush table 1001".to_owned(),
    ] {
        ip(&lab, &removal.split(' ').collect::<Vec<_>>());
        let took = wait(&format!("the kernel is as before `{removal}`"), || Ok(of_line(&lab, 1) == before)).unwrap();
        println!("{removal}: repaired after {} ms", took.as_millis());
        assert!(took < Duration::from_secs(1), "{removal}: {took:?}");
    }
    wait_until_good(&lab, Duration::from_secs(15)).unwrap();
    for target in [internet(7100), internet6(7100)] {
        let seen = distribution(&lab.host(10), target, 40).unwrap();
        assert_eq!(seen.len(), 2, "both lines carry: {seen:?}");
    }
}

#[test]
fn peer_bug_17_a_restart_makes_the_table_that_is_missing() {
    let Some(mut lab) = lab(SITE, 2, false) else { return };
    let before = of_line(&lab, 1);
    for (signal, damage) in [
        (Signal::SIGTERM, ["-4 route flush table 1001", "-6 route flush table 1001"]),
        (Signal::SIGKILL, ["-4 rule delete priority 10001", "-4 addr flush dev wan1"]),
    ] {
        lab.stop_router(signal).unwrap();
        assert_eq!(of_line(&lab, 1), before, "{signal} leaves the kernel as it is");
        for removal in damage {
            ip(&lab, &removal.split(' ').collect::<Vec<_>>());
        }
        assert_ne!(of_line(&lab, 1), before);
        lab.start_router().unwrap();
        wait("the kernel is as before", || Ok(of_line(&lab, 1) == before)).unwrap();
        wait_until_good(&lab, Duration::from_secs(15)).unwrap();
        let seen = distribution(&lab.host(10), internet(7100), 40).unwrap();
        assert_eq!(seen.len(), 2, "both lines carry: {seen:?}");
    }
}

#[test]
fn peer_bug_19_probes_of_a_standby_leave_by_the_standby_and_families_are_judged_apart() {
    let Some(lab) = lab(STANDBY, 2, false) else { return };
    for number in [1u8, 2] {
        let (bad, good) = (format!("wan{number}"), format!("wan{}", 3 - number));
        let isp = lab.isp(number);
        let nft = || Root::find().unwrap().command(&isp, "nft");
        let no6 = "table inet no6 {\nchain incoming {\ntype filter hook prerouting priority -250\n\
                   meta nfproto ipv6 icmpv6 type != { nd-neighbor-solicit, nd-neighbor-advert } drop\n}\n}\n";
        feed(nft().args(["-f", "-"]), no6).unwrap();
        wait_usable(&lab, &bad, "v6", false).unwrap();
        thread::sleep(Duration::from_millis(500));
        assert!(usable(&lab, &bad, "v4").unwrap(), "IPv4 of {bad} is good");
        assert!(usable(&lab, &good, "v4").unwrap() && usable(&lab, &good, "v6").unwrap());
        for (to, expected) in [(internet(7100), 1), (internet6(7100), if number == 1 { 2 } else { 1 })] {
            let (_, greeting) = traffic::open(&lab.host(10), to, PATIENCE).unwrap();
            assert_eq!(number_of(&lab, greeting.peer).unwrap(), expected, "{to} with {bad} without IPv6");
        }
        run(nft().args(["delete", "table", "inet", "no6"])).unwrap();
        wait_until_good(&lab, Duration::from_secs(15)).unwrap();
    }
    assert_eq!(astray(&lab).unwrap(), 0, "probes left by the other line");
}

#[test]
fn peer_bug_20_answers_leave_by_the_line_that_asked() {
    let Some(mut lab) = lab(SITE, 4, false) else { return };
    let router = lab.router();
    // The router serves TCP on this port, as an operator's SSH would be.
    let stop = Arc::new(AtomicBool::new(false));
    let servers: Vec<_> = ["0.0.0.0:2222", "[::]:2222"]
        .into_iter()
        .map(|at| {
            let listener = router
                .enter(|| {
                    let domain = if at.starts_with('[') { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
                    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
                    if at.starts_with('[') {
                        socket.set_only_v6(true).unwrap();
                    }
                    socket.bind(&at.parse::<SocketAddr>().unwrap().into()).unwrap();
                    socket.listen(64).unwrap();
                    TcpListener::from(socket)
                })
                .unwrap();
            listener.set_nonblocking(true).unwrap();
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((mut stream, peer)) => drop(writeln!(stream, "router sees {}", peer.ip())),
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
            })
        })
        .collect();
    let ask = |lab: &Lab, v6: bool, kind| {
        let own = |wan: &tests::site::Wan| -> IpAddr {
            if v6 { wan.router6.addr().into() } else { wan.router4.addr().into() }
        };
        for wan in &lab.site().wans {
            let answer = probe(&lab.internet(), None, own(wan), kind, Duration::from_secs(3)).unwrap();
            assert!(answer.is_open(), "{kind:?} to {}: {answer:?}", own(wan));
        }
    };
    for v6 in [false, true] {
        for kind in [Probe::Ping, Probe::Tcp(2222)] {
            ask(&lab, v6, kind);
        }
    }
    // The router's own packets go elsewhere: the answers stay.
    run(lab.routerctl().unwrap().args(["wan", "drain", "wan1"])).unwrap();
    wait("wan1 is drained", || Ok(!usable(&lab, "wan1", "v4")? || status(&lab)?["wans"][0]["drained"] == true))
        .unwrap();
    for v6 in [false, true] {
        for kind in [Probe::Ping, Probe::Tcp(2222)] {
            ask(&lab, v6, kind);
        }
    }
    assert_eq!(astray(&lab).unwrap(), 0, "answers left by another line");
    let closed =
        probe(&lab.internet(), None, lab.site().wans[0].router4.addr().into(), Probe::Tcp(2223), SHORT).unwrap();
    assert_ne!(closed, Answer::Open(None));
    assert!(!closed.is_open());
    stop.store(true, Ordering::Relaxed);
    for server in servers {
        server.join().unwrap();
    }
    lab.stop_router(Signal::SIGTERM).unwrap();
}

/// A client that holds one connection and makes another 5 ms after it breaks.
struct Reconnector {
    stop: Arc<AtomicBool>,
    peer: Arc<std::sync::Mutex<Option<IpAddr>>>,
    client: Option<thread::JoinHandle<()>>,
}

impl Reconnector {
    fn start(from: &Netns, to: SocketAddr) -> Self {
        let (stop, peer) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(None)));
        let from = Netns::named(from.name());
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&peer));
        let client = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((mut stream, greeting)) = traffic::open(&from, to, Duration::from_millis(200)) {
                    *seen.lock().unwrap() = Some(greeting.peer);
                    while !stopped.load(Ordering::Relaxed) && echoes(&mut stream, Duration::from_secs(30)) {
                        thread::sleep(Duration::from_millis(20));
                    }
                    *seen.lock().unwrap() = None;
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, peer, client: Some(client) }
    }

    /// The line that its connection goes by; `None` while it has none.
    fn line(&self, lab: &Lab) -> Option<u8> {
        self.peer.lock().unwrap().map(|peer| number_of(lab, peer).unwrap())
    }
}

impl Drop for Reconnector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(client) = self.client.take() {
            drop(client.join());
        }
    }
}

/// The lines that the flows to a port are pinned to.
fn pinned(lab: &Lab, port: u16) -> BTreeSet<u32> {
    flows(lab).unwrap().iter().filter(|flow| flow.is_to(port)).map(|flow| flow.wan).collect()
}

/// What the kernel holds for one line: its tables, its rules, its addresses.
fn of_line(lab: &Lab, number: u8) -> String {
    let (link, id) = (format!("wan{number}"), u32::from(number));
    let table = (1000 + id).to_string();
    let mut text = String::new();
    for family in ["-4", "-6"] {
        text += &ip_or(lab, &[family, "route", "show", "table", &table], "");
        for base in [10_000, 11_000, 12_000] {
            text += &ip(lab, &[family, "rule", "show", "priority", &(base + id).to_string()]);
        }
        let addresses = ip_or(lab, &[family, "-oneline", "addr", "show", "dev", &link, "scope", "global"], "");
        // The index of a link that was made again is another.
        text += addresses.split_once(": ").map_or("", |(_, rest)| rest);
    }
    text
}

/// Routes to single addresses outside the site, in any table.
fn host_routes(lab: &Lab) -> Vec<String> {
    let all = ["-4", "-6"].map(|family| ip(lab, &[family, "route", "show", "table", "all"])).concat();
    let targets = TARGETS4.iter().map(ToString::to_string).chain(TARGETS6.iter().map(ToString::to_string));
    let targets: BTreeSet<_> = targets.collect();
    all.lines()
        .filter(|route| route.split_whitespace().next().is_some_and(|to| targets.contains(to)))
        .map(str::to_owned)
        .collect()
}

fn ip(lab: &Lab, arguments: &[&str]) -> String {
    run(lab.router().command("ip").args(arguments)).unwrap()
}

fn ip_or(lab: &Lab, arguments: &[&str], other: &str) -> String {
    run(lab.router().command("ip").args(arguments)).unwrap_or_else(|_absent| other.to_owned())
}

fn internet(port: u16) -> SocketAddr {
    SocketAddr::new(TARGETS4[0].into(), port)
}

fn internet6(port: u16) -> SocketAddr {
    SocketAddr::new(TARGETS6[0].into(), port)
}

/// A lab with strict ISPs whose lines are good and come back quickly; `None` where labs cannot be.
fn lab(site: &str, wans: u8, same_gateway: bool) -> Option<Temporary> {
    if let Err(reason) = tests::can_run().and_then(|()| binary("routerd").and(binary("routerctl")).map(drop)) {
        println!("SKIP: {reason:#}");
        return None;
    }
    let mut lab = Temporary::up(site, wans, same_gateway).unwrap();
    let text = std::fs::read_to_string(lab.site_file()).unwrap();
    std::fs::write(lab.site_file(), text.replace("hold = \"1s\"", "hold = \"300ms\"").replace("\"8s\"", "\"300ms\""))
        .unwrap();
    strict(&lab).unwrap();
    lab.start_router().unwrap();
    wait_until_good(&lab, Duration::from_secs(30)).unwrap();
    Some(lab)
}

const PATIENCE: Duration = Duration::from_secs(3);
const SHORT: Duration = Duration::from_millis(200);
/// The ports whose policies have a primary and a backup, by how they fail back.
const FORCE: u16 = 7201;
const DRAIN: u16 = 7202;
const STAY: u16 = 7203;

const SITE: &str = r#"
[site]
name = "peers"

[router]
default_policy = "balanced"

[wan.wan1]
interface = "eth0"
addresses = ["203.0.113.10/24"]
gateway = "203.0.113.1"
input = ["ping", "tcp/2222"]

[wan.wan2]
interface = "eth1"
addresses = ["203.0.114.10/24"]
gateway = "203.0.114.1"
input = ["ping", "tcp/2222"]

[wan.wan3]
interface = "eth2"
addresses = ["203.0.115.10/24"]
gateway = "203.0.115.1"
input = ["ping", "tcp/2222"]

[wan.wan4]
interface = "eth3"
addresses = ["203.0.116.10/24"]
gateway = "203.0.116.1"
input = ["ping", "tcp/2222"]

[policy.balanced]
members = ["wan1", "wan2", "wan3", "wan4"]

[policy.force]
members = [{ wan = "wan1", tier = 1 }, { wan = "wan2", tier = 2 }]
failback = "force"
kick = "all"

[policy.drain]
members = [{ wan = "wan1", tier = 1 }, { wan = "wan2", tier = 2 }]
failback = { drain = "2s" }

[policy.stay]
members = [{ wan = "wan1", tier = 1 }, { wan = "wan2", tier = 2 }]
failback = "stay"

[[steer]]
services = ["tcp/7201", "udp/7201"]
policy = "force"

[[steer]]
services = ["tcp/7202", "udp/7202"]
policy = "drain"

[[steer]]
services = ["tcp/7203", "udp/7203"]
policy = "stay"

[vlan.office]
id = 10
addresses = ["10.0.10.1/24"]
access = ["eth8"]
internet = "any"

[vlan.servers]
id = 20
addresses = ["10.0.20.1/24"]
access = ["eth9"]
internet = "any"

[host.server]
address = "10.0.20.5"

[[cell]]
from = "office"
to = "servers"
services = "any"
"#;

/// Nobody may go out, and what goes to the probes' targets is steered to one line.
const CLOSED: &str = r#"
[site]
name = "closed"

[router]
default_policy = "balanced"

[wan.wan1]
interface = "eth0"
addresses = ["203.0.113.10/24"]
gateway = "203.0.113.1"

[wan.wan2]
interface = "eth1"
addresses = ["203.0.114.10/24"]
gateway = "203.0.114.1"

[policy.balanced]
members = ["wan1", "wan2"]

[policy.second]
members = ["wan2"]

[[steer]]
destination = ["198.51.100.0/24", "2001:db8:100::/64"]
policy = "second"

[vlan.office]
id = 10
addresses = ["10.0.10.1/24"]
access = ["eth8"]
internet = "none"
"#;

/// One line carries, the other stands by.
const STANDBY: &str = r#"
[site]
name = "standby"

[router]
default_policy = "tiers"

[wan.wan1]
interface = "eth0"
addresses = ["203.0.113.10/24"]
gateway = "203.0.113.1"

[wan.wan2]
interface = "eth1"
addresses = ["203.0.114.10/24"]
gateway = "203.0.114.1"

[policy.tiers]
members = [{ wan = "wan1", tier = 1 }, { wan = "wan2", tier = 2 }]
failback = "force"

[vlan.office]
id = 10
addresses = ["10.0.10.1/24"]
access = ["eth8"]
internet = "any"
"#;
