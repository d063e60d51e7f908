//! One channel: a stream of the tunnel, judged, joined to a process, and ended with everything it started.
//!
//! Two halves run at the same time and independently, or two full windows would stop each other: *inward*
//! takes frames and hands their bytes to the process before it takes the next; *outward* reads a piece of
//! output only when the piece before it was taken by the stream. So memory is bounded by one frame each way
//! beside yamux's window, and whoever does not read slows its own sender.

use super::forward;
use super::frames::{FrameReader, FrameWriter};
use super::permit::{Permit, Refusal, passed_env};
use super::{End, Tunnel};
use crate::journal::{Entry, spell};
use crate::note;
use crate::session::account::Account;
use crate::session::process::{Input, Output, Process, Reports, start};
use crate::session::{Order, Report, Tell, sftp};
use bytes::Bytes;
use daypass_protocol::tunnel::frame::{CloseCode, Exit, Frame, MAX_DATA, Stream};
use daypass_protocol::tunnel::open::{Octets, OpenKind, RefusedCode};
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long the `open` frame may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last frame may take to a peer that does not read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Unacknowledged bytes that make an ack due at once, and how long fewer may wait; both within what
/// `TUNNEL.md` section 7.2 asks.
const ACK_BYTES: u64 = 32 * 1024;
const ACK_DELAY: Duration = Duration::from_millis(200);
/// Bytes read from a process at once. With what SSH puts around it, one such piece fits into one packet of
/// 32 KiB on both hops of `ssh -J`; a whole [`MAX_DATA`] would drag a second, tiny packet behind it.
const READ: usize = MAX_DATA - 256;
/// Longest sleep of the timer at the end of the window: the counter it is compared with also counts while
/// the device sleeps, tokio's does not.
const MAX_NAP: Duration = Duration::from_secs(5);

/// Why a channel stopped.
#[derive(Debug)]
enum Stop {
    /// The process ended and everything was sent.
    Finished(String),
    /// The broker closed the channel.
    Closed,
    /// The stream ended without a word.
    StreamGone(String),
    Protocol(String),
    Failed(String),
    End(End),
}

impl Stop {
    fn close_code(&self) -> Option<CloseCode> {
        match self {
            Self::Finished(_) | Self::Closed => Some(CloseCode::Done),
            Self::StreamGone(_) | Self::End(End::TunnelLost) => None,
            Self::Protocol(_) => Some(CloseCode::Protocol),
            Self::Failed(_) => Some(CloseCode::Failed),
            Self::End(End::Expired) => Some(CloseCode::Expired),
            Self::End(End::Ended(_) | End::Revoked) => Some(CloseCode::Ended),
            Self::End(End::Suspended(_) | End::Stopping) => Some(CloseCode::Suspended),
        }
    }

    /// For a person, and for the journal.
    fn words(&self) -> String {
        match self {
            Self::Finished(exit) => exit.clone(),
            Self::Closed => "closed by the broker".to_owned(),
            Self::StreamGone(why) => format!("the stream ended: {why}"),
            Self::Protocol(why) => format!("the broker broke the protocol: {why}"),
            Self::Failed(why) => why.clone(),
            Self::End(end) => end.words(),
        }
    }
}

/// Serves one stream of the tunnel from its `open` to the end of its last process.
pub async fn serve(stream: yamux::Stream, tunnel: Arc<Tunnel>) {
    let (mut reader, mut writer) = super::frames::split(stream);
    let signed = match timeout(OPEN_TIMEOUT, reader.next()).await {
        Ok(Ok(Some(Frame::Open(signed)))) => signed,
        Ok(Ok(Some(_))) => return refuse(&mut writer, &malformed("its first frame is not open")).await,
        Ok(Ok(None)) => return note!("a channel ended before its open frame"),
        Ok(Err(error)) => return refuse(&mut writer, &malformed(&error.to_string())).await,
        Err(_) => return note!("a channel without an open frame within {} s", OPEN_TIMEOUT.as_secs()),
    };
    let (permit, mut place) = match tunnel.admit(&signed) {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(&mut writer, &refusal).await,
    };
    match begin(&permit, &tunnel).await {
        Ok(process) => {
            note!(
                "{} channel {}: {} as {} by {}",
                permit.session(),
                permit.channel(),
                permit.kind().channel_kind(),
                permit.login(),
                permit.person()
            );
            run(process, &permit, reader, writer, &tunnel, &mut place.end).await;
        }
        Err(refusal) => refuse(&mut writer, &refusal).await,
    }
    drop(place);
}

fn malformed(cause: &str) -> Refusal {
    Refusal::new(RefusedCode::Malformed, "the request to open a channel does not read", cause)
}

