//! A frame, and what its headers say. Nothing here copies headers: the verifier follows scalars, and a struct on the
//! stack costs a memcpy.

use core::marker::PhantomData;

use abi::Verdict;

/// The bytes of a frame that lie in one piece.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    start: *mut u8,
    end: *mut u8,
    bytes: PhantomData<&'a mut [u8]>,
}

impl Frame<'_> {
    /// # Safety
    /// The bytes from `start` to `end` may be read and written for as long as the frame is used.
    #[inline(always)]
    pub const unsafe fn new(start: *mut u8, end: *mut u8) -> Self {
        Self { start, end, bytes: PhantomData }
    }

    /// The check that every read and write needs: the verifier knows the packet by nothing else.
    #[inline(always)]
    pub fn has(self, length: usize) -> bool {
        self.start.wrapping_add(length) <= self.end
    }

    #[inline(always)]
    pub fn length(self) -> usize {
        self.end as usize - self.start as usize
    }

    /// # Safety
    /// [`Frame::has`] said yes to `at + size_of::<T>()`, and every bit pattern is a `T`.
    #[inline(always)]
    pub unsafe fn read<T: Copy>(self, at: usize) -> T {
        debug_assert!(self.has(at + size_of::<T>()), "read of {at} beyond the frame");
        // SAFETY: the caller's promise.
        unsafe { self.start.wrapping_add(at).cast::<T>().read_unaligned() }
    }

    /// # Safety
    /// [`Frame::has`] said yes to `at + size_of::<T>()`.
    #[inline(always)]
    pub unsafe fn write<T: Copy>(self, at: usize, value: T) {
        debug_assert!(self.has(at + size_of::<T>()), "write of {at} beyond the frame");
        // SAFETY: the caller's promise.
        unsafe { self.start.wrapping_add(at).cast::<T>().write_unaligned(value) };
    }

    /// # Safety
    /// As for [`Frame::read`].
    #[inline(always)]
    unsafe fn number(self, at: usize) -> u16 {
        // SAFETY: the caller's promise.
        u16::from_be(unsafe { self.read(at) })
    }
}

impl<'a> From<&'a mut [u8]> for Frame<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        let range = bytes.as_mut_ptr_range();
        Self { start: range.start, end: range.end, bytes: PhantomData }
    }
}

/// Where a program sees the VLAN tag. No enum: the verifier takes no word, not even an unused one, that was not written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// It may be in the frame, as for XDP.
    pub inside: bool,
    /// The one beside the frame, as TC has it; 0 is untagged.
    pub beside: u16,
}

impl Tag {
    pub const INSIDE: Self = Self { inside: true, beside: 0 };

    #[inline(always)]
    pub const fn beside(vlan: u16) -> Self {
        Self { inside: false, beside: vlan }
    }
}

/// An IP packet whose lengths are sound. [`parse`] has checked that the frame has the whole IP header without options
/// and, where `left` is [`Verdict::Forwarded`] or the protocol is TCP, the header of TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Where the IP header is in the frame.
    pub ip: usize,
    /// 0 is untagged.
    pub vlan: u16,
    pub v6: bool,
    pub protocol: u8,
    /// Of TCP; 0 for all others, and where they cannot be read.
    pub flags: u8,
    /// From the IP header on.
    pub length: u32,
    /// As they lie in the packet; 0 where they cannot be read.
    pub source_port: u16,
    pub destination_port: u16,
    /// Why it is left to the kernel; [`Verdict::Forwarded`]: it need not be.
    pub left: Verdict,
}

impl Packet {
    /// Where TCP or UDP is in the frame.
    #[inline(always)]
    pub const fn l4(&self) -> usize {
        self.ip + if self.v6 { IPV6 } else { IPV4 }
    }

    /// Where the source address is in the frame.
    #[inline(always)]
    pub const fn source(&self) -> usize {
        self.ip + if self.v6 { 8 } else { 12 }
    }

    #[inline(always)]
    pub const fn destination(&self) -> usize {
        self.ip + if self.v6 { 24 } else { 16 }
    }

    /// Opens a TCP connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
    }

    /// Answers one that opens.
    #[inline(always)]
    pub const fn accepts(&self) -> bool {
        self.flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN | tcp::ACK
    }
}

/// `length` is that of the whole frame, of which `frame` may hold but the beginning.
#[inline(always)]
pub fn parse(frame: Frame<'_>, tag: Tag, length: usize) -> Result<Packet, Verdict> {
    if !frame.has(ETHERNET) {
        return Err(Verdict::Malformed);
    }
    // SAFETY: checked above.
    let outer: u16 = unsafe { frame.number(12) };
    match outer {
        ethertype::IPV4 => parse4(frame, ETHERNET, tag.beside, length),
        ethertype::IPV6 => parse6(frame, ETHERNET, tag.beside, length),
        ethertype::VLAN if tag.inside => {
            if !frame.has(TAGGED) {
                return Err(Verdict::Malformed);
            }
            // SAFETY: checked above.
            let vlan = unsafe { frame.number(14) } & VLAN_ID;
            // SAFETY: checked above.
            match unsafe { frame.number(16) } {
                ethertype::IPV4 => parse4(frame, TAGGED, vlan, length),
                ethertype::IPV6 => parse6(frame, TAGGED, vlan, length),
                ethertype::VLAN | ethertype::SERVICE_VLAN => Err(Verdict::OddTag),
                _ => Err(Verdict::NotIp),
            }
        }
        ethertype::VLAN | ethertype::SERVICE_VLAN => Err(Verdict::OddTag),
        _ => Err(Verdict::NotIp),
    }
}

