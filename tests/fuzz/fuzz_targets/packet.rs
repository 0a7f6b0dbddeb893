//! Any bytes at all are parsed as a frame, and forwarded if the parser says that they may be. [`Frame`] asserts that
//! every access lies within. What else must hold: lengths stay within the frame, a packet loses one hop, nothing but
//! headers changes, and a right checksum of IPv4 is right afterwards.
#![no_main]

use abi::{Flow, Rewrite, Verdict, checksum};
use libfuzzer_sys::fuzz_target;
use programs::packet::{Frame, Tag, parse};
use programs::{decide, rewrite};

fuzz_target!(|input: (bool, u16, u8, [u8; 16], [u8; 2], &[u8])| {
    let (inside, beside, side, address, port, bytes) = input;
    let mut frame = bytes.to_vec();
    let tag = if inside { Tag::INSIDE } else { Tag::beside(beside) };
    let Ok(packet) = parse(Frame::from(&mut frame[..]), tag, bytes.len()) else { return };
    assert!(packet.ip + packet.length as usize <= bytes.len());
    assert!(packet.v6 || packet.length >= 20);
    // SAFETY: parsed from this frame.
    unsafe { decide::hash(Frame::from(&mut frame[..]), &packet) };
    if packet.left != Verdict::Forwarded {
        return;
    }
    let rewrite = [Rewrite::Nothing, Rewrite::Source, Rewrite::Destination][usize::from(side % 3)] as u8;
    let mut flow = Flow { rewrite, address, port, ..FLOW };
    if let Some((at, _)) = rewrite::changed(&packet, &flow)
        && !packet.v6
    {
        flow.ip_delta = checksum::delta(&bytes[at..at + 4], &address[..4]);
    }
    let right = |frame: &[u8]| {
        let words = frame[packet.ip..packet.ip + 20].chunks_exact(2);
        words.fold(0, |sum, word| checksum::add(sum, u16::from_ne_bytes([word[0], word[1]]))) == 0xffff
    };
    // SAFETY: parsed from this frame, and not left to the kernel.
    unsafe { rewrite::headers(Frame::from(&mut frame[..]), &packet, &flow) };
    // SAFETY: see above.
    unsafe { rewrite::l4_checksum(Frame::from(&mut frame[..]), &packet, &flow) };
    let hops = packet.ip + if packet.v6 { 7 } else { 8 };
    assert_eq!(frame[hops], bytes[hops] - 1);
    assert!(packet.v6 || !right(bytes) || right(&frame));
    let headers = packet.l4() + if packet.protocol == 6 { 18 } else { 8 };
    assert_eq!(frame[..packet.ip], bytes[..packet.ip]);
    assert_eq!(frame[headers..], bytes[headers..]);
});

const FLOW: Flow = Flow {
    l4_delta: 0x1234,
    ..Flow::EMPTY
};
