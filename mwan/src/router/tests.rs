//! What a router does with lines that fail, on virtual time. Tests named `peer_bug_…` pin that a public failure of
//! another router is not one of ours.

use std::sync::Arc;

use proptest::prelude::*;

use config::model::{Balance, Failback, LastResort, TargetKind};
use config::units::{Family, Tier};

use super::*;
use crate::event::{Outcome, Reply};
use crate::passive::Traffic;
use crate::state::{FlowClass, Slot};
use crate::testing::*;

#[test]
fn a_line_is_up_with_the_first_answers_after_start() {
    let mut world = World::new(site(4));
    assert_eq!(world.health(1), Health::Unknown);
    world.run(ms(15));
    assert!((1..=4).all(|wan| world.health(wan) == Health::Up));
    assert!(world.router().settled());
}

#[test]
fn goes_down_after_three_silent_probes() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    let start = world.now;
    world.silence(&[2]);
    world.run(ms(150));
    assert_eq!(world.health(2), Health::Up);
    world.run(ms(500));
    assert_eq!(world.health(2), Health::Down);
    let took = world.took(2, Health::Down, start).unwrap();
    assert!(took <= ms(400), "three intervals and one timeout are enough: {took:?}");
    let why = world.line(2, Family::V4).why;
    assert!(why.starts_with("3 of 3 targets silent for 3") && why.contains("icmp 198.51.100.1"), "{why}");
    assert_eq!(world.uses("balanced"), [1, 3, 4]);
    assert!(world.buried("balanced", 2) && !world.buried("balanced", 1));
}

#[test]
fn silence_of_the_traffic_downs_a_line_before_its_probes_would() {
    let mut world = World::new(slow_site());
    world.run(secs(20));
    let start = world.now;
    world.silence(&[2]);
    world.nothing_returns(2);
    world.run(ms(100));
    assert!(world.took(2, Health::Down, start).unwrap() <= ms(75), "a burst of 40 ms and its patience");
    assert!(world.line(2, Family::V4).why.contains("12 flows"), "{}", world.line(2, Family::V4).why);
    assert_eq!(world.health(1), Health::Up);
    assert!(world.buried("balanced", 2));
    // It comes back as any other line does: by answers, and after its hold.
    world.silence(&[]);
    world.run(secs(30));
    assert_eq!(world.health(2), Health::Up);
}

#[test]
fn one_answer_to_a_burst_dispels_the_doubt() {
    let mut world = World::new(slow_site());
    world.run(secs(6));
    // The first two probes of the burst get no answer.
    let first = world.sent + 1;
    world.answers = Box::new(move |_, _, nth| if nth < first + 2 { Answer::Never } else { Answer::After(ms(10)) });
    world.nothing_returns(3);
    world.run(ms(500));
    assert_eq!(world.health(3), Health::Up);
    assert_eq!(world.line(3, Family::V4).failovers, 0);
    assert_eq!(world.line(3, Family::V4).probes_lost, 2);
}

#[test]
fn a_driver_that_is_held_up_in_a_burst_does_not_lose_a_line_that_answers() {
    for held_up in [ms(60), ms(300), secs(1)] {
        let mut world = World::new(slow_site());
        world.run(secs(6));
        // Of the first probe nothing is heard; then nobody runs until the whole burst is overdue.
        let first = world.sent;
        world.answers = Box::new(move |_, _, nth| if nth <= first + 1 { Answer::Never } else { Answer::After(ms(10)) });
        world.nothing_returns(3);
        world.sleep(held_up);
        world.run(secs(1));
        assert_eq!(world.health(3), Health::Up, "{held_up:?}");
        assert_eq!(world.line(3, Family::V4).failovers, 0);
    }
}

#[test]
fn a_burst_with_nobody_left_to_ask_is_over() {
    let mut config = slow_site();
    for wan in config.wans.values_mut() {
        wan.probe.fall = nonzero(1);
        wan.probe.targets.truncate(1);
    }
    let mut world = World::new(config);
    world.run(secs(6));
    world.answers = Box::new(|wan, _, _| if wan == 3 { Answer::Refused } else { Answer::After(ms(10)) });
    world.nothing_returns(3);
    // Which also sees to it that the event loop does not spin.
    world.run(ms(500));
    assert_eq!(world.health(3), Health::Down);
    assert!(world.line(3, Family::V4).why.contains("(refused)"), "{}", world.line(3, Family::V4).why);
}

