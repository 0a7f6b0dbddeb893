//! The one loop. Facts come in (links, neighbours, probe replies, deadlines, asks, signals), each becomes an event
//! for the router; what the router wants goes out to the reconciler on a `watch` channel, its probes to the prober.
//!
//! The loop owns the router and every task; nothing here waits for the kernel, a disk or a peer, and texts are
//! parsed aside. Stopping leaves the kernel as it is.

mod apply;
mod confirm;
mod disk;
mod guarding;
mod inputs;
mod journal_file;
mod pending;
mod site;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::Config;
use config::units::Family;
use futures_util::StreamExt;
use mwan::audit::{self, Pair};
use mwan::event::{Event, Notice, Reply, Request};
use mwan::journal::{Recorder, Stepped};
use mwan::{KernelState, Time};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::disk::Disk;
use self::guarding::Samples;
use self::inputs::{Input, Sources};
pub use self::journal_file::{FILES, JournalFile, numbered};
pub use self::site::{Accepted, Site};
use crate::alarm::Alarm;
use crate::ask::{Applies, Ask, Refusal, View};
use crate::audits::Audits;
use crate::counters::DenialSource;
use crate::happening::{Happenings, What};
use crate::kernel::watch::{Change, Neighbour};
use crate::lease::Told;
use crate::probe::{Heard, Prober};
use crate::reconcile::{self, Look, Progress, Wanted};

/// Judges the live flows by a config: how many would it deny or leave without their line, or, with `end`, how many
/// of them were ended.
#[derive(Clone)]
pub struct Flows(Arc<dyn Fn(Arc<Config>, bool) -> Count + Send + Sync>);

type Count = Pin<Box<dyn Future<Output = io::Result<u64>> + Send>>;

impl Flows {
    pub fn new<F, R>(judge: F) -> Self
    where
        F: Fn(Arc<Config>, bool) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<u64>> + Send + 'static,
    {
        Self(Arc::new(move |config, end| Box::pin(judge(config, end))))
    }

    async fn count_doomed(&self, config: Arc<Config>) -> io::Result<u64> {
        (self.0)(config, false).await
    }

    async fn end_doomed(&self, config: Arc<Config>) -> io::Result<u64> {
        (self.0)(config, true).await
    }
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flows")
    }
}

/// What the loop is connected to.
#[derive(Debug)]
pub struct Parts {
    pub alarm: Alarm,
    pub changes: mpsc::Receiver<Change>,
    pub asks: mpsc::Receiver<Ask>,
    /// What the packet path noticed of the lines.
    pub noticed: mpsc::Receiver<Event>,
    /// What becomes of the leases of lines.
    pub leases: mpsc::Receiver<Told>,
    /// Those of before the start that still hold.
    pub kept_leases: Vec<Told>,
    pub reconciler: reconcile::Handle,
    pub flows: Flows,
    /// Told the config in force.
    pub config: watch::Sender<Option<Arc<Config>>>,
    /// What a guard compares.
    pub denials: DenialSource,
    pub happenings: Happenings,
    /// Told when audits begin and end.
    pub audits: Audits,
    pub site: Site,
    /// `None` keeps no journal.
    pub journal: Option<JournalFile>,
    /// Tasks that end with the loop.
    pub tasks: JoinSet<()>,
}

