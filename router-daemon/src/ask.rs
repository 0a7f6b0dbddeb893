//! What the API may ask of the event loop, and what it gets. The loop owns the router; everybody else sends one
//! of these and waits for the answer.

use std::sync::Arc;

use config::Config;
use mwan::decide::Decision;
use mwan::{KernelState, Step};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// A question or an order to the event loop.
#[derive(Debug)]
pub enum Ask {
    /// Everything a reader may want to know, at one moment.
    View(oneshot::Sender<View>),
    /// What would change if this file took effect.
    Plan { text: String, reply: oneshot::Sender<Result<PlanReport, Refusal>> },
    /// Make this file take effect. Answers when the kernel has it, or when it failed and the old one is back.
    Apply { text: String, reply: oneshot::Sender<Result<ApplyReport, Refusal>> },
    /// Drain, undrain, fail-test.
    Operator { request: mwan::event::Request, reply: oneshot::Sender<Result<(), Refusal>> },
}

/// The router at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// `None` before the first config.
    pub config: Option<Arc<Config>>,
    /// The text the config was parsed from.
    pub text: Arc<str>,
    pub wanted: Option<Arc<KernelState>>,
    pub snapshot: mwan::router::Snapshot,
    /// What the health of the lines amounts to: `explain` answers by it.
    pub decision: Decision,
    pub applies: Applies,
}

/// How applying has gone so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applies {
    /// The kernel is as the router wants it at this moment.
    pub current: bool,
    pub succeeded: u64,
    pub failed: u64,
    /// Times the kernel was found changed by somebody else and put right.
    pub drift_repaired: u64,
    /// The last failure that has not been followed by a success.
    pub failing: Option<String>,
    /// Ports and other parts of the config that wait for something to appear, told to a person.
    pub waiting: Vec<String>,
    /// How the config in force and the operator's file differ, told to a person.
    #[serde(default)]
    pub unlike_file: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanReport {
    pub steps: Vec<Step>,
    /// Live flows the new matrix would deny or that lose their line.
    pub flows_that_die: u64,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApplyReport {
    pub digest: String,
    pub steps: usize,
    pub flows_ended: u64,
    pub warnings: Vec<String>,
}

/// Why an order was not carried out. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable word for programs: `config`, `assert`, `unknown-wan`, `busy`, `kernel`, `not-configured`.
    pub code: String,
    /// For people, rendered; several lines for config problems.
    pub message: String,
}
