//! A recorded incident under other settings: what would have been noticed, how soon, and what would have been taken for
//! a loss that was none. `routerctl simulate` shows it beside what was.
//!
//! When within its interval a probe meets a fault is chance, and most of the time that a slow probe needs. So the
//! incident is run again [`PHASES`] times, with the moments of the probes moved by a part of the interval each time, and
//! the answer is a spread.

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::model::Probing;
use config::units::{Family, WanName};
use serde::Serialize;

use super::past::{Outage, Past};
use super::rerun::Rerun;
use super::{JournalError, Watch, read, replay_same};
use crate::event::{Event, Health, Notice};
use crate::evidence::Ground;
use crate::fate::TOGETHER;
use crate::router::Router;
use crate::time::Time;

/// `probe.interval=200ms`, or `wan.wan1.probe.fall=2` for one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    text: String,
    /// `None`: every line.
    wan: Option<WanName>,
    change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Interval(Duration),
    Timeout(Duration),
    Hold(Duration),
    HoldMax(Duration),
    Fall(NonZeroU8),
    Rise(NonZeroU8),
    Quorum(NonZeroU8),
    Window(u16),
}

/// Why a setting cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {why}")]
pub struct SettingError {
    pub text: String,
    pub why: String,
}

impl FromStr for Setting {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let wrong = |why: &str| SettingError { text: text.to_owned(), why: why.to_owned() };
        let form = || wrong("write probe.KEY=VALUE, or wan.NAME.probe.KEY=VALUE");
        let (key, value) = text.split_once('=').ok_or_else(form)?;
        let (key, value) = (key.trim(), value.trim().trim_matches('"'));
        let (wan, key) = match key.strip_prefix("wan.").and_then(|rest| rest.split_once(".probe.")) {
            Some((name, key)) => (Some(name.parse().map_err(|_not_a_name| wrong("that is no name of a WAN"))?), key),
            None => (None, key.strip_prefix("probe.").ok_or_else(form)?),
        };
        let time = |least: Duration, most: Duration| {
            let span = config::duration(value).map_err(wrong)?;
            let bounds = || wrong(&format!("from {least:?} to {most:?}"));
            if (least..=most).contains(&span) { Ok(span) } else { Err(bounds()) }
        };
        let few = || {
            let number = value.parse::<NonZeroU8>().ok().filter(|number| number.get() <= 100);
            number.ok_or_else(|| wrong("a number from 1 to 100"))
        };
        // The bounds of the site file.
        let change = match key {
            "interval" => Change::Interval(time(Duration::from_millis(50), Duration::from_hours(1))?),
            "timeout" => Change::Timeout(time(Duration::from_millis(1), Duration::from_mins(1))?),
            "hold" => Change::Hold(time(Duration::ZERO, Duration::from_hours(24))?),
            "hold_max" => Change::HoldMax(time(Duration::ZERO, Duration::from_hours(24))?),
            "fall" => Change::Fall(few()?),
            "rise" => Change::Rise(few()?),
            "quorum" => Change::Quorum(few()?),
            "window" => {
                let window = value.parse::<u16>().ok().filter(|window| (2..=10_000).contains(window));
                Change::Window(window.ok_or_else(|| wrong("a number from 2 to 10000"))?)
            }
            _ => {
                let known = "interval, timeout, fall, rise, quorum, window, hold, hold_max";
                return Err(wrong(&format!("there is no probe.{key}; there are {known}")));
            }
        };
        Ok(Self { text: text.to_owned(), wan, change })
    }
}

impl Setting {
    fn apply(&self, config: &mut Config) -> Result<(), SettingError> {
        if let Some(name) = self.wan.as_ref().filter(|name| !config.wans.contains_key(*name)) {
            let why = format!("the journal has no line {name}");
            return Err(SettingError { text: self.text.clone(), why });
        }
        let meant = |name: &WanName| self.wan.as_ref().is_none_or(|wan| wan == name);
        for (_, wan) in config.wans.iter_mut().filter(|(name, _)| meant(name)) {
            self.change.apply(&mut wan.probe);
        }
        Ok(())
    }
}

impl Change {
    fn apply(self, probe: &mut Probing) {
        match self {
            Self::Interval(span) => probe.interval = span,
            Self::Timeout(span) => probe.timeout = span,
            Self::Hold(span) => {
                probe.hold = span;
                probe.hold_max = probe.hold_max.max(span);
            }
            Self::HoldMax(span) => probe.hold_max = span.max(probe.hold),
            Self::Fall(number) => probe.fall = number,
            Self::Rise(number) => probe.rise = number,
            Self::Quorum(number) => probe.quorum = number,
            Self::Window(number) => probe.window = number,
        }
    }
}

