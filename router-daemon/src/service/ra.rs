//! Router advertisements (RFC 4861) to the VLANs with IPv6 addresses: radvd. Prefixes, the router's DNS, and whether DHCPv6
//! has more. radvd has no socket to be asked through, so it is only seen to live; it finds interfaces that come and go
//! by itself.
//!
//! Prefixes that providers delegate are told for as long as they are granted. One that is gone, or whose line is down, is
//! told as deprecated at once (RFC 7084, L-13): hosts open nothing from it any more, where they have another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use config::Config;
use config::model::{Ra, Vlan};
use config::units::{Family, VlanName, WanName};
use ipnet::{IpNet, Ipv6Net};
use mwan::event::Health;
use nix::sys::signal::Signal;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::Places;
use super::component::{Alive, Component, Folder, Reload, Rendered};
use super::dhcp::asks_v6;
use crate::happening::{Happening, What};

/// What is known of prefixes beside the config. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Prefixes(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Lines by which no IPv6 leaves.
    down: BTreeSet<WanName>,
    /// What was told last, and what of that is gone since when.
    told: BTreeSet<(VlanName, Ipv6Net)>,
    gone: BTreeMap<(VlanName, Ipv6Net), Instant>,
}

impl Prefixes {
    /// Hands the config on, again with each line that goes down or comes back in IPv6; until its sender is gone.
    pub async fn follow(
        self,
        mut happenings: broadcast::Receiver<Arc<Happening>>,
        mut config: watch::Receiver<Option<Arc<Config>>>,
        to: watch::Sender<Option<Arc<Config>>>,
    ) {
        config.mark_changed();
        loop {
            let again = tokio::select! {
                changed = config.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                happening = happenings.recv() => match happening {
                    Ok(happening) => self.happened(&happening.what),
                    Err(RecvError::Lagged(_)) => false,
                    Err(RecvError::Closed) => return,
                },
            };
            if again {
                let config = config.borrow_and_update().clone();
                to.send_replace(config);
            }
        }
    }

