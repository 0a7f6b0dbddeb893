//! A site to test with and a world around its router: lines that answer, or do not, on virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::model::{
    Addressing, Balance, Failback, FastPath, Kick, LastResort, Member, Nat6, Policy, Probing, Router as RouterConfig,
    Target, TargetKind, Threshold, Wan,
};
use config::units::{Family, IfName, Line, PolicyId, PolicyName, Tier, WanId, WanName, Weight};

use crate::event::{Event, Failure, Health, Notice, Outcome, Probe, Reply, Request};
use crate::journal::{Recorder, Stepped};
use crate::links::{LinkFacts, Links};
use crate::router::{LineStatus, Router};
use crate::state::{BucketKey, FlowClass};
use crate::time::Time;

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn nonzero(value: u8) -> NonZeroU8 {
    NonZeroU8::new(value).unwrap()
}

pub(crate) fn wan_id(id: u8) -> WanId {
    WanId::new(id).unwrap()
}

pub(crate) fn wan_name(id: u8) -> WanName {
    format!("wan{id}").parse().unwrap()
}

pub(crate) fn policy_name(name: &str) -> PolicyName {
    name.parse().unwrap()
}

pub(crate) fn icmp(address: &str) -> Target {
    let address: std::net::IpAddr = address.parse().unwrap();
    Target { family: Family::of(address), kind: TargetKind::Icmp { address } }
}

pub(crate) const TARGETS: [&str; 3] = ["198.51.100.1", "198.51.100.2", "198.51.100.3"];
pub(crate) const TARGETS6: [&str; 2] = ["2001:db8:100::1", "2001:db8:100::2"];

pub(crate) fn probing() -> Probing {
    Probing {
        targets: TARGETS.iter().chain(&TARGETS6).map(|target| icmp(target)).collect(),
        interval: ms(100),
        timeout: ms(100),
        fall: nonzero(3),
        rise: nonzero(3),
        quorum: nonzero(1),
        window: 20,
        loss: Some(Threshold { fail: 20, recover: 5 }),
        latency: Some(Threshold { fail: ms(80), recover: ms(40) }),
        jitter: None,
        hold: secs(10),
        hold_max: secs(600),
    }
}

pub(crate) fn wan(id: u8) -> Wan {
    let address = |text: String| text.parse().unwrap();
    Wan {
        name: wan_name(id),
        id: wan_id(id),
        interface: wan_name(id).as_str().parse().unwrap(),
        method: config::model::Method::Static,
        addressing: Addressing {
            addresses: vec![address(format!("100.64.{id}.2/24")), address(format!("2001:db8:ff{id:02x}::2/64"))],
            gateway4: Some(format!("100.64.{id}.1").parse().unwrap()),
            gateway6: Some(format!("2001:db8:ff{id:02x}::1").parse().unwrap()),
            routes: Vec::new(),
            delegated: Vec::new(),
        },
        mtu: None,
        weight: Weight(nonzero(1)),
        download: None,
        upload: None,
        nat6: Nat6::Masquerade,
        input: Vec::new(),
        bogons: false,
        probe: probing(),
        comment: String::new(),
        line: Line(1),
    }
}

/// Members as (line, weight, tier).
pub(crate) fn policy(name: &str, id: u8, members: &[(u8, u8, u8)]) -> Policy {
    Policy {
        name: policy_name(name),
        id: PolicyId(id),
        members: members
            .iter()
            .map(|(wan, weight, tier)| Member {
                wan: wan_name(*wan),
                weight: Weight(nonzero(*weight)),
                tier: Tier(*tier),
            })
            .collect(),
        balance: Balance::Flow,
        last_resort: LastResort::Unreachable,
        failback: Failback::Stay,
        kick: Kick::All,
        comment: String::new(),
        line: Line(1),
    }
}

