//! `/etc/config/network`: which network is a line and which a VLAN, over which ports, with which addresses. Both
//! generations of the file are read: `ifname` with `type bridge` and swconfig's switches, and `device` sections with
//! `bridge-vlan`. Also the static leases of `/etc/config/dhcp`, which name hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use config::units::IfName;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::firewall::Zones;
use super::{Draft, Files, Kind, Notes, Sec, Vlan, Wan, leave_others};

/// Devices as far as they are made of others.
#[derive(Default)]
struct Devices<'a> {
    bridges: BTreeMap<&'a str, Vec<&'a str>>,
    /// Named 802.1Q devices: what they stand on, and their tag.
    tagged: BTreeMap<&'a str, (&'a str, u16)>,
    /// Ports of a VLAN of a bridge, with whether frames are tagged there.
    bridge_vlans: BTreeMap<(&'a str, u16), Vec<(&'a str, bool)>>,
    mtu: BTreeMap<&'a str, u32>,
}

/// What a network stands on: ports, with the tag it has there.
type Ports<'a> = Vec<(&'a str, Option<u16>)>;

pub(super) fn read(files: &Files, zones: &Zones<'_>, draft: &mut Draft) {
    let file = files.network.as_ref();
    let devices = devices(files, draft);
    let mwan3: BTreeSet<&str> = Sec::of(files.mwan3.as_ref(), "interface").iter().map(Sec::name).collect();
    let ula = ula(files, draft);
    let interfaces = Sec::of(file, "interface");
    let device_of: BTreeMap<&str, &str> = interfaces
        .iter()
        .filter_map(|sec| Some((sec.name(), sec.list("device").first().or(sec.list("ifname").first())?.0)))
        .collect();

    let mut segments = Vec::new();
    for sec in &interfaces {
        let name = sec.name();
        let device = resolved(&device_of, name);
        let (proto, words) = (sec.text("proto").unwrap_or("none"), sec.list("ifname"));
        if name == "loopback" || device == Some("lo") {
            continue;
        }
        if sec.flag("disabled", false) {
            draft.notes.tell(Kind::Left, sec.at("disabled"), "the network is switched off");
            continue;
        }
        let ports: Ports<'_> = if sec.text("type") == Some("bridge") {
            words.iter().map(|(word, _)| split_tag(word)).collect()
        } else {
            device.map(|device| devices.ports(device, 0)).unwrap_or_default()
        };
        let tracked = mwan3.contains(name);
        let outside = tracked || zones.masqueraded.contains(name);
        match proto {
            proto if TUNNELS.contains(&proto) => {
                draft.notes.tell(Kind::Left, sec.at("proto"), "a site file has no tunnels; make it beside routerd");
            }
            "static" if !outside && (!sec.has("gateway") || zones.inside.contains(name)) => {
                segments.push((sec, ports));
            }
            "static" => line(sec, device, &ports, &devices, draft),
            proto if DYNAMIC.contains(&proto) && (outside || !zones.inside.contains(name)) => {
                line(sec, device, &ports, &devices, draft);
            }
            proto if DYNAMIC.contains(&proto) => {
                let why =
                    "the router's own address in a VLAN is written into the site file: make it static and import again";
                draft.notes.tell(Kind::Left, sec.at("proto"), why);
            }
            "none" => {
                draft.notes.tell(Kind::Left, sec.here(), "a VLAN needs an address of the router, and it has none");
            }
            _ => draft.notes.tell(Kind::Left, sec.at("proto"), "routerd cannot address an interface this way"),
        }
    }
    // Tags that are given come before numbers that are chosen.
    let mut taken = BTreeSet::new();
    let mut given = Vec::new();
    for (sec, ports) in &segments {
        let of_bridge = resolved(&device_of, sec.name()).and_then(|device| devices.bridge_tag(device));
        given.push(of_bridge.or(ports.iter().find_map(|(_, tag)| *tag)).filter(|id| taken.insert(*id)));
    }
    for ((sec, ports), id) in segments.into_iter().zip(given) {
        segment(sec, &ports, id, &mut taken, ula.as_ref(), draft);
    }
    drop_line_ports(draft);
    for (at, wan) in draft.wans.iter_mut().enumerate() {
        settle(at, wan, &mut draft.notes);
    }
    for sec in &interfaces {
        let known = draft.wan_of.contains_key(sec.name()) || draft.vlan_of.contains_key(sec.name());
        if known {
            sec.leave(&mut draft.notes, INTERFACE);
        }
    }
    leave_others(file, &["interface", "device", "bridge-vlan", "bridge_vlan", "globals"], OTHERS, &mut draft.notes);
    if file.is_none() {
        let place = super::Place { file: "network".to_owned(), line: 0, what: "not given".to_owned() };
        draft.notes.tell(Kind::Missing, place, "lines and VLANs stand in it; name it with --network FILE");
    }
}

