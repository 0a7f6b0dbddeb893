//! Who does an operation, and that it gets done: route, submit, wait, check, and the CPU for whatever did not come of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::EcPoint;
use openssl::ecdsa::EcdsaSig;
use zeroize::Zeroizing;

use crate::batch::{BatchStatus, CpuBatch, Multibuffer};
use crate::breaker::Patience;
use crate::calibrate::{Calibration, Class, Latencies, Side};
use crate::device::{Care, Installed, InstanceStatus, QatUser};
use crate::discovery::{Discovery, System};
use crate::encoding::{self, Hash, Scheme};
use crate::job::{
    Answer, Backend, CipherWork, Direction, Operation, Output, Place, Reason, Text, Ticket, Verdict, Work, ticket,
};
use crate::key::{Cipher, CipherKey, EcPrivate, PrivateKey, RsaPrivate, X25519Private};
use crate::{Error, cpu, deflate};

/// How an engine is set up.
#[derive(Debug)]
pub struct Options {
    /// The library to use; none for the CPU alone.
    pub installed: Option<Installed>,
    /// The name under which the driver's configuration knows us: a section of `/etc/c6xx_devN.conf`.
    pub process: String,
    pub route: Route,
    pub checks: Checks,
    /// The least that an answer is waited for.
    pub least_deadline: Duration,
    pub patience: Patience,
    /// How long an answer to a known-answer test is waited for.
    pub test_deadline: Duration,
    /// A request that is out for so long will not be answered; a reset is what gets its memory back.
    pub stuck: Duration,
    pub between_resets: Duration,
    /// When operations that failed their tests are tested again.
    pub retest: Duration,
    /// How often the device's events are asked for.
    pub tick: Duration,
    /// The libraries of [`CpuBatch`], which is asked after the device; none to do without.
    pub multibuffer: Option<Multibuffer>,
    /// Others that do work, tried in order after these.
    pub backends: Vec<Arc<dyn Backend>>,
    pub system: System,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            installed: Some(Installed::System),
            process: "SSL".to_owned(),
            route: Route::Measured,
            checks: Checks::Every,
            least_deadline: Duration::from_millis(20),
            patience: Patience::default(),
            test_deadline: Duration::from_secs(1),
            stuck: Duration::from_secs(5),
            between_resets: Duration::from_secs(30),
            retest: Duration::from_mins(1),
            tick: Duration::from_millis(20),
            multibuffer: Some(Multibuffer::System),
            backends: Vec::new(),
            system: System::default(),
        }
    }
}

/// Who is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Whoever costs the CPU less, as measured.
    Measured,
    /// The device, whenever it takes the work.
    Device,
    /// The CPU, always.
    Cpu,
}

/// Which answers of a device are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Every one. What has no cheaper check is computed again, so that only a CPU without AES of its own gains by a
    /// device for X25519 and ciphers; calibration finds that out.
    Every,
    /// Those that a public key or the equation of a curve can check: RSA, ECDSA, ECDH. X25519 and ciphers are believed,
    /// by an instance that passed its tests.
    Cheap,
}

/// Crypto that does not fail. Shared by threads as it is.
#[derive(Debug)]
pub struct Engine {
    route: Mutex<Route>,
    checks: Checks,
    least_deadline: Duration,
    backends: Vec<Arc<dyn Backend>>,
    device: Option<Arc<QatUser>>,
    batch: Option<Arc<CpuBatch>>,
    discovery: Discovery,
    /// Operations that were begun and are not done, whoever does them: what a batch could be made of.
    under_way: AtomicUsize,
    calibration: Mutex<Calibration>,
    latencies: Mutex<BTreeMap<Class, Latencies>>,
    counts: Mutex<BTreeMap<Operation, Counts>>,
    took: Mutex<BTreeMap<(Operation, &'static str), Latencies>>,
}

/// An operation that was done, and how.
#[derive(Debug)]
pub struct Done {
    pub output: Output,
    /// The name of the backend; `cpu` for OpenSSL.
    pub by: &'static str,
    /// Why OpenSSL did it; none if a backend did.
    pub fallback: Option<Reason>,
}

/// A signature, and whose it is.
#[derive(Debug)]
pub struct Signed {
    pub signature: Vec<u8>,
    /// The name of the backend; `cpu` for OpenSSL.
    pub by: &'static str,
    /// Why OpenSSL did it; none if a backend did.
    pub fallback: Option<Reason>,
}

/// What was done, of one operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// By a backend, with a right answer.
    pub offloaded: u64,
    /// The same by the backend's name.
    pub by: BTreeMap<&'static str, u64>,
    /// By the CPU, for this reason.
    pub cpu: BTreeMap<Reason, u64>,
    /// Not at all: the caller's error.
    pub refused: u64,
}

