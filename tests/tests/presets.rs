//! Every name of the presets for cloudflared and Azure Arc, answered with what content networks answer with: chains, hints,
//! forty addresses, others each time a TTL of 5 to 60 s is over. Whoever was told an address gets there at once and until
//! its time is over, by both families; nobody gets anywhere else.
//!
//! `QUADWAY_SOAK=1800 cargo test -p tests --test presets -- --nocapture` does it for half an hour.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use tests::lab::{Lab, Temporary};
use tests::resolver::{Asked, Resolver, addresses, ask};
use tests::traffic::{Answer, Probe, probe};
use tests::watch::status;

const SITE: &str = include_str!("../../config/examples/minimal.toml");
const NAMES: &str = "
[egress.tunnel]
preset = \"cloudflared\"

[egress.arc]
preset = \"azure-arc\"

[dns]
upstreams = [\"198.51.100.9:8088\"]
";
const ROUTER: &str = "10.0.10.1:53";

#[test]
fn no_first_connection_to_what_was_just_answered_is_refused() {
    let mut text = SITE.replacen("internet  = \"any\"", "internet  = [\"tunnel\", \"arc\"]", 1);
    text = text.replacen("\"10.0.10.1/24\"", "\"10.0.10.1/24\", \"fd10::1/64\"", 1) + NAMES;
    let Some(lab) = Temporary::routed(&text, 2, false).unwrap() else { return };
    let span = std::env::var("QUADWAY_SOAK").ok().and_then(|text| text.parse().ok()).map_or(SPAN, Duration::from_secs);
    let names = names(&text);
    assert!(names.len() > 20, "{names:?}");
    let internet = Mutex::new(Internet::default());
    let resolver = Resolver::start(&lab, move |asked, told| internet.lock().unwrap().reply(asked, told)).unwrap();
    let seen = Seen::default();
    let begun = Instant::now();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (lab, names, seen) = (&lab, &names, &seen);
            scope.spawn(move || live(lab, names, seen, client, begun + span));
        }
    });
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{:?}: {} names, {} questions ({} outside), {} addresses, {} first connections, {} more while the answer counted, \
         {} to elsewhere",
        begun.elapsed(),
        names.len(),
        count(&seen.questions),
        resolver.questions(),
        seen.addresses.lock().unwrap().len(),
        count(&seen.first),
        count(&seen.again),
        count(&seen.elsewhere)
    );
    let wrong = seen.wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of them: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    assert!(count(&seen.again) > 0 && count(&seen.elsewhere) > 0);
    let dns = status(&lab).unwrap()["dns"].clone();
    assert_eq!(dns["trouble"], serde_json::Value::Null, "{dns}");
}

/// A name of each pattern, with where it is spoken to.
fn names(text: &str) -> Vec<(String, Vec<Probe>)> {
    let config = config::parse("site.toml", text).unwrap_or_else(|problems| panic!("{problems}")).config;
    let sets = config.egress.values().flat_map(|set| &set.named);
    let each = sets.flat_map(|named| {
        let tcp = named.ports.tcp.iter().map(|ports| Probe::Tcp(*ports.start()));
        let ways: Vec<_> = tcp.chain(named.ports.udp.iter().map(|ports| Probe::Udp(*ports.start()))).collect();
        named.names.iter().map(move |name| (name.to_string().replacen('*', "some", 1), ways.clone()))
    });
    each.collect()
}

#[derive(Default)]
struct Seen {
    questions: AtomicU64,
    first: AtomicU64,
    again: AtomicU64,
    elsewhere: AtomicU64,
    addresses: Mutex<BTreeSet<IpAddr>>,
    wrong: Mutex<Vec<String>>,
}

