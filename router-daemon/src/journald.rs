//! The daemon's own log in systemd's journal, with every value as a field: `journalctl QUADWAY_WAN=wan2`. Where our
//! standard error is not the journal's, there is none of this and the log is text.
//!
//! The journal may stand still like any disk. So a line is encoded where it is written, handed to a thread of its own
//! and sent from there; what finds no room is left out, and the next line that finds some says how much.

use std::fmt::{self, Debug, Write as _};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Hands each line to the journal's thread.
#[derive(Debug)]
pub struct Journald {
    lines: SyncSender<Vec<u8>>,
    left_out: Arc<AtomicU64>,
}

/// Sends what was handed over before it ends.
#[derive(Debug)]
pub struct Flush {
    /// An empty line is the last.
    lines: SyncSender<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
}

impl Journald {
    /// `None` where our standard error does not go to the journal (`stream` is what `JOURNAL_STREAM` holds), or where
    /// its socket is not there.
    pub fn open(stream: Option<&str>) -> Option<(Self, Flush)> {
        stream.filter(|stream| is_stderr(stream))?;
        Self::at(Path::new(SOCKET)).ok()
    }

    fn at(socket: &Path) -> io::Result<(Self, Flush)> {
        let journal = UnixDatagram::unbound()?;
        journal.connect(socket)?;
        let (lines, inbox) = sync_channel(WAITING);
        let left_out = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&left_out);
        let thread =
            thread::Builder::new().name("journald".to_owned()).spawn(move || send(&journal, &inbox, &counted))?;
        let flush = Flush { lines: lines.clone(), thread: Some(thread) };
        Ok((Self { lines, left_out }, flush))
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        // Waits for room: this is the end.
        if self.lines.send(Vec::new()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            drop(thread.join());
        }
    }
}

impl<S: Subscriber> Layer<S> for Journald {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::new(*event.metadata().level());
        event.record(&mut entry);
        if self.lines.try_send(entry.finish()).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn send(journal: &UnixDatagram, inbox: &Receiver<Vec<u8>>, left_out: &AtomicU64) {
    for line in inbox {
        let missed = left_out.swap(0, Ordering::Relaxed);
        if missed > 0 {
            let mut entry = Entry::new(Level::WARN);
            entry.message = format!("{missed} lines were left out: the journal was too slow");
            drop(journal.send(&entry.finish()));
        }
        if line.is_empty() {
            return;
        }
        // A journal that restarts has another socket by the same name; what is sent meanwhile has nowhere to go.
        if journal.send(&line).is_err() && journal.connect(SOCKET).is_ok() {
            drop(journal.send(&line));
        }
    }
}

/// Is this `device:inode` that of our standard error?
fn is_stderr(stream: &str) -> bool {
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let Ok(facts) = std::fs::metadata("/proc/self/fd/2") else { return false };
    device.parse() == Ok(facts.dev()) && inode.parse() == Ok(facts.ino())
}

/// A line in the journal's native form.
struct Entry {
    bytes: Vec<u8>,
    message: String,
    fields: String,
}

impl Entry {
    fn new(level: Level) -> Self {
        let mut entry = Self { bytes: Vec::new(), message: String::new(), fields: String::new() };
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            _ => "7",
        };
        entry.put("PRIORITY", priority);
        entry.put("SYSLOG_IDENTIFIER", "routerd");
        entry
    }

    fn put(&mut self, name: &str, value: &str) {
        let value = value.get(..value.floor_char_boundary(LONGEST)).unwrap_or_default();
        self.bytes.extend(name.as_bytes());
        // A value with line breaks comes after its length.
        if value.contains('\n') {
            self.bytes.push(b'\n');
            self.bytes.extend((value.len() as u64).to_le_bytes());
        } else {
            self.bytes.push(b'=');
        }
        self.bytes.extend(value.as_bytes());
        self.bytes.push(b'\n');
    }

    /// The message as the log on a terminal has it: who reads it need not know the fields.
    fn finish(mut self) -> Vec<u8> {
        let message = std::mem::take(&mut self.message) + &std::mem::take(&mut self.fields);
        self.put("MESSAGE", &message);
        self.bytes
    }

