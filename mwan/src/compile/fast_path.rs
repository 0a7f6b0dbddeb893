//! What the programs at the ports are told: who lives where, and which pairs of zones the ruleset denies for
//! everything. What they would drop by it is a subset of what the ruleset drops; where it is hard to say they are told
//! to leave the packet to the ruleset.

use std::collections::{BTreeMap, BTreeSet};

use config::Config;
use config::model::{Internet, PortPath, PortRole, Vlan};
use config::units::{IfName, VlanName};
use ipnet::IpNet;

use super::ruleset::{SPECIAL, bogons, has_broadcast, line_networks, own};
use crate::links::{LinkFacts, Links};
use crate::state::{FastLimits, FastPath, FastPort, FastZone, Home, Link, LinkKind, PortMode, ZoneId};

/// The numbers of the VLANs. Those beyond the highest are left to the ruleset.
pub fn zones(config: &Config) -> BTreeMap<&VlanName, ZoneId> {
    config.vlans.keys().zip((1..=ZoneId::MAX).map(ZoneId)).collect()
}

pub(super) fn fast_path(config: &Config, links: &Links, wanted: &BTreeMap<IfName, Link>) -> Option<FastPath> {
    let written = config.fast_path.as_ref()?;
    let zones = zones(config);
    let mut path = FastPath {
        limits: FastLimits {
            flows: written.flows,
            silence: written.silence,
            silence_flows: written.silence_flows,
            new_per_source: written.new_per_source,
            denied_log_rate: config.router.denied_log_rate,
        },
        ports: BTreeMap::new(),
        zones: BTreeMap::new(),
        homes: homes(config, &zones),
        denied: denied(config, &zones),
    };
    for (name, link) in wanted {
        // A port that still waits for its name waits for this too.
        let LinkKind::Port { found_as } = &link.kind else { continue };
        if let Some(facts) = links.get(name).filter(|_| found_as == name) {
            port(config, links, name, facts, &zones, &mut path);
        }
    }
    Some(path)
}

fn port(
    config: &Config,
    links: &Links,
    name: &IfName,
    facts: &LinkFacts,
    zones: &BTreeMap<&VlanName, ZoneId>,
    path: &mut FastPath,
) {
    let port = config.ports.get(name);
    let chosen = port.map_or(PortPath::Auto, |port| port.fast_path);
    let line = config.wans.values().find(|wan| wan.interface == *name);
    let carried: Vec<(u16, &VlanName)> = match port.map(|port| &port.role) {
        Some(PortRole::Access(vlan)) => vec![(0, vlan)],
        Some(PortRole::Trunk { native, tagged }) => {
            let tag = |vlan| config.vlans.get(vlan).map(|vlan: &Vlan| (vlan.id.get(), &vlan.name));
            native.iter().map(|vlan| (0, vlan)).chain(tagged.iter().filter_map(tag)).collect()
        }
        Some(PortRole::Wan(_) | PortRole::Reserved | PortRole::Unmapped) | None => Vec::new(),
    };
    // A driver that takes the tag off leaves none for XDP to see: packets of all VLANs would look like the native one's.
    let tagged = carried.iter().any(|(tag, _)| *tag != 0);
    let mode = match chosen {
        PortPath::Auto if facts.driver.is_some() && !tagged => PortMode::Xdp,
        PortPath::Auto | PortPath::Tcx => PortMode::Tcx,
        PortPath::Xdp => PortMode::Xdp,
        PortPath::Off => return,
    };
    if let (Some(wan), Some(mac)) = (line, facts.mac) {
        let zone = FastZone { zone: ZoneId::OUTSIDE, wan: Some(wan.id), mac, bogons: wan.bogons };
        path.zones.insert((name.clone(), 0), zone);
    }
    for (tag, vlan) in carried {
        let mac = config.vlans.get(vlan).and_then(|vlan| links.get(&vlan.interface)).and_then(|bridge| bridge.mac);
        if let (Some(zone), Some(mac)) = (zones.get(vlan), mac) {
            path.zones.insert((name.clone(), tag), FastZone { zone: *zone, wan: None, mac, bogons: false });
        }
    }
    if path.zones.keys().any(|(port, _)| port == name) {
        path.ports.insert(name.clone(), FastPort { mode, line: line.is_some() });
    }
}

