//! The resolver on the router: whom it asks, what it says of this site itself, and what it is needed for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::outside::is_name;
use super::{Check, merged_ports, union};
use crate::domain::DomainName;
use crate::file::{self, Destinations};
use crate::model::{AddressSet, Dns, EgressSet, Internet, Named, PortSet, Upstream, Vlan};
use crate::preset::egress::Preset;
use crate::problem::{Problem, Span};
use crate::read::{At, shown};
use crate::suggest::nearest;
use crate::units::{EgressName, VlanName};

impl Check<'_> {
    pub(super) fn dns(
        &mut self,
        vlans: &BTreeMap<VlanName, Vlan>,
        egress: &BTreeMap<EgressName, EgressSet>,
    ) -> Option<Dns> {
        let file = self.file;
        for set in egress.values().filter(|set| !set.named.is_empty()) {
            let span = file.egress.iter().find(|written| written.name.value == set.name).map(|set| &set.name.span);
            let (Some(span), None) = (span, &file.dns) else { continue };
            self.push(
                Problem::error(format!("egress set `{}` goes by names, and nothing answers for them", set.name))
                    .at(span, "its addresses are those that the router's resolver answers with")
                    .help("add [dns] with `upstreams = [\"tls://192.0.2.53#dns.example\"]`"),
            );
        }
        let written = file.dns.as_ref()?;
        let by_name = |vlan: &&Vlan| match &vlan.internet {
            Internet::Sets(sets) => sets.iter().filter_map(|set| egress.get(set)).any(|set| !set.named.is_empty()),
            Internet::None | Internet::Any => false,
        };
        let asks = |vlan: &&Vlan| !vlan.input.iter().any(|permit| permit.ports.udp.iter().any(|r| r.contains(&53)));
        for vlan in vlans.values().filter(by_name).filter(asks) {
            let written = file.vlans.iter().find(|written| written.name.value == vlan.name);
            let span = written.and_then(|vlan| vlan.internet.as_ref()).map(|internet| internet.span.clone());
            let span = span.unwrap_or_else(|| written.map(|vlan| vlan.name.span.clone()).unwrap_or_default());
            self.push(
                Problem::error(format!("VLAN `{}` may go out by names, and may not ask for them", vlan.name))
                    .at(&span, "only what the router's resolver answers opens a way")
                    .help("add \"dns\" to its `input`"),
            );
        }
        let upstreams = written.upstreams.as_ref().map(|list| {
            if self.is_empty(list) {
                self.push(
                    Problem::error("[dns] has nobody to ask")
                        .at(&list.span, "empty")
                        .help("write, for example, `upstreams = [\"tls://192.0.2.53#dns.example\"]`"),
                );
            }
            let read: Vec<_> = list.value.iter().filter_map(|at| self.upstream(at)).collect();
            read
        });
        let mut forward = BTreeMap::new();
        for file::DnsForward { zone, servers } in &written.forward {
            let name = match zone.value.parse::<DomainName>() {
                Ok(name) => Some(name),
                Err(error) => {
                    let text = format!("`{}` is no zone", shown(&zone.value));
                    self.push(Problem::error(text).at(&zone.span, error));
                    None
                }
            };
            let Some(servers) = servers else { continue };
            if self.is_empty(servers) {
                let text = format!("zone `{}` has nobody to ask", shown(&zone.value));
                self.push(Problem::error(text).at(&servers.span, "empty"));
            }
            let read: Vec<_> = servers.value.iter().filter_map(|at| self.server(at)).collect();
            forward.extend(name.map(|name| (name, read)));
        }
        let cache = written.cache.as_ref().and_then(|at| self.number(at, 0..=1_000_000, "the number of kept answers"));
        let domain = written.domain.as_ref().map(|at| at.value.clone()).or_else(|| DOMAIN.parse().ok())?;
        if let Some(at) = written.domain.as_ref().filter(|at| at.value.as_str() == "local") {
            self.push(
                Problem::error("`local` belongs to multicast DNS (RFC 6762, 3)")
                    .at(&at.span, "many clients would never ask the router for it")
                    .help(
                        "leave `domain` out, which is `home.arpa` (RFC 8375), and write `dot_local = true` beside it",
                    ),
            );
        }
        Some(Dns {
            upstreams: upstreams?,
            domain,
            dot_local: written.dot_local.as_ref().is_some_and(|at| at.value),
            forward,
            private: written.private.iter().flat_map(|list| &list.value).map(|at| at.value.clone()).collect(),
            redirect: written.redirect.as_ref().is_none_or(|at| at.value),
            ca: self.api_file(written.ca.as_ref()),
            cache: cache.unwrap_or(CACHE),
            line: self.line(&written.span),
        })
    }

    /// `tls://192.0.2.53#dns.example`, `udp://192.0.2.53`, `192.0.2.53`.
    fn upstream(&mut self, at: &At<String>) -> Option<Upstream> {
        const EXAMPLE: &str =
            "write it like \"tls://192.0.2.53#dns.example\", or \"192.0.2.53\" for one asked in the clear";
        let bad = |check: &mut Self, why: &str| {
            let text = format!("`{}` is no resolver", shown(&at.value));
            check.push(Problem::error(text).at(&at.span, why).help(EXAMPLE));
        };
        let Some(rest) = at.value.strip_prefix("tls://") else {
            let plain = at.value.strip_prefix("udp://").unwrap_or(&at.value);
            let address = address(plain, 53);
            if address.is_none() {
                bad(self, "an address is wanted");
            }
            return Some(Upstream { address: address?, tls: None });
        };
        let Some((place, name)) = rest.split_once('#') else {
            bad(self, "behind a `#` stands the name that its certificate has");
            return None;
        };
        let Some(address) = address(place, 853) else {
            bad(self, "an address is wanted behind `tls://`");
            return None;
        };
        if !is_name(name) {
            bad(self, "behind the `#` stands no name");
            return None;
        }
        Some(Upstream { address, tls: Some(name.to_owned()) })
    }

    fn server(&mut self, at: &At<String>) -> Option<SocketAddr> {
        let address = address(&at.value, 53);
        if address.is_none() {
            let text = format!("`{}` is no address of a server", shown(&at.value));
            self.push(Problem::error(text).at(&at.span, "write it like \"10.0.60.53\""));
        }
        address
    }

    pub(super) fn all_egress(&mut self) -> BTreeMap<EgressName, EgressSet> {
        let mut sets = BTreeMap::new();
        for written in &self.file.egress {
            let name = written.name.value.clone();
            if let "any" | "none" = name.as_str() {
                self.push(
                    Problem::error(format!("an egress set cannot be called `{name}`"))
                        .at(&written.name.span, "`internet` gives this word a meaning of its own"),
                );
            }
            let (mut named, preset_ports) = self.egress_preset(written);
            let ports = match &written.ports {
                Some(list) => merged_ports(&list.value),
                None => preset_ports.unwrap_or_default(),
            };
            if written.preset.is_some() && written.ports.is_some() {
                for part in &mut named {
                    part.ports.clone_from(&ports);
                }
            }
            let own: BTreeSet<_> =
                written.names.iter().flat_map(|list| &list.value).map(|at| at.value.clone()).collect();
            if !own.is_empty() {
                match named.iter_mut().find(|named| named.ports == ports) {
                    Some(named) => named.names.extend(own),
                    None => named.push(Named { names: own, ports: ports.clone() }),
                }
            }
            if let Some(list) = written.names.as_ref().filter(|list| self.is_empty(list)) {
                self.push(
                    Problem::error(format!("egress set `{name}` has no names"))
                        .at(&list.span, "empty")
                        .help("write, for example, `names = [\"login.example.com\", \"*.example.net\"]`"),
                );
            }
            let to = match written.to.as_ref().map(|at| &at.value) {
                Some(Destinations::These(list)) => Some(union(list.iter().map(|at| at.value))),
                None if written.names.is_some() || written.preset.is_some() => Some(AddressSet::default()),
                Some(Destinations::Any) | None => None,
            };
            if let (None, false, Some(at)) = (&to, named.is_empty(), &written.to) {
                self.push(
                    Problem::error(format!("egress set `{name}` has names, and goes anywhere without them"))
                        .at(&at.span, "this is every destination already")
                        .help("leave out `to`, or the names"),
                );
            }
            let line = self.line(&written.name.span);
            sets.insert(name.clone(), EgressSet { name, to, ports, named, line });
        }
        sets
    }

    /// What a preset stands for, and its ports for the names beside it.
    fn egress_preset(&mut self, written: &file::Egress) -> (Vec<Named>, Option<PortSet>) {
        for (key, at) in [("region", &written.region), ("gateway", &written.gateway)] {
            let takes = written.preset.as_ref().and_then(|at| Preset::of(&at.value)).map(|preset| preset.takes);
            if let Some(at) = at
                && !takes.is_some_and(|takes| takes.contains(&key))
            {
                self.push(
                    Problem::error(format!("`{key}` says nothing here"))
                        .at(&at.span, "only some presets have names with it")
                        .help("those are azure-arc-gateway, azure-arc-k8s and azure-monitor"),
                );
            }
        }
        let Some(at) = &written.preset else { return (Vec::new(), None) };
        let Some(preset) = Preset::of(&at.value) else {
            let near = nearest(&at.value, Preset::names());
            let label = near.map_or_else(|| "not known".to_owned(), |near| format!("did you mean `{near}`?"));
            let known: Vec<_> = Preset::names().collect();
            self.push(
                Problem::error(format!("`{}` is no preset of an egress set", shown(&at.value)))
                    .at(&at.span, label)
                    .help(format!("the presets are {}", known.join(", "))),
            );
            return (Vec::new(), None);
        };
        if preset.needs_names && written.names.is_none() {
            self.push(
                Problem::error(format!("preset `{}` has ports and no names", preset.name))
                    .at(&at.span, "which hosts it is about is the site's own choice")
                    .help("add `names = [\"mirror.example.org\"]`"),
            );
        }
        let label = |at: &Option<At<String>>| match at {
            Some(at) if is_name(&at.value) && !at.value.contains('.') => Ok(Some(at.value.clone())),
            Some(at) => Err(at.span.clone()),
            None => Ok(None),
        };
        let mut filled = |at| {
            label(at).unwrap_or_else(|span: Span| {
                let problem = Problem::error("this cannot be part of a name");
                self.push(problem.at(&span, "letters, digits and '-' are wanted, like \"westeurope\""));
                None
            })
        };
        let (region, gateway) = (filled(&written.region), filled(&written.gateway));
        (preset.named(region.as_deref(), gateway.as_deref()), Some(preset.ports()))
    }
}

/// An address with this port where none is written.
fn address(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().map(|address| SocketAddr::new(address, port)).or_else(|_| text.parse());
    address.ok().filter(|address| address.port() != 0 && !address.ip().is_unspecified())
}

/// RFC 8375.
const DOMAIN: &str = "home.arpa";
const CACHE: u64 = 10_000;
