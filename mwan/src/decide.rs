//! Config and health in, buckets per policy out.
//!
//! **Which lines.** Of a policy's members that carry the family and are not drained, the best kind of health that
//! occurs counts: `Up`; else `Degraded`; else `Held`; else `Unknown`. Of those, the lowest tier. (`Held` goes before
//! `Unknown` because it has answered.) Until the router has settled, `Unknown` is as good as `Up`: a restarted
//! daemon finds the lines in use and does not move anything before it knows better.
//!
//! **Which buckets.** The shares of a tier's members come from their weights by the largest remainder and are
//! interleaved. The buckets of a member that is not usable are dealt to the others in the same way, and so on, so
//! that the loss of a line moves only the buckets of that line. `Spread` is a strict round of the usable members.
//!
//! **Which flows end.** A class is dead while its line is lost and the class has somewhere better to go; also once
//! a better tier is back and the policy's failback says so. Nothing ends on a line whose flows are frozen.

use std::collections::BTreeMap;
use std::time::Duration;

use config::Config;
use config::model::{Balance, Failback, Kick, LastResort, Member, Policy, Tunnel, Wan};
use config::units::{Family, VlanName, WanId};
use serde::{Deserialize, Serialize};

use crate::event::Health;
use crate::state::{BUCKETS, BucketKey, Buckets, FlowClass, Slot};
use crate::time::Time;

/// What the health of the lines amounts to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    #[serde(with = "crate::state::as_pairs")]
    pub buckets: BTreeMap<BucketKey, Buckets>,
    /// Classes of flows that must not exist.
    #[serde(with = "crate::state::as_pairs")]
    pub dead: BTreeMap<FlowClass, Kick>,
    /// The line in table `ROUTER`: the first route of the router's own sockets.
    pub own: BTreeMap<Family, WanId>,
    /// The line that carries each tunnel.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tunnels: BTreeMap<VlanName, WanId>,
}

/// One line in one family, as far as choosing is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub health: Health,
    /// An operator took it out: no new flows, and the old ones stay.
    pub drained: bool,
    /// Its flows stay, whatever its health.
    pub frozen: bool,
}

impl Standing {
    pub fn of(health: Health) -> Self {
        Self { health, drained: false, frozen: false }
    }

    fn lost(self) -> bool {
        match self.health {
            Health::Down | Health::NoCarrier => true,
            Health::Unknown | Health::Up | Health::Degraded | Health::Held => false,
        }
    }
}

/// Every line that carries a family stands here.
pub type Standings = BTreeMap<(WanId, Family), Standing>;

/// The facts a choice rests on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub config: &'a Config,
    pub standings: &'a Standings,
    /// Every line has been judged since start.
    pub settled: bool,
    /// Tenths left of the rates of the lines that tell them.
    pub headroom: &'a BTreeMap<WanId, u8>,
}

/// Chooses, and remembers which classes a better tier has relieved.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Chooser {
    #[serde(with = "crate::state::as_pairs")]
    relieved: BTreeMap<FlowClass, Time>,
    /// Tunnels with a better line than theirs, and since when.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    outdone: BTreeMap<VlanName, Time>,
}

impl Chooser {
    /// The next decision. `outage` tells of a family whether its lines were lost together.
    pub fn decide(
        &mut self,
        facts: Facts<'_>,
        outage: impl Fn(Family) -> bool,
        previous: &Decision,
        now: Time,
    ) -> Decision {
        let mut decision = Decision::default();
        for policy in facts.config.policies.values() {
            for family in Family::ALL {
                let key = BucketKey { policy: policy.name.clone(), family };
                let kept = previous.buckets.get(&key).filter(|_| outage(family));
                let buckets = facts.buckets(policy, family).or_else(|| kept.cloned());
                let buckets = buckets.unwrap_or_else(|| last_resort(policy));
                decision.buckets.insert(key, buckets);
            }
        }
        decision.own =
            Family::ALL.into_iter().filter_map(|family| Some((family, facts.own(family, &decision)?))).collect();
        decision.tunnels = self.tunnels(facts, previous, now);
        self.relieve(facts, previous, &decision, now);
        decision.dead = self.dead(facts, &decision, now);
        decision
    }

