//! The journal on disk: four files of at most 8 MiB, `journal.jsonl` being the one that is written and
//! `journal.jsonl.1` the one before it. Every start of the daemon begins a file, and every file begins with a
//! checkpoint, so that each can be replayed alone.
//!
//! A thread of its own writes: a disk may stand still for seconds, and the event loop must not. What the thread
//! cannot take is left out, and the next file begins as soon as it can, with a checkpoint, so that no file has a hole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use tracing::warn;

#[derive(Debug)]
pub struct JournalFile {
    work: Option<SyncSender<Work>>,
    writer: Option<JoinHandle<()>>,
    /// For the thread, which is not woken for each line: that costs more than the line.
    kept: Vec<String>,
    written: usize,
    limit: usize,
    /// Lines were left out; a file must begin before the next.
    behind: bool,
}

/// What the thread is asked to do.
enum Work {
    Lines(Vec<String>),
    Begin(String),
    Flush,
}

impl JournalFile {
    /// Begins a file in this folder.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        Self::with_limit(folder, LIMIT)
    }

    pub(crate) fn with_limit(folder: &Path, limit: usize) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join("journal.jsonl");
        let writer = Writer { file: next(&path)?, path, failing: false };
        let (work, inbox) = sync_channel(WAITING);
        let writer = thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run(&inbox))?;
        Ok(Self { work: Some(work), writer: Some(writer), kept: Vec::new(), written: 0, limit, behind: false })
    }

    /// Buffered: on disk some time after [`flush`](Self::flush). Where the file has had its fill, the next one begins
    /// with the checkpoint that `checkpoint` writes, which must be of the moment after these lines.
    pub fn write(&mut self, lines: Vec<String>, checkpoint: impl FnOnce() -> String) {
        if lines.is_empty() {
            return;
        }
        if !self.behind {
            self.written += lines.iter().map(|line| line.len() + 1).sum::<usize>();
            self.kept.extend(lines);
            if self.kept.len() >= BATCH || self.written >= self.limit {
                self.hand_over();
            }
        }
        if self.behind || self.written >= self.limit {
            let checkpoint = checkpoint();
            // A router so large that its checkpoint fills a file gets files of twice that.
            self.limit = self.limit.max(2 * checkpoint.len());
            self.written = 0;
            self.behind = !self.send(Work::Begin(checkpoint));
        }
    }

    pub fn flush(&mut self) {
        self.hand_over();
        // One that finds no room is made up for by the next, a second later.
        let _room = self.send(Work::Flush);
    }

    fn hand_over(&mut self) {
        let lines = std::mem::take(&mut self.kept);
        if !lines.is_empty() && !self.behind && !self.send(Work::Lines(lines)) {
            self.behind = true;
            warn!("the disk is too slow for the journal: some of it is left out");
        }
    }

    /// Whether there was room.
    fn send(&self, work: Work) -> bool {
        self.work.as_ref().is_some_and(|thread| thread.try_send(work).is_ok())
    }
}

/// Waits until everything is written.
impl Drop for JournalFile {
    fn drop(&mut self) {
        self.hand_over();
        self.work = None;
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            warn!("the writer of the journal panicked");
        }
    }
}

/// What the thread holds.
struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    /// A full disk is told once, and does not stop the router.
    failing: bool,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Work>) {
        for work in inbox {
            let result = self.carry_out(work);
            self.note(result);
        }
        let result = self.file.flush();
        self.note(result);
    }

    fn carry_out(&mut self, work: Work) -> io::Result<()> {
        match work {
            Work::Lines(lines) => lines.iter().try_for_each(|line| self.line(line)),
            Work::Begin(checkpoint) => {
                self.file.flush()?;
                self.file = next(&self.path)?;
                self.line(&checkpoint)
            }
            Work::Flush => self.file.flush(),
        }
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")
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
/// Lines that make a group; what happened is flushed before, once a second at least.
const BATCH: usize = 256;
/// Groups that wait for the disk: at 400 lines a second about ten seconds of them.
const WAITING: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_keeps_four_files_and_forgets_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = JournalFile::with_limit(folder.path(), 9).unwrap();
        for number in 0..6 {
            journal.write(vec![format!("a line {number}")], || format!("c{number}"));
        }
        journal.write(vec!["last".to_owned()], || unreachable!("there is room"));
        drop(journal);
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("journal.jsonl"), "c5\nlast\n");
        assert_eq!(read("journal.jsonl.1"), "c4\na line 5\n");
        assert_eq!(read("journal.jsonl.3"), "c2\na line 3\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_disk_that_stands_still_costs_lines_and_never_the_loop() {
        let (work, inbox) = sync_channel(1);
        let mut journal =
            JournalFile { work: Some(work), writer: None, kept: Vec::new(), written: 0, limit: 1 << 20, behind: false };
        journal.write(vec!["first".to_owned()], || unreachable!("there is room"));
        journal.flush();
        journal.write(vec!["lost".to_owned()], || "not yet".to_owned());
        journal.flush();
        journal.write(vec!["lost too".to_owned()], || "still not".to_owned());
        assert!(matches!(inbox.recv().unwrap(), Work::Lines(lines) if lines == ["first"]));
        journal.write(vec!["in the checkpoint".to_owned()], || "c".to_owned());
        assert!(matches!(inbox.recv().unwrap(), Work::Begin(checkpoint) if checkpoint == "c"));
        journal.write(vec!["next".to_owned()], || unreachable!("there is room"));
        journal.flush();
        assert!(matches!(inbox.recv().unwrap(), Work::Lines(lines) if lines == ["next"]));
    }

    #[test]
    fn a_start_begins_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let no_checkpoint = || unreachable!("there is room");
        JournalFile::begin(folder.path()).unwrap().write(vec!["before".to_owned()], no_checkpoint);
        drop(JournalFile::begin(folder.path()).unwrap());
        assert_eq!(fs::read_to_string(folder.path().join("journal.jsonl.1")).unwrap(), "before\n");
        assert_eq!(fs::read_to_string(folder.path().join("journal.jsonl")).unwrap(), "");
    }
}
