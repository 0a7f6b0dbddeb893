//! The matrix as one function: may this packet begin a flow, and what in the file says so? The nft table is
//! compiled from the same entries; this is what `explain`, the asserts and the tests compare it with.
//!
//! A packet to any address of the router itself is judged by the `input` of the VLAN it comes in from, whichever
//! of the router's addresses it goes to. Packets between two hosts of one VLAN are bridged and never judged.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use config::Config;
use config::model::{AddressSet, Allow, Internet, Nat6, Permit, Policy, PortSet, Steer, Vlan, Wan};
use config::units::{EgressName, Family, Line, ServiceName, VlanName, WanId, WanName};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::compile::ruleset::{bogons, both, has_broadcast, line_networks};
use crate::pair::{Talk, talks};
use crate::state::{FlowClass, NamedKey};

/// The first packet of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Where it comes in.
    pub from: Zone,
    /// Where it goes.
    pub to: Zone,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Zone {
    Vlan(VlanName),
    /// Beyond this line.
    Wan(WanName),
    /// Beyond any line.
    Internet,
    Router,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Tcp {
        source: u16,
        destination: u16,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    /// An echo request of the family's ICMP.
    Ping,
    /// Any other IP protocol; of ICMP what is neither an echo request, nor an error, nor neighbour discovery.
    Other(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub allowed: bool,
    pub reason: Reason,
}

/// What decided, with the line of the file that says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The router's own flows are not judged.
    Own,
    /// Both ends are in one VLAN: the frame is bridged.
    SameSegment {
        vlan: VlanName,
    },
    /// An entry of the matrix.
    Cell {
        from: VlanName,
        to: VlanName,
        entry: String,
        service: Option<ServiceName>,
        line: Line,
    },
    /// No enabled entry of this pair fits: default deny. `entries` are the lines of those that did not fit.
    NoCell {
        from: VlanName,
        to: VlanName,
        entries: Vec<Line>,
    },
    /// The VLAN may open this towards the Internet; `set` is `None` for `any`.
    Egress {
        vlan: VlanName,
        set: Option<EgressName>,
        line: Line,
    },
    NoEgress {
        vlan: VlanName,
        line: Line,
    },
    /// `input` of the VLAN or WAN.
    Input {
        from: Zone,
        service: ServiceName,
        line: Line,
    },
    NoInput {
        from: Zone,
        line: Line,
    },
    /// What every router must accept, whatever the file says.
    BuiltIn {
        what: String,
    },
    /// Nothing is forwarded in from a line.
    Inbound {
        from: Zone,
    },
    /// The source address is not at home where the packet comes in.
    Spoofed {
        from: Zone,
    },
    /// The address is of a kind that no router forwards.
    NotRouted {
        address: IpAddr,
    },
}

/// Judges the first packet of a flow where no name stands for any address.
pub fn verdict(config: &Config, packet: &Packet) -> Verdict {
    verdict_by_names(config, packet, &|_, _| false)
}

/// Judges the first packet of a flow. `named` says whether an address is in a set that names fill.
pub fn verdict_by_names(config: &Config, packet: &Packet, named: &Named<'_>) -> Verdict {
    if let Some(reason) = stray(config, packet) {
        return Verdict { allowed: false, reason };
    }
    let redirected = redirected(config, packet);
    let packet = redirected.as_ref().unwrap_or(packet);
    if let Some(what) = built_in(config, packet) {
        return Verdict { allowed: true, reason: Reason::BuiltIn { what: what.to_owned() } };
    }
    let fits = |opening: &Opening<'_>| opening.holds(packet, named);
    match openings(config, &packet.from, &packet.to, Some(packet.destination)).into_iter().find(fits) {
        Some(opening) => Verdict { allowed: true, reason: opening.reason },
        None => Verdict { allowed: false, reason: refusal(config, &packet.from, &packet.to) },
    }
}

/// Would the matrix deny the flow that conntrack knows by this original tuple? `line` is the line in its
/// conntrack mark. The daemon ends such flows when a file takes effect.
pub fn would_deny(
    config: &Config,
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    line: Option<WanId>,
) -> bool {
    // Sent by an interface that had no address yet: membership reports, DHCP.
    if source.is_unspecified() {
        return false;
    }
    let mut packet = Packet::new(config, source, destination, protocol);
    if packet.from == Zone::Internet
        && let Some(wan) = line.and_then(|id| config.wan(id))
    {
        packet.from = Zone::Wan(wan.name.clone());
    }
    // A flow that began when a name stood for its other end goes on when it does no longer.
    !verdict_by_names(config, &packet, &|_, _| true).allowed
}

/// Whether a live flow on a line has lost that line: the config has no such line, or the line does not have the
/// address the flow is known by outside. `known_as` is where answers go, which NAT makes another than `source`.
pub fn loses_line(config: &Config, class: FlowClass, source: IpAddr, known_as: IpAddr) -> bool {
    let Some(wan) = config.wan(class.wan) else { return true };
    if !wan.has_address(class.family) {
        return true;
    }
    let own = wan.addressing.addresses.iter().any(|net| net.addr() == known_as);
    let prefix = match (&wan.nat6, known_as) {
        (Nat6::Prefix { external, .. }, IpAddr::V6(address)) => external.contains(&address),
        (Nat6::Prefix { .. } | Nat6::Masquerade | Nat6::None, _) => false,
    };
    source != known_as && !own && !prefix
}

/// The policy that chooses the line of this packet, with the rule that says so (`None`: the default policy).
/// `None` for what is never steered: towards the VLANs and the router, and what comes in from a line.
pub fn steered<'c>(config: &'c Config, packet: &Packet) -> Option<(&'c Policy, Option<&'c Steer>)> {
    if is_local(config, packet.destination) || redirected(config, packet).is_some() {
        return None;
    }
    let policy = |name| config.policies.get(name);
    match &packet.from {
        Zone::Vlan(vlan) => {
            let rule = config.steering.iter().find(|steer| steers(steer, vlan, packet));
            let name = rule.map(|steer| &steer.policy).or(config.router.default_policy.as_ref())?;
            Some((policy(name)?, rule))
        }
        Zone::Router => Some((policy(config.router.own_policy.as_ref()?)?, None)),
        Zone::Wan(_) | Zone::Internet => None,
    }
}

