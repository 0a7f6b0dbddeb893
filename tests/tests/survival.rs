//! Cached flows when a line dies, when the daemon dies, and when its successor brings other programs.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebpf::abi::{Verdict, slot};
use ebpf::{Maps, Programs};
use nix::sys::signal::Signal;
use tests::crowd::{Crowd, Tap};
use tests::demo::site;
use tests::failover::{SITE, client, lab};
use tests::frames::Frames;
use tests::lab::{Lab, Temporary, binary};
use tests::link::Fault;
use tests::netns::feed;
use tests::watch::{status, wait, wait_usable};

/// 200 flows, 1,000 datagrams a second together.
#[test]
fn no_datagram_leaves_by_a_blackhole_once_its_flows_are_called_back_and_other_lines_lose_none() {
    if let Err(reason) = tests::can_run().and_then(|()| binary("routerd").and(binary("routerctl")).map(drop)) {
        println!("SKIP: {reason:#}");
        return;
    }
    let mut lab = lab(4, false).unwrap();
    let to = (0..CROWD).map(|flow| Ipv4Addr::new(198, 51, 100, 20 + flow));
    let crowd = Crowd::open(&client(&lab).unwrap(), to, PORT).unwrap();
    let seen = crowd.seen_as(Duration::from_secs(10)).unwrap();
    let dead = lab.site().wans[0].clone();
    let on_dead: BTreeSet<usize> =
        (0..seen.len()).filter(|flow| seen[*flow] == IpAddr::V4(dead.router4.addr())).collect();
    assert!(on_dead.len() > 20 && on_dead.len() < seen.len() - 20, "{seen:?}");
    let busy = crowd.start(1000).unwrap();
    let all_cached = || Ok(maps(&lab).count_flows().0 >= usize::from(CROWD) * 2);
    wait("every flow is cached, both ways", all_cached).unwrap();
    let forwarded = forwarded_by(&lab);
    wait("the cache forwards", || Ok(forwarded_by(&lab) > forwarded + 1000)).unwrap();

    let tap = Tap::open(&lab.isp(dead.number), "cust", PORT).unwrap();
    let wan = site(&lab).unwrap().wans[&dead.name.parse().unwrap()].id.get();
    let pins = lab.bpf_directory();
    thread::sleep(Duration::from_millis(300));
    let (broken, called_back, buried) = thread::scope(|scope| {
        let called_back = scope.spawn(|| {
            let maps = Maps::open(&pins).unwrap();
            let (begun, before) = (Instant::now(), maps.generation(slot(wan, false)).unwrap());
            while maps.generation(slot(wan, false)).unwrap() == before {
                assert!(begun.elapsed() < Duration::from_secs(20), "the flows are not called back");
                thread::sleep(Duration::from_micros(100));
            }
            Instant::now()
        });
        let broken = Instant::now();
        lab.fail(dead.number, Fault::Blackhole).unwrap();
        wait_usable(&lab, &dead.name, "v4", false).unwrap();
        let buried = Instant::now();
        (broken, called_back.join().unwrap(), buried)
    });
    wait("every flow is cached again, by the other lines", || {
        Ok(status(&lab).unwrap()["fast_path"]["flows"]["v4"] == u64::from(CROWD) * 2)
    })
    .unwrap();
    thread::sleep(Duration::from_millis(500));
    let talk = busy.stop();
    let heard = tap.close().unwrap();

    let sent_after = |moment: Instant| heard.iter().filter(|number| talk.sent[**number as usize] >= moment).count();
    let lost: Vec<_> = (0..u32::try_from(talk.sent.len()).unwrap()).filter(|n| !talk.answered.contains(n)).collect();
    let flow = |number: &u32| *number as usize % seen.len();
    let lost_by_others = lost.iter().filter(|number| !on_dead.contains(&flow(number))).count();
    let last_lost = lost.iter().map(|number| talk.sent[*number as usize]).max();
    println!(
        "{} of {} flows on the line; called back {:?} after the fault, buried {:?} later; {} datagrams heard at its ISP, \
         {} sent after the fault, {} after the call, {} after the burial; lost {} of {}, by others {lost_by_others}, the last \
         {:?} after the fault",
        on_dead.len(),
        seen.len(),
        called_back - broken,
        buried.saturating_duration_since(called_back),
        heard.len(),
        sent_after(broken),
        sent_after(called_back),
        sent_after(buried),
        lost.len(),
        talk.sent.len(),
        last_lost.map(|at| at - broken),
    );
    assert!(sent_after(broken) > 0, "the ISP hears what the blackhole swallows");
    assert_eq!(sent_after(called_back), 0, "datagrams by the dead line");
    assert_eq!(lost_by_others, 0, "datagrams of flows on other lines");
    assert!(lost.iter().all(|number| on_dead.contains(&flow(number))), "{lost:?}");
}

