//! VLANs, ports and hosts: who owns which address, and which port carries what.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Check, Owner, RESERVED, Seen, Set, Subnet, Use};
use crate::file::{self, Addresses};
use crate::model::{self, Internet, Port, PortFind, PortPath, PortRole};
use crate::problem::Problem;
use crate::read::{At, shown};
use crate::units::{EgressName, HostName, IfName, ServiceName, VlanId, VlanName};

/// A VLAN's own numbers, before anything that refers to others.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    pub(super) written: &'a file::Vlan,
    pub(super) id: Option<VlanId>,
    pub(super) addresses: Vec<IpNet>,
}

impl<'a> Check<'a> {
    pub(super) fn segments(&mut self) -> Vec<Segment<'a>> {
        let mut ids: Seen<u16> = Seen::new();
        let mut segments = Vec::new();
        for vlan in &self.file.vlans {
            let name = &vlan.name;
            if RESERVED.contains(&name.value.as_str()) {
                self.push(
                    Problem::error(format!("a VLAN cannot be called `{}`", name.value))
                        .at(&name.span, "this word has a meaning of its own in cells and asserts"),
                );
            }
            let id = vlan.id.as_ref().and_then(|at| {
                let id: u16 = self.number(at, 1..=4094, "a VLAN id")?;
                if let Some(first) = ids.insert(id, at.span.clone()) {
                    self.push(
                        Problem::error(format!("VLAN id {id} is used twice"))
                            .at(&at.span, "used again here")
                            .at(&first, "first used here")
                            .help("give each VLAN an id of its own"),
                    );
                }
                VlanId::new(id)
            });
            let written = vlan.addresses.iter().flat_map(|list| &list.value);
            let addresses = written.filter_map(|at| self.own_address(at, Owner::Vlan(&name.value))).collect();
            if let Some(list) = vlan.addresses.as_ref().filter(|list| self.is_empty(list)) {
                self.push(
                    Problem::error(format!("VLAN `{}` has no address", name.value))
                        .at(&list.span, "the router needs one here")
                        .help("write, for example, `addresses = [\"10.0.10.1/24\"]`"),
                );
            }
            for (ports, make) in [
                (&vlan.access, Use::Access as fn(&'a VlanName) -> Use<'a>),
                (&vlan.native, Use::Native),
                (&vlan.trunk, Use::Tagged),
            ] {
                for port in ports {
                    self.uses.entry(port.value.clone()).or_default().push((make(&name.value), port.span.clone()));
                }
            }
            segments.push(Segment { written: vlan, id, addresses });
        }
        segments
    }

    /// One of the router's own addresses: usable by a host, and remembered for the search for overlaps.
    pub(super) fn own_address(&mut self, at: &'a At<IpNet>, owner: Owner<'a>) -> Option<IpNet> {
        let net = at.value;
        let wrong = match (net.addr(), net) {
            (address, _) if address.is_unspecified() => Some("no host has the address zero"),
            (address, _) if address.is_loopback() => Some("this address never leaves a machine"),
            (address, _) if address.is_multicast() => Some("this address is a multicast group"),
            (IpAddr::V6(address), _) if address.is_unicast_link_local() => {
                Some("every interface has a link-local address already; write a routable one")
            }
            (_, IpNet::V4(net)) if net.prefix_len() < 31 && net.addr() == net.network() => {
                Some("this is the address of the network itself")
            }
            (_, IpNet::V4(net)) if net.prefix_len() < 31 && net.addr() == net.broadcast() => {
                Some("this is the broadcast address of the network")
            }
            (_, IpNet::V6(net)) if net.prefix_len() < 127 && net.addr() == net.network() => {
                Some("this is the anycast address of every router of the network (RFC 4291 2.6.1)")
            }
            (_, _) => None,
        };
        if let Some(why) = wrong {
            self.push(
                Problem::error(format!("`{net}` is not an address a host can have"))
                    .at(&at.span, why)
                    .help("write the router's own address with its prefix length, like \"10.0.10.1/24\""),
            );
            return None;
        }
        self.subnets.push(Subnet { net, span: &at.span, owner });
        Some(net)
    }

