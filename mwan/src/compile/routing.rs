//! Addresses, routes, rules and sysctls: one table per WAN, chosen by mark or by outgoing interface, so that four
//! lines with the same subnet and the same gateway never meet in one table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use config::Config;
use config::model::{LineRoute, Tunnel};
use config::units::{Family, IfName, Mark, TableId};
use ipnet::IpNet;

use crate::decide::Decision;
use crate::state::{Address, Link, LinkKind, NextHop, RouteKey, Rule, RuleAction, Selector};

pub(super) fn addresses(config: &Config, present: impl Fn(&IfName) -> bool) -> BTreeSet<Address> {
    if let Some(pair) = &config.pair {
        // Its own. Those of the VLANs and lines are virtual: whoever elects the active router moves them.
        let own = pair.own().into_iter().flat_map(|own| &own.addresses);
        let own = own.filter_map(|(vlan, net)| Some((&config.vlans.get(vlan)?.interface, net)));
        return own
            .filter(|(link, _)| present(link))
            .map(|(link, net)| Address { link: link.clone(), net: *net, no_prefix_route: false })
            .collect();
    }
    let vlans = config.vlans.values().map(|vlan| (&vlan.interface, &vlan.addresses, false));
    let wans = config.wans.values().map(|wan| (&wan.interface, &wan.addressing.addresses, true));
    vlans
        .chain(wans)
        .filter(|(link, ..)| present(link))
        .flat_map(|(link, nets, no_prefix_route)| {
            nets.iter().map(move |net| Address { link: link.clone(), net: *net, no_prefix_route })
        })
        .collect()
}

pub(super) fn routes(
    config: &Config,
    decision: &Decision,
    present: impl Fn(&IfName) -> bool,
) -> BTreeMap<RouteKey, NextHop> {
    let mut routes = BTreeMap::new();
    // While a VLAN is gone, main has no route to it; the router's own packets must not take the default for it.
    for net in config.vlans.values().flat_map(|vlan| &vlan.addresses) {
        routes.insert(key(Family::of(net.addr()), TableId::ROUTER, net.trunc()), NextHop::Unreachable);
    }
    for wan in config.wans.values().filter(|wan| present(&wan.interface)) {
        for family in Family::ALL {
            let (Some(gateway), Some(source)) = (wan.gateway(family), wan.source(family)) else { continue };
            let link = wan.interface.clone();
            let default = NextHop::Gateway { link, gateway, source: Some(source) };
            routes.insert(key(family, wan.id.table(), default_of(family)), default.clone());
            if decision.own.get(&family) == Some(&wan.id) {
                routes.insert(key(family, TableId::ROUTER, default_of(family)), default);
            }
        }
        for net in &wan.addressing.addresses {
            let connected = NextHop::Direct { link: wan.interface.clone(), source: Some(net.addr()) };
            routes.entry(key(Family::of(net.addr()), wan.id.table(), net.trunc())).or_insert(connected);
        }
        for LineRoute { destination, gateway } in &wan.addressing.routes {
            let family = Family::of(destination.addr());
            let Some(source) = wan.source(family) else { continue };
            let (link, source) = (wan.interface.clone(), Some(source));
            let hop = match *gateway {
                Some(gateway) => NextHop::Gateway { link, gateway, source },
                None => NextHop::Direct { link, source },
            };
            routes.entry(key(family, wan.id.table(), destination.trunc())).or_insert(hop);
        }
    }
    routes
}

/// Routes to what is behind tunnels, and to their other ends by the lines that carry them. While its interface is not
/// there, what is behind a tunnel is unreachable: no packet for it leaves by a line.
pub(super) fn tunnels(
    config: &Config,
    decision: &Decision,
    present: impl Fn(&IfName) -> bool,
    up: impl Fn(&IfName) -> bool,
) -> BTreeMap<RouteKey, NextHop> {
    let mut routes = BTreeMap::new();
    for (vlan, tunnel) in config.tunnels() {
        for net in &tunnel.networks {
            let family = Family::of(net.addr());
            let hop = if up(&vlan.interface) {
                NextHop::Direct { link: vlan.interface.clone(), source: near_end(config, tunnel, family) }
            } else {
                NextHop::Unreachable
            };
            routes.insert(key(family, TableId::TUNNELS, *net), hop);
        }
        let family = tunnel.family();
        let line = decision.tunnels.get(&vlan.name).and_then(|id| config.wan(*id));
        let Some(wan) = line.filter(|wan| present(&wan.interface)) else { continue };
        let (Some(gateway), Some(source)) = (wan.gateway(family), wan.source(family)) else { continue };
        let hop = NextHop::Gateway { link: wan.interface.clone(), gateway, source: Some(source) };
        // Where the other end may be anywhere, answers to it need a route until their flow tells the line.
        let peer = tunnel.peer().map_or_else(|| default_of(family), IpNet::from);
        routes.entry(key(family, TableId::TUNNEL_PEERS, peer)).or_insert(hop);
    }
    routes
}

/// What the router itself speaks from through a tunnel: its address in a network that the other end expects.
fn near_end(config: &Config, tunnel: &Tunnel, family: Family) -> Option<IpAddr> {
    let own = config.vlans.values().flat_map(|vlan| &vlan.addresses).map(IpNet::addr);
    let mut own = own.filter(|own| Family::of(*own) == family);
    match tunnel.ipsec() {
        Some(ipsec) => own.find(|own| ipsec.local_networks.iter().any(|net| net.contains(own))),
        None => own.next(),
    }
}

