//! What a verdict on a line rested on, written down at the moment it fell: which targets were silent and for how long,
//! what the other lines were at that moment, and so whose fault it was. `Router` writes it, `explain wan2` tells it.
//!
//! Nothing is decided by it: a checkpoint leaves it out, and a replay finds it again.

use std::fmt;
use std::time::Duration;

use config::Config;
use config::units::{Family, IfName, WanName};
use serde::{Deserialize, Serialize};

use crate::event::{Failure, Health};
use crate::monitor::{BURST, BURST_PATIENCE, BURST_STEP};
use crate::time::Time;

/// One change of a line in one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub at: Time,
    pub from: Health,
    pub to: Health,
    pub ground: Ground,
    /// The line's own targets.
    pub targets: Vec<Sight>,
    /// The other lines of the family. Only where the line was lost.
    pub others: Vec<Other>,
    /// Whose fault it was. Only where the line was lost.
    pub blame: Option<Blame>,
}

/// What the verdict rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ground {
    /// The interface is missing, down or without carrier.
    Carrier,
    /// There is no address to use.
    Lease,
    /// The other router of the pair uses it.
    Seat,
    /// An operator said so.
    FailTest,
    Probes,
    /// So many flows sent and nothing came back, neither to them nor to the probes that asked then; for this long.
    Return {
        flows: u32,
        silence: Duration,
    },
    /// Probes are answered; what the line carries is worse than on other lines.
    Traffic,
}

/// One target, as its line saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// As in the log: `icmp 198.51.100.1`.
    pub target: String,
    pub up: Option<bool>,
    /// It fails on every line: not counted.
    pub bad: bool,
    /// Lost probes in a row, and how long ago the first of them was sent.
    pub losses: u8,
    pub silent: Option<Duration>,
    /// How the last one failed, if it did before its timeout.
    pub failure: Option<Failure>,
    /// It fails on every other line that uses it, and there is one.
    pub elsewhere: bool,
}

/// Another line at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    pub wan: WanName,
    pub stood: Stood,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stood {
    Fine,
    /// In use, its latest probes lost or overdue.
    Doubtful,
    /// Lost within the same moment.
    LostToo,
    /// Not in use before either.
    Out,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blame {
    /// The others were fine.
    Line,
    /// Its targets fail on other lines too, and those lines have others that answer.
    Target,
    /// Most lines were lost together.
    Isp,
    /// Others were lost or in doubt with it: too few for an outage of the provider.
    Several,
    /// No other line was in use to compare it with.
    Alone,
    Operator,
}

impl Blame {
    pub fn of(ground: Ground, targets: &[Sight], others: &[Other], outage: bool) -> Self {
        let count = |stood| others.iter().filter(|other| other.stood == stood).count();
        let mut down = targets.iter().filter(|sight| sight.up == Some(false)).peekable();
        let by_targets = ground == Ground::Probes && down.peek().is_some() && down.all(|sight| sight.elsewhere);
        if ground == Ground::FailTest {
            Self::Operator
        } else if outage {
            Self::Isp
        } else if count(Stood::LostToo) + count(Stood::Doubtful) > 0 {
            Self::Several
        } else if count(Stood::Fine) == 0 {
            Self::Alone
        } else if by_targets {
            Self::Target
        } else {
            Self::Line
        }
    }
}

impl Evidence {
    /// The line was in service and is lost by it.
    pub fn is_loss(&self) -> bool {
        lost(self.to) && !lost(self.from) && self.from != Health::Unknown
    }

    /// What was seen of the line itself: `3 of 3 targets silent for 3 probes (316 ms)`.
    pub fn seen(&self) -> String {
        let all = self.targets.len();
        let up = self.targets.iter().filter(|sight| sight.up == Some(true)).count();
        let down: Vec<_> = self.targets.iter().filter(|sight| sight.up == Some(false)).collect();
        let silent = || {
            let probes = down.iter().map(|sight| sight.losses).min().unwrap_or_default();
            let span = down.iter().filter_map(|sight| sight.silent).max().unwrap_or_default();
            let mut failures: Vec<_> =
                down.iter().filter_map(|sight| Some(format!("{} {}", sight.target, sight.failure?.word()))).collect();
            failures.dedup();
            let failures = if failures.is_empty() { String::new() } else { format!(": {}", failures.join(", ")) };
            let probes = count(u64::from(probes), "probe");
            format!("{} of {all} targets silent for {probes} ({} ms){failures}", down.len(), span.as_millis())
        };
        match self.ground {
            Ground::Carrier => "its interface is missing, down or without carrier".to_owned(),
            Ground::Lease => "it has no lease of an address".to_owned(),
            Ground::Seat => "the other router of the pair uses it".to_owned(),
            Ground::FailTest => "declared down by an operator's fail-test".to_owned(),
            Ground::Return { flows, silence } => {
                format!(
                    "return silence {} ms on {}, and {}",
                    silence.as_millis(),
                    count(u64::from(flows), "flow"),
                    silent()
                )
            }
            Ground::Probes if lost(self.to) => silent(),
            Ground::Probes | Ground::Traffic if all == 0 => "carrier is there; no target of this family".to_owned(),
            Ground::Probes => format!("{up} of {all} targets answer"),
            Ground::Traffic => format!("{up} of {all} targets answer, its traffic is worse than that of other lines"),
        }
    }

    /// What that says beside the other lines: `wan1, wan3, wan4 fine → the line, not the ISP`.
    pub fn judged(&self) -> Option<String> {
        let named = |stood: Stood, told: &str| {
            let names: Vec<_> =
                self.others.iter().filter(|other| other.stood == stood).map(|other| &other.wan).collect();
            (!names.is_empty()).then(|| format!("{} {told}", listed(&names)))
        };
        let stood = [
            named(Stood::Fine, "fine"),
            named(Stood::Doubtful, "in doubt"),
            named(Stood::LostToo, "lost with it"),
            named(Stood::Out, "not in use"),
        ];
        let stood = stood.into_iter().flatten().collect::<Vec<_>>().join("; ");
        let stood = if stood.is_empty() { "no other line".to_owned() } else { stood };
        Some(match self.blame? {
            Blame::Line => format!("{stood} → the line, not the ISP"),
            Blame::Target => format!("{stood}, with the same targets down → the targets, not the line"),
            Blame::Isp => format!("{stood} → the ISP: lost together, flows frozen and not ended"),
            Blame::Several => format!("{stood} → several lines, too few for an outage of the ISP"),
            Blame::Alone => format!("{stood} to compare with → the line or the ISP"),
            Blame::Operator => "an operator's test, nobody's fault".to_owned(),
        })
    }
}

/// What it takes to lose a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Risk {
    pub interface: IfName,
    pub targets: usize,
    /// Fewer than so many of them answering …
    pub quorum: usize,
    /// … by so many lost probes in a row each …
    pub fall: u8,
    /// … which takes from `soonest` to `latest`.
    pub soonest: Duration,
    pub latest: Duration,
    /// Nothing coming back to so many flows for so long has the targets asked at once.
    pub traffic: Option<(u32, Duration)>,
}

