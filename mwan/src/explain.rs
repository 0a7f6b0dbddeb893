//! The matrix told to a person: who is talking to whom, what in the file decides it, which line it would take and
//! under which address it would leave.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use config::Config;
use config::model::{Assert, Cell, Nat6, Wan};
use config::units::{Family, HostName, Line, PolicyName, WanName};
use serde::{Deserialize, Serialize};

use crate::asserts;
use crate::audit::Pair;
use crate::decide::Decision;
use crate::matrix::{Named, Packet, Protocol, Reason, Verdict, Zone, steered, verdict, verdict_by_names};
use crate::state::{BucketKey, Slot};

/// "May this pass, and which way?"
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    /// Where the packet comes in, if that is not where its source address is at home.
    pub from: Option<Zone>,
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    #[error("`{0}` is neither an address nor a host of the site file")]
    Party(String),
    #[error("{0} and {1} have no address family in common")]
    Families(String, String),
    #[error("`{0}` is no protocol: write tcp/PORT, udp/PORT, ping or a protocol number")]
    Protocol(String),
    #[error("`{0}` is neither a VLAN nor a WAN nor an interface of one")]
    Origin(String),
}

impl Question {
    /// As on a command line: `explain nas 198.51.100.1 tcp/443`, with `from` a VLAN, a WAN or an interface.
    pub fn read(
        config: &Config,
        source: &str,
        destination: &str,
        protocol: &str,
        from: Option<&str>,
    ) -> Result<Self, Unclear> {
        let sources = party(config, source)?;
        let destinations = party(config, destination)?;
        let pair = sources.iter().find_map(|a| {
            let same = destinations.iter().find(|b| Family::of(**b) == Family::of(*a))?;
            Some((*a, *same))
        });
        let (source, destination) = pair.ok_or_else(|| Unclear::Families(source.to_owned(), destination.to_owned()))?;
        let from = from.map(|name| origin(config, name)).transpose()?;
        Ok(Self { source, destination, protocol: protocol_of(protocol)?, from })
    }
}

/// The answer, in the order the packet meets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub source: Party,
    pub destination: Party,
    pub protocol: Protocol,
    pub allowed: bool,
    pub verdict: Verdict,
    /// The verdict's reason as a sentence.
    pub because: String,
    /// Until when it passes all the same, because its cell is audited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audited_until: Option<String>,
    /// What names have to do with its destination: a sentence for each set that goes by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// What to write to allow it.
    pub advice: Option<String>,
    /// Only for allowed packets that leave by a line.
    pub way: Option<Way>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    pub address: IpAddr,
    pub host: Option<HostName>,
    pub zone: Zone,
}

/// Which way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The steering rule; `None` is the default policy.
    pub rule: Option<(String, Line)>,
    pub policy: PolicyName,
    /// The lines in use at this moment. None: see `without`.
    pub lines: Vec<Share>,
    /// What share of 256 has no line, and what becomes of it.
    pub without: Vec<(u16, Slot)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub wan: WanName,
    /// Of 256.
    pub buckets: u16,
    /// The source address it leaves with.
    pub leaves_as: String,
}

/// Answers from the file and the lines in use at this moment.
pub fn explain(config: &Config, decision: &Decision, question: &Question) -> Explanation {
    explain_by_names(config, decision, question, &|_, _| false)
}

/// The same where names stand for addresses.
pub fn explain_by_names(config: &Config, decision: &Decision, question: &Question, named: &Named<'_>) -> Explanation {
    let mut packet = Packet::new(config, question.source, question.destination, question.protocol);
    if let Some(from) = &question.from {
        packet.from = from.clone();
    }
    let verdict = verdict_by_names(config, &packet, named);
    let way = if verdict.allowed { way(config, decision, &packet) } else { None };
    Explanation {
        source: Party { address: packet.source, host: host(config, packet.source), zone: packet.from.clone() },
        destination: Party {
            address: packet.destination,
            host: host(config, packet.destination),
            zone: packet.to.clone(),
        },
        protocol: packet.protocol,
        allowed: verdict.allowed,
        because: verdict.reason.to_string(),
        audited_until: None,
        names: Vec::new(),
        advice: advice(config, &packet, &verdict),
        verdict,
        way,
    }
}

