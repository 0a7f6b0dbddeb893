//! The site as it should be: every name resolved, every number in range. Only `check` builds these values, so
//! whoever holds a [`Config`] never validates again.

mod lan;
mod pair;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU8;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use self::lan::{Dhcp, Ntp, Ra, Reservation, VlanDhcp};
pub use self::pair::{Node, Pair, Seat};
pub use self::tunnel::{CipherProfile, Ipsec, Proof, Tunnel, TunnelKind, Wireguard};
use crate::domain::{DomainName, DomainPattern};
use crate::units::{
    BitRate, ClientName, EgressName, EventKind, Family, HostName, IfName, Line, PolicyId, PolicyName, ServiceName,
    Tier, TlsOffloadName, VlanId, VlanName, WanId, WanName, Weight,
};

/// The whole site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The name of the site, as in `[site] name`.
    pub site: String,
    /// Lower-case hexadecimal SHA-256 of the file this was read from.
    pub digest: String,
    pub router: Router,
    /// The API over HTTPS; `None` listens nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    #[serde(default, skip_serializing_if = "Crypto::is_default")]
    pub crypto: Crypto,
    /// `None` where it is switched off: every packet then takes the kernel's path.
    pub fast_path: Option<FastPath>,
    pub ports: BTreeMap<IfName, Port>,
    pub vlans: BTreeMap<VlanName, Vlan>,
    pub hosts: BTreeMap<HostName, Host>,
    pub services: BTreeMap<ServiceName, Service>,
    pub egress: BTreeMap<EgressName, EgressSet>,
    /// The entries of the matrix, in file order. A pair of VLANs without an enabled entry is denied. Several
    /// entries of one pair add up.
    pub cells: Vec<Cell>,
    pub wans: BTreeMap<WanName, Wan>,
    pub policies: BTreeMap<PolicyName, Policy>,
    /// First match wins; what no entry matches takes `router.default_policy`.
    pub steering: Vec<Steer>,
    pub asserts: Vec<Assert>,
    /// Collectors that are told what changes.
    #[serde(default)]
    pub syslog: Vec<Syslog>,
    #[serde(default)]
    pub webhooks: Vec<Webhook>,
    #[serde(default)]
    pub hooks: Vec<Hook>,
    /// `None` answers nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Where the router ends TLS for what is behind it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tls_offload: BTreeMap<TlsOffloadName, TlsOffload>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<Dhcp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ra: Option<Ra>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ntp: Option<Ntp>,
    /// The site has two routers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<Pair>,
}

impl Config {
    pub fn wan(&self, id: WanId) -> Option<&Wan> {
        self.wans.values().find(|wan| wan.id == id)
    }

    pub fn policy(&self, id: PolicyId) -> Option<&Policy> {
        self.policies.values().find(|policy| policy.id == id)
    }

    /// The subnets of this VLAN that providers delegate, with their lines.
    pub fn delegated_to<'a>(&'a self, vlan: &'a VlanName) -> impl Iterator<Item = (&'a Wan, &'a DelegatedNet)> {
        let all = self.wans.values().flat_map(|wan| wan.addressing.delegated.iter().map(move |net| (wan, net)));
        all.filter(move |(_, net)| net.vlan == *vlan)
    }

    /// The VLAN where this address is at home.
    pub fn vlan_of(&self, address: IpAddr) -> Option<&Vlan> {
        self.vlans.values().find(|vlan| vlan.networks().any(|net| net.contains(&address)))
    }

    /// The segments that are tunnels.
    pub fn tunnels(&self) -> impl Iterator<Item = (&Vlan, &Tunnel)> {
        self.vlans.values().filter_map(|vlan| Some((vlan, vlan.tunnel.as_ref()?)))
    }

    /// The VLANs that may ask the router's resolver, with its addresses there.
    pub fn dns_served(&self) -> impl Iterator<Item = &Vlan> {
        let asked = |permit: &Permit| permit.ports.udp.iter().any(|range| range.contains(&53));
        self.vlans.values().filter(move |vlan| self.dns.is_some() && vlan.input.iter().any(asked))
    }

    /// Where questions for names end that this VLAN asks of somebody outside: at the router, if its way out goes by names.
    pub fn dns_redirect(&self, vlan: &Vlan, family: Family) -> Option<IpAddr> {
        let by_name = match &vlan.internet {
            Internet::Sets(sets) => sets.iter().filter_map(|set| self.egress.get(set)).any(|set| !set.named.is_empty()),
            Internet::None | Internet::Any => false,
        };
        let redirect = self.dns.as_ref().is_some_and(|dns| dns.redirect);
        let served = by_name && redirect && self.dns_served().any(|served| served.name == vlan.name);
        let mut own = vlan.addresses.iter().map(IpNet::addr).filter(|address| Family::of(*address) == family);
        served.then(|| own.next()).flatten()
    }

    /// The host documented at this address.
    pub fn host_at(&self, address: IpAddr) -> Option<&Host> {
        self.hosts.values().find(|host| host.addresses.contains(&address))
    }
}

