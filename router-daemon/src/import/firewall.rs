//! `/etc/config/firewall`: zones and forwardings become cells of the matrix, rules become services of cells, inputs and
//! egress sets. A cell can only allow, so what a rule denies is never widened: the forwarding it narrowed is written
//! with `enabled = false`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::network::site_name;
use super::{Cell, Draft, Egress, Files, Kind, Sec, leave_others};

/// Which networks are in which zone.
#[derive(Debug, Default)]
pub(super) struct Zones<'a> {
    of: BTreeMap<&'a str, Vec<&'a str>>,
    /// Networks of zones that masquerade: they face the Internet.
    pub(super) masqueraded: BTreeSet<&'a str>,
    pub(super) inside: BTreeSet<&'a str>,
}

pub(super) fn zones(files: &Files) -> Zones<'_> {
    let mut zones = Zones::default();
    for sec in Sec::of(files.firewall.as_ref(), "zone") {
        let Some(name) = sec.text("name") else { continue };
        let mut networks: Vec<&str> = sec.list("network").into_iter().map(|(word, _)| word).collect();
        if networks.is_empty() {
            networks.push(name);
        }
        let side = if sec.flag("masq", false) { &mut zones.masqueraded } else { &mut zones.inside };
        side.extend(&networks);
        zones.of.insert(name, networks);
    }
    zones
}

impl Zones<'_> {
    fn vlans(&self, zone: &str, draft: &Draft) -> Vec<usize> {
        if zone == "*" {
            return (0..draft.vlans.len()).collect();
        }
        self.of.get(zone).into_iter().flatten().filter_map(|network| draft.vlan_of.get(*network).copied()).collect()
    }

    fn wans(&self, zone: &str, draft: &Draft) -> Vec<usize> {
        if zone == "*" {
            return (0..draft.wans.len()).collect();
        }
        let found = self.of.get(zone).into_iter().flatten().filter_map(|network| draft.wan_of.get(*network).copied());
        found.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// A rule that refuses something.
struct Denial<'a> {
    index: usize,
    src: &'a str,
    dest: Option<&'a str>,
    services: Specs,
    sec: &'a Sec<'a>,
}

impl Denial<'_> {
    fn narrows(&self, src: &str, dest: Option<&str>) -> bool {
        let same = |own: &str, other: &str| own == "*" || other == "*" || own == other;
        same(self.src, src)
            && match (self.dest, dest) {
                (Some(own), Some(other)) => same(own, other),
                (own, other) => own == other,
            }
    }
}

pub(super) fn read(files: &Files, zones: &Zones<'_>, draft: &mut Draft) {
    let file = files.firewall.as_ref();
    if file.is_none() {
        let place = super::Place { file: "firewall".to_owned(), line: 0, what: "not given".to_owned() };
        let why = "nothing may pass between VLANs, to the router or to the Internet until cells, `input` and `internet` say so; name the file with --firewall FILE";
        return draft.notes.tell(Kind::Missing, place, why);
    }
    let rules = Sec::of(file, "rule");
    let denials: Vec<Denial<'_>> = rules.iter().enumerate().filter_map(|(index, sec)| denial(index, sec)).collect();
    for sec in Sec::of(file, "defaults") {
        if sec.text("forward").is_some_and(|word| word != "REJECT" && word != "DROP") {
            draft.notes.tell(Kind::Changed, sec.at("forward"), "what no cell allows is denied here, always");
        }
        sec.text("input");
        if sec.text("output").is_some_and(|word| word != "ACCEPT") {
            draft.notes.tell(Kind::Wider, sec.at("output"), "what the router itself sends is not filtered here");
        }
        sec.leave(&mut draft.notes, DEFAULTS);
    }
    for sec in Sec::of(file, "zone") {
        zone(&sec, zones, &denials, draft);
    }
    for sec in Sec::of(file, "forwarding") {
        forwarding(&sec, zones, &denials, draft);
    }
    for (index, sec) in rules.iter().enumerate() {
        rule(index, sec, zones, &denials, draft);
    }
    for sec in Sec::of(file, "redirect") {
        redirect(&sec, draft);
    }
    let mut seen = BTreeSet::new();
    for cell in &mut draft.cells {
        while !seen.insert(cell.name.clone()) {
            cell.name.push('+');
        }
    }
    leave_others(file, &["defaults", "zone", "forwarding", "rule", "redirect"], OTHERS, &mut draft.notes);
}

