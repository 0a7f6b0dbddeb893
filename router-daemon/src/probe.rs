//! Sends what the core asks for, each probe by its own line, and tells what came of it. Decides nothing: what an
//! answer or a silence means is `mwan`'s.
//!
//! Every socket is bound to the line's device, carries the line's mark with [`Mark::PROBE`] and leaves from the
//! line's own address, so that four lines with one gateway, or one address, stay four lines. A probe that gets no
//! answer is simply forgotten here: the core has counted it as lost by then.

mod http;
mod ping;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::model::{Target, TargetKind};
use config::units::{Family, IfName, Mark, WanId};
use mwan::event::{Failure, Outcome, Probe, Reply};
use mwan::links::Links;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

use self::ping::{Inbox, Pinger};
use crate::kernel::watch::{Asker, Neighbour};
use crate::resolve;

/// All probes of all lines. Dropping it ends them.
#[derive(Debug)]
pub struct Prober {
    lines: BTreeMap<WanId, Line>,
    pingers: BTreeMap<(WanId, Family), Pinger>,
    echoes: Echoes,
    replies: mpsc::Sender<Reply>,
    /// By name.
    indexes: BTreeMap<IfName, u32>,
    asker: Asker,
    /// Gateways that were asked to show themselves.
    asked: Vec<Asked>,
    /// One task for each connection under way.
    tasks: BTreeMap<WanId, JoinSet<()>>,
    slots: Arc<Semaphore>,
    tls: Option<Arc<tokio_rustls::rustls::ClientConfig>>,
}

