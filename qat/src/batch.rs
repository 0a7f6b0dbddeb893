//! Many operations at once on the CPU: Intel's multi-buffer libraries, which do eight signatures, or the packets of a
//! burst, in the lanes of wide registers. Which instructions the CPU has decides, never who made it.
//!
//! There is no thread here. Work waits in a [`Gathering`] of its operation until one of those who wait for its answer
//! does the whole batch (`attend`); while that runs, the next one gathers. An operation is only taken after the known
//! answers came out of it right, alone and in every lane; what answers wrong later is out of use until the next start.

mod crypto_mb;
mod gathering;
mod ipsec_mb;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use self::gathering::Gathering;
use crate::breaker::{Breaker, Fault, Patience};
use crate::discovery::Discovery;
use crate::engine::thread_time;
use crate::job::{Answer, Backend, CipherWork, Operation, Place, Reason, Refusal, Reply, Ticket, Verdict, Work};
use crate::selftest::{self, Test};

/// Which libraries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Multibuffer {
    /// Those that are installed.
    System,
    /// The files at these paths.
    At { crypto_mb: PathBuf, ipsec_mb: PathBuf },
}

/// Batches on the CPU.
#[derive(Debug)]
pub struct CpuBatch {
    lines: Vec<Line>,
    places: BTreeMap<Operation, usize>,
    /// Taken and not answered.
    in_flight: Arc<AtomicUsize>,
}

/// One operation in batches, for people.
#[derive(Debug, Clone)]
pub struct BatchStatus {
    pub operation: Operation,
    pub library: &'static str,
    /// Whether the known answers came out of it, and nothing wrong since.
    pub in_use: bool,
    /// The most that go together.
    pub width: usize,
    pub batches: u64,
    pub operations: u64,
    /// What a batch takes, and the time between two operations, both smoothed.
    pub cost: Duration,
    pub interval: Duration,
}

/// A library that does several operations of one kind in one call.
trait Multi: Send + Sync + fmt::Debug {
    fn name(&self) -> &'static str;
    /// The most of it that are done at once; none if it has no such operation.
    fn width(&self, operation: Operation) -> Option<usize>;
    /// Whether this is nothing that the library refuses.
    fn fits(&self, work: &Work) -> bool;
    /// One answer for each, in order. All are of that operation, fit and are no more than its width.
    fn run(&self, operation: Operation, works: &[&Work]) -> Vec<Answer>;
}

/// One operation.
#[derive(Debug)]
struct Line {
    operation: Operation,
    library: Arc<dyn Multi>,
    width: usize,
    gathering: Mutex<Gathering<Job>>,
    breaker: Mutex<Breaker>,
    /// Batches that are being done; as many as there are CPUs. Changes while [`Self::gathering`] is held.
    leaders: AtomicUsize,
    most_leaders: usize,
    batches: AtomicU64,
    operations: AtomicU64,
}

#[derive(Debug)]
struct Job {
    work: Arc<Work>,
    reply: Reply,
    counted: Counted,
}

