//! Bad target, bad line or bad ISP? What one line cannot know alone.
//!
//! **Bad target.** A target that is down on every line with carrier that uses it, two at least, while each of those
//! lines that has another target sees one of them up, is not counted. Where it is the only target of a line it
//! still counts there.
//!
//! **ISP outage.** Of the lines of a family that were usable, three quarters (rounded up; two at least) lost within
//! [`TOGETHER`] are one event and not several. Flows on them are then frozen: none is deleted, none is told to
//! reconnect, because there is nothing better or because all of it comes back together. New flows use whatever
//! line is left; with none left, buckets stay as they were. The freeze of a line ends when it is back, or
//! [`PATIENCE`] after some line of the family became usable, since then its flows do have a better path.
//!
//! To tell the cases apart without delaying the common one, a line that falls silent is judged at once unless
//! enough other lines are suspicious at that moment (their latest probes are lost or overdue); then the verdict
//! waits until they are decided, at most [`TOGETHER`]. Carrier losses show no suspicion: the first acts at once,
//! and from the second within [`TOGETHER`] on only the flows wait, until that span is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use config::model::{Target, TargetKind};
use config::units::WanId;
use serde::{Deserialize, Serialize};

use crate::monitor::Monitor;
use crate::time::Time;

/// Losses within this span are one event.
pub const TOGETHER: Duration = Duration::from_millis(200);
/// How long flows on a line lost in an outage stay frozen once another line could carry them.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The targets that fail everywhere while the lines work.
pub fn bad_targets<'a>(monitors: impl Iterator<Item = &'a Monitor>) -> BTreeSet<Target> {
    let mut seen: BTreeMap<&Target, Vec<Sight>> = BTreeMap::new();
    for monitor in monitors.filter(|monitor| monitor.running()) {
        for (place, (target, up)) in monitor.targets().enumerate() {
            let mut others = monitor.targets().enumerate().filter(|(other, _)| *other != place).peekable();
            let sight = Sight {
                down: up == Some(false),
                only: others.peek().is_none(),
                other_up: others.any(|(_, (_, up))| up == Some(true)),
            };
            seen.entry(target).or_default().push(sight);
        }
    }
    seen.into_iter()
        // Each line has a gateway of its own behind this one word.
        .filter(|(target, _)| target.kind != TargetKind::Gateway)
        .filter(|(_, sights)| {
            sights.len() >= 2
                && sights.iter().all(|sight| sight.down && (sight.only || sight.other_up))
                && sights.iter().any(|sight| sight.other_up)
        })
        .map(|(target, _)| target.clone())
        .collect()
}

/// A target as one line sees it.
struct Sight {
    down: bool,
    only: bool,
    other_up: bool,
}

/// How many of these lines must be lost together for it to be an outage; `None` where one line tells nothing.
pub fn outage_threshold(usable: usize) -> Option<usize> {
    (usable >= 2).then(|| (usable * 3).div_ceil(4))
}

/// What one family's lines go through together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SharedFate {
    /// Lines lost within the last [`TOGETHER`].
    recent: BTreeMap<WanId, Time>,
    /// Lines whose flows stay, and until when (`None`: no end in sight).
    frozen: BTreeMap<WanId, Option<Time>>,
    /// The lines an outage took and that are not back.
    outage: Option<BTreeSet<WanId>>,
}

impl SharedFate {
    /// Forgets losses that are too long ago to belong to the next.
    pub fn pass(&mut self, now: Time) {
        self.recent.retain(|_, lost| now.since(*lost) <= TOGETHER);
        self.frozen.retain(|_, until| until.is_none_or(|until| until > now));
    }

    pub fn recent(&self) -> impl Iterator<Item = WanId> {
        self.recent.keys().copied()
    }

    /// A line is lost. With `others_hidden` (carrier) its flows wait if it is not the first.
    pub fn lost(&mut self, wan: WanId, others_hidden: bool, now: Time) {
        let first = self.recent.values().min().copied();
        self.recent.insert(wan, now);
        if let Some(first) = first.filter(|_| others_hidden) {
            self.frozen.entry(wan).or_insert(Some(first + TOGETHER));
        }
    }

    /// Most lines are gone together. True if that is news.
    pub fn declare(&mut self) -> bool {
        let news = self.outage.is_none();
        let outage = self.outage.get_or_insert_default();
        for (wan, _) in std::mem::take(&mut self.recent) {
            outage.insert(wan);
            self.frozen.insert(wan, None);
        }
        news
    }

    /// A line answers again (or was taken out of the config). True if an outage ends by it.
    pub fn back(&mut self, wan: WanId) -> bool {
        self.recent.remove(&wan);
        self.frozen.remove(&wan);
        self.outage.take_if(|lost| lost.contains(&wan)).is_some()
    }

    /// Another line could carry the frozen flows: patience begins. True if an outage ended by the end of it.
    pub fn relieve(&mut self, now: Time) -> bool {
        for until in self.frozen.values_mut() {
            until.get_or_insert(now + PATIENCE);
        }
        self.outage.take_if(|lost| lost.iter().all(|wan| !self.frozen.contains_key(wan))).is_some()
    }

    pub fn frozen(&self, wan: WanId) -> bool {
        self.frozen.contains_key(&wan)
    }

    /// It was lost a moment ago, or its flows are frozen.
    pub fn concerns(&self, wan: WanId) -> bool {
        self.recent.contains_key(&wan) || self.frozen(wan)
    }

    pub fn outage(&self) -> bool {
        self.outage.is_some()
    }

    /// When the next freeze ends.
    pub fn deadline(&self) -> Time {
        self.frozen.values().flatten().min().copied().unwrap_or(Time::NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quarters_rounded_up_make_an_outage() {
        let table = [(0, None), (1, None), (2, Some(2)), (3, Some(3)), (4, Some(3)), (8, Some(6)), (16, Some(12))];
        for (usable, threshold) in table {
            assert_eq!(outage_threshold(usable), threshold, "{usable} lines");
        }
    }
}