    fn record(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        write!(self.fields, " {}={value}", field.name()).unwrap_or(());
        // The journal takes capitals, digits and `_`, up to 64.
        let name = field.name().chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
        let name: String = "QUADWAY_".chars().chain(name).take(64).collect();
        self.put(&name, value);
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = fmt::format(format_args!("{value:?}"));
        self.record(field, &value);
    }
}

const SOCKET: &str = "/run/systemd/journal/socket";
const WAITING: usize = 1024;
/// Of a value. A datagram takes some 200 KiB.
const LONGEST: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tracing::{info, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn every_value_is_a_field_and_the_message_has_them_too() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let journal = UnixDatagram::bind(&socket).unwrap();
        journal.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (layer, flush) = Journald::at(&socket).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let why = "3 of 3 targets silent\nPRIORITY=0\nforged";
            warn!(wan = %"wan2", why, flows = 214, repairs = ?["a", "b"], "health changed");
            info!(kind = "x", "{}", "y".repeat(100_000));
        });
        drop(flush);
        let entry = read(&journal);
        assert_eq!(entry["PRIORITY"], "4");
        assert_eq!(entry["SYSLOG_IDENTIFIER"], "routerd");
        assert_eq!((entry["QUADWAY_WAN"].as_str(), entry["QUADWAY_FLOWS"].as_str()), ("wan2", "214"));
        assert_eq!(entry["QUADWAY_WHY"], "3 of 3 targets silent\nPRIORITY=0\nforged");
        assert_eq!(entry["QUADWAY_REPAIRS"], "[\"a\", \"b\"]");
        assert!(entry["MESSAGE"].starts_with("health changed wan=wan2 why=3 of 3"), "{}", entry["MESSAGE"]);
        let entry = read(&journal);
        assert_eq!((entry["PRIORITY"].as_str(), entry["MESSAGE"].len()), ("6", LONGEST));
    }

    #[test]
    fn a_journal_that_stands_still_holds_up_nobody_and_is_told_what_it_missed() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let journal = UnixDatagram::bind(&socket).unwrap();
        journal.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (layer, flush) = Journald::at(&socket).unwrap();
        let told = 5000;
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for number in 0..told {
                info!(number, "told");
            }
        });
        let reader = thread::spawn(move || {
            let (mut read_ones, mut missed) = (0, 0);
            while read_ones + missed < told {
                let entry = read(&journal);
                match entry["MESSAGE"].strip_suffix(" lines were left out: the journal was too slow") {
                    Some(count) => missed += count.parse::<usize>().unwrap(),
                    None => read_ones += 1,
                }
            }
            (read_ones, missed)
        });
        drop(flush);
        let (read_ones, missed) = reader.join().unwrap();
        assert!(missed > 0 && read_ones >= WAITING, "{read_ones} {missed}");
    }

    #[test]
    fn only_the_journal_s_own_stream_counts() {
        let facts = std::fs::metadata("/proc/self/fd/2").unwrap();
        assert!(is_stderr(&format!("{}:{}", facts.dev(), facts.ino())));
        for other in ["", "1", "0:0", "a:b"] {
            assert!(!is_stderr(other), "{other}");
        }
        assert!(Journald::open(None).is_none());
    }

    fn read(journal: &UnixDatagram) -> BTreeMap<String, String> {
        let mut bytes = vec![0; 1 << 20];
        let length = journal.recv(&mut bytes).unwrap();
        let mut rest = &bytes[..length];
        let mut entry = BTreeMap::new();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let line = std::str::from_utf8(&rest[..end]).unwrap();
            rest = &rest[end + 1..];
            let (name, value) = if let Some((name, value)) = line.split_once('=') {
                (name, value.to_owned())
            } else {
                let length = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
                let value = String::from_utf8(rest[8..8 + length].to_vec()).unwrap();
                assert_eq!(rest[8 + length], b'\n');
                rest = &rest[9 + length..];
                (line, value)
            };
            assert!(entry.insert(name.to_owned(), value).is_none(), "{name} twice");
        }
        entry
    }
}
