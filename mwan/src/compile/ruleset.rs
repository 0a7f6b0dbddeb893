//! The nft table as text. A function of `Config` alone: health moves only elements of bucket maps and of the set
//! of dead classes, so this text changes only when the file does.
//!
//! Path of a forwarded packet: `hook_raw` (is the source address at home on this interface?) → `hook_steer`
//! (which line?) → `hook_forward` (is the flow dead? known? which cell or egress?) → `hook_nat`. Everything that
//! is chosen by interface is one verdict map, so the number of VLANs and cells does not lengthen the path.
//!
//! Packets to any address of the router itself, also to its address in another VLAN or on a line, are judged by
//! the `input` of the VLAN they came in from.

mod apart;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use config::Config;
use config::model::{
    AddressSet, Allow, Balance, Cell, EgressSet, Internet, Kick, Nat6, Permit, PortSet, Steer, Vlan, Wan,
};
use config::units::{Family, Mark, PolicyId, VlanName};
use ipnet::IpNet;

use super::matches::{Traffic, elements, join, keyword};
use crate::pair::{Talk, talks};
use crate::state::{BUCKETS, BucketKey, NFLOG_GROUP, NamedKey, Ruleset, Slot};

/// The IPv4 addresses that are leased, with their lines.
fn leased4(config: &Config) -> impl Iterator<Item = (&Wan, Ipv4Addr)> {
    let leased = config.wans.values().filter(|wan| wan.is_leased(Family::V4));
    leased.filter_map(|wan| match wan.source(Family::V4)? {
        IpAddr::V4(address) => Some((wan, address)),
        IpAddr::V6(_) => None,
    })
}

/// The rules this site wants.
pub fn ruleset(config: &Config) -> Ruleset {
    let mut table = Table { config, sets: BTreeMap::new(), maps: BTreeMap::new(), chains: BTreeMap::new() };
    table.live();
    table.refusals();
    table.raw();
    table.steering();
    table.input();
    table.forward();
    table.redirect();
    table.nat();
    table.finish()
}

/// What is never steered to a line: the VLANs, the router's own addresses, multicast, broadcast, link-local.
pub fn local(config: &Config) -> AddressSet {
    let special = SPECIAL.iter().filter_map(|net| net.parse().ok());
    let own = own(config).into_iter().map(IpNet::from);
    collected(special.chain(networks(config)).chain(own))
}

/// The router's own addresses.
pub fn own(config: &Config) -> BTreeSet<IpAddr> {
    let wans = config.wans.values().flat_map(|wan| &wan.addressing.addresses);
    let pair =
        config.pair.iter().filter_map(|pair| pair.own()).flat_map(|own| own.addresses.iter().map(|(_, net)| net));
    inside(config).map(|net| net.addr()).chain(wans.chain(pair).map(IpNet::addr)).collect()
}

/// What is near the router on its lines: their networks and gateways.
pub(crate) fn line_networks(config: &Config) -> Vec<IpNet> {
    let near = config.wans.values().flat_map(|wan| {
        let gateways = Family::ALL.into_iter().filter_map(|family| wan.gateway(family)).map(IpNet::from);
        wan.addressing.addresses.iter().map(IpNet::trunc).chain(gateways)
    });
    near.collect()
}

/// Sources that cannot come from the Internet: private, reserved, for documentation (RFC 6890 and later). What is
/// [`SPECIAL`] is not among them: neighbours use it.
pub(crate) fn bogons() -> impl Iterator<Item = IpNet> {
    BOGONS.iter().filter_map(|net| net.parse().ok())
}

/// Addresses inside the VLANs that no host may send from: the router's own, and the first and last of an IPv4
/// subnet, which are its network and broadcast addresses.
pub fn no_sources(config: &Config) -> AddressSet {
    let ends = inside(config).filter(has_broadcast).flat_map(|net| [net.network(), net.broadcast()]);
    collected(ends.chain(own(config)).map(IpNet::from))
}

/// Does this subnet keep its first and last address for itself?
pub(crate) fn has_broadcast(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() < 31,
        IpNet::V6(_) => false,
    }
}

/// The router's address in every VLAN, with the prefix of the VLAN.
fn inside(config: &Config) -> impl Iterator<Item = IpNet> {
    config.vlans.values().flat_map(|vlan| &vlan.addresses).copied()
}

/// What is at home in any VLAN or behind any tunnel.
fn networks(config: &Config) -> impl Iterator<Item = IpNet> {
    config.vlans.values().flat_map(Vlan::networks)
}

/// All of these as one set: merged once, not once per member.
fn collected(nets: impl Iterator<Item = IpNet>) -> AddressSet {
    let mut set = AddressSet::default();
    for net in nets {
        match net {
            IpNet::V4(net) => set.v4.push(net.network()..=net.broadcast()),
            IpNet::V6(net) => set.v6.push(net.network()..=net.broadcast()),
        }
    }
    if let Some(last) = set.v4.pop() {
        set.add_range4(last);
    }
    if let Some(last) = set.v6.pop() {
        set.add_range6(last);
    }
    set
}

