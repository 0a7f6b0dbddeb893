//! The site file as written: one struct per section, every value with its place. Shapes are checked here (keys,
//! types, the form of one value); whatever needs two places of the file at once is `check`'s business.

mod lan;
mod pair;
pub(crate) mod tunnel;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeTable;

pub(crate) use self::lan::{Dhcp, Ntp, Ra, VlanDhcp};
pub(crate) use self::pair::{Pair, PairNode};
use crate::domain::{DomainName, DomainPattern};
use crate::model::PortSet;
use crate::problem::{Problem, Span};
use crate::read::{At, Node, Read, Table, at, shown, text, wrong_type};
use crate::units::{
    BitRate, ClientName, EgressName, HostName, IfName, Mac, NameError, PolicyName, ServiceName, TlsOffloadName,
    VlanName, WanName,
};

type Problems = Vec<Problem>;
/// A key that may be left out.
type Maybe<T> = Option<At<T>>;

#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) site: Maybe<String>,
    pub(crate) reserved: Maybe<Vec<At<IpNet>>>,
    pub(crate) router: Router,
    pub(crate) api: Option<Api>,
    pub(crate) crypto: Crypto,
    pub(crate) fast_path: FastPath,
    pub(crate) ports: Vec<Port>,
    pub(crate) vlans: Vec<Vlan>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) services: Vec<Service>,
    pub(crate) egress: Vec<Egress>,
    pub(crate) dns: Option<Dns>,
    pub(crate) cells: Vec<Cell>,
    pub(crate) wans: Vec<Wan>,
    pub(crate) probe: Probe,
    pub(crate) policies: Vec<Policy>,
    pub(crate) steers: Vec<Steer>,
    pub(crate) asserts: Vec<At<String>>,
    pub(crate) syslog: Vec<Syslog>,
    pub(crate) webhooks: Vec<Webhook>,
    pub(crate) hooks: Vec<Hook>,
    pub(crate) tls_offload: Vec<TlsOffload>,
    pub(crate) dhcp: Option<Dhcp>,
    pub(crate) ra: Option<Ra>,
    pub(crate) ntp: Option<Ntp>,
    /// Of both kinds.
    pub(crate) tunnels: Vec<tunnel::Tunnel>,
    pub(crate) pair: Option<Pair>,
}

#[derive(Debug, Default)]
pub(crate) struct Router {
    pub(crate) span: Span,
    pub(crate) default_policy: Maybe<PolicyName>,
    pub(crate) own_policy: Maybe<PolicyName>,
    pub(crate) metrics: Maybe<String>,
    pub(crate) denied_log_rate: Maybe<i64>,
    pub(crate) fast_path: Maybe<bool>,
}

#[derive(Debug, Default)]
pub(crate) struct Crypto {
    pub(crate) kernel_device: Maybe<String>,
}

#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) span: Span,
    pub(crate) listen: Maybe<String>,
    pub(crate) certificate: Maybe<String>,
    pub(crate) key: Maybe<String>,
    pub(crate) client_ca: Maybe<String>,
    pub(crate) clients: Vec<ApiClient>,
}

#[derive(Debug)]
pub(crate) struct ApiClient {
    pub(crate) name: At<ClientName>,
    pub(crate) role: Maybe<String>,
    pub(crate) san: Maybe<String>,
    pub(crate) cn: Maybe<String>,
    pub(crate) fingerprint: Maybe<String>,
}

#[derive(Debug, Default)]
pub(crate) struct FastPath {
    pub(crate) flows: Maybe<i64>,
    pub(crate) silence: Maybe<Duration>,
    pub(crate) silence_flows: Maybe<i64>,
    pub(crate) new_per_source: Maybe<i64>,
    pub(crate) new_burst: Maybe<i64>,
}

#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) name: At<IfName>,
    pub(crate) find: Option<Find>,
    pub(crate) reserved: Maybe<bool>,
    pub(crate) fast_path: Maybe<String>,
    pub(crate) comment: Maybe<String>,
}

#[derive(Debug)]
pub(crate) struct Find {
    pub(crate) span: Span,
    pub(crate) name: Maybe<IfName>,
    pub(crate) pci: Maybe<String>,
    pub(crate) driver: Maybe<String>,
    pub(crate) port: Maybe<i64>,
}

#[derive(Debug)]
pub(crate) struct Vlan {
    pub(crate) name: At<VlanName>,
    pub(crate) id: Maybe<i64>,
    pub(crate) interface: Maybe<IfName>,
    pub(crate) addresses: Maybe<Vec<At<IpNet>>>,
    pub(crate) access: Vec<At<IfName>>,
    pub(crate) trunk: Vec<At<IfName>>,
    pub(crate) native: Vec<At<IfName>>,
    pub(crate) internet: Maybe<Vec<At<String>>>,
    pub(crate) input: Maybe<Vec<At<ServiceRef>>>,
    pub(crate) dhcp: Option<VlanDhcp>,
    pub(crate) ra: Maybe<bool>,
    pub(crate) delegate: Maybe<Vec<At<WanName>>>,
    pub(crate) subnet: Maybe<i64>,
    pub(crate) comment: Maybe<String>,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: At<HostName>,
    pub(crate) addresses: Vec<At<Addresses>>,
    pub(crate) mac: Maybe<Mac>,
    pub(crate) comment: Maybe<String>,
}

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: At<ServiceName>,
    pub(crate) ports: Maybe<Vec<At<PortSpec>>>,
    pub(crate) hosts: Maybe<Vec<At<HostRef>>>,
}

#[derive(Debug)]
pub(crate) struct Egress {
    pub(crate) name: At<EgressName>,
    pub(crate) to: Maybe<Destinations>,
    pub(crate) names: Maybe<Vec<At<DomainPattern>>>,
    pub(crate) preset: Maybe<String>,
    pub(crate) region: Maybe<String>,
    pub(crate) gateway: Maybe<String>,
    pub(crate) ports: Maybe<Vec<At<PortSpec>>>,
}

