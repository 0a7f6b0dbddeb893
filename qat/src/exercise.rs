//! Operations of every kind, made up: to try an engine under load with each result checked by OpenSSL, and to measure it.
//! `routerctl qat` is made of this.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::calibrate::Latencies;
use crate::engine::{Checks, Engine, thread_time};
use crate::job::{CipherWork, Direction, InflateWork, Operation, Output, Work};
use crate::key::{Cipher, CipherKey, Curve, EcPrivate, KeyError, PrivateKey, RsaPrivate, X25519Private};
use crate::{Error, cpu, deflate, selftest};

/// Keys of every kind, good for nothing else.
#[derive(Debug)]
pub struct Exercise {
    rsa: Vec<Arc<RsaPrivate>>,
    ec: Vec<Arc<EcPrivate>>,
    /// Public points of others.
    peers: Vec<Vec<u8>>,
    x25519: Arc<X25519Private>,
    ciphers: Vec<Arc<CipherKey>>,
}

/// What came of many operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    pub done: u64,
    /// The first few that were wrong, or not done at all.
    pub wrong: Vec<String>,
    pub took: Duration,
}

/// How fast one operation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    /// CPU time of the calling thread, of one operation.
    pub cpu: Duration,
    pub p99: Duration,
    /// The share that the CPU did, 0 to 1.
    pub on_the_cpu: f64,
}

/// Whether OpenSSL of this machine gives the known answers, by operation.
pub fn known_answers() -> Vec<(Operation, bool)> {
    let passes = |test: &selftest::Test| {
        let run = cpu::run(&test.work).is_ok_and(|output| is_right(&test.work, &output));
        run && is_right(&test.work, &test.answer)
    };
    selftest::tests().iter().map(|test| (test.operation, passes(test))).collect()
}

impl Exercise {
    /// RSA's keys are those of the known answers, since new ones take seconds; the rest is made here.
    pub fn new() -> Result<Self, KeyError> {
        let rsa = |key: &[u8]| match PrivateKey::from_der(key)? {
            PrivateKey::Rsa(key) => Ok(key),
            PrivateKey::Ec(_) => Err(KeyError::Type("EC".to_owned())),
        };
        let (mut key, mut hash_key) = ([0; 32], [0; 32]);
        openssl::rand::rand_bytes(&mut key)?;
        openssl::rand::rand_bytes(&mut hash_key)?;
        let cipher =
            |cipher: Cipher| CipherKey::new(cipher, &key[..cipher.key_size()], &hash_key[..cipher.hash_key_size()]);
        Ok(Self {
            rsa: selftest::RSA.iter().map(|(key, ..)| rsa(key)).collect::<Result<_, _>>()?,
            ec: CURVES
                .into_iter()
                .map(|curve| Ok(Arc::new(EcPrivate::generate(curve)?)))
                .collect::<Result<_, KeyError>>()?,
            peers: CURVES
                .into_iter()
                .map(|curve| EcPrivate::generate(curve)?.public_point())
                .collect::<Result<_, _>>()?,
            x25519: Arc::new(X25519Private::generate()?),
            ciphers: CIPHERS.into_iter().filter_map(cipher).map(Arc::new).collect(),
        })
    }

    /// Every operation there is.
    pub fn operations(&self) -> Vec<Operation> {
        let mut operations: Vec<_> = self.rsa.iter().map(|key| Operation::RsaPrivate(key.bits())).collect();
        operations.extend(CURVES.map(Operation::EcdsaSign));
        operations.extend(CURVES.map(Operation::Ecdh));
        operations.push(Operation::X25519);
        for direction in [Direction::Seal, Direction::Open] {
            operations.extend(CIPHERS.map(|cipher| Operation::Cipher(cipher, direction)));
        }
        operations.extend([Operation::Deflate, Operation::Inflate]);
        operations
    }

