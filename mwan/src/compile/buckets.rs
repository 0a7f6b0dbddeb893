//! The live part of the table: what the decision says, cut to what the config knows. A table element that names
//! a chain which does not exist would make the kernel refuse the whole transaction.

use std::collections::BTreeMap;

use config::Config;
use config::model::Kick;
use config::units::Family;

use crate::decide::Decision;
use crate::state::{BUCKETS, BucketKey, Buckets, FlowClass, Slot};

/// All buckets of every policy in both families. What the decision does not fill answers unreachable.
pub(super) fn buckets(config: &Config, decision: &Decision) -> BTreeMap<BucketKey, Buckets> {
    let keys = config
        .policies
        .keys()
        .flat_map(|policy| Family::ALL.map(|family| BucketKey { policy: policy.clone(), family }));
    keys.map(|key| {
        let decided = decision.buckets.get(&key).map_or(&[][..], |buckets| &buckets.0);
        let slots = (0..BUCKETS).map(|n| known(config, decided.get(n).copied().unwrap_or(Slot::Unreachable)));
        let buckets = Buckets(slots.collect());
        (key, buckets)
    })
    .collect()
}

pub(super) fn dead(config: &Config, decision: &Decision) -> BTreeMap<FlowClass, Kick> {
    let exists = |class: &FlowClass| {
        config.wan(class.wan).is_some() && class.policy.is_none_or(|policy| config.policy(policy).is_some())
    };
    decision.dead.iter().filter(|(class, _)| exists(class)).map(|(class, kick)| (*class, *kick)).collect()
}

fn known(config: &Config, slot: Slot) -> Slot {
    match slot {
        Slot::Wan(id) if config.wan(id).is_none() => Slot::Unreachable,
        Slot::Wan(_) | Slot::Unreachable | Slot::Blackhole => slot,
    }
}
