//! Leases: what a provider granted a line, for how long, and the config that comes of it.
//!
//! The operator's config names the lines whose addresses are leased and says nothing of them. [`effective`] fills in what
//! is granted; everybody else (`compile`, the matrix, `explain`, the monitors) sees that config alone. Where nothing is
//! leased, it is the operator's.
//!
//! ```text
//!   nothing yet ──granted──▶ held ──its time is over──▶ expired ──granted──▶ held
//!                            │ ▲──granted anew           refused: taken back by the provider, or not fit for this site
//!                            └─withdrawn──▶ withdrawn ──granted──▶ held
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::model::{DelegatedNet, LineRoute, Vlan, Wan};
use config::units::{Family, VlanName, WanName};
use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// What a provider granted a line in one family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Own addresses, with the prefix length of their network.
    pub addresses: Vec<IpNet>,
    pub gateway: Option<IpAddr>,
    pub mtu: Option<u16>,
    /// What is reached by another way than the gateway: DHCP's classless routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<LineRoute>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Prefixes for the VLANs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<Ipv6Net>,
    /// For how long prefixes are granted at least, each time; `None`: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_span: Option<Duration>,
    /// Who granted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<IpAddr>,
}

/// What became of the lease of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// Until then; [`Time::NEVER`] is for ever.
    Held {
        lease: Lease,
        until: Time,
    },
    Gone(Gone),
}

/// Why a line has no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gone {
    /// Its time was over.
    Expired,
    /// The server took it back (NAK).
    Refused,
    /// The client gave it up.
    Withdrawn,
}

impl Gone {
    pub fn told(self) -> &'static str {
        match self {
            Self::Expired => "lease expired",
            Self::Refused => "lease refused by the server",
            Self::Withdrawn => "lease given up",
        }
    }
}

/// Why a lease cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the lease has no address")]
    NoAddress,
    #[error("the lease has no gateway")]
    NoGateway,
    #[error("the lease has the address {0}, which no host can have")]
    Address(IpNet),
    #[error("the lease has the gateway {0}, which no router can be")]
    Gateway(IpAddr),
    #[error("the network {net} of the lease overlaps {own} of VLAN {vlan}: renumber one of the two")]
    Overlap { net: IpNet, own: IpNet, vlan: String },
}

impl Lease {
    /// Whether it can be used in this site.
    pub fn fits(&self, config: &Config) -> Result<(), Unfit> {
        if self.addresses.is_empty() {
            return Err(Unfit::NoAddress);
        }
        if let Some(net) = self.addresses.iter().find(|net| !is_host(net)) {
            return Err(Unfit::Address(*net));
        }
        let gateway = self.gateway.ok_or(Unfit::NoGateway)?;
        let unusable = gateway.is_unspecified() || gateway.is_multicast() || gateway.is_loopback();
        if unusable || self.addresses.iter().any(|own| own.addr() == gateway) {
            return Err(Unfit::Gateway(gateway));
        }
        let near = self.addresses.iter().map(IpNet::trunc).chain([IpNet::from(gateway)]);
        for net in near {
            let vlans = config.vlans.values().flat_map(|vlan| vlan.networks().map(move |own| (vlan, own)));
            for (vlan, own) in vlans {
                if net.contains(&own.trunc()) || own.trunc().contains(&net) {
                    return Err(Unfit::Overlap { net, own: own.trunc(), vlan: vlan.name.to_string() });
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        f.write_str(&addresses)?;
        if let Some(gateway) = self.gateway {
            write!(f, ", gateway {gateway}")?;
        }
        if !self.prefixes.is_empty() {
            let prefixes = self.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            write!(f, ", prefix {prefixes}")?;
        }
        Ok(())
    }
}

/// The leases of all lines, by line and family. Of a line that no config names they are kept: it may be named again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    #[serde(with = "crate::state::as_pairs")]
    grants: BTreeMap<(WanName, Family), Held>,
}

/// A grant, and since when it is this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub grant: Grant,
    pub since: Time,
}

impl Leases {
    /// Whether something about it changed beside its end.
    pub fn take(&mut self, wan: &WanName, family: Family, grant: &Grant, now: Time) -> bool {
        let key = (wan.clone(), family);
        if let (Some(Held { grant: Grant::Held { lease: old, until }, .. }), Grant::Held { lease, until: end }) =
            (self.grants.get_mut(&key), grant)
            && old == lease
        {
            *until = *end;
            return false;
        }
        if self.grants.get(&key).is_some_and(|held| held.grant == *grant) {
            return false;
        }
        self.grants.insert(key, Held { grant: grant.clone(), since: now });
        true
    }