fn devices<'a>(files: &'a Files, draft: &mut Draft) -> Devices<'a> {
    let file = files.network.as_ref();
    let mut all = Devices::default();
    let interfaces = Sec::of(file, "interface");
    let used: BTreeSet<&str> = interfaces.iter().flat_map(|sec| sec.list("device")).map(|(device, _)| device).collect();
    for sec in Sec::of(file, "device") {
        let Some(name) = sec.text("name") else {
            draft.notes.tell(Kind::Left, sec.here(), "it has no name");
            continue;
        };
        let tag = sec.number("vid").and_then(|vid| u16::try_from(vid).ok());
        match (sec.text("type"), sec.text("ifname"), tag) {
            (Some("bridge"), ..) => {
                let mut ports = sec.list("ports");
                ports.extend(sec.list("ifname"));
                all.bridges.insert(name, ports.into_iter().map(|(port, _)| port).collect());
                // Bridges here are always ready for several VLANs.
                sec.text("vlan_filtering");
                sec.text("bridge_empty");
            }
            (Some("8021q"), Some(base), Some(tag)) => {
                all.tagged.insert(name, (base, tag));
            }
            (Some(_), ..) => {
                draft.notes.tell(
                    Kind::Left,
                    sec.at("type"),
                    "routerd makes no devices of this type; make it beside routerd",
                );
            }
            (None, ..) => {}
        }
        if used.contains(name)
            && let Some(mtu) = sec.number("mtu")
        {
            all.mtu.insert(name, mtu);
        }
        sec.leave(&mut draft.notes, DEVICE);
    }
    for sec in ["bridge-vlan", "bridge_vlan"].into_iter().flat_map(|kind| Sec::of(file, kind)) {
        let tag = sec.number("vlan").and_then(|vlan| u16::try_from(vlan).ok());
        let (Some(device), Some(tag)) = (sec.text("device"), tag) else {
            draft.notes.tell(Kind::Left, sec.here(), "it names no `device` or no `vlan` by number");
            continue;
        };
        let port = |(word, _): (&'a str, u32)| {
            let (port, how) = word.split_once(':').unwrap_or((word, "u*"));
            (port, how.contains('t'))
        };
        all.bridge_vlans.insert((device, tag), sec.list("ports").into_iter().map(port).collect());
        sec.leave(&mut draft.notes, &[("local", "the router takes part in every VLAN that has an address")]);
    }
    all
}

impl<'a> Devices<'a> {
    /// The ports below a device.
    fn ports(&self, device: &'a str, depth: u8) -> Ports<'a> {
        if depth > 4 {
            return Vec::new();
        }
        let of_bridge = |bridge: &'a str, tag: u16| match self.bridge_vlans.get(&(bridge, tag)) {
            // The VLAN has its number even where its frames carry none.
            Some(ports) => ports.iter().map(|(port, tagged)| (*port, tagged.then_some(tag))).collect(),
            None => self.bridges.get(bridge).into_iter().flatten().map(|port| (*port, Some(tag))).collect(),
        };
        if let Some((base, tag)) = self.tagged.get(device) {
            if self.bridges.contains_key(base) {
                return of_bridge(base, *tag);
            }
            return vec![(base, Some(*tag))];
        }
        if let Some(ports) = self.bridges.get(device) {
            return ports.iter().flat_map(|port| self.ports(port, depth + 1)).collect();
        }
        let (base, tag) = split_tag(device);
        match tag {
            Some(tag) if self.bridges.contains_key(base) => of_bridge(base, tag),
            Some(_) | None => vec![(base, tag)],
        }
    }

