//! A second site on the Internet of a lab: one that has nothing of ours, and strongSwan as its own operator set it up.
//!
//! ```text
//!   NAME-internet  branch ─────── eth0  NAME-branch   203.0.113.50, and 10.9.0.5 behind it
//! ```

use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, binary, tail};
use crate::netns::{Netns, feed, run};
use crate::patience;
use crate::root::Root;
use crate::world;

/// Where the second site is on the Internet, and a host of it.
pub const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 50);
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 5);
const STAND_IN: &str = "wireguard-go";

/// The second site. What it runs ends with the value.
#[derive(Debug)]
pub struct Branch {
    pub place: Netns,
    folder: PathBuf,
    children: Vec<Child>,
}

impl Branch {
    /// Its namespace, its way to the Internet and a host that answers; no tunnel.
    pub fn up(lab: &Lab) -> Result<Self> {
        let place = Netns::create(&format!("{}-branch", lab.name()))?;
        let folder = lab.state_directory().join("branch");
        fs::create_dir_all(&folder)?;
        place.sysctls([
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        lab.internet()
            .ip(&format!("link add branch type veth peer name eth0 netns {}\nlink set branch up\n", place.name()))?;
        place.ip(&format!(
            "link set lo up\nlink set eth0 up\naddr add {PEER}/32 dev eth0\naddr add {HOST}/24 dev lo\n\
             route add 100.127.255.1/32 dev eth0\nroute add default via 100.127.255.1\n"
        ))?;
        lab.internet().ip(&format!("addr add 100.127.255.1/32 dev branch\nroute add {PEER}/32 dev branch\n"))?;
        let mut branch = Self { place, folder, children: Vec::new() };
        let root = Root::find()?;
        // What only crosses the Internet is not answered there.
        let across = format!(
            "insert rule inet world all_ports ip daddr {PEER} return\n\
             insert rule inet world all_ports ip saddr {PEER} return\n"
        );
        feed(root.command(&lab.internet(), "nft").args(["-f", "-"]), &across)?;
        feed(root.command(&branch.place, "nft").args(["-f", "-"]), &world::ruleset())?;
        let own = "insert rule inet world all_ports udp dport { 7, 500, 4500, 51820 } return\n";
        feed(root.command(&branch.place, "nft").args(["-f", "-"]), own)?;
        let program = binary("lab")?;
        let name = branch.place.name().to_owned();
        let mut world = branch.place.command(&program);
        world.args(["world", &name]);
        branch.spawn("world", &mut world)?;
        Ok(branch)
    }

    /// strongSwan, with this file of connections. It does ESP itself where the kernel does not.
    pub fn strongswan(&mut self, connections: &str) -> Result<()> {
        let (own_esp, marks) = if has_esp() {
            ("", "")
        } else {
            (
                "kernel-libipsec ",
                "        kernel-netlink {
            fwmark = !0x42
        }
        socket-default {
            fwmark = 0x42
        }
",
            )
        };
        let (settings, file, socket) =
            (self.folder.join("strongswan.conf"), self.folder.join("swanctl.conf"), self.folder.join("vici"));
        fs::write(
            &settings,
            format!(
                "charon-systemd {{
    load_modular = no
    load = {own_esp}random nonce openssl pem pkcs1 pkcs8 x509 pubkey constraints drbg gcm kernel-netlink socket-default vici
    plugins {{
        vici {{
            socket = unix://{}
        }}
{marks}    }}
    filelog {{
        stderr {{
            default = 0
            ike = 1
            flush_line = yes
        }}
    }}
}}
",
                socket.display()
            ),
        )?;
        fs::write(&file, connections)?;
        let mut charon = Root::find()?.command(&self.place, "charon-systemd");
        charon.env("STRONGSWAN_CONF", &settings);
        self.spawn("charon", &mut charon)?;
        let deadline = Instant::now() + patience(Duration::from_secs(10));
        while !socket.exists() {
            if Instant::now() > deadline {
                bail!("the second site's strongSwan does not start: {}", tail(&self.log("charon")));
            }
            thread::sleep(Duration::from_millis(50));
        }
        let mut load = Root::find()?.command(&self.place, "swanctl");
        load.env("STRONGSWAN_CONF", &settings).args(["--load-all", "--file"]).arg(&file);
        load.arg("--uri").arg(format!("unix://{}", socket.display()));
        run(&mut load).map(drop).context("the second site's connections are not taken")
    }

    /// `WireGuard` of whatever kind this machine has, with these settings; what is behind the other end is reached by it.
    pub fn wireguard(&mut self, interface: &str, settings: &str, beyond: &str) -> Result<()> {
        if self.place.ip(&format!("link add {interface} type wireguard\n")).is_err() {
            let mut device = Root::find()?.command(&self.place, STAND_IN);
            device.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1").args(["--foreground", interface]);
            self.spawn(STAND_IN, &mut device)?;
        }
        let deadline = Instant::now() + patience(Duration::from_secs(10));
        loop {
            let mut wg = Root::find()?.command(&self.place, "wg");
            match feed(wg.args(["setconf", interface, "/dev/stdin"]), settings) {
                Ok(()) => break,
                Err(error) if Instant::now() > deadline => return Err(error).context("the second site's WireGuard"),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
        self.place.ip(&format!("link set {interface} up\nroute add {beyond} dev {interface} src {HOST}\n"))
    }

    /// What its strongSwan says of its associations.
    pub fn associations(&self) -> Result<String> {
        let mut list = Root::find()?.command(&self.place, "swanctl");
        list.args(["--list-sas", "--uri"]).arg(format!("unix://{}", self.folder.join("vici").display()));
        run(&mut list)
    }

    pub fn log(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{what}.log"))
    }

    pub fn spawn(&mut self, what: &str, command: &mut Command) -> Result<()> {
        let log = File::create(self.log(what))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.children.push(child.with_context(|| format!("{what} of the second site"))?);
        Ok(())
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        for child in &mut self.children {
            if let Ok(pid) = i32::try_from(child.id()) {
                kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
            }
            let deadline = Instant::now() + Duration::from_secs(3);
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    child.kill().ok();
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Whether this machine's kernel has ESP, and interfaces for it.
pub fn has_esp() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let Ok(trial) = Netns::create(&format!("esp-{}", std::process::id())) else { return false };
        trial.ip("link add ipsec0 type xfrm if_id 1\n").is_ok()
    })
}

/// What the kernel in this namespace has sealed and opened by ESP: for each association its algorithms, whether its
/// sequence numbers are extended, and its bytes. No keys.
pub fn sealed(at: &Netns) -> Result<Vec<Sealed>> {
    let text = run(Command::new("ip").args(["-netns", at.name(), "-statistics", "xfrm", "state"]))?;
    Ok(text.split("\nsrc ").filter_map(Sealed::read).collect())
}

/// An association of ESP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// `cbc(aes)` and `hmac(sha256)`, or one that is both.
    pub algorithms: Vec<String>,
    pub extended: bool,
    pub bytes: u64,
}

