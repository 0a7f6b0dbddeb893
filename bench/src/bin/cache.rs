//! Measures the flow cache: a million entries put into its tables and taken out, and how routerd keeps up with
//! 20,000 flows that settle each second and end a second later. They are made in conntrack through ctnetlink, because
//! no two cores open so many connections and route them, too. Needs root.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use config::units::{Family, WanId};
use ebpf::abi::{Flow, Key4};
use ebpf::{Maps, Programs};
use mwan::state::FlowClass;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};
use serde_json::Value;
use tests::demo::{site, wait_until_good};
use tests::failover::{PATIENCE, SITE};
use tests::lab::{Lab, Temporary};
use tests::traffic::UdpFlow;
use tests::watch::status;

fn main() -> Result<()> {
    println!("{}", bench::machine());
    let mut lab = Temporary::up(SITE, 2, false)?;
    million(&lab.bpf_directory().join("million"))?;
    lab.start_router()?;
    wait_until_good(&lab, PATIENCE)?;
    for each_second in [2_000, 20_000] {
        newborn(&lab, each_second)?;
    }
    Ok(())
}

fn million(pins: &Path) -> Result<()> {
    let programs = Programs::load(ebpf::OBJECT, MILLION * 2, pins)?;
    let mut maps = Maps::open(pins)?;
    println!("all maps, with two tables of {} entries: {} MB", MILLION * 2, maps.memory() >> 20);
    let start = Instant::now();
    for number in 0..MILLION {
        maps.set_flow4(key(number), FLOW)?;
    }
    println!("{MILLION} entries put in: {:.0} a second", rate(start));
    println!("{} of them are there", maps.count_flows().0);
    let start = Instant::now();
    for number in 0..MILLION {
        maps.flow4(&key(number))?;
    }
    println!("read one by one: {:.0} a second", rate(start));
    let start = Instant::now();
    for number in 0..MILLION {
        maps.remove_flow4(&key(number))?;
    }
    println!("taken out: {:.0} a second", rate(start));
    drop(programs);
    Programs::remove(pins)?;
    Ok(())
}

fn rate(start: Instant) -> f64 {
    f64::from(MILLION) / start.elapsed().as_secs_f64()
}

fn newborn(lab: &Lab, each_second: u32) -> Result<()> {
    let config = site(lab)?;
    let policy = config.policies.values().next().context("no policy")?.id;
    let wan = config.wans.values().next().context("no line")?;
    let Some(IpAddr::V4(outside)) = wan.source(Family::V4) else { bail!("{} has no IPv4", wan.name) };
    let class = FlowClass { family: Family::V4, wan: wan.id, policy: Some(policy) };
    let inside = lab.site().vlans.iter().find(|vlan| vlan.id == 10).and_then(|vlan| vlan.address(false));
    let Some(IpAddr::V4(inside)) = inside else { bail!("no host in VLAN 10") };

    let flow = UdpFlow::start(&lab.host(10), Some(inside.into()), SocketAddr::from(([198, 51, 100, 1], 7000)), 500)?;
    let start = Instant::now();
    while fed(lab)?.0 == 0 {
        if start.elapsed() > PATIENCE {
            bail!("the bystander is not cached");
        }
        thread::sleep(Duration::from_millis(100));
    }
    let pid = lab.processes().find(|(name, _)| *name == "routerd").context("no routerd")?.1;
    let (before, busy) = (fed(lab)?, thread_seconds(pid)?);
    let flows = Flows { inside, outside, mark: class.mark().0, wan: wan.id };
    let (most, took) = thread::scope(|scope| -> Result<_> {
        let making = scope.spawn(|| lab.router().enter(|| make(&flows, each_second)));
        let mut most = 0;
        while !making.is_finished() {
            most = most.max(fed(lab)?.0);
            thread::sleep(Duration::from_millis(500));
        }
        let took = making.join().ok().context("the thread that makes flows panicked")???;
        Ok((most, took))
    })?;
    let busy = thread_seconds(pid)? - busy;
    let end = Instant::now();
    while fed(lab)?.0 > before.0 + 10 && end.elapsed() < Duration::from_secs(90) {
        thread::sleep(Duration::from_millis(10));
    }
    let (end, after) = (end.elapsed(), fed(lab)?);
    let report = flow.stop();
    println!(
        "{each_second} flows a second for {:.1} s: at most {most} cached at once, {} overruns, {} listings, \
         {busy:.1} s of the thread's time; {} left {:.1} s after the last ended; a bystander lost {} of {}",
        took.as_secs_f64(),
        after.1 - before.1,
        after.2 - before.2,
        after.0 - before.0.min(after.0),
        end.as_secs_f64(),
        report.lost.len(),
        report.sent,
    );
    Ok(())
}

