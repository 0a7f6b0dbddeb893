//! `/etc/config/mwan3`: which lines are tracked and how, members, policies, and the rules that choose a policy.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::firewall::{Specs, addresses, specs};
use super::network::site_name;
use super::site::quoted;
use super::{Draft, Files, Kind, Policy, Sec, Steer, leave_others};

pub(super) fn read(files: &Files, draft: &mut Draft) {
    let file = files.mwan3.as_ref();
    let idle = tracking(files, draft);
    let members = members(files, &idle, draft);
    for sec in Sec::of(file, "policy") {
        policy(&sec, &members, draft);
    }
    rules(files, draft);
    for sec in Sec::of(file, "globals") {
        sec.leave(
            &mut draft.notes,
            &[
                ("mmx_mask", "marks are routerd's own: bits 16 to 31, not to be chosen"),
                ("local_source", "what the router itself sends follows `own_policy`"),
                ("enabled", "routerd runs or does not"),
            ],
        );
    }
    leave_others(file, &["interface", "member", "policy", "rule", "globals"], &[], &mut draft.notes);
}

/// The targets of each line. Returns the networks mwan3 knew and did not use.
fn tracking(files: &Files, draft: &mut Draft) -> Vec<String> {
    let mut idle = Vec::new();
    let mut quorums: BTreeMap<usize, u32> = BTreeMap::new();
    for sec in Sec::of(files.mwan3.as_ref(), "interface") {
        let Some(at) = draft.wan_of.get(sec.name()).copied() else {
            draft.notes.tell(Kind::Left, sec.here(), "no line of the network file came of it");
            idle.push(sec.name().to_owned());
            continue;
        };
        if !sec.flag("enabled", false) {
            let why = "mwan3 did not use this line: it is in no policy";
            draft.notes.tell(Kind::Changed, sec.at("enabled"), why);
            idle.push(sec.name().to_owned());
        }
        sec.text("family");
        let targets = targets(&sec, at, draft);
        if let Some(reliability) = sec.number("reliability") {
            let quorum = quorums.entry(at).or_insert(reliability);
            *quorum = reliability.min(*quorum);
            if usize::try_from(reliability).is_ok_and(|wanted| wanted > targets) {
                let why = "more targets were wanted than the line has: all of them must answer";
                draft.notes.tell(Kind::Changed, sec.at("reliability"), why);
            }
        }
        if sec.flag("check_quality", false) {
            quality(&sec, at, draft);
        } else {
            let unused = "the thresholds were not in use: `check_quality` is not on";
            let options = ["failure_latency", "recovery_latency", "failure_loss", "recovery_loss"];
            sec.leave_these(&options, Kind::Left, unused, draft);
        }
        sec.leave_these(TIMING, Kind::Changed, PROBING, draft);
        sec.leave_these(&["flush_conntrack"], Kind::Changed, FLUSH, draft);
        sec.leave(&mut draft.notes, INTERFACE);
    }
    for (at, wan) in draft.wans.iter_mut().enumerate() {
        let (six, four): (Vec<&String>, Vec<_>) =
            wan.targets.iter().partition(|target| target.contains("::") || target.matches(':').count() > 2);
        // The quorum counts for each family alone.
        let fewest = [four.len(), six.len()].into_iter().filter(|count| *count > 0).min().unwrap_or(0);
        let fewest = u32::try_from(fewest).unwrap_or(1);
        if let Some(quorum) = quorums.get(&at).map(|quorum| (*quorum).min(fewest)).filter(|quorum| *quorum > 1) {
            wan.probe.push(format!("quorum = {quorum}"));
        }
    }
    let strangers: Vec<_> = draft
        .wan_of
        .keys()
        .filter(|name| !Sec::of(files.mwan3.as_ref(), "interface").iter().any(|sec| sec.name() == name.as_str()))
        .cloned()
        .collect();
    for sec in Sec::of(files.network.as_ref(), "interface") {
        let at = draft.wan_of.get(sec.name());
        let known = draft.wan_of.iter().any(|(name, other)| Some(other) == at && !strangers.contains(name));
        if strangers.iter().any(|name| name == sec.name()) && !known && files.mwan3.is_some() {
            draft.notes.tell(Kind::Changed, sec.here(), "mwan3 does not know this line: it is in no policy of mwan3's");
        }
    }
    idle
}

