//! Measures the packet path end to end: live frames of our own generator through a router into a sink, all on one
//! pinned core, so that the number says what one core can do, generator and sink included. Needs root. Beside the
//! routers a generator is measured that is wired to its sink, which is what all of them pay for being measured.
//!
//! What is quoted is what arrived. The generator counts what it sends and the sink what it gets; where more arrives
//! than was sent, the run ends with an error instead of a number.
//!
//! All ways through the router are up at once and measured in turn, so that a change of the machine's mood hits all
//! alike. `fastpath 3` makes 3 rounds. Flows get into the fast path as any do: the sink answers until conntrack calls
//! them assured, and the daemon takes them from there.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use ebpf::abi::{Count, Load};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use serde_json::Value;
use tests::lab::Temporary;
use tests::netns::{Netns, feed, run};
use tests::root::Root;
use tests::watch::{status, usable, wait, wait_usable};

fn main() -> Result<()> {
    let rounds = match std::env::args().nth(1) {
        Some(number) => number.parse().context("how many rounds?")?,
        None => ROUNDS,
    };
    println!("{}", bench::machine());
    let alone = Alone::up()?;
    let routers = Way::ALL.into_iter().map(Router::up).collect::<Result<Vec<_>>>()?;
    let mut floors: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut rates: BTreeMap<(usize, u32, Way), Vec<f64>> = BTreeMap::new();
    let mut floods: BTreeMap<(usize, Way), Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        for size in SIZES {
            floors.entry(size).or_default().push(alone.rate(size)?);
            for flows in FLOWS {
                for router in &routers {
                    rates.entry((size, flows, router.way)).or_default().push(router.forwarded(size, flows)?);
                }
            }
            for router in &routers {
                if let Some(rate) = router.denied(size)? {
                    floods.entry((size, router.way)).or_default().push(rate);
                }
            }
        }
    }
    println!("\none core for generator, router and sink; Mpps, min / median / max of {rounds} rounds");
    println!("| frame | flows | way | min / median / max | × masquerade |\n|---|---|---|---|---|");
    for (size, of) in &floors {
        println!("| {size} B | 1 | generator and sink alone | {} | |", spread(of));
    }
    for ((size, flows, way), of) in &rates {
        let times = median(of) / median(&rates[&(*size, *flows, Way::Masquerade)]);
        println!("| {size} B | {flows} | {} | {} | {times:.2} |", way.name(), spread(of));
    }
    println!("\ndenied flood, one core for generator and router; Mpps");
    println!("| frame | way | min / median / max | × nft alone |\n|---|---|---|---|");
    for ((size, way), of) in &floods {
        let times = median(of) / median(&floods[&(*size, Way::Ruleset)]);
        println!("| {size} B | {} | {} | {times:.2} |", way.name(), spread(of));
    }
    println!("\nan allowed flow of 100 kpps on one core, a denied flood on the other, for {FLOODED:?}");
    println!(
        "| flood's priority | way | allowed: sent | lost | denied Mpps | line after it |\n|---|---|---|---|---|---|"
    );
    for priority in [Priority::Normal, Priority::RealTime] {
        for router in &routers {
            if let Some(Beside { sent, lost, flood, line }) = router.flooded(priority)? {
                println!("| {priority:?} | {} | {sent} | {lost} | {flood:.2} | {line} |", router.way.name());
            }
        }
    }
    let ratio = |flows, way| median(&rates[&(64, flows, way)]) / median(&rates[&(64, flows, Way::Masquerade)]);
    println!(
        "\ntarget XDP ≥ 3.2 × masquerade: {}",
        FLOWS.map(|flows| format!("{:.2}", ratio(flows, Way::Xdp))).join(", ")
    );
    let denied = |way| median(&floods[&(64, way)]) / median(&floods[&(64, Way::Ruleset)]);
    println!("target denied ≥ 2 × nft alone: TCX {:.2}, XDP {:.2}", denied(Way::Tcx), denied(Way::Xdp));
    Ok(())
}

