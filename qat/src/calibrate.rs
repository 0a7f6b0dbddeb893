//! What operations cost and how long they take, and what follows: who does them, and how long an answer is waited for.
//! Pure: measurements come in, decisions go out.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::job::Operation;

/// Operations that are alike enough to be measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    pub operation: Operation,
    /// The length of its text, as a power of two.
    pub size: u32,
}

impl Class {
    pub fn new(operation: Operation, length: usize) -> Self {
        Self { operation, size: length.checked_ilog2().map_or(0, |log| log + 1) }
    }
}

/// How long answers took: counts by eighths of powers of two, of which the old ones fade.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    counts: BTreeMap<u32, u32>,
    total: u32,
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        if self.total >= FADES {
            self.counts.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
            self.total = self.counts.values().sum();
        }
        *self.counts.entry(bucket(latency)).or_default() += 1;
        self.total += 1;
    }

    /// The 99th percentile, rounded up to the end of its bucket; none of nothing.
    pub fn p99(&self) -> Option<Duration> {
        self.all_but(100)
    }

    /// The median, likewise.
    pub fn p50(&self) -> Option<Duration> {
        self.all_but(2)
    }

    /// What one in so many exceeds.
    fn all_but(&self, one_in: u32) -> Option<Duration> {
        let mut left = self.total / one_in + 1;
        for (bucket, count) in self.counts.iter().rev() {
            if *count >= left {
                return Some(end(*bucket));
            }
            left -= count;
        }
        None
    }

    /// How long an answer is waited for. What came late is recorded as late as it was waited for, so that a host under
    /// load waits longer the next time; and so it does for a device that loses answers, up to a bound.
    pub fn deadline(&self, at_least: Duration) -> Duration {
        let measured = if self.total < ENOUGH { None } else { self.p99() };
        measured.map_or(UNKNOWN, |p99| p99 * 8).min(LONGEST).max(at_least)
    }
}

/// Eight buckets to a power of two of nanoseconds.
fn bucket(latency: Duration) -> u32 {
    let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(8);
    let log = nanoseconds.ilog2();
    let eighth = (nanoseconds >> (log - 3)) & 7;
    log * 8 + u32::try_from(eighth).unwrap_or_default()
}

fn end(bucket: u32) -> Duration {
    let (log, eighth) = (bucket / 8, u64::from(bucket % 8));
    Duration::from_nanos((9 + eighth).checked_shl(log - 3).unwrap_or(u64::MAX))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Cpu,
    Device,
}

/// Picks the side that costs the CPU less, by class and by how much is in flight.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    measured: BTreeMap<(Class, u32), Measured>,
}

#[derive(Debug, Clone, Default)]
struct Measured {
    cpu: Cost,
    device: Cost,
    chosen: Option<Side>,
    asked: u32,
}

#[derive(Debug, Clone, Default)]
struct Cost {
    samples: u32,
    /// CPU time, smoothed.
    nanoseconds: f64,
    latencies: Latencies,
}

impl Calibration {
    /// Who is to do the next one. Until both are known, each in turn; after that the other one now and then, so that a
    /// change is noticed.
    pub fn choose(&mut self, class: Class, in_flight: usize) -> Side {
        let measured = self.measured.entry((class, depth(in_flight))).or_default();
        measured.asked = measured.asked.wrapping_add(1);
        if measured.cpu.samples < ENOUGH || measured.device.samples < ENOUGH {
            return if measured.device.samples <= measured.cpu.samples { Side::Device } else { Side::Cpu };
        }
        let chosen = measured.decide();
        measured.chosen = Some(chosen);
        match (chosen, measured.asked.is_multiple_of(EXPLORES)) {
            (side, false) => side,
            (Side::Cpu, true) => Side::Device,
            (Side::Device, true) => Side::Cpu,
        }
    }

    /// What one operation took of the CPU, and how long it took in all.
    pub fn record(&mut self, class: Class, in_flight: usize, side: Side, cpu: Duration, latency: Duration) {
        let measured = self.measured.entry((class, depth(in_flight))).or_default();
        let cost = match side {
            Side::Cpu => &mut measured.cpu,
            Side::Device => &mut measured.device,
        };
        let nanoseconds = cpu.as_secs_f64() * 1e9;
        let share = if cost.samples < ENOUGH { 1.0 / f64::from(cost.samples + 1) } else { 1.0 / f64::from(ENOUGH) };
        cost.nanoseconds += (nanoseconds - cost.nanoseconds) * share;
        cost.samples = cost.samples.saturating_add(1);
        cost.latencies.record(latency);
    }

    /// What stands, for people: class, least in flight, CPU time of both, the choice.
    pub fn choices(&self) -> impl Iterator<Item = (Class, usize, Duration, Duration, Option<Side>)> + '_ {
        self.measured.iter().map(|((class, depth), measured)| {
            let time = |cost: &Cost| Duration::from_secs_f64(cost.nanoseconds / 1e9);
            (*class, DEPTHS[*depth as usize], time(&measured.cpu), time(&measured.device), measured.chosen)
        })
    }
}

impl Measured {
    fn decide(&self) -> Side {
        let limit = self.cpu.latencies.p99().unwrap_or_default().max(TOLERATED);
        let slow = self.device.latencies.p99().is_none_or(|p99| p99 > limit);
        let ratio = self.device.nanoseconds / self.cpu.nanoseconds.max(1.0);
        // A choice that stands needs a clear reason to fall.
        let worth = match self.chosen {
            Some(Side::Device) => ratio < 0.95,
            Some(Side::Cpu) | None => ratio < 0.8,
        };
        if worth && !slow { Side::Device } else { Side::Cpu }
    }
}

