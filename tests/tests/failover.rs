//! What traffic notices of a failover, of applies, and of a daemon that ends. The bounds are generous, because
//! other tests share the machine; `bench` measures the same and tells the numbers.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::failover::{self, PATIENCE, RATE, TO, Trial, client, one_for_each_line, trial};
use tests::lab::{Lab, Temporary, binary};
use tests::link::Fault;
use tests::netns::run;
use tests::root::Root;
use tests::traffic::{UdpFlow, seen_as};

#[test]
fn a_cable_that_is_pulled_costs_its_own_flows_a_moment_and_others_nothing() {
    check(4, false, Fault::Carrier, &[1, 2, 3], Duration::from_secs(1));
}

#[test]
fn a_blackhole_costs_its_own_flows_the_time_of_the_probes_and_others_nothing() {
    check(4, false, Fault::Blackhole, &[4, 3, 2], Duration::from_secs(5));
}

#[test]
fn lines_with_one_subnet_and_one_gateway_fail_over_the_same_way() {
    check(4, true, Fault::Carrier, &[2], Duration::from_secs(1));
    check(4, true, Fault::Blackhole, &[3], Duration::from_secs(5));
}

#[test]
fn a_line_of_six_fails_over_the_same_way() {
    check(6, false, Fault::Carrier, &[6], Duration::from_secs(1));
    check(6, false, Fault::Blackhole, &[5], Duration::from_secs(5));
}

/// Acceptance 4 of the router's issue.
#[test]
fn a_hundred_applies_lose_no_datagram() {
    let Some((lab, _alone)) = lab(4, false) else { return };
    let before = lab.site_file();
    let text = std::fs::read_to_string(&before).unwrap();
    let after = before.with_file_name("other.toml");
    let cell = "\n[[cell]]\nfrom = \"office\"\nto = \"guests\"\nservices = [\"tcp/9100\"]\n";
    std::fs::write(&after, text + cell).unwrap();

    let (mut digests, start) = (Vec::new(), Instant::now());
    undisturbed(&lab, || {
        for file in [&after, &before].into_iter().cycle().take(100) {
            run(lab.routerctl().unwrap().arg("apply").arg(file)).unwrap();
            let load = generation(&lab);
            assert_ne!(digests.last(), Some(&load), "an apply of another file loads another table");
            digests.push(load);
        }
    });
    println!("100 applies in {:.1} s", start.elapsed().as_secs_f64());
}

#[test]
fn a_killed_daemon_loses_no_datagram_and_its_successor_adopts_what_it_finds() {
    let Some((mut lab, _alone)) = lab(4, false) else { return };
    let before = handles(&lab);
    let inside = client(&lab).unwrap();
    let sockets = one_for_each_line(&lab, &inside).unwrap();
    let seen: Vec<_> = sockets.iter().map(|socket| seen_as(socket, PATIENCE).unwrap()).collect();
    let flows: Vec<_> = sockets.iter().map(|socket| UdpFlow::on(socket, RATE).unwrap()).collect();
    thread::sleep(Duration::from_millis(300));
    lab.stop_router(Signal::SIGKILL).unwrap();
    thread::sleep(Duration::from_secs(1));
    lab.start_router().unwrap();
    tests::demo::wait_until_good(&lab, PATIENCE).unwrap();
    // The look at the whole kernel that follows a start is over by then.
    thread::sleep(Duration::from_secs(1));
    for flow in flows {
        let report = flow.stop();
        assert!(report.lost.is_empty(), "{report:?}");
    }
    for (socket, seen) in sockets.iter().zip(seen) {
        assert_eq!(seen_as(socket, PATIENCE).unwrap(), seen, "a flow changed its line");
    }
    assert_eq!(handles(&lab), before, "the table was loaded again although nothing had changed");
}

