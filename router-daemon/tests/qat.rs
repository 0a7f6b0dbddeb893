//! `routerctl qat` as an operator has it: without a library, and with the simulator for a card.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail it")]

use std::process::{Command, Output};

use clap::Parser;
use qat_sim::{Fault, Simulator};
use router_daemon::crypto::command::Qat;
use serde_json::Value;

fn routerctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_routerctl")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn without_a_library_it_says_what_is_missing_and_what_to_install() {
    let output = routerctl(&["qat", "status", "--library", "/nowhere/libqat_s.so"]);
    let told = text(&output);
    assert!(output.status.success(), "{told}");
    for word in [
        "device: none",
        "library: ",
        "/nowhere/libqat_s.so",
        "- card ",
        "Intel's out-of-tree driver",
        "libqat4",
        "qat_c62x",
        "firmware-intel-misc",
        "one or the other",
    ] {
        assert!(told.contains(word), "{word}: {told}");
    }
}

#[test]
fn what_the_kernel_has_of_a_card_is_told_with_its_heartbeats() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "proc/crypto",
        "name : authenc(hmac(sha256),cbc(aes))\ndriver : qat_aes_cbc_hmac_sha256\npriority : 100\nrefcnt : 2\n\
         selftest : passed\n\n\
         name : authenc(hmac(sha256),cbc(aes))\ndriver : authenc(hmac-sha256-lib,cbc-aes-aesni)\npriority : 4300\n\
         refcnt : 1\nselftest : passed\n",
    );
    write("sys/kernel/debug/qat_c62x_0000:3d:00.0/heartbeat/status", "-1\n");
    let arguments = ["qat", "status", "--library", "/nowhere/libqat_s.so", "--root", root.path().to_str().unwrap()];
    let told = text(&routerctl(&arguments));
    for part in [
        "+ kernel crypto  qat_aes_cbc_hmac_sha256\n",
        "- firmware ",
        "in the kernel, for IPsec:\n",
        "priority 100, 1 users; authenc(hmac-sha256-lib,cbc-aes-aesni) (4300) is taken before it\n",
        "qat_c62x_0000:3d:00.0: IT DOES NOT ANSWER\n",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let output = routerctl(&[&["--json"], &arguments[..]].concat());
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["kernel"]["algorithms"][0]["users"], 1, "{status}");
    assert_eq!(status["kernel"]["devices"][0]["heartbeat"], "silent", "{status}");
}

#[test]
fn a_selftest_without_a_device_does_not_pass_and_leaves_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report");
    let path = path.to_str().unwrap();
    let output =
        routerctl(&["qat", "--library", "/nowhere/libqat_s.so", "selftest", path, "--operations", "48", "--for", "1m"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report = std::fs::read_to_string(format!("{path}.txt")).unwrap();
    assert!(report.contains("no device: library") && report.contains("load: 48 operations"), "{report}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(format!("{path}.json")).unwrap()).unwrap();
    assert_eq!(report["passed"], false);
    assert!(report["cpu"].as_array().unwrap().iter().all(|test| test[1] == true), "{report}");
    assert_eq!(report["load"]["wrong"], Value::Array(Vec::new()));
}

#[test]
fn a_simulator_is_told_in_capitals_and_passes_its_selftest() {
    let simulator = Simulator::fresh();
    let library = simulator.path().to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report");
    let path = path.to_str().unwrap();
    let output = routerctl(&["qat", "selftest", path, "--operations", "160", "--for", "1m", "--library", library]);
    let told = text(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.starts_with("PASSED by a SIMULATOR") && told.contains("SIMULATOR 2 of device 2: in use"), "{told}");
    assert_eq!(told.matches("SIMULATOR: this is no card").count(), 1, "{told}");
    assert!(
        told.contains("16 of 16 known answers right") && told.contains("SIMULATOR DC 2 of device 2: in use"),
        "{told}"
    );
    assert!(told.contains("2 of 2 known answers right") && told.contains("device@32"), "{told}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(format!("{path}.json")).unwrap()).unwrap();
    assert_eq!((&report["passed"], &report["load"]["operations"]), (&Value::Bool(true), &160.into()));
    assert!(report["load"]["offloaded"].as_u64().unwrap() > 80, "{report}");
    assert_eq!(report["status"]["instances"][0]["simulator"], true);
    let choices = report["status"]["choices"].as_array().unwrap();
    let chosen = |choice: &Value| choice["operation"] == "RSA-2048 private" && choice["choice"].is_string();
    assert!(choices.iter().any(chosen) && told.contains("  choice\n"), "{told}");
}

#[test]
fn a_status_has_what_was_measured_and_is_json_where_asked() {
    let simulator = Simulator::fresh();
    let output = routerctl(&["--json", "qat", "status", "--library", simulator.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["missing"], Value::Null);
    assert_eq!(status["instances"].as_array().unwrap().len(), 6);
    let choices = status["choices"].as_array().unwrap();
    assert!(choices.iter().any(|choice| choice["choice"].is_string()), "{choices:?}");
}

#[test]
fn a_bench_without_a_device_has_the_cpu() {
    let output = routerctl(&["qat", "bench", "--for", "2ms", "--library", "/nowhere/libqat_s.so"]);
    let told = text(&output);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("RSA-4096 private") && told.contains("Aes256CbcHmacSha256 Seal") && told.contains("inflate"),
        "{told}"
    );
    assert!(told.contains("no device: `routerctl qat status`"), "{told}");
}

#[test]
fn a_device_that_is_wrong_once_does_not_pass_and_the_report_names_it() {
    let simulator = Simulator::fresh();
    simulator.set(Fault::WrongX25519, 0b010);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report");
    let (library, report) = (simulator.path().to_str().unwrap(), path.to_str().unwrap());
    // In this process, where the simulator can be told what to do.
    let words = ["qat", "selftest", report, "--operations", "160", "--for", "1m", "--library", library];
    let told = Asked::parse_from(words).qat.run().unwrap();
    assert!(!told.passed && told.text.starts_with("NOT PASSED by a SIMULATOR"), "{}", told.text);
    assert!(
        told.text.contains("SIMULATOR 1 of device 1: 15 of 16 known answers right; wrong or none: X25519\n"),
        "{}",
        told.text
    );
    assert_eq!(told.json["load"]["wrong"], Value::Array(Vec::new()));
    assert!(std::fs::read_to_string(format!("{report}.txt")).unwrap().starts_with("NOT PASSED"));
}

#[derive(Debug, clap::Parser)]
struct Asked {
    #[command(flatten)]
    qat: Qat,
}
