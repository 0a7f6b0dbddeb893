//! `LinuxKernel` against the real kernel. Each test has network namespaces of its own, which exist only as long as
//! its threads: nothing is named, nothing is left behind, nothing outside is touched.
//!
//! They need root and an `nft` of at least 1.1.3 (`QUADWAY_NFT`, else on PATH). Without them they say `SKIP` and why.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may stop at what it did not expect"
)]

#[path = "kernel/netns.rs"]
mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use config::model::Kick;
use config::units::{Family, IfName, Mark, PolicyId, TableId, WanId};
use mwan::state::{
    Address, BUCKETS, BucketKey, Buckets, FlowClass, Link, LinkKind, NextHop, RouteKey, Rule, RuleAction, Ruleset,
    RulesetState, Selector, Slot,
};
use mwan::{KernelState, Step};
use nix::net::if_::if_nametoindex;
use router_daemon::counters::Count;
use router_daemon::kernel::foreign::Foreign;
use router_daemon::kernel::nflog::PacketLog;
use router_daemon::kernel::watch::{Asker, Change, Watch};
use router_daemon::kernel::{Kernel, LinuxKernel, counters};

use netns::{Room, alone, ip, nft};

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
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
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
fn a_refused_step_carries_the_words_of_the_kernel() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        ip("link add wan1 type veth peer name far1");
        let destination = "0.0.0.0/0".parse().unwrap();
        let key = RouteKey { family: Family::V4, table: TableId(1001), destination, metric: 0 };
        let hop = NextHop::Gateway { link: name("wan1"), gateway: "100.64.1.1".parse().unwrap(), source: None };
        let refused = kernel.apply(&Step::SetRoute { key, hop }).await.unwrap_err().to_string();
        assert!(refused.ends_with("is not up"), "{refused}");
    });
}

#[test]
fn what_is_not_ours_is_neither_seen_nor_touched() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
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
fn what_others_do_with_our_marks_is_told_and_what_takes_our_packets_is_refused() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let ours = site().rules.into_iter().map(Step::AddRule).chain([load(&table("1", Slot::Unreachable))]);
        for step in ours {
            kernel.apply(&step).await.unwrap();
        }
        let foreign = Foreign::default();
        ip("rule add not fwmark 0x42 lookup 77 priority 220");
        ip("rule add fwmark 0x100/0x3f00 lookup 77 priority 221");
        nft("add table ip other");
        nft("add chain ip other polite");
        nft("add rule ip other polite meta mark and 0xff == 0x42 meta mark set meta mark or 0x10 counter");
        nft("add rule ip other polite ct mark set ct mark and 0xffffff00 or 0x8 ip saddr 192.0.2.1 accept");
        foreign.look().await.unwrap();
        assert_eq!(foreign.warnings(), Vec::<String>::new());

        nft("add chain ip other rude");
        for rule in [
            "meta mark 0x42 accept",
            "meta mark set 0x42",
            "meta mark set ct mark",
            "meta mark vmap { 0x42 : accept }",
            "ct mark set ct mark or 0x10000",
            "ip saddr . meta mark { 192.0.2.1 . 0x42 } accept",
            "ct mark set meta mark",
        ] {
            nft("flush chain ip other rude");
            nft(&format!("add rule ip other rude {rule}"));
            foreign.look().await.unwrap();
            let warnings = foreign.warnings();
            assert!(
                matches!(warnings.as_slice(), [one] if one.contains("table ip other, chain rude")),
                "{rule}: {warnings:?}"
            );
        }

        ip("-6 rule add fwmark 0x1000000/0xff000000 lookup 77 priority 300");
        let error = foreign.look().await.unwrap_err().to_string();
        assert!(error.contains("ip -6 rule del priority 300"), "{error}");
        ip("-6 rule del priority 300");
        foreign.look().await.unwrap();
    });
}

#[test]
fn a_deleted_rule_route_or_address_is_seen() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
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
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
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
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
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

