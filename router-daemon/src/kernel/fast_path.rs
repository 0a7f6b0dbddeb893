//! The fast path in the kernel: the programs at the ports and what their maps hold. `FastPath` belongs to
//! [`super::LinuxKernel`]; a [`Watcher`] tells others how it is and what it counted.
//!
//! The router is right without it. Whatever fails here takes the programs off the ports, is remembered and told, and
//! the step succeeds; it is tried again when something else is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::units::{Family, IfName, WanId};
use ebpf::abi::{self, PortKey, Verdict};
use ebpf::{Attached, Log, Maps, Mode, Programs};
use ipnet::IpNet;
use mwan::state::{FastLimits, FastPath as Wanted, FlowClass, Home, PortMode, ZoneId};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::aside;
use super::links::Table;
use crate::counters::{Count, FastCount, FastPort, Fed, LineCount};
use crate::happening::FastPathState;

/// What is to be loaded, and where its pins are.
#[derive(Debug, Clone)]
pub struct Source {
    pub object: Arc<[u8]>,
    /// On a BPF file system, which is mounted where there is none.
    pub pins: PathBuf,
}

#[derive(Debug)]
pub(crate) struct FastPath {
    /// `None` has none, ever.
    source: Option<Source>,
    programs: Option<Programs>,
    /// Also those that an earlier daemon left at work.
    maps: Option<Maps>,
    /// What could not be had.
    failed: Option<Wanted>,
    watcher: Watcher,
}

/// How the fast path is.
#[derive(Debug, Clone)]
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    /// Counts the times the programs were loaded or adopted.
    loads: watch::Sender<u64>,
    /// Counts the times flows were called back, or ports changed.
    moves: watch::Sender<u64>,
    /// Counts the times others took entries out.
    takings: watch::Sender<u64>,
    state: watch::Sender<FastPathState>,
}

#[derive(Debug, Default)]
struct Seen {
    pins: Option<PathBuf>,
    on: bool,
    reason: Option<String>,
    ports: BTreeMap<IfName, FastPort>,
    /// By index.
    names: BTreeMap<u32, IfName>,
    zones: u16,
    wans: BTreeSet<WanId>,
    /// Classes of flows that are dead.
    closed: BTreeSet<FlowClass>,
    fed: Fed,
}

impl Watcher {
    fn new() -> Self {
        Self {
            seen: Arc::default(),
            loads: watch::Sender::new(0),
            moves: watch::Sender::new(0),
            takings: watch::Sender::new(0),
            state: watch::Sender::default(),
        }
    }

    /// Changes whenever the programs were loaded or adopted.
    pub fn loads(&self) -> watch::Receiver<u64> {
        self.loads.subscribe()
    }

    /// Changes whenever the generation of a slot or the ports may be others. Nobody else moves them while we live.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// Changes whenever somebody else took entries out of the tables: whoever feeds them is to look.
    pub(crate) fn takings(&self) -> watch::Receiver<u64> {
        self.takings.subscribe()
    }

    pub(crate) fn tell_taken(&self) {
        self.takings.send_modify(|takings| *takings += 1);
    }

    /// Changes as the fast path goes on and off.
    pub fn state(&self) -> watch::Receiver<FastPathState> {
        self.state.subscribe()
    }

    fn tell_state(&self, on: bool, reason: Option<String>) {
        let state = FastPathState { on, reason };
        self.state.send_if_modified(|before| {
            let news = *before != state;
            *before = state;
            news
        });
    }

    /// Where the maps are; `None` while the fast path is off.
    pub fn pins(&self) -> Option<PathBuf> {
        let seen = self.seen();
        seen.pins.clone().filter(|_| seen.on)
    }

    /// The port with this index.
    pub fn port(&self, index: u32) -> Option<IfName> {
        self.seen().names.get(&index).cloned()
    }

    /// The ports where packets meet it.
    pub(crate) fn attached(&self) -> BTreeSet<u32> {
        let seen = self.seen();
        let is_on = |name: &IfName| seen.ports.get(name).is_some_and(|port| port.mode.is_some());
        seen.names.iter().filter(|(_, name)| is_on(name)).map(|(index, _)| *index).collect()
    }

    /// May flows of this class be forwarded?
    pub(crate) fn is_open(&self, class: FlowClass) -> bool {
        !self.seen().closed.contains(&class)
    }

    /// Flows of these classes may not be forwarded, and all others may.
    pub(crate) fn close(&self, classes: BTreeSet<FlowClass>) {
        self.seen().closed = classes;
    }

    pub(crate) fn reopen(&self, class: FlowClass) {
        self.seen().closed.remove(&class);
    }

