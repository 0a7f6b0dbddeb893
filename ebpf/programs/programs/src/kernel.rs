//! The programs: what a packet meets, in this order. Each ends in one [`Verdict`], which has a counter.

mod line;
mod maps;
mod port;
mod slow;

use abi::{Flow, Key4, Key6, Verdict};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_xdp_get_buff_len};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use programs::packet::{Frame, Packet, Tag, parse};

use maps::{FLOWS4, FLOWS6, SETTINGS, VERDICTS};

/// With `frags`, as a port whose MTU is beyond a page takes no other program; packets in several pieces are left to
/// the kernel, because not every port sends them.
#[xdp(frags)]
fn xdp_port(ctx: XdpContext) -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return xdp_action::XDP_PASS };
    // SAFETY: these are the bounds of the packet, and the verifier watches.
    let frame = unsafe { Frame::new(ctx.data() as *mut u8, ctx.data_end() as *mut u8) };
    let length = frame.length();
    let port = ctx.ingress_ifindex() as u32;
    let (verdict, action) = match parse(frame, Tag::INSIDE, length) {
        // In several pieces.
        // SAFETY: the context is that of this run.
        Err(Verdict::Malformed) if unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as usize > length => {
            (Verdict::TooLong, xdp_action::XDP_PASS)
        }
        Err(verdict) => (verdict, xdp_action::XDP_PASS),
        Ok(packet) => match port::forward_xdp(&ctx, frame, &packet, settings, port) {
            Ok(action) => (Verdict::Forwarded, action),
            Err(left) => match slow::left(frame, &packet, settings, port, left) {
                verdict if verdict.drops() => (verdict, xdp_action::XDP_DROP),
                verdict => (verdict, xdp_action::XDP_PASS),
            },
        },
    };
    count(verdict, length);
    action
}

#[classifier]
fn tc_port(ctx: TcContext) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return TC_ACT_UNSPEC };
    let port = skb::port(&ctx);
    let (verdict, action) = match skb::parse_port(&ctx) {
        Err(verdict) => (verdict, TC_ACT_UNSPEC),
        Ok((frame, packet)) => match port::forward_tc(&ctx, frame, &packet, settings, port) {
            Ok(action) => (Verdict::Forwarded, action),
            Err(left) => match slow::left(frame, &packet, settings, port, left) {
                verdict if verdict.drops() => (verdict, TC_ACT_SHOT),
                verdict => (verdict, TC_ACT_UNSPEC),
            },
        },
    };
    count(verdict, ctx.len() as usize);
    action
}

/// Sees what the kernel sends by a line and what `tc_port` redirects there.
#[classifier]
fn tc_line(ctx: TcContext) -> i32 {
    if let Some(settings) = SETTINGS.get(0)
        && let Ok((frame, packet)) = skb::parse_line(&ctx)
    {
        line::leaves(frame, &packet, settings, skb::port(&ctx));
    }
    TC_ACT_UNSPEC
}

mod skb {
    use abi::Verdict;
    use aya_ebpf::programs::TcContext;
    use programs::packet::{Frame, Packet, Tag, ethertype, parse};

    #[inline(always)]
    pub(super) fn parse_port(ctx: &TcContext) -> Result<(Frame<'_>, Packet), Verdict> {
        let tag = tag(ctx)?;
        let frame = frame(ctx);
        Ok((frame, parse(frame, tag, ctx.len() as usize)?))
    }

    /// On the way out of a port a tag may still be in the frame.
    #[inline(always)]
    pub(super) fn parse_line(ctx: &TcContext) -> Result<(Frame<'_>, Packet), Verdict> {
        // SAFETY: a field of the context.
        let mark = unsafe { (*ctx.skb.skb).mark };
        if mark & PROBE != 0 {
            return Err(Verdict::OtherProtocol);
        }
        let beside = tag(ctx)?;
        let tag = Tag { inside: beside.beside == 0, ..beside };
        let frame = frame(ctx);
        Ok((frame, parse(frame, tag, ctx.len() as usize)?))
    }

    /// In one piece are at least the headers that we read.
    #[inline(always)]
    fn frame(ctx: &TcContext) -> Frame<'_> {
        let wanted = ctx.len().min(HEADERS);
        // Where it fails, the parser finds the packet too short.
        if ctx.data_end() - ctx.data() < wanted as usize && ctx.pull_data(wanted).is_err() {}
        // SAFETY: these are the bounds of the packet, and the verifier watches.
        unsafe { Frame::new(ctx.data() as *mut u8, ctx.data_end() as *mut u8) }
    }

    #[inline(always)]
    fn tag(ctx: &TcContext) -> Result<Tag, Verdict> {
        let skb = ctx.skb.skb;
        // SAFETY: a field of the context.
        if unsafe { (*skb).vlan_present } == 0 {
            return Ok(Tag::beside(0));
        }
        // SAFETY: see above.
        if unsafe { (*skb).vlan_proto } != u32::from(ethertype::VLAN.to_be()) {
            return Err(Verdict::OddTag);
        }
        // SAFETY: see above.
        Ok(Tag::beside(unsafe { (*skb).vlan_tci } as u16 & 0x0fff))
    }

    #[inline(always)]
    pub(super) fn port(ctx: &TcContext) -> u32 {
        // Volatile: the compiler must not move the address of the field, which the verifier takes only within the load.
        // SAFETY: a field of the context.
        unsafe { (&raw const (*ctx.skb.skb).ifindex).read_volatile() }
    }

    /// Ethernet, a tag, IPv6 and TCP.
    const HEADERS: u32 = 18 + 40 + 20;
    /// The mark of the daemon's own probes.
    const PROBE: u32 = 1 << 31;
}

/// Coarse, of the last tick: a third of the price.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: takes no argument.
    unsafe { bpf_ktime_get_coarse_ns() }
}

#[inline(always)]
fn count(verdict: Verdict, bytes: usize) {
    if let Some(count) = VERDICTS.get_ptr_mut(verdict as u32) {
        maps::add(count, bytes as u64);
    }
}

/// The entry of the packet's flow. Entries are never freed, only reused: at worst a packet is counted for another.
#[inline(always)]
fn flow(frame: Frame<'_>, packet: &Packet) -> Option<*mut Flow> {
    let source_port = packet.source_port.to_ne_bytes();
    let destination_port = packet.destination_port.to_ne_bytes();
    if packet.v6 {
        let key = Key6 {
            // SAFETY: `parse` has checked the IP header.
            source: unsafe { frame.read(packet.source()) },
            // SAFETY: see above.
            destination: unsafe { frame.read(packet.destination()) },
            source_port,
            destination_port,
            protocol: packet.protocol,
            _0: [0; 3],
        };
        FLOWS6.get_ptr_mut(key)
    } else {
        let key = Key4 {
            // SAFETY: see above.
            source: unsafe { frame.read(packet.source()) },
            // SAFETY: see above.
            destination: unsafe { frame.read(packet.destination()) },
            source_port,
            destination_port,
            protocol: packet.protocol,
            _0: [0; 3],
        };
        FLOWS4.get_ptr_mut(key)
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers that only GPL programs may call are among those we use.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