#[test]
fn a_doubt_about_a_line_asks_three_times_on_that_line_alone() {
    let mut world = World::new(slow_site());
    world.run(secs(6));
    let before: Vec<_> = (1..=4).map(|wan| world.line(wan, Family::V4).probes_sent).collect();
    world.silence(&[1]);
    world.nothing_returns(1);
    world.nothing_returns(1);
    world.run(ms(100));
    let after: Vec<_> = (1..=4).map(|wan| world.line(wan, Family::V4).probes_sent).collect();
    assert_eq!(after, [before[0] + 3, before[1], before[2], before[3]]);
}

#[test]
fn a_line_whose_traffic_is_lossy_is_degraded_until_that_is_forgotten() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    let traffic = |wan, resent| Traffic {
        wan: wan_id(wan),
        family: Family::V4,
        segments: 500,
        resent,
        servers: 0,
        rtt: None,
        sent: 0,
        received: 0,
        span: ms(500),
    };
    world.handle(&Event::Traffic((1..=4).map(|wan| traffic(wan, if wan == 3 { 60 } else { 1 })).collect()));
    assert_eq!(world.health(3), Health::Degraded);
    assert_eq!(world.uses("balanced"), [1, 2, 4]);
    let why = world.line(3, Family::V4).why;
    assert_eq!(why, "3 of 3 targets answer, but 12 % of its TCP segments were sent again, 0.2 % on other lines");
    assert!(!world.buried("balanced", 3), "its flows stay");
    world.run(crate::passive::MEMORY + ms(1));
    assert_eq!(world.health(3), Health::Up);
}

#[test]
fn a_policy_that_goes_by_headroom_sends_new_flows_where_room_is() {
    let mut config = site(2);
    config.policies.get_mut(&policy_name("balanced")).unwrap().balance = Balance::Headroom;
    for wan in config.wans.values_mut() {
        wan.download = Some("100mbit".parse().unwrap());
        wan.upload = wan.download;
    }
    let mut world = World::new(config);
    world.run(secs(5));
    let shares = |world: &World| {
        let key = BucketKey { policy: policy_name("balanced"), family: Family::V4 };
        world.router().decision().buckets[&key].lines().into_values().collect::<Vec<_>>()
    };
    assert_eq!(shares(&world), [128, 128]);
    for _ in 0..20 {
        let busy = Traffic {
            wan: wan_id(1),
            family: Family::V4,
            segments: 0,
            resent: 0,
            servers: 0,
            rtt: None,
            sent: 0,
            received: 5_000_000,
            span: ms(500),
        };
        world.handle(&Event::Traffic(vec![busy]));
        world.run(ms(500));
    }
    assert_eq!(shares(&world), [43, 213], "80 of 100 Mbit/s are in use on the first line: 2 tenths to 10");
    assert!(world.router().decision().dead.is_empty(), "flows stay where they are");
    world.run(secs(3));
    assert_eq!(shares(&world), [128, 128]);
}

/// Probes so far apart that what happens between them is the work of something else.
fn slow_site() -> config::Config {
    let mut config = site(4);
    for wan in config.wans.values_mut() {
        wan.probe.interval = secs(5);
    }
    config
}

#[test]
fn a_refusal_counts_without_waiting_for_its_timeout() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    let start = world.now;
    world.answers = Box::new(|wan, _, _| if wan == 2 { Answer::Refused } else { Answer::After(ms(10)) });
    world.run(secs(1));
    assert!(world.took(2, Health::Down, start).unwrap() <= ms(305));
    assert!(world.line(2, Family::V4).why.contains("(refused)"));
}

#[test]
fn a_thousand_idle_hours_never_flap() {
    let mut config = site(2);
    without_v6(&mut config);
    for wan in config.wans.values_mut() {
        wan.probe.interval = secs(300);
        wan.probe.targets.truncate(2);
    }
    let mut world = World::new(config);
    // One probe in 101 is lost, never two of one target in a row.
    world.answers = Box::new(|_, _, nth| if nth % 101 == 0 { Answer::Never } else { Answer::After(ms(10 + nth % 7)) });
    world.run(secs(3600));
    let (told, wanted) = (world.notices.len(), world.router().wanted().unwrap());
    world.run(secs(1000 * 3600));
    assert_eq!(world.notices.len(), told);
    assert!(Arc::ptr_eq(&wanted, &world.router().wanted().unwrap()), "nothing changed, so nothing was compiled");
}

