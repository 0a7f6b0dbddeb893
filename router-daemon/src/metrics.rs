//! What Prometheus reads: every number of [`Status`] under a name of ours, in OpenMetrics or in the Prometheus text
//! format, whichever the scraper asks for. The four `node_mwan3_interface_*` names are aliases with the meaning
//! OpenWrt's exporter gives them, so that its dashboards and alerts go on working.
//!
//! [`serve`] owns the listener; it moves with `router.metrics` of the site file. Everything is computed at the
//! scrape; between scrapes nothing runs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use config::units::Family as IpFamily;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use mwan::event::Health;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::accept;
use crate::ask::ROLLBACKS;
use crate::counters::LinkCount;
use crate::crypto::CryptoInstance;
use crate::service::component::ComponentState;
use crate::service::dns::DnsLine;
use crate::service::tunnels::{TunnelLine, TunnelState};
use crate::status::{CellCount, Status, WanLine};

/// The two ways of writing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus.
    Text,
}

impl Format {
    /// What an `Accept` header asks for; the text format unless it names OpenMetrics.
    pub fn accepted(header: Option<&str>) -> Self {
        let names_it = |header: &str| header.split(',').any(|kind| kind.trim().starts_with(OPENMETRICS));
        if header.is_some_and(names_it) { Self::OpenMetrics } else { Self::Text }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All metrics of one moment.
pub fn encode(status: &Status, format: Format) -> Result<String, fmt::Error> {
    let mut page = Page::default();
    about(&mut page, status);
    lines(&mut page, status);
    // A counter that reads zero for a moment looks like a restart to Prometheus: better none.
    if status.counters_missing.is_none() {
        flows(&mut page, status);
        ports(&mut page, status);
        matrix(&mut page, status);
        fast_path(&mut page, status);
    }
    outlets(&mut page, status);
    dns(&mut page, status);
    spreads(&mut page, status);
    tls_offload(&mut page, status);
    components(&mut page, status);
    lan(&mut page, status);
    tunnels(&mut page, status);
    pair(&mut page, status);
    crypto(&mut page, status);
    mwan3(&mut page, status);
    let mut openmetrics = String::new();
    text::encode(&mut openmetrics, &page.0)?;
    let openmetrics = in_order(&openmetrics);
    Ok(match format {
        Format::OpenMetrics => openmetrics,
        Format::Text => as_text(&openmetrics),
    })
}

fn about(page: &mut Page, status: &Status) {
    page.gauges(
        "quadway_build_info",
        "The version of routerd; always 1",
        [(vec![("version", status.version.clone())], 1.0)],
    );
    let config = status.site.iter().zip(&status.digest);
    page.gauges(
        "quadway_config_info",
        "The site file in force, by its SHA-256; always 1",
        config.map(|(site, digest)| (vec![("digest", digest.clone()), ("site", site.clone())], 1.0)),
    );
    let applies = &status.applies;
    page.counters(
        "quadway_applies",
        "Site files and changes of state carried into the kernel, by result",
        [("succeeded", applies.succeeded), ("failed", applies.failed)]
            .map(|(result, count)| (vec![("result", result.to_owned())], count)),
    );
    page.counters(
        "quadway_drift_repairs",
        "Times the kernel was found changed by somebody else and put right",
        [(vec![], applies.drift_repaired)],
    );
    page.gauges(
        "quadway_commit_pending",
        "1 while a change waits for its confirmation",
        [(vec![], truth(applies.pending.is_some()))],
    );
    page.counters(
        "quadway_rollbacks",
        "Changes taken back, by what for",
        ROLLBACKS.map(|word| {
            let reason = vec![("reason", word.to_owned())];
            (reason, applies.rollbacks.get(word).copied().unwrap_or_default())
        }),
    );
    page.gauges(
        "quadway_isp_outage",
        "1 while most lines of a family were lost together",
        IpFamily::ALL.map(|family| (vec![family_label(family)], truth(status.isp_outage.contains(&family)))),
    );
}

fn lines(page: &mut Page, status: &Status) {
    let each = || {
        status.wans.iter().flat_map(|wan| {
            wan.families.iter().map(move |line| (vec![("wan", wan.name.clone()), family_label(line.family)], line))
        })
    };
    page.gauges(
        "quadway_wan_up",
        "1 if flows may be sent by this line",
        each().map(|(of, line)| (of, truth(line.usable))),
    );
    page.gauges(
        "quadway_wan_state",
        "1 for the state the line is in, 0 for the others",
        each().flat_map(|(of, line)| {
            STATES.map(|state| {
                let mut of = of.clone();
                of.push(("state", state.word().to_owned()));
                (of, truth(line.state == state))
            })
        }),
    );
    page.gauges(
        "quadway_wan_state_age_seconds",
        "How long the line has been in its state",
        each().map(|(of, line)| (of, line.since_seconds)),
    );
    page.gauges(
        "quadway_wan_share_ratio",
        "The part of the default policy's new flows the line gets",
        each().map(|(of, line)| (of, line.share_ratio)),
    );
    page.counters("quadway_wan_failovers", "Times the line was lost", each().map(|(of, line)| (of, line.failovers)));
    let targets = || {
        each().flat_map(|(of, line)| {
            line.targets.iter().map(move |target| {
                let mut of = of.clone();
                of.push(("target", target.target.clone()));
                (of, target)
            })
        })
    };
    page.gauges(
        "quadway_wan_rtt_seconds",
        "Mean round-trip time of a probe target over its window",
        targets().filter_map(|(of, target)| Some((of, target.rtt_seconds?))),
    );
    page.gauges(
        "quadway_wan_jitter_seconds",
        "Smoothed difference of successive round-trip times (RFC 3550)",
        targets().filter_map(|(of, target)| Some((of, target.jitter_seconds?))),
    );
    page.gauges(
        "quadway_wan_loss_ratio",
        "Part of the window's probes that were lost",
        targets().map(|(of, target)| (of, target.loss_ratio)),
    );
    page.gauges(
        "quadway_wan_lease_held",
        "1 while a line whose addresses come from its provider has a lease that can be used",
        each().filter_map(|(of, line)| Some((of, truth(line.lease.as_ref()?.why.is_none())))),
    );
    page.gauges(
        "quadway_wan_lease_expires_seconds",
        "Until its lease ends unless it is renewed",
        each().filter_map(|(of, line)| Some((of, line.lease.as_ref()?.expires_seconds?))),
    );
    let of = |wan: &WanLine| vec![("wan", wan.name.clone())];
    page.gauges(
        "quadway_wan_weight_ratio",
        "The line's part of all lines' weights",
        status.wans.iter().map(|wan| (of(wan), wan.weight_ratio)),
    );
    page.gauges(
        "quadway_wan_drained",
        "1 while an operator keeps further flows off the line",
        status.wans.iter().map(|wan| (of(wan), truth(wan.drained))),
    );
    page.gauges(
        "quadway_wan_download_bytes_per_second",
        "What the site file says the line can carry towards the router",
        status.wans.iter().filter_map(|wan| Some((of(wan), wan.download_bytes_per_second?))),
    );
    page.gauges(
        "quadway_wan_upload_bytes_per_second",
        "What the site file says the line can carry away from the router",
        status.wans.iter().filter_map(|wan| Some((of(wan), wan.upload_bytes_per_second?))),
    );
}

fn outlets(page: &mut Page, status: &Status) {
    let each =
        || status.outlets.iter().map(|outlet| (vec![("kind", outlet.kind.clone()), ("to", outlet.to.clone())], outlet));
    page.counters(
        "quadway_outlet_told",
        "Messages about events that a collector or program took",
        each().map(|(of, outlet)| (of, outlet.told)),
    );
    page.counters(
        "quadway_outlet_failures",
        "Attempts to tell of events that failed; what they were about waits, as far as there is room",
        each().map(|(of, outlet)| (of, outlet.failed)),
    );
    page.counters(
        "quadway_outlet_dropped",
        "Messages about events that nobody will get, because a queue was full or a disk failed",
        each().map(|(of, outlet)| (of, outlet.dropped)),
    );
    page.gauges(
        "quadway_outlet_waiting",
        "Messages about events that have not been taken yet",
        each().map(|(of, outlet)| (of, number(outlet.waiting))),
    );
}

fn spreads(page: &mut Page, status: &Status) {
    let (mut held, mut together) = (BTreeMap::new(), BTreeMap::new());
    for spread in &status.spreads {
        for (line, count) in &spread.connections {
            *held.entry((&spread.policy, line)).or_default() += count;
        }
        *together.entry(&spread.policy).or_default() += u64::from(spread.trouble().is_some());
    }
    page.gauges(
        "quadway_spread_connections",
        "Live connections of a policy that keeps them on different lines",
        held.iter().map(|((policy, line), count)| {
            (vec![("policy", (*policy).clone()), ("wan", (*line).clone())], number(*count))
        }),
    );
    page.gauges(
        "quadway_spread_together",
        "Clients with two of these connections on one line while another line has none",
        together.iter().map(|(policy, count)| (vec![("policy", (*policy).clone())], number(*count))),
    );
}

fn dns(page: &mut Page, status: &Status) {
    let each = || status.dns.iter();
    let plain = |count: fn(&DnsLine) -> u64| each().map(move |dns| (Vec::new(), count(dns)));
    page.gauges(
        "quadway_dns_ready",
        "1 if the resolver answers as the site file has it",
        each().map(|dns| (Vec::new(), truth(dns.trouble.is_none()))),
    );
    page.counters("quadway_dns_questions", "Questions that the resolver was asked", plain(|dns| dns.questions));
    page.counters("quadway_dns_own", "Questions that the site file itself answers", plain(|dns| dns.own));
    page.counters("quadway_dns_failed", "Questions that nobody outside had an answer to", plain(|dns| dns.failed));
    page.counters(
        "quadway_dns_stale",
        "Questions answered with what was kept for too long, because nobody could be asked",
        plain(|dns| dns.stale),
    );
    page.counters("quadway_dns_dropped", "Questions dropped unread: too many at once", plain(|dns| dns.dropped));
    page.counters(
        "quadway_dns_rebound",
        "Addresses of the inside that answers from outside had, and that were left out",
        plain(|dns| dns.rebound),
    );
    page.counters(
        "quadway_egress_granted",
        "Addresses put into a set that goes by names, or given more time there",
        plain(|dns| dns.granted),
    );
    page.gauges(
        "quadway_egress_addresses",
        "Addresses that the names of an egress set stand for",
        each().flat_map(|dns| dns.named.iter().map(|(set, count)| (vec![("set", set.clone())], number(*count as u64)))),
    );
}

fn components(page: &mut Page, status: &Status) {
    let each = || status.components.iter().map(|line| (vec![("component", line.name.clone())], line));
    page.gauges(
        "quadway_component_up",
        "1 if a program that the router runs does its work",
        each().map(|(of, line)| (of, truth(line.state == ComponentState::Running))),
    );
    page.gauges(
        "quadway_component_as_wanted",
        "1 if it does so as the site file says, and not with the files it had before",
        each().map(|(of, line)| (of, truth(line.state == ComponentState::Running && line.why.is_none()))),
    );
    page.counters(
        "quadway_component_restarts",
        "Times it was started without a change of the site file",
        each().map(|(of, line)| (of, line.restarts)),
    );
}

fn tunnels(page: &mut Page, status: &Status) {
    let ipsec = || status.tunnels.iter().filter(|tunnel| tunnel.kind == "ipsec");
    let wireguard = || status.tunnels.iter().filter(|tunnel| tunnel.kind == "wireguard");
    let named = |tunnel: &TunnelLine| vec![("tunnel", tunnel.name.clone())];
    let by = |tunnel: &TunnelLine| Some(vec![("tunnel", tunnel.name.clone()), ("wan", tunnel.wan.clone()?)]);
    let up = |tunnel: &TunnelLine| truth(tunnel.state == TunnelState::Up);
    page.gauges("quadway_ipsec_up", "1 if the tunnel carries packets", ipsec().map(|one| (named(one), up(one))));
    page.gauges(
        "quadway_ipsec_line",
        "1 for the line that the tunnel goes by",
        ipsec().filter_map(|one| Some((by(one)?, 1.0))),
    );
    page.counters(
        "quadway_ipsec_moves",
        "Times the tunnel took another line",
        ipsec().map(|one| (named(one), one.moves)),
    );
    page.gauges(
        "quadway_ipsec_received_bytes",
        "Bytes that came out of the tunnel with its present keys",
        ipsec().map(|one| (named(one), number(one.received_bytes))),
    );
    page.gauges(
        "quadway_ipsec_sent_bytes",
        "Bytes that went into the tunnel with its present keys",
        ipsec().map(|one| (named(one), number(one.sent_bytes))),
    );
    page.gauges(
        "quadway_ipsec_rekey_seconds",
        "Until the tunnel gets other keys",
        ipsec().filter_map(|one| Some((named(one), one.rekey_seconds?))),
    );
    page.gauges(
        "quadway_tunnel_open",
        "1 for each line at which the other end of the tunnel is let in",
        status
            .tunnels
            .iter()
            .flat_map(|one| one.open.iter().map(|wan| (vec![("tunnel", one.name.clone()), ("wan", wan.clone())], 1.0))),
    );
    page.gauges(
        "quadway_wireguard_up",
        "1 if the ends have shaken hands of late",
        wireguard().map(|one| (named(one), up(one))),
    );
    page.gauges(
        "quadway_wireguard_line",
        "1 for the line that the tunnel goes by",
        wireguard().filter_map(|one| Some((by(one)?, 1.0))),
    );
    page.counters(
        "quadway_wireguard_moves",
        "Times the tunnel took another line",
        wireguard().map(|one| (named(one), one.moves)),
    );
    page.counters(
        "quadway_wireguard_received_bytes",
        "Bytes that came from the other end",
        wireguard().map(|one| (named(one), one.received_bytes)),
    );
    page.counters(
        "quadway_wireguard_sent_bytes",
        "Bytes that went to the other end",
        wireguard().map(|one| (named(one), one.sent_bytes)),
    );
    page.gauges(
        "quadway_wireguard_handshake_seconds",
        "Since the ends last shook hands",
        wireguard().filter_map(|one| Some((named(one), one.since_seconds?))),
    );
}

fn pair(page: &mut Page, status: &Status) {
    let each = || status.pair.iter().map(|pair| (vec![("router", pair.node.clone())], pair));
    page.gauges(
        "quadway_pair_active",
        "1 if this router of the pair is active, 0 if it stands by",
        each().map(|(of, pair)| (of, truth(pair.active))),
    );
    page.gauges(
        "quadway_pair_peer_up",
        "1 if the other router is heard over the sync VLAN",
        each().map(|(of, pair)| (of, truth(pair.is_heard()))),
    );
    page.gauges(
        "quadway_pair_same_config",
        "1 if the other router has the config that is in force here; nothing while it is not heard",
        each().filter_map(|(of, pair)| Some((of, truth(pair.same_config?)))),
    );
    page.gauges(
        "quadway_pair_split_brain",
        "1 while both routers are active",
        each().map(|(of, pair)| (of, truth(pair.split_brain))),
    );
    let sync = || each().filter_map(|(of, pair)| Some((of, pair.sync?)));
    page.gauges(
        "quadway_pair_flows",
        "Flows of this router that the other one is told",
        sync().map(|(of, sync)| (of, number(sync.flows))),
    );
    page.counters(
        "quadway_pair_sync_packets_sent",
        "Packets about flows that the other router was sent",
        sync().map(|(of, sync)| (of, sync.packets_sent)),
    );
    page.counters(
        "quadway_pair_sync_packets_received",
        "Packets about flows that came from the other router",
        sync().map(|(of, sync)| (of, sync.packets_received)),
    );
    page.counters(
        "quadway_pair_sync_errors",
        "Packets about flows that could not be sent or understood",
        sync().map(|(of, sync)| (of, sync.errors)),
    );
}

fn lan(page: &mut Page, status: &Status) {
    let each = || status.dhcp.iter().map(|line| (vec![family_label(line.family), ("vlan", line.vlan.clone())], line));
    page.gauges(
        "quadway_dhcp_leases",
        "Addresses that DHCP has handed out, reserved ones among them; of IPv6 those of the pool alone",
        each().map(|(of, line)| (of, number(line.leases))),
    );
    page.gauges(
        "quadway_dhcp_pool_used",
        "Addresses of the VLAN's pool that are handed out",
        each().map(|(of, line)| (of, number(line.pool_used))),
    );
    page.gauges(
        "quadway_dhcp_pool_size",
        "Addresses that the VLAN's pool has",
        each().map(|(of, line)| (of, number(line.pool_size))),
    );
    let clock = || status.clock.iter();
    page.gauges(
        "quadway_clock_synchronised",
        "1 while the clock follows a server",
        clock().map(|clock| (vec![], truth(clock.synchronised))),
    );
    page.gauges(
        "quadway_clock_stratum",
        "How many servers are between the clock and a clock of reference; 0 while it follows none",
        clock().map(|clock| (vec![], f64::from(clock.stratum))),
    );
    page.gauges(
        "quadway_clock_offset_seconds",
        "How far the clock is ahead of the true time, as far as it is known",
        clock().map(|clock| (vec![], clock.offset_seconds)),
    );
}

fn tls_offload(page: &mut Page, status: &Status) {
    let each = || status.tls_offload.iter().map(|offload| (("offload", offload.name.clone()), offload));
    page.gauges(
        "quadway_tls_offload_ready",
        "1 if clients are served as the site file and its files are",
        each().map(|(of, offload)| {
            let well = offload.trouble.is_none() && offload.listen.iter().all(|listen| listen.trouble.is_none());
            (vec![of], truth(well))
        }),
    );
    page.gauges(
        "quadway_tls_offload_connections",
        "Connections of clients",
        each().map(|(of, offload)| (vec![of], f64::from(offload.connections))),
    );
    page.counters(
        "quadway_tls_offload_accepted",
        "Connections that the limits let in",
        each().map(|(of, offload)| (vec![of], offload.accepted)),
    );
    page.counters(
        "quadway_tls_offload_handshakes",
        "Handshakes that came to their end, by version of TLS; a resumed one needs no signature",
        each().flat_map(|(of, offload)| {
            offload.handshakes.iter().map(move |count| {
                let labels = vec![("kind", count.kind.clone()), of.clone(), ("version", count.version.clone())];
                (labels, count.count)
            })
        }),
    );
    page.counters(
        "quadway_tls_offload_refused",
        "Connections that were not served, by reason",
        each().flat_map(|(of, offload)| {
            offload.refused.iter().map(move |(why, count)| (vec![of.clone(), ("reason", why.clone())], *count))
        }),
    );
    page.counters(
        "quadway_tls_offload_received_bytes",
        "Bytes of clients that were passed on, without TLS's own",
        each().map(|(of, offload)| (vec![of], offload.received_bytes)),
    );
    page.counters(
        "quadway_tls_offload_sent_bytes",
        "Bytes of backends that were passed on, without TLS's own",
        each().map(|(of, offload)| (vec![of], offload.sent_bytes)),
    );
    page.counters(
        "quadway_tls_offload_signatures",
        "Signatures of handshakes, by who made them (`qat`, `multi-buffer`, `cpu`) and, where that is OpenSSL, why",
        each().flat_map(|(of, offload)| {
            offload.signatures.iter().map(move |made| {
                let labels = vec![("engine", made.engine.clone()), ("fallback", made.fallback.clone()), of.clone()];
                (labels, made.count)
            })
        }),
    );
    page.gauges(
        "quadway_tls_offload_certificate_expiry_timestamp_seconds",
        "When a certificate expires, in seconds since 1970; its first name, or nothing for the one without names",
        each().flat_map(|(of, offload)| {
            offload.certificates.iter().filter_map(move |certificate| {
                let name = certificate.names.first().cloned().unwrap_or_default();
                #[expect(clippy::cast_precision_loss, reason = "seconds of a calendar are far below 2^52")]
                Some((vec![("name", name), of.clone()], certificate.expires? as f64))
            })
        }),
    );
    let backends = || {
        each().flat_map(|(of, offload)| {
            let labels = move |address: &str| vec![("backend", address.to_owned()), of.clone()];
            offload.backends.iter().map(move |backend| (labels(&backend.address), backend))
        })
    };
    page.gauges(
        "quadway_tls_offload_backend_up",
        "1 if connections are given to this backend",
        backends().map(|(of, backend)| (of, truth(backend.up))),
    );
    page.gauges(
        "quadway_tls_offload_backend_connections",
        "Connections that this backend has",
        backends().map(|(of, backend)| (of, f64::from(backend.connections))),
    );
    page.counters(
        "quadway_tls_offload_backend_served",
        "Connections that this backend was given",
        backends().map(|(of, backend)| (of, backend.served)),
    );
    page.counters(
        "quadway_tls_offload_backend_failures",
        "Checks of this backend, and connections to it, that failed",
        backends().map(|(of, backend)| (of, backend.failed)),
    );
}

fn crypto(page: &mut Page, status: &Status) {
    let crypto = || status.crypto.iter();
    page.gauges(
        "quadway_crypto_device",
        "1 if a crypto device was found and started, 0 if the CPU does it all; nothing where the site file needs no crypto",
        crypto().map(|crypto| (vec![], truth(crypto.missing.is_none()))),
    );
    let operations = || crypto().flat_map(|crypto| &crypto.operations);
    page.counters(
        "quadway_crypto_operations",
        "Crypto operations done, by who did them (`qat`, `multi-buffer`, `cpu`) and, where that is OpenSSL, why",
        operations().flat_map(|operation| {
            let labels = |engine: &str, fallback: &str| {
                let operation = ("operation", operation.operation.clone());
                vec![("engine", engine.to_owned()), ("fallback", fallback.to_owned()), operation]
            };
            let cpu = operation.cpu.iter().map(|(reason, count)| (labels("cpu", reason), *count));
            cpu.chain([(labels("qat", ""), operation.offloaded), (labels("multi-buffer", ""), operation.batched)])
                .collect::<Vec<_>>()
        }),
    );
    page.counters(
        "quadway_crypto_refused",
        "Crypto operations not done, because the key or the input was bad",
        operations().map(|operation| (vec![("operation", operation.operation.clone())], operation.refused)),
    );
    let choices = || {
        crypto().flat_map(|crypto| &crypto.choices).map(|choice| {
            let labels = vec![
                ("below", choice.below_bytes.to_string()),
                ("depth", choice.in_flight.to_string()),
                ("operation", choice.operation.clone()),
            ];
            (labels, choice)
        })
    };
    page.gauges(
        "quadway_crypto_offload_chosen",
        "1 if OpenSSL costs the CPU more than what else there is: by operation, its text below so many bytes, and at \
         least so many in flight",
        choices().filter_map(|(of, choice)| Some((of, truth(choice.choice.as_ref()? != "cpu")))),
    );
    page.gauges(
        "quadway_crypto_cpu_seconds",
        "CPU time of one operation, as measured: `cpu` is OpenSSL, `offload` what else there is",
        choices().flat_map(|(of, choice)| {
            [("cpu", choice.cpu_seconds), ("offload", choice.offload_seconds)].map(|(engine, seconds)| {
                let mut labels = of.clone();
                labels.push(("engine", engine.to_owned()));
                (labels, seconds)
            })
        }),
    );
    page.gauges(
        "quadway_crypto_latency_seconds",
        "How long the last few thousand operations took, by who did them (`qat`, `multi-buffer`, `cpu`): the median \
         (`quantile` 0.5) and the 99th percentile",
        crypto().flat_map(|crypto| &crypto.latencies).flat_map(|latency| {
            [("0.5", latency.p50_seconds), ("0.99", latency.p99_seconds)].map(|(quantile, seconds)| {
                let of = vec![
                    ("engine", latency.engine.clone()),
                    ("operation", latency.operation.clone()),
                    ("quantile", quantile.to_owned()),
                ];
                (of, seconds)
            })
        }),
    );
    page.gauges(
        "quadway_crypto_kernel_device_beats",
        "1 while a crypto device that the kernel drives answers, 0 when it does not; nothing where nobody knows",
        status
            .kernel_devices
            .iter()
            .filter_map(|device| Some((vec![("device", device.name.clone())], truth(device.beats?)))),
    );
    page.counters(
        "quadway_crypto_kernel_device_unanswered",
        "Heartbeats that a crypto device of the kernel's did not answer, since its driver was loaded",
        status
            .kernel_devices
            .iter()
            .filter_map(|device| Some((vec![("device", device.name.clone())], device.unanswered?))),
    );
    let each = || {
        let instances = crypto().flat_map(|crypto| &crypto.instances);
        // Not `instance`: that is the scraped router itself.
        let labels =
            |instance: &CryptoInstance| vec![("device", instance.device.to_string()), ("name", instance.name.clone())];
        instances.map(move |instance| (labels(instance), instance))
    };
    page.gauges(
        "quadway_crypto_instance_used",
        "1 if work is given to this instance of the device",
        each().map(|(of, instance)| (of, truth(instance.in_use()))),
    );
    page.gauges(
        "quadway_crypto_instance_untrusted",
        "Operations that this instance is not given, because their known answer did not come out right",
        each().map(|(of, instance)| (of, number(instance.failed().len() as u64))),
    );
    page.gauges(
        "quadway_crypto_instance_in_flight",
        "Operations that this instance has and did not answer",
        each().map(|(of, instance)| (of, number(instance.in_flight))),
    );
    page.counters(
        "quadway_crypto_instance_answered",
        "Operations that this instance answered, late or not",
        each().map(|(of, instance)| (of, instance.answered)),
    );
    page.counters(
        "quadway_crypto_instance_late",
        "Answers of this instance that came after their caller had gone",
        each().map(|(of, instance)| (of, instance.late)),
    );
    page.counters(
        "quadway_crypto_instance_retries",
        "Operations that this instance did not take because its ring was full",
        each().map(|(of, instance)| (of, instance.retries)),
    );
    page.counters(
        "quadway_crypto_instance_restarts",
        "Times this instance said that it restarts",
        each().map(|(of, instance)| (of, instance.restarts)),
    );
    page.counters(
        "quadway_crypto_instance_resets",
        "Times this instance was reset because answers did not come",
        each().map(|(of, instance)| (of, instance.resets)),
    );
}

fn flows(page: &mut Page, status: &Status) {
    let each = || {
        status.wans.iter().flat_map(|wan| {
            wan.families.iter().map(move |line| (vec![("wan", wan.name.clone()), family_label(line.family)], line))
        })
    };
    page.gauges("quadway_wan_flows", "Live flows on the line", each().map(|(of, line)| (of, number(line.flows))));
    page.counters(
        "quadway_wan_sent_bytes",
        "Everything that left by the line, while the fast path was there to count it",
        each().filter_map(|(of, line)| Some((of, line.sent_bytes?))),
    );
    page.counters(
        "quadway_wan_received_bytes",
        "Everything that came in by the line, while the fast path was there to count it",
        each().filter_map(|(of, line)| Some((of, line.received_bytes?))),
    );
    let conntrack = status.conntrack.into_iter();
    page.gauges(
        "quadway_conntrack_entries",
        "Flows of all kinds that conntrack knows",
        conntrack.clone().map(|table| (vec![], number(table.entries))),
    );
    page.gauges(
        "quadway_conntrack_limit",
        "Flows that conntrack takes at most; beyond them none begins",
        conntrack.map(|table| (vec![], number(table.limit))),
    );
    page.counters(
        "quadway_wan_new_flows",
        "Flows begun on the line",
        status.wans.iter().map(|wan| (vec![("wan", wan.name.clone())], wan.new_flows)),
    );
}

/// The kernel's own counts of every port that is there.
fn ports(page: &mut Page, status: &Status) {
    let each = || {
        let there = status.ports.iter().filter_map(|port| Some((&port.name, port.link.as_ref()?)));
        there.map(|(name, link)| (vec![("port", name.clone())], link))
    };
    page.gauges(
        "quadway_port_carrier",
        "1 if the port's far end is there",
        each().map(|(of, link)| (of, truth(link.carrier))),
    );
    page.gauges(
        "quadway_port_speed_bytes_per_second",
        "What the port can carry, as its driver says",
        each().filter_map(|(of, link)| Some((of, f64::from(link.speed_megabits?) * 125_000.0))),
    );
    let counters: [PortCounter; 6] = [
        ("quadway_port_received_bytes", "Bytes that came in by the port", |link| link.received.bytes),
        ("quadway_port_sent_bytes", "Bytes that left by the port", |link| link.sent.bytes),
        ("quadway_port_receive_errors", "Packets that came in spoilt", |link| link.receive_errors),
        ("quadway_port_send_errors", "Packets that could not be sent", |link| link.send_errors),
        ("quadway_port_receive_drops", "Packets that came in and found no room", |link| link.receive_drops),
        ("quadway_port_send_drops", "Packets that found no room to leave", |link| link.send_drops),
    ];
    for (name, help, count) in counters {
        page.counters(name, help, each().map(|(of, link)| (of, count(link))));
    }
}

fn matrix(page: &mut Page, status: &Status) {
    let told = bounded(&status.cells);
    let cells = || told.iter().map(|cell| (vec![("from", cell.from.clone()), ("to", cell.to.clone())], cell));
    page.counters(
        "quadway_cell_denied_packets",
        "Forwarded packets no cell allows",
        cells().map(|(of, cell)| (of, cell.denied_packets)),
    );
    page.counters(
        "quadway_cell_denied_bytes",
        "Bytes of forwarded packets no cell allows",
        cells().map(|(of, cell)| (of, cell.denied_bytes)),
    );
    page.counters(
        "quadway_cell_allowed_flows",
        "Forwarded flows a cell allowed to begin",
        cells().map(|(of, cell)| (of, cell.allowed_flows)),
    );
    page.counters(
        "quadway_cell_invalid_packets",
        "Forwarded packets that belong to no connection",
        cells().map(|(of, cell)| (of, cell.invalid_packets)),
    );
    page.counters(
        "quadway_cell_audited_flows",
        "Forwarded flows no cell allowed and an audit let pass",
        cells().filter(|(_, cell)| cell.audited_flows > 0).map(|(of, cell)| (of, cell.audited_flows)),
    );
    page.gauges(
        "quadway_audit_remaining_seconds",
        "How long the cell is audited yet: what no entry of it allows passes",
        status.audits.iter().map(|audit| {
            (vec![("from", audit.from.clone()), ("to", audit.to.clone())], number(audit.remaining_seconds))
        }),
    );
    let inputs = status.denied_input.iter();
    page.counters(
        "quadway_input_denied_packets",
        "Packets to the router itself that it does not take",
        inputs.map(|(from, count)| (vec![("from", from.clone())], *count)),
    );
    let spoofed = status.spoofed.iter();
    page.counters(
        "quadway_spoofed_packets",
        "Packets whose source address does not belong where they came from",
        spoofed.map(|(from, count)| (vec![("from", from.clone())], *count)),
    );
}

/// All cells, or where there are too many for a scrape one for each zone that sends, towards `*`. Cells do not vanish
/// while the table lives, so a page changes from the one to the other once, and its counters never run backwards.
fn bounded(cells: &[CellCount]) -> Cow<'_, [CellCount]> {
    if cells.len() <= MOST_CELLS {
        return cells.into();
    }
    let mut senders = BTreeMap::<&str, CellCount>::new();
    for cell in cells {
        let sum = senders.entry(&cell.from).or_insert_with(|| CellCount {
            from: cell.from.clone(),
            to: "*".to_owned(),
            allowed_flows: 0,
            denied_packets: 0,
            denied_bytes: 0,
            invalid_packets: 0,
            audited_flows: 0,
        });
        sum.allowed_flows += cell.allowed_flows;
        sum.denied_packets += cell.denied_packets;
        sum.denied_bytes += cell.denied_bytes;
        sum.invalid_packets += cell.invalid_packets;
        sum.audited_flows += cell.audited_flows;
    }
    senders.into_values().collect()
}

fn fast_path(page: &mut Page, status: &Status) {
    let path = &status.fast_path;
    page.gauges("quadway_fast_path_on", "1 while packets meet the fast path", [(vec![], truth(path.on))]);
    if !path.on {
        return;
    }
    page.gauges(
        "quadway_fast_path_entries",
        "Flows in the tables of the fast path",
        path.flows.iter().map(|(family, flows)| (vec![family_label(*family)], number(*flows))),
    );
    page.gauges(
        "quadway_fast_path_capacity",
        "Flows of each family that the tables hold at most",
        [(vec![], number(path.capacity))],
    );
    page.gauges(
        "quadway_fast_path_memory_bytes",
        "Memory of all maps of the fast path",
        [(vec![], number(path.memory_bytes))],
    );
    page.counters(
        "quadway_fast_path_packets",
        "Packets that met the fast path, by what became of them",
        path.verdicts.iter().map(|(verdict, count)| (vec![("verdict", verdict.clone())], count.packets)),
    );
    page.counters(
        "quadway_fast_path_overruns",
        "Times that conntrack told of flows faster than they were cached",
        [(vec![], path.fed.overruns)],
    );
    page.gauges(
        "quadway_fast_path_port_mode",
        "Where packets of the port meet the fast path; always 1",
        path.ports.iter().map(|(name, port)| (vec![("mode", port.word().to_owned()), ("port", name.to_string())], 1.0)),
    );
}

/// Name, help, value.
type PortCounter = (&'static str, &'static str, fn(&LinkCount) -> u64);

/// Name, help, value.
type Alias = (&'static str, &'static str, fn(&WanLine) -> bool);

/// A line counts as online for mwan3 if any family of it is, as mwan3 tells interfaces and not families.
fn mwan3(page: &mut Page, status: &Status) {
    let aliases: [Alias; 4] = [
        ("node_mwan3_interface_enabled", "Alias: the line takes part", |wan| !wan.drained),
        ("node_mwan3_interface_up", "Alias: the line's interface has carrier", |wan| wan.carrier),
        ("node_mwan3_interface_running", "Alias: the line is being watched", |wan| !wan.families.is_empty()),
        ("node_mwan3_interface_status", "Alias: 1 if the line is online", |wan| {
            wan.families.iter().any(|line| line.usable)
        }),
    ];
    for (name, help, value) in aliases {
        let of = |wan: &WanLine| vec![("interface", wan.name.clone())];
        page.gauges(name, help, status.wans.iter().map(|wan| (of(wan), truth(value(wan)))));
    }
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug, Default)]
struct Page(Registry);

