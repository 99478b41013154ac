//! The journal: small groups of batches, on disk before the engine has them.
//!
//! Making the engine's own log durable takes two waits for the disk, and each batch and each flush
//! wakes seven of its threads. A small group is written here first, in one place and with one wait,
//! and only then put into the engine in memory, row by row: the journal is what makes it atomic.
//! When the journal is full, the next group goes to the engine
//! and the engine to the disk, with a new **generation** in the same atomic batch: at that moment
//! everything journalled is obsolete. On opening, the records of the engine's generation are
//! applied again, in order; a row then has its last value, whichever of them the engine had kept.
//!
//! A record fills whole blocks, so that writing one never touches another that counts, and is
//! believed only with its checksum over generation and place. The file never grows.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use alloy::primitives::Keccak256;

use crate::store::Fault;
use crate::store::batch::Change;

/// The journal's name in the directory.
const NAME: &str = "journal";
/// What a disk writes whole or not at all.
const BLOCK: usize = 4096;
/// The file's size: one record per block at most.
const FILE: usize = 64 * BLOCK;
/// The most bytes of rows journalled in one generation: what the engine holds in memory alone.
pub(in crate::store) const ROWS: usize = 32 * 1024;
/// Generation, length, checksum.
const HEADER: usize = 8 + 4 + SUM;
/// Bytes of a checksum.
const SUM: usize = 16;
/// Stands for the length of a value that is not there: a removed row.
const REMOVED: u32 = u32::MAX;

/// The journal's file and where the next record goes.
#[derive(Debug)]
pub(in crate::store) struct Journal {
    file: File,
    generation: u64,
    end: usize,
    rows: usize,
}

impl Journal {
    /// Opens the journal in `dir`, or makes it; its name is durable once the directory is.
    pub(in crate::store) fn open(dir: &Path, generation: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(dir.join(NAME))?;
        if file.metadata()?.len() < FILE as u64 {
            // Written, not only allocated: a record then changes no metadata.
            file.write_all_at(&vec![0; FILE], 0)?;
            file.sync_all()?;
        }
        Ok(Self {
            file,
            generation,
            end: 0,
            rows: 0,
        })
    }

    /// The generation whose records count.
    pub(in crate::store) const fn generation(&self) -> u64 {
        self.generation
    }

    /// The groups of this generation, in the order written, up to the first that is not whole.
    ///
    /// # Errors
    /// When the disk fails, or holds records of a later generation: then the engine has lost what
    /// it had on disk, and money with it.
    pub(in crate::store) fn groups(&self) -> Result<Vec<Vec<Change>>, Fault> {
        let mut bytes = vec![0; FILE];
        self.file.read_exact_at(&mut bytes, 0)?;
        let mut groups = Vec::new();
        let mut at = 0;
        while let Some(record) = record(&bytes, at) {
            if record.generation > self.generation {
                let lost = "it lacks what was on disk before its journal was last written";
                return Err(Fault(lost.to_owned()));
            }
            if record.generation < self.generation {
                break;
            }
            groups.push(record.group);
            at += record.len.next_multiple_of(BLOCK);
        }
        Ok(groups)
    }

    /// Writes a group and waits until it is on disk. False, and nothing is written, when there is
    /// no room for it: it must go to the engine with [`Journal::renew`].
    pub(in crate::store) fn append(&mut self, group: &[Change]) -> Result<bool, Fault> {
        let size = |(row, value): &Change| row.len() + value.as_ref().map_or(0, Vec::len);
        let rows: usize = group.iter().map(size).sum();
        if self.rows + rows > ROWS {
            return Ok(false);
        }
        let mut record = vec![0; HEADER];
        encode(group, &mut record);
        let len = record.len() - HEADER;
        let place = record.len().next_multiple_of(BLOCK);
        if self.end + place > FILE {
            return Ok(false);
        }
        let sum = checksum(self.generation, self.end, &record[HEADER..]);
        record[..8].copy_from_slice(&self.generation.to_be_bytes());
        record[8..12].copy_from_slice(&small(len).to_be_bytes());
        record[12..HEADER].copy_from_slice(&sum);
        self.file.write_all_at(&record, self.end as u64)?;
        self.file.sync_data()?;
        self.end += place;
        self.rows += rows;
        Ok(true)
    }

    /// Begins a new generation: the engine has everything of the old one on disk.
    pub(in crate::store) const fn renew(&mut self, generation: u64) {
        self.generation = generation;
        self.end = 0;
        self.rows = 0;
    }
}

/// A whole record.
struct Record {
    generation: u64,
    group: Vec<Change>,
    len: usize,
}

