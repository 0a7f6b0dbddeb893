//! Components as children of routerd. Each leads a process group of its own, which is ended as a whole. The number of each
//! is on the disk with the time it started at, and each has routerd's folder in its environment: by either, the next
//! routerd knows what a killed one left behind, and ends nothing else.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tracing::{info, warn};

use super::Component;

/// One that runs, or ran. Dropping it leaves it as it is: the next start of routerd ends it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    group: Pid,
    said: Said,
    number: PathBuf,
    ending: bool,
}

/// The last lines of what it printed.
#[derive(Debug, Clone, Default)]
struct Said(Arc<Mutex<VecDeque<String>>>);

impl Process {
    pub(super) fn start(component: &Component, run: &Path) -> Result<Self, String> {
        let Component { name, package, program, arguments, environment, .. } = component;
        let mut command = Command::new(program);
        command.args(arguments).envs(environment).env(MARK, run);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| cannot_run(program, package, &error))?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).ok_or("it ended at once")?;
        let number = numbers(run).join(name);
        // Without this it is still known by its environment.
        if let Err(error) = remember(&number, id) {
            warn!(component = %name, %error, "its number cannot be written down");
        }
        let said = Said::default();
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(listen(name.clone(), stdout, said.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(listen(name.clone(), stderr, said.clone()));
        }
        info!(component = %name, pid = id, "started");
        Ok(Self { child, group: Pid::from_raw(id), said, number, ending: false })
    }

    pub(super) fn signal(&self, signal: Signal) {
        send(self.group, signal);
    }

    /// Of a reload its first process alone is told: helpers of it that know nothing of the signal would end by it.
    pub(super) fn reload(&self, signal: Signal) {
        match kill(self.group, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => warn!(process = %self.group, %signal, %error, "a component cannot be told to reload"),
        }
    }

    /// Waits for its end; may be cut short.
    pub(super) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => self.why(status),
            Err(error) => format!("it cannot be waited for: {error}"),
        }
    }

    /// How it ended, if it has.
    pub(super) fn has_ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(self.why(status)),
            Err(error) => Some(format!("it cannot be waited for: {error}")),
        }
    }

    fn why(&self, status: ExitStatus) -> String {
        let said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last: Vec<_> = said.iter().cloned().collect();
        if last.is_empty() { format!("it ended: {status}") } else { format!("it ended: {status}: {}", last.join("; ")) }
    }

    /// It was told to end.
    pub(super) fn is_ending(&self) -> bool {
        self.ending
    }

    /// Ends it and all that it started. Cut short, it is to be called again.
    pub(super) async fn stop(&mut self, goodbye: Signal, farewell: Duration) {
        self.ending = true;
        self.signal(goodbye);
        if tokio::time::timeout(farewell, self.child.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            self.child.wait().await.ok();
        }
        // What it started may have outlived it.
        self.signal(Signal::SIGKILL);
        fs::remove_file(&self.number).ok();
    }
}

/// ESRCH: it has ended, and nothing of it is left.
fn send(group: Pid, signal: Signal) {
    match killpg(group, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => warn!(%group, %signal, %error, "a component cannot be signalled"),
    }
}

/// With the remedy, where it is missing.
pub(super) fn cannot_run(program: &str, package: &str, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        format!("there is no {program}: apt install {package}")
    } else {
        format!("cannot run {program}: {error}")
    }
}

/// What it prints goes to our log, as far as it is not too much, and is kept for the reason of its end.
async fn listen(component: String, stream: impl AsyncRead + Unpin, said: Said) {
    let mut lines = BufReader::new(stream).split(b'\n');
    let (mut since, mut count) = (Instant::now(), 0_u32);
    // A line that never ends would be kept whole: none of these programs prints one.
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        let line: String = line.trim().chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        if line.is_empty() {
            continue;
        }
        if since.elapsed() > Duration::from_secs(1) {
            (since, count) = (Instant::now(), 0);
        }
        count += 1;
        if count <= MOST_LINES {
            info!(%component, "{line}");
        } else if count == MOST_LINES + 1 {
            info!(%component, "it says more than is told here");
        }
        let mut said = said.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == LAST_LINES {
            said.pop_front();
        }
        said.push_back(line);
    }
}