/// What concerns the router itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Router {
    /// Where Prometheus reads; `None` switches the listener off.
    pub metrics: Option<SocketAddr>,
    /// The policy of forwarded flows that no steering rule matches. `None` only where there are no WANs.
    pub default_policy: Option<PolicyName>,
    /// The policy of connections the router itself opens. `None` only where there are no WANs.
    pub own_policy: Option<PolicyName>,
    /// Logged denials per second and cell; counters stay exact beyond it.
    pub denied_log_rate: u32,
}

/// Who does the router's crypto.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crypto {
    /// Of what both a card and the CPU can do in the kernel, for IPsec; `None`: as the kernel has it.
    pub kernel_device: Option<KernelDevice>,
}

impl Crypto {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelDevice {
    /// The card does it.
    Prefer,
    /// The CPU does it.
    Avoid,
}

/// The API for whoever has a certificate. Its own address and port are in the `input` of its VLAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Api {
    pub listen: SocketAddr,
    /// Whom the table lets in; `None` where only the router itself can reach the address.
    pub vlan: Option<VlanName>,
    /// PEM: the server's certificate, and what is between it and the root.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// PEM: who signs the certificates of clients.
    pub client_ca: PathBuf,
    pub clients: BTreeMap<ClientName, ApiClient>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiClient {
    pub name: ClientName,
    pub role: ApiRole,
    pub known_by: KnownBy,
}

/// A reader changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApiRole {
    Reader,
    Operator,
}

/// What tells a client's certificate from others that the same authority signed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KnownBy {
    /// One of its alternative names: a DNS name or a URI, to the letter.
    San(String),
    /// The only common name of its subject, to the letter.
    Cn(String),
    /// Its SHA-256, in lower-case hexadecimal digits.
    Fingerprint(String),
}

/// A place where the router ends TLS and passes the bytes on. Its addresses and ports are in the `input` of whom it is
/// open to, and of nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsOffload {
    pub name: TlsOffloadName,
    /// Addresses of the router.
    pub listen: Vec<SocketAddr>,
    pub from: BTreeSet<VlanName>,
    /// Lines by which everybody outside reaches it.
    pub open_to_wan: BTreeSet<WanName>,
    /// At least one. A name is in one of them only, and one at most has no names.
    pub certificates: Vec<TlsCertificate>,
    pub versions: BTreeSet<TlsVersion>,
    /// What may be spoken inside, best first; empty leaves it to client and backend.
    pub alpn: Vec<String>,
    /// `None` asks clients for no certificate.
    pub clients: Option<ClientCertificates>,
    /// At least one.
    pub backends: Vec<TlsBackend>,
    pub balance: BackendBalance,
    /// Backends are told whom they serve, by a header of the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// `None` passes the bytes on in the clear.
    pub backend_tls: Option<BackendTls>,
    pub health: BackendHealth,
    pub limits: TlsLimits,
    pub line: Line,
}

