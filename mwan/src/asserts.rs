//! The statements of the site file that must hold. A claim about a VLAN is about every pair of addresses: it is
//! decided on ranges, not by trying some.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use config::Config;
use config::model::{AddressSet, Assert, Claim, PacketClaim, Place, PortSet, Vlan};
use config::units::{Family, Line, WanName};
use serde::{Deserialize, Serialize};

use crate::compile::ruleset::{local, no_sources, own};
use crate::decide::{Facts, Standing, Standings};
use crate::event::Health;
use crate::matrix::{Opening, Packet, Protocol, Zone, holds, openings};

/// A claim that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenAssert {
    pub line: Line,
    /// As written.
    pub text: String,
    /// What is so instead.
    pub why: String,
}

/// The claims of this file that do not hold, in file order.
pub fn broken(config: &Config) -> Vec<BrokenAssert> {
    let told = |assert: &Assert| {
        let why = match &assert.claim {
            Claim::Flow { from, to, packet, allowed } => flow(config, from, to, *packet, *allowed),
            Claim::Uses { down, policy, uses } => config.policies.get(policy).and_then(|policy| {
                Family::ALL.into_iter().find_map(|family| {
                    let found = used(config, policy, family, down)?;
                    (found != *uses).then(|| format!("it uses {} ({family})", list(&found)))
                })
            }),
        };
        why.map(|why| BrokenAssert { line: assert.line, text: assert.text.clone(), why })
    };
    config.asserts.iter().filter_map(told).collect()
}

/// The claim that this packet is denied, if there is one: what would allow it is refused.
pub fn against<'a>(config: &'a Config, packet: &Packet) -> Option<&'a Assert> {
    let within = |place: &Place, zone: &Zone, address: IpAddr, sends: bool| {
        // A packet that was seen to leave by a line is one to the Internet.
        let outside = !sends && matches!(zone, Zone::Wan(_));
        let mut areas = areas(config, place, sends).into_iter();
        areas.any(|area| {
            let there = area.zone == *zone || outside && area.zone == Zone::Internet;
            there && area.addresses.contains(address)
        })
    };
    config.asserts.iter().find(|assert| match &assert.claim {
        Claim::Flow { from, to, packet: only, allowed: false } => {
            only.is_none_or(|only| about(only, packet.protocol))
                && within(from, &packet.from, packet.source, true)
                && within(to, &packet.to, packet.destination, false)
        }
        Claim::Flow { allowed: true, .. } | Claim::Uses { .. } => false,
    })
}

/// Why a file with these is refused, in a line above them.
pub fn heading(broken: &[BrokenAssert]) -> String {
    match broken {
        [_] => "refused: 1 assert would break".to_owned(),
        _ => format!("refused: {} asserts would break", broken.len()),
    }
}

/// The lines a policy uses with these down and all others up; `None` where none of its lines carries the family,
/// so that the claim is about the other.
fn used(
    config: &Config,
    policy: &config::model::Policy,
    family: Family,
    down: &BTreeSet<WanName>,
) -> Option<BTreeSet<WanName>> {
    let carries = |name: &WanName| config.wans.get(name).is_some_and(|wan| wan.carries(family));
    policy.members.iter().find(|member| carries(&member.wan))?;
    let standings: Standings = config
        .wans
        .values()
        .filter(|wan| wan.carries(family))
        .map(|wan| {
            let health = if down.contains(&wan.name) { Health::Down } else { Health::Up };
            ((wan.id, family), Standing::of(health))
        })
        .collect();
    let facts = Facts { config, standings: &standings, settled: true, headroom: &BTreeMap::new() };
    let lines = facts.buckets(policy, family).map(|buckets| buckets.lines()).unwrap_or_default();
    Some(lines.keys().filter_map(|id| config.wan(*id)).map(|wan| wan.name.clone()).collect())
}

/// Why the claim is wrong; `None` if it holds.
fn flow(config: &Config, from: &Place, to: &Place, packet: Option<PacketClaim>, allowed: bool) -> Option<String> {
    let mut judged = false;
    for source in areas(config, from, true) {
        for target in areas(config, to, false) {
            for family in Family::ALL {
                let (sources, targets) = (spans(&source.addresses, family), spans(&target.addresses, family));
                if sources.is_empty() || targets.is_empty() {
                    continue;
                }
                judged = true;
                let openings = openings(config, &source.zone, &target.zone, None);
                let why = if allowed {
                    closed(&openings, &sources, &targets, packet, family)
                } else {
                    open(&openings, &sources, &targets, packet, family)
                };
                if why.is_some() {
                    return why;
                }
            }
        }
    }
    (allowed && !judged).then(|| "the two have no address family in common".to_owned())
}

