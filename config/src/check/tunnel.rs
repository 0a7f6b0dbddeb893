//! Tunnels: segments whose other end is another site. They are VLANs to everything that asks what may go where.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::segments::comment;
use super::{Check, Owner, RESERVED, Subnet};
use crate::file::{self, tunnel};
use crate::model::{
    AddressSet, CipherProfile, Failback, Internet, Ipsec, Permit, PortSet, Proof, Service, Tunnel, TunnelKind, Vlan,
    Wan, Wireguard,
};
use crate::problem::{Problem, Span};
use crate::read::{At, shown};
use crate::units::{Family, IfName, ServiceName, VlanId, VlanName, WanName};

impl<'a> Check<'a> {
    /// Adds the tunnels of the file to its VLANs.
    pub(super) fn tunnels(
        &mut self,
        vlans: &mut BTreeMap<VlanName, Vlan>,
        services: &BTreeMap<ServiceName, Service>,
        wans: &BTreeMap<WanName, Wan>,
    ) {
        let file = self.file;
        let mut sorted: Vec<_> = file.tunnels.iter().collect();
        sorted.sort_by_key(|tunnel| &tunnel.name.value);
        for (written, number) in sorted.into_iter().zip(0..) {
            let name = &written.name;
            self.tunnel_name(written);
            let interface = self.tunnel_interface(written, vlans, wans);
            let lines = self.tunnel_lines(written, wans);
            let networks = self.tunnel_networks(written);
            let kind = match &written.kind {
                tunnel::Kind::Ipsec(ipsec) => self.ipsec(written, ipsec).map(TunnelKind::Ipsec),
                tunnel::Kind::Wireguard(wireguard) => self.wireguard(written, wireguard).map(TunnelKind::Wireguard),
            };
            let input = self.permits(written.input.as_ref().map_or(&[][..], |list| &list.value), services);
            for (permit, at) in input.iter().zip(written.input.iter().flat_map(|list| &list.value)) {
                if permit.service.as_str() == "dhcp" {
                    self.push(
                        Problem::error(format!("tunnel `{}` cannot hand out addresses", name.value))
                            .at(&at.span, "DHCP is for VLANs")
                            .help("leave \"dhcp\" out: the other site has a router of its own"),
                    );
                }
            }
            let (Some(kind), Some(interface), Some(id)) = (kind, interface, VlanId::of_tunnel(number)) else {
                continue;
            };
            let failback = match written.failback.as_ref().map(|at| at.value) {
                Some(file::Failback::Stay) => Failback::Stay,
                Some(file::Failback::Drain(span)) => Failback::Drain(span),
                Some(file::Failback::Force) | None => Failback::Force,
            };
            let listen = written.listen.as_ref().is_some_and(|at| at.value);
            let tunnel = Tunnel { kind, networks, wans: lines, failback, listen };
            self.peer_reachable(written, &tunnel, wans);
            let line = self.line(&name.span);
            let vlan = Vlan {
                name: name.value.clone(),
                id,
                interface,
                addresses: Vec::new(),
                delegated: None,
                internet: Internet::None,
                input,
                comment: comment(written.comment.as_ref()),
                line,
                internet_line: line,
                input_line: written.input.as_ref().map_or(line, |at| self.line(&at.span)),
                tunnel: Some(tunnel),
            };
            vlans.entry(name.value.clone()).or_insert(vlan);
        }
        self.one_port_each(vlans);
        self.one_way_to_each(vlans);
    }

    fn tunnel_name(&mut self, written: &'a tunnel::Tunnel) {
        let name = &written.name;
        if RESERVED.contains(&name.value.as_str()) {
            self.push(
                Problem::error(format!("a tunnel cannot be called `{}`", name.value))
                    .at(&name.span, "this word has a meaning of its own in cells and asserts"),
            );
        }
        if name.value.as_str().len() > LONGEST {
            self.push(
                Problem::error(format!("the name of tunnel `{}` is too long", name.value))
                    .at(&name.span, format!("{LONGEST} characters are possible")),
            );
        }
        let vlans = self.file.vlans.iter().map(|vlan| &vlan.name);
        let before = self.file.tunnels.iter().map(|tunnel| &tunnel.name).take_while(|other| other.span != name.span);
        let other = vlans.chain(before).find(|other| other.value == name.value);
        if let Some(other) = other {
            self.push(
                Problem::error(format!("`{}` is the name of two segments", name.value))
                    .at(&name.span, "this tunnel")
                    .at(&other.span, "and this")
                    .help("cells name VLANs and tunnels alike: rename one"),
            );
        }
    }

