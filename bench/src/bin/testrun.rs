//! Nanoseconds that the eBPF programs take for a packet, by `BPF_PROG_TEST_RUN`, which adds some 20 of its own. Needs
//! root; works in a network namespace of its own.
//!
//! A test run does not set the packet back between repeats. So the flows form a ring: NAT makes each packet one of the
//! next flow, in random order, until its hops are used up.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap, LpmTrie};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use craft::{Address, Craft};
use ebpf::abi::{self, Flow, Home, Key4, Key6, PortKey, Rewrite, Settings, Zone, checksum, name, pair};

#[path = "../../../ebpf/programs/programs/src/craft.rs"]
#[expect(unreachable_pub, clippy::unwrap_used, reason = "written for tests")]
mod craft;

fn main() -> Result<()> {
    println!("{}", bench::machine());
    println!("nanoseconds per packet, fastest / median of {RUNS} runs");
    let mut kernel = load()?;
    let still = |kernel: &mut Ebpf, label: &str, program: &str, packet: &Craft, answer| -> Result<()> {
        let mut bytes = packet.bytes();
        if label == "ARP" {
            bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        }
        let times = (0..RUNS).map(|_| {
            let result = run(kernel, program, &bytes, None, STILL)?;
            ensure!(result.return_value == answer, "{label}: answer {}", result.return_value);
            Ok(result.duration.as_nanos())
        });
        print(program, label, times.collect::<Result<_>>()?);
        Ok(())
    };
    for (program, pass, drop) in [(name::XDP_PORT, 2, 1), (name::TC_PORT, u32::MAX, 2)] {
        still(&mut kernel, "ARP", program, &PACKET, pass)?;
        still(&mut kernel, "no flow", program, &PACKET, pass)?;
        still(&mut kernel, "no flow, IPv6", program, &PACKET6, pass)?;
        zone(&mut kernel)?;
        still(&mut kernel, "no flow, of a VLAN", program, &PACKET, pass)?;
        still(&mut kernel, "spoofed", program, &Craft { source: Address::V4([10, 77, 0, 1]), ..PACKET }, drop)?;
        still(&mut kernel, "denied pair", program, &Craft { destination: Address::V4([10, 5, 0, 1]), ..PACKET }, drop)?;
        HashMap::<_, PortKey, Zone>::try_from(kernel.map_mut(name::ZONES).context(name::ZONES)?)?.remove(&PORT_KEY)?;
    }
    for (count, v6) in
        [(1, false), (1, true), (1024, false), (16_384, false), (16_384, true), (262_144, false), (MOST_FLOWS, false)]
    {
        let ring = ring(&mut kernel, count, v6)?;
        let family = if v6 { ", IPv6" } else { "" };
        for (program, redirect) in [(name::XDP_PORT, 4), (name::TC_PORT, 7)] {
            let mut times = Vec::new();
            for turn in 0..RUNS {
                let packet = &ring[turn * usize::from(HOPS) % ring.len()];
                let mut out = vec![0; 256];
                let result = run(&mut kernel, program, packet, Some(&mut out), u32::from(HOPS) - 1)?;
                let hops = out[14 + if v6 { 7 } else { 8 }];
                ensure!(result.return_value == redirect && hops == 1, "not forwarded: {}, {hops}", result.return_value);
                times.push(result.duration.as_nanos());
            }
            print(program, &format!("NAT and redirect, {count} flows{family}"), times);
        }
    }
    Ok(())
}

fn print(program: &str, label: &str, mut times: Vec<u128>) {
    times.sort_unstable();
    println!("{program:9} {label:36} {:4} / {:4}", times[0], times[times.len() / 2]);
}

fn run(kernel: &mut Ebpf, program: &str, bytes: &[u8], out: Option<&mut [u8]>, repeat: u32) -> Result<TestRunResult> {
    let options = TestRunOptions { data_in: Some(bytes), data_out: out, repeat, ..TestRunOptions::new() };
    let program = kernel.program_mut(program).context("no such program")?;
    Ok(match <&mut Xdp>::try_from(&mut *program) {
        Ok(xdp) => xdp.test_run(options)?,
        Err(_) => <&mut SchedClassifier>::try_from(program)?.test_run(options)?,
    })
}

