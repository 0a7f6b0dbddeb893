//! What an apply does to live flows, and a recorded incident run again: with the real routerd on real packets.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary};
use tests::netns::run;
use tests::site::TARGETS4;
use tests::traffic::{echoes, open};

const SITE: &str = include_str!("../../config/examples/minimal.toml");
const PRINTER: &str = "10.0.20.5:631";
const PATIENCE: Duration = Duration::from_millis(500);

#[test]
fn an_apply_ends_the_flows_it_dooms_and_no_other() {
    let Some(lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    let mut printing = open(&lab.host(10), PRINTER.parse().unwrap(), PATIENCE).unwrap().0;
    let mut lines: Vec<TcpStream> =
        lab.site().wans.iter().map(|wan| by_line(&lab, wan.router4.addr().into())).collect();

    let narrowed = lab.site().text.replace("tcp/631", "tcp/632");
    assert_eq!(doomed(&lab, &narrowed), 1);
    assert!(echoes(&mut printing, PATIENCE), "a plan ends nothing");
    assert!(apply(&lab, &narrowed).contains(" 1 flows ended"));
    assert!(!echoes(&mut printing, PATIENCE), "its cell is gone");
    assert!(open(&lab.host(10), PRINTER.parse().unwrap(), PATIENCE).is_err());
    assert!(lines.iter_mut().all(|line| echoes(line, PATIENCE)), "flows that stay allowed stay");

    let mut without: toml_edit::DocumentMut = narrowed.parse().unwrap();
    without["wan"].as_table_mut().unwrap().remove("wan2").unwrap();
    without["policy"]["balanced"]["members"]
        .as_array_mut()
        .unwrap()
        .retain(|member| member.as_inline_table().unwrap()["wan"].as_str() == Some("wan1"));
    let without = without.to_string();
    // The probes of the line are flows, too.
    assert!(doomed(&lab, &without) >= 1);
    apply(&lab, &without);
    assert!(echoes(&mut lines[0], PATIENCE), "the line that stays keeps its flows");
    // What its inside end sends next is answered, so that it does not wait.
    lines[1].set_read_timeout(Some(PATIENCE)).unwrap();
    lines[1].write_all(b"!").unwrap();
    let told = lines[1].read(&mut [0]).unwrap_err();
    assert_eq!(told.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_recorded_incident_replays_bit_by_bit() {
    let Some(mut lab) = Temporary::routed(SITE, 4, false).unwrap() else { return };
    lab.fail(2, "blackhole".parse().unwrap()).unwrap();
    until(&lab, "wan2 is down", |status| status["wans"][1]["families"][0]["state"] == "down");
    lab.heal(2).unwrap();
    until(&lab, "wan2 answers", |status| status["wans"][1]["families"][0]["state"] != "down");
    let text = lab.site().text.replace("tcp/631", "tcp/632");
    apply(&lab, &text);
    run(lab.routerctl().unwrap().args(["wan", "drain", "wan3"])).unwrap();
    let told = run(lab.routerctl().unwrap().arg("journal")).unwrap();
    for word in ["routerd started", "wan2 IPv4: up -> down", "an operator drains wan3", "configuration "] {
        assert!(told.contains(word), "{word:?} is not in\n{told}");
    }
    lab.stop_router(Signal::SIGKILL).unwrap();
    lab.start_router().unwrap();
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    lab.stop_router(Signal::SIGTERM).unwrap();

    let journal = lab.state_directory().join("journal");
    for name in ["journal.jsonl", "journal.jsonl.1"] {
        let file = journal.join(name);
        let replayed = run(lab.routerctl().unwrap().arg("replay").arg(&file)).unwrap();
        assert!(replayed.contains("\nequal: "), "{replayed}");
    }
    // Another config is told apart from the same; a changed journal too.
    let incident = journal.join("journal.jsonl.1");
    let patient = lab.site().text.replace("interval = 100", "interval = 200");
    let other = lab.state_directory().join("other.toml");
    std::fs::write(&other, patient).unwrap();
    let replay = [incident.as_os_str(), "--config".as_ref(), other.as_os_str()];
    assert!(run(lab.routerctl().unwrap().arg("replay").args(replay)).unwrap().contains("under the other config"));
    let forged = std::fs::read_to_string(&incident).unwrap().replacen("\"to\":\"down\"", "\"to\":\"held\"", 1);
    std::fs::write(&other, forged).unwrap();
    let output = lab.routerctl().unwrap().arg("replay").arg(&other).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("differs"));
}

/// A connection that left by the line with this address.
fn by_line(lab: &Lab, own: IpAddr) -> TcpStream {
    let to = SocketAddr::new(TARGETS4[0].into(), 4321);
    (0..100).map(|_| open(&lab.host(10), to, PATIENCE).unwrap()).find(|(_, seen)| seen.peer == own).unwrap().0
}

fn doomed(lab: &Lab, text: &str) -> u64 {
    let plan: serde_json::Value = serde_json::from_str(&given(lab, &["--json", "plan", "-"], text)).unwrap();
    plan["flows_that_die"].as_u64().unwrap()
}

fn apply(lab: &Lab, text: &str) -> String {
    given(lab, &["apply", "-"], text)
}

/// routerctl with this text on its standard input.
fn given(lab: &Lab, arguments: &[&str], text: &str) -> String {
    let mut command: Command = lab.routerctl().unwrap();
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn until(lab: &Lab, what: &str, done: impl Fn(&serde_json::Value) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = run(lab.routerctl().unwrap().args(["status", "--json"])).unwrap();
        if done(&serde_json::from_str(&status).unwrap()) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