impl Explanation {
    /// The cell whose default deny decides; an audit of it lets the packet pass.
    pub fn denied_by(&self) -> Option<Pair> {
        match &self.verdict.reason {
            Reason::NoCell { from, to, .. } => Some(Pair { from: from.clone(), to: to.clone() }),
            Reason::Own
            | Reason::SameSegment { .. }
            | Reason::Cell { .. }
            | Reason::Egress { .. }
            | Reason::NoEgress { .. }
            | Reason::Input { .. }
            | Reason::NoInput { .. }
            | Reason::BuiltIn { .. }
            | Reason::Inbound { .. }
            | Reason::Spoofed { .. }
            | Reason::NotRouted { .. } => None,
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} -> {} {}", self.source, self.destination, self.protocol)?;
        match (&self.audited_until, self.allowed) {
            (Some(until), false) => write!(f, "denied, and let pass until {until} for an audit: {}", self.because)?,
            (_, allowed) => write!(f, "{}: {}", if allowed { "allowed" } else { "denied" }, self.because)?,
        }
        for names in &self.names {
            write!(f, "\n{names}")?;
        }
        if let Some(way) = &self.way {
            write!(f, "\n{way}")?;
        }
        if let Some(advice) = &self.advice {
            // What is to be pasted begins on a line of its own.
            let gap = if advice.contains('\n') { '\n' } else { ' ' };
            write!(f, "\nto allow it:{gap}{advice}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host} ({}, {})", self.address, self.zone),
            None => write!(f, "{} ({})", self.address, self.zone),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Some((name, line)) => write!(f, "steering `{name}` ({line}), policy {}", self.policy)?,
            None => write!(f, "no steering rule, policy {}", self.policy)?,
        }
        for share in &self.lines {
            let percent = (u32::from(share.buckets) * 100 + 128) / 256;
            write!(f, "\n  {percent:>3} % by {}, as {}", share.wan, share.leaves_as)?;
        }
        for (_, slot) in &self.without {
            f.write_str(match slot {
                Slot::Unreachable => "\n  no line is usable: answered unreachable",
                Slot::Blackhole => "\n  no line is usable: dropped",
                Slot::Wan(_) => "\n  by a line that is not in the file: answered unreachable",
            })?;
        }
        Ok(())
    }
}

fn way(config: &Config, decision: &Decision, packet: &Packet) -> Option<Way> {
    let (policy, rule) = steered(config, packet)?;
    let family = Family::of(packet.destination);
    let key = BucketKey { policy: policy.name.clone(), family };
    let mut slots: BTreeMap<Slot, u16> = BTreeMap::new();
    match decision.buckets.get(&key) {
        Some(buckets) => {
            for slot in &buckets.0 {
                *slots.entry(*slot).or_default() += 1;
            }
        }
        None => {
            slots.insert(Slot::Unreachable, 256);
        }
    }
    let mut way = Way {
        rule: rule.map(|steer| (steer.name.clone(), steer.line)),
        policy: policy.name.clone(),
        lines: Vec::new(),
        without: Vec::new(),
    };
    for (slot, buckets) in slots {
        let wan = match slot {
            Slot::Wan(id) => config.wan(id),
            Slot::Unreachable | Slot::Blackhole => None,
        };
        match wan {
            Some(wan) => {
                let leaves_as = leaves_as(config, wan, packet.source);
                way.lines.push(Share { wan: wan.name.clone(), buckets, leaves_as });
            }
            None => way.without.push((buckets, slot)),
        }
    }
    Some(way)
}