fn denial<'a>(index: usize, sec: &'a Sec<'a>) -> Option<Denial<'a>> {
    if !sec.flag("enabled", true) || !matches!(sec.text("target"), Some("DROP" | "REJECT")) {
        return None;
    }
    let services = services(sec);
    Some(Denial { index, src: sec.text("src")?, dest: sec.text("dest"), services, sec })
}

fn zone(sec: &Sec<'_>, zones: &Zones<'_>, denials: &[Denial<'_>], draft: &mut Draft) {
    let Some(name) = sec.text("name") else {
        return draft.notes.tell(Kind::Left, sec.here(), "it has no name");
    };
    sec.list("network");
    let (inside, lines) = (zones.vlans(name, draft), zones.wans(name, draft));
    let known = |network: &str| draft.vlan_of.contains_key(network) || draft.wan_of.contains_key(network);
    if zones.of.get(name).into_iter().flatten().any(|network| !known(network)) {
        draft.notes.tell(
            Kind::Left,
            sec.at("network"),
            "not all its networks were carried over: their rules were left with them",
        );
    }
    if sec.text("input") == Some("ACCEPT") {
        if !lines.is_empty() {
            draft.notes.tell(
                Kind::Left,
                sec.at("input"),
                "lines are closed unless `input` names a service: this one stays closed",
            );
        }
        let refused: Vec<&Denial<'_>> = denials.iter().filter(|denial| denial.narrows(name, None)).collect();
        let open: Vec<_> =
            USUAL.iter().filter(|(_, ports)| !refused.iter().any(|denial| denial.services.meets(ports))).collect();
        if !inside.is_empty() {
            let why = "the router was open to the zone; here `input` names services: the usual ones stand there, add what is missing";
            draft.notes.tell(Kind::Changed, sec.at("input"), why);
        }
        for at in &inside {
            if let Some(vlan) = draft.vlans.get_mut(*at) {
                vlan.input.extend(open.iter().map(|(service, _)| (*service).to_owned()));
            }
        }
    }
    if sec.text("output").is_some_and(|word| word != "ACCEPT") {
        draft.notes.tell(Kind::Wider, sec.at("output"), "what the router itself sends is not filtered here");
    }
    if sec.text("forward") == Some("ACCEPT") && inside.len() > 1 {
        let narrowed = denials.iter().find(|denial| denial.narrows(name, Some(name)));
        open_cell(format!("within {name}"), name, name, inside.clone(), inside.clone(), narrowed, draft);
    }
    if sec.flag("masq", false) {
        if lines.is_empty() && !inside.is_empty() {
            draft.notes.tell(
                Kind::Left,
                sec.at("masq"),
                "only lines translate addresses; between VLANs they stay as they are",
            );
        }
    } else if !lines.is_empty() {
        draft.notes.tell(Kind::Changed, sec.at("masq"), "what leaves by a line always takes the line's IPv4 address");
    }
    sec.text("mtu_fix");
    sec.leave(&mut draft.notes, ZONE);
}

fn forwarding(sec: &Sec<'_>, zones: &Zones<'_>, denials: &[Denial<'_>], draft: &mut Draft) {
    let (Some(src), Some(dest)) = (sec.text("src"), sec.text("dest")) else {
        return draft.notes.tell(Kind::Left, sec.here(), "it names no `src` or no `dest`");
    };
    if !sec.flag("enabled", true) {
        return draft.notes.tell(Kind::Left, sec.at("enabled"), "it is switched off");
    }
    if matches!(sec.text("family"), Some("ipv4" | "ipv6")) {
        draft.notes.tell(
            Kind::Left,
            sec.at("family"),
            "a cell allows both families; left out, because it would allow more",
        );
        return;
    }
    let (from, to, lines) = (zones.vlans(src, draft), zones.vlans(dest, draft), zones.wans(dest, draft));
    let narrowed = denials.iter().find(|denial| denial.narrows(src, Some(dest)));
    if !lines.is_empty() {
        for at in &from {
            if let Some(vlan) = draft.vlans.get_mut(*at) {
                vlan.internet.push("any".to_owned());
            }
        }
        if let Some(denial) = narrowed.filter(|_| !from.is_empty()) {
            let why = "the Internet is allowed as a whole here, or by egress sets: what this rule refuses passes until `internet` of its VLAN names sets instead of \"any\"";
            draft.notes.tell(Kind::Wider, denial.sec.here(), why);
        }
        if lines.len() < draft.wans.len() && !from.is_empty() {
            let why = "the zone holds some of the lines and `internet` allows all: a `[[steer]]` with a policy of these lines keeps the VLAN on them";
            draft.notes.tell(Kind::Wider, sec.at("dest"), why);
        }
    }
    if !from.is_empty() && !to.is_empty() {
        open_cell(format!("{src} to {dest}"), src, dest, from, to, narrowed, draft);
    } else if lines.is_empty() || from.is_empty() {
        let outside = !zones.wans(src, draft).is_empty() && src != "*";
        let why = if outside {
            "nothing from the Internet is forwarded here"
        } else {
            "one of its zones holds no VLAN or line that was carried over"
        };
        draft.notes.tell(Kind::Left, sec.here(), why);
    }
    sec.leave(&mut draft.notes, &[]);
}

fn open_cell(
    name: String,
    src: &str,
    dest: &str,
    from: Vec<usize>,
    to: Vec<usize>,
    narrowed: Option<&Denial<'_>>,
    draft: &mut Draft,
) {
    if from.len() == 1 && from == to {
        return;
    }
    let comment = match narrowed {
        Some(denial) => {
            let why = format!(
                "a cell can only allow, and this rule refuses a part of what {src} may do in {dest}: the cell is there with \
                 `enabled = false`. List the services that are to pass, and enable it"
            );
            draft.notes.tell(Kind::Missing, denial.sec.here(), why);
            "narrowed by a rule that refuses a part of it: list the services, then enable"
        }
        None => "",
    };
    let enabled = narrowed.is_none();
    draft.cells.push(Cell { name, from, to, enabled, comment: comment.to_owned(), ..Cell::default() });
}

fn rule(index: usize, sec: &Sec<'_>, zones: &Zones<'_>, denials: &[Denial<'_>], draft: &mut Draft) {
    let name = sec.text("name").map_or_else(|| sec.label.clone(), str::to_owned);
    if !sec.flag("enabled", true) {
        return sec.out(sec.at("enabled"), "it is switched off", draft);
    }
    let (src, dest) = (sec.text("src"), sec.text("dest"));
    match sec.text("target") {
        Some("ACCEPT") => {}
        // Told where it narrows something; elsewhere everything is denied anyway.
        Some("DROP" | "REJECT") if src.is_some() => return sec.settled(),
        Some("DROP" | "REJECT") => {
            return sec.out(sec.here(), "what the router itself sends is not filtered here", draft);
        }
        _ => return sec.out(sec.at("target"), "a rule here allows; this target has no counterpart", draft),
    }
    let Some(src) = src else {
        return sec.out(sec.here(), "what the router itself sends is not filtered here", draft);
    };
    let icmp: Vec<&str> = sec.list("icmp_type").into_iter().map(|(word, _)| word).collect();
    let protos: Vec<&str> = sec.list("proto").into_iter().map(|(word, _)| word).collect();
    let only_icmp = !protos.is_empty() && protos.iter().all(|proto| ICMP.contains(proto));
    if only_icmp && !icmp.is_empty() && !icmp.contains(&"echo-request") {
        return sec.out(
            sec.here(),
            "ICMP errors and neighbour discovery pass by themselves, nothing else of ICMP does",
            draft,
        );
    }
    for (option, why) in NARROWING {
        if sec.has(option) {
            return sec.out(sec.at(option), why, draft);
        }
    }
    let wanted = services(sec);
    if matches!(wanted, Specs::Unknown) {
        return sec.out(sec.here(), "its protocol or ports cannot be read; the rule is left out", draft);
    }
    let (Some(from_hosts), Some(hosts)) = (addresses(&sec.list("src_ip")), addresses(&sec.list("dest_ip"))) else {
        return sec.out(sec.here(), "its addresses cannot be read, or are negated; the rule is left out", draft);
    };
    // One family of a rule without addresses is every address of the family.
    let family = match sec.text("family") {
        Some("ipv4") => Some("0.0.0.0/0"),
        Some("ipv6") => Some("::/0"),
        Some(_) | None => None,
    };
    let from = zones.vlans(src, draft);
    let outside = zones.wans(src, draft);
    let before = denials.iter().find(|denial| denial.index < index && denial.narrows(src, dest));

    let Some(dest) = dest else {
        return input(sec, &from, &outside, &wanted, &from_hosts, &hosts, before, draft);
    };
    let (to, lines) = (zones.vlans(dest, draft), zones.wans(dest, draft));
    if !outside.is_empty() && src != "*" {
        return sec.out(sec.here(), "nothing from the Internet is forwarded here", draft);
    }
    let mut used = false;
    let to_itself = from.len() == 1 && from == to;
    if !(from.is_empty() || to.is_empty() || to_itself) {
        used = true;
        let enabled = before.is_none();
        if let Some(denial) = before {
            let why = "a rule before it refuses a part of this, and a cell can only allow: its cell is there with `enabled = false`";
            draft.notes.tell(Kind::Missing, sec.here(), why);
            draft.notes.tell(Kind::Missing, denial.sec.here(), why);
        }
        let services = match &wanted {
            Specs::Some(list) => Some(list.clone()),
            Specs::Any | Specs::Unknown => None,
        };
        let comment = String::new();
        let (from, to) = (from.clone(), to.clone());
        let unbound = from_hosts.is_empty() && hosts.is_empty();
        let from_hosts = if unbound { family.map(str::to_owned).into_iter().collect() } else { from_hosts.clone() };
        draft.cells.push(Cell {
            name: name.clone(),
            from,
            to,
            services,
            from_hosts,
            hosts: hosts.clone(),
            enabled,
            comment,
        });
    }
    let closed: Vec<usize> = from
        .iter()
        .copied()
        .filter(|at| draft.vlans.get(*at).is_some_and(|vlan| !vlan.internet.iter().any(|word| word == "any")))
        .collect();
    if !lines.is_empty() && !closed.is_empty() {
        let mut out = |why| draft.notes.tell(Kind::Left, sec.here(), why);
        match &wanted {
            _ if !from_hosts.is_empty() => {
                out("a VLAN's way to the Internet is that of all its hosts: left out, because it would allow more");
            }
            _ if before.is_some() => {
                out("a rule before it refuses a part of this: left out, because it would allow more");
            }
            Specs::Some(ports) => {
                let set = format!(
                    "{}-{}",
                    site_name(&name.to_lowercase()).chars().take(24).collect::<String>(),
                    draft.egress.len() + 1
                );
                let to = if hosts.is_empty() { family.map(str::to_owned).into_iter().collect() } else { hosts };
                draft.egress.push(Egress { name: set.clone(), to, ports: ports.clone() });
                for at in closed {
                    if let Some(vlan) = draft.vlans.get_mut(at) {
                        vlan.internet.push(set.clone());
                    }
                }
            }
            Specs::Any | Specs::Unknown if hosts.is_empty() && family.is_none() => {
                for at in closed {
                    if let Some(vlan) = draft.vlans.get_mut(at) {
                        vlan.internet.push("any".to_owned());
                    }
                }
            }
            Specs::Any | Specs::Unknown => out("an egress set names ports, and this rule has none: left out"),
        }
        used = true;
    }
    if !used && (lines.is_empty() || from.is_empty()) {
        let why = "one of its zones holds no VLAN or line that was carried over";
        draft.notes.tell(Kind::Left, sec.here(), why);
    }
    sec.leave(&mut draft.notes, RULE);
}

/// Towards the router itself.
#[expect(clippy::too_many_arguments, reason = "what a rule says, each under its name")]
fn input(
    sec: &Sec<'_>,
    from: &[usize],
    outside: &[usize],
    wanted: &Specs,
    from_hosts: &[String],
    hosts: &[String],
    before: Option<&Denial<'_>>,
    draft: &mut Draft,
) {
    let mut out = |why: &str| {
        sec.settled();
        draft.notes.tell(Kind::Left, sec.here(), why);
    };
    let client = |spec: &String| spec == "udp/68" || spec == "udp/546";
    let services = match wanted {
        Specs::Some(list) if list.iter().all(client) => {
            return out("a line that is leased hears its server without a rule");
        }
        Specs::Some(list) => list.clone(),
        Specs::Any | Specs::Unknown => return out("`input` names services: a rule that opens everything is left out"),
    };
    if !from_hosts.is_empty() || !hosts.is_empty() {
        return out(
            "`input` is for a whole VLAN or line and every address of the router: left out, because it would allow more",
        );
    }
    if before.is_some() {
        return out("a rule before it refuses a part of this: left out, because it would allow more");
    }
    if from.is_empty() && outside.is_empty() {
        return out("its zone holds no VLAN or line that was carried over");
    }
    let other = match sec.text("family") {
        Some("ipv4") => Some(true),
        Some("ipv6") => Some(false),
        Some(_) | None => None,
    };
    let inside = from.iter().filter_map(|at| draft.vlans.get(*at)).flat_map(|vlan| &vlan.addresses);
    let lines = outside.iter().filter_map(|at| draft.wans.get(*at)).flat_map(|wan| &wan.addresses);
    if other.is_some_and(|six| inside.chain(lines).any(|address| address.contains(':') == six)) {
        draft.notes.tell(Kind::Wider, sec.at("family"), "`input` names a service for both families");
    }
    for at in from {
        if let Some(vlan) = draft.vlans.get_mut(*at) {
            vlan.input.extend(services.iter().cloned());
        }
    }
    for at in outside {
        if let Some(wan) = draft.wans.get_mut(*at) {
            wan.input.extend(services.iter().cloned());
        }
    }
    sec.leave(&mut draft.notes, RULE);
}

fn redirect(sec: &Sec<'_>, draft: &mut Draft) {
    if !sec.flag("enabled", true) {
        sec.settled();
        return draft.notes.tell(Kind::Left, sec.at("enabled"), "it is switched off");
    }
    let mut place = sec.here();
    let word = |option: &str| sec.text(option).map(super::uci::shown);
    let proto = word("proto").unwrap_or_else(|| "tcp udp".to_owned());
    let (outer, inner) = (word("src_dport"), word("dest_ip"));
    if let (Some(outer), Some(inner)) = (outer, inner) {
        let port = word("dest_port").map(|port| format!(" port {port}")).unwrap_or_default();
        place.what = format!("{} ({proto} {outer} -> {inner}{port})", place.what);
    }
    let why = match sec.text("target") {
        Some("SNAT") => "addresses are translated by lines only",
        _ => {
            "a site file has no port forwards: nothing from the Internet reaches a host. A tunnel from inside, or a proxy, takes its place"
        }
    };
    sec.settled();
    draft.notes.tell(Kind::Left, place, why);
}

/// Ports and protocols as a site file writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Specs {
    Any,
    Some(Vec<String>),
    Unknown,
}

impl Specs {
    /// Whether these might be among the ports of a service, one per spec.
    fn meets(&self, ports: &[&str]) -> bool {
        let range = |spec: &str| -> Option<(String, u16, u16)> {
            let (proto, rest) = spec.split_once('/')?;
            let (first, last) = rest.split_once('-').unwrap_or((rest, rest));
            Some((proto.to_owned(), first.parse().ok()?, last.parse().ok()?))
        };
        let meet = |own: &str, other: &str| match (range(own), range(other)) {
            (Some((proto, first, last)), Some((other, from, to))) => proto == other && first <= to && from <= last,
            _ => own == other,
        };
        match self {
            Self::Any | Self::Unknown => true,
            Self::Some(list) => list.iter().any(|own| ports.iter().any(|other| meet(own, other))),
        }
    }
}

/// What a firewall rule is about; without `proto`, TCP and UDP.
fn services(sec: &Sec<'_>) -> Specs {
    let protos: Vec<&str> = sec.list("proto").into_iter().map(|(word, _)| word).collect();
    let protos = if protos.is_empty() { vec!["tcpudp"] } else { protos };
    let ports: Vec<&str> = sec.list("dest_port").into_iter().map(|(word, _)| word).collect();
    specs(&protos, &ports)
}

/// `tcp` and `80,443` are `tcp/80` and `tcp/443`. Ports count for TCP and UDP alone.
pub(super) fn specs(protos: &[&str], ports: &[&str]) -> Specs {
    let mut ranges = Vec::new();
    for word in ports.iter().flat_map(|word| word.split(',')).filter(|word| !word.is_empty()) {
        let (first, last) = word.split_once([':', '-']).unwrap_or((word, word));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) if first <= last && last > 0 => ranges.push((first.max(1), last)),
            _ => return Specs::Unknown,
        }
    }
    let mut out = Vec::new();
    for proto in protos {
        let lower = proto.to_lowercase();
        let both: &[&str] = match lower.as_str() {
            "tcp" | "6" => &["tcp"],
            "udp" | "17" => &["udp"],
            "all" | "any" | "*" | "0" if ranges.is_empty() => return Specs::Any,
            "tcpudp" | "all" | "any" | "*" | "0" => &["tcp", "udp"],
            _ => &[],
        };
        if both.is_empty() {
            match lower.as_str() {
                _ if !ranges.is_empty() => return Specs::Unknown,
                name if ICMP.contains(&name) => out.push("ping".to_owned()),
                name => {
                    let number = PROTOCOLS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
                    match number.or_else(|| name.parse::<u8>().ok()) {
                        Some(number) => out.push(format!("proto/{number}")),
                        None => return Specs::Unknown,
                    }
                }
            }
        }
        for name in both {
            if ranges.is_empty() {
                out.push(format!("{name}/1-65535"));
            }
            for (first, last) in &ranges {
                out.push(if first == last { format!("{name}/{first}") } else { format!("{name}/{first}-{last}") });
            }
        }
    }
    out.dedup();
    Specs::Some(out)
}

