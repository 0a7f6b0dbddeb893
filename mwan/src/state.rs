//! The kernel as we want it and as we find it: one type for both. Only things of ours stand here; whatever
//! somebody else put into the kernel is neither wanted nor observed.
//!
//! How "ours" is told: links carry the alias `quadway`, addresses, rules and routes the protocol number
//! [`PROTOCOL`], nft objects live in the table `inet quadway`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use config::model::{Kick, Rate};
use config::units::{EgressName, Family, IfName, Mark, PolicyId, PolicyName, TableId, VlanId, WanId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// `RTPROT_*`, `FRA_PROTOCOL` and `IFA_PROTO` of everything we create.
pub const PROTOCOL: u8 = 190;
/// `IFLA_IFALIAS` of the links we create.
pub const ALIAS: &str = "quadway";
/// Our nft table, of family `inet`.
pub const TABLE: &str = "quadway";
/// The nflog group of denials (and of allowed flows a cell asks to log).
pub const NFLOG_GROUP: u16 = 190;
/// How long the kernel waits for [`Step::EndAudit`] before it ends an audit by itself.
pub const AUDIT_GRACE: Duration = Duration::from_secs(2);
/// How many buckets a policy spreads its lines over.
pub const BUCKETS: usize = 256;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelState {
    pub links: BTreeMap<IfName, Link>,
    pub addresses: BTreeSet<Address>,
    /// Full names below `/proc/sys`, with `/` between the parts: `net/ipv4/conf/wan1/rp_filter`.
    pub sysctls: BTreeMap<String, String>,
    pub rules: BTreeSet<Rule>,
    #[serde(with = "as_pairs")]
    pub routes: BTreeMap<RouteKey, NextHop>,
    pub ruleset: RulesetState,
    #[serde(with = "as_pairs")]
    pub buckets: BTreeMap<BucketKey, Buckets>,
    /// Classes of flows that must not exist, and what their inside end is told when they go.
    #[serde(with = "as_pairs")]
    pub dead: BTreeMap<FlowClass, Kick>,
    /// `None` is off: every packet takes the kernel's path.
    pub fast_path: Option<FastPath>,
    /// From an interface to another: what no cell allows passes for this long.
    #[serde(default, with = "as_pairs")]
    pub audited: BTreeMap<LinkPair, Duration>,
}

/// Where packets come in, and where they leave.
pub type LinkPair = (IfName, IfName);

/// A link we manage. Ports exist before us; bridges and VLAN sub-interfaces we create and delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub kind: LinkKind,
    pub up: bool,
    pub master: Option<IfName>,
    /// `None` leaves it as it is.
    pub mtu: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// A physical port. `found_as` is its name at this moment where that is not yet the wanted one.
    Port {
        found_as: IfName,
    },
    Bridge,
    /// 802.1Q sub-interface.
    Tagged {
        parent: IfName,
        vlan: VlanId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    pub link: IfName,
    pub net: IpNet,
    /// Do not let the kernel add the connected route to table main (`IFA_F_NOPREFIXROUTE`): on for WANs.
    pub no_prefix_route: bool,
}

/// A policy routing rule. Ordered by priority first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    pub priority: u32,
    pub family: Family,
    pub selector: Selector,
    pub action: RuleAction,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    All,
    Mark {
        mark: Mark,
        mask: Mark,
    },
    OutInterface(IfName),
    /// `iif lo`: made by the router itself.
    Local,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    Lookup(TableId),
    /// Table main, but not its default route (`suppress_prefixlength 0`).
    LookupMainWithoutDefault,
    Unreachable,
    Blackhole,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteKey {
    pub family: Family,
    pub table: TableId,
    pub destination: IpNet,
    /// Distinguishes routes to the same destination in one table. 0 is the kernel's default, which it writes as
    /// 1024 in IPv6.
    pub metric: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NextHop {
    /// `via GATEWAY dev LINK onlink src SOURCE`.
    Gateway {
        link: IfName,
        gateway: IpAddr,
        source: Option<IpAddr>,
    },
    /// `dev LINK scope link src SOURCE`.
    Direct {
        link: IfName,
        source: Option<IpAddr>,
    },
    Unreachable,
}

/// Our nft table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RulesetState {
    /// There is no table of ours.
    #[default]
    Absent,
    /// There is one, and its rules are not what any generation of ours left there: somebody changed it, or it is
    /// the boot ruleset.
    Unknown,
    /// The table is exactly this. A `Ruleset` that was read back from the kernel holds the generation only.
    Installed(Ruleset),
}

/// The rules, chains, sets and maps of the table as text, without live data. A function of `Config` alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ruleset {
    /// Hash of everything below; also the name of an empty chain in the table, so that a restarted daemon knows
    /// what it finds.
    pub generation: String,
    /// Name to declaration body, without `elements`.
    pub sets: BTreeMap<String, String>,
    pub maps: BTreeMap<String, String>,
    /// Name to statements, one per line; a base chain begins with its `type … hook …` line.
    pub chains: BTreeMap<String, Vec<String>>,
}

