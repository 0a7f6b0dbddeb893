//! Tunnels: what they open, where their packets go, and that what is behind one never leaves by a line.

#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::time::Duration;

use config::units::TableId;
use mwan::decide::{Chooser, Facts, Standing, Standings};
use mwan::event::Health;
use mwan::matrix::{Packet, Protocol, verdict};
use mwan::time::Time;

use super::*;

const MINIMAL: &str = include_str!("../../../config/examples/minimal.toml");
const BRANCH: &str = "[ipsec.branch]\nremote = \"198.51.100.50\"\nlocal_id = \"hq\"\nremote_id = \"branch\"\n\
    psk = \"/k\"\nlocal_networks = [\"10.0.10.0/24\"]\nremote_networks = [\"10.9.0.0/24\"]\nwans = [\"fibre\", \"cable\"]\n";
const CELL: &str = "[[cell]]\nfrom = \"office\"\nto = \"branch\"\nservices = [\"tcp/80\"]\n";

fn site(more: &str) -> Config {
    let lines = parsed(MINIMAL).wans.keys().map(ToString::to_string).collect::<Vec<_>>();
    let text = format!("{MINIMAL}{BRANCH}{more}{CELL}");
    parsed(&text.replace("\"fibre\", \"cable\"", &format!("\"{}\", \"{}\"", lines[0], lines[1])))
}

fn judged(site: &Config, source: &str, destination: &str, protocol: Protocol) -> (bool, String) {
    let packet = Packet::new(site, source.parse().unwrap(), destination.parse().unwrap(), protocol);
    let verdict = verdict(site, &packet);
    (verdict.allowed, verdict.reason.to_string())
}

fn tcp(destination: u16) -> Protocol {
    Protocol::Tcp { source: 40_000, destination }
}

#[test]
fn nothing_passes_a_tunnel_but_what_a_cell_allows() {
    let site = site("");
    let line = site.cells.last().unwrap().line;
    let allowed = format!("cell office -> branch, entry `office->branch` ({line}), service tcp/80");
    assert_eq!(judged(&site, "10.0.10.7", "10.9.0.5", tcp(80)), (true, allowed));
    for (source, destination, port) in
        [("10.0.10.7", "10.9.0.5", 81), ("10.9.0.5", "10.0.10.7", 80), ("10.9.0.5", "10.9.0.6", 80)]
    {
        let (allowed, why) = judged(&site, source, destination, tcp(port));
        assert!(!allowed && why.contains("default deny"), "{source} {destination}: {why}");
    }
    assert!(!judged(&site, "10.9.0.5", "203.0.113.9", tcp(443)).0, "it is no way to the Internet");
    assert!(!judged(&site, "10.9.0.5", "10.0.10.1", tcp(22)).0, "nor to the router");
}

#[test]
fn a_tunnel_compiles_to_rules_of_its_own() {
    let state = compile(&site(""), &even(&site("")), &Links::default());
    let RulesetState::Installed(ruleset) = &state.ruleset else { panic!("no ruleset") };
    assert_eq!(
        ruleset.chains["home_4096"],
        ["ip saddr { 10.9.0.0/24 } accept"].map(|rule| rule.replace("10.9.0.0/24", "10.9.0.0-10.9.0.255"))
    );
    assert!(ruleset.chains["hook_own"].contains(&"meta mark & 0x7f000000 == 0x7d000000 goto tunnel_out".to_owned()));
    insta::assert_snapshot!("tunnel_out", ruleset.chains["tunnel_out"].join("\n"));
    assert!(!ruleset.chains.values().flatten().any(|rule| rule.contains("4500")), "nobody is let in");
}

