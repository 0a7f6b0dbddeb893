//! Two routers with one site file. What clients and providers know is virtual and belongs to whoever is active.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::units::{Line, NodeName, VlanName};

/// The addresses of the VLANs and of the lines are virtual: the active node has them, the other has none of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Two of them.
    pub nodes: BTreeMap<NodeName, Node>,
    /// The VLAN over which the two tell each other their flows and how they are. Nobody is elected over it.
    pub sync: VlanName,
    /// Those over which the two hear each other's adverts. Who has no carrier in one of them is not active.
    pub vlans: Vec<VlanName>,
    /// Of VRRP, the same in every VLAN.
    pub router_id: u8,
    /// Between two adverts. The other takes over when three are missed.
    pub advertise: Duration,
    /// The one with the higher priority takes over from one that is well.
    pub preempt: bool,
    /// What the two know and nobody else does: a file with one line.
    pub secret: PathBuf,
    pub line: Line,
    /// Which node this is, and whether it is active. A file cannot know: `mwan` fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<Seat>,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: NodeName,
    pub priority: u8,
    /// Its own, with the prefix of the VLAN they are in.
    pub addresses: Vec<(VlanName, IpNet)>,
    pub line: Line,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    pub node: NodeName,
    pub active: bool,
}

impl Pair {
    /// This node.
    pub fn own(&self) -> Option<&Node> {
        self.nodes.get(&self.seat.as_ref()?.node)
    }

    /// The other one.
    pub fn peer(&self) -> Option<&Node> {
        let own = self.own()?;
        self.nodes.values().find(|node| node.name != own.name)
    }

    pub fn is_active(&self) -> bool {
        self.seat.as_ref().is_some_and(|seat| seat.active)
    }
}

impl Node {
    pub fn address4(&self, vlan: &VlanName) -> Option<Ipv4Addr> {
        self.addresses.iter().filter(|(in_vlan, _)| in_vlan == vlan).find_map(|(_, net)| match net.addr() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }
}
