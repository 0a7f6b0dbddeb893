//! What is allowed but probably not meant. Lints read the checked [`Config`] beside the file it came from, and only
//! ever warn. (That a host's range holds the router's own address is noticed where ranges become hosts, in `check`.)

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::file::{File, HostRef, ServiceRef};
use crate::model::{AddressSet, Allow, Config, Internet, PortRole, PortSet};
use crate::problem::{Lines, Problem, Span};
use crate::read::At;
use crate::units::VlanName;

/// `origins` tells for each cell of the model which `[[cell]]` of the file it comes from.
pub(crate) fn run(file: &File, config: &Config, origins: &[usize], text: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    shadowed(file, config, origins, &mut problems);
    own_address_in_range(file, config, &Lines::of(text), &mut problems);
    tunnel_without_its_port(file, config, &mut problems);
    reserved(file, &mut problems);
    unmapped(file, config, &mut problems);
    unused(file, config, &mut problems);
    problems
}

/// One service of one cell: what is allowed from whom to whom. `None` is everything.
struct Atom<'a> {
    entry: usize,
    ports: Option<&'a PortSet>,
    from: Option<&'a AddressSet>,
    to: Option<Cow<'a, AddressSet>>,
}

impl Atom<'_> {
    fn covers(&self, other: &Self) -> bool {
        let addresses = |own: Option<&AddressSet>, other: Option<&AddressSet>| match (own, other) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(other)) => holds(&own.v4, &other.v4) && holds(&own.v6, &other.v6),
        };
        let ports = match (self.ports, other.ports) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(other)) => {
                holds(&own.tcp, &other.tcp)
                    && holds(&own.udp, &other.udp)
                    && (own.ping || !other.ping)
                    && own.protocols.is_superset(&other.protocols)
            }
        };
        ports && addresses(self.from, other.from) && addresses(self.to.as_deref(), other.to.as_deref())
    }

    /// A packet the atom allows, to look up what else allows it.
    fn witness(&self) -> Option<Witness> {
        let ports = self.ports?;
        let tcp = ports.tcp.first().map(|range| (6, *range.start()));
        let udp = ports.udp.first().map(|range| (17, *range.start()));
        let ping = ports.ping.then_some((1, 0));
        tcp.or(udp).or(ping).or_else(|| ports.protocols.first().map(|number| (*number, 0)))
    }
}

/// Protocol and port.
type Witness = (u8, u16);

/// Whether every range of `inner` lies in one of `outer`. Both are sorted and disjoint.
fn holds<T: Ord>(outer: &[RangeInclusive<T>], inner: &[RangeInclusive<T>]) -> bool {
    inner.iter().all(|range| {
        let index = outer.partition_point(|candidate| candidate.end() < range.start());
        outer.get(index).is_some_and(|found| found.start() <= range.start() && range.end() <= found.end())
    })
}

/// A cell that adds nothing, because another of the same pair allows all of it.
fn shadowed(file: &File, config: &Config, origins: &[usize], problems: &mut Vec<Problem>) {
    let mut pairs: BTreeMap<(&VlanName, &VlanName), Vec<Atom<'_>>> = BTreeMap::new();
    for (cell, entry) in config.cells.iter().zip(origins).filter(|(cell, _)| cell.enabled) {
        let atoms = pairs.entry((&cell.from, &cell.to)).or_default();
        let from = cell.from_hosts.as_ref();
        match &cell.allow {
            Allow::Any => {
                let to = cell.to_hosts.as_ref().map(Cow::Borrowed);
                atoms.push(Atom { entry: *entry, ports: None, from, to });
            }
            Allow::Services(permits) => atoms.extend(permits.iter().map(|permit| {
                let to = match (&cell.to_hosts, &permit.hosts) {
                    (Some(cell), Some(service)) => Some(Cow::Owned(cell.intersection(service))),
                    (Some(only), None) | (None, Some(only)) => Some(Cow::Borrowed(only)),
                    (None, None) => None,
                };
                Atom { entry: *entry, ports: Some(&permit.ports), from, to }
            })),
        }
    }
    // For each entry: whether everything so far is covered, and by what.
    let mut covers: BTreeMap<usize, Option<(usize, bool)>> = BTreeMap::new();
    for atoms in pairs.values() {
        let index = Index::of(atoms);
        let mut budget = MOST_COMPARISONS;
        for atom in atoms {
            let found = index.candidates(atom).find(|other| {
                budget = budget.saturating_sub(1);
                // Of two equal ones, the later is the superfluous one.
                budget > 0
                    && other.entry != atom.entry
                    && other.covers(atom)
                    && (other.entry < atom.entry || !atom.covers(other))
            });
            let found = found.map(|other| (other.entry, other.ports.is_none()));
            covers.entry(atom.entry).and_modify(|before| *before = before.and(found)).or_insert(found);
        }
    }
    for (entry, cover) in covers {
        let Some((by, any)) = cover else { continue };
        let (Some(cell), Some(other)) = (file.cells.get(entry), file.cells.get(by)) else { continue };
        let span = cell.services.as_ref().map_or(&cell.span, |at| &at.span);
        let (message, label) = if any {
            ("this cell is widened: another allows everything between its VLANs", "`any` here allows it all")
        } else {
            ("this cell adds nothing: another allows all of it", "allowed here already")
        };
        let other_span = other.services.as_ref().map_or(&other.span, |at| &at.span);
        problems.push(
            Problem::warning(message)
                .at(span, "without effect")
                .at(other_span, label)
                .help("entries of a pair add up: narrow the wider one, or remove this one"),
        );
    }
}

