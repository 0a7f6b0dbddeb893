//! Two routers with one site file: whose the addresses are, and what both need.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{Check, Seen};
use crate::file;
use crate::model::{Node, Pair, Vlan, Wan};
use crate::problem::{Problem, Span};
use crate::read::At;
use crate::units::{NodeName, VlanName, WanName};

impl Check<'_> {
    pub(super) fn pair(&mut self, vlans: &BTreeMap<VlanName, Vlan>, wans: &BTreeMap<WanName, Wan>) -> Option<Pair> {
        let file = self.file;
        let written = file.pair.as_ref()?;
        let sync = written.sync.as_ref().filter(|at| self.vlan_known(at))?;
        let heard = self.pair_vlans(written, sync, vlans);
        let nodes = self.pair_nodes(written, vlans);
        for of in &written.nodes {
            if let Some(node) = nodes.get(&of.name.value) {
                self.pair_needs(node, of, sync, &heard, vlans);
            }
        }
        self.pair_lines(written, wans);
        let advertise = match &written.advertise {
            None => ADVERTISE,
            Some(at) if (SHORTEST..=LONGEST).contains(&at.value) => at.value,
            Some(at) => {
                self.push(
                    Problem::error("adverts cannot be that far apart, or that close")
                        .at(&at.span, "10 ms to 10 s is possible")
                        .help("leave it out: every 100 ms lets the other take over in a third of a second"),
                );
                return None;
            }
        };
        let router_id = match &written.router_id {
            Some(at) => self.number(at, 1..=255, "a virtual router id")?,
            None => ROUTER_ID,
        };
        let secret = self.api_file(written.secret.as_ref())?;
        Some(Pair {
            nodes,
            sync: sync.value.clone(),
            vlans: heard.into_iter().map(|at| at.value).collect(),
            router_id,
            advertise,
            preempt: written.preempt.as_ref().is_some_and(|at| at.value),
            secret,
            line: self.line(&written.span),
            seat: None,
        })
    }

    /// Where the two hear each other: as written, or wherever there is IPv4.
    fn pair_vlans(
        &mut self,
        written: &file::Pair,
        sync: &At<VlanName>,
        vlans: &BTreeMap<VlanName, Vlan>,
    ) -> Vec<At<VlanName>> {
        let Some(list) = &written.vlans else {
            let has4 = |vlan: &&Vlan| vlan.addresses.iter().any(|net| net.addr().is_ipv4());
            let own = |vlan: &&Vlan| vlan.tunnel.is_none() && vlan.name != sync.value;
            let others = vlans.values().filter(own).filter(has4);
            let others: Vec<_> =
                others.map(|vlan| At { value: vlan.name.clone(), span: written.span.clone() }).collect();
            if others.is_empty() {
                self.push(
                    Problem::error("the two routers have no VLAN in which to hear each other")
                        .at(&written.span, format!("there is no VLAN with IPv4 beside `{}`", sync.value))
                        .help("a pair needs a VLAN with clients beside that between the two"),
                );
            }
            return others;
        };
        if self.is_empty(list) {
            self.push(
                Problem::error("the two routers hear each other nowhere")
                    .at(&list.span, "this is empty")
                    .help("leave `vlans` out: all but that of `sync` are meant then"),
            );
        }
        let mut good = Vec::new();
        for at in &list.value {
            if !self.vlan_known(at) {
                continue;
            }
            if at.value == sync.value {
                self.push(
                    Problem::error(format!("nobody is elected over `{}`", at.value))
                        .at(&at.span, "named here")
                        .at(&sync.span, "this VLAN is for flows and heartbeats")
                        .help("a cable between the two takes the carrier of both: take it out of `vlans`"),
                );
                continue;
            }
            good.push(at.clone());
        }
        good
    }

    fn pair_nodes(&mut self, written: &file::Pair, vlans: &BTreeMap<VlanName, Vlan>) -> BTreeMap<NodeName, Node> {
        if written.nodes.len() != 2 {
            self.push(
                Problem::error(format!("a pair is two routers, and the file has {}", written.nodes.len()))
                    .at(&written.span, "this pair")
                    .help("write `[pair.node.NAME]` twice, with the names of the two boxes (`hostname -s`)"),
            );
        }
        let mut seen: Seen<IpAddr> = Seen::new();
        let mut nodes = BTreeMap::new();
        for node in &written.nodes {
            let mut addresses = Vec::new();
            for at in node.addresses.iter().flat_map(|list| &list.value) {
                if let Some(first) = seen.insert(at.value, at.span.clone()) {
                    self.push(
                        Problem::error(format!("{} is written twice", at.value))
                            .at(&at.span, "again here")
                            .at(&first, "first here")
                            .help("each of the two has an address of its own in each VLAN"),
                    );
                    continue;
                }
                addresses.extend(self.pair_address(at, vlans));
            }
            let priority = match &node.priority {
                Some(at) => self.number(at, 1..=254, "a priority").unwrap_or(PRIORITY),
                None => PRIORITY,
            };
            let name = node.name.value.clone();
            nodes.insert(name.clone(), Node { name, priority, addresses, line: self.line(&node.name.span) });
        }
        nodes
    }

    /// In which VLAN it is, and that nobody else has it.
    fn pair_address(&mut self, at: &At<IpAddr>, vlans: &BTreeMap<VlanName, Vlan>) -> Option<(VlanName, IpNet)> {
        let mut nets = vlans.values().flat_map(|vlan| vlan.addresses.iter().map(move |net| (vlan, *net)));
        let Some((vlan, net)) = nets.find(|(_, net)| net.contains(&at.value)) else {
            self.push(
                Problem::error(format!("{} is in no VLAN", at.value))
                    .at(&at.span, "no VLAN has this subnet")
                    .help("the own addresses of a router of the pair lie in the subnets of the VLANs"),
            );
            return None;
        };
        let name = &vlan.name;
        let edge = match net {
            IpNet::V4(net) => net.prefix_len() < 31 && [net.network(), net.broadcast()].contains(&v4(at.value)?),
            IpNet::V6(_) => false,
        };
        if net.addr() == at.value || edge {
            let what = if edge { "no host can have this address" } else { "this is the virtual address of the VLAN" };
            self.push(Problem::error(format!("{} cannot be a router's own", at.value)).at(&at.span, what).help(
                format!(
                    "what VLAN `{name}` has in `addresses` moves between the two; write another address of {}",
                    net.trunc()
                ),
            ));
            return None;
        }
        if let Some(host) = self.hosts.values().find(|host| host.addresses.contains(&at.value)) {
            let problem = Problem::error(format!("{} is the address of host `{}`", at.value, host.name))
                .at(&at.span, "a router of the pair is to have it")
                .help("give one of the two another address");
            self.push(problem);
            return None;
        }
        let pools = self.file.vlans.iter().filter_map(|vlan| vlan.dhcp.as_ref()?.pool.as_ref());
        let in_pool = pools.flat_map(|pool| &pool.value).find(|range| range.value.contains(at.value));
        if let Some(range) = in_pool {
            let problem = Problem::error(format!("{} may be handed to a host", at.value))
                .at(&at.span, "a router of the pair is to have it")
                .at(&range.span, "and it is in this pool")
                .help("take it out of the pool: two pieces make a pool too");
            self.push(problem);
            return None;
        }
        let net = IpNet::new(at.value, net.prefix_len()).ok()?;
        Some((vlan.name.clone(), net))
    }

    /// Each needs an IPv4 address where the two talk.
    fn pair_needs(
        &mut self,
        node: &Node,
        written: &file::PairNode,
        sync: &At<VlanName>,
        heard: &[At<VlanName>],
        vlans: &BTreeMap<VlanName, Vlan>,
    ) {
        // What is wrong with its addresses is told already.
        let all = written.addresses.as_ref().is_some_and(|list| list.value.len() == node.addresses.len());
        if !all {
            return;
        }
        let missing = std::iter::once(sync).chain(heard).filter(|at| node.address4(&at.value).is_none());
        let missing: Vec<(VlanName, Span)> = missing.map(|at| (at.value.clone(), at.span.clone())).collect();
        for (vlan, span) in missing {
            let net = vlans.get(&vlan).and_then(|vlan| vlan.addresses.iter().find(|net| net.addr().is_ipv4()));
            let problem = Problem::error(format!("router `{}` has no own IPv4 address in VLAN `{vlan}`", node.name))
                .at(&written.name.span, "missing from its `addresses`")
                .at(&span, "the two talk over this VLAN");
            let help = match net {
                Some(net) => format!("add an address of {} to its `addresses`", net.trunc()),
                None => format!("give VLAN `{vlan}` an IPv4 address, or leave it out of `vlans`"),
            };
            self.push(problem.help(help));
        }
    }

    /// A lease is of one box; the lines of a pair move between two.
    fn pair_lines(&mut self, pair: &file::Pair, wans: &BTreeMap<WanName, Wan>) {
        let file = self.file;
        for wan in &file.wans {
            let Some(method) = &wan.method else { continue };
            if wans.get(&wan.name.value).is_some_and(|wan| !wan.method.is_static()) {
                self.push(
                    Problem::error(format!("WAN `{}` cannot move between two routers", wan.name.value))
                        .at(&method.span, "its address is leased to one box")
                        .at(&pair.span, "and its line belongs to the pair")
                        .help("write `method = \"static\"` with `addresses` and `gateway`, or take [pair] away"),
                );
            }
        }
    }
}

fn v4(address: IpAddr) -> Option<std::net::Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

const ADVERTISE: Duration = Duration::from_millis(100);
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(10);
const PRIORITY: u8 = 100;
const ROUTER_ID: u8 = 77;
