//! Golden packets: each goes through the programs in the kernel (`BPF_PROG_TEST_RUN`), and what comes out is compared
//! byte by byte with a packet written from scratch, so that every checksum is one computed whole. Every verdict has
//! its packets and its counter. What a test run cannot show goes over wires in a namespace. Needs root.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "the helpers of a test fail it, or say why they skip")]

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use abi::{
    Bucket, Count, Denied, Flow, Handshake, Home, Key4, Key6, LineCount, OUTSIDE, Passive, PortKey, Rewrite, Settings,
    Silence, Source, Verdict, Zone, checksum, name, pair, slot,
};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, RingBuf};
use aya::programs::{SchedClassifier, TcAttachType, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use craft::{Address, Craft, internet_checksum};
use ebpf::abi;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

#[path = "../programs/programs/src/craft.rs"]
#[expect(unreachable_pub, reason = "in the library it is public")]
mod craft;

/// Which programs a packet goes through. A frame with a tag goes only through XDP: a test run has no way to say that a
/// tag lies beside the frame, as TC has it. Nor does it give TC a frame that is cut within the IP header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    Both,
    Xdp,
    Tc,
}

struct Case {
    name: &'static str,
    through: Through,
    packet: Craft,
    /// Bytes to be spoilt, and the length to cut the frame to.
    spoil: fn(&mut Vec<u8>),
    zone: Option<Zone>,
    flow: Option<Flow>,
    settings: Settings,
    expect: Expect,
}

enum Expect {
    /// Left to the kernel, or dropped.
    Verdict(Verdict),
    /// Forwarded, and these are its bytes.
    Sent(Craft),
}

#[test]
fn every_packet_meets_its_verdict() {
    let Some(mut kernel) = Kernel::load() else { return };
    let mut met = BTreeSet::new();
    let cases = cases();
    for case in &cases {
        if case.through != Through::Tc {
            kernel.check(case, "xdp", &XDP);
        }
        if case.through != Through::Xdp && case.packet.tag.is_none() {
            kernel.check(case, "tc", &TC);
        }
        met.insert(match case.expect {
            Expect::Verdict(verdict) => verdict,
            Expect::Sent(_) => Verdict::Forwarded,
        });
    }
    assert_eq!(met, Verdict::ALL.into_iter().collect(), "every verdict has its packet");
    println!("{} cases", cases.len());
}

fn cases() -> Vec<Case> {
    let mut cases = left();
    cases.extend(denied());
    cases.extend(forwarded());
    cases
}

fn left() -> Vec<Case> {
    use Verdict::{
        Bridged, Fragment, IpOptions, Malformed, NoFlow, NotIp, OddTag, OtherProtocol, StaleFlow, TcpControl, TooLong,
        TtlExpires, WrongPort,
    };
    let known = |name, packet: Craft, verdict| Case { flow: Some(same(&packet)), ..case(name, packet, verdict) };
    let udp4 = Craft { protocol: 17, ..TCP4 };
    let tagged = Craft { tag: Some(7), ..TCP4 };
    let flow4 = same(&TCP4);
    let with = |name, packet, verdict, flow| Case { flow: Some(flow), ..case(name, packet, verdict) };
    let spoilt = |name, packet: Craft, verdict, spoil| Case { spoil, ..known(name, packet, verdict) };
    let ours = |name, packet, verdict| Case { zone: Some(VLAN), ..case(name, packet, verdict) };
    vec![
        spoilt("ARP", TCP4, NotIp, |bytes| bytes[12..14].copy_from_slice(&[0x08, 0x06])),
        spoilt("LLDP", TCP4, NotIp, |bytes| bytes[12..14].copy_from_slice(&[0x88, 0xcc])),
        spoilt("tagged ARP", tagged, NotIp, |bytes| bytes[16..18].copy_from_slice(&[0x08, 0x06])),
        spoilt("two tags", tagged, OddTag, |bytes| bytes[16..18].copy_from_slice(&[0x81, 0x00])),
        spoilt("a provider's tag", tagged, OddTag, |bytes| bytes[12..14].copy_from_slice(&[0x88, 0xa8])),
        Case {
            through: Through::Tc,
            ..spoilt("a tag within the frame", TCP4, OddTag, |bytes| drop(bytes.splice(12..12, [0x81, 0, 0, 7])))
        },
        Case { through: Through::Xdp, ..spoilt("cut in the IPv4 header", TCP4, Malformed, |bytes| bytes.truncate(33)) },
        Case { through: Through::Xdp, ..spoilt("cut in the IPv6 header", TCP6, Malformed, |bytes| bytes.truncate(53)) },
        spoilt("cut in the TCP header", TCP4, Malformed, |bytes| bytes.truncate(14 + 20 + 19)),
        spoilt("cut in the UDP header", udp4, Malformed, |bytes| bytes.truncate(14 + 20 + 7)),
        spoilt("cut in the payload", TCP4, Malformed, |bytes| bytes.truncate(bytes.len() - 1)),
        spoilt("cut in the tag", tagged, Malformed, |bytes| bytes.truncate(16)),
        spoilt("IP version 5", TCP4, Malformed, |bytes| bytes[14] = 0x55),
        spoilt("an IPv4 header of 16 bytes", TCP4, Malformed, |bytes| bytes[14] = 0x44),
        spoilt("a TCP header of 16 bytes", TCP4, Malformed, |bytes| bytes[14 + 20 + 12] = 0x40),
        spoilt("a TCP header beyond the packet", TCP6, Malformed, |bytes| bytes[14 + 40 + 12] = 0xf0),
        spoilt("UDP beyond the packet", udp4, Malformed, |bytes| bytes[14 + 20 + 4] = 9),
        known("the first fragment", Craft { fragment: 0x2000, ..udp4 }, Fragment),
        known("a later fragment", Craft { fragment: 7, ..udp4 }, Fragment),
        known("an IPv6 fragment", Craft { protocol: 44, ..TCP6 }, Fragment),
        known("IPv4 options", Craft { options: 2, ..TCP4 }, IpOptions),
        known("hop-by-hop options", Craft { protocol: 0, ..TCP6 }, IpOptions),
        known("a routing header", Craft { protocol: 43, ..TCP6 }, IpOptions),
        known("ICMP", Craft { protocol: 1, ..TCP4 }, OtherProtocol),
        known("ESP", Craft { protocol: 50, ..TCP6 }, OtherProtocol),
        known("SYN", Craft { flags: SYN, ..TCP4 }, TcpControl),
        known("FIN", Craft { flags: 0x11, ..TCP6 }, TcpControl),
        known("RST", Craft { flags: 0x04, ..TCP4 }, TcpControl),
        known("the last hop", Craft { hops: 1, ..TCP4 }, TtlExpires),
        known("the last hop of IPv6", Craft { hops: 1, ..TCP6 }, TtlExpires),
        known("no hop left", Craft { hops: 0, ..udp4 }, TtlExpires),
        case("no flow", TCP4, NoFlow),
        case("no IPv6 flow", TCP6, NoFlow),
        Case { settings: Settings { forward: 0, ..SETTINGS }, ..known("forwarding is off", TCP4, NoFlow) },
        with("an older generation", TCP4, StaleFlow, Flow { generation: GENERATION - 1, ..flow4 }),
        with("a generation to come", TCP4, StaleFlow, Flow { generation: GENERATION + 1, ..flow4 }),
        with("another line's generation", TCP4, StaleFlow, Flow { slot: slot(9, false), ..flow4 }),
        with("a slot beyond all", TCP4, StaleFlow, Flow { slot: abi::SLOTS, ..flow4 }),
        with("in by another port", TCP4, WrongPort, Flow { in_port: PORT + 1, ..flow4 }),
        with("in with another MAC", TCP4, WrongPort, Flow { in_mac: [2, 0, 0, 0, 0, 9], ..flow4 }),
        with("in with another tag", tagged, WrongPort, Flow { in_vlan: 8, ..same(&tagged) }),
        with("in with a tag", tagged, WrongPort, Flow { in_vlan: 0, ..same(&tagged) }),
        with("in without its tag", TCP4, WrongPort, Flow { in_vlan: 7, ..flow4 }),
        Case { through: Through::Xdp, ..with("out where XDP cannot", TCP4, WrongPort, Flow { out_port: 99, ..flow4 }) },
        with("a byte too long", TCP4, TooLong, Flow { mtu: 59, ..flow4 }),
        with("a byte too long, IPv6", TCP6, TooLong, Flow { mtu: 79, ..same(&TCP6) }),
        Case { through: Through::Xdp, ..known("in several pieces", Craft { payload: 6000, ..TCP4 }, TooLong) },
        ours("to another's MAC", Craft { to: [2, 0, 0, 0, 0, 9], ..TCP4 }, Bridged),
        ours("broadcast", Craft { to: [0xff; 6], protocol: 17, ..TCP4 }, Bridged),
        ours("multicast", Craft { to: [0x33, 0x33, 0, 0, 0, 1], protocol: 58, ..TCP6 }, Bridged),
        ours("another's MAC though the pair is denied", Craft { to: [4; 6], destination: HOST5, ..TCP4 }, Bridged),
        ours("to the router itself", Craft { destination: ROUTER3, flags: SYN, ..TCP4 }, TcpControl),
    ]
}

