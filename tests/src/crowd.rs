//! Many UDP flows from one socket, each to an address of its own, and a tap that tells which of their datagrams came
//! by a place.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::netns::Netns;
use crate::world::{Greeting, WHO};

/// The flows, before they are busy.
#[derive(Debug)]
pub struct Crowd {
    socket: UdpSocket,
    to: Vec<SocketAddr>,
}

/// The flows take turns sending; datagram `n` is of flow `n % len`.
#[derive(Debug)]
pub struct Busy {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<BTreeSet<u32>>,
}

/// What became of their datagrams.
#[derive(Debug)]
pub struct Talk {
    /// When each was about to be sent.
    pub sent: Vec<Instant>,
    /// The numbers of those that were answered.
    pub answered: BTreeSet<u32>,
}

impl Crowd {
    /// To this port of each address.
    pub fn open(from: &Netns, to: impl Iterator<Item = Ipv4Addr>, port: u16) -> Result<Self> {
        let socket = from.enter(|| UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        Ok(Self { socket, to: to.map(|address| SocketAddr::from((address, port))).collect() })
    }

    /// By which address each flow is seen.
    pub fn seen_as(&self, patience: Duration) -> Result<Vec<IpAddr>> {
        let deadline = Instant::now() + patience;
        let mut seen = BTreeMap::new();
        while seen.len() < self.to.len() {
            if Instant::now() > deadline {
                bail!("of {} flows, {} are not answered", self.to.len(), self.to.len() - seen.len());
            }
            for to in self.to.iter().filter(|to| !seen.contains_key(*to)) {
                self.socket.send_to(WHO, to)?;
            }
            let mut answer = [0; 256];
            while let Some((length, from)) = received(self.socket.recv_from(&mut answer))? {
                let text = std::str::from_utf8(&answer[..length])?;
                seen.insert(from, text.parse::<Greeting>()?.peer);
            }
        }
        self.to.iter().map(|to| seen.get(to).copied().context("an answer by somebody else")).collect()
    }

    /// Together they send `rate` datagrams a second, until stopped.
    pub fn start(&self, rate: u32) -> Result<Busy> {
        let stop = Arc::new(AtomicBool::new(false));
        let (out, to, stopped) = (self.socket.try_clone()?, self.to.clone(), Arc::clone(&stop));
        let sender = thread::spawn(move || {
            let every = Duration::from_secs(1) / rate;
            let mut at = Instant::now();
            let mut sent = Vec::new();
            for (number, to) in (0_u32..).zip(to.iter().cycle()) {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                sent.push(Instant::now());
                // What cannot be sent is missed where it is counted.
                drop(out.send_to(&number.to_be_bytes(), to));
                at += every;
                thread::sleep(at.saturating_duration_since(Instant::now()));
            }
            sent
        });
        let (socket, stopped) = (self.socket.try_clone()?, Arc::clone(&stop));
        let receiver = thread::spawn(move || {
            let mut answered = BTreeSet::new();
            let mut end = None;
            // What is on its way when the sender stops gets half a second.
            while end.is_none_or(|end| Instant::now() < end) {
                if end.is_none() && stopped.load(Ordering::Relaxed) {
                    end = Some(Instant::now() + Duration::from_millis(500));
                }
                let mut number = [0; 4];
                if let Ok(4) = socket.recv(&mut number) {
                    answered.insert(u32::from_be_bytes(number));
                }
            }
            answered
        });
        Ok(Busy { stop, sender, receiver })
    }
}

impl Busy {
    pub fn stop(self) -> Talk {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let answered = self.receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Talk { sent, answered }
    }
}

/// Hears the datagrams of a crowd where they come in, before anything there drops them.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    ear: JoinHandle<Result<BTreeSet<u32>>>,
}

impl Tap {
    /// Of datagrams to `port`.
    pub fn open(place: &Netns, interface: &'static str, port: u16) -> Result<Self> {
        let socket = place.enter(|| -> Result<_> {
            let kind = (AddressFamily::Packet, SockType::Raw, SockProtocol::EthAll);
            let socket = nix::sys::socket::socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, kind.2)?;
            let address = nix::ifaddrs::getifaddrs()?
                .filter(|entry| entry.interface_name == interface)
                .find_map(|entry| entry.address?.as_link_addr().copied());
            bind(socket.as_raw_fd(), &address.with_context(|| format!("no interface {interface} here"))?)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
            Ok(socket)
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let ear = thread::spawn(move || {
            let mut heard = BTreeSet::new();
            let mut frame = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                    Ok(length) => heard.extend(number(&frame[..length], port)),
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(heard)
        });
        Ok(Self { stop, ear })
    }

    /// The numbers of the datagrams that came by.
    pub fn close(self) -> Result<BTreeSet<u32>> {
        self.stop.store(true, Ordering::Relaxed);
        self.ear.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Of a frame with a datagram of a crowd: IPv4 without options, UDP, four bytes.
fn number(frame: &[u8], port: u16) -> Option<u32> {
    let [.., 0x08, 0x00, 0x45, _] = frame.get(..16)? else { return None };
    let to = u16::from_be_bytes(frame.get(36..38)?.try_into().ok()?);
    let length = u16::from_be_bytes(frame.get(38..40)?.try_into().ok()?);
    (frame.get(23) == Some(&17) && to == port && length == 12)
        .then(|| Some(u32::from_be_bytes(frame.get(42..46)?.try_into().ok()?)))
        .flatten()
}

fn received<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a slow machine may leave unread for a second.
const BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_knows_the_datagrams_of_a_crowd() {
        let mut frame = vec![0; 60];
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[23] = 17;
        frame[36..40].copy_from_slice(&[0x1b, 0x58, 0, 12]);
        frame[42..46].copy_from_slice(&[0, 0, 1, 2]);
        assert_eq!(number(&frame, 7000), Some(258));
        assert_eq!(number(&frame, 7001), None);
        assert_eq!(number(&frame[..45], 7000), None);
        frame[39] = 20;
        assert_eq!(number(&frame, 7000), None);
    }
}
