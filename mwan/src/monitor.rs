//! The health of one line in one family, as its probes tell it: probes out, replies and time in.
//!
//! Every target is judged on its own, the line by a quorum over the targets that count:
//!
//! ```text
//!            fall losses in a row                      quorum of targets up and within thresholds: Good
//!   up ───────────────────────────▶ down               quorum of targets up:                       Degraded
//!      ◀───────────────────────────                    a quorum is still possible:                 Unjudged
//!            rise answers in a row                     else:                                       Silent
//! ```
//!
//! The very first judgement of a target needs one answer only, so that a box that starts has lines at once; after
//! a failure, or after carrier came back, `rise` answers are needed.
//!
//! Traffic that nothing answers is a doubt ([`Monitor::doubt`]): a burst of [`BURST`] probes asks at once, each another
//! target where there are several. One answer dispels the doubt; without any, every target is down.
//!
//! Called by `Router` alone. Knows nothing of other lines, of hold times or of policies.

use std::collections::VecDeque;
use std::time::Duration;

use config::model::{Probing, Target, Threshold};
use config::units::{Family, WanId};
use serde::{Deserialize, Serialize};

use crate::event::{Failure, Outcome, Probe, Reply};
use crate::evidence::Sight;
use crate::router::TargetStatus;
use crate::time::Time;

/// What the probes of a line amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Too few answers and too few losses to tell.
    Unjudged,
    Good,
    /// Answers, beyond a threshold.
    Degraded,
    /// The quorum is lost.
    Silent,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Monitor {
    wan: WanId,
    probing: Probing,
    targets: Vec<TargetMonitor>,
    running: bool,
    burst: Option<Burst>,
    /// The doubt that the line was lost by.
    convicted: Option<Doubt>,
}

/// Flows that sent, for this long, without anything coming back by the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    pub flows: u32,
    pub span: Duration,
}

/// A doubt that is being looked into.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Burst {
    doubt: Doubt,
    began: Time,
    sent: u32,
    /// Without an answer by then the line is lost.
    end: Time,
}

impl Burst {
    /// When its next probe is due.
    fn due(&self) -> Time {
        if self.sent < BURST { self.began + BURST_STEP * self.sent } else { Time::NEVER }
    }
}

impl Monitor {
    pub fn new(wan: WanId, family: Family, probing: &Probing) -> Self {
        let targets = probing.targets.iter().enumerate().filter(|(_, target)| target.family == family);
        let targets = targets.map(|(index, target)| TargetMonitor::new(index, target.clone())).collect();
        Self { wan, probing: probing.clone(), targets, running: false, burst: None, convicted: None }
    }

    /// The carrier is there: probe at once, then at the common moments.
    pub fn start(&mut self, now: Time) {
        if !self.running {
            self.running = true;
            for target in &mut self.targets {
                target.due = now;
            }
        }
    }

    /// The carrier is gone: what is under way says nothing, and what was known is void.
    pub fn stop(&mut self) {
        if self.running {
            self.running = false;
            self.burst = None;
            self.convicted = None;
            for target in &mut self.targets {
                target.forget();
            }
        }
    }

    /// The next probe that is due.
    pub fn poll_probe(&mut self, now: Time) -> Option<Probe> {
        if !self.running {
            return None;
        }
        let (wan, timeout, interval) = (self.wan, self.probing.timeout, self.probing.interval);
        let (target, seq) = if let Some(target) = self.targets.iter_mut().find(|target| target.due <= now) {
            target.due = next_moment(now, interval);
            (target.index, target.send(now))
        } else {
            let patience = self.patience();
            let burst = self.burst.as_mut().filter(|burst| burst.due() <= now)?;
            // The targets take turns; those that are down already would tell nothing.
            let mut up: Vec<_> = self.targets.iter_mut().filter(|target| target.up == Some(true)).collect();
            let turn = usize::try_from(burst.sent).unwrap_or(0).checked_rem(up.len())?;
            burst.sent += 1;
            let target = up.get_mut(turn)?;
            let (index, seq) = (target.index, target.send(now));
            if burst.sent == BURST {
                // A driver that gets no processor asks late; the answer is given its time all the same.
                burst.end = burst.end.max(now + patience);
            }
            (index, seq)
        };
        Some(Probe { wan, target, seq, timeout })
    }