/// All there is to tell.
#[derive(Debug, Clone)]
pub struct Status {
    pub discovery: Discovery,
    pub instances: Vec<InstanceStatus>,
    /// What the multi-buffer libraries do on the CPU.
    pub batches: Vec<BatchStatus>,
    pub counts: BTreeMap<Operation, Counts>,
    /// Class, least in flight, CPU time on the CPU and by the device, the choice.
    pub choices: Vec<(Class, usize, Duration, Duration, Option<Side>)>,
    pub deadlines: BTreeMap<Class, Duration>,
    /// By operation and by who did it, `cpu` for OpenSSL: the median and the 99th percentile of how long it took them, of the
    /// last few thousand.
    pub latencies: BTreeMap<(Operation, &'static str), (Duration, Duration)>,
}

/// An operation that is under way. Dropped, it is nobody's.
#[derive(Debug)]
pub struct Pending<'a> {
    engine: &'a Engine,
    work: Arc<Work>,
    class: Class,
    depth: usize,
    taken: Result<Taken, Reason>,
    /// CPU time of this thread that went into it.
    spent: Duration,
    began: Instant,
    /// Whether what was taken was answered.
    answered: bool,
}

/// A right answer, with the CPU time that the waiting thread gave to those of others and the one it took itself.
struct Offloaded {
    output: Output,
    by: &'static str,
    led: Duration,
    cost: Duration,
}

#[derive(Debug)]
struct Taken {
    ticket: Ticket,
    backend: usize,
    place: Place,
}

impl Engine {
    /// Finds what there is and tests it. Never fails: without a device, the CPU does it all, and [`Status`] says why.
    pub fn start(options: Options) -> Self {
        let mut discovery = Discovery::of(&options.system);
        let care = Care {
            patience: options.patience,
            test_deadline: options.test_deadline,
            stuck: options.stuck,
            between_resets: options.between_resets,
            retest: options.retest,
            tick: options.tick,
        };
        let device = if let Some(installed) = &options.installed {
            QatUser::start(installed, &options.process, care, &mut discovery).map(Arc::new)
        } else {
            discovery.note("library", Err("not asked for by the configuration".to_owned()));
            None
        };
        if let Some(device) = &device {
            device.wait_for_tests(STARTING);
        }
        let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
        backends.extend(device.clone().map(|device| device as Arc<dyn Backend>));
        let batch = if let Some(multibuffer) = &options.multibuffer {
            CpuBatch::start(multibuffer, options.patience, &mut discovery).map(Arc::new)
        } else {
            discovery.note("multi-buffer", Err("not asked for by the configuration".to_owned()));
            None
        };
        backends.extend(batch.clone().map(|batch| batch as Arc<dyn Backend>));
        backends.extend(options.backends);
        Self {
            route: Mutex::new(options.route),
            checks: options.checks,
            least_deadline: options.least_deadline,
            backends,
            device,
            batch,
            discovery,
            under_way: AtomicUsize::new(0),
            calibration: Mutex::default(),
            latencies: Mutex::default(),
            counts: Mutex::default(),
            took: Mutex::default(),
        }
    }