    /// The number of a VLAN of a bridge, whatever its ports carry.
    fn bridge_tag(&self, device: &str) -> Option<u16> {
        let (base, tag) = self.tagged.get(device).map_or_else(|| split_tag(device), |(base, tag)| (*base, Some(*tag)));
        tag.filter(|_| self.bridges.contains_key(base))
    }
}

/// `eth0.10` is VLAN 10 on `eth0`.
fn split_tag(device: &str) -> (&str, Option<u16>) {
    let parts = device.rsplit_once('.');
    let tag = parts.and_then(|(base, tag)| Some((base, tag.parse().ok().filter(|tag| (1..=4094).contains(tag))?)));
    tag.map_or((device, None), |(base, tag)| (base, Some(tag)))
}

/// The device of a network; `@wan` is that of another.
fn resolved<'a>(device_of: &BTreeMap<&'a str, &'a str>, name: &str) -> Option<&'a str> {
    let mut device = *device_of.get(name)?;
    for _ in 0..4 {
        match device.strip_prefix('@') {
            Some(other) => device = device_of.get(other)?,
            None => return Some(device),
        }
    }
    None
}

fn line<'a>(sec: &Sec<'a>, device: Option<&'a str>, ports: &Ports<'a>, devices: &Devices<'a>, draft: &mut Draft) {
    let name = sec.name();
    let proto = sec.text("proto").unwrap_or("none");
    let wireless = MOBILE.contains(&proto);
    let device = device.filter(|device| !device.starts_with('/'));
    let interface = match ports.as_slice() {
        _ if wireless => device.unwrap_or("wwan0").to_owned(),
        [] => {
            let why = "no device is named for it, so it has no port; name one and import again";
            return draft.notes.tell(Kind::Left, sec.here(), why);
        }
        [(port, None)] => (*port).to_owned(),
        [(port, Some(tag)), ..] => {
            let named = format!("{port}.{tag}");
            let why = format!(
                "routerd makes no tagged interface for a line: `{named}` must be there, or the line gets a port of its own"
            );
            draft.notes.tell(Kind::Missing, sec.here(), why);
            named
        }
        [(port, None), ..] => {
            draft.notes.tell(Kind::Changed, sec.here(), "a line has one port here; the first of the bridge is taken");
            (*port).to_owned()
        }
    };
    if interface.parse::<IfName>().is_err() {
        return draft.notes.tell(Kind::Left, sec.here(), "its device has a name that no interface can have");
    }

    let mut new = Wan { name: site_name(name), interface, metric: sec.number("metric").unwrap_or(0), ..Wan::default() };
    let device_mtu = device.and_then(|device| devices.mtu.get(device).copied());
    new.mtu = sec.number("mtu").or(device_mtu).filter(|mtu| (1280..=9216).contains(mtu));
    if proto == "static" {
        fixed_addresses(sec, &mut new, draft);
    } else {
        let why = match proto {
            "dhcp" => {
                new.dhcp4 = Some(sec.at("proto"));
                None
            }
            "dhcpv6" => {
                new.dhcp6 = Some(sec.at("proto"));
                new.prefix = prefix(sec, draft);
                None
            }
            "pppoe" | "pppoa" => Some(
                "routerd does not dial: let the modem or pppd do it, and write the line's interface, address and gateway",
            ),
            _ => Some(
                "routerd does not drive modems: let ModemManager do it, and write the line's interface, address and gateway",
            ),
        };
        if let Some(why) = why {
            new.placeholder4 = true;
            draft.notes.tell(Kind::Missing, sec.at("proto"), why);
        }
    }

    let same = draft.wans.iter().position(|wan| wan.interface == new.interface);
    let at = match same {
        None => {
            draft.wans.push(new);
            draft.wans.len() - 1
        }
        Some(at) => {
            let Some(wan) = draft.wans.get_mut(at) else { return };
            let four = |wan: &Wan| wan.placeholder4 || wan.gateway.is_some() || wan.dhcp4.is_some();
            let six = |wan: &Wan| wan.placeholder6 || wan.gateway6.is_some() || wan.dhcp6.is_some();
            if four(wan) && four(&new) || six(wan) && six(&new) {
                let why = format!(
                    "two lines cannot share a port here, and `{}` has it: give the line a port of its own",
                    wan.name
                );
                return draft.notes.tell(Kind::Left, sec.here(), why);
            }
            // The IPv6 half of a line that has two sections.
            wan.addresses.append(&mut new.addresses);
            wan.gateway = wan.gateway.take().or(new.gateway);
            wan.gateway6 = wan.gateway6.take().or(new.gateway6);
            wan.placeholder4 |= new.placeholder4;
            wan.placeholder6 |= new.placeholder6;
            wan.dhcp4 = wan.dhcp4.take().or(new.dhcp4);
            wan.dhcp6 = wan.dhcp6.take().or(new.dhcp6);
            wan.prefix = wan.prefix.or(new.prefix);
            at
        }
    };
    draft.wan_of.insert(name.to_owned(), at);
}

