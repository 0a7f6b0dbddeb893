//! What the firewall refused, told to a person: names of hosts and segments, the cell and the line of the site
//! file that would have to change. The nflog reader hands packets in; the API reads the recent ones and follows
//! new ones. Logs are a sample (the ruleset limits them per cell); the counters are exact.

pub mod packet;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use config::Config;
use config::units::{IfName, Line};
use ebpf::abi;
use mwan::decide::Decision;
use mwan::explain::{Explanation, Question, explain};
use mwan::matrix::Zone;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, watch};

use self::packet::{Headers, Transport};
use crate::audits::Audits;
use crate::kernel::fast_path::{Watcher, readable};
use crate::service::dns::Resolver;
use crate::status::zone_behind;

/// One message of our nflog group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// `qw forward`, `qw input`, `qw spoof`, `qw invalid`, `qw audit`, `qw allow LINE`.
    pub prefix: String,
    pub in_interface: Option<IfName>,
    pub out_interface: Option<IfName>,
    /// From the IP header on; possibly cut.
    pub payload: Vec<u8>,
}

/// Why a packet was logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// On its way through the router; no cell allows it.
    Forward,
    /// To the router itself.
    Input,
    /// The source address does not belong behind the interface.
    Spoof,
    /// Conntrack cannot place it.
    Invalid,
    /// Its source opens connections faster than the file allows.
    Rate,
    /// Allowed, by a cell that asks to log.
    Allow,
    /// No cell allows it, and it passed for an audit.
    Audit,
}

/// One logged packet with names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// RFC 3339, UTC.
    pub time: String,
    pub kind: Kind,
    pub from: End,
    pub to: End,
    pub transport: Transport,
    /// `tcp/22`, `ping`, `protocol 89`.
    pub service: String,
    /// `dev->compute`: the pair of zones whose rule decided.
    pub cell: String,
    /// In the words of `explain`.
    pub reason: String,
    /// Where the site file says so; absent where nothing is written and the default denies.
    pub line: Option<u32>,
    /// The least to write into the site file to allow it.
    #[serde(default)]
    pub advice: Option<String>,
    /// Dropped at the port it came in by: no rule has seen it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_port: bool,
}

/// One end of a logged packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// A VLAN or WAN by name, `router` or `internet`.
    pub zone: String,
    pub host: Option<String>,
    pub address: IpAddr,
}

/// Equal denials together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub count: u64,
    /// The time of the first of them that is still remembered.
    pub since: String,
    /// The last of them.
    pub last: Denied,
}

/// The recent denials. Clones share them.
#[derive(Debug, Clone)]
pub struct EventLog {
    recent: Arc<Mutex<VecDeque<Arc<Denied>>>>,
    followers: broadcast::Sender<Arc<Denied>>,
    /// What passed that is denied.
    pub audits: Audits,
    /// What names stand for: a denial may be of what one stood for a moment ago.
    pub resolver: Resolver,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            recent: Arc::default(),
            followers: broadcast::Sender::new(FOLLOWER_BACKLOG),
            audits: Audits::default(),
            resolver: Resolver::default(),
        }
    }
}

impl EventLog {
    /// Remembers it and tells those who follow.
    pub fn push(&self, denied: Denied) {
        self.audits.note(&denied);
        let denied = Arc::new(denied);
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if recent.len() == RECENT {
                recent.pop_front();
            }
            recent.push_back(Arc::clone(&denied));
        }
        // Nobody following is no failure.
        drop(self.followers.send(denied));
    }

    /// Everything remembered, grouped; the group that was seen last comes last.
    pub fn groups(&self) -> Vec<Group> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut groups = BTreeMap::<_, (usize, Group)>::new();
        for (place, denied) in recent.iter().enumerate() {
            let key = (denied.kind, &denied.cell, denied.from.address, denied.to.address, &denied.service);
            groups
                .entry(key)
                .and_modify(|(last, group)| {
                    *last = place;
                    group.count += 1;
                    group.last = Denied::clone(denied);
                })
                .or_insert_with(|| {
                    (place, Group { count: 1, since: denied.time.clone(), last: Denied::clone(denied) })
                });
        }
        let mut groups = groups.into_values().collect::<Vec<_>>();
        groups.sort_by_key(|(last, _)| *last);
        groups.into_iter().map(|(_, group)| group).collect()
    }

    #[cfg(test)]
    pub(crate) fn followers(&self) -> usize {
        self.followers.receiver_count()
    }

    /// Each denial from here on. A follower that falls too far behind misses some and learns how many.
    pub fn follow(&self) -> broadcast::Receiver<Arc<Denied>> {
        self.followers.subscribe()
    }
}

