//! Network namespaces: made under a name, entered by a thread or by a program, removed on drop.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A named network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    owned: bool,
}

impl Netns {
    /// Makes a namespace that is removed when this value is dropped.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        Ok(Self { name: name.to_owned(), owned: true })
    }

    /// A namespace that somebody else made and will remove.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), owned: false }
    }

    /// Leaves the namespace behind on drop.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.owned = false;
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Runs `work` on a thread of its own inside the namespace. A socket it opens stays in the namespace,
    /// wherever it is used later.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let namespace = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| work()));
            match thread.join() {
                Ok(done) => done.with_context(|| format!("cannot enter the namespace {}", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A program to be run inside the namespace. It replaces the entering program, so its process id is that of
    /// the child.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs lines of `ip` in the namespace; stops at the first that fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.batch(&["-batch", "-"], lines)
    }

    /// The same for lines that may find their work done: every line is run, failures are ignored.
    pub fn ip_lenient(&self, lines: &str) {
        drop(self.batch(&["-force", "-batch", "-"], lines));
    }

    fn batch(&self, options: &[&str], lines: &str) -> Result<()> {
        feed(Command::new("ip").args(["-netns", &self.name]).args(options), lines)
            .with_context(|| format!("in the namespace {}:\n{lines}", self.name))
    }

    /// Sets a sysctl of the namespace, named by its path below `/proc/sys`.
    pub fn sysctls<const N: usize>(&self, settings: [(&str, &str); N]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                let path = format!("/proc/sys/{key}");
                std::fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {path}"))?;
            }
            Ok(())
        })?
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.owned {
            // Gone already is as good as removed.
            drop(Command::new("ip").args(["netns", "delete", &self.name]).stderr(Stdio::null()).status());
        }
    }
}

/// Runs a program to its end; what it complained about becomes the error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program with `input` on its standard input.
pub fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading early says why on its standard error.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_opened_inside_stays_inside_and_the_namespace_goes_on_drop() {
        let name = format!("qw-netns-{}", std::process::id());
        {
            let namespace = match Netns::create(&name) {
                Ok(namespace) => namespace,
                Err(error) => {
                    println!("SKIP: needs root: {error:#}");
                    return;
                }
            };
            namespace.ip("link set lo up").unwrap();
            let listener = namespace.enter(|| std::net::TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
            let address = listener.local_addr().unwrap();
            assert!(std::net::TcpStream::connect(address).is_err(), "reached from outside");
            assert!(namespace.enter(|| std::net::TcpStream::connect(address)).unwrap().is_ok());
            let links = run(namespace.command("ip").args(["-brief", "link"])).unwrap();
            assert_eq!(links.lines().count(), 1, "{links}");
        }
        assert!(!Netns::named(&name).exists());
    }
}
