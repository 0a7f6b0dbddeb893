//! The answer to `explain wan2`: how a line stands and on what evidence, what its last loss cost, and what it would
//! take to lose it. The core's evidence, with the wall's time, the flows and names put to it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use config::Config;
use config::model::{Failback, Wan};
use config::units::{Family, PolicyId};
use mwan::Time;
use mwan::event::Health;
use mwan::evidence::{Evidence, Risk, count, risk};
use mwan::router::{LineStatus, WanStatus};
use serde::{Deserialize, Serialize};

use crate::ask::View;
use crate::counters::Counters;
use crate::kernel::{Buried, Ledger};
use crate::status::{WanLease, span};

/// A line, with reasons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LineAnswer {
    pub wan: String,
    pub interface: String,
    pub drained: bool,
    pub families: Vec<FamilyAnswer>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FamilyAnswer {
    pub family: Family,
    pub state: Health,
    /// RFC 3339, UTC.
    pub since: String,
    pub since_seconds: f64,
    pub why: String,
    /// New flows may be sent here.
    pub usable: bool,
    /// The part of the default policy's new flows it gets, 0 to 1.
    pub share_ratio: f64,
    /// Live flows on it; absent where they cannot be counted.
    pub flows: Option<u64>,
    /// What the last change rests on; absent before the first.
    pub changed: Option<Evidence>,
    /// Its last loss, which is the last change of a line that is lost.
    pub lost: Option<Loss>,
    /// What it takes to lose it; absent where it is lost.
    pub risk: Option<Risk>,
    /// Only where the provider gives the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<WanLease>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// RFC 3339, UTC.
    pub at: String,
    /// `3 of 3 targets silent for 3 probes (316 ms); wan1, wan3, wan4 fine → the line, not the ISP`.
    pub told: String,
    pub evidence: Evidence,
    /// What became of its flows; absent where none were touched.
    pub flows: Option<LostFlows>,
}

/// Flows are ended so that their ends open them again over a better line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostFlows {
    pub moved: u64,
    /// Flows that stayed on the line, by policy.
    pub kept: Vec<Kept>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub flows: u64,
    /// `None`: no policy chose the line, they came in by it.
    pub policy: Option<String>,
    pub why: String,
}

/// `None`: there is no such line. `moment` and `wall` are of the view.
pub fn explain(
    view: &View,
    wan: &str,
    counters: Option<&Counters>,
    ledger: &Ledger,
    (moment, wall): (Instant, SystemTime),
) -> Option<LineAnswer> {
    let config = view.config.as_ref()?;
    let status = view.snapshot.wans.iter().find(|status| status.name.as_str() == wan)?;
    let wan = config.wans.get(&status.name)?;
    let clock = Clock { now: view.snapshot.now, moment, wall };
    let families = status.families.iter().map(|(family, line)| {
        let flows = counters.map(|counters| counters.flows.get(&(wan.id, *family)).copied().unwrap_or_default());
        let lost = line.lost.as_ref().map(|evidence| {
            let buried = ledger.of(wan.id, *family).filter(|buried| clock.follows(buried, evidence));
            loss(config, status, evidence, buried.as_ref(), &clock)
        });
        FamilyAnswer { flows, lost, ..family_answer(config, wan, *family, line, &clock) }
    });
    Some(LineAnswer {
        wan: wan.name.to_string(),
        interface: wan.interface.to_string(),
        drained: status.drained,
        families: families.collect(),
    })
}

fn family_answer(config: &Config, wan: &Wan, family: Family, line: &LineStatus, clock: &Clock) -> FamilyAnswer {
    FamilyAnswer {
        family,
        state: line.health,
        since: clock.wall(line.since),
        since_seconds: clock.now.since(line.since).as_secs_f64(),
        why: line.why.clone(),
        usable: line.usable,
        share_ratio: line.share / 100.0,
        flows: None,
        changed: line.changed.clone(),
        lost: None,
        risk: risk(config, &wan.name, family).filter(|_| !is_lost(line.health)),
        lease: line.lease.as_ref().map(|lease| WanLease::of(lease, clock.now)),
    }
}