    /// Traffic goes out by the line and nothing comes back: asks the targets at once.
    pub fn doubt(&mut self, doubt: Doubt, now: Time) {
        let answers = matches!(self.verdict(), Verdict::Good | Verdict::Degraded);
        let asks = self.targets.iter().any(|target| target.up == Some(true));
        if !self.running || !answers || !asks || self.burst.is_some() {
            return;
        }
        let end = now + BURST_STEP * (BURST - 1) + self.patience();
        self.burst = Some(Burst { doubt, began: now, sent: 0, end });
    }

    /// What the last probe of a burst is given.
    fn patience(&self) -> Duration {
        let usual = self.targets.iter().filter_map(|target| target.window.mean()).max().unwrap_or_default();
        (usual * 2).max(BURST_PATIENCE).min(self.probing.timeout.max(BURST_PATIENCE))
    }

    /// True if the target went up or down, or beyond a threshold or back, by it.
    pub fn reply(&mut self, reply: &Reply) -> bool {
        let probing = &self.probing;
        let Some(target) = self.targets.iter_mut().find(|target| target.index == reply.target) else {
            return false;
        };
        let degraded = target.degraded();
        let sent = target.pending.iter().find(|probe| probe.seq == reply.seq).map(|probe| probe.sent);
        let answered = matches!(reply.outcome, Outcome::Answered { .. });
        if answered {
            self.convicted = None;
            self.burst.take_if(|burst| sent.is_some_and(|sent| sent >= burst.began));
        }
        target.reply(reply, probing) | (target.degraded() != degraded)
    }

    /// Counts what is overdue as lost. True if a target went down or beyond a threshold by it, or lost its excuse.
    pub fn expire(&mut self, now: Time) -> bool {
        let probing = &self.probing;
        let mut changed = self.targets.iter_mut().fold(false, |changed, target| {
            let degraded = target.degraded();
            target.expire(now, probing) | (target.degraded() != degraded) | changed
        });
        // With no target left that answers there is nobody to ask, and nothing to decide.
        self.burst.take_if(|_| !self.targets.iter().any(|target| target.up == Some(true)));
        if let Some(burst) = self.burst.take_if(|burst| burst.sent == BURST && burst.end <= now) {
            for target in self.targets.iter_mut().filter(|target| target.up == Some(true)) {
                target.condemn(burst.began, probing);
                changed = true;
            }
            self.convicted = Some(burst.doubt);
        }
        changed
    }

    /// When a probe is due or overdue next.
    pub fn deadline(&self) -> Time {
        if !self.running {
            return Time::NEVER;
        }
        let targets = self.targets.iter().map(|target| {
            let overdue = target.pending.front().map_or(Time::NEVER, |probe| probe.sent + self.probing.timeout);
            target.due.min(overdue)
        });
        targets.chain(self.burst.as_ref().map(|burst| burst.due().min(burst.end))).min().unwrap_or(Time::NEVER)
    }

    /// A line without targets in its family is as good as its carrier.
    pub fn verdict(&self) -> Verdict {
        self.verdict_without(|_| false)
    }

    /// The verdict if some targets did not count.
    pub fn verdict_without(&self, ignore: impl Fn(&Target) -> bool) -> Verdict {
        if self.targets.is_empty() {
            return Verdict::Good;
        }
        // What is left of the targets decides; if nothing is left, all of them do.
        let counts = |target: &&TargetMonitor| target.excuse.is_none() && !ignore(&target.target);
        let none_left = !self.targets.iter().any(|target| counts(&target));
        let counted = || self.targets.iter().filter(|target| none_left || counts(target));
        let need = counted().count().min(usize::from(self.probing.quorum.get()));
        let up = counted().filter(|target| target.up == Some(true)).count();
        let good = counted().filter(|target| target.up == Some(true) && !target.degraded()).count();
        let open = counted().filter(|target| target.up.is_none()).count();
        if good >= need {
            Verdict::Good
        } else if up >= need {
            Verdict::Degraded
        } else if up + open >= need {
            Verdict::Unjudged
        } else {
            Verdict::Silent
        }
    }