    /// The line of each tunnel. One that has a line keeps it while that is as good as any, if its failback says so;
    /// with no good line left, it keeps what it has.
    fn tunnels(&mut self, facts: Facts<'_>, previous: &Decision, now: Time) -> BTreeMap<VlanName, WanId> {
        let mut lines = BTreeMap::new();
        let mut outdone = BTreeMap::new();
        for (vlan, tunnel) in facts.config.tunnels() {
            let before = previous.tunnels.get(&vlan.name).copied();
            let before = before.filter(|wan| facts.of_tunnel(tunnel).any(|(_, other)| other == *wan));
            let best =
                facts.of_tunnel(tunnel).filter_map(|(rank, wan)| Some((rank?, wan))).min_by_key(|(rank, _)| *rank);
            let good =
                |wan| facts.of_tunnel(tunnel).any(|(rank, other)| other == wan && rank == best.map(|(rank, _)| rank));
            let line = match (before, best) {
                (Some(before), Some((_, best))) if before != best && good(before) => {
                    let since = *self.outdone.get(&vlan.name).unwrap_or(&now);
                    outdone.insert(vlan.name.clone(), since);
                    if ended(tunnel.failback, since, now) { best } else { before }
                }
                (_, Some((_, best))) => best,
                (Some(before), None) => before,
                (None, None) => continue,
            };
            lines.insert(vlan.name.clone(), line);
        }
        self.outdone = outdone;
        lines
    }

    /// When a drain ends next.
    pub fn deadline(&self, config: &Config, now: Time) -> Time {
        let outdone =
            self.outdone.iter().filter_map(|(name, since)| match config.vlans.get(name)?.tunnel.as_ref()?.failback {
                Failback::Drain(span) => Some(*since + span).filter(|end| *end > now),
                Failback::Stay | Failback::Force => None,
            });
        self.relieved
            .iter()
            .filter_map(|(class, since)| match failback(config, *class)? {
                Failback::Drain(span) => Some(*since + span).filter(|end| *end > now),
                Failback::Stay | Failback::Force => None,
            })
            .chain(outdone)
            .min()
            .unwrap_or(Time::NEVER)
    }

    /// Notes the classes that a better tier has relieved, and forgets those that are in use again.
    fn relieve(&mut self, facts: Facts<'_>, previous: &Decision, decision: &Decision, now: Time) {
        self.relieved.retain(|class, _| {
            facts.standings.contains_key(&(class.wan, class.family))
                && failback(facts.config, *class).is_some()
                && !decision.uses(facts.config, *class)
        });
        for policy in facts.config.policies.values() {
            for family in Family::ALL {
                let key = BucketKey { policy: policy.name.clone(), family };
                let (Some(old), Some(new)) = (previous.buckets.get(&key), decision.buckets.get(&key)) else { continue };
                let tier = |wan: WanId| tier_of(facts.config, policy, wan);
                let Some(best) = new.lines().into_keys().map(tier).min() else { continue };
                for wan in old.lines().into_keys().filter(|wan| tier(*wan) > best && !new.uses(*wan)) {
                    self.relieved.entry(FlowClass { family, wan, policy: Some(policy.id) }).or_insert(now);
                }
            }
        }
    }

    fn dead(&self, facts: Facts<'_>, decision: &Decision, now: Time) -> BTreeMap<FlowClass, Kick> {
        let mut dead = BTreeMap::new();
        for (&(wan, family), standing) in facts.standings.iter().filter(|(_, standing)| !standing.frozen) {
            let lost = standing.lost();
            let other_usable =
                facts.standings.iter().any(|(key, other)| *key != (wan, family) && key.1 == family && !other.lost());
            if lost && other_usable {
                dead.insert(FlowClass { family, wan, policy: None }, Kick::Tcp);
            }
            for policy in facts.config.policies.values() {
                let class = FlowClass { family, wan, policy: Some(policy.id) };
                let over = || self.relieved.get(&class).is_some_and(|since| ended(policy.failback, *since, now));
                let key = BucketKey { policy: policy.name.clone(), family };
                let Some(buckets) = decision.buckets.get(&key) else { continue };
                // Somewhere better to go: every line in the buckets is usable unless an outage kept them.
                let better = buckets
                    .lines()
                    .into_keys()
                    .any(|wan| facts.standings.get(&(wan, family)).is_some_and(|standing| !standing.lost()));
                let sends_here =
                    tier_of(facts.config, policy, wan) != NO_MEMBER || policy.last_resort == LastResort::Any;
                if sends_here && better && !buckets.uses(wan) && (lost || (over() && !standing.drained)) {
                    dead.insert(class, policy.kick);
                }
            }
        }
        dead
    }
}

