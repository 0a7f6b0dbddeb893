//! One hook: a program of the operator's, run for each happening, one at a time. It gets the JSON on its standard
//! input and the fields in its environment, nothing else of ours, and has its time. Then its whole process group is
//! killed. What comes meanwhile waits in the inbox, and what finds that full is dropped and counted.
//!
//! The program runs as routerd does, so nobody but its owner may be able to change it: not the file, not a folder above.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use config::model::Hook;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::Tally;
use crate::happening::Happening;

pub(super) struct Duty {
    pub(super) hook: Hook,
    pub(super) tally: Arc<Tally>,
    /// Whose the program and the folders above must be, besides root's.
    pub(super) owner: u32,
}

impl Duty {
    /// Until the inbox is closed; what is in it then is dropped.
    pub(super) async fn run(self, mut inbox: mpsc::Receiver<Arc<Happening>>) {
        while let Some(happening) = inbox.recv().await {
            self.tally.waiting.store(inbox.len() as u64 + 1, Ordering::Relaxed);
            let program = self.hook.run.display();
            let event = happening.what.kind().word();
            match self.call(&happening).await {
                Ok(status) if status.success() => {
                    self.tally.succeed(1);
                    info!(hook = %program, event, "the hook ended well");
                }
                Ok(status) => {
                    self.tally.fail(&format!("it ended with {status}"));
                    warn!(hook = %program, event, code = status.code(), "the hook ended with {status}");
                }
                Err(reason) => {
                    self.tally.miss(1);
                    self.tally.fail(&reason);
                    warn!(hook = %program, event, reason, "the hook was not run to its end");
                }
            }
            self.tally.waiting.store(inbox.len() as u64, Ordering::Relaxed);
            if inbox.is_closed() {
                self.tally.miss(inbox.len() as u64);
                return;
            }
        }
    }

    async fn call(&self, happening: &Happening) -> Result<ExitStatus, String> {
        let program = trusted(&self.hook.run, self.owner)?;
        let body = serde_json::to_vec(happening).map_err(|error| error.to_string())?;
        let mut child = Command::new(&program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(environment(happening))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("it cannot be run: {error}"))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let stdin = child.stdin.take();
        let work = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // It need not read.
                    drop(stdin.write_all(&body).await);
                }
            };
            let ((), status) = tokio::join!(write, child.wait());
            status
        };
        let status = tokio::time::timeout(self.hook.timeout, work).await;
        match status {
            Ok(status) => status.map_err(|error| error.to_string()),
            Err(_elapsed) => {
                // Not reaped yet, so the number is still its own.
                if let Some(Err(error)) = group.map(|group| killpg(group, Signal::SIGKILL)) {
                    warn!(%error, "a hook that took too long cannot be killed");
                }
                drop(child.wait().await);
                let limit = humantime::format_duration(self.hook.timeout);
                Err(format!("it was killed: it took longer than {limit}"))
            }
        }
    }
}

/// The fields as `QUADWAY_WAN` and the like.
fn environment(happening: &Happening) -> Vec<(String, String)> {
    let Happening { version, run, number, time, severity, text, what } = happening;
    let mut fields = vec![
        ("version".to_owned(), version.to_string()),
        ("run".to_owned(), run.to_string()),
        ("number".to_owned(), number.to_string()),
        ("time".to_owned(), time.clone()),
        ("severity".to_owned(), severity.word().to_owned()),
        ("text".to_owned(), text.clone()),
        ("event".to_owned(), what.kind().word().to_owned()),
    ];
    fields.extend(what.fields());
    let cut = |value: String| value.chars().filter(|c| *c != '\0').take(LONGEST).collect();
    fields.into_iter().map(|(name, value)| (format!("QUADWAY_{}", name.to_uppercase()), cut(value))).collect()
}

/// The file behind the path, if nobody but its owner can put something else there.
fn trusted(program: &Path, owner: u32) -> Result<PathBuf, String> {
    let cannot = |error: std::io::Error| format!("{}: {error}", program.display());
    let real = fs::canonicalize(program).map_err(cannot)?;
    for (above, path) in real.ancestors().enumerate() {
        let told = path.display();
        let facts = fs::metadata(path).map_err(cannot)?;
        if facts.uid() != 0 && facts.uid() != owner {
            return Err(format!("{told} belongs to user {}: chown root {told}", facts.uid()));
        }
        // In a folder with the sticky bit nobody replaces what is another's.
        let sticky = above > 0 && facts.mode() & 0o1000 != 0;
        if facts.mode() & 0o022 != 0 && !sticky {
            return Err(format!("others may write {told}: chmod go-w {told}"));
        }
        if above == 0 && !(facts.is_file() && facts.mode() & 0o111 != 0) {
            return Err(format!("{told} is no program: chmod +x {told}"));
        }
    }
    Ok(real)
}

