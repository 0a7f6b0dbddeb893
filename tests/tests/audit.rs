//! An audited cell: what it denies passes, is told and becomes an entry, for as long as was said and no longer, whoever
//! lives to end it.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary};
use tests::netns::run;
use tests::traffic::{echoes, open};
use tests::watch::{status, wait};

/// `office` may print in `guests`; `cameras` may nothing, and nobody may anything there, which the ports deny already.
const SITE: &str = concat!(
    include_str!("../../config/examples/minimal.toml"),
    "\n[vlan.cameras]\nid = 30\naddresses = [\"10.0.30.1/24\"]\naccess = [\"eth4\"]\ninternet = \"none\"\n",
    "[host.camera1]\naddress = \"10.0.30.5\"\n",
    "[host.desk]\naddress = \"10.0.10.7\"\n",
);
const CAMERA: &str = "10.0.30.5:631";
const PRINTER: &str = "10.0.20.5:631";
const DESK: &str = "10.0.10.7:631";
const CELL: &str = "office->cameras";
const PATIENCE: Duration = Duration::from_millis(500);

#[test]
fn an_audit_lets_pass_tells_proposes_and_ends_also_without_a_daemon() {
    let Some(mut lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    assert_eq!(status(&lab).unwrap()["fast_path"]["on"], true, "the ports deny this cell");
    only_others(&lab);
    assert!(!can_open(&lab, 10, CAMERA));

    what_must_not_be_audited_is_refused(&lab);
    what_passes_is_told_and_proposed(&lab);
    what_is_proposed_allows_it(&lab);
    it_ends_by_itself(&lab);
    a_start_ends_it(&mut lab);
    it_ends_without_a_daemon(&mut lab);
    assert_eq!(status(&lab).unwrap()["applies"]["drift_repaired"], 0);
}

fn what_must_not_be_audited_is_refused(lab: &Lab) {
    for (arguments, part) in [
        (&["office->wan1"] as &[&str], "`wan1` is no VLAN"),
        (&["wan1->office", "--isolated"], "`wan1` is no VLAN"),
        (&["office->router"], "`router` is no VLAN"),
        (&["office"], "in quotes"),
        (&["cameras->office"], "--isolated audits it anyway"),
        (&["guests->office", "--isolated"], "`guests -> office deny`"),
        (&["office->cameras", "--for", "61m"], "one second to one hour"),
    ] {
        let refused = audit(lab, arguments).output().unwrap();
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && told.contains(part), "{arguments:?}: {told}");
    }
    assert_eq!(status(lab).unwrap()["audits"], Value::Array(vec![]));
}

fn what_passes_is_told_and_proposed(lab: &Lab) {
    let following = begin(lab, "60s");
    let (mut kept, _) = open(&lab.host(10), CAMERA.parse().unwrap(), PATIENCE).unwrap();
    assert!(can_open(lab, 10, CAMERA));
    // Long enough for a flow to be cached, were it one that may be.
    for _ in 0..20 {
        assert!(echoes(&mut kept, PATIENCE));
        thread::sleep(Duration::from_millis(50));
    }
    only_others(lab);
    assert!(!can_open(lab, 30, DESK), "the other way is another cell");

    let explained = run(lab.routerctl().unwrap().args(["explain", "desk", "camera1", "tcp/631"])).unwrap();
    assert!(explained.contains("denied, and let pass until 20") && explained.contains("for an audit"), "{explained}");
    let page = run(lab.routerctl().unwrap().arg("status")).unwrap();
    assert!(page.contains("office->cameras is audited"), "{page}");
    let twice = audit(lab, &[CELL]).output().unwrap();
    assert!(String::from_utf8_lossy(&twice.stderr).contains("is audited already"));

    let stopped = run(&mut audit(lab, &[CELL, "--stop"])).unwrap();
    println!("{stopped}");
    let followed = done(following);
    println!("{followed}");
    assert!(stopped.contains("an operator ended it\n") && stopped.contains("x desk -> camera1 tcp/631"), "{stopped}");
    assert!(followed.ends_with(&stopped), "{followed}");
    assert_eq!(followed.matches("office/desk -> cameras/camera1 tcp/631: no entry allows it").count(), 2, "{followed}");
    assert!(!echoes(&mut kept, PATIENCE), "what began in it ends with it");
    assert!(!can_open(lab, 10, CAMERA));
    let cells = status(lab).unwrap()["cells"].clone();
    let cell = cells.as_array().unwrap().iter().find(|cell| cell["from"] == "office" && cell["to"] == "cameras");
    assert_eq!(cell.unwrap()["audited_flows"], 2, "{cells}");
}

