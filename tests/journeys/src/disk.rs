//! A small disk of a test's own, to be filled.

use crate::Program;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory; given back when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Needs root: a test that cannot fill a disk has shown nothing, and fails.
    pub fn mount(at: &Path, mib: u32) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"]).arg(at);
        let done = Program::run(mount, b"");
        assert_eq!(done.code(), 0, "mounting a small disk, as root: {}", done.stderr);
        Self(at.to_owned())
    }

    pub fn grow(&self, mib: u32) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,size={mib}m")]).arg(&self.0);
        assert_eq!(Program::run(mount, b"").code(), 0, "a greater disk");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes what is free, to the last page; what fits into a page that is begun still fits.
    pub fn fill(&self) {
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        let page = [7; 4096];
        while filler.write_all(&page).is_ok() {}
    }

    /// Gives back what was filled.
    pub fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.arg("-l").arg(&self.0);
        let _ = Program::run(umount, b"");
    }
}
