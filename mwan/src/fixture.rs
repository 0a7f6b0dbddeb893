//! Sites for the unit tests of this crate, built by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;
use std::time::Duration;

use config::Config;
use config::model::{
    AddressSet, Addressing, Allow, Balance, Cell, EgressSet, Failback, FastPath, Host, Internet, Kick, LastResort,
    Member, Nat6, Permit, Policy, Port, PortFind, PortPath, PortRole, PortSet, Probing, Router, Steer, Vlan, Wan,
};
use config::units::{Line, PolicyId, Tier, VlanId, WanId, Weight};
use ipnet::IpNet;

use crate::decide::Decision;
use crate::links::{LinkFacts, Links};
use crate::state::{BUCKETS, BucketKey, Buckets, Slot};

/// Three VLANs, two lines with both families, two policies; see the tests for what is allowed.
///
/// - `office` (10, any Internet) may print on 10.0.20.5 in `guests` and ping it, IPv4 only;
/// - `guests` (20, web only) may nothing;
/// - `servers` (30, no Internet) may everything in `guests`.
pub(crate) fn site() -> Config {
    let vlan = |name: &str, id: u16, internet, line| Vlan {
        name: name.parse().unwrap(),
        id: VlanId::new(id).unwrap(),
        interface: format!("vlan{id}").parse().unwrap(),
        addresses: vec![net(&format!("10.0.{id}.1/24")), net(&format!("fd00:{id}::1/64"))],
        delegated: None,
        internet,
        input: vec![Permit {
            service: "dns".parse().unwrap(),
            ports: ports(&[53], &[53], true),
            hosts: None,
            sources: None,
        }],
        comment: String::new(),
        line: Line(line),
        internet_line: Line(line + 1),
        input_line: Line(line + 2),
        tunnel: None,
    };
    let vlans = [
        vlan("office", 10, Internet::Any, 10),
        vlan("guests", 20, Internet::Sets(BTreeSet::from(["web".parse().unwrap()])), 20),
        vlan("servers", 30, Internet::None, 30),
    ];
    let wans = [wan(1), wan(2)];
    let policies =
        [policy("balanced", 1, &[("wan1", 0), ("wan2", 0)]), policy("backup", 2, &[("wan2", 0), ("wan1", 1)])];
    let port = |name: &str, role| Port {
        name: name.parse().unwrap(),
        find: PortFind::Name(name.parse().unwrap()),
        role,
        fast_path: PortPath::Auto,
        comment: String::new(),
        line: Line(40),
    };
    let trunk = PortRole::Trunk {
        native: Some("guests".parse().unwrap()),
        tagged: BTreeSet::from(["servers".parse().unwrap()]),
    };
    let ports_ = [
        port("eth0", PortRole::Wan("wan1".parse().unwrap())),
        port("eth1", PortRole::Wan("wan2".parse().unwrap())),
        port("eth2", PortRole::Access("office".parse().unwrap())),
        port("eth3", trunk),
    ];
    Config {
        site: "fixture".to_owned(),
        digest: "0".repeat(64),
        router: Router {
            metrics: None,
            default_policy: Some("balanced".parse().unwrap()),
            own_policy: Some("balanced".parse().unwrap()),
            denied_log_rate: 20,
        },
        api: None,
        crypto: config::model::Crypto::default(),
        fast_path: Some(FastPath::default()),
        ports: ports_.into_iter().map(|port| (port.name.clone(), port)).collect(),
        vlans: vlans.into_iter().map(|vlan| (vlan.name.clone(), vlan)).collect(),
        hosts: BTreeMap::from([(
            "printer".parse().unwrap(),
            Host {
                name: "printer".parse().unwrap(),
                vlan: Some("guests".parse().unwrap()),
                addresses: vec!["10.0.20.5".parse().unwrap()],
                comment: String::new(),
                line: Line(50),
            },
        )]),
        services: BTreeMap::new(),
        egress: BTreeMap::from([(
            "web".parse().unwrap(),
            EgressSet {
                name: "web".parse().unwrap(),
                to: None,
                ports: ports(&[80, 443], &[443], false),
                named: Vec::new(),
                line: Line(55),
            },
        )]),
        cells: vec![
            Cell {
                name: "office->guests".to_owned(),
                from: "office".parse().unwrap(),
                to: "guests".parse().unwrap(),
                allow: Allow::Services(vec![
                    Permit {
                        service: "print".parse().unwrap(),
                        ports: ports(&[631], &[], false),
                        hosts: None,
                        sources: None,
                    },
                    Permit {
                        service: "ping".parse().unwrap(),
                        ports: ports(&[], &[], true),
                        hosts: None,
                        sources: None,
                    },
                ]),
                from_hosts: None,
                to_hosts: Some(addresses(&["10.0.20.5/32"])),
                log: true,
                enabled: true,
                comment: String::new(),
                line: Line(60),
            },
            Cell {
                name: "servers->guests".to_owned(),
                from: "servers".parse().unwrap(),
                to: "guests".parse().unwrap(),
                allow: Allow::Any,
                from_hosts: None,
                to_hosts: None,
                log: false,
                enabled: true,
                comment: String::new(),
                line: Line(65),
            },
        ],
        wans: wans.into_iter().map(|wan| (wan.name.clone(), wan)).collect(),
        policies: policies.into_iter().map(|policy| (policy.name.clone(), policy)).collect(),
        steering: vec![Steer {
            name: "voice".to_owned(),
            from: Some(BTreeSet::from(["office".parse().unwrap()])),
            source: None,
            destination: Some(addresses(&["192.0.2.0/24"])),
            source_ports: None,
            ports: Some(ports(&[], &[5060, 5061], false)),
            policy: "backup".parse().unwrap(),
            line: Line(70),
        }],
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

pub(crate) fn wan(id: u8) -> Wan {
    Wan {
        name: format!("wan{id}").parse().unwrap(),
        id: WanId::new(id).unwrap(),
        interface: format!("eth{}", id - 1).parse().unwrap(),
        method: config::model::Method::Static,
        addressing: Addressing {
            addresses: vec![net(&format!("100.64.{id}.2/24")), net(&format!("2001:db8:ff{id:02}::2/64"))],
            gateway4: Some(format!("100.64.{id}.1").parse().unwrap()),
            gateway6: Some(format!("2001:db8:ff{id:02}::1").parse().unwrap()),
            routes: Vec::new(),
            delegated: Vec::new(),
        },
        mtu: None,
        weight: Weight(NonZeroU8::MIN),
        download: None,
        upload: None,
        nat6: Nat6::Masquerade,
        input: Vec::new(),
        bogons: false,
        probe: Probing {
            targets: Vec::new(),
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(100),
            fall: NonZeroU8::MIN,
            rise: NonZeroU8::MIN,
            quorum: NonZeroU8::MIN,
            window: 10,
            loss: None,
            latency: None,
            jitter: None,
            hold: Duration::ZERO,
            hold_max: Duration::ZERO,
        },
        comment: String::new(),
        line: Line(100 + u32::from(id)),
    }
}

pub(crate) fn policy(name: &str, id: u8, members: &[(&str, u8)]) -> Policy {
    let member = |(wan, tier): &(&str, u8)| Member {
        wan: wan.parse().unwrap(),
        weight: Weight(NonZeroU8::MIN),
        tier: Tier(*tier),
    };
    Policy {
        name: name.parse().unwrap(),
        id: PolicyId(id),
        members: members.iter().map(member).collect(),
        balance: Balance::Flow,
        last_resort: LastResort::Unreachable,
        failback: Failback::Stay,
        kick: Kick::All,
        comment: String::new(),
        line: Line(80),
    }
}

/// Every policy over all lines in turn; the router's own flows by the first.
pub(crate) fn decision(config: &Config) -> Decision {
    let lines: Vec<_> = config.wans.values().map(|wan| Slot::Wan(wan.id)).collect();
    let mut decision = Decision::default();
    for family in config::units::Family::ALL {
        for policy in config.policies.keys() {
            let slots = lines.iter().copied().cycle().take(BUCKETS).collect();
            decision.buckets.insert(BucketKey { policy: policy.clone(), family }, Buckets(slots));
        }
        if let Some(wan) = config.wans.values().next() {
            decision.own.insert(family, wan.id);
        }
    }
    decision
}

/// Ethernet ports of these names, all with carrier.
pub(crate) fn ethernet(names: &[&str]) -> Links {
    let facts = |index| LinkFacts {
        index,
        admin_up: true,
        carrier: true,
        mac: None,
        mtu: 1500,
        master: None,
        driver: Some("igb".to_owned()),
        pci: Some(format!("0000:01:00.{index}")),
        ours: false,
    };
    Links((0..).zip(names).map(|(index, name)| (name.parse().unwrap(), facts(index))).collect())
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn addresses(nets: &[&str]) -> AddressSet {
    let mut set = AddressSet::default();
    for text in nets {
        set.add(net(text));
    }
    set
}

pub(crate) fn ports(tcp: &[u16], udp: &[u16], ping: bool) -> PortSet {
    let mut set = PortSet { ping, ..PortSet::default() };
    let single = PortSet {
        tcp: tcp.iter().map(|port| *port..=*port).collect(),
        udp: udp.iter().map(|port| *port..=*port).collect(),
        ..PortSet::default()
    };
    set.merge(&single);
    set
}
