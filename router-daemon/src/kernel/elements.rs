//! Elements of the table's live sets and maps over raw nfnetlink: bucket flips, dead classes, counters. A flip
//! takes a tenth of a millisecond; running `nft` for it would take twenty.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use config::units::{Family, IfName, Mark, WanId};
use mwan::state::{AUDIT_GRACE, BUCKETS, BucketKey, Buckets, FlowClass, LinkPair, Slot, TABLE, taken_set};
use nix::errno::Errno;

use super::netlink::{Attributes, Message, NLM_F_CREATE, Socket, done_if, errno};
use crate::counters::{Count, Counters};

/// The number of the table's generation in the kernel: any nft transaction of the namespace raises it, counting
/// and logging do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u32);

impl Generation {
    pub(crate) fn read(socket: &mut Socket) -> io::Result<Self> {
        let replies = socket.ask(message(NFT_MSG_GETGEN, 0))?;
        let id = replies.iter().find_map(|reply| reply.attributes(NFGENMSG).be32(NFTA_GEN_ID));
        id.map(Self).ok_or_else(|| io::Error::other("the kernel told no nft generation"))
    }

    pub(crate) fn number(self) -> u32 {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn of(number: u32) -> Self {
        Self(number)
    }

    /// What it is after one more transaction. The kernel skips 0.
    pub(crate) fn next(self) -> Self {
        Self(self.0.wrapping_add(1).max(1))
    }
}

pub(crate) fn table_exists(socket: &mut Socket) -> io::Result<bool> {
    const NFT_MSG_GETTABLE: u16 = 1;
    const NFTA_TABLE_NAME: u16 = 1;
    match socket.ask(message(NFT_MSG_GETTABLE, 0).text(NFTA_TABLE_NAME, TABLE)) {
        Err(error) if errno(&error) == Some(Errno::ENOENT as i32) => Ok(false),
        other => other.map(|_| true),
    }
}

/// Puts a bucket map from `have` to `want`, only if the table is still of this generation. Where `have` is not
/// known the map is emptied first.
pub(crate) fn set_buckets(
    socket: &mut Socket,
    generation: Generation,
    key: &BucketKey,
    have: Option<&Buckets>,
    want: &Buckets,
) -> io::Result<()> {
    let map = key.map_name();
    let elements: Vec<_> = (0_u32..).zip(&want.0).map(|(number, slot)| (number, *slot)).collect();
    let (old, new): (Option<Vec<_>>, Vec<_>) = match have.filter(|have| have.0.len() == want.0.len()) {
        Some(have) => {
            let moved: Vec<_> =
                elements.into_iter().filter(|(number, slot)| have.0.get(*number as usize) != Some(slot)).collect();
            if moved.is_empty() {
                return Ok(());
            }
            (Some(moved.iter().map(|(number, _)| number.to_ne_bytes()).collect()), moved)
        }
        None => (None, elements),
    };
    let out = match old {
        Some(keys) => elements_message(NFT_MSG_DELSETELEM, 0, &map, |list| {
            keys.iter().fold(list, |list, key| list.nest(NFTA_LIST_ELEM, |element| with_key(element, key)))
        }),
        None => message(NFT_MSG_DELSETELEM, 0).text(NFTA_SET_ELEM_LIST_TABLE, TABLE).text(NFTA_SET_ELEM_LIST_SET, &map),
    };
    let into = elements_message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, &map, |list| {
        new.iter().fold(list, |list, (number, slot)| {
            list.nest(NFTA_LIST_ELEM, |element| {
                with_key(element, &number.to_ne_bytes()).nest(NFTA_SET_ELEM_DATA, |data| {
                    data.nest(NFTA_DATA_VERDICT, |verdict| {
                        verdict.be32(NFTA_VERDICT_CODE, NFT_GOTO).text(NFTA_VERDICT_CHAIN, &slot.chain_name())
                    })
                })
            })
        })
    });
    socket.batch(frame(generation), vec![out, into])
}

/// Without `NLM_F_EXCL`, classes that are there already do no harm.
pub(crate) fn add_dead(socket: &mut Socket, generation: Generation, classes: &[FlowClass]) -> io::Result<()> {
    let add = elements_message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, DEAD, |list| {
        let with = |list: Message, class| list.nest(NFTA_LIST_ELEM, |element| with_key(element, &dead_key(class)));
        classes.iter().copied().fold(list, with)
    });
    socket.batch(frame(generation), vec![add])
}

