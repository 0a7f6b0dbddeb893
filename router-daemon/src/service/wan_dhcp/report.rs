//! What a report of dhcpcd says. Its values come from a stranger's packet: each is parsed, and one that is not what it
//! should be makes the whole report void.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use config::model::LineRoute;
use config::units::{Family, IfName};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mwan::lease::{Gone, Lease};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) interface: IfName,
    pub(super) family: Family,
    /// dhcpcd's word for it.
    pub(super) reason: String,
    pub(super) said: Said,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// For so long; `None` is for ever.
    Held {
        lease: Lease,
        span: Option<Duration>,
    },
    Gone(Gone),
    /// An advertisement of a router.
    Router(Advertised),
    /// What DHCPv6 granted. Nothing in it: all of it is over.
    Granted(Granted),
    /// Something about the client itself.
    Nothing,
}

/// What a router says of its link. A span of zero is an end; `None` is for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Advertised {
    pub(super) router: Ipv6Addr,
    /// For so long it is a gateway.
    pub(super) span: Option<Duration>,
    pub(super) mtu: Option<u16>,
    pub(super) dns: Vec<IpAddr>,
    /// Of which everybody makes himself an address (RFC 4862).
    pub(super) own: Vec<(Ipv6Net, Option<Duration>)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) addresses: Vec<(Ipv6Addr, Option<Duration>)>,
    pub(super) prefixes: Vec<(Ipv6Net, Option<Duration>)>,
    pub(super) dns: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it is no text")]
    NoText,
    #[error("it has no `{0}`")]
    Missing(&'static str),
    #[error("its `{name}` is {value:?}: {why}")]
    Value { name: &'static str, value: String, why: String },
}

pub(super) fn read(bytes: &[u8]) -> Result<Report, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_not_utf8| Malformed::NoText)?;
    let fields = Fields(text.split('\0').filter_map(|field| field.split_once('=')).collect());
    let interface = fields.needed("interface")?;
    let reason = fields.text("reason").ok_or(Malformed::Missing("reason"))?;
    let (family, said) = match reason {
        "BOUND" | "RENEW" | "REBIND" | "REBOOT" => (Family::V4, lease4(&fields)?),
        "EXPIRE" => (Family::V4, Said::Gone(Gone::Expired)),
        "NAK" => (Family::V4, Said::Gone(Gone::Refused)),
        "ROUTERADVERT" => (Family::V6, Said::Router(advertised(&fields)?)),
        "BOUND6" | "RENEW6" | "REBIND6" | "REBOOT6" => (Family::V6, Said::Granted(granted(&fields)?)),
        "EXPIRE6" => (Family::V6, Said::Granted(Granted::default())),
        // A client that stops, or a carrier that is gone, takes nothing back: the lease ends at its time.
        _ => (Family::V4, Said::Nothing),
    };
    Ok(Report { interface, family, reason: shown(reason), said })
}

fn lease4(fields: &Fields<'_>) -> Result<Said, Malformed> {
    let address: Ipv4Addr = fields.needed("new_ip_address")?;
    let length = if let Some(length) = fields.optional::<u8>("new_subnet_cidr")? {
        length
    } else {
        let mask: Ipv4Addr = fields.needed("new_subnet_mask")?;
        ipnet::ipv4_mask_to_prefix(mask).map_err(|why| malformed("new_subnet_mask", &mask.to_string(), why))?
    };
    let net = Ipv4Net::new(address, length).map_err(|why| malformed("new_subnet_cidr", &length.to_string(), why))?;
    let routes = match fields.text("new_classless_static_routes") {
        Some(_) => routes(fields, "new_classless_static_routes")?,
        None => routes(fields, "new_ms_classless_static_routes")?,
    };
    // RFC 3442: whoever is given classless routes finds the default among them. Servers that leave it out there and name
    // a router mean that router.
    let default = routes.iter().find(|route| route.destination.prefix_len() == 0).and_then(|route| route.gateway);
    let routers: Vec<Ipv4Addr> = fields.list("new_routers")?;
    let lease = Lease {
        addresses: vec![net.into()],
        gateway: default.or(routers.first().copied().map(IpAddr::V4)),
        mtu: fields.optional("new_interface_mtu")?,
        routes: routes.into_iter().filter(|route| route.destination.prefix_len() > 0).collect(),
        dns: fields.list::<Ipv4Addr>("new_domain_name_servers")?.into_iter().map(IpAddr::V4).collect(),
        prefixes: Vec::new(),
        prefix_span: None,
        server: fields.optional::<Ipv4Addr>("new_dhcp_server_identifier")?.map(IpAddr::V4),
    };
    let seconds: u32 = fields.needed("new_dhcp_lease_time")?;
    Ok(Said::Held { lease, span: lifetime(seconds) })
}

