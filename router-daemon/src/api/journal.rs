//! The journal as a stream for people: the lines of every file there is, the oldest first, then those to come.
//! A file is read to its end before the next one is opened, however often the files change their names meanwhile.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mwan::event::{Notice, Outcome, Request};
use mwan::journal::{Teller, Told, What};
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::event_loop::{FILES, numbered};
use crate::happening;

/// A line of the journal, told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalLine {
    /// RFC 3339, UTC.
    pub time: Option<String>,
    #[serde(flatten)]
    pub told: Told,
}

/// A line for what came in, if that is worth one, and a line for each thing that came of it.
impl fmt::Display for JournalLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.as_deref().unwrap_or("-");
        let Told { what, why, notices, decision, .. } = &self.told;
        let came_in = match what {
            What::Start { .. } => Some("routerd started".to_owned()),
            What::Checkpoint { .. } => Some("(the journal goes on in another file)".to_owned()),
            What::Config { site, digest } => {
                Some(format!("configuration {} of {site}", digest.get(..12).unwrap_or(digest)))
            }
            What::Request(Request::Drain { wan }) => Some(format!("an operator drains {wan}")),
            What::Request(Request::Undrain { wan }) => Some(format!("an operator takes {wan} back into use")),
            What::Request(Request::FailTest { wan, span }) => {
                Some(format!("an operator declares {wan} lost for {}", humantime::format_duration(*span)))
            }
            What::Request(Request::Audit { pair, span }) => {
                Some(format!("an operator audits {pair} for {}", humantime::format_duration(*span)))
            }
            What::Request(Request::EndAudit { pair }) => Some(format!("an operator ends the audit of {pair}")),
            What::Reply { wan, target, seq, outcome } => {
                let told = match outcome {
                    Outcome::Answered { rtt } => format!("answered after {:.2} ms", rtt.as_secs_f64() * 1e3),
                    Outcome::Failed { why } => format!("failed: {why:?}"),
                };
                Some(format!("probe {seq} of line {wan} to its target {target}: {told}"))
            }
            What::Silence { wan, flows, span } => {
                Some(format!("line {wan} brought nothing back to {flows} flows for {} ms", span.as_millis()))
            }
            What::Lease { wan, family, held: true } => Some(format!("a lease of {wan} {family}")),
            What::Lease { wan, family, held: false } => Some(format!("{wan} {family} has lost its lease")),
            What::Seat { active: true } => Some("this router of the pair is elected".to_owned()),
            What::Seat { active: false } => Some("the other router of the pair is elected, or none is".to_owned()),
            What::Traffic => Some("the lines' traffic was compared".to_owned()),
            What::InForce => Some("the kernel has the configuration; probing begins".to_owned()),
            What::Links => Some("links changed".to_owned()),
            What::Neighbour => Some("a gateway was seen".to_owned()),
            What::Timeout { probes: 0 } => Some("a deadline passed".to_owned()),
            What::Timeout { probes } => Some(format!("{probes} probes sent")),
        };
        // What an event came to says more than the event.
        let dull = matches!(
            what,
            What::Reply { .. }
                | What::Links
                | What::Neighbour
                | What::Traffic
                | What::Lease { .. }
                | What::Seat { .. }
                | What::Timeout { .. }
                | What::Checkpoint { .. }
        );
        let why = why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        let told: Vec<_> = came_in
            .filter(|_| !dull || notices.is_empty())
            .into_iter()
            .map(|came_in| match decision {
                Some(_) if notices.is_empty() => format!("{time} {came_in}{why}; the choice of lines changed"),
                Some(_) | None => format!("{time} {came_in}{why}"),
            })
            .chain(
                notices
                    .iter()
                    .filter(|told| !matches!(told, Notice::Configured { .. }))
                    .map(|told| format!("{time} {}", notice(told))),
            )
            .collect();
        f.write_str(&told.join("\n"))
    }
}

/// A notice told to a person.
pub fn notice(notice: &Notice) -> String {
    happening::What::of(notice).map_or_else(|| "another config".to_owned(), |what| what.to_string())
}

/// A place in the journal.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    file: BufReader<File>,
    inode: u64,
    /// A line that is being written.
    begun: Vec<u8>,
    teller: Teller,
}