fn denied() -> Vec<Case> {
    use Verdict::{
        Bogon, DeniedPair, Fragment, IpOptions, NoFlow, OtherProtocol, Spoofed, TcpControl, TooManyNew, TtlExpires,
    };
    let on = |zone: Zone, name, packet: Craft, verdict| Case { zone: Some(zone), ..case(name, packet, verdict) };
    let vlan = |name, packet, verdict| on(VLAN, name, packet, verdict);
    let line = |name, packet, verdict| on(LINE, name, packet, verdict);
    let to5 = Craft { destination: HOST5, ..TCP4 };
    let to5v6 = Craft { destination: HOST5V6, ..TCP6 };
    let off = Settings { deny: 0, ..SETTINGS };
    let from_outside = Craft { source: SERVER, destination: PUBLIC, ..TCP4 };
    let from_outside6 = Craft { source: SERVER6, destination: HOST3V6, ..TCP6 };
    vec![
        vlan("a denied pair", to5, DeniedPair),
        vlan("a denied pair, IPv6", to5v6, DeniedPair),
        vlan("a denied pair, UDP", Craft { protocol: 17, ..to5 }, DeniedPair),
        vlan("a denied pair, ICMP", Craft { protocol: 1, ..to5 }, DeniedPair),
        vlan("a denied pair, SYN", Craft { flags: SYN, ..to5 }, DeniedPair),
        vlan("a denied pair, a fragment", Craft { fragment: 3, protocol: 17, ..to5 }, DeniedPair),
        vlan("a denied pair, options", Craft { options: 3, ..to5 }, DeniedPair),
        vlan("a denied pair, the last hop", Craft { hops: 1, ..to5 }, DeniedPair),
        vlan("a denied pair, an extension header", Craft { protocol: 60, ..to5v6 }, DeniedPair),
        vlan("a denied pair, tagged", Craft { tag: Some(30), ..to5 }, DeniedPair),
        vlan("an allowed pair", Craft { destination: HOST4, ..TCP4 }, NoFlow),
        vlan("an allowed pair, ICMP", Craft { destination: HOST4, protocol: 1, ..TCP4 }, OtherProtocol),
        vlan("an allowed pair, a fragment", Craft { destination: HOST4, fragment: 3, protocol: 17, ..TCP4 }, Fragment),
        vlan("an allowed pair, options", Craft { destination: HOST4, options: 1, ..TCP4 }, IpOptions),
        vlan("outside, allowed", TCP4, NoFlow),
        on(Zone { zone: 6, ..VLAN }, "outside, denied", Craft { source: HOST6, ..TCP4 }, DeniedPair),
        vlan("an address that two zones claim", Craft { destination: AMBIGUOUS, ..TCP4 }, NoFlow),
        vlan("a prefix that is nobody's", Craft { destination: BOGON, ..TCP4 }, NoFlow),
        vlan("the router's address in a denied zone", Craft { destination: ROUTER5, hops: 1, ..TCP4 }, TtlExpires),
        Case { settings: off, ..vlan("denying is off", to5, NoFlow) },
        case("a port of no zone", to5, NoFlow),
        vlan("another zone's source", Craft { source: HOST4, ..TCP4 }, Spoofed),
        vlan("another zone's source, IPv6", Craft { source: HOST5V6, ..TCP6 }, Spoofed),
        vlan("a source outside", Craft { source: SERVER, ..TCP4 }, Spoofed),
        vlan("a source that is nobody's", Craft { source: BOGON, protocol: 1, ..TCP4 }, Spoofed),
        vlan("a link-local source", Craft { source: LINK_LOCAL, ..TCP6 }, NoFlow),
        vlan("a source that two zones claim", Craft { source: AMBIGUOUS, ..TCP4 }, NoFlow),
        on(Zone { checks: 0, ..VLAN }, "sources are not checked", Craft { source: HOST4, ..TCP4 }, NoFlow),
        line("an inside source from outside", Craft { source: HOST3, ..from_outside }, Spoofed),
        line("an inside source from outside, IPv6", Craft { source: HOST3V6, ..from_outside6 }, Spoofed),
        line("a bogon", Craft { source: BOGON, ..from_outside }, Bogon),
        line("a bogon, UDP", Craft { source: BOGON, protocol: 17, ..from_outside }, Bogon),
        line("a bogon, IPv6", Craft { source: BOGON6, ..from_outside6 }, Bogon),
        on(Zone { checks: 0, ..LINE }, "bogons are not checked", Craft { source: BOGON, ..from_outside }, NoFlow),
        line("from outside", from_outside, NoFlow),
        line("from outside, IPv6", from_outside6, NoFlow),
        line("a SYN from outside", Craft { flags: SYN, ..from_outside }, TcpControl),
        line("a SYN too many", Craft { source: BUSY, flags: SYN, ..from_outside }, TooManyNew),
        line("a SYN too many, IPv6", Craft { source: BUSY6, flags: SYN, ..from_outside6 }, TooManyNew),
        line("a SYN-ACK is not counted", Craft { source: BUSY, flags: SYN_ACK, ..from_outside }, TcpControl),
        line("no connection is opened by UDP", Craft { source: BUSY, protocol: 17, ..from_outside }, NoFlow),
        on(
            Zone { checks: 0, ..LINE },
            "SYNs are not counted",
            Craft { source: BUSY, flags: SYN, ..from_outside },
            TcpControl,
        ),
    ]
}