/// A zone that somebody inside answers for.
#[derive(Debug)]
pub(crate) struct DnsForward {
    pub(crate) zone: At<String>,
    pub(crate) servers: Maybe<Vec<At<String>>>,
}

#[derive(Debug)]
pub(crate) struct Dns {
    pub(crate) span: Span,
    pub(crate) upstreams: Maybe<Vec<At<String>>>,
    pub(crate) domain: Maybe<DomainName>,
    pub(crate) dot_local: Maybe<bool>,
    pub(crate) forward: Vec<DnsForward>,
    pub(crate) private: Maybe<Vec<At<DomainPattern>>>,
    pub(crate) redirect: Maybe<bool>,
    pub(crate) ca: Maybe<String>,
    pub(crate) cache: Maybe<i64>,
}

#[derive(Debug)]
pub(crate) enum Destinations {
    Any,
    These(Vec<At<Addresses>>),
}

#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) span: Span,
    pub(crate) name: Maybe<String>,
    pub(crate) from: Maybe<Vec<At<VlanName>>>,
    pub(crate) to: Maybe<Vec<At<VlanName>>>,
    pub(crate) services: Maybe<Services>,
    pub(crate) hosts: Maybe<Vec<At<HostRef>>>,
    pub(crate) from_hosts: Maybe<Vec<At<HostRef>>>,
    pub(crate) log: Maybe<bool>,
    pub(crate) enabled: Maybe<bool>,
    pub(crate) comment: Maybe<String>,
}

#[derive(Debug)]
pub(crate) enum Services {
    Any,
    These(Vec<At<ServiceRef>>),
}

#[derive(Debug)]
pub(crate) struct Wan {
    pub(crate) name: At<WanName>,
    pub(crate) id: Maybe<i64>,
    pub(crate) interface: Maybe<IfName>,
    pub(crate) method: Maybe<String>,
    pub(crate) ipv6: Maybe<bool>,
    pub(crate) prefix_delegation: Maybe<i64>,
    pub(crate) addresses: Maybe<Vec<At<IpNet>>>,
    pub(crate) gateway: Maybe<IpAddr>,
    pub(crate) gateway6: Maybe<IpAddr>,
    pub(crate) mtu: Maybe<i64>,
    pub(crate) weight: Maybe<i64>,
    pub(crate) download: Maybe<BitRate>,
    pub(crate) upload: Maybe<BitRate>,
    pub(crate) nat6: Maybe<Nat6>,
    pub(crate) input: Maybe<Vec<At<ServiceRef>>>,
    pub(crate) bogons: Maybe<bool>,
    pub(crate) probe: Probe,
    pub(crate) comment: Maybe<String>,
}

#[derive(Debug)]
pub(crate) enum Nat6 {
    Masquerade,
    None,
    Prefix { internal: At<IpNet>, external: At<IpNet> },
}

#[derive(Debug, Default)]
pub(crate) struct Probe {
    pub(crate) targets: Maybe<Vec<At<Target>>>,
    pub(crate) interval: Maybe<Duration>,
    pub(crate) timeout: Maybe<Duration>,
    pub(crate) fall: Maybe<i64>,
    pub(crate) rise: Maybe<i64>,
    pub(crate) quorum: Maybe<i64>,
    pub(crate) window: Maybe<i64>,
    pub(crate) loss: Option<Threshold<Percent>>,
    pub(crate) latency: Option<Threshold<Duration>>,
    pub(crate) jitter: Option<Threshold<Duration>>,
    pub(crate) hold: Maybe<Duration>,
    pub(crate) hold_max: Maybe<Duration>,
}

#[derive(Debug)]
pub(crate) struct Threshold<T> {
    pub(crate) fail: At<T>,
    pub(crate) recover: Maybe<T>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Percent(pub(crate) u8);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Gateway,
    Icmp(IpAddr),
    Tcp(IpAddr, u16),
    Dns { server: IpAddr, port: u16, name: String },
    Http { address: IpAddr, port: u16, tls: bool, name: String, path: String, status: u16 },
}

#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) name: At<PolicyName>,
    pub(crate) members: Maybe<Vec<At<Member>>>,
    pub(crate) balance: Maybe<String>,
    pub(crate) last_resort: Maybe<String>,
    pub(crate) failback: Maybe<Failback>,
    pub(crate) kick: Maybe<String>,
    pub(crate) comment: Maybe<String>,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) wan: At<WanName>,
    pub(crate) weight: Maybe<i64>,
    pub(crate) tier: Maybe<i64>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Failback {
    Stay,
    Drain(Duration),
    Force,
}

#[derive(Debug)]
pub(crate) struct Steer {
    pub(crate) span: Span,
    pub(crate) name: Maybe<String>,
    pub(crate) from: Maybe<Vec<At<VlanName>>>,
    pub(crate) source: Maybe<Vec<At<HostRef>>>,
    pub(crate) destination: Maybe<Vec<At<HostRef>>>,
    pub(crate) source_ports: Maybe<Vec<At<PortSpec>>>,
    pub(crate) services: Maybe<Vec<At<ServiceRef>>>,
    pub(crate) ports: Maybe<Vec<At<PortSpec>>>,
    pub(crate) policy: Maybe<PolicyName>,
}

#[derive(Debug)]
pub(crate) struct Syslog {
    pub(crate) span: Span,
    pub(crate) server: Maybe<String>,
    pub(crate) tls: Option<Tls>,
    pub(crate) events: Maybe<Vec<At<String>>>,
    pub(crate) denied: Maybe<bool>,
    pub(crate) queue: Maybe<Bytes>,
}

#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) span: Span,
    pub(crate) ca: Maybe<String>,
    pub(crate) name: Maybe<String>,
    pub(crate) certificate: Maybe<String>,
    pub(crate) key: Maybe<String>,
}

#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) span: Span,
    pub(crate) url: Maybe<String>,
    pub(crate) header: Maybe<String>,
    pub(crate) secret: Maybe<String>,
    pub(crate) ca: Maybe<String>,
    pub(crate) events: Maybe<Vec<At<String>>>,
    pub(crate) timeout: Maybe<Duration>,
}