impl Tail {
    /// At the beginning of the oldest file.
    pub(super) async fn open(path: &Path) -> io::Result<Self> {
        let (file, inode) = oldest(path).await?;
        Ok(Self { path: path.to_owned(), file, inode, begun: Vec::new(), teller: Teller::default() })
    }

    /// The next line that can be told; `None` where there is none yet.
    pub(super) async fn next(&mut self) -> io::Result<Option<JournalLine>> {
        // Whoever changes the files fills this one to its end before.
        let mut successor = None;
        loop {
            self.file.read_until(b'\n', &mut self.begun).await?;
            if self.begun.last() == Some(&b'\n') {
                let told = std::str::from_utf8(&self.begun).ok().and_then(|line| self.teller.tell(line));
                self.begun.clear();
                if let Some(told) = told {
                    let wall = told.wall.map(|wall| std::time::UNIX_EPOCH + std::time::Duration::from_micros(wall));
                    let time = wall.map(|wall| humantime::format_rfc3339_millis(wall).to_string());
                    return Ok(Some(JournalLine { time, told }));
                }
                continue;
            }
            match successor.take() {
                Some((file, inode)) => {
                    (self.file, self.inode) = (file, inode);
                    self.begun.clear();
                }
                None => match self.successor().await? {
                    // What was written before the change may have come after the end was seen.
                    Some(found) => successor = Some(found),
                    None => return Ok(None),
                },
            }
        }
    }

    /// The file after this one, once there is one.
    async fn successor(&self) -> io::Result<Option<(BufReader<File>, u64)>> {
        loop {
            let Some(place) = self.place().await else { return oldest(&self.path).await.map(Some) };
            let Some(newer) = place.checked_sub(1) else { return Ok(None) };
            match File::open(numbered(&self.path, newer)).await {
                // Between two renames nothing has that name.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
                // Only if the names did not change meanwhile is it the one.
                Ok(file) if self.place().await == Some(place) => {
                    let inode = file.metadata().await?.ino();
                    return Ok(Some((BufReader::new(file), inode)));
                }
                Ok(_) => {}
            }
        }
    }

    /// The number this file has at this moment. Its inode belongs to nobody else while it is open.
    async fn place(&self) -> Option<usize> {
        for number in 0..FILES {
            let metadata = tokio::fs::metadata(numbered(&self.path, number)).await;
            if metadata.is_ok_and(|metadata| metadata.ino() == self.inode) {
                return Some(number);
            }
        }
        None
    }
}

async fn oldest(path: &Path) -> io::Result<(BufReader<File>, u64)> {
    for number in (1..FILES).rev() {
        if let Ok(file) = File::open(numbered(path, number)).await {
            let inode = file.metadata().await?.ino();
            return Ok((BufReader::new(file), inode));
        }
    }
    let file = File::open(path).await?;
    let inode = file.metadata().await?.ino();
    Ok((BufReader::new(file), inode))
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use mwan::Time;

    use super::*;

    #[tokio::test]
    async fn no_line_is_missed_while_files_change_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let write =
            |text: &str| OpenOptions::new().create(true).append(true).open(&path).unwrap().write_all(text.as_bytes());
        let rotate = || {
            for number in (0..FILES - 1).rev() {
                std::fs::rename(numbered(&path, number), numbered(&path, number + 1)).ok();
            }
        };
        write("{\"t\":1}\n{\"t\":2}\n").unwrap();
        rotate();
        write("{\"t\":3}\n{\"t\":").unwrap();
        let mut tail = Tail::open(&path).await.unwrap();
        assert_eq!(times(&mut tail).await, [1, 2, 3]);
        write("4}\n").unwrap();
        rotate();
        // Two changes between two looks, and a line that is none.
        write("{\"t\":5}\nnonsense\n").unwrap();
        rotate();
        write("{\"t\":6}\n").unwrap();
        assert_eq!(times(&mut tail).await, [4, 5, 6]);
        assert!(times(&mut tail).await.is_empty());
        // So far behind that files are gone: what is left.
        for t in 7..20 {
            rotate();
            write(&format!("{{\"t\":{t}}}\n")).unwrap();
        }
        assert_eq!(times(&mut tail).await, [16, 17, 18, 19]);
    }

    async fn times(tail: &mut Tail) -> Vec<u64> {
        let mut times = Vec::new();
        while let Some(line) = tail.next().await.unwrap() {
            times.push(line.told.t.since(Time::ZERO).as_micros().try_into().unwrap());
        }
        times
    }
}
