//! ICMP echo on a raw socket of one line and one family. The echo carries all that is needed to understand its
//! answer, so nothing is kept per probe; a filter in the kernel takes in answers to our own echoes and ICMP errors
//! only, whatever else arrives on the line. The kernel notes when an answer came, so nobody has to be woken for it.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use config::model::{Target, TargetKind};
use config::units::{Family, WanId};
use mwan::event::{Failure, Outcome, Probe, Reply};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, recvmmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use socket2::{Protocol, SockFilter, Socket, Type};
use tokio::time::Instant;
use tracing::debug;

use super::{Heard, Line};

/// The echo socket of one line and family.
#[derive(Debug)]
pub(super) struct Pinger {
    socket: Socket,
    stamp: Stamp,
    wan: WanId,
    family: Family,
    /// By target: its address, if it is asked by echo in this family, and the number last sent to it, because an ICMP
    /// error tells the low 16 bits only.
    targets: Vec<(Option<IpAddr>, u64)>,
}

/// Where packets are read to.
#[derive(Debug)]
pub(super) struct Inbox {
    buffers: [[u8; LONGEST]; AT_ONCE],
    headers: MultiHeaders<()>,
}

impl Default for Inbox {
    fn default() -> Self {
        let headers = MultiHeaders::preallocate(AT_ONCE, Some(nix::cmsg_space!(TimeSpec)));
        Self { buffers: [[0; LONGEST]; AT_ONCE], headers }
    }
}

/// What makes an echo ours.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    id: u16,
    /// Nobody who does not see our packets can answer them.
    cookie: u64,
    zero: Instant,
}

impl Pinger {
    pub(super) fn open(line: &Line, wan: WanId, family: Family) -> io::Result<Self> {
        let protocol = match family {
            Family::V4 => Protocol::ICMPV4,
            Family::V6 => Protocol::ICMPV6,
        };
        let socket = line.socket(family, Type::RAW, protocol)?;
        let random = RandomState::new();
        let stamp = Stamp { id: low_half(random.hash_one(0)), cookie: random.hash_one(1), zero: Instant::now() };
        socket.attach_filter(&filter(family, stamp.id))?;
        // The kernel looks at its clock for every packet of the machine then, some 20 ns, as it does for an NTP daemon.
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        let address = |target: &Target| match target.kind {
            TargetKind::Icmp { address } if Family::of(address) == family => Some(address),
            TargetKind::Icmp { .. }
            | TargetKind::Gateway
            | TargetKind::Tcp { .. }
            | TargetKind::Dns { .. }
            | TargetKind::Http { .. } => None,
        };
        let targets = line.targets.iter().map(|target| (address(target), 0)).collect();
        Ok(Self { socket, stamp, wan, family, targets })
    }

    pub(super) fn send(&mut self, probe: &Probe, address: IpAddr) -> io::Result<()> {
        let packet = self.stamp.echo(self.family, probe, self.stamp.zero.elapsed());
        if let Some((_, sent)) = self.targets.get_mut(probe.target) {
            *sent = probe.seq;
        }
        self.socket.send_to(&packet, &SocketAddr::new(address, 0).into())?;
        Ok(())
    }

    /// What has arrived since the last look. Never waits.
    pub(super) fn heard(&self, inbox: &mut Inbox, replies: &mut Vec<Heard>) {
        let Inbox { buffers, headers } = inbox;
        // More than one round of buffers waits after a stall, or when somebody floods the line with ICMP errors, which
        // the filter lets in whatever they are about. What is left is read at the next look.
        for _ in 0..ROUNDS {
            let mut pieces: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let got = recvmmsg(self.socket.as_raw_fd(), headers, pieces.iter_mut(), MsgFlags::MSG_DONTWAIT, None);
            let messages: Vec<_> = match got {
                Ok(messages) => messages.map(|message| (message.bytes, arrival(&message))).collect(),
                Err(Errno::EAGAIN) => return,
                Err(error) => {
                    // ENETDOWN and the like are told once each; a dead socket is replaced by the next send.
                    debug!(wan = %self.wan, %error, "reading echo replies");
                    return;
                }
            };
            for (buffer, (length, arrived)) in buffers.iter().zip(&messages) {
                let waited = arrived.and_then(|arrived| SystemTime::now().duration_since(arrived).ok());
                let packet = &buffer[..(*length).min(LONGEST)];
                let reply = self.understand(packet, self.stamp.zero.elapsed(), waited.unwrap_or_default());
                replies.extend(reply.map(|reply| Heard { reply, waited }));
            }
            if messages.len() < AT_ONCE {
                return;
            }
        }
    }

