//! The files of keepalived and conntrackd, and what is asked of them.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::model::{Node, Pair, Vlan};
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use mwan::pair::FLOWS_PORT;
use nix::sys::signal::Signal;
use tokio::process::Command;
use tracing::{info, warn};

use super::{Standing, figures};
use crate::service::Places;
use crate::service::component::{Alive, Component, Control, Folder, Reload, Rendered};

/// None, where the site has one router or this box is none of the two.
pub(in crate::service) fn components(config: &Config, places: &Places, standing: &Standing) -> Vec<Component> {
    let Some(pair) = &config.pair else { return Vec::new() };
    let (Some(own), Some(peer)) = (pair.own(), pair.peer()) else { return Vec::new() };
    let election = elector(config, pair, own, places);
    election.into_iter().chain(flows(config, pair, (own, peer), places, standing)).collect()
}

pub(super) fn fifo(places: &Places) -> PathBuf {
    places.run.join(ELECTOR).join("fifo")
}

pub(super) fn health(places: &Places) -> PathBuf {
    places.run.join(ELECTOR).join("health")
}

/// `GROUP "quadway" MASTER 0`, or of the only VLAN `INSTANCE "vlan10" MASTER 100`: whether this router is active. `None`
/// says nothing about that.
pub(super) fn role(pair: &Pair, line: &str) -> Option<bool> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [kind, _, state, ..] = words.as_slice() else { return None };
    let whole = if pair.vlans.len() > 1 { "GROUP" } else { "INSTANCE" };
    match *state {
        _ if *kind != whole => None,
        "MASTER" => Some(true),
        "BACKUP" | "FAULT" | "STOP" => Some(false),
        _ => None,
    }
}

fn elector(config: &Config, pair: &Pair, own: &Node, places: &Places) -> Option<Component> {
    let run = places.run.join(ELECTOR);
    let file = run.join("keepalived.conf");
    let path = file.to_str()?.to_owned();
    let numbers = ["keepalived.pid", "vrrp.pid"].map(|name| run.join(name).display().to_string());
    let [number, of_vrrp] = &numbers;
    // Whatever ends routerd ends it, and it gives the addresses up: a router that nobody steers has none.
    let arguments = [
        "--pdeathsig",
        "TERM",
        ELECTOR,
        "--dont-fork",
        "--log-console",
        "--vrrp",
        "--use-file",
        &path,
        "--pid",
        number,
        "--vrrp_pid",
        of_vrrp,
    ];
    let vlans = config.vlans.values().filter(|vlan| vlan.tunnel.is_none()).map(|vlan| vlan.interface.clone());
    let wans = config.wans.values().map(|wan| wan.interface.clone());
    Some(Component {
        name: ELECTOR.to_owned(),
        package: "keepalived",
        program: "setpriv".to_owned(),
        arguments: arguments.map(str::to_owned).to_vec(),
        folders: vec![Folder::new(&run, 0o700)],
        files: vec![Rendered { path: file, text: election(config, pair, own, places)?, mode: 0o600 }],
        validator: Some([ELECTOR, "--config-test", "--use-file", &path].map(str::to_owned).to_vec()),
        interfaces: vlans.chain(wans).collect(),
        reload: Reload::Signal(Signal::SIGHUP),
        control: Arc::new(Alive),
        ..Component::default()
    })
}

