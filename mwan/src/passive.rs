//! What the traffic of the lines tells about them, without a probe: TCP segments that had to be sent again, and how
//! long servers take to answer a SYN.
//!
//! A line is compared with the others at the same time, and never by one server: the worst servers are left out of
//! the count of segments sent again ([`Tally::take`]), and handshakes count by server. A line that is found lossy or
//! slow is degraded, not down. As its traffic then goes elsewhere, nothing may be left to measure: the finding lasts
//! [`MEMORY`] beyond the last time it was confirmed.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use config::units::{Family, WanId};
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// What one line carried in one family since the report before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub wan: WanId,
    pub family: Family,
    /// TCP segments with data that were sent, and those of them that had been sent before, without the worst servers.
    pub segments: u64,
    pub resent: u64,
    /// Servers whose handshakes were timed, and the median of their best times.
    pub servers: u32,
    pub rtt: Option<Duration>,
}

type Key = (WanId, Family);

/// Collects what the packet path saw until the next report.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<Key, Collected>);

#[derive(Debug, Default)]
struct Collected {
    segments: u64,
    resent: BTreeMap<IpAddr, u64>,
    handshakes: BTreeMap<IpAddr, Duration>,
}

impl Tally {
    pub fn segments(&mut self, wan: WanId, family: Family, segments: u64) {
        if segments > 0 {
            self.0.entry((wan, family)).or_default().segments += segments;
        }
    }

    pub fn resent(&mut self, wan: WanId, server: IpAddr) {
        *self.0.entry((wan, Family::of(server))).or_default().resent.entry(server).or_default() += 1;
    }

    pub fn handshake(&mut self, wan: WanId, server: IpAddr, rtt: Duration) {
        let best = &mut self.0.entry((wan, Family::of(server))).or_default().handshakes;
        best.entry(server).and_modify(|best| *best = rtt.min(*best)).or_insert(rtt);
    }

    /// What came together; begins anew. Of the servers that had segments sent again, the worst tenth, and the worst
    /// one at least, is left out: it may be the servers' fault.
    pub fn take(&mut self) -> Vec<Traffic> {
        let taken = std::mem::take(&mut self.0).into_iter();
        let report = taken.map(|((wan, family), collected)| {
            let mut resent: Vec<_> = collected.resent.into_values().collect();
            resent.sort_unstable();
            let counted = resent.len() - resent.len().div_ceil(10);
            Traffic {
                wan,
                family,
                segments: collected.segments,
                resent: resent.iter().take(counted).sum(),
                servers: u32::try_from(collected.handshakes.len()).unwrap_or(u32::MAX),
                rtt: median(collected.handshakes.into_values()),
            }
        });
        report.collect()
    }
}

/// What is wrong with a line, as its traffic shows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Fault {
    /// So many percent of its segments were sent again, and of those of the others.
    Lossy { percent: f64, others: f64 },
    /// Its servers take so long, and those of the others.
    Slow { rtt: Duration, others: Duration },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lossy { percent, others } => {
                write!(f, "{percent:.0} % of its TCP segments were sent again, {others:.1} % on other lines")
            }
            Self::Slow { rtt, others } => {
                write!(
                    f,
                    "its servers answer after {} ms, those of other lines after {} ms",
                    rtt.as_millis(),
                    others.as_millis()
                )
            }
        }
    }
}

/// Compares the lines. Deterministic; owned by the router.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Comparison {
    #[serde(with = "crate::state::as_pairs")]
    recent: BTreeMap<Key, VecDeque<(Time, Traffic)>>,
    #[serde(with = "crate::state::as_pairs")]
    found: BTreeMap<Key, (Fault, Time)>,
}

impl Comparison {
    /// True if something was found or a finding ended.
    pub(crate) fn take(&mut self, report: &[Traffic], now: Time) -> bool {
        for traffic in report {
            self.recent.entry((traffic.wan, traffic.family)).or_default().push_back((now, traffic.clone()));
        }
        let mut changed = self.pass(now);
        let views: BTreeMap<Key, View> = self.recent.iter().map(|(key, recent)| (*key, View::of(recent))).collect();
        for (key, view) in &views {
            let others = || views.iter().filter(|(other, _)| *other != key && other.1 == key.1).map(|(_, view)| view);
            let before = self.found.get(key).map(|(fault, _)| *fault);
            let verdict = view.lossy(others(), before).or(view.slow(others(), before));
            match verdict {
                Verdict::Bad(fault) => {
                    changed |= self.found.insert(*key, (fault, now)).is_none();
                }
                Verdict::Good => changed |= self.found.remove(key).is_some(),
                Verdict::Unknown => {}
            }
        }
        changed
    }

