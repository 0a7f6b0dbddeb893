//! Router advertisements (RFC 4861) to the VLANs with IPv6 addresses: radvd. Prefixes, the router's DNS, and whether DHCPv6
//! has more. radvd has no socket to be asked through, so it is only seen to live; it finds interfaces that come and go
//! by itself.

use std::fmt::Write as _;
use std::sync::Arc;

use config::Config;
use config::model::{Ra, Vlan};
use ipnet::IpNet;
use nix::sys::signal::Signal;

use super::Places;
use super::component::{Alive, Component, Folder, Reload, Rendered};
use super::dhcp::asks_v6;

pub(super) fn component(config: &Config, places: &Places) -> Option<Component> {
    let settings = settings(config, config.ra.as_ref()?)?;
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
fn settings(config: &Config, ra: &Ra) -> Option<String> {
    let mut text = String::new();
    for vlan in ra.vlans.iter().filter_map(|name| config.vlans.get(name)) {
        text += &interface(config, ra, vlan).unwrap_or_default();
    }
    (!text.is_empty()).then_some(text)
}

fn interface(config: &Config, ra: &Ra, vlan: &Vlan) -> Option<String> {
    let nets: Vec<_> = vlan.addresses.iter().filter(|net| matches!(net, IpNet::V6(_))).collect();
    let first = nets.first()?;
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
        lines.push(format!("prefix {} {{ AdvOnLink on; AdvAutonomous {autonomous}; }};", net.trunc()));
    }
    if vlan.takes("dns") {
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

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

const NAME: &str = "radvd";
