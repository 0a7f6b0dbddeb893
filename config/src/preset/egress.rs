//! Destinations of well-known products by the names they publish, for `preset` of an egress set. Where whose names they
//! are is for the site to say (mirrors, registries), a preset has the ports alone.

use crate::domain::DomainPattern;
use crate::file::port_spec;
use crate::model::{Named, PortSet};

/// Names with what is behind `{region}` and `{gateway}` put in; without it, any.
pub(crate) struct Preset {
    pub(crate) name: &'static str,
    parts: &'static [(&'static [&'static str], &'static [&'static str])],
    /// Ports for names that the site adds; of a preset with names of its own, those of the first part.
    ports: &'static [&'static str],
    /// The site has to say the names.
    pub(crate) needs_names: bool,
    pub(crate) takes: &'static [&'static str],
    /// Where this stands, and when it was read.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reader of this file"))]
    source: &'static str,
}

impl Preset {
    pub(crate) fn of(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|preset| preset.name)
    }

    /// Its names and where they are spoken to.
    pub(crate) fn named(&self, region: Option<&str>, gateway: Option<&str>) -> Vec<Named> {
        let fill = |name: &str| -> Option<DomainPattern> {
            let name = name.replace("{region}", region.unwrap_or("*")).replace("{gateway}", gateway.unwrap_or("*"));
            name.parse().ok()
        };
        let part = |(names, ports): &(&[&str], &[&str])| Named {
            names: names.iter().filter_map(|name| fill(name)).collect(),
            ports: port_set(ports),
        };
        self.parts.iter().map(part).collect()
    }

    pub(crate) fn ports(&self) -> PortSet {
        port_set(self.ports)
    }
}

fn port_set(specs: &[&str]) -> PortSet {
    let mut ports = PortSet::default();
    specs.iter().filter_map(|spec| port_spec(spec).ok()).for_each(|spec| ports.merge(&spec));
    ports
}

const HTTPS: &[&str] = &["tcp/443"];
const TUNNEL: &[&str] = &["tcp/7844", "udp/7844"];