    /// Ends those whose time is over.
    pub fn expire(&mut self, now: Time) -> Vec<(WanName, Family)> {
        let mut expired = Vec::new();
        for (key, held) in &mut self.grants {
            if let Grant::Held { until, .. } = held.grant
                && until <= now
            {
                *held = Held { grant: Grant::Gone(Gone::Expired), since: now };
                expired.push(key.clone());
            }
        }
        expired
    }

    /// When the next of them ends.
    pub fn deadline(&self) -> Time {
        let ends = self.grants.values().filter_map(|held| match held.grant {
            Grant::Held { until, .. } => Some(until),
            Grant::Gone(_) => None,
        });
        ends.min().unwrap_or(Time::NEVER)
    }

    pub fn forget(&mut self, gone: impl Fn(&WanName) -> bool) {
        self.grants.retain(|(wan, _), _| !gone(wan));
    }

    pub fn get(&self, wan: &WanName, family: Family) -> Option<&Held> {
        self.grants.get(&(wan.clone(), family))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&WanName, Family, &Held)> {
        self.grants.iter().map(|((wan, family), held)| (wan, *family, held))
    }

    /// The lease of a line that is to be used; `Err` says why there is none.
    pub fn usable(&self, config: &Config, wan: &WanName, family: Family) -> Result<&Lease, String> {
        match self.get(wan, family).map(|held| &held.grant) {
            None => Err("no lease yet".to_owned()),
            Some(Grant::Gone(why)) => Err(why.told().to_owned()),
            Some(Grant::Held { lease, .. }) => match lease.fits(config) {
                Ok(()) => Ok(lease),
                Err(unfit) => Err(unfit.to_string()),
            },
        }
    }
}

/// The config as it is with these leases: the operator's own where nothing is leased.
pub fn effective(config: &Arc<Config>, leases: &Leases) -> Arc<Config> {
    if config.wans.values().all(|wan| wan.method.is_static()) {
        return Arc::clone(config);
    }
    let mut filled = Config::clone(config);
    for wan in filled.wans.values_mut() {
        for family in Family::ALL {
            if wan.is_leased(family)
                && let Ok(lease) = leases.usable(config, &wan.name, family)
            {
                fill(wan, family, lease, config);
            }
        }
    }
    delegate(&mut filled, config, leases);
    Arc::new(filled)
}

/// Gives VLANs their subnets of the prefixes that are leased.
fn delegate(filled: &mut Config, config: &Config, leases: &Leases) {
    let mut given: Vec<(WanName, DelegatedNet)> = Vec::new();
    for (name, vlan) in &config.vlans {
        let Some(delegated) = &vlan.delegated else { continue };
        for line in &delegated.lines {
            let wan = config.wans.get(line).filter(|wan| wan.is_leased(Family::V6));
            let Some(Ok(lease)) = wan.map(|wan| leases.usable(config, &wan.name, Family::V6)) else { continue };
            let nets = lease.prefixes.iter().filter_map(|prefix| subnet_of(prefix, delegated.subnet));
            for own in nets {
                if is_used(&own, filled) || given.iter().any(|(_, net)| net.own == own) {
                    continue;
                }
                given.push((line.clone(), DelegatedNet { vlan: VlanName::clone(name), own, span: lease.prefix_span }));
            }
        }
    }
    for (line, net) in given {
        if let Some(vlan) = filled.vlans.get_mut(&net.vlan) {
            vlan.addresses.push(net.own.into());
        }
        if let Some(wan) = filled.wans.get_mut(&line) {
            wan.addressing.delegated.push(net);
        }
    }
}

/// The router's address in the subnet of this number; `None` where a provider gave too little for it.
fn subnet_of(prefix: &Ipv6Net, number: u16) -> Option<Ipv6Net> {
    let bits = 64_u32.checked_sub(u32::from(prefix.prefix_len()))?;
    // 2000::/3 and fc00::/7: what a provider may give a network to call its own.
    let sensible = matches!(prefix.network().segments()[0] >> 8, 0x20..=0x3f | 0xfc..=0xfd);
    if !sensible || bits < 16 && u32::from(number) >> bits != 0 {
        return None;
    }
    Ipv6Net::new(Ipv6Addr::from_bits(prefix.network().to_bits() | u128::from(number) << 64 | 1), 64).ok()
}

/// Whether it overlaps what is somebody's already.
fn is_used(own: &Ipv6Net, filled: &Config) -> bool {
    let own = IpNet::V6(own.trunc());
    let vlans = filled.vlans.values().flat_map(Vlan::networks);
    let wans = filled.wans.values().flat_map(|wan| &wan.addressing.addresses).map(IpNet::trunc);
    vlans.chain(wans).any(|net| own.contains(&net) || net.contains(&own))
}

fn fill(wan: &mut Wan, family: Family, lease: &Lease, config: &Config) {
    wan.addressing.addresses.extend(&lease.addresses);
    match lease.gateway {
        Some(IpAddr::V4(gateway)) => wan.addressing.gateway4 = Some(gateway),
        Some(IpAddr::V6(gateway)) => wan.addressing.gateway6 = Some(gateway),
        None => {}
    }
    // What is inside stays inside, whatever a provider says of it.
    let inside = |net: &IpNet| {
        let mut vlans = config.vlans.values().flat_map(Vlan::networks);
        vlans.any(|own| own.trunc().contains(net) || net.contains(&own.trunc()))
    };
    let routes = lease.routes.iter().filter(|route| route.destination.prefix_len() > 0 && !inside(&route.destination));
    wan.addressing.routes.extend(routes.cloned());
    // RFC 791 asks for 576 bytes of a host, RFC 8200 5 for 1280 of a link that carries IPv6.
    let least = if wan.carries(Family::V6) { 1280 } else { 576 };
    let sensible = lease.mtu.filter(|mtu| (least..=9216).contains(mtu));
    let told = config.wans.get(&wan.name).is_some_and(|written| written.mtu.is_some());
    if !told && let Some(mtu) = sensible {
        // The smaller of what the two families say.
        let other = wan.mtu.filter(|_| family == Family::V6);
        wan.mtu = Some(other.map_or(mtu, |other| other.min(mtu)));
    }
}

fn is_host(net: &IpNet) -> bool {
    let address = net.addr();
    let never = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let reserved = match (address, net) {
        (IpAddr::V4(own), IpNet::V4(net)) => {
            own.is_broadcast()
                || own.is_link_local()
                || net.prefix_len() == 0
                || (net.prefix_len() < 31 && (own == net.network() || own == net.broadcast()))
        }
        (IpAddr::V6(own), IpNet::V6(net)) => own.is_unicast_link_local() || net.prefix_len() == 0,
        (IpAddr::V4(_), IpNet::V6(_)) | (IpAddr::V6(_), IpNet::V4(_)) => true,
    };
    !never && !reserved
}

#[cfg(test)]
mod tests {
    use config::model::{Method, WanDhcp};

