//! The ends of the bench take their own traffic and nothing else: a gateway whose ARP is swallowed is dead within a
//! minute, and everything behind it is lost. Needs root.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use aya::maps::{Array, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use ebpf::abi::{Count, Load};

const DROP: u32 = 1;
const PASS: u32 = 2;
const PORT: [u8; 2] = 5001_u16.to_be_bytes();

#[test]
fn the_ends_take_the_udp_of_the_load_and_leave_the_rest() {
    let Some(mut programs) = load() else { return };
    let mut loads: Array<_, Load> = programs.map_mut("LOADS").unwrap().try_into().unwrap();
    loads.set(0, Load { destination_port: PORT, ..quiet() }, 0).unwrap();
    for (name, packet, at_sink, at_source) in [
        ("UDP of the load", udp(PORT), DROP, DROP),
        ("UDP to somebody else", udp([0, 53]), PASS, DROP),
        ("TCP", with(udp(PORT), 23, 6), PASS, PASS),
        ("ICMP", with(udp(PORT), 23, 1), PASS, PASS),
        ("IPv6", with(udp(PORT), 12, 0x86), PASS, PASS),
        // Where UDP has its destination port, a request has zeros; where IP has its protocol, it has a piece of a MAC.
        ("ARP request", arp(0), PASS, PASS),
        ("ARP from a MAC with a 17", arp(17), PASS, PASS),
    ] {
        assert_eq!(run(&programs, "sink", &packet), at_sink, "{name}");
        assert_eq!(run(&programs, "swallow", &packet), at_source, "{name}");
    }
    let arrived: PerCpuArray<_, Count> = programs.map("ARRIVED").unwrap().try_into().unwrap();
    assert_eq!(arrived.get(&0, 0).unwrap().iter().map(|count| count.packets).sum::<u64>(), 1);
}

#[test]
fn without_a_load_nothing_is_taken_for_it() {
    let Some(programs) = load() else { return };
    assert_eq!(run(&programs, "sink", &arp(0)), PASS);
}

fn load() -> Option<aya::Ebpf> {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "loading programs needs root");
        println!("SKIP: loading programs needs root");
        return None;
    }
    let mut programs = aya::EbpfLoader::new().load(ebpf::GENERATOR).unwrap();
    for name in ["sink", "swallow"] {
        let program: &mut Xdp = programs.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
    }
    Some(programs)
}

fn run(programs: &aya::Ebpf, name: &str, packet: &[u8]) -> u32 {
    let program: &Xdp = programs.program(name).unwrap().try_into().unwrap();
    program.test_run(TestRunOptions { data_in: Some(packet), ..TestRunOptions::new() }).unwrap().return_value
}

fn quiet() -> Load {
    Load {
        source: [0; 4],
        destination: [0; 4],
        destination_port: [0; 2],
        destination_mac: [0; 6],
        source_mac: [0; 6],
        reflect: 0,
        flows: 1,
        port: 0,
    }
}

fn udp(port: [u8; 2]) -> Vec<u8> {
    let mut packet = vec![0; 60];
    packet[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
    packet[23] = 17;
    packet[36..38].copy_from_slice(&port);
    packet
}

/// Who has an address, asked by a MAC with this second byte.
fn arp(second: u8) -> Vec<u8> {
    let mut packet = vec![0; 42];
    packet[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    packet[23] = second;
    packet
}

fn with(mut packet: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    packet[at] = byte;
    packet
}
