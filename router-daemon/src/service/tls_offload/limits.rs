//! How much one source may have: handshakes begun a second, and connections at once. Pure; time comes in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use config::model::{Rate, TlsLimits};

use super::tally::Refused;

/// What each source has and had. At most [`SOURCES`] are known; those that have nothing and may do everything are
/// forgotten to make room, and while there is none a stranger is refused.
#[derive(Debug)]
pub(super) struct Sources {
    known: BTreeMap<IpAddr, Source>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Source {
    /// Handshakes it may begin.
    tokens: f64,
    at: Instant,
    connections: u32,
}

impl Source {
    fn refilled(&self, rate: Rate, now: Instant) -> f64 {
        let more = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(rate.per_second);
        (self.tokens + more).min(f64::from(rate.burst))
    }
}

impl Sources {
    pub(super) fn new() -> Self {
        Self { known: BTreeMap::new(), swept: None }
    }

    /// One more connection of this address; what was admitted must [`leave`](Self::leave).
    pub(super) fn admit(&mut self, from: IpAddr, limits: &TlsLimits, now: Instant) -> Result<(), Refused> {
        let rate = limits.handshakes;
        let from = whose(from);
        if !self.known.contains_key(&from) && self.known.len() >= SOURCES {
            self.sweep(rate, now);
            if self.known.len() >= SOURCES {
                return Err(Refused::Sources);
            }
        }
        let source = self.known.entry(from);
        let source = source.or_insert(Source { tokens: f64::from(rate.burst), at: now, connections: 0 });
        if limits.connections_per_source.is_some_and(|most| source.connections >= most) {
            return Err(Refused::SourceConnections);
        }
        let tokens = source.refilled(rate, now);
        (source.tokens, source.at) = (tokens, now);
        if tokens < 1.0 {
            return Err(Refused::HandshakeRate);
        }
        source.tokens -= 1.0;
        source.connections += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self, from: IpAddr) {
        if let Some(source) = self.known.get_mut(&whose(from)) {
            source.connections = source.connections.saturating_sub(1);
        }
    }

    fn sweep(&mut self, rate: Rate, now: Instant) {
        if self.swept.is_some_and(|before| now.saturating_duration_since(before) < BETWEEN_SWEEPS) {
            return;
        }
        self.swept = Some(now);
        let full = f64::from(rate.burst);
        self.known.retain(|_, source| source.connections > 0 || source.refilled(rate, now) < full);
    }
}

/// A host has one IPv4 address, and a whole /64 of IPv6.
fn whose(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

const SOURCES: usize = 65_536;
const BETWEEN_SWEEPS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(per_second: u32, burst: u32, each: Option<u32>) -> TlsLimits {
        TlsLimits { handshakes: Rate { per_second, burst }, connections_per_source: each, ..TlsLimits::default() }
    }

    #[test]
    fn a_source_begins_its_burst_and_then_its_rate() {
        let (mut sources, start) = (Sources::new(), Instant::now());
        let limits = limits(10, 20, None);
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        // Ten times the rate, for ten seconds.
        let admitted =
            (0..1000_u64).filter(|n| sources.admit(one, &limits, start + Duration::from_millis(n * 10)).is_ok());
        let admitted = admitted.count();
        assert!((118..=120).contains(&admitted), "{admitted}");
        let late = start + Duration::from_millis(9_990);
        assert_eq!(sources.admit(one, &limits, late), Err(Refused::HandshakeRate));
        assert_eq!(sources.admit(other, &limits, late), Ok(()));
        // A clock that goes back gives nothing and takes nothing.
        assert_eq!(sources.admit(other, &limits, start), Ok(()));
    }

    #[test]
    fn addresses_of_one_slash_64_are_one_source() {
        let (mut sources, now) = (Sources::new(), Instant::now());
        let limits = limits(1, 1, None);
        let of = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(sources.admit(of("fd00:0:0:1::1"), &limits, now), Ok(()));
        assert_eq!(sources.admit(of("fd00:0:0:1:ffff::2"), &limits, now), Err(Refused::HandshakeRate));
        assert_eq!(sources.admit(of("fd00:0:0:2::1"), &limits, now), Ok(()));
        assert_eq!(sources.admit(of("10.0.0.1"), &limits, now), Ok(()));
        assert_eq!(sources.admit(of("10.0.0.2"), &limits, now), Ok(()));
    }

    #[test]
    fn who_leaves_makes_room() {
        let (mut sources, now) = (Sources::new(), Instant::now());
        let limits = limits(100, 100, Some(2));
        let one: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(sources.admit(one, &limits, now), Ok(()));
        assert_eq!(sources.admit(one, &limits, now), Ok(()));
        assert_eq!(sources.admit(one, &limits, now), Err(Refused::SourceConnections));
        sources.leave(one);
        assert_eq!(sources.admit(one, &limits, now), Ok(()));
    }

    #[test]
    fn a_flood_of_sources_is_bounded_and_passes() {
        let (mut sources, now) = (Sources::new(), Instant::now());
        let limits = limits(10, 10, None);
        let address = |number: u32| IpAddr::V4(number.into());
        let most = u32::try_from(SOURCES).unwrap();
        for number in 0..most {
            assert_eq!(sources.admit(address(number), &limits, now), Ok(()));
            sources.leave(address(number));
        }
        assert_eq!(sources.admit(address(most), &limits, now), Err(Refused::Sources));
        // Who is known goes on; in a moment the others are forgotten.
        assert_eq!(sources.admit(address(0), &limits, now), Ok(()));
        assert_eq!(sources.admit(address(most), &limits, now + Duration::from_secs(2)), Ok(()));
        assert_eq!(sources.known.len(), 2);
    }
}
