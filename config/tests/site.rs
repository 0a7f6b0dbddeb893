//! The example files: they parse, and say what the site's documents say.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "one test measures time; the crate reads no clock"
)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use config::model::{
    Allow, ApiRole, BackendHealth, Config, FastPath, Internet, Kick, Material, PortPath, PortRole, Rate, TlsLimits,
};
use config::units::Family;

const MINIMAL: &str = include_str!("../examples/minimal.toml");
const SITE: &str = include_str!("../examples/spectrum-site.toml");

#[test]
fn the_minimal_site_parses_without_a_warning() {
    let parsed = config::parse("minimal.toml", MINIMAL).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(parsed.warnings.is_empty(), "{}", parsed.warnings);

    let config = parsed.config;
    assert_eq!(config.router.own_policy, config.router.default_policy);
    assert_eq!(config.router.metrics.map(|metrics| metrics.to_string()).as_deref(), Some("127.0.0.1:9790"));
    assert_eq!(config.hosts.values().next().unwrap().vlan.as_ref().unwrap().as_str(), "guests");
    let roles: Vec<_> = config.ports.values().map(|port| port.role.clone()).collect();
    assert!(matches!(roles.as_slice(), [PortRole::Wan(_), PortRole::Wan(_), PortRole::Access(_), PortRole::Access(_)]));
    let weights: Vec<_> = config.policies.values().flat_map(|policy| &policy.members).map(|m| m.weight.get()).collect();
    assert_eq!(weights, [3, 1]);
    let office = config.vlans.values().find(|vlan| vlan.name.as_str() == "office").unwrap();
    assert_eq!((office.interface.as_str(), &office.internet), ("vlan10", &Internet::Any));
    assert_eq!((office.line.0, office.internet_line.0, office.input_line.0), (23, 27, 28));
}

#[test]
fn the_fast_path_is_on_unless_the_file_switches_it_off() {
    let read = |router: &str, rest: &str| {
        let text = MINIMAL.replace("[router]", &format!("[router]\n{router}")) + rest;
        config::parse("minimal.toml", &text).unwrap_or_else(|problems| panic!("{problems}")).config
    };
    let default = read("", "");
    assert_eq!(default.fast_path, Some(FastPath::default()));
    assert!(default.ports.values().all(|port| port.fast_path == PortPath::Auto));
    assert!(default.wans.values().all(|wan| !wan.bogons));
    let written = "[fast_path]\nflows = 4096\nnew_per_source = 20\n";
    let path = read("", written).fast_path.unwrap();
    assert_eq!((path.flows, path.new_per_source), (4096, Some(Rate { per_second: 20, burst: 20 })));
    assert_eq!(read("fast_path = false", written).fast_path, None);
    let port = "[port.eth2]\nfind = { name = \"eth2\" }\nfast_path = \"tcx\"\n";
    assert_eq!(read("", port).ports.values().filter(|port| port.fast_path == PortPath::Tcx).count(), 1);
}

/// The section of the example, out of its comment.
#[test]
fn the_api_is_off_unless_written_and_opens_its_own_port_to_its_vlan_only() {
    assert_eq!(site().api, None);
    let config = site_with("# [api]");
    let api = config.api.unwrap();
    assert_eq!((api.listen.to_string().as_str(), api.vlan.unwrap().as_str()), ("10.10.60.1:8443", "management"));
    let clients: Vec<_> = api.clients.values().map(|client| (client.name.as_str(), client.role)).collect();
    assert_eq!(clients, [("alice", ApiRole::Operator), ("grafana", ApiRole::Reader)]);
    for vlan in config.vlans.values() {
        let before = &site().vlans[&vlan.name].input;
        let opened: Vec<_> = vlan.input.iter().filter(|permit| !before.contains(permit)).collect();
        if vlan.name.as_str() == "management" {
            let [permit] = opened[..] else { panic!("{opened:?}") };
            assert_eq!(permit.ports.tcp, [8443..=8443]);
            assert!(permit.ports.udp.is_empty() && permit.ports.protocols.is_empty() && !permit.ports.ping);
            let hosts = permit.hosts.as_ref().unwrap();
            assert!(hosts.contains("10.10.60.1".parse().unwrap()));
            assert!(!hosts.contains("10.10.60.2".parse().unwrap()) && !hosts.contains("10.10.10.1".parse().unwrap()));
        } else {
            assert!(opened.is_empty(), "{opened:?}");
        }
    }
}