/// A certificate and for whom it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsCertificate {
    /// In lower case; `*.example.org` stands for one label more. Empty is shown to whoever names none of the others.
    pub names: BTreeSet<String>,
    /// PEM: the certificate, and what is between it and the root.
    pub certificate: Material,
    pub key: Material,
    /// A stapled OCSP response, DER.
    pub ocsp: Option<PathBuf>,
}

/// Where something secret, or what belongs to it, is. It is never in the site file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Material {
    File(PathBuf),
    /// What `LoadCredential=` of the unit calls that.
    Credential(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    #[serde(rename = "1.2")]
    V12,
    #[serde(rename = "1.3")]
    V13,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCertificates {
    /// PEM: who signs them.
    pub ca: PathBuf,
    /// Whoever has none is refused.
    pub required: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsBackend {
    pub address: SocketAddr,
    pub weight: Weight,
}

/// How connections are spread over the backends that are up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendBalance {
    /// To the one with the fewest for its weight.
    LeastConnections,
    /// In turn, by weight.
    RoundRobin,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendTls {
    /// PEM; `None` trusts the public authorities.
    pub ca: Option<PathBuf>,
    /// In the backend's certificate, and in SNI.
    pub name: String,
}

/// A backend is asked for a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendHealth {
    pub interval: Duration,
    /// A connection that is not there by then failed; also one for a client.
    pub timeout: Duration,
    /// Consecutive successes until it is up again.
    pub rise: u8,
    /// Consecutive failures until it is down.
    pub fall: u8,
}

impl Default for BackendHealth {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 }
    }
}

/// What one `[[tls_offload]]` takes at most. What is beyond is refused, never the connections that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsLimits {
    pub connections: u32,
    /// Of one address, or of one IPv6 /64; `None` is any.
    pub connections_per_source: Option<u32>,
    /// Handshakes begun a second by one address, or one IPv6 /64, and how many at once.
    pub handshakes: Rate,
    /// From the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Without a byte in either direction.
    pub idle_timeout: Duration,
    /// What connections have left to live once their `[[tls_offload]]`, or their right to be, is gone.
    pub drain: Duration,
    /// Bytes of one connection that wait here, in each direction, for whoever does not read.
    pub buffer: u32,
}

impl Default for TlsLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_source: None,
            handshakes: Rate { per_second: 50, burst: 100 },
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_mins(5),
            drain: Duration::from_mins(1),
            buffer: 64 << 10,
        }
    }
}

/// The packet path ahead of the kernel's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPath {
    /// How many entries each of the tables of flows, IPv4 and IPv6, has at most.
    pub flows: u32,
    /// A line is suspect when this long nothing came back by it …
    pub silence: Duration,
    /// … while this many flows sent.
    pub silence_flows: u32,
    /// TCP connections a second that one source outside may open, and how many at once. `None` is any.
    pub new_per_source: Option<Rate>,
}

impl Default for FastPath {
    fn default() -> Self {
        Self { flows: 262_144, silence: Duration::from_millis(150), silence_flows: 5, new_per_source: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    pub per_second: u32,
    pub burst: u32,
}

/// Where packets of a port meet the fast path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortPath {
    /// In the driver where it is one of hardware, else behind it.
    #[default]
    Auto,
    /// In the driver.
    Xdp,
    /// Behind it.
    Tcx,
    /// Nowhere: they take the kernel's path.
    Off,
}

/// A physical port. Its name is the interface's name: a port found by path or driver is renamed to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub name: IfName,
    pub find: PortFind,
    pub role: PortRole,
    pub fast_path: PortPath,
    pub comment: String,
    pub line: Line,
}

