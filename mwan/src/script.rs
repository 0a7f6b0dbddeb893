//! The nft table as one transaction: what the kernel engineer of the daemon feeds to nft. Live sets and maps keep
//! their elements over a load, so counters survive; bucket maps and dead classes are filled in the same
//! transaction, so no packet ever sees the rules without them.
//!
//! What already stands as it should is not touched. A transaction is atomic, but a packet that began in the old rules
//! while it took effect finds the verdict maps of those rules empty (the kernel takes their elements out of force
//! with the old generation), so a chain that is replaced without need could drop a packet without need.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use config::units::Family;

use crate::state::{BucketKey, Buckets, FlowClass, Ruleset, TABLE};

/// The names found in the table as it stands in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    pub sets: BTreeSet<String>,
    pub maps: BTreeSet<String>,
    pub chains: BTreeSet<String>,
    /// The rules of chains, where they are known to be these: of the ruleset that was loaded last, if nobody has
    /// changed the table since. Empty where nothing is known.
    pub rules: BTreeMap<String, Vec<String>>,
    pub buckets: BTreeMap<BucketKey, Buckets>,
    pub dead: BTreeSet<FlowClass>,
}

impl Ruleset {
    /// Replaces the rules of the table that stands. `found` is what is in it: what this ruleset does not know of
    /// it is deleted.
    pub fn script(&self, found: &Inventory, buckets: &[(BucketKey, Buckets)], dead: &[FlowClass]) -> String {
        let mut text = String::new();
        self.declare(&mut text);
        let stays = |chain: &String| found.rules.get(chain).is_some_and(|rules| self.chains.get(chain) == Some(rules));
        for chain in found.chains.iter().filter(|chain| !stays(chain)) {
            line(&mut text, format_args!("flush chain inet {TABLE} {chain}"));
        }
        let full = |key: &BucketKey, buckets: &Buckets| found.buckets.get(key) == Some(buckets);
        let filled: BTreeSet<_> =
            buckets.iter().filter(|(key, buckets)| full(key, buckets)).map(|(key, _)| key.map_name()).collect();
        for map in self.maps.keys().chain(&found.maps).collect::<BTreeSet<_>>() {
            if !filled.contains(map) {
                line(&mut text, format_args!("flush map inet {TABLE} {map}"));
            }
        }
        let same_dead = dead.iter().copied().collect::<BTreeSet<_>>() == found.dead;
        if !same_dead {
            line(&mut text, format_args!("flush set inet {TABLE} dead"));
        }
        for map in found.maps.iter().filter(|map| !self.maps.contains_key(*map)) {
            line(&mut text, format_args!("delete map inet {TABLE} {map}"));
        }
        for set in found.sets.iter().filter(|set| !self.sets.contains_key(*set)) {
            line(&mut text, format_args!("delete set inet {TABLE} {set}"));
        }
        for chain in found.chains.iter().filter(|chain| !self.chains.contains_key(*chain)) {
            line(&mut text, format_args!("delete chain inet {TABLE} {chain}"));
        }
        let buckets: Vec<_> = buckets.iter().filter(|(key, buckets)| !full(key, buckets)).cloned().collect();
        self.fill(&mut text, &buckets, if same_dead { &[] } else { dead }, stays);
        text
    }

    /// Replaces the table as a whole, counters and all: for a table that is in the way of [`Self::script`], as
    /// one whose sets somebody declared otherwise.
    pub fn script_from_nothing(&self, buckets: &[(BucketKey, Buckets)], dead: &[FlowClass]) -> String {
        let mut text = format!("table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\n");
        self.declare(&mut text);
        self.fill(&mut text, buckets, dead, |_| false);
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

    /// Everything but what stays.
    fn fill(
        &self,
        text: &mut String,
        buckets: &[(BucketKey, Buckets)],
        dead: &[FlowClass],
        stays: impl Fn(&String) -> bool,
    ) {
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
        for (name, rules) in self.chains.iter().filter(|(name, _)| !stays(name)) {
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
