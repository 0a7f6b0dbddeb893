//! Ending the flows of dead classes: delete them, tell their inside ends, and look again for those that were born
//! while the ruleset changed under them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use config::model::Kick;
use mwan::state::FlowClass;
use nix::ifaddrs::getifaddrs;
use tokio::task::JoinSet;

use super::netlink::{NETLINK_NETFILTER, Socket};
use super::{aside, conntrack, kick};

/// The classes of one burial that are still dead.
type Classes = Arc<Mutex<BTreeMap<FlowClass, Kick>>>;

/// The later sweeps, owned: they end with this value, and a class that is revived is not swept again.
#[derive(Debug)]
pub(crate) struct Burials {
    /// Kept open: closing a netfilter socket right after an nft transaction waits until the kernel has freed what
    /// that replaced, 5 to 20 ms.
    netfilter: Arc<Mutex<Socket>>,
    sweeps: JoinSet<()>,
    running: Vec<Weak<Mutex<BTreeMap<FlowClass, Kick>>>>,
}

impl Burials {
    pub(crate) fn open() -> io::Result<Self> {
        let netfilter = Arc::new(Mutex::new(Socket::open(NETLINK_NETFILTER)?));
        Ok(Self { netfilter, sweeps: JoinSet::new(), running: Vec::new() })
    }

    /// Returns when the flows of this moment are gone and their inside ends told.
    pub(crate) async fn begin(&mut self, classes: BTreeMap<FlowClass, Kick>) -> io::Result<()> {
        for class in classes.keys() {
            self.stop(*class);
        }
        let classes: Classes = Arc::new(Mutex::new(classes));
        self.running.push(Arc::downgrade(&classes));
        let netfilter = Arc::clone(&self.netfilter);
        let sweep = move || sweep(&mut lock(&netfilter), &lock(&classes).clone());
        let (ended, told) = aside(sweep.clone()).await?;
        tracing::debug!(ended, told, "flows ended");
        self.sweeps.spawn(async move {
            for pause in LATER {
                tokio::time::sleep(pause).await;
                match aside(sweep.clone()).await {
                    Ok((0, _)) => {}
                    Ok((ended, told)) => tracing::debug!(ended, told, "flows born meanwhile ended"),
                    Err(error) => tracing::warn!(%error, "flows of a dead class may live on"),
                }
            }
        });
        Ok(())
    }

    pub(crate) fn stop(&mut self, class: FlowClass) {
        self.retain(|dead| *dead != class);
    }

    /// Only these are still dead.
    pub(crate) fn keep(&mut self, dead: &[FlowClass]) {
        self.retain(|class| dead.contains(class));
    }

    fn retain(&mut self, stays: impl Fn(&FlowClass) -> bool) {
        while self.sweeps.try_join_next().is_some() {}
        self.running.retain(|classes| {
            let Some(classes) = classes.upgrade() else { return false };
            lock(&classes).retain(|class, _| stays(class));
            true
        });
    }
}

/// How many flows were found and how many inside ends were told.
fn sweep(netfilter: &mut Socket, classes: &BTreeMap<FlowClass, Kick>) -> io::Result<(usize, usize)> {
    let lines: BTreeSet<_> = classes.keys().map(|class| class.wan).collect();
    let mut flows = Vec::new();
    for line in lines {
        flows.extend(conntrack::flows(netfilter, line, |class| classes.contains_key(&class), KICKED)?);
    }
    // Each walk through a table of many flows takes some milliseconds, on the way to the next good packet.
    if flows.len() <= FEW {
        flows.iter().try_for_each(|found| conntrack::end_one(netfilter, found))?;
    } else {
        classes.keys().try_for_each(|class| conntrack::end(netfilter, *class))?;
    }
    if flows.is_empty() {
        return Ok((0, 0));
    }
    let own = own_addresses()?;
    let mut told = 0;
    for kick in [Kick::Tcp, Kick::All] {
        let kicked = flows.iter().filter(|found| classes.get(&found.class) == Some(&kick));
        let kicked: Vec<_> = kicked.map(|found| found.flow.clone()).collect();
        // The flows are gone, which is what counts.
        told += kick::kick(&kicked, kick, &own).unwrap_or_else(|error| {
            tracing::warn!(%error, "the inside ends of ended flows were not told");
            0
        });
    }
    Ok((flows.len(), told))
}

/// Every address of the namespace, ours or not: a flow that ends at one of them ends at this machine.
fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let all: Vec<_> = getifaddrs()?.filter_map(|interface| interface.address).collect();
    let v4 = all.iter().filter_map(|address| Some(IpAddr::V4(address.as_sockaddr_in()?.ip())));
    let v6 = all.iter().filter_map(|address| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())));
    Ok(v4.chain(v6).collect())
}

/// A sweep that panicked is reported where it is joined; what the others share is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many flows are ended one by one faster than by walking through all.
const FEW: usize = 500;
/// After +20 ms and +200 ms nothing that was on its way through the old buckets is left.
const LATER: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(180)];
/// Beyond that many, an inside end finds out by its own packets, which are reset too.
const KICKED: usize = 20_000;
