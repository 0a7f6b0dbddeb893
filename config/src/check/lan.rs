//! What VLANs are handed by the router: pools and reservations, router advertisements, time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::{Check, Seen};
use crate::file::{self, Addresses};
use crate::model::{self, Host, Reservation, Vlan};
use crate::problem::Problem;
use crate::read::{At, shown};
use crate::units::{HostName, Mac, VlanName};

impl<'a> Check<'a> {
    pub(super) fn dhcp(&mut self, vlans: &BTreeMap<VlanName, Vlan>) -> Option<model::Dhcp> {
        let file = self.file;
        let reserved = self.reservations(vlans);
        let lease = file.dhcp.as_ref().and_then(|dhcp| dhcp.lease.as_ref()).and_then(|at| self.lease(at));
        let domain = file.dhcp.as_ref().and_then(|dhcp| dhcp.domain.as_ref()).and_then(|at| self.domain(at));
        let mut served = BTreeMap::new();
        for written in &file.vlans {
            let Some(vlan) = vlans.get(&written.name.value) else { continue };
            let own = written.dhcp.as_ref();
            let (pool4, pool6) = own.map(|own| self.pool(own, vlan)).unwrap_or_default();
            let own_lease = own.and_then(|own| own.lease.as_ref()).and_then(|at| self.lease(at));
            let own_domain = own.and_then(|own| own.domain.as_ref()).and_then(|at| self.domain(at));
            let mtu = own.and_then(|own| own.mtu.as_ref()).and_then(|at| self.number(at, 1280..=9216, "an MTU"));
            if let Some(own) = own {
                self.vlan_asks_for_dhcp(own, written, vlan);
            }
            if !vlan.takes("dhcp") {
                continue;
            }
            let reservations = reserved.get(&vlan.name).cloned().unwrap_or_default();
            let lease = own_lease.or(lease).unwrap_or(DEFAULT_LEASE);
            let domain = own_domain.or_else(|| domain.clone());
            let served_vlan = model::VlanDhcp { pool4, pool6, lease, domain, mtu, reservations };
            served.insert(vlan.name.clone(), served_vlan);
        }
        let dhcp = file.dhcp.as_ref()?;
        if served.is_empty() {
            self.push(
                Problem::warning("[dhcp] serves nobody")
                    .at(&dhcp.span, "no VLAN has \"dhcp\" in its `input`")
                    .help("write, for example, `input = [\"dhcp\", \"dns\", \"ntp\"]` in the VLANs it is for"),
            );
        }
        Some(model::Dhcp { vlans: served, line: self.line(&dhcp.span) })
    }

    fn vlan_asks_for_dhcp(&mut self, own: &file::VlanDhcp, written: &'a file::Vlan, vlan: &Vlan) {
        let name = &vlan.name;
        if self.file.dhcp.is_none() {
            self.push(
                Problem::error(format!("VLAN `{name}` says what DHCP hands out, and there is no DHCP"))
                    .at(&own.span, "the file has no [dhcp]")
                    .help("write `[dhcp]`: it is on for every VLAN with \"dhcp\" in its `input`"),
            );
        }
        if !vlan.takes("dhcp") {
            let problem = Problem::error(format!("VLAN `{name}` says what DHCP hands out, and may not ask for it"))
                .at(&own.span, "this is never handed out");
            let problem = match &written.input {
                Some(input) => problem.at(&input.span, "\"dhcp\" is not in it"),
                None => problem.at(&written.name.span, "it has no `input`"),
            };
            self.push(problem.help("add \"dhcp\" to its `input`, or take `dhcp` away"));
        }
    }

    /// The ranges of a VLAN's pool, by family.
    fn pool(
        &mut self,
        own: &file::VlanDhcp,
        vlan: &Vlan,
    ) -> (Vec<RangeInclusive<Ipv4Addr>>, Vec<RangeInclusive<Ipv6Addr>>) {
        let (mut pool4, mut pool6) = (Vec::new(), Vec::new());
        let mut before: Vec<&At<Addresses>> = Vec::new();
        for at in own.pool.iter().flat_map(|list| &list.value) {
            let (first, last) = ends(at.value);
            let Some(net) = vlan.addresses.iter().find(|net| net.contains(&first) && net.contains(&last)) else {
                let nets: Vec<_> = vlan.addresses.iter().map(|net| net.trunc().to_string()).collect();
                self.push(
                    Problem::error(format!("this pool is outside VLAN `{}`", vlan.name))
                        .at(&at.span, format!("its subnets are {}", nets.join(", ")))
                        .help("a pool lies in one subnet of its VLAN"),
                );
                continue;
            };
            if at.value.contains(net.addr()) {
                self.push(
                    Problem::error("this pool holds the router's own address")
                        .at(&at.span, format!("{} is the router", net.addr()))
                        .help("begin or end it beside that: two pieces make a pool too"),
                );
                continue;
            }
            let edge = match net {
                IpNet::V4(net) if net.prefix_len() < 31 => {
                    let edges = [net.network(), net.broadcast()].map(IpAddr::V4);
                    edges.into_iter().find(|edge| at.value.contains(*edge))
                }
                IpNet::V4(_) | IpNet::V6(_) => None,
            };
            if let Some(edge) = edge {
                self.push(
                    Problem::error("this pool holds an address that no host can have")
                        .at(&at.span, format!("{edge} is the network's own or its broadcast address"))
                        .help("leave the first and the last address of the subnet out"),
                );
                continue;
            }
            if let Some(other) = before.iter().find(|other| overlap(other.value, at.value)) {
                self.push(
                    Problem::error("two pieces of a pool overlap")
                        .at(&at.span, "this one")
                        .at(&other.span, "and this one")
                        .help("an address is handed out of one of them"),
                );
                continue;
            }
            before.push(at);
            self.occupied(at);
            match at.value {
                Addresses::V4(first, last) => pool4.push(first..=last),
                Addresses::V6(first, last) => pool6.push(first..=last),
            }
        }
        (pool4, pool6)
    }