/// A generator and its sink, with a wire between them.
struct Alone {
    traffic: Traffic,
    _ends: [Netns; 2],
}

impl Alone {
    fn up() -> Result<Self> {
        let name = |what: &str| format!("fastpath-{}-alone-{what}", std::process::id());
        let [from, to] = [Netns::create(&name("from"))?, Netns::create(&name("to"))?];
        from.ip(&format!("link add eth0 type veth peer name cust netns {}\nlink set eth0 up\n", to.name()))?;
        to.ip("link set cust up\n")?;
        let traffic = Traffic::open(&from, Some((&to, "cust")), [10, 0, 10, 2], ALLOWED, mac(&to, "cust")?)?;
        traffic.load(1, false)?;
        Ok(Self { traffic, _ends: [from, to] })
    }

    fn rate(&self, size: usize) -> Result<f64> {
        self.traffic.go(size, WARM_UP)?;
        Ok(self.traffic.measure(size)?.rate())
    }
}

/// What was sent in what time, and what of it arrived.
struct Measured {
    sent: u64,
    arrived: u64,
    span: Duration,
}

impl Measured {
    /// Millions of packets per second that arrived.
    fn rate(&self) -> f64 {
        per_second(self.arrived, self.span)
    }
}

/// How packets get through the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Forward,
    Masquerade,
    Ruleset,
    Tcx,
    Xdp,
}

impl Way {
    const ALL: [Self; 5] = [Self::Forward, Self::Masquerade, Self::Ruleset, Self::Tcx, Self::Xdp];

    fn name(self) -> &'static str {
        match self {
            Self::Forward => "kernel, no rules",
            Self::Masquerade => "kernel, masquerade",
            Self::Ruleset => "our ruleset",
            Self::Tcx => "fast path, TCX",
            Self::Xdp => "fast path, XDP",
        }
    }

    fn has_cache(self) -> bool {
        matches!(self, Self::Tcx | Self::Xdp)
    }
}

/// Of a generator, and so of all that its packets cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Priority {
    /// As the kernel's own thread has, that takes over when packets come too fast.
    Normal,
    /// Before everybody else, who may be many; what is left to them is a twentieth of the time.
    RealTime,
}

/// A router, with a generator on one side of it and a sink on the other.
struct Router {
    way: Way,
    office: Traffic,
    /// A second generator, in a VLAN that may do nothing.
    flood: Option<Traffic>,
    place: Place,
}

enum Place {
    /// The kernel alone: three namespaces.
    Plain { _all: [Netns; 3] },
    /// A lab with the whole product in it.
    Lab(Temporary),
}

impl Router {
    fn up(way: Way) -> Result<Self> {
        let router = match way {
            Way::Forward => Self::plain(way, None)?,
            Way::Masquerade => Self::plain(way, Some(MASQUERADE))?,
            Way::Ruleset => Self::product(way, &SITE.replace("[router]", "[router]\nfast_path = false"))?,
            Way::Tcx | Way::Xdp => Self::product(way, SITE)?,
        };
        router.fill().with_context(|| way.name())?;
        Ok(router)
    }

    fn plain(way: Way, rules: Option<&str>) -> Result<Self> {
        let name = |what: &str| format!("fastpath-{}-{way:?}-{what}", std::process::id());
        let [from, router, to] =
            [Netns::create(&name("from"))?, Netns::create(&name("router"))?, Netns::create(&name("to"))?];
        router.ip(&format!(
            "link add in type veth peer name eth0 netns {}\nlink add out type veth peer name cust netns {}\n\
             addr add 10.0.10.1/24 dev in\naddr add 100.64.1.2/24 dev out\nlink set in up\nlink set out up\n\
             route add default via 100.64.1.1\n",
            from.name(),
            to.name()
        ))?;
        from.ip("addr add 10.0.10.2/24 dev eth0\nlink set eth0 up\n")?;
        to.ip("addr add 100.64.1.1/24 dev cust\nlink set cust up\nroute add default via 100.64.1.2\n")?;
        let gateway = mac(&to, "cust")?.map(|byte| format!("{byte:02x}")).join(":");
        router.ip(&format!("neigh replace 100.64.1.1 lladdr {gateway} dev out\n"))?;
        router.sysctls([("net/ipv4/ip_forward", "1")])?;
        if let Some(rules) = rules {
            feed(Root::find()?.command(&router, "nft").args(["-f", "-"]), rules)?;
        }
        napi(&router, &["in", "out"])?;
        let office = Traffic::open(&from, Some((&to, "cust")), [10, 0, 10, 2], ALLOWED, mac(&router, "in")?)?;
        Ok(Self { way, office, flood: None, place: Place::Plain { _all: [from, router, to] } })
    }

