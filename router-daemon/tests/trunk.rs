//! A trunk port: one VLAN without a tag, another with one, and the matrix between them. It needs 8021q, which the
//! guest run has where the machine's own kernel has not.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may stop at what it did not expect"
)]

#[path = "kernel/netns.rs"]
mod netns;

use std::collections::BTreeSet;
use std::process::Command;

use mwan::compile::compile;
use mwan::decide::Decision;
use router_daemon::kernel::watch::{Change, Watch};
use router_daemon::kernel::{Kernel, LinuxKernel};

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

#[test]
fn a_trunk_carries_each_vlan_and_the_matrix_stands_between_them() {
    alone(|run| async move {
        let mut kernel = match LinuxKernel::open(&run).await {
            Ok(kernel) => kernel,
            Err(error) => {
                assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "{error}");
                return println!("SKIP: {error}");
            }
        };
        if !has_8021q() {
            assert!(std::env::var_os("QUADWAY_GUEST").is_none(), "the guest's kernel has 8021q");
            return println!("SKIP: this kernel has no 8021q; `make guest` runs this test on one that has");
        }

        // The far end of the trunk: VLAN 10 without a tag in one room, VLAN 20 with its tag in another.
        let servers = Room::open();
        let guests = Room::open();
        servers.connect("port0", "far0");
        servers.ip(&["link set far0 up", "addr add 10.0.10.5/24 dev far0", "route add default via 10.0.10.1"]);
        servers.ip(&["addr add fd10:10:10::5/64 dev far0 nodad", "-6 route add default via fd10:10:10::1"]);
        servers.ip(&["link add link far0 name far0.20 type vlan id 20"]);
        servers.give("far0.20", &guests);
        guests.ip(&["link set far0.20 up", "addr add 10.0.20.5/24 dev far0.20", "route add default via 10.0.20.1"]);
        guests.ip(&["addr add fd10:10:20::5/64 dev far0.20 nodad", "-6 route add default via fd10:10:20::1"]);

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

fn has_8021q() -> bool {
    ip("link add try0 type bridge");
    let tagged = Command::new("ip").args("link add link try0 name try7 type vlan id 7".split(' ')).output().unwrap();
    ip("link del try0");
    tagged.status.success()
}

fn pings(from: &Room, to: &'static str) -> bool {
    from.run(move || {
        let ping = Command::new("ping").args(["-n", "-q", "-c", "2", "-i", "0.2", "-W", "1", to]).output().unwrap();
        ping.status.success()
    })
}