/// Something of the claim that the file lets through.
fn open(
    openings: &[Opening<'_>],
    sources: &[Span],
    targets: &[Span],
    packet: Option<PacketClaim>,
    family: Family,
) -> Option<String> {
    let meets = |set: Option<&AddressSet>, area: &[Span]| {
        set.is_none_or(|set| spans(set, family).iter().any(|a| area.iter().any(|b| a.0 <= b.1 && b.0 <= a.1)))
    };
    let found = openings.iter().find(|opening| {
        let fits = opening.ports.as_deref().is_none_or(|ports| match packet {
            Some(packet) => holds(ports, protocol(packet), family),
            None => !ports.is_empty(),
        });
        fits && meets(opening.source, sources) && meets(opening.destination.as_deref(), targets)
    })?;
    Some(format!("allowed ({family}): {}", found.reason))
}

/// Something of the claim that the file does not let through.
fn closed(
    openings: &[Opening<'_>],
    sources: &[Span],
    targets: &[Span],
    packet: Option<PacketClaim>,
    family: Family,
) -> Option<String> {
    let fitting: Vec<_> = openings
        .iter()
        // What names stand for changes: nothing of it is always let through.
        .filter(|opening| opening.named.is_none())
        .filter(|opening| {
            opening.ports.as_deref().is_none_or(|ports| match packet {
                Some(packet) => holds(ports, protocol(packet), family),
                None => holds_everything(ports, family),
            })
        })
        .collect();
    let of = |set: Option<&AddressSet>| set.map_or_else(|| vec![(0, u128::MAX)], |set| spans(set, family));
    // Between two neighbouring bounds of source sets every source meets the same entries.
    let mut bounds = BTreeSet::new();
    for (first, last) in fitting.iter().flat_map(|opening| of(opening.source)) {
        bounds.insert(first);
        bounds.extend(last.checked_add(1));
    }
    for (first, last) in sources {
        let mut start = *first;
        while start <= *last {
            let next = bounds.range((std::ops::Bound::Excluded(start), std::ops::Bound::Unbounded)).next();
            let meets =
                |opening: &&&Opening<'_>| of(opening.source).iter().any(|span| span.0 <= start && start <= span.1);
            let covered: Vec<_> =
                fitting.iter().filter(meets).flat_map(|opening| of(opening.destination.as_deref())).collect();
            if let Some(target) = uncovered(targets, covered) {
                let (source, target) = (address(start, family), address(target, family));
                return Some(format!("denied for example from {source} to {target}"));
            }
            match next {
                Some(next) => start = *next,
                None => break,
            }
        }
    }
    None
}

/// The first address of `area` that no span covers.
fn uncovered(area: &[Span], mut cover: Vec<Span>) -> Option<u128> {
    cover.sort_unstable();
    area.iter().find_map(|(first, last)| {
        let mut next = *first;
        for (from, to) in &cover {
            if *from <= next && next <= *to {
                if to >= last {
                    return None;
                }
                next = to + 1;
            }
        }
        Some(next)
    })
}

/// Addresses that are judged alike.
struct Area {
    zone: Zone,
    addresses: AddressSet,
}

fn areas(config: &Config, place: &Place, sends: bool) -> Vec<Area> {
    let one = |address: IpAddr| {
        let mut addresses = AddressSet::default();
        addresses.add(address.into());
        Area { zone: Zone::of(config, address), addresses }
    };
    match place {
        Place::Vlan(name) => {
            let mut addresses = AddressSet::default();
            for net in config.vlans.get(name).into_iter().flat_map(Vlan::networks) {
                addresses.add(net);
            }
            vec![Area { zone: Zone::Vlan(name.clone()), addresses: without(&addresses, &no_sources(config)) }]
        }
        Place::Host(name) => {
            config.hosts.get(name).into_iter().flat_map(|host| &host.addresses).map(|address| one(*address)).collect()
        }
        Place::Address(address) => {
            let mut area = vec![one(*address)];
            if sends && matches!(area.first(), Some(Area { zone: Zone::Internet, .. })) {
                area = by_line(config, &area.remove(0).addresses);
            }
            area
        }
        Place::Internet => {
            let mut everything = AddressSet::default();
            everything.add(ipnet::IpNet::V4(ipnet::Ipv4Net::default()));
            everything.add(ipnet::IpNet::V6(ipnet::Ipv6Net::default()));
            let beyond = without(&everything, &local(config));
            if sends { by_line(config, &beyond) } else { vec![Area { zone: Zone::Internet, addresses: beyond }] }
        }
        Place::Router => {
            let mut addresses = AddressSet::default();
            for address in own(config) {
                addresses.add(address.into());
            }
            vec![Area { zone: Zone::Router, addresses }]
        }
    }
}

/// From outside a packet may come in by any line, and each has its own `input`.
fn by_line(config: &Config, addresses: &AddressSet) -> Vec<Area> {
    let lines = config.wans.keys().map(|wan| Area { zone: Zone::Wan(wan.clone()), addresses: addresses.clone() });
    lines.collect()
}

/// First and last address, as numbers.
type Span = (u128, u128);

fn spans(set: &AddressSet, family: Family) -> Vec<Span> {
    match family {
        Family::V4 => set.v4.iter().map(|r| (u128::from(r.start().to_bits()), u128::from(r.end().to_bits()))).collect(),
        Family::V6 => set.v6.iter().map(|r| (r.start().to_bits(), r.end().to_bits())).collect(),
    }
}

fn address(number: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}

fn without(set: &AddressSet, hole: &AddressSet) -> AddressSet {
    let mut left = AddressSet::default();
    for family in Family::ALL {
        let holes = spans(hole, family);
        for (first, last) in spans(set, family) {
            let mut start = Some(first);
            for (from, to) in holes.iter().filter(|(from, to)| *from <= last && *to >= first) {
                if let Some(begin) = start.filter(|begin| begin < from) {
                    add(&mut left, (begin, from - 1), family);
                }
                start = to.checked_add(1);
            }
            if let Some(begin) = start.filter(|begin| *begin <= last) {
                add(&mut left, (begin, last), family);
            }
        }
    }
    left
}

fn add(set: &mut AddressSet, (first, last): Span, family: Family) {
    match (address(first, family), address(last, family)) {
        (IpAddr::V4(first), IpAddr::V4(last)) => set.add_range4(first..=last),
        (IpAddr::V6(first), IpAddr::V6(last)) => set.add_range6(first..=last),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
}

/// From whatever port it comes.
fn about(claim: PacketClaim, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp { destination, .. } => claim == PacketClaim::Tcp(destination),
        Protocol::Udp { destination, .. } => claim == PacketClaim::Udp(destination),
        Protocol::Ping => claim == PacketClaim::Ping,
        Protocol::Other(_) => false,
    }
}

fn protocol(packet: PacketClaim) -> Protocol {
    match packet {
        PacketClaim::Tcp(destination) => Protocol::Tcp { source: 40_000, destination },
        PacketClaim::Udp(destination) => Protocol::Udp { source: 40_000, destination },
        PacketClaim::Ping => Protocol::Ping,
    }
}

fn holds_everything(ports: &PortSet, family: Family) -> bool {
    let full = |ranges: &[RangeInclusive<u16>]| ranges == [0..=u16::MAX];
    let covers = |number: u8| {
        ports.protocols.contains(&number)
            || (number == 6 && full(&ports.tcp))
            || (number == 17 && full(&ports.udp))
            // Another family's ICMP is nothing a host of this one sends.
            || (family == Family::V6 && number == 1)
            || (family == Family::V4 && number == 58)
    };
    (0..=u8::MAX).all(covers)
}

fn list(wans: &BTreeSet<WanName>) -> String {
    if wans.is_empty() {
        return "none".to_owned();
    }
    wans.iter().map(WanName::as_str).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_packet_is_denied_by_claim_wherever_it_was_seen_to_leave() {
        let mut config = fixture::site();
        let claim = Claim::Flow {
            from: Place::Vlan("servers".parse().unwrap()),
            to: Place::Internet,
            packet: Some(PacketClaim::Tcp(443)),
            allowed: false,
        };
        config.asserts = vec![Assert { text: "no web".to_owned(), claim, line: Line(7) }];
        let ask =
            |to: &str, protocol| Packet::new(&config, "10.0.30.9".parse().unwrap(), to.parse().unwrap(), protocol);
        let tcp = |destination| Protocol::Tcp { source: 50_123, destination };
        let web = ask("198.18.0.1", tcp(443));
        let line = config.wans.keys().next().unwrap().clone();
        for to in [Zone::Internet, Zone::Wan(line)] {
            assert!(against(&config, &Packet { to, ..web.clone() }).is_some());
        }
        assert!(against(&config, &ask("198.18.0.1", tcp(80))).is_none());
        assert!(against(&config, &ask("10.0.10.9", tcp(443))).is_none());
    }

    #[test]
    fn claims_about_flows_are_decided_for_every_address() {
        let host = |name: &str| Place::Host(name.parse().unwrap());
        let vlan = |name: &str| Place::Vlan(name.parse().unwrap());
        let tcp = |port| Some(PacketClaim::Tcp(port));
        let table = [
            (vlan("guests"), vlan("office"), None, false, true),
            (vlan("guests"), vlan("office"), None, true, false),
            (vlan("servers"), vlan("guests"), None, true, true),
            (vlan("servers"), vlan("guests"), tcp(22), false, false),
            // The printer only, by IPv4 only.
            (vlan("office"), vlan("guests"), tcp(631), true, false),
            (vlan("office"), vlan("guests"), tcp(631), false, false),
            (vlan("office"), vlan("guests"), tcp(632), false, true),
            (vlan("office"), host("printer"), tcp(631), true, true),
            (vlan("office"), host("printer"), None, true, false),
            (vlan("office"), Place::Internet, None, true, true),
            (vlan("guests"), Place::Internet, tcp(443), true, true),
            (vlan("guests"), Place::Internet, None, true, false),
            (vlan("guests"), Place::Internet, tcp(25), false, true),
            (vlan("servers"), Place::Internet, None, false, true),
            (vlan("servers"), Place::Address("192.0.2.9".parse().unwrap()), tcp(443), false, true),
            (vlan("office"), Place::Router, tcp(53), true, true),
            (vlan("office"), Place::Router, tcp(22), false, true),
            (Place::Internet, Place::Router, None, false, true),
            (Place::Internet, vlan("office"), None, false, true),
            (Place::Internet, host("printer"), Some(PacketClaim::Ping), true, false),
            (Place::Router, vlan("office"), None, true, true),
        ];
        let config = fixture::site();
        for (from, to, packet, allowed, holds) in table {
            let why = flow(&config, &from, &to, packet, allowed);
            assert_eq!(why.is_none(), holds, "{from:?} -> {to:?} {packet:?} allowed={allowed}: {why:?}");
        }
    }

    #[test]
    fn an_entry_for_half_a_vlan_does_not_allow_the_vlan_and_two_halves_do() {
        let mut config = fixture::site();
        let (office, servers) = ("office".parse().unwrap(), "servers".parse().unwrap());
        let claim = |config: &Config| {
            flow(config, &Place::Vlan("servers".parse().unwrap()), &Place::Vlan("office".parse().unwrap()), None, true)
        };
        let half = |nets: &[&str]| config::model::Cell {
            from: config::units::VlanName::clone(&servers),
            to: config::units::VlanName::clone(&office),
            from_hosts: Some(fixture::addresses(nets)),
            ..fixture::site().cells[1].clone()
        };
        config.cells.push(half(&["10.0.30.0/25", "fd00:30::/64"]));
        assert_eq!(claim(&config).as_deref(), Some("denied for example from 10.0.30.128 to 10.0.10.2"));
        config.cells.push(half(&["10.0.30.128/25"]));
        assert_eq!(claim(&config), None);
    }

    #[test]
    fn a_policy_uses_what_is_left_of_its_lines() {
        let mut config = fixture::site();
        let wans = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<BTreeSet<WanName>>();
        let uses = |down: &[&str], uses: &[&str]| Assert {
            text: "claim".to_owned(),
            claim: Claim::Uses { down: wans(down), policy: "backup".parse().unwrap(), uses: wans(uses) },
            line: Line(1),
        };
        config.asserts = vec![
            uses(&["wan2"], &["wan1"]),
            uses(&["wan1", "wan2"], &[]),
            uses(&["wan1"], &["wan2"]),
            uses(&["wan2"], &["wan2"]),
        ];
        let broken = broken(&config);
        assert_eq!(broken.len(), 1);
        assert_eq!(broken[0].why, "it uses wan1 (IPv4)");
    }
}