    use super::*;
    use crate::fixture;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn lease(address: &str, gateway: &str) -> Lease {
        Lease { addresses: vec![net(address)], gateway: Some(gateway.parse().unwrap()), ..Lease::default() }
    }

    /// `wan1` of the fixture, with its addresses leased.
    fn site(ipv6: bool) -> (Arc<Config>, WanName) {
        let mut config = fixture::site();
        let name: WanName = "wan1".parse().unwrap();
        let wan = config.wans.get_mut(&name).unwrap();
        wan.method = Method::Dhcp(WanDhcp { ipv6, prefix: None });
        wan.addressing = config::model::Addressing::default();
        (Arc::new(config), name)
    }

    fn held(lease: &Lease) -> Grant {
        Grant::Held { lease: lease.clone(), until: Time::from_micros(100) }
    }

    #[test]
    fn without_leased_lines_the_effective_config_is_the_operators() {
        let config = Arc::new(fixture::site());
        assert!(Arc::ptr_eq(&effective(&config, &Leases::default()), &config));
    }

    #[test]
    fn a_lease_fills_its_line_and_no_other() {
        let (config, name) = site(true);
        let mut leases = Leases::default();
        assert_eq!(effective(&config, &leases), config, "nothing is leased yet");
        let four = Lease { mtu: Some(1400), ..lease("198.51.100.7/24", "198.51.100.1") };
        assert!(leases.take(&name, Family::V4, &held(&four), Time::ZERO));
        let six = Lease { mtu: Some(1280), ..lease("2001:db8:77::7/128", "fe80::1") };
        assert!(leases.take(&name, Family::V6, &held(&six), Time::ZERO));
        let filled = effective(&config, &leases);
        let wan = &filled.wans[&name];
        assert_eq!(wan.addressing.addresses, [net("198.51.100.7/24"), net("2001:db8:77::7/128")]);
        assert_eq!(wan.addressing.gateway4, Some("198.51.100.1".parse().unwrap()));
        assert_eq!(wan.addressing.gateway6, Some("fe80::1".parse().unwrap()));
        assert_eq!(wan.mtu, Some(1280));
        for (name, other) in filled.wans.iter().filter(|(other, _)| **other != name) {
            assert_eq!(*other, config.wans[name]);
        }
        assert_eq!(filled.digest, config.digest);
    }

