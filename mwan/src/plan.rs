//! From the kernel as it is to the kernel as it should be: an ordered list of small idempotent steps, and what
//! each of them does to the state. Start, reload, failover, drift repair and rollback all go through here.
//!
//! Each phase of a plan is computed against the state the phases before it leave, by [`KernelState::apply`]: what
//! a step takes along (a link that is made again loses its addresses) is put back by the same plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use config::model::Kick;
use config::units::IfName;

use crate::state::{
    BucketKey, Buckets, FlowClass, KernelState, Link, LinkKind, NextHop, Rule, RuleAction, RulesetState, Selector,
    Slot, Step,
};

/// These open the router for forwarding and are set last.
pub const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// Set once the ruleset stands: what opens the router, and what is there only when a ruleset has brought conntrack.
fn is_late(sysctl: &str) -> bool {
    FORWARDING.contains(&sysctl) || sysctl.starts_with("net/netfilter/")
}

impl KernelState {
    /// What has to be done, in order, to get from here to `want`. Empty when there is nothing to do.
    ///
    /// An observed port stands under its present name; where `want` finds a port under another name, the step
    /// that gives it the name is a [`Step::SetLink`]. Of dead classes only the key counts: the kernel does not
    /// keep what their inside end is told.
    pub fn plan_to(&self, want: &Self) -> Vec<Step> {
        let mut plan = Plan { now: self.clone(), steps: Vec::new() };
        plan.links(want);
        plan.sysctls(want);
        plan.addresses(want);
        plan.routes(want);
        plan.rules(want);
        plan.ruleset(want);
        plan.late_sysctls(want);
        plan.deletions(want);
        let late = plan.steps.first().is_some_and(|step| !matches!(step, Step::LoadRuleset { .. }));
        let loads = plan.steps.iter().any(|step| matches!(step, Step::LoadRuleset { .. }));
        if self.ruleset == RulesetState::Absent && loads && late {
            plan.steps.insert(0, Step::CloseDoor);
        }
        plan.steps
    }

    /// What the kernel does when this step is carried out, including what it does unasked.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::CloseDoor => {
                self.ruleset = RulesetState::Unknown;
                self.buckets.clear();
                self.dead.clear();
                self.audited.clear();
            }
            Step::SetLink { name, link } => self.set_link(name, link),
            Step::SetSysctl { name, value } | Step::SetLateSysctl { name, value } => {
                self.sysctls.insert(name.clone(), value.clone());
            }
            Step::AddAddress(address) => {
                self.addresses.insert(address.clone());
            }
            Step::SetRoute { key, hop } => {
                self.routes.insert(key.clone(), hop.clone());
            }
            Step::AddRule(rule) => {
                self.rules.insert(rule.clone());
            }
            Step::LoadRuleset { ruleset, buckets, dead } => {
                self.ruleset = RulesetState::Installed(ruleset.clone());
                self.buckets = buckets.iter().cloned().collect();
                let kick = |class| self.dead.get(class).copied().unwrap_or(Kick::All);
                self.dead = dead.iter().map(|class| (*class, kick(class))).collect();
            }
            Step::SetFastPath(path) => self.fast_path = path.as_deref().cloned(),
            Step::EndAudit(pair) => {
                self.audited.remove(pair);
            }
            Step::BeginAudit { pair, span } => {
                self.audited.insert(pair.clone(), *span);
            }
            Step::Revive(class) => {
                self.dead.remove(class);
            }
            Step::SetBuckets { key, buckets } => {
                self.buckets.insert(key.clone(), buckets.clone());
            }
            Step::Bury(classes) => self.dead.extend(classes.iter().copied()),
            Step::DeleteRule(rule) => {
                self.rules.remove(rule);
            }
            Step::DeleteRoute(key) => {
                self.routes.remove(key);
            }
            Step::DeleteAddress(address) => {
                self.addresses.remove(address);
            }
            Step::DeleteLink(name) => self.delete_link(name),
        }
    }

    fn set_link(&mut self, name: &IfName, link: &Link) {
        let mut link = link.clone();
        if let LinkKind::Port { found_as } = &mut link.kind {
            if found_as != name && !self.links.contains_key(name) && self.links.contains_key(found_as) {
                self.rename(found_as, name);
            }
            found_as.clone_from(name);
        }
        match self.links.get(name) {
            Some(have) if same_kind(have, &link) => {
                link.mtu = link.mtu.or(have.mtu);
                if have.up && !link.up {
                    self.forget_routes(name);
                }
            }
            // The kernel cannot change what a link is: it is deleted and made again, with fresh settings.
            Some(_) => {
                self.delete_link(name);
                self.forget_sysctls(name);
            }
            None => self.forget_sysctls(name),
        }
        self.links.insert(name.clone(), link);
    }

    fn rename(&mut self, from: &IfName, to: &IfName) {
        if let Some(link) = self.links.remove(from) {
            self.links.insert(to.clone(), link);
        }
        let renamed = |name: &mut IfName| {
            if name == from {
                name.clone_from(to);
            }
        };
        for link in self.links.values_mut() {
            link.master.iter_mut().for_each(renamed);
            if let LinkKind::Tagged { parent, .. } = &mut link.kind {
                renamed(parent);
            }
        }
        self.addresses = std::mem::take(&mut self.addresses)
            .into_iter()
            .map(|mut address| {
                renamed(&mut address.link);
                address
            })
            .collect();
        for hop in self.routes.values_mut() {
            match hop {
                NextHop::Gateway { link, .. } | NextHop::Direct { link, .. } => renamed(link),
                NextHop::Unreachable => {}
            }
        }
    }

    fn delete_link(&mut self, name: &IfName) {
        self.links.remove(name);
        self.addresses.retain(|address| address.link != *name);
        self.forget_routes(name);
        for link in self.links.values_mut() {
            link.master = link.master.take().filter(|master| master != name);
        }
        let children: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| matches!(&link.kind, LinkKind::Tagged { parent, .. } if parent == name))
            .map(|(child, _)| child.clone())
            .collect();
        for child in children {
            self.delete_link(&child);
        }
    }

    fn forget_routes(&mut self, link: &IfName) {
        self.routes.retain(|_, hop| link_of(hop) != Some(link));
    }

    fn forget_sysctls(&mut self, link: &IfName) {
        self.sysctls.retain(|name, _| name.split('/').nth(3) != Some(link.as_str()));
    }
}

