//! Addresses, rules and routes over rtnetlink. Ours are those with our protocol number; nothing else is shown,
//! changed or deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use config::units::{Family, Mark, TableId};
use ipnet::IpNet;
use mwan::state::{Address, NextHop, PROTOCOL, RouteKey, Rule, RuleAction, Selector};
use nix::errno::Errno;

use super::links::Table;
use super::netlink::{Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Received, Socket, done_if, errno, ne32};

pub(crate) fn addresses(socket: &mut Socket, links: &Table) -> io::Result<BTreeSet<Address>> {
    let all = socket.dump(&Message::new(RTM_GETADDR, 0, &[0; IFADDRMSG]))?;
    let ours = all.iter().filter(|message| message.attributes(IFADDRMSG).u8(IFA_PROTO) == Some(PROTOCOL));
    Ok(ours.filter_map(|message| address(message, links)).collect())
}

/// Every address of the namespace, ours or not: a flow that ends at one of them ends at this machine.
pub(crate) fn own_addresses(socket: &mut Socket) -> io::Result<BTreeSet<IpAddr>> {
    let all = socket.dump(&Message::new(RTM_GETADDR, 0, &[0; IFADDRMSG]))?;
    Ok(all.iter().filter_map(|message| net_of(message).map(|net| net.addr())).collect())
}

pub(crate) fn add_address(socket: &mut Socket, wanted: &Address) -> io::Result<()> {
    let links = &Table::read(socket)?;
    match socket.ask(address_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, links.index(&wanted.link)?, wanted)) {
        // Ours, somebody else's, or ours with another flag. The last two are put right.
        Err(error) if errno(&error) == Some(Errno::EEXIST as i32) => {
            if addresses(socket, links)?.contains(wanted) {
                return Ok(());
            }
            let index = links.index(&wanted.link)?;
            done_if(socket.ask(address_message(RTM_DELADDR, 0, index, wanted)), &[Errno::EADDRNOTAVAIL])?;
            socket.ask(address_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, wanted)).map(drop)
        }
        other => other.map(drop),
    }
}

pub(crate) fn delete_address(socket: &mut Socket, unwanted: &Address) -> io::Result<()> {
    let links = &Table::read(socket)?;
    // The kernel tells addresses apart by link and prefix only; its flags may have been put right before.
    let Some(link) = links.named(unwanted.link.as_str()) else { return Ok(()) };
    if !addresses(socket, links)?.contains(unwanted) {
        return Ok(());
    }
    let message = address_message(RTM_DELADDR, 0, link.index, unwanted);
    done_if(socket.ask(message), &[Errno::EADDRNOTAVAIL, Errno::ENODEV]).map(drop)
}

pub(crate) fn rules(socket: &mut Socket) -> io::Result<BTreeSet<Rule>> {
    let mut rules = BTreeSet::new();
    for family in Family::ALL {
        let all = socket.dump(&Message::new(RTM_GETRULE, 0, &header12(family)))?;
        let ours = all.iter().filter(|message| message.attributes(RULE_HEADER).u8(FRA_PROTOCOL) == Some(PROTOCOL));
        rules.extend(ours.filter_map(rule));
    }
    Ok(rules)
}

pub(crate) fn add_rule(socket: &mut Socket, wanted: &Rule) -> io::Result<()> {
    done_if(socket.ask(rule_message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, wanted)), &[Errno::EEXIST]).map(drop)
}

pub(crate) fn delete_rule(socket: &mut Socket, unwanted: &Rule) -> io::Result<()> {
    done_if(socket.ask(rule_message(RTM_DELRULE, 0, unwanted)), &[Errno::ENOENT]).map(drop)
}

pub(crate) fn routes(socket: &mut Socket, links: &Table) -> io::Result<BTreeMap<RouteKey, NextHop>> {
    let mut routes = BTreeMap::new();
    for family in Family::ALL {
        let mut header = header12(family);
        header[5] = PROTOCOL;
        let all = socket.dump(&Message::new(RTM_GETROUTE, 0, &header))?;
        routes.extend(all.iter().filter_map(|message| route(message, family, links)));
    }
    Ok(routes)
}

pub(crate) fn set_route(socket: &mut Socket, key: &RouteKey, hop: &NextHop) -> io::Result<()> {
    let links = &Table::read(socket)?;
    let kind = match hop {
        NextHop::Gateway { .. } | NextHop::Direct { .. } => RTN_UNICAST,
        NextHop::Unreachable => RTN_UNREACHABLE,
    };
    let mut message = route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, key, kind, scope(hop));
    match hop {
        NextHop::Gateway { link, gateway, source } => {
            message = with_address(message, RTA_GATEWAY, *gateway).u32(RTA_OIF, links.index(link)?);
            if let Some(source) = source {
                message = with_address(message, RTA_PREFSRC, *source);
            }
        }
        NextHop::Direct { link, source } => {
            message = message.u32(RTA_OIF, links.index(link)?);
            if let Some(source) = source {
                message = with_address(message, RTA_PREFSRC, *source);
            }
        }
        NextHop::Unreachable => {}
    }
    socket.ask(message).map(drop)
}

