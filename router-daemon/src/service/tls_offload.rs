//! TLS ended on the router: a listener for each address of a `[[tls_offload]]`, and the bytes inside for whoever is behind.
//!
//! ```text
//!   thread tls-offload       follows the config and the files; binds, loads, swaps terms
//!   threads tls-bytes        accept, read a ClientHello, connect to backends, pass bytes on
//!   threads tls-handshake    sign. rustls waits for its signature, so as many of these, so many in flight
//! ```
//!
//! Without a `[[tls_offload]]`, and once the connections of the last one are over, there is the first of them alone, and no
//! engine. All of them give way to the router itself (their nice value is positive). A socket stays bound from config to config
//! and a connection goes on under the terms it began with. It is cut, after `limits.drain`, where its listener, its
//! backend or its authority of clients is gone. A file that changes is read again within two seconds; one that cannot
//! be used leaves what was loaded in place, unless the config changed with it: then nobody is served, and `status` says
//! why.

mod backends;
mod connection;
mod files;
mod limits;
mod names;
mod proxy;
mod pump;
mod tally;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use config::Config;
use config::model::{BackendHealth, TlsOffload};
use config::units::{Line, TlsOffloadName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::rustls::crypto::ring::Ticketer;
use tokio_rustls::rustls::server::ProducesTickets;
use tracing::{error, info, warn};

use self::backends::{Backend, Pool};
use self::connection::{Lives, Terms, Threads};
use self::files::{Places, Shown, Stamps};
use self::limits::Sources;
use self::tally::Tally;
use crate::accept;
use crate::crypto::Crypto;
use crate::crypto::signing::{Engine, Offload};
use crate::handshake::Workers;

/// How each of them stands, for status and metrics. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Offloads(Arc<Mutex<BTreeMap<TlsOffloadName, Arc<Board>>>>);

/// One `[[tls_offload]]`. Counts are since the start of routerd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OffloadLine {
    pub name: String,
    pub listen: Vec<ListenLine>,
    /// Lines by which everybody outside reaches it.
    pub open_to_wan: Vec<String>,
    /// Why nobody is served, or not as the files are; `None` when all is well.
    pub trouble: Option<String>,
    pub certificates: Vec<CertificateLine>,
    /// Those there are, and how many there may be.
    pub connections: u32,
    pub connections_limit: u32,
    pub accepted: u64,
    pub handshakes: Vec<HandshakeCount>,
    /// Who was not served, by reason.
    pub refused: BTreeMap<String, u64>,
    /// From clients, and to them, without what TLS adds.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub backends: Vec<BackendLine>,
    pub signatures: Vec<SignatureCount>,
    /// Whether the kernel encrypts.
    pub kernel_tls: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListenLine {
    pub address: String,
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateLine {
    /// Empty for the one that is shown to whoever names no other.
    pub names: Vec<String>,
    /// Seconds since 1970; `None` if that cannot be read.
    pub expires: Option<u64>,
    /// It has expired.
    pub expired: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HandshakeCount {
    /// `1.2`, `1.3`.
    pub version: String,
    /// `full`, `resumed`.
    pub kind: String,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendLine {
    pub address: String,
    pub up: bool,
    pub connections: u32,
    /// Connections it was given.
    pub served: u64,
    /// Checks and connections that failed.
    pub failed: u64,
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SignatureCount {
    pub engine: String,
    /// Why another engine did not make them; empty where this one was chosen.
    pub fallback: String,
    pub count: u64,
}

impl OffloadLine {
    /// What an operator should know of it.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut told: Vec<_> = self.open_to_wan.iter().map(|wan| format!("OPEN TO EVERYBODY behind {wan}")).collect();
        told.extend(self.trouble.clone());
        for ListenLine { address, trouble } in &self.listen {
            told.extend(trouble.iter().map(|trouble| format!("{address} {trouble}")));
        }
        for CertificateLine { names, .. } in self.certificates.iter().filter(|certificate| certificate.expired) {
            let whose = if names.is_empty() { "whoever names no other".to_owned() } else { names.join(", ") };
            told.push(format!("the certificate for {whose} has expired"));
        }
        for BackendLine { address, trouble, .. } in self.backends.iter().filter(|backend| !backend.up) {
            let trouble = trouble.as_deref().unwrap_or("it does not answer");
            told.push(format!("backend {address} is down: {trouble}"));
        }
        told
    }

    /// Who was not served, and why; `None` where everybody was.
    pub(crate) fn turned_away(&self) -> Option<String> {
        let refused: Vec<_> = self.refused.iter().map(|(why, count)| format!("{count} {why}")).collect();
        (!refused.is_empty()).then(|| refused.join(", "))
    }

    /// Who made the signatures, and why it was not the device; `None` before the first.
    pub(crate) fn signed(&self) -> Option<String> {
        let signed = |SignatureCount { engine, fallback, count }: &SignatureCount| {
            let why = if fallback.is_empty() { String::new() } else { format!(" ({fallback})") };
            format!("{count} by {engine}{why}")
        };
        let signed: Vec<_> = self.signatures.iter().map(signed).collect();
        (!signed.is_empty()).then(|| signed.join(", "))
    }

    /// How it fares: the first line, and those below it.
    pub(crate) fn summary(&self) -> (String, Vec<String>) {
        let listen: Vec<_> = self.listen.iter().map(|listen| listen.address.as_str()).collect();
        let handshakes: u64 = self.handshakes.iter().map(|count| count.count).sum();
        let resumed = self.handshakes.iter().filter(|count| count.kind == "resumed").map(|count| count.count);
        let first = format!(
            "tls_offload {} at {}: {} connections of {}, {handshakes} handshakes ({} resumed), kernel TLS {}",
            self.name,
            listen.join(", "),
            self.connections,
            self.connections_limit,
            resumed.sum::<u64>(),
            self.kernel_tls
        );
        let mut below = Vec::new();
        below.extend(self.turned_away().map(|refused| format!("refused: {refused}")));
        below.extend(self.signed().map(|signed| format!("signed: {signed}")));
        for BackendLine { address, up, connections, served, failed, .. } in &self.backends {
            let state = if *up { "up" } else { "down" };
            below.push(format!(
                "backend {address} {state}: {connections} connections, {served} served, {failed} failures"
            ));
        }
        (first, below)
    }
}

impl Offloads {
    pub fn lines(&self) -> Vec<OffloadLine> {
        let now = files::now();
        self.boards().iter().map(|(name, board)| board.line(name, now)).collect()
    }

    fn of(&self, name: &TlsOffloadName) -> Arc<Board> {
        Arc::clone(self.boards().entry(name.clone()).or_default())
    }

    fn boards(&self) -> MutexGuard<'_, BTreeMap<TlsOffloadName, Arc<Board>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is told of one of them.
#[derive(Debug, Default)]
struct Board {
    tally: Arc<Tally>,
    shown: Mutex<Display>,
}

#[derive(Debug, Default)]
struct Display {
    listen: Vec<ListenLine>,
    open_to_wan: Vec<String>,
    trouble: Option<String>,
    certificates: Vec<Shown>,
    most: u32,
    backends: Vec<Arc<Backend>>,
}

impl Board {
    fn shown(&self) -> MutexGuard<'_, Display> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_troubled(&self) -> bool {
        self.shown().trouble.is_some()
    }

    fn line(&self, name: &TlsOffloadName, now: u64) -> OffloadLine {
        let (tally, shown) = (&self.tally, self.shown());
        let handshakes = tally.handshakes().into_iter().map(|((version, kind), count)| HandshakeCount {
            version: version.to_owned(),
            kind: kind.to_owned(),
            count,
        });
        let signatures = tally.signatures.counts().into_iter().map(|((engine, fallback), count)| SignatureCount {
            engine: engine.to_owned(),
            fallback: fallback.to_owned(),
            count,
        });
        let certificate = |shown: &Shown| CertificateLine {
            names: shown.names.iter().cloned().collect(),
            expires: shown.expires,
            expired: shown.expires.is_some_and(|expires| expires <= now),
        };
        let backend = |backend: &Arc<Backend>| BackendLine {
            address: backend.address.to_string(),
            up: backend.is_up(),
            connections: backend.connections.load(Ordering::Relaxed),
            served: backend.served.load(Ordering::Relaxed),
            failed: backend.failed.load(Ordering::Relaxed),
            trouble: backend.trouble(),
        };
        OffloadLine {
            name: name.to_string(),
            listen: shown.listen.clone(),
            open_to_wan: shown.open_to_wan.clone(),
            trouble: shown.trouble.clone(),
            certificates: shown.certificates.iter().map(certificate).collect(),
            connections: tally.connections.load(Ordering::Relaxed),
            connections_limit: shown.most,
            accepted: tally.accepted.load(Ordering::Relaxed),
            handshakes: handshakes.collect(),
            refused: tally.refused().into_iter().map(|(why, count)| (why.word().to_owned(), count)).collect(),
            received_bytes: tally.received.load(Ordering::Relaxed),
            sent_bytes: tally.sent.load(Ordering::Relaxed),
            backends: shown.backends.iter().map(backend).collect(),
            signatures: signatures.collect(),
            kernel_tls: KERNEL_TLS.to_owned(),
        }
    }
}

/// Follows the config on a thread of its own, until its sender is gone. Without a `[[tls_offload]]` there is nothing else:
/// neither other threads nor an engine.
pub fn start(config: watch::Receiver<Option<Arc<Config>>>, offloads: Offloads, crypto: Crypto) -> io::Result<()> {
    let places = Places { credentials: std::env::var_os("CREDENTIALS_DIRECTORY") };
    let engine = move || -> Arc<dyn Engine> { Arc::new(Offload::new(crypto.engine(qat::Options::default()))) };
    start_with(config, offloads, places, engine)
}

fn start_with(
    config: watch::Receiver<Option<Arc<Config>>>,
    offloads: Offloads,
    places: Places,
    engine: impl Fn() -> Arc<dyn Engine> + Send + 'static,
) -> io::Result<()> {
    let supervise = move || {
        let follow = || -> io::Result<()> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(follow(config.clone(), offloads.clone(), places.clone(), &engine))
        };
        // Connections are lost with it; the next ones are not.
        loop {
            match catch_unwind(AssertUnwindSafe(follow)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error!(%error, "TLS cannot be offloaded"),
                Err(_panic) => error!("TLS offload panicked: it begins anew"),
            }
            thread::sleep(BEGIN_ANEW);
        }
    };
    thread::Builder::new().name("tls-offload".to_owned()).spawn(supervise).map(drop)
}

async fn follow(
    mut config: watch::Receiver<Option<Arc<Config>>>,
    offloads: Offloads,
    places: Places,
    engine: &impl Fn() -> Arc<dyn Engine>,
) -> io::Result<()> {
    let mut service: Option<Service> = None;
    config.mark_changed();
    loop {
        let wanted = match config.borrow_and_update().as_deref() {
            Some(config) => config.tls_offload.clone(),
            None => BTreeMap::new(),
        };
        if service.is_none() && !wanted.is_empty() {
            service = Some(Service::new(offloads.clone(), places.clone(), engine())?);
        }
        let changed = loop {
            let Some(running) = &mut service else { break config.changed().await };
            running.follow(&wanted);
            if wanted.is_empty() && running.is_over() {
                info!("TLS is not offloaded: threads and engine end");
                service = None;
            } else if let Ok(changed) = tokio::time::timeout(LOOK_AGAIN, config.changed()).await {
                break changed;
            }
        };
        if changed.is_err() {
            return Ok(());
        }
    }
}

/// What is under way.
#[derive(Debug)]
struct Service {
    offloads: Offloads,
    places: Places,
    engine: Arc<dyn Engine>,
    bytes: Workers,
    handshakes: Workers,
    queue: Arc<Semaphore>,
    descriptors: Arc<Semaphore>,
    entries: BTreeMap<TlsOffloadName, Entry>,
    listeners: BTreeMap<SocketAddr, Listener>,
}

/// One `[[tls_offload]]` of the config in force.
#[derive(Debug)]
struct Entry {
    /// As in the site file, wherever it stands there.
    wanted: TlsOffload,
    stamps: Stamps,
    board: Arc<Board>,
    sources: Arc<Mutex<Sources>>,
    /// `None` serves nobody.
    terms: Option<Arc<Terms>>,
    trust: Option<Trust>,
    backends: BTreeMap<SocketAddr, Watched>,
    health: watch::Sender<BackendHealth>,
}

/// Who is let in. With it end tickets and, in their time, connections.
#[derive(Debug)]
struct Trust {
    digest: String,
    life: watch::Sender<()>,
    tickets: Arc<dyn ProducesTickets>,
}

#[derive(Debug)]
struct Watched {
    backend: Arc<Backend>,
    life: watch::Sender<()>,
    check: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.check.abort();
    }
}

#[derive(Debug)]
struct Listener {
    terms: watch::Sender<Option<Arc<Terms>>>,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    fn new(offloads: Offloads, places: Places, engine: Arc<dyn Engine>) -> io::Result<Self> {
        // 1024 descriptors is what a process starts with.
        let connections = connections(raise_descriptors());
        info!(connections, "so many connections at once leave routerd descriptors for everything else");
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            offloads,
            places,
            engine,
            bytes: Workers::start("tls-bytes", cores.min(MOST_BYTES), NICE_BYTES)?,
            handshakes: Workers::start(
                "tls-handshake",
                (2 * cores).clamp(LEAST_HANDSHAKES, MOST_HANDSHAKES),
                NICE_HANDSHAKES,
            )?,
            queue: Arc::new(Semaphore::new(QUEUE)),
            descriptors: Arc::new(Semaphore::new(connections)),
            entries: BTreeMap::new(),
            listeners: BTreeMap::new(),
        })
    }

    /// Whether nothing is left: no `[[tls_offload]]`, no connection, no signature under way. Each holds the queue.
    fn is_over(&self) -> bool {
        Arc::strong_count(&self.queue) == 1
    }

    /// Makes it so, as far as it can be; called again and again.
    fn follow(&mut self, wanted: &BTreeMap<TlsOffloadName, TlsOffload>) {
        self.entries.retain(|name, _| wanted.contains_key(name));
        self.offloads.boards().retain(|name, _| wanted.contains_key(name));
        let wants = |address: &SocketAddr| wanted.values().any(|offload| offload.listen.contains(address));
        self.listeners.retain(|address, _| wants(address));
        for (name, offload) in wanted {
            let offload = TlsOffload { line: Line::BUILT_IN, ..offload.clone() };
            self.follow_one(name, offload);
        }
    }

    fn follow_one(&mut self, name: &TlsOffloadName, wanted: TlsOffload) {
        let stamps = Stamps::of(&wanted, &self.places);
        let before = self.entries.get(name);
        let same = before.is_some_and(|entry| entry.wanted == wanted);
        let mut entry = match self.entries.remove(name) {
            Some(entry) => entry,
            None => Entry {
                stamps: Stamps::default(),
                board: self.offloads.of(name),
                sources: Arc::new(Mutex::new(Sources::new())),
                terms: None,
                trust: None,
                backends: BTreeMap::new(),
                health: watch::Sender::new(wanted.health),
                wanted: wanted.clone(),
            },
        };
        // A file that is in the way is tried again each time: what is wrong may not be the file.
        if !(same && entry.terms.is_some() && entry.stamps == stamps && !entry.board.is_troubled()) {
            self.load(&mut entry, &wanted, same);
            entry.stamps = stamps;
        }
        entry.wanted = wanted;
        let listen = entry.wanted.listen.iter().map(|address| self.listen(*address, entry.terms.as_ref()));
        let listen: Vec<_> = listen.collect();
        entry.board.shown().listen = listen;
        self.entries.insert(name.clone(), entry);
    }

    fn load(&self, entry: &mut Entry, wanted: &TlsOffload, same: bool) {
        let name = &wanted.name;
        self.backends(entry, wanted);
        let loaded = match &entry.trust {
            Some(trust) => Ok(Arc::clone(&trust.tickets)),
            None => Ticketer::new().map_err(|error| format!("there are no keys for tickets: {error}")),
        };
        let loaded = loaded.and_then(|tickets| {
            let load = |tickets: &Arc<dyn ProducesTickets>| {
                files::load(wanted, &self.places, &*self.engine, &entry.board.tally.signatures, tickets)
            };
            let loaded = load(&tickets)?;
            if entry.trust.as_ref().is_none_or(|trust| trust.digest == loaded.trust) {
                return Ok((loaded, tickets));
            }
            // Tickets of those that were let in before are worth nothing.
            let tickets = Ticketer::new().map_err(|error| format!("there are no keys for tickets: {error}"))?;
            Ok((load(&tickets)?, tickets))
        });
        let mut shown = entry.board.shown();
        shown.open_to_wan = wanted.open_to_wan.iter().map(ToString::to_string).collect();
        shown.most = wanted.limits.connections;
        shown.backends = entry.backends.values().map(|watched| Arc::clone(&watched.backend)).collect();
        match loaded {
            Ok((loaded, tickets)) => {
                if shown.trouble.take().is_some() || entry.terms.is_none() {
                    info!(offload = %name, "TLS is offloaded");
                } else {
                    info!(offload = %name, "TLS is offloaded with what has changed");
                }
                for path in wanted.open_to_wan.iter().filter(|_| entry.terms.is_none()) {
                    warn!(offload = %name, wan = %path, "a TLS listener is open to everybody behind a line");
                }
                shown.certificates.clone_from(&loaded.certificates);
                if entry.trust.as_ref().is_none_or(|trust| trust.digest != loaded.trust) {
                    // The old one ends here, and with it what it let in.
                    entry.trust = Some(Trust { digest: loaded.trust.clone(), life: watch::Sender::new(()), tickets });
                }
                let trust = entry.trust.as_ref().map(|trust| trust.life.subscribe());
                let lives = entry.backends.iter().map(|(address, watched)| (*address, watched.life.subscribe()));
                let pool = wanted.backends.iter().filter_map(|backend| {
                    Some((Arc::clone(&entry.backends.get(&backend.address)?.backend), backend.weight.get()))
                });
                entry.terms = trust.map(|trust| {
                    Arc::new(Terms {
                        offload: wanted.clone(),
                        loaded,
                        pool: Pool::new(pool.collect(), wanted.balance),
                        lives: Lives { trust, backends: lives.collect() },
                        tally: Arc::clone(&entry.board.tally),
                        sources: Arc::clone(&entry.sources),
                        threads: Threads {
                            handshakes: self.handshakes.handle().clone(),
                            queue: Arc::clone(&self.queue),
                        },
                        descriptors: Arc::clone(&self.descriptors),
                    })
                });
            }
            Err(trouble) => {
                if shown.trouble.as_ref() != Some(&trouble) {
                    warn!(offload = %name, trouble, "files of TLS offload cannot be used");
                }
                // What was loaded goes on only where nobody wants anything else of it.
                if !same {
                    entry.terms = None;
                    shown.certificates = Vec::new();
                }
                shown.trouble = Some(trouble);
            }
        }
    }

    /// Watches those that are wanted; the others have no check and, in their time, no connections.
    fn backends(&self, entry: &mut Entry, wanted: &TlsOffload) {
        entry.health.send_if_modified(|health| std::mem::replace(health, wanted.health) != wanted.health);
        entry.backends.retain(|address, _| wanted.backends.iter().any(|backend| backend.address == *address));
        for backend in &wanted.backends {
            let watched = || {
                let backend = Arc::new(Backend::new(backend.address));
                let check =
                    self.bytes.handle().spawn(Arc::clone(&backend).watch(entry.health.subscribe())).abort_handle();
                Watched { backend, life: watch::Sender::new(()), check }
            };
            entry.backends.entry(backend.address).or_insert_with(watched);
        }
    }

    fn listen(&mut self, address: SocketAddr, terms: Option<&Arc<Terms>>) -> ListenLine {
        let line = |trouble| ListenLine { address: address.to_string(), trouble };
        if let Some(listener) = self.listeners.get(&address).filter(|listener| !listener.task.is_finished()) {
            listener.terms.send_if_modified(|before| {
                let same = match (&before, terms) {
                    (Some(before), Some(terms)) => Arc::ptr_eq(before, terms),
                    (None, None) => true,
                    (Some(_), None) | (None, Some(_)) => false,
                };
                *before = terms.cloned();
                !same
            });
            return line(None);
        }
        let _inside = self.bytes.handle().enter();
        let listener = match bind(address) {
            Ok(listener) => listener,
            Err(error) => return line(Some(format!("cannot be listened on: {error}"))),
        };
        let (sender, receiver) = watch::channel(terms.cloned());
        // Of the address: connections by it have to end some time after it is gone.
        let task = self.bytes.handle().spawn(accept_all(listener, receiver, watch::Sender::new(())));
        self.listeners.insert(address, Listener { terms: sender, task: task.abort_handle() });
        info!(%address, "listening for TLS");
        line(None)
    }
}

