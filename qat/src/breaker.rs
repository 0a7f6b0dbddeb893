//! Whether an instance of a device is to be trusted with work. Pure: time is an argument.
//!
//! ```text
//!              test passed                  strikes, or one wrong answer
//!   Untested ──────────────▶ Closed ────────────────────────────────────▶ Open(until)
//!      ▲    test failed: Open  │ ▲            test passed                    │
//!      │                       │ └───────────────────────────────────────────┘ after its pause, tested again
//!      └── RESTARTED ── Away ◀─┴── RESTARTING, from any state
//! ```

use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct Breaker {
    patience: Patience,
    state: State,
    /// When the recent faults were.
    strikes: Vec<Instant>,
    /// Faults since the last right answer.
    in_a_row: usize,
    /// Of the next time it opens.
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is known of it: tests first.
    Untested,
    /// In use.
    Closed { since: Instant },
    /// Out of use until then, and after that until a test passes.
    Open { until: Instant },
    /// It is restarting.
    Away { since: Instant },
}

/// What went wrong with one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Late,
    Failed,
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// So many faults open it, in a row, however far apart (a silent device is found out slowly),
    pub strikes: usize,
    /// or within this time.
    pub within: Duration,
    /// How long it is open the first time; each time after that twice as long,
    pub pause: Duration,
    /// up to this. A time in use that is as long makes the next pause the first again.
    pub longest: Duration,
    /// How long a restart is waited for before the instance is tested all the same.
    pub restart: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            strikes: 5,
            within: Duration::from_secs(10),
            pause: Duration::from_millis(200),
            longest: Duration::from_mins(1),
            restart: Duration::from_secs(30),
        }
    }
}

