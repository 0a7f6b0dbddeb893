//! Sets that names fill: an address goes in before the answer that holds it goes out, and the kernel takes it out again.
//!
//! Every transaction raises the generation of nftables, by which the table is known to be as it was read. Those made
//! here change nothing that is read, so they are told of: a failover must not read the whole table because somebody
//! looked up a name.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::units::Family;
use mwan::state::{FlowClass, NamedKey};

use super::elements::{self, Generation};
use super::netlink::{NETLINK_NETFILTER, Socket};

/// The generations that were made for names. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Lineage(Arc<Mutex<BTreeSet<u32>>>);

impl Lineage {
    /// Did nobody but us make the generations from `from` to `to`?
    pub(crate) fn joins(&self, from: Generation, to: Generation) -> bool {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let distance = to.number().wrapping_sub(from.number());
        // A number that went round is not worth the trouble.
        if to.number() <= from.number() {
            return distance == 0;
        }
        usize::try_from(distance).is_ok_and(|distance| distance <= made.len())
            && made.range(from.number().wrapping_add(1)..=to.number()).count() == distance as usize
    }

    fn made(&self, generation: Generation) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(generation.number());
        while made.len() > REMEMBERED {
            made.pop_first();
        }
    }
}

/// The sets of our table that names fill.
#[derive(Debug)]
pub(crate) struct Named {
    socket: Socket,
    lineage: Lineage,
}

/// An address that a name stands for, for this long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) key: NamedKey,
    pub(crate) address: IpAddr,
    pub(crate) span: Duration,
}

impl Named {
    pub(crate) fn open(lineage: Lineage) -> io::Result<Self> {
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER)?, lineage })
    }

    /// All of them or none. What is there already gets the new time.
    pub(crate) fn grant(&mut self, grants: &[Grant]) -> io::Result<()> {
        let mut sets: BTreeMap<&NamedKey, Vec<(IpAddr, Duration)>> = BTreeMap::new();
        for grant in grants {
            sets.entry(&grant.key).or_default().push((grant.address, grant.span));
        }
        let add = |(key, elements): (&&NamedKey, &Vec<_>)| elements::named(&key.set_name(), elements);
        self.transact(|| sets.iter().map(add).collect())
    }

    /// What is not there any more is no failure.
    pub(crate) fn revoke(&mut self, key: &NamedKey, address: IpAddr) -> io::Result<()> {
        let set = key.set_name();
        done_if_gone(self.transact(|| vec![elements::unnamed(&set, address)]))
    }

    /// These lines have a connection of these clients, for so long.
    pub(crate) fn take(&mut self, taken: &BTreeSet<(IpAddr, FlowClass)>, span: Duration) -> io::Result<()> {
        self.transact(|| vec![elements::taken(Family::V4, taken, span), elements::taken(Family::V6, taken, span)])
    }

    /// It has none any more. What is not there was taken out by time.
    pub(crate) fn free(&mut self, client: IpAddr, class: FlowClass) -> io::Result<()> {
        done_if_gone(self.transact(|| vec![elements::freed(client, class)]))
    }

    fn transact(&mut self, messages: impl Fn() -> Vec<super::netlink::Message>) -> io::Result<()> {
        for _ in 0..TRIES {
            let before = Generation::read(&mut self.socket)?;
            match self.socket.batch(elements::frame(before), messages()) {
                // Somebody else was quicker.
                Err(error) if error.raw_os_error() == Some(ERESTART) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    self.lineage.made(before.next());
                    return Ok(());
                }
            }
        }
        // Whoever keeps changing nftables will not keep a name from being answered for.
        self.socket.batch(elements::transaction(), messages())
    }
}

fn done_if_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) => Ok(()),
        other => other,
    }
}

const TRIES: usize = 3;
const REMEMBERED: usize = 65_536;
const ERESTART: i32 = 85;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unbroken_line_of_our_own_counts() {
        let lineage = Lineage::default();
        let [a, b, c, d] = [7, 8, 9, 10].map(Generation::of);
        lineage.made(b);
        lineage.made(c);
        assert!(lineage.joins(a, c) && lineage.joins(a, b) && lineage.joins(b, c) && lineage.joins(c, c));
        assert!(!lineage.joins(a, d), "somebody else made 10");
        assert!(!lineage.joins(c, a), "a number that went back says nothing");
        assert!(!lineage.joins(Generation::of(5), c));
    }
}