    fn product(way: Way, site: &str) -> Result<Self> {
        let lab = Temporary::routed(site, 1, false)?.context("there is no lab")?;
        let ports = ["v10", "v20", "v30", "wan1"];
        napi(&lab.router(), &ports)?;
        if way == Way::Xdp {
            let chosen = ports
                .map(|port| format!("\n[port.{port}]\nfind = {{ name = \"{port}\" }}\nfast_path = \"xdp\"\n"))
                .concat();
            feed(lab.routerctl()?.args(["apply", "-"]), &format!("{}{chosen}", lab.site().text))?;
        }
        let mode = match way {
            Way::Forward | Way::Masquerade | Way::Ruleset => Value::Null,
            Way::Tcx => "tcx".into(),
            Way::Xdp => "xdp".into(),
        };
        for port in ports {
            wait("the ports are met as they should", || Ok(status(&lab)?["fast_path"]["ports"][port]["mode"] == mode))?;
        }
        let address = |id| {
            let vlan = lab.site().vlans.iter().find(|vlan| vlan.id == id);
            match vlan.and_then(|vlan| vlan.address(false)) {
                Some(std::net::IpAddr::V4(address)) => Ok(address.octets()),
                Some(std::net::IpAddr::V6(_)) | None => bail!("no address in VLAN {id}"),
            }
        };
        let router = lab.router();
        let sink = lab.isp(1);
        let office =
            Traffic::open(&lab.host(10), Some((&sink, "cust")), address(10)?, ALLOWED, mac(&router, "vlan10")?)?;
        let flood = Traffic::open(&lab.host(30), None, address(30)?, DENIED, mac(&router, "vlan30")?)?;
        Ok(Self { way, office, flood: Some(flood), place: Place::Lab(lab) })
    }

    /// Both ends of every flow speak for longer than two seconds; then they are for the fast path.
    fn fill(&self) -> Result<()> {
        let most = FLOWS[FLOWS.len() - 1];
        self.office.load(most, true)?;
        let speak = || self.office.send(64, most);
        speak()?;
        thread::sleep(Duration::from_millis(2500));
        speak()?;
        if let (Place::Lab(lab), true) = (&self.place, self.way.has_cache()) {
            let mut cached = 0;
            wait("every flow is in the fast path", || {
                speak()?;
                thread::sleep(Duration::from_millis(500));
                cached = status(lab)?["fast_path"]["flows"]["v4"].as_u64().unwrap_or(0);
                Ok(cached >= u64::from(most) * 2)
            })
            .with_context(|| format!("{cached} entries"))?;
        }
        Ok(())
    }

    /// Millions of packets per second that arrive.
    fn forwarded(&self, size: usize, flows: u32) -> Result<f64> {
        for _ in 0..TRIES {
            self.office.load(flows, false)?;
            self.office.go(size, WARM_UP)?;
            let fast = self.verdict("forwarded")?;
            let measured = self.office.measure(size)?;
            let fast = self.verdict("forwarded")? - fast;
            let Place::Lab(lab) = &self.place else { return Ok(measured.rate()) };
            if !self.way.has_cache() || fast * 100 > measured.sent * 99 {
                return Ok(measured.rate());
            }
            println!("{}: {fast} of {} by the fast path; measured again", self.way.name(), measured.sent);
            wait_usable(lab, "wan1", "v4", true)?;
            self.fill()?;
        }
        bail!("{}: in {TRIES} tries the fast path did not have all packets", self.way.name())
    }

