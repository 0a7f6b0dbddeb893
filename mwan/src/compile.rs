//! Config, decision and links in, the kernel as it should be out. Cannot fail and is deterministic: what the
//! kernel does not offer yet (a port that is missing) is left out together with everything that stands on it,
//! and told by [`unresolved`].

mod buckets;
mod fast_path;
mod links;
mod matches;
mod routing;
pub mod ruleset;

use std::time::Duration;

use config::Config;

pub use self::fast_path::zones;
pub use self::links::{Waiting, WhyWaiting, unresolved};
use crate::audit::Pair;
use crate::decide::Decision;
use crate::links::Links;
use crate::state::{KernelState, RulesetState};

/// The whole kernel state this site wants at this moment.
pub fn compile(config: &Config, decision: &Decision, links: &Links) -> KernelState {
    let mut state = KernelState { links: links::links(config, links), ..KernelState::default() };
    let present = |name: &_| state.links.contains_key(name);
    state.addresses = routing::addresses(config, present);
    let up = |name: &_| links.get(name).is_some_and(|facts| facts.admin_up);
    // The lines of a pair are the active router's: the other one sends nothing by them, not even a question for a MAC.
    let standby = config.pair.as_ref().is_some_and(|pair| !pair.is_active());
    let line = |name: &_| !standby && present(name);
    state.routes = routing::routes(config, decision, line);
    state.routes.extend(routing::tunnels(config, decision, line, up));
    state.rules = routing::rules(config, &state.routes);
    state.sysctls = routing::sysctls(config, &state.links);
    state.sysctls.extend(routing::tunnel_sysctls(config, up));
    state.ruleset = RulesetState::Installed(ruleset::ruleset(config));
    state.buckets = buckets::buckets(config, decision);
    state.dead = buckets::dead(config, decision);
    state.fast_path = fast_path::fast_path(config, links, &state.links);
    state
}

