//! The journal: groups of batches, on disk before the engine's tree has them.
//!
//! A group is written here in one place and with one wait for the disk, and then staged in memory,
//! where readers see it. The file has two halves, for one **generation** each: while what the one
//! holds is folded into the tree, the next groups go into the other. The transaction that folds a
//! generation says so in the tree: at that moment its half is obsolete. On opening, the records of
//! the generations that the tree does not have are taken in, in order: one at most is whole, and
//! one may have been begun.
//!
//! A record fills whole blocks, so that writing one never touches another that counts. It is
//! believed only with its checksum, over generation, place and the checksum of the record before it:
//! so a hole in what was acknowledged is found, and never read over. The file never grows.

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
/// Of the file, for one generation: one record per block at most.
const HALF: usize = 128 * BLOCK;
const FILE: usize = 2 * HALF;
/// The most bytes of rows in one generation: twice that is in memory alone.
pub(in crate::store) const ROWS: usize = 256 * 1024;
/// Generation, length, the checksum of the record before, and its own.
const HEADER: usize = 8 + 4 + SUM + SUM;
/// Bytes of a checksum.
const SUM: usize = 16;
/// Stands for the length of a value that is not there: a removed row.
const REMOVED: u32 = u32::MAX;

/// The journal's file and where the next record goes.
#[derive(Debug)]
pub(in crate::store) struct Journal {
    file: File,
    generation: u64,
    /// Within its half.
    end: usize,
    rows: usize,
    /// The checksum of the last record.
    last: Sum,
}

type Sum = [u8; SUM];

/// Where the half of a generation begins.
const fn half(generation: u64) -> usize {
    if generation.is_multiple_of(2) {
        0
    } else {
        HALF
    }
}

impl Journal {
    /// Makes the journal in `dir`, unless it is there. Its name is durable once the directory is.
    pub(in crate::store) fn make(dir: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(dir.join(NAME))?;
        if file.metadata()?.len() < FILE as u64 {
            // Written, not only allocated: a record then changes no metadata.
            file.write_all_at(&vec![0; FILE], 0)?;
            file.sync_all()?;
        }
        Ok(())
    }

    /// Opens the journal in `dir`. `generation` is the first that the tree does not have.
    ///
    /// # Errors
    /// When the disk fails, or it is not there as a whole: what only it had would be lost.
    pub(in crate::store) fn open(dir: &Path, generation: u64) -> Result<Self, Fault> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(dir.join(NAME));
        let file = file.map_err(|error| Fault(format!("its journal: {error}")))?;
        if file.metadata()?.len() < FILE as u64 {
            return Err(Fault("its journal is cut off".to_owned()));
        }
        Ok(Self {
            file,
            generation,
            end: 0,
            rows: 0,
            last: Sum::default(),
        })
    }

    /// The generation that is written.
    pub(in crate::store) const fn generation(&self) -> u64 {
        self.generation
    }

    /// The groups that the tree does not have, in the order written, up to the first that is not
    /// whole; and the generation after theirs.
    ///
    /// # Errors
    /// When the disk fails, or the records show that the tree once had more: then money is lost
    /// with it.
    pub(in crate::store) fn groups(&self) -> Result<(Vec<Vec<Change>>, u64), Fault> {
        let mut bytes = vec![0; FILE];
        self.file.read_exact_at(&mut bytes, 0)?;
        let (first, second) = (self.generation, self.generation.saturating_add(1));
        let (first, sum) = written(&bytes, first, None)?;
        let (later, _) = written(&bytes, second, Some(sum))?;
        // The second was begun only when the first had something to fold.
        if first.is_empty() && !later.is_empty() {
            return Err(lost());
        }
        let next = second.saturating_add(u64::from(!later.is_empty()));
        Ok((first.into_iter().chain(later).collect(), next))
    }

    /// Writes a group and waits until it is on disk. False, and nothing is written, when there is
    /// no room for it in this generation.
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
        if self.end + place > HALF {
            return Ok(false);
        }
        let at = half(self.generation) + self.end;
        let sum = checksum(self.generation, at, &self.last, &record[HEADER..]);
        record[..8].copy_from_slice(&self.generation.to_be_bytes());
        record[8..12].copy_from_slice(&small(len).to_be_bytes());
        record[12..12 + SUM].copy_from_slice(&self.last);
        record[12 + SUM..HEADER].copy_from_slice(&sum);
        self.file.write_all_at(&record, at as u64)?;
        self.file.sync_data()?;
        self.last = sum;
        self.end += place;
        self.rows += rows;
        Ok(true)
    }

    /// Begins this generation: the tree has on disk what is in its half.
    pub(in crate::store) const fn renew(&mut self, generation: u64) {
        self.generation = generation;
        self.end = 0;
        self.rows = 0;
    }
}

