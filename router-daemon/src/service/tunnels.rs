//! How the tunnels stand: what `status`, the metrics and page 6 tell of them. Filled by whoever runs them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::Config;
use config::model::TunnelKind;
use config::units::{TableId, WanName};
use ipnet::IpNet;
use mwan::KernelState;
use mwan::state::NextHop;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The tunnels, as last seen. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Tunnels(Arc<Mutex<BTreeMap<String, TunnelLine>>>);

/// One tunnel at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TunnelLine {
    pub name: String,
    /// `ipsec` or `wireguard`.
    pub kind: String,
    pub state: TunnelState,
    /// The line that it goes by.
    pub wan: Option<String>,
    /// The address of the other end.
    pub peer: Option<String>,
    /// How packets are sealed: `AES_GCM_16-256`.
    pub cipher: Option<String>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub sent_packets: u64,
    /// Since the ends know each other, or last shook hands.
    pub since_seconds: Option<f64>,
    /// Until the next keys.
    pub rekey_seconds: Option<f64>,
    /// How often it took another line.
    pub moves: u64,
    /// The lines at which the other end is let in; empty where nobody is.
    pub open: Vec<String>,
    /// Why it does not work.
    pub why: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelState {
    /// Nobody has called yet.
    #[default]
    Waiting,
    /// The other end is called.
    Calling,
    Up,
    Failed,
}

impl TunnelState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Calling => "calling",
            Self::Up => "up",
            Self::Failed => "failed",
        }
    }
}

impl Tunnels {
    pub fn lines(&self) -> Vec<TunnelLine> {
        self.entries().values().cloned().collect()
    }

    /// Changes what is known of one of them.
    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut TunnelLine)) {
        if let Some(line) = self.entries().get_mut(name) {
            change(line);
        }
    }

    /// Those of this kind that the config has, and no others.
    pub(super) fn follow(&self, config: &Config, ipsec: bool) {
        let kind = if ipsec { "ipsec" } else { "wireguard" };
        let of_kind = || config.tunnels().filter(|(_, tunnel)| tunnel.ipsec().is_some() == ipsec);
        let mut entries = self.entries();
        entries.retain(|name, line| line.kind != kind || of_kind().any(|(vlan, _)| vlan.name.as_str() == name));
        for (vlan, tunnel) in of_kind() {
            let line = entries.entry(vlan.name.to_string()).or_default();
            line.name = vlan.name.to_string();
            kind.clone_into(&mut line.kind);
            line.peer = tunnel.peer().map(|peer| peer.to_string());
            line.open = if tunnel.listen { tunnel.wans.iter().map(ToString::to_string).collect() } else { Vec::new() };
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, TunnelLine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TunnelLine {
    /// A line of `status`.
    pub(crate) fn summary(&self) -> String {
        let Self { name, kind, state, wan, peer, received_bytes, sent_bytes, .. } = self;
        let by = match (wan, state) {
            (Some(wan), TunnelState::Up) => format!(" by {wan}"),
            (_, _) => String::new(),
        };
        let peer = peer.as_ref().map_or_else(String::new, |peer| format!(", peer {peer}"));
        let counts = match state {
            TunnelState::Up => format!(", {received_bytes} bytes in, {sent_bytes} out"),
            TunnelState::Waiting | TunnelState::Calling | TunnelState::Failed => String::new(),
        };
        let cipher = self.cipher.as_ref().map_or_else(String::new, |cipher| format!(", {cipher}"));
        let rekey = self.rekey_seconds.map_or_else(String::new, |rekey| format!(", other keys in {rekey:.0} s"));
        format!("tunnel {name} ({kind}): {}{by}{peer}{counts}{cipher}{rekey}", state.word())
    }

    /// What an operator should know of it.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.why.as_ref().map(|why| format!("tunnel {}: {why}", self.name))
    }

    /// Who may begin from outside: what no other part of the router allows.
    pub(crate) fn exposure(&self) -> Option<String> {
        let Self { name, kind, open, peer, .. } = self;
        let ports = if kind == "ipsec" { "IKE (udp/500, udp/4500)" } else { "WireGuard" };
        let whom = peer.as_ref().map_or_else(|| "EVERYBODY".to_owned(), ToString::to_string);
        (!open.is_empty()).then(|| format!("tunnel {name} is open to {whom}: {ports} is let in by {}", open.join(", ")))
    }
}

/// The line that each tunnel is to go by, as the routes that are wanted say.
pub(super) fn wanted_lines(config: &Config, state: &KernelState) -> BTreeMap<String, WanName> {
    let line = |peer: IpNet| {
        let of_peer =
            state.routes.iter().find(|(key, _)| key.table == TableId::TUNNEL_PEERS && key.destination == peer);
        match of_peer?.1 {
            NextHop::Gateway { link, .. } | NextHop::Direct { link, .. } => {
                Some(config.wans.values().find(|wan| wan.interface == *link)?.name.clone())
            }
            NextHop::Unreachable => None,
        }
    };
    let of = |(vlan, tunnel): (&config::model::Vlan, &config::model::Tunnel)| {
        Some((vlan.name.to_string(), line(IpNet::from(tunnel.peer()?))?))
    };
    config.tunnels().filter_map(of).collect()
}

/// Whether the config has a tunnel of this kind.
pub(super) fn any(config: &Config, ipsec: bool) -> bool {
    config.tunnels().any(|(_, tunnel)| matches!(&tunnel.kind, TunnelKind::Ipsec(_)) == ipsec)
}
