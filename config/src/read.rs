//! A typed reader over a spanned TOML table. It never stops at the first problem: whatever cannot be read is
//! reported and left out, so that one run of `check` shows everything. `file` is its only user.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::domain::{DomainName, DomainPattern};
use crate::problem::{Problem, Span};
use crate::suggest::nearest;
use crate::units::{BitRate, EgressName, HostName, IfName, PolicyName, ServiceName, TlsOffloadName, VlanName, WanName};

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

pub(crate) type Node<'a> = Spanned<DeValue<'a>>;

/// What can stand on the right of a `=`.
pub(crate) trait Read: Sized {
    /// `None` when a problem was reported.
    fn read(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Self>;
}

/// One table of the file. Every key that is asked for counts as known; `finish` reports the others.
pub(crate) struct Table<'a> {
    /// As the operator would name it: `[vlan.office]`, `probe of [wan.wan1]`.
    pub(crate) what: String,
    pub(crate) span: Span,
    entries: &'a DeTable<'a>,
    known: Vec<&'static str>,
    anything: bool,
}

impl<'a> Table<'a> {
    pub(crate) fn new(what: impl Into<String>, span: Span, entries: &'a DeTable<'a>) -> Self {
        Self { what: what.into(), span, entries, known: Vec::new(), anything: false }
    }

    pub(crate) fn of(what: impl Into<String>, node: &'a Node<'a>, problems: &mut Vec<Problem>) -> Option<Self> {
        let what = what.into();
        if let Some(entries) = node.get_ref().as_table() {
            Some(Self::new(what, node.span(), entries))
        } else {
            problems.push(wrong_type(node, &format!("a table ({what})")));
            None
        }
    }

    pub(crate) fn node(&mut self, key: &'static str) -> Option<&'a Node<'a>> {
        self.known.push(key);
        self.entries.get(key)
    }

