//! The lines of a journal under another config: probes are sent when that config wants them and fare as the past says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::units::{WanId, WanName};

use super::past::Past;
use super::{Entry, Moment, ReplayReport, Watch, step};
use crate::event::{Event, Reply};
use crate::passive::Traffic;
use crate::router::Router;
use crate::time::Time;

pub(super) struct Rerun {
    config: Arc<Config>,
    names: BTreeMap<WanId, WanName>,
    past: Past,
    router: Router,
    run: u64,
    /// The router's clock is so much ahead of the journal's, which moves the moments of its probes.
    ahead: Duration,
    now: Time,
    /// The wall at the zero of the run.
    zero: u64,
    replies: VecDeque<(Time, Reply)>,
    report: ReplayReport,
}

impl Rerun {
    pub(super) fn new(entries: &[Entry], config: Arc<Config>, past: Past, ahead: Duration) -> Self {
        let mut names = BTreeMap::new();
        for (_, line) in entries {
            let taken = match (&line.checkpoint, &line.e) {
                (Some(checkpoint), _) => checkpoint.router.config(),
                (None, Some(Event::Config(config))) => Some(config),
                (None, _) => None,
            };
            names.extend(taken.iter().flat_map(|config| config.wans.values()).map(|wan| (wan.id, wan.name.clone())));
        }
        Self {
            config,
            names,
            past,
            router: Router::new(),
            run: 0,
            ahead,
            now: Time::ZERO,
            zero: 0,
            replies: VecDeque::new(),
            report: ReplayReport::default(),
        }
    }

    pub(super) fn run(mut self, entries: &[Entry], watch: &mut impl Watch) -> ReplayReport {
        for wan in self.config.wans.values() {
            for target in &wan.probe.targets {
                if !self.past.knows(&wan.name, target) {
                    self.report.unknown_targets.push(format!("{target} by {}", wan.name));
                }
            }
        }
        let mut begun = None;
        for (_, line) in entries {
            let t = line.t;
            match &line.checkpoint {
                Some(checkpoint) if begun != Some(checkpoint.run) => {
                    begun = Some(checkpoint.run);
                    self.run = checkpoint.run;
                    self.zero = checkpoint.wall.saturating_sub(t.as_micros());
                    self.begin(&checkpoint.router, t, watch);
                }
                Some(_) => {}
                None => {
                    self.pass_until(t, watch);
                    self.retell(&line.event(), t, watch);
                    self.report.steps += 1;
                }
            }
        }
        self.report
    }

    /// A run begins, or the journal does: the router is told what the recorded one knew.
    fn begin(&mut self, recorded: &Router, t: Time, watch: &mut impl Watch) {
        self.router = Router::new();
        self.replies.clear();
        self.now = t;
        if let Some(config) = recorded.config() {
            self.retell(&Event::Config(Arc::clone(config)), t, watch);
        }
        for fact in recorded.facts() {
            self.retell(&fact, t, watch);
        }
    }

    fn retell(&mut self, event: &Event, t: Time, watch: &mut impl Watch) {
        match event {
            Event::Config(_) if self.router.config().is_none() => {
                self.handle(&Event::Config(Arc::clone(&self.config)), t, watch);
            }
            Event::Neighbour { wan, family, mac } => {
                if let Some(wan) = self.same_line(*wan) {
                    self.handle(&Event::Neighbour { wan, family: *family, mac: *mac }, t, watch);
                }
            }
            Event::Silence { wan, family, flows, span } => {
                if let Some(wan) = self.same_line(*wan) {
                    self.handle(&Event::Silence { wan, family: *family, flows: *flows, span: *span }, t, watch);
                }
            }
            Event::Traffic(report) => {
                let report = report
                    .iter()
                    .filter_map(|traffic| Some(Traffic { wan: self.same_line(traffic.wan)?, ..traffic.clone() }));
                let report = Event::Traffic(report.collect());
                self.handle(&report, t, watch);
            }
            Event::Links(_) | Event::InForce | Event::Lease { .. } | Event::Seat(_) | Event::Request(_) => {
                self.handle(event, t, watch);
            }
            Event::Config(_) | Event::Reply(_) | Event::Timeout => {}
        }
    }

    /// The line of the other config that has the name this one had.
    fn same_line(&self, recorded: WanId) -> Option<WanId> {
        self.names.get(&recorded).and_then(|name| self.config.wans.get(name)).map(|wan| wan.id)
    }

    /// Lets time pass as the event loop would: replies, deadlines, probes.
    fn pass_until(&mut self, end: Time, watch: &mut impl Watch) {
        loop {
            let reply = self.replies.front().map_or(Time::NEVER, |(at, _)| *at);
            let deadline = self.router.deadline();
            let deadline = if deadline == Time::NEVER { deadline } else { deadline - self.ahead };
            let next = reply.min(deadline.max(self.now + Duration::from_micros(1)));
            if next > end || next == Time::NEVER {
                return;
            }
            match self.replies.pop_front() {
                Some((at, reply)) if at == next => self.handle(&Event::Reply(reply), next, watch),
                later => {
                    if let Some(later) = later {
                        self.replies.push_front(later);
                    }
                    self.handle(&Event::Timeout, next, watch);
                }
            }
        }
    }

    fn handle(&mut self, event: &Event, now: Time, watch: &mut impl Watch) {
        self.now = now;
        let before = self.router.revision();
        let (stepped, _) = step(&mut self.router, event, now + self.ahead);
        self.report.decisions += self.router.revision() - before;
        let wall = self.zero + now.as_micros();
        for notice in stepped.notices {
            watch.notice(self.run, now, &self.router, &notice);
            self.report.timeline.push(Moment { t: now, wall, notice });
        }
        for probe in stepped.probes {
            let fate = self.past.fare((self.run, &self.config), probe.wan, probe.target, (probe.seq, now));
            let Some((delay, outcome)) = fate else { continue };
            let reply = Reply { wan: probe.wan, target: probe.target, seq: probe.seq, outcome };
            let place = self.replies.partition_point(|(at, _)| *at <= now + delay);
            self.replies.insert(place, (now + delay, reply));
        }
    }
}
