//! What batches on the CPU are worth: AES-GCM and AES-CBC with HMAC-SHA-256 by `CpuBatch` in bursts of 32, against
//! OpenSSL one packet at a time, both on one core and in turns, so that the ratio is one of the same moment.
//!
//! OpenSSL is given every advantage: contexts that are kept, keys set once, buffers used again. The engine as callers have
//! it comes after that, with batches and without, and then a single caller. With a number, 0 to 11, only batches of one
//! operation and length are done, for a profiler.
#![expect(clippy::print_stdout, reason = "its purpose")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use openssl::cipher::Cipher as Evp;
use openssl::cipher_ctx::CipherCtx;
use openssl::sha::Sha256;
use qat::{
    Backend, Cipher, CipherWork, CpuBatch, Direction, Engine, Exercise, Multibuffer, Operation, Options, Place, Route,
    Ticket, Work, ticket,
};

fn main() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let which = libraries();
    let (batch, told) = CpuBatch::open(&which);
    println!("{told}");
    let batch = batch.context("no multi-buffer library: make qat unpacks Debian 13's")?;
    let exercise = Exercise::new()?;
    if let Some(number) = std::env::args().nth(1) {
        return profile(&batch, &exercise, number.parse()?);
    }

    println!("bursts of {BURST}, ns per packet, medians of {ROUNDS} turns of each; OpenSSL with kept contexts");
    println!(
        "{:<26} {:>6} {:>9} {:>9} {:>7} {:>8} {:>9}",
        "", "bytes", "OpenSSL", "burst", "ratio", "wanted", "tickets"
    );
    for (operation, wanted) in wanted() {
        for (length, wanted) in [64, 256, 1424].into_iter().zip(wanted) {
            let works = works(&exercise, operation, length)?;
            let mut plain = Plain::new(operation)?;
            let texts: Vec<_> = works.iter().map(|work| text_of(work)).collect::<Result<_>>()?;
            let (ours, theirs, ratio) =
                in_turns(|| texts.iter().try_for_each(|text| plain.one(text)), || in_hand(&batch, &works))?;
            let (_, tickets, _) = in_turns(|| Ok(()), || through(&batch, &works))?;
            let wanted = wanted.map_or("-".to_owned(), |wanted| format!("{wanted:.2}"));
            println!(
                "{:<26} {length:>6} {ours:>9.0} {theirs:>9.0} {ratio:>7.2} {wanted:>8} {tickets:>9.0}",
                operation.to_string()
            );
        }
    }

    println!("\nthe engine, bursts of {BURST}, ns per packet");
    println!("{:<26} {:>6} {:>9} {:>9} {:>7}", "", "bytes", "OpenSSL", "batch", "ratio");
    let engine =
        |route, multibuffer| Engine::start(Options { installed: None, multibuffer, route, ..Options::default() });
    let (alone, batching) = (engine(Route::Cpu, None), engine(Route::Device, Some(which.clone())));
    for (operation, _) in wanted() {
        for length in [64, 256, 1424] {
            let works = works(&exercise, operation, length)?;
            let (ours, theirs, ratio) =
                in_turns(|| by_engine(&alone, &works, BURST), || by_engine(&batching, &works, BURST))?;
            println!("{:<26} {length:>6} {ours:>9.0} {theirs:>9.0} {ratio:>7.2}", operation.to_string());
        }
    }

    println!("\na single caller, ns per packet: forced into batches of one, and as measured");
    println!("{:<26} {:>6} {:>9} {:>9} {:>9}", "", "bytes", "OpenSSL", "batch", "measured");
    let measured = engine(Route::Measured, Some(which));
    for (operation, _) in wanted() {
        for length in [64, 1424] {
            let works = works(&exercise, operation, length)?;
            let (ours, one, _) = in_turns(|| by_engine(&alone, &works, 1), || by_engine(&batching, &works, 1))?;
            let (_, chosen, _) = in_turns(|| by_engine(&alone, &works, 1), || by_engine(&measured, &works, 1))?;
            println!("{:<26} {length:>6} {ours:>9.0} {one:>9.0} {chosen:>9.0}", operation.to_string());
        }
    }
    Ok(())
}

