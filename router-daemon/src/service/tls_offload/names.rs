//! Which certificate is shown to whom: by the name a client asks for (SNI), by a wildcard of one label, or the one
//! without names.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

/// What is shown, by name. `T` is a certificate with its key.
#[derive(Debug)]
pub(super) struct Names<T> {
    exact: BTreeMap<String, T>,
    /// By what follows `*.`.
    wild: BTreeMap<String, T>,
    other: Option<T>,
}

impl<T: Clone> Names<T> {
    /// Of certificates with their names in lower case; one without names is for whoever names no other.
    pub(super) fn new<'n>(all: impl IntoIterator<Item = (&'n std::collections::BTreeSet<String>, T)>) -> Self {
        let mut names = Self { exact: BTreeMap::new(), wild: BTreeMap::new(), other: None };
        for (its, value) in all {
            if its.is_empty() {
                names.other = Some(value.clone());
            }
            for name in its {
                match name.strip_prefix("*.") {
                    Some(domain) => names.wild.insert(domain.to_owned(), value.clone()),
                    None => names.exact.insert(name.clone(), value.clone()),
                };
            }
        }
        names
    }

    /// A name of its own goes before a wildcard, and that before the rest.
    pub(super) fn of(&self, asked: Option<&str>) -> Option<&T> {
        let named = asked.and_then(|asked| {
            let asked = asked.trim_end_matches('.').to_ascii_lowercase();
            self.exact.get(&asked).or_else(|| self.wild.get(asked.split_once('.')?.1))
        });
        named.or(self.other.as_ref())
    }
}

impl ResolvesServerCert for Names<Arc<CertifiedKey>> {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.of(hello.server_name()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_its_own_goes_before_a_wildcard_and_that_before_the_rest() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let certificates = [
            (set(&["shop.example.org", "example.org"]), "shop"),
            (set(&["*.example.org"]), "wild"),
            (set(&["*.deep.example.org"]), "deep"),
        ];
        let all = |more: &[_]| {
            let more: Vec<_> = certificates.iter().chain(more).cloned().collect();
            Names::new(more.iter().map(|(names, value)| (names, *value)))
        };
        let (strict, lax) = (all(&[]), all(&[(set(&[]), "rest")]));
        for (asked, wanted) in [
            (Some("shop.example.org"), Some("shop")),
            (Some("SHOP.Example.ORG."), Some("shop")),
            (Some("example.org"), Some("shop")),
            (Some("mail.example.org"), Some("wild")),
            // One label, not two (RFC 6125, 6.4.3).
            (Some("a.mail.example.org"), None),
            (Some("a.deep.example.org"), Some("deep")),
            (Some("deep.example.org"), Some("wild")),
            (Some("example.net"), None),
            (Some("org"), None),
            (Some(""), None),
            (None, None),
        ] {
            assert_eq!(strict.of(asked).copied(), wanted, "{asked:?}");
            assert_eq!(lax.of(asked).copied(), Some(wanted.unwrap_or("rest")), "{asked:?}");
        }
    }
}