#[test]
fn the_cache_loses_nothing_while_the_daemon_is_dead_and_while_programs_are_exchanged() {
    for mode in ["tcx", "xdp"] {
        let Some(mut lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
        if mode == "xdp" {
            let ports = ["v10", "v20", "wan1", "wan2"]
                .map(|port| format!("\n[port.{port}]\nfind = {{ name = \"{port}\" }}\nfast_path = \"xdp\"\n"));
            let text = format!("{}{}", lab.site().text, ports.concat());
            std::fs::write(lab.site_file(), &text).unwrap();
            feed(lab.routerctl().unwrap().args(["apply", "-"]), &text).unwrap();
        }
        wait("the ports are met as they should", || {
            let ports = status(&lab)?["fast_path"]["ports"].clone();
            Ok(["v10", "wan1", "wan2"].iter().all(|port| ports[port]["mode"] == mode))
        })
        .unwrap();
        survives(&mut lab, mode);
    }
}

fn survives(lab: &mut Lab, mode: &str) {
    let mut frames = Frames::open(lab, 10, FLOWS, (Ipv4Addr::new(198, 51, 100, 77), 5001)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let cached = |lab: &Lab| maps(lab).count_flows().0;
    frames.send(RATE, || cached(lab) < FLOWS as usize * 2 && Instant::now() < deadline).unwrap();
    assert_eq!(cached(lab), FLOWS as usize * 2, "every flow is cached, both ways");

    let before = Programs::pinned(&lab.bpf_directory()).unwrap();
    during(lab, &mut frames, &format!("{mode}, kill -9 and a start"), |lab| {
        lab.stop_router(Signal::SIGKILL).unwrap();
        thread::sleep(Duration::from_secs(1));
        lab.start_router().unwrap();
        knows_all(lab);
    });
    assert_eq!(Programs::pinned(&lab.bpf_directory()).unwrap(), before);

    let other = lab.site_file().with_file_name("other.o");
    // Bytes behind the last section are nobody's, and make another object of it.
    std::fs::write(&other, [ebpf::OBJECT, b"!"].concat()).unwrap();
    during(lab, &mut frames, &format!("{mode}, an upgrade"), |lab| {
        lab.stop_router(Signal::SIGTERM).unwrap();
        lab.start_router_with("QUADWAY_FAST_PATH_OBJECT", other.to_str().unwrap()).unwrap();
        knows_all(lab);
    });
    let after = Programs::pinned(&lab.bpf_directory()).unwrap();
    assert!(after.iter().all(|id| !before.contains(id)), "{before:?} {after:?}");
    assert_eq!(cached(lab), FLOWS as usize * 2);
}

/// What it does not know of the entries it found, a daemon takes out.
fn knows_all(lab: &Lab) {
    wait("the daemon knows the flows of the one before", || {
        let status = status(lab)?["fast_path"].clone();
        Ok(status["on"] == true && status["flows"]["v4"] == FLOWS * 2 && status["fed"]["listings"].as_u64() > Some(0))
    })
    .unwrap();
}

/// Every frame that is sent meanwhile arrives, is answered, and both are forwarded by the cache.
fn during(lab: &mut Lab, frames: &mut Frames, what: &str, work: impl FnOnce(&mut Lab)) {
    let pins = lab.bpf_directory();
    let forwarded = || Maps::open(&pins).unwrap().verdicts().unwrap()[&Verdict::Forwarded].packets;
    let begun = Instant::now();
    let (sent, arrived, before) = (frames.sent(), frames.arrived().unwrap(), forwarded());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| frames.send(RATE, || !done.load(Ordering::Relaxed)).unwrap());
        thread::sleep(Duration::from_millis(500));
        work(lab);
        thread::sleep(Duration::from_secs(1));
        done.store(true, Ordering::Relaxed);
        sending.join().unwrap();
    });
    let sent = frames.sent() - sent;
    thread::sleep(Duration::from_millis(200));
    let (arrived, forwarded) = (frames.arrived().unwrap() - arrived, forwarded() - before);
    println!("{what}: {sent} sent in {:?}, {arrived} arrived, {forwarded} forwarded", begun.elapsed());
    assert_eq!(arrived, sent, "{what}");
    assert_eq!(forwarded, sent * 2, "{what}: by the cache, there and back");
}

fn maps(lab: &Lab) -> Maps {
    Maps::open(&lab.bpf_directory()).unwrap()
}

fn forwarded_by(lab: &Lab) -> u64 {
    maps(lab).verdicts().unwrap()[&Verdict::Forwarded].packets
}

/// Flows of datagrams, and the port they go to.
const CROWD: u8 = 200;
const PORT: u16 = 7200;
/// Flows of live frames.
const FLOWS: u32 = 1000;
/// Frames a second.
const RATE: u32 = 10_000;
