//! Real packets of one flow on their way through the rules: a table of its own marks them (`meta nftrace`), and the
//! kernel tells each rule they meet, ours and those of others.
//!
//! The table belongs to a socket (`NFT_TABLE_F_OWNER`): the kernel takes it away with the socket, so that it ends with
//! the trace, with a client that goes away, and with a daemon that is killed. Nobody else can change it meanwhile. It
//! judges nothing: its chains accept, and what they mark goes the way it would have gone.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use config::units::{Family, IfName, Mark};
use ebpf::{MapError, Maps, abi};
use mwan::matrix::Protocol;
use mwan::state::TABLE;
use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use super::elements::{NFGENMSG, message, transaction};
use super::fast_path::Watcher;
use super::foreign::family_word;
use super::netlink::{
    Attributes, Heard, Listener, Message, NETLINK_NETFILTER, NLM_F_CREATE, NLM_F_EXCL, Received, Socket, errno,
};
use super::{Tuple, aside, conntrack};
use crate::event_log::packet::{self, Headers};
use crate::flows::{Cache, Key, Tracked};

/// Follows packets, one flow at a time. Clones share that.
#[derive(Debug, Clone)]
pub struct Tracer {
    path: Watcher,
    one: Arc<Mutex<()>>,
}

/// The packets to follow: of the direction in which the flow is opened, and their answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// `None`: whatever they say to each other. Of its ports only the destination's counts.
    pub service: Option<Protocol>,
}

/// What a packet met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// Tells apart the packets that are on their way at one moment; later ones may have it again.
    pub packet: u32,
    pub what: What,
    pub in_link: Option<IfName>,
    pub out_link: Option<IfName>,
    /// Of the packet, after the rule.
    pub mark: Mark,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Our mark: put on before anything else, or, `placed`, on an answer when conntrack has said whose it is.
    Begin { placed: bool, headers: Option<Headers> },
    /// A rule that holds, or the end of a chain.
    Rule(Rule),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Of a table that is not ours: its family and name.
    pub elsewhere: Option<String>,
    pub chain: String,
    /// The kernel's number of the rule, as `nft -a list` shows it.
    pub handle: Option<u64>,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    /// Jump or goto.
    Chain(String),
    /// It decides nothing.
    Goes,
}

/// What a trace tells next.
#[derive(Debug)]
pub enum Told {
    Met(Vec<Met>),
    /// There was more than could be held.
    Missed,
}

/// A flow of the kind wanted, and what the fast path has of it: the entries there and back.
#[derive(Debug, Clone, Copy)]
pub struct Followed {
    pub tracked: Tracked,
    pub cached: Option<[abi::Flow; 2]>,
}

/// Leave to take flows out of the fast path. Dropped, it has them put in again.
#[derive(Debug)]
pub struct Taking(Watcher);

/// A trace under way. Dropping it takes its table away.
#[derive(Debug)]
pub struct Trace {
    listener: Listener,
    /// Whom the table belongs to, and that there is no other: another may begin when the table is gone.
    held: Option<(Socket, OwnedMutexGuard<()>)>,
}

impl Tracer {
    pub fn new(path: Watcher) -> Self {
        Self { path, one: Arc::default() }
    }

