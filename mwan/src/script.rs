//! The nft table as one transaction: what the kernel engineer of the daemon feeds to nft. Live sets and maps keep
//! their elements over a load, so counters survive; bucket maps and dead classes are filled in the same
//! transaction, so no packet ever sees the rules without them.

use std::collections::BTreeSet;
use std::fmt::Write;

use config::units::Family;

use crate::state::{BucketKey, Buckets, FlowClass, Ruleset, TABLE};

/// The names found in the table as it stands in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    pub sets: BTreeSet<String>,
    pub maps: BTreeSet<String>,
    pub chains: BTreeSet<String>,
}

impl Ruleset {
    /// Replaces the rules of the table that stands. `found` is what is in it: what this ruleset does not know of
    /// it is deleted.
    pub fn script(&self, found: &Inventory, buckets: &[(BucketKey, Buckets)], dead: &[FlowClass]) -> String {
        let mut text = String::new();
        self.declare(&mut text);
        line(&mut text, format_args!("flush table inet {TABLE}"));
        let maps: BTreeSet<_> = self.maps.keys().chain(&found.maps).collect();
        for map in maps {
            line(&mut text, format_args!("flush map inet {TABLE} {map}"));
        }
        line(&mut text, format_args!("flush set inet {TABLE} dead"));
        for map in found.maps.iter().filter(|map| !self.maps.contains_key(*map)) {
            line(&mut text, format_args!("delete map inet {TABLE} {map}"));
        }
        for set in found.sets.iter().filter(|set| !self.sets.contains_key(*set)) {
            line(&mut text, format_args!("delete set inet {TABLE} {set}"));
        }
        for chain in found.chains.iter().filter(|chain| !self.chains.contains_key(*chain)) {
            line(&mut text, format_args!("delete chain inet {TABLE} {chain}"));
        }
        self.fill(&mut text, buckets, dead);
        text
    }

    /// Replaces the table as a whole, counters and all: for a table that is in the way of [`Self::script`], as
    /// one whose sets somebody declared otherwise.
    pub fn script_from_nothing(&self, buckets: &[(BucketKey, Buckets)], dead: &[FlowClass]) -> String {
        let mut text = format!("table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\n");
        self.declare(&mut text);
        self.fill(&mut text, buckets, dead);
        text
    }

    fn declare(&self, text: &mut String) {
        line(text, format_args!("table inet {TABLE} {{"));
        for (name, body) in &self.sets {
            line(text, format_args!("set {name} {{\n{body}\n}}"));
        }
        for (name, body) in &self.maps {
            line(text, format_args!("map {name} {{\n{body}\n}}"));
        }
        for (name, rules) in &self.chains {
            match rules.first().filter(|first| is_hook(first)) {
                Some(hook) => line(text, format_args!("chain {name} {{\n{hook}\n}}")),
                None => line(text, format_args!("chain {name} {{\n}}")),
            }
        }
        line(text, format_args!("}}"));
    }

    fn fill(&self, text: &mut String, buckets: &[(BucketKey, Buckets)], dead: &[FlowClass]) {
        for (key, buckets) in buckets.iter().filter(|(key, _)| self.maps.contains_key(&key.map_name())) {
            let elements: Vec<_> = buckets
                .0
                .iter()
                .enumerate()
                .map(|(number, slot)| format!("{number:#010x} : goto {}", slot.chain_name()))
                .collect();
            if !elements.is_empty() {
                line(text, format_args!("add element inet {TABLE} {} {{ {} }}", key.map_name(), elements.join(", ")));
            }
        }
        let dead: Vec<_> = dead.iter().map(|class| dead_element(*class)).collect();
        if !dead.is_empty() {
            line(text, format_args!("add element inet {TABLE} dead {{ {} }}", dead.join(", ")));
        }
        line(text, format_args!("table inet {TABLE} {{"));
        for (name, rules) in &self.chains {
            let rules: Vec<_> = rules.iter().filter(|rule| !is_hook(rule)).map(String::as_str).collect();
            if !rules.is_empty() {
                line(text, format_args!("chain {name} {{\n{}\n}}", rules.join("\n")));
            }
        }
        line(text, format_args!("}}"));
    }
}

/// The table before the first config, and where ours was taken away: nothing passes, nothing comes in but answers
/// to what the router itself asked and the neighbour discovery IPv6 cannot do without.
pub fn close_door_script() -> String {
    format!(
        "table inet {TABLE} {{\n\
         chain hook_input {{\ntype filter hook input priority filter; policy drop;\n}}\n\
         chain hook_forward {{\ntype filter hook forward priority filter; policy drop;\n}}\n\
         }}\n\
         flush table inet {TABLE}\n\
         table inet {TABLE} {{\n\
         chain hook_input {{\n\
         iifname \"lo\" accept\n\
         ct state established,related accept\n\
         icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} ip6 hoplimit 255 accept\n\
         }}\n}}\n"
    )
}

/// The key of a class in the set `dead`, as nft writes it.
pub fn dead_element(class: FlowClass) -> String {
    let family = match class.family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("{family} . {}", class.mark())
}

fn is_hook(rule: &str) -> bool {
    rule.starts_with("type ")
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _written = writeln!(text, "{content}");
}