#[test]
fn a_tls_offload_opens_its_addresses_to_its_vlans_only() {
    let (before, config) = (site(), site_with("# [[tls_offload]]"));
    let offload = config.tls_offload.values().next().unwrap();
    assert_eq!((offload.listen.len(), offload.backends[1].weight.get()), (2, 2));
    assert_eq!(offload.limits, TlsLimits { connections_per_source: Some(1000), ..TlsLimits::default() });
    assert_eq!(offload.health, BackendHealth::default());
    let [certificate] = offload.certificates.as_slice() else { panic!("{:?}", offload.certificates) };
    assert_eq!(certificate.key, Material::Credential("apps.key".to_owned()));
    for vlan in config.vlans.values() {
        let opened = vlan.input.iter().filter(|permit| !before.vlans[&vlan.name].input.contains(permit));
        let opened: Vec<_> = opened.map(|permit| (permit.service.as_str(), &permit.ports.tcp)).collect();
        let wanted = if ["app", "dmz"].contains(&vlan.name.as_str()) { 2 } else { 0 };
        assert_eq!(opened, vec![("tls_offload/apps", &vec![443..=443]); wanted], "{}", vlan.name);
    }
}

#[test]
fn the_whole_site_allows_the_sixteen_pairs_of_the_documents_and_no_other() {
    let config = site();
    let pairs: BTreeSet<String> = matrix(&config).map(|cell| format!("{}->{}", cell.from, cell.to)).collect();
    let wanted = "app->storage compute->storage dmz->app dmz->management \
                  management->app management->compute management->dev management->dmz management->observability \
                  management->storage \
                  observability->app observability->compute observability->dev observability->dmz \
                  observability->management observability->storage";
    assert_eq!(pairs, wanted.split_whitespace().map(str::to_owned).collect());
    assert!(matrix(&config).all(|cell| cell.enabled));
    for cell in matrix(&config) {
        assert_eq!(cell.allow == Allow::Any, cell.from.as_str() == "management", "{}", cell.name);
    }
}

#[test]
fn the_way_from_the_dmz_to_management_is_narrow() {
    let config = site();
    let narrow: Vec<_> =
        matrix(&config).filter(|cell| cell.to.as_str() == "management" && cell.from.as_str() == "dmz").collect();
    assert_eq!(narrow.len(), 2);
    for cell in narrow {
        let (from, to) = (cell.from_hosts.as_ref().unwrap(), cell.to_hosts.as_ref().unwrap());
        let bastion = from.contains("10.10.99.30".parse().unwrap());
        let jump = to.contains("10.10.60.10".parse().unwrap());
        let wac = to.contains("10.10.60.20".parse().unwrap());
        let Allow::Services(permits) = &cell.allow else { panic!("everything is allowed") };
        let [only] = permits.as_slice() else { panic!("more than one service") };
        assert_eq!((bastion, jump, wac), if bastion { (true, true, false) } else { (false, false, true) });
        assert_eq!(only.ports.tcp, [if bastion { 22..=22 } else { 443..=443 }]);
        assert!(to.contains(if bastion { "fd10:10:60::10" } else { "fd10:10:60::20" }.parse().unwrap()));
    }
}