    /// The line would be lost if its latest losses and its overdue probes were the beginning of silence.
    pub fn suspicious(&self, now: Time) -> bool {
        let counted = || self.targets.iter().filter(|target| target.excuse.is_none());
        let need = counted().count().min(usize::from(self.probing.quorum.get()));
        let steady = counted().filter(|target| target.up == Some(true) && !self.shaky(target, now)).count();
        self.running && steady < need
    }

    /// This target is down here, or its latest probe is lost or overdue; `None` if the line does not use it.
    pub fn doubts(&self, target: &Target, now: Time) -> Option<bool> {
        self.targets
            .iter()
            .find(|candidate| self.running && candidate.target == *target)
            .map(|candidate| candidate.up == Some(false) || self.shaky(candidate, now))
    }

    fn shaky(&self, target: &TargetMonitor, now: Time) -> bool {
        let overdue = |probe: &Pending| now.since(probe.sent) > self.probing.timeout / 2;
        target.losses > 0 || target.pending.front().is_some_and(overdue)
    }

    /// The doubt the line was lost by, if it was.
    pub fn convicted(&self) -> Option<Doubt> {
        self.convicted
    }

    /// Its targets at this moment; whether they fail elsewhere is for others to say.
    pub fn sights(&self, now: Time) -> Vec<Sight> {
        let sight = |target: &TargetMonitor| Sight {
            target: target.target.to_string(),
            up: target.up,
            bad: target.excuse.is_some(),
            losses: target.losses,
            silent: (target.losses > 0).then(|| now.since(target.silent_since)),
            failure: target.failure,
            elsewhere: false,
        };
        self.targets.iter().map(sight).collect()
    }

    pub fn running(&self) -> bool {
        self.running
    }

    /// The targets and whether they are up.
    pub fn targets(&self) -> impl Iterator<Item = (&Target, Option<bool>)> {
        self.targets.iter().map(|target| (&target.target, target.up))
    }

    /// Targets that are bad do not count. One that ceases to be bad because it answers on another line stays
    /// excused here for as long as it may take to be up here as well.
    pub fn mark_bad(&mut self, bad: impl Fn(&Target) -> bool, now: Time) {
        let recovery = self.probing.interval * (u32::from(self.probing.rise.get()) + 1) + self.probing.timeout;
        for target in &mut self.targets {
            target.excuse = match (bad(&target.target), target.excuse) {
                (true, _) => Some(Time::NEVER),
                (false, Some(Time::NEVER)) if target.up == Some(false) => Some(now + recovery),
                (false, Some(until)) if target.up == Some(false) && until < Time::NEVER => Some(until),
                (false, _) => None,
            };
        }
    }

    pub fn sent(&self) -> u64 {
        self.targets.iter().map(|target| target.sent).sum()
    }

    pub fn lost(&self) -> u64 {
        self.targets.iter().map(|target| target.lost).sum()
    }

    pub fn status(&self) -> Vec<TargetStatus> {
        self.targets.iter().map(TargetMonitor::status).collect()
    }

    /// The verdict, told to a person.
    pub fn why(&self, now: Time) -> String {
        if self.targets.is_empty() {
            return "carrier is there; no target of this family is configured".to_owned();
        }
        let all = self.targets.len();
        let up = self.targets.iter().filter(|target| target.up == Some(true)).count();
        let down: Vec<_> = self.targets.iter().filter(|target| target.up == Some(false)).collect();
        match self.verdict() {
            Verdict::Unjudged => format!("{up} of {all} targets have answered; the quorum is {}", self.probing.quorum),
            Verdict::Good => format!("{up} of {all} targets answer"),
            Verdict::Degraded => {
                let faults: Vec<_> = self.targets.iter().filter_map(|target| target.fault(&self.probing)).collect();
                format!("{up} of {all} targets answer, beyond a threshold: {}", faults.join("; "))
            }
            Verdict::Silent => {
                if let Some(Doubt { flows, span }) = self.convicted {
                    let span = span.as_millis();
                    return format!("nothing came back for {span} ms, neither to {flows} flows nor to {BURST} probes");
                }
                let span = down.iter().map(|target| now.since(target.silent_since)).max().unwrap_or_default();
                let names: Vec<_> = down.iter().map(|target| target.name_with_failure()).collect();
                format!("{} of {all} targets silent for {} ms: {}", down.len(), span.as_millis(), names.join(", "))
            }
        }
    }
}

