//! Keeps the fast path's tables filled, on a thread of its own: conntrack tells of flows, rtnetlink of links and
//! neighbours, `flows` decides, and what it decides goes into the maps.
//!
//! Work comes in turns of bounded length. What conntrack tells faster than it is taken is lost to the fast path and
//! not to the router: the kernel forwards those flows itself. A listing of all flows finds them again. Listings follow
//! such losses, calls of the cache's generations, and once a minute nothing at all; never faster than costs a twentieth
//! of the thread's time.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use config::Config;
use ebpf::abi::{self, slot};
use ebpf::{MapError, Maps};
use rtnetlink::packet_core::ParseableParametrized;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::fast_path::Watcher;
use super::links::Table;
use super::netlink::{Heard, Listener, NETLINK_NETFILTER, NETLINK_ROUTE, Received, Socket};
use super::rtnl::{Rtnl, find};
use super::{Tuple, aside, conntrack};
use crate::counters::Fed;
use crate::flows::{Book, Cache, Entry, Key, Sight, Topology, Tracked};

/// Feeds until the config's sender is gone.
pub fn start(watcher: Watcher, config: watch::Receiver<Option<Arc<Config>>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let feed = async move {
        while config.has_changed().is_ok() {
            if let Err(error) = feed(&watcher, config.clone()).await {
                warn!(%error, "the fast path gets no flows for a moment");
            }
            tokio::time::sleep(TICK).await;
        }
    };
    thread::Builder::new().name("flows".to_owned()).spawn(move || runtime.block_on(feed)).map(drop)
}

/// While the fast path is on, with these maps and this config.
async fn feed(watcher: &Watcher, mut config: watch::Receiver<Option<Arc<Config>>>) -> io::Result<()> {
    let mut loads = watcher.loads();
    loads.mark_unchanged();
    let Some(pins) = watcher.pins() else { return Ok(()) };
    let Some(in_force) = config.borrow_and_update().clone() else { return Ok(()) };
    let maps = Maps::open(&pins).map_err(io::Error::other)?;
    let mut feeder = Feeder::open(watcher.clone(), in_force, maps)?;
    while watcher.pins().is_some() && !loads.has_changed().unwrap_or(true) {
        match config.has_changed() {
            Ok(true) => feeder.config(config.borrow_and_update().clone()),
            Ok(false) => {}
            Err(_gone) => break,
        }
        feeder.turn(&mut config, &mut loads).await?;
    }
    Ok(())
}

#[derive(Debug)]
struct Feeder {
    watcher: Watcher,
    moves: watch::Receiver<u64>,
    takings: watch::Receiver<u64>,
    config: Arc<Config>,
    events: Listener,
    route: Listener,
    rtnl: Rtnl,
    asker: Socket,
    maps: Maps,
    book: Book,
    /// In force when this turn began.
    generations: Arc<BTreeMap<u32, u32>>,
    links: Table,
    topology: Topology,
    /// Links, or the ports that forward, are to be read again; and the neighbours too.
    stale: (bool, bool),
    /// Something about places changed: every flow is to be judged again.
    moved: bool,
    review: Vec<Tuple>,
    listing: Listing,
    counting: Counting,
    fed: Fed,
    /// There is more in it than the watcher was told.
    untold: bool,
    told: Instant,
    /// Entries of an earlier daemon may be there.
    inherited: bool,
}

/// All flows of conntrack.
#[derive(Debug)]
struct Listing {
    wanted: bool,
    not_before: Instant,
    begun: Instant,
    reading: Option<JoinHandle<io::Result<Vec<Tracked>>>>,
    /// In force when it began.
    generations: Arc<BTreeMap<u32, u32>>,
    found: Option<VecDeque<Tracked>>,
    /// What it did not find.
    gone: Vec<Tuple>,
}

/// What the flows of the book carried.
#[derive(Debug)]
struct Counting {
    left: Vec<Tuple>,
    begun: Instant,
    /// Others took entries out. Counting finds which, and the listing after that puts them in again.
    taken: bool,
}

