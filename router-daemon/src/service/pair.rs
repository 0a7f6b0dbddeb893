//! Two routers with one site file. keepalived elects the active one and holds what is virtual: the addresses of the VLANs
//! and of the lines. conntrackd tells the other one every flow as it happens, so that its kernel has them before it is
//! needed. routerd does the rest, on a thread of its own:
//!
//! ```text
//!   keepalived ──GROUP "quadway" MASTER──▶ fifo ──▶ Event::Seat ──▶ the loop: routes and probes of the lines, services
//!   the other routerd ◀──heartbeats over the sync VLAN, each under an HMAC──▶ who is active, with which config
//! ```
//!
//! keepalived dies with routerd, however that ends (`PR_SET_PDEATHSIG`): it gives the addresses up, and the other router has
//! them a moment later. Where both say that they are active, the two do not hear each other's adverts: that is told, and
//! nothing is done about it, because nobody can know which of the two the clients see.

mod heartbeat;
mod render;
mod replica;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use config::Config;
use config::model::{Pair, Seat};
use config::units::NodeName;
use mwan::event::Event;
use mwan::pair::HEARTBEAT_PORT;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UdpSocket;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use self::heartbeat::{Key, Peer, Said};
pub(super) use self::render::components;
use self::replica::{Ends, Shared};
use super::Places;
use crate::ask::Ask;
use crate::happening::{Happenings, What};
use crate::status::span;

/// How the pair stands. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Standing(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// `None` without a pair.
    own: Option<Own>,
    heard: Option<Heard>,
    sync: Option<SyncFlows>,
    split_since: Option<Instant>,
    split_told: bool,
    trouble: Option<String>,
    /// Until then this router does not want to be active.
    away: Option<Instant>,
    replica: Option<Shared>,
}

#[derive(Debug, Clone)]
struct Own {
    node: String,
    peer: String,
    active: bool,
    since: Instant,
    digest: String,
    health: PathBuf,
}

#[derive(Debug, Clone)]
struct Heard {
    at: Instant,
    active: bool,
    digest: String,
}

/// The pair at one moment, as this router sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PairLine {
    /// This router, by its name in the site file.
    pub node: String,
    pub active: bool,
    pub since_seconds: f64,
    /// The other one.
    pub peer: String,
    /// How long ago it was heard over the sync VLAN; `None`: never.
    pub peer_heard_seconds: Option<f64>,
    /// What it said then.
    pub peer_active: Option<bool>,
    /// It has the config that is in force here.
    pub same_config: Option<bool>,
    pub peer_config: Option<String>,
    /// Why the configs that are in force for good are not the same, while they are not.
    #[serde(default)]
    pub difference: Option<String>,
    /// Both are active: the two do not hear each other's adverts.
    pub split_brain: bool,
    /// For so long this router still leaves the work to the other one, because an operator said so.
    pub away_seconds: Option<f64>,
    /// `None` until conntrackd was asked.
    pub sync: Option<SyncFlows>,
    /// Why there is no pair, or half of one.
    pub trouble: Option<String>,
}

/// What conntrackd has told the other router, and heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SyncFlows {
    /// Flows of this router that the other one is told.
    pub flows: u64,
    pub packets_sent: u64,
    pub packets_received: u64,
    pub errors: u64,
}

impl PairLine {
    pub(crate) fn is_heard(&self) -> bool {
        self.peer_heard_seconds.is_some_and(|seconds| seconds < SILENT.as_secs_f64())
    }

