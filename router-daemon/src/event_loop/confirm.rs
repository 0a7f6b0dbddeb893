//! A change that is taken back unless it is confirmed in time.
//!
//! ```text
//!   apply --confirm ──pending.json──▶ Trying (apply.rs) ──kernel has it──▶ live ──confirm──▶ the last word
//!                                       │ refused                           │ time is up, or `rollback`
//!                                       ▼                                   ▼
//!                                     the previous config is the last word, on the disk and then in the kernel
//! ```
//!
//! With `--guard` it is no person who confirms, see `guarding.rs`.
//!
//! What is decided is on the disk first, so that a daemon that dies at any point finishes it at its next start.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::apply::{Applying, Order, PATIENCE, Reply, Stage, Starting, Word};
use super::guarding::Guard;
use super::pending::{Clock, Ended, Pending};
use super::{Accepted, Core, answer};
use crate::ask::{ApplyReport, Author, PendingChange, Refusal};
use crate::happening::What;

/// The change that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) pending: Pending,
    pub(super) previous: Option<Accepted>,
    /// Its confirmation is on its way to the disk.
    pub(super) confirming: bool,
    /// It is confirmed by measurement.
    pub(super) guard: Option<Guard>,
}

/// Why a change was taken back: the label of the metric, and the whole story.
#[derive(Debug)]
pub(super) struct Because {
    pub(super) word: &'static str,
    pub(super) why: String,
}

/// Somebody who waits for a rollback to be in the kernel, and what he is told when it is.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) reply: oneshot::Sender<Result<ApplyReport, Refusal>>,
    /// `None`: that is what he wanted.
    pub(super) refusal: Option<Refusal>,
}

impl Waiting {
    pub(super) fn new(pending: Pending, previous: Option<Accepted>, guard: Option<Guard>) -> Self {
        Self { pending, previous, confirming: false, guard }
    }

    pub(super) fn told(&self) -> PendingChange {
        let Pending { author, message, guard, window, .. } = &self.pending;
        PendingChange {
            author: author.clone(),
            message: message.clone(),
            remaining_seconds: self.pending.left().as_secs(),
            window_seconds: window.as_secs(),
            guard: *guard,
        }
    }

    /// What somebody is told who wants something else meanwhile.
    pub(super) fn in_the_way(&self) -> Refusal {
        let Pending { author, guard, .. } = &self.pending;
        let what = if *guard { "is measured" } else { "waits for its confirmation" };
        let text = format!(
            "a change by {author} {what}, {} s more: `routerctl confirm` keeps it, `routerctl rollback` takes it back; \
             then try again",
            self.pending.left().as_secs()
        );
        Refusal::new("pending", text)
    }
}

impl Core {
    /// Puts the change on the disk, then in force.
    pub(super) fn prepare(&mut self, order: Order, window: Duration, guard: Option<Guard>, reply: Reply) {
        let begun = match Clock::now() {
            Ok(now) => now,
            Err(error) => {
                let text = format!("the clocks cannot be read, so nobody could tell when its time is up: {error}");
                return self.refused(&order.author, &Refusal::new("internal", text), reply);
            }
        };
        let pending = Pending {
            text: order.accepted.text.to_string(),
            previous: self.accepted.as_ref().map(|accepted| accepted.text.to_string()),
            author: order.author.clone(),
            message: order.message.clone(),
            guard: guard.is_some(),
            begun,
            window,
            ended: None,
        };
        let (site, kept) = (self.site.clone(), pending.clone());
        let written = self.disk.run(move || site.begin(&kept));
        self.alone(written, move |core, written| match written {
            Ok(()) => {
                core.waiting = Some(Waiting::new(pending, core.accepted.clone(), guard));
                core.begin(order, Word::Trial, reply);
            }
            Err(error) => {
                let text = format!("it could not be kept that it waits, so it was not begun: {error}");
                core.refused(&order.author, &Refusal::new("internal", text), reply);
            }
        });
    }

    pub(super) fn confirm(&mut self, author: &Author, reply: oneshot::Sender<Result<ApplyReport, Refusal>>) {
        let busy = self.applying.is_some() || self.starting.is_some();
        let Some(waiting) = &mut self.waiting else {
            return answer(reply, Err(Refusal::new("nothing-pending", "nothing waits to be confirmed")));
        };
        if busy || waiting.confirming {
            return answer(reply, Err(Refusal::new("busy", "the kernel does not have the change yet; try again")));
        }
        self.settle(author.to_string(), Some(reply));
    }

    /// Makes the change the last word. Without `reply` it is the guard who wants it.
    pub(super) fn settle(&mut self, by: String, reply: Reply) {
        let Some(waiting) = &mut self.waiting else { return };
        waiting.confirming = true;
        let (site, pending, ended_by) = (self.site.clone(), waiting.pending.clone(), by.clone());
        let digest = crate::history::digest(&pending.text);
        let ended = self.disk.run(move || site.end(&pending, Ended::Confirmed { by: ended_by }));
        self.then(ended, move |core, ended| match (ended, reply) {
            (Ok(trouble), reply) => {
                info!(%by, %digest, "confirmed");
                let author = if reply.is_some() { by.clone() } else { format!("a guard ({by})") };
                core.happenings.tell(What::Confirmed { digest: digest.clone(), author });
                let guard = core.waiting.take().and_then(|waiting| waiting.guard);
                let warnings: Vec<_> = trouble.into_iter().collect();
                if let Some(Guard { report, told, .. }) = guard {
                    let by = if reply.is_some() { format!("{by} confirmed it") } else { by };
                    let mut report = ApplyReport { measured: Some(by), ..report.unwrap_or_default() };
                    report.warnings.extend(warnings.iter().cloned());
                    for told in told {
                        told.answer(&report);
                    }
                }
                if let Some(reply) = reply {
                    answer(reply, Ok(ApplyReport { digest, warnings, ..ApplyReport::default() }));
                }
            }
            (Err(error), Some(reply)) => {
                if let Some(waiting) = &mut core.waiting {
                    waiting.confirming = false;
                }
                let text = format!("the confirmation could not be kept, the window goes on: {error}");
                answer(reply, Err(Refusal::new("internal", text)));
            }
            (Err(error), None) => {
                let why = format!("{by}, which could not be kept: {error}");
                core.roll_back(Because { word: "guard", why }, Vec::new());
            }
        });
    }

