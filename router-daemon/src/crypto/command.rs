//! `routerctl qat`: what the device is and does, whether it is right, and how fast it is. Asks no routerd; changes nothing.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use qat::{Checks, Class, Engine, Exercise, Installed, Multibuffer, Operation, Options, Rate, Reason, Route, System};
use serde::Serialize;
use serde_json::Value;

use super::qat_kernel::{KernelCrypto, QatKernel};
use super::{CryptoInstance, CryptoOperation, CryptoStatus};
use crate::kernel::crypto::set_priority;

#[derive(Debug, clap::Args)]
pub struct Qat {
    #[command(subcommand)]
    order: Order,
    /// The library of the driver; the one that is installed where none is given.
    #[arg(long, global = true, value_name = "PATH")]
    library: Option<PathBuf>,
    /// The section of the driver's configuration (`/etc/c6xx_devN.conf`) to start as.
    #[arg(long, global = true, value_name = "NAME", default_value = "SSL")]
    section: String,
    /// Where the files of the system are that tell of a card.
    #[arg(long, global = true, hide = true, value_name = "PATH", default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Order {
    /// What was looked for and found, each instance with its known-answer tests, and what a short measurement chooses.
    Status,
    /// Every known-answer test on every instance and on the CPU, then all operations at once, each checked by OpenSSL.
    ///
    /// Writes a report as text and as JSON, to send. Exits with 1 where there is no device, or something was not right.
    Selftest {
        /// Where the report goes: PATH.txt and PATH.json.
        #[arg(value_name = "PATH", default_value = "quadway-qat-report")]
        report: PathBuf,
        /// How long the load lasts at most.
        #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
        span: Duration,
        /// How many operations it is of.
        #[arg(long, value_name = "NUMBER", default_value_t = 20_000)]
        operations: u64,
    },
    /// Operations per second by operation, size and depth, by the device and by the CPU, of one thread.
    Bench {
        /// How long each is measured.
        #[arg(long = "for", value_name = "TIME", default_value = "100ms", value_parser = humantime::parse_duration)]
        span: Duration,
    },
}

/// What to show, and whether it is as it should be.
#[derive(Debug)]
pub struct Told {
    pub text: String,
    pub json: Value,
    pub passed: bool,
}

/// What `status` tells: of the device in user space, and of what the kernel has of one.
#[derive(Debug, Serialize)]
struct Found {
    #[serde(flatten)]
    status: CryptoStatus,
    kernel: KernelCrypto,
}