impl Packet {
    /// A packet that comes in where its source address is at home.
    pub fn new(config: &Config, source: IpAddr, destination: IpAddr, protocol: Protocol) -> Self {
        let from = if is_own(config, source) { Zone::Router } else { Zone::of(config, source) };
        Self { from, to: Zone::of(config, destination), source, destination, protocol }
    }
}

impl Zone {
    /// Where packets to this address end. Broadcast and multicast end at the router: it forwards neither.
    pub fn of(config: &Config, address: IpAddr) -> Self {
        let broadcast = |vlan: &Vlan| vlan.addresses.iter().any(|net| is_broadcast(net, address));
        if is_own(config, address)
            || address.is_multicast()
            || address == IpAddr::V4(Ipv4Addr::BROADCAST)
            || config.vlans.values().any(broadcast)
        {
            return Self::Router;
        }
        config.vlan_of(address).map_or(Self::Internet, |vlan| Self::Vlan(vlan.name.clone()))
    }
}

impl Reason {
    /// The line of the file that says so; `None` where nothing is written.
    pub fn line(&self, config: &Config) -> Option<Line> {
        let line = match self {
            Self::Cell { line, .. }
            | Self::Egress { line, .. }
            | Self::NoEgress { line, .. }
            | Self::Input { line, .. }
            | Self::NoInput { line, .. } => Some(*line),
            Self::NoCell { entries, .. } => entries.first().copied(),
            Self::Spoofed { from: Zone::Vlan(vlan) } => config.vlans.get(vlan).map(|vlan| vlan.line),
            Self::Own
            | Self::SameSegment { .. }
            | Self::BuiltIn { .. }
            | Self::Inbound { .. }
            | Self::Spoofed { .. }
            | Self::NotRouted { .. } => None,
        };
        line.filter(|line| *line != Line::BUILT_IN)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vlan(name) => write!(f, "{name}"),
            Self::Wan(name) => write!(f, "{name}"),
            Self::Internet => f.write_str("the Internet"),
            Self::Router => f.write_str("the router"),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { destination, .. } => write!(f, "tcp/{destination}"),
            Self::Udp { destination, .. } => write!(f, "udp/{destination}"),
            Self::Ping => f.write_str("ping"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("the router's own flows are not judged"),
            Self::SameSegment { vlan } => write!(f, "both ends are in {vlan}: bridged, not routed"),
            Self::Cell { from, to, entry, service, line } => {
                write!(f, "cell {from} -> {to}, entry `{entry}` ({line})")?;
                service.as_ref().map_or(Ok(()), |service| write!(f, ", service {service}"))
            }
            Self::NoCell { from, to, entries } => {
                write!(f, "cell {from} -> {to}: default deny, ")?;
                match entries.as_slice() {
                    [] => f.write_str("no entry for this pair"),
                    lines => {
                        let lines: Vec<_> = lines.iter().map(Line::to_string).collect();
                        write!(f, "none of its entries fits ({})", lines.join(", "))
                    }
                }
            }
            Self::Egress { vlan, set: None, line } => write!(f, "{vlan} may open anything to the Internet ({line})"),
            Self::Egress { vlan, set: Some(set), line } => write!(f, "{vlan} -> Internet, egress set {set} ({line})"),
            Self::NoEgress { vlan, line } => write!(f, "{vlan} -> Internet: default deny ({line})"),
            Self::Input { from, service, line } => write!(f, "input of {from}, service {service} ({line})"),
            Self::NoInput { from, line } => write!(f, "input of {from}: default deny ({line})"),
            Self::BuiltIn { what } => write!(f, "{what}, always accepted"),
            Self::Inbound { from } => write!(f, "nothing is forwarded in from {from}"),
            Self::Spoofed { from } => write!(f, "the source address is not at home in {from}: spoofed"),
            Self::NotRouted { address } => write!(f, "{address} is not routed"),
        }
    }
}