/// Lets pass for so long what the default deny of this cell would drop. What is denied at the ports is denied both
/// ways, so the answers are let in there too.
pub fn audit(state: &mut KernelState, config: &Config, pair: &Pair, span: Duration) {
    let interface = |name| config.vlans.get(name).map(|vlan| vlan.interface.clone());
    let (Some(from), Some(to)) = (interface(&pair.from), interface(&pair.to)) else { return };
    state.audited.insert((from, to), span);
    let zones = zones(config);
    if let (Some(path), Some(from), Some(to)) = (&mut state.fast_path, zones.get(&pair.from), zones.get(&pair.to)) {
        path.denied.remove(&(*from, *to));
        path.denied.remove(&(*to, *from));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use config::model::{PortFind, PortRole};
    use config::units::IfName;

    use super::*;
    use crate::fixture;
    use crate::state::LinkKind;

    fn name(text: &str) -> IfName {
        text.parse().unwrap()
    }

    /// Wanted name to present name of the ports.
    fn ports(config: &Config, links: &Links) -> BTreeMap<String, String> {
        let state = compile(config, &fixture::decision(config), links);
        let ports = state.links.iter().filter_map(|(name, link)| match &link.kind {
            LinkKind::Port { found_as } => Some((name.to_string(), found_as.to_string())),
            LinkKind::Bridge | LinkKind::Tagged { .. } => None,
        });
        ports.collect()
    }

    #[test]
    fn a_port_is_found_by_path_and_by_driver_in_pci_order() {
        let mut site = fixture::site();
        let find = |site: &mut Config, port: &str, find| site.ports.get_mut(&name(port)).unwrap().find = find;
        find(&mut site, "eth2", PortFind::Pci { address: "0000:01:00".to_owned(), port: 3 });
        find(&mut site, "eth3", PortFind::Driver { driver: "igb".to_owned(), port: 2 });
        let links = fixture::ethernet(&["eth0", "eth1", "enp3", "enp2"]);
        let found = ports(&site, &links);
        assert_eq!((found["eth2"].as_str(), found["eth3"].as_str()), ("enp2", "enp3"));
        assert_eq!(unresolved(&site, &links), vec![]);
        find(&mut site, "eth2", PortFind::Pci { address: "0000:01:0".to_owned(), port: 0 });
        assert!(matches!(unresolved(&site, &links).as_slice(), [Waiting { why: WhyWaiting::NoSuchPci { .. }, .. }]));
    }

    #[test]
    fn one_interface_is_not_two_ports() {
        let mut site = fixture::site();
        site.ports.get_mut(&name("eth3")).unwrap().find = PortFind::Name(name("eth2"));
        let links = fixture::ethernet(&["eth0", "eth1", "eth2"]);
        let waiting = unresolved(&site, &links);
        assert_eq!(waiting.len(), 1);
        assert_eq!(waiting[0].to_string(), "port eth3 (line 40): found as eth2, which port eth2 claims as well");
    }

    #[test]
    fn two_ports_that_swap_their_names_get_there_in_three_renames() {
        let mut site = fixture::site();
        site.ports.get_mut(&name("eth2")).unwrap().find = PortFind::Pci { address: "0000:01:00.3".to_owned(), port: 0 };
        site.ports.get_mut(&name("eth3")).unwrap().find = PortFind::Pci { address: "0000:01:00.2".to_owned(), port: 0 };
        let mut links = fixture::ethernet(&["eth0", "eth1", "eth2", "eth3"]);
        let mut renames = 0;
        while let Some((to, from)) = ports(&site, &links).into_iter().find(|(to, from)| to != from) {
            assert!(links.get(&name(&to)).is_none(), "a name in use is never given away");
            let facts = links.0.remove(&name(&from)).unwrap();
            links.0.insert(name(&to), facts);
            renames += 1;
            assert!(renames <= 3);
        }
        assert_eq!(renames, 3);
        assert_eq!(links.get(&name("eth2")).unwrap().pci.as_deref(), Some("0000:01:00.3"));
        assert_eq!(unresolved(&site, &links), vec![]);
    }

    #[test]
    fn a_trunk_carries_its_native_vlan_untagged_and_the_others_tagged() {
        let site = fixture::site();
        let state = compile(&site, &fixture::decision(&site), &fixture::ethernet(&["eth3"]));
        assert_eq!(state.links[&name("eth3")].master, Some(name("vlan20")));
        let tagged = &state.links[&name("eth3.30")];
        assert_eq!(tagged.master, Some(name("vlan30")));
        assert!(
            matches!(&tagged.kind, LinkKind::Tagged { parent, vlan } if *parent == name("eth3") && vlan.get() == 30)
        );
    }

    #[test]
    fn a_port_that_left_the_file_is_taken_out_of_its_vlan() {
        let mut site = fixture::site();
        site.ports.remove(&name("eth2"));
        let mut links = fixture::ethernet(&["eth0", "eth1", "eth2", "eth3"]);
        links.0.get_mut(&name("eth2")).unwrap().master = Some(name("vlan10"));
        let state = compile(&site, &fixture::decision(&site), &links);
        let unplugged = &state.links[&name("eth2")];
        assert_eq!((unplugged.up, &unplugged.master), (false, &None));
    }

    #[test]
    fn a_reserved_port_is_down_and_in_no_vlan() {
        let mut site = fixture::site();
        site.ports.get_mut(&name("eth2")).unwrap().role = PortRole::Reserved;
        let state = compile(&site, &fixture::decision(&site), &fixture::ethernet(&["eth2"]));
        assert_eq!((state.links[&name("eth2")].up, &state.links[&name("eth2")].master), (false, &None));
    }

    #[test]
    fn lines_with_one_subnet_and_one_gateway_never_meet_in_a_table() {
        let mut site = fixture::site();
        for wan in site.wans.values_mut() {
            wan.addressing.addresses = vec![fixture::net(&format!("100.64.0.{}/24", 10 + wan.id.get()))];
            wan.addressing.gateway4 = Some("100.64.0.1".parse().unwrap());
            wan.addressing.gateway6 = None;
        }
        let state = compile(&site, &fixture::decision(&site), &fixture::ethernet(&["eth0", "eth1"]));
        for wan in site.wans.values() {
            let mine: Vec<_> = state.routes.iter().filter(|(key, _)| key.table == wan.id.table()).collect();
            assert_eq!(mine.len(), 2, "a default and the subnet");
            let text = format!("{mine:?}");
            assert!(text.contains(wan.interface.as_str()));
            assert!(site.wans.values().all(|other| other.id == wan.id || !text.contains(other.interface.as_str())));
        }
        assert!(state.routes.keys().all(|key| key.table != config::units::TableId::MAIN));
    }
}