fn homes(config: &Config, zones: &BTreeMap<&VlanName, ZoneId>) -> BTreeMap<IpNet, Home> {
    let mut homes = BTreeMap::new();
    let mut add = |net: IpNet, home| {
        homes.insert(net.trunc(), home);
    };
    let nets = || config.vlans.values().flat_map(|vlan| vlan.networks().map(move |net| (&vlan.name, net)));
    if config.wans.values().any(|wan| wan.bogons) {
        let lines = line_networks(config);
        let inside: Vec<_> = nets().map(|(_, net)| net).chain(lines.iter().copied()).collect();
        for bogon in bogons().filter(|bogon| !inside.iter().any(|net| net.contains(bogon))) {
            add(bogon, Home::Bogon);
        }
        for net in lines {
            add(net, Home::Host(ZoneId::OUTSIDE));
        }
    }
    for (vlan, net) in nets() {
        let shared = nets().any(|(other, wider)| other != vlan && wider.contains(&net));
        let home = zones.get(vlan).filter(|_| !shared).map_or(Home::Leave, |zone| Home::Host(*zone));
        add(net, home);
    }
    for (_, net) in nets() {
        // The first address of an IPv6 subnet is any router's (RFC 4291, 2.6.1).
        add(IpNet::from(net.network()), Home::Leave);
        if has_broadcast(&net) {
            add(IpNet::from(net.broadcast()), Home::Leave);
        }
    }
    let unspecified = ["0.0.0.0/32", "::/128"];
    SPECIAL.iter().chain(&unspecified).filter_map(|net| net.parse().ok()).for_each(|net| add(net, Home::Leave));
    for address in own(config) {
        add(address.into(), Home::Leave);
    }
    homes
}

