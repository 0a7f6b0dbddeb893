use std::vec::Vec;

use abi::{Bucket, Flow, Home, OUTSIDE, Rewrite, Settings, Silence, Verdict, Zone, checksum};
use proptest::prelude::*;

use crate::craft::{Address, Craft, internet_checksum};
use crate::decide;
use crate::packet::{Frame, Packet, Tag, parse};
use crate::rewrite;

#[test]
fn a_packet_is_read_in_both_families_tagged_or_not() {
    for (name, craft) in [
        ("IPv4 TCP", TCP4),
        ("IPv4 UDP", Craft { protocol: 17, ..TCP4 }),
        ("tagged", Craft { tag: Some(30), ..TCP4 }),
        ("tagged with a priority", Craft { tag: Some(0xe000 | 30), ..TCP4 }),
        ("priority only", Craft { tag: Some(0xe000), ..TCP4 }),
        ("IPv6 TCP", TCP6),
        ("IPv6 UDP", Craft { protocol: 17, ..TCP6 }),
        ("IPv6 tagged", Craft { tag: Some(4094), ..TCP6 }),
    ] {
        let mut bytes = craft.bytes();
        let ip = if craft.tag.is_some() { 18 } else { 14 };
        let length = bytes.len() - ip;
        let packet = read(&mut bytes).unwrap();
        let expected = Packet {
            ip,
            vlan: craft.tag.unwrap_or(0) & 0xfff,
            v6: v6(&craft),
            protocol: craft.protocol,
            flags: if craft.protocol == 6 { craft.flags } else { 0 },
            length: u32::try_from(length).unwrap(),
            source_port: craft.ports[0].to_be(),
            destination_port: craft.ports[1].to_be(),
            left: Verdict::Forwarded,
        };
        assert_eq!(packet, expected, "{name}");
    }
}

#[test]
fn what_the_kernel_does_better_is_left_to_it() {
    let udp = Craft { protocol: 17, ..TCP4 };
    for (name, craft, left) in [
        ("SYN", Craft { flags: 0x02, ..TCP4 }, Verdict::TcpControl),
        ("SYN ACK", Craft { flags: 0x12, ..TCP4 }, Verdict::TcpControl),
        ("FIN ACK", Craft { flags: 0x11, ..TCP4 }, Verdict::TcpControl),
        ("RST", Craft { flags: 0x04, ..TCP6 }, Verdict::TcpControl),
        ("PSH ACK", Craft { flags: 0x18, ..TCP4 }, Verdict::Forwarded),
        ("the last hop", Craft { hops: 1, ..TCP4 }, Verdict::TtlExpires),
        ("no hop", Craft { hops: 0, ..TCP6 }, Verdict::TtlExpires),
        ("two hops", Craft { hops: 2, ..udp }, Verdict::Forwarded),
        ("first fragment", Craft { fragment: 0x2000, ..udp }, Verdict::Fragment),
        ("later fragment", Craft { fragment: 0x0010, ..udp }, Verdict::Fragment),
        ("may not be fragmented", Craft { fragment: 0x4000, ..udp }, Verdict::Forwarded),
        ("IPv6 fragment", Craft { protocol: 44, ..TCP6 }, Verdict::Fragment),
        ("options", Craft { options: 1, ..TCP4 }, Verdict::IpOptions),
        ("hop by hop", Craft { protocol: 0, ..TCP6 }, Verdict::IpOptions),
        ("routing", Craft { protocol: 43, ..TCP6 }, Verdict::IpOptions),
        ("ICMP", Craft { protocol: 1, ..TCP4 }, Verdict::OtherProtocol),
        ("ICMPv6", Craft { protocol: 58, ..TCP6 }, Verdict::OtherProtocol),
        ("ESP", Craft { protocol: 50, ..TCP6 }, Verdict::OtherProtocol),
    ] {
        assert_eq!(read(&mut craft.bytes()).map(|packet| packet.left), Ok(left), "{name}");
    }
}

