//! Lines whose addresses come from the provider.

use super::Check;
use crate::file;
use crate::model::{Method, WanDhcp};
use crate::problem::{Problem, Span};
use crate::read::At;

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

fn span<T>(at: Option<&At<T>>) -> Option<&Span> {
    at.map(|at| &at.span)
}
