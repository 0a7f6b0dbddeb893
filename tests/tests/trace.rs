//! Real packets are followed in names: allowed ones, denied ones, those of the fast path; and nothing is left of it when
//! it is over, however it ends.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary};
use tests::netns::run;
use tests::root::Root;
use tests::traffic::{echoes, open};
use tests::watch::{status, wait};

/// `office` may print in `guests`; `cameras` may nothing, and nobody may anything there, which the ports deny already.
const SITE: &str = concat!(
    include_str!("../../config/examples/minimal.toml"),
    "\n[vlan.cameras]\nid = 30\naddresses = [\"10.0.30.1/24\"]\naccess = [\"eth4\"]\ninternet = \"none\"\n",
    "[host.desk]\naddress = \"10.0.10.7\"\n",
);
const PRINTER: &str = "10.0.20.5:631";
const PRINTER6: &str = "[fd10:10:20::5]:631";
const WEB: &str = "198.51.100.1:443";
const TABLE: &str = "quadway-trace";
const PATIENCE: Duration = Duration::from_secs(3);
const DENIED: Duration = Duration::from_millis(300);

#[test]
fn packets_are_followed_in_names_and_nothing_is_left_of_it() {
    let Some(mut lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    assert_eq!(status(&lab).unwrap()["fast_path"]["on"], true);
    what_cannot_be_followed_is_refused(&lab);
    an_allowed_flow(&lab);
    a_flow_to_the_internet(&lab);
    a_denied_flow(&lab);
    a_flow_that_the_ports_deny(&lab);
    a_flow_of_the_router(&lab);
    a_flow_in_the_fast_path(&lab);
    nothing_to_follow(&lab);
    there_is_one_at_a_time_and_it_ends_with_its_client(&lab);
    let status = status(&lab).unwrap();
    assert_eq!(status["applies"]["drift_repaired"], 0, "{status}");
    assert_eq!(status["foreign_marks"], Value::Array(vec![]), "{status}");
    it_ends_with_the_daemon(&mut lab);
}

/// Between VLANs, and out by three lines: as it is, behind the line's address, and behind a prefix of the line.
#[test]
fn packets_of_ipv6_are_followed_with_and_without_nat() {
    let Some(lab) = Temporary::routed(&site6(), 3, false).unwrap() else { return };
    for (number, net) in [(1, "fd10:10:10::/64"), (3, "2001:db8:aa03::/64")] {
        lab.internet().ip(&format!("route add {net} via fd00:100:{number}::2\n")).unwrap();
        let own = lab.site().wans[number - 1].router6.addr();
        lab.isp(u8::try_from(number).unwrap()).ip(&format!("route add {net} via {own}\n")).unwrap();
    }
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    a_flow_between_vlans6(&lab);
    let masked = lab.site().wans[1].router6.addr().to_string();
    for (port, wan, known_as) in
        [(5001, "wan1", None), (5002, "wan2", Some(masked.as_str())), (5003, "wan3", Some("2001:db8:aa03::7"))]
    {
        a_flow_to_the_internet6(&lab, port, wan, known_as);
    }
    a_denied_flow6(&lab);
    a_flow_of_the_router6(&lab);
    no_table(&lab);
}

fn a_flow_between_vlans6(lab: &Lab) {
    let following = Following::begin(lab, &["desk6", "printer6", "tcp/631", "--count", "3"]);
    let mut stream = connect(lab, 10, PRINTER6);
    let told = following.done();
    for part in [
        "explain says: allowed: cell office -> guests, entry `printing6` (line",
        "-> printer6:631 comes in by vlan10 (office)",
        "#1   allowed: cell office -> guests, entry `printing6` (line",
        "; out by vlan20 (guests)",
        "#2   tcp printer6:631 -> desk6:",
        "#2   forwarded: its flow is known; out by vlan10 (office)",
        "3 packets followed: 3 forwarded\n",
        "flow [fd10:10:10::7]:",
        " -> [fd10:10:20::5]:631",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    wait("the flow is cached", || Ok(status(lab)?["fast_path"]["flows"]["v6"] == 2)).unwrap();
    let following = Following::begin(lab, &["desk6", "printer6", "tcp/631", "--for", "2s"]);
    for _ in 0..10 {
        assert!(echoes(&mut stream, PATIENCE));
    }
    let told = following.done();
    assert!(
        told.contains("in the fast path: in by v10, out by v20: ") && told.contains("0 packets followed\n"),
        "{told}"
    );
    let counted = told.split("the fast path forwarded ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert!(counted.parse::<u64>().unwrap() >= 10, "{told}");
}

fn a_flow_to_the_internet6(lab: &Lab, port: u16, wan: &str, known_as: Option<&str>) {
    let service = format!("tcp/{port}");
    let following = Following::begin(lab, &["desk6", "2001:db8:100::1", &service, "--count", "2", "--json"]);
    let (stream, greeting) =
        open(&lab.host(10), format!("[2001:db8:100::1]:{port}").parse().unwrap(), PATIENCE).unwrap();
    let told = following.done();
    drop(stream);
    let seen = greeting.peer.to_string();
    assert_eq!(seen, known_as.unwrap_or("fd10:10:10::7"), "what the lab is set up for");
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (report, steps) = lines.split_last().unwrap();
    let texts: Vec<_> = steps.iter().filter_map(|line| line["step"]["text"].as_str()).collect();
    let report = &report["report"];
    let [first, second] = report["packets"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((&first["wan"], &first["fate"], &first["there"]), (&wan.into(), &"forwarded".into(), &true.into()));
    assert_eq!((&second["fate"], &second["there"]), (&"forwarded".into(), &false.into()), "{report}");
    assert_eq!((&first["differs"], &second["differs"]), (&false.into(), &false.into()), "{report}");
    assert!(texts.iter().any(|text| text.ends_with(&format!(" comes in by {wan}"))), "{texts:?}");
    let nat = texts.iter().any(|text| text.starts_with(&format!("NAT of {wan}")));
    assert_eq!(nat, known_as.is_some(), "{texts:?}");
    let flow = &report["flows"][0];
    assert_eq!(flow["wan"], wan, "{report}");
    let told = flow["known_as"].as_str();
    assert_eq!(told.is_some(), known_as.is_some(), "{report}");
    assert!(known_as.is_none_or(|known| told.unwrap().contains(known)), "{report}");
}

fn a_denied_flow6(lab: &Lab) {
    let following = Following::begin(lab, &["printer6", "desk6", "tcp/443", "--for", "2s"]);
    assert!(open(&lab.host(20), "[fd10:10:10::7]:443".parse().unwrap(), DENIED).is_err());
    let told = following.done();
    assert!(told.contains("tcp printer6:") && told.contains(" -> desk6:443 comes in by vlan20 (guests)"), "{told}");
    assert!(told.contains("denied: cell guests -> office: default deny, no entry for this pair"), "{told}");
    assert!(told.contains(" dropped") && !told.contains("forwarded"), "{told}");
}

fn a_flow_of_the_router6(lab: &Lab) {
    let following = Following::begin(lab, &["desk6", "fd10:10:10::1", "ping", "--count", "2"]);
    run(lab.host(10).command("ping").args(["-c", "1", "-W", "2", "fd10:10:10::1"])).unwrap();
    let told = following.done();
    assert!(told.contains("#1   taken by the router: input of office, service ping (line"), "{told}");
    assert!(told.contains("#2   answer to a ping fd10:10:10::1 -> desk6 is sent by the router itself"), "{told}");
    assert!(told.contains("2 packets followed: 1 taken by the router, 1 sent by the router"), "{told}");
}

fn site6() -> String {
    let plain =
        include_str!("../../config/examples/minimal.toml").replace("[wan.wan1]\n", "[wan.wan1]\nnat6 = \"none\"\n");
    let line = |number: u8| {
        format!(
            "[policy.line{number}]\nmembers = [\"wan{number}\"]\n\
             [[steer]]\nname = \"line{number}\"\nports = [\"tcp/500{number}\"]\npolicy = \"line{number}\"\n"
        )
    };
    plain
        + "\n[wan.wan3]\nnat6 = { internal = \"fd10:10:10::/64\", external = \"2001:db8:aa03::/64\" }\n\
           [host.desk]\naddress = \"10.0.10.7\"\n[host.desk6]\naddress = \"fd10:10:10::7\"\n[host.printer6]\naddress = \"fd10:10:20::5\"\n\
           [[cell]]\nname = \"printing6\"\nfrom = \"office\"\nto = \"guests\"\nhosts = [\"printer6\"]\n\
           services = [\"tcp/631\"]\n"
        + &[1, 2, 3].map(line).concat()
}

fn what_cannot_be_followed_is_refused(lab: &Lab) {
    for (arguments, part) in [
        (&["nobody", "printer"] as &[&str], "`nobody` is neither an address nor a host"),
        (&["desk", "printer", "tcp"], "`tcp` is no protocol"),
        (&["desk", "printer", "--for", "11m"], "a tenth of a second to ten minutes"),
        (&["desk", "printer", "--count", "0"], "1 to 100 packets"),
    ] {
        let refused = trace(lab, arguments).output().unwrap();
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && told.contains(part), "{arguments:?}: {told}");
    }
}

fn an_allowed_flow(lab: &Lab) {
    let office = address(lab, 10);
    let following = Following::begin(lab, &[&office, "printer", "tcp/631", "--count", "3"]);
    let listing = table(lab).unwrap();
    println!("{listing}");
    for part in
        ["flags owner", "ip saddr 10.0", "tcp dport 631", "ct original ip daddr 10.0.20.5", "limit rate 1/day burst 3"]
    {
        assert!(listing.contains(part), "{part} is not in {listing}");
    }
    let stream = connect(lab, 10, PRINTER);
    let told = following.done();
    drop(stream);
    assert!(told.contains("explain says: allowed: cell office -> guests, entry `office->guests` (line"), "{told}");
    assert!(told.contains("-> printer:631 comes in by vlan10 (office)"), "{told}");
    assert!(told.contains("#1   allowed: cell office -> guests, entry `office->guests` (line"), "{told}");
    assert!(told.contains("; out by vlan20 (guests)"), "{told}");
    assert!(told.contains("#2   tcp printer:631 -> ") && told.contains("comes in by vlan20 (guests)"), "{told}");
    assert!(told.contains("#2   forwarded: its flow is known; out by vlan10 (office)"), "{told}");
    assert!(told.contains("3 packets followed: 3 forwarded\n"), "{told}");
    no_table(lab);
}

fn a_flow_to_the_internet(lab: &Lab) {
    let office = address(lab, 10);
    let following = Following::begin(lab, &[&office, "198.51.100.1", "tcp/443", "--count", "2", "--json"]);
    let stream = connect(lab, 10, WEB);
    let told = following.done();
    drop(stream);
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (report, steps) = lines.split_last().unwrap();
    let texts: Vec<_> = steps.iter().filter_map(|line| line["step"]["text"].as_str()).collect();
    println!("{texts:#?}");
    let report = &report["report"];
    let [first, second] = report["packets"].as_array().unwrap().as_slice() else { panic!("{report}") };
    let wan = first["wan"].as_str().unwrap();
    for part in
        [&format!("policy balanced chooses {wan}"), "allowed: office may open anything", &format!("NAT of {wan}")]
    {
        assert!(texts.iter().any(|text| text.starts_with(part)), "{part}: {texts:?}");
    }
    assert_eq!(
        (&first["fate"], &first["there"], &first["policy"]),
        (&"forwarded".into(), &true.into(), &"balanced".into())
    );
    assert_eq!((&second["fate"], &second["there"]), (&"forwarded".into(), &false.into()), "{report}");
    assert!(texts.iter().any(|text| text.ends_with(&format!(" comes in by {wan}"))), "{texts:?}");
    let flow = &report["flows"][0];
    assert!(flow["wan"] == wan && flow["known_as"].is_string(), "{report}");
    no_table(lab);
}

fn a_denied_flow(lab: &Lab) {
    let (office, guest) = (address(lab, 10), address(lab, 20));
    let following = Following::begin(lab, &[&guest, &office, "tcp/443", "--for", "2s"]);
    assert!(open(&lab.host(20), format!("{office}:443").parse().unwrap(), DENIED).is_err());
    let told = following.done();
    assert!(told.contains("comes in by vlan20 (guests)"), "{told}");
    assert!(told.contains("denied: cell guests -> office: default deny, no entry for this pair"), "{told}");
    assert!(told.contains(" followed: ") && told.contains(" dropped") && !told.contains("forwarded"), "{told}");
}

fn a_flow_that_the_ports_deny(lab: &Lab) {
    let camera = address(lab, 30);
    let following = Following::begin(lab, &[&camera, "printer", "tcp/631", "--for", "2s"]);
    assert!(open(&lab.host(30), PRINTER.parse().unwrap(), DENIED).is_err());
    let told = following.done();
    assert!(told.contains("dropped at its port, before any rule: cell cameras -> guests: default deny"), "{told}");
    assert!(told.contains("0 packets followed; ") && told.contains("dropped at the port"), "{told}");
}

fn a_flow_of_the_router(lab: &Lab) {
    let office = address(lab, 10);
    let following = Following::begin(lab, &[&office, "10.0.10.1", "ping", "--count", "2"]);
    run(lab.host(10).command("ping").args(["-c", "1", "-W", "2", "10.0.10.1"])).unwrap();
    let told = following.done();
    assert!(told.contains("#1   taken by the router: input of office, service ping (line"), "{told}");
    assert!(
        told.contains("#2   answer to a ping 10.0.10.1 -> ") && told.contains("is sent by the router itself"),
        "{told}"
    );
    assert!(told.contains("2 packets followed: 1 taken by the router, 1 sent by the router"), "{told}");
}

fn a_flow_in_the_fast_path(lab: &Lab) {
    let office = address(lab, 10);
    let mut stream = connect(lab, 10, PRINTER);
    wait("the flow is cached", || Ok(status(lab)?["fast_path"]["flows"]["v4"] == 2)).unwrap();
    let following = Following::begin(lab, &[&office, "printer", "tcp/631", "--for", "2s"]);
    for _ in 0..10 {
        assert!(echoes(&mut stream, PATIENCE));
    }
    let told = following.done();
    assert!(told.contains("in the fast path: in by v10, out by v20: "), "{told}");
    assert!(told.contains("0 packets followed\n"), "{told}");
    let counted = told.split("the fast path forwarded ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert!(counted.parse::<u64>().unwrap() >= 10, "{told}");

    let following = Following::begin(lab, &[&office, "printer", "tcp/631", "--through-rules", "--count", "4"]);
    let mut echoed = 0;
    while echoed < 20 && echoes(&mut stream, PATIENCE) {
        echoed += 1;
        thread::sleep(Duration::from_millis(20));
    }
    let told = following.done();
    assert_eq!(echoed, 20, "the flow goes on: {told}");
    assert!(told.contains("taken out of the fast path"), "{told}");
    assert!(told.contains("forwarded: its flow is known; out by vlan20 (guests)"), "{told}");
    assert!(told.contains("4 packets followed: 4 forwarded"), "{told}");

    wait("the flow is in the fast path again", || Ok(cached(lab, &office))).unwrap();
    let following = Following::begin(lab, &[&office, "printer", "tcp/631", "--for", "1s"]);
    for _ in 0..10 {
        assert!(echoes(&mut stream, PATIENCE));
    }
    let told = following.done();
    assert!(told.contains("0 packets followed\n") && told.contains("the fast path forwarded "), "{told}");
}

/// Whether the fast path has the flow from there to the printer, as a trace finds it.
fn cached(lab: &Lab, office: &str) -> bool {
    let told = Following::begin(lab, &[office, "printer", "tcp/631", "--for", "100ms", "--json"]).done();
    let first: Value = serde_json::from_str(told.lines().next().unwrap()).unwrap();
    first["following"]["flows"][0]["fast_path"].is_object()
}

fn nothing_to_follow(lab: &Lab) {
    let told = run(&mut trace(lab, &["desk", "198.51.100.1", "udp/9", "--for", "300ms"])).unwrap();
    assert!(told.contains("no packet of it came in 300ms: does 10.0.10.7 send it by way of 10.0.10.1?"), "{told}");
}

fn there_is_one_at_a_time_and_it_ends_with_its_client(lab: &Lab) {
    let mut following = Following::begin(lab, &["desk", "printer", "--for", "1m"]);
    let second = trace(lab, &["desk", "printer"]).output().unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("another trace is under way"), "{second:?}");
    assert!(table(lab).is_some());
    // Nobody else may change or take it.
    assert!(run(nft(lab).args(["delete", "table", "inet", TABLE])).is_err());
    following.client.kill().unwrap();
    following.client.wait().unwrap();
    no_table(lab);
}

fn it_ends_with_the_daemon(lab: &mut Lab) {
    let mut following = Following::begin(lab, &["desk", "printer", "--for", "1m"]);
    assert!(table(lab).is_some());
    lab.stop_router(Signal::SIGKILL).unwrap();
    no_table(lab);
    assert!(!following.client.wait().unwrap().success());
    lab.start_router().unwrap();
    wait_until_good(lab, Duration::from_mins(1)).unwrap();
    no_table(lab);
}

/// A trace whose packets are marked.
struct Following {
    client: Child,
    told: BufReader<ChildStdout>,
    first: String,
}

impl Following {
    fn begin(lab: &Lab, arguments: &[&str]) -> Self {
        let mut client = trace(lab, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(client.stdout.take().unwrap());
        let mut first = String::new();
        told.read_line(&mut first).unwrap();
        assert!(first.contains("following"), "{first}");
        Self { client, told, first }
    }

    fn done(mut self) -> String {
        let mut text = self.first;
        self.told.read_to_string(&mut text).unwrap();
        println!("{text}");
        assert!(self.client.wait().unwrap().success());
        text
    }
}

fn trace(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = lab.routerctl().unwrap();
    command.arg("trace").args(arguments);
    command
}

fn connect(lab: &Lab, vlan: u16, to: &str) -> TcpStream {
    open(&lab.host(vlan), to.parse().unwrap(), PATIENCE).unwrap().0
}

fn address(lab: &Lab, vlan: u16) -> String {
    let vlan = lab.site().vlans.iter().find(|other| other.id == vlan).unwrap();
    vlan.address(false).unwrap().to_string()
}

fn no_table(lab: &Lab) {
    wait("the table of the trace is gone", || Ok(table(lab).is_none())).unwrap();
}

fn table(lab: &Lab) -> Option<String> {
    run(nft(lab).args(["list", "table", "inet", TABLE])).ok()
}

fn nft(lab: &Lab) -> Command {
    Root::find().unwrap().command(&lab.router(), "nft")
}