/// Lines `wan1` … of equal weight; policies `balanced` (all of them) and `standby` (`wan1`, else `wan2`).
pub(crate) fn site(wans: u8) -> Config {
    let all: Vec<_> = (1..=wans).map(|id| (id, 1, 0)).collect();
    let standby = [(1, 1, 0), (2, 1, 1)];
    let policies =
        [policy("balanced", 1, &all), policy("standby", 2, standby.get(..usize::from(wans.min(2))).unwrap())];
    Config {
        site: "test".to_owned(),
        digest: "0".repeat(64),
        router: RouterConfig {
            metrics: None,
            default_policy: Some(policy_name("balanced")),
            own_policy: Some(policy_name("balanced")),
            denied_log_rate: 10,
        },
        api: None,
        crypto: config::model::Crypto::default(),
        fast_path: Some(FastPath::default()),
        ports: BTreeMap::new(),
        vlans: BTreeMap::new(),
        hosts: BTreeMap::new(),
        services: BTreeMap::new(),
        egress: BTreeMap::new(),
        cells: Vec::new(),
        wans: (1..=wans).map(|id| (wan_name(id), wan(id))).collect(),
        policies: policies.into_iter().map(|policy| (policy.name.clone(), policy)).collect(),
        steering: Vec::new(),
        asserts: Vec::new(),
        syslog: Vec::new(),
        webhooks: Vec::new(),
        hooks: Vec::new(),
        dns: None,
        tls_offload: BTreeMap::new(),
        dhcp: None,
        ra: None,
        ntp: None,
        pair: None,
    }
}

/// A line that lost its family in the file.
pub(crate) fn without_v6(config: &mut Config) {
    for wan in config.wans.values_mut() {
        wan.addressing.gateway6 = None;
        wan.addressing.addresses.truncate(1);
        wan.probe.targets.retain(|target| target.family == Family::V4);
    }
}

/// How a target answers on a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Answer {
    After(Duration),
    Refused,
    Never,
}

type Answers = Box<dyn FnMut(u8, &Target, u64) -> Answer>;

/// A router, its lines and the time.
pub(crate) struct World {
    pub(crate) driver: Driver,
    pub(crate) now: Time,
    pub(crate) config: Config,
    pub(crate) answers: Answers,
    pub(crate) carriers: BTreeMap<u8, bool>,
    pub(crate) notices: Vec<(Time, Notice)>,
    replies: BTreeMap<(Time, u64), Reply>,
    pub(crate) sent: u64,
}

pub(crate) enum Driver {
    Plain(Router),
    Recorded(Recorder),
}

impl World {
    /// Every carrier there, every target answering after 10 ms; config and links have been told.
    pub(crate) fn new(config: Config) -> Self {
        let mut world = Self::unplugged(config);
        world.begin();
        world
    }

    /// As `new`, with a journal.
    pub(crate) fn recorded(config: Config) -> Self {
        let mut world = Self::unplugged(config);
        world.driver = Driver::Recorded(Recorder::new(1, Time::ZERO, Duration::ZERO));
        world.begin();
        world
    }

    fn unplugged(config: Config) -> Self {
        Self {
            driver: Driver::Plain(Router::new()),
            now: Time::from_micros(1_234_567),
            carriers: config.wans.values().map(|wan| (wan.id.get(), true)).collect(),
            config,
            answers: Box::new(|_, _, _| Answer::After(ms(10))),
            notices: Vec::new(),
            replies: BTreeMap::new(),
            sent: 0,
        }
    }

    pub(crate) fn begin(&mut self) {
        self.handle(&Event::Config(Arc::new(self.config.clone())));
        self.tell_links();
        self.handle(&Event::InForce);
    }

    pub(crate) fn router(&self) -> &Router {
        match &self.driver {
            Driver::Plain(router) => router,
            Driver::Recorded(recorder) => recorder.router(),
        }
    }

    pub(crate) fn handle(&mut self, event: &Event) {
        let now = self.now;
        let Stepped { notices, probes } = match &mut self.driver {
            Driver::Plain(router) => Stepped {
                notices: router.handle(event, now),
                probes: std::iter::from_fn(|| router.poll_probe(now)).collect(),
            },
            Driver::Recorded(recorder) => recorder.step(event, now),
        };
        self.notices.extend(notices.into_iter().map(|notice| (now, notice)));
        for probe in &probes {
            self.fare(probe);
        }
    }

    fn fare(&mut self, probe: &Probe) {
        self.sent += 1;
        let target = self.router().target(probe.wan, probe.target).unwrap().clone();
        let (delay, outcome) = match (self.answers)(probe.wan.get(), &target, self.sent) {
            Answer::After(rtt) => (rtt, Outcome::Answered { rtt }),
            Answer::Refused => (ms(2), Outcome::Failed { why: Failure::Refused }),
            Answer::Never => return,
        };
        let reply = Reply { wan: probe.wan, target: probe.target, seq: probe.seq, outcome };
        self.replies.insert((self.now + delay, self.sent), reply);
    }

