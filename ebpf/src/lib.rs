//! The eBPF programs and how the daemon gets them into the kernel.

pub use abi;

/// The object with all programs and maps.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/quadway.o"));
