//! Where packets come in and leave: lines with their gateways, VLANs with the hosts on them. Filled from the config,
//! the links and the neighbour tables; a function of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use config::Config;
use config::units::{Family, WanId};
use ipnet::IpNet;
use mwan::state::FlowClass;

type Mac = [u8; 6];

/// A link as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Up, with somebody at the far end.
    pub works: bool,
    pub mac: Option<Mac>,
    pub mtu: u32,
    /// The bridge it belongs to.
    pub master: Option<u32>,
    /// The port below it and the tag there, where it is a VLAN sub-interface.
    pub tagged: Option<(u32, u16)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    pub lines: BTreeMap<WanId, Line>,
    pub lans: Vec<Lan>,
    /// The ports that forward.
    pub attached: BTreeSet<u32>,
    /// By the index of the bridge's member.
    pub ports: BTreeMap<u32, Port>,
    /// The router's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// By bridge or line.
    pub neighbours: BTreeMap<(u32, IpAddr), Mac>,
    /// Members behind which MACs were seen, by bridge.
    pub forwarding: BTreeMap<(u32, Mac), u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub port: u32,
    pub mac: Mac,
    pub mtu: u16,
    pub gateways: BTreeMap<Family, IpAddr>,
    /// On the line itself, or behind another router than its gateway.
    pub nets: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lan {
    pub bridge: u32,
    pub mac: Mac,
    pub mtu: u16,
    pub nets: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    pub port: u32,
    pub vlan: u16,
    pub mtu: u16,
}

/// One end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) spot: Spot,
    /// `None` in a VLAN.
    pub(super) line: Option<WanId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) port: u32,
    pub(super) vlan: u16,
    /// The router's there.
    pub(super) mac: Mac,
    /// The next hop's.
    pub(super) peer: Mac,
    pub(super) mtu: u16,
}

impl Topology {
    /// Without neighbours. Only `attached` ports forward.
    pub fn new(config: &Config, links: &[Link], attached: BTreeSet<u32>) -> Self {
        let named = |name: &str| links.iter().find(|link| link.name == name && link.works);
        let mut topology = Self::default();
        for wan in config.wans.values() {
            let own = &wan.addressing.addresses;
            topology.own.extend(own.iter().map(IpNet::addr));
            let elsewhere = wan.addressing.routes.iter().map(|route| route.destination);
            let Some(link) = named(wan.interface.as_str()).filter(|link| attached.contains(&link.index)) else {
                continue;
            };
            let Some(mac) = link.mac else { continue };
            let gateway = |family| Some((family, wan.gateway(family)?));
            let line = Line {
                port: link.index,
                mac,
                mtu: short(link.mtu),
                gateways: Family::ALL.into_iter().filter_map(gateway).collect(),
                nets: own.iter().map(IpNet::trunc).chain(elsewhere).collect(),
            };
            topology.lines.insert(wan.id, line);
        }
        for vlan in config.vlans.values() {
            topology.own.extend(vlan.addresses.iter().map(IpNet::addr));
            let nets = vlan.addresses.iter().map(IpNet::trunc).collect();
            let link = named(vlan.interface.as_str());
            if let Some((link, mac)) = link.and_then(|link| Some((link, link.mac?))) {
                topology.lans.push(Lan { bridge: link.index, mac, mtu: short(link.mtu), nets });
            }
        }
        for link in links.iter().filter(|link| link.works && link.master.is_some()) {
            let (port, vlan) = link.tagged.unwrap_or((link.index, 0));
            if attached.contains(&port) {
                topology.ports.insert(link.index, Port { port, vlan, mtu: short(link.mtu) });
            }
        }
        topology.attached = attached;
        topology
    }

    /// Where packets of this address come in and leave. `class` says by which line, where it is outside.
    pub(super) fn place(&self, address: IpAddr, class: Option<FlowClass>) -> Option<Place> {
        if self.own.contains(&address) || is_special(address) {
            return None;
        }
        let mut lans = self.lans.iter().filter(|lan| lan.nets.iter().any(|net| net.contains(&address)));
        match (lans.next(), lans.next()) {
            (Some(lan), None) => self.host(lan, address),
            (Some(_), Some(_)) => None,
            (None, _) => self.outside(address, class?.wan),
        }
    }

    fn host(&self, lan: &Lan, address: IpAddr) -> Option<Place> {
        let peer = *self.neighbours.get(&(lan.bridge, address))?;
        let port = self.ports.get(self.forwarding.get(&(lan.bridge, peer))?)?;
        let spot = Spot { port: port.port, vlan: port.vlan, mac: lan.mac, peer, mtu: lan.mtu.min(port.mtu) };
        Some(Place { spot, line: None })
    }

    fn outside(&self, address: IpAddr, wan: WanId) -> Option<Place> {
        let line = self.lines.get(&wan)?;
        if line.nets.iter().any(|net| net.contains(&address)) {
            return None;
        }
        let gateway = *line.gateways.get(&Family::of(address))?;
        let peer = *self.neighbours.get(&(line.port, gateway))?;
        Some(Place { spot: Spot { port: line.port, vlan: 0, mac: line.mac, peer, mtu: line.mtu }, line: Some(wan) })
    }
}

/// Nobody's, or several hosts'. The broadcast address of a subnet has no neighbour.
fn is_special(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    link_local || address.is_multicast() || address.is_loopback() || address.is_unspecified()
}

fn short(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}