/// The record at this place, if its checksum holds.
fn record(file: &[u8], at: usize) -> Option<Record> {
    let (header, rest) = file.get(at..)?.split_at_checked(HEADER)?;
    let (generation, header) = header.split_first_chunk()?;
    let (len, sum) = header.split_first_chunk()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    let rows = rest.get(..len)?;
    let generation = u64::from_be_bytes(*generation);
    let whole = sum == checksum(generation, at, rows);
    Some(Record {
        generation,
        group: whole.then(|| decode(rows)).flatten()?,
        len: HEADER + len,
    })
}

fn checksum(generation: u64, at: usize, rows: &[u8]) -> [u8; SUM] {
    let mut hash = Keccak256::new();
    hash.update(generation.to_be_bytes());
    hash.update((at as u64).to_be_bytes());
    hash.update(rows);
    let mut sum = [0; SUM];
    sum.copy_from_slice(&hash.finalize()[..SUM]);
    sum
}

/// Rows, one after the other: each length before its bytes.
fn encode(group: &[Change], out: &mut Vec<u8>) {
    for (row, value) in group {
        out.extend_from_slice(&small(row.len()).to_be_bytes());
        out.extend_from_slice(row);
        let len = value.as_ref().map_or(REMOVED, |value| small(value.len()));
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(value.as_deref().unwrap_or_default());
    }
}

fn decode(mut rows: &[u8]) -> Option<Vec<Change>> {
    let mut group = Vec::new();
    while !rows.is_empty() {
        let (row, rest) = piece(rows)?;
        let row = row?.to_vec();
        let (value, rest) = piece(rest)?;
        group.push((row, value.map(<[u8]>::to_vec)));
        rows = rest;
    }
    Some(group)
}

/// A length and so many bytes; none for what was removed.
fn piece(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    let len = u32::from_be_bytes(*len);
    if len == REMOVED {
        return Some((None, rest));
    }
    let (bytes, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    Some((Some(bytes), rest))
}

/// Lengths here are bounded by [`ROWS`].
fn small(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(REMOVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(n: u8) -> Vec<Change> {
        vec![
            (vec![n], Some(vec![n; 700])),
            (vec![n, n], None),
            (Vec::new(), Some(Vec::new())),
        ]
    }

    fn filled(dir: &Path, generation: u64, count: u8) -> Journal {
        let mut journal = Journal::open(dir, generation).expect("opens");
        for n in 1..=count {
            assert!(journal.append(&group(n)).expect("writes"), "{n} fits");
        }
        journal
    }

    #[test]
    fn what_was_written_is_read_in_order() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = filled(dir.path(), 7, 9);
        let expected: Vec<_> = (1..=9).map(group).collect();
        assert_eq!(journal.groups().expect("reads"), expected);
        let again = Journal::open(dir.path(), 7).expect("opens");
        assert_eq!(again.groups().expect("reads"), expected);
    }

    #[test]
    fn another_generation_counts_for_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let mut journal = filled(dir.path(), 7, 9);
        journal.renew(8);
        assert_eq!(journal.groups().expect("reads"), Vec::<Vec<Change>>::new());
        assert!(journal.append(&group(1)).expect("writes"));
        // The old second record is still there, and not believed.
        assert_eq!(journal.groups().expect("reads"), [group(1)]);
    }

    #[test]
    fn records_of_a_later_generation_show_that_the_engine_lost_something() {
        let dir = tempfile::tempdir().expect("dir");
        drop(filled(dir.path(), 7, 1));
        let older = Journal::open(dir.path(), 6).expect("opens");
        assert!(older.groups().is_err());
    }

    #[test]
    fn a_torn_record_ends_the_journal_and_hurts_no_other() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = filled(dir.path(), 7, 5);
        for torn in 0..5_u8 {
            for byte in [0, 9, 20, 300, 700] {
                let at = u64::from(torn) * BLOCK as u64 + byte;
                let mut old = [0];
                journal.file.read_exact_at(&mut old, at).expect("reads");
                journal.file.write_all_at(&[!old[0]], at).expect("writes");
                let expected: Vec<_> = (1..=torn).map(group).collect();
                assert_eq!(journal.groups().expect("reads"), expected, "at {at}");
                journal.file.write_all_at(&old, at).expect("writes");
            }
        }
    }

    #[test]
    fn a_full_journal_takes_nothing_until_it_is_renewed() {
        let dir = tempfile::tempdir().expect("dir");
        let mut journal = Journal::open(dir.path(), 0).expect("opens");
        let mut taken = 0;
        while journal.append(&group(1)).expect("writes") {
            taken += 1;
        }
        assert_eq!(taken, ROWS / 703);
        let large = vec![(vec![1], Some(vec![1; ROWS]))];
        assert!(!journal.append(&large).expect("answers"));
        journal.renew(1);
        assert!(journal.append(&group(1)).expect("writes"));
        assert_eq!(journal.file.metadata().expect("there").len(), FILE as u64);
    }
}
