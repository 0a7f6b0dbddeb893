use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};

use config::model::Kick;
use config::units::WanId;
use mwan::links::{LinkFacts, Links};
use mwan::state::{FlowClass, RulesetState, Slot};
use mwan::{Event, Router, Time};
use tokio::task::JoinHandle;

use super::*;
use crate::kernel::fake::FakeKernel;

#[tokio::test(start_paused = true)]
async fn brings_an_empty_kernel_to_the_wanted_state() {
    let fake = FakeKernel::new(ports());
    let bench = Bench::start(&fake);
    let want = site();
    bench.want(1, &want);
    let progress = bench.reached(1).await;
    assert_eq!(progress.succeeded, 1);
    assert!(same(&fake, &want));
}

#[tokio::test(start_paused = true)]
async fn a_restart_adopts_what_it_finds_without_a_step() {
    let want = site();
    let fake = FakeKernel::new(want.clone());
    let bench = Bench::start(&fake);
    bench.want(1, &want);
    let progress = bench.reached(1).await;
    assert_eq!((progress.steps, progress.succeeded, progress.drift_repaired), (0, 0, 0));
    assert_eq!(fake.take_applied(), vec![]);
}

#[tokio::test(start_paused = true)]
async fn a_fault_at_any_step_is_got_over() {
    let want = site();
    let steps = ports().plan_to(&want).len();
    for faulty in 0..steps {
        let fake = FakeKernel::new(ports());
        let asked = AtomicUsize::new(0);
        fake.refuse(move |_| (asked.fetch_add(1, Ordering::Relaxed) == faulty).then_some(ErrorKind::ResourceBusy));
        let bench = Bench::start(&fake);
        bench.want(1, &want);
        bench.reached(1).await;
        assert!(same(&fake, &want), "after a fault at step {faulty}");
    }
}

