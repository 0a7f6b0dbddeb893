//! Everything that can wake the router, and everything it asks for: one closed enum each. The journal is a list
//! of these, so they hold only values that can be written down.

use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::model::Seat;
use config::units::{Family, PolicyName, WanId, WanName};
use serde::{Deserialize, Serialize};

use crate::audit::{AuditEnd, Pair};
use crate::lease::{Grant, Lease};
use crate::links::Links;
use crate::passive::Traffic;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A checked file takes effect.
    Config(Arc<Config>),
    /// The links, as they are as a whole after something about them changed.
    Links(Links),
    /// The kernel was made what was wanted, for the first time since start: from here on probes find their way, and
    /// what answers them is known.
    InForce,
    /// The kernel's view of a gateway's neighbour entry changed: `Some` MAC when it resolves.
    Neighbour { wan: WanId, family: Family, mac: Option<[u8; 6]> },
    /// A probe was answered.
    Reply(Reply),
    /// This many flows sent by a line for this long, and nothing came back by it. Said once for each silence.
    Silence { wan: WanId, family: Family, flows: u32, span: Duration },
    /// What the lines' traffic showed since the last report; lines without any are left out.
    Traffic(Vec<Traffic>),
    /// What became of the lease of a line. It may come before the config that names the line.
    Lease { wan: WanName, family: Family, grant: Grant },
    /// Which router of the pair this is, and whether it is active.
    Seat(Seat),
    /// A deadline passed. Carries nothing: the time of the call says all.
    Timeout,
    /// An operator asks.
    Request(Request),
}

/// The probe `Router::poll_probe` handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub wan: WanId,
    /// Index into `Probing::targets` of that WAN.
    pub target: usize,
    pub seq: u64,
    /// The driver may give up after this long: the core has counted it as lost by then.
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub wan: WanId,
    pub target: usize,
    pub seq: u64,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Answered well, after this long.
    Answered { rtt: Duration },
    /// Refused, unreachable, wrong answer: known to be lost before its timeout.
    Failed { why: Failure },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    Unreachable,
    Refused,
    WrongAnswer,
    /// Our own socket could not send: no route, no address, link down.
    CannotSend,
}

impl Failure {
    pub fn word(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::WrongAnswer => "wrong answer",
            Self::CannotSend => "cannot send",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// No new flows; existing ones stay.
    Drain {
        wan: WanName,
    },
    Undrain {
        wan: WanName,
    },
    /// Treat the line as down for this long, kill and all.
    FailTest {
        wan: WanName,
        span: Duration,
    },
    /// Let pass for this long what no entry of this cell allows. Whoever asks has asked [`crate::audit::check`].
    Audit {
        pair: Pair,
        span: Duration,
    },
    EndAudit {
        pair: Pair,
    },
}

/// Something that happened and that a person may want to know: logged, journalled, counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Notice {
    /// A line changed its state in one family. `why` is a sentence for people.
    Health {
        wan: WanName,
        family: Family,
        from: Health,
        to: Health,
        why: String,
    },
    /// One target fails on every line that uses it while their other targets answer: it is not counted.
    BadTarget {
        target: String,
        bad: bool,
    },
    /// Most lines were lost together: flows are frozen, not killed.
    IspOutage {
        family: Family,
        outage: bool,
        wans: Vec<WanName>,
    },
    /// The lines a policy uses changed.
    PolicyUses {
        policy: PolicyName,
        family: Family,
        uses: Vec<WanName>,
    },
    /// A config took effect.
    Configured {
        digest: String,
    },
    /// The gateway's MAC behind a line changed.
    GatewayMac {
        wan: WanName,
        family: Family,
        mac: Option<[u8; 6]>,
    },
    /// The addresses of a line in one family changed with its lease; without a lease, `why` says why there is none.
    Lease {
        wan: WanName,
        family: Family,
        lease: Option<Lease>,
        why: Option<String>,
    },
    /// This router of the pair became active, or gave that up.
    Seat {
        seat: Seat,
    },
    /// What no entry of this cell allows passes for this long.
    Audited {
        pair: Pair,
        span: Duration,
    },
    AuditEnded {
        pair: Pair,
        why: AuditEnd,
    },
}

/// The state of one line in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Not judged yet. Not used while another line is up; used if it is all there is.
    Unknown,
    Up,
    /// Answers, but beyond a loss, latency or jitter threshold: used only when no `Up` member is left in any tier.
    Degraded,
    /// Good again, waiting out its hold time before it is used.
    Held,
    Down,
    /// The interface is missing or has no carrier.
    NoCarrier,
}

impl Health {
    /// As it stands in status, metrics (`state` label) and the mwan3 aliases' documentation.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Held => "held",
            Self::Down => "down",
            Self::NoCarrier => "no-carrier",
        }
    }
}
