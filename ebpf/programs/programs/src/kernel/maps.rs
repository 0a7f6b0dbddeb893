//! The maps, under the names and with the types of [`abi::name`]. The loader sizes the flows; the rest is the same
//! everywhere.

use abi::{
    Bucket, Count, Flow, Handshake, Home, Key4, Key6, LineCount, PAIRS, PortKey, SLOTS, Settings, Silence, Source,
    Verdict, Zone,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray, RingBuf};

#[map]
pub(super) static ZONES: HashMap<PortKey, Zone> = HashMap::with_max_entries(4096, 0);
#[map]
pub(super) static HOMES4: LpmTrie<[u8; 4], Home> = LpmTrie::with_max_entries(PREFIXES, 0);
#[map]
pub(super) static HOMES6: LpmTrie<[u8; 16], Home> = LpmTrie::with_max_entries(PREFIXES, 0);
#[map]
pub(super) static DENIED_PAIRS: Array<u32> = Array::with_max_entries(PAIRS, 0);
#[map]
pub(super) static DENIALS: PerCpuArray<Count> = PerCpuArray::with_max_entries(PAIRS, 0);
#[map]
pub(super) static SAMPLED: Array<u64> = Array::with_max_entries(PAIRS, 0);
#[map]
pub(super) static VERDICTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Verdict::COUNT, 0);
#[map]
pub(super) static FLOWS4: LruHashMap<Key4, Flow> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
pub(super) static FLOWS6: LruHashMap<Key6, Flow> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
pub(super) static GENERATIONS: Array<u32> = Array::with_max_entries(SLOTS, 0);
#[map]
pub(super) static PORTS: DevMapHash = DevMapHash::with_max_entries(512, 0);
#[map]
pub(super) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
pub(super) static NEWCOMERS: LruHashMap<Source, Bucket> = LruHashMap::with_max_entries(65536, 0);
#[map]
pub(super) static LINES: PerCpuArray<LineCount> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map]
pub(super) static SILENCES: Array<Silence> = Array::with_max_entries(SLOTS, 0);
#[map]
pub(super) static HANDSHAKES: LruHashMap<Handshake, u64> = LruHashMap::with_max_entries(65536, 0);
#[map]
pub(super) static DENIED: RingBuf = RingBuf::with_byte_size(RING, 0);
#[map]
pub(super) static PASSIVE: RingBuf = RingBuf::with_byte_size(RING, 0);

/// Counts a packet in the value of a per-CPU map.
#[inline(always)]
pub(super) fn add(count: *mut Count, bytes: u64) {
    // SAFETY: a map's value, and this CPU's alone.
    let count = unsafe { &mut *count };
    count.packets += 1;
    count.bytes += bytes;
}

const PREFIXES: u32 = 65536;
/// Until the loader says another number.
const FLOWS: u32 = 262_144;
const RING: u32 = 256 * 1024;