#[derive(Debug)]
pub(crate) struct Hook {
    pub(crate) span: Span,
    pub(crate) run: Maybe<String>,
    pub(crate) events: Maybe<Vec<At<String>>>,
    pub(crate) timeout: Maybe<Duration>,
}

#[derive(Debug)]
pub(crate) struct TlsOffload {
    pub(crate) span: Span,
    pub(crate) name: Maybe<TlsOffloadName>,
    pub(crate) listen: Maybe<Vec<At<String>>>,
    pub(crate) from: Maybe<Vec<At<VlanName>>>,
    pub(crate) open_to_wan: Maybe<Vec<At<WanName>>>,
    pub(crate) certificates: Vec<TlsCertificate>,
    pub(crate) versions: Maybe<Vec<At<String>>>,
    pub(crate) alpn: Maybe<Vec<At<String>>>,
    pub(crate) client_ca: Maybe<String>,
    pub(crate) client_certificate: Maybe<String>,
    pub(crate) backends: Maybe<Vec<At<TlsBackend>>>,
    pub(crate) balance: Maybe<String>,
    pub(crate) proxy_protocol: Maybe<bool>,
    pub(crate) backend_tls: Option<BackendTls>,
    pub(crate) health: BackendHealth,
    pub(crate) limits: TlsLimits,
}

#[derive(Debug)]
pub(crate) struct TlsCertificate {
    pub(crate) span: Span,
    pub(crate) names: Maybe<Vec<At<String>>>,
    pub(crate) certificate: Maybe<String>,
    pub(crate) key: Maybe<String>,
    pub(crate) ocsp: Maybe<String>,
}

#[derive(Debug)]
pub(crate) struct TlsBackend {
    pub(crate) address: At<String>,
    pub(crate) weight: Maybe<i64>,
}

#[derive(Debug)]
pub(crate) struct BackendTls {
    pub(crate) ca: Maybe<String>,
    pub(crate) name: Maybe<String>,
}

#[derive(Debug, Default)]
pub(crate) struct BackendHealth {
    pub(crate) interval: Maybe<Duration>,
    pub(crate) timeout: Maybe<Duration>,
    pub(crate) rise: Maybe<i64>,
    pub(crate) fall: Maybe<i64>,
}

#[derive(Debug, Default)]
pub(crate) struct TlsLimits {
    pub(crate) connections: Maybe<i64>,
    pub(crate) connections_per_source: Maybe<i64>,
    pub(crate) handshakes_per_source: Maybe<i64>,
    pub(crate) handshake_burst: Maybe<i64>,
    pub(crate) handshake_timeout: Maybe<Duration>,
    pub(crate) idle_timeout: Maybe<Duration>,
    pub(crate) drain: Maybe<Duration>,
    pub(crate) buffer: Maybe<Bytes>,
}

/// `64KiB`, `16MiB`, `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

/// `tcp/80`, `udp/5404-5412`, `ping`, `proto/50`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortSpec(pub(crate) PortSet);

/// A service by name, or written in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServiceRef {
    Named(ServiceName),
    Inline(ServiceName, PortSet),
}

/// `10.0.0.1`, `10.0.0.0/24`, `10.0.0.1-10.0.0.9`, `10.0.0.1-9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addresses {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// A host by name, or addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostRef {
    Named(HostName),
    Addresses(Addresses),
}

impl File {
    pub(crate) fn read(root: &DeTable<'_>, whole: Span, problems: &mut Problems) -> Self {
        let mut top = Table::new("the file", whole, root);
        let mut file = Self::default();

        if let Some(mut table) = section(&mut top, "site", problems) {
            file.site = table.needed("name", "\"office\"", problems);
            file.reserved = table.list("reserved", problems);
            table.finish(problems);
        } else if top.node("site").is_none() {
            problems.push(
                Problem::error("the file has no [site]")
                    .at(&(0..0), "missing from the file")
                    .help("begin with `[site]` and `name = \"office\"`"),
            );
        }
        if let Some(mut table) = section(&mut top, "router", problems) {
            file.router = Router {
                span: table.span.clone(),
                default_policy: table.value("default_policy", problems),
                own_policy: table.value("own_policy", problems),
                metrics: table.value("metrics", problems),
                denied_log_rate: table.value("denied_log_rate", problems),
                fast_path: table.value("fast_path", problems),
            };
            table.finish(problems);
        }
        if let Some(mut table) = section(&mut top, "crypto", problems) {
            file.crypto = Crypto { kernel_device: table.value("kernel_device", problems) };
            table.finish(problems);
        }
        if let Some(mut table) = section(&mut top, "api", problems) {
            file.api = Some(Api {
                span: table.span.clone(),
                listen: table.needed("listen", "\"10.0.60.1:8443\"", problems),
                certificate: table.needed("certificate", "\"/etc/quadway/api/server.pem\"", problems),
                key: table.needed("key", "\"/etc/quadway/api/server.key\"", problems),
                client_ca: table.needed("client_ca", "\"/etc/quadway/api/clients.pem\"", problems),
                clients: named(&mut table, "client", problems, api_client),
            });
            table.finish(problems);
        }
        if let Some(mut table) = section(&mut top, "fast_path", problems) {
            file.fast_path = FastPath {
                flows: table.value("flows", problems),
                silence: table.value("silence", problems),
                silence_flows: table.value("silence_flows", problems),
                new_per_source: table.value("new_per_source", problems),
                new_burst: table.value("new_burst", problems),
            };
            table.finish(problems);
        }
        if let Some(table) = section(&mut top, "probe", problems) {
            file.probe = probe(table, problems);
        }
        file.ports = named(&mut top, "port", problems, port);
        file.vlans = named(&mut top, "vlan", problems, vlan);
        file.hosts = named(&mut top, "host", problems, host);
        file.services = named(&mut top, "service", problems, service);
        file.egress = named(&mut top, "egress", problems, egress);
        if let Some(mut table) = section(&mut top, "dns", problems) {
            file.dns = Some(dns(&mut table, problems));
            table.finish(problems);
        }
        file.wans = named(&mut top, "wan", problems, wan);
        file.policies = named(&mut top, "policy", problems, policy);
        file.cells = entries(&mut top, "cell", problems, cell);
        file.steers = entries(&mut top, "steer", problems, steer);
        let asserts = entries(&mut top, "assert", problems, |table, problems| {
            table.needed("that", "\"guests -> office deny\"", problems)
        });
        file.asserts = asserts.into_iter().flatten().collect();
        file.syslog = entries(&mut top, "syslog", problems, syslog);
        file.webhooks = entries(&mut top, "webhook", problems, webhook);
        file.hooks = entries(&mut top, "hook", problems, |table, problems| Hook {
            span: table.span.clone(),
            run: table.needed("run", "\"/etc/quadway/hooks/page\"", problems),
            events: table.one_or_many("events", problems),
            timeout: table.value("timeout", problems),
        });
        file.tls_offload = entries(&mut top, "tls_offload", problems, tls_offload);
        file.dhcp = sole(&mut top, "dhcp", problems, lan::dhcp);
        file.ra = sole(&mut top, "ra", problems, lan::ra);
        file.ntp = sole(&mut top, "ntp", problems, lan::ntp);
        file.tunnels = named(&mut top, "ipsec", problems, tunnel::ipsec);
        file.tunnels.extend(named(&mut top, "wireguard", problems, tunnel::wireguard));
        file.pair = sole(&mut top, "pair", problems, pair::pair);
        top.finish(problems);
        file
    }
}

