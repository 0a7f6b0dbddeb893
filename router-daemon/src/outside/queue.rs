//! Records that wait on the disk: what is pushed is there after a restart, in order, until it is settled. The size is
//! bounded; the oldest give way, and how many did is known until somebody was told.
//!
//! ```text
//!   folder/0000000000000001.log   records: length (4 bytes, big endian), check (4), bytes
//!   folder/0000000000000002.log   the last one grows
//!   folder/position.json          up to where everything is settled
//! ```
//!
//! A record counts only if its check fits, so a write that was torn ends a file and nothing else. Settling less than
//! was settled is the error that is allowed here: a record may come twice, and never not at all. Everything blocks:
//! its owner is a thread that nobody waits for.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::history::replace;

#[derive(Debug)]
pub(super) struct Queue {
    folder: PathBuf,
    limit: u64,
    /// Oldest first; the last one grows while `growing` is there.
    segments: VecDeque<Segment>,
    growing: Option<File>,
    reading: Option<(u64, File)>,
    next_number: u64,
    /// Up to here was handed out.
    sent: Cursor,
    settled: Cursor,
    /// Lost, and nobody was told yet.
    untold: u64,
    /// Of those, what [`take_news_of_losses`](Self::take_news_of_losses) has yet to say.
    news: u64,
    /// The disk does not have it all.
    dirty: bool,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    /// Of whole records.
    bytes: u64,
    records: u64,
}

/// A place between two records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Cursor {
    segment: u64,
    offset: u64,
    /// Records of the segment before it.
    index: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Position {
    settled: Cursor,
    untold: u64,
}