/// What was, and what would have been.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulation {
    pub settings: Vec<String>,
    /// So many times the probes were moved within their interval.
    pub phases: u32,
    /// When lines were silent, as far as the journal tells.
    pub outages: Vec<Incident>,
    pub recorded: Side,
    pub simulated: Side,
    pub unknown_targets: Vec<String>,
}

/// A line that answered too few of its targets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Incident {
    pub wan: WanName,
    pub family: Family,
    /// When it began, in microseconds since 1970, and how far that may be off.
    pub wall: u64,
    pub unsure: Duration,
    /// `None`: the journal ends before it.
    pub lasted: Option<Duration>,
    /// How long until the line was lost; `None`: it was not.
    pub recorded: Option<Duration>,
    /// In so many of the phases it would have been noticed, and how long that would have taken.
    pub noticed: u32,
    pub simulated: Option<Spread<Duration>>,
}

/// Over the phases; of what was recorded all three are one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread<T> {
    pub least: T,
    pub mean: T,
    pub most: T,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// Lines in service that were lost.
    pub failovers: Spread<f64>,
    /// Those of them whose targets answered.
    pub false_verdicts: Spread<f64>,
    /// Changes of the choice of lines.
    pub decisions: Spread<f64>,
}

#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// Runs a journal again as it was, and [`PHASES`] times with these settings changed.
pub fn simulate<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    settings: &[Setting],
) -> Result<Simulation, SimulateError> {
    let entries = read(lines)?;
    let mut configs = entries.iter().filter_map(|(_, line)| match (&line.checkpoint, &line.e) {
        (Some(checkpoint), _) => checkpoint.router.config(),
        (None, Some(Event::Config(config))) => Some(config),
        (None, _) => None,
    });
    let recorded = configs.next_back().ok_or(JournalError::NoConfig)?;
    let mut config = Config::clone(recorded);
    for setting in settings {
        setting.apply(&mut config)?;
    }
    let config = Arc::new(config);
    let past = Past::of(&entries);
    let outages = past.outages(recorded);
    let slowest = |config: &Config, of: fn(&Probing) -> Duration| {
        config.wans.values().map(|wan| of(&wan.probe)).max().unwrap_or_default()
    };

    let mut was = Losses::default();
    let report = replay_same(&entries, &mut was);
    let was = was.judged(&outages, slowest(recorded, |probe| probe.timeout), report.decisions);
    let mut phases = Vec::new();
    let mut unknown_targets = Vec::new();
    for phase in 0..PHASES {
        let ahead = slowest(&config, |probe| probe.interval) * phase / PHASES;
        let mut losses = Losses::default();
        let report = Rerun::new(&entries, Arc::clone(&config), past.clone(), ahead).run(&entries, &mut losses);
        unknown_targets = report.unknown_targets;
        phases.push(losses.judged(&outages, slowest(&config, |probe| probe.timeout), report.decisions));
    }

    let walls = entries.iter().filter_map(|(_, line)| {
        let checkpoint = line.checkpoint.as_ref()?;
        Some((checkpoint.run, checkpoint.wall.saturating_sub(line.t.as_micros())))
    });
    let walls: BTreeMap<_, _> = walls.collect();
    let incident = |(place, outage): (usize, &Outage)| {
        let times: Vec<_> = phases.iter().filter_map(|phase| phase.noticed[place]).collect();
        Incident {
            wan: outage.wan.clone(),
            family: outage.family,
            wall: walls.get(&outage.run).copied().unwrap_or_default() + outage.from.as_micros(),
            unsure: outage.unsure,
            lasted: (outage.until < Time::NEVER).then(|| outage.until.since(outage.from)),
            recorded: was.noticed[place],
            noticed: u32::try_from(times.len()).unwrap_or(u32::MAX),
            simulated: spread(&times, |times| {
                times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(u32::MAX)
            }),
        }
    };
    Ok(Simulation {
        settings: settings.iter().map(|setting| setting.text.clone()).collect(),
        phases: PHASES,
        outages: outages.iter().enumerate().map(incident).collect(),
        recorded: side(std::slice::from_ref(&was)),
        simulated: side(&phases),
        unknown_targets,
    })
}

/// Lines in service that were lost in one run.
#[derive(Debug, Default)]
struct Losses(Vec<Loss>);

#[derive(Debug)]
struct Loss {
    run: u64,
    wan: WanName,
    family: Family,
    at: Time,
    /// By what was measured, not by the carrier or an operator.
    measured: bool,
}

/// What one run noticed of the outages there were.
#[derive(Debug)]
struct Judged {
    /// For each of them.
    noticed: Vec<Option<Duration>>,
    failovers: u64,
    wrong: u64,
    decisions: u64,
}