/// How a port is recognised. Never by product string: vendors lie (contradiction C8 of the site's documents).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortFind {
    /// The interface already has this name.
    Name(IfName),
    /// The `port`-th network function (from 0, in PCI order) at or below this PCI address, such as `0000:01:00`
    /// or `0000:01:00.2`.
    Pci { address: String, port: u8 },
    /// The `port`-th interface (from 0, in PCI order) of this driver, such as `igb`.
    Driver { driver: String, port: u8 },
}

/// What a port is for. An unmapped port is down, in no VLAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortRole {
    Wan(WanName),
    /// Untagged member of one VLAN.
    Access(VlanName),
    /// Tagged member of some, untagged (native) member of at most one.
    Trunk {
        native: Option<VlanName>,
        tagged: BTreeSet<VlanName>,
    },
    /// Known, kept down; carrier on it is worth a warning.
    Reserved,
    /// Named without a role: kept down.
    Unmapped,
}

/// A segment. The router holds a bridge for each, named `interface`, that carries the addresses; of a tunnel, `interface`
/// is its near end, and has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vlan {
    pub name: VlanName,
    pub id: VlanId,
    pub interface: IfName,
    /// The router's own addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Its part of the prefixes that providers delegate. The operator's config has no addresses of these; they are filled in
    /// by `mwan`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegated: Option<Delegated>,
    /// What this VLAN may open towards the Internet.
    pub internet: Internet,
    /// What this VLAN may open towards the router itself.
    pub input: Vec<Permit>,
    pub comment: String,
    pub line: Line,
    /// The line of `internet`, named by `explain`.
    pub internet_line: Line,
    /// The line of `input`, named by `explain`.
    pub input_line: Line,
    /// Where it is no bridge, but leads to another site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
}

/// A /64 of the prefix of each of these lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegated {
    pub lines: Vec<WanName>,
    /// Which of them: the bits between the prefix and the host's.
    pub subnet: u16,
}

impl Vlan {
    /// What is at home in it.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        let beyond = self.tunnel.iter().flat_map(|tunnel| tunnel.networks.iter().copied());
        self.addresses.iter().map(IpNet::trunc).chain(beyond)
    }

    /// What a person calls it.
    pub fn kind(&self) -> &'static str {
        if self.tunnel.is_some() { "tunnel" } else { "VLAN" }
    }

    /// Whether its `input` has this service of the router.
    pub fn takes(&self, service: &str) -> bool {
        self.input.iter().any(|permit| permit.service.as_str() == service)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Internet {
    None,
    Any,
    Sets(BTreeSet<EgressName>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub name: HostName,
    pub vlan: Option<VlanName>,
    pub addresses: Vec<IpAddr>,
    pub comment: String,
    pub line: Line,
}

/// A named set of ports, bound to hosts where ports repeat (contradiction C26).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: ServiceName,
    pub ports: PortSet,
    pub hosts: Option<AddressSet>,
    pub line: Line,
}

/// Named Internet destinations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressSet {
    pub name: EgressName,
    /// `None` is any destination.
    pub to: Option<AddressSet>,
    pub ports: PortSet,
    /// Destinations known by names: what the router's resolver has answered for them, while that counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<Named>,
    pub line: Line,
}

/// Names, and the ports where they are spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub names: BTreeSet<DomainPattern>,
    pub ports: PortSet,
}

/// The resolver on the router, for whoever may ask it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Whom it asks, in this order of preference where they are equally quick.
    pub upstreams: Vec<Upstream>,
    /// Hosts of the file are names below it.
    pub domain: DomainName,
    /// Hosts are names below `local` too, against RFC 6762.
    pub dot_local: bool,
    /// Zones that somebody inside answers for.
    pub forward: BTreeMap<DomainName, Vec<SocketAddr>>,
    /// Names that may have addresses of the inside although somebody outside says so.
    pub private: BTreeSet<DomainPattern>,
    /// What VLANs whose ways out go by names ask of other resolvers comes here.
    pub redirect: bool,
    /// PEM: who vouches for resolvers over TLS, instead of the public authorities.
    pub ca: Option<PathBuf>,
    /// Answers that are kept.
    pub cache: u64,
    pub line: Line,
}