fn forwarded() -> Vec<Case> {
    let udp4 = Craft { protocol: 17, ..TCP4 };
    let udp6 = Craft { protocol: 17, ..TCP6 };
    let tagged = |packet: Craft, tag| Craft { tag: Some(tag), ..packet };
    let mut cases = Vec::new();
    for (name, before) in [
        ("IPv4 TCP", TCP4),
        ("IPv4 UDP", udp4),
        ("IPv4 UDP without a checksum", Craft { unchecked: true, ..udp4 }),
        ("IPv6 TCP", TCP6),
        ("IPv6 UDP", udp6),
        ("an odd length", Craft { payload: 21, ..TCP4 }),
        ("no payload", Craft { payload: 0, ..TCP4 }),
        ("PSH ACK", Craft { flags: 0x18, ..TCP6 }),
        ("two hops left", Craft { hops: 2, ..TCP4 }),
        ("may not be fragmented", Craft { fragment: 0x4000, ..TCP4 }),
        ("a full packet", Craft { payload: 1460, ..TCP4 }),
        ("a full packet, IPv6", Craft { payload: 1440, ..TCP6 }),
    ] {
        let [address, other] = if v6(&before) { [SERVER6, PUBLIC6] } else { [SERVER, PUBLIC] };
        let [source, destination] = before.ports;
        for (direction, after, rewrite) in [
            ("as it is", before, Rewrite::Nothing),
            ("source", Craft { source: other, ports: [61_000, destination], ..before }, Rewrite::Source),
            ("destination", Craft { destination: address, ports: [source, 8_443], ..before }, Rewrite::Destination),
        ] {
            let name = Box::leak(format!("{name}, {direction}").into_boxed_str());
            cases.push(sent(name, before, after, rewrite));
        }
    }
    for (name, before, tag) in [
        ("a tag is taken off", tagged(TCP4, 7), None),
        ("a tag is put on", TCP4, Some(30)),
        ("a tag is changed", tagged(TCP4, 7), Some(30)),
        ("a tag stays", tagged(TCP4, 7), Some(7)),
        ("a tag is taken off IPv6", tagged(udp6, 7), None),
        ("a tag is put on IPv6", udp6, Some(30)),
        ("a tag is changed on IPv6", tagged(TCP6, 4094), Some(1)),
        ("a priority does not come along", tagged(TCP4, 0xe007), Some(30)),
        ("a tag that is but a priority is taken off", tagged(TCP4, 0xe000), None),
    ] {
        let source = if v6(&before) { PUBLIC6 } else { PUBLIC };
        let after = Craft { tag, source, ports: [61_000, before.ports[1]], ..before };
        cases.push(Case { through: Through::Xdp, ..sent(name, before, after, Rewrite::Source) });
    }
    cases
}

/// What the two programs answer to be told apart.
struct Answers {
    program: &'static str,
    pass: u32,
    drop: u32,
    redirect: u32,
}

const XDP: Answers = Answers { program: name::XDP_PORT, pass: 2, drop: 1, redirect: 4 };
const TC: Answers = Answers { program: name::TC_PORT, pass: u32::MAX, drop: 2, redirect: 7 };

#[test]
fn a_forwarded_packet_is_counted_in_its_flow_and_its_line() {
    let Some(mut kernel) = Kernel::load() else { return };
    for (answers, flags, sent, received) in [
        // What TC redirects passes the program of the line, which counts it.
        (&XDP, Flow::OUTWARD, 1, 0),
        (&TC, Flow::OUTWARD, 0, 0),
        (&XDP, 0, 0, 1),
        (&TC, 0, 0, 1),
    ] {
        kernel.reset();
        let flow = Flow { flags, ..same(&TCP4) };
        kernel.learn(&TCP4, flow);
        kernel.silence(SLOT, Silence { since: 5, flows: 1, told: 0 });
        let before = kernel.line(SLOT);
        assert_eq!(kernel.run(answers.program, &TCP4.bytes()).0, answers.redirect);
        let Flow { last_seen, packets, bytes, .. } = kernel.flow(&TCP4);
        assert_eq!((packets, bytes, last_seen > 0), (1, 60, true));
        let line = kernel.line(SLOT);
        let gained = |after: Count, before: Count| (after.packets - before.packets, after.bytes - before.bytes);
        assert_eq!(gained(line.sent, before.sent), (sent, sent * 60));
        assert_eq!(gained(line.received, before.received), (received, received * 60));
        assert_eq!(kernel.silences().get(&SLOT, 0).unwrap().since, if received > 0 { 0 } else { 5 });
    }
}

