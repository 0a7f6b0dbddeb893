//! The loader against a real kernel, in namespaces of its own. Needs root and TCX (Linux 6.6).

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "the helpers of a test fail it, or say why they skip")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use abi::{Flow, Home, Key4, LAYOUT, PortKey, Verdict, Zone};
use ebpf::{Attached, LoadError, Maps, Mode, OBJECT, Programs, Records, abi};
use nix::sched::{CloneFlags, unshare};

#[test]
fn what_is_in_the_kernel_is_adopted() {
    in_namespaces(|pins, port| {
        let want = Attached { port: Some(Mode::Tcx), line: true };
        let mut programs = Programs::load(OBJECT, FLOWS, pins).unwrap();
        assert!(!programs.adopted);
        programs.attach(port, want).unwrap();
        Maps::open(pins).unwrap().bump(7).unwrap();
        let ids = (programs.ids().unwrap(), maps(pins));
        drop(programs);

        let mut programs = Programs::load(OBJECT, FLOWS, pins).unwrap();
        assert!(programs.adopted);
        assert_eq!((programs.ids().unwrap(), maps(pins)), ids);
        assert_eq!(programs.attached().unwrap()[&port], want);
        assert_eq!(Maps::open(pins).unwrap().generation(7).unwrap(), 1);
        assert_eq!(attached(), [ids.0[1], ids.0[2]]);
        programs.attach(port, Attached::default()).unwrap();
        // The kernel lets go of a link that nobody holds in its own time.
        let patience = Instant::now() + Duration::from_secs(5);
        while !attached().is_empty() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(attached(), [] as [u32; 0]);
        assert!(programs.attached().unwrap().is_empty());
    });
}

#[test]
fn another_object_takes_over_the_links_and_keeps_the_maps() {
    in_namespaces(|pins, port| {
        let mut programs = Programs::load(OBJECT, FLOWS, pins).unwrap();
        programs.attach(port, Attached { port: Some(Mode::Xdp), line: true }).unwrap();
        let (links, before, of_maps) = (links(pins), programs.ids().unwrap(), maps(pins));
        drop(programs);
        // Bytes behind the last section are nobody's, and make another object of it.
        let other = [OBJECT, b"!"].concat();
        let programs = Programs::load(&other, FLOWS, pins).unwrap();
        let after = programs.ids().unwrap();
        assert!(!programs.adopted && after.iter().all(|id| !before.contains(id)));
        assert_eq!(maps(pins), of_maps);
        assert_eq!(self::links(pins), links, "the links are the same, only their programs are not");
        assert_eq!(attached(), [after[0], after[2]]);
        assert_eq!(std::fs::read_dir(layout(pins)).unwrap().filter(|e| is_programs(e.as_ref().unwrap())).count(), 1);
    });
}

#[test]
fn a_table_of_another_size_is_made_anew() {
    in_namespaces(|pins, _| {
        drop(Programs::load(OBJECT, FLOWS, pins).unwrap());
        let before = maps(pins);
        let programs = Programs::load(OBJECT, 2 * FLOWS, pins).unwrap();
        let changed: Vec<_> =
            before.iter().zip(maps(pins)).filter(|(a, b)| **a != *b).map(|(a, _)| a.0.clone()).collect();
        assert_eq!(changed, ["FLOWS4", "FLOWS6"]);
        assert!(!programs.adopted);
        assert_eq!(Maps::open(pins).unwrap().capacity(), 2 * FLOWS);
    });
}

#[test]
fn a_link_whose_interface_is_gone_is_forgotten() {
    in_namespaces(|pins, port| {
        let mut programs = Programs::load(OBJECT, FLOWS, pins).unwrap();
        programs.attach(port, Attached { port: Some(Mode::Tcx), line: false }).unwrap();
        ip("link delete qw-a");
        let programs = Programs::load(&[OBJECT, b"!"].concat(), FLOWS, pins).unwrap();
        assert!(programs.attached().unwrap().is_empty());
    });
}

#[test]
fn what_the_kernel_refuses_is_told() {
    in_namespaces(|pins, _| {
        let error = Programs::load(b"no object", FLOWS, pins).unwrap_err();
        assert!(matches!(error, LoadError::Object { .. }), "{error}");
        // The first instruction becomes `exit`.
        let mut broken = OBJECT.to_vec();
        let at = first_instruction(&broken, "xdp.frags");
        broken[at..at + 8].copy_from_slice(&[0x95, 0, 0, 0, 0, 0, 0, 0]);
        let error = Programs::load(&broken, FLOWS, pins).unwrap_err();
        assert!(matches!(error, LoadError::Program { program: "xdp_port", .. }), "{error}");
        assert!(error.to_string().contains("unreachable insn"), "{error}");
    });
}

