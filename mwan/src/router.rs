//! The router: every event goes in here, the wanted state comes out. One owner, no locks, no clock.
//!
//! The event loop calls [`Router::handle`] with an event and the time, then [`Router::poll_probe`] until it gives
//! `None`, then waits for the next event or [`Router::deadline`], whichever is first.
//!
//! A line in one family goes through these states:
//!
//! ```text
//!   Unknown ──quorum──▶ Up ◀──thresholds──▶ Degraded          any ──no carrier, no interface──▶ NoCarrier
//!      │ ▲               │ quorum lost                         NoCarrier ──carrier──▶ Unknown
//!      │ └carrier        ▼
//!      └──silent──▶    Down ──quorum──▶ Held ──hold time──▶ Up     (Held ──quorum lost──▶ Down)
//! ```
//!
//! A line whose addresses are leased is `Down` without a lease, whatever else is.
//!
//! `Held` is skipped by a line that never failed, by one that was lost in an ISP outage, and after a fail-test.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::model::Seat;
use config::units::{Family, IfName, PolicyName, WanId, WanName};
use serde::{Deserialize, Serialize};

use crate::audit::{self, Audit, AuditEnd, Pair};
use crate::compile::{self, Waiting, compile, unresolved};
use crate::damping::Damping;
use crate::decide::{Chooser, Decision, Facts, Standing, Standings};
use crate::event::{Event, Health, Notice, Probe, Request};
use crate::evidence::{Blame, Evidence, Ground, Other, Sight, Stood};
use crate::fate::{self, SharedFate, TOGETHER};
use crate::lease::{self, Grant, Lease, Leases};
use crate::links::Links;
use crate::monitor::{Doubt, Monitor, Verdict};
use crate::passive::{Comparison, Fault, Headroom};
use crate::state::{BUCKETS, BucketKey, KernelState};
use crate::time::Time;

/// What it serializes to is a checkpoint: everything that what comes next depends on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Router {
    /// With what the leases and the seat say.
    config: Option<Arc<Config>>,
    /// The operator's, where it names lines whose addresses are leased, or a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written: Option<Arc<Config>>,
    #[serde(default)]
    leases: Leases,
    /// In the pair, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seat: Option<Seat>,
    /// `None` until the first [`Event::Links`]: nothing is known of any carrier.
    links: Option<Links>,
    /// Nothing is probed before that.
    in_force: bool,
    #[serde(with = "crate::state::as_pairs")]
    lines: BTreeMap<(WanId, Family), Line>,
    #[serde(with = "crate::state::as_pairs")]
    macs: BTreeMap<(WanId, Family), [u8; 6]>,
    drained: BTreeSet<WanName>,
    fail_tests: BTreeMap<WanName, Time>,
    #[serde(default)]
    audits: BTreeMap<Pair, Audit>,
    fates: BTreeMap<Family, SharedFate>,
    bad: BTreeSet<config::model::Target>,
    /// A target went up or down, or a carrier changed, since `bad` was computed.
    targets_changed: bool,
    /// Of the lines' traffic.
    comparison: Comparison,
    headroom: Headroom,
    settling: Settling,
    chooser: Chooser,
    /// What the last decision rests on; `None` forces the next.
    decided: Option<Basis>,
    /// A decision is due then, whatever else changes.
    decide_again: Option<Time>,
    decision: Decision,
    revision: u64,
    /// A function of the rest.
    #[serde(skip)]
    wanted: Option<Arc<KernelState>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Basis {
    #[serde(with = "crate::state::as_pairs")]
    standings: Standings,
    settled: bool,
    outages: BTreeMap<Family, bool>,
    headroom: BTreeMap<WanId, u8>,
}

impl Router {
    pub fn new() -> Self {
        Self::default()
    }

