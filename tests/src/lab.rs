//! The lab: a router, its Internet lines, the Internet behind them and a host in every VLAN, each in a network
//! namespace of its own.
//!
//! ```text
//!            NAME-router                      NAME-isp1..N                  NAME-internet
//!   v10 v20 … ── wan1..N ───────────── cust [faults] net0 ─────────── isp1..N   198.51.100.0/24, 2001:db8:100::/64
//!    │   │       .2, ::2        gateway .1, ::1
//!  eth0 eth0
//!  NAME-v10, NAME-v20, …
//! ```
//!
//! What a lab consists of is written to `/run/quadway-NAME/lab.json` before it is made, so that whatever a broken
//! run leaves can be removed, and nothing else is.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::link::Fault;
use crate::netns::{Netns, feed, run};
use crate::root::Root;
use crate::site::{Site, TARGETS4, TARGETS6, Wan};
use crate::world;

/// What lab to build.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The first part of the names of all its namespaces.
    pub name: String,
    /// The site file, as an operator writes it.
    pub site: String,
    pub wans: u8,
    /// All lines have the same subnet and the same gateway.
    pub same_gateway: bool,
}

/// A lab that is up.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lab {
    name: String,
    site: Site,
    same_gateway: bool,
    namespaces: Vec<String>,
    processes: BTreeMap<String, Process>,
    faults: BTreeMap<u8, Vec<Fault>>,
}

/// A process of the lab and the group it leads. The start time tells it from a stranger that got its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    pid: i32,
    started: u64,
}

