//! Thousands of mixed operations under every fault, alone and together: none fails, none is wrong, and no buffer is touched
//! while the device has it. Every result is checked by OpenSSL, apart from the engine.
//!
//! `QUADWAY_CAMPAIGN` is the number of operations; `make campaign` runs the long one.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{Keys, impatient, slower};
use qat::{Counts, Engine, InstanceStatus, Operation, Reason, State};
use qat_sim::{Count, Fault, Simulator};

const THREADS: u64 = 8;
/// One test after the other: the memory that is measured is all of the process's.
static TURN: Mutex<()> = Mutex::new(());

struct Phase {
    name: &'static str,
    faults: &'static [(Fault, u64)],
    /// Instances are reset, or hang, or say that they restart and do not, again and again.
    resets: bool,
    hangs: bool,
    announces: bool,
}

const PHASES: [Phase; 12] = [
    phase("none", &[]),
    phase("latency", &[(Fault::Latency, 300), (Fault::Jitter, 400)]),
    phase("retry", &[(Fault::Retry, 300)]),
    phase("always retry", &[(Fault::Retry, 1000)]),
    phase("drop", &[(Fault::Drop, 10)]),
    phase("corrupt", &[(Fault::Corrupt, 20)]),
    phase("fail", &[(Fault::Fail, 20)]),
    Phase { hangs: true, ..phase("hang", &[(Fault::Latency, 100)]) },
    Phase { resets: true, ..phase("reset", &[(Fault::Latency, 100)]) },
    Phase { announces: true, ..phase("announcement", &[(Fault::Latency, 100)]) },
    Phase {
        resets: true,
        hangs: true,
        announces: true,
        ..phase(
            "all together",
            &[
                (Fault::Latency, 200),
                (Fault::Jitter, 2_000),
                (Fault::Retry, 100),
                (Fault::Drop, 2),
                (Fault::Corrupt, 2),
                (Fault::Fail, 2),
            ],
        )
    },
    // Deadlines follow it, so it is the last.
    phase("long latency", &[(Fault::Latency, 30_000), (Fault::Jitter, 60_000)]),
];

const fn phase(name: &'static str, faults: &'static [(Fault, u64)]) -> Phase {
    Phase { name, faults, resets: false, hangs: false, announces: false }
}

#[test]
fn no_operation_fails_or_is_wrong_under_any_fault() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let simulator = Simulator::fresh();
    simulator.behave();
    let engine = Engine::start(impatient(&simulator));
    let keys = Keys::get();
    let mut resident = Vec::new();
    let mut before = BTreeMap::new();
    let (mut total, mut offloaded_total) = (0, 0);
    let began = Instant::now();
    for phase in &PHASES {
        simulator.behave();
        phase.faults.iter().for_each(|(fault, value)| simulator.set(*fault, *value));
        let started = Instant::now();
        let operations = run(&engine, &simulator, keys, phase, wanted().div_ceil(PHASES.len() as u64));
        let counts = engine.status().counts;
        let (offloaded, fallbacks) = difference(&before, &counts);
        before = counts;
        println!(
            "{:<13} {operations:6} operations in {:6.2?}, {offloaded:6} offloaded; {fallbacks:?}",
            phase.name,
            started.elapsed()
        );
        assert_eq!(operations, offloaded + fallbacks.values().sum::<u64>(), "{}: each is counted once", phase.name);
        total += operations;
        offloaded_total += offloaded;
        resident.push(resident_kib());
        assert_eq!(simulator.violations(), [], "{}", phase.name);
    }
    println!("{total} operations in {:.1?}, {offloaded_total} offloaded, 0 failed, 0 wrong", began.elapsed());
    for count in [
        Count::Requests,
        Count::Answers,
        Count::Retried,
        Count::Dropped,
        Count::Corrupted,
        Count::Failed,
        Count::Resets,
    ] {
        print!("{count:?} {}  ", simulator.count(count));
    }
    println!("\nresident after each phase, KiB: {resident:?}");
    let grown = resident.last().unwrap().saturating_sub(resident[1]);
    assert!(grown < 32 * 1024, "memory grew by {grown} KiB");

    // All is well again without anybody's doing.
    simulator.behave();
    let until = Instant::now() + Duration::from_secs(20) * slower();
    let in_use = |instance: &InstanceStatus| {
        matches!(instance.state, State::Closed { .. }) && instance.tests.values().all(|passed| *passed)
    };
    while !engine.status().instances.iter().all(in_use) {
        assert!(Instant::now() < until, "{:?}", engine.status().instances);
        std::thread::sleep(Duration::from_millis(5));
    }
    let counts = engine.status().counts;
    run(&engine, &simulator, keys, &PHASES[0], 100);
    assert!(difference(&counts, &engine.status().counts).0 > 50 / u64::from(slower()), "the device is used again");
    let restarts: u64 = engine.status().instances.iter().map(|instance| instance.restarts).sum();
    assert!(restarts > 0 && offloaded_total > total / 4, "{restarts} restarts, {offloaded_total} of {total} offloaded");

    // A reset gives back what was lost on an instance that did not lose enough to be reset by the engine.
    (0..3).for_each(|instance| simulator.reset(instance));
    drop(engine);
    assert_eq!(simulator.violations(), []);
    for count in [Count::InFlight, Count::Pinned, Count::Sessions] {
        assert_eq!(simulator.count(count), 0, "{count:?}");
    }
}