/// Something the file lets through: any packet with its source in `source`, its destination in `destination` and
/// its protocol in `ports`; `None` is anything.
#[derive(Debug)]
pub(crate) struct Opening<'c> {
    pub(crate) source: Option<&'c AddressSet>,
    pub(crate) destination: Option<Cow<'c, AddressSet>>,
    pub(crate) ports: Option<Cow<'c, PortSet>>,
    /// Only to addresses that names stand for: the part of the egress set of the reason.
    pub(crate) named: Option<usize>,
    pub(crate) reason: Reason,
}

/// Is this address in a set that names fill?
pub type Named<'a> = dyn Fn(&NamedKey, IpAddr) -> bool + 'a;

impl Opening<'_> {
    fn anything(reason: Reason) -> Self {
        Self { source: None, destination: None, ports: None, named: None, reason }
    }

    fn holds(&self, packet: &Packet, named: &Named<'_>) -> bool {
        let family = Family::of(packet.source);
        self.source.is_none_or(|set| set.contains(packet.source))
            && self.destination.as_ref().is_none_or(|set| set.contains(packet.destination))
            && self.ports.as_ref().is_none_or(|ports| holds(ports, packet.protocol, family))
            && self.key(family).is_none_or(|key| named(&key, packet.destination))
    }

    fn key(&self, family: Family) -> Option<NamedKey> {
        match (&self.reason, self.named) {
            (Reason::Egress { set: Some(set), .. }, Some(part)) => Some(NamedKey { set: set.clone(), part, family }),
            _ => None,
        }
    }
}

/// Everything the file lets through between two places. From the Internet as such, `destination` tells the line.
pub(crate) fn openings<'c>(
    config: &'c Config,
    from: &Zone,
    to: &Zone,
    destination: Option<IpAddr>,
) -> Vec<Opening<'c>> {
    match (from, to) {
        (Zone::Router, _) => vec![Opening::anything(Reason::Own)],
        (Zone::Vlan(from), Zone::Vlan(to))
            if from == to && config.vlans.get(from).is_none_or(|vlan| vlan.tunnel.is_none()) =>
        {
            vec![Opening::anything(Reason::SameSegment { vlan: from.clone() })]
        }
        (Zone::Vlan(from), Zone::Vlan(to)) => cells(config, from, to),
        (Zone::Vlan(vlan), Zone::Internet | Zone::Wan(_)) => {
            config.vlans.get(vlan).map_or_else(Vec::new, |vlan| egress(config, vlan))
        }
        (Zone::Vlan(name), Zone::Router) => {
            config.vlans.get(name).map_or_else(Vec::new, |vlan| input(config, &vlan.input, from, vlan.input_line))
        }
        (Zone::Wan(name), Zone::Router) => config.wans.get(name).map_or_else(Vec::new, |wan| wan_input(config, wan)),
        (Zone::Internet, Zone::Router) => {
            let at = |wan: &&Wan| wan.addressing.addresses.iter().any(|net| Some(net.addr()) == destination);
            match config.wans.values().find(at) {
                Some(wan) => wan_input(config, wan),
                None => config.wans.values().flat_map(|wan| wan_input(config, wan)).collect(),
            }
        }
        (Zone::Wan(_) | Zone::Internet, Zone::Vlan(_) | Zone::Wan(_) | Zone::Internet) => Vec::new(),
    }
}

