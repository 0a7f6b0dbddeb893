//! A router that is saved, changed and restored is what it was, to the byte; and so is another box that has nothing
//! but the file and the fingerprint.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::demo::wait_until_good;
use tests::lab::{Lab, Temporary};
use tests::listing::{assert_same, listing};
use tests::traffic::UdpFlow;
use tests::watch::{status, wait};

#[test]
fn what_is_restored_is_what_was_saved_to_the_byte_here_and_on_a_fresh_box() {
    let folder = tempfile::tempdir().unwrap();
    let (file, bad) = (folder.path().join("router.tar"), folder.path().join("bad.tar"));
    let Some(lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    let good = lab.site().text.clone();
    let changed = {
        let mut site: toml_edit::DocumentMut = good.parse().unwrap();
        site["vlan"]["office"]["addresses"][0] = toml_edit::value("10.0.11.1/24");
        site.to_string()
    };
    fs::write(folder.path().join("changed.toml"), &changed).unwrap();
    let change = || assert!(routerctl(&lab, ["apply"], &folder.path().join("changed.toml")).status.success());
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    let before = listing(&lab);

    let saved = json(&routerctl(&lab, ["--json", "save"], &file));
    let fingerprint = saved["fingerprint"].as_str().unwrap().to_owned();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(saved["manifest"]["site"], "minimal", "{saved}");
    let key = fs::metadata(lab.state_directory().join("box.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    change();
    let between = listing(&lab);
    assert_ne!(between, before);

    // Changed where it matters, cut off, another's: nothing of it is taken.
    let bytes = fs::read(&file).unwrap();
    let at = bytes.windows(9).position(|window| window == b"10.0.10.1").unwrap();
    let mut tampered = bytes.clone();
    tampered[at + 6] = b'9';
    for (bytes, told) in [
        (tampered.as_slice(), "config.toml: its SHA-256 is not the manifest's"),
        (&bytes[..at], "cut off"),
        (b"[site]\nname = \"x\"\n", "nothing of the bundle was taken"),
    ] {
        fs::write(&bad, bytes).unwrap();
        let refused = routerctl(&lab, ["restore"], &bad);
        assert_eq!(refused.status.code(), Some(1));
        assert!(said(&refused).contains(told), "{}", said(&refused));
    }
    assert_same(&between, &listing(&lab), "refused bundles");

    // Tried, and taken back.
    let tried = routerctl(&lab, ["restore", "--confirm", "3s"], &file);
    assert!(tried.status.success() && said(&tried).contains("`routerctl confirm`"), "{}", said(&tried));
    let refused = routerctl(&lab, ["save"], &bad);
    assert!(refused.status.code() == Some(1) && said(&refused).contains("a change waits"), "{}", said(&refused));
    assert_eq!(running(&lab), changed);
    wait("the change is taken back", || Ok(status(&lab)?["applies"]["pending"].is_null())).unwrap();
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    wait("the kernel has it", || Ok(status(&lab)?["applies"]["current"] == true)).unwrap();
    assert_same(&between, &listing(&lab), "a restore that nobody confirmed");

    let restored = routerctl(&lab, ["restore", "-m", "the change was wrong"], &file);
    assert!(restored.status.success(), "{}", said(&restored));
    assert!(said(&restored).contains("which has all that the bundle's has"), "{}", said(&restored));
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    assert_same(&before, &listing(&lab), "a restore");
    assert_eq!(running(&lab), good);
    let told = history(&lab);
    let short = &bundle_told(&restored)[..12];
    let message = told[3]["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("the change was wrong (restored from bundle {short} of ")), "{message}");
    assert_eq!(told.len(), 4, "{told:?}");
    let second = json(&routerctl(&lab, ["--json", "save"], &file));
    assert_eq!(second["fingerprint"], fingerprint.as_str(), "one box, one key");
    drop(lab);

    // Another box, with nothing on it.
    let mut fresh = Temporary::up(SITE, 2, false).unwrap();
    fs::remove_file(fresh.site_file()).unwrap();
    fresh.start_router().unwrap();
    let refused = routerctl(&fresh, ["restore"], &file);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains(&format!("--trust {fingerprint}")), "{}", said(&refused));
    assert_eq!(status(&fresh).unwrap()["applies"]["succeeded"], 0);
    let restored = routerctl(&fresh, ["restore", "--trust", &fingerprint], &file);
    assert!(restored.status.success(), "{}", said(&restored));
    assert!(said(&restored).contains("it has the bundle's, 4 entries"), "{}", said(&restored));
    wait_until_good(&fresh, Duration::from_mins(1)).unwrap();
    // But for what the MACs of this lab's ports make.
    let of_the_config = |listing: BTreeMap<String, String>| {
        let line = |line: &&str| !line.starts_with("local fe80::");
        let kept = ["nft", "rule", "-6 rule", "route show table all", "-6 route show table all"];
        let without = |text: &String| text.lines().filter(line).collect::<Vec<_>>().join("\n");
        kept.map(|listed| (listed.to_owned(), without(&listing[listed]))).into()
    };
    assert_same(&of_the_config(before), &of_the_config(listing(&fresh)), "a fresh box");
    assert_eq!(running(&fresh), good);
    let now = history(&fresh);
    assert_eq!(now[..told.len()], told[..], "the history of the old box, with its numbers");
    assert_eq!((now.len(), &now[4]["number"]), (5, &Value::from(5)));
    let other = json(&routerctl(&fresh, ["--json", "save"], &bad));
    assert_ne!(other["fingerprint"], fingerprint.as_str(), "another box, another key");
}

#[test]
fn a_guarded_restore_stays_where_it_does_no_harm_and_is_taken_back_where_it_denies() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.tar"), folder.path().join("bad.tar"));
    let Some(lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
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
    let file = folder.path().join("site.toml");
    let apply = |text: &str| {
        fs::write(&file, text).unwrap();
        let applied = routerctl(&lab, ["apply"], &file);
        assert!(applied.status.success(), "{}", said(&applied));
    };
    for (text, bundle) in [(&closed, &bad), (&no_harm, &good)] {
        apply(text);
        json(&routerctl(&lab, ["--json", "save"], bundle));
    }
    apply(&lab.site().text);
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();

    let flow = UdpFlow::start(&lab.host(10), None, "198.51.100.1:7".parse().unwrap(), 100).unwrap();
    let guarded = |bundle: &Path, guard: &str| {
        let begun = Instant::now();
        loop {
            let answer = routerctl(&lab, ["restore", guard], bundle);
            // So soon after another config there is nothing to compare with.
            if !said(&answer).contains("has not been measured for long enough") {
                return answer;
            }
            assert!(begun.elapsed() < Duration::from_mins(1), "{}", said(&answer));
            thread::sleep(Duration::from_secs(1));
        }
    };
    let kept = guarded(&good, "--guard=12s");
    assert!(kept.status.success() && said(&kept).contains("kept: no line got worse"), "{}", said(&kept));
    assert_eq!(running(&lab), no_harm);
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    let before = listing(&lab);

    let refused = guarded(&bad, "--guard");
    let why = "packets a second are denied";
    assert!(refused.status.code() == Some(5) && said(&refused).contains(why), "{}", said(&refused));
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    assert_same(&before, &listing(&lab), "a restore that a guard took back");
    assert_eq!(running(&lab), no_harm);
    let applies = status(&lab).unwrap()["applies"].clone();
    assert_eq!(applies["rollbacks"]["guard"], 1, "{applies}");
    assert!(applies["rolled_back"].as_str().unwrap().contains(why), "{applies}");
    flow.stop();

    // Both stand in the history with the bundle they are of, and the way back is a number.
    let told = history(&lab);
    let [.., stays, taken_back] = told.as_slice() else { panic!("{told:?}") };
    for (entry, outcome) in [(stays, "confirmed"), (taken_back, "rolled-back")] {
        assert!(entry["message"].as_str().unwrap().starts_with("restored from bundle "), "{told:?}");
        assert_eq!(entry["outcome"]["outcome"], outcome, "{told:?}");
    }
    assert!(taken_back["outcome"]["why"].as_str().unwrap().contains(why), "{told:?}");
    json(&routerctl(&lab, ["--json", "save"], &good));
}

fn routerctl<const N: usize>(lab: &Lab, arguments: [&str; N], file: &Path) -> Output {
    let mut command = lab.routerctl().unwrap();
    command.env_remove("SSH_CONNECTION").args(arguments.map(OsStr::new)).arg(file).output().unwrap()
}

/// Both of what it wrote.
fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Of the bundle, as `restore` tells it in its first line.
fn bundle_told(output: &Output) -> String {
    said(output).split_whitespace().nth(1).unwrap().to_owned()
}

fn history(lab: &Lab) -> Vec<Value> {
    let told = lab.routerctl().unwrap().args(["history", "--json"]).output().unwrap();
    json(&told).as_array().unwrap().clone()
}

fn running(lab: &Lab) -> String {
    fs::read_to_string(lab.state_directory().join("running.toml")).unwrap()
}

const SITE: &str = include_str!("../../config/examples/minimal.toml");