/// A resolver outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Upstream {
    pub address: SocketAddr,
    /// The name in its certificate, where it is asked over TLS (RFC 7858).
    pub tls: Option<String>,
}

/// One service where it is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit {
    pub service: ServiceName,
    pub ports: PortSet,
    /// Narrower than the cell's own `to_hosts` where the service is bound to hosts.
    pub hosts: Option<AddressSet>,
    /// From these alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<AddressSet>,
}

/// One entry of the matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The name of an exception (`ci-to-proxmox`), else `from->to`.
    pub name: String,
    pub from: VlanName,
    pub to: VlanName,
    pub allow: Allow,
    /// `None` is the whole VLAN.
    pub from_hosts: Option<AddressSet>,
    /// `None` is the whole VLAN.
    pub to_hosts: Option<AddressSet>,
    /// Log the flows this entry allows. Denials are always logged.
    pub log: bool,
    /// A disabled entry is shown and allows nothing.
    pub enabled: bool,
    pub comment: String,
    pub line: Line,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allow {
    Any,
    Services(Vec<Permit>),
}

/// An uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wan {
    pub name: WanName,
    pub id: WanId,
    pub interface: IfName,
    /// Where `addressing` comes from.
    #[serde(default, skip_serializing_if = "Method::is_static")]
    pub method: Method,
    pub addressing: Addressing,
    pub mtu: Option<u16>,
    pub weight: Weight,
    /// What the provider sells; the base of `balance = "headroom"`.
    pub download: Option<BitRate>,
    pub upload: Option<BitRate>,
    /// How inside IPv6 addresses leave by this line. IPv4 is masqueraded.
    pub nat6: Nat6,
    /// What anybody on this WAN may open towards the router. Empty unless somebody wrote it.
    pub input: Vec<Permit>,
    /// Drop what comes in from addresses that the Internet does not route (RFC 6890 and its kind).
    pub bogons: bool,
    pub probe: Probing,
    pub comment: String,
    pub line: Line,
}

impl Wan {
    /// The line is there for this family, with an address of it or waiting for one.
    pub fn carries(&self, family: Family) -> bool {
        match (&self.method, family) {
            (Method::Static, _) => self.has_address(family),
            (Method::Dhcp(_), Family::V4) => true,
            (Method::Dhcp(dhcp), Family::V6) => dhcp.ipv6,
        }
    }

    /// Packets of this family can leave by it.
    pub fn has_address(&self, family: Family) -> bool {
        self.gateway(family).is_some() && self.source(family).is_some()
    }

    /// Its addresses of this family come from the provider.
    pub fn is_leased(&self, family: Family) -> bool {
        !self.method.is_static() && self.carries(family)
    }

    pub fn gateway(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.addressing.gateway4.map(IpAddr::V4),
            Family::V6 => self.addressing.gateway6.map(IpAddr::V6),
        }
    }

    /// The first own address of this family: the source of what the router itself sends by this line.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        self.addressing.addresses.iter().map(IpNet::addr).find(|address| Family::of(*address) == family)
    }
}

/// Where the addresses of a line come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The file.
    #[default]
    Static,
    /// The provider: of IPv4 by DHCP.
    Dhcp(WanDhcp),
}

impl Method {
    pub fn is_static(&self) -> bool {
        matches!(self, Self::Static)
    }
}

/// What the provider is asked for beside an IPv4 address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WanDhcp {
    /// An IPv6 address and gateway too, by router advertisements and DHCPv6.
    pub ipv6: bool,
    /// The length of the IPv6 prefix that is asked for.
    pub prefix: Option<u8>,
}