fn section<'a>(top: &mut Table<'a>, key: &'static str, problems: &mut Problems) -> Option<Table<'a>> {
    let what = format!("[{}]", place(top, key));
    top.node(key).and_then(|node| Table::of(what, node, problems))
}

/// A section that is read by one function.
fn sole<'a, T>(
    top: &mut Table<'a>,
    key: &'static str,
    problems: &mut Problems,
    read: impl FnOnce(&mut Table<'a>, &mut Problems) -> T,
) -> Option<T> {
    let mut table = section(top, key, problems)?;
    let value = read(&mut table, problems);
    table.finish(problems);
    Some(value)
}

/// Between its brackets: `api.client` in `[api]`, `tls_offload.certificate` in a `[[tls_offload]]`.
fn place(within: &Table<'_>, key: &str) -> String {
    let one = within.what.strip_prefix('[').and_then(|what| what.strip_suffix(']'));
    let of_many = within.what.strip_prefix("this [[").and_then(|what| what.strip_suffix("]]"));
    match of_many.or(one) {
        Some(outer) => format!("{outer}.{key}"),
        None => key.to_owned(),
    }
}

/// `[key.NAME]` tables, in file order.
fn named<'a, N: FromStr<Err = NameError>, T>(
    top: &mut Table<'a>,
    key: &'static str,
    problems: &mut Problems,
    read: impl Fn(At<N>, &mut Table<'a>, &mut Problems) -> T,
) -> Vec<T> {
    let key = (key, place(top, key));
    let Some(all) = section(top, key.0, problems) else { return Vec::new() };
    let key = key.1;
    let mut out = Vec::new();
    for (name, node) in all.children() {
        let value = match name.get_ref().parse::<N>() {
            Ok(value) => value,
            Err(error) => {
                let message = format!("`{}` cannot be a name", shown(name.get_ref()));
                problems.push(Problem::error(message).at(&name.span(), error.to_string()));
                continue;
            }
        };
        if node.get_ref().as_table().is_none() {
            problems.push(
                wrong_type(node, &format!("a table [{key}.NAME]"))
                    .help(format!("every {key} has a name: `[{key}.{}]`", shown(name.get_ref()))),
            );
            continue;
        }
        let Some(mut table) = Table::of(format!("[{key}.{}]", name.get_ref()), node, problems) else { continue };
        out.push(read(At { value, span: name.span() }, &mut table, problems));
        table.finish(problems);
    }
    out
}

/// `[[key]]` tables.
fn entries<'a, T>(
    top: &mut Table<'a>,
    key: &'static str,
    problems: &mut Problems,
    read: impl Fn(&mut Table<'a>, &mut Problems) -> T,
) -> Vec<T> {
    let Some(node) = top.node(key) else { return Vec::new() };
    let key = place(top, key);
    let Some(array) = node.get_ref().as_array() else {
        problems.push(
            wrong_type(node, &format!("a list of [[{key}]]")).help(format!("write `[[{key}]]`, with two brackets")),
        );
        return Vec::new();
    };
    let mut out = Vec::new();
    for node in array {
        let Some(mut table) = Table::of(format!("this [[{key}]]"), node, problems) else { continue };
        out.push(read(&mut table, problems));
        table.finish(problems);
    }
    out
}

fn api_client(name: At<ClientName>, table: &mut Table<'_>, problems: &mut Problems) -> ApiClient {
    ApiClient {
        name,
        role: table.needed("role", "\"reader\"", problems),
        san: table.value("san", problems),
        cn: table.value("cn", problems),
        fingerprint: table.value("fingerprint", problems),
    }
}

fn port(name: At<IfName>, table: &mut Table<'_>, problems: &mut Problems) -> Port {
    let find = match table.node("find") {
        None => {
            problems.push(table.missing("find", "{ name = \"eth0\" }"));
            None
        }
        Some(node) => Table::of(format!("`find` of {}", table.what), node, problems).map(|mut inner| {
            let find = Find {
                span: inner.span.clone(),
                name: inner.value("name", problems),
                pci: inner.value("pci", problems),
                driver: inner.value("driver", problems),
                port: inner.value("port", problems),
            };
            inner.finish(problems);
            find
        }),
    };
    Port {
        name,
        find,
        reserved: table.value("reserved", problems),
        fast_path: table.value("fast_path", problems),
        comment: table.value("comment", problems),
    }
}