/// Names each logged packet and hands it to `log`, until the sender of packets is gone. Owns nothing that would be
/// lost by cancelling it.
pub async fn run(mut packets: mpsc::Receiver<Logged>, config: watch::Receiver<Option<Arc<Config>>>, log: EventLog) {
    let mut own = OwnLog::default();
    while let Some(logged) = packets.recv().await {
        let Some(config) = config.borrow().clone() else { continue };
        let Some(mut denied) = name(&config, &logged, SystemTime::now()) else {
            tracing::debug!(prefix = logged.prefix, "a logged packet cannot be told");
            continue;
        };
        let missed = || log.resolver.near_miss(&config, &denied.from.zone, denied.to.address);
        if let Some(missed) = Some(denied.kind).filter(|kind| *kind == Kind::Forward).and_then(|_| missed()) {
            denied.reason = format!("{}; {missed}", denied.reason);
        }
        own.write(&denied, SystemTime::now());
        log.push(denied);
    }
}

/// What is dropped at the ports, told like the rest. Until cancelled; it owns nothing that would be lost.
pub async fn run_early(path: Watcher, config: watch::Receiver<Option<Arc<Config>>>, log: EventLog) {
    path.follow(|pins| tell_early(pins, path.clone(), config.clone(), log.clone())).await;
}

async fn tell_early(pins: PathBuf, path: Watcher, config: watch::Receiver<Option<Arc<Config>>>, log: EventLog) {
    let opened = ebpf::Records::<abi::Denied>::open(&pins).map_err(io::Error::other).and_then(readable);
    let mut records = match opened {
        Ok(records) => records,
        Err(error) => {
            tracing::warn!(%error, "drops at the ports are counted and not told");
            return std::future::pending().await;
        }
    };
    let mut own = OwnLog::default();
    loop {
        let Ok(mut ready) = records.readable_mut().await else { return };
        while let Some(record) = ready.get_inner_mut().next() {
            let (now, config) = (SystemTime::now(), config.borrow().clone());
            let port = path.port(record.port);
            if let Some(denied) = config.and_then(|config| name_early(&config, &record, port, now)) {
                own.write(&denied, now);
                log.push(denied);
            }
        }
        ready.clear_ready();
        // A flood must not keep others waiting; the ring drops what is too much.
        tokio::task::yield_now().await;
    }
}

/// A logged packet with its names, or `None` where it is not ours or not IP.
pub fn name(config: &Config, logged: &Logged, at: SystemTime) -> Option<Denied> {
    let (kind, allowed_by) = kind(&logged.prefix)?;
    let headers = packet::parse(&logged.payload)?;
    Some(told(config, logged, kind, allowed_by, &headers, at))
}

