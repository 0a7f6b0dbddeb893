//! What changed, in one form for everybody outside: the API's events, syslog, webhooks, hooks and the log's fields.
//!
//! The loop and the parts beside it [tell](Happenings::tell); whoever wants to know follows. Telling never waits: a
//! follower that falls too far behind misses the oldest and learns how many. Nothing here does I/O.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use config::units::{EventKind, Family, PolicyName, WanName};
use mwan::event::{Health, Notice};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{broadcast, watch};

use crate::ask::{Author, Refusal};

/// One change of state. Its JSON is what webhooks, hooks and followers of the API are handed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Happening {
    /// Of this form: [`VERSION`]. Fields may be added within a version.
    pub version: u32,
    /// The start of routerd that told it, in microseconds since 1970. With `number` it names the event for ever.
    pub run: u64,
    /// Counts from 1 within a run, without gaps.
    pub number: u64,
    /// RFC 3339, UTC.
    pub time: String,
    pub severity: Severity,
    /// The whole of it in one sentence, for people.
    pub text: String,
    #[serde(flatten)]
    pub what: What,
}

/// How much it matters, in the words of syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Something does not work.
    Error,
    /// Somebody should look.
    Warning,
    /// It is as it should be, and worth knowing.
    Notice,
    Info,
}

impl Severity {
    /// RFC 5424, table 2; journald's PRIORITY is the same number.
    pub fn number(self) -> u8 {
        match self {
            Self::Error => 3,
            Self::Warning => 4,
            Self::Notice => 5,
            Self::Info => 6,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
            Self::Info => "info",
        }
    }
}

/// What changed. The tag `event` is the word of its [`EventKind`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// A line changed its state in one family.
    Health {
        #[schemars(with = "String")]
        wan: WanName,
        family: Family,
        from: Health,
        to: Health,
        why: String,
    },
    /// The lines a policy uses changed.
    Policy {
        #[schemars(with = "String")]
        policy: PolicyName,
        family: Family,
        #[schemars(with = "Vec<String>")]
        uses: Vec<WanName>,
    },
    /// A probe target fails on every line that uses it, and is not counted; or is counted again.
    Target { target: String, bad: bool },
    /// Most lines were lost together; or that is over.
    Outage {
        family: Family,
        outage: bool,
        #[schemars(with = "Vec<String>")]
        wans: Vec<WanName>,
    },
    /// The gateway of a line has another MAC; none where it does not answer.
    Gateway {
        #[schemars(with = "String")]
        wan: WanName,
        family: Family,
        mac: Option<String>,
    },
    /// The kernel has a site file. Where `confirm_seconds` is there, it waits for its confirmation.
    Applied {
        digest: String,
        history_number: Option<u64>,
        author: String,
        message: Option<String>,
        confirm_seconds: Option<u64>,
        flows_ended: u64,
    },
    /// A site file was not taken; what was in force stays, or is in force again.
    Refused { author: String, code: String, reason: String },
    /// A change that waited is kept.
    Confirmed { digest: String, author: String },
    /// A change is taken back. `cause` is the label of the metric.
    RolledBack { cause: String, reason: String },
    /// Somebody changed what is ours in the kernel, and it was put right.
    Drift {
        /// The first of the steps it took.
        repairs: Vec<String>,
    },
    /// The fast path went on or off; off without a reason is as the site file says.
    FastPath { on: bool, reason: Option<String> },
    /// What no entry of a cell (`office->guests`) allows passes for `seconds`; or passes no longer, and why.
    Audit { cell: String, seconds: Option<u64>, ended: Option<String> },
    /// A program that the router runs fails, and why; or runs again.
    Component { component: String, running: bool, why: Option<String> },
    /// A line got other addresses from its provider (`lease`); or there are none to use, and why.
    Lease {
        #[schemars(with = "String")]
        wan: WanName,
        family: Family,
        lease: Option<String>,
        reason: Option<String>,
    },
    /// This router of the pair is active now, or stands by; or both are active, and what that means.
    Pair { node: String, active: bool, trouble: Option<String> },
}