/// The permits of an entry, joined where they go to the same hosts, each within the hosts of the entry.
pub(crate) fn permitted(permits: &[Permit], within: Option<&AddressSet>) -> Vec<(Option<AddressSet>, PortSet)> {
    let mut joined: Vec<(Option<AddressSet>, PortSet)> = Vec::new();
    for permit in permits {
        let hosts = both(within, permit.hosts.as_ref());
        match joined.iter_mut().find(|(other, _)| *other == hosts) {
            Some((_, ports)) => ports.merge(&permit.ports),
            None => joined.push((hosts, permit.ports.clone())),
        }
    }
    joined
}

/// What is in both; `None` is everything.
pub(crate) fn both(a: Option<&AddressSet>, b: Option<&AddressSet>) -> Option<AddressSet> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.intersection(b)),
        (Some(one), None) | (None, Some(one)) => Some(one.clone()),
        (None, None) => None,
    }
}

struct Table<'a> {
    config: &'a Config,
    sets: BTreeMap<String, String>,
    maps: BTreeMap<String, String>,
    chains: BTreeMap<String, Vec<String>>,
}

impl Table<'_> {
    /// Sets and maps whose elements live in the kernel. A set whose declaration depends on the file carries that
    /// in its name, because the kernel does not change the declaration of a set that exists.
    fn live(&mut self) {
        let counted = |key: &str| format!("type {key}\nsize 65535\nflags dynamic\ncounter");
        for (name, key) in [
            ("denied", "ifname . ifname"),
            ("allowed", "ifname . ifname"),
            ("invalid", "ifname . ifname"),
            ("audit_flows", "ifname . ifname"),
            ("denied_in", "ifname"),
            ("spoofed", "ifname"),
            ("chosen", "mark"),
        ] {
            self.sets.insert(name.to_owned(), counted(key));
        }
        let rate = self.config.router.denied_log_rate;
        if rate > 0 {
            for (kind, key) in METERS {
                let body = format!(
                    "type {key}\nsize 65535\nflags dynamic\nlimit rate {rate}/second burst {} packets",
                    rate.saturating_mul(4)
                );
                self.sets.insert(meter(kind, rate), body);
            }
        }
        // The kernel takes elements out of it by itself: an audit ends though nobody lives to end it.
        self.sets.insert("audited".to_owned(), "type ifname . ifname\nsize 64\nflags timeout".to_owned());
        self.sets.insert(
            meter("audit", AUDIT_RATE),
            format!("type ifname . ifname\nsize 65535\nflags dynamic\nlimit rate {AUDIT_RATE}/second burst {AUDIT_RATE} packets"),
        );
        self.sets.insert("dead".to_owned(), "type nf_proto . mark".to_owned());
        self.taken();
        for policy in self.config.policies.keys() {
            for family in Family::ALL {
                let key = BucketKey { policy: policy.clone(), family };
                self.maps.insert(key.map_name(), "type mark : verdict".to_owned());
            }
        }
    }

    /// Where packets end that go no further: counted always, logged within the rate, dropped.
    fn refusals(&mut self) {
        let rate = self.config.router.denied_log_rate;
        for (chain, set, key, kind) in [
            ("deny", "denied", "iifname . oifname", "forward"),
            ("deny_in", "denied_in", "iifname", "input"),
            ("deny_spoof", "spoofed", "iifname", "spoof"),
            ("deny_invalid", "invalid", "iifname . oifname", "invalid"),
        ] {
            // Each in a rule of its own: a rule ends where its set is full, and the drop must not depend on that.
            let mut rules = vec![format!("add @{set} {{ {key} }}")];
            if rate > 0 {
                rules.push(format!("add @{} {{ {key} }} {}", meter(kind, rate), log(kind)));
            }
            rules.push("drop".to_owned());
            self.chain(chain, rules);
        }
    }

    fn raw(&mut self) {
        let mut by_interface = Vec::new();
        for vlan in self.config.vlans.values() {
            by_interface.push(format!("\"{}\" : goto from_vlan", vlan.interface));
        }
        for wan in self.config.wans.values() {
            by_interface.push(format!("\"{}\" : goto from_wan", wan.interface));
        }
        let mut hook = vec!["type filter hook prerouting priority raw; policy accept;".to_owned()];
        hook.extend(vmap("iifname", &by_interface));
        self.chain("hook_raw", hook);

        let no_sources = no_sources(self.config);
        let mut vlan = Vec::new();
        for family in Family::ALL {
            let ip = keyword(family);
            let never = elements(&no_sources, family);
            vlan.extend(rule(&format!("{ip} saddr"), &never, "goto deny_spoof"));
        }
        // A chain per VLAN, and not one set of interface and prefix together: the kernel fills such a set (pipapo) a
        // moment after the rules that look into it are in force, and in that moment every reload would drop packets.
        let mut homes = Vec::new();
        for own in self.config.vlans.values() {
            let nets = collected(own.networks());
            let rules = Family::ALL
                .into_iter()
                .filter_map(|family| rule(&format!("{} saddr", keyword(family)), &elements(&nets, family), "accept"));
            let rules = rules.collect();
            let chain = format!("home_{}", own.id);
            homes.push(format!("\"{}\" : jump {chain}", own.interface));
            self.chain(&chain, rules);
        }
        vlan.extend(vmap("iifname", &homes));
        // Duplicate address detection, neighbour discovery; a DHCP client that has no address yet.
        vlan.push("ip6 saddr { ::, fe80::/10 } accept".to_owned());
        vlan.push("ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept".to_owned());
        vlan.push("goto deny_spoof".to_owned());
        self.chain("from_vlan", vlan);

        // A packet from outside with an inside source, or with our own, could pass for one of a known inside flow.
        let inside = collected(networks(self.config).chain(own(self.config).into_iter().map(IpNet::from)));
        let wan = Family::ALL.into_iter().filter_map(|family| {
            rule(&format!("{} saddr", keyword(family)), &elements(&inside, family), "goto deny_spoof")
        });
        let mut wan: Vec<_> = wan.collect();
        wan.extend(self.no_bogons());
        self.chain("from_wan", wan);

        // The bare ACK that draws an answer from the inside end of a dead flow must not become a flow itself.
        let bare =
            format!("meta mark & {:#010x} == {:#010x} notrack accept", Mark::WAN_MASK | Mark::PROBE, Mark::KICK.0);
        let mut own = vec!["type filter hook output priority raw; policy accept;".to_owned(), bare];
        let leased =
            leased4(self.config).map(|(_, address)| format!("{:#010x}", address.to_bits())).collect::<Vec<_>>();
        own.extend(rule(&format!("{RENEWAL} {CIADDR}"), &leased, "notrack"));
        self.chain("hook_own_raw", own);
    }

    /// A client of DHCP that renews sends from a socket that is bound to no line, so it would ask the server of any. The
    /// packet says whose address it is about; it leaves by that line, from that address, and no NAT takes the answer to
    /// another.
    fn renewals(&self) -> Vec<String> {
        let rule = |(wan, address): (&Wan, Ipv4Addr)| {
            let (bits, mark) = (address.to_bits(), wan.id.mark());
            format!("{CIADDR} {bits:#010x} ip saddr set {address} meta mark set {mark} accept")
        };
        leased4(self.config).map(rule).collect()
    }

    fn no_bogons(&self) -> Vec<String> {
        let strict: Vec<_> =
            self.config.wans.values().filter(|wan| wan.bogons).map(|wan| format!("\"{}\"", wan.interface)).collect();
        if strict.is_empty() {
            return Vec::new();
        }
        let from = format!("iifname {{ {} }}", strict.join(", "));
        let (near, bogons) = (collected(line_networks(self.config).into_iter()), collected(bogons()));
        let verdicts = [(&near, "accept"), (&bogons, "goto deny_spoof")];
        let rules = verdicts.into_iter().flat_map(|(set, verdict)| {
            let from = &from;
            Family::ALL.into_iter().filter_map(move |family| {
                rule(&format!("{from} {} saddr", keyword(family)), &elements(set, family), verdict)
            })
        });
        rules.collect()
    }

    fn steering(&mut self) {
        let mut hook = vec!["type filter hook prerouting priority mangle; policy accept;".to_owned()];
        let wans: Vec<_> = self.wans(|wan| format!("goto mark_{}", wan.id));
        hook.extend(vmap("iifname", &wans));
        for wan in self.config.wans.values() {
            // Only the conntrack mark: a mark on the packet would send it back out of its line.
            let mark = format!("ct state new ct mark 0x00000000 ct mark set {}", wan.id.mark());
            self.chain(&format!("mark_{}", wan.id), vec![mark, "accept".to_owned()]);
        }
        let restore =
            format!("ct mark & {0:#010x} != 0x00000000 meta mark set ct mark & {0:#010x} accept", Mark::WAN_MASK);
        hook.push(restore.clone());
        let local = local(self.config);
        let stay = Family::ALL
            .into_iter()
            .filter_map(|family| rule(&format!("{} daddr", keyword(family)), &elements(&local, family), "accept"));
        let stay: Vec<_> = stay.collect();
        hook.extend(stay.clone());
        hook.extend(self.steering_by_vlan());
        self.chain("hook_steer", hook);

        let mut own = vec!["type route hook output priority mangle; policy accept;".to_owned()];
        // What the kernel itself answers to a late reply, when the probe's socket is gone, leaves by the same line.
        own.push(format!(
            "meta mark & {0:#010x} == {0:#010x} ct mark set meta mark & {1:#010x} | {2:#010x} accept",
            Mark::PROBE,
            Mark::WAN_MASK,
            policy_mark(PolicyId::PROBES)
        ));
        own.push("oifname \"lo\" accept".to_owned());
        let renewals = self.renewals();
        if !renewals.is_empty() {
            own.push(format!("{RENEWAL} goto renewals"));
            self.chain("renewals", renewals);
        }
        if self.config.tunnels().next().is_some() {
            own.push(format!("meta mark & {:#010x} == {} goto tunnel_out", Mark::WAN_MASK, Mark::TUNNEL));
            let mut rules = self.by_source("");
            rules.push(restore.clone());
            rules.push("accept".to_owned());
            self.chain("tunnel_out", rules);
        }
        own.push(format!("meta mark & {:#010x} != 0x00000000 accept", Mark::WAN_MASK));
        // Neighbour discovery belongs to the interface it is about, also when it is unicast to a gateway.
        own.push(format!("icmpv6 type {{ {NEIGHBOUR_DISCOVERY}, nd-router-solicit, nd-router-advert }} accept"));
        own.push(restore);
        // A reset for a segment that conntrack cannot place belongs to no flow; its source address tells the line.
        own.extend(self.by_source("ct state invalid "));
        own.extend(stay);
        if let Some(policy) = self.config.router.own_policy.as_ref().and_then(|name| self.config.policies.get(name)) {
            own.push(format!("goto {}", choice(policy.id)));
        }
        self.chain("hook_own", own);

        for policy in self.config.policies.values() {
            let mut rules =
                vec![format!("ct mark set ct mark & {:#010x} | {:#010x}", !Mark::POLICY_MASK, policy_mark(policy.id))];
            for family in Family::ALL {
                let ip = keyword(family);
                let only = format!("meta nfproto {}", nfproto(family));
                let bucket = match policy.balance {
                    Balance::Flow | Balance::Headroom => format!("numgen inc mod {BUCKETS}"),
                    Balance::Spread => {
                        rules.push(format!("{only} goto {}", self.apart(policy, family)));
                        continue;
                    }
                    Balance::Source => format!("jhash {ip} saddr mod {BUCKETS} seed {SEED}"),
                    Balance::SourceDestination => {
                        format!("jhash {ip} saddr . {ip} daddr mod {BUCKETS} seed {SEED}")
                    }
                };
                let map = BucketKey { policy: policy.name.clone(), family }.map_name();
                rules.push(format!("{only} {bucket} vmap @{map}"));
            }
            self.chain(&choice(policy.id), rules);
        }
        for wan in self.config.wans.values() {
            self.go(Slot::Wan(wan.id), wan.id.mark());
        }
        self.go(Slot::Unreachable, Mark::UNREACHABLE);
        self.go(Slot::Blackhole, Mark::BLACKHOLE);
    }

    /// What such packets come from tells their line.
    fn by_source(&self, such: &str) -> Vec<String> {
        let rule = |family: Family| {
            let lines = self.config.wans.values().flat_map(|wan| {
                let own = wan.addressing.addresses.iter().map(IpNet::addr).filter(|own| Family::of(*own) == family);
                own.map(|own| format!("{own} : {}", wan.id.mark()))
            });
            let lines: Vec<_> = lines.collect();
            let ip = keyword(family);
            let rule = || format!("{such}meta mark set {ip} saddr map {{ {} }} accept", lines.join(", "));
            (!lines.is_empty()).then(rule)
        };
        Family::ALL.into_iter().filter_map(rule).collect()
    }

    /// VLANs to which the same steering rules apply share a chain.
    fn steering_by_vlan(&mut self) -> Option<String> {
        let default = self.config.router.default_policy.as_ref().and_then(|name| self.config.policies.get(name));
        let mut shared: BTreeMap<Vec<usize>, String> = BTreeMap::new();
        let mut by_interface = Vec::new();
        for vlan in self.config.vlans.values() {
            let applies = |steer: &Steer| steer.from.as_ref().is_none_or(|from| from.contains(&vlan.name));
            let rules: Vec<_> =
                self.config.steering.iter().enumerate().filter(|(_, steer)| applies(steer)).map(|(n, _)| n).collect();
            let number = shared.len();
            let chain = shared.entry(rules.clone()).or_insert_with(|| format!("steer_{number}")).clone();
            if !self.chains.contains_key(&chain) {
                let mut text = Vec::new();
                for steer in rules.iter().filter_map(|n| self.config.steering.get(*n)) {
                    let Some(policy) = self.config.policies.get(&steer.policy) else { continue };
                    let traffic = Traffic {
                        source: steer.source.as_ref(),
                        destination: steer.destination.as_ref(),
                        source_ports: steer.source_ports.as_ref(),
                        ports: steer.ports.as_ref(),
                    };
                    let verdict = format!("goto {}", choice(policy.id));
                    text.extend(traffic.rules().iter().map(|matched| join(&[matched, &verdict])));
                }
                text.extend(default.map(|policy| format!("goto {}", choice(policy.id))));
                self.chain(&chain, text);
            }
            by_interface.push(format!("\"{}\" : goto {chain}", vlan.interface));
        }
        vmap("iifname", &by_interface)
    }

    fn go(&mut self, slot: Slot, mark: Mark) {
        let set = |what: &str| format!("{what} mark set {what} mark & {:#010x} | {mark}", !Mark::WAN_MASK);
        let count = self.count_unless_tried();
        self.chain(&slot.chain_name(), vec![set("meta"), set("ct"), count]);
    }

    fn input(&mut self) {
        let mut hook = vec!["type filter hook input priority filter; policy drop;".to_owned()];
        hook.push("iifname \"lo\" accept".to_owned());
        hook.extend(KNOWN.map(str::to_owned));
        let mut shared = BTreeMap::new();
        let config = self.config;
        let mut vlans = Vec::new();
        for vlan in config.vlans.values() {
            let mut rules = vec!["jump ipv6_basics".to_owned()];
            rules.extend(input_rules(&vlan.input));
            rules.extend(talks(config, &vlan.name).iter().flat_map(talk_rules));
            rules.push("goto deny_in".to_owned());
            let chain = self.shared(&mut shared, rules, || format!("in_{}", vlan.id));
            vlans.push(format!("\"{}\" : goto {chain}", vlan.interface));
        }
        let wans = self.wans(|wan| format!("goto win_{}", wan.id));
        hook.extend(vmap("iifname", &[vlans, wans].concat()));
        hook.push("goto deny_in".to_owned());
        self.chain("hook_input", hook);

        self.chain(
            "ipv6_basics",
            vec![
                format!("icmpv6 type {{ {NEIGHBOUR_DISCOVERY}, nd-router-solicit }} ip6 hoplimit 255 accept"),
                "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } \
                 ip6 saddr { ::, fe80::/10 } accept"
                    .to_owned(),
            ],
        );
        for wan in self.config.wans.values() {
            let mut rules = vec!["jump wan_basics".to_owned()];
            // The client has no flow of its own before it has an address.
            if wan.is_leased(Family::V4) {
                rules.push("meta nfproto ipv4 udp sport 67 udp dport 68 accept".to_owned());
            }
            if wan.is_leased(Family::V6) {
                rules.push("ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept".to_owned());
            }
            rules.extend(input_rules(&wan.input));
            rules.push("goto deny_in".to_owned());
            self.chain(&format!("win_{}", wan.id), rules);
        }
        if !self.config.wans.is_empty() {
            self.chain(
                "wan_basics",
                vec![
                    "icmp type { destination-unreachable, time-exceeded, parameter-problem } accept".to_owned(),
                    "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept"
                        .to_owned(),
                    format!("icmpv6 type {{ {NEIGHBOUR_DISCOVERY}, nd-router-advert }} ip6 hoplimit 255 accept"),
                ],
            );
        }
    }

    fn forward(&mut self) {
        let mut hook = vec!["type filter hook forward priority filter; policy drop;".to_owned()];
        hook.push(format!(
            "meta nfproto . (ct mark & {:#010x}) @dead goto dead_flow",
            Mark::WAN_MASK | Mark::POLICY_MASK
        ));
        hook.push("tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu".to_owned());
        for wan in self.config.wans.values() {
            let Some(mtu) = wan.mtu else { continue };
            // Towards the inside the route's MTU says nothing about the line. Setting only ever lowers.
            for (family, headers) in [(Family::V4, 40), (Family::V6, 60)] {
                hook.push(format!(
                    "iifname \"{}\" meta nfproto {} tcp flags & (syn | rst) == syn tcp option maxseg size set {}",
                    wan.interface,
                    nfproto(family),
                    mtu.saturating_sub(headers)
                ));
            }
        }
        // Before the known flows: one that began in an audit ends with it.
        let class = Mark::WAN_MASK | Mark::POLICY_MASK;
        hook.push(format!("ct mark & {class:#010x} == {} goto audited_flow", Mark::AUDIT));
        hook.extend(KNOWN.map(str::to_owned));
        let lines = self.wans(|wan| format!("goto out_{}", wan.id));
        hook.extend(vmap("oifname", &lines));
        hook.extend(self.cells());
        hook.push("iifname . oifname @audited goto audit".to_owned());
        hook.push("goto deny".to_owned());
        self.chain("hook_forward", hook);
        self.audit();
        self.chain("pass", vec!["add @allowed { iifname . oifname }".to_owned(), "accept".to_owned()]);
        self.dead_flow();

        for wan in self.config.wans.values() {
            let foreign = format!("meta mark & {:#010x} != {} goto deny", Mark::WAN_MASK, wan.id.mark());
            self.chain(&format!("out_{}", wan.id), vec![foreign, "goto to_internet".to_owned()]);
        }
        if !self.config.wans.is_empty() {
            let egress = self.egress();
            let mut rules: Vec<_> = vmap("iifname", &egress).into_iter().collect();
            rules.push("goto deny".to_owned());
            self.chain("to_internet", rules);
            // A connection that is new to us and does not begin here lost its line: its end is told to begin again.
            let mut leave = Vec::new();
            let silent = self.policies_with(&[Kick::Silent]);
            let loud = if silent.is_empty() {
                String::new()
            } else {
                format!("ct mark & {:#010x} != {{ {} }} ", Mark::POLICY_MASK, silent.join(", "))
            };
            leave.push(format!("{loud}tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset"));
            leave.push("goto pass".to_owned());
            self.chain("leave", leave);
        }
    }

    /// What an audited cell does not allow. Only where it is the first of a flow: the middle of a connection that is
    /// not known says nothing about a service.
    fn audit(&mut self) {
        let class = Mark::WAN_MASK | Mark::POLICY_MASK;
        let rules = vec![
            "tcp flags & (fin | syn | rst | ack) != syn goto deny".to_owned(),
            "add @audit_flows { iifname . oifname }".to_owned(),
            format!("add @{} {{ iifname . oifname }} {}", meter("audit", AUDIT_RATE), log("audit")),
            format!("ct mark set ct mark & {:#010x} | {}", !class, Mark::AUDIT),
            "accept".to_owned(),
        ];
        self.chain("audit", rules);
        let known = ["iifname . oifname @audited accept", "oifname . iifname @audited accept", "goto deny"];
        self.chain("audited_flow", known.map(str::to_owned).to_vec());
    }

    /// Flows of a dead class whose conntrack entry is still there.
    fn dead_flow(&mut self) {
        let outside: Vec<_> = self.config.wans.values().map(|wan| format!("\"{}\"", wan.interface)).collect();
        let mut rules: Vec<_> = rule("iifname", &outside, "drop").into_iter().collect();
        let policy = format!("ct mark & {:#010x}", Mark::POLICY_MASK);
        rules.extend(rule(&policy, &self.policies_with(&[Kick::Silent]), "drop"));
        rules.push("meta l4proto tcp reject with tcp reset".to_owned());
        rules.extend(rule(&policy, &self.policies_with(&[Kick::All]), "reject with icmpx port-unreachable"));
        rules.push("drop".to_owned());
        self.chain("dead_flow", rules);
    }

    /// Permits to single hosts and ports, the mass of a large matrix, are elements of one set per kind of key for all
    /// cells: a set and a chain for each cell would take nft a thousand times as long to load. The rest of a cell
    /// stands in a chain, which cells with equal rules share.
    fn cells(&mut self) -> Vec<String> {
        let mut pairs: BTreeMap<(&VlanName, &VlanName), Vec<&Cell>> = BTreeMap::new();
        for cell in self.config.cells.iter().filter(|cell| cell.enabled) {
            pairs.entry((&cell.from, &cell.to)).or_default().push(cell);
        }
        let mut singles: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut shared = BTreeMap::new();
        let mut by_pair = Vec::new();
        for ((from, to), cells) in pairs {
            let (Some(from), Some(to)) = (self.config.vlans.get(from), self.config.vlans.get(to)) else { continue };
            let pair = format!("\"{}\" . \"{}\"", from.interface, to.interface);
            // The first entry that permits a flow says whether it is logged: those cells keep their order.
            let in_order = cells.iter().any(|cell| cell.log);
            let mut rules = Vec::new();
            for cell in cells {
                rules.extend(cell_rules(cell, |traffic| {
                    if in_order {
                        return traffic.ports.cloned();
                    }
                    let (found, rest) = traffic.singles();
                    for (key, element) in found {
                        let elements = singles.entry(format!("iifname . oifname . {key}")).or_default();
                        elements.insert(format!("{pair} . {element}"));
                    }
                    rest
                }));
            }
            let verdict = match rules.as_slice() {
                [] => continue,
                [all] if all == PASS => PASS.to_owned(),
                _ => format!("jump {}", self.shared(&mut shared, rules, || format!("c_{}_{}", from.id, to.id))),
            };
            by_pair.push(format!("{pair} : {verdict}"));
        }
        let singles = singles.into_iter().filter_map(|(key, elements)| rule(&key, &Vec::from_iter(elements), PASS));
        singles.chain(vmap("iifname . oifname", &by_pair)).collect()
    }

    /// The chain that holds these rules, made under this name where there is none.
    fn shared(
        &mut self,
        chains: &mut BTreeMap<Vec<String>, String>,
        rules: Vec<String>,
        name: impl FnOnce() -> String,
    ) -> String {
        if let Some(chain) = chains.get(&rules) {
            return chain.clone();
        }
        let name = name();
        self.chain(&name, rules.clone());
        chains.insert(rules, name.clone());
        name
    }

    fn egress(&mut self) -> Vec<String> {
        let mut elements = Vec::new();
        for vlan in self.config.vlans.values() {
            match &vlan.internet {
                Internet::None => {}
                Internet::Any => elements.push(format!("\"{}\" : goto leave", vlan.interface)),
                Internet::Sets(names) => {
                    let chain = format!("e_{}", vlan.id);
                    let mut rules = Vec::new();
                    for set in names.iter().filter_map(|name| self.config.egress.get(name)) {
                        let traffic =
                            Traffic { destination: set.to.as_ref(), ports: Some(&set.ports), ..Traffic::default() };
                        rules.extend(traffic.rules().iter().map(|matched| join(&[matched, "goto leave"])));
                        rules.extend(self.named(set));
                    }
                    rules.push("goto deny".to_owned());
                    elements.push(format!("\"{}\" : goto {chain}", vlan.interface));
                    self.chain(&chain, rules);
                }
            }
        }
        elements
    }

    /// What names of this set stand for. Whoever answers for the names fills the sets, and the kernel empties them.
    fn named(&mut self, set: &EgressSet) -> Vec<String> {
        let mut rules = Vec::new();
        for (part, named) in set.named.iter().enumerate() {
            for (family, kind) in [(Family::V4, "ipv4_addr"), (Family::V6, "ipv6_addr")] {
                let name = NamedKey { set: set.name.clone(), part, family }.set_name();
                let ports = Traffic { ports: Some(&named.ports), ..Traffic::default() };
                let to = format!("{} daddr @{name}", keyword(family));
                rules.extend(ports.of(family).iter().map(|matched| join(&[&to, matched, "goto leave"])));
                self.sets.insert(name, format!("type {kind}\nsize {NAMED}\nflags timeout"));
            }
        }
        rules
    }

    /// Where names open ways out, whoever asks somebody else for them is answered here. Before steering: it has no line.
    fn redirect(&mut self) {
        let mut hook = vec!["type nat hook prerouting priority -160; policy accept;".to_owned()];
        let local = local(self.config);
        for family in Family::ALL {
            let to =
                |vlan: &Vlan| Some(format!("\"{}\" : {}", vlan.interface, self.config.dns_redirect(vlan, family)?));
            let to: Vec<_> = self.config.vlans.values().filter_map(to).collect();
            if to.is_empty() {
                continue;
            }
            let from = to.iter().filter_map(|element| element.split_once(" : ")).map(|(from, _)| from);
            let (from, ip) = (from.collect::<Vec<_>>().join(", "), keyword(family));
            let beyond = format!("{ip} daddr != {{ {} }}", elements(&local, family).join(", "));
            hook.push(format!(
                "iifname {{ {from} }} {beyond} meta l4proto {{ tcp, udp }} th dport 53 dnat {ip} to iifname map {{ {} }}",
                to.join(", ")
            ));
        }
        if hook.len() > 1 {
            self.chain("hook_redirect", hook);
        }
    }

    fn nat(&mut self) {
        let mut hook = vec!["type nat hook postrouting priority srcnat; policy accept;".to_owned()];
        hook.push(format!("meta mark & {0:#010x} == {0:#010x} accept", Mark::PROBE));
        let lines = self.wans(|wan| format!("goto nat_{}", wan.id));
        hook.extend(vmap("oifname", &lines));
        self.chain("hook_nat", hook);
        for wan in self.config.wans.values() {
            let mut rules = vec!["meta nfproto ipv4 masquerade".to_owned()];
            // What its provider delegated leaves by it as it is, and by no other line: nobody else lets it pass.
            let of =
                |wan: &Wan| wan.addressing.delegated.iter().map(|net| IpNet::V6(net.own.trunc())).collect::<Vec<_>>();
            rules.extend(rule("ip6 saddr", &elements(&collected(of(wan).into_iter()), Family::V6), "accept"));
            match &wan.nat6 {
                Nat6::Masquerade => rules.push("meta nfproto ipv6 masquerade".to_owned()),
                Nat6::Prefix { internal, external } => {
                    let (internal, external) = (internal.trunc(), external.trunc());
                    rules.push(format!(
                        "ip6 saddr {internal} snat ip6 prefix to ip6 saddr map {{ {internal} : {external} }}"
                    ));
                    // What is not inside the prefix (the router's address on another line) has no twin outside.
                    rules.push("meta nfproto ipv6 masquerade".to_owned());
                }
                Nat6::None => {
                    let mut others = AddressSet::default();
                    for other in self.config.wans.values().filter(|other| other.id != wan.id) {
                        other.addressing.addresses.iter().for_each(|net| others.add(net.addr().into()));
                        for net in of(other) {
                            others.add(net);
                        }
                    }
                    rules.extend(rule("ip6 saddr", &elements(&others, Family::V6), "masquerade"));
                }
            }
            self.chain(&format!("nat_{}", wan.id), rules);
        }
    }

    fn finish(mut self) -> Ruleset {
        let generation = generation(&self.sets, &self.maps, &self.chains);
        self.chain(&format!("gen_{generation}"), Vec::new());
        Ruleset { generation, sets: self.sets, maps: self.maps, chains: self.chains }
    }

    fn chain(&mut self, name: &str, rules: Vec<String>) {
        self.chains.insert(name.to_owned(), rules);
    }

    fn wans(&self, verdict: impl Fn(&Wan) -> String) -> Vec<String> {
        self.config.wans.values().map(|wan| format!("\"{}\" : {}", wan.interface, verdict(wan))).collect()
    }

    fn policies_with(&self, kicks: &[Kick]) -> Vec<String> {
        let told = self.config.policies.values().filter(|policy| kicks.contains(&policy.kick));
        told.map(|policy| format!("{:#010x}", policy_mark(policy.id))).collect()
    }
}

