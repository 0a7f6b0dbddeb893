//! Connection tracking over nfnetlink: which flows a class has, and their end.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use config::units::{Family, Mark, PolicyId, WanId};
use mwan::state::FlowClass;
use nix::errno::Errno;

use super::netlink::{Attributes, Message, Received, Socket, af, done_if, errno, family_of, ip};
use crate::flows::Tracked;

/// A tracked flow, both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) family: Family,
    pub(crate) mark: Mark,
    /// As the first packet had it.
    pub(crate) original: Tuple,
    /// As an answer has it: behind NAT its destination is not the source of the original.
    pub(crate) reply: Tuple,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Zero where the protocol has none.
    pub source_port: u16,
    pub destination_port: u16,
}

/// A flow, and by what the kernel finds it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) class: FlowClass,
    pub(crate) flow: Flow,
    original: Vec<u8>,
    id: u32,
}

/// The flows of these classes of a line, in one walk, at most so many; and how many it has of each class.
pub(crate) fn flows(
    socket: &mut Socket,
    line: WanId,
    wanted: impl Fn(FlowClass) -> bool,
    limit: usize,
) -> io::Result<(Vec<Found>, BTreeMap<FlowClass, u64>)> {
    let question = Message::new(kind(IPCTNL_MSG_CT_GET), 0, &[0, NFNETLINK_V1, 0, 0])
        .be32(CTA_MARK, line.mark().0)
        .be32(CTA_MARK_MASK, Mark::WAN_MASK);
    let (mut flows, mut count) = (Vec::new(), BTreeMap::new());
    socket.dump_into(question, |message| {
        let Some(found) = found(&message) else { return };
        *count.entry(found.class).or_default() += 1;
        if flows.len() < limit && wanted(found.class) {
            flows.push(found);
        }
    })?;
    Ok((flows, count))
}

/// A flow that a policy chose the line for, and what tells whether it lives.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) found: Found,
    /// Seconds after which the kernel forgets it, if no packet comes.
    pub(crate) remaining: u32,
    /// Both ends have spoken.
    pub(crate) assured: bool,
    /// `TCP_CONNTRACK_*`.
    pub(crate) tcp_state: Option<u8>,
}

/// The flows of a policy.
pub(crate) fn connections(socket: &mut Socket, policy: PolicyId) -> io::Result<Vec<Connection>> {
    let question = Message::new(kind(IPCTNL_MSG_CT_GET), 0, &[0, NFNETLINK_V1, 0, 0])
        .be32(CTA_MARK, u32::from(policy.0) << 16)
        .be32(CTA_MARK_MASK, Mark::POLICY_MASK);
    let mut connections = Vec::new();
    socket.dump_into(question, |message| {
        let attributes = message.attributes(NFGENMSG);
        connections.extend(found(&message).map(|found| Connection {
            found,
            remaining: attributes.be32(CTA_TIMEOUT).unwrap_or_default(),
            assured: attributes.be32(CTA_STATUS).unwrap_or_default() & ASSURED != 0,
            tcp_state: attributes.nested(CTA_PROTOINFO).nested(CTA_PROTOINFO_TCP).u8(CTA_PROTOINFO_TCP_STATE),
        }));
    })?;
    Ok(connections)
}

/// Ends one flow, without a walk. A flow that has taken its place since is another.
pub(crate) fn end_one(socket: &mut Socket, found: &Found) -> io::Result<()> {
    let message = Message::new(kind(IPCTNL_MSG_CT_DELETE), 0, &[af(found.flow.family), 0, 0, 0])
        .attr(CTA_TUPLE_ORIG | NLA_F_NESTED, &found.original)
        .be32(CTA_ID, found.id);
    done_if(socket.ask(message), &[Errno::ENOENT]).map(drop)
}

/// Ends every flow of a class, in one message and one walk through all flows.
pub(crate) fn end(socket: &mut Socket, class: FlowClass) -> io::Result<()> {
    done_if(socket.ask(of_class(IPCTNL_MSG_CT_DELETE, class)), &[Errno::ENOENT]).map(drop)
}

