//! The story that `lab demo` tells, and the overview of `lab status`.
#![expect(clippy::print_stdout, reason = "this is what it is for")]

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use config::Config;
use config::model::{Internet, PortSet, Vlan};

use crate::lab::Lab;
use crate::link::Fault;
use crate::netns::{Netns, run};
use crate::site::TARGETS4;
use crate::traffic::{self, Answer, Connections, Probe, distribution, gap, probe};

/// The site that is played unless another is asked for.
pub const SITE: &str = include_str!("../../config/examples/spectrum-site.toml");

/// Prints what the lab consists of and how it is.
pub fn overview(lab: &Lab) {
    let router = if lab.runs("routerd") { "runs" } else { "does not run" };
    println!("\nrouter    {}-router, routerd {router}, log {}", lab.name(), lab.log("routerd").display());
    println!("site      {}", lab.site_file().display());
    for wan in &lab.site().wans {
        let faults = lab.faults().get(&wan.number).map(|faults| {
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            faults.join(", ")
        });
        let state = faults.filter(|faults| !faults.is_empty()).unwrap_or_else(|| "good".to_owned());
        println!(
            "line      {}-isp{:<3} {:<10} {} {}: {state}",
            lab.name(),
            wan.number,
            wan.name,
            wan.router4.addr(),
            wan.router6.addr()
        );
    }
    for vlan in &lab.site().vlans {
        let address = |v6| vlan.address(v6).map(|address| address.to_string()).unwrap_or_default();
        println!(
            "vlan {:<4} {}-{:<6} {:<14} {} {}",
            vlan.id,
            lab.name(),
            vlan.port(),
            vlan.name,
            address(false),
            address(true)
        );
    }
    println!("internet  {}-internet, 198.51.100.0/24 2001:db8:100::/64, every port answers", lab.name());
}

/// Plays the story.
pub fn play(lab: &mut Lab) -> Result<()> {
    let config = site(lab)?;
    let (vlan, port) = way_out(&config).context("no VLAN of this site may open TCP to the whole Internet")?;
    let (inside, name) = (lab.host(vlan.id.get()), vlan.name.as_str());
    let internet = SocketAddr::new(TARGETS4[0].into(), port);

    chapter("This is a whole site");
    say("Every name below is a network namespace of this machine: a router with routerd in it, Internet lines,");
    say("the Internet, and a host in every VLAN. Real packets, a real kernel; nothing outside is touched.");
    overview(lab);
    wait_until_good(lab, Duration::from_secs(20))?;

    chapter("One VLAN, all lines");
    say(&format!("A host in `{name}` opens 400 TCP connections to {internet}. The server says whom it sees:"));
    table(lab, &inside, internet)?;

    if lab.site().wans.len() > 1 {
        chapter("A line dies, and its cable stays in");
        say("isp2 swallows every packet from here on. The link is up, so only probes can tell.");
        blackhole(lab, &inside, internet)?;
        say("The same 400 connections:");
        table(lab, &inside, internet)?;
        println!("{}", indented(&run(lab.routerctl()?.arg("status"))?));
        say("isp2 is repaired. It has to be good for a while before it is trusted again:");
        lab.heal(2)?;
        let healed = Instant::now();
        wait_until_good(lab, Duration::from_mins(1))?;
        say(&format!("wan2 is in use again after {:.1} s.", healed.elapsed().as_secs_f64()));
    }

    chapter("What the matrix does not allow");
    if let Some((from, to)) = denied_pair(&config) {
        denied(lab, from, to)?;
    } else {
        say("This site allows something between every two VLANs.");
    }

    chapter("What to try");
    let prefix = if lab.name() == "lab" { "lab".to_owned() } else { format!("lab --name {}", lab.name()) };
    for (command, meaning) in [
        ("status", "the places of this lab, and what is broken"),
        ("ctl status", "what routerd thinks of its lines"),
        ("fail isp1 carrier", "pull the cable; also blackhole, loss=20, delay=150, dns, http"),
        ("heal isp1", "and put it back"),
        (&format!("exec v{} -- ping -c 3 198.51.100.1", vlan.id), "be a host in a VLAN"),
        ("ctl denied --follow", "watch what is denied, while you try things"),
        ("ctl explain 10.10.50.10 10.10.20.10 tcp/8006", "ask why"),
        ("exec router -- ip rule", "look inside the router"),
        ("down", "remove all of it"),
    ] {
        println!("  {:<58} {meaning}", format!("{prefix} {command}"));
    }
    let program = std::env::current_exe()?;
    println!("\n`lab` is {}; the lab stays up until `lab down`.", program.display());
    Ok(())
}

/// The lab's site, as routerd reads it.
pub fn site(lab: &Lab) -> Result<Config> {
    match config::parse("site.toml", &lab.site().text) {
        Ok(parsed) => Ok(parsed.config),
        Err(problems) => bail!("the lab's site file is refused:\n{problems}"),
    }
}

/// A VLAN that may open TCP connections anywhere in the Internet, and a port for them.
pub fn way_out(config: &Config) -> Option<(&Vlan, u16)> {
    let port = |ports: &PortSet| ports.tcp.iter().map(|range| *range.start()).find(|port| *port != 80 && *port != 53);
    config.vlans.values().find_map(|vlan| {
        let port = match &vlan.internet {
            Internet::None => None,
            Internet::Any => Some(443),
            Internet::Sets(sets) => {
                let sets = sets.iter().filter_map(|set| config.egress.get(set));
                sets.filter(|set| set.to.is_none()).find_map(|set| port(&set.ports))
            }
        };
        port.map(|port| (vlan, port))
    })
}

