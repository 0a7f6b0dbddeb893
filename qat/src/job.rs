//! What is handed to a backend, and the ticket for its answer.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::{Zeroize, Zeroizing};

use crate::key::{Cipher, CipherKey, Curve, EcPrivate, RsaPrivate, X25519Private};

/// One operation, with all it needs.
#[derive(Debug)]
pub enum Work {
    /// The private operation on a number below the modulus, as long as the modulus.
    RsaPrivate {
        key: Arc<RsaPrivate>,
        input: Zeroizing<Vec<u8>>,
    },
    /// The digest is no longer than the curve's order. A nonce is given by known-answer tests alone.
    EcdsaSign {
        key: Arc<EcPrivate>,
        digest: Vec<u8>,
        nonce: Option<Zeroizing<Vec<u8>>>,
    },
    /// The peer's point, which is on the curve.
    Ecdh {
        key: Arc<EcPrivate>,
        x: Vec<u8>,
        y: Vec<u8>,
    },
    X25519 {
        key: Arc<X25519Private>,
        peer: [u8; 32],
    },
    Cipher(CipherWork),
    /// A text to be made shorter: raw deflate (RFC 1951). What is not the last part ends at a whole byte, and more of it may
    /// follow; no part refers to what was before.
    Deflate {
        text: Vec<u8>,
        last: bool,
    },
    /// The last part of such, to be made long again.
    Inflate(InflateWork),
}

/// A text to make long again, and what is known of the one that it was: with that any answer can be told right or wrong.
#[derive(Debug, Clone)]
pub struct InflateWork {
    pub text: Vec<u8>,
    /// Bytes of the result.
    pub length: usize,
    /// CRC-32 of the result.
    pub crc: u32,
}

/// A text to seal or to open.
#[derive(Debug)]
pub struct CipherWork {
    pub key: Arc<CipherKey>,
    pub direction: Direction,
    pub iv: Vec<u8>,
    pub additional: Vec<u8>,
    pub text: Zeroizing<Vec<u8>>,
    /// For opening; empty for sealing.
    pub tag: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Seal,
    Open,
}

/// The kind of an operation, as it is tested, measured and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// By bits of the modulus.
    RsaPrivate(u32),
    EcdsaSign(Curve),
    Ecdh(Curve),
    X25519,
    Cipher(Cipher, Direction),
    Deflate,
    Inflate,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RsaPrivate(bits) => write!(f, "RSA-{bits} private"),
            Self::EcdsaSign(curve) => write!(f, "ECDSA {curve:?} sign"),
            Self::Ecdh(curve) => write!(f, "ECDH {curve:?}"),
            Self::X25519 => f.write_str("X25519"),
            Self::Cipher(cipher, direction) => write!(f, "{cipher:?} {direction:?}"),
            Self::Deflate => f.write_str("deflate"),
            Self::Inflate => f.write_str("inflate"),
        }
    }
}

impl Work {
    pub fn operation(&self) -> Operation {
        match self {
            Self::RsaPrivate { key, .. } => Operation::RsaPrivate(key.bits()),
            Self::EcdsaSign { key, .. } => Operation::EcdsaSign(key.curve()),
            Self::Ecdh { key, .. } => Operation::Ecdh(key.curve()),
            Self::X25519 { .. } => Operation::X25519,
            Self::Cipher(work) => Operation::Cipher(work.key.cipher(), work.direction),
            Self::Deflate { .. } => Operation::Deflate,
            Self::Inflate(_) => Operation::Inflate,
        }
    }

    /// Bytes of text, for operations whose cost is in them.
    pub fn len(&self) -> usize {
        match self {
            Self::RsaPrivate { .. } | Self::EcdsaSign { .. } | Self::Ecdh { .. } | Self::X25519 { .. } => 0,
            Self::Cipher(work) => work.text.len(),
            Self::Deflate { text, .. } => text.len(),
            // The cost is in what comes out.
            Self::Inflate(work) => work.length,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, PartialEq, Eq)]
pub enum Output {
    /// A number as long as the modulus; a shared secret, which of ECDH is the first coordinate.
    Bytes(Zeroizing<Vec<u8>>),
    /// Both coordinates of a shared point; the secret is the first.
    Point {
        x: Zeroizing<Vec<u8>>,
        y: Zeroizing<Vec<u8>>,
    },
    Signature {
        r: Vec<u8>,
        s: Vec<u8>,
    },
    /// The tag is empty for a text that was opened, and for one that was in no cipher.
    Text {
        text: Text,
        tag: Vec<u8>,
    },
}

/// A text out of a cipher, or one made shorter or long again. One that was opened is zeroed when it goes. The others are
/// for all to see, and zeroing one would cost as much as sealing it did.
#[derive(Clone)]
pub struct Text {
    bytes: Vec<u8>,
    opened: bool,
}

impl Text {
    pub fn opened(bytes: Vec<u8>) -> Self {
        Self { bytes, opened: true }
    }

    pub fn sealed(bytes: Vec<u8>) -> Self {
        Self { bytes, opened: false }
    }

