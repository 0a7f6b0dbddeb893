//! Taking another config: at start, by SIGHUP, by `apply`. An apply is a transaction: it ends when the kernel has
//! the config, or when the kernel has the previous one again.
//!
//! ```text
//!   text ──Preparing: parse, asserts──▶ Trying ──kernel has it──▶ kept, doomed flows ended, answered
//!                              │ a step keeps failing that did not fail before, or it takes too long
//!                              ▼
//!                           Returning ──kernel has the previous one──▶ refused
//! ```
//!
//! Where there is no previous config, the router closes: everything is denied, as before the first apply. What is
//! loaded at start is no transaction: the router keeps trying it.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use mwan::Router;
use mwan::event::Event;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::confirm::{Told, Waiting};
use super::site::{From, Loaded};
use super::{Accepted, Core, Look, Progress, answer};
use crate::ask::{ApplyReport, Author, How, PlanReport, Refusal, aside};
use crate::happening::What;
use crate::history::{Outcome, Past};

/// The apply under way.
#[derive(Debug)]
pub(super) struct Applying {
    pub(super) stage: Stage,
    /// The kernel is there when it reports this serial, or a later one.
    pub(super) serial: u64,
    pub(super) until: Instant,
    pub(super) reply: Reply,
}

/// Nobody waits for a SIGHUP.
pub(super) type Reply = Option<oneshot::Sender<Result<ApplyReport, Refusal>>>;

#[derive(Debug)]
pub(super) enum Stage {
    /// Its text is parsed, or its file is on the way to the disk.
    Preparing,
    Trying {
        order: Origin,
        word: Word,
        /// `None`: everything was denied.
        previous: Option<Accepted>,
        /// What failed before already: not the fault of this config.
        before: BTreeSet<String>,
        steps: u64,
    },
    Returning {
        author: Author,
        refusal: Refusal,
    },
}

/// A config that the kernel gets however long it takes: that of the start, and the previous one after a rollback.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) serial: u64,
    pub(super) word: Word,
    pub(super) told: Vec<Told>,
    pub(super) since: Instant,
}

/// A config that shall take effect.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) accepted: Accepted,
    pub(super) author: Author,
    pub(super) message: Option<String>,
    pub(super) past: Option<Past>,
}

/// What of an order is told in the history, and the history that came with it.
#[derive(Debug)]
pub(super) struct Origin {
    author: Author,
    message: Option<String>,
    past: Option<Past>,
}

/// What a config is once the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// The last word: the operator's file, or an apply.
    Last,
    /// The last word of before.
    Kept,
    /// None before it is confirmed.
    Trial,
    /// What a rollback has made the last word.
    Back,
}

impl Core {
    /// The first config.
    pub(super) fn start(&mut self) {
        let Loaded { accepted, trouble, pending, rolled_back } = self.site.load();
        if let Some(trouble) = &trouble {
            error!("{trouble}");
            self.happenings.tell(What::refused(&Author::start(), &Refusal::new("config", trouble)));
        }
        self.trouble = trouble;
        let waiting = pending.map(|(pending, previous)| Waiting::new(pending, previous, None));
        self.resume(waiting, rolled_back.as_deref());
        match accepted {
            Some((accepted, from)) => {
                info!(?from, digest = %accepted.config.digest, "starting");
                for warning in &accepted.warnings {
                    warn!(%warning, "in the site file");
                }
                self.take(accepted);
                let word = match from {
                    From::File => Word::Last,
                    From::Running => Word::Kept,
                    From::Pending => Word::Trial,
                };
                self.starting = Some(Starting { serial: self.serial, word, told: Vec::new(), since: Instant::now() });
            }
            // Closed, and reachable over the API.
            None => self.watchdog.ready(),
        }
    }

    pub(super) fn reload(&mut self) {
        if self.applying.is_some() {
            return warn!("an apply is under way: SIGHUP ignored");
        }
        if let Some(waiting) = &self.waiting {
            return warn!("SIGHUP ignored: {}", waiting.in_the_way());
        }
        let site = self.site.clone();
        let read = aside(move || site.operators().map_err(|trouble| Refusal::new("config", trouble)));
        self.alone(read, |core, read| match read {
            Ok(accepted) => {
                let order = Order { accepted, author: Author::hang_up(), message: None, past: None };
                core.begin(order, Word::Last, None);
            }
            Err(refusal) => {
                error!("not reloaded: {refusal}");
                core.happenings.tell(What::refused(&Author::hang_up(), &refusal));
            }
        });
    }