pub(crate) fn delete_route(socket: &mut Socket, key: &RouteKey) -> io::Result<()> {
    const RT_SCOPE_NOWHERE: u8 = 255;
    let message = route_message(RTM_DELROUTE, 0, key, 0, RT_SCOPE_NOWHERE);
    done_if(socket.ask(message), &[Errno::ESRCH, Errno::ENOENT, Errno::ENODEV]).map(drop)
}

fn address(message: &Received, links: &Table) -> Option<Address> {
    let flags = message.attributes(IFADDRMSG).u32(IFA_FLAGS).unwrap_or_default();
    Some(Address {
        link: links.name(ne32(message.body.get(4..8)?))?,
        net: net_of(message)?,
        no_prefix_route: flags & IFA_F_NOPREFIXROUTE != 0,
    })
}

fn net_of(message: &Received) -> Option<IpNet> {
    let attributes = message.attributes(IFADDRMSG);
    // `IFA_ADDRESS` is the far end of a point-to-point link; IPv6 gives only that when there is none.
    let bytes = attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS))?;
    IpNet::new(ip(bytes)?, *message.body.get(1)?).ok()
}

fn address_message(kind: u16, flags: u16, index: u32, wanted: &Address) -> Message {
    // A line may carry the same address as its neighbour, and routes name our addresses as their source before
    // duplicate detection would be through.
    const IFA_F_NODAD: u32 = 0x02;
    let mut header = [af(Family::of(wanted.net.addr())), wanted.net.prefix_len(), 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let message = Message::new(kind, flags, &header);
    let message = with_address(with_address(message, IFA_LOCAL, wanted.net.addr()), IFA_ADDRESS, wanted.net.addr());
    if kind == RTM_DELADDR {
        return message;
    }
    let mut bits = if wanted.no_prefix_route { IFA_F_NOPREFIXROUTE } else { 0 };
    let message = match wanted.net {
        IpNet::V4(net) if net.prefix_len() < 31 => message.attr(IFA_BROADCAST, &net.broadcast().octets()),
        IpNet::V4(_) => message,
        IpNet::V6(_) => {
            bits |= IFA_F_NODAD;
            message
        }
    };
    message.u32(IFA_FLAGS, bits).u8(IFA_PROTO, PROTOCOL)
}

fn rule(message: &Received) -> Option<Rule> {
    let attributes = message.attributes(RULE_HEADER);
    let family = family_of(*message.body.first()?)?;
    let mark = attributes.u32(FRA_FWMARK).unwrap_or_default();
    let mask = attributes.u32(FRA_FWMASK).unwrap_or_default();
    let selector = match (attributes.text(FRA_IIFNAME), attributes.text(FRA_OIFNAME)) {
        (Some("lo"), _) => Selector::Local,
        (Some(_), _) => return None,
        (None, Some(link)) => Selector::OutInterface(link.parse().ok()?),
        (None, None) if mask != 0 => Selector::Mark { mark: Mark(mark), mask: Mark(mask) },
        (None, None) => Selector::All,
    };
    let suppress = attributes.u32(FRA_SUPPRESS_PREFIXLEN).filter(|length| *length != u32::MAX);
    let action = match (*message.body.get(7)?, suppress) {
        (FR_ACT_TO_TBL, Some(_)) => RuleAction::LookupMainWithoutDefault,
        (FR_ACT_TO_TBL, None) => RuleAction::Lookup(TableId(attributes.u32(FRA_TABLE)?)),
        (FR_ACT_UNREACHABLE, _) => RuleAction::Unreachable,
        (FR_ACT_BLACKHOLE, _) => RuleAction::Blackhole,
        _ => return None,
    };
    Some(Rule { priority: attributes.u32(FRA_PRIORITY).unwrap_or_default(), family, selector, action })
}

fn rule_message(kind: u16, flags: u16, rule: &Rule) -> Message {
    let (action, table) = match rule.action {
        RuleAction::Lookup(table) => (FR_ACT_TO_TBL, Some(table)),
        RuleAction::LookupMainWithoutDefault => (FR_ACT_TO_TBL, Some(TableId::MAIN)),
        RuleAction::Unreachable => (FR_ACT_UNREACHABLE, None),
        RuleAction::Blackhole => (FR_ACT_BLACKHOLE, None),
    };
    let mut header = header12(rule.family);
    header[7] = action;
    let mut message = Message::new(kind, flags, &header).u32(FRA_PRIORITY, rule.priority).u8(FRA_PROTOCOL, PROTOCOL);
    if let Some(table) = table {
        message = message.u32(FRA_TABLE, table.0);
    }
    if rule.action == RuleAction::LookupMainWithoutDefault {
        message = message.u32(FRA_SUPPRESS_PREFIXLEN, 0);
    }
    match &rule.selector {
        Selector::All => message,
        Selector::Mark { mark, mask } => message.u32(FRA_FWMARK, mark.0).u32(FRA_FWMASK, mask.0),
        Selector::OutInterface(link) => message.text(FRA_OIFNAME, link.as_str()),
        Selector::Local => message.text(FRA_IIFNAME, "lo"),
    }
}

fn route(message: &Received, family: Family, links: &Table) -> Option<(RouteKey, NextHop)> {
    const RTM_F_CLONED: u32 = 0x200;
    let attributes = message.attributes(RTMSG);
    let [_, length, _, _, table, protocol, _, kind, flags @ ..] = message.body.get(0..RTMSG)? else { return None };
    if *protocol != PROTOCOL || ne32(flags) & RTM_F_CLONED != 0 {
        return None;
    }
    let unspecified = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let destination = attributes.get(RTA_DST).map_or(Some(unspecified), ip)?;
    let metric = match (family, attributes.u32(RTA_PRIORITY).unwrap_or_default()) {
        (Family::V6, IP6_RT_PRIO_USER) => 0,
        (Family::V4 | Family::V6, metric) => metric,
    };
    let key = RouteKey {
        family,
        table: TableId(attributes.u32(RTA_TABLE).unwrap_or(u32::from(*table))),
        destination: IpNet::new(destination, *length).ok()?,
        metric,
    };
    let link = attributes.u32(RTA_OIF).and_then(|index| links.name(index));
    let source = attributes.get(RTA_PREFSRC).and_then(ip);
    let hop = match (*kind, attributes.get(RTA_GATEWAY).and_then(ip)) {
        (RTN_UNREACHABLE, _) => NextHop::Unreachable,
        (RTN_UNICAST, Some(gateway)) => NextHop::Gateway { link: link?, gateway, source },
        (RTN_UNICAST, None) => NextHop::Direct { link: link?, source },
        _ => return None,
    };
    Some((key, hop))
}

fn route_message(kind: u16, flags: u16, key: &RouteKey, route: u8, scope: u8) -> Message {
    let mut header = header12(key.family);
    header[1] = key.destination.prefix_len();
    header[5] = PROTOCOL;
    header[6] = scope;
    header[7] = route;
    if kind == RTM_NEWROUTE && scope == RT_SCOPE_UNIVERSE && route == RTN_UNICAST {
        // The gateway need not lie in a prefix of the link: the same subnet may stand on several lines.
        header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let message = Message::new(kind, flags, &header).u32(RTA_TABLE, key.table.0);
    let message = if key.metric == 0 { message } else { message.u32(RTA_PRIORITY, key.metric) };
    if key.destination.prefix_len() == 0 { message } else { with_address(message, RTA_DST, key.destination.network()) }
}

fn scope(hop: &NextHop) -> u8 {
    match hop {
        NextHop::Direct { .. } => RT_SCOPE_LINK,
        NextHop::Gateway { .. } | NextHop::Unreachable => RT_SCOPE_UNIVERSE,
    }
}

pub(crate) fn with_address(message: Message, kind: u16, address: IpAddr) -> Message {
    match address {
        IpAddr::V4(address) => message.attr(kind, &address.octets()),
        IpAddr::V6(address) => message.attr(kind, &address.octets()),
    }
}

/// `rtmsg` and `fib_rule_hdr` are both 12 bytes and begin with the family.
fn header12(family: Family) -> [u8; RTMSG] {
    let mut header = [0; RTMSG];
    header[0] = af(family);
    header
}

pub(crate) fn af(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

pub(crate) fn family_of(af: u8) -> Option<Family> {
    match af {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
pub(crate) const RTM_NEWRULE: u16 = 32;
pub(crate) const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
const RULE_HEADER: usize = 12;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_BLACKHOLE: u8 = 6;
const FR_ACT_UNREACHABLE: u8 = 7;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTNH_F_ONLINK: u32 = 4;
/// The metric the kernel gives an IPv6 route that asks for none.
const IP6_RT_PRIO_USER: u32 = 1024;