fn election(config: &Config, pair: &Pair, own: &Node, places: &Places) -> Option<String> {
    let heard: Vec<&Vlan> = pair.vlans.iter().filter_map(|name| config.vlans.get(name)).collect();
    let first = heard.first()?;
    let mut text = String::from("# Written by routerd.\n");
    let mut line = |line: &str| writeln!(text, "{line}").unwrap_or(());
    line("global_defs {");
    line(&format!("    router_id {}", own.name));
    line("    vrrp_version 3");
    line(&format!("    vrrp_notify_fifo {}", fifo(places).display()));
    // Whoever did not hear of the change hears of it again.
    line("    vrrp_garp_master_delay 1");
    line("    vrrp_garp_master_repeat 2");
    line("}");
    line("track_file health {");
    line(&format!("    file \"{}\"", health(places).display()));
    line("    weight 0");
    line("    init_file 0 overwrite");
    line("}");
    if heard.len() > 1 {
        line("vrrp_sync_group quadway {");
        line("    group {");
        for vlan in &heard {
            line(&format!("        {}", vlan.interface));
        }
        line("    }");
        line("    track_file {\n        health\n    }");
        line("}");
    }
    for vlan in &heard {
        line(&format!("vrrp_instance {} {{", vlan.interface));
        line("    state BACKUP");
        if !pair.preempt {
            line("    nopreempt");
        }
        line(&format!("    interface {}", vlan.interface));
        line(&format!("    virtual_router_id {}", pair.router_id));
        line(&format!("    priority {}", own.priority));
        line(&format!("    advert_int {}", pair.advertise.as_secs_f64()));
        if heard.len() == 1 {
            line("    track_file {\n        health\n    }");
        }
        // An advert holds one; the rest moves with it.
        let advertised = vlan.addresses.iter().find(|net| net.addr().is_ipv4())?;
        line(&format!("    virtual_ipaddress {{\n        {advertised} dev {}\n    }}", vlan.interface));
        let beside = vlan.addresses.iter().filter(|net| *net != advertised).map(|net| within(vlan, net));
        let mut beside: Vec<String> = beside.collect();
        if vlan.name == first.name {
            beside.extend(elsewhere(config, pair));
        }
        if !beside.is_empty() {
            line("    virtual_ipaddress_excluded {");
            for address in &beside {
                line(&format!("        {address}"));
            }
            line("    }");
        }
        line("}");
    }
    Some(text)
}

fn within(vlan: &Vlan, net: &IpNet) -> String {
    format!("{net} dev {}", vlan.interface)
}

/// What is virtual where nobody is elected: the other VLANs, and the lines.
fn elsewhere(config: &Config, pair: &Pair) -> Vec<String> {
    let others = config.vlans.values().filter(|vlan| vlan.tunnel.is_none() && !pair.vlans.contains(&vlan.name));
    let others = others.flat_map(|vlan| vlan.addresses.iter().map(|net| within(vlan, net)));
    // Their routes are in tables of their own.
    let lines = config.wans.values().flat_map(|wan| {
        wan.addressing.addresses.iter().map(|net| format!("{net} dev {} noprefixroute", wan.interface))
    });
    others.chain(lines).collect()
}

