//! Taking another config: at start, by SIGHUP, by `apply`. An apply is a transaction: it ends when the kernel has
//! the config, or when the kernel has the previous one again.
//!
//! ```text
//!   text ──parse, asserts──▶ Trying ──kernel has it──▶ kept, doomed flows ended, answered
//!                              │ a step keeps failing that did not fail before, or it takes too long
//!                              ▼
//!                           Returning ──kernel has the previous one──▶ refused
//! ```
//!
//! Where there is no previous config, the router closes: everything is denied, as before the first apply. What is
//! loaded at start is no transaction: the router keeps trying it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mwan::Router;
use mwan::event::Event;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::site::{From, Loaded};
use super::{Accepted, Core, Look, Progress, answer, refusal};
use crate::ask::{ApplyReport, PlanReport, Refusal};

/// The apply under way.
#[derive(Debug)]
pub(super) struct Applying {
    stage: Stage,
    /// The kernel is there when it reports this serial, or a later one.
    serial: u64,
    until: Instant,
    reply: Reply,
}

/// Nobody waits for a SIGHUP.
type Reply = Option<oneshot::Sender<Result<ApplyReport, Refusal>>>;

#[derive(Debug)]
enum Stage {
    Trying {
        /// `None`: everything was denied.
        previous: Option<Accepted>,
        /// What failed before already: not the fault of this config.
        before: BTreeSet<String>,
        steps: u64,
    },
    Returning {
        refusal: Refusal,
    },
}

/// The config that was loaded at start, until the kernel has it.
#[derive(Debug)]
pub(super) struct Starting {
    serial: u64,
    from: From,
}

impl Core {
    /// The first config.
    pub(super) fn start(&mut self) {
        let Loaded { accepted, trouble } = self.site.load();
        if let Some(trouble) = &trouble {
            error!("{trouble}");
        }
        self.trouble = trouble;
        match accepted {
            Some((accepted, from)) => {
                info!(?from, digest = %accepted.config.digest, "starting");
                for warning in &accepted.warnings {
                    warn!(%warning, "in the site file");
                }
                self.take(accepted);
                self.starting = Some(Starting { serial: self.serial, from });
            }
            // Closed, and reachable over the API.
            None => self.watchdog.ready(),
        }
    }

    pub(super) fn reload(&mut self) {
        match self.site.operators() {
            Ok(_) if self.applying.is_some() => warn!("an apply is under way: SIGHUP ignored"),
            Ok(accepted) => self.begin(accepted, None),
            Err(trouble) => error!("not reloaded: {trouble}"),
        }
    }

    pub(super) fn apply(&mut self, text: &str, reply: oneshot::Sender<Result<ApplyReport, Refusal>>) {
        if self.applying.is_some() {
            return answer(reply, Err(refusal("busy", "another apply is under way")));
        }
        match Accepted::new("site.toml", text) {
            Ok(accepted) => self.begin(accepted, Some(reply)),
            Err(refusal) => answer(reply, Err(refusal)),
        }
    }

    /// What would happen, without anything happening.
    pub(super) fn plan(&mut self, text: &str, reply: oneshot::Sender<Result<PlanReport, Refusal>>) {
        let accepted = match Accepted::new("site.toml", text) {
            Ok(accepted) => accepted,
            Err(refusal) => return answer(reply, Err(refusal)),
        };
        let now = self.now();
        let mut other: Router = self.recorder.router().clone();
        drop(other.handle(&Event::Config(Arc::clone(&accepted.config)), now));
        let Some(want) = other.wanted() else {
            return answer(reply, Err(refusal("busy", "the links are not known yet")));
        };
        let looks = self.reconciler.looks.clone();
        let flows = self.flows.clone();
        self.tasks.spawn(async move {
            let (seen_tx, seen) = oneshot::channel();
            let look = Look { want: Arc::clone(&want), reply: seen_tx };
            let gone = || refusal("kernel", "the reconciler ended");
            let report = async {
                looks.send(look).await.map_err(|_gone| gone())?;
                let found = seen.await.map_err(|_gone| gone())?;
                let found = found.map_err(|error| refusal("kernel", error.to_string()))?;
                let doomed = flows.count_doomed(accepted.config).await;
                let flows_that_die =
                    doomed.map_err(|error| refusal("kernel", format!("cannot read flows: {error}")))?;
                Ok(PlanReport { steps: found.plan_to(&want), flows_that_die, warnings: accepted.warnings })
            };
            answer(reply, report.await);
        });
    }

    fn begin(&mut self, accepted: Accepted, reply: Reply) {
        let (before, steps) = {
            let progress = self.reconciler.progress.borrow();
            (progress.failures.keys().cloned().collect(), progress.steps)
        };
        let previous = self.accepted.clone();
        self.starting = None;
        self.take(accepted);
        let stage = Stage::Trying { previous, before, steps };
        self.applying = Some(Applying { stage, serial: self.serial, until: Instant::now() + PATIENCE, reply });
        // The same text again wants nothing of the kernel.
        let progress = self.reconciler.progress.borrow().clone();
        self.progressed(&progress);
    }

