//! The site files: the one the operator edits, and the last text that was applied. Texts come in, [`Accepted`]
//! configs come out.
//!
//! The last word counts. An apply is kept in `running.toml`, and beside it, in `site.seen`, what the operator's file
//! looked like at that moment. A start takes the operator's file if it has been edited since, else the applied text.
//!
//! A change that waits for its confirmation is in `pending.json` and in neither of these: it is no word yet. What
//! brings the config before it back is the last word, over whatever the operator's file says at that moment.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::Config;

use super::apply;
use super::pending::{Ended, Pending};
use crate::ask::Refusal;
use crate::history::{History, Outcome, digest, replace};

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Site {
    /// The operator's file.
    pub file: PathBuf,
    /// Holds `running.toml`, `site.seen`, `pending.json` and the history.
    pub state: PathBuf,
}

/// A text that parses and keeps its asserts.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub config: Arc<Config>,
    pub text: Arc<str>,
    pub warnings: Vec<String>,
}

impl Accepted {
    /// `name` is what problems call the file.
    pub fn new(name: &str, text: &str) -> Result<Self, Refusal> {
        let parsed = config::parse(name, text).map_err(|problems| Refusal::new("config", problems.to_string()))?;
        let broken = mwan::asserts::broken(&parsed.config);
        if !broken.is_empty() {
            let told = broken.iter().map(|broken| format!("\n{}: `{}`: {}", broken.line, broken.text, broken.why));
            return Err(Refusal::new("assert", mwan::asserts::heading(&broken) + &told.collect::<String>()));
        }
        let warnings = parsed.warnings.iter().map(|warning| format!("line {}: {}", warning.line, warning.message));
        Ok(Self { warnings: warnings.collect(), config: Arc::new(parsed.config), text: Arc::from(text) })
    }
}

/// Where a config was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// The operator's file, or the text of an apply.
    File,
    /// What was applied last.
    Running,
    /// What waits for its confirmation.
    Pending,
}

/// What a start finds.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) accepted: Option<(Accepted, From)>,
    /// What is wrong with the files.
    pub(super) trouble: Option<String>,
    /// The change that is in force and waits, with what comes back.
    pub(super) pending: Option<(Pending, Option<Accepted>)>,
    /// Why such a change was taken back.
    pub(super) rolled_back: Option<String>,
}

impl Loaded {
    fn of(accepted: Option<(Accepted, From)>, trouble: Option<String>) -> Self {
        Self { accepted, trouble, pending: None, rolled_back: None }
    }
}

impl Site {
    /// What a start begins with. What became of a change that waited is decided, and on the disk, before.
    pub(super) fn load(&self) -> Loaded {
        let pending = match self.pending() {
            Ok(None) => return self.last_word(),
            Ok(Some(pending)) => pending,
            Err(error) => {
                let trouble = format!("cannot read {}, which tells what waits: {error}", self.pending_file().display());
                let running = read(&self.running()).ok().map(|accepted| (accepted, From::Running));
                return Loaded::of(running, Some(trouble));
            }
        };
        let rolled_back = match &pending.ended {
            Some(Ended::Confirmed { .. }) => None,
            Some(Ended::RolledBack { why }) => Some(why.clone()),
            None if pending.guard => Some("routerd was restarted before the measurement ended".to_owned()),
            None if pending.left().is_zero() => {
                Some("nobody confirmed it before its time was up, while routerd did not run".to_owned())
            }
            None => match Accepted::new("the unconfirmed configuration", &pending.text) {
                Ok(accepted) => {
                    let previous = pending.previous.as_deref().and_then(|text| Accepted::new("previous", text).ok());
                    let accepted = Some((accepted, From::Pending));
                    return Loaded { pending: Some((pending, previous)), ..Loaded::of(accepted, None) };
                }
                Err(refusal) => Some(refusal.message),
            },
        };
        let ended = match (&pending.ended, &rolled_back) {
            (Some(ended), _) => ended.clone(),
            (None, why) => Ended::RolledBack { why: why.clone().unwrap_or_default() },
        };
        let text = match &ended {
            Ended::Confirmed { .. } => pending.text.clone(),
            Ended::RolledBack { .. } => pending.previous.clone().unwrap_or_else(|| apply::NOTHING.to_owned()),
        };
        let trouble = self.end(&pending, ended).unwrap_or_else(|error| Some(error.to_string()));
        let trouble =
            trouble.map(|error| format!("what became of the unconfirmed configuration was not kept: {error}"));
        match Accepted::new("the kept configuration", &text) {
            Ok(accepted) => Loaded { rolled_back, ..Loaded::of(Some((accepted, From::Running)), trouble) },
            Err(refusal) => Loaded { rolled_back, ..Loaded::of(None, Some(refusal.message)) },
        }
    }

