//! Inputs in, outputs out: a journal of what a [`Router`] was told, when, and what it made of it.
//!
//! A journal is lines of JSON. Each line is one step, in short keys because a busy router writes a hundred a second:
//!
//! | key | holds |
//! |---|---|
//! | `t` | the time of the step, in µs since the start of the run |
//! | `r` | a probe was answered: `[wan, target, seq, round trip in ns]` |
//! | `x` | a probe failed: `[wan, target, seq, why]` |
//! | `e` | any other event; a line without `r`, `x`, `e` and `checkpoint` is a deadline that passed |
//! | `p` | probes handed out at the end of the step: `[wan, target, seq]` each |
//! | `w` | why somebody wanted it, for people |
//! | `n`, `d` | where the step changed something: what is to be told, and a digest of the decision |
//! | `checkpoint` | the whole router, with the number of its run and the time on the wall |
//!
//! A journal begins with a checkpoint, and every file of a long one does, so that each can be replayed alone.
//! [`replay`] runs one again: as it was, to prove that the same inputs give the same outputs, or under another
//! config, to see what that would have made of the same lines.

mod past;
mod rerun;
pub mod simulate;

use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::units::WanId;
use serde::{Deserialize, Serialize};

use self::past::Past;
use self::rerun::Rerun;
use crate::decide::Decision;
use crate::event::{Event, Failure, Notice, Outcome, Probe, Reply};
use crate::lease::Grant;
use crate::router::Router;
use crate::time::Time;

/// A router whose inputs and outputs are written down.
#[derive(Debug)]
pub struct Recorder {
    router: Router,
    run: u64,
    lines: Vec<String>,
    remark: Option<String>,
}

/// What a step amounts to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stepped {
    pub notices: Vec<Notice>,
    /// To be sent at once.
    pub probes: Vec<Probe>,
}

impl Recorder {
    /// `run` tells this run of the daemon from others; `wall` is the time since 1970.
    pub fn new(run: u64, now: Time, wall: Duration) -> Self {
        let mut recorder = Self { router: Router::new(), run, lines: Vec::new(), remark: None };
        let checkpoint = recorder.checkpoint(now, wall);
        recorder.lines.push(checkpoint);
        recorder
    }

    pub fn step(&mut self, event: &Event, now: Time) -> Stepped {
        let (stepped, outputs) = step(&mut self.router, event, now);
        // Answers that are heard on the way to it are not what happens.
        let remark = if matches!(event, Event::Reply(_)) { None } else { self.remark.take() };
        let mut line = Line { t: now, w: remark, ..Line::of(event) };
        line.outputs(outputs);
        self.lines.push(written(&line));
        stepped
    }

    /// Why the next thing happens that is no answer to a probe. Nothing is decided by it.
    pub fn remark(&mut self, why: String) {
        self.remark = Some(why);
    }

    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The lines written since the last call.
    pub fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    /// The line another file may begin with.
    pub fn checkpoint(&self, now: Time, wall: Duration) -> String {
        let checkpoint = Checkpoint { version: VERSION, run: self.run, wall: micros(wall), router: &self.router };
        written(&Line::<&Router> { t: now, checkpoint: Some(checkpoint), ..Line::default() })
    }
}

/// What a line tells a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Microseconds since the start of the run.
    pub t: Time,
    /// On the wall, in microseconds since 1970; absent before the first checkpoint.
    pub wall: Option<u64>,
    pub what: What,
    /// Why somebody wanted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub notices: Vec<Notice>,
    /// The decision changed, and this is its digest.
    pub decision: Option<String>,
}

/// The input of a step, without what only a replay needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The router began.
    Start {
        run: u64,
    },
    /// The journal goes on in another file.
    Checkpoint {
        run: u64,
    },
    Config {
        site: String,
        digest: String,
    },
    Links,
    InForce,
    Neighbour,
    Reply {
        wan: WanId,
        target: usize,
        seq: u64,
        outcome: Outcome,
    },
    Timeout {
        probes: usize,
    },
    Silence {
        wan: WanId,
        flows: u32,
        span: Duration,
    },
    Traffic,
    Lease {
        wan: config::units::WanName,
        family: config::units::Family,
        held: bool,
    },
    /// This router of the pair became active, or gave that up.
    Seat {
        active: bool,
    },
    Request(crate::event::Request),
}

impl Told {
    /// Beside the ticking of probes.
    pub fn is_news(&self) -> bool {
        !self.notices.is_empty()
            || self.decision.is_some()
            || matches!(self.what, What::Start { .. } | What::Config { .. } | What::Silence { .. } | What::Request(_))
    }
}