    /// Hosts whose one address a pool would hand to others. A host that is a range is a group: a pool may serve it.
    fn occupied(&mut self, at: &At<Addresses>) {
        let file = self.file;
        for host in file.hosts.iter().filter(|host| host.mac.is_none()) {
            let single = |own: &&At<Addresses>| !own.value.is_range() && at.value.contains(ends(own.value).0);
            let Some(own) = host.addresses.iter().find(single) else { continue };
            let name = &host.name.value;
            self.push(
                Problem::error(format!("this pool would hand out the address of host `{name}`"))
                    .at(&at.span, format!("{} is in it", ends(own.value).0))
                    .at(&own.span, format!("and belongs to `{name}`"))
                    .help(format!(
                        "make two pieces of the pool, or write the `mac` of `{name}`: what is reserved is handed to \
                         nobody else"
                    )),
            );
        }
    }

    fn reservations(&mut self, vlans: &BTreeMap<VlanName, Vlan>) -> BTreeMap<VlanName, Vec<Reservation>> {
        let file = self.file;
        let mut seen: Seen<Mac> = Seen::new();
        let mut all: BTreeMap<VlanName, Vec<Reservation>> = BTreeMap::new();
        for host in &file.hosts {
            let Some(at) = &host.mac else { continue };
            let (name, mac) = (&host.name.value, at.value);
            if mac.is_group() || mac.is_zero() {
                self.push(
                    Problem::error(format!("no network card has the address {mac}"))
                        .at(&at.span, "this is a group, or nothing")
                        .help("`ip link` on the host shows its own"),
                );
                continue;
            }
            if let Some(first) = seen.insert(mac, at.span.clone()) {
                self.push(
                    Problem::error(format!("two hosts have the MAC address {mac}"))
                        .at(&at.span, "used again here")
                        .at(&first, "first used here")
                        .help("DHCP could not tell them apart: a network card belongs to one host"),
                );
                continue;
            }
            let Some(known) = self.hosts.get(name) else { continue };
            let Some(vlan) = known.vlan.as_ref().and_then(|vlan| vlans.get(vlan)) else { continue };
            if file.dhcp.is_none() {
                self.push(
                    Problem::warning(format!("nothing gives host `{name}` its address"))
                        .at(&at.span, "the file has a `mac`, and no [dhcp]")
                        .help("write `[dhcp]`, or take the `mac` away"),
                );
                continue;
            }
            if !vlan.takes("dhcp") {
                let written = file.vlans.iter().find(|written| written.name.value == vlan.name);
                let problem = Problem::error(format!("host `{name}` is in a VLAN without DHCP"))
                    .at(&at.span, "nobody asks for the address that belongs to this");
                let problem = match written.map(|written| (&written.name, &written.input)) {
                    Some((_, Some(input))) => problem.at(&input.span, "\"dhcp\" is not in it"),
                    Some((name, None)) => problem.at(&name.span, "it has no `input`"),
                    None => problem,
                };
                self.push(
                    problem.help(format!("add \"dhcp\" to the `input` of `{}`, or take the `mac` away", vlan.name)),
                );
                continue;
            }
            let reservation = reservation(known, name, mac);
            all.entry(vlan.name.clone()).or_default().push(reservation);
        }
        for reservations in all.values_mut() {
            reservations.sort_by(|one, other| one.host.cmp(&other.host));
        }
        all
    }