async fn refuse(writer: &mut FrameWriter, refusal: &Refusal) {
    note!("a channel was refused ({:?}): {}", refusal.told.code, refusal.cause);
    let send = async {
        writer.send(&Frame::Refused(refusal.told.clone())).await?;
        writer.close().await
    };
    if !matches!(timeout(CLOSE_TIMEOUT, send).await, Ok(Ok(()))) {
        note!("the broker did not take the refusal");
    }
}

fn entry<'a>(permit: &'a Permit, tunnel: &Tunnel, event: &'a str, end: Option<String>) -> Entry<'a> {
    let command = match permit.kind() {
        OpenKind::Exec { command, .. } => Some(String::from_utf8_lossy(&command.0).into_owned()),
        _ => None,
    };
    Entry {
        at: spell(tunnel.device.clock.now()),
        event,
        session: permit.session().as_str(),
        channel: permit.channel(),
        person: permit.person(),
        grant: permit.grant(),
        login: permit.login().as_str(),
        kind: permit.kind().channel_kind().as_str(),
        command,
        target: permit.target(),
        end,
    }
}

/// Notes who comes in, then starts what was permitted.
async fn begin(permit: &Permit, tunnel: &Tunnel) -> Result<Process, Refusal> {
    let device = &tunnel.device;
    let failed = |cause: String| Refusal::new(RefusedCode::Failed, "the device could not start it", cause);
    let sftp_server = match permit.kind() {
        OpenKind::Sftp => Some(sftp::server(device.config.sftp_server.as_deref()).ok_or_else(|| {
            let message = "this device has no sftp-server";
            Refusal::new(RefusedCode::KindForbidden, message, message)
        })?),
        _ => None,
    };
    // The owner's journal is a promise: nobody comes in unseen.
    device
        .journal
        .write(&entry(permit, tunnel, "opened", None))
        .map_err(|error| failed(format!("the journal cannot be written: {error}")))?;
    let begun = if let Some(target) = permit.target() {
        let connected = forward::connect(&target, &device.config.forward, &device.endpoint).await;
        connected.map(Process::of_socket).map_err(|cause| {
            let message = format!("{target} is not reached: {cause}");
            Refusal::new(RefusedCode::Failed, message.clone(), message)
        })
    } else {
        let account = Account::find(permit.user(), device.config.shell.as_deref());
        let account = account.map_err(|error| failed(error.to_string()))?;
        let process =
            start(&order(permit, account, sftp_server), permit.kind().pty(), &device.monitors).await;
        process.map_err(|error| failed(error.to_string()))
    };
    if let Err(refusal) = &begun {
        let end = entry(permit, tunnel, "ended", Some(refusal.cause.clone()));
        if let Err(error) = device.journal.write(&end) {
            note!("the journal cannot be written: {error}");
        }
    }
    begun
}

/// Turns a permit into what the leader is to do.
fn order(permit: &Permit, account: Account, sftp_server: Option<PathBuf>) -> Order {
    let text = |path: &OsStr| path.to_string_lossy().into_owned();
    let shell_name = account.shell.file_name().map_or_else(|| "sh".to_owned(), text);
    let mut env = vec![
        ("HOME".to_owned(), text(account.home.as_os_str())),
        ("USER".to_owned(), account.user.clone()),
        ("LOGNAME".to_owned(), account.user.clone()),
        ("SHELL".to_owned(), text(account.shell.as_os_str())),
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("DAYPASS_SESSION".to_owned(), permit.session().to_string()),
    ];
    if let Some(pty) = permit.kind().pty() {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        let term = if (1..=64).contains(&pty.term.len()) && pty.term.chars().all(plain) {
            pty.term.clone()
        } else {
            "dumb".to_owned()
        };
        env.push(("TERM".to_owned(), term));
    }
    env.extend(passed_env(permit.env()));
    let (program, arg0, args) = match permit.kind() {
        OpenKind::Exec { command, .. } => {
            (account.shell, shell_name, vec![Octets(b"-c".to_vec()), command.clone()])
        }
        // Not through the shell: nothing that a profile prints can get into the stream.
        OpenKind::Sftp => (sftp_server.unwrap_or_default(), "sftp-server".to_owned(), Vec::new()),
        // A name that starts with a minus makes it a login shell.
        _ => (account.shell, format!("-{shell_name}"), Vec::new()),
    };
    Order {
        program,
        arg0,
        args,
        env,
        home: account.home,
        user: account.user,
        uid: account.uid,
        gid: account.gid,
        terminal: permit.kind().pty().is_some(),
    }
}

