//! Makes the kernel what the router wants: observe, plan, apply, and again. Start, reload, failover, drift repair
//! and rollback are all this one loop with a different wanted state.
//!
//! One task owns the kernel. It watches the latest wanted state, never a queue of them. Cancelling it at any await
//! is safe: it leaves a plan cut short, which the next observation and plan finish.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use config::units::IfName;
use mwan::state::NextHop;
use mwan::{KernelState, Step};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::kernel::{Kernel, ObserveError};

/// What the kernel shall become.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Rises with every change, so that whoever changed it can tell when it is there.
    pub serial: u64,
    pub state: Arc<KernelState>,
}

/// How far the reconciler has come. Published after every pass that ran to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The wanted state the last pass worked on.
    pub serial: u64,
    /// Finished passes over that wanted state.
    pub passes: u32,
    /// Steps that succeeded since the start.
    pub steps: u64,
    /// What failed in the last pass, told to a person, and why. Empty: the kernel is as wanted.
    pub failures: BTreeMap<String, String>,
    /// Passes that changed something and reached the wanted state.
    pub succeeded: u64,
    /// Passes in which something failed.
    pub failed: u64,
    pub drift_repaired: u64,
    /// The first of the steps that put it right the last time.
    pub repairs: Vec<String>,
}

/// A look at the kernel on behalf of somebody else.
#[derive(Debug)]
pub struct Look {
    pub want: Arc<KernelState>,
    pub reply: oneshot::Sender<Result<KernelState, ObserveError>>,
}

#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    wanted: watch::Receiver<Option<Wanted>>,
    drift: Arc<Notify>,
    looks: mpsc::Receiver<Look>,
    progress: watch::Sender<Progress>,
    /// The kernel as we last saw it, with the steps that succeeded since.
    known: Option<KernelState>,
    back_off: Duration,
    last_look: Option<Instant>,
    next_look: Instant,
}

/// The other ends of a [`Reconciler`].
#[derive(Debug)]
pub struct Handle {
    pub wanted: watch::Sender<Option<Wanted>>,
    /// Told when something of ours may have been changed by somebody else. Hints add up to one.
    pub drift: Arc<Notify>,
    pub looks: mpsc::Sender<Look>,
    pub progress: watch::Receiver<Progress>,
}

impl<K: Kernel> Reconciler<K> {
    pub fn new(kernel: K) -> (Self, Handle) {
        let (wanted_tx, wanted) = watch::channel(None);
        let (looks_tx, looks) = mpsc::channel(4);
        let (progress, progress_rx) = watch::channel(Progress::default());
        let drift = Arc::new(Notify::new());
        let reconciler = Self {
            kernel,
            wanted,
            drift: Arc::clone(&drift),
            looks,
            progress,
            known: None,
            back_off: FIRST_RETRY,
            last_look: None,
            next_look: Instant::now() + AUDIT,
        };
        (reconciler, Handle { wanted: wanted_tx, drift, looks: looks_tx, progress: progress_rx })
    }