/// Which test went how.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    time: String,
    kernel: String,
    processor: String,
    passed: bool,
    /// Why not.
    trouble: Vec<String>,
    /// OpenSSL's own known answers.
    cpu: Vec<(String, bool)>,
    load: Load,
    status: CryptoStatus,
    bench: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Load {
    operations: u64,
    seconds: f64,
    offloaded: u64,
    wrong: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Bench {
    simulator: bool,
    /// Why there is no device.
    missing: Option<String>,
    operations: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    operation: String,
    bytes: Option<usize>,
    cpu: Speed,
    /// In batches on the CPU, with as many under way as [`DEPTHS`] has at most.
    batched: Option<Speed>,
    /// By how many were under way.
    device: Vec<(usize, Speed)>,
}

#[derive(Debug, Serialize)]
struct Speed {
    per_second: f64,
    cpu_seconds: f64,
    p99_seconds: f64,
    /// The share that the device did not do, 0 to 1.
    on_the_cpu: f64,
}

impl Qat {
    pub fn run(&self) -> Result<Told, String> {
        let exercise =
            Exercise::new().map_err(|error| format!("OpenSSL makes no keys: {error}\n  is it the system's own?"))?;
        match &self.order {
            Order::Status => self.status(&exercise),
            Order::Selftest { report, span, operations } => self.selftest(&exercise, report, *span, *operations),
            Order::Bench { span } => self.bench(&exercise, *span),
        }
    }

    fn engine(&self, route: Route, checks: Checks, multibuffer: Option<Multibuffer>) -> Engine {
        let installed = self.library.clone().map_or(Installed::System, Installed::At);
        Engine::start(Options {
            installed: Some(installed),
            process: self.section.clone(),
            route,
            checks,
            multibuffer,
            system: System { root: self.root.clone() },
            // A machine under load answers late, which is not wrong.
            least_deadline: PATIENT,
            ..Options::default()
        })
    }

    /// What it gives is told as it is: only what a public key or a curve tells at once is checked, and nobody but OpenSSL
    /// does what it does not.
    fn device(&self) -> Engine {
        self.engine(Route::Device, Checks::Cheap, None)
    }

    fn status(&self, exercise: &Exercise) -> Result<Told, String> {
        // As routerd has it, so that it measures the same.
        let engine = self.engine(Route::Measured, Checks::Every, Some(Multibuffer::System));
        let found = engine.status();
        if !found.instances.is_empty() || !found.batches.is_empty() {
            calibrate(exercise, &engine).map_err(not_done)?;
        }
        let status = CryptoStatus::new(&engine.status());
        let mut text = status.to_string();
        // A system that tells nothing of its crypto has none of a card.
        let kernel = QatKernel::at(self.root.clone(), set_priority).look().unwrap_or_default();
        text += &kernel.to_string();
        if status.missing.is_some() {
            text += ADVICE;
        }
        Ok(Told { text, json: to_json(&Found { status, kernel })?, passed: true })
    }

    fn selftest(&self, exercise: &Exercise, path: &Path, span: Duration, operations: u64) -> Result<Told, String> {
        let engine = self.device();
        let load = exercise.load(&engine, THREADS, operations, span);
        let mut status = CryptoStatus::new(&engine.status());
        let cpu: Vec<_> =
            qat::known_answers().into_iter().map(|(operation, passed)| (operation.to_string(), passed)).collect();
        let load = Load {
            operations: load.done,
            seconds: load.took.as_secs_f64(),
            offloaded: status.done().0,
            wrong: load.wrong,
        };
        let mut trouble = trouble(&status, &cpu, &load);
        let bench = if status.missing.is_none() {
            rows(exercise, &engine, BRIEF).and_then(|rows| {
                engine.set_route(Route::Measured);
                calibrate(exercise, &engine)?;
                status.choices = CryptoStatus::new(&engine.status()).choices;
                Ok(rows)
            })
        } else {
            Ok(Vec::new())
        };
        // The report is written all the same: it is of those that are needed most.
        let bench = bench.unwrap_or_else(|error| {
            trouble.push(format!("an operation cannot be done: {error}"));
            Vec::new()
        });
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            kernel: read("/proc/sys/kernel/osrelease"),
            processor: processor(),
            passed: trouble.is_empty(),
            trouble,
            cpu,
            load,
            status,
            bench,
        };
        let (mut text, json) = (report.to_text(), to_json(&report)?);
        let [as_text, as_json] = [".txt", ".json"].map(|ending| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        });
        let write = |path: &Path, text: &str| {
            let unwritable =
                |error| format!("cannot write {}: {error}\n  give a path where you may write", path.display());
            fs::write(path, text).map_err(unwritable)
        };
        write(&as_text, &text)?;
        write(&as_json, &serde_json::to_string_pretty(&json).map_err(|error| error.to_string())?)?;
        writeln!(text, "\nthe report is in {} and {}", as_text.display(), as_json.display()).ok();
        Ok(Told { text, json, passed: report.passed })
    }

    fn bench(&self, exercise: &Exercise, span: Duration) -> Result<Told, String> {
        let engine = self.device();
        let status = CryptoStatus::new(&engine.status());
        let rows = rows(exercise, &engine, span).map_err(not_done)?;
        let mut text = String::new();
        if status.is_simulated() {
            text += "SIMULATOR: the device's figures are of no card\n";
        }
        text += &table(&rows);
        if status.missing.is_some() {
            text += "no device: `routerctl qat status` tells what is missing\n";
        }
        let bench = Bench { simulator: status.is_simulated(), missing: status.missing, operations: rows };
        Ok(Told { text, json: to_json(&bench)?, passed: true })
    }
}