#[test]
fn a_ruleset_is_loaded_adopted_and_its_drift_seen() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let want = table("one", Slot::Wan(WanId::new(1).unwrap()));
        assert_eq!(kernel.observe(&want).await.unwrap().ruleset, RulesetState::Absent);
        kernel.apply(&Step::CloseDoor).await.unwrap();
        assert_eq!(kernel.observe(&want).await.unwrap().ruleset, RulesetState::Unknown);
        let started = Instant::now();
        kernel.apply(&load(&want)).await.unwrap();
        println!("load and list: {:?}", started.elapsed());
        assert_eq!(kernel.observe(&want).await.unwrap(), want);
        let started = Instant::now();
        assert_eq!(kernel.observe(&want).await.unwrap(), want);
        println!("observe, nothing changed: {:?}", started.elapsed());

        // A restarted daemon finds what it left.
        drop(kernel);
        let mut kernel = LinuxKernel::open(&run).await.unwrap();
        assert_eq!(kernel.observe(&want).await.unwrap(), want);

        for damage in [
            "add rule inet quadway hook_forward accept",
            "flush chain inet quadway hook_forward",
            "delete table inet quadway",
            "flush ruleset",
        ] {
            nft(damage);
            assert_ne!(kernel.observe(&want).await.unwrap().ruleset, want.ruleset, "{damage}");
            kernel.apply(&load(&want)).await.unwrap();
            assert_eq!(kernel.observe(&want).await.unwrap(), want, "{damage}");
        }
        nft("delete element inet quadway b_main_4 { 3 }");
        assert_ne!(kernel.observe(&want).await.unwrap().buckets, want.buckets);
        let (key, buckets) = want.buckets.first_key_value().unwrap();
        kernel.apply(&Step::SetBuckets { key: key.clone(), buckets: buckets.clone() }).await.unwrap();
        assert_eq!(kernel.observe(&want).await.unwrap(), want);

        // Another generation takes its place, and what it does not know of is gone.
        let mut next = table("two", Slot::Wan(WanId::new(2).unwrap()));
        nft("add chain inet quadway stranger");
        next.dead.insert(class(1), Kick::All);
        kernel.apply(&load(&next)).await.unwrap();
        assert_eq!(kernel.observe(&next).await.unwrap(), next);
        let listing = nft("list table inet quadway");
        assert!(!listing.contains("stranger") && !listing.contains("gen_one"), "{listing}");

        // A table that cannot be changed into the wanted one is replaced.
        nft("delete table inet quadway");
        nft("add table inet quadway");
        nft("add set inet quadway denied { type ipv4_addr; }");
        kernel.apply(&load(&next)).await.unwrap();
        assert_eq!(kernel.observe(&next).await.unwrap(), next);
    });
}

#[test]
fn a_load_that_nft_refuses_changes_nothing_and_says_why() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let want = table("one", Slot::Blackhole);
        kernel.apply(&load(&want)).await.unwrap();
        let Step::LoadRuleset { mut ruleset, buckets, dead } = load(&table("two", Slot::Blackhole)) else { return };
        ruleset.chains.insert("broken".to_owned(), vec!["meta nonsense accept".to_owned()]);
        let error = kernel.apply(&Step::LoadRuleset { ruleset, buckets, dead }).await.unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
        assert_eq!(kernel.observe(&want).await.unwrap(), want);
    });
}

#[test]
fn buckets_flip_and_classes_die_and_revive_without_nft() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let (one, two) = (Slot::Wan(WanId::new(1).unwrap()), Slot::Wan(WanId::new(2).unwrap()));
        let mut want = table("one", one);
        kernel.apply(&load(&want)).await.unwrap();
        assert_eq!(kernel.observe(&want).await.unwrap(), want);
        let key = want.buckets.first_key_value().unwrap().0.clone();
        let mixed = Buckets((0..BUCKETS).map(|n| if n % 4 == 0 { two } else { one }).collect());
        let (mut flips, mut looks) = (Vec::new(), Vec::new());
        for buckets in [mixed.clone(), Buckets(vec![Slot::Unreachable; BUCKETS]), mixed].iter().cycle().take(90) {
            let step = Step::SetBuckets { key: key.clone(), buckets: buckets.clone() };
            let started = Instant::now();
            kernel.apply(&step).await.unwrap();
            flips.push(started.elapsed());
            kernel.apply(&step).await.unwrap();
            want.buckets.insert(key.clone(), buckets.clone());
            let started = Instant::now();
            assert_eq!(kernel.observe(&want).await.unwrap(), want);
            looks.push(started.elapsed());
        }
        flips.sort();
        looks.sort();
        println!("a flip with its reading back: {:?}, fastest {:?}", flips[45], flips[30]);
        println!("observing: {:?}, fastest {:?}", looks[45], looks[0]);
        for _ in 0..2 {
            let started = Instant::now();
            kernel.apply(&Step::Bury(vec![(class(1), Kick::Silent)])).await.unwrap();
            println!("bury nothing: {:?}", started.elapsed());
            want.dead.insert(class(1), Kick::All);
            assert_eq!(kernel.observe(&want).await.unwrap(), want);
        }
        for _ in 0..2 {
            kernel.apply(&Step::Revive(class(1))).await.unwrap();
            want.dead.clear();
            assert_eq!(kernel.observe(&want).await.unwrap(), want);
        }
        // What somebody else did in between is not overlooked.
        nft("add element inet quadway dead { ipv4 . 0x01010000 }");
        kernel.apply(&Step::Revive(class(1))).await.unwrap();
        assert_eq!(kernel.observe(&want).await.unwrap(), want);
    });
}