/// One target as seen by one line.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct TargetMonitor {
    index: usize,
    target: Target,
    due: Time,
    next_seq: u64,
    /// In the order they were sent.
    pending: VecDeque<Pending>,
    up: Option<bool>,
    /// Nothing has been judged since the start of the daemon: one answer is enough.
    first: bool,
    /// A bad target, not to be counted, and until when.
    excuse: Option<Time>,
    /// The newest probe that was answered.
    newest_answered: Option<u64>,
    /// Losses and answers in a row.
    losses: u8,
    answers: u8,
    /// When the first lost probe of the row was sent.
    silent_since: Time,
    failure: Option<Failure>,
    window: Window,
    beyond: Beyond,
    sent: u64,
    answered: u64,
    lost: u64,
    late: u64,
    rtt_last: Option<Duration>,
}

/// The thresholds this target is beyond.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Beyond {
    loss: bool,
    latency: bool,
    jitter: bool,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Pending {
    seq: u64,
    sent: Time,
}

impl TargetMonitor {
    fn new(index: usize, target: Target) -> Self {
        Self {
            index,
            target,
            due: Time::NEVER,
            next_seq: 0,
            pending: VecDeque::new(),
            up: None,
            first: true,
            excuse: None,
            newest_answered: None,
            losses: 0,
            answers: 0,
            silent_since: Time::ZERO,
            failure: None,
            window: Window::default(),
            beyond: Beyond::default(),
            sent: 0,
            answered: 0,
            lost: 0,
            late: 0,
            rtt_last: None,
        }
    }

