//! What names stand for: which address is in which set of the table, by which name, and until when. Pure; the time is an
//! argument.
//!
//! An address counts for as long as whoever was answered may use it: the life of the answer, a minute at least, and five
//! more, because programs keep what they looked up for longer than they were told. An answer out of our own cache
//! counts like one from outside, so the time is that of the last answer and not of the last question.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use config::Config;
use config::domain::DomainName;
use config::units::{EgressName, Family, VlanName};
use mwan::state::NamedKey;

use crate::kernel::named::Grant;

#[derive(Debug, Default)]
pub(super) struct Book {
    sets: BTreeMap<NamedKey, BTreeMap<IpAddr, Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: DomainName,
    /// When the kernel takes it out.
    until: Instant,
}

/// How an address stands in a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// By this name, for this long yet.
    In(DomainName, Duration),
    /// It was, and ended so long ago.
    Was(DomainName, Duration),
}

impl Book {
    /// What the kernel must be told before an answer of this life goes out.
    pub(super) fn wanting(&self, keys: &[NamedKey], addresses: &[IpAddr], ttl: Duration, now: Instant) -> Vec<Grant> {
        let least = now + ttl.max(FLOOR) + GRACE;
        let mut grants = Vec::new();
        for key in keys {
            let set = self.sets.get(key);
            for address in addresses.iter().filter(|address| Family::of(**address) == key.family) {
                if set.and_then(|set| set.get(address)).is_none_or(|entry| entry.until < least) {
                    let span = least + AHEAD - now;
                    grants.push(Grant { key: key.clone(), address: *address, span });
                }
            }
        }
        grants
    }

    /// The kernel has them.
    pub(super) fn granted(&mut self, grants: &[Grant], name: &DomainName, now: Instant) {
        for grant in grants {
            let set = self.sets.entry(grant.key.clone()).or_default();
            if set.len() >= FULL {
                set.retain(|_, entry| entry.until + REMEMBERED > now);
            }
            set.insert(grant.address, Entry { name: name.clone(), until: now + grant.span });
        }
    }

    /// A set that is full in the kernel takes no more, and one name must not fill it.
    pub(super) fn room(&self, key: &NamedKey, now: Instant) -> usize {
        let live = |set: &BTreeMap<IpAddr, Entry>| set.values().filter(|entry| entry.until > now).count();
        mwan::compile::ruleset::NAMED.saturating_sub(self.sets.get(key).map_or(0, live))
    }

    pub(super) fn standing(&self, key: &NamedKey, address: IpAddr, now: Instant) -> Option<Standing> {
        let entry = self.sets.get(key)?.get(&address)?;
        match entry.until.checked_duration_since(now) {
            Some(left) if !left.is_zero() => Some(Standing::In(entry.name.clone(), left)),
            _ => {
                let ago = now.duration_since(entry.until);
                (ago < REMEMBERED).then(|| Standing::Was(entry.name.clone(), ago))
            }
        }
    }

    /// What no name of this config stands for any more, to be taken out of the kernel; sets that are gone are forgotten.
    pub(super) fn follow(&mut self, config: &Config, now: Instant) -> Vec<(NamedKey, IpAddr)> {
        let named = |key: &NamedKey| config.egress.get(&key.set).and_then(|set| set.named.get(key.part));
        self.sets.retain(|key, _| named(key).is_some());
        let mut gone = Vec::new();
        for (key, set) in &mut self.sets {
            let Some(part) = named(key) else { continue };
            set.retain(|address, entry| {
                let stays = part.names.iter().any(|pattern| pattern.matches(&entry.name));
                if !stays && entry.until > now {
                    gone.push((key.clone(), *address));
                }
                stays
            });
        }
        gone
    }

    /// Everything that counts, for a table that may have lost it.
    pub(super) fn all(&self, now: Instant) -> Vec<Grant> {
        let live = self.live(now);
        live.map(|(key, address, entry)| Grant { key: key.clone(), address, span: entry.until - now }).collect()
    }

    /// For the disk: set, part, address, name, and how long it counts yet.
    pub(super) fn kept(&self, now: Instant) -> Vec<(EgressName, usize, IpAddr, DomainName, Duration)> {
        let live = self.live(now);
        live.map(|(key, address, entry)| (key.set.clone(), key.part, address, entry.name.clone(), entry.until - now))
            .collect()
    }

    /// Live addresses of each egress set.
    pub(super) fn counts(&self, now: Instant) -> BTreeMap<EgressName, usize> {
        let mut counts = BTreeMap::new();
        for (key, ..) in self.live(now) {
            *counts.entry(key.set.clone()).or_default() += 1;
        }
        counts
    }

    fn live(&self, now: Instant) -> impl Iterator<Item = (&NamedKey, IpAddr, &Entry)> {
        let all =
            self.sets.iter().flat_map(|(key, set)| set.iter().map(move |(address, entry)| (key, *address, entry)));
        all.filter(move |(.., entry)| entry.until > now)
    }
}

