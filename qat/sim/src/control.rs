//! What tests hold: a copy of the library of their own, its faults and its counts.
#![expect(clippy::expect_used, reason = "what a test needs and has not is the end of the test")]

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, Symbol};
use tempfile::TempDir;

use crate::device;

/// What can be asked of the simulated device. Shares are out of a thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// Microseconds from a request to its answer.
    Latency,
    /// Up to so many microseconds more.
    Jitter,
    /// The share of requests that are answered RETRY.
    Retry,
    /// The share of requests that are never answered, until the instance is reset.
    Drop,
    /// The share of answers with a bit turned over.
    Corrupt,
    /// The share of answers that say they failed.
    Fail,
    /// Instances, by bits, that take requests and answer none until they are reset.
    Hang,
    /// Milliseconds from RESTARTING to RESTARTED.
    Restart,
    /// Instances, by bits, whose answers to X25519 have a bit turned over.
    WrongX25519,
}

/// What it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    Requests,
    Answers,
    Retried,
    Dropped,
    Corrupted,
    Failed,
    Resets,
    InFlight,
    /// Bytes of pinned memory that are out.
    Pinned,
    Sessions,
    /// A buffer changed while the device owned it.
    Touched,
    /// Pinned memory was freed while the device owned it.
    Freed,
    /// A buffer that is not pinned.
    NotPinned,
    /// A buffer that another request in flight writes.
    Shared,
    /// Pinned memory was freed with something in it.
    NotZeroed,
    /// A session was removed under its requests.
    SessionInUse,
}

impl Count {
    pub const VIOLATIONS: [Self; 6] =
        [Self::Touched, Self::Freed, Self::NotPinned, Self::Shared, Self::NotZeroed, Self::SessionInUse];
}

/// A copy of the library that shares nothing with others. The file goes with it; the code stays.
#[derive(Debug)]
pub struct Simulator {
    path: PathBuf,
    set: Symbol<unsafe extern "C" fn(u32, u64)>,
    count: Symbol<unsafe extern "C" fn(u32) -> u64>,
    reset: Symbol<unsafe extern "C" fn(u32)>,
    announce: Symbol<unsafe extern "C" fn(u32)>,
    _directory: TempDir,
}

impl Simulator {
    pub fn fresh() -> Self {
        Self::without(&[])
    }

    /// A library that lacks some functions.
    pub fn without(functions: &[&str]) -> Self {
        Self::changed(functions, "24.02.0")
    }

    /// A library that says it is of that version, in as many letters as `24.02.0`.
    pub fn of_version(version: &str) -> Self {
        Self::changed(&[], version)
    }

    fn changed(functions: &[&str], version: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder can be made");
        let path = directory.path().join("libqat_sim.so");
        let mut bytes = std::fs::read(built()).expect("cargo builds the simulator's library beside the tests");
        for function in functions {
            let name = format!("\0{function}\0");
            let at = bytes.windows(name.len()).position(|window| window == name.as_bytes());
            let at = at.unwrap_or_else(|| panic!("the simulator has no {function}"));
            // The name in the table of symbols: under the old hash there is another name.
            bytes[at + 1] = b'X';
        }
        let label = b"QAT_SOFTWARE_VERSION=24.02.0";
        let at = bytes.windows(label.len()).position(|window| window == label).expect("the simulator has a version");
        bytes[at + label.len() - version.len()..at + label.len()].copy_from_slice(version.as_bytes());
        std::fs::write(&path, bytes).expect("the folder can be written");
        // SAFETY: the library is this very crate, which has no initialisers.
        let library = unsafe { Library::open(Some(&path), libloading::os::unix::RTLD_NOW) }.expect("the copy opens");
        // SAFETY: the type is that of `qat_sim_set` below.
        let set = unsafe { library.get(b"qat_sim_set\0") }.expect("it is exported");
        // SAFETY: the type is that of `qat_sim_count` below.
        let count = unsafe { library.get(b"qat_sim_count\0") }.expect("it is exported");
        // SAFETY: the type is that of `qat_sim_reset` below.
        let reset = unsafe { library.get(b"qat_sim_reset\0") }.expect("it is exported");
        // SAFETY: the type is that of `qat_sim_announce` below.
        let announce = unsafe { library.get(b"qat_sim_announce\0") }.expect("it is exported");
        // Its threads run in it.
        std::mem::forget(library);
        Self { path, set, count, reset, announce, _directory: directory }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn set(&self, fault: Fault, value: u64) {
        // SAFETY: any two numbers may be given.
        unsafe { (self.set)(fault as u32, value) }
    }

    /// No faults: answers at once, and right.
    pub fn behave(&self) {
        for fault in FAULTS {
            self.set(fault, if fault == Fault::Restart { 5 } else { 0 });
        }
    }

    pub fn count(&self, count: Count) -> u64 {
        // SAFETY: any number may be given.
        unsafe { (self.count)(count as u32) }
    }

    /// What the caller did that no caller may.
    pub fn violations(&self) -> Vec<(Count, u64)> {
        Count::VIOLATIONS.into_iter().map(|count| (count, self.count(count))).filter(|(_, n)| *n > 0).collect()
    }

    /// An instance resets by itself, as after a fatal error.
    pub fn reset(&self, instance: u32) {
        // SAFETY: any number may be given.
        unsafe { (self.reset)(instance) }
    }

    /// An instance says that it restarts, and that it has restarted, and goes on answering all the while.
    pub fn announce(&self, instance: u32) {
        // SAFETY: any number may be given.
        unsafe { (self.announce)(instance) }
    }
}

/// Where cargo puts the library of a dependency: beside the test that runs.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("the system tells a program its path");
    let beside = test.with_file_name("libqat_sim.so");
    if beside.exists() { beside } else { test.with_file_name("deps").join("libqat_sim.so") }
}

#[unsafe(no_mangle)]
extern "C" fn qat_sim_set(fault: u32, value: u64) {
    device::get().set(fault, value);
}

#[unsafe(no_mangle)]
extern "C" fn qat_sim_count(count: u32) -> u64 {
    device::get().count(count)
}

#[unsafe(no_mangle)]
extern "C" fn qat_sim_reset(instance: u32) {
    device::get().reset(instance as usize);
}

#[unsafe(no_mangle)]
extern "C" fn qat_sim_announce(instance: u32) {
    device::get().announce(instance as usize);
}

const FAULTS: [Fault; 9] = [
    Fault::Latency,
    Fault::Jitter,
    Fault::Retry,
    Fault::Drop,
    Fault::Corrupt,
    Fault::Fail,
    Fault::Hang,
    Fault::Restart,
    Fault::WrongX25519,
];