    fn send(&mut self, now: Time) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.sent += 1;
        self.pending.push_back(Pending { seq, sent: now });
        seq
    }

    /// It is down, whatever is still under way; it comes back like any other.
    fn condemn(&mut self, since: Time, probing: &Probing) {
        if self.losses == 0 {
            self.silent_since = since;
        }
        self.up = Some(false);
        self.losses = self.losses.max(probing.fall.get());
        self.answers = 0;
    }

    fn reply(&mut self, reply: &Reply, probing: &Probing) -> bool {
        let Some(place) = self.pending.iter().position(|probe| probe.seq == reply.seq) else {
            // Lost already, or void since the carrier went: of no use for the verdict.
            self.late += u64::from(reply.seq < self.next_seq && matches!(reply.outcome, Outcome::Answered { .. }));
            return false;
        };
        let Some(probe) = self.pending.remove(place) else { return false };
        match reply.outcome {
            // The round-trip time is the driver's measurement: an answer in time counts even where the event
            // itself was delayed.
            Outcome::Answered { rtt } if rtt <= probing.timeout => self.answer(probe, rtt, probing),
            Outcome::Answered { .. } => {
                self.late += 1;
                self.lose(probe, None, probing)
            }
            Outcome::Failed { why } => self.lose(probe, Some(why), probing),
        }
    }

    fn expire(&mut self, now: Time, probing: &Probing) -> bool {
        let mut changed = self.excuse.take_if(|until| *until <= now).is_some();
        while let Some(probe) = self.pending.front().copied().filter(|probe| now.since(probe.sent) >= probing.timeout) {
            self.pending.pop_front();
            changed |= self.lose(probe, None, probing);
        }
        changed
    }

    fn answer(&mut self, probe: Pending, rtt: Duration, probing: &Probing) -> bool {
        self.answered += 1;
        self.losses = 0;
        self.failure = None;
        self.newest_answered = self.newest_answered.max(Some(probe.seq));
        self.answers = self.answers.saturating_add(1);
        let enough = if self.first { 1 } else { probing.rise.get() };
        let goes_up = self.up != Some(true) && self.answers >= enough;
        if goes_up {
            // The losses in the window belong to an outage that is over.
            self.window = Window::default();
            self.up = Some(true);
            self.first = false;
        }
        self.rtt_last = Some(rtt);
        self.window.push(Some(rtt), probing.window);
        self.weigh(probing);
        goes_up
    }

    fn lose(&mut self, probe: Pending, failure: Option<Failure>, probing: &Probing) -> bool {
        self.lost += 1;
        self.window.push(None, probing.window);
        self.weigh(probing);
        // A probe that a later one overtook is lost, and is no silence.
        if self.newest_answered.is_some_and(|newest| newest > probe.seq) {
            return false;
        }
        if self.losses == 0 {
            self.silent_since = probe.sent;
        }
        self.failure = failure;
        self.answers = 0;
        self.losses = self.losses.saturating_add(1);
        let goes_down = self.up != Some(false) && self.losses >= probing.fall.get();
        if goes_down {
            self.up = Some(false);
            self.first = false;
        }
        goes_down
    }

    fn weigh(&mut self, probing: &Probing) {
        // Slots of the window that are not filled yet count as answered, so that one loss among the first three
        // probes is not a loss of a third.
        let loss = probing.loss.map(|threshold| (threshold, self.window.lost * 100 / u32::from(probing.window.max(1))));
        if let Some((Threshold { fail, recover }, percent)) = loss {
            beyond(&mut self.beyond.loss, percent, u32::from(fail), u32::from(recover));
        }
        if self.window.answered < u32::from(probing.window).min(ENOUGH) {
            return;
        }
        if let (Some(Threshold { fail, recover }), Some(mean)) = (probing.latency, self.window.mean()) {
            beyond(&mut self.beyond.latency, mean, fail, recover);
        }
        if let (Some(Threshold { fail, recover }), Some(jitter)) = (probing.jitter, self.window.jitter()) {
            beyond(&mut self.beyond.jitter, jitter, fail, recover);
        }
    }

    fn degraded(&self) -> bool {
        self.beyond.loss || self.beyond.latency || self.beyond.jitter
    }

    fn forget(&mut self) {
        self.pending.clear();
        self.due = Time::NEVER;
        // A line that never had its first judgement still gets it with one answer.
        self.first &= self.up.is_none();
        self.up = None;
        self.losses = 0;
        self.answers = 0;
        self.window = Window::default();
        self.beyond = Beyond::default();
    }

    fn fault(&self, probing: &Probing) -> Option<String> {
        let mut faults = Vec::new();
        if let Some(limit) = probing.loss.filter(|_| self.beyond.loss) {
            faults.push(format!("loss {:.0} % (limit {} %)", self.window.loss_percent(), limit.fail));
        }
        if let Some(limit) = probing.latency.filter(|_| self.beyond.latency) {
            let mean = self.window.mean().unwrap_or_default();
            faults.push(format!("{} ms round trip (limit {} ms)", mean.as_millis(), limit.fail.as_millis()));
        }
        if let Some(limit) = probing.jitter.filter(|_| self.beyond.jitter) {
            let jitter = self.window.jitter().unwrap_or_default();
            faults.push(format!("{} ms jitter (limit {} ms)", jitter.as_millis(), limit.fail.as_millis()));
        }
        (!faults.is_empty()).then(|| format!("{} {}", self.target, faults.join(", ")))
    }

    fn name_with_failure(&self) -> String {
        match self.failure {
            None => self.target.to_string(),
            Some(failure) => format!("{} ({})", self.target, failure.word()),
        }
    }

    fn status(&self) -> TargetStatus {
        TargetStatus {
            target: self.target.to_string(),
            index: self.index,
            up: self.up,
            bad: self.excuse.is_some(),
            degraded: self.degraded(),
            sent: self.sent,
            answered: self.answered,
            lost: self.lost,
            late: self.late,
            rtt_last: self.rtt_last,
            rtt_mean: self.window.mean(),
            rtt_min: self.window.rtts().min(),
            rtt_max: self.window.rtts().max(),
            jitter: self.window.jitter(),
            loss_pct: self.window.loss_percent(),
        }
    }
}