fn loss(config: &Config, status: &WanStatus, evidence: &Evidence, buried: Option<&Buried>, clock: &Clock) -> Loss {
    let judged = evidence.judged().map(|judged| format!("; {judged}")).unwrap_or_default();
    let flows =
        buried.map(|buried| LostFlows { moved: buried.ended.values().sum(), kept: kept(config, status, &buried.kept) });
    Loss { at: clock.wall(evidence.at), told: evidence.seen() + &judged, evidence: evidence.clone(), flows }
}

/// The flows that stayed, and what in the file lets them.
fn kept(config: &Config, status: &WanStatus, flows: &BTreeMap<Option<PolicyId>, u64>) -> Vec<Kept> {
    let of = |(policy, flows): (&Option<PolicyId>, &u64)| {
        let policy = policy.and_then(|id| config.policy(id));
        let why = match policy.map(|policy| policy.failback) {
            _ if status.drained => "drained".to_owned(),
            None => "came in by it".to_owned(),
            Some(Failback::Drain(span)) => format!("drain {}", humantime::format_duration(span)),
            Some(Failback::Stay) => "no better line".to_owned(),
            Some(Failback::Force) => "no better line yet".to_owned(),
        };
        Kept { flows: *flows, policy: policy.map(|policy| policy.name.to_string()), why }
    };
    flows.iter().filter(|(_, flows)| **flows > 0).map(of).collect()
}

/// One moment on the core's clock, the machine's and the wall's.
struct Clock {
    now: Time,
    moment: Instant,
    wall: SystemTime,
}

impl Clock {
    fn wall(&self, at: Time) -> String {
        let wall = self.wall.checked_sub(self.now.since(at)).unwrap_or(SystemTime::UNIX_EPOCH);
        humantime::format_rfc3339_millis(wall).to_string()
    }

    /// Whether this burial belongs to that loss: a moment after it, and not long before.
    fn follows(&self, buried: &Buried, evidence: &Evidence) -> bool {
        self.moment.saturating_duration_since(buried.at) <= self.now.since(evidence.at) + SLACK
    }
}

impl fmt::Display for LineAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let drained = if self.drained { ", drained by an operator: no new flows, the old ones stay" } else { "" };
        write!(f, "{} ({}){drained}", self.wan, self.interface)?;
        self.families.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

impl fmt::Display for FamilyAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, state, since, since_seconds, why, share_ratio, flows, lost, risk, .. } = self;
        let last = lost.as_ref().filter(|_| is_lost(*state));
        let why = last.map_or(why, |loss| &loss.told);
        write!(f, "{family} {} since {} ({} ago): {why}", state.word(), clock_words(since), span(*since_seconds))?;
        if let Some(loss) = last {
            loss.flows.as_ref().map_or(Ok(()), |flows| write!(f, "; {flows}"))?;
        }
        if let Some(lease) = &self.lease {
            write!(f, "\n  {lease}")?;
        }
        if last.is_some() {
            return Ok(());
        }
        write!(f, "\n  {:.0} % of new flows of the default policy", share_ratio * 100.0)?;
        if let Some(flows) = flows {
            write!(f, ", {} on it", count(*flows, "flow"))?;
        }
        if let Some(loss) = lost {
            write!(f, "\n  lost last {}: {}", clock_words(&loss.at), loss.told)?;
            loss.flows.as_ref().map_or(Ok(()), |flows| write!(f, "; {flows}"))?;
        }
        risk.as_ref().map_or(Ok(()), |risk| write!(f, "\n  is lost {risk}"))
    }
}

impl fmt::Display for LostFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} moved", count(self.moved, "flow"))?;
        for Kept { flows, policy, why } in &self.kept {
            match policy {
                Some(policy) => write!(f, ", {flows} kept (policy {policy}: {why})")?,
                None => write!(f, ", {flows} kept ({why})")?,
            }
        }
        Ok(())
    }
}

/// `2026-11-21T03:12:07.410Z` as people write it.
fn clock_words(time: &str) -> String {
    time.replace('T', " ").replace('Z', " UTC")
}

fn is_lost(health: Health) -> bool {
    match health {
        Health::Down | Health::NoCarrier => true,
        Health::Unknown | Health::Up | Health::Degraded | Health::Held => false,
    }
}

