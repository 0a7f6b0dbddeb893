//! The journal on disk: four files of at most 8 MiB, `journal.jsonl` being the one that is written and
//! `journal.jsonl.1` the one before it. Every start of the daemon begins a file, because a replay begins with an
//! empty router; a run that fills more than one is replayed from its files together.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tracing::warn;

#[derive(Debug)]
pub struct JournalFile {
    path: PathBuf,
    file: BufWriter<File>,
    written: usize,
    limit: usize,
    /// A full disk is told once, and does not stop the router.
    failing: bool,
}

impl JournalFile {
    /// Begins a file in this folder.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        Self::with_limit(folder, LIMIT)
    }

    fn with_limit(folder: &Path, limit: usize) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join("journal.jsonl");
        Ok(Self { file: next(&path)?, path, written: 0, limit, failing: false })
    }

    /// Buffered: on disk after [`flush`](Self::flush).
    pub fn write(&mut self, lines: &[String]) {
        let result = self.try_write(lines);
        self.note(result);
    }

    pub fn flush(&mut self) {
        let result = self.file.flush();
        self.note(result);
    }

    fn try_write(&mut self, lines: &[String]) -> io::Result<()> {
        for line in lines {
            if self.written + line.len() >= self.limit && self.written > 0 {
                self.file.flush()?;
                self.file = next(&self.path)?;
                self.written = 0;
            }
            self.file.write_all(line.as_bytes())?;
            self.file.write_all(b"\n")?;
            self.written += line.len() + 1;
        }
        Ok(())
    }

    fn note(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(path = %self.path.display(), %error, "cannot write the journal");
                }
            }
        }
    }
}

/// Makes room and begins the next file.
fn next(path: &Path) -> io::Result<BufWriter<File>> {
    let numbered = |number: usize| match number {
        0 => path.to_owned(),
        number => path.with_extension(format!("jsonl.{number}")),
    };
    for number in (0..FILES - 1).rev() {
        match fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(BufWriter::with_capacity(BUFFER, File::create(path)?))
}

const FILES: usize = 4;
const LIMIT: usize = 8 << 20;
const BUFFER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_keeps_four_files_and_forgets_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = JournalFile::with_limit(folder.path(), 10).unwrap();
        for number in 0..7 {
            journal.write(&[format!("line {number}")]);
        }
        journal.flush();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("journal.jsonl"), "line 6\n");
        assert_eq!(read("journal.jsonl.3"), "line 3\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_start_begins_a_file() {
        let folder = tempfile::tempdir().unwrap();
        JournalFile::begin(folder.path()).unwrap().write(&["before".to_owned()]);
        drop(JournalFile::begin(folder.path()).unwrap());
        assert_eq!(fs::read_to_string(folder.path().join("journal.jsonl.1")).unwrap(), "before\n");
        assert_eq!(fs::read_to_string(folder.path().join("journal.jsonl")).unwrap(), "");
    }
}
