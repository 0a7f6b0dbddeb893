//! What the kernel tells of packets that are followed, in the names of the site file: segment, cell, line of the file,
//! policy, WAN, NAT, verdict. Pure: `kernel::trace` brings what packets met, the API sends what is told here.
//!
//! Every packet is explained by its own addresses and ports, and what `explain` says is compared with what it met.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::Config;
use config::units::{IfName, Mark, PolicyId, WanId};
use mwan::decide::Decision;
use mwan::explain::{Explanation, Question, explain};
use mwan::matrix::Zone;
use mwan::state::Slot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event_log::Denied;
use crate::event_log::packet::{Headers, Transport};
use crate::kernel::trace::{Followed, Met, Rule, Verdict, Wanted, What};
use crate::status::zone_behind;

/// A line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TraceLine {
    /// The first: packets are followed from here on.
    Following(Following),
    Step(Step),
    /// The last.
    Report(TraceReport),
}

/// What is followed, and what there is of it before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Following {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// `tcp/443`; absent: whatever the two say to each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    pub milliseconds: u64,
    /// Packets of both directions after which it ends.
    pub packets: u32,
    /// What `explain` says of it; of every packet that is seen it is asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explained: Option<String>,
    /// As conntrack has them.
    pub flows: Vec<TracedFlow>,
    /// Its flows were taken out of the fast path.
    pub through_rules: bool,
}

/// Something that a packet met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// RFC 3339, UTC.
    pub time: String,
    /// From 1, as they come; absent for one that was dropped at its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<u32>,
    pub text: String,
    /// The chain it met it in; of a table of somebody else with that before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    /// The rule, as `nft -a list chain` numbers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceReport {
    pub packets: Vec<TracedPacket>,
    /// Packets of it that were logged as dropped at the port they came in by, before any rule. The log is limited.
    pub at_port: u32,
    pub flows: Vec<TracedFlow>,
    /// What to look at, told to a person.
    pub notes: Vec<String>,
}

/// A packet that was followed through the rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TracedPacket {
    pub packet: u32,
    /// Address and port.
    pub from: String,
    pub to: String,
    /// It goes to whom the flow was asked of, and not back.
    pub there: bool,
    pub fate: Fate,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wan: Option<String>,
    /// What in the site file decided; absent where its flow was known, and nothing was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// It fared otherwise than `explain` says.
    pub differs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    Forwarded,
    /// Taken by the router itself.
    Taken,
    /// Sent by the router itself.
    Sent,
    Dropped,
    /// No line is usable.
    Unreachable,
    /// No rule dropped it and none let it pass: routing had no way for it, or it was followed no further.
    Unknown,
}

/// A flow as conntrack has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TracedFlow {
    pub from: String,
    pub to: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wan: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// As the far end sees who opened it, behind NAT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_as: Option<String>,
    /// What the fast path forwarded of it, before any rule: so far, and in the report while it was followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_path: Option<FastShare>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FastShare {
    /// A port, with its tag if there is one: `lan1.30`.
    pub in_port: String,
    pub out_port: String,
    pub packets_there: u64,
    pub packets_back: u64,
    pub bytes_there: u64,
    pub bytes_back: u64,
}

/// The packets of a trace so far.
#[derive(Debug)]
pub struct Story {
    config: Arc<Config>,
    decision: Decision,
    wanted: Wanted,
    /// Packets to tell of.
    most: usize,
    packets: Vec<Packet>,
    /// Places in `packets`, by what the kernel tells them apart by.
    under_way: BTreeMap<u32, usize>,
    at_port: u32,
    missed: bool,
}

#[derive(Debug)]
struct Packet {
    headers: Headers,
    there: bool,
    explanation: Explanation,
    fate: Fate,
    policy: Option<String>,
    wan: Option<String>,
    /// The rules judged it by the site file, and so.
    judged: Option<bool>,
    /// It has met nothing but the rules that come before conntrack.
    early: bool,
    /// It is about to leave by another line than that of its flow.
    astray: bool,
    /// Told with the first rule of each hook only.
    out_link: Option<IfName>,
}

impl Story {
    pub fn new(config: Arc<Config>, decision: Decision, wanted: Wanted, most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self {
            config,
            decision,
            wanted,
            most,
            packets: Vec::new(),
            under_way: BTreeMap::new(),
            at_port: 0,
            missed: false,
        }
    }

    /// As many packets have come as were asked for; the last may still be under way.
    pub fn is_full(&self) -> bool {
        self.packets.len() >= self.most
    }

    /// The kernel had more to tell than could be held.
    pub fn missed(&mut self) {
        self.missed = true;
    }

