//! A kernel without a kernel: [`KernelState::apply`] plus scripted faults. It cannot drift from the planner,
//! because it is the planner's own idea of what a step does. For tests of this crate and for simulations.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mwan::state::LinkKind;
use mwan::{KernelState, Step};

use super::{Kernel, ObserveError, StepError};

/// Clones are the same kernel: one is given to the reconciler, another stays with the test.
#[derive(Clone, Default)]
pub struct FakeKernel(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    state: KernelState,
    applied: Vec<Step>,
    observed: usize,
    /// How long a step takes.
    delay: Duration,
    fault: Option<Fault>,
    /// Fails the next this many observations.
    blind: usize,
}

type Fault = Box<dyn FnMut(&Step) -> Option<io::ErrorKind> + Send>;

impl FakeKernel {
    pub fn new(state: KernelState) -> Self {
        let fake = Self::default();
        fake.inside().state = state;
        fake
    }

    /// Asked before each step: `Some` refuses it.
    pub fn refuse(&self, fault: impl FnMut(&Step) -> Option<io::ErrorKind> + Send + 'static) {
        self.inside().fault = Some(Box::new(fault));
    }

    /// Refuses nothing any more.
    pub fn heal(&self) {
        self.inside().fault = None;
    }

    pub fn delay_steps(&self, delay: Duration) {
        self.inside().delay = delay;
    }

    pub fn fail_observations(&self, count: usize) {
        self.inside().blind = count;
    }

    pub fn state(&self) -> KernelState {
        self.inside().state.clone()
    }

    /// Somebody else changes something.
    pub fn tamper(&self, change: impl FnOnce(&mut KernelState)) {
        change(&mut self.inside().state);
    }

    /// The steps that succeeded since the last call.
    pub fn take_applied(&self) -> Vec<Step> {
        std::mem::take(&mut self.inside().applied)
    }

    pub fn observations(&self) -> usize {
        self.inside().observed
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeKernel").field("state", &self.inside().state).finish_non_exhaustive()
    }
}

impl Kernel for FakeKernel {
    async fn observe(&mut self, want: &KernelState) -> Result<KernelState, ObserveError> {
        let mut inside = self.inside();
        inside.observed += 1;
        if inside.blind > 0 {
            inside.blind -= 1;
            return Err(ObserveError { what: "anything", source: io::ErrorKind::Interrupted.into() });
        }
        let mut seen = inside.state.clone();
        seen.sysctls.retain(|name, _| want.sysctls.contains_key(name));
        seen.links.retain(|name, link| match link.kind {
            LinkKind::Port { .. } => want.links.contains_key(name),
            LinkKind::Bridge | LinkKind::Tagged { .. } => true,
        });
        Ok(seen)
    }

    async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        let delay = self.inside().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut inside = self.inside();
        if let Some(kind) = inside.fault.as_mut().and_then(|fault| fault(step)) {
            return Err(StepError { step: step.to_string(), source: kind.into() });
        }
        inside.state.apply(step);
        inside.applied.push(step.clone());
        Ok(())
    }
}