#[test]
fn a_failed_line_is_held_and_the_hold_doubles_with_each_failure() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    for hold in [10, 20, 40] {
        world.silence(&[2]);
        world.run(secs(1));
        assert_eq!(world.health(2), Health::Down);
        world.silence(&[]);
        world.run(secs(1));
        assert_eq!(world.health(2), Health::Held);
        assert_eq!(world.uses("balanced"), [1, 3, 4]);
        world.run(secs(hold - 2));
        assert_eq!(world.health(2), Health::Held, "held for {hold} s");
        world.run(secs(2));
        assert_eq!(world.health(2), Health::Up);
    }
    assert_eq!(world.line(2, Family::V4).flaps, 3);
    assert_eq!(world.line(2, Family::V4).failovers, 3);
}

#[test]
fn carrier_loss_acts_at_once_and_its_return_is_probed() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.carrier(3, false);
    assert_eq!(world.health(3), Health::NoCarrier);
    assert_eq!(world.uses("balanced"), [1, 2, 4]);
    assert!(world.buried("balanced", 3));
    world.run(secs(1));
    world.carrier(3, true);
    assert_eq!(world.health(3), Health::Unknown);
    world.run(ms(150));
    assert_eq!(world.health(3), Health::Unknown, "two answers are not three");
    world.run(ms(300));
    assert_eq!(world.health(3), Health::Held);
    world.run(secs(10));
    assert_eq!(world.health(3), Health::Up);
    assert_eq!(world.uses("balanced"), [1, 2, 3, 4]);
    assert!(world.graves().is_empty());
}

#[test]
fn a_line_without_targets_is_as_good_as_its_carrier() {
    let mut config = site(2);
    config.wans.get_mut(&wan_name(1)).unwrap().probe.targets.clear();
    let mut world = World::new(config);
    assert_eq!(world.health(1), Health::Up);
    world.carrier(1, false);
    assert_eq!(world.health(1), Health::NoCarrier);
}

#[test]
fn loss_and_latency_degrade_and_recover_apart() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.answers = Box::new(|wan, _, _| Answer::After(ms(if wan == 1 { 90 } else { 10 })));
    world.run(secs(4));
    assert_eq!(world.health(1), Health::Degraded);
    assert!(world.line(1, Family::V4).why.contains("round trip (limit 80 ms)"));
    assert_eq!(world.uses("balanced"), [2, 3, 4]);
    assert!(world.graves().is_empty(), "a slow line keeps its flows");
    world.answers = Box::new(|wan, _, _| Answer::After(ms(if wan == 1 { 60 } else { 10 })));
    world.run(secs(4));
    assert_eq!(world.health(1), Health::Degraded, "between the limits nothing changes");
    world.silence(&[]);
    world.run(secs(4));
    assert_eq!(world.health(1), Health::Up);
    // Every third probe of each of the five targets.
    world.answers =
        Box::new(|wan, _, nth| if wan == 1 && nth % 3 == 0 { Answer::Never } else { Answer::After(ms(10)) });
    world.run(secs(4));
    assert_eq!(world.health(1), Health::Degraded);
}

#[test]
fn degraded_lines_carry_when_nothing_better_is_left() {
    let mut world = World::new(site(2));
    world.run(secs(5));
    world.answers = Box::new(|_, _, _| Answer::After(ms(90)));
    world.run(secs(4));
    assert_eq!((world.health(1), world.health(2)), (Health::Degraded, Health::Degraded));
    assert_eq!(world.uses("balanced"), [1, 2]);
}

#[test]
fn peer_bug_07_bad_target_on_every_line_is_not_a_bad_line() {
    for quorum in [1, 2, 3] {
        let mut config = site(4);
        for wan in config.wans.values_mut() {
            wan.probe.quorum = nonzero(quorum);
        }
        let mut world = World::new(config);
        world.run(secs(5));
        let told = world.notices.len();
        let bad = icmp(TARGETS[1]);
        world.answers =
            Box::new(move |_, target, _| if *target == bad { Answer::Never } else { Answer::After(ms(10)) });
        world.run(secs(60));
        let news: Vec<_> = world.notices.split_off(told).into_iter().map(|(_, notice)| notice).collect();
        assert_eq!(news, [Notice::BadTarget { target: "icmp 198.51.100.2".to_owned(), bad: true }], "quorum {quorum}");
        world.silence(&[]);
        world.run(secs(1));
        let (_, last) = world.notices.last().unwrap();
        assert_eq!(*last, Notice::BadTarget { target: "icmp 198.51.100.2".to_owned(), bad: false });
    }
}