/// The address the far end sees.
fn leaves_as(config: &Config, wan: &Wan, source: IpAddr) -> String {
    let masqueraded = || {
        let address = wan.source(Family::of(source));
        address.map_or_else(|| "an address of the line".to_owned(), |address| format!("{address} (masquerade)"))
    };
    let IpAddr::V6(inside) = source else { return masqueraded() };
    match &wan.nat6 {
        Nat6::Prefix { internal, external } if internal.contains(&inside) => {
            let host = inside.to_bits() & internal.hostmask().to_bits();
            let outside = external.trunc().addr().to_bits() | host;
            format!("{} (prefix {internal} -> {external})", std::net::Ipv6Addr::from_bits(outside))
        }
        Nat6::Masquerade | Nat6::Prefix { .. } => masqueraded(),
        Nat6::None => {
            let elsewhere = |other: &&Wan| other.id != wan.id;
            let own_elsewhere = config
                .wans
                .values()
                .filter(elsewhere)
                .any(|other| other.addressing.addresses.iter().any(|net| net.addr() == source));
            if own_elsewhere { masqueraded() } else { format!("{source} (unchanged)") }
        }
    }
}

fn advice(config: &Config, packet: &Packet, verdict: &Verdict) -> Option<String> {
    let advice = what_allows(config, packet, verdict)?;
    Some(match asserts::against(config, packet) {
        Some(Assert { text, line, .. }) => {
            format!("{advice}\n# refused while {line} asserts `{text}`")
        }
        None => advice,
    })
}

fn what_allows(config: &Config, packet: &Packet, verdict: &Verdict) -> Option<String> {
    let service = match packet.protocol {
        Protocol::Other(number) => format!("proto/{number}"),
        Protocol::Tcp { .. } | Protocol::Udp { .. } | Protocol::Ping => packet.protocol.to_string(),
    };
    let quoted = |address: IpAddr| match host(config, address) {
        Some(host) => format!("\"{host}\""),
        None => format!("\"{address}\""),
    };
    match &verdict.reason {
        _ if verdict.allowed => None,
        Reason::NoCell { from, to, .. } => Some(asleep(config, packet).unwrap_or_else(|| {
            format!(
                "[[cell]]\nfrom = \"{from}\"\nto = \"{to}\"\nfrom_hosts = [{}]\nhosts = [{}]\nservices = [\"{service}\"]",
                quoted(packet.source),
                quoted(packet.destination)
            )
        })),
        Reason::NoEgress { vlan, line } => {
            Some(format!("name an egress set with {service} in `internet` of vlan {vlan} ({line})"))
        }
        Reason::NoInput { from, line } if *from != Zone::Internet => {
            Some(format!("add \"{service}\" to `input` of {from} ({line})"))
        }
        Reason::Own
        | Reason::SameSegment { .. }
        | Reason::Cell { .. }
        | Reason::Egress { .. }
        | Reason::Input { .. }
        | Reason::NoInput { .. }
        | Reason::BuiltIn { .. }
        | Reason::Inbound { .. }
        | Reason::Spoofed { .. }
        | Reason::NotRouted { .. } => None,
    }
}

/// A disabled entry that would allow it.
fn asleep(config: &Config, packet: &Packet) -> Option<String> {
    let (Zone::Vlan(from), Zone::Vlan(to)) = (&packet.from, &packet.to) else { return None };
    let of_pair = |cell: &&Cell| !cell.enabled && cell.from == *from && cell.to == *to;
    config.cells.iter().filter(of_pair).find_map(|cell| {
        let awake = Config { cells: vec![Cell { enabled: true, ..cell.clone() }], ..config.clone() };
        let Cell { name, line, .. } = cell;
        verdict(&awake, packet).allowed.then(|| format!("enable the entry `{name}` ({line})"))
    })
}

fn host(config: &Config, address: IpAddr) -> Option<HostName> {
    config.host_at(address).map(|host| host.name.clone())
}

fn party(config: &Config, text: &str) -> Result<Vec<IpAddr>, Unclear> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let host = text.parse::<HostName>().ok().and_then(|name| config.hosts.get(&name));
    host.map(|host| host.addresses.clone()).ok_or_else(|| Unclear::Party(text.to_owned()))
}