/// What the two halves of a channel tell each other.
struct Counts {
    /// Bytes of standard input that the process has taken.
    taken: watch::Sender<u64>,
    /// Bytes of output and of standard error that were sent.
    sent: [AtomicU64; 2],
}

async fn run(
    process: Process,
    permit: &Permit,
    reader: FrameReader,
    mut writer: FrameWriter,
    tunnel: &Tunnel,
    end: &mut watch::Receiver<Option<End>>,
) {
    let Process { input, output, error, terminal, mut teller, mut reports } = process;
    let counts = Counts { taken: watch::Sender::new(0), sent: [AtomicU64::new(0), AtomicU64::new(0)] };
    let (tell, mut told) = mpsc::channel::<Tell>(4);
    let stop = {
        let outputs = Outputs { output, error };
        let outward = outward(outputs, &mut writer, &mut reports, &counts);
        let inward = inward(reader, input, terminal.as_deref(), &tell, &counts);
        let telling = async {
            while let Some(what) = told.recv().await {
                teller.tell(&what).await;
            }
            std::future::pending::<Stop>().await
        };
        let expiry = expiry(permit, tunnel);
        tokio::select! {
            // An end that is due goes before bytes that could still flow.
            biased;
            end = ended(end) => Stop::End(end),
            () = expiry => Stop::End(End::Expired),
            stop = telling => stop,
            stop = outward => stop,
            stop = inward => stop,
        }
        // Here both halves are dropped: the input is closed, and nothing more is read or written.
    };
    drop(terminal);
    if !matches!(stop, Stop::Finished(_)) {
        teller.tell(&Tell::End).await;
    }
    if let Some(code) = stop.close_code() {
        let farewell = async {
            writer.send(&Frame::Close { code, message: stop.words() }).await?;
            writer.close().await
        };
        if !matches!(timeout(CLOSE_TIMEOUT, farewell).await, Ok(Ok(()))) {
            note!("{} channel {}: the broker did not take its close", permit.session(), permit.channel());
        }
    }
    note!("{} channel {}: {}", permit.session(), permit.channel(), stop.words());
    while reports.next().await != Report::Gone {}
    if let Err(error) = tunnel.device.journal.write(&entry(permit, tunnel, "ended", Some(stop.words()))) {
        note!("the journal cannot be written: {error}");
    }
}

async fn ended(end: &mut watch::Receiver<Option<End>>) -> End {
    match end.wait_for(Option::is_some).await {
        Ok(end) => end.clone().unwrap_or(End::TunnelLost),
        Err(_) => End::TunnelLost,
    }
}

/// Until the certificate's time is over, by trusted time.
async fn expiry(permit: &Permit, tunnel: &Tunnel) {
    loop {
        let left = tunnel.device.clock.now().until(permit.valid_before());
        if left.is_zero() {
            return;
        }
        sleep(left.min(MAX_NAP)).await;
    }
}

struct Outputs {
    output: Output,
    error: Option<Output>,
}

/// Output, acks, and how the process ended.
async fn outward(outputs: Outputs, writer: &mut FrameWriter, reports: &mut Reports, counts: &Counts) -> Stop {
    match outward_fallible(outputs, writer, reports, counts).await {
        Ok(stop) => stop,
        Err(error) => Stop::StreamGone(error.to_string()),
    }
}

async fn outward_fallible(
    outputs: Outputs,
    writer: &mut FrameWriter,
    reports: &mut Reports,
    counts: &Counts,
) -> io::Result<Stop> {
    let Outputs { mut output, mut error } = outputs;
    let mut taken = counts.taken.subscribe();
    let (mut acked, mut ack_due) = (0, None);
    let (mut output_open, mut exit) = (true, None);
    let mut out_buffer = vec![0; READ];
    let mut err_buffer = vec![0; if error.is_some() { READ } else { 0 }];
    writer.send(&Frame::Opened).await?;
    while output_open || error.is_some() || exit.is_none() {
        tokio::select! {
            read = output.read(&mut out_buffer), if output_open => {
                output_open = forward(read, &out_buffer, Stream::Data, writer, counts).await?;
            }
            read = read_error(&mut error, &mut err_buffer), if error.is_some() => {
                if !forward(read, &err_buffer, Stream::Stderr, writer, counts).await? {
                    error = None;
                }
            }
            changed = taken.changed() => {
                if changed.is_ok() && *taken.borrow_and_update() - acked < ACK_BYTES {
                    ack_due.get_or_insert_with(|| Instant::now() + ACK_DELAY);
                } else {
                    ack_due = Some(Instant::now());
                }
            }
            () = sleep_until(ack_due.unwrap_or_else(Instant::now)), if ack_due.is_some() => {
                acked = *taken.borrow();
                ack_due = None;
                writer.send(&Frame::Ack { stream: Stream::Data, offset: acked }).await?;
            }
            report = reports.next(), if exit.is_none() => match report {
                Report::Exited(status) => exit = Some(Exit::Status(u32::try_from(status).unwrap_or(255))),
                Report::Signalled { name, core } => exit = Some(Exit::Signal { name, core_dumped: core }),
                Report::Gone => return Ok(Stop::Failed("the process's monitor was killed".to_owned())),
                Report::Started | Report::Failed(_) => {}
            }
        }
    }
    let Some(exit) = exit else { return Ok(Stop::Failed("the process ended in silence".to_owned())) };
    let words = match &exit {
        Exit::Status(status) => format!("exit status {status}"),
        Exit::Signal { name, .. } => format!("ended by signal {name}"),
    };
    writer.send(&Frame::Exit(exit)).await?;
    Ok(Stop::Finished(words))
}