#[test]
fn a_denied_packet_is_recorded_once_in_a_while_and_always_counted() {
    let Some(mut kernel) = Kernel::load() else { return };
    kernel.reset();
    kernel.set(Settings { sample_ns: u32::MAX, ..SETTINGS });
    kernel.place(30, VLAN);
    kernel.place(0, VLAN);
    let denied = Craft { tag: Some(30), destination: HOST5, protocol: 17, ..TCP4 };
    let before = kernel.denials(pair(3, 5));
    for _ in 0..5 {
        assert_eq!(kernel.run(name::XDP_PORT, &denied.bytes()).0, XDP.drop);
    }
    let after = kernel.denials(pair(3, 5));
    assert_eq!((after.packets - before.packets, after.bytes - before.bytes), (5, 5 * 48));
    let records = kernel.denied();
    let [record] = &records[..] else { panic!("{records:?}") };
    let expected = Denied {
        at: record.at,
        port: PORT,
        verdict: Verdict::DeniedPair as u32,
        source: HOST3.padded(),
        destination: HOST5.padded(),
        source_port: 40_000_u16.to_be_bytes(),
        destination_port: 443_u16.to_be_bytes(),
        vlan: 30,
        from: 3,
        to: 5,
        length: 48,
        protocol: 17,
        family: 4,
        _0: [0; 2],
    };
    assert!(record.at > 0);
    assert_eq!(*record, expected);

    // Another pair has its own turn, and TC writes the same.
    let spoofed = Craft { source: SERVER6, protocol: 58, ..TCP6 };
    assert_eq!(kernel.run(name::TC_PORT, &spoofed.bytes()).0, TC.drop);
    let records = kernel.denied();
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!((record.from, record.to, record.verdict), (3, 3, Verdict::Spoofed as u32));
    assert_eq!((record.family, record.protocol, record.source), (6, 58, SERVER6.padded()));
    assert_eq!((record.source_port, record.destination_port), ([0; 2], [0; 2]));
}

#[test]
fn a_source_outside_opens_its_burst_and_no_more() {
    let Some(mut kernel) = Kernel::load() else { return };
    kernel.reset();
    kernel.set(Settings { new_per_second: 1, new_burst: 3, ..SETTINGS });
    kernel.place(0, LINE);
    let syn = Craft { source: SERVER, destination: PUBLIC, flags: SYN, ..TCP4 };
    let answers: Vec<_> = (0..5).map(|_| kernel.run(name::XDP_PORT, &syn.bytes()).0).collect();
    assert_eq!(answers, [XDP.pass, XDP.pass, XDP.pass, XDP.drop, XDP.drop]);
    let another = Craft { source: Address::V4([198, 51, 100, 8]), ..syn };
    assert_eq!(kernel.run(name::XDP_PORT, &another.bytes()).0, XDP.pass);
    kernel.set(Settings { new_per_second: 0, ..SETTINGS });
    assert_eq!(kernel.run(name::XDP_PORT, &syn.bytes()).0, XDP.pass, "0 is any");
}

#[test]
fn a_handshake_is_timed_unless_its_syn_was_sent_twice() {
    let Some(mut kernel) = Kernel::load() else { return };
    for (syn, server) in [
        (Craft { source: PUBLIC, destination: SERVER, flags: SYN, ..TCP4 }, SERVER),
        (Craft { source: HOST3V6, destination: SERVER6, flags: SYN, ..TCP6 }, SERVER6),
    ] {
        for (syns, samples) in [(1, 1), (2, 0), (3, 0)] {
            kernel.reset();
            kernel.place(0, LINE);
            for _ in 0..syns {
                kernel.run(name::TC_LINE, &syn.bytes());
            }
            let accepted = Craft {
                source: syn.destination,
                destination: syn.source,
                ports: [syn.ports[1], syn.ports[0]],
                flags: SYN_ACK,
                ..syn
            };
            for _ in 0..2 {
                assert_eq!(kernel.run(name::XDP_PORT, &accepted.bytes()).0, XDP.pass);
            }
            let records = kernel.passive();
            assert_eq!(records.len(), samples, "{syns} SYNs");
            for record in records {
                assert_eq!((record.kind, record.slot), (Passive::HANDSHAKE, slot(1, v6(&syn))));
                assert_eq!((record.remote, record.flows), (server.padded(), 0));
                assert!(record.span > 0 && record.span < 1_000_000_000, "{record:?}");
            }
        }
    }
}

#[test]
fn a_line_that_answers_nothing_is_told_of_once() {
    let Some(mut kernel) = Kernel::load() else { return };
    kernel.reset();
    // Long enough for forty packets on a machine that is emulated and busy.
    kernel.set(Settings { silence_ns: 500_000_000, silence_flows: 3, ..SETTINGS });
    kernel.place(0, LINE);
    let out = |port| Craft { source: PUBLIC, destination: SERVER, ports: [port, 443], ..TCP4 }.bytes();
    let before = kernel.line(SLOT);
    for port in 0..40 {
        kernel.run(name::TC_LINE, &out(port));
    }
    assert_eq!(kernel.passive(), [], "too early");
    std::thread::sleep(Duration::from_millis(700));
    kernel.run(name::TC_LINE, &out(1));
    kernel.run(name::TC_LINE, &out(2));
    let records = kernel.passive();
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!((record.kind, record.slot, record.remote), (Passive::SILENT, SLOT, [0; 16]));
    assert!(record.span >= 500_000_000 && record.flows >= 3, "{record:?}");
    assert_eq!(kernel.line(SLOT).sent.packets - before.sent.packets, 42);
    // Any packet that comes in ends it.
    kernel.run(name::XDP_PORT, &Craft { source: SERVER, destination: PUBLIC, protocol: 1, ..TCP4 }.bytes());
    assert_eq!(kernel.silences().get(&SLOT, 0).unwrap().since, 0);
    // Not so a probe, nor what goes to many: neither says anything of traffic.
    let silences = |kernel: &mut Kernel| kernel.silences().get(&SLOT, 0).unwrap().since;
    kernel.run(name::TC_LINE, &Craft { to: [0xff; 6], ..TCP4 }.bytes());
    assert_eq!(silences(&mut kernel), 0);
    kernel.run_marked(name::TC_LINE, &out(1), 1 << 31);
    assert_eq!(silences(&mut kernel), 0);
    kernel.run_marked(name::TC_LINE, &out(1), 1 << 30);
    assert!(silences(&mut kernel) > 0);
}

