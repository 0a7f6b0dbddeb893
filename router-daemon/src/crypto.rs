//! The one engine of routerd, and what is told of it: by `status`, the metrics, page 7 of the screen, and
//! `routerctl qat`. The crate `qat` does the crypto.
//!
//! It is there as long as somebody has it, which is `[[tls_offload]]` and `[api]`: nothing runs, and no memory is pinned,
//! where no site file asks for it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use qat::{Engine, Options, Side, State, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod command;
pub mod qat_kernel;
pub(crate) mod signing;

/// Where the engine is had, and asked how it is. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Crypto(Arc<Desk>);

#[derive(Debug, Default)]
struct Desk {
    /// Held while a device is looked for: who comes meanwhile gets the same engine.
    last: Mutex<Weak<InUse>>,
    /// Held for a moment: nobody who asks waits for a device.
    stage: Mutex<Stage>,
    ended: Condvar,
}

#[derive(Debug, Default)]
enum Stage {
    /// Nobody has one.
    #[default]
    Idle,
    Looking,
    Running(Arc<Engine>),
    /// Nobody has it any more, and it gives its device back.
    Ending,
}

/// The engine in somebody's hands. It ends with the last of them.
#[derive(Debug)]
pub struct InUse(Option<(Arc<Engine>, Ended)>);

#[derive(Debug)]
struct Ended(Arc<Desk>);

impl Crypto {
    /// The engine of this process. The first who asks waits until a device was looked for and tested: some seconds, and
    /// nothing else is to be done on this thread. Only then do `options` count.
    pub fn engine(&self, options: Options) -> Arc<InUse> {
        let desk = &self.0;
        let mut last = lock(&desk.last);
        if let Some(engine) = last.upgrade() {
            return engine;
        }
        // Two of them would ask for the same instances.
        let ends = |stage: &mut Stage| matches!(stage, Stage::Running(_) | Stage::Ending);
        let mut stage = desk.ended.wait_while(lock(&desk.stage), ends).unwrap_or_else(PoisonError::into_inner);
        *stage = Stage::Looking;
        drop(stage);
        let engine = Arc::new(Engine::start(options));
        *lock(&desk.stage) = Stage::Running(Arc::clone(&engine));
        let engine = Arc::new(InUse(Some((engine, Ended(Arc::clone(desk))))));
        *last = Arc::downgrade(&engine);
        engine
    }

    /// `None` while nobody has it.
    pub fn status(&self) -> Option<CryptoStatus> {
        // Under the lock, so that the engine does not end on the thread of somebody who only asks.
        match &*lock(&self.0.stage) {
            Stage::Idle | Stage::Ending => None,
            Stage::Looking => {
                Some(CryptoStatus { missing: Some("it is being looked for".to_owned()), ..CryptoStatus::default() })
            }
            Stage::Running(engine) => Some(CryptoStatus::new(&engine.status())),
        }
    }
}

impl Deref for InUse {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        let Some((engine, _)) = &self.0 else { unreachable!("it goes when this is dropped") };
        engine
    }
}