impl What {
    /// What a notice of the router comes to. That a config is configured is told when the kernel has it.
    pub fn of(notice: &Notice) -> Option<Self> {
        Some(match notice.clone() {
            Notice::Health { wan, family, from, to, why } => Self::Health { wan, family, from, to, why },
            Notice::BadTarget { target, bad } => Self::Target { target, bad },
            Notice::IspOutage { family, outage, wans } => Self::Outage { family, outage, wans },
            Notice::PolicyUses { policy, family, uses } => Self::Policy { policy, family, uses },
            Notice::GatewayMac { wan, family, mac } => {
                let mac = mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
                Self::Gateway { wan, family, mac }
            }
            Notice::Audited { pair, span } => {
                Self::Audit { cell: pair.to_string(), seconds: Some(span.as_secs()), ended: None }
            }
            Notice::AuditEnded { pair, why } => {
                Self::Audit { cell: pair.to_string(), seconds: None, ended: Some(why.told().to_owned()) }
            }
            Notice::Lease { wan, family, lease, why } => {
                Self::Lease { wan, family, lease: lease.map(|lease| lease.to_string()), reason: why }
            }
            Notice::Seat { seat } => Self::Pair { node: seat.node.to_string(), active: seat.active, trouble: None },
            Notice::Configured { .. } => return None,
        })
    }

    pub fn refused(author: &Author, refusal: &Refusal) -> Self {
        Self::Refused { author: author.to_string(), code: refusal.code.clone(), reason: refusal.message.clone() }
    }

    pub fn kind(&self) -> EventKind {
        match self {
            Self::Health { .. } => EventKind::Health,
            Self::Policy { .. } => EventKind::Policy,
            Self::Target { .. } => EventKind::Target,
            Self::Outage { .. } => EventKind::Outage,
            Self::Gateway { .. } => EventKind::Gateway,
            Self::Applied { .. } => EventKind::Applied,
            Self::Refused { .. } => EventKind::Refused,
            Self::Confirmed { .. } => EventKind::Confirmed,
            Self::RolledBack { .. } => EventKind::RolledBack,
            Self::Drift { .. } => EventKind::Drift,
            Self::FastPath { .. } => EventKind::FastPath,
            Self::Audit { .. } => EventKind::Audit,
            Self::Component { .. } => EventKind::Component,
            Self::Lease { .. } => EventKind::Lease,
            Self::Pair { .. } => EventKind::Pair,
        }
    }

    /// Everything but its kind, as names and values for forms that know only text. What is not there is left out.
    pub fn fields(&self) -> Vec<(String, String)> {
        let value = serde_json::to_value(self).unwrap_or_default();
        let Value::Object(fields) = value else { return Vec::new() };
        let text = |value: Value| match value {
            Value::Null => None,
            Value::String(text) => Some(text),
            Value::Array(values) => {
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                Some(values.iter().map(text).collect::<Vec<_>>().join(","))
            }
            value @ (Value::Bool(_) | Value::Number(_) | Value::Object(_)) => Some(value.to_string()),
        };
        let fields = fields.into_iter().filter(|(name, _)| name != "event");
        fields.filter_map(|(name, value)| Some((name, text(value)?))).collect()
    }

