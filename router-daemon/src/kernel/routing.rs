//! Addresses, rules and routes. Ours are those with our protocol number; nothing else is shown, changed or deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use config::units::{Family, Mark, TableId};
use ipnet::IpNet;
use mwan::state::{Address, NextHop, PROTOCOL, RouteKey, Rule, RuleAction, Selector};
use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction as Action, RuleAttribute, RuleMessage};

use super::links::Table;
use super::netlink::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, af, done_if, errno};
use super::rtnl::{Rtnl, find};

pub(crate) async fn addresses(rtnl: &mut Rtnl, links: &Table) -> io::Result<BTreeSet<Address>> {
    let all = rtnl.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).await?;
    Ok(all.iter().filter_map(|message| address(message, links)).collect())
}

pub(crate) async fn add_address(rtnl: &mut Rtnl, wanted: &Address) -> io::Result<()> {
    let links = &Table::read(rtnl).await?;
    let message = address_message(links.index(&wanted.link)?, wanted);
    let add = RouteNetlinkMessage::NewAddress(message.clone());
    match rtnl.change(NLM_F_CREATE | NLM_F_EXCL, add.clone()).await {
        // Ours, somebody else's, or ours with another flag. The last two are put right.
        Err(error) if errno(&error) == Some(Errno::EEXIST as i32) => {
            if addresses(rtnl, links).await?.contains(wanted) {
                return Ok(());
            }
            let delete = rtnl.change(0, RouteNetlinkMessage::DelAddress(message)).await;
            done_if(delete, &[Errno::EADDRNOTAVAIL])?;
            rtnl.change(NLM_F_CREATE | NLM_F_REPLACE, add).await
        }
        other => other,
    }
}

pub(crate) async fn delete_address(rtnl: &mut Rtnl, unwanted: &Address) -> io::Result<()> {
    let links = &Table::read(rtnl).await?;
    // The kernel tells addresses apart by link and prefix only; its flags may have been put right before.
    let Some(link) = links.named(unwanted.link.as_str()) else { return Ok(()) };
    if !addresses(rtnl, links).await?.contains(unwanted) {
        return Ok(());
    }
    let message = RouteNetlinkMessage::DelAddress(address_message(link.index, unwanted));
    done_if(rtnl.change(0, message).await, &[Errno::EADDRNOTAVAIL, Errno::ENODEV])
}

pub(crate) async fn rules(rtnl: &mut Rtnl) -> io::Result<BTreeSet<Rule>> {
    let mut rules = BTreeSet::new();
    for family in Family::ALL {
        let mut question = RuleMessage::default();
        question.header.family = af(family).into();
        let all = rtnl.dump(RouteNetlinkMessage::GetRule(question)).await?;
        rules.extend(all.iter().filter_map(|message| rule(message, family)));
    }
    Ok(rules)
}

pub(crate) async fn add_rule(rtnl: &mut Rtnl, wanted: &Rule) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewRule(rule_message(wanted));
    done_if(rtnl.change(NLM_F_CREATE | NLM_F_EXCL, message).await, &[Errno::EEXIST])
}

pub(crate) async fn delete_rule(rtnl: &mut Rtnl, unwanted: &Rule) -> io::Result<()> {
    done_if(rtnl.change(0, RouteNetlinkMessage::DelRule(rule_message(unwanted))).await, &[Errno::ENOENT])
}

pub(crate) async fn routes(rtnl: &mut Rtnl, links: &Table) -> io::Result<BTreeMap<RouteKey, NextHop>> {
    let mut routes = BTreeMap::new();
    for family in Family::ALL {
        let mut question = RouteMessage::default();
        question.header.address_family = af(family).into();
        question.header.protocol = PROTOCOL.into();
        let all = rtnl.dump(RouteNetlinkMessage::GetRoute(question)).await?;
        routes.extend(all.iter().filter_map(|message| route(message, family, links)));
    }
    Ok(routes)
}

pub(crate) async fn set_route(rtnl: &mut Rtnl, key: &RouteKey, hop: &NextHop) -> io::Result<()> {
    let mut message = route_message(key);
    message.header.kind = RouteType::Unicast;
    let direct = match hop {
        NextHop::Gateway { link, gateway, source } => {
            // The gateway need not lie in a prefix of the link: the same subnet may stand on several lines.
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway((*gateway).into()));
            Some((link, source))
        }
        NextHop::Direct { link, source } => {
            message.header.scope = RouteScope::Link;
            Some((link, source))
        }
        NextHop::Unreachable => {
            message.header.kind = RouteType::Unreachable;
            None
        }
    };
    if let Some((link, source)) = direct {
        message.attributes.push(RouteAttribute::Oif(Table::read(rtnl).await?.index(link)?));
        message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
    }
    rtnl.change(NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewRoute(message)).await
}

pub(crate) async fn delete_route(rtnl: &mut Rtnl, key: &RouteKey) -> io::Result<()> {
    let mut message = route_message(key);
    message.header.scope = RouteScope::NoWhere;
    let result = rtnl.change(0, RouteNetlinkMessage::DelRoute(message)).await;
    done_if(result, &[Errno::ESRCH, Errno::ENOENT, Errno::ENODEV])
}

fn address(message: &RouteNetlinkMessage, links: &Table) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(AddressMessage { header, attributes, .. }) = message else { return None };
    if find!(attributes, AddressAttribute::Protocol) != Some(&PROTOCOL.into()) {
        return None;
    }
    // `IFA_ADDRESS` is the far end of a point-to-point link; IPv6 gives only that when there is none.
    let own = find!(attributes, AddressAttribute::Local).or(find!(attributes, AddressAttribute::Address))?;
    Some(Address {
        link: links.name(header.index)?,
        net: IpNet::new(*own, header.prefix_len).ok()?,
        no_prefix_route: find!(attributes, AddressAttribute::Flags)?.contains(AddressFlags::Noprefixroute),
    })
}

