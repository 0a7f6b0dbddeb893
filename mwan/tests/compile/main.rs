//! What sites compile to, in full, for a reviewer to read: a change of the table or of the state shows here.

mod tunnels;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write;

use config::Config;
use config::units::Family;
use mwan::Links;
use mwan::compile::{compile, unresolved};
use mwan::decide::Decision;
use mwan::explain::{Question, explain};
use mwan::links::LinkFacts;
use mwan::script::{Inventory, close_door_script};
use mwan::state::{BUCKETS, BucketKey, Buckets, FlowClass, KernelState, RulesetState, Slot};

#[test]
fn the_smallest_site() {
    let site = parsed(include_str!("../../../config/examples/minimal.toml"));
    let state = compile(&site, &even(&site), &ethernet(&["eth0", "eth1", "eth2", "eth3"]));
    insta::assert_snapshot!("minimal_ruleset", rules(&state));
    insta::assert_snapshot!("minimal_state", told(&state));
}

#[test]
fn the_closed_door() {
    insta::assert_snapshot!("closed_door", close_door_script());
}

#[test]
fn what_is_missing_is_left_out_with_all_that_stands_on_it() {
    let site = parsed(include_str!("../../../config/examples/minimal.toml"));
    let links = ethernet(&["eth0", "eth2"]);
    let state = compile(&site, &even(&site), &links);
    insta::assert_snapshot!("minimal_state_without_wan2_and_guests_port", told(&state));
    let waiting: Vec<_> = unresolved(&site, &links).iter().map(|port| port.port.to_string()).collect();
    assert_eq!(waiting, ["eth1", "eth3"]);
    // The table does not know about links: it is the same with and without them.
    let whole = compile(&site, &even(&site), &ethernet(&["eth0", "eth1", "eth2", "eth3"]));
    assert_eq!(state.ruleset, whole.ruleset);
}

#[test]
fn the_same_site_compiles_to_the_same_bytes_and_another_to_others() {
    let text = include_str!("../../../config/examples/minimal.toml");
    let site = parsed(text);
    let script = |site: &Config| whole_script(&compile(site, &even(site), &Links::default()));
    assert_eq!(script(&site), script(&parsed(text)));
    let other = parsed(&text.replace("tcp/631", "tcp/632"));
    assert_ne!(script(&site), script(&other));
}

#[test]
fn the_api_opens_its_own_address_and_port_to_its_vlan_and_nothing_to_anybody_else() {
    let text = include_str!("../../../config/examples/minimal.toml");
    let api = "[api]\nlisten = \"10.0.20.1:8443\"\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/a\"\n\
               [api.client.alice]\nrole = \"operator\"\ncn = \"alice\"\n";
    assert_eq!(added(text, api), ["in_20: ip daddr { 10.0.20.1 } tcp dport { 8443 } accept"]);
}

#[test]
fn a_place_where_tls_ends_is_open_to_the_vlans_and_lines_it_names_and_to_nobody_else() {
    let text = include_str!("../../../config/examples/minimal.toml");
    let offload = |reach: &str| {
        format!(
            "[[tls_offload]]\nname = \"shop\"\n{reach}\nbackends = [\"10.0.10.9:80\"]\n\
             [[tls_offload.certificate]]\ncertificate = \"/c\"\nkey = \"/k\"\n"
        )
    };
    let own = offload("listen = \"10.0.20.1:443\"");
    assert_eq!(added(text, &own), ["in_20: ip daddr { 10.0.20.1 } tcp dport { 443 } accept"]);
    let other = offload("listen = [\"10.0.20.1:443\", \"10.0.20.1:8443\"]\nfrom = \"office\"");
    assert_eq!(added(text, &other), ["in_10: ip daddr { 10.0.20.1 } tcp dport { 443, 8443 } accept"]);
    let site = parsed(text);
    let wan = site.wans.values().next().unwrap();
    let address = wan.addressing.addresses[0].addr();
    let line = offload(&format!("listen = \"{address}:443\"\nopen_to_wan = [\"{}\"]", wan.name));
    let opened = format!("win_{}: ip daddr {{ {address} }} tcp dport {{ 443 }} accept", wan.id);
    assert_eq!(added(text, &line), [opened]);
}

