//! Inputs in, outputs out: a journal of what a [`Router`] was told, when, and what it made of it.
//!
//! A journal is lines of JSON, in order of time: `{"t":µs,"event":…}` for every call of `handle`,
//! `{"t":µs,"probe":…}` for every probe handed out, and after a call that changed something
//! `{"t":µs,"output":{"decision_digest":…,"notices":[…]}}`. It begins with an empty router. [`replay`] runs one again:
//! as it was, to prove that the same inputs give the same outputs, or under another config, to see what that would
//! have made of the same lines.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::model::Target;
use config::units::{WanId, WanName};
use serde::{Deserialize, Serialize};

use crate::decide::Decision;
use crate::event::{Event, Notice, Outcome, Probe, Reply};
use crate::router::Router;
use crate::time::Time;

/// A router whose inputs and outputs are written down.
#[derive(Debug, Default)]
pub struct Recorder {
    router: Router,
    lines: Vec<String>,
}

impl Recorder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn handle(&mut self, event: &Event, now: Time) -> Vec<Notice> {
        self.write(now, What::Event(event.clone()));
        let (notices, output) = step(&mut self.router, event, now);
        if let Some(output) = output {
            self.write(now, What::Output(output));
        }
        notices
    }

    pub fn poll_probe(&mut self, now: Time) -> Option<Probe> {
        let probe = self.router.poll_probe(now)?;
        self.write(now, What::Probe(probe.clone()));
        Some(probe)
    }

    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The lines written since the last call.
    pub fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    fn write(&mut self, t: Time, what: What) {
        // Every map in these types has keys that are strings, so that JSON can hold them.
        self.lines.extend(serde_json::to_string(&Entry { t, what }));
    }
}

/// What a replay found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ReplayReport {
    /// The outputs were the recorded ones, bit for bit. Always false under another config.
    pub equal: bool,
    /// `None` under another config.
    pub first_difference: Option<Difference>,
    /// Everything worth telling that happened in the replay.
    pub timeline: Vec<Moment>,
    /// How often the decision changed.
    pub decisions: u64,
    /// Targets of the other config that the journal knows nothing about: they were taken as silent.
    pub unknown_targets: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moment {
    pub t: Time,
    pub notice: Notice,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The line of the journal, from 1.
    pub line: usize,
    pub recorded: String,
    pub replayed: String,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("line {line} of the journal cannot be read: {source}")]
    Line { line: usize, source: serde_json::Error },
    #[error("the journal holds no config: it does not begin where the router began")]
    NoConfig,
}

/// Runs a journal again, as it was or under another config.
pub fn replay<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    config: Option<Arc<Config>>,
) -> Result<ReplayReport, JournalError> {
    let mut entries = Vec::new();
    for (place, text) in lines.into_iter().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = place + 1;
        let entry = serde_json::from_str(text).map_err(|source| JournalError::Line { line, source })?;
        entries.push((line, entry));
    }
    if !entries.iter().any(|(_, entry): &(usize, Entry)| matches!(entry.what, What::Event(Event::Config(_)))) {
        return Err(JournalError::NoConfig);
    }
    Ok(match config {
        None => replay_same(entries),
        Some(config) => Rerun::new(&entries, config).run(entries),
    })
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    t: Time,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Event(Event),
    Probe(Probe),
    Output(Output),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Output {
    decision_digest: String,
    notices: Vec<Notice>,
}

fn step(router: &mut Router, event: &Event, now: Time) -> (Vec<Notice>, Option<Output>) {
    let before = router.revision();
    let notices = router.handle(event, now);
    let news = !notices.is_empty() || router.revision() != before;
    let output = news.then(|| Output { decision_digest: digest(router.decision()), notices: notices.clone() });
    (notices, output)
}