#[test]
fn peer_bug_07_the_line_that_notices_a_bad_target_first_waits_for_the_others() {
    let mut config = site(4);
    let hasty = &mut config.wans.get_mut(&wan_name(1)).unwrap().probe;
    hasty.fall = nonzero(2);
    hasty.quorum = nonzero(3);
    let mut world = World::new(config);
    world.run(secs(5));
    let bad = icmp(TARGETS[1]);
    world.answers = Box::new(move |_, target, _| if *target == bad { Answer::Never } else { Answer::After(ms(10)) });
    let start = world.now;
    world.run(secs(5));
    assert_eq!(world.took(1, Health::Down, start), None);
    assert_eq!(world.line(1, Family::V4).failovers, 0);
}

#[test]
fn peer_bug_07_no_flow_ends_without_a_better_line() {
    let mut world = World::new(site(1));
    world.run(secs(5));
    world.silence(&[1]);
    world.run(secs(60));
    assert_eq!(world.health(1), Health::Down);
    assert!(world.graves().is_empty());
}

#[test]
fn a_target_that_fails_on_one_line_is_that_lines_fault() {
    let mut config = site(4);
    for wan in config.wans.values_mut() {
        wan.probe.quorum = nonzero(3);
    }
    let mut world = World::new(config);
    world.run(secs(5));
    let bad = icmp(TARGETS[1]);
    world.answers =
        Box::new(move |wan, target, _| if wan == 2 && *target == bad { Answer::Never } else { Answer::After(ms(10)) });
    world.run(secs(1));
    assert_eq!(world.health(2), Health::Down);
}

#[test]
fn isp_outage_freezes_flows() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    let before = world.router().decision().clone();
    world.silence(&[1, 2, 3, 4]);
    world.run(secs(1));
    assert!(world.outage());
    assert!((1..=4).all(|wan| world.health(wan) == Health::Down));
    world.run(secs(300));
    assert_eq!(*world.router().decision(), before, "nothing is buried, buckets stay");
    world.silence(&[]);
    world.run(secs(1));
    assert!(!world.outage());
    assert!((1..=4).all(|wan| world.health(wan) == Health::Up), "nobody pays for the outage with a hold time");
    assert_eq!(*world.router().decision(), before);
}

#[test]
fn three_of_four_lost_together_is_an_outage_and_the_fourth_takes_the_flows_that_are_new() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.silence(&[1, 2, 3]);
    world.run(secs(5));
    assert!(world.outage());
    assert_eq!(world.uses("balanced"), [4]);
    assert!(world.graves().is_empty());
    world.run(fate::PATIENCE);
    assert!(!world.outage(), "flows that wait for a line that stays away have a better one");
    assert!((1..=3).all(|wan| world.buried("balanced", wan)));
}

#[test]
fn two_of_four_lost_together_fail_over_without_delay() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    let start = world.now;
    world.silence(&[1, 2]);
    world.run(ms(410));
    assert!(world.took(1, Health::Down, start).is_some() && world.took(2, Health::Down, start).is_some());
    assert!(!world.outage());
    assert!(world.buried("balanced", 1) && world.buried("balanced", 2));
}

#[test]
fn a_verdict_waits_while_the_other_lines_are_suspicious() {
    // wan1 is judged faster than the others, so it falls silent first.
    let mut config = site(4);
    config.wans.get_mut(&wan_name(1)).unwrap().probe.fall = nonzero(2);
    let mut world = World::new(config);
    world.run(secs(5));
    world.silence(&[1, 2, 3, 4]);
    for _ in 0..100 {
        world.run(ms(10));
        assert!(world.graves().is_empty());
    }
    assert!(world.outage());
}

#[test]
fn lines_lost_far_apart_are_no_outage() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    for lost in [&[1][..], &[1, 2], &[1, 2, 3]] {
        world.silence(lost);
        world.run(secs(1));
    }
    assert!(!world.outage());
    assert_eq!(world.uses("balanced"), [4]);
    assert!((1..=3).all(|wan| world.buried("balanced", wan)));
}