fn origin(config: &Config, text: &str) -> Result<Zone, Unclear> {
    let vlan = config.vlans.values().find(|vlan| vlan.name.as_str() == text || vlan.interface.as_str() == text);
    let wan = config.wans.values().find(|wan| wan.name.as_str() == text || wan.interface.as_str() == text);
    match (vlan, wan, text) {
        (Some(vlan), ..) => Ok(Zone::Vlan(vlan.name.clone())),
        (None, Some(wan), _) => Ok(Zone::Wan(wan.name.clone())),
        (None, None, "router" | "lo") => Ok(Zone::Router),
        (None, None, "internet") => Ok(Zone::Internet),
        (None, None, _) => Err(Unclear::Origin(text.to_owned())),
    }
}

/// `tcp/443`, `udp/53`, `ping`, `proto/50` or `50`.
fn protocol_of(text: &str) -> Result<Protocol, Unclear> {
    let wrong = || Unclear::Protocol(text.to_owned());
    let (kind, number) = text.split_once('/').unwrap_or((text, ""));
    let port = || number.parse::<u16>().map_err(|_not_a_port| wrong());
    match kind {
        "tcp" => Ok(Protocol::Tcp { source: CLIENT_PORT, destination: port()? }),
        "udp" => Ok(Protocol::Udp { source: CLIENT_PORT, destination: port()? }),
        "ping" | "icmp" | "icmpv6" if number.is_empty() => Ok(Protocol::Ping),
        "proto" => number.parse().map(Protocol::Other).map_err(|_not_a_number| wrong()),
        _ if number.is_empty() => kind.parse().map(Protocol::Other).map_err(|_not_a_number| wrong()),
        _ => Err(wrong()),
    }
}

/// The source port of a client that nobody chose.
const CLIENT_PORT: u16 = 40_000;

#[cfg(test)]
mod tests {
    use config::model::Vlan;
    use ipnet::IpNet;

    use super::*;
    use crate::fixture;

    fn answer(source: &str, destination: &str, protocol: &str, from: Option<&str>) -> String {
        let config = fixture::site();
        let question = Question::read(&config, source, destination, protocol, from).unwrap();
        explain(&config, &fixture::decision(&config), &question).to_string()
    }

    #[test]
    fn a_denied_packet_is_told_its_cell_and_what_would_allow_it() {
        assert_eq!(
            answer("10.0.30.9", "10.0.10.7", "tcp/22", None),
            "10.0.30.9 (servers) -> 10.0.10.7 (office) tcp/22\n\
             denied: cell servers -> office: default deny, no entry for this pair\n\
             to allow it:\n[[cell]]\nfrom = \"servers\"\nto = \"office\"\nfrom_hosts = [\"10.0.30.9\"]\n\
             hosts = [\"10.0.10.7\"]\nservices = [\"tcp/22\"]"
        );
    }

    #[test]
    fn a_disabled_entry_that_would_allow_it_is_named() {
        let mut config = fixture::site();
        config.cells[0].enabled = false;
        let question = Question::read(&config, "10.0.10.9", "printer", "ping", None).unwrap();
        let explanation = explain(&config, &Decision::default(), &question);
        assert_eq!(explanation.advice.unwrap(), "enable the entry `office->guests` (line 60)");
    }

    /// What is to be pasted into the file allows this packet and no other.
    #[test]
    fn the_advice_for_a_cell_allows_what_was_asked_and_nothing_beside() {
        const SITE: &str = include_str!("../../config/examples/spectrum-site.toml");
        let read = |text: &str| config::parse("site.toml", text).unwrap().config;
        let site = read(SITE);
        let ask = |config: &Config, source: IpAddr, destination: IpAddr, protocol: &str| {
            let (source, destination) = (source.to_string(), destination.to_string());
            let question = Question::read(config, &source, &destination, protocol, None).unwrap();
            explain(config, &Decision::default(), &question)
        };
        let address = |vlan: &Vlan, host: u32| match vlan.addresses.first().unwrap() {
            IpNet::V4(net) => IpAddr::V4(std::net::Ipv4Addr::from_bits(net.network().to_bits() + host)),
            IpNet::V6(_) => unreachable!("the first address of each VLAN of this site is of IPv4"),
        };
        let mut told = 0;
        for (from, to) in site.vlans.values().flat_map(|from| site.vlans.values().map(move |to| (from, to))) {
            for protocol in ["tcp/4444", "udp/53", "ping", "50"] {
                let (source, destination) = (address(from, 251), address(to, 252));
                let explanation = ask(&site, source, destination, protocol);
                let Some(advice) = explanation.advice.filter(|advice| advice.starts_with("[[cell]]")) else { continue };
                told += 1;
                let wider = read(&format!("{SITE}\n{advice}\n"));
                assert!(ask(&wider, source, destination, protocol).allowed, "{advice}");
                let refused = !asserts::broken(&wider).is_empty();
                assert_eq!(advice.contains("# refused while line"), refused, "{advice}");
                let beside = [(253, 252, protocol), (251, 253, protocol), (251, 252, "tcp/4445")];
                for (source, destination, protocol) in beside {
                    let (source, destination) = (address(from, source), address(to, destination));
                    let before = ask(&site, source, destination, protocol).allowed;
                    assert_eq!(ask(&wider, source, destination, protocol).allowed, before, "{advice}");
                }
            }
        }
        assert!(told > 50, "{told}");
    }

