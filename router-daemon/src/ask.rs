//! What the API may ask of the event loop, and what it gets. The loop owns the router; everybody else sends one
//! of these and waits for the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use mwan::audit::Pair;
use mwan::decide::Decision;
use mwan::{KernelState, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::history::{Inherited, Past};
use crate::session::Session;

/// A question or an order to the event loop.
#[derive(Debug)]
pub enum Ask {
    /// Everything a reader may want to know, at one moment.
    View(oneshot::Sender<View>),
    /// What would change if this file took effect.
    Plan { text: String, reply: oneshot::Sender<Result<PlanReport, Refusal>> },
    /// Make this file take effect. Answers when the kernel has it, or when it failed and the old one is back.
    Apply {
        text: String,
        how: How,
        author: Author,
        /// The history that came with the file.
        past: Option<Past>,
        reply: oneshot::Sender<Result<ApplyReport, Refusal>>,
    },
    /// Keep what waits for its confirmation.
    Confirm { author: Author, reply: oneshot::Sender<Result<ApplyReport, Refusal>> },
    /// Take back what waits for its confirmation. Answers when the kernel has the previous config.
    RollBack { author: Author, reply: oneshot::Sender<Result<ApplyReport, Refusal>> },
    /// Let pass what a cell denies, where that is safe.
    Audit { pair: Pair, span: Duration, isolated: bool, reply: oneshot::Sender<Result<(), Refusal>> },
    /// Drain, undrain, fail-test, the end of an audit.
    Operator { request: mwan::event::Request, reply: oneshot::Sender<Result<(), Refusal>> },
}

/// On what terms a file shall take effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct How {
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// It is rolled back unless it is confirmed within this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_milliseconds: Option<u64>,
    /// It is rolled back unless nothing got worse within this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_milliseconds: Option<u64>,
    /// Even if it cuts the session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// What the operator works over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
}

/// Who asked: a user, by the credentials of the socket, or the daemon's own reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Author {
    pub name: String,
    pub uid: Option<u32>,
}

impl Author {
    pub fn start() -> Self {
        Self { name: "start".to_owned(), uid: None }
    }

    pub fn hang_up() -> Self {
        Self { name: "SIGHUP".to_owned(), uid: None }
    }
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) if uid > 0 => write!(f, "{} (uid {uid})", self.name),
            Some(_) | None => f.write_str(&self.name),
        }
    }
}

/// A change that is live and not the last word yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PendingChange {
    pub author: Author,
    pub message: Option<String>,
    pub remaining_seconds: u64,
    pub window_seconds: u64,
    /// It is measured, and confirmed if nothing gets worse.
    pub guard: bool,
}

impl fmt::Display for PendingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { author, message, remaining_seconds, guard, .. } = self;
        let rest = Duration::from_secs(*remaining_seconds);
        write!(f, "a change by {author}")?;
        if let Some(message) = message {
            write!(f, " ({message})")?;
        }
        let rest = humantime::format_duration(rest).to_string().replace(' ', "");
        match guard {
            false => write!(f, " is rolled back in {rest} unless you type `routerctl confirm`")?,
            true => write!(f, " is measured, and rolled back if anything gets worse ({rest} at most)")?,
        }
        write!(f, "; `routerctl rollback` takes it back at once")
    }
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    #[serde(default)]
    pub pending: Option<PendingChange>,
    /// Changes taken back since the start, by the word of the reason.
    #[serde(default)]
    pub rollbacks: BTreeMap<String, u64>,
    /// Why the last change was taken back, unless an operator wanted it so, until another takes effect.
    #[serde(default)]
    pub rolled_back: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanReport {
    pub steps: Vec<Step>,
    /// Live flows the new matrix would deny or that lose their line.
    pub flows_that_die: u64,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyReport {
    pub digest: String,
    pub steps: usize,
    pub flows_ended: u64,
    pub warnings: Vec<String>,
    /// In the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// It is rolled back after this time unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_milliseconds: Option<u64>,
    /// What a guard found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
    /// What became of the history that came with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited: Option<Inherited>,
}

/// Why an order was not carried out. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable word for programs: `config`, `assert`, `unknown-wan`, `busy`, `kernel`, `not-configured`,
    /// `pending`, `nothing-pending`, `cuts-session`, `guard`, `unknown-number`, `audit`, `trace`, `bundle`, `untrusted`,
    /// `key`.
    pub code: String,
    /// For people, rendered; several lines for config problems.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    pub(crate) fn not_configured() -> Self {
        Self::new("not-configured", "no configuration is in force; `routerctl apply FILE` puts one in force")
    }

    pub(crate) fn unknown_wan(wan: impl fmt::Display, config: &Config) -> Self {
        let known = config.wans.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Self::new("unknown-wan", format!("there is no wan `{wan}`; there are: {known}"))
    }
}

/// Work that takes longer than a failover may wait for the one thread that everything else runs on: a text may be long.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let failed = |error| Refusal::new("internal", format!("the work on it failed: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// Why a change is taken back: nobody confirmed it, an operator wanted it back, the guard measured something worse,
/// the kernel refused it, or it was decided when the daemon started.
pub const ROLLBACKS: [&str; 5] = ["unconfirmed", "operator", "guard", "kernel", "restart"];
