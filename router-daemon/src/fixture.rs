//! A small site for the tests of this crate: two segments, two lines, one cell.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::Config;
use config::model::{
    Addressing, Allow, Balance, Cell, Failback, FastPath, Host, Internet, Kick, LastResort, Member, Nat6, Permit,
    Policy, PortSet, Probing, Router, Target, TargetKind, Vlan, Wan,
};
use config::units::{Family, Line, PolicyId, Tier, VlanId, WanId, Weight};
use mwan::Time;
use mwan::audit::Audit;
use mwan::decide::Decision;
use mwan::event::Health;
use mwan::lease::Lease;
use mwan::router::{LeaseStatus, LineStatus, LineUse, PolicyStatus, Snapshot, TargetStatus, WanStatus};
use mwan::state::{PortMode, ZoneId};

use crate::apart::SpreadLine;
use crate::ask::{Applies, View};
use crate::counters::{Conntrack, Count, Counters, FastCount, FastPort, Fed, LineCount, LinkCount};
use crate::crypto::{
    CryptoBatch, CryptoChoice, CryptoInstance, CryptoLatency, CryptoOperation, CryptoStatus, CryptoStep,
};
use crate::event_log::{self, Denied, Logged, packet};
use crate::outside::OutletLine;
use crate::service::component::{ComponentLine, ComponentState};
use crate::service::dhcp::LeaseLine;
use crate::service::dns::DnsLine;
use crate::service::ntp::ClockStatus;
use crate::service::pair::{PairLine, SyncFlows};
use crate::service::tls_offload::{
    BackendLine, CertificateLine, HandshakeCount, ListenLine, OffloadLine, SignatureCount,
};
use crate::service::tunnels::{TunnelLine, TunnelState};

pub(crate) fn config() -> Config {
    let vlans = [vlan("dev", 50, Internet::None, 10), vlan("compute", 60, Internet::Sets(BTreeSet::new()), 20)];
    let hosts = [host("dev1", "dev", "10.10.50.7"), host("worker3", "compute", "10.10.60.3")];
    let wans = [wan("wan1", 1), wan("wan2", 2)];
    Config {
        site: "spectrum".to_owned(),
        digest: "0123456789abcdef".repeat(4),
        router: Router {
            metrics: None,
            default_policy: Some("balanced".parse().unwrap()),
            own_policy: Some("balanced".parse().unwrap()),
            denied_log_rate: 5,
        },
        api: None,
        crypto: config::model::Crypto::default(),
        fast_path: Some(FastPath::default()),
        ports: BTreeMap::new(),
        vlans: vlans.into_iter().map(|vlan| (vlan.name.clone(), vlan)).collect(),
        hosts: hosts.into_iter().map(|host| (host.name.clone(), host)).collect(),
        services: BTreeMap::new(),
        egress: BTreeMap::new(),
        cells: vec![cell("compute", "dev", 40)],
        wans: wans.into_iter().map(|wan| (wan.name.clone(), wan)).collect(),
        policies: BTreeMap::from([("balanced".parse().unwrap(), policy())]),
        steering: Vec::new(),
        asserts: Vec::new(),
        syslog: Vec::new(),
        webhooks: Vec::new(),
        hooks: Vec::new(),
        dns: None,
        tls_offload: BTreeMap::new(),
        dhcp: None,
        ra: None,
        ntp: None,
        pair: None,
    }
}

pub(crate) fn cell(from: &str, to: &str, line: u32) -> Cell {
    let mut ports = PortSet::default();
    ports.tcp.push(443..=443);
    Cell {
        name: format!("{from}->{to}"),
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        allow: Allow::Services(vec![Permit { service: "https".parse().unwrap(), ports, hosts: None, sources: None }]),
        from_hosts: None,
        to_hosts: None,
        log: false,
        enabled: true,
        comment: String::new(),
        line: Line(line),
    }
}

fn vlan(name: &str, id: u16, internet: Internet, line: u32) -> Vlan {
    Vlan {
        name: name.parse().unwrap(),
        id: VlanId::new(id).unwrap(),
        interface: format!("vlan{id}").parse().unwrap(),
        addresses: vec![format!("10.10.{id}.1/24").parse().unwrap()],
        delegated: None,
        internet,
        input: Vec::new(),
        comment: String::new(),
        line: Line(line),
        internet_line: Line(line + 2),
        input_line: Line(line + 3),
        tunnel: None,
    }
}

