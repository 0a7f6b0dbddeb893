//! What a journal knows of its lines, so that probes can be answered that were never sent.
//!
//! Two unanswered probes of a target in a row are silence. It began between the last that was answered and the first
//! that was not; where other targets of the line fell silent in that time as well, it was the same moment, and between
//! them they tell it better than the interval of one. The middle of what is left is taken. A single loss is a loss: one
//! probe meets it.
//!
//! Outside of silence a probe fares as the recorded one of its target that was sent last before it, each of which is
//! used once. Where more probes are sent than were recorded, the others fare as one of those around, so that the part
//! that is lost, and the round-trip times, are as they were.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::model::Target;
use config::units::{Family, WanId, WanName};

use super::Entry;
use crate::event::{Event, Outcome};
use crate::time::Time;

/// The recorded probes of one run after another.
#[derive(Debug, Clone, Default)]
pub(super) struct Past {
    targets: BTreeMap<Key, Course>,
}

/// The run, the line, the target.
type Key = (u64, WanName, Target);

/// A line in one family that answered too few of its targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outage {
    pub(super) run: u64,
    pub(super) wan: WanName,
    pub(super) family: Family,
    pub(super) from: Time,
    /// [`Time::NEVER`]: the journal ends before.
    pub(super) until: Time,
    /// How far `from` may be off, either way.
    pub(super) unsure: Duration,
}

/// One target on one line.
#[derive(Debug, Clone, Default)]
struct Course {
    probes: Vec<Fate>,
    silences: Vec<Silence>,
    /// The probes outside of silence, and whether they were used.
    loud: Vec<(usize, bool)>,
}

/// What became of one recorded probe.
#[derive(Debug, Clone)]
struct Fate {
    sent: Time,
    seq: u64,
    /// How long after it was sent the outcome was known.
    outcome: Option<(Duration, Outcome)>,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    began: Window,
    ended: Window,
}

/// Something happened after the one and not after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window(Time, Time);

impl Past {
    pub(super) fn of(entries: &[Entry]) -> Self {
        let mut past = Self::default();
        let (mut config, mut run, mut end): (Option<Arc<Config>>, _, _) = (None, 0, Time::ZERO);
        for (_, line) in entries {
            if let Some(checkpoint) = &line.checkpoint {
                run = checkpoint.run;
            }
            let event = line.event();
            let taken = match (&line.checkpoint, &event) {
                (Some(checkpoint), _) => checkpoint.router.config(),
                (None, Event::Config(config)) => Some(config),
                (None, _) => None,
            };
            config = taken.cloned().or(config);
            end = line.t;
            let key = |wan: WanId, target: usize| key(run, config.as_deref()?, wan, target);
            if let Event::Reply(reply) = event {
                let course = key(reply.wan, reply.target).and_then(|key| past.targets.get_mut(&key));
                let fate = course.and_then(|course| course.probes.iter_mut().rev().find(|fate| fate.seq == reply.seq));
                if let Some(fate) = fate {
                    fate.outcome = Some((line.t.since(fate.sent), reply.outcome));
                }
            }
            for (wan, target, seq) in &line.p {
                if let Some(key) = key(*wan, *target) {
                    let fate = Fate { sent: line.t, seq: *seq, outcome: None };
                    past.targets.entry(key).or_default().probes.push(fate);
                }
            }
        }
        for ((own, wan, _), course) in &mut past.targets {
            let patience = config.as_ref().and_then(|config| config.wans.get(wan)).map(|wan| wan.probe.timeout);
            let known = end - patience.unwrap_or_default();
            // The journal ended before anybody could know.
            course.probes.retain(|fate| *own != run || fate.outcome.is_some() || fate.sent <= known);
            course.find_silences();
        }
        past.sharpen();
        past
    }

    pub(super) fn knows(&self, wan: &WanName, target: &Target) -> bool {
        self.targets.keys().any(|(_, known, own)| known == wan && own == target)
    }

    /// How a probe of this target fares that is sent then: how long until it is known, and what.
    pub(super) fn fare(
        &mut self,
        (run, config): (u64, &Config),
        wan: WanId,
        target: usize,
        (seq, sent): (u64, Time),
    ) -> Option<(Duration, Outcome)> {
        let course = self.targets.get_mut(&key(run, config, wan, target)?)?;
        if course.silences.iter().any(|silence| (silence.began.middle()..silence.ended.middle()).contains(&sent)) {
            // A refusal is a failure too, and known at once.
            let after = course.probes.partition_point(|fate| fate.sent < sent);
            let fate = course.probes.get(after).or(course.probes.last())?;
            return fate.outcome.filter(|(_, outcome)| matches!(outcome, Outcome::Failed { .. }));
        }
        let before = course.loud.partition_point(|(place, _)| course.probes[*place].sent <= sent).saturating_sub(1);
        let (place, used) = course.loud.get_mut(before)?;
        if !std::mem::replace(used, true) {
            return course.probes[*place].outcome;
        }
        let first = before.saturating_sub(AROUND);
        let around = course.loud.get(first..(before + AROUND + 1).min(course.loud.len()))?;
        let drawn = usize::try_from(scattered(seq) % around.len() as u64).unwrap_or(0);
        course.probes[around.get(drawn)?.0].outcome
    }