/// Addresses and prefixes. `None` if one of them is none, such as a negated one.
pub(super) fn addresses(words: &[(&str, u32)]) -> Option<Vec<String>> {
    let mut out = Vec::new();
    for word in words.iter().flat_map(|(word, _)| word.split(',')).filter(|word| !word.is_empty()) {
        let good = word.parse::<IpNet>().is_ok()
            || word.parse::<IpAddr>().is_ok()
            || word.split_once('-').is_some_and(|(first, last)| {
                match (first.parse::<IpAddr>(), last.parse::<IpAddr>()) {
                    (Ok(first), Ok(last)) => first.is_ipv4() == last.is_ipv4() && first <= last,
                    _ => false,
                }
            });
        if !good {
            return None;
        }
        out.push(word.to_owned());
    }
    Some(out)
}

/// What a VLAN usually asks of its router, with the ports it asks by.
const USUAL: [(&str, &[&str]); 5] = [
    ("dhcp", &["udp/67", "udp/547"]),
    ("dns", &["udp/53", "tcp/53"]),
    ("ntp", &["udp/123"]),
    ("ping", &["ping"]),
    ("ssh", &["tcp/22"]),
];
const ICMP: [&str; 5] = ["icmp", "icmpv6", "ipv6-icmp", "1", "58"];
/// Names of /etc/protocols that firewalls use (IANA, protocol numbers).
const PROTOCOLS: [(&str, u8); 8] =
    [("igmp", 2), ("ipip", 4), ("ipv6", 41), ("gre", 47), ("esp", 50), ("ah", 51), ("ospf", 89), ("sctp", 132)];