    /// The last word that is any good, and what is wrong with a later one.
    fn last_word(&self) -> Loaded {
        let running = || read(&self.running()).ok().map(|accepted| (accepted, From::Running));
        if self.seen().is_some_and(|seen| seen == self.looks())
            && let Some(accepted) = running()
        {
            return Loaded::of(Some(accepted), None);
        }
        match read(&self.file) {
            Ok(accepted) => Loaded::of(Some((accepted, From::File)), None),
            Err(trouble) => {
                let accepted = running();
                let instead = match accepted {
                    Some(_) => "the last applied configuration is in force, because of this",
                    None => "everything is denied, because there is no configuration",
                };
                Loaded::of(accepted, Some(format!("{instead}:\n{trouble}")))
            }
        }
    }

    /// The operator's file alone.
    pub fn operators(&self) -> Result<Accepted, String> {
        read(&self.file)
    }

    /// Keeps a text that the kernel took: either the old one or this one is there, whenever the power fails.
    pub fn keep(&self, text: &str) -> io::Result<()> {
        fs::create_dir_all(&self.state)?;
        let looks = self.looks();
        replace(&self.running(), text)?;
        replace(&self.state.join("site.seen"), &looks)?;
        File::open(&self.state)?.sync_all()
    }

    /// Keeps a change that is to wait, before the kernel is touched.
    pub(super) fn begin(&self, pending: &Pending) -> io::Result<()> {
        fs::create_dir_all(&self.state)?;
        replace(&self.pending_file(), &serde_json::to_string(pending)?)?;
        File::open(&self.state)?.sync_all()
    }

    /// Decides what becomes of a change. It is decided when this is `Ok`; inside is what went wrong afterwards, which
    /// the next start makes good.
    pub(super) fn end(&self, pending: &Pending, ended: Ended) -> io::Result<Option<String>> {
        self.begin(&Pending { ended: Some(ended.clone()), ..pending.clone() })?;
        let (text, outcome) = match ended {
            Ended::Confirmed { by } => (pending.text.as_str(), Outcome::Confirmed(by)),
            Ended::RolledBack { why } => {
                (pending.previous.as_deref().unwrap_or(apply::NOTHING), Outcome::RolledBack(why))
            }
        };
        let rest = || {
            self.keep(text)?;
            self.history().settle(&outcome)?;
            self.forget()
        };
        Ok(rest().err().map(|error| error.to_string()))
    }

    /// Nothing waits.
    fn forget(&self) -> io::Result<()> {
        fs::remove_file(self.pending_file())?;
        File::open(&self.state)?.sync_all()
    }

    pub(super) fn history(&self) -> History {
        History::of(&self.state)
    }