fn flows(
    config: &Config,
    pair: &Pair,
    (own, peer): (&Node, &Node),
    places: &Places,
    standing: &Standing,
) -> Option<Component> {
    let sync = config.vlans.get(&pair.sync)?;
    let run = places.run.join(FLOWS);
    let file = run.join("conntrackd.conf");
    let (path, lock) = (file.to_str()?.to_owned(), run.join("lock"));
    let (from, to) = (own.address4(&pair.sync)?, peer.address4(&pair.sync)?);
    let ignored = ["127.0.0.1", "::1"].map(str::to_owned).into_iter();
    // Flows with the routers themselves are of one box.
    let own_addresses = pair.nodes.values().flat_map(|node| node.addresses.iter().map(|(_, net)| net.addr()));
    let virtual_ones = config.vlans.values().flat_map(|vlan| vlan.addresses.iter().map(IpNet::addr));
    let ignored: Vec<String> = ignored
        .chain(own_addresses.chain(virtual_ones).map(|address| address.to_string()))
        .map(|address| {
            let family = if address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) { 6 } else { 4 };
            format!("            IPv{family}_address {address}")
        })
        .collect();
    let text = format!(
        "# Written by routerd.\n\
         Sync {{\n\
         \x20   Mode FTFW {{\n\
         \x20       DisableExternalCache On\n\
         \x20       StartupResync On\n\
         \x20   }}\n\
         \x20   UDP {{\n\
         \x20       IPv4_address {from}\n\
         \x20       IPv4_Destination_Address {to}\n\
         \x20       Port {FLOWS_PORT}\n\
         \x20       Interface {interface}\n\
         \x20       SndSocketBuffer 4194304\n\
         \x20       RcvSocketBuffer 4194304\n\
         \x20       Checksum on\n\
         \x20   }}\n\
         }}\n\
         General {{\n\
         \x20   HashSize 32768\n\
         \x20   HashLimit 1048576\n\
         \x20   LogFile off\n\
         \x20   Syslog off\n\
         \x20   LockFile {lock}\n\
         \x20   UNIX {{\n\
         \x20       Path {socket}\n\
         \x20   }}\n\
         \x20   NetlinkBufferSize 2097152\n\
         \x20   NetlinkBufferSizeMaxGrowth 8388608\n\
         \x20   Filter From Userspace {{\n\
         \x20       Protocol Accept {{\n\
         \x20           TCP\n\
         \x20           UDP\n\
         \x20           SCTP\n\
         \x20       }}\n\
         \x20       Address Ignore {{\n\
         {ignored}\n\
         \x20       }}\n\
         \x20   }}\n\
         }}\n",
        interface = sync.interface,
        lock = lock.display(),
        socket = run.join("ctl").display(),
        ignored = ignored.join("\n"),
    );
    Some(Component {
        name: FLOWS.to_owned(),
        package: "conntrackd",
        program: "sh".to_owned(),
        arguments: vec!["-c".to_owned(), START.to_owned(), FLOWS.to_owned(), lock.display().to_string(), path],
        folders: vec![Folder::new(&run, 0o700)],
        files: vec![Rendered { path: file.clone(), text, mode: 0o600 }],
        interfaces: vec![sync.interface.clone()],
        // It has no test of its files; that it is there is seen all the same.
        validator: Some([FLOWS, "-v"].map(str::to_owned).to_vec()),
        reload: Reload::Restart,
        control: Arc::new(Conntrackd { file, standing: standing.clone() }),
        ..Component::default()
    })
}

#[derive(Debug)]
struct Conntrackd {
    file: PathBuf,
    standing: Standing,
}

impl Control for Conntrackd {
    fn reload(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn verify<'a>(&'a self, _files: &'a [Rendered]) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            let told = ask(&self.file, "-s").await.inspect_err(|_| self.standing.sync(None))?;
            self.standing.sync(Some(figures(&told)));
            Ok(())
        })
    }
}

/// Who becomes active tells the other one all it has; who stands by asks for it. What the other one had is in this kernel
/// already.
pub(super) async fn follow_flows(places: Places, active: bool) {
    let file = places.run.join(FLOWS).join("conntrackd.conf");
    let orders: &[&str] = if active { &["-R", "-B"] } else { &["-n"] };
    for order in orders {
        match ask(&file, order).await {
            Ok(_) => info!(order, active, "conntrackd is told of the change"),
            Err(why) => warn!(order, why, "conntrackd is not told of the change: it sends flows as they change"),
        }
    }
}

async fn ask(file: &Path, order: &str) -> Result<String, String> {
    let mut command = Command::new(FLOWS);
    command.arg("-C").arg(file).arg(order).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(ANSWER, command.output()).await {
        Err(_) => return Err("conntrackd does not answer".to_owned()),
        Ok(output) => output.map_err(|error| format!("cannot run conntrackd: {error}"))?,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("conntrackd: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

const ELECTOR: &str = "keepalived";
const FLOWS: &str = "conntrackd";
/// One that was killed leaves a lock which the next takes for that of a running one.
const START: &str = "rm -f -- \"$1\"; exec conntrackd -C \"$2\"";
const ANSWER: Duration = Duration::from_secs(3);