/// Does this set of ports hold the packet? Protocols by number hold every packet of theirs.
pub(crate) fn holds(ports: &PortSet, protocol: Protocol, family: Family) -> bool {
    let in_ranges = |ranges: &[std::ops::RangeInclusive<u16>], port| ranges.iter().any(|range| range.contains(&port));
    let number = match (protocol, family) {
        (Protocol::Tcp { .. }, _) => 6,
        (Protocol::Udp { .. }, _) => 17,
        (Protocol::Ping, Family::V4) => 1,
        (Protocol::Ping, Family::V6) => 58,
        (Protocol::Other(number), _) => number,
    };
    ports.protocols.contains(&number)
        || match protocol {
            Protocol::Tcp { destination, .. } => in_ranges(&ports.tcp, destination),
            Protocol::Udp { destination, .. } => in_ranges(&ports.udp, destination),
            Protocol::Ping => ports.ping,
            Protocol::Other(_) => false,
        }
}

fn cells<'c>(config: &'c Config, from: &VlanName, to: &VlanName) -> Vec<Opening<'c>> {
    let mut openings = Vec::new();
    for cell in config.cells.iter().filter(|cell| cell.enabled && cell.from == *from && cell.to == *to) {
        let reason = |service| Reason::Cell {
            from: from.clone(),
            to: to.clone(),
            entry: cell.name.clone(),
            service,
            line: cell.line,
        };
        let source = cell.from_hosts.as_ref();
        match &cell.allow {
            Allow::Any => openings.push(Opening {
                source,
                destination: cell.to_hosts.as_ref().map(Cow::Borrowed),
                ports: None,
                named: None,
                reason: reason(None),
            }),
            Allow::Services(permits) => openings.extend(permits.iter().map(|permit| Opening {
                source,
                destination: both(cell.to_hosts.as_ref(), permit.hosts.as_ref()).map(Cow::Owned),
                ports: Some(Cow::Borrowed(&permit.ports)),
                named: None,
                reason: reason(Some(permit.service.clone())),
            })),
        }
    }
    openings
}

fn egress<'c>(config: &'c Config, vlan: &'c Vlan) -> Vec<Opening<'c>> {
    match &vlan.internet {
        Internet::None => Vec::new(),
        Internet::Any => {
            vec![Opening::anything(Reason::Egress { vlan: vlan.name.clone(), set: None, line: vlan.internet_line })]
        }
        Internet::Sets(names) => names
            .iter()
            .filter_map(|name| config.egress.get(name))
            .flat_map(|set| {
                let opening = |destination, ports, named| Opening {
                    source: None,
                    destination,
                    ports: Some(Cow::Borrowed(ports)),
                    named,
                    reason: Reason::Egress {
                        vlan: vlan.name.clone(),
                        set: Some(set.name.clone()),
                        line: vlan.internet_line,
                    },
                };
                let written = opening(set.to.as_ref().map(Cow::Borrowed), &set.ports, None);
                let parts = set.named.iter().enumerate();
                std::iter::once(written).chain(parts.map(move |(part, of)| opening(None, &of.ports, Some(part))))
            })
            .collect(),
    }
}

fn input<'c>(config: &Config, permits: &'c [Permit], from: &Zone, line: Line) -> Vec<Opening<'c>> {
    // What a `[[tls_offload]]` or a tunnel opened is not to be found in `input`.
    let written = |service: &ServiceName| {
        let mut offloads = config.tls_offload.values();
        if let Some(its) = service.as_str().strip_prefix("tls_offload/") {
            return offloads.find(|offload| offload.name.as_str() == its).map(|offload| offload.line);
        }
        let its = service.as_str().strip_prefix("tunnel/")?;
        config.tunnels().find(|(vlan, _)| vlan.name.as_str() == its).map(|(vlan, _)| vlan.line)
    };
    let opening = |permit: &'c Permit| Opening {
        source: permit.sources.as_ref(),
        destination: permit.hosts.as_ref().map(Cow::Borrowed),
        ports: Some(Cow::Borrowed(&permit.ports)),
        named: None,
        reason: Reason::Input {
            from: from.clone(),
            service: permit.service.clone(),
            line: written(&permit.service).unwrap_or(line),
        },
    };
    permits.iter().map(opening).collect()
}

