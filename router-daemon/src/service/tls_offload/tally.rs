//! What one `[[tls_offload]]` counts, from its first config to its last.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::crypto::signing::Signatures;

/// Shared by its listeners and connections.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Connections there are.
    pub(super) connections: AtomicU32,
    pub(super) accepted: AtomicU64,
    /// From clients.
    pub(super) received: AtomicU64,
    /// To clients.
    pub(super) sent: AtomicU64,
    handshakes: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    refused: Mutex<BTreeMap<Refused, u64>>,
    pub(super) signatures: Arc<Signatures>,
}

/// Why somebody was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refused {
    /// `limits.connections`.
    Connections,
    SourceConnections,
    HandshakeRate,
    /// The process may have no more files open.
    Descriptors,
    /// Too many sources at once to know them all.
    Sources,
    /// Handshakes wait for their signature faster than signatures are made.
    Busy,
    /// The handshake was not over in time.
    Timeout,
    /// A name that no certificate is for, or none.
    UnknownName,
    /// No certificate of the client, or one that does not count.
    ClientCertificate,
    /// No version, suite, group or signature in common.
    Incompatible,
    /// The client says that it was refused a version that we have.
    Downgrade,
    /// No protocol in common.
    Alpn,
    /// The client refused us.
    Alert,
    /// What came is not TLS.
    Malformed,
    /// The client went away.
    Closed,
    /// Our own signature failed.
    Signature,
    /// No backend is up, or none took the connection.
    NoBackend,
}

impl Refused {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::SourceConnections => "source-connections",
            Self::HandshakeRate => "handshake-rate",
            Self::Descriptors => "descriptors",
            Self::Sources => "sources",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::UnknownName => "unknown-name",
            Self::ClientCertificate => "client-certificate",
            Self::Incompatible => "incompatible",
            Self::Downgrade => "downgrade",
            Self::Alpn => "alpn",
            Self::Alert => "alert",
            Self::Malformed => "malformed",
            Self::Closed => "closed",
            Self::Signature => "signature",
            Self::NoBackend => "no-backend",
        }
    }
}

impl Tally {
    pub(super) fn refuse(&self, why: Refused) {
        *lock(&self.refused).entry(why).or_default() += 1;
    }

    pub(super) fn shook(&self, version: &'static str, kind: &'static str) {
        *lock(&self.handshakes).entry((version, kind)).or_default() += 1;
    }

    /// By version and by `full` or `resumed`.
    pub(super) fn handshakes(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        lock(&self.handshakes).clone()
    }

    pub(super) fn refused(&self) -> BTreeMap<Refused, u64> {
        lock(&self.refused).clone()
    }

    /// A place among `most`, given back when it is dropped.
    pub(super) fn place(self: &Arc<Self>, most: u32) -> Option<Place> {
        let one_more = |there: u32| (there < most).then(|| there + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Place(Arc::clone(self)))
    }
}

/// Of a connection.
#[derive(Debug)]
pub(super) struct Place(Arc<Tally>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
