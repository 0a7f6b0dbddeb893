//! Auditing a cell of the matrix: for a bounded time what no entry of it allows is let pass, logged and counted, and
//! what was seen becomes the entry that would allow it. Which cells may be audited, and what to propose, is decided
//! here; the router keeps the time, and so does the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use config::Config;
use config::model::{Allow, Cell};
use config::units::{Line, VlanName};
use serde::{Deserialize, Serialize};

use crate::asserts::{BrokenAssert, broken};
use crate::matrix::{Packet, Protocol, verdict};
use crate::time::Time;

/// A cell of the matrix between two VLANs: `office->guests`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pair {
    pub from: VlanName,
    pub to: VlanName,
}

/// A running audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    pub until: Time,
    pub span: Duration,
}

/// Why an audit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditEnd {
    /// Its time was over.
    Time,
    Operator,
    /// Another config took effect: what the audit would break has to be asked of that one.
    Config,
}

impl AuditEnd {
    pub fn told(self) -> &'static str {
        match self {
            Self::Time => "its time is over",
            Self::Operator => "an operator ended it",
            Self::Config => "a configuration took effect",
        }
    }
}

/// Why a cell is not audited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("`{0}` is no cell: write FROM->TO with two VLANs of the site file, in quotes, as in 'office->guests'")]
    Notation(String),
    #[error(
        "`{0}` is no VLAN: only cells between two VLANs are audited, never what comes from or goes to a line or the router; \
         there are: {1}"
    )]
    NoVlan(String, String),
    #[error("{0} to {0} is one segment: its packets are bridged and never denied")]
    Bridged(VlanName),
    #[error("an audit takes one second to one hour")]
    Span,
    #[error("{0} is audited already; `routerctl audit '{0}' --stop` ends it")]
    Running(Pair),
    #[error("{MOST} cells are audited already; end one with --stop")]
    TooMany,
    #[error(
        "the site file lets {0} open nothing to any other VLAN, as is right for guests or a DMZ: an audit would be its first \
         way in; --isolated audits it anyway"
    )]
    Isolated(VlanName),
    #[error("while {0} is audited these asserts of the site file would not hold:{told}", told = listed(.1))]
    Asserts(Pair, Vec<BrokenAssert>),
}

fn listed(broken: &[BrokenAssert]) -> String {
    let told = broken.iter().map(|BrokenAssert { line, text, why }| format!("\n  `{text}` ({line}): {why}"));
    told.collect::<Vec<_>>().concat()
}

/// Whether this cell may be audited. `isolated`: also from a VLAN that may open nothing inward.
pub fn check(
    config: &Config,
    running: &BTreeMap<Pair, Audit>,
    pair: &Pair,
    span: Duration,
    isolated: bool,
) -> Result<(), Unfit> {
    let Pair { from, to } = pair;
    known(config, pair)?;
    if from == to {
        return Err(Unfit::Bridged(from.clone()));
    }
    if !SPANS.contains(&span) {
        return Err(Unfit::Span);
    }
    if running.contains_key(pair) {
        return Err(Unfit::Running(pair.clone()));
    }
    if running.len() >= MOST {
        return Err(Unfit::TooMany);
    }
    if !isolated && !config.cells.iter().any(|cell| cell.enabled && cell.from == *from) {
        return Err(Unfit::Isolated(from.clone()));
    }
    let open = |config: &Config, pair: &Pair| {
        let all = Cell {
            name: format!("audit of {pair}"),
            from: pair.from.clone(),
            to: pair.to.clone(),
            allow: Allow::Any,
            from_hosts: None,
            to_hosts: None,
            log: false,
            enabled: true,
            comment: String::new(),
            line: Line::BUILT_IN,
        };
        Config { cells: config.cells.iter().cloned().chain([all]).collect(), ..config.clone() }
    };
    // With what is audited already: an assert may be about several cells.
    let before = running.keys().fold(config.clone(), |config, pair| open(&config, pair));
    let broken_before = broken(&before);
    let mut would_break = broken(&open(&before, pair));
    would_break.retain(|assert| !broken_before.contains(assert));
    if would_break.is_empty() { Ok(()) } else { Err(Unfit::Asserts(pair.clone(), would_break)) }
}