    /// Forgets what is too long ago. True if a finding ended by it.
    pub(crate) fn pass(&mut self, now: Time) -> bool {
        self.recent.retain(|_, recent| {
            recent.retain(|(at, _)| now.since(*at) < WINDOW);
            !recent.is_empty()
        });
        let before = self.found.len();
        self.found.retain(|_, (_, confirmed)| now.since(*confirmed) < MEMORY);
        before != self.found.len()
    }

    pub(crate) fn fault(&self, wan: WanId, family: Family) -> Option<Fault> {
        self.found.get(&(wan, family)).map(|(fault, _)| *fault)
    }

    /// When a finding ends if nothing confirms it.
    pub(crate) fn deadline(&self) -> Time {
        self.found.values().map(|(_, confirmed)| *confirmed + MEMORY).min().unwrap_or(Time::NEVER)
    }

    pub(crate) fn forget(&mut self, wan: WanId, family: Family) {
        self.recent.remove(&(wan, family));
        self.found.remove(&(wan, family));
    }
}

/// A line over the window.
#[derive(Debug)]
struct View {
    segments: u64,
    resent: u64,
    servers: u32,
    rtt: Option<Duration>,
}

enum Verdict {
    Bad(Fault),
    Good,
    /// Too little traffic.
    Unknown,
}

impl Verdict {
    /// The worse of the two.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Bad(fault), _) | (Self::Good | Self::Unknown, Self::Bad(fault)) => Self::Bad(fault),
            (Self::Good, Self::Good | Self::Unknown) | (Self::Unknown, Self::Good) => Self::Good,
            (Self::Unknown, Self::Unknown) => Self::Unknown,
        }
    }
}

impl View {
    fn of(recent: &VecDeque<(Time, Traffic)>) -> Self {
        let timed = || recent.iter().filter(|(_, traffic)| traffic.rtt.is_some());
        Self {
            segments: recent.iter().map(|(_, traffic)| traffic.segments).sum(),
            resent: recent.iter().map(|(_, traffic)| traffic.resent).sum(),
            servers: timed().map(|(_, traffic)| traffic.servers).sum(),
            rtt: median(timed().filter_map(|(_, traffic)| traffic.rtt)),
        }
    }

    /// Percent of segments that were sent again.
    #[expect(clippy::cast_precision_loss, reason = "a percentage of counts far below 2^52")]
    fn share(&self) -> Option<f64> {
        (self.segments >= ENOUGH_SEGMENTS).then(|| self.resent as f64 * 100.0 / self.segments as f64)
    }

    fn lossy<'a>(&self, others: impl Iterator<Item = &'a Self>, before: Option<Fault>) -> Verdict {
        let Some(percent) = self.share() else { return Verdict::Unknown };
        let others = median(others.filter_map(Self::share)).unwrap_or(0.0);
        let was = matches!(before, Some(Fault::Lossy { .. }));
        let limit = if was { (others * 2.0).max(LOSSY / 2.0) } else { (others * 3.0).max(LOSSY) };
        if percent >= limit && (was || self.resent >= ENOUGH_RESENT) {
            Verdict::Bad(Fault::Lossy { percent, others })
        } else {
            Verdict::Good
        }
    }

    fn slow<'a>(&self, others: impl Iterator<Item = &'a Self>, before: Option<Fault>) -> Verdict {
        let timed = |view: &Self| view.rtt.filter(|_| view.servers >= ENOUGH_SERVERS);
        let others = median(others.filter_map(timed));
        let (Some(rtt), Some(others)) = (timed(self), others) else { return Verdict::Unknown };
        let factor = if matches!(before, Some(Fault::Slow { .. })) { 2 } else { 3 };
        if rtt >= others * factor && rtt >= others + SLOW {
            Verdict::Bad(Fault::Slow { rtt, others })
        } else {
            Verdict::Good
        }
    }
}

