//! What `explain` answers is what real packets meet: random ones, across segments, to the router and out by every line,
//! under steering, with lines drained and lost; and what the file's asserts claim, both hold.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use config::Config;
use config::model::{Allow, Claim, PacketClaim, Place, PortSet};
use serde_json::{Value, json};
use tests::demo::site;
use tests::lab::{Lab, Temporary};
use tests::netns::run;
use tests::site::{TARGETS4, TARGETS6, unserved};
use tests::traffic::{Answer, Probe, probe, probe_all};
use tests::watch::wait_usable;

const SPECTRUM: &str = include_str!("../../config/examples/spectrum-site.toml");
/// `office` may open anything outside; by port it takes other lines.
const STEERED: &str = concat!(
    include_str!("../../config/examples/minimal.toml"),
    "\n[policy.third]\nmembers = [{ wan = \"wan2\" }, { wan = \"wan1\", tier = 1 }]\n\
     [policy.pair]\nmembers = [\"wan1\", \"wan2\"]\nbalance = \"source\"\n\
     [[steer]]\nname = \"third\"\nports = [\"tcp/5000-5999\", \"udp/5000-5999\"]\npolicy = \"third\"\n\
     [[steer]]\nname = \"pair\"\nports = [\"tcp/6000-6999\", \"udp/6000-6999\"]\npolicy = \"pair\"\n"
);

/// Acceptance 3 of the operator's issue, the matrix and the asserts: 3,000 tuples.
#[test]
fn explain_agrees_with_packets_across_a_whole_site() {
    let Some(lab) = Temporary::routed(&unserved(SPECTRUM).unwrap(), 4, false).unwrap() else { return };
    let config = site(&lab).unwrap();
    let mut chance = Chance(2026);
    let mut seen = Seen::default();
    let mut tuples: Vec<_> = (0..tuples(3000)).map(|_| tuple(&lab, &config, &mut chance)).collect();
    tuples.extend(claimed(&lab, &config));
    seen.check(&lab, &tuples);
    seen.tell("whole site");
    assert!(seen.allowed > 50 && seen.denied > 50, "{seen:?}");
    denials_are_told_alike(&lab);
}

/// … NAT, steering, drained and lost lines: 2,000 tuples.
#[test]
fn explain_agrees_with_packets_about_lines_and_addresses() {
    let Some(mut lab) = Temporary::routed(STEERED, 4, false).unwrap() else { return };
    let config = site(&lab).unwrap();
    let mut chance = Chance(2027);
    let mut seen = Seen::default();
    seen.check(&lab, &outside(&lab, &config, &mut chance, 800));
    seen.tell("four lines");
    assert_eq!(seen.lines.len(), 4, "{seen:?}");

    run(lab.routerctl().unwrap().args(["wan", "drain", "wan2"])).unwrap();
    let mut drained = Seen::default();
    drained.check(&lab, &outside(&lab, &config, &mut chance, 600));
    drained.tell("wan2 drained");
    assert!(!drained.lines.contains_key("wan2") && drained.lines.len() == 3, "{drained:?}");

    lab.fail(1, "carrier".parse().unwrap()).unwrap();
    run(lab.routerctl().unwrap().args(["wan", "fail-test", "wan4", "--for", "2m"])).unwrap();
    wait_usable(&lab, "wan1", "v4", false).unwrap();
    wait_usable(&lab, "wan4", "v6", false).unwrap();
    let mut lost = Seen::default();
    lost.check(&lab, &outside(&lab, &config, &mut chance, 600));
    lost.tell("wan2 drained, wan1 without carrier, wan4 lost");
    // Policies of the first two lines only have none left, which is an answer too.
    assert_eq!(lost.lines.keys().map(String::as_str).collect::<Vec<_>>(), ["wan3"], "{lost:?}");
    assert!(lost.unreachable > 0 && lost.told, "{lost:?}");
}

/// A packet and where it is sent from.
#[derive(Debug, Clone)]
struct Tuple {
    vlan: u16,
    from: IpAddr,
    to: IpAddr,
    kind: Probe,
    /// What an assert of the file says of it.
    claim: Option<bool>,
}