    pub fn met(&mut self, met: &Met, now: SystemTime) -> Option<Step> {
        let (text, rule) = match &met.what {
            What::Begin { placed, headers } => (self.begin(met, *placed, headers.as_ref()?)?, None),
            What::Rule(rule) => (self.rule(met, rule)?, Some(rule)),
        };
        let place = self.under_way.get(&met.packet)?;
        let chain = rule.map(|rule| match &rule.elsewhere {
            Some(table) => format!("{table} {}", rule.chain),
            None => rule.chain.clone(),
        });
        let handle = rule.and_then(|rule| rule.handle);
        Some(Step { time: time(now), packet: Some(numbered(*place)), text, chain, handle })
    }

    /// Of the log: a packet of it may have been dropped before any rule.
    pub fn denied(&mut self, denied: &Denied) -> Option<Step> {
        let ours = self.wanted.holds(denied.from.address, denied.to.address, denied.transport.protocol());
        if !denied.at_port || !ours {
            return None;
        }
        self.at_port += 1;
        let ends = ends(
            &self.config,
            &Headers { source: denied.from.address, destination: denied.to.address, transport: denied.transport },
        );
        let text = format!("{ends}: dropped at its port, before any rule: {}", denied.reason);
        Some(Step { time: denied.time.clone(), packet: None, text, chain: None, handle: None })
    }

    fn begin(&mut self, met: &Met, placed: bool, headers: &Headers) -> Option<String> {
        let under_way = self.under_way.get(&met.packet).and_then(|place| self.packets.get(*place));
        if placed && under_way.is_some_and(|packet| packet.early && !packet.there) {
            return None;
        }
        self.under_way.remove(&met.packet);
        if self.is_full() {
            return None;
        }
        let zone = match &met.in_link {
            Some(link) => zone_of(&self.config, link),
            None => Some(Zone::Router),
        };
        let question = Question {
            source: headers.source,
            destination: headers.destination,
            protocol: headers.transport.protocol(),
            from: zone,
        };
        let there = !placed && (headers.source, headers.destination) == (self.wanted.source, self.wanted.destination);
        self.under_way.insert(met.packet, self.packets.len());
        self.packets.push(Packet {
            headers: headers.clone(),
            there,
            explanation: explain(&self.config, &self.decision, &question),
            fate: if met.in_link.is_some() { Fate::Unknown } else { Fate::Sent },
            policy: None,
            wan: None,
            judged: None,
            early: !placed,
            astray: false,
            out_link: None,
        });
        let ends = ends(&self.config, headers);
        Some(match &met.in_link {
            Some(link) => format!("{ends} comes in by {}", named(&self.config, link)),
            None => format!("{ends} is sent by the router itself"),
        })
    }

    fn rule(&mut self, met: &Met, rule: &Rule) -> Option<String> {
        let place = self.under_way.get(&met.packet)?;
        let packet = self.packets.get_mut(*place)?;
        let dropped = rule.verdict == Verdict::Drop;
        packet.out_link = met.out_link.clone().or(packet.out_link.take());
        if let Some(table) = &rule.elsewhere {
            // What the tables of others let pass goes on.
            packet.fate = if dropped { Fate::Dropped } else { packet.fate };
            return dropped.then(|| {
                let handle = rule.handle.map(|handle| format!(", rule {handle}")).unwrap_or_default();
                format!("dropped by chain {}{handle} of the table {table}, which is not routerd's", rule.chain)
            });
        }
        packet.early &= is_early(&rule.chain);
        if dropped { Some(packet.dropped(&self.config, &rule.chain)) } else { packet.goes(&self.config, met, rule) }
    }

    /// What came of it. `before` are the flows as it began, `after` as it ended.
    pub fn report(&self, before: &[Followed], after: &[Followed], told: &Circumstances<'_>) -> TraceReport {
        let packets: Vec<_> = self.packets.iter().enumerate().map(|(place, packet)| packet.traced(place)).collect();
        let flows: Vec<_> = after
            .iter()
            .map(|flow| (flow, before.iter().find(|other| other.tracked.id == flow.tracked.id)))
            .filter(|(flow, earlier)| is_alive(flow) || earlier.is_none_or(is_alive))
            .map(|(flow, earlier)| traced(&self.config, flow, earlier.and_then(|earlier| earlier.cached), told.port))
            .collect();
        let mut report = TraceReport { packets, at_port: self.at_port, flows, notes: Vec::new() };
        report.notes = self.notes(&report, told);
        report
    }

