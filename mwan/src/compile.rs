//! `Config`, `Decision` and `Links` to the kernel state we want.

use config::Config;

use crate::decide::Decision;
use crate::links::Links;
use crate::state::KernelState;

/// The kernel as it should be. Cannot fail: a `Config` cannot be wrong.
pub fn compile(_config: &Config, decision: &Decision, _links: &Links) -> KernelState {
    KernelState { buckets: decision.buckets.clone(), dead: decision.dead.clone(), ..KernelState::default() }
}
