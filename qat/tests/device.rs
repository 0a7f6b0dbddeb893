//! What the engine does about each thing that a device may do.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Keys, gzip, impatient};
use qat::{Checks, Engine, Error, Hash, Installed, Operation, Options, PrivateKey, Reason, Route, State, Work};
use qat_sim::{Count, Fault, Simulator};
use zeroize::Zeroizing;

const RSA: Operation = Operation::RsaPrivate(2048);

/// A simulator that behaves, an engine on it, and keys.
fn site() -> (Simulator, Engine, &'static Keys) {
    let simulator = Simulator::fresh();
    simulator.behave();
    let engine = Engine::start(impatient(&simulator));
    (simulator, engine, Keys::get())
}

fn sign(engine: &Engine, keys: &Keys) {
    keys.rsa(engine, 0, Hash::Sha256, true, b"a message");
}

/// How often the CPU had to sign, and why.
fn because(engine: &Engine, reason: Reason) -> u64 {
    engine.status().counts.get(&RSA).and_then(|counts| counts.cpu.get(&reason)).copied().unwrap_or_default()
}

fn all_in_use(engine: &Engine) -> bool {
    let in_use = |instance: &qat::InstanceStatus| {
        matches!(instance.state, State::Closed { .. }) && instance.tests.values().all(|passed| *passed)
    };
    engine.status().instances.iter().all(in_use)
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn end(simulator: &Simulator, engine: Engine) {
    drop(engine);
    assert_eq!(simulator.violations(), []);
    assert_eq!(simulator.count(Count::Pinned), 0);
}

#[test]
fn every_operation_goes_to_a_device_that_works() {
    let (simulator, engine, keys) = site();
    let status = engine.status();
    assert_eq!(status.instances.len(), 6);
    for (number, instance) in status.instances.iter().enumerate() {
        assert!(instance.name.contains("simulator"), "{instance:?}");
        assert!(matches!(instance.state, State::Closed { .. }), "{instance:?}");
        assert_eq!(instance.tests.len(), if number < 3 { 16 } else { 2 }, "{instance:?}");
        assert!(instance.tests.values().all(|passed| *passed), "{instance:?}");
    }
    for which in 0..3 {
        keys.rsa(&engine, which, Hash::Sha384, false, b"a message");
    }
    for which in 0..2 {
        keys.ecdsa(&engine, which, Hash::Sha512, b"a message");
        keys.agree(&engine, which);
    }
    keys.x25519(&engine);
    for which in 0..4 {
        for length in [0, 100, 1_500, 16_384] {
            keys.cipher(&engine, which, length, b"additional");
        }
    }
    for length in [1, 100, 40_000, 200_000] {
        gzip(&engine, length);
    }
    let status = engine.status();
    for operation in status.counts.keys() {
        let (p50, p99) = status.latencies[&(*operation, "qat")];
        assert!(!p50.is_zero() && p50 <= p99, "{operation}: {p50:?} {p99:?}");
    }
    let counts = status.counts;
    assert_eq!(counts.len(), 18);
    for (operation, counts) in counts {
        // There is room for so much, and a text that was made shorter in one piece cannot be cut.
        let too_long = u64::from(operation == Operation::Inflate);
        assert_eq!(counts.cpu.values().sum::<u64>(), too_long, "{operation}: {counts:?}");
        assert!(counts.offloaded > 0, "{operation}: {counts:?}");
    }
    end(&simulator, engine);
}

#[test]
fn without_a_library_the_cpu_does_it_and_the_step_is_told() {
    let engine =
        Engine::start(Options { installed: Some(Installed::At("/nowhere/libqat_s.so".into())), ..Options::default() });
    let keys = Keys::get();
    for number in 0..20 {
        keys.check(&engine, number);
    }
    let status = engine.status();
    let missing = status.discovery.missing().unwrap();
    assert_eq!(missing.what, "library");
    assert!(missing.found.as_ref().unwrap_err().contains("/nowhere/libqat_s.so"), "{missing:?}");
    assert!(because(&engine, Reason::NoDevice) > 0);
}

#[test]
fn a_library_that_lacks_a_function_does_the_rest() {
    let simulator = Simulator::without(&["cpaCyEcdsaSignRS", "cpaCySymPerformOp"]);
    simulator.behave();
    let engine = Engine::start(impatient(&simulator));
    let keys = Keys::get();
    sign(&engine, keys);
    keys.ecdsa(&engine, 0, Hash::Sha256, b"a message");
    keys.cipher(&engine, 0, 100, b"");
    let counts = engine.status().counts;
    assert_eq!(counts[&RSA].offloaded, 1);
    assert_eq!(counts[&Operation::EcdsaSign(qat::Curve::P256)].cpu, [(Reason::NotSupported, 1)].into());
    end(&simulator, engine);
}

#[test]
fn a_library_without_its_life_cycle_is_no_device() {
    for function in ["icp_sal_userStart", "cpaCyGetNumInstances", "icp_sal_CyPollInstance", "qaeMemAllocNUMA"] {
        let simulator = Simulator::without(&[function]);
        let engine = Engine::start(impatient(&simulator));
        let missing = engine.status().discovery.missing().cloned();
        assert!(missing.is_some(), "{function}");
        sign(&engine, Keys::get());
        assert_eq!(because(&engine, Reason::NoDevice), 1, "{function}");
    }
}

#[test]
fn full_rings_are_passed_over() {
    let (simulator, engine, keys) = site();
    simulator.set(Fault::Retry, 1000);
    sign(&engine, keys);
    assert_eq!(because(&engine, Reason::Busy), 1);
    assert_eq!(engine.status().instances.iter().map(|instance| instance.retries).sum::<u64>(), 3, "each was asked");
    simulator.behave();
    sign(&engine, keys);
    assert_eq!(engine.status().counts[&RSA].offloaded, 1);
    end(&simulator, engine);
}

#[test]
fn many_are_in_flight_at_once_and_more_than_the_rings_hold_go_to_the_cpu() {
    let simulator = Simulator::fresh();
    simulator.behave();
    let engine = Engine::start(Options { stuck: Duration::from_mins(1), ..impatient(&simulator) });
    let keys = Keys::get();
    simulator.set(Fault::Hang, 7);
    let PrivateKey::Rsa(key) = &keys.rsa[0].0 else { unreachable!() };
    let input = || Zeroizing::new([&[0][..], &[0x5a; 255]].concat());
    let work = || Work::RsaPrivate { key: Arc::clone(key), input: input() };
    let pending: Vec<_> = (0..250).map(|_| engine.submit(work())).collect();
    assert_eq!(simulator.count(Count::InFlight), 192);
    let mut outputs: Vec<_> = pending.into_iter().map(|pending| pending.wait().unwrap().output).collect();
    outputs.dedup();
    assert_eq!(outputs.len(), 1);
    assert_eq!((because(&engine, Reason::Busy), because(&engine, Reason::Deadline)), (58, 192));
    simulator.behave();
    wait_for("late answers come", || simulator.count(Count::InFlight) == 0);
    end(&simulator, engine);
}

#[test]
fn a_wrong_answer_never_leaves_and_its_instance_is_tested_before_it_is_used_again() {
    let (simulator, engine, keys) = site();
    simulator.set(Fault::Corrupt, 1000);
    for _ in 0..3 {
        sign(&engine, keys);
    }
    assert_eq!(because(&engine, Reason::WrongAnswer), 3, "one of each instance");
    sign(&engine, keys);
    assert!(because(&engine, Reason::NoInstance) + because(&engine, Reason::Untested) >= 1);
    simulator.behave();
    wait_for("all are in use again", || all_in_use(&engine));
    sign(&engine, keys);
    assert_eq!(engine.status().counts[&RSA].offloaded, 1);
    end(&simulator, engine);
}

#[test]
fn a_device_that_hangs_is_reset_and_comes_back() {
    let (simulator, engine, keys) = site();
    simulator.set(Fault::Hang, 7);
    for _ in 0..20 {
        sign(&engine, keys);
    }
    assert!(because(&engine, Reason::Deadline) >= 3);
    wait_for("it was reset, and answers again", || {
        sign(&engine, keys);
        engine.status().counts[&RSA].offloaded > 0
    });
    assert!(simulator.count(Count::Resets) > 0);
    wait_for("nothing stays in flight", || simulator.count(Count::InFlight) == 0);
    end(&simulator, engine);
}

#[test]
fn an_instance_that_restarts_is_tested_first() {
    let (simulator, engine, keys) = site();
    simulator.set(Fault::Restart, 100);
    let answers = || engine.status().instances.iter().map(|instance| instance.answered).collect::<Vec<_>>();
    let before = answers();
    (0..3).for_each(|instance| simulator.reset(instance));
    wait_for("the restarts are heard of", || engine.status().instances.iter().all(|instance| instance.restarts == 1));
    sign(&engine, keys);
    assert_eq!(because(&engine, Reason::NoInstance), 1);
    wait_for("they are in use", || all_in_use(&engine));
    for ((before, after), tests) in before.into_iter().zip(answers()).zip([16, 16, 16, 4, 4, 4]) {
        assert!(after >= before + tests, "every known answer was asked for again");
    }
    sign(&engine, keys);
    assert_eq!(engine.status().counts[&RSA].offloaded, 1);
    end(&simulator, engine);
}

#[test]
fn late_answers_find_their_buffers_as_they_left_them() {
    let (simulator, engine, keys) = site();
    for _ in 0..40 {
        sign(&engine, keys);
    }
    simulator.set(Fault::Latency, 1_500_000);
    sign(&engine, keys);
    assert_eq!(because(&engine, Reason::Deadline), 1);
    assert_eq!(simulator.count(Count::InFlight), 1, "the device still has it");
    wait_for("it is answered, to nobody, or failed by a reset", || simulator.count(Count::InFlight) == 0);
    let late = || engine.status().instances.iter().map(|instance| instance.late).sum::<u64>();
    wait_for("that is counted", || late() >= 1);
    end(&simulator, engine);
}

#[test]
fn memory_that_the_device_never_gave_back_is_not_freed() {
    let (simulator, engine, keys) = site();
    simulator.set(Fault::Hang, 7);
    sign(&engine, keys);
    drop(engine);
    assert_eq!(simulator.violations(), []);
    assert!(simulator.count(Count::Pinned) > 0);
}

fn failed_tests(instance: &qat::InstanceStatus) -> Vec<Operation> {
    instance.tests.iter().filter(|(_, passed)| !**passed).map(|(operation, _)| *operation).collect()
}

#[test]
fn a_known_answer_that_does_not_come_keeps_that_operation_of_that_instance_out_of_use() {
    let simulator = Simulator::fresh();
    simulator.behave();
    simulator.set(Fault::WrongX25519, 0b010);
    let engine = Engine::start(Options { retest: Duration::from_hours(1), ..impatient(&simulator) });
    let instances = engine.status().instances;
    assert!(instances.iter().all(|instance| matches!(instance.state, State::Closed { .. })), "{instances:?}");
    let failed: Vec<_> = instances.iter().map(failed_tests).collect();
    assert_eq!(failed, [vec![], vec![Operation::X25519], vec![], vec![], vec![], vec![]]);
    assert_eq!(instances[1].tests.len(), 16);
    let corrupted = simulator.count(Count::Corrupted);
    let before = instances[1].answered;
    let keys = Keys::get();
    for _ in 0..12 {
        keys.x25519(&engine);
        sign(&engine, keys);
    }
    let status = engine.status();
    assert_eq!((status.counts[&Operation::X25519].offloaded, status.counts[&RSA].offloaded), (12, 12));
    assert_eq!(simulator.count(Count::Corrupted), corrupted, "it was not asked for what it cannot do");
    assert!(status.instances[1].answered > before, "it was for what it can");
    end(&simulator, engine);
}

#[test]
fn an_operation_whose_known_answer_comes_from_no_instance_is_the_cpus_until_it_does() {
    let simulator = Simulator::fresh();
    simulator.behave();
    simulator.set(Fault::WrongX25519, 0b111);
    let engine = Engine::start(impatient(&simulator));
    let keys = Keys::get();
    keys.x25519(&engine);
    sign(&engine, keys);
    let counts = engine.status().counts;
    assert_eq!(counts[&Operation::X25519].cpu, [(Reason::Untested, 1)].into());
    assert_eq!(counts[&RSA].offloaded, 1);
    simulator.behave();
    wait_for("it is tested again and passes", || all_in_use(&engine));
    keys.x25519(&engine);
    assert_eq!(engine.status().counts[&Operation::X25519].offloaded, 1);
    end(&simulator, engine);
}

/// One answer in ten says that it failed: what that hits is another operation of each instance.
#[test]
fn instances_that_fail_tests_at_random_do_the_others() {
    let simulator = Simulator::fresh();
    simulator.behave();
    simulator.set(Fault::Fail, 100);
    let engine = Engine::start(Options { retest: Duration::from_hours(1), ..impatient(&simulator) });
    simulator.behave();
    let instances = engine.status().instances;
    assert!(instances.iter().flat_map(failed_tests).count() < 16 * instances.len());
    let keys = Keys::get();
    for number in 0..40 {
        keys.check(&engine, number);
    }
    assert!(engine.status().counts.values().map(|counts| counts.offloaded).sum::<u64>() > 0);
    end(&simulator, engine);
}

#[test]
fn a_bad_input_of_a_peer_does_not_put_the_device_out_of_use() {
    for checks in [Checks::Every, Checks::Cheap] {
        let simulator = Simulator::fresh();
        simulator.behave();
        let engine = Engine::start(Options { checks, ..impatient(&simulator) });
        let keys = Keys::get();
        let nonce = [7; 12];
        for _ in 0..20 {
            // A point of small order, one that is not on the curve, a text that was made up, a number too large.
            assert!(matches!(engine.x25519(&keys.x25519, [0; 32]), Err(Error::Peer)));
            assert!(matches!(engine.agree(&keys.agreement[0].0, &[4; 65]), Err(Error::Peer)));
            let opened = engine.open(&keys.ciphers[0], &nonce, b"", &[1; 64], &[2; 16]);
            assert!(matches!(opened, Err(Error::NotAuthentic)));
            let PrivateKey::Rsa(key) = &keys.rsa[0].0 else { unreachable!() };
            assert!(matches!(engine.decrypt(key, Hash::Sha256, &[0xff; 256]), Err(Error::NotDecryptable)));
        }
        assert!(all_in_use(&engine));
        keys.x25519(&engine);
        assert_eq!(engine.status().counts[&Operation::X25519].offloaded, 1);
        end(&simulator, engine);
    }
}

#[test]
fn a_library_whose_structures_are_not_known_compresses_nothing() {
    let simulator = Simulator::of_version("04.28.0");
    simulator.behave();
    let engine = Engine::start(impatient(&simulator));
    let status = engine.status();
    assert_eq!(status.instances.len(), 3);
    let told = status.discovery.steps.iter().find(|step| step.what == "compression").unwrap();
    assert!(told.found.as_ref().is_err_and(|reason| reason.contains("4.28.0")), "{told:?}");
    assert_eq!(status.discovery.missing(), None);
    gzip(&engine, 1_000);
    sign(&engine, Keys::get());
    let counts = engine.status().counts;
    assert_eq!(counts[&Operation::Deflate].cpu, [(Reason::NotSupported, 1)].into());
    assert_eq!(counts[&RSA].offloaded, 1);
    end(&simulator, engine);
}

#[test]
fn files_that_are_not_whole_do_not_put_the_device_out_of_use() {
    let (simulator, engine, _) = site();
    let text: Vec<u8> = (0..9_000_u32).flat_map(u32::to_le_bytes).collect();
    let whole = engine.gzip(&text).unwrap();
    for place in [12, 200, 5_000, whole.len() - 10, whole.len() - 6, whole.len() - 2] {
        for _ in 0..4 {
            let mut file = whole.clone();
            file[place] ^= 0x10;
            let read = engine.gunzip(&file, 100_000);
            assert!(matches!(read, Err(Error::NotIntact | Error::TooLong { .. })), "{place}: {read:?}");
        }
        assert!(engine.gunzip(&whole[..place], 100_000).is_err(), "{place}");
    }
    assert!(all_in_use(&engine));
    gzip(&engine, 1_000);
    assert_eq!(*engine.gunzip(&whole, text.len()).unwrap(), text);
    assert!(matches!(engine.gunzip(&whole, text.len() - 1), Err(Error::TooLong { .. })));
    end(&simulator, engine);
}

#[test]
fn what_was_made_shorter_wrongly_never_leaves() {
    let (simulator, engine, _) = site();
    simulator.set(Fault::Corrupt, 1000);
    for _ in 0..3 {
        gzip(&engine, 1_000);
    }
    let counts = engine.status().counts;
    assert_eq!(counts[&Operation::Deflate].offloaded, 0);
    assert!(counts[&Operation::Deflate].cpu[&Reason::WrongAnswer] >= 1, "{counts:?}");
    simulator.behave();
    wait_for("all are in use again", || all_in_use(&engine));
    gzip(&engine, 1_000);
    assert_eq!(engine.status().counts[&Operation::Deflate].offloaded, 1);
    end(&simulator, engine);
}

#[test]
fn the_route_is_measured() {
    let simulator = Simulator::fresh();
    simulator.behave();
    let engine = Engine::start(Options { route: Route::Measured, ..impatient(&simulator) });
    let keys = Keys::get();
    for _ in 0..400 {
        keys.cipher(&engine, 0, 64, b"");
    }
    // With every answer computed again, the CPU is always the cheaper for a cipher.
    let status = engine.status();
    let sealed = &status.counts[&Operation::Cipher(qat::Cipher::Aes128Gcm, qat::Direction::Seal)];
    assert!(sealed.cpu[&Reason::Cheaper] > 300, "{sealed:?}");
    assert!(status.choices.iter().any(|(.., chosen)| *chosen == Some(qat::Side::Cpu)), "{:?}", status.choices);
    let engine_on_the_cpu = Engine::start(Options { installed: None, route: Route::Cpu, ..Options::default() });
    sign(&engine_on_the_cpu, keys);
    assert_eq!(because(&engine_on_the_cpu, Reason::NoDevice), 1);
    end(&simulator, engine);
}