async fn accept_all(listener: TcpListener, terms: watch::Receiver<Option<Arc<Terms>>>, life: watch::Sender<()>) {
    // Connections are the runtime's: they outlive their listener for a while.
    let mut none = JoinSet::new();
    loop {
        let (stream, from) = accept::next(&mut none, "TLS offload", || listener.accept()).await;
        let Some(terms) = terms.borrow().clone() else {
            connection::reset(&stream);
            continue;
        };
        if let Some(admitted) = connection::admit(stream, from, &terms) {
            tokio::spawn(admitted.serve(life.subscribe()));
        }
    }
}

/// An address need not be there yet: a VLAN's bridge may come, go and come back, and the socket stays.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    match address.ip() {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    // What has not sent a byte is the kernel's to keep, for as long as a handshake may take at most.
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    TcpListener::from_std(socket.into())
}

/// As many as may be, and how many that is.
fn raise_descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (now, most) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            warn!(%error, "the limit of open files cannot be read");
            return LEAST_DESCRIPTORS;
        }
    };
    match setrlimit(Resource::RLIMIT_NOFILE, most, most) {
        Ok(()) => most,
        Err(error) => {
            warn!(%error, "the limit of open files cannot be raised: many TLS connections may find it");
            now
        }
    }
}

/// Of all `[[tls_offload]]` together: what they use up, probes and the kernel's sockets would lack.
fn connections(descriptors: u64) -> usize {
    let ours = descriptors.saturating_sub(DESCRIPTORS_LEFT).max(descriptors / 2);
    usize::try_from(ours / EACH).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

const LOOK_AGAIN: Duration = Duration::from_secs(2);
const BEGIN_ANEW: Duration = Duration::from_secs(1);
/// Signatures wait at most a fraction of a second here, at a thousand a second of each core.
const QUEUE: usize = 256;
/// Of a connection: the client's and the backend's.
const EACH: u64 = 2;
/// For the rest of routerd.
const DESCRIPTORS_LEFT: u64 = 1024;
/// What a process starts with.
const LEAST_DESCRIPTORS: u64 = 1024;
const MOST_BYTES: usize = 8;
/// A batch of `crypto_mb` has eight.
const LEAST_HANDSHAKES: usize = 8;
const MOST_HANDSHAKES: usize = 32;
const NICE_BYTES: i32 = 2;
const NICE_HANDSHAKES: i32 = 10;
const BACKLOG: i32 = 1024;
const KERNEL_TLS: &str = "not used";

#[cfg(test)]
mod tests;
