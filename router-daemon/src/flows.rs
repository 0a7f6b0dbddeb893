//! Which flows the fast path forwards, and how: a conntrack entry and the place of its two ends make two entries of
//! its tables. No I/O here; `kernel::feeder` carries conntrack's events in and the entries out.
//!
//! A flow that cannot be told for sure is not cached: the kernel forwards it.

mod book;
mod topology;

use std::net::IpAddr;

use config::units::{Family, Mark};
use ebpf::abi::{self, Key4, Key6, Rewrite, checksum};
use mwan::state::FlowClass;

pub use self::book::{Book, Cache, Carried, Counts, Sight};
pub use self::topology::{Lan, Line, Link, Port, Topology};
use self::topology::{Place, Spot};
use crate::kernel::{Tuple, is_audited};

/// What conntrack tells of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracked {
    /// Tells it from an earlier flow of the same addresses and ports.
    pub id: u32,
    /// As the first packet had it.
    pub original: Tuple,
    /// As an answer has it.
    pub reply: Tuple,
    pub mark: Mark,
    /// `IPS_*`.
    pub status: u32,
    /// `TCP_CONNTRACK_*`; events leave it out where it did not change.
    pub tcp_state: Option<u8>,
    /// A helper reads its packets.
    pub helped: bool,
    /// In a conntrack zone: none of ours.
    pub zoned: bool,
}

impl Tracked {
    pub fn family(&self) -> Family {
        Family::of(self.original.source)
    }

    /// The line it uses, and the policy that chose it.
    pub fn class(&self) -> Option<FlowClass> {
        FlowClass::from_mark(self.family(), self.mark)
    }

    /// Both ends have spoken, and every packet is like the last: the kernel need not look at each. Never where it passes
    /// for an audit only, which the rules end.
    pub fn is_settled(&self) -> bool {
        if is_audited(self.mark) {
            return false;
        }
        let settled = match self.original.protocol {
            TCP => self.tcp_state == Some(ESTABLISHED),
            UDP => true,
            _ => false,
        };
        settled && self.status & ASSURED != 0 && self.status & ODD == 0 && !self.helped && !self.zoned
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    V4(Key4),
    V6(Key6),
}

impl Key {
    /// Of the packets that come in like this. `None` for a mixture of families.
    pub fn of(tuple: &Tuple) -> Option<Self> {
        let source_port = tuple.source_port.to_be_bytes();
        let destination_port = tuple.destination_port.to_be_bytes();
        let protocol = tuple.protocol;
        match (tuple.source, tuple.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                Some(Self::V4(Key4 { source, destination, source_port, destination_port, protocol, _0: [0; 3] }))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                Some(Self::V6(Key6 { source, destination, source_port, destination_port, protocol, _0: [0; 3] }))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }
}

/// An entry of the fast path's tables, of generation 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub flow: abi::Flow,
}

/// The entries of a flow: of the packets that go as its first went, and of the answers.
pub fn entries(tracked: &Tracked, topology: &Topology) -> Option<[Entry; 2]> {
    if !tracked.is_settled() {
        return None;
    }
    let v6 = tracked.family() == Family::V6;
    let (there, back) = (&tracked.original, &tracked.reply);
    let from = topology.place(there.source, tracked.class())?;
    let to = topology.place(back.source, tracked.class())?;
    if from.spot.port == to.spot.port && from.spot.vlan == to.spot.vlan {
        return None;
    }
    let line = match (from.line, to.line) {
        (None, None) => 0,
        (Some(line), None) | (None, Some(line)) => line.get(),
        (Some(_), Some(_)) => return None,
    };
    let slot = abi::slot(line, v6);
    Some([entry(there, back, &from, &to, slot)?, entry(back, there, &to, &from, slot)?])
}

/// The packets of one direction come in as `tuple`, and leave as the answers to `other`.
fn entry(tuple: &Tuple, other: &Tuple, from: &Place, to: &Place, slot: u32) -> Option<Entry> {
    let source = ((tuple.source, tuple.source_port), (other.destination, other.destination_port));
    let destination = ((tuple.destination, tuple.destination_port), (other.source, other.source_port));
    let changed = match (source.0 != source.1, destination.0 != destination.1) {
        (false, false) => None,
        (true, false) => Some((Rewrite::Source, source)),
        (false, true) => Some((Rewrite::Destination, destination)),
        (true, true) => return None,
    };
    let (Spot { port: in_port, vlan: in_vlan, mac: in_mac, .. }, out) = (from.spot, to.spot);
    let mut flow = abi::Flow {
        slot,
        in_port,
        out_port: out.port,
        in_vlan,
        out_vlan: out.vlan,
        mtu: out.mtu,
        flags: if to.line.is_some() { abi::Flow::OUTWARD } else { 0 },
        in_mac,
        destination_mac: out.peer,
        source_mac: out.mac,
        ..abi::Flow::EMPTY
    };
    if let Some((rewrite, (old, new))) = changed {
        // What leaves by a line leaves with its address, what comes in by it finds the host behind that; between
        // VLANs there is no NAT of ours.
        let expected = match (from.line, to.line) {
            (None, Some(_)) => Rewrite::Source,
            (Some(_), None) => Rewrite::Destination,
            (None, None) | (Some(_), Some(_)) => return None,
        };
        if rewrite != expected {
            return None;
        }
        flow.rewrite = rewrite as u8;
        let (was, is) = (bytes(old.0), bytes(new.0));
        flow.address[..is.len()].copy_from_slice(&is);
        flow.port = new.1.to_be_bytes();
        if new.0.is_ipv4() {
            flow.ip_delta = checksum::delta(&was, &is);
        }
        let ports = checksum::delta(&old.1.to_be_bytes(), &flow.port);
        flow.l4_delta = checksum::add(checksum::delta(&was, &is), ports);
    }
    Some(Entry { key: Key::of(tuple)?, flow })
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
/// `TCP_CONNTRACK_ESTABLISHED`.
const ESTABLISHED: u8 = 3;
const ASSURED: u32 = 1 << 2;
/// Sequence numbers adjusted, dying, a template, a helper, offloaded to somebody else's table or card.
const ODD: u32 = 1 << 6 | 1 << 9 | 1 << 11 | 1 << 13 | 1 << 14 | 1 << 15;

#[cfg(test)]
mod tests;