    /// Something happened.
    pub fn handle(&mut self, event: &Event, now: Time) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut quiet = false;
        // A reply goes in before anything expires: it may have waited behind whatever delayed this call.
        let stale = match event {
            Event::Config(config) => {
                self.end_audits(AuditEnd::Config, |_| true, &mut notices);
                self.take(config, now);
                notices.push(Notice::Configured { digest: config.digest.clone() });
                true
            }
            Event::Links(links) if self.links.as_ref() == Some(links) => false,
            Event::Links(links) => {
                self.links = Some(links.clone());
                self.follow_carriers(now);
                true
            }
            Event::InForce => {
                self.in_force = true;
                self.follow_carriers(now);
                false
            }
            Event::Neighbour { wan, family, mac } => {
                notices.extend(self.neighbour(*wan, *family, *mac));
                false
            }
            Event::Reply(reply) => {
                let targets = self.lines.range_mut((reply.wan, Family::V4)..=(reply.wan, Family::V6));
                self.targets_changed |= targets.fold(false, |changed, (_, line)| line.monitor.reply(reply) | changed);
                quiet = true;
                false
            }
            Event::Silence { wan, family, flows, span } => {
                if let Some(line) = self.lines.get_mut(&(*wan, *family)) {
                    line.monitor.doubt(Doubt { flows: *flows, span: *span }, now);
                }
                quiet = true;
                false
            }
            Event::Traffic(report) => {
                let found = self.comparison.take(report, now);
                let moved = self.config.as_ref().is_some_and(|config| self.headroom.take(report, &config.wans, now));
                quiet = !found && !moved;
                false
            }
            Event::Lease { wan, family, grant } => {
                quiet = true;
                self.leases.take(wan, *family, grant, now) && self.follow_lease(wan, *family, now, &mut notices)
            }
            Event::Seat(seat) => self.sit(seat, now, &mut notices),
            Event::Timeout => {
                quiet = true;
                false
            }
            Event::Request(request) => {
                self.request(request, now, &mut notices);
                matches!(request, Request::Audit { .. } | Request::EndAudit { .. })
            }
        };
        let stale = self.end_audits(AuditEnd::Time, |audit| audit.until <= now, &mut notices) || stale;
        let expired = self.leases.expire(now);
        let stale = expired
            .iter()
            .fold(stale, |stale, (wan, family)| self.follow_lease(wan, *family, now, &mut notices) || stale);
        for line in self.lines.values_mut() {
            self.targets_changed |= line.monitor.expire(now);
        }
        // Nearly every call is an answer like the one before it.
        let waiting = self.lines.values().any(|line| line.silent_since.is_some());
        if quiet && !stale && !self.targets_changed && !waiting && now < self.judge_due() {
            return notices;
        }
        self.judge(now, &mut notices);
        let decided = self.decide(now, &mut notices);
        if decided || stale {
            self.recompile();
        }
        notices
    }

    /// The next probe that is due; call until `None`.
    pub fn poll_probe(&mut self, now: Time) -> Option<Probe> {
        self.lines.values_mut().find_map(|line| line.monitor.poll_probe(now))
    }

    /// When to call `handle` with [`Event::Timeout`] and poll for probes, unless something happens before.
    pub fn deadline(&self) -> Time {
        self.lines.values().map(|line| line.monitor.deadline()).fold(self.judge_due(), Time::min)
    }

    /// When lines are to be judged again even if no target changes.
    fn judge_due(&self) -> Time {
        let lines =
            self.lines.values().flat_map(|line| [line.hold_until, line.silent_since.map(|since| since + TOGETHER)]);
        let fates = self.fates.values().map(SharedFate::deadline);
        let settling = match self.settling {
            Settling::Until(end) => end,
            Settling::Waiting | Settling::Over => Time::NEVER,
        };
        let rest = self
            .fail_tests
            .values()
            .copied()
            .chain(self.audits.values().map(|audit| audit.until))
            .chain([settling, self.comparison.deadline(), self.headroom.deadline(), self.leases.deadline()])
            .chain(self.decide_again);
        lines.flatten().chain(fates).chain(rest).min().unwrap_or(Time::NEVER)
    }

    /// The kernel as it should be; `None` before the first config. The same `Arc` while nothing changed.
    pub fn wanted(&self) -> Option<Arc<KernelState>> {
        self.wanted.clone()
    }

    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Goes up with every change of the decision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Every line has been judged since start, or has had the time to be: buckets rest on measured health.
    pub fn settled(&self) -> bool {
        matches!(self.settling, Settling::Over)
    }

    /// What a router that begins at this moment has to be told, beside a config, to stand where this one does.
    pub fn facts(&self) -> Vec<Event> {
        let links = self.links.clone().map(Event::Links).into_iter().chain(self.in_force.then_some(Event::InForce));
        let neighbours = self.macs.iter().map(|((wan, family), mac)| Event::Neighbour {
            wan: *wan,
            family: *family,
            mac: Some(*mac),
        });
        let drained = self.drained.iter().map(|wan| Event::Request(Request::Drain { wan: wan.clone() }));
        let leases = self.leases.iter().map(|(wan, family, held)| Event::Lease {
            wan: wan.clone(),
            family,
            grant: held.grant.clone(),
        });
        let seat = self.seat.clone().map(Event::Seat);
        leases.chain(seat).chain(links).chain(neighbours).chain(drained).collect()
    }

    /// This config as it would be with the leases and the seat there are.
    pub fn with_leases(&self, config: &Arc<Config>) -> Arc<Config> {
        seated(&lease::effective(config, &self.leases), self.seat.as_ref())
    }

    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The config in force, with what the leases say.
    pub fn config(&self) -> Option<&Arc<Config>> {
        self.config.as_ref()
    }

    /// What the last change of a line rests on.
    pub fn evidence(&self, wan: &WanName, family: Family) -> Option<&Evidence> {
        let id = self.config.as_ref()?.wans.get(wan)?.id;
        self.lines.get(&(id, family))?.changed.as_ref()
    }

    /// The MAC of the gateway, as far as anybody told.
    pub fn gateway_mac(&self, wan: WanId, family: Family) -> Option<[u8; 6]> {
        self.macs.get(&(wan, family)).copied()
    }

    /// The ports of the config in force that are not there; none before the links are known.
    pub fn waiting(&self) -> Vec<Waiting> {
        let known = self.config.as_ref().zip(self.links.as_ref());
        known.map(|(config, links)| unresolved(config, links)).unwrap_or_default()
    }

    /// What the target of a probe is; `None` once the config it came from is gone.
    pub fn target(&self, wan: WanId, target: usize) -> Option<&config::model::Target> {
        self.config.as_ref()?.wan(wan)?.probe.targets.get(target)
    }

    /// Each line's health and probes, without the rest of a snapshot. A line that an operator declared lost is left out.
    pub fn tallies(&self) -> impl Iterator<Item = (&WanName, Family, Tally)> {
        self.lines.iter().filter(|(_, line)| !line.tested).map(|((_, family), line)| {
            let Line { name, health, monitor, .. } = line;
            (name, *family, Tally { health: *health, sent: monitor.sent(), lost: monitor.lost() })
        })
    }

    pub fn snapshot(&self, now: Time) -> Snapshot {
        let Some(config) = &self.config else {
            return Snapshot { now, settled: self.settled(), ..Snapshot::default() };
        };
        let share = |wan: WanId, family: Family| {
            let key = config.router.default_policy.clone().map(|policy| BucketKey { policy, family });
            let buckets = key.and_then(|key| self.decision.buckets.get(&key));
            let held = buckets.and_then(|buckets| buckets.lines().get(&wan).copied()).unwrap_or(0);
            f64::from(held) * 100.0 / u32::try_from(BUCKETS).map_or(f64::INFINITY, f64::from)
        };
        let line = |wan: WanId, family: Family, line: &Line| LineStatus {
            health: line.health,
            since: line.since,
            why: line.why.clone(),
            usable: line.in_service() && !self.drained.contains(&line.name),
            share: share(wan, family),
            flaps: line.damping.level(&line.wan.probe, now),
            hold_until: line.hold_until,
            failovers: line.failovers,
            probes_sent: line.monitor.sent(),
            probes_lost: line.monitor.lost(),
            targets: line.monitor.status(),
            gateway_mac: self.gateway_mac(wan, family),
            changed: line.changed.clone(),
            lost: line.lost.clone(),
            lease: line.wan.is_leased(family).then(|| self.lease_status(line, family)),
        };
        let wans = config.wans.values().map(|wan| WanStatus {
            name: wan.name.clone(),
            id: wan.id,
            interface: wan.interface.clone(),
            carrier: self.links.as_ref().is_some_and(|links| links.has_carrier(&wan.interface)),
            drained: self.drained.contains(&wan.name),
            fail_test_until: self.fail_tests.get(&wan.name).copied(),
            families: self
                .lines
                .range((wan.id, Family::V4)..=(wan.id, Family::V6))
                .map(|((id, family), state)| (*family, line(*id, *family, state)))
                .collect(),
        });
        let policies = config.policies.keys().map(|name| {
            let uses: BTreeMap<_, _> =
                Family::ALL.into_iter().map(|family| (family, self.uses(config, name, family))).collect();
            let last_resort_active = uses.iter().map(|(family, uses)| (*family, uses.is_empty())).collect();
            PolicyStatus { name: name.clone(), uses, last_resort_active }
        });
        Snapshot {
            now,
            settled: self.settled(),
            wans: wans.collect(),
            policies: policies.collect(),
            isp_outage: self.fates.iter().map(|(family, fate)| (*family, fate.outage())).collect(),
            audits: self.audits.clone(),
        }
    }

    /// A config takes effect.
    fn take(&mut self, config: &Arc<Config>, now: Time) {
        if let Some(before) = &self.config {
            // A lease is of an interface.
            let moved = |name: &WanName| {
                let (old, new) = (before.wans.get(name), config.wans.get(name));
                old.zip(new).is_some_and(|(old, new)| old.interface != new.interface)
            };
            self.leases.forget(moved);
        }
        let effective = self.with_leases(config);
        self.written = (!Arc::ptr_eq(config, &effective)).then(|| Arc::clone(config));
        self.adopt(&effective, now);
    }

    /// Something about the lease of a line changed. True if other addresses come of it.
    fn follow_lease(&mut self, wan: &WanName, family: Family, now: Time, notices: &mut Vec<Notice>) -> bool {
        let Some(written) = &self.written else { return false };
        if !written.wans.get(wan).is_some_and(|wan| wan.is_leased(family)) {
            return false;
        }
        let (lease, why) = match self.leases.usable(written, wan, family) {
            Ok(lease) => (Some(lease.clone()), None),
            Err(why) => (None, Some(why)),
        };
        notices.push(Notice::Lease { wan: wan.clone(), family, lease, why });
        let effective = self.with_leases(written);
        if self.config.as_ref() != Some(&effective) {
            self.adopt(&effective, now);
            return true;
        }
        self.follow_carriers(now);
        false
    }

    /// True if something comes of it.
    fn sit(&mut self, seat: &Seat, now: Time, notices: &mut Vec<Notice>) -> bool {
        if self.seat.as_ref() == Some(seat) {
            return false;
        }
        self.seat = Some(seat.clone());
        let Some(written) = self.written.clone().or_else(|| self.config.clone()) else { return false };
        let effective = self.with_leases(&written);
        if Arc::ptr_eq(&written, &effective) {
            return false;
        }
        notices.push(Notice::Seat { seat: seat.clone() });
        self.written = Some(written);
        self.adopt(&effective, now);
        true
    }

    /// The other router of the pair has the lines, as far as we know. They are taken as good: whoever becomes active
    /// uses them at once, and finds out.
    fn is_standby(&self) -> bool {
        self.config.as_ref().and_then(|config| config.pair.as_ref()).is_some_and(|pair| !pair.is_active())
    }

    fn lease_status(&self, line: &Line, family: Family) -> LeaseStatus {
        let held = self.leases.get(&line.name, family);
        let (lease, until) = match held.map(|held| &held.grant) {
            Some(Grant::Held { lease, until }) => (Some(lease.clone()), Some(*until)),
            Some(Grant::Gone(_)) | None => (None, None),
        };
        LeaseStatus { lease, until, since: held.map(|held| held.since), why: line.no_lease.clone() }
    }

    /// Lines whose probing, interface and addressing stay keep what they know.
    fn adopt(&mut self, config: &Arc<Config>, now: Time) {
        let mut old = std::mem::take(&mut self.lines);
        for wan in config.wans.values() {
            for family in Family::ALL.into_iter().filter(|family| wan.carries(*family)) {
                let before = old.remove(&(wan.id, family));
                if before.as_ref().is_some_and(|line| line.wan.gateway(family) != wan.gateway(family)) {
                    self.macs.remove(&(wan.id, family));
                }
                let kept = before.filter(|line| line.serves(wan, family));
                let mut line = kept.unwrap_or_else(|| Line::new(wan, family, now));
                line.wan = wan.clone();
                line.name = wan.name.clone();
                self.lines.insert((wan.id, family), line);
            }
        }
        for (wan, family) in old.into_keys() {
            self.fates.entry(family).or_default().back(wan);
            self.macs.remove(&(wan, family));
            self.comparison.forget(wan, family);
        }
        for family in Family::ALL {
            self.fates.entry(family).or_default();
        }
        self.drained.retain(|name| config.wans.contains_key(name));
        self.fail_tests.retain(|name, _| config.wans.contains_key(name));
        self.config = Some(Arc::clone(config));
        self.targets_changed = true;
        self.decided = None;
        self.follow_carriers(now);
    }

    /// Starts and stops monitors by what the links, the leases and the seat say.
    fn follow_carriers(&mut self, now: Time) {
        let standby = self.is_standby();
        if let Some(config) = &self.config {
            for ((_, family), line) in &mut self.lines {
                let waits = line.wan.is_leased(*family) && !line.wan.has_address(*family);
                line.no_lease = if waits { self.leases.usable(config, &line.name, *family).err() } else { None };
            }
        }
        self.targets_changed = true;
        let Some(links) = &self.links else { return };
        if !self.in_force {
            return;
        }
        for line in self.lines.values_mut() {
            if links.has_carrier(&line.wan.interface) && line.no_lease.is_none() && !standby {
                line.monitor.start(now);
            } else {
                line.monitor.stop();
            }
        }
        if matches!(self.settling, Settling::Waiting) && self.config.is_some() {
            // The time the slowest target needs to be found silent.
            let slowest = self.lines.values().map(|line| {
                let probe = &line.wan.probe;
                probe.interval * u32::from(probe.fall.get()) + probe.timeout
            });
            self.settling = Settling::Until(now + slowest.max().unwrap_or_default());
        }
    }

    fn recompile(&mut self) {
        let Some(config) = &self.config else { return };
        let links = self.links.clone().unwrap_or_default();
        let mut state = compile(config, &self.decision, &links);
        for (pair, running) in &self.audits {
            compile::audit(&mut state, config, pair, running.span);
        }
        // Most changes of links concern nothing of ours: whoever watches the `Arc` is not woken for them.
        if self.wanted.as_deref() != Some(&state) {
            self.wanted = Some(Arc::new(state));
        }
    }

    fn neighbour(&mut self, wan: WanId, family: Family, mac: Option<[u8; 6]>) -> Option<Notice> {
        let name = self.lines.get(&(wan, family))?.name.clone();
        let before = match mac {
            Some(mac) => self.macs.insert((wan, family), mac),
            None => self.macs.remove(&(wan, family)),
        };
        (before != mac).then_some(Notice::GatewayMac { wan: name, family, mac })
    }

    /// Requests that name no line of the config change nothing; whoever asks learns that before.
    /// Ends those audits; `true` if there was one.
    fn end_audits(&mut self, why: AuditEnd, over: impl Fn(&Audit) -> bool, notices: &mut Vec<Notice>) -> bool {
        let ended: Vec<_> = self.audits.extract_if(.., |_, audit| over(audit)).map(|(pair, _)| pair).collect();
        let any = !ended.is_empty();
        notices.extend(ended.into_iter().map(|pair| Notice::AuditEnded { pair, why }));
        any
    }

    fn request(&mut self, request: &Request, now: Time, notices: &mut Vec<Notice>) {
        let known = |name: &WanName| self.config.as_ref().is_some_and(|config| config.wans.contains_key(name));
        match request {
            Request::Drain { wan } if known(wan) => {
                self.drained.insert(wan.clone());
            }
            Request::Undrain { wan } => {
                self.drained.remove(wan);
            }
            Request::FailTest { wan, span } if known(wan) => {
                self.fail_tests.insert(wan.clone(), now + *span);
            }
            // However it came here, it ends.
            Request::Audit { pair, span } if !self.audits.contains_key(pair) => {
                let span = (*span).min(audit::LONGEST);
                self.audits.insert(pair.clone(), Audit { until: now + span, span });
                notices.push(Notice::Audited { pair: pair.clone(), span });
            }
            Request::EndAudit { pair } => {
                let ended = self.audits.remove(pair).map(|_| pair.clone());
                notices.extend(ended.map(|pair| Notice::AuditEnded { pair, why: AuditEnd::Operator }));
            }
            Request::Drain { .. } | Request::FailTest { .. } | Request::Audit { .. } => {}
        }
    }

    /// Turns what monitors, carriers and operators say into the health of each line.
    fn judge(&mut self, now: Time, notices: &mut Vec<Notice>) {
        self.fail_tests.retain(|_, until| *until > now);
        self.comparison.pass(now);
        self.headroom.pass(now);
        if std::mem::take(&mut self.targets_changed) {
            self.find_bad_targets(now, notices);
        }
        for family in Family::ALL {
            self.judge_family(family, now, notices);
        }
        let end = match self.settling {
            Settling::Until(end) => now >= end,
            Settling::Waiting | Settling::Over => false,
        };
        let judged = self.lines.values().all(|line| line.health != Health::Unknown);
        if self.config.is_some() && self.links.is_some() && (end || judged) {
            self.settling = Settling::Over;
        }
    }

    fn find_bad_targets(&mut self, now: Time, notices: &mut Vec<Notice>) {
        let bad = fate::bad_targets(self.lines.values().map(|line| &line.monitor));
        let changes = self.bad.symmetric_difference(&bad);
        notices
            .extend(changes.map(|target| Notice::BadTarget { target: target.to_string(), bad: bad.contains(target) }));
        for line in self.lines.values_mut() {
            line.monitor.mark_bad(|target| bad.contains(target), now);
        }
        self.bad = bad;
    }

    fn judge_family(&mut self, family: Family, now: Time, notices: &mut Vec<Notice>) {
        let standby = self.is_standby();
        let Self { lines, fates, links, fail_tests, comparison, .. } = self;
        let Some(links) = links else { return };
        let fate = fates.entry(family).or_default();
        fate.pass(now);

        // What each line looks like at this moment.
        let seen: BTreeMap<WanId, Seen> = lines
            .iter()
            .filter(|((_, own), _)| *own == family)
            .map(|((id, _), line)| {
                let fault = comparison.fault(*id, family);
                (*id, line.seen(links, standby, fail_tests.contains_key(&line.name), fault))
            })
            .collect();

        // Lines in service that are not what they were; an operator's test is nobody's outage.
        let service = |id: &WanId| lines.get(&(*id, family)).is_some_and(Line::in_service);
        let lost: BTreeSet<WanId> = seen
            .iter()
            .filter(|(id, seen)| {
                matches!(seen, Seen::NoCarrier | Seen::NoLease | Seen::Probed(Verdict::Silent)) && service(id)
            })
            .map(|(id, _)| *id)
            .collect();
        let recent: BTreeSet<WanId> = fate.recent().chain(lost.iter().copied()).collect();
        let usable = seen.keys().filter(|id| service(id) || recent.contains(id)).count();
        let threshold = fate::outage_threshold(usable).unwrap_or(usize::MAX);
        let outage = !lost.is_empty() && recent.len() >= threshold;
        let waits = |id: WanId| {
            let suspicious = |other: &WanId| {
                let line = lines.get(&(*other, family));
                !recent.contains(other) && service(other) && line.is_some_and(|line| line.monitor.suspicious(now))
            };
            recent.len() + seen.keys().filter(|other| suspicious(other)).count() >= threshold
                || maybe_bad_target(lines, id, family, now)
        };
        let waiting: BTreeSet<WanId> = lost
            .iter()
            .copied()
            .filter(|id| !outage && seen.get(id) == Some(&Seen::Probed(Verdict::Silent)) && waits(*id))
            .collect();

        // What each of the others is to one that is lost, before any of them is judged.
        let stood: BTreeMap<WanId, Other> = seen
            .keys()
            .filter_map(|id| {
                let line = lines.get(&(*id, family))?;
                let stood = if recent.contains(id) {
                    Stood::LostToo
                } else if !line.in_service() {
                    Stood::Out
                } else if line.monitor.suspicious(now) {
                    Stood::Doubtful
                } else {
                    Stood::Fine
                };
                Some((*id, Other { wan: line.name.clone(), stood }))
            })
            .collect();

        let mut changed = Vec::new();
        for (id, seen) in seen {
            let Some(line) = lines.get_mut(&(id, family)) else { continue };
            if waiting.contains(&id) && now.since(*line.silent_since.get_or_insert(now)) < TOGETHER {
                continue;
            }
            line.silent_since = None;
            if lost.contains(&id) {
                fate.lost(id, matches!(seen, Seen::NoCarrier | Seen::NoLease), now);
                line.failovers += 1;
                line.damping.flap(&line.wan.probe, now);
            }
            let before = line.health;
            if let Some(notice) = line.become_seen(seen, family, now) {
                changed.push((id, before, seen));
                notices.push(notice);
            }
        }
        for (id, from, seen) in changed {
            let Some(mut evidence) = evidence(lines, id, family, (from, seen), now) else { continue };
            let loss = evidence.is_loss();
            if loss {
                let others = stood.iter().filter(|(other, _)| **other != id);
                evidence.others = others.map(|(_, other)| other.clone()).collect();
                let blame = Blame::of(evidence.ground, &evidence.targets, &evidence.others, outage || fate.outage());
                evidence.blame = Some(blame);
            }
            let Some(line) = lines.get_mut(&(id, family)) else { continue };
            if loss {
                line.lost = Some(evidence.clone());
            }
            line.changed = Some(evidence);
        }

        if outage {
            for id in &recent {
                if let Some(line) = lines.get_mut(&(*id, family)) {
                    line.damping.forgive();
                    // Of those lost before the one that made it an outage nobody knew.
                    for evidence in line.lost.iter_mut().chain(&mut line.changed) {
                        if evidence.is_loss() && evidence.blame != Some(Blame::Operator) {
                            evidence.blame = Some(Blame::Isp);
                        }
                    }
                }
            }
            if fate.declare() {
                notices.push(outage_notice(lines, family, true, recent.iter().copied()));
            }
        }
        let back: Vec<WanId> = lines
            .iter()
            .filter(|((id, own), line)| *own == family && fate.concerns(*id) && !lost.contains(id) && line.in_service())
            .map(|((id, _), _)| *id)
            .collect();
        for id in back {
            if fate.back(id) {
                notices.push(outage_notice(lines, family, false, [id]));
            }
        }
        let relief = lines.iter().any(|((_, own), line)| *own == family && line.in_service());
        if relief && fate.relieve(now) {
            notices.push(outage_notice(lines, family, false, []));
        }
    }

    /// A new decision, if what it rests on has changed. True if the decision itself did.
    fn decide(&mut self, now: Time, notices: &mut Vec<Notice>) -> bool {
        let Some(config) = self.config.clone() else { return false };
        let standings: Standings = self.lines.iter().map(|(key, line)| (*key, self.standing(*key, line))).collect();
        let outages: BTreeMap<Family, bool> =
            self.fates.iter().map(|(family, fate)| (*family, fate.outage())).collect();
        let headroom = self.headroom.tenths().clone();
        let basis = Basis { standings, settled: self.settled(), outages, headroom };
        if self.decided.as_ref() == Some(&basis) && self.decide_again.is_none_or(|due| now < due) {
            return false;
        }
        let facts =
            Facts { config: &config, standings: &basis.standings, settled: basis.settled, headroom: &basis.headroom };
        let outage = |family| basis.outages.get(&family).copied().unwrap_or(false);
        let decision = self.chooser.decide(facts, outage, &self.decision, now);
        self.decided = Some(basis);
        self.decide_again = Some(self.chooser.deadline(&config, now)).filter(|due| *due < Time::NEVER);
        if decision == self.decision {
            return false;
        }
        let before = std::mem::replace(&mut self.decision, decision);
        self.revision += 1;
        for policy in config.policies.keys() {
            for family in Family::ALL {
                let key = BucketKey { policy: policy.clone(), family };
                let lines = |decision: &Decision| {
                    decision.buckets.get(&key).map(|buckets| buckets.lines().into_keys().collect::<Vec<_>>())
                };
                if lines(&before).unwrap_or_default() != lines(&self.decision).unwrap_or_default() {
                    let uses = self.uses(&config, policy, family).into_iter().map(|line| line.wan).collect();
                    notices.push(Notice::PolicyUses { policy: policy.clone(), family, uses });
                }
            }
        }
        true
    }

    fn standing(&self, (id, family): (WanId, Family), line: &Line) -> Standing {
        Standing {
            health: line.health,
            drained: self.drained.contains(&line.name),
            frozen: !self.fail_tests.contains_key(&line.name)
                && self.fates.get(&family).is_some_and(|fate| fate.frozen(id)),
        }
    }

    fn uses(&self, config: &Config, policy: &PolicyName, family: Family) -> Vec<LineUse> {
        let lines = self.decision.buckets.get(&BucketKey { policy: policy.clone(), family });
        let lines = lines.map(crate::state::Buckets::lines).unwrap_or_default();
        let named = |(id, buckets)| Some(LineUse { wan: config.wan(id)?.name.clone(), buckets });
        lines.into_iter().filter_map(named).collect()
    }
}