#[test]
fn what_the_documents_want_beyond_the_matrix_is_named() {
    let config = site();
    let named: BTreeSet<String> = config
        .cells
        .iter()
        .filter(|cell| !cell.name.contains("->"))
        .map(|cell| format!("{} {}->{} {}", cell.name, cell.from, cell.to, if cell.enabled { "on" } else { "off" }))
        .collect();
    let wanted = [
        "ci-to-k8s dev->app off",
        "ci-to-proxmox dev->compute off",
        "git app->dev on",
        "git compute->dev on",
        "log-push compute->observability on",
        "log-push-others app->observability off",
        "log-push-others dev->observability off",
        "log-push-others dmz->observability off",
        "log-push-others storage->observability off",
        "publish-dashboards dmz->observability on",
        "publish-git dmz->dev on",
        "publish-proxmox dmz->compute on",
        "traces app->observability off",
    ];
    assert_eq!(named, wanted.map(str::to_owned).into_iter().collect());
}

#[test]
fn every_cell_of_the_whole_site_cites_its_source() {
    for cell in site().cells.iter().filter(|cell| cell.name != "traces") {
        assert!(
            cell.comment.contains("D2:") || cell.comment.contains("D1:") || cell.comment.contains("D0:"),
            "{}",
            cell.name
        );
    }
}

#[test]
fn the_whole_site_has_its_ports_hosts_and_lines() {
    let config = site();
    assert_eq!(config.vlans.len(), 7);
    assert_eq!(config.ports.len(), 4 + 2 + 4 + 8);
    let reserved = config.ports.values().filter(|port| port.role == PortRole::Reserved).count();
    let unmapped = config.ports.values().filter(|port| port.role == PortRole::Unmapped).count();
    assert_eq!((reserved, unmapped), (2, 8));
    let trunk = config.ports.values().find(|port| port.name.as_str() == "lan2.5-1").unwrap();
    let PortRole::Trunk { native: Some(native), tagged } = &trunk.role else { panic!("{:?}", trunk.role) };
    assert_eq!((native.as_str(), tagged.len()), ("compute", 5));
    assert!(config.hosts.values().all(|host| host.vlan.is_some()));
    assert!(config.vlan_of("10.10.10.10".parse().unwrap()).is_some_and(|vlan| vlan.internet == Internet::None));
    for (wan, id) in config.wans.values().zip(1..) {
        assert_eq!(wan.id.get(), id);
        assert!(Family::ALL.iter().all(|family| wan.gateway(*family).is_some() && wan.source(*family).is_some()));
        assert!(Family::ALL.iter().all(|family| wan.probe.targets.iter().any(|target| target.family == *family)));
        assert!(wan.input.is_empty(), "no inbound ports (D1:158)");
    }
    assert!(config.policies.values().any(|policy| policy.kick == Kick::All));
    assert!(config.asserts.len() >= 20);
}

#[test]
fn the_warnings_of_the_whole_site_are_the_two_it_explains() {
    let parsed = config::parse("site.toml", SITE).unwrap();
    let messages: Vec<_> = parsed.warnings.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(messages, ["8 ports have no role and stay down", "9 services are declared and used nowhere"]);
}

#[test]
fn policies_keep_their_ids_when_others_come_and_go() {
    let with = |names: &[&str]| {
        let policies: Vec<_> = names.iter().map(|name| format!("[policy.{name}]\nmembers = [\"wan1\"]\n")).collect();
        let policies = policies.concat();
        let text = format!(
            "[site]\nname = \"x\"\n[router]\ndefault_policy = \"b\"\n[wan.wan1]\ninterface = \"eth0\"\n\
             addresses = [\"192.0.2.2/24\"]\ngateway = \"192.0.2.1\"\n{policies}"
        );
        let config = config::parse("x", &text).unwrap().config;
        config.policies.values().find(|policy| policy.name.as_str() == "b").unwrap().id
    };
    assert_eq!(with(&["b"]), with(&["a", "b", "c", "voip", "bulk"]));
}