/// Waits until every line is used in each family that it has, and the kernel does it.
pub fn wait_until_good(lab: &Lab, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let status = run(lab.routerctl()?.args(["status", "--json"]))?;
        let status: serde_json::Value = serde_json::from_str(&status).context("status is no JSON")?;
        let lines = status["wans"].as_array().map_or(&[][..], Vec::as_slice);
        let usable = |wan: &serde_json::Value| {
            let families = wan["families"].as_array().map_or(&[][..], Vec::as_slice);
            !families.is_empty() && families.iter().all(|family| family["usable"] == true)
        };
        let current = status["applies"]["current"] == true;
        if current && lines.len() == lab.site().wans.len() && lines.iter().all(usable) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not every line is good after {} s: {:#}", patience.as_secs(), status["wans"]);
        }
        thread::sleep(crate::patience(Duration::from_millis(20)));
    }
}

fn table(lab: &Lab, inside: &Netns, to: SocketAddr) -> Result<()> {
    let seen = distribution(inside, to, 400)?;
    for wan in &lab.site().wans {
        let count = seen.get(&IpAddr::V4(wan.router4.addr())).copied().unwrap_or_default();
        println!("    {:<8} seen as {:<14} {count:>4}  {}", wan.name, wan.router4.addr(), "#".repeat(count / 5));
    }
    println!();
    Ok(())
}

fn blackhole(lab: &mut Lab, inside: &Netns, to: SocketAddr) -> Result<()> {
    let client = Connections::start(inside, to, Duration::from_millis(10), Duration::from_millis(250));
    let mut open = (0..12).map(|_| traffic::open(inside, to, Duration::from_secs(1))).collect::<Result<Vec<_>>>()?;
    thread::sleep(Duration::from_secs(1));
    let fault = Instant::now();
    lab.fail(2, Fault::Blackhole)?;
    thread::sleep(Duration::from_secs(3));
    let attempts = client.stop()?;
    let failed = attempts.iter().filter(|attempt| attempt.at >= fault && attempt.done.is_none()).count();
    match gap(&attempts, fault) {
        Some(gap) => say(&format!(
            "A client opening a connection every 10 ms: {failed} failed, all good again after {} ms.",
            gap.as_millis()
        )),
        None => say("A client opening a connection every 10 ms still fails after 3 s."),
    }
    let wans = &lab.site().wans;
    let dead = |seen: IpAddr| wans.iter().any(|wan| wan.number == 2 && seen == IpAddr::V4(wan.router4.addr()));
    let (mut kept, mut lost) = ((0, 0), (0, 0));
    for (stream, greeting) in &mut open {
        let of = if dead(greeting.peer) { &mut lost } else { &mut kept };
        of.1 += 1;
        of.0 += u32::from(traffic::echoes(stream, Duration::from_millis(300)));
    }
    say(&format!("Of {} connections open on other lines, {} still work.", kept.1, kept.0));
    say(&format!(
        "Of {} on isp2, {} do: routerd has reset the rest, so that their programs connect again.",
        lost.1, lost.0
    ));
    println!();
    Ok(())
}

/// Two VLANs that nothing may pass between, in this direction.
fn denied_pair(config: &Config) -> Option<(&Vlan, &Vlan)> {
    config.vlans.values().rev().find_map(|from| {
        let open = |to: &Vlan| config.cells.iter().any(|c| c.enabled && c.from == from.name && c.to == to.name);
        let to = config.vlans.values().find(|to| to.name != from.name && !open(to))?;
        Some((from, to))
    })
}

fn denied(lab: &Lab, from: &Vlan, to: &Vlan) -> Result<()> {
    let address = |vlan: &Vlan| {
        let here = lab.site().vlans.iter().find(|here| here.id == vlan.id.get());
        here.and_then(|here| here.address(false)).with_context(|| format!("{} has no IPv4 host", vlan.name))
    };
    let (source, destination) = (address(from)?, address(to)?);
    let patience = Duration::from_secs(1);
    say(&format!("A host in `{}` tries SSH to one in `{}`: {source} -> {destination}", from.name, to.name));
    let answer = probe(&lab.host(from.id.get()), Some(source), destination, Probe::Tcp(22), patience)?;
    say(match answer {
        Answer::Open(_) => "It gets through, which it must not.",
        Answer::Refused => "It is refused at once.",
        Answer::Unreachable => "It is told that it may not.",
        Answer::Silent => "It hears nothing: denied packets are dropped.",
    });
    say("\nrouterctl explain says why:");
    let question = [source.to_string(), destination.to_string(), "tcp/22".to_owned()];
    // A denied packet is an answer, which routerctl gives by its exit code, too.
    let explained = lab.routerctl()?.arg("explain").args(question).output()?;
    println!("{}", indented(&String::from_utf8_lossy(&explained.stdout)));
    say("routerctl denied has seen it:");
    println!("{}", indented(&run(lab.routerctl()?.arg("denied"))?));
    Ok(())
}

fn chapter(title: &str) {
    println!("\n== {title} {}\n", "=".repeat(100_usize.saturating_sub(title.len())));
}

fn say(text: &str) {
    println!("{text}");
}

fn indented(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| format!("    {line}")).collect();
    lines.join("\n")
}
