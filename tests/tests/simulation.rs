//! The core and the watchdog of the programs on virtual time: lines under load that fail, or do not. Hours in seconds;
//! a trial is its seed.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "the helpers of a test fail it")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::units::{Family, WanId};
use ebpf::abi::{Settings, Silence};
use mwan::event::{Event, Health, Notice, Outcome, Probe, Reply};
use mwan::links::{LinkFacts, Links};
use mwan::passive::Tally;
use mwan::{Router, Time};
use programs::decide::grows_silent;

#[test]
fn a_blackhole_under_load_is_found_within_a_quarter_of_a_second_without_a_probe_being_due() {
    let mut times = trials(|world| {
        world.run(Duration::from_secs(1));
        world.loss[1] = 1.0;
        let start = world.now;
        world.run(Duration::from_secs(2));
        world.first(2, Health::Down).map(|at| at.since(start))
    });
    let median = told("blackhole", &mut times);
    assert!(median <= Duration::from_millis(250), "{median:?}");
}

#[test]
fn a_line_that_loses_a_tenth_is_degraded_within_two_seconds() {
    let mut times = trials(|world| {
        world.run(Duration::from_secs(3));
        assert_eq!(world.changes(), [], "before the fault");
        world.loss[2] = 0.1;
        let start = world.now;
        world.run(Duration::from_secs(4));
        world.first(3, Health::Degraded).map(|at| at.since(start))
    });
    let median = told("brown-out of 10 %", &mut times);
    assert!(median <= Duration::from_secs(2) && *times.last().unwrap() <= Duration::from_secs(3), "{times:?}");
}

#[test]
fn one_bad_server_among_fifty_is_held_against_no_line() {
    for seed in 0..TRIALS {
        let mut world = World::new(seed);
        world.deaf = Some(7);
        world.run(Duration::from_secs(6));
        assert_eq!(world.changes(), [], "seed {seed}");
    }
}

#[test]
fn idle_lines_are_not_suspected_in_half_an_hour() {
    let mut world = World::new(1);
    // Somebody asks for what is not there, now and then.
    (world.per_second, world.deaf, world.flows) = (0.2, Some(0), 1);
    world.run(Duration::from_mins(30));
    assert_eq!(world.changes(), []);
}

/// The times of the trials, in order. Each found what it looked for, and no other line was touched.
fn trials(trial: impl Fn(&mut World) -> Option<Duration>) -> Vec<Duration> {
    let mut times: Vec<_> = (0..TRIALS)
        .map(|seed| {
            let mut world = World::new(seed);
            let time = trial(&mut world);
            let broken = world.loss.iter().position(|loss| *loss > 0.0).map(|line| line + 1);
            assert!(world.changes().iter().all(|(wan, _)| Some(*wan) == broken), "seed {seed}: {:?}", world.changes());
            time.unwrap_or_else(|| panic!("seed {seed}: not found: {:?}", world.changes()))
        })
        .collect();
    times.sort();
    times
}

fn told(what: &str, times: &mut [Duration]) -> Duration {
    let median = times[times.len() / 2];
    println!("{what}: {} trials, min {:?}, median {median:?}, max {:?}", times.len(), times[0], times[times.len() - 1]);
    median
}

/// Four lines with probes every five seconds, and clients behind the router that talk with servers.
struct World {
    router: Router,
    now: Time,
    /// Of a packet and its answer together, by line.
    loss: [f64; LINES],
    /// Exchanges per second and line.
    per_second: f64,
    flows: u32,
    /// This server never answers.
    deaf: Option<u8>,
    silences: [Silence; LINES],
    tally: Tally,
    replies: BTreeMap<(Time, u64), Reply>,
    answers: BTreeMap<(Time, u64), usize>,
    serial: u64,
    reported: Time,
    notices: Vec<(Time, Notice)>,
    chance: Chance,
}