/// How many flows each line carries.
pub(crate) fn count(socket: &mut Socket) -> io::Result<BTreeMap<(WanId, Family), u64>> {
    let mut flows = BTreeMap::new();
    let all = Message::new(kind(IPCTNL_MSG_CT_GET), 0, &[0, NFNETLINK_V1, 0, 0]);
    // Nothing but the count of a table that never stands still: a part that is missing or told twice does no harm.
    socket.dump_into(all, |message| {
        let mark = message.attributes(NFGENMSG).be32(CTA_MARK).unwrap_or_default();
        let family = message.body.first().copied().and_then(family_of);
        if let Some(class) = family.and_then(|family| FlowClass::from_mark(family, Mark(mark))) {
            *flows.entry((class.wan, class.family)).or_default() += 1;
        }
    })?;
    Ok(flows)
}

/// Every flow: its class, who opened it, and the bytes of both directions where they are counted.
pub(crate) fn each(
    socket: &mut Socket,
    mut told: impl FnMut(Option<FlowClass>, IpAddr, Option<u64>),
) -> io::Result<()> {
    let all = Message::new(kind(IPCTNL_MSG_CT_GET), 0, &[0, NFNETLINK_V1, 0, 0]);
    // For people: a part that is missing or told twice does no harm.
    socket.dump_into(all, |message| {
        let attributes = message.attributes(NFGENMSG);
        let family = message.body.first().copied().and_then(family_of);
        let mark = Mark(attributes.be32(CTA_MARK).unwrap_or_default());
        let bytes = [CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY]
            .map(|direction| attributes.nested(direction).be64(CTA_COUNTERS_BYTES));
        let bytes = bytes.iter().flatten().copied().reduce(u64::saturating_add);
        if let (Some(family), Some(there)) = (family, tuple(attributes.nested(CTA_TUPLE_ORIG))) {
            told(FlowClass::from_mark(family, mark), there.source, bytes);
        }
    })?;
    Ok(())
}

/// Every flow that `condemned` says yes to, by its mark and the tuples of its two directions: how many there are and,
/// with `end`, ended one by one.
pub(crate) fn sweep(socket: &mut Socket, condemned: impl Fn(Mark, Tuple, Tuple) -> bool, end: bool) -> io::Result<u64> {
    let mut flows = Vec::new();
    let all = Message::new(kind(IPCTNL_MSG_CT_GET), 0, &[0, NFNETLINK_V1, 0, 0]);
    // A flow that a table in motion hides this time was born or died this moment.
    socket.dump_into(all, |message| {
        let attributes = message.attributes(NFGENMSG);
        // Flows of the router itself may have no mark.
        let mark = Mark(attributes.be32(CTA_MARK).unwrap_or_default());
        if let (Some(family), Some(original)) = (message.body.first(), attributes.get(CTA_TUPLE_ORIG))
            && let Some(there) = tuple(attributes.nested(CTA_TUPLE_ORIG))
            && let Some(back) = tuple(attributes.nested(CTA_TUPLE_REPLY))
            && condemned(mark, there, back)
        {
            flows.push((*family, original.to_vec()));
        }
    })?;
    if end {
        for (family, original) in &flows {
            let delete = Message::new(kind(IPCTNL_MSG_CT_DELETE), 0, &[*family, 0, 0, 0]);
            done_if(socket.ask(delete.attr(CTA_TUPLE_ORIG | NLA_F_NESTED, original)), &[Errno::ENOENT])?;
        }
    }
    Ok(flows.len() as u64)
}

/// Every flow that the fast path may be about.
pub(crate) fn tracked_flows(socket: &mut Socket) -> io::Result<Vec<Tracked>> {
    tracked_where(socket, Tracked::is_settled)
}

pub(crate) fn tracked_where(socket: &mut Socket, wanted: impl Fn(&Tracked) -> bool) -> io::Result<Vec<Tracked>> {
    let all = Message::new(kind(IPCTNL_MSG_CT_GET), 0, &[0, NFNETLINK_V1, 0, 0]);
    let mut flows = Vec::new();
    // What a table in motion hides this time is missed until the next.
    socket.dump_into(all, |message| flows.extend(tracked(&message).filter(&wanted)))?;
    Ok(flows)
}

/// What an event or an answer says of a flow.
pub(crate) fn tracked(message: &Received) -> Option<Tracked> {
    let attributes = message.attributes(NFGENMSG);
    Some(Tracked {
        id: attributes.be32(CTA_ID)?,
        original: tuple(attributes.nested(CTA_TUPLE_ORIG))?,
        reply: tuple(attributes.nested(CTA_TUPLE_REPLY))?,
        // A mark of 0 is left out.
        mark: Mark(attributes.be32(CTA_MARK).unwrap_or_default()),
        status: attributes.be32(CTA_STATUS).unwrap_or_default(),
        tcp_state: attributes.nested(CTA_PROTOINFO).nested(CTA_PROTOINFO_TCP).u8(CTA_PROTOINFO_TCP_STATE),
        helped: attributes.get(CTA_HELP).is_some(),
        zoned: attributes.get(CTA_ZONE).is_some(),
    })
}

