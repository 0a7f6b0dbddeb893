//! Whether a change made anything worse: samples of the time before it against samples of the time since. Pure.
//!
//! A guard that cries wolf is left out the next time, and one that misses an outage is worth nothing. So each measure
//! has its own idea of *clearly* worse:
//!
//! | measure | worse is |
//! |---|---|
//! | health of a line | up at every sample before, and lost for 5 s since; or anything but up at the end |
//! | loss of a line's probes | 5 points more, and more than chance explains |
//! | denied packets | in the middle one of the moments since, 5 a second more than twice what there were |
//! | segments sent again | 2 points more of at least 500, and more than chance explains |
//!
//! A line that was no good before, that is not in both configs or that an operator declared lost is not compared. A
//! counter that went back began anew: that moment tells nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use config::units::{Family, WanName};
use mwan::event::Health;
use mwan::router::Tally;

/// What was counted until one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    pub at: Duration,
    /// Packets that the firewall refused; `None` where the kernel did not tell.
    pub denied: Option<u64>,
    /// TCP segments with data, and those of them that were sent again; they stand still where the fast path is off.
    pub segments: u64,
    pub resent: u64,
    pub lines: BTreeMap<(WanName, Family), Tally>,
}

/// What got clearly worse, if anything did. Asked at each sample: what takes longer to tell than there was time is
/// not told.
pub fn worse(before: &[Sample], since: &[Sample]) -> Option<String> {
    if let Some(lost) = each_line(before, since, lost) {
        return Some(lost);
    }
    if span(since) < EARLIEST {
        return None;
    }
    each_line(before, since, lossy)
        .or_else(|| Denials::of(before, since)?.worse())
        .or_else(|| Resent::of(before, since)?.worse())
}

/// The last word at the end of the window: what nothing got worse in, or what did.
pub fn verdict(before: &[Sample], since: &[Sample]) -> Result<String, String> {
    if let Some(worse) = each_line(before, since, not_up).or_else(|| each_line(before, since, lossy)) {
        return Err(worse);
    }
    let denials = Denials::of(before, since).ok_or("the kernel did not tell what it denied")?;
    let resent = Resent::of(before, since);
    if let Some(worse) = denials.worse().or_else(|| resent.as_ref()?.worse()) {
        return Err(worse);
    }
    let resent = resent.map_or(String::new(), |resent| format!("; {resent}"));
    Ok(format!("no line got worse; {denials}{resent}"))
}

/// Whether there is enough to compare with.
pub fn enough(before: &[Sample]) -> bool {
    span(before) >= LEAST_BEFORE && denials(before).next().is_some()
}

type Key = (WanName, Family);

fn each_line(
    before: &[Sample],
    since: &[Sample],
    worse: impl Fn(&Key, &[Sample], &[Sample]) -> Option<String>,
) -> Option<String> {
    let last = since.last()?;
    last.lines.keys().find_map(|key| worse(key, before, since))
}

fn lost(key: &Key, before: &[Sample], since: &[Sample]) -> Option<String> {
    let gone = |sample: &&Sample| {
        sample.lines.get(key).is_some_and(|line| matches!(line.health, Health::Down | Health::NoCarrier))
    };
    let first = since.iter().rev().take_while(gone).last()?;
    let lost_for = since.last()?.at.saturating_sub(first.at);
    (lost_for >= LOST && best(key, before) > Grade::Out).then(|| told_health(key, before, since)).flatten()
}

fn not_up(key: &Key, before: &[Sample], since: &[Sample]) -> Option<String> {
    let is = grade(since.last()?.lines.get(key)?.health);
    (is < best(key, before)).then(|| told_health(key, before, since)).flatten()
}

fn told_health((wan, family): &Key, before: &[Sample], since: &[Sample]) -> Option<String> {
    let key = &(wan.clone(), *family);
    let [was, is] = [before, since].map(|samples| Some(samples.last()?.lines.get(key)?.health.word()));
    Some(format!("{wan} {family} was {} and is {}", was?, is?))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    /// Not used, or not known to be any good.
    Out,
    Degraded,
    Up,
}

fn grade(health: Health) -> Grade {
    match health {
        Health::Up => Grade::Up,
        Health::Degraded => Grade::Degraded,
        Health::Unknown | Health::Held | Health::Down | Health::NoCarrier => Grade::Out,
    }
}