    #[test]
    fn an_allowed_packet_is_told_its_entry_by_name_and_line() {
        assert_eq!(
            answer("10.0.10.9", "printer", "ping", None),
            "10.0.10.9 (office) -> printer (10.0.20.5, guests) ping\n\
             allowed: cell office -> guests, entry `office->guests` (line 60), service ping"
        );
    }

    #[test]
    fn a_packet_to_the_internet_is_told_its_rule_lines_and_addresses() {
        assert_eq!(
            answer("10.0.10.9", "192.0.2.1", "udp/5060", None),
            "10.0.10.9 (office) -> 192.0.2.1 (the Internet) udp/5060\n\
             allowed: office may open anything to the Internet (line 11)\n\
             steering `voice` (line 70), policy backup\n  \
             \x2050 % by wan1, as 100.64.1.2 (masquerade)\n  \
             \x2050 % by wan2, as 100.64.2.2 (masquerade)"
        );
    }

    #[test]
    fn without_a_usable_line_the_answer_says_what_happens() {
        let config = fixture::site();
        let question = Question::read(&config, "10.0.10.9", "192.0.2.1", "tcp/80", None).unwrap();
        let told = explain(&config, &Decision::default(), &question).to_string();
        assert!(told.ends_with("no line is usable: answered unreachable"), "{told}");
    }

    #[test]
    fn a_source_from_elsewhere_is_spoofed() {
        let told = answer("10.0.20.9", "10.0.30.7", "tcp/22", Some("vlan10"));
        assert!(told.contains("denied: the source address is not at home in office: spoofed"), "{told}");
    }

    #[test]
    fn prefix_translation_keeps_the_host_bits() {
        let mut config = fixture::site();
        for wan in config.wans.values_mut() {
            let external = format!("2001:db8:{}::/64", wan.id.get()).parse().unwrap();
            wan.nat6 = Nat6::Prefix { internal: "fd00:10::/64".parse().unwrap(), external };
        }
        let wan = config.wans.values().next().unwrap();
        let told = leaves_as(&config, wan, "fd00:10::9".parse().unwrap());
        assert_eq!(told, "2001:db8:1::9 (prefix fd00:10::/64 -> 2001:db8:1::/64)");
        assert_eq!(leaves_as(&config, wan, "fd00:20::9".parse().unwrap()), "2001:db8:ff01::2 (masquerade)");
    }

    #[test]
    fn unclear_questions_are_told_why() {
        let config = fixture::site();
        let read = |source, destination, protocol, from| Question::read(&config, source, destination, protocol, from);
        assert!(matches!(read("nobody", "printer", "ping", None), Err(Unclear::Party(_))));
        assert!(matches!(read("fd00:10::9", "printer", "ping", None), Err(Unclear::Families(..))));
        assert!(matches!(read("10.0.10.9", "printer", "tcp/http", None), Err(Unclear::Protocol(_))));
        assert!(matches!(read("10.0.10.9", "printer", "tcp", None), Err(Unclear::Protocol(_))));
        assert!(matches!(read("10.0.10.9", "printer", "ping", Some("vlan99")), Err(Unclear::Origin(_))));
    }
}
