//! What a test looks at beside its traffic: routerd's status, the flows of the router, and the packets that reach
//! an ISP and should not.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use config::units::{Mark, PolicyId};
use serde_json::Value;

use crate::lab::Lab;
use crate::netns::{feed, run};
use crate::root::Root;

/// A flow that conntrack knows in the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The whole line of the kernel's listing.
    pub text: String,
    /// The line it is pinned to; 0 for none, and for probes.
    pub wan: u32,
}

impl Flow {
    /// Whether the first packet was sent to this port.
    pub fn is_to(&self, port: u16) -> bool {
        self.value("dport=") == Some(port.to_string())
    }

    fn value(&self, key: &str) -> Option<String> {
        self.text.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned)
    }
}

/// `routerctl status --json`.
pub fn status(lab: &Lab) -> Result<Value> {
    let text = run(lab.routerctl()?.args(["status", "--json"]))?;
    serde_json::from_str(&text).context("status is no JSON")
}

/// A line of `status` in one family, `v4` or `v6`.
pub fn line(status: &Value, wan: &str, family: &str) -> Value {
    let named = |list: &Value, key: &str, name: &str| {
        list.as_array().into_iter().flatten().find(|entry| entry[key] == name).cloned().unwrap_or_default()
    };
    named(&named(&status["wans"], "name", wan)["families"], "family", family)
}

/// Whether new flows may take this line.
pub fn usable(lab: &Lab, wan: &str, family: &str) -> Result<bool> {
    Ok(line(&status(lab)?, wan, family)["usable"] == true)
}

/// Waits until a line may, or may not, be used in a family, and the kernel knows; tells how long that took.
pub fn wait_usable(lab: &Lab, wan: &str, family: &str, wanted: bool) -> Result<Duration> {
    let what = if wanted { "usable" } else { "unusable" };
    wait(&format!("{wan} is {what} in {family}"), || {
        let status = status(lab)?;
        Ok(status["applies"]["current"] == true && (line(&status, wan, family)["usable"] == true) == wanted)
    })
}

/// Waits until something is so; tells how long that took.
pub fn wait(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let (start, patience) = (Instant::now(), crate::patience(PATIENCE));
    while !so()? {
        if start.elapsed() > patience {
            bail!("after {} s it is not so that {what}", patience.as_secs());
        }
        thread::sleep(crate::patience(Duration::from_millis(10)));
    }
    Ok(start.elapsed())
}

/// What conntrack holds in the router.
pub fn flows(lab: &Lab) -> Result<Vec<Flow>> {
    let listing = lab.router().enter(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"))??;
    listing
        .lines()
        .map(|text| {
            let mark = text.split_ascii_whitespace().find_map(|word| word.strip_prefix("mark=")).unwrap_or("0");
            let mark: u32 = mark.parse().with_context(|| format!("{text:?} has an odd mark"))?;
            let probe = mark & Mark::POLICY_MASK == u32::from(PolicyId::PROBES.0) << 16;
            Ok(Flow { text: text.to_owned(), wan: if probe { 0 } else { (mark & Mark::WAN_MASK) >> 24 } })
        })
        .collect()
}

/// Lets every ISP drop and count what its customer may not send: packets that carry the address of another line,
/// or that are for the VLANs or another private IPv4 network.
pub fn strict(lab: &Lab) -> Result<()> {
    for wan in &lab.site().wans {
        let script = format!(
            "table inet strict {{\ncounter strays {{ }}\ncounter private {{ }}\n\
             chain incoming {{\ntype filter hook prerouting priority -300\n\
             iifname != \"cust\" accept\n\
             ip daddr {{ 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 }} counter name private drop\n\
             ip6 daddr fd10::/16 counter name private drop\n\
             ip saddr != {own4} counter name strays drop\n\
             ip6 saddr != {{ {own6}, fe80::/10, :: }} counter name strays drop\n}}\n}}\n",
            own4 = wan.router4.addr(),
            own6 = wan.router6.addr(),
        );
        feed(Root::find()?.command(&lab.isp(wan.number), "nft").args(["-f", "-"]), &script)?;
    }
    Ok(())
}

/// How many packets [`strict`] has dropped at all ISPs.
pub fn astray(lab: &Lab) -> Result<u64> {
    let mut sum = 0;
    for wan in &lab.site().wans {
        let mut nft = Root::find()?.command(&lab.isp(wan.number), "nft");
        let listing: Value = serde_json::from_str(&run(nft.args(["-j", "list", "counters"]))?)?;
        let counters = listing["nftables"].as_array().into_iter().flatten();
        sum += counters.filter_map(|object| object["counter"]["packets"].as_u64()).sum::<u64>();
    }
    Ok(sum)
}

/// The number of the line whose router is seen from an address.
pub fn number_of(lab: &Lab, seen: IpAddr) -> Result<u8> {
    lab.site().wan_of(seen).map(|wan| wan.number).with_context(|| format!("no line of the lab is {seen}"))
}

/// Longer than the longest hold time of the tests, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
