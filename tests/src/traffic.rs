//! Traffic that measures: single packets, connections opened at a steady pace, a flow of numbered datagrams, and
//! the share of each line among many connections. Everything runs in a namespace and stops by itself or on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Netns;
use crate::world::{Greeting, WHO};

/// A packet to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    Tcp(u16),
    Udp(u16),
    Ping,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The other side answered; a TCP server also said whom it sees.
    Open(Option<Greeting>),
    /// A TCP reset or an ICMP port unreachable.
    Refused,
    /// Any other ICMP error, or no route.
    Unreachable,
    /// Nothing came back in time.
    Silent,
}

impl Answer {
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }
}

/// Sends one packet (for TCP: opens a connection and reads the greeting) from `source`, or from the address the
/// system chooses.
pub fn probe(from: &Netns, source: Option<IpAddr>, to: IpAddr, probe: Probe, patience: Duration) -> Result<Answer> {
    from.enter(|| probe_here(source, to, probe, patience))?
}

/// Many probes at once, answered in their order.
pub fn probe_all(from: &Netns, probes: &[(Option<IpAddr>, IpAddr, Probe)], patience: Duration) -> Result<Vec<Answer>> {
    let next = Mutex::new(0..probes.len());
    let answers = Mutex::new(BTreeMap::new());
    from.enter(|| {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..probes.len().min(64))
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        loop {
                            let Some(index) = lock(&next).next() else { return Ok(()) };
                            let (source, to, kind) = probes[index];
                            let answer = probe_here(source, to, kind, patience)
                                .with_context(|| format!("{kind:?} from {source:?} to {to}"))?;
                            lock(&answers).insert(index, answer);
                        }
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
        })
    })??;
    Ok(answers.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect())
}

fn probe_here(source: Option<IpAddr>, to: IpAddr, probe: Probe, patience: Duration) -> Result<Answer> {
    match probe {
        Probe::Tcp(port) => match connect(source, SocketAddr::new(to, port), patience) {
            Ok((_, greeting)) => Ok(Answer::Open(greeting)),
            Err(error) => verdict(error),
        },
        Probe::Udp(port) => {
            let socket = UdpSocket::bind(SocketAddr::new(source.unwrap_or(unspecified(to)), 0))?;
            socket.set_read_timeout(Some(patience))?;
            let exchange = || {
                socket.connect(SocketAddr::new(to, port))?;
                socket.send(b"anybody there?")?;
                loop {
                    match socket.recv(&mut [0; 64]) {
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        done => return done,
                    }
                }
            };
            exchange().map_or_else(verdict, |_| Ok(Answer::Open(None)))
        }
        Probe::Ping => ping(source, to, patience),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of errors are the standard library's")]
fn verdict(error: std::io::Error) -> Result<Answer> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(Answer::Silent),
        // An end before the greeting is a connection that was cut.
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => Ok(Answer::Refused),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied => {
            Ok(Answer::Unreachable)
        }
        _ => Err(error.into()),
    }
}

/// Opens a TCP connection in the current namespace and reads the greeting; from an HTTP port there is none.
fn connect(
    source: Option<IpAddr>,
    to: SocketAddr,
    patience: Duration,
) -> std::io::Result<(TcpStream, Option<Greeting>)> {
    let deadline = Instant::now() + patience;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&to.into(), patience)?;
    let stream = TcpStream::from(socket);
    if crate::world::HTTP.contains(&to.port()) || to.port() == crate::world::DNS {
        return Ok((stream, None));
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let greeting = line.parse().map_err(|error: anyhow::Error| std::io::Error::new(ErrorKind::UnexpectedEof, error))?;
    Ok((stream, Some(greeting)))
}

/// Opens a connection that stays, to a port that greets and echoes.
pub fn open(from: &Netns, to: SocketAddr, patience: Duration) -> Result<(TcpStream, Greeting)> {
    let (stream, greeting) = from.enter(|| connect(None, to, patience))??;
    Ok((stream, greeting.context("this port does not greet")?))
}

/// Whether what is sent on a connection still comes back in time.
pub fn echoes(stream: &mut TcpStream, patience: Duration) -> bool {
    let exchange = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"!")?;
        stream.read_exact(&mut [0])
    };
    exchange(stream).is_ok()
}