pub(super) fn tunnel_sysctls(config: &Config, up: impl Fn(&IfName) -> bool) -> BTreeMap<String, String> {
    let there = config.tunnels().map(|(vlan, _)| &vlan.interface).filter(|name| up(name));
    let keys = |name: &IfName| {
        let keys = ["rp_filter", "accept_redirects", "send_redirects"];
        keys.map(|key| (format!("net/ipv4/conf/{name}/{key}"), "0".to_owned()))
    };
    there.flat_map(keys).collect()
}

/// A rule stands only where its table has a route; "answer unreachable" stands for every line, so that a flow of
/// a line that is gone never leaves by another.
pub(super) fn rules(config: &Config, routes: &BTreeMap<RouteKey, NextHop>) -> BTreeSet<Rule> {
    let filled: BTreeSet<_> = routes.keys().map(|key| (key.family, key.table)).collect();
    let mut rules = BTreeSet::new();
    for family in Family::ALL {
        let mut add = |priority, selector, action| {
            rules.insert(Rule { priority, family, selector, action });
        };
        let by_mark = |mark| Selector::Mark { mark, mask: Mark(Mark::WAN_MASK) };
        add(MAIN_FIRST, Selector::All, RuleAction::LookupMainWithoutDefault);
        for wan in config.wans.values() {
            let id = u32::from(wan.id.get());
            let table = wan.id.table();
            if filled.contains(&(family, table)) {
                add(BY_MARK + id, by_mark(wan.id.mark()), RuleAction::Lookup(table));
                add(BY_INTERFACE + id, Selector::OutInterface(wan.interface.clone()), RuleAction::Lookup(table));
            }
            add(NO_LEAK + id, by_mark(wan.id.mark()), RuleAction::Unreachable);
        }
        if filled.contains(&(family, TableId::TUNNELS)) {
            add(TUNNELS, Selector::All, RuleAction::Lookup(TableId::TUNNELS));
        }
        if filled.contains(&(family, TableId::TUNNEL_PEERS)) {
            add(BY_MARK + slot_number(Mark::TUNNEL), by_mark(Mark::TUNNEL), RuleAction::Lookup(TableId::TUNNEL_PEERS));
        }
        if config.tunnels().next().is_some() {
            add(NO_LEAK + slot_number(Mark::TUNNEL), by_mark(Mark::TUNNEL), RuleAction::Unreachable);
        }
        add(NO_LEAK + slot_number(Mark::BLACKHOLE), by_mark(Mark::BLACKHOLE), RuleAction::Blackhole);
        add(NO_LEAK + slot_number(Mark::UNREACHABLE), by_mark(Mark::UNREACHABLE), RuleAction::Unreachable);
        if filled.contains(&(family, TableId::ROUTER)) {
            add(OWN, Selector::Local, RuleAction::Lookup(TableId::ROUTER));
        }
    }
    rules
}

pub(super) fn sysctls(config: &Config, links: &BTreeMap<IfName, Link>) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    let mut set = |name: String, value: &str| {
        sysctls.insert(name, value.to_owned());
    };
    // The kernel takes the maximum of `all` and the interface for rp_filter, either of the two for send_redirects.
    set("net/ipv4/conf/all/rp_filter".to_owned(), "0");
    set("net/ipv4/conf/all/send_redirects".to_owned(), "0");
    // Frames bridged inside a VLAN are no business of the matrix.
    for hook in ["iptables", "ip6tables", "arptables"] {
        set(format!("net/bridge/bridge-nf-call-{hook}"), "0");
    }
    if config.fast_path.is_some() {
        // Conntrack does not see what the fast path forwards: sequence numbers run ahead of it.
        set("net/netfilter/nf_conntrack_tcp_be_liberal".to_owned(), "1");
        // Of its end, too, conntrack must tell whoever cached it.
        set("net/netfilter/nf_conntrack_events".to_owned(), "1");
    }
    set("net/ipv4/ip_forward".to_owned(), "1");
    set("net/ipv6/conf/all/forwarding".to_owned(), "1");
    for (name, link) in links {
        let carries_addresses = link.kind == LinkKind::Bridge || config.wans.values().any(|wan| wan.interface == *name);
        // An address answers ARP on its own interface only: four lines may share a subnet, a trunk's parent
        // hears the frames of every VLAN.
        for (key, value) in [
            ("arp_ignore", "1"),
            ("arp_announce", "2"),
            ("rp_filter", "0"),
            ("src_valid_mark", "1"),
            ("accept_redirects", "0"),
            ("send_redirects", "0"),
            // Deleting an address must not take its neighbours in the subnet along.
            ("promote_secondaries", "1"),
        ] {
            set(format!("net/ipv4/conf/{name}/{key}"), value);
        }
        let no_ipv6 = if carries_addresses { "0" } else { "1" };
        for (key, value) in [("disable_ipv6", no_ipv6), ("accept_ra", "0"), ("accept_redirects", "0")] {
            set(format!("net/ipv6/conf/{name}/{key}"), value);
        }
    }
    sysctls
}

fn key(family: Family, table: TableId, destination: IpNet) -> RouteKey {
    RouteKey { family, table, destination, metric: 0 }
}

fn default_of(family: Family) -> IpNet {
    let any = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    IpNet::new_assert(any, 0)
}

fn slot_number(mark: Mark) -> u32 {
    mark.0 >> 24
}

const MAIN_FIRST: u32 = 9999;
/// Before all that goes by marks: what is behind a tunnel has no line.
const TUNNELS: u32 = 10_000;
const BY_MARK: u32 = 10_000;
const NO_LEAK: u32 = 11_000;
const BY_INTERFACE: u32 = 12_000;
const OWN: u32 = 13_000;
