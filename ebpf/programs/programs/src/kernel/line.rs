//! What a line carries, whether it answers, and how fast its handshakes are: measured on traffic that flows anyway.

use abi::{Flow, Handshake, Passive, PortKey, Settings, slot};
use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use programs::decide;
use programs::packet::{Frame, Packet, protocol};

use super::maps::{HANDSHAKES, LINES, PASSIVE, SILENCES, ZONES};
use super::{maps, now};

/// A packet leaves by `port`, as it is on the wire.
#[inline(always)]
pub(super) fn leaves(frame: Frame<'_>, packet: &Packet, settings: &Settings, port: u32) {
    // SAFETY: entries are changed by the daemon as a whole.
    let Some(zone) = (unsafe { ZONES.get(PortKey { port, vlan: packet.vlan, _0: 0 }) }) else { return };
    // SAFETY: `parse` has checked the Ethernet header. What goes to many is not answered by the line.
    if zone.wan == 0 || unsafe { frame.read::<u8>(0) } & 1 != 0 {
        return;
    }
    let slot = slot(zone.wan, packet.v6);
    // SAFETY: `packet` was parsed from `frame`.
    sent(slot, packet.length, settings, || unsafe { decide::hash(frame, packet) }, now());
    if packet.opens() {
        let (local, remote) = addresses(frame, packet);
        let key = Handshake {
            local,
            remote,
            local_port: packet.source_port.to_ne_bytes(),
            remote_port: packet.destination_port.to_ne_bytes(),
            slot,
        };
        // A SYN sent again: nobody can say which of them is answered.
        if HANDSHAKES.insert(key, exact(), u64::from(BPF_NOEXIST)).is_err()
            && HANDSHAKES.insert(key, 0, u64::from(BPF_EXIST)).is_err()
        {}
    }
}

#[inline(always)]
pub(super) fn sent(slot: u32, length: u32, settings: &Settings, hash: impl FnOnce() -> u32, now: u64) {
    if let Some(line) = LINES.get_ptr_mut(slot) {
        // SAFETY: a map's value.
        maps::add(unsafe { &raw mut (*line).sent }, u64::from(length));
    }
    if settings.silence_ns == 0 {
        return;
    }
    let Some(silence) = SILENCES.get_ptr_mut(slot) else { return };
    // SAFETY: a map's value; CPUs that meet here forget a flow, or tell twice.
    let silence = unsafe { &mut *silence };
    if decide::grows_silent(silence, settings, hash(), now) {
        let span = now.saturating_sub(silence.since);
        tell(Passive {
            at: now,
            kind: Passive::SILENT,
            slot,
            span,
            flows: silence.flows.count_ones(),
            _0: 0,
            remote: [0; 16],
        });
    }
}

#[inline(always)]
pub(super) fn received(slot: u32, length: u32) {
    if let Some(line) = LINES.get_ptr_mut(slot) {
        // SAFETY: a map's value.
        maps::add(unsafe { &raw mut (*line).received }, u64::from(length));
    }
    if let Some(silence) = SILENCES.get_ptr_mut(slot) {
        // SAFETY: see above. Written only where it says something, since all CPUs read it.
        let since = unsafe { &mut (*silence).since };
        if *since != 0 {
            *since = 0;
        }
    }
}

/// A packet of a cached flow, as it came in.
#[inline(always)]
pub(super) fn segment(frame: Frame<'_>, packet: &Packet, flow: &mut Flow) {
    if packet.protocol != protocol::TCP || flow.slot < 2 {
        return;
    }
    let l4 = packet.l4();
    // SAFETY: `parse` has checked the header.
    let header = u32::from(unsafe { frame.read::<u8>(l4 + 12) } >> 4) * 4 + (l4 - packet.ip) as u32;
    let data = packet.length.saturating_sub(header);
    // Mere acknowledgements, and keepalives, which repeat one byte on purpose (RFC 9293, section 3.8.4).
    if data <= 1 {
        return;
    }
    // SAFETY: see above.
    let first = u32::from_be(unsafe { frame.read(l4 + 4) });
    let behind = flow.highest != 0 && (first.wrapping_sub(flow.highest) as i32) < 0;
    let end = first.wrapping_add(data);
    if flow.highest == 0 || (end.wrapping_sub(flow.highest) as i32) > 0 {
        flow.highest = end;
    }
    let Some(line) = LINES.get_ptr_mut(flow.slot) else { return };
    // SAFETY: a map's value of this CPU.
    let line = unsafe { &mut *line };
    line.segments += 1;
    if behind {
        line.retransmits += 1;
        let (source, destination) = addresses(frame, packet);
        let remote = if flow.flags & Flow::OUTWARD != 0 { destination } else { source };
        tell(Passive { at: now(), kind: Passive::RESENT, slot: flow.slot, span: 0, flows: 0, _0: 0, remote });
    }
}

/// A server says yes by a line. The packet is as it came in: its destination is what the SYN had as its source.
#[inline(always)]
pub(super) fn accepted(frame: Frame<'_>, packet: &Packet, slot: u32) {
    let (remote, local) = addresses(frame, packet);
    let key = Handshake {
        local,
        remote,
        local_port: packet.destination_port.to_ne_bytes(),
        remote_port: packet.source_port.to_ne_bytes(),
        slot,
    };
    // SAFETY: at worst the time of another handshake.
    let Some(&left) = (unsafe { HANDSHAKES.get(key) }) else { return };
    if HANDSHAKES.remove(key).is_err() || left == 0 {
        return;
    }
    let at = exact();
    tell(Passive { at, kind: Passive::HANDSHAKE, slot, span: at.saturating_sub(left), flows: 0, _0: 0, remote });
}

/// Source and destination, IPv4 in the first four bytes.
#[inline(always)]
pub(super) fn addresses(frame: Frame<'_>, packet: &Packet) -> ([u8; 16], [u8; 16]) {
    if packet.v6 {
        // SAFETY: `parse` has checked the IP header.
        return unsafe { (frame.read(packet.source()), frame.read(packet.destination())) };
    }
    // SAFETY: see above.
    let [source, destination]: [[u8; 4]; 2] = unsafe { frame.read(packet.source()) };
    (padded(source), padded(destination))
}

#[inline(always)]
fn padded([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

#[inline(always)]
fn tell(passive: Passive) {
    // A full ring: the daemon is behind, and hears of the next.
    if let Some(mut entry) = PASSIVE.reserve::<Passive>(0) {
        entry.write(passive);
        entry.submit(0);
    }
}

/// For spans shorter than a tick.
#[inline(always)]
fn exact() -> u64 {
    // SAFETY: takes no argument.
    unsafe { bpf_ktime_get_ns() }
}
