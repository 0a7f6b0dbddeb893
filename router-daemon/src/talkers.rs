//! Who talks by which line: the flows the kernel tracks, put together by line and by who opened them. The answer to
//! `flows`; bounded whatever the kernel holds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use config::Config;
use config::units::WanId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The answer to `flows`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Talkers {
    /// All tracked flows, those of the router itself too.
    pub flows: u64,
    /// The largest groups, by bytes where the kernel counts them, else by flows.
    pub groups: Vec<Talker>,
    /// How many flows stand in no group here.
    pub flows_left_out: u64,
}

/// The flows one address opened by one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Talker {
    /// `None` between VLANs, and for what the router itself sends.
    pub wan: Option<String>,
    /// The VLAN at whose home the address is; `router`, or `internet`.
    pub zone: String,
    pub host: Option<String>,
    pub address: IpAddr,
    pub flows: u64,
    /// Both directions of the flows that live; `None` where the kernel does not count (`nf_conntrack_acct`).
    pub bytes: Option<u64>,
}

/// Collects flows without names.
#[derive(Debug, Default)]
pub struct Tally {
    flows: u64,
    unplaced: u64,
    groups: BTreeMap<(Option<WanId>, IpAddr), (u64, Option<u64>)>,
}

impl Tally {
    /// One flow: its line, who opened it, and what it carried.
    pub fn add(&mut self, wan: Option<WanId>, source: IpAddr, bytes: Option<u64>) {
        self.flows += 1;
        let key = (wan, source);
        if self.groups.len() >= MOST_GROUPS && !self.groups.contains_key(&key) {
            self.unplaced += 1;
            return;
        }
        let (flows, sum) = self.groups.entry(key).or_default();
        *flows += 1;
        if let Some(bytes) = bytes {
            *sum = Some(sum.unwrap_or_default().saturating_add(bytes));
        }
    }

    /// The `most` largest, with names.
    pub fn told(self, config: &Config, most: usize) -> Talkers {
        let mut groups = self.groups.into_iter().collect::<Vec<_>>();
        groups.sort_by_key(|(key, (flows, bytes))| (std::cmp::Reverse((*bytes, *flows)), *key));
        let left_out = groups.iter().skip(most).map(|(_, (flows, _))| flows).sum::<u64>() + self.unplaced;
        let own = |address: IpAddr| {
            let vlans = config.vlans.values().flat_map(|vlan| &vlan.addresses);
            let wans = config.wans.values().flat_map(|wan| &wan.addressing.addresses);
            address.is_loopback() || vlans.chain(wans).any(|net| net.addr() == address)
        };
        let told = groups.into_iter().take(most).map(|((wan, address), (flows, bytes))| Talker {
            wan: wan.map(|id| config.wan(id).map_or_else(|| format!("line {id}"), |wan| wan.name.to_string())),
            zone: if own(address) {
                "router".to_owned()
            } else {
                config.vlan_of(address).map_or_else(|| "internet".to_owned(), |vlan| vlan.name.to_string())
            },
            host: config.host_at(address).map(|host| host.name.to_string()),
            address,
            flows,
            bytes,
        });
        Talkers { flows: self.flows, groups: told.collect(), flows_left_out: left_out }
    }
}

/// As many groups are told at most.
pub const MOST_TOLD: usize = 500;
/// Beyond this many, flows of yet another address are counted and not told apart.
const MOST_GROUPS: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_largest_come_first_and_have_names() {
        let mut tally = Tally::default();
        let wan = WanId::new(1);
        for (wan, source, bytes) in [
            (wan, "10.10.50.7", Some(5)),
            (wan, "10.10.60.3", Some(900)),
            (wan, "10.10.50.7", Some(7)),
            (None, "10.10.50.1", Some(1)),
            (wan, "203.0.113.9", None),
        ] {
            tally.add(wan, source.parse().unwrap(), bytes);
        }
        let told = tally.told(&fixture::config(), 3);
        assert_eq!((told.flows, told.flows_left_out), (5, 1));
        let lines = told.groups.iter().map(|group| {
            let host = group.host.as_deref().unwrap_or("-");
            (group.wan.as_deref().unwrap_or("-"), group.zone.as_str(), host, group.flows, group.bytes)
        });
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                ("wan1", "compute", "worker3", 1, Some(900)),
                ("wan1", "dev", "dev1", 2, Some(12)),
                ("-", "router", "-", 1, Some(1)),
            ]
        );
    }

    #[test]
    fn a_flood_of_sources_takes_bounded_memory() {
        let mut tally = Tally::default();
        for number in 0..20_000_u32 {
            tally.add(None, IpAddr::from(number.to_be_bytes()), None);
        }
        assert_eq!(tally.groups.len(), MOST_GROUPS);
        let told = tally.told(&fixture::config(), MOST_TOLD);
        assert_eq!((told.flows, told.groups.len(), told.flows_left_out), (20_000, MOST_TOLD, 19_500));
    }
}