fn host(name: &str, vlan: &str, address: &str) -> Host {
    Host {
        name: name.parse().unwrap(),
        vlan: Some(vlan.parse().unwrap()),
        addresses: vec![address.parse().unwrap()],
        comment: String::new(),
        line: Line(30),
    }
}

pub(crate) fn wan(name: &str, id: u8) -> Wan {
    let one = NonZeroU8::new(1).unwrap();
    Wan {
        name: name.parse().unwrap(),
        id: WanId::new(id).unwrap(),
        interface: name.parse().unwrap(),
        method: config::model::Method::Static,
        addressing: Addressing {
            addresses: vec![format!("100.64.{id}.2/24").parse().unwrap()],
            gateway4: Some(format!("100.64.{id}.1").parse().unwrap()),
            gateway6: None,
            routes: Vec::new(),
            delegated: Vec::new(),
        },
        mtu: None,
        weight: Weight(one),
        download: None,
        upload: None,
        nat6: Nat6::None,
        input: Vec::new(),
        bogons: false,
        probe: Probing {
            targets: vec![Target {
                family: Family::V4,
                kind: TargetKind::Icmp { address: "198.51.100.1".parse().unwrap() },
            }],
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(100),
            fall: one,
            rise: one,
            quorum: one,
            window: 10,
            loss: None,
            latency: None,
            jitter: None,
            hold: Duration::ZERO,
            hold_max: Duration::ZERO,
        },
        comment: String::new(),
        line: Line(50),
    }
}

fn policy() -> Policy {
    let member =
        |wan: &str| Member { wan: wan.parse().unwrap(), weight: Weight(NonZeroU8::new(1).unwrap()), tier: Tier(0) };
    Policy {
        name: "balanced".parse().unwrap(),
        id: PolicyId(1),
        members: vec![member("wan1"), member("wan2")],
        balance: Balance::Flow,
        last_resort: LastResort::Unreachable,
        failback: Failback::Stay,
        kick: Kick::All,
        comment: String::new(),
        line: Line(60),
    }
}

/// wan1 is up, wan2 is down and drained.
pub(crate) fn view() -> View {
    let now = Time::from_micros(7_500_000_000);
    let mut up = line(Health::Up, 100.0, Some(Duration::from_micros(12_340)));
    up.gateway_mac = Some([2, 0, 0, 0, 0, 1]);
    up.lease = Some(LeaseStatus {
        lease: Some(Lease {
            addresses: vec!["100.64.1.2/24".parse().unwrap()],
            gateway: Some("100.64.1.1".parse().unwrap()),
            mtu: Some(1492),
            dns: vec!["100.64.1.1".parse().unwrap()],
            ..Lease::default()
        }),
        until: Some(now + Duration::from_hours(1)),
        since: Some(now - Duration::from_mins(5)),
        why: None,
    });
    let mut down = line(Health::Down, 0.0, None);
    down.since = now - Duration::from_secs(14);
    down.why = "1 of 1 targets silent: icmp 198.51.100.1".to_owned();
    down.failovers = 3;
    let uses = BTreeMap::from([(Family::V4, vec![LineUse { wan: "wan1".parse().unwrap(), buckets: 256 }])]);
    View {
        config: Some(Arc::new(config())),
        text: Arc::from("[site]\n"),
        wanted: None,
        snapshot: Snapshot {
            now,
            settled: true,
            wans: vec![wan_status("wan1", 1, false, up), wan_status("wan2", 2, true, down)],
            policies: vec![PolicyStatus {
                name: "balanced".parse().unwrap(),
                uses,
                last_resort_active: BTreeMap::new(),
            }],
            isp_outage: BTreeMap::new(),
            audits: BTreeMap::from([(
                "compute->dev".parse().unwrap(),
                Audit { until: now + Duration::from_mins(9), span: Duration::from_mins(10) },
            )]),
        },
        decision: Decision::default(),
        applies: Applies {
            current: true,
            succeeded: 4,
            failed: 1,
            drift_repaired: 2,
            failing: None,
            waiting: vec!["port lan3: no interface at PCI 0000:03:00, function 2".to_owned()],
            unlike_file: None,
            pending: None,
            rollbacks: BTreeMap::new(),
            rolled_back: None,
        },
    }
}

