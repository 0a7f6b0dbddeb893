//! Random small sites on the real kernel, and random packets through them: what arrives, and what is counted, is what
//! `matrix::verdict` says, with the programs at the ports and without. For the cases nobody thought of; everything follows from a seed, and a failure tells it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may stop at what it did not expect"
)]

#[path = "kernel/netns.rs"]
mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use config::Config;
use config::units::Family;
use mwan::decide::Decision;
use mwan::matrix::{Packet, Protocol, Reason, Verdict, Zone, verdict};
use mwan::state::{BUCKETS, BucketKey, Buckets, Slot, ZoneId};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket};
use router_daemon::kernel::fast_path::{Source, Watcher};
use router_daemon::kernel::watch::{Change, Watch};
use router_daemon::kernel::{Kernel, LinuxKernel, counters};
use socket2::{Domain, Socket, Type};

use netns::{Room, alone, ip};

#[test]
fn random_packets_through_random_sites_fare_as_the_matrix_says() {
    for seed in 1..=SITES {
        for fast_path in [false, true] {
            alone(move |run| async move { agrees(seed, fast_path, &run).await });
        }
    }
}

async fn agrees(seed: u64, fast_path: bool, run: &Path) {
    let mut dice = Dice(seed);
    let text = site(&mut dice);
    let config = config::parse("site.toml", &text).unwrap_or_else(|problems| panic!("seed {seed}: {problems}")).config;
    let Some(world) = World::build(&config, fast_path, run).await else { return };
    let packets = packets(&mut dice, &config);
    let mut fates: Vec<_> = packets.iter().map(|packet| Fate::of(&config, packet)).collect();
    let before = world.counted(&config).await;
    let mut seen = BTreeSet::new();
    for (number, packet) in packets.iter().enumerate() {
        world.send(number, packet);
        world.listen(&packets, &mut seen);
    }
    // What is to arrive may take its time; what is not has had as much as the rest.
    let patience = Instant::now() + Duration::from_secs(2);
    let late = |seen: &BTreeSet<(usize, String)>| {
        fates.iter().enumerate().any(|(n, fate)| fate.verdict.allowed && !seen.iter().any(|(number, _)| *number == n))
    };
    while late(&seen) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
        world.listen(&packets, &mut seen);
    }
    std::thread::sleep(Duration::from_millis(50));
    world.listen(&packets, &mut seen);

    let mut counts = before;
    let mut wrong = Vec::new();
    for (number, (fate, packet)) in fates.iter_mut().zip(&packets).enumerate() {
        let at: Vec<_> = seen.iter().filter(|(n, _)| *n == number).map(|(_, place)| place.as_str()).collect();
        let right = match (fate.verdict.allowed, at.as_slice()) {
            (true, [place]) => fate.place == *place || (fate.place == "w" && place.starts_with('w')),
            (allowed, places) => !allowed && places.is_empty(),
        };
        if !right {
            wrong.push(format!("{packet:?}\n    {:?}, and it arrived at {at:?}", fate.verdict));
        }
        if let Some(counter) = fate.counter.take() {
            *counts.entry(counter).or_default() += 1;
        }
    }
    let passed = fates.iter().filter(|fate| fate.verdict.allowed).count();
    println!("seed {seed}, fast path {fast_path}: {passed} of {} packets are allowed", packets.len());
    assert!(wrong.is_empty(), "seed {seed}: {} packets are wrong:\n{}\n{text}", wrong.len(), wrong.join("\n"));
    let mut counted = world.counted(&config).await;
    if fast_path {
        (counted, counts) = (by_source(counted), by_source(counts));
        // What no ruleset counts, because the kernel's routing ends it, the programs may have met before.
        for (packet, _) in packets.iter().zip(&fates).filter(|(_, fate)| fate.is_unrouted()) {
            let Zone::Vlan(vlan) = &packet.from else { continue };
            let name = format!("refused {}", config.vlans[vlan].interface);
            if counts.get(&name) < counted.get(&name) {
                *counts.entry(name).or_default() += 1;
            }
        }
    }
    assert_eq!(counted, counts, "seed {seed}: the counters differ\n{text}");
    assert!((1..packets.len()).contains(&passed), "seed {seed} proves nothing");
}

