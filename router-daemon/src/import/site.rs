//! Writes a draft as a site file, and makes sure that it is one: a part that `routerctl check` would refuse is turned
//! into a comment that says why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use config::Severity;

use super::{Draft, Kind, Place, shown_whole};

/// Lines that stand or fall together.
struct Block {
    comments: Vec<String>,
    lines: Vec<String>,
    /// Why it is a comment.
    out: Option<String>,
}

pub(super) fn write(draft: &mut Draft) -> String {
    let mut blocks = blocks(draft);
    // Each round takes out at least one block, so this ends.
    for _ in 0..=blocks.len() {
        let (text, ends) = text(&blocks);
        let Err(problems) = config::parse("site.toml", &text) else { break };
        let mut found = false;
        for problem in problems.iter().filter(|problem| problem.severity == Severity::Error) {
            let at = ends.partition_point(|end| *end < problem.line);
            let Some(block) = blocks.get_mut(at).filter(|block| block.out.is_none()) else { continue };
            let place = problem.labels.first().map(|label| format!(" ({})", label.text)).unwrap_or_default();
            let why = shown_whole(&format!("{}{place}", problem.message));
            // `[[cell]]` alone would be any.
            let named = if block.lines.first().is_some_and(|head| head.starts_with("[[")) { 2 } else { 1 };
            let what = block.lines.iter().take(named).cloned().collect::<Vec<_>>().join(" ");
            let place = Place { file: "site.toml".to_owned(), line: 0, what };
            draft.notes.tell(Kind::Left, place, format!("stands there as a comment: {why}"));
            block.out = Some(why);
            found = true;
        }
        if !found {
            break;
        }
    }
    text(&blocks).0
}

/// The file, and the last line of each block.
fn text(blocks: &[Block]) -> (String, Vec<usize>) {
    let (mut text, mut ends) = (String::new(), Vec::new());
    for (index, block) in blocks.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        let why = block.out.as_ref().map(|why| format!("Not in force: {why}"));
        for comment in block.comments.iter().chain(&why) {
            writeln!(text, "# {}", shown_whole(comment)).unwrap_or(());
        }
        for line in &block.lines {
            let mark = if block.out.is_some() { "# " } else { "" };
            writeln!(text, "{mark}{line}").unwrap_or(());
        }
        ends.push(text.matches('\n').count());
    }
    (text, ends)
}

