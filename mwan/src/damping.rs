//! How long a line that failed must be good before it is used again.
//!
//! Every failure raises the level by one; the hold time is the configured `hold`, doubled for each level beyond
//! the first, at most `hold_max`. Each full `hold_max` without a failure lowers the level by one. A line that never
//! failed has level 0 and waits for nothing.

use std::time::Duration;

use config::model::Probing;
use serde::{Deserialize, Serialize};

use crate::time::Time;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Damping {
    level: u32,
    /// When the level last changed.
    since: Time,
    /// What `forgive` goes back to.
    before: Option<(u32, Time)>,
}

impl Damping {
    /// The line failed while it was in use or about to be.
    pub fn flap(&mut self, probing: &Probing, now: Time) {
        self.before = Some((self.level(probing, now), self.since));
        // Beyond the level that reaches `hold_max`, remembering more would only delay the decay.
        let enough = (1..MOST).find(|level| hold_of(*level, probing) >= probing.hold_max).unwrap_or(MOST);
        self.level = (self.level(probing, now) + 1).min(enough);
        self.since = now;
    }

    /// The last failure was not the line's own.
    pub fn forgive(&mut self) {
        if let Some((level, since)) = self.before.take() {
            self.level = level;
            self.since = since;
        }
    }

    pub fn level(&self, probing: &Probing, now: Time) -> u32 {
        let decayed = now.since(self.since).as_micros().checked_div(probing.hold_max.as_micros());
        self.level.saturating_sub(u32::try_from(decayed.unwrap_or(u128::MAX)).unwrap_or(u32::MAX))
    }

    /// The hold time that applies to a recovery at this moment.
    pub fn hold(&self, probing: &Probing, now: Time) -> Duration {
        hold_of(self.level(probing, now), probing)
    }
}

/// 2^31 times any hold time is longer than any `hold_max`.
const MOST: u32 = 32;

fn hold_of(level: u32, probing: &Probing) -> Duration {
    match level.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => {
            let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
            probing.hold.saturating_mul(factor).min(probing.hold_max)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{probing, secs};

    #[test]
    fn the_hold_time_doubles_up_to_its_limit() {
        let probing = probing();
        let mut damping = Damping::default();
        assert_eq!(damping.hold(&probing, Time::ZERO), Duration::ZERO);
        for hold in [10, 20, 40, 80, 160, 320, 600, 600, 600] {
            damping.flap(&probing, Time::ZERO);
            assert_eq!(damping.hold(&probing, Time::ZERO), secs(hold));
        }
        assert_eq!(damping.level(&probing, Time::ZERO), 7, "the level that reaches the limit is the highest");
    }

    #[test]
    fn each_quiet_hold_max_lowers_the_level_by_one() {
        let probing = probing();
        let mut damping = Damping::default();
        damping.flap(&probing, Time::ZERO);
        damping.flap(&probing, Time::ZERO);
        assert_eq!(damping.level(&probing, Time::ZERO + secs(599)), 2);
        assert_eq!(damping.level(&probing, Time::ZERO + secs(600)), 1);
        assert_eq!(damping.level(&probing, Time::ZERO + secs(1200)), 0);
    }

    #[test]
    fn a_forgiven_failure_leaves_no_trace() {
        let probing = probing();
        let mut damping = Damping::default();
        damping.flap(&probing, Time::ZERO);
        damping.flap(&probing, Time::ZERO + secs(5));
        damping.forgive();
        damping.forgive();
        assert_eq!(damping.hold(&probing, Time::ZERO + secs(5)), secs(10));
    }
}
