//! What changes, told outside the box: collectors, webhooks and hooks of the site file, each an *outlet* with a thread of its own.
//!
//! ```text
//!   loop ──tell──▶ broadcast ──▶ run() ──try_send──▶ outlet's inbox ──▶ its thread: disk, network
//!   event log ─────────────────────────────────────▶ (denials, where it wants them)
//! ```
//!
//! Nobody here is waited for. What finds an inbox full is counted and dropped; a disk that stands still, a collector
//! that does not read, hold up their own outlet only. [`run`] follows the config; an outlet that is as it was goes on.

mod hook;
mod queue;
mod rfc5424;
mod syslog;
pub(crate) mod tls;
mod webhook;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use config::Config;
use config::model::{Hook, Syslog, Webhook};
use config::units::{EventKind, Line};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tracing::{error, info};

use crate::event_log::EventLog;
use crate::happening::Happening;

/// How the outlets fare. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Outlets(Arc<Mutex<BTreeMap<Name, Arc<Tally>>>>);

/// One of them, for status and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutletLine {
    /// `syslog`, `webhook`, `hook`.
    pub kind: String,
    /// Whom it tells.
    pub to: String,
    /// Messages that were taken.
    pub told: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Messages that nobody will get.
    pub dropped: u64,
    /// Messages that wait.
    pub waiting: u64,
    /// Why the last attempt failed; `None` after a success.
    pub trouble: Option<String>,
}