    pub(crate) fn role(&self) -> &'static str {
        if self.active { "active" } else { "standby" }
    }

    /// A line of `status`.
    pub(crate) fn summary(&self) -> String {
        let Self { node, peer, peer_active, .. } = self;
        let since = span(self.since_seconds);
        let other = match (self.is_heard(), peer_active) {
            (false, _) => format!("{peer} is not heard"),
            (true, Some(true)) => format!("{peer} is active"),
            (true, _) => format!("{peer} stands by"),
        };
        let sync = self.sync.map(|sync| format!(", {} flows told", sync.flows)).unwrap_or_default();
        let away = self.away_seconds.map(|left| format!(", away for {left:.0} s more")).unwrap_or_default();
        format!("pair: {node} is {} for {since}, {other}{sync}{away}", self.role())
    }

    /// What an operator should know of it.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let Self { node, peer, .. } = self;
        let mut troubles: Vec<String> = self.trouble.iter().map(|why| format!("pair: {why}")).collect();
        if self.split_brain {
            troubles.push(format!(
                "SPLIT BRAIN: {node} and {peer} are both active: they do not hear each other in the VLANs; look at the \
                 switches between them, or `routerctl pair handover` on one"
            ));
        }
        if self.trouble.is_none() && !self.is_heard() {
            troubles
                .push(format!("pair: {peer} is not heard over the sync VLAN: its flows and its config are unknown"));
        } else if self.same_config == Some(false) {
            let other = self.peer_config.as_deref().map(short).unwrap_or_default();
            let why = self.difference.as_deref().unwrap_or("one of the two waits for its confirmation");
            troubles.push(format!("pair: {peer} has another config in force ({other}): {why}"));
        }
        troubles
    }
}

impl Standing {
    pub fn line(&self) -> Option<PairLine> {
        let state = self.state();
        let own = state.own.as_ref()?;
        let heard = state.heard.as_ref();
        let recent = heard.filter(|heard| heard.at.elapsed() < SILENT);
        Some(PairLine {
            node: own.node.clone(),
            active: own.active,
            since_seconds: own.since.elapsed().as_secs_f64(),
            peer: own.peer.clone(),
            peer_heard_seconds: heard.map(|heard| heard.at.elapsed().as_secs_f64()),
            peer_active: recent.map(|heard| heard.active),
            same_config: recent.map(|heard| heard.digest == own.digest),
            peer_config: recent.map(|heard| heard.digest.clone()),
            difference: state.replica.as_ref().filter(|_| recent.is_some()).and_then(Shared::why),
            split_brain: state.split_since.is_some_and(|since| since.elapsed() >= SPLIT),
            away_seconds: state.away.map(|until| until.saturating_duration_since(Instant::now()).as_secs_f64()),
            sync: state.sync,
            trouble: state.trouble.clone(),
        })
    }

    /// Leaves the work to the other router for so long; nothing, where it is not there to take it.
    pub fn hand_over(&self, span: Duration) -> Result<String, String> {
        let line = self.line().ok_or("the site file has no [pair]")?;
        if !line.is_heard() {
            return Err(format!("{} is not heard: nobody would do the work", line.peer));
        }
        let mut state = self.state();
        let own = state.own.as_ref().ok_or("the site file has no [pair]")?;
        write_health(&own.health, false).map_err(|error| format!("cannot tell keepalived: {error}"))?;
        state.away = Some(Instant::now() + span);
        Ok(line.peer)
    }

    /// Takes that back.
    pub fn come_back(&self) -> Result<(), String> {
        let mut state = self.state();
        let own = state.own.as_ref().ok_or("the site file has no [pair]")?;
        write_health(&own.health, true).map_err(|error| format!("cannot tell keepalived: {error}"))?;
        state.away = None;
        Ok(())
    }

    fn sync(&self, sync: Option<SyncFlows>) {
        self.state().sync = sync;
    }