fn address_message(index: u32, wanted: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    let address = wanted.net.addr();
    message.header.family = af(Family::of(address)).into();
    message.header.prefix_len = wanted.net.prefix_len();
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Noprefixroute, wanted.no_prefix_route);
    match wanted.net {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V4(_) => {}
        // A line may carry the same address as its neighbour, and routes name our addresses as their source before
        // duplicate detection would be through.
        IpNet::V6(_) => flags |= AddressFlags::Nodad,
    }
    message.attributes.extend([AddressAttribute::Flags(flags), AddressAttribute::Protocol(PROTOCOL.into())]);
    message
}

fn rule(message: &RouteNetlinkMessage, family: Family) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(RuleMessage { header, attributes, .. }) = message else { return None };
    if find!(attributes, RuleAttribute::Protocol) != Some(&PROTOCOL.into()) {
        return None;
    }
    let mark = find!(attributes, RuleAttribute::FwMark).copied().unwrap_or_default();
    let mask = find!(attributes, RuleAttribute::FwMask).copied().unwrap_or_default();
    let from = find!(attributes, RuleAttribute::Iifname).map(String::as_str);
    let selector = match (from, find!(attributes, RuleAttribute::Oifname)) {
        (Some("lo"), _) => Selector::Local,
        (Some(_), _) => return None,
        (None, Some(link)) => Selector::OutInterface(link.parse().ok()?),
        (None, None) if mask != 0 => Selector::Mark { mark: Mark(mark), mask: Mark(mask) },
        (None, None) => Selector::All,
    };
    let suppress = find!(attributes, RuleAttribute::SuppressPrefixLen).filter(|length| **length != u32::MAX);
    let action = match (header.action, suppress) {
        (Action::ToTable, Some(_)) => RuleAction::LookupMainWithoutDefault,
        (Action::ToTable, None) => RuleAction::Lookup(TableId(*find!(attributes, RuleAttribute::Table)?)),
        (Action::Unreachable, _) => RuleAction::Unreachable,
        (Action::Blackhole, _) => RuleAction::Blackhole,
        _ => return None,
    };
    let priority = find!(attributes, RuleAttribute::Priority).copied().unwrap_or_default();
    Some(Rule { priority, family, selector, action })
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let (action, table) = match rule.action {
        RuleAction::Lookup(table) => (Action::ToTable, Some(table)),
        RuleAction::LookupMainWithoutDefault => (Action::ToTable, Some(TableId::MAIN)),
        RuleAction::Unreachable => (Action::Unreachable, None),
        RuleAction::Blackhole => (Action::Blackhole, None),
    };
    let mut message = RuleMessage::default();
    message.header.family = af(rule.family).into();
    message.header.action = action;
    message.attributes = vec![RuleAttribute::Priority(rule.priority), RuleAttribute::Protocol(PROTOCOL.into())];
    message.attributes.extend(table.map(|table| RuleAttribute::Table(table.0)));
    if rule.action == RuleAction::LookupMainWithoutDefault {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    }
    match &rule.selector {
        Selector::All => {}
        Selector::Mark { mark, mask } => {
            message.attributes.extend([RuleAttribute::FwMark(mark.0), RuleAttribute::FwMask(mask.0)]);
        }
        Selector::OutInterface(link) => message.attributes.push(RuleAttribute::Oifname(link.to_string())),
        Selector::Local => message.attributes.push(RuleAttribute::Iifname("lo".to_owned())),
    }
    message
}

fn route(message: &RouteNetlinkMessage, family: Family, links: &Table) -> Option<(RouteKey, NextHop)> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = message else { return None };
    if header.protocol != PROTOCOL.into() || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let unspecified = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let destination = find!(attributes, RouteAttribute::Destination).map_or(Some(unspecified), ip)?;
    let metric = match (family, find!(attributes, RouteAttribute::Priority).copied().unwrap_or_default()) {
        (Family::V6, IP6_RT_PRIO_USER) => 0,
        (Family::V4 | Family::V6, metric) => metric,
    };
    let key = RouteKey {
        family,
        table: TableId(find!(attributes, RouteAttribute::Table).copied().unwrap_or(u32::from(header.table))),
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        metric,
    };
    let link = find!(attributes, RouteAttribute::Oif).and_then(|index| links.name(*index));
    let source = find!(attributes, RouteAttribute::PrefSource).and_then(ip);
    let hop = match (header.kind, find!(attributes, RouteAttribute::Gateway).and_then(ip)) {
        (RouteType::Unreachable, _) => NextHop::Unreachable,
        (RouteType::Unicast, Some(gateway)) => NextHop::Gateway { link: link?, gateway, source },
        (RouteType::Unicast, None) => NextHop::Direct { link: link?, source },
        _ => return None,
    };
    Some((key, hop))
}

fn route_message(key: &RouteKey) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = af(key.family).into();
    message.header.destination_prefix_length = key.destination.prefix_len();
    message.header.protocol = PROTOCOL.into();
    message.attributes.push(RouteAttribute::Table(key.table.0));
    if key.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(key.metric));
    }
    if key.destination.prefix_len() != 0 {
        message.attributes.push(RouteAttribute::Destination(key.destination.network().into()));
    }
    message
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match *address {
        RouteAddress::Inet(address) => Some(address.into()),
        RouteAddress::Inet6(address) => Some(address.into()),
        RouteAddress::Mpls(_) | RouteAddress::Other(_) | _ => None,
    }
}

/// The metric the kernel gives an IPv6 route that asks for none.
const IP6_RT_PRIO_USER: u32 = 1024;