struct Plan {
    now: KernelState,
    steps: Vec<Step>,
}

impl Plan {
    fn push(&mut self, step: Step) {
        self.now.apply(&step);
        self.steps.push(step);
    }

    /// Bridges, then the ports that go into them, then what sits on the ports.
    fn links(&mut self, want: &KernelState) {
        let mut links: Vec<_> = want.links.iter().collect();
        links.sort_by_key(|(_, link)| rank(link));
        for (name, link) in links {
            if !self.now.links.get(name).is_some_and(|have| satisfies(have, link)) {
                self.push(Step::SetLink { name: name.clone(), link: link.clone() });
            }
        }
    }

    fn sysctls(&mut self, want: &KernelState) {
        for (name, value) in differing(&self.now.sysctls, &want.sysctls) {
            if !is_late(&name) {
                self.push(Step::SetSysctl { name, value });
            }
        }
    }

    fn addresses(&mut self, want: &KernelState) {
        let missing: Vec<_> = want.addresses.difference(&self.now.addresses).cloned().collect();
        for address in missing {
            self.push(Step::AddAddress(address));
        }
    }

    fn routes(&mut self, want: &KernelState) {
        let mut missing = differing(&self.now.routes, &want.routes);
        // A gateway is reached through its connected route: that one first.
        missing.sort_by_key(|(_, hop)| matches!(hop, NextHop::Gateway { .. }));
        for (key, hop) in missing {
            self.push(Step::SetRoute { key, hop });
        }
    }

    fn rules(&mut self, want: &KernelState) {
        let missing: Vec<_> = want.rules.difference(&self.now.rules).cloned().collect();
        for rule in missing {
            self.push(Step::AddRule(rule));
        }
    }

