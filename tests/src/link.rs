//! What can be wrong with a line, and the emulator that makes a line slow.
//!
//! Loss, blackholes and filters are nft rules on the customer side of the ISP (`Fault::ruleset`). For delay the ISP
//! routes what it forwards, both ways, over a pair of veth whose far end is held by [`emulate`], which hands every
//! frame back after a while. The kernel the tests run on need not have netem for that.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::str::FromStr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};

/// One way for a line to be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The cable is out.
    Carrier,
    /// The cable is in; nothing passes, not even ARP.
    Blackhole,
    /// This many percent of the packets are lost, each way.
    Loss(u8),
    /// Round trips take this much longer, half of it each way; `jitter` is the most that chance adds each way.
    Delay { delay: Duration, jitter: Duration },
    /// Port 53 is dropped.
    Dns,
    /// Ports 80 and 443 are dropped.
    Http,
}

impl Fault {
    /// The nft statements that drop what this fault drops, for packets from the customer and to it.
    fn rules(self) -> Option<(String, String)> {
        let ports = |ports: &str| {
            Some((
                format!("meta l4proto {{ tcp, udp }} th dport {ports} drop"),
                format!("meta l4proto {{ tcp, udp }} th sport {ports} drop"),
            ))
        };
        match self {
            Self::Carrier | Self::Delay { .. } => None,
            Self::Blackhole => Some(("drop".into(), "drop".into())),
            Self::Loss(percent) => {
                let rule = format!("numgen random mod 100 < {percent} drop");
                Some((rule.clone(), rule))
            }
            Self::Dns => ports("53"),
            Self::Http => ports("{ 80, 443 }"),
        }
    }

    /// The whole nft script of a line with these faults. Loading it replaces whatever faults were there.
    pub fn ruleset(faults: &[Self], interface: &str) -> String {
        let cleared = "table netdev faults\ndelete table netdev faults\n";
        let rules: Vec<_> = faults.iter().filter_map(|fault| fault.rules()).collect();
        if rules.is_empty() {
            return cleared.to_owned();
        }
        let (from, to): (Vec<_>, Vec<_>) = rules.into_iter().unzip();
        let chain = |hook: &str, rules: &[String]| {
            let rules = rules.join("\n");
            format!("chain {hook} {{\ntype filter hook {hook} device \"{interface}\" priority 0\n{rules}\n}}\n")
        };
        format!("{cleared}table netdev faults {{\n{}{}}}\n", chain("ingress", &from), chain("egress", &to))
    }

    /// Whether both are the same kind of fault, so that one replaces the other.
    pub fn same_kind(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Carrier => f.write_str("carrier"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Loss(percent) => write!(f, "loss={percent}"),
            Self::Delay { delay, jitter } if jitter.is_zero() => write!(f, "delay={}", delay.as_millis()),
            Self::Delay { delay, jitter } => write!(f, "delay={}/{}", delay.as_millis(), jitter.as_millis()),
            Self::Dns => f.write_str("dns"),
            Self::Http => f.write_str("http"),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let milliseconds = |text: &str| {
            text.parse().map(Duration::from_millis).map_err(|error| format!("{text:?} is no number of ms: {error}"))
        };
        match text.split_once('=') {
            None if text == "carrier" => Ok(Self::Carrier),
            None if text == "blackhole" => Ok(Self::Blackhole),
            None if text == "dns" => Ok(Self::Dns),
            None if text == "http" => Ok(Self::Http),
            Some(("loss", percent)) => match percent.parse() {
                Ok(percent @ 0..=100) => Ok(Self::Loss(percent)),
                Ok(_) | Err(_) => Err(format!("loss is 0 to 100 percent, not {percent:?}")),
            },
            Some(("delay", delay)) => {
                let (delay, jitter) = delay.split_once('/').unwrap_or((delay, "0"));
                Ok(Self::Delay { delay: milliseconds(delay)?, jitter: milliseconds(jitter)? })
            }
            None | Some(_) => Err(format!(
                "{text:?} is no fault; there are carrier, blackhole, loss=PERCENT, delay=MS, delay=MS/JITTER, dns and http"
            )),
        }
    }
}

/// Holds `interface` and hands every IP frame that was sent to it to its peer (at `peer`) after `delay`, in order.
/// Returns only with an error.
pub fn emulate(interface: &str, peer: [u8; 6], delay: Duration, jitter: Duration, ready: impl FnOnce()) -> Result<()> {
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("no interface {interface} here"))?;
    let own = address.addr().with_context(|| format!("{interface} has no hardware address"))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    bind(socket.as_raw_fd(), &address)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::SndBuf, &BUFFER)?;

    let (queue, due) = mpsc::channel::<(Instant, Vec<u8>)>();
    let out = socket.try_clone()?;
    std::thread::spawn(move || {
        for (time, frame) in due {
            std::thread::sleep(time.saturating_duration_since(Instant::now()));
            // A frame the link cannot take is lost, as on a line.
            let _lost = sendmsg::<()>(out.as_raw_fd(), &[IoSlice::new(&frame)], &[], MsgFlags::empty(), None).is_err();
        }
    });

    ready();
    let mut buffer = vec![0; 1 << 16];
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut last = Instant::now();
    loop {
        let length =
            recvmsg::<()>(socket.as_raw_fd(), &mut [IoSliceMut::new(&mut buffer)], None, MsgFlags::empty())?.bytes;
        let frame = &mut buffer[..length];
        // The socket hears what it sends, too; only frames sent to this end are to be handed back.
        if length < 14 || frame[..6] != own {
            continue;
        }
        frame[..6].copy_from_slice(&peer);
        frame[6..12].copy_from_slice(&own);
        let time = Instant::now() + delay + jitter.mul_f64(chance.next());
        last = last.max(time);
        if queue.send((last, frame.to_vec())).is_err() {
            return Ok(());
        }
    }
}

/// A small random number generator (splitmix64): the emulator's jitter must not follow a pattern, no more.
struct Chance(u64);

impl Chance {
    /// 0 up to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let top = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(u32::MAX);
        f64::from(top) / (f64::from(u32::MAX) + 1.0)
    }
}

/// Enough for 100 ms of a gigabit line.
const BUFFER: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_as_it_is_written() {
        for text in ["carrier", "blackhole", "loss=30", "delay=80", "delay=80/20", "dns", "http"] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for text in ["", "loss", "loss=101", "loss=-1", "delay=x", "carrier=1"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_line_without_faults_has_no_rules() {
        assert_eq!(Fault::ruleset(&[Fault::Carrier], "cust").matches("chain").count(), 0);
        let script = Fault::ruleset(&[Fault::Loss(5), Fault::Dns], "cust");
        assert_eq!(script.matches("numgen random mod 100 < 5 drop").count(), 2, "{script}");
        assert_eq!(script.matches("dport 53").count(), 1, "{script}");
        assert_eq!(script.matches("sport 53").count(), 1, "{script}");
    }

    #[test]
    fn chance_stays_below_one_and_spreads() {
        let mut chance = Chance(1);
        let numbers: Vec<f64> = (0..1000).map(|_| chance.next()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        let mean = numbers.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }
}