/// The sets that this VLAN's question for this name is about, in both families.
pub(super) fn keys(config: &Config, vlan: &VlanName, name: &DomainName) -> Vec<NamedKey> {
    use config::model::Internet;
    let sets = match config.vlans.get(vlan).map(|vlan| &vlan.internet) {
        Some(Internet::Sets(sets)) => sets,
        Some(Internet::None | Internet::Any) | None => return Vec::new(),
    };
    let mut keys = Vec::new();
    for set in sets.iter().filter_map(|set| config.egress.get(set)) {
        for (part, named) in set.named.iter().enumerate() {
            if named.names.iter().any(|pattern| pattern.matches(name)) {
                keys.extend(Family::ALL.map(|family| NamedKey { set: set.name.clone(), part, family }));
            }
        }
    }
    keys
}

/// No answer counts for less.
const FLOOR: Duration = Duration::from_mins(1);
/// What is used for longer than it was said to live.
const GRACE: Duration = Duration::from_mins(5);
/// A name that is asked for all the time costs one message to the kernel in as long.
const AHEAD: Duration = Duration::from_mins(1);
/// A denial can be explained by what was for as long.
const REMEMBERED: Duration = Duration::from_mins(15);
const FULL: usize = 2 * mwan::compile::ruleset::NAMED;

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = include_str!("../../../../config/examples/minimal.toml");

    fn key() -> NamedKey {
        NamedKey { set: "arc".parse().unwrap(), part: 0, family: Family::V4 }
    }

    fn name() -> DomainName {
        "login.example.com".parse().unwrap()
    }

    #[test]
    fn an_answer_out_of_the_cache_counts_from_when_it_is_given() {
        let (mut book, begin) = (Book::default(), Instant::now());
        let address = "192.0.2.7".parse().unwrap();
        let seconds = Duration::from_secs;
        let ask = |book: &mut Book, after: u64, ttl: u64| {
            let now = begin + seconds(after);
            let grants = book.wanting(&[key()], &[address], seconds(ttl), now);
            book.granted(&grants, &name(), now);
            grants.first().map(|grant| grant.span.as_secs())
        };
        assert_eq!(ask(&mut book, 0, 60), Some(420));
        assert_eq!(ask(&mut book, 30, 30), None, "what is there lasts long enough for that");
        assert_eq!(
            ask(&mut book, 61, 5),
            Some(420),
            "the trap: a set that counts from the first question is empty at 420 s"
        );
        assert_eq!(ask(&mut book, 62, 3600), Some(3960));
        assert_eq!(ask(&mut book, 63, 5), None, "nothing is made shorter");
    }

    #[test]
    fn a_near_miss_is_remembered_and_then_forgotten() {
        let (mut book, begin) = (Book::default(), Instant::now());
        let address = "192.0.2.7".parse().unwrap();
        let grants = book.wanting(&[key()], &[address], Duration::ZERO, begin);
        book.granted(&grants, &name(), begin);
        let at = |book: &Book, seconds| book.standing(&key(), address, begin + Duration::from_secs(seconds));
        assert_eq!(at(&book, 20), Some(Standing::In(name(), Duration::from_secs(400))));
        assert_eq!(at(&book, 460), Some(Standing::Was(name(), Duration::from_secs(40))));
        assert_eq!(at(&book, 420 + 900), None);
        assert_eq!(book.standing(&NamedKey { part: 1, ..key() }, address, begin), None);
        assert_eq!((book.all(begin).len(), book.all(begin + Duration::from_mins(7)).len()), (1, 0));
    }

    #[test]
    fn addresses_go_to_the_set_of_their_family() {
        let book = Book::default();
        let both: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let keys = [key(), NamedKey { family: Family::V6, ..key() }];
        let grants = book.wanting(&keys, &both, Duration::ZERO, Instant::now());
        let pairs: Vec<_> = grants.iter().map(|grant| (grant.key.family, grant.address)).collect();
        assert_eq!(pairs, [(Family::V4, both[0]), (Family::V6, both[1])]);
    }

    #[test]
    fn a_name_that_leaves_the_file_takes_its_addresses_along() {
        let text = |names: &str| {
            format!(
                "{}\n[egress.arc]\nnames = [{names}]\nports = [\"tcp/443\"]\n[dns]\nupstreams = [\"192.0.2.53\"]\n",
                MINIMAL.replacen("internet  = \"any\"", "internet = [\"arc\"]", 1)
            )
        };
        let site = |names: &str| config::parse("site.toml", &text(names)).unwrap_or_else(|p| panic!("{p}")).config;
        let before = site("\"login.example.com\", \"*.example.net\"");
        let vlan = "office".parse().unwrap();
        assert_eq!(keys(&before, &vlan, &"a.example.net".parse().unwrap()).len(), 2);
        assert_eq!(keys(&before, &vlan, &"example.net".parse().unwrap()).len(), 0);

        let (mut book, now) = (Book::default(), Instant::now());
        for (name, address) in [("login.example.com", "192.0.2.7"), ("a.example.net", "192.0.2.8")] {
            let name: DomainName = name.parse().unwrap();
            let grants = book.wanting(&keys(&before, &vlan, &name), &[address.parse().unwrap()], FLOOR, now);
            book.granted(&grants, &name, now);
        }
        assert_eq!(book.follow(&before, now), []);
        let gone = book.follow(&site("\"*.example.net\""), now);
        assert_eq!(gone, [(key(), "192.0.2.7".parse().unwrap())]);
        assert_eq!(book.counts(now).values().sum::<usize>(), 1);
    }
}