/// What must become of a packet.
struct Fate {
    verdict: Verdict,
    /// Where it arrives: the far end of a VLAN's port, of any line (`w`), or the router.
    place: String,
    /// The counter it moves.
    counter: Option<String>,
}

impl Fate {
    fn of(config: &Config, packet: &Packet) -> Self {
        let verdict = verdict(config, packet);
        let interface = |zone: &Zone| match zone {
            Zone::Vlan(name) => config.vlans[name].interface.to_string(),
            Zone::Wan(name) => config.wans[name].interface.to_string(),
            // By which line is not the matrix's to say.
            Zone::Internet => "w".to_owned(),
            Zone::Router => "router".to_owned(),
        };
        let place = interface(&packet.to).replace("vlan", "p");
        let (from, to) = (interface(&packet.from), interface(&packet.to));
        let counter = match &verdict.reason {
            Reason::Cell { .. } | Reason::Egress { .. } => Some(format!("allowed {from} {to}")),
            Reason::NoCell { .. } | Reason::NoEgress { .. } | Reason::Inbound { .. } => {
                Some(format!("denied {from} {to}"))
            }
            Reason::NoInput { .. } => Some(format!("denied_in {from}")),
            Reason::Spoofed { .. } => Some(format!("spoofed {}", line(&from))),
            // The kernel's own routing ends the last kind.
            Reason::Own
            | Reason::SameSegment { .. }
            | Reason::Input { .. }
            | Reason::BuiltIn { .. }
            | Reason::NotRouted { .. } => None,
        };
        Self { verdict, place, counter }
    }

    fn is_unrouted(&self) -> bool {
        matches!(self.verdict.reason, Reason::NotRouted { .. })
    }
}

/// Of a packet that is denied for two reasons the programs and the ruleset may name different ones.
fn by_source(counts: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, count) in counts {
        let name = match name.split(' ').collect::<Vec<_>>().as_slice() {
            ["denied" | "spoofed", from, ..] => format!("refused {}", line(from)),
            _ => name,
        };
        *sums.entry(name).or_default() += count;
    }
    sums
}

/// Which line it is, the counters of the fast path do not tell.
fn line(interface: &str) -> &str {
    if interface.starts_with('w') { "w" } else { interface }
}

/// The counters of the kernel under the names [`Fate`] gives them.
async fn of_the_ruleset() -> BTreeMap<String, u64> {
    let counters = counters().await.unwrap();
    let mut counted = BTreeMap::new();
    for (what, pairs) in [("denied", counters.denied), ("allowed", counters.allowed), ("invalid", counters.invalid)] {
        for ((from, to), count) in pairs {
            *counted.entry(format!("{what} {from} {}", line(to.as_str()))).or_default() += count.packets;
        }
    }
    for (from, count) in counters.denied_input {
        counted.insert(format!("denied_in {from}"), count.packets);
    }
    for (from, count) in counters.spoofed {
        *counted.entry(format!("spoofed {}", line(from.as_str()))).or_default() += count.packets;
    }
    counted
}

/// The router of a site, here, and the far ends of its cables, in a room of their own.
struct World {
    _room: Room,
    /// Of each port: its far end, and where frames for the router go.
    ports: BTreeMap<String, (OwnedFd, [u8; 6])>,
    /// Hear what the router itself is given.
    router: Vec<Socket>,
    fast_path: Option<Watcher>,
}