/// A packet that was dropped at its port, with its names. `port` is where it came in.
pub fn name_early(config: &Config, record: &abi::Denied, port: Option<IfName>, at: SystemTime) -> Option<Denied> {
    let verdict = abi::Verdict::ALL.into_iter().find(|verdict| *verdict as u32 == record.verdict)?;
    let kind = match verdict {
        abi::Verdict::DeniedPair => Kind::Forward,
        abi::Verdict::Spoofed | abi::Verdict::Bogon => Kind::Spoof,
        abi::Verdict::TooManyNew => Kind::Rate,
        abi::Verdict::Forwarded
        | abi::Verdict::NotIp
        | abi::Verdict::Malformed
        | abi::Verdict::Fragment
        | abi::Verdict::IpOptions
        | abi::Verdict::OtherProtocol
        | abi::Verdict::TcpControl
        | abi::Verdict::TtlExpires
        | abi::Verdict::TooLong
        | abi::Verdict::NoFlow
        | abi::Verdict::StaleFlow
        | abi::Verdict::WrongPort
        | abi::Verdict::OddTag
        | abi::Verdict::Bridged => return None,
    };
    let zones = mwan::compile::zones(config);
    let vlan = |id: u16| {
        let (name, _) = zones.iter().find(|(_, zone)| zone.0 == id)?;
        Some(config.vlans.get(*name)?.interface.clone())
    };
    let address = |bytes: [u8; 16]| match record.family {
        4 => <[u8; 4]>::try_from(bytes.get(..4)?).ok().map(IpAddr::from),
        6 => Some(IpAddr::from(bytes)),
        _ => None,
    };
    let (source, destination) = (u16::from_be_bytes(record.source_port), u16::from_be_bytes(record.destination_port));
    let headers = Headers {
        source: address(record.source)?,
        destination: address(record.destination)?,
        transport: match record.protocol {
            6 => Transport::Tcp { source, destination },
            17 => Transport::Udp { source, destination },
            protocol => Transport::Other { protocol },
        },
    };
    let logged = Logged {
        prefix: String::new(),
        in_interface: vlan(record.from).or(port),
        out_interface: vlan(record.to).filter(|_| record.from != record.to),
        payload: Vec::new(),
    };
    Some(Denied { at_port: true, ..told(config, &logged, kind, None, &headers, at) })
}

fn told(
    config: &Config,
    logged: &Logged,
    kind: Kind,
    allowed_by: Option<Line>,
    headers: &Headers,
    at: SystemTime,
) -> Denied {
    let from = End {
        zone: zone(config, logged.in_interface.as_ref(), headers.source, "router"),
        host: host(config, headers.source),
        address: headers.source,
    };
    let to_zone = match kind {
        Kind::Input => "router".to_owned(),
        Kind::Forward | Kind::Spoof | Kind::Invalid | Kind::Rate | Kind::Allow | Kind::Audit => {
            zone(config, logged.out_interface.as_ref(), headers.destination, "internet")
        }
    };
    let to = End { zone: to_zone, host: host(config, headers.destination), address: headers.destination };
    let service = headers.transport.service();
    let mut advice = None;
    let (reason, line) = match kind {
        Kind::Forward | Kind::Input | Kind::Spoof => {
            let Explanation { allowed, because, verdict, advice: to_allow, .. } = refused(config, logged, headers);
            if allowed {
                // An apply lies between the packet and us.
                (format!("denied a moment ago; the file in force allows it: {because}"), None)
            } else {
                advice = to_allow;
                (because, verdict.reason.line(config))
            }
        }
        Kind::Rate => ("opens too many connections at once".to_owned(), None),
        Kind::Invalid => ("belongs to no connection the router knows".to_owned(), None),
        Kind::Audit => ("no entry allows it, and an audit let it pass".to_owned(), None),
        Kind::Allow => {
            let line = allowed_by.filter(|line| *line != Line::BUILT_IN);
            let told = line.map(|line| format!(" ({line})")).unwrap_or_default();
            (format!("allowed, and the cell asks to log{told}"), line)
        }
    };
    Denied {
        time: humantime::format_rfc3339_millis(at).to_string(),
        kind,
        cell: format!("{}->{}", from.zone, to.zone),
        from,
        to,
        transport: headers.transport,
        service,
        reason,
        line: line.map(|line| line.0),
        advice,
        at_port: false,
    }
}

fn kind(prefix: &str) -> Option<(Kind, Option<Line>)> {
    let mut words = prefix.split_whitespace();
    if words.next() != Some("qw") {
        return None;
    }
    match words.next()? {
        "forward" => Some((Kind::Forward, None)),
        "input" => Some((Kind::Input, None)),
        "spoof" => Some((Kind::Spoof, None)),
        "invalid" => Some((Kind::Invalid, None)),
        "audit" => Some((Kind::Audit, None)),
        "allow" => Some((Kind::Allow, words.next().and_then(|line| line.parse().ok()).map(Line))),
        _ => None,
    }
}

