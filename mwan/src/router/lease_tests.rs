//! Lines whose addresses are leased: what a lease that comes, goes or changes does to them, and to nothing else.

use std::sync::Arc;

use config::model::{Addressing, Method, WanDhcp};
use proptest::prelude::*;

use super::*;
use crate::journal::replay;
use crate::lease::Gone;
use crate::state::RulesetState;
use crate::testing::*;

/// Lines of which these have leased addresses.
fn site_of(wans: u8, leased: &[u8]) -> Config {
    let mut config = site(wans);
    without_v6(&mut config);
    for id in leased {
        let wan = config.wans.get_mut(&wan_name(*id)).unwrap();
        wan.method = Method::Dhcp(WanDhcp::default());
        wan.addressing = Addressing::default();
    }
    config
}

fn lease(address: &str, gateway: &str) -> Lease {
    Lease {
        addresses: vec![address.parse().unwrap()],
        gateway: Some(gateway.parse().unwrap()),
        dns: vec![gateway.parse().unwrap()],
        ..Lease::default()
    }
}

impl World {
    fn grant(&mut self, wan: u8, lease: &Lease, span: Duration) {
        let grant = Grant::Held { lease: lease.clone(), until: self.now + span };
        self.handle(&Event::Lease { wan: wan_name(wan), family: Family::V4, grant });
    }

    fn withdraw(&mut self, wan: u8, why: Gone) {
        self.handle(&Event::Lease { wan: wan_name(wan), family: Family::V4, grant: Grant::Gone(why) });
    }

    fn healths(&self) -> Vec<Health> {
        self.config.wans.values().map(|wan| self.health(wan.id.get())).collect()
    }

    fn wanted(&self) -> Arc<KernelState> {
        self.router().wanted().unwrap()
    }
}

fn one() -> Lease {
    lease("198.18.1.7/24", "198.18.1.1")
}

/// Two lines of the file and one that is leased and up.
fn three() -> World {
    let mut world = World::new(site_of(3, &[1]));
    world.grant(1, &one(), secs(3600));
    world.run(secs(3));
    assert_eq!(world.healths(), [Health::Up; 3]);
    world.notices.clear();
    world
}

#[test]
fn a_line_without_a_lease_is_down_and_everything_else_works() {
    let mut world = World::new(site_of(3, &[1]));
    world.run(secs(3));
    assert_eq!(world.healths(), [Health::Down, Health::Up, Health::Up]);
    let line = world.line(1, Family::V4);
    assert_eq!((line.why.as_str(), line.probes_sent, line.failovers), ("no lease yet", 0, 0));
    assert_eq!(world.uses("balanced"), [2, 3]);
    assert!(world.router().settled());
    let wanted = world.wanted();
    assert_eq!(wanted.addresses.len(), 2);
    assert!(!wanted.routes.keys().any(|key| key.table == wan_id(1).table()));
}

#[test]
fn a_lease_brings_its_line_up_at_the_first_answer() {
    let mut world = World::new(site_of(3, &[1]));
    world.run(secs(3));
    world.grant(1, &one(), secs(3600));
    world.run(ms(200));
    assert_eq!(world.healths(), [Health::Up; 3]);
    assert_eq!(world.uses("balanced"), [1, 2, 3]);
    let config = world.router().config().unwrap();
    assert_eq!(config.wans[&wan_name(1)].source(Family::V4), Some("198.18.1.7".parse().unwrap()));
    let RulesetState::Installed(table) = world.wanted().ruleset.clone() else { panic!("there is a table") };
    let renewal = "@th,160,32 0xc6120107 ip saddr set 198.18.1.7 meta mark set 0x01000000 accept";
    assert_eq!(table.chains["renewals"], [renewal], "the line of the address, and no other");
    let answer = |line: &str| table.chains[line].iter().any(|rule| rule.contains("udp sport 67 udp dport 68 accept"));
    assert!(answer("win_1") && !answer("win_2"), "only a line with a client hears servers");
    let told = world.notices.iter().filter(|(_, notice)| matches!(notice, Notice::Lease { lease: Some(_), .. }));
    assert_eq!(told.count(), 1);
    let status = world.line(1, Family::V4).lease.unwrap();
    assert_eq!((status.lease, status.why), (Some(one()), None));
}

