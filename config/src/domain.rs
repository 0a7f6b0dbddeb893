//! Names of the domain name system as the site file has them: whole ones, and patterns for everything below one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name in lower case without its last dot: `login.example.com`. RFC 1035, 2.3.1, with the underscore of RFC 2782.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

/// `login.example.com`, or `*.example.com` for every name below `example.com` at any depth, and not that name itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainPattern {
    below: bool,
    name: DomainName,
}

impl DomainName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is this name `zone`, or below it?
    pub fn is_within(&self, zone: &Self) -> bool {
        self == zone || self.is_below(zone)
    }

    fn is_below(&self, zone: &Self) -> bool {
        self.0.strip_suffix(zone.as_str()).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl DomainPattern {
    pub fn matches(&self, name: &DomainName) -> bool {
        if self.below { name.is_below(&self.name) } else { *name == self.name }
    }

    /// The name itself where it is one: only that can be asked for before anybody does.
    pub fn exact(&self) -> Option<&DomainName> {
        (!self.below).then_some(&self.name)
    }
}

impl FromStr for DomainName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() || name.len() > 253 {
            return Err("a name has 1 to 253 characters");
        }
        let good = |label: &str| {
            (1..=63).contains(&label.len())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !name.split('.').all(good) {
            return Err("between its dots a name has 1 to 63 letters, digits, '-' and '_', and no '-' at either end");
        }
        Ok(Self(name))
    }
}

impl FromStr for DomainPattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if name.contains('*') {
            return Err("a `*` stands for all names below one, at the beginning: \"*.example.com\"");
        }
        let name: DomainName = name.parse()?;
        if below && !name.as_str().contains('.') {
            return Err("this would be every name of a top-level domain");
        }
        Ok(Self { below, name })
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.below { write!(f, "*.{}", self.name) } else { write!(f, "{}", self.name) }
    }
}

macro_rules! as_text {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"{self}\"")
            }
        }

        impl TryFrom<String> for $type {
            type Error = &'static str;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.to_string()
            }
        }
    )*};
}

as_text!(DomainName, DomainPattern);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_takes_every_depth_below_and_not_the_name_itself() {
        for (pattern, name, wanted) in [
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "notexample.com", false),
            ("*.example.com", "a.example.com.evil.test", false),
            ("example.com", "EXAMPLE.com.", true),
            ("example.com", "a.example.com", false),
        ] {
            let (pattern, name): (DomainPattern, DomainName) = (pattern.parse().unwrap(), name.parse().unwrap());
            assert_eq!(pattern.matches(&name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in
            ["", ".", "a..b", "-a.example", "a-.example", "*", "*.com", "a.*.example", "ex ample.com", "ä.example"]
        {
            assert!(text.parse::<DomainPattern>().is_err(), "{text}");
        }
        assert!(format!("{}.example", "a".repeat(64)).parse::<DomainName>().is_err());
        assert!("_v2-origintunneld._tcp.argotunnel.com".parse::<DomainName>().is_ok());
    }
}
