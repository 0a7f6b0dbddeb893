//! `WireGuard` to other sites: interfaces of the kernel, told by `wg` whom to speak with. Keys go to it by its standard input.
//!
//! **How a tunnel moves.** Its packets carry a mark, and routes of ours say by which line marked packets reach the other
//! end. The kernel remembers from which address it spoke with it last, and rules of ours send what comes from there by the
//! old line; so the endpoint is written anew when its route has changed, which forgets that address. A packet is sent at
//! once, so that the other end learns where we are before it has something to say.
//!
//! **Without `WireGuard` in the kernel** `wireguard-go` stands in where it is installed, one process for each tunnel: that is
//! how the lab tries this, and slow.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::Config;
use config::model::{Tunnel, Vlan, Wireguard};
use config::units::{IfName, Mark};
use mwan::KernelState;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::component::{Component, Reload};
use super::material;
use super::tunnels::{TunnelState, Tunnels, any, wanted_lines};
use crate::kernel::tunnels::{self, Device, Kind};
use crate::reconcile::Wanted;

/// What stands in for the kernel, where it has to.
pub(super) fn components(config: &Config) -> Vec<Component> {
    if !any(config, false) || tunnels::has_wireguard() || !has_stand_in() {
        return Vec::new();
    }
    let stand_in = |(vlan, _): (&Vlan, &Wireguard)| Component {
        name: format!("wireguard-{}", vlan.name),
        package: "wireguard-go",
        program: STAND_IN.to_owned(),
        arguments: vec!["--foreground".to_owned(), vlan.interface.to_string()],
        environment: [("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD".to_owned(), "1".to_owned())].into(),
        reload: Reload::Restart,
        ..Component::default()
    };
    ours(config).map(|(vlan, _, wireguard)| (vlan, wireguard)).map(stand_in).collect()
}

/// Follows the config and the lines that are wanted for the tunnels, until the config's sender is gone.
pub fn start(
    config: watch::Receiver<Option<Arc<Config>>>,
    wanted: watch::Receiver<Option<Wanted>>,
    tunnels: Tunnels,
) -> io::Result<()> {
    let drive = move || {
        let follow = || -> io::Result<()> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(Driver::new(tunnels.clone()).follow(config.clone(), wanted.clone()));
            Ok(())
        };
        loop {
            match catch_unwind(AssertUnwindSafe(follow)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error!(%error, "tunnels cannot be run"),
                Err(_panic) => error!("the thread of the tunnels panicked: it begins anew"),
            }
            thread::sleep(BEGIN_ANEW);
        }
    };
    thread::Builder::new().name("wireguard".to_owned()).spawn(drive)?;
    Ok(())
}

#[derive(Debug)]
struct Driver {
    tunnels: Tunnels,
    /// What each interface was told, as a digest, with the number it had.
    told: BTreeMap<String, (String, u32)>,
    lines: BTreeMap<String, config::units::WanName>,
    /// How often yet the other end is to be told where we are: the first time may be before the route is there.
    nudges: BTreeMap<String, u8>,
}

/// How a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    endpoint: Option<String>,
    /// Seconds since 1970; 0 is never.
    handshake: u64,
    received: u64,
    sent: u64,
}

impl Driver {
    fn new(tunnels: Tunnels) -> Self {
        Self { tunnels, told: BTreeMap::new(), lines: BTreeMap::new(), nudges: BTreeMap::new() }
    }

    async fn follow(
        mut self,
        mut config: watch::Receiver<Option<Arc<Config>>>,
        mut wanted: watch::Receiver<Option<Wanted>>,
    ) {
        let mut had_any = false;
        loop {
            let now = config.borrow_and_update().clone();
            let state = wanted.borrow_and_update().as_ref().map(|wanted| Arc::clone(&wanted.state));
            let has_any = now.as_deref().is_some_and(|config| any(config, false));
            if let Some(config) = now.as_deref().filter(|_| has_any || had_any) {
                self.tunnels.follow(config, false);
                self.round(config, state.as_deref()).await;
            }
            had_any = has_any;
            // Without a tunnel nobody wakes up for one.
            let pause = match (has_any, self.nudges.is_empty()) {
                (true, true) => ROUND,
                (true, false) => SOON,
                (false, _) => Duration::from_hours(24),
            };
            tokio::select! {
                changed = config.changed() => if changed.is_err() { return },
                _ = wanted.changed(), if has_any => {}
                () = sleep(pause) => {}
            }
        }
    }