impl Decision {
    fn uses(&self, config: &Config, class: FlowClass) -> bool {
        let policy = class.policy.and_then(|id| config.policy(id));
        policy.is_some_and(|policy| {
            let key = BucketKey { policy: policy.name.clone(), family: class.family };
            self.buckets.get(&key).is_some_and(|buckets| buckets.uses(class.wan))
        })
    }
}

impl Buckets {
    /// How many buckets each line has.
    pub fn lines(&self) -> BTreeMap<WanId, u16> {
        let mut lines = BTreeMap::new();
        for slot in &self.0 {
            match slot {
                Slot::Wan(wan) => *lines.entry(*wan).or_default() += 1,
                Slot::Unreachable | Slot::Blackhole => {}
            }
        }
        lines
    }

    pub fn uses(&self, wan: WanId) -> bool {
        self.0.contains(&Slot::Wan(wan))
    }
}

impl Facts<'_> {
    /// The lines new flows of this policy take at this moment; `None` if there is none, in the policy or, where the
    /// last resort says so, on the site.
    pub fn buckets(&self, policy: &Policy, family: Family) -> Option<Buckets> {
        let members: Vec<_> =
            policy.members.iter().filter_map(|member| self.candidate(policy, member, family)).collect();
        self.share(policy.balance, &members).or_else(|| match policy.last_resort {
            LastResort::Any => {
                let site: Vec<_> = self.config.wans.values().filter_map(|wan| self.any(wan, family)).collect();
                self.share(policy.balance, &site)
            }
            LastResort::Unreachable | LastResort::Blackhole => None,
        })
    }

    fn share(&self, balance: Balance, members: &[Candidate]) -> Option<Buckets> {
        let best = members.iter().filter_map(|member| Some((self.rank(member.standing)?, member.tier))).min()?;
        let (rank, tier) = best;
        let usable = |member: &Candidate| self.rank(member.standing) == Some(rank);
        let members: Vec<_> = members.iter().filter(|member| member.tier == tier).copied().collect();
        let mut slots = vec![Slot::Unreachable; BUCKETS];
        if balance == Balance::Spread {
            let round = members.iter().filter(|member| usable(member)).cycle();
            for (slot, member) in slots.iter_mut().zip(round) {
                *slot = Slot::Wan(member.wan);
            }
        } else {
            deal(&(0..BUCKETS).collect::<Vec<_>>(), &members, &usable, &mut slots);
        }
        Some(Buckets(slots))
    }

    fn candidate(&self, policy: &Policy, member: &Member, family: Family) -> Option<Candidate> {
        let wan = self.config.wans.get(&member.wan)?.id;
        let standing = *self.standings.get(&(wan, family))?;
        let left = match policy.balance {
            // A full line takes a tenth: what it carries will end, and until then nobody would notice.
            Balance::Headroom => self.headroom.get(&wan).copied().unwrap_or(10).max(1),
            Balance::Flow | Balance::Source | Balance::SourceDestination | Balance::Spread => 1,
        };
        Some(Candidate { wan, weight: u32::from(member.weight.get()) * u32::from(left), tier: member.tier.0, standing })
    }

    fn any(&self, wan: &Wan, family: Family) -> Option<Candidate> {
        let standing = *self.standings.get(&(wan.id, family))?;
        Some(Candidate { wan: wan.id, weight: u32::from(wan.weight.get()), tier: 0, standing })
    }

    /// Lower is better; `None` must not be used.
    fn rank(&self, standing: Standing) -> Option<u8> {
        if standing.drained {
            return None;
        }
        match standing.health {
            Health::Up => Some(0),
            Health::Unknown if !self.settled => Some(0),
            Health::Degraded => Some(1),
            Health::Held => Some(2),
            Health::Unknown => Some(3),
            Health::Down | Health::NoCarrier => None,
        }
    }

    /// The lines of a tunnel that carry its family, the best first, each with its rank.
    fn of_tunnel(&self, tunnel: &Tunnel) -> impl Iterator<Item = (Option<u8>, WanId)> {
        tunnel.wans.iter().filter_map(move |name| {
            let wan = self.config.wans.get(name)?.id;
            let standing = *self.standings.get(&(wan, tunnel.family()))?;
            Some((self.rank(standing), wan))
        })
    }

    /// The line with the most buckets of the router's own policy; the lowest id of equals.
    fn own(&self, family: Family, decision: &Decision) -> Option<WanId> {
        let key = BucketKey { policy: self.config.router.own_policy.clone()?, family };
        let lines = decision.buckets.get(&key)?.lines();
        let most = *lines.values().max()?;
        lines.into_iter().find(|(_, buckets)| *buckets == most).map(|(wan, _)| wan)
    }
}