impl World {
    async fn build(config: &Config, fast_path: bool, run: &Path) -> Option<Self> {
        let mut kernel = LinuxKernel::open(run).await.inspect_err(|error| println!("SKIP: {error}")).ok()?;
        // An address is one at once.
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        let room = Room::open();
        let behind = [("p10", "vlan10"), ("p20", "vlan20"), ("p30", "vlan30"), ("w1", "w1"), ("w2", "w2")];
        for (port, _) in behind {
            room.connect(port, port);
            room.run(move || {
                ip(&format!("link set {port} addrgenmode none"));
                ip(&format!("link set {port} up"));
            });
        }
        if fast_path {
            kernel = kernel.with_fast_path(Source { object: ebpf::OBJECT.into(), pins: run.join("bpf") });
        }
        // Once to make the bridges, once more with their MACs.
        for _ in 0..2 {
            let Change::Links(links) = Watch::open().unwrap().next().await.unwrap() else { panic!("links come first") };
            let want = mwan::compile::compile(config, &everything_is_up(config), &links);
            for step in kernel.observe(&want).await.unwrap().plan_to(&want) {
                kernel.apply(&step).await.unwrap();
            }
        }
        let watcher = fast_path.then(|| kernel.fast_path());
        let lladdr = FAR.map(|byte| format!("{byte:02x}")).join(":");
        for vlan in VLANS {
            for host in HOSTS {
                for v6 in [false, true] {
                    let host = inside(vlan, host, v6);
                    ip(&format!("neigh replace {host} lladdr {lladdr} dev vlan{vlan} nud permanent"));
                }
            }
        }
        for wan in config.wans.values() {
            for gateway in Family::ALL.into_iter().filter_map(|family| wan.gateway(family)) {
                ip(&format!("neigh replace {gateway} lladdr {lladdr} dev {} nud permanent", wan.interface));
            }
        }
        let ports = behind.map(|(port, interface)| {
            let far = room.run(move || {
                let protocol = SockProtocol::EthAll;
                let far = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
                bind(far.as_raw_fd(), &link(port)).unwrap();
                far
            });
            (port.to_owned(), (far, link(interface).addr().unwrap()))
        });
        let raw = [(Domain::IPV4, [1, 6, 17, 50, 89]), (Domain::IPV6, [58, 6, 17, 50, 89])];
        let router = raw.into_iter().flat_map(|(domain, numbers)| {
            numbers.map(|number| {
                let socket = Socket::new(domain, Type::RAW, Some(number.into())).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            })
        });
        Some(Self { _room: room, ports: ports.into(), router: router.collect(), fast_path: watcher })
    }

    /// What the ruleset and the programs at the ports counted.
    async fn counted(&self, config: &Config) -> BTreeMap<String, u64> {
        let mut counted = of_the_ruleset().await;
        let Some(watcher) = &self.fast_path else { return counted };
        let early = watcher.read().await.unwrap();
        assert!(early.on, "{early:?}");
        let zones = mwan::compile::zones(config);
        let interface = |id: ZoneId| {
            let vlan = zones.iter().find(|(_, zone)| **zone == id);
            vlan.map_or("w".to_owned(), |(name, _)| config.vlans[*name].interface.to_string())
        };
        for ((from, to), count) in early.denied {
            let name = if from == to {
                format!("spoofed {}", interface(from))
            } else {
                format!("denied {} {}", interface(from), interface(to))
            };
            *counted.entry(name).or_default() += count.packets;
        }
        counted
    }

    fn send(&self, number: usize, packet: &Packet) {
        let port = match &packet.from {
            Zone::Vlan(name) => format!("p{}", name.as_str().trim_start_matches('v')),
            Zone::Wan(name) => name.as_str().replace("wan", "w"),
            Zone::Internet | Zone::Router => panic!("no packet comes from there"),
        };
        let (far, router) = &self.ports[&port];
        let kind = if packet.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        let frame = [&router[..], &FAR, &kind, &bytes(number, packet)].concat();
        send(far.as_raw_fd(), &frame, MsgFlags::empty()).unwrap();
    }

