//! The loader against Debian's real libraries, unpacked by `make qat`, on a machine without a device.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::Path;
use std::process::Command;

const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn debian_13s_library_opens_and_tells_of_no_device() {
    probe("trixie", "version: 24.02.");
}

#[test]
fn the_library_of_debians_next_opens_and_tells_of_no_device() {
    probe("sid", "version: 26.");
}

fn probe(suite: &str, version: &str) {
    let root = format!("{TOP}/target/qat/libraries/{suite}");
    if !Path::new(&root).exists() {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "{root} is missing: run make qat");
        println!("skipped: {root} is missing; make qat unpacks it");
        return;
    }
    // Beside this program's folder, where cargo puts examples.
    let here = std::env::current_exe().unwrap();
    let example = here.parent().unwrap().parent().unwrap().join("examples/probe");
    let output = Command::new(format!("{TOP}/tests/root/enter"))
        .arg(&root)
        .arg(format!("/host{}", example.canonicalize().unwrap().display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for line in ["library: /usr/lib/x86_64-linux-gnu/libqat.so.4", version, "available: Ok(0)", ", 0 instances"] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
}