    /// Goes on with `then` once `work` is done; nobody else may begin anything meanwhile.
    pub(super) fn alone<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = T> + Send + 'static,
        then: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        self.applying = Some(Applying::preparing());
        self.then(work, move |core, done| {
            core.applying = None;
            then(core, done);
        });
    }

    pub(super) fn apply(
        &mut self,
        text: String,
        how: How,
        author: Author,
        past: Option<Past>,
        reply: oneshot::Sender<Result<ApplyReport, Refusal>>,
    ) {
        if self.applying.is_some() {
            return answer(reply, Err(Refusal::new("busy", "another apply is under way")));
        }
        if self.starting.as_ref().is_some_and(|starting| !starting.told.is_empty()) {
            return answer(reply, Err(Refusal::new("busy", "a rollback is under way")));
        }
        if let Some(waiting) = &self.waiting {
            return answer(reply, Err(waiting.in_the_way()));
        }
        self.alone(aside(move || Accepted::new("site.toml", &text)), move |core, accepted| match accepted {
            Ok(accepted) => core.apply_accepted(accepted, how, author, past, reply),
            Err(refusal) => {
                core.happenings.tell(What::refused(&author, &refusal));
                answer(reply, Err(refusal));
            }
        });
    }

    fn apply_accepted(
        &mut self,
        accepted: Accepted,
        how: How,
        author: Author,
        past: Option<Past>,
        reply: oneshot::Sender<Result<ApplyReport, Refusal>>,
    ) {
        let How { message, confirm_milliseconds, guard_milliseconds, force, session } = how;
        let cut = session.and_then(|session| {
            let old = self.effective.as_deref().filter(|_| self.accepted.is_some());
            session.cut_by(old, &self.recorder.router().with_leases(&accepted.config))
        });
        if let Some(cut) = cut
            && !force
            && confirm_milliseconds.is_none()
        {
            let text = format!(
                "{cut}\nnothing was changed; `--confirm 2m` tries it and takes it back unless you confirm it in time, \
                 `--force` does it anyway"
            );
            let refusal = Refusal::new("cuts-session", text);
            self.happenings.tell(What::refused(&author, &refusal));
            return answer(reply, Err(refusal));
        }
        let order = Order { accepted, author, message, past };
        let refuse = |text: &str, reply| answer(reply, Err(Refusal::new("window", text)));
        match [confirm_milliseconds, guard_milliseconds].map(|span| span.map(Duration::from_millis)) {
            [None, None] => self.begin(order, Word::Last, Some(reply)),
            [Some(window), None] if WINDOWS.contains(&window) => self.prepare(order, window, None, Some(reply)),
            [None, Some(window)] if GUARDS.contains(&window) => match self.guard(window) {
                Ok(guard) => self.prepare(order, window, Some(guard), Some(reply)),
                Err(refusal) => answer(reply, Err(refusal)),
            },
            [Some(_), None] => refuse("the time to confirm is one second to one day", reply),
            [None, Some(_)] => refuse("the time of a guard is ten seconds to one hour", reply),
            [Some(_), Some(_)] => {
                refuse(
                    "a change is confirmed by a person (`--confirm`) or by measurement (`--guard`), not by both",
                    reply,
                );
            }
        }
    }

    /// What would happen, without anything happening.
    pub(super) fn plan(&mut self, text: String, reply: oneshot::Sender<Result<PlanReport, Refusal>>) {
        let now = self.now();
        let mut other: Router = self.recorder.router().clone();
        let compiled = aside(move || {
            let accepted = Accepted::new("site.toml", &text)?;
            drop(other.handle(&Event::Config(Arc::clone(&accepted.config)), now));
            let known = other.wanted().zip(other.config().cloned());
            let (want, config) = known.ok_or_else(|| Refusal::new("busy", "the links are not known yet"))?;
            Ok((accepted.warnings, config, want))
        });
        let looks = self.reconciler.looks.clone();
        let flows = self.flows.clone();
        self.tasks.spawn(async move {
            let (seen_tx, seen) = oneshot::channel();
            let gone = || Refusal::new("kernel", "the reconciler ended");
            let report = async {
                let (warnings, config, want) = compiled.await?;
                let look = Look { want: Arc::clone(&want), reply: seen_tx };
                looks.send(look).await.map_err(|_gone| gone())?;
                let found = seen.await.map_err(|_gone| gone())?;
                let found = found.map_err(|error| Refusal::new("kernel", error.to_string()))?;
                let doomed = flows.count_doomed(config).await;
                let flows_that_die =
                    doomed.map_err(|error| Refusal::new("kernel", format!("cannot read flows: {error}")))?;
                let steps = aside(move || Ok(found.plan_to(&want))).await?;
                Ok(PlanReport { steps, flows_that_die, warnings })
            };
            answer(reply, report.await);
        });
    }

    pub(super) fn begin(&mut self, order: Order, word: Word, reply: Reply) {
        let (before, steps) = {
            let progress = self.reconciler.progress.borrow();
            (progress.failures.keys().cloned().collect(), progress.steps)
        };
        let previous = self.accepted.clone();
        self.starting = None;
        self.rolled_back = None;
        let Order { accepted, author, message, past } = order;
        self.take(accepted);
        let stage = Stage::Trying { order: Origin { author, message, past }, word, previous, before, steps };
        let patience = match &self.waiting {
            Some(waiting) => PATIENCE.min(waiting.pending.left()),
            None => PATIENCE,
        };
        self.applying = Some(Applying { stage, serial: self.serial, until: Instant::now() + patience, reply });
        // The same text again wants nothing of the kernel.
        let progress = self.reconciler.progress.borrow().clone();
        self.progressed(&progress);
    }

    /// Puts a config in force.
    pub(super) fn take(&mut self, accepted: Accepted) {
        self.samples.begin_anew();
        let event = Event::Config(Arc::clone(&accepted.config));
        self.accepted = Some(accepted);
        self.event(&event);
    }

    /// The reconciler finished a pass.
    pub(super) fn progressed(&mut self, progress: &Progress) {
        if progress.passes > 0 {
            self.watchdog.ready();
            if !std::mem::replace(&mut self.in_force, true) {
                self.event(&Event::InForce);
            }
        }
        self.end_doomed();
        if progress.drift_repaired > self.repaired {
            self.repaired = progress.drift_repaired;
            self.happenings.tell(What::Drift { repairs: progress.repairs.clone() });
        }
        let started = |starting: &mut Starting| progress.serial >= starting.serial && progress.passes > 0;
        if progress.failures.is_empty()
            && let Some(Starting { word, told, .. }) = self.starting.take_if(started)
        {
            let order = match &self.waiting {
                Some(Waiting { pending, .. }) => {
                    Origin { author: pending.author.clone(), message: pending.message.clone(), past: None }
                }
                None => Origin { author: Author::start(), message: None, past: None },
            };
            self.reached(0, order, word, told);
        }
        let Some(applying) = self.applying.take() else { return };
        if progress.serial < applying.serial || progress.passes == 0 {
            self.applying = Some(applying);
            return;
        }
        let Applying { stage, serial, until, reply } = applying;
        match stage {
            Stage::Preparing => self.applying = Some(Applying { stage, serial, until, reply }),
            Stage::Trying { order, word, previous, before, steps } => {
                let failing: Vec<_> = progress.failures.iter().filter(|(step, _)| !before.contains(*step)).collect();
                if failing.is_empty() {
                    let steps = usize::try_from(progress.steps - steps).unwrap_or(usize::MAX);
                    let told = reply.map(|reply| Told { reply, refusal: None });
                    self.reached(steps, order, word, told.into_iter().collect());
                } else if progress.passes >= TRIES {
                    let told: Vec<_> = failing.iter().map(|(step, reason)| format!("{step}: {reason}")).collect();
                    let refusal = Refusal::new("kernel", format!("the kernel refused it:\n{}", told.join("\n")));
                    self.go_back(previous, order.author, refusal, reply);
                } else {
                    let stage = Stage::Trying { order, word, previous, before, steps };
                    self.applying = Some(Applying { stage, serial, until, reply });
                }
            }
            Stage::Returning { author, refusal } => self.refused(&author, &refusal, reply),
        }
    }

    /// Called once a second.
    pub(super) fn give_up_late_apply(&mut self) {
        match self.applying.take() {
            Some(applying) if applying.until <= Instant::now() => match applying.stage {
                Stage::Preparing => self.applying = Some(applying),
                Stage::Trying { order, previous, .. } => {
                    let refusal = Refusal::new("kernel", "the kernel did not have it in time");
                    self.go_back(previous, order.author, refusal, applying.reply);
                }
                Stage::Returning { author, refusal } => self.refused(&author, &refusal, applying.reply),
            },
            applying => self.applying = applying,
        }
    }

    fn go_back(&mut self, previous: Option<Accepted>, author: Author, mut refusal: Refusal, reply: Reply) {
        self.refuse_trial(&refusal);
        if let Some(previous) = previous {
            warn!(digest = %previous.config.digest, "going back to the previous configuration");
            self.take(previous);
            refusal.message.push_str("\nthe previous configuration is in force");
        } else {
            self.close();
            refusal.message.push_str("\nthere is no previous configuration: everything is denied");
            self.trouble = Some(refusal.message.clone());
        }
        let stage = Stage::Returning { author, refusal };
        self.applying = Some(Applying { stage, serial: self.serial, until: Instant::now() + PATIENCE, reply });
    }

    /// A site with nothing in it lets nothing through.
    pub(super) fn close(&mut self) {
        #[expect(clippy::expect_used, reason = "a constant, and a test parses it")]
        let nothing = Accepted::new("nothing", NOTHING).expect("a site with nothing in it is a site");
        warn!("closing: there is no previous configuration to go back to");
        self.take(nothing);
        self.accepted = None;
        self.config.send_replace(None);
    }

    /// The kernel has it: keep the text, end what it denies or leaves without a line, answer.
    fn reached(&mut self, steps: usize, order: Origin, word: Word, mut told: Vec<Told>) {
        if word == Word::Last {
            self.trouble = None;
        }
        let Some(accepted) = self.accepted.clone() else {
            // Closed: everything is denied.
            let report = ApplyReport { steps, ..ApplyReport::default() };
            return told.into_iter().for_each(|told| told.answer(&report));
        };
        let left = self.waiting.as_ref().filter(|_| word == Word::Trial).map(|waiting| waiting.pending.left());
        let confirm_seconds =
            left.map(|left| left.as_millis().div_ceil(1000)).and_then(|left| u64::try_from(left).ok());
        // Of a guard it is answered what it found.
        let left = left.filter(|_| !self.is_guarded());
        let confirm_milliseconds = left.and_then(|left| u64::try_from(left.as_millis()).ok());
        let (site, flows) = (self.site.clone(), self.flows.clone());
        let effective = self.recorder.router().with_leases(&accepted.config);
        let (text, asked) = (Arc::clone(&accepted.text), !told.is_empty());
        let (author, message) = (order.author.to_string(), order.message.clone());
        let happenings = self.happenings.clone();
        let kept = self.disk.run(move || {
            if word == Word::Last {
                site.keep(&text)?;
            }
            let (history, Origin { author, message, past }) = (site.history(), order);
            // Before this config is numbered: it follows what it came with.
            let inherited = past.map(|past| history.inherit(&past));
            let outcome = if word == Word::Trial { Outcome::Unconfirmed } else { Outcome::Applied };
            let number = match word {
                Word::Last | Word::Trial if asked => Some(history.record(&text, author, message, outcome)?),
                Word::Last | Word::Kept | Word::Trial => Some(history.record_once(&text, author, outcome)?),
                Word::Back => None,
            };
            Ok((number, inherited, site.unlike(&text).filter(|_| word != Word::Trial)))
        });
        let report = async move {
            let mut report = ApplyReport {
                digest: accepted.config.digest.clone(),
                steps,
                warnings: accepted.warnings,
                confirm_milliseconds,
                ..ApplyReport::default()
            };
            match kept.await {
                Ok((number, inherited, unlike)) => {
                    report.number = number;
                    match inherited.transpose() {
                        Ok(inherited) => report.inherited = inherited,
                        Err(error) => {
                            report.warnings.push(format!("the history of the bundle could not be kept: {error}"));
                        }
                    }
                    report.warnings.extend(unlike);
                }
                Err(error) => {
                    report.warnings.push(format!("it is in force, and could not be kept for the next start: {error}"));
                }
            }
            match flows.end_doomed(effective).await {
                Ok(ended) => report.flows_ended = ended,
                Err(error) => report.warnings.push(format!("flows that it denies may live on: {error}")),
            }
            let ApplyReport { digest, steps, flows_ended, warnings, .. } = &report;
            info!(%digest, steps, flows_ended, ?warnings, "applied");
            // That a change was taken back is told when it is decided.
            if word != Word::Back {
                happenings.tell(What::Applied {
                    digest: digest.clone(),
                    history_number: report.number,
                    author,
                    message,
                    confirm_seconds,
                    flows_ended: *flows_ended,
                });
            }
            report
        };
        if word == Word::Trial && self.is_guarded() {
            self.begin_guard(std::mem::take(&mut told));
            self.then(report, |core, report| {
                if let Some(Waiting { guard: Some(guard), .. }) = &mut core.waiting {
                    guard.report = Some(report);
                }
            });
        } else {
            self.tasks.spawn(async move {
                let report = report.await;
                for told in told {
                    told.answer(&report);
                }
            });
        }
    }

    pub(super) fn refused(&self, author: &Author, refusal: &Refusal, reply: Reply) {
        error!(reason = %refusal, "not applied");
        self.happenings.tell(What::refused(author, refusal));
        if let Some(reply) = reply {
            answer(reply, Err(refusal.clone()));
        }
    }
}

impl Told {
    pub(super) fn answer(self, report: &ApplyReport) {
        answer(self.reply, self.refusal.map_or_else(|| Ok(report.clone()), Err));
    }
}

/// Passes in which a step may fail before the kernel is taken to refuse it: a link may need a moment to appear.
const TRIES: u32 = 3;
/// How long an apply may take; the whole site takes a second.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
const GUARDS: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_hours(1);
const WINDOWS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
pub(super) const NOTHING: &str = "[site]\nname = \"nothing\"\n";
