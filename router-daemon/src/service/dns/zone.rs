//! What the router knows by itself: the hosts of the site file, its own addresses, the reverse of both, and names that
//! must not be asked outside. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use config::Config;
use config::domain::DomainName;
use config::units::VlanName;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use ipnet::IpNet;

/// Built once for each config.
#[derive(Debug, Default)]
pub(super) struct Zone {
    hosts: BTreeMap<DomainName, Vec<IpAddr>>,
    reverse: BTreeMap<IpAddr, DomainName>,
    /// What names below are ours to answer for.
    ours: Vec<DomainName>,
    router: BTreeMap<VlanName, Vec<IpAddr>>,
    router_names: BTreeSet<DomainName>,
    /// Zones that somebody inside answers for.
    forwarded: Vec<DomainName>,
    origin: Option<DomainName>,
}

/// What the router says by itself.
#[derive(Debug, PartialEq)]
pub(super) struct Own {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// For what is not there: how long that may be remembered (RFC 2308).
    pub(super) authority: Option<Record>,
}

impl Zone {
    pub(super) fn new(config: &Config) -> Self {
        let Some(dns) = &config.dns else { return Self::default() };
        let mut ours = vec![dns.domain.clone()];
        ours.extend(LOCAL.parse().ok());
        let mut zone = Self {
            ours,
            forwarded: dns.forward.keys().cloned().collect(),
            origin: Some(dns.domain.clone()),
            ..Self::default()
        };
        let mut suffixes = vec![dns.domain.clone()];
        suffixes.extend(dns.dot_local.then(|| LOCAL.parse().ok()).flatten());
        for suffix in &suffixes {
            let below = |name: &str| format!("{name}.{suffix}").parse::<DomainName>().ok();
            for host in config.hosts.values() {
                let Some(name) = below(host.name.as_str()) else { continue };
                zone.hosts.insert(name.clone(), host.addresses.iter().copied().take(MOST).collect());
                for address in &host.addresses {
                    zone.reverse.entry(*address).or_insert_with(|| name.clone());
                }
            }
            zone.router_names.extend(below(ROUTER));
        }
        for vlan in config.vlans.values() {
            let own: Vec<_> = vlan.addresses.iter().map(IpNet::addr).collect();
            if let Some(name) = zone.router_names.first() {
                zone.reverse.extend(own.iter().map(|address| (*address, name.clone())));
            }
            zone.router.insert(vlan.name.clone(), own);
        }
        zone
    }

    /// `None`: it is somebody else's to answer.
    pub(super) fn answer(&self, vlan: &VlanName, name: &DomainName, kind: RecordType) -> Option<Own> {
        if self.forwarded.iter().any(|zone| name.is_within(zone)) && !self.ours.iter().any(|ours| name.is_within(ours))
        {
            return None;
        }
        if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
            let both = ["127.0.0.1", "::1"].iter().filter_map(|address| address.parse().ok()).collect();
            return Some(self.addresses(name, both, kind));
        }
        if let Some(address) = reversed(name) {
            let known = self.reverse.get(&address);
            return match known {
                Some(host) => {
                    let target = absolute(host)?;
                    let found = (kind == RecordType::PTR).then_some(RData::PTR(rdata::PTR(target)));
                    Some(self.found(name, found.into_iter().collect()))
                }
                None if stays_inside(address) => Some(self.missing()),
                None => None,
            };
        }
        if UNKNOWN.iter().any(|zone| name.as_str() == *zone || name.as_str().ends_with(&format!(".{zone}"))) {
            return Some(self.missing());
        }
        if !self.ours.iter().any(|ours| name.is_within(ours)) {
            return None;
        }
        if self.router_names.contains(name) {
            let own = self.router.get(vlan).cloned().unwrap_or_default();
            return Some(self.addresses(name, own, kind));
        }
        match self.hosts.get(name) {
            Some(addresses) => Some(self.addresses(name, addresses.clone(), kind)),
            // The zone itself is there, and has nothing.
            None if self.ours.contains(name) => Some(self.found(name, Vec::new())),
            None => Some(self.missing()),
        }
    }

    pub(super) fn names(&self) -> usize {
        self.hosts.len()
    }

    fn addresses(&self, name: &DomainName, addresses: Vec<IpAddr>, kind: RecordType) -> Own {
        let fits = |address: IpAddr| match (address, kind) {
            (IpAddr::V4(address), RecordType::A | RecordType::ANY) => Some(RData::A(address.into())),
            (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(address.into())),
            (IpAddr::V4(_) | IpAddr::V6(_), _) => None,
        };
        self.found(name, addresses.into_iter().filter_map(fits).collect())
    }

    fn found(&self, name: &DomainName, data: Vec<RData>) -> Own {
        let name = absolute(name).unwrap_or_default();
        let answers: Vec<_> = data.into_iter().map(|data| Record::from_rdata(name.clone(), TTL, data)).collect();
        let authority = if answers.is_empty() { self.start() } else { None };
        Own { code: ResponseCode::NoError, answers, authority }
    }

    fn missing(&self) -> Own {
        Own { code: ResponseCode::NXDomain, answers: Vec::new(), authority: self.start() }
    }

    /// The start of authority, without which nobody remembers that something is not there.
    fn start(&self) -> Option<Record> {
        let origin = absolute(self.origin.as_ref()?)?;
        let server = Name::from_ascii(ROUTER).ok()?.append_domain(&origin).ok()?;
        let mail = Name::from_ascii("hostmaster").ok()?.append_domain(&origin).ok()?;
        let soa = rdata::SOA::new(server, mail, 1, 3600, 600, 86_400, TTL);
        Some(Record::from_rdata(origin, TTL, RData::SOA(soa)))
    }
}