/// The flow that an event says is gone, and its id.
pub(crate) fn ended(message: &Received) -> Option<(Tuple, u32)> {
    let attributes = message.attributes(NFGENMSG);
    let is_end = message.kind == kind(IPCTNL_MSG_CT_DELETE);
    let ended = || Some((tuple(attributes.nested(CTA_TUPLE_ORIG))?, attributes.be32(CTA_ID)?));
    if is_end { ended() } else { None }
}

/// Gives a flow so many seconds more, as a packet of it would. `false`: there is no such flow.
pub(crate) fn keep(socket: &mut Socket, flow: &Tuple, seconds: u32) -> io::Result<bool> {
    let (v4, v6) = ([CTA_IP_V4_SRC, CTA_IP_V4_DST], [CTA_IP_V6_SRC, CTA_IP_V6_DST]);
    let kinds = if flow.source.is_ipv4() { v4 } else { v6 };
    let address = |message: Message, kind, address| match address {
        IpAddr::V4(address) => message.attr(kind, &address.octets()),
        IpAddr::V6(address) => message.attr(kind, &address.octets()),
    };
    let tuple = |message: Message| {
        let addresses = |message| address(address(message, kinds[0], flow.source), kinds[1], flow.destination);
        message.nest(CTA_TUPLE_IP, addresses).nest(CTA_TUPLE_PROTO, |message| {
            message
                .attr(CTA_PROTO_NUM, &[flow.protocol])
                .attr(CTA_PROTO_SRC_PORT, &flow.source_port.to_be_bytes())
                .attr(CTA_PROTO_DST_PORT, &flow.destination_port.to_be_bytes())
        })
    };
    let message = Message::new(kind(IPCTNL_MSG_CT_NEW), 0, &[af(Family::of(flow.source)), NFNETLINK_V1, 0, 0])
        .nest(CTA_TUPLE_ORIG, tuple)
        .be32(CTA_TIMEOUT, seconds);
    match socket.ask(message) {
        Ok(_) => Ok(true),
        Err(error) if errno(&error) == Some(Errno::ENOENT as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

fn of_class(message: u16, class: FlowClass) -> Message {
    // The kernel reads the family of a deletion only from messages of version 1.
    Message::new(kind(message), 0, &[af(class.family), NFNETLINK_V1, 0, 0])
        .be32(CTA_MARK, class.mark().0)
        .be32(CTA_MARK_MASK, FlowClass::MASK)
}

fn found(message: &Received) -> Option<Found> {
    let attributes = message.attributes(NFGENMSG);
    let flow = flow(message)?;
    Some(Found {
        class: FlowClass::from_mark(flow.family, flow.mark)?,
        flow,
        original: attributes.get(CTA_TUPLE_ORIG)?.to_vec(),
        id: attributes.be32(CTA_ID)?,
    })
}

fn flow(message: &Received) -> Option<Flow> {
    let attributes = message.attributes(NFGENMSG);
    Some(Flow {
        family: family_of(*message.body.first()?)?,
        mark: Mark(attributes.be32(CTA_MARK)?),
        original: tuple(attributes.nested(CTA_TUPLE_ORIG))?,
        reply: tuple(attributes.nested(CTA_TUPLE_REPLY))?,
    })
}

fn tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let addresses = attributes.nested(CTA_TUPLE_IP);
    let protocol = attributes.nested(CTA_TUPLE_PROTO);
    let address = |v4, v6| addresses.get(v4).or_else(|| addresses.get(v6)).and_then(ip);
    Some(Tuple {
        source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        protocol: protocol.u8(CTA_PROTO_NUM)?,
        source_port: protocol.be16(CTA_PROTO_SRC_PORT).unwrap_or_default(),
        destination_port: protocol.be16(CTA_PROTO_DST_PORT).unwrap_or_default(),
    })
}

fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | message
}

const NFGENMSG: usize = 4;
/// `IPS_ASSURED`.
const ASSURED: u32 = 1 << 2;
const NLA_F_NESTED: u16 = 1 << 15;
const NFNETLINK_V1: u8 = 1;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_HELP: u16 = 5;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
