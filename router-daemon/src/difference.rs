//! What changes between two sites, in the words of the site file, and what that means for the kernel: the answer
//! to `plan`. Pure.
//!
//! Two things of one name are compared field by field over their serialized form, so that a field somebody adds to
//! the model cannot be forgotten here. Places in the file (`line`) are no difference.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use config::Config;
use mwan::Step;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The answer to `plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Difference {
    pub changes: Vec<Change>,
    pub kernel: KernelChanges,
    /// Every step, told to a person, in order.
    pub steps: Vec<String>,
    /// Live flows the site would deny or that lose their line.
    pub flows_that_die: u64,
    pub warnings: Vec<String>,
}

/// The answer to `diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TextDifference {
    pub changes: Vec<Change>,
    /// The lines, as `diff -u` shows them.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    pub what: What,
    /// `wan`, `vlan`, `cell`, `policy`, …: the table of the site file.
    pub kind: String,
    pub name: String,
    /// Where the site file says it.
    pub line: Option<u32>,
    /// `weight: 1 → 3`; for what is added or removed, what it is.
    pub details: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    Added,
    Removed,
    Changed,
}

/// How much of the kernel is touched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelChanges {
    pub links: usize,
    pub addresses: usize,
    pub routes: usize,
    pub rules: usize,
    pub sysctls: usize,
    /// The firewall table is replaced (in one transaction).
    pub ruleset: bool,
    /// What the fast path knows is replaced.
    #[serde(default)]
    pub fast_path: bool,
    /// Policies whose new flows take other lines.
    pub buckets: usize,
    /// Classes of flows that end.
    pub buried: usize,
    /// Cells that are audited and are denied again.
    #[serde(default)]
    pub audits_ended: usize,
}

/// Compares the site in force with the one that was asked about.
pub fn between(old: Option<&Config>, new: &Config) -> Vec<Change> {
    let (old, new) = (old.map(things).unwrap_or_default(), things(new));
    let mut changes = Vec::new();
    for (key, thing) in &new {
        match old.get(key) {
            None => changes.push(change(What::Added, key, thing, outline(thing))),
            Some(before) => {
                let mut details = Vec::new();
                compare("", before, thing, &mut details);
                if !details.is_empty() {
                    changes.push(change(What::Changed, key, thing, details));
                }
            }
        }
    }
    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
    changes.extend(gone.map(|(key, thing)| Change { line: None, ..change(What::Removed, key, thing, outline(thing)) }));
    changes.sort_by_key(|change| place(&change.kind));
    changes
}

/// Counts what the steps touch.
pub fn kernel(steps: &[Step]) -> KernelChanges {
    let mut changes = KernelChanges::default();
    for step in steps {
        match step {
            Step::SetLink { .. } | Step::DeleteLink(_) => changes.links += 1,
            Step::AddAddress(_) | Step::DeleteAddress(_) => changes.addresses += 1,
            Step::SetRoute { .. } | Step::DeleteRoute(_) => changes.routes += 1,
            Step::AddRule(_) | Step::DeleteRule(_) => changes.rules += 1,
            Step::SetSysctl { .. } | Step::SetLateSysctl { .. } => changes.sysctls += 1,
            Step::CloseDoor | Step::LoadRuleset { .. } => changes.ruleset = true,
            Step::SetBuckets { .. } => changes.buckets += 1,
            Step::Bury(classes) => changes.buried += classes.len(),
            Step::SetFastPath(_) => changes.fast_path = true,
            Step::EndAudit(_) => changes.audits_ended += 1,
            Step::BeginAudit { .. } | Step::Revive(_) => {}
        }
    }
    changes
}