    /// This text, sealed by now where it was plain.
    #[must_use]
    pub fn into_sealed(mut self) -> Self {
        Self::sealed(std::mem::take(&mut self.bytes))
    }
}

impl Deref for Text {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Text {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Text {}

impl Drop for Text {
    fn drop(&mut self) {
        if self.opened {
            self.bytes.zeroize();
        }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

impl Output {
    /// Whether both say the same; of a shared point, only the first coordinate is the secret, and some give no other.
    pub fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Point { x, .. }, Self::Bytes(secret)) | (Self::Bytes(secret), Self::Point { x, .. }) => x == secret,
            (ours, theirs) => ours == theirs,
        }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes(_) => "Bytes",
            Self::Point { .. } => "Point",
            Self::Signature { .. } => "Signature",
            Self::Text { .. } => "Text",
        })
    }
}

/// What a backend answers.
#[derive(Debug)]
pub enum Answer {
    Done(Output),
    /// There is no result: a tag that is wrong, a point at infinity. The CPU has the last word on that.
    Invalid,
    Failed(Reason),
}

/// Why the CPU did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No device was found; the discovery says at which step.
    NoDevice,
    /// The device has no such operation, or the text is too long for its buffers.
    NotSupported,
    /// The CPU does it for less.
    Cheaper,
    /// The configuration says so.
    Configured,
    /// No instance is in use: each is open, restarting or not yet tested.
    NoInstance,
    /// Every instance that is in use has failed this operation's test.
    Untested,
    /// Every ring is full.
    Busy,
    /// No pinned memory is left.
    NoMemory,
    /// The device refused the request.
    Refused,
    /// The device answered that it failed, as it does to all that was in flight at a reset.
    Failed,
    /// No answer in time.
    Deadline,
    /// The answer was wrong.
    WrongAnswer,
    /// The device found the input invalid.
    Invalid,
    /// The engine is stopping.
    Stopping,
}

impl Reason {
    pub const ALL: [Self; 14] = [
        Self::NoDevice,
        Self::NotSupported,
        Self::Cheaper,
        Self::Configured,
        Self::NoInstance,
        Self::Untested,
        Self::Busy,
        Self::NoMemory,
        Self::Refused,
        Self::Failed,
        Self::Deadline,
        Self::WrongAnswer,
        Self::Invalid,
        Self::Stopping,
    ];

    /// As metrics have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoDevice => "no-device",
            Self::NotSupported => "not-supported",
            Self::Cheaper => "cheaper",
            Self::Configured => "configured",
            Self::NoInstance => "no-instance",
            Self::Untested => "untested",
            Self::Busy => "busy",
            Self::NoMemory => "no-memory",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Deadline => "deadline",
            Self::WrongAnswer => "wrong-answer",
            Self::Invalid => "invalid",
            Self::Stopping => "stopping",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Which part of a backend has the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub usize);

/// What became of work that a backend took, told to it by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Right,
    Late,
    Failed,
    Wrong,
}

/// The work was not taken; the reply comes back for somebody else to use.
#[derive(Debug)]
pub struct Refusal {
    pub reason: Reason,
    pub reply: Reply,
}

/// Somebody who does operations. Work is taken and answered later by [`Reply`], so that a backend may gather what came
/// in and do it together.
pub trait Backend: Send + Sync + fmt::Debug {
    fn name(&self) -> &'static str;
    /// Whether the operation is one of its own. It may still refuse work.
    fn takes(&self, operation: Operation) -> bool;
    /// Takes the work, or says why not. Does not wait for the result.
    fn submit(&self, work: &Arc<Work>, reply: Reply) -> Result<Place, Refusal>;
    fn judge(&self, place: Place, verdict: Verdict, now: Instant);
    /// Operations that were taken and not answered.
    fn in_flight(&self) -> usize;
    /// Whether it is this CPU that does the work, in the threads that wait for it. Its answers are believed as OpenSSL's
    /// are, but for those that a public key can check.
    fn is_cpu(&self) -> bool {
        false
    }
    /// Called by who is about to wait for that answer, until then at most. A backend that has no threads works here, on
    /// what others wait for too. The CPU time that this took, of which each answer tells its share.
    fn attend(&self, _place: Place, _ticket: &Ticket, _until: Instant) -> Duration {
        Duration::ZERO
    }
    /// Nobody waits for that answer any more.
    fn abandon(&self, _place: Place, _ticket: &Ticket) {}
}

/// The caller's end.
#[derive(Debug)]
pub struct Ticket(Arc<Cell>);

/// The backend's end. Dropped without an answer, it answers that the work failed.
#[derive(Debug)]
pub struct Reply(Option<Arc<Cell>>);

#[derive(Debug, Default)]
struct Cell {
    said: Mutex<Said>,
    heard: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    answer: Option<Answered>,
    /// Who waits is to look at how things stand.
    called: bool,
    /// How many sleep: waking nobody costs a system call too.
    sleepers: usize,
}

#[derive(Debug)]
struct Answered {
    answer: Answer,
    /// CPU time that went into it in whatever thread of this process.
    cost: Duration,
}

pub fn ticket() -> (Ticket, Reply) {
    let cell = Arc::new(Cell::default());
    (Ticket(Arc::clone(&cell)), Reply(Some(cell)))
}

