//! Links: what is there, told twice (facts for the router, [`Link`] for the plan), and the changes
//! a plan asks for. Only links that carry our alias are ever deleted.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use config::units::{IfName, VlanId};
use mwan::KernelState;
use mwan::links::{LinkFacts, Links};
use mwan::state::{ALIAS, Link, LinkKind};
use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkBridge, LinkUnspec, LinkVlan};

use super::netlink::{NLM_F_CREATE, NLM_F_EXCL, done_if, errno};
use super::rtnl::{Rtnl, find};
use crate::flows;

/// A link as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) name: String,
    up: bool,
    carrier: bool,
    mac: Option<[u8; 6]>,
    mtu: u32,
    master: Option<u32>,
    parent: Option<u32>,
    vlan: Option<u16>,
    kind: Option<InfoKind>,
    alias: Option<String>,
}

impl Found {
    pub(crate) fn is_ours(&self) -> bool {
        self.alias.as_deref() == Some(ALIAS)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }
}

/// Every link of the namespace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table(Vec<Found>);

impl Table {
    pub(crate) async fn read(rtnl: &mut Rtnl) -> io::Result<Self> {
        let mut question = LinkMessage::default();
        // Without the counters, which are most of an answer's bytes.
        question.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        Ok(Self(rtnl.dump(RouteNetlinkMessage::GetLink(question)).await?.iter().filter_map(found).collect()))
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Found> {
        self.0.iter().find(|link| link.name == name)
    }

    /// Names and numbers of those of this kind that we made.
    pub(crate) fn ours(&self, kind: &InfoKind) -> impl Iterator<Item = (&str, u32)> {
        let ours = self.0.iter().filter(move |link| link.is_ours() && link.kind.as_ref() == Some(kind));
        ours.map(|link| (link.name.as_str(), link.index))
    }

    pub(crate) fn index(&self, name: &IfName) -> io::Result<u32> {
        self.named(name.as_str()).map(|link| link.index).ok_or_else(|| missing(name.as_str()))
    }

    pub(crate) fn name(&self, index: u32) -> Option<IfName> {
        self.0.iter().find(|link| link.index == index)?.name.parse().ok()
    }

    /// The facts the router decides on.
    pub(crate) fn facts(&self, devices: &mut Devices) -> Links {
        devices.0.retain(|(index, _), _| self.0.iter().any(|link| link.index == *index));
        let facts = self.0.iter().filter_map(|link| {
            let device = devices.of(link);
            let facts = LinkFacts {
                index: link.index,
                admin_up: link.up,
                carrier: link.carrier,
                mac: link.mac,
                mtu: link.mtu,
                master: link.master.and_then(|index| self.name(index)),
                driver: device.driver,
                pci: device.pci,
                ours: link.is_ours(),
            };
            Some((link.name.parse().ok()?, facts))
        });
        Links(facts.collect())
    }

    /// As the flows of the fast path look at them.
    pub(crate) fn places(&self) -> Vec<flows::Link> {
        let place = |link: &Found| flows::Link {
            index: link.index,
            name: link.name.clone(),
            works: link.up && link.carrier,
            mac: link.mac,
            mtu: link.mtu,
            master: link.master,
            tagged: link.parent.zip(link.vlan),
        };
        self.0.iter().map(place).collect()
    }

    /// Our own links and the ports `want` names, each under its present name. An MTU that `want` leaves open is
    /// left out.
    pub(crate) fn observed(&self, want: &KernelState) -> BTreeMap<IfName, Link> {
        let is_port = |name: &IfName| {
            want.links.iter().any(|(wanted, link)| match &link.kind {
                LinkKind::Port { found_as } => wanted == name || found_as == name,
                LinkKind::Bridge | LinkKind::Tagged { .. } => false,
            })
        };
        let observed = self.0.iter().filter_map(|link| {
            let name: IfName = link.name.parse().ok()?;
            let wanted = want.links.get(&name);
            let kind = match self.own_kind(link) {
                Some(kind) => kind,
                None if is_port(&name) => LinkKind::Port { found_as: name.clone() },
                None => return None,
            };
            let mtu = wanted.and_then(|wanted| wanted.mtu).and_then(|_| u16::try_from(link.mtu).ok());
            let master = link.master.and_then(|index| self.name(index));
            Some((name, Link { kind, up: link.up, master, mtu }))
        });
        observed.collect()
    }

    /// `None` for what we did not create.
    fn own_kind(&self, link: &Found) -> Option<LinkKind> {
        match link.kind {
            _ if !link.is_ours() => None,
            Some(InfoKind::Bridge) => Some(LinkKind::Bridge),
            Some(InfoKind::Vlan) => {
                Some(LinkKind::Tagged { parent: self.name(link.parent?)?, vlan: VlanId::new(link.vlan?)? })
            }
            Some(_) | None => None,
        }
    }
}

/// What stands behind a link in `/sys`, read once per link: it cannot change under one index and name.
#[derive(Debug, Default)]
pub(crate) struct Devices(BTreeMap<(u32, String), Device>);

#[derive(Debug, Clone, Default)]
struct Device {
    driver: Option<String>,
    pci: Option<String>,
}

impl Devices {
    fn of(&mut self, link: &Found) -> Device {
        self.0
            .entry((link.index, link.name.clone()))
            .or_insert_with(|| device(Path::new("/sys/class/net"), link))
            .clone()
    }
}

fn device(sys: &Path, link: &Found) -> Device {
    let directory = sys.join(&link.name);
    // In a network namespace `/sys` may be the one of another: the same name is then another link.
    let same = fs::read_to_string(directory.join("ifindex")).is_ok_and(|text| text.trim() == link.index.to_string())
        && fs::read_to_string(directory.join("address"))
            .is_ok_and(|text| Some(text.trim()) == mac_text(link).as_deref());
    if !same {
        return Device::default();
    }
    let Ok(device) = fs::canonicalize(directory.join("device")) else { return Device::default() };
    // A virtio or USB device stands below the PCI function that carries it.
    let pci = device.ancestors().find(|path| target_name(&path.join("subsystem")).as_deref() == Some("pci"));
    Device {
        driver: target_name(&device.join("driver")),
        pci: pci.and_then(|path| path.file_name()?.to_str().map(str::to_owned)),
    }
}

/// The last part of what a symbolic link leads to.
fn target_name(path: &Path) -> Option<String> {
    Some(fs::canonicalize(path).ok()?.file_name()?.to_str()?.to_owned())
}

fn mac_text(link: &Found) -> Option<String> {
    link.mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"))
}

/// Creates, renames or changes a link.
pub(crate) async fn set(rtnl: &mut Rtnl, name: &IfName, link: &Link) -> io::Result<()> {
    let table = Table::read(rtnl).await?;
    let index = match &link.kind {
        LinkKind::Port { found_as } => port(rtnl, &table, name, found_as).await?,
        LinkKind::Bridge | LinkKind::Tagged { .. } => own(rtnl, &table, name, &link.kind).await?,
    };
    let now = Table::read(rtnl).await?;
    let found = now.0.iter().find(|found| found.index == index).ok_or_else(|| missing(name.as_str()))?;
    let mut change = LinkUnspec::new_with_index(index);
    change = if link.up { change.up() } else { change.down() };
    if let Some(mtu) = link.mtu.map(u32::from).filter(|mtu| *mtu != found.mtu) {
        change = change.mtu(mtu);
    }
    let master = link.master.as_ref().map(|master| now.index(master)).transpose()?;
    if master != found.master {
        change = change.controller(master.unwrap_or(0));
    }
    rtnl.change(0, RouteNetlinkMessage::SetLink(change.build())).await
}

/// Deletes a bridge or VLAN sub-interface of ours.
pub(crate) async fn delete(rtnl: &mut Rtnl, name: &IfName) -> io::Result<()> {
    let table = Table::read(rtnl).await?;
    let Some(found) = table.named(name.as_str()) else { return Ok(()) };
    if !found.is_ours() {
        return Err(io::Error::other(format!("{name} is not ours: it does not carry the alias {ALIAS:?}")));
    }
    remove(rtnl, found.index).await
}

/// The index of the port, under its wanted name.
async fn port(rtnl: &mut Rtnl, table: &Table, name: &IfName, found_as: &IfName) -> io::Result<u32> {
    // A plan made before the rename may be carried out again after it.
    let port = match table.named(name.as_str()) {
        Some(port) => return Ok(port.index),
        None => table.named(found_as.as_str()).ok_or_else(|| missing(found_as.as_str()))?,
    };
    let rename = RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(port.index).name(name.as_str()).build());
    match rtnl.change(0, rename.clone()).await {
        // Kernels before 6.2 rename only what is down. `set` puts it up again where it should be.
        Err(error) if errno(&error) == Some(Errno::EBUSY as i32) => {
            let down = LinkUnspec::new_with_index(port.index).down().build();
            rtnl.change(0, RouteNetlinkMessage::SetLink(down)).await?;
            rtnl.change(0, rename).await?;
        }
        other => other?,
    }
    Ok(port.index)
}