fn vlan(name: At<VlanName>, table: &mut Table<'_>, problems: &mut Problems) -> Vlan {
    Vlan {
        name,
        id: table.needed("id", "10", problems),
        interface: table.value("interface", problems),
        addresses: {
            if table.node("addresses").is_none() {
                problems.push(table.missing("addresses", "[\"10.0.10.1/24\"]"));
            }
            table.list("addresses", problems)
        },
        access: table.list("access", problems).map(|list| list.value).unwrap_or_default(),
        trunk: table.list("trunk", problems).map(|list| list.value).unwrap_or_default(),
        native: table.list("native", problems).map(|list| list.value).unwrap_or_default(),
        internet: table.one_or_many("internet", problems),
        input: table.list("input", problems),
        dhcp: inner(table, "dhcp", problems, lan::vlan_dhcp),
        ra: table.value("ra", problems),
        delegate: table.one_or_many("delegate", problems),
        subnet: table.value("subnet", problems),
        comment: table.value("comment", problems),
    }
}

fn host(name: At<HostName>, table: &mut Table<'_>, problems: &mut Problems) -> Host {
    let one = table.node("address");
    let many = table.node("addresses");
    if let (Some(one), Some(many)) = (one, many) {
        problems.push(
            Problem::error(format!("{} has both `address` and `addresses`", table.what))
                .at(&many.span(), "and here")
                .at(&one.span(), "here")
                .help("keep `addresses`"),
        );
    }
    if one.is_none() && many.is_none() {
        problems.push(table.missing("address", "\"10.0.10.5\""));
    }
    let mut addresses: Vec<At<Addresses>> = one.and_then(|node| at(node, problems)).into_iter().collect();
    addresses.extend(table.list("addresses", problems).map(|list| list.value).unwrap_or_default());
    Host { name, addresses, mac: table.value("mac", problems), comment: table.value("comment", problems) }
}

fn service(name: At<ServiceName>, table: &mut Table<'_>, problems: &mut Problems) -> Service {
    if table.node("ports").is_none() {
        problems.push(table.missing("ports", "[\"tcp/80\", \"tcp/443\"]"));
    }
    let ports = table.list("ports", problems);
    let one = table.one_or_many("host", problems);
    let many = table.list("hosts", problems);
    if let (Some(one), Some(many)) = (&one, &many) {
        problems.push(
            Problem::error(format!("{} has both `host` and `hosts`", table.what))
                .at(&many.span, "and here")
                .at(&one.span, "here")
                .help("keep `hosts`"),
        );
    }
    Service { name, ports, hosts: many.or(one) }
}

fn egress(name: At<EgressName>, table: &mut Table<'_>, problems: &mut Problems) -> Egress {
    let to = table.node("to");
    let names = table.one_or_many("names", problems);
    let preset: Maybe<String> = table.value("preset", problems);
    if to.is_none() && names.is_none() && preset.is_none() {
        problems.push(
            table
                .missing("to", "[\"192.0.2.0/24\"]")
                .help("write `to = [\"192.0.2.0/24\"]`, `to = \"any\"`, or `names = [\"login.example.com\"]`"),
        );
    }
    let to = match to {
        Some(node) if node.get_ref().as_str() == Some("any") => {
            Some(At { value: Destinations::Any, span: node.span() })
        }
        Some(_) => {
            table.one_or_many("to", problems).map(|list| At { value: Destinations::These(list.value), span: list.span })
        }
        None => None,
    };
    if table.node("ports").is_none() && preset.is_none() {
        problems.push(table.missing("ports", "[\"tcp/443\"]"));
    }
    Egress {
        name,
        to,
        names,
        preset,
        region: table.value("region", problems),
        gateway: table.value("gateway", problems),
        ports: table.list("ports", problems),
    }
}

fn dns(table: &mut Table<'_>, problems: &mut Problems) -> Dns {
    let forward = inner(table, "forward", problems, |zones, problems| {
        let children = zones.children();
        let zone = |(key, _): &(&toml::Spanned<std::borrow::Cow<'_, str>>, _)| At {
            value: key.get_ref().to_string(),
            span: key.span(),
        };
        let written =
            children.iter().map(|child| DnsForward { zone: zone(child), servers: servers(child.1, problems) });
        let written: Vec<_> = written.collect();
        zones.know_all();
        written
    });
    Dns {
        span: table.span.clone(),
        upstreams: needed_list(table, "upstreams", "[\"tls://192.0.2.53#dns.example\"]", problems),
        domain: table.value("domain", problems),
        dot_local: table.value("dot_local", problems),
        forward: forward.unwrap_or_default(),
        private: table.one_or_many("private", problems),
        redirect: table.value("redirect", problems),
        ca: table.value("ca", problems),
        cache: table.value("cache", problems),
    }
}

/// One server, or a list of them.
fn servers(node: &Node<'_>, problems: &mut Problems) -> Maybe<Vec<At<String>>> {
    let list = match node.get_ref().as_array() {
        Some(array) => array.iter().filter_map(|item| at(item, problems)).collect(),
        None => vec![at(node, problems)?],
    };
    Some(At { value: list, span: node.span() })
}

fn cell(table: &mut Table<'_>, problems: &mut Problems) -> Cell {
    for (key, example) in [("from", "\"office\""), ("to", "\"guests\""), ("services", "[\"tcp/443\"]")] {
        if table.node(key).is_none() {
            problems.push(table.missing(key, example));
        }
    }
    let services = match table.node("services") {
        Some(node) if node.get_ref().as_str() == Some("any") => Some(At { value: Services::Any, span: node.span() }),
        Some(_) => {
            table.list("services", problems).map(|list| At { value: Services::These(list.value), span: list.span })
        }
        None => None,
    };
    Cell {
        span: table.span.clone(),
        name: table.value("name", problems),
        from: table.one_or_many("from", problems),
        to: table.one_or_many("to", problems),
        services,
        hosts: table.one_or_many("hosts", problems),
        from_hosts: table.one_or_many("from_hosts", problems),
        log: table.value("log", problems),
        enabled: table.value("enabled", problems),
        comment: table.value("comment", problems),
    }
}