    fn pending(&self) -> io::Result<Option<Pending>> {
        match fs::read(self.pending_file()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn pending_file(&self) -> PathBuf {
        self.state.join("pending.json")
    }

    /// What an operator should know where this text, which is in force, is not that of the operator's file.
    pub fn unlike(&self, text: &str) -> Option<String> {
        let (file, running) = (self.file.display(), self.running());
        match fs::read(&self.file) {
            Ok(bytes) if bytes == text.as_bytes() => None,
            Ok(_) if self.seen().is_some_and(|seen| seen != self.looks()) => {
                Some(format!("{file} has been edited since the last apply; the next start, or SIGHUP, takes it"))
            }
            Ok(_) | Err(_) => Some(format!(
                "what is in force differs from {file}; it stays in force over a restart until that file is edited \
                 (to make them one: cp {} {file})",
                running.display()
            )),
        }
    }

    fn running(&self) -> PathBuf {
        self.state.join("running.toml")
    }

    /// What the operator's file looked like when something was applied last.
    fn seen(&self) -> Option<String> {
        fs::read_to_string(self.state.join("site.seen")).ok()
    }

    /// What the operator's file looks like: a hash; empty where it cannot be read.
    fn looks(&self) -> String {
        fs::read(&self.file).map(digest).unwrap_or_default()
    }
}

fn read(path: &Path) -> Result<Accepted, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Accepted::new(&path.display().to_string(), &text).map_err(|refusal| refusal.message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::pending::Clock;
    use super::*;
    use crate::ask::Author;

    #[test]
    fn a_text_that_breaks_an_assert_is_refused_with_its_line() {
        let minimal = include_str!("../../../config/examples/minimal.toml");
        let text = minimal.replace("guests -> office deny", "guests -> office allow");
        let refusal = Accepted::new("site.toml", &text).unwrap_err();
        assert_eq!(refusal.code, "assert");
        let told: Vec<_> = refusal.message.lines().collect();
        assert!(
            matches!(told.as_slice(), ["refused: 1 assert would break", one] if one.contains("guests -> office allow")),
            "{told:?}"
        );
        Accepted::new("site.toml", minimal).unwrap();
    }

    #[test]
    fn a_kept_text_is_the_one_that_is_read() {
        let (_folder, site) = site();
        site.keep("one").unwrap();
        site.keep("two").unwrap();
        assert_eq!(fs::read_to_string(site.running()).unwrap(), "two");
        assert_eq!(fs::read_dir(&site.state).unwrap().count(), 2);
    }

    #[test]
    fn a_broken_file_falls_back_to_the_last_applied_one_and_says_so() {
        let (_folder, site) = site();
        let Loaded { accepted, trouble, .. } = site.load();
        assert!(accepted.is_none());
        assert!(trouble.unwrap().contains("cannot read"));

        site.keep(MINIMAL).unwrap();
        fs::write(&site.file, "[site\n").unwrap();
        let Loaded { accepted, trouble, .. } = site.load();
        assert_eq!(accepted.unwrap().0.config.site, "minimal");
        assert!(trouble.unwrap().contains("site.toml"));
    }

    #[test]
    fn the_last_word_counts_at_the_next_start() {
        let (_folder, site) = site();
        let named = |name: &str| MINIMAL.replace("\"minimal\"", &format!("\"{name}\""));
        let started = || site.load().accepted.map(|(accepted, _)| accepted.config.site.clone()).unwrap();
        fs::write(&site.file, named("file")).unwrap();
        assert_eq!(started(), "file", "the first start");
        site.keep(&named("file")).unwrap();
        assert_eq!(site.unlike(&named("file")), None);

        site.keep(&named("applied")).unwrap();
        assert_eq!(started(), "applied", "an apply survives a restart");
        assert!(site.unlike(&named("applied")).unwrap().contains("differs from"));

        fs::write(&site.file, named("edited")).unwrap();
        assert_eq!(started(), "edited", "an edit after the apply is a later word");
        assert!(site.unlike(&named("applied")).unwrap().contains("edited since"));

        fs::remove_file(&site.file).unwrap();
        site.keep(&named("applied")).unwrap();
        assert_eq!(started(), "applied", "without a file there is no other word");
    }

    #[test]
    fn a_start_goes_on_counting_or_takes_the_unconfirmed_back() {
        let (_folder, site) = site();
        let named = |name: &str| MINIMAL.replace("\"minimal\"", &format!("\"{name}\""));
        let alice = Author { name: "alice".to_owned(), uid: Some(1000) };
        let begun = Clock::now().unwrap();
        let waiting = |window: u64, ended: Option<Ended>| {
            // As it usually is: the operator edits the file and applies that.
            fs::write(&site.file, named("edited")).unwrap();
            site.keep(&named("before")).unwrap();
            fs::write(&site.file, named("waiting")).unwrap();
            let (text, previous) = (named("waiting"), Some(named("before")));
            let (author, begun) = (alice.clone(), begun.clone());
            let window = Duration::from_secs(window);
            let pending = Pending { text, previous, author, message: None, guard: false, begun, window, ended };
            site.begin(&pending).unwrap();
            site.history().record(&pending.text, alice.clone(), None, Outcome::Unconfirmed).unwrap();
            pending
        };
        let started = || {
            let loaded = site.load();
            (loaded.accepted.unwrap().0.config.site.clone(), loaded.pending.is_some(), loaded.rolled_back)
        };
        let running = || read(&site.running()).unwrap().config.site.clone();
        let outcome = || site.history().entries().unwrap().pop().unwrap().outcome;

        waiting(600, None);
        assert_eq!(started(), ("waiting".to_owned(), true, None));
        assert_eq!((running(), outcome()), ("before".to_owned(), Outcome::Unconfirmed));

        let pending = waiting(0, None);
        let (name, waits, why) = started();
        assert_eq!((name.as_str(), waits), ("before", false));
        assert!(why.unwrap().contains("nobody confirmed it"));
        assert!(matches!(outcome(), Outcome::RolledBack(_)));
        assert_eq!(started(), ("before".to_owned(), false, None), "the rollback is the last word over the file");
        assert!(!site.pending_file().exists());

        // Decided, and the power failed before the rest was done.
        waiting(600, Some(Ended::Confirmed { by: "alice".to_owned() }));
        assert_eq!(started(), ("waiting".to_owned(), false, None));
        assert_eq!((running(), outcome()), ("waiting".to_owned(), Outcome::Confirmed("alice".to_owned())));
        waiting(600, Some(Ended::RolledBack { why: "no".to_owned() }));
        assert_eq!(started(), ("before".to_owned(), false, Some("no".to_owned())));

        site.begin(&Pending { guard: true, window: Duration::from_mins(10), ..pending.clone() }).unwrap();
        assert_eq!(started().0, "before");
        site.begin(&Pending { previous: None, ..pending }).unwrap();
        assert_eq!(started().0, "nothing", "everything was denied before");

        fs::write(site.pending_file(), "{").unwrap();
        let loaded = site.load();
        assert!(loaded.trouble.unwrap().contains("pending.json"));
        assert_eq!(loaded.accepted.unwrap().0.config.site, "nothing");
    }

    const MINIMAL: &str = include_str!("../../../config/examples/minimal.toml");

    fn site() -> (tempfile::TempDir, Site) {
        let folder = tempfile::tempdir().unwrap();
        let site = Site { file: folder.path().join("site.toml"), state: folder.path().join("state") };
        (folder, site)
    }
}