    /// Which packets have arrived, and where.
    fn listen(&self, packets: &[Packet], seen: &mut BTreeSet<(usize, String)>) {
        let mut buffer = [0; 2048];
        for (port, (far, _)) in &self.ports {
            while let Ok(length) = recv(far.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                let frame = &buffer[..length];
                let Some(number) = number_in(frame).filter(|_| frame.starts_with(&FAR)) else { continue };
                // Not what tells its sender about it.
                let destination = match packets[number].destination {
                    IpAddr::V4(address) => frame[30..34] == address.octets(),
                    IpAddr::V6(address) => frame[38..54] == address.octets(),
                };
                if destination {
                    seen.insert((number, port.clone()));
                }
            }
        }
        for socket in &self.router {
            while let Ok(length) = (&*socket).read(&mut buffer) {
                seen.extend(number_in(&buffer[..length]).map(|number| (number, "router".to_owned())));
            }
        }
    }
}

fn everything_is_up(config: &Config) -> Decision {
    let lines: Vec<_> = config.wans.values().map(|wan| Slot::Wan(wan.id)).collect();
    let buckets = Buckets(lines.iter().copied().cycle().take(BUCKETS).collect());
    let mut decision = Decision::default();
    for policy in config.policies.keys() {
        for family in Family::ALL {
            decision.buckets.insert(BucketKey { policy: policy.clone(), family }, buckets.clone());
        }
    }
    decision
}

fn link(name: &str) -> LinkAddr {
    let mut all = getifaddrs().unwrap().filter(|entry| entry.interface_name == name);
    all.find_map(|entry| entry.address?.as_link_addr().copied()).expect("the link is there")
}

fn site(dice: &mut Dice) -> String {
    let mut text = "[site]\nname = \"random\"\n[router]\ndefault_policy = \"all\"\n\
        [policy.all]\nmembers = [\"wan1\", \"wan2\"]\n\
        [egress.some]\nto = [\"192.0.2.0/24\", \"2001:db8:2::/64\"]\nports = [\"tcp/80\", \"udp/5000-5002\"]\n\
        [egress.all]\nto = \"any\"\nports = [\"tcp/443\", \"ping\"]\n"
        .to_owned();
    for wan in WANS {
        let input = services(dice, 2);
        writeln!(
            text,
            "[wan.wan{wan}]\ninterface = \"w{wan}\"\naddresses = [\"203.0.{wan}.2/24\", \"2001:db8:f{wan}::2/64\"]\n\
             gateway = \"203.0.{wan}.1\"\ngateway6 = \"2001:db8:f{wan}::1\"\n\
             probe = {{ targets = [\"icmp 192.0.2.1\"] }}\ninput = [{input}]\nbogons = {}",
            dice.below(3) == 0
        )
        .unwrap();
    }
    for vlan in VLANS {
        let internet = *dice.pick(&["\"any\"", "\"none\"", "[\"some\"]", "[\"all\", \"some\"]"]);
        let input = services(dice, 4);
        writeln!(
            text,
            "[vlan.v{vlan}]\nid = {vlan}\naddresses = [\"10.0.{vlan}.1/24\", \"fd00:{vlan}::1/64\"]\n\
             access = [\"p{vlan}\"]\ninternet = {internet}\ninput = [{input}]"
        )
        .unwrap();
    }
    for _ in 0..4 + dice.below(12) {
        let from = *dice.pick(&VLANS);
        let to = *dice.pick(&VLANS);
        if from == to {
            continue;
        }
        writeln!(text, "[[cell]]\nfrom = \"v{from}\"\nto = \"v{to}\"").unwrap();
        match services(dice, 3) {
            any if any.is_empty() => text.push_str("services = \"any\"\n"),
            some => writeln!(text, "services = [{some}]").unwrap(),
        }
        for (key, vlan) in [("from_hosts", from), ("hosts", to)] {
            if dice.below(2) == 0 {
                let hosts: BTreeSet<_> =
                    (0..=dice.below(3)).map(|_| inside(vlan, *dice.pick(&HOSTS), dice.below(2) == 0)).collect();
                let hosts: Vec<_> = hosts.iter().map(|host| format!("\"{host}\"")).collect();
                writeln!(text, "{key} = [{}]", hosts.join(", ")).unwrap();
            }
        }
        writeln!(text, "log = {}\nenabled = {}", dice.below(4) == 0, dice.below(5) != 0).unwrap();
    }
    text
}

