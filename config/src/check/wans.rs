//! Lines to the Internet: addressing, probes, and the policies that choose among them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU8;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use super::segments::comment;
use super::{Check, Owner, Seen, Set, Use};
use crate::file::{self, Percent};
use crate::model::{
    Addressing, Balance, Failback, Kick, LastResort, Member, Method, Nat6, Policy, Probing, Service, Target,
    TargetKind, Threshold, Wan,
};
use crate::problem::{Problem, Span};
use crate::read::At;
use crate::units::{Family, PolicyId, PolicyName, ServiceName, Tier, WanId, WanName, Weight};

impl<'a> Check<'a> {
    pub(super) fn wans(&mut self, services: &BTreeMap<ServiceName, Service>) -> BTreeMap<WanName, Wan> {
        if let Some(extra) = self.file.wans.get(usize::from(WanId::MAX)) {
            self.push(
                Problem::error(format!("{} WANs are too many", self.file.wans.len()))
                    .at(&extra.name.span, format!("this is one more than {}", WanId::MAX))
                    .help("a line is told by 7 bits of the packet mark, and seven values of them mean something else"),
            );
            return BTreeMap::new();
        }
        let ids = self.wan_ids();
        let mut wans = BTreeMap::new();
        for written in &self.file.wans {
            let name = &written.name.value;
            if let Some(at) = &written.interface {
                self.uses.entry(at.value.clone()).or_default().push((Use::Wan(name), at.span.clone()));
            }
            let method = self.method(written);
            let addressing = method.as_ref().map(|method| self.addressing(written, method)).unwrap_or_default();
            let families = families(method.as_ref(), &addressing);
            let mtu = written.mtu.as_ref().and_then(|at| self.mtu(at, &families));
            let weight = self.weight(written.weight.as_ref());
            let nat6 = self.nat6(written.nat6.as_ref());
            let input = self.permits(written.input.as_ref().map_or(&[][..], |list| &list.value), services);
            let probe = self.probing(written, &families);
            let (Some(interface), Some(id), Some(method)) = (&written.interface, ids.get(name), method) else {
                continue;
            };
            wans.insert(
                name.clone(),
                Wan {
                    name: name.clone(),
                    id: *id,
                    interface: interface.value.clone(),
                    method,
                    addressing,
                    mtu,
                    weight,
                    download: written.download.as_ref().map(|at| at.value),
                    upload: written.upload.as_ref().map(|at| at.value),
                    nat6,
                    input,
                    bogons: written.bogons.as_ref().is_some_and(|at| at.value),
                    probe,
                    comment: comment(written.comment.as_ref()),
                    line: self.line(&written.name.span),
                },
            );
        }
        wans
    }

