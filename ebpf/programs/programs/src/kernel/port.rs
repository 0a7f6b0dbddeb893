//! Forwards the packets of known flows without the kernel. Until the last check has passed the packet is not touched.

use abi::{Flow, Settings, Verdict};
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, xdp_action};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_skb_vlan_pop, bpf_skb_vlan_push,
    bpf_xdp_adjust_head,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use programs::packet::{ETHERNET, Frame, Packet, TAGGED, UDP, ethertype, protocol};
use programs::{decide, rewrite};

use super::maps::{GENERATIONS, PORTS};
use super::{line, now};

#[inline(always)]
pub(super) fn forward_xdp(
    ctx: &XdpContext,
    frame: Frame<'_>,
    packet: &Packet,
    settings: &Settings,
    port: u32,
) -> Result<u32, Verdict> {
    let entry = known(frame, packet, settings, port)?;
    // SAFETY: a map's value.
    let flow = unsafe { &*entry };
    if packet.length > u32::from(flow.mtu) {
        return Err(Verdict::TooLong);
    }
    // First, as it says whether there is such a port: nothing is sent before the program ends.
    if PORTS.redirect(flow.out_port, u64::from(xdp_action::XDP_PASS)).is_err() {
        return Err(Verdict::WrongPort);
    }
    let now = now();
    carried(entry, frame, packet, now);
    // What goes out here passes no TCX program on its way.
    if flow.flags & Flow::OUTWARD != 0 {
        // SAFETY: `packet` was parsed from `frame`.
        line::sent(flow.slot, packet.length, settings, || unsafe { decide::hash(frame, packet) }, now);
    } else {
        line::received(flow.slot, packet.length);
    }
    // SAFETY: parsed from this frame, and not left to the kernel.
    unsafe { rewrite::headers(frame, packet, flow) };
    // SAFETY: see above.
    unsafe { rewrite::l4_checksum(frame, packet, flow) };
    let tagged = packet.ip == TAGGED;
    let grow = match (tagged, flow.out_vlan != 0) {
        (true, false) => 4,
        (false, true) => -4,
        (true, true) | (false, false) => {
            // SAFETY: `parse` has checked the Ethernet header.
            unsafe { rewrite::macs(frame, flow) };
            if tagged {
                // SAFETY: `parse` has checked the tag.
                unsafe { frame.write(ETHERNET, flow.out_vlan.to_be()) };
            }
            return Ok(xdp_action::XDP_REDIRECT);
        }
    };
    // SAFETY: the context is that of this run. Without room the packet is lost, and the kernel's tracepoint tells.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, grow) } != 0 {
        return Ok(xdp_action::XDP_ABORTED);
    }
    // SAFETY: these are the bounds of the packet, and the verifier watches.
    let frame = unsafe { Frame::new(ctx.data() as *mut u8, ctx.data_end() as *mut u8) };
    if !frame.has(TAGGED) {
        return Ok(xdp_action::XDP_ABORTED);
    }
    // SAFETY: checked above.
    unsafe { rewrite::macs(frame, flow) };
    if !tagged {
        // SAFETY: checked above.
        unsafe { frame.write(12, ethertype::VLAN.to_be()) };
        // SAFETY: checked above.
        unsafe { frame.write(14, flow.out_vlan.to_be()) };
    }
    Ok(xdp_action::XDP_REDIRECT)
}

