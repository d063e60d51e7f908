//! The Unix account that a login is mapped to, from the password file.

use nix::unistd::User;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("there is no user {0:?} on this device")]
    Unknown(String),
    #[error("user {0:?} cannot be looked up: {1}")]
    Lookup(String, nix::Error),
}

#[derive(Debug, Clone)]
pub struct Account {
    pub user: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    pub shell: PathBuf,
}

impl Account {
    /// Looks the user up now, not at start: accounts change while a shim runs for months.
    pub fn find(user: &str, shell: Option<&Path>) -> Result<Self, AccountError> {
        let found = User::from_name(user)
            .map_err(|errno| AccountError::Lookup(user.to_owned(), errno))?
            .ok_or_else(|| AccountError::Unknown(user.to_owned()))?;
        let shell = match shell {
            Some(configured) => configured.to_owned(),
            // passwd(5): an empty field means /bin/sh.
            None if found.shell.as_os_str().is_empty() => PathBuf::from("/bin/sh"),
            None => found.shell,
        };
        Ok(Self {
            user: found.name,
            uid: found.uid.as_raw(),
            gid: found.gid.as_raw(),
            home: found.dir,
            shell,
        })
    }
}