#[tokio::test(start_paused = true)]
async fn being_killed_at_any_step_leaves_what_the_next_start_finishes() {
    let want = site();
    let steps = ports().plan_to(&want).len();
    for cut in 0..steps {
        let fake = FakeKernel::new(ports());
        fake.delay_steps(Duration::from_millis(10));
        let bench = Bench::start(&fake);
        bench.want(1, &want);
        tokio::time::sleep(Duration::from_millis(10 * cut as u64 + 5)).await;
        drop(bench);
        fake.delay_steps(Duration::ZERO);
        let bench = Bench::start(&fake);
        bench.want(1, &want);
        bench.reached(1).await;
        assert!(same(&fake, &want), "after a kill at step {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_missing_does_not_stop_the_others() {
    let want = site();
    let fake = FakeKernel::new(ports());
    fake.refuse(|step| format!("{step:?}").contains("\"eth1\"").then_some(ErrorKind::NotFound));
    let bench = Bench::start(&fake);
    bench.want(1, &want);
    let progress = bench.passed(1).await;
    assert!(!progress.failures.is_empty());
    let state = fake.state();
    assert_eq!(state.ruleset, want.ruleset);
    assert_eq!(state.sysctls.get("net/ipv4/ip_forward").map(String::as_str), Some("1"));
    assert!(state.routes.keys().any(|key| key.table == wan(1).table()));

    fake.heal();
    bench.reached(1).await;
    assert!(same(&fake, &want));
}

#[tokio::test(start_paused = true)]
async fn forwarding_stays_shut_and_the_ports_as_they_are_while_the_ruleset_does_not_load() {
    let want = site();
    let fake = FakeKernel::new(ports());
    fake.refuse(|step| matches!(step, Step::LoadRuleset { .. }).then_some(ErrorKind::InvalidInput));
    let bench = Bench::start(&fake);
    bench.want(1, &want);
    let progress = bench.passed(1).await;
    assert_eq!(progress.failures.len(), 1);
    assert_eq!(fake.state().sysctls.get("net/ipv4/ip_forward"), None);
    assert_eq!(fake.state().ruleset, RulesetState::Unknown);
    assert!(want.fast_path.is_some() && fake.state().fast_path.is_none());
}

#[tokio::test(start_paused = true)]
async fn retries_come_at_growing_distances() {
    let fake = FakeKernel::new(ports());
    fake.refuse(|step| matches!(step, Step::LoadRuleset { .. }).then_some(ErrorKind::InvalidInput));
    let bench = Bench::start(&fake);
    bench.want(1, &site());
    tokio::time::sleep(Duration::from_mins(1)).await;
    // 0.1 + 0.2 + … + 3.2, then every 5 s.
    assert!((15..=19).contains(&fake.observations()), "{} observations", fake.observations());
}

#[tokio::test(start_paused = true)]
async fn only_the_latest_wanted_state_is_worked_on() {
    let fake = FakeKernel::new(ports());
    fake.delay_steps(Duration::from_millis(1));
    let bench = Bench::start(&fake);
    let good = site();
    bench.want(1, &good);
    bench.reached(1).await;
    fake.take_applied();

    // Five flaps while one step takes as long as all of them.
    fake.delay_steps(Duration::from_millis(100));
    for serial in 2..=6 {
        let state = if serial % 2 == 0 { without_wan(&good, 1) } else { without_wan(&good, 2) };
        bench.want(serial, &state);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.reached(6).await;
    assert!(same(&fake, &without_wan(&good, 1)));
    let flips = fake.take_applied().iter().filter(|step| matches!(step, Step::SetBuckets { .. })).count();
    let maps = good.buckets.len();
    assert!(flips <= 2 * maps, "{flips} flips of {maps} maps");
}

#[tokio::test(start_paused = true)]
async fn a_failover_does_not_wait_for_a_look_and_is_looked_after() {
    let fake = FakeKernel::new(ports());
    let bench = Bench::start(&fake);
    let want = site();
    bench.want(1, &want);
    bench.reached(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let looks = fake.observations();

    let lost = without_wan(&want, 1);
    bench.want(2, &lost);
    bench.reached(2).await;
    assert!(same(&fake, &lost));
    assert_eq!(fake.observations(), looks);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fake.observations(), looks + 1);
}

#[tokio::test(start_paused = true)]
async fn drift_is_repaired_within_a_second_and_counted() {
    let fake = FakeKernel::new(ports());
    let bench = Bench::start(&fake);
    let want = site();
    bench.want(1, &want);
    bench.reached(1).await;
    let tampers: [fn(&mut KernelState); 4] = [
        |state| {
            state.rules.pop_first();
        },
        |state| state.routes.clear(),
        |state| {
            state.ruleset = RulesetState::Absent;
            state.buckets.clear();
        },
        |state| {
            state.ruleset = RulesetState::Unknown;
        },
    ];
    for (number, tamper) in (1..).zip(tampers) {
        fake.tamper(tamper);
        bench.handle.drift.notify_one();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(same(&fake, &want), "after tampering {number}");
        assert_eq!(bench.handle.progress.borrow().drift_repaired, number);
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_sysctl_is_found_by_the_audit() {
    let fake = FakeKernel::new(ports());
    let bench = Bench::start(&fake);
    let want = site();
    bench.want(1, &want);
    bench.reached(1).await;
    fake.tamper(|state| state.sysctls.values_mut().for_each(|value| *value = "9".to_owned()));
    tokio::time::sleep(AUDIT * 2).await;
    assert!(same(&fake, &want));
    assert_eq!(bench.handle.progress.borrow().drift_repaired, 1);
}

#[tokio::test(start_paused = true)]
async fn our_own_changes_are_no_drift() {
    let fake = FakeKernel::new(ports());
    let bench = Bench::start(&fake);
    let want = site();
    for (serial, state) in (1..).zip([want.clone(), without_wan(&want, 1), want.clone(), KernelState::default(), want])
    {
        bench.want(serial, &state);
        bench.handle.drift.notify_one();
        bench.reached(serial).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(bench.handle.progress.borrow().drift_repaired, 0);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_hints_is_five_looks_a_second() {
    let fake = FakeKernel::new(ports());
    let bench = Bench::start(&fake);
    bench.want(1, &site());
    bench.reached(1).await;
    let before = fake.observations();
    for _ in 0..1000 {
        bench.handle.drift.notify_one();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let looks = fake.observations() - before;
    assert!((3..=6).contains(&looks), "{looks} looks");
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_cannot_be_read_is_asked_again() {
    let fake = FakeKernel::new(ports());
    fake.fail_observations(3);
    let bench = Bench::start(&fake);
    let want = site();
    bench.want(1, &want);
    bench.reached(1).await;
    assert!(same(&fake, &want));
}

#[test]
fn nothing_that_could_let_a_packet_pass_follows_a_ruleset_that_failed() {
    let class = FlowClass { family: config::units::Family::V4, wan: wan(1), policy: None };
    let open = Step::SetLateSysctl { name: "net/ipv4/ip_forward".to_owned(), value: "1".to_owned() };
    let failed = Failed { ruleset: true, ..Failed::default() };
    assert!(failed.forbids(&open));
    assert!(failed.forbids(&Step::Revive(class)));
    assert!(failed.forbids(&Step::Bury(vec![(class, Kick::All)])));
    assert!(!Failed::default().forbids(&open));
}

#[test]
fn flows_are_not_ended_while_their_successors_still_go_the_old_way() {
    let class = FlowClass { family: config::units::Family::V4, wan: wan(1), policy: None };
    let want = site();
    let (key, buckets) = want.buckets.first_key_value().unwrap();
    let mut failed = Failed::default();
    failed.note(&Step::SetBuckets { key: key.clone(), buckets: buckets.clone() });
    assert!(failed.forbids(&Step::Bury(vec![(class, Kick::All)])));
}

/// A reconciler at work on a fake kernel. Dropping it kills it wherever it is.
struct Bench {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Bench {
    fn start(fake: &FakeKernel) -> Self {
        let (reconciler, handle) = Reconciler::new(fake.clone());
        Self { handle, task: tokio::spawn(reconciler.run()) }
    }

    fn want(&self, serial: u64, state: &KernelState) {
        self.handle.wanted.send_replace(Some(Wanted { serial, state: Arc::new(state.clone()) }));
    }

    async fn reached(&self, serial: u64) -> Progress {
        self.until(|progress| progress.serial == serial && progress.passes > 0 && progress.failures.is_empty()).await
    }

    async fn passed(&self, serial: u64) -> Progress {
        self.until(|progress| progress.serial == serial && progress.passes > 0).await
    }

    async fn until(&self, done: impl FnMut(&Progress) -> bool) -> Progress {
        let mut progress = self.handle.progress.clone();
        let seen = tokio::time::timeout(Duration::from_secs(30), progress.wait_for(done)).await;
        seen.expect("the reconciler gets there").unwrap().clone()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// There is nothing left to do.
fn same(fake: &FakeKernel, want: &KernelState) -> bool {
    fake.state().plan_to(want).is_empty()
}

/// The minimal site, all ports there.
fn site() -> KernelState {
    let parsed = config::parse("minimal.toml", include_str!("../../../config/examples/minimal.toml")).unwrap();
    let mut router = Router::new();
    router.handle(&Event::Links(links()), Time::ZERO);
    router.handle(&Event::Config(Arc::new(parsed.config)), Time::ZERO);
    KernelState::clone(&router.wanted().unwrap())
}

/// What a machine with four ports shows before we come.
fn ports() -> KernelState {
    let site = site();
    let ports = site.links.into_iter().filter_map(|(name, mut link)| {
        link.up = false;
        link.master = None;
        matches!(link.kind, mwan::state::LinkKind::Port { .. }).then_some((name, link))
    });
    KernelState { links: ports.collect(), ..KernelState::default() }
}

fn links() -> Links {
    let facts = |index| LinkFacts {
        index,
        admin_up: true,
        carrier: true,
        mac: None,
        mtu: 1500,
        master: None,
        driver: None,
        pci: None,
        ours: false,
    };
    Links((0..4).map(|port| (format!("eth{port}").parse().unwrap(), facts(port + 2))).collect::<BTreeMap<_, _>>())
}

/// The same with one of the two lines lost.
fn without_wan(state: &KernelState, lost: u8) -> KernelState {
    let mut state = state.clone();
    let other = Slot::Wan(wan(3 - lost));
    for (key, buckets) in &mut state.buckets {
        buckets.0.fill(other);
        state.dead.insert(FlowClass { family: key.family, wan: wan(lost), policy: None }, Kick::All);
    }
    state
}

fn wan(id: u8) -> WanId {
    WanId::new(id).unwrap()
}