impl PartialEq for Ruleset {
    fn eq(&self, other: &Self) -> bool {
        self.generation == other.generation
    }
}

impl Eq for Ruleset {}

/// One bucket map of the table: policies choose per family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BucketKey {
    pub policy: PolicyName,
    pub family: Family,
}

impl BucketKey {
    /// The name of the map in our table: `b_balanced_4`.
    pub fn map_name(&self) -> String {
        let family = match self.family {
            Family::V4 => '4',
            Family::V6 => '6',
        };
        format!("b_{}_{family}", self.policy)
    }

    /// The way back from [`BucketKey::map_name`]; `None` for a name that is no bucket map's.
    pub fn from_map_name(name: &str) -> Option<Self> {
        let (policy, family) = name.strip_prefix("b_")?.rsplit_once('_')?;
        let family = match family {
            "4" => Family::V4,
            "6" => Family::V6,
            _ => return None,
        };
        Some(Self { policy: policy.parse().ok()?, family })
    }
}

/// A set of the table that holds what names of an egress set stand for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedKey {
    pub set: EgressName,
    /// Which of its parts: [`config::model::EgressSet::named`].
    pub part: usize,
    pub family: Family,
}

impl NamedKey {
    /// The name of the set in our table: `names_azure-arc_0_4`.
    pub fn set_name(&self) -> String {
        let family = match self.family {
            Family::V4 => '4',
            Family::V6 => '6',
        };
        format!("names_{}_{}_{family}", self.set, self.part)
    }
}

/// Where each of the [`BUCKETS`] buckets of a policy sends a new flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buckets(pub Vec<Slot>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    Wan(WanId),
    Unreachable,
    Blackhole,
}

impl Slot {
    /// The chain of our table a bucket sends its flows to: `go_3`, `go_unreachable`, `go_blackhole`.
    pub fn chain_name(self) -> String {
        match self {
            Self::Wan(wan) => format!("go_{wan}"),
            Self::Unreachable => "go_unreachable".to_owned(),
            Self::Blackhole => "go_blackhole".to_owned(),
        }
    }

    /// The way back from [`Slot::chain_name`].
    pub fn from_chain_name(name: &str) -> Option<Self> {
        match name.strip_prefix("go_")? {
            "unreachable" => Some(Self::Unreachable),
            "blackhole" => Some(Self::Blackhole),
            wan => WanId::new(wan.parse().ok()?).map(Self::Wan),
        }
    }
}

/// Which lines have a connection of which client, for policies that keep these apart.
pub fn taken_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "taken4",
        Family::V6 => "taken6",
    }
}

/// How long a line counts as taken after a client's connection was put there, or was seen alive.
pub const TAKEN: Duration = Duration::from_secs(6);

/// The flows of one family on one line that one policy put there. In the conntrack mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowClass {
    pub family: Family,
    pub wan: WanId,
    /// `None` is policy number 0: flows that came in from the line.
    pub policy: Option<PolicyId>,
}

impl FlowClass {
    pub const MASK: u32 = Mark::WAN_MASK | Mark::POLICY_MASK;

    pub fn mark(self) -> Mark {
        Mark(self.wan.mark().0 | u32::from(self.policy.map_or(0, |policy| policy.0)) << 16)
    }

    /// The class a conntrack mark belongs to; `None` where it names no line or is that of a probe.
    pub fn from_mark(family: Family, mark: Mark) -> Option<Self> {
        let [wan, policy, ..] = (mark.0 & Self::MASK).to_be_bytes();
        let policy = match PolicyId(policy) {
            PolicyId(0) => None,
            PolicyId::PROBES => return None,
            policy => Some(policy),
        };
        Some(Self { family, wan: WanId::new(wan)?, policy })
    }
}

/// What the programs at the ports are to know. Where they cannot be had, the router is right without them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPath {
    pub limits: FastLimits,
    pub ports: BTreeMap<IfName, FastPort>,
    /// Where packets are from: by the port they come in by and their tag, 0 for none.
    #[serde(with = "as_pairs")]
    pub zones: BTreeMap<(IfName, u16), FastZone>,
    /// Where addresses live; the longest prefix counts. An address without one is outside.
    pub homes: BTreeMap<IpNet, Home>,
    /// From and to: the ruleset lets nothing pass between them, in either direction.
    pub denied: BTreeSet<(ZoneId, ZoneId)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastLimits {
    /// Entries of each table of flows.
    pub flows: u32,
    pub silence: Duration,
    pub silence_flows: u32,
    pub new_per_source: Option<Rate>,
    /// Records of denied packets a second, per pair of zones.
    pub denied_log_rate: u32,
}

