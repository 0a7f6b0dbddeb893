//! `LinuxKernel` and the programs at the ports, in namespaces of their own. Needs root, nft and TCX (Linux 6.6); says
//! `SKIP` and why.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may stop at what it did not expect"
)]

#[path = "kernel/netns.rs"]
mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use config::model::Kick;
use config::units::{Family, WanId};
use ebpf::{Attached, Maps, Programs, abi};
use mwan::KernelState;
use mwan::state::{
    FastLimits, FastPath, FastPort, FastZone, FlowClass, Home, PortMode, Ruleset, RulesetState, Step, ZoneId,
};
use router_daemon::kernel::fast_path::Source;
use router_daemon::kernel::{Kernel, LinuxKernel};

use netns::{alone, ip};

#[test]
fn what_is_wanted_is_found_and_what_somebody_changed_is_put_right() {
    alone(|run| async move {
        let Some(mut kernel) = start(&run, ebpf::OBJECT).await else { return };
        let want = wanted();
        converge(&mut kernel, &want).await;
        let seen = kernel.fast_path().read().await.unwrap();
        assert!(seen.on && seen.capacity == 1024 && seen.memory_bytes > 0, "{seen:?}");
        assert_eq!(seen.ports.values().map(|port| port.mode).collect::<Vec<_>>(), [Some(PortMode::Tcx); 2]);

        let pins = run.join("bpf");
        let meddle: [fn(&mut Maps); 4] = [
            |maps| maps.set_denied(abi::pair(1, 2), false).unwrap(),
            |maps| maps.remove_home4(([10, 0, 1, 0], 24)).unwrap(),
            |maps| maps.set_settings(abi::Settings { deny: 0, ..maps.settings().unwrap() }).unwrap(),
            |maps| maps.zones().unwrap().into_keys().for_each(|key| maps.remove_zone(key).unwrap()),
        ];
        for change in meddle {
            change(&mut Maps::open(&pins).unwrap());
            converge(&mut kernel, &want).await;
        }
        let port = nix::net::if_::if_nametoindex("p1").unwrap();
        Programs::load(ebpf::OBJECT, 1024, &pins).unwrap().attach(port, Attached::default()).unwrap();
        converge(&mut kernel, &want).await;

        let mut other = want.clone();
        let path = other.fast_path.as_mut().unwrap();
        path.denied.clear();
        path.ports.pop_last();
        path.zones.pop_last();
        path.limits.flows = 2048;
        converge(&mut kernel, &other).await;
        assert_eq!(kernel.fast_path().read().await.unwrap().capacity, 2048);
        converge(&mut kernel, &KernelState::default()).await;
        assert!(Maps::open(&pins).is_err(), "nothing is left of it");
    });
}

#[test]
fn flows_are_called_back_when_a_class_is_buried_or_a_ruleset_loaded() {
    alone(|run| async move {
        let Some(mut kernel) = start(&run, ebpf::OBJECT).await else { return };
        converge(&mut kernel, &wanted()).await;
        let generations = || {
            let maps = Maps::open(&run.join("bpf")).unwrap();
            (0..abi::SLOTS).map(|slot| maps.generation(slot).unwrap()).collect::<Vec<_>>()
        };
        let before = generations();
        let empty = Ruleset {
            generation: "1".to_owned(),
            sets: BTreeMap::from([("dead".to_owned(), "type nf_proto . mark".to_owned())]),
            maps: BTreeMap::new(),
            chains: BTreeMap::from([("gen_1".to_owned(), Vec::new())]),
        };
        kernel.apply(&Step::LoadRuleset { ruleset: empty, buckets: Vec::new(), dead: Vec::new() }).await.unwrap();
        let loaded = generations();
        assert!(before.iter().zip(&loaded).all(|(before, after)| before + 1 == *after));
        let class = FlowClass { family: Family::V6, wan: WanId::new(7).unwrap(), policy: None };
        kernel.apply(&Step::Bury(vec![(class, Kick::Silent)])).await.unwrap();
        let bumped: Vec<_> = loaded
            .iter()
            .zip(generations())
            .enumerate()
            .filter(|(_, (a, b))| **a != *b)
            .map(|(slot, _)| slot)
            .collect();
        assert_eq!(bumped, [abi::slot(7, true) as usize]);

        // Also by a daemon that has not got round to its programs yet.
        drop(kernel);
        let Some(mut kernel) = start(&run, ebpf::OBJECT).await else { return };
        let before = generations();
        kernel.apply(&Step::Bury(vec![(class, Kick::Silent)])).await.unwrap();
        assert_ne!(generations(), before);
    });
}