impl Speed {
    fn new(rate: Rate) -> Self {
        Self {
            per_second: rate.per_second,
            cpu_seconds: rate.cpu.as_secs_f64(),
            p99_seconds: rate.p99.as_secs_f64(),
            on_the_cpu: rate.on_the_cpu,
        }
    }
}

impl Report {
    fn to_text(&self) -> String {
        let who = if self.status.is_simulated() { " by a SIMULATOR, which shows nothing about a card" } else { "" };
        let told = |word: &str| format!("{word}{who}");
        let mut text =
            if self.passed { told("PASSED") + ": every answer was right\n" } else { told("NOT PASSED") + ":\n" };
        for trouble in &self.trouble {
            writeln!(text, "  {trouble}").ok();
        }
        writeln!(text, "routerctl {}, Linux {}, {}, {}", self.version, self.kernel, self.processor, self.time).ok();
        let right = self.cpu.iter().filter(|(_, passed)| *passed).count();
        writeln!(text, "CPU: {right} of {} known answers right", self.cpu.len()).ok();
        let Load { operations, seconds, offloaded, wrong } = &self.load;
        writeln!(
            text,
            "load: {operations} operations in {seconds:.1}s, {offloaded} by the device, {} wrong",
            wrong.len()
        )
        .ok();
        text += &self.status.to_string();
        if self.bench.is_empty() {
            text += ADVICE;
        } else {
            text += &table(&self.bench);
        }
        text
    }
}

/// What a device that is to be relied on must not show.
fn trouble(status: &CryptoStatus, cpu: &[(String, bool)], load: &Load) -> Vec<String> {
    let mut trouble: Vec<String> = status.missing.iter().map(|missing| format!("no device: {missing}")).collect();
    for (operation, _) in cpu.iter().filter(|(_, passed)| !passed) {
        trouble.push(format!("OpenSSL's own answer for {operation} is wrong"));
    }
    for instance in &status.instances {
        if !instance.in_use() {
            trouble.push(format!("{}: {}", instance.title(), instance.state));
        }
        if !instance.failed().is_empty() {
            trouble.push(format!("{}: {}", instance.title(), instance.answers()));
        }
    }
    for instance in status.instances.iter().filter(|instance| instance.resets > 0) {
        trouble.push(format!("{} had to be reset {} times", instance.title(), instance.resets));
    }
    for CryptoOperation { operation, offloaded, cpu, .. } in &status.operations {
        for (reason, count) in BAD.iter().filter_map(|bad| cpu.get_key_value(bad.word())) {
            trouble.push(format!("{operation}: {count} times the CPU had to do it for the device: {reason}"));
        }
        let right = |instance: &CryptoInstance| instance.tests.get(operation) == Some(&true);
        if *offloaded == 0 && status.instances.iter().any(right) {
            trouble.push(format!("{operation}: the device has it, and did none under load"));
        }
    }
    if status.missing.is_none() && load.offloaded == 0 {
        trouble.push("the device did nothing".to_owned());
    }
    trouble.extend(load.wrong.iter().cloned());
    trouble
}

