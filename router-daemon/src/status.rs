//! The router at one moment, for people and programs: the answer to `status` and the source of every metric. The
//! fields of [`Status`] are part of version 1 of the API; units stand in their names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::time::Duration;

use config::Config;
use config::model::{Allow, Cell, Internet, LastResort, LineRoute, Permit, PortRole, Wan};
use config::units::{BitRate, Family, IfName};
use mwan::Time;
use mwan::audit::{Audit, Pair};
use mwan::event::Health;
use mwan::router::{LeaseStatus, LineStatus, WanStatus};
use mwan::state::ZoneId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::apart::SpreadLine;
use crate::api::https::Listener;
use crate::ask::{Applies, View};
use crate::counters::{Conntrack, Count, Counters, FastCount, LinkCount, mode_word};
use crate::crypto::CryptoStatus;
use crate::crypto::qat_kernel::KernelDeviceLine;
use crate::outside::OutletLine;
use crate::service::component::ComponentLine;
use crate::service::dhcp::LeaseLine;
use crate::service::dns::DnsLine;
use crate::service::ntp::ClockStatus;
use crate::service::pair::PairLine;
use crate::service::tls_offload::OffloadLine;
use crate::service::tunnels::TunnelLine;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    /// `None` before the first config.
    pub site: Option<String>,
    /// SHA-256 of the site file in force.
    pub digest: Option<String>,
    /// Every line has been judged since start.
    pub settled: bool,
    /// The families in which most lines were lost together: flows are frozen, not killed.
    pub isp_outage: BTreeSet<Family>,
    pub wans: Vec<WanLine>,
    pub policies: Vec<PolicyLine>,
    pub vlans: Vec<VlanLine>,
    pub cells: Vec<CellCount>,
    /// Packets to the router itself that it does not take, by VLAN or WAN.
    pub denied_input: BTreeMap<String, u64>,
    pub spoofed: BTreeMap<String, u64>,
    pub applies: Applies,
    /// How full the table of all flows is.
    #[serde(default)]
    pub conntrack: Option<Conntrack>,
    /// Why the counters are missing, when they are.
    pub counters_missing: Option<String>,
    /// The packet path ahead of the kernel's. What it denied counts among the cells.
    #[serde(default)]
    pub fast_path: FastCount,
    /// Cells whose default deny lets pass for a time.
    #[serde(default)]
    pub audits: Vec<AuditLine>,
    /// What others do with the bits of marks that are ours, told to a person.
    #[serde(default)]
    pub foreign_marks: Vec<String>,
    /// The API over HTTPS, where the site file has one.
    #[serde(default)]
    pub https: Option<Listener>,
    /// The ports of the site file, and the interfaces of the lines.
    #[serde(default)]
    pub ports: Vec<PortLine>,
    /// What the matrix allows between VLANs, in the order of the site file.
    #[serde(default)]
    pub entries: Vec<EntryLine>,
    /// Who is told what changes.
    #[serde(default)]
    pub outlets: Vec<OutletLine>,
    /// Where the router ends TLS.
    #[serde(default)]
    pub tls_offload: Vec<OffloadLine>,
    /// The resolver; `None` where the site file has none.
    #[serde(default)]
    pub dns: Option<DnsLine>,
    /// Programs of others that the router runs.
    #[serde(default)]
    pub components: Vec<ComponentLine>,
    /// Tunnels to other sites.
    #[serde(default)]
    pub tunnels: Vec<TunnelLine>,
    /// Connections that belong on different lines.
    #[serde(default)]
    pub spreads: Vec<SpreadLine>,
    /// The addresses that DHCP has handed out.
    #[serde(default)]
    pub dhcp: Vec<LeaseLine>,
    /// `None` where the site file has no `[ntp]`, or chrony has not been asked yet.
    #[serde(default)]
    pub clock: Option<ClockStatus>,
    /// The other router of the site, and who of the two is active; `None` where the site has one.
    #[serde(default)]
    pub pair: Option<PairLine>,
    /// Who does its crypto; `None` where nothing of the site file needs any.
    #[serde(default)]
    pub crypto: Option<CryptoStatus>,
    /// What is wrong with the crypto device that the kernel has, for IPsec.
    #[serde(default)]
    pub kernel_crypto: Vec<String>,
    /// Crypto devices that the kernel drives.
    #[serde(default)]
    pub kernel_devices: Vec<KernelDeviceLine>,
}

/// A cell of the matrix that is audited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditLine {
    pub from: String,
    pub to: String,
    pub remaining_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortLine {
    pub name: String,
    /// `wan wan1`, `access dev`, `trunk dev compute`, `reserved`, `unmapped`.
    pub role: String,
    /// `None` where there is no such interface.
    pub link: Option<LinkCount>,
}

