//! A trunk port: one VLAN without a tag, another with one, and the matrix between them; by the kernel, and by the flow
//! cache. It needs 8021q, which the guest run has where the machine's own kernel has not.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may stop at what it did not expect"
)]

#[path = "kernel/netns.rs"]
mod netns;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use config::Config;
use config::units::Family;
use ebpf::Maps;
use ebpf::abi::{Count, Verdict};
use mwan::compile::{compile, zones};
use mwan::decide::Decision;
use mwan::state::{BUCKETS, BucketKey, Buckets, PortMode, Slot};
use router_daemon::kernel::fast_path::Source;
use router_daemon::kernel::watch::{Change, Watch};
use router_daemon::kernel::{Kernel, LinuxKernel, counters, feeder};

use netns::{Room, alone, ip, nft};

const SITE: &str = r#"
[site]
name = "trunk"

[vlan.servers]
id        = 10
addresses = ["10.0.10.1/24", "fd10:10:10::1/64"]
native    = ["port0"]
internet  = "none"
input     = ["ping"]

[vlan.guests]
id        = 20
addresses = ["10.0.20.1/24", "fd10:10:20::1/64"]
trunk     = ["port0"]
internet  = "none"

[[cell]]
from     = "servers"
to       = "guests"
services = ["ping"]
"#;

/// The guests may go out by the line, the cameras may nothing.
const MORE: &str = r#"
[vlan.cameras]
id        = 30
addresses = ["10.0.30.1/24"]
trunk     = ["port0"]
internet  = "none"

[router]
default_policy = "balanced"

[wan.wan1]
interface = "line0"
addresses = ["203.0.113.10/24"]
gateway   = "203.0.113.1"
probe     = { targets = ["icmp 192.0.2.1", "icmp 192.0.2.2"] }

[policy.balanced]
members = ["wan1"]
"#;

/// On an emulated machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_trunk_carries_each_vlan_and_the_matrix_stands_between_them() {
    alone(|run| async move {
        let Some(mut kernel) = open(&run).await else { return };
        let (servers, guests) = far_ends();
        let config = config::parse("trunk.toml", SITE).unwrap().config;
        let mut watch = Watch::open().unwrap();
        let Change::Links(links) = watch.next().await.unwrap() else { panic!("the first change is the links") };
        let want = compile(&config, &Decision::default(), &links);
        let found = kernel.observe(&want).await.unwrap();
        for step in found.plan_to(&want) {
            kernel.apply(&step).await.unwrap();
        }
        let left = kernel.observe(&want).await.unwrap().plan_to(&want);
        assert!(left.is_empty(), "one plan is enough: {left:?}");

        assert!(pings(&servers, "10.0.10.1"), "the untagged VLAN reaches the router");
        assert!(pings(&servers, "10.0.20.5"), "and, as its cell says, the tagged one");
        assert!(pings(&servers, "fd10:10:20::5"), "in IPv6 as well");
        assert!(!pings(&guests, "10.0.10.5"), "the other way is denied");
        assert!(!pings(&guests, "fd10:10:10::5"));
        assert!(!pings(&guests, "10.0.20.1"), "no input from the guests");
        let denied = nft("list set inet quadway denied");
        assert!(denied.contains("\"vlan20\" . \"vlan10\""), "{denied}");

        // Without the trunk in the file the sub-interface goes and the port is free.
        let without = SITE.replace("trunk     = [\"port0\"]\n", "").replace("native ", "access ");
        let config = config::parse("trunk.toml", &without).unwrap().config;
        let want = compile(&config, &Decision::default(), &links);
        let found = kernel.observe(&want).await.unwrap();
        for step in found.plan_to(&want) {
            kernel.apply(&step).await.unwrap();
        }
        let shown = ip("-o link show");
        let names: BTreeSet<_> = shown.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert!(names.iter().all(|name| !name.starts_with("port0.")), "{names:?}");
        assert!(pings(&servers, "10.0.10.1"));
    });
}