/// Reads journals line by line, for people.
#[derive(Debug, Default)]
pub struct Teller {
    /// The wall at the zero of the run.
    zero: Option<u64>,
}

impl Teller {
    /// `None` for a line that is no line of a journal.
    pub fn tell(&mut self, text: &str) -> Option<Told> {
        // A checkpoint's router is as long as all the rest of the page.
        let line: Line<Begun> = serde_json::from_str(text).ok()?;
        let t = line.t;
        let what = match (&line.checkpoint, line.event()) {
            (Some(Checkpoint { run, wall, router, .. }), _) => {
                self.zero = Some(wall.saturating_sub(t.as_micros()));
                if router.revision == 0 { What::Start { run: *run } } else { What::Checkpoint { run: *run } }
            }
            (None, Event::Config(config)) => What::Config { site: config.site.clone(), digest: config.digest.clone() },
            (None, Event::Links(_)) => What::Links,
            (None, Event::InForce) => What::InForce,
            (None, Event::Neighbour { .. }) => What::Neighbour,
            (None, Event::Reply(Reply { wan, target, seq, outcome })) => What::Reply { wan, target, seq, outcome },
            (None, Event::Silence { wan, flows, span, .. }) => What::Silence { wan, flows, span },
            (None, Event::Traffic(_)) => What::Traffic,
            (None, Event::Lease { wan, family, grant }) => {
                What::Lease { wan, family, held: matches!(grant, Grant::Held { .. }) }
            }
            (None, Event::Seat(seat)) => What::Seat { active: seat.active },
            (None, Event::Timeout) => What::Timeout { probes: line.p.len() },
            (None, Event::Request(request)) => What::Request(request),
        };
        Some(Told {
            t,
            wall: self.zero.map(|zero| zero + t.as_micros()),
            what,
            why: line.w,
            notices: line.n,
            decision: line.d,
        })
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
    /// How many steps were replayed.
    pub steps: u64,
    /// Targets of the other config that the journal knows nothing about: they were taken as silent.
    pub unknown_targets: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moment {
    pub t: Time,
    /// On the wall, in microseconds since 1970.
    pub wall: u64,
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
    #[error("line {line} of the journal is of version {found}; this program reads version {VERSION}")]
    Version { line: usize, found: u32 },
    #[error("the journal does not begin with a checkpoint: its beginning is missing")]
    NoBeginning,
    #[error("the journal holds no config: there is nothing to run again")]
    NoConfig,
}

/// Runs a journal again, as it was or under another config.
pub fn replay<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    config: Option<Arc<Config>>,
) -> Result<ReplayReport, JournalError> {
    let entries = read(lines)?;
    Ok(match config {
        None => replay_same(&entries, &mut ()),
        Some(config) => Rerun::new(&entries, config, Past::of(&entries), Duration::ZERO).run(&entries, &mut ()),
    })
}

/// A journal line by line, each with its number.
fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Vec<Entry>, JournalError> {
    let mut entries = Vec::new();
    for (place, text) in lines.into_iter().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let number = place + 1;
        let line: Line<Router> =
            serde_json::from_str(text).map_err(|source| JournalError::Line { line: number, source })?;
        match &line.checkpoint {
            Some(checkpoint) if checkpoint.version != VERSION => {
                return Err(JournalError::Version { line: number, found: checkpoint.version });
            }
            None if entries.is_empty() => return Err(JournalError::NoBeginning),
            Some(_) | None => {}
        }
        entries.push((number, line));
    }
    let configured = |line: &Line<Router>| match (&line.checkpoint, &line.e) {
        (Some(checkpoint), _) => checkpoint.router.config().is_some(),
        (None, event) => matches!(event, Some(Event::Config(_))),
    };
    if !entries.iter().any(|(_, line)| configured(line)) {
        return Err(JournalError::NoConfig);
    }
    Ok(entries)
}

/// A line and its number in the file.
type Entry = (usize, Line<Router>);

