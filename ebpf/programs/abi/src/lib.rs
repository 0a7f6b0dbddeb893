//! Every byte that the programs in the kernel and the daemon share: the keys, values and names of the maps, and the
//! records of the ring buffers. Nothing else defines such bytes.
//!
//! No padding: each struct says what fills it. Addresses, ports and checksums stand in network order, as byte arrays
//! or as the `u16` that lies in the packet (`_be`); everything else in the machine's order. IPv4 and IPv6 flows have
//! maps of their own, because the key is hashed whole for every packet.
#![no_std]

/// Version of everything here. Pinned maps of another version are not adopted but built anew.
pub const LAYOUT: u32 = 1;

/// The names of maps and programs, as the loader and `bpftool` see them.
pub mod name {
    /// `HashMap<PortKey, Zone>`: where a packet comes from.
    pub const ZONES: &str = "ZONES";
    /// `LpmTrie<[u8; 4], Home>` and `LpmTrie<[u8; 16], Home>`: where an address lives.
    pub const HOMES4: &str = "HOMES4";
    pub const HOMES6: &str = "HOMES6";
    /// `Array<u32>` of [`super::PAIRS`]: [`super::PASS`] or [`super::DENY`] by [`super::pair`].
    pub const DENIED_PAIRS: &str = "DENIED_PAIRS";
    /// `PerCpuArray<Count>` of [`super::PAIRS`]: what was denied by [`super::pair`]; the pair of a zone with itself
    /// holds its spoofed packets.
    pub const DENIALS: &str = "DENIALS";
    /// `Array<u64>` of [`super::PAIRS`]: when a denied packet of the pair was last written to [`DENIED`]. The programs'
    /// own.
    pub const SAMPLED: &str = "SAMPLED";
    /// `PerCpuArray<Count>` of [`super::Verdict::COUNT`].
    pub const VERDICTS: &str = "VERDICTS";
    /// `LruHashMap<Key4, Flow>` and `LruHashMap<Key6, Flow>`.
    pub const FLOWS4: &str = "FLOWS4";
    pub const FLOWS6: &str = "FLOWS6";
    /// `Array<u32>` of [`super::SLOTS`]: the generation in force, by [`super::slot`].
    pub const GENERATIONS: &str = "GENERATIONS";
    /// `DevMapHash`: the ports that XDP may redirect to, each under its own index.
    pub const PORTS: &str = "PORTS";
    /// `Array<Settings>` of one.
    pub const SETTINGS: &str = "SETTINGS";
    /// `LruHashMap<Source, Bucket>`: new flows of each source outside.
    pub const NEWCOMERS: &str = "NEWCOMERS";
    /// `PerCpuArray<LineCount>` of [`super::SLOTS`]: what each line carried.
    pub const LINES: &str = "LINES";
    /// `Array<Silence>` of [`super::SLOTS`]: how long a line has answered nothing.
    pub const SILENCES: &str = "SILENCES";
    /// `LruHashMap<Handshake, u64>`: when a SYN left, in nanoseconds of the monotonic clock.
    pub const HANDSHAKES: &str = "HANDSHAKES";
    /// `RingBuf` of [`super::Denied`].
    pub const DENIED: &str = "DENIED";
    /// `RingBuf` of [`super::Passive`].
    pub const PASSIVE: &str = "PASSIVE";

    /// XDP, on the ports whose driver has it.
    pub const XDP_PORT: &str = "xdp_port";
    /// TCX ingress, on all others.
    pub const TC_PORT: &str = "tc_port";
    /// TCX egress, on the interfaces of lines: measures what the kernel itself sends.
    pub const TC_LINE: &str = "tc_line";
}

/// Zones are numbered from 1; 0 is everything that is behind the lines.
pub const OUTSIDE: u16 = 0;
/// One more than the highest number of a zone. Sites with more VLANs leave the rest to nft.
pub const MAX_ZONES: u16 = 256;
/// Pairs of zones.
pub const PAIRS: u32 = MAX_ZONES as u32 * MAX_ZONES as u32;

/// Index of the pair of zones a packet goes from and to.
#[inline(always)]
pub const fn pair(from: u16, to: u16) -> u32 {
    (from % MAX_ZONES) as u32 * MAX_ZONES as u32 + (to % MAX_ZONES) as u32
}