pub(crate) fn remove_dead(socket: &mut Socket, generation: Generation, class: FlowClass) -> io::Result<()> {
    let remove = elements_message(NFT_MSG_DELSETELEM, 0, DEAD, |list| {
        list.nest(NFTA_LIST_ELEM, |element| with_key(element, &dead_key(class)))
    });
    match socket.batch(frame(generation), vec![remove]) {
        // The class is not there. A table or set that is not there is another matter, and the next reading tells.
        Err(error) if errno(&error) == Some(Errno::ENOENT as i32) && dead(socket)?.contains(&class) => Err(error),
        Err(error) if errno(&error) != Some(Errno::ENOENT as i32) => Err(error),
        _ => Ok(()),
    }
}

/// Lets a pair pass until the kernel's own clock says otherwise. What is there already is not made longer.
pub(crate) fn add_audited(
    socket: &mut Socket,
    generation: Generation,
    pair: &LinkPair,
    timeout: Duration,
) -> io::Result<()> {
    let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let add = elements_message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, AUDITED, |list| {
        list.nest(NFTA_LIST_ELEM, |element| {
            with_key(element, &pair_key(pair)).attr(NFTA_SET_ELEM_TIMEOUT, &milliseconds.to_be_bytes())
        })
    });
    socket.batch(frame(generation), vec![add])
}

/// One that is not there has ended by itself.
pub(crate) fn remove_audited(socket: &mut Socket, generation: Generation, pair: &LinkPair) -> io::Result<()> {
    let remove = elements_message(NFT_MSG_DELSETELEM, 0, AUDITED, |list| {
        list.nest(NFTA_LIST_ELEM, |element| with_key(element, &pair_key(pair)))
    });
    done_if(socket.batch(frame(generation), vec![remove]), &[Errno::ENOENT]).map(drop)
}

/// The pairs that pass, and the time each was given.
pub(crate) fn audited(socket: &mut Socket) -> io::Result<BTreeMap<LinkPair, Duration>> {
    let mut audited = BTreeMap::new();
    dump(socket, AUDITED, |element| {
        let pair = element.nested(NFTA_SET_ELEM_KEY).get(NFTA_DATA_VALUE).and_then(link_pair);
        let given = Duration::from_millis(element.be64(NFTA_SET_ELEM_TIMEOUT).unwrap_or_default());
        audited.extend(pair.map(|pair| (pair, given.saturating_sub(AUDIT_GRACE))));
    })?;
    Ok(audited)
}

/// Puts addresses into a set that names fill. One that is there already gets the new time (Linux 6.12).
pub(crate) fn named(set: &str, addresses: &[(IpAddr, Duration)]) -> Message {
    elements_message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, set, |list| {
        addresses.iter().fold(list, |list, (address, span)| {
            list.nest(NFTA_LIST_ELEM, |element| lasting(with_address(element, *address), *span))
        })
    })
}

pub(crate) fn unnamed(set: &str, address: IpAddr) -> Message {
    elements_message(NFT_MSG_DELSETELEM, 0, set, |list| {
        list.nest(NFTA_LIST_ELEM, |element| with_address(element, address))
    })
}

/// Lines that have a connection of a client. One that is there already gets the new time.
pub(crate) fn taken(family: Family, taken: &BTreeSet<(IpAddr, FlowClass)>, span: Duration) -> Message {
    let of = taken.iter().filter(|(client, _)| Family::of(*client) == family);
    elements_message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, taken_set(family), |list| {
        of.fold(list, |list, (client, class)| {
            list.nest(NFTA_LIST_ELEM, |element| lasting(with_key(element, &taken_key(*client, *class)), span))
        })
    })
}

pub(crate) fn freed(client: IpAddr, class: FlowClass) -> Message {
    elements_message(NFT_MSG_DELSETELEM, 0, taken_set(Family::of(client)), |list| {
        list.nest(NFTA_LIST_ELEM, |element| with_key(element, &taken_key(client, class)))
    })
}

/// From now on for so long. Without the expiration an element that was given the same time before keeps its old end.
fn lasting(element: Message, span: Duration) -> Message {
    let milliseconds = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).to_be_bytes();
    element.attr(NFTA_SET_ELEM_TIMEOUT, &milliseconds).attr(NFTA_SET_ELEM_EXPIRATION, &milliseconds)
}

/// `ipv4_addr . mark` or `ipv6_addr . mark`.
fn taken_key(client: IpAddr, class: FlowClass) -> Vec<u8> {
    let mark = class.mark().0.to_ne_bytes();
    match client {
        IpAddr::V4(client) => [&client.octets()[..], &mark].concat(),
        IpAddr::V6(client) => [&client.octets()[..], &mark].concat(),
    }
}