impl Feeder {
    fn open(watcher: Watcher, config: Arc<Config>, maps: Maps) -> io::Result<Self> {
        let now = Instant::now();
        let listing = Listing {
            wanted: true,
            not_before: now,
            begun: now,
            reading: None,
            generations: Arc::default(),
            found: None,
            gone: Vec::new(),
        };
        let mut moves = watcher.moves();
        moves.mark_changed();
        Ok(Self {
            takings: watcher.takings(),
            watcher,
            moves,
            config,
            events: Listener::open(NETLINK_NETFILTER, &[NFNLGRP_CONNTRACK_UPDATE, NFNLGRP_CONNTRACK_DESTROY], EVENTS)?,
            route: Listener::open(NETLINK_ROUTE, &[RTNLGRP_LINK, RTNLGRP_NEIGH], ROUTES)?.without_questions()?,
            rtnl: Rtnl::open()?,
            asker: Socket::open(NETLINK_NETFILTER)?,
            maps,
            book: Book::default(),
            generations: Arc::default(),
            links: Table::default(),
            topology: Topology::default(),
            stale: (true, true),
            moved: false,
            review: Vec::new(),
            listing,
            counting: Counting { left: Vec::new(), begun: now, taken: false },
            fed: Fed::default(),
            untold: true,
            told: now,
            inherited: true,
        })
    }

    fn config(&mut self, config: Option<Arc<Config>>) {
        if let Some(config) = config {
            self.config = config;
            self.stale.0 = true;
        }
    }

    /// Begins when there is something to do, which may be another config, or programs that were loaded anew.
    async fn turn(
        &mut self,
        config: &mut watch::Receiver<Option<Arc<Config>>>,
        loads: &mut watch::Receiver<u64>,
    ) -> io::Result<()> {
        // Before anything of this turn is heard: see `Sight`.
        if self.moves.has_changed().unwrap_or(true) {
            self.moves.mark_unchanged();
            let generations = self.read_generations().map_err(io::Error::other)?;
            if generations != *self.generations {
                self.generations = Arc::new(generations);
                self.listing.wanted = true;
            }
            self.stale.0 |= self.watcher.attached() != self.topology.attached;
        }
        if self.takings.has_changed().unwrap_or(false) {
            self.takings.mark_unchanged();
            self.counting = Counting { left: self.book.tuples(), begun: Instant::now(), taken: true };
        }
        if self.stale != (false, false) {
            self.look().await?;
        }
        if self.is_idle() {
            let soon = self.untold || self.listing.wanted || self.listing.reading.is_some();
            let tick = tokio::time::sleep(if soon { TICK } else { IDLE });
            let mut tick = std::pin::pin!(tick);
            // Each probe of a gateway comes back as news of a neighbour, mostly of no change: no reason for a turn.
            while !self.moved && self.stale == (false, false) {
                tokio::select! {
                    heard = self.events.next() => {
                        self.hear(heard?);
                        break;
                    }
                    heard = self.route.next() => self.hear_route(heard?),
                    _ = self.moves.changed() => {
                        self.moves.mark_changed();
                        break;
                    }
                    _ = self.takings.changed() => {
                        self.takings.mark_changed();
                        break;
                    }
                    _ = config.changed() => {
                        config.mark_changed();
                        break;
                    }
                    _ = loads.changed() => {
                        loads.mark_changed();
                        break;
                    }
                    () = &mut tick => break,
                }
            }
        }
        for _ in 0..WORK {
            let Some(heard) = self.events.pending()? else { break };
            self.hear(heard);
        }
        for _ in 0..WORK {
            let Some(heard) = self.route.pending()? else { break };
            self.hear_route(heard);
        }
        self.list().await;
        self.work();
        self.untold |= self.fed.carried != *self.book.counts();
        if self.untold && self.told.elapsed() >= TICK {
            (self.untold, self.told) = (false, Instant::now());
            self.fed.carried.clone_from(self.book.counts());
            self.watcher.tell_fed(self.fed.clone());
        }
        // Whatever else this thread has to do.
        tokio::task::yield_now().await;
        Ok(())
    }