/// What the line can be held to: what it was all the time.
fn best(key: &Key, before: &[Sample]) -> Grade {
    let grades = before.iter().filter_map(|sample| Some(grade(sample.lines.get(key)?.health)));
    grades.min().unwrap_or(Grade::Out)
}

fn lossy(key: &Key, before: &[Sample], since: &[Sample]) -> Option<String> {
    let (wan, family) = key;
    let [was, is] = [before, since].map(|samples| {
        let probes = |sample: &Sample| sample.lines.get(key).map(|line| (line.lost, line.sent));
        Share::sum(samples.windows(2).filter_map(|pair| match pair {
            [first, last] => Some((probes(first)?, probes(last)?)),
            _ => None,
        }))
    });
    (is.part >= LEAST_LOST && is.clearly_more_than(was, MORE_LOSS))
        .then(|| format!("{wan} {family} loses {:.1} % of its probes, {:.1} % before", is.percent(), was.percent()))
}

/// Packets a second.
#[derive(Debug)]
struct Denials {
    was: f64,
    is: f64,
}

impl Denials {
    fn of(before: &[Sample], since: &[Sample]) -> Option<Self> {
        let (packets, time) =
            denials(before).fold((0.0, 0.0), |(packets, time), (more, span)| (packets + more, time + span));
        let mut rates: Vec<_> = denials(since).map(|(packets, span)| packets / span).collect();
        rates.sort_by(f64::total_cmp);
        // A scan that fills less than half of the time does not reach the middle.
        let is = *rates.get(rates.len().checked_sub(1)? / 2)?;
        (time > 0.0).then(|| Self { was: packets / time, is })
    }

    fn worse(&self) -> Option<String> {
        (self.is > self.was * 2.0 + MORE_DENIED).then(|| format!("{self}: `routerctl denied` tells which"))
    }
}

impl std::fmt::Display for Denials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} packets a second are denied, {:.1} before", self.is, self.was)
    }
}

/// How many, and in how many seconds, between each two samples.
fn denials(samples: &[Sample]) -> impl Iterator<Item = (f64, f64)> {
    samples.windows(2).filter_map(|pair| {
        let [first, last] = pair else { return None };
        let span = last.at.saturating_sub(first.at).as_secs_f64();
        let packets = last.denied?.checked_sub(first.denied?)?;
        (span > 0.0).then(|| (real(packets), span))
    })
}

#[derive(Debug)]
struct Resent {
    was: Share,
    is: Share,
}

impl Resent {
    /// `None` where there was too little traffic, or nobody who watched it.
    fn of(before: &[Sample], since: &[Sample]) -> Option<Self> {
        let [was, is] = [before, since].map(|samples| {
            Share::sum(samples.windows(2).filter_map(|pair| match pair {
                [first, last] => Some(((first.resent, first.segments), (last.resent, last.segments))),
                _ => None,
            }))
        });
        (was.whole >= LEAST_SEGMENTS && is.whole >= LEAST_SEGMENTS).then_some(Self { was, is })
    }

    fn worse(&self) -> Option<String> {
        self.is.clearly_more_than(self.was, MORE_RESENT).then(|| self.to_string())
    }
}

impl std::fmt::Display for Resent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { was, is } = self;
        write!(f, "{:.1} % of the segments are sent again, {:.1} % before", is.percent(), was.percent())
    }
}

/// So many of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    part: u64,
    whole: u64,
}

impl Share {
    /// Of counts at the beginning and at the end of spans.
    fn sum(spans: impl Iterator<Item = ((u64, u64), (u64, u64))>) -> Self {
        let risen =
            spans.filter_map(|(first, last)| Some((last.0.checked_sub(first.0)?, last.1.checked_sub(first.1)?)));
        risen.fold(Self::default(), |all, (part, whole)| Self { part: all.part + part, whole: all.whole + whole })
    }

    /// Of one where there is nothing of which to have a part: 0.
    fn of_one(self) -> f64 {
        if self.whole == 0 { 0.0 } else { real(self.part) / real(self.whole) }
    }

    fn percent(self) -> f64 {
        self.of_one() * 100.0
    }

