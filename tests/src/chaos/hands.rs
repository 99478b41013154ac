//! What can be done to a running program from outside without its help: stop its time, take away
//! its disk, cut its connections. Needs no rights beyond those over one's own children.

use std::io;

use rustix::process::{Pid, Signal, kill_process};

/// A process, by its id.
#[derive(Debug, Clone, Copy)]
pub struct Hands(Pid);

impl Hands {
    /// Hands on the process with this id.
    #[must_use]
    pub fn on(id: u32) -> Option<Self> {
        let id = i32::try_from(id).ok()?;
        Pid::from_raw(id).map(Self)
    }

    /// It stands still.
    ///
    /// # Errors
    /// The system's.
    pub fn freeze(self) -> io::Result<()> {
        Ok(kill_process(self.0, Signal::STOP)?)
    }

    /// It goes on.
    ///
    /// # Errors
    /// The system's.
    pub fn thaw(self) -> io::Result<()> {
        Ok(kill_process(self.0, Signal::CONT)?)
    }

    /// From now on no write to a file succeeds. (A program that does not ignore `SIGXFSZ` is
    /// ended by it.)
    ///
    /// # Errors
    /// The system's.
    #[cfg(target_os = "linux")]
    pub fn fill_disk(self) -> io::Result<()> {
        use rustix::process::{Resource, Rlimit, prlimit};
        let nothing = Rlimit {
            current: Some(0),
            maximum: None,
        };
        prlimit(Some(self.0), Resource::Fsize, nothing)?;
        Ok(())
    }

    /// Ends every TCP connection that came in at this port, as a broken line does; returns how
    /// many there were.
    ///
    /// # Errors
    /// The system's.
    #[cfg(target_os = "linux")]
    pub fn cut(self, port: u16) -> io::Result<usize> {
        use std::net::SocketAddr;

        use rustix::net::{Shutdown, getpeername, getsockname, shutdown};
        use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

        let process = pidfd_open(self.0, PidfdFlags::empty())?;
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.0.as_raw_nonzero()))?;
        let mut cut = 0;
        for entry in open {
            let name = entry?.file_name();
            let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // It may have been closed since it was listed.
            let Ok(socket) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
                continue;
            };
            let local = getsockname(&socket).ok();
            let local = local.and_then(|name| SocketAddr::try_from(name).ok());
            if local.is_some_and(|local| local.port() == port) && getpeername(&socket).is_ok() {
                shutdown(&socket, Shutdown::Both)?;
                cut += 1;
            }
        }
        Ok(cut)
    }

    /// Only on Linux.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn fill_disk(self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Only on Linux.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn cut(self, _port: u16) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