#[test]
fn of_carriers_lost_in_turn_the_first_acts_and_the_rest_freeze() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.carrier(1, false);
    assert!(world.buried("balanced", 1));
    world.run(ms(20));
    world.carrier(2, false);
    assert_eq!(world.uses("balanced"), [3, 4], "new flows move at once");
    assert!(!world.buried("balanced", 2));
    world.run(ms(20));
    world.carrier(3, false);
    assert!(world.outage());
    assert!(world.graves().is_empty());
    world.carrier(4, false);
    world.run(secs(60));
    assert!(world.outage() && world.graves().is_empty());
    assert_eq!(world.uses("balanced"), [4], "buckets stay where they were when the last line went");
}

#[test]
fn the_second_carrier_of_two_is_buried_after_a_moment() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.carrier(1, false);
    world.run(ms(20));
    world.carrier(2, false);
    world.run(TOGETHER);
    assert!(world.buried("balanced", 1) && world.buried("balanced", 2));
}

#[test]
fn peer_bug_19_standby_v6_is_judged_apart() {
    let mut world = World::new(site(2));
    world.run(secs(5));
    world.answers =
        Box::new(
            |wan, target, _| {
                if wan == 2 && target.family == Family::V6 { Answer::Never } else { Answer::After(ms(10)) }
            },
        );
    world.run(secs(1));
    assert_eq!(world.line(2, Family::V4).health, Health::Up);
    assert_eq!(world.line(2, Family::V6).health, Health::Down);
    assert_eq!(world.uses("balanced"), [1, 2]);
    assert_eq!(world.uses_in("balanced", Family::V6), [1]);
    assert!(!world.buried("balanced", 2));
}

#[test]
fn peer_bug_05_forced_failback_ends_the_flows_on_the_backup() {
    let mut world = standby_world(Failback::Force);
    assert_eq!(world.uses("standby"), [1]);
    assert!(world.buried("standby", 2));
    assert!(!world.buried("balanced", 2), "other policies' flows on that line live on");
    // The backup is needed again: its flows may exist before buckets send any.
    world.silence(&[1]);
    world.run(secs(1));
    assert_eq!(world.uses("standby"), [2]);
    assert!(!world.buried("standby", 2) && world.buried("standby", 1));
}

#[test]
fn peer_bug_04_draining_failback_moves_new_flows_first_and_old_ones_at_the_deadline() {
    let mut world = standby_world(Failback::Drain(secs(30)));
    assert_eq!(world.uses("standby"), [1]);
    assert!(!world.buried("standby", 2));
    world.run(secs(28));
    assert!(!world.buried("standby", 2));
    world.run(secs(2));
    assert!(world.buried("standby", 2));
}

#[test]
fn staying_failback_leaves_flows_where_they_are() {
    let mut world = standby_world(Failback::Stay);
    world.run(secs(300));
    assert_eq!(world.uses("standby"), [1]);
    assert!(!world.buried("standby", 2));
}

#[test]
fn a_backup_that_was_never_used_has_nothing_to_bury() {
    let mut config = site(2);
    config.policies.get_mut(&policy_name("standby")).unwrap().failback = Failback::Force;
    let mut world = World::new(config);
    world.run(secs(60));
    assert!(world.graves().is_empty());
}

#[test]
fn a_drained_line_takes_no_new_flows_and_keeps_the_old() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.request(Request::Drain { wan: wan_name(1) });
    assert_eq!(world.uses("balanced"), [2, 3, 4]);
    assert_eq!(world.uses("standby"), [2]);
    assert!(world.graves().is_empty());
    world.request(Request::Undrain { wan: wan_name(1) });
    assert_eq!(world.uses("balanced"), [1, 2, 3, 4]);
}

#[test]
fn a_fail_test_is_a_failure_for_its_span_and_leaves_no_hold() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.request(Request::FailTest { wan: wan_name(1), span: secs(30) });
    assert_eq!(world.health(1), Health::Down);
    assert!(world.buried("balanced", 1));
    world.run(secs(29));
    assert_eq!(world.health(1), Health::Down);
    world.run(secs(2));
    assert_eq!(world.health(1), Health::Up);
    assert_eq!(world.line(1, Family::V4).flaps, 0);
}

#[test]
fn the_last_resort_stands_when_no_member_is_usable() {
    let table = [
        (LastResort::Unreachable, Slot::Unreachable),
        (LastResort::Blackhole, Slot::Blackhole),
        (LastResort::Any, Slot::Wan(wan_id(3))),
    ];
    for (last_resort, slot) in table {
        let mut config = site(3);
        config.policies.get_mut(&policy_name("standby")).unwrap().last_resort = last_resort;
        let mut world = World::new(config);
        world.run(secs(5));
        world.carrier(1, false);
        world.run(secs(1));
        world.carrier(2, false);
        let key = BucketKey { policy: policy_name("standby"), family: Family::V4 };
        assert_eq!(world.router().decision().buckets[&key].0, vec![slot; BUCKETS], "{last_resort:?}");
        assert_eq!(world.buried("standby", 1), last_resort == LastResort::Any, "buried only if there is another line");
    }
}

