//! The resolver on the router, and with it the enforcement of egress by name: an answer goes out when the addresses in it
//! are in the table, and not before.
//!
//! ```text
//!   thread dns   follows the config and what happens to the lines; listens at the router's addresses in VLANs that may ask
//!                question ─▶ zone (our own names) ─▶ kept answers ─▶ resolvers outside ─▶ book, kernel ─▶ answer
//! ```
//!
//! Nothing of it runs on the loop's thread. Without a `[dns]` the thread sleeps. Questions beyond what may be on the way at
//! once are dropped, so that a flood of them costs no more than that. What names stand for is kept on the disk, and is
//! in the table again before the first question after a start.

mod book;
mod serve;
mod upstream;
mod zone;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use config::Config;
use config::domain::DomainName;
use config::units::{EgressName, Family, VlanName};
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use mwan::matrix::Zone as Place;
use mwan::state::NamedKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tracing::{debug, info, warn};

use self::book::{Book, Standing};
use self::serve::Listeners;
use self::upstream::{Answer, Servers};
use self::zone::Zone;
use crate::happening::{Happening, What};
use crate::kernel::named::{Grant, Lineage, Named};
use crate::outside;

/// The resolver as others see it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Resolver(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    book: Mutex<Book>,
    line: Mutex<Option<DnsLine>>,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    questions: AtomicU64,
    own: AtomicU64,
    failed: AtomicU64,
    stale: AtomicU64,
    dropped: AtomicU64,
    rebound: AtomicU64,
    granted: AtomicU64,
}

/// For status and metrics. Counts are since the start of routerd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsLine {
    pub listen: Vec<String>,
    /// Whom it asks.
    pub upstreams: Vec<String>,
    /// Hosts of the site file that are names.
    pub hosts: usize,
    pub questions: u64,
    /// Answered by what the router knows itself.
    pub own: u64,
    /// Nobody outside had an answer.
    pub failed: u64,
    /// Answered with what was kept for longer than it lives, because nobody could be asked.
    pub stale: u64,
    /// Not even read: too many were on the way.
    pub dropped: u64,
    /// Addresses of the inside that somebody outside told, and that were left out.
    pub rebound: u64,
    /// Addresses that were put into the table, or given more time there.
    pub granted: u64,
    /// Addresses that names of an egress set stand for at this moment.
    pub named: BTreeMap<String, usize>,
    /// Why it does not answer, or not everywhere; `None` when all is well.
    pub trouble: Option<String>,
}

impl DnsLine {
    /// For `status`.
    pub(crate) fn summary(&self) -> String {
        let Self { listen, hosts, questions, own, failed, named, .. } = self;
        let sets: Vec<_> = named.iter().map(|(set, count)| format!("; {set} stands for {count} addresses")).collect();
        format!(
            "names: answered at {} addresses, {hosts} hosts; {questions} questions, {own} of them about this site, {failed} \
             without an answer{}",
            listen.len(),
            sets.concat()
        )
    }
}

/// What an address of a set that goes by names is, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedAddress {
    pub set: EgressName,
    /// `it is in by login.example.com, for 5m yet`.
    pub text: String,
    pub counts: bool,
}

impl Resolver {
    pub fn line(&self) -> Option<DnsLine> {
        let mut line = self.0.line.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Tally { questions, own, failed, stale, dropped, rebound, granted } = &self.0.tally;
        line.questions = read(questions);
        line.own = read(own);
        line.failed = read(failed);
        line.stale = read(stale);
        line.dropped = read(dropped);
        line.rebound = read(rebound);
        line.granted = read(granted);
        let counts = self.book().counts(Instant::now());
        line.named = counts.into_iter().map(|(set, count)| (set.to_string(), count)).collect();
        Some(line)
    }

    /// Does a name stand for this address?
    pub fn is_named(&self, key: &NamedKey, address: IpAddr) -> bool {
        matches!(self.book().standing(key, address, Instant::now()), Some(Standing::In(..)))
    }