/// The prefix that a client asks for; OpenWrt asks for any unless it is told not to.
fn prefix(sec: &Sec<'_>, draft: &mut Draft) -> Option<u8> {
    match sec.text("reqprefix") {
        Some("no") => None,
        Some(length) if length.parse().is_ok_and(|length: u8| (32..=64).contains(&length)) => length.parse().ok(),
        Some("auto") | None => {
            draft.notes.tell(
                Kind::Changed,
                sec.at("reqprefix"),
                "a /56 is asked for; the provider may give another length",
            );
            Some(56)
        }
        Some(_) => {
            draft.notes.tell(
                Kind::Left,
                sec.at("reqprefix"),
                "no length from 32 to 64 can be read from this: no prefix is asked for",
            );
            None
        }
    }
}

/// What its provider gives to a line and what is written for it, once all its sections are known.
fn settle(at: usize, wan: &mut Wan, notes: &mut Notes) {
    let mixed = wan.placeholder4 || wan.placeholder6 || !wan.addresses.is_empty();
    if mixed {
        // One client asks for both families, or nobody asks.
        for (place, four) in [(wan.dhcp4.take(), true), (wan.dhcp6.take(), false)] {
            let Some(place) = place else { continue };
            notes.tell(
                Kind::Missing,
                place,
                "the line has addresses of its own too, and routerd leases all of a line or nothing: write the address and \
                 gateway that the provider gives",
            );
            wan.placeholder4 |= four;
            wan.placeholder6 |= !four;
        }
        wan.prefix = None;
    } else if let (None, Some(place)) = (&wan.dhcp4, &wan.dhcp6) {
        notes.tell(
            Kind::Changed,
            place.clone(),
            "IPv4 is asked for too: without a lease of it the line is down in IPv4",
        );
    }
    // Placeholders of several lines differ, as the addresses of one provider do.
    if wan.placeholder4 && wan.gateway.is_none() {
        wan.addresses.push(format!("192.0.2.{}/24", (11 + at) % 254));
        wan.gateway = Some("192.0.2.1".to_owned());
        wan.comments
            .push("PLACEHOLDER: the IPv4 address and gateway are examples; write what the provider gives.".to_owned());
    }
    if wan.placeholder6 && wan.gateway6.is_none() {
        wan.addresses.push(format!("2001:db8::{:x}/64", 0x11 + at));
        wan.gateway6 = Some("fe80::1".to_owned());
        wan.comments
            .push("PLACEHOLDER: the IPv6 address and gateway are examples; write what the provider gives.".to_owned());
    }
}

fn fixed_addresses(sec: &Sec<'_>, wan: &mut Wan, draft: &mut Draft) {
    let four = addresses4(sec, draft);
    let six = addresses6(sec, draft);
    wan.addresses = four.iter().map(ToString::to_string).chain(six.iter().map(ToString::to_string)).collect();
    wan.gateway = sec.text("gateway").filter(|text| text.parse::<Ipv4Addr>().is_ok()).map(str::to_owned);
    wan.gateway6 = sec.text("ip6gw").filter(|text| text.parse::<Ipv6Addr>().is_ok()).map(str::to_owned);
    if let (Some(net), None) = (four.first(), &wan.gateway) {
        let guess = net.hosts().find(|host| *host != net.addr()).unwrap_or(net.addr());
        wan.gateway = Some(guess.to_string());
        let why =
            "no file says its IPv4 gateway: the first address of its subnet stands there; write the provider's router";
        draft.notes.tell(Kind::Missing, sec.here(), why);
    }
    if !six.is_empty() && wan.gateway6.is_none() {
        wan.gateway6 = Some("fe80::1".to_owned());
        draft.notes.tell(
            Kind::Missing,
            sec.here(),
            "no file says its IPv6 gateway: fe80::1 stands there; write the provider's router",
        );
    }
    if four.is_empty() {
        wan.gateway = None;
    }
    if six.is_empty() {
        wan.gateway6 = None;
    }
    if wan.addresses.is_empty() {
        wan.placeholder4 = true;
        draft.notes.tell(
            Kind::Missing,
            sec.here(),
            "it has no address that can be read: write the line's address and gateway",
        );
    }
}