    pub(super) fn ra(&mut self, vlans: &BTreeMap<VlanName, Vlan>) -> Option<model::Ra> {
        let file = self.file;
        let mut told = Vec::new();
        for written in &file.vlans {
            let Some(vlan) = vlans.get(&written.name.value) else { continue };
            let v6 = vlan.delegated.is_some() || vlan.addresses.iter().any(|net| matches!(net, IpNet::V6(_)));
            let Some(at) = &written.ra else {
                if v6 {
                    told.push(vlan.name.clone());
                }
                continue;
            };
            if at.value && file.ra.is_none() {
                self.push(
                    Problem::error(format!("VLAN `{}` wants router advertisements, and there are none", vlan.name))
                        .at(&at.span, "the file has no [ra]")
                        .help("write `[ra]`: it is on for every VLAN with an IPv6 address"),
                );
            } else if at.value && !v6 {
                self.push(
                    Problem::error(format!("VLAN `{}` has no IPv6 address to advertise", vlan.name))
                        .at(&at.span, "router advertisements are of IPv6")
                        .help("add one to its `addresses`, let it have a subnet by `delegate`, or take `ra` away"),
                );
            } else if at.value {
                told.push(vlan.name.clone());
            }
        }
        told.sort();
        let ra = file.ra.as_ref()?;
        let lifetime = match &ra.lifetime {
            // RFC 4861 6.2.1 has the most; below, advertisements would come faster than radvd sends them.
            Some(at) if !(LEAST_LIFETIME..=MOST_LIFETIME).contains(&at.value) => {
                self.push(
                    Problem::error("a router cannot be known for this long").at(&at.span, "2m to 150m is possible"),
                );
                DEFAULT_LIFETIME
            }
            Some(at) => at.value,
            None => DEFAULT_LIFETIME,
        };
        if told.is_empty() {
            self.push(
                Problem::warning("[ra] advertises nothing")
                    .at(&ra.span, "no VLAN has an IPv6 address and lets it")
                    .help("add an IPv6 address to the `addresses` of the VLANs it is for"),
            );
        }
        Some(model::Ra { vlans: told, lifetime, line: self.line(&ra.span) })
    }

    pub(super) fn ntp(&mut self, vlans: &BTreeMap<VlanName, Vlan>) -> Option<model::Ntp> {
        let ntp = self.file.ntp.as_ref()?;
        let list = ntp.servers.as_ref()?;
        if self.is_empty(list) {
            self.push(
                Problem::error("[ntp] has no server to learn the time from")
                    .at(&list.span, "this list is empty")
                    .help("write at least one; four of different owners outvote one that lies"),
            );
        }
        let mut seen: Seen<&str> = Seen::new();
        for at in &list.value {
            if at.value.parse::<IpAddr>().is_err() && !is_name(&at.value) {
                self.push(
                    Problem::error(format!("`{}` is no server of NTP", shown(&at.value)))
                        .at(&at.span, "write a name or an address, without a port"),
                );
            }
            if let Some(first) = seen.insert(at.value.as_str(), at.span.clone()) {
                self.push(
                    Problem::error(format!("the server `{}` is there twice", shown(&at.value)))
                        .at(&at.span, "and here")
                        .at(&first, "here")
                        .help("it would outvote the others"),
                );
            }
        }
        let served = vlans.values().filter(|vlan| vlan.takes("ntp")).map(|vlan| vlan.name.clone());
        Some(model::Ntp {
            servers: list.value.iter().map(|at| at.value.clone()).collect(),
            set_clock: ntp.set_clock.as_ref().is_none_or(|at| at.value),
            vlans: served.collect(),
            line: self.line(&ntp.span),
        })
    }

    fn lease(&mut self, at: &At<Duration>) -> Option<Duration> {
        if (LEAST_LEASE..=MOST_LEASE).contains(&at.value) {
            return Some(at.value);
        }
        self.push(Problem::error("a lease cannot last this long").at(&at.span, "1m to 168h is possible"));
        None
    }

    fn domain(&mut self, at: &At<String>) -> Option<String> {
        if is_name(&at.value) {
            return Some(at.value.to_ascii_lowercase());
        }
        self.push(
            Problem::error(format!("`{}` is no domain", shown(&at.value)))
                .at(&at.span, "write it like \"office.example.org\""),
        );
        None
    }
}

fn reservation(host: &Host, name: &HostName, mac: Mac) -> Reservation {
    let first4 = host.addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let first6 = host.addresses.iter().find_map(|address| match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    });
    Reservation { host: name.clone(), mac, address4: first4, address6: first6 }
}

fn ends(addresses: Addresses) -> (IpAddr, IpAddr) {
    match addresses {
        Addresses::V4(first, last) => (first.into(), last.into()),
        Addresses::V6(first, last) => (first.into(), last.into()),
    }
}

fn overlap(one: Addresses, other: Addresses) -> bool {
    one.contains(ends(other).0) || other.contains(ends(one).0)
}

/// A name as DNS has it: what is written here goes into files of others as it is.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label) && text.chars().any(|c| c.is_ascii_alphabetic())
}

const DEFAULT_LEASE: Duration = Duration::from_hours(12);
const LEAST_LEASE: Duration = Duration::from_mins(1);
const MOST_LEASE: Duration = Duration::from_hours(168);
const DEFAULT_LIFETIME: Duration = Duration::from_mins(30);
const LEAST_LIFETIME: Duration = Duration::from_mins(2);
const MOST_LIFETIME: Duration = Duration::from_mins(150);
