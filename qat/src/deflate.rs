//! Deflate and gzip (RFC 1951, RFC 1952) on the CPU, and the parts that a text is cut into.
//!
//! What a device made shorter is made long again here before anybody is told that it is done: what cannot be read back is
//! lost. What it made long is compared with the length and the CRC that came with the text.

use flate2::{Compress, Compression, Crc, Decompress, FlushCompress, FlushDecompress, Status};

use crate::Error;
use crate::job::InflateWork;

/// The longest part of a text that is made shorter by itself. Longer ones are cut: a device has room for so much, and several
/// parts may be under way at once. It is twice as far as deflate ever looks back.
pub(crate) const PART: usize = 64 * 1024;

/// Raw deflate of one part.
pub(crate) fn deflate(text: &[u8], last: bool) -> Vec<u8> {
    let mut state = Compress::new(Compression::default(), false);
    let mut out = Vec::with_capacity(longest(text.len()));
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Full };
    loop {
        let from = usize::try_from(state.total_in()).unwrap_or(text.len());
        let Ok(status) = state.compress_vec(&text[from..], &mut out, flush) else {
            unreachable!("deflate takes any text");
        };
        let all = state.total_in() == text.len() as u64;
        // A flush is over when there was room to spare.
        if if last { status == Status::StreamEnd } else { all && out.len() < out.capacity() } {
            return out;
        }
        out.reserve(PART);
    }
}

/// The text, if it is the one that is known of.
pub(crate) fn inflate(InflateWork { text, length, crc }: &InflateWork) -> Result<Vec<u8>, Error> {
    // Whatever is claimed, nothing becomes longer by more than that. With room for one byte more, more is noticed.
    let most = (*length).min(text.len().saturating_mul(MOST_LONGER));
    inflated(&[text], most + 1).filter(|out| is_the_one(out, *length, *crc)).ok_or(Error::NotIntact)
}

/// Whether a part, made long again, is that text.
pub(crate) fn is_of(shorter: &[u8], text: &[u8], last: bool) -> bool {
    // What follows a part that is not the last has to find a block's end, at a whole byte.
    let pieces = if last { &[shorter][..] } else { &[shorter, EMPTY] };
    inflated(pieces, text.len() + 1).is_some_and(|out| out == text)
}

/// A whole stream, and nothing after it.
fn inflated(pieces: &[&[u8]], room: usize) -> Option<Vec<u8>> {
    let mut state = Decompress::new(false);
    let mut out = Vec::with_capacity(room);
    let mut ended = false;
    for piece in pieces {
        let before = state.total_in();
        if ended {
            return None;
        }
        ended = state.decompress_vec(piece, &mut out, FlushDecompress::None).ok()? == Status::StreamEnd;
        if state.total_in() - before != piece.len() as u64 {
            return None;
        }
    }
    ended.then_some(out)
}

pub(crate) fn is_the_one(text: &[u8], length: usize, crc: u32) -> bool {
    text.len() == length && crc_of(text) == crc
}

pub(crate) fn crc_of(text: &[u8]) -> u32 {
    let mut sum = Crc::new();
    sum.update(text);
    sum.sum()
}

/// What a text may grow to that cannot be made shorter: an eighth more, as the worst of a device, and some.
pub(crate) fn longest(length: usize) -> usize {
    length + length / 8 + 1024
}

/// A gzip file of a text that was made shorter.
pub(crate) fn gzip(shorter: &[Vec<u8>], text: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADER.len() + shorter.iter().map(Vec::len).sum::<usize>() + TRAILER);
    file.extend(HEADER);
    for part in shorter {
        file.extend(part);
    }
    file.extend(crc_of(text).to_le_bytes());
    // Modulo 2^32, as the standard has it.
    file.extend(&text.len().to_le_bytes()[..4]);
    file
}

/// What is in a gzip file of one member.
pub(crate) fn gunzip(file: &[u8], at_most: usize) -> Result<InflateWork, Error> {
    let body = after_header(file).ok_or(Error::NotIntact)?;
    let (text, trailer) = body.split_last_chunk::<TRAILER>().ok_or(Error::NotIntact)?;
    let number = |at: usize| u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]]);
    let (crc, length) = (number(0), number(4) as usize);
    if length > at_most {
        return Err(Error::TooLong { length, at_most });
    }
    Ok(InflateWork { text: text.to_vec(), length, crc })
}

