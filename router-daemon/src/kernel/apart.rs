//! Looks at the connections of policies that keep them apart: tells the ruleset which lines are taken, and ends one that
//! shares a line while another is free, so that it begins anew there. A thread of its own, asleep without such a policy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use config::Config;
use config::model::{Balance, Policy};
use config::units::{Family, WanId};
use mwan::state::{BucketKey, FlowClass, Slot, TAKEN};
use tokio::sync::watch;
use tracing::{debug, info};

use super::conntrack::{self, Connection};
use super::elements;
use super::named::{Lineage, Named};
use super::netlink::{NETLINK_NETFILTER, Socket};
use crate::apart::{Held, SpreadLine, Spreads, Together, free};

/// Looks until the config's sender is gone.
pub fn start(lineage: Lineage, mut config: watch::Receiver<Option<Arc<Config>>>, spreads: Spreads) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let mut looker = Looker {
        table: Named::open(lineage)?,
        socket: Socket::open(NETLINK_NETFILTER)?,
        together: Together::default(),
        taken: BTreeSet::new(),
        spreads,
    };
    let run = async move {
        loop {
            let in_force = config.borrow_and_update().clone();
            let changed = if let Some(config_now) = in_force.filter(|config| apart(config).next().is_some()) {
                let began = Instant::now();
                if let Err(error) = looker.look(&config_now) {
                    debug!(%error, "connections that belong apart were not looked at");
                }
                // A walk through a million flows takes its time; it takes no more than a twentieth of it.
                let pause = EVERY.max(began.elapsed() * 20);
                tokio::time::timeout(pause, config.changed()).await.unwrap_or(Ok(()))
            } else {
                looker.spreads.tell(Vec::new());
                config.changed().await
            };
            if changed.is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("apart".to_owned()).spawn(move || runtime.block_on(run)).map(drop)
}

struct Looker {
    table: Named,
    socket: Socket,
    together: Together,
    /// What was told to be taken at the last look.
    taken: BTreeSet<(IpAddr, FlowClass)>,
    spreads: Spreads,
}

impl Looker {
    fn look(&mut self, config: &Config) -> io::Result<()> {
        let (mut lines, mut alive, mut seen) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        let idle = Idle::read();
        for policy in apart(config) {
            let mut connections = conntrack::connections(&mut self.socket, policy.id)?;
            connections.retain(|connection| idle.is_alive(connection));
            let usable = Family::ALL.map(|family| self.usable(policy, family));
            let [v4, v6] = usable.map(|usable| usable.map(Option::unwrap_or_default));
            let (v4, v6) = (v4?, v6?);
            let mut clients: BTreeMap<IpAddr, Held> = BTreeMap::new();
            for Connection { found, .. } in &connections {
                let client = found.flow.original.source;
                *clients.entry(client).or_default().entry(found.class.wan).or_default() += 1;
                alive.insert((client, found.class));
            }
            for (client, held) in &clients {
                let usable = if client.is_ipv4() { &v4 } else { &v6 };
                seen.insert((policy.id, *client));
                lines.push(line(config, policy, *client, held, usable));
                let who = (policy.id, *client);
                let Some(crowded) = self.together.look(Instant::now(), who, policy.failback, (held, usable)) else {
                    continue;
                };
                let moved = connections.iter().find(|Connection { found, .. }| {
                    found.class.wan == crowded && found.flow.original.source == *client
                });
                if let Some(Connection { found, .. }) = moved {
                    let line = config.wan(crowded).map(|wan| wan.name.to_string());
                    info!(policy = %policy.name, %client, line, "a connection that shared its line begins anew on a free one");
                    conntrack::end_one(&mut self.socket, found)?;
                }
            }
        }
        self.together.keep(|who| seen.contains(who));
        // Those with trouble first, and no more than somebody reads.
        lines.sort_by_key(|line| line.trouble().is_none());
        lines.truncate(TOLD);
        self.spreads.tell(lines);
        // What ended frees its line at once; what lives keeps it.
        for gone in self.taken.difference(&alive) {
            self.table.free(gone.0, gone.1)?;
        }
        if !alive.is_empty() {
            self.table.take(&alive, TAKEN)?;
        }
        self.taken = alive;
        Ok(())
    }

    /// The lines that the ruleset chooses from; `None`: the table is in motion.
    fn usable(&mut self, policy: &Policy, family: Family) -> io::Result<Option<BTreeSet<WanId>>> {
        let key = BucketKey { policy: policy.name.clone(), family };
        let buckets = elements::buckets(&mut self.socket, &key)?;
        let line = |slot: &Slot| match slot {
            Slot::Wan(line) => Some(*line),
            Slot::Unreachable | Slot::Blackhole => None,
        };
        Ok(buckets.map(|buckets| buckets.0.iter().filter_map(line).collect()))
    }
}

fn apart(config: &Config) -> impl Iterator<Item = &Policy> {
    config.policies.values().filter(|policy| policy.balance == Balance::Spread)
}

fn line(config: &Config, policy: &Policy, client: IpAddr, held: &Held, usable: &BTreeSet<WanId>) -> SpreadLine {
    let name = |line: &WanId| config.wan(*line).map_or_else(|| line.to_string(), |wan| wan.name.to_string());
    SpreadLine {
        policy: policy.name.to_string(),
        client: client.to_string(),
        connections: held.iter().map(|(line, count)| (name(line), *count)).collect(),
        free: free(held, usable).iter().map(name).collect(),
    }
}

/// What the kernel leaves a flow whose last packet was [`SILENT`] ago, in seconds.
struct Idle {
    udp: u32,
    udp_new: u32,
}

impl Idle {
    fn read() -> Self {
        let read = |name: &str, default: u32| {
            let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok();
            let seconds = text.and_then(|text| text.trim().parse().ok()).unwrap_or(default);
            seconds.saturating_sub(u32::try_from(SILENT.as_secs()).unwrap_or(u32::MAX))
        };
        Self { udp: read("nf_conntrack_udp_timeout_stream", 120), udp_new: read("nf_conntrack_udp_timeout", 30) }
    }

    /// A connection over TCP lives until it is closed; over UDP nothing says so but packets.
    fn is_alive(&self, connection: &Connection) -> bool {
        match connection.found.flow.original.protocol {
            TCP => connection.tcp_state.is_some_and(|state| (SYN_SENT..=ESTABLISHED).contains(&state)),
            _ if connection.assured => connection.remaining >= self.udp,
            _ => connection.remaining >= self.udp_new,
        }
    }
}

/// Clients in the status.
const TOLD: usize = 64;
/// Between two looks; a third of [`TAKEN`], so that one may fail.
const EVERY: Duration = Duration::from_secs(2);
/// The fast path tells conntrack of a flow's packets every ten seconds.
const SILENT: Duration = Duration::from_secs(20);
const TCP: u8 = 6;
/// `TCP_CONNTRACK_*`.
const SYN_SENT: u8 = 1;
const ESTABLISHED: u8 = 3;
