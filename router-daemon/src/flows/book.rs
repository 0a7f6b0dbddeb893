//! Which entries belong to which conntrack flow, and what they carried. One owner; whatever it decides is in the cache
//! when the call returns.
//!
//! An entry gets the generations that were in force before its flow was seen alive ([`Sight::generations`]). When they
//! change, entries are written again only for flows that a listing of conntrack begun since then still has.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::mem;
use std::sync::Arc;

use config::units::{Family, WanId};
use ebpf::MapError;
use ebpf::abi;
use mwan::state::FlowClass;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Entry, Key, Topology, Tracked, entries};
use crate::counters::Count;
use crate::kernel::Tuple;

/// The tables of the fast path.
pub trait Cache {
    fn get(&self, key: &Key) -> Result<Option<abi::Flow>, MapError>;
    fn set(&mut self, entry: &Entry) -> Result<(), MapError>;
    fn remove(&mut self, key: &Key) -> Result<(), MapError>;
}

/// What a flow is judged by.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    pub topology: &'a Topology,
    /// By slot, read before the flow was.
    pub generations: &'a Arc<BTreeMap<u32, u32>>,
    /// May flows of this class be forwarded? Asked after `generations` was read: a class is closed before its slot
    /// is bumped, so an entry of a class that closes meanwhile is stale.
    pub open: &'a dyn Fn(FlowClass) -> bool,
}

impl fmt::Debug for Sight<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sight").field("generations", self.generations).finish_non_exhaustive()
    }
}

/// The flows that conntrack has and the fast path may carry.
#[derive(Debug, Default)]
pub struct Book {
    records: HashMap<Tuple, Record>,
    counts: Counts,
    /// Number of the listing under way, or of the last.
    round: u32,
    /// What ended while a listing is under way: it may still name them.
    ended: Option<HashSet<(Tuple, u32)>>,
}

/// By line, `None` between VLANs.
pub type Counts = BTreeMap<(Option<WanId>, Family), Carried>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Carried {
    /// In the cache.
    pub flows: u64,
    pub sent: Count,
    pub received: Count,
}

#[derive(Debug)]
struct Record {
    tracked: Tracked,
    generations: Arc<BTreeMap<u32, u32>>,
    /// `None`: an end has no known place, or the class is closed.
    written: Option<[Written; 2]>,
    round: u32,
}

#[derive(Debug, Clone, Copy)]
struct Written {
    entry: Entry,
    /// Added to the counts already.
    counted: Count,
}

