//! Waits for the next client of a listener, and meanwhile lets go of the connections that ended.

use std::io;
use std::time::Duration;

use tokio::task::JoinSet;

/// What `accept` gives, once it does; `what` is the listener, for the log. Without free descriptors it fails at once, so a failure is slept over.
pub(crate) async fn next<S, F>(connections: &mut JoinSet<()>, what: &str, accept: impl Fn() -> F) -> S
where
    F: Future<Output = io::Result<S>>,
{
    loop {
        tokio::select! {
            accepted = accept() => match accepted {
                Ok(client) => return client,
                Err(error) => {
                    tracing::warn!(what, %error, "a client could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