/// An entry of the matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EntryLine {
    pub name: String,
    pub from: String,
    pub to: String,
    /// `any`, or services by name; those of some hosts only are marked with `*`.
    pub services: Vec<String>,
    pub enabled: bool,
    /// Of the site file.
    pub line: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WanLine {
    pub name: String,
    pub interface: String,
    pub carrier: bool,
    pub drained: bool,
    /// A fail test runs for this long yet.
    pub fail_test_seconds: Option<f64>,
    pub weight: u8,
    /// The weight's part of all lines' weights.
    pub weight_ratio: f64,
    /// What the site file says the line can carry towards us, and away from us; bytes per second.
    #[serde(default)]
    pub download_bytes_per_second: Option<f64>,
    #[serde(default)]
    pub upload_bytes_per_second: Option<f64>,
    /// Live flows.
    pub flows: u64,
    /// Flows begun since our table was first loaded.
    pub new_flows: u64,
    pub families: Vec<FamilyLine>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FamilyLine {
    pub family: Family,
    pub state: Health,
    /// Flows may be sent here.
    pub usable: bool,
    pub since_seconds: f64,
    pub why: String,
    /// The part of the default policy's new flows it gets, 0 to 1.
    pub share_ratio: f64,
    pub flows: u64,
    /// Everything that went out by the line, and came in by it, since the fast path counts; `None` without that.
    #[serde(default)]
    pub sent_bytes: Option<u64>,
    #[serde(default)]
    pub received_bytes: Option<u64>,
    pub failovers: u64,
    /// Over the targets that count; `None` while nothing was measured.
    pub rtt_seconds: Option<f64>,
    pub jitter_seconds: Option<f64>,
    pub loss_ratio: Option<f64>,
    /// The hold time ends in this long.
    pub hold_seconds: Option<f64>,
    pub gateway_mac: Option<String>,
    /// Only where the provider gives the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<WanLease>,
    pub targets: Vec<TargetLine>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetLine {
    pub target: String,
    pub up: Option<bool>,
    /// Fails on every line: not counted.
    pub bad: bool,
    pub rtt_seconds: Option<f64>,
    pub jitter_seconds: Option<f64>,
    pub loss_ratio: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyLine {
    pub name: String,
    /// For flows that no steering rule names.
    #[serde(default)]
    pub default: bool,
    pub families: Vec<PolicyFamily>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyFamily {
    pub family: Family,
    pub uses: Vec<LineShare>,
    /// What new flows meet while no line is usable.
    pub last_resort: Option<LastResort>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LineShare {
    pub wan: String,
    pub share_ratio: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VlanLine {
    pub name: String,
    pub id: u16,
    pub interface: String,
    /// Forwarded from here.
    pub allowed_flows: u64,
    /// Forwarded from here, and refused.
    pub denied_packets: u64,
    pub denied_input_packets: u64,
    pub spoofed_packets: u64,
    /// What it may open towards the Internet: `any`, or egress sets by name.
    #[serde(default)]
    pub internet: Vec<String>,
    /// `None` while there is no such interface.
    #[serde(default)]
    pub link: Option<LinkCount>,
}

/// What passed and what did not between two zones. Only pairs that counted something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CellCount {
    pub from: String,
    pub to: String,
    pub allowed_flows: u64,
    pub denied_packets: u64,
    pub denied_bytes: u64,
    pub invalid_packets: u64,
    /// Flows that no entry allows and an audit let pass.
    #[serde(default)]
    pub audited_flows: u64,
}

/// What the provider gives a line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WanLease {
    /// Empty without a lease.
    pub addresses: Vec<String>,
    pub gateway: Option<String>,
    pub mtu: Option<u16>,
    pub dns: Vec<String>,
    /// What is reached by another way than the gateway: `203.0.113.0/24 via 192.0.2.9`.
    pub routes: Vec<String>,
    /// IPv6 prefixes for the VLANs.
    pub prefixes: Vec<String>,
    /// Who granted it.
    pub server: Option<String>,
    /// It ends in this long unless it is renewed; `None` is never, or no lease.
    pub expires_seconds: Option<f64>,
    /// Since when it is what it is.
    pub since_seconds: Option<f64>,
    /// Why there is none that can be used.
    pub why: Option<String>,
}

impl WanLease {
    pub(crate) fn of(status: &LeaseStatus, now: Time) -> Self {
        let LeaseStatus { lease, until, since, why } = status;
        let held = lease.clone().unwrap_or_default();
        let route = |route: &LineRoute| match route.gateway {
            Some(gateway) => format!("{} via {gateway}", route.destination),
            None => format!("{} on the line", route.destination),
        };
        Self {
            addresses: held.addresses.iter().map(ToString::to_string).collect(),
            gateway: held.gateway.map(|gateway| gateway.to_string()),
            mtu: held.mtu,
            dns: held.dns.iter().map(ToString::to_string).collect(),
            routes: held.routes.iter().map(route).collect(),
            prefixes: held.prefixes.iter().map(ToString::to_string).collect(),
            server: held.server.map(|server| server.to_string()),
            expires_seconds: until.filter(|until| *until < Time::NEVER).map(|until| until.since(now).as_secs_f64()),
            since_seconds: since.map(|since| now.since(since).as_secs_f64()),
            why: why.clone(),
        }
    }
}

impl fmt::Display for WanLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.addresses.is_empty() {
            return write!(f, "no lease: {}", self.why.as_deref().unwrap_or("no lease yet"));
        }
        write!(f, "lease {}", self.addresses.join(", "))?;
        if let Some(gateway) = &self.gateway {
            write!(f, " by {gateway}")?;
        }
        match self.expires_seconds {
            Some(left) => write!(f, ", ends in {}", span(left))?,
            None => write!(f, ", for ever")?,
        }
        self.why.as_ref().map_or(Ok(()), |why| write!(f, "; not used: {why}"))
    }
}

/// Puts the names to the numbers.
pub fn of(view: &View, counters: &Result<Counters, String>) -> Status {
    let none = Counters::default();
    let counted = counters.as_ref().unwrap_or(&none);
    let merged = view.config.as_ref().map(|config| with_early_denials(config, counted));
    let counted = merged.as_ref().unwrap_or(counted);
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        site: None,
        digest: None,
        settled: view.snapshot.settled,
        isp_outage: view.snapshot.isp_outage.iter().filter(|(_, outage)| **outage).map(|(family, _)| *family).collect(),
        wans: Vec::new(),
        policies: Vec::new(),
        vlans: Vec::new(),
        cells: Vec::new(),
        denied_input: BTreeMap::new(),
        spoofed: BTreeMap::new(),
        applies: view.applies.clone(),
        counters_missing: counters.as_ref().err().cloned(),
        conntrack: counted.conntrack,
        fast_path: counted.fast_path.clone(),
        audits: Vec::new(),
        foreign_marks: Vec::new(),
        https: None,
        ports: Vec::new(),
        entries: Vec::new(),
        outlets: Vec::new(),
        tls_offload: Vec::new(),
        dns: None,
        components: Vec::new(),
        tunnels: Vec::new(),
        pair: None,
        spreads: Vec::new(),
        dhcp: Vec::new(),
        clock: None,
        crypto: None,
        kernel_crypto: Vec::new(),
        kernel_devices: Vec::new(),
    };
    if let Some(config) = &view.config {
        status.site = Some(config.site.clone());
        status.digest = Some(config.digest.clone());
        status.wans = view
            .snapshot
            .wans
            .iter()
            .filter_map(|wan| Some(wan_line(view, config, config.wans.get(&wan.name)?, wan, counted)))
            .collect();
        status.policies = policies(view, config);
        status.vlans = vlans(config, counted);
        status.cells = cells(config, counted);
        status.ports = ports(config, counted);
        status.entries = entries(config);
        status.audits = audits(view);
        let by_zone = |counts: &BTreeMap<IfName, Count>| {
            counts.iter().map(|(interface, count)| (zone_behind(config, interface), count.packets)).collect()
        };
        status.denied_input = by_zone(&counted.denied_input);
        status.spoofed = by_zone(&counted.spoofed);
    }
    status
}

fn audits(view: &View) -> Vec<AuditLine> {
    let line = |(pair, audit): (&Pair, &Audit)| AuditLine {
        from: pair.from.to_string(),
        to: pair.to.to_string(),
        remaining_seconds: audit.until.since(view.snapshot.now).as_secs(),
    };
    view.snapshot.audits.iter().map(line).collect()
}

fn wan_line(view: &View, config: &Config, wan: &Wan, status: &WanStatus, counters: &Counters) -> WanLine {
    let now = view.snapshot.now;
    let weights = config.wans.values().map(|wan| f64::from(wan.weight.get())).sum::<f64>();
    let families = status.families.iter().map(|(family, line)| FamilyLine {
        family: *family,
        state: line.health,
        usable: line.usable,
        since_seconds: now.since(line.since).as_secs_f64(),
        why: line.why.clone(),
        share_ratio: line.share / 100.0,
        flows: counters.flows.get(&(wan.id, *family)).copied().unwrap_or_default(),
        sent_bytes: counters.fast_path.lines.get(&(wan.id, *family)).map(|line| line.sent.bytes),
        received_bytes: counters.fast_path.lines.get(&(wan.id, *family)).map(|line| line.received.bytes),
        failovers: line.failovers,
        rtt_seconds: mean(counted(line).filter_map(|target| target.rtt_mean).map(|rtt| rtt.as_secs_f64())),
        jitter_seconds: mean(counted(line).filter_map(|target| target.jitter).map(|jitter| jitter.as_secs_f64())),
        loss_ratio: mean(counted(line).filter(|target| target.sent > 0).map(|target| target.loss_pct / 100.0)),
        hold_seconds: line.hold_until.map(|until| until.since(now).as_secs_f64()),
        gateway_mac: line.gateway_mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")),
        lease: line.lease.as_ref().map(|lease| WanLease::of(lease, now)),
        targets: line
            .targets
            .iter()
            .map(|target| TargetLine {
                target: target.target.clone(),
                up: target.up,
                bad: target.bad,
                rtt_seconds: target.rtt_mean.map(|rtt| rtt.as_secs_f64()),
                jitter_seconds: target.jitter.map(|jitter| jitter.as_secs_f64()),
                loss_ratio: target.loss_pct / 100.0,
            })
            .collect(),
    });
    WanLine {
        name: wan.name.to_string(),
        interface: wan.interface.to_string(),
        carrier: status.carrier,
        drained: status.drained,
        fail_test_seconds: status
            .fail_test_until
            .filter(|until| *until > now)
            .map(|until| until.since(now).as_secs_f64()),
        weight: wan.weight.get(),
        weight_ratio: f64::from(wan.weight.get()) / weights,
        download_bytes_per_second: wan.download.map(BitRate::bytes_per_second),
        upload_bytes_per_second: wan.upload.map(BitRate::bytes_per_second),
        flows: counters.flows_of(wan.id),
        new_flows: counters.chosen.get(&wan.id).map_or(0, |count| count.packets),
        families: families.collect(),
    }
}

/// The targets that count towards the line's health.
fn counted(line: &LineStatus) -> impl Iterator<Item = &mwan::router::TargetStatus> {
    line.targets.iter().filter(|target| !target.bad)
}

fn policies(view: &View, config: &Config) -> Vec<PolicyLine> {
    let families = |policy: &mwan::router::PolicyStatus| {
        let stands = |family: &Family| policy.last_resort_active.get(family).copied().unwrap_or_default();
        let line = |(family, uses): (&Family, &Vec<mwan::router::LineUse>)| PolicyFamily {
            family: *family,
            uses: uses
                .iter()
                .map(|used| LineShare { wan: used.wan.to_string(), share_ratio: f64::from(used.buckets) / BUCKETS })
                .collect(),
            last_resort: config.policies.get(&policy.name).filter(|_| stands(family)).map(|policy| policy.last_resort),
        };
        policy.uses.iter().map(line).collect()
    };
    let policies = view.snapshot.policies.iter();
    let line = |policy: &mwan::router::PolicyStatus| PolicyLine {
        name: policy.name.to_string(),
        default: config.router.default_policy.as_ref() == Some(&policy.name),
        families: families(policy),
    };
    policies.map(line).collect()
}

fn vlans(config: &Config, counters: &Counters) -> Vec<VlanLine> {
    let mut vlans = config.vlans.values().collect::<Vec<_>>();
    vlans.sort_by_key(|vlan| vlan.id);
    vlans
        .into_iter()
        .map(|vlan| {
            let of_pairs = |pairs: &BTreeMap<(IfName, IfName), Count>| {
                pairs.iter().filter(|((from, _), _)| *from == vlan.interface).map(|(_, count)| count.packets).sum()
            };
            let of_interface =
                |counts: &BTreeMap<IfName, Count>| counts.get(&vlan.interface).map_or(0, |count| count.packets);
            VlanLine {
                name: vlan.name.to_string(),
                id: vlan.id.get(),
                interface: vlan.interface.to_string(),
                allowed_flows: of_pairs(&counters.allowed),
                denied_packets: of_pairs(&counters.denied),
                denied_input_packets: of_interface(&counters.denied_input),
                spoofed_packets: of_interface(&counters.spoofed),
                internet: match &vlan.internet {
                    Internet::None => Vec::new(),
                    Internet::Any => vec!["any".to_owned()],
                    Internet::Sets(sets) => sets.iter().map(ToString::to_string).collect(),
                },
                link: counters.links.get(&vlan.interface).cloned(),
            }
        })
        .collect()
}

fn ports(config: &Config, counters: &Counters) -> Vec<PortLine> {
    let mut roles =
        config.wans.values().map(|wan| (&wan.interface, format!("wan {}", wan.name))).collect::<BTreeMap<_, _>>();
    for (name, port) in &config.ports {
        let role = match &port.role {
            PortRole::Wan(wan) => format!("wan {wan}"),
            PortRole::Access(vlan) => format!("access {vlan}"),
            PortRole::Trunk { native, tagged } => {
                let names = native.iter().chain(tagged).map(ToString::to_string).collect::<Vec<_>>();
                format!("trunk {}", names.join(" "))
            }
            PortRole::Reserved => "reserved".to_owned(),
            PortRole::Unmapped => "unmapped".to_owned(),
        };
        roles.insert(name, role);
    }
    let line = |(name, role): (&IfName, String)| PortLine {
        name: name.to_string(),
        role,
        link: counters.links.get(name).cloned(),
    };
    roles.into_iter().map(line).collect()
}

fn entries(config: &Config) -> Vec<EntryLine> {
    let services = |allow: &Allow| match allow {
        Allow::Any => vec!["any".to_owned()],
        Allow::Services(permits) => {
            let some = |permit: &Permit| if permit.hosts.is_some() { "*" } else { "" };
            permits.iter().map(|permit| format!("{}{}", permit.service, some(permit))).collect()
        }
    };
    let line = |cell: &Cell| EntryLine {
        name: cell.name.clone(),
        from: cell.from.to_string(),
        to: cell.to.to_string(),
        services: services(&cell.allow),
        enabled: cell.enabled,
        line: cell.line.0,
    };
    config.cells.iter().map(line).collect()
}

fn cells(config: &Config, counters: &Counters) -> Vec<CellCount> {
    let pairs = counters
        .allowed
        .keys()
        .chain(counters.denied.keys())
        .chain(counters.invalid.keys())
        .chain(counters.audited.keys());
    pairs
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|pair| CellCount {
            from: zone_behind(config, &pair.0),
            to: zone_behind(config, &pair.1),
            allowed_flows: counters.allowed.get(pair).map_or(0, |count| count.packets),
            denied_packets: counters.denied.get(pair).map_or(0, |count| count.packets),
            denied_bytes: counters.denied.get(pair).map_or(0, |count| count.bytes),
            invalid_packets: counters.invalid.get(pair).map_or(0, |count| count.packets),
            audited_flows: counters.audited.get(pair).map_or(0, |count| count.packets),
        })
        .collect()
}