    /// Whether other prefixes are to be told.
    fn happened(&self, what: &What) -> bool {
        let What::Health { wan, family: Family::V6, to, .. } = what else { return false };
        let down = &mut self.known().down;
        match to {
            Health::Down | Health::NoCarrier => down.insert(wan.clone()),
            Health::Unknown | Health::Up | Health::Degraded => down.remove(wan),
            // Good again, and not used yet.
            Health::Held => false,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Remembers what is told by this config.
    fn tell(&mut self, config: &Config, ra: &Ra, now: Instant) {
        let vlans = ra.vlans.iter().filter_map(|name| config.vlans.get(name));
        let told: BTreeSet<_> =
            vlans.flat_map(|vlan| nets6(vlan).map(|net| (vlan.name.clone(), net.trunc()))).collect();
        for gone in self.told.difference(&told) {
            self.gone.insert(gone.clone(), now);
        }
        self.gone.retain(|key, since| !told.contains(key) && now.duration_since(*since) < DEPRECATED);
        self.told = told;
    }
}

pub(super) fn component(config: &Config, places: &Places, prefixes: &Prefixes) -> Option<Component> {
    let ra = config.ra.as_ref()?;
    let mut known = prefixes.known();
    known.tell(config, ra, Instant::now());
    let settings = settings(config, ra, &known)?;
    drop(known);
    let run = places.run.join(NAME);
    let file = run.join("radvd.conf");
    let path = file.display().to_string();
    let number = run.join("radvd.pid").display().to_string();
    let arguments = ["--nodaemon", "--logmethod", "stderr", "--config", &path, "--pidfile", &number];
    Some(Component {
        name: NAME.to_owned(),
        package: "radvd",
        program: NAME.to_owned(),
        arguments: arguments.map(str::to_owned).to_vec(),
        folders: vec![Folder::new(&run, 0o755)],
        files: vec![Rendered { path: file, text: settings, mode: 0o644 }],
        validator: Some([NAME, "--configtest", "--logmethod", "stderr", "--config", &path].map(str::to_owned).to_vec()),
        reload: Reload::Signal(Signal::SIGHUP),
        // Asked to end it tells every host that there is no router any more: that would be a lie while routerd restarts.
        goodbye: Signal::SIGKILL,
        control: Arc::new(Alive),
        ..Component::default()
    })
}

/// `None` where there is nobody to tell.
fn settings(config: &Config, ra: &Ra, known: &Known) -> Option<String> {
    let mut text = String::new();
    for vlan in ra.vlans.iter().filter_map(|name| config.vlans.get(name)) {
        text += &interface(config, ra, known, vlan).unwrap_or_default();
    }
    (!text.is_empty()).then_some(text)
}

fn interface(config: &Config, ra: &Ra, known: &Known, vlan: &Vlan) -> Option<String> {
    let nets: Vec<_> = nets6(vlan).collect();
    let gone: Vec<_> = known.gone.keys().filter(|(of, _)| *of == vlan.name).map(|(_, net)| net).collect();
    if nets.is_empty() && gone.is_empty() {
        return None;
    }
    let served = config.dhcp.as_ref().and_then(|dhcp| dhcp.vlans.get(&vlan.name));
    let (managed, other) = asks_v6(config, vlan);
    let lifetime = ra.lifetime.as_secs();
    let mut lines = vec![
        "AdvSendAdvert on;".to_owned(),
        format!("AdvDefaultLifetime {lifetime};"),
        // A host that missed two of three still knows the router.
        format!("MinRtrAdvInterval {};", (lifetime / 9).clamp(3, 450)),
        format!("MaxRtrAdvInterval {};", (lifetime / 3).clamp(4, 600)),
        format!("AdvManagedFlag {};", word(managed)),
        format!("AdvOtherConfigFlag {};", word(managed || other)),
    ];
    lines.extend(served.and_then(|served| served.mtu).map(|mtu| format!("AdvLinkMTU {mtu};")));
    for net in &nets {
        // RFC 4862 5.5.3: hosts make addresses of their own in a /64 only.
        let autonomous = word(net.prefix_len() == 64);
        let lifetimes = config
            .delegated_to(&vlan.name)
            .find(|(_, delegated)| delegated.own == **net)
            .map(|(wan, delegated)| lifetimes(ra, delegated.span, known.down.contains(&wan.name)))
            .unwrap_or_default();
        lines.push(format!("prefix {} {{ AdvOnLink on; AdvAutonomous {autonomous};{lifetimes} }};", net.trunc()));
    }
    for net in gone {
        let autonomous = word(net.prefix_len() == 64);
        let lifetimes = lifetimes(ra, None, true);
        lines.push(format!("prefix {net} {{ AdvOnLink on; AdvAutonomous {autonomous};{lifetimes} }};"));
    }
    if let Some(first) = nets.first().filter(|_| vlan.takes("dns")) {
        lines.push(format!("RDNSS {} {{ AdvRDNSSLifetime {lifetime}; }};", first.addr()));
    }
    if let Some(domain) = served.and_then(|served| served.domain.as_ref()) {
        lines.push(format!("DNSSL {domain} {{ AdvDNSSLLifetime {lifetime}; }};"));
    }
    let mut text = format!("interface {} {{\n", vlan.interface);
    for line in lines {
        writeln!(text, "    {line}").unwrap_or(());
    }
    Some(text + "};\n")
}

fn nets6(vlan: &Vlan) -> impl Iterator<Item = &Ipv6Net> {
    vlan.addresses.iter().filter_map(|net| match net {
        IpNet::V4(_) => None,
        IpNet::V6(net) => Some(net),
    })
}

/// For how long hosts may use what is granted for this span, unless they hear again. They do before a router's lifetime is
/// over, so less than that would only lose them their addresses.
fn lifetimes(ra: &Ra, span: Option<Duration>, deprecated: bool) -> String {
    let least = ra.lifetime.as_secs();
    let span = span.map_or(MONTH, |span| span.as_secs().min(MONTH));
    let (preferred, valid) = if deprecated {
        (0, span.max(least).min(DEPRECATED.as_secs()))
    } else {
        ((span / 2).max(least), span.max(least))
    };
    format!(" AdvPreferredLifetime {preferred}; AdvValidLifetime {valid};")
}

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

const MONTH: u64 = 30 * 24 * 60 * 60;
/// RFC 4862 5.5.3: no host believes that an address is valid for less.
const DEPRECATED: Duration = Duration::from_hours(2);
const NAME: &str = "radvd";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use config::units::Family;
    use mwan::lease::{Gone, Grant, Lease, Leases, effective};
    use mwan::time::Time;

    use super::*;

    const SITE: &str = r#"
[site]
name = "office"
[ra]
lifetime = "30m"
[wan.wan1]
interface = "eth0"
method = "dhcp"
prefix_delegation = 56
[policy.all]
members = ["wan1"]
[router]
default_policy = "all"
[vlan.office]
id = 10
addresses = ["10.0.10.1/24"]
access = ["eth1"]
input = ["dns"]
delegate = "wan1"
"#;

    #[test]
    fn a_delegated_prefix_is_told_as_long_as_it_is_granted_and_deprecated_when_it_is_not() {
        let config = Arc::new(config::parse("site.toml", SITE).unwrap().config);
        let wan: WanName = "wan1".parse().unwrap();
        let prefixes = Prefixes::default();
        let told = |grant: Option<&str>| {
            let mut leases = Leases::default();
            let grant = grant.map_or(Grant::Gone(Gone::Expired), |prefix| {
                let lease = Lease {
                    addresses: vec!["2001:db8::7/128".parse().unwrap()],
                    gateway: Some("fe80::1".parse().unwrap()),
                    prefixes: vec![prefix.parse().unwrap()],
                    prefix_span: Some(Duration::from_hours(4)),
                    ..Lease::default()
                };
                Grant::Held { lease, until: Time::NEVER }
            });
            leases.take(&wan, Family::V6, &grant, Time::ZERO);
            let places = Places { run: "/run/q".into(), state: "/var/lib/q".into() };
            let component = component(&effective(&config, &leases), &places, &prefixes)?;
            let text = component.files.first().unwrap().text.clone();
            Some(
                text.lines()
                    .filter(|line| line.contains("prefix"))
                    .map(|line| line.trim().to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        let line = |net: &str, preferred: u32, valid: u32| {
            format!(
                "prefix {net} {{ AdvOnLink on; AdvAutonomous on; AdvPreferredLifetime {preferred}; AdvValidLifetime {valid}; }};"
            )
        };
        assert_eq!(told(None), None, "there is nothing to tell yet");
        assert_eq!(told(Some("2001:db8:100::/56")).unwrap(), [line("2001:db8:100:a::/64", 7200, 14400)]);
        let health =
            |to| What::Health { wan: wan.clone(), family: Family::V6, from: Health::Up, to, why: String::new() };
        assert!(prefixes.happened(&health(Health::Down)));
        assert_eq!(told(Some("2001:db8:100::/56")).unwrap(), [line("2001:db8:100:a::/64", 0, 7200)]);
        assert!(prefixes.happened(&health(Health::Up)) && !prefixes.happened(&health(Health::Degraded)));
        let both = [line("2001:db8:200:a::/64", 7200, 14400), line("2001:db8:100:a::/64", 0, 7200)];
        assert_eq!(told(Some("2001:db8:200::/56")).unwrap(), both);
        let none = told(None).unwrap();
        assert_eq!(none, [line("2001:db8:100:a::/64", 0, 7200), line("2001:db8:200:a::/64", 0, 7200)]);
        assert_eq!(told(Some("2001:db8:200::/56")).unwrap(), both, "it is back");
    }
}
