//! The router: every event goes in here, the wanted state comes out. One owner, no locks, no clock.
//!
//! The event loop calls [`Router::handle`] with an event and the time, then [`Router::poll_probe`] until it gives
//! `None`, then waits for the next event or [`Router::deadline`], whichever is first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::units::{Family, IfName, PolicyName, WanId, WanName};
use serde::{Deserialize, Serialize};

use crate::decide::Decision;
use crate::event::{Event, Health, Notice, Probe};
use crate::links::Links;
use crate::state::KernelState;
use crate::time::Time;

#[derive(Debug, Default)]
pub struct Router {
    config: Option<Arc<Config>>,
    links: Links,
    decision: Decision,
    wanted: Option<Arc<KernelState>>,
}

impl Router {
    pub fn new() -> Self {
        Self::default()
    }

    /// Something happened.
    pub fn handle(&mut self, event: &Event, _now: Time) -> Vec<Notice> {
        match event {
            Event::Config(config) => self.config = Some(Arc::clone(config)),
            Event::Links(links) => self.links = links.clone(),
            Event::Neighbour { .. } | Event::Reply(_) | Event::Timeout | Event::Request(_) => {}
        }
        self.wanted =
            self.config.as_ref().map(|config| Arc::new(crate::compile::compile(config, &self.decision, &self.links)));
        Vec::new()
    }

    /// The next probe that is due; call until `None`.
    pub fn poll_probe(&mut self, _now: Time) -> Option<Probe> {
        None
    }

    /// When to call `handle` with [`Event::Timeout`] and poll for probes, unless something happens before.
    pub fn deadline(&self) -> Time {
        Time::NEVER
    }

    /// The kernel as it should be; `None` before the first config. The same `Arc` while nothing changed.
    pub fn wanted(&self) -> Option<Arc<KernelState>> {
        self.wanted.clone()
    }

    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Every line has been judged since start: buckets reflect measured health and not hope.
    pub fn settled(&self) -> bool {
        true
    }

    pub fn snapshot(&self, now: Time) -> Snapshot {
        Snapshot { now, ..Snapshot::default() }
    }
}

/// What the core knows, for status and metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The time of the snapshot; every other time in it is on the same clock.
    pub now: Time,
    /// Every line has been judged since start.
    pub settled: bool,
    /// By name.
    pub wans: Vec<WanStatus>,
    /// By name.
    pub policies: Vec<PolicyStatus>,
    /// Most lines were lost together and none of them is back.
    pub isp_outage: BTreeMap<Family, bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WanStatus {
    pub name: WanName,
    pub id: WanId,
    pub interface: IfName,
    pub carrier: bool,
    /// An operator took it out of the choice for new flows.
    pub drained: bool,
    /// An operator declared it down until then.
    pub fail_test_until: Option<Time>,
    /// The families the line carries.
    pub families: BTreeMap<Family, LineStatus>,
}

/// One line in one family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LineStatus {
    pub health: Health,
    /// When it took this state.
    pub since: Time,
    /// Why it took this state: a sentence for people.
    pub why: String,
    /// New flows may be sent here.
    pub usable: bool,
    /// The part of the default policy's buckets it holds, in percent.
    pub share: f64,
    /// The failures the hold time remembers; decays while the line is good.
    pub flaps: u32,
    /// `Held` ends then.
    pub hold_until: Option<Time>,
    /// How often it was lost since start: `Up`, `Degraded` or `Held` to `Down` or `NoCarrier`.
    pub failovers: u64,
    /// Probes of all its targets since start.
    pub probes_sent: u64,
    pub probes_lost: u64,
    pub targets: Vec<TargetStatus>,
    /// The gateway's MAC as the kernel resolved it.
    pub gateway_mac: Option<[u8; 6]>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// As in the log: `icmp 198.51.100.1`.
    pub target: String,
    /// Index into `Probing::targets` of the WAN.
    pub index: usize,
    /// `None` until judged.
    pub up: Option<bool>,
    /// Fails on every line that uses it while their other targets answer: not counted.
    pub bad: bool,
    /// Beyond a loss, latency or jitter threshold.
    pub degraded: bool,
    pub sent: u64,
    pub answered: u64,
    pub lost: u64,
    /// Answers that came after their probe was counted as lost.
    pub late: u64,
    pub rtt_last: Option<Duration>,
    /// Over the window.
    pub rtt_mean: Option<Duration>,
    pub rtt_min: Option<Duration>,
    pub rtt_max: Option<Duration>,
    /// Smoothed difference of successive round-trip times (RFC 3550, 6.4.1).
    pub jitter: Option<Duration>,
    /// Over the window.
    pub loss_pct: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    pub name: PolicyName,
    /// The lines it uses, with their number of buckets of 256.
    pub uses: BTreeMap<Family, Vec<LineUse>>,
    /// No line is usable: its last resort stands.
    pub last_resort_active: BTreeMap<Family, bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineUse {
    pub wan: WanName,
    pub buckets: u16,
}