/// What was denied at the ports, among what the ruleset denied.
fn with_early_denials(config: &Config, counters: &Counters) -> Counters {
    let mut all = counters.clone();
    let zones = mwan::compile::zones(config);
    let interface = |id: ZoneId| {
        let vlan = zones.iter().find(|(_, zone)| **zone == id).and_then(|(name, _)| config.vlans.get(*name));
        vlan.map(|vlan| vlan.interface.clone()).or_else(|| INTERNET.parse().ok())
    };
    for ((from, to), count) in std::mem::take(&mut all.fast_path.denied) {
        let (Some(source), Some(destination)) = (interface(from), interface(to)) else { continue };
        let counted = if from == to {
            all.spoofed.entry(source).or_default()
        } else {
            all.denied.entry((source, destination)).or_default()
        };
        counted.packets += count.packets;
        counted.bytes += count.bytes;
    }
    all
}

/// The VLAN or WAN behind an interface; the interface's own name where there is neither.
pub(crate) fn zone_behind(config: &Config, interface: &IfName) -> String {
    let vlan = config.vlans.values().find(|vlan| vlan.interface == *interface).map(|vlan| vlan.name.to_string());
    let wan = || config.wans.values().find(|wan| wan.interface == *interface).map(|wan| wan.name.to_string());
    vlan.or_else(wan).unwrap_or_else(|| interface.to_string())
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

/// The page `routerctl status` shows; 80 columns.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(site), Some(digest)) = (&self.site, &self.digest) else {
            writeln!(f, "no configuration is in force: apply one with `routerctl apply FILE`")?;
            return self.troubles(f);
        };
        let up = self.wans.iter().filter(|wan| wan.families.iter().any(|line| line.usable)).count();
        let short = digest.get(..12).unwrap_or(digest);
        writeln!(f, "{site}: {up} of {} lines usable, config {short}, routerd {}", self.wans.len(), self.version)?;
        self.troubles(f)?;
        self.wan_table(f)?;
        self.policy_table(f)?;
        self.vlan_table(f)?;
        for (first, below) in self.tls_offload.iter().map(OffloadLine::summary) {
            writeln!(f)?;
            note(f, 0, &first)?;
            below.iter().try_for_each(|line| note(f, 2, line))?;
        }
        if let Some(dns) = &self.dns {
            writeln!(f)?;
            note(f, 0, &dns.summary())?;
        }
        self.component_lines(f)?;
        if !self.tunnels.is_empty() {
            writeln!(f)?;
        }
        self.tunnels.iter().try_for_each(|tunnel| note(f, 0, &tunnel.summary()))?;
        match &self.crypto {
            Some(crypto) => writeln!(f).and_then(|()| note(f, 0, &crypto.summary())),
            None => Ok(()),
        }
    }
}