    /// Until the other end of `wanted` is gone.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                changed = self.wanted.changed() => match changed {
                    Ok(()) => {
                        self.back_off = FIRST_RETRY;
                        self.pass(Why::Wanted).await;
                    }
                    Err(_gone) => return,
                },
                Some(look) = self.looks.recv() => {
                    let seen = self.kernel.observe(&look.want).await;
                    if look.reply.send(seen).is_err() {
                        debug!("nobody waits for the observation");
                    }
                }
                () = self.drift.notified() => {
                    // What we do ourselves comes back as a hint too; a storm of them is looked into five times a
                    // second at most.
                    let soonest = self.last_look.map_or_else(Instant::now, |last| last + LOOK_APART);
                    self.next_look = self.next_look.min(soonest.max(Instant::now() + SETTLE));
                }
                () = tokio::time::sleep_until(self.next_look) => self.pass(Why::Look).await,
            }
        }
    }

    async fn pass(&mut self, why: Why) {
        let Some(wanted) = self.wanted.borrow_and_update().clone() else {
            self.next_look = Instant::now() + AUDIT;
            return;
        };
        let mut progress = self.progress.borrow().clone();
        if progress.serial != wanted.serial {
            progress = Progress { serial: wanted.serial, passes: 0, ..progress };
        }

        let quick = match &self.known {
            Some(known) if why == Why::Wanted && progress.failures.is_empty() => {
                Some(known.plan_to(&wanted.state)).filter(|plan| plan.iter().all(moves_traffic_only))
            }
            Some(_) | None => None,
        };
        let (from, plan) = match (quick, self.known.take()) {
            (Some(plan), Some(known)) => {
                self.next_look = Instant::now() + VERIFY;
                (known, plan)
            }
            (_, known) => match self.kernel.observe(&wanted.state).await {
                Ok(found) => {
                    self.last_look = Some(Instant::now());
                    self.next_look = Instant::now() + AUDIT;
                    let plan = found.plan_to(&wanted.state);
                    // After a failure nobody knows how much of the step was done, or who undid it.
                    if let Some(known) = known.filter(|_| progress.failures.is_empty()) {
                        let ours = known.plan_to(&wanted.state);
                        let mut drift = plan.iter().filter(|step| !ours.contains(step)).peekable();
                        progress.drift_repaired += u64::from(drift.peek().is_some());
                        if drift.peek().is_some() {
                            progress.repairs.clear();
                        }
                        for step in drift {
                            warn!(repair = %step, "somebody changed what is ours in the kernel");
                            if progress.repairs.len() < REPAIRS_TOLD {
                                progress.repairs.push(step.to_string());
                            }
                        }
                    }
                    (found, plan)
                }
                Err(error) => {
                    warn!(%error, "cannot see the kernel");
                    self.known = known;
                    let source = error.source.to_string();
                    progress.failures = BTreeMap::from([(format!("read {}", error.what), source)]);
                    self.finish(progress, 0);
                    return;
                }
            },
        };

        let known = self.known.insert(from);
        let mut failed = Failed::default();
        let mut done = 0;
        progress.failures.clear();
        for step in &plan {
            if failed.forbids(step) {
                debug!(%step, "postponed: something it relies on failed");
                continue;
            }
            match self.kernel.apply(step).await {
                Ok(()) => {
                    debug!(%step, "done");
                    known.apply(step);
                    done += 1;
                }
                Err(error) => {
                    failed.note(step);
                    progress.failures.insert(error.step, error.source.to_string());
                }
            }
            // Only the latest wanted state matters; what is left undone here is in the next plan.
            if self.wanted.has_changed().unwrap_or(false) {
                progress.steps += done;
                self.progress.send_if_modified(|published| {
                    published.drift_repaired = progress.drift_repaired;
                    published.repairs.clone_from(&progress.repairs);
                    published.failures.clone_from(&progress.failures);
                    published.steps = progress.steps;
                    false
                });
                return;
            }
        }
        self.finish(progress, done);
    }

    /// Publishes what a pass came to and says when the next one is due.
    fn finish(&mut self, mut progress: Progress, done: u64) {
        progress.passes += 1;
        progress.steps += done;
        if progress.failures.is_empty() {
            self.back_off = FIRST_RETRY;
            if done > 0 {
                progress.succeeded += 1;
                info!(steps = done, "the kernel is as wanted");
            }
        } else {
            progress.failed += 1;
            for (step, reason) in &progress.failures {
                if self.progress.borrow().failures.get(step) != Some(reason) {
                    warn!(%step, %reason, "step failed");
                }
            }
            self.next_look = Instant::now() + self.back_off;
            self.back_off = (self.back_off * 2).min(LAST_RETRY);
        }
        self.progress.send_if_modified(|published| {
            let news = *published != progress;
            *published = progress;
            news
        });
    }
}

/// Why a pass begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Wanted,
    /// A hint of drift, a retry or the audit.
    Look,
}

