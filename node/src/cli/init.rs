//! The first run: a commented configuration and the keys.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::config::EXAMPLE;

/// The configuration's name within the data directory.
pub(super) const FILE: &str = "node.toml";

/// What became of the configuration file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is new.
    New,
    /// There was one already; it was not touched.
    Kept,
}

/// Writes the example, with this data directory, to a file that does not exist yet.
pub(super) fn write_config(path: &Path, data_dir: &Path) -> std::io::Result<Written> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path);
    let mut file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Ok(Written::Kept);
        }
        Err(error) => return Err(error),
    };
    file.write_all(example(data_dir).as_bytes())?;
    file.sync_all()?;
    Ok(Written::New)
}

/// The example with this data directory.
fn example(data_dir: &Path) -> String {
    let value = toml::Value::String(data_dir.to_string_lossy().into_owned());
    let line = |line: &str| match line.split_once(" = ") {
        Some(("data_dir", _)) => format!("data_dir = {value}\n"),
        _ => format!("{line}\n"),
    };
    EXAMPLE.lines().map(line).collect()
}

/// Where the configuration is looked for when no flag says so.
pub(super) fn default_file(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_written_configuration_loads_and_is_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().join("a \"b\"");
        let path = default_file(&home);
        assert_eq!(write_config(&path, &home).expect("writes"), Written::New);
        let config = Config::load(Some(&path), &[]).expect("loads");
        assert_eq!(config.data_dir, home);
        let rest = Config {
            data_dir: Config::default().data_dir,
            ..config
        };
        assert_eq!(rest, Config::default());
        std::fs::write(&path, "mine").expect("writes");
        assert_eq!(write_config(&path, &home).expect("keeps"), Written::Kept);
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "mine");
    }
}