/// The recent probes of one target.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Window {
    /// `None` is a loss.
    probes: VecDeque<Option<Duration>>,
    lost: u32,
    answered: u32,
    /// Of the answered ones.
    sum: Duration,
    last: Option<Duration>,
    /// Sixteen times the jitter, in microseconds: RFC 3550, appendix A.8.
    jitter16: Option<u64>,
}

impl Window {
    fn push(&mut self, rtt: Option<Duration>, size: u16) {
        while self.probes.len() >= usize::from(size.max(1)) {
            match self.probes.pop_front().flatten() {
                Some(old) => {
                    self.answered -= 1;
                    self.sum -= old;
                }
                None => self.lost -= 1,
            }
        }
        self.probes.push_back(rtt);
        let Some(rtt) = rtt else {
            self.lost += 1;
            return;
        };
        self.answered += 1;
        self.sum += rtt;
        if let Some(last) = self.last.replace(rtt) {
            let difference = u64::try_from(rtt.abs_diff(last).as_micros()).unwrap_or(u64::MAX / 32);
            let jitter = self.jitter16.unwrap_or(0);
            self.jitter16 = Some((jitter + difference).saturating_sub((jitter + 8) >> 4));
        }
    }

    fn rtts(&self) -> impl Iterator<Item = Duration> {
        self.probes.iter().flatten().copied()
    }

    fn mean(&self) -> Option<Duration> {
        self.sum.checked_div(self.answered)
    }

    fn jitter(&self) -> Option<Duration> {
        self.jitter16.map(|jitter| Duration::from_micros(jitter >> 4))
    }

    fn loss_percent(&self) -> f64 {
        let all = self.lost + self.answered;
        if all == 0 { 0.0 } else { f64::from(self.lost) * 100.0 / f64::from(all) }
    }
}

/// Probes that look into a doubt, and the time between two of them.
pub const BURST: u32 = 3;
pub(crate) const BURST_STEP: Duration = Duration::from_millis(20);
/// The least time the last of them is given; else twice what a round trip takes usually.
pub(crate) const BURST_PATIENCE: Duration = Duration::from_millis(30);
/// Answers until latency and jitter are worth comparing.
const ENOUGH: u32 = 8;

fn beyond<T: PartialOrd + Copy>(state: &mut bool, value: T, fail: T, recover: T) {
    if value >= fail {
        *state = true;
    } else if value <= recover {
        *state = false;
    }
}