impl Cell {
    fn say(&self, what: impl FnOnce(&mut Said)) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        what(&mut said);
        let sleepers = said.sleepers;
        drop(said);
        if sleepers > 0 {
            self.heard.notify_all();
        }
    }
}

impl Ticket {
    /// The answer, if it comes within `patience`. After that it may still come, to nobody.
    pub fn wait(&self, patience: Duration) -> Option<Answer> {
        Some(self.wait_and_tell(patience)?.0)
    }

    /// The same, and the CPU time that went into it in other places than the device.
    pub fn wait_and_tell(&self, patience: Duration) -> Option<(Answer, Duration)> {
        let Answered { answer, cost } = self.within(patience, |said| said.answer.is_some()).answer.take()?;
        Some((answer, cost))
    }

    pub fn is_ready(&self) -> bool {
        self.within(Duration::ZERO, |_| true).answer.is_some()
    }

    /// Waits for the answer, or for a call of the reply's end, for so long. Whether the answer is there; it stays there.
    pub fn is_ready_or_called_within(&self, patience: Duration) -> bool {
        let mut said = self.within(patience, |said| said.answer.is_some() || said.called);
        said.called = false;
        said.answer.is_some()
    }

    /// Whether this is the other end.
    pub fn is_of(&self, reply: &Reply) -> bool {
        reply.0.as_ref().is_some_and(|cell| Arc::ptr_eq(&self.0, cell))
    }

    fn within(&self, patience: Duration, enough: impl Fn(&Said) -> bool) -> MutexGuard<'_, Said> {
        let guard = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
        if patience.is_zero() || enough(&guard) {
            return guard;
        }
        let mut guard = guard;
        guard.sleepers += 1;
        let waited = self.0.heard.wait_timeout_while(guard, patience, |said| !enough(said));
        let mut guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        guard.sleepers -= 1;
        guard
    }
}

impl Reply {
    /// Whether somebody still waited for it.
    pub fn answer(self, answer: Answer) -> bool {
        self.answer_at(answer, Duration::ZERO)
    }

    /// An answer that took so much CPU time.
    pub fn answer_at(mut self, answer: Answer, cost: Duration) -> bool {
        self.give(answer, cost)
    }

    /// Has who waits look at how things stand.
    pub fn call(&self) {
        if let Some(cell) = &self.0 {
            cell.say(|said| said.called = true);
        }
    }

    fn give(&mut self, answer: Answer, cost: Duration) -> bool {
        let Some(cell) = self.0.take() else { return false };
        let mut waited = false;
        cell.say(|said| {
            // Before it is there: who gets it may be gone with it at once.
            waited = Arc::strong_count(&cell) > 1;
            said.answer = Some(Answered { answer, cost });
        });
        waited
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.give(Answer::Failed(Reason::Failed), Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_is_dropped_is_an_answer() {
        let (ticket, reply) = ticket();
        assert!(!ticket.is_ready());
        drop(reply);
        assert!(matches!(ticket.wait(Duration::ZERO), Some(Answer::Failed(Reason::Failed))));
    }

    #[test]
    fn an_answer_knows_whether_somebody_waits() {
        let (waits, reply) = ticket();
        assert!(reply.answer(Answer::Invalid));
        assert!(matches!(waits.wait(Duration::ZERO), Some(Answer::Invalid)));
        // Also where it goes away with its answer at once.
        for _ in 0..2_000 {
            let (waits, reply) = ticket();
            let waiting = std::thread::spawn(move || drop(waits.wait(Duration::from_mins(1))));
            assert!(reply.answer(Answer::Invalid));
            waiting.join().unwrap();
        }
        let (gone, reply) = ticket();
        assert!(gone.wait(Duration::ZERO).is_none());
        drop(gone);
        assert!(!reply.answer(Answer::Invalid));
    }

    #[test]
    fn an_answer_wakes_who_waits_longest_though_another_gave_up() {
        let (ticket, reply) = ticket();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| ticket.is_ready_or_called_within(Duration::from_mins(10)));
            while ticket.0.said.lock().unwrap().sleepers == 0 {
                std::thread::yield_now();
            }
            // Another waits beside it, and gives up.
            assert!(!ticket.is_ready_or_called_within(Duration::from_millis(1)));
            assert!(reply.answer(Answer::Invalid));
            assert!(waits.join().unwrap());
        });
    }

    #[test]
    fn a_call_wakes_who_waits_once_and_is_no_answer() {
        let (ticket, reply) = ticket();
        let far = Duration::from_mins(10);
        reply.call();
        assert!(!ticket.is_ready_or_called_within(far));
        assert!(!ticket.is_ready_or_called_within(Duration::from_millis(1)));
        assert!(ticket.wait(Duration::ZERO).is_none());
        assert!(reply.answer_at(Answer::Invalid, Duration::from_micros(3)));
        assert!(ticket.is_ready_or_called_within(far) && ticket.is_ready());
        assert!(matches!(ticket.wait_and_tell(far), Some((Answer::Invalid, cost)) if cost == Duration::from_micros(3)));
    }
}
