//! What the loop keeps on the disk, in the order it was asked to. The loop waits for none of it. Cancelling it leaves
//! what is done done, and what is under way whole.

use std::io;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
pub(super) struct Disk(mpsc::Sender<Job>);

impl Disk {
    pub(super) fn begin(tasks: &mut JoinSet<()>) -> Self {
        let (jobs_tx, mut jobs) = mpsc::channel::<Job>(JOBS);
        tasks.spawn(async move {
            while let Some(job) = jobs.recv().await {
                if let Err(error) = tokio::task::spawn_blocking(job).await {
                    tracing::error!(%error, "something could not be kept");
                }
            }
        });
        Self(jobs_tx)
    }

    /// Its place is taken by this call; the future tells how it went.
    pub(super) fn run<T, W>(&self, work: W) -> impl Future<Output = io::Result<T>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let (done_tx, done) = oneshot::channel();
        // A queue that is full drops the job, and with it the other end of `done`.
        let job: Job = Box::new(move || drop(done_tx.send(work())));
        drop(self.0.try_send(job));
        async move { done.await.unwrap_or_else(|_dropped| Err(io::Error::other("the disk does not keep up"))) }
    }
}

const JOBS: usize = 64;