/// Datagrams and a connection between two VLANs of one port, and from one of them to a line: the cache takes tags off
/// and puts them on. What the matrix denies ends at the port.
#[test]
fn the_cache_forwards_from_tag_to_tag_and_ends_what_is_denied() {
    alone(|run| async move {
        let Some(kernel) = open(&run).await else { return };
        let (servers, guests) = far_ends();
        let cameras = Room::open();
        servers.ip(&["link add link far0 name far0.30 type vlan id 30"]);
        servers.give("far0.30", &cameras);
        cameras.ip(&["link set far0.30 up", "addr add 10.0.30.5/24 dev far0.30", "route add default via 10.0.30.1"]);
        let isp = Room::open();
        isp.connect("line0", "cust");
        isp.ip(&["link set cust up", "addr add 203.0.113.1/24 dev cust", "addr add 198.51.100.1/32 dev lo"]);
        guests.run(|| echo("10.0.20.5:7"));
        guests.run(|| echo("[fd10:10:20::5]:7"));
        isp.run(|| echo("198.51.100.1:7"));
        let pins = run.join("bpf");
        let mut kernel = kernel.with_fast_path(Source { object: ebpf::OBJECT.into(), pins: pins.clone() });
        let text = format!(
            "{}{MORE}",
            SITE.replace(
                "trunk     = [\"port0\"]\ninternet  = \"none\"",
                "trunk     = [\"port0\"]\ninternet  = \"any\""
            )
            .replace("services = [\"ping\"]", "services = [\"ping\", \"udp/7\"]")
        );
        let config = Arc::new(config::parse("trunk.toml", &text).unwrap().config);
        // Once to make the bridges, once more with their MACs.
        for _ in 0..2 {
            let Change::Links(links) = Watch::open().unwrap().next().await.unwrap() else { panic!("links come first") };
            let want = compile(&config, &the_line_is_up(&config), &links);
            for step in kernel.observe(&want).await.unwrap().plan_to(&want) {
                kernel.apply(&step).await.unwrap();
            }
        }
        let watcher = kernel.fast_path();
        let seen = watcher.read().await.unwrap();
        assert!(seen.on && seen.ports.values().all(|port| port.mode == Some(PortMode::Tcx)), "{seen:?}");
        let (in_force, follow) = tokio::sync::watch::channel(Some(Arc::clone(&config)));
        feeder::start(watcher.clone(), follow).unwrap();
        assert!(pings(&servers, "fd10:10:20::5") && pings(&guests, "198.51.100.1"), "the kernel forwards");

        for (room, to) in [(&guests, "198.51.100.1:7"), (&servers, "10.0.20.5:7"), (&servers, "[fd10:10:20::5]:7")] {
            let socket = room.run(move || connected(to));
            let entries = entries(&pins);
            until("its flow is cached", || exchange(&socket, 5) == 5 && self::entries(&pins) == entries + 2);
            let before = verdict(&pins, Verdict::Forwarded);
            assert_eq!(exchange(&socket, 50), 50, "{to}");
            assert_eq!(
                verdict(&pins, Verdict::Forwarded) - before,
                100,
                "{to}: there and back, all of it by the cache"
            );
        }

        let entries = entries(&pins);
        let mut stream = guests.run(|| TcpStream::connect("198.51.100.1:7").unwrap());
        until("the connection is cached", || self::entries(&pins) == entries + 2);
        let before = verdict(&pins, Verdict::Forwarded);
        transfer(&mut stream, 1 << 20);
        let packets = verdict(&pins, Verdict::Forwarded) - before;
        println!("{packets} packets forwarded for 1 MiB there and back");
        assert!(packets > 20, "{packets}");

        // A pair of VLANs that may open nothing either way.
        let socket = cameras.run(|| connected("10.0.20.5:7"));
        let (before, denied) = (verdict(&pins, Verdict::DeniedPair), counters().await.unwrap().denied);
        (0..10).for_each(|_| assert_eq!(socket.send(b"!").unwrap(), 1));
        until("the denied datagrams are counted at their port", || verdict(&pins, Verdict::DeniedPair) - before == 10);
        assert!(socket.recv(&mut [0]).is_err(), "nobody answers");
        let zone = |name: &str| *zones(&config).iter().find(|(known, _)| known.as_str() == name).unwrap().1;
        let seen = watcher.read().await.unwrap();
        assert_eq!(seen.denied[&(zone("cameras"), zone("guests"))].packets, 10);
        assert_eq!(counters().await.unwrap().denied, denied, "the ruleset has not met them");
        drop(in_force);
    });
}

