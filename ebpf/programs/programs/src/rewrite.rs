//! What a forwarded packet looks like on its way out.

use abi::{Flow, Rewrite, checksum};

use crate::packet::{Frame, Packet, protocol};

/// The hop that the router is, and the address and port that NAT changes. TCP's and UDP's checksum is left: see
/// [`l4_checksum`].
///
/// # Safety
/// `packet` was parsed from `frame` and is not left to the kernel.
#[inline(always)]
pub unsafe fn headers(frame: Frame<'_>, packet: &Packet, flow: &Flow) {
    let hops = packet.ip + if packet.v6 { 7 } else { 8 };
    // SAFETY: `parse` has checked the IP header, and that there is a hop left.
    let left: u8 = unsafe { frame.read(hops) };
    // SAFETY: see above.
    unsafe { frame.write(hops, left.wrapping_sub(1)) };
    if !packet.v6 {
        // SAFETY: see above.
        let old = unsafe { frame.read(packet.ip + 10) };
        // SAFETY: see above.
        unsafe { frame.write(packet.ip + 10, checksum::apply(old, checksum::add(flow.ip_delta, HOP))) };
    }
    let Some((address, port)) = changed(packet, flow) else { return };
    // SAFETY: `parse` has checked the IP header.
    unsafe { frame.write(address, word(&flow.address, 0)) };
    if packet.v6 {
        for at in [4, 8, 12] {
            // SAFETY: see above.
            unsafe { frame.write(address + at, word(&flow.address, at)) };
        }
    }
    // SAFETY: `parse` has checked the ports of whatever is not left to the kernel.
    unsafe { frame.write(port, u16::from_ne_bytes(flow.port)) };
}

/// The checksum of TCP or UDP as it lies in the frame. Not for an skb, whose checksum may be one that the card ends.
///
/// # Safety
/// As for [`headers`].
#[inline(always)]
pub unsafe fn l4_checksum(frame: Frame<'_>, packet: &Packet, flow: &Flow) {
    if packet.protocol == protocol::TCP {
        let at = packet.l4() + 16;
        // SAFETY: `parse` has checked the header.
        let old = unsafe { frame.read(at) };
        // SAFETY: see above.
        unsafe { frame.write(at, checksum::apply(old, flow.l4_delta)) };
    } else {
        let at = packet.l4() + 6;
        // SAFETY: see above.
        let old: u16 = unsafe { frame.read(at) };
        if old != 0 {
            let sum = checksum::apply(old, flow.l4_delta);
            // 0 says that there is no checksum.
            // SAFETY: see above.
            unsafe { frame.write(at, if sum == 0 { 0xffff } else { sum }) };
        }
    }
}

/// Where the address and the port are that NAT changes.
#[inline(always)]
pub fn changed(packet: &Packet, flow: &Flow) -> Option<(usize, usize)> {
    if flow.rewrite == Rewrite::Source as u8 {
        Some((packet.source(), packet.l4()))
    } else if flow.rewrite == Rewrite::Destination as u8 {
        Some((packet.destination(), packet.l4() + 2))
    } else {
        None
    }
}

/// The MACs of the way out.
///
/// # Safety
/// `frame` has an Ethernet header.
#[inline(always)]
pub unsafe fn macs(frame: Frame<'_>, flow: &Flow) {
    let [to, from] = [&flow.destination_mac, &flow.source_mac];
    // SAFETY: the caller's promise.
    unsafe { frame.write(0, u32::from_ne_bytes([to[0], to[1], to[2], to[3]])) };
    // SAFETY: see above.
    unsafe { frame.write(4, u16::from_ne_bytes([to[4], to[5]])) };
    // SAFETY: see above.
    unsafe { frame.write(6, u32::from_ne_bytes([from[0], from[1], from[2], from[3]])) };
    // SAFETY: see above.
    unsafe { frame.write(10, u16::from_ne_bytes([from[4], from[5]])) };
}

#[inline(always)]
pub const fn word(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What the checksum of the IPv4 header gains when the TTL loses one: its byte is the first of its word.
const HOP: u16 = u16::from_ne_bytes([1, 0]);