fn with_address(element: Message, address: IpAddr) -> Message {
    match address {
        IpAddr::V4(address) => with_key(element, &address.octets()),
        IpAddr::V6(address) => with_key(element, &address.octets()),
    }
}

/// A bucket map as it stands; `None` when it is not one of ours in every element.
pub(crate) fn buckets(socket: &mut Socket, key: &BucketKey) -> io::Result<Option<Buckets>> {
    let mut slots = BTreeMap::new();
    let mut strange = false;
    dump(socket, &key.map_name(), |element| {
        let number = element.nested(NFTA_SET_ELEM_KEY).u32(NFTA_DATA_VALUE);
        let verdict = element.nested(NFTA_SET_ELEM_DATA).nested(NFTA_DATA_VERDICT);
        let goes = verdict.be32(NFTA_VERDICT_CODE) == Some(NFT_GOTO);
        match (number, verdict.text(NFTA_VERDICT_CHAIN).filter(|_| goes).and_then(Slot::from_chain_name)) {
            (Some(number), Some(slot)) => drop(slots.insert(number, slot)),
            _ => strange = true,
        }
    })?;
    let whole = !strange && slots.len() == BUCKETS && slots.keys().copied().eq(0..256);
    Ok(whole.then(|| Buckets(slots.into_values().collect())))
}

pub(crate) fn dead(socket: &mut Socket) -> io::Result<BTreeSet<FlowClass>> {
    let mut dead = BTreeSet::new();
    dump(socket, DEAD, |element| dead.extend(element.nested(NFTA_SET_ELEM_KEY).get(NFTA_DATA_VALUE).and_then(class)))?;
    Ok(dead)
}

/// Everything the table counts. Flows are not its business.
pub(crate) fn counters(socket: &mut Socket) -> io::Result<Counters> {
    let mut counters = Counters::default();
    dump(socket, "denied", |element| counters.denied.extend(counted(element, link_pair)))?;
    dump(socket, "allowed", |element| counters.allowed.extend(counted(element, link_pair)))?;
    dump(socket, "invalid", |element| counters.invalid.extend(counted(element, link_pair)))?;
    dump(socket, "audit_flows", |element| counters.audited.extend(counted(element, link_pair)))?;
    dump(socket, "denied_in", |element| counters.denied_input.extend(counted(element, link)))?;
    dump(socket, "spoofed", |element| counters.spoofed.extend(counted(element, link)))?;
    dump(socket, "chosen", |element| counters.chosen.extend(counted(element, wan)))?;
    Ok(counters)
}

/// Packets that the table refused.
pub(crate) fn denials(socket: &mut Socket) -> io::Result<u64> {
    let mut packets = 0;
    for set in ["denied", "denied_in", "spoofed"] {
        dump(socket, set, |element| packets += counted(element, |_| Some(())).map_or(0, |((), count)| count.packets))?;
    }
    Ok(packets)
}

fn counted<K>(element: Attributes<'_>, key: impl Fn(&[u8]) -> Option<K>) -> Option<(K, Count)> {
    let key = key(element.nested(NFTA_SET_ELEM_KEY).get(NFTA_DATA_VALUE)?)?;
    // One statement stands in EXPR, several stand in a list.
    let single = [element.nested(NFTA_SET_ELEM_EXPR)].into_iter();
    let several = element.nested(NFTA_SET_ELEM_EXPRESSIONS).each().map(|(_, statement)| Attributes(statement));
    let counter = single.chain(several).find(|statement| statement.text(NFTA_EXPR_NAME) == Some("counter"))?;
    let data = counter.nested(NFTA_EXPR_DATA);
    Some((key, Count { packets: data.be64(NFTA_COUNTER_PACKETS)?, bytes: data.be64(NFTA_COUNTER_BYTES)? }))
}

fn link(key: &[u8]) -> Option<IfName> {
    let end = key.iter().position(|byte| *byte == 0).unwrap_or(key.len());
    std::str::from_utf8(key.get(..end)?).ok()?.parse().ok()
}

fn link_pair(key: &[u8]) -> Option<(IfName, IfName)> {
    Some((link(key.get(..IFNAMSIZ)?)?, link(key.get(IFNAMSIZ..)?)?))
}

/// Each name padded to its sixteen bytes.
fn pair_key((from, to): &LinkPair) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 * IFNAMSIZ);
    for (number, name) in [from, to].into_iter().enumerate() {
        key.extend(name.as_str().as_bytes());
        key.resize((number + 1) * IFNAMSIZ, 0);
    }
    key
}

