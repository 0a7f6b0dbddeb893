//! The session an operator works over, and whether a config would cut it. Pure.

use std::net::IpAddr;

use config::Config;
use mwan::matrix::{Packet, Protocol, Zone, verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A TCP connection from the operator to the router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Session {
    pub source: IpAddr,
    pub source_port: u16,
    pub destination: IpAddr,
    pub port: u16,
}

impl Session {
    /// From what sshd puts into `SSH_CONNECTION`. Link-local addresses and what is no address are no session that
    /// could be judged.
    pub fn of_ssh(connection: &str) -> Option<Self> {
        let [source, source_port, destination, port] = connection.split(' ').collect::<Vec<_>>().try_into().ok()?;
        Some(Self {
            source: source.parse().ok()?,
            source_port: source_port.parse().ok()?,
            destination: destination.parse().ok()?,
            port: port.parse().ok()?,
        })
    }

    /// Why its packets would not pass under `new`. `None` also where they do not come over what is ours: neither
    /// config gives the router the address they go to.
    pub fn cut_by(&self, old: Option<&Config>, new: &Config) -> Option<String> {
        if self.source.is_loopback() {
            return None;
        }
        let packet = |config| {
            let protocol = Protocol::Tcp { source: self.source_port, destination: self.port };
            Packet::new(config, self.source, self.destination, protocol)
        };
        let before = old.map(packet);
        let mut after = packet(new);
        let what = format!("this session (from {} to {} tcp/{})", self.source, self.destination, self.port);
        if after.to != Zone::Router {
            let was = before.filter(|before| before.to == Zone::Router)?;
            return Some(format!("{what} comes in from {} to an address the router would not have", was.from));
        }
        // The cable stays where it is, whatever a file says of its subnet.
        if let Some(Packet { from: Zone::Vlan(vlan), .. }) = before {
            if !new.vlans.contains_key(&vlan) {
                return Some(format!("{what} comes in from {vlan}, which the file does not have"));
            }
            after.from = Zone::Vlan(vlan);
        }
        let verdict = verdict(new, &after);
        (!verdict.allowed).then(|| format!("{what} would be denied: {}", verdict.reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_judged_by_the_input_of_where_it_comes_in() {
        let with = |from: &str, to: &str| {
            assert!(MINIMAL.contains(from), "{from}");
            config::parse("site.toml", &MINIMAL.replace(from, to)).unwrap().config
        };
        let minimal = config::parse("site.toml", MINIMAL).unwrap().config;
        let ssh = |from: &str| Session::of_ssh(from).unwrap();
        let office_admin = ssh("10.0.10.7 50000 10.0.10.1 22");
        assert_eq!(office_admin.cut_by(Some(&minimal), &minimal), None);

        let closed = with(r#""ping", "ssh"]"#, r#""ping"]"#);
        let why = office_admin.cut_by(Some(&minimal), &closed).unwrap();
        assert!(why.contains("tcp/22) would be denied: input of office: default deny"), "{why}");
        assert!(office_admin.cut_by(None, &closed).is_some(), "without a config before");

        let moved = with("10.0.10.1/24", "10.0.11.1/24");
        let why = office_admin.cut_by(Some(&minimal), &moved).unwrap();
        assert!(why.contains("to an address the router would not have"), "{why}");

        // By a line, and by a port that is none of ours.
        let outside = ssh("198.51.100.9 50000 203.0.113.10 22");
        assert!(outside.cut_by(Some(&minimal), &minimal).is_some());
        assert_eq!(ssh("192.168.99.5 50000 192.168.99.1 22").cut_by(Some(&minimal), &closed), None);
        assert_eq!(ssh("127.0.0.1 50000 127.0.0.1 22").cut_by(Some(&minimal), &closed), None);
        assert_eq!(Session::of_ssh("fe80::1%eth0 50000 fe80::2%eth0 22"), None);
        assert_eq!(Session::of_ssh("UNKNOWN 65535 UNKNOWN 65535"), None);
    }

    const MINIMAL: &str = include_str!("../../config/examples/minimal.toml");
}
