//! A tunnel's client with four connections, as cloudflared has: each on a line of its own, whatever becomes of the lines.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::netns::Netns;
use tests::traffic::{datagrams, echoes, open, seen_as};
use tests::watch::{number_of, status, wait_usable};

const SITE: &str = include_str!("../../config/examples/minimal.toml");
/// An edge of the tunnel.
const EDGE: &str = "198.51.100.1:7844";

#[test]
fn quic_like_connections_stay_apart_and_are_never_all_lost() {
    stay_apart(Over::Udp);
}

#[test]
fn connections_over_tcp_stay_apart_and_are_never_all_lost() {
    stay_apart(Over::Tcp);
}

fn stay_apart(over: Over) {
    if let Err(reason) = tests::can_run() {
        return println!("SKIP: {reason:#}");
    }
    let (policy, spread) = (
        "members = [{ wan = \"wan1\", weight = 3 }, { wan = \"wan2\", weight = 1 }]",
        "members = [\"wan1\", \"wan2\"]\nbalance = \"spread\"\nkick = \"all\"\nfailback = \"force\"",
    );
    assert!(SITE.contains(policy));
    let Some(mut lab) = Temporary::routed(&SITE.replace(policy, spread), 4, false).unwrap() else { return };
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();

    let tunnel = Tunnel::start(&lab.host(10), over);
    apart(&lab, &tunnel, 4);
    // Connections that end and begin again find the line that they left, or another that is free.
    for number in 0..4 {
        tunnel.reconnect(number);
        thread::sleep(Duration::from_millis(300));
    }
    apart(&lab, &tunnel, 4);

    for (dead, left) in [(1, 3), (2, 2), (3, 1)] {
        lab.fail(dead, Fault::Blackhole).unwrap();
        wait_usable(&lab, &format!("wan{dead}"), "v4", false).unwrap();
        apart(&lab, &tunnel, left);
    }
    // What shares the last line goes back to the others, one after the other.
    for number in [1, 2, 3] {
        lab.heal(number).unwrap();
    }
    for number in [1, 2, 3] {
        wait_usable(&lab, &format!("wan{number}"), "v4", true).unwrap();
    }
    let began = Instant::now();
    apart(&lab, &tunnel, 4);
    println!("{over:?}: apart again {:.1} s after the lines came back", began.elapsed().as_secs_f64());

    let (fewest, lost) = tunnel.stop();
    println!("{over:?}: at the worst {fewest} connections were up; {lost} were begun anew");
    assert!(fewest > 0, "all four connections were down at once");
}

/// Waits until all four connections live, on so many lines, and routerd says so.
fn apart(lab: &Lab, tunnel: &Tunnel, lines: usize) {
    let deadline = Instant::now() + Duration::from_mins(2);
    loop {
        let now = tunnel.lines();
        let on: BTreeSet<_> = now.iter().flatten().map(|seen| number_of(lab, *seen).unwrap()).collect();
        let told = status(lab).unwrap()["spreads"].clone();
        let told_lines = told[0]["connections"].as_object().map_or(0, serde_json::Map::len);
        if now.iter().all(Option::is_some) && on.len() == lines && told_lines == lines {
            assert_eq!(told.as_array().unwrap().len(), 1, "one client: {told}");
            return;
        }
        assert!(Instant::now() < deadline, "not on {lines} lines: {on:?}, {told}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[derive(Debug, Clone, Copy)]
enum Over {
    Udp,
    Tcp,
}

type Seen = Arc<Mutex<[Option<IpAddr>; 4]>>;

/// Four connections, each asked several times a second, and begun anew when three answers are missing.
struct Tunnel {
    seen: Seen,
    renew: Arc<[AtomicBool; 4]>,
    over: Arc<AtomicBool>,
    fewest: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Tunnel {
    fn start(from: &Netns, protocol: Over) -> Self {
        let tunnel = Self {
            seen: Seen::default(),
            renew: Arc::default(),
            over: Arc::default(),
            fewest: Arc::new(AtomicUsize::new(4)),
            lost: Arc::default(),
            threads: Vec::new(),
        };
        let mut threads = Vec::new();
        for number in 0..4 {
            let (seen, renew, over) = (Arc::clone(&tunnel.seen), Arc::clone(&tunnel.renew), Arc::clone(&tunnel.over));
            let (lost, from) = (Arc::clone(&tunnel.lost), Netns::named(from.name()));
            threads.push(thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let Some(mut connection) = Connection::open(&from, protocol) else { continue };
                    let mut missing = 0;
                    while missing < 3 && !over.load(Ordering::Relaxed) && !renew[number].swap(false, Ordering::Relaxed)
                    {
                        let answer = connection.ask();
                        missing = if answer.is_some() { 0 } else { missing + 1 };
                        seen.lock().unwrap()[number] = answer;
                        thread::sleep(Duration::from_millis(50));
                    }
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        let (seen, over, fewest) = (Arc::clone(&tunnel.seen), Arc::clone(&tunnel.over), Arc::clone(&tunnel.fewest));
        threads.push(thread::spawn(move || {
            let up = || seen.lock().unwrap().iter().flatten().count();
            while up() < 4 && !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(10));
            }
            while !over.load(Ordering::Relaxed) {
                fewest.fetch_min(up(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(10));
            }
        }));
        Self { threads, ..tunnel }
    }

    fn lines(&self) -> [Option<IpAddr>; 4] {
        *self.seen.lock().unwrap()
    }

    fn reconnect(&self, number: usize) {
        self.renew[number].store(true, Ordering::Relaxed);
    }

    /// The fewest connections that were up at once, and how many were begun anew.
    fn stop(self) -> (usize, u64) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        // Each ended once because it was told to.
        (self.fewest.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed) - 4)
    }
}

enum Connection {
    Udp(UdpSocket),
    Tcp(TcpStream, IpAddr),
}

impl Connection {
    fn open(from: &Netns, over: Over) -> Option<Self> {
        let edge: SocketAddr = EDGE.parse().unwrap();
        match over {
            Over::Udp => datagrams(from, None, edge).ok().map(Self::Udp),
            Over::Tcp => open(from, edge, PATIENCE).ok().map(|(stream, greeting)| Self::Tcp(stream, greeting.peer)),
        }
    }

    /// The address that the other end sees, if it answers.
    fn ask(&mut self) -> Option<IpAddr> {
        match self {
            Self::Udp(socket) => seen_as(socket, PATIENCE).ok(),
            Self::Tcp(stream, seen) => echoes(stream, PATIENCE).then_some(*seen),
        }
    }
}

const PATIENCE: Duration = Duration::from_millis(500);