#[test]
fn a_segment_older_than_what_was_seen_was_sent_again() {
    let Some(mut kernel) = Kernel::load() else { return };
    for (packet, server, l4) in [(TCP4, SERVER, 14 + 20), (TCP6, SERVER6, 14 + 40)] {
        kernel.reset();
        kernel.learn(&packet, same(&packet));
        let before = kernel.line(SLOT);
        // In order; again, as a whole and in part; what follows the gap, what fills it; mere acknowledgements.
        for (at, data, again) in [
            (u32::MAX - 50, 100, 0),
            (u32::MAX - 50, 100, 1),
            (0, 60, 1),
            (150, 50, 0),
            (60, 90, 1),
            (60, 1, 0),
            (60, 0, 0),
        ] {
            let mut bytes = Craft { payload: data, ..packet }.bytes();
            bytes[l4 + 4..][..4].copy_from_slice(&at.to_be_bytes());
            assert_eq!(kernel.run(name::XDP_PORT, &bytes).0, XDP.redirect);
            let told = kernel.passive();
            assert_eq!(told.len(), again, "{at} {data}");
            for record in told {
                assert_eq!((record.kind, record.slot, record.remote), (Passive::RESENT, SLOT, server.padded()));
            }
        }
        let after = kernel.line(SLOT);
        assert_eq!((after.segments - before.segments, after.retransmits - before.retransmits), (5, 3));
    }
}

#[test]
fn segments_that_the_card_will_cut_need_only_fit_one_by_one() {
    let Some(mut kernel) = Kernel::load() else { return };
    let large = Craft { payload: 3000, ..TCP4 };
    for (segment, answer) in [(0, TC.pass), (1460, TC.redirect), (1461, TC.pass)] {
        kernel.reset();
        kernel.learn(&large, same(&large));
        let mut context = [0_u8; SKB];
        context[SKB_GSO_SEGS..][..4].copy_from_slice(&3_u32.to_ne_bytes());
        context[SKB_GSO_SIZE..][..4].copy_from_slice(&u32::to_ne_bytes(segment));
        assert_eq!(kernel.run_with(name::TC_PORT, &large.bytes(), Some(&context)).0, answer, "{segment}");
    }
}

/// Tags beside the frame, as only a real device makes them: in with tag 7, on with tag 30, out without any.
#[test]
fn tc_takes_tags_off_and_puts_them_on() {
    on_wires(|kernel, [a0, b0, b1, c0], all| {
        for (before, new) in [(TCP4, PUBLIC), (TCP6, PUBLIC6), (Craft { protocol: 17, payload: 1, ..TCP4 }, PUBLIC)] {
            let before = Craft { tag: Some(7), ..before };
            let between = Craft { tag: Some(30), source: new, ports: [61_000, before.ports[1]], ..before };
            let after = Craft { tag: None, destination: before.source, ports: [61_000, 8_443], ..between };
            let flow = |case: Case| case.flow.unwrap();
            let first = Flow { in_port: a0, out_port: b0, ..flow(sent("", before, between, Rewrite::Source)) };
            let second = Craft { to: FLOW.destination_mac, ..between };
            let last = Flow { in_port: b1, out_port: c0, ..flow(sent("", second, after, Rewrite::Destination)) };
            kernel.learn(&before, first);
            kernel.learn(&second, last);
            kernel.inject(a0, &before.bytes());
            let expected = Craft { hops: 62, to: FLOW.destination_mac, from: FLOW.source_mac, ..after }.bytes();
            assert!(heard(all, |frame| frame == expected).is_some(), "{before:?}");
            assert_eq!([kernel.flow(&before).packets, kernel.flow(&second).packets], [1, 1]);
        }
    });
}

/// A checksum that the card is to end holds but the addresses: changing it as if it were whole would spoil the packet.
#[test]
fn a_checksum_that_is_not_ended_yet_comes_out_right() {
    on_wires(|kernel, [a0, _, _, c0], all| {
        // So the kernel ends it on the way out.
        run("ethtool -K c0 tx off");
        for (before, new, gateway) in
            [(TCP4, PUBLIC, "10.3.0.9/24 198.51.100.7"), (TCP6, PUBLIC6, "2001:db8:3::9/64 2a02::abcd")]
        {
            let (own, server) = gateway.split_once(' ').unwrap();
            run(&format!("ip addr add {own} dev a1{}", if v6(&before) { " nodad" } else { "" }));
            run(&format!("ip route add {server} dev a1"));
            run(&format!("ip neigh add {server} lladdr 02:00:00:00:00:01 dev a1"));
            let before = Craft { protocol: 17, ..before };
            let after = Craft { source: new, ports: [61_000, before.ports[1]], ..before };
            let flow = sent("", before, after, Rewrite::Source).flow.unwrap();
            kernel.learn(&before, Flow { in_port: a0, out_port: c0, ..flow });
            let own = std::net::IpAddr::from_str(own.split('/').next().unwrap()).unwrap();
            let socket = std::net::UdpSocket::bind((own, before.ports[0])).unwrap();
            let server = std::net::IpAddr::from_str(server).unwrap();
            socket.send_to(&[7; 20], (server, before.ports[1])).unwrap();
            let ethernet = [&FLOW.destination_mac[..], &FLOW.source_mac, &before.bytes()[12..14]].concat();
            let ours = |frame: &[u8]| frame.starts_with(&ethernet);
            let frame = heard(all, ours).unwrap();
            let (addresses, l4) = if v6(&before) { (22, 54) } else { (26, 34) };
            assert_eq!(frame[addresses..l4], [new.bytes(), before.destination.bytes()].concat());
            assert_eq!(frame[l4..][..2], 61_000_u16.to_be_bytes());
            let length = u8::try_from(frame[l4..].len()).unwrap();
            assert_ne!(frame[l4 + 6..][..2], [0, 0]);
            assert_eq!(internet_checksum(&[&frame[addresses..], &[0, 17, 0, length]].concat()), 0, "{frame:02x?}");
            assert!(v6(&before) || internet_checksum(&frame[14..34]) == 0);
            assert_eq!(kernel.flow(&before).packets, 1);
        }
    });
}

