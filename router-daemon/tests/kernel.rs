//! `LinuxKernel` against the real kernel. Each test has network namespaces of its own, which exist only as long as
//! its threads: nothing is named, nothing is left behind, nothing outside is touched.
//!
//! They need CAP_NET_ADMIN and CAP_SYS_ADMIN, and for the ruleset an `nft` of at least 1.1.3 (`QUADWAY_NFT`, else
//! on PATH). Without them they say `SKIP` and why.

#[path = "kernel/netns.rs"]
mod netns;

use std::collections::{BTreeMap, BTreeSet};

use config::units::{Family, IfName, Mark, TableId};
use mwan::state::{Address, Link, LinkKind, NextHop, RouteKey, Rule, RuleAction, Selector};
use mwan::{KernelState, Step};
use router_daemon::kernel::{Kernel, LinuxKernel};

use netns::{alone, ip};

/// Observes, plans, applies and observes again until nothing is left to do; that must be at once.
async fn converge(kernel: &mut LinuxKernel, want: &KernelState) -> Vec<Step> {
    let found = kernel.observe(want).await.unwrap();
    let plan = plan(&found, want);
    for step in &plan {
        kernel.apply(step).await.unwrap();
    }
    let settled = &settled(want);
    assert_eq!(&kernel.observe(want).await.unwrap(), settled, "one plan is enough");
    for step in &plan {
        if !matches!(step, Step::DeleteLink(_)) {
            kernel.apply(step).await.unwrap();
        }
    }
    assert_eq!(&kernel.observe(want).await.unwrap(), settled, "each step is idempotent");
    plan
}

/// What is wanted once every port has its name.
fn settled(want: &KernelState) -> KernelState {
    let mut settled = want.clone();
    for (name, link) in &mut settled.links {
        if let LinkKind::Port { found_as } = &mut link.kind {
            found_as.clone_from(name);
        }
    }
    settled
}

/// The planner's order, without its care for what a step takes along.
fn plan(found: &KernelState, want: &KernelState) -> Vec<Step> {
    let mut steps = Vec::new();
    for master_less in [true, false] {
        for (name, link) in &want.links {
            if found.links.get(name) != Some(link) && link.master.is_none() == master_less {
                steps.push(Step::SetLink { name: name.clone(), link: link.clone() });
            }
        }
    }
    for (name, value) in &want.sysctls {
        if found.sysctls.get(name) != Some(value) {
            steps.push(Step::SetSysctl { name: name.clone(), value: value.clone() });
        }
    }
    steps.extend(want.addresses.difference(&found.addresses).cloned().map(Step::AddAddress));
    for (key, hop) in &want.routes {
        if found.routes.get(key) != Some(hop) {
            steps.push(Step::SetRoute { key: key.clone(), hop: hop.clone() });
        }
    }
    steps.extend(want.rules.difference(&found.rules).cloned().map(Step::AddRule));
    steps.extend(found.rules.difference(&want.rules).cloned().map(Step::DeleteRule));
    steps.extend(found.routes.keys().filter(|key| !want.routes.contains_key(key)).cloned().map(Step::DeleteRoute));
    steps.extend(found.addresses.difference(&want.addresses).cloned().map(Step::DeleteAddress));
    let strangers = found
        .links
        .iter()
        .filter(|(name, link)| !want.links.contains_key(*name) && !matches!(link.kind, LinkKind::Port { .. }));
    steps.extend(strangers.map(|(name, _)| Step::DeleteLink(name.clone())));
    steps
}

#[test]
fn links_addresses_rules_and_routes_become_what_is_wanted() {
    alone(async {
        let mut kernel = kernel().await;
        ip("link add port0 type veth peer name far0");
        ip("link add port1 type veth peer name far1");
        let want = site();
        let plan = converge(&mut kernel, &want).await;
        assert!(plan.len() > 10, "{plan:?}");
        assert!(converge(&mut kernel, &settled(&want)).await.is_empty(), "nothing is left to do");
        converge(&mut kernel, &KernelState::default()).await;
        assert!(ip("rule show").lines().count() == 3, "only the kernel's own rules are left");
    });
}

#[test]
fn what_is_not_ours_is_neither_seen_nor_touched() {
    alone(async {
        let mut kernel = kernel().await;
        ip("link add port0 type veth peer name far0");
        ip("link add port1 type veth peer name far1");
        ip("link add foreign type bridge");
        ip("link set foreign up");
        ip("addr add 192.0.2.1/24 dev foreign");
        ip("route add 203.0.113.0/24 via 192.0.2.2 dev foreign onlink");
        ip("route add default via 192.0.2.2 dev foreign onlink table 1001");
        ip("rule add fwmark 0x42 lookup 77 priority 220");
        let before = foreign();
        assert_eq!(kernel.observe(&KernelState::default()).await.unwrap(), KernelState::default());
        let mut want = site();
        // The foreign default route stands in the table of our first line.
        want.routes.retain(|key, _| key.destination.prefix_len() != 0);
        converge(&mut kernel, &want).await;
        converge(&mut kernel, &KernelState::default()).await;
        assert_eq!(foreign(), before);
        let step = Step::DeleteLink(name("foreign"));
        assert!(kernel.apply(&step).await.unwrap_err().to_string().contains("not ours"));
        let link = Link { kind: LinkKind::Tagged { parent: name("port0"), vlan: vlan(7) }, ..bridge() };
        let error = kernel.apply(&Step::SetLink { name: name("foreign"), link }).await.unwrap_err();
        assert!(error.to_string().contains("not ours"), "{error}");
    });
}

fn foreign() -> Vec<String> {
    ["rule show", "route show", "route show table 1001", "-br addr show dev foreign"].map(ip).to_vec()
}