/// Until every line has been judged once, lines that are not judged are trusted.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
enum Settling {
    /// For a config and for links.
    #[default]
    Waiting,
    Until(Time),
    Over,
}

/// One line in one family.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    name: WanName,
    wan: config::model::Wan,
    monitor: Monitor,
    damping: Damping,
    health: Health,
    since: Time,
    why: String,
    hold_until: Option<Time>,
    /// Found silent then; the verdict waits for what happens to the other lines.
    silent_since: Option<Time>,
    /// Down because an operator said so.
    tested: bool,
    /// Why there is no lease to use; `None` where there is one, or where none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    no_lease: Option<String>,
    failovers: u64,
    /// What its last change and its last loss rested on. Nothing is decided by them.
    #[serde(skip)]
    changed: Option<Evidence>,
    #[serde(skip)]
    lost: Option<Evidence>,
}

/// What a line looks like at one moment, before hold times.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Seen {
    NoCarrier,
    NoLease,
    /// The other router of the pair has it.
    Standby,
    FailTest,
    Probed(Verdict),
    /// Its probes are answered well, its traffic is not.
    Faulty(Fault),
}

impl Line {
    fn new(wan: &config::model::Wan, family: Family, now: Time) -> Self {
        Self {
            name: wan.name.clone(),
            wan: wan.clone(),
            monitor: Monitor::new(wan.id, family, &wan.probe),
            damping: Damping::default(),
            health: Health::Unknown,
            since: now,
            why: "not probed yet".to_owned(),
            hold_until: None,
            silent_since: None,
            tested: false,
            no_lease: None,
            failovers: 0,
            changed: None,
            lost: None,
        }
    }