/// dhcpcd numbers routers from 1, in the order of their preference, and the options of each.
fn advertised(fields: &Fields<'_>) -> Result<Advertised, Malformed> {
    let router: Ipv6Addr = fields.needed("nd1_from")?;
    if !router.is_unicast_link_local() {
        return Err(malformed("nd1_from", &router.to_string(), "no router has such an address (RFC 4861, 6.1.2)"));
    }
    let mut own = Vec::new();
    for number in 1..=MOST {
        let name = |what: &str| format!("nd1_prefix_information{number}_{what}");
        let Some(prefix) = fields.text(&name("prefix")) else { break };
        // 64 bits are left to the host (RFC 4291, 2.5.1).
        let autonomous = fields.text(&name("flags")).is_some_and(|flags| flags.contains('A'));
        let length: u8 = parsed("nd1_prefix_information", fields.text(&name("length")).unwrap_or_default())?;
        let prefix: Ipv6Addr = parsed("nd1_prefix_information", prefix)?;
        let seconds: u32 = parsed("nd1_prefix_information", fields.text(&name("vltime")).unwrap_or_default())?;
        let net = Ipv6Net::new(prefix, length).map_err(|why| malformed("nd1_prefix_information", "length", why))?;
        if autonomous && length == 64 && !prefix.is_unicast_link_local() {
            own.push((net.trunc(), lifetime(seconds)));
        }
    }
    Ok(Advertised {
        router,
        span: Some(Duration::from_secs(fields.needed::<u16>("nd1_lifetime")?.into())),
        mtu: fields.optional::<u32>("nd1_mtu")?.and_then(|mtu| u16::try_from(mtu).ok()),
        dns: fields.list::<Ipv6Addr>("nd1_rdnss1_servers")?.into_iter().map(IpAddr::V6).collect(),
        own,
    })
}

fn granted(fields: &Fields<'_>) -> Result<Granted, Malformed> {
    let mut granted = Granted { dns: Vec::new(), ..Granted::default() };
    for association in 1..=FEW {
        for number in 1..=FEW {
            let name = format!("new_dhcp6_ia_na{association}_ia_addr{number}");
            let Some(address) = fields.text(&name) else { break };
            let seconds: u32 = parsed("ia_addr", fields.text(&format!("{name}_vltime")).unwrap_or_default())?;
            granted.addresses.push((parsed("ia_addr", address)?, lifetime(seconds)));
        }
        for number in 1..=FEW {
            let name = format!("new_dhcp6_ia_pd{association}_prefix{number}");
            let Some(prefix) = fields.text(&name) else { break };
            let of = |what: &str| fields.text(&format!("{name}_{what}")).unwrap_or_default();
            let length: u8 = parsed("ia_pd", of("length"))?;
            let seconds: u32 = parsed("ia_pd", of("vltime"))?;
            let net = Ipv6Net::new(parsed("ia_pd", prefix)?, length);
            let net = net.map_err(|why| malformed("ia_pd", prefix, why))?;
            granted.prefixes.push((net.trunc(), lifetime(seconds)));
        }
    }
    granted.dns = fields.list::<Ipv6Addr>("new_dhcp6_name_servers")?.into_iter().map(IpAddr::V6).collect();
    // What has no time left is none.
    granted.addresses.retain(|(_, span)| *span != Some(Duration::ZERO));
    granted.prefixes.retain(|(_, span)| *span != Some(Duration::ZERO));
    Ok(granted)
}

fn lifetime(seconds: u32) -> Option<Duration> {
    (seconds != u32::MAX).then(|| Duration::from_secs(seconds.into()))
}

/// Pairs of a destination and a router; of `0.0.0.0` it is on the line itself.
fn routes(fields: &Fields<'_>, name: &'static str) -> Result<Vec<LineRoute>, Malformed> {
    let words: Vec<&str> = fields.text(name).unwrap_or_default().split_ascii_whitespace().collect();
    let (pairs, rest) = words.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > MOST {
        return Err(malformed(name, &words.join(" "), "pairs of a destination and a router are wanted"));
    }
    let route = |[destination, gateway]: &[&str; 2]| {
        let net: Ipv4Net = parsed(name, destination)?;
        let gateway: Ipv4Addr = parsed(name, gateway)?;
        Ok(LineRoute {
            destination: IpNet::V4(net.trunc()),
            gateway: (!gateway.is_unspecified()).then_some(IpAddr::V4(gateway)),
        })
    };
    pairs.iter().map(route).collect()
}

