//! Leases of lines: a dhcpcd for each line with `method = "dhcp"`, which only reports. It is told to configure nothing; what
//! it learns comes here, goes to the loop, and is put into the kernel by the way that everything takes.
//!
//! ```text
//!   dhcpcd ──runs `lease-hook` for each event──▶ routerd under another name (hook.rs) ──▶ leases.sock
//!                                                                                            │ report.rs: what it says
//!     the loop ◀── Told ── leases.json: what holds, for the next start (keep.rs) ◀───────────┘
//! ```
//!
//! The hook is a link to routerd's own program. A report that is not understood is logged and changes nothing, so that a
//! line keeps what it has. A lease ends at its time, whoever lives then: its end goes to the loop with it.

mod hook;
mod keep;
mod report;
mod six;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use config::Config;
use config::model::{Method, Wan, WanDhcp};
use config::units::IfName;
use nix::sys::signal::Signal;
use tokio::net::UnixDatagram;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

pub use self::hook::called;
use self::keep::Keep;
use self::report::{Report, Said};
use self::six::Six;
use super::Places;
use super::component::{Alive, Component, Folder, Reload, Rendered};
use crate::kernel::sysctl;
use crate::lease::{News, Told};

/// The leases of before this start that still hold.
pub fn kept(places: &Places) -> Vec<Told> {
    keep(places).load().unwrap_or_else(|error| {
        warn!(%error, "the leases of before are not known: their lines wait for an answer of their servers");
        Vec::new()
    })
}

/// A client for each line that asks for a lease. They depend on nothing that a lease tells.
pub(super) fn components(config: &Config, places: &Places) -> Vec<Component> {
    let folder = folder(places);
    let client = |wan: &Wan| {
        let Method::Dhcp(asked) = &wan.method else { return None };
        let file = folder.join(format!("{}.conf", wan.name));
        let hook = folder.join(HOOK);
        let words = ["--nobackground", "--config", file.to_str()?, "--script", hook.to_str()?, wan.interface.as_str()];
        Some(Component {
            name: format!("{NAME}-{}", wan.name),
            package: "dhcpcd-base",
            program: "dhcpcd".to_owned(),
            arguments: words.map(str::to_owned).to_vec(),
            environment: BTreeMap::new(),
            folders: vec![Folder::new(&folder, 0o700)],
            files: vec![Rendered { path: file, text: rendered(asked, wan), mode: 0o600 }],
            validator: None,
            interfaces: vec![wan.interface.clone()],
            reload: Reload::Restart,
            goodbye: Signal::SIGTERM,
            control: Arc::new(Alive),
        })
    };
    config.wans.values().filter_map(client).collect()
}

/// The file of one client.
fn rendered(asked: &WanDhcp, wan: &Wan) -> String {
    if !asked.ipv6 {
        return format!("{CLIENT}ipv4only\n");
    }
    // All clients of a box have one name (DUID): a provider of several lines tells these by their numbers.
    let (interface, number) = (&wan.interface, wan.id);
    // To no interface: the VLANs are routerd's.
    let prefix = asked.prefix.map(|length| format!("ia_pd {number}/::/{length} -\n")).unwrap_or_default();
    // What is asked for by number has to be said of an interface, and its block comes last.
    format!(
        "{CLIENT}duid\noption dhcp6_name_servers\ninterface {interface}\nipv6rs\niaid {number}\nia_na {number}\n{prefix}"
    )
}

/// Hears the hooks on a thread of its own, until the loop is gone.
pub fn start(
    places: Places,
    config: watch::Receiver<Option<Arc<Config>>>,
    leases: mpsc::Sender<Told>,
) -> io::Result<()> {
    let socket = bind(&places)?;
    let listen = move || -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let socket = UnixDatagram::from_std(socket.try_clone()?)?;
            hear(&socket, &keep(&places), &config, &leases).await
        })
    };
    let listen = move || {
        loop {
            match catch_unwind(AssertUnwindSafe(&listen)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error!(%error, "reports of leases cannot be heard"),
                Err(_panic) => error!("the thread that hears of leases panicked: it begins anew"),
            }
            thread::sleep(BEGIN_ANEW);
        }
    };
    thread::Builder::new().name("leases".to_owned()).spawn(listen)?;
    Ok(())
}