/// `rest` is handed each permit and says which of its ports still need a rule.
fn cell_rules(cell: &Cell, mut rest: impl FnMut(&Traffic<'_>) -> Option<PortSet>) -> Vec<String> {
    let verdict =
        if cell.log { format!("{} goto pass", log(&format!("allow {}", cell.line.0))) } else { PASS.to_owned() };
    let mut matched = Vec::new();
    match &cell.allow {
        Allow::Any => matched = traffic(cell, cell.to_hosts.as_ref(), None).rules(),
        Allow::Services(permits) => {
            for (hosts, ports) in permitted(permits, cell.to_hosts.as_ref()) {
                let left = rest(&traffic(cell, hosts.as_ref(), Some(&ports)));
                matched.extend(traffic(cell, hosts.as_ref(), left.as_ref()).rules());
            }
        }
    }
    matched.iter().map(|matched| join(&[matched, &verdict])).collect()
}

fn traffic<'a>(cell: &'a Cell, destination: Option<&'a AddressSet>, ports: Option<&'a PortSet>) -> Traffic<'a> {
    Traffic { source: cell.from_hosts.as_ref(), destination, source_ports: None, ports }
}

fn talk_rules(talk: &Talk) -> Vec<String> {
    let only = |address: Ipv4Addr| collected([IpNet::from(IpAddr::V4(address))].into_iter());
    let (from, to) = (only(talk.from), only(talk.to));
    let said = Traffic { source: Some(&from), destination: Some(&to), ports: Some(&talk.ports), ..Traffic::default() };
    said.rules().iter().map(|matched| join(&[matched, "accept"])).collect()
}