    /// Marks up to so many packets of each direction. `None`: another trace is under way.
    pub async fn begin(&self, wanted: Wanted, packets: u32) -> io::Result<Option<Trace>> {
        let Ok(one) = timeout(PATIENCE, Arc::clone(&self.one).lock_owned()).await else { return Ok(None) };
        let listener = Listener::open(NETLINK_NETFILTER, &[NFNLGRP_NFTRACE], BUFFER)?;
        // The kernel waits for all packets under way before rules take effect.
        let owner = aside(move || {
            let mut socket = Socket::open(NETLINK_NETFILTER)?;
            socket.batch(transaction(), table(&wanted, packets)).map_err(|error| match errno(&error) {
                Some(code) if code == Errno::EEXIST as i32 => io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("there is a table inet {TRACE_TABLE} that is not routerd's: `nft delete table inet {TRACE_TABLE}`"),
                ),
                _ => error,
            })?;
            Ok(socket)
        });
        Ok(Some(Trace { listener, held: Some((owner.await?, one)) }))
    }

    /// The flows that conntrack has of this kind, at most [`MOST_FLOWS`].
    pub async fn flows(&self, wanted: Wanted) -> io::Result<Vec<Followed>> {
        let pins = self.path.pins();
        aside(move || {
            let mut flows =
                conntrack::tracked_where(&mut Socket::open(NETLINK_NETFILTER)?, |flow| wanted.is(&flow.original))?;
            flows.truncate(MOST_FLOWS);
            let maps = pins.map(|pins| Maps::open(&pins)).transpose().map_err(io::Error::other)?;
            let cached = |flow: &Tracked| match &maps {
                Some(maps) => entries(maps, flow),
                None => Ok(None),
            };
            flows.into_iter().map(|tracked| Ok(Followed { cached: cached(&tracked)?, tracked })).collect()
        })
        .await
    }

    pub fn taking(&self) -> Taking {
        Taking(self.path.clone())
    }

    /// The name of a port of the fast path.
    pub fn port(&self, index: u32) -> Option<IfName> {
        self.path.port(index)
    }
}

impl Taking {
    /// Takes the entries of these flows out of the fast path: their packets go through the rules. The feeder may put
    /// them in again at any time.
    pub async fn call_back(&self, flows: Vec<Tracked>) -> io::Result<()> {
        let Some(pins) = self.0.pins() else { return Ok(()) };
        aside(move || {
            let mut maps = Maps::open(&pins).map_err(io::Error::other)?;
            let keys = flows.iter().flat_map(|flow| [&flow.original, &flow.reply]).filter_map(Key::of);
            for key in keys {
                if Cache::get(&maps, &key).map_err(io::Error::other)?.is_some() {
                    Cache::remove(&mut maps, &key).map_err(io::Error::other)?;
                }
            }
            Ok(())
        })
        .await
    }
}

impl Drop for Taking {
    /// Untold, the feeder would miss them after ten seconds and look for them after a minute.
    fn drop(&mut self) {
        self.0.tell_taken();
    }
}

impl Trace {
    /// Cancelling it loses nothing.
    pub async fn next(&self) -> io::Result<Told> {
        Ok(match self.listener.next().await? {
            Heard::Messages(messages) => Told::Met(messages.iter().filter_map(met).collect()),
            Heard::Overrun => Told::Missed,
        })
    }

    /// Returns when the table is gone.
    pub async fn end(mut self) -> io::Result<()> {
        let held = self.held.take();
        aside(move || {
            drop(held);
            Ok(())
        })
        .await
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // The kernel waits for all packets under way, and the router should not.
        if let (Some(held), Ok(runtime)) = (self.held.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(held));
        }
    }
}

impl Wanted {
    /// Whether a flow was opened so.
    pub fn is(&self, opened: &Tuple) -> bool {
        (opened.source, opened.destination) == (self.source, self.destination)
            && self.number().is_none_or(|number| number == opened.protocol)
            && self.port().is_none_or(|port| port == opened.destination_port)
    }

    /// Whether a packet with these headers opens one or goes on with it.
    pub fn holds(&self, source: IpAddr, destination: IpAddr, protocol: Protocol) -> bool {
        let port = match protocol {
            Protocol::Tcp { destination, .. } | Protocol::Udp { destination, .. } => Some(destination),
            Protocol::Ping | Protocol::Other(_) => None,
        };
        (source, destination) == (self.source, self.destination)
            && self.number().is_none_or(|own| own == number(source, protocol))
            && self.port().is_none_or(|own| port == Some(own))
    }

    fn number(&self) -> Option<u8> {
        self.service.map(|service| number(self.source, service))
    }

    fn port(&self) -> Option<u16> {
        match self.service? {
            Protocol::Tcp { destination, .. } | Protocol::Udp { destination, .. } => Some(destination),
            Protocol::Ping | Protocol::Other(_) => None,
        }
    }