/// Packets of a family leave by a line only if it has an address and a gateway of it. Of a line whose addresses are
/// leased, the operator's config has none; those of the lease are filled in by `mwan`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addressing {
    pub addresses: Vec<IpNet>,
    pub gateway4: Option<Ipv4Addr>,
    pub gateway6: Option<Ipv6Addr>,
    /// What is reached by another way than the gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<LineRoute>,
    /// What VLANs have of the prefix that its provider delegates. Only a lease fills it in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegated: Vec<DelegatedNet>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegatedNet {
    pub vlan: VlanName,
    /// The router's address there, and the length of 64.
    pub own: Ipv6Net,
    /// For how long it is granted at least, each time; `None`: for ever.
    pub span: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LineRoute {
    pub destination: IpNet,
    /// `None`: it is on the line itself.
    pub gateway: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nat6 {
    /// Leave with the line's own address.
    Masquerade,
    /// RFC 6296's purpose by netfilter's prefix NAT: `internal` leaves as `external`, host bits kept.
    Prefix { internal: Ipv6Net, external: Ipv6Net },
    /// Leave as they are (the prefix is routed to us).
    None,
}

/// How the health of a line is judged, per family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probing {
    pub targets: Vec<Target>,
    /// The time between two probes of one target; at least 50 ms.
    pub interval: Duration,
    /// After this long without an answer a probe is lost.
    pub timeout: Duration,
    /// Consecutive lost probes until a target is down.
    pub fall: NonZeroU8,
    /// Consecutive answers until a target is up again.
    pub rise: NonZeroU8,
    /// This many targets of a family must be up for the line to be up in it.
    pub quorum: NonZeroU8,
    /// How many recent probes loss, latency and jitter are computed over.
    pub window: u16,
    /// Loss in percent.
    pub loss: Option<Threshold<u8>>,
    pub latency: Option<Threshold<Duration>>,
    pub jitter: Option<Threshold<Duration>>,
    /// How long a line must be good before it is used again; doubles with each flap …
    pub hold: Duration,
    /// … up to this.
    pub hold_max: Duration,
}

/// Bad at or above `fail`, good again at or below `recover`; between them nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threshold<T> {
    pub fail: T,
    pub recover: T,
}

/// Something that answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    pub family: Family,
    pub kind: TargetKind,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// Neighbour resolution of the line's gateway (ARP, ND).
    Gateway,
    Icmp {
        address: IpAddr,
    },
    Tcp {
        address: SocketAddr,
    },
    /// A query for `name` (type A or AAAA by family); any well-formed answer counts.
    Dns {
        server: SocketAddr,
        name: String,
    },
    /// GET `path`; `status` must come back. `name` goes into the Host header and, with `tls`, into SNI.
    Http {
        address: SocketAddr,
        tls: bool,
        name: String,
        path: String,
        status: u16,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            TargetKind::Gateway => write!(f, "gateway ({})", self.family),
            TargetKind::Icmp { address } => write!(f, "icmp {address}"),
            TargetKind::Tcp { address } => write!(f, "tcp {address}"),
            TargetKind::Dns { server, name } => write!(f, "dns {server} {name}"),
            TargetKind::Http { address, tls, name, path, .. } => {
                write!(f, "http{} {name}{path} at {address}", if *tls { "s" } else { "" })
            }
        }
    }
}

/// A choice of lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub name: PolicyName,
    pub id: PolicyId,
    pub members: Vec<Member>,
    pub balance: Balance,
    pub last_resort: LastResort,
    pub failback: Failback,
    pub kick: Kick,
    pub comment: String,
    pub line: Line,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub wan: WanName,
    pub weight: Weight,
    pub tier: Tier,
}

/// How new flows are spread over the usable members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Each new flow by weight, in turn.
    Flow,
    /// A source address keeps its line.
    Source,
    /// A pair of addresses keeps its line.
    SourceDestination,
    /// The live connections of a source address take different lines, as far as there are; weights do not count. Those
    /// that come together where a line died are parted again after what `failback` says.
    Spread,
    /// Each new flow by weight times what the line has left of its rates, in turn.
    Headroom,
}

