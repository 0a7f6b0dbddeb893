//! What the programs write to rings. A reader is ready when its descriptor is readable; one reader per ring.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use abi::{Denied, Passive, name};
use aya::maps::{Map, MapData, RingBuf};
use aya_log::EbpfLogger;

use crate::maps::MapError;
use crate::programs::{Programs, chain};

/// A record of a ring.
pub trait Record: Sized {
    /// The ring's name.
    const RING: &'static str;
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl Record for Denied {
    const RING: &'static str = name::DENIED;

    fn read(bytes: &[u8]) -> Option<Self> {
        Self::from_bytes(bytes)
    }
}

impl Record for Passive {
    const RING: &'static str = name::PASSIVE;

    fn read(bytes: &[u8]) -> Option<Self> {
        Self::from_bytes(bytes)
    }
}

/// The records of one ring. For `AsyncFd`: read until there is none, then wait.
pub struct Records<R> {
    ring: RingBuf<MapData>,
    of: PhantomData<R>,
}

impl<R: Record> Records<R> {
    /// The ring pinned under `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let error = |error: &aya::maps::MapError| MapError { map: R::RING, reason: chain(error) };
        let data = MapData::from_pin(crate::pins::layout(directory).join(R::RING)).map_err(|reason| error(&reason))?;
        let ring = RingBuf::try_from(Map::RingBuf(data)).map_err(|reason| error(&reason))?;
        Ok(Self { ring, of: PhantomData })
    }

    /// The next record, if there is one. Bytes that are none are skipped.
    #[expect(clippy::should_implement_trait, reason = "an iterator ends; a ring goes on when there is more")]
    pub fn next(&mut self) -> Option<R> {
        loop {
            if let Some(record) = R::read(&self.ring.next()?) {
                return Some(record);
            }
        }
    }
}

impl<R> AsRawFd for Records<R> {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl<R> fmt::Debug for Records<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

/// What the programs log, for `tracing`.
pub struct Log(EbpfLogger<ToTracing>);

impl Log {
    /// Of the programs pinned under `directory`; `None` where none of them logs.
    pub fn open(directory: &Path) -> Option<Self> {
        let ids = Programs::pinned(directory).ok()?;
        let logger = ids.into_iter().find_map(|id| EbpfLogger::init_from_id_with_logger(id, ToTracing).ok())?;
        Some(Self(logger))
    }

    /// Hands on all there is.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

impl AsRawFd for Log {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let program = record.target();
        let said = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(program, "{said}"),
            log::Level::Warn => tracing::warn!(program, "{said}"),
            log::Level::Info => tracing::info!(program, "{said}"),
            log::Level::Debug => tracing::debug!(program, "{said}"),
            log::Level::Trace => tracing::trace!(program, "{said}"),
        }
    }

    fn flush(&self) {}
}