    fn is_idle(&self) -> bool {
        let listing = &self.listing;
        self.review.is_empty() && self.counting.left.is_empty() && listing.found.is_none() && listing.gone.is_empty()
    }

    fn hear(&mut self, heard: Heard) {
        let messages = match heard {
            Heard::Messages(messages) => messages,
            Heard::Overrun => {
                self.fed.overruns += 1;
                self.untold = true;
                self.listing.wanted = true;
                return;
            }
        };
        for message in messages {
            let result = if let Some((tuple, id)) = conntrack::ended(&message) {
                self.book.forget(&tuple, id, &mut self.maps)
            } else if let Some(flow) = conntrack::tracked(&message)
                && (self.book.len() < self.limit() * 2 || self.book.knows(&flow.original))
            {
                let open = |class| self.watcher.is_open(class);
                let sight = Sight { topology: &self.topology, generations: &self.generations, open: &open };
                self.book.learn(flow, sight, &mut self.maps)
            } else {
                Ok(())
            };
            told(result);
        }
    }

    /// Conntrack's flows: asked for, taken in, and those ended that are not there.
    async fn list(&mut self) {
        if self.listing.begun.elapsed() >= LISTED_EVERY {
            self.listing.wanted = true;
        }
        let listing = &mut self.listing;
        if let Some(reading) = listing.reading.take_if(|reading| reading.is_finished()) {
            match reading.await.map_err(io::Error::other).and_then(|read| read) {
                Ok(flows) => listing.found = Some(flows.into()),
                Err(error) => {
                    debug!(%error, "the flows cannot be listed");
                    listing.wanted = true;
                }
            }
            let took = listing.begun.elapsed();
            listing.not_before = Instant::now() + PAUSE.max(took * 20);
        }
        let free = listing.reading.is_none() && listing.found.is_none() && listing.gone.is_empty();
        if listing.wanted && free && Instant::now() >= listing.not_before {
            (listing.wanted, listing.begun) = (false, Instant::now());
            listing.generations = self.generations.clone();
            self.book.begin_listing();
            let read = || conntrack::tracked_flows(&mut Socket::open(NETLINK_NETFILTER)?);
            listing.reading = Some(tokio::spawn(aside(read)));
        }
    }

    /// A piece of whatever is to be done.
    fn work(&mut self) {
        let limit = self.limit();
        let open = |class| self.watcher.is_open(class);
        let sight = |generations| Sight { topology: &self.topology, generations, open: &open };
        if let Some(found) = &mut self.listing.found {
            for flow in found.drain(..WORK.min(found.len())) {
                if self.book.len() < limit || self.book.knows(&flow.original) {
                    told(self.book.list(flow, sight(&self.listing.generations), &mut self.maps));
                }
            }
            if found.is_empty() {
                self.listing.found = None;
                self.listing.gone = self.book.end_listing();
                self.fed.listings += 1;
                self.untold = true;
                if std::mem::take(&mut self.inherited) {
                    self.disinherit();
                }
            }
        }
        for tuple in last(&mut self.listing.gone) {
            told(self.book.end(&tuple, &mut self.maps));
        }
        if self.moved && self.review.is_empty() {
            self.moved = false;
            self.review = self.book.tuples();
        }
        let open = |class| self.watcher.is_open(class);
        let sight = Sight { topology: &self.topology, generations: &self.generations, open: &open };
        for tuple in last(&mut self.review) {
            told(self.book.review(&tuple, sight, &mut self.maps));
        }
        if self.counting.left.is_empty() && self.counting.begun.elapsed() >= COUNTED_EVERY {
            self.counting = Counting { left: self.book.tuples(), begun: Instant::now(), taken: self.counting.taken };
        }
        if !self.counting.left.is_empty() {
            let timeouts = Timeouts::read();
            for tuple in last(&mut self.counting.left) {
                match self.book.count(&tuple, &mut self.maps) {
                    Ok(Some(flow)) => self.keep(&flow, &timeouts),
                    other => told(other.map(drop)),
                }
            }
        }
        if self.counting.left.is_empty() {
            self.listing.wanted |= std::mem::take(&mut self.counting.taken);
        }
    }