    fn notes(&self, report: &TraceReport, told: &Circumstances<'_>) -> Vec<String> {
        let mut notes = Vec::new();
        let shares = || report.flows.iter().filter_map(|flow| flow.fast_path.as_ref());
        let (there, back) =
            shares().fold((0, 0), |sum, share| (sum.0 + share.packets_there, sum.1 + share.packets_back));
        if there + back > 0 {
            let more = if told.through_rules { "" } else { "; `--through-rules` shows what the rules make of them" };
            notes.push(format!(
                "the fast path forwarded {} there and {back} back, which no rule saw{more}",
                counted(there, "packet")
            ));
        }
        if report.packets.is_empty() && self.at_port == 0 && there + back == 0 {
            notes.push(self.none_came(told.span));
        }
        let passed = |packet: &&TracedPacket| matches!(packet.fate, Fate::Forwarded | Fate::Taken | Fate::Sent);
        let there = || report.packets.iter().filter(|packet| packet.there);
        let answered = back > 0 || report.packets.iter().any(|packet| !packet.there);
        if !answered && there().next().is_some() && there().all(|packet| passed(&packet)) && !self.is_full() {
            notes.push(format!(
                "nothing came back from {}: is it there, does it answer, and does it know the way back?",
                self.wanted.destination
            ));
        }
        for packet in report.packets.iter().filter(|packet| packet.differs) {
            notes.push(format!(
                "packet {} fared otherwise than `explain` says: is another configuration taking effect?",
                packet.packet
            ));
        }
        if told.changed {
            notes.push("another configuration took effect meanwhile: the names are those of the one before".to_owned());
        }
        if self.missed {
            notes.push("the kernel told more than could be held: some of it is missing here".to_owned());
        }
        notes
    }

    fn none_came(&self, span: Duration) -> String {
        let Wanted { source, destination, .. } = self.wanted;
        let span = humantime::format_duration(span);
        let zone = self.config.vlan_of(source);
        let destination_zone = Zone::of(&self.config, destination);
        match zone {
            Some(vlan) if destination_zone == Zone::Vlan(vlan.name.clone()) => format!(
                "no packet of it came in {span}: both ends are in {}, so it is bridged and meets no rule",
                vlan.name
            ),
            Some(vlan) if Zone::of(&self.config, source) != Zone::Router => {
                let own = vlan.addresses.iter().find(|net| net.addr().is_ipv4() == source.is_ipv4());
                let gateway = own.map(|net| format!(" by way of {}", net.addr())).unwrap_or_default();
                format!(
                    "no packet of it came in {span}: does {source} send it{gateway}? `ip neigh show {source} dev {}` \
                     tells whether the router has heard of it",
                    vlan.interface
                )
            }
            Some(_) | None => format!("no packet of it came in {span}: is anybody sending it?"),
        }
    }
}

/// How a trace went beside its packets.
pub struct Circumstances<'a> {
    pub span: Duration,
    pub through_rules: bool,
    /// Another config took effect.
    pub changed: bool,
    /// The name of a port of the fast path.
    pub port: &'a dyn Fn(u32) -> Option<IfName>,
}

impl fmt::Debug for Circumstances<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circumstances").field("span", &self.span).finish_non_exhaustive()
    }
}

impl Packet {
    fn traced(&self, place: usize) -> TracedPacket {
        TracedPacket {
            packet: numbered(place),
            from: source(&self.headers),
            to: destination(&self.headers),
            there: self.there,
            fate: self.fate,
            policy: self.policy.clone(),
            wan: self.wan.clone(),
            because: self.judged.map(|_| self.explanation.because.clone()),
            differs: self.judged.is_some_and(|allowed| allowed != self.explanation.allowed),
        }
    }

    /// It ends in a chain of ours.
    fn dropped(&mut self, config: &Config, chain: &str) -> String {
        self.fate = Fate::Dropped;
        let because = &self.explanation.because;
        match chain {
            "deny" if self.astray => {
                let out =
                    self.out_link.as_ref().map_or_else(String::new, |link| format!(" by {}", named(config, link)));
                let wan = self.wan.as_deref().unwrap_or("none");
                format!("dropped: it would leave{out}, and the line of its flow is {wan}")
            }
            "deny" | "deny_in" | "deny_spoof" => {
                self.judged = Some(false);
                if self.explanation.allowed {
                    format!("dropped in chain {chain}, although the file in force allows it: {because}")
                } else {
                    format!("denied: {because}")
                }
            }
            "deny_invalid" => "dropped: it belongs to no connection the router knows".to_owned(),
            "dead_flow" => "dropped: its flow ended with its line".to_owned(),
            "leave" => "answered with a reset: the middle of a connection nobody knows".to_owned(),
            _ => format!("dropped in chain {chain}"),
        }
    }

