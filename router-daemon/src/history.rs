//! Every config that took effect, numbered: who, when, why, and how it ended. One file each in a folder of its own,
//! written whole or not at all; the oldest go. The event loop's disk thread writes, the API reads.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
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

/// An entry with its text: what a file of the folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    #[serde(flatten)]
    pub entry: Entry,
    pub text: String,
}

/// The history that came with a config, in a bundle.
#[derive(Debug, Clone)]
pub struct Past {
    /// Oldest first.
    pub entries: Vec<Kept>,
    /// What the bundle is called where it is kept apart.
    pub name: String,
    pub bundle: Arc<[u8]>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "history", rename_all = "kebab-case")]
pub enum Inherited {
    /// This box had none.
    TakenOver { entries: usize },
    /// All of it is this box's own.
    Known,
    /// This box has another: the bundle is kept, with its history in it.
    KeptApart { file: PathBuf },
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TakenOver { entries } => write!(f, "this box had no history: it has the bundle's, {entries} entries"),
            Self::Known => f.write_str("this box keeps its history, which has all that the bundle's has"),
            Self::KeptApart { file } => {
                write!(f, "this box keeps its own history; the bundle's is in {}", file.display())
            }
        }
    }
}

impl History {
    /// Beside what else is kept in the state folder.
    pub fn of(state: &Path) -> Self {
        Self(state.join("history"))
    }

    /// The state folder.
    pub(crate) fn state(&self) -> &Path {
        self.0.parent().unwrap_or(&self.0)
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

    /// All of it, oldest first. What cannot be read is as good as dropped.
    pub fn all(&self) -> io::Result<Vec<Kept>> {
        Ok(self.numbers()?.into_iter().filter_map(|number| self.read(number).ok()).collect())
    }

    /// What came with a config becomes the history of a box that has none, with its numbers, at once or not at all.
    /// Two histories are never mixed: where there is one, the bundle is kept beside it.
    pub(crate) fn inherit(&self, past: &Past) -> io::Result<Inherited> {
        let numbers = self.numbers()?;
        let known = |kept: &Kept| self.read(kept.entry.number).is_ok_and(|own| own == *kept);
        if past.entries.iter().all(known) {
            return Ok(Inherited::Known);
        }
        if !numbers.is_empty() {
            return self.keep_apart(past);
        }
        let beside = Self(self.0.with_added_extension("tmp"));
        match fs::remove_dir_all(&beside.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir_all(&beside.0)?;
        let newest = &past.entries[past.entries.len().saturating_sub(KEPT)..];
        newest.iter().try_for_each(|kept| beside.write(kept))?;
        // A folder takes the place of an empty one.
        fs::rename(&beside.0, &self.0)?;
        File::open(self.state())?.sync_all()?;
        Ok(Inherited::TakenOver { entries: newest.len() })
    }

    fn keep_apart(&self, past: &Past) -> io::Result<Inherited> {
        let folder = self.0.with_file_name("restored");
        fs::create_dir_all(&folder)?;
        let file = folder.join(&past.name);
        replace(&file, &past.bundle)?;
        File::open(&folder)?.sync_all()?;
        let mut bundles = Vec::new();
        for bundle in fs::read_dir(&folder)? {
            let bundle = bundle?;
            bundles.push((bundle.metadata()?.modified()?, bundle.path()));
        }
        bundles.sort();
        bundles.retain(|(_, path)| *path != file);
        for (_, old) in bundles.iter().take((bundles.len() + 1).saturating_sub(KEPT_APART)) {
            fs::remove_file(old)?;
        }
        Ok(Inherited::KeptApart { file })
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
pub(crate) fn replace(path: &Path, text: impl AsRef<[u8]>) -> io::Result<()> {
    let beside = path.with_added_extension("tmp");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_ref())?;
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
/// How many bundles.
const KEPT_APART: usize = 4;

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
    fn a_box_without_a_history_takes_one_over_and_another_keeps_it_apart() {
        let (folder, old) = history();
        for text in ["one", "two"] {
            old.record(text, Author::start(), Some(format!("why {text}")), Outcome::Applied).unwrap();
        }
        let past = |name: &str| Past {
            entries: old.all().unwrap(),
            name: name.to_owned(),
            bundle: Arc::from(name.as_bytes()),
        };
        assert_eq!(old.inherit(&past("own")).unwrap(), Inherited::Known);
        assert!(!folder.path().join("restored").exists());

        let (fresh_folder, fresh) = history();
        // As a box has it that died while it took one over.
        fs::create_dir(fresh_folder.path().join("history.tmp")).unwrap();
        fs::write(fresh_folder.path().join("history.tmp/9.json"), "{").unwrap();
        assert_eq!(fresh.inherit(&past("old")).unwrap(), Inherited::TakenOver { entries: 2 });
        assert_eq!(fresh.all().unwrap(), old.all().unwrap());
        assert_eq!(fresh.record("three", Author::start(), None, Outcome::Applied).unwrap(), 3);
        assert_eq!(fs::read_dir(fresh_folder.path()).unwrap().count(), 1);

        let (folder, other) = history();
        other.record("other", Author::start(), None, Outcome::Applied).unwrap();
        let before = other.all().unwrap();
        for number in 1..=6 {
            let name = format!("{number}.tar");
            let file = folder.path().join("restored").join(&name);
            assert_eq!(other.inherit(&past(&name)).unwrap(), Inherited::KeptApart { file: file.clone() });
            assert_eq!(fs::read(file).unwrap(), name.as_bytes());
        }
        assert_eq!(other.all().unwrap(), before);
        let mut kept: Vec<_> =
            fs::read_dir(folder.path().join("restored")).unwrap().map(|file| file.unwrap().file_name()).collect();
        kept.sort();
        assert_eq!(kept, ["3.tar", "4.tar", "5.tar", "6.tar"]);
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
