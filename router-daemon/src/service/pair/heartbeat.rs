//! What the two routers of a pair say to each other, five times a second: JSON, and an HMAC over it. Pure.
//!
//! A packet that was said before is not believed: each router draws a number when it starts, and believes only what
//! repeats that number, in rising order.

use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use super::replica::Settled;

/// Of a packet.
pub(super) const LONGEST: usize = 1024;
pub(super) const TAG: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    v: u8,
    pub(super) node: String,
    pub(super) active: bool,
    /// The digest of the config in force.
    pub(super) config: String,
    /// What is in force for good; nothing, from a routerd that does not say.
    #[serde(default)]
    pub(super) settled: Settled,
    /// The number that whoever says this has drawn.
    boot: u64,
    /// The number of the other one, as far as it is known.
    yours: u64,
    count: u64,
}

#[derive(Debug)]
pub(super) struct Key(hmac::Key);

impl Key {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    pub(super) fn seal(&self, said: &Said) -> Vec<u8> {
        let mut packet = serde_json::to_vec(said).unwrap_or_default();
        let tag = hmac::sign(&self.0, &packet);
        packet.extend_from_slice(tag.as_ref());
        packet
    }

    pub(super) fn tag(&self, bytes: &[u8]) -> Vec<u8> {
        hmac::sign(&self.0, bytes).as_ref().to_vec()
    }

    pub(super) fn is_tag(&self, bytes: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.0, bytes, tag).is_ok()
    }

    /// `None` for what the other router did not say.
    pub(super) fn open(&self, packet: &[u8]) -> Option<Said> {
        let (text, tag) = packet.split_at_checked(packet.len().checked_sub(TAG)?)?;
        hmac::verify(&self.0, text, tag).ok()?;
        serde_json::from_slice(text).ok().filter(|said: &Said| said.v == VERSION)
    }
}

/// What is known of whom is spoken to.
#[derive(Debug)]
pub(super) struct Peer {
    own: u64,
    said: u64,
    boot: u64,
    count: u64,
}

impl Peer {
    pub(super) fn new() -> Self {
        let mut drawn = [0; 8];
        // Without randomness there is no TLS either; a number that is known beforehand lets old packets be repeated.
        if SystemRandom::new().fill(&mut drawn).is_err() {
            tracing::warn!("there are no random numbers: old heartbeats may be believed");
        }
        Self { own: u64::from_ne_bytes(drawn), said: 0, boot: 0, count: 0 }
    }

    pub(super) fn say(&mut self, node: &str, active: bool, config: &str, settled: Settled) -> Said {
        self.said += 1;
        Said {
            v: VERSION,
            node: node.to_owned(),
            active,
            config: config.to_owned(),
            settled,
            boot: self.own,
            yours: self.boot,
            count: self.said,
        }
    }

    /// `None` for what may have been said to somebody else, or before.
    pub(super) fn take(&mut self, said: Said) -> Option<Said> {
        // Thrown back by somebody in between.
        if said.boot == self.own {
            return None;
        }
        if said.yours != self.own {
            // It has just begun, or we have: next time it repeats our number.
            (self.boot, self.count) = (said.boot, 0);
            return None;
        }
        if said.boot == self.boot && said.count <= self.count {
            return None;
        }
        (self.boot, self.count) = (said.boot, said.count);
        Some(said)
    }
}

const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_have_just_begun_believe_each_other_at_the_second_word() {
        let (mut left, mut right) = (Peer::new(), Peer::new());
        assert_eq!(right.take(left.say("left", false, "d", Settled::default())), None);
        let answer = left.take(right.say("right", true, "d", Settled::default())).unwrap();
        assert_eq!((answer.node.as_str(), answer.active), ("right", true));
        assert!(right.take(left.say("left", true, "d", Settled::default())).is_some());
    }

    #[test]
    fn what_was_said_before_is_not_believed() {
        let (mut left, mut right) = (Peer::new(), Peer::new());
        right.take(left.say("left", false, "d", Settled::default()));
        left.take(right.say("right", true, "d", Settled::default()));
        let old = left.say("left", true, "d", Settled::default());
        assert!(right.take(old.clone()).is_some());
        assert_eq!(right.take(old.clone()), None, "again");
        let mut begun_anew = Peer::new();
        assert_eq!(begun_anew.take(old), None, "of before its start");
        let thrown_back = left.say("left", true, "d", Settled::default());
        assert_eq!(left.take(thrown_back), None);
        assert!(left.take(right.say("right", true, "d", Settled::default())).is_some());
    }

    #[test]
    fn a_packet_that_was_touched_or_is_of_another_secret_is_none() {
        let key = Key::new(b"0123456789abcdef");
        let said = Peer::new().say("left", true, "d", Settled::default());
        let packet = key.seal(&said);
        assert!(packet.len() < LONGEST - 64);
        assert_eq!(key.open(&packet), Some(said));
        assert_eq!(Key::new(b"0123456789abcdeg").open(&packet), None);
        for at in 0..packet.len() {
            let mut touched = packet.clone();
            touched[at] ^= 1;
            assert_eq!(key.open(&touched), None, "{at}");
        }
        for short in 0..=TAG {
            assert_eq!(key.open(&packet[..short]), None);
        }
    }
}
