//! Ports, bridges and tagged sub-interfaces. A port found by path or driver is renamed to its config name; a name
//! that another interface holds is waited for, and a ring of names is opened by parking one port under a name of
//! ours. Each rename is followed by another compile with the links it left, so no plan ever renames twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use config::Config;
use config::model::{Port, PortFind, PortRole};
use config::units::{IfName, Line};
use serde::{Deserialize, Serialize};

use crate::links::{LinkFacts, Links};
use crate::state::{Link, LinkKind};

/// A port that is in the file and not in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub port: IfName,
    pub why: WhyWaiting,
    /// Where the file speaks of it.
    pub line: Line,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhyWaiting {
    /// No interface has this name.
    NoSuchName { name: IfName },
    /// Fewer network functions than that at or below this PCI address.
    NoSuchPci { address: String, port: u8 },
    /// The driver has fewer interfaces than that.
    NoSuchDriver { driver: String, port: u8 },
    /// Found, but another interface has the name it should get.
    NameTaken { found_as: IfName },
    /// Found, but another port of the file claims the same interface.
    Claimed { found_as: IfName, by: IfName },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} ({}): ", self.port, self.line)?;
        match &self.why {
            WhyWaiting::NoSuchName { name } => write!(f, "there is no interface {name}"),
            WhyWaiting::NoSuchPci { address, port } => {
                write!(f, "there is no network function {port} at or below PCI address {address}")
            }
            WhyWaiting::NoSuchDriver { driver, port } => {
                write!(f, "driver {driver} has no interface number {port}")
            }
            WhyWaiting::NameTaken { found_as } => {
                write!(f, "found as {found_as}, and another interface has the name {}", self.port)
            }
            WhyWaiting::Claimed { found_as, by } => write!(f, "found as {found_as}, which port {by} claims as well"),
        }
    }
}

/// The ports this site waits for, in order of their names.
pub fn unresolved(config: &Config, links: &Links) -> Vec<Waiting> {
    let (_, waiting) = resolve(config, links);
    waiting
}

pub(super) fn links(config: &Config, links: &Links) -> BTreeMap<IfName, Link> {
    let (found, waiting) = resolve(config, links);
    let mut wanted = BTreeMap::new();
    for vlan in config.vlans.values().filter(|vlan| vlan.tunnel.is_none()) {
        wanted.insert(vlan.interface.clone(), Link { kind: LinkKind::Bridge, up: true, master: None, mtu: None });
    }
    for (name, found_as) in &found {
        let role = config.ports.get(name).map_or(&PortRole::Unmapped, |port| &port.role);
        let wan = config.wans.values().find(|wan| wan.interface == *name);
        let master = match role {
            PortRole::Access(vlan) => Some(vlan),
            PortRole::Trunk { native, .. } => native.as_ref(),
            PortRole::Wan(_) | PortRole::Reserved | PortRole::Unmapped => None,
        };
        let up = wan.is_some()
            || match role {
                PortRole::Wan(_) | PortRole::Access(_) | PortRole::Trunk { .. } => true,
                PortRole::Reserved | PortRole::Unmapped => false,
            };
        let link = Link {
            kind: LinkKind::Port { found_as: found_as.clone() },
            up,
            master: master.and_then(|vlan| config.vlans.get(vlan)).map(|vlan| vlan.interface.clone()),
            mtu: wan.and_then(|wan| wan.mtu),
        };
        wanted.insert(name.clone(), link);
        if let PortRole::Trunk { tagged, .. } = role {
            for vlan in tagged.iter().filter_map(|vlan| config.vlans.get(vlan)) {
                let Ok(sub) = format!("{name}.{}", vlan.id).parse::<IfName>() else { continue };
                let kind = LinkKind::Tagged { parent: name.clone(), vlan: vlan.id };
                wanted.insert(sub, Link { kind, up: true, master: Some(vlan.interface.clone()), mtu: None });
            }
        }
    }
    park_one(&waiting, &mut wanted);
    unplug_strangers(config, links, &found, &mut wanted);
    wanted
}

/// Where the names of several ports form a ring, none can be given first. The first of them steps aside.
fn park_one(waiting: &[Waiting], wanted: &mut BTreeMap<IfName, Link>) {
    let held_by = |port: &IfName| {
        let holds = |other: &&Waiting| matches!(&other.why, WhyWaiting::NameTaken { found_as } if found_as == port);
        waiting.iter().find(holds).map(|other| other.port.clone())
    };
    for entry in waiting {
        let WhyWaiting::NameTaken { found_as } = &entry.why else { continue };
        // Follow "whose name do I hold" until it ends or comes back.
        let mut seen = BTreeSet::from([entry.port.clone()]);
        let mut next = held_by(&entry.port);
        while let Some(port) = next.clone().filter(|port| !seen.contains(port)) {
            next = held_by(&port);
            seen.insert(port);
        }
        if next.as_ref() != Some(&entry.port) {
            continue;
        }
        let Some(name) = (0..=u8::MAX)
            .filter_map(|n| format!("qw-parked{n}").parse::<IfName>().ok())
            .find(|name| !wanted.contains_key(name))
        else {
            continue;
        };
        let kind = LinkKind::Port { found_as: found_as.clone() };
        wanted.insert(name, Link { kind, up: false, master: None, mtu: None });
        return;
    }
}