    fn tunnel_interface(
        &mut self,
        written: &'a tunnel::Tunnel,
        vlans: &BTreeMap<VlanName, Vlan>,
        wans: &BTreeMap<WanName, Wan>,
    ) -> Option<IfName> {
        let name = &written.name;
        let (interface, span) = match &written.interface {
            Some(at) => (at.value.clone(), &at.span),
            None => match name.value.as_str().parse::<IfName>() {
                Ok(interface) => (interface, &name.span),
                Err(error) => {
                    self.push(
                        Problem::error(format!("tunnel `{}` needs a name for its interface", name.value))
                            .at(&name.span, error.to_string())
                            .help("add, for example, `interface = \"vpn1\"`"),
                    );
                    return None;
                }
            },
        };
        let taken = vlans.values().map(|vlan| (&vlan.interface, format!("{} `{}`", vlan.kind(), vlan.name)));
        let taken = taken.chain(wans.values().map(|wan| (&wan.interface, format!("WAN `{}`", wan.name))));
        let ports = self.file.ports.iter().map(|port| (&port.name.value, "a port".to_owned()));
        if let Some((_, whose)) = taken.chain(ports).find(|(other, _)| **other == interface) {
            self.push(
                Problem::error(format!("the interface name `{interface}` is taken"))
                    .at(span, format!("{whose} has it"))
                    .help("write another: `interface = \"vpn1\"`"),
            );
            return None;
        }
        Some(interface)
    }

    fn tunnel_lines(&mut self, written: &'a tunnel::Tunnel, wans: &BTreeMap<WanName, Wan>) -> Vec<WanName> {
        let Some(list) = &written.wans else { return Vec::new() };
        if self.is_empty(list) {
            self.push(
                Problem::error(format!("tunnel `{}` has no line", written.name.value))
                    .at(&list.span, "empty")
                    .help("name the lines that may carry it, the best first"),
            );
        }
        let mut lines: Vec<WanName> = Vec::new();
        for at in &list.value {
            if !self.wan_known(at.value.as_str(), &at.span) {
                continue;
            }
            if lines.contains(&at.value) {
                self.push(Problem::error(format!("WAN `{}` is listed twice", at.value)).at(&at.span, "again here"));
                continue;
            }
            // Packets of a tunnel tell by their source address which line they belong to.
            let own = |name: &WanName| {
                let addresses = wans.get(name).into_iter().flat_map(|wan| &wan.addressing.addresses);
                addresses.map(IpNet::addr).collect::<BTreeSet<_>>()
            };
            let mine = own(&at.value);
            if let Some(other) = lines.iter().find(|other| !mine.is_disjoint(&own(other))) {
                self.push(
                    Problem::error(format!("WANs `{other}` and `{}` have the same address", at.value))
                        .at(&at.span, "the source address of a tunnel's packets tells their line")
                        .help("keep one of the two in `wans`"),
                );
                continue;
            }
            lines.push(at.value.clone());
        }
        lines
    }

    fn tunnel_networks(&mut self, written: &'a tunnel::Tunnel) -> Vec<IpNet> {
        let Some(list) = &written.remote_networks else { return Vec::new() };
        if self.is_empty(list) {
            self.push(
                Problem::error(format!("tunnel `{}` leads nowhere", written.name.value))
                    .at(&list.span, "empty")
                    .help("name the networks at its other end: `remote_networks = [\"10.9.0.0/24\"]`"),
            );
        }
        let mut networks = Vec::new();
        for at in &list.value {
            let net = at.value.trunc();
            if net.prefix_len() == 0 {
                self.push(
                    Problem::error("a tunnel is no way to the Internet")
                        .at(&at.span, "this is every address there is")
                        .help("name the networks of the other site"),
                );
                continue;
            }
            if net != at.value {
                self.push(
                    Problem::error(format!("`{}` is no network", at.value))
                        .at(&at.span, format!("did you mean \"{net}\"?"))
                        .help("write the first address of the network and its prefix length"),
                );
                continue;
            }
            self.subnets.push(Subnet { net, span: &at.span, owner: Owner::Tunnel(&written.name.value) });
            networks.push(net);
        }
        networks
    }