/// Names and values, as they came.
struct Fields<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied().filter(|value| !value.is_empty())
    }

    fn optional<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<Option<T>, Malformed> {
        self.text(name).map(|value| parsed(name, value)).transpose()
    }

    fn needed<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T, Malformed> {
        self.optional(name)?.ok_or(Malformed::Missing(name))
    }

    fn list<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<Vec<T>, Malformed> {
        let values = self.text(name).unwrap_or_default().split_ascii_whitespace();
        values.take(MOST).map(|value| parsed(name, value)).collect()
    }
}

fn parsed<T: FromStr<Err: Display>>(name: &'static str, value: &str) -> Result<T, Malformed> {
    value.parse().map_err(|why| malformed(name, value, why))
}

fn malformed(name: &'static str, value: &str, why: impl Display) -> Malformed {
    Malformed::Value { name, value: shown(value), why: why.to_string() }
}

/// What a stranger wrote, short enough for a log.
fn shown(value: &str) -> String {
    value.chars().take(60).collect()
}

/// Of anything that a lease has several of.
const MOST: usize = 64;
/// Of what DHCPv6 grants.
const FEW: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As dhcpcd 10.1 says it of a lease by dnsmasq.
    const BOUND: &[(&str, &str)] = &[
        ("interface", "eth0"),
        ("reason", "BOUND"),
        ("protocol", "dhcp"),
        ("new_broadcast_address", "192.0.2.255"),
        ("new_classless_static_routes", "0.0.0.0/0 192.0.2.1 203.0.113.0/24 192.0.2.9 198.51.100.0/24 0.0.0.0"),
        ("new_dhcp_lease_time", "120"),
        ("new_dhcp_server_identifier", "192.0.2.1"),
        ("new_domain_name_servers", "192.0.2.53 192.0.2.54"),
        ("new_interface_mtu", "1400"),
        ("new_ip_address", "192.0.2.18"),
        ("new_routers", "192.0.2.254"),
        ("new_subnet_cidr", "24"),
        ("new_subnet_mask", "255.255.255.0"),
    ];

    fn with(changes: &[(&str, &str)]) -> Result<Report, Malformed> {
        let mut fields: BTreeMap<&str, &str> = BOUND.iter().copied().collect();
        fields.extend(changes.iter().copied());
        let text: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
        read(text.concat().as_bytes())
    }

    fn lease(changes: &[(&str, &str)]) -> (Lease, Option<Duration>) {
        let said = with(changes).unwrap().said;
        let Said::Held { lease, span } = said else { panic!("{said:?}") };
        (lease, span)
    }

    #[test]
    fn a_lease_is_read_whole() {
        let (lease, span) = lease(&[]);
        let route = |destination: &str, gateway: Option<&str>| LineRoute {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        };
        let wanted = Lease {
            addresses: vec!["192.0.2.18/24".parse().unwrap()],
            gateway: Some("192.0.2.1".parse().unwrap()),
            mtu: Some(1400),
            routes: vec![route("203.0.113.0/24", Some("192.0.2.9")), route("198.51.100.0/24", None)],
            dns: vec!["192.0.2.53".parse().unwrap(), "192.0.2.54".parse().unwrap()],
            prefixes: Vec::new(),
            prefix_span: None,
            server: Some("192.0.2.1".parse().unwrap()),
        };
        assert_eq!((lease, span), (wanted, Some(Duration::from_mins(2))));
    }

    #[test]
    fn what_may_be_missing_is() {
        let none = [
            ("new_classless_static_routes", ""),
            ("new_interface_mtu", ""),
            ("new_domain_name_servers", ""),
            ("new_dhcp_server_identifier", ""),
            ("new_subnet_cidr", ""),
            ("new_dhcp_lease_time", "4294967295"),
        ];
        let (mut lease, span) = lease(&none);
        assert_eq!((lease.gateway.take(), span), (Some("192.0.2.254".parse().unwrap()), None));
        assert_eq!(lease, Lease { addresses: vec!["192.0.2.18/24".parse().unwrap()], ..Lease::default() });
        let lease = self::lease(&[("new_classless_static_routes", "203.0.113.0/24 192.0.2.9")]).0;
        assert_eq!(lease.gateway, Some("192.0.2.254".parse().unwrap()), "the router where no route is the default");
        let lease = self::lease(&[("new_classless_static_routes", ""), ("new_routers", "")]).0;
        assert_eq!(lease.gateway, None);
    }

    /// As dhcpcd 10.1 says it of radvd and Kea.
    const ADVERT: &str = "interface=eth0\0reason=ROUTERADVERT\0nd1_from=fe80::1\0nd1_lifetime=1800\0nd1_mtu=1480\0\
        nd1_prefix_information1_flags=L\0nd1_prefix_information1_length=64\0\
        nd1_prefix_information1_prefix=2001:db8:77::\0nd1_prefix_information1_vltime=20\0\
        nd1_prefix_information2_flags=LA\0nd1_prefix_information2_length=64\0\
        nd1_prefix_information2_prefix=2001:db8:78::\0nd1_prefix_information2_vltime=4294967295\0\
        nd1_rdnss1_servers=2001:db8:77::53\0";
    const BOUND6: &str = "interface=eth0\0reason=BOUND6\0new_dhcp6_ia_na1_ia_addr1=2001:db8:77::100\0\
        new_dhcp6_ia_na1_ia_addr1_vltime=20\0new_dhcp6_ia_pd1_prefix1=2001:db8:8800:100::\0\
        new_dhcp6_ia_pd1_prefix1_length=56\0new_dhcp6_ia_pd1_prefix1_vltime=30\0";

    #[test]
    fn what_routers_and_dhcpv6_say_is_read() {
        let said = |text: &str| read(text.as_bytes()).map(|report| report.said);
        let router = Advertised {
            router: "fe80::1".parse().unwrap(),
            span: Some(Duration::from_mins(30)),
            mtu: Some(1480),
            dns: vec!["2001:db8:77::53".parse().unwrap()],
            own: vec![("2001:db8:78::/64".parse().unwrap(), None)],
        };
        assert_eq!(said(ADVERT).unwrap(), Said::Router(router));
        let granted = Granted {
            addresses: vec![("2001:db8:77::100".parse().unwrap(), Some(Duration::from_secs(20)))],
            prefixes: vec![("2001:db8:8800:100::/56".parse().unwrap(), Some(Duration::from_secs(30)))],
            dns: Vec::new(),
        };
        assert_eq!(said(BOUND6).unwrap(), Said::Granted(granted));
        assert_eq!(said("interface=eth0\0reason=EXPIRE6\0").unwrap(), Said::Granted(Granted::default()));
        for (text, from, to) in [
            (ADVERT, "fe80::1", "2001:db8::1"),
            (ADVERT, "=1800", "=70000"),
            (ADVERT, "length=64", "length=129"),
            (BOUND6, "::100\0", "::1000g\0"),
            (BOUND6, "length=56", "length=156"),
            (BOUND6, "vltime=20", "vltime="),
        ] {
            said(&text.replacen(from, to, 1)).unwrap_err();
        }
    }

    #[test]
    fn the_end_of_a_lease_is_told_and_of_a_client_is_not() {
        let said = |reason| with(&[("reason", reason)]).unwrap().said;
        assert_eq!(said("NAK"), Said::Gone(Gone::Refused));
        assert_eq!(said("EXPIRE"), Said::Gone(Gone::Expired));
        for reason in ["PREINIT", "CARRIER", "NOCARRIER", "STOP", "STOPPED", "RELEASE", "FAIL", "TIMEOUT", "IPV4LL"] {
            assert_eq!(said(reason), Said::Nothing, "{reason}");
        }
    }

    #[test]
    fn what_is_not_what_it_should_be_makes_the_report_void() {
        for (name, value, told) in [
            ("interface", "", "it has no `interface`"),
            ("interface", "../../etc", "interface"),
            ("interface", "an-interface-with-a-name", "interface"),
            ("reason", "", "it has no `reason`"),
            ("new_ip_address", "", "it has no `new_ip_address`"),
            ("new_ip_address", "192.0.2.999", "new_ip_address"),
            ("new_ip_address", "$(reboot)", "new_ip_address"),
            ("new_subnet_cidr", "33", "new_subnet_cidr"),
            ("new_routers", "192.0.2.1 me", "new_routers"),
            ("new_interface_mtu", "99999", "new_interface_mtu"),
            ("new_dhcp_lease_time", "", "it has no `new_dhcp_lease_time`"),
            ("new_dhcp_lease_time", "-1", "new_dhcp_lease_time"),
            ("new_classless_static_routes", "203.0.113.0/24", "pairs"),
            ("new_classless_static_routes", "203.0.113.0/55 192.0.2.1", "new_classless_static_routes"),
        ] {
            let malformed = with(&[(name, value)]).unwrap_err().to_string();
            assert!(malformed.contains(told), "{name}={value}: {malformed}");
        }
        assert_eq!(read(b"interface=eth0\0reason=\xff\0"), Err(Malformed::NoText));
        let many = "203.0.113.0/24 192.0.2.1 ".repeat(65);
        with(&[("new_classless_static_routes", &many)]).unwrap_err();
        let mask = [("new_subnet_cidr", ""), ("new_subnet_mask", "255.0.255.0")];
        with(&mask).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_report_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), field in 0..13_usize, value in ".{0,40}") {
            drop(read(&bytes));
            drop(with(&[(BOUND[field].0, &value)]));
        }
    }
}