impl Queue {
    /// With what an earlier run left in the folder.
    pub(super) fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let position = fs::read(folder.join(POSITION)).ok();
        let Position { settled, mut untold } =
            position.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let mut numbers = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok());
            if let Some(number) = number.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        let mut segments = VecDeque::new();
        for &number in &numbers {
            let path = path(folder, number);
            if number < settled.segment {
                fs::remove_file(path)?;
                continue;
            }
            let (segment, torn) = scan(&path, number)?;
            // What cannot be read was at least one record.
            untold = untold.saturating_add(u64::from(torn));
            if segment.records == 0 {
                fs::remove_file(path)?;
            } else {
                segments.push_back(segment);
            }
        }
        let last = numbers.last().copied().unwrap_or_default().max(settled.segment);
        let next_number = last.checked_add(1).ok_or_else(|| io::Error::other("a file has an impossible number"))?;
        let mut queue = Self {
            folder: folder.to_owned(),
            limit,
            segments,
            growing: None,
            reading: None,
            next_number,
            sent: settled,
            settled,
            untold,
            news: 0,
            dirty: false,
        };
        queue.make_room(0);
        Ok(queue)
    }

    /// Appends a record. Where it fails the record is lost and counted.
    pub(super) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        self.append(record).inspect_err(|_| self.lose(1))
    }

    /// Something was lost on its way to the queue.
    pub(super) fn lose(&mut self, count: u64) {
        self.untold = self.untold.saturating_add(count);
        self.news = self.news.saturating_add(count);
        self.dirty |= count > 0;
    }

    /// How many were lost since this was asked last.
    pub(super) fn take_news_of_losses(&mut self) -> u64 {
        std::mem::take(&mut self.news)
    }

    /// How many were lost since somebody was told.
    pub(super) fn untold(&self) -> u64 {
        self.untold
    }

    /// The next record to send.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let segment = self.segments.iter().find(|segment| segment.number >= self.sent.segment)?;
            let (number, bytes, records) = (segment.number, segment.bytes, segment.records);
            if number > self.sent.segment {
                self.sent = Cursor { segment: number, offset: 0, index: 0 };
            }
            if self.sent.offset >= bytes {
                // The growing one goes on where it is.
                self.segments.iter().find(|segment| segment.number > number)?;
                self.sent = Cursor { segment: number + 1, offset: 0, index: 0 };
                continue;
            }
            match self.read(number) {
                Ok(record) => {
                    self.sent.offset += HEADER + record.len() as u64;
                    self.sent.index += 1;
                    return Some(record);
                }
                Err(_unreadable) => {
                    // Nobody can tell where the next one begins.
                    self.lose(records.saturating_sub(self.sent.index));
                    self.sent = Cursor { segment: number, offset: bytes, index: records };
                }
            }
        }
    }

    /// What was handed out up to here.
    pub(super) fn sent(&self) -> Cursor {
        self.sent
    }

    /// Hand out again what is not settled.
    pub(super) fn rewind(&mut self) {
        self.sent = self.settled;
    }

    /// Everything up to here has arrived, and so has the word of `told` losses.
    pub(super) fn settle(&mut self, up_to: Cursor, told: u64) {
        self.untold = self.untold.saturating_sub(told);
        self.settled = self.settled.max(up_to);
        self.sent = self.sent.max(self.settled);
        self.dirty = true;
        while let Some(first) = self.segments.front() {
            let done = first.number < self.settled.segment
                || (first.number == self.settled.segment && self.settled.offset >= first.bytes);
            if !done {
                return;
            }
            self.remove_first();
        }
    }

    /// Records that have not been settled.
    pub(super) fn waiting(&self) -> u64 {
        let all: u64 = self.segments.iter().map(|segment| segment.records).sum();
        let done = self.segments.front().filter(|first| first.number == self.settled.segment);
        all - done.map_or(0, |_| self.settled.index).min(all)
    }

    /// Until then a power failure may lose what was pushed, or bring back what was settled.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        if let Some(file) = &self.growing {
            file.sync_data()?;
        }
        let position = Position { settled: self.settled, untold: self.untold };
        replace(&self.folder.join(POSITION), &serde_json::to_string(&position)?)
    }

    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let size = HEADER + record.len() as u64;
        if record.len() > LONGEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.make_room(size);
        if self.segments.back().is_some_and(|last| last.bytes + size > self.limit / SEGMENTS) {
            self.growing = None;
        }
        let file = match &mut self.growing {
            Some(file) => file,
            none => {
                let number = self.next_number;
                let mut options = OpenOptions::new();
                let file = options.append(true).create_new(true).mode(0o600).open(path(&self.folder, number))?;
                self.next_number += 1;
                self.segments.push_back(Segment { number, bytes: 0, records: 0 });
                none.insert(file)
            }
        };
        let Some(segment) = self.segments.back_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        self.dirty = true;
        if let Err(error) = file.write_all(&framed(record)) {
            // What stands there of it must not stand before the next one.
            if file.set_len(segment.bytes).is_err() {
                self.growing = None;
            }
            return Err(error);
        }
        segment.bytes += size;
        segment.records += 1;
        Ok(())
    }

    fn make_room(&mut self, size: u64) {
        while self.segments.iter().map(|segment| segment.bytes).sum::<u64>() + size > self.limit
            && let Some(first) = self.segments.front()
        {
            let lost = match first.number.cmp(&self.sent.segment) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => first.records.saturating_sub(self.sent.index),
                std::cmp::Ordering::Greater => first.records,
            };
            self.lose(lost);
            self.remove_first();
        }
    }

    fn remove_first(&mut self) {
        let Some(first) = self.segments.pop_front() else { return };
        if self.segments.is_empty() {
            self.growing = None;
        }
        self.reading = self.reading.take().filter(|(number, _)| *number != first.number);
        if let Err(error) = fs::remove_file(path(&self.folder, first.number)) {
            tracing::debug!(%error, "a file of the queue cannot be removed");
        }
    }

    /// The record at `sent`.
    fn read(&mut self, number: u64) -> io::Result<Vec<u8>> {
        let file = match &mut self.reading {
            Some((open, file)) if *open == number => file,
            other => &mut other.insert((number, File::open(path(&self.folder, number))?)).1,
        };
        record_at(file, self.sent.offset)
    }
}

/// Counts the whole records of a file. Whether something follows them that is none.
fn scan(path: &Path, number: u64) -> io::Result<(Segment, bool)> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut segment = Segment { number, bytes: 0, records: 0 };
    while segment.bytes < length {
        match record_at(&file, segment.bytes) {
            Ok(record) => {
                segment.bytes += HEADER + record.len() as u64;
                segment.records += 1;
            }
            Err(_torn) => return Ok((segment, true)),
        }
    }
    Ok((segment, false))
}

