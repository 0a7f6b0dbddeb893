//! A device that is not there: a shared library with the symbols of QuickAssist's own, for tests only.
//!
//! Three devices, each with an instance for crypto and one that compresses, each of those with a ring of 64 requests that answers RETRY when it is full and calls back only when it is
//! polled. The mathematics are OpenSSL's, deflate is zlib-rs', and both are done late, by a thread per instance, from the caller's own buffers, as a
//! card does; so a buffer that is touched or freed while the device owns it is seen, and counted as a violation.
//! Every instance has "simulator" in its name.
//!
//! Tests use [`Simulator`], which opens a fresh copy of the library and asks it for faults.
#![expect(unsafe_code, reason = "it is a C library, and its caller's memory is what it works on")]

mod compression;
mod control;
mod cpa;
mod device;
mod maths;
mod memory;

pub use control::{Count, Fault, Simulator};
