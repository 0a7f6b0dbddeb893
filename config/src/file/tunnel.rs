//! Tunnels to other sites, as written.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{Failback, Maybe, Problems, ServiceRef};
use crate::problem::Span;
use crate::read::{At, Table};
use crate::units::{IfName, VlanName, WanName};

/// What both kinds have.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) name: At<VlanName>,
    pub(crate) span: Span,
    pub(crate) interface: Maybe<IfName>,
    pub(crate) remote_networks: Maybe<Vec<At<IpNet>>>,
    pub(crate) wans: Maybe<Vec<At<WanName>>>,
    pub(crate) failback: Maybe<Failback>,
    pub(crate) listen: Maybe<bool>,
    pub(crate) input: Maybe<Vec<At<ServiceRef>>>,
    pub(crate) comment: Maybe<String>,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Ipsec(Box<Ipsec>),
    Wireguard(Box<Wireguard>),
}

#[derive(Debug)]
pub(crate) struct Ipsec {
    pub(crate) remote: Maybe<IpAddr>,
    pub(crate) local_id: Maybe<String>,
    pub(crate) remote_id: Maybe<String>,
    pub(crate) psk: Maybe<String>,
    pub(crate) certificate: Maybe<String>,
    pub(crate) key: Maybe<String>,
    pub(crate) ca: Maybe<String>,
    pub(crate) profile: Maybe<String>,
    pub(crate) local_networks: Maybe<Vec<At<IpNet>>>,
}

#[derive(Debug)]
pub(crate) struct Wireguard {
    pub(crate) endpoint: Maybe<String>,
    pub(crate) port: Maybe<i64>,
    pub(crate) private_key: Maybe<String>,
    pub(crate) public_key: Maybe<String>,
    pub(crate) preshared_key: Maybe<String>,
    pub(crate) keepalive: Maybe<Duration>,
}

pub(super) fn ipsec(name: At<VlanName>, table: &mut Table<'_>, problems: &mut Problems) -> Tunnel {
    let kind = Ipsec {
        remote: table.value("remote", problems),
        local_id: table.needed("local_id", "\"hq.example.org\"", problems),
        remote_id: table.needed("remote_id", "\"branch.example.org\"", problems),
        psk: table.value("psk", problems),
        certificate: table.value("certificate", problems),
        key: table.value("key", problems),
        ca: table.value("ca", problems),
        profile: table.value("profile", problems),
        local_networks: super::needed_list(table, "local_networks", "[\"10.0.10.0/24\"]", problems),
    };
    tunnel(name, table, problems, Kind::Ipsec(Box::new(kind)))
}

pub(super) fn wireguard(name: At<VlanName>, table: &mut Table<'_>, problems: &mut Problems) -> Tunnel {
    let kind = Wireguard {
        endpoint: table.value("endpoint", problems),
        port: table.value("port", problems),
        private_key: table.needed("private_key", "\"/etc/quadway/branch.key\"", problems),
        public_key: table.needed("public_key", "\"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"", problems),
        preshared_key: table.value("preshared_key", problems),
        keepalive: table.value("keepalive", problems),
    };
    tunnel(name, table, problems, Kind::Wireguard(Box::new(kind)))
}

fn tunnel(name: At<VlanName>, table: &mut Table<'_>, problems: &mut Problems, kind: Kind) -> Tunnel {
    Tunnel {
        name,
        span: table.span.clone(),
        interface: table.value("interface", problems),
        remote_networks: super::needed_list(table, "remote_networks", "[\"10.9.0.0/24\"]", problems),
        wans: super::needed_list(table, "wans", "[\"wan1\", \"wan2\"]", problems),
        failback: table.value("failback", problems),
        listen: table.value("listen", problems),
        input: table.list("input", problems),
        comment: table.value("comment", problems),
        kind,
    }
}
