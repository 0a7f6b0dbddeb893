//! Every config that took effect, numbered: who, when, why, and how it ended. One file each in a folder of its own,
//! written whole or not at all; the oldest go. The event loop's disk thread writes, the API reads.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use similar::TextDiff;

use crate::ask::Author;

/// The folder.
#[derive(Debug, Clone)]
pub struct History(PathBuf);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    pub number: u64,
    /// UTC.
    pub time: String,
    pub author: Author,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// SHA-256 of the text.
    pub digest: String,
    pub outcome: Outcome,
}

/// A config as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigText {
    pub text: String,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", content = "why", rename_all = "kebab-case")]
pub enum Outcome {
    /// It needed no confirmation.
    Applied,
    /// It waits.
    Unconfirmed,
    /// Who said so, or what was measured.
    Confirmed(String),
    RolledBack(String),
}

impl Outcome {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unconfirmed => "unconfirmed",
            Self::Confirmed(_) => "confirmed",
            Self::RolledBack(_) => "rolled back",
        }
    }

    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Applied | Self::Unconfirmed => None,
            Self::Confirmed(why) | Self::RolledBack(why) => Some(why),
        }
    }
}

/// A line of `routerctl history`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, time, author, message, digest, outcome } = self;
        write!(f, "{number:>4}  {time}  {}  {author}: {}", digest.get(..12).unwrap_or(digest), outcome.word())?;
        if let Some(why) = outcome.why() {
            write!(f, " ({why})")?;
        }
        message.as_ref().map_or(Ok(()), |message| write!(f, "\n      {message}"))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    entry: Entry,
    text: String,
}

impl History {
    /// Beside what else is kept in the state folder.
    pub fn of(state: &Path) -> Self {
        Self(state.join("history"))
    }

    /// Oldest first. A file that cannot be read is as good as dropped.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for number in self.numbers()? {
            if let Ok(kept) = self.read(number) {
                entries.push(kept.entry);
            }
        }
        Ok(entries)
    }

    pub fn text(&self, number: u64) -> io::Result<String> {
        Ok(self.read(number)?.text)
    }

    /// Numbers a text that took effect.
    pub fn record(&self, text: &str, author: Author, message: Option<String>, outcome: Outcome) -> io::Result<u64> {
        fs::create_dir_all(&self.0)?;
        let numbers = self.numbers()?;
        let number = numbers.last().map_or(1, |last| last + 1);
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let entry = Entry { number, time, author, message, digest: digest(text), outcome };
        self.write(&Kept { entry, text: text.to_owned() })?;
        for old in numbers.iter().take((numbers.len() + 1).saturating_sub(KEPT)) {
            fs::remove_file(self.path(*old))?;
        }
        Ok(number)
    }

    /// Numbers what a start or SIGHUP put in force, unless it is in force already.
    pub fn record_once(&self, text: &str, author: Author, outcome: Outcome) -> io::Result<u64> {
        let digest = digest(text);
        match self.in_force()? {
            Some(entry) if entry.digest == digest => Ok(entry.number),
            Some(_) | None => self.record(text, author, None, outcome),
        }
    }

    /// The newest that was not rolled back.
    pub fn in_force(&self) -> io::Result<Option<Entry>> {
        let stands = |entry: &Entry| !matches!(entry.outcome, Outcome::RolledBack(_));
        Ok(self.entries()?.into_iter().rev().find(stands))
    }

    /// Tells how the one that waits ended.
    pub fn settle(&self, outcome: &Outcome) -> io::Result<Option<u64>> {
        let waits = |entry: &Entry| entry.outcome == Outcome::Unconfirmed;
        let Some(entry) = self.entries()?.into_iter().rev().find(waits) else { return Ok(None) };
        let mut kept = self.read(entry.number)?;
        kept.entry.outcome = outcome.clone();
        self.write(&kept)?;
        Ok(Some(entry.number))
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let folder = match fs::read_dir(&self.0) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut numbers = Vec::new();
        for file in folder {
            let name = file?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::parse::<u64>);
            numbers.extend(number.and_then(Result::ok));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read(&self, number: u64) -> io::Result<Kept> {
        Ok(serde_json::from_slice(&fs::read(self.path(number))?)?)
    }

    fn write(&self, kept: &Kept) -> io::Result<()> {
        replace(&self.path(kept.entry.number), &serde_json::to_string(kept)?)?;
        File::open(&self.0)?.sync_all()
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number}.json"))
    }
}

/// The lines that differ, as `diff -u` shows them; empty where none do.
pub fn text_difference(old: &str, new: &str, names: (&str, &str)) -> String {
    TextDiff::from_lines(old, new).unified_diff().context_radius(3).header(names.0, names.1).to_string()
}

/// All of it or nothing.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_added_extension("tmp");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

/// SHA-256, in hexadecimal.
pub(crate) fn digest(bytes: impl AsRef<[u8]>) -> String {
    let hex: Vec<_> = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    hex.concat()
}

/// How many are kept.
const KEPT: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_numbered_settled_and_bounded() {
        let (_folder, history) = history();
        let alice = Author { name: "alice".to_owned(), uid: Some(1000) };
        assert_eq!(history.entries().unwrap(), []);
        assert_eq!(history.record_once("one", Author::start(), Outcome::Applied).unwrap(), 1);
        assert_eq!(history.record_once("one", Author::start(), Outcome::Applied).unwrap(), 1, "it is in force");
        let why = Some("a reason".to_owned());
        assert_eq!(history.record("two", alice.clone(), why.clone(), Outcome::Unconfirmed).unwrap(), 2);
        let back = Outcome::RolledBack("nobody confirmed it".to_owned());
        assert_eq!(history.settle(&back).unwrap(), Some(2));
        assert_eq!(history.settle(&back).unwrap(), None, "nothing waits");
        let entries = history.entries().unwrap();
        assert_eq!((&entries[1].author, &entries[1].message, &entries[1].outcome), (&alice, &why, &back));
        assert_eq!(entries[1].digest, digest("two"));
        assert_eq!(history.in_force().unwrap().unwrap().number, 1);
        assert_eq!(history.text(2).unwrap(), "two");

        for number in 3..=60 {
            assert_eq!(history.record("more", Author::start(), None, Outcome::Applied).unwrap(), number);
        }
        let numbers: Vec<_> = history.entries().unwrap().iter().map(|entry| entry.number).collect();
        assert_eq!(numbers, (11..=60).collect::<Vec<_>>());
        assert_eq!(history.text(10).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_damaged_entry_is_passed_over() {
        let (_folder, history) = history();
        history.record("one", Author::start(), None, Outcome::Applied).unwrap();
        fs::write(history.path(2), "{\"num").unwrap();
        assert_eq!(history.entries().unwrap().len(), 1);
        assert_eq!(history.record("two", Author::start(), None, Outcome::Applied).unwrap(), 3);
    }

    #[test]
    fn texts_differ_by_lines() {
        let told = text_difference("a\nb\nc\n", "a\nB\nc\n", ("1", "2"));
        assert_eq!(told, "--- 1\n+++ 2\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n");
        assert_eq!(text_difference("a\n", "a\n", ("1", "2")), "");
    }

    fn history() -> (tempfile::TempDir, History) {
        let folder = tempfile::tempdir().unwrap();
        let history = History::of(folder.path());
        (folder, history)
    }
}
