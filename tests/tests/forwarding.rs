//! What becomes of connections that leave by a line: which line they take, under which address, in what size.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;
use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::netns::run;
use tests::traffic::{Answer, Probe, UdpFlow, distribution, open, probe};

/// `office` is balanced, `voice` keeps a line per source, one destination has a line of its own.
const SITE: &str = r#"
[site]
name = "forwarding"

[router]
default_policy = "balanced"

[policy.balanced]
members = ["wan1", "wan2", "wan3", "wan4"]

[policy.sticky]
members = ["wan1", "wan2", "wan3", "wan4"]
balance = "source"

[policy.third]
members     = ["wan3"]
last_resort = "unreachable"

[vlan.office]
id        = 10
addresses = ["10.0.10.1/24", "fd10:10:10::1/64"]
access    = ["eth2"]
internet  = "any"

[vlan.voice]
id        = 20
addresses = ["10.0.20.1/24", "fd10:10:20::1/64"]
access    = ["eth3"]
internet  = "any"

[[steer]]
name        = "bank"
destination = ["198.51.100.9", "2001:db8:100::9"]
services    = ["tcp/8443"]
policy      = "third"

[[steer]]
name   = "voice"
from   = "voice"
policy = "sticky"

[wan.wan1]
interface = "wan1"
mtu       = 1400
nat6      = { internal = "fd10:10:10::/64", external = "2001:db8:aa01::/64" }
[wan.wan2]
interface = "wan2"
mtu       = 1400
nat6      = { internal = "fd10:10:10::/64", external = "2001:db8:aa02::/64" }
[wan.wan3]
interface = "wan3"
mtu       = 1400
nat6      = { internal = "fd10:10:10::/64", external = "2001:db8:aa03::/64" }
[wan.wan4]
interface = "wan4"
mtu       = 1400
nat6      = { internal = "fd10:10:10::/64", external = "2001:db8:aa04::/64" }
"#;

const WEB4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));
const WEB6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 1));
const BANK4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 9));

#[test]
fn connections_take_the_line_address_and_size_that_the_file_says() {
    let Some(mut lab) = Temporary::routed(SITE, 4, false).unwrap() else { return };
    route_prefixes(&lab);

    steering_and_stickiness_choose_the_line(&lab);
    the_routers_own_connections_share_the_lines(&lab);
    an_inside_prefix_leaves_as_the_prefix_of_its_line(&lab);
    segments_fit_the_line(&lab);
    a_drained_line_keeps_its_flows_and_gets_no_others(&lab);
    the_last_resort_answers_at_once(&mut lab);
}

fn steering_and_stickiness_choose_the_line(lab: &Lab) {
    let third = own(lab, 3);
    let bank = distribution(&lab.host(10), SocketAddr::new(BANK4, 8443), 20).unwrap();
    assert_eq!(bank.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([third]), "a steered destination");
    let other_port = distribution(&lab.host(10), SocketAddr::new(BANK4, 443), 40).unwrap();
    assert_eq!(other_port.len(), 4, "another port of it is balanced: {other_port:?}");
    let voice = distribution(&lab.host(20), SocketAddr::new(WEB4, 443), 40).unwrap();
    assert_eq!(voice.len(), 1, "one source keeps one line: {voice:?}");
}

fn the_routers_own_connections_share_the_lines(lab: &Lab) {
    for target in [WEB4, WEB6] {
        let seen = distribution(&lab.router(), SocketAddr::new(target, 443), 40).unwrap();
        let lines: BTreeSet<_> =
            seen.keys().filter_map(|address| lab.site().wan_of(*address)).map(|w| w.number).collect();
        assert_eq!(lines, BTreeSet::from([1, 2, 3, 4]), "{target}: {seen:?}");
    }
}

fn an_inside_prefix_leaves_as_the_prefix_of_its_line(lab: &Lab) {
    let inside = lab.site().vlans.iter().find(|vlan| vlan.id == 10).and_then(|vlan| vlan.address(true)).unwrap();
    let IpAddr::V6(inside) = inside else { panic!("an IPv6 address was asked for") };
    let host = u64::try_from(inside.to_bits() & u128::from(u64::MAX)).unwrap();
    let seen = distribution(&lab.host(10), SocketAddr::new(WEB6, 443), 40).unwrap();
    let expected: BTreeSet<IpAddr> = (1..=4u128)
        .map(|n| 0x2001_0db8_aa00_u128 << 80 | n << 80 | u128::from(host))
        .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
        .collect();
    assert_eq!(
        seen.keys().copied().collect::<BTreeSet<_>>(),
        expected,
        "the host part stays, the prefix is the line's"
    );
}

fn segments_fit_the_line(lab: &Lab) {
    for (target, headers) in [(WEB4, 40), (WEB6, 60)] {
        let (stream, _) = open(&lab.host(10), SocketAddr::new(target, 443), Duration::from_secs(3)).unwrap();
        let segment = getsockopt(&stream, TcpMaxSeg).unwrap();
        println!("{target}: segments of {segment} bytes");
        assert!(segment <= 1400 - headers, "{target}: {segment}");
    }
}

fn a_drained_line_keeps_its_flows_and_gets_no_others(lab: &Lab) {
    let flows: Vec<_> =
        (0..8).map(|_| UdpFlow::start(&lab.host(10), None, SocketAddr::new(WEB4, 7), 100).unwrap()).collect();
    thread::sleep(Duration::from_millis(200));
    run(lab.routerctl().unwrap().args(["wan", "drain", "wan2"])).unwrap();
    thread::sleep(Duration::from_millis(200));
    let seen = distribution(&lab.host(10), SocketAddr::new(WEB4, 443), 60).unwrap();
    assert!(!seen.contains_key(&own(lab, 2)), "no connection takes the drained line: {seen:?}");
    assert_eq!(seen.len(), 3);
    for flow in flows {
        let report = flow.stop();
        assert!(report.lost.is_empty(), "flows of all lines go on: {report:?}");
    }
    run(lab.routerctl().unwrap().args(["wan", "undrain", "wan2"])).unwrap();
}

fn the_last_resort_answers_at_once(lab: &mut Lab) {
    lab.fail(3, Fault::Carrier).unwrap();
    // Until routerd has seen the carrier go, the packet may be on its way into nothing.
    let mut answers = Vec::new();
    for _ in 0..20 {
        let answer = probe(&lab.host(10), None, BANK4, Probe::Tcp(8443), Duration::from_millis(500)).unwrap();
        answers.push(answer);
        if answers.last() == Some(&Answer::Unreachable) {
            lab.heal(3).unwrap();
            return;
        }
    }
    panic!("no line is left, and the client is not told: {answers:?}");
}

/// What the Internet sees of a line in IPv4.
fn own(lab: &Lab, number: u8) -> IpAddr {
    lab.site().wans.iter().find(|wan| wan.number == number).unwrap().router4.addr().into()
}

/// The providers route a prefix to each line; the lab knows only the lines' own addresses.
fn route_prefixes(lab: &Lab) {
    for wan in &lab.site().wans {
        let n = wan.number;
        let back =
            run(lab.internet().command("ip").args(["-6", "-o", "route", "show", &wan.router6.trunc().to_string()]))
                .unwrap();
        let via: Vec<_> =
            back.split_whitespace().skip(1).take_while(|word| *word != "metric" && *word != "proto").collect();
        lab.internet().ip(&format!("route add 2001:db8:aa0{n}::/64 {}", via.join(" "))).unwrap();
        lab.isp(n).ip(&format!("route add 2001:db8:aa0{n}::/64 via {}", wan.router6.addr())).unwrap();
    }
}