/// The groups of a generation in its half, and the last one's checksum. The first must follow the
/// record with the checksum `before`, if that is known.
fn written(
    file: &[u8],
    generation: u64,
    before: Option<Sum>,
) -> Result<(Vec<Vec<Change>>, Sum), Fault> {
    let (mut at, end) = (half(generation), half(generation) + HALF);
    let file = file.get(..end).unwrap_or_default();
    let mut groups = Vec::new();
    let mut before = before;
    while let Some(record) = record(file, at) {
        if record.generation < generation {
            break;
        }
        if record.generation > generation || before.is_some_and(|sum| sum != record.before) {
            return Err(lost());
        }
        before = Some(record.sum);
        groups.push(record.group);
        at += record.len.next_multiple_of(BLOCK);
    }
    // What was being written when the machine died is the last there is.
    while at < end {
        if record(file, at).is_some_and(|record| record.generation >= generation) {
            return Err(lost());
        }
        at += BLOCK;
    }
    Ok((groups, before.unwrap_or_default()))
}

fn lost() -> Fault {
    Fault("its file or its journal lacks what was on disk before".to_owned())
}

/// A whole record.
struct Record {
    generation: u64,
    before: Sum,
    sum: Sum,
    group: Vec<Change>,
    len: usize,
}

/// The record at this place, if its checksum holds.
fn record(file: &[u8], at: usize) -> Option<Record> {
    let (header, rest) = file.get(at..)?.split_at_checked(HEADER)?;
    let (generation, header) = header.split_first_chunk()?;
    let (len, header) = header.split_first_chunk()?;
    let (before, sum) = header.split_first_chunk()?;
    let sum: &Sum = sum.first_chunk()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    let rows = rest.get(..len)?;
    let generation = u64::from_be_bytes(*generation);
    let whole = *sum == checksum(generation, at, before, rows);
    Some(Record {
        generation,
        before: *before,
        sum: *sum,
        group: whole.then(|| decode(rows)).flatten()?,
        len: HEADER + len,
    })
}

