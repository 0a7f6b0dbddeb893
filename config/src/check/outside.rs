//! Where changes of state are told: collectors.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::{Check, Seen, Set};
use crate::file::Tls;
use crate::model;
use crate::problem::Problem;
use crate::read::{At, shown};
use crate::units::EventKind;

impl Check<'_> {
    pub(super) fn syslog(&mut self) -> Vec<model::Syslog> {
        let file = self.file;
        let mut seen = Seen::new();
        let mut out = Vec::new();
        for syslog in &file.syslog {
            let events = self.events(syslog.events.as_ref());
            let queue = match &syslog.queue {
                Some(at) if !QUEUE.contains(&at.value.0) => {
                    self.push(
                        Problem::error("a queue cannot have this size").at(&at.span, "64KiB to 1GiB is possible"),
                    );
                    None
                }
                Some(at) => Some(at.value.0),
                None => Some(DEFAULT_QUEUE),
            };
            let tls = syslog.tls.as_ref().map(|tls| self.tls(tls));
            let Some(at) = &syslog.server else { continue };
            let Some(server) = at.value.parse::<SocketAddr>().ok().filter(|server| server.port() != 0) else {
                self.push(
                    Problem::error(format!("`{}` is no collector", shown(&at.value)))
                        .at(&at.span, "write its address and port, like \"10.0.40.10:6514\"")
                        .help("a name cannot stand here: events are told when names may not resolve"),
                );
                continue;
            };
            if let Some(before) = seen.insert(server, at.span.clone()) {
                self.push(
                    Problem::error(format!("the collector {server} is there twice"))
                        .at(&at.span, "and here")
                        .at(&before, "here")
                        .help("make it one [[syslog]] with the events of both"),
                );
            }
            let tls = match tls {
                None => None,
                Some(None) => continue,
                Some(tls) => tls,
            };
            let (Some(events), Some(queue)) = (events, queue) else { continue };
            let denied = syslog.denied.as_ref().is_some_and(|at| at.value);
            out.push(model::Syslog { server, tls, events, denied, queue, line: self.line(&syslog.span) });
        }
        out
    }

    /// Those that are written, or all.
    pub(super) fn events(&mut self, written: Option<&At<Vec<At<String>>>>) -> Option<Set<EventKind>> {
        let Some(written) = written else { return Some(EventKind::ALL.into()) };
        if self.is_empty(written) {
            self.push(
                Problem::error("`events` names nothing that could be told")
                    .at(&written.span, "empty")
                    .help("leave `events` out to be told of all"),
            );
            return None;
        }
        let words = EventKind::ALL.map(|kind| (kind.word(), kind));
        let kinds: Vec<_> = written.value.iter().map(|at| self.word(at, "kind of event", &words)).collect();
        kinds.into_iter().collect()
    }

    fn tls(&mut self, tls: &Tls) -> Option<model::Tls> {
        let mut file = |at: &Option<At<String>>| at.as_ref().map(|at| self.path(at));
        let (ca, certificate, key) = (file(&tls.ca), file(&tls.certificate), file(&tls.key));
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate?, key?)),
            (certificate, _) => {
                let (there, missing) =
                    if certificate.is_some() { ("certificate", "key") } else { ("key", "certificate") };
                self.push(
                    Problem::error(format!("`tls` has a `{there}` and no `{missing}`"))
                        .at(&tls.span, format!("`{missing}` is missing here"))
                        .help("a client certificate is of use only with its key"),
                );
                return None;
            }
        };
        if let Some(at) = &tls.name
            && !is_name(&at.value)
        {
            self.push(
                Problem::error(format!("`{}` cannot be the name in a certificate", shown(&at.value)))
                    .at(&at.span, "write it like \"logs.example.org\""),
            );
            return None;
        }
        Some(model::Tls {
            ca: ca??,
            name: tls.name.as_ref().map(|at| at.value.clone()),
            identity: identity.map(|(certificate, key)| model::Identity { certificate, key }),
        })
    }

    /// An absolute path: routerd's folder is nobody's business.
    pub(super) fn path(&mut self, at: &At<String>) -> Option<PathBuf> {
        if at.value.starts_with('/') && !at.value.chars().any(char::is_control) {
            return Some(PathBuf::from(&at.value));
        }
        self.push(
            Problem::error(format!("`{}` is no absolute path", shown(&at.value)))
                .at(&at.span, "a path begins with `/` here"),
        );
        None
    }
}

/// A name of a machine, as it can stand in a certificate.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    text.len() <= 253 && text.split('.').all(label)
}

const QUEUE: RangeInclusive<u64> = 64 << 10..=1 << 30;
/// Some 50,000 events.
const DEFAULT_QUEUE: u64 = 16 << 20;
