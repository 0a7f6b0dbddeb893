//! Ending the flows of a dead class: delete them, tell their inside ends, and look again for those that were born
//! while the ruleset changed under them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::model::Kick;
use mwan::state::FlowClass;
use tokio::task::{AbortHandle, JoinSet};

use super::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, Socket};
use super::{aside, conntrack, kick, routing};

/// The later sweeps, owned: they end with this value, and a class that is revived is not swept again.
#[derive(Debug)]
pub(crate) struct Burials {
    /// Kept open: closing a netfilter socket right after an nft transaction waits until the kernel has freed what
    /// that replaced, 5 to 20 ms.
    netfilter: Arc<Mutex<Socket>>,
    sweeps: JoinSet<()>,
    running: BTreeMap<FlowClass, AbortHandle>,
}

impl Burials {
    pub(crate) fn open() -> io::Result<Self> {
        let netfilter = Arc::new(Mutex::new(Socket::open(NETLINK_NETFILTER)?));
        Ok(Self { netfilter, sweeps: JoinSet::new(), running: BTreeMap::new() })
    }

    /// Returns when the flows of this moment are gone and their inside ends told.
    pub(crate) async fn begin(&mut self, class: FlowClass, kick: Kick) -> io::Result<()> {
        self.stop(class);
        let netfilter = self.netfilter.clone();
        let sweep = move || sweep(&mut netfilter.lock().unwrap_or_else(PoisonError::into_inner), class, kick);
        let (ended, told) = aside(sweep.clone()).await?;
        tracing::debug!(%class, ended, told, "flows ended");
        let later = self.sweeps.spawn(async move {
            for pause in LATER {
                tokio::time::sleep(pause).await;
                match aside(sweep.clone()).await {
                    Ok((0, _)) => {}
                    Ok((ended, told)) => tracing::debug!(%class, ended, told, "flows born meanwhile ended"),
                    Err(error) => tracing::warn!(%class, %error, "flows of a dead class may live on"),
                }
            }
        });
        self.running.insert(class, later);
        Ok(())
    }

    pub(crate) fn stop(&mut self, class: FlowClass) {
        while self.sweeps.try_join_next().is_some() {}
        self.running.retain(|_, sweep| !sweep.is_finished());
        if let Some(sweep) = self.running.remove(&class) {
            sweep.abort();
        }
    }

    /// Only these are still dead.
    pub(crate) fn keep(&mut self, dead: &[FlowClass]) {
        let revived: Vec<_> = self.running.keys().filter(|class| !dead.contains(class)).copied().collect();
        for class in revived {
            self.stop(class);
        }
    }
}

/// How many flows were found and how many inside ends were told.
fn sweep(netfilter: &mut Socket, class: FlowClass, kick: Kick) -> io::Result<(usize, usize)> {
    if kick == Kick::Silent {
        return conntrack::end(netfilter, class).map(|()| (0, 0));
    }
    let flows = conntrack::flows(netfilter, class, KICKED)?;
    conntrack::end(netfilter, class)?;
    if flows.is_empty() {
        return Ok((0, 0));
    }
    let own = routing::own_addresses(&mut Socket::open(NETLINK_ROUTE)?)?;
    // The flows are gone, which is what counts.
    let told = kick::kick(&flows, kick, &own).unwrap_or_else(|error| {
        tracing::warn!(%class, %error, "the inside ends of ended flows were not told");
        0
    });
    Ok((flows.len(), told))
}

/// After +20 ms and +200 ms nothing that was on its way through the old buckets is left.
const LATER: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(180)];
/// Beyond that many, an inside end finds out by its own packets, which are reset too.
const KICKED: usize = 20_000;
