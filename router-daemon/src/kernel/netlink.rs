//! Netlink, as far as we need it: one way to build messages, one way to read them, one socket that asks.
//!
//! For nftables, conntrack and nflog, whose attributes no crate's types carry all, it is written and read here byte
//! by byte; links and routes have `rtnl`. Nothing outside `kernel` uses this.
//!
//! The kernel handles a request inside `send` and queues the whole answer (or the first part of a dump) before
//! `send` returns. So the asking socket never waits: an empty queue before the answer is complete is an error.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use config::units::Family;
use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket as Raw, SocketAddr, TokioSocket};
use nix::errno::Errno;
use nix::libc::RTM_NEWNEIGH;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use rtnetlink::packet_core::{NLMSG_DONE, NLMSG_ERROR};
use socket2::{SockFilter, SockRef};

pub(crate) use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
pub(crate) use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
};

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
/// The kernel never makes a dump part larger than 32 KiB.
const BUFFER: usize = 64 * 1024;
/// Neighbours in `NUD_DELAY` and `NUD_PROBE`.
const ASKED: u16 = 0x08 | 0x10;
/// A dump that raced with a change is asked again this often.
pub(crate) const DUMP_TRIES: usize = 8;

/// What the kernel said no with, and the words it added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) errno: i32,
    pub(crate) words: String,
}

impl Refused {
    /// From the code of an answer and what follows it: the header of the refused message, whose body
    /// `NETLINK_CAP_ACK` keeps away, and attributes.
    pub(crate) fn new(code: i32, rest: &[u8]) -> Self {
        const NLMSGERR_ATTR_MSG: u16 = 1;
        let words = Attributes(rest.get(HEADER..).unwrap_or_default()).text(NLMSGERR_ATTR_MSG).unwrap_or_default();
        Self { errno: -code, words: words.to_owned() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if self.words.is_empty() { Ok(()) } else { write!(f, ": {}", self.words) }
    }
}

impl std::error::Error for Refused {}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::new(Self::from_raw_os_error(refused.errno).kind(), refused)
    }
}

/// The errno behind an error of this module.
pub(crate) fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| error.get_ref()?.downcast_ref::<Refused>().map(|refused| refused.errno))
}

/// What is already so is a success: `result`, with these errno values taken as done.
pub(crate) fn done_if<T: Default>(result: io::Result<T>, errnos: &[Errno]) -> io::Result<T> {
    match result {
        Err(error) if errno(&error).is_some_and(|found| errnos.iter().any(|e| *e as i32 == found)) => Ok(T::default()),
        other => other,
    }
}

/// A message under construction.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `header` is the fixed structure that follows the netlink header: `rtmsg`, `nfgenmsg` …
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        pad(&mut bytes);
        Self { bytes }
    }

    #[must_use]
    pub(crate) fn attr(mut self, kind: u16, payload: &[u8]) -> Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(payload);
        self.close(start);
        self
    }

    /// Netfilter speaks network order.
    #[must_use]
    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Text with its terminating zero.
    #[must_use]
    pub(crate) fn text(mut self, kind: u16, text: &str) -> Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.close(start);
        self
    }

    #[must_use]
    pub(crate) fn nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.open(kind | NLA_F_NESTED);
        self = inside(self);
        self.close(start);
        self
    }

    /// As whoever is sent it reads it.
    #[cfg(test)]
    pub(crate) fn received(self) -> Received {
        split(&self.finish(0, 0)).remove(0)
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        pad(&mut self.bytes);
    }

    fn finish(mut self, seq: u32, flags: u16) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let flags = flags | ne16(&self.bytes[6..8]);
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.bytes
    }
}

/// A message as it arrived, without its netlink header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) kind: u16,
    flags: u16,
    seq: u32,
    pub(crate) body: Vec<u8>,
}

impl Received {
    /// The attributes behind a fixed header of this length.
    pub(crate) fn attributes(&self, header: usize) -> Attributes<'_> {
        Attributes(self.body.get(header..).unwrap_or_default())
    }
}