/// A line as it stands in the file. `R` is what a checkpoint holds: the router to be written, or what is read of it.
#[derive(Debug, Serialize, Deserialize)]
struct Line<R> {
    t: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    r: Option<(WanId, usize, u64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<(WanId, usize, u64, Failure)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<Event>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    w: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    p: Vec<(WanId, usize, u64)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    n: Vec<Notice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    d: Option<String>,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    checkpoint: Option<Checkpoint<R>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Checkpoint<R> {
    version: u32,
    run: u64,
    /// Microseconds since 1970.
    wall: u64,
    router: R,
}

/// As much of a router as a [`Teller`] wants to know.
#[derive(Debug, Deserialize)]
struct Begun {
    revision: u64,
}

impl<R> Default for Line<R> {
    fn default() -> Self {
        Self {
            t: Time::ZERO,
            r: None,
            x: None,
            e: None,
            w: None,
            p: Vec::new(),
            n: Vec::new(),
            d: None,
            checkpoint: None,
        }
    }
}

impl Line<Router> {
    fn of(event: &Event) -> Self {
        let mut line = Self::default();
        match event {
            Event::Reply(Reply { wan, target, seq, outcome: Outcome::Answered { rtt } }) => {
                line.r = Some((*wan, *target, *seq, u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX)));
            }
            Event::Reply(Reply { wan, target, seq, outcome: Outcome::Failed { why } }) => {
                line.x = Some((*wan, *target, *seq, *why));
            }
            Event::Timeout => {}
            Event::Config(_)
            | Event::Links(_)
            | Event::InForce
            | Event::Neighbour { .. }
            | Event::Silence { .. }
            | Event::Traffic(_)
            | Event::Lease { .. }
            | Event::Seat(_)
            | Event::Request(_) => {
                line.e = Some(event.clone());
            }
        }
        line
    }
}

impl<R> Line<R> {
    fn outputs(&mut self, outputs: Outputs) {
        (self.p, self.n, self.d) = (outputs.probes, outputs.notices, outputs.decision);
    }