#[test]
fn an_explanation_names_the_tls_offload_and_its_line() {
    let text = include_str!("../../../config/examples/minimal.toml");
    let offload = "[[tls_offload]]\nname = \"shop\"\nlisten = \"10.0.20.1:443\"\nfrom = \"office\"\n\
                   backends = [\"10.0.10.9:80\"]\n[[tls_offload.certificate]]\ncertificate = \"/c\"\nkey = \"/k\"\n";
    let site = parsed(&format!("{text}{offload}"));
    let line = site.tls_offload.values().next().unwrap().line;
    let asked = |source: &str, port: &str| {
        let question = Question::read(&site, source, "10.0.20.1", port, None).unwrap();
        explain(&site, &even(&site), &question).because
    };
    assert_eq!(asked("10.0.10.7", "tcp/443"), format!("input of office, service tls_offload/shop ({line})"));
    assert!(asked("10.0.10.7", "tcp/444").contains("default deny"));
    assert!(asked("10.0.20.7", "tcp/443").contains("default deny"));
}

/// The rules that a site has for these words at its end; none goes for them.
fn added(text: &str, more: &str) -> Vec<String> {
    let rules = |text: &str| {
        let site = parsed(text);
        let state = compile(&site, &even(&site), &Links::default());
        let RulesetState::Installed(ruleset) = state.ruleset else { panic!("no ruleset") };
        let named = |(name, rules): (String, Vec<String>)| rules.into_iter().map(move |rule| format!("{name}: {rule}"));
        let generation = |rule: &String| !rule.starts_with("gen_");
        ruleset.chains.into_iter().flat_map(named).filter(generation).collect::<BTreeSet<_>>()
    };
    let (without, with) = (rules(text), rules(&format!("{text}{more}")));
    assert!(without.is_subset(&with), "{:?}", without.difference(&with));
    with.difference(&without).cloned().collect()
}

#[test]
fn two_hundred_vlans_and_five_thousand_entries_stay_maps() {
    let site = parsed(&large_site(200, 5_000));
    assert_eq!((site.vlans.len(), site.cells.len()), (200, 5_000));
    let state = compile(&site, &even(&site), &Links::default());
    let RulesetState::Installed(ruleset) = &state.ruleset else { panic!("no ruleset") };
    for (name, chain) in &ruleset.chains {
        assert!(chain.len() <= 12, "{name} is a chain of {} rules", chain.len());
    }
    // One for each VLAN says what is at home there.
    assert!(ruleset.chains.len() < site.vlans.len() + 50, "{} chains", ruleset.chains.len());
    let forward = &ruleset.chains["hook_forward"];
    let single = "iifname . oifname . ip daddr . meta l4proto . th dport {";
    assert!(forward.iter().any(|rule| rule.starts_with(single) && rule.matches("\"vlan").count() > 8_000));
}

#[test]
fn a_script_deletes_what_it_does_not_know_and_only_that() {
    let site = parsed(include_str!("../../../config/examples/minimal.toml"));
    let state = compile(&site, &even(&site), &Links::default());
    let RulesetState::Installed(ruleset) = &state.ruleset else { panic!("no ruleset") };
    let mut found = Inventory {
        sets: ruleset.sets.keys().cloned().collect(),
        maps: ruleset.maps.keys().cloned().collect(),
        chains: ruleset.chains.keys().cloned().collect(),
        ..Inventory::default()
    };
    assert!(!ruleset.script(&found, &[], &[]).contains("delete"));
    found.sets.insert("lograte_forward_1".to_owned());
    found.maps.insert("b_gone_4".to_owned());
    found.chains.insert("p_99".to_owned());
    let script = ruleset.script(&found, &[], &[]);
    let position = |line: &str| script.lines().position(|other| other == line).unwrap_or_else(|| panic!("no {line}"));
    let deletions = [
        "delete map inet quadway b_gone_4",
        "delete set inet quadway lograte_forward_1",
        "delete chain inet quadway p_99",
    ];
    assert_eq!(script.lines().filter(|line| line.starts_with("delete")).collect::<Vec<_>>(), deletions);
    // A map lets go of its chains before they are deleted.
    assert!(position("flush chain inet quadway p_99") < position("flush map inet quadway b_gone_4"));
    assert!(position("flush map inet quadway b_gone_4") < position(deletions[0]));
    assert!(!script.contains("flush set inet quadway denied"), "counters survive a load");
}