/// A VLAN by its place among the VLANs of the file, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ZoneId(pub u16);

impl ZoneId {
    /// Everything behind the lines.
    pub const OUTSIDE: Self = Self(0);
    pub const MAX: u16 = 255;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPort {
    pub mode: PortMode,
    /// A line's: what leaves by it is measured.
    pub line: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PortMode {
    /// In the driver. Behind it where the driver cannot.
    Xdp,
    Tcx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastZone {
    pub zone: ZoneId,
    /// The line; `None` for a VLAN.
    pub wan: Option<WanId>,
    /// The router's there.
    pub mac: [u8; 6],
    pub bogons: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Home {
    Host(ZoneId),
    /// The router's own, broadcast, multicast, link-local, or claimed by several VLANs: the ruleset decides.
    Leave,
    /// Outside, and no source on a line that drops such.
    Bogon,
}

/// One small idempotent change. The order of the variants is the order of a plan: make before break.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// There is no table of ours: install one that denies everything but the router itself, before anything that
    /// could carry a packet exists.
    CloseDoor,
    /// Create, rename, or change a link.
    SetLink {
        name: IfName,
        link: Link,
    },
    SetSysctl {
        name: String,
        value: String,
    },
    AddAddress(Address),
    /// Add or replace.
    SetRoute {
        key: RouteKey,
        hop: NextHop,
    },
    AddRule(Rule),
    /// The whole table in one transaction, with buckets and dead classes as they should be.
    LoadRuleset {
        ruleset: Ruleset,
        buckets: Vec<(BucketKey, Buckets)>,
        dead: Vec<FlowClass>,
    },
    /// All of it; after the ruleset, which denies at least as much. `None` takes the programs off the ports.
    SetFastPath(Option<Box<FastPath>>),
    /// Deny again what passed for an audit, and end the flows that began in it.
    EndAudit(LinkPair),
    /// Let pass what no cell allows. The kernel denies it again [`AUDIT_GRACE`] after this span, whoever lives then.
    BeginAudit {
        pair: LinkPair,
        span: Duration,
    },
    /// These flows may exist again. Before the buckets send new ones there.
    Revive(FlowClass),
    /// One transaction; read back before the step counts as done.
    SetBuckets {
        key: BucketKey,
        buckets: Buckets,
    },
    /// Add the classes to the table's set of dead classes, delete their conntrack entries, tell the inside ends. One
    /// step for all that die together: finding their flows takes a walk through every flow there is.
    Bury(Vec<(FlowClass, Kick)>),
    /// `net/ipv4/ip_forward` and `net/ipv6/conf/all/forwarding`, only once the ruleset stands; and what is below
    /// `net/netfilter`, which comes with conntrack.
    SetLateSysctl {
        name: String,
        value: String,
    },
    DeleteRule(Rule),
    DeleteRoute(RouteKey),
    DeleteAddress(Address),
    /// Only bridges and VLAN sub-interfaces of ours.
    DeleteLink(IfName),
}

/// Maps with structured keys, written as lists of pairs so that JSON can hold them.
pub mod as_pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_table_lead_back_to_what_they_name() {
        let key = BucketKey { policy: "voip-main_2".parse().unwrap(), family: Family::V6 };
        assert_eq!(key.map_name(), "b_voip-main_2_6");
        assert_eq!(BucketKey::from_map_name(&key.map_name()), Some(key));
        assert_eq!(BucketKey::from_map_name("denied"), None);
        for slot in [Slot::Unreachable, Slot::Blackhole, Slot::Wan(WanId::new(120).unwrap())] {
            assert_eq!(Slot::from_chain_name(&slot.chain_name()), Some(slot));
        }
        assert_eq!(Slot::from_chain_name("go_121"), None);
    }

    #[test]
    fn a_conntrack_mark_tells_its_class() {
        for policy in [None, Some(PolicyId(254))] {
            let class = FlowClass { family: Family::V4, wan: WanId::new(7).unwrap(), policy };
            assert_eq!(FlowClass::from_mark(Family::V4, class.mark()), Some(class));
        }
        assert_eq!(FlowClass::from_mark(Family::V4, Mark::UNREACHABLE), None);
        assert_eq!(FlowClass::from_mark(Family::V4, Mark(0x07ff_0000)), None, "a probe");
    }
}
