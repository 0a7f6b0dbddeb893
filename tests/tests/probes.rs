//! Every kind of probe judges the line it is sent by, in both families, and a line is as good as its quorum: a
//! service that fails downs exactly the lines that need it.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::demo::wait_until_good;
use tests::lab::{Temporary, binary};
use tests::netns::{feed, run};
use tests::root::Root;
use tests::watch::{astray, line, status, strict, usable, wait, wait_usable};

const SITE: &str = include_str!("../../config/examples/minimal.toml");

/// Everything that probes: five targets in each family.
const EVERYTHING: [&str; 9] = [
    "\"gateway\"",
    "\"icmp 198.51.100.1\"",
    "\"icmp 2001:db8:100::1\"",
    "\"tcp 198.51.100.2:853\"",
    "\"tcp [2001:db8:100::2]:853\"",
    "\"dns 198.51.100.3 example.org\"",
    "\"dns 2001:db8:100::3 example.org\"",
    "{ http = \"http://example.org/\", at = \"198.51.100.1\" }",
    "{ http = \"http://example.org/\", at = \"2001:db8:100::1\" }",
];

#[test]
fn a_service_that_fails_downs_exactly_the_line_whose_quorum_needs_it() {
    // The first line needs all five; the others can do without one or without two.
    let probes = [5, 4, 3].map(|quorum| (EVERYTHING.to_vec(), quorum));
    let Some(mut lab) = lab(&probes) else { return };
    for (fault, word) in [("dns", "dns"), ("http", "http")] {
        // Every line has the fault; targets that fail on all lines at once would be bad targets.
        for number in [1u8, 2] {
            lab.fail(number, fault.parse().unwrap()).unwrap();
            let wan = format!("wan{number}");
            for family in ["v4", "v6"] {
                wait(&format!("{wan} sees that {word} fails in {family}"), || {
                    let status = status(&lab)?;
                    let line = line(&status, &wan, family);
                    let targets = line["targets"].as_array().cloned().unwrap_or_default();
                    let (down, up): (Vec<_>, Vec<_>) = targets.iter().partition(|target| target["up"] == false);
                    let of_word = |target: &&serde_json::Value| target["target"].as_str().unwrap().contains(word);
                    Ok(down.len() == 1 && down.iter().all(of_word) && up.len() == 4)
                })
                .unwrap();
            }
            let needs_it = number == 1;
            for family in ["v4", "v6"] {
                if needs_it {
                    wait_usable(&lab, &wan, family, false).unwrap();
                }
            }
            thread::sleep(Duration::from_millis(300));
            for other in ["wan1", "wan2", "wan3"] {
                for family in ["v4", "v6"] {
                    let good = !(needs_it && other == wan);
                    assert_eq!(usable(&lab, other, family).unwrap(), good, "{fault} on {wan}: {other} {family}");
                }
            }
            lab.heal(number).unwrap();
            wait_until_good(&lab, Duration::from_secs(15)).unwrap();
        }
    }
    // Two services at once are too much for the second line, and not for the third.
    for number in [2u8, 3] {
        for fault in ["dns", "http"] {
            lab.fail(number, fault.parse().unwrap()).unwrap();
        }
    }
    wait_usable(&lab, "wan2", "v4", false).unwrap();
    wait_usable(&lab, "wan2", "v6", false).unwrap();
    assert!(usable(&lab, "wan3", "v4").unwrap() && usable(&lab, "wan3", "v6").unwrap());
    assert_eq!(astray(&lab).unwrap(), 0, "probes left by another line");
}

/// The kernel answers what comes after routerd gave a probe up, and no socket tells it which line that is for.
#[test]
fn what_answers_a_late_reply_leaves_by_the_line_of_the_probe() {
    let connections = [EVERYTHING[3], EVERYTHING[4], EVERYTHING[5], EVERYTHING[6], EVERYTHING[7], EVERYTHING[8]];
    let Some(mut lab) = lab(&[1, 1, 1].map(|quorum| (connections.to_vec(), quorum))) else { return };
    lab.fail(2, "delay=250".parse().unwrap()).unwrap();
    wait_usable(&lab, "wan2", "v4", false).unwrap();
    wait_usable(&lab, "wan2", "v6", false).unwrap();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(astray(&lab).unwrap(), 0, "late answers left by another line");
}

