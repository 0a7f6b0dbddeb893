//! Egress by name: whoever was just answered gets through, nobody else does, and a dead line keeps no name from being
//! answered for. Real clients of DNS, a resolver of the Internet with short-lived answers, chains and many addresses.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use nix::sys::signal::Signal;
use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::netns::{Netns, run};
use tests::resolver::{Asked, Resolver, addresses, ask_tcp};
use tests::traffic::{Answer, Probe, probe};
use tests::watch::{status, wait};

const SITE: &str = include_str!("../../config/examples/minimal.toml");
const NAMES: &str = "
[egress.arc]
names = [\"login.example.com\", \"*.blob.example.net\"]
ports = [\"tcp/443\"]

[dns]
upstreams = [\"198.51.100.9:8088\"]
private   = [\"intern.example.com\"]
";
const ROUTER: &str = "10.0.10.1:53";
const PATIENCE: Duration = Duration::from_secs(2);

#[test]
fn who_was_just_answered_gets_through_and_nobody_else() {
    let Some(lab) = lab() else { return };
    let resolver = Resolver::start(&lab, reply).unwrap();
    let inside = lab.host(10);
    let mut seen = std::collections::BTreeSet::new();
    let begun = Instant::now();
    let mut asked = 0;
    // Answers live for a second or two, so that most are other addresses than the time before.
    while begun.elapsed() < Duration::from_secs(12) {
        let name = ["login.example.com", "a.blob.example.net", "b.c.blob.example.net"][asked % 3];
        let (code, addresses) = ask(&inside, ROUTER, name);
        assert_eq!(code, ResponseCode::NoError, "{name}");
        for address in addresses {
            let answer = probe(&inside, None, address, Probe::Tcp(443), PATIENCE).unwrap();
            assert!(answer.is_open(), "{address}, which {name} was just answered with: {answer:?}");
            seen.insert(address);
        }
        asked += 1;
    }
    println!("{asked} questions, {} addresses, {} asked outside", seen.len(), resolver.questions());
    assert!(seen.len() > 10, "{seen:?}");
    // The trap of caches: the answer is long over, and who was told it may still use it.
    for address in &seen {
        assert!(probe(&inside, None, *address, Probe::Tcp(443), PATIENCE).unwrap().is_open(), "{address}");
    }
    // Other ports, other addresses, other names.
    let known = *seen.first().unwrap();
    assert_eq!(probe(&inside, None, known, Probe::Tcp(80), PATIENCE).unwrap(), Answer::Silent);
    let stranger: IpAddr = "198.51.100.200".parse().unwrap();
    assert_eq!(probe(&inside, None, stranger, Probe::Tcp(443), PATIENCE).unwrap(), Answer::Silent);
    let (code, addresses) = ask(&inside, ROUTER, "www.elsewhere.example");
    assert_eq!((code, addresses.len()), (ResponseCode::NoError, 1));
    assert_eq!(probe(&inside, None, addresses[0], Probe::Tcp(443), PATIENCE).unwrap(), Answer::Silent);

    let told = explain(&lab, &known.to_string());
    assert!(told.contains("allowed") && told.contains("egress set arc: it is in by "), "{told}");
    let told = explain(&lab, "198.51.100.200");
    assert!(told.contains("denied") && !told.contains("it is in by"), "{told}");
    let dns = status(&lab).unwrap()["dns"].clone();
    assert!(dns["named"]["arc"].as_u64() >= Some(seen.len() as u64), "{dns}");
    assert_eq!(dns["trouble"], serde_json::Value::Null, "{dns}");
}

#[test]
fn questions_for_somebody_else_are_answered_here_and_the_site_has_names_of_its_own() {
    let Some(lab) = lab() else { return };
    let _resolver = Resolver::start(&lab, reply).unwrap();
    let inside = lab.host(10);
    // A resolver outside that the VLAN may not ask: the answer is the router's, and opens the way.
    let (code, addresses) = ask(&inside, "198.51.100.77:53", "c.blob.example.net");
    assert_eq!(code, ResponseCode::NoError);
    assert!(probe(&inside, None, addresses[0], Probe::Tcp(443), PATIENCE).unwrap().is_open());
    assert_eq!(ask(&inside, ROUTER, "printer.home.arpa"), (ResponseCode::NoError, vec!["10.0.20.5".parse().unwrap()]));
    assert_eq!(ask(&inside, ROUTER, "router.home.arpa").1, vec!["10.0.10.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(ask(&inside, ROUTER, "nobody.home.arpa").0, ResponseCode::NXDomain);
    // Somebody outside who tells of the inside is believed for the names of the file alone.
    assert_eq!(ask(&inside, ROUTER, "rebind.example.com"), (ResponseCode::NoError, Vec::new()));
    assert_eq!(ask(&inside, ROUTER, "intern.example.com").1, vec!["10.0.20.5".parse::<IpAddr>().unwrap()]);
    // Over TCP, and what is too long for a datagram.
    let all = ask_tcp(&inside, ROUTER, "many.blob.example.net", RecordType::A).unwrap();
    assert_eq!(all.answers.len(), 40);
    let cut = datagram(&inside, ROUTER, "many.blob.example.net", PATIENCE);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
}

#[test]
fn a_dead_line_keeps_no_name_from_being_answered_for() {
    let Some(mut lab) = lab() else { return };
    let resolver = Resolver::start(&lab, reply).unwrap();
    let inside = lab.host(10);
    let mut slowest = Duration::ZERO;
    for number in [1, 2] {
        lab.fail(number, Fault::Blackhole).unwrap();
        for n in 0..40 {
            let begun = Instant::now();
            let name = format!("n{number}-{n}.blob.example.net");
            let told = datagram(&inside, ROUTER, &name, Duration::from_secs(5));
            assert_eq!(told.metadata.response_code, ResponseCode::NoError, "{name}");
            slowest = slowest.max(begun.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        lab.heal(number).unwrap();
        tests::demo::wait_until_good(&lab, Duration::from_secs(20)).unwrap();
    }
    println!("the slowest answer took {slowest:?}; {} asked outside", resolver.questions());
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[test]
fn what_names_stand_for_outlives_the_daemon_and_a_table_that_was_deleted() {
    let Some(mut lab) = lab() else { return };
    let resolver = Resolver::start(&lab, reply).unwrap();
    let inside = lab.host(10);
    let (_, addresses) = ask(&inside, ROUTER, "d.blob.example.net");
    let opens = |address| probe(&inside, None, address, Probe::Tcp(443), PATIENCE).unwrap().is_open();
    assert!(opens(addresses[0]));
    let kept = lab.state_directory().join("dns.json");
    wait("it is written down", || Ok(std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("d.blob"))))
        .unwrap();
    lab.stop_router(Signal::SIGKILL).unwrap();
    assert!(opens(addresses[0]), "the table does not need the daemon");
    drop(resolver);
    // Nobody answers any more; what a stop wrote down is there again.
    lab.start_router().unwrap();
    tests::demo::wait_until_good(&lab, Duration::from_secs(20)).unwrap();
    assert!(opens(addresses[0]));
    let root = tests::root::Root::find().unwrap();
    run(root.command(&lab.router(), "nft").args(["delete", "table", "inet", "quadway"])).unwrap();
    wait("the table is back, and what names stand for is in it", || Ok(opens(addresses[0]))).unwrap();
}

fn lab() -> Option<Temporary> {
    let mut text = SITE.replacen("internet  = \"any\"", "internet  = [\"arc\"]", 1);
    text.push_str(NAMES);
    Temporary::routed(&text, 2, false).unwrap()
}

fn explain(lab: &Lab, to: &str) -> String {
    let told = lab.routerctl().unwrap().args(["explain", "10.0.10.7", to, "tcp/443"]).output().unwrap();
    String::from_utf8(told.stdout).unwrap()
}

fn ask(from: &Netns, server: &str, name: &str) -> (ResponseCode, Vec<IpAddr>) {
    let told = datagram(from, server, name, Duration::from_secs(6));
    (told.metadata.response_code, addresses(&told.answers).into_iter().map(|(address, _)| address).collect())
}

fn datagram(from: &Netns, server: &str, name: &str, patience: Duration) -> Message {
    tests::resolver::ask(from, server, name, RecordType::A, patience).unwrap()
}

/// Whatever the Internet's resolver is asked has an address, another each time, for a second or two.
fn reply(asked: &Asked<'_>, told: &mut Message) {
    let (query, number) = (asked.query, asked.number);
    if query.query_type() != RecordType::A {
        return;
    }
    let text = query.name().to_lowercase().to_ascii();
    let at = |number: u64| Ipv4Addr::new(198, 51, 100, 100 + u8::try_from(number % 40).unwrap());
    let address = |name: &Name, ttl, address: Ipv4Addr| Record::from_rdata(name.clone(), ttl, RData::A(address.into()));
    let ttl = u32::try_from(1 + number % 2).unwrap();
    if text.starts_with("many.") {
        if asked.datagram {
            told.metadata.truncation = true;
        } else {
            told.answers.extend((0..40).map(|n| address(query.name(), 5, at(n))));
        }
    } else if text.starts_with("rebind.") || text.starts_with("intern.") {
        told.answers.push(address(query.name(), ttl, Ipv4Addr::new(10, 0, 20, 5)));
    } else if text.starts_with("www.elsewhere") {
        told.answers.push(address(query.name(), ttl, Ipv4Addr::new(198, 51, 100, 201)));
    } else {
        // A chain of two, as content networks have them.
        let names = ["edge.example.test.", "pop.edge.example.test."].map(|name| Name::from_ascii(name).unwrap());
        let alias =
            |from: &Name, to: &Name| Record::from_rdata(from.clone(), 5, RData::CNAME(rdata::CNAME(to.clone())));
        told.answers.push(alias(query.name(), &names[0]));
        told.answers.push(alias(&names[0], &names[1]));
        told.answers.extend([address(&names[1], ttl, at(number)), address(&names[1], ttl, at(number + 7))]);
    }
}
