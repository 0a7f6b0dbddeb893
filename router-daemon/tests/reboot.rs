//! A machine that loses its power inside the window of an unconfirmed change, for good: the guest is reset without a
//! word to its file systems, and booted again with its disk. Two times: the window is still open after the first boot,
//! and an operator takes the change back; it has passed by the second, and routerd does. `make guest` runs it; what it
//! has done so far is on the disk.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "the helpers of a test fail it, or say why they skip")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const GOOD: &str = r#"
[site]
name = "reboot"

# Its programs take the emulated machine half a minute to verify, and are not what is tried here.
[router]
fast_path = false

[vlan.office]
id        = 10
addresses = ["10.0.10.1/24"]
access    = ["port0"]
internet  = "none"
input     = ["ping", "ssh"]
"#;

/// Longer than any reboot of an emulated machine.
const WINDOW: u64 = 900;
/// Longer than it takes to reset one.
const SHORT: u64 = 10;
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn what_nobody_confirmed_before_the_power_failed_is_taken_back_after_the_boot() {
    let Some(disk) = std::env::var_os("QUADWAY_GUEST_DISK").map(PathBuf::from) else {
        println!("SKIP: it resets the machine it runs on; `make guest` runs it in one that is there for that");
        return;
    };
    // The machine that is reset is the guest, never another.
    assert!(fs::read_to_string("/proc/cmdline").unwrap().contains(" guest_disk "), "this is no guest");
    assert!(fs::read_to_string("/proc/mounts").unwrap().contains(&format!("/dev/vda {} ext4", disk.display())));
    let cut = GOOD.replace("10.0.10.1/24", "10.0.11.1/24").replace(", \"ssh\"", "");
    let phase = fs::read_to_string(disk.join("phase")).unwrap_or_default();
    println!("boot {}, phase {phase:?}", fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim());
    // The power failed within the window: nothing of it was decided.
    let pending = fs::read_to_string(disk.join("state/pending.json")).unwrap_or_default();
    assert!(phase.is_empty() || pending.contains("\"ended\":null"), "{pending:?}");
    let router = Router::start(&disk);
    match phase.as_str() {
        "" => {
            router.apply(GOOD, &[]);
            office_is("10.0.10.1/24", "10.0.11.1/24");
            keep(&disk, "ruleset", &ruleset());
            router.apply(&cut, &["--confirm", &format!("{WINDOW}s")]);
            office_is("10.0.11.1/24", "10.0.10.1/24");
            reset(&disk, "window open");
        }
        "window open" => {
            office_is("10.0.11.1/24", "10.0.10.1/24");
            let pending = router.status()["applies"]["pending"].clone();
            let left = pending["remaining_seconds"].as_u64().expect("the change waits still");
            assert!(left < WINDOW, "{pending}");
            println!("{left} of {WINDOW} s are left after the boot");
            assert!(router.routerctl(&["rollback"]).status().unwrap().success());
            router.back(&disk, 2, "root took it back");

            router.apply(&cut, &["--confirm", &format!("{SHORT}s")]);
            reset(&disk, "window over");
        }
        "window over" => {
            until("the change is taken back", || router.status()["applies"]["pending"].is_null());
            router.back(&disk, 3, "nobody confirmed it ");
        }
        other => panic!("what the disk says is {other:?}"),
    }
}

fn keep(disk: &Path, name: &str, text: &str) {
    let mut file = File::create(disk.join(name)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.sync_all().unwrap();
    File::open(disk).unwrap().sync_all().unwrap();
}

/// As a power failure does: nothing is written to any disk that is not there yet.
fn reset(disk: &Path, phase: &str) -> ! {
    keep(disk, "phase", phase);
    println!("the power fails: {phase}");
    // The serial line is slower than the reset.
    thread::sleep(Duration::from_millis(300));
    fs::write("/proc/sysrq-trigger", "b").unwrap();
    thread::sleep(PATIENCE);
    panic!("the machine is not to be reset");
}

/// routerd in a namespace of the guest, its state on the disk.
struct Router {
    daemon: Child,
    socket: PathBuf,
}

impl Router {
    fn start(disk: &Path) -> Self {
        run("ip", &["netns", "add", NAME]);
        run("ip", &["-n", NAME, "link", "set", "lo", "up"]);
        // Its far end stays down: no packet fills a set of the ruleset.
        run("ip", &["-n", NAME, "link", "add", "port0", "type", "veth", "peer", "name", "far0"]);
        let folder = Path::new("/run/reboot");
        fs::create_dir_all(folder).unwrap();
        let daemon = Command::new("ip")
            .args([
                "netns",
                "exec",
                NAME,
                env!("CARGO_BIN_EXE_routerd"),
                "--config",
                "/run/reboot/site.toml",
                "--state",
            ])
            .arg(disk.join("state"))
            .args(["--run", "/run/reboot/run", "--bpf-dir", "/run/reboot/bpf"])
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let router = Self { daemon, socket: folder.join("run/api.sock") };
        until("routerd answers", || router.routerctl(&["version"]).status().unwrap().success());
        until("the kernel has it", || {
            let applies = router.status()["applies"].clone();
            applies["current"] == true || applies["succeeded"] == 0
        });
        router
    }

    fn routerctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_routerctl"));
        command.arg("--socket").arg(&self.socket).args(arguments);
        command.env_remove("SSH_CONNECTION").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn apply(&self, text: &str, terms: &[&str]) {
        let mut child = self.routerctl(&["apply", "-"]).args(terms).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn status(&self) -> serde_json::Value {
        let output = self.routerctl(&["--json", "status"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The config of before is in force, to the byte, and the history says why.
    fn back(&self, disk: &Path, number: u64, why: &str) {
        until("the kernel has it", || self.status()["applies"]["current"] == true);
        office_is("10.0.10.1/24", "10.0.11.1/24");
        assert_eq!(ruleset(), fs::read_to_string(disk.join("ruleset")).unwrap());
        assert_eq!(fs::read_to_string(disk.join("state/running.toml")).unwrap(), GOOD);
        let output = self.routerctl(&["--json", "history"]).output().unwrap();
        let history: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let last = history.as_array().unwrap().last().unwrap();
        assert_eq!(
            (&last["number"], &last["outcome"]["outcome"]),
            (&number.into(), &"rolled-back".into()),
            "{history}"
        );
        let told = last["outcome"]["why"].as_str().unwrap();
        assert!(told.starts_with(why), "{told}");
        println!("back: {told}");
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.daemon.kill().ok();
        self.daemon.wait().ok();
    }
}

fn ruleset() -> String {
    let nft = std::env::var("QUADWAY_NFT").unwrap();
    let listing = run("ip", &["netns", "exec", NAME, &nft, "-s", "list", "table", "inet", "quadway"]);
    let body = listing.trim().trim_start_matches("table inet quadway {\n").trim_end_matches("\n}");
    assert!(body.contains("chain in_10"), "{body}");
    // The kernel lists chains in the order they came to be.
    let mut blocks: Vec<_> = body.split("\n\n").collect();
    blocks.sort_unstable();
    blocks.join("\n\n")
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "after {PATIENCE:?} it is not so that {what}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until the office has this address, and not the other.
fn office_is(has: &str, has_not: &str) {
    until("the office has its address", || {
        let addresses = run("ip", &["-n", NAME, "-o", "address", "show", "vlan10"]);
        addresses.contains(has) && !addresses.contains(has_not)
    });
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const NAME: &str = "reboot";