/// In a namespace with three wires, `tc_port` at the beginning of the first and the end of the second, and a socket that
/// hears everything. The namespace is the thread's and goes with it.
fn on_wires(test: impl FnOnce(&mut Kernel, [u32; 4], &OwnedFd) + Send + 'static) {
    if !is_root() {
        return;
    }
    let ran = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let mut kernel = Kernel::load().unwrap();
        for (port, peer) in [("a0", "a1"), ("b0", "b1"), ("c0", "c1")] {
            run(&format!("ip link add {port} type veth peer name {peer}"));
            run(&format!("ip link set {port} up"));
            run(&format!("ip link set {peer} up"));
        }
        // Until the kernel has noticed that the wires are plugged in, it sends nothing.
        let until = Instant::now() + Duration::from_secs(10);
        while run("ip link show").matches("state UP").count() < 6 {
            assert!(Instant::now() < until, "wires without a carrier");
            std::thread::sleep(Duration::from_millis(5));
        }
        let program: &mut SchedClassifier = kernel.ebpf.program_mut(name::TC_PORT).unwrap().try_into().unwrap();
        for port in ["a0", "b1"] {
            program.attach(port, TcAttachType::Ingress).unwrap();
        }
        let all = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll).unwrap();
        let ports = ["a0", "b0", "b1", "c0"].map(|port| nix::net::if_::if_nametoindex(port).unwrap());
        test(&mut kernel, ports, &all);
    });
    if let Err(panic) = ran.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The first frame on any wire that is `wanted`, for as long as two seconds.
fn heard(all: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let mut frame = [0; 2048];
        match recv(all.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) if wanted(&frame[..length]) => return Some(frame[..length].to_vec()),
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    None
}

fn run(command: &str) -> String {
    let (program, arguments) = command.split_once(' ').unwrap();
    let out = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "this test must run, as root");
        println!("skipped: not root");
    }
    root
}

struct Kernel {
    ebpf: Ebpf,
    denied: RingBuf<MapData>,
    passive: RingBuf<MapData>,
    flows: Vec<Craft>,
    zones: BTreeSet<u16>,
}