fn checksum(generation: u64, at: usize, before: &Sum, rows: &[u8]) -> Sum {
    let mut hash = Keccak256::new();
    hash.update(generation.to_be_bytes());
    hash.update((at as u64).to_be_bytes());
    hash.update(before);
    hash.update(rows);
    let mut sum = Sum::default();
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

    fn groups(numbers: impl IntoIterator<Item = u8>) -> Vec<Vec<Change>> {
        numbers.into_iter().map(group).collect()
    }

    fn write(journal: &mut Journal, numbers: impl IntoIterator<Item = u8>) {
        for n in numbers {
            assert!(journal.append(&group(n)).expect("writes"), "{n} fits");
        }
    }

    fn filled(dir: &Path, generation: u64, count: u8) -> Journal {
        Journal::make(dir).expect("makes");
        let mut journal = Journal::open(dir, generation).expect("opens");
        write(&mut journal, 1..=count);
        journal
    }

    #[test]
    fn what_was_written_is_read_in_order() {
        let dir = tempfile::tempdir().expect("dir");
        for generation in [7, 8] {
            let journal = filled(dir.path(), generation, 9);
            let expected = (groups(1..=9), generation + 1);
            assert_eq!(journal.groups().expect("reads"), expected);
            let again = Journal::open(dir.path(), generation).expect("opens");
            assert_eq!(again.groups().expect("reads"), expected);
        }
    }

    #[test]
    fn a_generation_that_is_being_folded_is_read_before_the_one_begun() {
        let dir = tempfile::tempdir().expect("dir");
        let mut journal = filled(dir.path(), 7, 3);
        journal.renew(8);
        write(&mut journal, 4..=6);
        let unfolded = Journal::open(dir.path(), 7).expect("opens");
        assert_eq!(unfolded.groups().expect("reads"), (groups(1..=6), 9));
        let folded = Journal::open(dir.path(), 8).expect("opens");
        assert_eq!(folded.groups().expect("reads"), (groups(4..=6), 9));
    }

    #[test]
    fn another_generation_counts_for_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let mut journal = filled(dir.path(), 7, 9);
        journal.renew(9);
        assert_eq!(journal.groups().expect("reads"), (Vec::new(), 10));
        write(&mut journal, [1]);
        // The old second record is still there, and not believed.
        assert_eq!(journal.groups().expect("reads"), (groups([1]), 10));
    }

    #[test]
    fn records_of_a_later_generation_show_that_the_engine_lost_something() {
        let dir = tempfile::tempdir().expect("dir");
        drop(filled(dir.path(), 7, 1));
        for lost in [5, 6] {
            let older = Journal::open(dir.path(), lost).expect("opens");
            assert!(older.groups().is_err(), "{lost}");
        }
        drop(filled(dir.path(), 8, 1));
        let older = Journal::open(dir.path(), 6).expect("opens");
        assert!(older.groups().is_err());
    }

    /// Turns a byte of the file over.
    fn spoil(journal: &Journal, at: usize) {
        let mut byte = [0];
        journal
            .file
            .read_exact_at(&mut byte, at as u64)
            .expect("reads");
        journal
            .file
            .write_all_at(&[!byte[0]], at as u64)
            .expect("writes");
    }

    #[test]
    fn a_torn_last_record_hurts_no_other_and_a_hole_is_never_read_over() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = filled(dir.path(), 7, 5);
        for torn in 0..5_u8 {
            for byte in [0, 9, 20, 40, 300, 700] {
                let at = half(7) + usize::from(torn) * BLOCK + byte;
                spoil(&journal, at);
                match journal.groups() {
                    Ok((read, _)) => assert_eq!((torn, read), (4, groups(1..=4)), "at {at}"),
                    Err(_) => assert!(torn < 4, "at {at}"),
                }
                spoil(&journal, at);
            }
        }
    }

    #[test]
    fn a_generation_that_lacks_its_end_is_not_followed_by_another() {
        let dir = tempfile::tempdir().expect("dir");
        let mut journal = filled(dir.path(), 7, 3);
        journal.renew(8);
        write(&mut journal, 4..=6);
        let unfolded = Journal::open(dir.path(), 7).expect("opens");
        assert_eq!(unfolded.groups().expect("reads"), (groups(1..=6), 9));
        for missing in 0..3 {
            let at = half(7) + missing * BLOCK;
            spoil(&journal, at);
            assert!(unfolded.groups().is_err(), "{missing}");
            spoil(&journal, at);
        }
    }

    #[test]
    fn a_journal_that_is_gone_or_cut_off_is_not_made_anew() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = filled(dir.path(), 7, 3);
        journal.file.set_len(FILE as u64 - 1).expect("cut");
        assert!(Journal::open(dir.path(), 7).is_err());
        std::fs::remove_file(dir.path().join(NAME)).expect("gone");
        assert!(Journal::open(dir.path(), 7).is_err());
    }

    #[test]
    fn a_full_half_takes_nothing_until_another_generation_begins() {
        let dir = tempfile::tempdir().expect("dir");
        let mut journal = filled(dir.path(), 0, 0);
        for generation in 0..4 {
            journal.renew(generation);
            let mut taken = 0;
            while journal.append(&group(1)).expect("writes") {
                taken += 1;
            }
            assert_eq!(taken, HALF / BLOCK);
            assert_eq!(journal.groups().expect("reads").0.len(), taken);
        }
        let large = vec![(vec![1], Some(vec![1; ROWS]))];
        journal.renew(4);
        assert!(!journal.append(&large).expect("answers"));
        assert_eq!(journal.file.metadata().expect("there").len(), FILE as u64);
    }
}