/// The index of a link of ours, created where it is missing and created again where it is another.
async fn own(rtnl: &mut Rtnl, table: &Table, name: &IfName, kind: &LinkKind) -> io::Result<u32> {
    if let Some(found) = table.named(name.as_str()) {
        let claimed = Found { alias: Some(ALIAS.to_owned()), ..found.clone() };
        let is_it = table.own_kind(&claimed).as_ref() == Some(kind);
        match found.alias.as_deref() {
            // Without alias: we were killed between creating and marking it.
            Some(ALIAS) | None if is_it => return mark(rtnl, found.index).await,
            Some(ALIAS) => remove(rtnl, found.index).await?,
            Some(_) | None => return Err(io::Error::other(format!("a link {name} exists that is not ours"))),
        }
    }
    let (create, module) = match kind {
        LinkKind::Tagged { parent, vlan } => {
            (LinkVlan::new(name.as_str(), table.index(parent)?, vlan.get()).build(), "8021q")
        }
        LinkKind::Bridge | LinkKind::Port { .. } => {
            let bridge = LinkBridge::new(name.as_str()).forward_delay(0).stp_state(BridgeStpState::Disabled);
            (bridge.build(), "bridge")
        }
    };
    match rtnl.change(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(create)).await {
        Err(error) if errno(&error) == Some(Errno::EOPNOTSUPP as i32) => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("kernel lacks {module}: load the module {module}, or use a kernel that has it"),
            ));
        }
        other => other?,
    }
    let index = Table::read(rtnl).await?.index(name)?;
    mark(rtnl, index).await
}

