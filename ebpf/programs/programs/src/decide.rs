//! Decisions: plain functions of what the maps say.

use abi::{Bucket, Flow, Home, OUTSIDE, Settings, Silence, Verdict, Zone};

use crate::packet::{Frame, Packet};

/// A packet that came in elsewhere, or to another MAC, is none of this flow.
///
/// # Safety
/// `frame` has an Ethernet header.
#[inline(always)]
pub unsafe fn came_as(frame: Frame<'_>, packet: &Packet, port: u32, flow: &Flow) -> bool {
    // SAFETY: the caller's promise.
    flow.in_port == port && flow.in_vlan == packet.vlan && unsafe { is_to(frame, &flow.in_mac) }
}

/// # Safety
/// `frame` has an Ethernet header.
#[inline(always)]
pub unsafe fn is_to(frame: Frame<'_>, mac: &[u8; 6]) -> bool {
    // SAFETY: the caller's promise.
    let start: u32 = unsafe { frame.read(0) };
    // SAFETY: see above.
    let rest: u16 = unsafe { frame.read(4) };
    start == u32::from_ne_bytes([mac[0], mac[1], mac[2], mac[3]]) && rest == u16::from_ne_bytes([mac[4], mac[5]])
}

/// Whether a packet that comes in by `zone` may have a source that lives in `home`.
#[inline(always)]
pub const fn source(zone: &Zone, home: Home) -> Result<(), Verdict> {
    if zone.wan != 0 {
        if home.what == Home::HOST && home.zone != OUTSIDE {
            return Err(Verdict::Spoofed);
        }
        if zone.checks & Zone::BOGONS != 0 && home.what == Home::BOGON {
            return Err(Verdict::Bogon);
        }
    } else if zone.checks & Zone::SPOOF != 0
        && (home.what == Home::BOGON || (home.what == Home::HOST && home.zone != zone.zone))
    {
        return Err(Verdict::Spoofed);
    }
    Ok(())
}

/// Takes a connection out of a source's bucket; false: it is empty.
#[inline(always)]
pub fn take(bucket: &mut Bucket, settings: &Settings, now: u64) -> bool {
    let most = u64::from(settings.new_burst) * CONNECTION;
    // An hour fills any bucket; and no product overflows.
    let idle = (now.saturating_sub(bucket.filled) / 1_000).min(3_600_000_000);
    let gained = idle * u64::from(settings.new_per_second) / 1_000;
    if gained > 0 {
        bucket.tokens = (bucket.tokens + gained).min(most);
        bucket.filled = now;
    }
    let taken = bucket.tokens >= CONNECTION;
    if taken {
        bucket.tokens -= CONNECTION;
    }
    taken
}

/// A packet of the flow with this hash went out by a line; true: tell the daemon that nothing comes back.
#[inline(always)]
pub fn grows_silent(silence: &mut Silence, settings: &Settings, hash: u32, now: u64) -> bool {
    let flow = 1 << (hash % 64);
    if silence.since == 0 {
        // `told` first: `since` is what says that the others are to be believed.
        silence.told = 0;
        silence.flows = flow;
        silence.since = now;
        return false;
    }
    if silence.flows & flow == 0 {
        silence.flows |= flow;
    }
    if silence.told != 0
        || now.saturating_sub(silence.since) < settings.silence_ns
        || silence.flows.count_ones() < settings.silence_flows
    {
        return false;
    }
    silence.told = now;
    true
}

/// Tells flows apart, for [`grows_silent`]: the ports and the ends of the addresses.
///
/// # Safety
/// `packet` was parsed from `frame`.
#[inline(always)]
pub unsafe fn hash(frame: Frame<'_>, packet: &Packet) -> u32 {
    let end = if packet.v6 { 12 } else { 0 };
    // SAFETY: `parse` has checked the IP header.
    let source: u32 = unsafe { frame.read(packet.source() + end) };
    // SAFETY: see above.
    let destination: u32 = unsafe { frame.read(packet.destination() + end) };
    let ports = u32::from(packet.source_port) << 16 | u32::from(packet.destination_port);
    // Multiplication carries to the high bits only: the best are at the top.
    (source ^ destination.rotate_left(16) ^ ports).wrapping_mul(0x9e37_79b1) >> 26
}

/// Thousandths.
pub const CONNECTION: u64 = 1_000;
