//! The words everybody shares: names, ids, marks, tables, weights. Each wraps one number or string that has
//! a meaning, so that a mark cannot be passed where a table is wanted. No I/O, no policy.

use std::fmt;
use std::num::{NonZeroU8, NonZeroU64};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string cannot be a name of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the name of a {kind} cannot be empty")]
    Empty { kind: &'static str },
    #[error("{kind} names have at most {limit} characters, this one has {length}")]
    TooLong { kind: &'static str, limit: usize, length: usize },
    #[error("{kind} names may not hold {found:?}; use letters, digits, '-' , '_' and '.'")]
    Character { kind: &'static str, found: char },
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $limit:literal $(, plus $more:literal)?) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                checked($kind, $limit, concat!("-_." $(, $more)?), text).map(Self)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name!(
    /// A network interface as the kernel names it: at most 15 bytes (`IFNAMSIZ` - 1).
    IfName, "interface", 15
);
name!(
    /// An uplink, as in `[wan.wan1]`.
    WanName, "wan", 32
);
name!(
    /// A segment, as in `[vlan.storage]`.
    VlanName, "vlan", 32
);
name!(
    /// A host with a documented address, as in `[host.nas]`.
    HostName, "host", 63
);
name!(
    /// A named set of ports, as in `[service.web]`, or one written in place, as in `tcp/631`: only those hold a '/'.
    ServiceName, "service", 32, plus "/"
);
name!(
    /// A named set of Internet destinations, as in `[egress.cloudflared]`.
    EgressName, "egress set", 32
);
name!(
    /// A client of the API over HTTPS, as in `[api.client.alice]`.
    ClientName, "client", 32
);
name!(
    /// A place where the router ends TLS, as in `name = "shop"` of a `[[tls_offload]]`. Short enough to stand in the name
    /// of a service, `tls_offload/shop`.
    TlsOffloadName, "tls_offload", 20
);
name!(
    /// One router of a pair, as in `[pair.node.left]`.
    NodeName, "router", 63
);
name!(
    /// A choice of lines, as in `[policy.balanced]`.
    PolicyName, "policy", 32
);

fn checked(kind: &'static str, limit: usize, marks: &str, text: &str) -> Result<String, NameError> {
    if text.is_empty() || text == "." || text == ".." {
        return Err(NameError::Empty { kind });
    }
    if text.len() > limit {
        return Err(NameError::TooLong { kind, limit, length: text.len() });
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || marks.contains(*c))) {
        Some(found) => Err(NameError::Character { kind, found }),
        None => Ok(text.to_owned()),
    }
}

/// IPv4 or IPv6. Lines are judged, balanced and failed over per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The address of a network card.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Multicast or broadcast: no card has it.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HELP: &str = "write it like \"02:00:5e:10:00:07\"";
        let byte = |part: &str| match part.len() {
            1 | 2 if part.chars().all(|c| c.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.trim().split([':', '-']).map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(HELP)
    }
}

impl TryFrom<String> for Mac {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A kind of change that is told outside, as in `events = ["health"]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A line changed its state.
    Health,
    /// A policy uses other lines.
    Policy,
    /// A probe target is bad, or good again.
    Target,
    /// Most lines were lost together, or that is over.
    Outage,
    /// A gateway has another MAC.
    Gateway,
    /// A site file is in force.
    Applied,
    /// A site file was refused.
    Refused,
    /// A change was confirmed.
    Confirmed,
    /// A change was taken back.
    RolledBack,
    /// Somebody changed what is ours in the kernel.
    Drift,
    /// The fast path went on or off.
    FastPath,
    /// A cell of the matrix is audited, or no longer.
    Audit,
    /// A program that the router runs fails, or no longer.
    Component,
    /// A line got another lease of its addresses, or has none.
    Lease,
    /// This router of a pair became active, or gave that up; or both are.
    Pair,
}

impl EventKind {
    pub const ALL: [Self; 15] = [
        Self::Health,
        Self::Policy,
        Self::Target,
        Self::Outage,
        Self::Gateway,
        Self::Applied,
        Self::Refused,
        Self::Confirmed,
        Self::RolledBack,
        Self::Drift,
        Self::FastPath,
        Self::Audit,
        Self::Component,
        Self::Lease,
        Self::Pair,
    ];

    /// As it stands in `events`, and as the tag `event` of what is told.
    pub fn word(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Policy => "policy",
            Self::Target => "target",
            Self::Outage => "outage",
            Self::Gateway => "gateway",
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Confirmed => "confirmed",
            Self::RolledBack => "rolled-back",
            Self::Drift => "drift",
            Self::FastPath => "fast-path",
            Self::Audit => "audit",
            Self::Component => "component",
            Self::Lease => "lease",
            Self::Pair => "pair",
        }
    }
}

/// The number of an uplink, 1 to 120. It stands in bits 24 to 30 of packet and conntrack marks; 121 to 127 are
/// kept for routes that are no line (`unreachable`, `blackhole`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WanId(NonZeroU8);

impl WanId {
    pub const MAX: u8 = 120;

    pub fn new(id: u8) -> Option<Self> {
        NonZeroU8::new(id).filter(|id| id.get() <= Self::MAX).map(Self)
    }

    pub fn get(self) -> u8 {
        self.0.get()
    }

    /// The packet mark of this line: its id in bits 24 to 30.
    pub fn mark(self) -> Mark {
        Mark(u32::from(self.get()) << 24)
    }

    /// The routing table of this line.
    pub fn table(self) -> TableId {
        TableId(1000 + u32::from(self.get()))
    }
}

impl fmt::Display for WanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a policy, 1 to 254, in bits 16 to 23 of the conntrack mark. 0 is a flow no policy chose a line
/// for (it came in from a WAN).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyId(pub u8);

impl PolicyId {
    pub const MAX: u8 = 254;
    /// In the conntrack mark of probes, where no policy has a say.
    pub const PROBES: Self = Self(255);
}

/// An 802.1Q VLAN number, 1 to 4094; above them, the number of a segment that is none but a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VlanId(u16);

impl VlanId {
    pub fn new(id: u16) -> Option<Self> {
        (1..=4094).contains(&id).then_some(Self(id))
    }

    /// Tunnels are numbered from 0.
    pub fn of_tunnel(number: u16) -> Option<Self> {
        (number < 1024).then_some(Self(4096 + number))
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A packet or conntrack mark.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(pub u32);

impl Mark {
    /// Bits 24 to 30: the line.
    pub const WAN_MASK: u32 = 0x7f00_0000;
    /// Bits 16 to 23: the policy that chose the line (conntrack mark only).
    pub const POLICY_MASK: u32 = 0x00ff_0000;
    /// Bit 31: a packet of a probe, which no rule of ours may steer, mark or drop.
    pub const PROBE: u32 = 0x8000_0000;
    /// The mark of packets made to end a flow, told from a probe by naming no line: conntrack must not see them.
    pub const KICK: Self = Self(Self::PROBE);
    /// The line number of what carries a tunnel: packets that go where the routes of table `TUNNEL_PEERS` say.
    pub const TUNNEL: Self = Self(0x7d00_0000);
    /// The line number that stands for "answer unreachable".
    pub const UNREACHABLE: Self = Self(0x7f00_0000);
    /// The line number that stands for "drop silently".
    pub const BLACKHOLE: Self = Self(0x7e00_0000);
    /// Bits 16 to 30 of a flow that passes for an audit only: the policy of the probes, and no line, which no probe is
    /// without.
    pub const AUDIT: Self = Self(Self::POLICY_MASK);
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// A routing table number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableId(pub u32);

impl TableId {
    pub const MAIN: Self = Self(254);
    /// Holds the default route that gives the router's own sockets a first route; see `Config::router.policy`.
    pub const ROUTER: Self = Self(1000);
    /// What is at the other ends of tunnels.
    pub const TUNNELS: Self = Self(1121);
    /// Where the other ends themselves are, by the line that carries each tunnel at this moment.
    pub const TUNNEL_PEERS: Self = Self(1122);
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The share of a line among the lines of its tier, 1 to 255.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Weight(pub NonZeroU8);

impl Weight {
    pub fn get(self) -> u8 {
        self.0.get()
    }
}

/// Bits per second, written as tc(8) does: `940mbit`, decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BitRate(pub NonZeroU64);

impl BitRate {
    #[expect(clippy::cast_precision_loss, reason = "no line comes near 2^52 bits per second")]
    pub fn bytes_per_second(self) -> f64 {
        self.0.get() as f64 / 8.0
    }
}

impl FromStr for BitRate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HELP: &str = "write a whole number and its unit: \"500kbit\", \"940mbit\" or \"10gbit\"";
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or(HELP)?);
        let unit = match unit {
            "kbit" => 1_000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            _ => return Err(HELP),
        };
        let rate = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        rate.and_then(NonZeroU64::new).map(Self).ok_or(HELP)
    }
}

/// The order in which groups of lines are used: the lowest tier with a usable line carries the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tier(pub u8);

/// The line of the site file on which something was written, from 1. 0 means "built in".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Line(pub u32);

impl Line {
    pub const BUILT_IN: Self = Self(0);
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("built in"),
            line => write!(f, "line {line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wan_id_stays_out_of_the_reserved_marks() {
        assert_eq!(WanId::new(0), None);
        assert_eq!(WanId::new(121), None);
        let last = WanId::new(120).unwrap();
        assert!(last.mark().0 < Mark::BLACKHOLE.0);
        assert_eq!(last.mark().0 & !Mark::WAN_MASK, 0);
    }

    #[test]
    fn interface_names_obey_the_kernel() {
        assert!("lan2.5-1".parse::<IfName>().is_ok());
        assert!("sixteen-letters-".parse::<IfName>().is_err());
        assert!("a/b".parse::<IfName>().is_err());
        assert!("..".parse::<IfName>().is_err());
    }
}