    fn ipsec(&mut self, written: &'a tunnel::Tunnel, ipsec: &'a tunnel::Ipsec) -> Option<Ipsec> {
        let name = &written.name.value;
        if ipsec.remote.is_none() && !written.listen.as_ref().is_some_and(|at| at.value) {
            self.push(
                Problem::error(format!("tunnel `{name}` knows nobody to call"))
                    .at(&written.span, "`remote` is missing here")
                    .help("write `remote = \"198.51.100.50\"`, or `listen = true` where the other end calls"),
            );
        }
        let words = [("aes-gcm", CipherProfile::AesGcm), ("qat", CipherProfile::Qat)];
        let profile = match &ipsec.profile {
            Some(at) => self.word(at, "cipher profile", &words)?,
            None => CipherProfile::AesGcm,
        };
        let mut local_networks = Vec::new();
        for at in ipsec.local_networks.iter().flat_map(|list| &list.value) {
            if at.value.trunc() == at.value {
                local_networks.push(at.value);
                continue;
            }
            self.push(
                Problem::error(format!("`{}` is no network", at.value))
                    .at(&at.span, format!("did you mean \"{}\"?", at.value.trunc())),
            );
        }
        if let Some(list) = ipsec.local_networks.as_ref().filter(|list| self.is_empty(list)) {
            self.push(
                Problem::error(format!("nobody of this site speaks through tunnel `{name}`"))
                    .at(&list.span, "empty")
                    .help("name the networks of this site that do: `local_networks = [\"10.0.10.0/24\"]`"),
            );
        }
        let (local_id, remote_id) = (self.identity(ipsec.local_id.as_ref()), self.identity(ipsec.remote_id.as_ref()));
        let proof = self.proof(written, ipsec)?;
        Some(Ipsec {
            remote: ipsec.remote.as_ref().map(|at| at.value),
            local_id: local_id?,
            remote_id: remote_id?,
            proof,
            profile,
            local_networks,
        })
    }

    fn identity(&mut self, at: Option<&At<String>>) -> Option<String> {
        let at = at?;
        let good = |c: char| !c.is_control();
        if at.value.is_empty() || at.value.len() > 255 || !at.value.chars().all(good) || at.value.contains('%') {
            self.push(
                Problem::error(format!("`{}` names nobody", shown(&at.value)))
                    .at(&at.span, "a name, an address or the subject of a certificate is wanted")
                    .help("write it as the other end has it: \"branch.example.org\""),
            );
            return None;
        }
        Some(at.value.clone())
    }

    fn proof(&mut self, written: &'a tunnel::Tunnel, ipsec: &'a tunnel::Ipsec) -> Option<Proof> {
        let name = &written.name.value;
        let tunnel::Ipsec { psk, certificate, key, ca, .. } = ipsec;
        match (psk, certificate, key, ca) {
            (Some(psk), None, None, None) => self.material(psk, &written.span).map(Proof::Psk),
            (None, Some(certificate), Some(key), Some(ca)) => {
                let [certificate, key, ca] = [certificate, key, ca].map(|at| self.material(at, &written.span));
                Some(Proof::Certificate { certificate: certificate?, key: key?, ca: ca? })
            }
            (Some(psk), ..) => {
                self.push(
                    Problem::error(format!("tunnel `{name}` has two ways to prove who it is"))
                        .at(&psk.span, "a pre-shared key, and a certificate beside it")
                        .help("keep `psk`, or `certificate`, `key` and `ca`"),
                );
                None
            }
            (None, ..) => {
                self.push(
                    Problem::error(format!("tunnel `{name}` cannot prove who it is"))
                        .at(&written.span, "`psk` is missing here, or `certificate`, `key` and `ca`")
                        .help("write, for example, `psk = \"/etc/quadway/branch.psk\"`, a file that holds the key"),
                );
                None
            }
        }
    }

