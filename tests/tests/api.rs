//! The API of a router at work, before clients that mean harm or nothing.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::failover::{self, trial};
use tests::lab::Lab;
use tests::link::Fault;
use tests::watch::{status, wait, wait_usable};

#[test]
fn two_hundred_silent_clients_cost_little_and_keep_nobody_from_asking() {
    if let Err(reason) = tests::can_run() {
        return println!("SKIP: {reason:#}");
    }
    let lab = failover::lab(2, false).unwrap();
    status(&lab).unwrap();
    let before = resident(&lab);
    let clients: Vec<_> = (0..200).map(|_| UnixStream::connect(lab.api_socket()).unwrap()).collect();
    for client in clients.iter().step_by(2) {
        // Half of them follow, and half of those read nothing of it.
        (&*client).write_all(b"{\"v\":1,\"call\":\"journal\",\"follow\":true,\"all\":true}\n").unwrap();
    }
    thread::sleep(Duration::from_secs(3));
    status(&lab).unwrap();
    let cost = resident(&lab).saturating_sub(before);
    println!("200 clients cost {cost} kB");
    assert!(cost < 20_000, "{cost} kB");
}

/// What a client may do to us while a line is lost.
#[test]
fn hostile_clients_delay_no_failover() {
    if let Err(reason) = tests::can_run() {
        return println!("SKIP: {reason:#}");
    }
    let mut lab = failover::lab(3, false).unwrap();
    let calm = trial(&mut lab, 1, Fault::Blackhole, Duration::from_secs(4)).unwrap();
    wait_usable(&lab, "wan1", "v4", true).unwrap();

    let (path, over) = (lab.api_socket(), AtomicBool::new(false));
    let hostile = thread::scope(|scope| {
        let (path, over) = (&path, &over);
        for number in 0..CLIENTS {
            scope.spawn(move || {
                let mut round = number;
                while !over.load(Ordering::Relaxed) {
                    // It may be refused, cut off or left waiting; that is its own trouble.
                    drop(attack(path, round));
                    round += 1;
                    // They shall take the daemon's time, not the whole machine's.
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        thread::sleep(Duration::from_secs(1));
        let hostile = trial(&mut lab, 2, Fault::Blackhole, Duration::from_secs(4));
        over.store(true, Ordering::Relaxed);
        hostile.unwrap()
    });
    println!("calm {:?}, among hostile clients {:?}", calm.flow, hostile.flow);
    // Benches tell how long a failover takes. A flow beside the router that lost something tells of a machine that had
    // no time for anybody.
    if calm.control_lost + hostile.control_lost == 0 {
        assert!(hostile.flow < calm.flow * 2 + Duration::from_secs(2), "{hostile:?}");
    }
    wait("the API answers as before", || Ok(ask(&path, "{\"v\":1,\"call\":\"status\"}\n")?["ok"]["wans"].is_array()))
        .unwrap();
    assert_eq!(fs::read_to_string(lab.log("routerd")).unwrap().matches("panicked").count(), 0);
}

/// One of a number of nuisances.
fn attack(path: &Path, round: usize) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    match round % 8 {
        // Half a request, and then nothing.
        0 => {
            stream.write_all(b"{\"v\":1,\"call\":\"sta")?;
            thread::sleep(Duration::from_millis(300));
        }
        // A line without an end.
        1 => (0..100).try_for_each(|_| stream.write_all(&vec![b'x'; 64 * 1024]))?,
        // A text that takes a parser long.
        2 => stream.write_all(
            format!("{{\"v\":1,\"call\":\"plan\",\"text\":\"{}\"}}\n", "[[cell]]\\n".repeat(2000)).as_bytes(),
        )?,
        3 => stream.write_all(&vec![b'['; 100_000])?,
        // Many questions, no answer read.
        4 => (0..200).try_for_each(|_| stream.write_all(b"{\"v\":1,\"call\":\"status\"}\n"))?,
        5 => stream.write_all(&(0..=255).collect::<Vec<u8>>().repeat(64))?,
        // Closed to reading, or at once.
        6 => stream.shutdown(std::net::Shutdown::Write)?,
        _ => return Ok(()),
    }
    stream.write_all(b"\n")?;
    stream.read(&mut [0; 4096]).map(drop)
}

fn ask(path: &Path, line: &str) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Kilobytes.
fn resident(lab: &Lab) -> u64 {
    let leader = lab.processes().find(|(what, _)| *what == "routerd").unwrap().1;
    let text = fs::read_to_string(format!("/proc/{leader}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

const CLIENTS: usize = 6;