/// Adds what this section tracks to its line and tells how many there are.
fn targets(sec: &Sec<'_>, at: usize, draft: &mut Draft) -> usize {
    let method = sec.text("track_method").unwrap_or("ping");
    let tls = sec.flag("httping_ssl", false);
    let mut count = 0;
    let mut list = sec.list("track_ip");
    list.extend(sec.list("track_hosts"));
    if list.is_empty() {
        let why = "nothing was tracked, so the line was good while its link was up; its gateway is asked here";
        draft.notes.tell(Kind::Changed, sec.here(), why);
    }
    for (word, _) in list {
        let Ok(address) = word.parse::<IpAddr>() else {
            draft.notes.tell(
                Kind::Left,
                sec.at("track_ip"),
                "names are not probed, because the answer would depend on DNS; write the address",
            );
            continue;
        };
        let Some(wan) = draft.wans.get_mut(at) else { continue };
        let carried = match address {
            IpAddr::V4(_) => wan.gateway.is_some() || wan.dhcp4.is_some(),
            IpAddr::V6(_) => wan.gateway6.is_some() || wan.dhcp6.is_some(),
        };
        if !carried {
            draft.notes.tell(Kind::Left, sec.at("track_ip"), "the line has no address of this family");
            continue;
        }
        let gateway = [&wan.gateway, &wan.gateway6].into_iter().flatten().any(|gateway| gateway.parse() == Ok(address));
        let (target, why) = match method {
            "ping" | "nping-icmp" => (quoted(&format!("icmp {address}")), None),
            "httping" if address.is_ipv4() => {
                let url = format!("{}://{address}/", if tls { "https" } else { "http" });
                let why = "any answer was good; the page must come with status 200 here, or write `status`, and the host it is to be asked for";
                (format!("{{ http = {}, at = {} }}", quoted(&url), quoted(word)), Some(why))
            }
            "nslookup" => {
                let why = "any well-formed answer to a query for example.com is good";
                (quoted(&format!("dns {address} example.com")), Some(why))
            }
            "nping-tcp" => {
                let why = "the port is 80, which nping takes by itself; write another if the target has it closed";
                let target = match address {
                    IpAddr::V4(_) => format!("tcp {address}:80"),
                    IpAddr::V6(_) => format!("tcp [{address}]:80"),
                };
                (quoted(&target), Some(why))
            }
            "arping" | "nping-arp" if gateway => (quoted("gateway"), None),
            "arping" | "nping-arp" => {
                let why = "neighbours are asked for the gateway only: \"gateway\" stands for this target";
                (quoted("gateway"), Some(why))
            }
            _ => (quoted(&format!("icmp {address}")), Some("no probe here is of this kind: the target is pinged")),
        };
        if let Some(why) = why {
            draft.notes.tell(Kind::Changed, sec.at("track_method"), why);
        }
        count += 1;
        if !wan.targets.contains(&target) {
            wan.targets.push(target);
        }
    }
    count
}

/// Thresholds of loss and latency.
fn quality(sec: &Sec<'_>, at: usize, draft: &mut Draft) {
    let number = |option: &str, default: u32| sec.number(option).unwrap_or(default);
    let (latency, calm) = (number("failure_latency", 1000), number("recovery_latency", 500));
    let (loss, whole) = (number("failure_loss", 40), number("recovery_loss", 10));
    draft.notes.tell(Kind::Changed, sec.at("check_quality"), QUALITY);
    let Some(wan) = draft.wans.get_mut(at) else { return };
    // The IPv6 half of a line repeats its IPv4 half.
    if wan.probe.iter().any(|line| line.starts_with("loss")) {
        return;
    }
    if (1..=100).contains(&loss) {
        wan.probe.push(format!("loss = {{ fail = \"{loss}%\", recover = \"{}%\" }}", whole.min(loss - 1)));
    }
    if (1..=40_000).contains(&latency) {
        wan.probe.push(format!("latency = {{ fail = \"{latency}ms\", recover = \"{}ms\" }}", calm.min(latency - 1)));
        // A probe must be able to be slow before it counts as lost; 750 ms is what it has without being told.
        if latency >= 750 {
            wan.probe.push(format!("timeout = \"{}ms\"", latency + latency / 2));
        }
    }
}