impl Lab {
    /// Builds a lab, without a router program in it. A lab of this name that is there goes first.
    pub fn up(spec: &Spec) -> Result<Self> {
        if !spec.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') || spec.name.is_empty() {
            bail!("a lab is named with letters, digits and '-', not {:?}", spec.name);
        }
        let root = Root::find()?;
        Self::down(&spec.name)?;
        let site = Site::derive(&spec.site, spec.wans, spec.same_gateway)?;
        let mut lab = Self {
            name: spec.name.clone(),
            namespaces: Vec::new(),
            processes: BTreeMap::new(),
            faults: BTreeMap::new(),
            same_gateway: spec.same_gateway,
            site,
        };
        lab.namespaces = [lab.router(), lab.internet()]
            .into_iter()
            .chain(lab.site.wans.iter().map(|wan| lab.isp(wan.number)))
            .chain(lab.site.vlans.iter().map(|vlan| lab.host(vlan.id)))
            .map(|namespace| namespace.name().to_owned())
            .collect();
        std::fs::create_dir_all(lab.directory())?;
        std::fs::write(lab.site_file(), &lab.site.text)?;
        lab.save()?;
        let bpf = lab.bpf_directory();
        std::fs::create_dir(&bpf)?;
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("cannot mount a BPF file system at {}", bpf.display()))?;
        match lab.build(&root) {
            Ok(()) => Ok(lab),
            Err(error) => {
                Self::down(&spec.name)?;
                Err(error)
            }
        }
    }

    /// The lab of this name.
    pub fn open(name: &str) -> Result<Self> {
        let path = directory(name).join("lab.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("there is no lab called {name:?} ({}): lab up makes it", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} was written by another version", path.display()))
    }

    /// Removes the lab of this name and all that it made.
    pub fn down(name: &str) -> Result<()> {
        let path = directory(name);
        if !path.join("lab.json").exists() {
            return Ok(());
        }
        let lab = Self::open(name)?;
        lab.processes.values().for_each(Process::terminate);
        lab.processes.values().try_for_each(Process::end)?;
        // What a killed routerd ran goes on without it.
        if lab.router().exists() {
            for pid in run(Command::new("ip").args(["netns", "pids", lab.router().name()]))?.lines() {
                kill(Pid::from_raw(pid.trim().parse()?), Signal::SIGKILL).ok();
            }
        }
        thread::scope(|scope| {
            for namespace in lab.namespaces.iter().filter(|name| Netns::named(name).exists()) {
                scope.spawn(move || run(Command::new("ip").args(["netns", "delete", namespace])));
            }
        });
        if let Some(left) = lab.namespaces.iter().find(|name| Netns::named(name).exists()) {
            bail!("the namespace {left} cannot be removed");
        }
        match umount2(&lab.bpf_directory(), MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => bail!("cannot unmount {}: {error}", lab.bpf_directory().display()),
        }
        std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn site(&self) -> &Site {
        &self.site
    }

    pub fn faults(&self) -> &BTreeMap<u8, Vec<Fault>> {
        &self.faults
    }

    pub fn namespaces(&self) -> &[String] {
        &self.namespaces
    }

    pub fn router(&self) -> Netns {
        self.namespace("router")
    }

    pub fn internet(&self) -> Netns {
        self.namespace("internet")
    }

    pub fn isp(&self, number: u8) -> Netns {
        self.namespace(&format!("isp{number}"))
    }

    /// The host in the VLAN of this number.
    pub fn host(&self, vlan: u16) -> Netns {
        self.namespace(&format!("v{vlan}"))
    }

    /// The namespace that `router`, `internet`, `isp2`, `v30`, the name of a VLAN or the name of a host stands for.
    pub fn place(&self, name: &str) -> Result<Netns> {
        let name = name.strip_prefix(&format!("{}-", self.name)).unwrap_or(name);
        let vlan = self.site.vlans.iter().find(|vlan| vlan.name == name || vlan.hosts.contains_key(name));
        let place = vlan.map_or_else(|| self.namespace(name), |vlan| self.host(vlan.id));
        if !self.namespaces.iter().any(|known| known == place.name()) {
            bail!("{name:?} is no place in this lab; there are {}", self.namespaces.join(", "));
        }
        Ok(place)
    }

    /// The file that the lab's router is configured with.
    pub fn site_file(&self) -> PathBuf {
        self.directory().join("site.toml")
    }

    /// Where what `what` prints is kept: `routerd`, `internet`, `v10` ….
    pub fn log(&self, what: &str) -> PathBuf {
        self.directory().join(format!("{what}.log"))
    }

    /// Breaks a line. A fault of the same kind is replaced, others stay.
    pub fn fail(&mut self, number: u8, fault: Fault) -> Result<()> {
        let mut faults = self.faults.get(&number).cloned().unwrap_or_default();
        faults.retain(|old| !old.same_kind(fault));
        faults.push(fault);
        self.set_faults(number, faults)
    }

    /// Makes a line good again.
    pub fn heal(&mut self, number: u8) -> Result<()> {
        self.set_faults(number, Vec::new())
    }

    /// Starts routerd in the lab; returns when it answers.
    pub fn start_router(&mut self) -> Result<()> {
        let command = self.routerd()?;
        self.start(command)
    }

    /// The same, with a variable in its environment.
    pub fn start_router_with(&mut self, variable: &str, value: &str) -> Result<()> {
        let mut command = self.routerd()?;
        command.env(variable, value);
        self.start(command)
    }

    fn start(&mut self, mut command: Command) -> Result<()> {
        self.spawn("routerd", &mut command)?;
        let deadline = Instant::now() + crate::patience(Duration::from_secs(10));
        loop {
            match run(self.routerctl()?.arg("status")) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline || !self.runs("routerd") => {
                    bail!("routerd does not answer: {error:#}\n{}", tail(&self.log("routerd")))
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The command that starts routerd in this lab, for those who want to watch it.
    pub fn routerd(&self) -> Result<Command> {
        for directory in [self.run_directory(), self.state_directory()] {
            std::fs::create_dir_all(directory)?;
        }
        let mut command = Root::find()?.program(&self.router(), &binary("routerd")?);
        command
            .env_remove("QUADWAY_NFT")
            .arg("--config")
            .arg(self.site_file())
            .arg("--state")
            .arg(self.state_directory())
            .arg("--run")
            .arg(self.run_directory())
            .arg("--bpf-dir")
            .arg(self.bpf_directory());
        Ok(command)
    }

    /// Ends routerd as an operator does, or as a crash does.
    pub fn stop_router(&mut self, signal: Signal) -> Result<()> {
        if let Some(process) = self.processes.remove("routerd") {
            process.signal(signal);
            process.end()?;
        }
        self.save()
    }

    /// routerctl, talking to the routerd of this lab.
    pub fn routerctl(&self) -> Result<Command> {
        let mut command = Command::new(binary("routerctl")?);
        command.arg("--socket").arg(self.api_socket());
        Ok(command)
    }

    pub fn api_socket(&self) -> PathBuf {
        self.run_directory().join("api.sock")
    }

    /// Whether a process of the lab is alive: `routerd`, `internet`, `v10` ….
    pub fn runs(&self, what: &str) -> bool {
        self.processes.get(what).is_some_and(Process::alive)
    }

    pub fn processes(&self) -> impl Iterator<Item = (&str, i32)> {
        self.processes.iter().map(|(what, process)| (what.as_str(), process.pid))
    }

    fn build(&mut self, root: &Root) -> Result<()> {
        thread::scope(|scope| {
            let made: Vec<_> =
                self.namespaces.iter().map(|name| scope.spawn(|| prepare(&Netns::create(name)?.kept()))).collect();
            made.into_iter().try_for_each(joined)
        })?;
        self.build_internet()?;
        for wan in &self.site.wans {
            self.build_isp(wan)?;
        }
        for vlan in &self.site.vlans {
            let mut lines =
                vec![format!("link add eth0 type veth peer name {} netns {}\n", vlan.port(), self.router().name())];
            lines.extend(vlan.addresses.iter().map(|address| address_line("add", *address, "eth0")));
            lines.push("link set eth0 up\n".to_owned());
            lines.extend(vlan.gateways.iter().map(|gateway| format!("route add default via {}\n", gateway.addr())));
            self.host(vlan.id).ip(&lines.concat())?;
        }

        let servers: Vec<(String, Netns)> = [("internet".to_owned(), self.internet())]
            .into_iter()
            .chain(self.site.vlans.iter().map(|vlan| (vlan.port(), self.host(vlan.id))))
            .collect();
        thread::scope(|scope| {
            let loaded: Vec<_> = servers
                .iter()
                .map(|(_, place)| scope.spawn(|| feed(root.command(place, "nft").args(["-f", "-"]), &world::ruleset())))
                .collect();
            loaded.into_iter().try_for_each(joined)
        })?;
        let program = binary("lab")?;
        for (what, place) in &servers {
            self.spawn(what, place.command(&program).args(["world", place.name()]))?;
        }
        servers.iter().try_for_each(|(what, _)| self.wait_ready(what))
    }

    fn build_internet(&self) -> Result<()> {
        let internet = self.internet();
        let own4 = TARGETS4.iter().map(|address| format!("addr add {address}/32 dev lo\n"));
        let own6 = TARGETS6.iter().map(|address| format!("addr add {address}/128 dev lo nodad\n"));
        let lines: String = own4.chain(own6).collect();
        // Every address of these is the Internet's own.
        internet
            .ip(&format!("{lines}route add local 198.51.100.0/24 dev lo\nroute add local 2001:db8:100::/64 dev lo\n"))
    }

    fn build_isp(&self, wan: &Wan) -> Result<()> {
        let n = wan.number;
        self.isp(n).ip(&format!(
            "link add cust index {index} type veth peer name wan{n} netns {router}\n\
             link add net0 type veth peer name isp{n} netns {internet}\n\
             link set cust up\n\
             link set net0 up\n\
             {addresses}\
             addr add 100.127.{n}.2/30 dev net0\n\
             addr add fd00:100:{n}::2/64 dev net0 nodad\n\
             route add default via 100.127.{n}.1\n\
             route add default via fd00:100:{n}::1\n",
            index = OTHER_INDEX + u32::from(n),
            router = self.router().name(),
            internet = self.internet().name(),
            addresses = customer_side(wan),
        ))?;
        // With the same subnet everywhere, only the router's own address tells the lines apart.
        let (net4, net6) = if self.same_gateway {
            (format!("{}/32", wan.router4.addr()), format!("{}/128", wan.router6.addr()))
        } else {
            (wan.router4.trunc().to_string(), wan.router6.trunc().to_string())
        };
        self.internet().ip(&format!(
            "addr add 100.127.{n}.1/30 dev isp{n}\n\
             addr add fd00:100:{n}::1/64 dev isp{n} nodad\n\
             link set isp{n} up\n\
             route add {net4} via 100.127.{n}.2\n\
             route add {net6} via fd00:100:{n}::2\n"
        ))
    }

    fn set_faults(&mut self, number: u8, faults: Vec<Fault>) -> Result<()> {
        let Some(wan) = self.site.wans.iter().find(|wan| wan.number == number).cloned() else {
            bail!("there is no isp{number} in this lab, which has {} lines", self.site.wans.len());
        };
        let isp = self.isp(number);
        let rules = Fault::ruleset(&faults, "cust");
        let slow = delay_of(&faults);
        let out = faults.contains(&Fault::Carrier);
        let before = self.faults.insert(number, faults).unwrap_or_default();
        self.save()?;

        if delay_of(&before) != slow {
            self.remove_emulator(number)?;
            if let Some((delay, jitter)) = slow {
                self.insert_emulator(number, delay, jitter)?;
            }
        }
        if Fault::ruleset(&before, "cust") != rules {
            feed(Root::find()?.command(&isp, "nft").args(["-f", "-"]), &rules)?;
        }
        match (before.contains(&Fault::Carrier), out) {
            (false, true) => isp.ip("link set cust down\n")?,
            (true, false) => isp.ip(&format!("link set cust up\n{}", customer_side(&wan)))?,
            (true, true) | (false, false) => {}
        }
        Ok(())
    }

    /// Leads what the ISP forwards over a link that is held by a delaying process.
    fn insert_emulator(&mut self, number: u8, delay: Duration, jitter: Duration) -> Result<()> {
        let isp = self.isp(number);
        let what = wire(number);
        let wire = self.namespace(&what);
        self.namespaces.push(wire.name().to_owned());
        self.save()?;
        prepare(&Netns::create(wire.name())?.kept())?;
        wire.sysctls([("net/ipv6/conf/default/disable_ipv6", "1")])?;
        isp.ip(&format!(
            "link add slow0 address {SLOW} type veth peer name wire0 address {WIRE} netns {wire}\n\
             addr add 169.254.77.1/30 dev slow0\n\
             addr add fd77::1/64 dev slow0 nodad\n\
             link set slow0 up\n\
             neigh replace 169.254.77.2 lladdr {WIRE} nud permanent dev slow0\n\
             neigh replace fd77::2 lladdr {WIRE} nud permanent dev slow0\n\
             route add default via 169.254.77.2 table 77\n\
             route add default via fd77::2 table 77\n",
            wire = wire.name()
        ))?;
        wire.ip("link set wire0 up\n")?;
        // Frames held by a process need their checksums, and the size of the wire.
        run(Root::find()?.command(&isp, "ethtool").args(["-K", "slow0", "tx", "off", "tso", "off", "gso", "off"]))?;
        let mut command = wire.command(binary("lab")?);
        let half = (delay / 2).as_micros().to_string();
        command.args(["emulate", "wire0", SLOW, &half, &jitter.as_micros().to_string()]);
        self.spawn(&what, &mut command)?;
        self.wait_ready(&what)?;
        for family in ["-4", "-6"] {
            for interface in ["cust", "net0"] {
                run(Command::new("ip").args(["-netns", isp.name(), family]).args(rule("add", interface)))?;
            }
        }
        Ok(())
    }

    fn remove_emulator(&mut self, number: u8) -> Result<()> {
        let isp = self.isp(number);
        let what = wire(number);
        let wire = self.namespace(&what);
        if !wire.exists() {
            return Ok(());
        }
        for family in ["-4", "-6"] {
            for interface in ["cust", "net0"] {
                run(Command::new("ip").args(["-netns", isp.name(), family]).args(rule("delete", interface)))?;
            }
        }
        // What is on its way arrives before the line is quick again.
        isp.ip("link delete slow0\n")?;
        if let Some(process) = self.processes.remove(&what) {
            process.terminate();
            process.end()?;
        }
        run(Command::new("ip").args(["netns", "delete", wire.name()]))?;
        self.namespaces.retain(|name| name != wire.name());
        self.save()
    }

    /// Starts a process of the lab in a group of its own.
    fn spawn(&mut self, what: &str, command: &mut Command) -> Result<()> {
        let log = File::create(self.log(what))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let pid = i32::try_from(child.id())?;
        let started = started(pid).with_context(|| format!("{what} ended at once: {}", tail(&self.log(what))))?;
        self.processes.insert(what.to_owned(), Process { pid, started });
        self.save()
    }

    /// Waits for the line with which the lab's own programs say that they listen.
    fn wait_ready(&self, what: &str) -> Result<()> {
        let deadline = Instant::now() + crate::patience(Duration::from_secs(10));
        while !std::fs::read_to_string(self.log(what))?.contains(READY) {
            if Instant::now() > deadline || !self.runs(what) {
                bail!("{what} does not start: {}", tail(&self.log(what)));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn namespace(&self, place: &str) -> Netns {
        Netns::named(&format!("{}-{place}", self.name))
    }

    fn directory(&self) -> PathBuf {
        directory(&self.name)
    }

    /// A BPF file system of the lab's own. Mounted here and not by routerd, whose mounts go with it.
    pub fn bpf_directory(&self) -> PathBuf {
        self.directory().join("bpf")
    }

    fn run_directory(&self) -> PathBuf {
        self.directory().join("run")
    }

    /// What routerd keeps over a restart: the last applied text, the journal.
    pub fn state_directory(&self) -> PathBuf {
        self.directory().join("state")
    }

    fn save(&self) -> Result<()> {
        let path = self.directory().join("lab.json");
        let partial = path.with_extension("partial");
        std::fs::write(&partial, serde_json::to_string_pretty(self)?)?;
        std::fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A lab with a name of its own that goes with this value: for tests.
#[derive(Debug)]
pub struct Temporary(Lab);

impl Temporary {
    /// A lab with routerd in it whose lines are all good; `None`, with the reason on standard output, where labs
    /// cannot be or the programs are not built.
    #[expect(clippy::print_stdout, reason = "a test says why it skips")]
    pub fn routed(site: &str, wans: u8, same_gateway: bool) -> Result<Option<Self>> {
        if let Err(reason) = crate::can_run().and_then(|()| binary("routerd").and(binary("routerctl")).map(drop)) {
            if std::env::var_os("QUADWAY_MUST_RUN").is_some() {
                bail!("this test must run, and cannot: {reason:#}");
            }
            println!("SKIP: {reason:#}");
            return Ok(None);
        }
        let mut lab = Self::up(site, wans, same_gateway)?;
        lab.start_router()?;
        crate::demo::wait_until_good(&lab, Duration::from_secs(30))?;
        Ok(Some(lab))
    }

    pub fn up(site: &str, wans: u8, same_gateway: bool) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Lab::up(&Spec { name, site: site.to_owned(), wans, same_gateway }).map(Self)
    }
}

impl Deref for Temporary {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl DerefMut for Temporary {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.0
    }
}

impl Drop for Temporary {
    #[expect(clippy::print_stderr, reason = "a failed test shows what its router said")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("routerd said:\n{}", tail(&self.0.log("routerd")));
        }
        if let Err(error) = Lab::down(&self.0.name) {
            eprintln!("the lab {} is left behind: {error:#}", self.0.name);
        }
    }
}

impl Process {
    fn alive(&self) -> bool {
        // Children of this process stay as zombies until they are waited for; others are init's.
        let ended = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        !matches!(ended, Ok(status) if status.pid().is_some()) && started(self.pid) == Some(self.started)
    }

    fn signal(&self, signal: Signal) {
        if self.alive() {
            match killpg(Pid::from_raw(self.pid), signal) {
                // ESRCH: ended meanwhile.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => debug_assert!(false, "cannot signal {}: {error}", self.pid),
            }
        }
    }

    fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Waits for the end, and makes it come.
    fn end(&self) -> Result<()> {
        let patience = Instant::now() + crate::patience(Duration::from_secs(3));
        let limit = patience + Duration::from_secs(3);
        while self.alive() {
            if Instant::now() > limit {
                bail!("process {} does not end", self.pid);
            }
            if Instant::now() > patience {
                self.signal(Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// The start time of a process in clock ticks since boot; `None` if there is none, or only its corpse.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; fields 3 (state) and 22 (start time) follow it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    fields.nth(18)?.parse().ok().filter(|_| state != "Z")
}

fn delay_of(faults: &[Fault]) -> Option<(Duration, Duration)> {
    faults.iter().find_map(|fault| match fault {
        Fault::Delay { delay, jitter } => Some((*delay, *jitter)),
        Fault::Carrier | Fault::Blackhole | Fault::Loss(_) | Fault::Dns | Fault::Http => None,
    })
}

/// What every namespace of the lab has.
fn prepare(namespace: &Netns) -> Result<()> {
    namespace.sysctls([
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/all/keep_addr_on_down", "1"),
        ("net/ipv6/conf/default/keep_addr_on_down", "1"),
        // A test asks for more errors than a host of the Internet gives out.
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
    ])?;
    namespace.ip("link set lo up\n")
}

/// The addresses the ISP has towards the router. The kernel drops link-local ones with the carrier, so that they
/// are set again with it.
fn customer_side(wan: &Wan) -> String {
    let lines = |prefix6: u8, route: &str| {
        format!(
            "addr replace {}/{} dev cust\naddr replace {}/{prefix6} dev cust nodad\n{route}",
            wan.gateway4,
            wan.router4.prefix_len(),
            wan.gateway6
        )
    };
    if wan.gateway6.is_unicast_link_local() {
        lines(64, &format!("route replace {} dev cust\n", wan.router6.trunc()))
    } else {
        lines(wan.router6.prefix_len(), "")
    }
}

fn address_line(verb: &str, address: IpNet, interface: &str) -> String {
    match address {
        IpNet::V4(address) => format!("addr {verb} {address} dev {interface}\n"),
        IpNet::V6(address) => format!("addr {verb} {address} dev {interface} nodad\n"),
    }
}

/// The rule that leads what comes in by `interface` to the emulator; what comes from there takes the main table.
fn rule<'a>(verb: &'a str, interface: &'a str) -> [&'a str; 8] {
    ["rule", verb, "priority", "77", "iif", interface, "lookup", "77"]
}

fn wire(number: u8) -> String {
    format!("isp{number}-wire")
}

fn directory(name: &str) -> PathBuf {
    Path::new("/run").join(format!("quadway-{name}"))
}

/// A program of this workspace: in `QUADWAY_BIN`, else beside the running program.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let places = std::env::var_os("QUADWAY_BIN").map(PathBuf::from);
    // Test programs are one level below the others.
    let beside = own.ancestors().skip(1).take(2).map(Path::to_path_buf);
    places
        .into_iter()
        .chain(beside)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: cargo build --workspace builds it"))
}

/// The end of a log, for an error message.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A veth whose two ends have the same index, which namespaces allow, looks to the kernel like a device without a
/// peer: it then may tell the loss of its carrier up to a second late.
const OTHER_INDEX: u32 = 1000;

/// What the lab's own programs print once they listen.
pub const READY: &str = "ready";

/// The hardware addresses of the ISP's end and of the emulator's end of the slow link.
const SLOW: &str = "02:00:00:00:77:01";
const WIRE: &str = "02:00:00:00:77:02";