/// Between the verdict and the note of its burial some milliseconds pass, and so they do between the view and us.
const SLACK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use config::units::WanId;
    use mwan::evidence::{Blame, Ground, Other, Sight, Stood};
    use mwan::state::FlowClass;

    use super::*;
    use crate::fixture;

    #[test]
    fn a_lost_line_is_told_with_its_evidence_and_its_flows() {
        let mut view = fixture::view();
        let now = view.snapshot.now;
        let line = view.snapshot.wans[1].families.get_mut(&Family::V4).unwrap();
        line.lost = Some(evidence(now - Duration::from_secs(14)));
        view.snapshot.wans[1].drained = false;
        let told = answer(&view, "wan2").to_string();
        assert_eq!(
            told,
            "wan2 (wan2)\nIPv4 down since 1970-01-01 03:12:07.410 UTC (14s ago): 3 of 3 targets silent for 3 probes \
             (316 ms); wan1, wan3 fine → the line, not the ISP; 214 flows moved, 3 kept (policy balanced: no better line)"
        );
    }

    #[test]
    fn a_line_that_is_up_is_told_what_it_carries_and_what_would_lose_it() {
        let mut view = fixture::view();
        let now = view.snapshot.now;
        let line = view.snapshot.wans[0].families.get_mut(&Family::V4).unwrap();
        line.since = now - Duration::from_secs(4);
        line.lost = Some(evidence(now - Duration::from_secs(20)));
        let told = answer(&view, "wan1").to_string();
        assert_eq!(
            told,
            "wan1 (wan1)\nIPv4 up since 1970-01-01 03:12:17.410 UTC (4s ago): 1 of 1 targets answer\n  \
             lease 100.64.1.2/24 by 100.64.1.1, ends in 1h00m\n  \
             100 % of new flows of the default policy, 118 flows on it\n  \
             lost last 1970-01-01 03:12:01.410 UTC: 3 of 3 targets silent for 3 probes (316 ms); wan1, wan3 fine → \
             the line, not the ISP\n  \
             is lost at once with the carrier of wan1; 100 to 200 ms after fewer than 1 of its 1 target answer (1 lost \
             probe in a row each); under load 220 ms after nothing comes back to 5 flows"
        );
        assert!(explain(&view, "wan9", None, &Ledger::default(), (Instant::now(), SystemTime::now())).is_none());
    }

    #[test]
    fn a_burial_before_the_loss_is_of_another() {
        let clock = Clock { now: Time::from_micros(10_000_000), moment: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let buried = |ago: u64| {
            let ledger = ledger(1);
            let mut buried = ledger.of(WanId::new(1).unwrap(), Family::V4).unwrap();
            buried.at = clock.moment.checked_sub(Duration::from_millis(ago)).unwrap();
            buried
        };
        let loss = evidence(Time::from_micros(9_000_000));
        assert!(clock.follows(&buried(990), &loss) && clock.follows(&buried(10), &loss));
        assert!(!clock.follows(&buried(1100), &loss));
    }

    /// Of wan2 alone flows were buried.
    fn answer(view: &View, wan: &str) -> LineAnswer {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_millis((3 * 3600 + 12 * 60 + 21) * 1000 + 410);
        explain(view, wan, Some(&fixture::counters()), &ledger(2), (Instant::now(), wall)).unwrap()
    }

    fn ledger(line: u8) -> Ledger {
        let (ledger, line) = (Ledger::default(), WanId::new(line).unwrap());
        let class = |policy| FlowClass { family: Family::V4, wan: line, policy };
        let ours = fixture::config().policies.into_values().next().unwrap().id;
        let dead = BTreeMap::from([(class(None), config::model::Kick::Tcp)]);
        ledger.note(line, &dead, &BTreeMap::from([(class(None), 214), (class(Some(ours)), 3)]));
        ledger
    }

    fn evidence(at: Time) -> Evidence {
        let sight = |last: u8| Sight {
            target: format!("icmp 198.51.100.{last}"),
            up: Some(false),
            bad: false,
            losses: 3,
            silent: Some(Duration::from_millis(316)),
            failure: None,
            elsewhere: false,
        };
        let other = |wan: &str| Other { wan: wan.parse().unwrap(), stood: Stood::Fine };
        Evidence {
            at,
            from: Health::Up,
            to: Health::Down,
            ground: Ground::Probes,
            targets: (1..=3).map(sight).collect(),
            others: vec![other("wan1"), other("wan3")],
            blame: Some(Blame::Line),
        }
    }
}