    fn trouble(&self, why: Option<String>) {
        let mut state = self.state();
        if state.trouble != why {
            if let Some(why) = &why {
                warn!(why, "the pair is not whole");
            }
            state.trouble = why;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread of the pair is connected to.
#[derive(Debug, Clone)]
pub struct Surroundings {
    pub places: Places,
    /// This box, among the nodes of the site file.
    pub node: String,
    pub standing: Standing,
    pub happenings: Happenings,
    /// Where the seat is told.
    pub events: mpsc::Sender<Event>,
    /// Where the other router's config is applied.
    pub asks: mpsc::Sender<Ask>,
}

/// Follows the config in force on a thread of its own, until its sender is gone.
pub fn start(surroundings: Surroundings, config: watch::Receiver<Option<Arc<Config>>>) -> io::Result<()> {
    let follow = move || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(Thread::new(surroundings.clone()).follow(config.clone()))
    };
    let follow = move || {
        loop {
            match catch_unwind(AssertUnwindSafe(&follow)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error!(%error, "the other router of the pair is not heard"),
                Err(_panic) => error!("the thread of the pair panicked: it begins anew"),
            }
            thread::sleep(BEGIN_ANEW);
        }
    };
    thread::Builder::new().name("pair".to_owned()).spawn(follow)?;
    Ok(())
}

struct Thread {
    around: Surroundings,
    pair: Option<Arc<Pair>>,
    digest: String,
    fifo: Option<BufReader<pipe::Receiver>>,
    socket: Option<(UdpSocket, SocketAddrV4)>,
    key: Option<Key>,
    peer: Peer,
    active: bool,
    replica: Shared,
}

impl Thread {
    fn new(around: Surroundings) -> Self {
        let replica = Shared::new(&around.places.state);
        Self {
            replica,
            around,
            pair: None,
            digest: String::new(),
            fifo: None,
            socket: None,
            key: None,
            peer: Peer::new(),
            active: false,
        }
    }

    async fn follow(mut self, mut config: watch::Receiver<Option<Arc<Config>>>) -> io::Result<()> {
        config.mark_changed();
        tokio::spawn(replica::run(self.replica.clone(), self.around.asks.clone()));
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut line = Vec::new();
        let mut packet = [0; heartbeat::LONGEST];
        loop {
            tokio::select! {
                changed = config.changed() => {
                    let Ok(()) = changed else { return Ok(()) };
                    let now = config.borrow_and_update().clone();
                    self.take(now.as_deref()).await;
                }
                read = said(&mut self.fifo, &mut line) => {
                    read?;
                    let text = String::from_utf8_lossy(&line).into_owned();
                    line.clear();
                    self.elected(&text).await;
                }
                received = heard(self.socket.as_ref(), &mut packet) => {
                    self.hear(packet.get(..received).unwrap_or_default());
                }
                _ = beats.tick(), if self.pair.is_some() => self.beat().await,
            }
        }
    }

    async fn take(&mut self, config: Option<&Config>) {
        let Some((pair, digest)) = config.and_then(|config| Some((config.pair.clone()?, config.digest.clone()))) else {
            (self.pair, self.fifo, self.socket, self.active) = (None, None, None, false);
            *self.around.standing.state() = State::default();
            self.replica.at("", None);
            return;
        };
        self.digest = digest;
        let own = self.around.node.parse::<NodeName>().ok().filter(|name| pair.nodes.contains_key(name));
        let Some(node) = own else {
            let names: Vec<_> = pair.nodes.keys().map(ToString::to_string).collect();
            let peer = names.join(" and ");
            self.set_own(&peer);
            self.around.standing.trouble(Some(format!(
                "this box is called `{}` and the routers of [pair] {peer}: give it such a name, or start routerd with --node",
                self.around.node
            )));
            (self.pair, self.fifo, self.socket) = (None, None, None);
            self.replica.at("", None);
            return;
        };
        let peer = pair.nodes.keys().find(|name| **name != node).map(ToString::to_string).unwrap_or_default();
        let seat = pair.seat.clone();
        self.pair = Some(Arc::new(pair));
        self.set_own(&peer);
        if self.fifo.is_none() {
            match self.open_fifo() {
                Ok(fifo) => self.fifo = Some(fifo),
                Err(error) => {
                    let why = format!("what keepalived says cannot be heard: {error}");
                    self.around.standing.trouble(Some(why));
                }
            }
        }
        self.key = None;
        let wanted = Seat { node, active: self.active };
        if seat.as_ref() != Some(&wanted) {
            self.sit(wanted).await;
        }
    }

    fn set_own(&self, peer: &str) {
        let mut state = self.around.standing.state();
        let since = state.own.as_ref().filter(|own| own.active == self.active).map(|own| own.since);
        state.own = Some(Own {
            node: self.around.node.clone(),
            peer: peer.to_owned(),
            active: self.active,
            since: since.unwrap_or_else(Instant::now),
            digest: self.digest.clone(),
            health: render::health(&self.around.places),
        });
        state.replica = Some(self.replica.clone());
    }

    async fn sit(&self, seat: Seat) {
        // The loop is gone: so are we soon.
        if self.around.events.send(Event::Seat(seat)).await.is_err() {
            info!("the loop has ended");
        }
    }

    /// What keepalived said.
    async fn elected(&mut self, line: &str) {
        let Some(pair) = self.pair.clone() else { return };
        let Some(active) = render::role(&pair, line) else { return };
        info!(says = line.trim(), active, "keepalived");
        if active == self.active {
            return;
        }
        self.active = active;
        let peer = self.around.standing.state().own.as_ref().map(|own| own.peer.clone()).unwrap_or_default();
        self.set_own(&peer);
        if let Ok(node) = self.around.node.parse() {
            self.sit(Seat { node, active }).await;
        }
        // The other one hears of it at once.
        self.beat().await;
        tokio::spawn(render::follow_flows(self.around.places.clone(), active));
    }

    fn open_fifo(&self) -> io::Result<BufReader<pipe::Receiver>> {
        let path = render::fifo(&self.around.places);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        }
        match nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // For writing too: it has no end when keepalived closes it.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&path)?;
        Ok(BufReader::new(receiver))
    }

    /// Says how this router is, and looks at how the other one is.
    async fn beat(&mut self) {
        let Some(pair) = self.pair.clone() else { return };
        self.return_in_time();
        if let Err(why) = self.send(&pair).await {
            self.around.standing.trouble(Some(why));
        } else {
            self.around.standing.trouble(None);
        }
        self.judge();
    }

    async fn send(&mut self, pair: &Pair) -> Result<(), String> {
        let own = pair.nodes.values().find(|node| node.name.as_str() == self.around.node);
        let other = pair.nodes.values().find(|node| node.name.as_str() != self.around.node);
        let address = |node: Option<&config::model::Node>| node.and_then(|node| node.address4(&pair.sync));
        let peer = other.map(|node| node.name.to_string()).unwrap_or_default();
        let (Some(own), Some(other)) = (address(own), address(other)) else {
            return Err("a router has no address in the sync VLAN".to_owned());
        };
        let (node, secret_file) = (self.around.node.clone(), pair.secret.clone());
        self.replica.at(&self.digest, Some(Ends { node, peer, own, other, secret: secret_file }));
        let to = SocketAddrV4::new(other, HEARTBEAT_PORT);
        if self.socket.as_ref().is_none_or(|(socket, before)| *before != to || !is_bound(socket, own)) {
            let bound = UdpSocket::bind(SocketAddrV4::new(own, HEARTBEAT_PORT)).await;
            self.socket = Some((bound.map_err(|error| format!("cannot speak from {own}: {error}"))?, to));
        }
        if self.key.is_none() {
            self.key = Some(secret(&pair.secret)?);
        }
        let (Some((socket, to)), Some(key)) = (&self.socket, &self.key) else { return Ok(()) };
        let said = self.peer.say(&self.around.node, self.active, &self.digest, self.replica.settled());
        // Nobody there, a cable that is out: whoever is not heard is told as such.
        drop(socket.send_to(&key.seal(&said), to).await);
        Ok(())
    }

    fn hear(&mut self, packet: &[u8]) {
        let Some(key) = &self.key else { return };
        let Some(Said { node, active, config, settled, .. }) = key.open(packet).and_then(|said| self.peer.take(said))
        else {
            return;
        };
        {
            let mut state = self.around.standing.state();
            if state.own.as_ref().is_none_or(|own| own.peer != node) {
                return;
            }
            state.heard = Some(Heard { at: Instant::now(), active, digest: config });
        }
        self.replica.hear(settled);
        self.judge();
    }

    /// Whether both are active, for longer than a change takes.
    fn judge(&self) {
        let mut state = self.around.standing.state();
        let peer = state.heard.as_ref().is_some_and(|heard| heard.active && heard.at.elapsed() < SILENT);
        if !(peer && self.active) {
            state.split_since = None;
            if std::mem::take(&mut state.split_told) {
                info!("one of the two routers is active again, and not both");
                let what = What::Pair { node: self.around.node.clone(), active: self.active, trouble: None };
                self.around.happenings.tell(what);
            }
            return;
        }
        let since = *state.split_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= SPLIT && !std::mem::replace(&mut state.split_told, true) {
            let why =
                "split brain: both routers are active, because they do not hear each other in the VLANs".to_owned();
            error!("{why}");
            let what = What::Pair { node: self.around.node.clone(), active: true, trouble: Some(why) };
            self.around.happenings.tell(what);
        }
    }

    fn return_in_time(&self) {
        let over = self.around.standing.state().away.is_some_and(|until| until <= Instant::now());
        if over && let Err(why) = self.around.standing.come_back() {
            warn!(why, "this router does not come back");
        }
    }
}

/// The next line of keepalived; never, where there is no fifo.
async fn said(fifo: &mut Option<BufReader<pipe::Receiver>>, line: &mut Vec<u8>) -> io::Result<()> {
    match fifo {
        Some(fifo) => fifo.read_until(b'\n', line).await.map(drop),
        None => std::future::pending().await,
    }
}

/// The length of the next packet; never, where there is no socket.
async fn heard(socket: Option<&(UdpSocket, SocketAddrV4)>, packet: &mut [u8]) -> usize {
    let Some((socket, _)) = socket else { return std::future::pending().await };
    loop {
        // What is reported of packets that nobody took is no packet.
        if let Ok(received) = socket.recv(packet).await {
            return received;
        }
        tokio::time::sleep(BEAT).await;
    }
}

fn is_bound(socket: &UdpSocket, own: Ipv4Addr) -> bool {
    socket.local_addr().is_ok_and(|address| address.ip() == own)
}

fn secret(path: &Path) -> Result<Key, String> {
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    if metadata.mode() & 0o007 != 0 {
        return Err(format!("{shown} may be read by others: chmod 600 {shown}"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let secret = text.lines().next().unwrap_or_default().trim();
    if secret.len() < SHORTEST_SECRET {
        return Err(format!(
            "the first line of {shown} is shorter than {SHORTEST_SECRET} characters: `openssl rand -hex 32 > {shown}`, \
             the same on both"
        ));
    }
    Ok(Key::new(secret.as_bytes()))
}

/// keepalived reads it: anything but 0 is a reason not to be active.
fn write_health(path: &Path, good: bool) -> io::Result<()> {
    fs::write(path, if good { "0\n" } else { "1\n" })
}

fn short(digest: &str) -> String {
    digest.get(..12).unwrap_or(digest).to_owned()
}

/// The name of this box, as far as the first dot.
pub fn own_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().split('.').next().unwrap_or_default().to_owned()
}

/// Conntrack's figures out of what `conntrackd -s` prints.
fn figures(text: &str) -> SyncFlows {
    // `current active connections:	12`, the first of which is of the flows of this router; `12 Pckts sent  3 Pckts recv`.
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let after = |what: &[&str]| {
        words.windows(what.len() + 1).find(|window| window.starts_with(what)).and_then(|w| w.last()?.parse().ok())
    };
    let before = |what: &[&str]| {
        words.windows(what.len() + 1).find(|window| window.ends_with(what)).and_then(|w| w.first()?.parse::<u64>().ok())
    };
    SyncFlows {
        flows: after(&["current", "active", "connections:"]).unwrap_or_default(),
        packets_sent: before(&["Pckts", "sent"]).unwrap_or_default(),
        packets_received: before(&["Pckts", "recv"]).unwrap_or_default(),
        errors: before(&["Error", "send"]).unwrap_or_default() + before(&["Error", "recv"]).unwrap_or_default(),
    }
}

/// Between two heartbeats.
const BEAT: Duration = Duration::from_millis(200);
/// Whoever is not heard for so long is not there.
const SILENT: Duration = Duration::from_millis(1500);
/// A change of the active router takes less.
const SPLIT: Duration = Duration::from_secs(1);
const SHORTEST_SECRET: usize = 16;
const BEGIN_ANEW: Duration = Duration::from_secs(1);