/// Options that make a rule match less. Without them it would allow more, so it is left out.
const NARROWING: &[(&str, &str)] = &[
    ("src_mac", "MAC addresses are not matched; the rule is left out, because without them it would allow more"),
    ("src_port", "cells do not match source ports; the rule is left out, because without them it would allow more"),
    ("ipset", "a site file has no named sets; the rule is left out, because without one it would allow more"),
    ("mark", "marks are routerd's own; the rule is left out, because without them it would allow more"),
    ("start_time", "a site file knows no hours; the rule is left out, because without them it would allow more"),
    ("stop_time", "a site file knows no hours; the rule is left out, because without them it would allow more"),
    ("weekdays", "a site file knows no days; the rule is left out, because without them it would allow more"),
    ("monthdays", "a site file knows no days; the rule is left out, because without them it would allow more"),
    ("start_date", "a site file knows no days; the rule is left out, because without them it would allow more"),
    ("stop_date", "a site file knows no days; the rule is left out, because without them it would allow more"),
    ("extra", "rules of iptables are not read; the rule is left out, because without them it would allow more"),
];

const RULE: &[(&str, &str)] = &[
    ("limit", "rates are not limited by service; `new_per_source` in [fast_path] limits connections from outside"),
    (
        "limit_burst",
        "rates are not limited by service; `new_per_source` in [fast_path] limits connections from outside",
    ),
    ("log", "`log = true` in its cell logs what is allowed"),
];
const ZONE: &[(&str, &str)] = &[
    ("masq6", "`nat6` of a line says how IPv6 leaves; it is translated unless that says \"none\""),
    ("masq_src", "every VLAN that may use a line is translated"),
    ("masq_dest", "every VLAN that may use a line is translated"),
    ("masq_allow_invalid", "packets of no known flow are dropped"),
    ("family", "a zone has both families here"),
    ("device", "a zone is its networks; add a VLAN or line for the device"),
    ("subnet", "a zone is its networks; write addresses into cells"),
    ("log", "denials are always counted and logged"),
    ("log_limit", "`denied_log_rate` in [router] limits what is logged"),
    ("conntrack", "every flow is tracked"),
    ("helper", "helpers of conntrack are not loaded"),
    ("auto_helper", "helpers of conntrack are not loaded"),
];
const DEFAULTS: &[(&str, &str)] = &[
    ("syn_flood", "`new_per_source` in [fast_path] limits connections from outside"),
    ("synflood_protect", "`new_per_source` in [fast_path] limits connections from outside"),
    ("drop_invalid", "packets of no known flow are always dropped"),
    ("flow_offloading", "established flows take the cache of the fast path by themselves; see `fast_path` in [router]"),
    (
        "flow_offloading_hw",
        "established flows take the cache of the fast path by themselves; see `fast_path` in [router]",
    ),
    ("fullcone", "a port stays that of one flow"),
    ("disable_ipv6", "IPv6 is there where a VLAN or line has an address of it"),
    ("tcp_syncookies", "settings of the kernel's own TCP are left as they are"),
    ("tcp_ecn", "settings of the kernel's own TCP are left as they are"),
    ("custom_chains", "rules of iptables are not read"),
];
const OTHERS: &[(&str, &str)] = &[
    ("include", "scripts and rules of iptables or nft are not read"),
    ("ipset", "a site file has no named sets; write addresses where they are used"),
    ("nat", "addresses are translated by lines only"),
];
