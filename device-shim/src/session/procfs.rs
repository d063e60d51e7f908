//! Which processes descend from one, from `/proc`.

use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub pid: Pid,
    pub parent: Pid,
    pub group: Pid,
    /// Ended and not yet reaped.
    pub zombie: bool,
}

/// proc_pid_stat(5). The command's name stands in parentheses and may contain anything, parentheses too.
fn parse_stat(stat: &str) -> Option<Found> {
    let (pid, _) = stat.split_once(' ')?;
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let mut number = || fields.next()?.parse().ok().map(Pid::from_raw);
    let (parent, group) = (number()?, number()?);
    Some(Found { pid: Pid::from_raw(pid.parse().ok()?), parent, group, zombie: matches!(state, "Z" | "X") })
}

/// Every process below `root`, except those in `skip` and what is below them.
pub fn descendants(root: Pid, skip: &HashSet<Pid>) -> io::Result<Vec<Found>> {
    let mut children: HashMap<Pid, Vec<Found>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        // A process that ended since the directory was read has no file any more.
        let Ok(stat) = fs::read(entry.path().join("stat")) else { continue };
        if let Some(found) = parse_stat(&String::from_utf8_lossy(&stat)) {
            children.entry(found.parent).or_default().push(found);
        }
    }
    let mut below = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for found in children.remove(&parent).unwrap_or_default() {
            if !skip.contains(&found.pid) {
                parents.push(found.pid);
                below.push(found);
            }
        }
    }
    Ok(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_mislead() {
        let found = parse_stat("42 (a) S 1 (b) R 7 41 40 0 -1").unwrap();
        assert_eq!((found.pid.as_raw(), found.parent.as_raw(), found.group.as_raw()), (42, 7, 41));
        assert!(parse_stat("42 (x) Z 7 41 40").unwrap().zombie);
        assert!(parse_stat("garbage").is_none());
    }
}
