//! Links over rtnetlink: what is there, told twice (facts for the router, [`Link`] for the plan), and the changes
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

use super::netlink::{Message, NLM_F_CREATE, NLM_F_EXCL, Received, Socket, done_if, errno, ne32};

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
    kind: Option<String>,
    alias: Option<String>,
}

impl Found {
    fn is_ours(&self) -> bool {
        self.alias.as_deref() == Some(ALIAS)
    }
}

/// Every link of the namespace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table(Vec<Found>);

impl Table {
    pub(crate) fn read(socket: &mut Socket) -> io::Result<Self> {
        // Without the counters, which are most of an answer's bytes.
        const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
        let question = Message::new(RTM_GETLINK, 0, &[0; IFINFOMSG]).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        Ok(Self(socket.dump(&question)?.iter().filter_map(found).collect()))
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Found> {
        self.0.iter().find(|link| link.name == name)
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
        match link.kind.as_deref() {
            _ if !link.is_ours() => None,
            Some("bridge") => Some(LinkKind::Bridge),
            Some("vlan") => Some(LinkKind::Tagged { parent: self.name(link.parent?)?, vlan: VlanId::new(link.vlan?)? }),
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
pub(crate) fn set(socket: &mut Socket, name: &IfName, link: &Link) -> io::Result<()> {
    let table = Table::read(socket)?;
    let index = match &link.kind {
        LinkKind::Port { found_as } => port(socket, &table, name, found_as)?,
        LinkKind::Bridge => own(socket, &table, name, &link.kind, |message| {
            message
                .text(IFLA_INFO_KIND, "bridge")
                .nest(IFLA_INFO_DATA, |data| data.u32(IFLA_BR_FORWARD_DELAY, 0).u32(IFLA_BR_STP_STATE, 0))
        })?,
        LinkKind::Tagged { vlan, .. } => own(socket, &table, name, &link.kind, |message| {
            message
                .text(IFLA_INFO_KIND, "vlan")
                .nest(IFLA_INFO_DATA, |data| data.attr(IFLA_VLAN_ID, &vlan.get().to_ne_bytes()))
        })?,
    };
    let now = Table::read(socket)?;
    let found = now.0.iter().find(|found| found.index == index).ok_or_else(|| missing(name.as_str()))?;
    let mut change = Message::new(RTM_SETLINK, 0, &ifinfomsg(index, if link.up { IFF_UP } else { 0 }, IFF_UP));
    if let Some(mtu) = link.mtu.map(u32::from).filter(|mtu| *mtu != found.mtu) {
        change = change.u32(IFLA_MTU, mtu);
    }
    let master = link.master.as_ref().map(|master| now.index(master)).transpose()?;
    if master != found.master {
        change = change.u32(IFLA_MASTER, master.unwrap_or(0));
    }
    socket.ask(change).map(drop)
}

/// Deletes a bridge or VLAN sub-interface of ours.
pub(crate) fn delete(socket: &mut Socket, name: &IfName) -> io::Result<()> {
    let table = Table::read(socket)?;
    let Some(found) = table.named(name.as_str()) else { return Ok(()) };
    if !found.is_ours() {
        return Err(io::Error::other(format!("{name} is not ours: it does not carry the alias {ALIAS:?}")));
    }
    remove(socket, found.index)
}

/// The index of the port, under its wanted name.
fn port(socket: &mut Socket, table: &Table, name: &IfName, found_as: &IfName) -> io::Result<u32> {
    // A plan made before the rename may be carried out again after it.
    let port = match table.named(name.as_str()) {
        Some(port) => return Ok(port.index),
        None => table.named(found_as.as_str()).ok_or_else(|| missing(found_as.as_str()))?,
    };
    rename(socket, port, name.as_str())?;
    Ok(port.index)
}

fn rename(socket: &mut Socket, link: &Found, name: &str) -> io::Result<()> {
    let change = Message::new(RTM_SETLINK, 0, &ifinfomsg(link.index, 0, 0)).text(IFLA_IFNAME, name);
    match socket.ask(change.clone()) {
        // Kernels before 6.2 rename only what is down. `set` puts it up again where it should be.
        Err(error) if errno(&error) == Some(Errno::EBUSY as i32) => {
            socket.ask(Message::new(RTM_SETLINK, 0, &ifinfomsg(link.index, 0, IFF_UP)))?;
            socket.ask(change).map(drop)
        }
        other => other.map(drop),
    }
}

/// The index of a link of ours, created where it is missing and created again where it is another.
fn own(
    socket: &mut Socket,
    table: &Table,
    name: &IfName,
    kind: &LinkKind,
    describe: impl Fn(Message) -> Message,
) -> io::Result<u32> {
    if let Some(found) = table.named(name.as_str()) {
        let claimed = Found { alias: Some(ALIAS.to_owned()), ..found.clone() };
        let is_it = table.own_kind(&claimed).as_ref() == Some(kind);
        match found.alias.as_deref() {
            // Without alias: we were killed between creating and marking it.
            Some(ALIAS) | None if is_it => return mark(socket, found.index),
            Some(ALIAS) => remove(socket, found.index)?,
            Some(_) | None => return Err(io::Error::other(format!("a link {name} exists that is not ours"))),
        }
    }
    let mut create =
        Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &ifinfomsg(0, 0, 0)).text(IFLA_IFNAME, name.as_str());
    if let LinkKind::Tagged { parent, .. } = kind {
        create = create.u32(IFLA_LINK, table.index(parent)?);
    }
    match socket.ask(create.nest(IFLA_LINKINFO, describe)) {
        Ok(_) => {}
        Err(error) if errno(&error) == Some(Errno::EOPNOTSUPP as i32) => {
            let module = match kind {
                LinkKind::Tagged { .. } => "8021q",
                LinkKind::Bridge | LinkKind::Port { .. } => "bridge",
            };
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("kernel lacks {module}: load the module {module}, or use a kernel that has it"),
            ));
        }
        Err(error) => return Err(error),
    }
    let index = Table::read(socket)?.index(name)?;
    mark(socket, index)
}

fn mark(socket: &mut Socket, index: u32) -> io::Result<u32> {
    // The kernel takes no alias at creation. Its text is stored without a terminating zero.
    let change = Message::new(RTM_SETLINK, 0, &ifinfomsg(index, 0, 0)).attr(IFLA_IFALIAS, ALIAS.as_bytes());
    socket.ask(change).map(|_| index)
}

fn remove(socket: &mut Socket, index: u32) -> io::Result<()> {
    done_if(socket.ask(Message::new(RTM_DELLINK, 0, &ifinfomsg(index, 0, 0))), &[Errno::ENODEV]).map(drop)
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no link {name}"))
}

fn found(message: &Received) -> Option<Found> {
    let attributes = message.attributes(IFINFOMSG);
    let flags = ne32(message.body.get(8..12)?);
    let info = attributes.nested(IFLA_LINKINFO);
    Some(Found {
        index: ne32(message.body.get(4..8)?),
        name: attributes.text(IFLA_IFNAME)?.to_owned(),
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        mac: attributes.get(IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        mtu: attributes.u32(IFLA_MTU).unwrap_or_default(),
        master: attributes.u32(IFLA_MASTER),
        parent: attributes.u32(IFLA_LINK),
        vlan: info.nested(IFLA_INFO_DATA).get(IFLA_VLAN_ID).and_then(|id| id.try_into().ok().map(u16::from_ne_bytes)),
        kind: info.text(IFLA_INFO_KIND).map(str::to_owned),
        alias: attributes.text(IFLA_IFALIAS).filter(|alias| !alias.is_empty()).map(str::to_owned),
    })
}

fn ifinfomsg(index: u32, flags: u32, change: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const IFINFOMSG: usize = 16;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 0x1_0000;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;

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
