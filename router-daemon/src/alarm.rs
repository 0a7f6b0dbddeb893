//! Wakes the event loop at a moment, by a timer of the kernel's (`timerfd_create(2)`).
//!
//! tokio's own timers, which everything else here uses, cost more wake-ups than moments: one that is set ahead of all
//! others interrupts the wait it is set from, and one beyond the next 64 ms is woken for to be sorted anew. An idle
//! router does hardly anything else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tracing::debug;

use crate::kernel::fast_path::readable;

/// One moment to be woken at.
#[derive(Debug)]
pub struct Alarm(Source);

#[derive(Debug)]
enum Source {
    Kernel { timer: AsyncFd<Timer>, set: Option<Instant> },
    Tokio,
}

#[derive(Debug)]
struct Timer(TimerFd);

impl Alarm {
    /// Needs tokio's runtime with its IO.
    pub fn open() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Timer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        Ok(Self(Source::Kernel { timer: readable(timer)?, set: None }))
    }

    /// Follows tokio's clock, which tests stop and move.
    pub fn of_tokio() -> Self {
        Self(Source::Tokio)
    }

    /// Ends at `when`. Cancelling it is safe.
    pub async fn until(&mut self, when: Instant) {
        match &mut self.0 {
            Source::Tokio => tokio::time::sleep_until(when).await,
            Source::Kernel { timer, set } => {
                if let Err(error) = ring(timer, set, when).await {
                    debug!(%error, "the timer cannot be used");
                    *set = None;
                    tokio::time::sleep_until(when).await;
                }
            }
        }
    }
}

async fn ring(timer: &AsyncFd<Timer>, set: &mut Option<Instant>, when: Instant) -> io::Result<()> {
    loop {
        let left = when.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        if *set != Some(when) {
            // Setting it anew takes back what it told before, so nobody has to read it.
            let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
            timer.get_ref().0.set(expiration, TimerSetTimeFlags::empty())?;
            *set = Some(when);
        }
        // What is told may be of an earlier moment: time decides.
        timer.readable().await?.clear_ready();
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn rings_at_each_moment_and_never_before() {
        for mut alarm in [Alarm::open().unwrap(), Alarm::of_tokio()] {
            let zero = Instant::now();
            for ms in [0, 1, 30, 31, 90] {
                let when = zero + Duration::from_millis(ms);
                alarm.until(when).await;
                assert!(Instant::now() >= when, "{alarm:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_moment_that_was_given_up_makes_no_other_early() {
        let mut alarm = Alarm::open().unwrap();
        let zero = Instant::now();
        let (soon, later) = (zero + Duration::from_millis(20), zero + Duration::from_millis(60));
        assert!(tokio::time::timeout(Duration::from_millis(5), alarm.until(soon)).await.is_err());
        // It rings while nobody waits.
        tokio::time::sleep(Duration::from_millis(30)).await;
        alarm.until(later).await;
        assert!(Instant::now() >= later);
        let sooner = later + Duration::from_millis(10);
        assert!(tokio::time::timeout(Duration::from_millis(5), alarm.until(sooner + LONG)).await.is_err());
        tokio::time::timeout(LONG, alarm.until(sooner)).await.expect("an earlier moment replaces a later one");
    }

    const LONG: Duration = Duration::from_secs(20);
}
