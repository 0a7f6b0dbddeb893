//! The maps, with the types that stand in `abi`. Each [`Maps`] holds descriptors of its own, so that any task may open
//! one; what several of them write at once is decided by the kernel, entry by entry.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use abi::{Count, Flow, Home, Key4, Key6, LineCount, PortKey, Settings, Silence, Verdict, Zone, name};
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, DevMapHash, HashMap, Map, MapData, PerCpuArray, PerCpuValues};

use crate::pins;
use crate::programs::chain;

/// A map could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {reason}")]
pub struct MapError {
    pub map: &'static str,
    pub reason: String,
}

/// The maps of the programs that run.
pub struct Maps {
    zones: HashMap<MapData, PortKey, Zone>,
    homes4: LpmTrie<MapData, [u8; 4], Home>,
    homes6: LpmTrie<MapData, [u8; 16], Home>,
    denied_pairs: Array<MapData, u32>,
    denials: PerCpuArray<MapData, Count>,
    verdicts: PerCpuArray<MapData, Count>,
    flows4: HashMap<MapData, Key4, Flow>,
    flows6: HashMap<MapData, Key6, Flow>,
    generations: Array<MapData, u32>,
    ports: DevMapHash<MapData>,
    settings: Array<MapData, Settings>,
    lines: PerCpuArray<MapData, LineCount>,
    silences: Array<MapData, Silence>,
    memory: u64,
    capacity: u32,
}