fn ping(source: Option<IpAddr>, to: IpAddr, patience: Duration) -> Result<Answer> {
    static IDENT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = IDENT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let (request, reply, unreachable, protocol) =
        if to.is_ipv4() { (8, 0, 3, Protocol::ICMPV4) } else { (128, 129, 1, Protocol::ICMPV6) };
    let socket = Socket::new(Domain::for_address(SocketAddr::new(to, 0)), Type::RAW, Some(protocol))?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    let mut packet = [request, 0, 0, 0, high, low, 0, 1];
    // For ICMPv6 the kernel writes the checksum, because it knows the addresses.
    if to.is_ipv4() {
        let sum = 0x0800 + u32::from(u16::from_be_bytes([high, low])) + 1;
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(0);
        packet[2..4].copy_from_slice(&(!folded).to_be_bytes());
    }
    let deadline = Instant::now() + patience;
    if let Err(error) = socket.send_to(&packet, &SockAddr::from(SocketAddr::new(to, 0))) {
        return verdict(error);
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Answer::Silent);
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [0; 1500];
        let length = match (&socket).read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return verdict(error),
        };
        // IPv4 raw sockets deliver the IP header, too.
        let skip = if to.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let message = &buffer[skip..length.max(skip)];
        match message {
            [kind, _, _, _, a, b, ..] if *kind == reply && [*a, *b] == [high, low] => return Ok(Answer::Open(None)),
            [kind, _, _, _, _, _, _, _, cause @ ..] if *kind == unreachable => {
                let inner = if to.is_ipv4() { cause.first().map_or(0, |b| usize::from(b & 15) * 4) } else { 40 };
                if cause.get(inner + 4..inner + 6) == Some(&[high, low]) {
                    return Ok(Answer::Unreachable);
                }
            }
            _ => {}
        }
    }
}

/// As [`open`] does, from this address.
pub fn open_from(from: &Netns, source: IpAddr, to: SocketAddr, patience: Duration) -> Result<(TcpStream, Greeting)> {
    let (stream, greeting) = from.enter(|| connect(Some(source), to, patience))??;
    Ok((stream, greeting.context("this port does not greet")?))
}

/// How many of `count` connections to `to` were seen to come from which address.
pub fn distribution(from: &Netns, to: SocketAddr, count: usize) -> Result<BTreeMap<IpAddr, usize>> {
    let left = Mutex::new(0..count);
    let seen = Mutex::new(BTreeMap::new());
    from.enter(|| {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..16)
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        while lock(&left).next().is_some() {
                            let (_, greeting) = connect(None, to, Duration::from_secs(5))?;
                            let peer = greeting.context("this port does not greet")?.peer;
                            *lock(&seen).entry(peer).or_default() += 1;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
        })
    })??;
    Ok(seen.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// A client that opens a TCP connection every so often until it is stopped.
#[derive(Debug)]
pub struct Connections {
    stop: Arc<AtomicBool>,
    client: JoinHandle<Result<Vec<Attempt>>>,
}

/// One connection.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub at: Instant,
    /// How long it took to be greeted, and by which address it was seen; `None` if that took too long.
    pub done: Option<(Duration, IpAddr)>,
}

impl Connections {
    pub fn start(from: &Netns, to: SocketAddr, every: Duration, patience: Duration) -> Self {
        let from = Netns::named(from.name());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let client = thread::spawn(move || {
            from.enter(|| {
                let attempts = Mutex::new(Vec::new());
                thread::scope(|scope| {
                    let mut at = Instant::now();
                    while !stopped.load(Ordering::Relaxed) {
                        let attempts = &attempts;
                        // A slow connection must not delay the next.
                        scope.spawn(move || {
                            let start = Instant::now();
                            let done = connect(None, to, patience).ok().and_then(|(_, greeting)| greeting);
                            let done = done.map(|greeting| (start.elapsed(), greeting.peer));
                            lock(attempts).push(Attempt { at: start, done });
                        });
                        at += every;
                        thread::sleep(at.saturating_duration_since(Instant::now()));
                    }
                });
                let mut attempts = attempts.into_inner().unwrap_or_else(PoisonError::into_inner);
                attempts.sort_by_key(|attempt| attempt.at);
                attempts
            })
        });
        Self { stop, client }
    }