    /// One to do; another one for each `number`. `length` is of the text, in whole blocks, of ciphers and of deflate alone.
    pub fn work(&self, operation: Operation, length: usize, number: u64) -> Result<Work, Error> {
        let unknown = || Error::Length { operation: "a made-up key", given: 0, taken: operation.to_string() };
        let ec = |curve: Curve| {
            let keys = self.ec.iter().zip(&self.peers);
            keys.into_iter().find(|(key, _)| key.curve() == curve).ok_or_else(unknown)
        };
        Ok(match operation {
            Operation::RsaPrivate(bits) => {
                let key = self.rsa.iter().find(|key| key.bits() == bits).ok_or_else(unknown)?;
                let mut input = Zeroizing::new(bytes(number, key.size()));
                // Below the modulus, whose first bit is one.
                input[0] = 0;
                Work::RsaPrivate { key: Arc::clone(key), input }
            }
            Operation::EcdsaSign(curve) => {
                let key = Arc::clone(ec(curve)?.0);
                Work::EcdsaSign { key, digest: bytes(number, curve.size()), nonce: None }
            }
            Operation::Ecdh(curve) => {
                let (key, peer) = ec(curve)?;
                let (x, y) = peer[1..].split_at(curve.size());
                Work::Ecdh { key: Arc::clone(key), x: x.to_vec(), y: y.to_vec() }
            }
            Operation::X25519 => {
                let mut peer = [0; 32];
                peer.copy_from_slice(&bytes(number, 32));
                Work::X25519 { key: Arc::clone(&self.x25519), peer }
            }
            Operation::Cipher(..) => return self.text(operation, length.max(16).next_multiple_of(16), 13, number),
            Operation::Deflate => Work::Deflate { text: prose(number, length.max(1)), last: !number.is_multiple_of(3) },
            Operation::Inflate => {
                let text = prose(number, length.max(1));
                let work = InflateWork {
                    text: deflate::deflate(&text, true),
                    length: text.len(),
                    crc: deflate::crc_of(&text),
                };
                Work::Inflate(work)
            }
        })
    }

    /// A text to seal or to open, of exactly that length for GCM and of whole blocks for CBC, with so much additional data.
    pub fn text(&self, operation: Operation, length: usize, additional: usize, number: u64) -> Result<Work, Error> {
        let unknown = || Error::Length { operation: "a made-up key", given: 0, taken: operation.to_string() };
        let Operation::Cipher(cipher, direction) = operation else { return Err(unknown()) };
        let key = self.ciphers.iter().find(|key| key.cipher() == cipher).ok_or_else(unknown)?;
        let work = |direction, text, tag| {
            let (iv, additional) = (bytes(number, cipher.iv_size()), bytes(number, additional));
            Work::Cipher(CipherWork { key: Arc::clone(key), direction, iv, additional, text, tag })
        };
        let length = if cipher.hash_key_size() > 0 { length.next_multiple_of(16) } else { length };
        let sealing = work(Direction::Seal, Zeroizing::new(bytes(number, length)), Vec::new());
        if direction == Direction::Seal {
            return Ok(sealing);
        }
        match cpu::run(&sealing)? {
            Output::Text { text, tag } => Ok(work(Direction::Open, Zeroizing::new(text.to_vec()), tag)),
            Output::Bytes(_) | Output::Point { .. } | Output::Signature { .. } => Err(unknown()),
        }
    }

    /// Does `operations` of all kinds and lengths by several threads, at most for so long, and has OpenSSL say whether
    /// each is right.
    pub fn load(&self, engine: &Engine, threads: usize, operations: u64, at_most: Duration) -> Load {
        let kinds = self.operations();
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let began = Instant::now();
        let work = || {
            let mut wrong = Vec::new();
            while began.elapsed() < at_most {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= operations {
                    break;
                }
                let kind = kinds[usize::try_from(number).unwrap_or_default() % kinds.len()];
                let length = usize::try_from(number.wrapping_mul(0x9e37) % 9_000).unwrap_or_default();
                match self.one(engine, kind, length, number) {
                    Ok(true) => {}
                    Ok(false) => wrong.push(format!("{kind}, number {number}: the result is wrong")),
                    Err(error) => wrong.push(format!("{kind}, number {number}: {error}")),
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            wrong
        };
        let mut wrong = Vec::new();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                match thread.join() {
                    Ok(more) => wrong.extend(more),
                    Err(_) => wrong.push("a thread of the load ended in a panic".to_owned()),
                }
            }
        });
        wrong.truncate(TOLD);
        Load { done: done.into_inner(), wrong, took: began.elapsed() }
    }

    fn one(&self, engine: &Engine, kind: Operation, length: usize, number: u64) -> Result<bool, Error> {
        let work = Arc::new(self.work(kind, length, number)?);
        let done = engine.run(Arc::clone(&work))?;
        Ok(is_right(&work, &done.output))
    }

    /// Has one thread do an operation again and again for so long, `depth` of them under way at a time.
    pub fn rate(
        &self,
        engine: &Engine,
        operation: Operation,
        length: usize,
        depth: usize,
        span: Duration,
    ) -> Result<Rate, Error> {
        let work = Arc::new(self.work(operation, length, 1)?);
        let mut latencies = Latencies::default();
        let (mut done, mut on_the_cpu) = (0_u32, 0_u32);
        let mut under_way = VecDeque::new();
        let (began, clock) = (Instant::now(), thread_time());
        loop {
            let going_on = began.elapsed() < span;
            if going_on && under_way.len() < depth.max(1) {
                under_way.push_back((Instant::now(), engine.submit(Arc::clone(&work))));
                continue;
            }
            let Some((submitted, pending)) = under_way.pop_front() else { break };
            on_the_cpu += u32::from(pending.wait()?.fallback.is_some());
            latencies.record(submitted.elapsed());
            done += 1;
        }
        let (cpu, took) = (thread_time().saturating_sub(clock), began.elapsed());
        Ok(Rate {
            per_second: f64::from(done) / took.as_secs_f64(),
            cpu: cpu / done.max(1),
            p99: latencies.p99().unwrap_or_default(),
            on_the_cpu: f64::from(on_the_cpu) / f64::from(done.max(1)),
        })
    }
}