    /// How this address stands in the sets by name that a VLAN may use.
    pub fn about(&self, config: &Config, vlan: &VlanName, address: IpAddr) -> Vec<NamedAddress> {
        let config::model::Internet::Sets(sets) = (match config.vlans.get(vlan) {
            Some(vlan) => &vlan.internet,
            None => return Vec::new(),
        }) else {
            return Vec::new();
        };
        let (book, now) = (self.book(), Instant::now());
        let mut told = Vec::new();
        for set in sets.iter().filter_map(|set| config.egress.get(set)) {
            for part in 0..set.named.len() {
                let key = NamedKey { set: set.name.clone(), part, family: Family::of(address) };
                let seconds = |span: Duration| humantime::format_duration(Duration::from_secs(span.as_secs()));
                let (text, counts) = match book.standing(&key, address, now) {
                    Some(Standing::In(name, left)) => (format!("it is in by {name}, for {} yet", seconds(left)), true),
                    Some(Standing::Was(name, ago)) => {
                        (format!("it was in by {name} until {} ago", seconds(ago)), false)
                    }
                    None => continue,
                };
                told.push(NamedAddress { set: set.name.clone(), text, counts });
            }
        }
        told
    }

    /// What a denied packet from this VLAN just missed.
    pub(crate) fn near_miss(&self, config: &Config, vlan: &str, destination: IpAddr) -> Option<String> {
        let told = self.about(config, &vlan.parse().ok()?, destination);
        told.into_iter()
            .find(|named| !named.counts)
            .map(|NamedAddress { set, text, .. }| format!("egress set {set}: {text}"))
    }

    /// The same for `explain`, about a packet from this place.
    pub fn sentences(&self, config: &Config, from: &Place, destination: IpAddr) -> Vec<String> {
        let Place::Vlan(vlan) = from else { return Vec::new() };
        let told = self.about(config, vlan, destination);
        told.into_iter().map(|NamedAddress { set, text, .. }| format!("egress set {set}: {text}")).collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread.
pub fn start(
    config: watch::Receiver<Option<Arc<Config>>>,
    happenings: broadcast::Receiver<Arc<Happening>>,
    lineage: Lineage,
    state: &Path,
    resolver: Resolver,
) -> io::Result<()> {
    let named = Named::open(lineage)?;
    let file = state.join("dns.json");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
        let service = Service {
            resolver,
            kernel: Arc::new(Mutex::new(named)),
            listeners: Listeners::default(),
            terms: watch::Sender::new(None),
            warm: None,
            file,
            written: Vec::new(),
            unsure: 0,
        };
        runtime.block_on(service.run(config, happenings));
    })?;
    Ok(())
}

/// What a question is answered by. A question ends under the terms it began with.
struct Terms {
    config: Arc<Config>,
    zone: Zone,
    outside: Option<Servers>,
    inside: Vec<(DomainName, Servers)>,
    resolver: Resolver,
    kernel: Arc<Mutex<Named>>,
}

struct Service {
    resolver: Resolver,
    kernel: Arc<Mutex<Named>>,
    listeners: Listeners,
    terms: watch::Sender<Option<Arc<Terms>>>,
    warm: Option<tokio::task::AbortHandle>,
    file: PathBuf,
    /// As it stands on the disk.
    written: Vec<Kept>,
    /// Beats at which everything is put into the table again.
    unsure: u32,
}

/// An address on the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    set: EgressName,
    part: usize,
    address: IpAddr,
    name: DomainName,
    /// Seconds since 1970.
    until: u64,
}