    /// Most of what a packet meets decides nothing that a person wants to know.
    fn goes(&mut self, config: &Config, met: &Met, rule: &Rule) -> Option<String> {
        let because = &self.explanation.because;
        let accepted = rule.verdict == Verdict::Accept;
        let out_link = self.out_link.clone();
        let out = || out_link.as_ref().map(|link| format!("; out by {}", named(config, link))).unwrap_or_default();
        match rule.chain.as_str() {
            "pass" if accepted => {
                (self.fate, self.judged) = (Fate::Forwarded, Some(true));
                return Some(format!("allowed: {because}{}", out()));
            }
            "audit" if accepted => {
                self.fate = Fate::Forwarded;
                return Some(format!("let pass for an audit, although denied: {because}{}", out()));
            }
            "audited_flow" if accepted => {
                self.fate = Fate::Forwarded;
                return Some(format!("let pass: its flow began in an audit{}", out()));
            }
            "hook_forward" if accepted => {
                self.fate = Fate::Forwarded;
                return Some(format!("forwarded: its flow is known{}", out()));
            }
            "hook_input" if accepted => {
                self.fate = Fate::Taken;
                return Some("taken by the router: its flow is known".to_owned());
            }
            "ipv6_basics" | "wan_basics" if accepted => {
                (self.fate, self.judged) = (Fate::Taken, Some(true));
                return Some(format!("taken by the router: {because}"));
            }
            "hook_steer" | "hook_own" if accepted => {
                let wan = marked(config, met.mark)?;
                let text = format!("keeps to {wan}, the line of its flow");
                self.wan = Some(wan);
                return Some(text);
            }
            _ => {}
        }
        let (kind, number) = rule.chain.rsplit_once('_')?;
        let line = || wan(config, number.parse().ok().and_then(WanId::new)?);
        let to = match &rule.verdict {
            Verdict::Chain(to) => to.as_str(),
            Verdict::Accept | Verdict::Drop | Verdict::Goes => "",
        };
        match kind {
            "in" | "win" if accepted => {
                (self.fate, self.judged) = (Fate::Taken, Some(true));
                Some(format!("taken by the router: {because}"))
            }
            "p" => {
                let policy = config.policy(number.parse().ok().map(PolicyId)?)?.name.to_string();
                let slot = Slot::from_chain_name(to)?;
                let way = self.explanation.way.as_ref().and_then(|way| way.rule.as_ref());
                let rule = way.map(|(name, line)| format!("steering `{name}` ({line}): ")).unwrap_or_default();
                let text = match slot {
                    Slot::Wan(id) => {
                        self.wan = wan(config, id);
                        format!(
                            "{rule}policy {policy} chooses {}",
                            self.wan.as_deref().unwrap_or("a line that is gone")
                        )
                    }
                    Slot::Unreachable => {
                        self.fate = Fate::Unreachable;
                        format!("{rule}policy {policy} has no usable line: answered unreachable")
                    }
                    Slot::Blackhole => {
                        self.fate = Fate::Dropped;
                        format!("{rule}policy {policy} has no usable line: dropped")
                    }
                };
                self.policy = Some(policy);
                Some(text)
            }
            "out" if to == "deny" => {
                self.astray = true;
                self.wan = self.wan.take().or_else(|| marked(config, met.mark));
                None
            }
            "nat" if accepted => {
                let line = line()?;
                let lines = self.explanation.way.iter().flat_map(|way| &way.lines);
                let leaves_as = lines.into_iter().find(|share| share.wan.as_str() == line);
                let text = match leaves_as {
                    Some(share) => format!("NAT of {line}: leaves as {}", share.leaves_as),
                    None => format!("NAT of {line}"),
                };
                self.wan = Some(line);
                Some(text)
            }
            _ => None,
        }
    }
}

/// What there is of flows before any packet of them is followed.
pub fn flows(config: &Config, flows: &[Followed], port: &dyn Fn(u32) -> Option<IfName>) -> Vec<TracedFlow> {
    flows.iter().filter(|flow| is_alive(flow)).map(|flow| traced(config, flow, None, port)).collect()
}

/// Conntrack remembers what has been closed for minutes.
fn is_alive(flow: &Followed) -> bool {
    flow.tracked.tcp_state.is_none_or(|state| state <= TCP_ESTABLISHED)
}