/// RFC 1952, 2.3.
fn after_header(file: &[u8]) -> Option<&[u8]> {
    let (header, mut rest) = file.split_first_chunk::<10>()?;
    let [0x1f, 0x8b, 8, flags, ..] = *header else { return None };
    if flags & RESERVED != 0 {
        return None;
    }
    if flags & EXTRA != 0 {
        let (length, after) = rest.split_first_chunk::<2>()?;
        rest = after.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for flag in [NAME, COMMENT] {
        if flags & flag != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & HEADER_CRC != 0 { rest.get(2..) } else { Some(rest) }
}

/// No name, no time, of no system in particular.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
const HEADER_CRC: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;
/// A last block with nothing in it.
const EMPTY: &[u8] = &[3, 0];
/// Bytes after the text: its CRC-32 and its length.
const TRAILER: usize = 8;
/// A match of 258 bytes takes two bits at the least.
const MOST_LONGER: usize = 1032;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn work(text: Vec<u8>, plain: &[u8]) -> InflateWork {
        InflateWork { text, length: plain.len(), crc: crc_of(plain) }
    }

    proptest! {
        #[test]
        fn parts_in_a_row_are_one_stream(parts in prop::collection::vec(prop::collection::vec(0_u8..4, 0..3_000), 1..6)) {
            let mut stream = Vec::new();
            for (number, part) in parts.iter().enumerate() {
                let last = number + 1 == parts.len();
                let shorter = deflate(part, last);
                prop_assert!(is_of(&shorter, part, last));
                prop_assert!(!is_of(&shorter, part, !last));
                stream.extend(shorter);
            }
            prop_assert_eq!(inflate(&work(stream, &parts.concat())).unwrap(), parts.concat());
        }

        #[test]
        fn a_bit_that_turns_over_is_seen(text in prop::collection::vec(0_u8..9, 1..2_000), at in any::<prop::sample::Index>()) {
            let mut file = gzip(&[deflate(&text, true)], &text);
            // The header says little that matters.
            let bit = at.index((file.len() - HEADER.len()) * 8);
            file[HEADER.len() + bit / 8] ^= 1 << (bit % 8);
            // A bit of the padding before the trailer may be anything.
            let read = gunzip(&file, 10_000).and_then(|work| inflate(&work));
            prop_assert!(read.is_err() || read.is_ok_and(|read| read == text));
        }

        #[test]
        fn no_file_is_too_strange(file in prop::collection::vec(any::<u8>(), 0..200)) {
            for file in [file.clone(), [&HEADER[..], &file].concat()] {
                if let Ok(work) = gunzip(&file, 1_000_000) {
                    inflate(&work).ok();
                }
            }
        }
    }

    #[test]
    fn what_does_not_become_shorter_stays_within_bounds() {
        let mut text = vec![0; PART];
        openssl::rand::rand_bytes(&mut text).unwrap();
        for last in [false, true] {
            let out = deflate(&text, last);
            assert!(out.len() <= longest(text.len()) && is_of(&out, &text, last));
        }
    }

    #[test]
    fn a_part_that_ends_within_a_byte_or_without_its_block_is_not_right() {
        let text = b"what follows would not be found";
        let whole = deflate(text, false);
        assert!(is_of(&whole, text, false));
        // The marker of the flush ends with 00 00 ff ff.
        for missing in 1..=5 {
            assert!(!is_of(&whole[..whole.len() - missing], text, false), "{missing}");
        }
        assert!(!is_of(&[&whole[..], &[0]].concat(), text, false));
    }

    #[test]
    fn what_claims_to_be_long_gets_no_more_room_than_it_could_fill() {
        let lie = InflateWork { text: deflate(b"short", true), length: usize::MAX / 2, crc: 0 };
        assert!(matches!(inflate(&lie), Err(Error::NotIntact)));
        let more = InflateWork { text: deflate(&vec![0; 1_000_000], true), length: 10, crc: 0 };
        assert!(matches!(inflate(&more), Err(Error::NotIntact)));
        let file = gzip(&[deflate(&[0; 1_000], true)], &[0; 1_000]);
        assert!(matches!(gunzip(&file, 999), Err(Error::TooLong { length: 1_000, at_most: 999 })));
        assert!(gunzip(&file, 1_000).is_ok());
    }

    #[test]
    fn every_field_of_a_header_is_passed_over() {
        let text = b"named, commented, extra";
        let plain = gzip(&[deflate(text, true)], text);
        let mut file = vec![0x1f, 0x8b, 8, 0x1f, 1, 2, 3, 4, 0, 3];
        file.extend(b"\x03\x00abc");
        file.extend(b"a name\0a comment\0");
        file.extend([0xaa, 0xbb]);
        file.extend(&plain[HEADER.len()..]);
        assert_eq!(inflate(&gunzip(&file, 100).unwrap()).unwrap(), text);
        file[3] |= 0x20;
        assert!(matches!(gunzip(&file, 100), Err(Error::NotIntact)));
    }
}