/// A member of a policy that carries the family.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    wan: WanId,
    weight: u32,
    tier: u8,
    standing: Standing,
}

/// Deals these buckets to the members; what falls to one that is not usable is dealt again among the others.
fn deal(buckets: &[usize], members: &[Candidate], usable: &impl Fn(&Candidate) -> bool, slots: &mut [Slot]) {
    if buckets.is_empty() || members.is_empty() {
        return;
    }
    for (place, (member, part)) in members.iter().zip(split(buckets, members)).enumerate() {
        if usable(member) {
            for bucket in part {
                slots[bucket] = Slot::Wan(member.wan);
            }
        } else {
            let mut others = members.to_vec();
            others.remove(place);
            deal(&part, &others, usable, slots);
        }
    }
}

/// The part of each member: exact to within one bucket (largest remainder), then interleaved (smooth weighted
/// round robin, which gives each member exactly its count over a whole round).
fn split(buckets: &[usize], members: &[Candidate]) -> Vec<Vec<usize>> {
    let all = i64::try_from(buckets.len()).unwrap_or(i64::MAX);
    let weights: Vec<i64> = members.iter().map(|member| i64::from(member.weight)).collect();
    let sum: i64 = weights.iter().sum();
    let mut counts: Vec<i64> = weights.iter().map(|weight| all * weight / sum).collect();
    let mut by_remainder: Vec<usize> = (0..members.len()).collect();
    by_remainder.sort_by_key(|place| (-(all * weights[*place] % sum), *place));
    let missing = all - counts.iter().sum::<i64>();
    for place in by_remainder.into_iter().take(usize::try_from(missing).unwrap_or(0)) {
        counts[place] += 1;
    }
    let mut credit = vec![0_i64; members.len()];
    let mut parts = vec![Vec::new(); members.len()];
    for bucket in buckets {
        let mut turn = 0;
        for place in 0..members.len() {
            credit[place] += counts[place];
            if credit[place] > credit[turn] {
                turn = place;
            }
        }
        credit[turn] -= all;
        parts[turn].push(*bucket);
    }
    parts
}

fn last_resort(policy: &Policy) -> Buckets {
    let slot = match policy.last_resort {
        LastResort::Unreachable | LastResort::Any => Slot::Unreachable,
        LastResort::Blackhole => Slot::Blackhole,
    };
    Buckets(vec![slot; BUCKETS])
}

/// Behind every tier: a line used only because the last resort is any line.
const NO_MEMBER: u16 = 256;

fn tier_of(config: &Config, policy: &Policy, wan: WanId) -> u16 {
    let is_it = |member: &&Member| config.wans.get(&member.wan).is_some_and(|own| own.id == wan);
    policy.members.iter().filter(is_it).map(|member| u16::from(member.tier.0)).min().unwrap_or(NO_MEMBER)
}

fn failback(config: &Config, class: FlowClass) -> Option<Failback> {
    config.policy(class.policy?).map(|policy| policy.failback)
}