#[test]
fn the_same_lease_again_changes_nothing_at_all() {
    let mut world = three();
    let (wanted, config, revision) =
        (world.wanted(), Arc::clone(world.router().config().unwrap()), world.router().revision());
    for _ in 0..3 {
        world.run(secs(600));
        world.grant(1, &one(), secs(3600));
    }
    world.run(secs(3500));
    assert!(Arc::ptr_eq(&world.wanted(), &wanted));
    assert!(Arc::ptr_eq(world.router().config().unwrap(), &config));
    assert_eq!((world.router().revision(), world.notices.len()), (revision, 0));
}

#[test]
fn another_gateway_or_address_moves_its_line_alone() {
    for changed in [lease("198.18.1.7/24", "198.18.1.254"), lease("198.18.9.7/24", "198.18.9.1")] {
        let mut world = three();
        let others = |world: &World| {
            [2, 3].map(|id| {
                let line = world.line(id, Family::V4);
                (line.health, line.since, line.failovers)
            })
        };
        let (before, started) = (others(&world), world.now);
        world.grant(1, &changed, secs(3600));
        assert_eq!(world.health(1), Health::Unknown, "what was learnt is of the line before");
        world.run(ms(500));
        assert_eq!(world.healths(), [Health::Up; 3], "good again without a hold time");
        assert_eq!(others(&world), before);
        assert!(world.graves().is_empty());
        assert!(world.took(1, Health::Down, started).is_none());
        let config = world.router().config().unwrap();
        assert_eq!(config.wans[&wan_name(1)].gateway(Family::V4), changed.gateway);
    }
}

#[test]
fn a_lease_that_ends_is_a_line_that_is_lost_until_another_comes() {
    let mut world = three();
    world.run(secs(3600));
    assert_eq!(world.healths(), [Health::Down, Health::Up, Health::Up]);
    assert_eq!(world.uses("balanced"), [2, 3]);
    assert!(world.buried("balanced", 1) && world.graves().len() == 1);
    let line = world.line(1, Family::V4);
    assert_eq!((line.why.as_str(), line.failovers), ("lease expired", 1));
    let lost = line.lost.unwrap();
    assert_eq!((lost.ground, lost.blame), (Ground::Lease, Some(Blame::Line)));
    assert!(!world.outage());

    world.grant(1, &one(), secs(3600));
    world.run(secs(12));
    assert_eq!(world.healths(), [Health::Up; 3]);
    assert!(world.graves().is_empty());
    for (why, told) in [(Gone::Refused, "lease refused by the server"), (Gone::Withdrawn, "lease given up")] {
        world.withdraw(1, why);
        assert_eq!((world.health(1), world.line(1, Family::V4).why.as_str()), (Health::Down, told));
        world.grant(1, &one(), secs(3600));
        world.run(secs(120));
        assert_eq!(world.healths(), [Health::Up; 3]);
    }
}

#[test]
fn a_lease_that_does_not_fit_is_none_and_says_why() {
    let mut world = three();
    world.grant(1, &Lease { gateway: None, ..one() }, secs(3600));
    assert_eq!(world.healths(), [Health::Down, Health::Up, Health::Up]);
    assert_eq!(world.line(1, Family::V4).why, "the lease has no gateway");
    world.grant(1, &lease("127.0.0.1/8", "127.0.0.2"), secs(3600));
    assert!(world.line(1, Family::V4).why.contains("which no host can have"));
    world.run(secs(3600));
    assert_eq!(world.line(1, Family::V4).why, "lease expired");
}

/// After a restart: what was granted before is told before the config.
#[test]
fn a_lease_that_is_known_before_the_config_keeps_the_line_in_use() {
    let config = site_of(3, &[1]);
    let mut router = Router::new();
    let (start, until) = (Time::from_micros(5), Time::from_micros(5) + secs(60));
    let grant = Grant::Held { lease: one(), until };
    router.handle(&Event::Lease { wan: wan_name(1), family: Family::V4, grant }, start);
    assert!(router.config().is_none());
    router.handle(&Event::Config(Arc::new(config)), start);
    let snapshot = router.snapshot(start);
    assert_eq!(snapshot.wans[0].families[&Family::V4].health, Health::Unknown, "not yet judged, and not lost");
    assert_eq!(router.config().unwrap().wans[&wan_name(1)].source(Family::V4), Some("198.18.1.7".parse().unwrap()));
    assert!(router.facts().iter().any(|fact| matches!(fact, Event::Lease { .. })));
}