    #[test]
    fn an_mtu_of_the_file_counts_and_a_senseless_one_does_not() {
        let (config, name) = site(false);
        let with = |mtu: u16, config: &Arc<Config>| {
            let mut leases = Leases::default();
            let lease = Lease { mtu: Some(mtu), ..lease("198.51.100.7/24", "198.51.100.1") };
            leases.take(&name, Family::V4, &held(&lease), Time::ZERO);
            effective(config, &leases).wans[&name].mtu
        };
        assert_eq!(with(1492, &config), Some(1492));
        assert_eq!(with(68, &config), None);
        let mut own = Config::clone(&config);
        own.wans.get_mut(&name).unwrap().mtu = Some(1450);
        assert_eq!(with(1400, &Arc::new(own)), Some(1450));
    }

    #[test]
    fn the_same_lease_again_changes_its_end_alone() {
        let (_, name) = site(false);
        let mut leases = Leases::default();
        let lease = lease("198.51.100.7/24", "198.51.100.1");
        assert!(leases.take(&name, Family::V4, &held(&lease), Time::ZERO));
        let until = Time::from_micros(700);
        assert!(!leases.take(&name, Family::V4, &Grant::Held { lease: lease.clone(), until }, Time::from_micros(50)));
        assert_eq!(leases.deadline(), until);
        assert_eq!(leases.get(&name, Family::V4).unwrap().since, Time::ZERO);
        assert_eq!(leases.expire(Time::from_micros(699)), []);
        assert_eq!(leases.expire(until), [(name.clone(), Family::V4)]);
        assert_eq!(leases.deadline(), Time::NEVER);
        let (config, _) = site(false);
        assert_eq!(leases.usable(&config, &name, Family::V4), Err("lease expired".to_owned()));
    }

