//! The last metre: what we want of the kernel, and what we find. Two methods; `LinuxKernel` does them, the fake
//! of the tests is `KernelState::apply` plus scripted faults.

use std::future::Future;

use mwan::{KernelState, Step};

/// The kernel could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} from the kernel: {source}")]
pub struct ObserveError {
    pub what: &'static str,
    #[source]
    pub source: std::io::Error,
}

/// One step failed. The next plan begins from a new observation.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct StepError {
    /// The step, told to a person: "add address 10.10.10.1/24 to vlan10".
    pub step: String,
    #[source]
    pub source: std::io::Error,
}

pub trait Kernel: Send {
    /// Everything of ours, and those ports and sysctls that `want` names.
    fn observe(&mut self, want: &KernelState) -> impl Future<Output = Result<KernelState, ObserveError>> + Send;

    /// Idempotent: what is already so is a success.
    fn apply(&mut self, step: &Step) -> impl Future<Output = Result<(), StepError>> + Send;
}