    /// Millions of packets per second that the matrix denies. `None`: there is no matrix.
    fn denied(&self, size: usize) -> Result<Option<f64>> {
        let Some(flood) = &self.flood else { return Ok(None) };
        flood.load(1, false)?;
        flood.go(size, WARM_UP)?;
        flood.rest()?;
        let denied = self.denials()?;
        let (sent, span) = flood.go(size, SPAN)?;
        flood.rest()?;
        let denied = self.denials()? - denied;
        ensure!(denied <= sent, "{}: of {sent} packets {denied} were denied", self.way.name());
        ensure!(denied * 100 > sent * 99, "{}: of {sent} packets only {denied} were denied", self.way.name());
        Ok(Some(per_second(denied, span)))
    }

    fn flooded(&self, priority: Priority) -> Result<Option<Beside>> {
        let (Some(flood), Place::Lab(lab)) = (&self.flood, &self.place) else { return Ok(None) };
        wait_usable(lab, "wan1", "v4", true)?;
        self.fill()?;
        self.office.load(1, false)?;
        flood.load(1, false)?;
        self.office.rest()?;
        let arrived = self.office.arrived()?;
        let stop = AtomicBool::new(false);
        let (sent, flood) = thread::scope(|scope| -> Result<_> {
            let flooding = scope.spawn(|| flood.until(64, priority, || stop.load(Ordering::Relaxed)));
            let sent = self.office.paced(64);
            stop.store(true, Ordering::Relaxed);
            let flooded = flooding.join().map_err(|_panic| anyhow!("the flood panicked"))?;
            Ok((sent?, flooded?))
        })?;
        self.office.rest()?;
        let arrived = self.office.arrived()? - arrived;
        let lost = sent.checked_sub(arrived).with_context(|| format!("of {sent} packets {arrived} arrived"))?;
        let line = if usable(lab, "wan1", "v4")? { "good" } else { "down" };
        Ok(Some(Beside { sent, lost, flood: per_second(flood.0, flood.1), line }))
    }

    fn denials(&self) -> Result<u64> {
        let Place::Lab(lab) = &self.place else { return Ok(0) };
        let status = status(lab)?;
        let cells = status["cells"].as_array().context("no cells in the status")?;
        let cell = cells.iter().find(|cell| cell["from"] == "lab" && cell["to"] == "guests");
        cell.and_then(|cell| cell["denied_packets"].as_u64()).context("no count of denials")
    }

    fn verdict(&self, word: &str) -> Result<u64> {
        let Place::Lab(lab) = &self.place else { return Ok(0) };
        Ok(status(lab)?["fast_path"]["verdicts"][word]["packets"].as_u64().unwrap_or(0))
    }
}

/// What became of the allowed flow beside a flood.
struct Beside {
    sent: u64,
    lost: u64,
    flood: f64,
    line: &'static str,
}

/// A generator and, maybe, a sink.
struct Traffic {
    from: Netns,
    load: Load,
    /// How many packets went out, and how many got to the sink.
    sent: PerCpuArray<MapData, u64>,
    arrived: PerCpuArray<MapData, Count>,
    programs: Mutex<aya::Ebpf>,
}

