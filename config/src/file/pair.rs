//! Two routers with one site file, as written.

use std::net::IpAddr;
use std::time::Duration;

use super::{Maybe, Problems};
use crate::problem::Span;
use crate::read::{At, Table};
use crate::units::{NodeName, VlanName};

#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) span: Span,
    pub(crate) sync: Maybe<VlanName>,
    pub(crate) vlans: Maybe<Vec<At<VlanName>>>,
    pub(crate) router_id: Maybe<i64>,
    pub(crate) advertise: Maybe<Duration>,
    pub(crate) preempt: Maybe<bool>,
    pub(crate) secret: Maybe<String>,
    pub(crate) nodes: Vec<PairNode>,
}

#[derive(Debug)]
pub(crate) struct PairNode {
    pub(crate) name: At<NodeName>,
    pub(crate) addresses: Maybe<Vec<At<IpAddr>>>,
    pub(crate) priority: Maybe<i64>,
}

pub(super) fn pair(table: &mut Table<'_>, problems: &mut Problems) -> Pair {
    Pair {
        span: table.span.clone(),
        sync: table.needed("sync", "\"sync\", the VLAN between the two", problems),
        vlans: table.one_or_many("vlans", problems),
        router_id: table.value("router_id", problems),
        advertise: table.value("advertise", problems),
        preempt: table.value("preempt", problems),
        secret: table.needed("secret", "\"/etc/quadway/pair.secret\"", problems),
        nodes: super::named(table, "node", problems, node),
    }
}

fn node(name: At<NodeName>, table: &mut Table<'_>, problems: &mut Problems) -> PairNode {
    PairNode {
        name,
        addresses: super::needed_list(table, "addresses", "[\"10.0.10.2\", \"10.0.99.2\"]", problems),
        priority: table.value("priority", problems),
    }
}