/// With what the fast path forwarded beyond what it had `before`.
fn traced(
    config: &Config,
    flow: &Followed,
    before: Option<[ebpf::abi::Flow; 2]>,
    port: &dyn Fn(u32) -> Option<IfName>,
) -> TracedFlow {
    let (there, back) = (&flow.tracked.original, &flow.tracked.reply);
    let class = flow.tracked.class();
    let end = |address, port: u16| end(address, Some(port).filter(|port| *port > 0));
    let translated = (back.destination, back.destination_port) != (there.source, there.source_port);
    let at = |index: u32, tag: u16| {
        let name = port(index).map_or_else(|| format!("port {index}"), |name| name.to_string());
        if tag == 0 { name } else { format!("{name}.{tag}") }
    };
    let fast_path = flow.cached.map(|now| {
        let since = |way: usize| {
            // Written anew it counts from nothing.
            let earlier = before.map(|before| before[way]).filter(|before| before.packets <= now[way].packets);
            let (packets, bytes) = earlier.map_or((0, 0), |earlier| (earlier.packets, earlier.bytes));
            (now[way].packets - packets, now[way].bytes.saturating_sub(bytes))
        };
        let ((packets_there, bytes_there), (packets_back, bytes_back)) = (since(0), since(1));
        FastShare {
            in_port: at(now[0].in_port, now[0].in_vlan),
            out_port: at(now[0].out_port, now[0].out_vlan),
            packets_there,
            packets_back,
            bytes_there,
            bytes_back,
        }
    });
    TracedFlow {
        from: end(there.source, there.source_port),
        to: end(there.destination, there.destination_port),
        wan: class.and_then(|class| wan(config, class.wan)),
        policy: class.and_then(|class| Some(config.policy(class.policy?)?.name.to_string())),
        known_as: translated.then(|| end(back.destination, back.destination_port)),
        fast_path,
    }
}

fn is_early(chain: &str) -> bool {
    matches!(chain, "hook_raw" | "hook_own_raw" | "from_vlan" | "from_wan" | "deny_spoof") || chain.starts_with("home_")
}

fn zone_of(config: &Config, link: &IfName) -> Option<Zone> {
    let vlan = config.vlans.values().find(|vlan| vlan.interface == *link).map(|vlan| Zone::Vlan(vlan.name.clone()));
    let wan = || config.wans.values().find(|wan| wan.interface == *link).map(|wan| Zone::Wan(wan.name.clone()));
    vlan.or_else(wan).or_else(|| (link.as_str() == "lo").then_some(Zone::Router))
}

/// `vlan10 (office)`
fn named(config: &Config, link: &IfName) -> String {
    match zone_behind(config, link) {
        zone if zone == link.as_str() => zone,
        zone => format!("{link} ({zone})"),
    }
}

fn wan(config: &Config, id: WanId) -> Option<String> {
    config.wan(id).map(|wan| wan.name.to_string())
}

fn marked(config: &Config, mark: Mark) -> Option<String> {
    let [id, ..] = (mark.0 & Mark::WAN_MASK).to_be_bytes();
    wan(config, WanId::new(id)?)
}

/// `tcp desk:40000 -> 192.0.2.1:443`
fn ends(config: &Config, headers: &Headers) -> String {
    let what = match headers.transport {
        Transport::Tcp { .. } => "tcp".to_owned(),
        Transport::Udp { .. } => "udp".to_owned(),
        Transport::Icmp { kind: 0, .. } | Transport::Icmpv6 { kind: 129, .. } => "answer to a ping".to_owned(),
        Transport::Icmp { .. } | Transport::Icmpv6 { .. } | Transport::Other { .. } => headers.transport.service(),
    };
    let ports = headers.transport.ports();
    let end = |address, port: Option<u16>| match (config.host_at(address), port) {
        (Some(host), Some(port)) => format!("{}:{port}", host.name),
        (Some(host), None) => host.name.to_string(),
        (None, port) => end(address, port),
    };
    let from = end(headers.source, ports.map(|ports| ports.0));
    let to = end(headers.destination, ports.map(|ports| ports.1));
    format!("{what} {from} -> {to}")
}

fn source(headers: &Headers) -> String {
    end(headers.source, headers.transport.ports().map(|ports| ports.0))
}

fn destination(headers: &Headers) -> String {
    end(headers.destination, headers.transport.ports().map(|ports| ports.1))
}

fn end(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
        (address, Some(port)) => format!("{address}:{port}"),
        (address, None) => address.to_string(),
    }
}

/// Of a packet, for people.
fn numbered(place: usize) -> u32 {
    u32::try_from(place + 1).unwrap_or(u32::MAX)
}

fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

impl fmt::Display for TraceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Following(following) => following.fmt(f),
            Self::Step(step) => step.fmt(f),
            Self::Report(report) => report.fmt(f),
        }
    }
}

impl fmt::Display for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, service, milliseconds, packets, explained, flows, through_rules } = self;
        let service = service.as_ref().map(|service| format!(" {service}")).unwrap_or_default();
        let span = humantime::format_duration(Duration::from_millis(*milliseconds));
        write!(f, "following {source} -> {destination}{service}, both ways, for {span} or {packets} packets")?;
        if let Some(explained) = explained {
            write!(f, "\nexplain says: {explained}")?;
        }
        for flow in flows {
            write!(f, "\nflow {flow}")?;
            if let Some(share) = &flow.fast_path {
                write!(f, "\n  in the fast path: {share} so far")?;
            }
        }
        let cached = flows.iter().filter(|flow| flow.fast_path.is_some()).count();
        match (cached, through_rules) {
            (0, _) => Ok(()),
            (_, true) => f.write_str(
                "\ntaken out of the fast path, so that the rules meet them; they come back by themselves within some minutes",
            ),
            (_, false) => f.write_str("\nof what the fast path forwards the rules see nothing: it is counted below"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.get(11..23).unwrap_or(&self.time);
        match self.packet {
            Some(packet) => write!(f, "{time} #{packet:<3} {}", self.text),
            None => write!(f, "{time} -    {}", self.text),
        }
    }
}

