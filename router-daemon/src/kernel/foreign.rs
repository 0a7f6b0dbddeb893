//! What others in this network namespace do with the bits of marks that are ours: routing rules that would take our
//! packets, which is an error, and nft rules that look at or write our bits, which is told.
//!
//! Rules of iptables are seen neither way: their matches and targets are opaque to netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::units::{Family, Mark};
use mwan::state::{PROTOCOL, TABLE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};

use super::aside;
use super::elements::{NFGENMSG, NFPROTO_INET, message_of};
use super::netlink::{Attributes, NETLINK_NETFILTER, Received, Socket, af};
use super::rtnl::{Rtnl, find};

/// What was found when last looked. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Foreign(Arc<Mutex<BTreeSet<String>>>);

impl Foreign {
    /// An error where a routing rule of somebody else would take our packets. What is only worth a warning is logged
    /// when first seen.
    pub async fn look(&self) -> io::Result<()> {
        let taking: Vec<_> = rules(&mut Rtnl::open()?).await?.iter().filter_map(taking).collect();
        if !taking.is_empty() {
            return Err(io::Error::other(taking.join("\n")));
        }
        let found = aside(|| touching(&mut Socket::open(NETLINK_NETFILTER)?)).await?;
        let mut seen = self.seen();
        for told in found.difference(&seen) {
            tracing::warn!("{told}");
        }
        *seen = found;
        Ok(())
    }

    /// For `status`.
    pub fn warnings(&self) -> Vec<String> {
        self.seen().iter().cloned().collect()
    }

    fn seen(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A routing rule that is not ours and looks at the mark.
#[derive(Debug, Clone, Copy)]
struct MarkRule {
    family: Family,
    priority: u32,
    mark: u32,
    mask: u32,
}

/// What is to be done about a rule that comes before ours and matches a packet of some line or probe.
fn taking(rule: &MarkRule) -> Option<String> {
    let MarkRule { family, priority, mark, mask } = *rule;
    let ours = mask & PACKET;
    let line_or_probe = |top: &u32| top << 24 & Mark::WAN_MASK != 0;
    let matches = |top: u32| (top << 24 ^ mark) & ours == 0;
    if priority > LAST_LOOKUP || ours == 0 || !(0..=0xff).filter(line_or_probe).any(matches) {
        return None;
    }
    let which = match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    Some(format!(
        "the routing rule {priority} ({family}) of somebody else, fwmark {mark:#x}/{mask:#x}, takes packets that \
         routerd marks: bits 24 to 31 are its own; move that mark to other bits or that rule behind {LAST_LOOKUP}, or \
         delete it: ip {which} rule del priority {priority}"
    ))
}

async fn rules(rtnl: &mut Rtnl) -> io::Result<Vec<MarkRule>> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let mut question = RuleMessage::default();
        question.header.family = af(family).into();
        let all = rtnl.dump(RouteNetlinkMessage::GetRule(question)).await?;
        rules.extend(all.iter().filter_map(|message| mark_rule(message, family)));
    }
    Ok(rules)
}

fn mark_rule(message: &RouteNetlinkMessage, family: Family) -> Option<MarkRule> {
    let RouteNetlinkMessage::NewRule(RuleMessage { header, attributes, .. }) = message else { return None };
    // `not fwmark 0x42` (WireGuard, strongSwan) is about every packet but one kind: no use of our bits.
    if find!(attributes, RuleAttribute::Protocol) == Some(&PROTOCOL.into()) || header.flags.contains(RuleFlags::Invert)
    {
        return None;
    }
    let number = |found: Option<&u32>| found.copied().unwrap_or_default();
    Some(MarkRule {
        family,
        priority: number(find!(attributes, RuleAttribute::Priority)),
        mark: number(find!(attributes, RuleAttribute::FwMark)),
        mask: number(find!(attributes, RuleAttribute::FwMask)),
    })
}

/// What an expression of an nft rule has to do with marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expression {
    Load(Kind, Register),
    Store(Kind, Register),
    /// `to = from & mask ^ flip`.
    Mask {
        from: Register,
        to: Register,
        mask: u32,
        flip: u32,
    },
    Compare(Register),
    /// The key may span several registers, and its length is not told.
    LookUp,
    /// Something else comes into the register.
    Fill(Register),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Packet,
    Conntrack,
}

type Register = u32;