#[test]
fn a_restart_finds_the_same_decision_without_moving_a_bucket() {
    let mut world = World::new(site(4));
    let first = world.router().decision().clone();
    assert!(!world.router().settled());
    world.run(secs(5));
    assert_eq!(*world.router().decision(), first, "lines in use are trusted until they are judged");
    let mut restarted = World::new(site(4));
    restarted.run(secs(1));
    assert_eq!(restarted.router().decision(), world.router().decision());
    assert_eq!(restarted.router().wanted(), world.router().wanted());
}

#[test]
fn peer_bug_17_a_restart_amid_a_failure_comes_to_the_same_decision() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.silence(&[2]);
    world.run(secs(5));
    let mut restarted = World::new(site(4));
    restarted.silence(&[2]);
    restarted.run(secs(5));
    assert_eq!(restarted.router().decision(), world.router().decision());
}

#[test]
fn peer_bug_15_a_replugged_line_is_wanted_as_before() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    let before = world.router().wanted().unwrap();
    world.carriers.remove(&2);
    world.tell_links();
    assert_eq!(world.health(2), Health::NoCarrier);
    world.run(secs(5));
    world.carrier(2, true);
    world.run(secs(15));
    assert_eq!(world.router().wanted().unwrap(), before);
}

#[test]
fn a_line_added_later_waits_for_its_first_answer() {
    let mut world = World::new(site(2));
    world.run(secs(5));
    world.config = site(3);
    world.carriers.insert(3, true);
    world.silence(&[3]);
    world.begin();
    assert_eq!(world.uses("balanced"), [1, 2]);
    world.run(secs(1));
    assert_eq!(world.health(3), Health::Down);
    world.silence(&[]);
    world.run(secs(1));
    assert_eq!(world.health(3), Health::Up, "it never failed in service, so it has no hold time");
}

#[test]
fn a_config_that_leaves_a_line_alone_keeps_what_is_known_of_it() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.silence(&[2]);
    world.run(secs(1));
    world.config.wans.get_mut(&wan_name(3)).unwrap().probe.interval = ms(200);
    world.begin();
    assert_eq!(world.health(1), Health::Up);
    assert_eq!(world.health(2), Health::Down);
    assert_eq!(world.health(3), Health::Unknown, "its probing changed, so it is judged again");
    world.run(secs(1));
    assert_eq!(world.uses("balanced"), [1, 3, 4]);
}

#[test]
fn a_late_reply_counts_for_statistics_only() {
    let mut world = World::new(site(4));
    world.run(secs(5));
    world.answers = Box::new(|wan, _, _| Answer::After(ms(if wan == 1 { 150 } else { 10 })));
    world.run(secs(1));
    assert_eq!(world.health(1), Health::Down);
    let target = &world.line(1, Family::V4).targets[0];
    assert!(target.late > 3 && target.up == Some(false), "{target:?}");
}

#[test]
fn an_answer_in_time_that_is_delivered_late_is_an_answer() {
    let mut router = Router::new();
    let mut config = site(1);
    config.wans.get_mut(&wan_name(1)).unwrap().probe.fall = nonzero(1);
    without_v6(&mut config);
    let mut world = World::new(config.clone());
    world.run(ms(1));
    let start = Time::from_micros(5);
    router.handle(&Event::Config(Arc::new(config)), start);
    router.handle(&Event::Links(world.router().links.clone().unwrap()), start);
    assert_eq!(router.poll_probe(start), None, "the kernel would not know where it goes, nor what answers it");
    router.handle(&Event::InForce, start);
    let probe = router.poll_probe(start).unwrap();
    // The daemon slept for a second; the reply had been waiting in its socket.
    let outcome = Outcome::Answered { rtt: ms(20) };
    let reply = Reply { wan: probe.wan, target: probe.target, seq: probe.seq, outcome };
    router.handle(&Event::Reply(reply), start + secs(1));
    let snapshot = router.snapshot(start + secs(1));
    assert_eq!(snapshot.wans[0].families[&Family::V4].targets[0].up, Some(true));
}