impl Page {
    fn gauges(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.register(name, help, family);
    }

    /// `_total` is added on writing.
    fn counters(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.register(name, help, family);
    }

    /// Names carry their unit; the registry wants it apart, to declare it.
    fn register(&mut self, name: &str, help: &str, metric: impl prometheus_client::registry::Metric) {
        if let Some(name) = name.strip_suffix("_seconds") {
            self.0.register_with_unit(name, help, Unit::Seconds, metric);
        } else if let Some(name) = name.strip_suffix("_bytes") {
            self.0.register_with_unit(name, help, Unit::Bytes, metric);
        } else {
            self.0.register(name, help, metric);
        }
    }
}

fn family_label(family: IpFamily) -> (&'static str, String) {
    let word = match family {
        IpFamily::V4 => "v4",
        IpFamily::V6 => "v6",
    };
    ("family", word.to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "what is counted here stays far below 2^52")]
fn number(number: u64) -> f64 {
    number as f64
}

fn truth(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

/// The registry keeps samples in no order of its own: the samples of each family, sorted, so that equal states give
/// equal pages.
fn in_order(page: &str) -> String {
    let mut ordered = String::with_capacity(page.len());
    let mut samples = Vec::new();
    for line in page.lines() {
        if !line.starts_with('#') {
            samples.push(line.replacen("{} ", " ", 1));
            continue;
        }
        samples.sort_unstable();
        for line in samples.drain(..).chain([line.to_owned()]) {
            ordered.push_str(&line);
            ordered.push('\n');
        }
    }
    ordered
}

/// OpenMetrics declares a counter without `_total`, the older format with it; and the older one knows neither
/// units nor an end.
fn as_text(openmetrics: &str) -> String {
    let counters = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect::<std::collections::BTreeSet<_>>();
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        let declared = line.strip_prefix("# ").and_then(|rest| rest.split_once(' '));
        match declared {
            Some(("UNIT" | "EOF", _)) => continue,
            None if line == "# EOF" => continue,
            Some((word, rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let total = if counters.contains(name) { "_total" } else { "" };
                text.extend(["# ", word, " ", name, total, " ", rest]);
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Serves `/metrics` on whatever address `address` says, until `address`'s sender is gone. An address that cannot
/// be bound is tried again; the daemon goes on without it.
pub async fn serve<F, R>(mut address: watch::Receiver<Option<SocketAddr>>, status: F)
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Option<Status>> + Send + 'static,
{
    let status = Arc::new(status);
    loop {
        let wanted = *address.borrow_and_update();
        let listener = match wanted {
            Some(wanted) => match TcpListener::bind(wanted).await {
                Ok(listener) => Some(listener),
                Err(error) => {
                    tracing::warn!(address = %wanted, %error, "metrics cannot be served there");
                    None
                }
            },
            None => None,
        };
        let changed = match (listener, wanted) {
            (Some(listener), _) => {
                tracing::info!(address = ?listener.local_addr().ok(), "serving metrics");
                tokio::select! {
                    never = answer_all(&listener, &status) => match never {},
                    changed = address.changed() => changed,
                }
            }
            (None, Some(_)) => tokio::time::timeout(BIND_AGAIN, address.changed()).await.unwrap_or(Ok(())),
            (None, None) => address.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn answer_all<F, R>(listener: &TcpListener, status: &Arc<F>) -> std::convert::Infallible
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Option<Status>> + Send + 'static,
{
    let clients = Arc::new(Semaphore::new(CLIENTS));
    // Dropped with this future: a moved listener ends its connections.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = accept::next(&mut connections, "metrics", || listener.accept()).await;
        let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else {
            tracing::debug!("too many scrapers at once");
            continue;
        };
        let status = Arc::clone(status);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&status)));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT).max_buf_size(MAX_HEADERS);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_LIFE, connection).await {
                tracing::debug!(%error, "a scrape broke off");
            }
            drop(permit);
        });
    }
}