/// Peers' bugs 2 and 14: a failover kills exactly the flows of the failed line.
#[test]
fn a_buried_class_is_reset_and_every_other_flow_lives() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let (client, server) = (Room::open(), Room::open());
        street(&client, &server);
        kernel.apply(&load(&table("one", Slot::Wan(WanId::new(1).unwrap())))).await.unwrap();
        let _listening = server.run(|| ["[::]:7", "[::]:9"].map(listen));
        let (tcp, udp) = client.run(|| {
            let tcp = ["198.51.100.1:7", "198.51.100.1:9", "[2001:db8:100::1]:7", "[2001:db8:100::1]:9"];
            let connect = |at: &str| TcpStream::connect_timeout(&at.parse().unwrap(), Duration::from_secs(5)).unwrap();
            let udp = ["198.51.100.1:7", "198.51.100.1:9", "[2001:db8:100::1]:7", "[2001:db8:100::1]:9"].map(|at| {
                let own = if at.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(own).unwrap();
                socket.connect(at).unwrap();
                socket.send(b"hello").unwrap();
                socket
            });
            (tcp.map(connect), udp)
        });
        let before = counters().await.unwrap();
        let line = |family| (WanId::new(1).unwrap(), family);
        assert_eq!((before.flows[&line(Family::V4)], before.flows[&line(Family::V6)]), (4, 4));
        assert_eq!(before.chosen[&WanId::new(1).unwrap()].packets, 8);

        for (family, dead) in [(Family::V4, 0), (Family::V6, 2)] {
            let started = Instant::now();
            let class = FlowClass { family, ..class(1) };
            kernel.apply(&Step::Bury(vec![(class, Kick::All)])).await.unwrap();
            let applied = started.elapsed();
            let (stream, datagrams) = (tcp[dead].try_clone().unwrap(), udp[dead].try_clone().unwrap());
            let (reset, refused) = client.run(move || (end_of(&stream), end_of_datagrams(&datagrams)));
            println!("{family}: buried after {applied:?}, the client knows after {:?}", started.elapsed());
            assert_eq!(reset, Some(ErrorKind::ConnectionReset), "{family}: an idle client is reset");
            assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "{family}: a UDP client is told");
            let (stream, datagrams) = (tcp[dead + 1].try_clone().unwrap(), udp[dead + 1].try_clone().unwrap());
            let alive = client.run(move || (end_of(&stream), end_of_datagrams(&datagrams)));
            assert_eq!(alive, (None, None), "{family}: the flows of the other policy live");
            let flows = counters().await.unwrap().flows;
            assert_eq!(flows[&line(family)], 2);
            assert_eq!(flows[&line(Family::V6)], if family == Family::V4 { 4 } else { 2 }, "family by family");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(counters().await.unwrap().flows.values().sum::<u64>(), 4, "the later sweeps find nothing to end");
    });
}