fn wan(name: At<WanName>, table: &mut Table<'_>, problems: &mut Problems) -> Wan {
    let probe = match table.node("probe") {
        Some(node) => Table::of(format!("`probe` of {}", table.what), node, problems)
            .map(|inner| probe(inner, problems))
            .unwrap_or_default(),
        None => Probe::default(),
    };
    Wan {
        name,
        id: table.value("id", problems),
        interface: table.needed("interface", "\"eth0\"", problems),
        method: table.value("method", problems),
        ipv6: table.value("ipv6", problems),
        prefix_delegation: table.value("prefix_delegation", problems),
        addresses: table.list("addresses", problems),
        gateway: table.value("gateway", problems),
        gateway6: table.value("gateway6", problems),
        mtu: table.value("mtu", problems),
        weight: table.value("weight", problems),
        download: table.value("download", problems),
        upload: table.value("upload", problems),
        nat6: table.value("nat6", problems),
        input: table.list("input", problems),
        bogons: table.value("bogons", problems),
        probe,
        comment: table.value("comment", problems),
    }
}

impl Read for Nat6 {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        if node.get_ref().is_table() {
            let mut table = Table::of("`nat6`", node, problems)?;
            let internal = table.needed("internal", "\"fd10:10:20::/48\"", problems);
            let external = table.needed("external", "\"2001:db8:20::/48\"", problems);
            table.finish(problems);
            return Some(Self::Prefix { internal: internal?, external: external? });
        }
        text(node, "a way to translate IPv6", problems, |text| match text {
            "masquerade" => Ok(Self::Masquerade),
            "none" => Ok(Self::None),
            _ => Err("write \"masquerade\", \"none\" or { internal = …, external = … }"),
        })
    }
}

fn probe(mut table: Table<'_>, problems: &mut Problems) -> Probe {
    let probe = Probe {
        targets: table.list("targets", problems),
        interval: table.value("interval", problems),
        timeout: table.value("timeout", problems),
        fall: table.value("fall", problems),
        rise: table.value("rise", problems),
        quorum: table.value("quorum", problems),
        window: table.value("window", problems),
        loss: threshold("loss", "\"20%\"", &mut table, problems),
        latency: threshold("latency", "\"200ms\"", &mut table, problems),
        jitter: threshold("jitter", "\"50ms\"", &mut table, problems),
        hold: table.value("hold", problems),
        hold_max: table.value("hold_max", problems),
    };
    table.finish(problems);
    probe
}

fn threshold<T: Read>(
    key: &'static str,
    example: &str,
    table: &mut Table<'_>,
    problems: &mut Problems,
) -> Option<Threshold<T>> {
    let node = table.node(key)?;
    if !node.get_ref().is_table() {
        problems.push(
            wrong_type(node, "a pair of thresholds")
                .help(format!("write `{key} = {{ fail = {example}, recover = … }}`")),
        );
        return None;
    }
    let mut inner = Table::of(format!("`{key}`"), node, problems)?;
    let fail = inner.needed("fail", example, problems);
    let recover = inner.value("recover", problems);
    inner.finish(problems);
    Some(Threshold { fail: fail?, recover })
}

impl Read for Percent {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        text(node, "a percentage", problems, |text| {
            let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<u8>().ok());
            number.filter(|number| *number <= 100).map(Self).ok_or("write it like \"20%\", from \"0%\" to \"100%\"")
        })
    }
}

impl Read for Target {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        if !node.get_ref().is_table() {
            return text(node, "a probe target", problems, target);
        }
        let mut table = Table::of("this target", node, problems)?;
        let url: At<String> = table.needed("http", "\"https://example.org/\"", problems)?;
        let address: Maybe<IpAddr> = table.needed("at", "\"192.0.2.1\"", problems);
        let status: Maybe<i64> = table.value("status", problems);
        table.finish(problems);
        let code = match &status {
            None => 200,
            Some(status) => {
                let code = u16::try_from(status.value).ok().filter(|code| (100..=599).contains(code));
                if code.is_none() {
                    problems.push(Problem::error("this is no HTTP status").at(&status.span, "100 to 599"));
                }
                code?
            }
        };
        match http(&url.value, address?.value, code) {
            Ok(target) => Some(target),
            Err(error) => {
                problems.push(Problem::error("this is no address of a web page").at(&url.span, error));
                None
            }
        }
    }
}

/// `gateway`, `icmp A`, `tcp A:PORT`, `dns A[:PORT] NAME`, `http URL at A [STATUS]`.
fn target(text: &str) -> Result<Target, &'static str> {
    const HELP: &str = "write \"gateway\", \"icmp 192.0.2.1\", \"tcp 192.0.2.1:443\", \"dns 192.0.2.1 example.org\" \
                        or { http = \"https://example.org/\", at = \"192.0.2.1\", status = 200 }";
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        ["gateway"] => Ok(Target::Gateway),
        ["icmp" | "ping", address] => {
            address.parse().map(Target::Icmp).ok().ok_or("names cannot be probed: write the address")
        }
        ["tcp", address] => match endpoint(address) {
            Some((address, Some(port))) => Ok(Target::Tcp(address, port)),
            Some((_, None)) => Err("add the port: \"tcp 192.0.2.1:443\" or \"tcp [2001:db8::1]:443\""),
            None => Err("write the address and port: \"tcp 192.0.2.1:443\""),
        },
        ["dns", server, name] => {
            let (server, port) = endpoint(server).ok_or("write the server's address: \"dns 192.0.2.1 example.org\"")?;
            let valid = name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()));
            let valid = valid && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if !valid {
                return Err("that is no name of a domain");
            }
            Ok(Target::Dns { server, port: port.unwrap_or(53), name: (*name).to_owned() })
        }
        _ => Err(HELP),
    }
}

fn http(url: &str, address: IpAddr, status: u16) -> Result<Target, &'static str> {
    const HELP: &str = "write it like \"https://example.org/path\"";
    let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        (None, None) => return Err(HELP),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (name, port) = match authority.split_once(':') {
        Some((name, port)) => (name, port.parse().ok().filter(|port| *port != 0).ok_or("that is no port")?),
        None => (authority, if tls { 443 } else { 80 }),
    };
    // What is written here goes into a request as it is.
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_graphic());
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) || !plain(path) {
        return Err(HELP);
    }
    let path = if path.is_empty() { "/" } else { path };
    Ok(Target::Http { address, port, tls, name: name.to_owned(), path: path.to_owned(), status })
}

