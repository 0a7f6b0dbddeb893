//! Syslog messages: RFC 5424, with everything a program needs in structured data and the sentence for people after it.
//! Pure.

use std::fmt::Write as _;

use crate::event_log::{Denied, Kind};
use crate::happening::{Happening, Severity};

/// Who speaks.
#[derive(Debug, Clone)]
pub(super) struct Speaker {
    host: String,
    process: u32,
}

impl Speaker {
    /// This machine and process.
    pub(super) fn of_system() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self::new(&host, std::process::id())
    }

    pub(super) fn new(host: &str, process: u32) -> Self {
        let host: String = host.chars().filter(char::is_ascii_graphic).take(255).collect();
        Self { host: if host.is_empty() { "-".to_owned() } else { host }, process }
    }

    pub(super) fn happening(&self, happening: &Happening) -> Vec<u8> {
        let Happening { run, number, time, severity, text, what, .. } = happening;
        let word = what.kind().word();
        let mut fields = vec![("run".to_owned(), run.to_string()), ("number".to_owned(), number.to_string())];
        fields.extend(what.fields());
        self.message(*severity, time, word, &fields, text)
    }

    pub(super) fn denied(&self, denied: &Denied) -> Vec<u8> {
        let Denied { time, kind, from, to, service, cell, reason, line, .. } = denied;
        let (word, severity) = match kind {
            Kind::Allow => ("allowed", Severity::Info),
            Kind::Forward => ("denied", Severity::Notice),
            Kind::Input => ("denied-input", Severity::Notice),
            Kind::Spoof => ("spoofed", Severity::Notice),
            Kind::Invalid => ("invalid", Severity::Notice),
            Kind::Rate => ("too-many", Severity::Notice),
            Kind::Audit => ("passed-for-audit", Severity::Notice),
        };
        let mut fields = vec![
            ("cell", cell.clone()),
            ("from", from.zone.clone()),
            ("source", from.address.to_string()),
            ("to", to.zone.clone()),
            ("destination", to.address.to_string()),
            ("service", service.clone()),
            ("reason", reason.clone()),
        ];
        fields.extend(from.host.clone().map(|host| ("source_host", host)));
        fields.extend(to.host.clone().map(|host| ("destination_host", host)));
        fields.extend(line.map(|line| ("line", line.to_string())));
        let fields: Vec<_> = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.message(severity, time, word, &fields, &denied.to_string())
    }

    /// The word of what did not get here.
    pub(super) fn dropped(&self, count: u64, time: &str) -> Vec<u8> {
        let text = format!("{count} messages of routerd were dropped: its queue was full, or its disk failed");
        self.message(Severity::Warning, time, "dropped", &[("count".to_owned(), count.to_string())], &text)
    }

    fn message(&self, severity: Severity, time: &str, word: &str, fields: &[(String, String)], text: &str) -> Vec<u8> {
        let Self { host, process } = self;
        let priority = FACILITY * 8 + severity.number();
        let mut out = format!("<{priority}>1 {time} {host} quadway {process} {word} [{SD_ID} event=\"{word}\"");
        for (name, value) in fields.iter().filter(|(name, _)| is_name(name)).take(FIELDS) {
            // A String takes all that is written to it.
            write!(out, " {name}=\"{}\"", escaped(value)).unwrap_or(());
        }
        // RFC 5424, 6.4: the mark says that it is UTF-8.
        out.push_str("] \u{feff}");
        out.push_str(&plain(text, TEXT));
        out.into_bytes()
    }
}

/// RFC 6587, 3.4.1, and RFC 5425, 4.3: the length comes first.
pub(super) fn counted(message: &[u8]) -> Vec<u8> {
    [format!("{} ", message.len()).as_bytes(), message].concat()
}