    /// Written ids first, then the number a name ends in, then what is free; in name order, so that the same file
    /// always gives the same marks.
    fn wan_ids(&mut self) -> BTreeMap<&'a WanName, WanId> {
        let mut taken: Seen<WanId> = Seen::new();
        let mut ids = BTreeMap::new();
        for wan in &self.file.wans {
            let Some(at) = &wan.id else { continue };
            let Some(id) = self.number(at, 1..=i64::from(WanId::MAX), "the id of a WAN").and_then(WanId::new) else {
                continue;
            };
            if let Some(first) = taken.insert(id, at.span.clone()) {
                self.push(
                    Problem::error(format!("WAN id {id} is used twice"))
                        .at(&at.span, "used again here")
                        .at(&first, "first used here")
                        .help("give each WAN an id of its own, or leave `id` out"),
                );
            }
            ids.insert(&wan.name.value, id);
        }
        let mut rest: Vec<&file::Wan> = self.file.wans.iter().filter(|wan| wan.id.is_none()).collect();
        rest.sort_by_key(|wan| &wan.name.value);
        let mut nameless = Vec::new();
        for wan in rest {
            match trailing_number(wan.name.value.as_str()).and_then(WanId::new).filter(|id| !taken.contains_key(id)) {
                Some(id) => {
                    taken.insert(id, wan.name.span.clone());
                    ids.insert(&wan.name.value, id);
                }
                None => nameless.push(wan),
            }
        }
        for wan in nameless {
            if let Some(id) = (1..=WanId::MAX).filter_map(WanId::new).find(|id| !taken.contains_key(id)) {
                taken.insert(id, wan.name.span.clone());
                ids.insert(&wan.name.value, id);
            }
        }
        ids
    }

    fn addressing(&mut self, wan: &'a file::Wan, method: &Method) -> Addressing {
        let none = Addressing::default();
        let name = &wan.name.value;
        if !method.is_static() {
            return none;
        }
        let Some(list) = &wan.addresses else {
            self.push(
                Problem::error(format!("WAN `{name}` has no `addresses`"))
                    .at(&wan.name.span, "its own address is missing")
                    .help("write, for example, `addresses = [\"192.0.2.10/24\"]` and `gateway = \"192.0.2.1\"`"),
            );
            return none;
        };
        let addresses: Vec<IpNet> = list.value.iter().filter_map(|at| self.own_address(at, Owner::Wan(name))).collect();
        let gateway4 = wan.gateway.as_ref().and_then(|at| self.gateway4(name, at, &addresses));
        let gateway6 = wan.gateway6.as_ref().and_then(|at| self.gateway6(name, at, &addresses));
        for (family, gateway, key) in [
            (Family::V4, wan.gateway.as_ref(), "gateway = \"192.0.2.1\""),
            (Family::V6, wan.gateway6.as_ref(), "gateway6 = \"fe80::1\""),
        ] {
            let own = list.value.iter().find(|at| Family::of(at.value.addr()) == family);
            match (own, gateway) {
                (Some(own), None) => self.push(
                    Problem::error(format!("WAN `{name}` has an {family} address and no {family} gateway"))
                        .at(&own.span, "nothing could leave with this address")
                        .help(format!("write `{key}`, or remove the address")),
                ),
                (None, Some(gateway)) => self.push(
                    Problem::error(format!("WAN `{name}` has an {family} gateway and no {family} address"))
                        .at(&gateway.span, "this gateway cannot be reached")
                        .help("add an address of this family to `addresses`, or remove the gateway"),
                ),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        if self.is_empty(list) {
            self.push(
                Problem::error(format!("WAN `{name}` has no address"))
                    .at(&list.span, "the list is empty")
                    .help("write, for example, `addresses = [\"192.0.2.10/24\"]`"),
            );
        }
        Addressing { addresses, gateway4, gateway6, ..Addressing::default() }
    }

    fn gateway4(&mut self, wan: &WanName, at: &At<IpAddr>, own: &[IpNet]) -> Option<Ipv4Addr> {
        match at.value {
            IpAddr::V4(address) => {
                self.gateway(wan, at, own);
                Some(address)
            }
            IpAddr::V6(_) => {
                self.push(
                    Problem::error("this gateway is an IPv6 address")
                        .at(&at.span, "`gateway` is for IPv4")
                        .help(format!("write `gateway6 = \"{}\"`", at.value)),
                );
                None
            }
        }
    }

    fn gateway6(&mut self, wan: &WanName, at: &At<IpAddr>, own: &[IpNet]) -> Option<Ipv6Addr> {
        match at.value {
            IpAddr::V6(address) => {
                if !address.is_unicast_link_local() {
                    self.gateway(wan, at, own);
                }
                Some(address)
            }
            IpAddr::V4(_) => {
                self.push(
                    Problem::error("this gateway is an IPv4 address")
                        .at(&at.span, "`gateway6` is for IPv6")
                        .help(format!("write `gateway = \"{}\"`", at.value)),
                );
                None
            }
        }
    }

    /// The gateway must be reachable without a gateway. Providers that hand out a /32 (or /128) mean that it is
    /// there all the same.
    fn gateway(&mut self, wan: &WanName, at: &At<IpAddr>, own: &[IpNet]) {
        let family = Family::of(at.value);
        let own: Vec<&IpNet> = own.iter().filter(|net| Family::of(net.addr()) == family).collect();
        let unusable = at.value.is_unspecified() || at.value.is_multicast() || at.value.is_loopback();
        if unusable || own.iter().any(|net| net.addr() == at.value) {
            let label = if unusable { "no router has such an address" } else { "this is our own address" };
            self.push(
                Problem::error(format!("`{}` cannot be the gateway of WAN `{wan}`", at.value))
                    .at(&at.span, label)
                    .help("write the address of the provider's router"),
            );
            return;
        }
        if own.is_empty() || own.iter().any(|net| net.contains(&at.value)) {
            return;
        }
        let single = own.iter().all(|net| net.prefix_len() == net.max_prefix_len());
        let subnets = own.iter().map(|net| net.trunc().to_string()).collect::<Vec<_>>().join(", ");
        let problem = if single {
            Problem::warning(format!("the gateway of WAN `{wan}` is in no subnet of the line"))
                .at(&at.span, "taken to be directly reachable (onlink)")
                .help("right if the provider gives a single address; else write its real prefix length")
        } else {
            Problem::error(format!("the gateway of WAN `{wan}` is in no subnet of the line"))
                .at(&at.span, format!("not in {subnets}"))
                .help("correct the gateway, or the prefix length of the address")
        };
        self.push(problem);
    }

    fn mtu(&mut self, at: &At<i64>, families: &[Family]) -> Option<u16> {
        // RFC 791 asks for 576 bytes of a host, RFC 8200 5 for 1280 of a link that carries IPv6.
        let least = if families.contains(&Family::V6) { 1280 } else { 576 };
        self.number(at, least..=9216, "the MTU of this line")
    }

    fn weight(&mut self, at: Option<&At<i64>>) -> Weight {
        let weight = at.and_then(|at| self.number::<u8>(at, 1..=255, "a weight"));
        Weight(weight.and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MIN))
    }

    fn nat6(&mut self, at: Option<&At<file::Nat6>>) -> Nat6 {
        let Some(at) = at else { return Nat6::Masquerade };
        match &at.value {
            file::Nat6::Masquerade => Nat6::Masquerade,
            file::Nat6::None => Nat6::None,
            file::Nat6::Prefix { internal, external } => {
                let prefix = |check: &mut Self, at: &At<IpNet>| -> Option<Ipv6Net> {
                    match at.value {
                        IpNet::V6(net) if net.addr() == net.network() => Some(net),
                        IpNet::V6(net) => {
                            check.push(
                                Problem::error(format!("`{net}` is an address, not a prefix"))
                                    .at(&at.span, format!("write \"{}\"", net.trunc())),
                            );
                            None
                        }
                        IpNet::V4(_) => {
                            check.push(
                                Problem::error("IPv4 prefixes are not translated here")
                                    .at(&at.span, "`nat6` takes IPv6 prefixes"),
                            );
                            None
                        }
                    }
                };
                let (inside, outside) = (prefix(self, internal), prefix(self, external));
                let (Some(inside), Some(outside)) = (inside, outside) else { return Nat6::Masquerade };
                if inside.prefix_len() != outside.prefix_len() {
                    self.push(
                        Problem::error("the two prefixes of `nat6` differ in length")
                            .at(&external.span, format!("/{}", outside.prefix_len()))
                            .at(&internal.span, format!("/{}", inside.prefix_len()))
                            .help("host bits are kept, so both sides need the same number of them"),
                    );
                }
                Nat6::Prefix { internal: inside, external: outside }
            }
        }
    }

    fn probing(&mut self, wan: &file::Wan, families: &[Family]) -> Probing {
        let (own, site) = (&wan.probe, &self.file.probe);
        let interval = own
            .interval
            .as_ref()
            .or(site.interval.as_ref())
            .and_then(|at| self.time(at, SHORTEST_INTERVAL, LONGEST_INTERVAL, "the interval of probes"))
            .unwrap_or(DEFAULT_INTERVAL);
        let timeout = own
            .timeout
            .as_ref()
            .or(site.timeout.as_ref())
            .and_then(|at| self.time(at, SHORTEST_TIMEOUT, LONGEST_TIMEOUT, "the timeout of a probe"))
            .unwrap_or_else(|| (interval * 3 / 2).clamp(DEFAULT_TIMEOUTS.0, DEFAULT_TIMEOUTS.1));
        let few = |check: &mut Self, own: Option<&At<i64>>, site: Option<&At<i64>>, what: &str, default: u8| {
            let value = own.or(site).and_then(|at| check.number::<u8>(at, 1..=100, what));
            NonZeroU8::new(value.unwrap_or(default)).unwrap_or(NonZeroU8::MIN)
        };
        let fall = few(self, own.fall.as_ref(), site.fall.as_ref(), "`fall`", 3);
        let rise = few(self, own.rise.as_ref(), site.rise.as_ref(), "`rise`", 5);
        let quorum = few(self, own.quorum.as_ref(), site.quorum.as_ref(), "`quorum`", 1);
        let window = own
            .window
            .as_ref()
            .or(site.window.as_ref())
            .and_then(|at| self.number(at, 2..=10_000, "the window of probes"))
            .unwrap_or(DEFAULT_WINDOW);
        let hold = own
            .hold
            .as_ref()
            .or(site.hold.as_ref())
            .and_then(|at| self.time(at, Duration::ZERO, LONGEST_HOLD, "the hold time"))
            .unwrap_or(DEFAULT_HOLD);
        let hold_max_at = own.hold_max.as_ref().or(site.hold_max.as_ref());
        let hold_max = hold_max_at
            .and_then(|at| self.time(at, Duration::ZERO, LONGEST_HOLD, "the longest hold time"))
            .unwrap_or_else(|| DEFAULT_HOLD_MAX.max(hold));
        if let Some(at) = hold_max_at.filter(|_| hold_max < hold) {
            let mut problem = Problem::error("`hold_max` is shorter than `hold`")
                .at(&at.span, format!("{hold_max:?}, but `hold` is {hold:?}"))
                .help("the hold time doubles with each flap, from `hold` up to `hold_max`");
            if let Some(hold) = own.hold.as_ref().or(site.hold.as_ref()) {
                problem = problem.at(&hold.span, "`hold` is here");
            }
            self.push(problem);
        }
        let targets = self.targets(wan, families);
        self.quorum(wan, &targets, quorum);
        let loss = own.loss.as_ref().or(site.loss.as_ref());
        let loss = loss.map(|pair| self.threshold(pair, |Percent(fail)| Percent(fail / 2), Percent(1), "loss"));
        let mut time = |pair: Option<&file::Threshold<Duration>>, what: &str| {
            let pair = pair?;
            let threshold = self.threshold(pair, |fail| fail / 2, Duration::from_micros(1), what);
            if threshold.fail >= timeout {
                let mut problem = Problem::error(format!("this threshold of {what} can never be met"))
                    .at(&pair.fail.span, format!("a probe is lost after {timeout:?} already"));
                if let Some(at) = own.timeout.as_ref().or(site.timeout.as_ref()) {
                    problem = problem.at(&at.span, "by this timeout");
                }
                self.push(problem.help("lower the threshold, or raise `timeout`"));
            }
            Some(threshold)
        };
        let latency = time(own.latency.as_ref().or(site.latency.as_ref()), "latency");
        let jitter = time(own.jitter.as_ref().or(site.jitter.as_ref()), "jitter");
        Probing {
            targets,
            interval,
            timeout,
            fall,
            rise,
            quorum,
            window,
            loss: loss.map(|pair| Threshold { fail: pair.fail.0, recover: pair.recover.0 }),
            latency,
            jitter,
            hold,
            hold_max,
        }
    }

    /// The targets of a line, in the families it has. Site-wide targets of a family it lacks are passed over; a
    /// family without a target is judged by its gateway.
    fn targets(&mut self, wan: &file::Wan, families: &[Family]) -> Vec<Target> {
        let list = wan.probe.targets.as_ref().or(self.file.probe.targets.as_ref());
        let mut seen: BTreeMap<Target, Span> = BTreeMap::new();
        let mut targets = Vec::new();
        for at in list.map_or(&[][..], |list| &list.value) {
            for target in expand(&at.value, families) {
                if !families.contains(&target.family) {
                    if wan.probe.targets.is_some() && !families.is_empty() {
                        self.push(
                            Problem::error(format!("WAN `{}` cannot reach this target", wan.name.value))
                                .at(&at.span, format!("the line has no {}", target.family))
                                .help("write a target of a family the line has an address and gateway of"),
                        );
                    }
                    continue;
                }
                if let Some(first) = seen.insert(target.clone(), at.span.clone()) {
                    self.push(
                        Problem::error("this target is listed twice")
                            .at(&at.span, "again here")
                            .at(&first, "first here")
                            .help("one target that fails would count as two"),
                    );
                    continue;
                }
                targets.push(target);
            }
        }
        for &family in families {
            if !targets.iter().any(|target| target.family == family) {
                targets.push(Target { family, kind: TargetKind::Gateway });
            }
        }
        targets
    }

    fn quorum(&mut self, wan: &file::Wan, targets: &[Target], quorum: NonZeroU8) {
        let Some(at) = wan.probe.quorum.as_ref().or(self.file.probe.quorum.as_ref()) else { return };
        for family in Family::ALL {
            let count = targets.iter().filter(|target| target.family == family).count();
            if count > 0 && usize::from(quorum.get()) > count {
                let mut problem = Problem::error(format!("WAN `{}` could never be up", wan.name.value))
                    .at(&at.span, format!("{quorum} targets must answer, and it has {count} for {family}"));
                if let Some(list) = wan.probe.targets.as_ref().or(self.file.probe.targets.as_ref()) {
                    problem = problem.at(&list.span, "the targets are here");
                }
                self.push(problem.help("lower `quorum`, or add targets"));
            }
        }
    }

    fn threshold<T: Copy + Ord>(
        &mut self,
        pair: &file::Threshold<T>,
        half: impl Fn(T) -> T,
        least: T,
        what: &str,
    ) -> Threshold<T> {
        let fail = pair.fail.value;
        let recover = pair.recover.as_ref().map_or_else(|| half(fail), |at| at.value);
        if fail < least {
            self.push(
                Problem::error(format!("this threshold of {what} is always met"))
                    .at(&pair.fail.span, "the line would never be good")
                    .help("write a value above zero"),
            );
        } else if let Some(at) = pair.recover.as_ref().filter(|_| recover >= fail) {
            self.push(
                Problem::error(format!("a line would be bad and good again at the same {what}"))
                    .at(&at.span, "not below `fail`")
                    .at(&pair.fail.span, "`fail` is here")
                    .help("`recover` must be lower, so that a line on the edge does not flap"),
            );
        }
        Threshold { fail, recover }
    }

    fn time(&mut self, at: &At<Duration>, least: Duration, most: Duration, what: &str) -> Option<Duration> {
        if (least..=most).contains(&at.value) {
            return Some(at.value);
        }
        self.push(
            Problem::error(format!("{what} cannot be {:?}", at.value))
                .at(&at.span, format!("{least:?} to {most:?} is possible")),
        );
        None
    }

    pub(super) fn policies(&mut self) -> BTreeMap<PolicyName, Policy> {
        if let Some(extra) = self.file.policies.get(usize::from(PolicyId::MAX)) {
            self.push(
                Problem::error(format!("{} policies are too many", self.file.policies.len()))
                    .at(&extra.name.span, format!("this is one more than {}", PolicyId::MAX))
                    .help("a policy is told by 8 bits of the connection mark"),
            );
            return BTreeMap::new();
        }
        let ids = policy_ids(self.file.policies.iter().map(|policy| &policy.name.value));
        let mut policies = BTreeMap::new();
        for written in &self.file.policies {
            let name = &written.name.value;
            let members = self.members(written);
            let balance = [
                ("flow", Balance::Flow),
                ("source", Balance::Source),
                ("source-destination", Balance::SourceDestination),
                ("spread", Balance::Spread),
                ("headroom", Balance::Headroom),
            ];
            let last_resort = [
                ("unreachable", LastResort::Unreachable),
                ("blackhole", LastResort::Blackhole),
                ("any", LastResort::Any),
            ];
            let kick = [("all", Kick::All), ("tcp", Kick::Tcp), ("silent", Kick::Silent)];
            let failback = match written.failback.as_ref().map(|at| at.value) {
                None | Some(file::Failback::Stay) => Failback::Stay,
                Some(file::Failback::Drain(time)) => Failback::Drain(time),
                Some(file::Failback::Force) => Failback::Force,
            };
            let policy = Policy {
                name: name.clone(),
                id: ids.get(name).copied().unwrap_or(PolicyId(1)),
                members,
                balance: written
                    .balance
                    .as_ref()
                    .and_then(|at| self.word(at, "way to balance", &balance))
                    .unwrap_or(Balance::Flow),
                last_resort: written
                    .last_resort
                    .as_ref()
                    .and_then(|at| self.word(at, "last resort", &last_resort))
                    .unwrap_or(LastResort::Unreachable),
                failback,
                kick: written.kick.as_ref().and_then(|at| self.word(at, "way to kick", &kick)).unwrap_or(Kick::Tcp),
                comment: comment(written.comment.as_ref()),
                line: self.line(&written.name.span),
            };
            policies.insert(name.clone(), policy);
        }
        policies
    }

    fn members(&mut self, policy: &file::Policy) -> Vec<Member> {
        let Some(list) = &policy.members else { return Vec::new() };
        if self.is_empty(list) {
            self.push(
                Problem::error(format!("policy `{}` has no members", policy.name.value))
                    .at(&list.span, "no line could ever be chosen")
                    .help("name WANs: `members = [\"wan1\", \"wan2\"]`"),
            );
        }
        let mut seen: Seen<WanName> = Seen::new();
        let mut members = Vec::new();
        for file::Member { wan, weight, tier } in list.value.iter().map(|at| &at.value) {
            if !self.wan_known(wan.value.as_str(), &wan.span) {
                continue;
            }
            if let Some(first) = seen.insert(wan.value.clone(), wan.span.clone()) {
                self.push(
                    Problem::error(format!("WAN `{}` is a member of this policy twice", wan.value))
                        .at(&wan.span, "again here")
                        .at(&first, "first here")
                        .help("give it a `weight` if it should carry more"),
                );
                continue;
            }
            let declared = self.file.wans.iter().find(|other| other.name.value == wan.value);
            if let (Some(at), Some(declared)) = (&policy.balance, declared)
                && at.value == "headroom"
                && let Some((missing, example)) = match (&declared.download, &declared.upload) {
                    (None, _) => Some(("download", "940mbit")),
                    (Some(_), None) => Some(("upload", "100mbit")),
                    (Some(_), Some(_)) => None,
                }
            {
                self.push(
                    Problem::error(format!(
                        "policy `{}` goes by headroom, and WAN `{}` tells no rate",
                        policy.name.value, wan.value
                    ))
                    .at(&at.span, "needs the rates of every member")
                    .at(&declared.name.span, format!("has no `{missing}`"))
                    .help(format!("write what the provider sells: `{missing} = \"{example}\"`")),
                );
            }
            // The line's own weight is what a member has without one.
            let weight = if let Some(at) = weight {
                self.weight(Some(at))
            } else {
                let own = declared.and_then(|wan| wan.weight.as_ref()).and_then(|at| u8::try_from(at.value).ok());
                Weight(own.and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MIN))
            };
            let tier = tier.as_ref().and_then(|at| self.number::<u8>(at, 1..=255, "a tier")).unwrap_or(1);
            members.push(Member { wan: wan.value.clone(), weight, tier: Tier(tier) });
        }
        members
    }
}

