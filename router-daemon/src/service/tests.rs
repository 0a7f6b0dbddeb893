//! What components are made of, for a small site.

use std::fmt::Write as _;

use super::*;

#[test]
fn without_a_section_of_theirs_nothing_is_run() {
    let text = include_str!("../../../config/examples/minimal.toml");
    assert!(made(text).is_empty());
}

#[test]
fn the_files_of_a_site_are_these() {
    let mut all = String::new();
    for component in made(SITE) {
        let Component { name, package, program, arguments, environment, files, validator, interfaces, .. } = component;
        writeln!(all, "== {name} ({package}): {program} {}", arguments.join(" ")).unwrap();
        writeln!(all, "environment {environment:?}\nvalidator {}", validator.unwrap().join(" ")).unwrap();
        writeln!(all, "interfaces {interfaces:?}").unwrap();
        for file in files {
            writeln!(all, "-- {} {:o}\n{}", file.path.display(), file.mode, file.text).unwrap();
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn a_vlan_without_ipv6_has_neither_dhcpv6_nor_advertisements() {
    let text = SITE.replace(", \"fd10::1/64\"", "").replace(", \"fd20::1/64\"", "").replace(", \"fd20::5\"", "");
    let text = text.replace(", \"fd30::1/56\"", "");
    let text = text.replace(", \"fd10::100-fd10::1ff\"", "");
    let names: Vec<_> = made(&text).into_iter().map(|component| component.name).collect();
    assert_eq!(names, ["kea-dhcp4", "chrony"]);
}

fn made(text: &str) -> Vec<Component> {
    let config = config::parse("site.toml", text).unwrap_or_else(|problems| panic!("{problems}")).config;
    components(&config, &Places { run: "/run/q".into(), state: "/var/lib/q".into() }, &Told::default())
}

const SITE: &str = r#"
[site]
name = "office"
[dhcp]
lease = "6h"
domain = "office.example.org"
[ra]
[ntp]
servers = ["192.0.2.1", "ntp.example.org"]
[vlan.office]
id = 10
addresses = ["10.0.10.1/24", "fd10::1/64"]
access = ["eth1"]
input = ["dhcp", "dns", "ntp"]
dhcp = { pool = ["10.0.10.100-149", "fd10::100-fd10::1ff"], mtu = 1400 }
[vlan.guests]
id = 20
addresses = ["10.0.20.1/24", "10.0.21.1/24", "fd20::1/64"]
access = ["eth2"]
input = ["dhcp"]
dhcp = { pool = "10.0.21.100-149", lease = "30m", domain = "guests.example.org" }
[vlan.lab]
id = 30
addresses = ["10.0.30.1/24", "fd30::1/56"]
access = ["eth3"]
input = ["ntp"]
[host.printer]
addresses = ["10.0.20.5-9", "fd20::5"]
mac = "02:00:5e:00:00:07"
"#;