/// One of those in flight, as long as it lives.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(all))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CpuBatch {
    /// What is there of the libraries, tested, and what is told of them: for who wants batches without an engine.
    pub fn open(which: &Multibuffer) -> (Option<Self>, Discovery) {
        let mut discovery = Discovery::default();
        let batch = Self::start(which, Patience::default(), &mut discovery);
        (batch, discovery)
    }

    /// Opens what is installed and fits this CPU, and tests it. None without any of it; `discovery` hears why.
    pub(crate) fn start(which: &Multibuffer, patience: Patience, discovery: &mut Discovery) -> Option<Self> {
        let at = |path: fn(&Multibuffer) -> Option<&PathBuf>| path(which).map(PathBuf::as_path);
        let crypto_mb = crypto_mb::open(at(|which| match which {
            Multibuffer::System => None,
            Multibuffer::At { crypto_mb, .. } => Some(crypto_mb),
        }));
        let ipsec_mb = ipsec_mb::open(at(|which| match which {
            Multibuffer::System => None,
            Multibuffer::At { ipsec_mb, .. } => Some(ipsec_mb),
        }));
        let mut libraries: Vec<Arc<dyn Multi>> = Vec::new();
        let crypto_mb = discovery.step("crypto_mb", crypto_mb, |(_, told)| told.clone());
        libraries.extend(crypto_mb.map(|(library, _)| Arc::new(library) as Arc<dyn Multi>));
        let ipsec_mb = discovery.step("ipsec-mb", ipsec_mb, |(_, told)| told.clone());
        libraries
            .extend(ipsec_mb.into_iter().flat_map(|(all, _)| all).map(|library| Arc::new(library) as Arc<dyn Multi>));
        if libraries.is_empty() {
            return None;
        }
        let batch = Self::of(&libraries, selftest::tests(), patience);
        let (passed, failed): (Vec<_>, Vec<_>) = batch.lines.iter().partition(|line| line.is_in_use());
        let names =
            |lines: &[&Line]| lines.iter().map(|line| line.operation.to_string()).collect::<Vec<_>>().join(", ");
        discovery.note(
            "multi-buffer",
            match (passed.as_slice(), failed.as_slice()) {
                (passed, []) => Ok(names(passed)),
                ([], failed) => Err(format!("none of the known answers came out right: {}", names(failed))),
                (passed, failed) => Ok(format!("{}; out of use for a wrong answer: {}", names(passed), names(failed))),
            },
        );
        Some(batch)
    }

    fn of(libraries: &[Arc<dyn Multi>], tests: Vec<Test>, patience: Patience) -> Self {
        let most_leaders = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let mut lines: Vec<Line> = Vec::new();
        let mut places = BTreeMap::new();
        for Test { operation, work, answer } in tests {
            if places.contains_key(&operation) {
                continue;
            }
            let line = |library: &Arc<dyn Multi>| {
                let width = library.width(operation)?;
                let line = Line {
                    operation,
                    library: Arc::clone(library),
                    width,
                    gathering: Mutex::new(Gathering::new(width)),
                    breaker: Mutex::new(Breaker::new(patience)),
                    leaders: AtomicUsize::new(0),
                    most_leaders,
                    batches: AtomicU64::new(0),
                    operations: AtomicU64::new(0),
                };
                line.test(&work, &answer);
                Some(line)
            };
            // Of those that give the known answer, the quickest.
            let quickest = |line: &Line| (!line.is_in_use(), lock(&line.gathering).cost());
            let Some(line) = libraries.iter().filter_map(line).min_by_key(quickest) else { continue };
            places.insert(operation, lines.len());
            lines.push(line);
        }
        Self { lines, places, in_flight: Arc::default() }
    }

    /// For who has a burst of one operation in hand: done at once, without tickets, one answer for each in order. The
    /// answers are nobody's to check but the caller's.
    pub fn burst(&self, works: &[&Work]) -> Result<Vec<Answer>, Reason> {
        let Some(first) = works.first() else { return Ok(Vec::new()) };
        let operation = first.operation();
        let line = self.places.get(&operation).and_then(|place| self.lines.get(*place)).ok_or(Reason::NotSupported)?;
        if !line.is_in_use() {
            return Err(Reason::Untested);
        }
        if !works.iter().all(|work| work.operation() == operation && line.library.fits(work)) {
            return Err(Reason::NotSupported);
        }
        Ok(works.chunks(line.width).flat_map(|some| line.library.run(operation, some)).collect())
    }

    pub(crate) fn status(&self) -> Vec<BatchStatus> {
        let status = |line: &Line| {
            let gathering = lock(&line.gathering);
            BatchStatus {
                operation: line.operation,
                library: line.library.name(),
                in_use: line.is_in_use(),
                width: line.width,
                batches: line.batches.load(Ordering::Relaxed),
                operations: line.operations.load(Ordering::Relaxed),
                cost: gathering.cost().unwrap_or_default(),
                interval: gathering.interval(),
            }
        };
        self.lines.iter().map(status).collect()
    }
}