    fn ruleset(&mut self, want: &KernelState) {
        let known = |key: &BucketKey| want.buckets.contains_key(key);
        if let RulesetState::Installed(ruleset) = &want.ruleset
            && (self.now.ruleset != want.ruleset || !self.now.buckets.keys().all(known))
        {
            // Classes that die with this change are left to their Bury: were they in the set already, a plan cut
            // in between would never delete their flows.
            let stay_dead = self.now.dead.keys().filter(|class| want.dead.contains_key(class));
            let step = Step::LoadRuleset {
                ruleset: ruleset.clone(),
                buckets: want.buckets.iter().map(|(key, buckets)| (key.clone(), buckets.clone())).collect(),
                dead: stay_dead.copied().collect(),
            };
            self.push(step);
        }
        if self.now.fast_path != want.fast_path {
            self.push(Step::SetFastPath(want.fast_path.clone().map(Box::new)));
        }
        // Only the pair counts: an audit is not made longer by being seen.
        let over: Vec<_> = self.now.audited.keys().filter(|pair| !want.audited.contains_key(pair)).cloned().collect();
        for pair in over {
            self.push(Step::EndAudit(pair));
        }
        for (pair, span) in &want.audited {
            if !self.now.audited.contains_key(pair) {
                self.push(Step::BeginAudit { pair: pair.clone(), span: *span });
            }
        }
        let revived: Vec<_> = self.now.dead.keys().filter(|class| !want.dead.contains_key(class)).copied().collect();
        for class in revived {
            self.push(Step::Revive(class));
        }
        for (key, buckets) in differing(&self.now.buckets, &want.buckets) {
            self.push(Step::SetBuckets { key, buckets });
        }
        let dying = want.dead.iter().filter(|(class, _)| !self.now.dead.contains_key(class));
        let dying: Vec<_> = dying.map(|(class, kick)| (*class, *kick)).collect();
        if !dying.is_empty() {
            self.push(Step::Bury(dying));
        }
    }

    fn late_sysctls(&mut self, want: &KernelState) {
        for (name, value) in differing(&self.now.sysctls, &want.sysctls) {
            if is_late(&name) {
                self.push(Step::SetLateSysctl { name, value });
            }
        }
    }

    /// What stands on something goes before it.
    fn deletions(&mut self, want: &KernelState) {
        let rules: Vec<_> = self.now.rules.difference(&want.rules).cloned().collect();
        for rule in rules {
            self.push(Step::DeleteRule(rule));
        }
        let routes: Vec<_> = self.now.routes.keys().filter(|key| !want.routes.contains_key(key)).cloned().collect();
        for key in routes {
            self.push(Step::DeleteRoute(key));
        }
        let addresses: Vec<_> = self.now.addresses.difference(&want.addresses).cloned().collect();
        for address in addresses {
            self.push(Step::DeleteAddress(address));
        }
        let mut links: Vec<_> = self
            .now
            .links
            .iter()
            .filter(|(name, link)| !want.links.contains_key(name) && !matches!(link.kind, LinkKind::Port { .. }))
            .map(|(name, link)| (std::cmp::Reverse(rank(link)), name.clone()))
            .collect();
        links.sort();
        for (_, name) in links {
            self.push(Step::DeleteLink(name));
        }
    }
}

