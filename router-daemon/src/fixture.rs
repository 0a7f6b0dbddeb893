//! A small site for the tests of this crate: two segments, two lines, one cell.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;
use std::time::Duration;

use config::Config;
use config::model::{
    Addressing, Allow, Balance, Cell, Failback, Host, Internet, Kick, LastResort, Member, Nat6, Permit, Policy,
    PortSet, Probing, Router, Target, TargetKind, Vlan, Wan,
};
use config::units::{Family, Line, PolicyId, Tier, VlanId, WanId, Weight};

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
    }
}

pub(crate) fn cell(from: &str, to: &str, line: u32) -> Cell {
    let mut ports = PortSet::default();
    ports.tcp.push(443..=443);
    Cell {
        name: format!("{from}->{to}"),
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        allow: Allow::Services(vec![Permit { service: "https".parse().unwrap(), ports, hosts: None }]),
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
        internet,
        input: Vec::new(),
        comment: String::new(),
        line: Line(line),
        internet_line: Line(line + 2),
        input_line: Line(line + 3),
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
        addressing: Addressing {
            addresses: vec![format!("100.64.{id}.2/24").parse().unwrap()],
            gateway4: Some(format!("100.64.{id}.1").parse().unwrap()),
            gateway6: None,
        },
        mtu: None,
        weight: Weight(one),
        nat6: Nat6::None,
        input: Vec::new(),
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
