//! One measured failover: flows on every line, connections and flows that are born meanwhile, and a line that
//! breaks under them.
//!
//! The moment of the fault is the sending of the first datagram that the flow on the broken line lost.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::demo::wait_until_good;
use crate::lab::{Lab, Temporary};
use crate::link::Fault;
use crate::netns::Netns;
use crate::site::TARGETS4;
use crate::traffic::{Births, Connections, UdpFlow, datagrams, seen_as};

/// Two segments that may send anything to the Internet, over as many lines as the lab has.
pub const SITE: &str = include_str!("../../config/examples/minimal.toml");

/// What one failover cost.
#[derive(Debug, Clone)]
pub struct Trial {
    /// How long the slowest of the connections opened since the fault took until it was greeted; `None` if one was
    /// not in time.
    pub slowest: Option<Duration>,
    pub failed_connections: usize,
    /// How long the 1 kHz flow on the line was interrupted.
    pub flow: Duration,
    /// How long the unluckiest of the flows born since the fault had to ask on the 4-tuple it was born with; `None`
    /// if one was never answered.
    pub born: Option<Duration>,
    /// Datagrams that the 1 kHz flows on all other lines lost, together.
    pub others_lost: usize,
    /// The most that one of them lost.
    pub worst_other: usize,
    /// Datagrams that a 1 kHz flow which does not cross the router lost: the fault of the machine, not the router.
    pub control_lost: usize,
    /// The longest that flow heard nothing: what waits in its socket while nobody has a processor is not lost.
    pub stall: Duration,
}

/// A lab for many failovers: a line that was healed is used again at once.
pub fn lab(wans: u8, same_gateway: bool) -> Result<Temporary> {
    changed(wans, same_gateway, &[])
}

/// One whose probes come every 2 s, so that whatever is noticed earlier was noticed on the traffic.
pub fn rarely_probed(wans: u8) -> Result<Temporary> {
    changed(wans, false, &[("interval = \"100ms\"", "interval = \"2s\"")])
}

/// One whose site file says something else here and there.
pub fn changed(wans: u8, same_gateway: bool, changes: &[(&str, &str)]) -> Result<Temporary> {
    let mut lab = Temporary::up(SITE, wans, same_gateway)?;
    let mut text =
        lab.site().text.replace("hold = \"1s\"", "hold = \"0s\"").replace("hold_max = \"8s\"", "hold_max = \"0s\"");
    for (from, to) in changes {
        anyhow::ensure!(text.contains(from), "the site file of the lab has no {from}");
        text = text.replace(from, to);
    }
    std::fs::write(lab.site_file(), text)?;
    lab.start_router()?;
    wait_until_good(&lab, PATIENCE)?;
    Ok(lab)
}

/// Breaks line `number` in a lab whose lines are all good, watches for `watch`, and heals it.
pub fn trial(lab: &mut Lab, number: u8, fault: Fault, watch: Duration) -> Result<Trial> {
    let inside = client(lab)?;
    let sockets = one_for_each_line(lab, &inside)?;
    let flows = sockets.iter().map(|socket| UdpFlow::on(socket, RATE)).collect::<Result<Vec<_>>>()?;
    let bystander = lab.site().wans.iter().map(|wan| wan.number).find(|other| *other != number).unwrap_or(number);
    let control = UdpFlow::start(&lab.isp(bystander), None, TO, RATE)?;
    let connections = Connections::start(&inside, TO, Duration::from_millis(10), Duration::from_millis(500));
    let births = Births::start(&inside, TO, Duration::from_millis(5));
    thread::sleep(Duration::from_millis(300));

    let asked = Instant::now();
    lab.fail(number, fault)?;
    thread::sleep(watch);

    let births = births.stop()?;
    let attempts = connections.stop()?;
    let (mut others_lost, mut worst_other) = (0, 0);
    let mut hole = None;
    for (wan, flow) in lab.site().wans.iter().zip(flows) {
        let report = flow.stop();
        if wan.number == number {
            hole = report.hole;
        } else {
            others_lost += report.lost.len();
            worst_other = worst_other.max(report.lost.len());
        }
    }
    let control = control.stop();
    lab.heal(number)?;
    wait_until_good(lab, PATIENCE)?;

    let fault = hole.map_or(asked, |(from, _)| from);
    let born = births
        .iter()
        .filter(|birth| birth.at >= fault)
        .map(|birth| birth.answered.map(|(at, _)| at - birth.at))
        .collect::<Option<Vec<_>>>();
    let since: Vec<_> = attempts.iter().filter(|attempt| attempt.at >= fault).collect();
    let took = since.iter().map(|attempt| attempt.done.map(|(took, _)| took)).collect::<Option<Vec<_>>>();
    Ok(Trial {
        slowest: took.map(|took| took.into_iter().max().unwrap_or_default()),
        failed_connections: since.iter().filter(|attempt| attempt.done.is_none()).count(),
        flow: hole.map_or(Duration::ZERO, |(from, to)| to - from),
        born: born.map(|born| born.into_iter().max().unwrap_or_default()),
        others_lost,
        worst_other,
        control_lost: control.lost.len(),
        stall: control.silence,
    })
}

/// A host that may send to the Internet.
pub fn client(lab: &Lab) -> Result<Netns> {
    lab.site().vlans.first().map(|vlan| lab.host(vlan.id)).context("the lab has no VLAN")
}

/// A socket whose flow goes by each line, in the order of the lines.
pub fn one_for_each_line(lab: &Lab, inside: &Netns) -> Result<Vec<UdpSocket>> {
    let wans = &lab.site().wans;
    let mut found: Vec<Option<UdpSocket>> = wans.iter().map(|_| None).collect();
    // The lines take turns; after all buckets of the policy each has had one.
    for _ in 0..BUCKETS {
        let socket = datagrams(inside, None, TO)?;
        let seen = seen_as(&socket, Duration::from_secs(2))?;
        if let Some(index) = wans.iter().position(|wan| IpAddr::V4(wan.router4.addr()) == seen) {
            found[index].get_or_insert(socket);
        }
        if found.iter().all(Option::is_some) {
            return Ok(found.into_iter().flatten().collect());
        }
    }
    bail!("of {} lines, {} get no flow", wans.len(), found.iter().filter(|found| found.is_none()).count())
}

/// Any port of the echo world.
pub const TO: SocketAddr = SocketAddr::new(IpAddr::V4(TARGETS4[0]), 4321);
/// Datagrams per second of every flow.
pub const RATE: u32 = 1000;
const BUCKETS: usize = 1024;
/// How long the lines of a lab may take to become good.
pub const PATIENCE: Duration = Duration::from_secs(30);