fn input_rules(permits: &[Permit]) -> Vec<String> {
    let (some, anybody): (Vec<_>, Vec<_>) = permits.iter().cloned().partition(|permit| permit.sources.is_some());
    let anybody = permitted(&anybody, None).into_iter().flat_map(|(hosts, ports)| {
        Traffic { destination: hosts.as_ref(), ports: Some(&ports), ..Traffic::default() }.rules()
    });
    let some = some.iter().flat_map(|Permit { ports, hosts, sources, .. }| {
        let (source, destination) = (sources.as_ref(), hosts.as_ref());
        Traffic { source, destination, ports: Some(ports), ..Traffic::default() }.rules()
    });
    anybody.chain(some).map(|matched| join(&[&matched, "accept"])).collect()
}

/// `KEY vmap { … }`, or nothing where there is nothing to choose from: nft knows no empty literal.
fn vmap(key: &str, elements: &[String]) -> Option<String> {
    (!elements.is_empty()).then(|| format!("{key} vmap {{ {} }}", elements.join(", ")))
}

/// `KEY { … } VERDICT`, or nothing where nothing can match.
fn rule(key: &str, elements: &[String], verdict: &str) -> Option<String> {
    (!elements.is_empty()).then(|| format!("{key} {{ {} }} {verdict}", elements.join(", ")))
}

