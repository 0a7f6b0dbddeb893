//! The laws of a plan, over random sites, decisions, links and kernels that somebody meddled with.

use std::collections::BTreeSet;
use std::time::Duration;

use config::Config;
use config::model::{Kick, PortRole};
use config::units::{Family, IfName, TableId, VlanId};
use ipnet::IpNet;
use proptest::prelude::*;

use super::FORWARDING;
use crate::compile::{audit, compile};
use crate::decide::Decision;
use crate::fixture;
use crate::links::Links;
use crate::state::{
    Address, BucketKey, Buckets, FlowClass, KernelState, Link, LinkKind, RouteKey, RuleAction, RulesetState, Slot, Step,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_plan_reaches_its_goal_and_from_the_goal_there_is_nothing_to_do((start, goal) in kernels()) {
        let end = carry_out(&start, &start.plan_to(&goal));
        prop_assert_eq!(end.plan_to(&goal), vec![]);
        prop_assert_eq!(essence(&end, &goal), essence(&goal, &goal));
    }

    #[test]
    fn a_plan_cut_anywhere_is_finished_by_the_next((start, goal) in kernels(), cut in any::<prop::sample::Index>()) {
        let plan = start.plan_to(&goal);
        let mut now = carry_out(&start, plan.get(..cut.index(plan.len() + 1)).unwrap());
        let rest = now.plan_to(&goal);
        now = carry_out(&now, &rest);
        prop_assert_eq!(now.plan_to(&goal), vec![]);
        prop_assert_eq!(essence(&now, &goal), essence(&goal, &goal));
    }

    #[test]
    fn a_class_that_dies_is_buried_also_when_the_plan_is_cut((start, goal) in kernels(), cut in any::<prop::sample::Index>()) {
        let plan = start.plan_to(&goal);
        let (first, _) = plan.split_at(cut.index(plan.len() + 1));
        let rest = carry_out(&start, first).plan_to(&goal);
        let buried: BTreeSet<_> = first.iter().chain(&rest).filter_map(|step| {
            if let Step::Bury(classes) = step { Some(classes) } else { None }
        }).flatten().map(|(class, _)| *class).collect();
        let dies: BTreeSet<_> = goal.dead.keys().filter(|class| !start.dead.contains_key(class)).copied().collect();
        prop_assert!(buried.is_superset(&dies));
    }

    #[test]
    fn faults_at_any_step_are_got_over((start, goal) in kernels(), faults in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let mut now = start;
        // Each fault fails one step; the reconciler observes again and plans anew.
        for fault in faults {
            let plan = now.plan_to(&goal);
            now = carry_out(&now, plan.get(..fault.index(plan.len() + 1)).unwrap());
        }
        now = carry_out(&now.clone(), &now.plan_to(&goal));
        prop_assert_eq!(now.plan_to(&goal), vec![]);
    }

    #[test]
    fn the_order_of_a_plan_is_the_order_of_the_variants((start, goal) in kernels()) {
        let ranks: Vec<_> = start.plan_to(&goal).iter().map(rank).collect();
        prop_assert!(ranks.is_sorted(), "{ranks:?}");
    }

    #[test]
    fn no_step_leaves_a_rule_of_the_goal_pointing_at_an_empty_table((start, goal) in kernels()) {
        let mut now = start.clone();
        let astray = |state: &KernelState| state.rules.iter().filter(|rule| match &rule.action {
            RuleAction::Lookup(table) => !state.routes.keys().any(|key| key.family == rule.family && key.table == *table),
            RuleAction::LookupMainWithoutDefault | RuleAction::Unreachable | RuleAction::Blackhole => false,
        }).cloned().collect::<BTreeSet<_>>();
        prop_assert_eq!(astray(&goal), BTreeSet::new());
        for step in start.plan_to(&goal) {
            let before = astray(&now);
            now.apply(&step);
            // A step may mend what it found; what it breaks can only be a link that goes together with its rules.
            for rule in astray(&now).difference(&before) {
                prop_assert!(!goal.rules.contains(rule), "{step}: {rule}");
            }
        }
    }

    #[test]
    fn nothing_passes_that_neither_the_old_nor_the_wanted_rules_let_pass((start, goal) in kernels()) {
        let mut now = start.clone();
        for step in start.plan_to(&goal) {
            now.apply(&step);
            let open = FORWARDING.iter().any(|name| now.sysctls.get(*name).is_some_and(|value| value == "1"));
            let guarded = now.ruleset == goal.ruleset || now.ruleset == start.ruleset || now.ruleset == RulesetState::Unknown;
            prop_assert!(!open || guarded, "{step}");
            if matches!(step, Step::SetLateSysctl { .. }) {
                prop_assert_eq!(&now.ruleset, &goal.ruleset);
            }
            if matches!(step, Step::SetFastPath(_)) {
                prop_assert_eq!(&now.ruleset, &goal.ruleset, "what is denied at the ports is denied by the rules too");
            }
            // Where there was no table, there is one before anything else happens.
            prop_assert!(now.ruleset != RulesetState::Absent, "{step}");
        }
    }
}