/// A function, and which operations are the CPU's without it.
type Lacking = (&'static str, fn(Operation) -> bool);

/// What one library or another lacks, and whose function that is.
const LACKING: [Lacking; 14] = [
    ("cpaCyRsaDecrypt", |operation| matches!(operation, Operation::RsaPrivate(_))),
    ("cpaCyEcdsaSignRS", |operation| matches!(operation, Operation::EcdsaSign(_))),
    ("cpaCyEcPointMultiply", |operation| matches!(operation, Operation::Ecdh(_))),
    ("cpaCyEcMontEdwdsPointMultiply", |operation| operation == Operation::X25519),
    ("cpaCySymInitSession", |operation| matches!(operation, Operation::Cipher(..))),
    ("cpaCySymRemoveSession", |operation| matches!(operation, Operation::Cipher(..))),
    ("cpaDcCompressData2", |operation| operation == Operation::Deflate),
    ("cpaDcDecompressData", |operation| operation == Operation::Inflate),
    ("cpaDcStartInstance", |operation| matches!(operation, Operation::Deflate | Operation::Inflate)),
    ("cpaCyInstanceSetNotificationCb", |_| false),
    ("icp_sal_poll_device_events", |_| false),
    ("icp_sal_reset_device", |_| false),
    ("icp_sal_userStart", |_| true),
    ("qaeMemAllocNUMA", |_| true),
];

#[test]
fn whatever_function_is_missing_no_operation_fails_or_is_wrong() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for (function, is_of_it) in LACKING {
        let simulator = Simulator::without(&[function]);
        simulator.behave();
        let engine = Engine::start(impatient(&simulator));
        let operations = run(&engine, &simulator, Keys::get(), &PHASES[0], wanted().div_ceil(100));
        let counts = engine.status().counts;
        let (offloaded, fallbacks) = difference(&BTreeMap::new(), &counts);
        println!("without {function:<30} {operations:6} operations, {offloaded:6} offloaded; {fallbacks:?}");
        assert_eq!(operations, offloaded + fallbacks.values().sum::<u64>(), "{function}: each is counted once");
        for (operation, counts) in counts {
            let lacks = counts.cpu.keys().any(|reason| matches!(reason, Reason::NotSupported | Reason::NoDevice));
            assert_eq!(lacks, is_of_it(operation), "without {function}, {operation}: {counts:?}");
            assert!(!lacks || counts.offloaded == 0, "without {function}, {operation}: {counts:?}");
        }
        drop(engine);
        assert_eq!(simulator.violations(), [], "{function}");
        assert_eq!(simulator.count(Count::Pinned), 0, "{function}");
    }
}

fn wanted() -> u64 {
    std::env::var("QUADWAY_CAMPAIGN").map_or(3_300, |text| text.parse().unwrap())
}

/// How many operations were done. Each one panics unless it is right.
fn run(engine: &Engine, simulator: &Simulator, keys: &Keys, phase: &Phase, operations: u64) -> u64 {
    let each = operations.div_ceil(THREADS);
    let done = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let chaos = scope.spawn(|| {
            let mut turn = 0_u32;
            while !over.load(Ordering::Relaxed) {
                if phase.hangs {
                    simulator.set(Fault::Hang, [1, 2, 4, 7, 0][turn as usize % 5]);
                }
                if phase.resets {
                    simulator.reset(turn % 3);
                }
                if phase.announces {
                    simulator.announce(turn % 3);
                }
                turn += 1;
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let done = &done;
                scope.spawn(move || {
                    for number in 0..each {
                        let operations = keys.check(engine, thread.wrapping_mul(0x9e37_79b9) ^ number);
                        done.fetch_add(operations, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        chaos.join().unwrap();
        for worker in ended {
            worker.unwrap();
        }
    });
    done.load(Ordering::Relaxed)
}

fn difference(
    before: &BTreeMap<Operation, Counts>,
    after: &BTreeMap<Operation, Counts>,
) -> (u64, BTreeMap<Reason, u64>) {
    let sum = |counts: &BTreeMap<Operation, Counts>| {
        let mut reasons = BTreeMap::<Reason, u64>::new();
        for (reason, n) in counts.values().flat_map(|counts| &counts.cpu) {
            *reasons.entry(*reason).or_default() += n;
        }
        (counts.values().map(|counts| counts.offloaded).sum::<u64>(), reasons)
    };
    let ((offloaded_before, before), (offloaded, mut reasons)) = (sum(before), sum(after));
    for (reason, n) in before {
        *reasons.entry(reason).or_default() -= n;
    }
    reasons.retain(|_, n| *n > 0);
    (offloaded - offloaded_before, reasons)
}

fn resident_kib() -> u64 {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4
}