#[test]
fn no_packet_that_is_cut_short_is_sound() {
    for craft in [TCP4, TCP6, Craft { tag: Some(7), protocol: 17, ..TCP4 }, Craft { tag: Some(7), ..TCP6 }] {
        let whole = craft.bytes();
        for length in 0..whole.len() {
            let mut cut = Vec::from(&whole[..length]);
            assert_eq!(read(&mut cut), Err(Verdict::Malformed), "{length} of {craft:?}");
        }
    }
}

#[test]
fn lengths_that_contradict_each_other_are_malformed() {
    let udp = Craft { protocol: 17, ..TCP4 };
    for (name, craft, at, value) in [
        ("version 5", TCP4, 14, 0x55),
        ("version 4 in IPv6", TCP6, 14, 0x40),
        ("IPv4 header of 16 bytes", TCP4, 14, 0x44),
        ("IPv4 header longer than the packet", TCP4, 17, 20 - 1),
        ("TCP header of 16 bytes", TCP4, 14 + 20 + 12, 0x40),
        ("TCP header longer than the packet", TCP4, 14 + 20 + 12, 0xf0),
        ("UDP of 7 bytes", udp, 14 + 20 + 5, 7),
        ("UDP longer than the packet", udp, 14 + 20 + 4, 9),
        ("IPv6 longer than the frame", TCP6, 14 + 4, 9),
    ] {
        let mut bytes = craft.bytes();
        bytes[at] = value;
        assert_eq!(read(&mut bytes), Err(Verdict::Malformed), "{name}");
    }
}

#[test]
fn padding_is_no_part_of_the_packet() {
    let mut bytes = Craft { payload: 0, ..TCP4 }.bytes();
    bytes.resize(60, 0);
    assert_eq!(read(&mut bytes).map(|packet| packet.length), Ok(40));
}

#[test]
fn tags_within_tags_are_odd() {
    for (outer, inner) in [(0x8100, 0x8100), (0x8100, 0x88a8), (0x88a8, 0x0800)] {
        let mut bytes = Craft { tag: Some(5), ..TCP4 }.bytes();
        bytes[12..14].copy_from_slice(&u16::to_be_bytes(outer));
        bytes[16..18].copy_from_slice(&u16::to_be_bytes(inner));
        assert_eq!(read(&mut bytes), Err(Verdict::OddTag), "{outer:x} {inner:x}");
    }
    let mut bytes = Craft { tag: Some(5), ..TCP4 }.bytes();
    let length = bytes.len();
    assert_eq!(parse(Frame::from(&mut bytes[..]), Tag::beside(6), length), Err(Verdict::OddTag));
}

#[test]
fn the_tag_beside_the_frame_counts() {
    let mut bytes = TCP4.bytes();
    let length = bytes.len();
    assert_eq!(parse(Frame::from(&mut bytes[..]), Tag::beside(6), length).map(|packet| packet.vlan), Ok(6));
}

#[test]
fn all_that_is_not_ip_is_left_alone() {
    for ethertype in [0x0806, 0x88cc, 0x8863, 0x0005] {
        let mut bytes = TCP4.bytes();
        bytes[12..14].copy_from_slice(&u16::to_be_bytes(ethertype));
        assert_eq!(read(&mut bytes), Err(Verdict::NotIp), "{ethertype:x}");
        let mut bytes = Craft { tag: Some(5), ..TCP4 }.bytes();
        bytes[16..18].copy_from_slice(&u16::to_be_bytes(ethertype));
        assert_eq!(read(&mut bytes), Err(Verdict::NotIp), "tagged {ethertype:x}");
    }
}

