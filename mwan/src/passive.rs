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

use config::model::Wan;
use config::units::{BitRate, Family, WanId, WanName};
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
    /// Bytes each way, and the time they took: since the report before.
    pub sent: u64,
    pub received: u64,
    pub span: Duration,
}

type Key = (WanId, Family);

/// Collects what the packet path saw until the next report.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<Key, Collected>);

#[derive(Debug, Default)]
struct Collected {
    segments: u64,
    sent: u64,
    received: u64,
    resent: BTreeMap<IpAddr, u64>,
    handshakes: BTreeMap<IpAddr, Duration>,
}

impl Tally {
    /// What the counters of a line rose by.
    pub fn carried(&mut self, wan: WanId, family: Family, segments: u64, sent: u64, received: u64) {
        if segments + sent + received > 0 {
            let line = self.0.entry((wan, family)).or_default();
            line.segments += segments;
            line.sent += sent;
            line.received += received;
        }
    }

    pub fn resent(&mut self, wan: WanId, server: IpAddr) {
        *self.0.entry((wan, Family::of(server))).or_default().resent.entry(server).or_default() += 1;
    }

    pub fn handshake(&mut self, wan: WanId, server: IpAddr, rtt: Duration) {
        let best = &mut self.0.entry((wan, Family::of(server))).or_default().handshakes;
        best.entry(server).and_modify(|best| *best = rtt.min(*best)).or_insert(rtt);
    }

    /// What came together in `span`; begins anew. Of the servers that had segments sent again, the worst tenth, and the worst
    /// one at least, is left out: it may be the servers' fault.
    pub fn take(&mut self, span: Duration) -> Vec<Traffic> {
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
                sent: collected.sent,
                received: collected.received,
                span,
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

/// What is left of the lines' rates, in tenths: smoothed, and moved only by changes worth moving flows for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Headroom {
    /// Bits per second, each way.
    used: BTreeMap<WanId, (f64, f64)>,
    tenths: BTreeMap<WanId, u8>,
    last: Time,
}

impl Headroom {
    /// True if some line has another number of tenths.
    pub(crate) fn take(&mut self, report: &[Traffic], wans: &BTreeMap<WanName, Wan>, now: Time) -> bool {
        self.last = now;
        let before = self.tenths.clone();
        for wan in wans.values() {
            let (Some(download), Some(upload)) = (wan.download, wan.upload) else { continue };
            let own = || report.iter().filter(|traffic| traffic.wan == wan.id);
            let Some(span) = report.iter().map(|traffic| traffic.span.as_secs_f64()).reduce(f64::max) else { continue };
            let used = self.used.entry(wan.id).or_default();
            let part = 1.0 - (-span / SMOOTHED.as_secs_f64()).exp();
            used.0 += (rate(own().map(|traffic| traffic.received).sum(), span) - used.0) * part;
            used.1 += (rate(own().map(|traffic| traffic.sent).sum(), span) - used.1) * part;
            let of = |used: f64, sold: BitRate| used / bits(sold.0.get());
            let left = (1.0 - of(used.0, download).max(of(used.1, upload))).clamp(0.0, 1.0) * 10.0;
            let shown = self.tenths.entry(wan.id).or_insert(10);
            // Half a tenth is rounding, the rest of it is patience.
            if (left - f64::from(*shown)).abs() >= 0.75 {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 10")]
                let tenths = left.round() as u8;
                *shown = tenths;
            }
        }
        self.tenths != before
    }

    /// Lines of which nothing is heard carry nothing. True if that changed a number.
    pub(crate) fn pass(&mut self, now: Time) -> bool {
        if self.deadline() > now {
            return false;
        }
        self.used.clear();
        let changed = self.tenths.values().any(|tenths| *tenths != 10);
        self.tenths.clear();
        changed
    }

    pub(crate) fn deadline(&self) -> Time {
        if self.tenths.values().all(|tenths| *tenths == 10) { Time::NEVER } else { self.last + WINDOW }
    }

    /// By line; a full one has none left and still takes the least share. Lines without rates are left out.
    pub(crate) fn tenths(&self) -> &BTreeMap<WanId, u8> {
        &self.tenths
    }
}

fn rate(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bits(bytes) * 8.0 / seconds } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "a rate, of which a millionth does not matter")]
fn bits(count: u64) -> f64 {
    count as f64
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

/// The time constant of what is used.
const SMOOTHED: Duration = Duration::from_secs(1);
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
        let span = ms(500);
        Traffic {
            wan: wan_id(wan),
            family: Family::V4,
            segments,
            resent,
            servers: 0,
            rtt: None,
            sent: 0,
            received: 0,
            span,
        }
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
        tally.carried(wan_id(1), Family::V4, 1000, 0, 0);
        for _ in 0..300 {
            tally.resent(wan_id(1), server(7));
            tally.handshake(wan_id(1), server(7), ms(900));
        }
        for number in 1..=50 {
            tally.handshake(wan_id(1), server(number), ms(10));
        }
        let report = tally.take(ms(500));
        assert_eq!((report[0].segments, report[0].resent, report[0].rtt), (1000, 0, Some(ms(10))));
        assert!(tally.take(ms(500)).is_empty());
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
    fn headroom_follows_the_busier_direction_and_moves_by_tenths() {
        let mut wans: BTreeMap<_, _> = [1, 2].map(|id| (crate::testing::wan_name(id), crate::testing::wan(id))).into();
        for wan in wans.values_mut() {
            wan.download = Some("100mbit".parse().unwrap());
            wan.upload = Some("10mbit".parse().unwrap());
        }
        let mut headroom = Headroom::default();
        // 8 Mbit/s of 10 upwards, 8 of 100 downwards.
        let busy = Traffic { sent: 500_000, received: 500_000, ..traffic(1, 0, 0) };
        let mut now = Time::ZERO;
        let mut changes = 0;
        for _ in 0..20 {
            now = now + ms(500);
            changes += u32::from(headroom.take(std::slice::from_ref(&busy), &wans, now));
        }
        assert_eq!(headroom.tenths(), &[(wan_id(1), 2), (wan_id(2), 10)].into());
        assert!(changes <= 8, "{changes} changes for one load");
        assert!(!headroom.take(&[Traffic { sent: 530_000, ..busy }], &wans, now + ms(500)), "less than a tenth");
        assert!(headroom.pass(headroom.deadline()), "silence is no load");
        assert_eq!(headroom.deadline(), Time::NEVER);
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
