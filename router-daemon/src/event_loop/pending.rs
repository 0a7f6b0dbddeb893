//! A change that waits for its confirmation, as it stands on the disk: from before the kernel is touched until it
//! has been decided. A daemon that starts finds it and goes on counting, or finishes what was decided.

use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::ask::Author;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) text: String,
    /// What comes back; `None`: everything was denied.
    pub(super) previous: Option<String>,
    pub(super) author: Author,
    pub(super) message: Option<String>,
    /// It is confirmed by measurement, which a restart interrupts.
    pub(super) guard: bool,
    pub(super) begun: Clock,
    pub(super) window: Duration,
    /// Written before anything else is done about it.
    pub(super) ended: Option<Ended>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ended {
    Confirmed { by: String },
    RolledBack { why: String },
}

/// One moment on two clocks: the one that only a reboot sets back, and the one that a battery or a peer may set to
/// anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Clock {
    pub(super) boot_id: String,
    pub(super) since_boot: Duration,
    pub(super) wall: Duration,
}

impl Clock {
    pub(super) fn now() -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME)?.into();
        Ok(Self { boot_id, since_boot, wall: super::wall() })
    }
}

impl Pending {
    /// What is left of the window, never more than the whole of it. Over a reboot only the wall clock tells; one
    /// that stands before the apply is wrong by nobody knows how much, and then nothing is left.
    pub(super) fn remaining(&self, now: &Clock) -> Duration {
        let spent = if now.boot_id == self.begun.boot_id {
            now.since_boot.checked_sub(self.begun.since_boot)
        } else {
            now.wall.checked_sub(self.begun.wall)
        };
        spent.map_or(Duration::ZERO, |spent| self.window.saturating_sub(spent))
    }

    /// The same where the clocks can be read; without them nothing is left.
    pub(super) fn left(&self) -> Duration {
        Clock::now().map_or(Duration::ZERO, |now| self.remaining(&now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_clock_makes_the_window_longer() {
        let second = Duration::from_secs;
        let clock = |boot: &str, since_boot, wall| Clock {
            boot_id: boot.to_owned(),
            since_boot: second(since_boot),
            wall: second(wall),
        };
        let pending = Pending {
            text: String::new(),
            previous: None,
            author: Author::start(),
            message: None,
            guard: false,
            begun: clock("a", 1000, 1_000_000),
            window: second(120),
            ended: None,
        };
        let table = [
            ("a moment later", clock("a", 1020, 1_000_020), 100),
            ("after the window", clock("a", 1121, 1_000_121), 0),
            ("the wall clock jumped back", clock("a", 1020, 5), 100),
            ("the wall clock jumped ahead", clock("a", 1020, 9_000_000), 100),
            ("after a reboot", clock("b", 30, 1_000_050), 70),
            ("long after a reboot", clock("b", 3000, 1_003_000), 0),
            ("a reboot, and a clock without a battery", clock("b", 30, 20), 0),
            ("a reboot, and a clock that jumped ahead", clock("b", 30, 9_000_000), 0),
        ];
        for (what, now, left) in table {
            assert_eq!(pending.remaining(&now), second(left), "{what}");
        }
    }
}