/// What happens to new flows when no member is usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LastResort {
    Unreachable,
    Blackhole,
    /// Any line of the site that is up.
    Any,
}

/// What happens to flows on a backup line when a better one is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failback {
    /// They stay until they end.
    Stay,
    /// They stay for this long, then are moved.
    Drain(Duration),
    /// They are moved at once.
    Force,
}

/// What the inside end of a flow on a dead line is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kick {
    /// TCP reset for TCP, ICMP unreachable for the rest.
    All,
    /// TCP reset; other flows move silently.
    Tcp,
    /// Nothing.
    Silent,
}

/// One steering rule. Every field that is `Some` must match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steer {
    pub name: String,
    pub from: Option<BTreeSet<VlanName>>,
    pub source: Option<AddressSet>,
    pub destination: Option<AddressSet>,
    pub source_ports: Option<PortSet>,
    pub ports: Option<PortSet>,
    pub policy: PolicyName,
    pub line: Line,
}

/// A statement that must hold; `apply` refuses a file that breaks one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assert {
    /// As written.
    pub text: String,
    pub claim: Claim,
    pub line: Line,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// `FROM -> TO [PROTO/PORT] allow|deny`. Without a packet: `deny` means nothing at all passes, `allow` means
    /// everything does.
    Flow { from: Place, to: Place, packet: Option<PacketClaim>, allowed: bool },
    /// `wan2[,wan3] down => POLICY uses A|B|C`: with these lines down, the policy uses exactly these (`none` is
    /// the empty set).
    Uses { down: BTreeSet<WanName>, policy: PolicyName, uses: BTreeSet<WanName> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    Vlan(VlanName),
    Host(HostName),
    Address(IpAddr),
    /// Any address beyond the WANs.
    Internet,
    /// The router itself.
    Router,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PacketClaim {
    Tcp(u16),
    Udp(u16),
    Ping,
}

/// A collector that takes RFC 5424 over TCP, or over TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Syslog {
    pub server: SocketAddr,
    /// `None` sends in the clear.
    pub tls: Option<Tls>,
    pub events: BTreeSet<EventKind>,
    /// Logged denials too.
    pub denied: bool,
    /// What waits for the collector takes at most this many bytes of the disk.
    pub queue: u64,
    pub line: Line,
}

/// Whom a TLS client trusts, and as whom it speaks. Files are read at each connection, so that they may be renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// PEM; certificates of authorities.
    pub ca: PathBuf,
    /// What the server's certificate must be for; its address where there is no name.
    pub name: Option<String>,
    pub identity: Option<Identity>,
}

/// A URL that is told what changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    pub url: Url,
    pub secret: Option<Secret>,
    /// PEM; `None` trusts the public authorities.
    pub ca: Option<PathBuf>,
    pub events: BTreeSet<EventKind>,
    /// For one attempt.
    pub timeout: Duration,
    pub line: Line,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Url {
    pub tls: bool,
    /// A name or an address; of IPv6 without brackets.
    pub host: String,
    pub port: u16,
    /// With the query.
    pub path: String,
}

/// A header whose value is in a file, and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub header: String,
    pub file: PathBuf,
}

/// A program that is run for what changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    pub run: PathBuf,
    pub events: BTreeSet<EventKind>,
    /// It is killed after this long.
    pub timeout: Duration,
    pub line: Line,
}

/// A client certificate and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Ports and protocols, normalised: ranges sorted, disjoint and not adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSet {
    pub tcp: Vec<RangeInclusive<u16>>,
    pub udp: Vec<RangeInclusive<u16>>,
    /// ICMP and ICMPv6 echo request.
    pub ping: bool,
    /// Other IP protocols by number, such as 50 (ESP).
    pub protocols: BTreeSet<u8>,
}