impl Status {
    fn component_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.components.is_empty() {
            writeln!(f)?;
        }
        for ComponentLine { name, state, since_seconds, restarts, .. } in &self.components {
            let again = match restarts {
                0 => String::new(),
                1 => ", started again once".to_owned(),
                times => format!(", started again {times} times"),
            };
            note(f, 0, &format!("{name}: {} for {}{again}", state.word(), span(*since_seconds)))?;
        }
        for LeaseLine { vlan, family, leases, pool_used, pool_size } in &self.dhcp {
            note(f, 0, &format!("DHCP {vlan} {family}: {leases} leases, {pool_used} of {pool_size} of the pool"))?;
        }
        if let Some(pair) = &self.pair {
            note(f, 0, &pair.summary())?;
        }
        if let Some(clock) = &self.clock {
            note(f, 0, &clock.summary())?;
        }
        Ok(())
    }

    fn troubles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.settled && self.site.is_some() {
            note(f, 2, "not every line has been judged since start")?;
        }
        for family in &self.isp_outage {
            let told = format!("ISP outage ({family}): most lines were lost together; flows are frozen, not killed");
            note(f, 2, &told)?;
        }
        if let Some(pending) = &self.applies.pending {
            note(f, 2, &pending.to_string())?;
        }
        if let Some(why) = &self.applies.rolled_back {
            note(f, 2, &format!("the last change was rolled back: {why}"))?;
        }
        for audit in &self.audits {
            note(f, 2, &audit.to_string())?;
        }
        if let Some(why) = &self.applies.failing {
            note(f, 2, &format!("not as it should be: {why}"))?;
        }
        for waiting in &self.applies.waiting {
            note(f, 2, &format!("waiting: {waiting}"))?;
        }
        if let Some(unlike) = &self.applies.unlike_file {
            note(f, 2, unlike)?;
        }
        for outlet in &self.outlets {
            if let Some(trouble) = &outlet.trouble {
                let OutletLine { kind, to, waiting, dropped, .. } = outlet;
                note(f, 2, &format!("{kind} {to}: {trouble} ({waiting} events wait, {dropped} dropped)"))?;
            }
        }
        if let Some(told) = self.dns.as_ref().and_then(|dns| dns.trouble.as_ref()) {
            note(f, 2, &format!("the resolver: {told}"))?;
        }
        for offload in &self.tls_offload {
            for told in offload.troubles() {
                note(f, 2, &format!("tls_offload {}: {told}", offload.name))?;
            }
        }
        for told in self.pair.iter().flat_map(PairLine::troubles) {
            note(f, 2, &told)?;
        }
        for told in self.spreads.iter().filter_map(SpreadLine::trouble) {
            note(f, 2, &told)?;
        }
        for told in self.components.iter().filter_map(ComponentLine::trouble) {
            note(f, 2, &told)?;
        }
        let tunnels = || self.tunnels.iter();
        for told in tunnels().filter_map(TunnelLine::exposure).chain(tunnels().filter_map(TunnelLine::trouble)) {
            note(f, 2, &told)?;
        }
        for told in self.crypto.iter().flat_map(CryptoStatus::troubles).chain(self.kernel_crypto.iter().cloned()) {
            note(f, 2, &told)?;
        }
        if self.applies.drift_repaired > 0 {
            writeln!(f, "  changed by somebody else and put right: {} times", self.applies.drift_repaired)?;
        }
        for foreign in &self.foreign_marks {
            note(f, 2, foreign)?;
        }
        if let Some(Listener { address, trouble: Some(trouble) }) = &self.https {
            note(f, 2, &format!("the API is not served at {address}: {trouble}"))?;
        }
        if let Some(why) = &self.counters_missing {
            return note(f, 2, &format!("counters cannot be read: {why}"));
        }
        if self.site.is_some() { self.fast_path(f) } else { Ok(()) }
    }

    fn fast_path(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.fast_path;
        if !path.on {
            let reason = path.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            return note(f, 2, &format!("fast path: off{reason}"));
        }
        let mut told = "fast path: on".to_owned();
        for (family, flows) in &path.flows {
            write!(told, ", {flows} {family} flows")?;
        }
        write!(told, " of {}, {} MiB", path.capacity, path.memory_bytes >> 20)?;
        let mut alike: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, port) in &path.ports {
            let why = port.why.as_ref().map(|why| format!(" (not {}: {why})", mode_word(port.asked)));
            alike.entry((port.word(), why.unwrap_or_default())).or_default().push(name.as_str());
        }
        for ((mode, why), names) in alike {
            write!(told, "; {mode} on {}{why}", names.join(" "))?;
        }
        note(f, 2, &told)
    }

    fn wan_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wans.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<12} {:<4} {:<12} {:>7} {:>6} {:>7} {:>6} {:>7} {:>7}",
            "WAN", "", "STATE", "RTT", "LOSS", "JITTER", "SHARE", "FLOWS", "SINCE"
        )?;
        for wan in &self.wans {
            for (place, line) in wan.families.iter().enumerate() {
                let name = if place == 0 { wan.name.as_str() } else { "" };
                writeln!(
                    f,
                    "{:<12} {} {} {:<10} {:>7} {:>6} {:>7} {:>6} {:>7} {:>7}",
                    cut(name, 12),
                    line.family,
                    glyph(line.state),
                    line.state.word(),
                    line.rtt_seconds.map_or_else(|| "-".to_owned(), short_time),
                    line.loss_ratio.map_or_else(|| "-".to_owned(), percent),
                    line.jitter_seconds.map_or_else(|| "-".to_owned(), short_time),
                    percent(line.share_ratio),
                    line.flows,
                    span(line.since_seconds),
                )?;
                if line.state != Health::Up && !line.why.is_empty() {
                    note(f, 18, &line.why)?;
                }
                if let Some(lease) = &line.lease {
                    writeln!(f, "{:<17} {lease}", "")?;
                }
                if let Some(hold) = line.hold_seconds {
                    writeln!(f, "{:<17} used again in {} if it stays good", "", span(hold))?;
                }
                for target in line.targets.iter().filter(|target| target.bad) {
                    note(f, 18, &format!("{} fails on every line and is not counted", target.target))?;
                }
            }
            if wan.drained {
                writeln!(f, "{:<17} drained: existing flows stay, no further ones", "")?;
            }
            if let Some(rest) = wan.fail_test_seconds {
                writeln!(f, "{:<17} fail test for {} more", "", span(rest))?;
            }
        }
        Ok(())
    }

    fn policy_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.policies.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        writeln!(f, "{:<17} {:<4} USES", "POLICY", "")?;
        for policy in &self.policies {
            for (place, family) in policy.families.iter().enumerate() {
                let name = match (place, policy.default) {
                    (0, true) => format!("{}*", cut(&policy.name, 16)),
                    (0, false) => cut(&policy.name, 17).to_owned(),
                    (_, _) => String::new(),
                };
                let mut uses = String::new();
                for used in &family.uses {
                    let separator = if uses.is_empty() { "" } else { ", " };
                    write!(uses, "{separator}{} {}", used.wan, percent(used.share_ratio))?;
                }
                match family.last_resort {
                    Some(LastResort::Unreachable) => uses.push_str("no line: answers \"unreachable\""),
                    Some(LastResort::Blackhole) => uses.push_str("no line: drops silently"),
                    Some(LastResort::Any) => uses.push_str(" (last resort: any line that is up)"),
                    None => {}
                }
                writeln!(f, "{name:<17} {} {}", family.family, uses.trim())?;
            }
        }
        let has_default = self.policies.iter().any(|policy| policy.default);
        if has_default { writeln!(f, "* the default policy") } else { Ok(()) }
    }

    fn vlan_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.vlans.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<17} {:>4} {:>13} {:>13} {:>15} {:>11}",
            "VLAN", "ID", "ALLOWED FLOWS", "DENIED", "DENIED TO SELF", "SPOOFED"
        )?;
        for vlan in &self.vlans {
            writeln!(
                f,
                "{:<17} {:>4} {:>13} {:>13} {:>15} {:>11}",
                cut(&vlan.name, 17),
                vlan.id,
                vlan.allowed_flows,
                vlan.denied_packets,
                vlan.denied_input_packets,
                vlan.spoofed_packets
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for AuditLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, remaining_seconds } = self;
        let left = humantime::format_duration(Duration::from_secs(*remaining_seconds)).to_string().replace(' ', "");
        write!(
            f,
            "{from}->{to} is audited: what no entry of it allows passes for {left} yet; `routerctl audit '{from}->{to}' \
             --stop` ends it"
        )
    }
}