#[derive(Debug, Default)]
struct Seen {
    allowed: usize,
    denied: usize,
    unreachable: usize,
    /// Somebody was told so.
    told: bool,
    /// Connections that told whom the far end sees, by line.
    lines: BTreeMap<String, usize>,
}

impl Seen {
    fn check(&mut self, lab: &Lab, tuples: &[Tuple]) {
        let explained = explain(lab, tuples);
        let mut by_vlan: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (place, tuple) in tuples.iter().enumerate() {
            by_vlan.entry(tuple.vlan).or_default().push(place);
        }
        let mut wrong = Vec::new();
        for (vlan, places) in by_vlan {
            let of = |place: &usize| (Some(tuples[*place].from), tuples[*place].to, tuples[*place].kind);
            let probes: Vec<_> = places.iter().map(of).collect();
            let answers = probe_all(&lab.host(vlan), &probes, Duration::from_millis(400)).unwrap();
            for (place, answer) in places.into_iter().zip(answers) {
                if let Err(why) = self.compare(lab, &tuples[place], &explained[place], answer) {
                    wrong.push(format!("{:?}: {why}\n  {}", tuples[place], explained[place]["text"]));
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), tuples.len(), wrong.join("\n"));
    }

    fn compare(&mut self, lab: &Lab, tuple: &Tuple, explained: &Value, mut answer: Answer) -> Result<(), String> {
        let explanation = &explained["explanation"];
        let allowed = explanation["allowed"].as_bool().unwrap();
        if tuple.claim.is_some_and(|claim| claim != allowed) {
            return Err("an assert of the file says otherwise".to_owned());
        }
        let names = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let lines = names(&explanation["way"]["lines"]);
        let nowhere = !names(&explanation["way"]["without"]).is_empty() && lines.is_empty();
        if allowed && !nowhere && answer == Answer::Silent {
            // A shared machine may be slow; a packet that is allowed arrives with patience.
            let again = probe(&lab.host(tuple.vlan), Some(tuple.from), tuple.to, tuple.kind, Duration::from_secs(3));
            answer = again.unwrap();
        }
        let to_router = explanation["destination"]["zone"] == "router";
        match (&answer, allowed) {
            (Answer::Silent, false) => self.denied += 1,
            (Answer::Unreachable, true) if nowhere => {
                self.unreachable += 1;
                self.told = true;
            }
            // The kernel answers a source once a second (`ip_error`), and a socket of UDP does not hear it.
            (Answer::Silent, true) if nowhere => self.unreachable += 1,
            // Nobody listens there, and the router says so.
            (Answer::Refused, true) if to_router => self.allowed += 1,
            (Answer::Open(greeting), true) if !nowhere => {
                self.allowed += 1;
                if let Some(peer) = greeting.as_ref().map(|greeting| greeting.peer).filter(|_| !lines.is_empty()) {
                    let address = |line: &Value| {
                        let word = line["leaves_as"].as_str().unwrap().split(' ').next().unwrap().to_owned();
                        word.parse::<IpAddr>().unwrap()
                    };
                    let Some(line) = lines.iter().find(|line| address(line) == peer) else {
                        return Err(format!("it left as {peer}"));
                    };
                    *self.lines.entry(line["wan"].as_str().unwrap().to_owned()).or_default() += 1;
                }
            }
            (answer, _) => return Err(format!("{answer:?}")),
        }
        Ok(())
    }

    fn tell(&self, what: &str) {
        let Self { allowed, denied, unreachable, lines, .. } = self;
        println!("{what}: {allowed} allowed, {denied} denied, {unreachable} without a line; {lines:?}");
    }
}

/// All questions over one connection, answered in their order.
fn explain(lab: &Lab, tuples: &[Tuple]) -> Vec<Value> {
    let mut stream = UnixStream::connect(socket(lab)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut asked = |call: &Value| -> Value {
        writeln!(stream, "{call}").unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["ok"].take()
    };
    tuples.iter().map(|tuple| asked(&question(tuple.from, tuple.to, &service(tuple.kind)))).collect()
}

fn socket(lab: &Lab) -> std::path::PathBuf {
    lab.routerctl().unwrap().get_args().nth(1).unwrap().into()
}

fn question(from: IpAddr, to: IpAddr, service: &str) -> Value {
    json!({"v": 1, "call": "explain", "source": from, "destination": to, "service": service})
}

fn service(kind: Probe) -> String {
    match kind {
        Probe::Tcp(port) => format!("tcp/{port}"),
        Probe::Udp(port) => format!("udp/{port}"),
        Probe::Ping => "ping".to_owned(),
    }
}

/// What `denied` says of packets of ours is what `explain` says of them, advice and all.
fn denials_are_told_alike(lab: &Lab) {
    let log: Value = serde_json::from_str(&run(lab.routerctl().unwrap().args(["denied", "--json"])).unwrap()).unwrap();
    let ours: BTreeSet<String> = lab
        .site()
        .vlans
        .iter()
        .flat_map(|vlan| vlan.addresses.iter().map(|address| address.addr().to_string()))
        .collect();
    let groups = log.as_array().or(log["groups"].as_array()).unwrap().iter().map(|group| &group["last"]);
    let denials: Vec<_> = groups
        .filter(|denied| denied["kind"] == "forward" || denied["kind"] == "input")
        .filter(|denied| ours.contains(denied["from"]["address"].as_str().unwrap()))
        .filter(|denied| !denied["service"].as_str().unwrap().starts_with("protocol"))
        .collect();
    let mut stream = UnixStream::connect(socket(lab)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for denied in &denials {
        let address = |end: &str| denied[end]["address"].as_str().unwrap().parse().unwrap();
        let call = question(address("from"), address("to"), denied["service"].as_str().unwrap());
        writeln!(stream, "{call}").unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let explanation = &serde_json::from_str::<Value>(&line).unwrap()["ok"]["explanation"];
        assert_eq!(denied["reason"], explanation["because"], "{denied}");
        assert_eq!(denied["advice"], explanation["advice"], "{denied}");
    }
    println!("{} groups of denials are told as they are explained", denials.len());
    assert!(denials.len() > 20, "{}", denials.len());
    let why = run(lab.routerctl().unwrap().args(["denied", "--why"])).unwrap();
    assert!(why.contains("\n    [[cell]]\n    from = "), "{why}");
}

/// Any packet of this site: between segments, to the router, or out.
fn tuple(lab: &Lab, config: &Config, chance: &mut Chance) -> Tuple {
    let vlans = &lab.site().vlans;
    loop {
        let vlan = chance.of(vlans);
        let from = chance.of(&vlan.addresses).addr();
        let to = match chance.below(10) {
            0..7 => {
                let other = chance.of(vlans);
                if other.id == vlan.id {
                    continue;
                }
                chance.of(&other.addresses).addr()
            }
            7 => {
                let gateways = &chance.of(vlans).gateways;
                chance.of(gateways).addr()
            }
            _ => internet(chance, from.is_ipv4()),
        };
        if to.is_ipv4() != from.is_ipv4() {
            continue;
        }
        let kind = kind(config, chance);
        // The daemon's own page of metrics speaks only when it is asked.
        if kind != Probe::Tcp(METRICS) {
            return Tuple { vlan: vlan.id, from, to, kind, claim: None };
        }
    }
}

/// Packets of segments to the Internet.
fn outside(lab: &Lab, config: &Config, chance: &mut Chance, count: usize) -> Vec<Tuple> {
    let mut one = || {
        let tuple = tuple(lab, config, chance);
        Tuple { to: internet(chance, tuple.from.is_ipv4()), ..tuple }
    };
    (0..tuples(count)).map(|_| one()).collect()
}

/// A port that the file names somewhere, mostly; or any.
fn kind(config: &Config, chance: &mut Chance) -> Probe {
    let cells = config.cells.iter().filter_map(|cell| match &cell.allow {
        Allow::Services(permits) => Some(permits.iter().map(|permit| &permit.ports)),
        Allow::Any => None,
    });
    let sets: Vec<&PortSet> = cells.flatten().chain(config.egress.values().map(|set| &set.ports)).collect();
    let steered = config.steering.iter().filter_map(|steer| steer.ports.as_ref());
    let sets: Vec<&PortSet> = sets.into_iter().chain(steered).collect();
    let any = 1 + u16::try_from(chance.below(60_000)).unwrap();
    match chance.below(8) {
        0 => Probe::Ping,
        1 => Probe::Tcp(any),
        2 => Probe::Udp(any),
        nth => {
            let set = chance.of(&sets);
            let ports = if nth < 6 { &set.tcp } else { &set.udp };
            let port = if ports.is_empty() { any } else { *chance.of(ports).start() };
            if nth < 6 { Probe::Tcp(port) } else { Probe::Udp(port) }
        }
    }
}

fn internet(chance: &mut Chance, v4: bool) -> IpAddr {
    if v4 {
        let host = u32::try_from(1 + chance.below(250)).unwrap();
        IpAddr::V4(Ipv4Addr::from_bits((TARGETS4[0].to_bits() & !0xff) | host))
    } else {
        let host = u128::from(1 + chance.below(60_000));
        IpAddr::V6(Ipv6Addr::from_bits((TARGETS6[0].to_bits() & !0xffff) | host))
    }
}

/// Packets that the asserts of the file speak of, as far as their ends are hosts of the lab or outside.
fn claimed(lab: &Lab, config: &Config) -> Vec<Tuple> {
    let mut tuples = Vec::new();
    for assert in &config.asserts {
        let Claim::Flow { from, to, packet, allowed } = &assert.claim else { continue };
        let kinds = match packet {
            Some(PacketClaim::Tcp(port)) => vec![Probe::Tcp(*port)],
            Some(PacketClaim::Udp(port)) => vec![Probe::Udp(*port)],
            Some(PacketClaim::Ping) => vec![Probe::Ping],
            None => vec![Probe::Ping, Probe::Tcp(443), Probe::Udp(4444), Probe::Tcp(22)],
        };
        for (vlan, from) in ends(lab, config, from) {
            let Some(vlan) = vlan else { continue };
            for (_, to) in ends(lab, config, to).into_iter().filter(|(_, to)| to.is_ipv4() == from.is_ipv4()) {
                let tuple = |kind: &Probe| Tuple { vlan, from, to, kind: *kind, claim: Some(*allowed) };
                tuples.extend(kinds.iter().map(tuple));
            }
        }
    }
    println!("{} tuples of {} asserts", tuples.len(), config.asserts.len());
    assert!(tuples.len() > 20);
    tuples
}

/// The addresses that the lab has of a place, and the VLAN they are in.
fn ends(lab: &Lab, config: &Config, place: &Place) -> Vec<(Option<u16>, IpAddr)> {
    let here = |address: IpAddr| {
        let home = |vlan: &&tests::site::Vlan| vlan.addresses.iter().any(|own| own.addr() == address);
        lab.site().vlans.iter().find(home).map(|vlan| (Some(vlan.id), address))
    };
    match place {
        Place::Vlan(name) => {
            let vlans = lab.site().vlans.iter().filter(|vlan| vlan.name == name.as_str());
            vlans.flat_map(|vlan| vlan.addresses.iter().filter_map(|own| here(own.addr()))).collect()
        }
        Place::Host(name) => config.hosts[name].addresses.iter().filter_map(|address| here(*address)).collect(),
        Place::Internet => vec![(None, TARGETS4[0].into()), (None, TARGETS6[0].into())],
        Place::Address(address) => vec![here(*address).unwrap_or((None, *address))],
        // It has many, and what it sends itself nobody judges.
        Place::Router => Vec::new(),
    }
}

/// The same numbers every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        let place = self.below(list.len() as u64);
        &list[usize::try_from(place).unwrap()]
    }
}

/// `QUADWAY_TUPLES` in percent: for a quick look, or a long one.
fn tuples(usual: usize) -> usize {
    let percent = std::env::var("QUADWAY_TUPLES").ok().and_then(|percent| percent.parse().ok());
    usual * percent.unwrap_or(100) / 100
}

const METRICS: u16 = 9790;