impl Traffic {
    fn open(
        from: &Netns,
        sink: Option<(&Netns, &str)>,
        source: [u8; 4],
        to: (Ipv4Addr, u16),
        router: [u8; 6],
    ) -> Result<Self> {
        let mut programs = aya::EbpfLoader::new().load(ebpf::GENERATOR)?;
        // A test run of a program that is attached nowhere patches the kernel's dispatcher, and waits for all cores.
        // Nothing comes in by the loopback interface of a generator.
        let places = [(from, "eth0", "swallow", XdpMode::Driver), (from, "lo", "generate", XdpMode::Skb)];
        let sink = sink.map(|(place, interface)| (place, interface, "sink", XdpMode::Driver));
        for (place, interface, name, mode) in places.into_iter().chain(sink) {
            let program: &mut Xdp = programs.program_mut(name).context("no such program")?.try_into()?;
            program.load()?;
            place.enter(|| program.attach(interface, mode).map(drop))??;
        }
        let load = Load {
            source,
            destination: to.0.octets(),
            destination_port: to.1.to_be_bytes(),
            destination_mac: router,
            source_mac: mac(from, "eth0")?,
            reflect: 0,
            flows: 1,
            port: from.enter(|| nix::net::if_::if_nametoindex("eth0"))??,
        };
        let sent = programs.take_map("SENT").context("no SENT")?.try_into()?;
        let arrived = programs.take_map("ARRIVED").context("no ARRIVED")?.try_into()?;
        Ok(Self { from: Netns::named(from.name()), load, sent, arrived, programs: Mutex::new(programs) })
    }

    fn load(&self, flows: u32, reflect: bool) -> Result<()> {
        let load = Load { flows, reflect: reflect.into(), ..self.load };
        let mut programs = self.programs()?;
        let mut loads: Array<_, Load> = programs.map_mut("LOADS").context("no LOADS")?.try_into()?;
        Ok(loads.set(0, load, 0)?)
    }

    /// How many packets, in what time.
    fn go(&self, size: usize, span: Duration) -> Result<(u64, Duration)> {
        let start = Instant::now();
        self.until(size, Priority::RealTime, || start.elapsed() >= span)
    }

    fn until(&self, size: usize, priority: Priority, done: impl Fn() -> bool + Send + Sync) -> Result<(u64, Duration)> {
        self.on(CORE, |generate| {
            if priority == Priority::RealTime {
                run(Command::new("chrt").args(["--fifo", "--pid", "10", &gettid().to_string()]))?;
            }
            let (start, before) = (Instant::now(), self.sent()?);
            loop {
                generate(size, CHUNK)?;
                if done() {
                    break;
                }
            }
            Ok((self.sent()? - before, start.elapsed()))
        })
    }

    /// What goes out for [`SPAN`], and what of it arrives.
    fn measure(&self, size: usize) -> Result<Measured> {
        self.rest()?;
        let arrived = self.arrived()?;
        let (sent, span) = self.go(size, SPAN)?;
        self.rest()?;
        let arrived = self.arrived()? - arrived;
        ensure!(arrived <= sent, "of {sent} packets {arrived} arrived: this is no measurement");
        Ok(Measured { sent, arrived, span })
    }

    /// Waits until nothing is on its way: what an earlier run left in the rings would count for the next.
    fn rest(&self) -> Result<()> {
        let mut before = None;
        wait("nothing arrives any more", || {
            let arrived = self.arrived()?;
            thread::sleep(Duration::from_millis(20));
            Ok(before.replace(arrived) == Some(arrived))
        })
        .map(drop)
    }

    fn send(&self, size: usize, packets: u32) -> Result<()> {
        self.on(CORE, |generate| generate(size, packets))
    }

