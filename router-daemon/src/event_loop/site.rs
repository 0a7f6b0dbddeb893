//! The site files: the one the operator edits, and the last text that was applied. Texts come in, [`Accepted`]
//! configs come out.
//!
//! The last word counts. An apply is kept in `running.toml`, and beside it, in `site.seen`, what the operator's file
//! looked like at that moment. A start takes the operator's file if it has been edited since, else the applied text.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::Config;
use sha2::{Digest, Sha256};

use super::refusal;
use crate::ask::Refusal;

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Site {
    /// The operator's file.
    pub file: PathBuf,
    /// Holds `running.toml` and `site.seen`.
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
        let parsed = config::parse(name, text).map_err(|problems| refusal("config", problems.to_string()))?;
        let broken = mwan::asserts::broken(&parsed.config);
        if !broken.is_empty() {
            let told = broken.iter().map(|broken| format!("\n{}: `{}`: {}", broken.line, broken.text, broken.why));
            return Err(refusal("assert", mwan::asserts::heading(&broken) + &told.collect::<String>()));
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
}

/// What a start finds.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) accepted: Option<(Accepted, From)>,
    /// What is wrong with the files.
    pub(super) trouble: Option<String>,
}

impl Site {
    /// The last word that is any good, and what is wrong with a later one.
    pub(super) fn load(&self) -> Loaded {
        let running = || read(&self.running()).ok().map(|accepted| (accepted, From::Running));
        if self.seen().is_some_and(|seen| seen == self.looks())
            && let Some(accepted) = running()
        {
            return Loaded { accepted: Some(accepted), trouble: None };
        }
        match read(&self.file) {
            Ok(accepted) => Loaded { accepted: Some((accepted, From::File)), trouble: None },
            Err(trouble) => {
                let accepted = running();
                let instead = match accepted {
                    Some(_) => "the last applied configuration is in force, because of this",
                    None => "everything is denied, because there is no configuration",
                };
                Loaded { accepted, trouble: Some(format!("{instead}:\n{trouble}")) }
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
        let digest = |bytes: Vec<u8>| {
            let hex: Vec<_> = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            hex.concat()
        };
        fs::read(&self.file).map(digest).unwrap_or_default()
    }
}

fn read(path: &Path) -> Result<Accepted, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Accepted::new(&path.display().to_string(), &text).map_err(|refusal| refusal.message)
}

/// All of it or nothing.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_added_extension("tmp");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let Loaded { accepted, trouble } = site.load();
        assert!(accepted.is_none());
        assert!(trouble.unwrap().contains("cannot read"));

        site.keep(MINIMAL).unwrap();
        fs::write(&site.file, "[site\n").unwrap();
        let Loaded { accepted, trouble } = site.load();
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

    const MINIMAL: &str = include_str!("../../../config/examples/minimal.toml");

    fn site() -> (tempfile::TempDir, Site) {
        let folder = tempfile::tempdir().unwrap();
        let site = Site { file: folder.path().join("site.toml"), state: folder.path().join("state") };
        (folder, site)
    }
}
