//! Measures what routerd costs while nothing happens: 4 lines, every target probed 10 times a second, no traffic.
//! Also how long `routerctl check` takes for a whole site. Needs root.
//!
//! Linux charges what a packet causes on a veth, up to the far end's answer, to whoever sent it. A card's wire charges
//! nobody. So the daemon gets a core of its own, and the provider's side works on the other; the second figure is with
//! the provider's work in it.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tests::demo::wait_until_good;
use tests::failover::PATIENCE;
use tests::lab::{Lab, Temporary, binary};
use tests::netns::run;
use tests::site::TARGETS6;

fn main() -> Result<()> {
    println!("{}", bench::machine());
    let site = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples/spectrum-site.toml");
    let mut checks = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        run(Command::new(binary("routerctl")?).arg("check").arg(&site))?;
        checks.push(start.elapsed());
    }
    checks.sort();
    println!("routerctl check of a whole site: median {:?}, worst {:?}", checks[10], checks[19]);

    let mut lab = Temporary::up(&std::fs::read_to_string(&site)?, LINES, false)?;
    let both = std::fs::read_to_string(lab.site_file())?;
    let one = TARGETS6.iter().fold(both.clone(), |text, target| text.replace(&format!(", \"icmp {target}\""), ""));
    // A quorum of two is more than no target can give.
    let one = one.replace("quorum   = 2", "quorum   = 1");
    for (text, targets) in [(one, "3 targets"), (both, "3 targets in each family")] {
        std::fs::write(lab.site_file(), text)?;
        lab.start_router()?;
        wait_until_good(&lab, PATIENCE)?;
        far_ends_on(&lab, ELSEWHERE)?;
        thread::sleep(SETTLE);
        let (cpu, memory) = cost(&lab)?;
        far_ends_on(&lab, "0")?;
        let (both, _) = cost(&lab)?;
        println!(
            "routerd idle, {LINES} lines × {targets} at 10 Hz: {cpu:.2} % of a core ({both:.2} % with the provider's \
             work), {memory:.1} MB resident"
        );
        lab.stop_router(Signal::SIGTERM)?;
    }
    Ok(())
}

/// Who takes in packets at the ends that are not the router's: these CPUs (`Documentation/networking/scaling.rst`,
/// RPS), or with `0` whoever sent them. Routerd has the first CPU.
fn far_ends_on(lab: &Lab, cpus: &str) -> Result<()> {
    let leader = lab.processes().find(|(what, _)| *what == "routerd").context("no routerd")?.1;
    let mut first = CpuSet::new();
    first.set(0)?;
    for thread in std::fs::read_dir(format!("/proc/{leader}/task"))? {
        let thread = thread?.file_name().into_string().ok().context("a thread without a number")?;
        sched_setaffinity(Pid::from_raw(thread.parse()?), &first)?;
    }
    let router = lab.router();
    for name in lab.namespaces().iter().filter(|name| *name != router.name()) {
        let set = format!("for queue in /sys/class/net/*/queues/rx-*/rps_cpus; do echo {cpus} > $queue; done");
        run(Command::new("ip").args(["netns", "exec", name, "sh", "-c", &set]))?;
    }
    Ok(())
}

/// Percent of a core over [`SPAN`], and resident megabytes.
fn cost(lab: &Lab) -> Result<(f64, f64)> {
    let leader = lab.processes().find(|(what, _)| *what == "routerd").context("no routerd")?.1;
    let before = cpu_time(leader)?;
    let start = Instant::now();
    thread::sleep(SPAN);
    let used = cpu_time(leader)?.saturating_sub(before);
    let status = std::fs::read_to_string(format!("/proc/{leader}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = resident.trim().trim_end_matches(" kB").parse()?;
    Ok((used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0, kilobytes / 1000.0))
}

/// User and system time of a process.
fn cpu_time(pid: i32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; fields 14 and 15 are 11 and 12 behind it.
    let fields = stat.rsplit_once(')').context("a stat without a name")?.1.split_ascii_whitespace();
    let ticks = fields.skip(11).take(2).map(str::parse::<u32>).sum::<Result<u32, _>>()?;
    Ok(Duration::from_secs(1) * ticks / TICKS_PER_SECOND)
}

const LINES: u8 = 4;
/// The second CPU.
const ELSEWHERE: &str = "2";
const SPAN: Duration = Duration::from_secs(30);
/// What follows a start is no idleness.
const SETTLE: Duration = Duration::from_secs(5);
/// `USER_HZ`, which is 100 on every architecture this runs on.
const TICKS_PER_SECOND: u32 = 100;