/// ssh from dev1 to worker3.
pub(crate) fn denied() -> Denied {
    let logged = Logged {
        prefix: "qw forward".to_owned(),
        in_interface: Some("vlan50".parse().unwrap()),
        out_interface: Some("vlan60".parse().unwrap()),
        payload: packet::tests::ipv4(6, &[4, 0, 0, 22]),
    };
    event_log::name(&config(), &logged, SystemTime::UNIX_EPOCH).unwrap()
}

pub(crate) fn counters() -> Counters {
    let pair = |from: &str, to: &str| (from.parse().unwrap(), to.parse().unwrap());
    let wan = |id| WanId::new(id).unwrap();
    Counters {
        audited: BTreeMap::from([(pair("vlan60", "vlan50"), Count { packets: 3, bytes: 180 })]),
        denied: BTreeMap::from([(pair("vlan50", "vlan60"), Count { packets: 42, bytes: 2520 })]),
        allowed: BTreeMap::from([
            (pair("vlan60", "vlan50"), Count { packets: 7, bytes: 420 }),
            (pair("vlan60", "wan1"), Count { packets: 1200, bytes: 72_000 }),
        ]),
        invalid: BTreeMap::from([(pair("vlan60", "wan1"), Count { packets: 3, bytes: 120 })]),
        denied_input: BTreeMap::from([("vlan50".parse().unwrap(), Count { packets: 9, bytes: 540 })]),
        spoofed: BTreeMap::from([("vlan50".parse().unwrap(), Count { packets: 1, bytes: 60 })]),
        chosen: BTreeMap::from([(wan(1), Count { packets: 1200, bytes: 72_000 })]),
        flows: BTreeMap::from([((wan(1), Family::V4), 118)]),
        links: BTreeMap::from([(
            "wan1".parse().unwrap(),
            LinkCount {
                up: true,
                carrier: true,
                speed_megabits: Some(1000),
                received: Count { packets: 9_000, bytes: 7_000_000 },
                sent: Count { packets: 4_000, bytes: 400_000 },
                receive_errors: 1,
                neighbours: 1,
                ..LinkCount::default()
            },
        )]),
        conntrack: Some(Conntrack { entries: 131, limit: 262_144 }),
        fast_path: FastCount {
            on: true,
            reason: None,
            ports: BTreeMap::from([
                ("eth0".parse().unwrap(), FastPort { asked: PortMode::Tcx, mode: Some(PortMode::Tcx), why: None }),
                (
                    "eth1".parse().unwrap(),
                    FastPort {
                        asked: PortMode::Xdp,
                        mode: Some(PortMode::Tcx),
                        why: Some("the driver has none".to_owned()),
                    },
                ),
            ]),
            flows: BTreeMap::from([(Family::V4, 90), (Family::V6, 0)]),
            capacity: 262_144,
            memory_bytes: 96_468_992,
            verdicts: BTreeMap::from([("no_flow".to_owned(), Count { packets: 5000, bytes: 300_000 })]),
            lines: BTreeMap::from([(
                (wan(1), Family::V4),
                LineCount {
                    sent: Count { packets: 900, bytes: 65_000 },
                    received: Count { packets: 1100, bytes: 1_300_000 },
                },
            )]),
            denied: BTreeMap::from([
                ((ZoneId(2), ZoneId::OUTSIDE), Count { packets: 4, bytes: 240 }),
                ((ZoneId(2), ZoneId(2)), Count { packets: 2, bytes: 120 }),
            ]),
            fed: Fed::default(),
        },
    }
}