impl Service {
    async fn run(
        mut self,
        mut config: watch::Receiver<Option<Arc<Config>>>,
        mut happenings: broadcast::Receiver<Arc<Happening>>,
    ) {
        let mut first = true;
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beats = 0_u32;
        loop {
            tokio::select! {
                changed = config.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let Some(now) = config.borrow_and_update().clone() else { continue };
                    self.take(now, std::mem::take(&mut first)).await;
                }
                happening = happenings.recv() => match happening {
                    Ok(happening) => self.happened(&happening.what),
                    Err(RecvError::Lagged(_)) => {
                        self.renew();
                        self.unsure = SOON;
                    }
                    Err(RecvError::Closed) => break,
                },
                _ = beat.tick(), if self.terms.borrow().is_some() => {
                    beats = beats.wrapping_add(1);
                    if self.unsure > 0 || beats.is_multiple_of(REASSERT) {
                        self.unsure = self.unsure.saturating_sub(1);
                        self.reassert().await;
                    }
                    if beats.is_multiple_of(SAVE) {
                        self.save();
                    }
                }
            }
        }
        self.save();
    }

    async fn take(&mut self, config: Arc<Config>, first: bool) {
        let Some(dns) = &config.dns else {
            self.listeners.keep(&BTreeMap::new(), &self.terms);
            self.terms.send_replace(None);
            *self.resolver.0.line.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.warm.take().inspect(tokio::task::AbortHandle::abort);
            return;
        };
        let now = Instant::now();
        let mut trouble = Vec::new();
        let gone = self.resolver.book().follow(&config, now);
        for (key, address) in gone {
            if let Err(error) = self.kernel().revoke(&key, address) {
                trouble.push(format!("{address} cannot be taken out of {}: {error}", key.set));
            }
        }
        if first {
            self.restore(&config, now);
        }
        self.reassert().await;
        let tls = match outside::tls::client(dns.ca.as_deref(), None) {
            Ok(tls) => Some(tls),
            Err(error) => {
                trouble.push(error);
                None
            }
        };
        let secure = dns.upstreams.iter().any(|upstream| upstream.tls.is_some());
        let mut servers = |servers: &[_], tls| match Servers::new(servers, tls, dns.cache) {
            Ok(servers) => Some(servers),
            Err(error) => {
                trouble.push(format!("resolvers cannot be asked: {error}"));
                None
            }
        };
        let beyond = if secure && tls.is_none() { None } else { servers(&dns.upstreams, tls) };
        let plain = |all: &[SocketAddr]| -> Vec<_> {
            all.iter().map(|address| config::model::Upstream { address: *address, tls: None }).collect()
        };
        let inside = dns.forward.iter();
        let inside = inside.filter_map(|(zone, all)| Some((zone.clone(), servers(&plain(all), None)?))).collect();
        let terms = Arc::new(Terms {
            zone: Zone::new(&config),
            outside: beyond,
            inside,
            resolver: self.resolver.clone(),
            kernel: Arc::clone(&self.kernel),
            config: Arc::clone(&config),
        });
        let mut wanted = BTreeMap::new();
        // The router of a pair that stands by has none of these addresses.
        let stands_by = config.pair.as_ref().is_some_and(|pair| !pair.is_active());
        for vlan in config.dns_served().filter(|_| !stands_by) {
            for net in &vlan.addresses {
                wanted.insert(SocketAddr::new(net.addr(), PORT), vlan.name.clone());
            }
        }
        self.terms.send_replace(Some(Arc::clone(&terms)));
        trouble.extend(self.listeners.keep(&wanted, &self.terms));
        let named = |upstream: &config::model::Upstream| match &upstream.tls {
            Some(name) => format!("{} over TLS as {name}", upstream.address),
            None => upstream.address.to_string(),
        };
        let line = DnsLine {
            listen: wanted.keys().map(SocketAddr::to_string).collect(),
            upstreams: dns.upstreams.iter().map(named).collect(),
            hosts: terms.zone.names(),
            trouble: (!trouble.is_empty()).then(|| trouble.join("; ")),
            ..DnsLine::default()
        };
        for problem in &trouble {
            warn!(problem, "the resolver is not as the file has it");
        }
        info!(addresses = line.listen.len(), hosts = line.hosts, "answering for names");
        *self.resolver.0.line.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
        self.warm.take().inspect(tokio::task::AbortHandle::abort);
        self.warm = Some(tokio::spawn(warm(terms)).abort_handle());
    }

    fn kernel(&self) -> MutexGuard<'_, Named> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn happened(&mut self, what: &What) {
        // Who deletes a table deletes what is in it; it is put right a moment later.
        if let What::Drift { .. } = what {
            self.unsure = SOON;
        }
        if let What::Health { to, .. } = what
            && matches!(to, mwan::event::Health::Down | mwan::event::Health::NoCarrier)
        {
            self.renew();
        }
    }

    fn renew(&self) {
        if let Some(outside) = self.terms.borrow().as_ref().and_then(|terms| terms.outside.as_ref()) {
            outside.renew();
        }
    }

    /// Everything that counts, once more: a table that somebody deleted has lost it.
    async fn reassert(&self) {
        let all = self.resolver.book().all(Instant::now());
        for some in all.chunks(AT_ONCE) {
            if let Err(error) = self.kernel().grant(some) {
                debug!(%error, "what names stand for cannot be put into the table again");
            }
            tokio::task::yield_now().await;
        }
    }

    /// What names stood for when this ended. It counts for a while, however old it is: whoever asked then may use it yet.
    fn restore(&mut self, config: &Config, now: Instant) {
        let read = match std::fs::read(&self.file) {
            Ok(bytes) => serde_json::from_slice::<Vec<Kept>>(&bytes).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => Err(error),
        };
        let kept = match read {
            Ok(kept) => kept,
            Err(error) => {
                warn!(%error, file = %self.file.display(), "what names stood for cannot be read; it is learnt anew");
                return;
            }
        };
        let wall = wall();
        let mut book = self.resolver.book();
        for Kept { set, part, address, name, until } in kept {
            let named = config.egress.get(&set).and_then(|set| set.named.get(part));
            let fits = named.is_some_and(|named| named.names.iter().any(|pattern| pattern.matches(&name)));
            let young = until.saturating_add(OLDEST) > wall;
            if fits && young && is_outside(config, address) {
                let left = Duration::from_secs(until.saturating_sub(wall)).clamp(LAST_GOOD, LONGEST_TTL * 2);
                let key = NamedKey { set, part, family: Family::of(address) };
                book.granted(&[Grant { key, address, span: left }], &name, now);
            }
        }
    }

    /// Written beside and moved into place.
    fn save(&mut self) {
        let wall = wall();
        let kept = self.resolver.book().kept(Instant::now());
        let kept: Vec<_> = kept
            .into_iter()
            .map(|(set, part, address, name, left)| Kept { set, part, address, name, until: wall + left.as_secs() })
            .collect();
        let alike = |a: &Kept, b: &Kept| {
            (&a.set, a.part, a.address) == (&b.set, b.part, b.address) && a.until.abs_diff(b.until) < ALIKE
        };
        if kept.len() == self.written.len() && kept.iter().zip(&self.written).all(|(a, b)| alike(a, b)) {
            return;
        }
        let draft = self.file.with_extension("draft");
        let written = serde_json::to_vec(&kept).map_err(io::Error::other);
        let written =
            written.and_then(|bytes| std::fs::write(&draft, bytes)).and_then(|()| std::fs::rename(&draft, &self.file));
        match written {
            Ok(()) => self.written = kept,
            Err(error) => warn!(%error, file = %self.file.display(), "what names stand for cannot be kept"),
        }
    }
}