async fn answer<F, R>(request: Request<Incoming>, status: Arc<F>) -> Result<Response<Full<Bytes>>, io::Error>
where
    F: Fn() -> R,
    R: Future<Output = Option<Status>>,
{
    let format = Format::accepted(request.headers().get(ACCEPT).and_then(|header| header.to_str().ok()));
    let (code, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            match status().await.and_then(|status| encode(&status, format).ok()) {
                Some(body) => (StatusCode::OK, format.content_type(), body),
                None => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, "the router did not answer in time\n".to_owned()),
            }
        }
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, PLAIN, "metrics are at /metrics\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".to_owned()),
    };
    Response::builder()
        .status(code)
        .header(CONTENT_TYPE, kind)
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)
}

const OPENMETRICS: &str = "application/openmetrics-text";
const PLAIN: &str = "text/plain; charset=utf-8";
const CLIENTS: usize = 16;
/// Pairs of zones that are told one by one.
const MOST_CELLS: usize = 2500;
const MAX_HEADERS: usize = 16 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_LIFE: Duration = Duration::from_mins(5);
const BIND_AGAIN: Duration = Duration::from_secs(5);
const STATES: [Health; 6] =
    [Health::Unknown, Health::Up, Health::Degraded, Health::Held, Health::Down, Health::NoCarrier];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::status::CellCount;
    use crate::{fixture, status};

    #[test]
    fn the_names_and_labels_are_pinned() {
        insta::assert_snapshot!(encode(&fixture_status(), Format::OpenMetrics).unwrap());
    }

    #[test]
    fn both_formats_pass_a_strict_reader_and_say_the_same() {
        let openmetrics = strictly(&encode(&fixture_status(), Format::OpenMetrics).unwrap(), Format::OpenMetrics);
        let text = strictly(&encode(&fixture_status(), Format::Text).unwrap(), Format::Text);
        assert_eq!(openmetrics, text);
        assert!(openmetrics.contains_key("quadway_cell_denied_bytes_total{from=\"dev\",to=\"compute\"}"));
        assert!(openmetrics.contains_key("node_mwan3_interface_status{interface=\"wan1\"}"));
    }

    #[test]
    fn names_follow_the_conventions() {
        let page = encode(&fixture_status(), Format::Text).unwrap();
        for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            assert!(name.starts_with("quadway_") || name.starts_with("node_mwan3_interface_"), "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            assert!(!["_ms", "_percent", "_millis"].iter().any(|unit| name.ends_with(unit)), "{name}");
        }
    }

    /// `METRICS.md` is written by this test where `QUADWAY_BLESS` is set.
    #[test]
    fn every_metric_is_documented() {
        let mut status = fixture_status();
        for wan in &mut status.wans {
            (wan.download_bytes_per_second, wan.upload_bytes_per_second) = (Some(1.0), Some(1.0));
        }
        let page = encode(&status, Format::Text).unwrap();
        let mut rows = BTreeMap::<&str, [String; 3]>::new();
        for line in page.lines() {
            if let Some((word, rest)) = line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
                let (name, value) = rest.split_once(' ').unwrap();
                rows.entry(name).or_default()[usize::from(word == "TYPE")] = value.trim_end_matches('.').to_owned();
            } else {
                let (name, labels) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap(), ""));
                let names = labels.split(',').filter_map(|label| label.split_once("=\""));
                let names: Vec<_> = names.map(|(name, _)| format!("`{name}`")).collect();
                rows.get_mut(name).unwrap()[2] = names.join(", ");
            }
        }
        let silent: Vec<_> = rows.iter().filter(|(_, row)| row.iter().any(String::is_empty)).collect();
        let unlabelled = |(_, [help, kind, _]): &(&&str, &[String; 3])| help.is_empty() || kind.is_empty();
        assert!(!silent.iter().any(unlabelled), "{silent:?}");
        let rows =
            rows.iter().map(|(name, [help, kind, labels])| format!("| `{name}` | {kind} | {labels} | {help} |\n"));
        let text = METRICS_HEAD.to_owned() + &rows.collect::<String>();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("METRICS.md");
        if std::env::var_os("QUADWAY_BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(committed == text, "METRICS.md is not what the code says: QUADWAY_BLESS=1 cargo test -p router-daemon");
    }

    /// Series grow with lines, ports and zones; and with pairs of zones only where something was counted.
    #[test]
    fn a_site_of_250_vlans_has_a_bounded_page() {
        let mut status = fixture_status();
        let vlan = |number: usize| format!("vlan{number}");
        let cell = status.cells[0].clone();
        status.cells = (0..250)
            .flat_map(|from| (0..250).map(move |to| (from, to)))
            .map(|(from, to)| CellCount { from: vlan(from), to: vlan(to), ..cell.clone() })
            .collect();
        status.denied_input = (0..250).map(|number| (vlan(number), 1)).collect();
        status.spoofed = status.denied_input.clone();
        let series = strictly(&encode(&status, Format::Text).unwrap(), Format::Text);
        let pairs = series.keys().filter(|series| series.starts_with("quadway_cell_")).count();
        assert_eq!(pairs, 4 * 250);
        assert!(series.len() - pairs < 1000, "{}", series.len());
        let denied = |series: &BTreeMap<String, f64>| {
            let of = series.iter().filter(|(series, _)| series.starts_with("quadway_cell_denied_packets"));
            of.map(|(_, count)| count).sum::<f64>()
        };
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let all = (250 * 250 * cell.denied_packets) as f64;
        assert!((denied(&series) - all).abs() < 0.5, "nothing is left out");
    }

    const METRICS_HEAD: &str = "# Metrics\n\nWhat `/metrics` tells, written from the code by its test. Counters start at \
        zero when the table or the maps behind them are made; a scrape that cannot read them leaves them out.\n\n\
        | metric | type | labels | |\n|---|---|---|---|\n";

    #[test]
    fn a_site_name_full_of_quotes_does_not_break_the_page() {
        let mut status = fixture_status();
        status.site = Some("a\"b\\c\nd".to_owned());
        strictly(&encode(&status, Format::Text).unwrap(), Format::Text);
        strictly(&encode(&status, Format::OpenMetrics).unwrap(), Format::OpenMetrics);
    }

    #[test]
    fn counters_that_cannot_be_read_are_left_out_and_not_zero() {
        let status = status::of(&fixture::view(), &Err("no table".to_owned()));
        let page = encode(&status, Format::Text).unwrap();
        strictly(&page, Format::Text);
        assert!(!page.contains("quadway_wan_new_flows") && !page.contains("quadway_cell_"));
        assert!(page.contains("quadway_wan_failovers_total"));
    }

    #[test]
    fn the_accept_header_chooses() {
        for (header, format) in [
            (None, Format::Text),
            (Some("text/plain"), Format::Text),
            (Some("*/*"), Format::Text),
            (Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"), Format::OpenMetrics),
        ] {
            assert_eq!(Format::accepted(header), format);
        }
    }

    #[tokio::test]
    async fn serves_and_moves_to_another_address() {
        let first = free_address().await;
        let (address, watched) = watch::channel(Some(first));
        let task = tokio::spawn(serve(watched, || async { Some(fixture_status()) }));
        let page = get(first, "/metrics").await;
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        assert!(page.contains("quadway_wan_up{wan=\"wan1\",family=\"v4\"} 1"), "{page}");
        assert!(get(first, "/").await.starts_with("HTTP/1.1 404"));
        let second = free_address().await;
        address.send(Some(second)).unwrap();
        assert!(get(second, "/metrics").await.starts_with("HTTP/1.1 200"));
        assert!(TcpStream::connect(first).await.is_err());
        drop(address);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn says_so_when_the_router_does_not_answer() {
        let at = free_address().await;
        let (_address, watched) = watch::channel(Some(at));
        let _task = tokio::spawn(serve(watched, || async { None }));
        assert!(get(at, "/metrics").await.starts_with("HTTP/1.1 503"));
    }

    fn fixture_status() -> Status {
        let (outlets, tls_offload, crypto) = (fixture::outlets(), fixture::tls_offload(), Some(fixture::crypto()));
        let (components, dhcp, clock) = (fixture::components(), fixture::leases(), Some(fixture::clock()));
        let dns = Some(fixture::dns());
        let tunnels = fixture::tunnels();
        Status {
            outlets,
            tls_offload,
            dns,
            spreads: fixture::spreads(),
            components,
            tunnels,
            dhcp,
            clock,
            pair: Some(fixture::pair()),
            crypto,
            kernel_devices: vec![crate::crypto::qat_kernel::KernelDeviceLine {
                name: "qat_c62x_0000:3d:00.0".to_owned(),
                beats: Some(true),
                unanswered: Some(2),
            }],
            ..status::of(&fixture::view(), &Ok(fixture::counters()))
        }
    }

    async fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Reads a page as the grammar has it and gives its samples. Panics at the first fault.
    fn strictly(page: &str, format: Format) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let mut declared = BTreeMap::new();
        let mut helped = BTreeSet::new();
        let mut current = String::new();
        assert!(page.ends_with('\n'));
        assert_eq!(page.ends_with("\n# EOF\n"), format == Format::OpenMetrics);
        for line in page.lines().filter(|line| *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (word, name, value) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                current = name.to_owned();
                match word {
                    "HELP" => assert!(helped.insert(name.to_owned()), "{name} has two helps"),
                    "TYPE" => {
                        assert!(["gauge", "counter"].contains(&value), "{line}");
                        assert_eq!(declared.insert(name.to_owned(), value.to_owned()), None, "{name} twice");
                    }
                    "UNIT" => {
                        assert_eq!(format, Format::OpenMetrics);
                        assert!(name.ends_with(&format!("_{value}")), "{line}");
                    }
                    other => panic!("{other}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
            let kind = &declared[&current];
            let wanted = match (format, kind.as_str()) {
                (Format::OpenMetrics, "counter") => format!("{current}_total"),
                _ => current.clone(),
            };
            assert_eq!(name, wanted, "a sample outside its family");
            assert!(helped.contains(&current));
            labels(series.strip_prefix(name).unwrap());
            let value = value.parse::<f64>().unwrap();
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} twice");
        }
        samples
    }

    fn labels(text: &str) {
        let Some(mut rest) = text.strip_prefix('{') else {
            assert!(text.is_empty(), "{text}");
            return;
        };
        while rest != "}" {
            let (name, value) = rest.split_once("=\"").unwrap();
            assert!(name.chars().all(|c| c.is_ascii_lowercase()), "{name}");
            let mut escaped = false;
            let end = value
                .find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                })
                .unwrap();
            rest = value[end + 1..].strip_prefix(',').unwrap_or(&value[end + 1..]);
        }
    }
}