struct Member<'a> {
    wan: usize,
    weight: u32,
    metric: u32,
    sec: Sec<'a>,
}

fn members<'a>(files: &'a Files, idle: &[String], draft: &mut Draft) -> BTreeMap<&'a str, Result<Member<'a>, ()>> {
    let mut out = BTreeMap::new();
    for sec in Sec::of(files.mwan3.as_ref(), "member") {
        let name = sec.name();
        let interface = sec.text("interface").unwrap_or("");
        let (metric, weight) = (sec.number("metric").unwrap_or(1), sec.number("weight").unwrap_or(1));
        sec.leave(&mut draft.notes, &[]);
        let member = match draft.wan_of.get(interface) {
            Some(wan) if !idle.iter().any(|name| name == interface) => Ok(Member { wan: *wan, weight, metric, sec }),
            Some(_) => Err(()),
            None => {
                draft.notes.tell(Kind::Left, sec.at("interface"), "the line it names was not carried over");
                Err(())
            }
        };
        out.insert(name, member);
    }
    out
}

fn policy(sec: &Sec<'_>, members: &BTreeMap<&str, Result<Member<'_>, ()>>, draft: &mut Draft) {
    let mut policy = Policy { name: site_name(sec.name()), last_resort: "unreachable", ..Policy::default() };
    for (word, _) in sec.list("use_member") {
        let member = match members.get(word) {
            Some(Ok(member)) => member,
            Some(Err(())) => continue,
            None => {
                draft.notes.tell(Kind::Left, sec.at("use_member"), "there is no such member");
                continue;
            }
        };
        let tier = member.metric.clamp(1, 255);
        let weight = member.weight.clamp(1, 255);
        if weight != member.weight {
            draft.notes.tell(Kind::Changed, member.sec.at("weight"), "weights are 1 to 255 here: the nearest is taken");
        }
        if tier != member.metric {
            draft.notes.tell(Kind::Changed, member.sec.at("metric"), "tiers are 1 to 255 here: the nearest is taken");
        }
        match policy.members.iter_mut().find(|(wan, ..)| *wan == member.wan) {
            None => policy.members.push((member.wan, weight, tier)),
            // Both families of a line are one member.
            Some((_, other_weight, other_tier)) if (*other_weight, *other_tier) == (weight, tier) => {}
            Some((_, _, other_tier)) => {
                let why = "the line is in the policy twice (IPv4 and IPv6, or two metrics): the first weight and the better tier count";
                draft.notes.tell(Kind::Changed, member.sec.here(), why);
                *other_tier = (*other_tier).min(tier);
            }
        }
    }
    match sec.text("last_resort") {
        Some("blackhole") => policy.last_resort = "blackhole",
        Some("default") => {
            policy.last_resort = "any";
            let why = "there is no main table to fall back to: any line of the site that is up is used, which may be one the policy does not name";
            draft.notes.tell(Kind::Wider, sec.at("last_resort"), why);
        }
        Some("unreachable") | None => {}
        Some(_) => draft.notes.tell(
            Kind::Changed,
            sec.at("last_resort"),
            "mwan3 takes an unknown word for `unreachable`, and so it is written",
        ),
    }
    sec.leave(&mut draft.notes, &[]);
    if policy.members.is_empty() {
        draft.notes.tell(Kind::Left, sec.here(), "none of its members was carried over, and a policy has at least one");
    } else if sec.name().is_empty() {
        draft.notes.tell(Kind::Left, sec.here(), "it has no name, so no rule uses it");
    } else {
        draft.policies.push(policy);
    }
}

