//! What the two routers of a pair say to each other: the table lets it in, from the other one alone, and nothing else.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use config::Config;
use config::model::PortSet;
use config::units::VlanName;

/// What one router says to the other over a VLAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Talk {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) ports: PortSet,
    /// What it is, as `explain` tells it.
    pub(crate) told: &'static str,
}

/// Of conntrackd.
pub const FLOWS_PORT: u16 = 3780;
/// Of routerd itself.
pub const HEARTBEAT_PORT: u16 = 3781;
/// RFC 5798 5.1.1.2.
const VRRP_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const VRRP: u8 = 112;
const SYNC: RangeInclusive<u16> = FLOWS_PORT..=HEARTBEAT_PORT;

/// What comes in from the other router by this VLAN.
pub(crate) fn talks(config: &Config, vlan: &VlanName) -> Vec<Talk> {
    let Some(pair) = &config.pair else { return Vec::new() };
    let (Some(own), Some(peer)) = (pair.own(), pair.peer()) else { return Vec::new() };
    let (Some(to), Some(from)) = (own.address4(vlan), peer.address4(vlan)) else { return Vec::new() };
    let mut talks = Vec::new();
    if *vlan == pair.sync {
        let config = HEARTBEAT_PORT..=HEARTBEAT_PORT;
        let ports = PortSet { udp: vec![SYNC], tcp: vec![config], ..PortSet::default() };
        talks.push(Talk { from, to, ports, told: "flows, heartbeats and the config of the other router" });
    }
    if pair.vlans.contains(vlan) {
        let ports = PortSet { protocols: [VRRP].into(), ..PortSet::default() };
        talks.push(Talk { from, to: VRRP_GROUP, ports, told: "adverts of the other router" });
    }
    talks
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use config::model::Seat;
    use config::units::{Family, TableId};

    use super::*;
    use crate::compile::ruleset::ruleset;
    use crate::event::{Event, Health};
    use crate::fixture;
    use crate::journal::{Recorder, replay};
    use crate::matrix::{Packet, Protocol, verdict};
    use crate::router::Router;
    use crate::time::Time;

    const PAIR: &str = r#"
[vlan.sync]
id = 99
addresses = ["10.0.99.1/24"]
access = ["eth4"]

[pair]
sync = "sync"
secret = "/etc/quadway/pair.secret"

[pair.node.left]
addresses = ["10.0.10.2", "10.0.20.2", "10.0.99.2"]

[pair.node.right]
addresses = ["10.0.10.3", "10.0.20.3", "10.0.99.3"]
"#;

    fn site() -> Arc<Config> {
        let text = include_str!("../../config/examples/minimal.toml").to_owned() + PAIR;
        Arc::new(config::parse("site.toml", &text).unwrap_or_else(|problems| panic!("{problems}")).config)
    }

    fn left(active: bool) -> Event {
        Event::Seat(Seat { node: "left".parse().unwrap(), active })
    }

    fn running(seat: Option<Event>) -> (Router, Arc<Config>) {
        let mut router = Router::new();
        let site = site();
        router.handle(&Event::Config(Arc::clone(&site)), Time::ZERO);
        let links = fixture::ethernet(&["eth0", "eth1", "eth2", "eth3", "eth4"]);
        router.handle(&Event::Links(links), Time::ZERO);
        router.handle(&Event::InForce, Time::ZERO);
        if let Some(seat) = seat {
            router.handle(&seat, Time::ZERO);
        }
        (router, site)
    }

    fn addresses(router: &Router) -> Vec<String> {
        router.wanted().unwrap().addresses.iter().map(|address| format!("{} {}", address.link, address.net)).collect()
    }

    fn line_routes(router: &Router) -> usize {
        let state = router.wanted().unwrap();
        let of_line = |table: TableId| site().wans.values().any(|wan| wan.id.table() == table);
        state.routes.keys().filter(|key| of_line(key.table)).count()
    }

    #[test]
    fn a_router_of_a_pair_has_its_own_addresses_alone() {
        let own = ["vlan10 10.0.10.2/24", "vlan20 10.0.20.2/24", "vlan99 10.0.99.2/24"];
        for active in [false, true] {
            assert_eq!(addresses(&running(Some(left(active))).0), own);
        }
        assert!(addresses(&running(None).0).is_empty(), "whose they are is not known yet");
        let stranger = Event::Seat(Seat { node: "third".parse().unwrap(), active: true });
        assert!(addresses(&running(Some(stranger)).0).is_empty());
    }

    #[test]
    fn a_standby_leaves_the_lines_alone_and_takes_them_as_good() {
        let (mut router, site) = running(Some(left(false)));
        assert_eq!((line_routes(&router), router.poll_probe(Time::ZERO)), (0, None));
        let health = |router: &Router| {
            let wans = router.snapshot(Time::ZERO).wans;
            wans.iter().flat_map(|wan| wan.families.values().map(|line| line.health)).collect::<Vec<_>>()
        };
        assert_eq!(health(&router), [Health::Up; 2]);
        let before = router.wanted().unwrap();
        let chosen = before.buckets.values().map(|buckets| buckets.lines().len()).max();
        assert_eq!(chosen, Some(site.wans.len()), "the lines are chosen before they are needed");

        router.handle(&left(true), Time::ZERO);
        assert_eq!(health(&router), [Health::Up; 2], "nobody waits for probes");
        assert!(line_routes(&router) > 0 && router.poll_probe(Time::ZERO).is_some());
        let after = router.wanted().unwrap();
        assert_eq!((&before.ruleset, &before.buckets), (&after.ruleset, &after.buckets), "and no table is loaded");
        router.handle(&left(false), Time::ZERO);
        assert_eq!((line_routes(&router), router.poll_probe(Time::ZERO)), (0, None));
        assert_eq!(health(&router), [Health::Up; 2]);
    }

    #[test]
    fn only_the_other_router_is_let_in_and_only_with_what_the_two_have_to_say() {
        let (router, written) = running(Some(left(false)));
        let config = router.config().unwrap();
        let lines = |config: &Config| -> Vec<String> {
            let rules = ruleset(config);
            let all = rules.chains.iter().flat_map(|(name, rules)| rules.iter().map(move |rule| (name, rule)));
            all.filter(|(_, rule)| rule.contains("10.0.99.3") || rule.contains("224.0.0.18"))
                .map(|(name, rule)| format!("{name}: {rule}"))
                .collect()
        };
        let said = [
            "in_10: ip saddr { 10.0.10.3 } ip daddr { 224.0.0.18 } meta l4proto { 112 } accept",
            "in_20: ip saddr { 10.0.20.3 } ip daddr { 224.0.0.18 } meta l4proto { 112 } accept",
            "in_99: ip saddr { 10.0.99.3 } ip daddr { 10.0.99.2 } tcp dport { 3781 } accept",
            "in_99: ip saddr { 10.0.99.3 } ip daddr { 10.0.99.2 } udp dport { 3780-3781 } accept",
        ];
        assert_eq!(lines(config), said);
        assert!(lines(&written).is_empty(), "of a box that is neither");

        let udp = |destination| Protocol::Udp { source: 4000, destination };
        let tcp = |destination| Protocol::Tcp { source: 4000, destination };
        let cases = [
            ("10.0.99.3", "10.0.99.2", tcp(3781), true),
            ("10.0.99.3", "10.0.99.2", tcp(3780), false),
            ("10.0.99.9", "10.0.99.2", tcp(3781), false),
            ("10.0.10.3", "224.0.0.18", Protocol::Other(112), true),
            ("10.0.10.9", "224.0.0.18", Protocol::Other(112), false),
            ("10.0.99.3", "224.0.0.18", Protocol::Other(112), false),
            ("10.0.99.3", "10.0.99.2", udp(3780), true),
            ("10.0.99.3", "10.0.99.2", udp(3781), true),
            ("10.0.99.3", "10.0.99.2", udp(3782), false),
            ("10.0.10.3", "10.0.99.2", udp(3780), false),
            ("10.0.99.9", "10.0.99.2", udp(3780), false),
        ];
        for (source, destination, protocol, allowed) in cases {
            let packet = Packet::new(config, source.parse().unwrap(), destination.parse().unwrap(), protocol);
            assert_eq!(verdict(config, &packet).allowed, allowed, "{source} -> {destination} {protocol}");
        }
        assert!(config.wans.values().all(|wan| wan.has_address(Family::V4)), "the virtual addresses are known");
    }

    #[test]
    fn a_journal_of_a_pair_replays() {
        let mut recorder = Recorder::new(1, Time::ZERO, std::time::Duration::ZERO);
        let links = fixture::ethernet(&["eth0", "eth1", "eth2", "eth3", "eth4"]);
        let events = [left(false), Event::Config(site()), Event::Links(links), Event::InForce, left(true), left(false)];
        for (second, event) in (0..).zip(&events) {
            recorder.step(event, Time::ZERO + std::time::Duration::from_secs(second));
        }
        let report = replay(recorder.take_lines().iter().map(String::as_str), None).unwrap();
        assert!(report.equal, "{:?}", report.first_difference);
    }
}