/// Exact names are asked for before anybody does, by each line in turn, and again when an answer ends.
async fn warm(terms: Arc<Terms>) {
    let sets = terms.config.egress.values().flat_map(|set| {
        set.named.iter().enumerate().flat_map(move |(part, named)| {
            let exact = named.names.iter().filter_map(|pattern| pattern.exact().cloned());
            exact.map(move |name| (name, (set.name.clone(), part)))
        })
    });
    let mut names: BTreeMap<DomainName, BTreeSet<(EgressName, usize)>> = BTreeMap::new();
    for (name, set) in sets {
        names.entry(name).or_default().insert(set);
    }
    let (Some(outside), false) = (&terms.outside, names.is_empty()) else { return };
    let mut due: BTreeMap<&DomainName, Instant> = names.keys().map(|name| (name, Instant::now())).collect();
    let mut turn = 0_usize;
    loop {
        let lines: Vec<_> = terms.config.wans.values().map(|wan| wan.id.mark()).collect();
        let all: Vec<_> = due.iter().filter(|(_, at)| **at <= Instant::now()).map(|(name, _)| *name).collect();
        for name in all {
            let mut again = WARM_AT_MOST;
            for kind in [RecordType::A, RecordType::AAAA] {
                let Some(asked) = zone::absolute(name) else { continue };
                let query = Query::query(asked, kind);
                // Who is asked by another line may be told other addresses.
                turn = turn.wrapping_add(1);
                let line = lines.get(turn.checked_rem(lines.len()).unwrap_or(0));
                let told = match line {
                    Some(mark) => match outside.ask_by(&query, *mark).await {
                        Ok(told) => Ok(told),
                        Err(_) => outside.ask(&query).await,
                    },
                    None => outside.ask(&query).await,
                };
                let Ok(mut told) = told else {
                    again = WARM_AT_LEAST;
                    continue;
                };
                terms.leave_out_inside(name, &mut told);
                let (addresses, ttl) = addresses(&told.answers);
                if !addresses.is_empty() {
                    again = again.min(ttl);
                }
                let keys: Vec<_> = names
                    .get(name)
                    .into_iter()
                    .flatten()
                    .flat_map(|(set, part)| {
                        Family::ALL.map(|family| NamedKey { set: set.clone(), part: *part, family })
                    })
                    .collect();
                if let Err(error) = terms.admit(&keys, name, &addresses, ttl).await {
                    debug!(%name, %error, "a name cannot be made to count");
                }
            }
            due.insert(name, Instant::now() + again.max(WARM_AT_LEAST));
        }
        let next = due.values().min().copied().unwrap_or_else(|| Instant::now() + WARM_AT_MOST);
        tokio::time::sleep_until(next.max(Instant::now() + Duration::from_secs(1)).into()).await;
    }
}