#[test]
fn a_reply_that_was_never_asked_for_changes_nothing() {
    let mut world = World::new(site(2));
    world.run(secs(5));
    let before = world.line(1, Family::V4);
    let outcome = Outcome::Answered { rtt: ms(1) };
    for (wan, target, seq) in [(1, 0, 1 << 40), (1, 99, 0), (77, 0, 0)] {
        world.handle(&Event::Reply(Reply { wan: wan_id(wan), target, seq, outcome }));
    }
    assert_eq!(world.line(1, Family::V4), before);
}

#[test]
fn the_same_gateway_target_on_every_line_is_judged_per_line() {
    let mut config = site(2);
    for wan in config.wans.values_mut() {
        wan.probe.targets[1].kind = TargetKind::Gateway;
        wan.probe.quorum = nonzero(3);
    }
    let mut world = World::new(config);
    world.run(secs(5));
    world.answers =
        Box::new(|_, target, _| if target.kind == TargetKind::Gateway { Answer::Never } else { Answer::After(ms(10)) });
    world.run(secs(2));
    assert_eq!((world.health(1), world.health(2)), (Health::Down, Health::Down), "a silent gateway is the line's own");
}

#[test]
fn the_gateways_mac_is_told_once_and_shown() {
    let mut world = World::new(site(2));
    let event = Event::Neighbour { wan: wan_id(1), family: Family::V4, mac: Some([2, 0, 0, 0, 0, 1]) };
    world.handle(&event);
    let told = world.notices.len();
    world.handle(&event);
    assert_eq!(world.notices.len(), told);
    assert_eq!(world.line(1, Family::V4).gateway_mac, Some([2, 0, 0, 0, 0, 1]));
}

#[test]
fn peer_bug_12_sixteen_lines_balance_and_spread() {
    let mut config = site(16);
    config.policies.get_mut(&policy_name("balanced")).unwrap().balance = Balance::Spread;
    let mut world = World::new(config);
    world.run(secs(1));
    let key = BucketKey { policy: policy_name("balanced"), family: Family::V6 };
    let slots = &world.router().decision().buckets[&key].0;
    for window in slots.windows(16) {
        let distinct: BTreeSet<_> = window.iter().collect();
        assert_eq!(distinct.len(), 16, "sixteen flows in a row take sixteen lines");
    }
}

#[test]
fn the_snapshot_can_be_written_as_json() {
    let mut world = World::new(site(2));
    world.run(secs(1));
    let snapshot = world.router().snapshot(world.now);
    let text = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
    assert!((snapshot.wans[0].families[&Family::V4].share - 50.0).abs() < f64::EPSILON);
}

#[derive(Debug, Clone)]
enum Act {
    Silence(Vec<u8>),
    Carrier(u8, bool),
    Drain(u8),
    Undrain(u8),
    FailTest(u8),
    Reload,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop::collection::vec(1..=16_u8, 0..=16).prop_map(Act::Silence),
        4 => (1..=16_u8, any::<bool>()).prop_map(|(wan, there)| Act::Carrier(wan, there)),
        1 => (1..=16_u8).prop_map(Act::Drain),
        1 => (1..=16_u8).prop_map(Act::Undrain),
        1 => (1..=16_u8).prop_map(Act::FailTest),
        1 => Just(Act::Reload),
    ]
}

