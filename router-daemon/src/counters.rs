//! What the kernel has counted: the exact numbers behind status and metrics. The kernel side reads them from the
//! table's dynamic sets and from conntrack; status and metrics give them names. Nothing here decides.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use config::units::{Family, IfName, WanId};
use mwan::state::{PortMode, ZoneId, as_pairs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::flows::Carried;
use crate::talkers::Tally;

/// Counted since our table was first loaded. A pair is the interface a packet came in by and the one it would
/// have left by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Forwarded packets no cell allows (set `denied`).
    #[serde(with = "as_pairs")]
    pub denied: BTreeMap<(IfName, IfName), Count>,
    /// New forwarded flows a cell allows (set `allowed`; one packet is one flow).
    #[serde(with = "as_pairs")]
    pub allowed: BTreeMap<(IfName, IfName), Count>,
    /// Flows that no cell allows and an audit let pass (set `audit_flows`; one packet is one flow).
    #[serde(with = "as_pairs", default)]
    pub audited: BTreeMap<(IfName, IfName), Count>,
    /// Packets conntrack cannot place (set `invalid`).
    #[serde(with = "as_pairs")]
    pub invalid: BTreeMap<(IfName, IfName), Count>,
    /// Packets to the router itself that its interface does not allow (set `denied_in`).
    pub denied_input: BTreeMap<IfName, Count>,
    /// Packets whose source address does not belong behind their interface (set `spoofed`).
    pub spoofed: BTreeMap<IfName, Count>,
    /// New flows per line (set `chosen`; one packet is one flow).
    pub chosen: BTreeMap<WanId, Count>,
    /// Live conntrack entries per line and family.
    #[serde(with = "as_pairs")]
    pub flows: BTreeMap<(WanId, Family), u64>,
    /// `None` where this kernel does not tell.
    #[serde(default)]
    pub conntrack: Option<Conntrack>,
    #[serde(default)]
    pub fast_path: FastCount,
    /// Every link of the namespace.
    #[serde(default)]
    pub links: BTreeMap<IfName, LinkCount>,
}

/// What a link has carried since it came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkCount {
    pub up: bool,
    pub carrier: bool,
    /// `None` where the driver does not say.
    pub speed_megabits: Option<u32>,
    pub received: Count,
    pub sent: Count,
    pub receive_errors: u64,
    pub send_errors: u64,
    pub receive_drops: u64,
    pub send_drops: u64,
    /// Addresses beside it that answered at some time and are remembered.
    pub neighbours: u64,
}

/// The fast path, and what it counted since its maps were made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FastCount {
    pub on: bool,
    /// Why it is off where it is wanted.
    pub reason: Option<String>,
    #[schemars(with = "BTreeMap<String, FastPort>")]
    pub ports: BTreeMap<IfName, FastPort>,
    /// Entries that the feeder of the cache put in, one for each direction. The kernel may have pushed some out.
    pub flows: BTreeMap<Family, u64>,
    /// Entries of each family at most.
    pub capacity: u64,
    pub memory_bytes: u64,
    /// By the word of the verdict.
    pub verdicts: BTreeMap<String, Count>,
    /// Everything that met the fast path at the lines, whoever forwarded it.
    #[serde(with = "as_pairs", default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Vec<((u8, Family), LineCount)>")]
    pub lines: BTreeMap<(WanId, Family), LineCount>,
    /// From one zone to another; what a zone sent itself is what it spoofed.
    #[serde(with = "as_pairs", default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Vec<((u16, u16), Count)>")]
    pub denied: BTreeMap<(ZoneId, ZoneId), Count>,
    #[serde(default)]
    pub fed: Fed,
}

/// What the feeder of the cache has done since the fast path went on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fed {
    /// By line; `None` is between VLANs. Conntrack's own counts lack this.
    #[serde(with = "as_pairs", default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Vec<((Option<u8>, Family), Carried)>")]
    pub carried: BTreeMap<(Option<WanId>, Family), Carried>,
    /// How often conntrack had more to tell than was taken: those flows took the kernel's path until the next listing.
    pub overruns: u64,
    pub listings: u64,
}

impl Fed {
    /// In the cache, one for each direction of a flow.
    pub(crate) fn entries(&self, family: Family) -> u64 {
        self.carried.iter().filter(|((_, of), _)| *of == family).map(|(_, carried)| 2 * carried.flows).sum()
    }
}

/// Where packets of a port meet the fast path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FastPort {
    pub asked: PortMode,
    /// `None` is nowhere.
    pub mode: Option<PortMode>,
    /// Why it is not what was asked.
    pub why: Option<String>,
}

impl FastPort {
    pub fn word(&self) -> &'static str {
        self.mode.map_or("none", mode_word)
    }
}

pub(crate) fn mode_word(mode: PortMode) -> &'static str {
    match mode {
        PortMode::Xdp => "xdp",
        PortMode::Tcx => "tcx",
    }
}

impl Counters {
    /// Live flows of one line, both families together.
    pub fn flows_of(&self, wan: WanId) -> u64 {
        Family::ALL.iter().filter_map(|family| self.flows.get(&(wan, *family))).sum()
    }
}

/// Conntrack's table of the namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Conntrack {
    pub entries: u64,
    /// `net.netfilter.nf_conntrack_max`: beyond it no flow begins.
    pub limit: u64,
}

/// What went out by a line and came in by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LineCount {
    pub sent: Count,
    pub received: Count,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// Reads the counters. Each status and each scrape calls it once.
#[derive(Clone)]
pub struct CounterSource {
    read: Source<Counters>,
    talkers: Source<Tally>,
}

type Source<T> = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<T>> + Send>> + Send + Sync>;

impl CounterSource {
    pub fn new<F, R>(read: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<Counters>> + Send + 'static,
    {
        let nobody = || -> Pin<Box<dyn Future<Output = _> + Send>> { Box::pin(async { Ok(Tally::default()) }) };
        Self { read: Arc::new(move || Box::pin(read())), talkers: Arc::new(nobody) }
    }

    /// With a walk through the live flows. Without it there are none.
    #[must_use]
    pub fn with_talkers<F, R>(self, walk: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<Tally>> + Send + 'static,
    {
        Self { talkers: Arc::new(move || Box::pin(walk())), ..self }
    }

    /// Always these, for tests and for a kernel that counts nothing.
    pub fn fixed(counters: Counters) -> Self {
        Self::new(move || std::future::ready(Ok(counters.clone())))
    }

    pub async fn read(&self) -> io::Result<Counters> {
        (self.read)().await
    }

    pub async fn talkers(&self) -> io::Result<Tally> {
        (self.talkers)().await
    }
}

/// Reads how many packets the firewall refused, all together: of the counters, what costs no walk through the flows.
#[derive(Clone)]
pub struct DenialSource(Source<u64>);

impl DenialSource {
    pub fn new<F, R>(read: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<u64>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(read())))
    }

    pub async fn read(&self) -> io::Result<u64> {
        (self.0)().await
    }
}

impl std::fmt::Debug for DenialSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DenialSource")
    }
}

impl std::fmt::Debug for CounterSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CounterSource")
    }
}
