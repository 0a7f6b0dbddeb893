//! Sets of addresses and ports as nft expressions. One description of traffic may need several rules: a family
//! each, and one each for ports, echo requests and other protocols.

use std::fmt::Display;
use std::ops::RangeInclusive;

use config::model::{AddressSet, PortSet};
use config::units::Family;

/// Traffic by its packets. `None` is anything.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic<'a> {
    pub(super) source: Option<&'a AddressSet>,
    pub(super) destination: Option<&'a AddressSet>,
    pub(super) source_ports: Option<&'a PortSet>,
    pub(super) ports: Option<&'a PortSet>,
}

impl Traffic<'_> {
    /// The left sides of the rules that together match this traffic; none where nothing can match. A set of
    /// addresses that holds one family only never matches the other.
    pub(super) fn rules(&self) -> Vec<String> {
        let limited = self.source.is_some() || self.destination.is_some();
        let families = if limited { vec![Some(Family::V4), Some(Family::V6)] } else { vec![None] };
        let mut rules = Vec::new();
        for family in families {
            let Some(addresses) = self.addresses(family) else { continue };
            rules.extend(self.protocols(family).into_iter().map(|protocol| join(&[&addresses, &protocol])));
        }
        rules
    }

    /// The same within one family, for a rule that says whose the addresses are.
    pub(super) fn of(&self, family: Family) -> Vec<String> {
        self.protocols(Some(family))
    }

    /// Single destinations and ports as elements of a set, each with the key it stands under, and the ports for which
    /// that cannot be said. A key that holds two interfaces has no room for two IPv6 addresses more, so what is
    /// limited by its source stays a rule.
    pub(super) fn singles(&self) -> (Vec<(String, String)>, Option<PortSet>) {
        let whole = || (Vec::new(), self.ports.cloned());
        let (None, None, Some(ports)) = (self.source, self.source_ports, self.ports) else { return whole() };
        let mut hosts = vec![(String::new(), String::new())];
        if let Some(set) = self.destination {
            let single = set.v4.iter().all(|range| range.start() == range.end())
                && set.v6.iter().all(|range| range.start() == range.end());
            if !single {
                return whole();
            }
            hosts.clear();
            for family in Family::ALL {
                let key = format!("{} daddr . ", keyword(family));
                hosts.extend(elements(set, family).into_iter().map(|host| (key.clone(), format!("{host} . "))));
            }
        }
        let mut rest = PortSet { tcp: Vec::new(), udp: Vec::new(), ..ports.clone() };
        let mut singles = Vec::new();
        for (protocol, ranges, left) in [("tcp", &ports.tcp, &mut rest.tcp), ("udp", &ports.udp, &mut rest.udp)] {
            for range in ranges {
                if range.start() == range.end() {
                    singles.push(format!("{protocol} . {}", range.start()));
                } else {
                    left.push(range.clone());
                }
            }
        }
        if hosts.len().saturating_mul(singles.len()) > MOST_SINGLES {
            return whole();
        }
        let found = hosts.iter().flat_map(|(key, host)| {
            let key = format!("{key}meta l4proto . th dport");
            singles.iter().map(move |port| (key.clone(), format!("{host}{port}")))
        });
        (found.collect(), Some(rest))
    }

    fn addresses(&self, family: Option<Family>) -> Option<String> {
        let Some(family) = family else { return Some(String::new()) };
        let mut parts = Vec::new();
        for (set, side) in [(self.source, "saddr"), (self.destination, "daddr")] {
            if let Some(set) = set {
                let elements = elements(set, family);
                if elements.is_empty() {
                    return None;
                }
                parts.push(format!("{} {side} {{ {} }}", keyword(family), elements.join(", ")));
            }
        }
        Some(parts.join(" "))
    }

    fn protocols(&self, family: Option<Family>) -> Vec<String> {
        let (from, to) = match (self.source_ports, self.ports) {
            (None, None) => return vec![String::new()],
            sides => sides,
        };
        let mut rules = Vec::new();
        // A set for each field, and not one of protocol and ports together: with ranges in it the kernel fills such a
        // set (pipapo) a moment after the rules that look into it are in force, and a reload would deny what it must not.
        let picks: [(&str, Pick); 2] = [("tcp", |set| &set.tcp), ("udp", |set| &set.udp)];
        for (protocol, pick) in picks {
            let side = |set: Option<&PortSet>, field: &str| match set.map(pick) {
                None => Some(String::new()),
                Some([]) => None,
                Some(ranges) => {
                    let ranges = ranges.iter().map(span).collect::<Vec<_>>();
                    Some(format!("{protocol} {field} {{ {} }}", ranges.join(", ")))
                }
            };
            if let (Some(source), Some(destination)) = (side(from, "sport"), side(to, "dport")) {
                rules.push(join(&[&source, &destination]));
            }
        }
        if from.is_none_or(|set| set.ping) && to.is_none_or(|set| set.ping) {
            let echo = [(Family::V4, "icmp type echo-request"), (Family::V6, "icmpv6 type echo-request")];
            let fits = |of: &Family| family.is_none_or(|family| family == *of);
            rules.extend(echo.into_iter().filter(|(of, _)| fits(of)).map(|(_, rule)| rule.to_owned()));
        }
        let others: Vec<_> = (0..=u8::MAX)
            .filter(|number| {
                let holds = |set: &PortSet| set.protocols.contains(number);
                from.is_none_or(holds) && to.is_none_or(holds)
            })
            .map(|number| number.to_string())
            .collect();
        if !others.is_empty() {
            rules.push(format!("meta l4proto {{ {} }}", others.join(", ")));
        }
        rules
    }
}

/// The port ranges of one protocol.
type Pick = fn(&PortSet) -> &[RangeInclusive<u16>];

/// Above this a permit's hosts times its ports is better two small sets than one large one.
const MOST_SINGLES: usize = 256;

/// The elements of this family, as nft writes ranges.
pub(super) fn elements(set: &AddressSet, family: Family) -> Vec<String> {
    match family {
        Family::V4 => set.v4.iter().map(span).collect(),
        Family::V6 => set.v6.iter().map(span).collect(),
    }
}

/// `ip` or `ip6`.
pub(super) fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The parts that are not empty, with a space between.
pub(super) fn join(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ")
}

fn span<T: Display + PartialEq>(range: &RangeInclusive<T>) -> String {
    if range.start() == range.end() { range.start().to_string() } else { format!("{}-{}", range.start(), range.end()) }
}
