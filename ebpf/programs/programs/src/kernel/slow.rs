//! What is not forwarded: denied here where the ruleset surely would, else left to the kernel. What comes in by a
//! line is also measured.

use abi::{Bucket, Denied, Home, OUTSIDE, PortKey, Settings, Source, Verdict, Zone, pair, slot};
use aya_ebpf::maps::lpm_trie::Key;
use programs::decide;
use programs::packet::{Frame, Packet};

use super::maps::{DENIALS, DENIED, DENIED_PAIRS, HOMES4, HOMES6, NEWCOMERS, SAMPLED, ZONES};
use super::{line, maps, now};

/// What becomes of a packet that is not forwarded for the reason `left`.
#[inline(always)]
pub(super) fn left(frame: Frame<'_>, packet: &Packet, settings: &Settings, port: u32, left: Verdict) -> Verdict {
    // SAFETY: entries are changed by the daemon as a whole.
    let Some(zone) = (unsafe { ZONES.get(PortKey { port, vlan: packet.vlan, _0: 0 }) }) else { return left };
    // SAFETY: `parse` has checked the Ethernet header.
    if !unsafe { decide::is_to(frame, &zone.mac) } {
        return Verdict::Bridged;
    }
    if zone.wan != 0 {
        let slot = slot(zone.wan, packet.v6);
        line::received(slot, packet.length);
        if packet.accepts() {
            line::accepted(frame, packet, slot);
        }
    }
    if settings.deny == 0 {
        return left;
    }
    match judge(frame, packet, settings, zone) {
        Ok(()) => left,
        Err((verdict, to)) => {
            let from = if zone.wan == 0 { zone.zone } else { OUTSIDE };
            record(frame, packet, settings, port, verdict, from, to);
            verdict
        }
    }
}

/// Where a denied packet was to go comes with the verdict: to its own zone, if its source is spoofed.
#[inline(always)]
fn judge(frame: Frame<'_>, packet: &Packet, settings: &Settings, zone: &Zone) -> Result<(), (Verdict, u16)> {
    let source = home(frame, packet, packet.source());
    if let Err(verdict) = decide::source(zone, source) {
        return Err((verdict, zone.zone));
    }
    if zone.wan == 0 {
        let to = home(frame, packet, packet.destination());
        if to.what == Home::HOST && DENIED_PAIRS.get(pair(zone.zone, to.zone)) == Some(&abi::DENY) {
            return Err((Verdict::DeniedPair, to.zone));
        }
    } else if zone.checks & Zone::RATE != 0 && packet.opens() && !may_open(frame, packet, settings) {
        return Err((Verdict::TooManyNew, home(frame, packet, packet.destination()).zone));
    }
    Ok(())
}

#[inline(always)]
fn home(frame: Frame<'_>, packet: &Packet, address: usize) -> Home {
    let home = if packet.v6 {
        // SAFETY: `parse` has checked the IP header.
        HOMES6.get(Key::new(128, unsafe { frame.read(address) }))
    } else {
        // SAFETY: see above.
        HOMES4.get(Key::new(32, unsafe { frame.read(address) }))
    };
    home.copied().unwrap_or(Home { zone: OUTSIDE, what: Home::HOST })
}

#[inline(always)]
fn may_open(frame: Frame<'_>, packet: &Packet, settings: &Settings) -> bool {
    if settings.new_per_second == 0 {
        return true;
    }
    let at = packet.source();
    let source = if packet.v6 {
        // SAFETY: `parse` has checked the IP header.
        Source { address: unsafe { frame.read(at) }, family: 6 }
    } else {
        // SAFETY: see above.
        let [a, b, c, d]: [u8; 4] = unsafe { frame.read(at) };
        Source { address: [a, b, c, d, 0, 0, 0, 0], family: 4 }
    };
    let now = now();
    if let Some(bucket) = NEWCOMERS.get_ptr_mut(source) {
        // SAFETY: a map's value; two CPUs at once lose a token at most.
        return decide::take(unsafe { &mut *bucket }, settings, now);
    }
    let tokens = u64::from(settings.new_burst).saturating_mul(decide::CONNECTION);
    let mut bucket = Bucket { tokens, filled: now };
    let may = decide::take(&mut bucket, settings, now);
    // Without room in the map the source is not limited.
    if NEWCOMERS.insert(source, bucket, 0).is_err() {}
    may
}

/// Counts a denied packet, and tells the daemon of the first in a while.
#[inline(always)]
fn record(frame: Frame<'_>, packet: &Packet, settings: &Settings, port: u32, verdict: Verdict, from: u16, to: u16) {
    let pair = pair(from, to);
    if let Some(count) = DENIALS.get_ptr_mut(pair) {
        maps::add(count, u64::from(packet.length));
    }
    let Some(sampled) = SAMPLED.get_ptr_mut(pair) else { return };
    let now = now();
    // SAFETY: a map's value; two CPUs at once take two samples.
    let last = unsafe { *sampled };
    if last != 0 && now.saturating_sub(last) < u64::from(settings.sample_ns) {
        return;
    }
    // SAFETY: see above.
    unsafe { *sampled = now };
    // A full ring: the daemon is behind, and the count is what it has.
    let Some(mut entry) = DENIED.reserve::<Denied>(0) else { return };
    let (source, destination) = line::addresses(frame, packet);
    entry.write(Denied {
        at: now,
        port,
        verdict: verdict as u32,
        source,
        destination,
        source_port: packet.source_port.to_ne_bytes(),
        destination_port: packet.destination_port.to_ne_bytes(),
        vlan: packet.vlan,
        from,
        to,
        length: packet.length as u16,
        protocol: packet.protocol,
        family: if packet.v6 { 6 } else { 4 },
        _0: [0; 2],
    });
    entry.submit(0);
}