fn record_at(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut header = [0; 8];
    file.read_exact_at(&mut header, offset)?;
    let [a, b, c, d, check @ ..] = header;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut record = vec![0; length];
    file.read_exact_at(&mut record, offset + HEADER)?;
    if self::check(&record) != check {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(record)
}

fn framed(record: &[u8]) -> Vec<u8> {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &check(record)[..], record].concat()
}

/// Zeros, as a file system may leave them after a power failure, do not fit.
fn check(record: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(record));
    [a, b, c, d]
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016}.log"))
}

const POSITION: &str = "position.json";
const HEADER: u64 = 8;
/// Longer ones are not written, and not believed.
pub(super) const LONGEST: usize = 16 << 10;
/// Of a full queue: so much of it goes at once.
const SEGMENTS: u64 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_pushed_comes_out_in_order_and_again_until_it_is_settled() {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
        for number in 0..10 {
            queue.push(&record(number)).unwrap();
        }
        assert_eq!(all(&mut queue), (0..10).collect::<Vec<_>>());
        assert_eq!(queue.next(), None);
        queue.rewind();
        assert_eq!(number(&queue.next().unwrap()), 0);
        let one = queue.sent();
        assert_eq!(all(&mut queue), (1..10).collect::<Vec<_>>());
        queue.settle(one, 0);
        queue.rewind();
        assert_eq!((all(&mut queue), queue.waiting()), ((1..10).collect(), 9));
        queue.push(&record(10)).unwrap();
        assert_eq!(all(&mut queue), [10]);
        let end = queue.sent();
        queue.settle(end, 0);
        assert_eq!(queue.waiting(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is kept of what has arrived");
        queue.push(&record(11)).unwrap();
        assert_eq!(all(&mut queue), [11]);
    }

    #[test]
    fn a_restart_goes_on_where_it_was_settled() {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
        for number in 0..5 {
            queue.push(&record(number)).unwrap();
        }
        let _ = (queue.next(), queue.next());
        let two = queue.sent();
        queue.settle(two, 0);
        queue.lose(3);
        let _ = queue.next();
        queue.sync().unwrap();
        drop(queue);
        let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((queue.waiting(), queue.untold()), (3, 3));
        queue.push(&record(5)).unwrap();
        assert_eq!(all(&mut queue), [2, 3, 4, 5]);
        // Everything settled, and written down: what follows is not taken for old.
        let end = queue.sent();
        queue.settle(end, 3);
        queue.sync().unwrap();
        drop(queue);
        let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
        queue.push(&record(6)).unwrap();
        drop(queue);
        let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((all(&mut queue), queue.untold()), (vec![6], 0));
        // The position is gone: all of it again, and not none of it.
        queue.settle(queue.sent(), 0);
        queue.push(&record(7)).unwrap();
        queue.push(&record(8)).unwrap();
        let _ = queue.next();
        queue.settle(queue.sent(), 0);
        queue.sync().unwrap();
        fs::write(folder.path().join(POSITION), "{\"settled\":").unwrap();
        assert_eq!(all(&mut Queue::open(folder.path(), 1 << 20).unwrap()), [7, 8]);
    }

    #[test]
    fn the_oldest_give_way_and_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let limit = 64 << 10;
        let mut queue = Queue::open(folder.path(), limit).unwrap();
        for number in 0..2000 {
            queue.push(&record(number)).unwrap();
            let on_disk: u64 = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
            assert!(on_disk <= limit, "{on_disk}");
        }
        let left = all(&mut queue);
        assert_eq!(*left.last().unwrap(), 1999);
        assert_eq!(left.len() as u64 + queue.untold(), 2000);
        assert!(left.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        // Those that were handed out are not lost when they give way.
        let lost = queue.untold();
        for number in 2000..2050 {
            queue.push(&record(number)).unwrap();
        }
        assert_eq!(queue.untold(), lost);
        assert_eq!(all(&mut queue).len(), 50);
        // A smaller limit holds from the start.
        drop(queue);
        let queue = Queue::open(folder.path(), limit / 4).unwrap();
        assert!(queue.segments.iter().map(|segment| segment.bytes).sum::<u64>() <= limit / 4);
    }

    #[test]
    fn a_torn_write_costs_the_torn_record() {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
        for number in 0..3 {
            queue.push(&record(number)).unwrap();
        }
        drop(queue);
        let file = path(folder.path(), 1);
        let whole = fs::read(&file).unwrap();
        for cut in [1, 7, 9, 60] {
            fs::write(&file, &whole[..whole.len() - cut]).unwrap();
            let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
            assert_eq!((queue.untold(), all(&mut queue)), (1, vec![0, 1]), "{cut}");
        }
        // What the file system made of it.
        let mut zeros = whole.clone();
        zeros.extend([0; 4096]);
        fs::write(&file, &zeros).unwrap();
        assert_eq!(all(&mut Queue::open(folder.path(), 1 << 20).unwrap()), [0, 1, 2]);
    }

    #[test]
    fn a_full_disk_loses_what_does_not_fit_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
        queue.push(&record(0)).unwrap();
        // Every write to this file fails as on a full disk.
        let good = queue.growing.replace(OpenOptions::new().append(true).open("/dev/full").unwrap());
        let error = queue.push(&record(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(queue.untold(), 1);
        queue.growing = queue.growing.and(good);
        queue.push(&record(2)).unwrap();
        assert_eq!(all(&mut queue), [0, 2]);
        drop(queue);
        assert_eq!(all(&mut Queue::open(folder.path(), 1 << 20).unwrap()), [0, 2]);
    }

    #[test]
    fn a_record_that_is_too_long_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
        queue.push(&vec![0; LONGEST + 1]).unwrap_err();
        queue.push(&vec![1; LONGEST]).unwrap();
        assert_eq!((queue.untold(), queue.next().map(|record| record.len())), (1, Some(LONGEST)));
    }

    proptest! {
        /// Whatever somebody, or a dying disk, writes into the folder: it opens, it ends, and it goes on working.
        #[test]
        fn anything_may_stand_in_the_folder(
            files in prop::collection::vec((0_u64..6, prop::collection::vec(any::<u8>(), 0..200)), 0..4),
            position in prop::option::of(prop_oneof![
                "\\PC{0,40}",
                Just("{\"settled\":{\"segment\":3,\"offset\":18446744073709551615,\"index\":9},\"untold\":2}".to_owned()),
                Just("{\"settled\":{\"segment\":2,\"offset\":5,\"index\":0},\"untold\":0}".to_owned()),
            ]),
            flip in 0_usize..100,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
            for number in 0..3 {
                queue.push(&record(number)).unwrap();
            }
            drop(queue);
            let first = path(folder.path(), 1);
            let mut bytes = fs::read(&first).unwrap();
            let place = flip % bytes.len();
            bytes[place] ^= 1;
            fs::write(&first, bytes).unwrap();
            for (number, bytes) in files {
                fs::write(path(folder.path(), number), bytes).unwrap();
            }
            if let Some(position) = position {
                fs::write(folder.path().join(POSITION), position).unwrap();
            }
            fs::create_dir(folder.path().join("7.log")).unwrap();
            let mut queue = Queue::open(folder.path(), 1 << 20).unwrap();
            while queue.next().is_some() {}
            queue.push(&record(77)).unwrap();
            prop_assert_eq!(all(&mut queue), [77]);
            queue.settle(queue.sent(), 0);
            prop_assert_eq!(queue.waiting(), 0);
            queue.sync().unwrap();
        }
    }

    fn record(number: u64) -> Vec<u8> {
        format!("{number} {}", "x".repeat(60)).into_bytes()
    }

    fn number(record: &[u8]) -> u64 {
        std::str::from_utf8(record).unwrap().split(' ').next().unwrap().parse().unwrap()
    }

    fn all(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.next()).map(|record| number(&record)).collect()
    }
}