/// One with everything there is to tell.
pub(crate) fn tls_offload() -> Vec<OffloadLine> {
    let handshakes = [("1.2", "full", 1), ("1.3", "full", 7), ("1.3", "resumed", 30)];
    let handshakes = handshakes.map(|(version, kind, count)| HandshakeCount {
        version: version.to_owned(),
        kind: kind.to_owned(),
        count,
    });
    let backend = |address: &str, up: bool| BackendLine {
        address: address.to_owned(),
        up,
        connections: 2,
        served: 19,
        failed: u64::from(!up) * 3,
        trouble: (!up).then(|| "cannot connect: Connection refused (os error 111)".to_owned()),
    };
    vec![OffloadLine {
        name: "shop".to_owned(),
        listen: vec![ListenLine { address: "10.0.10.1:443".to_owned(), trouble: None }],
        open_to_wan: vec!["wan1".to_owned()],
        trouble: Some("/etc/quadway/tls/shop.key cannot be read: No such file or directory (os error 2)".to_owned()),
        certificates: vec![CertificateLine {
            names: vec!["shop.example.org".to_owned()],
            expires: Some(978_307_200),
            expired: true,
        }],
        connections: 4,
        connections_limit: 10_000,
        accepted: 40,
        handshakes: handshakes.into(),
        refused: BTreeMap::from([("handshake-rate".to_owned(), 3), ("unknown-name".to_owned(), 2)]),
        received_bytes: 12_000,
        sent_bytes: 340_000,
        backends: vec![backend("10.0.10.20:8080", true), backend("10.0.10.21:8080", false)],
        signatures: vec![SignatureCount { engine: "cpu".to_owned(), fallback: "no-device".to_owned(), count: 8 }],
        kernel_tls: "not used".to_owned(),
    }]
}

/// One of each state that an operator sees for longer than a moment.
pub(crate) fn components() -> Vec<ComponentLine> {
    let line = |name: &str, state, restarts, why: Option<&str>| ComponentLine {
        name: name.to_owned(),
        state,
        since_seconds: 7503.0,
        restarts,
        why: why.map(str::to_owned),
    };
    let missing = "there is no chronyd: apt install chrony";
    vec![
        line("chrony", ComponentState::Failed, 3, Some(missing)),
        line("kea-dhcp4", ComponentState::Running, 1, Some("it runs with its previous files: it does not answer")),
        line("radvd", ComponentState::Running, 0, None),
    ]
}

pub(crate) fn leases() -> Vec<LeaseLine> {
    let line = |family, leases, pool_used, pool_size| LeaseLine {
        vlan: "dev".to_owned(),
        family,
        leases,
        pool_used,
        pool_size,
    };
    vec![line(Family::V4, 14, 12, 100), line(Family::V6, 2, 0, 0)]
}

/// One of each kind: one goes by its second line, the other waits to be called.
pub(crate) fn tunnels() -> Vec<TunnelLine> {
    let line = |name: &str, kind: &str, state| TunnelLine {
        name: name.to_owned(),
        kind: kind.to_owned(),
        state,
        ..TunnelLine::default()
    };
    vec![
        TunnelLine {
            wan: Some("wan2".to_owned()),
            peer: Some("198.51.100.50".to_owned()),
            cipher: Some("AES_GCM_16-256".to_owned()),
            received_bytes: 1_200_000,
            sent_bytes: 340_000,
            received_packets: 1_000,
            sent_packets: 400,
            since_seconds: Some(75.0),
            rekey_seconds: Some(3300.0),
            moves: 1,
            ..line("branch", "ipsec", TunnelState::Up)
        },
        TunnelLine {
            open: vec!["wan1".to_owned()],
            why: Some("/etc/quadway/depot.key cannot be read".to_owned()),
            since_seconds: Some(200.0),
            wan: Some("wan1".to_owned()),
            ..line("depot", "wireguard", TunnelState::Failed)
        },
    ]
}

pub(crate) fn pair() -> PairLine {
    PairLine {
        node: "left".to_owned(),
        active: true,
        since_seconds: 7500.0,
        peer: "right".to_owned(),
        peer_heard_seconds: Some(0.1),
        peer_active: Some(false),
        same_config: Some(true),
        peer_config: Some("0123456789abcdef".to_owned()),
        difference: None,
        split_brain: false,
        away_seconds: None,
        sync: Some(SyncFlows { flows: 472, packets_sent: 9000, packets_received: 800, errors: 0 }),
        trouble: None,
    }
}

pub(crate) fn clock() -> ClockStatus {
    let server = Some("192.0.2.123".to_owned());
    ClockStatus { synchronised: true, stratum: 3, offset_seconds: -0.000_123, server }
}

