//! Config, decision and links in, the kernel as it should be out. Cannot fail and is deterministic: what the
//! kernel does not offer yet (a port that is missing) is left out together with everything that stands on it,
//! and told by [`unresolved`].

mod buckets;
mod links;
mod matches;
mod routing;
pub mod ruleset;

use config::Config;

pub use self::links::{Waiting, WhyWaiting, unresolved};
use crate::decide::Decision;
use crate::links::Links;
use crate::state::{KernelState, RulesetState};

/// The whole kernel state this site wants at this moment.
pub fn compile(config: &Config, decision: &Decision, links: &Links) -> KernelState {
    let mut state = KernelState { links: links::links(config, links), ..KernelState::default() };
    let present = |name: &_| state.links.contains_key(name);
    state.addresses = routing::addresses(config, present);
    state.routes = routing::routes(config, decision, present);
    state.rules = routing::rules(config, &state.routes);
    state.sysctls = routing::sysctls(config, &state.links);
    state.ruleset = RulesetState::Installed(ruleset::ruleset(config));
    state.buckets = buckets::buckets(config, decision);
    state.dead = buckets::dead(config, decision);
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::script::Inventory;

    #[test]
    fn print() {
        let site = fixture::site();
        let state = compile(&site, &fixture::decision(&site), &fixture::ethernet(&["eth0", "eth1", "eth2", "eth3"]));
        let RulesetState::Installed(ruleset) = &state.ruleset else { panic!("no ruleset") };
        let buckets: Vec<_> = state.buckets.clone().into_iter().collect();
        println!("{}", ruleset.script(&Inventory::default(), &buckets, &[]));
    }
}