impl Maps {
    /// The maps pinned under `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let layout = pins::layout(directory);
        let mut memory = 0;
        let mut capacity = 0;
        let mut open = |map: &'static str| {
            let data = MapData::from_pin(layout.join(map)).map_err(in_map(map))?;
            memory += locked(&data).unwrap_or(0);
            if map == name::FLOWS4 {
                capacity = data.info().map_err(in_map(map))?.max_entries();
            }
            Ok(data)
        };
        for other in [name::NEWCOMERS, name::HANDSHAKES, name::DENIED, name::PASSIVE] {
            open(other)?;
        }
        Ok(Self {
            zones: typed(name::ZONES, Map::HashMap(open(name::ZONES)?))?,
            homes4: typed(name::HOMES4, Map::LpmTrie(open(name::HOMES4)?))?,
            homes6: typed(name::HOMES6, Map::LpmTrie(open(name::HOMES6)?))?,
            denied_pairs: typed(name::DENIED_PAIRS, Map::Array(open(name::DENIED_PAIRS)?))?,
            denials: typed(name::DENIALS, Map::PerCpuArray(open(name::DENIALS)?))?,
            verdicts: typed(name::VERDICTS, Map::PerCpuArray(open(name::VERDICTS)?))?,
            flows4: typed(name::FLOWS4, Map::LruHashMap(open(name::FLOWS4)?))?,
            flows6: typed(name::FLOWS6, Map::LruHashMap(open(name::FLOWS6)?))?,
            generations: typed(name::GENERATIONS, Map::Array(open(name::GENERATIONS)?))?,
            ports: typed(name::PORTS, Map::DevMapHash(open(name::PORTS)?))?,
            settings: typed(name::SETTINGS, Map::Array(open(name::SETTINGS)?))?,
            lines: typed(name::LINES, Map::PerCpuArray(open(name::LINES)?))?,
            silences: typed(name::SILENCES, Map::Array(open(name::SILENCES)?))?,
            memory,
            capacity,
        })
    }

    pub fn zones(&self) -> Result<BTreeMap<PortKey, Zone>, MapError> {
        self.zones.iter().collect::<Result<_, _>>().map_err(in_map(name::ZONES))
    }

    pub fn set_zone(&mut self, key: PortKey, zone: Zone) -> Result<(), MapError> {
        self.zones.insert(key, zone, 0).map_err(in_map(name::ZONES))
    }

    pub fn remove_zone(&mut self, key: PortKey) -> Result<(), MapError> {
        gone(self.zones.remove(&key)).map_err(in_map(name::ZONES))
    }

    /// By prefix: address and length.
    pub fn homes4(&self) -> Result<BTreeMap<([u8; 4], u8), Home>, MapError> {
        homes(&self.homes4).map_err(in_map(name::HOMES4))
    }

    pub fn homes6(&self) -> Result<BTreeMap<([u8; 16], u8), Home>, MapError> {
        homes(&self.homes6).map_err(in_map(name::HOMES6))
    }

    pub fn set_home4(&mut self, (address, length): ([u8; 4], u8), home: Home) -> Result<(), MapError> {
        self.homes4.insert(&Key::new(length.into(), address), home, 0).map_err(in_map(name::HOMES4))
    }

    pub fn set_home6(&mut self, (address, length): ([u8; 16], u8), home: Home) -> Result<(), MapError> {
        self.homes6.insert(&Key::new(length.into(), address), home, 0).map_err(in_map(name::HOMES6))
    }

    pub fn remove_home4(&mut self, (address, length): ([u8; 4], u8)) -> Result<(), MapError> {
        gone(self.homes4.remove(&Key::new(length.into(), address))).map_err(in_map(name::HOMES4))
    }

    pub fn remove_home6(&mut self, (address, length): ([u8; 16], u8)) -> Result<(), MapError> {
        gone(self.homes6.remove(&Key::new(length.into(), address))).map_err(in_map(name::HOMES6))
    }

    /// Is this pair of zones, as [`abi::pair`] numbers it, denied here?
    pub fn is_denied(&self, pair: u32) -> Result<bool, MapError> {
        Ok(self.denied_pairs.get(&pair, 0).map_err(in_map(name::DENIED_PAIRS))? == abi::DENY)
    }

    pub fn set_denied(&mut self, pair: u32, denied: bool) -> Result<(), MapError> {
        let value = if denied { abi::DENY } else { abi::PASS };
        self.denied_pairs.set(pair, value, 0).map_err(in_map(name::DENIED_PAIRS))
    }

    /// What was dropped between two zones.
    pub fn denials(&self, pair: u32) -> Result<Count, MapError> {
        self.denials.get(&pair, 0).map(|counts| sum(&counts)).map_err(in_map(name::DENIALS))
    }

    pub fn clear_denials(&mut self, pair: u32) -> Result<(), MapError> {
        let fail = in_map(name::DENIALS);
        let zeros = self.denials.get(&pair, 0).map(|counts| vec![Count::default(); counts.len()]).map_err(&fail)?;
        let zeros = PerCpuValues::try_from(zeros).map_err(|error| fail(error.into()))?;
        self.denials.set(pair, zeros, 0).map_err(fail)
    }

    pub fn verdicts(&self) -> Result<BTreeMap<Verdict, Count>, MapError> {
        let count = |verdict: Verdict| Ok((verdict, sum(&self.verdicts.get(&(verdict as u32), 0)?)));
        Verdict::ALL.into_iter().map(count).collect::<Result<_, _>>().map_err(in_map(name::VERDICTS))
    }

    /// What a line carried, by [`abi::slot`].
    pub fn line(&self, slot: u32) -> Result<LineCount, MapError> {
        let counts = self.lines.get(&slot, 0).map_err(in_map(name::LINES))?;
        let mut all = LineCount::default();
        for count in counts.iter() {
            add(&mut all.sent, count.sent);
            add(&mut all.received, count.received);
            all.segments = all.segments.wrapping_add(count.segments);
            all.retransmits = all.retransmits.wrapping_add(count.retransmits);
        }
        Ok(all)
    }

    pub fn silence(&self, slot: u32) -> Result<Silence, MapError> {
        self.silences.get(&slot, 0).map_err(in_map(name::SILENCES))
    }

    pub fn settings(&self) -> Result<Settings, MapError> {
        self.settings.get(&0, 0).map_err(in_map(name::SETTINGS))
    }

    pub fn set_settings(&mut self, settings: Settings) -> Result<(), MapError> {
        self.settings.set(0, settings, 0).map_err(in_map(name::SETTINGS))
    }

    /// The generation in force of a slot: flows of another are not forwarded.
    pub fn generation(&self, slot: u32) -> Result<u32, MapError> {
        self.generations.get(&slot, 0).map_err(in_map(name::GENERATIONS))
    }

    /// Sends every cached flow of this slot back to the kernel. When this returns, no packet is forwarded by an entry
    /// of before but those that were looked up already.
    pub fn bump(&mut self, slot: u32) -> Result<(), MapError> {
        let next = self.generation(slot)?.wrapping_add(1);
        self.generations.set(slot, next, 0).map_err(in_map(name::GENERATIONS))
    }

    /// The interfaces that XDP may redirect to.
    pub fn ports(&self) -> Result<Vec<u32>, MapError> {
        self.ports.keys().collect::<Result<_, _>>().map_err(in_map(name::PORTS))
    }

    pub fn add_port(&mut self, interface: u32) -> Result<(), MapError> {
        let fail = |error: aya::maps::xdp::XdpMapError| MapError { map: name::PORTS, reason: chain(&error) };
        self.ports.insert(interface, interface, None, 0).map_err(fail)
    }

    pub fn remove_port(&mut self, interface: u32) -> Result<(), MapError> {
        gone(self.ports.remove(interface)).map_err(in_map(name::PORTS))
    }

    pub fn flow4(&self, key: &Key4) -> Result<Option<Flow>, MapError> {
        found(self.flows4.get(key, 0)).map_err(in_map(name::FLOWS4))
    }

    pub fn flow6(&self, key: &Key6) -> Result<Option<Flow>, MapError> {
        found(self.flows6.get(key, 0)).map_err(in_map(name::FLOWS6))
    }

    pub fn set_flow4(&mut self, key: Key4, flow: Flow) -> Result<(), MapError> {
        self.flows4.insert(key, flow, 0).map_err(in_map(name::FLOWS4))
    }

    pub fn set_flow6(&mut self, key: Key6, flow: Flow) -> Result<(), MapError> {
        self.flows6.insert(key, flow, 0).map_err(in_map(name::FLOWS6))
    }

    pub fn remove_flow4(&mut self, key: &Key4) -> Result<(), MapError> {
        gone(self.flows4.remove(key)).map_err(in_map(name::FLOWS4))
    }

    pub fn remove_flow6(&mut self, key: &Key6) -> Result<(), MapError> {
        gone(self.flows6.remove(key)).map_err(in_map(name::FLOWS6))
    }

    /// Every flow, two calls to the kernel each. One that goes meanwhile is left out; where the table is under
    /// pressure the walk may begin again or end early.
    pub fn flows4(&self) -> impl Iterator<Item = (Key4, Flow)> + '_ {
        self.flows4.iter().filter_map(Result::ok)
    }

    pub fn flows6(&self) -> impl Iterator<Item = (Key6, Flow)> + '_ {
        self.flows6.iter().filter_map(Result::ok)
    }

    /// How many flows there are, found by a walk through their keys.
    pub fn count_flows(&self) -> (usize, usize) {
        let most = self.capacity as usize;
        let (four, six) = (self.flows4.keys(), self.flows6.keys());
        (four.take(most).flatten().count(), six.take(most).flatten().count())
    }

    /// How many flows each of the two tables holds at most.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Bytes that all maps take, as the kernel accounts for them.
    pub fn memory(&self) -> u64 {
        self.memory
    }
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

