//! The API over HTTPS: where it listens, its files, and what the certificates of its clients amount to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::{Check, Owner, Seen, Set};
use crate::file::{self, ServiceRef};
use crate::model::{AddressSet, Api, ApiClient, ApiRole, KnownBy, Permit, PortSet, Vlan, Wan};
use crate::problem::{Problem, Span};
use crate::read::{At, shown};
use crate::units::{ClientName, ServiceName, VlanName, WanName};

impl Check<'_> {
    /// The listener, if there is one; its own address and port are opened to the VLAN the address is in.
    pub(super) fn api(&mut self, vlans: &mut BTreeMap<VlanName, Vlan>, wans: &BTreeMap<WanName, Wan>) -> Option<Api> {
        let written = self.file.api.as_ref()?;
        let listen = written.listen.as_ref().and_then(|at| self.api_address(at));
        let certificate = self.api_file(written.certificate.as_ref());
        let key = self.api_file(written.key.as_ref());
        let client_ca = self.api_file(written.client_ca.as_ref());
        let clients = self.api_clients(written);
        let (listen, span) = listen?;
        self.beside_metrics("the API", listen, &span);
        let vlan = match self.api_vlan(listen, &span, vlans) {
            Ok(vlan) => vlan,
            Err(problem) => {
                self.push(problem);
                return None;
            }
        };
        let listener = Listener { who: "the API", listen, span: &span };
        self.reached_elsewhere(&listener, &vlan.iter().collect(), &Set::new(), vlans, wans);
        if let Some(vlan) = vlan.as_ref().and_then(|name| vlans.get_mut(name)) {
            vlan.input.extend(opening(listen, SERVICE));
        }
        Some(Api { listen, vlan, certificate: certificate?, key: key?, client_ca: client_ca?, clients })
    }

    fn api_address(&mut self, at: &At<String>) -> Option<(SocketAddr, Span)> {
        let example = "write it like \"10.0.60.1:8443\"";
        match at.value.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_unspecified() => {
                self.push(
                    Problem::error("the API cannot listen on every address")
                        .at(&at.span, "this is all of them")
                        .help("write the router's address in the management VLAN: only that VLAN is let in"),
                );
                None
            }
            Ok(address) if address.port() == 0 => {
                self.push(Problem::error("the API needs a port to listen on").at(&at.span, example));
                None
            }
            Ok(address) => Some((address, at.span.clone())),
            Err(_) => {
                let text = format!("`{}` is no address to listen on", shown(&at.value));
                self.push(Problem::error(text).at(&at.span, example));
                None
            }
        }
    }

    pub(super) fn api_file(&mut self, at: Option<&At<String>>) -> Option<PathBuf> {
        let at = at?;
        if at.value.starts_with('/') && !at.value.contains('\0') {
            return Some(PathBuf::from(&at.value));
        }
        self.push(
            Problem::error(format!("`{}` is not the whole path of a file", shown(&at.value)))
                .at(&at.span, "it has to begin with /"),
        );
        None
    }

    fn api_clients(&mut self, written: &file::Api) -> BTreeMap<ClientName, ApiClient> {
        if written.clients.is_empty() {
            self.push(
                Problem::error("nobody may ask the API: there is no [api.client.NAME]")
                    .at(&written.span, "this listener would refuse everybody")
                    .help(
                        "declare, for example, `[api.client.alice]` with `role = \"operator\"` and `san = \"alice\"`",
                    ),
            );
        }
        let mut seen: Seen<KnownBy> = Seen::new();
        let mut clients = BTreeMap::new();
        for client in &written.clients {
            let roles = [("reader", ApiRole::Reader), ("operator", ApiRole::Operator)];
            let role = client.role.as_ref().and_then(|at| self.word(at, "role of a client", &roles));
            let known_by = self.api_known_by(client);
            let (Some(role), Some((known_by, span))) = (role, known_by) else { continue };
            if let Some(first) = seen.insert(known_by.clone(), span.clone()) {
                self.push(
                    Problem::error("two clients of the API have the same certificate")
                        .at(&span, "used again here")
                        .at(&first, "first used here")
                        .help("a certificate has one role"),
                );
            }
            let name = client.name.value.clone();
            clients.insert(name.clone(), ApiClient { name, role, known_by });
        }
        clients
    }

    fn api_known_by(&mut self, client: &file::ApiClient) -> Option<(KnownBy, Span)> {
        let ways = [&client.san, &client.cn, &client.fingerprint];
        let written: Vec<_> = ways.iter().filter_map(|way| way.as_ref()).collect();
        match written.as_slice() {
            [one] if one.value.is_empty() => {
                self.push(Problem::error("a certificate cannot be known by nothing").at(&one.span, "this is empty"));
                return None;
            }
            [_] => {}
            [] => {
                self.push(
                    Problem::error(format!("[api.client.{}] does not say which certificate it is", client.name.value))
                        .at(&client.name.span, "one of `san`, `cn` and `fingerprint` is missing here")
                        .help("write, for example, `san = \"alice.example\"`, a DNS name or URI in the certificate"),
                );
                return None;
            }
            [first, second, ..] => {
                self.push(
                    Problem::error(format!("[api.client.{}] knows its certificate in two ways", client.name.value))
                        .at(&second.span, "and by this")
                        .at(&first.span, "by this")
                        .help("keep one of `san`, `cn` and `fingerprint`"),
                );
                return None;
            }
        }
        if let Some(at) = &client.fingerprint {
            let hex: String = at.value.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
            if hex.len() != 64 || !hex.chars().all(|c| c.is_ascii_hexdigit()) {
                self.push(
                    Problem::error(format!("`{}` is no fingerprint", shown(&at.value)))
                        .at(&at.span, "a SHA-256 has 64 hexadecimal digits")
                        .help("`openssl x509 -in client.pem -noout -fingerprint -sha256` prints it"),
                );
                return None;
            }
            return Some((KnownBy::Fingerprint(hex), at.span.clone()));
        }
        let san = client.san.as_ref().map(|at| (KnownBy::San(at.value.clone()), at.span.clone()));
        san.or_else(|| client.cn.as_ref().map(|at| (KnownBy::Cn(at.value.clone()), at.span.clone())))
    }

    /// Where clients come from; `None` is the router itself.
    fn api_vlan(
        &self,
        listen: SocketAddr,
        span: &Span,
        vlans: &BTreeMap<VlanName, Vlan>,
    ) -> Result<Option<VlanName>, Problem> {
        let ip = listen.ip();
        if ip.is_loopback() {
            return Ok(None);
        }
        if let Some(vlan) = vlans.values().find(|vlan| vlan.addresses.iter().any(|own| own.addr() == ip)) {
            return Ok(Some(vlan.name.clone()));
        }
        let subnet = self.subnets.iter().find(|subnet| subnet.net.contains(&ip)).cloned();
        let mut problem = Problem::error(format!("the API cannot listen on {ip}"))
            .at(span, "this is no address of the router in a VLAN");
        problem = match subnet {
            Some(subnet) if matches!(subnet.owner, Owner::Wan(_)) => {
                problem.at(subnet.span, format!("it is in the subnet of {}", subnet.owner))
            }
            Some(subnet) => problem.at(subnet.span, format!("the router's address there is {}", subnet.net.addr())),
            None => problem,
        };
        let own = vlans.values().flat_map(|vlan| &vlan.addresses).map(IpNet::addr).map(|own| own.to_string());
        let own: Vec<_> = own.take(SHOWN).collect();
        if !own.is_empty() {
            problem = problem.help(format!("the router's addresses in VLANs begin with {}", own.join(", ")));
        }
        Err(problem)
    }

    pub(super) fn beside_metrics(&mut self, who: &str, listen: SocketAddr, span: &Span) {
        let Some(at) = &self.file.router.metrics else { return };
        let Ok(metrics) = at.value.parse::<SocketAddr>() else { return };
        if metrics.port() == listen.port() && (metrics.ip() == listen.ip() || metrics.ip().is_unspecified()) {
            self.push(
                Problem::error(format!("{who} and the metrics listen at the same place"))
                    .at(span, format!("{who} listens here"))
                    .at(&at.span, "and the metrics here")
                    .help("give one of them another port"),
            );
        }
    }

    /// Any other way to the port would open the listener, too: it answers whoever reaches the address.
    pub(super) fn reached_elsewhere(
        &mut self,
        listener: &Listener<'_>,
        own: &Set<&VlanName>,
        lines: &Set<&WanName>,
        vlans: &BTreeMap<VlanName, Vlan>,
        wans: &BTreeMap<WanName, Wan>,
    ) {
        let Listener { who: listener_name, listen, span } = *listener;
        let admits = |permit: &&Permit| {
            (permit.ports.protocols.contains(&TCP)
                || permit.ports.tcp.iter().any(|range| range.contains(&listen.port())))
                && permit.hosts.as_ref().is_none_or(|hosts| hosts.contains(listen.ip()))
        };
        let mut found = Vec::new();
        let inputs = self.file.vlans.iter().filter(|vlan| !own.contains(&vlan.name.value)).map(|vlan| {
            (format!("VLAN `{}`", vlan.name.value), &vlan.input, vlans.get(&vlan.name.value).map(|vlan| &vlan.input))
        });
        let lines = self.file.wans.iter().filter(|wan| !lines.contains(&wan.name.value)).map(|wan| {
            (format!("WAN `{}`", wan.name.value), &wan.input, wans.get(&wan.name.value).map(|wan| &wan.input))
        });
        for (who, written, checked) in inputs.chain(lines) {
            let (Some(written), Some(checked)) = (written, checked) else { continue };
            let Some(permit) = checked.iter().find(admits) else { continue };
            let item = written.value.iter().find(|at| match &at.value {
                ServiceRef::Named(name) | ServiceRef::Inline(name, _) => *name == permit.service,
            });
            found.push(
                Problem::error(format!("{who} would reach {listener_name}"))
                    .at(item.map_or(&written.span, |at| &at.span), format!("this lets tcp/{} in", listen.port()))
                    .at(span, format!("{listener_name} listens here"))
                    .help(format!("give {listener_name} a port that nothing else has, or leave this out of `input`")),
            );
        }
        self.problems.extend(found);
    }
}

/// Something of the router that listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listener<'a> {
    /// As a message names it.
    pub(super) who: &'a str,
    pub(super) listen: SocketAddr,
    pub(super) span: &'a Span,
}

/// Exactly the listener: its address, its port.
pub(super) fn opening(listen: SocketAddr, service: &str) -> Option<Permit> {
    let mut ports = PortSet::default();
    ports.tcp.push(listen.port()..=listen.port());
    let hosts = match listen.ip() {
        std::net::IpAddr::V4(own) => AddressSet::of(vec![own..=own], Vec::new()),
        std::net::IpAddr::V6(own) => AddressSet::of(Vec::new(), vec![own..=own]),
    };
    let service: ServiceName = service.parse().ok()?;
    Some(Permit { service, ports, hosts: Some(hosts), sources: None })
}

/// No service of the file can be called that: only those written in place hold a '/'.
const SERVICE: &str = "api/https";
const TCP: u8 = 6;
/// How many addresses a message lists.
const SHOWN: usize = 8;