#[test]
fn flows_born_after_the_deletion_are_swept() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let (client, server) = (Room::open(), Room::open());
        street(&client, &server);
        let _listening = server.run(|| listen("[::]:7"));
        let mut want = table("one", Slot::Wan(WanId::new(1).unwrap()));
        let RulesetState::Installed(ruleset) = &mut want.ruleset else { return };
        // As if the packet had passed the table before the class died.
        ruleset.chains.get_mut("hook_forward").unwrap().retain(|rule| !rule.contains("@dead"));
        kernel.apply(&load(&want)).await.unwrap();
        kernel.apply(&Step::Bury(vec![(class(1), Kick::All)])).await.unwrap();
        let socket = client.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("198.51.100.1:7").unwrap();
            socket.send(b"hello").unwrap();
            socket
        });
        assert_eq!(counters().await.unwrap().flows.values().sum::<u64>(), 1);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(counters().await.unwrap().flows.values().sum::<u64>(), 0);
        assert_eq!(client.run(move || end_of_datagrams(&socket)), Some(ErrorKind::ConnectionRefused));

        // A revived class is left alone.
        kernel.apply(&Step::Bury(vec![(class(1), Kick::All)])).await.unwrap();
        kernel.apply(&Step::Revive(class(1))).await.unwrap();
        client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", "198.51.100.1:7").unwrap());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(counters().await.unwrap().flows.values().sum::<u64>(), 1);
    });
}

#[test]
fn denials_are_counted_per_cell_and_logged_with_their_links() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let (client, server) = (Room::open(), Room::open());
        street(&client, &server);
        kernel.apply(&load(&table("one", Slot::Wan(WanId::new(1).unwrap())))).await.unwrap();
        let mut log = PacketLog::open().unwrap();
        client.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..3 {
                socket.send_to(b"hello", "198.51.100.1:666").unwrap();
            }
        });
        let logged = tokio::time::timeout(Duration::from_secs(2), log.next()).await.unwrap().unwrap();
        assert_eq!(logged.prefix, "qw forward");
        assert_eq!((logged.in_interface, logged.out_interface), (Some(name("vlan10")), Some(name("wan1"))));
        assert_eq!(logged.payload[16..20], [198, 51, 100, 1]);
        let cell = (name("vlan10"), name("wan1"));
        assert_eq!(counters().await.unwrap().denied[&cell], Count { packets: 3, bytes: 3 * 33 });
        // A reload counts on.
        kernel.apply(&load(&table("two", Slot::Wan(WanId::new(1).unwrap())))).await.unwrap();
        assert_eq!(counters().await.unwrap().denied[&cell].packets, 3);
        assert_eq!(log.overruns(), 0);
    });
}

#[test]
fn changes_are_told_at_once() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let room = Room::open();
        room.connect("wan1", "far1");
        ip("link set wan1 up");
        room.ip(&["link set far1 up", "addr add 100.64.1.1/24 dev far1"]);
        let mut watch = Watch::open().unwrap();
        let carrier = |wanted| {
            move |change: &Change| match change {
                Change::Links(links) => links.has_carrier(&"wan1".parse().unwrap()) == wanted,
                Change::Neighbour(_) | Change::Drift => false,
            }
        };
        until(&mut watch, carrier(true)).await;
        for _ in 0..2 {
            let started = room.run(|| {
                let started = Instant::now();
                ip("link set far1 down");
                started
            });
            until(&mut watch, carrier(false)).await;
            let passed = started.elapsed();
            println!("carrier loss told after {passed:?}, of which running ip is the most");
            assert!(passed < Duration::from_millis(500), "{passed:?}");
            room.ip(&["link set far1 up"]);
            until(&mut watch, carrier(true)).await;
        }
        quiet(&mut watch).await;
        let drift = |change: &Change| *change == Change::Drift;
        ip("rule add fwmark 7 lookup 7 priority 77");
        until(&mut watch, drift).await;
        ip("addr add 100.64.1.2/24 dev wan1");
        until(&mut watch, drift).await;
        quiet(&mut watch).await;
        kernel.apply(&Step::CloseDoor).await.unwrap();
        until(&mut watch, drift).await;
        nft("flush ruleset");
        quiet(&mut watch).await;
        std::fs::write("/proc/sys/net/ipv4/conf/wan1/rp_filter", "1").unwrap();
        until(&mut watch, drift).await;
        std::fs::write("/proc/sys/net/ipv6/conf/wan1/forwarding", "1").unwrap();
        until(&mut watch, drift).await;

        // A gateway that answers, and one that does not.
        let gateway = "100.64.1.1".parse().unwrap();
        let mut asker = Asker::default();
        let wan1 = if_nametoindex("wan1").unwrap();
        for _ in 0..2 {
            asker.reconfirm(wan1, gateway).unwrap();
            let there = |change: &Change| match change {
                Change::Neighbour(neighbour) => neighbour.address == gateway && neighbour.reachable,
                Change::Links(_) | Change::Drift => false,
            };
            until(&mut watch, there).await;
        }
        quiet(&mut watch).await;
        asker.reconfirm(wan1, gateway).unwrap();
        let Change::Neighbour(first) = watch.next().await.unwrap() else { panic!("nothing else changed") };
        assert!(first.reachable, "that it is asked is no news: {first:?}");
        room.ip(&["addr flush dev far1"]);
        asker.reconfirm(wan1, gateway).unwrap();
        let gone = |change: &Change| match change {
            Change::Neighbour(neighbour) => neighbour.address == gateway && neighbour.mac.is_none(),
            Change::Links(_) | Change::Drift => false,
        };
        until(&mut watch, gone).await;
    });
}

