//! The C of Intel QuickAssist: the CPA functions and types the engine uses, as bindgen wrote them from Debian's
//! libqat-dev 24.02 (`qat/sys/regenerate`), and the loader that opens a library with them at run time. Beside it, by
//! the same means, Intel's multi-buffer libraries for the CPU ([`crypto_mb`], [`ipsec_mb`]).
//!
//! Every function is optional: a library that lacks one opens all the same, and the field of [`Cpa`] or [`Usdm`] says
//! so. The crate `qat` is the only caller; nothing here decides anything.
#![expect(unsafe_code, reason = "foreign functions; this crate, qat/src/device and qat/src/batch are where they live")]

#[allow(
    unsafe_op_in_unsafe_fn,
    missing_debug_implementations,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    clippy::all,
    clippy::pedantic,
    clippy::expect_used,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::allow_attributes_without_reason,
    reason = "bindgen wrote it, with the names of C"
)]
mod bindings {
    pub(crate) mod cpa;
    pub mod crypto_mb;
    pub mod ipsec_mb;
    pub(crate) mod usdm;
}
mod loader;
pub mod multi;

pub use bindings::cpa::*;
pub use bindings::usdm::Usdm;
pub use bindings::{crypto_mb, ipsec_mb};
pub use loader::{Abi, Library, NotOpened, Version};
pub use multi::Multi;