#[test]
fn a_source_must_live_where_it_comes_from() {
    let vlan = Zone { zone: 3, wan: 0, checks: Zone::SPOOF, mac: [2; 6], _0: 0 };
    let line = Zone { zone: OUTSIDE, wan: 1, checks: Zone::BOGONS, mac: [2; 6], _0: 0 };
    let home = |zone, what| Home { zone, what };
    for (name, zone, home, expected) in [
        ("own", vlan, home(3, Home::HOST), Ok(())),
        ("another's", vlan, home(4, Home::HOST), Err(Verdict::Spoofed)),
        ("outside", vlan, home(OUTSIDE, Home::HOST), Err(Verdict::Spoofed)),
        ("bogon", vlan, home(OUTSIDE, Home::BOGON), Err(Verdict::Spoofed)),
        ("left alone", vlan, home(4, Home::LEAVE), Ok(())),
        ("claimed by two", vlan, home(4, Home::AMBIGUOUS), Ok(())),
        ("unchecked", Zone { checks: 0, ..vlan }, home(4, Home::HOST), Ok(())),
        ("outside, on a line", line, home(OUTSIDE, Home::HOST), Ok(())),
        ("inside, on a line", line, home(3, Home::HOST), Err(Verdict::Spoofed)),
        ("bogon, on a line", line, home(OUTSIDE, Home::BOGON), Err(Verdict::Bogon)),
        ("bogon, on a line in a private network", Zone { checks: 0, ..line }, home(OUTSIDE, Home::BOGON), Ok(())),
        ("the router's own, on a line", line, home(3, Home::LEAVE), Ok(())),
    ] {
        assert_eq!(decide::source(&zone, home), expected, "{name}");
    }
}

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let settings = Settings { new_per_second: 10, new_burst: 3, ..SETTINGS };
    let mut bucket = Bucket { tokens: 3 * decide::CONNECTION, filled: 5 * SECOND };
    let mut take = |at| decide::take(&mut bucket, &settings, at);
    assert_eq!([take(5 * SECOND), take(5 * SECOND), take(5 * SECOND), take(5 * SECOND)], [true, true, true, false]);
    assert!(!take(5 * SECOND + 99_000_000));
    assert!(take(5 * SECOND + 101_000_000));
    // Nobody saves more than the burst, and a clock that goes back gives nothing.
    let late = 100_000 * SECOND;
    assert_eq!([take(late), take(late), take(late), take(late), take(SECOND)], [true, true, true, false, false]);
}

#[test]
fn a_line_is_silent_when_enough_flows_heard_nothing_for_long_enough() {
    let settings = Settings { silence_ns: 2 * SECOND, silence_flows: 3, ..SETTINGS };
    let mut silence = Silence::default();
    let mut sends = |hash, at| decide::grows_silent(&mut silence, &settings, hash, at);
    assert!(!sends(1, SECOND));
    assert!(!sends(2, 2 * SECOND));
    assert!(!sends(2, 9 * SECOND), "two flows");
    assert!(sends(3, 9 * SECOND));
    assert!(!sends(4, 10 * SECOND), "said once");
}