    async fn round(&mut self, config: &Config, state: Option<&KernelState>) {
        let failed = near_ends(config).await;
        let lines = state.map(|state| wanted_lines(config, state)).unwrap_or_default();
        for (vlan, tunnel, wireguard) in ours(config) {
            let name = vlan.name.as_str();
            let line = lines.get(name).cloned();
            let moved = match (&line, self.lines.get(name)) {
                (Some(now), Some(before)) if now != before => {
                    warn!(tunnel = %name, from = %before, to = %now, "the tunnel takes another line");
                    true
                }
                (_, _) => false,
            };
            let nudges = if moved { NUDGES } else { self.nudges.remove(name).unwrap_or_default() };
            if nudges > 1 {
                self.nudges.insert(name.to_owned(), nudges - 1);
            }
            if let Some(line) = &line {
                self.lines.insert(name.to_owned(), line.clone());
            }
            let seen = match failed.get(&vlan.interface) {
                Some(why) => Err(why.clone()),
                None => self.keep(vlan, tunnel, wireguard, nudges > 0).await,
            };
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            self.tunnels.change(name, |told| {
                told.moves += u64::from(moved);
                told.wan = line.map(|line| line.to_string());
                match seen {
                    Ok(seen) => {
                        let ago = (seen.handshake > 0).then(|| now.saturating_sub(seen.handshake));
                        let up = ago.is_some_and(|ago| ago < REJECTED);
                        told.state = match (up, wireguard.endpoint) {
                            (true, _) => TunnelState::Up,
                            (false, Some(_)) => TunnelState::Calling,
                            (false, None) => TunnelState::Waiting,
                        };
                        told.since_seconds = ago.map(|ago| Duration::from_secs(ago).as_secs_f64());
                        if seen.endpoint.is_some() {
                            told.peer = seen.endpoint;
                        }
                        (told.received_bytes, told.sent_bytes, told.why) = (seen.received, seen.sent, None);
                        told.cipher = Some("ChaCha20-Poly1305".to_owned());
                    }
                    Err(why) => (told.state, told.why) = (TunnelState::Failed, Some(why)),
                }
            });
        }
        let known = |name: &str| ours(config).any(|(vlan, ..)| vlan.name.as_str() == name);
        self.told.retain(|name, _| known(name));
        self.lines.retain(|name, _| known(name));
        self.nudges.retain(|name, _| known(name));
    }

    /// Has the interface know its peer, and tells how that is.
    async fn keep(&mut self, vlan: &Vlan, tunnel: &Tunnel, wireguard: &Wireguard, nudge: bool) -> Result<Seen, String> {
        let (name, interface) = (vlan.name.as_str(), vlan.interface.as_str());
        let number = nix::net::if_::if_nametoindex(interface)
            .map_err(|error| format!("there is no interface {interface}: {error}"))?;
        let settings = settings(tunnel, wireguard)?;
        let digest = ebpf::digest(settings.as_bytes());
        if self.told.get(name) != Some(&(digest.clone(), number)) {
            wg(&["syncconf", interface, "/dev/stdin"], &settings).await?;
            info!(tunnel = %name, "the interface knows its peer");
            self.told.insert(name.to_owned(), (digest, number));
        } else if nudge {
            // An endpoint that is written anew forgets the source address it had.
            if let Some(endpoint) = wireguard.endpoint {
                let endpoint = endpoint.to_string();
                wg(&["set", interface, "peer", &wireguard.public_key, "endpoint", &endpoint], "").await?;
            }
            // From none to some sends a packet at once.
            let seconds = wireguard.keepalive.map_or(1, |span| span.as_secs());
            for pace in [0, seconds] {
                let pace = pace.to_string();
                wg(&["set", interface, "peer", &wireguard.public_key, "persistent-keepalive", &pace], "").await?;
            }
            if wireguard.keepalive.is_none() {
                wg(&["set", interface, "peer", &wireguard.public_key, "persistent-keepalive", "0"], "").await?;
            }
            debug!(tunnel = %name, "the other end is told where we are");
        }
        let text = wg(&["show", interface, "dump"], "").await?;
        seen(&text, &wireguard.public_key).ok_or_else(|| format!("{interface} does not know its peer"))
    }
}

fn ours(config: &Config) -> impl Iterator<Item = (&Vlan, &Tunnel, &Wireguard)> {
    config.tunnels().filter_map(|(vlan, tunnel)| Some((vlan, tunnel, tunnel.wireguard()?)))
}

/// The interfaces, and which cannot be had.
async fn near_ends(config: &Config) -> BTreeMap<IfName, String> {
    let wanted: BTreeMap<_, _> = ours(config).map(|(vlan, ..)| (vlan.interface.clone(), Device::Wireguard)).collect();
    if !tunnels::has_wireguard() && has_stand_in() {
        // They make their own, and leave it down.
        let raised = tunnels::up(wanted.keys()).await;
        return raised
            .err()
            .map_or_else(BTreeMap::new, |error| wanted.into_keys().map(|name| (name, error.to_string())).collect());
    }
    match tunnels::keep(Kind::Wireguard, &wanted).await {
        Ok(failed) => failed,
        Err(error) => wanted.into_keys().map(|name| (name, error.to_string())).collect(),
    }
}

