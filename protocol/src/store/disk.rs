//! The directory: private, locked by one process, and itself on disk.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::store::OpenError;

/// Held for as long as anything uses the directory; the kernel releases it however we die.
#[derive(Debug)]
pub(in crate::store) struct Lock {
    /// Never read: closing it is what releases the lock.
    _file: File,
}

/// Makes the directory (mode 0700) and its name durable.
pub(in crate::store) fn prepare(dir: &Path) -> Result<(), OpenError> {
    let make = || -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        match std::path::absolute(dir)?.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    make().map_err(|source| OpenError::Directory {
        path: dir.to_path_buf(),
        source,
    })
}

/// Takes the directory for this process, or says who has it.
pub(in crate::store) fn lock(dir: &Path) -> Result<Lock, OpenError> {
    let path = dir.join("lock");
    let failed = |source| OpenError::Directory {
        path: path.clone(),
        source,
    };
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::Locked {
                path: dir.to_path_buf(),
                holder: holder(&mut file),
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(Lock { _file: file })
}

/// What the holder wrote into its lock file.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(32).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!("process {}", text.trim()),
        _ => "another process".to_owned(),
    }
}

/// Puts on disk whatever a killed predecessor had only written of a file: the engine is about to
/// build on it.
pub(in crate::store) fn settle(dir: &Path, file: &str) -> Result<(), OpenError> {
    sync_if_there(&dir.join(file))?;
    sync_if_there(dir)
}

fn sync_if_there(path: &Path) -> Result<(), OpenError> {
    let synced = match File::open(path) {
        Ok(file) => file.sync_all(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    synced.map_err(|source| OpenError::Directory {
        path: path.to_path_buf(),
        source,
    })
}