    #[test]
    fn what_no_provider_may_say_is_refused() {
        let (config, _) = site(false);
        for (address, gateway, why) in [
            ("0.0.0.0/24", "198.51.100.1", "no host can have"),
            ("127.0.0.5/8", "198.51.100.1", "no host can have"),
            ("224.0.0.9/24", "198.51.100.1", "no host can have"),
            ("169.254.3.4/16", "169.254.0.1", "no host can have"),
            ("198.51.100.0/24", "198.51.100.1", "no host can have"),
            ("198.51.100.255/24", "198.51.100.1", "no host can have"),
            ("198.51.100.7/0", "198.51.100.1", "no host can have"),
            ("fe80::7/64", "fe80::1", "no host can have"),
            ("198.51.100.7/24", "198.51.100.7", "no router can be"),
            ("198.51.100.7/24", "0.0.0.0", "no router can be"),
            ("198.51.100.7/24", "239.1.1.1", "no router can be"),
            ("10.0.10.77/24", "10.0.10.1", "overlaps 10.0.10.0/24 of VLAN office"),
            ("10.200.0.7/8", "10.200.0.1", "of VLAN"),
            ("198.51.100.7/32", "10.0.10.1", "overlaps 10.0.10.0/24 of VLAN office"),
        ] {
            let unfit = lease(address, gateway).fits(&config).unwrap_err().to_string();
            assert!(unfit.contains(why), "{address} by {gateway}: {unfit}");
        }
        assert_eq!(Lease::default().fits(&config), Err(Unfit::NoAddress));
        assert_eq!(
            Lease { gateway: None, ..lease("198.51.100.7/24", "198.51.100.1") }.fits(&config),
            Err(Unfit::NoGateway)
        );
        // A single address whose gateway is elsewhere is what some providers hand out.
        lease("198.51.100.7/32", "192.0.2.1").fits(&config).unwrap();
    }

    /// `wan1` and `wan2` leased, and `office` with a subnet of the prefix of both.
    fn delegating() -> (Arc<Config>, [WanName; 2], VlanName) {
        let mut config = fixture::site();
        let lines = ["wan1", "wan2"].map(|name| name.parse::<WanName>().unwrap());
        for wan in config.wans.values_mut() {
            wan.method = Method::Dhcp(WanDhcp { ipv6: true, prefix: Some(56) });
            wan.addressing = config::model::Addressing::default();
        }
        let office: VlanName = "office".parse().unwrap();
        let delegated = config::model::Delegated { lines: lines.to_vec(), subnet: 10 };
        config.vlans.get_mut(&office).unwrap().delegated = Some(delegated);
        (Arc::new(config), lines, office)
    }

    fn prefixed(address: &str, prefix: &str) -> Lease {
        Lease {
            prefixes: vec![prefix.parse().unwrap()],
            prefix_span: Some(Duration::from_secs(4096)),
            ..lease(address, "fe80::1")
        }
    }

    #[test]
    fn a_prefix_is_split_over_the_vlans_that_ask_for_it() {
        let (config, [wan1, wan2], office) = delegating();
        let mut leases = Leases::default();
        leases.take(&wan1, Family::V6, &held(&prefixed("2001:db8:77::7/128", "2001:db8:100::/56")), Time::ZERO);
        leases.take(&wan2, Family::V6, &held(&prefixed("2001:db8:78::7/128", "2001:db8:200::/48")), Time::ZERO);
        let filled = effective(&config, &leases);
        let before = config.vlans[&office].addresses.clone();
        let own = ["2001:db8:100:a::1/64", "2001:db8:200:a::1/64"].map(net);
        assert_eq!(filled.vlans[&office].addresses, [before, own.to_vec()].concat());
        let of: Vec<_> = filled.delegated_to(&office).map(|(wan, net)| (&wan.name, IpNet::V6(net.own))).collect();
        assert_eq!(of, [(&wan1, own[0]), (&wan2, own[1])]);
        for (name, vlan) in filled.vlans.iter().filter(|(name, _)| **name != office) {
            assert_eq!(*vlan, config.vlans[name]);
        }
        // Without the lease there is no prefix.
        leases.take(&wan1, Family::V6, &Grant::Gone(Gone::Expired), Time::ZERO);
        let of: Vec<_> = effective(&config, &leases).delegated_to(&office).map(|(wan, _)| wan.name.clone()).collect();
        assert_eq!(of, [wan2]);
    }