fn wan(key: &[u8]) -> Option<WanId> {
    let [id, ..] = (u32::from_ne_bytes(key.try_into().ok()?) & Mark::WAN_MASK).to_be_bytes();
    WanId::new(id)
}

/// `nf_proto . mark`: each part padded to four bytes.
fn dead_key(class: FlowClass) -> [u8; 8] {
    let [a, b, c, d] = class.mark().0.to_ne_bytes();
    [super::netlink::af(class.family), 0, 0, 0, a, b, c, d]
}

fn class(key: &[u8]) -> Option<FlowClass> {
    let [af, _, _, _, mark @ ..] = <[u8; 8]>::try_from(key).ok()?;
    let family: Family = super::netlink::family_of(af)?;
    FlowClass::from_mark(family, Mark(u32::from_ne_bytes(mark)))
}

/// What is not there holds nothing: the boot ruleset counts nothing.
pub(crate) fn dump(socket: &mut Socket, set: &str, mut each: impl FnMut(Attributes<'_>)) -> io::Result<()> {
    let question =
        message(NFT_MSG_GETSETELEM, 0).text(NFTA_SET_ELEM_LIST_TABLE, TABLE).text(NFTA_SET_ELEM_LIST_SET, set);
    let replies = done_if(socket.dump(&question), &[Errno::ENOENT])?;
    for reply in &replies {
        for (_, element) in reply.attributes(NFGENMSG).nested(NFTA_SET_ELEM_LIST_ELEMENTS).each() {
            each(Attributes(element));
        }
    }
    Ok(())
}

fn elements_message(kind: u16, flags: u16, set: &str, elements: impl FnOnce(Message) -> Message) -> Message {
    message(kind, flags)
        .text(NFTA_SET_ELEM_LIST_TABLE, TABLE)
        .text(NFTA_SET_ELEM_LIST_SET, set)
        .nest(NFTA_SET_ELEM_LIST_ELEMENTS, elements)
}

fn with_key(element: Message, key: &[u8]) -> Message {
    element.nest(NFTA_SET_ELEM_KEY, |data| data.attr(NFTA_DATA_VALUE, key))
}

pub(crate) fn message(kind: u16, flags: u16) -> Message {
    message_of(NFPROTO_INET, kind, flags)
}

pub(crate) fn message_of(family: u8, kind: u16, flags: u16) -> Message {
    Message::new(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, &[family, 0, 0, 0])
}

/// A batch that the kernel refuses (`ERESTART`) when the table is of another generation.
pub(crate) fn frame(generation: Generation) -> [Message; 2] {
    const NFNL_BATCH_GENID: u16 = 1;
    let [begin, end] = transaction();
    [begin.be32(NFNL_BATCH_GENID, generation.0), end]
}

/// A batch that is about nothing that may have changed.
pub(crate) fn transaction() -> [Message; 2] {
    // The subsystem stands in the resource id, in network order.
    const HEADER: [u8; 4] = [0, 0, 0, 10];
    [NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END].map(|kind| Message::new(kind, 0, &HEADER))
}

const AUDITED: &str = "audited";
const DEAD: &str = "dead";
const IFNAMSIZ: usize = 16;
pub(crate) const NFGENMSG: usize = 4;
pub(crate) const NFPROTO_INET: u8 = 1;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_MSG_GETGEN: u16 = 16;
const NFTA_GEN_ID: u16 = 1;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_EXPR: u16 = 7;
const NFTA_SET_ELEM_EXPRESSIONS: u16 = 11;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
/// -4
const NFT_GOTO: u32 = 0xffff_fffc;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use config::units::PolicyId;

    #[test]
    fn a_dead_class_is_found_again_in_its_key() {
        for family in Family::ALL {
            let dead = FlowClass { family, wan: WanId::new(3).unwrap(), policy: Some(PolicyId(9)) };
            assert_eq!(class(&dead_key(dead)), Some(dead));
        }
        assert_eq!(class(&[0; 8]), None);
        assert_eq!(class(&[2, 0, 0]), None);
    }

    #[test]
    fn keys_of_links_end_at_the_zero() {
        let mut key = [0; 32];
        key[..6].copy_from_slice(b"vlan10");
        key[16..20].copy_from_slice(b"wan1");
        let pair = ("vlan10".parse().unwrap(), "wan1".parse().unwrap());
        assert_eq!((link_pair(&key), pair_key(&pair)), (Some(pair), key.to_vec()));
        assert_eq!(link_pair(&key[..20]).map(|pair| pair.1), Some("wan1".parse().unwrap()));
        assert_eq!(link_pair(&key[..8]), None);
    }
}