fn segment(
    sec: &Sec<'_>,
    ports: &Ports<'_>,
    id: Option<u16>,
    taken: &mut BTreeSet<u16>,
    ula: Option<&Ipv6Net>,
    draft: &mut Draft,
) {
    let name = sec.name();
    let id = id.unwrap_or_else(|| {
        let id = (1..=4094).find(|id| !taken.contains(id)).unwrap_or(4094);
        draft.notes.tell(
            Kind::Changed,
            sec.here(),
            "its frames carry no tag and every VLAN has a number here: the first free one was chosen",
        );
        id
    });
    taken.insert(id);
    let mut vlan = Vlan { name: site_name(name), id: Some(id), ..Vlan::default() };
    vlan.addresses = addresses4(sec, draft).iter().map(ToString::to_string).collect();
    vlan.addresses.extend(addresses6(sec, draft).iter().map(ToString::to_string));
    if sec.has("ip6assign") {
        let hint = sec.text("ip6hint").and_then(|hint| u16::from_str_radix(hint, 16).ok());
        if let Some(own) = ula.and_then(|ula| below(ula, hint.unwrap_or(id))) {
            vlan.addresses.push(own.to_string());
            let why = "prefixes of providers are not handed on: the VLAN has a subnet of the ULA prefix, and lines translate it";
            draft.notes.tell(Kind::Changed, sec.at("ip6assign"), why);
        } else {
            let why = "prefixes of providers are not handed on, and there is no ULA prefix to take one from";
            draft.notes.tell(Kind::Left, sec.at("ip6assign"), why);
        }
    }
    for (port, tag) in ports {
        if WIRELESS.iter().any(|prefix| port.starts_with(prefix)) {
            draft.notes.tell(
                Kind::Left,
                sec.here(),
                "routerd drives no Wi-Fi: its access points stand on a port of their own",
            );
        } else if port.parse::<IfName>().is_err() {
            draft.notes.tell(Kind::Left, sec.here(), "one of its ports has a name that no interface can have");
        } else if tag.is_some_and(|tag| tag != id) {
            let why = "a VLAN has one number on all ports here: the ports where it has another tag are left out";
            draft.notes.tell(Kind::Left, sec.here(), why);
        } else if !vlan.ports.iter().any(|(other, _)| other == port) {
            vlan.ports.push(((*port).to_owned(), tag.is_some()));
        }
    }
    draft.vlan_of.insert(name.to_owned(), draft.vlans.len());
    draft.vlans.push(vlan);
}

/// A port that is a line is in no VLAN, and one that is untagged in one VLAN is so in no other.
fn drop_line_ports(draft: &mut Draft) {
    let lines: BTreeSet<&str> = draft.wans.iter().map(|wan| wan.interface.as_str()).collect();
    let mut untagged = BTreeSet::new();
    for vlan in &mut draft.vlans {
        let (name, notes) = (&vlan.name, &mut draft.notes);
        vlan.ports.retain(|(port, tagged)| {
            let why = if lines.contains(port.as_str()) {
                "the port is a line, and a line is never bridged with a VLAN"
            } else if !tagged && !untagged.insert(port.clone()) {
                "the port is untagged in another VLAN already"
            } else {
                return true;
            };
            let place = super::Place { file: "network".to_owned(), line: 0, what: format!("port {port} of {name}") };
            notes.tell(Kind::Left, place, why);
            false
        });
    }
}

fn addresses4(sec: &Sec<'_>, draft: &mut Draft) -> Vec<Ipv4Net> {
    let mask = sec.text("netmask");
    let mask =
        mask.and_then(|mask| mask.parse::<Ipv4Addr>().ok().and_then(|mask| ipnet::ipv4_mask_to_prefix(mask).ok()));
    let read = |word: &str| {
        let net = word.parse::<Ipv4Net>().ok();
        net.or_else(|| Ipv4Net::new(word.parse().ok()?, mask?).ok())
    };
    let mut out = Vec::new();
    for (word, _) in sec.list("ipaddr") {
        let Some(net) = read(word) else {
            let why = "no address with a prefix or netmask can be read from this; write it into `addresses`";
            draft.notes.tell(Kind::Missing, sec.at("ipaddr"), why);
            continue;
        };
        out.push(net);
    }
    out
}

