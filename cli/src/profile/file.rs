//! Files that are there whole or not at all.

use crate::failure::Failure;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

pub const PRIVATE: u32 = 0o600;

/// Largest file of its own that this program reads.
const MAX_FILE: u64 = 1 << 20;

/// The text of a file, or `None` where there is none.
pub fn read(path: &Path) -> Result<Option<String>, Failure> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::File { path: path.to_owned(), error }),
        Ok(found) if found.len() > MAX_FILE => {
            return Err(Failure::File { path: path.to_owned(), error: io::ErrorKind::FileTooLarge.into() });
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(Failure::file(path))
}

/// Makes a directory and its parents, open to their owner only.
pub fn make_private_dir(dir: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Failure::file(dir))?;
    let mode = std::fs::metadata(dir).map_err(Failure::file(dir))?.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(Failure::file(dir))?;
    }
    Ok(())
}

/// Temporary file, fsync, rename, fsync of the directory: a crash leaves the old content or the new.
/// A symbolic link is followed, so that a linked `~/.ssh/config` stays a link.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    let real = match std::fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(Failure::File { path: path.to_owned(), error }),
    };
    let dir = real.parent().unwrap_or(Path::new("/"));
    let write = || -> io::Result<()> {
        // Made 0600 by tempfile, before there is anything in it.
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        temporary.write_all(content)?;
        temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
        temporary.as_file().sync_all()?;
        temporary.persist(&real).map_err(|failed| failed.error)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(Failure::file(path))
}
