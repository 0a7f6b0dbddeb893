//! What a newcomer reads of `routerctl` before a router answers: help, completions, man pages.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail it")]

use std::path::Path;
use std::process::Command;

#[test]
fn man_pages_and_help_tell_every_subcommand_with_an_example() {
    let folder = tempfile::tempdir().unwrap();
    let told = routerctl(&["man", folder.path().to_str().unwrap()]);
    assert_eq!(told, "");
    let subcommands = pages(folder.path());
    for words in &subcommands {
        let page = std::fs::read_to_string(folder.path().join(format!("routerctl-{}.1", words.join("-")))).unwrap();
        assert!(page.contains("Example"), "the page of {words:?} has no example: name one in shell.rs\n{page}");
        let mut arguments = words.iter().map(String::as_str).collect::<Vec<_>>();
        arguments.push("--help");
        let help = routerctl(&arguments);
        assert!(help.contains("Example"), "{words:?} has no example: name one in shell.rs\n{help}");
        assert!(help.contains(&format!("routerctl {}", words.join(" "))), "{help}");
    }
    let top = std::fs::read_to_string(folder.path().join("routerctl.1")).unwrap();
    let daemon = std::fs::read_to_string(folder.path().join("routerd.8")).unwrap();
    for page in [&top, &daemon] {
        assert!(page.contains("Exit codes"), "{page}");
    }
    for words in subcommands.iter().filter(|words| words.len() == 1) {
        assert!(top.contains(&words[0].replace('-', "\\-")), "routerctl.1 does not tell of {words:?}");
    }
    assert!(daemon.contains("QUADWAY_NFT"), "{daemon}");
    assert!(routerctl(&["--help"]).contains("Exit codes"));
}

#[test]
fn completions_name_every_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    routerctl(&["man", folder.path().to_str().unwrap()]);
    let subcommands = pages(folder.path());
    for shell in ["bash", "zsh", "fish"] {
        let text = routerctl(&["completions", shell]);
        for word in subcommands.iter().flatten() {
            assert!(text.contains(word.as_str()), "{shell} does not know {word}");
        }
    }
    // What a shell cannot read completes nothing.
    let script = folder.path().join("routerctl.bash");
    std::fs::write(&script, routerctl(&["completions", "bash"])).unwrap();
    let read = Command::new("bash").arg("-n").arg(&script).status().unwrap();
    assert!(read.success());
}

#[test]
fn errors_say_what_to_do_next() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, "{}\n").unwrap();
    let (garbage, folder) = (garbage.to_str().unwrap(), folder.path().to_str().unwrap());
    let socket = format!("{folder}/api.sock");
    let table: [(&[&str], i32); 11] = [
        (&["check", "/nonexistent"], 1),
        (&["check", folder], 1),
        (&["replay", garbage], 1),
        (&["import", "mwan3", garbage], 1),
        (&["import", "mwan3", "--network", "/nonexistent", "--mwan3", garbage], 1),
        (&["man", garbage], 4),
        (&["status"], 3),
        (&["save"], 3),
        (&["restore", "/nonexistent"], 1),
        (&["restore", folder], 1),
        (&["restore", garbage], 3),
    ];
    for (arguments, code) in table {
        let mut command = Command::new(env!("CARGO_BIN_EXE_routerctl"));
        let output = command.args(["--socket", &socket]).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        // What is wrong, and below it what to do.
        assert!(text.lines().nth(1).is_some_and(|next| next.starts_with("  ")), "{arguments:?}: {text}");
    }
    for code in
        ["busy", "kernel", "timeout", "unavailable", "not-configured", "unclear", "unknown-wan", "no-journal", "bundle"]
    {
        assert!(router_daemon::shell::remedy(code).is_some(), "{code}");
    }
}

/// The words of each subcommand, from the names of the pages.
fn pages(folder: &Path) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(words) = name.strip_prefix("routerctl-").and_then(|name| name.strip_suffix(".1")) else { continue };
        // The one subcommand of two words written as one.
        let words = words.replace("fail-test", "fail_test");
        all.push(words.split('-').map(|word| word.replace("fail_test", "fail-test")).collect());
    }
    all.sort();
    assert!(all.len() >= 12, "{all:?}");
    all
}

fn routerctl(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_routerctl")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
