//! Pseudo-terminals: size, modes, and the master's end as an asynchronous stream.

use super::raw;
use daypass_protocol::tunnel::open::{Pty, WindowSize};
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices as Special, Termios,
    tcgetattr, tcsetattr,
};
use nix::unistd::{Gid, Uid, fchown};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The master's end of a pseudo-terminal.
#[derive(Debug)]
pub struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    /// Opens a pair; the slave belongs to the user, as login(1) would have it.
    pub fn open(pty: &Pty, uid: u32, gid: u32) -> io::Result<(Self, OwnedFd)> {
        let pair = openpty(Some(&winsize(pty.size)), None)?;
        let mut termios = tcgetattr(&pair.slave)?;
        for (opcode, argument) in &pty.modes {
            set_mode(&mut termios, *opcode, *argument);
        }
        tcsetattr(&pair.slave, SetArg::TCSANOW, &termios)?;
        if Uid::effective().is_root() {
            fchown(&pair.slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        for end in [&pair.master, &pair.slave] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        }
        rustix::io::ioctl_fionbio(&pair.master, true)?;
        Ok((Self(raw::register(pair.master)?), pair.slave))
    }

    /// Reads what was written to the terminal; 0 at its end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?)).await;
        match read {
            // Linux says EIO when the last slave is closed.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }

    /// Writes as much as the terminal takes now.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await
    }

    /// The kernel tells the foreground process group (SIGWINCH).
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        let size = winsize(size);
        let size = rustix::termios::Winsize {
            ws_row: size.ws_row,
            ws_col: size.ws_col,
            ws_xpixel: size.ws_xpixel,
            ws_ypixel: size.ws_ypixel,
        };
        Ok(rustix::termios::tcsetwinsize(self.0.as_fd(), size)?)
    }
}

fn winsize(size: WindowSize) -> Winsize {
    let cut = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Winsize {
        ws_row: cut(size.rows),
        ws_col: cut(size.cols),
        ws_xpixel: cut(size.width_px),
        ws_ypixel: cut(size.height_px),
    }
}

/// One encoded terminal mode, RFC 4254 section 8. What is not known here is skipped, as the RFC asks.
fn set_mode(termios: &mut Termios, opcode: u8, argument: u32) {
    let on = argument != 0;
    let special = match opcode {
        1 => Some(Special::VINTR),
        2 => Some(Special::VQUIT),
        3 => Some(Special::VERASE),
        4 => Some(Special::VKILL),
        5 => Some(Special::VEOF),
        6 => Some(Special::VEOL),
        7 => Some(Special::VEOL2),
        8 => Some(Special::VSTART),
        9 => Some(Special::VSTOP),
        10 => Some(Special::VSUSP),
        12 => Some(Special::VREPRINT),
        13 => Some(Special::VWERASE),
        14 => Some(Special::VLNEXT),
        18 => Some(Special::VDISCARD),
        _ => None,
    };
    if let Some(special) = special {
        // 255 means that the character is off; Linux spells that 0.
        termios.control_chars[special as usize] =
            u8::try_from(argument).ok().filter(|c| *c != 255).unwrap_or(libc::_POSIX_VDISABLE);
        return;
    }
    let input = match opcode {
        30 => InputFlags::IGNPAR,
        31 => InputFlags::PARMRK,
        32 => InputFlags::INPCK,
        33 => InputFlags::ISTRIP,
        34 => InputFlags::INLCR,
        35 => InputFlags::IGNCR,
        36 => InputFlags::ICRNL,
        38 => InputFlags::IXON,
        39 => InputFlags::IXANY,
        40 => InputFlags::IXOFF,
        41 => InputFlags::IMAXBEL,
        42 => InputFlags::IUTF8,
        _ => InputFlags::empty(),
    };
    termios.input_flags.set(input, on);
    let local = match opcode {
        50 => LocalFlags::ISIG,
        51 => LocalFlags::ICANON,
        53 => LocalFlags::ECHO,
        54 => LocalFlags::ECHOE,
        55 => LocalFlags::ECHOK,
        56 => LocalFlags::ECHONL,
        57 => LocalFlags::NOFLSH,
        58 => LocalFlags::TOSTOP,
        59 => LocalFlags::IEXTEN,
        60 => LocalFlags::ECHOCTL,
        61 => LocalFlags::ECHOKE,
        62 => LocalFlags::PENDIN,
        _ => LocalFlags::empty(),
    };
    termios.local_flags.set(local, on);
    let output = match opcode {
        70 => OutputFlags::OPOST,
        72 => OutputFlags::ONLCR,
        73 => OutputFlags::OCRNL,
        74 => OutputFlags::ONOCR,
        75 => OutputFlags::ONLRET,
        _ => OutputFlags::empty(),
    };
    termios.output_flags.set(output, on);
    match opcode {
        90 | 91 if on => {
            termios.control_flags.remove(ControlFlags::CSIZE);
            termios.control_flags.insert(if opcode == 90 { ControlFlags::CS7 } else { ControlFlags::CS8 });
        }
        92 => termios.control_flags.set(ControlFlags::PARENB, on),
        93 => termios.control_flags.set(ControlFlags::PARODD, on),
        _ => {}
    }
}