#[test]
fn a_watch_that_missed_something_looks_at_everything_again() {
    alone(|run| async move {
        ip("link add wan1 type veth peer name far1");
        ip("link set wan1 up");
        let mut watch = Watch::open().unwrap();
        quiet(&mut watch).await;
        let flood = run.join("flood");
        let rules: Vec<_> = (1..4000).map(|mark| format!("rule add fwmark {mark} lookup 7 priority 99")).collect();
        std::fs::write(&flood, rules.join("\n")).unwrap();
        ip("neigh add 100.64.1.1 lladdr 02:00:00:00:00:01 dev wan1 nud permanent");
        quiet(&mut watch).await;
        ip(&format!("-batch {}", flood.display()));
        let again = |change: &Change| matches!(change, Change::Neighbour(neighbour) if neighbour.mac.is_some());
        until(&mut watch, again).await;
        until(&mut watch, |change| *change == Change::Drift).await;
        quiet(&mut watch).await;
        ip("link del wan1");
        until(&mut watch, |change| matches!(change, Change::Links(links) if links.get(&name("wan1")).is_none())).await;
    });
}

async fn until(watch: &mut Watch, wanted: impl Fn(&Change) -> bool) {
    let told = async { while !wanted(&watch.next().await.unwrap()) {} };
    tokio::time::timeout(Duration::from_secs(8), told).await.unwrap();
}

async fn quiet(watch: &mut Watch) {
    while tokio::time::timeout(Duration::from_millis(100), watch.next()).await.is_ok() {}
}

fn listen(at: &str) -> (TcpListener, UdpSocket) {
    (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())
}

/// How a connection on which nothing is expected ends; `None` when it lives.
fn end_of(stream: &TcpStream) -> Option<ErrorKind> {
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let error = (&*stream).read(&mut [0; 8]).err().map(|error| error.kind());
    error.filter(|kind| *kind != ErrorKind::WouldBlock)
}

fn end_of_datagrams(socket: &UdpSocket) -> Option<ErrorKind> {
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let error = socket.recv(&mut [0; 8]).err().map(|error| error.kind());
    error.filter(|kind| *kind != ErrorKind::WouldBlock)
}

/// Client, this router, server: 10.10.10.5 behind vlan10, 198.51.100.1 behind wan1, the same in IPv6.
fn street(client: &Room, server: &Room) {
    client.connect("vlan10", "eth0");
    server.connect("wan1", "eth0");
    for command in [
        "link set vlan10 up",
        "link set wan1 up",
        "addr add 10.10.10.1/24 dev vlan10",
        "addr add 2001:db8:10::1/64 dev vlan10 nodad",
        "addr add 100.64.1.2/24 dev wan1",
        "addr add 2001:db8:ff01::2/64 dev wan1 nodad",
    ] {
        ip(command);
    }
    client.ip(&[
        "link set eth0 up",
        "addr add 10.10.10.5/24 dev eth0",
        "addr add 2001:db8:10::5/64 dev eth0 nodad",
        "route add default via 10.10.10.1",
        "-6 route add default via 2001:db8:10::1",
    ]);
    server.ip(&[
        "link set eth0 up",
        "addr add 100.64.1.1/24 dev eth0",
        "addr add 2001:db8:ff01::1/64 dev eth0 nodad",
        "addr add 198.51.100.1/32 dev lo",
        "addr add 2001:db8:100::1/128 dev lo nodad",
    ]);
    ip("route add default via 100.64.1.1");
    ip("-6 route add default via 2001:db8:ff01::1");
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{name}"), "1").unwrap();
    }
}