/// By the public key for a signature, which is another one each time; a text that was made shorter, by making it long
/// again; else by doing it again.
fn is_right(work: &Work, output: &Output) -> bool {
    match work {
        Work::EcdsaSign { .. } | Work::Deflate { .. } => cpu::right(work, output, Checks::Every),
        Work::RsaPrivate { .. } | Work::Ecdh { .. } | Work::X25519 { .. } | Work::Cipher(_) | Work::Inflate(_) => {
            cpu::run(work).is_ok_and(|ours| ours.agrees(output))
        }
    }
}

/// Splitmix64's: as good as any for what has to differ and not to be secret.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let word = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb).to_be_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(word).take(length.div_ceil(8)).flatten().collect();
    bytes.truncate(length);
    bytes
}

/// A text with about as much in it as a log has.
fn prose(seed: u64, length: usize) -> Vec<u8> {
    let words =
        bytes(seed, length.div_ceil(4)).into_iter().flat_map(|byte| WORDS[usize::from(byte) % WORDS.len()].bytes());
    words.take(length).collect()
}

const WORDS: [&str; 13] = [
    "wan1 ",
    "wan2 ",
    "office ",
    "guests ",
    "denied ",
    "tcp/443 ",
    "10.10.50.7 ",
    "is up ",
    "is down ",
    "loss 3 % ",
    "flows ",
    "since ",
    "\n----",
];
const CURVES: [Curve; 2] = [Curve::P256, Curve::P384];
const CIPHERS: [Cipher; 4] =
    [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::Aes128CbcHmacSha256, Cipher::Aes256CbcHmacSha256];
/// So many wrong results are told; the rest is more of the same.
const TOLD: usize = 20;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::{Options, Route};

    #[test]
    fn every_operation_can_be_made_up_and_openssl_finds_it_right() {
        let exercise = Exercise::new().unwrap();
        let engine = Engine::start(Options { installed: None, route: Route::Cpu, ..Options::default() });
        let operations = exercise.operations();
        let known: BTreeSet<_> = known_answers().into_iter().map(|(operation, _)| operation).collect();
        assert_eq!(operations.iter().copied().collect::<BTreeSet<_>>(), known);
        let load = exercise.load(&engine, 2, 64, Duration::from_mins(1));
        assert_eq!((load.done, load.wrong), (64, vec![]));
        assert_eq!(engine.status().counts.len(), operations.len());
        for operation in [Operation::RsaPrivate(2048), Operation::X25519] {
            let rate = exercise.rate(&engine, operation, 0, 4, Duration::from_millis(5)).unwrap();
            assert!(rate.per_second > 0.0 && !rate.cpu.is_zero() && rate.on_the_cpu >= 1.0, "{rate:?}");
        }
    }

    #[test]
    fn known_answers_are_those_of_openssl() {
        let answers = known_answers();
        assert!(answers.len() >= 16 && answers.iter().all(|(_, passed)| *passed), "{answers:?}");
    }

    #[test]
    fn a_wrong_result_is_seen() {
        let exercise = Exercise::new().unwrap();
        for operation in exercise.operations() {
            let work = exercise.work(operation, 100, 7).unwrap();
            let mut output = cpu::run(&work).unwrap();
            assert!(is_right(&work, &output), "{operation}");
            match &mut output {
                Output::Bytes(bytes) | Output::Point { x: bytes, .. } => bytes[3] ^= 1,
                Output::Text { text, .. } => text[3] ^= 1,
                Output::Signature { r, .. } => r[3] ^= 1,
            }
            assert!(!is_right(&work, &output), "{operation}");
        }
    }
}