const PRESETS: &[Preset] = &[
    Preset {
        name: "cloudflared",
        // What it looks up itself (SRV, TXT) goes to the router's own resolver and needs no way out.
        parts: &[(
            &[
                "region1.v2.argotunnel.com",
                "region2.v2.argotunnel.com",
                "us-region1.v2.argotunnel.com",
                "us-region2.v2.argotunnel.com",
                "fed-region1.v2.argotunnel.com",
                "fed-region2.v2.argotunnel.com",
            ],
            TUNNEL,
        )],
        ports: TUNNEL,
        needs_names: false,
        takes: &[],
        source: "Cloudflare One, tunnel with firewall, 2026-08-20",
    },
    Preset {
        name: "azure-arc",
        parts: &[
            (
                &[
                    "login.microsoftonline.com",
                    "login.microsoft.com",
                    "*.login.microsoft.com",
                    "pas.windows.net",
                    "management.azure.com",
                    "*.his.arc.azure.com",
                    "*.guestconfiguration.azure.com",
                    "guestnotificationservice.azure.com",
                    "*.guestnotificationservice.azure.com",
                    "*.servicebus.windows.net",
                    "*.waconazure.com",
                    "*.blob.core.windows.net",
                    "dc.services.visualstudio.com",
                    "download.microsoft.com",
                    "dls.microsoft.com",
                ],
                HTTPS,
            ),
            (&["www.microsoft.com"], &["tcp/80", "tcp/443"]),
        ],
        ports: HTTPS,
        needs_names: false,
        takes: &[],
        source: "Azure Arc-enabled servers, network requirements, 2026-08-20",
    },
    Preset {
        name: "azure-arc-gateway",
        parts: &[(
            &[
                "{gateway}.gw.arc.azure.com",
                "management.azure.com",
                "login.microsoftonline.com",
                "{region}.login.microsoft.com",
                "gbl.his.arc.azure.com",
                "{region}.his.arc.azure.com",
                "download.microsoft.com",
            ],
            HTTPS,
        )],
        ports: HTTPS,
        needs_names: false,
        takes: &["region", "gateway"],
        source: "Azure Arc gateway, network requirements, 2026-08-20",
    },
    Preset {
        name: "azure-arc-k8s",
        parts: &[
            (
                &[
                    "management.azure.com",
                    "{region}.dp.kubernetesconfiguration.azure.com",
                    "login.microsoftonline.com",
                    "{region}.login.microsoft.com",
                    "login.windows.net",
                    "gbl.his.arc.azure.com",
                    "*.his.arc.azure.com",
                    "guestnotificationservice.azure.com",
                    "*.guestnotificationservice.azure.com",
                    "sts.windows.net",
                    "*.servicebus.windows.net",
                    "graph.microsoft.com",
                    "*.arc.azure.net",
                ],
                HTTPS,
            ),
            (&["{region}.obo.arc.azure.com"], &["tcp/8084"]),
        ],
        ports: HTTPS,
        needs_names: false,
        takes: &["region"],
        source: "Azure Arc-enabled Kubernetes, network requirements, 2026-08-20",
    },
    Preset {
        name: "azure-monitor",
        parts: &[(
            &[
                "*.ods.opinsights.azure.com",
                "*.oms.opinsights.azure.com",
                "*.monitoring.azure.com",
                "global.handler.control.monitor.azure.com",
                "{region}.handler.control.monitor.azure.com",
                "*.ingest.monitor.azure.com",
                "*.metrics.ingest.monitor.azure.com",
            ],
            HTTPS,
        )],
        ports: HTTPS,
        needs_names: false,
        takes: &["region"],
        source: "Azure Monitor agent, network configuration, 2026-08-20",
    },
    Preset {
        name: "acme",
        parts: &[(&["acme-v02.api.letsencrypt.org", "acme-staging-v02.api.letsencrypt.org"], HTTPS)],
        ports: HTTPS,
        needs_names: false,
        takes: &[],
        source: "Let's Encrypt, ACME endpoints (RFC 8555), 2026-08-20",
    },
    Preset {
        name: "ci",
        parts: &[(
            &[
                "github.com",
                "*.github.com",
                "*.githubusercontent.com",
                "*.actions.githubusercontent.com",
                "*.blob.core.windows.net",
                "dev.azure.com",
                "*.dev.azure.com",
                "app.terraform.io",
            ],
            &["tcp/22", "tcp/443"],
        )],
        ports: &["tcp/22", "tcp/443"],
        needs_names: false,
        takes: &[],
        source: "GitHub, self-hosted runners; Azure DevOps, allowed addresses; HCP Terraform agents; 2026-08-20",
    },
    // A site has mirrors and registries of its own choice.
    Preset {
        name: "updates",
        parts: &[],
        ports: &["tcp/80", "tcp/443"],
        needs_names: true,
        takes: &[],
        source: "distributions' mirrors speak HTTP, and sign what they serve",
    },
    Preset {
        name: "registries",
        parts: &[],
        ports: HTTPS,
        needs_names: true,
        takes: &[],
        source: "OCI distribution specification 1.1",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_readable() {
        for preset in PRESETS {
            assert!(!preset.ports().is_empty() && !preset.source.is_empty(), "{}", preset.name);
            assert_eq!(preset.parts.is_empty(), preset.needs_names, "{}", preset.name);
            for filled in [None, Some("westeurope")] {
                let named = preset.named(filled, filled);
                for (part, (names, ports)) in named.iter().zip(preset.parts) {
                    assert_eq!(part.names.len(), names.len(), "{}: one is no name, or is there twice", preset.name);
                    assert!(!part.ports.is_empty() && !ports.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_region_takes_the_place_of_every_region() {
        let named = Preset::of("azure-arc-k8s").unwrap().named(Some("westeurope"), None);
        let holds = |part: usize, name: &str| named[part].names.contains(&name.parse().unwrap());
        assert!(holds(0, "westeurope.dp.kubernetesconfiguration.azure.com"));
        assert!(holds(1, "westeurope.obo.arc.azure.com"));
    }
}
