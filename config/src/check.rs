//! From the file as written to the model: names are resolved, numbers are put in range, and what contradicts itself
//! is shown in both places. Nothing here stops at the first problem; a part with a problem is left out of the model,
//! which is then thrown away, and names are looked up among what the file declares so that one slip is told once.

mod api;
mod asserts;
mod dns;
mod lan;
mod leases;
mod matrix;
mod outside;
mod pair;
mod segments;
mod tls_offload;
mod tunnel;
mod wans;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use crate::file::{Addresses, File, HostRef};
use crate::model::{self, AddressSet, Config, KernelDevice, PortSet};
use crate::problem::{Lines, Problem, Span};
use crate::read::At;
use crate::suggest::nearest;
use crate::units::{EgressName, HostName, IfName, Line, PolicyName, ServiceName, VlanName, WanName};

/// The model, for each of its cells the number of its `[[cell]]` in the file, and the problems met on the way. The
/// model is only good when none of them is an error.
pub(crate) fn run(file: &File, text: &str) -> (Config, Vec<usize>, Vec<Problem>) {
    let mut check = Check::new(file, text);
    let segments = check.segments();
    check.hosts = check.all_hosts(&segments);
    let services = check.all_services();
    let egress = check.all_egress();
    let mut vlans = check.vlans(&segments, &services);
    let mut wans = check.wans(&services);
    check.tunnels(&mut vlans, &services, &wans);
    let (cells, origins) = check.cells(&vlans, &services);
    check.delegated(&mut vlans, &wans);
    let ports = check.ports();
    check.overlaps();
    let policies = check.policies();
    let steering = check.steering(&services);
    let asserts = check.asserts();
    let dns = check.dns(&vlans, &egress);
    let api = check.api(&mut vlans, &wans);
    let tls_offload = check.tls_offload(&mut vlans, &mut wans);
    tunnel::let_in(&vlans, &mut wans);
    let dhcp = check.dhcp(&vlans);
    let ra = check.ra(&vlans);
    let ntp = check.ntp(&vlans);
    let pair = check.pair(&vlans, &wans);
    let router = check.router();
    let crypto = check.crypto();
    let fast_path = check.fast_path();
    let syslog = check.syslog();
    let webhooks = check.webhooks();
    let hooks = check.hooks();

    // Built-in and in-place services are part of the model where something uses them.
    let mut named = services;
    for permit in vlans.values().flat_map(|vlan| &vlan.input).chain(wans.values().flat_map(|wan| &wan.input)) {
        built_in(&mut named, permit);
    }
    for cell in &cells {
        if let model::Allow::Services(permits) = &cell.allow {
            for permit in permits {
                built_in(&mut named, permit);
            }
        }
    }
    let config = Config {
        site: file.site.as_ref().map(|site| site.value.clone()).unwrap_or_default(),
        digest: digest(text),
        router,
        api,
        crypto,
        fast_path,
        ports,
        vlans,
        hosts: check.hosts,
        services: named,
        egress,
        cells,
        wans,
        policies,
        steering,
        asserts,
        syslog,
        webhooks,
        hooks,
        dns,
        tls_offload,
        dhcp,
        ra,
        ntp,
        pair,
    };
    (config, origins, check.problems)
}

fn built_in(services: &mut BTreeMap<ServiceName, model::Service>, permit: &model::Permit) {
    services.entry(permit.service.clone()).or_insert_with(|| model::Service {
        name: permit.service.clone(),
        ports: permit.ports.clone(),
        hosts: None,
        line: Line::BUILT_IN,
    });
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap_or(());
        out
    })
}

struct Check<'a> {
    file: &'a File,
    lines: Lines<'a>,
    problems: Vec<Problem>,
    names: Names<'a>,
    hosts: BTreeMap<HostName, model::Host>,
    /// Every subnet of the router, with whose it is.
    subnets: Vec<Subnet<'a>>,
    /// Every mention of a port outside its own table.
    uses: BTreeMap<IfName, Vec<(Use<'a>, Span)>>,
}

