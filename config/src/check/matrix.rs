//! Services, egress sets, the cells of the matrix and steering: what may go where, and by which policy.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::segments::comment;
use super::{Check, RESERVED, Seen, Set, merged_ports, union};
use crate::file::{self, Addresses, HostRef, ServiceRef};
use crate::model::{self, AddressSet, Allow, Cell, Permit, Service, Steer};
use crate::preset;
use crate::problem::{Problem, Span};
use crate::read::At;
use crate::suggest::nearest;
use crate::units::{ServiceName, VlanName};

type Services = BTreeMap<ServiceName, Service>;

impl Check<'_> {
    pub(super) fn all_services(&mut self) -> Services {
        let mut services = Services::new();
        for written in &self.file.services {
            let name = &written.name;
            if name.value.as_str().contains('/')
                || name.value.as_str() == "ping"
                || RESERVED.contains(&name.value.as_str())
            {
                self.push(
                    Problem::error(format!("a service cannot be called `{}`", name.value))
                        .at(&name.span, "where services are listed, this would mean something else"),
                );
            }
            let ports = merged_ports(written.ports.as_ref().map_or(&[][..], |list| &list.value));
            if let Some(list) = written.ports.as_ref().filter(|list| self.is_empty(list)) {
                self.push(
                    Problem::error(format!("service `{}` has no ports", name.value))
                        .at(&list.span, "nothing would match")
                        .help("write, for example, `ports = [\"tcp/80\"]`"),
                );
            }
            let hosts = written.hosts.as_ref().and_then(|list| self.addresses(&list.value));
            let line = self.line(&name.span);
            services.insert(name.value.clone(), Service { name: name.value.clone(), ports, hosts, line });
        }
        services
    }

    pub(super) fn permits(&mut self, refs: &[At<ServiceRef>], services: &Services) -> Vec<Permit> {
        refs.iter().filter_map(|at| self.permit(at, services)).collect()
    }

    fn permit(&mut self, at: &At<ServiceRef>, services: &Services) -> Option<Permit> {
        let name = match &at.value {
            ServiceRef::Inline(name, ports) => {
                return Some(Permit { service: name.clone(), ports: ports.clone(), hosts: None, sources: None });
            }
            ServiceRef::Named(name) => name,
        };
        if let Some(service) = services.get(name) {
            return Some(Permit {
                service: name.clone(),
                ports: service.ports.clone(),
                hosts: service.hosts.clone(),
                sources: None,
            });
        }
        if let Some(ports) = preset::service(name.as_str()) {
            return Some(Permit { service: name.clone(), ports, hosts: None, sources: None });
        }
        let mut known: Vec<&str> = preset::names().collect();
        known.extend(self.names.services.keys().copied());
        let near = nearest(name.as_str(), known);
        let label = near.map_or_else(|| "used here".to_owned(), |near| format!("did you mean `{near}`?"));
        self.push(
            Problem::error(format!("service `{name}` is used here but not declared"))
                .at(&at.span, label)
                .help(format!("declare [service.{name}], or write the ports here, like \"tcp/443\"")),
        );
        None
    }

    pub(super) fn cells(
        &mut self,
        vlans: &BTreeMap<VlanName, model::Vlan>,
        services: &Services,
    ) -> (Vec<Cell>, Vec<usize>) {
        let mut names: Seen<String> = Seen::new();
        let mut cells = Vec::new();
        let mut origins = Vec::new();
        for (origin, written) in self.file.cells.iter().enumerate() {
            if let Some(name) = &written.name
                && let Some(first) = names.insert(name.value.clone(), name.span.clone())
            {
                self.push(
                    Problem::error(format!("two cells are called `{}`", crate::read::shown(&name.value)))
                        .at(&name.span, "used again here")
                        .at(&first, "first used here")
                        .help("a named exception needs a name of its own"),
                );
            }
            let from = self.places(written.from.as_ref());
            let to = self.places(written.to.as_ref());
            let from_hosts = written.from_hosts.as_ref().map(|list| self.addresses(&list.value));
            let to_hosts = written.hosts.as_ref().map(|list| self.addresses(&list.value));
            self.hosts_inside(written.from_hosts.as_ref(), &from, vlans, "from");
            self.hosts_inside(written.hosts.as_ref(), &to, vlans, "to");
            let allow = match written.services.as_ref().map(|at| &at.value) {
                Some(file::Services::Any) => Allow::Any,
                Some(file::Services::These(refs)) => {
                    if let Some(at) = written.services.as_ref().filter(|at| refs.is_empty() && self.is_blank(&at.span))
                    {
                        self.push(
                            Problem::error("this cell allows nothing")
                                .at(&at.span, "no service is listed")
                                .help("everything between VLANs is denied anyway: remove the cell, or list services"),
                        );
                    }
                    Allow::Services(self.permits(refs, services))
                }
                None => continue,
            };
            let everything = |hosts: &Option<Option<AddressSet>>| hosts.clone().flatten();
            let pairs = self.pairs(written, &from, &to);
            for (from, to) in pairs {
                origins.push(origin);
                cells.push(Cell {
                    name: written.name.as_ref().map_or_else(|| format!("{from}->{to}"), |name| name.value.clone()),
                    from_hosts: everything(&from_hosts),
                    to_hosts: everything(&to_hosts),
                    from,
                    to,
                    allow: allow.clone(),
                    log: written.log.as_ref().is_some_and(|at| at.value),
                    enabled: written.enabled.as_ref().is_none_or(|at| at.value),
                    comment: comment(written.comment.as_ref()),
                    line: self.line(&written.span),
                });
            }
        }
        (cells, origins)
    }

    /// The VLANs a cell names. `all` is every VLAN of the file.
    fn places(&mut self, written: Option<&At<Vec<At<VlanName>>>>) -> Vec<VlanName> {
        let Some(list) = written else { return Vec::new() };
        if self.is_empty(list) {
            self.push(Problem::error("no VLAN is named here").at(&list.span, "name one, a list of them, or \"all\""));
        }
        let mut seen: Seen<VlanName> = Seen::new();
        let mut places = Vec::new();
        for at in &list.value {
            if at.value.as_str() == "all" {
                return self.file.vlans.iter().map(|vlan| vlan.name.value.clone()).collect();
            }
            if let "internet" | "router" = at.value.as_str() {
                self.push(
                    Problem::error(format!("a cell cannot name `{}`", at.value))
                        .at(&at.span, "cells lie between VLANs")
                        .help("a VLAN's way to the Internet is its `internet`, its way to the router its `input`"),
                );
                continue;
            }
            if !self.vlan_known(at) {
                continue;
            }
            if let Some(first) = seen.insert(at.value.clone(), at.span.clone()) {
                self.push(
                    Problem::error(format!("VLAN `{}` is listed twice", at.value))
                        .at(&at.span, "again here")
                        .at(&first, "first here"),
                );
                continue;
            }
            places.push(at.value.clone());
        }
        places
    }

    /// The pairs of a cell, without those from a VLAN to itself. Written out by name, such a pair is a problem:
    /// inside a VLAN packets are bridged and never asked.
    fn pairs(&mut self, written: &file::Cell, from: &[VlanName], to: &[VlanName]) -> Vec<(VlanName, VlanName)> {
        let mut pairs = Vec::new();
        for source in from {
            for target in to {
                if source != target {
                    pairs.push((source.clone(), target.clone()));
                }
            }
        }
        if let (Some(at), [source], [target]) = (&written.to, from, to)
            && source == target
        {
            self.push(
                Problem::error(format!("this cell leads from VLAN `{source}` to itself"))
                    .at(&at.span, "the same VLAN as in `from`")
                    .help("inside a VLAN packets are bridged; the matrix does not see them"),
            );
        }
        pairs
    }

    /// Hosts of a cell must stand in the VLAN they are looked for in, or the entry never matches.
    fn hosts_inside(
        &mut self,
        refs: Option<&At<Vec<At<HostRef>>>>,
        places: &[VlanName],
        vlans: &BTreeMap<VlanName, model::Vlan>,
        side: &str,
    ) {
        let Some(list) = refs else { return };
        if self.is_empty(list) {
            self.push(
                Problem::error("no host is named here")
                    .at(&list.span, "an empty list matches nothing")
                    .help("leave the key out for the whole VLAN"),
            );
        }
        let vlans = places.iter().filter_map(|name| vlans.get(name));
        let subnets = union(vlans.flat_map(model::Vlan::networks).map(Addresses::from));
        if subnets.is_empty() {
            return;
        }
        for at in &list.value {
            let Some(addresses) = self.addresses_of(at) else { continue };
            if addresses.is_empty() || !addresses.intersection(&subnets).is_empty() {
                continue;
            }
            let home = match &at.value {
                HostRef::Named(name) => self.hosts.get(name).and_then(|host| host.vlan.as_ref()),
                HostRef::Addresses(_) => None,
            };
            let label = match home {
                Some(vlan) => format!("it stands in VLAN `{vlan}`"),
                None => "not in the subnets of that VLAN".to_owned(),
            };
            let names = places.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            self.push(
                Problem::error(format!("this host is not in {names}"))
                    .at(&at.span, label)
                    .help(format!("name hosts of the VLAN in `{side}`, or correct `{side}`")),
            );
        }
    }

    /// Like `addresses`, for one and without reporting it again.
    fn addresses_of(&self, at: &At<HostRef>) -> Option<AddressSet> {
        Some(match &at.value {
            HostRef::Addresses(addresses) => union([*addresses]),
            HostRef::Named(name) => {
                union(self.hosts.get(name)?.addresses.iter().map(|address| Addresses::from(IpNet::from(*address))))
            }
        })
    }

    fn empty<T>(&self, list: Option<&At<Vec<At<T>>>>) -> Option<Span> {
        list.filter(|list| self.is_empty(list)).map(|list| list.span.clone())
    }

    pub(super) fn steering(&mut self, services: &Services) -> Vec<Steer> {
        let mut out = Vec::new();
        for (index, written) in self.file.steers.iter().enumerate() {
            let from = written.from.as_ref().map(|list| {
                let mut set = Set::new();
                for at in &list.value {
                    if self.vlan_known(at) {
                        set.insert(at.value.clone());
                    }
                }
                set
            });
            let source = written.source.as_ref().and_then(|list| self.addresses(&list.value));
            let mut destination = written.destination.as_ref().and_then(|list| self.addresses(&list.value));
            let source_ports = written.source_ports.as_ref().map(|list| merged_ports(&list.value));
            let mut ports = written.ports.as_ref().map(|list| merged_ports(&list.value));
            if let Some(refs) = &written.services {
                let permits = self.permits(&refs.value, services);
                let set = ports.get_or_insert_default();
                for permit in &permits {
                    set.merge(&permit.ports);
                }
                // A service bound to hosts narrows the rule to them where the rule itself does not.
                if destination.is_none() && !permits.is_empty() && permits.iter().all(|permit| permit.hosts.is_some()) {
                    let bound = permits.iter().filter_map(|permit| permit.hosts.as_ref());
                    let (v4, v6): (Vec<_>, Vec<_>) = bound.map(|set| (set.v4.clone(), set.v6.clone())).unzip();
                    destination = Some(AddressSet::of(v4.into_iter().flatten(), v6.into_iter().flatten()));
                }
            }
            for (name, list) in [
                ("source", self.empty(written.source.as_ref())),
                ("destination", self.empty(written.destination.as_ref())),
            ] {
                if let Some(span) = list {
                    self.push(
                        Problem::error(format!("`{name}` names nothing"))
                            .at(&span, "an empty list matches nothing")
                            .help("leave the key out to match everything"),
                    );
                }
            }
            let Some(policy) = &written.policy else { continue };
            if !self.policy_known(&policy.value, &policy.span) {
                continue;
            }
            out.push(Steer {
                name: written.name.as_ref().map_or_else(|| format!("steer {}", index + 1), |name| name.value.clone()),
                from,
                source,
                destination,
                source_ports,
                ports,
                policy: policy.value.clone(),
                line: self.line(&written.span),
            });
        }
        out
    }
}