impl World {
    /// Every line is up, and has been for a while.
    fn new(seed: u64) -> Self {
        let site = include_str!("../../config/examples/minimal.toml");
        let line = |n: usize| {
            format!(
                "[wan.wan{n}]\ninterface = \"w{n}\"\naddresses = [\"203.0.{n}.10/24\"]\ngateway = \"203.0.{n}.1\"\n\
                 probe = {{ targets = [\"icmp 192.0.2.1\", \"icmp 192.0.2.2\", \"icmp 192.0.2.3\"], interval = \"5s\" }}\n"
            )
        };
        let from = site.find("[wan.wan1]").unwrap();
        let to = site.find("[vlan.office]").unwrap();
        let lines: String = (1..=LINES).map(line).collect();
        let policy = "[policy.balanced]\nmembers = [\"wan1\", \"wan2\", \"wan3\", \"wan4\"]\n";
        let text = format!("{}{lines}{policy}{}", &site[..from], &site[to..]);
        let config = config::parse("simulation.toml", &text).unwrap_or_else(|problems| panic!("{problems}")).config;
        let mut world = Self {
            router: Router::new(),
            now: Time::from_micros(1_000_000),
            loss: [0.0; LINES],
            per_second: 0.0,
            flows: 60,
            deaf: None,
            silences: [Silence::default(); LINES],
            tally: Tally::default(),
            replies: BTreeMap::new(),
            answers: BTreeMap::new(),
            serial: 0,
            reported: Time::from_micros(1_000_000),
            notices: Vec::new(),
            chance: Chance(seed),
        };
        world.begin(config);
        // Each trial meets the probes at another moment.
        let phase = world.chance.next() * 5e6;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "up to five million")]
        world.run(Duration::from_secs(6) + Duration::from_micros(phase as u64));
        world.notices.clear();
        world.per_second = 500.0;
        world
    }

    fn begin(&mut self, config: Config) {
        let links = config.wans.values().map(|wan| {
            let facts = LinkFacts {
                index: u32::from(wan.id.get()),
                admin_up: true,
                carrier: true,
                mac: None,
                mtu: 1500,
                master: None,
                driver: None,
                pci: None,
                ours: false,
            };
            (wan.interface.clone(), facts)
        });
        let links = Links(links.collect());
        for event in [Event::Config(Arc::new(config)), Event::Links(links), Event::InForce] {
            self.handle(&event);
        }
    }

    fn handle(&mut self, event: &Event) {
        let now = self.now;
        self.notices.extend(self.router.handle(event, now).into_iter().map(|notice| (now, notice)));
        while let Some(probe) = self.router.poll_probe(now) {
            self.send(&probe);
        }
    }

    fn send(&mut self, probe: &Probe) {
        let line = usize::from(probe.wan.get()) - 1;
        if self.chance.next() < self.loss[line] {
            return;
        }
        self.serial += 1;
        let outcome = Outcome::Answered { rtt: RTT };
        let reply = Reply { wan: probe.wan, target: probe.target, seq: probe.seq, outcome };
        self.replies.insert((self.now + RTT, self.serial), reply);
    }

    /// In steps of a millisecond.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + STEP;
            while let Some(entry) = self.replies.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let reply = entry.remove();
                self.silences[usize::from(reply.wan.get()) - 1].since = 0;
                self.handle(&Event::Reply(reply));
            }
            while let Some(entry) = self.answers.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let line = entry.remove();
                self.silences[line].since = 0;
            }
            for line in 0..LINES {
                let due = self.per_second * STEP.as_secs_f64();
                if self.chance.next() < due {
                    self.exchange(line);
                }
            }
            if self.now.since(self.reported) >= REPORT {
                let report = self.tally.take(self.now.since(self.reported));
                self.reported = self.now;
                if !report.is_empty() {
                    self.handle(&Event::Traffic(report));
                }
            }
            if self.router.deadline() <= self.now {
                self.handle(&Event::Timeout);
            }
        }
    }

    /// A client sends a segment to one of the servers; a lost one is sent again.
    fn exchange(&mut self, line: usize) {
        let wan = WanId::new(u8::try_from(line + 1).unwrap()).unwrap();
        let server = self.chance.below(SERVERS);
        let server = if self.flows == 1 { 0 } else { server };
        let flow = self.chance.below(self.flows) * 7 + u32::from(wan.get());
        let now = self.now.as_micros() * 1000;
        if grows_silent(&mut self.silences[line], &SETTINGS, flow, now) {
            let silence = self.silences[line];
            let span = Duration::from_nanos(now - silence.since);
            self.handle(&Event::Silence { wan, family: Family::V4, flows: silence.flows.count_ones(), span });
        }
        self.tally.carried(wan, Family::V4, 1, 1000, 1000);
        let server = u8::try_from(server).unwrap();
        let lost = self.deaf == Some(server) || self.chance.next() < self.loss[line];
        if lost {
            self.tally.resent(wan, IpAddr::from([198, 51, 100, server]));
        } else {
            self.serial += 1;
            self.answers.insert((self.now + RTT, self.serial), line);
        }
    }

    /// The lines whose health changed, and to what.
    fn changes(&self) -> Vec<(usize, Health)> {
        let health = |notice: &Notice| match notice {
            Notice::Health { wan, to, .. } => {
                Some((wan.as_str().trim_start_matches("wan").parse::<usize>().unwrap(), *to))
            }
            Notice::BadTarget { .. }
            | Notice::IspOutage { .. }
            | Notice::PolicyUses { .. }
            | Notice::Configured { .. }
            | Notice::GatewayMac { .. }
            | Notice::Lease { .. }
            | Notice::Seat { .. }
            | Notice::Audited { .. }
            | Notice::AuditEnded { .. } => None,
        };
        self.notices.iter().filter_map(|(_, notice)| health(notice)).collect()
    }

    fn first(&self, line: usize, health: Health) -> Option<Time> {
        self.notices.iter().find_map(|(at, notice)| match notice {
            Notice::Health { wan, to, .. } if wan.as_str() == format!("wan{line}") && *to == health => Some(*at),
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
}

/// splitmix64: the same numbers for the same seed.
struct Chance(u64);

impl Chance {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 up to 1.
    fn next(&mut self) -> f64 {
        f64::from(u32::try_from(self.bits() >> 32).unwrap()) / (f64::from(u32::MAX) + 1.0)
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.bits() % u64::from(bound)).unwrap()
    }
}

const TRIALS: u64 = 200;
const LINES: usize = 4;
const SERVERS: u32 = 50;
const STEP: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_millis(15);
/// As the daemon reports.
const REPORT: Duration = Duration::from_millis(500);
/// As without anything in the site file.
const SETTINGS: Settings = Settings {
    forward: 1,
    deny: 1,
    silence_ns: 150_000_000,
    silence_flows: 5,
    new_per_second: 0,
    new_burst: 0,
    sample_ns: 0,
};