impl Terms {
    /// The answer to one question of a host in this VLAN.
    async fn answer(&self, vlan: &VlanName, asked: &Message) -> Message {
        let Tally { questions, own, failed, .. } = &self.resolver.0.tally;
        questions.fetch_add(1, Ordering::Relaxed);
        let mut told = Message::response(asked.metadata.id, asked.metadata.op_code);
        told.metadata.recursion_desired = asked.metadata.recursion_desired;
        told.metadata.recursion_available = true;
        told.queries.clone_from(&asked.queries);
        let code = |mut told: Message, code| {
            told.metadata.response_code = code;
            told
        };
        if asked.metadata.op_code != OpCode::Query {
            return code(told, ResponseCode::NotImp);
        }
        let [query] = asked.queries.as_slice() else { return code(told, ResponseCode::FormErr) };
        if query.query_class() != DNSClass::IN {
            return code(told, ResponseCode::Refused);
        }
        // Whole zones are given to nobody.
        if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return code(told, ResponseCode::Refused);
        }
        let Some(name) = plain(query.name()) else {
            // What is no name of a host can be asked about all the same, and opens nothing.
            return self.relay(told, vlan, None, query).await;
        };
        if let Some(ours) = self.zone.answer(vlan, &name, query.query_type()) {
            own.fetch_add(1, Ordering::Relaxed);
            told.metadata.authoritative = true;
            told.metadata.response_code = ours.code;
            told.answers = ours.answers;
            told.authorities.extend(ours.authority);
            return told;
        }
        let told = self.relay(told, vlan, Some(&name), query).await;
        if told.metadata.response_code == ResponseCode::ServFail {
            failed.fetch_add(1, Ordering::Relaxed);
        }
        told
    }

    async fn relay(&self, mut told: Message, vlan: &VlanName, name: Option<&DomainName>, query: &Query) -> Message {
        let inside = name.and_then(|name| {
            let zones = self.inside.iter().filter(|(zone, _)| name.is_within(zone));
            zones.max_by_key(|(zone, _)| zone.as_str().len())
        });
        let servers = inside.map(|(_, servers)| servers).or(self.outside.as_ref());
        let answer = match servers {
            Some(servers) => servers.ask(query).await,
            None => Err("there is nobody to ask".to_owned()),
        };
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                debug!(name = %query.name(), error, "a name cannot be looked up");
                told.metadata.response_code = ResponseCode::ServFail;
                return told;
            }
        };
        if answer.stale {
            self.resolver.0.tally.stale.fetch_add(1, Ordering::Relaxed);
        }
        if let (Some(name), None) = (name, inside) {
            self.leave_out_inside(name, &mut answer);
            let keys = book::keys(&self.config, vlan, name);
            if !keys.is_empty() {
                // What a client remembers must not outlive what it may use.
                let longest = u32::try_from(LONGEST_TTL.as_secs()).unwrap_or(u32::MAX);
                answer.answers.iter_mut().for_each(|record| record.ttl = record.ttl.min(longest));
                let (addresses, ttl) = addresses(&answer.answers);
                if let Err(error) = self.admit(&keys, name, &addresses, ttl).await {
                    warn!(%name, %error, "an answer is held back: the table does not take its addresses");
                    told.metadata.response_code = ResponseCode::ServFail;
                    return told;
                }
            }
        }
        told.metadata.response_code = answer.code;
        told.answers = answer.answers;
        told.authorities = answer.authorities;
        told
    }

    /// An answer from outside that names the inside turns a browser against it.
    fn leave_out_inside(&self, name: &DomainName, answer: &mut Answer) {
        let allowed =
            self.config.dns.as_ref().is_some_and(|dns| dns.private.iter().any(|pattern| pattern.matches(name)));
        if allowed {
            return;
        }
        let before = answer.answers.len();
        answer
            .answers
            .retain(|record| record_addresses(record).iter().all(|address| !is_private(&self.config, *address)));
        let left_out = before - answer.answers.len();
        if left_out > 0 {
            info!(%name, left_out, "an answer from outside had addresses of the inside");
            self.resolver.0.tally.rebound.fetch_add(left_out as u64, Ordering::Relaxed);
        }
    }

    /// Puts addresses into the table; when this is over they are there.
    async fn admit(&self, keys: &[NamedKey], name: &DomainName, addresses: &[IpAddr], ttl: Duration) -> io::Result<()> {
        let outside: Vec<_> = addresses.iter().copied().filter(|address| is_outside(&self.config, *address)).collect();
        for tries in 0.. {
            let now = Instant::now();
            let grants = {
                let book = self.resolver.book();
                let grants = book.wanting(keys, &outside, ttl, now);
                if keys.iter().any(|key| book.room(key, now) < grants.len()) {
                    return Err(io::Error::other("the set of the table is full"));
                }
                grants
            };
            if grants.is_empty() {
                return Ok(());
            }
            let done = self.kernel.lock().unwrap_or_else(PoisonError::into_inner).grant(&grants);
            match done {
                Ok(()) => {
                    self.resolver.book().granted(&grants, name, now);
                    self.resolver.0.tally.granted.fetch_add(grants.len() as u64, Ordering::Relaxed);
                    return Ok(());
                }
                // A table that is being replaced, or not there yet.
                Err(_) if tries < GRANT_TRIES => tokio::time::sleep(GRANT_AGAIN).await,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What a message asks as a name of the site file would have it.
fn plain(name: &Name) -> Option<DomainName> {
    name.to_ascii().parse().ok()
}

/// All addresses of an answer, whatever name of its chain they stand at, and the longest life of any.
fn addresses(answers: &[Record]) -> (Vec<IpAddr>, Duration) {
    let mut all = BTreeSet::new();
    let mut ttl = 0;
    for record in answers {
        let told = record_addresses(record);
        if !told.is_empty() {
            ttl = ttl.max(record.ttl);
        }
        all.extend(told);
    }
    (all.into_iter().take(MOST).collect(), Duration::from_secs(ttl.into()))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the records of others have no addresses to connect to")]
fn record_addresses(record: &Record) -> Vec<IpAddr> {
    match &record.data {
        RData::A(address) => vec![address.0.into()],
        RData::AAAA(address) => vec![address.0.into()],
        RData::HTTPS(https) => hints(&https.0),
        RData::SVCB(svcb) => hints(svcb),
        _ => Vec::new(),
    }
}

/// RFC 9460, 7.3: clients may use these without asking for addresses.
#[expect(clippy::wildcard_enum_match_arm, reason = "other parameters hold no addresses")]
fn hints(svcb: &SVCB) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for (_, value) in &svcb.svc_params {
        match value {
            SvcParamValue::Ipv4Hint(hint) => all.extend(hint.0.iter().map(|address| IpAddr::V4(address.0))),
            SvcParamValue::Ipv6Hint(hint) => all.extend(hint.0.iter().map(|address| IpAddr::V6(address.0))),
            _ => {}
        }
    }
    all
}

/// Only what is beyond the lines can be a way out.
fn is_outside(config: &Config, address: IpAddr) -> bool {
    matches!(Place::of(config, address), Place::Internet) && !is_private(config, address)
}

/// Of the inside, or of nobody's.
fn is_private(config: &Config, address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(address) => {
            address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_broadcast()
                || address.is_multicast()
        }
        IpAddr::V6(address) => {
            let mapped = address.to_ipv4_mapped().is_some_and(|address| is_private(config, address.into()));
            mapped
                || address.is_unique_local()
                || address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_unspecified()
                || address.is_multicast()
        }
    };
    special || config.vlan_of(address).is_some()
}

fn wall() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

const PORT: u16 = 53;
const BEAT: Duration = Duration::from_secs(1);
/// In beats.
const SAVE: u32 = 5;
const REASSERT: u32 = 30;
const SOON: u32 = 4;
/// Of one answer.
const MOST: usize = 512;
/// Elements in one message to the kernel.
const AT_ONCE: usize = 256;
/// What is written down need not be more exact than that, in seconds: a start gives more.
const ALIKE: u64 = 240;
const LONGEST_TTL: Duration = Duration::from_hours(1);
/// What a start finds on the disk counts for as long at least.
const LAST_GOOD: Duration = Duration::from_mins(10);
/// And not at all when it ended so long ago, in seconds.
const OLDEST: u64 = 7 * 86_400;
const WARM_AT_LEAST: Duration = Duration::from_secs(30);
const WARM_AT_MOST: Duration = Duration::from_mins(15);
const GRANT_TRIES: u32 = 10;
const GRANT_AGAIN: Duration = Duration::from_millis(50);
