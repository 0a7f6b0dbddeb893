//! What the operator wants: the site file, checked into a [`model::Config`] that cannot be wrong.
//!
//! This crate does no I/O and reads no clock: it is handed text and gives back a `Config`, or every problem in
//! the text at once.

pub mod model;
pub mod units;

pub use model::Config;