/// The attributes in a stretch of bytes. Reading never fails: what is malformed is not there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Kind and payload of each.
    pub(crate) fn each(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(ne16(rest.get(0..2)?));
            let kind = ne16(rest.get(2..4)?) & NLA_TYPE_MASK;
            let payload = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, payload))
        })
    }

    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.each().find(|(found, _)| *found == kind).map(|(_, payload)| payload)
    }

    pub(crate) fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or_default())
    }

    pub(crate) fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_ne_bytes)
    }

    pub(crate) fn be16(self, kind: u16) -> Option<u16> {
        self.get(kind)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub(crate) fn be32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(crate) fn be64(self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).ok()
    }
}

/// A socket that asks and is answered.
pub(crate) struct Socket {
    raw: Raw,
    seq: u32,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("fd", &self.raw.as_raw_fd()).finish_non_exhaustive()
    }
}

impl Socket {
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = Raw::new(protocol)?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        raw.set_non_blocking(true)?;
        raw.set_ext_ack(true)?;
        raw.set_cap_ack(true)?;
        // Hundreds of acknowledgements of one batch are queued before the first is read.
        widen(&raw, 1 << 20)?;
        Ok(Self { raw, seq: 0 })
    }

    /// One change. Replies other than the acknowledgement are handed back.
    pub(crate) fn ask(&mut self, message: Message) -> io::Result<Vec<Received>> {
        let seq = self.send(vec![message], NLM_F_ACK)?;
        let mut replies = Vec::new();
        loop {
            for received in self.receive()? {
                match received.kind {
                    _ if received.seq != seq => {}
                    NLMSG_ERROR => return verdict(&received).map(|()| replies).map_err(Into::into),
                    _ => replies.push(received),
                }
            }
        }
    }

    /// One change, and no word of it unless it is refused.
    pub(crate) fn tell(&mut self, message: Message) -> io::Result<()> {
        self.seq = self.seq.wrapping_add(1);
        self.raw.send(&message.finish(self.seq, 0), 0)?;
        loop {
            let answers = match self.receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                answers => answers?,
            };
            for answer in answers.iter().filter(|answer| answer.seq == self.seq && answer.kind == NLMSG_ERROR) {
                verdict(answer)?;
            }
        }
    }

    /// Everything of a kind. Asked again where the kernel says the answer mixes two states.
    pub(crate) fn dump(&mut self, message: &Message) -> io::Result<Vec<Received>> {
        for _ in 0..DUMP_TRIES {
            let mut all = Vec::new();
            if self.dump_into(message.clone(), |received| all.push(received))? {
                return Ok(all);
            }
        }
        Err(Refused { errno: Errno::EINTR as i32, words: "the dump kept changing".to_owned() }.into())
    }

    /// The same, one at a time; `false` when the kernel says that the answer mixes two states.
    pub(crate) fn dump_into(&mut self, message: Message, mut each: impl FnMut(Received)) -> io::Result<bool> {
        let seq = self.send(vec![message], NLM_F_DUMP)?;
        let mut consistent = true;
        loop {
            for received in self.receive()? {
                if received.seq != seq {
                    continue;
                }
                consistent &= received.flags & NLM_F_DUMP_INTR == 0;
                match received.kind {
                    NLMSG_DONE => {
                        let code = received.body.get(0..4).map_or(0, ne32).cast_signed();
                        return if code < 0 { Err(Refused::new(code, &[]).into()) } else { Ok(consistent) };
                    }
                    NLMSG_ERROR => verdict(&received)?,
                    _ => each(received),
                }
            }
        }
    }

    /// A batch of changes that take effect together or not at all. `frame` opens and closes it.
    pub(crate) fn batch(&mut self, frame: [Message; 2], changes: Vec<Message>) -> io::Result<()> {
        let awaited = changes.len();
        let [begin, end] = frame;
        let first = self.seq.wrapping_add(1);
        let mut bytes = begin.finish(first, 0);
        for change in changes {
            self.seq = self.seq.wrapping_add(1);
            bytes.extend(change.finish(self.seq, NLM_F_ACK));
        }
        bytes.extend(end.finish(self.seq, 0));
        self.raw.send(&bytes, 0)?;
        let mut acknowledged = 0;
        let mut refused = None;
        loop {
            let parts = match self.receive() {
                Ok(parts) => parts,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            for received in parts {
                if received.kind == NLMSG_ERROR && received.seq.wrapping_sub(first) <= self.seq.wrapping_sub(first) {
                    match verdict(&received) {
                        Ok(()) => acknowledged += 1,
                        Err(error) => refused = refused.or(Some(error)),
                    }
                }
            }
        }
        match refused {
            Some(refused) => Err(refused.into()),
            None if acknowledged < awaited => {
                Err(io::Error::other(format!("only {acknowledged} of {awaited} changes were acknowledged")))
            }
            None => Ok(()),
        }
    }

    fn send(&mut self, messages: Vec<Message>, flags: u16) -> io::Result<u32> {
        // Whatever an earlier, broken-off answer left behind.
        while self.receive().is_ok() {}
        self.seq = self.seq.wrapping_add(1);
        let bytes: Vec<u8> = messages.into_iter().flat_map(|message| message.finish(self.seq, flags)).collect();
        self.raw.send(&bytes, 0)?;
        Ok(self.seq)
    }

    fn receive(&self) -> io::Result<Vec<Received>> {
        receive(&self.raw)
    }
}

