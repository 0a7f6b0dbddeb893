//! Tunnels to other sites. Each is a segment of its own: what comes out of it reaches nothing that no cell allows.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Failback, Material};
use crate::units::{Family, WanName};

/// What a segment leads to where it is no bridge of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    pub kind: TunnelKind,
    /// What is at its other end: at home there, and routed there.
    pub networks: Vec<IpNet>,
    /// The lines that carry it, the best first; at least one.
    pub wans: Vec<WanName>,
    /// What happens when a better line is back.
    pub failback: Failback,
    /// The other end may begin: a line lets it in.
    pub listen: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelKind {
    Ipsec(Ipsec),
    Wireguard(Wireguard),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipsec {
    /// `None` takes whoever proves to be the other end.
    pub remote: Option<IpAddr>,
    pub local_id: String,
    pub remote_id: String,
    pub proof: Proof,
    pub profile: CipherProfile,
    /// What of this side speaks through it.
    pub local_networks: Vec<IpNet>,
}

/// How the ends prove who they are. What is secret is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// The first line of the file.
    Psk(Material),
    /// PEM. `ca` signs the other end's certificate.
    Certificate { certificate: Material, key: Material, ca: Material },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CipherProfile {
    /// What a CPU does best.
    AesGcm,
    /// What a card of Intel's C62x kind can do in the kernel: AES-CBC with HMAC-SHA-256, no extended sequence
    /// numbers, other keys before the sequence numbers end.
    Qat,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wireguard {
    /// `None` waits for the other end.
    pub endpoint: Option<SocketAddr>,
    /// Where it listens; `None` is any.
    pub port: Option<u16>,
    pub private_key: Material,
    /// Of the other end, in base 64.
    pub public_key: String,
    pub preshared_key: Option<Material>,
    /// How often something is sent, so that what is between keeps the way open.
    pub keepalive: Option<Duration>,
}

impl Tunnel {
    /// Where the other end is on the Internet, as far as that is known.
    pub fn peer(&self) -> Option<IpAddr> {
        match &self.kind {
            TunnelKind::Ipsec(ipsec) => ipsec.remote,
            TunnelKind::Wireguard(wireguard) => wireguard.endpoint.map(|endpoint| endpoint.ip()),
        }
    }

    /// Of its packets on the lines. Of one whose other end is not known, IPv4: that is where it is waited for.
    pub fn family(&self) -> Family {
        self.peer().map_or(Family::V4, Family::of)
    }

    pub fn ipsec(&self) -> Option<&Ipsec> {
        match &self.kind {
            TunnelKind::Ipsec(ipsec) => Some(ipsec),
            TunnelKind::Wireguard(_) => None,
        }
    }

    pub fn wireguard(&self) -> Option<&Wireguard> {
        match &self.kind {
            TunnelKind::Wireguard(wireguard) => Some(wireguard),
            TunnelKind::Ipsec(_) => None,
        }
    }

    /// Its section of the site file.
    pub fn section(&self) -> &'static str {
        match &self.kind {
            TunnelKind::Ipsec(_) => "ipsec",
            TunnelKind::Wireguard(_) => "wireguard",
        }
    }
}