/// The far end of the trunk: VLAN 10 without a tag in one room, VLAN 20 with its tag in another.
fn far_ends() -> (Room, Room) {
    let servers = Room::open();
    let guests = Room::open();
    servers.connect("port0", "far0");
    servers.ip(&["link set far0 up", "addr add 10.0.10.5/24 dev far0", "route add default via 10.0.10.1"]);
    servers.ip(&["addr add fd10:10:10::5/64 dev far0 nodad", "-6 route add default via fd10:10:10::1"]);
    servers.ip(&["link add link far0 name far0.20 type vlan id 20"]);
    servers.give("far0.20", &guests);
    guests.ip(&["link set far0.20 up", "addr add 10.0.20.5/24 dev far0.20", "route add default via 10.0.20.1"]);
    guests.ip(&["addr add fd10:10:20::5/64 dev far0.20 nodad", "-6 route add default via fd10:10:20::1"]);
    (servers, guests)
}

fn the_line_is_up(config: &Config) -> Decision {
    let lines = config.wans.values().map(|wan| Slot::Wan(wan.id));
    let buckets = Buckets(lines.cycle().take(BUCKETS).collect());
    let keys = config.policies.keys().map(|policy| BucketKey { policy: policy.clone(), family: Family::V4 });
    Decision { buckets: keys.map(|key| (key, buckets.clone())).collect(), ..Decision::default() }
}

/// Gives back what comes there, for as long as a test takes at most.
fn echo(at: &str) {
    let socket = UdpSocket::bind(at).unwrap();
    let listener = TcpListener::bind(at).unwrap();
    socket.set_read_timeout(Some(PATIENCE * 4)).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], peer).unwrap();
        }
    });
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 1 << 14];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..length]).unwrap();
        }
    });
}

fn connected(to: &str) -> UdpSocket {
    let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.connect(to).unwrap();
    socket
}

/// How many of so many questions are answered.
fn exchange(socket: &UdpSocket, count: usize) -> usize {
    (0..count).filter(|_| socket.send(b"!").is_ok() && socket.recv(&mut [0]).is_ok()).count()
}

/// Sends this much, and wants the same back.
fn transfer(stream: &mut TcpStream, bytes: usize) {
    let sent: Vec<u8> = (0..=250).cycle().take(bytes).collect();
    let mut back = vec![0; bytes];
    let mut out = stream.try_clone().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| out.write_all(&sent).unwrap());
        stream.read_exact(&mut back).unwrap();
    });
    assert!(sent == back, "what comes back is what was sent");
}

/// Of flows in the cache, both ways.
fn entries(pins: &Path) -> usize {
    let (four, six) = Maps::open(pins).unwrap().count_flows();
    four + six
}

fn verdict(pins: &Path, verdict: Verdict) -> u64 {
    let Count { packets, .. } = Maps::open(pins).unwrap().verdicts().unwrap()[&verdict];
    packets
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "after {PATIENCE:?} it is not so that {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// `None`, with the reason on standard output, where the kernel or `nft` cannot do this.
async fn open(run: &Path) -> Option<LinuxKernel> {
    let kernel = match LinuxKernel::open(run).await {
        Ok(kernel) => kernel,
        Err(error) => {
            assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "{error}");
            println!("SKIP: {error}");
            return None;
        }
    };
    ip("link add try0 type bridge");
    let tagged = Command::new("ip").args("link add link try0 name try7 type vlan id 7".split(' ')).output().unwrap();
    ip("link del try0");
    if !tagged.status.success() {
        assert!(std::env::var_os("QUADWAY_GUEST").is_none(), "the guest's kernel has 8021q");
        println!("SKIP: this kernel has no 8021q; `make guest` runs this test on one that has");
        return None;
    }
    Some(kernel)
}

fn pings(from: &Room, to: &'static str) -> bool {
    from.run(move || {
        let ping = Command::new("ping").args(["-n", "-q", "-c", "2", "-i", "0.2", "-W", "1", to]).output().unwrap();
        ping.status.success()
    })
}