/// What holds at any moment, whatever happened before.
fn check(world: &World) {
    let decision = world.router().decision();
    let snapshot = world.router().snapshot(world.now);
    let usable = |wan: WanId, family: Family| {
        let wan = snapshot.wans.iter().find(|status| status.id == wan).unwrap();
        let health = wan.families[&family].health;
        !wan.drained && health != Health::Down && health != Health::NoCarrier
    };
    for (key, buckets) in &decision.buckets {
        let policy = Some(world.config.policies[&key.policy].id);
        let lines: Vec<_> = buckets.lines().into_keys().collect();
        for wan in &lines {
            assert!(usable(*wan, key.family) || snapshot.isp_outage[&key.family], "{wan} carries {key:?}");
            assert!(!decision.dead.contains_key(&FlowClass { family: key.family, wan: *wan, policy }));
        }
        let buried = decision.dead.keys().any(|class| class.policy == policy && class.family == key.family);
        assert!(!buried || lines.iter().any(|wan| usable(*wan, key.family)), "{key:?} has nowhere better to go");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn peer_bug_12_whatever_happens_to_1_to_16_lines_buckets_are_usable_and_a_replay_agrees(
        wans in 1..=16_u8,
        acts in prop::collection::vec((act(), 1..1200_u64), 1..8),
    ) {
        let mut config = site(wans);
        for policy in config.policies.values_mut() {
            policy.failback = Failback::Force;
        }
        for wan in config.wans.values_mut() {
            wan.probe.hold = ms(500);
        }
        let mut world = World::recorded(config);
        for (act, span) in acts {
            let within = |wan: u8| (wan - 1) % wans + 1;
            let name = |wan: u8| wan_name(within(wan));
            match act {
                Act::Silence(lines) => world.silence(&lines),
                Act::Carrier(wan, there) => world.carrier(within(wan), there),
                Act::Drain(wan) => world.request(Request::Drain { wan: name(wan) }),
                Act::Undrain(wan) => world.request(Request::Undrain { wan: name(wan) }),
                Act::FailTest(wan) => world.request(Request::FailTest { wan: name(wan), span: ms(300) }),
                Act::Reload => world.begin(),
            }
            check(&world);
            world.run(ms(span));
            check(&world);
        }
        let Driver::Recorded(recorder) = &mut world.driver else { unreachable!("the world is recorded") };
        let lines = recorder.take_lines();
        let report = crate::journal::replay(lines.iter().map(String::as_str), None).unwrap();
        prop_assert_eq!(report.first_difference, None);
    }
}

#[test]
fn a_link_that_is_not_ours_compiles_nothing() {
    let mut world = World::new(site(2));
    world.run(secs(1));
    let before = world.router().wanted().unwrap();
    world.carriers.insert(9, true);
    world.tell_links();
    assert!(Arc::ptr_eq(&before, &world.router().wanted().unwrap()));
}

/// `wan1` was down, `wan2` stood in for it, and `wan1` has been up again for less than a second.
fn standby_world(failback: Failback) -> World {
    let mut config = site(2);
    let policy = config.policies.get_mut(&policy_name("standby")).unwrap();
    policy.failback = failback;
    assert_eq!(policy.members[1].tier, Tier(1));
    let mut world = World::new(config);
    world.run(secs(5));
    world.silence(&[1]);
    world.run(secs(1));
    assert_eq!(world.uses("standby"), [2]);
    world.silence(&[]);
    while world.health(1) != Health::Up {
        world.run(ms(100));
    }
    world
}

#[test]
fn an_audit_passes_its_cell_and_ends_by_time_by_order_and_with_the_config() {
    let site = crate::fixture::site();
    let mut world = World::new(site.clone());
    world.run(secs(1));
    let pair: Pair = "office->servers".parse().unwrap();
    let audited = |world: &World| world.router().wanted().unwrap().audited.keys().cloned().collect::<Vec<_>>();
    let ends = |world: &World| {
        let ends = world.notices.iter().filter_map(|(_, notice)| match notice {
            Notice::AuditEnded { why, .. } => Some(*why),
            Notice::Health { .. }
            | Notice::BadTarget { .. }
            | Notice::IspOutage { .. }
            | Notice::PolicyUses { .. }
            | Notice::Configured { .. }
            | Notice::GatewayMac { .. }
            | Notice::Lease { .. }
            | Notice::Seat { .. }
            | Notice::Audited { .. } => None,
        });
        ends.collect::<Vec<_>>()
    };
    let interfaces = ("vlan10".parse().unwrap(), "vlan30".parse().unwrap());
    world.request(Request::Audit { pair: pair.clone(), span: secs(30) });
    assert_eq!(audited(&world), [interfaces]);
    world.run(secs(29));
    assert_eq!(world.router().snapshot(world.now).audits[&pair].span, secs(30));
    world.run(secs(2));
    assert_eq!((audited(&world), ends(&world)), (vec![], vec![AuditEnd::Time]));

    world.request(Request::Audit { pair: pair.clone(), span: secs(7200) });
    assert_eq!(world.router().snapshot(world.now).audits[&pair].span, audit::LONGEST, "whoever asks for more");
    world.request(Request::EndAudit { pair: pair.clone() });
    assert_eq!((audited(&world), ends(&world).last()), (vec![], Some(&AuditEnd::Operator)));

    world.request(Request::Audit { pair: pair.clone(), span: secs(30) });
    world.handle(&Event::Config(Arc::new(site)));
    assert_eq!((audited(&world), ends(&world).last()), (vec![], Some(&AuditEnd::Config)));
}
