//! The session leader: becomes the login's user on its terminal, and then the login's program.

use super::{MAX_ORDER, Order, raw};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getgroups, initgroups, setresgid, setresuid, setsid};
use std::ffi::{CString, OsString};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

#[derive(Debug, thiserror::Error)]
enum LeaderError {
    #[error("the order does not read: {0}")]
    Order(String),
    #[error("{what}: {why}")]
    System { what: &'static str, why: nix::Error },
    #[error("this program runs as user {own} and cannot serve user {wanted}")]
    OtherUser { own: Uid, wanted: u32 },
    #[error("privileges could be regained after they were dropped")]
    NotDropped,
    #[error("{program}: {why}")]
    Exec { program: String, why: std::io::Error },
}

fn system(what: &'static str) -> impl FnOnce(nix::Error) -> LeaderError {
    move |why| LeaderError::System { what, why }
}

/// Entry of the process. `fd` carries the order in, and an error out; that it closes without one is how the
/// monitor learns that the program runs.
pub fn main(fd: RawFd) -> ExitCode {
    let Ok(status) = raw::adopt(fd) else { return ExitCode::from(126) };
    let mut status = UnixStream::from(status);
    let Err(error) = lead(&status);
    // The monitor reads the cause; without a monitor there is nobody to tell.
    let _ = status.write_all(error.to_string().as_bytes());
    ExitCode::from(126)
}

fn lead(status: &UnixStream) -> Result<std::convert::Infallible, LeaderError> {
    let mut line = String::new();
    BufReader::new(status.take(MAX_ORDER))
        .read_line(&mut line)
        .map_err(|error| LeaderError::Order(error.to_string()))?;
    let order: Order = serde_json::from_str(&line).map_err(|error| LeaderError::Order(error.to_string()))?;

    setsid().map_err(system("setsid"))?;
    if order.terminal {
        rustix::process::ioctl_tiocsctty(std::io::stdin()).map_err(|errno| LeaderError::System {
            what: "controlling terminal",
            why: nix::Error::from_raw(errno.raw_os_error()),
        })?;
    }
    raw::keep_descriptors().map_err(|why| LeaderError::Exec { program: "/proc/self/fd".to_owned(), why })?;
    raw::reset_signals().map_err(system("signals"))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(system("signal mask"))?;
    // Core files of a login's programs would lie about on the product.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(system("core limit"))?;
    umask(Mode::from_bits_truncate(0o022));
    become_user(&order)?;
    if std::env::set_current_dir(&order.home).is_err() {
        // As login(1) does: a missing home is no reason to keep an engineer from repairing it.
        std::env::set_current_dir("/").map_err(|why| LeaderError::Exec { program: "/".to_owned(), why })?;
    }
    let why = Command::new(&order.program)
        .arg0(&order.arg0)
        .args(order.args.into_iter().map(|arg| OsString::from_vec(arg.0)))
        .env_clear()
        .envs(order.env)
        .exec();
    Err(LeaderError::Exec { program: order.program.display().to_string(), why })
}

/// Drops everything that is not the user's, and makes sure that it stays dropped.
fn become_user(order: &Order) -> Result<(), LeaderError> {
    let (uid, gid) = (Uid::from_raw(order.uid), Gid::from_raw(order.gid));
    if !Uid::effective().is_root() {
        // Without root no user can be changed to; serving the own one changes nothing.
        return if Uid::effective() == uid && Uid::current() == uid {
            Ok(())
        } else {
            Err(LeaderError::OtherUser { own: Uid::effective(), wanted: order.uid })
        };
    }
    let name = CString::new(order.user.as_str()).map_err(|error| LeaderError::Order(error.to_string()))?;
    initgroups(&name, gid).map_err(system("initgroups"))?;
    setresgid(gid, gid, gid).map_err(system("setresgid"))?;
    setresuid(uid, uid, uid).map_err(system("setresuid"))?;
    if uid.is_root() {
        return Ok(());
    }
    let root = Uid::from_raw(0);
    let regained = setresuid(root, root, root).is_ok()
        || nix::unistd::setuid(root).is_ok()
        || (order.gid != 0 && nix::unistd::setgid(Gid::from_raw(0)).is_ok());
    let is_user = Uid::current() == uid && Uid::effective() == uid && Gid::current() == gid;
    if regained || !is_user || getgroups().is_err() {
        return Err(LeaderError::NotDropped);
    }
    Ok(())
}