    #[test]
    fn a_delegated_prefix_leaves_untranslated_by_its_own_line_alone() {
        let (config, [wan1, wan2], _) = delegating();
        let mut leases = Leases::default();
        leases.take(&wan1, Family::V6, &held(&prefixed("2001:db8:77::7/128", "2001:db8:100::/56")), Time::ZERO);
        leases.take(&wan2, Family::V6, &held(&prefixed("2001:db8:78::7/128", "2001:db8:200::/56")), Time::ZERO);
        let nat = |nat6: config::model::Nat6, line: u8| {
            let mut config = Config::clone(&effective(&config, &leases));
            config.wans.values_mut().for_each(|wan| wan.nat6 = nat6.clone());
            crate::compile::ruleset::ruleset(&config).chains[&format!("nat_{line}")].join("; ")
        };
        for (line, own) in [(1, "2001:db8:100:a::"), (2, "2001:db8:200:a::")] {
            let kept = format!("meta nfproto ipv4 masquerade; ip6 saddr {{ {own}-{own}X }} accept; ")
                .replace("::X", ":ffff:ffff:ffff:ffff");
            let masqueraded = nat(config::model::Nat6::Masquerade, line);
            assert_eq!(masqueraded, format!("{kept}meta nfproto ipv6 masquerade"));
        }
        let other = nat(config::model::Nat6::None, 2).rsplit("; ").next().unwrap().to_owned();
        assert!(other.contains("2001:db8:100:a::") && other.ends_with("masquerade"), "{other}");
    }

    #[test]
    fn a_prefix_that_cannot_be_this_is_not_split() {
        let (config, [wan1, wan2], office) = delegating();
        // Too short for the number, not of a network's, a VLAN's own, a line's own.
        for prefix in ["2001:db8:100::/61", "fe80::/56", "ff00::/8", "fd00:10::/56", "fd00::/8", "2001:db8:77::/56"] {
            let mut config = Config::clone(&config);
            config.vlans.get_mut(&office).unwrap().addresses = vec![net("10.0.10.1/24"), net("fd00:10:0:a::5/64")];
            let mut leases = Leases::default();
            leases.take(&wan1, Family::V6, &held(&prefixed("2001:db8:77:a::7/64", prefix)), Time::ZERO);
            let filled = effective(&Arc::new(config.clone()), &leases);
            let given: Vec<_> = filled.delegated_to(&office).map(|(_, net)| net.own).collect();
            assert!(given.is_empty() || prefix == "fd00::/8" && given.len() == 1, "{prefix}: {given:?}");
        }
        // One prefix that two providers give is the first one's.
        let mut leases = Leases::default();
        for wan in [&wan1, &wan2] {
            leases.take(wan, Family::V6, &held(&prefixed("2001:db8:77::7/128", "2001:db8:100::/56")), Time::ZERO);
        }
        let filled = effective(&config, &leases);
        assert_eq!(filled.delegated_to(&office).map(|(wan, _)| &wan.name).collect::<Vec<_>>(), [&wan1]);
    }

    #[test]
    fn routes_into_the_site_are_left_out() {
        let (config, name) = site(false);
        let route = |destination: &str| LineRoute { destination: net(destination), gateway: None };
        let routes = ["0.0.0.0/0", "10.0.10.0/25", "10.0.0.0/8", "203.0.113.0/24"].map(route).to_vec();
        let mut leases = Leases::default();
        let lease = Lease { routes, ..lease("198.51.100.7/24", "198.51.100.1") };
        leases.take(&name, Family::V4, &held(&lease), Time::ZERO);
        assert_eq!(effective(&config, &leases).wans[&name].addressing.routes, [route("203.0.113.0/24")]);
    }
}
