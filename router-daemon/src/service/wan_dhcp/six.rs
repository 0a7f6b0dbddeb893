//! A lease of IPv6 has two sources: a router says that it is the gateway, and DHCPv6, or the router's prefix, gives the
//! address. What both said last is kept here for each interface, and put together. No I/O.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use config::units::IfName;
use ipnet::{IpNet, Ipv6Net};
use mwan::lease::{Gone, Lease};
use tokio::time::Instant;

use super::report::{Advertised, Granted};
use crate::lease::News;

#[derive(Debug, Default)]
pub(super) struct Six(BTreeMap<IfName, Line>);

#[derive(Debug, Default)]
struct Line {
    router: Option<Router>,
    addresses: Vec<(Ipv6Addr, End)>,
    prefixes: Vec<(Ipv6Net, End)>,
    /// For how long the prefixes were granted.
    span: Option<Duration>,
    dns: Vec<IpAddr>,
    /// There was a whole lease since we began.
    held: bool,
}

#[derive(Debug)]
struct Router {
    address: Ipv6Addr,
    until: End,
    mtu: Option<u16>,
    dns: Vec<IpAddr>,
    own: Vec<(Ipv6Addr, End)>,
}

/// `None` is never.
type End = Option<Instant>;

impl Six {
    /// What comes of an advertisement; `None`: not enough is known for a lease, and none was taken away.
    pub(super) fn advertised(
        &mut self,
        interface: &IfName,
        said: Advertised,
        mac: impl FnOnce() -> Option<[u8; 6]>,
        now: Instant,
    ) -> Option<News> {
        let line = self.0.entry(interface.clone()).or_default();
        let own = match (said.own.is_empty(), mac()) {
            (false, Some(mac)) => said.own.iter().map(|(net, span)| (made(*net, mac), end(*span, now))).collect(),
            (true, _) | (false, None) => Vec::new(),
        };
        line.router = (said.span != Some(Duration::ZERO)).then(|| Router {
            address: said.router,
            until: end(said.span, now),
            mtu: said.mtu,
            dns: said.dns,
            own,
        });
        line.news(Gone::Withdrawn, now)
    }

    pub(super) fn granted(&mut self, interface: &IfName, said: Granted, now: Instant) -> Option<News> {
        let line = self.0.entry(interface.clone()).or_default();
        line.addresses = said.addresses.into_iter().map(|(address, span)| (address, end(span, now))).collect();
        line.span = said.prefixes.iter().filter_map(|(_, span)| *span).min().map(rounded);
        line.prefixes = said.prefixes.into_iter().map(|(prefix, span)| (prefix, end(span, now))).collect();
        line.dns = said.dns;
        line.news(Gone::Expired, now)
    }
}

impl Line {
    fn news(&mut self, why: Gone, now: Instant) -> Option<News> {
        let lives = |until: &End| until.is_none_or(|until| until > now);
        let whole = self.router.as_ref().filter(|router| lives(&router.until)).and_then(|router| {
            let granted: Vec<_> = self.addresses.iter().filter(|(_, until)| lives(until)).collect();
            // What the server gave goes before what anybody may make himself.
            let own: Vec<_> = router.own.iter().filter(|(_, until)| lives(until)).collect();
            let addresses = if granted.is_empty() { own } else { granted };
            let prefixes: Vec<_> = self.prefixes.iter().filter(|(_, until)| lives(until)).collect();
            if addresses.is_empty() {
                return None;
            }
            let ends = addresses.iter().map(|(_, until)| until).chain(prefixes.iter().map(|(_, until)| until));
            let until = ends.chain([&router.until]).flatten().min().copied();
            let lease = Lease {
                addresses: addresses.iter().map(|(address, _)| IpNet::from(IpAddr::V6(*address))).collect(),
                gateway: Some(router.address.into()),
                mtu: router.mtu,
                routes: Vec::new(),
                dns: if self.dns.is_empty() { router.dns.clone() } else { self.dns.clone() },
                prefixes: prefixes.iter().map(|(prefix, _)| *prefix).collect(),
                prefix_span: self.span.filter(|_| !prefixes.is_empty()),
                server: None,
            };
            Some(News::Held { lease, until })
        });
        let before = std::mem::replace(&mut self.held, whole.is_some());
        whole.or_else(|| before.then_some(News::Gone(why)))
    }
}

