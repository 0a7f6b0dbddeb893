//! Measures routerd among many flows: 100,000 conntrack entries, half of them on each of two lines, put there through
//! ctnetlink. How long a status and a scrape take, how long until the flows of a line that is failed are gone, and
//! how long the event loop keeps somebody waiting meanwhile. Needs root.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use config::units::{Family, WanId};
use mwan::state::FlowClass;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};
use tests::demo::{site, wait_until_good};
use tests::failover::{PATIENCE, SITE};
use tests::lab::{Lab, Temporary};
use tests::netns::run;

fn main() -> Result<()> {
    println!("{}", bench::machine());
    let mut lab = Temporary::up(SITE, 2, false)?;
    lab.start_router()?;
    wait_until_good(&lab, PATIENCE)?;
    println!("| flows | status | scrape |\n|---|---|---|");
    for flows in [0, u32::from(EACH) * 2] {
        if flows > 0 {
            fill(&lab)?;
        }
        let status = median(|| run(lab.routerctl()?.args(["status", "--json"])).map(drop))?;
        println!("| {} | {status:.0?} | {:.0?} |", count(&lab)?, median(|| scrape(&lab))?);
    }

    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let asking = scope.spawn(|| {
            let mut worst = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                run(lab.routerctl()?.args(["explain", "10.0.10.5", "198.51.100.1", "tcp/443"]))?;
                worst = worst.max(start.elapsed());
            }
            Ok::<_, anyhow::Error>(worst)
        });
        let buried = bury(&lab);
        done.store(true, Ordering::Relaxed);
        let worst = asking.join().ok().context("the thread that asks panicked")??;
        println!("the {EACH} flows of wan1 are gone {:.0?} after `wan fail-test` began", buried?);
        println!("meanwhile the slowest `explain` took {worst:.0?}");
        Ok(())
    })
}

/// Fails a line; how long its flows live on.
fn bury(lab: &Lab) -> Result<Duration> {
    let start = Instant::now();
    run(lab.routerctl()?.args(["wan", "fail-test", "wan1"]))?;
    // What else the lab tracks is some dozen flows.
    while count(lab)? > u32::from(EACH) + 1000 {
        if start.elapsed() > PATIENCE {
            bail!("{} flows are left after {PATIENCE:?}", count(lab)?);
        }
        thread::sleep(Duration::from_millis(1));
    }
    let buried = start.elapsed();
    // The later sweeps and the kicks.
    thread::sleep(Duration::from_secs(1));
    Ok(buried)
}

fn median(mut work: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..11 {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[5])
}

fn scrape(lab: &Lab) -> Result<()> {
    lab.router().enter(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9790")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        if !page.contains("quadway_wan_flows") {
            bail!("the scrape has no flows in it: {page}");
        }
        Ok(())
    })?
}

fn count(lab: &Lab) -> Result<u32> {
    let text = lab.router().enter(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"))??;
    text.trim().parse().context("no number of conntrack entries")
}

/// UDP flows of the default policy.
fn fill(lab: &Lab) -> Result<()> {
    let config = site(lab)?;
    let policy = config.policies.values().next().context("no policy")?.id;
    lab.router().enter(|| {
        let kind = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind)?;
        for wan in config.wans.values() {
            let class = FlowClass { family: Family::V4, wan: wan.id, policy: Some(policy) };
            let Some(IpAddr::V4(outside)) = wan.source(Family::V4) else { bail!("{} has no IPv4", wan.name) };
            for port in 1..=EACH {
                let message = new_flow(class.mark().0, wan.id, outside, port + 10_000);
                send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
            }
        }
        Ok(())
    })??;
    let there = count(lab)?;
    if there < u32::from(EACH) * 2 {
        bail!("only {there} flows could be made");
    }
    Ok(())
}

/// The message that makes a flow from 10.0.10.5 to the far end of this line.
fn new_flow(mark: u32, wan: WanId, outside: Ipv4Addr, port: u16) -> Vec<u8> {
    let (inside, far) = (Ipv4Addr::new(10, 0, 10, 5), Ipv4Addr::new(198, 51, 100, wan.get()));
    let tuple = |kind, source: Ipv4Addr, destination: Ipv4Addr, ports: [u16; 2]| {
        let addresses = [attribute(1, &source.octets()), attribute(2, &destination.octets())].concat();
        let [from, to] = ports.map(u16::to_be_bytes);
        let ports = [attribute(1, &[17]), attribute(2, &from), attribute(3, &to)].concat();
        attribute(kind, &[attribute(1 | NESTED, &addresses), attribute(2 | NESTED, &ports)].concat())
    };
    let body = [
        vec![2, 0, 0, 0],
        tuple(1 | NESTED, inside, far, [port, 9]),
        tuple(2 | NESTED, far, outside, [9, port]),
        attribute(TIMEOUT, &600_u32.to_be_bytes()),
        attribute(MARK, &mark.to_be_bytes()),
    ]
    .concat();
    let length = u32::try_from(body.len() + 16).unwrap_or(u32::MAX);
    let head = [&length.to_ne_bytes()[..], &NEW.to_ne_bytes(), &REQUEST_CREATE.to_ne_bytes(), &[0; 8]].concat();
    [head, body].concat()
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Flows on each line.
const EACH: u16 = 50_000;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`.
const NEW: u16 = 1 << 8;
/// `NLM_F_REQUEST | NLM_F_CREATE`.
const REQUEST_CREATE: u16 = 0x401;
const NESTED: u16 = 1 << 15;
/// `CTA_TIMEOUT`, `CTA_MARK`.
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