fn rules(files: &Files, draft: &mut Draft) {
    // Policies that serve everything, by family; after both, no rule matches.
    let (mut four, mut six): (Option<String>, Option<String>) = (None, None);
    for sec in Sec::of(files.mwan3.as_ref(), "rule") {
        if four.is_some() && six.is_some() {
            sec.settled();
            draft.notes.tell(Kind::Left, sec.here(), "a rule before it matches everything, so it never did anything");
            continue;
        }
        let Some(steer) = rule(&sec, draft) else { continue };
        let everywhere = |words: &[String], all: &str| words.is_empty() || words.iter().any(|word| word == all);
        let narrow = !steer.source.is_empty()
            || steer.from.is_some()
            || !steer.source_ports.is_empty()
            || !steer.ports.is_empty();
        let (v4, v6) = (everywhere(&steer.destination, "0.0.0.0/0"), everywhere(&steer.destination, "::/0"));
        if narrow || !(v4 || v6) {
            draft.steers.push(steer);
            continue;
        }
        if v4 && four.is_none() {
            four = Some(steer.policy.clone());
        }
        if v6 && six.is_none() {
            six = Some(steer.policy.clone());
        }
        if v6 && !v4 && four.as_ref() != Some(&steer.policy) {
            draft.steers.push(steer);
        }
    }
    if draft.wans.is_empty() {
        return;
    }
    let default = four.or_else(|| {
        // What no rule matches takes the main table, where the lowest metric wins.
        let mut order: Vec<usize> = (0..draft.wans.len()).collect();
        order.sort_by_key(|at| draft.wans.get(*at).map(|wan| wan.metric));
        let members = order.iter().zip(1..=255).map(|(at, tier)| (*at, 1, tier)).collect();
        let mut name = "main".to_owned();
        while draft.policies.iter().any(|policy| policy.name == name) {
            name.push_str("-table");
        }
        let comments = vec!["What no rule matches: one line after the other, by `metric`.".to_owned()];
        draft.policies.push(Policy { name: name.clone(), members, last_resort: "unreachable", balance: None, comments });
        let file = files.mwan3.as_ref().map_or("mwan3", |file| file.name.as_str()).to_owned();
        let place = super::Place { file, line: 0, what: "no rule for all IPv4".to_owned() };
        let why = "what no rule matched took the main table; here it takes a policy of its own, the lines in order of their `metric`";
        draft.notes.tell(Kind::Changed, place, why);
        Some(name)
    });
    draft.default_policy = default;
}

