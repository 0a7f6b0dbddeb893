//! What the router does for its networks besides passing packets. Each service has threads of its own: none of it runs on
//! the thread of the event loop, and none of it can hold a failover up.

use std::path::PathBuf;

use config::Config;

use self::component::Component;

pub mod component;
pub mod tls_offload;

/// Where components have their folders.
#[derive(Debug, Clone)]
pub struct Places {
    /// routerd's `--run`: files and sockets, below the name of the component.
    pub run: PathBuf,
    /// Its `--state`: what is to survive a restart.
    pub state: PathBuf,
}

/// The programs of others that this config needs.
pub fn components(_config: &Config, _places: &Places) -> Vec<Component> {
    Vec::new()
}