    /// A signature over `message`, as TLS wants it: for ECDSA in DER.
    pub fn sign(&self, key: &PrivateKey, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.sign_and_tell(key, scheme, message)?.signature)
    }

    /// The same, and who did it.
    pub fn sign_and_tell(&self, key: &PrivateKey, scheme: Scheme, message: &[u8]) -> Result<Signed, Error> {
        match (key, scheme) {
            (PrivateKey::Rsa(key), Scheme::RsaPkcs1(hash) | Scheme::RsaPss(hash)) => {
                let digest = hash.digest(message).map_err(openssl("a digest"))?;
                let input = if scheme == Scheme::RsaPss(hash) {
                    encoding::pss(hash, &digest, key.size()).map_err(openssl("the encoding of PSS"))?
                } else {
                    encoding::pkcs1(hash, &digest, key.size())
                };
                let Done { output, by, fallback } =
                    self.run(Work::RsaPrivate { key: Arc::clone(key), input: Zeroizing::new(input) })?;
                Ok(Signed { signature: bytes(output).to_vec(), by, fallback })
            }
            (PrivateKey::Ec(key), Scheme::Ecdsa(hash)) => {
                let mut digest = hash.digest(message).map_err(openssl("a digest"))?;
                digest.truncate(key.curve().size());
                let Done { output, by, fallback } =
                    self.run(Work::EcdsaSign { key: Arc::clone(key), digest, nonce: None })?;
                let Output::Signature { r, s } = output else { unreachable!("a signature gives a signature") };
                let encode =
                    || EcdsaSig::from_private_components(BigNum::from_slice(&r)?, BigNum::from_slice(&s)?)?.to_der();
                let signature = encode().map_err(openssl("the DER of a signature"))?;
                Ok(Signed { signature, by, fallback })
            }
            (PrivateKey::Rsa(_), Scheme::Ecdsa(_)) | (PrivateKey::Ec(_), Scheme::RsaPkcs1(_) | Scheme::RsaPss(_)) => {
                Err(Error::Scheme { scheme })
            }
        }
    }

    /// RSA-OAEP with the same hash throughout and no label.
    pub fn decrypt(&self, key: &Arc<RsaPrivate>, hash: Hash, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let number = BigNum::from_slice(ciphertext).map_err(openssl("a number"))?;
        if ciphertext.len() != key.size() || &*number >= key.public.n() {
            return Err(Error::NotDecryptable);
        }
        let work = Work::RsaPrivate { key: Arc::clone(key), input: Zeroizing::new(ciphertext.to_vec()) };
        let encoded = bytes(self.run(work)?.output);
        encoding::oaep(hash, &encoded).map_err(openssl("a digest"))?.ok_or(Error::NotDecryptable)
    }

    /// The shared secret with the peer's uncompressed point.
    pub fn agree(&self, key: &Arc<EcPrivate>, peer: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let curve = key.curve();
        if peer.len() != 2 * curve.size() + 1 || peer[0] != UNCOMPRESSED {
            let taken = format!("{} and a first of {UNCOMPRESSED}", 2 * curve.size() + 1);
            return Err(Error::Length { operation: "ECDH", given: peer.len(), taken });
        }
        // Checks that the point is on the curve: one that is not would give bits of the key away.
        let mut context = BigNumContext::new().map_err(openssl("a context"))?;
        EcPoint::from_bytes(curve.group(), peer, &mut context).map_err(|_stack| Error::Peer)?;
        let (x, y) = peer[1..].split_at(curve.size());
        let done = self.run(Work::Ecdh { key: Arc::clone(key), x: x.to_vec(), y: y.to_vec() })?;
        Ok(bytes(done.output))
    }

    pub fn x25519(&self, key: &Arc<X25519Private>, peer: [u8; 32]) -> Result<Zeroizing<Vec<u8>>, Error> {
        Ok(bytes(self.run(Work::X25519 { key: Arc::clone(key), peer })?.output))
    }

    /// The ciphertext, and its tag of sixteen bytes. An IV is used once.
    pub fn seal(
        &self,
        key: &Arc<CipherKey>,
        iv: &[u8],
        additional: &[u8],
        text: &[u8],
    ) -> Result<(Text, Vec<u8>), Error> {
        self.cipher(CipherWork {
            key: Arc::clone(key),
            direction: Direction::Seal,
            iv: iv.to_vec(),
            additional: additional.to_vec(),
            text: Zeroizing::new(text.to_vec()),
            tag: Vec::new(),
        })
    }

    /// The text, if it is authentic.
    pub fn open(
        &self,
        key: &Arc<CipherKey>,
        iv: &[u8],
        additional: &[u8],
        text: &[u8],
        tag: &[u8],
    ) -> Result<Text, Error> {
        if tag.len() != Cipher::TAG {
            return Err(Error::NotAuthentic);
        }
        let opened = self.cipher(CipherWork {
            key: Arc::clone(key),
            direction: Direction::Open,
            iv: iv.to_vec(),
            additional: additional.to_vec(),
            text: Zeroizing::new(text.to_vec()),
            tag: tag.to_vec(),
        });
        Ok(opened?.0)
    }

    /// A gzip file of the text, in parts that may be under way at once.
    pub fn gzip(&self, text: &[u8]) -> Result<Vec<u8>, Error> {
        // Of nothing there is one part as well.
        let count = text.len().div_ceil(deflate::PART).max(1);
        let part = |number: usize| {
            let rest = &text[number * deflate::PART..];
            let text = rest[..rest.len().min(deflate::PART)].to_vec();
            self.submit(Work::Deflate { text, last: number + 1 == count })
        };
        let mut shorter = Vec::with_capacity(count);
        let mut pending = VecDeque::new();
        for number in 0..count {
            if pending.len() >= PARTS {
                shorter.extend(pending.pop_front().map(Self::shorter).transpose()?);
            }
            pending.push_back(part(number));
        }
        for pending in pending {
            shorter.push(Self::shorter(pending)?);
        }
        Ok(deflate::gzip(&shorter, text))
    }

    fn shorter(pending: Pending<'_>) -> Result<Vec<u8>, Error> {
        Ok(text(pending.wait()?.output).to_vec())
    }

    /// The text of a gzip file of one member, if it is whole and no longer than `at_most`.
    pub fn gunzip(&self, file: &[u8], at_most: usize) -> Result<Text, Error> {
        Ok(text(self.run(Work::Inflate(deflate::gunzip(file, at_most)?))?.output))
    }

    fn cipher(&self, work: CipherWork) -> Result<(Text, Vec<u8>), Error> {
        let CipherWork { iv, text, .. } = &work;
        let cipher = work.key.cipher();
        if iv.len() != cipher.iv_size() {
            return Err(Error::Length { operation: "an IV", given: iv.len(), taken: cipher.iv_size().to_string() });
        }
        if cipher.hash_key_size() > 0 && !text.len().is_multiple_of(16) {
            let taken = "whole blocks of 16, padded by the caller".to_owned();
            return Err(Error::Length { operation: "AES-CBC", given: text.len(), taken });
        }
        match self.run(Work::Cipher(work))?.output {
            Output::Text { text, tag } => Ok((text, tag)),
            Output::Bytes(_) | Output::Point { .. } | Output::Signature { .. } => {
                unreachable!("a cipher gives a text")
            }
        }
    }

    /// Does it, and waits.
    pub fn run(&self, work: impl Into<Arc<Work>>) -> Result<Done, Error> {
        self.submit(work).wait()
    }

    /// Begins it. Several may be under way, of one thread too.
    pub fn submit(&self, work: impl Into<Arc<Work>>) -> Pending<'_> {
        let (began, clock) = (Instant::now(), thread_time());
        let work = work.into();
        let class = Class::new(work.operation(), work.len());
        let in_flight = self.backends.iter().map(|backend| backend.in_flight()).sum();
        let depth = self.under_way.fetch_add(1, Ordering::Relaxed).max(in_flight);
        let taken = self.hand_over(&work, class, depth);
        let spent = thread_time().saturating_sub(clock);
        Pending { engine: self, work, class, depth, taken, spent, began, answered: false }
    }

    fn hand_over(&self, work: &Arc<Work>, class: Class, depth: usize) -> Result<Taken, Reason> {
        if self.backends.is_empty() {
            return Err(Reason::NoDevice);
        }
        let takers = || self.backends.iter().enumerate().filter(|(_, backend)| backend.takes(class.operation));
        if takers().next().is_none() {
            return Err(Reason::NotSupported);
        }
        let route = *lock(&self.route);
        match route {
            Route::Cpu => return Err(Reason::Configured),
            Route::Measured if lock(&self.calibration).choose(class, depth) == Side::Cpu => {
                return Err(Reason::Cheaper);
            }
            Route::Measured | Route::Device => {}
        }
        let (ticket, mut reply) = ticket();
        let mut reason = Reason::NotSupported;
        for (index, backend) in takers() {
            match backend.submit(work, reply) {
                Ok(place) => return Ok(Taken { ticket, backend: index, place }),
                Err(refusal) => (reason, reply) = (refusal.reason, refusal.reply),
            }
        }
        Err(reason)
    }

    /// Asks others first from here on.
    pub fn set_route(&self, route: Route) {
        *lock(&self.route) = route;
    }

    pub fn status(&self) -> Status {
        let deadlines = lock(&self.latencies)
            .iter()
            .map(|(class, latencies)| (*class, latencies.deadline(self.least_deadline)))
            .collect();
        let both = |took: &Latencies| Some((took.p50()?, took.p99()?));
        let latencies = lock(&self.took).iter().filter_map(|(whose, took)| Some((*whose, both(took)?))).collect();
        Status {
            discovery: self.discovery.clone(),
            instances: self.device.as_ref().map(|device| device.status()).unwrap_or_default(),
            batches: self.batch.as_ref().map(|batch| batch.status()).unwrap_or_default(),
            counts: lock(&self.counts).clone(),
            choices: lock(&self.calibration).choices().collect(),
            deadlines,
            latencies,
        }
    }

    fn note(&self, operation: Operation, by: &'static str, took: Duration) {
        lock(&self.took).entry((operation, by)).or_default().record(took);
    }

    fn deadline(&self, class: Class) -> Duration {
        lock(&self.latencies).entry(class).or_default().deadline(self.least_deadline)
    }
}