impl Backend for CpuBatch {
    fn name(&self) -> &'static str {
        "multi-buffer"
    }

    fn takes(&self, operation: Operation) -> bool {
        self.places.contains_key(&operation)
    }

    fn submit(&self, work: &Arc<Work>, reply: Reply) -> Result<Place, Refusal> {
        let Some(&place) = self.places.get(&work.operation()) else {
            return Err(Refusal { reason: Reason::NotSupported, reply });
        };
        let line = &self.lines[place];
        if !line.library.fits(work) {
            return Err(Refusal { reason: Reason::NotSupported, reply });
        }
        if !line.is_in_use() {
            return Err(Refusal { reason: Reason::Untested, reply });
        }
        let mut gathering = lock(&line.gathering);
        if gathering.len() >= CROWD {
            return Err(Refusal { reason: Reason::Busy, reply });
        }
        let job = Job { work: Arc::clone(work), reply, counted: Counted::new(&self.in_flight) };
        gathering.arrived(job, Instant::now());
        Ok(Place(place))
    }

    fn judge(&self, place: Place, verdict: Verdict, now: Instant) {
        let Some(line) = self.lines.get(place.0) else { return };
        let fault = match verdict {
            Verdict::Right => return lock(&line.breaker).succeeded(),
            // The host is busy; no library is late by itself.
            Verdict::Late => return,
            Verdict::Failed => Fault::Failed,
            Verdict::Wrong => Fault::Wrong,
        };
        let mut breaker = lock(&line.breaker);
        let before = breaker.admits();
        breaker.failed(fault, now);
        if before && !breaker.admits() {
            let (operation, library) = (line.operation, line.library.name());
            tracing::error!(%operation, library, ?fault, "out of use until the next start: OpenSSL found it wrong");
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn is_cpu(&self) -> bool {
        true
    }

    fn attend(&self, place: Place, ticket: &Ticket, until: Instant) -> Duration {
        self.lines.get(place.0).map(|line| line.attend(ticket, until)).unwrap_or_default()
    }

    fn abandon(&self, place: Place, ticket: &Ticket) {
        if let Some(line) = self.lines.get(place.0) {
            lock(&line.gathering).retain(|job| !ticket.is_of(&job.reply));
        }
    }
}

impl Line {
    /// The known answer, alone and in each lane of full batches, one of which is measured.
    fn test(&self, work: &Work, answer: &crate::job::Output) {
        let right = |count: usize| {
            let answers = self.library.run(self.operation, &vec![work; count]);
            let is_right = |given: &Answer| matches!(given, Answer::Done(output) if answer.agrees(output));
            answers.len() == count && answers.iter().all(is_right)
        };
        let passed = self.library.fits(work) && right(1) && right(self.width);
        if passed {
            let typical = typical(work);
            let works = vec![typical.as_ref().unwrap_or(work); self.width];
            let cost = |_| {
                let clock = thread_time();
                self.library.run(self.operation, &works);
                thread_time().saturating_sub(clock)
            };
            let least = (0..MEASURED).map(cost).min().unwrap_or_default();
            lock(&self.gathering).took(least);
        }
        lock(&self.breaker).tested(passed, Instant::now());
        if !passed {
            tracing::error!(operation = %self.operation, library = self.library.name(), "a known answer came out wrong");
        }
    }

    /// A breaker of a library on the CPU stays open: nothing resets a library, and it would err again.
    fn is_in_use(&self) -> bool {
        lock(&self.breaker).admits()
    }

    /// Returns when that work is done or somebody does it. The CPU time of the batches this took.
    ///
    /// No more batches than there are CPUs run at once, since more of them would each be slower and less full. Who
    /// finishes one calls the first of those that wait.
    fn attend(&self, ticket: &Ticket, until: Instant) -> Duration {
        let mut led = Duration::ZERO;
        loop {
            if ticket.is_ready() {
                return led;
            }
            let mut gathering = lock(&self.gathering);
            if !gathering.iter().any(|job| ticket.is_of(&job.reply)) {
                return led;
            }
            let now = Instant::now();
            let wait = if self.leaders.load(Ordering::Relaxed) < self.most_leaders {
                gathering.due().unwrap_or(now).min(until).saturating_duration_since(now)
            } else if now >= until {
                return led;
            } else {
                // The first of those that wait may be somebody who does not look.
                LOOK_AGAIN.min(until - now)
            };
            if !wait.is_zero() {
                drop(gathering);
                if ticket.is_ready_or_called_within(wait) {
                    return led;
                }
                continue;
            }
            self.leaders.fetch_add(1, Ordering::Relaxed);
            let jobs = gathering.take();
            drop(gathering);
            led += self.run(jobs);
            let gathering = lock(&self.gathering);
            self.leaders.fetch_sub(1, Ordering::Relaxed);
            if let Some(first) = gathering.iter().next() {
                first.reply.call();
            }
        }
    }

    fn run(&self, jobs: Vec<Job>) -> Duration {
        let clock = thread_time();
        let works: Vec<&Work> = jobs.iter().map(|job| &*job.work).collect();
        let answers = self.library.run(self.operation, &works);
        let cost = thread_time().saturating_sub(clock);
        let count = jobs.len();
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.operations.fetch_add(u64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
        lock(&self.gathering).took(cost);
        let share = cost / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        let mut answers = answers.into_iter();
        for job in jobs {
            let answer = answers.next().unwrap_or(Answer::Failed(Reason::Failed));
            let Job { work: _, reply, counted } = job;
            drop(counted);
            reply.answer_at(answer, share);
        }
        cost
    }
}

/// The known answers of ciphers are of short texts; packets are long.
fn typical(work: &Work) -> Option<Work> {
    let Work::Cipher(CipherWork { key, direction, iv, additional, tag, .. }) = work else { return None };
    Some(Work::Cipher(CipherWork {
        key: Arc::clone(key),
        direction: *direction,
        iv: iv.clone(),
        additional: additional.clone(),
        text: Zeroizing::new(vec![0; TYPICAL]),
        // Not the right one, which takes no less to find.
        tag: tag.clone(),
    }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of a text whose batches are measured, and how often they are.
const TYPICAL: usize = 1_024;
const MEASURED: usize = 3;
/// So many of one operation wait at most.
const CROWD: usize = 1_024;
/// Who waits for a CPU looks for one this often, though it is called.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::crypto_mb::tests::{Faults, StandIn};
    use super::*;
    use crate::calibrate::Side;
    use crate::engine::{Checks, Engine, Options, Route};
    use crate::exercise::Exercise;
    use crate::job::{Output, ticket};
    use crate::key::Curve;
    use crate::{cpu, selftest};

    fn batch(faults: Faults) -> CpuBatch {
        CpuBatch::of(&[Arc::new(StandIn::library(faults))], selftest::tests(), Patience::default())
    }

    fn engine(route: Route, backend: Arc<dyn Backend>) -> Engine {
        let options = Options { installed: None, multibuffer: None, route, ..Options::default() };
        Engine::start(Options { backends: vec![backend], ..options })
    }

    /// Costs what it is told to, in CPU time, however many there are.
    #[derive(Debug)]
    struct Costs(Duration);

    impl Multi for Costs {
        fn name(&self) -> &'static str {
            "costs"
        }

        fn width(&self, operation: Operation) -> Option<usize> {
            (operation == X25519).then_some(8)
        }

        fn fits(&self, _work: &Work) -> bool {
            true
        }

        fn run(&self, _operation: Operation, works: &[&Work]) -> Vec<Answer> {
            let clock = thread_time();
            while thread_time().saturating_sub(clock) < self.0 {
                std::hint::spin_loop();
            }
            works.iter().map(|work| cpu::run(work).map_or(Answer::Invalid, Answer::Done)).collect()
        }
    }

    fn costs(cost: Duration) -> Arc<CpuBatch> {
        Arc::new(CpuBatch::of(&[Arc::new(Costs(cost))], selftest::tests(), Patience::default()))
    }

    #[test]
    fn an_operation_is_in_use_once_its_known_answer_came_out_of_every_lane() {
        let batch = batch(Faults::None);
        let status = batch.status();
        assert_eq!(status.len(), 8);
        assert!(status.iter().all(|line| line.in_use && line.width == 8 && line.library == "crypto_mb"), "{status:?}");
        assert!(status.iter().all(|line| !line.cost.is_zero() && line.operations == 0), "{status:?}");
    }

    #[test]
    fn a_wrong_known_answer_in_one_lane_alone_keeps_it_out_of_use() {
        for lane in [0, 7] {
            let engine = engine(Route::Device, Arc::new(batch(Faults::Wrong(lane))));
            let exercise = Exercise::new().unwrap();
            for operation in exercise.operations() {
                let work = Arc::new(exercise.work(operation, 64, 1).unwrap());
                let done = engine.run(Arc::clone(&work)).unwrap();
                let expected = if matches!(operation, Operation::Cipher(..) | Operation::Deflate | Operation::Inflate) {
                    Reason::NotSupported
                } else {
                    Reason::Untested
                };
                assert_eq!((done.by, done.fallback), ("cpu", Some(expected)), "{operation}");
                assert!(cpu::right(&work, &done.output, Checks::Every), "{operation}");
            }
        }
    }

    #[test]
    fn a_wrong_vector_keeps_it_out_of_use() {
        let mut tests = selftest::tests();
        for test in &mut tests {
            match &mut test.answer {
                Output::Bytes(bytes) | Output::Point { x: bytes, .. } => bytes[9] ^= 1,
                Output::Text { text, .. } => text[9] ^= 1,
                Output::Signature { s, .. } => s[9] ^= 1,
            }
        }
        let batch = CpuBatch::of(&[Arc::new(StandIn::library(Faults::None))], tests, Patience::default());
        assert!(batch.status().iter().all(|line| !line.in_use));
        let exercise = Exercise::new().unwrap();
        let work = Arc::new(exercise.work(X25519, 0, 1).unwrap());
        let (_ticket, reply) = ticket();
        assert_eq!(batch.submit(&work, reply).unwrap_err().reason, Reason::Untested);
    }

    #[test]
    fn threads_at_once_go_together_and_every_result_is_right() {
        let batch = costs(Duration::from_millis(2));
        let engine = engine(Route::Device, Arc::clone(&batch) as Arc<dyn Backend>);
        let exercise = Exercise::new().unwrap();
        let begin = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (engine, exercise, begin) = (&engine, &exercise, &begin);
                scope.spawn(move || {
                    begin.wait();
                    for number in 0..ROUNDS {
                        let number = u64::try_from(thread * ROUNDS + number).unwrap();
                        let work = Arc::new(exercise.work(X25519, 0, number).unwrap());
                        let done = engine.run(Arc::clone(&work)).unwrap();
                        assert!(cpu::right(&work, &done.output, Checks::Every));
                    }
                });
            }
        });
        let counts = engine.status().counts[&X25519].clone();
        assert_eq!((counts.offloaded, counts.cpu.len()), (u64::try_from(THREADS * ROUNDS).unwrap(), 0), "{counts:?}");
        let line = batch.status().remove(0);
        assert_eq!(line.operations, counts.offloaded);
        assert!(line.batches * 2 < line.operations, "most went together: {line:?}");
        assert_eq!(batch.in_flight(), 0);
    }

    #[test]
    fn a_burst_of_one_thread_goes_in_full_batches() {
        let batch = Arc::new(batch(Faults::None));
        let engine = engine(Route::Device, Arc::clone(&batch) as Arc<dyn Backend>);
        let exercise = Exercise::new().unwrap();
        let works: Vec<_> = (0..32).map(|number| Arc::new(exercise.work(P256, 0, number).unwrap())).collect();
        let pending: Vec<_> = works.iter().map(|work| engine.submit(Arc::clone(work))).collect();
        assert!(pending.iter().all(super::super::engine::Pending::is_ready), "no device is waited for");
        for (pending, work) in pending.into_iter().zip(&works) {
            let done = pending.wait().unwrap();
            assert_eq!((done.by, done.fallback), ("multi-buffer", None));
            assert!(cpu::right(work, &done.output, Checks::Every));
        }
        let line = batch.status().into_iter().find(|line| line.operation == P256).unwrap();
        assert_eq!((line.batches, line.operations), (4, 32));
    }

    #[test]
    fn a_burst_in_hand_is_of_one_operation_that_is_in_use() {
        let good = batch(Faults::None);
        let exercise = Exercise::new().unwrap();
        let works: Vec<_> = (0..11).map(|number| exercise.work(P256, 0, number).unwrap()).collect();
        let mut works: Vec<_> = works.iter().collect();
        let answers = good.burst(&works).unwrap();
        assert_eq!(answers.len(), works.len());
        for (answer, work) in answers.into_iter().zip(&works) {
            assert!(matches!(answer, Answer::Done(output) if cpu::right(work, &output, Checks::Every)));
        }
        assert_eq!(batch(Faults::Wrong(1)).burst(&works).unwrap_err(), Reason::Untested);
        let other = exercise.work(X25519, 0, 1).unwrap();
        works.push(&other);
        assert_eq!(good.burst(&works).unwrap_err(), Reason::NotSupported);
        assert_eq!(good.burst(&[]).unwrap().len(), 0);
    }

    #[test]
    fn what_nobody_waits_for_is_not_done() {
        let batch = Arc::new(batch(Faults::None));
        let engine = engine(Route::Device, Arc::clone(&batch) as Arc<dyn Backend>);
        let exercise = Exercise::new().unwrap();
        let work = Arc::new(exercise.work(P256, 0, 1).unwrap());
        let forgotten = engine.submit(Arc::clone(&work));
        assert_eq!(batch.in_flight(), 1);
        drop(forgotten);
        assert_eq!((batch.in_flight(), Arc::strong_count(&work)), (0, 1), "nothing holds on to it, nor to its key");
        assert_eq!(batch.status().iter().map(|line| line.operations).sum::<u64>(), 0);
    }

    #[test]
    fn what_errs_later_is_out_of_use_for_good_and_nobody_sees_it() {
        /// Right as long as it is tested.
        #[derive(Debug)]
        struct Liar(Arc<dyn Multi>, AtomicUsize);
        impl Multi for Liar {
            fn name(&self) -> &'static str {
                "liar"
            }
            fn width(&self, operation: Operation) -> Option<usize> {
                self.0.width(operation)
            }
            fn fits(&self, work: &Work) -> bool {
                self.0.fits(work)
            }
            fn run(&self, operation: Operation, works: &[&Work]) -> Vec<Answer> {
                let mut answers = self.0.run(operation, works);
                // Each of the eight operations is tested twice, and measured.
                if self.1.fetch_add(1, Ordering::Relaxed) >= 8 * (2 + MEASURED)
                    && let Some(Answer::Done(Output::Bytes(bytes))) = answers.first_mut()
                {
                    bytes[100] ^= 1;
                }
                answers
            }
        }
        let liar = Arc::new(Liar(Arc::new(StandIn::library(Faults::None)), AtomicUsize::new(0)));
        let batch = CpuBatch::of(&[liar], selftest::tests(), Patience::default());
        let engine = engine(Route::Device, Arc::new(batch));
        let exercise = Exercise::new().unwrap();
        let mut reasons = Vec::new();
        for number in 0..3 {
            let work = Arc::new(exercise.work(Operation::RsaPrivate(2048), 0, number).unwrap());
            let done = engine.run(Arc::clone(&work)).unwrap();
            assert!(cpu::right(&work, &done.output, Checks::Every));
            reasons.push(done.fallback);
        }
        assert_eq!(reasons, [Some(Reason::WrongAnswer), Some(Reason::Untested), Some(Reason::Untested)]);
    }

    #[test]
    fn a_single_caller_is_left_to_openssl_and_not_kept_waiting() {
        // A batch costs four times what OpenSSL takes for one.
        let exercise = Exercise::new().unwrap();
        let work = Arc::new(exercise.work(X25519, 0, 1).unwrap());
        let batch = costs(one_x25519(&work) * 4);
        let engine = engine(Route::Measured, Arc::clone(&batch) as Arc<dyn Backend>);
        for _ in 0..400 {
            engine.run(Arc::clone(&work)).unwrap();
        }
        let choices = engine.status().choices;
        let (_, _, cpu, batched, choice) =
            choices.iter().find(|(class, depth, ..)| class.operation == X25519 && *depth == 0).unwrap();
        assert_eq!(*choice, Some(Side::Cpu), "{cpu:?} on OpenSSL, {batched:?} in batches");
        // Once both were measured, one in 256 is tried in a batch of its own, and none waits for company there.
        let (before, line) = (Instant::now(), batch.status());
        let asked = line.iter().map(|line| line.operations).sum::<u64>();
        assert!(asked <= 20, "{asked} of 400 went there");
        assert!(
            line.iter().all(|line| line.operations == line.batches && line.interval >= line.cost / 4),
            "{line:?} {before:?}"
        );
    }

    #[test]
    fn callers_at_the_same_time_are_given_to_batches_that_cost_less_together() {
        let exercise = Exercise::new().unwrap();
        let work = Arc::new(exercise.work(X25519, 0, 1).unwrap());
        // Eight for the price of one; the stand-in computes each as well, which the price leaves room for.
        let one = one_x25519(&work);
        let heavy = Arc::new(Cheap(one));
        let batch = Arc::new(CpuBatch::of(&[heavy], selftest::tests(), Patience::default()));
        let engine = engine(Route::Measured, Arc::clone(&batch) as Arc<dyn Backend>);
        for _ in 0..40 {
            let pending: Vec<_> = (0..16).map(|_| engine.submit(Arc::clone(&work))).collect();
            for pending in pending {
                pending.wait().unwrap();
            }
        }
        let choices = engine.status().choices;
        let deep: Vec<_> = choices.iter().filter(|(_, depth, ..)| *depth == 8).collect();
        // Which of them is chosen depends on latencies too, which a loaded machine has its own of.
        assert!(deep.iter().any(|(_, _, cpu, batched, _)| *batched * 2 < *cpu), "{choices:?}");
    }

    /// Answers from memory: a batch takes as long as one of OpenSSL's.
    #[derive(Debug)]
    struct Cheap(Duration);

    impl Multi for Cheap {
        fn name(&self) -> &'static str {
            "cheap"
        }

        fn width(&self, operation: Operation) -> Option<usize> {
            (operation == X25519).then_some(8)
        }

        fn fits(&self, _work: &Work) -> bool {
            true
        }

        fn run(&self, _operation: Operation, works: &[&Work]) -> Vec<Answer> {
            static KNOWN: Mutex<BTreeMap<[u8; 32], Zeroizing<Vec<u8>>>> = Mutex::new(BTreeMap::new());
            let answer = |work: &&Work| {
                let Work::X25519 { peer, .. } = work else { return Answer::Invalid };
                let mut known = lock(&KNOWN);
                let Output::Bytes(secret) =
                    known.get(peer).cloned().map_or_else(|| cpu::run(work).unwrap(), Output::Bytes)
                else {
                    return Answer::Invalid;
                };
                known.insert(*peer, secret.clone());
                Answer::Done(Output::Bytes(secret))
            };
            let answers = works.iter().map(answer).collect();
            let clock = thread_time();
            while thread_time().saturating_sub(clock) < self.0 {
                std::hint::spin_loop();
            }
            answers
        }
    }

    /// What OpenSSL takes for one, about.
    fn one_x25519(work: &Work) -> Duration {
        let clock = thread_time();
        for _ in 0..50 {
            cpu::run(work).unwrap();
        }
        thread_time().saturating_sub(clock) / 50
    }

    const X25519: Operation = Operation::X25519;
    const P256: Operation = Operation::EcdsaSign(Curve::P256);
    const THREADS: usize = 12;
    const ROUNDS: usize = 20;
}