type Key = (&'static str, String);

/// Everything of the site that has a name. Entries that share one are told apart by their order.
fn things(config: &Config) -> BTreeMap<Key, Value> {
    let mut things = BTreeMap::new();
    let mut add = |kind: &'static str, name: String, value: &dyn erased::Json| {
        let mut key = (kind, name.clone());
        let mut nth = 1;
        while things.contains_key(&key) {
            nth += 1;
            key = (kind, format!("{name} #{nth}"));
        }
        things.insert(key, value.json());
    };
    add("site", config.site.clone(), &config.router);
    if let Some(path) = &config.fast_path {
        add("fast path", config.site.clone(), path);
    }
    if let Some(api) = &config.api {
        add("api", config.site.clone(), api);
    }
    config.ports.iter().for_each(|(name, port)| add("port", name.to_string(), port));
    config.wans.iter().for_each(|(name, wan)| add("wan", name.to_string(), wan));
    config.vlans.iter().for_each(|(name, vlan)| add("vlan", name.to_string(), vlan));
    config.hosts.iter().for_each(|(name, host)| add("host", name.to_string(), host));
    config.services.iter().for_each(|(name, service)| add("service", name.to_string(), service));
    config.egress.iter().for_each(|(name, set)| add("egress", name.to_string(), set));
    config.cells.iter().for_each(|cell| add("cell", cell.name.clone(), cell));
    config.policies.iter().for_each(|(name, policy)| add("policy", name.to_string(), policy));
    for (place, steer) in config.steering.iter().enumerate() {
        // First match wins, so the place is part of what a rule is.
        let mut value = erased::Json::json(steer);
        if let Value::Object(fields) = &mut value {
            fields.insert("place".to_owned(), Value::from(place + 1));
        }
        add("steering", steer.name.clone(), &value);
    }
    config.asserts.iter().for_each(|assert| add("assert", assert.text.clone(), assert));
    config.webhooks.iter().for_each(|webhook| add("webhook", webhook.url.host.clone(), webhook));
    config.hooks.iter().for_each(|hook| add("hook", hook.run.display().to_string(), hook));
    for (name, served) in config.dhcp.iter().flat_map(|dhcp| &dhcp.vlans) {
        add("dhcp", name.to_string(), served);
    }
    if let Some(ra) = &config.ra {
        add("ra", config.site.clone(), ra);
    }
    if let Some(ntp) = &config.ntp {
        add("ntp", config.site.clone(), ntp);
    }
    if let Some(pair) = &config.pair {
        add("pair", config.site.clone(), pair);
    }
    config.syslog.iter().for_each(|syslog| add("syslog", syslog.server.to_string(), syslog));
    things
}

fn place(kind: &str) -> usize {
    KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len())
}

fn change(what: What, (kind, name): &Key, thing: &Value, details: Vec<String>) -> Change {
    let line = thing.get("line").and_then(Value::as_u64).and_then(|line| u32::try_from(line).ok());
    Change { what, kind: (*kind).to_owned(), name: name.clone(), line: line.filter(|line| *line != 0), details }
}

/// What a thing is, in few words: the fields that say something.
fn outline(thing: &Value) -> Vec<String> {
    let Value::Object(fields) = thing else { return vec![told(thing)] };
    let says_something = |(name, value): &(&String, &Value)| !HIDDEN.contains(&name.as_str()) && !is_empty(value);
    fields
        .iter()
        .filter(says_something)
        .filter(|(name, _)| !["name", "comment", "probe", "claim", "text", "place"].contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {}", told(value)))
        .collect()
}

fn compare(path: &str, old: &Value, new: &Value, details: &mut Vec<String>) {
    if old == new {
        return;
    }
    if let (Value::Object(before), Value::Object(after)) = (old, new)
        && special(before).is_none()
        && special(after).is_none()
        && before.keys().eq(after.keys())
    {
        for (name, before) in before.iter().filter(|(name, _)| !HIDDEN.contains(&name.as_str())) {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            compare(&path, before, &after[name], details);
        }
        return;
    }
    let (old, new) = (told(old), told(new));
    // Names can be the same and what they stand for not.
    details.push(if old == new {
        format!("{path}: {new}, which means something else")
    } else {
        format!("{path}: {old} → {new}")
    });
}

/// A value in the words of the site file.
fn told(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => value.clone(),
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) => values.iter().map(told).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => special(fields).unwrap_or_else(|| {
            let says_something =
                fields.iter().filter(|(name, value)| !HIDDEN.contains(&name.as_str()) && !is_empty(value));
            says_something.map(|(name, value)| format!("{name} {}", told(value))).collect::<Vec<_>>().join(", ")
        }),
    }
}

/// Durations, ranges and permits have a shorter form than their fields.
fn special(fields: &Map<String, Value>) -> Option<String> {
    let number = |name| fields.get(name).and_then(Value::as_u64);
    if let (2, Some(seconds), Some(nanos)) = (fields.len(), number("secs"), number("nanos")) {
        let span = Duration::new(seconds, u32::try_from(nanos).unwrap_or_default());
        return Some(humantime::format_duration(span).to_string());
    }
    if let (2, Some(start), Some(end)) = (fields.len(), fields.get("start"), fields.get("end")) {
        let (start, end) = (told(start), told(end));
        return Some(if start == end { start } else { format!("{start}-{end}") });
    }
    fields.get("service").and_then(Value::as_str).map(str::to_owned)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

impl fmt::Display for TextDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.changes)?;
        if self.text.is_empty() { Ok(()) } else { write!(f, "\n{}", self.text) }
    }
}