#[test]
fn the_door_is_closed_only_where_there_is_none() {
    let site = fixture::site();
    let goal = wanted(&site, &fixture::decision(&site), &everything());
    assert_eq!(KernelState::default().plan_to(&goal).first(), Some(&Step::CloseDoor));
    let mut flushed = carry_out(&KernelState::default(), &KernelState::default().plan_to(&goal));
    flushed.ruleset = RulesetState::Absent;
    assert!(matches!(flushed.plan_to(&goal).as_slice(), [Step::LoadRuleset { .. }]));
    flushed.ruleset = RulesetState::Unknown;
    flushed.rules.clear();
    assert!(flushed.plan_to(&goal).iter().all(|step| *step != Step::CloseDoor));
}

#[test]
fn a_change_of_health_is_buckets_and_burials_and_nothing_else() {
    let site = fixture::site();
    let mut decision = fixture::decision(&site);
    let up = wanted(&site, &decision, &everything());
    let start = carry_out(&KernelState::default(), &KernelState::default().plan_to(&up));
    let lost = site.wans.values().next().unwrap().id;
    for buckets in decision.buckets.values_mut() {
        buckets.0 = vec![Slot::Wan(site.wans.values().last().unwrap().id); buckets.0.len()];
    }
    let class = FlowClass { family: Family::V4, wan: lost, policy: None };
    decision.dead.insert(class, Kick::All);
    let plan = start.plan_to(&wanted(&site, &decision, &everything()));
    assert_eq!(plan.len(), 5);
    assert!(plan.iter().take(4).all(|step| matches!(step, Step::SetBuckets { .. })));
    assert_eq!(plan.last(), Some(&Step::Bury(vec![(class, Kick::All)])));
}

/// A kernel as it may be found, and one as it may be wanted.
fn kernels() -> impl Strategy<Value = (KernelState, KernelState)> {
    let origin = prop_oneof![Just(None), (goal(), any::<bool>()).prop_map(Some)];
    (origin, goal(), prop::collection::vec(drift(), 0..8)).prop_map(|(origin, goal, drifts)| {
        let mut start = match origin {
            None => KernelState::default(),
            Some((old, _)) => carry_out(&KernelState::default(), &KernelState::default().plan_to(&old)),
        };
        for drift in drifts {
            drift.happen(&mut start);
        }
        (start, goal)
    })
}