    /// The headers of a packet: as it was sent, or with `back` of an answer that no NAT has touched.
    fn by_headers(&self, back: bool) -> Vec<Expression> {
        let (source, destination) =
            if back { (self.destination, self.source) } else { (self.source, self.destination) };
        let offsets = match Family::of(source) {
            Family::V4 => [12, 16],
            Family::V6 => [8, 24],
        };
        let mut matched = self.family();
        for (offset, address) in offsets.into_iter().zip([source, destination]) {
            let address = bytes(address);
            matched.push(Expression::Payload { base: NETWORK, offset, length: address.len() });
            matched.push(Expression::Is(address));
        }
        matched.extend(self.protocol());
        if let Some(port) = self.port() {
            matched.push(Expression::Payload { base: TRANSPORT, offset: if back { 0 } else { 2 }, length: 2 });
            matched.push(Expression::Is(port.to_be_bytes().to_vec()));
        }
        if self.service == Some(Protocol::Ping) {
            let kind = match (Family::of(source), back) {
                (Family::V4, false) => 8,
                (Family::V4, true) => 0,
                (Family::V6, false) => 128,
                (Family::V6, true) => 129,
            };
            matched.push(Expression::Payload { base: TRANSPORT, offset: 0, length: 1 });
            matched.push(Expression::Is(vec![kind]));
        }
        matched
    }

    /// An answer, by the flow that conntrack says it is of: NAT has hidden who opened that.
    fn by_flow(&self) -> Vec<Expression> {
        let keys = match Family::of(self.source) {
            Family::V4 => [CT_SOURCE_IP, CT_DESTINATION_IP],
            Family::V6 => [CT_SOURCE_IP6, CT_DESTINATION_IP6],
        };
        let mut matched = self.family();
        matched.extend([Expression::Conntrack { key: CT_DIRECTION, of: None }, Expression::Is(vec![REPLY])]);
        for (key, address) in keys.into_iter().zip([self.source, self.destination]) {
            matched.extend([Expression::Conntrack { key, of: Some(ORIGINAL) }, Expression::Is(bytes(address))]);
        }
        matched.extend(self.protocol());
        if let Some(port) = self.port() {
            matched.push(Expression::Conntrack { key: CT_DESTINATION_PORT, of: Some(ORIGINAL) });
            matched.push(Expression::Is(port.to_be_bytes().to_vec()));
        }
        matched
    }

    fn family(&self) -> Vec<Expression> {
        vec![Expression::Meta(META_NFPROTO), Expression::Is(vec![super::netlink::af(Family::of(self.source))])]
    }

    fn protocol(&self) -> Vec<Expression> {
        let number = self.number().map(|number| [Expression::Meta(META_L4PROTO), Expression::Is(vec![number])]);
        number.into_iter().flatten().collect()
    }
}

fn number(source: IpAddr, protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp { .. } => 6,
        Protocol::Udp { .. } => 17,
        Protocol::Ping if source.is_ipv4() => 1,
        Protocol::Ping => 58,
        Protocol::Other(number) => number,
    }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What the fast path has of a flow, where it forwards both ways.
fn entries(maps: &Maps, flow: &Tracked) -> io::Result<Option<[abi::Flow; 2]>> {
    let entry = |tuple: &Tuple| {
        let Some(key) = Key::of(tuple) else { return Ok(None) };
        let Some(entry) = Cache::get(maps, &key)? else { return Ok(None) };
        // Of a generation that was called back: the programs pass it over.
        Ok((maps.generation(entry.slot)? == entry.generation).then_some(entry))
    };
    let both = || Ok::<_, MapError>((entry(&flow.original)?, entry(&flow.reply)?));
    let (there, back) = both().map_err(io::Error::other)?;
    Ok(there.zip(back).map(|(there, back)| [there, back]))
}

/// One step of a rule; values pass through one register.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    Meta(u32),
    Conntrack {
        key: u32,
        of: Option<u8>,
    },
    Payload {
        base: u32,
        offset: u32,
        length: usize,
    },
    Is(Vec<u8>),
    /// So many packets, and then one a day.
    Limit(u32),
    Mark,
}

