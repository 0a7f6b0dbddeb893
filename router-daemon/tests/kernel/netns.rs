//! Network namespaces for tests. A namespace belongs to the thread that made it; sockets opened there stay there.

use std::future::Future;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread of its own, in a network namespace of its own, with a runtime of its own.
pub(crate) fn alone<F: Future<Output = ()>>(test: F)
where
    F: Send + 'static,
{
    let body = move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("SKIP: no network namespace of our own: {error}");
            return;
        }
        ip("link set lo up");
        runtime().block_on(test);
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