/// Breaks the lines one after the other; the median may be as long as `bound`.
fn check(wans: u8, same_gateway: bool, fault: Fault, numbers: &[u8], bound: Duration) {
    let Some(_alone) = alone() else { return };
    let mut lab = failover::lab(wans, same_gateway).unwrap();
    let watch = match fault {
        Fault::Carrier => Duration::from_secs(1),
        Fault::Blackhole | Fault::Loss(_) | Fault::Delay { .. } | Fault::Dns | Fault::Http => Duration::from_secs(2),
    };
    let mut trials = Vec::new();
    for number in numbers {
        let judged = (0..TRIES).map(|_| trial(&mut lab, *number, fault, watch).unwrap()).find(|trial| {
            println!("{fault} with {wans} lines: {trial:?}");
            trial.control_lost == 0 && trial.stall < STOOD_STILL
        });
        let Some(trial) = judged else {
            println!("no verdict: in each of {TRIES} trials the machine had no time for packets");
            continue;
        };
        assert_eq!(trial.others_lost, 0, "flows of other lines: {trial:?}");
        assert!(trial.slowest.is_some() && trial.born.is_some(), "not everything works again: {trial:?}");
        trials.push(trial);
    }
    if trials.is_empty() {
        return;
    }
    let median = |of: fn(&Trial) -> Option<Duration>| {
        let mut times: Vec<_> = trials.iter().filter_map(of).collect();
        times.sort();
        times[times.len() / 2]
    };
    for of in [|trial: &Trial| trial.slowest, |trial: &Trial| Some(trial.flow), |trial: &Trial| trial.born] {
        assert!(median(of) < bound, "{trials:?}");
    }
}

/// A 1 kHz flow on every line loses nothing and keeps its line while `work` is done.
fn undisturbed(lab: &Lab, work: impl FnOnce()) {
    let inside = client(lab).unwrap();
    let sockets = one_for_each_line(lab, &inside).unwrap();
    let flows: Vec<_> = sockets.iter().map(|socket| UdpFlow::on(socket, RATE).unwrap()).collect();
    let control = UdpFlow::start(&lab.isp(1), None, TO, RATE).unwrap();
    thread::sleep(Duration::from_millis(300));
    work();
    let reports: Vec<_> = flows.into_iter().map(UdpFlow::stop).collect();
    let lost: usize = reports.iter().map(|report| report.lost.len()).sum();
    let sent: u32 = reports.iter().map(|report| report.sent).sum();
    let control = control.stop().lost.len();
    println!("{lost} of {sent} datagrams lost, {control} of those that do not cross the router");
    assert!(lost <= excused(control, reports.len()), "{lost} of {sent} lost: {reports:?}");
}

/// What a flow loses that never sees the router is not the router's loss, nor is as much of each other flow: the
/// machine stood still. Where that flow lost nothing, no other may.
fn excused(control: usize, flows: usize) -> usize {
    if control == 0 { 0 } else { (control + control / 10 + 1) * flows }
}

/// The empty chain whose name says which load of the table is in force.
fn generation(lab: &Lab) -> String {
    let listing = listing(lab);
    listing.lines().find(|line| line.contains("chain gen_")).unwrap().to_owned()
}

/// The handles of all that is in the table: a load gives out others.
fn handles(lab: &Lab) -> Vec<String> {
    listing(lab).lines().filter_map(|line| line.rsplit_once("# handle ")).map(|(_, handle)| handle.to_owned()).collect()
}

fn listing(lab: &Lab) -> String {
    let mut nft = Root::find().unwrap().command(&lab.router(), "nft");
    run(nft.args(["--handle", "--terse", "list", "table", "inet", "quadway"])).unwrap()
}

fn lab(wans: u8, same_gateway: bool) -> Option<(Temporary, MutexGuard<'static, ()>)> {
    let alone = alone()?;
    Some((failover::lab(wans, same_gateway).unwrap(), alone))
}

/// Times are taken of one lab at a time.
fn alone() -> Option<MutexGuard<'static, ()>> {
    static LABS: Mutex<()> = Mutex::new(());
    can_run().then(|| LABS.lock().unwrap_or_else(PoisonError::into_inner))
}

fn can_run() -> bool {
    let possible = tests::can_run().and_then(|()| binary("routerd").and(binary("routerctl")).map(drop));
    if let Err(reason) = &possible {
        println!("SKIP: {reason:#}");
    }
    possible.is_ok()
}

/// So long a 1 kHz flow that never sees the router hears nothing only where nobody has a processor. Such a trial, and one
/// in which that flow loses datagrams, says nothing of the router, and is done again.
const STOOD_STILL: Duration = Duration::from_millis(100);
const TRIES: usize = 6;