fn goal() -> impl Strategy<Value = KernelState> {
    (site(), prop::collection::btree_set(0..4_usize, 0..3), any::<[bool; 5]>()).prop_map(
        |(site, missing, [renamed, second_line, dead, audited, audited_back])| {
            let names = ["eth0", "eth1", if renamed { "old3" } else { "eth2" }, "eth3"];
            let present: Vec<_> =
                names.iter().enumerate().filter(|(n, _)| !missing.contains(n)).map(|(_, name)| *name).collect();
            let mut decision = fixture::decision(&site);
            if second_line && let Some(wan) = site.wans.values().last() {
                decision.own = Family::ALL.into_iter().map(|family| (family, wan.id)).collect();
                for buckets in decision.buckets.values_mut() {
                    buckets.0.fill(Slot::Wan(wan.id));
                }
            }
            if dead && let Some(wan) = site.wans.values().next() {
                for family in Family::ALL {
                    decision.dead.insert(FlowClass { family, wan: wan.id, policy: None }, Kick::Tcp);
                }
            }
            let mut site = site;
            if renamed && let Some(port) = site.ports.get_mut(&"eth2".parse::<IfName>().unwrap()) {
                port.find = config::model::PortFind::Name("old3".parse().unwrap());
            }
            let mut wanted = wanted(&site, &decision, &fixture::ethernet(&present));
            for (chosen, pair) in [(audited, "office->servers"), (audited_back, "servers->office")] {
                if chosen {
                    audit(&mut wanted, &site, &pair.parse().unwrap(), Duration::from_mins(10));
                }
            }
            wanted
        },
    )
}

/// The fixture with some of it left out or moved.
fn site() -> impl Strategy<Value = Config> {
    (any::<[bool; 7]>(), 20..40_u32).prop_map(|([one_line, no_cells, moved, retagged, reserved, mtu, off], rate)| {
        let mut site = fixture::site();
        if off {
            site.fast_path = None;
        }
        site.router.denied_log_rate = rate;
        if one_line {
            site.wans.retain(|_, wan| wan.id.get() == 1);
            site.ports.retain(|_, port| !matches!(&port.role, PortRole::Wan(wan) if wan.as_str() == "wan2"));
        }
        if no_cells {
            site.cells.clear();
        }
        if moved && let Some(wan) = site.wans.values_mut().next() {
            wan.addressing.addresses = vec![fixture::net("192.0.2.2/24")];
            wan.addressing.gateway4 = Some("192.0.2.1".parse().unwrap());
            wan.addressing.gateway6 = None;
        }
        if retagged && let Some(vlan) = site.vlans.get_mut(&"servers".parse().unwrap()) {
            vlan.id = VlanId::new(31).unwrap();
        }
        if reserved && let Some(port) = site.ports.get_mut(&"eth2".parse::<IfName>().unwrap()) {
            port.role = PortRole::Reserved;
        }
        if mtu && let Some(wan) = site.wans.values_mut().next() {
            wan.mtu = Some(1492);
        }
        site
    })
}

/// Something somebody else did to the kernel.
#[derive(Debug, Clone)]
enum Drift {
    NoTable,
    StrangeTable,
    NoRule(prop::sample::Index),
    NoRoute(prop::sample::Index),
    NoAddress(prop::sample::Index),
    NoLink(prop::sample::Index),
    Down(prop::sample::Index),
    Sysctl(prop::sample::Index),
    NoBuckets,
    OldThings,
    OtherKind,
    NoFastPath,
}

fn drift() -> impl Strategy<Value = Drift> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        Just(Drift::NoTable),
        Just(Drift::StrangeTable),
        at().prop_map(Drift::NoRule),
        at().prop_map(Drift::NoRoute),
        at().prop_map(Drift::NoAddress),
        at().prop_map(Drift::NoLink),
        at().prop_map(Drift::Down),
        at().prop_map(Drift::Sysctl),
        Just(Drift::NoBuckets),
        Just(Drift::OldThings),
        Just(Drift::OtherKind),
        Just(Drift::NoFastPath),
    ]
}