    fn wireguard(&mut self, written: &'a tunnel::Tunnel, wireguard: &'a tunnel::Wireguard) -> Option<Wireguard> {
        let name = &written.name.value;
        let listen = written.listen.as_ref().is_some_and(|at| at.value);
        let endpoint = wireguard.endpoint.as_ref().map(|at| {
            let endpoint = at.value.parse::<SocketAddr>().ok().filter(|endpoint| endpoint.port() != 0);
            if endpoint.is_none() {
                self.push(
                    Problem::error(format!("`{}` is no place of a peer", shown(&at.value)))
                        .at(&at.span, "write it like \"198.51.100.50:51820\""),
                );
            }
            endpoint
        });
        if endpoint.is_none() && !listen {
            self.push(
                Problem::error(format!("tunnel `{name}` knows nobody to call"))
                    .at(&written.span, "`endpoint` is missing here")
                    .help("write `endpoint = \"198.51.100.50:51820\"`, or `listen = true` where the other end calls"),
            );
        }
        if let (Some(at), None) = (written.listen.as_ref().filter(|at| at.value), &wireguard.port) {
            self.push(
                Problem::error(format!("tunnel `{name}` listens at no port"))
                    .at(&at.span, "whoever calls must know where")
                    .help("add `port = 51820`"),
            );
        }
        let port = wireguard.port.as_ref().map(|at| self.number(at, 1..=65_535, "a port"));
        let private_key = wireguard.private_key.as_ref().and_then(|at| self.material(at, &written.span));
        let preshared_key = wireguard.preshared_key.as_ref().map(|at| self.material(at, &written.span));
        let public_key = wireguard.public_key.as_ref().and_then(|at| {
            let letters = at.value.strip_suffix('=').unwrap_or_default();
            let known = |c: char| c.is_ascii_alphanumeric() || "+/".contains(c);
            // 32 bytes: the last letter has two bits that say nothing, and are zero.
            let good =
                letters.len() == 43 && letters.chars().all(known) && letters.ends_with(|c| LAST_LETTERS.contains(c));
            if !good {
                self.push(
                    Problem::error(format!("`{}` is no public key", shown(&at.value)))
                        .at(&at.span, "43 letters and a `=` are wanted, as `wg pubkey` prints them"),
                );
            }
            good.then(|| at.value.clone())
        });
        let keepalive = match &wireguard.keepalive {
            Some(at) if !KEEPALIVE.contains(&at.value) => {
                self.push(
                    Problem::error("a tunnel cannot be kept alive at this pace")
                        .at(&at.span, "1s to 18h is possible")
                        .help("25s suits most routers between"),
                );
                None
            }
            Some(at) => Some(at.value),
            None => None,
        };
        Some(Wireguard {
            endpoint: endpoint.map_or(Some(None), |endpoint| endpoint.map(Some))?,
            port: port.map_or(Some(None), |port| port.map(Some))?,
            private_key: private_key?,
            public_key: public_key?,
            preshared_key: preshared_key.map_or(Some(None), |key| key.map(Some))?,
            keepalive,
        })
    }

    /// The other end is on the Internet, and a line of the tunnel speaks its family.
    fn peer_reachable(&mut self, written: &'a tunnel::Tunnel, tunnel: &Tunnel, wans: &BTreeMap<WanName, Wan>) {
        let Some(peer) = tunnel.peer() else { return };
        let span = match &written.kind {
            tunnel::Kind::Ipsec(ipsec) => ipsec.remote.as_ref().map(|at| &at.span),
            tunnel::Kind::Wireguard(wireguard) => wireguard.endpoint.as_ref().map(|at| &at.span),
        };
        let Some(span) = span else { return };
        let inside = self.subnets.iter().find(|subnet| match subnet.owner {
            Owner::Vlan(_) | Owner::Tunnel(_) => subnet.net.contains(&peer),
            Owner::Wan(_) => subnet.net.addr() == peer,
        });
        if let Some(subnet) = inside.cloned() {
            self.push(
                Problem::error(format!("the other end of tunnel `{}` is not outside", written.name.value))
                    .at(span, format!("{peer} is at home in {}", subnet.owner))
                    .at(subnet.span, "here")
                    .help("write the address that the other site has on the Internet"),
            );
        }
        let family = Family::of(peer);
        for at in written.wans.iter().flat_map(|list| &list.value) {
            if wans.get(&at.value).is_some_and(|wan| !wan.carries(family)) {
                self.push(
                    Problem::error(format!("WAN `{}` cannot carry tunnel `{}`", at.value, written.name.value))
                        .at(&at.span, format!("it has no {family}"))
                        .at(span, "the other end has no other address")
                        .help("leave the WAN out of `wans`"),
                );
            }
        }
    }