/// Everything there is, on the CPU and, where there is one, by the device.
fn rows(exercise: &Exercise, device: &Engine, span: Duration) -> Result<Vec<Row>, qat::Error> {
    let on_the_cpu = |multibuffer| Options { installed: None, multibuffer, route: Route::Device, ..Options::default() };
    let cpu = Engine::start(on_the_cpu(None));
    let batch = Engine::start(on_the_cpu(Some(Multibuffer::System)));
    let batches = batch.status().batches;
    let depths: &[usize] = if device.status().instances.is_empty() { &[] } else { &DEPTHS };
    let row = |(operation, length): (Operation, usize)| {
        let rate = |engine, depth| exercise.rate(engine, operation, length, depth, span).map(Speed::new);
        let device = depths.iter().map(|depth| Ok((*depth, rate(device, *depth)?)));
        Ok(Row {
            operation: operation.to_string(),
            bytes: (length > 0).then_some(length),
            cpu: rate(&cpu, 1)?,
            batched: batches
                .iter()
                .any(|line| line.operation == operation && line.in_use)
                .then(|| rate(&batch, DEPTHS[DEPTHS.len() - 1]))
                .transpose()?,
            device: device.collect::<Result<_, qat::Error>>()?,
        })
    };
    measured(exercise).into_iter().map(row).collect()
}