/// Of a value; the kernel takes 128 KiB.
const LONGEST: usize = 4096;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, Instant};

    use config::units::{EventKind, Line};
    use nix::unistd::getuid;

    use super::*;
    use crate::happening::{Happenings, What};

    #[tokio::test]
    async fn a_hook_gets_json_and_environment_and_nothing_of_ours() {
        let bench = Bench::start("cat > \"$0.json\"; env > \"$0.env\"; exit 0\n", Duration::from_secs(20));
        bench.tell("a\0b").await;
        bench.tally.comes_to([1, 0, 0]).await;
        let json: Happening = serde_json::from_str(&bench.read("hook.json")).unwrap();
        assert_eq!(json.what, What::Target { target: "a\0b".to_owned(), bad: true });
        let text = bench.read("hook.env");
        let env: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
        assert_eq!((env["QUADWAY_EVENT"], env["QUADWAY_TARGET"], env["QUADWAY_BAD"]), ("target", "ab", "true"));
        assert_eq!((env["QUADWAY_SEVERITY"], env["QUADWAY_NUMBER"]), ("warning", "1"));
        assert!(!env.contains_key("CARGO_MANIFEST_DIR"), "{text}");
    }

    #[tokio::test]
    async fn a_hook_that_hangs_is_killed_with_its_children_and_the_next_is_run() {
        let script = "case $QUADWAY_TARGET in hang) sleep 1000 & echo $! > \"$0.child\"; wait;; esac; exit 3\n";
        let bench = Bench::start(script, Duration::from_secs(3));
        bench.tell("hang").await;
        bench.tally.comes_to([0, 1, 1]).await;
        assert!(bench.trouble().contains("longer than 3s"), "{}", bench.trouble());
        let child = bench.read("hook.child").trim().to_owned();
        let begun = Instant::now();
        let gone = || {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        while !gone() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the child of the hook lives");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.tell("go").await;
        bench.tally.comes_to([0, 2, 1]).await;
        assert!(bench.trouble().contains("exit status: 3"), "{}", bench.trouble());
    }

    #[tokio::test]
    async fn a_hook_that_does_not_read_is_no_failure() {
        let bench = Bench::start("exec 0<&-; exit 0\n", Duration::from_secs(20));
        bench.tell(&"x".repeat(1 << 20)).await;
        bench.tally.comes_to([1, 0, 0]).await;
    }

    #[test]
    fn a_program_that_others_could_change_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), "exit 0\n");
        let own = getuid().as_raw();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(trusted(&program, own).unwrap(), fs::canonicalize(&program).unwrap());
        for bad in [0o775, 0o757, 0o777] {
            mode(&program, bad);
            assert!(trusted(&program, own).unwrap_err().contains("chmod go-w"), "{bad:o}");
        }
        mode(&program, 0o644);
        assert!(trusted(&program, own).unwrap_err().contains("chmod +x"));
        mode(&program, 0o755);
        mode(folder.path(), 0o777);
        assert!(trusted(&program, own).unwrap_err().contains("others may write"));
        let link = tempfile::tempdir().unwrap();
        symlink(&program, link.path().join("link")).unwrap();
        assert!(
            trusted(&link.path().join("link"), own).unwrap_err().contains("others may write"),
            "what counts is behind it"
        );
        mode(folder.path(), 0o755);
        assert!(trusted(folder.path(), own).unwrap_err().contains("is no program"));
        assert!(trusted(&folder.path().join("none"), own).unwrap_err().contains("No such file"));
        if own == 0 {
            std::os::unix::fs::chown(&program, Some(1), None).unwrap();
            assert!(trusted(&program, 0).unwrap_err().contains("belongs to user 1: chown root"));
        }
    }

    struct Bench {
        folder: tempfile::TempDir,
        happenings: Happenings,
        inbox: mpsc::Sender<Arc<Happening>>,
        tally: Arc<Tally>,
    }

    impl Bench {
        fn start(text: &str, timeout: Duration) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let run = script(folder.path(), text);
            let hook = Hook { run, events: EventKind::ALL.into(), timeout, line: Line::BUILT_IN };
            let tally: Arc<Tally> = Arc::default();
            let (inbox, told) = mpsc::channel(16);
            tokio::spawn(Duty { hook, tally: Arc::clone(&tally), owner: getuid().as_raw() }.run(told));
            Self { folder, happenings: Happenings::default(), inbox, tally }
        }

        async fn tell(&self, target: &str) {
            let mut followed = self.happenings.follow();
            self.happenings.tell(What::Target { target: target.to_owned(), bad: true });
            self.inbox.send(followed.recv().await.unwrap()).await.unwrap();
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.folder.path().join(name)).unwrap()
        }

        fn trouble(&self) -> String {
            self.tally.trouble.lock().unwrap().clone().unwrap_or_default()
        }
    }

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("hook");
        fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}
