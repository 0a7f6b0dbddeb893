//! How long work waits for company, and who goes together. Pure: time is an argument.
//!
//! A batch costs about the same however full it is, so waiting pays as long as more comes within less time than a batch
//! takes. Nobody waits while work comes more seldom than that: somebody alone is served at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What waits to be done together.
#[derive(Debug)]
pub(super) struct Gathering<T> {
    waiting: VecDeque<(T, Instant)>,
    /// So many are done at once.
    width: usize,
    /// Between two arrivals, smoothed.
    interval: Duration,
    last: Option<Instant>,
    /// What a batch takes, smoothed.
    cost: Option<Duration>,
}

impl<T> Gathering<T> {
    pub(super) fn new(width: usize) -> Self {
        Self { waiting: VecDeque::new(), width: width.max(1), interval: SELDOM, last: None, cost: None }
    }

    pub(super) fn arrived(&mut self, one: T, now: Instant) {
        let since = self.last.map_or(SELDOM, |last| now.saturating_duration_since(last).min(SELDOM));
        self.interval = smooth(self.interval, since);
        self.last = Some(now);
        self.waiting.push_back((one, now));
    }

    /// A batch was done, in so much time.
    pub(super) fn took(&mut self, cost: Duration) {
        self.cost = Some(self.cost.map_or(cost, |before| smooth(before, cost)));
    }

    /// When what waits is done, however few those are; none of nothing.
    pub(super) fn due(&self) -> Option<Instant> {
        let (_, first) = self.waiting.front()?;
        let missing = self.width.saturating_sub(self.waiting.len());
        Some(*first + self.patience(missing))
    }

    /// How long the first waits for so many more.
    fn patience(&self, missing: usize) -> Duration {
        let Some(cost) = self.cost else { return Duration::ZERO };
        let worth = (cost / 2).min(LONGEST);
        if missing == 0 || self.interval > worth || worth < SLEEP {
            return Duration::ZERO;
        }
        // Twice the time that is expected, since arrivals are not even.
        let expected = self.interval * 2 * u32::try_from(missing).unwrap_or(u32::MAX);
        expected.clamp(SLEEP, worth)
    }

    /// Those that go together, the first that came first.
    pub(super) fn take(&mut self) -> Vec<T> {
        let count = self.waiting.len().min(self.width);
        self.waiting.drain(..count).map(|(one, _)| one).collect()
    }

    pub(super) fn retain(&mut self, mut wanted: impl FnMut(&T) -> bool) {
        self.waiting.retain(|(one, _)| wanted(one));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|(one, _)| one)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    pub(super) fn cost(&self) -> Option<Duration> {
        self.cost
    }
}

fn smooth(before: Duration, sample: Duration) -> Duration {
    (before * 7 + sample) / 8
}

/// An interval that is as good as for ever.
const SELDOM: Duration = Duration::from_millis(10);
/// No handshake is to mind.
const LONGEST: Duration = Duration::from_millis(1);
/// What going to sleep and waking up take: less is not waited for.
const SLEEP: Duration = Duration::from_micros(50);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BATCH: Duration = Duration::from_millis(1);

    fn gathering(cost: Duration, interval: Duration, arrivals: u32) -> (Gathering<u32>, Instant) {
        let mut gathering = Gathering::new(8);
        gathering.took(cost);
        let mut now = Instant::now();
        for number in 0..arrivals {
            now += interval;
            gathering.arrived(number, now);
            if number + 1 < arrivals {
                gathering.take();
            }
        }
        (gathering, now)
    }

    #[test]
    fn somebody_alone_is_served_at_once() {
        let (first, now) = gathering(BATCH, Duration::ZERO, 1);
        assert_eq!(first.due(), Some(now));
        let (in_turn, now) = gathering(BATCH, BATCH * 2, 100);
        assert_eq!(in_turn.due(), Some(now));
    }

    #[test]
    fn where_more_is_to_come_the_first_waits_but_not_for_long() {
        let (gathering, now) = gathering(BATCH, Duration::from_micros(20), 100);
        let wait = gathering.due().unwrap() - now;
        assert!(wait >= SLEEP && wait <= BATCH / 2, "{wait:?}");
    }

    #[test]
    fn a_batch_that_is_full_is_due_when_its_first_came() {
        let (mut gathering, now) = gathering(BATCH, Duration::from_micros(20), 100);
        for number in 0..7 {
            assert!(gathering.due().unwrap() > now);
            gathering.arrived(number, now + Duration::from_micros(20));
        }
        assert_eq!((gathering.due(), gathering.len()), (Some(now), 8));
    }

    #[test]
    fn what_takes_no_longer_than_a_sleep_is_not_waited_for() {
        let (gathering, now) = gathering(SLEEP, Duration::from_micros(1), 100);
        assert_eq!(gathering.due(), Some(now));
    }

    #[test]
    fn nothing_is_known_before_a_batch_was_done() {
        let mut gathering = Gathering::new(8);
        let now = Instant::now();
        for number in 0..7 {
            gathering.arrived(number, now);
        }
        assert_eq!(gathering.due(), Some(now));
    }

    proptest! {
        /// Whatever comes and goes: nobody is lost or done twice, the first come go first, no batch is too full, and
        /// nobody waits longer than half a batch, nor than a millisecond.
        #[test]
        fn everybody_goes_once_and_in_order(
            width in 1_usize..40,
            cost in 0_u64..20_000,
            events in prop::collection::vec((0_u8..4, 0_u64..2_000), 1..200),
        ) {
            let mut gathering = Gathering::new(width);
            let cost = Duration::from_micros(cost);
            gathering.took(cost);
            let (mut now, mut number, mut gone) = (Instant::now(), 0_u32, Vec::new());
            for (event, microseconds) in events {
                now += Duration::from_micros(microseconds);
                if event > 0 {
                    gathering.arrived(number, now);
                    number += 1;
                    let due = gathering.due().unwrap();
                    prop_assert!(due <= now + (cost / 2).max(SLEEP).min(LONGEST));
                } else {
                    let batch = gathering.take();
                    prop_assert!(batch.len() <= width);
                    gone.extend(batch);
                }
            }
            while gathering.len() > 0 {
                gone.extend(gathering.take());
            }
            prop_assert_eq!(gone, (0..number).collect::<Vec<_>>());
            prop_assert!(gathering.due().is_none());
        }
    }
}