/// Whether both are VLANs.
pub fn known(config: &Config, pair: &Pair) -> Result<(), Unfit> {
    match [&pair.from, &pair.to].into_iter().find(|name| !config.vlans.contains_key(*name)) {
        None => Ok(()),
        Some(name) => {
            let known = config.vlans.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Err(Unfit::NoVlan(name.to_string(), known))
        }
    }
}

/// A flow that an audit let begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
}

/// The entries that allow what was seen and is not allowed by this config, to be pasted into the site file: exactly
/// that, as long as they stay few; beyond it sources are left out, then destinations. Empty where nothing is missing.
pub fn propose(config: &Config, pair: &Pair, seen: &[Seen]) -> String {
    let missing: BTreeSet<_> = seen
        .iter()
        .filter(|seen| {
            let packet = Packet::new(config, seen.source, seen.destination, seen.protocol);
            !verdict(config, &packet).allowed
        })
        .map(|seen| (host(config, seen.source), host(config, seen.destination), service(seen)))
        .collect();
    if missing.is_empty() {
        return String::new();
    }
    let exact = joined(missing.iter().cloned().map(|(source, target, service)| (Some(source), Some(target), service)));
    let (entries, wider) = if exact.len() <= MOST_ENTRIES && exact.iter().all(Entry::is_short) {
        (exact, None)
    } else {
        let sources = missing.iter().map(|(source, ..)| source).collect::<BTreeSet<_>>().len();
        let to_hosts = joined(missing.iter().cloned().map(|(_, target, service)| (None, Some(target), service)));
        if to_hosts.len() <= MOST_ENTRIES && to_hosts.iter().all(Entry::is_short) {
            (to_hosts, Some(format!("# {sources} sources were seen: this allows all of {}\n", pair.from)))
        } else {
            let targets = missing.iter().map(|(_, target, _)| target).collect::<BTreeSet<_>>().len();
            let all = joined(missing.iter().map(|(.., service)| (None, None, *service)));
            let told = format!(
                "# {sources} sources and {targets} destinations were seen: this allows all of {} and {}\n",
                pair.from, pair.to
            );
            (all, Some(told))
        }
    };
    let told: Vec<_> = entries.iter().map(|entry| entry.toml(pair)).collect();
    wider.unwrap_or_default() + &told.join("\n")
}

/// A permit of the site file in the making; no hosts is the whole VLAN.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    sources: BTreeSet<String>,
    targets: BTreeSet<String>,
    services: BTreeSet<Service>,
}

/// By kind, then by number.
type Service = (&'static str, Option<u16>);

impl Entry {
    fn is_short(&self) -> bool {
        self.sources.len() <= MOST_HOSTS && self.targets.len() <= MOST_HOSTS
    }

    fn toml(&self, pair: &Pair) -> String {
        let list = |names: Vec<String>| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let hosts = |key: &str, hosts: &BTreeSet<String>| {
            let list = list(hosts.iter().cloned().collect());
            if hosts.is_empty() { String::new() } else { format!("{key} = [{list}]\n") }
        };
        let services = self.services.iter().map(|(kind, number)| match number {
            Some(number) => format!("{kind}/{number}"),
            None => (*kind).to_owned(),
        });
        format!(
            "[[cell]]\nfrom = \"{}\"\nto = \"{}\"\n{}{}services = [{}]\n",
            pair.from,
            pair.to,
            hosts("from_hosts", &self.sources),
            hosts("hosts", &self.targets),
            list(services.collect())
        )
    }
}

/// Together what allows no more together than apart.
fn joined(single: impl Iterator<Item = (Option<String>, Option<String>, Service)>) -> Vec<Entry> {
    type Hosts = BTreeSet<Option<String>>;
    let mut sources: BTreeMap<(Option<String>, Service), Hosts> = BTreeMap::new();
    for (source, target, service) in single {
        sources.entry((target, service)).or_default().insert(source);
    }
    let mut services: BTreeMap<(Hosts, Option<String>), BTreeSet<Service>> = BTreeMap::new();
    for ((target, service), sources) in sources {
        services.entry((sources, target)).or_default().insert(service);
    }
    let mut targets: BTreeMap<(Hosts, BTreeSet<Service>), Hosts> = BTreeMap::new();
    for ((sources, target), services) in services {
        targets.entry((sources, services)).or_default().insert(target);
    }
    let named = |hosts: Hosts| hosts.into_iter().flatten().collect();
    targets
        .into_iter()
        .map(|((sources, services), targets)| Entry { sources: named(sources), targets: named(targets), services })
        .collect()
}

/// By name where the file knows one.
fn host(config: &Config, address: IpAddr) -> String {
    config.host_at(address).map_or_else(|| address.to_string(), |host| host.name.to_string())
}

fn service(seen: &Seen) -> Service {
    match seen.protocol {
        Protocol::Tcp { destination, .. } => ("tcp", Some(destination)),
        Protocol::Udp { destination, .. } => ("udp", Some(destination)),
        Protocol::Ping => ("ping", None),
        // A hop of the family's own ICMP is named by its number like any other.
        Protocol::Other(number) => ("proto", Some(number.into())),
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.from, self.to)
    }
}

