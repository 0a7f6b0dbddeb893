//! Policies that keep a client's connections on different lines.
//!
//! Which line has a connection of whom is in sets that the kernel adds to at the choice and takes out of by time;
//! routerd keeps in them what conntrack says is alive. Without routerd the lines take turns.

use config::model::{Balance, Policy};
use config::units::{Family, Mark};

use super::{Table, chosen, keyword, nfproto, policy_mark};
use crate::state::{BUCKETS, BucketKey, FlowClass, TAKEN, taken_set};

impl Table<'_> {
    pub(super) fn taken(&mut self) {
        if self.spread().next().is_none() {
            return;
        }
        for family in Family::ALL {
            let key = match family {
                Family::V4 => "ipv4_addr",
                Family::V6 => "ipv6_addr",
            };
            let body = format!("type {key} . mark\nsize 65535\nflags dynamic,timeout");
            self.sets.insert(taken_set(family).to_owned(), body);
        }
    }

    /// The chain that chooses for a policy: one line after the other is tried, until one has no connection of this
    /// client. Where all have, the last one tried gets a further one.
    pub(super) fn apart(&mut self, policy: &Policy, family: Family) -> String {
        let (set, only) = (taken_set(family), nfproto(family));
        let map = BucketKey { policy: policy.name.clone(), family }.map_name();
        let [turn, apart] = ["turn", "apart"].map(|what| format!("{what}_{}_{only}", policy.id.0));
        let take = format!("take_{only}");
        self.chain(&turn, vec![format!("numgen inc mod {BUCKETS} vmap @{map}")]);
        let place = |mark: &str| format!("{} saddr . {mark}", keyword(family));
        let ours = format!("ct mark & {:#010x}", FlowClass::MASK);
        let free = format!("{} != @{set} goto {take}", place(&format!("({ours})")));
        let mut rules: Vec<_> =
            (1..policy.members.len()).flat_map(|_| [format!("jump {turn}"), free.clone()]).collect();
        rules.extend([format!("jump {turn}"), format!("goto {take}")]);
        self.chain(&apart, rules);
        let update = format!("update @{set} {{ {} timeout {}s }}", place(&ours), TAKEN.as_secs());
        // What belongs to a connection that is gone is answered with a reset, and takes nothing. Each in a rule of its own:
        // a rule ends where its set is full.
        let middle = "tcp flags & (syn | ack) != syn return".to_owned();
        self.chain(&take, vec![chosen(), middle, update]);
        apart
    }

    /// A line that is only tried is not chosen yet.
    pub(super) fn count_unless_tried(&self) -> String {
        let policies: Vec<_> = self.spread().map(|policy| format!("{:#010x}", policy_mark(policy.id))).collect();
        if policies.is_empty() {
            return chosen();
        }
        format!("ct mark & {:#010x} != {{ {} }} {}", Mark::POLICY_MASK, policies.join(", "), chosen())
    }

    fn spread(&self) -> impl Iterator<Item = &Policy> {
        self.config.policies.values().filter(|policy| policy.balance == Balance::Spread)
    }
}