#[test]
fn problems_are_readable_by_machines() {
    let problems = config::parse("x.toml", "[site]\nname = \"x\"\n[vlan.a]\nid = 9\nadresses = []\n").unwrap_err();
    let json = serde_json::to_value(&problems).unwrap();
    assert_eq!(json["file"], "x.toml");
    let unknown = json["problems"].as_array().unwrap().iter().find(|problem| problem["line"] == 5).unwrap();
    assert_eq!(unknown["severity"], "error");
    assert_eq!(unknown["column"], 1);
    assert_eq!(unknown["labels"][0]["text"], "did you mean `addresses`?");
    assert!(unknown["help"].as_str().unwrap().contains("addresses"));
}

#[test]
fn the_model_survives_json() {
    let config = site();
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
}

#[test]
fn marks_have_room_for_120_lines_and_254_policies() {
    let with = |wans: usize, policies: usize| {
        let wans = (1..=wans).map(|n| {
            format!("[wan.w{n}]\ninterface = \"e{n}\"\naddresses = [\"192.0.2.2/24\"]\ngateway = \"192.0.2.1\"\n")
        });
        let policies = (1..=policies).map(|n| format!("[policy.p{n}]\nmembers = [\"w1\"]\n"));
        let text: Vec<String> = wans.chain(policies).collect();
        let head = "[site]\nname = \"x\"\n[router]\ndefault_policy = \"p1\"\n";
        config::parse("x", &format!("{head}{}", text.concat()))
    };
    let config = with(120, 254).unwrap_or_else(|problems| panic!("{problems}")).config;
    let ids: BTreeSet<_> = config.wans.values().map(|wan| wan.id).collect();
    assert_eq!((ids.len(), config.wans.values().map(|wan| wan.id.get()).max()), (120, Some(120)));
    let ids: BTreeSet<_> = config.policies.values().map(|policy| policy.id).collect();
    assert_eq!(ids.len(), 254);
    assert!(ids.iter().all(|id| (1..=254).contains(&id.0)));
    assert!(with(121, 1).unwrap_err().to_string().contains("121 WANs are too many"));
    assert!(with(1, 255).unwrap_err().to_string().contains("255 policies are too many"));
}

#[test]
fn a_wan_gets_its_id_from_itself_then_its_name_then_what_is_free() {
    let wan = |name: &str, more: &str| {
        format!(
            "[wan.{name}]\ninterface = \"{name}\"\naddresses = [\"192.0.2.2/24\"]\ngateway = \"192.0.2.1\"\n{more}\n"
        )
    };
    let text = [
        "[site]\nname = \"x\"\n[policy.all]\nmembers = [\"lte\"]\n".to_owned(),
        wan("lte", ""),
        wan("wan3", ""),
        wan("fibre3", ""),
        wan("dsl", "id = 1"),
        wan("line1", ""),
        wan("line200", ""),
    ];
    let config = config::parse("x", &text.concat()).unwrap_or_else(|problems| panic!("{problems}")).config;
    let ids: Vec<_> = config.wans.values().map(|wan| format!("{}={}", wan.name, wan.id)).collect();
    assert_eq!(ids, ["dsl=1", "fibre3=3", "line1=2", "line200=4", "lte=5", "wan3=6"]);
}

