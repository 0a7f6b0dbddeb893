//! The words an operator sees: every `bad/*.toml` is read, and what is said about it equals the `.stderr` beside it.
//! `UPDATE=1 cargo test -p config --test bad` writes them anew; read the difference before committing it.
#![expect(clippy::disallowed_methods, reason = "a test reads its corpus; the crate itself does no I/O")]

use std::fmt::Write as _;
use std::path::Path;

#[test]
fn every_bad_file_is_told_what_is_wrong_with_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let update = std::env::var("UPDATE").is_ok();
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(files.len() >= 40, "the corpus is not found");

    let mut differences = String::new();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let problems = match config::parse(name, &text) {
            Ok(parsed) if name.starts_with("lint-") => parsed.warnings,
            Err(problems) if !name.starts_with("lint-") => problems,
            Ok(_) => panic!("{name} has no error"),
            Err(problems) => panic!("{name} should only be warned about:\n{problems}"),
        };
        assert!(!problems.is_empty(), "{name} has no problem");
        let said = problems.to_string();
        let golden = path.with_extension("stderr");
        if update {
            std::fs::write(&golden, &said).unwrap();
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != said {
            writeln!(differences, "--- {name} says:\n{said}").unwrap();
        }
    }
    assert!(differences.is_empty(), "{differences}\nUPDATE=1 accepts this");
}