#[test]
fn maps_hold_what_is_written() {
    in_namespaces(|pins, port| {
        drop(Programs::load(OBJECT, FLOWS, pins).unwrap());
        let mut maps = Maps::open(pins).unwrap();
        let key = PortKey { port, vlan: 30, _0: 0 };
        let zone = Zone { zone: 3, wan: 0, checks: Zone::SPOOF, mac: [2, 0, 0, 0, 0, 1], _0: 0 };
        maps.set_zone(key, zone).unwrap();
        maps.set_home4(([10, 0, 0, 0], 24), Home { zone: 3, what: Home::HOST }).unwrap();
        maps.set_home6(([0xfd; 16], 64), Home { zone: 3, what: Home::HOST }).unwrap();
        maps.set_denied(abi::pair(3, 4), true).unwrap();
        maps.add_port(port).unwrap();
        let flow = Key4 {
            source: [10, 0, 0, 1],
            destination: [192, 0, 2, 1],
            source_port: [1, 2],
            destination_port: [0, 80],
            protocol: 6,
            _0: [0; 3],
        };
        maps.set_flow4(flow, Flow::EMPTY).unwrap();

        let mut maps = Maps::open(pins).unwrap();
        assert_eq!(maps.zones().unwrap().into_iter().collect::<Vec<_>>(), [(key, zone)]);
        assert_eq!(maps.homes4().unwrap().into_keys().collect::<Vec<_>>(), [([10, 0, 0, 0], 24)]);
        assert_eq!(maps.homes6().unwrap().len(), 1);
        assert!(maps.is_denied(abi::pair(3, 4)).unwrap() && !maps.is_denied(abi::pair(4, 3)).unwrap());
        assert_eq!(maps.ports().unwrap(), [port]);
        assert_eq!(maps.flows4().collect::<Vec<_>>(), [(flow, Flow::EMPTY)]);
        assert_eq!(maps.count_flows(), (1, 0));
        assert_eq!(maps.verdicts().unwrap().len(), Verdict::ALL.len());
        assert!(maps.memory() > u64::from(FLOWS) * 88, "{}", maps.memory());
        assert!(Records::<abi::Denied>::open(pins).unwrap().next().is_none());
        for _ in 0..2 {
            maps.remove_flow4(&flow).unwrap();
            maps.remove_zone(key).unwrap();
            maps.remove_home4(([10, 0, 0, 0], 24)).unwrap();
            maps.remove_port(port).unwrap();
        }
        assert_eq!((maps.flow4(&flow).unwrap(), maps.zones().unwrap().len()), (None, 0));
        Programs::remove(pins).unwrap();
        assert!(Maps::open(pins).is_err());
        Programs::remove(pins).unwrap();
    });
}

const FLOWS: u32 = 1024;

/// In a network namespace with the veth pair `qw-a`, `qw-b` (the index of `qw-a` is handed in), with a folder for pins
/// that vanishes with the mount namespace.
fn in_namespaces(test: impl FnOnce(&Path, u32) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "this test must run, as root");
        println!("skipped: not root");
        return;
    }
    let ran = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        ip("link add qw-a type veth peer name qw-b");
        ip("link set qw-a up");
        let port = nix::net::if_::if_nametoindex("qw-a").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pins = directory.path().join("bpf");
        test(&pins, port);
        nix::mount::umount(&pins).unwrap();
    });
    if let Err(panic) = ran.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) -> String {
    let out = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The ids of the programs on `qw-a`: XDP, TCX in, TCX out.
fn attached() -> Vec<u32> {
    use aya::programs::{SchedClassifier, TcAttachType};
    let text = ip("-d link show qw-a");
    let xdp = text.split_once("prog/xdp id ").map(|(_, rest)| rest.split(' ').next().unwrap().parse().unwrap());
    let tcx = [TcAttachType::Ingress, TcAttachType::Egress].into_iter().flat_map(|to| {
        SchedClassifier::query_tcx("qw-a", to).unwrap().1.into_iter().map(|program| program.id()).collect::<Vec<_>>()
    });
    xdp.into_iter().chain(tcx).collect()
}

fn layout(pins: &Path) -> std::path::PathBuf {
    pins.join(format!("v{LAYOUT}"))
}

fn maps(pins: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(layout(pins)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') && name != "AYA_LOGS" {
            found.push((name, aya::maps::MapInfo::from_pin(entry.path()).unwrap().id()));
        }
    }
    found.sort();
    found
}

fn links(pins: &Path) -> Vec<u32> {
    use aya::programs::links::{FdLink, PinnedLink};
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(layout(pins)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap().starts_with("link-") {
            ids.push(FdLink::from(PinnedLink::from_pin(entry.path()).unwrap()).info().unwrap().id());
        }
    }
    ids.sort_unstable();
    ids
}

fn is_programs(entry: &std::fs::DirEntry) -> bool {
    entry.file_name().to_str().unwrap().starts_with("programs-")
}

/// Where in the file the section's code begins.
fn first_instruction(object: &[u8], section: &str) -> usize {
    let u16_at = |at: usize| usize::from(u16::from_le_bytes(object[at..at + 2].try_into().unwrap()));
    let u64_at = |at: usize| usize::try_from(u64::from_le_bytes(object[at..at + 8].try_into().unwrap())).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(object[at..at + 4].try_into().unwrap()) as usize;
    let (headers, count, names) = (u64_at(40), u16_at(60), u16_at(62));
    let header = |n: usize| headers + n * 64;
    let strings = u64_at(header(names) + 24);
    let named = |n: &usize| object[strings + u32_at(header(*n))..].starts_with(format!("{section}\0").as_bytes());
    u64_at(header((0..count).find(named).unwrap()) + 24)
}
