//! What audits of cells have let pass: noted as the packet log tells it, read by whoever asked for the audit. The core
//! decides when one begins and ends; the event loop says so here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use config::Config;
use mwan::audit::{AuditEnd, Pair, Seen, propose};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event_log::{Denied, Kind};

/// The audits that run, and the last of each cell. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Audits(Arc<Mutex<BTreeMap<Pair, Record>>>);

#[derive(Debug)]
struct Record {
    until: SystemTime,
    /// By what a person tells them apart by: the ends and the service.
    flows: BTreeMap<(String, String, String), (Seen, u64)>,
    /// Flows that found no room.
    more: u64,
    ended: Option<AuditEnd>,
}

/// What came of an audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditReport {
    /// `office->guests`
    pub cell: String,
    /// Why it ended; absent while it runs.
    pub ended: Option<String>,
    pub seen: Vec<SeenFlow>,
    /// Flows that are not among them because there were too many.
    pub more: u64,
    /// Entries that would allow it, to be pasted into the site file; empty where nothing is missing.
    pub proposal: String,
}

/// Flows that an audit let pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeenFlow {
    /// A host's name or an address.
    pub from: String,
    pub to: String,
    pub service: String,
    pub count: u64,
}

impl Audits {
    pub fn begin(&self, pair: &Pair, span: Duration, now: SystemTime) {
        let record = Record { until: now + span, flows: BTreeMap::new(), more: 0, ended: None };
        self.records().insert(pair.clone(), record);
    }

    pub fn end(&self, pair: &Pair, why: AuditEnd) {
        if let Some(record) = self.records().get_mut(pair) {
            record.ended = Some(why);
        }
    }

    /// A logged packet; others than those of audits are passed over.
    pub fn note(&self, logged: &Denied) {
        if logged.kind != Kind::Audit {
            return;
        }
        let mut records = self.records();
        let Some(record) = logged.cell.parse().ok().and_then(|pair: Pair| records.get_mut(&pair)) else { return };
        let key = (logged.from.to_string(), logged.to.to_string(), logged.service.clone());
        let seen =
            Seen { source: logged.from.address, destination: logged.to.address, protocol: logged.transport.protocol() };
        if record.flows.len() < MOST_FLOWS || record.flows.contains_key(&key) {
            record.flows.entry(key).or_insert((seen, 0)).1 += 1;
        } else {
            record.more += 1;
        }
    }

    /// Until when a cell is audited.
    pub fn until(&self, pair: &Pair) -> Option<SystemTime> {
        self.records().get(pair).filter(|record| record.ended.is_none()).map(|record| record.until)
    }

    /// Of the last audit of this cell; `None` where there was none since the start.
    pub fn report(&self, config: &Config, pair: &Pair) -> Option<AuditReport> {
        let records = self.records();
        let record = records.get(pair)?;
        let seen: Vec<_> = record.flows.values().map(|(seen, _)| *seen).collect();
        let told = |((from, to, service), (_, count)): (&(String, String, String), &(Seen, u64))| SeenFlow {
            from: from.clone(),
            to: to.clone(),
            service: service.clone(),
            count: *count,
        };
        Some(AuditReport {
            cell: pair.to_string(),
            ended: record.ended.map(|why| why.told().to_owned()),
            seen: record.flows.iter().map(told).collect(),
            more: record.more,
            proposal: propose(config, pair, &seen),
        })
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<Pair, Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ended {
            Some(why) => write!(f, "{} is no longer audited: {why}", self.cell)?,
            None => write!(f, "{} is audited", self.cell)?,
        }
        if self.seen.is_empty() {
            return f.write_str("; nothing that it denies was seen");
        }
        for SeenFlow { from, to, service, count } in &self.seen {
            write!(f, "\n  {count:>5}x {from} -> {to} {service}")?;
        }
        if self.more > 0 {
            write!(f, "\n  and {} flows of others", self.more)?;
        }
        match self.proposal.trim_end() {
            "" => f.write_str("\nthe site file in force allows all of it"),
            proposal => write!(f, "\nto allow it:\n{proposal}"),
        }
    }
}

/// Different flows remembered of an audit.
const MOST_FLOWS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_log::{Logged, name, packet};
    use crate::fixture;

    #[test]
    fn what_an_audit_let_pass_is_counted_and_becomes_an_entry() {
        let (audits, config) = (Audits::default(), fixture::config());
        let pair: Pair = "dev->compute".parse().unwrap();
        let logged = |prefix: &str, port| {
            let interface = |name: &str| name.parse().ok();
            let payload = packet::tests::ipv4(6, &[4, 0, 0, port]);
            let logged = Logged {
                prefix: prefix.to_owned(),
                in_interface: interface("vlan50"),
                out_interface: interface("vlan60"),
                payload,
            };
            name(&config, &logged, SystemTime::UNIX_EPOCH).unwrap()
        };
        assert_eq!(audits.report(&config, &pair), None);
        audits.begin(&pair, Duration::from_mins(1), SystemTime::UNIX_EPOCH);
        for (prefix, port) in [("qw audit", 22), ("qw audit", 22), ("qw forward", 80), ("qw audit", 23)] {
            audits.note(&logged(prefix, port));
        }
        let told = logged("qw audit", 22).to_string();
        assert_eq!(told, "dev/dev1 -> compute/worker3 tcp/22: no entry allows it, and an audit let it pass");
        assert!(audits.until(&pair).is_some());
        audits.end(&pair, AuditEnd::Time);
        assert_eq!(audits.until(&pair), None);
        assert_eq!(
            audits.report(&config, &pair).unwrap().to_string(),
            "dev->compute is no longer audited: its time is over\n      2x dev1 -> worker3 tcp/22\n      \
             1x dev1 -> worker3 tcp/23\nto allow it:\n[[cell]]\nfrom = \"dev\"\nto = \"compute\"\n\
             from_hosts = [\"dev1\"]\nhosts = [\"worker3\"]\nservices = [\"tcp/22\", \"tcp/23\"]"
        );
        audits.begin(&pair, Duration::from_mins(1), SystemTime::UNIX_EPOCH);
        assert_eq!(
            audits.report(&config, &pair).unwrap().to_string(),
            "dev->compute is audited; nothing that it denies was seen"
        );
    }
}