impl Expression {
    fn onto(&self, list: Message) -> Message {
        let one = |list: Message, name: &str, data: &dyn Fn(Message) -> Message| {
            list.nest(NFTA_LIST_ELEM, |element| element.text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data))
        };
        match self {
            Self::Meta(key) => one(list, "meta", &|data| data.be32(NFTA_META_DREG, REGISTER).be32(NFTA_META_KEY, *key)),
            Self::Conntrack { key, of } => one(list, "ct", &|data| {
                let data = data.be32(NFTA_CT_DREG, REGISTER).be32(NFTA_CT_KEY, *key);
                match of {
                    Some(direction) => data.attr(NFTA_CT_DIRECTION, &[*direction]),
                    None => data,
                }
            }),
            Self::Payload { base, offset, length } => one(list, "payload", &|data| {
                let length = u32::try_from(*length).unwrap_or(u32::MAX);
                data.be32(NFTA_PAYLOAD_DREG, REGISTER)
                    .be32(NFTA_PAYLOAD_BASE, *base)
                    .be32(NFTA_PAYLOAD_OFFSET, *offset)
                    .be32(NFTA_PAYLOAD_LEN, length)
            }),
            Self::Is(value) => one(list, "cmp", &|data| {
                data.be32(NFTA_CMP_SREG, REGISTER)
                    .be32(NFTA_CMP_OP, EQUAL)
                    .nest(NFTA_CMP_DATA, |data| data.attr(NFTA_DATA_VALUE, value))
            }),
            Self::Limit(packets) => one(list, "limit", &|data| {
                data.attr(NFTA_LIMIT_RATE, &1_u64.to_be_bytes())
                    .attr(NFTA_LIMIT_UNIT, &DAY.to_be_bytes())
                    .be32(NFTA_LIMIT_BURST, *packets)
                    .be32(NFTA_LIMIT_TYPE, PACKETS)
            }),
            Self::Mark => {
                let list = one(list, "immediate", &|data| {
                    data.be32(NFTA_IMMEDIATE_DREG, REGISTER)
                        .nest(NFTA_IMMEDIATE_DATA, |data| data.attr(NFTA_DATA_VALUE, &[1]))
                });
                one(list, "meta", &|data| data.be32(NFTA_META_SREG, REGISTER).be32(NFTA_META_KEY, META_NFTRACE))
            }
        }
    }
}

/// Everything of the table. Packets are marked before any rule of ours meets them; an answer that NAT has changed is
/// known for one when conntrack has seen it, before our rules look at the flow.
fn table(wanted: &Wanted, packets: u32) -> Vec<Message> {
    let mut messages = vec![
        message(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL)
            .text(NFTA_TABLE_NAME, TRACE_TABLE)
            .be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER),
    ];
    let (there, back, placed) = (wanted.by_headers(false), wanted.by_headers(true), wanted.by_flow());
    for (name, hook, priority, rules) in [
        (COMES, NF_PRE_ROUTING, EARLY, vec![&there, &back]),
        (LEAVES, NF_LOCAL_OUT, EARLY, vec![&there, &back]),
        (COMES_PLACED, NF_PRE_ROUTING, PLACED, vec![&placed]),
        (LEAVES_PLACED, NF_LOCAL_OUT, PLACED, vec![&placed]),
    ] {
        messages.push(
            message(NFT_MSG_NEWCHAIN, NLM_F_CREATE)
                .text(NFTA_CHAIN_TABLE, TRACE_TABLE)
                .text(NFTA_CHAIN_NAME, name)
                .nest(NFTA_CHAIN_HOOK, |data| {
                    data.be32(NFTA_HOOK_HOOKNUM, hook).be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned())
                })
                .be32(NFTA_CHAIN_POLICY, NF_ACCEPT)
                .text(NFTA_CHAIN_TYPE, "filter"),
        );
        for matched in rules {
            let rule = matched.iter().cloned().chain([Expression::Limit(packets), Expression::Mark]);
            messages.push(
                message(NFT_MSG_NEWRULE, NLM_F_CREATE)
                    .text(NFTA_RULE_TABLE, TRACE_TABLE)
                    .text(NFTA_RULE_CHAIN, name)
                    .nest(NFTA_RULE_EXPRESSIONS, |list| rule.fold(list, |list, one| one.onto(list))),
            );
        }
    }
    messages
}