fn blocks(draft: &Draft) -> Vec<Block> {
    let mut out = Vec::new();
    let mut push = |comments: &[String], lines: Vec<String>| {
        out.push(Block { comments: comments.to_vec(), lines, out: None });
    };
    let wan = |index: usize| draft.wans.get(index).map_or("", |wan| wan.name.as_str());
    let vlan = |index: usize| draft.vlans.get(index).map_or("", |vlan| vlan.name.as_str());

    let mut site = vec!["[site]".to_owned(), "name = \"imported\"".to_owned()];
    let placeholders: Vec<&str> = [
        ("192.0.2.0/24", draft.wans.iter().any(|wan| wan.placeholder4)),
        ("2001:db8::/32", draft.wans.iter().any(|wan| wan.placeholder6)),
    ]
    .into_iter()
    .filter_map(|(prefix, used)| used.then_some(prefix))
    .collect();
    if !placeholders.is_empty() {
        site.push(
            "# Placeholders of lines stand in these, and `routerctl check` warns of each that is left:".to_owned(),
        );
        site.push(format!("reserved = {}", list(&placeholders)));
    }
    push(&[], site);
    if let Some(policy) = &draft.default_policy {
        push(&[], vec!["[router]".to_owned(), format!("default_policy = {}", quoted(policy))]);
    }

    for wan in &draft.wans {
        let mut lines = vec![format!("[wan.{}]", key(&wan.name)), format!("interface = {}", quoted(&wan.interface))];
        if wan.is_leased() {
            lines.push("method    = \"dhcp\"".to_owned());
            lines.extend(wan.dhcp6.is_some().then(|| "ipv6      = true".to_owned()));
            lines.extend(wan.prefix.map(|length| format!("prefix_delegation = {length}")));
        } else {
            lines.push(format!("addresses = {}", list(&wan.addresses)));
        }
        lines.extend(wan.gateway.as_ref().map(|gateway| format!("gateway   = {}", quoted(gateway))));
        lines.extend(wan.gateway6.as_ref().map(|gateway| format!("gateway6  = {}", quoted(gateway))));
        lines.extend(wan.mtu.map(|mtu| format!("mtu       = {mtu}")));
        if !wan.input.is_empty() {
            lines.push(format!("input     = {}", list(&distinct(&wan.input))));
        }
        if !wan.targets.is_empty() || !wan.probe.is_empty() {
            lines.push(format!("[wan.{}.probe]", key(&wan.name)));
            if !wan.targets.is_empty() {
                lines.push(format!("targets = [{}]", wan.targets.join(", ")));
            }
            lines.extend(wan.probe.iter().cloned());
        }
        push(&wan.comments, lines);
    }
    for policy in &draft.policies {
        let members = policy.members.iter().map(|(line, weight, tier)| {
            format!("{{ wan = {}, weight = {weight}, tier = {tier} }}", quoted(wan(*line)))
        });
        let members = members.collect::<Vec<_>>().join(", ");
        let mut lines = vec![format!("[policy.{}]", key(&policy.name)), format!("members = [{members}]")];
        lines.extend(policy.balance.map(|balance| format!("balance = {}", quoted(balance))));
        lines.push(format!("last_resort = {}", quoted(policy.last_resort)));
        push(&policy.comments, lines);
    }
    for steer in &draft.steers {
        let mut lines = vec!["[[steer]]".to_owned(), format!("name = {}", quoted(&steer.name))];
        lines.extend(steer.from.as_ref().map(|from| format!("from = {}", quoted(from))));
        for (name, values) in [
            ("source", &steer.source),
            ("destination", &steer.destination),
            ("source_ports", &steer.source_ports),
            ("ports", &steer.ports),
        ] {
            lines.extend((!values.is_empty()).then(|| format!("{name} = {}", list(values))));
        }
        lines.push(format!("policy = {}", quoted(&steer.policy)));
        push(&[], lines);
    }

    let ports = ports(draft);
    for (index, segment) in draft.vlans.iter().enumerate() {
        let mut lines = vec![format!("[vlan.{}]", key(&segment.name))];
        lines.extend(segment.id.map(|id| format!("id        = {id}")));
        lines.push(format!("addresses = {}", list(&segment.addresses)));
        for (name, kind) in [("access", Carries::Access), ("native", Carries::Native), ("trunk", Carries::Tagged)] {
            let of_kind: Vec<_> = ports
                .iter()
                .filter(|((_, vlan), how)| *vlan == index && **how == kind)
                .map(|((port, _), _)| port)
                .collect();
            if !of_kind.is_empty() {
                lines.push(format!("{name:9} = {}", list(&of_kind)));
            }
        }
        let internet = match segment.internet.as_slice() {
            [] => quoted("none"),
            words if words.iter().any(|word| word == "any") => quoted("any"),
            sets => list(&distinct(sets)),
        };
        lines.push(format!("internet  = {internet}"));
        lines.extend((!segment.input.is_empty()).then(|| format!("input     = {}", list(&distinct(&segment.input)))));
        push(&segment.comments, lines);
    }
    for (name, address) in &draft.hosts {
        push(&[], vec![format!("[host.{}]", key(name)), format!("address = {}", quoted(address))]);
    }
    for set in &draft.egress {
        let to = if set.to.is_empty() { quoted("any") } else { list(&set.to) };
        let head = format!("[egress.{}]", key(&set.name));
        push(&[], vec![head, format!("to    = {to}"), format!("ports = {}", list(&set.ports))]);
    }
    for cell in &draft.cells {
        let names = |all: &[usize]| list(&all.iter().map(|index| vlan(*index)).collect::<Vec<_>>());
        let mut lines = vec!["[[cell]]".to_owned(), format!("name = {}", quoted(&cell.name))];
        lines.push(format!("from = {}", names(&cell.from)));
        lines.push(format!("to = {}", names(&cell.to)));
        for (name, values) in [("from_hosts", &cell.from_hosts), ("hosts", &cell.hosts)] {
            lines.extend((!values.is_empty()).then(|| format!("{name} = {}", list(values))));
        }
        lines.push(match &cell.services {
            None => "services = \"any\"".to_owned(),
            Some(services) => format!("services = {}", list(&distinct(services))),
        });
        lines.extend((!cell.enabled).then(|| "enabled = false".to_owned()));
        lines.extend((!cell.comment.is_empty()).then(|| format!("comment = {}", quoted(&cell.comment))));
        push(&[], lines);
    }
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Carries {
    Access,
    Native,
    Tagged,
}

/// How each port carries each VLAN. A port with tagged VLANs has its untagged one as `native`; the first untagged one
/// counts.
fn ports(draft: &Draft) -> BTreeMap<(&str, usize), Carries> {
    let all = || draft.vlans.iter().enumerate().flat_map(|(at, vlan)| vlan.ports.iter().map(move |port| (at, port)));
    let trunks: BTreeSet<&str> = all().filter(|(_, (_, tagged))| *tagged).map(|(_, (port, _))| port.as_str()).collect();
    let mut untagged: BTreeMap<&str, usize> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for (at, (port, tagged)) in all() {
        let port = port.as_str();
        if *tagged {
            out.entry((port, at)).or_insert(Carries::Tagged);
        } else if *untagged.entry(port).or_insert(at) == at {
            let how = if trunks.contains(port) { Carries::Native } else { Carries::Access };
            out.insert((port, at), how);
        }
    }
    out
}

fn distinct(words: &[String]) -> Vec<&String> {
    let mut seen = BTreeSet::new();
    words.iter().filter(|word| seen.insert(*word)).collect()
}

fn list(words: &[impl AsRef<str>]) -> String {
    format!("[{}]", words.iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(", "))
}

/// A TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => write!(out, "\\u{:04X}", u32::from(c)).unwrap_or(()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { name.to_owned() } else { quoted(name) }
}
