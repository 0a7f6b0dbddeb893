//! Where changes of state are told: collectors, webhooks, hooks.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

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

    pub(super) fn webhooks(&mut self) -> Vec<model::Webhook> {
        let file = self.file;
        let mut out = Vec::new();
        for webhook in &file.webhooks {
            let events = self.events(webhook.events.as_ref());
            let timeout = self.timeout(webhook.timeout.as_ref(), DEFAULT_WEBHOOK_TIMEOUT);
            let ca = webhook.ca.as_ref().map(|at| self.path(at));
            let secret = match (&webhook.secret, &webhook.header) {
                (Some(at), header) => Some((|| {
                    let file = self.path(at)?;
                    let header = match header {
                        None => "Authorization".to_owned(),
                        Some(at) => self.header(at)?,
                    };
                    Some(model::Secret { header, file })
                })()),
                (None, Some(at)) => {
                    self.push(
                        Problem::error("`header` says where a secret goes, and there is none")
                            .at(&at.span, "there is no `secret` beside it")
                            .help("write, for example, `secret = \"/etc/quadway/webhook.secret\"`"),
                    );
                    Some(None)
                }
                (None, None) => None,
            };
            let Some(at) = &webhook.url else { continue };
            let url = match url(&at.value) {
                Ok(url) => url,
                Err(why) => {
                    // What follows the host may be a secret.
                    self.push(
                        Problem::error("this is no URL that can be told anything")
                            .at(&at.span, why)
                            .help("write it like \"https://hooks.example.org/quadway\""),
                    );
                    continue;
                }
            };
            if let Some(secret) = &webhook.secret
                && !url.tls
                && !is_here(&url.host)
            {
                self.push(
                    Problem::error("a secret would leave in the clear")
                        .at(&at.span, "this is not https")
                        .at(&secret.span, "the secret"),
                );
            }
            let (Some(events), Some(timeout)) = (events, timeout) else { continue };
            if secret == Some(None) || ca == Some(None) {
                continue;
            }
            out.push(model::Webhook {
                url,
                secret: secret.flatten(),
                ca: ca.flatten(),
                events,
                timeout,
                line: self.line(&webhook.span),
            });
        }
        out
    }

    /// Whether a program is there, and whose it is, is asked when it is to be run.
    pub(super) fn hooks(&mut self) -> Vec<model::Hook> {
        let file = self.file;
        let mut out = Vec::new();
        for hook in &file.hooks {
            let events = self.events(hook.events.as_ref());
            let timeout = self.timeout(hook.timeout.as_ref(), DEFAULT_HOOK_TIMEOUT);
            let run = hook.run.as_ref().and_then(|at| self.path(at));
            let (Some(events), Some(timeout), Some(run)) = (events, timeout, run) else { continue };
            out.push(model::Hook { run, events, timeout, line: self.line(&hook.span) });
        }
        out
    }

    /// For one attempt to tell somebody.
    pub(super) fn timeout(&mut self, written: Option<&At<Duration>>, default: Duration) -> Option<Duration> {
        let Some(at) = written else { return Some(default) };
        if TIMEOUT.contains(&at.value) {
            return Some(at.value);
        }
        self.push(Problem::error("an attempt cannot take this long").at(&at.span, "100ms to 10m is possible"));
        None
    }

    /// RFC 9110, 5.6.2.
    fn header(&mut self, at: &At<String>) -> Option<String> {
        let good = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if (1..=64).contains(&at.value.len()) && at.value.chars().all(good) {
            return Some(at.value.clone());
        }
        self.push(
            Problem::error(format!("`{}` cannot be the name of a header", shown(&at.value)))
                .at(&at.span, "write it like \"Authorization\" or \"X-Token\""),
        );
        None
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

/// Of `http` and `https`.
fn url(text: &str) -> Result<model::Url, &'static str> {
    let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        (None, None) => return Err("it begins with neither https:// nor http://"),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("a name and password cannot stand here: write a header and the `secret` it gets");
    }
    let default = if tls { 443 } else { 80 };
    let whole = authority.parse::<SocketAddr>().map(|at| (at.ip().to_string(), Some(at.port())));
    let bare = || {
        let inside = authority.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok()?;
        Some((inside.to_string(), None))
    };
    let named = || match authority.rsplit_once(':') {
        Some((host, port)) => Some((host.to_owned(), Some(port.parse::<u16>().ok()?))),
        None => Some((authority.to_owned(), None)),
    };
    let (host, port) = whole.ok().or_else(bare).or_else(named).ok_or("that is no port")?;
    let port = port.unwrap_or(default);
    if port == 0 {
        return Err("that is no port");
    }
    if host.parse::<std::net::IpAddr>().is_err() && !is_name(&host) {
        return Err("that is no name of a machine");
    }
    if path.contains('#') || !path.chars().all(|c| c.is_ascii_graphic()) {
        return Err("a path has only letters, digits and signs of ASCII, and no #");
    }
    let path = match path.chars().next() {
        None => "/".to_owned(),
        Some('?') => format!("/{path}"),
        Some(_) => path.to_owned(),
    };
    Ok(model::Url { tls, host, port, path })
}

/// What is said to this machine nobody overhears.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A name of a machine, as it can stand in a certificate.
pub(super) fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    text.len() <= 253 && text.split('.').all(label)
}

const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(10);
const DEFAULT_WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_HOOK_TIMEOUT: Duration = Duration::from_secs(30);
const QUEUE: RangeInclusive<u64> = 64 << 10..=1 << 30;
/// Some 50,000 events.
const DEFAULT_QUEUE: u64 = 16 << 20;