/// Which bits of each mark a rule compares or changes.
fn touched(rule: &[Expression]) -> BTreeMap<Kind, u32> {
    struct Held {
        kind: Kind,
        /// The bits of the mark that are seen here.
        shown: u32,
        /// The bits that are not what they are in the mark.
        changed: u32,
    }
    let mut held: BTreeMap<Register, Held> = BTreeMap::new();
    let mut touched = BTreeMap::new();
    for expression in rule {
        match *expression {
            Expression::Load(kind, to) => drop(held.insert(to, Held { kind, shown: u32::MAX, changed: 0 })),
            Expression::Mask { from, to, mask, flip } => {
                if let Some(Held { kind, shown, changed }) = held.remove(&from) {
                    held.insert(to, Held { kind, shown: shown & mask, changed: changed | !mask | flip });
                }
            }
            Expression::Compare(from) => {
                if let Some(Held { kind, shown, .. }) = held.get(&from) {
                    *touched.entry(*kind).or_default() |= shown;
                }
            }
            Expression::LookUp => {
                for Held { kind, shown, .. } in held.values() {
                    *touched.entry(*kind).or_default() |= shown;
                }
            }
            Expression::Store(kind, from) => {
                let own = held.get(&from).filter(|held| held.kind == kind);
                *touched.entry(kind).or_default() |= own.map_or(u32::MAX, |held| held.changed);
            }
            Expression::Fill(to) => drop(held.remove(&to)),
        }
    }
    touched
}

/// The chains of others whose rules touch our bits.
fn touching(socket: &mut Socket) -> io::Result<BTreeSet<String>> {
    let mut chains: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for reply in socket.dump(&message_of(NFPROTO_UNSPEC, NFT_MSG_GETRULE, 0))? {
        let rule = reply.attributes(NFGENMSG);
        let family = reply.body.first().copied().unwrap_or_default();
        let (Some(table), Some(chain)) = (rule.text(NFTA_RULE_TABLE), rule.text(NFTA_RULE_CHAIN)) else { continue };
        if (family, table) == (NFPROTO_INET, TABLE) {
            continue;
        }
        for (kind, bits) in touched(&expressions(&reply)) {
            let (ours, name) = match kind {
                Kind::Packet => (PACKET, "packet"),
                Kind::Conntrack => (CONNTRACK, "conntrack"),
            };
            if bits & ours != 0 {
                let key = (name, family, table.to_owned(), chain.to_owned());
                chains.entry(key).or_default().push(rule.be64(NFTA_RULE_HANDLE).unwrap_or_default());
            }
        }
    }
    let tell = |((mark, family, table, chain), handles): (_, Vec<u64>)| {
        let family = family_word(family);
        let handles: Vec<_> = handles.iter().map(u64::to_string).collect();
        format!(
            "nft table {family} {table}, chain {chain}, handle {} compares or sets bits of the {mark} mark that are \
             routerd's: flows may take the wrong line; let it mask bits 16 to 31 out",
            handles.join(", ")
        )
    };
    Ok(chains.into_iter().map(tell).collect())
}

fn expressions(rule: &Received) -> Vec<Expression> {
    let list = rule.attributes(NFGENMSG).nested(NFTA_RULE_EXPRESSIONS);
    let each = list.each().map(|(_, element)| Attributes(element));
    each.flat_map(|element| expression(element.text(NFTA_EXPR_NAME), element.nested(NFTA_EXPR_DATA))).collect()
}

fn expression(name: Option<&str>, data: Attributes<'_>) -> Vec<Expression> {
    let fill = |attribute| data.be32(attribute).map(Expression::Fill);
    let found = match name {
        Some(name @ ("meta" | "ct")) => {
            let (kind, source) = if name == "meta" { (Kind::Packet, 3) } else { (Kind::Conntrack, 4) };
            // NFT_META_MARK and NFT_CT_MARK.
            let mark = data.be32(2) == Some(3);
            match (data.be32(source), data.be32(1)) {
                (Some(from), _) => [mark.then_some(Expression::Store(kind, from)), None],
                (None, Some(to)) => [Some(if mark { Expression::Load(kind, to) } else { Expression::Fill(to) }), None],
                (None, None) => [None, None],
            }
        }
        Some("bitwise") => {
            let value = |attribute| data.nested(attribute).u32(NFTA_DATA_VALUE);
            let moved = data.be32(1).zip(data.be32(2)).map(|(from, to)| {
                // Shifts and the like show every bit and keep none.
                let (mask, flip) = value(4).zip(value(5)).unwrap_or((u32::MAX, u32::MAX));
                Expression::Mask { from, to, mask, flip }
            });
            [moved, None]
        }
        Some("cmp" | "range") => [data.be32(1).map(Expression::Compare), None],
        Some("lookup") => [Some(Expression::LookUp), fill(3)],
        Some("immediate" | "payload" | "exthdr" | "fib" | "rt" | "numgen" | "osf" | "xfrm") => [fill(1), None],
        Some("byteorder" | "hash" | "socket") => [fill(2), None],
        Some(_) | None => [None, None],
    };
    found.into_iter().flatten().collect()
}

