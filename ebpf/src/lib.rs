//! The eBPF programs and how the daemon gets them into the kernel: [`Programs`] loads or adopts and attaches them,
//! [`Maps`] speaks with their maps, [`Records`] and [`Log`] hand out what they write to rings.
//!
//! Programs, maps and links live as pins below a folder of a BPF file system, so that packets pass while no daemon
//! runs. Nothing here decides what they do.

mod maps;
mod pins;
mod programs;
mod rings;

pub use abi;

pub use self::maps::{MapError, Maps};
pub use self::programs::{AttachError, Attached, LoadError, Mode, Programs};
pub use self::rings::{Log, Record, Records};

/// The object with all programs and maps.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/quadway.o"));

/// SHA-256 of an object, in lower-case hexadecimal.
pub fn digest(object: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    format!("{:x}", Sha256::digest(object))
}

/// The generator and the sink of the bench and of the lab.
#[cfg(feature = "generator")]
pub const GENERATOR: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generator.o"));