#[test]
fn whoever_may_begin_is_let_in_by_the_lines_of_the_tunnel_and_from_its_address() {
    let site = site("listen = true\n");
    let state = compile(&site, &even(&site), &Links::default());
    let RulesetState::Installed(ruleset) = &state.ruleset else { panic!("no ruleset") };
    for wan in site.wans.values() {
        let rules = &ruleset.chains[&format!("win_{}", wan.id)];
        let from = "ip saddr { 198.51.100.50 } ";
        assert!(rules.contains(&format!("{from}udp dport {{ 500, 4500 }} accept")), "{rules:?}");
    }
    let own = site.wans.values().next().unwrap().addressing.addresses[0].addr().to_string();
    let ike = Protocol::Udp { source: 500, destination: 500 };
    let (allowed, why) = judged(&site, "198.51.100.50", &own, ike);
    assert!(allowed && why.contains("tunnel/branch"), "{why}");
    assert!(!judged(&site, "198.51.100.51", &own, ike).0);
}

#[test]
fn the_other_end_is_reached_by_the_best_line_and_what_is_behind_it_never_by_a_line() {
    let site = site("");
    let names: Vec<_> = site.wans.values().map(|wan| wan.interface.to_string()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut links = ethernet(&names);
    let mut decision = even(&site);
    let first = site.tunnels().next().unwrap().1.wans[0].clone();
    decision.tunnels.insert("branch".parse().unwrap(), site.wans[&first].id);
    let route = |links: &Links| {
        let state = compile(&site, &decision, links);
        let of = |table| {
            let mut found = state.routes.iter().filter(move |(key, _)| key.table == table);
            found.next().map(|(key, hop)| format!("{} {hop:?}", key.destination)).unwrap_or_default()
        };
        (of(TableId::TUNNELS), of(TableId::TUNNEL_PEERS))
    };
    let (inside, peer) = route(&links);
    assert_eq!(inside, "10.9.0.0/24 Unreachable");
    assert!(peer.starts_with("198.51.100.50/32") && peer.contains(site.wans[&first].interface.as_str()), "{peer}");
    let mut up = ethernet(&["branch"]).0.remove(&"branch".parse().unwrap()).unwrap();
    up.admin_up = true;
    links.0.insert("branch".parse().unwrap(), up);
    assert_eq!(route(&links).0, "10.9.0.0/24 Direct { link: \"branch\", source: Some(10.0.10.1) }");
    let rules: Vec<_> = compile(&site, &decision, &links).rules.iter().map(|rule| rule.priority).collect();
    assert!([10_000, 10_125, 11_125].iter().all(|priority| rules.contains(priority)), "{rules:?}");
}

#[test]
fn a_tunnel_takes_the_next_line_at_once_and_goes_back_as_its_failback_says() {
    for (failback, stays) in [("", 0), ("failback = \"stay\"\n", 9), ("failback = { drain = \"5s\" }\n", 5)] {
        let site = site(failback);
        let lines: Vec<_> = site.tunnels().next().unwrap().1.wans.iter().map(|name| site.wans[name].id).collect();
        let mut chooser = Chooser::default();
        let mut before = Decision::default();
        let mut line = |healths: [Health; 2], seconds: u64| {
            let standings: Standings =
                lines.iter().zip(healths).map(|(id, health)| ((*id, Family::V4), Standing::of(health))).collect();
            let headroom = BTreeMap::new();
            let facts = Facts { config: &site, standings: &standings, settled: true, headroom: &headroom };
            let now = Time::ZERO + Duration::from_secs(seconds);
            before = chooser.decide(facts, |_| false, &before, now);
            before.tunnels.values().next().map(|id| lines.iter().position(|line| line == id).unwrap())
        };
        assert_eq!(line([Health::Up, Health::Up], 1), Some(0));
        assert_eq!(line([Health::Down, Health::Up], 2), Some(1));
        assert_eq!(line([Health::Down, Health::Down], 3), Some(1), "with no good line it keeps what it has");
        assert_eq!(line([Health::Held, Health::Up], 4), Some(1), "not back yet");
        for second in 10..19 {
            let wanted = usize::from(second < 10 + stays);
            assert_eq!(line([Health::Up, Health::Up], second), Some(wanted), "{failback} {second}");
        }
    }
}