impl Watch for Losses {
    fn notice(&mut self, run: u64, at: Time, router: &Router, notice: &Notice) {
        let Notice::Health { wan, family, from, to, .. } = notice else { return };
        let served = matches!(from, Health::Up | Health::Degraded | Health::Held);
        if served && matches!(to, Health::Down | Health::NoCarrier) {
            let ground = router.evidence(wan, *family).map(|evidence| evidence.ground);
            let measured = !matches!(ground, Some(Ground::Carrier | Ground::FailTest));
            self.0.push(Loss { run, wan: wan.clone(), family: *family, at, measured });
        }
    }
}

impl Losses {
    fn judged(&self, outages: &[Outage], timeout: Duration, decisions: u64) -> Judged {
        // The last probes that met the outage are lost a timeout after it, and the verdict may wait for other lines.
        let within = |loss: &Loss, outage: &Outage| {
            let early = outage.unsure + Duration::from_millis(1);
            (loss.run, &loss.wan, loss.family) == (outage.run, &outage.wan, outage.family)
                && outage.from <= loss.at + early
                && loss.at <= outage.until + (timeout + TOGETHER)
        };
        let first = |outage: &Outage| self.0.iter().find(|loss| within(loss, outage));
        let wrong = |loss: &&Loss| loss.measured && !outages.iter().any(|outage| within(loss, outage));
        Judged {
            noticed: outages.iter().map(|outage| Some(first(outage)?.at.since(outage.from))).collect(),
            failovers: self.0.len() as u64,
            wrong: self.0.iter().filter(wrong).count() as u64,
            decisions,
        }
    }
}

fn side(runs: &[Judged]) -> Side {
    #[expect(clippy::cast_precision_loss, reason = "a count of changes")]
    let of = |count: fn(&Judged) -> u64| {
        let counts: Vec<_> = runs.iter().map(|run| count(run) as f64).collect();
        let none = Spread { least: 0.0, mean: 0.0, most: 0.0 };
        spread(&counts, |counts| counts.iter().sum::<f64>() / counts.len() as f64).unwrap_or(none)
    };
    Side { failovers: of(|run| run.failovers), false_verdicts: of(|run| run.wrong), decisions: of(|run| run.decisions) }
}

fn spread<T: Copy + PartialOrd>(values: &[T], mean: impl Fn(&[T]) -> T) -> Option<Spread<T>> {
    let mut values = values.iter().copied();
    let all: Vec<_> = values.clone().collect();
    let first = values.next()?;
    let (least, most) = values.fold((first, first), |(least, most), value| {
        (if value < least { value } else { least }, if value > most { value } else { most })
    });
    Some(Spread { least, mean: mean(&all), most })
}