    /// Conntrack did not see what this flow carried.
    fn keep(&mut self, flow: &Tracked, timeouts: &Timeouts) {
        let seconds = if flow.original.protocol == TCP { timeouts.tcp } else { timeouts.udp };
        match conntrack::keep(&mut self.asker, &flow.original, seconds) {
            Ok(true) => {}
            Ok(false) => told(self.book.end(&flow.original, &mut self.maps)),
            Err(error) => debug!(%error, ?flow, "conntrack cannot be told that a flow lives"),
        }
    }

    /// Takes out what is not in the book.
    fn disinherit(&mut self) {
        let ours = self.book.keys();
        let four: Vec<_> = self.maps.flows4().map(|(key, _)| Key::V4(key)).filter(|key| !ours.contains(key)).collect();
        let six: Vec<_> = self.maps.flows6().map(|(key, _)| Key::V6(key)).filter(|key| !ours.contains(key)).collect();
        for key in four.into_iter().chain(six) {
            told(Cache::remove(&mut self.maps, &key));
        }
    }

    /// Flows that have room in the tables.
    fn limit(&self) -> usize {
        self.maps.capacity() as usize
    }

    fn read_generations(&self) -> Result<BTreeMap<u32, u32>, MapError> {
        let lines = self.config.wans.values().map(|wan| wan.id.get());
        let slots = [0].into_iter().chain(lines).flat_map(|line| [slot(line, false), slot(line, true)]);
        slots.map(|slot| Ok((slot, self.maps.generation(slot)?))).collect()
    }

    /// Links and, where they may have been missed, neighbours.
    async fn look(&mut self) -> io::Result<()> {
        let (_, neighbours) = std::mem::take(&mut self.stale);
        self.links = Table::read(&mut self.rtnl).await?;
        let mut topology = Topology::new(&self.config, &self.links.places(), self.watcher.attached());
        if neighbours {
            let mut bridges = NeighbourMessage::default();
            bridges.header.family = AddressFamily::Bridge;
            for question in [NeighbourMessage::default(), bridges] {
                for message in self.rtnl.dump(RouteNetlinkMessage::GetNeighbour(question)).await? {
                    neighbour(&message, &mut topology);
                }
            }
        } else {
            topology.neighbours = std::mem::take(&mut self.topology.neighbours);
            topology.forwarding = std::mem::take(&mut self.topology.forwarding);
        }
        self.topology = topology;
        self.moved = true;
        Ok(())
    }

    fn hear_route(&mut self, heard: Heard) {
        let Heard::Messages(messages) = heard else {
            self.stale = (true, true);
            return;
        };
        for message in messages {
            match message.kind {
                RTM_NEWLINK | RTM_DELLINK => self.stale.0 = true,
                RTM_NEWNEIGH | RTM_DELNEIGH => self.moved |= self.hear_neighbour(&message),
                _ => {}
            }
        }
    }

    fn hear_neighbour(&mut self, message: &Received) -> bool {
        let message = RouteNetlinkMessage::parse_with_param(&message.body, message.kind);
        message.is_ok_and(|message| neighbour(&message, &mut self.topology))
    }
}

/// Up to a piece of work, from the end.
fn last(tuples: &mut Vec<Tuple>) -> Vec<Tuple> {
    tuples.split_off(tuples.len().saturating_sub(WORK))
}

/// A flow that is not in the cache takes the kernel's path.
fn told(result: Result<(), MapError>) {
    if let Err(error) = result {
        debug!(%error, "a flow cannot be cached");
    }
}