#[inline(always)]
pub(super) fn forward_tc(
    ctx: &TcContext,
    frame: Frame<'_>,
    packet: &Packet,
    settings: &Settings,
    port: u32,
) -> Result<i32, Verdict> {
    let entry = known(frame, packet, settings, port)?;
    // SAFETY: a map's value.
    let flow = unsafe { &*entry };
    if longest(ctx, frame, packet) > u32::from(flow.mtu) {
        return Err(Verdict::TooLong);
    }
    carried(entry, frame, packet, now());
    if flow.flags & Flow::OUTWARD == 0 {
        line::received(flow.slot, packet.length);
    }
    let skb = ctx.skb.skb;
    let at = packet.l4() + if packet.protocol == protocol::TCP { 16 } else { 6 };
    // A checksum of UDP that is none stays none.
    let udp = if packet.protocol == protocol::UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    let new = [
        rewrite::word(&flow.address, 0),
        rewrite::word(&flow.address, 4),
        rewrite::word(&flow.address, 8),
        rewrite::word(&flow.address, 12),
    ];
    let (mut old, mut old_port) = ([0_u32; 4], 0_u16);
    let changed = rewrite::changed(packet, flow);
    if let Some((address, port)) = changed {
        // SAFETY: `parse` has checked the headers.
        old[0] = unsafe { frame.read(address) };
        if packet.v6 {
            // SAFETY: see above.
            old[1] = unsafe { frame.read(address + 4) };
            // SAFETY: see above.
            old[2] = unsafe { frame.read(address + 8) };
            // SAFETY: see above.
            old[3] = unsafe { frame.read(address + 12) };
        }
        // SAFETY: see above.
        old_port = unsafe { frame.read(port) };
    }
    // SAFETY: parsed from this frame, and not left to the kernel.
    unsafe { rewrite::headers(frame, packet, flow) };
    // SAFETY: `parse` has checked the Ethernet header.
    unsafe { rewrite::macs(frame, flow) };
    // The frame is not used any more: the helpers may move it.
    let mut failed = 0;
    // What the card summed up over the packet loses a hop. IPv4's header has a checksum that makes up for it.
    let mut summed = if packet.v6 { HOP_LESS } else { 0 };
    if changed.is_some() {
        let (from, to, size) = if packet.v6 {
            // SAFETY: both arrays are 16 bytes.
            let change = unsafe { bpf_csum_diff(old.as_mut_ptr(), 16, new.as_ptr().cast_mut(), 16, 0) };
            (0, change as u64 & 0xffff_ffff, 0)
        } else {
            (u64::from(old[0]), u64::from(new[0]), 4)
        };
        let flags = u64::from(BPF_F_PSEUDO_HDR) | udp | size;
        // SAFETY: the context is that of this run.
        failed |= unsafe { bpf_l4_csum_replace(skb, at as u32, from, to, flags) };
        let port = u64::from(u16::from_ne_bytes(flow.port));
        // SAFETY: see above.
        failed |= unsafe { bpf_l4_csum_replace(skb, at as u32, u64::from(old_port), port, udp | 2) };
        if packet.v6 {
            // The helper takes the address for one in a header with a checksum, and the sum for lessened by it.
            let (sum, carry) = summed.overflowing_add(to as u32);
            summed = sum + u32::from(carry);
        }
    }
    if packet.v6 {
        // SAFETY: see above. It refuses where the card summed up nothing.
        unsafe { bpf_csum_update(skb, summed) };
    }
    if packet.vlan != flow.out_vlan {
        if packet.vlan != 0 {
            // SAFETY: see above.
            failed |= unsafe { bpf_skb_vlan_pop(skb) };
        }
        if flow.out_vlan != 0 {
            // SAFETY: see above.
            failed |= unsafe { bpf_skb_vlan_push(skb, ethertype::VLAN.to_be(), flow.out_vlan) };
        }
    }
    if failed != 0 {
        return Ok(TC_ACT_SHOT);
    }
    // SAFETY: takes numbers only.
    Ok(unsafe { bpf_redirect(flow.out_port, 0) } as i32)
}

/// The entry of a flow whose packets come in like this one, in the generation in force.
#[inline(always)]
fn known(frame: Frame<'_>, packet: &Packet, settings: &Settings, port: u32) -> Result<*mut Flow, Verdict> {
    if packet.left != Verdict::Forwarded {
        return Err(packet.left);
    }
    if settings.forward == 0 {
        return Err(Verdict::NoFlow);
    }
    let entry = super::flow(frame, packet).ok_or(Verdict::NoFlow)?;
    // SAFETY: a map's value.
    let flow = unsafe { &*entry };
    // SAFETY: `parse` has checked the Ethernet header.
    if !unsafe { decide::came_as(frame, packet, port, flow) } {
        return Err(Verdict::WrongPort);
    }
    if GENERATIONS.get(flow.slot) != Some(&flow.generation) {
        return Err(Verdict::StaleFlow);
    }
    Ok(entry)
}

/// The longest packet that leaves: a segment, where the card or the kernel cuts one up.
#[inline(always)]
fn longest(ctx: &TcContext, frame: Frame<'_>, packet: &Packet) -> u32 {
    // SAFETY: a field of the context.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment == 0 {
        return packet.length;
    }
    let l4 = if packet.protocol == protocol::TCP {
        // SAFETY: `parse` has checked the header.
        u32::from(unsafe { frame.read::<u8>(packet.l4() + 12) } >> 4) * 4
    } else {
        UDP as u32
    };
    (packet.l4() - packet.ip) as u32 + l4 + segment
}

/// Not atomic: the packets of a flow come in on one CPU, and where they do not a count is lost.
#[inline(always)]
fn carried(entry: *mut Flow, frame: Frame<'_>, packet: &Packet, now: u64) {
    // SAFETY: a map's value.
    let flow = unsafe { &mut *entry };
    flow.last_seen = now;
    flow.packets += 1;
    flow.bytes += u64::from(packet.length);
    line::segment(frame, packet, flow);
}

/// A hop less in the sum over an IPv6 header, where it is the second byte of its word.
const HOP_LESS: u32 = !u16::from_ne_bytes([0, 1]) as u32;