/// A card of two instances, one of which does not do X25519 and restarts.
pub(crate) fn crypto() -> CryptoStatus {
    let instance = |device, x25519| CryptoInstance {
        name: "SSL0".to_owned(),
        device,
        simulator: false,
        part: "c6xx".to_owned(),
        version: "1.0".to_owned(),
        node: 0,
        state: if x25519 { "in use" } else { "restarting" }.to_owned(),
        in_flight: 3,
        tests: BTreeMap::from([("RSA-2048 private".to_owned(), true), ("X25519".to_owned(), x25519)]),
        answered: 4_212,
        late: 1,
        retries: 7,
        restarts: 2,
        resets: u64::from(!x25519),
    };
    CryptoStatus {
        missing: None,
        steps: vec![
            CryptoStep { what: "card".to_owned(), found: true, text: "0000:3d:00.0, 0000:3f:00.0".to_owned() },
            CryptoStep { what: "kernel crypto".to_owned(), found: false, text: "the kernel has none".to_owned() },
        ],
        instances: vec![instance(0, true), instance(1, false)],
        batches: vec![CryptoBatch {
            operation: "RSA-2048 private".to_owned(),
            library: "crypto_mb".to_owned(),
            in_use: true,
            width: 8,
            batches: 5,
            operations: 31,
        }],
        operations: vec![CryptoOperation {
            operation: "RSA-2048 private".to_owned(),
            offloaded: 4_180,
            batched: 31,
            cpu: BTreeMap::from([("cheaper".to_owned(), 96), ("deadline".to_owned(), 1)]),
            refused: 0,
        }],
        choices: vec![CryptoChoice {
            operation: "RSA-2048 private".to_owned(),
            below_bytes: 0,
            in_flight: 8,
            cpu_seconds: 0.000_61,
            offload_seconds: 0.000_04,
            choice: Some("qat".to_owned()),
        }],
        latencies: vec![CryptoLatency {
            operation: "RSA-2048 private".to_owned(),
            engine: "qat".to_owned(),
            p50_seconds: 0.000_4,
            p99_seconds: 0.001_1,
        }],
    }
}

/// A collector that is away.
pub(crate) fn spreads() -> Vec<SpreadLine> {
    let connections = [("wan1", 2), ("wan2", 1), ("wan3", 1)].map(|(line, count)| (line.to_owned(), count));
    vec![SpreadLine {
        policy: "tunnel".to_owned(),
        client: "10.10.99.10".to_owned(),
        connections: connections.into(),
        free: vec!["wan4".to_owned()],
    }]
}

pub(crate) fn dns() -> DnsLine {
    DnsLine {
        listen: vec!["10.10.10.1:53".to_owned(), "10.10.20.1:53".to_owned()],
        upstreams: vec!["192.0.2.53:853 over TLS as dns.example".to_owned()],
        hosts: 12,
        questions: 4180,
        own: 310,
        failed: 2,
        stale: 1,
        dropped: 0,
        rebound: 3,
        granted: 77,
        named: [("azure-arc".to_owned(), 41), ("cloudflared".to_owned(), 20)].into(),
        trouble: None,
    }
}

pub(crate) fn outlets() -> Vec<OutletLine> {
    vec![OutletLine {
        kind: "syslog".to_owned(),
        to: "10.0.40.10:6514".to_owned(),
        told: 12,
        failed: 2,
        dropped: 1,
        waiting: 3,
        trouble: Some("cannot connect: Connection refused (os error 111)".to_owned()),
    }]
}

fn wan_status(name: &str, id: u8, drained: bool, line: LineStatus) -> WanStatus {
    WanStatus {
        name: name.parse().unwrap(),
        id: WanId::new(id).unwrap(),
        interface: name.parse().unwrap(),
        carrier: true,
        drained,
        fail_test_until: None,
        families: BTreeMap::from([(Family::V4, line)]),
    }
}

fn line(health: Health, share: f64, rtt: Option<Duration>) -> LineStatus {
    LineStatus {
        health,
        since: Time::ZERO,
        why: "1 of 1 targets answer".to_owned(),
        usable: rtt.is_some(),
        share,
        flaps: 0,
        hold_until: None,
        failovers: 0,
        probes_sent: 100,
        probes_lost: 0,
        targets: vec![TargetStatus {
            target: "icmp 198.51.100.1".to_owned(),
            index: 0,
            up: Some(rtt.is_some()),
            bad: false,
            degraded: false,
            sent: 100,
            answered: 100,
            lost: 0,
            late: 0,
            rtt_last: rtt,
            rtt_mean: rtt,
            rtt_min: rtt,
            rtt_max: rtt,
            jitter: rtt.map(|rtt| rtt / 10),
            loss_pct: if rtt.is_some() { 0.0 } else { 100.0 },
        }],
        lease: None,
        gateway_mac: None,
        changed: None,
        lost: None,
    }
}