    /// Lets time pass as the event loop does.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let reply = self.replies.keys().next().copied();
            let deadline = self.router().deadline();
            assert!(deadline > self.now, "a deadline that has passed makes the event loop spin");
            let next = reply.map_or(deadline, |(at, _)| at.min(deadline));
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            match reply.filter(|(at, _)| *at == next).and_then(|key| self.replies.remove(&key)) {
                Some(reply) => self.handle(&Event::Reply(reply)),
                None => self.handle(&Event::Timeout),
            }
        }
    }

    /// Lets time pass in which the event loop gets no processor. What was answered meanwhile it sees before it looks
    /// at its clock.
    pub(crate) fn sleep(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(entry) = self.replies.first_entry().filter(|entry| entry.key().0 <= end) {
            let reply = entry.remove();
            self.handle(&Event::Reply(reply));
        }
        self.now = end;
        self.handle(&Event::Timeout);
    }

    /// The lines of these ids swallow everything; the others answer after 10 ms.
    pub(crate) fn silence(&mut self, wans: &[u8]) {
        let wans = wans.to_vec();
        self.answers =
            Box::new(move |wan, _, _| if wans.contains(&wan) { Answer::Never } else { Answer::After(ms(10)) });
    }

    pub(crate) fn carrier(&mut self, wan: u8, there: bool) {
        self.carriers.insert(wan, there);
        self.tell_links();
    }

    pub(crate) fn tell_links(&mut self) {
        let facts = |index: u8, carrier: bool| LinkFacts {
            index: u32::from(index),
            admin_up: true,
            carrier,
            mac: None,
            mtu: 1500,
            master: None,
            driver: None,
            pci: None,
            ours: false,
        };
        let name = |id: u8| wan_name(id).as_str().parse::<IfName>().unwrap();
        let links = Links(self.carriers.iter().map(|(id, carrier)| (name(*id), facts(*id, *carrier))).collect());
        self.handle(&Event::Links(links));
    }

    /// This line has answered no flow for 150 ms, in IPv4.
    pub(crate) fn nothing_returns(&mut self, wan: u8) {
        self.handle(&Event::Silence { wan: wan_id(wan), family: Family::V4, flows: 12, span: ms(150) });
    }

    pub(crate) fn request(&mut self, request: Request) {
        self.handle(&Event::Request(request));
    }

    pub(crate) fn line(&self, wan: u8, family: Family) -> LineStatus {
        let snapshot = self.router().snapshot(self.now);
        let wan = snapshot.wans.into_iter().find(|status| status.id.get() == wan).unwrap();
        wan.families.get(&family).unwrap().clone()
    }

    /// The health of a line in IPv4.
    pub(crate) fn health(&self, wan: u8) -> Health {
        self.line(wan, Family::V4).health
    }

    /// The lines a policy uses for IPv4.
    pub(crate) fn uses(&self, policy: &str) -> Vec<u8> {
        self.uses_in(policy, Family::V4)
    }

    pub(crate) fn uses_in(&self, policy: &str, family: Family) -> Vec<u8> {
        let key = BucketKey { policy: policy_name(policy), family };
        self.router().decision().buckets[&key].lines().into_keys().map(WanId::get).collect()
    }

    /// The IPv4 flows of this policy on this line must not exist.
    pub(crate) fn buried(&self, policy: &str, wan: u8) -> bool {
        let policy = Some(self.config.policies[&policy_name(policy)].id);
        self.router().decision().dead.contains_key(&FlowClass { family: Family::V4, wan: wan_id(wan), policy })
    }

    /// The lines that have dead classes, in any family.
    pub(crate) fn graves(&self) -> BTreeSet<u8> {
        self.router().decision().dead.keys().map(|class| class.wan.get()).collect()
    }

    /// When a line took this health for the last time, counted from `start`.
    pub(crate) fn took(&self, wan: u8, health: Health, start: Time) -> Option<Duration> {
        self.notices.iter().rev().find_map(|(at, notice)| match notice {
            Notice::Health { wan: name, family: Family::V4, to, .. } if *name == wan_name(wan) && *to == health => {
                Some(at.since(start))
            }
            Notice::Health { .. }
            | Notice::BadTarget { .. }
            | Notice::IspOutage { .. }
            | Notice::PolicyUses { .. }
            | Notice::Configured { .. }
            | Notice::GatewayMac { .. }
            | Notice::Lease { .. }
            | Notice::Seat { .. }
            | Notice::Audited { .. }
            | Notice::AuditEnded { .. } => None,
        })
    }

    pub(crate) fn outage(&self) -> bool {
        self.router().snapshot(self.now).isp_outage[&Family::V4]
    }
}
