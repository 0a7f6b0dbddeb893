//! Lines whose addresses come from the provider.

use std::collections::BTreeMap;

use super::{Check, Seen};
use crate::file;
use crate::model::{Delegated, Method, Vlan, Wan, WanDhcp};
use crate::problem::{Problem, Span};
use crate::read::At;
use crate::units::{VlanName, WanName};

impl Check<'_> {
    /// Where the addresses of this line come from; `None` where that cannot be told.
    pub(super) fn method(&mut self, wan: &file::Wan) -> Option<Method> {
        let name = &wan.name.value;
        match wan.method.as_ref().map(|at| (at.value.as_str(), at)) {
            None | Some(("static", _)) => {
                let only_leased =
                    [("ipv6", span(wan.ipv6.as_ref())), ("prefix_delegation", span(wan.prefix_delegation.as_ref()))];
                for (key, at) in only_leased {
                    let Some(at) = at else { continue };
                    self.push(
                        Problem::error(format!(
                            "`{key}` says what to ask the provider of WAN `{name}` for, and nobody asks"
                        ))
                        .at(at, "the addresses of this line are those of the file")
                        .help("write `method = \"dhcp\"`, or write the IPv6 address into `addresses` and `gateway6`"),
                    );
                }
                Some(Method::Static)
            }
            Some(("dhcp", _)) => Some(Method::Dhcp(self.leased(wan))),
            Some(("pppoe", at)) => {
                self.push(
                    Problem::error(format!("WAN `{name}` wants pppoe, which this release cannot do"))
                        .at(&at.span, "there is no client for it here")
                        .help("let the modem speak PPPoE and write `method = \"dhcp\"`, or the address that it gives"),
                );
                None
            }
            Some((_, at)) => {
                self.word(at, "way to address a WAN", &[("static", ()), ("dhcp", ()), ("pppoe", ())]);
                None
            }
        }
    }

    fn leased(&mut self, wan: &file::Wan) -> WanDhcp {
        let name = &wan.name.value;
        let from_file = [
            ("addresses", span(wan.addresses.as_ref())),
            ("gateway", span(wan.gateway.as_ref())),
            ("gateway6", span(wan.gateway6.as_ref())),
        ];
        for (key, at) in from_file {
            let (Some(at), Some(method)) = (at, &wan.method) else { continue };
            self.push(
                Problem::error(format!("WAN `{name}` has `{key}`, which its provider tells"))
                    .at(at, "written here")
                    .at(&method.span, "asked for by this")
                    .help(format!("remove `{key}`, or write `method = \"static\"`")),
            );
        }
        let length = wan.prefix_delegation.as_ref();
        let prefix = length.and_then(|at| self.number::<u8>(at, 32..=64, "the length of a prefix for VLANs"));
        if let (Some(at), Some(length)) = (wan.ipv6.as_ref().filter(|at| !at.value), length) {
            self.push(
                Problem::error(format!("WAN `{name}` wants an IPv6 prefix and no IPv6"))
                    .at(&length.span, "the prefix is asked for here")
                    .at(&at.span, "and IPv6 is not wanted here")
                    .help("remove one of the two"),
            );
        }
        WanDhcp { ipv6: wan.ipv6.as_ref().map_or(prefix.is_some(), |at| at.value), prefix }
    }
}

impl Check<'_> {
    /// What VLANs have of the prefixes that providers delegate.
    pub(super) fn delegated(&mut self, vlans: &mut BTreeMap<VlanName, Vlan>, wans: &BTreeMap<WanName, Wan>) {
        let file = self.file;
        let mut taken: BTreeMap<&WanName, Seen<u16>> = BTreeMap::new();
        for written in &file.vlans {
            let name = &written.name.value;
            let Some(from) = &written.delegate else {
                if let Some(at) = &written.subnet {
                    self.push(
                        Problem::error(format!("VLAN `{name}` says which subnet of a prefix it has, and has none"))
                            .at(&at.span, "there is no `delegate`")
                            .help("write `delegate = [\"wan1\"]` with the lines whose prefix is meant"),
                    );
                }
                continue;
            };
            let Some(vlan) = vlans.get_mut(name) else { continue };
            let (subnet, at) = match &written.subnet {
                Some(at) => (self.number(at, 0..=0xffff, "the number of a subnet"), &at.span),
                None => (Some(vlan.id.get()), &written.name.span),
            };
            let Some(subnet) = subnet else { continue };
            let mut lines = Vec::new();
            for line in &from.value {
                if self.delegates(name, subnet, at, line, wans) {
                    let others = taken.entry(&line.value).or_default();
                    if let Some(first) = others.insert(subnet, at.clone()) {
                        self.push(
                            Problem::error(format!("two VLANs have the subnet {subnet} of WAN `{}`", line.value))
                                .at(at, "this one")
                                .at(&first, "and this one")
                                .help("give one of them another `subnet`; without that key it is the VLAN's id"),
                        );
                    }
                    lines.push(line.value.clone());
                }
            }
            if file.ra.is_none() || written.ra.as_ref().is_some_and(|at| !at.value) {
                self.push(
                    Problem::warning(format!("no host of VLAN `{name}` hears of the prefix it has"))
                        .at(&from.span, "prefixes are told by router advertisements")
                        .help("write `[ra]`, and no `ra = false` here"),
                );
            }
            vlan.delegated = Some(Delegated { lines, subnet });
        }
    }

    /// Whether this line has a subnet of this number to give.
    fn delegates(
        &mut self,
        vlan: &VlanName,
        subnet: u16,
        at: &Span,
        line: &At<WanName>,
        wans: &BTreeMap<WanName, Wan>,
    ) -> bool {
        let name = &line.value;
        if !self.wan_known(name.as_str(), &line.span) {
            return false;
        }
        // What else is wrong with it is told elsewhere.
        let Some(wan) = wans.get(name) else { return false };
        let Method::Dhcp(WanDhcp { prefix: Some(length), .. }) = wan.method else {
            self.push(
                Problem::error(format!("VLAN `{vlan}` wants a part of the prefix of WAN `{name}`, which has none"))
                    .at(&line.span, "its provider is not asked for a prefix")
                    .help(format!("write `method = \"dhcp\"` and `prefix_delegation = 56` in [wan.{name}]")),
            );
            return false;
        };
        let bits = 64_u32.saturating_sub(u32::from(length));
        if bits < 16 && u32::from(subnet) >> bits != 0 {
            let most = (1_u32 << bits) - 1;
            self.push(
                Problem::error(format!("the prefix of WAN `{name}` has no subnet {subnet}"))
                    .at(at, "this is the subnet's number: `subnet`, or the id of the VLAN")
                    .at(&line.span, format!("a /{length} is asked for: 0 to {most} are in it"))
                    .help(format!("write a `subnet` of at most {most} into [vlan.{vlan}]")),
            );
            return false;
        }
        true
    }
}

fn span<T>(at: Option<&At<T>>) -> Option<&Span> {
    at.map(|at| &at.span)
}