impl fmt::Display for TraceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |fate: Fate| self.packets.iter().filter(|packet| packet.fate == fate).count();
        write!(f, "{} followed", counted(self.packets.len() as u64, "packet"))?;
        let mut gap = ": ";
        for (fate, word) in [
            (Fate::Forwarded, "forwarded"),
            (Fate::Taken, "taken by the router"),
            (Fate::Sent, "sent by the router"),
            (Fate::Dropped, "dropped"),
            (Fate::Unreachable, "answered unreachable"),
            (Fate::Unknown, "not seen beyond routing"),
        ] {
            if of(fate) > 0 {
                write!(f, "{gap}{} {word}", of(fate))?;
                gap = ", ";
            }
        }
        if self.at_port > 0 {
            write!(f, "; {} dropped at the port", self.at_port)?;
        }
        for flow in &self.flows {
            write!(f, "\nflow {flow}")?;
            if let Some(share) = &flow.fast_path {
                write!(f, "\n  in the fast path: {share} in this time")?;
            }
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n{note}"))
    }
}

impl fmt::Display for TracedFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)?;
        match (&self.wan, &self.policy) {
            (Some(wan), Some(policy)) => write!(f, " by {wan} (policy {policy})")?,
            (Some(wan), None) => write!(f, " by {wan}")?,
            (None, _) => {}
        }
        self.known_as.as_ref().map_or(Ok(()), |known| write!(f, ", known outside as {known}"))
    }
}

impl fmt::Display for FastShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { in_port, out_port, packets_there, packets_back, bytes_there, bytes_back } = self;
        write!(
            f,
            "in by {in_port}, out by {out_port}: {} ({}) there, {packets_back} ({bytes_back}) back",
            counted(*packets_there, "packet"),
            counted(*bytes_there, "byte")
        )
    }
}

/// `TCP_CONNTRACK_ESTABLISHED`: what comes after is the end.
const TCP_ESTABLISHED: u8 = 3;

#[cfg(test)]
mod tests {
    use config::model::Internet;
    use config::units::Family;
    use ebpf::abi;
    use mwan::matrix::Protocol;
    use mwan::state::{BUCKETS, BucketKey, Buckets};

    use super::*;
    use crate::event_log::Kind;
    use crate::fixture;
    use crate::flows::Tracked;
    use crate::kernel::Tuple;

    #[test]
    fn a_packet_to_the_internet_is_told_from_link_to_nat() {
        let mut story = story("192.0.2.1", 443);
        let there = headers("10.10.50.7", 40_000, "192.0.2.1", 443);
        let told = tell(
            &mut story,
            &[
                begin(7, "vlan50", there),
                rule(7, "hook_raw", Verdict::Chain("from_vlan".to_owned()), None),
                rule(7, "home_50", Verdict::Accept, None),
                rule(7, "steer_0", Verdict::Chain("p_1".to_owned()), None),
                rule(7, "p_1", Verdict::Chain("go_2".to_owned()), None),
                rule(7, "out_2", Verdict::Chain("to_internet".to_owned()), Some("wan2")),
                rule(7, "pass", Verdict::Accept, None),
                rule(7, "hook_nat", Verdict::Chain("nat_2".to_owned()), Some("wan2")),
                rule(7, "nat_2", Verdict::Accept, None),
            ],
        );
        assert_eq!(
            told,
            [
                "00:00:00.000 #1   tcp dev1:40000 -> 192.0.2.1:443 comes in by vlan50 (dev)",
                "00:00:00.000 #1   policy balanced chooses wan2",
                "00:00:00.000 #1   allowed: dev may open anything to the Internet (line 12); out by wan2",
                "00:00:00.000 #1   NAT of wan2: leaves as 100.64.2.2 (masquerade)",
            ]
        );
        // The kernel gives a later packet the number of one that has gone.
        let answer = Met {
            what: What::Begin { placed: true, headers: Some(headers("192.0.2.1", 443, "100.64.2.2", 40_000)) },
            ..begin(7, "wan2", headers("192.0.2.1", 443, "100.64.2.2", 40_000))
        };
        let told = tell(&mut story, &[answer, rule(7, "hook_forward", Verdict::Accept, Some("vlan50"))]);
        assert_eq!(
            told,
            [
                "00:00:00.000 #2   tcp 192.0.2.1:443 -> 100.64.2.2:40000 comes in by wan2",
                "00:00:00.000 #2   forwarded: its flow is known; out by vlan50 (dev)",
            ]
        );
        let report = story.report(&[], &[], &circumstances());
        assert_eq!(report.to_string(), "2 packets followed: 2 forwarded");
        let first = &report.packets[0];
        assert_eq!((first.wan.as_deref(), first.policy.as_deref()), (Some("wan2"), Some("balanced")));
        assert_eq!((first.because.is_some(), report.packets[1].because.is_some()), (true, false));
    }