    /// Subnets that hold one another. Prefixes nest or are apart, so in order of their first address a stack of the
    /// open ones finds every conflict. WANs may share a subnet: four lines of one ISP do.
    pub(super) fn overlaps(&mut self) {
        let mut subnets = self.subnets.clone();
        subnets.sort_by_key(|subnet| (subnet.net.network(), subnet.net.prefix_len(), subnet.span.start));
        let mut open: Vec<&Subnet<'_>> = Vec::new();
        let mut found = Vec::new();
        for subnet in &subnets {
            while open.last().is_some_and(|last| !last.net.contains(&subnet.net.network())) {
                open.pop();
            }
            let clash = |other: &&&Subnet<'_>| !matches!((other.owner, subnet.owner), (Owner::Wan(_), Owner::Wan(_)));
            if let Some(other) = open.iter().find(clash) {
                let (first, second) =
                    if other.span.start <= subnet.span.start { (*other, subnet) } else { (subnet, *other) };
                found.push(
                    Problem::error(format!("the subnets of {} and {} overlap", first.owner, second.owner))
                        .at(second.span, format!("{} is here", second.net.trunc()))
                        .at(first.span, format!("{} is here", first.net.trunc()))
                        .help("an address must lie in one subnet only, or its packets have two ways to go"),
                );
            }
            open.push(subnet);
        }
        self.problems.extend(found);
    }

