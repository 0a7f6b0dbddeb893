//! What should be true: the health of each line, the choice of lines, the matrix, and the kernel state they
//! compile to. Pure: no async, no I/O, no clock; the same inputs always give the same outputs.

pub mod asserts;
pub mod audit;
pub mod compile;
pub mod damping;
pub mod decide;
pub mod event;
pub mod evidence;
pub mod explain;
pub mod fate;
#[cfg(test)]
mod fixture;
pub mod journal;
pub mod lease;
pub mod links;
pub mod matrix;
pub mod monitor;
pub mod pair;
pub mod passive;
pub mod plan;
pub mod router;
pub mod script;
pub mod state;
#[cfg(test)]
mod testing;
pub mod time;

pub use event::Event;
pub use links::Links;
pub use router::{Router, Snapshot};
pub use state::{KernelState, Step};
pub use time::Time;