    /// A packet seen at `now` that had waited for us.
    fn understand(&self, packet: &[u8], now: Duration, waited: Duration) -> Option<Reply> {
        let said = match self.family {
            Family::V4 => self.stamp.understand4(packet),
            Family::V6 => self.stamp.understand6(packet),
        };
        let (target, seq, outcome) = match said? {
            Said::Answer { target, seq, sent_at } => {
                (target, seq, Outcome::Answered { rtt: round_trip(now.saturating_sub(sent_at), waited) })
            }
            Said::Error { to, low } => {
                let target = self.targets.iter().position(|(address, _)| *address == Some(to))?;
                let last = self.targets[target].1;
                let seq = last.checked_sub(u64::from(low_half(last).wrapping_sub(low)))?;
                (target, seq, Outcome::Failed { why: Failure::Unreachable })
            }
        };
        Some(Reply { wan: self.wan, target, seq, outcome })
    }
}

/// When a packet came to the kernel.
fn arrival(message: &RecvMsg<'_, '_, ()>) -> Option<SystemTime> {
    message.cmsgs().ok()?.find_map(|control| {
        let ControlMessageOwned::ScmTimestampns(stamp) = control else { return None };
        SystemTime::UNIX_EPOCH.checked_add(stamp.into())
    })
}

/// What an answer took that we saw after `seen`, and that had waited in its socket for us: a daemon that gets no
/// processor does not make its lines slow. Somebody may have set the clock that the waiting is measured by.
fn round_trip(seen: Duration, waited: Duration) -> Duration {
    seen.checked_sub(waited).unwrap_or(seen)
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Answer {
        target: usize,
        seq: u64,
        sent_at: Duration,
    },
    /// A router could not deliver our echo `low` to `to`.
    Error {
        to: IpAddr,
        low: u16,
    },
}