/// Values of `DENIED_PAIRS`: nothing passes between these zones in either direction, or the ruleset decides.
pub const PASS: u32 = 0;
pub const DENY: u32 = 1;

/// Lines are numbered 1 to 120; slots 0 and 1 are the flows that use no line.
pub const SLOTS: u32 = 256;

/// Index of a line in a family.
#[inline(always)]
pub const fn slot(wan: u8, v6: bool) -> u32 {
    (wan % 128) as u32 * 2 + v6 as u32
}

/// A port, and the VLAN tag a packet carries there; 0 is untagged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct PortKey {
    pub port: u32,
    pub vlan: u16,
    pub _0: u16,
}

/// Where packets that come in by a [`PortKey`] are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Zone {
    /// Number of the VLAN's zone; [`OUTSIDE`] for a line.
    pub zone: u16,
    /// The line; 0 for a VLAN.
    pub wan: u8,
    /// [`Zone::BOGONS`], [`Zone::SPOOF`], [`Zone::RATE`].
    pub checks: u8,
    /// The router's MAC there. Frames to others are bridged and none of our business.
    pub mac: [u8; 6],
    pub _0: u16,
}

impl Zone {
    /// Drop sources of [`Home::BOGON`].
    pub const BOGONS: u8 = 1;
    /// Drop sources that live elsewhere.
    pub const SPOOF: u8 = 2;
    /// Limit TCP connections that a source outside opens.
    pub const RATE: u8 = 4;
}

/// Where an address lives: the value of a prefix. An address without one is [`OUTSIDE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Home {
    pub zone: u16,
    pub what: u16,
}

impl Home {
    /// A host's.
    pub const HOST: u16 = 0;
    /// Multicast, broadcast, link-local, the router's own: left to the ruleset, as a source and as a destination.
    pub const LEAVE: u16 = 1;
    /// May be no source on a line.
    pub const BOGON: u16 = 2;
    /// Claimed by several zones: left to the ruleset.
    pub const AMBIGUOUS: u16 = 3;
}

/// A flow in one direction, as its packets come in. Ports in network order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Key4 {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    /// 6 or 17.
    pub protocol: u8,
    pub _0: [u8; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Key6 {
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    pub protocol: u8,
    pub _0: [u8; 3],
}

/// What is done with the packets of a flow in one direction. The daemon writes it, the programs write `highest` and
/// the last three fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Good while this is the generation in force of `slot`.
    pub generation: u32,
    /// [`slot`] of the line, whichever way the packet goes.
    pub slot: u32,
    /// A packet that comes in elsewhere is none of this flow.
    pub in_port: u32,
    pub out_port: u32,
    /// Tags; 0 is untagged.
    pub in_vlan: u16,
    pub out_vlan: u16,
    /// The longest packet, from its IP header on, that the way out takes.
    pub mtu: u16,
    /// [`Rewrite`] as a number.
    pub rewrite: u8,
    /// Bit 0: the packet leaves by the line (counted as sent); else it came in by it.
    pub flags: u8,
    /// The router's MAC on the port the packet comes in by.
    pub in_mac: [u8; 6],
    /// MACs of the frame that leaves.
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    /// What takes the place of the port, and below of the address, that `rewrite` names.
    pub port: [u8; 2],
    pub address: [u8; 16],
    /// To be added (RFC 1624, one's complement) to the checksum of the IPv4 header for the new address, without the
    /// TTL; and to that of TCP or UDP for the new address and port.
    pub ip_delta: u16,
    pub l4_delta: u16,
    /// One beyond the highest TCP sequence number that was seen; 0: none was. The programs write it.
    pub highest: u32,
    pub _0: u32,
    /// Nanoseconds of the monotonic clock, coarse.
    pub last_seen: u64,
    pub packets: u64,
    /// IP length, as conntrack counts.
    pub bytes: u64,
}

impl Flow {
    pub const OUTWARD: u8 = 1;