fn list(f: &mut fmt::Formatter<'_>, changes: &[Change]) -> fmt::Result {
    for change in changes {
        let sign = match change.what {
            What::Added => '+',
            What::Removed => '-',
            What::Changed => '~',
        };
        let line = change.line.map(|line| format!(" (line {line})")).unwrap_or_default();
        writeln!(f, "{sign} {} {}{line}", change.kind, change.name)?;
        for detail in &change.details {
            writeln!(f, "    {detail}")?;
        }
    }
    if changes.is_empty() { writeln!(f, "the site is the same") } else { Ok(()) }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.changes)?;
        writeln!(f)?;
        writeln!(f, "{}", self.kernel)?;
        match self.flows_that_die {
            0 => writeln!(f, "no live flow would end")?,
            1 => writeln!(f, "1 live flow would end")?,
            flows => writeln!(f, "{flows} live flows would end")?,
        }
        for warning in &self.warnings {
            writeln!(f, "{warning}")?;
        }
        Ok(())
    }
}

impl fmt::Display for KernelChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = [
            (self.links, "link"),
            (self.addresses, "address"),
            (self.routes, "route"),
            (self.rules, "rule"),
            (self.sysctls, "sysctl"),
            (self.buckets, "bucket map"),
            (self.buried, "class of flows to end"),
            (self.audits_ended, "audit to end"),
        ];
        let mut parts = counted
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| {
                let plural = match (*count, *word) {
                    (1, word) => word.to_owned(),
                    (_, "address") => "addresses".to_owned(),
                    (_, "class of flows to end") => "classes of flows to end".to_owned(),
                    (_, "audit to end") => "audits to end".to_owned(),
                    (_, word) => format!("{word}s"),
                };
                format!("{count} {plural}")
            })
            .collect::<Vec<_>>();
        if self.ruleset {
            parts.push("the firewall table, in one transaction".to_owned());
        }
        if self.fast_path {
            parts.push("the fast path".to_owned());
        }
        if parts.is_empty() {
            return f.write_str("kernel: nothing to do");
        }
        write!(f, "kernel: {}", parts.join(", "))
    }
}

/// Serialization behind a reference, so that one closure takes every type.
mod erased {
    use serde::Serialize;
    use serde_json::Value;

    pub(super) trait Json {
        fn json(&self) -> Value;
    }

    impl<T: Serialize> Json for T {
        fn json(&self) -> Value {
            // The model has string keys throughout; a type that had not would show as no change.
            serde_json::to_value(self).unwrap_or(Value::Null)
        }
    }
}

const KINDS: [&str; 12] =
    ["site", "api", "port", "wan", "vlan", "host", "service", "egress", "cell", "policy", "steering", "assert"];
const HIDDEN: [&str; 3] = ["line", "internet_line", "input_line"];

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use config::units::{Line, Weight};

    use super::*;
    use crate::fixture;

    #[test]
    fn a_plan_tells_cells_lines_and_what_dies() {
        let old = fixture::config();
        let mut new = old.clone();
        new.wans.get_mut(&"wan1".parse().unwrap()).unwrap().weight = Weight(NonZeroU8::new(3).unwrap());
        new.wans.get_mut(&"wan1".parse().unwrap()).unwrap().probe.interval = Duration::from_millis(250);
        new.cells[0].line = Line(44);
        new.cells[0].log = true;
        new.cells.push(fixture::cell("dev", "compute", 48));
        new.hosts.remove(&"dev1".parse().unwrap());
        let difference = Difference {
            changes: between(Some(&old), &new),
            kernel: KernelChanges { ruleset: true, routes: 2, buckets: 1, ..KernelChanges::default() },
            steps: Vec::new(),
            flows_that_die: 3,
            warnings: vec!["warning: wan2 is in no policy".to_owned()],
        };
        insta::assert_snapshot!(difference);
    }

    #[test]
    fn the_same_site_is_no_change_wherever_its_lines_are() {
        let old = fixture::config();
        let mut new = old.clone();
        new.cells[0].line = Line(99);
        "f".repeat(64).clone_into(&mut new.digest);
        assert_eq!(between(Some(&old), &new), []);
    }

    #[test]
    fn a_first_site_is_all_added() {
        let changes = between(None, &fixture::config());
        assert!(changes.iter().all(|change| change.what == What::Added));
        assert_eq!(changes.iter().filter(|change| change.kind == "wan").count(), 2);
    }

    #[test]
    fn a_service_that_means_other_ports_is_a_change_of_the_cell() {
        let old = fixture::config();
        let mut new = old.clone();
        let config::model::Allow::Services(permits) = &mut new.cells[0].allow else { panic!() };
        permits[0].ports.tcp.push(8443..=8443);
        let changes = between(Some(&old), &new);
        assert_eq!(changes[0].details, ["allow.services: https, which means something else"]);
    }

    #[test]
    fn steps_are_counted_by_what_they_touch() {
        let steps = [Step::CloseDoor, Step::DeleteLink("vlan9".parse().unwrap())];
        assert_eq!(kernel(&steps), KernelChanges { links: 1, ruleset: true, ..KernelChanges::default() });
        assert_eq!(KernelChanges::default().to_string(), "kernel: nothing to do");
    }
}