impl Book {
    /// Flows known, cached or not.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn knows(&self, tuple: &Tuple) -> bool {
        self.records.contains_key(tuple)
    }

    /// The keys of all entries.
    pub fn keys(&self) -> HashSet<Key> {
        self.records.values().filter_map(|record| record.written).flatten().map(|one| one.entry.key).collect()
    }

    pub fn tuples(&self) -> Vec<Tuple> {
        self.records.keys().copied().collect()
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Conntrack told of this flow.
    pub fn learn(&mut self, mut tracked: Tracked, sight: Sight<'_>, cache: &mut impl Cache) -> Result<(), MapError> {
        let known = self.records.get(&tracked.original).map(|record| record.tracked);
        if let Some(known) = known.filter(|known| known.id == tracked.id) {
            tracked.tcp_state = tracked.tcp_state.or(known.tcp_state);
        }
        if !tracked.is_settled() {
            return self.end(&tracked.original, cache);
        }
        self.judge(tracked, sight, cache)
    }

    /// A listing of conntrack begins.
    pub fn begin_listing(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.ended = Some(HashSet::new());
    }

    /// The listing has this flow.
    pub fn list(&mut self, tracked: Tracked, sight: Sight<'_>, cache: &mut impl Cache) -> Result<(), MapError> {
        if self.ended.as_ref().is_some_and(|ended| ended.contains(&(tracked.original, tracked.id))) {
            return Ok(());
        }
        self.learn(tracked, sight, cache)
    }

    /// The listing is complete: the flows that it does not have.
    pub fn end_listing(&mut self) -> Vec<Tuple> {
        self.ended = None;
        self.records.iter().filter(|(_, record)| record.round != self.round).map(|(tuple, _)| *tuple).collect()
    }

    /// Conntrack has this flow no more.
    pub fn forget(&mut self, tuple: &Tuple, id: u32, cache: &mut impl Cache) -> Result<(), MapError> {
        if let Some(ended) = &mut self.ended {
            ended.insert((*tuple, id));
        }
        if self.records.get(tuple).is_some_and(|record| record.tracked.id == id) {
            self.end(tuple, cache)
        } else {
            Ok(())
        }
    }

    /// Conntrack has no such flow, whichever it was.
    pub fn end(&mut self, tuple: &Tuple, cache: &mut impl Cache) -> Result<(), MapError> {
        match self.records.remove(tuple) {
            Some(record) => self.retire(&record, cache),
            None => Ok(()),
        }
    }

    /// Judges a flow again, as of the generations it was seen in.
    pub fn review(&mut self, tuple: &Tuple, sight: Sight<'_>, cache: &mut impl Cache) -> Result<(), MapError> {
        let Some(record) = self.records.get(tuple) else { return Ok(()) };
        let (tracked, generations, round) = (record.tracked, record.generations.clone(), record.round);
        let current = mem::replace(&mut self.round, round);
        let result = self.judge(tracked, Sight { generations: &generations, ..sight }, cache);
        self.round = current;
        result
    }

    /// Adds up what a flow carried since the last time; `Some` where it did carry something, to be told to conntrack.
    pub fn count(&mut self, tuple: &Tuple, cache: &mut impl Cache) -> Result<Option<Tracked>, MapError> {
        let Some(record) = self.records.get_mut(tuple) else { return Ok(None) };
        let Some(written) = &mut record.written else { return Ok(None) };
        let mut moved = false;
        for one in written {
            let Some(flow) = cache.get(&one.entry.key)? else {
                // Others needed the room more.
                self.end(tuple, cache)?;
                return Ok(None);
            };
            moved |= add(&mut self.counts, record.tracked.family(), one, &flow);
        }
        Ok(moved.then_some(record.tracked))
    }

    fn judge(&mut self, tracked: Tracked, sight: Sight<'_>, cache: &mut impl Cache) -> Result<(), MapError> {
        let fresh = fresh(&tracked, sight);
        let mut record = Record { tracked, generations: sight.generations.clone(), written: None, round: self.round };
        if let Some(old) = self.records.remove(&tracked.original) {
            if old.written.map(|written| written.map(|one| one.entry)) == fresh {
                record.written = old.written;
                self.records.insert(tracked.original, record);
                return Ok(());
            }
            self.retire(&old, cache)?;
        }
        if let Some(fresh) = fresh {
            for (at, entry) in fresh.iter().enumerate() {
                if let Err(error) = cache.set(entry) {
                    fresh[..at].iter().try_for_each(|entry| cache.remove(&entry.key))?;
                    return Err(error);
                }
            }
            self.counts.entry((line(&fresh[0].flow), tracked.family())).or_default().flows += 1;
            record.written = Some(fresh.map(|entry| Written { entry, counted: Count::default() }));
        }
        self.records.insert(tracked.original, record);
        Ok(())
    }

    /// Takes the entries out of the cache, and what they carried into the counts.
    fn retire(&mut self, record: &Record, cache: &mut impl Cache) -> Result<(), MapError> {
        let Some(mut written) = record.written else { return Ok(()) };
        let family = record.tracked.family();
        if let Some(carried) = self.counts.get_mut(&(line(&written[0].entry.flow), family)) {
            carried.flows = carried.flows.saturating_sub(1);
        }
        for one in &mut written {
            if let Some(flow) = cache.get(&one.entry.key)? {
                add(&mut self.counts, family, one, &flow);
            }
            cache.remove(&one.entry.key)?;
        }
        Ok(())
    }
}

fn fresh(tracked: &Tracked, sight: Sight<'_>) -> Option<[Entry; 2]> {
    let mut entries = entries(tracked, sight.topology)?;
    for entry in &mut entries {
        entry.flow.generation = *sight.generations.get(&entry.flow.slot)?;
    }
    tracked.class().is_none_or(sight.open).then_some(entries)
}

fn add(counts: &mut Counts, family: Family, one: &mut Written, flow: &abi::Flow) -> bool {
    let now = Count { packets: flow.packets, bytes: flow.bytes };
    let packets = now.packets.saturating_sub(one.counted.packets);
    let bytes = now.bytes.saturating_sub(one.counted.bytes);
    one.counted = now;
    let carried = counts.entry((line(&one.entry.flow), family)).or_default();
    let outward = one.entry.flow.flags & abi::Flow::OUTWARD != 0;
    let count = if outward { &mut carried.sent } else { &mut carried.received };
    count.packets += packets;
    count.bytes += bytes;
    packets > 0
}

/// What [`abi::slot`] was made of.
fn line(flow: &abi::Flow) -> Option<WanId> {
    WanId::new(u8::try_from(flow.slot / 2).ok()?)
}
