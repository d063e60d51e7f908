//! The device's own SFTP server. Building one in would not fit the size that this program may have.

use std::path::{Path, PathBuf};

/// Where systems have it: Debian and Ubuntu; Arch, Alpine and the BSDs; OpenSSH as it comes and `OpenWrt`;
/// Fedora, Red Hat and Yocto.
const PLACES: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/sftp-server",
    "/usr/libexec/openssh/sftp-server",
];

/// The program to run, if there is one. Looked for at each opening: packages come and go while a shim runs
/// for months.
pub fn server(configured: Option<&Path>) -> Option<PathBuf> {
    match configured {
        Some(path) => path.is_file().then(|| path.to_owned()),
        None => PLACES.iter().map(PathBuf::from).find(|path| path.is_file()),
    }
}