    pub fn severity(&self) -> Severity {
        match self {
            Self::Health { to, .. } => match to {
                Health::Down | Health::NoCarrier | Health::Degraded => Severity::Warning,
                Health::Up | Health::Held | Health::Unknown => Severity::Notice,
            },
            Self::Policy { uses, .. } if uses.is_empty() => Severity::Error,
            Self::Outage { outage: true, .. } | Self::Refused { .. } | Self::Pair { trouble: Some(_), .. } => {
                Severity::Error
            }
            Self::Target { bad: true, .. }
            | Self::RolledBack { .. }
            | Self::Drift { .. }
            | Self::Audit { ended: None, .. }
            | Self::Component { running: false, .. }
            | Self::Lease { lease: None, .. }
            | Self::Pair { trouble: None, .. }
            | Self::FastPath { on: false, reason: Some(_) } => Severity::Warning,
            Self::Policy { .. }
            | Self::Target { bad: false, .. }
            | Self::Outage { outage: false, .. }
            | Self::Applied { .. }
            | Self::Confirmed { .. }
            | Self::Audit { .. }
            | Self::Component { .. }
            | Self::Lease { .. }
            | Self::FastPath { .. } => Severity::Notice,
            Self::Gateway { .. } => Severity::Info,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |wans: &[WanName]| match wans {
            [] => "no line".to_owned(),
            wans => wans.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
        match self {
            Self::Health { wan, family, from, to, why } => {
                write!(f, "{wan} {family}: {} -> {}: {why}", from.word(), to.word())
            }
            Self::Policy { policy, family, uses } => write!(f, "{policy} {family} uses {}", names(uses)),
            Self::Target { target, bad: true } => write!(f, "{target} fails on every line: not counted"),
            Self::Target { target, bad: false } => write!(f, "{target} is counted again"),
            Self::Outage { family, outage: true, wans } => write!(f, "ISP outage in {family}: {}", names(wans)),
            Self::Outage { family, outage: false, .. } => write!(f, "ISP outage in {family} is over"),
            Self::Gateway { wan, family, mac: Some(mac) } => write!(f, "the gateway of {wan} {family} is at {mac}"),
            Self::Gateway { wan, family, mac: None } => write!(f, "the gateway of {wan} {family} does not answer"),
            Self::Applied { digest, author, message, confirm_seconds, .. } => {
                write!(f, "config {} is in force, by {author}", short(digest))?;
                if let Some(message) = message {
                    write!(f, " ({message})")?;
                }
                confirm_seconds.map_or(Ok(()), |left| write!(f, "; it is rolled back in {left} s unless confirmed"))
            }
            Self::Refused { author, reason, .. } => {
                write!(f, "a config by {author} was refused: {}", reason.lines().next().unwrap_or_default())
            }
            Self::Confirmed { digest, author } => write!(f, "config {} was confirmed by {author}", short(digest)),
            Self::RolledBack { reason, .. } => {
                write!(f, "the last change is rolled back: {}", reason.lines().next().unwrap_or_default())
            }
            Self::Drift { repairs } => {
                write!(f, "somebody changed what is ours in the kernel, and it was put right: {}", repairs.join("; "))
            }
            Self::FastPath { on: true, .. } => f.write_str("the fast path is on"),
            Self::FastPath { on: false, reason: Some(reason) } => write!(f, "there is no fast path: {reason}"),
            Self::FastPath { on: false, reason: None } => f.write_str("the fast path is off"),
            Self::Lease { wan, family, lease: Some(lease), .. } => write!(f, "{wan} {family} has the lease {lease}"),
            Self::Lease { wan, family, lease: None, reason } => {
                write!(f, "{wan} {family} has no lease to use: {}", reason.as_deref().unwrap_or("no lease yet"))
            }
            Self::Pair { trouble: Some(why), .. } => f.write_str(why),
            Self::Pair { node, active: true, .. } => write!(f, "{node} is the active router of the pair"),
            Self::Pair { node, active: false, .. } => {
                write!(f, "{node} stands by: the other router of the pair is active")
            }
            Self::Audit { cell, ended: Some(why), .. } => write!(f, "the audit of {cell} has ended: {why}"),
            Self::Audit { cell, seconds, ended: None } => {
                write!(f, "what no entry of {cell} allows passes for {} s", seconds.unwrap_or_default())
            }
            Self::Component { component, running: true, .. } => write!(f, "{component} runs"),
            Self::Component { component, why, .. } => {
                write!(f, "{component} does not run: {}", why.as_deref().unwrap_or("it has ended"))
            }
        }
    }
}

/// Where changes are told and followed. Clones share them.
#[derive(Debug, Clone)]
pub struct Happenings(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    run: u64,
    /// The number of the last one. Held while it is sent, so that followers see them in order.
    last: Mutex<u64>,
    followers: broadcast::Sender<Arc<Happening>>,
}

impl Default for Happenings {
    fn default() -> Self {
        let run = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let run = u64::try_from(run.as_micros()).unwrap_or(u64::MAX);
        Self(Arc::new(Shared { run, last: Mutex::new(0), followers: broadcast::Sender::new(BACKLOG) }))
    }
}

impl Happenings {
    /// Never waits.
    pub fn tell(&self, what: What) {
        let (severity, text) = (what.severity(), what.to_string());
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let happening = Happening { version: VERSION, run: self.0.run, number: *last, time, severity, text, what };
        // Nobody following is no failure.
        drop(self.0.followers.send(Arc::new(happening)));
    }

    #[cfg(test)]
    pub(crate) fn followers(&self) -> usize {
        self.0.followers.receiver_count()
    }

    /// Each from here on. A follower that falls too far behind misses some and learns how many.
    pub fn follow(&self) -> broadcast::Receiver<Arc<Happening>> {
        self.0.followers.subscribe()
    }
}

/// How the fast path is, for those who wait for a change of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FastPathState {
    pub on: bool,
    /// Why it is off although the site file wants it.
    pub reason: Option<String>,
}

/// Tells each change of it, until the other end is gone. Owns nothing that would be lost by cancelling it.
pub async fn tell_fast_path(mut state: watch::Receiver<FastPathState>, happenings: Happenings) {
    while state.changed().await.is_ok() {
        let FastPathState { on, reason } = state.borrow_and_update().clone();
        happenings.tell(What::FastPath { on, reason });
    }
}

/// Of a [`Happening`]'s JSON.
pub const VERSION: u32 = 1;
/// How far a follower may fall behind.
const BACKLOG: usize = 256;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn followers_see_all_in_order_and_learn_what_they_missed() {
        let happenings = Happenings::default();
        happenings.tell(What::Drift { repairs: vec![] });
        let (mut quick, mut slow) = (happenings.follow(), happenings.follow());
        for number in 0..300 {
            happenings.tell(What::Target { target: format!("icmp {number}"), bad: true });
            if number < 10 {
                assert_eq!(quick.recv().await.unwrap().number, number + 2);
            }
        }
        let missed = slow.recv().await.unwrap_err();
        assert_eq!(missed, broadcast::error::RecvError::Lagged(300 - BACKLOG as u64));
        assert_eq!(slow.recv().await.unwrap().number, 2 + 300 - BACKLOG as u64);
    }