/// A client: asks, connects, connects again as long as the answer counts, and tries what it may not.
fn live(lab: &Lab, names: &[(String, Vec<Probe>)], seen: &Seen, client: u64, until: Instant) {
    let (inside, mut dice) = (lab.host(10), Dice(client));
    let mut known: Vec<(IpAddr, Probe, Instant)> = Vec::new();
    let wrong = |text: String| seen.wrong.lock().unwrap().push(text);
    while Instant::now() < until {
        let (name, ways) = &names[dice.below(names.len())];
        let kind = [RecordType::A, RecordType::AAAA, RecordType::HTTPS][dice.below(3)];
        seen.questions.fetch_add(1, Ordering::Relaxed);
        let told = match ask(&inside, ROUTER, name, kind, PATIENCE) {
            Ok(told) if told.metadata.response_code == ResponseCode::NoError => told,
            Ok(told) => {
                wrong(format!("{name} {kind}: {}", told.metadata.response_code));
                continue;
            }
            Err(error) => {
                wrong(format!("{error:#}"));
                continue;
            }
        };
        let answered = Instant::now();
        let all = addresses(&told.answers);
        if all.is_empty() && !told.metadata.truncation {
            wrong(format!("{name} {kind}: no address in {:?}", told.answers));
        }
        for _ in 0..all.len().min(2) {
            let (address, ttl) = all[dice.below(all.len())];
            let way = ways[dice.below(ways.len())];
            let answer = probe(&inside, None, address, way, PATIENCE).unwrap();
            seen.first.fetch_add(1, Ordering::Relaxed);
            if !answer.is_open() {
                wrong(format!("{address} {way:?}, just answered for {name} {kind} with {ttl:?}: {answer:?}"));
            }
            known.push((address, way, answered + ttl));
            seen.addresses.lock().unwrap().insert(address);
        }
        known.retain(|(_, _, end)| *end > Instant::now());
        if !known.is_empty() {
            let (address, way, end) = known[dice.below(known.len())];
            let answer = probe(&inside, None, address, way, PATIENCE).unwrap();
            seen.again.fetch_add(1, Ordering::Relaxed);
            if !answer.is_open() {
                let left = end.saturating_duration_since(Instant::now());
                wrong(format!("{address} {way:?}, whose answer counts {left:?} more: {answer:?}"));
            }
        }
        if dice.below(8) == 0 {
            let elsewhere = |v6| {
                let last = 200 + dice.0 % 50;
                if v6 { net6(0xff00 + last) } else { Ipv4Addr::new(198, 51, 100, u8::try_from(last).unwrap()).into() }
            };
            let strange = [(elsewhere(false), ways[0]), (elsewhere(true), ways[0])];
            let ports = known.first().map(|(address, _, _)| (*address, Probe::Tcp(22)));
            for (address, way) in strange.into_iter().chain(ports) {
                let answer = probe(&inside, None, address, way, SHORT).unwrap();
                seen.elsewhere.fetch_add(1, Ordering::Relaxed);
                if answer != Answer::Silent {
                    wrong(format!("{address} {way:?}, which nobody was answered with: {answer:?}"));
                }
            }
        }
        thread::sleep(Duration::from_millis(u64::try_from(dice.below(100)).unwrap()));
    }
}

/// What the Internet stands by for a while, for each question.
#[derive(Default)]
struct Internet {
    answers: BTreeMap<(String, RecordType), (Instant, u64)>,
    turn: u64,
}

impl Internet {
    fn reply(&mut self, asked: &Asked<'_>, told: &mut Message) {
        let (name, kind) = (asked.query.name(), asked.query.query_type());
        let key = (name.to_lowercase().to_ascii(), kind);
        let now = Instant::now();
        let mut dice = Dice(asked.number);
        let (until, turn) = match self.answers.get(&key) {
            Some((until, turn)) if *until > now + Duration::from_secs(1) => (*until, *turn),
            Some(_) | None => {
                self.turn += 1;
                let until = now + Duration::from_secs(5 + u64::try_from(dice.below(56)).unwrap());
                self.answers.insert(key, (until, self.turn));
                (until, self.turn)
            }
        };
        let ttl = u32::try_from((until - now).as_secs()).unwrap();
        let record = |name: &Name, data| Record::from_rdata(name.clone(), ttl, data);
        let at4 = |n: u64| Ipv4Addr::new(198, 51, 100, 100 + u8::try_from((turn * 3 + n) % 90).unwrap());
        let at6 = |n: u64| match net6((turn * 3 + n) % 5000) {
            IpAddr::V6(address) => address,
            IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
        };
        // Some have chains of two before them, some forty addresses.
        let mut last = name.clone();
        if turn % 3 == 0 {
            for next in ["edge.example.test.", "pop.edge.example.test."] {
                let next = Name::from_ascii(next).unwrap();
                told.answers.push(record(&last, RData::CNAME(rdata::CNAME(next.clone()))));
                last = next;
            }
        }
        let many = if turn % 7 == 0 { 40 } else { 2 };
        if kind == RecordType::A {
            told.answers.extend((0..many).map(|n| record(&last, RData::A(at4(n).into()))));
        } else if kind == RecordType::AAAA {
            told.answers.extend((0..many).map(|n| record(&last, RData::AAAA(at6(n).into()))));
        } else if kind == RecordType::HTTPS {
            let hints = vec![
                (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint((0..2).map(|n| at4(n).into()).collect()))),
                (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint((0..2).map(|n| at6(n).into()).collect()))),
            ];
            told.answers.push(record(&last, RData::HTTPS(rdata::HTTPS(SVCB::new(1, Name::root(), hints)))));
        }
        if asked.datagram && told.to_vec().is_ok_and(|bytes| bytes.len() > 1200) {
            told.answers.clear();
            told.metadata.truncation = true;
        }
    }
}

fn net6(last: u64) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 1, u16::try_from(last).unwrap()).into()
}

/// splitmix64: the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(most).unwrap()).unwrap()
    }
}

const SPAN: Duration = Duration::from_secs(20);
const CLIENTS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(6);
const SHORT: Duration = Duration::from_millis(300);
