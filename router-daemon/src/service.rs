//! What the router does for its networks besides passing packets. Each service has threads of its own: none of it runs on
//! the thread of the event loop, and none of it can hold a failover up.

use std::path::PathBuf;

use config::Config;

use self::component::Component;
use self::dhcp::Leases;
use self::ntp::Clock;
use self::pair::Standing;
use self::ra::Prefixes;
use self::tunnels::Tunnels;

pub mod component;
pub mod dhcp;
pub mod dns;
pub mod ipsec;
mod material;
pub mod ntp;
pub mod pair;
pub mod ra;
pub mod tls_offload;
pub mod tunnels;
pub mod wan_dhcp;
pub mod wireguard;

/// Where components have their folders.
#[derive(Debug, Clone)]
pub struct Places {
    /// routerd's `--run`: files and sockets, below the name of the component.
    pub run: PathBuf,
    /// Its `--state`: what is to survive a restart.
    pub state: PathBuf,
}

/// What components are asked for besides how they are. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub leases: Leases,
    pub clock: Clock,
    pub prefixes: Prefixes,
    pub tunnels: Tunnels,
    pub pair: Standing,
}

/// The programs of others that this config needs.
pub fn components(config: &Config, places: &Places, told: &Told) -> Vec<Component> {
    let mut all = pair::components(config, places, &told.pair);
    // Hosts have one router, and other sites one end of a tunnel: the router of a pair that stands by serves neither.
    if config.pair.as_ref().is_none_or(config::model::Pair::is_active) {
        all.extend(dhcp::components(config, places, &told.leases));
        all.extend(ra::component(config, places, &told.prefixes));
        all.extend(ipsec::component(config, places));
        all.extend(wireguard::components(config));
    }
    all.extend(ntp::component(config, places, &told.clock));
    all.extend(wan_dhcp::components(config, places));
    all
}

#[cfg(test)]
mod tests;