impl Kernel {
    /// `None`, and why, where programs cannot be loaded.
    fn load() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(name::FLOWS4, 1024)
            .map_max_entries(name::FLOWS6, 1024)
            .load(ebpf::OBJECT)
            .unwrap();
        let xdp: &mut Xdp = ebpf.program_mut(name::XDP_PORT).unwrap().try_into().unwrap();
        xdp.load().unwrap();
        for name in [name::TC_PORT, name::TC_LINE] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let denied = RingBuf::try_from(ebpf.take_map(name::DENIED).unwrap()).unwrap();
        let passive = RingBuf::try_from(ebpf.take_map(name::PASSIVE).unwrap()).unwrap();
        let mut kernel = Self { ebpf, denied, passive, flows: Vec::new(), zones: BTreeSet::new() };
        kernel.furnish();
        Some(kernel)
    }

    /// What all cases share.
    fn furnish(&mut self) {
        let home = |zone, what| Home { zone, what };
        for (address, length, value) in [
            (HOST3, 16, home(3, Home::HOST)),
            (ROUTER3, 32, home(3, Home::LEAVE)),
            (HOST4, 16, home(4, Home::HOST)),
            (HOST5, 16, home(5, Home::HOST)),
            (ROUTER5, 32, home(5, Home::LEAVE)),
            (HOST6, 16, home(6, Home::HOST)),
            (AMBIGUOUS, 16, home(4, Home::AMBIGUOUS)),
            (Address::V4([10, 0, 0, 0]), 8, home(OUTSIDE, Home::BOGON)),
            (HOST3V6, 64, home(3, Home::HOST)),
            (HOST5V6, 64, home(5, Home::HOST)),
            (LINK_LOCAL, 10, home(OUTSIDE, Home::LEAVE)),
            (BOGON6, 16, home(OUTSIDE, Home::BOGON)),
        ] {
            match address {
                Address::V4(bytes) => {
                    let mut homes: LpmTrie<_, [u8; 4], Home> = self.map(name::HOMES4);
                    homes.insert(&Key::new(length, bytes), value, 0).unwrap();
                }
                Address::V6(bytes) => {
                    let mut homes: LpmTrie<_, [u8; 16], Home> = self.map(name::HOMES6);
                    homes.insert(&Key::new(length, bytes), value, 0).unwrap();
                }
            }
        }
        let mut pairs: Array<_, u32> = self.map(name::DENIED_PAIRS);
        for (from, to) in [(3, 5), (5, 3), (6, OUTSIDE)] {
            pairs.set(pair(from, to), abi::DENY, 0).unwrap();
        }
        let mut generations: Array<_, u32> = self.map(name::GENERATIONS);
        generations.set(SLOT, GENERATION, 0).unwrap();
        let mut ports: aya::maps::xdp::DevMapHash<_> = self.map(name::PORTS);
        ports.insert(PORT, PORT, None, 0).unwrap();
        let mut newcomers: HashMap<_, Source, Bucket> = self.map(name::NEWCOMERS);
        let empty = Bucket { tokens: 0, filled: u64::MAX };
        newcomers.insert(Source { address: [203, 0, 113, 66, 0, 0, 0, 0], family: 4 }, empty, 0).unwrap();
        newcomers.insert(Source { address: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 66], family: 6 }, empty, 0).unwrap();
        self.set(SETTINGS);
    }

    fn check(&mut self, case: &Case, program: &str, answers: &Answers) {
        self.reset();
        let name = format!("{}, {program}", case.name);
        let mut bytes = case.packet.bytes();
        (case.spoil)(&mut bytes);
        self.set(case.settings);
        if let Some(zone) = case.zone {
            self.place(case.packet.tag.unwrap_or(0) & 0xfff, zone);
        }
        if let Some(flow) = case.flow {
            self.learn(&case.packet, flow);
        }
        let before = self.verdicts();
        let (answer, out) = self.run(answers.program, &bytes);
        let counted: Vec<_> = Verdict::ALL
            .into_iter()
            .zip(before.into_iter().zip(self.verdicts()))
            .filter(|(_, (before, after))| before != after)
            .map(|(verdict, (before, after))| (verdict, after.packets - before.packets))
            .collect();
        let (verdict, expected_answer, expected) = match &case.expect {
            Expect::Sent(after) => (Verdict::Forwarded, answers.redirect, after.bytes()),
            Expect::Verdict(verdict) => (*verdict, if verdict.drops() { answers.drop } else { answers.pass }, bytes),
        };
        assert_eq!(counted, [(verdict, 1)], "{name}");
        assert_eq!(answer, expected_answer, "{name}");
        assert!(out == expected, "{name}:\n{out:02x?}\n{expected:02x?}");
        assert_eq!(self.denied().len(), usize::from(verdict.drops()), "{name}");
    }

    fn run(&mut self, program: &str, bytes: &[u8]) -> (u32, Vec<u8>) {
        self.run_with(program, bytes, None)
    }

    fn run_marked(&mut self, program: &str, bytes: &[u8], mark: u32) -> (u32, Vec<u8>) {
        let mut context = [0; SKB];
        context[SKB_MARK..][..4].copy_from_slice(&mark.to_ne_bytes());
        self.run_with(program, bytes, Some(&context))
    }

    /// Has a frame come in by a port: `xdp_port` finds that XDP cannot send it, and passes it to the kernel and TC.
    fn inject(&mut self, port: u32, bytes: &[u8]) {
        let end = u32::try_from(bytes.len()).unwrap();
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, end, 0, port, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let attrs = TestRunAttrs::new().xdp_live_frames(1);
        let options = TestRunOptions { data_in: Some(bytes), ctx_in: Some(&context), attrs, ..TestRunOptions::new() };
        let program: &mut Xdp = self.ebpf.program_mut(name::XDP_PORT).unwrap().try_into().unwrap();
        program.test_run(options).unwrap();
    }

    fn run_with(&mut self, program: &str, bytes: &[u8], context: Option<&[u8]>) -> (u32, Vec<u8>) {
        let mut out = vec![0; bytes.len() + 64];
        let options =
            TestRunOptions { data_in: Some(bytes), data_out: Some(&mut out), ctx_in: context, ..TestRunOptions::new() };
        let result = if program == name::XDP_PORT {
            let program: &mut Xdp = self.ebpf.program_mut(program).unwrap().try_into().unwrap();
            program.test_run(options).unwrap_or_else(|error| panic!("{error:?}: {bytes:02x?}"))
        } else {
            let program: &mut SchedClassifier = self.ebpf.program_mut(program).unwrap().try_into().unwrap();
            program.test_run(options).unwrap_or_else(|error| panic!("{error:?}: {bytes:02x?}"))
        };
        out.truncate(usize::try_from(result.data_size_out).unwrap());
        (result.return_value, out)
    }

    /// Forgets flows, zones, samples and records.
    fn reset(&mut self) {
        for craft in std::mem::take(&mut self.flows) {
            match keys(&craft) {
                Keys::V4(key) => self.map::<HashMap<_, Key4, Flow>>(name::FLOWS4).remove(&key).unwrap(),
                Keys::V6(key) => self.map::<HashMap<_, Key6, Flow>>(name::FLOWS6).remove(&key).unwrap(),
            }
        }
        for vlan in std::mem::take(&mut self.zones) {
            let mut zones: HashMap<_, PortKey, Zone> = self.map(name::ZONES);
            zones.remove(&PortKey { port: PORT, vlan, _0: 0 }).unwrap();
        }
        let mut handshakes: HashMap<_, Handshake, u64> = self.map(name::HANDSHAKES);
        let known: Vec<_> = handshakes.keys().collect::<Result<_, _>>().unwrap();
        for key in known {
            handshakes.remove(&key).unwrap();
        }
        let mut sampled: Array<_, u64> = self.map(name::SAMPLED);
        for (from, to) in [(3, 3), (3, 5), (6, OUTSIDE), (OUTSIDE, OUTSIDE), (OUTSIDE, 3)] {
            sampled.set(pair(from, to), 0, 0).unwrap();
        }
        self.silence(SLOT, Silence::default());
        self.set(SETTINGS);
        self.denied();
        self.passive();
    }

    fn learn(&mut self, craft: &Craft, flow: Flow) {
        match keys(craft) {
            Keys::V4(key) => self.map::<HashMap<_, Key4, Flow>>(name::FLOWS4).insert(key, flow, 0).unwrap(),
            Keys::V6(key) => self.map::<HashMap<_, Key6, Flow>>(name::FLOWS6).insert(key, flow, 0).unwrap(),
        }
        self.flows.push(*craft);
    }

    fn flow(&mut self, craft: &Craft) -> Flow {
        match keys(craft) {
            Keys::V4(key) => self.map::<HashMap<_, Key4, Flow>>(name::FLOWS4).get(&key, 0).unwrap(),
            Keys::V6(key) => self.map::<HashMap<_, Key6, Flow>>(name::FLOWS6).get(&key, 0).unwrap(),
        }
    }

    fn place(&mut self, vlan: u16, zone: Zone) {
        let mut zones: HashMap<_, PortKey, Zone> = self.map(name::ZONES);
        zones.insert(PortKey { port: PORT, vlan, _0: 0 }, zone, 0).unwrap();
        self.zones.insert(vlan);
    }

    fn set(&mut self, settings: Settings) {
        self.map::<Array<_, Settings>>(name::SETTINGS).set(0, settings, 0).unwrap();
    }

    fn silence(&mut self, slot: u32, silence: Silence) {
        self.silences().set(slot, silence, 0).unwrap();
    }

    fn silences(&mut self) -> Array<&mut MapData, Silence> {
        self.map(name::SILENCES)
    }

    fn verdicts(&mut self) -> Vec<Count> {
        let counts: PerCpuArray<_, Count> = self.map(name::VERDICTS);
        (0..Verdict::COUNT).map(|verdict| sum(counts.get(&verdict, 0).unwrap().iter())).collect()
    }

    fn denials(&mut self, pair: u32) -> Count {
        let counts: PerCpuArray<_, Count> = self.map(name::DENIALS);
        sum(counts.get(&pair, 0).unwrap().iter())
    }

    fn line(&mut self, slot: u32) -> LineCount {
        let counts: PerCpuArray<_, LineCount> = self.map(name::LINES);
        let counts = counts.get(&slot, 0).unwrap();
        let [sent, received] =
            [sum(counts.iter().map(|line| &line.sent)), sum(counts.iter().map(|line| &line.received))];
        let segments = counts.iter().map(|line| line.segments).sum();
        let retransmits = counts.iter().map(|line| line.retransmits).sum();
        LineCount { sent, received, segments, retransmits }
    }

    fn denied(&mut self) -> Vec<Denied> {
        std::iter::from_fn(|| self.denied.next().map(|item| Denied::from_bytes(&item).unwrap())).collect()
    }

    fn passive(&mut self) -> Vec<Passive> {
        std::iter::from_fn(|| self.passive.next().map(|item| Passive::from_bytes(&item).unwrap())).collect()
    }

    fn map<'a, T>(&'a mut self, name: &str) -> T
    where
        T: TryFrom<&'a mut aya::maps::Map, Error: std::fmt::Debug>,
    {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }
}

