//! `routerctl` as a program: its exit codes, and who may ask what over a real socket with real peers.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail it")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::unistd::Gid;
use router_daemon::api::server::{self, Access, Core};
use router_daemon::ask::Ask;
use router_daemon::counters::{CounterSource, Counters};
use router_daemon::history::History;
use tokio::sync::mpsc;

#[test]
fn the_exit_code_tells_what_went_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad, broken) = (folder.path().join("good"), folder.path().join("bad"), folder.path().join("broken"));
    std::fs::write(&good, MINIMAL).unwrap();
    std::fs::write(&bad, "[site]\nnome = \"x\"\n").unwrap();
    std::fs::write(&broken, MINIMAL.replace("guests -> office deny", "guests -> office allow")).unwrap();
    let nobody = folder.path().join("api.sock");
    let table: [(&[&str], i32, &str); 9] = [
        (&["check", text(&good)], 0, "good"),
        (&["check", text(&bad)], 1, "nome"),
        (
            &["check", text(&broken)],
            1,
            "refused: 1 assert would break\nerror: the assert `guests -> office allow` does not",
        ),
        (&["check", "/nonexistent"], 1, "cannot read"),
        (&["replay", text(&good)], 1, "line 1"),
        (&["frobnicate"], 2, "unrecognized"),
        (&["explain", "office", "guests"], 2, "required"),
        (&["explain", "wan2"], 3, "routerd is not running"),
        (&["status"], 3, "routerd is not running"),
    ];
    for (arguments, code, told) in table {
        let mut command = Command::new(env!("CARGO_BIN_EXE_routerctl"));
        let output = command.arg("--socket").arg(&nobody).args(arguments).output().unwrap();
        let all = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
        assert!(all.contains(told), "{arguments:?}: {all}");
    }
}

/// The peers are other users in fact: the kernel tells the daemon who they are.
#[test]
fn peers_may_do_what_their_group_may() {
    let probe = Command::new("setpriv").args(["--reuid", NOBODY, "--clear-groups", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        println!("SKIP: needs root, and setpriv of util-linux");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // Where this build stands may be closed to others.
    let program = folder.path().join("routerctl");
    std::fs::copy(env!("CARGO_BIN_EXE_routerctl"), &program).unwrap();
    let site = folder.path().join("site.toml");
    std::fs::write(&site, MINIMAL).unwrap();

    let (operators, readers) = (Some(Gid::from_raw(OPERATORS)), Some(Gid::from_raw(READERS)));
    let access = Access { operators, readers, ..Access::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Without a group of readers the file itself is closed to others.
    let (socket, closed) = (folder.path().join("api.sock"), folder.path().join("closed.sock"));
    let (listener, _closed_to_others) = {
        let _inside = runtime.enter();
        let operators_only = Access { readers: None, ..access };
        (server::bind(&socket, &access).unwrap(), server::bind(&closed, &operators_only).unwrap())
    };
    std::thread::spawn(move || runtime.block_on(async { server::serve(listener, core(), access).await }));

    let apply = ["apply", text(&site)];
    let table: [(u32, &[&str], i32, &str); 13] = [
        (OPERATORS, &["version"], 0, "routerd"),
        (OPERATORS, &apply, 1, "reached the loop"),
        (OPERATORS, &["wan", "drain", "wan1"], 0, "wan1"),
        (READERS, &["version"], 0, "SHA-256"),
        (READERS, &apply, 1, "needs the role `operator`, and yours is `reader`"),
        (OPERATORS, &["confirm"], 1, "reached the loop"),
        (OPERATORS, &["rollback"], 1, "reached the loop"),
        (READERS, &["wan", "fail-test", "wan1"], 1, "changes the router"),
        (READERS, &["confirm"], 1, "changes the router"),
        (READERS, &["rollback", "3"], 1, "changes the router"),
        (READERS, &["diff", "1", "2"], 1, "`routerctl history` lists"),
        (OTHERS, &["version"], 1, "only root and members of the group"),
        (OTHERS, &apply, 1, "only root and members of the group"),
    ];
    for (group, arguments, code, told) in table {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", &group.to_string(), "--clear-groups"]);
        let output = command.arg(&program).arg("--socket").arg(&socket).args(arguments).output().unwrap();
        let all = said(&output);
        assert_eq!(output.status.code(), Some(code), "group {group}, {arguments:?}: {all}");
        assert!(all.contains(told), "group {group}, {arguments:?}: {all}");
    }

    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", &OTHERS.to_string(), "--clear-groups"]);
    let output =
        command.arg(&program).arg("--socket").arg(&closed).arg("status").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(said(&output).contains("is not open to you"), "{}", said(&output));
}

const MINIMAL: &str = include_str!("../../config/examples/minimal.toml");
/// Groups that need no entry in the system's database: they are the primary group of the peer.
const OPERATORS: u32 = 64_190;
const READERS: u32 = 64_191;
const OTHERS: u32 = 64_192;
const NOBODY: &str = "65534";

/// A core that carries nothing out: what reaches it was let through.
fn core() -> Core {
    let (asks, mut asked) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(ask) = asked.recv().await {
            match ask {
                Ask::Apply { reply, .. } | Ask::Confirm { reply, .. } | Ask::RollBack { reply, .. } => {
                    let (code, message) = ("config".to_owned(), "it reached the loop".to_owned());
                    drop(reply.send(Err(router_daemon::ask::Refusal { code, message })));
                }
                Ask::Operator { reply, .. } | Ask::Audit { reply, .. } => drop(reply.send(Ok(()))),
                Ask::View(_) | Ask::Plan { .. } => {}
            }
        }
    });
    let counters = CounterSource::new(|| async { Ok(Counters::default()) });
    Core::new(asks, counters, History::of(Path::new("/nonexistent")))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}