/// Text beside the table, folded at 80 columns; its own lines stay lines.
fn note(f: &mut fmt::Formatter<'_>, indent: usize, text: &str) -> fmt::Result {
    for line in text.lines() {
        let mut column = 0;
        for word in line.split_whitespace() {
            let width = word.chars().count();
            if column > 0 && column + 1 + width <= 80 {
                write!(f, " {word}")?;
                column += 1 + width;
            } else {
                let hang = if column == 0 { indent } else { indent + 2 };
                let end = if column == 0 { "" } else { "\n" };
                write!(f, "{end}{:hang$}{word}", "")?;
                column = hang + width;
            }
        }
        if column > 0 {
            writeln!(f)?;
        }
    }
    Ok(())
}

pub(crate) fn glyph(state: Health) -> char {
    match state {
        Health::Unknown => '?',
        Health::Up => '●',
        Health::Degraded => '◐',
        Health::Held => '◔',
        Health::Down => '✖',
        Health::NoCarrier => '○',
    }
}

/// `12.3ms`, `1.20s`.
pub(crate) fn short_time(seconds: f64) -> String {
    if seconds < 0.01 {
        format!("{:.2}ms", seconds * 1e3)
    } else if seconds < 1.0 {
        format!("{:.1}ms", seconds * 1e3)
    } else {
        format!("{seconds:.2}s")
    }
}