/// What the failover path may do without looking at the kernel first: it changes where flows go, and nothing that
/// could let one pass that the config denies.
fn moves_traffic_only(step: &Step) -> bool {
    match step {
        Step::SetRoute { .. } | Step::Revive(_) | Step::SetBuckets { .. } | Step::Bury(_) | Step::DeleteRoute(_) => {
            true
        }
        Step::CloseDoor
        | Step::SetLink { .. }
        | Step::SetSysctl { .. }
        | Step::AddAddress(_)
        | Step::AddRule(_)
        | Step::LoadRuleset { .. }
        | Step::SetFastPath(_)
        | Step::EndAudit(_)
        | Step::BeginAudit { .. }
        | Step::SetLateSysctl { .. }
        | Step::DeleteRule(_)
        | Step::DeleteAddress(_)
        | Step::DeleteLink(_) => false,
    }
}

/// What failed so far in a pass, and with it what may not follow.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts, each asked for by its name")]
struct Failed {
    /// The door could not be closed.
    door: bool,
    ruleset: bool,
    /// New flows still go where they went.
    traffic: bool,
    /// Something that others are to be deleted in favour of was not made.
    make: bool,
    links: BTreeSet<IfName>,
}

impl Failed {
    fn note(&mut self, step: &Step) {
        match step {
            Step::CloseDoor => self.door = true,
            Step::LoadRuleset { .. } => self.ruleset = true,
            Step::Revive(_) | Step::SetBuckets { .. } => self.traffic = true,
            Step::AddRule(_) => self.make = true,
            Step::SetLink { name, .. } => {
                self.links.insert(name.clone());
            }
            Step::AddAddress(address) => {
                self.links.insert(address.link.clone());
            }
            Step::SetRoute { hop, .. } => match link_of(hop) {
                Some(link) => {
                    self.links.insert(link.clone());
                }
                None => self.make = true,
            },
            // Others do not rely on these. A deletion that failed is tried again.
            Step::SetSysctl { .. }
            | Step::SetFastPath(_)
            | Step::EndAudit(_)
            | Step::BeginAudit { .. }
            | Step::Bury(_)
            | Step::SetLateSysctl { .. }
            | Step::DeleteRule(_)
            | Step::DeleteRoute(_)
            | Step::DeleteAddress(_)
            | Step::DeleteLink(_) => {}
        }
    }

    /// A missing port stops what concerns that port; an old ruleset in place of the wanted one stops everything
    /// that could let a packet pass, or take away what the old one relies on.
    fn forbids(&self, step: &Step) -> bool {
        if self.door {
            return true;
        }
        match step {
            Step::CloseDoor | Step::LoadRuleset { .. } | Step::AddRule(_) | Step::EndAudit(_) => false,
            Step::SetLink { name, link } => {
                self.links.contains(name) || link.master.as_ref().is_some_and(|master| self.links.contains(master))
            }
            Step::SetSysctl { name, .. } => name.split('/').any(|part| self.links.iter().any(|l| l.as_str() == part)),
            Step::AddAddress(address) => self.links.contains(&address.link),
            Step::SetRoute { hop, .. } => link_of(hop).is_some_and(|link| self.links.contains(link)),
            // The programs may deny what the old ruleset lets pass.
            Step::SetFastPath(_) | Step::BeginAudit { .. } | Step::Revive(_) | Step::SetLateSysctl { .. } => {
                self.ruleset
            }
            Step::SetBuckets { .. } | Step::Bury(_) => self.ruleset || self.traffic,
            Step::DeleteAddress(address) => self.ruleset || self.make || self.links.contains(&address.link),
            Step::DeleteRule(_) | Step::DeleteRoute(_) | Step::DeleteLink(_) => self.ruleset || self.make,
        }
    }
}

fn link_of(hop: &NextHop) -> Option<&IfName> {
    match hop {
        NextHop::Gateway { link, .. } | NextHop::Direct { link, .. } => Some(link),
        NextHop::Unreachable => None,
    }
}

/// Of a drift; a flushed table takes a hundred steps.
const REPAIRS_TOLD: usize = 5;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// From a hint to the look: changes of others come in groups too.
const SETTLE: Duration = Duration::from_millis(20);
/// Between two looks that hints ask for.
const LOOK_APART: Duration = Duration::from_millis(200);
/// From a change made without looking to the look that verifies it.
const VERIFY: Duration = Duration::from_millis(300);
/// Most sysctls and the maps of the fast path change without telling anybody, so we look without being told to.
const AUDIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