/// Ratios that are wanted of bursts: those of the notes less a tenth.
fn wanted() -> [(Operation, [Option<f64>; 3]); 4] {
    let gcm = [Some(1.44), Some(1.395), Some(1.35)];
    let cbc = [Some(1.26), Some(1.755), Some(2.655)];
    [
        (Operation::Cipher(Cipher::Aes128Gcm, Direction::Seal), gcm),
        (Operation::Cipher(Cipher::Aes128Gcm, Direction::Open), gcm),
        (Operation::Cipher(Cipher::Aes128CbcHmacSha256, Direction::Seal), cbc),
        (Operation::Cipher(Cipher::Aes128CbcHmacSha256, Direction::Open), [None; 3]),
    ]
}

/// Batches alone of one operation, for five seconds: something to look at with a profiler.
fn profile(batch: &CpuBatch, exercise: &Exercise, number: usize) -> Result<()> {
    let (operation, _) = wanted().into_iter().nth(number / 3).context("0 to 11")?;
    let works = works(exercise, operation, [64, 256, 1424][number % 3])?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        in_hand(batch, &works)?;
    }
    Ok(())
}

fn works(exercise: &Exercise, operation: Operation, length: usize) -> Result<Vec<Arc<Work>>> {
    (0..BURST as u64).map(|number| Ok(Arc::new(exercise.text(operation, length, 8, number)?))).collect()
}

/// Nanoseconds a packet of both, and the median of their ratio, burst by burst in turns.
fn in_turns(mut ours: impl FnMut() -> Result<()>, mut theirs: impl FnMut() -> Result<()>) -> Result<(f64, f64, f64)> {
    let (mut first, mut second, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..ROUNDS + WARM {
        let [mut a, mut b] = [Duration::ZERO; 2];
        for _ in 0..REPEAT {
            let began = Instant::now();
            ours()?;
            let between = Instant::now();
            theirs()?;
            a += between - began;
            b += between.elapsed();
        }
        if turn >= WARM {
            let each = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(PACKETS);
            first.push(each(a));
            second.push(each(b));
            ratios.push(a.as_secs_f64() / b.as_secs_f64());
        }
    }
    Ok((median(first), median(second), median(ratios)))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn in_hand(batch: &CpuBatch, works: &[Arc<Work>]) -> Result<()> {
    let works: Vec<&Work> = works.iter().map(|work| &**work).collect();
    match batch.burst(&works) {
        Ok(answers) if answers.iter().all(|answer| matches!(answer, qat::Answer::Done(_))) => Ok(()),
        other => bail!("answered {other:?}"),
    }
}

fn through(batch: &CpuBatch, works: &[Arc<Work>]) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(1);
    let mut waiting: Vec<(Place, Ticket)> = Vec::with_capacity(works.len());
    for work in works {
        let (ticket, reply) = ticket();
        match batch.submit(work, reply) {
            Ok(place) => waiting.push((place, ticket)),
            Err(refusal) => bail!("refused: {}", refusal.reason),
        }
    }
    for (place, ticket) in waiting {
        batch.attend(place, &ticket, until);
        match ticket.wait(Duration::from_secs(1)) {
            Some(qat::Answer::Done(_)) => {}
            other => bail!("answered {other:?}"),
        }
    }
    Ok(())
}

fn by_engine(engine: &Engine, works: &[Arc<Work>], depth: usize) -> Result<()> {
    for some in works.chunks(depth) {
        let pending: Vec<_> = some.iter().map(|work| engine.submit(Arc::clone(work))).collect();
        for pending in pending {
            pending.wait()?;
        }
    }
    Ok(())
}

/// What OpenSSL needs of a packet.
struct Text<'a> {
    iv: &'a [u8],
    additional: &'a [u8],
    bytes: &'a [u8],
    tag: &'a [u8],
}

