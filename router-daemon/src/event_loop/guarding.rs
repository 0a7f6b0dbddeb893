//! A change that is confirmed by measurement. The loop samples what a guard compares, now and then always and once a
//! second while a change is guarded; [`crate::guard`] judges.
//!
//! ```text
//!   apply --guard ──what there was is put aside──▶ Trying (apply.rs) ──kernel has it──▶ sampled each second
//!                                                                                         │ something is worse
//!                      confirmed ◀──nothing got worse by the end of the window────────────┴──▶ rolled back
//! ```
//!
//! Samples live in memory. A daemon that ends within the window has none of before at its next start, and takes the
//! change back.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use mwan::event::Event;
use tokio::time::Instant;

use super::Core;
use super::confirm::{Because, Told, Waiting};
use crate::ask::{ApplyReport, Refusal};
use crate::guard::{self, Sample};

/// What a change that waits is measured by.
#[derive(Debug)]
pub(super) struct Guard {
    before: Vec<Sample>,
    window: Duration,
    /// Once the kernel has the change.
    until: Option<Instant>,
    /// What is told when it is decided, and to whom.
    pub(super) report: Option<ApplyReport>,
    pub(super) told: Vec<Told>,
}

/// The samples of the config in force, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Samples {
    recent: VecDeque<Sample>,
    last: Option<Instant>,
    /// The kernel is being asked.
    reading: bool,
    /// Which config they are of: an answer that comes after another was taken is not theirs.
    config: u64,
    segments: u64,
    resent: u64,
}

impl Samples {
    /// Another config is in force.
    pub(super) fn begin_anew(&mut self) {
        self.recent.clear();
        self.last = None;
        self.reading = false;
        self.config += 1;
    }

    /// What the packet path tells.
    pub(super) fn notice(&mut self, event: &Event) {
        if let Event::Traffic(lines) = event {
            self.segments += lines.iter().map(|line| line.segments).sum::<u64>();
            self.resent += lines.iter().map(|line| line.resent).sum::<u64>();
        }
    }
}

impl Guard {
    fn interval(&self) -> Duration {
        EVERY_GUARDED.max(self.window / MOST)
    }
}

impl Core {
    /// A guard against what is measured of the config in force.
    pub(super) fn guard(&self, window: Duration) -> Result<Guard, Refusal> {
        if self.accepted.is_none() {
            let text = "nothing is in force that a guard could compare with: leave `--guard` out";
            return Err(Refusal::new("not-configured", text));
        }
        let before: Vec<_> = self.samples.recent.iter().cloned().collect();
        if !guard::enough(&before) {
            let text = "what is in force has not been measured for long enough to compare with: a guard needs ten \
                        seconds of it";
            return Err(Refusal::new("busy", text));
        }
        Ok(Guard { before, window, until: None, report: None, told: Vec::new() })
    }

    pub(super) fn is_guarded(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.guard.is_some())
    }

    /// The kernel has the change: the window begins.
    pub(super) fn begin_guard(&mut self, told: Vec<Told>) {
        let Some(Waiting { guard: Some(guard), .. }) = &mut self.waiting else { return };
        guard.told = told;
        guard.until = Some(Instant::now() + guard.window);
        self.samples.begin_anew();
        self.sample();
    }

    /// Called once a second.
    pub(super) fn sample(&mut self) {
        let guard = self.waiting.as_ref().and_then(|waiting| waiting.guard.as_ref());
        let interval = guard.map_or(EVERY, Guard::interval);
        let due = self.samples.last.is_none_or(|last| last.elapsed() + EARLY >= interval);
        if self.accepted.is_none() || self.samples.reading || !due {
            return;
        }
        self.samples.reading = true;
        self.samples.last = Some(Instant::now());
        let (denials, config) = (self.denials.clone(), self.samples.config);
        let read = async move {
            let late = |_| io::Error::from(io::ErrorKind::TimedOut);
            tokio::time::timeout(PATIENCE, denials.read()).await.map_err(late).flatten()
        };
        self.then(read, move |core, denied| {
            if core.samples.config == config {
                core.samples.reading = false;
                core.take_sample(denied);
            }
        });
    }

    fn take_sample(&mut self, denied: io::Result<u64>) {
        let denied = denied.inspect_err(|error| tracing::debug!(%error, "the kernel did not tell what it denied")).ok();
        let lines = self.recorder.router().tallies();
        let sample = Sample {
            at: self.zero.elapsed(),
            denied,
            segments: self.samples.segments,
            resent: self.samples.resent,
            lines: lines.map(|(name, family, tally)| ((name.clone(), family), tally)).collect(),
        };
        self.samples.recent.push_back(sample);
        if !self.is_guarded() && self.samples.recent.len() > KEPT {
            self.samples.recent.pop_front();
        }
        self.judge();
    }

    fn judge(&mut self) {
        let Some(Waiting { guard: Some(guard), confirming: false, .. }) = &self.waiting else { return };
        // Before its report there is nobody to tell.
        let (Some(until), Some(_)) = (guard.until, &guard.report) else { return };
        let since = self.samples.recent.make_contiguous();
        let judged = match guard::worse(&guard.before, since) {
            Some(worse) => Err(worse),
            None if until <= Instant::now() => guard::verdict(&guard.before, since),
            None => return,
        };
        match judged {
            Ok(told) => self.settle(told, None),
            Err(why) => self.roll_back(Because { word: "guard", why }, Vec::new()),
        }
    }
}

const EVERY: Duration = Duration::from_secs(5);
const EVERY_GUARDED: Duration = Duration::from_secs(1);
/// No two seconds of the loop are the same.
const EARLY: Duration = Duration::from_millis(100);
/// Samples of a window, however long it is.
const MOST: u32 = 300;
/// Two minutes.
const KEPT: usize = 25;
const PATIENCE: Duration = Duration::from_secs(5);