fn has_stand_in() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    *KNOWN.get_or_init(|| std::env::split_paths(&path).any(|folder| Path::new(&folder).join(STAND_IN).is_file()))
}

/// As wg(8) reads it.
fn settings(tunnel: &Tunnel, wireguard: &Wireguard) -> Result<String, String> {
    let mut text = "[Interface]\n".to_owned();
    let mut line = |key: &str, value: &str| writeln!(text, "{key} = {value}").unwrap_or(());
    line("PrivateKey", &key(&wireguard.private_key)?);
    line("FwMark", &Mark::TUNNEL.to_string());
    if let Some(port) = wireguard.port {
        line("ListenPort", &port.to_string());
    }
    line("\n[Peer]\nPublicKey", &wireguard.public_key);
    if let Some(shared) = &wireguard.preshared_key {
        line("PresharedKey", &key(shared)?);
    }
    if let Some(endpoint) = wireguard.endpoint {
        line("Endpoint", &endpoint.to_string());
    }
    let networks: Vec<_> = tunnel.networks.iter().map(ToString::to_string).collect();
    line("AllowedIPs", &networks.join(", "));
    if let Some(keepalive) = wireguard.keepalive {
        line("PersistentKeepalive", &keepalive.as_secs().to_string());
    }
    Ok(text)
}

/// 32 bytes in base 64, and nothing that could be more than a value.
fn key(of: &config::model::Material) -> Result<String, String> {
    let word = material::word(of)?;
    let good = word.len() == 44 && word.chars().all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c));
    if !good {
        return Err(format!("{} holds no key: `wg genkey` makes one", material::path(of)?.display()));
    }
    Ok(word)
}

/// Its standard output. What it complains about may not quote a key.
async fn wg(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new("wg");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = async {
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("there is no wg: apt install wireguard-tools".to_owned());
            }
            Err(error) => return Err(format!("cannot run wg: {error}")),
        };
        if let Some(mut stdin) = child.stdin.take() {
            // Whoever does not read it says so by its exit.
            stdin.write_all(input.as_bytes()).await.ok();
        }
        let output = child.wait_with_output().await.map_err(|error| format!("cannot run wg: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = if input.is_empty() { said.trim() } else { "its settings are refused" };
        Err(format!("wg {}: {said}", arguments.first().unwrap_or(&"")))
    };
    timeout(ANSWER, run).await.unwrap_or_else(|_| Err("wg does not answer".to_owned()))
}

/// Of `wg show IF dump`: a line for the interface, then one for each peer: public key, shared key, endpoint, networks,
/// last handshake, received, sent, keepalive.
fn seen(dump: &str, public_key: &str) -> Option<Seen> {
    let mut peers = dump.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    let peer = peers.find(|fields| fields.first() == Some(&public_key))?;
    let [_, _, endpoint, _, handshake, received, sent, ..] = peer.as_slice() else { return None };
    Some(Seen {
        endpoint: (*endpoint != "(none)").then(|| (*endpoint).to_owned()),
        handshake: handshake.parse().ok()?,
        received: received.parse().ok()?,
        sent: sent.parse().ok()?,
    })
}

const STAND_IN: &str = "wireguard-go";
/// Between two rounds while a tunnel moves, and how many of them tell the other end.
const SOON: Duration = Duration::from_millis(150);
const NUDGES: u8 = 3;
const ROUND: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(3);
const BEGIN_ANEW: Duration = Duration::from_secs(1);
/// Keys are good for so many seconds after a handshake.
const REJECTED: u64 = 180;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wg_shows_is_read() {
        let dump = "cHJpdmF0ZQ==\tcHVibGlj\t51820\t0x7d000000\n\
                    PEER=\t(none)\t198.51.100.50:51820\t10.9.0.0/24\t1795328338\t1234\t5678\t25\n\
                    OTHER=\t(none)\t(none)\t10.8.0.0/24\t0\t0\t0\toff\n";
        let wanted = Seen {
            endpoint: Some("198.51.100.50:51820".to_owned()),
            handshake: 1_795_328_338,
            received: 1234,
            sent: 5678,
        };
        assert_eq!(seen(dump, "PEER="), Some(wanted));
        assert_eq!(seen(dump, "OTHER=").map(|seen| (seen.endpoint, seen.handshake)), Some((None, 0)));
        assert_eq!(seen(dump, "NOBODY="), None);
    }
}
