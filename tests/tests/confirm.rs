//! A change that cuts management and that nobody confirms: what was there before is there again, to the byte. And
//! changes that a guard measures.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary};
use tests::listing::{assert_same, listing};
use tests::netns::run;
use tests::traffic::UdpFlow;
use tests::watch::{status, wait};

#[test]
fn what_nobody_confirms_is_taken_back_to_the_byte_also_by_a_daemon_that_died() {
    let Some(mut lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    let good = lab.site().text.clone();
    let cut = without_management(&good);
    // As it usually is: the file is edited, and that is applied.
    std::fs::write(lab.site_file(), &cut).unwrap();
    let before = listing(&lab);
    assert!(reaches_router(&lab));

    let over_ssh = given(&lab, &["apply", "-"], &cut, Some("10.0.10.200 50000 10.0.10.1 22"));
    assert_eq!(over_ssh.status.code(), Some(1));
    let told = String::from_utf8_lossy(&over_ssh.stderr).into_owned();
    assert!(told.contains("this session (from 10.0.10.200 to 10.0.10.1 tcp/22)"), "{told}");
    assert_same(&before, &listing(&lab), "a refused change");

    for (number, what) in ["a live daemon", "kill -9 inside the window", "a start after the window"].iter().enumerate()
    {
        let window = if number == 1 { 6 } else { 3 };
        let arguments = ["apply", "--confirm", &format!("{window}s"), "-m", what, "-"];
        let applied = given(&lab, &arguments, &cut, Some("10.0.10.200 50000 10.0.10.1 22"));
        let begun = Instant::now();
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        let told = String::from_utf8_lossy(&applied.stdout).into_owned();
        assert!(told.contains("unless you type `routerctl confirm`"), "{told}");
        assert!(!reaches_router(&lab), "{what}: management is cut");
        assert_ne!(listing(&lab), before);
        assert_eq!(running(&lab), good, "it is no word yet");
        match number {
            1 => {
                lab.stop_router(Signal::SIGKILL).unwrap();
                lab.start_router().unwrap();
                let pending = status(&lab).unwrap()["applies"]["pending"].clone();
                assert!(pending["remaining_seconds"].as_u64().unwrap() < window, "{pending}");
                assert!(run(lab.routerctl().unwrap().arg("status")).unwrap().contains("`routerctl confirm`"));
                assert!(!reaches_router(&lab), "time is left: the change goes on");
            }
            2 => {
                lab.stop_router(Signal::SIGKILL).unwrap();
                thread::sleep(Duration::from_secs(window + 1).saturating_sub(begun.elapsed()));
                assert!(!reaches_router(&lab), "nobody is there to take it back");
                lab.start_router().unwrap();
            }
            _ => {}
        }
        wait("the change is taken back", || {
            let applies = status(&lab)?["applies"].clone();
            Ok(applies["pending"].is_null() && applies["current"] == true)
        })
        .unwrap();
        let back = begun.elapsed();
        wait("management is back", || Ok(reaches_router(&lab))).unwrap();
        wait_until_good(&lab, Duration::from_mins(1)).unwrap();
        assert_same(&before, &listing(&lab), what);
        assert_eq!(running(&lab), good);
        println!("{what}: a window of {window} s, taken back {back:?} after the answer");
    }

    let history: serde_json::Value =
        serde_json::from_str(&run(lab.routerctl().unwrap().args(["history", "--json"])).unwrap()).unwrap();
    let outcomes: Vec<_> = history.as_array().unwrap().iter().map(|entry| &entry["outcome"]["outcome"]).collect();
    assert_eq!(outcomes, ["applied", "rolled-back", "rolled-back", "rolled-back"], "{history}");

    // What is confirmed stays, over the window and over a restart.
    assert!(given(&lab, &["apply", "--confirm", "3s", "-"], &cut, None).status.success());
    assert!(run(lab.routerctl().unwrap().arg("confirm")).unwrap().contains("confirmed"));
    thread::sleep(Duration::from_secs(4));
    lab.stop_router(Signal::SIGKILL).unwrap();
    lab.start_router().unwrap();
    assert_eq!(running(&lab), cut);
    assert!(!reaches_router(&lab));
    let diff = run(lab.routerctl().unwrap().args(["diff", "1", "5"])).unwrap();
    assert!(diff.contains("~ vlan office") && diff.contains("\n+") && diff.contains("\n-"), "{diff}");
    // And the way back is a number.
    run(lab.routerctl().unwrap().args(["rollback", "1"])).unwrap();
    wait("management is back", || Ok(reaches_router(&lab))).unwrap();
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    assert_same(&before, &listing(&lab), "rollback 1");
}

#[test]
fn a_guard_keeps_what_does_no_harm_and_takes_back_what_denies_or_loses() {
    let Some(lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    let both = given(&lab, &["apply", "--guard", "--confirm", "1m", "-"], &lab.site().text, None);
    assert_eq!(both.status.code(), Some(2), "{}", told(&both));
    assert!(told(&both).contains("'--guard[=<TIME>]' cannot be used with '--confirm <TIME>'"), "{}", told(&both));

    let changed = |change: fn(&mut toml_edit::DocumentMut)| {
        let mut site: toml_edit::DocumentMut = lab.site().text.parse().unwrap();
        change(&mut site);
        site.to_string()
    };
    let no_harm = changed(|site| {
        site["vlan"]["guests"]["input"] = toml_edit::value(toml_edit::Array::from_iter(["dhcp", "dns"]));
    });
    let closed = changed(|site| {
        site["vlan"]["office"].as_table_like_mut().unwrap().remove("internet");
    });
    let lost = changed(|site| site["wan"]["wan2"]["gateway"] = toml_edit::value("100.64.2.77"));

    let flow = UdpFlow::start(&lab.host(10), None, "198.51.100.1:7".parse().unwrap(), 100).unwrap();
    let guarded = |text: &str, window: &str| {
        let mut answer = given(&lab, &["apply", window, "-"], text, None);
        // So soon after another config there is nothing to compare with.
        let begun = Instant::now();
        while told(&answer).contains("has not been measured for long enough") {
            assert!(begun.elapsed() < Duration::from_mins(1), "{}", told(&answer));
            thread::sleep(Duration::from_secs(1));
            answer = given(&lab, &["apply", window, "-"], text, None);
        }
        answer
    };
    let kept = guarded(&no_harm, "--guard=12s");
    assert!(kept.status.success(), "{}", told(&kept));
    assert!(told(&kept).contains("kept: no line got worse"), "{}", told(&kept));
    println!("{}", told(&kept));
    assert_eq!(running(&lab), no_harm);

    let table = [(&closed, "packets a second are denied"), (&lost, "wan2 IPv4 was up and is down")];
    for (number, (text, why)) in (1..).zip(table) {
        let before = listing(&lab);
        let begun = Instant::now();
        let refused = guarded(text, "--guard");
        println!("{:?}: {}", begun.elapsed(), told(&refused));
        assert_eq!(refused.status.code(), Some(5), "{}", told(&refused));
        assert!(told(&refused).contains(why), "{}", told(&refused));
        wait_until_good(&lab, Duration::from_mins(1)).unwrap();
        assert_same(&before, &listing(&lab), why);
        assert_eq!(running(&lab), no_harm);
        let applies = status(&lab).unwrap()["applies"].clone();
        assert_eq!(applies["rollbacks"]["guard"], number);
        assert!(applies["rolled_back"].as_str().unwrap().contains(why), "{applies}");
        assert!(run(lab.routerctl().unwrap().arg("history")).unwrap().contains(why));
        assert!(run(lab.routerctl().unwrap().arg("journal")).unwrap().contains(why));
    }
    flow.stop();
}

/// Both of what it wrote.
fn told(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}

/// Another address in the office, and no ssh to it.
fn without_management(text: &str) -> String {
    let mut site: toml_edit::DocumentMut = text.parse().unwrap();
    site["vlan"]["office"]["addresses"][0] = toml_edit::value("10.0.11.1/24");
    site["vlan"]["office"]["input"] = toml_edit::value(toml_edit::Array::from_iter(["dns"]));
    site.to_string()
}

/// Whether the router answers at its ssh port, where nobody listens in the lab.
fn reaches_router(lab: &Lab) -> bool {
    let to: SocketAddr = "10.0.10.1:22".parse().unwrap();
    let error =
        lab.host(10).enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(500))).unwrap().unwrap_err();
    error.kind() == ErrorKind::ConnectionRefused
}

fn running(lab: &Lab) -> String {
    std::fs::read_to_string(lab.state_directory().join("running.toml")).unwrap()
}

/// routerctl with this text on its standard input, in this ssh session.
fn given(lab: &Lab, arguments: &[&str], text: &str, ssh: Option<&str>) -> Output {
    let mut command: Command = lab.routerctl().unwrap();
    command.env_remove("SSH_CONNECTION").args(arguments);
    if let Some(ssh) = ssh {
        command.env("SSH_CONNECTION", ssh);
    }
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

const SITE: &str = include_str!("../../config/examples/minimal.toml");