#[inline(always)]
fn parse4(frame: Frame<'_>, ip: usize, vlan: u16, room: usize) -> Result<Packet, Verdict> {
    if !frame.has(ip + IPV4) {
        return Err(Verdict::Malformed);
    }
    // SAFETY: checked above, as for the reads that follow.
    let first: u8 = unsafe { frame.read(ip) };
    let header = usize::from(first & 0x0f) * 4;
    // SAFETY: see above.
    let length = unsafe { frame.number(ip + 2) };
    if first >> 4 != 4 || header < IPV4 || usize::from(length) < header || ip + usize::from(length) > room {
        return Err(Verdict::Malformed);
    }
    // SAFETY: see above. More fragments, or an offset.
    let fragment = unsafe { frame.number(ip + 6) } & 0x3fff != 0;
    // SAFETY: see above.
    let hops: u8 = unsafe { frame.read(ip + 8) };
    // SAFETY: see above.
    let protocol: u8 = unsafe { frame.read(ip + 9) };
    let packet = Packet {
        ip,
        vlan,
        v6: false,
        protocol,
        flags: 0,
        length: u32::from(length),
        source_port: 0,
        destination_port: 0,
        left: Verdict::Forwarded,
    };
    if fragment {
        return Ok(Packet { left: Verdict::Fragment, ..packet });
    }
    if header != IPV4 {
        return Ok(Packet { left: Verdict::IpOptions, ..packet });
    }
    parse_l4(frame, packet, ip + IPV4, usize::from(length) - IPV4, hops)
}

#[inline(always)]
fn parse6(frame: Frame<'_>, ip: usize, vlan: u16, room: usize) -> Result<Packet, Verdict> {
    if !frame.has(ip + IPV6) {
        return Err(Verdict::Malformed);
    }
    // SAFETY: checked above, as for the reads that follow.
    let first: u8 = unsafe { frame.read(ip) };
    // SAFETY: see above.
    let payload = usize::from(unsafe { frame.number(ip + 4) });
    if first >> 4 != 6 || ip + IPV6 + payload > room {
        return Err(Verdict::Malformed);
    }
    // SAFETY: see above.
    let protocol: u8 = unsafe { frame.read(ip + 6) };
    // SAFETY: see above.
    let hops: u8 = unsafe { frame.read(ip + 7) };
    let packet = Packet {
        ip,
        vlan,
        v6: true,
        protocol,
        flags: 0,
        length: (IPV6 + payload) as u32,
        source_port: 0,
        destination_port: 0,
        left: Verdict::Forwarded,
    };
    match protocol {
        protocol::FRAGMENT => Ok(Packet { left: Verdict::Fragment, ..packet }),
        protocol::HOP_BY_HOP
        | protocol::ROUTING
        | protocol::AUTHENTICATION
        | protocol::DESTINATION_OPTIONS
        | protocol::MOBILITY
        | protocol::HOST_IDENTITY
        | protocol::SHIM6 => Ok(Packet { left: Verdict::IpOptions, ..packet }),
        _ => parse_l4(frame, packet, ip + IPV6, payload, hops),
    }
}

#[inline(always)]
fn parse_l4(frame: Frame<'_>, packet: Packet, l4: usize, length: usize, hops: u8) -> Result<Packet, Verdict> {
    let flags = match packet.protocol {
        protocol::TCP => {
            if !frame.has(l4 + TCP) || length < TCP {
                return Err(Verdict::Malformed);
            }
            // SAFETY: checked above.
            let header = usize::from(unsafe { frame.read::<u8>(l4 + 12) } >> 4) * 4;
            if header < TCP || header > length {
                return Err(Verdict::Malformed);
            }
            // SAFETY: checked above.
            unsafe { frame.read::<u8>(l4 + 13) }
        }
        protocol::UDP => {
            if !frame.has(l4 + UDP) || length < UDP {
                return Err(Verdict::Malformed);
            }
            // SAFETY: checked above.
            let own = usize::from(unsafe { frame.number(l4 + 4) });
            if own < UDP || own > length {
                return Err(Verdict::Malformed);
            }
            0
        }
        _ => return Ok(Packet { left: Verdict::OtherProtocol, ..packet }),
    };
    let left = if flags & (tcp::FIN | tcp::SYN | tcp::RST) != 0 {
        Verdict::TcpControl
    } else if hops <= 1 {
        Verdict::TtlExpires
    } else {
        Verdict::Forwarded
    };
    // SAFETY: both headers are at least this long, checked above.
    let source_port = unsafe { frame.read(l4) };
    // SAFETY: see above.
    let destination_port = unsafe { frame.read(l4 + 2) };
    Ok(Packet { flags, source_port, destination_port, left, ..packet })
}

/// Lengths of headers without options.
pub const ETHERNET: usize = 14;
pub const TAGGED: usize = 18;
pub const IPV4: usize = 20;
pub const IPV6: usize = 40;
pub const TCP: usize = 20;
pub const UDP: usize = 8;

const VLAN_ID: u16 = 0x0fff;

pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HOST_IDENTITY: u8 = 139;
    pub const SHIM6: u8 = 140;
}

mod tcp {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const SYN: u8 = 0x02;
    pub(super) const RST: u8 = 0x04;
    pub(super) const ACK: u8 = 0x10;
}