fn log(kind: &str) -> String {
    format!("log prefix \"qw {kind}\" group {NFLOG_GROUP} snaplen 128")
}

fn meter(kind: &str, rate: u32) -> String {
    format!("lograte_{kind}_{rate}")
}

fn nfproto(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// The line of this packet's mark gets one flow more.
fn chosen() -> String {
    format!("add @chosen {{ meta mark & {:#010x} }}", Mark::WAN_MASK)
}

fn choice(policy: PolicyId) -> String {
    format!("p_{}", policy.0)
}

fn policy_mark(policy: PolicyId) -> u32 {
    u32::from(policy.0) << 16
}

/// FNV-1a in 128 bits over every name and line: it tells our own texts apart, it defends against nobody.
fn generation(
    sets: &BTreeMap<String, String>,
    maps: &BTreeMap<String, String>,
    chains: &BTreeMap<String, Vec<String>>,
) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut feed = |text: &str| {
        for byte in text.bytes().chain([0]) {
            hash ^= u128::from(byte);
            hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    };
    for (kind, declarations) in [("set", sets), ("map", maps)] {
        for (name, body) in declarations {
            [kind, name, body].into_iter().for_each(&mut feed);
        }
    }
    for (name, rules) in chains {
        ["chain", name].into_iter().chain(rules.iter().map(String::as_str)).for_each(&mut feed);
    }
    format!("{hash:032x}")
}

pub(crate) const SPECIAL: [&str; 7] =
    ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::1/128", "fe80::/10", "ff00::/8"];
const BOGONS: [&str; 16] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "100::/64",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
];
/// Which log meters there are, and what each is kept per.
const METERS: [(&str, &str); 4] =
    [("forward", "ifname . ifname"), ("input", "ifname"), ("spoof", "ifname"), ("invalid", "ifname . ifname")];
/// Addresses that names of one part of an egress set may stand for, in one family.
pub const NAMED: usize = 65_535;
/// Flows of an audited cell that are told in a second.
const AUDIT_RATE: u32 = 200;
const NEIGHBOUR_DISCOVERY: &str = "nd-neighbor-solicit, nd-neighbor-advert";
/// Two comparisons and not one verdict map: a packet that meets them while a transaction takes effect must not fall
/// through as if its flow were unknown.
const KNOWN: [&str; 2] = ["ct state established,related accept", "ct state invalid goto deny_invalid"];
const PASS: &str = "goto pass";
/// From a client of DHCP to its server.
const RENEWAL: &str = "udp sport 68 udp dport 67";
/// The client's own address in it (RFC 2131, 2): twelve bytes behind the header of UDP.
const CIADDR: &str = "@th,160,32";
/// Without a fixed seed every load would scatter the sticky flows anew.
const SEED: &str = "0x51756164";