/// Flows in the cache, overruns, listings.
fn fed(lab: &Lab) -> Result<(u64, u64, u64)> {
    let fed = status(lab)?["fast_path"]["fed"].take();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let flows = fed["carried"].as_array().into_iter().flatten().map(|line| number(&line[1]["flows"])).sum();
    Ok((flows, number(&fed["overruns"]), number(&fed["listings"])))
}

/// Seconds that routerd's thread of flows has worked.
fn thread_seconds(pid: i32) -> Result<f64> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(task?.path().join("stat"))?;
        if let Some((_, rest)) = stat.split_once("(flows) ") {
            let ticks = rest.split_ascii_whitespace().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
            return Ok(ticks.sum::<f64>() / 100.0);
        }
    }
    bail!("routerd has no thread of flows")
}

struct Flows {
    inside: Ipv4Addr,
    outside: Ipv4Addr,
    mark: u32,
    wan: WanId,
}

/// Makes flows, settles them, and ends each a second later.
fn make(flows: &Flows, each_second: u32) -> Result<Duration> {
    let kind = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind)?;
    let piece = each_second / 100;
    let start = Instant::now();
    for step in 0..SECONDS * 100 + 100 {
        let mut bytes = Vec::new();
        if step < SECONDS * 100 {
            for number in step * piece..(step + 1) * piece {
                bytes.extend(flows.message(number, NEW, REQUEST | CREATE));
                bytes.extend(flows.message(number, NEW, REQUEST));
            }
        }
        if let Some(old) = step.checked_sub(100) {
            for number in old * piece..(old + 1) * piece {
                bytes.extend(flows.message(number, DELETE, REQUEST));
            }
        }
        send(socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let next = start + Duration::from_millis(10) * (step + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(start.elapsed())
}

impl Flows {
    fn message(&self, number: u32, kind: u16, flags: u16) -> Vec<u8> {
        let [_, _, high, low] = (number / 50_000).to_be_bytes();
        let far = Ipv4Addr::new(198, 52 + high, low, self.wan.get());
        let port = 10_000 + u16::try_from(number % 50_000).unwrap_or_default();
        let tuple = |kind, source: Ipv4Addr, destination: Ipv4Addr, ports: [u16; 2]| {
            let addresses = [attribute(1, &source.octets()), attribute(2, &destination.octets())].concat();
            let [from, to] = ports.map(u16::to_be_bytes);
            let ports = [attribute(1, &[17]), attribute(2, &from), attribute(3, &to)].concat();
            attribute(kind, &[attribute(1 | NESTED, &addresses), attribute(2 | NESTED, &ports)].concat())
        };
        let mut body = vec![2, 0, 0, 0];
        body.extend(tuple(1 | NESTED, self.inside, far, [port, 9]));
        if flags & CREATE != 0 {
            body.extend(tuple(2 | NESTED, far, self.outside, [9, port]));
            body.extend(attribute(STATUS, &SETTLED.to_be_bytes()));
            body.extend(attribute(MARK, &self.mark.to_be_bytes()));
        }
        if kind == NEW {
            body.extend(attribute(TIMEOUT, &600_u32.to_be_bytes()));
        }
        let length = u32::try_from(body.len() + 16).unwrap_or(u32::MAX);
        let head = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
        [head, body].concat()
    }
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn key(number: u32) -> Key4 {
    let [a, b, c, d] = number.to_be_bytes();
    Key4 {
        source: [10 + a, b, c, d],
        destination: [198, 51, 100, 1],
        source_port: [c, d],
        destination_port: [1, 187],
        protocol: 6,
        _0: [0; 3],
    }
}

const MILLION: u32 = 1_000_000;
const SECONDS: u32 = 10;
/// `NFNL_SUBSYS_CTNETLINK << 8 |` `IPCTNL_MSG_CT_NEW` and `IPCTNL_MSG_CT_DELETE`.
const NEW: u16 = 1 << 8;
const DELETE: u16 = 1 << 8 | 2;
const REQUEST: u16 = 1;
const CREATE: u16 = 0x400;
const NESTED: u16 = 1 << 15;
/// `CTA_STATUS`, `CTA_TIMEOUT`, `CTA_MARK`.
const STATUS: u16 = 3;
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
/// Answered, assured, confirmed.
const SETTLED: u32 = 1 << 1 | 1 << 2 | 1 << 3;

const FLOW: Flow = Flow {
    generation: 1,
    slot: 2,
    in_port: 1,
    out_port: 2,
    mtu: 1500,
    rewrite: 1,
    flags: 1,
    in_mac: [2; 6],
    destination_mac: [2; 6],
    source_mac: [2; 6],
    ..Flow::EMPTY
};