impl Pending<'_> {
    /// Whether [`Self::wait`] would give its result without waiting for a backend.
    pub fn is_ready(&self) -> bool {
        match &self.taken {
            Ok(taken) => {
                taken.ticket.is_ready()
                    || self.engine.backends[taken.backend].is_cpu()
                    || self.began.elapsed() >= self.engine.deadline(self.class)
            }
            Err(_) => true,
        }
    }

    pub fn wait(mut self) -> Result<Done, Error> {
        let clock = thread_time();
        match self.offloaded() {
            Ok(Offloaded { output, by, led, cost }) => {
                let own = thread_time().saturating_sub(clock).saturating_sub(led);
                let (cpu, latency) = (self.spent + own + cost, self.began.elapsed());
                lock(&self.engine.calibration).record(self.class, self.depth, Side::Device, cpu, latency);
                self.engine.note(self.class.operation, by, latency);
                let mut counts = lock(&self.engine.counts);
                let counts = counts.entry(self.class.operation).or_default();
                counts.offloaded += 1;
                *counts.by.entry(by).or_default() += 1;
                Ok(Done { output, by, fallback: None })
            }
            Err(reason) => self.on_the_cpu(reason),
        }
    }

    /// The right answer of a backend, or why there is none.
    fn offloaded(&mut self) -> Result<Offloaded, Reason> {
        let taken = self.taken.as_ref().map_err(|reason| *reason)?;
        let backend = &self.engine.backends[taken.backend];
        let deadline = self.engine.deadline(self.class);
        let led = backend.attend(taken.place, &taken.ticket, self.began + deadline);
        let answer = taken.ticket.wait_and_tell(deadline.saturating_sub(self.began.elapsed()));
        self.answered = answer.is_some();
        let latency = self.began.elapsed();
        let judge = |verdict| backend.judge(taken.place, verdict, Instant::now());
        let record = |latency| lock(&self.engine.latencies).entry(self.class).or_default().record(latency);
        let checks = if backend.is_cpu() { Checks::Cheap } else { self.engine.checks };
        match answer {
            Some((Answer::Done(output), cost)) => {
                record(latency);
                if cpu::right(&self.work, &output, checks) {
                    judge(Verdict::Right);
                    Ok(Offloaded { output, by: backend.name(), led, cost })
                } else {
                    Err(Reason::WrongAnswer)
                }
            }
            Some((Answer::Invalid, _)) => Err(Reason::Invalid),
            Some((Answer::Failed(reason), _)) => {
                judge(Verdict::Failed);
                Err(reason)
            }
            None => {
                record(latency);
                judge(Verdict::Late);
                Err(Reason::Deadline)
            }
        }
    }

    fn on_the_cpu(&self, reason: Reason) -> Result<Done, Error> {
        let (began, clock) = (Instant::now(), thread_time());
        let result = cpu::run(&self.work);
        let (cpu, latency) = (thread_time().saturating_sub(clock), began.elapsed());
        if let (Ok(taken), Reason::Invalid | Reason::WrongAnswer, Ok(_)) = (&self.taken, reason, &result) {
            // There is an answer, and the backend's was another. Where there is none, the input was bad: a peer must not
            // be able to put an instance out of use by sending such.
            self.engine.backends[taken.backend].judge(taken.place, Verdict::Wrong, Instant::now());
        }
        lock(&self.engine.calibration).record(self.class, self.depth, Side::Cpu, cpu, latency);
        if result.is_ok() {
            self.engine.note(self.class.operation, CPU, latency);
        }
        let mut counts = lock(&self.engine.counts);
        let counts = counts.entry(self.class.operation).or_default();
        match result {
            Ok(output) => {
                *counts.cpu.entry(reason).or_default() += 1;
                Ok(Done { output, by: CPU, fallback: Some(reason) })
            }
            Err(error) => {
                counts.refused += 1;
                Err(error)
            }
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.engine.under_way.fetch_sub(1, Ordering::Relaxed);
        if let (Ok(taken), false) = (&self.taken, self.answered) {
            self.engine.backends[taken.backend].abandon(taken.place, &taken.ticket);
        }
    }
}

fn bytes(output: Output) -> Zeroizing<Vec<u8>> {
    match output {
        Output::Bytes(bytes) | Output::Point { x: bytes, .. } => bytes,
        Output::Signature { .. } | Output::Text { .. } => unreachable!("these operations give a number or a point"),
    }
}

fn text(output: Output) -> Text {
    match output {
        Output::Text { text, .. } => text,
        Output::Bytes(_) | Output::Point { .. } | Output::Signature { .. } => unreachable!("deflate gives a text"),
    }
}

fn openssl(what: &'static str) -> impl FnOnce(openssl::error::ErrorStack) -> Error {
    move |source| Error::OpenSsl { what, source }
}

/// CPU time of the calling thread: what an operation costs, however long the thread sleeps for the answer.
pub(crate) fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a start waits for the first tests.
const STARTING: Duration = Duration::from_secs(10);
/// OpenSSL, and zlib-rs.
const CPU: &str = "cpu";
/// Parts of one text that are under way at once.
const PARTS: usize = 16;
/// The first byte of an uncompressed point.
const UNCOMPRESSED: u8 = 4;