impl Stamp {
    /// type, code, checksum, id, low 16 bits of the number; then cookie, target, number, time of sending.
    fn echo(self, family: Family, probe: &Probe, now: Duration) -> [u8; ECHO] {
        let mut packet = [0; ECHO];
        packet[0] = match family {
            Family::V4 => 8,
            Family::V6 => 128,
        };
        packet[4..6].copy_from_slice(&self.id.to_be_bytes());
        packet[6..8].copy_from_slice(&low_half(probe.seq).to_be_bytes());
        packet[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        packet[16..24].copy_from_slice(&(probe.target as u64).to_be_bytes());
        packet[24..32].copy_from_slice(&probe.seq.to_be_bytes());
        packet[32..40].copy_from_slice(&u64::try_from(now.as_micros()).unwrap_or(u64::MAX).to_be_bytes());
        // The kernel fills in the checksum of ICMPv6, which covers addresses (RFC 3542, 3.1).
        if family == Family::V4 {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    /// A raw IPv4 socket hands out the IP header too.
    fn understand4(self, packet: &[u8]) -> Option<Said> {
        let icmp = packet.get(usize::from(packet.first()? & 0xf) * 4..)?;
        match icmp.first()? {
            0 => self.answer(icmp),
            3 | 11 => {
                let quoted = icmp.get(8..)?;
                let echo = quoted.get(usize::from(quoted.first()? & 0xf) * 4..)?;
                let to: [u8; 4] = quoted.get(16..20)?.try_into().ok()?;
                (quoted.get(9) == Some(&1) && echo.first() == Some(&8)).then_some(())?;
                self.error(to.into(), echo)
            }
            _ => None,
        }
    }

    fn understand6(self, icmp: &[u8]) -> Option<Said> {
        match icmp.first()? {
            129 => self.answer(icmp),
            1 | 3 => {
                let quoted = icmp.get(8..)?;
                let echo = quoted.get(40..)?;
                let to: [u8; 16] = quoted.get(24..40)?.try_into().ok()?;
                (quoted.get(6) == Some(&58) && echo.first() == Some(&128)).then_some(())?;
                self.error(to.into(), echo)
            }
            _ => None,
        }
    }

    fn answer(self, icmp: &[u8]) -> Option<Said> {
        (number::<2>(icmp, 4)? == u64::from(self.id) && number::<8>(icmp, 8)? == self.cookie).then_some(())?;
        Some(Said::Answer {
            target: usize::try_from(number::<8>(icmp, 16)?).ok()?,
            seq: number::<8>(icmp, 24)?,
            sent_at: Duration::from_micros(number::<8>(icmp, 32)?),
        })
    }

    /// Routers quote at least 8 bytes of the echo (RFC 792); where they quote more, the cookie must be ours.
    fn error(self, to: IpAddr, echo: &[u8]) -> Option<Said> {
        (number::<2>(echo, 4)? == u64::from(self.id)).then_some(())?;
        (number::<8>(echo, 8).is_none_or(|cookie| cookie == self.cookie)).then_some(())?;
        Some(Said::Error { to, low: low_half(number::<2>(echo, 6)?) })
    }
}

/// A big-endian number of `N` bytes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    Some(bytes.get(at..at + N)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The low 16 bits.
fn low_half(number: u64) -> u16 {
    let [.., high, low] = number.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !low_half(sum)
}

/// Passes echo replies with our id, and errors. Classic BPF; an IPv4 packet is seen from its IP header on, an IPv6
/// one from its ICMPv6 header on.
fn filter(family: Family, id: u16) -> [SockFilter; 9] {
    const LOAD_HEADER_LENGTH: u16 = 0xb1; // ldxb 4*([k]&0xf)
    const LOAD_INDEX: u16 = 0x01; // ldx #k
    const LOAD_BYTE: u16 = 0x50; // ldb [x + k]
    const LOAD_HALF: u16 = 0x48; // ldh [x + k]
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALL: u32 = u32::MAX;
    let (start, [reply, unreachable, exceeded]) = match family {
        Family::V4 => (SockFilter::new(LOAD_HEADER_LENGTH, 0, 0, 0), [0, 3, 11]),
        Family::V6 => (SockFilter::new(LOAD_INDEX, 0, 0, 0), [129, 1, 3]),
    };
    [
        start,
        SockFilter::new(LOAD_BYTE, 0, 0, 0),
        SockFilter::new(EQUAL, 3, 0, unreachable),
        SockFilter::new(EQUAL, 2, 0, exceeded),
        SockFilter::new(EQUAL, 0, 3, reply),
        SockFilter::new(LOAD_HALF, 0, 0, 4),
        SockFilter::new(EQUAL, 0, 1, u32::from(id)),
        SockFilter::new(RETURN, 0, 0, ALL),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

const ECHO: usize = 40;
/// Of an answer or an error, as far as we read it: the longest IPv4 header, ICMP's, and the quoted packet's headers.
const LONGEST: usize = 256;
/// Answers taken by one system call; a line has a handful of targets.
const AT_ONCE: usize = 8;
/// Of these, at one look.
const ROUNDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_waited_for_us_took_no_longer_for_it() {
        let ms = Duration::from_millis;
        assert_eq!(round_trip(ms(20), ms(0)), ms(20));
        assert_eq!(round_trip(ms(420), ms(400)), ms(20));
        // The clock was set: what we saw is all we know.
        assert_eq!(round_trip(ms(20), ms(3_600_000)), ms(20));
    }
}