impl Prober {
    /// Replies go to `replies`; the probes' sockets need `CAP_NET_RAW` and `CAP_NET_ADMIN`.
    pub fn new(replies: mpsc::Sender<Reply>) -> Self {
        Self {
            lines: BTreeMap::new(),
            pingers: BTreeMap::new(),
            echoes: Echoes::default(),
            indexes: BTreeMap::new(),
            asker: Asker::default(),
            asked: Vec::new(),
            replies,
            tasks: BTreeMap::new(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            tls: None,
        }
    }

    /// The lines and targets to probe from here on. What is under way for a line that changed is given up, because
    /// its target numbers may mean something else.
    pub fn configure(&mut self, config: &Config) {
        let lines: BTreeMap<WanId, Line> = config
            .wans
            .values()
            .map(|wan| {
                let line = Line {
                    interface: wan.interface.clone(),
                    mark: Mark(Mark::PROBE | wan.id.mark().0),
                    source4: wan.source(Family::V4),
                    source6: wan.source(Family::V6),
                    gateway4: wan.gateway(Family::V4),
                    gateway6: wan.gateway(Family::V6),
                    targets: wan.probe.targets.clone(),
                };
                (wan.id, line)
            })
            .collect();
        if lines == self.lines {
            return;
        }
        let before = std::mem::replace(&mut self.lines, lines);
        let same = |wan: &WanId| before.get(wan) == self.lines.get(wan);
        self.tasks.retain(|wan, _| same(wan));
        self.asked.retain(|asked| same(&asked.probe.wan));
        self.pingers.retain(|(wan, _), _| same(wan));
    }

    /// Gateways are asked by the index of their link.
    pub fn follow(&mut self, links: &Links) {
        self.indexes = links.0.iter().map(|(name, link)| (name.clone(), link.index)).collect();
    }

    /// Sends one probe. Never waits.
    pub fn send(&mut self, probe: &Probe) {
        let Some(line) = self.lines.get(&probe.wan) else { return };
        let Some(target) = line.targets.get(probe.target) else { return };
        match &target.kind {
            TargetKind::Icmp { address } => {
                if let Err(error) = self.ping(probe, *address) {
                    self.cannot_send(probe, &error);
                }
            }
            TargetKind::Gateway => {
                let asked = Asked { probe: probe.clone(), family: target.family, at: Instant::now() };
                let place = self.indexes.get(&line.interface).zip(line.gateway(target.family));
                let place = place.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into());
                match place.and_then(|(link, gateway)| self.asker.reconfirm(*link, gateway)) {
                    Ok(()) => {
                        self.asked.retain(|asked| asked.at.elapsed() < asked.probe.timeout);
                        self.asked.push(asked);
                    }
                    Err(error) => self.cannot_send(probe, &error),
                }
            }
            TargetKind::Tcp { .. } | TargetKind::Dns { .. } | TargetKind::Http { .. } => {
                let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                    warn!(limit = AT_ONCE, "too many probes under way: one was not sent");
                    return;
                };
                let tls = matches!(&target.kind, TargetKind::Http { tls: true, .. })
                    .then(|| Arc::clone(self.tls.get_or_insert_with(http::trust)));
                let line = line.clone();
                let target = target.clone();
                let (probe, replies) = (probe.clone(), self.replies.clone());
                let tasks = self.tasks.entry(probe.wan).or_default();
                while tasks.try_join_next().is_some() {}
                tasks.spawn(ask(line, target, tls, probe, replies, slot));
            }
        }
    }

    /// The kernel learnt something about the gateway of a line: the replies to the probes that asked for it.
    pub fn gateway_seen(&mut self, wan: WanId, family: Family, neighbour: &Neighbour) -> Vec<Reply> {
        if neighbour.mac.is_some() && !neighbour.reachable {
            return Vec::new();
        }
        let about = |asked: &mut Asked| asked.probe.wan == wan && asked.family == family;
        let asked = self.asked.extract_if(.., about).filter(|asked| asked.at.elapsed() < asked.probe.timeout);
        let outcome = |asked: &Asked| match neighbour.mac {
            Some(_) => Outcome::Answered { rtt: asked.at.elapsed() },
            None => Outcome::Failed { why: Failure::Unreachable },
        };
        asked.map(|asked| reply(&asked.probe, outcome(&asked))).collect()
    }

    fn ping(&mut self, probe: &Probe, address: IpAddr) -> io::Result<()> {
        let family = Family::of(address);
        let key = (probe.wan, family);
        let pinger = match self.pingers.entry(key) {
            std::collections::btree_map::Entry::Occupied(held) => held.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => {
                let Some(line) = self.lines.get(&probe.wan) else { return Ok(()) };
                free.insert(Pinger::open(line, probe.wan, family)?)
            }
        };
        self.echoes.sent(Instant::now(), probe.timeout);
        pinger.send(probe, address).inspect_err(|_| {
            // The device went and perhaps came back as another one: the next probe opens a socket anew.
            self.pingers.remove(&key);
        })
    }

    /// The answers to echoes that have arrived, in that order. They are to be asked for before each deadline of the core and before
    /// whatever else the core judges lines by, and at [`look`](Self::look).
    pub fn heard(&mut self) -> Vec<Heard> {
        let mut replies = Vec::new();
        if self.echoes.look.is_some() {
            let mut inbox = Inbox::default();
            for pinger in self.pingers.values() {
                pinger.heard(&mut inbox, &mut replies);
            }
            self.echoes.heard(replies.len(), Instant::now());
        }
        replies.sort_by_key(|heard| Reverse(heard.waited));
        replies
    }

    /// When answers to echoes may have arrived. To be woken for each of them would cost more than all the rest that an
    /// idle router does; the kernel notes when they came.
    pub fn look(&self) -> Option<Instant> {
        self.echoes.look
    }

    fn cannot_send(&self, probe: &Probe, error: &io::Error) {
        debug!(wan = %probe.wan, target = probe.target, %error, "cannot send a probe");
        let reply = reply(probe, Outcome::Failed { why: failure(error) });
        if self.replies.try_send(reply).is_err() {
            debug!("the reply queue is full: the probe's timeout will tell");
        }
    }
}

/// What came of an echo.
#[derive(Debug, Clone)]
pub struct Heard {
    pub reply: Reply,
    /// In its socket, for us. Unknown if somebody set the clock meanwhile.
    pub waited: Option<Duration>,
}

/// Echoes under way on all lines.
#[derive(Debug, Default)]
struct Echoes {
    unanswered: usize,
    /// By then they are answered or lost.
    until: Option<Instant>,
    look: Option<Instant>,
}

impl Echoes {
    fn sent(&mut self, now: Instant, timeout: Duration) {
        self.unanswered += 1;
        self.until = self.until.max(Some(now + timeout));
        self.look.get_or_insert(now + LOOK);
    }

    fn heard(&mut self, answers: usize, now: Instant) {
        self.unanswered = self.unanswered.saturating_sub(answers);
        if self.unanswered == 0 || self.until.is_none_or(|until| until <= now) {
            *self = Self::default();
        } else {
            self.look = Some(now + LOOK);
        }
    }
}

/// A gateway was asked by neighbour resolution; the kernel's watch tells what came of it.
#[derive(Debug)]
struct Asked {
    probe: Probe,
    family: Family,
    at: Instant,
}

/// What the sockets of one line are bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    interface: IfName,
    mark: Mark,
    source4: Option<IpAddr>,
    source6: Option<IpAddr>,
    gateway4: Option<IpAddr>,
    gateway6: Option<IpAddr>,
    targets: Vec<Target>,
}