fn ended(failback: Failback, since: Time, now: Time) -> bool {
    let patience = match failback {
        Failback::Stay => return false,
        Failback::Drain(span) => span,
        Failback::Force => Duration::ZERO,
    };
    now.since(since) >= patience
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{nonzero, policy_name, site, wan_id, wan_name};
    use config::units::{PolicyId, Tier, Weight};

    #[derive(Debug, Clone)]
    struct Case {
        config: Config,
        standings: Standings,
    }

    fn health() -> impl Strategy<Value = Health> {
        prop::sample::select(vec![
            Health::Unknown,
            Health::Up,
            Health::Up,
            Health::Degraded,
            Health::Held,
            Health::Down,
            Health::NoCarrier,
        ])
    }

    /// Per line: weight, tier, health of each family (`None`: not carried), drained, frozen.
    type LineCase = (u8, u8, Option<Health>, Option<Health>, bool, bool);

    fn case() -> impl Strategy<Value = Case> {
        let carried = || prop::option::weighted(0.8, health());
        let line = (1..=255_u8, 0..3_u8, carried(), carried(), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
        let balance = prop::sample::select(vec![
            Balance::Flow,
            Balance::Source,
            Balance::SourceDestination,
            Balance::Spread,
            Balance::Headroom,
        ]);
        let resort = prop::sample::select(vec![LastResort::Unreachable, LastResort::Blackhole, LastResort::Any]);
        (prop::collection::vec(line, 1..=16), balance, resort)
            .prop_map(|(lines, balance, resort)| build(&lines, balance, resort))
    }

    fn build(lines: &[LineCase], balance: Balance, last_resort: LastResort) -> Case {
        let mut config = site(u8::try_from(lines.len()).unwrap());
        let policy = config.policies.get_mut(&policy_name("balanced")).unwrap();
        policy.balance = balance;
        policy.last_resort = last_resort;
        let mut standings = Standings::new();
        for (id, (member, (weight, tier, v4, v6, drained, frozen))) in (1..).zip(policy.members.iter_mut().zip(lines)) {
            member.weight = Weight(nonzero(*weight));
            member.tier = Tier(*tier);
            for (family, health) in [(Family::V4, v4), (Family::V6, v6)] {
                if let Some(health) = *health {
                    standings.insert((wan_id(id), family), Standing { health, drained: *drained, frozen: *frozen });
                }
            }
        }
        Case { config, standings }
    }

    fn decide(case: &Case) -> Decision {
        let facts =
            Facts { config: &case.config, standings: &case.standings, settled: true, headroom: &BTreeMap::new() };
        Chooser::default().decide(facts, |_| false, &Decision::default(), Time::ZERO)
    }

    fn balanced(case: &Case, family: Family) -> Option<Buckets> {
        let facts =
            Facts { config: &case.config, standings: &case.standings, settled: true, headroom: &BTreeMap::new() };
        facts.buckets(&case.config.policies[&policy_name("balanced")], family)
    }

    proptest! {
        #[test]
        fn only_usable_lines_get_buckets_and_nothing_dead_does(case in case()) {
            let decision = decide(&case);
            prop_assert_eq!(&decision, &decide(&case), "deterministic");
            for (key, buckets) in &decision.buckets {
                prop_assert_eq!(buckets.0.len(), BUCKETS);
                let policy = &case.config.policies[&key.policy];
                for wan in buckets.lines().into_keys() {
                    let standing = case.standings.get(&(wan, key.family));
                    prop_assert!(standing.is_some_and(|standing| !standing.lost() && !standing.drained));
                    let class = FlowClass { family: key.family, wan, policy: Some(policy.id) };
                    prop_assert!(!decision.dead.contains_key(&class), "dead and in the buckets: {:?}", class);
                }
            }
            for class in decision.dead.keys() {
                let standing = case.standings[&(class.wan, class.family)];
                prop_assert!(standing.lost() && !standing.frozen);
                let better = |((_, family), other): (&(WanId, Family), &Standing)| *family == class.family && !other.lost();
                prop_assert!(case.standings.iter().any(better), "buried without a better line: {:?}", class);
            }
            for (family, wan) in &decision.own {
                prop_assert!(!case.standings[&(*wan, *family)].lost());
            }
        }

        #[test]
        fn an_up_line_is_never_passed_over_for_a_worse_one(case in case()) {
            for family in Family::ALL {
                let up = |wan: WanId| case.standings.get(&(wan, family)).is_some_and(|s| s.health == Health::Up && !s.drained);
                let Some(buckets) = balanced(&case, family) else { continue };
                if case.config.wans.values().any(|wan| up(wan.id)) {
                    prop_assert!(buckets.lines().into_keys().all(up));
                }
            }
        }

        #[test]
        fn shares_are_the_weights_to_within_a_bucket(weights in prop::collection::vec(1..=255_u8, 1..=16)) {
            let lines: Vec<_> =
                weights.iter().map(|weight| (*weight, 0, Some(Health::Up), None, false, false)).collect();
            let case = build(&lines, Balance::Flow, LastResort::Unreachable);
            let lines = balanced(&case, Family::V4).unwrap().lines();
            let sum: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            for (id, weight) in (1..).zip(&weights) {
                let share = f64::from(*weight) * 256.0 / f64::from(sum);
                let held = f64::from(lines.get(&wan_id(id)).copied().unwrap_or(0));
                prop_assert!((held - share).abs() < 1.0, "wan{id} holds {held} of {share}");
            }
        }

        #[test]
        fn losing_a_line_moves_only_its_own_buckets(
            lines in prop::collection::vec((1..=255_u8, prop::bool::weighted(0.7)), 2..=16),
            lost in any::<prop::sample::Index>(),
        ) {
            let health = |up: bool| Some(if up { Health::Up } else { Health::Down });
            let lines: Vec<_> = lines.iter().map(|(weight, up)| (*weight, 0, health(*up), None, false, false)).collect();
            let mut case = build(&lines, Balance::Source, LastResort::Unreachable);
            let Some(before) = balanced(&case, Family::V4) else { return Ok(()) };
            let lost = wan_id(u8::try_from(lost.index(lines.len()) + 1).unwrap());
            case.standings.insert((lost, Family::V4), Standing::of(Health::Down));
            let Some(after) = balanced(&case, Family::V4) else { return Ok(()) };
            for (old, new) in before.0.iter().zip(&after.0) {
                prop_assert!(old == new || *old == Slot::Wan(lost), "{:?} became {:?}", old, new);
            }
        }

        #[test]
        fn spread_takes_every_line_in_turn(lines in 1..=16_u8) {
            let up: Vec<_> = (0..lines).map(|id| (id + 1, 0, Some(Health::Up), None, false, false)).collect();
            let case = build(&up, Balance::Spread, LastResort::Unreachable);
            let buckets = balanced(&case, Family::V4).unwrap();
            for window in buckets.0.windows(usize::from(lines)) {
                let distinct: std::collections::BTreeSet<_> = window.iter().collect();
                prop_assert_eq!(distinct.len(), usize::from(lines));
            }
        }
    }

    #[test]
    fn the_lines_of_one_policy_take_turns_within_few_buckets() {
        let lines = [3, 1].map(|weight| (weight, 0, Some(Health::Up), None, false, false));
        let case = build(&lines, Balance::Flow, LastResort::Unreachable);
        let buckets = balanced(&case, Family::V4).unwrap();
        for window in buckets.0.chunks(4) {
            assert_eq!(window.iter().filter(|slot| **slot == Slot::Wan(wan_id(2))).count(), 1);
        }
    }

    #[test]
    fn health_is_ranked_before_tiers() {
        let table = [
            ([Health::Up, Health::Up], 1),
            ([Health::Degraded, Health::Up], 2),
            ([Health::Held, Health::Degraded], 2),
            ([Health::Unknown, Health::Held], 2),
            ([Health::Down, Health::Unknown], 2),
            ([Health::Degraded, Health::Degraded], 1),
        ];
        for (healths, takes) in table {
            let lines = [(1, 0, Some(healths[0]), None, false, false), (1, 1, Some(healths[1]), None, false, false)];
            let case = build(&lines, Balance::Flow, LastResort::Unreachable);
            let lines: Vec<_> = balanced(&case, Family::V4).unwrap().lines().into_keys().collect();
            assert_eq!(lines, [wan_id(takes)], "{healths:?}");
        }
    }

    #[test]
    fn flows_that_came_in_are_buried_only_while_another_line_is_usable() {
        let class = FlowClass { family: Family::V4, wan: wan_id(1), policy: None };
        for (other, buried) in [(Health::Up, true), (Health::Down, false)] {
            let lines = [Health::Down, other].map(|health| (1, 0, Some(health), None, false, false));
            let case = build(&lines, Balance::Flow, LastResort::Unreachable);
            assert_eq!(decide(&case).dead.contains_key(&class), buried);
        }
    }

    #[test]
    fn a_policy_buries_only_on_lines_it_sends_flows_to() {
        let lines = [Health::Up, Health::Up, Health::Down].map(|health| (1, 0, Some(health), None, false, false));
        let case = build(&lines, Balance::Flow, LastResort::Unreachable);
        let policies: Vec<_> = decide(&case).dead.into_keys().map(|class| class.policy).collect();
        assert_eq!(policies, [None, Some(PolicyId(1))], "`standby` does not use {}", wan_name(3));
    }
}