/// Takes in an entry of the tables of neighbours or of bridges; true: it changed something.
fn neighbour(message: &RouteNetlinkMessage, topology: &mut Topology) -> bool {
    let there = matches!(message, RouteNetlinkMessage::NewNeighbour(_));
    let (RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry)) = message else {
        return false;
    };
    let mac = find!(entry.attributes, NeighbourAttribute::LinkLayerAddress);
    let mac: Option<[u8; 6]> = mac.and_then(|mac| mac.as_slice().try_into().ok());
    let (index, state) = (entry.header.ifindex, u16::from(entry.header.state));
    if entry.header.family == AddressFamily::Bridge {
        // Of the bridge's own table, not the port's; and not the bridge's own addresses.
        let (Some(bridge), Some(mac)) = (find!(entry.attributes, NeighbourAttribute::Controller), mac) else {
            return false;
        };
        if find!(entry.attributes, NeighbourAttribute::Vlan).is_some() || state & NUD_PERMANENT != 0 {
            return false;
        }
        let key = (*bridge, mac);
        return if there {
            topology.forwarding.insert(key, index) != Some(index)
        } else {
            // Learnt at another port, it is told anew before the old entry is.
            topology.forwarding.get(&key) == Some(&index) && topology.forwarding.remove(&key).is_some()
        };
    }
    let address = match find!(entry.attributes, NeighbourAttribute::Destination) {
        Some(NeighbourAddress::Inet(address)) => IpAddr::V4(*address),
        Some(NeighbourAddress::Inet6(address)) => IpAddr::V6(*address),
        Some(NeighbourAddress::Other(_) | _) | None => return false,
    };
    match mac.filter(|_| there && state & NUD_VALID != 0) {
        Some(mac) => topology.neighbours.insert((index, address), mac) != Some(mac),
        None => topology.neighbours.remove(&(index, address)).is_some(),
    }
}

/// What a packet of a flow would give it, in seconds.
#[derive(Debug)]
struct Timeouts {
    tcp: u32,
    udp: u32,
}

impl Timeouts {
    fn read() -> Self {
        let read = |name: &str, default| {
            let text = fs::read_to_string(Path::new("/proc/sys/net/netfilter").join(name)).ok();
            text.and_then(|text| text.trim().parse().ok()).unwrap_or(default)
        };
        Self {
            tcp: read("nf_conntrack_tcp_timeout_established", 432_000),
            udp: read("nf_conntrack_udp_timeout_stream", 120),
        }
    }
}

impl Cache for Maps {
    fn get(&self, key: &Key) -> Result<Option<abi::Flow>, MapError> {
        match key {
            Key::V4(key) => self.flow4(key),
            Key::V6(key) => self.flow6(key),
        }
    }

    fn set(&mut self, entry: &Entry) -> Result<(), MapError> {
        match entry.key {
            Key::V4(key) => self.set_flow4(key, entry.flow),
            Key::V6(key) => self.set_flow6(key, entry.flow),
        }
    }

    fn remove(&mut self, key: &Key) -> Result<(), MapError> {
        match key {
            Key::V4(key) => self.remove_flow4(key),
            Key::V6(key) => self.remove_flow6(key),
        }
    }
}

const TICK: Duration = Duration::from_millis(100);
/// The same while nothing is under way that nobody tells the end of.
const IDLE: Duration = Duration::from_secs(1);
/// Pieces of work of each kind in a turn.
const WORK: usize = 512;
/// Between two listings, at least.
const PAUSE: Duration = Duration::from_secs(2);
const LISTED_EVERY: Duration = Duration::from_mins(1);
/// Shorter than any timeout of conntrack for a flow that is settled.
const COUNTED_EVERY: Duration = Duration::from_secs(10);
/// Bytes of events that may wait: some ten thousand.
const EVENTS: usize = 16 << 20;
const ROUTES: usize = 1 << 20;
const NFNLGRP_CONNTRACK_UPDATE: u32 = 2;
const NFNLGRP_CONNTRACK_DESTROY: u32 = 3;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const NUD_PERMANENT: u16 = 0x80;
/// Reachable, stale, delay, probe, noarp, permanent.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
const TCP: u8 = 6;
