//! The machine and its processes, as Linux tells it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Ticks of `/proc/<pid>/stat` in a second: fixed at 100 for all programs on Linux.
const TICK: Duration = Duration::from_millis(10);

/// What the figures were measured on.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Cores this process may use.
    pub cores: usize,
    /// The processor's name.
    pub processor: String,
    /// The kernel's release.
    pub kernel: String,
    /// Load averages before anything was started.
    pub load: String,
}

impl Machine {
    /// Looks.
    #[must_use]
    pub fn look() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpu.lines().find(|line| line.starts_with("model name"));
        let name = name.and_then(|line| line.split_once(": "));
        let first_words = |path: &str, words: usize| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let words: Vec<_> = text.split_whitespace().take(words).collect();
            words.join(" ")
        };
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: name.map_or("unknown", |(_, name)| name).to_owned(),
            kernel: first_words("/proc/sys/kernel/osrelease", 1),
            load: first_words("/proc/loadavg", 3),
        }
    }
}

/// The processor time a process has used.
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th after it.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks = after.split_whitespace().skip(11).take(2);
    let ticks: u32 = ticks.filter_map(|ticks| ticks.parse::<u32>().ok()).sum();
    Ok(TICK * ticks)
}

/// The memory a process holds, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn memory(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.unwrap_or(0) * 1024)
}

/// The files and sockets a process has open.
///
/// # Errors
/// When there is no such process.
pub fn descriptors(pid: u32) -> io::Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}

/// The threads of a process.
///
/// # Errors
/// When there is no such process.
pub fn threads(pid: u32) -> io::Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count() as u64)
}

/// What a folder holds on the disk, in bytes. What goes away meanwhile is not counted.
///
/// # Errors
/// When there is no such folder.
pub fn size(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(data) if data.is_dir() => size(&entry.path()).unwrap_or(0),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        };
    }
    Ok(bytes)
}

/// A process and all that descend from it and live.
///
/// # Errors
/// When the processes cannot be listed.
pub fn tree(root: u32) -> io::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that has ended since is not there any more.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let parent = after.split_whitespace().nth(1);
        parents.extend(parent.and_then(|parent| Some((pid, parent.parse::<u32>().ok()?))));
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        family.extend(children.map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(family)
}

/// The cores this process may run on.
///
/// # Errors
/// When Linux does not tell.
pub fn allowed() -> io::Result<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(listed(line.unwrap_or_default()))
}

/// Numbers as Linux lists them: `0-2,5`.
fn listed(text: &str) -> Vec<usize> {
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_time() {
        let me = std::process::id();
        assert!(descriptors(me).unwrap() > 2 && threads(me).unwrap() > 0);
        assert!(descriptors(u32::MAX).is_err() && threads(u32::MAX).is_err());
        assert!(memory(me).unwrap() > 1024 * 1024);
        assert!(cpu(me).is_ok());
        assert!(cpu(u32::MAX).is_err());
    }

    #[test]
    fn a_tree_holds_the_children_of_a_process() {
        let me = std::process::id();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let family = tree(me).unwrap();
        assert!(family.contains(&me) && family.contains(&child.id()));
        assert_eq!(tree(child.id()).unwrap(), [child.id()]);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn cores_are_read_as_linux_lists_them() {
        assert_eq!(listed("\t0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(listed("3"), [3]);
        assert!(!allowed().unwrap().is_empty());
    }
}
