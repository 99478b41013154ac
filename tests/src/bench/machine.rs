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
}
