//! What the operator wants: the site file, checked into a [`model::Config`] that cannot be wrong.
//!
//! This crate does no I/O and reads no clock: it is handed text and gives back a `Config`, or every problem in
//! the text at once.

mod check;
pub mod domain;
mod file;
mod lint;
pub mod model;
mod preset;
pub mod problem;
mod read;
mod suggest;
pub mod units;

pub use model::Config;
pub use problem::{Label, Problem, Problems, Severity};
pub use read::duration;

/// A file without errors, and what it was warned about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub config: Config,
    pub warnings: Problems,
}

/// Reads the text of a site file. `name` is what problems call the file.
///
/// Every problem is reported at once, except that a file which is not TOML has one: where it stops being TOML.
pub fn parse(name: &str, text: &str) -> Result<Parsed, Problems> {
    if text.len() > LARGEST {
        let problem = Problem::error(format!("the file has {} bytes", text.len()))
            .at(&(0..0), format!("a site file has at most {LARGEST}"));
        return Err(Problems::new(name, "", vec![problem]));
    }
    let root = match toml::de::DeTable::parse(text) {
        Ok(root) => root,
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            let problem = Problem::error("this is not TOML").at(&span, error.message().replace('\n', ", "));
            return Err(Problems::new(name, text, vec![problem]));
        }
    };
    let mut problems = Vec::new();
    let file = file::File::read(root.get_ref(), 0..0, &mut problems);
    let (config, origins, more) = check::run(&file, text);
    problems.extend(more);
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(Problems::new(name, text, problems));
    }
    problems.extend(lint::run(&file, &config, &origins, text));
    Ok(Parsed { config, warnings: Problems::new(name, text, problems) })
}

/// The customer's whole site is some 30 kB; 5,000 rules are 1 MB.
const LARGEST: usize = 16 << 20;