/// A socket that is told. Cancelling `next` loses nothing: a message is taken only when it is returned.
pub(crate) struct Listener {
    socket: TokioSocket,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("fd", &self.socket.as_raw_fd()).finish()
    }
}

/// What a listener hears.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Messages(Vec<Received>),
    /// The kernel had more to say than the socket could hold: look at everything again.
    Overrun,
}

impl Listener {
    pub(crate) fn open(protocol: isize, groups: &[u32], buffer: usize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        let raw = socket.socket_mut();
        raw.bind_auto()?;
        widen(raw, buffer)?;
        for group in groups {
            raw.add_membership(*group)?;
        }
        Ok(Self { socket })
    }

    /// Does not hear that neighbours are being asked whether they are there, which changes nothing they are known for.
    pub(crate) fn without_questions(self) -> io::Result<Self> {
        // Classic BPF, Documentation/networking/filter.rst.
        const LOAD_HALF: u16 = 0x28;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const JUMP_IF_ANY: u16 = 0x45;
        const RETURN: u16 = 0x06;
        // Netlink is in the byte order of the machine, and this loads in network order.
        let swapped = |value: u16| u32::from(u16::from_be_bytes(value.to_ne_bytes()));
        let program = [
            // nlmsg_type is at 4. What is no news of a neighbour is heard …
            SockFilter::new(LOAD_HALF, 0, 0, 4),
            SockFilter::new(JUMP_IF_EQUAL, 0, 2, swapped(RTM_NEWNEIGH)),
            // … and of these, by ndm_state behind the header, what says more than that somebody is asked.
            SockFilter::new(LOAD_HALF, 0, 0, 24),
            SockFilter::new(JUMP_IF_ANY, 1, 0, swapped(ASKED)),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
            SockFilter::new(RETURN, 0, 0, 0),
        ];
        SockRef::from(self.socket.socket_ref()).attach_filter(&program)?;
        Ok(self)
    }

    /// One change, before listening begins: what is heard until it is acknowledged is dropped.
    pub(crate) fn ask(&self, message: Message) -> io::Result<()> {
        self.socket.socket_ref().send_to(&message.finish(1, NLM_F_ACK), &SocketAddr::new(0, 0), 0)?;
        loop {
            if let Some(answer) = receive(self.socket.socket_ref())?.iter().find(|found| found.kind == NLMSG_ERROR) {
                return verdict(answer).map_err(Into::into);
            }
        }
    }