fn addresses6(sec: &Sec<'_>, draft: &mut Draft) -> Vec<Ipv6Net> {
    let mut out = Vec::new();
    for (word, _) in sec.list("ip6addr") {
        let net = word.parse::<Ipv6Net>().ok().or_else(|| Ipv6Net::new(word.parse().ok()?, 64).ok());
        let Some(net) = net else {
            let why = "no address with a prefix can be read from this; write it into `addresses`";
            draft.notes.tell(Kind::Missing, sec.at("ip6addr"), why);
            continue;
        };
        out.push(net);
    }
    out
}

fn ula(files: &Files, draft: &mut Draft) -> Option<Ipv6Net> {
    let mut ula = None;
    for sec in Sec::of(files.network.as_ref(), "globals") {
        ula = ula.or(sec
            .text("ula_prefix")
            .and_then(|text| text.parse::<Ipv6Net>().ok())
            .filter(|net| net.prefix_len() <= 64));
        sec.leave(
            &mut draft.notes,
            &[("packet_steering", "the kernel's and the driver's settings are left as they are")],
        );
    }
    ula
}

/// The router's address in the subnet of this number.
fn below(prefix: &Ipv6Net, number: u16) -> Option<Ipv6Net> {
    let bits = 64_u8.checked_sub(prefix.prefix_len())?;
    if bits < 16 && u32::from(number) >> bits != 0 {
        return None;
    }
    let address = prefix.network().to_bits() | u128::from(number) << 64 | 1;
    Ipv6Net::new(Ipv6Addr::from_bits(address), 64).ok()
}

/// Static leases name hosts; the rest of the file is about servers.
pub(super) fn hosts(files: &Files, draft: &mut Draft) {
    let nets: Vec<IpNet> =
        draft.vlans.iter().flat_map(|vlan| &vlan.addresses).filter_map(|net| net.parse().ok()).collect();
    for sec in Sec::of(files.dhcp.as_ref(), "host") {
        let address = sec.text("ip").and_then(|ip| ip.parse::<IpAddr>().ok());
        let (Some(name), Some(address)) = (sec.text("name").map(host_name), address) else {
            draft.notes.tell(Kind::Left, sec.here(), "a host has a name and an address here, and it lacks one of them");
            continue;
        };
        let inside = nets.iter().any(|net| net.contains(&address) && net.addr() != address);
        let address = address.to_string();
        if !inside || draft.hosts.iter().any(|(_, other)| *other == address) {
            let why = "the address is in no imported VLAN, or is another's already";
            draft.notes.tell(Kind::Left, sec.at("ip"), why);
            continue;
        }
        let mut name = name;
        let known = |name: &str| {
            draft.hosts.iter().any(|(other, _)| other == name) || draft.vlans.iter().any(|vlan| vlan.name == name)
        };
        while name.is_empty() || known(&name) {
            name.push_str("-host");
        }
        sec.leave(&mut draft.notes, &[("mac", LEASES)]);
        draft.hosts.push((name, address));
    }
    leave_others(
        files.dhcp.as_ref(),
        &["host"],
        &[("dnsmasq", LEASES), ("dhcp", LEASES), ("odhcpd", LEASES)],
        &mut draft.notes,
    );
}

/// A name without what a site file takes for something else.
pub(super) fn site_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' };
    let name: String = name.chars().take(28).map(plain).collect();
    match name.as_str() {
        "" => "unnamed".to_owned(),
        "internet" | "router" | "all" | "any" | "none" => format!("net-{name}"),
        _ => name,
    }
}

fn host_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' };
    let name: String = name.chars().take(50).map(plain).collect();
    match name.as_str() {
        "internet" | "router" | "all" | "any" => format!("{name}-host"),
        // A host that looks like an address would be taken for one.
        _ if name.starts_with(|c: char| c.is_ascii_digit()) => format!("host-{name}"),
        _ => name,
    }
}