/// What it takes to lose this line in this family; `None` if there is no such line.
pub fn risk(config: &Config, wan: &WanName, family: Family) -> Option<Risk> {
    let wan = config.wans.get(wan)?;
    let probe = &wan.probe;
    let targets = probe.targets.iter().filter(|target| target.family == family).count();
    let before = probe.interval * u32::from(probe.fall.get() - 1);
    Some(Risk {
        interface: wan.interface.clone(),
        targets,
        quorum: targets.min(usize::from(probe.quorum.get())),
        fall: probe.fall.get(),
        soonest: before + probe.timeout,
        latest: before + probe.interval + probe.timeout,
        traffic: config.fast_path.as_ref().filter(|_| targets > 0).map(|path| (path.silence_flows, path.silence)),
    })
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interface, targets, quorum, fall, soonest, latest, traffic } = self;
        write!(f, "at once with the carrier of {interface}")?;
        if *targets > 0 {
            let probes = count(u64::from(*fall), "lost probe");
            write!(f, "; {} to {} ms after fewer than ", soonest.as_millis(), latest.as_millis())?;
            write!(f, "{quorum} of its {} answer ({probes} in a row each)", count(*targets as u64, "target"))?;
        }
        if let Some((flows, span)) = traffic {
            write!(f, "; under load {} ms after nothing comes back to {flows} flows", settled_in(*span).as_millis())?;
        }
        Ok(())
    }
}