    pub(crate) async fn next(&self) -> io::Result<Heard> {
        let mut buffer = Vec::with_capacity(BUFFER);
        heard(self.socket.recv(&mut buffer).await.map(|()| split(&buffer)))
    }

    /// What has arrived already, without waiting.
    pub(crate) fn pending(&self) -> io::Result<Option<Heard>> {
        match receive(self.socket.socket_ref()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => heard(result).map(Some),
        }
    }
}

fn heard(result: io::Result<Vec<Received>>) -> io::Result<Heard> {
    match result {
        Ok(messages) => Ok(Heard::Messages(messages)),
        Err(error) if errno(&error) == Some(Errno::ENOBUFS as i32) => Ok(Heard::Overrun),
        Err(error) => Err(error),
    }
}

/// Beyond what `net.core.rmem_max` grants to others.
fn widen(raw: &Raw, bytes: usize) -> io::Result<()> {
    Ok(setsockopt(raw, RcvBufForce, &bytes)?)
}

fn receive(raw: &Raw) -> io::Result<Vec<Received>> {
    let mut buffer = Vec::with_capacity(BUFFER);
    raw.recv(&mut buffer, 0)?;
    Ok(split(&buffer))
}

/// The messages in one datagram.
fn split(mut bytes: &[u8]) -> Vec<Received> {
    let mut messages = Vec::new();
    while bytes.len() >= HEADER {
        let length = ne32(&bytes[0..4]) as usize;
        let Some(body) = bytes.get(HEADER..length) else { break };
        messages.push(Received {
            kind: ne16(&bytes[4..6]),
            flags: ne16(&bytes[6..8]),
            seq: ne32(&bytes[8..12]),
            body: body.to_vec(),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// What an `NLMSG_ERROR` says; code 0 is the acknowledgement.
fn verdict(received: &Received) -> Result<(), Refused> {
    match received.body.get(0..4).map_or(0, ne32).cast_signed() {
        0 => Ok(()),
        code => Err(Refused::new(code, received.body.get(4..).unwrap_or_default())),
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn ne16(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_ne_bytes)
}

pub(crate) fn ne32(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

pub(crate) fn af(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

pub(crate) fn family_of(af: u8) -> Option<Family> {
    match af {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = Message::new(24, NLM_F_CREATE, &[9; 3])
            .attr(1, &[7])
            .text(2, "wan1")
            .nest(3, |inside| inside.be32(1, 0x0102_0304).attr(2, &5_u32.to_ne_bytes()))
            .finish(11, NLM_F_ACK);
        let [message] = split(&bytes).try_into().unwrap();
        assert_eq!((message.kind, message.seq), (24, 11));
        assert_eq!(message.flags, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE);
        let attributes = message.attributes(4);
        assert_eq!(attributes.u8(1), Some(7));
        assert_eq!(attributes.text(2), Some("wan1"));
        assert_eq!(attributes.nested(3).be32(1), Some(0x0102_0304));
        assert_eq!(attributes.nested(3).u32(2), Some(5));
        assert_eq!(attributes.get(4), None);
    }

    #[test]
    fn malformed_bytes_hold_nothing() {
        assert_eq!(split(&[0xff; 40]), []);
        assert_eq!(Attributes(&[2, 0, 1, 0]).each().next(), None);
        assert_eq!(Attributes(&[9, 0, 1, 0, 5]).each().next(), None);
        assert_eq!(Attributes(&[0; 64]).each().next(), None);
    }

    #[test]
    fn a_refusal_carries_the_words_of_the_kernel() {
        let mut body = (-22_i32).to_ne_bytes().to_vec();
        body.extend([0; HEADER]);
        body.extend(Message::new(0, 0, &[]).text(1, "Unknown device type").bytes.split_off(HEADER));
        let refused = verdict(&Received { kind: NLMSG_ERROR, flags: 0, seq: 0, body }).unwrap_err();
        assert_eq!(refused.errno, 22);
        assert_eq!(refused.words, "Unknown device type");
        assert_eq!(errno(&refused.into()), Some(22));
    }
}