impl Drop for InUse {
    /// A device is given back on a thread of its own, because it may take a second, and the last who has the engine may be
    /// the event loop.
    fn drop(&mut self) {
        let Some((engine, ended)) = self.0.take() else { return };
        *lock(&ended.0.stage) = Stage::Ending;
        let give_back = move || {
            drop(engine);
            drop(ended);
        };
        if let Err(error) = std::thread::Builder::new().name("qat-end".to_owned()).spawn(give_back) {
            tracing::warn!(%error, "there is no thread to give the device back");
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        *lock(&self.0.stage) = Stage::Idle;
        self.0.ended.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine at one moment. Without a device, the CPU does every operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CryptoStatus {
    /// Why there is no device in use; `None` where there is one.
    pub missing: Option<String>,
    /// What was looked for, in order.
    pub steps: Vec<CryptoStep>,
    pub instances: Vec<CryptoInstance>,
    /// What the multi-buffer libraries do on the CPU.
    pub batches: Vec<CryptoBatch>,
    pub operations: Vec<CryptoOperation>,
    /// Who does what, as measured.
    pub choices: Vec<CryptoChoice>,
    /// How long operations took whoever did them.
    #[serde(default)]
    pub latencies: Vec<CryptoLatency>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CryptoStep {
    pub what: String,
    pub found: bool,
    /// What was found, or why nothing was.
    pub text: String,
}

/// An instance of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CryptoInstance {
    pub name: String,
    /// Which of the card's devices it is of: instances of two may have one name.
    pub device: u16,
    /// Not a card: the library of our tests.
    pub simulator: bool,
    pub part: String,
    pub version: String,
    /// Of the memory it is near to.
    pub node: u32,
    /// `in use`, `out of use`, `restarting`, `untested`.
    pub state: String,
    pub in_flight: u64,
    /// By operation, whether its known answer came out right the last time.
    pub tests: BTreeMap<String, bool>,
    pub answered: u64,
    /// Answers that came after their caller had gone.
    pub late: u64,
    /// Full rings.
    pub retries: u64,
    pub restarts: u64,
    /// Resets that were asked for.
    pub resets: u64,
}

/// Operations of one kind that are done many at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CryptoBatch {
    pub operation: String,
    /// `crypto_mb`, `ipsec-mb`.
    pub library: String,
    /// Its known answers came, and nothing wrong since.
    pub in_use: bool,
    /// The most that go together.
    pub width: u64,
    pub batches: u64,
    pub operations: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CryptoOperation {
    pub operation: String,
    /// Done by the device, and right.
    pub offloaded: u64,
    /// Done in batches on the CPU, and right.
    pub batched: u64,
    /// Done by OpenSSL, by reason.
    pub cpu: BTreeMap<String, u64>,
    /// Not done: the caller's key or input was bad.
    pub refused: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CryptoChoice {
    pub operation: String,
    /// Texts shorter than this; 0 where there is no text.
    pub below_bytes: u64,
    /// At least so many are in flight.
    pub in_flight: u64,
    /// CPU time of one operation: by OpenSSL, and by what else there is.
    pub cpu_seconds: f64,
    pub offload_seconds: f64,
    /// `cpu` (OpenSSL), `qat` (the device) or `multi-buffer`; `None` while too little is measured.
    pub choice: Option<String>,
}

/// Of the last few thousand operations, each from its beginning to its end; by the CPU, without what was tried before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CryptoLatency {
    pub operation: String,
    /// `qat`, `multi-buffer`, `cpu`.
    pub engine: String,
    pub p50_seconds: f64,
    pub p99_seconds: f64,
}

impl CryptoStatus {
    pub fn new(status: &qat::Status) -> Self {
        let step = |step: &Step| {
            let (found, text) = match &step.found {
                Ok(text) => (true, text.clone()),
                Err(text) => (false, text.clone()),
            };
            CryptoStep { what: step.what.to_owned(), found, text }
        };
        let operation = |(operation, counts): (&qat::Operation, &qat::Counts)| CryptoOperation {
            operation: operation.to_string(),
            offloaded: counts.by.get(DEVICE).copied().unwrap_or_default(),
            batched: counts.by.iter().filter(|(by, _)| **by != DEVICE).map(|(_, count)| count).sum(),
            cpu: counts.cpu.iter().map(|(reason, count)| (reason.to_string(), *count)).collect(),
            refused: counts.refused,
        };
        let latency =
            |((operation, by), (p50, p99)): (&(qat::Operation, &'static str), &(Duration, Duration))| CryptoLatency {
                operation: operation.to_string(),
                engine: (*by).to_owned(),
                p50_seconds: p50.as_secs_f64(),
                p99_seconds: p99.as_secs_f64(),
            };
        let missing = status.discovery.missing().map(step).map(|step| format!("{}: {}", step.what, step.text));
        Self {
            missing: missing.or_else(|| status.instances.is_empty().then(|| "no instance".to_owned())),
            steps: status.discovery.steps.iter().map(step).collect(),
            instances: status.instances.iter().map(CryptoInstance::new).collect(),
            operations: status.counts.iter().map(operation).collect(),
            batches: status.batches.iter().map(CryptoBatch::new).collect(),
            choices: status.choices.iter().map(|choice| CryptoChoice::new(choice, &status.instances)).collect(),
            latencies: status.latencies.iter().map(latency).collect(),
        }
    }

    /// There is no card: the library of our tests answers.
    pub fn is_simulated(&self) -> bool {
        self.instances.iter().any(|instance| instance.simulator)
    }

    /// What an operator should know of it.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut told = Vec::new();
        if self.is_simulated() {
            told.push(format!("crypto: the device is a {SIMULATOR}"));
        }
        for instance in &self.instances {
            let (title, state) = (instance.title(), &instance.state);
            if !instance.in_use() {
                told.push(format!("crypto: {title} is {state}: what it would do, others or the CPU do"));
            } else if !instance.failed().is_empty() {
                told.push(format!("crypto: {title} has {}", instance.answers()));
            }
        }
        for CryptoBatch { operation, library, .. } in self.batches.iter().filter(|batch| !batch.in_use) {
            told.push(format!("crypto: {operation} by {library} was wrong: out of use until routerd starts again"));
        }
        told
    }

    /// Who does it, in one line.
    pub(crate) fn summary(&self) -> String {
        let (device, batched, openssl) = self.done();
        let cpu = format!("{batched} in batches on the CPU, {openssl} by OpenSSL");
        match &self.missing {
            None => format!(
                "crypto: {} of {} instances of the device in use: {device} operations by it, {cpu}",
                self.instances.iter().filter(|instance| instance.in_use()).count(),
                self.instances.len()
            ),
            Some(missing) => format!("crypto: {cpu}; no device: {missing}"),
        }
    }

    /// How many operations the device did, how many were done in batches, and how many by OpenSSL.
    pub fn done(&self) -> (u64, u64, u64) {
        let sum = |count: fn(&CryptoOperation) -> u64| self.operations.iter().map(count).sum();
        (sum(|one| one.offloaded), sum(|one| one.batched), sum(|one| one.cpu.values().sum()))
    }
}

impl CryptoBatch {
    fn new(status: &qat::BatchStatus) -> Self {
        Self {
            operation: status.operation.to_string(),
            library: status.library.to_owned(),
            in_use: status.in_use,
            width: status.width as u64,
            batches: status.batches,
            operations: status.operations,
        }
    }
}

impl CryptoInstance {
    fn new(status: &qat::InstanceStatus) -> Self {
        let state = match status.state {
            State::Closed { .. } => IN_USE,
            State::Open { .. } => "out of use",
            State::Away { .. } => "restarting",
            State::Untested => "untested",
        };
        let simulator = [&status.name, &status.part].iter().any(|text| text.to_uppercase().contains(SIMULATOR));
        Self {
            name: status.name.clone(),
            device: status.package,
            simulator,
            part: status.part.clone(),
            version: status.version.clone(),
            node: status.node,
            state: state.to_owned(),
            in_flight: status.in_flight as u64,
            tests: status.tests.iter().map(|(operation, passed)| (operation.to_string(), *passed)).collect(),
            answered: status.answered,
            late: status.late,
            retries: status.retries,
            restarts: status.restarts,
            resets: status.resets,
        }
    }

    pub fn in_use(&self) -> bool {
        self.state == IN_USE
    }

    /// Operations whose known answer did not come.
    pub fn failed(&self) -> Vec<&str> {
        self.tests.iter().filter(|(_, passed)| !**passed).map(|(operation, _)| operation.as_str()).collect()
    }

    /// Its name, by which nobody takes a simulator for a card.
    pub fn title(&self) -> String {
        let capitals = self.name.to_uppercase();
        let name = match self.simulator {
            false => self.name.clone(),
            true if capitals.contains(SIMULATOR) => capitals,
            true => format!("{SIMULATOR} {capitals}"),
        };
        format!("{name} of device {}", self.device)
    }

    pub fn answers(&self) -> String {
        let (all, failed) = (self.tests.len(), self.failed());
        let right = format!("{} of {all} known answers right", all - failed.len());
        if failed.is_empty() { right } else { format!("{right}; wrong or none: {}", failed.join(", ")) }
    }
}

impl CryptoChoice {
    fn new(
        (class, in_flight, cpu, offload, side): &(
            qat::Class,
            usize,
            std::time::Duration,
            std::time::Duration,
            Option<Side>,
        ),
        instances: &[qat::InstanceStatus],
    ) -> Self {
        // What the device has it is asked for first.
        let on_device = instances.iter().any(|instance| instance.tests.contains_key(&class.operation));
        Self {
            operation: class.operation.to_string(),
            below_bytes: if class.size == 0 { 0 } else { 1_u64.checked_shl(class.size).unwrap_or(u64::MAX) },
            in_flight: *in_flight as u64,
            cpu_seconds: cpu.as_secs_f64(),
            offload_seconds: offload.as_secs_f64(),
            choice: side.map(|side| match side {
                Side::Cpu => "cpu".to_owned(),
                Side::Device if on_device => DEVICE.to_owned(),
                Side::Device => "multi-buffer".to_owned(),
            }),
        }
    }
}

impl fmt::Display for CryptoStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_simulated() {
            writeln!(f, "{SIMULATOR}: this is no card, and shows nothing about one")?;
        }
        match &self.missing {
            None => writeln!(
                f,
                "device: {} of {} instances in use",
                self.instances.iter().filter(|i| i.in_use()).count(),
                self.instances.len()
            )?,
            Some(why) => writeln!(f, "device: none; the CPU does it all\n  {why}")?,
        }
        writeln!(f, "looked for:")?;
        for CryptoStep { what, found, text } in &self.steps {
            writeln!(f, "  {} {what:<14} {text}", if *found { '+' } else { '-' })?;
        }
        for instance in &self.instances {
            let CryptoInstance { part, version, node, state, in_flight, .. } = instance;
            writeln!(f, "{}: {state}; {part} {version}, node {node}, {in_flight} in flight", instance.title())?;
            writeln!(f, "  {}", instance.answers())?;
            let CryptoInstance { answered, late, retries, restarts, resets, .. } = instance;
            writeln!(
                f,
                "  {answered} answered, {late} late, {retries} times full, {restarts} restarts, {resets} resets"
            )?;
        }
        for CryptoBatch { operation, library, in_use, width, batches, operations } in &self.batches {
            let state = if *in_use { "in use" } else { "out of use" };
            writeln!(f, "{operation} by {library}, up to {width} at once: {state}, {operations} in {batches} batches")?;
        }
        if !self.operations.is_empty() {
            writeln!(f, "{:<28} {:>10} {:>10} {:>10} {:>8}", "operations", "device", "batched", "OpenSSL", "refused")?;
        }
        for CryptoOperation { operation, offloaded, batched, cpu, refused } in &self.operations {
            let all: u64 = cpu.values().sum();
            let why: Vec<_> = cpu.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            let line =
                format!("  {operation:<26} {offloaded:>10} {batched:>10} {all:>10} {refused:>8}  {}", why.join(", "));
            writeln!(f, "{}", line.trim_end())?;
        }
        // While one side is unknown there is nothing to choose.
        let measured = |choice: &&CryptoChoice| choice.cpu_seconds > 0.0 && choice.offload_seconds > 0.0;
        if self.choices.iter().any(|choice| measured(&choice)) {
            writeln!(
                f,
                "{:<28} {:>10} {:>10} {:>10} {:>10}  choice",
                "measured", "bytes", "in flight", "OpenSSL", "offloaded"
            )?;
        }
        for choice in self.choices.iter().filter(measured) {
            let CryptoChoice { operation, below_bytes, in_flight, cpu_seconds, offload_seconds, choice } = choice;
            let bytes = if *below_bytes == 0 { "-".to_owned() } else { format!("<{below_bytes}") };
            let time = |seconds: &f64| format!("{:.1}µs", seconds * 1e6);
            let (cpu, offload) = (time(cpu_seconds), time(offload_seconds));
            let choice = choice.as_deref().unwrap_or("-");
            writeln!(
                f,
                "  {operation:<26} {bytes:>10} {:>10} {cpu:>10} {offload:>10}  {choice}",
                format!("{in_flight}+")
            )?;
        }
        Ok(())
    }
}

const IN_USE: &str = "in use";
/// The name of the device's backend.
const DEVICE: &str = "qat";
const SIMULATOR: &str = "SIMULATOR";

#[cfg(test)]
mod tests {
    use qat_sim::Simulator;

    use super::*;

    fn simulated(simulator: &Simulator) -> Options {
        Options { installed: Some(qat::Installed::At(simulator.path().to_owned())), ..Options::default() }
    }

    #[test]
    fn there_is_one_engine_however_many_ask_and_none_when_nobody_has_it() {
        let simulator = Simulator::fresh();
        let crypto = Crypto::default();
        assert_eq!(crypto.status(), None);
        let engines = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(|| crypto.engine(simulated(&simulator))));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(engines.iter().all(|engine| Arc::ptr_eq(engine, &engines[0])));
        assert!(simulator.count(qat_sim::Count::Pinned) > 0);
        let status = crypto.status().unwrap();
        assert_eq!((status.missing, status.instances.len()), (None, 6));
        let [last, rest @ ..] = engines;
        drop(rest);
        assert!(crypto.status().is_some());
        drop(last);
        assert_eq!(crypto.status(), None);
        let began = std::time::Instant::now();
        while simulator.count(qat_sim::Count::Pinned) > 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "the device is not given back");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(crypto.engine(simulated(&simulator)).status().instances.len(), 6);
    }
}