/// Some servers count down from one answer to the next, and that alone is no other lease.
fn rounded(span: Duration) -> Duration {
    Duration::from_secs(span.as_secs().checked_ilog2().map_or(0, |log| 1 << log))
}

fn end(span: Option<Duration>, now: Instant) -> End {
    span.map(|span| now + span)
}

/// With the MAC in its lower half (RFC 4291, appendix A).
fn made(net: Ipv6Net, mac: [u8; 6]) -> Ipv6Addr {
    let half = u64::from_be_bytes([mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]]);
    Ipv6Addr::from_bits(net.network().to_bits() | u128::from(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

    fn wan() -> IfName {
        "wan1".parse().unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn advert(span: u64, own: &[&str]) -> Advertised {
        Advertised {
            router: "fe80::1".parse().unwrap(),
            span: Some(seconds(span)),
            mtu: Some(1480),
            dns: Vec::new(),
            own: own.iter().map(|net| (net.parse().unwrap(), Some(seconds(50)))).collect(),
        }
    }

    fn grant(address: &str, prefix: Option<&str>) -> Granted {
        Granted {
            addresses: vec![(address.parse().unwrap(), Some(seconds(20)))],
            prefixes: prefix.iter().map(|prefix| (prefix.parse().unwrap(), Some(seconds(30)))).collect(),
            dns: Vec::new(),
        }
    }

    fn told(news: Option<News>, now: Instant) -> String {
        match news {
            None => "nothing".to_owned(),
            Some(News::Gone(why)) => why.told().to_owned(),
            Some(News::Held { lease, until }) => {
                let left = until.map(|until| until.duration_since(now).as_secs());
                format!("{lease} for {left:?}")
            }
        }
    }

    #[test]
    fn a_lease_takes_a_router_and_an_address() {
        let (mut six, now) = (Six::default(), Instant::now());
        assert_eq!(told(six.advertised(&wan(), advert(1800, &[]), || Some(MAC), now), now), "nothing");
        let whole = six.granted(&wan(), grant("2001:db8::100", Some("2001:db8:8800::/56")), now);
        assert_eq!(told(whole, now), "2001:db8::100/128, gateway fe80::1, prefix 2001:db8:8800::/56 for Some(20)");
        // The other way round, and of another line.
        let other: IfName = "wan2".parse().unwrap();
        assert_eq!(told(six.granted(&other, grant("2001:db8::200", None), now), now), "nothing");
        let whole = six.advertised(&other, advert(10, &[]), || Some(MAC), now);
        assert_eq!(told(whole, now), "2001:db8::200/128, gateway fe80::1 for Some(10)");
    }

    #[test]
    fn without_a_server_the_address_is_made_of_the_prefix() {
        let (mut six, now) = (Six::default(), Instant::now());
        let made = six.advertised(&wan(), advert(1800, &["2001:db8:5::/64"]), || Some(MAC), now);
        assert_eq!(told(made, now), "2001:db8:5::ff:fe00:11/128, gateway fe80::1 for Some(50)");
        let given = six.granted(&wan(), grant("2001:db8::100", None), now);
        assert_eq!(told(given, now), "2001:db8::100/128, gateway fe80::1 for Some(20)");
        let over = six.granted(&wan(), Granted::default(), now);
        assert_eq!(told(over, now), "2001:db8:5::ff:fe00:11/128, gateway fe80::1 for Some(50)");
    }

    #[test]
    fn what_is_taken_back_is_told_once_and_what_is_over_does_not_count() {
        let (mut six, now) = (Six::default(), Instant::now());
        six.advertised(&wan(), advert(1800, &[]), || None, now);
        six.granted(&wan(), grant("2001:db8::100", Some("2001:db8:8800::/56")), now);
        let later = now + Duration::from_secs(25);
        assert_eq!(told(six.advertised(&wan(), advert(1800, &[]), || None, later), later), "lease given up");
        assert_eq!(told(six.advertised(&wan(), advert(1800, &[]), || None, later), later), "nothing");
        six.granted(&wan(), grant("2001:db8::100", None), later);
        assert_eq!(told(six.advertised(&wan(), advert(0, &[]), || None, later), later), "lease given up");
        six.advertised(&wan(), advert(1800, &[]), || None, later);
        assert_eq!(told(six.granted(&wan(), Granted::default(), later), later), "lease expired");
    }
}