fn wan_input<'c>(config: &Config, wan: &'c Wan) -> Vec<Opening<'c>> {
    input(config, &wan.input, &Zone::Wan(wan.name.clone()), wan.line)
}

fn refusal(config: &Config, from: &Zone, to: &Zone) -> Reason {
    match (from, to) {
        (Zone::Vlan(from), Zone::Vlan(to)) => {
            let entries = config.cells.iter().filter(|cell| cell.enabled && cell.from == *from && cell.to == *to);
            Reason::NoCell { from: from.clone(), to: to.clone(), entries: entries.map(|cell| cell.line).collect() }
        }
        (Zone::Vlan(vlan), Zone::Internet | Zone::Wan(_)) => {
            let line = config.vlans.get(vlan).map_or(Line::BUILT_IN, |vlan| vlan.internet_line);
            Reason::NoEgress { vlan: vlan.clone(), line }
        }
        (Zone::Vlan(name), Zone::Router) => {
            let line = config.vlans.get(name).map_or(Line::BUILT_IN, |vlan| vlan.input_line);
            Reason::NoInput { from: from.clone(), line }
        }
        (Zone::Wan(name), Zone::Router) => {
            let line = config.wans.get(name).map_or(Line::BUILT_IN, |wan| wan.line);
            Reason::NoInput { from: from.clone(), line }
        }
        (Zone::Internet, Zone::Router) => Reason::NoInput { from: from.clone(), line: Line::BUILT_IN },
        (Zone::Router, _) => Reason::Own,
        (Zone::Wan(_) | Zone::Internet, Zone::Vlan(_) | Zone::Wan(_) | Zone::Internet) => {
            Reason::Inbound { from: from.clone() }
        }
    }
}

/// What ends before the matrix: sources that are not at home where the packet comes in, addresses nobody routes.
fn stray(config: &Config, packet: &Packet) -> Option<Reason> {
    let spoofed = || Some(Reason::Spoofed { from: packet.from.clone() });
    let to_router = packet.to == Zone::Router;
    match &packet.from {
        Zone::Router => return None,
        Zone::Vlan(name) => {
            let at_home =
                config.vlans.get(name).is_some_and(|vlan| vlan.networks().any(|net| net.contains(&packet.source)));
            let asking_for_an_address = packet.source == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
                && packet.protocol == (Protocol::Udp { source: 68, destination: 67 });
            let link_local = match packet.source {
                IpAddr::V6(source) => source.is_unicast_link_local() || source.is_unspecified(),
                IpAddr::V4(_) => false,
            };
            if is_no_source(config, packet.source) || !(at_home || asking_for_an_address || link_local) {
                return spoofed();
            }
            if (asking_for_an_address || link_local) && !to_router {
                return Some(Reason::NotRouted { address: packet.source });
            }
        }
        Zone::Wan(_) | Zone::Internet => {
            if config.vlan_of(packet.source).is_some() || is_own(config, packet.source) {
                return spoofed();
            }
            let strict = match &packet.from {
                Zone::Wan(name) => config.wans.get(name).is_some_and(|wan| wan.bogons),
                Zone::Internet | Zone::Vlan(_) | Zone::Router => false,
            };
            let holds = |net: &IpNet| net.contains(&packet.source);
            if strict && bogons().any(|net| holds(&net)) && !line_networks(config).iter().any(holds) {
                return spoofed();
            }
        }
    }
    let beyond = match &packet.to {
        Zone::Internet | Zone::Wan(_) => is_local(config, packet.destination),
        Zone::Vlan(_) | Zone::Router => false,
    };
    beyond.then_some(Reason::NotRouted { address: packet.destination })
}

/// The packet as it goes on where its question for a name ends at the router.
fn redirected(config: &Config, packet: &Packet) -> Option<Packet> {
    let (Zone::Vlan(from), Zone::Internet | Zone::Wan(_)) = (&packet.from, &packet.to) else { return None };
    match packet.protocol {
        Protocol::Tcp { destination: 53, .. } | Protocol::Udp { destination: 53, .. } => {}
        Protocol::Tcp { .. } | Protocol::Udp { .. } | Protocol::Ping | Protocol::Other(_) => return None,
    }
    let own = config.dns_redirect(config.vlans.get(from)?, Family::of(packet.destination))?;
    Some(Packet { to: Zone::Router, destination: own, ..packet.clone() })
}