fn bind(places: &Places) -> io::Result<std::os::unix::net::UnixDatagram> {
    let folder = folder(places);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    let (socket, hook) = (folder.join(SOCKET), folder.join(HOOK));
    for old in [&socket, &hook] {
        match fs::remove_file(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    symlink(std::env::current_exe()?, hook)?;
    let bound = std::os::unix::net::UnixDatagram::bind(&socket)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}

fn folder(places: &Places) -> PathBuf {
    places.run.join(NAME)
}

fn keep(places: &Places) -> Keep {
    Keep::at(places.state.join(NAME))
}

async fn hear(
    socket: &UnixDatagram,
    keep: &Keep,
    config: &watch::Receiver<Option<Arc<Config>>>,
    leases: &mpsc::Sender<Told>,
) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST];
    let mut six = Six::default();
    loop {
        let length = tokio::select! {
            length = socket.recv(&mut buffer) => length?,
            () = leases.closed() => return Ok(()),
        };
        let told = {
            let config = config.borrow();
            config.as_ref().and_then(|config| understood(buffer.get(..length).unwrap_or_default(), config, &mut six))
        };
        let Some(told) = told else { continue };
        if leases.send(told.clone()).await.is_err() {
            return Ok(());
        }
        // The disk comes last: it may be slow.
        if let Err(error) = keep.take(&told) {
            warn!(wan = %told.wan, %error, "the lease cannot be kept: a restart of routerd waits for the server's answer");
        }
    }
}

/// `None`: nothing to tell, or nothing that can be believed.
fn understood(bytes: &[u8], config: &Config, six: &mut Six) -> Option<Told> {
    let Report { interface, family, reason, said } = match report::read(bytes) {
        Ok(report) => report,
        Err(malformed) => {
            warn!(%malformed, "a report of a lease is not understood: it changes nothing");
            return None;
        }
    };
    let asks = |wan: &&Wan| matches!(wan.method, Method::Dhcp(_)) && wan.interface == interface;
    let Some(wan) = config.wans.values().find(asks) else {
        warn!(%interface, %reason, "a report of a lease for an interface that has none: it changes nothing");
        return None;
    };
    // dhcpcd gives interfaces their link-local address instead of the kernel, and with `noconfigure` it then does not: no
    // router would be asked.
    if matches!(&wan.method, Method::Dhcp(asked) if asked.ipv6) {
        match sysctl::own_link_local(&interface) {
            Ok(true) => debug!(%interface, "the kernel gives the line its link-local address"),
            Ok(false) => {}
            Err(error) => warn!(%interface, %error, "the line may have no link-local address: no IPv6 is leased"),
        }
    }
    let news = match said {
        Said::Held { lease, span } => {
            info!(wan = %wan.name, %family, %reason, %lease, ?span, "the server answered");
            News::Held { lease, until: span.map(|span| Instant::now() + span) }
        }
        Said::Gone(why) => {
            info!(wan = %wan.name, %family, %reason, why = why.told(), "the client has no lease");
            News::Gone(why)
        }
        Said::Router(advertised) => {
            debug!(wan = %wan.name, %reason, ?advertised, "a router says");
            six.advertised(&interface, advertised, || own_mac(&interface), Instant::now())?
        }
        Said::Granted(granted) => {
            debug!(wan = %wan.name, %reason, ?granted, "the server answered");
            six.granted(&interface, granted, Instant::now())?
        }
        Said::Nothing => {
            debug!(wan = %wan.name, %reason, "the client says");
            return None;
        }
    };
    Some(Told { wan: wan.name.clone(), family, news })
}

/// What an address of our own making ends in.
fn own_mac(interface: &IfName) -> Option<[u8; 6]> {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/address")).ok()?;
    let bytes: Vec<u8> = text.trim().split(':').map_while(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.try_into().ok()
}

/// What every client is told.
const CLIENT: &str = "# Written by routerd. dhcpcd reports, routerd configures.\n\
    noconfigure\n\
    persistent\n\
    nodelay\n\
    noarp\n\
    noipv4ll\n\
    vendorclassid\n\
    option subnet_mask, routers, classless_static_routes, ms_classless_static_routes\n\
    option domain_name_servers, interface_mtu\n\
    require dhcp_server_identifier\n";
/// Of the component, and of its folders.
const NAME: &str = "dhcpcd";
const SOCKET: &str = "leases.sock";
const HOOK: &str = "lease-hook";
/// Of a report; longer than any that dhcpcd makes of one packet.
const LONGEST: usize = 64 << 10;
const BEGIN_ANEW: Duration = Duration::from_secs(1);
