//! The headers of one IP packet, read from bytes nobody vouches for: truncated, forged, fragmented. A pure
//! function that answers with what it could read and never panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mwan::matrix::Protocol;
use serde::{Deserialize, Serialize};

/// What the headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub transport: Transport,
}

/// The transport as far as it could be read. A later fragment, or a packet cut before its ports, has the number
/// only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    Tcp { source: u16, destination: u16 },
    Udp { source: u16, destination: u16 },
    Icmp { kind: u8, code: u8 },
    Icmpv6 { kind: u8, code: u8 },
    Other { protocol: u8 },
}

impl Transport {
    /// As the matrix sees it.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Tcp { source, destination } => Protocol::Tcp { source, destination },
            Self::Udp { source, destination } => Protocol::Udp { source, destination },
            Self::Icmp { kind: 8, .. } | Self::Icmpv6 { kind: 128, .. } => Protocol::Ping,
            Self::Icmp { .. } => Protocol::Other(ICMP),
            Self::Icmpv6 { .. } => Protocol::Other(ICMPV6),
            Self::Other { protocol } => Protocol::Other(protocol),
        }
    }
}

/// `None` if there is no complete IP header.
pub fn parse(bytes: &[u8]) -> Option<Headers> {
    match bytes.first()? >> 4 {
        4 => parse4(bytes),
        6 => parse6(bytes),
        _ => None,
    }
}

fn parse4(bytes: &[u8]) -> Option<Headers> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    if length < header.len() {
        return None;
    }
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let rest = if fragment_offset == 0 { bytes.get(length..).unwrap_or_default() } else { &[] };
    Some(Headers {
        source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
        destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
        transport: transport(header[9], rest),
    })
}

fn parse6(bytes: &[u8]) -> Option<Headers> {
    let header: &[u8; 40] = bytes.first_chunk()?;
    let source: &[u8; 16] = header.get(8..24)?.try_into().ok()?;
    let destination: &[u8; 16] = header.get(24..40)?.try_into().ok()?;
    Some(Headers {
        source: IpAddr::V6(Ipv6Addr::from(*source)),
        destination: IpAddr::V6(Ipv6Addr::from(*destination)),
        transport: beyond_extensions(header[6], bytes.get(40..).unwrap_or_default()),
    })
}

/// RFC 8200 section 4: a chain of extension headers stands before the transport. Each moves the reader ahead by
/// at least eight bytes, so the walk ends with the bytes.
fn beyond_extensions(mut next: u8, mut rest: &[u8]) -> Transport {
    loop {
        let length = match (next, rest) {
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS, [_, length, ..]) => (usize::from(*length) + 1) * 8,
            (AUTHENTICATION, [_, length, ..]) => (usize::from(*length) + 2) * 4,
            (FRAGMENT, [_, _, high, low, ..]) if u16::from_be_bytes([*high, *low]) & 0xfff8 == 0 => 8,
            (FRAGMENT, [after, ..]) => return Transport::Other { protocol: *after },
            _ => return transport(next, rest),
        };
        next = rest[0];
        rest = rest.get(length..).unwrap_or_default();
    }
}

fn transport(protocol: u8, rest: &[u8]) -> Transport {
    match (protocol, rest) {
        (TCP, [a, b, c, d, ..]) => {
            Transport::Tcp { source: u16::from_be_bytes([*a, *b]), destination: u16::from_be_bytes([*c, *d]) }
        }
        (UDP, [a, b, c, d, ..]) => {
            Transport::Udp { source: u16::from_be_bytes([*a, *b]), destination: u16::from_be_bytes([*c, *d]) }
        }
        (ICMP, [kind, code, ..]) => Transport::Icmp { kind: *kind, code: *code },
        (ICMPV6, [kind, code, ..]) => Transport::Icmpv6 { kind: *kind, code: *code },
        _ => Transport::Other { protocol },
    }
}

impl Transport {
    /// The port or type that tells one service from another; what repeats of one flow have in common.
    pub fn service(self) -> String {
        match self {
            Self::Tcp { destination, .. } => format!("tcp/{destination}"),
            Self::Udp { destination, .. } => format!("udp/{destination}"),
            Self::Icmp { kind: 8, .. } | Self::Icmpv6 { kind: 128, .. } => "ping".to_owned(),
            Self::Icmp { kind, code } => format!("icmp {kind}/{code}"),
            Self::Icmpv6 { kind, code } => format!("icmpv6 {kind}/{code}"),
            Self::Other { protocol: TCP } => "tcp fragment".to_owned(),
            Self::Other { protocol: UDP } => "udp fragment".to_owned(),
            Self::Other { protocol: 50 } => "esp".to_owned(),
            Self::Other { protocol: 47 } => "gre".to_owned(),
            Self::Other { protocol: 2 } => "igmp".to_owned(),
            Self::Other { protocol } => format!("protocol {protocol}"),
        }
    }

    /// Of the sender and of whom it goes to, where there are any.
    pub fn ports(self) -> Option<(u16, u16)> {
        match self {
            Self::Tcp { source, destination } | Self::Udp { source, destination } => Some((source, destination)),
            Self::Icmp { .. } | Self::Icmpv6 { .. } | Self::Other { .. } => None,
        }
    }

    /// The sender's port, where there is one.
    pub fn source_port(self) -> Option<u16> {
        self.ports().map(|(source, _)| source)
    }
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_tcp_over_ipv4_behind_options() {
        let mut bytes = ipv4(TCP, &[0x04, 0x00, 0x00, 0x16]);
        bytes[0] = 0x46;
        bytes.splice(20..20, [1, 1, 1, 0]);
        let headers = parse(&bytes).unwrap();
        assert_eq!(headers.source.to_string(), "10.10.50.7");
        assert_eq!(headers.transport, Transport::Tcp { source: 1024, destination: 22 });
    }

    #[test]
    fn reads_udp_over_ipv6_behind_extension_headers() {
        let mut bytes = ipv6(HOP_BY_HOP, &[DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([UDP, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0, 53, 0x20, 0]);
        let headers = parse(&bytes).unwrap();
        assert_eq!(headers.source.to_string(), "fd00::1");
        assert_eq!(headers.transport, Transport::Udp { source: 53, destination: 8192 });
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut bytes = ipv4(UDP, &[1, 2, 3, 4]);
        bytes[7] = 5;
        assert_eq!(parse(&bytes).unwrap().transport, Transport::Other { protocol: UDP });
        let six = ipv6(FRAGMENT, &[TCP, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4]);
        assert_eq!(parse(&six).unwrap().transport, Transport::Other { protocol: TCP });
    }

    #[test]
    fn a_packet_cut_before_its_ports_still_tells_its_addresses() {
        let bytes = ipv4(TCP, &[4]);
        assert_eq!(parse(&bytes).unwrap().transport, Transport::Other { protocol: TCP });
        assert_eq!(parse(&bytes[..19]), None);
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[0x41; 40]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), six: bool) {
            parse(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = if six { 0x60 } else { 0x45 };
            }
            if let Some(headers) = parse(&bytes) {
                prop_assert_eq!(headers.source.is_ipv6(), six);
                headers.transport.service();
            }
        }
    }

    /// 10.10.50.7 to 10.10.60.3.
    pub(crate) fn ipv4(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 10, 50, 7, 10, 10, 60, 3];
        bytes.extend(rest);
        bytes
    }

    /// `fd00::1` to `fd00::2`.
    fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 8, next, 64];
        bytes.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend(rest);
        bytes
    }
}