    pub fn stop(self) -> Result<Vec<Attempt>> {
        self.stop.store(true, Ordering::Relaxed);
        self.client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// From `fault` until the start of the first connection after which none failed. Zero if none failed, `None` if the
/// last one did.
pub fn gap(attempts: &[Attempt], fault: Instant) -> Option<Duration> {
    let after: Vec<_> = attempts.iter().filter(|attempt| attempt.at >= fault).collect();
    match after.iter().rposition(|attempt| attempt.done.is_none()) {
        None => Some(Duration::ZERO),
        Some(last) => after.get(last + 1).map(|attempt| attempt.at - fault),
    }
}

/// UDP flows of which one is born every so often. Each repeats its question on the same socket until it is
/// answered.
#[derive(Debug)]
pub struct Births {
    stop: Arc<AtomicBool>,
    client: JoinHandle<Result<Vec<Birth>>>,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Birth {
    pub at: Instant,
    /// How often it had to ask.
    pub asked: u32,
    /// When it was answered first, and by which address it was seen.
    pub answered: Option<(Instant, IpAddr)>,
}

impl Births {
    pub fn start(from: &Netns, to: SocketAddr, every: Duration) -> Self {
        let from = Netns::named(from.name());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let client = thread::spawn(move || from.enter(|| give_birth(to, every, &stopped))?);
        Self { stop, client }
    }

    /// Those that are not answered a second later stay without an answer.
    pub fn stop(self) -> Result<Vec<Birth>> {
        self.stop.store(true, Ordering::Relaxed);
        self.client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn give_birth(to: SocketAddr, every: Duration, stopped: &AtomicBool) -> Result<Vec<Birth>> {
    let mut births: Vec<Birth> = Vec::new();
    let mut open: Vec<(usize, UdpSocket)> = Vec::new();
    let mut next = Instant::now();
    let mut end = None;
    loop {
        let now = Instant::now();
        if end.is_none() && stopped.load(Ordering::Relaxed) {
            end = Some(now + Duration::from_secs(1));
        }
        if end.is_some_and(|end| now > end || open.is_empty()) {
            return Ok(births);
        }
        if now >= next {
            if end.is_none() {
                let socket = UdpSocket::bind(SocketAddr::new(unspecified(to.ip()), 0))?;
                socket.connect(to)?;
                socket.set_nonblocking(true)?;
                open.push((births.len(), socket));
                births.push(Birth { at: now, asked: 0, answered: None });
            }
            for (index, socket) in &open {
                send(socket, WHO);
                births[*index].asked += 1;
            }
            next += every;
        }
        open.retain(|(index, socket)| {
            births[*index].answered = greeting(socket).map(|greeting| (Instant::now(), greeting.peer));
            births[*index].answered.is_none()
        });
        thread::sleep(Duration::from_millis(1));
    }
}

/// A UDP socket in a namespace, connected to an echo server.
pub fn datagrams(from: &Netns, source: Option<IpAddr>, to: SocketAddr) -> Result<UdpSocket> {
    let socket = from.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(source.unwrap_or(unspecified(to.ip())), 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        std::io::Result::Ok(socket)
    })??;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    Ok(socket)
}

/// By which address the other side sees the flow of this socket: by which line it goes.
pub fn seen_as(socket: &UdpSocket, patience: Duration) -> Result<IpAddr> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        send(socket, WHO);
        if let Some(greeting) = greeting(socket) {
            return Ok(greeting.peer);
        }
    }
    bail!("nobody answers {:?} after {patience:?}", socket.local_addr())
}

fn greeting(socket: &UdpSocket) -> Option<Greeting> {
    let mut answer = [0; 256];
    let length = socket.recv(&mut answer).ok()?;
    std::str::from_utf8(&answer[..length]).ok()?.parse().ok()
}

fn send(socket: &UdpSocket, datagram: &[u8]) {
    // An ICMP error of an earlier datagram is reported by this call, which then sends nothing.
    if socket.send(datagram).is_err() {
        drop(socket.send(datagram));
    }
}

/// A flow of numbered datagrams to a UDP echo server.
#[derive(Debug)]
pub struct UdpFlow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<Vec<(u32, Instant)>>,
    source: SocketAddr,
}

/// What became of a [`UdpFlow`].
#[derive(Debug, Clone)]
pub struct FlowReport {
    pub sent: u32,
    /// Numbers that never came back.
    pub lost: BTreeSet<u32>,
    pub duplicates: usize,
    /// The longest time between two answers.
    pub silence: Duration,
    /// From the sending of the first that was lost to the sending of the first after the last that was lost.
    pub hole: Option<(Instant, Instant)>,
}

impl UdpFlow {
    /// Sends `rate` datagrams per second until stopped.
    pub fn start(from: &Netns, source: Option<IpAddr>, to: SocketAddr, rate: u32) -> Result<Self> {
        Self::on(&datagrams(from, source, to)?, rate)
    }

