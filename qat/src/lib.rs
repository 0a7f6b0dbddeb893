//! Crypto operations for TLS and its like, on a QuickAssist device where there is one and on the CPU always.
//!
//! [`Engine`] is the whole of it for callers: a signature, a shared secret, a sealed text, one made shorter. No trouble of a device reaches
//! them: what is busy, silent, reset or wrong is done again by OpenSSL, and the [`Reason`] is counted. An error is the
//! caller's own: a key or an input with which the operation cannot be.
//!
//! [`Breaker`], [`Calibration`] and [`Latencies`] decide and read no clock. `device` and `batch` are the only modules with
//! `unsafe`.

mod batch;
mod breaker;
mod calibrate;
mod cpu;
mod deflate;
mod device;
mod discovery;
mod encoding;
mod engine;
mod exercise;
mod job;
mod key;
mod selftest;

pub use batch::{BatchStatus, CpuBatch, Multibuffer};
pub use breaker::{Breaker, Fault, Patience, State};
pub use calibrate::{Calibration, Class, Latencies, Side};
pub use device::{Installed, InstanceStatus, QatUser};
pub use discovery::{Discovery, Step, System};
pub use encoding::{Hash, Scheme};
pub use engine::{Checks, Counts, Done, Engine, Options, Pending, Route, Signed, Status};
pub use exercise::{Exercise, Load, Rate, known_answers};
pub use job::{
    Answer, Backend, CipherWork, Direction, InflateWork, Operation, Output, Place, Reason, Refusal, Reply, Text,
    Ticket, Verdict, Work, ticket,
};
pub use key::{Cipher, CipherKey, Curve, EcPrivate, KeyError, PrivateKey, RsaPrivate, X25519Private};

/// Why an operation cannot be, whoever does it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{scheme:?} is not for this key: choose a scheme of its type")]
    Scheme { scheme: Scheme },
    #[error("the input has {given} bytes, and {operation:?} takes {taken}")]
    Length { operation: &'static str, given: usize, taken: String },
    #[error("the peer's point is not on the curve, or of small order")]
    Peer,
    #[error("the text is not authentic: another key, another nonce, or somebody changed it")]
    NotAuthentic,
    #[error("this is no whole gzip file of one member: ask again for it")]
    NotIntact,
    #[error("the gzip file says that it has {length} bytes of text, and {at_most} are the most that may be")]
    TooLong { length: usize, at_most: usize },
    #[error("the ciphertext is not for this key")]
    NotDecryptable,
    #[error("OpenSSL: {what}")]
    OpenSsl { what: &'static str, source: openssl::error::ErrorStack },
}