#[test]
fn what_is_left_out_has_a_sane_value() {
    let text = "[site]\nname = \"x\"\n[policy.all]\nmembers = [\"wan1\"]\n[wan.wan1]\ninterface = \"eth0\"\nweight = 7\n\
                addresses = [\"192.0.2.2/24\", \"2001:db8::2/64\"]\ngateway = \"192.0.2.1\"\ngateway6 = \"fe80::1\"\n\
                probe = { targets = [\"icmp 198.51.100.1\"], interval = \"50ms\", latency = { fail = \"80ms\" }, \
                loss = { fail = \"20%\" } }\n";
    let config = config::parse("x", text).unwrap_or_else(|problems| panic!("{problems}")).config;
    let wan = config.wans.values().next().unwrap();
    let probe = &wan.probe;
    // IPv6 has no target of its own, so its gateway is one.
    let targets: Vec<_> = probe.targets.iter().map(ToString::to_string).collect();
    assert_eq!(targets, ["icmp 198.51.100.1", "gateway (IPv6)"]);
    assert_eq!((probe.interval, probe.timeout), (Duration::from_millis(50), Duration::from_millis(100)));
    assert_eq!((probe.fall.get(), probe.rise.get(), probe.quorum.get(), probe.window), (3, 5, 1, 100));
    assert_eq!((probe.hold, probe.hold_max), (Duration::from_secs(10), Duration::from_mins(10)));
    assert_eq!(probe.latency.map(|pair| pair.recover), Some(Duration::from_millis(40)));
    assert_eq!(probe.loss.map(|pair| pair.recover), Some(10));
    let policy = config.policies.values().next().unwrap();
    assert_eq!(config.router.default_policy.as_ref(), Some(&policy.name), "the only policy is the default");
    assert_eq!(policy.members[0].weight.get(), 7, "a member without a weight has its line's");
    assert_eq!((policy.kick, policy.members[0].tier.0), (Kick::Tcp, 1));
}

#[test]
fn targets_are_read_in_every_form() {
    let text = r#"
        [site]
        name = "x"
        [policy.all]
        members = ["wan1"]
        [probe]
        targets = [
            "gateway", "icmp 198.51.100.1", "tcp 198.51.100.1:443", "tcp [2001:db8:9::1]:853", "dns 198.51.100.2 example.org",
            "dns [2001:db8:9::1]:5353 example.org", { http = "https://example.org:8443/up?x=1", at = "198.51.100.3", status = 204 },
            { http = "http://example.org", at = "198.51.100.3" },
        ]
        [wan.wan1]
        interface = "eth0"
        addresses = ["192.0.2.2/24"]
        gateway = "192.0.2.1"
    "#;
    let config = config::parse("x", text).unwrap_or_else(|problems| panic!("{problems}")).config;
    let targets: Vec<_> = config.wans.values().flat_map(|wan| &wan.probe.targets).map(ToString::to_string).collect();
    // The line has no IPv6, so the site-wide targets of that family are passed over.
    let wanted = [
        "gateway (IPv4)",
        "icmp 198.51.100.1",
        "tcp 198.51.100.1:443",
        "dns 198.51.100.2:53 example.org",
        "https example.org/up?x=1 at 198.51.100.3:8443",
        "http example.org/ at 198.51.100.3:80",
    ];
    assert_eq!(targets, wanted);
}