/// What a message of the kernel tells; `None` for what decides nothing and for the chains of our own table.
fn met(message: &Received) -> Option<Met> {
    if message.kind != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE {
        return None;
    }
    let trace = message.attributes(NFGENMSG);
    let (table, chain) = (trace.text(NFTA_TRACE_TABLE)?, trace.text(NFTA_TRACE_CHAIN)?);
    let handle = trace.be64(NFTA_TRACE_RULE_HANDLE);
    // The end of a chain is told as a rule, too, but without its number.
    let is_rule = trace.be32(NFTA_TRACE_TYPE)? == NFT_TRACETYPE_RULE && handle.is_some();
    let what = if table == TRACE_TABLE {
        let header = |kind| trace.get(kind).unwrap_or_default();
        let bytes = [header(NFTA_TRACE_NETWORK_HEADER), header(NFTA_TRACE_TRANSPORT_HEADER)].concat();
        let placed = [COMES_PLACED, LEAVES_PLACED].contains(&chain);
        Some(What::Begin { placed, headers: packet::parse(&bytes) }).filter(|_| is_rule)?
    } else {
        let family = message.body.first().copied().unwrap_or_default();
        What::Rule(Rule {
            elsewhere: (table != TABLE).then(|| format!("{} {table}", family_word(family))),
            chain: chain.to_owned(),
            handle,
            verdict: verdict(trace)?,
        })
    };
    let link = |kind| if_indextoname(trace.be32(kind)?).ok()?.to_str().ok()?.parse().ok();
    Some(Met {
        packet: trace.be32(NFTA_TRACE_ID)?,
        what,
        in_link: link(NFTA_TRACE_IIF),
        out_link: link(NFTA_TRACE_OIF),
        mark: Mark(trace.be32(NFTA_TRACE_MARK).unwrap_or_default()),
    })
}

fn verdict(trace: Attributes<'_>) -> Option<Verdict> {
    // Beyond the low byte of what is positive stand errno values and the numbers of queues.
    let judged = |code: u32| match code & 0xff {
        NF_ACCEPT => Verdict::Accept,
        // Whoever answers for a packet (a reset) drops it or has stolen it.
        NF_DROP | NF_STOLEN => Verdict::Drop,
        _ => Verdict::Goes,
    };
    Some(match trace.be32(NFTA_TRACE_TYPE)? {
        // What a chain accepts because none of its rules decided goes on.
        NFT_TRACETYPE_POLICY if trace.be32(NFTA_TRACE_POLICY)? == NF_DROP => Verdict::Drop,
        NFT_TRACETYPE_RULE => {
            let verdict = trace.nested(NFTA_TRACE_VERDICT);
            match (verdict.text(NFTA_VERDICT_CHAIN), verdict.be32(NFTA_VERDICT_CODE)?) {
                (Some(chain), _) => Verdict::Chain(chain.to_owned()),
                (None, code) if code.cast_signed() < 0 => Verdict::Goes,
                (None, code) => judged(code),
            }
        }
        _ => Verdict::Goes,
    })
}