fn what_is_proposed_allows_it(lab: &Lab) {
    let report = run(&mut audit(lab, &[CELL, "--stop", "--json"])).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let proposal = report["proposal"].as_str().unwrap();
    let before = lab.site().text.clone();
    apply(lab, &format!("{before}\n{proposal}"));
    assert!(can_open(lab, 10, CAMERA));
    apply(lab, &before);
    assert!(!can_open(lab, 10, CAMERA));
    // Another config ends it: its asserts have not been asked.
    let following = begin(lab, "60s");
    assert!(can_open(lab, 10, CAMERA));
    apply(lab, &format!("{before}\n[host.elsewhere]\naddress = \"10.0.10.99\"\n"));
    assert!(done(following).contains("is no longer audited: a configuration took effect"));
    assert!(!can_open(lab, 10, CAMERA));
}

fn it_ends_by_itself(lab: &Lab) {
    let following = begin(lab, "3s");
    let (mut kept, _) = open(&lab.host(10), CAMERA.parse().unwrap(), PATIENCE).unwrap();
    let told = done(following);
    assert!(told.contains("is no longer audited: its time is over") && told.contains("[[cell]]"), "{told}");
    assert!(!echoes(&mut kept, PATIENCE) && !can_open(lab, 10, CAMERA));
    let journal = run(lab.routerctl().unwrap().arg("journal")).unwrap();
    assert!(journal.contains("an operator audits office->cameras for 3s"), "{journal}");
    assert!(journal.contains("the audit of office->cameras has ended: its time is over"), "{journal}");
}

fn a_start_ends_it(lab: &mut Lab) {
    let following = begin(lab, "60s");
    assert!(can_open(lab, 10, CAMERA));
    lab.stop_router(Signal::SIGKILL).unwrap();
    lab.start_router().unwrap();
    drop(output(following));
    wait("a start ends it", || Ok(!can_open(lab, 10, CAMERA))).unwrap();
    assert_eq!(status(lab).unwrap()["audits"], Value::Array(vec![]));
}

fn it_ends_without_a_daemon(lab: &mut Lab) {
    let following = begin(lab, "4s");
    let begun = Instant::now();
    let (mut kept, _) = open(&lab.host(10), CAMERA.parse().unwrap(), PATIENCE).unwrap();
    lab.stop_router(Signal::SIGKILL).unwrap();
    drop(output(following));
    // The kernel gives the daemon two seconds more.
    thread::sleep(Duration::from_secs(7).saturating_sub(begun.elapsed()));
    assert!(!echoes(&mut kept, PATIENCE), "a flow that is established ends too");
    assert!(!can_open(lab, 10, CAMERA), "nobody is there to end it but the kernel");
    only_others(lab);
    lab.start_router().unwrap();
    wait_until_good(lab, Duration::from_mins(1)).unwrap();
    assert!(!can_open(lab, 10, CAMERA));
}

/// What the audit is not about is as it was.
fn only_others(lab: &Lab) {
    assert!(can_open(lab, 10, PRINTER), "office may print");
    assert!(!can_open(lab, 20, CAMERA) && !can_open(lab, 20, DESK) && !can_open(lab, 30, PRINTER));
    assert!(!can_open(lab, 30, "198.51.100.1:443"), "cameras may not use the Internet");
}

/// Follows an audit that has taken effect.
fn begin(lab: &Lab, span: &str) -> Child {
    let following = audit(lab, &[CELL, "--for", span]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait("the audit is on", || {
        let status = status(lab)?;
        Ok(status["audits"][0]["to"] == "cameras" && status["applies"]["current"] == true)
    })
    .unwrap();
    following
}

fn audit(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = lab.routerctl().unwrap();
    command.arg("audit").args(arguments);
    command
}

fn output(following: Child) -> Output {
    following.wait_with_output().unwrap()
}

fn done(following: Child) -> String {
    let output = output(following);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn apply(lab: &Lab, text: &str) {
    let file = lab.site_file().with_file_name("other.toml");
    std::fs::write(&file, text).unwrap();
    run(lab.routerctl().unwrap().arg("apply").arg(&file)).unwrap();
}

fn can_open(lab: &Lab, vlan: u16, to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    assert!(matches!(to.ip(), IpAddr::V4(_)));
    open(&lab.host(vlan), to, PATIENCE).is_ok()
}