    /// All zero: what a flow is made of that differs from it in some fields only.
    pub const EMPTY: Self = Self {
        generation: 0,
        slot: 0,
        in_port: 0,
        out_port: 0,
        in_vlan: 0,
        out_vlan: 0,
        mtu: 0,
        rewrite: Rewrite::Nothing as u8,
        flags: 0,
        in_mac: [0; 6],
        destination_mac: [0; 6],
        source_mac: [0; 6],
        port: [0; 2],
        address: [0; 16],
        ip_delta: 0,
        l4_delta: 0,
        highest: 0,
        _0: 0,
        last_seen: 0,
        packets: 0,
        bytes: 0,
    };
}

/// The one end of a packet that NAT changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rewrite {
    Nothing = 0,
    Source = 1,
    Destination = 2,
}

/// What became of a packet. Each has a counter and at least one golden packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Verdict {
    /// Sent on without the kernel.
    Forwarded = 0,
    // Left to the kernel, and why.
    NotIp,
    Malformed,
    Fragment,
    IpOptions,
    OtherProtocol,
    TcpControl,
    TtlExpires,
    TooLong,
    NoFlow,
    StaleFlow,
    WrongPort,
    /// Doubly tagged, or tagged where the program cannot see it.
    OddTag,
    /// Not to the router's MAC.
    Bridged,
    // Dropped, and why.
    DeniedPair,
    Spoofed,
    Bogon,
    TooManyNew,
}

impl Verdict {
    pub const ALL: [Self; 18] = [
        Self::Forwarded,
        Self::NotIp,
        Self::Malformed,
        Self::Fragment,
        Self::IpOptions,
        Self::OtherProtocol,
        Self::TcpControl,
        Self::TtlExpires,
        Self::TooLong,
        Self::NoFlow,
        Self::StaleFlow,
        Self::WrongPort,
        Self::OddTag,
        Self::Bridged,
        Self::DeniedPair,
        Self::Spoofed,
        Self::Bogon,
        Self::TooManyNew,
    ];
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// As metrics and `status` name it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::NotIp => "not_ip",
            Self::Malformed => "malformed",
            Self::Fragment => "fragment",
            Self::IpOptions => "ip_options",
            Self::OtherProtocol => "other_protocol",
            Self::TcpControl => "tcp_control",
            Self::TtlExpires => "ttl_expires",
            Self::TooLong => "too_long",
            Self::NoFlow => "no_flow",
            Self::StaleFlow => "stale_flow",
            Self::WrongPort => "wrong_port",
            Self::OddTag => "odd_tag",
            Self::Bridged => "bridged",
            Self::DeniedPair => "denied_pair",
            Self::Spoofed => "spoofed",
            Self::Bogon => "bogon",
            Self::TooManyNew => "too_many_new",
        }
    }

    pub const fn drops(self) -> bool {
        matches!(self, Self::DeniedPair | Self::Spoofed | Self::Bogon | Self::TooManyNew)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// What a line carried in a family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LineCount {
    pub sent: Count,
    pub received: Count,
    /// TCP segments with data of cached flows, both ways, and those of them that are older than what was seen before:
    /// sent again, or overtaken.
    pub segments: u64,
    pub retransmits: u64,
}

/// Since when nothing came back by a line. Any unicast packet that comes in by it ends the silence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Silence {
    /// When the first packet went out that nothing followed; 0: none did. Nanoseconds of the monotonic clock.
    pub since: u64,
    /// One bit per flow that sent since, by a hash of its tuple.
    pub flows: u64,
    /// When the daemon was told of this silence; 0: it was not.
    pub told: u64,
}

/// One for the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Flows are forwarded here; else every packet that is not denied goes to the kernel.
    pub forward: u32,
    /// Packets are denied here.
    pub deny: u32,
    /// The watchdog speaks after so many nanoseconds of silence; 0: never.
    pub silence_ns: u64,
    /// … and this many flows.
    pub silence_flows: u32,
    /// TCP connections a second that one source outside may open, and how many at once; 0: any.
    pub new_per_second: u32,
    pub new_burst: u32,
    /// At most one record of a denied packet per pair of zones in so many nanoseconds.
    pub sample_ns: u32,
}

/// A source outside: an IPv4 address in the first four bytes, or the /64 of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Source {
    pub address: [u8; 8],
    pub family: u32,
}

/// A token bucket, in thousandths of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    pub tokens: u64,
    pub filled: u64,
}