/// Named like the other.
pub const TRACE_TABLE: &str = "quadway-trace";
/// Flows told of in one trace.
pub const MOST_FLOWS: usize = 64;
const COMES: &str = "comes";
const LEAVES: &str = "leaves";
const COMES_PLACED: &str = "comes_placed";
const LEAVES_PLACED: &str = "leaves_placed";
/// For one that was given up to end.
const PATIENCE: Duration = Duration::from_millis(500);
/// One before `raw`.
const EARLY: i32 = -301;
/// One after conntrack.
const PLACED: i32 = -199;
const DAY: u64 = 86_400;
/// Thousands of messages: some thirty for each packet.
const BUFFER: usize = 4 << 20;
const REGISTER: u32 = 1;
const NFNLGRP_NFTRACE: u32 = 9;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_TRACE: u16 = 17;
const NFT_TABLE_F_OWNER: u32 = 0x2;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NF_PRE_ROUTING: u32 = 0;
const NF_LOCAL_OUT: u32 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const META_NFTRACE: u32 = 12;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_DIRECTION: u16 = 3;
const CT_DIRECTION: u32 = 1;
const CT_DESTINATION_PORT: u32 = 12;
const CT_SOURCE_IP: u32 = 19;
const CT_DESTINATION_IP: u32 = 20;
const CT_SOURCE_IP6: u32 = 21;
const CT_DESTINATION_IP6: u32 = 22;
const ORIGINAL: u8 = 0;
const REPLY: u8 = 1;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const EQUAL: u32 = 0;
const NFTA_LIMIT_RATE: u16 = 1;
const NFTA_LIMIT_UNIT: u16 = 2;
const NFTA_LIMIT_BURST: u16 = 3;
const NFTA_LIMIT_TYPE: u16 = 4;
const PACKETS: u32 = 0;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_TRACE_TABLE: u16 = 1;
const NFTA_TRACE_CHAIN: u16 = 2;
const NFTA_TRACE_RULE_HANDLE: u16 = 3;
const NFTA_TRACE_TYPE: u16 = 4;
const NFTA_TRACE_VERDICT: u16 = 5;
const NFTA_TRACE_ID: u16 = 6;
const NFTA_TRACE_NETWORK_HEADER: u16 = 8;
const NFTA_TRACE_TRANSPORT_HEADER: u16 = 9;
const NFTA_TRACE_IIF: u16 = 10;
const NFTA_TRACE_OIF: u16 = 12;
const NFTA_TRACE_MARK: u16 = 14;
const NFTA_TRACE_POLICY: u16 = 16;
const NFT_TRACETYPE_POLICY: u32 = 1;
const NFT_TRACETYPE_RULE: u32 = 3;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NF_STOLEN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_is_read() {
        let told_of = |handle: Option<u64>, kind: u32, table: &str, chain: &str, verdict: Option<(u32, &str)>| {
            let message = Message::new(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE, 0, &[1, 0, 0, 0])
                .be32(NFTA_TRACE_TYPE, kind)
                .be32(NFTA_TRACE_ID, 7)
                .text(NFTA_TRACE_TABLE, table)
                .text(NFTA_TRACE_CHAIN, chain)
                .be32(NFTA_TRACE_MARK, 0x0100_0000)
                .be32(NFTA_TRACE_POLICY, NF_DROP)
                .nest(NFTA_TRACE_VERDICT, |data| match verdict {
                    Some((code, "")) => data.be32(NFTA_VERDICT_CODE, code),
                    Some((code, chain)) => data.be32(NFTA_VERDICT_CODE, code).text(NFTA_VERDICT_CHAIN, chain),
                    None => data,
                })
                .attr(NFTA_TRACE_NETWORK_HEADER, &packet::tests::ipv4(6, &[]))
                .attr(NFTA_TRACE_TRANSPORT_HEADER, &[0x9c, 0x40, 1, 187]);
            let numbered = |handle: u64| message.clone().attr(NFTA_TRACE_RULE_HANDLE, &handle.to_be_bytes());
            met(&handle.map_or_else(|| message.clone(), numbered).received())
        };
        let told = |kind, table, chain, verdict| told_of(Some(4), kind, table, chain, verdict);
        let verdict = |kind, verdict| match told(kind, TABLE, "deny", verdict)?.what {
            What::Rule(Rule { elsewhere: None, verdict, .. }) => Some(verdict),
            other @ (What::Rule(_) | What::Begin { .. }) => panic!("{other:?}"),
        };
        assert_eq!(verdict(NFT_TRACETYPE_RULE, Some((NF_ACCEPT, ""))), Some(Verdict::Accept));
        assert_eq!(verdict(NFT_TRACETYPE_RULE, Some((NF_DROP, ""))), Some(Verdict::Drop));
        assert_eq!(verdict(NFT_TRACETYPE_RULE, Some((1 << 16 | NF_STOLEN, ""))), Some(Verdict::Drop));
        assert_eq!(verdict(NFT_TRACETYPE_RULE, Some((u32::MAX, ""))), Some(Verdict::Goes));
        assert_eq!(verdict(NFT_TRACETYPE_RULE, Some((u32::MAX - 3, "pass"))), Some(Verdict::Chain("pass".to_owned())));
        assert_eq!(verdict(NFT_TRACETYPE_RULE, None), None);
        assert_eq!(verdict(NFT_TRACETYPE_POLICY, None), Some(Verdict::Drop));

        let begun = told(NFT_TRACETYPE_RULE, TRACE_TABLE, COMES, Some((u32::MAX, ""))).unwrap();
        assert_eq!((begun.packet, begun.mark), (7, Mark(0x0100_0000)));
        let What::Begin { placed: false, headers: Some(headers) } = begun.what else { panic!("{:?}", begun.what) };
        assert_eq!(headers.transport.protocol(), Protocol::Tcp { source: 40_000, destination: 443 });
        assert_eq!(told(NFT_TRACETYPE_POLICY, TRACE_TABLE, COMES, None), None, "the end of our own chain");
        let end = Some((u32::MAX, ""));
        assert_eq!(told_of(None, NFT_TRACETYPE_RULE, TRACE_TABLE, COMES_PLACED, end), None, "the same");
        let other = told(NFT_TRACETYPE_RULE, "filter", "x", Some((NF_DROP, ""))).unwrap();
        assert!(matches!(other.what, What::Rule(Rule { elsewhere: Some(table), .. }) if table == "inet filter"));
    }

    #[test]
    fn of_a_flow_both_ways_are_followed_and_nothing_else() {
        let wanted = wanted(Some(Protocol::Tcp { source: 40_000, destination: 443 }));
        let (us, them) = (wanted.source, wanted.destination);
        let tcp = |source, destination| Protocol::Tcp { source, destination };
        assert!(wanted.holds(us, them, tcp(1, 443)));
        assert!(!wanted.holds(us, them, tcp(443, 1)) && !wanted.holds(them, us, tcp(1, 443)));
        assert!(!wanted.holds(us, them, Protocol::Udp { source: 1, destination: 443 }));
        assert!(self::wanted(None).holds(us, them, Protocol::Other(47)));
        assert!(self::wanted(Some(Protocol::Ping)).holds(us, them, Protocol::Ping));
        let ports = |back| wanted.by_headers(back).into_iter().rev().take(2).collect::<Vec<_>>();
        let port = Expression::Is(vec![1, 187]);
        let at = |offset| Expression::Payload { base: TRANSPORT, offset, length: 2 };
        assert_eq!((ports(false), ports(true)), (vec![port.clone(), at(2)], vec![port, at(0)]));
    }

    #[test]
    fn the_table_belongs_to_its_socket_and_marks_few() {
        let messages = table(&wanted(None), 5);
        assert_eq!(messages.len(), 1 + 4 + 6);
        let text = format!("{:?}", messages[0].clone().received().attributes(NFGENMSG).be32(NFTA_TABLE_FLAGS));
        assert_eq!(text, "Some(2)");
        for rule in messages.into_iter().map(Message::received).filter(|one| one.kind & 0xff == NFT_MSG_NEWRULE) {
            let list = rule.attributes(NFGENMSG).nested(NFTA_RULE_EXPRESSIONS);
            let limit =
                list.each().map(|(_, one)| Attributes(one)).find(|one| one.text(NFTA_EXPR_NAME) == Some("limit"));
            assert_eq!(limit.unwrap().nested(NFTA_EXPR_DATA).be32(NFTA_LIMIT_BURST), Some(5));
        }
    }

    fn wanted(service: Option<Protocol>) -> Wanted {
        Wanted { source: "10.0.10.7".parse().unwrap(), destination: "198.51.100.1".parse().unwrap(), service }
    }
}