    /// What was learnt about this line holds for `wan` as well. A line whose lease came or went is the same line.
    fn serves(&self, wan: &config::model::Wan, family: Family) -> bool {
        let waits = !self.wan.has_address(family) || !wan.has_address(family);
        let gateway = |wan: &config::model::Wan| wan.gateway(family);
        let same = gateway(&self.wan) == gateway(wan) && addresses(&self.wan, family).eq(addresses(wan, family));
        self.wan.interface == wan.interface && self.wan.probe == wan.probe && (same || waits)
    }

    fn seen(&self, links: &Links, standby: bool, fail_test: bool, fault: Option<Fault>) -> Seen {
        if !links.has_carrier(&self.wan.interface) {
            Seen::NoCarrier
        } else if self.no_lease.is_some() {
            Seen::NoLease
        } else if standby {
            Seen::Standby
        } else if fail_test {
            Seen::FailTest
        } else {
            match (self.monitor.verdict(), fault) {
                (Verdict::Good, Some(fault)) => Seen::Faulty(fault),
                (verdict, _) => Seen::Probed(verdict),
            }
        }
    }

    /// It answers, or did until something was noticed.
    fn in_service(&self) -> bool {
        match self.health {
            Health::Up | Health::Degraded | Health::Held => true,
            Health::Unknown | Health::Down | Health::NoCarrier => false,
        }
    }

