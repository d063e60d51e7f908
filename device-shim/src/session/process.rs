//! A running channel as the shim sees it: its monitor, its input and its outputs.

use super::terminal::Terminal;
use super::{MONITOR, Order, Report, Tell, procfs};
use daypass_protocol::tunnel::open::Pty;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("the process could not be prepared: {0}")]
    Prepare(#[from] io::Error),
    #[error("the process could not be started: {0}")]
    Start(String),
}

/// The monitors that live: the only children this program should have.
#[derive(Debug, Default)]
pub struct Monitors(Mutex<HashSet<Pid>>);

impl Monitors {
    fn with<R>(&self, act: impl FnOnce(&mut HashSet<Pid>) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Kills what a dead monitor left: children of this process that are no monitors. `false` when there
    /// was none.
    fn kill_strays(&self) -> bool {
        let monitors = self.with(|known| known.clone());
        let own = getpid();
        let strays = procfs::descendants(own, &monitors).unwrap_or_default();
        for stray in &strays {
            let _ = kill(stray.pid, Signal::SIGKILL);
            if stray.parent == own {
                let _ = waitpid(stray.pid, Some(WaitPidFlag::WNOHANG));
            }
        }
        !strays.is_empty()
    }
}

/// Where bytes from the engineer go.
#[derive(Debug)]
pub enum Input {
    Pipe(pipe::Sender),
    Terminal(Arc<Terminal>),
}

/// Where bytes for the engineer come from.
#[derive(Debug)]
pub enum Output {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
}

impl Input {
    /// Hands all of `bytes` on. Dropping an unfinished call loses what was not written.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Terminal(terminal) => {
                while !bytes.is_empty() {
                    let n = terminal.write(bytes).await?;
                    bytes = &bytes[n..];
                }
                Ok(())
            }
        }
    }
}

impl Output {
    /// Reads into `buffer`; 0 at the end. Nothing is lost when the call is dropped.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read(buffer).await,
            Self::Terminal(terminal) => terminal.read(buffer).await,
        }
    }
}

/// What a started process consists of, to be used by different tasks.
#[derive(Debug)]
pub struct Process {
    pub input: Input,
    pub output: Output,
    /// Without a terminal only.
    pub error: Option<Output>,
    pub terminal: Option<Arc<Terminal>>,
    pub teller: Teller,
    pub reports: Reports,
}

/// Speaks to the monitor.
#[derive(Debug)]
pub struct Teller(OwnedWriteHalf);

/// Hears from the monitor.
#[derive(Debug)]
pub struct Reports {
    lines: Lines<BufReader<OwnedReadHalf>>,
    child: std::process::Child,
    monitors: Arc<Monitors>,
    gone: bool,
}

impl Teller {
    pub async fn tell(&mut self, what: &Tell) {
        if let Ok(mut line) = serde_json::to_vec(what) {
            line.push(b'\n');
            // A monitor that is gone is noticed by `Reports`.
            let _ = self.0.write_all(&line).await;
        }
    }
}

impl Reports {
    /// The next report. [`Report::Gone`] is the last, and means that no process is left, even if the
    /// monitor itself was killed. Nothing is lost when the call is dropped.
    pub async fn next(&mut self) -> Report {
        match self.lines.next_line().await {
            Ok(Some(line)) => match serde_json::from_str(&line) {
                Ok(Report::Gone) => {}
                Ok(report) => return report,
                Err(error) => crate::note!("a session monitor reports what does not read: {error}"),
            },
            Ok(None) => {}
            Err(error) => crate::note!("a session monitor cannot be heard: {error}"),
        }
        self.bury().await;
        Report::Gone
    }

    async fn bury(&mut self) {
        if self.gone {
            return;
        }
        // Said `Gone`, or died: either way it ends now.
        while let Ok(None) = self.child.try_wait() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.forget();
        while self.monitors.kill_strays() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn forget(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            self.monitors.with(|known| known.remove(&Pid::from_raw(pid)));
        }
        self.gone = true;
    }
}

/// Starts what the order says, with pipes or on a terminal, and waits until it runs.
pub async fn start(
    order: &Order,
    pty: Option<&Pty>,
    monitors: &Arc<Monitors>,
) -> Result<Process, SpawnError> {
    let (input, output, error, terminal, stdio) = match pty {
        Some(pty) => {
            let (terminal, slave) = Terminal::open(pty, order.uid, order.gid)?;
            let terminal = Arc::new(terminal);
            let stdio = [slave.try_clone()?, slave.try_clone()?, slave];
            let (input, output) =
                (Input::Terminal(Arc::clone(&terminal)), Output::Terminal(Arc::clone(&terminal)));
            (input, output, None, Some(terminal), stdio)
        }
        None => {
            let (in_read, in_write) = io::pipe()?;
            let (out_read, out_write) = io::pipe()?;
            let (err_read, err_write) = io::pipe()?;
            let input = Input::Pipe(pipe::Sender::from_owned_fd(in_write.into())?);
            let output = Output::Pipe(pipe::Receiver::from_owned_fd(out_read.into())?);
            let error = Output::Pipe(pipe::Receiver::from_owned_fd(err_read.into())?);
            let stdio = [OwnedFd::from(in_read), OwnedFd::from(out_write), OwnedFd::from(err_write)];
            (input, output, Some(error), None, stdio)
        }
    };
    let (mut teller, mut reports) = start_monitor(stdio, monitors)?;
    let mut line = serde_json::to_vec(order).map_err(io::Error::other)?;
    line.push(b'\n');
    teller.0.write_all(&line).await?;
    match reports.next().await {
        Report::Started => Ok(Process { input, output, error, terminal, teller, reports }),
        Report::Failed(cause) => {
            reports.bury().await;
            Err(SpawnError::Start(cause))
        }
        other => Err(SpawnError::Start(format!("its monitor reports {other:?}"))),
    }
}

fn start_monitor(
    [stdin, stdout, stderr]: [OwnedFd; 3],
    monitors: &Arc<Monitors>,
) -> io::Result<(Teller, Reports)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    // Inherited by the monitor alone: this program has one thread that spawns, and it is here.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    let child = Command::new("/proc/self/exe")
        .arg(MONITOR)
        .arg(theirs.as_raw_fd().to_string())
        .env_clear()
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr))
        .spawn()?;
    drop(theirs);
    if let Ok(pid) = i32::try_from(child.id()) {
        monitors.with(|known| known.insert(Pid::from_raw(pid)));
    }
    let (reader, writer) = UnixStream::from_std(ours)?.into_split();
    let reports =
        Reports { lines: BufReader::new(reader).lines(), child, monitors: Arc::clone(monitors), gone: false };
    Ok((Teller(writer), reports))
}