const TUNNELS: [&str; 16] = [
    "wireguard",
    "openvpn",
    "l2tp",
    "pptp",
    "gre",
    "gretap",
    "grev6",
    "6in4",
    "6to4",
    "6rd",
    "dslite",
    "map",
    "464xlat",
    "vxlan",
    "xfrm",
    "ipip",
];
const MOBILE: [&str; 8] = ["qmi", "mbim", "ncm", "3g", "modemmanager", "directip", "wwan", "hnet"];
const DYNAMIC: [&str; 12] =
    ["dhcp", "dhcpv6", "pppoe", "pppoa", "qmi", "mbim", "ncm", "3g", "modemmanager", "directip", "wwan", "hnet"];
/// How OpenWrt names radios.
const WIRELESS: [&str; 4] = ["wlan", "phy", "ath", "ra"];

const RESOLVER: &str = "the router's own name servers are those of the machine: /etc/resolv.conf or systemd-resolved";
const DIAL: &str = "belongs to dialling, which is done beside routerd";
const PREFIX: &str =
    "prefixes of providers are not handed on: VLANs have addresses of their own and lines translate them";
const CLIENT: &str = "the client of a line tells and asks for what routerd needs, and this cannot be said to it";
const TABLES: &str = "routerd keeps a table for each line by itself";
const LEASES: &str = "handing out addresses and answering names is not in a site file; `input` says who may ask";

const INTERFACE: &[(&str, &str)] = &[
    ("dns", RESOLVER),
    ("peerdns", RESOLVER),
    ("dns_search", RESOLVER),
    ("dns_metric", RESOLVER),
    ("username", DIAL),
    ("password", DIAL),
    ("service", DIAL),
    ("keepalive", DIAL),
    ("ac", DIAL),
    ("ppp_redial", DIAL),
    ("apn", DIAL),
    ("pincode", DIAL),
    ("pdptype", DIAL),
    ("auth", DIAL),
    ("modes", DIAL),
    ("ip6assign", PREFIX),
    ("ip6hint", PREFIX),
    ("ip6class", PREFIX),
    ("ip6ifaceid", PREFIX),
    ("ip6prefix", PREFIX),
    ("reqaddress", CLIENT),
    ("hostname", CLIENT),
    ("clientid", CLIENT),
    ("vendorid", CLIENT),
    ("sendopts", CLIENT),
    ("reqopts", CLIENT),
    ("norelease", CLIENT),
    ("broadcast", "the broadcast address follows from the prefix"),
    ("ipv6", "a line carries IPv6 when it has an IPv6 address and gateway"),
    ("ip4table", TABLES),
    ("ip6table", TABLES),
    ("defaultroute", TABLES),
    ("metric", "which line goes first is the tier of a policy's member"),
    ("delegate", PREFIX),
    ("macaddr", "the address of a port is left as it is"),
    ("gateway", "a VLAN has no gateway; the way out is by lines"),
    ("igmp_snooping", "bridges keep the kernel's default for multicast"),
    ("stp", "bridges run no spanning tree"),
    ("auto", "what is in the site file is up"),
    ("force_link", "what is in the site file is up, with or without carrier"),
];

const DEVICE: &[(&str, &str)] = &[
    ("mtu", "only lines have an MTU here"),
    ("macaddr", "the address of a port is left as it is"),
    ("mtu6", "a line has one MTU here"),
    ("ipv6", "a line or VLAN carries IPv6 when it has an IPv6 address"),
    ("igmp_snooping", "bridges keep the kernel's default for multicast"),
    ("stp", "bridges run no spanning tree"),
];

const OTHERS: &[(&str, &str)] = &[
    ("switch", "the ports of a switch chip are no ports of this machine; a switch with VLANs takes its place"),
    (
        "switch_vlan",
        "the ports of a switch chip are no ports of this machine; a switch with VLANs takes its place, on the port that carries the tags",
    ),
    ("switch_port", "the ports of a switch chip are no ports of this machine; a switch with VLANs takes its place"),
    ("route", "a site file has no static routes"),
    ("route6", "a site file has no static routes"),
    ("rule", "a site file has no routing rules; `[[steer]]` chooses a line"),
    ("rule6", "a site file has no routing rules; `[[steer]]` chooses a line"),
    ("alias", "a VLAN has several `addresses`: write this one there"),
];
