//! What needs no kernel: the same code is built for the host, where it is tested and fuzzed.
#![no_std]

pub mod decide;
pub mod packet;
pub mod rewrite;

#[cfg(test)]
extern crate std;
#[cfg(test)]
pub mod craft;
#[cfg(test)]
mod tests;
