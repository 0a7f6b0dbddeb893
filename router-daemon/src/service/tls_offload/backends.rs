//! What is behind: whether it is up, and which one is next. Checks connect and hang up; a connection for a client that
//! fails counts as a failed check.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::model::{BackendBalance, BackendHealth};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// One of them.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    state: Mutex<State>,
    up: AtomicBool,
    pub(super) connections: AtomicU32,
    pub(super) served: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// Up until `fall` failures in a row, and down until `rise` successes. The first check decides alone.
#[derive(Debug, Default)]
struct State {
    known: bool,
    /// Of the kind that would change the state.
    in_a_row: u8,
    trouble: Option<String>,
}

impl Backend {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            state: Mutex::default(),
            up: AtomicBool::new(true),
            connections: AtomicU32::new(0),
            served: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Why it is down, or why it failed last.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).trouble.clone()
    }

    /// Whether that changed anything.
    fn judge(&self, outcome: Result<(), &str>, health: &BackendHealth) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let up = self.is_up();
        state.trouble = outcome.err().map(str::to_owned);
        if outcome.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if outcome.is_ok() == up {
            state.known = true;
            state.in_a_row = 0;
            return false;
        }
        state.in_a_row = state.in_a_row.saturating_add(1);
        let needed = if up { health.fall } else { health.rise };
        if state.known && state.in_a_row < needed {
            return false;
        }
        state.known = true;
        state.in_a_row = 0;
        self.up.store(!up, Ordering::Relaxed);
        true
    }

    /// A connection for a client or for a check.
    pub(super) async fn connect(&self, health: &BackendHealth) -> Result<TcpStream, String> {
        let connected = match tokio::time::timeout(health.timeout, TcpStream::connect(self.address)).await {
            Ok(connected) => connected.map_err(|error| format!("cannot connect: {error}")),
            Err(_elapsed) => Err(format!("no connection in {:?}", health.timeout)),
        };
        if self.judge(connected.as_ref().map(drop).map_err(String::as_str), health) {
            match &connected {
                Ok(_) => tracing::info!(backend = %self.address, "a backend of TLS offload is up"),
                Err(trouble) => tracing::warn!(backend = %self.address, trouble, "a backend of TLS offload is down"),
            }
        }
        connected
    }

    /// It took a connection, and then not.
    pub(super) fn refused(&self, error: &std::io::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).trouble = Some(error.to_string());
    }

    /// Until it is cancelled.
    pub(super) async fn watch(self: Arc<Self>, mut health: watch::Receiver<BackendHealth>) {
        loop {
            let now = *health.borrow_and_update();
            // What it is worth is judged in `connect`.
            drop(self.connect(&now).await);
            if let Ok(Err(_gone)) = tokio::time::timeout(now.interval, health.changed()).await {
                return;
            }
        }
    }
}

/// A connection that counts as one of its backend's.
#[derive(Debug)]
pub(super) struct Served(Arc<Backend>);

impl Served {
    pub(super) fn by(backend: &Arc<Backend>) -> Self {
        backend.connections.fetch_add(1, Ordering::Relaxed);
        backend.served.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(backend))
    }
}

impl Served {
    pub(super) fn address(&self) -> SocketAddr {
        self.0.address
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Those of one `[[tls_offload]]`, and whose turn it is.
#[derive(Debug)]
pub(super) struct Pool {
    /// With their weights.
    pub(super) backends: Vec<(Arc<Backend>, u8)>,
    balance: BackendBalance,
    /// For each, what it is owed: smooth weighted turns.
    owed: Mutex<Vec<i64>>,
}

impl Pool {
    pub(super) fn new(backends: Vec<(Arc<Backend>, u8)>, balance: BackendBalance) -> Self {
        let owed = Mutex::new(vec![0; backends.len()]);
        Self { backends, balance, owed }
    }

    pub(super) fn any_up(&self) -> bool {
        self.backends.iter().any(|(backend, _)| backend.is_up())
    }

    /// The next one that is up and was not tried.
    pub(super) fn next(&self, tried: &[SocketAddr]) -> Option<Arc<Backend>> {
        let able =
            |(_, (backend, _)): &(usize, &(Arc<Backend>, u8))| backend.is_up() && !tried.contains(&backend.address);
        let able: Vec<_> = self.backends.iter().enumerate().filter(able).collect();
        let candidates: Vec<_> = match self.balance {
            BackendBalance::RoundRobin => able,
            BackendBalance::LeastConnections => {
                // Compared by cross multiplication: with the one to come, per weight. Each is counted once: connections come and
                // go meanwhile, and whoever had the least would have none that is like it.
                let load = |(_, (backend, weight)): &(usize, &(Arc<Backend>, u8))| {
                    (u64::from(backend.connections.load(Ordering::Relaxed)) + 1, u64::from(*weight))
                };
                let less = |a: (u64, u64), b: (u64, u64)| (a.0 * b.1).cmp(&(b.0 * a.1));
                let able: Vec<_> = able.into_iter().map(|one| (load(&one), one)).collect();
                let least = able.iter().map(|(load, _)| *load).min_by(|a, b| less(*a, *b))?;
                able.into_iter().filter(|(load, _)| less(*load, least).is_eq()).map(|(_, one)| one).collect()
            }
        };
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let all: i64 = candidates.iter().map(|(_, (_, weight))| i64::from(*weight)).sum();
        for (index, (_, weight)) in &candidates {
            owed[*index] += i64::from(*weight);
        }
        let (index, (backend, _)) =
            candidates.into_iter().max_by_key(|(index, _)| (owed[*index], std::cmp::Reverse(*index)))?;
        owed[index] -= all;
        Some(Arc::clone(backend))
    }
}

/// How long a handshake with a backend may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(weights: &[u8], balance: BackendBalance) -> Pool {
        let backend = |port: usize| SocketAddr::from(([10, 0, 0, 1], u16::try_from(port).unwrap() + 1));
        let all = weights.iter().enumerate().map(|(index, weight)| (Arc::new(Backend::new(backend(index))), *weight));
        Pool::new(all.collect(), balance)
    }