/// The first multiple of the interval that is more than half of one away: a driver that polls late does not cause two
/// probes on each other's heels.
///
/// All targets of all lines of one interval share their moments. What fails together is seen failing together, a quorum
/// hears of a silence as soon on average as it would if probes were spread over the interval, and the driver wakes once
/// for all of them: to wake costs more than to send.
fn next_moment(now: Time, interval: Duration) -> Time {
    let interval = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).max(1);
    let earliest = now.as_micros().saturating_add(interval / 2 + 1);
    Time::from_micros(earliest.div_ceil(interval).saturating_mul(interval))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{icmp, ms, nonzero, probing, wan_id};

    /// One IPv4 target that was up, then lost its carrier: from there `rise` answers are needed.
    fn after_a_failure(rise: u8, fall: u8) -> Monitor {
        let mut probing = probing();
        probing.targets = vec![icmp("198.51.100.1")];
        probing.rise = nonzero(rise);
        probing.fall = nonzero(fall);
        let mut monitor = Monitor::new(wan_id(1), Family::V4, &probing);
        monitor.start(Time::ZERO);
        let probe = monitor.poll_probe(Time::ZERO).unwrap();
        monitor.reply(&answered(&probe));
        assert_eq!(monitor.verdict(), Verdict::Good);
        monitor.stop();
        monitor.start(Time::ZERO);
        monitor
    }

    fn answered(probe: &Probe) -> Reply {
        let outcome = Outcome::Answered { rtt: ms(1) };
        Reply { wan: probe.wan, target: probe.target, seq: probe.seq, outcome }
    }

    proptest! {
        #[test]
        fn never_up_without_rise_answers_and_never_down_without_fall_losses(
            answers in prop::collection::vec(any::<bool>(), 1..200),
            rise in 1_u8..6,
            fall in 1_u8..6,
        ) {
            let mut monitor = after_a_failure(rise, fall);
            let mut before = monitor.verdict();
            for (place, answer) in answers.iter().enumerate() {
                let now = monitor.deadline();
                let probe = monitor.poll_probe(now).unwrap();
                if *answer {
                    monitor.reply(&answered(&probe));
                } else {
                    monitor.expire(now + ms(100));
                }
                let verdict = monitor.verdict();
                let good = |verdict| matches!(verdict, Verdict::Good | Verdict::Degraded);
                let row = |count: u8, what: bool| {
                    let count = usize::from(count);
                    place + 1 >= count && answers[place + 1 - count..=place].iter().all(|answer| *answer == what)
                };
                if good(verdict) && !good(before) {
                    prop_assert!(row(rise, true), "up at {place}");
                }
                if verdict == Verdict::Silent && before != Verdict::Silent {
                    prop_assert!(row(fall, false), "down at {place}");
                }
                before = verdict;
            }
        }
    }

    #[test]
    fn probes_of_all_targets_and_lines_share_their_moments() {
        let moments = |wan: u8| {
            let mut monitor = Monitor::new(wan_id(wan), Family::V4, &probing());
            monitor.start(Time::from_micros(42));
            let mut moments = Vec::new();
            let mut now = Time::from_micros(42);
            while now < Time::from_micros(1_000_000) {
                while let Some(probe) = monitor.poll_probe(now) {
                    moments.push((now.as_micros(), probe.target));
                    monitor.reply(&answered(&probe));
                }
                now = monitor.deadline();
            }
            moments
        };
        let own = moments(1);
        assert_eq!(own, moments(2));
        assert_eq!(own[..3], [(42, 0), (42, 1), (42, 2)]);
        assert_eq!(own[3..7], [(100_000, 0), (100_000, 1), (100_000, 2), (200_000, 0)]);
    }

    #[test]
    fn a_driver_that_polls_late_sends_one_probe_and_not_those_it_missed() {
        let mut monitor = Monitor::new(wan_id(1), Family::V6, &probing());
        monitor.start(Time::ZERO);
        let late = Time::from_micros(60_000_000);
        assert_eq!(std::iter::from_fn(|| monitor.poll_probe(late)).count(), 2);
    }

    #[test]
    fn a_loss_that_a_later_answer_overtook_is_no_silence() {
        let mut probing = probing();
        probing.timeout = ms(250);
        probing.fall = nonzero(1);
        probing.targets = vec![icmp("198.51.100.1")];
        let mut monitor = Monitor::new(wan_id(1), Family::V4, &probing);
        monitor.start(Time::ZERO);
        monitor.poll_probe(Time::ZERO).unwrap();
        let second = Time::from_micros(100_000);
        let probe = monitor.poll_probe(second).unwrap();
        monitor.reply(&answered(&probe));
        assert!(!monitor.expire(Time::from_micros(260_000)));
        assert_eq!((monitor.lost(), monitor.verdict()), (1, Verdict::Good));
    }

    #[test]
    fn jitter_follows_rfc_3550() {
        let mut window = Window::default();
        for rtt in [10, 26, 10] {
            window.push(Some(ms(rtt)), 10);
        }
        // 0 + 16 ms / 16 = 1 ms; 1 ms + (16 - 1) ms / 16 = 1.9375 ms.
        assert_eq!(window.jitter(), Some(Duration::from_micros(1937)));
        assert_eq!(window.mean(), Some(Duration::from_nanos(15_333_333)));
    }

    #[test]
    fn a_quorum_counts_targets_of_its_own_family() {
        let mut probing = probing();
        probing.quorum = nonzero(3);
        let mut monitor = Monitor::new(wan_id(1), Family::V6, &probing);
        monitor.start(Time::ZERO);
        while let Some(probe) = monitor.poll_probe(Time::ZERO) {
            assert_eq!(monitor.verdict(), Verdict::Unjudged);
            monitor.reply(&answered(&probe));
        }
        assert_eq!(monitor.verdict(), Verdict::Good, "two targets of a family cannot make a quorum of three");
    }
}
