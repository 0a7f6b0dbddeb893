//! What VLANs are handed by the router, as written: DHCP, router advertisements, time.

use std::time::Duration;

use super::{Addresses, Maybe, Problems};
use crate::problem::Span;
use crate::read::{At, Node, Read, Table, text};
use crate::units::Mac;

#[derive(Debug)]
pub(crate) struct Dhcp {
    pub(crate) span: Span,
    pub(crate) lease: Maybe<Duration>,
    pub(crate) domain: Maybe<String>,
}

/// `dhcp` of a VLAN.
#[derive(Debug)]
pub(crate) struct VlanDhcp {
    pub(crate) span: Span,
    pub(crate) pool: Maybe<Vec<At<Addresses>>>,
    pub(crate) lease: Maybe<Duration>,
    pub(crate) domain: Maybe<String>,
    pub(crate) mtu: Maybe<i64>,
}

#[derive(Debug)]
pub(crate) struct Ra {
    pub(crate) span: Span,
    pub(crate) lifetime: Maybe<Duration>,
}

#[derive(Debug)]
pub(crate) struct Ntp {
    pub(crate) span: Span,
    pub(crate) servers: Maybe<Vec<At<String>>>,
    pub(crate) set_clock: Maybe<bool>,
}

pub(super) fn dhcp(table: &mut Table<'_>, problems: &mut Problems) -> Dhcp {
    Dhcp { span: table.span.clone(), lease: table.value("lease", problems), domain: table.value("domain", problems) }
}

pub(super) fn vlan_dhcp(table: &mut Table<'_>, problems: &mut Problems) -> VlanDhcp {
    VlanDhcp {
        span: table.span.clone(),
        pool: table.one_or_many("pool", problems),
        lease: table.value("lease", problems),
        domain: table.value("domain", problems),
        mtu: table.value("mtu", problems),
    }
}

pub(super) fn ra(table: &mut Table<'_>, problems: &mut Problems) -> Ra {
    Ra { span: table.span.clone(), lifetime: table.value("lifetime", problems) }
}

pub(super) fn ntp(table: &mut Table<'_>, problems: &mut Problems) -> Ntp {
    Ntp {
        span: table.span.clone(),
        servers: super::needed_list(table, "servers", "[\"0.debian.pool.ntp.org\", \"192.0.2.1\"]", problems),
        set_clock: table.value("set_clock", problems),
    }
}

impl Read for Mac {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        text(node, "a MAC address", problems, str::parse)
    }
}