/// At most so many, as a list of TOML.
fn services(dice: &mut Dice, most: u64) -> String {
    let all: BTreeSet<_> = (0..dice.below(most + 1)).map(|_| *dice.pick(&SERVICES)).collect();
    all.iter().map(|service| format!("\"{service}\"")).collect::<Vec<_>>().join(", ")
}

fn packets(dice: &mut Dice, config: &Config) -> Vec<Packet> {
    let mut packets: Vec<Packet> = Vec::new();
    while packets.len() < PACKETS {
        let number = u16::try_from(packets.len()).unwrap();
        let v6 = dice.below(2) == 0;
        let (from, source) = if dice.below(3) == 0 {
            let source = if dice.below(4) == 0 { anywhere(dice, number, v6) } else { outside(dice, number, v6) };
            (Zone::Wan(format!("wan{}", dice.pick(&WANS)).parse().unwrap()), source)
        } else {
            let vlan = *dice.pick(&VLANS);
            let source = match dice.below(8) {
                0 => anywhere(dice, number, v6),
                1 if v6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7).into(),
                _ => inside(vlan, *dice.pick(&HOSTS), v6),
            };
            (Zone::Vlan(format!("v{vlan}").parse().unwrap()), source)
        };
        let destination = anywhere(dice, number, v6);
        let to = Zone::of(config, destination);
        // Bridged, or on its way from line to line: neither is this table's.
        if from == to || source == destination || (matches!(from, Zone::Wan(_)) && to == Zone::Internet) {
            continue;
        }
        let (port, own) = (*dice.pick(&PORTS), 20_000 + number);
        let protocol = match dice.below(12) {
            0 => Protocol::Udp { source: 67, destination: 68 },
            1 => Protocol::Other(*dice.pick(&[50, 89])),
            2 if !v6 => Protocol::Other(1),
            3 | 4 => Protocol::Ping,
            5..=8 => Protocol::Tcp { source: own, destination: port },
            _ => Protocol::Udp { source: own, destination: port },
        };
        let packet = Packet { from, to, source, destination, protocol };
        // Of what has no port of its own a second packet, or one the other way, belongs to a known flow.
        let known = |other: &Packet| {
            let ends = BTreeSet::from([other.source, other.destination]);
            let same = ends == BTreeSet::from([source, destination]) && other.protocol == protocol;
            same && matches!(protocol, Protocol::Other(50 | 89) | Protocol::Udp { source: 67, .. })
        };
        if !packets.iter().any(known) {
            packets.push(packet);
        }
    }
    packets
}

fn anywhere(dice: &mut Dice, number: u16, v6: bool) -> IpAddr {
    let vlan = *dice.pick(&VLANS);
    match dice.below(10) {
        0..=4 => inside(vlan, *dice.pick(&HOSTS), v6),
        5 | 6 => inside(vlan, 1, v6),
        7 if !v6 => inside(vlan, 255, v6),
        7 | 8 => {
            let wan = *dice.pick(&WANS);
            if v6 { Ipv6Addr::new(0x2001, 0xdb8, 0xf0 + wan, 0, 0, 0, 0, 2).into() } else { v4([203, 0, wan, 2]) }
        }
        _ => outside(dice, number, v6),
    }
}

