//! What the packet path notices of the lines, told to the event loop: silences at once, the rest twice a second.
//!
//! One task. It only reads; cancelling it loses at most half a second of counts.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::units::{Family, WanId};
use ebpf::abi::{self, LineCount, Passive};
use ebpf::{Maps, Records};
use mwan::event::Event;
use mwan::passive::Tally;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, warn};

use crate::kernel::fast_path::{Watcher, readable};

/// Until the event loop is gone.
pub async fn watch(watcher: Watcher, config: watch::Receiver<Option<Arc<Config>>>, events: mpsc::Sender<Event>) {
    watcher.follow(|pins| read(pins, config.clone(), events.clone())).await;
}

async fn read(pins: PathBuf, config: watch::Receiver<Option<Arc<Config>>>, events: mpsc::Sender<Event>) {
    let (mut ring, maps) = match open(&pins) {
        Ok(opened) => opened,
        Err(error) => {
            warn!(%error, "the traffic of the lines cannot be watched");
            return std::future::pending().await;
        }
    };
    let mut reports = tokio::time::interval(EVERY);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lines = Lines::default();
    let count = |slot| maps.line(slot).inspect_err(|error| debug!(%error, "a line is not counted")).ok();
    loop {
        tokio::select! {
            ready = ring.readable_mut() => {
                let Ok(mut ready) = ready else { return };
                while let Some(record) = ready.get_inner_mut().next() {
                    if let Some(event) = lines.record(&record) && events.send(event).await.is_err() {
                        return;
                    }
                }
                ready.clear_ready();
            }
            at = reports.tick() => {
                let wans: Vec<_> =
                    config.borrow().iter().flat_map(|config| config.wans.values()).map(|wan| wan.id).collect();
                let report = lines.report(&wans, at, count);
                if let Some(event) = report && events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn open(pins: &Path) -> io::Result<(AsyncFd<Records<Passive>>, Maps)> {
    let ring = Records::open(pins).map_err(io::Error::other)?;
    Ok((readable(ring)?, Maps::open(pins).map_err(io::Error::other)?))
}

/// Records and counters, on their way to become events.
#[derive(Debug, Default)]
struct Lines {
    tally: Tally,
    counted: BTreeMap<u32, LineCount>,
    last: Option<Instant>,
}

impl Lines {
    /// What cannot wait for the next report.
    fn record(&mut self, record: &Passive) -> Option<Event> {
        let (wan, family) = line(record.slot)?;
        let span = Duration::from_nanos(record.span);
        match record.kind {
            Passive::SILENT => return Some(Event::Silence { wan, family, flows: record.flows, span }),
            Passive::HANDSHAKE => self.tally.handshake(wan, server(record, family), span),
            Passive::RESENT => self.tally.resent(wan, server(record, family)),
            _ => {}
        }
        None
    }

    /// What happened since the last report, if that is worth one.
    fn report(&mut self, wans: &[WanId], at: Instant, read: impl Fn(u32) -> Option<LineCount>) -> Option<Event> {
        for (wan, family) in wans.iter().flat_map(|wan| Family::ALL.map(|family| (*wan, family))) {
            let slot = abi::slot(wan.get(), family == Family::V6);
            let Some(count) = read(slot) else { continue };
            let Some(before) = self.counted.insert(slot, count) else { continue };
            let sent = count.sent.bytes.saturating_sub(before.sent.bytes);
            let received = count.received.bytes.saturating_sub(before.received.bytes);
            // Probes and their answers are no traffic.
            if sent + received >= LITTLE {
                self.tally.carried(wan, family, count.segments.saturating_sub(before.segments), sent, received);
            }
        }
        let span = self.last.replace(at).map_or(EVERY, |last| at - last);
        let report = self.tally.take(span);
        (!report.is_empty()).then_some(Event::Traffic(report))
    }
}

/// The line that a slot stands for.
fn line(slot: u32) -> Option<(WanId, Family)> {
    let family = if slot.is_multiple_of(2) { Family::V4 } else { Family::V6 };
    Some((WanId::new(u8::try_from(slot / 2).ok()?)?, family))
}

fn server(record: &Passive, family: Family) -> IpAddr {
    let [a, b, c, d, ..] = record.remote;
    match family {
        Family::V4 => Ipv4Addr::new(a, b, c, d).into(),
        Family::V6 => Ipv6Addr::from(record.remote).into(),
    }
}

const EVERY: Duration = Duration::from_millis(500);
/// Bytes per report.
const LITTLE: u64 = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, slot: u32) -> Passive {
        let remote = [198, 51, 100, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Passive { at: 0, kind, slot, span: 150_000_000, flows: 9, _0: 0, remote }
    }

    fn counted(bytes: u64) -> LineCount {
        LineCount { received: abi::Count { packets: 1, bytes }, ..LineCount::default() }
    }

    #[test]
    fn a_silence_is_an_event_at_once() {
        let slot = abi::slot(3, true);
        let event = Lines::default().record(&record(Passive::SILENT, slot));
        let (wan, span) = (WanId::new(3).unwrap(), Duration::from_millis(150));
        assert_eq!(event, Some(Event::Silence { wan, family: Family::V6, flows: 9, span }));
        assert_eq!(Lines::default().record(&record(Passive::SILENT, 0)), None, "flows that use no line have none");
    }

    #[tokio::test]
    async fn a_report_holds_what_came_since_the_last_and_idle_lines_report_nothing() {
        let (mut lines, now, wan) = (Lines::default(), Instant::now(), WanId::new(1).unwrap());
        assert_eq!(lines.report(&[wan], now, |_| Some(counted(1 << 40))), None, "of before there was a reader");
        assert_eq!(lines.record(&record(Passive::HANDSHAKE, abi::slot(1, false))), None);
        let later = now + Duration::from_secs(1);
        let Some(Event::Traffic(report)) = lines.report(&[wan], later, |_| Some(counted((1 << 40) + 50_000))) else {
            panic!("no report");
        };
        let [four, six] = report.as_slice() else { panic!("{report:?}") };
        assert_eq!((four.received, six.received, four.servers), (50_000, 50_000, 1));
        assert_eq!((four.span, four.rtt), (Duration::from_secs(1), Some(Duration::from_millis(150))));
        let more = later + EVERY;
        assert_eq!(lines.report(&[wan], more, |_| Some(counted((1 << 40) + 51_000))), None, "probes alone");
    }
}