/// `14s`, `5m12s`, `2h05m`, `3d04h`.
pub fn span(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

pub(crate) fn percent(ratio: f64) -> String {
    format!("{:.0}%", ratio * 100.0)
}

fn cut(text: &str, width: usize) -> &str {
    text.get(..width).unwrap_or(text)
}

/// What stands in the place of an interface where packets go to or come from no certain line.
const INTERNET: &str = "internet";

/// How many buckets a policy has.
#[expect(clippy::cast_precision_loss, reason = "a small constant")]
const BUCKETS: f64 = mwan::state::BUCKETS as f64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::{Author, PendingChange};
    use crate::fixture;

    #[test]
    fn the_page_reads_well_on_80_columns() {
        let page = of(&fixture::view(), &Ok(fixture::counters()));
        let (tls_offload, crypto) = (fixture::tls_offload(), Some(fixture::crypto()));
        let page = Status {
            tls_offload,
            crypto,
            components: fixture::components(),
            dns: Some(fixture::dns()),
            spreads: fixture::spreads(),
            ..page
        };
        let page = Status { dhcp: fixture::leases(), clock: Some(fixture::clock()), ..page }.to_string();
        assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
        insta::assert_snapshot!(page);
    }

    #[test]
    fn before_the_first_config_the_page_says_what_to_do() {
        let view = View { config: None, ..fixture::view() };
        insta::assert_snapshot!(of(&view, &Err("no table of ours".to_owned())).to_string());
    }

    #[test]
    fn the_fields_of_version_1_are_these() {
        insta::assert_json_snapshot!(of(&fixture::view(), &Ok(fixture::counters())));
    }

    #[test]
    fn a_pending_change_is_told_with_what_to_type() {
        let mut view = fixture::view();
        let author = Author { name: "alice".to_owned(), uid: Some(1000) };
        let message = Some("the new office".to_owned());
        let pending = PendingChange { author, message, remaining_seconds: 83, window_seconds: 120, guard: false };
        view.applies.pending = Some(pending);
        let status = of(&view, &Ok(fixture::counters()));
        let told = "\n  a change by alice (uid 1000) (the new office) is rolled back in 1m23s unless\n    you type \
                    `routerctl confirm`; `routerctl rollback` takes it back at once\n";
        assert!(status.to_string().contains(told), "{status}");
        assert_eq!(serde_json::to_value(&status).unwrap()["applies"]["pending"]["remaining_seconds"], 83);
        view.applies.rolled_back = Some("wan2 IPv4 was up and is down".to_owned());
        let told = of(&view, &Ok(fixture::counters())).to_string();
        assert!(told.contains("\n  the last change was rolled back: wan2 IPv4 was up and is down\n"), "{told}");
    }

    #[test]
    fn long_reasons_are_folded() {
        let mut view = fixture::view();
        let line = view.snapshot.wans[1].families.get_mut(&Family::V4).unwrap();
        line.why = format!("3 of 3 targets silent for 316 ms: {}", ["icmp 2001:db8:100::1"; 5].join(", "));
        view.applies.failing = Some("the kernel refused it:\nload the ruleset: out of memory".to_owned());
        let page = of(&view, &Ok(fixture::counters())).to_string();
        assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
        assert!(page.contains("\n  load the ruleset: out of memory\n"), "{page}");
        assert!(page.lines().any(|line| line.starts_with(&" ".repeat(20))), "{page}");
    }

    #[test]
    fn a_bad_target_does_not_count_in_the_lines_numbers() {
        let mut view = fixture::view();
        let line = view.snapshot.wans[0].families.get_mut(&Family::V4).unwrap();
        line.targets.push(mwan::router::TargetStatus { bad: true, loss_pct: 100.0, ..line.targets[0].clone() });
        let status = of(&view, &Ok(Counters::default()));
        assert_eq!(status.wans[0].families[0].loss_ratio, Some(0.0));
        assert!(status.to_string().contains("fails on every line and is not counted"));
    }

    #[test]
    fn spans_are_told_in_two_units() {
        let told = [5.9, 75.0, 7500.0, 273_600.0].map(span);
        assert_eq!(told, ["5s", "1m15s", "2h05m", "3d04h"]);
    }
}
