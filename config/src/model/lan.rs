//! What VLANs are handed by the router: addresses, who routes, the time. A part is `None` where nobody asked for it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{HostName, Line, Mac, VlanName};

/// DHCP, for the VLANs that may ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dhcp {
    pub vlans: BTreeMap<VlanName, VlanDhcp>,
    pub line: Line,
}

/// What one VLAN is handed. Without a pool, those with a reservation alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VlanDhcp {
    /// Each within one subnet of the VLAN, and apart from the others.
    pub pool4: Vec<RangeInclusive<Ipv4Addr>>,
    pub pool6: Vec<RangeInclusive<Ipv6Addr>>,
    pub lease: Duration,
    pub domain: Option<String>,
    pub mtu: Option<u16>,
    /// In the order of their names.
    pub reservations: Vec<Reservation>,
}

/// A host whose network card is known: it gets its address, and nobody else does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub host: HostName,
    pub mac: Mac,
    pub address4: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
}

/// Router advertisements, for the VLANs with an IPv6 address that do not refuse them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ra {
    pub vlans: Vec<VlanName>,
    /// For which hosts keep the router without hearing of it.
    pub lifetime: Duration,
    pub line: Line,
}

/// The time, for the router itself and the VLANs that may ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ntp {
    /// Names or addresses; at least one.
    pub servers: Vec<String>,
    /// Whether the machine's clock is set. Somebody else does where it is not.
    pub set_clock: bool,
    pub vlans: Vec<VlanName>,
    pub line: Line,
}