fn load() -> Result<Ebpf> {
    let mut kernel = EbpfLoader::new()
        .map_max_entries(name::FLOWS4, 2 * MOST_FLOWS)
        .map_max_entries(name::FLOWS6, 2 * MOST_FLOWS)
        .load(ebpf::OBJECT)?;
    let xdp = <&mut Xdp>::try_from(kernel.program_mut(name::XDP_PORT).context(name::XDP_PORT)?)?;
    xdp.load()?;
    // A test run of an XDP program that is attached nowhere patches the kernel's dispatcher before and after, which
    // leaves cold caches: at 16,384 flows each packet seems to take three times as long.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    xdp.attach_to_if_index(PORT, XdpMode::Skb)?;
    <&mut SchedClassifier>::try_from(kernel.program_mut(name::TC_PORT).context(name::TC_PORT)?)?.load()?;
    let settings = Settings {
        forward: 1,
        deny: 1,
        silence_ns: 3_000_000_000,
        silence_flows: 8,
        new_per_second: 0,
        new_burst: 0,
        sample_ns: 1_000_000_000,
    };
    Array::<_, Settings>::try_from(kernel.map_mut(name::SETTINGS).context(name::SETTINGS)?)?.set(0, settings, 0)?;
    DevMapHash::try_from(kernel.map_mut(name::PORTS).context(name::PORTS)?)?.insert(PORT, PORT, None, 0)?;
    let mut pairs = Array::<_, u32>::try_from(kernel.map_mut(name::DENIED_PAIRS).context(name::DENIED_PAIRS)?)?;
    pairs.set(pair(3, 5), abi::DENY, 0)?;
    let mut homes = LpmTrie::<_, [u8; 4], Home>::try_from(kernel.map_mut(name::HOMES4).context(name::HOMES4)?)?;
    for second in 0..250 {
        for third in 0..4 {
            let zone = u16::from(second);
            homes.insert(&Key::new(24, [10, second, third, 0]), Home { zone, what: Home::HOST }, 0)?;
        }
    }
    Ok(kernel)
}

fn zone(kernel: &mut Ebpf) -> Result<()> {
    let zone = Zone { zone: 3, wan: 0, checks: Zone::SPOOF, mac: MAC, _0: 0 };
    HashMap::<_, PortKey, Zone>::try_from(kernel.map_mut(name::ZONES).context(name::ZONES)?)?
        .insert(PORT_KEY, zone, 0)?;
    Ok(())
}

/// Fills the map with flows, and says the first packet of each in their random order.
fn ring(kernel: &mut Ebpf, count: u32, v6: bool) -> Result<Vec<Vec<u8>>> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut random = 1_u64;
    for at in (1..order.len()).rev() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, usize::try_from(random >> 33)? % (at + 1));
    }
    let end = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        let address = if v6 {
            Address::V6([0x20, 1, 0xd, 0xb8, 0, 3, 0, 0, 0, 0, 0, 0, a, b, c, d])
        } else {
            Address::V4([10 + a, b, c, d])
        };
        (address, 1024 + (number % 60_000) as u16)
    };
    let mut packets = Vec::new();
    for (at, &number) in order.iter().enumerate() {
        let next = order[(at + 1) % order.len()];
        let ((source, port), (new, new_port)) = (end(number), end(next));
        let base = if v6 { PACKET6 } else { PACKET };
        let packet = Craft { source, ports: [port, 443], ..base };
        let ip_delta = checksum::delta(source.bytes(), new.bytes());
        let flow = Flow {
            address: new.padded(),
            port: new_port.to_be_bytes(),
            ip_delta,
            l4_delta: checksum::add(ip_delta, checksum::delta(&port.to_be_bytes(), &new_port.to_be_bytes())),
            ..FLOW
        };
        let (source_port, destination_port, protocol) = (port.to_be_bytes(), 443_u16.to_be_bytes(), 6);
        match (packet.source, packet.destination) {
            (Address::V4(source), Address::V4(destination)) => {
                let key = Key4 { source, destination, source_port, destination_port, protocol, _0: [0; 3] };
                let map = kernel.map_mut(name::FLOWS4).context(name::FLOWS4)?;
                HashMap::<_, Key4, Flow>::try_from(map)?.insert(key, flow, 0)?;
            }
            (source, destination) => {
                let (source, destination) = (source.padded(), destination.padded());
                let key = Key6 { source, destination, source_port, destination_port, protocol, _0: [0; 3] };
                let map = kernel.map_mut(name::FLOWS6).context(name::FLOWS6)?;
                HashMap::<_, Key6, Flow>::try_from(map)?.insert(key, flow, 0)?;
            }
        }
        packets.push(packet.bytes());
    }
    Ok(packets)
}

const RUNS: usize = 1000;
const STILL: u32 = 10_000;
const HOPS: u8 = 255;
const MOST_FLOWS: u32 = 1_048_576;

/// The loopback interface, by which test runs come in.
const PORT: u32 = 1;
const PORT_KEY: PortKey = PortKey { port: PORT, vlan: 0, _0: 0 };
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

const PACKET: Craft = Craft {
    to: MAC,
    from: [2, 0, 0, 0, 0, 2],
    tag: None,
    source: Address::V4([10, 3, 0, 9]),
    destination: Address::V4([198, 51, 100, 7]),
    protocol: 6,
    ports: [443, 443],
    hops: HOPS,
    fragment: 0,
    options: 0,
    flags: 0x10,
    payload: 6,
    unchecked: false,
};
const PACKET6: Craft = Craft {
    source: Address::V6([0x20, 1, 0xd, 0xb8, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]),
    destination: Address::V6([0x20, 1, 0xd, 0xb8, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]),
    ..PACKET
};

/// Goes round: out by the same port, to the same MAC.
const FLOW: Flow = Flow {
    slot: 2,
    in_port: PORT,
    out_port: PORT,
    mtu: 1500,
    rewrite: Rewrite::Source as u8,
    flags: Flow::OUTWARD,
    in_mac: MAC,
    destination_mac: MAC,
    source_mac: [2, 0, 0, 0, 0, 2],
    ..Flow::EMPTY
};