fn depth(in_flight: usize) -> u32 {
    let index = DEPTHS.iter().rposition(|least| in_flight >= *least).unwrap_or_default();
    u32::try_from(index).unwrap_or_default()
}

/// The least in flight of each of the depths that are told apart.
const DEPTHS: [usize; 4] = [0, 2, 8, 32];
/// Samples before a measurement counts.
const ENOUGH: u32 = 16;
/// One in so many goes to the side that was not chosen.
const EXPLORES: u32 = 256;
const FADES: u32 = 4096;
/// Dozens of times what the CPU takes for the longest operation, which does it then. A handshake waits at most so long
/// for a device that is silent, and five seconds for all of it, together with others before it on its thread.
const LONGEST: Duration = Duration::from_millis(250);
/// The deadline before anything is measured.
const UNKNOWN: Duration = LONGEST;
/// A latency that no handshake minds.
const TOLERATED: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RSA: Operation = Operation::RsaPrivate(2048);

    fn micro(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    /// Asks and answers `times`, and tells what was chosen the last time but one.
    fn settle(calibration: &mut Calibration, cpu: u64, device: u64, latency: u64, times: usize) -> Side {
        let class = Class::new(RSA, 0);
        let mut last = Side::Cpu;
        for _ in 0..times {
            let side = calibration.choose(class, 0);
            let cost = if side == Side::Cpu { cpu } else { device };
            let took = if side == Side::Cpu { cpu } else { latency };
            calibration.record(class, 0, side, micro(cost), micro(took));
            last = calibration.choices().next().and_then(|(.., chosen)| chosen).unwrap_or(side);
        }
        last
    }

    #[test]
    fn the_side_that_costs_less_cpu_is_chosen() {
        assert_eq!(settle(&mut Calibration::default(), 600, 40, 900, 100), Side::Device);
        assert_eq!(settle(&mut Calibration::default(), 20, 40, 900, 100), Side::Cpu);
    }

    #[test]
    fn a_device_that_is_slow_is_not_chosen_however_cheap() {
        assert_eq!(settle(&mut Calibration::default(), 600, 40, 9_000, 100), Side::Cpu);
    }

    #[test]
    fn a_choice_stands_while_both_are_about_equal() {
        let mut calibration = Calibration::default();
        assert_eq!(settle(&mut calibration, 100, 50, 500, 100), Side::Device);
        assert_eq!(settle(&mut calibration, 100, 90, 500, 2_000), Side::Device);
        assert_eq!(settle(&mut calibration, 100, 98, 500, 20_000), Side::Cpu);
        assert_eq!(settle(&mut calibration, 100, 90, 500, 20_000), Side::Cpu);
        assert_eq!(settle(&mut calibration, 100, 50, 500, 20_000), Side::Device);
    }

    #[test]
    fn depths_and_sizes_are_told_apart() {
        let mut calibration = Calibration::default();
        for length in [64, 1_500] {
            for in_flight in [0, 40] {
                calibration.choose(Class::new(RSA, length), in_flight);
            }
        }
        assert_eq!(calibration.choices().count(), 4);
    }

    #[test]
    fn a_deadline_follows_what_was_measured_and_grows_under_load() {
        let least = Duration::from_millis(20);
        let mut latencies = Latencies::default();
        assert_eq!(latencies.deadline(least), UNKNOWN);
        for _ in 0..100 {
            latencies.record(micro(100));
        }
        assert_eq!(latencies.deadline(least), least);
        for _ in 0..100 {
            latencies.record(Duration::from_millis(20));
        }
        let deadline = latencies.deadline(least);
        assert!(deadline >= Duration::from_millis(160) && deadline <= Duration::from_millis(180), "{deadline:?}");
        for _ in 0..100 {
            latencies.record(Duration::from_mins(1));
        }
        assert_eq!(latencies.deadline(least), LONGEST);
    }

    #[test]
    fn however_many_answers_are_lost_nobody_waits_for_long() {
        let least = Duration::from_millis(20);
        let mut latencies = Latencies::default();
        for number in 0..10_000 {
            let deadline = latencies.deadline(least);
            assert!(deadline <= Duration::from_millis(250), "{deadline:?} after {number}");
            latencies.record(if number % 10 == 0 { deadline } else { micro(300) });
        }
        assert_eq!(latencies.deadline(Duration::from_secs(2)), Duration::from_secs(2), "who is as patient may be");
    }

    proptest! {
        #[test]
        fn a_bucket_ends_after_what_is_in_it_and_not_far(nanoseconds in 8_u64..10_000_000_000_000) {
            let latency = Duration::from_nanos(nanoseconds);
            let end = end(bucket(latency));
            prop_assert!(end > latency && end <= latency + latency / 8 + Duration::from_nanos(1));
        }

        /// The percentile has at least 99 of a hundred below it, and old measurements fade.
        #[test]
        fn the_percentile_bounds_the_samples(samples in prop::collection::vec(1_u64..1_000_000, 1..400)) {
            let mut latencies = Latencies::default();
            for sample in &samples {
                latencies.record(micro(*sample));
            }
            let p99 = latencies.p99().unwrap();
            let p50 = latencies.p50().unwrap();
            let within = samples.iter().filter(|sample| micro(**sample) <= p50).count();
            prop_assert!(p50 <= p99 && within * 2 >= samples.len());
            let below = samples.iter().filter(|sample| micro(**sample) <= p99).count();
            prop_assert!(below * 100 >= samples.len() * 99);
            for _ in 0..20 * FADES {
                latencies.record(micro(5));
            }
            prop_assert!(latencies.p99().unwrap() < micro(6));
        }
    }
}