/// The families that the line carries.
fn families(method: Option<&Method>, addressing: &Addressing) -> Vec<Family> {
    let carries = |family: &Family| match (method, family) {
        (Some(Method::Dhcp(_)), Family::V4) => true,
        (Some(Method::Dhcp(dhcp)), Family::V6) => dhcp.ipv6,
        (Some(Method::Static), Family::V4) => addressing.gateway4.is_some(),
        (Some(Method::Static), Family::V6) => addressing.gateway6.is_some(),
        (None, _) => false,
    };
    Family::ALL.into_iter().filter(carries).collect()
}

fn expand(target: &file::Target, families: &[Family]) -> Vec<Target> {
    let kind = match target {
        file::Target::Gateway => {
            return families.iter().map(|family| Target { family: *family, kind: TargetKind::Gateway }).collect();
        }
        file::Target::Icmp(address) => TargetKind::Icmp { address: *address },
        file::Target::Tcp(address, port) => TargetKind::Tcp { address: SocketAddr::new(*address, *port) },
        file::Target::Dns { server, port, name } => {
            TargetKind::Dns { server: SocketAddr::new(*server, *port), name: name.clone() }
        }
        file::Target::Http { address, port, tls, name, path, status } => TargetKind::Http {
            address: SocketAddr::new(*address, *port),
            tls: *tls,
            name: name.clone(),
            path: path.clone(),
            status: *status,
        },
    };
    let address = match target {
        file::Target::Gateway => return Vec::new(),
        file::Target::Icmp(address) | file::Target::Tcp(address, _) | file::Target::Http { address, .. } => *address,
        file::Target::Dns { server, .. } => *server,
    };
    vec![Target { family: Family::of(address), kind }]
}