    pub(crate) fn value<T: Read>(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Option<At<T>> {
        self.node(key).and_then(|node| at(node, problems))
    }

    /// Like `value`, but a key that is not there is a problem. `example` shows what to write.
    pub(crate) fn needed<T: Read>(
        &mut self,
        key: &'static str,
        example: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<At<T>> {
        if self.node(key).is_none() {
            problems.push(self.missing(key, example));
        }
        self.value(key, problems)
    }

    pub(crate) fn missing(&self, key: &str, example: &str) -> Problem {
        Problem::error(format!("{} has no `{key}`", self.what))
            .at(&self.span, format!("`{key}` is missing here"))
            .help(format!("write, for example, `{key} = {example}`"))
    }

    /// An array. What cannot be read is reported and left out.
    pub(crate) fn list<T: Read>(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Option<At<Vec<At<T>>>> {
        let node = self.node(key)?;
        let Some(array) = node.get_ref().as_array() else {
            let hint = match node.get_ref().as_str() {
                Some(text) => format!("write `{key} = [{text:?}]`"),
                None => format!("write `{key} = [ … ]`"),
            };
            problems.push(wrong_type(node, "a list").help(hint));
            return None;
        };
        Some(At { value: array.iter().filter_map(|item| at(item, problems)).collect(), span: node.span() })
    }

    /// One value, or an array of them.
    pub(crate) fn one_or_many<T: Read>(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<At<Vec<At<T>>>> {
        let node = self.node(key)?;
        if node.get_ref().is_array() {
            return self.list(key, problems);
        }
        Some(At { value: at(node, problems).into_iter().collect(), span: node.span() })
    }

    /// The tables named in this one, in file order: `[vlan.NAME]`.
    pub(crate) fn children(&self) -> Vec<(&'a Spanned<std::borrow::Cow<'a, str>>, &'a Node<'a>)> {
        let mut all: Vec<_> = self.entries.iter().collect();
        all.sort_by_key(|(key, _)| key.span().start);
        all
    }

    /// Of a table whose keys are the operator's own words.
    pub(crate) fn know_all(&mut self) {
        self.anything = true;
    }

    pub(crate) fn finish(self, problems: &mut Vec<Problem>) {
        for (key, _) in self.entries {
            let name: &str = key.get_ref();
            if self.anything || self.known.contains(&name) {
                continue;
            }
            let label = match nearest(name, self.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "not a key of this table".to_owned(),
            };
            let mut known = self.known.clone();
            known.sort_unstable();
            known.dedup();
            problems.push(
                Problem::error(format!("unknown key `{}` in {}", shown(name), self.what))
                    .at(&key.span(), label)
                    .help(format!("the keys here are {}", known.join(", "))),
            );
        }
    }
}

pub(crate) fn at<T: Read>(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<At<T>> {
    T::read(node, problems).map(|value| At { value, span: node.span() })
}

/// A string that must be read further. The error says what is wrong with it.
pub(crate) fn text<T, E: Display>(
    node: &Node<'_>,
    expected: &str,
    problems: &mut Vec<Problem>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let Some(text) = node.get_ref().as_str() else {
        problems.push(wrong_type(node, expected));
        return None;
    };
    match parse(text) {
        Ok(value) => Some(value),
        Err(error) => {
            problems.push(
                Problem::error(format!("`{}` is not {expected}", shown(text))).at(&node.span(), error.to_string()),
            );
            None
        }
    }
}

pub(crate) fn wrong_type(node: &Node<'_>, expected: &str) -> Problem {
    Problem::error(format!("{expected} is wanted here"))
        .at(&node.span(), format!("this is {}", described(node.get_ref())))
}

/// Text of the operator inside a message: cut, without line breaks or control characters.
pub(crate) fn shown(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let mut out: String = clean.take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out
}

fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a decimal point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

impl Read for bool {
    fn read(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Self> {
        let value = node.get_ref().as_bool();
        if value.is_none() {
            problems.push(wrong_type(node, "`true` or `false`"));
        }
        value
    }
}

impl Read for String {
    fn read(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Self> {
        let value = node.get_ref().as_str();
        if value.is_none() {
            problems.push(wrong_type(node, "a string"));
        }
        value.map(str::to_owned)
    }
}

/// A whole number. Ranges are `check`'s business, where the message can say why.
impl Read for i64 {
    fn read(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Self> {
        let Some(number) = node.get_ref().as_integer() else {
            problems.push(wrong_type(node, "a whole number"));
            return None;
        };
        let value = Self::from_str_radix(number.as_str(), number.radix()).ok();
        if value.is_none() {
            problems.push(Problem::error("this number is far too large").at(&node.span(), "here"));
        }
        value
    }
}

impl Read for IpAddr {
    fn read(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Self> {
        text(node, "an IP address", problems, |text| match text.parse::<Self>() {
            Ok(address) => Ok(address),
            Err(_) if text.parse::<IpNet>().is_ok() => Err("leave the prefix length out"),
            Err(_) => Err("write it like \"10.0.0.1\" or \"fd00::1\""),
        })
    }
}

impl Read for IpNet {
    fn read(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Self> {
        text(node, "an address with a prefix length", problems, |text| match text.parse::<Self>() {
            Ok(net) => Ok(net),
            Err(_) if text.parse::<IpAddr>().is_ok() => Err("add the prefix length, like \"10.0.0.1/24\""),
            Err(_) => Err("write it like \"10.0.0.1/24\" or \"fd00::1/64\""),
        })
    }
}

impl Read for Duration {
    fn read(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Self> {
        text(node, "a duration", problems, duration)
    }
}

impl Read for BitRate {
    fn read(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Self> {
        text(node, "a rate", problems, Self::from_str)
    }
}

/// `100ms`, `1.5s`, `10m`, `1h`, as a site file has it.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    const HELP: &str = "write a number and its unit: \"100ms\", \"1.5s\", \"10m\" or \"1h\"";
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(HELP)?;
    let (number, unit) = text.split_at(split);
    let milliseconds = match unit.trim() {
        "ms" => 1.0,
        "s" => 1_000.0,
        "m" => 60_000.0,
        "h" => 3_600_000.0,
        _ => return Err(HELP),
    };
    let seconds = number.parse::<f64>().ok().ok_or(HELP)? * milliseconds / 1_000.0;
    if seconds > LONGEST.as_secs_f64() {
        return Err("that is longer than a week");
    }
    // Whole microseconds, so that "100ms" is exactly that whatever a float makes of it.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by a week, never negative")]
    let microseconds = (seconds * 1e6).round() as u64;
    Ok(Duration::from_micros(microseconds))
}

macro_rules! named {
    ($($type:ident $expected:literal;)*) => {$(
        impl Read for $type {
            fn read(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Self> {
                text(node, $expected, problems, Self::from_str)
            }
        }
    )*};
}

named! {
    IfName "an interface name";
    WanName "the name of a WAN";
    VlanName "the name of a VLAN";
    HostName "the name of a host";
    ServiceName "the name of a service";
    EgressName "the name of an egress set";
    PolicyName "the name of a policy";
    TlsOffloadName "the name of a tls_offload";
    DomainName "a domain name";
    DomainPattern "a domain name, or `*.` and one";
}

/// Characters of the operator's text repeated inside a message.
const SHOWN: usize = 60;
const LONGEST: Duration = Duration::from_hours(168);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, wanted) in [
            ("100ms", Some(Duration::from_millis(100))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("10m", Some(Duration::from_mins(10))),
            ("0.1ms", Some(Duration::from_micros(100))),
            ("0s", Some(Duration::ZERO)),
            ("10", None),
            ("s", None),
            ("1.2.3s", None),
            ("-1s", None),
            ("99999999h", None),
            ("1e9h", None),
        ] {
            assert_eq!(duration(text).ok(), wanted, "{text}");
        }
    }
}