impl FromStr for Pair {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let wrong = || Unfit::Notation(text.to_owned());
        let (from, to) = text.split_once("->").ok_or_else(wrong)?;
        let name = |name: &str| name.trim().parse().map_err(|_not_a_name| wrong());
        Ok(Self { from: name(from)?, to: name(to)? })
    }
}

impl TryFrom<String> for Pair {
    type Error = Unfit;

    fn try_from(text: String) -> Result<Self, Unfit> {
        text.parse()
    }
}

impl From<Pair> for String {
    fn from(pair: Pair) -> Self {
        pair.to_string()
    }
}

/// No audit is longer, whoever asked for it.
pub const LONGEST: Duration = Duration::from_hours(1);
const SPANS: RangeInclusive<Duration> = Duration::from_secs(1)..=LONGEST;
/// Cells audited at a time.
const MOST: usize = 8;
const MOST_ENTRIES: usize = 8;
const MOST_HOSTS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_cell_is_audited_only_where_that_is_safe() {
        let site = fixture::site();
        let asked = |pair: &str, isolated| {
            let pair = pair.parse::<Pair>()?;
            check(&site, &BTreeMap::new(), &pair, Duration::from_mins(10), isolated)
        };
        assert_eq!(asked("office->servers", false), Ok(()));
        for (pair, part) in [
            ("office", "write FROM->TO"),
            ("office->wan1", "`wan1` is no VLAN: only cells between two VLANs are audited"),
            ("wan1->office", "`wan1` is no VLAN"),
            ("internet->office", "`internet` is no VLAN"),
            ("office->router", "`router` is no VLAN"),
            ("office->office", "one segment"),
            ("guests->office", "--isolated audits it anyway"),
        ] {
            let told = asked(pair, false).unwrap_err().to_string();
            assert!(told.contains(part), "{pair}: {told}");
        }
        for wrong in ["wan1->office", "internet->office", "office->office"] {
            assert!(asked(wrong, true).is_err(), "{wrong}");
        }
        assert_eq!(asked("guests->office", true), Ok(()));
    }

    #[test]
    fn an_audit_is_bounded_in_time_and_in_number() {
        let (site, pair) = (fixture::site(), pair());
        let running = |pairs: usize| {
            let names = (0..pairs).map(|n| format!("a{n}->b").parse().unwrap());
            names.map(|pair| (pair, Audit { until: Time::ZERO, span: LONGEST })).collect::<BTreeMap<Pair, _>>()
        };
        for span in [Duration::ZERO, LONGEST + Duration::from_secs(1)] {
            assert_eq!(check(&site, &running(0), &pair, span, false), Err(Unfit::Span));
        }
        assert_eq!(check(&site, &running(0), &pair, LONGEST, false), Ok(()));
        assert_eq!(check(&site, &running(MOST), &pair, LONGEST, false), Err(Unfit::TooMany));
        let itself = BTreeMap::from([(pair.clone(), Audit { until: Time::ZERO, span: LONGEST })]);
        assert_eq!(check(&site, &itself, &pair, LONGEST, false), Err(Unfit::Running(pair)));
    }

    #[test]
    fn an_audit_that_would_break_an_assert_names_it() {
        let mut site = fixture::site();
        let claim = |to: &str| config::model::Assert {
            text: format!("office cannot reach {to} tcp/22"),
            claim: config::model::Claim::Flow {
                from: config::model::Place::Vlan("office".parse().unwrap()),
                to: config::model::Place::Vlan(to.parse().unwrap()),
                packet: Some(config::model::PacketClaim::Tcp(22)),
                allowed: false,
            },
            line: Line(77),
        };
        site.asserts = vec![claim("servers"), claim("guests")];
        let refused = check(&site, &BTreeMap::new(), &pair(), LONGEST, false).unwrap_err().to_string();
        assert!(refused.contains("`office cannot reach servers tcp/22` (line 77): allowed"), "{refused}");
        assert!(!refused.contains("guests"), "{refused}");
    }

    #[test]
    fn what_was_seen_is_proposed_and_no_more() {
        let site = fixture::site();
        let seen = [
            seen("10.0.10.9", "10.0.30.5", tcp(443)),
            seen("10.0.10.9", "10.0.30.5", tcp(80)),
            seen("10.0.10.8", "10.0.30.5", tcp(80)),
            seen("10.0.10.8", "10.0.30.5", tcp(443)),
            seen("10.0.10.9", "10.0.30.6", Protocol::Ping),
            seen("10.0.10.9", "10.0.30.6", Protocol::Other(50)),
        ];
        assert_eq!(
            propose(&site, &pair(), &seen),
            "[[cell]]\nfrom = \"office\"\nto = \"servers\"\nfrom_hosts = [\"10.0.10.8\", \"10.0.10.9\"]\n\
             hosts = [\"10.0.30.5\"]\nservices = [\"tcp/80\", \"tcp/443\"]\n\n\
             [[cell]]\nfrom = \"office\"\nto = \"servers\"\nfrom_hosts = [\"10.0.10.9\"]\n\
             hosts = [\"10.0.30.6\"]\nservices = [\"ping\", \"proto/50\"]\n"
        );
        // What an entry that came meanwhile allows is not proposed again.
        let printer = [seen_to_printer(631)];
        let to_guests = "office->guests".parse().unwrap();
        assert_eq!(propose(&site, &to_guests, &printer), "");
        assert_eq!(
            propose(&site, &to_guests, &[seen_to_printer(80)]),
            "[[cell]]\nfrom = \"office\"\nto = \"guests\"\nfrom_hosts = [\"10.0.10.9\"]\n\
             hosts = [\"printer\"]\nservices = [\"tcp/80\"]\n"
        );
    }

    #[test]
    fn what_would_be_too_long_is_proposed_wider_and_says_so() {
        let many = |hosts: u8, ports: u16| -> Vec<Seen> {
            let all = (1..=hosts).flat_map(|host| (1..=ports).map(move |port| (host, port)));
            // Each host its own ports, so that nothing can be joined.
            let flow = |(host, port)| {
                let source = IpAddr::from([10, 0, 10, 100 + host]);
                Seen { source, ..seen("10.0.10.9", "10.0.30.5", tcp(u16::from(host) * 100 + port)) }
            };
            all.map(flow).collect()
        };
        let told = propose(&fixture::site(), &pair(), &many(12, 1));
        assert!(told.starts_with("# 12 sources were seen: this allows all of office\n[[cell]]\n"), "{told}");
        assert!(!told.contains("from_hosts") && told.contains("hosts = [\"10.0.30.5\"]"), "{told}");
        assert_eq!(told.matches("[[cell]]").count(), 1, "{told}");
        let mut scan = Vec::new();
        for host in 1..=20 {
            let destination = IpAddr::from([10, 0, 30, 100 + host]);
            scan.push(Seen { destination, ..seen("10.0.10.9", "10.0.30.5", tcp(u16::from(host))) });
        }
        let told = propose(&fixture::site(), &pair(), &scan);
        assert!(told.starts_with("# 1 sources and 20 destinations were seen"), "{told}");
        assert!(!told.contains("hosts = "), "{told}");
    }

    #[test]
    fn a_cell_is_written_as_denied_writes_it() {
        let text = serde_json::to_string(&pair()).unwrap();
        assert_eq!(text, "\"office->servers\"");
        assert_eq!(serde_json::from_str::<Pair>(&text).unwrap(), pair());
        assert_eq!(pair().to_string().parse::<Pair>(), Ok(pair()));
    }

    fn pair() -> Pair {
        "office->servers".parse().unwrap()
    }

    fn tcp(destination: u16) -> Protocol {
        Protocol::Tcp { source: 40_000, destination }
    }

    fn seen(source: &str, destination: &str, protocol: Protocol) -> Seen {
        Seen { source: source.parse().unwrap(), destination: destination.parse().unwrap(), protocol }
    }

    fn seen_to_printer(port: u16) -> Seen {
        seen("10.0.10.9", "10.0.20.5", tcp(port))
    }
}
