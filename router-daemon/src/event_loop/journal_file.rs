//! The journal on disk: four files of at most 8 MiB, `journal.jsonl` being the one that is written and
//! `journal.jsonl.1` the one before it. Every start of the daemon begins a file, and every file begins with a
//! checkpoint, so that each can be replayed alone.

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

    pub(crate) fn with_limit(folder: &Path, limit: usize) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join("journal.jsonl");
        Ok(Self { file: next(&path)?, path, written: 0, limit, failing: false })
    }

    /// Buffered: on disk after [`flush`](Self::flush). Where the file has had its fill, the next one begins with
    /// the checkpoint that `checkpoint` writes, which must be of the moment after these lines.
    pub fn write(&mut self, lines: &[String], checkpoint: impl FnOnce() -> String) {
        let result = self.try_write(lines, checkpoint);
        self.note(result);
    }

    pub fn flush(&mut self) {
        let result = self.file.flush();
        self.note(result);
    }

    fn try_write(&mut self, lines: &[String], checkpoint: impl FnOnce() -> String) -> io::Result<()> {
        lines.iter().try_for_each(|line| self.line(line))?;
        if self.written >= self.limit {
            self.file.flush()?;
            self.file = next(&self.path)?;
            self.written = 0;
            self.line(&checkpoint())?;
            // A router so large that its checkpoint fills a file gets files of twice that.
            self.limit = self.limit.max(2 * self.written);
            self.written = 0;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")?;
        self.written += line.len() + 1;
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

/// The file of this number, 0 being the one that is written.
pub fn numbered(path: &Path, number: usize) -> PathBuf {
    match number {
        0 => path.to_owned(),
        number => path.with_extension(format!("jsonl.{number}")),
    }
}

/// Makes room and begins the next file.
fn next(path: &Path) -> io::Result<BufWriter<File>> {
    for number in (0..FILES - 1).rev() {
        match fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(BufWriter::with_capacity(BUFFER, File::create(path)?))
}

pub const FILES: usize = 4;
const LIMIT: usize = 8 << 20;
const BUFFER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_keeps_four_files_and_forgets_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = JournalFile::with_limit(folder.path(), 9).unwrap();
        for number in 0..6 {
            journal.write(&[format!("a line {number}")], || format!("c{number}"));
        }
        journal.write(&["last".to_owned()], || unreachable!("there is room"));
        journal.flush();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("journal.jsonl"), "c5\nlast\n");
        assert_eq!(read("journal.jsonl.1"), "c4\na line 5\n");
        assert_eq!(read("journal.jsonl.3"), "c2\na line 3\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_start_begins_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let no_checkpoint = || unreachable!("there is room");
        JournalFile::begin(folder.path()).unwrap().write(&["before".to_owned()], no_checkpoint);
        drop(JournalFile::begin(folder.path()).unwrap());
        assert_eq!(fs::read_to_string(folder.path().join("journal.jsonl.1")).unwrap(), "before\n");
        assert_eq!(fs::read_to_string(folder.path().join("journal.jsonl")).unwrap(), "");
    }
}
