//! `generate` turns each live frame of a test run into the next packet of a [`Load`] and sends it; `sink` counts what
//! arrives and drops it. Pages come back as they left, rewritten by the router: every header field is written anew.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod kernel {
    use abi::{Count, Load};
    use aya_ebpf::bindings::xdp_action;
    use aya_ebpf::helpers::bpf_redirect;
    use aya_ebpf::macros::{map, xdp};
    use aya_ebpf::maps::{Array, PerCpuArray};
    use aya_ebpf::programs::XdpContext;

    #[map]
    static LOADS: Array<Load> = Array::with_max_entries(1, 0);
    /// How many packets were sent.
    #[map]
    static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
    /// What arrived with the destination port of the load.
    #[map]
    static ARRIVED: PerCpuArray<Count> = PerCpuArray::with_max_entries(1, 0);

    const ETH: usize = 14;
    const IP: usize = 20;
    const UDP: usize = 8;

    #[xdp]
    fn generate(ctx: XdpContext) -> u32 {
        send(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
    }

    /// The next packet of the load, in place of the frame.
    #[inline(always)]
    fn send(ctx: &XdpContext) -> Option<u32> {
        let load = LOADS.get(0)?;
        let sent = SENT.get_ptr_mut(0)?;
        // SAFETY: the pointer of a per-CPU element, which nothing else writes while this program runs.
        let nth = unsafe { *sent };
        // SAFETY: as above.
        unsafe { *sent = nth + 1 };
        let (data, end) = (ctx.data(), ctx.data_end());
        if data + ETH + IP + UDP > end {
            return None;
        }
        let length = (end - data - ETH) as u16;
        let flow = (nth % u64::from(load.flows.max(1))) as u32;
        let source = u32::from_be_bytes(load.source) + (flow >> 15);
        let port = (flow & 0x7fff) as u16 + 16384;

        write(data, load.destination_mac);
        write(data + 6, load.source_mac);
        write(data + 12, 0x0800_u16.to_be());
        let ip = data + ETH;
        write(ip, 0x4500_u16.to_be());
        write(ip + 2, length.to_be());
        write(ip + 4, 0_u32);
        write(ip + 8, 0x4011_u16.to_be());
        let destination = u32::from_be_bytes(load.destination);
        let sum = 0x4500_u32
            + u32::from(length)
            + 0x4011
            + (source >> 16)
            + (source & 0xffff)
            + (destination >> 16)
            + (destination & 0xffff);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        write(ip + 10, (!(sum as u16)).to_be());
        write(ip + 12, source.to_be());
        write(ip + 16, destination.to_be());
        let udp = ip + IP;
        write(udp, port.to_be());
        write(udp + 2, load.destination_port);
        write(udp + 4, (length - IP as u16).to_be());
        // No checksum, which IPv4 allows.
        write(udp + 6, 0_u16);
        // SAFETY: a helper without pointers.
        Some(unsafe { bpf_redirect(load.port, 0) } as u32)
    }

    #[inline(always)]
    fn write<T>(at: usize, value: T) {
        // SAFETY: the caller has checked that the headers lie before the end of the packet.
        unsafe { (at as *mut T).write_unaligned(value) };
    }

    #[inline(always)]
    fn read<T>(at: usize) -> T {
        // SAFETY: the caller has checked that the headers lie before the end of the packet.
        unsafe { (at as *const T).read_unaligned() }
    }

    #[inline(always)]
    fn swap<T>(a: usize, b: usize) {
        // SAFETY: the caller has checked that the headers lie before the end of the packet.
        let (x, y) = unsafe { ((a as *const T).read_unaligned(), (b as *const T).read_unaligned()) };
        write(a, y);
        write(b, x);
    }

    /// Neither fragment nor options: what the generator sends. Everything else is the kernel's business, ARP above all.
    #[inline(always)]
    fn is_udp(data: usize, end: usize) -> bool {
        data + ETH + IP + UDP <= end
            && read::<u16>(data + 12) == 0x0800_u16.to_be()
            && read::<u8>(data + ETH) == 0x45
            && read::<u8>(data + ETH + 9) == 17
    }

    /// Drops UDP: what comes back to where it was generated.
    #[xdp]
    fn swallow(ctx: XdpContext) -> u32 {
        if is_udp(ctx.data(), ctx.data_end()) { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
    }

    #[xdp]
    fn sink(ctx: XdpContext) -> u32 {
        let (data, end) = (ctx.data(), ctx.data_end());
        let (Some(load), Some(count)) = (LOADS.get(0), ARRIVED.get_ptr_mut(0)) else { return xdp_action::XDP_PASS };
        if !is_udp(data, end) || read::<[u8; 2]>(data + ETH + IP + 2) != load.destination_port {
            return xdp_action::XDP_PASS;
        }
        // SAFETY: the pointer of a per-CPU element, which nothing else writes while this program runs.
        let count = unsafe { &mut *count };
        count.packets += 1;
        count.bytes += (end - data) as u64;
        if load.reflect == 0 {
            return xdp_action::XDP_DROP;
        }
        swap::<[u8; 6]>(data, data + 6);
        swap::<u32>(data + ETH + 12, data + ETH + 16);
        swap::<u16>(data + ETH + IP, data + ETH + IP + 2);
        // XDP_TX wakes a veth's other end only where that has a program too.
        // SAFETY: a helper without pointers.
        unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0) as u32 }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// Helpers that only GPL programs may call are among those we use.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";
}