/// A table with the contract's names and little in it: port 7 is policy 1, port 9 policy 2, port 666 is denied.
fn table(generation: &str, slot: Slot) -> KernelState {
    let key = BucketKey { policy: "main".parse().unwrap(), family: Family::V4 };
    let counted = |key: &str| format!("type {key}\nsize 65535\nflags dynamic\ncounter");
    let sets = [
        ("allowed", counted("ifname . ifname")),
        ("chosen", counted("mark")),
        ("dead", "type nf_proto . mark".to_owned()),
        ("denied", counted("ifname . ifname")),
        ("denied_in", counted("ifname")),
        ("invalid", counted("ifname . ifname")),
        ("spoofed", counted("ifname")),
    ];
    let chains: [(&str, &[&str]); 8] = [
        ("go_1", &[]),
        ("go_2", &[]),
        ("go_blackhole", &["drop"]),
        ("go_unreachable", &["reject"]),
        (
            "hook_forward",
            &[
                "type filter hook forward priority filter; policy accept;",
                "meta nfproto . (ct mark & 0x7fff0000) @dead meta l4proto tcp reject with tcp reset",
                "meta nfproto . (ct mark & 0x7fff0000) @dead drop",
                "udp dport 666 update @denied { iifname . oifname } log prefix \"qw forward\" group 190 drop",
                "oifname \"wan1\" ct state new tcp flags & (syn | rst | ack | fin) != syn reject with tcp reset",
            ],
        ),
        (
            "hook_own_raw",
            &["type filter hook output priority raw; policy accept;", "meta mark 0x80000000 notrack accept"],
        ),
        (
            "hook_postrouting",
            &["type nat hook postrouting priority srcnat; policy accept;", "oifname \"wan1\" masquerade"],
        ),
        (
            "hook_steer",
            &[
                "type filter hook prerouting priority mangle; policy accept;",
                "iifname \"vlan10\" ct mark 0 th dport 7 ct mark set 0x01010000 add @chosen { ct mark & 0x7f000000 }",
                "iifname \"vlan10\" ct mark 0 th dport 9 ct mark set 0x01020000 add @chosen { ct mark & 0x7f000000 }",
            ],
        ),
    ];
    let mut chains: BTreeMap<String, Vec<String>> = chains
        .iter()
        .map(|(name, rules)| ((*name).to_owned(), rules.iter().map(|rule| (*rule).to_owned()).collect()))
        .collect();
    chains.insert(format!("gen_{generation}"), Vec::new());
    let ruleset = Ruleset {
        generation: generation.to_owned(),
        sets: sets.into_iter().map(|(name, body)| (name.to_owned(), body)).collect(),
        maps: BTreeMap::from([(key.map_name(), "type mark : verdict".to_owned())]),
        chains,
    };
    KernelState {
        ruleset: RulesetState::Installed(ruleset),
        buckets: BTreeMap::from([(key, Buckets(vec![slot; BUCKETS]))]),
        ..KernelState::default()
    }
}

fn load(want: &KernelState) -> Step {
    let RulesetState::Installed(ruleset) = &want.ruleset else { panic!("no ruleset") };
    Step::LoadRuleset {
        ruleset: ruleset.clone(),
        buckets: want.buckets.clone().into_iter().collect(),
        dead: want.dead.keys().copied().collect(),
    }
}

fn class(policy: u8) -> FlowClass {
    FlowClass { family: Family::V4, wan: WanId::new(1).unwrap(), policy: Some(PolicyId(policy)) }
}

async fn kernel(run: &Path) -> Option<LinuxKernel> {
    LinuxKernel::open(run).await.inspect_err(|error| println!("SKIP: {error}")).ok()
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
