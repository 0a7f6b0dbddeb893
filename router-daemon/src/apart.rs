//! Connections that a policy keeps on different lines (`balance = "spread"`): who has how many where, and which of two
//! that came together on one line is moved. Pure; [`crate::kernel::apart`] looks, and moves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use config::model::Failback;
use config::units::{PolicyId, WanId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The connections of one client by one policy. Part of version 1 of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpreadLine {
    pub policy: String,
    pub client: String,
    /// Live connections by line.
    pub connections: BTreeMap<String, u64>,
    /// Usable lines that have none while another has two or more.
    pub free: Vec<String>,
}

impl SpreadLine {
    /// Where one line carries more than it need.
    pub fn trouble(&self) -> Option<String> {
        let (line, count) = self.connections.iter().max_by_key(|(_, count)| **count)?;
        if self.free.is_empty() {
            return None;
        }
        let Self { policy, client, free, .. } = self;
        Some(format!(
            "{policy}: {count} connections of {client} are together on {line}, and none on {}",
            free.join(", ")
        ))
    }
}

impl fmt::Display for SpreadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, client, connections, .. } = self;
        let lines: Vec<_> = connections.iter().map(|(line, count)| format!("{count} on {line}")).collect();
        write!(f, "{policy}: {client} has connections: {}", lines.join(", "))
    }
}

/// What the last look found. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Spreads(Arc<Mutex<Vec<SpreadLine>>>);

impl Spreads {
    pub fn lines(&self) -> Vec<SpreadLine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn tell(&self, lines: Vec<SpreadLine>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = lines;
    }
}

/// The connections of one client on each line.
pub(crate) type Held = BTreeMap<WanId, u64>;

/// The usable lines without a connection, where another has two or more.
pub(crate) fn free(held: &Held, usable: &BTreeSet<WanId>) -> Vec<WanId> {
    if held.values().all(|count| *count < 2) {
        return Vec::new();
    }
    usable.iter().filter(|line| !held.contains_key(line)).copied().collect()
}

/// Since when connections of a client are together without need, or when its next may be moved.
#[derive(Debug, Default)]
pub(crate) struct Together(BTreeMap<(PolicyId, IpAddr), Instant>);

impl Together {
    /// The line that is to lose one of its connections now, so that it finds one that is free: after what the policy's
    /// `failback` says, one at a time.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        (policy, client): (PolicyId, IpAddr),
        failback: Failback,
        (held, usable): (&Held, &BTreeSet<WanId>),
    ) -> Option<WanId> {
        let wait = match failback {
            Failback::Stay => None,
            Failback::Drain(time) => Some(time),
            Failback::Force => Some(Duration::ZERO),
        };
        let Some(wait) = wait.filter(|_| !free(held, usable).is_empty()) else {
            self.0.remove(&(policy, client));
            return None;
        };
        let due = self.0.entry((policy, client)).or_insert(now + wait);
        if *due > now {
            return None;
        }
        *due = now + wait.max(PAUSE);
        held.iter().max_by_key(|(_, count)| **count).map(|(line, _)| *line)
    }

    /// Forgets clients that have nothing any more.
    pub(crate) fn keep(&mut self, there: impl Fn(&(PolicyId, IpAddr)) -> bool) {
        self.0.retain(|who, _| there(who));
    }
}

/// Until the next connection of a client is moved: the one before it needs a handshake, and a look has to see it.
const PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn wan(id: u8) -> WanId {
        WanId::new(id).unwrap()
    }

    fn held(counts: [u64; 4]) -> Held {
        (1..).map(wan).zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    fn usable(lines: &[u8]) -> BTreeSet<WanId> {
        lines.iter().copied().map(wan).collect()
    }

    #[test]
    fn a_line_is_free_only_where_another_has_two() {
        assert_eq!(free(&held([1, 1, 1, 0]), &usable(&[1, 2, 3, 4])), []);
        assert_eq!(free(&held([2, 1, 1, 0]), &usable(&[1, 2, 3, 4])), [wan(4)]);
        assert_eq!(free(&held([2, 1, 1, 0]), &usable(&[1, 2, 3])), []);
        assert_eq!(free(&held([2, 2, 0, 0]), &usable(&[1, 2, 3, 4])), [wan(3), wan(4)]);
    }

    #[test]
    fn one_connection_is_moved_after_its_time_and_the_next_after_a_pause() {
        let (mut together, start) = (Together::default(), Instant::now());
        let who = (PolicyId(1), "10.0.99.5".parse().unwrap());
        let drain = Failback::Drain(Duration::from_secs(30));
        let (crowd, all) = (held([3, 1, 0, 0]), usable(&[1, 2, 3, 4]));
        let mut look = |seconds, failback, held: &Held| {
            together.look(start + Duration::from_secs(seconds), who, failback, (held, &all))
        };
        assert_eq!(look(0, drain, &crowd), None);
        assert_eq!(look(29, drain, &crowd), None);
        assert_eq!(look(30, drain, &crowd), Some(wan(1)));
        assert_eq!(look(31, drain, &crowd), None);
        assert_eq!(look(60, drain, &crowd), Some(wan(1)));
        // Apart in between: the time begins anew.
        assert_eq!(look(62, drain, &held([1, 1, 1, 1])), None);
        assert_eq!(look(90, drain, &crowd), None);
        assert_eq!(look(90, Failback::Stay, &crowd), None);
        assert_eq!(look(200, Failback::Force, &crowd), Some(wan(1)));
        assert_eq!(look(209, Failback::Force, &crowd), None);
        assert_eq!(look(210, Failback::Force, &crowd), Some(wan(1)));
    }

    #[test]
    fn it_says_who_is_together_where() {
        let connections = BTreeMap::from([("wan1".to_owned(), 2), ("wan2".to_owned(), 1)]);
        let (policy, client) = ("tunnel".to_owned(), "10.0.99.5".to_owned());
        let mut line = SpreadLine { policy, client, connections, free: vec!["wan3".to_owned()] };
        assert_eq!(
            line.trouble().unwrap(),
            "tunnel: 2 connections of 10.0.99.5 are together on wan1, and none on wan3"
        );
        line.free.clear();
        assert_eq!(line.trouble(), None);
        assert_eq!(line.to_string(), "tunnel: 10.0.99.5 has connections: 2 on wan1, 1 on wan2");
    }
}