    #[test]
    fn a_denied_packet_is_told_its_cell_and_one_that_fares_otherwise_is_pointed_out() {
        let mut story = story("10.10.60.3", 22);
        let there = headers("10.10.50.7", 40_000, "10.10.60.3", 22);
        let told =
            tell(&mut story, &[begin(1, "vlan50", there.clone()), rule(1, "deny", Verdict::Drop, Some("vlan60"))]);
        assert_eq!(told[1], "00:00:00.000 #1   denied: cell dev -> compute: default deny, no entry for this pair");
        assert_eq!(story.report(&[], &[], &circumstances()).to_string(), "1 packet followed: 1 dropped");
        tell(&mut story, &[begin(2, "vlan50", there), rule(2, "pass", Verdict::Accept, Some("vlan60"))]);
        let report = story.report(&[], &[], &circumstances());
        assert_eq!(report.packets.iter().map(|packet| packet.differs).collect::<Vec<_>>(), [false, true]);
        assert!(report.notes[0].starts_with("packet 2 fared otherwise than `explain` says"), "{report}");
    }

    #[test]
    fn whatever_ends_a_packet_is_told() {
        let away = Rule {
            elsewhere: Some("ip filter".to_owned()),
            chain: "FORWARD".to_owned(),
            handle: Some(4),
            verdict: Verdict::Drop,
        };
        for (met, text, fate) in [
            (
                rule(1, "deny_spoof", Verdict::Drop, None),
                "dropped in chain deny_spoof, although the file",
                Fate::Dropped,
            ),
            (rule(1, "deny_invalid", Verdict::Drop, None), "dropped: it belongs to no connection", Fate::Dropped),
            (rule(1, "dead_flow", Verdict::Drop, None), "dropped: its flow ended with its line", Fate::Dropped),
            (rule(1, "leave", Verdict::Drop, None), "answered with a reset", Fate::Dropped),
            (rule(1, "hook_forward", Verdict::Drop, None), "dropped in chain hook_forward", Fate::Dropped),
            (rule(1, "audit", Verdict::Accept, None), "let pass for an audit, although denied", Fate::Forwarded),
            (rule(1, "audited_flow", Verdict::Accept, None), "let pass: its flow began in an audit", Fate::Forwarded),
            (rule(1, "hook_input", Verdict::Accept, None), "taken by the router: its flow is known", Fate::Taken),
            (rule(1, "in_50", Verdict::Accept, None), "taken by the router: ", Fate::Taken),
            (
                rule(1, "p_1", Verdict::Chain("go_unreachable".to_owned()), None),
                "policy balanced has no usable line: answered unreachable",
                Fate::Unreachable,
            ),
            (
                Met { what: What::Rule(away), ..rule(1, "", Verdict::Goes, None) },
                "dropped by chain FORWARD, rule 4 of the table ip filter, which is not routerd's",
                Fate::Dropped,
            ),
        ] {
            let mut story = story("192.0.2.1", 443);
            let there = headers("10.10.50.7", 40_000, "192.0.2.1", 443);
            let told = tell(&mut story, &[begin(1, "vlan50", there), met]);
            assert!(told[1].contains(text), "{text}: {told:?}");
            assert_eq!(story.report(&[], &[], &circumstances()).packets[0].fate, fate, "{text}");
        }
    }

    #[test]
    fn an_answer_that_is_marked_twice_is_one_packet_and_no_more_are_told_than_asked_for() {
        let mut story = story("10.10.60.3", 22);
        let back = headers("10.10.60.3", 22, "10.10.50.7", 40_000);
        let placed = What::Begin { placed: true, headers: Some(back.clone()) };
        tell(
            &mut story,
            &[
                begin(1, "vlan60", back.clone()),
                rule(1, "home_60", Verdict::Accept, None),
                Met { what: placed, ..begin(1, "vlan60", back.clone()) },
                rule(1, "hook_forward", Verdict::Accept, Some("vlan50")),
            ],
        );
        assert_eq!(story.packets.len(), 1);
        for id in 2..9 {
            tell(&mut story, &[begin(id, "vlan60", back.clone())]);
        }
        assert!(story.is_full());
        assert_eq!(story.packets.len(), 5);
        assert_eq!(tell(&mut story, &[rule(8, "pass", Verdict::Accept, None)]), Vec::<String>::new());
    }