impl PortSet {
    pub fn merge(&mut self, other: &Self) {
        self.tcp = merged(self.tcp.iter().chain(&other.tcp).cloned(), |n| n.checked_add(1));
        self.udp = merged(self.udp.iter().chain(&other.udp).cloned(), |n| n.checked_add(1));
        self.ping |= other.ping;
        self.protocols.extend(&other.protocols);
    }

    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty() && !self.ping && self.protocols.is_empty()
    }
}

/// Addresses of both families, normalised: ranges sorted, disjoint and not adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressSet {
    pub v4: Vec<RangeInclusive<Ipv4Addr>>,
    pub v6: Vec<RangeInclusive<Ipv6Addr>>,
}

impl AddressSet {
    pub fn add(&mut self, net: IpNet) {
        match net {
            IpNet::V4(net) => self.add_range4(net.network()..=net.broadcast()),
            IpNet::V6(net) => self.add_range6(net.network()..=net.broadcast()),
        }
    }

    pub fn add_range4(&mut self, range: RangeInclusive<Ipv4Addr>) {
        let all = self.v4.drain(..).chain([range]).collect::<Vec<_>>();
        self.v4 = merged(all, |a| a.to_bits().checked_add(1).map(Ipv4Addr::from_bits));
    }

    pub fn add_range6(&mut self, range: RangeInclusive<Ipv6Addr>) {
        let all = self.v6.drain(..).chain([range]).collect::<Vec<_>>();
        self.v6 = merged(all, |a| a.to_bits().checked_add(1).map(Ipv6Addr::from_bits));
    }

    /// All of these at once; cheaper than adding them one by one.
    pub fn of(
        v4: impl IntoIterator<Item = RangeInclusive<Ipv4Addr>>,
        v6: impl IntoIterator<Item = RangeInclusive<Ipv6Addr>>,
    ) -> Self {
        Self {
            v4: merged(v4, |a| a.to_bits().checked_add(1).map(Ipv4Addr::from_bits)),
            v6: merged(v6, |a| a.to_bits().checked_add(1).map(Ipv6Addr::from_bits)),
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.iter().any(|range| range.contains(&address)),
            IpAddr::V6(address) => self.v6.iter().any(|range| range.contains(&address)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// What both hold.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self { v4: common(&self.v4, &other.v4), v6: common(&self.v6, &other.v6) }
    }
}

fn merged<T: Ord + Copy>(
    ranges: impl IntoIterator<Item = RangeInclusive<T>>,
    next: impl Fn(T) -> Option<T>,
) -> Vec<RangeInclusive<T>> {
    let mut sorted: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
    sorted.sort_by_key(|range| (*range.start(), *range.end()));
    let mut out: Vec<RangeInclusive<T>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match out.last_mut() {
            Some(last) if next(*last.end()).is_none_or(|after| *range.start() <= after) => {
                *last = *last.start()..=(*last.end()).max(*range.end());
            }
            Some(_) | None => out.push(range),
        }
    }
    out
}

fn common<T: Ord + Copy>(a: &[RangeInclusive<T>], b: &[RangeInclusive<T>]) -> Vec<RangeInclusive<T>> {
    a.iter()
        .flat_map(|x| b.iter().map(move |y| *x.start().max(y.start())..=*x.end().min(y.end())))
        .filter(|range| !range.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut set = AddressSet::default();
        set.add("10.0.0.0/25".parse().unwrap());
        set.add("10.0.0.128/25".parse().unwrap());
        set.add("10.0.2.0/24".parse().unwrap());
        assert_eq!(set.v4.len(), 2);
        assert!(set.contains("10.0.0.200".parse().unwrap()));
        assert!(!set.contains("10.0.1.0".parse().unwrap()));
    }

    #[test]
    fn a_range_up_to_the_last_address_does_not_overflow() {
        let mut set = AddressSet::default();
        set.add("0.0.0.0/0".parse().unwrap());
        set.add("255.255.255.255/32".parse().unwrap());
        assert_eq!(set.v4, vec![Ipv4Addr::UNSPECIFIED..=Ipv4Addr::BROADCAST]);
    }
}