    /// 100,000 packets a second, for [`FLOODED`]; how many.
    fn paced(&self, size: usize) -> Result<u64> {
        self.on(OTHER_CORE, |generate| {
            let (start, before, mut made) = (Instant::now(), self.sent()?, 0);
            while start.elapsed() < FLOODED {
                let due = u32::try_from(start.elapsed().as_micros() / 10)? - made;
                if due > 0 {
                    generate(size, due)?;
                    made += due;
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(self.sent()? - before)
        })
    }

    /// Work with the generator, on a thread that stays on this core.
    fn on<T: Send>(
        &self,
        core: usize,
        work: impl FnOnce(&dyn Fn(usize, u32) -> Result<()>) -> Result<T> + Send,
    ) -> Result<T> {
        let programs = self.programs()?;
        let program: &Xdp = programs.program("generate").context("no generator")?.try_into()?;
        self.from.enter(|| {
            let mut cores = CpuSet::new();
            cores.set(core)?;
            sched_setaffinity(Pid::from_raw(0), &cores)?;
            work(&|size, packets| {
                let frame = vec![0; size];
                let attrs = TestRunAttrs::new().xdp_live_frames(64);
                let data_in = Some(frame.as_slice());
                program.test_run(TestRunOptions { data_in, repeat: packets, attrs, ..TestRunOptions::new() })?;
                Ok(())
            })
        })?
    }

    fn arrived(&self) -> Result<u64> {
        Ok(self.arrived.get(&0, 0)?.iter().map(|count| count.packets).sum())
    }

    fn sent(&self) -> Result<u64> {
        Ok(self.sent.get(&0, 0)?.iter().sum())
    }

    fn programs(&self) -> Result<MutexGuard<'_, aya::Ebpf>> {
        self.programs.lock().map_err(|_poisoned| anyhow!("a measurement failed"))
    }
}

/// What a veth sends by XDP arrives, and in batches, only where the other end has NAPI.
fn napi(router: &Netns, interfaces: &[&str]) -> Result<()> {
    interfaces.iter().try_for_each(|name| run(router.command("ethtool").args(["-K", name, "gro", "on"])).map(drop))
}

fn mac(place: &Netns, interface: &str) -> Result<[u8; 6]> {
    let text = run(place.command("ip").args(["-json", "link", "show", "dev", interface]))?;
    let links: Value = serde_json::from_str(&text)?;
    let address = links[0]["address"].as_str().context("no address")?;
    let bytes = address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().map_err(|bytes| anyhow!("{bytes:?} is no MAC"))
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn per_second(packets: u64, span: Duration) -> f64 {
    packets as f64 / span.as_secs_f64() / 1e6
}

fn median(rates: &[f64]) -> f64 {
    sorted(rates)[rates.len() / 2]
}

fn spread(rates: &[f64]) -> String {
    let rates = sorted(rates);
    format!("{:.2} / {:.2} / {:.2}", rates[0], rates[rates.len() / 2], rates[rates.len() - 1])
}

fn sorted(rates: &[f64]) -> Vec<f64> {
    let mut rates = rates.to_vec();
    rates.sort_by(f64::total_cmp);
    rates
}

const ROUNDS: usize = 5;
/// Of a measurement that the daemon's own affairs may disturb.
const TRIES: usize = 3;
const SIZES: [usize; 2] = [64, 512];
const FLOWS: [u32; 3] = [1, 1024, 32_768];
/// Where all packets are made, forwarded and dropped; and where the allowed flow beside a flood is.
const CORE: usize = 1;
const OTHER_CORE: usize = 0;
const CHUNK: u32 = 1 << 15;
const WARM_UP: Duration = Duration::from_millis(100);
const SPAN: Duration = Duration::from_millis(500);
const FLOODED: Duration = Duration::from_secs(3);
const ALLOWED: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 77), 5001);
const DENIED: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 20, 9), 5002);
const MASQUERADE: &str = "
table ip plain {
    chain nat { type nat hook postrouting priority 100; oifname out masquerade; }
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname in accept
    }
}
";
/// Nothing is allowed between `lab` and the others.
const SITE: &str = r#"
[site]
name = "fastpath"

[router]
default_policy = "balanced"

[wan.wan1]
interface = "eth0"
addresses = ["203.0.113.10/24"]
gateway = "203.0.113.1"
probe = { targets = ["icmp 192.0.2.1", "icmp 192.0.2.2"] }

[policy.balanced]
members = ["wan1"]

[vlan.office]
id = 10
addresses = ["10.0.10.1/24"]
access = ["eth2"]
internet = "any"
input = ["ping"]

[vlan.guests]
id = 20
addresses = ["10.0.20.1/24"]
access = ["eth3"]
internet = "any"
input = ["ping"]

[vlan.lab]
id = 30
addresses = ["10.0.30.1/24"]
access = ["eth4"]
input = ["ping"]
"#;