/// Until SIGTERM or SIGINT, or until a part that cannot be done without is gone.
pub async fn run(parts: Parts) -> io::Result<()> {
    let (nexts_tx, nexts) = mpsc::channel(NEXTS);
    let Parts {
        mut alarm,
        mut changes,
        asks,
        noticed,
        leases,
        kept_leases,
        reconciler,
        flows,
        config,
        denials,
        happenings,
        audits,
        site,
        journal,
        mut tasks,
    } = parts;
    let hang_up = signal(SignalKind::hangup())?;
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    let (replies_tx, mut replies) = mpsc::channel(REPLIES);
    let progress = reconciler.progress.clone();
    let disk = Disk::begin(&mut tasks);
    let mut core = Core {
        zero: Instant::now(),
        last: Time::ZERO,
        recorder: Recorder::new(run_number(), Time::ZERO, wall()),
        prober: Prober::new(replies_tx),
        reconciler,
        serial: 0,
        wanted: None,
        effective: None,
        doomed_after: None,
        accepted: None,
        starting: None,
        applying: None,
        waiting: None,
        rollbacks: BTreeMap::new(),
        rolled_back: None,
        samples: Samples::default(),
        trouble: None,
        flows,
        config,
        denials,
        happenings,
        audits,
        repaired: 0,
        site,
        disk,
        nexts: nexts_tx,
        journal,
        tasks,
        in_force: false,
        watchdog: Watchdog::new(),
    };

    // What the lines are before what is wanted of them: the first plan is the right one.
    if let Ok(Some(change)) = tokio::time::timeout(FIRST_LINKS, changes.recv()).await {
        core.change(change);
    }
    // Before the config: what a line had it still has.
    for told in kept_leases {
        core.event(&told.event(core.zero));
    }
    core.start();
    let mut inputs =
        Sources { changes, noticed, leases, progress, asks, nexts, hang_up, terminate, interrupt }.merged();
    loop {
        let deadline = core.recorder.router().deadline();
        let due = core.instant(deadline, core.now());
        let due = core.prober.look().map_or(due, |look| look.min(due));
        tokio::select! {
            () = alarm.until(due) => {
                let late = core.now().since(deadline) >= LATE;
                core.hear();
                if late {
                    core.catch_up(&mut replies).await;
                }
                if core.recorder.router().deadline() <= core.now() {
                    core.event_at(&Event::Timeout, core.now());
                }
            }
            Some(reply) = replies.recv() => core.event(&Event::Reply(reply)),
            Some(input) = inputs.next() => match input {
                Input::Change(change) => core.change(change),
                Input::Noticed(event) => {
                    core.samples.notice(&event);
                    core.event(&event);
                }
                Input::Lease(told) => core.event(&told.event(core.zero)),
                Input::Progress(progress) => core.progressed(&progress),
                Input::Ask(ask) => core.ask(ask),
                Input::Next(next) => next(&mut core),
                Input::Second => core.second(),
                Input::HangUp => core.reload(),
                Input::Stop => break,
                Input::Gone(what) => return Err(io::Error::other(format!("{what} ended"))),
            }
        }
    }
    info!("stopping; links, rules, routes and the table stay as they are");
    notify(sd_notify::NotifyState::Stopping);
    core.tasks.shutdown().await;
    if let Some(journal) = &mut core.journal {
        journal.flush();
    }
    Ok(())
}

struct Core {
    zero: Instant,
    /// When the router was told something last.
    last: Time,
    recorder: Recorder,
    prober: Prober,
    reconciler: reconcile::Handle,
    serial: u64,
    wanted: Option<Arc<KernelState>>,
    /// The config in force with what the leases say, as the others know it.
    effective: Option<Arc<Config>>,
    /// Flows are to be judged by it once the kernel has this serial.
    doomed_after: Option<u64>,
    /// The config in force, as it is written.
    accepted: Option<Accepted>,
    starting: Option<apply::Starting>,
    applying: Option<apply::Applying>,
    /// What is live, or about to be, and waits for its confirmation.
    waiting: Option<confirm::Waiting>,
    /// Changes taken back, by the word of the reason.
    rollbacks: BTreeMap<String, u64>,
    /// Why the last change was taken back, until another begins.
    rolled_back: Option<String>,
    samples: Samples,
    /// What is wrong with the files, until one is accepted.
    trouble: Option<String>,
    flows: Flows,
    config: watch::Sender<Option<Arc<Config>>>,
    denials: DenialSource,
    happenings: Happenings,
    audits: Audits,
    /// Repairs of drift that were told.
    repaired: u64,
    site: Site,
    disk: Disk,
    nexts: mpsc::Sender<Next>,
    journal: Option<JournalFile>,
    tasks: JoinSet<()>,
    /// The router was told that the kernel is as wanted.
    in_force: bool,
    watchdog: Watchdog,
}

/// What the loop does when something it had somebody wait for is there.
type Next = Box<dyn FnOnce(&mut Core) + Send>;