/// The kind of an outlet, and whom it tells.
type Name = (&'static str, String);

impl Outlets {
    pub fn lines(&self) -> Vec<OutletLine> {
        let tallies = self.tallies();
        let line = |((kind, to), tally): (&Name, &Arc<Tally>)| OutletLine {
            kind: (*kind).to_owned(),
            to: to.clone(),
            told: tally.told.load(Ordering::Relaxed),
            failed: tally.failed.load(Ordering::Relaxed),
            dropped: tally.dropped.load(Ordering::Relaxed),
            waiting: tally.waiting.load(Ordering::Relaxed),
            trouble: tally.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        tallies.iter().map(line).collect()
    }

    fn of(&self, name: &Name) -> Arc<Tally> {
        Arc::clone(self.tallies().entry(name.clone()).or_default())
    }

    fn keep(&self, wanted: &BTreeMap<Name, Wanted>) {
        self.tallies().retain(|name, _| wanted.contains_key(name));
    }

    fn tallies(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Tally>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one outlet counts.
#[derive(Debug, Default)]
struct Tally {
    told: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    waiting: AtomicU64,
    /// Dropped before it came to the outlet's thread, which has yet to learn of it.
    missed: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl Tally {
    fn miss(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
        self.missed.fetch_add(count, Ordering::Relaxed);
    }

    fn succeed(&self, count: u64) {
        self.told.fetch_add(count, Ordering::Relaxed);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether it is another reason than before, and so worth a line in the log.
    fn fail(&self, reason: &str) -> bool {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let news = trouble.as_deref() != Some(reason);
        *trouble = Some(reason.to_owned());
        news
    }

    /// Waits until so many were told, failed and were dropped.
    #[cfg(test)]
    async fn comes_to(&self, wanted: [u64; 3]) {
        let counts = || [&self.told, &self.failed, &self.dropped].map(|count| count.load(Ordering::Relaxed));
        let begun = std::time::Instant::now();
        while counts() != wanted {
            let trouble = self.trouble.lock().unwrap().clone();
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?} {trouble:?}", counts());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// An outlet as the site file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Syslog(Syslog),
    Webhook(Webhook),
    Hook(Hook),
}

impl Wanted {
    /// Where it stands in the file makes it no other one.
    fn all(config: &Config) -> BTreeMap<Name, Self> {
        let syslog = config.syslog.iter().map(|syslog| {
            let syslog = Syslog { line: Line::BUILT_IN, ..syslog.clone() };
            (("syslog", syslog.server.to_string()), Self::Syslog(syslog))
        });
        let mut all: BTreeMap<_, _> = syslog.collect();
        for webhook in &config.webhooks {
            let wanted = Self::Webhook(Webhook { line: Line::BUILT_IN, ..webhook.clone() });
            all.insert(unlike(&all, "webhook", &webhook.url.host), wanted);
        }
        for hook in &config.hooks {
            let wanted = Self::Hook(Hook { line: Line::BUILT_IN, ..hook.clone() });
            all.insert(unlike(&all, "hook", &hook.run.display().to_string()), wanted);
        }
        all
    }

    fn wants(&self, kind: EventKind) -> bool {
        match self {
            Self::Syslog(syslog) => syslog.events.contains(&kind),
            Self::Webhook(webhook) => webhook.events.contains(&kind),
            Self::Hook(hook) => hook.events.contains(&kind),
        }
    }
}

/// A name that none of these has: two may go to one host.
fn unlike(all: &BTreeMap<Name, Wanted>, kind: &'static str, to: &str) -> Name {
    let mut name = (kind, to.to_owned());
    let mut nth = 1;
    while all.contains_key(&name) {
        nth += 1;
        name = (kind, format!("{to} #{nth}"));
    }
    name
}

/// What outlets are made with.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The daemon's state folder.
    pub state: PathBuf,
    pub denied: EventLog,
    pub outlets: Outlets,
}

/// Is there while outlets have something to finish.
#[derive(Debug, Clone)]
pub struct Alive(#[expect(dead_code, reason = "its end is what counts")] std::sync::mpsc::Sender<()>);

/// Waits for the outlets' last words.
#[derive(Debug)]
pub struct Ending(std::sync::mpsc::Receiver<()>);

impl Ending {
    pub fn new() -> (Alive, Self) {
        let (alive, ending) = std::sync::mpsc::channel();
        (Alive(alive), Self(ending))
    }

    /// Until every outlet has put down what it was handed, or has had its time.
    pub fn wait(self) {
        if self.0.recv_timeout(LAST_WORDS) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("an outlet of events did not end in time: what it was handed last may be lost");
        }
    }
}

/// Hands each happening to the outlets that want it, until nobody can tell any more. Before the first config they
/// wait for it. Cancelling it ends the outlets in their own time.
pub async fn run(
    mut config: watch::Receiver<Option<Arc<Config>>>,
    mut told: broadcast::Receiver<Arc<Happening>>,
    surroundings: Surroundings,
    alive: Alive,
) {
    let mut running = Running { outlets: BTreeMap::new(), ending: BTreeMap::new(), surroundings, alive };
    let mut configured = false;
    config.mark_changed();
    loop {
        tokio::select! {
            // Whoever is to be told of a config is there before it is told.
            biased;
            changed = config.changed() => {
                if changed.is_err() {
                    return;
                }
                // A router that closed has no config, and its collectors want to know that.
                if let Some(config) = config.borrow_and_update().as_deref() {
                    running.follow(Wanted::all(config));
                    configured = true;
                }
            }
            told = told.recv(), if configured => match told {
                Ok(happening) => running.hand_over(&happening),
                Err(RecvError::Lagged(missed)) => running.miss(missed),
                Err(RecvError::Closed) => return,
            },
        }
    }
}

#[derive(Debug)]
struct Running {
    outlets: BTreeMap<Name, Outlet>,
    /// Their threads may hold the folder that a successor needs.
    ending: BTreeMap<Name, JoinHandle<()>>,
    surroundings: Surroundings,
    alive: Alive,
}

#[derive(Debug)]
struct Outlet {
    wanted: Wanted,
    inbox: mpsc::Sender<Arc<Happening>>,
    tally: Arc<Tally>,
    thread: JoinHandle<()>,
}

impl Running {
    fn follow(&mut self, wanted: BTreeMap<Name, Wanted>) {
        self.ending.retain(|_, thread| !thread.is_finished());
        let same = |name: &Name, outlet: &mut Outlet| wanted.get(name) == Some(&outlet.wanted);
        for (name, outlet) in self.outlets.extract_if(.., |name, outlet| !same(name, outlet)) {
            self.ending.insert(name, outlet.thread);
        }
        self.surroundings.outlets.keep(&wanted);
        for (name, wanted) in wanted {
            if self.outlets.contains_key(&name) {
                continue;
            }
            let before = self.ending.remove(&name);
            match self.start(&name, wanted, before) {
                Ok(outlet) => {
                    info!(kind = name.0, to = name.1, "events are told");
                    self.outlets.insert(name, outlet);
                }
                Err(error) => error!(kind = name.0, to = name.1, %error, "events cannot be told: no thread"),
            }
        }
    }

    fn start(&self, name: &Name, wanted: Wanted, before: Option<JoinHandle<()>>) -> io::Result<Outlet> {
        let (inbox, told) = mpsc::channel(INBOX);
        let tally = self.surroundings.outlets.of(name);
        let (work, counts, alive) = (wanted.clone(), Arc::clone(&tally), self.alive.clone());
        let Surroundings { state, denied, .. } = self.surroundings.clone();
        let to = name.1.clone();
        // From here on, not from when the thread gets to it.
        let denied = match &wanted {
            Wanted::Syslog(syslog) => syslog.denied.then(|| denied.follow()),
            Wanted::Webhook(_) | Wanted::Hook(_) => None,
        };
        let thread = thread::Builder::new().name(name.0.to_owned()).spawn(move || {
            if before.is_some_and(|before| before.join().is_err()) {
                error!(to, "an outlet of events panicked");
            }
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return error!(to, %error, "events cannot be told"),
            };
            match work {
                Wanted::Syslog(syslog) => {
                    let folder = state.join("syslog").join(to.replace(['[', ']'], "").replace(['/', '%'], "_"));
                    let duty = syslog::Duty { syslog, folder, tally: counts, patience: syslog::Patience::default() };
                    runtime.block_on(duty.run(told, denied));
                }
                Wanted::Hook(hook) => {
                    runtime.block_on(hook::Duty { hook, tally: counts, owner: ROOT }.run(told));
                }
                Wanted::Webhook(webhook) => {
                    let patience = webhook::Patience::default();
                    runtime.block_on(webhook::Duty { webhook, to, tally: counts, patience }.run(told));
                }
            }
            drop(alive);
        })?;
        Ok(Outlet { wanted, inbox, tally, thread })
    }

    fn hand_over(&self, happening: &Arc<Happening>) {
        for outlet in self.outlets.values().filter(|outlet| outlet.wanted.wants(happening.what.kind())) {
            if outlet.inbox.try_send(Arc::clone(happening)).is_err() {
                outlet.tally.miss(1);
            }
        }
    }

    fn miss(&self, count: u64) {
        self.outlets.values().for_each(|outlet| outlet.tally.miss(count));
    }
}

/// The time to the next attempt: twice that to the one before, up to a limit, and then some or less, so that many who
/// lost the same peer do not come back together.
#[derive(Debug, Clone)]
struct BackOff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl BackOff {
    fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first }
    }

    fn reset(&mut self) {
        self.next = self.first;
    }

    /// Between half and the whole of it.
    fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.last);
        whole.mul_f64(0.5 + random() / 2.0)
    }
}

/// 0 to 1. The keys of the standard library's hasher are random, which is enough for pauses.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let drawn = std::hash::RandomState::new().build_hasher().finish();
    let drawn = u32::try_from(drawn >> 32).unwrap_or_default();
    f64::from(drawn) / f64::from(u32::MAX)
}