/// What a router accepts from a line whose addresses are leased, and from the other router of a pair, whatever the file
/// says.
fn built_in(config: &Config, packet: &Packet) -> Option<&'static str> {
    if let (Zone::Vlan(vlan), Zone::Router) = (&packet.from, &packet.to) {
        let said = |talk: &Talk| {
            packet.source == IpAddr::V4(talk.from)
                && packet.destination == IpAddr::V4(talk.to)
                && holds(&talk.ports, packet.protocol, Family::V4)
        };
        return talks(config, vlan).iter().find(|talk| said(talk)).map(|talk| talk.told);
    }
    let family = Family::of(packet.source);
    let leased = || match &packet.from {
        Zone::Wan(name) => config.wans.get(name).is_some_and(|wan| wan.is_leased(family)),
        // From the Internet as such, the address it goes to tells the line.
        Zone::Internet => config.wans.values().any(|wan| {
            let own = |net: &IpNet| net.addr() == packet.destination || packet.destination.is_multicast();
            wan.is_leased(family) && wan.addressing.addresses.iter().any(own)
        }),
        Zone::Vlan(_) | Zone::Router => false,
    };
    let outside = || packet.to == Zone::Router && leased();
    match (packet.source, packet.protocol) {
        (IpAddr::V4(_), Protocol::Udp { source: 67, destination: 68 }) if outside() => Some("an answer of DHCP"),
        (IpAddr::V6(source), Protocol::Udp { source: 547, destination: 546 })
            if source.is_unicast_link_local() && outside() =>
        {
            Some("an answer of DHCPv6")
        }
        _ => None,
    }
}

fn steers(steer: &Steer, vlan: &VlanName, packet: &Packet) -> bool {
    let swapped = match packet.protocol {
        Protocol::Tcp { source, destination } => Protocol::Tcp { source: destination, destination: source },
        Protocol::Udp { source, destination } => Protocol::Udp { source: destination, destination: source },
        Protocol::Ping | Protocol::Other(_) => packet.protocol,
    };
    let family = Family::of(packet.source);
    steer.from.as_ref().is_none_or(|from| from.contains(vlan))
        && steer.source.as_ref().is_none_or(|set| set.contains(packet.source))
        && steer.destination.as_ref().is_none_or(|set| set.contains(packet.destination))
        && steer.source_ports.as_ref().is_none_or(|ports| holds(ports, swapped, family))
        && steer.ports.as_ref().is_none_or(|ports| holds(ports, packet.protocol, family))
}

// The sets of `compile::ruleset`, asked for one address: a verdict must not cost building them.

fn is_own(config: &Config, address: IpAddr) -> bool {
    let wans = config.wans.values().flat_map(|wan| &wan.addressing.addresses);
    let pair = config.pair.iter().filter_map(|pair| pair.own()).flat_map(|own| &own.addresses).map(|(_, net)| net);
    config.vlans.values().flat_map(|vlan| &vlan.addresses).chain(wans).chain(pair).any(|net| net.addr() == address)
}

fn is_local(config: &Config, address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(address) => {
            address.is_loopback() || address.is_link_local() || address.is_multicast() || address.is_broadcast()
        }
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local() || address.is_multicast(),
    };
    special || config.vlan_of(address).is_some() || is_own(config, address)
}

fn is_no_source(config: &Config, address: IpAddr) -> bool {
    let end = |net: &IpNet| has_broadcast(net) && (net.network() == address || net.broadcast() == address);
    is_own(config, address) || config.vlans.values().flat_map(|vlan| &vlan.addresses).any(end)
}