impl Core {
    /// Goes on with `then` in the loop, once `work` is done.
    fn then<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = T> + Send + 'static,
        then: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        let nexts = self.nexts.clone();
        self.tasks.spawn(async move {
            let done = work.await;
            let next: Next = Box::new(move |core| then(core, done));
            // The loop may have ended.
            drop(nexts.send(next).await);
        });
    }

    fn now(&self) -> Time {
        Time::ZERO + self.zero.elapsed()
    }

    /// `when` on tokio's clock, at most an hour ahead: [`Time::NEVER`] has no place there.
    fn instant(&self, when: Time, now: Time) -> Instant {
        self.zero + now.since(Time::ZERO) + when.since(now).min(LONGEST_SLEEP)
    }

    /// What was answered before it is known before it.
    fn event(&mut self, event: &Event) {
        self.hear();
        self.event_at(event, self.now());
    }

    /// Answers to echoes come before the deadline they may have kept, each at the time when it came: what came in time is
    /// not lost because we look late.
    fn hear(&mut self) {
        let now = self.now();
        for Heard { reply, waited } in self.prober.heard() {
            let came = came(now, self.last, waited);
            self.event_at(&Event::Reply(reply), came);
        }
    }

    /// Where we had to wait for the processor, answers may wait in sockets of their own: their readers go first, and the
    /// router is told at the time when it last did something.
    async fn catch_up(&mut self, replies: &mut mpsc::Receiver<Reply>) {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
            while let Ok(reply) = replies.try_recv() {
                self.event_at(&Event::Reply(reply), self.last);
            }
        }
    }

    fn event_at(&mut self, event: &Event, now: Time) {
        self.last = now;
        let Stepped { notices, probes } = self.recorder.step(event, now);
        // The wanted state first: a failover does not wait for the probes that are due with it.
        self.publish();
        self.follow_config(event);
        for probe in &probes {
            self.prober.send(probe);
        }
        for notice in &notices {
            log(notice);
            if let Some(what) = What::of(notice) {
                self.happenings.tell(what);
            }
            match notice {
                Notice::Audited { pair, span } => self.audits.begin(pair, *span, SystemTime::now()),
                Notice::AuditEnded { pair, why } => self.audits.end(pair, *why),
                Notice::Health { .. }
                | Notice::BadTarget { .. }
                | Notice::IspOutage { .. }
                | Notice::PolicyUses { .. }
                | Notice::Configured { .. }
                | Notice::GatewayMac { .. }
                | Notice::Lease { .. }
                | Notice::Seat { .. } => {}
            }
        }
        let lines = self.recorder.take_lines();
        if let Some(journal) = &mut self.journal {
            journal.write(lines, || self.recorder.checkpoint(now, wall()));
            // What people ask the journal for is there at once, and after a crash.
            if !notices.is_empty() || matches!(event, Event::Config(_) | Event::Request(_)) {
                journal.flush();
            }
        }
    }

    /// Leases make another config of the operator's, at any time.
    fn follow_config(&mut self, event: &Event) {
        let Some(config) = self.recorder.router().config() else { return };
        if self.effective.as_ref().is_some_and(|before| Arc::ptr_eq(before, config)) {
            return;
        }
        let config = Arc::clone(config);
        self.prober.configure(&config);
        if self.accepted.is_some() {
            self.config.send_replace(Some(Arc::clone(&config)));
        }
        self.effective = Some(config);
        // What an apply dooms is judged when it is done.
        if !matches!(event, Event::Config(_) | Event::Seat(_)) {
            self.doomed_after = Some(self.serial);
            self.end_doomed();
        }
    }

    /// Ends the flows whose address went with a lease, once the kernel has what came of it.
    fn end_doomed(&mut self) {
        let reached = {
            let progress = self.reconciler.progress.borrow();
            progress.passes > 0 && self.doomed_after.is_some_and(|serial| progress.serial >= serial)
        };
        let Some(config) = self.effective.clone().filter(|_| reached) else { return };
        self.doomed_after = None;
        let flows = self.flows.clone();
        self.tasks.spawn(async move {
            match flows.end_doomed(config).await {
                Ok(ended) => info!(ended, "flows judged by the leases there are"),
                Err(error) => warn!(%error, "flows of an address that is gone may live on"),
            }
        });
    }

    fn publish(&mut self) {
        let Some(wanted) = self.recorder.router().wanted() else { return };
        if self.wanted.as_ref().is_some_and(|before| Arc::ptr_eq(before, &wanted)) {
            return;
        }
        self.wanted = Some(Arc::clone(&wanted));
        self.serial += 1;
        self.reconciler.wanted.send_replace(Some(Wanted { serial: self.serial, state: wanted }));
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Links(links) => {
                self.prober.follow(&links);
                self.event(&Event::Links(links));
            }
            Change::Neighbour(neighbour) => self.neighbour(&neighbour),
            Change::Drift => self.reconciler.drift.notify_one(),
        }
    }

    /// Only gateways matter. A probe of one is answered here too.
    fn neighbour(&mut self, neighbour: &Neighbour) {
        let Some(config) = &self.effective else { return };
        let family = Family::of(neighbour.address);
        let gateway_of = config
            .wans
            .values()
            .find(|wan| wan.interface == neighbour.link && wan.gateway(family) == Some(neighbour.address));
        let Some(wan) = gateway_of.map(|wan| wan.id) else { return };
        // Each probe of a gateway comes back as news of it, with the MAC it always had.
        if self.recorder.router().gateway_mac(wan, family) != neighbour.mac {
            self.event(&Event::Neighbour { wan, family, mac: neighbour.mac });
        }
        for reply in self.prober.gateway_seen(wan, family, neighbour) {
            self.event(&Event::Reply(reply));
        }
    }

    fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::View(reply) => self.tell_view(reply),
            Ask::Plan { text, reply } => self.plan(text, reply),
            Ask::Apply { text, how, author, past, reply } => self.apply(text, how, author, past, reply),
            Ask::Confirm { author, reply } => self.confirm(&author, reply),
            Ask::RollBack { author, reply } => self.take_back(&author, reply),
            Ask::Operator { request, reply } => {
                let done = self.operate(request);
                answer(reply, done);
            }
            Ask::Audit { pair, span, isolated, reply } => {
                let done = self.audit(&pair, span, isolated);
                answer(reply, done);
            }
        }
    }

    fn operate(&mut self, request: Request) -> Result<(), Refusal> {
        let Some(accepted) = &self.accepted else {
            return Err(Refusal::not_configured());
        };
        match &request {
            Request::Drain { wan } | Request::Undrain { wan } | Request::FailTest { wan, .. } => {
                if !accepted.config.wans.contains_key(wan) {
                    return Err(Refusal::unknown_wan(wan, &accepted.config));
                }
            }
            Request::Audit { .. } | Request::EndAudit { .. } => {}
        }
        info!(?request, "an operator asks");
        self.event(&Event::Request(request));
        Ok(())
    }

    fn audit(&mut self, pair: &Pair, span: Duration, isolated: bool) -> Result<(), Refusal> {
        let Some(accepted) = &self.accepted else {
            return Err(Refusal::not_configured());
        };
        if self.applying.is_some() {
            return Err(Refusal::new("busy", "an apply is under way"));
        }
        let running = self.recorder.router().snapshot(self.now()).audits;
        audit::check(&accepted.config, &running, pair, span, isolated)
            .map_err(|unfit| Refusal::new("audit", unfit.to_string()))?;
        self.operate(Request::Audit { pair: pair.clone(), span })
    }

    /// The site file is on a disk, and the loop waits for none.
    fn tell_view(&mut self, reply: oneshot::Sender<View>) {
        let (mut view, site) = (self.view(), self.site.clone());
        self.tasks.spawn(async move {
            if view.config.is_some() {
                let text = Arc::clone(&view.text);
                view.applies.unlike_file = tokio::task::spawn_blocking(move || site.unlike(&text)).await.ok().flatten();
            }
            answer(reply, view);
        });
    }

    fn view(&self) -> View {
        let router = self.recorder.router();
        View {
            config: router.config().filter(|_| self.accepted.is_some()).cloned(),
            text: self.accepted.as_ref().map_or_else(|| Arc::from(""), |accepted| Arc::clone(&accepted.text)),
            wanted: router.wanted(),
            snapshot: router.snapshot(self.now()),
            decision: router.decision().clone(),
            applies: self.applies(),
        }
    }

    fn applies(&self) -> Applies {
        let progress = self.reconciler.progress.borrow();
        let failing = progress.failures.iter().map(|(step, reason)| format!("{step}: {reason}")).collect::<Vec<_>>();
        Applies {
            current: progress.serial == self.serial && progress.passes > 0 && progress.failures.is_empty(),
            succeeded: progress.succeeded,
            failed: progress.failed,
            drift_repaired: progress.drift_repaired,
            failing: match (&self.trouble, failing.is_empty()) {
                (Some(trouble), _) => Some(trouble.clone()),
                (None, false) => Some(failing.join("; ")),
                (None, true) => None,
            },
            waiting: self.recorder.router().waiting().iter().map(ToString::to_string).collect(),
            unlike_file: None,
            pending: self.waiting.as_ref().map(confirm::Waiting::told),
            rollbacks: self.rollbacks.clone(),
            rolled_back: self.rolled_back.clone(),
        }
    }

    fn second(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                error!(%error, "a task failed");
            }
        }
        if let Some(journal) = &mut self.journal {
            journal.flush();
        }
        self.give_up_late_apply();
        self.sample();
        self.watch_window();
        self.watchdog.alive();
    }
}