/// The atoms of a pair by what they might cover, so that thousands of rules for single ports are not all compared.
struct Index<'a> {
    atoms: &'a [Atom<'a>],
    /// By single port.
    exact: BTreeMap<Witness, Vec<usize>>,
    /// Those with ranges or everything.
    wide: Vec<usize>,
}

impl<'a> Index<'a> {
    fn of(atoms: &'a [Atom<'a>]) -> Self {
        let mut index = Self { atoms, exact: BTreeMap::new(), wide: Vec::new() };
        for (at, atom) in atoms.iter().enumerate() {
            let Some(ports) = atom.ports else {
                index.wide.push(at);
                continue;
            };
            let single = |range: &RangeInclusive<u16>| range.start() == range.end();
            if !ports.tcp.iter().chain(&ports.udp).all(single) {
                index.wide.push(at);
                continue;
            }
            let tcp = ports.tcp.iter().map(|range| (6, *range.start()));
            let udp = ports.udp.iter().map(|range| (17, *range.start()));
            let rest = ports.protocols.iter().map(|number| (*number, 0));
            for witness in tcp.chain(udp).chain(rest).chain(ports.ping.then_some((1, 0))) {
                index.exact.entry(witness).or_default().push(at);
            }
        }
        index
    }

    fn candidates(&self, atom: &Atom<'_>) -> impl Iterator<Item = &'a Atom<'a>> {
        let exact = atom.witness().and_then(|witness| self.exact.get(&witness)).map_or(&[][..], Vec::as_slice);
        self.wide.iter().chain(exact).filter_map(|at| self.atoms.get(*at))
    }
}

/// `10.10.10.1-10.10.10.9` where the router is 10.10.10.1. A prefix holds it naturally and says nothing.
fn own_address_in_range(file: &File, config: &Config, lines: &Lines<'_>, problems: &mut Vec<Problem>) {
    let own = || config.vlans.values().flat_map(|vlan| vlan.addresses.iter().map(IpNet::addr));
    let lists = file
        .cells
        .iter()
        .flat_map(|cell| [&cell.hosts, &cell.from_hosts])
        .chain(file.services.iter().map(|service| &service.hosts))
        .chain(file.steers.iter().flat_map(|steer| [&steer.source, &steer.destination]));
    for at in lists.flatten().flat_map(|list| &list.value) {
        let HostRef::Addresses(addresses) = &at.value else { continue };
        if !addresses.is_range() || !lines.slice(&at.span).contains('-') {
            continue;
        }
        if let Some(own) = own().find(|own| addresses.contains(*own)) {
            problems.push(
                Problem::warning(format!("this range holds the router's own address {own}"))
                    .at(&at.span, "the router is one of these")
                    .help("begin or end the range beside it"),
            );
        }
    }
}

/// cloudflared's tunnel speaks on 7844, tcp and udp; 443 serves other things. (Cloudflare's documentation of
/// connectivity prechecks; contradiction C14 of the site's documents.)
fn tunnel_without_its_port(file: &File, config: &Config, problems: &mut Vec<Problem>) {
    let named = |name: &str| ["cloudflare", "argo", "tunnel"].iter().any(|word| name.to_lowercase().contains(word));
    let has = |ranges: &[RangeInclusive<u16>], port: u16| ranges.iter().any(|range| range.contains(&port));
    let tunnel = |ports: &PortSet| has(&ports.tcp, 7844) || has(&ports.udp, 7844);
    let sets = config.egress.values().map(|set| (set.name.as_str(), &set.ports));
    let services = config.services.values().map(|service| (service.name.as_str(), &service.ports));
    let all: Vec<(&str, &PortSet)> = sets.chain(services).filter(|(name, _)| named(name)).collect();
    if all.iter().any(|(_, ports)| tunnel(ports)) {
        return;
    }
    let written = file
        .egress
        .iter()
        .map(|set| (set.name.value.as_str(), set.ports.as_ref()))
        .chain(file.services.iter().map(|service| (service.name.value.as_str(), service.ports.as_ref())));
    for (name, ports) in written {
        let (Some(at), Some((_, set))) = (ports, all.iter().find(|(other, _)| *other == name)) else { continue };
        if has(&set.tcp, 443) {
            problems.push(
                Problem::warning(format!("`{name}` allows 443 and not 7844, where a tunnel of cloudflared speaks"))
                    .at(&at.span, "the tunnel would not come up")
                    .help("add \"tcp/7844\" and \"udp/7844\""),
            );
        }
    }
}