proptest! {
    /// NAT by deltas gives what the checksums computed anew are, bit for bit.
    #[test]
    fn deltas_are_the_checksums_of_the_packet_as_it_leaves(
        v6 in any::<bool>(), tcp in any::<bool>(), source_side in any::<bool>(), tag in any::<bool>(),
        addresses in any::<[[u8; 16]; 3]>(), ports in any::<[u16; 3]>(), hops in 2_u8.., payload in 0_usize..64,
    ) {
        let address = |bytes: [u8; 16]| match v6 {
            true => Address::V6(bytes),
            false => Address::V4([bytes[0], bytes[1], bytes[2], bytes[3]]),
        };
        let before = Craft {
            tag: tag.then_some(9), source: address(addresses[0]), destination: address(addresses[1]),
            ports: [ports[0], ports[1]], protocol: if tcp { 6 } else { 17 }, hops, payload, ..TCP4
        };
        let mut after = Craft { hops: hops - 1, to: FLOW.destination_mac, from: FLOW.source_mac, ..before };
        let (side, end) = if source_side { (Rewrite::Source, 0) } else { (Rewrite::Destination, 1) };
        let old = [before.source, before.destination][end];
        *[&mut after.source, &mut after.destination][end] = address(addresses[2]);
        after.ports[end] = ports[2];
        let ip_delta = checksum::delta(old.bytes(), address(addresses[2]).bytes());
        let port_delta = checksum::delta(&before.ports[end].to_be_bytes(), &ports[2].to_be_bytes());
        let flow = Flow {
            rewrite: side as u8, address: address(addresses[2]).padded(), port: ports[2].to_be_bytes(),
            ip_delta, l4_delta: checksum::add(ip_delta, port_delta), ..FLOW
        };
        let mut bytes = before.bytes();
        forward(&mut bytes, &flow);
        prop_assert_eq!(bytes, after.bytes());
    }

    #[test]
    fn nothing_that_comes_in_makes_the_parser_read_beyond_it(mut bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        if let Ok(packet) = read(&mut bytes) {
            prop_assert!(packet.ip + packet.length as usize <= bytes.len());
        }
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let before = Craft { protocol: 17, unchecked: true, ..TCP4 };
    let flow = Flow { rewrite: Rewrite::Source as u8, port: [1, 2], l4_delta: 0x1234, ..FLOW };
    let mut bytes = before.bytes();
    forward(&mut bytes, &flow);
    assert_eq!(bytes[14 + 20 + 6..][..2], [0, 0]);
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_ones() {
    let before = Craft { protocol: 17, ..TCP4 };
    let mut bytes = before.bytes();
    // The port that makes the whole sum to 0xffff: what the checksum is over without it.
    let old = u16::from_be_bytes([bytes[14 + 20 + 6], bytes[14 + 20 + 7]]);
    let port = checksum::add(before.ports[0], old);
    let l4_delta = checksum::delta(&before.ports[0].to_be_bytes(), &port.to_be_bytes());
    let address = before.source.padded();
    let flow = Flow { rewrite: Rewrite::Source as u8, port: port.to_be_bytes(), address, l4_delta, ..FLOW };
    forward(&mut bytes, &flow);
    assert_eq!(bytes[14 + 20 + 6..][..2], [0xff, 0xff]);
    assert_eq!(internet_checksum(&bytes[14..34]), 0);
}

/// Whether its addresses are of IPv6.
fn v6(craft: &Craft) -> bool {
    matches!(craft.source, Address::V6(_))
}

fn read(bytes: &mut [u8]) -> Result<Packet, Verdict> {
    let length = bytes.len();
    parse(Frame::from(bytes), Tag::INSIDE, length)
}

fn forward(bytes: &mut [u8], flow: &Flow) {
    let packet = read(bytes).unwrap();
    assert_eq!(packet.left, Verdict::Forwarded);
    let frame = Frame::from(bytes);
    // SAFETY: parsed from this frame, and not left to the kernel.
    unsafe { rewrite::headers(frame, &packet, flow) };
    // SAFETY: see above.
    unsafe { rewrite::l4_checksum(frame, &packet, flow) };
    // SAFETY: see above.
    unsafe { rewrite::macs(frame, flow) };
}

const TCP4: Craft = Craft {
    to: [2, 0, 0, 0, 0, 1],
    from: [2, 0, 0, 0, 0, 2],
    tag: None,
    source: Address::V4([10, 1, 0, 2]),
    destination: Address::V4([198, 51, 100, 7]),
    protocol: 6,
    ports: [40_000, 443],
    hops: 64,
    fragment: 0,
    options: 0,
    flags: 0x10,
    payload: 20,
    unchecked: false,
};

const TCP6: Craft = Craft {
    source: Address::V6([0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
    destination: Address::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]),
    ..TCP4
};

const FLOW: Flow = Flow {
    generation: 1,
    slot: 2,
    in_port: 1,
    out_port: 2,
    mtu: 1500,
    in_mac: TCP4.to,
    destination_mac: [6; 6],
    source_mac: [8; 6],
    ..Flow::EMPTY
};

const SETTINGS: Settings =
    Settings { forward: 1, deny: 1, silence_ns: 0, silence_flows: 0, new_per_second: 0, new_burst: 0, sample_ns: 0 };

const SECOND: u64 = 1_000_000_000;