/// The lower middle one.
fn median<T: PartialOrd>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let middle = values.len().checked_sub(1)? / 2;
    values.into_iter().nth(middle)
}

const WINDOW: Duration = Duration::from_secs(2);
/// How long a finding outlives its last confirmation.
pub const MEMORY: Duration = Duration::from_secs(30);
/// A line that sends this percentage of its segments again is lossy, if others do not as well.
const LOSSY: f64 = 4.0;
const ENOUGH_SEGMENTS: u64 = 100;
const ENOUGH_RESENT: u64 = 6;
/// And one whose servers take this much longer than those of others is slow.
const SLOW: Duration = Duration::from_millis(50);
const ENOUGH_SERVERS: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ms, secs, wan_id};

    fn server(number: u8) -> IpAddr {
        [198, 51, 100, number].into()
    }

    fn traffic(wan: u8, segments: u64, resent: u64) -> Traffic {
        Traffic { wan: wan_id(wan), family: Family::V4, segments, resent, servers: 0, rtt: None }
    }

    fn timed(wan: u8, servers: u32, rtt: u64) -> Traffic {
        Traffic { servers, rtt: Some(ms(rtt)), ..traffic(wan, 0, 0) }
    }

    fn fault(comparison: &Comparison, wan: u8) -> Option<Fault> {
        comparison.fault(wan_id(wan), Family::V4)
    }

    #[test]
    fn one_bad_server_among_fifty_is_no_bad_line() {
        let mut tally = Tally::default();
        tally.segments(wan_id(1), Family::V4, 1000);
        for _ in 0..300 {
            tally.resent(wan_id(1), server(7));
            tally.handshake(wan_id(1), server(7), ms(900));
        }
        for number in 1..=50 {
            tally.handshake(wan_id(1), server(number), ms(10));
        }
        let report = tally.take();
        assert_eq!((report[0].segments, report[0].resent, report[0].rtt), (1000, 0, Some(ms(10))));
        assert!(tally.take().is_empty());
        assert!(!Comparison::default().take(&report, Time::ZERO));
    }

    #[test]
    fn a_line_that_loses_more_than_the_others_is_lossy_until_it_does_not() {
        let mut comparison = Comparison::default();
        assert!(comparison.take(&[traffic(1, 500, 50), traffic(2, 500, 2), traffic(3, 500, 0)], Time::ZERO));
        assert!(matches!(fault(&comparison, 1), Some(Fault::Lossy { .. })));
        assert_eq!((fault(&comparison, 2), fault(&comparison, 3)), (None, None));
        let later = Time::ZERO + secs(3);
        assert!(comparison.take(&[traffic(1, 500, 3), traffic(2, 500, 2)], later));
        assert_eq!(fault(&comparison, 1), None);
    }

    #[test]
    fn where_every_line_loses_none_is_to_blame() {
        let mut comparison = Comparison::default();
        let report: Vec<_> = (1..=4).map(|wan| traffic(wan, 500, 50 + u64::from(wan))).collect();
        assert!(!comparison.take(&report, Time::ZERO));
    }

    #[test]
    fn a_finding_outlives_the_traffic_it_drove_away_for_its_memory_only() {
        let mut comparison = Comparison::default();
        comparison.take(&[traffic(1, 500, 100), traffic(2, 500, 0)], Time::ZERO);
        let end = comparison.deadline();
        assert_eq!(end, Time::ZERO + MEMORY);
        assert!(!comparison.take(&[traffic(2, 500, 0)], Time::ZERO + secs(10)));
        assert!(fault(&comparison, 1).is_some());
        assert!(comparison.pass(end) && fault(&comparison, 1).is_none());
    }

    #[test]
    fn a_line_whose_servers_answer_late_is_slow_and_a_few_servers_prove_nothing() {
        let mut comparison = Comparison::default();
        assert!(!comparison.take(&[timed(1, 3, 300), timed(2, 20, 20), timed(3, 20, 25)], Time::ZERO));
        assert!(comparison.take(&[timed(1, 20, 300)], Time::ZERO + ms(500)));
        assert!(matches!(fault(&comparison, 1), Some(Fault::Slow { .. })));
        let told = fault(&comparison, 1).unwrap().to_string();
        assert_eq!(told, "its servers answer after 300 ms, those of other lines after 20 ms");
    }
}
