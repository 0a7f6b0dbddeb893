//! The customer's site in the lab, with routerd: what real packets do equals what the file says.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use config::Config;
use config::model::Allow;
use config::units::VlanName;
use mwan::matrix::{self, Packet, Protocol};
use tests::demo::{site, way_out};
use tests::lab::{Lab, Temporary};
use tests::netns::run;
use tests::site::{TARGETS4, TARGETS6, unserved};
use tests::traffic::{Probe, distribution, probe, probe_all};

const SITE: &str = include_str!("../../config/examples/spectrum-site.toml");
const WEIGHTED: &str = include_str!("../../config/examples/minimal.toml");

/// Acceptance 1 of the router's issue: the shares of the lines are their weights, within five points.
#[test]
fn connections_spread_over_four_lines_by_weight() {
    // wan1 weighs 3; the three others 1.
    let Some(lab) = Temporary::routed(WEIGHTED, 4, false).unwrap() else { return };
    shares(&lab, &[3, 1, 1, 1], TARGETS4[0].into());
    shares(&lab, &[3, 1, 1, 1], TARGETS6[0].into());
}

#[test]
fn connections_spread_over_four_lines_with_the_same_gateway() {
    let Some(lab) = Temporary::routed(&unserved(SITE).unwrap(), 4, true).unwrap() else { return };
    shares(&lab, &[1, 1, 1, 1], TARGETS4[0].into());
}

#[test]
fn six_lines_share_as_four_do() {
    let Some(lab) = Temporary::routed(&unserved(SITE).unwrap(), 6, false).unwrap() else { return };
    shares(&lab, &[1, 1, 1, 1, 1, 1], TARGETS4[0].into());
}

/// Acceptance 2: every ordered pair of VLANs × {tcp, udp, icmp} × {IPv4, IPv6} × {listed, unlisted}, between all
/// documented hosts. The packets agree with the matrix, the counters with the packets, and every pair with a denial
/// is named by `routerctl denied`.
#[test]
fn real_packets_agree_with_the_matrix_cell_by_cell() {
    let Some(lab) = Temporary::routed(&unserved(SITE).unwrap(), 4, false).unwrap() else { return };
    let config = site(&lab).unwrap();
    let vlans = &lab.site().vlans;
    // Neighbours are found before anything is counted.
    for vlan in vlans {
        for gateway in &vlan.gateways {
            probe(&lab.host(vlan.id), None, gateway.addr(), Probe::Ping, Duration::from_millis(300)).unwrap();
        }
    }

    let mut pairs = BTreeSet::new();
    let mut denied: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut count = 0;
    let before = counters(&lab);
    for from in vlans {
        // All probes of one namespace at once; the denied ones cost their patience.
        let mut asked = Vec::new();
        for to in vlans.iter().filter(|to| to.name != from.name) {
            pairs.insert((from.name.clone(), to.name.clone()));
            let kinds = kinds(&config, &from.name, &to.name);
            for source in from.addresses.iter().map(ipnet::IpNet::addr) {
                let same_family = |address: &IpAddr| address.is_ipv4() == source.is_ipv4();
                for destination in to.addresses.iter().map(ipnet::IpNet::addr).filter(same_family) {
                    asked.extend(kinds.iter().map(|kind| (Some(source), destination, *kind, to)));
                }
            }
        }
        let probes: Vec<_> = asked.iter().map(|(source, to, kind, _)| (*source, *to, *kind)).collect();
        let answers = probe_all(&lab.host(from.id), &probes, Duration::from_millis(400)).unwrap();
        for ((source, destination, kind, to), mut answer) in asked.into_iter().zip(answers) {
            count += 1;
            let packet = Packet::new(&config, source.unwrap(), destination, protocol(kind));
            let verdict = matrix::verdict(&config, &packet);
            if verdict.allowed && !answer.is_open() {
                // A shared machine may be slow; a packet that is allowed arrives with patience.
                answer = probe(&lab.host(from.id), source, destination, kind, Duration::from_secs(3)).unwrap();
            }
            if !verdict.allowed {
                *denied.entry((from.name.clone(), to.name.clone())).or_default() += 1;
            }
            if verdict.allowed != answer.is_open() {
                wrong.push(format!(
                    "{} {source:?} -> {} {destination} {kind:?}: {answer:?}, {verdict:?}",
                    from.name, to.name
                ));
            }
        }
    }
    assert_eq!(pairs.len(), 42);
    assert!(wrong.is_empty(), "{} of {count} packets are wrong:\n{}", wrong.len(), wrong.join("\n"));

    let after = counters(&lab);
    let counted: BTreeMap<_, _> = after
        .into_iter()
        .map(|(cell, packets)| (cell.clone(), packets - before.get(&cell).copied().unwrap_or_default()))
        .filter(|(_, packets)| *packets > 0)
        .collect();
    assert_eq!(counted, denied, "counters and packets");

    let log = run(lab.routerctl().unwrap().args(["denied", "--json"])).unwrap();
    for (from, to) in &pairs {
        let cell = format!("{from}->{to}");
        let expected = denied.contains_key(&(from.clone(), to.clone()));
        assert!(!expected || log.contains(&cell), "{cell} is not in the log of denials");
    }
    println!("{count} packets in {} cells, {} of them denied", pairs.len(), denied.values().sum::<u64>());
}