/// Has both sides do everything until it is known who does what, or that takes too long to know.
fn calibrate(exercise: &Exercise, engine: &Engine) -> Result<(), qat::Error> {
    for (operation, length) in measured(exercise) {
        for depth in [1, 32] {
            let open = || {
                let class = Class::new(operation, length);
                engine.status().choices.iter().any(|(of, .., choice)| *of == class && choice.is_none())
            };
            for _ in 0..TRIES {
                exercise.rate(engine, operation, length, depth, BRIEF)?;
                if !open() {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Operations with the lengths of their texts.
fn measured(exercise: &Exercise) -> Vec<(Operation, usize)> {
    let lengths = |operation| match operation {
        Operation::Cipher(_, qat::Direction::Seal) | Operation::Deflate | Operation::Inflate => &SIZES[..],
        Operation::Cipher(_, qat::Direction::Open) => &[],
        Operation::RsaPrivate(_) | Operation::EcdsaSign(_) | Operation::Ecdh(_) | Operation::X25519 => &[0],
    };
    let with = |operation| lengths(operation).iter().map(move |length| (operation, *length));
    exercise.operations().into_iter().flat_map(with).collect()
}

fn table(rows: &[Row]) -> String {
    let batched = rows.iter().any(|row| row.batched.is_some());
    let mut text = format!("{:<28} {:>6} {:>10} {:>8}", "operations per second", "bytes", "the CPU", "p99");
    if batched {
        write!(text, " {:>10} {:>8}", "batched", "p99").ok();
    }
    let depths: Vec<usize> =
        rows.first().map(|row| row.device.iter().map(|(depth, _)| *depth).collect()).unwrap_or_default();
    for depth in depths {
        write!(text, " {:>10} {:>8}", format!("device@{depth}"), "p99").ok();
    }
    text.push('\n');
    for Row { operation, bytes, cpu, batched: in_batches, device } in rows {
        let bytes = bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
        write!(text, "  {operation:<26} {bytes:>6}").ok();
        let batched = batched.then_some(in_batches.as_ref());
        let device = device.iter().map(|(_, speed)| Some(speed));
        for speed in [Some(cpu)].into_iter().chain(batched).chain(device.clone()) {
            let Some(speed) = speed else {
                write!(text, " {:>10} {:>8}", "-", "-").ok();
                continue;
            };
            write!(text, " {:>10.0} {:>8}", speed.per_second, format!("{:.0}µs", speed.p99_seconds * 1e6)).ok();
        }
        let missed = device.flatten().map(|speed| speed.on_the_cpu).fold(0.0, f64::max);
        if missed > 0.01 {
            write!(text, "  up to {:.0} % by the CPU", missed * 100.0).ok();
        }
        text.push('\n');
    }
    text
}

fn processor() -> String {
    let text = read("/proc/cpuinfo");
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "an unknown CPU".to_owned(), |(_, name)| name.trim().to_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn to_json(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
fn not_done(error: qat::Error) -> String {
    format!("an operation cannot be done: {error}\n  `routerctl qat selftest` tells more")
}

/// Enough to be in flight at once for three instances to have work.
const THREADS: usize = 16;
const DEPTHS: [usize; 3] = [1, 8, 32];
const SIZES: [usize; 4] = [64, 256, 1_424, 16_384];
/// What a device that is right never is, while rings that are full are nothing wrong. Nobody waits longer than
/// [`PATIENT`] for one that is not broken.
const BAD: [Reason; 5] = [Reason::WrongAnswer, Reason::Invalid, Reason::Failed, Reason::Refused, Reason::Deadline];
/// Of [`BRIEF`] each.
const TRIES: u32 = 5;
const PATIENT: Duration = Duration::from_secs(2);
const BRIEF: Duration = Duration::from_millis(20);

const ADVICE: &str = "\
to use a QAT 8970, one of:
  TLS, in user space     Intel's out-of-tree driver (QAT.L.4.x): its kernel modules, libqat_s.so, libusdm_drv_s.so,
                         and a section SSL in /etc/c6xx_devN.conf. Debian does not package it, and Debian's own
                         libqat4 opens but drives no C62x
  IPsec, in the kernel   the in-tree module qat_c62x, with firmware-intel-misc (Debian, non-free-firmware)
  The two sets of modules replace each other: it is one or the other.
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fixture;

    fn troubles(break_it: impl FnOnce(&mut CryptoStatus, &mut Load)) -> Vec<String> {
        let mut status = fixture::crypto();
        status.instances.remove(1);
        status.operations[0].cpu = BTreeMap::from([("busy".to_owned(), 3)]);
        let mut load = Load { operations: 4_183, seconds: 1.0, offloaded: 4_180, wrong: Vec::new() };
        break_it(&mut status, &mut load);
        trouble(&status, &[("X25519".to_owned(), true)], &load)
    }

    #[test]
    fn full_rings_are_no_trouble_of_a_device() {
        assert_eq!(troubles(|_, _| {}), Vec::<String>::new());
    }

    #[test]
    fn what_a_good_device_never_does_is_told() {
        type Break = fn(&mut CryptoStatus, &mut Load);
        let table: [(Break, &str); 9] = [
            (|status, _| status.missing = Some("library: none".to_owned()), "no device: library: none"),
            (|status, _| status.instances[0].state = "restarting".to_owned(), "SSL0 of device 0: restarting"),
            (
                |status, _| *status.instances[0].tests.get_mut("X25519").unwrap() = false,
                "SSL0 of device 0: 1 of 2 known answers right; wrong or none: X25519",
            ),
            (|status, _| status.instances[0].resets = 2, "SSL0 of device 0 had to be reset 2 times"),
            (
                |status, _| status.operations[0].cpu = BTreeMap::from([("deadline".to_owned(), 5)]),
                "RSA-2048 private: 5 times the CPU had to do it for the device: deadline",
            ),
            (
                |status, _| status.operations[0].cpu = BTreeMap::from([("wrong-answer".to_owned(), 1)]),
                "RSA-2048 private: 1 times the CPU had to do it for the device: wrong-answer",
            ),
            (
                |status, _| status.operations[0].offloaded = 0,
                "RSA-2048 private: the device has it, and did none under load",
            ),
            (|_, load| load.offloaded = 0, "the device did nothing"),
            (
                |_, load| load.wrong = vec!["X25519, number 7: the result is wrong".to_owned()],
                "X25519, number 7: the result is wrong",
            ),
        ];
        for (break_it, told) in table {
            assert_eq!(troubles(break_it), [told]);
        }
    }

    #[test]
    fn a_simulator_never_passes_for_a_card() {
        let mut status = fixture::crypto();
        assert!(!status.to_string().contains("SIMULATOR"));
        for instance in &mut status.instances {
            instance.simulator = true;
        }
        let told = status.to_string();
        assert!(told.starts_with("SIMULATOR: ") && told.contains("\nSIMULATOR SSL0 of device 1: restarting"), "{told}");
    }
}