    /// The same on a socket that is there.
    pub fn on(socket: &UdpSocket, rate: u32) -> Result<Self> {
        let source = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (out, stopped) = (socket.try_clone()?, Arc::clone(&stop));
        let sender = thread::spawn(move || {
            let every = Duration::from_secs(1) / rate;
            let mut at = Instant::now();
            let mut sent = Vec::new();
            for number in 0..u32::MAX {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                sent.push(Instant::now());
                send(&out, &number.to_be_bytes());
                at += every;
                thread::sleep(at.saturating_duration_since(Instant::now()));
            }
            sent
        });
        let (socket, stopped) = (socket.try_clone()?, Arc::clone(&stop));
        let receiver = thread::spawn(move || {
            let mut got = Vec::new();
            let mut end = None;
            // What is on its way when the sender stops gets half a second.
            while end.is_none_or(|end| Instant::now() < end) {
                if end.is_none() && stopped.load(Ordering::Relaxed) {
                    end = Some(Instant::now() + crate::patience(Duration::from_millis(500)));
                }
                let mut number = [0; 4];
                if let Ok(4) = socket.recv(&mut number) {
                    got.push((u32::from_be_bytes(number), Instant::now()));
                }
            }
            got
        });
        Ok(Self { stop, sender, receiver, source })
    }

    /// The flow's own end.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    pub fn stop(self) -> FlowReport {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let got = self.receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        FlowReport::new(&sent, &got)
    }
}

impl FlowReport {
    fn new(sent: &[Instant], got: &[(u32, Instant)]) -> Self {
        let mut lost: BTreeSet<u32> = (0..).take(sent.len()).collect();
        let duplicates = got.iter().filter(|(number, _)| !lost.remove(number)).count();
        let silence = got.windows(2).map(|pair| pair[1].1 - pair[0].1).max().unwrap_or_default();
        let time = |number: u32| usize::try_from(number).ok().and_then(|number| sent.get(number).copied());
        let hole = lost.first().zip(lost.last()).and_then(|(first, last)| {
            // A flow that is lost to its end has no better end than its last datagram.
            Some((time(*first)?, time(last + 1).or(time(*last))?))
        });
        Self { sent: u32::try_from(sent.len()).unwrap_or(u32::MAX), lost, duplicates, silence, hole }
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// A worker that panicked is reported where it is joined; what the others hold is still good.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a slow machine may leave unread for a second.
const BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_reaches_from_the_first_lost_to_the_first_good_one() {
        let start = Instant::now();
        let sent: Vec<_> = (0..10).map(|ms| start + Duration::from_millis(ms)).collect();
        let report = |got: &[u32]| FlowReport::new(&sent, &got.iter().map(|n| (*n, start)).collect::<Vec<_>>());
        assert_eq!(report(&[0, 1, 2, 5, 8, 9]).hole, Some((sent[3], sent[8])));
        assert_eq!(report(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).hole, None);
        assert_eq!(report(&[0]).hole, Some((sent[1], sent[9])));
    }

    #[test]
    fn a_gap_ends_with_the_first_connection_after_the_last_failure() {
        let fault = Instant::now();
        let attempt = |ms: u64, good: bool| Attempt {
            at: fault + Duration::from_millis(ms),
            done: good.then(|| (Duration::from_millis(1), "192.0.2.1".parse().unwrap())),
        };
        let attempts = [attempt(0, true), attempt(10, false), attempt(20, true), attempt(30, false), attempt(40, true)];
        assert_eq!(gap(&attempts, fault), Some(Duration::from_millis(40)));
        assert_eq!(gap(&attempts[..1], fault), Some(Duration::ZERO));
        assert_eq!(gap(&attempts[..4], fault), None);
    }
}