    fn become_seen(&mut self, seen: Seen, family: Family, now: Time) -> Option<Notice> {
        let health = match seen {
            Seen::NoCarrier => Health::NoCarrier,
            Seen::NoLease | Seen::FailTest | Seen::Probed(Verdict::Silent) => Health::Down,
            Seen::Standby => Health::Up,
            // A line in use is never less judged than it was.
            Seen::Probed(Verdict::Unjudged) if self.in_service() || self.health == Health::Down => self.health,
            Seen::Probed(Verdict::Unjudged) => Health::Unknown,
            Seen::Probed(Verdict::Good) => self.after_hold(Health::Up, now),
            Seen::Probed(Verdict::Degraded) | Seen::Faulty(_) => self.after_hold(Health::Degraded, now),
        };
        self.tested = seen == Seen::FailTest;
        let from = self.health;
        if from == health {
            if let (Seen::NoLease, Some(why)) = (seen, &self.no_lease) {
                self.why.clone_from(why);
            }
            return None;
        }
        self.why = self.explain(seen, health, now);
        self.health = health;
        self.since = now;
        if health != Health::Held {
            self.hold_until = None;
        }
        Some(Notice::Health { wan: self.name.clone(), family, from, to: health, why: self.why.clone() })
    }

    /// `good` at once, or `Held` until the hold time is over.
    fn after_hold(&mut self, good: Health, now: Time) -> Health {
        match self.health {
            Health::Up | Health::Degraded => good,
            Health::Held => {
                if self.hold_until.is_none_or(|until| until <= now) {
                    good
                } else {
                    Health::Held
                }
            }
            Health::Unknown | Health::Down | Health::NoCarrier => {
                let hold = if self.tested { Duration::ZERO } else { self.damping.hold(&self.wan.probe, now) };
                self.hold_until = (!hold.is_zero()).then_some(now + hold);
                if hold.is_zero() { good } else { Health::Held }
            }
        }
    }