fn rule(sec: &Sec<'_>, draft: &mut Draft) -> Option<Steer> {
    let mut out = |place, why: &str| draft.notes.tell(Kind::Left, place, why);
    let mut steer = Steer {
        name: if sec.name().is_empty() { sec.label.clone() } else { sec.name().to_owned() },
        ..Steer::default()
    };
    for (option, why) in [(
        "ipset",
        "a site file has no named sets of addresses; list them in `destination`. The rule is left out, because without them it would match more",
    )] {
        if sec.has(option) {
            sec.settled();
            out(sec.at(option), why);
            return None;
        }
    }
    let family = sec.text("family");
    for (option, all) in [("src_ip", &mut steer.source), ("dest_ip", &mut steer.destination)] {
        let Some(list) = addresses(&sec.list(option)) else {
            sec.settled();
            out(sec.at(option), "no addresses can be read from this; the rule is left out");
            return None;
        };
        *all = list;
    }
    steer.source.retain(|net| net != "0.0.0.0/0" && net != "::/0");
    match family {
        Some("ipv4") if steer.destination.is_empty() => steer.destination = vec!["0.0.0.0/0".to_owned()],
        Some("ipv6") if steer.destination.is_empty() => steer.destination = vec!["::/0".to_owned()],
        _ => {}
    }
    let protos: Vec<&str> = sec.list("proto").into_iter().map(|(word, _)| word).collect();
    let protos = if protos.is_empty() { vec!["all"] } else { protos };
    for (option, all) in [("src_port", &mut steer.source_ports), ("dest_port", &mut steer.ports)] {
        let words: Vec<&str> =
            sec.list(option).into_iter().map(|(word, _)| word).filter(|word| *word != "0:65535").collect();
        if words.is_empty() {
            continue;
        }
        match specs(&protos, &words) {
            Specs::Some(list) => *all = list,
            Specs::Any | Specs::Unknown => {
                sec.settled();
                out(sec.at(option), "no ports can be read from this; the rule is left out");
                return None;
            }
        }
    }
    if steer.ports.is_empty() && steer.source_ports.is_empty() {
        match specs(&protos, &[]) {
            Specs::Any => {}
            Specs::Some(list) => steer.ports = list,
            Specs::Unknown => {
                sec.settled();
                out(sec.at("proto"), "no protocol of this name is known here; the rule is left out");
                return None;
            }
        }
    }
    if let Some(network) = sec.text("src_iface") {
        let Some(vlan) = draft.vlan_of.get(network).and_then(|at| draft.vlans.get(*at)) else {
            sec.settled();
            out(sec.at("src_iface"), "the network it names is no VLAN here; the rule is left out");
            return None;
        };
        steer.from = Some(vlan.name.clone());
    }
    let wanted = sec.text("use_policy").unwrap_or("");
    let name = site_name(wanted);
    let Some(policy) = draft.policies.iter().find(|policy| policy.name == name).cloned() else {
        sec.settled();
        let (kind, why) = match wanted {
            "unreachable" | "blackhole" => (
                Kind::Wider,
                "a rule chooses lines here and cannot refuse: what it refused takes the other rules. Deny it with `internet` of its VLAN",
            ),
            "default" => (Kind::Left, "there is no main table to choose; what it matched takes the other rules"),
            _ => (Kind::Left, "its policy was not carried over; what it matched takes the other rules"),
        };
        draft.notes.tell(kind, sec.at("use_policy"), why);
        return None;
    };
    steer.policy.clone_from(&policy.name);
    if sec.flag("sticky", false) {
        steer.policy = format!("{}-sticky", policy.name);
        if !draft.policies.iter().any(|other| other.name == steer.policy) {
            let comments =
                vec![format!("`{}` for rules that are sticky: a source address keeps its line.", policy.name)];
            let name = steer.policy.clone();
            draft.policies.push(Policy { name, balance: Some("source"), comments, ..policy });
        }
        let why = "a source keeps its line as long as the line is good, not only for `timeout` seconds: the policy has a twin with `balance = \"source\"`";
        draft.notes.tell(Kind::Changed, sec.at("sticky"), why);
        sec.text("timeout");
    }
    sec.leave(
        &mut draft.notes,
        &[
            ("logging", "flows are not logged by rule; `routerctl explain` tells which rule a flow takes"),
            ("timeout", "it belongs to `sticky`, which is not on"),
        ],
    );
    Some(steer)
}

impl Sec<'_> {
    /// Tells those of these options that are there, and counts them as looked at.
    fn leave_these(&self, options: &[&str], kind: Kind, why: &str, draft: &mut Draft) {
        for option in options.iter().filter(|option| self.has(option)) {
            draft.notes.tell(kind, self.at(option), why);
        }
    }
}

const TIMING: &[&str] = &[
    "interval",
    "failure_interval",
    "recovery_interval",
    "keep_failure_interval",
    "timeout",
    "count",
    "up",
    "down",
    "size",
    "max_ttl",
];
const PROBING: &str = "mwan3 gave a line up after `down` rounds, `interval` seconds apart. Here each target is asked every \
                       500 ms by one packet, is down after 3 losses and up after 5 answers: a dead line is noticed in about \
                       two seconds. These are the defaults; `interval`, `timeout`, `fall`, `rise` and `hold` in [probe] or a \
                       line's `probe` change them";
const FLUSH: &str = "the flows of a line that dies are ended by themselves, those of other lines are left alone; `failback` in a \
                     policy says what happens to flows when a better line is back";
const QUALITY: &str = "mwan3 counted over the `count` pings of one round and took a line beyond a threshold for lost. Here loss and \
                       latency are those of the last 100 probes, and a line beyond a threshold is used after the good ones";

const INTERFACE: &[(&str, &str)] = &[
    ("initial_state", "a line is used once its targets have answered; that takes one answer after a start"),
    ("online_metric", "routerd keeps the routes of lines by itself"),
];
