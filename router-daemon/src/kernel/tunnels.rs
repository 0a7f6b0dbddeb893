//! The near ends of tunnels: XFRM and `WireGuard` interfaces. Made, marked as ours and taken away here, for the services
//! that run the tunnels. What goes by them is the plan's business.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use config::units::IfName;
use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoXfrm, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use super::links::{Table, mark, remove};
use super::netlink::{NLM_F_CREATE, NLM_F_EXCL, errno};
use super::rtnl::Rtnl;

/// The near end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// What carries packets of the associations with this number.
    Xfrm {
        number: u32,
    },
    Wireguard,
}

/// Whether the kernel has ESP and interfaces for it. Asked once: by making one.
pub fn has_esp() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| can_have(Device::Xfrm { number: 0x7fff_fffe }))
}

/// Whether the kernel has `WireGuard`. Asked once: by making one.
pub fn has_wireguard() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| can_have(Device::Wireguard))
}

/// Makes one and takes it away.
fn can_have(device: Device) -> bool {
    // Whoever asks may be within a runtime.
    let asked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut rtnl = Rtnl::open()?;
            let Ok(name) = format!("qw-try{}", std::process::id() % 100_000).parse::<IfName>() else {
                return Ok(false);
            };
            match create(&mut rtnl, &name, device).await {
                Ok(()) => {
                    let index = Table::read(&mut rtnl).await?.index(&name)?;
                    remove(&mut rtnl, index).await.map(|()| true)
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
                Err(error) => Err(error),
            }
        })
    });
    matches!(asked.join(), Ok(Ok(true)))
}

/// Has these, up and marked as ours, and no other of the kind that carries our mark. What it cannot have it says.
pub async fn keep(kind: Kind, wanted: &BTreeMap<IfName, Device>) -> io::Result<BTreeMap<IfName, String>> {
    let mut rtnl = Rtnl::open()?;
    let table = Table::read(&mut rtnl).await?;
    for (name, index) in table.ours(&kind.info()) {
        if !wanted.keys().any(|wanted| wanted.as_str() == name) {
            remove(&mut rtnl, index).await?;
        }
    }
    let mut failed = BTreeMap::new();
    for (name, device) in wanted {
        if table.named(name.as_str()).is_some_and(|found| found.is_up() && found.is_ours()) {
            continue;
        }
        if let Err(error) = bring_up(&mut rtnl, &table, name, *device).await {
            failed.insert(name.clone(), error.to_string());
        }
    }
    Ok(failed)
}

/// Takes away those that carry our mark, of either kind; which those were.
pub async fn flush() -> io::Result<Vec<String>> {
    let mut rtnl = Rtnl::open()?;
    let table = Table::read(&mut rtnl).await?;
    let mut gone = Vec::new();
    for kind in [Kind::Xfrm, Kind::Wireguard] {
        for (name, index) in table.ours(&kind.info()) {
            remove(&mut rtnl, index).await?;
            gone.push(name.to_owned());
        }
    }
    Ok(gone)
}

/// Of which kind `keep` is master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Xfrm,
    Wireguard,
}

impl Kind {
    fn info(self) -> InfoKind {
        match self {
            Self::Xfrm => InfoKind::Xfrm,
            Self::Wireguard => InfoKind::Wireguard,
        }
    }
}

async fn bring_up(rtnl: &mut Rtnl, table: &Table, name: &IfName, device: Device) -> io::Result<()> {
    match table.named(name.as_str()) {
        None => create(rtnl, name, device).await?,
        Some(found) if found.is_ours() => {}
        Some(_) => return Err(io::Error::other(format!("a link {name} exists that is not ours"))),
    }
    let index = Table::read(rtnl).await?.index(name)?;
    mark(rtnl, index).await?;
    raise(rtnl, index).await
}

/// Those of somebody else's making that are there are up.
pub async fn up(names: impl IntoIterator<Item = &IfName>) -> io::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let table = Table::read(&mut rtnl).await?;
    for found in names.into_iter().filter_map(|name| table.named(name.as_str())).filter(|found| !found.is_up()) {
        raise(&mut rtnl, found.index).await?;
    }
    Ok(())
}

async fn raise(rtnl: &mut Rtnl, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    rtnl.change(0, RouteNetlinkMessage::SetLink(message)).await
}

async fn create(rtnl: &mut Rtnl, name: &IfName, device: Device) -> io::Result<()> {
    let (info, module) = match device {
        Device::Xfrm { number } => (
            vec![LinkInfo::Kind(InfoKind::Xfrm), LinkInfo::Data(InfoData::Xfrm(vec![InfoXfrm::IfId(number)]))],
            "xfrm_interface",
        ),
        Device::Wireguard => (vec![LinkInfo::Kind(InfoKind::Wireguard)], "wireguard"),
    };
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_string()), LinkAttribute::LinkInfo(info)];
    match rtnl.change(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(message)).await {
        Err(error) if errno(&error) == Some(Errno::EOPNOTSUPP as i32) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the kernel lacks {module}: load the module {module}, or use a kernel that has it"),
        )),
        other => other,
    }
}