#[test]
fn another_config_of_the_same_line_keeps_its_lease() {
    let mut world = three();
    world.config.policies.get_mut(&policy_name("standby")).unwrap().kick = config::model::Kick::Silent;
    world.begin();
    assert_eq!(world.healths(), [Health::Up; 3]);
    world.config.wans.get_mut(&wan_name(1)).unwrap().interface = "wan9".parse().unwrap();
    world.begin();
    let why = world.line(1, Family::V4).lease.unwrap().why;
    assert_eq!(why.as_deref(), Some("no lease yet"), "a lease is of an interface");
    world.config.wans.get_mut(&wan_name(1)).unwrap().interface = "wan1".parse().unwrap();
    world.config.wans.get_mut(&wan_name(1)).unwrap().method = Method::Static;
    world.config.wans.get_mut(&wan_name(1)).unwrap().addressing = wan(1).addressing;
    world.begin();
    assert_eq!(world.router().config().unwrap().wans[&wan_name(1)], world.config.wans[&wan_name(1)]);
    let (wanted, told) = (world.wanted(), world.notices.len());
    world.grant(1, &lease("198.18.9.7/24", "198.18.9.1"), secs(10));
    assert!(Arc::ptr_eq(&world.wanted(), &wanted), "nobody asked for it");
    assert_eq!(world.notices.len(), told);
}

#[test]
fn a_journal_with_leases_replays() {
    let config = site_of(3, &[1, 3]);
    let mut world = World::recorded(config.clone());
    world.run(secs(1));
    world.grant(1, &one(), secs(5));
    world.grant(3, &lease("198.18.3.7/24", "198.18.3.1"), secs(3600));
    world.run(secs(8));
    world.grant(1, &lease("198.18.1.9/24", "198.18.1.1"), secs(3600));
    world.run(secs(15));
    let Driver::Recorded(recorder) = &mut world.driver else { unreachable!("the world is recorded") };
    let mut lines = recorder.take_lines();
    lines.push(recorder.checkpoint(world.now, world.now.since(Time::ZERO)));
    let report = replay(lines.iter().map(String::as_str), None).unwrap();
    assert_eq!(report.first_difference, None);
    let expired = |moment: &&crate::journal::Moment| matches!(&moment.notice, Notice::Lease { why: Some(why), .. } if why == "lease expired");
    assert_eq!(report.timeline.iter().filter(expired).count(), 1);
    let again = replay(lines.iter().map(String::as_str), Some(Arc::new(config))).unwrap();
    assert_eq!(again.timeline.iter().filter(expired).count(), 1, "the lines of another config have the same leases");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever becomes of leases, a line of the file is what it is without them, and so is a leased line that is not meant.
    #[test]
    fn a_lease_concerns_its_line_alone(steps in proptest::collection::vec((1_u8..=2, 0_u8..6, 1_u64..40), 1..20)) {
        let mut world = World::new(site_of(4, &[1, 2]));
        world.run(secs(3));
        let lines = |world: &World, of: &[u8]| {
            of.iter().map(|id| (world.line(*id, Family::V4).since, world.health(*id))).collect::<Vec<_>>()
        };
        let before = lines(&world, &[3, 4]);
        for (wan, what, span) in steps {
            let other = [3 - wan];
            let untouched = lines(&world, &other);
            match what {
                0 => world.withdraw(wan, Gone::Refused),
                1 => world.grant(wan, &Lease { gateway: None, ..one() }, secs(span)),
                number => {
                    let net = format!("198.18.{wan}");
                    world.grant(wan, &lease(&format!("{net}.7/24"), &format!("{net}.{number}")), secs(span));
                }
            }
            prop_assert_eq!(lines(&world, &other), untouched);
            world.run(secs(span / 3));
            let config = world.router().config().unwrap();
            for id in [1, 2] {
                let has = config.wans[&wan_name(id)].has_address(Family::V4);
                let held = world.router().leases().usable(config, &wan_name(id), Family::V4).is_ok();
                prop_assert_eq!(has, held);
                prop_assert!(has || world.health(id) == Health::Down);
            }
            for id in [3, 4] {
                prop_assert_eq!(&config.wans[&wan_name(id)], &world.config.wans[&wan_name(id)]);
            }
        }
        prop_assert_eq!(lines(&world, &[3, 4]), before);
    }
}