    /// Packets to one address take one way, whatever tunnel they belong to.
    fn one_way_to_each(&mut self, vlans: &BTreeMap<VlanName, Vlan>) {
        let mut seen: BTreeMap<IpAddr, (&'a tunnel::Tunnel, Vec<WanName>, Failback)> = BTreeMap::new();
        for written in &self.file.tunnels {
            let Some(tunnel) = vlans.get(&written.name.value).and_then(|vlan| vlan.tunnel.as_ref()) else { continue };
            let Some(peer) = tunnel.peer() else { continue };
            let (wans, failback) = (tunnel.wans.clone(), tunnel.failback);
            let Some((other, lines, back)) = seen.get(&peer) else {
                seen.insert(peer, (written, wans, failback));
                continue;
            };
            if *lines == wans && *back == failback {
                continue;
            }
            let problem = Problem::error(format!("two tunnels to {peer} go by different lines"))
                .at(&written.name.span, "this one")
                .at(&other.name.span, "and this one")
                .help("give both the same `wans` and `failback`");
            self.problems.push(problem);
        }
    }

    /// Two interfaces of the kind cannot listen at one port.
    fn one_port_each(&mut self, vlans: &BTreeMap<VlanName, Vlan>) {
        let mut seen: BTreeMap<u16, (&VlanName, Span)> = BTreeMap::new();
        for written in &self.file.tunnels {
            let tunnel::Kind::Wireguard(wireguard) = &written.kind else { continue };
            let (Some(at), true) = (&wireguard.port, vlans.contains_key(&written.name.value)) else { continue };
            let Ok(port) = u16::try_from(at.value) else { continue };
            if let Some((other, span)) = seen.insert(port, (&written.name.value, at.span.clone())) {
                self.problems.push(
                    Problem::error(format!("tunnels `{other}` and `{}` have one port", written.name.value))
                        .at(&at.span, "used again here")
                        .at(&span, "first used here")
                        .help("give each a port of its own"),
                );
            }
        }
    }
}

/// Lets the other ends in that may begin, by the lines of their tunnels.
pub(super) fn let_in(vlans: &BTreeMap<VlanName, Vlan>, wans: &mut BTreeMap<WanName, Wan>) {
    for vlan in vlans.values() {
        let Some(tunnel) = vlan.tunnel.as_ref().filter(|tunnel| tunnel.listen) else { continue };
        let udp = match &tunnel.kind {
            TunnelKind::Ipsec(_) => vec![500..=500, 4500..=4500],
            TunnelKind::Wireguard(wireguard) => wireguard.port.map(|port| port..=port).into_iter().collect(),
        };
        let ports = PortSet { udp, ..PortSet::default() };
        let Ok(service) = format!("tunnel/{}", vlan.name).parse::<ServiceName>() else { continue };
        let sources = tunnel.peer().map(|peer: IpAddr| {
            let mut sources = AddressSet::default();
            sources.add(IpNet::from(peer));
            sources
        });
        for wan in wans.values_mut().filter(|wan| tunnel.wans.contains(&wan.name)) {
            let permit =
                Permit { service: service.clone(), ports: ports.clone(), hosts: None, sources: sources.clone() };
            wan.input.push(permit);
        }
    }
}

/// With `tunnel/` before it, it is the name of a service.
const LONGEST: usize = 25;
/// Those whose two lowest bits are zero.
const LAST_LETTERS: &str = "AEIMQUYcgkosw048";
/// It counts seconds in 16 bits.
const KEEPALIVE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(65_535);
