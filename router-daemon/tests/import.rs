//! The files of other routers and what comes of them: `import/NAME/{network,mwan3,firewall,dhcp}` against `site.toml`
//! and `notes` beside them, or `faults` where they cannot be read. `QUADWAY_GOLDEN=write` writes these.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use config::model::{Method, WanDhcp};
use proptest::prelude::*;
use router_daemon::import::{self, Sources};

#[test]
fn every_router_comes_to_the_site_that_stands_beside_it() {
    let mut folders: Vec<PathBuf> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 10, "{folders:?}");
    let mut wrong = Vec::new();
    for folder in folders {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let texts = ["network", "mwan3", "firewall", "dhcp"].map(|name| (name, read(name)));
        let [network, mwan3, firewall, dhcp] =
            texts.each_ref().map(|(name, text)| text.as_deref().map(|text| (*name, text)));
        match import::mwan3(&Sources { network, mwan3, firewall, dhcp }) {
            Ok(imported) => {
                let notes = imported.notes.to_string();
                wrong.extend(golden(&folder.join("site.toml"), &imported.site));
                wrong.extend(golden(&folder.join("notes"), notes.trim_start()));
                if let Err(problems) = config::parse("site.toml", &imported.site) {
                    panic!("{}:\n{problems}", folder.display());
                }
                for line in notes.trim().lines().filter(|line| !line.is_empty()) {
                    assert!(imported.site.contains(&format!("# {line}")), "the head lacks {line:?}");
                }
                for secret in ["not-to-be-repeated", "c2VjcmV0", "1234"] {
                    assert!(!imported.site.contains(secret), "{}: {secret}", folder.display());
                }
            }
            Err(faults) => {
                let told = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
                wrong.extend(golden(&folder.join("faults"), &told));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\nlook, then QUADWAY_GOLDEN=write to take them", wrong.join("\n"));
}

/// A line whose address nobody knows is named by `check` until somebody writes it.
#[test]
fn check_names_each_placeholder() {
    let site = imported("pppoe-lte");
    let warnings = config::parse("site.toml", &site).unwrap().warnings.to_string();
    for wan in ["dsl", "lte"] {
        assert!(warnings.contains(&format!("`{wan}` lies in a prefix")), "{warnings}");
    }
    assert!(site.contains("PLACEHOLDER"));
}

/// A line whose provider gives the addresses is one here too, with what belongs to it.
#[test]
fn leased_lines_stay_leased() {
    let site = imported("dual-stack");
    let config = config::parse("site.toml", &site).unwrap().config;
    let line = |name: &str| config.wans.values().find(|wan| wan.name.as_str() == name).unwrap();
    assert_eq!(line("wanb").method, Method::Dhcp(WanDhcp { ipv6: true, prefix: Some(56) }));
    assert_eq!(line("wan").method, Method::Static);
    assert!(imported("four-wans").matches("method    = \"dhcp\"").count() == 4);
}

/// What a rule refused between VLANs is not allowed by the import.
#[test]
fn a_cell_that_a_denial_narrowed_allows_nothing() {
    let site = imported("vlans");
    let config = config::parse("site.toml", &site).unwrap().config;
    let cell = config.cells.iter().find(|cell| cell.name == "office to iot").unwrap();
    assert!(!cell.enabled);
    assert!(config.cells.iter().any(|cell| cell.name == "mgmt to iot" && cell.enabled));
    assert!(!config.cells.iter().any(|cell| cell.from.as_str() == "guest" && cell.enabled));
    let office = config.vlans.values().find(|vlan| vlan.name.as_str() == "office").unwrap();
    assert!(!office.input.iter().any(|permit| permit.service.as_str() == "ssh"), "{:?}", office.input);
}

#[test]
fn the_command_knows_files_by_name_and_overwrites_nothing() {
    let from = folder().join("dual-wan");
    let out = tempfile::tempdir().unwrap();
    let site = out.path().join("site.toml");
    let (site, odd) = (site.to_str().unwrap(), out.path().join("net-of-2019"));
    fs::copy(from.join("network"), &odd).unwrap();
    let odd = odd.to_str().unwrap();
    let file = |name: &str| from.join(name).to_str().unwrap().to_owned();
    let (network, mwan3, firewall) = (file("network"), file("mwan3"), file("firewall"));
    let table: [(&[&str], i32, &str, &str); 8] = [
        (&[&firewall, &network, &mwan3], 0, "[wan.wan]", "Carried over, and works differently"),
        (&["--network", odd, &mwan3, "--firewall", &firewall, "-o", site], 0, "wrote", "net-of-2019:"),
        (&[&network, &mwan3, "-o", site], 1, "", "--force"),
        (&[&network, &mwan3, "-o", site, "--force"], 0, "wrote", "--firewall FILE"),
        (&[odd, &mwan3], 1, "", "say it: --network"),
        (&[&network, "--network", odd, &mwan3], 1, "", "both the same kind"),
        (&[&mwan3], 1, "", "--network FILE"),
        (&["/nonexistent/network", &mwan3], 1, "", "scp root@"),
    ];
    for (arguments, code, told, complained) in table {
        let program = env!("CARGO_BIN_EXE_routerctl");
        let output = Command::new(program).args(["import", "mwan3"]).args(arguments).output().unwrap();
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
        assert!(out.contains(told) && err.contains(complained), "{arguments:?}: {out}\n{err}");
    }
    let check = Command::new(env!("CARGO_BIN_EXE_routerctl")).args(["check", site]).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever sensible or senseless values stand in sensible options, a site file comes of it that `check` accepts.
    #[test]
    fn what_is_written_is_a_site_file(network in file(NETWORK), mwan3 in file(MWAN3), firewall in file(FIREWALL), dhcp in file(DHCP)) {
        let sources = Sources {
            network: Some(("network", &network)),
            mwan3: Some(("mwan3", &mwan3)),
            firewall: Some(("firewall", &firewall)),
            dhcp: Some(("dhcp", &dhcp)),
        };
        let imported = import::mwan3(&sources).unwrap();
        if let Err(problems) = config::parse("site.toml", &imported.site) {
            prop_assert!(false, "{network}\n{mwan3}\n{firewall}\n{problems}\n{}", imported.site);
        }
    }

    #[test]
    fn no_text_makes_the_import_panic(network in "\\PC{0,80}", mwan3 in "(config|option|[ \n'\"#a-z0-9]){0,40}") {
        drop(import::mwan3(&Sources { network: Some(("network", &network)), mwan3: Some(("mwan3", &mwan3)), ..Sources::default() }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Between VLANs, and from them to the router, nothing passes that the firewall refused.
    #[test]
    fn an_import_allows_nothing_that_was_refused(
        rules in prop::collection::vec(rule(), 0..6),
        forwardings in prop::collection::vec((0_usize..3, 0_usize..3), 0..4),
        open in prop::collection::vec(any::<bool>(), 3),
    ) {
        let zones = ["a", "b", "c"];
        let (mut network, mut firewall) = (String::new(), String::new());
        for (at, zone) in zones.iter().enumerate() {
            let n = at + 1;
            network.extend([format!("config interface {zone}\n\toption device eth{n}\n\toption proto static\n\toption ipaddr 10.0.{n}.1/24\n")]);
            let input = if open[at] { "ACCEPT" } else { "REJECT" };
            firewall.extend([format!("config zone\n\toption name {zone}\n\toption input {input}\n")]);
        }
        firewall.extend(rules.iter().map(Rule::text));
        for (src, dest) in &forwardings {
            firewall.extend([format!("config forwarding\n\toption src {}\n\toption dest {}\n", zones[*src], zones[*dest])]);
        }
        let sources = Sources { network: Some(("network", &network)), firewall: Some(("firewall", &firewall)), ..Sources::default() };
        let mut site = import::mwan3(&sources).unwrap().site;

        let verdict = |src: &str, dest: Option<&str>, from: &str, to: &str, port: u16, otherwise: bool| {
            let first = rules.iter().find(|rule| rule.meets(src, dest, from, to, port));
            first.map_or(otherwise, |rule| rule.target == "ACCEPT")
        };
        for (s, src) in zones.iter().enumerate() {
            for (host, port) in [(5, 22), (5, 80), (6, 22), (6, 80), (6, 443)] {
                let from = format!("10.0.{}.{host}", s + 1);
                let router = format!("10.0.{}.1", s + 1);
                if !verdict(src, None, &from, &router, port, open[s]) {
                    site.extend([format!("\n[[assert]]\nthat = \"{from} -> router tcp/{port} deny\"\n")]);
                }
                for (d, dest) in zones.iter().enumerate().filter(|(d, _)| *d != s) {
                    for other in [5, 6] {
                        let to = format!("10.0.{}.{other}", d + 1);
                        let forwarded = forwardings.contains(&(s, d));
                        if !verdict(src, Some(dest), &from, &to, port, forwarded) {
                            site.extend([format!("\n[[assert]]\nthat = \"{from} -> {to} tcp/{port} deny\"\n")]);
                        }
                    }
                }
            }
        }
        let config = config::parse("site.toml", &site).unwrap().config;
        let broken = mwan::asserts::broken(&config);
        prop_assert!(broken.is_empty(), "{firewall}\n{site}\n{:?}", broken.iter().map(|broken| &broken.text).collect::<Vec<_>>());
    }
}

/// A rule of a firewall, by what it may match.
#[derive(Debug, Clone)]
struct Rule {
    src: &'static str,
    dest: Option<&'static str>,
    proto: Option<&'static str>,
    ports: Option<(u16, u16)>,
    from: Option<&'static str>,
    to: Option<&'static str>,
    target: &'static str,
}

impl Rule {
    fn text(&self) -> String {
        let option = |name: &str, value: Option<String>| value.map(|value| format!("\toption {name} '{value}'\n"));
        let owned = |value: &str| value.to_owned();
        let parts = [
            option("src", Some(owned(self.src))),
            option("dest", self.dest.map(owned)),
            option("proto", self.proto.map(owned)),
            option("dest_port", self.ports.map(|(first, last)| format!("{first}-{last}"))),
            option("src_ip", self.from.map(owned)),
            option("dest_ip", self.to.map(owned)),
            option("target", Some(owned(self.target))),
        ];
        format!("config rule\n{}", parts.into_iter().flatten().collect::<String>())
    }

    /// Whether a TCP packet meets it; `dest` is `None` towards the router.
    fn meets(&self, src: &str, dest: Option<&str>, from: &str, to: &str, port: u16) -> bool {
        let zone = |own: &str, other: &str| own == "*" || own == other;
        let places = match (self.dest, dest) {
            (Some(own), Some(other)) => zone(own, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        zone(self.src, src)
            && places
            && matches!(self.proto, None | Some("tcp" | "all"))
            && self.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
            && self.from.is_none_or(|own| own == from)
            && self.to.is_none_or(|own| own == to)
    }
}

fn rule() -> impl Strategy<Value = Rule> {
    let zones = || prop::sample::select(&["a", "b", "c", "*"][..]);
    let hosts = || prop::option::weighted(0.2, prop::sample::select(&["10.0.1.5", "10.0.2.5", "10.0.3.6"][..]));
    let protos = prop::sample::select(&[None, Some("tcp"), Some("udp"), Some("all"), Some("icmp")][..]);
    let ports = prop::sample::select(&[None, None, Some((22, 22)), Some((20, 90)), Some((80, 80))][..]);
    let targets = prop::sample::select(&["ACCEPT", "ACCEPT", "DROP", "REJECT"][..]);
    let dest = prop::option::weighted(0.7, zones());
    (zones(), dest, protos, ports, hosts(), hosts(), targets)
        .prop_map(|(src, dest, proto, ports, from, to, target)| Rule { src, dest, proto, ports, from, to, target })
}

type Kinds = &'static [(&'static str, &'static [&'static str])];

/// Sections of these kinds, with some of their options, each with any of the values.
fn file(kinds: Kinds) -> impl Strategy<Value = String> {
    let setting = |options: &'static [&'static str]| {
        (prop::sample::select(options), prop::sample::select(VALUES), any::<bool>())
            .prop_map(|(name, value, list)| format!("\t{} {name} '{value}'\n", if list { "list" } else { "option" }))
    };
    let section = prop::sample::select(kinds).prop_flat_map(move |(kind, options)| {
        (prop::sample::select(NAMES), prop::collection::vec(setting(options), 0..8))
            .prop_map(move |(name, settings)| format!("config {kind} {name}\n{}\n", settings.concat()))
    });
    prop::collection::vec(section, 0..8).prop_map(|sections| sections.concat())
}

const NAMES: &[&str] = &["lan", "wan", "wan2", "guest", "any", "", "m1", "p1", "internet"];
const VALUES: &[&str] = &[
    "lan",
    "wan",
    "wan2",
    "guest",
    "m1",
    "p1",
    "*",
    "",
    "1",
    "0",
    "300",
    "tcp",
    "udp",
    "icmp",
    "all",
    "gre",
    "80",
    "22:25",
    "static",
    "static",
    "dhcp",
    "pppoe",
    "eth0",
    "eth1",
    "eth0.10",
    "br-lan",
    "br-lan.10",
    "@wan",
    "bridge",
    "10.0.0.1/24",
    "10.0.0.1",
    "10.0.1.1/24",
    "255.255.255.0",
    "203.0.113.9/24",
    "203.0.113.1",
    "2001:db8:1::1/64",
    "fe80::1",
    "fd00::/48",
    "::/0",
    "0.0.0.0/0",
    "ACCEPT",
    "DROP",
    "REJECT",
    "blackhole",
    "default",
    "ping",
    "arping",
    "httping",
    "!10.0.0.0/8",
    "echo-request",
    "10",
    "lan1:t",
    "999999999999",
    "-1",
    "é\"\\",
    "0.0.0.0/33",
    "100",
    "2",
];
const NETWORK: Kinds = &[
    (
        "interface",
        &[
            "proto",
            "device",
            "ifname",
            "type",
            "ipaddr",
            "netmask",
            "gateway",
            "ip6addr",
            "ip6gw",
            "ip6assign",
            "metric",
            "mtu",
        ],
    ),
    ("interface", &["proto", "device", "ipaddr", "gateway"]),
    ("device", &["name", "type", "ports", "ifname", "vid", "mtu"]),
    ("bridge-vlan", &["device", "vlan", "ports"]),
    ("globals", &["ula_prefix"]),
];
const MWAN3: Kinds = &[
    (
        "interface",
        &[
            "enabled",
            "track_ip",
            "track_method",
            "reliability",
            "check_quality",
            "failure_latency",
            "failure_loss",
            "recovery_loss",
        ],
    ),
    ("member", &["interface", "metric", "weight"]),
    ("policy", &["use_member", "last_resort"]),
    ("rule", &["use_policy", "src_ip", "dest_ip", "src_port", "dest_port", "proto", "sticky", "family", "src_iface"]),
];
const FIREWALL: Kinds = &[
    ("zone", &["name", "network", "input", "forward", "masq"]),
    ("forwarding", &["src", "dest"]),
    ("rule", &["name", "src", "dest", "proto", "dest_port", "src_ip", "dest_ip", "target", "icmp_type"]),
    ("redirect", &["src", "dest_ip", "src_dport", "target"]),
];
const DHCP: Kinds = &[("host", &["name", "ip", "mac"]), ("dhcp", &["start"])];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import")
}

fn imported(name: &str) -> String {
    let read = |file: &str| fs::read_to_string(folder().join(name).join(file)).unwrap();
    let (network, mwan3, firewall) = (read("network"), read("mwan3"), read("firewall"));
    let (network, mwan3) = (Some(("network", network.as_str())), Some(("mwan3", mwan3.as_str())));
    let sources = Sources { network, mwan3, firewall: Some(("firewall", &firewall)), dhcp: None };
    import::mwan3(&sources).unwrap().site
}

/// What differs, if anything does.
fn golden(path: &Path, text: &str) -> Option<String> {
    if std::env::var_os("QUADWAY_GOLDEN").is_some_and(|value| value == "write") {
        fs::write(path, text).unwrap();
    }
    let stands = fs::read_to_string(path).unwrap_or_default();
    (stands != text).then(|| format!("{} is otherwise:\n{text}", path.display()))
}