pub(super) fn absolute(name: &DomainName) -> Option<Name> {
    let mut name = Name::from_ascii(name.as_str()).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The address that a name of the reverse tree is about (RFC 1035, 3.5; RFC 3596, 2.5).
fn reversed(name: &DomainName) -> Option<IpAddr> {
    let net = absolute(name)?.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// Nobody outside can know these (RFC 6303).
fn stays_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private() || address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local() || address.is_loopback(),
    }
}

/// Of an answer of our own, in seconds: the next apply may say otherwise.
const TTL: u32 = 60;
/// Addresses of one host in one answer.
const MOST: usize = 32;
const ROUTER: &str = "router";
const LOCAL: &str = "local";
/// Never asked outside (RFC 6761, RFC 7686).
const UNKNOWN: [&str; 3] = ["invalid", "onion", "test"];

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(extra: &str) -> Zone {
        let text = include_str!("../../../../config/examples/minimal.toml");
        let text = format!("{text}\n[dns]\nupstreams = [\"192.0.2.53\"]\n{extra}");
        Zone::new(&config::parse("site.toml", &text).unwrap_or_else(|p| panic!("{p}")).config)
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> Option<String> {
        let own = zone.answer(&"office".parse().unwrap(), &name.parse().unwrap(), kind)?;
        let data: Vec<_> = own.answers.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(own.answers.is_empty(), own.authority.is_some(), "{name}");
        Some(if data.is_empty() { format!("{:?}", own.code) } else { data.join(" ") })
    }

    #[test]
    fn hosts_of_the_file_are_names_both_ways() {
        let zone = zone("");
        for (name, kind, wanted) in [
            ("printer.home.arpa", RecordType::A, Some("10.0.20.5")),
            ("PRINTER.home.arpa.", RecordType::A, Some("10.0.20.5")),
            ("printer.home.arpa", RecordType::AAAA, Some("NoError")),
            ("nobody.home.arpa", RecordType::A, Some("NXDomain")),
            ("home.arpa", RecordType::A, Some("NoError")),
            ("router.home.arpa", RecordType::A, Some("10.0.10.1")),
            ("5.20.0.10.in-addr.arpa", RecordType::PTR, Some("printer.home.arpa.")),
            ("1.20.0.10.in-addr.arpa", RecordType::PTR, Some("router.home.arpa.")),
            ("9.20.0.10.in-addr.arpa", RecordType::PTR, Some("NXDomain")),
            ("1.2.0.192.in-addr.arpa", RecordType::PTR, None),
            ("printer.local", RecordType::A, Some("NXDomain")),
            ("localhost", RecordType::A, Some("127.0.0.1")),
            ("hidden.onion", RecordType::A, Some("NXDomain")),
            ("example.com", RecordType::A, None),
        ] {
            assert_eq!(ask(&zone, name, kind).as_deref(), wanted, "{name} {kind}");
        }
    }

    #[test]
    fn dot_local_is_served_where_it_is_written_and_zones_of_others_are_left_to_them() {
        let zone = zone(
            "dot_local = true\nforward = { \"corp.example\" = \"10.0.20.53\", \"20.0.10.in-addr.arpa\" = \"10.0.20.53\" }\n",
        );
        assert_eq!(ask(&zone, "printer.local", RecordType::A).as_deref(), Some("10.0.20.5"));
        assert_eq!(ask(&zone, "5.20.0.10.in-addr.arpa", RecordType::PTR), None);
        assert_eq!(ask(&zone, "a.corp.example", RecordType::A), None);
    }
}