/// A prefix that something else routes (a Kubernetes overlay) against a subnet of ours.
fn reserved(file: &File, problems: &mut Vec<Problem>) {
    let Some(reserved) = &file.reserved else { return };
    let vlans = file.vlans.iter().map(|vlan| (format!("VLAN `{}`", vlan.name.value), &vlan.addresses));
    let wans = file.wans.iter().map(|wan| (format!("the line of WAN `{}`", wan.name.value), &wan.addresses));
    for (owner, addresses) in vlans.chain(wans) {
        for at in addresses.iter().flat_map(|list| &list.value) {
            let clash = |other: &&At<IpNet>| {
                other.value.contains(&at.value.network()) || at.value.contains(&other.value.network())
            };
            let Some(other) = reserved.value.iter().find(clash) else { continue };
            problems.push(
                Problem::warning(format!("{owner} lies in a prefix that is routed elsewhere"))
                    .at(&at.span, format!("{} overlaps {}", at.value.trunc(), other.value.trunc()))
                    .at(&other.span, "reserved here")
                    .help("hosts behind the other route cannot be told from hosts here: move one of the two"),
            );
        }
    }
}

fn unmapped(file: &File, config: &Config, problems: &mut Vec<Problem>) {
    let unmapped = |name| config.ports.get(name).is_some_and(|port| port.role == PortRole::Unmapped);
    let names = file.ports.iter().filter(|port| unmapped(&port.name.value)).map(|port| &port.name);
    problems.extend(listed(
        names.map(|at| (&at.value, &at.span)),
        ("port has no role and stays down", "ports have no role and stay down"),
        "in no VLAN and no WAN",
        "list it in the `access` or `trunk` of a VLAN, or say `reserved = true`",
    ));
}

fn unused(file: &File, config: &Config, problems: &mut Vec<Problem>) {
    let inputs = file.vlans.iter().map(|vlan| &vlan.input).chain(file.wans.iter().map(|wan| &wan.input));
    let inputs = inputs.chain(file.tunnels.iter().map(|tunnel| &tunnel.input));
    let cells = file.cells.iter().filter_map(|cell| match cell.services.as_ref().map(|at| &at.value) {
        Some(crate::file::Services::These(list)) => Some(list),
        Some(crate::file::Services::Any) | None => None,
    });
    let refs = inputs.chain(file.steers.iter().map(|steer| &steer.services)).flatten().map(|at| &at.value);
    let used: BTreeSet<&str> = refs
        .chain(cells)
        .flatten()
        .filter_map(|at| match &at.value {
            ServiceRef::Named(name) => Some(name.as_str()),
            ServiceRef::Inline(..) => None,
        })
        .collect();
    let names = file.services.iter().map(|service| &service.name).filter(|at| !used.contains(at.value.as_str()));
    problems.extend(listed(
        names.map(|at| (&at.value, &at.span)),
        ("service is declared and used nowhere", "services are declared and used nowhere"),
        "used nowhere",
        "name it in a cell or an `input`, or remove it",
    ));

    let used: BTreeSet<_> = config
        .vlans
        .values()
        .filter_map(|vlan| match &vlan.internet {
            Internet::Sets(sets) => Some(sets),
            Internet::None | Internet::Any => None,
        })
        .flatten()
        .collect();
    let names = file.egress.iter().map(|set| &set.name).filter(|at| !used.contains(&at.value));
    problems.extend(listed(
        names.map(|at| (&at.value, &at.span)),
        ("egress set is declared and used nowhere", "egress sets are declared and used nowhere"),
        "used nowhere",
        "name it in the `internet` of a VLAN, or remove it",
    ));

    let router = [&config.router.default_policy, &config.router.own_policy];
    let used: BTreeSet<_> =
        router.into_iter().flatten().chain(config.steering.iter().map(|steer| &steer.policy)).collect();
    let names = file.policies.iter().map(|policy| &policy.name).filter(|at| !used.contains(&at.value));
    problems.extend(listed(
        names.map(|at| (&at.value, &at.span)),
        ("policy is declared and used nowhere", "policies are declared and used nowhere"),
        "used nowhere",
        "name it in [router] or a [[steer]], or remove it",
    ));
}

/// One warning for all of a kind, each with its place: eight spare ports are one thing to know.
fn listed<'a, N: Display + 'a>(
    names: impl Iterator<Item = (&'a N, &'a Span)>,
    (one, many): (&str, &str),
    label: &str,
    help: &str,
) -> Option<Problem> {
    let names: Vec<_> = names.collect();
    let (first, _) = names.first()?;
    let message = match names.len() {
        1 => format!("`{first}`: this {one}"),
        count => format!("{count} {many}"),
    };
    let problem = names.iter().fold(Problem::warning(message), |problem, (_, span)| problem.at(span, label));
    Some(problem.help(help))
}

/// Comparing within one pair stops here, some ten milliseconds on. Reached only by more than 400 rules of one pair on
/// one port.
const MOST_COMPARISONS: u32 = 200_000;