/// Those of `want` that `have` lacks or holds otherwise.
fn differing<K: Ord + Clone, V: PartialEq + Clone>(have: &BTreeMap<K, V>, want: &BTreeMap<K, V>) -> Vec<(K, V)> {
    want.iter()
        .filter(|(key, value)| have.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn satisfies(have: &Link, want: &Link) -> bool {
    same_kind(have, want)
        && have.up == want.up
        && have.master == want.master
        && (want.mtu.is_none() || have.mtu == want.mtu)
}

/// Under which name a port was found says nothing about what it is.
fn same_kind(a: &Link, b: &Link) -> bool {
    match (&a.kind, &b.kind) {
        (LinkKind::Port { .. }, LinkKind::Port { .. }) => true,
        (a, b) => a == b,
    }
}

fn rank(link: &Link) -> u8 {
    match link.kind {
        LinkKind::Bridge => 0,
        LinkKind::Port { .. } => 1,
        LinkKind::Tagged { .. } => 2,
    }
}

fn link_of(hop: &NextHop) -> Option<&IfName> {
    match hop {
        NextHop::Gateway { link, .. } | NextHop::Direct { link, .. } => Some(link),
        NextHop::Unreachable => None,
    }
}

/// A step, told to a person.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloseDoor => f.write_str("install a ruleset that lets nothing through"),
            Self::SetLink { name, link } => {
                match &link.kind {
                    LinkKind::Port { found_as } if found_as != name => write!(f, "rename {found_as} to {name}, ")?,
                    LinkKind::Port { .. } => write!(f, "set port {name} ")?,
                    LinkKind::Bridge => write!(f, "make bridge {name}, ")?,
                    LinkKind::Tagged { parent, vlan } => write!(f, "make {name} (VLAN {vlan} on {parent}), ")?,
                }
                f.write_str(if link.up { "up" } else { "down" })?;
                if let Some(master) = &link.master {
                    write!(f, ", in {master}")?;
                }
                if let Some(mtu) = link.mtu {
                    write!(f, ", mtu {mtu}")?;
                }
                Ok(())
            }
            Self::SetSysctl { name, value } | Self::SetLateSysctl { name, value } => write!(f, "set {name} = {value}"),
            Self::AddAddress(address) => write!(f, "add address {} to {}", address.net, address.link),
            Self::SetRoute { key, hop } => {
                write!(f, "set route {} in table {} ", key.destination, key.table)?;
                match hop {
                    NextHop::Gateway { link, gateway, .. } => write!(f, "via {gateway} on {link}"),
                    NextHop::Direct { link, .. } => write!(f, "on {link}"),
                    NextHop::Unreachable => f.write_str("unreachable"),
                }
            }
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::LoadRuleset { ruleset, buckets, dead } => write!(
                f,
                "load ruleset {} with {} bucket maps and {} dead classes",
                ruleset.generation,
                buckets.len(),
                dead.len()
            ),
            Self::SetFastPath(None) => f.write_str("take the fast path off the ports"),
            Self::SetFastPath(Some(path)) => write!(
                f,
                "set the fast path: {} ports, {} prefixes, {} denied pairs",
                path.ports.len(),
                path.homes.len(),
                path.denied.len()
            ),
            Self::EndAudit((from, to)) => write!(f, "end the audit of {from} -> {to}"),
            Self::BeginAudit { pair: (from, to), span } => {
                write!(f, "audit {from} -> {to} for {} s", span.as_secs_f64())
            }
            Self::Revive(class) => write!(f, "allow {class} again"),
            Self::SetBuckets { key, buckets } => write!(f, "set the {} buckets of {key}: {buckets}", buckets.0.len()),
            Self::Bury(classes) => {
                for (index, (class, kick)) in classes.iter().enumerate() {
                    let told = match kick {
                        Kick::All => "reset or unreachable to the inside",
                        Kick::Tcp => "reset to the inside",
                        Kick::Silent => "silently",
                    };
                    write!(f, "{}end {class}, {told}", if index == 0 { "" } else { "; " })?;
                }
                Ok(())
            }
            Self::DeleteRule(rule) => write!(f, "delete rule {rule}"),
            Self::DeleteRoute(key) => write!(f, "delete route {} of table {}", key.destination, key.table),
            Self::DeleteAddress(address) => write!(f, "delete address {} from {}", address.net, address.link),
            Self::DeleteLink(name) => write!(f, "delete link {name}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) ", self.priority, self.family)?;
        match &self.selector {
            Selector::All => f.write_str("all")?,
            Selector::Mark { mark, mask } => write!(f, "mark {mark}/{mask}")?,
            Selector::OutInterface(name) => write!(f, "out by {name}")?,
            Selector::Local => f.write_str("own packets")?,
        }
        match &self.action {
            RuleAction::Lookup(table) => write!(f, " to table {table}"),
            RuleAction::LookupMainWithoutDefault => f.write_str(" to table main but its default route"),
            RuleAction::Unreachable => f.write_str(" unreachable"),
            RuleAction::Blackhole => f.write_str(" blackhole"),
        }
    }
}

impl fmt::Display for FlowClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} flows of line {}", self.family, self.wan)?;
        match self.policy {
            Some(policy) => write!(f, " by policy {}", policy.0),
            None => f.write_str(" from outside"),
        }
    }
}

impl fmt::Display for BucketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.policy, self.family)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wan(id) => write!(f, "line {id}"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Blackhole => f.write_str("blackhole"),
        }
    }
}

/// How many buckets each slot has.
impl fmt::Display for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut slots: Vec<_> = self.0.clone();
        slots.sort();
        for (n, slot) in BTreeSet::from_iter(&slots).into_iter().enumerate() {
            let count = slots.iter().filter(|other| *other == slot).count();
            write!(f, "{}{count} to {slot}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod laws;