    /// Puts a config in force.
    fn take(&mut self, accepted: Accepted) {
        self.prober.configure(&accepted.config);
        self.config.send_replace(Some(Arc::clone(&accepted.config)));
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
        let started = |starting: &mut Starting| progress.serial >= starting.serial && progress.passes > 0;
        if progress.failures.is_empty()
            && let Some(Starting { from, .. }) = self.starting.take_if(started)
        {
            self.reached(0, from, None);
        }
        let Some(applying) = self.applying.take() else { return };
        if progress.serial < applying.serial || progress.passes == 0 {
            self.applying = Some(applying);
            return;
        }
        let Applying { stage, serial, until, reply } = applying;
        match stage {
            Stage::Trying { previous, before, steps } => {
                let failing: Vec<_> = progress.failures.iter().filter(|(step, _)| !before.contains(*step)).collect();
                if failing.is_empty() {
                    let steps = usize::try_from(progress.steps - steps).unwrap_or(usize::MAX);
                    self.reached(steps, From::File, reply);
                } else if progress.passes >= TRIES {
                    let told: Vec<_> = failing.iter().map(|(step, reason)| format!("{step}: {reason}")).collect();
                    let refusal = refusal("kernel", format!("the kernel refused it:\n{}", told.join("\n")));
                    self.go_back(previous, refusal, reply);
                } else {
                    let stage = Stage::Trying { previous, before, steps };
                    self.applying = Some(Applying { stage, serial, until, reply });
                }
            }
            Stage::Returning { refusal } => refused(refusal, reply),
        }
    }

    /// Called once a second.
    pub(super) fn give_up_late_apply(&mut self) {
        match self.applying.take() {
            Some(applying) if applying.until <= Instant::now() => match applying.stage {
                Stage::Trying { previous, .. } => {
                    let refusal = refusal("kernel", format!("the kernel did not have it after {PATIENCE:?}"));
                    self.go_back(previous, refusal, applying.reply);
                }
                Stage::Returning { refusal } => refused(refusal, applying.reply),
            },
            applying => self.applying = applying,
        }
    }

    fn go_back(&mut self, previous: Option<Accepted>, mut refusal: Refusal, reply: Reply) {
        if let Some(previous) = previous {
            warn!(digest = %previous.config.digest, "going back to the previous configuration");
            self.take(previous);
            refusal.message.push_str("\nthe previous configuration is in force");
        } else {
            self.close();
            refusal.message.push_str("\nthere is no previous configuration: everything is denied");
            self.trouble = Some(refusal.message.clone());
        }
        let stage = Stage::Returning { refusal };
        self.applying = Some(Applying { stage, serial: self.serial, until: Instant::now() + PATIENCE, reply });
    }

    /// A site with nothing in it lets nothing through.
    fn close(&mut self) {
        #[expect(clippy::expect_used, reason = "a constant, and a test parses it")]
        let nothing = Accepted::new("nothing", NOTHING).expect("a site with nothing in it is a site");
        warn!("closing: there is no previous configuration to go back to");
        self.take(nothing);
        self.accepted = None;
        self.config.send_replace(None);
    }

    /// The kernel has it: keep the text, end what it denies or leaves without a line, answer.
    fn reached(&mut self, steps: usize, from: From, reply: Reply) {
        if from == From::File {
            self.trouble = None;
        }
        let Some(accepted) = self.accepted.clone() else { return };
        let (site, flows) = (self.site.clone(), self.flows.clone());
        self.tasks.spawn(async move {
            let mut report = ApplyReport {
                digest: accepted.config.digest.clone(),
                steps,
                flows_ended: 0,
                warnings: accepted.warnings,
            };
            let text = accepted.text;
            let keep = move || {
                if from == From::File {
                    site.keep(&text)?;
                }
                Ok(site.unlike(&text))
            };
            match tokio::task::spawn_blocking(keep).await.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(unlike) => report.warnings.extend(unlike),
                Err(error) => {
                    report.warnings.push(format!("it is in force, and could not be kept for the next start: {error}"));
                }
            }
            match flows.end_doomed(accepted.config).await {
                Ok(ended) => report.flows_ended = ended,
                Err(error) => report.warnings.push(format!("flows that it denies may live on: {error}")),
            }
            let ApplyReport { digest, steps, flows_ended, warnings } = &report;
            info!(%digest, steps, flows_ended, ?warnings, "applied");
            if let Some(reply) = reply {
                answer(reply, Ok(report));
            }
        });
    }
}

fn refused(refusal: Refusal, reply: Reply) {
    error!(reason = %refusal, "not applied");
    if let Some(reply) = reply {
        answer(reply, Err(refusal));
    }
}

/// Passes in which a step may fail before the kernel is taken to refuse it: a link may need a moment to appear.
const TRIES: u32 = 3;
/// How long an apply may take; the whole site takes a second.
const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const NOTHING: &str = "[site]\nname = \"nothing\"\n";