/// 200 VLANs and 5,000 rules. A quadratic check takes minutes here, in a debug build on a busy machine.
#[test]
fn five_thousand_rules_are_read_in_good_time() {
    use std::fmt::Write as _;
    let mut text = "[site]\nname = \"large\"\n".to_owned();
    for vlan in 0..200 {
        writeln!(text, "[vlan.v{vlan}]\nid = {}\naddresses = [\"10.{vlan}.0.1/16\"]\naccess = [\"p{vlan}\"]", vlan + 1)
            .unwrap();
    }
    for rule in 0..5_000 {
        let (from, to) = (rule % 3, 100 + rule % 2);
        let host = format!("10.{to}.{}.{}", rule / 200, 2 + rule % 200);
        writeln!(
            text,
            "[[cell]]\nfrom = \"v{from}\"\nto = \"v{to}\"\nhosts = [\"{host}\"]\nservices = [\"tcp/{}\"]",
            1 + rule % 4_000
        )
        .unwrap();
    }
    let start = Instant::now();
    let parsed = config::parse("large.toml", &text).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(parsed.config.cells.len(), 5_000);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// With a section of the example out of its comment.
fn site_with(section: &str) -> Config {
    let section = SITE.find(section).and_then(|start| SITE[start..].split("\n\n").next());
    let section: Vec<_> = section
        .unwrap_or_else(|| panic!("it is not there"))
        .lines()
        .map(|line| line.trim_start_matches("# "))
        .collect();
    let text = format!("{SITE}\n{}", section.join("\n"));
    config::parse("site.toml", &text).unwrap_or_else(|problems| panic!("{problems}")).config
}

fn site() -> Config {
    config::parse("spectrum-site.toml", SITE).unwrap_or_else(|problems| panic!("{problems}")).config
}

/// The entries of the matrix: those without a name of their own.
fn matrix(config: &Config) -> impl Iterator<Item = &config::model::Cell> {
    config.cells.iter().filter(|cell| cell.name.contains("->"))
}

#[test]
fn vlans_are_handed_what_the_file_says_and_nothing_without_it() {
    let config = config::parse("minimal.toml", MINIMAL).unwrap().config;
    assert_eq!((config.dhcp, config.ra, config.ntp), (None, None, None));
    let text = "
[site]
name = \"office\"
[dhcp]
lease = \"6h\"
domain = \"Office.example.org\"
[ra]
[ntp]
servers = [\"192.0.2.1\", \"ntp.example.org\"]
set_clock = false
[vlan.office]
id = 10
addresses = [\"10.0.10.1/24\", \"fd10::1/64\"]
access = [\"eth1\"]
input = [\"dhcp\", \"dns\", \"ntp\"]
dhcp = { pool = [\"10.0.10.100-149\", \"fd10::1000-fd10::1fff\"], mtu = 1400 }
[vlan.guests]
id = 20
addresses = [\"10.0.20.1/24\", \"fd20::1/64\"]
access = [\"eth2\"]
input = [\"dhcp\"]
dhcp = { lease = \"30m\", domain = \"guests.example.org\" }
ra = false
[vlan.lab]
id = 30
addresses = [\"10.0.30.1/24\"]
access = [\"eth3\"]
[host.printer]
addresses = [\"10.0.20.5-9\", \"fd20::5\"]
mac = \"02-00-5E-0-0-7\"
[host.camera]
address = \"10.0.20.4\"
mac = \"02:00:5e:00:00:08\"
[host.desks]
address = \"10.0.10.120-130\"
";
    let parsed = config::parse("site.toml", text).unwrap_or_else(|problems| panic!("{problems}"));
    let (dhcp, ra, ntp) = (parsed.config.dhcp.unwrap(), parsed.config.ra.unwrap(), parsed.config.ntp.unwrap());
    let of = |name: &str| &dhcp.vlans[&name.parse().unwrap()];
    assert_eq!(dhcp.vlans.len(), 2);
    let office = of("office");
    assert_eq!(office.pool4, ["10.0.10.100".parse().unwrap()..="10.0.10.149".parse().unwrap()]);
    assert_eq!(office.pool6, ["fd10::1000".parse().unwrap()..="fd10::1fff".parse().unwrap()]);
    assert_eq!((office.lease, office.mtu), (Duration::from_hours(6), Some(1400)));
    assert_eq!((office.domain.as_deref(), office.reservations.len()), (Some("office.example.org"), 0));
    let guests = of("guests");
    assert_eq!((guests.lease, guests.domain.as_deref()), (Duration::from_mins(30), Some("guests.example.org")));
    let reserved: Vec<_> = guests.reservations.iter().map(|one| (one.host.as_str(), one.mac.to_string())).collect();
    assert_eq!(reserved, [("camera", "02:00:5e:00:00:08".to_owned()), ("printer", "02:00:5e:00:00:07".to_owned())]);
    let printer = &guests.reservations[1];
    assert_eq!(printer.address4, Some("10.0.20.5".parse().unwrap()));
    assert_eq!(printer.address6, Some("fd20::5".parse().unwrap()));
    assert_eq!(ra.vlans, ["office".parse().unwrap()]);
    assert_eq!((ntp.servers.len(), ntp.set_clock), (2, false));
    assert_eq!(ntp.vlans, ["office".parse().unwrap()]);
}