/// `A`, `A:PORT`, `[A]:PORT`.
fn endpoint(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, None));
    }
    let socket = text.parse::<std::net::SocketAddr>().ok()?;
    (socket.port() != 0).then_some((socket.ip(), Some(socket.port())))
}

fn policy(name: At<PolicyName>, table: &mut Table<'_>, problems: &mut Problems) -> Policy {
    if table.node("members").is_none() {
        problems.push(table.missing("members", "[\"wan1\", \"wan2\"]"));
    }
    Policy {
        name,
        members: table.list("members", problems),
        balance: table.value("balance", problems),
        last_resort: table.value("last_resort", problems),
        failback: table.value("failback", problems),
        kick: table.value("kick", problems),
        comment: table.value("comment", problems),
    }
}

impl Read for Member {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        if !node.get_ref().is_table() {
            return at(node, problems).map(|wan| Self { wan, weight: None, tier: None });
        }
        let mut table = Table::of("this member", node, problems)?;
        let wan = table.needed("wan", "\"wan1\"", problems);
        let weight = table.value("weight", problems);
        let tier = table.value("tier", problems);
        table.finish(problems);
        Some(Self { wan: wan?, weight, tier })
    }
}

impl Read for Failback {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        if node.get_ref().is_table() {
            let mut table = Table::of("`failback`", node, problems)?;
            let drain: Maybe<Duration> = table.needed("drain", "\"5m\"", problems);
            table.finish(problems);
            return drain.map(|drain| Self::Drain(drain.value));
        }
        text(node, "a way to fail back", problems, |text| match text {
            "stay" => Ok(Self::Stay),
            "force" => Ok(Self::Force),
            _ => Err("write \"stay\", \"force\" or { drain = \"5m\" }"),
        })
    }
}

fn steer(table: &mut Table<'_>, problems: &mut Problems) -> Steer {
    Steer {
        span: table.span.clone(),
        name: table.value("name", problems),
        from: table.one_or_many("from", problems),
        source: table.one_or_many("source", problems),
        destination: table.one_or_many("destination", problems),
        source_ports: table.one_or_many("source_ports", problems),
        services: table.one_or_many("services", problems),
        ports: table.one_or_many("ports", problems),
        policy: table.needed("policy", "\"balanced\"", problems),
    }
}

fn syslog(table: &mut Table<'_>, problems: &mut Problems) -> Syslog {
    Syslog {
        span: table.span.clone(),
        server: table.needed("server", "\"10.0.40.10:6514\"", problems),
        tls: table.node("tls").and_then(|node| Some(tls(Table::of("`tls`", node, problems)?, problems))),
        events: table.one_or_many("events", problems),
        denied: table.value("denied", problems),
        queue: table.value("queue", problems),
    }
}

fn tls(mut table: Table<'_>, problems: &mut Problems) -> Tls {
    let tls = Tls {
        span: table.span.clone(),
        ca: table.needed("ca", "\"/etc/quadway/collector-ca.pem\"", problems),
        name: table.value("name", problems),
        certificate: table.value("certificate", problems),
        key: table.value("key", problems),
    };
    table.finish(problems);
    tls
}

fn webhook(table: &mut Table<'_>, problems: &mut Problems) -> Webhook {
    Webhook {
        span: table.span.clone(),
        url: table.needed("url", "\"https://hooks.example.org/quadway\"", problems),
        header: table.value("header", problems),
        secret: table.value("secret", problems),
        ca: table.value("ca", problems),
        events: table.one_or_many("events", problems),
        timeout: table.value("timeout", problems),
    }
}

fn tls_offload(table: &mut Table<'_>, problems: &mut Problems) -> TlsOffload {
    TlsOffload {
        span: table.span.clone(),
        name: table.needed("name", "\"shop\"", problems),
        listen: needed_list(table, "listen", "[\"10.0.10.1:443\"]", problems),
        from: table.one_or_many("from", problems),
        open_to_wan: table.one_or_many("open_to_wan", problems),
        certificates: entries(table, "certificate", problems, |table, problems| TlsCertificate {
            span: table.span.clone(),
            names: table.one_or_many("names", problems),
            certificate: table.needed("certificate", "\"/etc/quadway/tls/shop.pem\"", problems),
            key: table.needed("key", "\"/etc/quadway/tls/shop.key\" or \"credential:shop.key\"", problems),
            ocsp: table.value("ocsp", problems),
        }),
        versions: table.one_or_many("versions", problems),
        alpn: table.list("alpn", problems),
        client_ca: table.value("client_ca", problems),
        client_certificate: table.value("client_certificate", problems),
        backends: needed_list(table, "backends", "[\"10.0.10.20:8080\"]", problems),
        balance: table.value("balance", problems),
        proxy_protocol: table.value("proxy_protocol", problems),
        backend_tls: inner(table, "backend_tls", problems, |table, problems| BackendTls {
            ca: table.value("ca", problems),
            name: table.needed("name", "\"backend.example.org\"", problems),
        }),
        health: inner(table, "health", problems, |table, problems| BackendHealth {
            interval: table.value("interval", problems),
            timeout: table.value("timeout", problems),
            rise: table.value("rise", problems),
            fall: table.value("fall", problems),
        })
        .unwrap_or_default(),
        limits: inner(table, "limits", problems, |table, problems| TlsLimits {
            connections: table.value("connections", problems),
            connections_per_source: table.value("connections_per_source", problems),
            handshakes_per_source: table.value("handshakes_per_source", problems),
            handshake_burst: table.value("handshake_burst", problems),
            handshake_timeout: table.value("handshake_timeout", problems),
            idle_timeout: table.value("idle_timeout", problems),
            drain: table.value("drain", problems),
            buffer: table.value("buffer", problems),
        })
        .unwrap_or_default(),
    }
}