/// Another one for each packet.
fn outside(dice: &mut Dice, number: u16, v6: bool) -> IpAddr {
    let (near, host) = (dice.below(2) == 0, number % 250 + 1);
    match (v6, near) {
        (false, true) => v4([192, 0, 2, host]),
        (false, false) => v4([198, 51, 100, host]),
        (true, near) => Ipv6Addr::new(0x2001, 0xdb8, if near { 2 } else { 100 }, 0, 0, 0, 0, host).into(),
    }
}

fn inside(vlan: u16, host: u16, v6: bool) -> IpAddr {
    if v6 {
        // As the text of the file has it: fd00:10::5.
        format!("fd00:{vlan}::{host}").parse().unwrap()
    } else {
        v4([10, 0, vlan, host])
    }
}

fn v4(octets: [u16; 4]) -> IpAddr {
    Ipv4Addr::from(octets.map(|octet| u8::try_from(octet).unwrap())).into()
}

/// The packet as IP has it, with its number in its payload.
fn bytes(number: usize, packet: &Packet) -> Vec<u8> {
    let tag = [TAG, &u32::try_from(number).unwrap().to_be_bytes()].concat();
    let id = u16::try_from(number).unwrap().to_be_bytes();
    let v6 = packet.source.is_ipv6();
    let (kind, mut payload, checksum_at) = match packet.protocol {
        Protocol::Tcp { source, destination } => {
            let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
            let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0];
            (6, [&ports[..], &rest, &tag].concat(), Some(16))
        }
        Protocol::Udp { source, destination } => {
            let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
            (17, [&ports[..], &[0, 16, 0, 0], &tag].concat(), Some(6))
        }
        Protocol::Ping if v6 => (58, [&[128, 0, 0, 0], &id[..], &[0, 1], &tag].concat(), Some(2)),
        Protocol::Ping => (1, [&[8, 0, 0, 0], &id[..], &[0, 1], &tag].concat(), Some(2)),
        // A request for a timestamp.
        Protocol::Other(1) => (1, [&[13, 0, 0, 0], &id[..], &[0, 1], &tag, &[0; 4]].concat(), Some(2)),
        Protocol::Other(number) => (number, [&[0; 8][..], &tag].concat(), None),
    };
    let length = u16::try_from(payload.len()).unwrap();
    let (source, destination) = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => (source.octets().to_vec(), destination.octets().to_vec()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => (source.octets().to_vec(), destination.octets().to_vec()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("one family"),
    };
    if let Some(at) = checksum_at {
        let pseudo = [&source[..], &destination, &[0, kind], &length.to_be_bytes()].concat();
        let pseudo = if kind == 1 { Vec::new() } else { pseudo };
        let sum = checksum(&[&pseudo[..], &payload].concat());
        payload[at..at + 2].copy_from_slice(&sum);
    }
    let header = if v6 {
        let start = [&[0x60, 0, 0, 0], &length.to_be_bytes()[..], &[kind, 64]].concat();
        [start, source, destination].concat()
    } else {
        let start = [&[0x45, 0], &(length + 20).to_be_bytes()[..], &id, &[0x40, 0, 64, kind, 0, 0]].concat();
        let mut header = [start, source, destination].concat();
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        header
    };
    [header, payload].concat()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()).to_be_bytes()
}

fn number_in(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(TAG.len()).position(|window| window == TAG)? + TAG.len();
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().unwrap()) as usize)
}

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

const SITES: u64 = 12;
const PACKETS: usize = 200;
const VLANS: [u16; 3] = [10, 20, 30];
const WANS: [u16; 2] = [1, 2];
const HOSTS: [u16; 3] = [5, 6, 7];
const SERVICES: [&str; 10] =
    ["tcp/80", "tcp/81", "tcp/79-82", "udp/80", "udp/5000-5001", "tcp/5000", "ping", "proto/50", "proto/89", "udp/68"];
const PORTS: [u16; 7] = [79, 80, 81, 82, 443, 5000, 5002];
/// The hardware address of every neighbour.
const FAR: [u8; 6] = [0x02, 0xbb, 0, 0, 0, 1];
const TAG: &[u8] = b"QWPK";