/// A reply goes the other way, so a pair counts as denied when nothing may be opened either way.
fn denied(config: &Config, zones: &BTreeMap<&VlanName, ZoneId>) -> BTreeSet<(ZoneId, ZoneId)> {
    let open: BTreeSet<_> = config
        .cells
        .iter()
        .filter(|cell| cell.enabled)
        .flat_map(|cell| [(&cell.from, &cell.to), (&cell.to, &cell.from)])
        .collect();
    let mut denied = BTreeSet::new();
    for (from, a) in zones {
        denied.extend(zones.iter().filter(|(to, b)| a != *b && !open.contains(&(from, to))).map(|(_, b)| (*a, *b)));
        // Nothing from outside is ever let in to a VLAN.
        if config.vlans.get(*from).is_some_and(|vlan| vlan.internet == Internet::None) {
            denied.insert((*a, ZoneId::OUTSIDE));
        }
    }
    denied
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::compile::compile;
    use crate::fixture;
    use crate::matrix::{self, Packet, Protocol, Zone};

    fn compiled(site: &Config) -> FastPath {
        compile(site, &fixture::decision(site), &everything()).fast_path.unwrap()
    }

    /// All ports and bridges, each with a MAC of its own.
    fn everything() -> Links {
        let mut links = fixture::ethernet(&["eth0", "eth1", "eth2", "eth3", "vlan10", "vlan20", "vlan30"]);
        for (n, facts) in (1..).zip(links.0.values_mut()) {
            facts.mac = Some([2, 0, 0, 0, 0, n]);
        }
        links
    }

    fn pairs(site: &Config) -> Vec<String> {
        let zones = zones(site);
        let name = |id: &ZoneId| {
            zones.iter().find(|(_, zone)| *zone == id).map_or("outside".to_owned(), |(name, _)| name.to_string())
        };
        compiled(site).denied.iter().map(|(from, to)| format!("{}->{}", name(from), name(to))).collect()
    }

    #[test]
    fn a_pair_is_denied_early_where_nothing_may_be_opened_either_way() {
        let mut site = fixture::site();
        // The fixture opens office -> guests and servers -> guests.
        assert_eq!(pairs(&site), ["office->servers", "servers->outside", "servers->office"]);
        site.cells.push(config::model::Cell {
            from: "servers".parse().unwrap(),
            to: "office".parse().unwrap(),
            ..site.cells[0].clone()
        });
        assert_eq!(pairs(&site), ["servers->outside"]);
        site.cells.iter_mut().for_each(|cell| cell.enabled = false);
        assert_eq!(pairs(&site).len(), 7);
        site.vlans.values_mut().for_each(|vlan| vlan.internet = Internet::None);
        assert_eq!(pairs(&site).len(), 9);
    }

    #[test]
    fn an_audited_pair_is_left_to_the_ruleset_both_ways() {
        let site = fixture::site();
        let mut state = compile(&site, &fixture::decision(&site), &everything());
        let denied = |state: &crate::state::KernelState| state.fast_path.as_ref().unwrap().denied.len();
        assert_eq!(denied(&state), 3, "office->servers, servers->outside, servers->office");
        crate::compile::audit(
            &mut state,
            &site,
            &"office->servers".parse().unwrap(),
            std::time::Duration::from_secs(9),
        );
        assert_eq!(denied(&state), 1);
        assert_eq!(state.audited.len(), 1, "the answers belong to flows");
    }

    #[test]
    fn what_is_the_routers_or_everybodys_is_left_to_the_ruleset() {
        let homes = compiled(&fixture::site()).homes;
        let home = |net: &str| homes.get(&net.parse::<IpNet>().unwrap()).copied();
        assert_eq!(home("10.0.10.0/24"), Some(Home::Host(ZoneId(2))));
        for net in [
            "10.0.10.1/32",
            "10.0.10.0/32",
            "10.0.10.255/32",
            "224.0.0.0/4",
            "255.255.255.255/32",
            "0.0.0.0/32",
            "fe80::/10",
            "ff00::/8",
            "::/128",
        ] {
            assert_eq!(home(net), Some(Home::Leave), "{net}");
        }
        assert!(!homes.values().any(|home| *home == Home::Bogon));
    }

    #[test]
    fn addresses_that_two_vlans_claim_are_left_to_the_ruleset() {
        let mut site = fixture::site();
        let add = |site: &mut Config, vlan: &str, net: &str| {
            site.vlans.get_mut(&vlan.parse().unwrap()).unwrap().addresses.push(fixture::net(net));
        };
        add(&mut site, "office", "10.9.0.1/16");
        add(&mut site, "guests", "10.9.8.1/24");
        add(&mut site, "servers", "10.9.8.2/24");
        let homes = compiled(&site).homes;
        assert_eq!(homes[&fixture::net("10.9.0.0/16")], Home::Host(ZoneId(2)));
        assert_eq!(homes[&fixture::net("10.9.8.0/24")], Home::Leave);
    }

    #[test]
    fn bogons_spare_the_networks_of_lines_and_vlans() {
        let mut site = fixture::site();
        site.wans.values_mut().for_each(|wan| wan.bogons = true);
        let wan = site.wans.values_mut().next().unwrap();
        wan.addressing.addresses = vec![fixture::net("192.168.100.2/24")];
        wan.addressing.gateway4 = Some("192.168.99.1".parse().unwrap());
        let homes = compiled(&site).homes;
        assert_eq!(homes[&fixture::net("192.168.0.0/16")], Home::Bogon);
        assert_eq!(homes[&fixture::net("192.168.100.0/24")], Home::Host(ZoneId::OUTSIDE));
        assert_eq!(homes[&fixture::net("192.168.99.1/32")], Home::Host(ZoneId::OUTSIDE));
        assert_eq!(homes[&fixture::net("192.168.100.2/32")], Home::Leave);
        assert_eq!(homes[&fixture::net("10.0.10.0/24")], Home::Host(ZoneId(2)));
    }

    #[test]
    fn a_port_is_met_in_its_driver_where_that_is_one_of_hardware() {
        let mut site = fixture::site();
        let modes = |site: &Config| {
            let ports = compiled(site).ports;
            ports.iter().map(|(name, port)| (name.to_string(), port.mode, port.line)).collect::<Vec<_>>()
        };
        let all = modes(&site);
        let mode = |name: &str| all.iter().find(|(port, ..)| port == name).map(|(_, mode, line)| (*mode, *line));
        assert_eq!(mode("eth0"), Some((PortMode::Xdp, true)));
        assert_eq!(mode("eth2"), Some((PortMode::Xdp, false)));
        assert_eq!(mode("eth3"), Some((PortMode::Tcx, false)), "XDP may not see the tags");
        let choose = |site: &mut Config, name: &str, path| {
            site.ports.get_mut(&name.parse::<IfName>().unwrap()).unwrap().fast_path = path;
        };
        choose(&mut site, "eth2", PortPath::Off);
        choose(&mut site, "eth3", PortPath::Xdp);
        choose(&mut site, "eth0", PortPath::Tcx);
        let path = compiled(&site);
        assert!(!path.zones.keys().any(|(port, _)| port.as_str() == "eth2"));
        let chosen: Vec<_> = path.ports.values().map(|port| port.mode).collect();
        assert_eq!(chosen, [PortMode::Tcx, PortMode::Xdp, PortMode::Xdp]);
        site.fast_path = None;
        assert_eq!(compile(&site, &fixture::decision(&site), &everything()).fast_path, None);
    }

    #[test]
    fn zones_are_known_by_port_and_tag_with_the_mac_of_the_bridge() {
        let path = compiled(&fixture::site());
        let links = everything();
        let at = |port: &str, tag| path.zones[&(port.parse().unwrap(), tag)];
        let mac = |name: &str| links.get(&name.parse().unwrap()).unwrap().mac.unwrap();
        assert_eq!((at("eth3", 0).zone, at("eth3", 0).mac), (ZoneId(1), mac("vlan20")));
        assert_eq!((at("eth3", 30).zone, at("eth3", 30).mac), (ZoneId(3), mac("vlan30")));
        assert_eq!((at("eth0", 0).wan.map(config::units::WanId::get), at("eth0", 0).mac), (Some(1), mac("eth0")));
        assert_eq!(path.zones.len(), 5);
    }

    /// What the programs would do with the first packet of a flow that comes in by a zone and goes to the router.
    fn dropped(path: &FastPath, zone: FastZone, source: IpAddr, destination: IpAddr) -> bool {
        let home = |address: IpAddr| {
            let holds = path.homes.iter().filter(|(net, _)| net.contains(&address));
            holds.max_by_key(|(net, _)| net.prefix_len()).map_or(Home::Host(ZoneId::OUTSIDE), |(_, home)| *home)
        };
        match (zone.wan, home(source), home(destination)) {
            (Some(_), Home::Host(from), _) => from != ZoneId::OUTSIDE,
            (Some(_), Home::Bogon, _) => zone.bogons,
            (None, Home::Bogon, _) => true,
            (None, Home::Host(from), _) if from != zone.zone => true,
            (None, Home::Host(from), Home::Host(to)) => path.denied.contains(&(from, to)),
            (None, Home::Host(from), Home::Bogon) => path.denied.contains(&(from, ZoneId::OUTSIDE)),
            (None, Home::Leave, Home::Host(to)) => path.denied.contains(&(zone.zone, to)),
            (_, Home::Leave, _) | (None, Home::Host(_), Home::Leave) => false,
        }
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        let near = (0..4_u8, any::<u8>()).prop_map(|(net, host)| IpAddr::from([10, 0, net * 10, host]));
        let six =
            (0..4_u16, any::<u16>()).prop_map(|(net, host)| IpAddr::from([0xfd00, 0, 0, net * 10, 0, 0, 0, host]));
        let lines = (any::<u8>(), any::<u8>()).prop_map(|(net, host)| IpAddr::from([192, 0, net, host]));
        let odd = prop::sample::select(vec![
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.5",
            "169.254.1.1",
            "127.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
        ])
        .prop_map(|text| text.parse().unwrap());
        prop_oneof![4 => near, 2 => six, 1 => lines, 1 => odd, 1 => any::<[u8; 4]>().prop_map(IpAddr::from)]
    }

    fn site() -> impl Strategy<Value = Config> {
        (any::<[bool; 6]>(), prop::collection::vec((0..3_usize, 0..3_usize, any::<bool>()), 0..4)).prop_map(
            |([a, b, c, bogons, overlap, open], cells)| {
                let mut site = fixture::site();
                for (closed, vlan) in [a, b, c].into_iter().zip(site.vlans.values_mut()) {
                    vlan.internet = if closed { Internet::None } else { Internet::Any };
                }
                site.wans.values_mut().for_each(|wan| wan.bogons = bogons);
                let names: Vec<_> = site.vlans.keys().cloned().collect();
                let entry = site.cells[0].clone();
                if !open {
                    site.cells.clear();
                }
                for (from, to, enabled) in cells.into_iter().filter(|(from, to, _)| from != to) {
                    let (from, to) = (names[from].clone(), names[to].clone());
                    site.cells.push(config::model::Cell { from, to, enabled, ..entry.clone() });
                }
                if overlap && let Some(vlan) = site.vlans.values_mut().next() {
                    vlan.addresses.push(fixture::net("10.0.0.1/19"));
                }
                site
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_dropped_at_the_ports_the_matrix_denies(
            site in site(), at in any::<prop::sample::Index>(), source in address(), destination in address(),
            port in any::<u16>(), kind in 0..4_u8,
        ) {
            prop_assume!(source.is_ipv4() == destination.is_ipv4());
            let path = compiled(&site);
            let zone = *path.zones.values().nth(at.index(path.zones.len())).unwrap();
            let from = match zone.wan {
                Some(id) => Zone::Wan(site.wan(id).unwrap().name.clone()),
                None => Zone::Vlan(site.vlans.keys().nth(usize::from(zone.zone.0) - 1).unwrap().clone()),
            };
            let protocol = match kind {
                0 => Protocol::Tcp { source: 40_000, destination: port },
                1 => Protocol::Udp { source: 68, destination: 67 },
                2 => Protocol::Ping,
                _ => Protocol::Other(47),
            };
            let to = Zone::of(&site, destination);
            // Both ends in one VLAN: never through the router.
            prop_assume!(from != to);
            let packet = Packet { from, to, source, destination, protocol };
            if dropped(&path, zone, source, destination) {
                prop_assert!(!matrix::verdict(&site, &packet).allowed, "{packet:?}");
            }
        }
    }
}