/// One or many, and not none.
fn needed_list<T: Read>(
    table: &mut Table<'_>,
    key: &'static str,
    example: &str,
    problems: &mut Problems,
) -> Maybe<Vec<At<T>>> {
    if table.node(key).is_none() {
        problems.push(table.missing(key, example));
    }
    table.one_or_many(key, problems)
}

/// The table a key of another one holds.
fn inner<'a, T>(
    table: &mut Table<'a>,
    key: &'static str,
    problems: &mut Problems,
    read: impl FnOnce(&mut Table<'a>, &mut Problems) -> T,
) -> Option<T> {
    let mut inner = Table::of(format!("`{key}`"), table.node(key)?, problems)?;
    let value = read(&mut inner, problems);
    inner.finish(problems);
    Some(value)
}

impl Read for TlsBackend {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        if !node.get_ref().is_table() {
            return at(node, problems).map(|address| Self { address, weight: None });
        }
        let mut table = Table::of("this backend", node, problems)?;
        let address = table.needed("address", "\"10.0.10.20:8080\"", problems);
        let weight = table.value("weight", problems);
        table.finish(problems);
        Some(Self { address: address?, weight })
    }
}

impl Read for Bytes {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        text(node, "a size", problems, |text| {
            let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (number, unit) = text.split_at(split);
            let unit = match unit.trim() {
                "KiB" => Some(1 << 10),
                "MiB" => Some(1 << 20),
                "GiB" => Some(1_u64 << 30),
                _ => None,
            };
            let bytes = number.parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
            bytes.map(Self).ok_or("write a number and its unit: \"64KiB\", \"16MiB\" or \"1GiB\"")
        })
    }
}

impl Read for PortSpec {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        text(node, "a port", problems, |text| port_spec(text).map(Self))
    }
}

/// `tcp/80`, `udp/5404-5412`, `ping`, `proto/50`.
pub(crate) fn port_spec(text: &str) -> Result<PortSet, &'static str> {
    const HELP: &str = "write it like \"tcp/80\", \"udp/5404-5412\", \"ping\" or \"proto/50\"";
    let mut ports = PortSet::default();
    if text == "ping" {
        ports.ping = true;
        return Ok(ports);
    }
    let (protocol, rest) = text.split_once('/').ok_or(HELP)?;
    if protocol == "proto" {
        let number: u8 = rest.parse().ok().ok_or("a protocol is a number from 0 to 255")?;
        match number {
            1 | 58 => return Err("ICMP errors always pass; for echo requests write \"ping\""),
            6 => return Err("write \"tcp/1-65535\""),
            17 => return Err("write \"udp/1-65535\""),
            _ => ports.protocols.insert(number),
        };
        return Ok(ports);
    }
    let (first, last) = rest.split_once('-').unwrap_or((rest, rest));
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    let (Some(first), Some(last)) = (number(first), number(last)) else {
        return Err("a port is a number from 1 to 65535");
    };
    if first > last {
        return Err("this range is written backwards");
    }
    match protocol {
        "tcp" => ports.tcp.push(first..=last),
        "udp" => ports.udp.push(first..=last),
        _ => return Err(HELP),
    }
    Ok(ports)
}

impl Read for ServiceRef {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        text(node, "a service", problems, |text| {
            if text == "ping" || text.contains('/') {
                let ports = port_spec(text).map_err(str::to_owned)?;
                let name = text.replace(' ', "").parse().map_err(|error: NameError| error.to_string())?;
                return Ok::<_, String>(Self::Inline(name, ports));
            }
            text.parse().map(Self::Named).map_err(|error: NameError| error.to_string())
        })
    }
}

impl Addresses {
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(first, last), IpAddr::V4(address)) => (first..=last).contains(&address),
            (Self::V6(first, last), IpAddr::V6(address)) => (first..=last).contains(&address),
            (Self::V4(..), IpAddr::V6(_)) | (Self::V6(..), IpAddr::V4(_)) => false,
        }
    }

    /// More than one address.
    pub(crate) fn is_range(self) -> bool {
        match self {
            Self::V4(first, last) => first != last,
            Self::V6(first, last) => first != last,
        }
    }
}

impl From<IpNet> for Addresses {
    /// Every address of the prefix.
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self::V4(net.network(), net.broadcast()),
            IpNet::V6(net) => Self::V6(net.network(), net.broadcast()),
        }
    }
}

impl FromStr for Addresses {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HELP: &str = "write it like \"10.0.0.5\", \"10.0.0.0/24\" or \"10.0.0.5-10.0.0.9\"";
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(net.into());
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: IpAddr = first.trim().parse().ok().ok_or(HELP)?;
        // 10.0.50.10-30 is how people write ranges, and how the site's documents do.
        let last = match (first, last.trim().parse::<u8>()) {
            (IpAddr::V4(first), Ok(end)) => {
                let [a, b, c, _] = first.octets();
                IpAddr::V4(Ipv4Addr::new(a, b, c, end))
            }
            (_, _) => last.trim().parse().ok().ok_or(HELP)?,
        };
        match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => Ok(Self::V4(first, last)),
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => Ok(Self::V6(first, last)),
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => Err("this range is written backwards"),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Err("this range mixes IPv4 and IPv6"),
        }
    }
}

impl Read for Addresses {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        text(node, "an address or range", problems, Self::from_str)
    }
}

impl Read for HostRef {
    fn read(node: &Node<'_>, problems: &mut Problems) -> Option<Self> {
        text(node, "a host or address", problems, |text| {
            match text.parse::<Addresses>() {
                Ok(addresses) => return Ok(Self::Addresses(addresses)),
                // No host is called 10.0.0.300 or fd00::zz.
                Err(error)
                    if text.contains(['/', ':'])
                        || text.starts_with(|c: char| c.is_ascii_digit()) && text.contains('.') =>
                {
                    return Err(error.to_owned());
                }
                Err(_) => {}
            }
            text.parse().map(Self::Named).map_err(|error: NameError| error.to_string())
        })
    }
}