    fn explain(&self, seen: Seen, to: Health, now: Time) -> String {
        let probes = self.monitor.why(now);
        match seen {
            Seen::NoCarrier => format!("interface {} is missing, down or without carrier", self.wan.interface),
            Seen::NoLease => self.no_lease.clone().unwrap_or_default(),
            Seen::Standby => "taken as good: the other router of the pair uses it".to_owned(),
            Seen::FailTest => "declared down by an operator's fail-test".to_owned(),
            Seen::Probed(Verdict::Unjudged) => format!("carrier is there; {probes}"),
            Seen::Faulty(fault) if to != Health::Held => format!("{probes}, but {fault}"),
            Seen::Probed(_) | Seen::Faulty(_) if to == Health::Held => {
                let hold = self.hold_until.map(|until| until.since(now)).unwrap_or_default();
                let flaps = self.damping.level(&self.wan.probe, now);
                let times = if flaps == 1 { "failure" } else { "failures" };
                format!("{probes}; held for {} s after {flaps} recent {times}", hold.as_secs_f64())
            }
            Seen::Probed(Verdict::Good | Verdict::Degraded) if self.health == Health::Held => {
                format!("{probes}; good throughout its hold time")
            }
            Seen::Probed(Verdict::Good | Verdict::Degraded | Verdict::Silent) | Seen::Faulty(_) => probes,
        }
    }
}