/// What the file declares, well-formed or not.
struct Names<'a> {
    ports: BTreeMap<&'a str, &'a Span>,
    vlans: BTreeMap<&'a str, &'a Span>,
    hosts: BTreeMap<&'a str, &'a Span>,
    services: BTreeMap<&'a str, &'a Span>,
    egress: BTreeMap<&'a str, &'a Span>,
    wans: BTreeMap<&'a str, &'a Span>,
    policies: BTreeMap<&'a str, &'a Span>,
}

#[derive(Debug, Clone)]
struct Subnet<'a> {
    net: IpNet,
    span: &'a Span,
    owner: Owner<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner<'a> {
    Vlan(&'a VlanName),
    Wan(&'a WanName),
    Tunnel(&'a VlanName),
}

impl Display for Owner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vlan(name) => write!(f, "VLAN `{name}`"),
            Self::Wan(name) => write!(f, "WAN `{name}`"),
            Self::Tunnel(name) => write!(f, "tunnel `{name}`"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use<'a> {
    Wan(&'a WanName),
    Access(&'a VlanName),
    Native(&'a VlanName),
    Tagged(&'a VlanName),
}

impl Display for Use<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wan(name) => write!(f, "the line of WAN `{name}`"),
            Self::Access(name) => write!(f, "an access port of VLAN `{name}`"),
            Self::Native(name) => write!(f, "a trunk with native VLAN `{name}`"),
            Self::Tagged(name) => write!(f, "a trunk carrying VLAN `{name}`"),
        }
    }
}

impl<'a> Check<'a> {
    fn new(file: &'a File, text: &'a str) -> Self {
        let names = Names {
            ports: file.ports.iter().map(|port| (port.name.value.as_str(), &port.name.span)).collect(),
            vlans: {
                let tunnels = file.tunnels.iter().map(|tunnel| &tunnel.name);
                let all = tunnels.chain(file.vlans.iter().map(|vlan| &vlan.name));
                all.map(|name| (name.value.as_str(), &name.span)).collect()
            },
            hosts: file.hosts.iter().map(|host| (host.name.value.as_str(), &host.name.span)).collect(),
            services: file.services.iter().map(|service| (service.name.value.as_str(), &service.name.span)).collect(),
            egress: file.egress.iter().map(|set| (set.name.value.as_str(), &set.name.span)).collect(),
            wans: file.wans.iter().map(|wan| (wan.name.value.as_str(), &wan.name.span)).collect(),
            policies: file.policies.iter().map(|policy| (policy.name.value.as_str(), &policy.name.span)).collect(),
        };
        Self {
            file,
            lines: Lines::of(text),
            problems: Vec::new(),
            names,
            hosts: BTreeMap::new(),
            subnets: Vec::new(),
            uses: BTreeMap::new(),
        }
    }

    fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    fn line(&self, span: &Span) -> Line {
        Line(u32::try_from(self.lines.number(span.start)).unwrap_or(u32::MAX))
    }

    /// A number that fits, or a problem.
    fn number<T: TryFrom<i64>>(&mut self, at: &At<i64>, range: RangeInclusive<i64>, what: &str) -> Option<T> {
        if range.contains(&at.value) {
            return T::try_from(at.value).ok();
        }
        let (first, last) = range.into_inner();
        self.push(
            Problem::error(format!("{what} cannot be {}", at.value))
                .at(&at.span, format!("{first} to {last} is possible")),
        );
        None
    }

    /// One word of a closed list, or a problem.
    fn word<T: Copy>(&mut self, at: &At<String>, what: &str, words: &[(&str, T)]) -> Option<T> {
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == at.value) {
            return Some(*value);
        }
        let all = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let label = match nearest(&at.value, words.iter().map(|(word, _)| *word)) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "not one of the words known here".to_owned(),
        };
        self.push(
            Problem::error(format!("`{}` is no {what}", crate::read::shown(&at.value)))
                .at(&at.span, label)
                .help(format!("write one of {all}")),
        );
        None
    }

    /// Whether a list was written without items. One whose items could all not be read is reported already.
    fn is_empty<T>(&self, list: &At<Vec<At<T>>>) -> bool {
        list.value.is_empty() && self.is_blank(&list.span)
    }

    fn is_blank(&self, list: &Span) -> bool {
        self.lines.slice(list).chars().all(|c| c.is_whitespace() || "[]".contains(c))
    }

    fn vlan_known(&mut self, at: &At<VlanName>) -> bool {
        let problem = undeclared(at.value.as_str(), &at.span, "VLAN", "vlan", &self.names.vlans);
        self.report(problem)
    }

    fn wan_known(&mut self, name: &str, span: &Span) -> bool {
        let problem = undeclared(name, span, "WAN", "wan", &self.names.wans);
        self.report(problem)
    }

    fn host_known(&mut self, name: &HostName, span: &Span) -> bool {
        let problem = undeclared(name.as_str(), span, "host", "host", &self.names.hosts);
        self.report(problem)
    }

    fn policy_known(&mut self, name: &PolicyName, span: &Span) -> bool {
        let problem = undeclared(name.as_str(), span, "policy", "policy", &self.names.policies);
        self.report(problem)
    }

    fn egress_known(&mut self, name: &EgressName, span: &Span) -> bool {
        let problem = undeclared(name.as_str(), span, "egress set", "egress", &self.names.egress);
        self.report(problem)
    }

    fn report(&mut self, problem: Option<Problem>) -> bool {
        let good = problem.is_none();
        self.problems.extend(problem);
        good
    }

    /// The addresses these names and ranges stand for. `None` when one of them is not known.
    fn addresses(&mut self, refs: &[At<HostRef>]) -> Option<AddressSet> {
        let mut all = Vec::new();
        let mut complete = true;
        for item in refs {
            match &item.value {
                HostRef::Addresses(addresses) => all.push(*addresses),
                HostRef::Named(name) => {
                    complete &= self.host_known(name, &item.span);
                    let known = self.hosts.get(name).into_iter().flat_map(|host| &host.addresses);
                    all.extend(known.map(|address| Addresses::from(IpNet::from(*address))));
                }
            }
        }
        complete.then(|| union(all))
    }

    fn router(&mut self) -> model::Router {
        let router = &self.file.router;
        let metrics = match &router.metrics {
            None => DEFAULT_METRICS.parse().ok(),
            Some(at) if at.value == "off" => None,
            Some(at) => {
                let address = at.value.parse::<SocketAddr>().ok();
                if address.is_none() {
                    self.push(
                        Problem::error(format!("`{}` is no address to listen on", crate::read::shown(&at.value)))
                            .at(&at.span, "write it like \"127.0.0.1:9790\", or \"off\""),
                    );
                }
                address
            }
        };
        let denied_log_rate = match &router.denied_log_rate {
            None => DEFAULT_LOG_RATE,
            Some(at) => self.number(at, 1..=100_000, "the rate of logged denials").unwrap_or(DEFAULT_LOG_RATE),
        };
        let named =
            |check: &mut Self, at: &At<PolicyName>| check.policy_known(&at.value, &at.span).then(|| at.value.clone());
        let default_policy = match (&router.default_policy, self.file.policies.as_slice()) {
            (Some(at), _) => named(self, at),
            (None, [only]) => Some(only.name.value.clone()),
            (None, _) => {
                if let Some(wan) = self.file.wans.first() {
                    let problem = Problem::error("no policy says which lines traffic takes");
                    let problem = if router.span.is_empty() {
                        problem.at(&wan.name.span, "there is a WAN, and no [router] with a `default_policy`")
                    } else {
                        problem
                            .at(&router.span, "`default_policy` is missing in [router]")
                            .at(&wan.name.span, "needed because there is a WAN")
                    };
                    self.push(problem.help("write `default_policy = \"NAME\"` with the name of a [policy.NAME]"));
                }
                None
            }
        };
        let own_policy = match &router.own_policy {
            Some(at) => named(self, at),
            None => default_policy.clone(),
        };
        model::Router { metrics, default_policy, own_policy, denied_log_rate }
    }

    fn crypto(&mut self) -> model::Crypto {
        let words = [("prefer", KernelDevice::Prefer), ("avoid", KernelDevice::Avoid)];
        let written = self.file.crypto.kernel_device.as_ref();
        model::Crypto { kernel_device: written.and_then(|at| self.word(at, "use of the kernel's device", &words)) }
    }

    fn fast_path(&mut self) -> Option<model::FastPath> {
        let written = &self.file.fast_path;
        let default = model::FastPath::default();
        let mut number = |at: &Option<At<i64>>, range, what| at.as_ref().and_then(|at| self.number(at, range, what));
        let flows = number(&written.flows, 1024..=16_777_216, "the number of cached flows").unwrap_or(default.flows);
        let silence_flows =
            number(&written.silence_flows, 1..=64, "the number of silent flows").unwrap_or(default.silence_flows);
        let per_second = number(&written.new_per_source, 1..=1_000_000, "the connections of one source");
        let burst = number(&written.new_burst, 1..=1_000_000, "the burst of one source");
        let silence = match &written.silence {
            Some(at) if !SILENCE.contains(&at.value) => {
                self.push(
                    Problem::error("a line cannot be suspect after this silence")
                        .at(&at.span, "50ms to 10s is possible")
                        .help("answers take as long as the way there and back; 150ms to 300ms suits most lines"),
                );
                default.silence
            }
            Some(at) => at.value,
            None => default.silence,
        };
        if let (None, Some(at)) = (&written.new_per_source, &written.new_burst) {
            self.push(
                Problem::error("`new_burst` limits nothing without a rate")
                    .at(&at.span, "there is no `new_per_source` beside it")
                    .help("write, for example, `new_per_source = 20`"),
            );
        }
        if self.file.router.fast_path.as_ref().is_some_and(|at| !at.value) {
            return None;
        }
        let new_per_source =
            per_second.map(|per_second| model::Rate { per_second, burst: burst.unwrap_or(per_second) });
        Some(model::FastPath { flows, silence, silence_flows, new_per_source })
    }
}

/// A name that nothing declares: a problem with the nearest that is.
fn undeclared(name: &str, span: &Span, kind: &str, section: &str, known: &BTreeMap<&str, &Span>) -> Option<Problem> {
    if known.contains_key(name) {
        return None;
    }
    let near = nearest(name, known.keys().copied());
    let label = near.map_or_else(|| "used here".to_owned(), |near| format!("did you mean `{near}`?"));
    let help = match near {
        Some(near) => format!("write \"{near}\", or declare [{section}.{name}]"),
        None => format!("declare [{section}.{name}], or write the name of one that is declared"),
    };
    Some(Problem::error(format!("{kind} `{name}` is used here but not declared")).at(span, label).help(help))
}

fn merged_ports(specs: &[At<crate::file::PortSpec>]) -> PortSet {
    let mut ports = PortSet::default();
    for spec in specs {
        ports.merge(&spec.value.0);
    }
    ports
}

fn union(all: impl IntoIterator<Item = Addresses>) -> AddressSet {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for addresses in all {
        match addresses {
            Addresses::V4(first, last) => v4.push(first..=last),
            Addresses::V6(first, last) => v6.push(first..=last),
        }
    }
    AddressSet::of(v4, v6)
}

/// Names with a meaning of their own in cells and asserts.
const RESERVED: [&str; 4] = ["internet", "router", "all", "any"];
const DEFAULT_METRICS: &str = "127.0.0.1:9790";
const DEFAULT_LOG_RATE: u32 = 50;
const SILENCE: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(10);

type Seen<T> = BTreeMap<T, Span>;
type Set<T> = BTreeSet<T>;