async fn read_error(error: &mut Option<Output>, buffer: &mut [u8]) -> io::Result<usize> {
    match error {
        Some(error) => error.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// Sends what was read, or the end of its stream: then `false`.
async fn forward(
    read: io::Result<usize>,
    buffer: &[u8],
    stream: Stream,
    writer: &mut FrameWriter,
    counts: &Counts,
) -> io::Result<bool> {
    let sent = &counts.sent[usize::from(stream == Stream::Stderr)];
    let offset = sent.load(Ordering::Relaxed);
    let n = read.unwrap_or_else(|error| {
        note!("output of a process cannot be read: {error}");
        0
    });
    if n == 0 {
        writer.send(&Frame::Eof { stream, offset }).await?;
        return Ok(false);
    }
    // Counted first: an ack may come back before this call returns.
    sent.store(offset + n as u64, Ordering::Relaxed);
    writer.send(&Frame::Data { stream, offset, bytes: Bytes::copy_from_slice(&buffer[..n]) }).await?;
    Ok(true)
}

/// Input, and what the broker says about the channel.
async fn inward(
    mut reader: FrameReader,
    input: Input,
    terminal: Option<&crate::session::terminal::Terminal>,
    tell: &mpsc::Sender<Tell>,
    counts: &Counts,
) -> Stop {
    let mut input = Some(input);
    let (mut received, mut ended) = (0u64, false);
    let mut acked = [0u64; 2];
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Stop::StreamGone("without a close".to_owned()),
            Err(super::frames::ReadError::Io(error)) => return Stop::StreamGone(error.to_string()),
            Err(super::frames::ReadError::Frame(error)) => return Stop::Protocol(error.to_string()),
        };
        match frame {
            Frame::Data { stream: Stream::Data, offset, bytes } if offset == received && !ended => {
                received += bytes.len() as u64;
                // A process that closed its input, or ended, takes nothing more; that is no error, as for
                // any pipe, and what is thrown away is still acknowledged.
                if let Some(open) = &mut input
                    && open.write_all(&bytes).await.is_err()
                {
                    input = None;
                }
                counts.taken.send_replace(received);
            }
            Frame::Eof { stream: Stream::Data, offset } if offset == received && !ended => {
                ended = true;
                // A terminal has no end of input; only its user can type one.
                if !matches!(input, Some(Input::Terminal(_))) {
                    input = None;
                }
            }
            Frame::Ack { stream, offset } => {
                let at = usize::from(stream == Stream::Stderr);
                if offset < acked[at] || offset > counts.sent[at].load(Ordering::Relaxed) {
                    return Stop::Protocol(format!("an ack of {offset} bytes"));
                }
                acked[at] = offset;
            }
            Frame::Resize(size) => match terminal {
                Some(terminal) => {
                    if let Err(error) = terminal.resize(size) {
                        note!("a terminal does not take its size: {error}");
                    }
                }
                None => return Stop::Protocol("a resize without a terminal".to_owned()),
            },
            Frame::Signal(name) => {
                if tell.send(Tell::Signal(name)).await.is_err() {
                    return Stop::Failed("the process's monitor is gone".to_owned());
                }
            }
            Frame::Close { .. } => return Stop::Closed,
            Frame::Data { offset, .. } | Frame::Eof { offset, .. } => {
                return Stop::Protocol(format!("input at offset {offset}, and {received} were received"));
            }
            Frame::Open(_) | Frame::Opened | Frame::Refused(_) | Frame::Exit(_) => {
                return Stop::Protocol("a frame that does not belong here".to_owned());
            }
        }
    }
}