/// The ports that the entries of a pair list, and some that none of them does.
fn kinds(config: &Config, from: &str, to: &str) -> BTreeSet<Probe> {
    let is = |name: &VlanName, text: &str| name.as_str() == text;
    let mut kinds = BTreeSet::from([Probe::Ping, Probe::Tcp(4444), Probe::Udp(4444), Probe::Tcp(443)]);
    for cell in config.cells.iter().filter(|cell| is(&cell.from, from) && is(&cell.to, to)) {
        if let Allow::Services(permits) = &cell.allow {
            for permit in permits {
                kinds.extend(permit.ports.tcp.iter().map(|range| Probe::Tcp(*range.start())));
                kinds.extend(permit.ports.udp.iter().map(|range| Probe::Udp(*range.start())));
            }
        }
    }
    kinds
}

fn protocol(kind: Probe) -> Protocol {
    match kind {
        // The source port is the kernel's choice, and no entry asks for it.
        Probe::Tcp(destination) => Protocol::Tcp { source: 40_000, destination },
        Probe::Udp(destination) => Protocol::Udp { source: 40_000, destination },
        Probe::Ping => Protocol::Ping,
    }
}

/// The denied packets of every cell: those that the ruleset dropped, and those that were dropped at their port.
fn counters(lab: &Lab) -> BTreeMap<(String, String), u64> {
    let status = run(lab.routerctl().unwrap().args(["status", "--json"])).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let cell =
        |cell: &serde_json::Value| ((word(&cell["from"]), word(&cell["to"])), cell["denied_packets"].as_u64().unwrap());
    status["cells"].as_array().unwrap().iter().map(cell).collect()
}

/// Opens 2,000 connections and compares the share of each line with its weight.
fn shares(lab: &Lab, weights: &[u8], target: IpAddr) {
    let config = site(lab).unwrap();
    let (vlan, port) = way_out(&config).unwrap();
    let seen = distribution(&lab.host(vlan.id.get()), SocketAddr::new(target, port), 2000).unwrap();
    let total: u8 = weights.iter().sum();
    for (wan, weight) in lab.site().wans.iter().zip(weights) {
        let own: IpAddr = if target.is_ipv4() { wan.router4.addr().into() } else { wan.router6.addr().into() };
        let share = f64::from(u32::try_from(seen.get(&own).copied().unwrap_or_default()).unwrap()) / 2000.0;
        let wanted = f64::from(*weight) / f64::from(total);
        println!("{}: {:.1} % of connections, {:.1} % of the weight", wan.name, share * 100.0, wanted * 100.0);
        assert!((share - wanted).abs() <= 0.05, "{}: {share} instead of {wanted}; {seen:?}", wan.name);
    }
    assert_eq!(seen.values().sum::<usize>(), 2000);
}