/// An interface of somebody else that sits in one of our bridges (a port that left the file) is taken out and
/// switched off: nothing but what the file names is in a VLAN.
fn unplug_strangers(
    config: &Config,
    links: &Links,
    found: &BTreeMap<IfName, IfName>,
    wanted: &mut BTreeMap<IfName, Link>,
) {
    let bridges: BTreeSet<_> = config.vlans.values().map(|vlan| &vlan.interface).collect();
    let found_as: BTreeSet<_> = found.values().collect();
    for (name, facts) in &links.0 {
        let in_ours = facts.master.as_ref().is_some_and(|master| bridges.contains(master));
        if in_ours && !facts.ours && !found_as.contains(name) && !wanted.contains_key(name) {
            let kind = LinkKind::Port { found_as: name.clone() };
            wanted.insert(name.clone(), Link { kind, up: false, master: None, mtu: None });
        }
    }
}

/// Config name to present name of every port that is there, and those that are not.
fn resolve(config: &Config, links: &Links) -> (BTreeMap<IfName, IfName>, Vec<Waiting>) {
    let mut claims = BTreeMap::new();
    let mut waiting = Vec::new();
    let mut claimed: BTreeMap<IfName, IfName> = BTreeMap::new();
    for (name, find, line) in ports(config) {
        match look(links, &name, &find) {
            Err(why) => waiting.push(Waiting { port: name, why, line }),
            Ok(found_as) => {
                if let Some(by) = claimed.get(&found_as).cloned() {
                    waiting.push(Waiting { port: name, why: WhyWaiting::Claimed { found_as, by }, line });
                } else {
                    claimed.insert(found_as.clone(), name.clone());
                    claims.insert(name, (found_as, line));
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    for (name, (found_as, line)) in claims {
        if found_as != name && links.0.contains_key(&name) {
            waiting.push(Waiting { port: name, why: WhyWaiting::NameTaken { found_as }, line });
        } else {
            found.insert(name, found_as);
        }
    }
    waiting.sort_by(|a, b| a.port.cmp(&b.port));
    (found, waiting)
}

/// Every port of the site: those with an entry of their own, and WAN interfaces without one, found by name.
fn ports(config: &Config) -> Vec<(IfName, PortFind, Line)> {
    let written = config.ports.values().map(|Port { name, find, line, .. }| (name.clone(), find.clone(), *line));
    let implied = config
        .wans
        .values()
        .filter(|wan| !config.ports.contains_key(&wan.interface))
        .map(|wan| (wan.interface.clone(), PortFind::Name(wan.interface.clone()), wan.line));
    written.chain(implied).collect()
}

fn look(links: &Links, name: &IfName, find: &PortFind) -> Result<IfName, WhyWaiting> {
    let hardware = |wanted: &dyn Fn(&LinkFacts) -> bool, port: u8| {
        let mut all: Vec<_> =
            links.0.iter().filter(|(_, facts)| !facts.ours && facts.pci.is_some() && wanted(facts)).collect();
        all.sort_by(|(_, a), (_, b)| (&a.pci, a.index).cmp(&(&b.pci, b.index)));
        all.get(usize::from(port)).map(|(name, _)| (*name).clone())
    };
    match find {
        PortFind::Name(present) => [present, name]
            .into_iter()
            .find(|candidate| links.get(candidate).is_some_and(|facts| !facts.ours))
            .cloned()
            .ok_or_else(|| WhyWaiting::NoSuchName { name: present.clone() }),
        PortFind::Pci { address, port } => {
            let below = |facts: &LinkFacts| facts.pci.as_deref().is_some_and(|pci| at_or_below(pci, address));
            hardware(&below, *port).ok_or_else(|| WhyWaiting::NoSuchPci { address: address.clone(), port: *port })
        }
        PortFind::Driver { driver, port } => {
            let same = |facts: &LinkFacts| facts.driver.as_deref() == Some(driver);
            hardware(&same, *port).ok_or_else(|| WhyWaiting::NoSuchDriver { driver: driver.clone(), port: *port })
        }
    }
}

/// `0000:01:00` holds `0000:01:00.0` and not `0000:01:001.0`.
fn at_or_below(pci: &str, address: &str) -> bool {
    pci.strip_prefix(address).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ':']))
}