fn trailing_number(name: &str) -> Option<u8> {
    name[name.trim_end_matches(|c: char| c.is_ascii_digit()).len()..].parse().ok()
}

/// An id per policy that depends on its name, so that adding a policy does not renumber the others and live flows
/// keep theirs. Only a collision looks at the other names.
fn policy_ids<'n>(names: impl Iterator<Item = &'n PolicyName>) -> BTreeMap<PolicyName, PolicyId> {
    let names: Set<&PolicyName> = names.collect();
    let mut taken: Set<u8> = Set::new();
    let mut ids = BTreeMap::new();
    for name in names {
        // FNV-1a, 32 bits: fixed for ever, unlike the standard library's hasher.
        let hash = name
            .as_str()
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let start = u8::try_from(hash % u32::from(PolicyId::MAX)).unwrap_or(0);
        let free = (0..PolicyId::MAX)
            .map(|step| u8::try_from((u16::from(start) + u16::from(step)) % u16::from(PolicyId::MAX)).unwrap_or(0) + 1)
            .find(|id| taken.insert(*id));
        if let Some(id) = free {
            ids.insert(name.clone(), PolicyId(id));
        }
    }
    ids
}

const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);
const LONGEST_INTERVAL: Duration = Duration::from_hours(1);
const DEFAULT_INTERVAL: Duration = Duration::from_millis(500);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
const LONGEST_TIMEOUT: Duration = Duration::from_mins(1);
/// The default timeout is one and a half intervals, within these.
const DEFAULT_TIMEOUTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
const DEFAULT_WINDOW: u16 = 100;
const DEFAULT_HOLD: Duration = Duration::from_secs(10);
const DEFAULT_HOLD_MAX: Duration = Duration::from_mins(10);
const LONGEST_HOLD: Duration = Duration::from_hours(24);