pub(crate) fn family_word(family: u8) -> &'static str {
    match family {
        NFPROTO_INET => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "of an unknown family",
    }
}

/// Our bits of a packet's mark: the line, and whether it is a probe.
const PACKET: u32 = Mark::WAN_MASK | Mark::PROBE;
/// Our bits of a flow's mark: the line and the policy.
const CONNTRACK: u32 = Mark::WAN_MASK | Mark::POLICY_MASK;
/// The last of our rules that send a marked packet to the table of its line.
const LAST_LOOKUP: u32 = 10_127;
const NFPROTO_UNSPEC: u8 = 0;
const NFT_MSG_GETRULE: u16 = 7;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_before_ours_that_matches_a_line_or_a_probe_takes_our_packets() {
        let table = [
            (500, 0x0100_0000, 0x7f00_0000, true),
            (500, 0x0100_0000, 0xffff_ffff, true),
            (500, 0x8100_0000, 0xff00_0000, true),
            (500, 0, 0x8000_0000, true),
            (500, 0, 0x0100_0000, true),
            (LAST_LOOKUP, 0x0100_0000, 0x7f00_0000, true),
            (LAST_LOOKUP + 1, 0x0100_0000, 0x7f00_0000, false),
            (500, 0x42, 0xffff_ffff, false),
            (500, 0x0100, 0x3f00, false),
            (500, 0x00ff_0000, 0x00ff_0000, false),
            (500, 0, 0, false),
        ];
        for (priority, mark, mask, takes) in table {
            let told = taking(&MarkRule { family: Family::V6, priority, mark, mask });
            assert_eq!(told.is_some(), takes, "{priority} {mark:#x}/{mask:#x}");
            assert!(told.is_none_or(|told| told.contains(&format!("ip -6 rule del priority {priority}"))));
        }
    }

    #[test]
    fn a_rule_touches_the_bits_it_compares_or_changes() {
        use Expression::{Compare, Fill, Load, LookUp, Mask, Store};
        use Kind::{Conntrack, Packet};
        type Case<'a> = (&'a [Expression], &'a [(Kind, u32)]);

        let masked = |mask, flip| Mask { from: 1, to: 1, mask, flip };
        let all = u32::MAX;
        let table: [Case<'_>; 9] = [
            // meta mark 0x42
            (&[Load(Packet, 1), Compare(1)], &[(Packet, all)]),
            // meta mark & 0xff == 0x42
            (&[Load(Packet, 1), masked(0xff, 0), Compare(1)], &[(Packet, 0xff)]),
            // meta mark set meta mark | 0x10
            (&[Load(Packet, 1), masked(!0x10, 0x10), Store(Packet, 1)], &[(Packet, 0x10)]),
            // ct mark set ct mark & 0xff
            (&[Load(Conntrack, 1), masked(0xff, 0), Store(Conntrack, 1)], &[(Conntrack, !0xff)]),
            // meta mark set 0x42
            (&[Fill(1), Store(Packet, 1)], &[(Packet, all)]),
            // meta mark set ct mark & 0xff
            (&[Load(Conntrack, 1), masked(0xff, 0), Store(Packet, 1)], &[(Packet, all)]),
            // meta mark & 0xff == 0x42 tcp dport 80
            (&[Load(Packet, 1), masked(0xff, 0), Compare(1), Fill(1), Compare(1)], &[(Packet, 0xff)]),
            // ip saddr . meta mark { 192.0.2.1 . 0x42 }
            (&[Fill(1), Load(Packet, 9), LookUp], &[(Packet, all)]),
            (&[Fill(1), Compare(1)], &[]),
        ];
        for (rule, wanted) in table {
            assert_eq!(touched(rule), wanted.iter().copied().collect(), "{rule:?}");
        }
    }
}