    pub(super) fn vlans(
        &mut self,
        segments: &[Segment<'a>],
        services: &BTreeMap<ServiceName, model::Service>,
    ) -> BTreeMap<VlanName, model::Vlan> {
        let mut interfaces: Seen<IfName> = Seen::new();
        let mut vlans = BTreeMap::new();
        for segment in segments {
            let written = segment.written;
            let Some(id) = segment.id else { continue };
            let (interface, span) = match &written.interface {
                Some(at) => (Some(at.value.clone()), &at.span),
                None => (format!("vlan{id}").parse().ok(), &written.name.span),
            };
            let Some(interface) = interface else { continue };
            if let Some(first) = interfaces.insert(interface.clone(), span.clone()) {
                // Without an `interface` the name follows from the id, and two equal ids are reported already.
                if written.interface.is_some() || segments.iter().filter(|other| other.id == Some(id)).count() < 2 {
                    self.push(
                        Problem::error(format!("two VLANs use the interface name `{interface}`"))
                            .at(span, "used again here")
                            .at(&first, "first used here")
                            .help("leave `interface` out: it is vlan<ID> then"),
                    );
                }
            }
            let internet = self.internet(written);
            let input = self.permits(written.input.as_ref().map_or(&[][..], |list| &list.value), services);
            let line_of =
                |check: &Self, span: Option<&crate::problem::Span>| check.line(span.unwrap_or(&written.name.span));
            let vlan = model::Vlan {
                name: written.name.value.clone(),
                id,
                interface,
                addresses: segment.addresses.clone(),
                delegated: None,
                internet,
                input,
                comment: comment(written.comment.as_ref()),
                line: self.line(&written.name.span),
                internet_line: line_of(self, written.internet.as_ref().map(|at| &at.span)),
                input_line: line_of(self, written.input.as_ref().map(|at| &at.span)),
                tunnel: None,
            };
            vlans.insert(written.name.value.clone(), vlan);
        }
        vlans
    }

    fn internet(&mut self, vlan: &file::Vlan) -> Internet {
        let Some(list) = &vlan.internet else { return Internet::None };
        if let [only] = list.value.as_slice() {
            match only.value.as_str() {
                "none" => return Internet::None,
                "any" => return Internet::Any,
                _ => {}
            }
        }
        let mut sets = Set::new();
        for at in &list.value {
            if let "none" | "any" = at.value.as_str() {
                self.push(
                    Problem::error(format!("\"{}\" cannot stand beside egress sets", at.value))
                        .at(&at.span, "this says everything already")
                        .help(format!("write `internet = \"{}\"` or name the sets alone", at.value)),
                );
                continue;
            }
            match at.value.parse::<EgressName>() {
                Ok(name) => {
                    if self.egress_known(&name, &at.span) {
                        sets.insert(name);
                    }
                }
                Err(error) => self.push(
                    Problem::error(format!("`{}` is no name of an egress set", shown(&at.value)))
                        .at(&at.span, error.to_string()),
                ),
            }
        }
        if sets.is_empty() { Internet::None } else { Internet::Sets(sets) }
    }

    pub(super) fn all_hosts(&mut self, segments: &[Segment<'a>]) -> BTreeMap<HostName, model::Host> {
        let mut seen: BTreeMap<IpAddr, (&'a HostName, &'a At<Addresses>)> = BTreeMap::new();
        let mut hosts = BTreeMap::new();
        for host in &self.file.hosts {
            let name = &host.name.value;
            self.host_name(host);
            let mut home: Option<(&VlanName, &At<Addresses>)> = None;
            let mut addresses = Vec::new();
            for at in &host.addresses {
                let Some(list) = each(at.value) else {
                    self.push(
                        Problem::error("this range is too long for one host")
                            .at(&at.span, format!("a host has at most {MOST_ADDRESSES} addresses"))
                            .help("write a range or prefix where it is used, in `hosts`, instead"),
                    );
                    continue;
                };
                let own = segments.iter().flat_map(|segment| &segment.addresses);
                let own: Vec<IpAddr> = own.map(IpNet::addr).filter(|own| at.value.contains(*own)).collect();
                if let Some(own) = own.first() {
                    self.router_own(host, at, *own);
                }
                let first = list.first().copied();
                let last = list.last().copied();
                let vlan_of = |address: Option<IpAddr>| {
                    let address = address?;
                    let holds = |segment: &&Segment<'a>| segment.addresses.iter().any(|net| net.contains(&address));
                    segments.iter().find(holds).map(|segment| &segment.written.name.value)
                };
                match (vlan_of(first), vlan_of(last)) {
                    (Some(vlan), Some(end)) if vlan == end => match home {
                        Some((other, before)) if other != vlan => self.push(
                            Problem::error(format!("host `{name}` has addresses in two VLANs"))
                                .at(&at.span, format!("in `{vlan}`"))
                                .at(&before.span, format!("in `{other}`"))
                                .help("declare a host for each VLAN it stands in"),
                        ),
                        Some(_) => {}
                        None => home = Some((vlan, at)),
                    },
                    (_, _) => self.push(
                        Problem::error(format!("host `{name}` is outside every VLAN"))
                            .at(&at.span, "in the subnet of no VLAN")
                            .help("correct the address, or add the subnet to the VLAN's `addresses`"),
                    ),
                }
                for address in list {
                    if own.contains(&address) {
                        continue;
                    }
                    if let Some((other, before)) = seen.insert(address, (name, at)) {
                        let message = if other == name {
                            format!("host `{name}` has the address {address} twice")
                        } else {
                            format!("hosts `{other}` and `{name}` have the same address {address}")
                        };
                        self.push(
                            Problem::error(message)
                                .at(&at.span, "used again here")
                                .at(&before.span, "first used here")
                                .help("an address belongs to one host"),
                        );
                        break;
                    }
                    addresses.push(address);
                }
            }
            hosts.insert(
                name.clone(),
                model::Host {
                    name: name.clone(),
                    vlan: home.map(|(vlan, _)| vlan.clone()),
                    addresses,
                    comment: comment(host.comment.as_ref()),
                    line: self.line(&host.name.span),
                },
            );
        }
        hosts
    }

    fn host_name(&mut self, host: &file::Host) {
        let name = host.name.value.as_str();
        if RESERVED.contains(&name) {
            self.push(
                Problem::error(format!("a host cannot be called `{name}`"))
                    .at(&host.name.span, "this word has a meaning of its own in cells and asserts"),
            );
        }
        if let Some(vlan) = self.names.vlans.get(name).copied() {
            self.push(
                Problem::error(format!("`{name}` is the name of a VLAN and of a host"))
                    .at(&host.name.span, "the host")
                    .at(vlan, "the VLAN")
                    .help("an assert that names it could mean either: rename one"),
            );
        }
    }

    fn router_own(&mut self, host: &file::Host, at: &At<Addresses>, own: IpAddr) {
        let name = &host.name.value;
        let problem = if at.value.is_range() {
            Problem::warning(format!("the range of host `{name}` holds the router's own address {own}"))
                .at(&at.span, "the router's address is left out of it")
                .help("begin or end the range beside it, so that nobody hands the router's address out")
        } else {
            Problem::error(format!("host `{name}` has the router's own address"))
                .at(&at.span, format!("{own} is the router"))
                .help("`router` names the router; give the host an address of its own")
        };
        self.push(problem);
    }

    /// Every port of the file: those with a table, and those only mentioned by the name they already have.
    pub(super) fn ports(&mut self) -> BTreeMap<IfName, Port> {
        let uses = std::mem::take(&mut self.uses);
        let mut ports = BTreeMap::new();
        let mut finds: Seen<String> = Seen::new();
        for port in &self.file.ports {
            let name = &port.name.value;
            let used = uses.get(name).map_or(&[][..], Vec::as_slice);
            let find = port.find.as_ref().and_then(|find| self.find(find, &mut finds));
            let reserved = port.reserved.as_ref().filter(|at| at.value);
            if let (Some(reserved), Some((role, span))) = (reserved, used.first()) {
                self.push(
                    Problem::error(format!("port `{name}` is reserved and used"))
                        .at(span, format!("used as {role}"))
                        .at(&reserved.span, "kept down by this")
                        .help("remove `reserved`, or the use"),
                );
            }
            let role = match self.role(name, used) {
                Some(role) => role,
                None if reserved.is_some() => PortRole::Reserved,
                None => PortRole::Unmapped,
            };
            let fast_path = port.fast_path.as_ref().and_then(|at| self.word(at, "fast path of a port", &PORT_PATHS));
            let Some(find) = find else { continue };
            let line = self.line(&port.name.span);
            let port = Port {
                name: name.clone(),
                find,
                role,
                fast_path: fast_path.unwrap_or_default(),
                comment: comment(port.comment.as_ref()),
                line,
            };
            ports.insert(name.clone(), port);
        }
        for (name, used) in &uses {
            let Some((_, span)) = used.first() else { continue };
            if self.names.ports.contains_key(name.as_str()) {
                continue;
            }
            let Some(role) = self.role(name, used) else { continue };
            if !self.names.ports.is_empty() {
                let near = crate::suggest::nearest(name.as_str(), self.names.ports.keys().copied());
                let label = near.map_or_else(
                    || "taken as the interface that already has this name".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                );
                self.push(
                    Problem::warning(format!("`{name}` is none of the [port] tables"))
                        .at(span, label)
                        .help(format!("declare it: [port.{name}] with `find = {{ name = \"{name}\" }}`")),
                );
            }
            let line = self.line(span);
            let find = PortFind::Name(name.clone());
            let port =
                Port { name: name.clone(), find, role, fast_path: PortPath::default(), comment: String::new(), line };
            ports.insert(name.clone(), port);
        }
        self.interface_clashes(&uses, &ports);
        ports
    }

    fn role(&mut self, name: &IfName, used: &[(Use<'a>, crate::problem::Span)]) -> Option<PortRole> {
        let (first, first_span) = used.first()?;
        let mut tagged: BTreeMap<&VlanName, &crate::problem::Span> = BTreeMap::new();
        let mut native: Option<&VlanName> = None;
        for (index, (other, span)) in used.iter().enumerate() {
            let clash = match (first, other) {
                (_, _) if index == 0 => None,
                (Use::Wan(_), Use::Wan(_)) => Some("two lines cannot share a port".to_owned()),
                (Use::Wan(wan), _) | (_, Use::Wan(wan)) => Some(format!(
                    "a port cannot be the line of WAN `{wan}` and a member of a VLAN: that would bridge the Internet in"
                )),
                (Use::Access(_), _) | (_, Use::Access(_)) => Some(
                    "an access port belongs to one VLAN; list it under `trunk` and `native` to carry several"
                        .to_owned(),
                ),
                (Use::Native(_) | Use::Tagged(_), Use::Native(vlan))
                    if native.is_some_and(|native| native != *vlan) =>
                {
                    Some("a trunk has one native VLAN".to_owned())
                }
                (Use::Native(_) | Use::Tagged(_), Use::Native(_) | Use::Tagged(_)) => None,
            };
            if let Some(help) = clash {
                self.push(
                    Problem::error(format!("port `{name}` is used in two roles"))
                        .at(span, format!("as {other}"))
                        .at(first_span, format!("as {first}"))
                        .help(help),
                );
                continue;
            }
            match other {
                Use::Native(vlan) => native = Some(vlan),
                Use::Tagged(vlan) => {
                    let long = self.tagged_name(name, vlan);
                    if let Some(long) = long {
                        self.push(
                            Problem::error(format!("port `{name}` cannot carry VLAN `{vlan}` tagged"))
                                .at(span, format!("its interface `{long}` would have more than 15 characters"))
                                .help("give the port a shorter name"),
                        );
                    }
                    tagged.insert(vlan, span);
                }
                Use::Wan(_) | Use::Access(_) => {}
            }
        }
        if let Some((vlan, span)) = native.and_then(|native| tagged.get_key_value(native)) {
            self.push(
                Problem::error(format!("port `{name}` carries VLAN `{vlan}` tagged and untagged"))
                    .at(span, "listed under `trunk` here")
                    .help("keep `native` for untagged frames or `trunk` for tagged ones"),
            );
        }
        Some(match first {
            Use::Wan(wan) => PortRole::Wan((*wan).clone()),
            Use::Access(vlan) => PortRole::Access((*vlan).clone()),
            Use::Native(_) | Use::Tagged(_) => {
                PortRole::Trunk { native: native.cloned(), tagged: tagged.into_keys().cloned().collect() }
            }
        })
    }

    /// The name of a tagged sub-interface, if the kernel would refuse it.
    fn tagged_name(&self, port: &IfName, vlan: &VlanName) -> Option<String> {
        let written = self.file.vlans.iter().find(|other| other.name.value == *vlan)?;
        let name = format!("{port}.{}", written.id.as_ref()?.value);
        name.parse::<IfName>().is_err().then_some(name)
    }

    /// Names the router makes itself (bridges) against names ports have.
    fn interface_clashes(
        &mut self,
        uses: &BTreeMap<IfName, Vec<(Use<'a>, crate::problem::Span)>>,
        ports: &BTreeMap<IfName, Port>,
    ) {
        for vlan in &self.file.vlans {
            let (name, span) = match (&vlan.interface, &vlan.id) {
                (Some(at), _) => (at.value.to_string(), &at.span),
                (None, Some(id)) => (format!("vlan{}", id.value), &id.span),
                (None, None) => continue,
            };
            let Some((port, _)) = ports.iter().find(|(port, _)| port.as_str() == name) else { continue };
            let declared = self.names.ports.get(port.as_str()).copied();
            let mentioned = uses.get(port).and_then(|used| used.first()).map(|(_, span)| span);
            let Some(other) = declared.or(mentioned) else { continue };
            let problem = Problem::error(format!("`{name}` is a port and the interface of VLAN `{}`", vlan.name.value))
                .at(span, "the VLAN's bridge has this name")
                .at(other, "and so has this port")
                .help("rename the port, or give the VLAN another `interface`");
            self.push(problem);
        }
    }

    fn find(&mut self, find: &file::Find, seen: &mut Seen<String>) -> Option<PortFind> {
        let port = match &find.port {
            None => 0,
            Some(at) => self.number(at, 0..=255, "the number of a port")?,
        };
        let (key, found, span) = match (&find.name, &find.pci, &find.driver) {
            (Some(name), None, None) => {
                (format!("name {}", name.value), PortFind::Name(name.value.clone()), &name.span)
            }
            (None, Some(pci), None) => {
                if !is_pci(&pci.value) {
                    self.push(
                        Problem::error(format!("`{}` is no PCI address", shown(&pci.value)))
                            .at(&pci.span, "write it like \"0000:01:00\" or \"0000:01:00.2\"")
                            .help("`lspci -D` shows them"),
                    );
                    return None;
                }
                let address = pci.value.to_ascii_lowercase();
                (format!("pci {address} {port}"), PortFind::Pci { address, port }, &pci.span)
            }
            (None, None, Some(driver)) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                if driver.value.is_empty() || !driver.value.chars().all(plain) {
                    self.push(
                        Problem::error(format!("`{}` is no name of a driver", shown(&driver.value)))
                            .at(&driver.span, "write it like \"igb\"")
                            .help("`ethtool -i` shows it"),
                    );
                    return None;
                }
                let driver_name = driver.value.clone();
                (format!("driver {driver_name} {port}"), PortFind::Driver { driver: driver_name, port }, &driver.span)
            }
            (_, _, _) => {
                self.push(
                    Problem::error("a port is found in exactly one way")
                        .at(&find.span, "write one of `name`, `pci` or `driver`")
                        .help("for example `find = { pci = \"0000:01:00\", port = 0 }`"),
                );
                return None;
            }
        };
        if let Some(first) = seen.insert(key, span.clone()) {
            self.push(
                Problem::error("two ports are found in the same way")
                    .at(span, "and here")
                    .at(&first, "here")
                    .help("count `port` up from 0"),
            );
        }
        Some(found)
    }
}

pub(super) fn comment(at: Option<&At<String>>) -> String {
    at.map(|at| at.value.clone()).unwrap_or_default()
}

/// `dddd:bb:ss` or `dddd:bb:ss.f`.
fn is_pci(text: &str) -> bool {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = slot.split(':');
    let hex = |part: Option<&str>, length: usize| {
        part.is_some_and(|part| part.len() == length && part.chars().all(|c| c.is_ascii_hexdigit()))
    };
    hex(parts.next(), 4)
        && hex(parts.next(), 2)
        && hex(parts.next(), 2)
        && parts.next().is_none()
        && matches!(function.as_bytes(), [b'0'..=b'7'])
}

/// Every address of a range, if they are few.
fn each(addresses: Addresses) -> Option<Vec<IpAddr>> {
    match addresses {
        Addresses::V4(first, last) => {
            let (first, last) = (first.to_bits(), last.to_bits());
            (u128::from(last - first) < MOST_ADDRESSES)
                .then(|| (first..=last).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))).collect())
        }
        Addresses::V6(first, last) => {
            let (first, last) = (first.to_bits(), last.to_bits());
            (last - first < MOST_ADDRESSES)
                .then(|| (first..=last).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))).collect())
        }
    }
}

const MOST_ADDRESSES: u128 = 256;
const PORT_PATHS: [(&str, PortPath); 4] =
    [("auto", PortPath::Auto), ("xdp", PortPath::Xdp), ("tcx", PortPath::Tcx), ("off", PortPath::Off)];