/// The line would be in order without targets that are in doubt on every other line that uses them: they may be
/// about to turn out bad.
fn maybe_bad_target(lines: &BTreeMap<(WanId, Family), Line>, id: WanId, family: Family, now: Time) -> bool {
    let Some(line) = lines.get(&(id, family)) else { return false };
    let others = || lines.iter().filter(|((other, own), _)| *own == family && *other != id).map(|(_, line)| line);
    let doubted_elsewhere = |target: &config::model::Target| {
        let mut views = others().filter_map(|other| other.monitor.doubts(target, now)).peekable();
        views.peek().is_some() && views.all(|doubt| doubt)
    };
    let any_up = line.monitor.targets().any(|(_, up)| up == Some(true));
    any_up && matches!(line.monitor.verdict_without(doubted_elsewhere), Verdict::Good | Verdict::Degraded)
}

/// What a line that has just changed rests on, as far as it knows itself and its targets.
fn evidence(
    lines: &BTreeMap<(WanId, Family), Line>,
    id: WanId,
    family: Family,
    (from, seen): (Health, Seen),
    now: Time,
) -> Option<Evidence> {
    let line = lines.get(&(id, family))?;
    let others = || lines.iter().filter(|((other, own), _)| *own == family && *other != id).map(|(_, line)| line);
    let mut targets = line.monitor.sights(now);
    for (sight, (target, _)) in targets.iter_mut().zip(line.monitor.targets()) {
        let mut views = others().filter_map(|other| other.monitor.doubts(target, now)).peekable();
        sight.elsewhere = views.peek().is_some() && views.all(|doubt| doubt);
    }
    let burst = |targets: &[Sight]| targets.iter().filter_map(|sight| sight.silent).min().unwrap_or_default();
    let ground = match seen {
        Seen::NoCarrier => Ground::Carrier,
        Seen::NoLease => Ground::Lease,
        Seen::Standby => Ground::Seat,
        Seen::FailTest => Ground::FailTest,
        Seen::Faulty(_) => Ground::Traffic,
        Seen::Probed(Verdict::Silent) => match line.monitor.convicted() {
            Some(Doubt { flows, span }) => Ground::Return { flows, silence: span + burst(&targets) },
            None => Ground::Probes,
        },
        Seen::Probed(Verdict::Good | Verdict::Degraded | Verdict::Unjudged) => Ground::Probes,
    };
    Some(Evidence { at: now, from, to: line.health, ground, targets, others: Vec::new(), blame: None })
}