impl Drift {
    fn happen(self, state: &mut KernelState) {
        let nth = |index: prop::sample::Index, len: usize| if len == 0 { 0 } else { index.index(len) };
        match self {
            Self::NoTable | Self::StrangeTable => {
                state.ruleset =
                    if matches!(self, Self::NoTable) { RulesetState::Absent } else { RulesetState::Unknown };
                state.buckets.clear();
                state.dead.clear();
                state.audited.clear();
            }
            Self::NoRule(index) => {
                let gone = state.rules.iter().nth(nth(index, state.rules.len())).cloned();
                state.rules.retain(|rule| Some(rule) != gone.as_ref());
            }
            Self::NoRoute(index) => {
                let gone = state.routes.keys().nth(nth(index, state.routes.len())).cloned();
                state.routes.retain(|key, _| Some(key) != gone.as_ref());
            }
            Self::NoAddress(index) => {
                let gone = state.addresses.iter().nth(nth(index, state.addresses.len())).cloned();
                state.addresses.retain(|address| Some(address) != gone.as_ref());
            }
            Self::NoLink(index) => {
                if let Some(name) = state.links.keys().nth(nth(index, state.links.len())).cloned() {
                    state.delete_link(&name);
                }
            }
            Self::Down(index) => {
                let count = state.links.len();
                if let Some((name, link)) = state.links.iter_mut().nth(nth(index, count)) {
                    link.up = false;
                    let name = name.clone();
                    state.forget_routes(&name);
                }
            }
            Self::Sysctl(index) => {
                let count = state.sysctls.len();
                if let Some(value) = state.sysctls.values_mut().nth(nth(index, count)) {
                    "7".clone_into(value);
                }
            }
            Self::NoBuckets => state.buckets.clear(),
            Self::OldThings => {
                let old: IfName = "vlan999".parse().unwrap();
                let net: IpNet = "10.99.0.1/24".parse().unwrap();
                let link = Link { kind: LinkKind::Bridge, up: true, master: None, mtu: None };
                state.links.insert(old.clone(), link);
                state.addresses.insert(Address { link: old.clone(), net, no_prefix_route: false });
                let key = RouteKey { family: Family::V4, table: TableId(1099), destination: net.trunc(), metric: 0 };
                state.routes.insert(key, crate::state::NextHop::Direct { link: old, source: None });
                let policy = "gone".parse().unwrap();
                state.buckets.insert(BucketKey { policy, family: Family::V4 }, Buckets(vec![Slot::Blackhole]));
            }
            Self::NoFastPath => state.fast_path = None,
            Self::OtherKind => {
                let link = Link { kind: LinkKind::Bridge, up: true, master: None, mtu: None };
                state.links.insert("eth3.30".parse().unwrap(), link);
            }
        }
    }
}

fn wanted(site: &Config, decision: &Decision, links: &Links) -> KernelState {
    compile(site, decision, links)
}

fn everything() -> Links {
    fixture::ethernet(&["eth0", "eth1", "eth2", "eth3"])
}

fn carry_out(start: &KernelState, plan: &[Step]) -> KernelState {
    let mut now = start.clone();
    for step in plan {
        now.apply(step);
    }
    now
}

/// What must be equal: of links and sysctls those that are wanted or ours, of dead classes the key.
fn essence(state: &KernelState, goal: &KernelState) -> KernelState {
    let mut state = state.clone();
    for (name, link) in &mut state.links {
        match &mut link.kind {
            LinkKind::Port { found_as } => found_as.clone_from(name),
            LinkKind::Bridge | LinkKind::Tagged { .. } => {}
        }
        link.mtu = goal.links.get(name).and_then(|wanted| wanted.mtu);
    }
    state.links.retain(|name, link| goal.links.contains_key(name) || !matches!(link.kind, LinkKind::Port { .. }));
    state.sysctls.retain(|name, _| goal.sysctls.contains_key(name));
    state.dead.values_mut().for_each(|kick| *kick = Kick::All);
    state
}

fn rank(step: &Step) -> u8 {
    match step {
        Step::CloseDoor => 0,
        Step::SetLink { .. } => 1,
        Step::SetSysctl { .. } => 2,
        Step::AddAddress(_) => 3,
        Step::SetRoute { .. } => 4,
        Step::AddRule(_) => 5,
        Step::LoadRuleset { .. } => 6,
        Step::SetFastPath(_) => 7,
        Step::EndAudit(_) => 8,
        Step::BeginAudit { .. } => 9,
        Step::Revive(_) => 10,
        Step::SetBuckets { .. } => 11,
        Step::Bury(_) => 12,
        Step::SetLateSysctl { .. } => 13,
        Step::DeleteRule(_) => 14,
        Step::DeleteRoute(_) => 15,
        Step::DeleteAddress(_) => 16,
        Step::DeleteLink(_) => 17,
    }
}