    /// An operator's `rollback` without a number.
    pub(super) fn take_back(&mut self, author: &Author, reply: oneshot::Sender<Result<ApplyReport, Refusal>>) {
        let Some(waiting) = &self.waiting else {
            let text = "nothing waits to be confirmed; `routerctl history` tells the numbers that `routerctl rollback \
                        N` goes back to";
            return answer(reply, Err(Refusal::new("nothing-pending", text)));
        };
        if self.applying.is_some() || waiting.confirming {
            return answer(reply, Err(Refusal::new("busy", "the change is on its way to the kernel; try again")));
        }
        let because = Because { word: "operator", why: format!("{author} took it back") };
        self.roll_back(because, vec![Told { reply, refusal: None }]);
    }

    /// Called once a second.
    pub(super) fn watch_window(&mut self) {
        let Some(waiting) = &self.waiting else { return };
        let guarded = waiting.guard.is_some();
        if !guarded && !waiting.confirming && self.applying.is_none() && waiting.pending.left().is_zero() {
            let window = humantime::format_duration(waiting.pending.window);
            let because = Because { word: "unconfirmed", why: format!("nobody confirmed it within {window}") };
            self.roll_back(because, Vec::new());
        }
        if let Some(starting) = &mut self.starting
            && starting.since.elapsed() > PATIENCE
            && !starting.told.is_empty()
        {
            let progress = self.reconciler.progress.borrow();
            let failing: Vec<_> = progress.failures.iter().map(|(step, why)| format!("\n{step}: {why}")).collect();
            let text = format!(
                "the previous configuration is the last word, and the kernel does not have it yet; routerd keeps \
                 trying:{}",
                failing.concat()
            );
            error!("{text}");
            for Told { reply, .. } in starting.told.drain(..) {
                answer(reply, Err(Refusal::new("kernel", text.clone())));
            }
        }
    }

    /// Brings the previous config back, and goes on trying until the kernel has it.
    pub(super) fn roll_back(&mut self, because: Because, mut told: Vec<Told>) {
        let Some(Waiting { pending, previous, guard, .. }) = self.waiting.take() else { return };
        warn!(why = because.why, "rolling back to the previous configuration");
        let why = format!("rolled back: {}", because.why);
        for waits in guard.into_iter().flat_map(|guard| guard.told) {
            let text = format!("{why}\nthe previous configuration is in force");
            told.push(Told { refusal: Some(Refusal::new("guard", text)), ..waits });
        }
        self.rolled_back = (because.word != "operator").then(|| because.why.clone());
        self.recorder.remark(why);
        self.decide_against(pending, because);
        if let Some(previous) = previous {
            self.take(previous);
        } else {
            self.close();
            self.trouble = Some("there is no previous configuration to go back to: everything is denied".to_owned());
        }
        self.starting = Some(Starting { serial: self.serial, word: Word::Back, told, since: Instant::now() });
        let progress = self.reconciler.progress.borrow().clone();
        self.progressed(&progress);
    }

    /// On the disk, the previous config becomes the last word.
    pub(super) fn decide_against(&mut self, pending: Pending, because: Because) {
        let Because { word, why } = because;
        *self.rollbacks.entry(word.to_owned()).or_default() += 1;
        self.happenings.tell(What::RolledBack { cause: word.to_owned(), reason: why.clone() });
        let site = self.site.clone();
        let ended = self.disk.run(move || site.end(&pending, Ended::RolledBack { why }));
        self.then(ended, |core, ended| {
            if let Some(error) = ended.unwrap_or_else(|error| Some(error.to_string())) {
                error!(%error, "the rollback could not be kept");
                core.trouble = Some(format!("the last change was rolled back, which could not be kept: {error}"));
            }
        });
    }

    /// At a start: a change that waited is in force, or was taken back.
    pub(super) fn resume(&mut self, waiting: Option<Waiting>, rolled_back: Option<&str>) {
        if let Some(why) = rolled_back {
            warn!(why, "the last change was rolled back");
            *self.rollbacks.entry("restart".to_owned()).or_default() += 1;
            self.happenings.tell(What::RolledBack { cause: "restart".to_owned(), reason: why.to_owned() });
            self.rolled_back = Some(why.to_owned());
        }
        if let Some(waiting) = &waiting {
            let left = waiting.pending.left().as_secs();
            warn!(author = %waiting.pending.author, seconds = left, "a change waits for its confirmation");
        }
        self.waiting = waiting;
    }

    /// The stage of an apply whose kernel refuses it.
    pub(super) fn refuse_trial(&mut self, refused: &Refusal) {
        if let Some(Waiting { pending, .. }) = self.waiting.take() {
            self.decide_against(pending, Because { word: "kernel", why: refused.message.clone() });
        }
    }
}

impl Applying {
    /// Nothing has been done to the kernel yet.
    pub(super) fn preparing() -> Self {
        Self { stage: Stage::Preparing, serial: u64::MAX, until: Instant::now() + PATIENCE, reply: None }
    }
}