    #[test]
    fn what_the_fast_path_forwards_and_what_is_dropped_at_the_ports_is_told() {
        let mut story = story("10.10.60.3", 22);
        let none = story.report(&[], &[], &circumstances());
        assert!(
            none.notes[0].starts_with("no packet of it came in 10s: does 10.10.50.7 send it by way of 10.10.50.1?")
        );
        let flow = |there, back| Followed {
            tracked: tracked(),
            cached: Some([there, back].map(|packets| abi::Flow {
                in_port: 3,
                in_vlan: 50,
                out_port: 4,
                packets,
                bytes: packets * 100,
                ..abi::Flow::EMPTY
            })),
        };
        let report = story.report(&[flow(7, 9)], &[flow(20, 9)], &circumstances());
        assert_eq!(
            report.to_string(),
            "0 packets followed\nflow 10.10.50.7:40000 -> 10.10.60.3:22\n  in the fast path: in by p3.50, out by p4: 13 \
             packets (1300 bytes) there, 0 (0) back in this time\nthe fast path forwarded 13 packets there and 0 back, which no \
             rule saw; `--through-rules` shows what the rules make of them"
        );
        let mut early = fixture::denied();
        assert_eq!(story.denied(&early), None, "the rules dropped it");
        early.at_port = true;
        let step = story.denied(&early).unwrap();
        assert!(step.text.starts_with("tcp dev1:1024 -> worker3:22: dropped at its port, before any rule: cell dev"));
        early.to.address = "10.10.60.4".parse().unwrap();
        assert_eq!((early.kind, story.denied(&early)), (Kind::Forward, None), "of another");
        assert_eq!(story.report(&[], &[], &circumstances()).to_string(), "0 packets followed; 1 dropped at the port");
    }

    fn story(destination: &str, port: u16) -> Story {
        let mut config = fixture::config();
        config.vlans.values_mut().filter(|vlan| vlan.name.as_str() == "dev").for_each(|vlan| {
            vlan.internet = Internet::Any;
        });
        let line = Slot::Wan(WanId::new(2).unwrap());
        let key = BucketKey { policy: "balanced".parse().unwrap(), family: Family::V4 };
        let buckets = BTreeMap::from([(key, Buckets(vec![line; BUCKETS]))]);
        let decision = Decision { buckets, ..Decision::default() };
        let wanted = Wanted {
            source: "10.10.50.7".parse().unwrap(),
            destination: destination.parse().unwrap(),
            service: Some(Protocol::Tcp { source: 0, destination: port }),
        };
        Story::new(Arc::new(config), decision, wanted, 5)
    }

    fn tell(story: &mut Story, met: &[Met]) -> Vec<String> {
        met.iter().filter_map(|met| story.met(met, SystemTime::UNIX_EPOCH)).map(|step| step.to_string()).collect()
    }

    fn begin(packet: u32, link: &str, headers: Headers) -> Met {
        let what = What::Begin { placed: false, headers: Some(headers) };
        Met { packet, what, in_link: link.parse().ok(), out_link: None, mark: Mark(0) }
    }

    fn rule(packet: u32, chain: &str, verdict: Verdict, out: Option<&str>) -> Met {
        let rule = Rule { elsewhere: None, chain: chain.to_owned(), handle: Some(3), verdict };
        let out_link = out.and_then(|out| out.parse().ok());
        Met { packet, what: What::Rule(rule), in_link: None, out_link, mark: Mark(0) }
    }

    fn headers(source: &str, from: u16, destination: &str, to: u16) -> Headers {
        Headers {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            transport: Transport::Tcp { source: from, destination: to },
        }
    }

    fn tracked() -> Tracked {
        let there = Tuple {
            source: "10.10.50.7".parse().unwrap(),
            destination: "10.10.60.3".parse().unwrap(),
            protocol: 6,
            source_port: 40_000,
            destination_port: 22,
        };
        let back = Tuple {
            source: there.destination,
            destination: there.source,
            source_port: 22,
            destination_port: 40_000,
            ..there
        };
        Tracked {
            id: 1,
            original: there,
            reply: back,
            mark: Mark(0),
            status: 0,
            tcp_state: None,
            helped: false,
            zoned: false,
        }
    }

    fn circumstances() -> Circumstances<'static> {
        Circumstances {
            span: Duration::from_secs(10),
            through_rules: false,
            changed: false,
            port: &|index| format!("p{index}").parse().ok(),
        }
    }
}
