//! What is known of the router at one moment: the last status, what the ones before it amount to, and the streams.
//! Answers come in with the time they came at; nothing here reads a clock or a socket.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use config::units::Family;

use crate::difference::Difference;
use crate::event_log::{Denied, Group};
use crate::status::{CellCount, Status};
use crate::talkers::Talkers;

/// A time on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub wall: SystemTime,
    /// Since the screen began; never goes back.
    pub at: Duration,
}

#[derive(Debug, Clone)]
pub struct Snapshot {
    pub now: Moment,
    pub status: Option<Status>,
    /// When the status came.
    pub heard: Option<Moment>,
    /// Why there is no answer at the moment.
    pub trouble: Option<String>,
    pub history: BTreeMap<(String, Family), LineHistory>,
    pub throughput: BTreeMap<String, Throughput>,
    pub rates: BTreeMap<(String, String), CellRate>,
    /// Denials per second to the router itself, by VLAN.
    pub input_rates: BTreeMap<String, f64>,
    /// The last seen comes last.
    pub denied: Vec<Group>,
    /// Denials that came faster than they could be told.
    pub missed: u64,
    /// Lines of text, the newest last.
    pub journal: VecDeque<String>,
    /// Why the journal is not followed.
    pub journal_trouble: Option<String>,
    pub talkers: Option<Result<Talkers, String>>,
    /// The site file against what is in force.
    pub plan: Option<Result<Difference, String>>,
}

/// The newest last; a value for each status.
#[derive(Debug, Clone, Default)]
pub struct LineHistory {
    pub rtt: VecDeque<Option<f64>>,
    pub loss: VecDeque<Option<f64>>,
}

/// Of an interface, in bits per second.
#[derive(Debug, Clone, Default)]
pub struct Throughput {
    pub received: VecDeque<Option<f64>>,
    pub sent: VecDeque<Option<f64>>,
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CellRate {
    pub allowed: f64,
    pub denied: f64,
}

impl Snapshot {
    /// Nothing is known yet.
    pub fn new(now: Moment) -> Self {
        Self {
            now,
            status: None,
            heard: None,
            trouble: None,
            history: BTreeMap::new(),
            throughput: BTreeMap::new(),
            rates: BTreeMap::new(),
            input_rates: BTreeMap::new(),
            denied: Vec::new(),
            missed: 0,
            journal: VecDeque::new(),
            journal_trouble: None,
            talkers: None,
            plan: None,
        }
    }

    pub fn take_status(&mut self, status: Status, now: Moment) {
        let before = self.heard.zip(self.status.take());
        let span = before.as_ref().map(|(heard, _)| now.at.saturating_sub(heard.at).as_secs_f64());
        let before = before.map(|(_, status)| status);
        // A counter that went back began anew.
        let rate = |old: Option<u64>, new: u64| {
            let span = span.filter(|span| *span > 0.0)?;
            Some(float(new.checked_sub(old?)?) / span)
        };
        self.history.retain(|(name, _), _| status.wans.iter().any(|wan| wan.name == *name));
        for wan in &status.wans {
            for line in &wan.families {
                let history = self.history.entry((wan.name.clone(), line.family)).or_default();
                remember(&mut history.rtt, line.rtt_seconds);
                remember(&mut history.loss, line.loss_ratio);
            }
        }
        self.throughput.retain(|name, _| status.ports.iter().any(|port| port.name == *name));
        for port in &status.ports {
            let old = before.as_ref().and_then(|status| status.ports.iter().find(|old| old.name == port.name));
            let old = old.and_then(|old| old.link.as_ref());
            let link = port.link.as_ref();
            let throughput = self.throughput.entry(port.name.clone()).or_default();
            let received = link.and_then(|link| rate(old.map(|old| old.received.bytes), link.received.bytes));
            let sent = link.and_then(|link| rate(old.map(|old| old.sent.bytes), link.sent.bytes));
            remember(&mut throughput.received, received.map(|bytes| bytes * 8.0));
            remember(&mut throughput.sent, sent.map(|bytes| bytes * 8.0));
        }
        // Pairs are listed once they counted something: before, they had counted nothing.
        let old = |cell: &CellCount| {
            let status = before.as_ref()?;
            let old = status.cells.iter().find(|old| (&old.from, &old.to) == (&cell.from, &cell.to));
            Some(old.map_or((0, 0), |old| (old.allowed_flows, old.denied_packets)))
        };
        self.rates = status
            .cells
            .iter()
            .map(|cell| {
                let old = old(cell);
                let rates = CellRate {
                    allowed: rate(old.map(|old| old.0), cell.allowed_flows).unwrap_or_default(),
                    denied: rate(old.map(|old| old.1), cell.denied_packets).unwrap_or_default(),
                };
                ((cell.from.clone(), cell.to.clone()), rates)
            })
            .collect();
        self.input_rates = status
            .denied_input
            .iter()
            .map(|(zone, count)| {
                let old = before.as_ref().map(|old| old.denied_input.get(zone).copied().unwrap_or_default());
                (zone.clone(), rate(old, *count).unwrap_or_default())
            })
            .collect();
        self.status = Some(status);
        self.heard = Some(now);
        self.trouble = None;
    }

    /// What the daemon remembers of denials.
    pub fn take_groups(&mut self, groups: Vec<Group>) {
        self.denied = groups;
    }

    pub fn take_denied(&mut self, denied: Denied) {
        let same = |group: &Group| {
            let last = &group.last;
            (last.kind, &last.cell, last.from.address, last.to.address, &last.service)
                == (denied.kind, &denied.cell, denied.from.address, denied.to.address, &denied.service)
        };
        let group = match self.denied.iter().position(same) {
            Some(place) => {
                let group = self.denied.remove(place);
                Group { count: group.count + 1, last: denied, ..group }
            }
            None => Group { count: 1, since: denied.time.clone(), last: denied },
        };
        self.denied.push(group);
        if self.denied.len() > REMEMBERED {
            self.denied.remove(0);
        }
    }

    pub fn take_journal(&mut self, line: &str) {
        self.journal.extend(line.lines().map(str::to_owned));
        while self.journal.len() > REMEMBERED {
            self.journal.pop_front();
        }
    }

    /// Why what is on the screen is old, and since when; `None` while the daemon answers.
    pub fn silence(&self) -> Option<(Duration, &str)> {
        let since = self.now.at.saturating_sub(self.heard.map_or(Duration::ZERO, |heard| heard.at));
        match &self.trouble {
            Some(why) => Some((since, why)),
            None => (since > PATIENCE).then_some((since, "it does not answer")),
        }
    }
}

fn remember(values: &mut VecDeque<Option<f64>>, value: Option<f64>) {
    if values.len() >= HISTORY {
        values.pop_front();
    }
    values.push_back(value);
}

#[expect(clippy::cast_precision_loss, reason = "for people; beyond 2^53 nobody sees the difference")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

/// As wide as a sparkline gets.
const HISTORY: usize = 120;
/// Groups of denials, and lines of the journal.
const REMEMBERED: usize = 500;
/// Without an answer for this long the numbers on the screen are called old.
const PATIENCE: Duration = Duration::from_secs(3);
