//! Telling the inside end of a flow that its line is gone.
//!
//! TCP: the inside end gets a bare acknowledgement that seems to come from the outside end, with a sequence number
//! it cannot accept. RFC 9293 section 3.10.7.4 makes it answer with its true numbers; conntrack has forgotten the
//! flow, so that answer meets the ruleset's reset rule and is reset with numbers the inside end believes. Nobody
//! here needs to know the numbers. UDP and the rest of `Kick::All`: ICMP port unreachable, quoting the packet the
//! inside end would have sent (RFC 792, RFC 4443).
//!
//! The packets carry [`Mark::KICK`], which the ruleset keeps out of conntrack: tracked, they would bring the flow
//! back to life from the wrong side.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use config::model::Kick;
use config::units::Mark;
use socket2::{Domain, Protocol, Socket, Type};

use super::conntrack::{Flow, Tuple};

/// Sends the packets. Where a packet cannot be sent the flow is merely not told.
pub(crate) fn kick(flows: &[Flow], kick: Kick, own: &BTreeSet<IpAddr>) -> io::Result<usize> {
    let packets: Vec<_> = flows.iter().filter_map(|flow| packet(inside(flow, own)?, kick)).collect();
    if packets.is_empty() {
        return Ok(0);
    }
    let (v4, v6) = (raw(Domain::IPV4)?, raw(Domain::IPV6)?);
    let mut sent = 0;
    for (destination, bytes) in packets {
        let socket = if destination.is_ipv4() { &v4 } else { &v6 };
        if socket.send_to(&bytes, &SocketAddr::new(destination, 0).into()).is_ok() {
            sent += 1;
        }
    }
    Ok(sent)
}

/// The flow as its inside end sends: from it, to the outside end. `None` where the inside end is this machine.
fn inside(flow: &Flow, own: &BTreeSet<IpAddr>) -> Option<Tuple> {
    // A flow that came in by a line is answered by its inside end; the others were begun by it.
    let came_in = flow.mark.0 & Mark::POLICY_MASK == 0;
    let tuple = if came_in { flow.reply } else { flow.original };
    (!own.contains(&tuple.source)).then_some(tuple)
}

/// Where to, and the whole IP packet.
fn packet(inside: Tuple, kick: Kick) -> Option<(IpAddr, Vec<u8>)> {
    let tcp = inside.protocol == TCP;
    let wanted = match kick {
        Kick::All => tcp || inside.protocol == UDP,
        Kick::Tcp => tcp,
        Kick::Silent => false,
    };
    if !wanted {
        return None;
    }
    let (source, destination) = (inside.destination, inside.source);
    let packet = match (source, destination, tcp) {
        (IpAddr::V4(source), IpAddr::V4(destination), true) => {
            let segment = acknowledgement(&inside, &pseudo4(source, destination, TCP, TCP_HEADER));
            ip4(source, destination, TCP, &segment)
        }
        (IpAddr::V6(source), IpAddr::V6(destination), true) => {
            let segment = acknowledgement(&inside, &pseudo6(source, destination, TCP, TCP_HEADER));
            ip6(source, destination, TCP, &segment)
        }
        (IpAddr::V4(source), IpAddr::V4(destination), false) => {
            let quoted = ip4(destination, source, UDP, &udp_header(&inside));
            let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
            message.extend(quoted);
            fill_checksum(&mut message, 2, &[]);
            ip4(source, destination, ICMP, &message)
        }
        (IpAddr::V6(source), IpAddr::V6(destination), false) => {
            let quoted = ip6(destination, source, UDP, &udp_header(&inside));
            let mut message = vec![1, 4, 0, 0, 0, 0, 0, 0];
            message.extend(quoted);
            let pseudo = pseudo6(source, destination, ICMP6, message.len());
            fill_checksum(&mut message, 2, &pseudo);
            ip6(source, destination, ICMP6, &message)
        }
        (IpAddr::V4(_), IpAddr::V6(_), _) | (IpAddr::V6(_), IpAddr::V4(_), _) => return None,
    };
    Some((destination, packet))
}

/// From the outside end to the inside end.
fn acknowledgement(inside: &Tuple, pseudo: &[u8]) -> Vec<u8> {
    const ACK: u8 = 0x10;
    let mut segment = Vec::with_capacity(TCP_HEADER);
    segment.extend(inside.destination_port.to_be_bytes());
    segment.extend(inside.source_port.to_be_bytes());
    // Sequence and acknowledgement number 0. Where 0 happens to lie in the window, it is the acknowledgement number
    // that draws the answer (RFC 5961, section 5).
    segment.extend([0; 8]);
    segment.extend([0x50, ACK, 0, 0, 0, 0, 0, 0]);
    fill_checksum(&mut segment, 16, pseudo);
    segment
}