#[test]
fn a_line_with_one_kind_of_target_is_judged_by_it() {
    let v4v6 = |v4: &'static str, v6: &'static str| (vec![v4, v6], 1);
    let probes = [
        (vec!["\"gateway\""], 1),
        v4v6(EVERYTHING[1], EVERYTHING[2]),
        v4v6(EVERYTHING[3], EVERYTHING[4]),
        v4v6(EVERYTHING[5], EVERYTHING[6]),
        v4v6(EVERYTHING[7], EVERYTHING[8]),
    ];
    let Some(mut lab) = lab(&probes) else { return };
    // What each line's probes consist of, as the ISP sees it.
    let deaf = [
        "meta protocol arp drop\nicmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } drop",
        "ip protocol icmp drop\nicmpv6 type { echo-request } drop",
        "tcp dport 853 drop",
        "udp dport 53 drop",
        "tcp dport 80 drop",
    ];
    for (number, drops) in (1u8..).zip(deaf) {
        let wan = format!("wan{number}");
        let isp = lab.isp(number);
        let nft = || Root::find().unwrap().command(&isp, "nft");
        let script = format!(
            "table netdev deaf {{\nchain ingress {{\ntype filter hook ingress device \"cust\" priority 0\n{drops}\n}}\n}}\n"
        );
        feed(nft().args(["-f", "-"]), &script).unwrap();
        for family in ["v4", "v6"] {
            let took = wait_usable(&lab, &wan, family, false).unwrap();
            println!("{wan} {family}: down after {} ms", took.as_millis());
        }
        for other in (1..=5u8).filter(|other| *other != number).map(|other| format!("wan{other}")) {
            assert!(usable(&lab, &other, "v4").unwrap() && usable(&lab, &other, "v6").unwrap(), "{wan} took {other}");
        }
        run(nft().args(["delete", "table", "netdev", "deaf"])).unwrap();
        wait_until_good(&lab, Duration::from_secs(15)).unwrap();
    }
    lab.fail(3, "blackhole".parse().unwrap()).unwrap();
    wait_usable(&lab, "wan3", "v4", false).unwrap();
    wait_usable(&lab, "wan3", "v6", false).unwrap();
}

/// Whoever drops a flood has no processor left for the daemon. Answers that came meanwhile wait in its sockets.
#[test]
fn a_daemon_that_is_held_up_loses_no_answer_that_came_in_time() {
    let Some(mut lab) = lab(&[(EVERYTHING[1..3].to_vec(), 1)]) else { return };
    // Often an echo is under way.
    lab.fail(1, "delay=35".parse().unwrap()).unwrap();
    thread::sleep(Duration::from_millis(500));
    let (_, pid) = lab.processes().find(|(what, _)| *what == "routerd").unwrap();
    for _ in 0..30 {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        thread::sleep(Duration::from_millis(300));
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
        thread::sleep(Duration::from_millis(130));
    }
    let status = status(&lab).unwrap();
    for family in ["v4", "v6"] {
        let lost = line(&status, "wan1", family)["loss_ratio"].as_f64().unwrap();
        println!("{family}: {lost} lost");
        assert!(lost < 0.08, "{family}: {lost} of the answers were lost");
    }
}

/// A lab whose lines are probed with these targets and quorums, one entry for each line; `None` where labs cannot be.
fn lab(probes: &[(Vec<&str>, u8)]) -> Option<Temporary> {
    if let Err(reason) = tests::can_run().and_then(|()| binary("routerd").and(binary("routerctl")).map(drop)) {
        println!("SKIP: {reason:#}");
        return None;
    }
    let mut lab = Temporary::up(SITE, u8::try_from(probes.len()).unwrap(), false).unwrap();
    let mut site: toml_edit::DocumentMut = std::fs::read_to_string(lab.site_file()).unwrap().parse().unwrap();
    for (wan, (targets, quorum)) in lab.site().wans.iter().zip(probes) {
        let probe = format!(
            "{{ targets = [{}], quorum = {quorum}, interval = \"100ms\", timeout = \"100ms\", fall = 3, rise = 3, \
             hold = \"300ms\", hold_max = \"300ms\" }}",
            targets.join(", ")
        );
        site["wan"][&wan.name]["probe"] = toml_edit::value(probe.parse::<toml_edit::Value>().unwrap());
    }
    std::fs::write(lab.site_file(), site.to_string()).unwrap();
    strict(&lab).unwrap();
    lab.start_router().unwrap();
    wait_until_good(&lab, Duration::from_secs(30)).unwrap();
    Some(lab)
}