    /// By this much at least, and by so many standard errors of a difference between two shares.
    fn clearly_more_than(self, other: Self, margin: f64) -> bool {
        let more = self.of_one() - other.of_one();
        if self.whole == 0 || other.whole == 0 || more <= margin {
            return false;
        }
        let both = Self { part: self.part + other.part, whole: self.whole + other.whole }.of_one();
        let error = (both * (1.0 - both) * (1.0 / real(self.whole) + 1.0 / real(other.whole))).sqrt();
        more > ERRORS * error
    }
}

fn span(samples: &[Sample]) -> Duration {
    match samples {
        [first, .., last] => last.at.saturating_sub(first.at),
        [_] | [] => Duration::ZERO,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one window stay far below 2^52")]
fn real(count: u64) -> f64 {
    count as f64
}

/// Less of before is no measure.
const LEAST_BEFORE: Duration = Duration::from_secs(5);
/// A port that comes up again, a line whose addresses change: over by then.
const LOST: Duration = Duration::from_secs(5);
/// Clients that were cut off ask again in the first seconds, whatever the change was.
const EARLIEST: Duration = Duration::from_secs(10);
const LEAST_LOST: u64 = 5;
const MORE_LOSS: f64 = 0.05;
/// A second: a handful of hosts that try again and again.
const MORE_DENIED: f64 = 5.0;
const LEAST_SEGMENTS: u64 = 500;
const MORE_RESENT: f64 = 0.02;
/// One false alarm in thirty thousand, where probes are lost independently.
const ERRORS: f64 = 4.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_got_worse_is_told_and_noise_is_not() {
        let quiet = Course::default();
        let down = Course { health: Health::Down, lost: 20, ..quiet };
        let lossy = Course { lost: 2, ..quiet };
        let busy = Course { denied: 50, segments: 1000, resent: 10, ..quiet };
        let table = [
            ("nothing", quiet, quiet, ""),
            ("a line that is lost", quiet, down, "wan1 IPv4 was up and is down"),
            ("a line without a carrier", quiet, Course { health: Health::NoCarrier, ..quiet }, "is no-carrier"),
            ("a line that nobody judged", quiet, Course { health: Health::Unknown, ..quiet }, "up and is unknown"),
            ("a line that came back and waits", quiet, Course { health: Health::Held, ..quiet }, "up and is held"),
            ("a line that is degraded", quiet, Course { health: Health::Degraded, ..quiet }, "up and is degraded"),
            ("a line that was down", down, down, ""),
            ("a line that comes up", down, quiet, ""),
            ("a line that was down and has lost its carrier", down, Course { health: Health::NoCarrier, ..down }, ""),
            (
                "a degraded line that is lost",
                Course { health: Health::Degraded, ..quiet },
                down,
                "degraded and is down",
            ),
            ("probes lost", quiet, Course { lost: 2, ..quiet }, "loses 10.0 % of its probes, 0.0 % before"),
            ("as many probes lost as before", lossy, lossy, ""),
            ("fewer probes lost", lossy, quiet, ""),
            (
                "a few probes lost of few",
                Course { sent: 1, ..quiet },
                Course { sent: 1, lost_at: Some(9), ..quiet },
                "",
            ),
            ("no probes before", Course { sent: 0, ..quiet }, Course { lost: 2, ..quiet }, ""),
            ("denials", quiet, Course { denied: 40, ..quiet }, "40.0 packets a second are denied, 0.0 before"),
            ("a host that tries its port again", quiet, Course { denied: 4, ..quiet }, ""),
            ("denials as before", busy, busy, ""),
            ("twice the denials there were", busy, Course { denied: 100, ..busy }, ""),
            ("four times the denials there were", busy, Course { denied: 200, ..busy }, "200.0 packets a second"),
            ("fewer denials", busy, Course { denied: 0, ..busy }, ""),
            ("a scan", quiet, Course { burst: 100_000, ..quiet }, ""),
            ("the table was loaded anew", busy, Course { anew: true, ..busy }, ""),
            ("anew, and worse", quiet, Course { anew: true, denied: 40, ..quiet }, "40.0 packets a second"),
            ("segments sent again", busy, Course { resent: 60, ..busy }, "6.0 % of the segments are sent again, 1.0 %"),
            ("a little more sent again", busy, Course { resent: 25, ..busy }, ""),
            ("few segments", busy, Course { segments: 10, resent: 9, ..busy }, ""),
            ("no traffic before", quiet, Course { segments: 1000, resent: 100, ..quiet }, ""),
            ("no traffic since", busy, Course { segments: 0, resent: 0, ..busy }, ""),
            ("the kernel does not tell", quiet, Course { told: false, ..quiet }, "did not tell what it denied"),
        ];
        for (what, before, since, why) in table {
            match verdict(&before.samples(0), &since.samples(20)) {
                Ok(told) => assert!(why.is_empty(), "{what}: {told}"),
                Err(told) => assert!(!why.is_empty() && told.contains(why), "{what}: {told}"),
            }
        }
    }

    #[test]
    fn what_is_clear_is_told_before_the_end() {
        let quiet = Course::default();
        let before = quiet.samples(0);
        let seconds_until = |since: Course| {
            let since = since.samples(20);
            (1..=since.len()).find(|count| worse(&before, &since[..*count]).is_some()).map(|count| count - 1)
        };
        assert_eq!(seconds_until(Course { health: Health::Down, ..quiet }), Some(5));
        assert_eq!(seconds_until(Course { denied: 40, ..quiet }), Some(10));
        assert_eq!(seconds_until(Course { lost: 4, ..quiet }), Some(10));
        assert_eq!(seconds_until(Course { health: Health::Unknown, ..quiet }), None, "it may yet be judged");
        assert_eq!(seconds_until(Course { told: false, ..quiet }), None, "the kernel may yet tell");
        assert_eq!(seconds_until(quiet), None);
        // Lost for a moment only.
        let mut since = quiet.samples(20);
        for sample in &mut since[3..7] {
            sample.lines.values_mut().for_each(|line| line.health = Health::Down);
        }
        assert!((1..=since.len()).all(|count| worse(&before, &since[..count]).is_none()));
    }

    #[test]
    fn lines_that_only_one_config_has_are_not_compared() {
        let (mut before, mut since) = (Course::default().samples(0), Course::default().samples(20));
        let down = Course { health: Health::Down, lost: 20, ..Course::default() }.samples(20);
        for (sample, down) in since.iter_mut().zip(down) {
            sample.lines = down.lines.into_iter().map(|((_, family), line)| ((name("wan2"), family), line)).collect();
        }
        assert!(verdict(&before, &since).is_ok() && worse(&before, &since).is_none());
        // One that flapped before is not held to what it was at its best.
        before[3].lines.values_mut().for_each(|line| line.health = Health::Down);
        assert!(verdict(&before, &Course { health: Health::Degraded, ..Course::default() }.samples(20)).is_ok());
    }

    #[test]
    fn a_moment_is_no_time_before() {
        let samples = Course::default().samples(0);
        assert!(enough(&samples));
        assert!(!enough(&samples[..5]) && !enough(&[]));
        assert!(!enough(&Course { told: false, ..Course::default() }.samples(0)));
    }

    /// A line and what is counted in each of twenty seconds.
    #[derive(Debug, Clone, Copy)]
    struct Course {
        health: Health,
        sent: u64,
        lost: u64,
        /// One probe is lost then.
        lost_at: Option<u64>,
        denied: u64,
        /// Denied in each of the first seven seconds.
        burst: u64,
        /// Counting begins again in the middle.
        anew: bool,
        told: bool,
        segments: u64,
        resent: u64,
    }

    impl Default for Course {
        fn default() -> Self {
            Self {
                health: Health::Up,
                sent: 20,
                lost: 0,
                lost_at: None,
                denied: 0,
                burst: 0,
                anew: false,
                told: true,
                segments: 0,
                resent: 0,
            }
        }
    }

    impl Course {
        fn samples(self, from: u64) -> Vec<Sample> {
            let samples = (0..=20).map(|second| {
                let denied = 1000 + second * self.denied + second.min(7) * self.burst;
                let since = if self.anew && second >= 10 { (second - 10) * self.denied } else { denied };
                let lost = second * self.lost + u64::from(self.lost_at.is_some_and(|at| at < second));
                let line = Tally { health: self.health, sent: 500 + second * self.sent, lost: 7 + lost };
                Sample {
                    at: Duration::from_secs(from + second),
                    denied: self.told.then_some(since),
                    segments: 9000 + second * self.segments,
                    resent: 90 + second * self.resent,
                    lines: BTreeMap::from([((name("wan1"), Family::V4), line)]),
                }
            });
            samples.collect()
        }
    }

    fn name(name: &str) -> WanName {
        name.parse().unwrap()
    }
}
