//! Live frames: a host sends UDP of many flows as fast as its path takes it, sinks at the ISPs count what arrives and
//! send it back. All of it in the kernel (`BPF_PROG_TEST_RUN`); a program of ours only paces it.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Array, PerCpuArray};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use ebpf::abi::{Count, Load};

use crate::lab::Lab;
use crate::netns::{Netns, run};
use crate::site::Vlan;

/// A generator at a host of a lab, and a sink at each of its ISPs.
#[derive(Debug)]
pub struct Frames {
    from: Netns,
    programs: aya::Ebpf,
    sent: u64,
    /// Those that were given up.
    lost: u64,
}

impl Frames {
    /// Of `flows` flows from the host in VLAN `vlan` to one port of an address beyond the ISPs.
    pub fn open(lab: &Lab, vlan: u16, flows: u32, to: (Ipv4Addr, u16)) -> Result<Self> {
        let from = lab.host(vlan);
        let source = lab.site().vlans.iter().find(|known| known.id == vlan).and_then(|known| {
            known.addresses.iter().find_map(|address| match address {
                ipnet::IpNet::V4(address) => Some(address.addr()),
                ipnet::IpNet::V6(_) => None,
            })
        });
        let source = source.with_context(|| format!("no IPv4 address in VLAN {vlan}"))?;
        // What a veth sends by XDP arrives only where the other end has NAPI.
        let ports =
            lab.site().vlans.iter().map(Vlan::port).chain(lab.site().wans.iter().map(|wan| wan_port(wan.number)));
        for port in ports {
            run(lab.router().command("ethtool").args(["-K", &port, "gro", "on"]))?;
        }
        let mut programs = aya::EbpfLoader::new().load(ebpf::GENERATOR)?;
        // A test run of a program that is attached nowhere patches the kernel's dispatcher, and waits for all cores.
        // Nothing comes in by the loopback interface of a generator.
        attach(&mut programs, "generate", XdpMode::Skb, &[(&from, "lo")])?;
        attach(&mut programs, "swallow", XdpMode::Driver, &[(&from, "eth0")])?;
        let isps: Vec<_> = lab.site().wans.iter().map(|wan| lab.isp(wan.number)).collect();
        let sinks: Vec<_> = isps.iter().map(|isp| (isp, "cust")).collect();
        attach(&mut programs, "sink", XdpMode::Driver, &sinks)?;
        let load = Load {
            source: source.octets(),
            destination: to.0.octets(),
            destination_port: to.1.to_be_bytes(),
            destination_mac: mac(&lab.router(), &format!("vlan{vlan}"))?,
            source_mac: mac(&from, "eth0")?,
            reflect: 1,
            flows,
            port: from.enter(|| nix::net::if_::if_nametoindex("eth0"))??,
        };
        let mut loads: Array<_, Load> = programs.map_mut("LOADS").context("no LOADS")?.try_into()?;
        loads.set(0, load, 0)?;
        Ok(Self { from, programs, sent: 0, lost: 0 })
    }

    /// About `rate` frames a second, as long as `more` says. Never more are under way than the queue of a veth holds:
    /// a machine that is slow for a moment delays them and loses none.
    pub fn send(&mut self, rate: u32, more: impl Fn() -> bool + Sync) -> Result<()> {
        let from = Netns::named(self.from.name());
        from.enter(|| {
            let every = Duration::from_secs(1) * CHUNK / rate;
            let mut at = Instant::now();
            while more() {
                self.generate()?;
                let given_up = Instant::now() + PATIENCE;
                while self.under_way()? > MOST && Instant::now() < given_up {
                    thread::sleep(Duration::from_micros(100));
                }
                if self.under_way()? > MOST {
                    self.lost += self.under_way()?;
                }
                at = (at + every).max(Instant::now());
                thread::sleep(at.saturating_duration_since(Instant::now()));
            }
            Ok(())
        })?
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub fn arrived(&self) -> Result<u64> {
        let arrived: PerCpuArray<_, Count> = self.programs.map("ARRIVED").context("no ARRIVED")?.try_into()?;
        Ok(arrived.get(&0, 0)?.iter().map(|count| count.packets).sum())
    }

    fn under_way(&self) -> Result<u64> {
        Ok((self.sent - self.lost).saturating_sub(self.arrived()?))
    }

    fn generate(&mut self) -> Result<()> {
        let program: &Xdp = self.programs.program("generate").context("no generator")?.try_into()?;
        let attrs = TestRunAttrs::new().xdp_live_frames(CHUNK);
        let data_in = Some([0; 64].as_slice());
        program.test_run(TestRunOptions { data_in, repeat: CHUNK, attrs, ..TestRunOptions::new() })?;
        self.sent += u64::from(CHUNK);
        Ok(())
    }
}

fn attach(programs: &mut aya::Ebpf, name: &str, mode: XdpMode, to: &[(&Netns, &str)]) -> Result<()> {
    let program: &mut Xdp = programs.program_mut(name).context("no such program")?.try_into()?;
    program.load()?;
    for (place, interface) in to {
        place.enter(|| program.attach(interface, mode).map(drop))?.with_context(|| format!("{name} at {interface}"))?;
    }
    Ok(())
}

/// The router's port of a line.
fn wan_port(number: u8) -> String {
    format!("wan{number}")
}

fn mac(place: &Netns, interface: &str) -> Result<[u8; 6]> {
    let text = run(place.command("ip").args(["-json", "link", "show", "dev", interface]))?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let Some(address) = links[0]["address"].as_str() else { bail!("{interface} has no MAC") };
    let bytes = address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().map_err(|bytes| anyhow!("{bytes:?} is no MAC"))
}

const CHUNK: u32 = 32;
/// The queue of a veth holds 256.
const MOST: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(2);