const ROOT: u32 = 0;
/// Happenings that wait for an outlet's thread.
const INBOX: usize = 256;
/// Outlets that end with the daemon have this long.
const LAST_WORDS: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;
    use crate::fixture;
    use crate::happening::{Happenings, What};

    #[tokio::test]
    async fn outlets_follow_the_config_and_get_what_they_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let config = |line, events: &[EventKind], there: bool| {
            let events = events.iter().copied().collect();
            let syslog = Syslog { server, tls: None, events, denied: false, queue: 1 << 20, line: Line(line) };
            let syslog = there.then_some(syslog).into_iter().collect();
            Some(Arc::new(Config { syslog, ..fixture::config() }))
        };
        let (happenings, outlets) = (Happenings::default(), Outlets::default());
        let (config_tx, config_rx) = watch::channel(None);
        let (alive, ending) = Ending::new();
        let surroundings =
            Surroundings { state: folder.path().to_owned(), denied: EventLog::default(), outlets: outlets.clone() };
        let task = tokio::spawn(run(config_rx, happenings.follow(), surroundings, alive));
        let refused =
            |why: &str| What::Refused { author: "alice".to_owned(), code: "config".to_owned(), reason: why.to_owned() };
        let target = |name: &str| What::Target { target: name.to_owned(), bad: true };
        happenings.tell(refused("before there was a config"));
        happenings.tell(target("not asked for"));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(outlets.lines(), []);
        config_tx.send_replace(config(1, &[EventKind::Refused], true));
        let (stream, _) = listener.accept().await.unwrap();
        let mut collector = BufReader::new(stream);
        let mut next = async |word: &str| {
            let mut all = Vec::new();
            while !String::from_utf8_lossy(&all).contains(word) {
                let more = tokio::time::timeout(Duration::from_secs(20), collector.fill_buf()).await.unwrap().unwrap();
                assert!(!more.is_empty(), "{word} did not come: {}", String::from_utf8_lossy(&all));
                let length = more.len();
                all.extend_from_slice(more);
                collector.consume(length);
            }
            String::from_utf8_lossy(&all).into_owned()
        };
        assert!(!next("before there was a config").await.contains("not asked for"));
        // Another place in the file is no other collector; a router that closed goes on telling.
        config_tx.send_replace(config(9, &[EventKind::Refused], true));
        config_tx.send_replace(None);
        happenings.tell(refused("over the same connection"));
        next("over the same connection").await;
        let lines = outlets.lines();
        assert!(matches!(lines.as_slice(), [line] if line.to == server.to_string() && line.waiting == 2), "{lines:?}");
        // One that is gone from the file ends, and what it did not settle waits for its return.
        config_tx.send_replace(config(1, &[], false));
        while !outlets.lines().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        config_tx.send_replace(config(1, &[EventKind::Refused, EventKind::Target], true));
        happenings.tell(target("asked for by then"));
        let (stream, _) = listener.accept().await.unwrap();
        let mut collector = BufReader::new(stream);
        let mut all = String::new();
        while !all.contains("asked for by then") {
            let more = tokio::time::timeout(Duration::from_secs(20), collector.fill_buf()).await.unwrap().unwrap();
            let length = more.len();
            all.push_str(&String::from_utf8_lossy(more));
            collector.consume(length);
        }
        assert!(all.contains("before there was a config") && all.contains("over the same connection"), "{all}");
        drop(config_tx);
        task.await.unwrap();
        tokio::task::spawn_blocking(|| ending.wait()).await.unwrap();
    }

    #[test]
    fn pauses_grow_to_their_limit_and_differ() {
        let (first, last) = (Duration::from_secs(1), Duration::from_mins(1));
        let mut back_off = BackOff::new(first, last);
        let mut whole = first;
        let mut fractions = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let pause = back_off.pause();
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
            fractions.insert(pause.div_duration_f64(whole).to_bits());
            whole = (whole * 2).min(last);
        }
        assert!(fractions.len() > 10);
        back_off.reset();
        assert!(back_off.pause() <= first);
    }
}