/// Whether its addresses are of IPv6.
fn v6(craft: &Craft) -> bool {
    matches!(craft.source, Address::V6(_))
}

enum Keys {
    V4(Key4),
    V6(Key6),
}

fn keys(craft: &Craft) -> Keys {
    let [source_port, destination_port] = craft.ports.map(u16::to_be_bytes);
    let protocol = craft.protocol;
    match (craft.source, craft.destination) {
        (Address::V4(source), Address::V4(destination)) => {
            Keys::V4(Key4 { source, destination, source_port, destination_port, protocol, _0: [0; 3] })
        }
        (source, destination) => Keys::V6(Key6 {
            source: source.padded(),
            destination: destination.padded(),
            source_port,
            destination_port,
            protocol,
            _0: [0; 3],
        }),
    }
}

fn sum<'a>(counts: impl Iterator<Item = &'a Count>) -> Count {
    counts.fold(Count::default(), |sum, count| Count {
        packets: sum.packets + count.packets,
        bytes: sum.bytes + count.bytes,
    })
}

/// The flow that sends a packet on as it is, but for its hop and MACs.
fn same(packet: &Craft) -> Flow {
    Flow { in_vlan: packet.tag.unwrap_or(0) & 0xfff, in_mac: packet.to, ..FLOW }
}

fn case(name: &'static str, packet: Craft, verdict: Verdict) -> Case {
    let (through, zone, flow) = (Through::Both, None, None);
    Case { name, through, packet, spoil: |_| (), zone, flow, settings: SETTINGS, expect: Expect::Verdict(verdict) }
}

/// A packet that leaves as `after`, a hop later and from the router's MAC.
fn sent(name: &'static str, before: Craft, after: Craft, rewrite: Rewrite) -> Case {
    let ends = |craft: &Craft| match rewrite {
        Rewrite::Nothing | Rewrite::Source => (craft.source, craft.ports[0]),
        Rewrite::Destination => (craft.destination, craft.ports[1]),
    };
    let ((old, old_port), (new, port)) = (ends(&before), ends(&after));
    let ip_delta = checksum::delta(old.bytes(), new.bytes());
    let l4_delta = checksum::add(ip_delta, checksum::delta(&old_port.to_be_bytes(), &port.to_be_bytes()));
    let flow = Flow {
        out_vlan: after.tag.unwrap_or(0),
        rewrite: rewrite as u8,
        address: new.padded(),
        port: port.to_be_bytes(),
        ip_delta,
        l4_delta,
        ..same(&before)
    };
    let after = Craft { hops: before.hops - 1, to: FLOW.destination_mac, from: FLOW.source_mac, ..after };
    Case { flow: Some(flow), expect: Expect::Sent(after), ..case(name, before, Verdict::Forwarded) }
}

/// The loopback interface, by which test runs come in.
const PORT: u32 = 1;
const GENERATION: u32 = 5;
const SLOT: u32 = slot(1, false);

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// `struct __sk_buff`, and where the fields are in it that a test run may set.
const SKB: usize = 192;
const SKB_MARK: usize = 8;
const SKB_GSO_SEGS: usize = 164;
const SKB_GSO_SIZE: usize = 176;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const VLAN: Zone = Zone { zone: 3, wan: 0, checks: Zone::SPOOF, mac: MAC, _0: 0 };
const LINE: Zone = Zone { zone: OUTSIDE, wan: 1, checks: Zone::BOGONS | Zone::RATE, mac: MAC, _0: 0 };

const HOST3: Address = Address::V4([10, 3, 0, 9]);
const ROUTER3: Address = Address::V4([10, 3, 0, 1]);
const HOST4: Address = Address::V4([10, 4, 0, 9]);
const HOST5: Address = Address::V4([10, 5, 0, 9]);
const ROUTER5: Address = Address::V4([10, 5, 0, 1]);
const HOST6: Address = Address::V4([10, 6, 0, 9]);
const AMBIGUOUS: Address = Address::V4([10, 7, 0, 9]);
const BOGON: Address = Address::V4([10, 200, 0, 9]);
const SERVER: Address = Address::V4([198, 51, 100, 7]);
const PUBLIC: Address = Address::V4([192, 0, 2, 17]);
/// Its bucket is empty.
const BUSY: Address = Address::V4([203, 0, 113, 66]);
const HOST3V6: Address = Address::V6([0x20, 1, 0xd, 0xb8, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
const HOST5V6: Address = Address::V6([0x20, 1, 0xd, 0xb8, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
const LINK_LOCAL: Address = Address::V6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
const BOGON6: Address = Address::V6([0x3f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
const SERVER6: Address = Address::V6([0x2a, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xab, 0xcd]);
const PUBLIC6: Address = Address::V6([0x2a, 3, 0, 7, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
const BUSY6: Address = Address::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 66, 0, 0, 0, 0, 0, 0, 0, 9]);

const TCP4: Craft = Craft {
    to: MAC,
    from: [2, 0, 0, 0, 0, 2],
    tag: None,
    source: HOST3,
    destination: SERVER,
    protocol: 6,
    ports: [40_000, 443],
    hops: 64,
    fragment: 0,
    options: 0,
    flags: 0x10,
    payload: 20,
    unchecked: false,
};
const TCP6: Craft = Craft { source: HOST3V6, destination: SERVER6, ..TCP4 };

const FLOW: Flow = Flow {
    generation: GENERATION,
    slot: SLOT,
    in_port: PORT,
    out_port: PORT,
    mtu: 1500,
    flags: Flow::OUTWARD,
    in_mac: MAC,
    destination_mac: [2, 0, 0, 0, 1, 6],
    source_mac: [2, 0, 0, 0, 1, 8],
    ..Flow::EMPTY
};

const SETTINGS: Settings = Settings {
    forward: 1,
    deny: 1,
    silence_ns: 0,
    silence_flows: 0,
    new_per_second: 100,
    new_burst: 100,
    sample_ns: 0,
};