    /// When lines answered too few of their targets, in the order of time.
    pub(super) fn outages(&self, config: &Config) -> Vec<Outage> {
        let mut outages = Vec::new();
        let line = |(run, wan, target): &Key| (*run, wan.clone(), target.family);
        let lines: BTreeSet<_> = self.targets.keys().map(line).collect();
        for of in lines {
            let courses: Vec<_> =
                self.targets.iter().filter(|(key, _)| line(key) == of).map(|(_, course)| course).collect();
            let (run, wan, family) = of;
            let quorum = config.wans.get(&wan).map_or(1, |wan| usize::from(wan.probe.quorum.get()));
            let need = quorum.min(courses.len());
            let mut edges: Vec<_> = courses
                .iter()
                .flat_map(|course| &course.silences)
                .flat_map(|Silence { began, ended }| [(began.middle(), 1, *began), (ended.middle(), -1, *ended)])
                .collect();
            edges.sort_by_key(|(at, step, _)| (*at, *step));
            let mut silent: i32 = 0;
            let mut open: Option<Outage> = None;
            for (at, step, window) in edges {
                silent += step;
                let lost = courses.len() < need + usize::try_from(silent).unwrap_or(0);
                if lost && open.is_none() {
                    let unsure = window.1.since(window.0) / 2;
                    open = Some(Outage { run, wan: wan.clone(), family, from: at, until: Time::NEVER, unsure });
                } else if !lost && let Some(outage) = open.take() {
                    outages.push(Outage { until: at, ..outage });
                }
            }
            outages.extend(open);
        }
        outages.retain(|outage| outage.from < outage.until);
        outages.sort_by_key(|outage| (outage.run, outage.from));
        outages
    }

    /// Targets of a line that fell silent together did so at the same moment.
    fn sharpen(&mut self) {
        let mut edges: BTreeMap<(u64, WanName), (Vec<Window>, Vec<Window>)> = BTreeMap::new();
        for ((run, wan, _), course) in &self.targets {
            let of_line = edges.entry((*run, wan.clone())).or_default();
            of_line.0.extend(course.silences.iter().map(|silence| silence.began));
            of_line.1.extend(course.silences.iter().map(|silence| silence.ended));
        }
        for ((run, wan, _), course) in &mut self.targets {
            let Some((began, ended)) = edges.get(&(*run, wan.clone())) else { continue };
            for silence in &mut course.silences {
                silence.began = silence.began.shared(began);
                silence.ended = silence.ended.shared(ended);
            }
        }
    }
}

impl Course {
    fn find_silences(&mut self) {
        let answered = |fate: &Fate| matches!(fate.outcome, Some((_, Outcome::Answered { .. })));
        let mut place = 0;
        while place < self.probes.len() {
            let run = self.probes.iter().skip(place).take_while(|fate| !answered(fate)).count();
            if run >= SILENCE {
                // Half a round trip after it was sent it had passed the line.
                let passed = |fate: &Fate| fate.sent + fate.outcome.map(|(took, _)| took / 2).unwrap_or_default();
                let before = place.checked_sub(1).and_then(|before| self.probes.get(before));
                let after = self.probes.get(place + run);
                let (first, last) = (&self.probes[place], &self.probes[place + run - 1]);
                let began = before.map_or(Window(first.sent, first.sent), |fate| Window(passed(fate), first.sent));
                let ended = after.map_or(Window(Time::NEVER, Time::NEVER), |fate| Window(last.sent, fate.sent));
                self.silences.push(Silence { began, ended });
            } else {
                self.loud.extend((place..place + run).map(|place| (place, false)));
            }
            place += run;
            if place < self.probes.len() {
                self.loud.push((place, false));
                place += 1;
            }
        }
    }
}

impl Window {
    fn middle(self) -> Time {
        self.0 + self.1.since(self.0) / 2
    }

    /// What is left of it with all that overlap.
    fn shared(self, others: &[Self]) -> Self {
        others.iter().fold(self, |left, other| {
            let both = Self(left.0.max(other.0), left.1.min(other.1));
            if both.0 <= both.1 { both } else { left }
        })
    }
}

fn key(run: u64, config: &Config, wan: WanId, target: usize) -> Option<Key> {
    let wan = config.wan(wan)?;
    Some((run, wan.name.clone(), wan.probe.targets.get(target)?.clone()))
}

/// A number that looks like any other: the finalizer of `SplitMix64`.
fn scattered(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// So many unanswered probes in a row are no accident.
const SILENCE: usize = 2;
/// A probe beyond those recorded fares as one of so many before and after.
const AROUND: usize = 10;