/// The interface tells the zone; without one, the address does.
fn zone(config: &Config, interface: Option<&IfName>, address: IpAddr, own: &str) -> String {
    let by_interface = interface.map(|interface| zone_behind(config, interface));
    by_interface.unwrap_or_else(|| {
        if is_router(config, address) {
            return "router".to_owned();
        }
        config.vlan_of(address).map_or_else(|| own.to_owned(), |vlan| vlan.name.to_string())
    })
}

fn host(config: &Config, address: IpAddr) -> Option<String> {
    if is_router(config, address) {
        return Some("router".to_owned());
    }
    config.host_at(address).map(|host| host.name.to_string())
}

fn is_router(config: &Config, address: IpAddr) -> bool {
    let vlans = config.vlans.values().flat_map(|vlan| &vlan.addresses);
    let wans = config.wans.values().flat_map(|wan| &wan.addressing.addresses);
    vlans.chain(wans).any(|own| own.addr() == address)
}

/// Why the matrix refuses it, by the function that answers `explain`.
fn refused(config: &Config, logged: &Logged, headers: &Headers) -> Explanation {
    let from = logged.in_interface.as_ref().and_then(|interface| {
        let vlan = config.vlans.values().find(|vlan| vlan.interface == *interface);
        let wan = || config.wans.values().find(|wan| wan.interface == *interface);
        vlan.map(|vlan| Zone::Vlan(vlan.name.clone())).or_else(|| Some(Zone::Wan(wan()?.name.clone())))
    });
    let protocol = headers.transport.protocol();
    let question = Question { source: headers.source, destination: headers.destination, protocol, from };
    explain(config, &Decision::default(), &question)
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => f.write_str(host),
            None => write!(f, "{}", self.address),
        }
    }
}

impl fmt::Display for Denied {
    /// `dev/dev1 -> compute/worker3 tcp/22: cell dev -> compute: default deny, no entry for this pair`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} -> {}/{} {}: {}", self.from.zone, self.from, self.to.zone, self.to, self.service, self.reason)
    }
}

/// The daemon's own log of denials: at most [`OWN_LINES`] per second, and a count of what was left out.
#[derive(Debug, Default)]
struct OwnLog {
    second: Duration,
    written: u32,
    left_out: u64,
}

impl OwnLog {
    fn write(&mut self, denied: &Denied, at: SystemTime) {
        if !self.admits(at) {
            return;
        }
        let left_out = std::mem::take(&mut self.left_out);
        let Denied { kind, cell, service, line, reason, .. } = denied;
        let (from, to) = (&denied.from, &denied.to);
        tracing::info!(target: "denied", ?kind, cell, %from, %to, service, line, reason, left_out);
    }

    fn admits(&mut self, at: SystemTime) -> bool {
        let second = Duration::from_secs(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs());
        if second != self.second {
            self.second = second;
            self.written = 0;
        }
        let admitted = self.written < OWN_LINES;
        if admitted {
            self.written += 1;
        } else {
            self.left_out += 1;
        }
        admitted
    }
}

