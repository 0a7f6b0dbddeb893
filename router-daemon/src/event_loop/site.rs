//! The site files: the one the operator edits, and the last one that was applied. Texts come in, [`Accepted`]
//! configs come out.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::Config;

use super::refusal;
use crate::ask::Refusal;

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Site {
    /// The operator's file.
    pub file: PathBuf,
    /// Holds `running.toml`, the last text that was applied.
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
            let told = broken.iter().map(|broken| format!("{}: `{}`: {}", broken.line, broken.text, broken.why));
            return Err(refusal("assert", told.collect::<Vec<_>>().join("\n")));
        }
        let warnings = parsed.warnings.iter().map(|warning| format!("line {}: {}", warning.line, warning.message));
        Ok(Self { warnings: warnings.collect(), config: Arc::new(parsed.config), text: Arc::from(text) })
    }
}

impl Site {
    /// The operator's file; where that is no good, the last one that was applied, and what is wrong with the first.
    pub fn load(&self) -> (Option<Accepted>, Option<String>) {
        match read(&self.file) {
            Ok(accepted) => (Some(accepted), None),
            Err(trouble) => match read(&self.running()) {
                Ok(accepted) => {
                    let told = format!("the last applied configuration is in force, because of this:\n{trouble}");
                    (Some(accepted), Some(told))
                }
                Err(_) => (None, Some(format!("everything is denied, because there is no configuration:\n{trouble}"))),
            },
        }
    }

    /// The operator's file alone.
    pub fn operators(&self) -> Result<Accepted, String> {
        read(&self.file)
    }

    /// Keeps a text that the kernel took: either the old one or this one is there, whenever the power fails.
    pub fn keep(&self, text: &str) -> io::Result<()> {
        fs::create_dir_all(&self.state)?;
        let beside = self.state.join("running.toml.tmp");
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, self.running())?;
        File::open(&self.state)?.sync_all()
    }

    fn running(&self) -> PathBuf {
        self.state.join("running.toml")
    }
}

fn read(path: &Path) -> Result<Accepted, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Accepted::new(&path.display().to_string(), &text).map_err(|refusal| refusal.message)
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
        assert!(refusal.message.contains("guests -> office allow"), "{}", refusal.message);
        Accepted::new("site.toml", minimal).unwrap();
    }

    #[test]
    fn a_kept_text_is_the_one_that_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site { file: folder.path().join("site.toml"), state: folder.path().join("state") };
        site.keep("one").unwrap();
        site.keep("two").unwrap();
        assert_eq!(fs::read_to_string(site.running()).unwrap(), "two");
        assert_eq!(fs::read_dir(&site.state).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_file_falls_back_to_the_last_applied_one_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site { file: folder.path().join("site.toml"), state: folder.path().to_owned() };
        let (accepted, trouble) = site.load();
        assert!(accepted.is_none());
        assert!(trouble.unwrap().contains("cannot read"));

        site.keep(include_str!("../../../config/examples/minimal.toml")).unwrap();
        fs::write(&site.file, "[site\n").unwrap();
        let (accepted, trouble) = site.load();
        assert_eq!(accepted.unwrap().config.site, "minimal");
        assert!(trouble.unwrap().contains("site.toml"));
    }
}
