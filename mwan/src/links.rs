//! The links the kernel shows: facts, as observed. The daemon fills this from netlink; nothing here decides.

use std::collections::BTreeMap;

use config::units::IfName;
use serde::{Deserialize, Serialize};

/// Every link of the network namespace, by the name it has at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links(pub BTreeMap<IfName, LinkFacts>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFacts {
    pub index: u32,
    pub admin_up: bool,
    /// `IFF_LOWER_UP`: the far end is there.
    pub carrier: bool,
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    /// The bridge it belongs to.
    pub master: Option<IfName>,
    /// The kernel driver (`igb`) and PCI address (`0000:01:00.0`), where sysfs tells them.
    pub driver: Option<String>,
    pub pci: Option<String>,
    /// We created it (it carries our alias).
    pub ours: bool,
}

impl Links {
    pub fn get(&self, name: &IfName) -> Option<&LinkFacts> {
        self.0.get(name)
    }

    pub fn has_carrier(&self, name: &IfName) -> bool {
        self.get(name).is_some_and(|link| link.admin_up && link.carrier)
    }
}
