//! The sentences of `[[assert]]`, read into claims. Whether they hold is asked where the verdicts are known.

use std::net::IpAddr;

use super::{Check, Set};
use crate::model::{Assert, Claim, PacketClaim, Place};
use crate::problem::{Problem, Span};
use crate::read::{At, shown};
use crate::suggest::nearest;
use crate::units::{PolicyName, WanName};

impl Check<'_> {
    pub(super) fn asserts(&mut self) -> Vec<Assert> {
        let mut out = Vec::new();
        for at in &self.file.asserts {
            let claim = match at.value.split_once("=>") {
                Some((condition, result)) => self.uses(at, condition, result),
                None => self.flow(at),
            };
            if let Some(claim) = claim {
                out.push(Assert { text: at.value.clone(), claim, line: self.line(&at.span) });
            }
        }
        out
    }

    /// `FROM -> TO [PROTO/PORT | ping] allow|deny`
    fn flow(&mut self, at: &At<String>) -> Option<Claim> {
        let Some((from, rest)) = at.value.split_once("->") else {
            self.sentence(at, "there is no `->` or `=>` in it");
            return None;
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let (to, packet, end) = match words.as_slice() {
            [to, end] => (*to, None, *end),
            [to, packet, end] => (*to, Some(*packet), *end),
            _ => {
                self.sentence(at, "after `->` come a place, a packet if one is meant, and `allow` or `deny`");
                return None;
            }
        };
        let allowed = match end {
            "allow" => true,
            "deny" => false,
            _ => {
                self.sentence(at, "it does not end in `allow` or `deny`");
                return None;
            }
        };
        let packet = match packet {
            None => None,
            Some(text) => {
                let packet = packet_claim(text);
                if packet.is_none() {
                    self.sentence(at, &format!("`{}` is no packet: write tcp/PORT, udp/PORT or ping", shown(text)));
                }
                Some(packet?)
            }
        };
        let (from, to) = (self.place(at, from.trim()), self.place(at, to));
        Some(Claim::Flow { from: from?, to: to?, packet, allowed })
    }

    fn place(&mut self, at: &At<String>, word: &str) -> Option<Place> {
        match word {
            "internet" => return Some(Place::Internet),
            "router" => return Some(Place::Router),
            _ => {}
        }
        if let Ok(address) = word.parse::<IpAddr>() {
            return Some(Place::Address(address));
        }
        if self.names.vlans.contains_key(word) {
            return word.parse().ok().map(Place::Vlan);
        }
        if self.names.hosts.contains_key(word) {
            return word.parse().ok().map(Place::Host);
        }
        let known = self.names.vlans.keys().chain(self.names.hosts.keys()).copied().chain(["internet", "router"]);
        let label = match nearest(word, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "no VLAN, host or address".to_owned(),
        };
        self.push(
            Problem::error(format!("this assert speaks of `{}`, which is not declared", shown(word)))
                .at(&within(self.lines_text(at), at, word), label)
                .help("a place is a VLAN, a host, an address, `internet` or `router`"),
        );
        None
    }

    /// `WAN[,WAN] down => POLICY uses WAN|WAN`, or `uses none`.
    fn uses(&mut self, at: &At<String>, condition: &str, result: &str) -> Option<Claim> {
        let Some(down) = condition.trim().strip_suffix("down") else {
            self.sentence(at, "before `=>` come WANs and `down`");
            return None;
        };
        let words: Vec<&str> = result.split_whitespace().collect();
        let ["uses", ..] = words.get(1..).unwrap_or(&[]) else {
            self.sentence(at, "after `=>` come a policy, `uses` and WANs");
            return None;
        };
        let policy_word = words.first().copied().unwrap_or_default();
        let policy = policy_word.parse::<PolicyName>().ok();
        let known = if let Some(policy) = &policy {
            let span = within(self.lines_text(at), at, policy_word);
            self.policy_known(policy, &span)
        } else {
            self.sentence(at, &format!("`{}` is no name of a policy", shown(policy_word)));
            false
        };
        let used = words.get(2..).unwrap_or(&[]).concat();
        let used = if used == "none" { Some(Set::new()) } else { self.wan_list(at, &used) };
        let down = self.wan_list(at, down);
        Some(Claim::Uses { down: down?, policy: policy.filter(|_| known)?, uses: used? })
    }

    fn wan_list(&mut self, at: &At<String>, text: &str) -> Option<Set<WanName>> {
        let mut wans = Set::new();
        let mut complete = true;
        for word in text.split([',', '|']).map(str::trim) {
            let Ok(name) = word.parse::<WanName>() else {
                self.sentence(at, &format!("`{}` is no name of a WAN", shown(word)));
                complete = false;
                continue;
            };
            let span = within(self.lines_text(at), at, word);
            complete &= self.wan_known(word, &span);
            wans.insert(name);
        }
        complete.then_some(wans)
    }

    fn sentence(&mut self, at: &At<String>, why: &str) {
        self.push(Problem::error("this assert cannot be read").at(&at.span, why).help(
            "write `app -> storage tcp/2049 allow`, `dev -> compute deny` or \
             `wan2 down => voip uses wan1|wan3|wan4`",
        ));
    }

    /// The source text of a value, quotes and all.
    fn lines_text(&self, at: &At<String>) -> &str {
        self.lines.slice(&at.span)
    }
}

/// The place of a word inside a string, as far as the string is written plainly.
fn within(source: &str, at: &At<String>, word: &str) -> Span {
    match source.find(word) {
        Some(offset) if !word.is_empty() => at.span.start + offset..at.span.start + offset + word.len(),
        Some(_) | None => at.span.clone(),
    }
}

fn packet_claim(text: &str) -> Option<PacketClaim> {
    if text == "ping" {
        return Some(PacketClaim::Ping);
    }
    let (protocol, port) = text.split_once('/')?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
    match protocol {
        "tcp" => Some(PacketClaim::Tcp(port)),
        "udp" => Some(PacketClaim::Udp(port)),
        _ => None,
    }
}