/// `2 probes`, `1 probe`.
pub fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// `wan1, wan3, wan4`; of many the first.
fn listed(names: &[&WanName]) -> String {
    let told = names.iter().take(LISTED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(LISTED) {
        None | Some(0) => told,
        Some(more) => format!("{told} and {more} more"),
    }
}

fn lost(health: Health) -> bool {
    match health {
        Health::Down | Health::NoCarrier => true,
        Health::Unknown | Health::Up | Health::Degraded | Health::Held => false,
    }
}

/// The silence, the burst that looks into it, and its patience.
fn settled_in(silence: Duration) -> Duration {
    silence + BURST_STEP * (BURST - 1) + BURST_PATIENCE
}

/// So many lines are named.
const LISTED: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    fn lost_by(world: &World, wan: u8) -> Evidence {
        world.line(wan, Family::V4).lost.unwrap()
    }

    fn stood(evidence: &Evidence, stood: Stood) -> usize {
        evidence.others.iter().filter(|other| other.stood == stood).count()
    }

    #[test]
    fn a_line_that_is_lost_alone_is_the_line() {
        let mut world = World::new(site(4));
        world.run(secs(5));
        world.silence(&[2]);
        world.run(secs(1));
        let evidence = lost_by(&world, 2);
        assert!(evidence.is_loss());
        assert_eq!((evidence.blame, stood(&evidence, Stood::Fine)), (Some(Blame::Line), 3));
        assert!(evidence.seen().starts_with("3 of 3 targets silent for 3 probes (3"), "{}", evidence.seen());
        assert_eq!(evidence.judged().unwrap(), "wan1, wan3, wan4 fine → the line, not the ISP");
        assert_eq!(Some(evidence.at), world.took(2, Health::Down, Time::ZERO).map(|took| Time::ZERO + took));
        assert_eq!(world.line(1, Family::V4).lost, None);
        // The loss is remembered when the line is back.
        world.silence(&[]);
        world.run(secs(15));
        let line = world.line(2, Family::V4);
        assert_eq!((line.lost, line.changed.map(|last| last.to)), (Some(evidence), Some(Health::Up)));
    }

    #[test]
    fn silence_of_the_traffic_is_told_with_its_whole_span() {
        let mut config = site(4);
        for wan in config.wans.values_mut() {
            wan.probe.interval = secs(2);
        }
        let mut world = World::new(config);
        world.run(secs(20));
        world.silence(&[3]);
        world.nothing_returns(3);
        world.run(ms(200));
        let evidence = lost_by(&world, 3);
        let Ground::Return { flows: 12, silence } = evidence.ground else { panic!("{evidence:?}") };
        assert!((ms(210)..ms(240)).contains(&silence), "150 ms, then a burst of 40 ms and its patience: {silence:?}");
        assert!(evidence.seen().starts_with("return silence 2"), "{}", evidence.seen());
        assert_eq!(evidence.blame, Some(Blame::Line));
    }

    #[test]
    fn lines_lost_together_are_the_isp_from_the_first_to_the_last() {
        let mut world = World::new(site(4));
        world.run(secs(5));
        world.silence(&[1, 2, 3]);
        world.run(secs(1));
        assert!(world.outage());
        for wan in 1..=3 {
            let evidence = lost_by(&world, wan);
            assert_eq!(evidence.blame, Some(Blame::Isp), "wan{wan}: {evidence:?}");
            assert!(evidence.judged().unwrap().contains("the ISP: lost together"));
        }
    }

    #[test]
    fn carriers_pulled_in_turn_are_the_isp_once_most_are_out() {
        let mut world = World::new(site(4));
        world.run(secs(5));
        world.carrier(1, false);
        assert_eq!((lost_by(&world, 1).blame, lost_by(&world, 1).ground), (Some(Blame::Line), Ground::Carrier));
        world.run(ms(50));
        world.carrier(2, false);
        assert_eq!(lost_by(&world, 2).blame, Some(Blame::Several));
        world.run(ms(50));
        world.carrier(3, false);
        assert!((1..=3).all(|wan| lost_by(&world, wan).blame == Some(Blame::Isp)));
    }

    #[test]
    fn the_last_line_there_is_cannot_be_compared() {
        let mut world = World::new(site(1));
        world.run(secs(5));
        world.silence(&[1]);
        world.run(secs(1));
        let evidence = lost_by(&world, 1);
        assert_eq!(evidence.blame, Some(Blame::Alone));
        assert_eq!(evidence.judged().unwrap(), "no other line to compare with → the line or the ISP");
    }

    #[test]
    fn a_line_whose_only_target_fails_everywhere_has_a_bad_target() {
        let mut config = site(3);
        let one = config.wans.get_mut(&wan_name(1)).unwrap();
        one.probe.targets.retain(|target| *target == icmp(TARGETS[0]));
        let mut world = World::new(config);
        world.run(secs(5));
        let bad = icmp(TARGETS[0]);
        world.answers =
            Box::new(move |_, target, _| if *target == bad { Answer::Never } else { Answer::After(ms(10)) });
        world.run(secs(2));
        let evidence = lost_by(&world, 1);
        assert_eq!(evidence.blame, Some(Blame::Target), "{evidence:?}");
        assert_eq!(world.health(2), Health::Up);
    }

    #[test]
    fn an_operators_test_is_nobodys_fault() {
        let mut world = World::new(site(2));
        world.run(secs(5));
        world.request(crate::event::Request::FailTest { wan: wan_name(1), span: secs(1) });
        let evidence = lost_by(&world, 1);
        assert_eq!((evidence.ground, evidence.blame), (Ground::FailTest, Some(Blame::Operator)));
    }

    #[test]
    fn the_risk_is_what_the_file_says() {
        let config = site(2);
        let risk = risk(&config, &wan_name(1), Family::V4).unwrap();
        assert_eq!((risk.soonest, risk.latest), (ms(300), ms(400)));
        assert_eq!(
            risk.to_string(),
            "at once with the carrier of wan1; 300 to 400 ms after fewer than 1 of its 3 targets answer (3 lost probes \
             in a row each); under load 220 ms after nothing comes back to 5 flows"
        );
    }

    #[test]
    fn of_many_lines_the_first_are_named() {
        let names: Vec<_> = (1..=9).map(wan_name).collect();
        let names: Vec<_> = names.iter().collect();
        assert_eq!(listed(&names), "wan1, wan2, wan3, wan4, wan5, wan6 and 3 more");
        assert_eq!(listed(&names[..2]), "wan1, wan2");
    }
}