    fn turns(pool: &Pool, count: usize) -> Vec<u16> {
        (0..count).map(|_| pool.next(&[]).unwrap().address.port()).collect()
    }

    #[test]
    fn turns_are_by_weight_and_mixed() {
        let pool = pool(&[3, 1, 1], BackendBalance::RoundRobin);
        let first = turns(&pool, 5);
        assert_eq!([1, 2, 3].map(|port| first.iter().filter(|turn| **turn == port).count()), [3, 1, 1]);
        assert_ne!(first[..3], [1, 1, 1]);
        assert_eq!(turns(&pool, 5), first);
    }

    #[test]
    fn the_one_with_the_fewest_for_its_weight_is_next() {
        let pool = pool(&[2, 1], BackendBalance::LeastConnections);
        let served: Vec<_> = (0..30).map(|_| Served::by(&pool.next(&[]).unwrap())).collect();
        let counts: Vec<_> = pool.backends.iter().map(|(b, _)| b.connections.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [20, 10]);
        drop(served);
        assert!(pool.backends.iter().all(|(backend, _)| backend.connections.load(Ordering::Relaxed) == 0));
        // Alike, they take turns.
        let alike = self::pool(&[1, 1], BackendBalance::LeastConnections);
        let mut ports = turns(&alike, 4);
        ports.sort_unstable();
        assert_eq!(ports, [1, 1, 2, 2]);
    }

    #[test]
    fn what_is_down_or_was_tried_is_passed_over() {
        let pool = pool(&[1, 1], BackendBalance::RoundRobin);
        let health = BackendHealth { fall: 1, rise: 1, ..BackendHealth::default() };
        let first = &pool.backends[0].0;
        assert!(first.judge(Err("gone"), &health));
        assert_eq!(turns(&pool, 3), [2, 2, 2]);
        assert!(pool.next(&[pool.backends[1].0.address]).is_none());
        assert!(pool.backends[1].0.judge(Err("gone"), &health));
        assert!(pool.next(&[]).is_none() && !pool.any_up());
        assert!(first.judge(Ok(()), &health));
        assert_eq!(turns(&pool, 1), [1]);
    }

    #[test]
    fn it_takes_as_many_in_a_row_as_the_file_says_and_the_first_check_decides_alone() {
        let health = BackendHealth { rise: 2, fall: 3, ..BackendHealth::default() };
        let run = |outcomes: &str| {
            let backend = Backend::new("10.0.0.1:1".parse().unwrap());
            let states = outcomes.chars().map(|outcome| {
                backend.judge(if outcome == '+' { Ok(()) } else { Err("gone") }, &health);
                if backend.is_up() { '+' } else { '-' }
            });
            states.collect::<String>()
        };
        for (outcomes, wanted) in
            [("-", "-"), ("+", "+"), ("+--+---", "++++++-"), ("+----+-++", "+++-----+"), ("-++", "--+")]
        {
            assert_eq!(run(outcomes), wanted, "{outcomes}");
        }
    }

    #[test]
    fn somebody_is_next_while_connections_come_and_go() {
        let pool = pool(&[1], BackendBalance::LeastConnections);
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    drop(Served::by(&pool.backends[0].0));
                }
            });
            let found = (0..200_000).all(|_| pool.next(&[]).is_some());
            over.store(true, Ordering::Relaxed);
            assert!(found);
        });
    }
}