#[test]
fn without_a_fast_path_the_router_is_as_wanted_and_says_why() {
    alone(|run| async move {
        let Some(mut kernel) = start(&run, b"no object").await else { return };
        let mut want = wanted();
        converge(&mut kernel, &want).await;
        let seen = kernel.fast_path().read().await.unwrap();
        assert!(!seen.on && seen.reason.as_ref().unwrap().contains("no eBPF object"), "{seen:?}");
        assert!(kernel.observe(&want).await.unwrap().plan_to(&want).is_empty(), "it is not tried again and again");
        want.fast_path.as_mut().unwrap().denied.clear();
        assert_eq!(kernel.observe(&want).await.unwrap().plan_to(&want).len(), 1, "but when something else is wanted");
    });
}

#[test]
fn a_driver_that_has_no_xdp_gets_its_program_behind_it() {
    alone(|run| async move {
        let Some(mut kernel) = start(&run, ebpf::OBJECT).await else { return };
        // A bridge has no native XDP.
        ip("link add br0 type bridge");
        let mut want = wanted();
        let path = want.fast_path.as_mut().unwrap();
        path.ports.insert("br0".parse().unwrap(), FastPort { mode: PortMode::Xdp, line: false });
        path.ports.insert("p1".parse().unwrap(), FastPort { mode: PortMode::Xdp, line: true });
        converge(&mut kernel, &want).await;
        let ports = kernel.fast_path().read().await.unwrap().ports;
        let told: Vec<_> = ports.values().map(|port| (port.mode, port.why.is_some())).collect();
        assert_eq!(told, [(Some(PortMode::Tcx), true), (Some(PortMode::Xdp), false), (Some(PortMode::Tcx), false)]);
        let index = nix::net::if_::if_nametoindex("p1").unwrap();
        assert_eq!(Maps::open(&run.join("bpf")).unwrap().ports().unwrap(), [index]);
    });
}

async fn start(run: &Path, object: &[u8]) -> Option<LinuxKernel> {
    let kernel = LinuxKernel::open(run).await.inspect_err(|error| println!("SKIP: {error}")).ok()?;
    if nix::net::if_::if_nametoindex("p1").is_err() {
        ip("link add p1 type veth peer name p2");
    }
    Some(kernel.with_fast_path(Source { object: object.into(), pins: run.join("bpf") }))
}

/// One look, one plan, and it is as wanted.
async fn converge(kernel: &mut LinuxKernel, want: &KernelState) {
    let plan = kernel.observe(want).await.unwrap().plan_to(want);
    let [step @ Step::SetFastPath(_)] = plan.as_slice() else { panic!("{plan:?}") };
    for _ in 0..2 {
        kernel.apply(step).await.unwrap();
        let seen = kernel.observe(want).await.unwrap();
        if !seen.plan_to(want).is_empty() {
            // The kernel lets go of a link that was taken away a moment after it said so, and until then refuses the same
            // program at the same port. The reconciler looks again, too, and applies what is missing.
            println!("not yet as wanted: {:?}", kernel.fast_path().read().await);
            tokio::time::sleep(Duration::from_millis(300)).await;
            kernel.apply(step).await.unwrap();
        }
        assert_eq!(kernel.observe(want).await.unwrap().plan_to(want), vec![]);
    }
}

fn wanted() -> KernelState {
    let zone = |zone, wan: Option<u8>| FastZone {
        zone: ZoneId(zone),
        wan: wan.and_then(WanId::new),
        mac: [2, 0, 0, 0, 0, 1],
        bogons: false,
    };
    let path = FastPath {
        limits: FastLimits {
            flows: 1024,
            silence: Duration::from_millis(200),
            silence_flows: 5,
            new_per_source: None,
            denied_log_rate: 70,
        },
        ports: BTreeMap::from([
            ("p1".parse().unwrap(), FastPort { mode: PortMode::Tcx, line: true }),
            ("p2".parse().unwrap(), FastPort { mode: PortMode::Tcx, line: false }),
        ]),
        zones: BTreeMap::from([
            (("p1".parse().unwrap(), 0), zone(0, Some(1))),
            (("p2".parse().unwrap(), 30), zone(2, None)),
        ]),
        homes: BTreeMap::from([
            ("10.0.1.0/24".parse().unwrap(), Home::Host(ZoneId(1))),
            ("10.0.2.0/24".parse().unwrap(), Home::Host(ZoneId(2))),
            ("fd00:1::/64".parse().unwrap(), Home::Host(ZoneId(1))),
            ("10.0.1.1/32".parse().unwrap(), Home::Leave),
        ]),
        denied: BTreeSet::from([(ZoneId(1), ZoneId(2)), (ZoneId(2), ZoneId(1)), (ZoneId(2), ZoneId::OUTSIDE)]),
    };
    KernelState { ruleset: RulesetState::Absent, fast_path: Some(path), ..KernelState::default() }
}