/// How many denials are remembered.
const RECENT: usize = 4096;
/// How far a follower may fall behind.
const FOLLOWER_BACKLOG: usize = 256;
/// Lines per second in the daemon's own log.
const OWN_LINES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_denied_packet_is_told_by_names() {
        let denied = named("qw forward", Some("vlan50"), Some("vlan60"), packet::tests::ipv4(6, &[4, 0, 0, 22]));
        let reason = "cell dev -> compute: default deny, no entry for this pair";
        assert_eq!(denied.to_string(), format!("dev/dev1 -> compute/worker3 tcp/22: {reason}"));
        let question = Question::read(&fixture::config(), "dev1", "worker3", "tcp/22", None).unwrap();
        let explained = explain(&fixture::config(), &Decision::default(), &question);
        assert_eq!((Some(reason.to_owned()), denied.advice.clone()), (Some(explained.because), explained.advice));
        assert!(denied.advice.as_ref().is_some_and(|advice| advice.starts_with("[[cell]]")));
        assert_eq!(denied.time, "1970-01-01T00:16:40.000Z");
        assert_eq!(denied.cell, "dev->compute");
        assert_eq!(denied.line, None);
    }

    #[test]
    fn the_reason_names_the_line_that_would_have_to_change() {
        let cases = [
            ("qw forward", "vlan60", Some("vlan50"), "default deny, none of its entries fits (line 40)", Some(40)),
            ("qw forward", "vlan50", Some("wan1"), "dev -> Internet: default deny (line 12)", Some(12)),
            ("qw forward", "vlan60", Some("wan1"), "compute -> Internet: default deny (line 22)", Some(22)),
            ("qw forward", "wan1", Some("vlan60"), "nothing is forwarded in from wan1", None),
            ("qw input", "vlan50", None, "input of dev: default deny (line 13)", Some(13)),
            ("qw input", "wan1", None, "input of wan1: default deny (line 50)", Some(50)),
            ("qw spoof", "vlan60", None, "the source address is not at home in compute: spoofed", Some(20)),
            ("qw invalid", "vlan50", Some("vlan60"), "belongs to no connection the router knows", None),
            ("qw allow 40", "vlan60", Some("vlan50"), "allowed, and the cell asks to log (line 40)", Some(40)),
        ];
        // 10.10.50.7 to 10.10.60.3, unless the packet goes elsewhere.
        for (prefix, from, to, end, line) in cases {
            let (source, destination) = match (prefix, from, to) {
                (_, "wan1", None) => ([192, 0, 2, 1], [100, 64, 1, 2]),
                (_, "wan1", _) => ([192, 0, 2, 1], [10, 10, 60, 3]),
                (_, "vlan50", None) => ([10, 10, 50, 7], [10, 10, 50, 1]),
                (_, "vlan50", Some("wan1")) => ([10, 10, 50, 7], [192, 0, 2, 1]),
                (_, "vlan60", Some("wan1")) => ([10, 10, 60, 3], [192, 0, 2, 1]),
                ("qw forward" | "qw allow 40", "vlan60", _) => ([10, 10, 60, 3], [10, 10, 50, 7]),
                _ => ([10, 10, 50, 7], [10, 10, 60, 3]),
            };
            let denied = named(prefix, Some(from), to, between(source, destination));
            assert!(denied.to_string().ends_with(end), "{denied} should end with {end}");
            assert_eq!(denied.line, line, "{denied}");
        }
    }

    #[test]
    fn what_was_dropped_at_its_port_is_told_like_the_rest() {
        // Zones by the order of names: compute, dev.
        let ip = |last: [u8; 4]| std::array::from_fn(|n| last.get(n).copied().unwrap_or(0));
        let record = |verdict: abi::Verdict, from, to, source, destination| abi::Denied {
            at: 0,
            port: 3,
            verdict: verdict as u32,
            source: ip(source),
            destination: ip(destination),
            source_port: [4, 0],
            destination_port: [0, 22],
            vlan: 0,
            from,
            to,
            length: 60,
            protocol: 6,
            family: 4,
            _0: [0; 2],
        };
        let (dev, compute, far) = ([10, 10, 50, 7], [10, 10, 60, 3], [192, 0, 2, 1]);
        for (record, told) in [
            (
                record(abi::Verdict::DeniedPair, 2, 1, dev, compute),
                "dev/dev1 -> compute/worker3 tcp/22: cell dev -> compute: default deny, no entry for this pair",
            ),
            (
                record(abi::Verdict::DeniedPair, 2, 0, dev, far),
                "dev/dev1 -> internet/192.0.2.1 tcp/22: dev -> Internet: default deny (line 12)",
            ),
            (
                record(abi::Verdict::Spoofed, 2, 2, compute, far),
                "dev/worker3 -> internet/192.0.2.1 tcp/22: the source address is not at home in dev: spoofed",
            ),
            (
                record(abi::Verdict::Bogon, 0, 0, far, dev),
                "wan1/192.0.2.1 -> dev/dev1 tcp/22: nothing is forwarded in from wan1",
            ),
            (
                record(abi::Verdict::TooManyNew, 0, 2, far, dev),
                "wan1/192.0.2.1 -> dev/dev1 tcp/22: opens too many connections at once",
            ),
        ] {
            let port = "wan1".parse().ok();
            let denied = name_early(&fixture::config(), &record, port, SystemTime::UNIX_EPOCH).unwrap();
            assert_eq!(denied.to_string(), told);
        }
        let passed = record(abi::Verdict::NoFlow, 2, 1, dev, compute);
        assert_eq!(name_early(&fixture::config(), &passed, None, SystemTime::UNIX_EPOCH), None);
    }

    #[test]
    fn what_is_not_ours_or_not_ip_is_passed_over() {
        for (prefix, payload) in [("other", packet::tests::ipv4(6, &[])), ("qw forward", vec![1, 2, 3])] {
            let logged = Logged { prefix: prefix.into(), in_interface: None, out_interface: None, payload };
            assert_eq!(name(&fixture::config(), &logged, SystemTime::UNIX_EPOCH), None);
        }
    }

    #[test]
    fn equal_denials_are_counted_together_and_the_latest_comes_last() {
        let log = EventLog::default();
        let ssh = named("qw forward", Some("vlan50"), Some("vlan60"), packet::tests::ipv4(6, &[4, 0, 0, 22]));
        let dns = named("qw forward", Some("vlan50"), Some("vlan60"), packet::tests::ipv4(17, &[4, 0, 0, 53]));
        for denied in [&ssh, &dns, &ssh] {
            log.push(denied.clone());
        }
        let groups = log.groups();
        let told = groups.iter().map(|group| (group.last.service.as_str(), group.count)).collect::<Vec<_>>();
        assert_eq!(told, [("udp/53", 1), ("tcp/22", 2)]);
    }

    #[test]
    fn the_memory_is_bounded() {
        let log = EventLog::default();
        let denied = named("qw forward", Some("vlan50"), Some("vlan60"), packet::tests::ipv4(6, &[4, 0, 0, 22]));
        for _ in 0..RECENT + 10 {
            log.push(denied.clone());
        }
        assert_eq!(log.groups()[0].count, RECENT as u64);
    }

    #[test]
    fn the_own_log_is_limited_per_second() {
        let mut own = OwnLog::default();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
        let admitted = (0..OWN_LINES * 3).filter(|_| own.admits(at)).count();
        assert_eq!(admitted, OWN_LINES as usize);
        assert_eq!(own.left_out, u64::from(OWN_LINES) * 2);
        assert!(own.admits(at + Duration::from_secs(1)));
    }

    #[tokio::test]
    async fn the_task_names_packets_and_tells_followers() {
        let (packets, receiver) = mpsc::channel(4);
        let (_config, watched) = watch::channel(Some(Arc::new(fixture::config())));
        let log = EventLog::default();
        let mut follower = log.follow();
        let task = tokio::spawn(run(receiver, watched, log.clone()));
        packets
            .send(logged("qw forward", Some("vlan50"), Some("vlan60"), packet::tests::ipv4(1, &[8, 0])))
            .await
            .unwrap();
        assert_eq!(follower.recv().await.unwrap().service, "ping");
        drop(packets);
        task.await.unwrap();
        assert_eq!(log.groups().len(), 1);
    }

    /// tcp/22 between these.
    fn between(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut packet = packet::tests::ipv4(6, &[4, 0, 0, 22]);
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&destination);
        packet
    }

    fn named(prefix: &str, from: Option<&str>, to: Option<&str>, payload: Vec<u8>) -> Denied {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        name(&fixture::config(), &logged(prefix, from, to, payload), at).unwrap()
    }

    fn logged(prefix: &str, from: Option<&str>, to: Option<&str>, payload: Vec<u8>) -> Logged {
        let interface = |name: Option<&str>| name.map(|name| name.parse().unwrap());
        Logged { prefix: prefix.into(), in_interface: interface(from), out_interface: interface(to), payload }
    }
}