fn text_of(work: &Work) -> Result<Text<'_>> {
    match work {
        Work::Cipher(CipherWork { iv, additional, text, tag, .. }) => Ok(Text { iv, additional, bytes: text, tag }),
        Work::RsaPrivate { .. }
        | Work::EcdsaSign { .. }
        | Work::Ecdh { .. }
        | Work::X25519 { .. }
        | Work::Deflate { .. }
        | Work::Inflate(_) => {
            bail!("not a cipher")
        }
    }
}

/// OpenSSL with all that can be kept: the context with its key, HMAC's two states, the buffer. Its key is another than
/// that of the batch, so it opens what is not authentic to it; that costs it no less.
struct Plain {
    context: CipherCtx,
    seals: bool,
    hmac: Option<(Sha256, Sha256)>,
    out: Vec<u8>,
}

impl Plain {
    fn new(operation: Operation) -> Result<Self> {
        let Operation::Cipher(cipher, direction) = operation else { bail!("not a cipher") };
        let seals = direction == Direction::Seal;
        let mut context = CipherCtx::new()?;
        let gcm = cipher == Cipher::Aes128Gcm;
        let evp = if gcm { Evp::aes_128_gcm() } else { Evp::aes_128_cbc() };
        if seals {
            context.encrypt_init(Some(evp), Some(&[7; 16]), None)?;
        } else {
            context.decrypt_init(Some(evp), Some(&[7; 16]), None)?;
        }
        context.set_padding(false);
        let state = |pad: u8| {
            let mut state = Sha256::new();
            state.update(&[9 ^ pad; 64]);
            state
        };
        let hmac = (!gcm).then(|| (state(0x36), state(0x5c)));
        Ok(Self { context, seals, hmac, out: vec![0; 4096] })
    }

    fn one(&mut self, text: &Text<'_>) -> Result<()> {
        if self.seals {
            self.context.encrypt_init(None, None, Some(text.iv))?;
        } else {
            self.context.decrypt_init(None, None, Some(text.iv))?;
        }
        if let Some((inner, outer)) = &self.hmac {
            let digest = |text: &[u8], additional: &[u8], iv: &[u8]| {
                let (mut inner, mut outer) = (inner.clone(), outer.clone());
                inner.update(additional);
                inner.update(iv);
                inner.update(text);
                outer.update(&inner.finish());
                outer.finish()
            };
            if self.seals {
                let length = self.context.cipher_update(text.bytes, Some(&mut self.out))?;
                std::hint::black_box(digest(&self.out[..length], text.additional, text.iv));
            } else {
                std::hint::black_box(digest(text.bytes, text.additional, text.iv)[..16] == *text.tag);
                self.context.cipher_update(text.bytes, Some(&mut self.out))?;
            }
            return Ok(());
        }
        self.context.cipher_update(text.additional, None)?;
        self.context.cipher_update(text.bytes, Some(&mut self.out))?;
        let mut tag = [0; 16];
        if self.seals {
            self.context.cipher_final(&mut self.out[text.bytes.len()..])?;
            self.context.tag(&mut tag)?;
        } else {
            self.context.set_tag(text.tag)?;
            // Another key's: it says so after the same work.
            std::hint::black_box(self.context.cipher_final(&mut tag).is_ok());
        }
        std::hint::black_box(&self.out);
        Ok(())
    }
}

/// Those that `make qat` unpacks, unless the machine has them.
fn libraries() -> Multibuffer {
    let folder = PathBuf::from("target/qat/libraries/trixie/usr/lib/x86_64-linux-gnu");
    if folder.exists() {
        Multibuffer::At { crypto_mb: folder.join("libcrypto_mb.so.11"), ipsec_mb: folder.join("libIPSec_MB.so.2") }
    } else {
        Multibuffer::System
    }
}

const BURST: usize = 32;
const ROUNDS: usize = 101;
const WARM: usize = 10;
const REPEAT: usize = 20;
/// Of one turn: bursts times packets.
const PACKETS: u32 = 640;