/// The config as it is in this seat: itself where it has no pair.
fn seated(config: &Arc<Config>, seat: Option<&Seat>) -> Arc<Config> {
    let (Some(pair), Some(seat)) = (&config.pair, seat) else { return Arc::clone(config) };
    if !pair.nodes.contains_key(&seat.node) {
        return Arc::clone(config);
    }
    let mut config = Config::clone(config);
    if let Some(pair) = &mut config.pair {
        pair.seat = Some(seat.clone());
    }
    Arc::new(config)
}

fn addresses(wan: &config::model::Wan, family: Family) -> impl Iterator<Item = &ipnet::IpNet> {
    wan.addressing.addresses.iter().filter(move |net| Family::of(net.addr()) == family)
}

fn outage_notice(
    lines: &BTreeMap<(WanId, Family), Line>,
    family: Family,
    outage: bool,
    wans: impl IntoIterator<Item = WanId>,
) -> Notice {
    let name = |id: WanId| lines.get(&(id, family)).map(|line| line.name.clone());
    Notice::IspOutage { family, outage, wans: wans.into_iter().filter_map(name).collect() }
}

/// How a line is, and its probes since it is probed this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub health: Health,
    pub sent: u64,
    pub lost: u64,
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
    #[serde(default)]
    pub audits: BTreeMap<Pair, Audit>,
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
    /// What its last change rests on; `None` until there was one.
    #[serde(default)]
    pub changed: Option<Evidence>,
    /// What its last loss rests on.
    #[serde(default)]
    pub lost: Option<Evidence>,
    /// Only where its addresses are leased.
    #[serde(default)]
    pub lease: Option<LeaseStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// What is granted, usable or not.
    pub lease: Option<Lease>,
    /// When it ends.
    pub until: Option<Time>,
    /// Since when it is what it is.
    pub since: Option<Time>,
    /// Why there is none that can be used.
    pub why: Option<String>,
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

#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod tests;
