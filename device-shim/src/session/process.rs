//! A running channel as the shim sees it: its monitor, its input and its outputs.

use super::terminal::Terminal;
use super::{MONITOR, Order, Report, Tell, procfs};
use bytes::{BufMut as _, BytesMut};
use daypass_protocol::tunnel::open::Pty;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::net::{TcpStream, UnixStream, tcp};
use tokio::sync::oneshot;

/// Bytes that a process may write before it waits, and be sent: with more of them at once there are fewer turns.
const PIPE: usize = 256 * 1024;

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
    /// Dropped, it ends this direction of the connection, and says so to [`Reports`].
    Socket(tcp::OwnedWriteHalf, oneshot::Sender<()>),
}

/// Where bytes for the engineer come from.
#[derive(Debug)]
pub enum Output {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
    Socket(tcp::OwnedReadHalf),
}

impl Input {
    /// Hands on as much of `bytes` as is taken now. A call that is dropped has handed on nothing.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.write(bytes).await,
            Self::Socket(socket, _) => socket.write(bytes).await,
            Self::Terminal(terminal) => terminal.write(bytes).await,
        }
    }
}

impl Output {
    /// Reads at most `most` bytes to the end of `buffer`; 0 at the end. Nothing is lost when the call is
    /// dropped.
    pub async fn read(&mut self, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read_buf(&mut buffer.limit(most)).await,
            Self::Socket(socket) => socket.read_buf(&mut buffer.limit(most)).await,
            Self::Terminal(terminal) => {
                // No read of a terminal gives more.
                let mut piece = [0; 4096];
                let most = most.min(piece.len());
                let n = terminal.read(&mut piece[..most]).await?;
                buffer.extend_from_slice(&piece[..n]);
                Ok(n)
            }
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

impl Process {
    /// A connection in a process's place: it reads, writes, and exits with 0 once its input has ended.
    pub fn of_socket(stream: TcpStream) -> Self {
        let (output, input) = stream.into_split();
        let (open, closed) = oneshot::channel();
        Self {
            input: Input::Socket(input, open),
            output: Output::Socket(output),
            error: None,
            terminal: None,
            teller: Teller(None),
            reports: Reports::Socket(Some(closed)),
        }
    }
}

/// Speaks to the monitor; a connection has none.
#[derive(Debug)]
pub struct Teller(Option<OwnedWriteHalf>);

/// Hears from the monitor, or of a connection's end.
#[derive(Debug)]
pub enum Reports {
    Monitor(Monitor),
    Socket(Option<oneshot::Receiver<()>>),
}

impl Reports {
    /// The next report. [`Report::Gone`] is the last, and means that no process is left, even if the
    /// monitor itself was killed. Nothing is lost when the call is dropped.
    pub async fn next(&mut self) -> Report {
        match self {
            Self::Monitor(monitor) => monitor.next().await,
            Self::Socket(None) => Report::Gone,
            Self::Socket(closed) => {
                if let Some(closed) = closed {
                    // Never sent, only dropped.
                    let _ = closed.await;
                }
                *closed = None;
                Report::Exited(0)
            }
        }
    }
}

/// The shim's end of a monitor.
#[derive(Debug)]
pub struct Monitor {
    lines: Lines<BufReader<OwnedReadHalf>>,
    child: std::process::Child,
    monitors: Arc<Monitors>,
    gone: bool,
}

impl Teller {
    pub async fn tell(&mut self, what: &Tell) {
        if let (Some(monitor), Ok(mut line)) = (&mut self.0, serde_json::to_vec(what)) {
            line.push(b'\n');
            // A monitor that is gone is noticed by `Reports`.
            let _ = monitor.write_all(&line).await;
        }
    }
}

impl Monitor {
    async fn next(&mut self) -> Report {
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
            for end in [in_write.as_fd(), out_read.as_fd()] {
                // The system bounds the pipes of a user altogether; then they stay as they are.
                let _ = rustix::pipe::fcntl_setpipe_size(end, PIPE);
            }
            let input = Input::Pipe(pipe::Sender::from_owned_fd(in_write.into())?);
            let output = Output::Pipe(pipe::Receiver::from_owned_fd(out_read.into())?);
            let error = Output::Pipe(pipe::Receiver::from_owned_fd(err_read.into())?);
            let stdio = [OwnedFd::from(in_read), OwnedFd::from(out_write), OwnedFd::from(err_write)];
            (input, output, Some(error), None, stdio)
        }
    };
    let (mut teller, mut monitor) = start_monitor(stdio, monitors)?;
    let mut line = serde_json::to_vec(order).map_err(io::Error::other)?;
    line.push(b'\n');
    teller.write_all(&line).await?;
    match monitor.next().await {
        Report::Started => {
            let (teller, reports) = (Teller(Some(teller)), Reports::Monitor(monitor));
            Ok(Process { input, output, error, terminal, teller, reports })
        }
        Report::Failed(cause) => {
            monitor.bury().await;
            Err(SpawnError::Start(cause))
        }
        other => Err(SpawnError::Start(format!("its monitor reports {other:?}"))),
    }
}

fn start_monitor(
    [stdin, stdout, stderr]: [OwnedFd; 3],
    monitors: &Arc<Monitors>,
) -> io::Result<(OwnedWriteHalf, Monitor)> {
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
    let monitor =
        Monitor { lines: BufReader::new(reader).lines(), child, monitors: Arc::clone(monitors), gone: false };
    Ok((writer, monitor))
}
