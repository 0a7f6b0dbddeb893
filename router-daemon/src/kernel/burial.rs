//! Ending the flows of a dead class: delete them, tell their inside ends, and look again for those that were born
//! while the ruleset changed under them.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use config::model::Kick;
use mwan::state::FlowClass;
use tokio::task::{AbortHandle, JoinSet};

use super::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, Socket};
use super::{aside, conntrack, kick, routing};

/// The later sweeps, owned: they end with this value, and a class that is revived is not swept again.
#[derive(Debug, Default)]
pub(crate) struct Burials {
    sweeps: JoinSet<()>,
    running: BTreeMap<FlowClass, AbortHandle>,
}

impl Burials {
    /// Returns when the flows of this moment are gone and their inside ends told.
    pub(crate) async fn begin(&mut self, class: FlowClass, kick: Kick) -> io::Result<()> {
        self.stop(class);
        let (ended, told) = aside(move || sweep(class, kick)).await?;
        tracing::debug!(%class, ended, told, "flows ended");
        let later = self.sweeps.spawn(async move {
            for pause in LATER {
                tokio::time::sleep(pause).await;
                match aside(move || sweep(class, kick)).await {
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
fn sweep(class: FlowClass, kick: Kick) -> io::Result<(usize, usize)> {
    let mut netfilter = Socket::open(NETLINK_NETFILTER)?;
    if kick == Kick::Silent {
        return conntrack::end(&mut netfilter, class).map(|()| (0, 0));
    }
    let flows = conntrack::flows(&mut netfilter, class, KICKED)?;
    conntrack::end(&mut netfilter, class)?;
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