/// The header the inside end's datagram would have; nobody checks the checksum of a quotation.
fn udp_header(inside: &Tuple) -> Vec<u8> {
    let [a, b] = inside.source_port.to_be_bytes();
    let [c, d] = inside.destination_port.to_be_bytes();
    vec![a, b, c, d, 0, 8, 0, 0]
}

fn ip4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    fill_checksum(&mut packet, 10, &[]);
    packet.extend(payload);
    packet
}

fn ip6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend([protocol, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

fn pseudo4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: usize) -> Vec<u8> {
    let mut pseudo = [source.octets(), destination.octets()].concat();
    pseudo.extend([0, protocol]);
    pseudo.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    pseudo
}

fn pseudo6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: usize) -> Vec<u8> {
    let mut pseudo = [source.octets(), destination.octets()].concat();
    pseudo.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo
}

/// The Internet checksum over `pseudo` and `bytes`, written at this offset.
fn fill_checksum(bytes: &mut [u8], at: usize, pseudo: &[u8]) {
    let checksum = checksum(pseudo, bytes);
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
}

fn checksum(pseudo: &[u8], bytes: &[u8]) -> u16 {
    let words = pseudo.chunks(2).chain(bytes.chunks(2));
    let sum: u32 = words
        .map(|word| match word {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        })
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or(u16::MAX)
}

fn raw(domain: Domain) -> io::Result<Socket> {
    // IPPROTO_RAW: we write the IP header.
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255)))?;
    if domain == Domain::IPV6 {
        socket.set_header_included_v6(true)?;
    } else {
        socket.set_header_included_v4(true)?;
    }
    socket.set_mark(Mark::KICK.0)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const TCP_HEADER: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use config::units::Family;

    #[test]
    fn packets_are_whole_and_their_checksums_hold() {
        for (protocol, kick) in [(TCP, Kick::Tcp), (TCP, Kick::All), (UDP, Kick::All)] {
            let (to, bytes) = packet(tuple4(protocol), kick).unwrap();
            assert_eq!(to, "10.10.10.5".parse::<IpAddr>().unwrap());
            assert_eq!(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), bytes.len());
            assert_eq!(checksum(&[], &bytes[..20]), 0);
            let (source, destination) = (Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(10, 10, 10, 5));
            let pseudo = if protocol == TCP { pseudo4(source, destination, TCP, 20) } else { Vec::new() };
            assert_eq!(checksum(&pseudo, &bytes[20..]), 0, "{protocol} {kick:?}");
        }
        for protocol in [TCP, UDP] {
            let (_, bytes) = packet(tuple6(protocol), Kick::All).unwrap();
            let payload = &bytes[40..];
            assert_eq!(usize::from(u16::from_be_bytes([bytes[4], bytes[5]])), payload.len());
            let pseudo = [&bytes[8..40], &[0, 0, 0, u8::try_from(payload.len()).unwrap(), 0, 0, 0, bytes[6]]].concat();
            assert_eq!(checksum(&pseudo, payload), 0, "{protocol}");
        }
    }

    #[test]
    fn only_who_should_be_told_is_told() {
        assert_eq!(packet(tuple4(UDP), Kick::Tcp), None);
        assert_eq!(packet(tuple4(TCP), Kick::Silent), None);
        assert_eq!(packet(tuple4(ICMP), Kick::All), None);
        let (original, reply) = (tuple4(TCP), Tuple { source: ip("198.51.100.1"), ..tuple4(TCP) });
        let mut flow = Flow { family: Family::V4, mark: Mark(0x0101_0000), original, reply };
        assert_eq!(inside(&flow, &BTreeSet::new()), Some(original));
        assert_eq!(inside(&flow, &BTreeSet::from([ip("10.10.10.5")])), None, "the router is not told");
        flow.mark = Mark(0x0100_0000);
        assert_eq!(inside(&flow, &BTreeSet::new()), Some(reply), "what came in is answered by its inside end");
    }

    fn tuple4(protocol: u8) -> Tuple {
        let (source, destination) = (ip("10.10.10.5"), ip("198.51.100.1"));
        Tuple { source, destination, protocol, source_port: 40000, destination_port: 443 }
    }

    fn tuple6(protocol: u8) -> Tuple {
        Tuple { source: ip("2001:db8:10::5"), destination: ip("2001:db8:100::1"), ..tuple4(protocol) }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