#[test]
fn what_stands_as_it_should_is_not_touched() {
    let text = include_str!("../../../config/examples/minimal.toml");
    let site = parsed(text);
    let state = compile(&site, &even(&site), &Links::default());
    let RulesetState::Installed(standing) = &state.ruleset else { panic!("no ruleset") };
    let found = Inventory {
        sets: standing.sets.keys().cloned().collect(),
        maps: standing.maps.keys().cloned().collect(),
        chains: standing.chains.keys().cloned().collect(),
        rules: standing.chains.clone(),
        buckets: state.buckets.clone(),
        dead: BTreeSet::new(),
    };
    let other = parsed(&text.replace("tcp/631", "tcp/632"));
    let wanted = compile(&other, &even(&other), &Links::default());
    let RulesetState::Installed(ruleset) = &wanted.ruleset else { panic!("no ruleset") };
    let script = ruleset.script(&found, &wanted.buckets.into_iter().collect::<Vec<_>>(), &[]);
    let touched: Vec<_> = script.lines().filter(|line| line.starts_with("flush") || line.starts_with("add")).collect();
    let old = format!("flush chain inet quadway gen_{}", standing.generation);
    assert_eq!(touched, [&old, "flush chain inet quadway hook_forward"], "one cell changed");
}

#[test]
fn dead_classes_and_buckets_ride_in_the_transaction() {
    let site = parsed(include_str!("../../../config/examples/minimal.toml"));
    let state = compile(&site, &even(&site), &Links::default());
    let RulesetState::Installed(ruleset) = &state.ruleset else { panic!("no ruleset") };
    let buckets: Vec<_> = state.buckets.into_iter().collect();
    let wan = site.wans.values().next().expect("a wan").id;
    let script =
        ruleset.script(&Inventory::default(), &buckets, &[FlowClass { family: Family::V6, wan, policy: None }]);
    assert!(script.contains("add element inet quadway dead { ipv6 . 0x01000000 }"));
    assert!(script.contains("0x000000ff : goto go_2 }"), "the last bucket of 256");
}

fn parsed(text: &str) -> Config {
    config::parse("test.toml", text).unwrap_or_else(|problems| panic!("{problems}")).config
}

/// Every policy over all lines in turn.
fn even(site: &Config) -> Decision {
    let lines: Vec<_> = site.wans.values().map(|wan| Slot::Wan(wan.id)).collect();
    let mut decision = Decision::default();
    for family in Family::ALL {
        for policy in site.policies.keys() {
            let slots = lines.iter().copied().cycle().take(BUCKETS).collect();
            decision.buckets.insert(BucketKey { policy: policy.clone(), family }, Buckets(slots));
        }
        decision.own.extend(site.wans.values().next().map(|wan| (family, wan.id)));
    }
    decision
}

fn ethernet(names: &[&str]) -> Links {
    let facts = |index| LinkFacts {
        index,
        admin_up: false,
        carrier: false,
        mac: None,
        mtu: 1500,
        master: None,
        driver: Some("igb".to_owned()),
        pci: Some(format!("0000:01:00.{index}")),
        ours: false,
    };
    let named = |(index, name): (u32, &&str)| Some((name.parse().ok()?, facts(index)));
    Links((0..).zip(names).filter_map(named).collect())
}

fn rules(state: &KernelState) -> String {
    let RulesetState::Installed(ruleset) = &state.ruleset else { panic!("no ruleset") };
    ruleset.script(&Inventory::default(), &[], &[])
}

fn whole_script(state: &KernelState) -> String {
    let RulesetState::Installed(ruleset) = &state.ruleset else { panic!("no ruleset") };
    ruleset.script(&Inventory::default(), &state.buckets.clone().into_iter().collect::<Vec<_>>(), &[])
}

/// The plan from an empty kernel, which names everything but the table.
fn told(state: &KernelState) -> String {
    let steps: Vec<_> = KernelState::default().plan_to(state).iter().map(ToString::to_string).collect();
    steps.join("\n")
}

/// A site of this many VLANs, with entries between pairs of them in turn.
fn large_site(vlans: usize, cells: usize) -> String {
    let mut text =
        include_str!("../../../config/examples/minimal.toml").split("[vlan.").next().unwrap_or("").to_owned();
    let mut write = |part: std::fmt::Arguments<'_>| assert!(text.write_fmt(part).is_ok());
    for n in 0..vlans {
        write(format_args!(
            "[vlan.v{n}]\nid = {}\naddresses = [\"10.{n}.0.1/24\"]\ninternet = \"any\"\ninput = [\"dns\"]\n",
            n + 2
        ));
    }
    let mut seen = BTreeMap::new();
    for n in 0..cells {
        let (from, to) = (n % vlans, (n + 1 + n / vlans) % vlans);
        *seen.entry((from, to)).or_insert(0) += 1;
        write(format_args!(
            "[[cell]]\nfrom = \"v{from}\"\nto = \"v{to}\"\nhosts = [\"10.{to}.0.9\"]\nservices = [\"tcp/{}\", \"udp/53\"]\n",
            1_000 + n
        ));
    }
    text
}