/// How often the probes are moved within their interval.
pub const PHASES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Request;
    use crate::testing::*;

    /// A line that swallows everything for four seconds, told by probes of this interval; the journal and the moment of
    /// the fault.
    fn blackhole(interval: Duration, after: Duration) -> (Vec<String>, Time) {
        let mut world = World::recorded(probed(interval));
        world.run(secs(20) + after);
        world.silence(&[2]);
        let fault = world.now;
        world.run(secs(6));
        world.silence(&[]);
        world.run(secs(3));
        (lines(&mut world), fault)
    }

    fn probed(interval: Duration) -> Config {
        let mut config = site(4);
        for wan in config.wans.values_mut() {
            wan.probe.interval = interval;
        }
        config
    }

    fn lines(world: &mut World) -> Vec<String> {
        match &mut world.driver {
            Driver::Recorded(recorder) => recorder.take_lines(),
            Driver::Plain(_) => unreachable!("the world is recorded"),
        }
    }

    fn simulated(lines: &[String], settings: &[&str]) -> Simulation {
        let settings: Vec<_> = settings.iter().map(|text| text.parse().unwrap()).collect();
        simulate(lines.iter().map(String::as_str), &settings).unwrap()
    }

    /// The first outage of IPv4.
    fn first(simulation: &Simulation) -> &Incident {
        simulation.outages.iter().find(|outage| outage.family == Family::V4).unwrap()
    }

    #[test]
    fn a_blackhole_is_noticed_as_soon_as_other_probes_really_notice_it() {
        let (recorded, fault) = blackhole(ms(100), ms(37));
        for interval in [50, 100, 200, 1000] {
            let simulation = simulated(&recorded, &[&format!("probe.interval={interval}ms")]);
            let incident = first(&simulation);
            assert!(incident.wall.abs_diff(fault.as_micros()) <= 20_000, "{fault}: {incident:?}");
            assert!(incident.lasted.unwrap().abs_diff(secs(6)) <= ms(50), "{incident:?}");
            assert_eq!((simulation.outages.len(), incident.noticed), (2, PHASES), "IPv6 too");
            // The same fault at other moments under probes of that interval.
            let really: Vec<_> = (0..20)
                .map(|nth| {
                    let mut world = World::new(probed(ms(interval)));
                    world.run(secs(20) + ms(interval) * nth / 20);
                    world.silence(&[2]);
                    let fault = world.now;
                    world.run(secs(6));
                    world.took(2, Health::Down, fault).unwrap()
                })
                .collect();
            let mean = really.iter().sum::<Duration>() / 20;
            let told = incident.simulated.unwrap();
            let off = told.mean.abs_diff(mean).as_secs_f64() / mean.as_secs_f64();
            assert!(off < 0.1, "{interval} ms: {told:?} told, {mean:?} in fact");
            let most = *really.iter().max().unwrap();
            assert!(told.most.abs_diff(most) <= ms(interval) / 5 + ms(20), "{interval} ms: {told:?}, {most:?}");
        }
    }

    #[test]
    fn what_was_recorded_stands_beside_it() {
        let (recorded, fault) = blackhole(ms(100), ms(37));
        let simulation = simulated(&recorded, &["probe.interval=50ms", "wan.wan2.probe.fall=2"]);
        let incident = first(&simulation);
        assert!((ms(290)..ms(410)).contains(&incident.recorded.unwrap()), "{incident:?}");
        assert!(incident.simulated.unwrap().most < incident.recorded.unwrap(), "{incident:?} since {fault}");
        assert!((simulation.recorded.failovers.mean - 2.0).abs() < 0.1, "one line, two families");
        assert!(simulation.recorded.false_verdicts.most + simulation.simulated.false_verdicts.most < 0.1);
        assert_eq!(simulation.settings, ["probe.interval=50ms", "wan.wan2.probe.fall=2"]);
    }

    #[test]
    fn an_outage_too_short_for_the_probes_is_told_as_missed() {
        let mut world = World::recorded(probed(ms(100)));
        world.run(secs(20));
        world.silence(&[2]);
        world.run(ms(700));
        world.silence(&[]);
        world.run(secs(15));
        let simulation = simulated(&lines(&mut world), &["probe.interval=1s"]);
        let incident = first(&simulation);
        assert!(incident.recorded.is_some() && incident.noticed == 0, "{incident:?}");
        assert!(simulation.simulated.failovers.most < 0.1);
    }

    #[test]
    fn losses_here_and_there_are_false_verdicts_of_hasty_probes_only() {
        let mut world = World::recorded(probed(ms(100)));
        // Of each target every thirtieth probe is lost, all targets of a line together.
        world.answers =
            Box::new(|wan, _, nth| if wan == 3 && nth / 20 % 30 == 7 { Answer::Never } else { Answer::After(ms(10)) });
        world.run(secs(60));
        let recorded = lines(&mut world);
        assert!(simulated(&recorded, &[]).recorded.failovers.most < 0.1);
        let hasty = simulated(&recorded, &["probe.fall=1", "probe.hold=0s"]);
        assert!(hasty.simulated.false_verdicts.mean > 3.0, "{:?}", hasty.simulated);
        let calm = simulated(&recorded, &["probe.interval=50ms", "probe.fall=4"]);
        assert!(calm.simulated.false_verdicts.most < 0.1, "{:?}", calm.simulated);
    }

    #[test]
    fn a_carrier_and_an_operator_are_no_false_verdict() {
        let mut world = World::recorded(probed(ms(100)));
        world.run(secs(5));
        world.carrier(1, false);
        world.run(secs(1));
        world.carrier(1, true);
        world.run(secs(15));
        world.request(Request::FailTest { wan: wan_name(2), span: secs(2) });
        world.run(secs(5));
        let simulation = simulated(&lines(&mut world), &["probe.interval=200ms"]);
        assert!(simulation.simulated.failovers.least >= 4.0, "{:?}", simulation.simulated);
        assert!(simulation.simulated.false_verdicts.most < 0.1);
    }

    #[test]
    fn a_setting_that_cannot_be_is_told_why() {
        let table = [
            ("probe.interval", "write probe.KEY=VALUE"),
            ("weight=3", "write probe.KEY=VALUE"),
            ("probe.interval=10ms", "from 50ms"),
            ("probe.interval=fast", "write a number and its unit"),
            ("probe.fall=0", "a number from 1 to 100"),
            ("probe.speed=1", "there is no probe.speed"),
            ("wan.WAN 1.probe.fall=2", "no name of a WAN"),
        ];
        for (text, why) in table {
            let error = text.parse::<Setting>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let (recorded, _) = blackhole(ms(100), ms(0));
        let setting = "wan.wan9.probe.fall=2".parse().unwrap();
        let error = simulate(recorded.iter().map(String::as_str), &[setting]).unwrap_err();
        assert_eq!(error.to_string(), "`wan.wan9.probe.fall=2`: the journal has no line wan9");
    }
}