/// FNV-1a, 64 bits, over the decision as JSON: stable between builds, and no secret is at stake.
fn digest(decision: &Decision) -> String {
    let bytes = serde_json::to_vec(decision).unwrap_or_default();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

fn replay_same(entries: Vec<(usize, Entry)>) -> ReplayReport {
    let mut router = Router::new();
    let mut report = ReplayReport::default();
    // The output of the last event, until the journal confirms it.
    let mut due: Option<(usize, Output)> = None;
    for (line, Entry { t, what }) in entries {
        let difference = match what {
            What::Output(recorded) => {
                let replayed = due.take().map(|(_, output)| output);
                (replayed.as_ref() != Some(&recorded)).then(|| (format!("{recorded:?}"), format!("{replayed:?}")))
            }
            What::Probe(recorded) => {
                let replayed = router.poll_probe(t);
                (replayed.as_ref() != Some(&recorded)).then(|| (format!("{recorded:?}"), format!("{replayed:?}")))
            }
            What::Event(event) => {
                let missed = due.take().map(|(_, output)| ("no output".to_owned(), format!("{output:?}")));
                let (notices, output) = step(&mut router, &event, t);
                due = output.map(|output| (line, output));
                report.timeline.extend(notices.into_iter().map(|notice| Moment { t, notice }));
                missed
            }
        };
        if let Some((recorded, replayed)) = difference {
            report.first_difference.get_or_insert(Difference { line, recorded, replayed });
        }
    }
    report.equal = report.first_difference.is_none();
    report.decisions = router.revision();
    report
}

/// The lines of a journal under another config: probes are sent when that config wants them and fare as the
/// recorded probe of the same line and target that was sent last before them.
struct Rerun {
    config: Arc<Config>,
    names: BTreeMap<WanId, WanName>,
    fates: BTreeMap<(WanName, Target), Vec<Fate>>,
    router: Router,
    now: Time,
    replies: VecDeque<(Time, Reply)>,
    report: ReplayReport,
}

/// What became of one recorded probe.
struct Fate {
    sent: Time,
    seq: u64,
    /// How long after it was sent the outcome was known.
    outcome: Option<(Duration, Outcome)>,
}

impl Rerun {
    fn new(entries: &[(usize, Entry)], config: Arc<Config>) -> Self {
        let mut recorded: Option<&Config> = None;
        let mut names = BTreeMap::new();
        let mut fates: BTreeMap<(WanName, Target), Vec<Fate>> = BTreeMap::new();
        for (_, Entry { t, what }) in entries {
            match what {
                What::Event(Event::Config(config)) => {
                    recorded = Some(config);
                    names.extend(config.wans.values().map(|wan| (wan.id, wan.name.clone())));
                }
                What::Probe(probe) => {
                    let fate = Fate { sent: *t, seq: probe.seq, outcome: None };
                    if let Some(key) = key(recorded, probe.wan, probe.target) {
                        fates.entry(key).or_default().push(fate);
                    }
                }
                What::Event(Event::Reply(reply)) => {
                    let sent = key(recorded, reply.wan, reply.target).and_then(|key| fates.get_mut(&key));
                    let fate = sent.and_then(|fates| fates.iter_mut().rev().find(|fate| fate.seq == reply.seq));
                    if let Some(fate) = fate {
                        fate.outcome = Some((t.since(fate.sent), reply.outcome));
                    }
                }
                What::Event(Event::Links(_) | Event::Neighbour { .. } | Event::Timeout | Event::Request(_))
                | What::Output(_) => {}
            }
        }
        let router = Router::new();
        let report = ReplayReport::default();
        Self { config, names, fates, router, now: Time::ZERO, replies: VecDeque::new(), report }
    }

    fn run(mut self, entries: Vec<(usize, Entry)>) -> ReplayReport {
        for wan in self.config.wans.values() {
            for target in &wan.probe.targets {
                if !self.fates.contains_key(&(wan.name.clone(), target.clone())) {
                    self.report.unknown_targets.push(format!("{target} by {}", wan.name));
                }
            }
        }
        let mut configured = false;
        for (_, Entry { t, what }) in entries {
            self.pass_until(t);
            match what {
                What::Event(Event::Config(_)) if !configured => {
                    configured = true;
                    let config = Arc::clone(&self.config);
                    self.handle(&Event::Config(config), t);
                }
                What::Event(Event::Neighbour { wan, family, mac }) => {
                    let name = self.names.get(&wan);
                    if let Some(wan) = name.and_then(|name| self.config.wans.get(name)).map(|wan| wan.id) {
                        self.handle(&Event::Neighbour { wan, family, mac }, t);
                    }
                }
                What::Event(event @ (Event::Links(_) | Event::Request(_))) => self.handle(&event, t),
                What::Event(Event::Config(_) | Event::Reply(_) | Event::Timeout) | What::Probe(_) | What::Output(_) => {
                }
            }
        }
        self.report.decisions = self.router.revision();
        self.report
    }

    /// Lets time pass as the event loop would: replies, deadlines, probes.
    fn pass_until(&mut self, end: Time) {
        loop {
            let reply = self.replies.front().map_or(Time::NEVER, |(at, _)| *at);
            let next = reply.min(self.router.deadline().max(self.now + Duration::from_micros(1)));
            if next > end || next == Time::NEVER {
                return;
            }
            match self.replies.pop_front() {
                Some((at, reply)) if at == next => self.handle(&Event::Reply(reply), next),
                later => {
                    if let Some(later) = later {
                        self.replies.push_front(later);
                    }
                    self.handle(&Event::Timeout, next);
                }
            }
        }
    }

    fn handle(&mut self, event: &Event, now: Time) {
        self.now = now;
        let notices = self.router.handle(event, now);
        self.report.timeline.extend(notices.into_iter().map(|notice| Moment { t: now, notice }));
        while let Some(probe) = self.router.poll_probe(now) {
            let fates = key(Some(&self.config), probe.wan, probe.target).and_then(|key| self.fates.get(&key));
            let Some(fates) = fates else { continue };
            let after = fates.partition_point(|fate| fate.sent <= now);
            let Some((delay, outcome)) = fates.get(after.saturating_sub(1)).and_then(|fate| fate.outcome) else {
                continue;
            };
            let reply = Reply { wan: probe.wan, target: probe.target, seq: probe.seq, outcome };
            let place = self.replies.partition_point(|(at, _)| *at <= now + delay);
            self.replies.insert(place, (now + delay, reply));
        }
    }
}

fn key(config: Option<&Config>, wan: WanId, target: usize) -> Option<(WanName, Target)> {
    let wan = config?.wan(wan)?;
    Some((wan.name.clone(), wan.probe.targets.get(target)?.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Health, Request};
    use crate::testing::*;

    /// Two failures, a carrier, a drain and a reload.
    fn incident() -> (Config, Vec<String>) {
        let mut world = World::recorded(site(4));
        world.run(secs(2));
        world.silence(&[2]);
        world.run(secs(2));
        world.silence(&[]);
        world.run(secs(11));
        world.carrier(1, false);
        world.run(secs(1));
        world.carrier(1, true);
        world.request(Request::Drain { wan: wan_name(3) });
        world.begin();
        world.run(secs(1));
        let lines = match &mut world.driver {
            Driver::Recorded(recorder) => recorder.take_lines(),
            Driver::Plain(_) => unreachable!("the world is recorded"),
        };
        (world.config, lines)
    }

    fn again(lines: &[String], config: Option<Config>) -> ReplayReport {
        replay(lines.iter().map(String::as_str), config.map(Arc::new)).unwrap()
    }

    fn downs(report: &ReplayReport) -> usize {
        let down = |moment: &&Moment| matches!(&moment.notice, Notice::Health { to: Health::Down, .. });
        report.timeline.iter().filter(down).count()
    }

    #[test]
    fn a_replay_gives_the_recorded_outputs() {
        let (_, lines) = incident();
        let report = again(&lines, None);
        assert_eq!(report.first_difference, None);
        assert!(report.equal && report.decisions > 4);
        assert_eq!(downs(&report), 2, "one line in two families");
    }

    #[test]
    fn a_replay_notices_an_output_that_was_changed() {
        let (_, mut lines) = incident();
        let place = lines.iter().position(|line| line.contains("\"to\":\"down\"")).unwrap();
        lines[place] = lines[place].replace("\"to\":\"down\"", "\"to\":\"up\"");
        let report = again(&lines, None);
        assert!(!report.equal);
        assert_eq!(report.first_difference.unwrap().line, place + 1);
    }

    #[test]
    fn a_replay_notices_an_output_that_is_missing() {
        let (_, mut lines) = incident();
        let place = lines.iter().position(|line| line.contains("\"to\":\"down\"")).unwrap();
        lines.remove(place);
        assert!(!again(&lines, None).equal);
    }

    #[test]
    fn another_config_sees_the_same_lines() {
        let (mut config, lines) = incident();
        let same = again(&lines, Some(config.clone()));
        assert_eq!(downs(&same), 2);
        // Thirty lost probes take longer than the two seconds the failure lasted.
        for wan in config.wans.values_mut() {
            wan.probe.fall = nonzero(30);
        }
        let patient = again(&lines, Some(config.clone()));
        assert_eq!(downs(&patient), 0);
        config.wans.get_mut(&wan_name(1)).unwrap().probe.targets.push(icmp("203.0.113.9"));
        assert_eq!(again(&lines, Some(config)).unknown_targets, ["icmp 203.0.113.9 by wan1"]);
    }

    #[test]
    fn a_journal_that_cannot_be_read_names_its_line() {
        let text = ["{\"t\":1,\"event\":\"timeout\"}", "nonsense"];
        assert!(matches!(replay(text, None), Err(JournalError::Line { line: 2, .. })));
        assert!(matches!(replay([text[0]], None), Err(JournalError::NoConfig)));
    }
}
