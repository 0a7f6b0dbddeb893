//! Network namespaces for tests. A namespace belongs to the thread that made it; sockets opened there stay there.

#![allow(dead_code, reason = "several tests share this file, and none uses all of it")]

use std::future::Future;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread of its own, in network and mount namespaces of its own, with a runtime of its own.
/// It gets a directory that goes with it; what the test mounts at `bpf` in there goes too.
pub(crate) fn alone<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send + 'static) {
    let body = move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
            println!("SKIP: no namespaces of our own: {error}");
            return;
        }
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        ip("link set lo up");
        let run = tempfile::tempdir().unwrap();
        runtime().block_on(test(run.path().to_owned()));
        let pins = run.path().join("bpf");
        if pins.exists() {
            umount(&pins).unwrap();
        }
    };
    if let Err(panic) = thread::spawn(body).join() {
        resume_unwind(panic);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// iproute2 in the namespace of this thread; its output.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Another namespace, and the thread that lives in it.
pub(crate) struct Room {
    work: mpsc::Sender<Work>,
    thread: String,
}

type Work = Box<dyn FnOnce() + Send>;

impl Room {
    pub(crate) fn open() -> Self {
        let (work, inbox) = mpsc::channel::<Work>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            for work in inbox {
                work();
            }
        });
        let mut room = Self { work, thread: String::new() };
        room.thread = room.run(|| {
            let myself = std::fs::read_link("/proc/thread-self").unwrap();
            myself.file_name().unwrap().to_str().unwrap().to_owned()
        });
        // Takes an index: where both ends of a cable have the same, the kernel takes it for hardware, and tells of its
        // carrier at most once per second of the whole machine.
        room.ip(&["link set lo up", "link add spare type bridge"]);
        room
    }

    /// Does something inside, and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        self.work.send(Box::new(move || drop(answer.send(work())))).unwrap();
        result.recv().expect("the work in the other namespace panicked")
    }

    /// A cable from here to there.
    pub(crate) fn connect(&self, here: &str, there: &str) {
        ip(&format!("link add {here} type veth peer name {there} netns {}", self.thread));
    }

    /// A link of this room moves to another.
    pub(crate) fn give(&self, link: &'static str, other: &Self) {
        let thread = other.thread.clone();
        self.run(move || ip(&format!("link set {link} netns {thread}")));
    }

    pub(crate) fn ip(&self, commands: &'static [&'static str]) {
        self.run(|| commands.iter().for_each(|command| drop(ip(command))));
    }
}

/// The `nft` the kernel uses.
pub(crate) fn nft(arguments: &str) -> String {
    let program = std::env::var_os("QUADWAY_NFT").unwrap_or_else(|| "nft".into());
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