    /// What the feeder has done.
    pub(crate) fn tell_fed(&self, fed: Fed) {
        self.seen().fed = fed;
    }

    /// Runs `read` on the maps pinned here, and from the start again whenever the programs were loaded or adopted, as
    /// there may be other maps then. Until `read` ends by itself.
    pub(crate) async fn follow<F: Future<Output = ()>>(&self, read: impl Fn(PathBuf) -> F) {
        let mut loads = self.loads.subscribe();
        loop {
            loads.borrow_and_update();
            let pins = self.pins();
            let reading = async {
                match pins {
                    Some(pins) => read(pins).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = loads.changed() => if changed.is_err() { return },
                () = reading => return,
            }
        }
    }

    /// What the programs log, in our log. Until cancelled.
    pub async fn tell_logs(self) {
        self.follow(|pins| async move {
            let Some(mut log) = Log::open(&pins).and_then(|log| readable(log).ok()) else {
                return std::future::pending().await;
            };
            while let Ok(mut ready) = log.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        })
        .await;
    }

    /// Packets it refused between zones and for their source.
    pub async fn denials(&self) -> io::Result<u64> {
        let pins = {
            let seen = self.seen();
            seen.pins.clone().filter(|_| seen.on)
        };
        let Some(pins) = pins else { return Ok(0) };
        aside(move || {
            let verdicts = Maps::open(&pins).and_then(|maps| maps.verdicts()).map_err(io::Error::other)?;
            let refused = [Verdict::DeniedPair, Verdict::Spoofed];
            Ok(refused.iter().filter_map(|verdict| verdicts.get(verdict)).map(|count| count.packets).sum())
        })
        .await
    }

    /// Everything it counted. Many calls to the kernel where there are many VLANs: off the event loop.
    pub async fn read(&self) -> io::Result<FastCount> {
        let (pins, zones, wans, mut count) = {
            let seen = self.seen();
            let count = FastCount {
                on: seen.on,
                reason: seen.reason.clone(),
                ports: seen.ports.clone(),
                flows: Family::ALL.map(|family| (family, seen.fed.entries(family))).into(),
                fed: seen.fed.clone(),
                ..FastCount::default()
            };
            (seen.pins.clone().filter(|_| seen.on), seen.zones, seen.wans.clone(), count)
        };
        let Some(pins) = pins else { return Ok(count) };
        aside(move || {
            let maps = Maps::open(&pins).map_err(io::Error::other)?;
            count.capacity = maps.capacity().into();
            count.memory_bytes = maps.memory();
            for (verdict, counted) in maps.verdicts().map_err(io::Error::other)? {
                count.verdicts.insert(verdict.word().to_owned(), named(counted));
            }
            for (wan, family) in wans.iter().flat_map(|wan| Family::ALL.map(|family| (*wan, family))) {
                let line = maps.line(abi::slot(wan.get(), family == Family::V6)).map_err(io::Error::other)?;
                count.lines.insert((wan, family), LineCount { sent: named(line.sent), received: named(line.received) });
            }
            for (from, to) in pairs(zones) {
                let counted = maps.denials(abi::pair(from, to)).map_err(io::Error::other)?;
                if counted.packets > 0 {
                    count.denied.insert((ZoneId(from), ZoneId(to)), named(counted));
                }
            }
            Ok(count)
        })
        .await
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ring or a timer, to be waited for.
#[expect(deprecated, reason = "what takes its place is unsafe; these keep their one descriptor as long as they live")]
pub(crate) fn readable<T: AsRawFd>(it: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(it, Interest::READABLE)
}

impl FastPath {
    pub(crate) fn none() -> Self {
        Self { source: None, programs: None, maps: None, failed: None, watcher: Watcher::new() }
    }

    /// What an earlier daemon left there works on.
    pub(crate) fn new(source: Source) -> Self {
        if let Err(error) = Programs::remove_other_layouts(&source.pins) {
            warn!(%error, "what another version left of the fast path cannot be removed");
        }
        let maps = Maps::open(&source.pins).ok();
        let watcher = Watcher::new();
        watcher.seen().pins = Some(source.pins.clone());
        Self { source: Some(source), programs: None, maps, failed: None, watcher }
    }

    pub(crate) fn watcher(&self) -> Watcher {
        self.watcher.clone()
    }

    /// Exactly what is wanted, or something else.
    pub(crate) fn observe(&self, want: Option<&Wanted>, links: &Table) -> Option<Wanted> {
        let Some(want) = want else { return self.maps.is_some().then(nothing) };
        if self.source.is_none() || self.failed.as_ref() == Some(want) {
            return Some(want.clone());
        }
        let (Some(programs), Some(maps)) = (&self.programs, &self.maps) else { return None };
        match Entries::of(want, links).is_in(maps).and_then(|same| Ok(same && self.is_attached(want, programs, links)?))
        {
            Ok(same) => same.then(|| want.clone()),
            Err(error) => {
                debug!(%error, "the fast path cannot be read");
                None
            }
        }
    }

    pub(crate) async fn set(&mut self, want: Option<&Wanted>, links: &Table) {
        self.failed = None;
        let Some(want) = want else {
            self.off(None);
            return;
        };
        if let Err(reason) = self.make(want, links).await {
            if self.watcher.seen().reason.as_ref() != Some(&reason) {
                warn!(%reason, "there is no fast path: every packet takes the kernel's");
            }
            self.off(Some(reason));
            self.failed = Some(want.clone());
        }
    }

    /// Sends the cached flows of these classes back to the kernel.
    pub(crate) fn bump(&mut self, classes: impl Iterator<Item = FlowClass> + Clone) {
        // Closed first: an entry that is written meanwhile is stale (see `flows::Sight`).
        self.watcher.seen().closed.extend(classes.clone());
        let slots = classes.map(|class| abi::slot(class.wan.get(), class.family == Family::V6));
        self.bump_slots(slots.collect());
    }

    pub(crate) fn bump_all(&mut self) {
        self.bump_slots((0..abi::SLOTS).collect());
    }

    fn bump_slots(&mut self, slots: BTreeSet<u32>) {
        let Some(maps) = &mut self.maps else { return };
        let bumped = slots.into_iter().try_for_each(|slot| maps.bump(slot));
        self.watcher.moves.send_modify(|moves| *moves += 1);
        if let Err(error) = bumped {
            // A flow that cannot be called back must not be forwarded at all.
            warn!(%error, "cached flows cannot be called back: the fast path goes off");
            self.off(Some(error.to_string()));
        }
    }

    fn off(&mut self, reason: Option<String>) {
        (self.programs, self.maps) = (None, None);
        if let Some(source) = &self.source
            && let Err(error) = Programs::remove(&source.pins)
        {
            warn!(%error, "the fast path cannot be taken off the ports");
        }
        self.watcher.tell_state(false, reason.clone());
        let mut seen = self.watcher.seen();
        let (pins, closed) = (seen.pins.take(), mem::take(&mut seen.closed));
        *seen = Seen { pins, reason, closed, ..Seen::default() };
    }

    async fn make(&mut self, want: &Wanted, links: &Table) -> Result<(), String> {
        let Some(source) = self.source.clone() else { return Ok(()) };
        let loaded = self.maps.as_ref().filter(|_| self.programs.is_some());
        let fresh = loaded.is_none_or(|maps| maps.capacity() != want.limits.flows);
        if fresh {
            let (flows, pins) = (want.limits.flows, source.pins.clone());
            // The verifier takes its time.
            let programs = aside(move || Programs::load(&source.object, flows, &source.pins).map_err(io::Error::other));
            self.programs = Some(programs.await.map_err(|error| error.to_string())?);
            self.maps = Some(Maps::open(&pins).map_err(|error| error.to_string())?);
        }
        let (Some(programs), Some(maps)) = (&mut self.programs, &mut self.maps) else { return Ok(()) };
        let entries = Entries::of(want, links);
        entries.write(maps).map_err(|error| error.to_string())?;
        let ports = attach(want, programs, links)?;
        let by_xdp = |name: &&IfName| ports.get(*name).is_some_and(|port| port.mode == Some(PortMode::Xdp));
        let targets = want.ports.keys().filter(by_xdp).filter_map(|name| links.index(name).ok()).collect();
        set_targets(maps, &targets).map_err(|error| error.to_string())?;
        maps.set_settings(entries.settings).map_err(|error| error.to_string())?;
        let names = want.ports.keys().filter_map(|name| Some((links.index(name).ok()?, name.clone()))).collect();
        let mut seen = self.watcher.seen();
        let was_on = seen.on;
        let (pins, closed, fed) = (seen.pins.take(), mem::take(&mut seen.closed), mem::take(&mut seen.fed));
        let wans = want.zones.values().filter_map(|zone| zone.wan).collect();
        *seen = Seen { pins, on: true, reason: None, ports, names, zones: entries.highest(), wans, closed, fed };
        drop(seen);
        self.watcher.moves.send_modify(|moves| *moves += 1);
        self.watcher.tell_state(true, None);
        if fresh || !was_on {
            self.watcher.loads.send_modify(|loads| *loads += 1);
        }
        Ok(())
    }

    fn is_attached(&self, want: &Wanted, programs: &Programs, links: &Table) -> Result<bool, String> {
        let attached = programs.attached().map_err(|error| error.to_string())?;
        let seen = self.watcher.seen();
        let wanted = want.ports.iter().filter_map(|(name, port)| {
            let mode = match seen.ports.get(name) {
                // What the driver cannot is not asked of it again and again.
                Some(port) => port.mode,
                None => Some(port.mode),
            };
            let attached = Attached { port: mode.map(mode_of), line: port.line };
            Some((links.index(name).ok()?, attached)).filter(|(_, attached)| *attached != Attached::default())
        });
        let asked = seen.ports.iter().map(|(name, port)| (name, port.asked));
        Ok(attached == wanted.collect() && asked.eq(want.ports.iter().map(|(name, port)| (name, port.mode))))
    }
}

/// Every port gets its program, in the driver or behind it, and others lose theirs.
fn attach(want: &Wanted, programs: &mut Programs, links: &Table) -> Result<BTreeMap<IfName, FastPort>, String> {
    let mut ports = BTreeMap::new();
    let mut stale = programs.attached().map_err(|error| error.to_string())?;
    for (name, port) in &want.ports {
        let Ok(index) = links.index(name) else { continue };
        stale.remove(&index);
        let mut seen = FastPort { asked: port.mode, mode: None, why: None };
        let candidates = match port.mode {
            PortMode::Xdp => [Some(PortMode::Xdp), Some(PortMode::Tcx)],
            PortMode::Tcx => [Some(PortMode::Tcx), None],
        };
        for mode in candidates.into_iter().flatten() {
            match programs.attach(index, Attached { port: Some(mode_of(mode)), line: port.line }) {
                Ok(()) => {
                    seen.mode = Some(mode);
                    break;
                }
                Err(error) => seen.why = Some(error.reason),
            }
        }
        ports.insert(name.clone(), seen);
    }
    for index in stale.into_keys() {
        programs.attach(index, Attached::default()).map_err(|error| error.to_string())?;
    }
    Ok(ports)
}

fn set_targets(maps: &mut Maps, targets: &BTreeSet<u32>) -> Result<(), ebpf::MapError> {
    let have: BTreeSet<_> = maps.ports()?.into_iter().collect();
    have.difference(targets).try_for_each(|index| maps.remove_port(*index))?;
    targets.difference(&have).try_for_each(|index| maps.add_port(*index))
}

/// What the maps are to hold.
#[derive(Debug, PartialEq)]
struct Entries {
    settings: abi::Settings,
    zones: BTreeMap<PortKey, abi::Zone>,
    homes4: BTreeMap<([u8; 4], u8), abi::Home>,
    homes6: BTreeMap<([u8; 16], u8), abi::Home>,
    denied: BTreeSet<u32>,
}

impl Entries {
    fn of(want: &Wanted, links: &Table) -> Self {
        let rate = want.limits.new_per_source.is_some();
        let zones = want.zones.iter().filter_map(|((port, tag), zone)| {
            let mut checks = abi::Zone::SPOOF;
            if zone.bogons {
                checks |= abi::Zone::BOGONS;
            }
            if rate && zone.wan.is_some() {
                checks |= abi::Zone::RATE;
            }
            let wan = zone.wan.map_or(0, WanId::get);
            let key = PortKey { port: links.index(port).ok()?, vlan: *tag, _0: 0 };
            Some((key, abi::Zone { zone: zone.zone.0, wan, checks, mac: zone.mac, _0: 0 }))
        });
        let mut entries = Self {
            settings: settings(&want.limits),
            zones: zones.collect(),
            homes4: BTreeMap::new(),
            homes6: BTreeMap::new(),
            denied: want.denied.iter().map(|(from, to)| abi::pair(from.0, to.0)).collect(),
        };
        for (net, home) in &want.homes {
            let home = match home {
                Home::Host(zone) => abi::Home { zone: zone.0, what: abi::Home::HOST },
                Home::Leave => abi::Home { zone: abi::OUTSIDE, what: abi::Home::LEAVE },
                Home::Bogon => abi::Home { zone: abi::OUTSIDE, what: abi::Home::BOGON },
            };
            match net {
                IpNet::V4(net) => entries.homes4.insert((net.network().octets(), net.prefix_len()), home),
                IpNet::V6(net) => entries.homes6.insert((net.network().octets(), net.prefix_len()), home),
            };
        }
        entries
    }

    /// The highest number of a zone.
    fn highest(&self) -> u16 {
        let homes = self.homes4.values().chain(self.homes6.values()).map(|home| home.zone);
        homes.chain(self.zones.values().map(|zone| zone.zone)).max().unwrap_or(0)
    }

    fn is_in(&self, maps: &Maps) -> Result<bool, String> {
        let read = || -> Result<bool, ebpf::MapError> {
            Ok(maps.settings()? == self.settings && self.has_tables(maps)? && self.stale_pairs(maps)?.is_empty())
        };
        read().map_err(|error| error.to_string())
    }

    fn has_tables(&self, maps: &Maps) -> Result<bool, ebpf::MapError> {
        Ok(maps.zones()? == self.zones && maps.homes4()? == self.homes4 && maps.homes6()? == self.homes6)
    }

    fn stale_pairs(&self, maps: &Maps) -> Result<Vec<u32>, ebpf::MapError> {
        let mut stale = Vec::new();
        for (from, to) in pairs(self.highest()) {
            let pair = abi::pair(from, to);
            if maps.is_denied(pair)? != self.denied.contains(&pair) {
                stale.push(pair);
            }
        }
        Ok(stale)
    }

    /// Nothing is denied by a mixture of old and new: while the tables change, the ruleset denies alone.
    fn write(&self, maps: &mut Maps) -> Result<(), ebpf::MapError> {
        let stale_pairs = self.stale_pairs(maps)?;
        if self.has_tables(maps)? && stale_pairs.is_empty() {
            return Ok(());
        }
        maps.set_settings(abi::Settings { deny: 0, ..self.settings })?;
        let (zones, homes4, homes6) = (maps.zones()?, maps.homes4()?, maps.homes6()?);
        let moved = homes4.iter().any(|(net, home)| self.homes4.get(net).is_some_and(|now| now.zone != home.zone))
            || homes6.iter().any(|(net, home)| self.homes6.get(net).is_some_and(|now| now.zone != home.zone));
        if moved {
            // Counts of a number that is another VLAN's from here on.
            let highest = homes4.values().chain(homes6.values()).map(|home| home.zone).max().unwrap_or(0);
            pairs(highest).try_for_each(|(from, to)| maps.clear_denials(abi::pair(from, to)))?;
        }
        for key in zones.keys().filter(|key| !self.zones.contains_key(*key)) {
            maps.remove_zone(*key)?;
        }
        for net in homes4.keys().filter(|net| !self.homes4.contains_key(*net)) {
            maps.remove_home4(*net)?;
        }
        for net in homes6.keys().filter(|net| !self.homes6.contains_key(*net)) {
            maps.remove_home6(*net)?;
        }
        for (key, zone) in self.zones.iter().filter(|(key, zone)| zones.get(*key) != Some(*zone)) {
            maps.set_zone(*key, *zone)?;
        }
        for (net, home) in self.homes4.iter().filter(|(net, home)| homes4.get(*net) != Some(*home)) {
            maps.set_home4(*net, *home)?;
        }
        for (net, home) in self.homes6.iter().filter(|(net, home)| homes6.get(*net) != Some(*home)) {
            maps.set_home6(*net, *home)?;
        }
        stale_pairs.into_iter().try_for_each(|pair| maps.set_denied(pair, self.denied.contains(&pair)))
    }
}

fn settings(limits: &FastLimits) -> abi::Settings {
    abi::Settings {
        forward: 1,
        deny: 1,
        silence_ns: u64::try_from(limits.silence.as_nanos()).unwrap_or(u64::MAX),
        silence_flows: limits.silence_flows,
        new_per_second: limits.new_per_source.map_or(0, |rate| rate.per_second),
        new_burst: limits.new_per_source.map_or(0, |rate| rate.burst),
        sample_ns: 1_000_000_000 / limits.denied_log_rate.max(1),
    }
}

/// All pairs of zones up to this one, outside included.
fn pairs(highest: u16) -> impl Iterator<Item = (u16, u16)> {
    (0..=highest).flat_map(move |from| (0..=highest).map(move |to| (from, to)))
}

fn mode_of(mode: PortMode) -> Mode {
    match mode {
        PortMode::Xdp => Mode::Xdp,
        PortMode::Tcx => Mode::Tcx,
    }
}

fn named(count: abi::Count) -> Count {
    Count { packets: count.packets, bytes: count.bytes }
}

/// Something to be taken off.
fn nothing() -> Wanted {
    let limits = FastLimits {
        flows: 0,
        silence: std::time::Duration::ZERO,
        silence_flows: 0,
        new_per_source: None,
        denied_log_rate: 0,
    };
    Wanted { limits, ports: BTreeMap::new(), zones: BTreeMap::new(), homes: BTreeMap::new(), denied: BTreeSet::new() }
}