/// RFC 5424, 6.3.3: these three, and no others.
fn escaped(value: &str) -> String {
    let mut out = String::new();
    for c in plain(value, VALUE).chars() {
        if matches!(c, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Cut, and without what would break a line or move a cursor where somebody reads it.
fn plain(text: &str, longest: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if out.len() + c.len_utf8() > longest {
            out.push('…');
            break;
        }
        out.push(c);
    }
    out
}

/// RFC 5424, 6.3.3: 1 to 32 characters, none of `=`, space, `]`, `"`.
fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// The system daemons.
const FACILITY: u8 = 3;
/// The number is IANA's for examples (RFC 5612): Quadway has none of its own.
const SD_ID: &str = "quadway@32473";
/// With all of them a message stays below the 8192 bytes that a collector should take (RFC 5425, 4.3.1).
const FIELDS: usize = 12;
/// Bytes; escaping may double them.
const VALUE: usize = 256;
const TEXT: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture;
    use crate::happening::{Happenings, What};

    #[test]
    fn a_message_is_what_the_rfc_says() {
        let what = What::Health {
            wan: "wan2".parse().unwrap(),
            family: config::units::Family::V4,
            from: mwan::event::Health::Up,
            to: mwan::event::Health::Down,
            why: "a \"quoted\" ] and \\ and\nmore".to_owned(),
        };
        let happening = Happening {
            run: 1_700_000_000_000_000,
            number: 7,
            time: "2026-01-02T03:04:05.678Z".to_owned(),
            ..told(what)
        };
        let message = String::from_utf8(speaker().happening(&happening)).unwrap();
        let wanted = "<28>1 2026-01-02T03:04:05.678Z router1 quadway 42 health \
            [quadway@32473 event=\"health\" run=\"1700000000000000\" number=\"7\" family=\"v4\" from=\"up\" \
            to=\"down\" wan=\"wan2\" why=\"a \\\"quoted\\\" \\] and \\\\ and more\"] \
            \u{feff}wan2 IPv4: up -> down: a \"quoted\" ] and \\ and more";
        assert_eq!(message, wanted);
        let framed = counted(message.as_bytes());
        assert!(framed.starts_with(format!("{} <28>1 ", message.len()).as_bytes()));
    }

    #[test]
    fn a_denial_has_both_ends_and_the_line_of_the_file() {
        let message = String::from_utf8(speaker().denied(&fixture::denied())).unwrap();
        let head = "<29>1 1970-01-01T00:00:00.000Z router1 quadway 42 denied [quadway@32473 event=\"denied\" \
                    cell=\"dev->compute\" from=\"dev\"";
        assert!(message.starts_with(head), "{message}");
        for field in ["source=\"", "destination=\"", "service=\"tcp/22\"", "reason=\""] {
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn a_host_without_a_usable_name_is_nil() {
        assert!(
            String::from_utf8(Speaker::new("\n", 1).dropped(3, "-"))
                .unwrap()
                .starts_with("<28>1 - - quadway 1 dropped")
        );
    }

    proptest! {
        #[test]
        fn any_text_makes_one_message_that_can_be_taken_apart(why in "\\PC*|(?s).{0,3000}") {
            let message = speaker().happening(&told(What::RolledBack { cause: why.clone(), reason: why.clone() }));
            prop_assert!(message.len() < 8192);
            prop_assert!(message.iter().all(|byte| *byte >= b' ' && *byte != 0x7f));
            let text = String::from_utf8(message).unwrap();
            // Up to the first `]` that is not escaped stand the fields, and the values are what was told.
            let data = &text[text.find('[').unwrap()..];
            let mut end = None;
            let mut escape = false;
            for (place, c) in data.char_indices() {
                if c == ']' && !escape {
                    end = Some(place);
                    break;
                }
                escape = c == '\\' && !escape;
            }
            let fields = &data[..end.unwrap()];
            let rest = &data[end.unwrap()..];
            prop_assert!(rest.starts_with("] \u{feff}"), "{}", rest);
            let quotes = fields.replace("\\\\", "").replace("\\\"", "").matches('"').count();
            prop_assert_eq!(quotes % 2, 0);
        }
    }

    fn speaker() -> Speaker {
        Speaker::new("router1\n", 42)
    }

    fn told(what: What) -> Happening {
        let happenings = Happenings::default();
        let mut followed = happenings.follow();
        happenings.tell(what);
        Happening::clone(&followed.try_recv().unwrap())
    }
}
