//! Debian 13's multi-buffer libraries, as far as this CPU runs them: AES-GCM and AES-CBC with HMAC-SHA-256 against
//! OpenSSL for every length, in bursts of every size, and by many threads. `vectors.rs` tries them with Wycheproof's.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{batching, multibuffer};
use qat::{Cipher, Direction, Engine, Exercise, Multibuffer, Operation, Options, Reason, Route, Work};

/// OpenSSL alone.
fn plain() -> Engine {
    Engine::start(Options { installed: None, multibuffer: None, route: Route::Cpu, ..Options::default() })
}

fn ciphers(engine: &Engine) -> Vec<Operation> {
    let lines = engine.status().batches.into_iter().filter(|line| matches!(line.operation, Operation::Cipher(..)));
    lines.inspect(|line| assert!(line.in_use, "{line:?}")).map(|line| line.operation).collect()
}

fn changed_text(mut work: Work) -> Work {
    if let Work::Cipher(work) = &mut work {
        work.text[7] ^= 1;
    }
    work
}

#[test]
fn every_length_in_bursts_of_every_size_is_what_openssl_makes_of_it() {
    let Some(engine) = batching() else { return };
    let (plain, exercise) = (plain(), Exercise::new().unwrap());
    let operations = ciphers(&engine);
    assert_eq!(operations.len(), 8);
    for operation in operations {
        let step =
            if matches!(operation, Operation::Cipher(Cipher::Aes128Gcm | Cipher::Aes256Gcm, _)) { 1 } else { 16 };
        let mut number = 0_u64;
        let mut lengths = (0..=LONGEST).step_by(step);
        for size in (1..=40).cycle() {
            let burst: Vec<_> = lengths.by_ref().take(size).collect();
            if burst.is_empty() {
                break;
            }
            let works: Vec<_> = burst
                .into_iter()
                .map(|length| {
                    number += 1;
                    Arc::new(exercise.text(operation, length, usize::try_from(number % 67).unwrap(), number).unwrap())
                })
                .collect();
            let pending: Vec<_> = works.iter().map(|work| engine.submit(Arc::clone(work))).collect();
            for (pending, work) in pending.into_iter().zip(&works) {
                let done = pending.wait().unwrap();
                let expected = plain.run(Arc::clone(work)).unwrap().output;
                assert!(done.output == expected, "{operation} of {} bytes", work.len());
                // Of CBC there is none of nothing.
                let refused = work.is_empty() && done.fallback == Some(Reason::NotSupported);
                assert!(refused || done.by == "multi-buffer", "{operation} of {} bytes: {done:?}", work.len());
            }
        }
    }
}

#[test]
fn what_was_changed_is_not_opened_whatever_else_is_in_the_burst() {
    let Some(engine) = batching() else { return };
    let exercise = Exercise::new().unwrap();
    for operation in ciphers(&engine).into_iter().filter(|op| matches!(op, Operation::Cipher(_, Direction::Open))) {
        let burst = |changed: usize| (0..32_usize).map(move |index| (index, index == changed));
        for changed in 0..32 {
            let works = burst(changed).map(|(index, is_changed)| {
                let work = exercise.text(operation, 64 + index, 13, index as u64).unwrap();
                Arc::new(if is_changed { changed_text(work) } else { work })
            });
            let pending: Vec<_> = works.map(|work| engine.submit(work)).collect();
            for (index, pending) in pending.into_iter().enumerate() {
                let done = pending.wait();
                if index == changed {
                    assert!(matches!(done, Err(qat::Error::NotAuthentic)), "{operation} {index}");
                } else {
                    assert_eq!(done.unwrap().by, "multi-buffer", "{operation} {index}");
                }
            }
        }
    }
}

#[test]
fn many_threads_at_once_get_what_is_right() {
    let Some(engine) = batching() else { return };
    let exercise = Exercise::new().unwrap();
    let load = exercise.load(&engine, 8, 8_000, Duration::from_mins(2));
    assert_eq!((load.done, load.wrong), (8_000, vec![]));
    let status = engine.status();
    for line in status.batches.iter().filter(|line| matches!(line.operation, Operation::Cipher(..))) {
        assert!(line.in_use && line.operations > 0, "{line:?}");
        let counts = &status.counts[&line.operation];
        assert_eq!((counts.offloaded, counts.refused), (line.operations, 0), "{}", line.operation);
    }
}

#[test]
fn a_single_caller_is_not_slowed() {
    let Some(multibuffer) = multibuffer() else { return };
    let options =
        Options { installed: None, multibuffer: Some(multibuffer), route: Route::Measured, ..Options::default() };
    let (engine, exercise) = (Engine::start(options), Exercise::new().unwrap());
    for operation in ciphers(&engine) {
        let work = Arc::new(exercise.work(operation, 1_408, 1).unwrap());
        for _ in 0..2_000 {
            engine.run(Arc::clone(&work)).unwrap();
        }
    }
    let choices = engine.status().choices;
    assert!(choices.iter().all(|(_, depth, ..)| *depth == 0), "{choices:?}");
    for (class, _, cpu, batched, choice) in choices {
        println!("{} {class:?}: {cpu:?} by OpenSSL, {batched:?} in a batch of one, {choice:?}", class.operation);
        // Whoever is chosen costs no more than OpenSSL, but for what a loaded machine blurs.
        if choice == Some(qat::Side::Device) {
            assert!(batched < cpu, "{class:?}: {cpu:?} {batched:?}");
        } else {
            assert_eq!(choice, Some(qat::Side::Cpu));
        }
    }
}

#[test]
fn a_cpu_or_a_machine_without_them_is_told_why_and_what_to_do() {
    let told = |multibuffer| {
        let engine =
            Engine::start(Options { installed: None, multibuffer, route: Route::Device, ..Options::default() });
        let began = Instant::now();
        let exercise = Exercise::new().unwrap();
        let work = exercise.work(Operation::X25519, 0, 1).unwrap();
        assert!(engine.run(work).is_ok(), "{:?}", began.elapsed());
        engine.status().discovery.to_string()
    };
    let nowhere = || PathBuf::from("/nowhere/lib.so");
    let discovery = told(Some(Multibuffer::At { crypto_mb: nowhere(), ipsec_mb: nowhere() }));
    assert!(discovery.contains("crypto_mb      - /nowhere/lib.so: "), "{discovery}");
    assert!(discovery.contains("ipsec-mb       - /nowhere/lib.so: "), "{discovery}");
    let Some(multibuffer) = multibuffer() else { return };
    let discovery = told(Some(multibuffer));
    println!("{discovery}");
    assert!(discovery.contains("libIPSec_MB.so.2"), "{discovery}");
    if is_x86_feature_detected!("avx512ifma") {
        assert!(discovery.contains("on this CPU: RSA-2048 private"), "{discovery}");
    } else {
        assert!(discovery.contains("does nothing on this CPU, which lacks "), "{discovery}");
        assert!(discovery.contains("avx512ifma"), "{discovery}");
    }
}

const LONGEST: usize = 4_100;
