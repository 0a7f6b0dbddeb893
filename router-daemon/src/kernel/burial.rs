//! Ending the flows of dead classes: delete them, tell their inside ends, and look again for those that were born
//! while the ruleset changed under them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use config::model::Kick;
use config::units::{Family, PolicyId, WanId};
use mwan::state::FlowClass;
use nix::ifaddrs::getifaddrs;
use tokio::task::JoinSet;

use super::netlink::{NETLINK_NETFILTER, Socket};
use super::{aside, conntrack, kick};

/// The classes of one burial that are still dead.
type Classes = Arc<Mutex<BTreeMap<FlowClass, Kick>>>;

/// What was ended and what was left on each line when its flows were buried last. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<(WanId, Family), Buried>>>);

/// The flows of one line, when they were buried.
#[derive(Debug, Clone)]
pub struct Buried {
    pub at: Instant,
    /// Flows that were ended, and flows that stayed, by the policy that chose the line.
    pub ended: BTreeMap<Option<PolicyId>, u64>,
    pub kept: BTreeMap<Option<PolicyId>, u64>,
    /// One of its classes was revived: the next burial is another.
    over: bool,
}

impl Ledger {
    pub fn of(&self, line: WanId, family: Family) -> Option<Buried> {
        lock(&self.0).get(&(line, family)).cloned()
    }

    /// A look at a line with dead classes: this many flows were there of each class.
    pub(crate) fn note(&self, line: WanId, dead: &BTreeMap<FlowClass, Kick>, flows: &BTreeMap<FlowClass, u64>) {
        let mut lines = lock(&self.0);
        let families: BTreeSet<_> = dead.keys().filter(|class| class.wan == line).map(|class| class.family).collect();
        for family in families {
            let fresh = || Buried { at: Instant::now(), ended: BTreeMap::new(), kept: BTreeMap::new(), over: false };
            let buried = lines.entry((line, family)).or_insert_with(fresh);
            if buried.over {
                *buried = fresh();
            }
            buried.kept.clear();
            for (class, count) in flows.iter().filter(|(class, _)| class.family == family) {
                let of = if dead.contains_key(class) { &mut buried.ended } else { &mut buried.kept };
                *of.entry(class.policy).or_default() += count;
            }
        }
    }

    fn revived(&self, class: FlowClass) {
        if let Some(buried) = lock(&self.0).get_mut(&(class.wan, class.family)) {
            buried.over = true;
        }
    }
}

/// The later sweeps, owned: they end with this value, and a class that is revived is not swept again.
#[derive(Debug)]
pub(crate) struct Burials {
    /// Kept open: closing a netfilter socket right after an nft transaction waits until the kernel has freed what
    /// that replaced, 5 to 20 ms.
    netfilter: Arc<Mutex<Socket>>,
    ledger: Ledger,
    sweeps: JoinSet<()>,
    running: Vec<Weak<Mutex<BTreeMap<FlowClass, Kick>>>>,
}

impl Burials {
    pub(crate) fn open() -> io::Result<Self> {
        let netfilter = Arc::new(Mutex::new(Socket::open(NETLINK_NETFILTER)?));
        Ok(Self { netfilter, ledger: Ledger::default(), sweeps: JoinSet::new(), running: Vec::new() })
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    /// Returns when the flows of this moment are gone and their inside ends told.
    pub(crate) async fn begin(&mut self, classes: BTreeMap<FlowClass, Kick>) -> io::Result<()> {
        for class in classes.keys() {
            self.retain(|dead| dead != class);
        }
        let classes: Classes = Arc::new(Mutex::new(classes));
        self.running.push(Arc::downgrade(&classes));
        let (netfilter, ledger) = (Arc::clone(&self.netfilter), self.ledger());
        let sweep = move || sweep(&mut lock(&netfilter), &lock(&classes).clone(), &ledger);
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

    /// It is alive again.
    pub(crate) fn stop(&mut self, class: FlowClass) {
        self.ledger.revived(class);
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
fn sweep(netfilter: &mut Socket, classes: &BTreeMap<FlowClass, Kick>, ledger: &Ledger) -> io::Result<(usize, usize)> {
    let lines: BTreeSet<_> = classes.keys().map(|class| class.wan).collect();
    let mut flows = Vec::new();
    for line in lines {
        let (found, count) = conntrack::flows(netfilter, line, |class| classes.contains_key(&class), KICKED)?;
        ledger.note(line, classes, &count);
        flows.extend(found);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_adds_what_later_sweeps_find_until_a_class_lives_again() {
        let line = WanId::new(2).unwrap();
        let class = |policy| FlowClass { family: Family::V4, wan: line, policy: Some(PolicyId(policy)) };
        let dead = BTreeMap::from([(class(1), Kick::Tcp)]);
        let ledger = Ledger::default();
        ledger.note(line, &dead, &BTreeMap::from([(class(1), 214), (class(2), 3)]));
        ledger.note(line, &dead, &BTreeMap::from([(class(1), 1), (class(2), 2)]));
        let told = |ledger: &Ledger| {
            let buried = ledger.of(line, Family::V4).unwrap();
            (buried.ended.get(&Some(PolicyId(1))).copied(), buried.kept.get(&Some(PolicyId(2))).copied())
        };
        assert_eq!(told(&ledger), (Some(215), Some(2)));
        ledger.revived(class(1));
        assert_eq!(told(&ledger), (Some(215), Some(2)), "until the next burial it is the last");
        ledger.note(line, &dead, &BTreeMap::from([(class(1), 7)]));
        assert_eq!(told(&ledger), (Some(7), None));
        assert!(ledger.of(line, Family::V6).is_none());
    }
}
