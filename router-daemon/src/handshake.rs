//! Threads on which handshakes of TLS are made: rustls waits there for its signature, and nobody else does. They give way to
//! the router's own.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// Threads that nobody waits for: one of them may be in a signature. A runtime that is dropped would wait, and where
/// nothing may wait, panic.
#[derive(Debug)]
pub(crate) struct Workers(Option<Runtime>, Handle);

impl Workers {
    pub(crate) fn start(name: &str, count: usize, nice: i32) -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(count).thread_name(name).on_thread_start(move || give_way(nice)).enable_all();
        let runtime = builder.build()?;
        let handle = runtime.handle().clone();
        Ok(Self(Some(runtime), handle))
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Makes a handshake on one of those threads. It ends with whoever waits for it: one that nobody waits for is not made.
pub(crate) async fn on<T: Send + 'static>(
    threads: &Handle,
    handshake: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    let mut work = Abandoned(threads.spawn(handshake));
    (&mut work.0).await.map_err(io::Error::other)
}

#[derive(Debug)]
struct Abandoned<T>(JoinHandle<T>);

impl<T> Drop for Abandoned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// This thread gets what others leave.
fn give_way(nice: i32) {
    let own = rustix::thread::gettid();
    // A thread is a process to Linux here; without the right it only competes.
    rustix::process::setpriority_process(Some(own), nice).ok();
}