    #[test]
    fn its_json_is_flat_and_tagged_by_the_word_of_its_kind() {
        let happenings = Happenings::default();
        let mut followed = happenings.follow();
        happenings.tell(What::Health {
            wan: "wan2".parse().unwrap(),
            family: Family::V4,
            from: Health::Up,
            to: Health::Down,
            why: "3 of 3 targets silent".to_owned(),
        });
        let told = followed.try_recv().unwrap();
        let mut value = serde_json::to_value(&*told).unwrap();
        assert_eq!(serde_json::from_value::<Happening>(value.clone()).unwrap(), *told);
        let fields = value.as_object_mut().unwrap();
        assert!(fields.remove("run").unwrap().is_u64());
        assert!(fields.remove("time").unwrap().is_string());
        let wanted = json!({
            "version": 1, "number": 1, "severity": "warning", "event": "health",
            "text": "wan2 IPv4: up -> down: 3 of 3 targets silent",
            "wan": "wan2", "family": "v4", "from": "up", "to": "down", "why": "3 of 3 targets silent",
        });
        assert_eq!(value, wanted);
    }

    #[test]
    fn every_tag_is_the_word_of_its_kind() {
        let (digest, author) = ("d".to_owned(), "alice".to_owned());
        let (wan, family): (WanName, _) = ("wan1".parse().unwrap(), Family::V6);
        let every = [
            What::Health { wan: wan.clone(), family, from: Health::Down, to: Health::Held, why: String::new() },
            What::Policy { policy: "all".parse().unwrap(), family, uses: vec![] },
            What::Target { target: String::new(), bad: false },
            What::Outage { family, outage: true, wans: vec![] },
            What::Gateway { wan: wan.clone(), family, mac: None },
            What::Applied {
                digest: digest.clone(),
                history_number: None,
                author: author.clone(),
                message: None,
                confirm_seconds: None,
                flows_ended: 0,
            },
            What::Refused { author: author.clone(), code: "config".to_owned(), reason: String::new() },
            What::Confirmed { digest, author },
            What::RolledBack { cause: "operator".to_owned(), reason: String::new() },
            What::Drift { repairs: vec![] },
            What::FastPath { on: true, reason: None },
            What::Audit { cell: "office->guests".to_owned(), seconds: Some(600), ended: None },
            What::Component { component: "chrony".to_owned(), running: false, why: None },
            What::Lease { wan, family, lease: None, reason: Some("lease expired".to_owned()) },
            What::Pair { node: "left".to_owned(), active: true, trouble: None },
        ];
        let kinds: Vec<_> = every.iter().map(What::kind).collect();
        assert_eq!(kinds, EventKind::ALL);
        let happenings = Happenings::default();
        let mut followed = happenings.follow();
        for what in every {
            // No field of a kind hides one that all have.
            happenings.tell(what.clone());
            let told = followed.try_recv().unwrap();
            let text = serde_json::to_string(&*told).unwrap();
            assert_eq!(serde_json::from_str::<Happening>(&text).unwrap(), *told);
            assert_eq!(serde_json::to_value(&what).unwrap()["event"], what.kind().word());
        }
    }
}