pub(crate) async fn mark(rtnl: &mut Rtnl, index: u32) -> io::Result<u32> {
    // The kernel takes no alias at creation.
    let alias = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::IfAlias(ALIAS.to_owned()));
    rtnl.change(0, RouteNetlinkMessage::SetLink(alias.build())).await.map(|()| index)
}

pub(crate) async fn remove(rtnl: &mut Rtnl, index: u32) -> io::Result<()> {
    let link = LinkUnspec::new_with_index(index).build();
    done_if(rtnl.change(0, RouteNetlinkMessage::DelLink(link)).await, &[Errno::ENODEV])
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no link {name}"))
}

fn found(message: &RouteNetlinkMessage) -> Option<Found> {
    let RouteNetlinkMessage::NewLink(LinkMessage { header, attributes, .. }) = message else { return None };
    let info = find!(attributes, LinkAttribute::LinkInfo).map_or(&[][..], Vec::as_slice);
    Some(Found {
        index: header.index,
        name: find!(attributes, LinkAttribute::IfName)?.clone(),
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        mac: find!(attributes, LinkAttribute::Address).and_then(|mac| mac.as_slice().try_into().ok()),
        mtu: find!(attributes, LinkAttribute::Mtu).copied().unwrap_or_default(),
        master: find!(attributes, LinkAttribute::Controller).copied(),
        parent: find!(attributes, LinkAttribute::Link).copied(),
        vlan: match find!(info, LinkInfo::Data) {
            Some(InfoData::Vlan(data)) => find!(data, InfoVlan::Id).copied(),
            Some(_) | None => None,
        },
        kind: find!(info, LinkInfo::Kind).cloned(),
        alias: find!(attributes, LinkAttribute::IfAlias).filter(|alias| !alias.is_empty()).cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_and_pci_address_come_from_sysfs_if_it_shows_the_same_link() {
        let sys = tempfile::tempdir().unwrap();
        let at = |path: &str| sys.path().join(path);
        let function = "devices/pci0000:00/0000:00:03.0";
        for directory in
            ["class/net/eth0", &format!("{function}/virtio1"), "bus/pci/drivers", "bus/virtio/drivers/virtio_net"]
        {
            fs::create_dir_all(at(directory)).unwrap();
        }
        let link = |from: &str, to: &str| std::os::unix::fs::symlink(at(to), at(from)).unwrap();
        link("class/net/eth0/device", &format!("{function}/virtio1"));
        link(&format!("{function}/subsystem"), "bus/pci");
        link(&format!("{function}/virtio1/subsystem"), "bus/virtio");
        link(&format!("{function}/virtio1/driver"), "bus/virtio/drivers/virtio_net");
        fs::write(at("class/net/eth0/ifindex"), "7\n").unwrap();
        fs::write(at("class/net/eth0/address"), "02:00:00:00:00:0a\n").unwrap();

        let here = Found {
            index: 7,
            name: "eth0".to_owned(),
            up: true,
            carrier: true,
            mac: Some([2, 0, 0, 0, 0, 10]),
            mtu: 1500,
            master: None,
            parent: None,
            vlan: None,
            kind: None,
            alias: None,
        };
        let found = device(&at("class/net"), &here);
        assert_eq!(found.driver.as_deref(), Some("virtio_net"));
        assert_eq!(found.pci.as_deref(), Some("0000:00:03.0"));
        // The namespace of somebody else has an eth0 too.
        let elsewhere = Found { mac: Some([2, 0, 0, 0, 0, 11]), ..here };
        assert_eq!(device(&at("class/net"), &elsewhere).driver, None);
    }
}