fn typed<M: TryFrom<Map, Error = aya::maps::MapError>>(name: &'static str, map: Map) -> Result<M, MapError> {
    M::try_from(map).map_err(in_map(name))
}

fn in_map(map: &'static str) -> impl Fn(aya::maps::MapError) -> MapError {
    move |error| MapError { map, reason: chain(&error) }
}

fn homes<const N: usize>(
    trie: &LpmTrie<MapData, [u8; N], Home>,
) -> Result<BTreeMap<([u8; N], u8), Home>, aya::maps::MapError>
where
    [u8; N]: Pod,
{
    let prefix = |(key, home): (Key<[u8; N]>, Home)| ((key.data(), u8::try_from(key.prefix_len()).unwrap_or(0)), home);
    trie.iter().map(|entry| entry.map(prefix)).collect()
}

/// What is not there need not be removed.
fn gone(result: Result<(), aya::maps::MapError>) -> Result<(), aya::maps::MapError> {
    found(result).map(drop)
}

fn found<T>(result: Result<T, aya::maps::MapError>) -> Result<Option<T>, aya::maps::MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(aya::maps::MapError::KeyNotFound | aya::maps::MapError::ElementNotFound) => Ok(None),
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn sum(counts: &PerCpuValues<Count>) -> Count {
    let mut all = Count::default();
    counts.iter().for_each(|count| add(&mut all, *count));
    all
}

fn add(all: &mut Count, one: Count) {
    all.packets = all.packets.wrapping_add(one.packets);
    all.bytes = all.bytes.wrapping_add(one.bytes);
}

/// `memlock:` of the descriptor: what the kernel accounts for the map.
fn locked(map: &MapData) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}