impl Line {
    fn gateway(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.gateway4,
            Family::V6 => self.gateway6,
        }
    }

    fn source(&self, family: Family) -> io::Result<IpAddr> {
        match family {
            Family::V4 => self.source4,
            Family::V6 => self.source6,
        }
        .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// A socket that leaves by this line only.
    fn socket(&self, family: Family, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))?;
        socket.bind_device(Some(self.interface.as_str().as_bytes()))?;
        socket.set_mark(self.mark.0)?;
        socket.bind(&SocketAddr::new(self.source(family)?, 0).into())?;
        Ok(socket)
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(Family::of(address.ip()), Type::STREAM, Protocol::TCP)?;
        // Nothing of a probe is worth a minute in TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        TcpSocket::from_std_stream(socket.into()).connect(address).await
    }

    fn datagrams(&self, family: Family) -> io::Result<UdpSocket> {
        UdpSocket::from_std(self.socket(family, Type::DGRAM, Protocol::UDP)?.into())
    }
}

/// One connection-like probe from beginning to end.
async fn ask(
    line: Line,
    target: Target,
    tls: Option<Arc<tokio_rustls::rustls::ClientConfig>>,
    probe: Probe,
    replies: mpsc::Sender<Reply>,
    slot: OwnedSemaphorePermit,
) {
    let started = Instant::now();
    let answer = tokio::time::timeout(probe.timeout, answer(&line, &target, tls)).await;
    drop(slot);
    let outcome = match answer {
        Ok(Ok(())) => Outcome::Answered { rtt: started.elapsed() },
        Ok(Err(why)) => Outcome::Failed { why },
        Err(_elapsed) => return,
    };
    if replies.send(reply(&probe, outcome)).await.is_err() {
        debug!("nobody waits for probe replies");
    }
}

async fn answer(
    line: &Line,
    target: &Target,
    tls: Option<Arc<tokio_rustls::rustls::ClientConfig>>,
) -> Result<(), Failure> {
    match &target.kind {
        TargetKind::Gateway | TargetKind::Icmp { .. } => Err(Failure::CannotSend),
        TargetKind::Tcp { address } => {
            line.connect(*address).await.map_err(|error| failure(&error))?;
            Ok(())
        }
        TargetKind::Dns { server, name } => {
            let socket = line.datagrams(Family::of(server.ip())).map_err(|error| failure(&error))?;
            resolve::query(&socket, *server, name, target.family).await
        }
        TargetKind::Http { address, name, path, status, .. } => {
            let stream = line.connect(*address).await.map_err(|error| failure(&error))?;
            http::get(stream, tls, name, path, *status).await
        }
    }
}

fn reply(probe: &Probe, outcome: Outcome) -> Reply {
    Reply { wan: probe.wan, target: probe.target, seq: probe.seq, outcome }
}

fn failure(error: &io::Error) -> Failure {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) {
        Failure::Refused
    } else if kind == io::ErrorKind::HostUnreachable {
        Failure::Unreachable
    } else {
        // ENETUNREACH, EADDRNOTAVAIL, ENODEV: our own table, address or device is not there.
        Failure::CannotSend
    }
}

/// Connections under way at one time; each holds one file descriptor.
const AT_ONCE: usize = 512;
/// How long an answer to an echo may wait for us where no probe is due earlier: a line that is asked ten times a second is
/// not woken for in between. It delays what an answer changes (a line that comes back, an error from a router), never
/// what a silence does, and no measured time.
const LOOK: Duration = Duration::from_millis(110);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_looked_for_while_echoes_are_under_way_and_not_after() {
        let ms = Duration::from_millis;
        let zero = Instant::now();
        let mut echoes = Echoes::default();
        assert_eq!(echoes.look, None);
        echoes.sent(zero, ms(120));
        echoes.sent(zero + ms(10), ms(120));
        assert_eq!(echoes.look, Some(zero + LOOK), "the first of them says when");
        echoes.heard(1, zero + ms(20));
        assert_eq!(echoes.look, Some(zero + ms(20) + LOOK), "one is missing");
        echoes.heard(1, zero + ms(30));
        assert_eq!(echoes.look, None, "all are answered");

        echoes.sent(zero, ms(120));
        echoes.heard(0, zero + ms(119));
        assert!(echoes.look.is_some());
        echoes.heard(0, zero + ms(120));
        assert_eq!(echoes.look, None, "what is unanswered is lost");
        // An answer that comes after all, or twice, owes us nothing.
        echoes.sent(zero, ms(120));
        echoes.heard(7, zero + ms(1));
        echoes.sent(zero + ms(2), ms(120));
        assert_eq!(echoes.look, Some(zero + ms(2) + LOOK));
    }
}
