//! Where the router ends TLS: who may reach it, what it shows, where the bytes go. Its files are read by whoever serves
//! it; that they are there is not asked here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::api::{Listener, opening};
use super::outside::is_name;
use super::{Check, Seen, Set};
use crate::file;
use crate::model::{
    BackendBalance, BackendHealth, BackendTls, ClientCertificates, Material, Rate, TlsBackend, TlsCertificate,
    TlsLimits, TlsOffload, TlsVersion, Vlan, Wan,
};
use crate::problem::{Problem, Span};
use crate::read::{At, shown};
use crate::units::{TlsOffloadName, VlanName, WanName, Weight};

type Vlans = BTreeMap<VlanName, Vlan>;
type Wans = BTreeMap<WanName, Wan>;

impl Check<'_> {
    /// All of them; each is opened to whom it names.
    pub(super) fn tls_offload(&mut self, vlans: &mut Vlans, wans: &mut Wans) -> BTreeMap<TlsOffloadName, TlsOffload> {
        let file = self.file;
        let (mut names, mut places) = (Seen::new(), Seen::new());
        let mut out = BTreeMap::new();
        // A listener must not be a backend of another: bytes would go in a circle.
        let written = file.tls_offload.iter().filter_map(|offload| offload.listen.as_ref()).flat_map(|all| &all.value);
        let listeners: Set<SocketAddr> = written.filter_map(|at| at.value.parse().ok()).collect();
        for offload in &file.tls_offload {
            let name = offload.name.as_ref().map(|at| at.value.clone());
            if let Some(at) = &offload.name
                && let Some(before) = names.insert(at.value.clone(), at.span.clone())
            {
                self.push(
                    Problem::error(format!("tls_offload `{}` is there twice", at.value))
                        .at(&at.span, "and here")
                        .at(&before, "here"),
                );
            }
            let who =
                name.as_ref().map_or_else(|| "this tls_offload".to_owned(), |name| format!("tls_offload `{name}`"));
            let open = self.tls_reach(offload, &who, &mut places, vlans, wans);
            let certificates = self.tls_certificates(offload, &who);
            let versions = self.tls_versions(offload);
            let alpn = self.tls_alpn(offload);
            let clients = self.tls_clients(offload);
            let backends = self.tls_backends(offload, &listeners);
            let balances =
                [("least-connections", BackendBalance::LeastConnections), ("round-robin", BackendBalance::RoundRobin)];
            let balance = match &offload.balance {
                None => Some(BackendBalance::LeastConnections),
                Some(at) => self.word(at, "way to choose a backend", &balances),
            };
            let backend_tls = offload.backend_tls.as_ref().map(|tls| self.backend_tls(tls));
            let health = self.backend_health(&offload.health);
            let limits = self.tls_limits(&offload.limits);
            let (Some(name), Some(open), Some(certificates), Some(versions)) = (name, open, certificates, versions)
            else {
                continue;
            };
            let (Some(alpn), Ok(clients), Some(backends), Some(balance)) = (alpn, clients, backends, balance) else {
                continue;
            };
            let (Some(health), Some(limits)) = (health, limits) else { continue };
            if backend_tls == Some(None) {
                continue;
            }
            let service = format!("tls_offload/{name}");
            for listen in &open.listen {
                for vlan in &open.from {
                    if let Some(vlan) = vlans.get_mut(vlan) {
                        vlan.input.extend(opening(*listen, &service));
                    }
                }
                for wan in wans.values_mut().filter(|wan| open.open_to_wan.contains(&wan.name)) {
                    if is_of(wan, *listen) {
                        wan.input.extend(opening(*listen, &service));
                    }
                }
            }
            out.insert(
                name.clone(),
                TlsOffload {
                    name,
                    listen: open.listen,
                    from: open.from,
                    open_to_wan: open.open_to_wan,
                    certificates,
                    versions,
                    alpn,
                    clients,
                    backends,
                    balance,
                    proxy_protocol: offload.proxy_protocol.as_ref().is_some_and(|at| at.value),
                    backend_tls: backend_tls.flatten(),
                    health,
                    limits,
                    line: self.line(&offload.span),
                },
            );
        }
        out
    }

    fn tls_reach(
        &mut self,
        offload: &file::TlsOffload,
        who: &str,
        places: &mut Seen<SocketAddr>,
        vlans: &Vlans,
        wans: &Wans,
    ) -> Option<Reach> {
        let file = self.file;
        let mut good = true;
        let mut open_to_wan = BTreeSet::new();
        for at in offload.open_to_wan.iter().flat_map(|all| &all.value) {
            good &= self.wan_known(at.value.as_str(), &at.span);
            open_to_wan.insert(at.value.clone());
        }
        let mut from = BTreeSet::new();
        for at in offload.from.iter().flat_map(|all| &all.value) {
            good &= self.vlan_known(at);
            from.insert(at.value.clone());
        }
        let written = offload.listen.as_ref()?;
        if self.is_empty(written) {
            self.push(Problem::error(format!("{who} listens nowhere")).at(&written.span, "empty"));
            return None;
        }
        let (mut listen, mut used) = (Vec::new(), BTreeSet::new());
        for at in &written.value {
            let Some(address) = self.tls_address(at, who) else {
                good = false;
                continue;
            };
            if let Some(before) = places.insert(address, at.span.clone()) {
                self.push(
                    Problem::error(format!("two listeners want {address}"))
                        .at(&at.span, "and here")
                        .at(&before, "here")
                        .help("one [[tls_offload]] can show several certificates: each has its `names`"),
                );
                good = false;
            }
            let api = file.api.as_ref().and_then(|api| api.listen.as_ref());
            if let Some(api) = api.filter(|api| api.value.parse() == Ok(address)) {
                self.push(
                    Problem::error(format!("{who} and the API listen at the same place"))
                        .at(&at.span, format!("{who} listens here"))
                        .at(&api.span, "and the API here")
                        .help("give one of them another port"),
                );
            }
            self.beside_metrics(who, address, &at.span);
            let vlan = vlans.values().find(|vlan| vlan.addresses.iter().any(|own| own.addr() == address.ip()));
            let line = wans.values().find(|wan| is_of(wan, address));
            match (vlan, line) {
                (Some(vlan), _) => {
                    if offload.from.is_none() {
                        from.insert(vlan.name.clone());
                    }
                }
                (None, Some(wan)) if open_to_wan.contains(&wan.name) => {
                    used.insert(wan.name.clone());
                }
                (None, Some(wan)) => {
                    self.push(
                        Problem::error(format!("{who} would be open to everybody behind WAN `{}`", wan.name))
                            .at(&at.span, "this is the router's address there")
                            .help(format!(
                                "write the router's address in a VLAN, or, if the Internet shall reach it, \
                                 `open_to_wan = [\"{}\"]`",
                                wan.name
                            )),
                    );
                    good = false;
                }
                (None, None) => {
                    let own = vlans.values().flat_map(|vlan| &vlan.addresses).map(IpNet::addr).take(SHOWN);
                    let own: Vec<_> = own.map(|own| own.to_string()).collect();
                    let mut problem = Problem::error(format!("{who} cannot listen on {}", address.ip()))
                        .at(&at.span, "this is no address of the router");
                    if !own.is_empty() {
                        problem =
                            problem.help(format!("the router's addresses in VLANs begin with {}", own.join(", ")));
                    }
                    self.push(problem);
                    good = false;
                }
            }
            let lines = open_to_wan.iter().filter(|name| line.is_some_and(|line| line.name == **name)).collect();
            let listener = Listener { who, listen: address, span: &at.span };
            self.reached_elsewhere(&listener, &from.iter().collect(), &lines, vlans, wans);
            listen.push(address);
        }
        for at in offload.open_to_wan.iter().flat_map(|all| &all.value) {
            if good && !used.contains(&at.value) {
                self.push(
                    Problem::error(format!("{who} has no address that WAN `{}` could reach", at.value))
                        .at(&at.span, "open to this line")
                        .at(&written.span, "and none of these is the router's address there")
                        .help("leave the line out, or listen on the router's address there, too"),
                );
                good = false;
            }
        }
        if good && from.is_empty() && open_to_wan.is_empty() {
            let span = offload.from.as_ref().map_or(&written.span, |from| &from.span);
            self.push(
                Problem::error(format!("nobody may reach {who}"))
                    .at(span, "this names no VLAN")
                    .help("leave `from` out to let in the VLAN of each address, or name those that may"),
            );
            good = false;
        }
        good.then_some(Reach { listen, from, open_to_wan })
    }

    fn tls_address(&mut self, at: &At<String>, who: &str) -> Option<SocketAddr> {
        let address = at.value.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        match address {
            Some(address) if address.ip().is_unspecified() => self.push(
                Problem::error(format!("{who} cannot listen on every address"))
                    .at(&at.span, "this is all of them")
                    .help("write the router's address in each VLAN it is for"),
            ),
            Some(address) => return Some(address),
            None => self.push(
                Problem::error(format!("`{}` is no address to listen on", shown(&at.value)))
                    .at(&at.span, "write an address and a port, like \"10.0.10.1:443\""),
            ),
        }
        None
    }

    fn tls_certificates(&mut self, offload: &file::TlsOffload, who: &str) -> Option<Vec<TlsCertificate>> {
        if offload.certificates.is_empty() {
            self.push(
                Problem::error(format!("{who} has no certificate to show"))
                    .at(&offload.span, "there is no [[tls_offload.certificate]] below this")
                    .help("write [[tls_offload.certificate]] with `certificate` and `key`"),
            );
            return None;
        }
        let (mut seen, mut nameless): (Seen<String>, Option<&Span>) = (Seen::new(), None);
        let mut good = true;
        let mut out = Vec::new();
        for written in &offload.certificates {
            let mut names = BTreeSet::new();
            for at in written.names.iter().flat_map(|names| &names.value) {
                let name = at.value.to_ascii_lowercase();
                let host = name.strip_prefix("*.").unwrap_or(&name);
                if !is_name(host) || host.parse::<std::net::IpAddr>().is_ok() {
                    self.push(
                        Problem::error(format!("`{}` is no name that a client could ask for", shown(&at.value)))
                            .at(&at.span, "write it like \"shop.example.org\" or \"*.example.org\""),
                    );
                    good = false;
                    continue;
                }
                if let Some(before) = seen.insert(name.clone(), at.span.clone()) {
                    self.push(
                        Problem::error(format!("two certificates of {who} are for `{}`", shown(&at.value)))
                            .at(&at.span, "and here")
                            .at(&before, "here")
                            .help("one of them would never be shown"),
                    );
                    good = false;
                }
                names.insert(name);
            }
            match &written.names {
                Some(list) if list.value.is_empty() && self.is_blank(&list.span) => {
                    self.push(
                        Problem::error("a certificate without a name is shown to nobody")
                            .at(&list.span, "empty")
                            .help("leave `names` out to show it to whoever names none of the others"),
                    );
                    good = false;
                }
                Some(_) => {}
                None => {
                    if let Some(before) = nameless.replace(&written.span) {
                        self.push(
                            Problem::error(format!("two certificates of {who} have no `names`"))
                                .at(&written.span, "and this one")
                                .at(before, "this one")
                                .help("one is shown to whoever names none of the others; the others need `names`"),
                        );
                        good = false;
                    }
                }
            }
            let certificate = written.certificate.as_ref().and_then(|at| self.material(at, &written.span));
            let key = written.key.as_ref().and_then(|at| self.material(at, &written.span));
            let ocsp = written.ocsp.as_ref().map(|at| self.path(at));
            match (certificate, key, ocsp) {
                (_, _, Some(None)) | (None, _, _) | (_, None, _) => good = false,
                (Some(certificate), Some(key), ocsp) => {
                    out.push(TlsCertificate { names, certificate, key, ocsp: ocsp.flatten() });
                }
            }
        }
        good.then_some(out)
    }

    /// A file, or `credential:NAME`. A message quotes the line it is about, which must not be one that holds a key.
    pub(super) fn material(&mut self, at: &At<String>, table: &Span) -> Option<Material> {
        if at.value.contains("-----BEGIN") {
            self.push(
                Problem::error("a key or certificate cannot stand in the site file")
                    .at(table, "this has one below it")
                    .help("write it to a file that only root can read, and its path here"),
            );
            return None;
        }
        let Some(name) = at.value.strip_prefix("credential:") else {
            return self.path(at).map(Material::File);
        };
        // What systemd takes for one: a name of a file (systemd.exec(5)).
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if (1..=255).contains(&name.len()) && name.chars().all(good) && !name.starts_with('.') {
            return Some(Material::Credential(name.to_owned()));
        }
        self.push(
            Problem::error(format!("`{}` cannot be the name of a credential", shown(name)))
                .at(&at.span, "write it as in `LoadCredential=` of the unit, like \"credential:shop.key\""),
        );
        None
    }

    fn tls_versions(&mut self, offload: &file::TlsOffload) -> Option<Set<TlsVersion>> {
        let Some(written) = &offload.versions else { return Some([TlsVersion::V12, TlsVersion::V13].into()) };
        if self.is_empty(written) {
            self.push(
                Problem::error("`versions` names no version of TLS")
                    .at(&written.span, "empty")
                    .help("leave it out for 1.2 and 1.3"),
            );
            return None;
        }
        let words = [("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)];
        let all: Vec<_> = written.value.iter().map(|at| self.word(at, "version of TLS", &words)).collect();
        all.into_iter().collect()
    }

    fn tls_alpn(&mut self, offload: &file::TlsOffload) -> Option<Vec<String>> {
        let mut out: Vec<String> = Vec::new();
        for at in offload.alpn.iter().flat_map(|all| &all.value) {
            // RFC 7301, 3.1: 1 to 255 bytes.
            let good = (1..=255).contains(&at.value.len()) && at.value.chars().all(|c| c.is_ascii_graphic());
            if !good || out.contains(&at.value) {
                let label = if good { "this is there twice" } else { "write it like \"h2\" or \"http/1.1\"" };
                self.push(Problem::error(format!("`{}` cannot be offered", shown(&at.value))).at(&at.span, label));
                return None;
            }
            out.push(at.value.clone());
        }
        Some(out)
    }

    /// An error was told.
    fn tls_clients(&mut self, offload: &file::TlsOffload) -> Result<Option<ClientCertificates>, ()> {
        let required = match &offload.client_certificate {
            None => Some(true),
            Some(at) => self.word(at, "wish for certificates of clients", &[("required", true), ("optional", false)]),
        };
        match (&offload.client_ca, &offload.client_certificate) {
            (Some(at), _) => {
                let ca = self.path(at);
                Ok(Some(ClientCertificates { ca: ca.ok_or(())?, required: required.ok_or(())? }))
            }
            (None, Some(at)) => {
                self.push(
                    Problem::error("nobody could tell a client's certificate from another")
                        .at(&at.span, "there is no `client_ca` beside it")
                        .help("write, for example, `client_ca = \"/etc/quadway/tls/clients.pem\"`"),
                );
                Err(())
            }
            (None, None) => Ok(None),
        }
    }

    fn tls_backends(&mut self, offload: &file::TlsOffload, listeners: &Set<SocketAddr>) -> Option<Vec<TlsBackend>> {
        let written = offload.backends.as_ref()?;
        if self.is_empty(written) {
            self.push(
                Problem::error("there is nothing behind this tls_offload")
                    .at(&written.span, "empty")
                    .help("write, for example, `backends = [\"10.0.10.20:8080\"]`"),
            );
            return None;
        }
        let mut good = written.value.len() <= BACKENDS;
        if !good {
            self.push(
                Problem::error(format!("{} backends are too many", written.value.len()))
                    .at(&written.span, format!("at most {BACKENDS} are possible")),
            );
        }
        let mut seen = Seen::new();
        let mut out = Vec::new();
        for file::TlsBackend { address: at, weight } in written.value.iter().map(|at| &at.value) {
            let weight = match weight {
                None => Some(NonZeroU8::MIN),
                Some(at) => self.number::<u8>(at, 1..=255, "the weight of a backend").and_then(NonZeroU8::new),
            };
            let parsed = at.value.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
            let Some(address) = parsed.filter(|a| !a.ip().is_unspecified() && !a.ip().is_multicast()) else {
                self.push(
                    Problem::error(format!("`{}` is no backend", shown(&at.value)))
                        .at(&at.span, "write its address and port, like \"10.0.10.20:8080\"")
                        .help("a name cannot stand here: its address might be another one each time"),
                );
                good = false;
                continue;
            };
            if listeners.contains(&address) {
                self.push(
                    Problem::error(format!("{address} is a listener of this router"))
                        .at(&at.span, "what comes in would go round in a circle"),
                );
                good = false;
            }
            if let Some(before) = seen.insert(address, at.span.clone()) {
                self.push(
                    Problem::error(format!("the backend {address} is there twice"))
                        .at(&at.span, "and here")
                        .at(&before, "here")
                        .help("give it a weight to send it more"),
                );
                good = false;
            }
            let Some(weight) = weight else {
                good = false;
                continue;
            };
            out.push(TlsBackend { address, weight: Weight(weight) });
        }
        good.then_some(out)
    }

    fn backend_tls(&mut self, tls: &file::BackendTls) -> Option<BackendTls> {
        let ca = tls.ca.as_ref().map(|at| self.path(at));
        let at = tls.name.as_ref()?;
        if !is_name(&at.value) {
            self.push(
                Problem::error(format!("`{}` cannot be the name in a certificate", shown(&at.value)))
                    .at(&at.span, "write it like \"backend.example.org\""),
            );
            return None;
        }
        Some(BackendTls { ca: ca.map_or(Some(None), |ca| ca.map(Some))?, name: at.value.clone() })
    }

    fn backend_health(&mut self, written: &file::BackendHealth) -> Option<BackendHealth> {
        let default = BackendHealth::default();
        let interval = self.between(written.interval.as_ref(), &INTERVAL, default.interval, "between two checks");
        let timeout = self.between(written.timeout.as_ref(), &CONNECT, default.timeout, "for a connection");
        let mut count = |at: &Option<At<i64>>, what, default| match at {
            Some(at) => self.number(at, 1..=100, what),
            None => Some(default),
        };
        let rise = count(&written.rise, "the number of successes", default.rise);
        let fall = count(&written.fall, "the number of failures", default.fall);
        Some(BackendHealth { interval: interval?, timeout: timeout?, rise: rise?, fall: fall? })
    }

    fn tls_limits(&mut self, written: &file::TlsLimits) -> Option<TlsLimits> {
        let default = TlsLimits::default();
        let mut number = |at: &Option<At<i64>>, most, what, default| match at {
            Some(at) => self.number::<u32>(at, 1..=most, what),
            None => Some(default),
        };
        let connections = number(&written.connections, 1_000_000, "the number of connections", default.connections);
        let per_source = number(&written.connections_per_source, 1_000_000, "the connections of one source", u32::MAX);
        let rate = number(
            &written.handshakes_per_source,
            1_000_000,
            "the handshakes of one source",
            default.handshakes.per_second,
        );
        let twice = rate.unwrap_or_default().saturating_mul(2);
        let burst = number(&written.handshake_burst, 1_000_000, "the burst of one source", twice);
        let handshake =
            self.between(written.handshake_timeout.as_ref(), &HANDSHAKE, default.handshake_timeout, "for a handshake");
        let idle = self.between(written.idle_timeout.as_ref(), &IDLE, default.idle_timeout, "for an idle connection");
        let drain = self.between(written.drain.as_ref(), &DRAIN, default.drain, "to drain");
        let buffer = match &written.buffer {
            None => Some(default.buffer),
            Some(at) if BUFFER.contains(&at.value.0) => u32::try_from(at.value.0).ok(),
            Some(at) => {
                self.push(
                    Problem::error("a connection cannot have a buffer of this size")
                        .at(&at.span, "4KiB to 1MiB is possible"),
                );
                None
            }
        };
        Some(TlsLimits {
            connections: connections?,
            connections_per_source: written.connections_per_source.as_ref().and(per_source),
            handshakes: Rate { per_second: rate?, burst: burst? },
            handshake_timeout: handshake?,
            idle_timeout: idle?,
            drain: drain?,
            buffer: buffer?,
        })
    }

    fn between(
        &mut self,
        written: Option<&At<Duration>>,
        range: &(RangeInclusive<Duration>, &str),
        default: Duration,
        what: &str,
    ) -> Option<Duration> {
        let Some(at) = written else { return Some(default) };
        if range.0.contains(&at.value) {
            return Some(at.value);
        }
        self.push(Problem::error(format!("this is no time {what}")).at(&at.span, format!("{} is possible", range.1)));
        None
    }
}

/// Where it listens, and to whom.
struct Reach {
    listen: Vec<SocketAddr>,
    from: BTreeSet<VlanName>,
    open_to_wan: BTreeSet<WanName>,
}

fn is_of(wan: &Wan, address: SocketAddr) -> bool {
    wan.addressing.addresses.iter().any(|own| own.addr() == address.ip())
}

const INTERVAL: (RangeInclusive<Duration>, &str) =
    (Duration::from_millis(100)..=Duration::from_hours(1), "100ms to 1h");
const CONNECT: (RangeInclusive<Duration>, &str) = (Duration::from_millis(10)..=Duration::from_mins(1), "10ms to 1m");
const HANDSHAKE: (RangeInclusive<Duration>, &str) =
    (Duration::from_millis(100)..=Duration::from_mins(1), "100ms to 1m");
const IDLE: (RangeInclusive<Duration>, &str) = (Duration::from_secs(1)..=Duration::from_hours(24), "1s to 24h");
const DRAIN: (RangeInclusive<Duration>, &str) = (Duration::ZERO..=Duration::from_hours(1), "0s to 1h");
const BUFFER: RangeInclusive<u64> = 4 << 10..=1 << 20;
const BACKENDS: usize = 64;
/// How many addresses a message lists.
const SHOWN: usize = 8;
