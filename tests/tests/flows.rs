//! The flow cache with the real conntrack: flows get entries, are forwarded by them, and lose them when they should.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::netns::{feed, run};
use tests::root::Root;
use tests::traffic::{UdpFlow, datagrams, open, seen_as};
use tests::watch::{flows, number_of, status, wait, wait_usable};

const SITE: &str = r#"
[site]
name = "fast path"

[router]
default_policy = "balanced"

[policy.balanced]
members = ["wan1", "wan2"]

[vlan.office]
id        = 10
addresses = ["10.0.10.1/24", "fd10:10:10::1/64"]
access    = ["eth2"]
internet  = "any"

[vlan.voice]
id        = 20
addresses = ["10.0.20.1/24"]
access    = ["eth3"]

[wan.wan1]
interface = "wan1"
[wan.wan2]
interface = "wan2"
"#;

const CELL: &str = "
[[cell]]
from  = \"office\"
to    = \"voice\"
services = [\"tcp/443\"]
";

const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
const WEB6: &str = "2001:db8:100::1";

#[test]
fn flows_are_cached_while_they_live_and_may() {
    let Some(mut lab) = Temporary::routed(&format!("{SITE}{CELL}"), 2, false).unwrap() else { return };
    assert_eq!(status(&lab).unwrap()["fast_path"]["on"], true);
    connections_are_forwarded_and_arrive_intact(&lab);
    a_config_that_denies_them_ends_them(&lab);
    conntrack_is_told_that_a_flow_lives(&lab);
    no_packet_leaves_by_a_dead_line(&mut lab);
}

fn connections_are_forwarded_and_arrive_intact(lab: &Lab) {
    let voice = lab.site().vlans.iter().find(|vlan| vlan.id == 20).unwrap().address(false).unwrap();
    for (to, family) in [(WEB, "v4"), (WEB6.parse().unwrap(), "v6"), (voice, "v4")] {
        let (mut stream, _) = open(&lab.host(10), SocketAddr::new(to, 443), Duration::from_secs(5)).unwrap();
        wait("the connection has its entries", || Ok(entries(lab, family) == 2)).unwrap();
        let before = forwarded(lab);
        transfer(&mut stream, 8 << 20);
        let packets = forwarded(lab) - before;
        println!("{to}: {packets} packets forwarded for 8 MiB there and back");
        assert!(packets > 200, "{to}: {packets}");
        drop(stream);
        wait("its entries are gone", || Ok(entries(lab, family) == 0)).unwrap();
    }
    let carried = status(lab).unwrap()["fast_path"]["fed"].clone();
    println!("{carried}");
}

fn a_config_that_denies_them_ends_them(lab: &Lab) {
    let voice = lab.site().vlans.iter().find(|vlan| vlan.id == 20).unwrap().address(false).unwrap();
    let (_stream, _) = open(&lab.host(10), SocketAddr::new(voice, 443), Duration::from_secs(5)).unwrap();
    let (mut other, _) = open(&lab.host(10), SocketAddr::new(WEB, 443), Duration::from_secs(5)).unwrap();
    wait("both connections have entries", || Ok(entries(lab, "v4") == 4)).unwrap();
    let text = lab.site().text.clone();
    let (without, _) = text.split_once("[[cell]]").unwrap();
    feed(lab.routerctl().unwrap().args(["apply", "-"]), without).unwrap();
    wait("the denied connection has none", || Ok(entries(lab, "v4") == 2)).unwrap();
    // Called back by the apply, the other is forwarded again.
    wait("the other is forwarded", || {
        let before = forwarded(lab);
        transfer(&mut other, 1 << 20);
        Ok(forwarded(lab) - before > 20)
    })
    .unwrap();
    drop(other);
    wait("all entries are gone", || Ok(entries(lab, "v4") == 0)).unwrap();
}

fn conntrack_is_told_that_a_flow_lives(lab: &Lab) {
    lab.router().sysctls([("net/netfilter/nf_conntrack_udp_timeout_stream", "14")]).unwrap();
    let flow = UdpFlow::start(&lab.host(10), None, SocketAddr::new(WEB, 7000), 200).unwrap();
    wait("the flow is forwarded", || Ok(entries(lab, "v4") == 2)).unwrap();
    let port = format!("sport={} ", flow.source().port());
    let tracked = || flows(lab).unwrap().into_iter().find(|flow| flow.is_to(7000) && flow.text.contains(&port));
    let begun = Instant::now();
    let packets = forwarded(lab);
    let mut least = u32::MAX;
    while begun.elapsed() < Duration::from_secs(20) {
        let line = tracked().unwrap().text;
        least = least.min(line.split_ascii_whitespace().nth(4).unwrap().parse().unwrap());
        thread::sleep(Duration::from_millis(200));
    }
    let packets = forwarded(lab) - packets;
    let report = flow.stop();
    println!(
        "at least {least} s left of 14 in 20 s; {packets} packets forwarded; lost {} of {}",
        report.lost.len(),
        report.sent
    );
    assert!(packets > 6000, "{packets}");
    assert!(report.lost.is_empty(), "{report:?}");
    // Told for the last time up to ten seconds from here.
    thread::sleep(Duration::from_secs(10));
    wait("conntrack lets it go, and so does the cache", || Ok(entries(lab, "v4") == 0)).unwrap();
}

fn no_packet_leaves_by_a_dead_line(lab: &mut Lab) {
    let socket = datagrams(&lab.host(10), None, SocketAddr::new(WEB, 7001)).unwrap();
    let number = number_of(lab, seen_as(&socket, Duration::from_secs(3)).unwrap()).unwrap();
    let flow = UdpFlow::on(&socket, 1000).unwrap();
    wait("the flow is forwarded", || Ok(entries(lab, "v4") == 2)).unwrap();
    let script = "table netdev seen {\nchain ingress {\ntype filter hook ingress device \"cust\" priority -10\n\
                  udp dport 7001 counter\n}\n}\n";
    feed(Root::find().unwrap().command(&lab.isp(number), "nft").args(["-f", "-"]), script).unwrap();
    let seen = |lab: &Lab| {
        let listing =
            run(Root::find().unwrap().command(&lab.isp(number), "nft").args(["list", "table", "netdev", "seen"]));
        let listing = listing.unwrap();
        listing.split_whitespace().skip_while(|word| *word != "packets").nth(1).unwrap().parse::<u64>().unwrap()
    };
    wait("packets of the flow are seen at the ISP", || Ok(seen(lab) > 100)).unwrap();
    lab.fail(number, Fault::Blackhole).unwrap();
    wait_usable(lab, &format!("wan{number}"), "v4", false).unwrap();
    let after = seen(lab);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(seen(lab), after, "packets of the flow that left by the dead line");
    wait("the flow is forwarded by the other", || Ok(entries(lab, "v4") == 2)).unwrap();
    let report = flow.stop();
    println!("{} lost of {}, silence {:?}", report.lost.len(), report.sent, report.silence);
    assert!(report.silence < Duration::from_secs(3), "{report:?}");
}

/// Sends this much, and wants the same back.
fn transfer(stream: &mut TcpStream, bytes: usize) {
    let sent: Vec<u8> = (0..=250).cycle().take(bytes).collect();
    let mut back = vec![0; bytes];
    let mut out = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| out.write_all(&sent).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.read_exact(&mut back).unwrap();
    });
    assert!(sent == back, "what comes back is what was sent");
}

fn entries(lab: &Lab, family: &str) -> u64 {
    status(lab).unwrap()["fast_path"]["flows"][family].as_u64().unwrap_or(0)
}

fn forwarded(lab: &Lab) -> u64 {
    status(lab).unwrap()["fast_path"]["verdicts"]["forwarded"]["packets"].as_u64().unwrap_or(0)
}