/// systemd's view of us.
#[derive(Debug)]
struct Watchdog {
    asked: bool,
    ready: bool,
}

impl Watchdog {
    fn new() -> Self {
        Self { asked: sd_notify::watchdog_enabled().is_some(), ready: false }
    }

    fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            notify(sd_notify::NotifyState::Ready);
        }
    }

    fn alive(&self) {
        if self.asked {
            notify(sd_notify::NotifyState::Watchdog);
        }
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot tell systemd");
    }
}

fn log(notice: &Notice) {
    match notice {
        Notice::Health { wan, family, from, to, why } => {
            info!(%wan, %family, from = from.word(), to = to.word(), %why, "health changed");
        }
        Notice::BadTarget { target, bad: true } => warn!(%target, "target fails on every line: it is not counted"),
        Notice::BadTarget { target, bad: false } => info!(%target, "target answers again"),
        Notice::IspOutage { family, outage: true, wans } => {
            warn!(%family, ?wans, "most lines were lost together: flows are frozen");
        }
        Notice::IspOutage { family, outage: false, wans } => info!(%family, ?wans, "the outage is over"),
        Notice::PolicyUses { policy, family, uses } => info!(%policy, %family, ?uses, "policy uses other lines"),
        Notice::Configured { digest } => info!(%digest, "configured"),
        Notice::GatewayMac { wan, family, mac } => {
            let mac = mac.map(|bytes| bytes.map(|byte| format!("{byte:02x}")).join(":"));
            info!(%wan, %family, mac, "the gateway's MAC changed");
        }
        Notice::Lease { wan, family, lease: Some(lease), .. } => info!(%wan, %family, %lease, "another lease"),
        Notice::Lease { wan, family, lease: None, why } => warn!(%wan, %family, why, "the line has no lease"),
        Notice::Seat { seat } => warn!(node = %seat.node, active = seat.active, "the pair: another seat"),
        Notice::Audited { pair, span } => warn!(%pair, ?span, "an audit lets pass what no entry of this cell allows"),
        Notice::AuditEnded { pair, why } => info!(%pair, why = why.told(), "the audit has ended"),
    }
}

/// When something came that waited for us until `now`; nothing comes before what the router was told `last`.
fn came(now: Time, last: Time, waited: Option<Duration>) -> Time {
    let Some(waited) = waited else { return last };
    let waited = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
    Time::from_micros(now.as_micros().saturating_sub(waited)).max(last)
}

/// The time since 1970.
fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Tells this run from others in the journal.
fn run_number() -> u64 {
    u64::try_from(wall().as_micros()).unwrap_or(u64::MAX)
}

/// Whoever asked may have gone; that is no failure of ours.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    drop(reply.send(value));
}

/// Replies that wait for the loop; more wait in their sockets.
const REPLIES: usize = 1024;
/// Things done that wait for the loop.
const NEXTS: usize = 16;
/// How long the start waits for the first list of links.
const FIRST_LINKS: Duration = Duration::from_secs(5);
/// Later than a timer is on a machine that has time for us.
const LATE: Duration = Duration::from_millis(5);
/// Between two of ours 61 other tasks have theirs: enough for the readers of all lines.
const TURNS: usize = 8;
const LONGEST_SLEEP: Duration = Duration::from_hours(1);
