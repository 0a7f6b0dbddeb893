//! Measures what routerd costs while nothing happens: 4 lines, every target probed 10 times a second, no traffic.
//! Also how long `routerctl check` takes for a whole site. Needs root.
//!
//! Linux charges what a packet causes on a veth, up to the far end's answer, to whoever sent it. A card's wire charges
//! nobody. So the daemon gets a core of its own, and the provider's side works on the other; the second figure is with
//! the provider's work in it.
//!
//! What a packet and a wake-up cost differs by machine. So the same probes are sent by a loop that does nothing else,
//! by the same lines, through the same table, with nobody to decide anything: what is left is the router's own work.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use config::units::Mark;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};
use tests::demo::wait_until_good;
use tests::failover::PATIENCE;
use tests::lab::{Lab, Temporary, binary};
use tests::netns::run;
use tests::site::{TARGETS4, TARGETS6, unserved};

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

    let mut lab = Temporary::up(&unserved(&std::fs::read_to_string(&site)?)?, LINES, false)?;
    let both = std::fs::read_to_string(lab.site_file())?;
    let one = TARGETS6.iter().fold(both.clone(), |text, target| text.replace(&format!(", \"icmp {target}\""), ""));
    // A quorum of two is more than no target can give.
    let one = one.replace("quorum   = 2", "quorum   = 1");
    // A line of both families with no target in one of them has its gateway asked there.
    let four = one.lines().filter(|line| !line.starts_with("gateway6")).collect::<Vec<_>>().join("\n");
    let four = (1..=LINES).fold(four, |text, line| text.replace(&format!(", \"2001:db8:ff{line:02x}::2/64\""), ""));
    for (text, targets) in
        [(four, "3 targets"), (one, "3 targets and the gateway by IPv6"), (both, "3 targets in each family")]
    {
        std::fs::write(lab.site_file(), text)?;
        lab.start_router()?;
        wait_until_good(&lab, PATIENCE)?;
        pin(&lab)?;
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
    far_ends_on(&lab, ELSEWHERE)?;
    let bare = lab.router().enter(bare_loop)??;
    println!("a bare loop that sends the probes of the first row and reads their answers: {bare:.2} % of a core");
    Ok(())
}

/// Percent of a core that sending three echoes on each line at each of ten moments a second takes, and reading the
/// answers.
fn bare_loop() -> Result<f64> {
    on_the_first_cpu(Pid::from_raw(0))?;
    let mut sockets = Vec::new();
    for line in 1..=LINES {
        let socket = Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(Protocol::ICMPV4))?;
        socket.bind_device(Some(format!("wan{line}").as_bytes()))?;
        socket.set_mark(Mark::PROBE | u32::from(line) << 24)?;
        sockets.push(socket);
    }
    let own_time = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let (before, start) = (own_time()?, Instant::now());
    let (mut moments, mut answers) = (0, 0);
    while start.elapsed() < SPAN {
        for socket in &sockets {
            let mut buffer = [0; 256];
            let mut answered: &Socket = socket;
            while answered.read(&mut buffer).is_ok() {
                answers += 1;
            }
            for target in TARGETS4 {
                socket.send_to(&ECHO, &SocketAddr::from((target, 0)).into())?;
            }
        }
        moments += 1;
        thread::sleep((start + MOMENT * u32::try_from(moments)?).saturating_duration_since(Instant::now()));
    }
    let used = own_time()?.saturating_sub(before);
    ensure!(answers > moments * 11, "{answers} answers to {} echoes", moments * 12);
    Ok(used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
}

/// Who takes in packets at the ends that are not the router's: these CPUs (`Documentation/networking/scaling.rst`,
/// RPS), or with `0` whoever sent them. Routerd has the first CPU.
fn far_ends_on(lab: &Lab, cpus: &str) -> Result<()> {
    let router = lab.router();
    for name in lab.namespaces().iter().filter(|name| *name != router.name()) {
        let set = format!("for queue in /sys/class/net/*/queues/rx-*/rps_cpus; do echo {cpus} > $queue; done");
        run(Command::new("ip").args(["netns", "exec", name, "sh", "-c", &set]))?;
    }
    Ok(())
}

/// Routerd and its threads.
fn pin(lab: &Lab) -> Result<()> {
    let leader = lab.processes().find(|(what, _)| *what == "routerd").context("no routerd")?.1;
    for thread in std::fs::read_dir(format!("/proc/{leader}/task"))? {
        let thread = thread?.file_name().into_string().ok().context("a thread without a number")?;
        on_the_first_cpu(Pid::from_raw(thread.parse()?))?;
    }
    Ok(())
}

fn on_the_first_cpu(thread: Pid) -> Result<()> {
    let mut first = CpuSet::new();
    first.set(0)?;
    Ok(sched_setaffinity(thread, &first)?)
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
/// All targets are asked at the same moments.
const MOMENT: Duration = Duration::from_millis(100);
/// Type, code, checksum (RFC 1071), identifier, number, and as much data as routerd's own probes carry.
const ECHO: [u8; 40] = {
    let mut echo = [0; 40];
    [echo[0], echo[2], echo[3]] = [8, 0xf7, 0xff];
    echo
};
const SPAN: Duration = Duration::from_secs(30);
/// What follows a start is no idleness.
const SETTLE: Duration = Duration::from_secs(5);
/// `USER_HZ`, which is 100 on every architecture this runs on.
const TICKS_PER_SECOND: u32 = 100;