impl Breaker {
    pub fn new(patience: Patience) -> Self {
        Self { patience, state: State::Untested, strikes: Vec::new(), in_a_row: 0, pause: patience.pause }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Whether work may go there.
    pub fn admits(&self) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Untested | State::Open { .. } | State::Away { .. } => false,
        }
    }

    /// Whether it is time for the tests, on which [`Self::tested`] is called.
    pub fn wants_test(&self, now: Instant) -> bool {
        match self.state {
            State::Untested => true,
            State::Closed { .. } => false,
            State::Open { until } => now >= until,
            State::Away { since } => now >= since + self.patience.restart,
        }
    }

    pub fn tested(&mut self, passed: bool, now: Instant) {
        if passed {
            self.strikes.clear();
            self.in_a_row = 0;
            self.state = State::Closed { since: now };
        } else {
            self.open(now);
        }
    }

    pub fn succeeded(&mut self) {
        self.in_a_row = 0;
    }

    pub fn failed(&mut self, fault: Fault, now: Instant) {
        let State::Closed { since } = self.state else { return };
        if now.saturating_duration_since(since) >= self.patience.longest {
            self.pause = self.patience.pause;
        }
        self.strikes.retain(|strike| now.saturating_duration_since(*strike) < self.patience.within);
        self.strikes.push(now);
        self.in_a_row += 1;
        let enough = self.strikes.len().max(self.in_a_row) >= self.patience.strikes;
        match fault {
            Fault::Wrong => self.open(now),
            Fault::Late | Fault::Failed if enough => self.open(now),
            Fault::Late | Fault::Failed => {}
        }
    }

    pub fn restarting(&mut self, now: Instant) {
        self.state = State::Away { since: now };
    }

    pub fn restarted(&mut self) {
        self.strikes.clear();
        self.state = State::Untested;
    }

    fn open(&mut self, now: Instant) {
        self.strikes.clear();
        self.state = State::Open { until: now + self.pause };
        self.pause = (self.pause * 2).min(self.patience.longest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn closed(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(Patience::default());
        breaker.tested(true, now);
        breaker
    }

    #[test]
    fn nothing_is_admitted_before_a_test_has_passed() {
        let now = Instant::now();
        let mut breaker = Breaker::new(Patience::default());
        assert!(!breaker.admits() && breaker.wants_test(now));
        breaker.tested(false, now);
        assert!(!breaker.admits() && !breaker.wants_test(now));
        assert!(breaker.wants_test(now + Patience::default().pause));
        breaker.tested(true, now);
        assert!(breaker.admits() && !breaker.wants_test(now));
    }

    #[test]
    fn one_wrong_answer_opens_it_and_silence_only_when_it_repeats() {
        let now = Instant::now();
        let mut breaker = closed(now);
        breaker.failed(Fault::Wrong, now);
        assert!(!breaker.admits());
        let mut breaker = closed(now);
        for strike in 1..Patience::default().strikes {
            breaker.failed(Fault::Late, now);
            assert!(breaker.admits(), "{strike}");
        }
        breaker.failed(Fault::Failed, now);
        assert!(!breaker.admits());
    }

    #[test]
    fn faults_far_apart_with_right_answers_between_do_not_add_up() {
        let mut now = Instant::now();
        let mut breaker = closed(now);
        for _ in 0..100 {
            now += Patience::default().within;
            breaker.failed(Fault::Late, now);
            breaker.succeeded();
        }
        assert!(breaker.admits());
    }

    #[test]
    fn faults_in_a_row_open_it_however_far_apart() {
        let mut now = Instant::now();
        let mut breaker = closed(now);
        for _ in 0..Patience::default().strikes {
            assert!(breaker.admits());
            now += Patience::default().within * 2;
            breaker.failed(Fault::Late, now);
        }
        assert!(!breaker.admits());
    }

    #[test]
    fn pauses_double_and_a_long_good_time_makes_them_short_again() {
        let mut now = Instant::now();
        let mut breaker = closed(now);
        let mut pause = Patience::default().pause;
        for _ in 0..12 {
            breaker.failed(Fault::Wrong, now);
            assert_eq!(breaker.state(), State::Open { until: now + pause });
            now += pause;
            pause = (pause * 2).min(Patience::default().longest);
            breaker.tested(true, now);
        }
        now += Patience::default().longest;
        breaker.failed(Fault::Wrong, now);
        assert_eq!(breaker.state(), State::Open { until: now + Patience::default().pause });
    }

    #[test]
    fn a_restart_is_waited_for_but_not_for_ever() {
        let now = Instant::now();
        let mut breaker = closed(now);
        breaker.restarting(now);
        assert!(!breaker.admits() && !breaker.wants_test(now));
        let mut forgotten = breaker.clone();
        assert!(forgotten.wants_test(now + Patience::default().restart));
        forgotten.tested(true, now);
        assert!(forgotten.admits());
        breaker.restarted();
        assert!(!breaker.admits() && breaker.wants_test(now));
    }

    proptest! {
        /// Whatever happens: work is admitted only after a test passed and nothing of weight has happened since, and an
        /// instance that is out is tested again in the end.
        #[test]
        fn it_admits_only_what_passed_and_never_gives_up(events in prop::collection::vec((0_u8..6, 0_u64..5_000), 1..60)) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(Patience::default());
            let mut passed = false;
            for (event, milliseconds) in events {
                now += Duration::from_millis(milliseconds);
                match event {
                    0 if breaker.wants_test(now) => { breaker.tested(true, now); passed = true; }
                    1 if breaker.wants_test(now) => { breaker.tested(false, now); passed = false; }
                    2 => breaker.failed(Fault::Late, now),
                    3 => { breaker.failed(Fault::Wrong, now); passed = false; }
                    4 => { breaker.restarting(now); passed = false; }
                    5 => { breaker.restarted(); passed = false; }
                    _ => {}
                }
                prop_assert!(passed || !breaker.admits());
                let later = now + Patience::default().longest + Patience::default().restart;
                prop_assert!(breaker.admits() || breaker.wants_test(later));
            }
        }
    }
}
