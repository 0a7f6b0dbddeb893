//! Packets for tests, written field by field, and their checksums computed whole. Shared by the unit tests here, the
//! golden packets and the bench.

use std::vec::Vec;

/// A packet to be. Every field that a test wants wrong can be set so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Craft {
    pub to: [u8; 6],
    pub from: [u8; 6],
    pub tag: Option<u16>,
    pub source: Address,
    pub destination: Address,
    pub protocol: u8,
    pub ports: [u16; 2],
    pub hops: u8,
    /// Flags and offset of an IPv4 fragment.
    pub fragment: u16,
    /// 32-bit words of IPv4 options.
    pub options: u8,
    /// Of TCP.
    pub flags: u8,
    pub payload: usize,
    /// UDP: no checksum.
    pub unchecked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl Address {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }

    /// As maps have it: IPv4 in the first four bytes.
    pub fn padded(&self) -> [u8; 16] {
        let mut padded = [0; 16];
        padded[..self.bytes().len()].copy_from_slice(self.bytes());
        padded
    }
}

impl Craft {
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = [self.to, self.from].concat();
        if let Some(tag) = self.tag {
            frame.extend([[0x81, 0x00], tag.to_be_bytes()].concat());
        }
        let l4 = self.l4();
        match (self.source, self.destination) {
            (Address::V4(source), Address::V4(destination)) => {
                let header = 20 + usize::from(self.options) * 4;
                let mut ip = Vec::from([0x40 | u8::try_from(header / 4).unwrap(), 0]);
                ip.extend(u16::try_from(header + l4.len()).unwrap().to_be_bytes());
                ip.extend([0x12, 0x34]);
                ip.extend(self.fragment.to_be_bytes());
                ip.extend([self.hops, self.protocol, 0, 0]);
                ip.extend([source, destination].concat());
                ip.extend(std::iter::repeat_n(1, usize::from(self.options) * 4));
                let sum = internet_checksum(&ip);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend([0x08, 0x00]);
                frame.extend(ip);
            }
            (source, destination) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(u16::try_from(l4.len()).unwrap().to_be_bytes());
                frame.extend([self.protocol, self.hops]);
                frame.extend([source.bytes(), destination.bytes()].concat());
            }
        }
        frame.extend(l4);
        frame
    }

    fn l4(&self) -> Vec<u8> {
        let mut l4 = self.ports.map(u16::to_be_bytes).concat();
        let at = match self.protocol {
            6 => {
                l4.extend([0, 0, 0, 7, 0, 0, 0, 9, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
                16
            }
            17 => {
                l4.extend(u16::try_from(8 + self.payload).unwrap().to_be_bytes());
                l4.extend([0, 0]);
                6
            }
            _ => {
                l4.extend([0; 4]);
                l4.extend(std::iter::repeat_n(0x5a, self.payload));
                return l4;
            }
        };
        l4.extend((0..self.payload).map(|at| u8::try_from(at % 251).unwrap()));
        if !self.unchecked {
            let mut whole = [self.source.bytes(), self.destination.bytes()].concat();
            whole.extend([0, self.protocol]);
            whole.extend(u16::try_from(l4.len()).unwrap().to_be_bytes());
            whole.extend(&l4);
            let sum = internet_checksum(&whole);
            let sum = if sum == 0 && self.protocol == 17 { 0xffff } else { sum };
            l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        l4
    }
}

/// Over all of `bytes`, as its receiver would compute it (RFC 1071).
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum = bytes
        .chunks(2)
        .fold(0_u32, |sum, word| sum + u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])));
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}