/// A TCP handshake under way, as its SYN left: inside NAT already. IPv4 addresses in the first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Handshake {
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub local_port: [u8; 2],
    pub remote_port: [u8; 2],
    pub slot: u32,
}

/// A sample of what was dropped here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Denied {
    pub at: u64,
    pub port: u32,
    /// [`Verdict`] as a number.
    pub verdict: u32,
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    pub vlan: u16,
    pub from: u16,
    pub to: u16,
    /// Whole IP packet.
    pub length: u16,
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    pub _0: [u8; 2],
}

/// What the programs noticed about a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Passive {
    pub at: u64,
    /// [`Passive::SILENT`], [`Passive::HANDSHAKE`], [`Passive::RESENT`].
    pub kind: u32,
    pub slot: u32,
    /// Nanoseconds of silence, or from SYN to SYN-ACK.
    pub span: u64,
    /// Silent flows; 0 for a handshake.
    pub flows: u32,
    pub _0: u32,
    /// The server of a handshake or of a segment.
    pub remote: [u8; 16],
}

impl Passive {
    pub const SILENT: u32 = 1;
    pub const HANDSHAKE: u32 = 2;
    /// A segment of a cached flow that is counted in [`LineCount::retransmits`]; `span` is 0.
    pub const RESENT: u32 = 3;
}

/// Internet checksums (RFC 1624): one's complement arithmetic on words as they lie in the packet.
pub mod checksum {
    #[inline(always)]
    pub const fn add(a: u16, b: u16) -> u16 {
        let sum = a as u32 + b as u32;
        (sum + (sum >> 16)) as u16
    }

    /// What a checksum over `old` gains when `new` takes its place. Both are as long, and even.
    pub fn delta(old: &[u8], new: &[u8]) -> u16 {
        let sum =
            |bytes: &[u8]| bytes.chunks_exact(2).fold(0, |sum, word| add(sum, u16::from_ne_bytes([word[0], word[1]])));
        add(sum(old), !sum(new))
    }

    /// Adds `delta`. Of the two zeros of one's complement the result has the one that computing anew gives.
    #[inline(always)]
    pub const fn apply(checksum: u16, delta: u16) -> u16 {
        !add(!checksum, !delta)
    }
}

/// What the generator of the bench sends: UDP over IPv4, to one destination port, of as many flows as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Load {
    /// Flow `n` is from this source address plus `n / 32768`, and from port `n % 32768 + 16384`.
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub destination_port: [u8; 2],
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    /// Not 0: the sink sends every packet back, for conntrack to see both directions.
    pub reflect: u16,
    pub flows: u32,
    /// The interface to send by.
    pub port: u32,
}

/// No struct has padding: what the kernel reads is what was written.
const _: () = {
    assert!(size_of::<PortKey>() == 8);
    assert!(size_of::<Zone>() == 12);
    assert!(size_of::<Home>() == 4);
    assert!(size_of::<Key4>() == 16);
    assert!(size_of::<Key6>() == 40);
    assert!(size_of::<Flow>() == 96);
    assert!(size_of::<Silence>() == 24);
    assert!(size_of::<Settings>() == 32);
    assert!(size_of::<Source>() == 12);
    assert!(size_of::<Bucket>() == 16);
    assert!(size_of::<Handshake>() == 40);
    assert!(size_of::<Denied>() == 64);
    assert!(size_of::<Passive>() == 48);
    assert!(size_of::<LineCount>() == 48);
    assert!(size_of::<Load>() == 32);
};

/// What maps hold may be read as bytes and back.
#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($name:ident),*) => {
            $(
                // SAFETY: a repr(C) struct of integers and arrays of them: no padding (above), every bit pattern valid.
                unsafe impl aya::Pod for super::$name {}
            )*
        };
    }

    pod!(PortKey, Zone, Home, Key4, Key6, Flow, Count, LineCount, Silence, Settings, Source, Bucket, Handshake, Load);

    macro_rules! record {
        ($($name:ident),*) => {
            $(
                impl super::$name {
                    /// A record as it lies in its ring; `None` where it is of another size.
                    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                        if bytes.len() != size_of::<Self>() {
                            return None;
                        }
                        // SAFETY: the length was checked above, and any bits are a valid struct of integers.
                        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
                    }
                }
            )*
        };
    }

    record!(Denied, Passive);
}