fn is_broadcast(net: &IpNet, address: IpAddr) -> bool {
    has_broadcast(net) && net.broadcast() == address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::ruleset::{local, no_sources, own};
    use crate::fixture;

    fn tcp(destination: u16) -> Protocol {
        Protocol::Tcp { source: 40_000, destination }
    }

    fn udp(destination: u16) -> Protocol {
        Protocol::Udp { source: 40_000, destination }
    }

    /// One packet, from where its source is at home.
    fn judged(source: &str, destination: &str, protocol: Protocol) -> Verdict {
        let config = fixture::site();
        verdict(&config, &Packet::new(&config, source.parse().unwrap(), destination.parse().unwrap(), protocol))
    }

    #[test]
    fn the_matrix_of_the_fixture() {
        for (source, destination, protocol, allowed, reason) in [
            (
                "10.0.10.9",
                "10.0.20.5",
                tcp(631),
                true,
                "cell office -> guests, entry `office->guests` (line 60), service print",
            ),
            (
                "10.0.10.9",
                "10.0.20.5",
                Protocol::Ping,
                true,
                "cell office -> guests, entry `office->guests` (line 60), service ping",
            ),
            (
                "10.0.10.9",
                "10.0.20.5",
                udp(631),
                false,
                "cell office -> guests: default deny, none of its entries fits (line 60)",
            ),
            (
                "10.0.10.9",
                "10.0.20.6",
                tcp(631),
                false,
                "cell office -> guests: default deny, none of its entries fits (line 60)",
            ),
            // Hosts of one family never open the other.
            (
                "fd00:10::9",
                "fd00:20::5",
                tcp(631),
                false,
                "cell office -> guests: default deny, none of its entries fits (line 60)",
            ),
            ("10.0.20.5", "10.0.10.9", tcp(22), false, "cell guests -> office: default deny, no entry for this pair"),
            (
                "fd00:30::9",
                "fd00:20::5",
                Protocol::Other(50),
                true,
                "cell servers -> guests, entry `servers->guests` (line 65)",
            ),
            ("10.0.10.9", "10.0.10.8", tcp(1), true, "both ends are in office: bridged, not routed"),
            ("10.0.10.9", "192.0.2.1", tcp(25), true, "office may open anything to the Internet (line 11)"),
            ("10.0.20.9", "192.0.2.1", tcp(443), true, "guests -> Internet, egress set web (line 21)"),
            ("10.0.20.9", "192.0.2.1", tcp(25), false, "guests -> Internet: default deny (line 21)"),
            ("10.0.30.9", "192.0.2.1", tcp(443), false, "servers -> Internet: default deny (line 31)"),
            // Every address of the router is judged by the input of the VLAN the packet comes from.
            ("10.0.10.9", "10.0.30.1", udp(53), true, "input of office, service dns (line 12)"),
            ("10.0.10.9", "100.64.1.2", udp(53), true, "input of office, service dns (line 12)"),
            ("10.0.10.9", "10.0.30.1", tcp(22), false, "input of office: default deny (line 12)"),
            ("192.0.2.1", "100.64.1.2", tcp(22), false, "input of the Internet: default deny (built in)"),
            ("192.0.2.1", "10.0.10.9", tcp(22), false, "nothing is forwarded in from the Internet"),
            ("100.64.2.2", "10.0.10.9", tcp(22), true, "the router's own flows are not judged"),
            ("10.0.10.9", "169.254.1.1", tcp(80), false, "169.254.1.1 is not routed"),
            (
                "192.0.2.1",
                "100.64.1.2",
                Protocol::Udp { source: 67, destination: 68 },
                false,
                "input of the Internet: default deny (built in)",
            ),
        ] {
            let verdict = judged(source, destination, protocol);
            assert_eq!(
                (verdict.allowed, verdict.reason.to_string().as_str()),
                (allowed, reason),
                "{source} -> {destination} {protocol}"
            );
        }
    }

    #[test]
    fn a_source_that_is_not_at_home_is_spoofed() {
        let config = fixture::site();
        let office = Zone::Vlan("office".parse().unwrap());
        let wan = Zone::Wan("wan1".parse().unwrap());
        for (from, source, spoofed) in [
            (&office, "10.0.10.9", false),
            (&office, "10.0.20.9", true),
            (&office, "192.0.2.1", true),
            (&office, "10.0.10.1", true),
            (&office, "10.0.10.255", true),
            (&office, "fd00:10::9", false),
            (&office, "fd00:20::9", true),
            (&wan, "10.0.10.9", true),
            (&wan, "fd00:10::9", true),
            (&wan, "100.64.1.2", true),
            (&wan, "192.0.2.1", false),
        ] {
            let source: IpAddr = source.parse().unwrap();
            let destination = if source.is_ipv4() { "10.0.30.9" } else { "fd00:30::9" };
            let mut packet = Packet::new(&config, source, destination.parse().unwrap(), tcp(80));
            packet.from = from.clone();
            let reason = verdict(&config, &packet).reason;
            assert_eq!(reason == Reason::Spoofed { from: from.clone() }, spoofed, "{source} from {from}: {reason}");
        }
    }

    #[test]
    fn a_disabled_entry_allows_nothing() {
        let mut config = fixture::site();
        config.cells[1].enabled = false;
        let (source, destination) = ("10.0.30.9".parse().unwrap(), "10.0.20.5".parse().unwrap());
        assert!(would_deny(&config, source, destination, tcp(80), None));
        assert!(!would_deny(&fixture::site(), source, destination, tcp(80), None));
    }

    #[test]
    fn a_flow_loses_its_line_with_the_line_or_with_its_address() {
        let site = fixture::site();
        let wan = site.wans.values().next().unwrap();
        let class = FlowClass { family: Family::V4, wan: wan.id, policy: None };
        let (inside, own) = ("10.0.10.9".parse().unwrap(), wan.source(Family::V4).unwrap());
        assert!(!loses_line(&site, class, inside, own));
        let mut without = site.clone();
        without.wans.remove(&wan.name);
        assert!(loses_line(&without, class, inside, own));
        let mut renumbered = site.clone();
        renumbered.wans.get_mut(&wan.name).unwrap().addressing.addresses[0] = fixture::net("100.64.9.9/24");
        assert!(loses_line(&renumbered, class, inside, own));
        assert!(!loses_line(&renumbered, class, inside, inside), "it left under its own address");
        let mut v6_only = site.clone();
        v6_only.wans.get_mut(&wan.name).unwrap().addressing.gateway4 = None;
        assert!(loses_line(&v6_only, class, inside, own));
    }

    #[test]
    fn what_an_interface_sent_before_it_had_an_address_is_no_flow_to_end() {
        let (source, group) = ("0.0.0.0".parse().unwrap(), "224.0.0.22".parse().unwrap());
        assert!(!would_deny(&fixture::site(), source, group, Protocol::Other(2), None));
    }

    #[test]
    fn a_flow_from_outside_is_judged_by_the_input_of_its_line() {
        let mut config = fixture::site();
        let permit = config.vlans.values().next().unwrap().input[0].clone();
        config.wans.values_mut().last().unwrap().input.push(permit);
        let asks = |line| {
            let (source, own) = ("192.0.2.1".parse().unwrap(), "100.64.2.2".parse().unwrap());
            would_deny(&config, source, own, udp(53), WanId::new(line))
        };
        assert!(asks(1));
        assert!(!asks(2));
    }

    #[test]
    fn steering_is_by_the_first_rule_that_fits() {
        let config = fixture::site();
        for (source, destination, protocol, policy) in [
            ("10.0.10.9", "192.0.2.1", udp(5060), Some("backup")),
            ("10.0.10.9", "192.0.2.1", tcp(5060), Some("balanced")),
            ("10.0.10.9", "198.51.100.1", udp(5060), Some("balanced")),
            ("10.0.20.9", "192.0.2.1", udp(5060), Some("balanced")),
            ("10.0.10.9", "10.0.20.5", udp(5060), None),
            ("10.0.10.9", "100.64.1.2", udp(5060), None),
            ("192.0.2.1", "100.64.1.2", udp(5060), None),
        ] {
            let packet = Packet::new(&config, source.parse().unwrap(), destination.parse().unwrap(), protocol);
            let found = steered(&config, &packet).map(|(policy, _)| policy.name.to_string());
            assert_eq!(found.as_deref(), policy, "{source} -> {destination} {protocol}");
        }
    }

    #[test]
    fn one_address_is_judged_as_the_sets_of_the_table_say() {
        let config = fixture::site();
        for address in [
            "10.0.10.0",
            "10.0.10.1",
            "10.0.10.2",
            "10.0.10.255",
            "10.0.11.0",
            "100.64.1.2",
            "100.64.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "fd00:10::",
            "fd00:10::1",
            "fd00:10::2",
            "2001:db8:ff01::2",
            "2001:db8::1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(is_own(&config, address), own(&config).contains(&address), "own {address}");
            assert_eq!(is_local(&config, address), local(&config).contains(address), "local {address}");
            assert_eq!(is_no_source(&config, address), no_sources(&config).contains(address), "no source {address}");
        }
    }
}
