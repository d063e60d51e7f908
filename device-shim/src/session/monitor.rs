//! The monitor of one channel: starts its leader, reports how it ended, and leaves nothing behind.

use super::{LEADER, MAX_ORDER, Report, Tell, procfs, raw};
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getpid, setsid};
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Command, ExitCode};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

/// How long processes that outlive the leader may finish by themselves: the last of a pipeline, say.
const LINGER: Duration = Duration::from_secs(1);
/// From SIGHUP to SIGKILL.
const GRACE: Duration = Duration::from_millis(300);
/// How often what is left is killed again, while the kernel says that something is.
const AGAIN: Duration = Duration::from_millis(10);

/// Where the channel stands; the moment is when the next step is due.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The leader lives.
    Running,
    /// The leader ended by itself, others are left.
    Lingering(Instant),
    /// Everybody was told to go.
    HungUp(Instant),
    /// Everybody is killed, again and again, until nobody is left.
    Killing(Instant),
}

/// Entry of the process; `fd` is the socket to the shim.
pub fn main(fd: RawFd) -> ExitCode {
    let run = || -> io::Result<()> {
        let control = StdUnixStream::from(raw::adopt(fd)?);
        control.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { watch(UnixStream::from_std(control)?).await })
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::note!("session monitor: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn watch(control: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = control.into_split();
    let mut reader = BufReader::new(reader);
    let mut order = String::new();
    (&mut reader).take(MAX_ORDER).read_line(&mut order).await?;

    // Before the first fork: from here on no descendant can get away.
    set_child_subreaper(true)?;
    // Out of reach of a Ctrl-C at the shim's own terminal.
    setsid()?;
    let mut child_ended = signal(SignalKind::child())?;
    let leader = match start_leader(&order).await {
        Ok(leader) => {
            report(&mut writer, &Report::Started).await;
            leader
        }
        Err(cause) => {
            report(&mut writer, &Report::Failed(cause)).await;
            return Ok(());
        }
    };

    // One of these for every channel, and from here on most of them only wait.
    raw::let_go_of_code();
    let mut lines = reader.lines();
    let mut phase = Phase::Running;
    let mut connected = true;
    loop {
        if !reap(leader, &mut phase, &mut writer).await {
            report(&mut writer, &Report::Gone).await;
            return Ok(());
        }
        let due = match phase {
            Phase::Running => None,
            Phase::Lingering(at) | Phase::HungUp(at) | Phase::Killing(at) => Some(at),
        };
        tokio::select! {
            _ = child_ended.recv() => {}
            line = lines.next_line(), if connected => {
                match line.ok().flatten().and_then(|line| serde_json::from_str(&line).ok()) {
                    Some(Tell::Signal(name)) => {
                        // Only while the leader is not reaped is its number surely its group's.
                        if matches!(phase, Phase::Running) && let Some(signal) = signal_named(&name) {
                            let _ = killpg(leader, signal);
                        }
                    }
                    // The shim says so, or is gone.
                    end => {
                        connected = end.is_some();
                        if matches!(phase, Phase::Running | Phase::Lingering(_)) {
                            hang_up();
                            phase = Phase::HungUp(Instant::now() + GRACE);
                        }
                    }
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                phase = match phase {
                    Phase::Running => Phase::Running,
                    Phase::Lingering(_) => {
                        hang_up();
                        Phase::HungUp(Instant::now() + GRACE)
                    }
                    Phase::HungUp(_) | Phase::Killing(_) => {
                        signal_all(&[Signal::SIGKILL]);
                        Phase::Killing(Instant::now() + AGAIN)
                    }
                };
            }
        }
    }
}

/// Starts the leader with this process's standard streams, and then lets go of them, so that whoever reads
/// the output sees its end.
async fn start_leader(order: &str) -> Result<Pid, String> {
    let told = |error: io::Error| error.to_string();
    let (ours, theirs) = StdUnixStream::pair().map_err(told)?;
    ours.set_nonblocking(true).map_err(told)?;
    // Inherited by the leader, which closes it to others at once. One thread: nobody else spawns now.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|errno| errno.to_string())?;
    let child = Command::new("/proc/self/exe")
        .arg(LEADER)
        .arg(theirs.as_raw_fd().to_string())
        .env_clear()
        .spawn()
        .map_err(told)?;
    drop(theirs);
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(told)?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .map_err(|e| e.to_string())?;

    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|error| error.to_string())?);
    let mut status = UnixStream::from_std(ours).map_err(told)?;
    status.write_all(order.as_bytes()).await.map_err(told)?;
    let mut cause = String::new();
    status.take(4096).read_to_string(&mut cause).await.map_err(told)?;
    if cause.is_empty() {
        return Ok(pid);
    }
    // It has ended or is about to.
    let _ = waitpid(pid, None);
    Err(cause)
}

/// Takes in whoever ended. `false` when the kernel says that there is nobody left.
async fn reap(leader: Pid, phase: &mut Phase, writer: &mut OwnedWriteHalf) -> bool {
    loop {
        let ended = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Report::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, core)) => {
                (pid, Report::Signalled { name: signal.as_str().trim_start_matches("SIG").to_owned(), core })
            }
            Ok(WaitStatus::StillAlive) => return true,
            Err(Errno::ECHILD) => return false,
            Ok(_) | Err(_) => continue,
        };
        if ended.0 == leader {
            report(writer, &ended.1).await;
            if matches!(phase, Phase::Running) {
                *phase = Phase::Lingering(Instant::now() + LINGER);
            }
        }
    }
}

async fn report(writer: &mut OwnedWriteHalf, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        // A shim that is gone shows as the end of what it tells, and is acted on there.
        let _ = writer.write_all(&line).await;
    }
}

fn hang_up() {
    // SIGCONT, because a stopped process takes no SIGHUP.
    signal_all(&[Signal::SIGHUP, Signal::SIGCONT]);
}

/// Signals every descendant. With SIGKILL also their process groups, which the kernel does in one step, so
/// that one which forks and ends all the time does not get away.
fn signal_all(signals: &[Signal]) {
    let own = getpid();
    let below = match procfs::descendants(own, &HashSet::new()) {
        Ok(below) => below,
        Err(error) => {
            crate::note!("session monitor: /proc: {error}");
            return;
        }
    };
    for signal in signals {
        for found in below.iter().filter(|found| !found.zombie) {
            let _ = kill(found.pid, *signal);
            if *signal == Signal::SIGKILL && found.group != own {
                let _ = killpg(found.group, *signal);
            }
        }
    }
}

/// RFC 4254 section 6.10.
fn signal_named(name: &str) -> Option<Signal> {
    Some(match name {
        "ABRT" => Signal::SIGABRT,
        "ALRM" => Signal::SIGALRM,
        "FPE" => Signal::SIGFPE,
        "HUP" => Signal::SIGHUP,
        "ILL" => Signal::SIGILL,
        "INT" => Signal::SIGINT,
        "KILL" => Signal::SIGKILL,
        "PIPE" => Signal::SIGPIPE,
        "QUIT" => Signal::SIGQUIT,
        "SEGV" => Signal::SIGSEGV,
        "TERM" => Signal::SIGTERM,
        "USR1" => Signal::SIGUSR1,
        "USR2" => Signal::SIGUSR2,
        _ => return None,
    })
}