    fn event(&self) -> Event {
        match (&self.r, &self.x, &self.e) {
            (Some((wan, target, seq, nanos)), ..) => {
                let outcome = Outcome::Answered { rtt: Duration::from_nanos(*nanos) };
                Event::Reply(Reply { wan: *wan, target: *target, seq: *seq, outcome })
            }
            (None, Some((wan, target, seq, why)), _) => {
                Event::Reply(Reply { wan: *wan, target: *target, seq: *seq, outcome: Outcome::Failed { why: *why } })
            }
            (None, None, Some(event)) => event.clone(),
            (None, None, None) => Event::Timeout,
        }
    }
}

/// The outputs of a step, as a line holds them.
#[derive(Debug, Clone, PartialEq)]
struct Outputs {
    probes: Vec<(WanId, usize, u64)>,
    notices: Vec<Notice>,
    decision: Option<String>,
}

fn step(router: &mut Router, event: &Event, now: Time) -> (Stepped, Outputs) {
    let before = router.revision();
    let notices = router.handle(event, now);
    let probes: Vec<_> = std::iter::from_fn(|| router.poll_probe(now)).collect();
    let outputs = Outputs {
        probes: probes.iter().map(|probe| (probe.wan, probe.target, probe.seq)).collect(),
        notices: notices.clone(),
        decision: (router.revision() != before).then(|| digest(router.decision())),
    };
    (Stepped { notices, probes }, outputs)
}

fn written(line: &impl Serialize) -> String {
    // Every map in these types has keys that are strings or numbers, so that JSON can hold them.
    #[expect(clippy::expect_used, reason = "plain data, and a test writes a checkpoint of everything a router holds")]
    serde_json::to_string(line).expect("a line of the journal is plain data")
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// FNV-1a, 64 bits, over the decision as JSON: stable between builds, and no secret is at stake.
fn digest(decision: &Decision) -> String {
    let bytes = serde_json::to_vec(decision).unwrap_or_default();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

const VERSION: u32 = 5;

/// Hears what a router tells that runs again.
trait Watch {
    fn notice(&mut self, run: u64, at: Time, router: &Router, notice: &Notice);
}

impl Watch for () {
    fn notice(&mut self, _: u64, _: Time, _: &Router, _: &Notice) {}
}

fn replay_same(entries: &[Entry], watch: &mut impl Watch) -> ReplayReport {
    let (mut router, mut run, mut zero) = (Router::new(), None, 0);
    let mut report = ReplayReport::default();
    let mut differs = |line, recorded: String, replayed: String| {
        if recorded != replayed {
            report.first_difference.get_or_insert(Difference { line, recorded, replayed });
        }
    };
    for (number, line) in entries {
        if let Some(checkpoint) = &line.checkpoint {
            // Where the files of one run follow each other, each checkpoint is an output like any other.
            if run == Some(checkpoint.run) {
                differs(*number, written(&checkpoint.router), written(&router));
            }
            run = Some(checkpoint.run);
            zero = checkpoint.wall.saturating_sub(line.t.as_micros());
            router = checkpoint.router.clone();
            continue;
        }
        let (before, event, t) = (router.revision(), line.event(), line.t);
        let (_, replayed) = step(&mut router, &event, t);
        report.decisions += router.revision() - before;
        report.steps += 1;
        let wall = zero + t.as_micros();
        report.timeline.extend(replayed.notices.iter().map(|notice| Moment { t, wall, notice: notice.clone() }));
        for notice in &replayed.notices {
            watch.notice(run.unwrap_or_default(), t, &router, notice);
        }
        let recorded = Outputs { probes: line.p.clone(), notices: line.n.clone(), decision: line.d.clone() };
        if recorded != replayed {
            differs(*number, format!("{recorded:?}"), format!("{replayed:?}"));
        }
    }
    report.equal = report.first_difference.is_none();
    report
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
        let lines = recorder(&mut world).take_lines();
        (world.config, lines)
    }

    fn recorder(world: &mut World) -> &mut Recorder {
        match &mut world.driver {
            Driver::Recorded(recorder) => recorder,
            Driver::Plain(_) => unreachable!("the world is recorded"),
        }
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
        let end = lines[place].find(",\"n\":").unwrap();
        lines[place].truncate(end);
        lines[place].push('}');
        assert_eq!(again(&lines, None).first_difference.unwrap().line, place + 1);
    }

    #[test]
    fn a_journal_is_replayed_from_any_of_its_files() {
        let mut world = World::recorded(site(4));
        let mut files = Vec::new();
        for number in 0..6_u8 {
            world.silence(if number % 2 == 1 { &[2] } else { &[] });
            world.run(secs(4) + ms(37));
            if number == 3 {
                world.request(Request::Drain { wan: wan_name(3) });
            }
            let now = world.now;
            let recorder = recorder(&mut world);
            files.push(recorder.take_lines());
            let checkpoint = recorder.checkpoint(now, now.since(Time::ZERO));
            recorder.lines.push(checkpoint);
        }
        for file in &files {
            let report = again(file, None);
            assert_eq!(report.first_difference, None);
            assert!(report.steps > 100);
        }
        assert!(again(&files.concat(), None).equal, "a checkpoint in the middle is what the replay has come to");
        files.remove(2);
        let gap = again(&files.concat(), None).first_difference.unwrap();
        assert_eq!(gap.line, files[0].len() + files[1].len() + 1, "a file is missing");
        // Another config begins with what the checkpoint knew: the drain, the links.
        let report = again(&files[3], Some(world.config.clone()));
        let uses = |moment: &Moment| {
            let Notice::PolicyUses { policy, uses, .. } = &moment.notice else { return None };
            (policy.as_str() == "balanced").then_some(uses.len())
        };
        let uses = report.timeline.iter().rev().find_map(uses);
        assert_eq!(uses, Some(3));
    }

    #[test]
    fn the_journal_of_four_lines_at_ten_hertz_takes_ten_kilobytes_a_second() {
        let mut world = World::recorded(site(4));
        world.run(secs(10));
        recorder(&mut world).take_lines();
        world.run(secs(60));
        let lines = recorder(&mut world).take_lines();
        let probes: usize = lines.iter().map(|line| serde_json::from_str::<Line<Router>>(line).unwrap().p.len()).sum();
        let bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
        assert!(bytes / probes < 80, "{} bytes for a probe: {}", bytes / probes, lines[7]);
    }

    #[test]
    fn a_person_is_told_what_is_news() {
        let (_, lines) = incident();
        let mut teller = Teller::default();
        let told: Vec<_> = lines.iter().map(|line| teller.tell(line).unwrap()).collect();
        assert_eq!(told[0].what, What::Start { run: 1 });
        assert_eq!(told[1].wall, Some(told[1].t.as_micros()));
        let news = told.iter().filter(|told| told.is_news()).count();
        assert!(news > 10 && news * 10 < told.len(), "{news} of {}", told.len());
        assert_eq!(teller.tell("nonsense"), None);
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
        let begin = Recorder::new(1, Time::ZERO, Duration::ZERO).take_lines().remove(0);
        let refused = |lines: &[&str]| replay(lines.iter().copied(), None).unwrap_err();
        assert!(matches!(refused(&[&begin, "nonsense"]), JournalError::Line { line: 2, .. }));
        assert!(matches!(refused(&["{\"t\":1}"]), JournalError::NoBeginning));
        assert!(matches!(refused(&[&begin, "{\"t\":1}"]), JournalError::NoConfig));
        let other = begin.replace(&format!("\"version\":{VERSION}"), "\"version\":9");
        assert!(matches!(refused(&[&other]), JournalError::Version { line: 1, found: 9 }));
    }
}