#[test]
fn a_deleted_rule_route_or_address_is_seen() {
    alone(async {
        let mut kernel = kernel().await;
        ip("link add port0 type veth peer name far0");
        ip("link add port1 type veth peer name far1");
        converge(&mut kernel, &site()).await;
        let want = settled(&site());
        for damage in [
            "rule del priority 10001",
            "-6 rule del priority 9999",
            "route flush table 1001",
            "addr flush dev wan1",
            "link set vlan10 down",
            "link del vlan10",
            "link set port1 nomaster",
        ] {
            ip(damage);
            assert_ne!(kernel.observe(&want).await.unwrap(), want, "{damage}");
            converge(&mut kernel, &want).await;
        }
    });
}

#[test]
fn an_address_with_another_flag_is_put_right() {
    alone(async {
        let mut kernel = kernel().await;
        ip("link add wan1 type veth peer name far0");
        let address =
            |no_prefix_route| Address { link: name("wan1"), net: "100.64.1.2/24".parse().unwrap(), no_prefix_route };
        for no_prefix_route in [false, true] {
            let want = KernelState { addresses: BTreeSet::from([address(no_prefix_route)]), ..KernelState::default() };
            converge(&mut kernel, &want).await;
        }
        // Somebody else's, without our protocol number, becomes ours.
        ip("addr flush dev wan1");
        ip("addr add 100.64.1.2/24 dev wan1");
        let want = KernelState { addresses: BTreeSet::from([address(true)]), ..KernelState::default() };
        converge(&mut kernel, &want).await;
    });
}

#[test]
fn a_kernel_without_8021q_is_told_with_its_remedy() {
    alone(async {
        let mut kernel = kernel().await;
        ip("link add port0 type veth peer name far0");
        ip("link set port0 up");
        let link = Link { kind: LinkKind::Tagged { parent: name("port0"), vlan: vlan(10) }, ..bridge() };
        let step = Step::SetLink { name: name("port0.10"), link: link.clone() };
        match kernel.apply(&step).await {
            Ok(()) => {
                let observed = kernel.observe(&KernelState::default()).await.unwrap();
                assert_eq!(observed.links.get(&name("port0.10")), Some(&link));
            }
            Err(error) => assert!(error.to_string().contains("kernel lacks 8021q"), "{error}"),
        }
    });
}

async fn kernel() -> LinuxKernel {
    let run = tempfile::tempdir().unwrap().keep();
    LinuxKernel::open(&run).await.unwrap()
}

/// One line found under another name, one VLAN with one access port, both families.
fn site() -> KernelState {
    let wan = Link { kind: LinkKind::Port { found_as: name("port0") }, up: true, master: None, mtu: Some(1400) };
    let port =
        Link { kind: LinkKind::Port { found_as: name("port1") }, up: true, master: Some(name("vlan10")), mtu: None };
    let mut want = KernelState {
        links: BTreeMap::from([(name("wan1"), wan), (name("vlan10"), bridge()), (name("port1"), port)]),
        ..KernelState::default()
    };
    for (link, net, no_prefix_route) in [
        ("wan1", "100.64.1.2/24", true),
        ("wan1", "2001:db8:ff01::2/64", true),
        ("vlan10", "10.10.10.1/24", false),
        ("vlan10", "2001:db8:10::1/64", false),
    ] {
        want.addresses.insert(Address { link: name(link), net: net.parse().unwrap(), no_prefix_route });
    }
    for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2"), ("rp_filter", "0")] {
        want.sysctls.insert(format!("net/ipv4/conf/wan1/{key}"), value.to_owned());
    }
    want.sysctls.insert("net/bridge/bridge-nf-call-iptables".to_owned(), "0".to_owned());
    for (family, gateway, source, default, connected) in [
        (Family::V4, "100.64.1.1", "100.64.1.2", "0.0.0.0/0", "100.64.1.0/24"),
        (Family::V6, "fe80::1", "2001:db8:ff01::2", "::/0", "2001:db8:ff01::/64"),
    ] {
        let key = |table, net: &str| RouteKey { family, table, destination: net.parse().unwrap(), metric: 0 };
        let source = Some(source.parse().unwrap());
        let gateway = NextHop::Gateway { link: name("wan1"), gateway: gateway.parse().unwrap(), source };
        want.routes.insert(key(TableId(1001), default), gateway.clone());
        want.routes.insert(key(TableId(1001), connected), NextHop::Direct { link: name("wan1"), source });
        want.routes.insert(key(TableId::ROUTER, default), gateway);
        want.routes.insert(key(TableId(1077), default), NextHop::Unreachable);
        let mark = |mark| Selector::Mark { mark: Mark(mark), mask: Mark(Mark::WAN_MASK) };
        for (priority, selector, action) in [
            (9999, Selector::All, RuleAction::LookupMainWithoutDefault),
            (10001, mark(1 << 24), RuleAction::Lookup(TableId(1001))),
            (11001, mark(1 << 24), RuleAction::Unreachable),
            (11126, mark(Mark::BLACKHOLE.0), RuleAction::Blackhole),
            (12001, Selector::OutInterface(name("wan1")), RuleAction::Lookup(TableId(1001))),
            (13000, Selector::Local, RuleAction::Lookup(TableId::ROUTER)),
        ] {
            want.rules.insert(Rule { priority, family, selector, action });
        }
    }
    want
}

fn bridge() -> Link {
    Link { kind: LinkKind::Bridge, up: true, master: None, mtu: None }
}

fn name(name: &str) -> IfName {
    name.parse().unwrap()
}

fn vlan(id: u16) -> config::units::VlanId {
    config::units::VlanId::new(id).unwrap()
}