fn numbers(run: &Path) -> PathBuf {
    run.join("components")
}

fn remember(number: &Path, pid: i32) -> io::Result<()> {
    let process = Known::now(pid).ok_or_else(|| io::Error::other("it is gone"))?;
    if let Some(folder) = number.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(number, format!("{} {} {}\n", process.pid, process.started, boot()))
}

/// A process, told from a stranger that gets its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    pid: i32,
    /// In clock ticks since the machine started.
    started: u64,
}

impl Known {
    /// The process of this number; `None` where there is none, or only its corpse.
    fn now(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; fields 3 (state) and 22 (start time) follow it.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z" && state != "X").then_some(Self { pid, started })
    }

    fn is_there(self) -> bool {
        Self::now(self.pid) == Some(self)
    }
}

fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Ends the components that a routerd of this folder has left behind.
pub(super) async fn end_orphans(run: &Path, farewell: Duration) {
    let orphans = orphans(run);
    if !orphans.is_empty() {
        info!(count = orphans.len(), "components of a routerd that was killed are ended first");
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for orphan in orphans.iter().filter(|orphan| orphan.is_there()) {
            let own = Pid::from_raw(orphan.pid);
            if nix::unistd::getpgid(Some(own)) == Ok(own) {
                send(own, signal);
            } else if let Err(error) = kill(own, signal)
                && error != Errno::ESRCH
            {
                warn!(pid = orphan.pid, %error, "a component cannot be signalled");
            }
        }
        let patience = Instant::now() + farewell;
        while orphans.iter().any(|orphan| orphan.is_there()) && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // Ours alone are in there.
    fs::remove_dir_all(numbers(run)).ok();
}

fn orphans(run: &Path) -> BTreeSet<Known> {
    let (boot, own) = (boot(), std::process::id());
    let written = fs::read_dir(numbers(run)).into_iter().flatten().flatten().filter_map(|entry| {
        let text = fs::read_to_string(entry.path()).ok()?;
        let mut words = text.split_ascii_whitespace();
        let known = Known { pid: words.next()?.parse().ok()?, started: words.next()?.parse().ok()? };
        (words.next()? == boot && known.is_there()).then_some(known)
    });
    // Those whose number did not make it to the disk, and what a component started that has ended itself.
    let mark = [MARK.as_bytes(), b"=", run.as_os_str().as_encoded_bytes()].concat();
    let marked = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let environment = fs::read(entry.path().join("environ")).ok()?;
        let ours = u32::try_from(pid).ok()? != own && environment.split(|byte| *byte == 0).any(|word| word == mark);
        ours.then(|| Known::now(pid)).flatten()
    });
    written.chain(marked).collect()
}

/// In the environment of every component: routerd's `--run`.
const MARK: &str = "QUADWAY_COMPONENT_OF";
/// Lines of a component that are told in a second.
const MOST_LINES: u32 = 20;
const LAST_LINES: usize = 3;
/// Characters of a line.
const LONGEST: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_somebody_else_has_got_is_nobody_of_ours() {
        let run = tempfile::tempdir().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let known = Known::now(own).unwrap();
        let folder = numbers(run.path());
        fs::create_dir_all(&folder).unwrap();
        let write = |started: u64, boot: &str| {
            fs::write(folder.join("it"), format!("{own} {started} {boot}\n")).unwrap();
            orphans(run.path())
        };
        assert_eq!(write(known.started + 1, &boot()), BTreeSet::new(), "another start");
        assert_eq!(write(known.started, "0-0"), BTreeSet::new(), "another boot");
        assert_eq!(write(known.started, &boot()), BTreeSet::from([known]));
    }
}