impl Sealed {
    fn read(text: &str) -> Option<Self> {
        let first = |line: &str, keys: &[&str]| {
            let mut words = line.split_ascii_whitespace();
            words.next().filter(|key| keys.contains(key)).and_then(|_| words.next()).map(str::to_owned)
        };
        let algorithms = text.lines().filter_map(|line| first(line, &["aead", "enc", "auth", "auth-trunc"])).collect();
        let extended = text.lines().any(|line| line.contains("flag") && line.contains("esn"));
        let current = text.split_once("lifetime current:")?.1.trim_start();
        Some(Self { algorithms, extended, bytes: current.split_once("(bytes)")?.0.parse().ok()? })
    }
}

/// Whether this machine's kernel has `WireGuard`, or its root what stands in for it.
pub fn has_wireguard() -> bool {
    let Ok(trial) = Netns::create(&format!("wireguard-{}", std::process::id())) else { return false };
    let kernel = trial.ip("link add wg0 type wireguard\n").is_ok();
    let program = match Root::find() {
        Ok(Root::Directory(root)) => root.join("usr/bin").join(STAND_IN),
        Ok(Root::Host) | Err(_) => Path::new("/usr/bin").join(STAND_IN),
    };
    kernel || program.exists()
}

/// A private key and its public one.
pub fn keys(at: &Netns) -> Result<(String, String)> {
    let private = run(Root::find()?.command(at, "wg").arg("genkey"))?;
    let output = {
        let mut pubkey = Root::find()?.command(at, "wg");
        let mut child = pubkey.arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(private.as_bytes())?;
        child.wait_with_output()?
    };
    Ok((private.trim().to_owned(), String::from_utf8(output.stdout)?.trim().to_owned()))
}

/// A file that only its owner may read.
pub fn secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_sealed_is_read() {
        let text = "203.0.113.10 dst 203.0.113.50\n\tproto esp spi 0xc94c1c0f(3377208335) reqid 1(0x00000001) mode tunnel\n\
                    \treplay-window 32 seq 0x00000000 flag af-unspec (0x00100000)\n\
                    \tauth-trunc hmac(sha256) 0x00 (256 bits) 128\n\tenc cbc(aes) 0x00 (256 bits)\n\
                    \tencap type espinudp sport 4500 dport 4500 addr 0.0.0.0\n\
                    \tlifetime config:\n\t  limit: soft (INF)(bytes), hard (INF)(bytes)\n\
                    \tlifetime current:\n\t  1176(bytes), 14(packets)\n";
        let wanted =
            Sealed { algorithms: vec!["hmac(sha256)".to_owned(), "cbc(aes)".to_owned()], extended: false, bytes: 1176 };
        assert_eq!(Sealed::read(text), Some(wanted));
    }
}
