//! One session channel: from the gate's yes to its last line.

use super::door::{Client, Door, EndNotice, NotGranted, Refusal, SessionDoor, Wanted};
use super::live::Live;
use super::terminal::Terminal;
use crate::session::wire::{EngineerChannel, Input, QUEUE, ToEngineer};
use bytes::Bytes;
use daypass_protocol::ids::{DeviceId, Login};
use daypass_protocol::text::made_visible;
use daypass_protocol::tunnel::frame::Exit;
use daypass_protocol::tunnel::open::OpenKind;
use russh::server::Msg;
use russh::{ChannelWriteHalf, Sig};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// SSH_EXTENDED_DATA_STDERR, RFC 4254 section 5.2.
const STDERR: u32 = 1;
/// What OpenSSH's client itself exits with when a connection fails.
pub const FAILED: u32 = 255;
/// What a shell calls a program that Ctrl-C has ended.
const INTERRUPTED: u32 = 130;
/// How long a channel that closes without an exit status waits to be told that the session was ended.
const WHY: Duration = Duration::from_millis(250);

/// What a channel needs to start.
pub struct Start<D: Door> {
    pub person: D::Person,
    pub device: DeviceId,
    pub login: Login,
    pub client: Client,
    pub kind: OpenKind,
    pub env: Vec<(String, String)>,
    pub input: Input,
    pub write: ChannelWriteHalf<Msg>,
    /// The client's end of the channel is gone.
    pub gone: CancellationToken,
}

/// Lines for a person. On a terminal each ends with a carriage return too, and starts on a fresh line.
fn lines(on_terminal: bool, message: &str, hint: Option<&str>) -> Bytes {
    let (start, end) = if on_terminal { ("\r", "\r\n") } else { ("", "\n") };
    let mut text = format!("{start}daypass: {}{end}", made_visible(message, 512));
    if let Some(hint) = hint {
        text.push_str("hint: ");
        text.push_str(&made_visible(hint, 512));
        text.push_str(end);
    }
    Bytes::from(text)
}

/// Opens the channel at the session's door and carries its output until it ends.
pub async fn run<D: Door>(live: Arc<Live<D>>, start: Start<D>) {
    let Start { person, device, login, client, kind, env, mut input, write, gone } = start;
    let on_terminal = kind.pty().is_some();
    let mut ended = live.ended.subscribe();
    let (output, mut messages) = mpsc::channel(QUEUE);
    let mut asked = Asked { person, device, login, client, kind, env };
    let opened = async {
        let session = begin(&live, &write, &mut asked, &mut input).await?;
        let Asked { device, kind, env, .. } = asked;
        open_in(&live, &*session, &device, kind, env, EngineerChannel { input, output })
            .await
            .map_err(|refusal| NotBegun { refusal, status: FAILED })
    };
    let opened = tokio::select! {
        opened = opened => opened,
        notice = notice(&mut ended) =>
            Err(NotBegun { refusal: Refusal::new(notice.message), status: FAILED }),
        () = gone.cancelled() => {
            live.channels().remove(&write.id());
            return;
        }
    };
    match opened {
        Err(NotBegun { refusal, status }) => refuse(&live, &write, &refusal, on_terminal, status).await,
        Ok(mut notices) => {
            let carried = tokio::select! {
                carried = carry(&live, &write, &mut messages, &mut notices, on_terminal) => carried.map(Some),
                notice = notice(&mut ended) => {
                    refuse(&live, &write, &Refusal::new(notice.message), on_terminal, FAILED).await;
                    Ok(None)
                }
                () = gone.cancelled() => Ok(None),
            };
            let carried = match carried {
                Ok(Some(Carried { eof, exited })) => {
                    // The end of a session closes its channels too, and may be quicker here than the notice
                    // that says why.
                    let patience = if exited { Duration::ZERO } else { WHY };
                    match timeout(patience, notice(&mut ended)).await {
                        Ok(notice) if !exited => {
                            refuse(&live, &write, &Refusal::new(notice.message), on_terminal, FAILED).await;
                            Ok(())
                        }
                        _ => close(&write, eof).await,
                    }
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = carried {
                debug!(%error, "the channel's output ended");
            }
        }
    }
    live.channels().remove(&write.id());
}

/// What a session's door is asked.
pub struct Asked<D: Door> {
    pub person: D::Person,
    pub device: DeviceId,
    pub login: Login,
    pub client: Client,
    pub kind: OpenKind,
    pub env: Vec<(String, String)>,
}

/// Why nothing began, and what the client exits with.
struct NotBegun {
    refusal: Refusal,
    status: u32,
}

/// Begins the session, or finds it begun. Somebody at a terminal who has no grant may ask for one first.
async fn begin<D: Door>(
    live: &Arc<Live<D>>,
    write: &ChannelWriteHalf<Msg>,
    asked: &mut Asked<D>,
    input: &mut Input,
) -> Result<Arc<dyn SessionDoor>, NotBegun> {
    let Asked { person, device, login, client, kind, env } = asked;
    let refused = match live.session(person, device, login, kind, client.clone()).await {
        Ok(session) => return Ok(session),
        Err(refused) => refused,
    };
    let failed = |refusal| NotBegun { refusal, status: FAILED };
    if !refused.grantable || kind.pty().is_none() {
        return Err(failed(refused));
    }
    let mut terminal = Terminal::new(write, &live.control, input);
    let wanted = Wanted { device, login, kind, env };
    match live.inside.door.ask(person, wanted, &refused, &mut terminal).await {
        Ok(()) => {}
        Err(NotGranted::Unattended) => return Err(failed(refused)),
        Err(NotGranted::Refused(refusal)) => return Err(failed(refusal)),
        Err(NotGranted::Left(refusal)) => return Err(NotBegun { refusal, status: INTERRUPTED }),
    }
    if let Some(size) = terminal.resized() {
        kind.resize(size);
    }
    live.session(person, device, login, kind, client.clone()).await.map_err(failed)
}

/// Opens a channel at the session's door; the session begins with the first one.
pub async fn open<D: Door>(
    live: &Arc<Live<D>>,
    asked: Asked<D>,
    engineer: EngineerChannel,
) -> Result<broadcast::Receiver<String>, Refusal> {
    let Asked { person, device, login, client, kind, env } = asked;
    let session = live.session(&person, &device, &login, &kind, client).await?;
    open_in(live, &*session, &device, kind, env, engineer).await
}

async fn open_in<D: Door>(
    live: &Live<D>,
    session: &dyn SessionDoor,
    device: &DeviceId,
    kind: OpenKind,
    env: Vec<(String, String)>,
    engineer: EngineerChannel,
) -> Result<broadcast::Receiver<String>, Refusal> {
    let notices = session.notices();
    timeout(live.inside.limits.step, session.open_channel(kind, env, engineer))
        .await
        .map_err(|_| Refusal::failure(format!("{device} did not answer in time")).hint("try again"))??;
    Ok(notices)
}

/// Says why, sets the exit status, closes. The channel's request was answered with success before: only
/// then do clients show the line.
pub async fn refuse<D: Door>(
    live: &Live<D>,
    write: &ChannelWriteHalf<Msg>,
    refusal: &Refusal,
    on_terminal: bool,
    status: u32,
) {
    let text = lines(on_terminal, &refusal.message, refusal.hint.as_deref());
    // A client whose window is shut does not get the line; it is closed all the same.
    let said = timeout(live.inside.limits.linger, write.extended_data_bytes(STDERR, text)).await;
    let closed = async {
        write.exit_status(status).await?;
        write.eof().await?;
        write.close().await
    };
    if let (Err(_), _) | (_, Err(_)) = (said, timeout(live.inside.limits.linger, closed).await) {
        debug!("a refusal was not shown");
    }
}

pub async fn notice(ended: &mut tokio::sync::watch::Receiver<Option<EndNotice>>) -> EndNotice {
    let notice = ended.wait_for(Option::is_some).await.ok().and_then(|notice| notice.clone());
    match notice {
        Some(notice) => notice,
        // The connection itself is gone, and this task with it.
        None => std::future::pending().await,
    }
}

/// How the output of a channel ended.
struct Carried {
    /// An EOF is still to be sent.
    eof: bool,
    /// The client knows how the process exited.
    exited: bool,
}

async fn close(write: &ChannelWriteHalf<Msg>, eof: bool) -> Result<(), russh::Error> {
    if eof {
        write.eof().await?;
    }
    write.close().await
}

/// Carries output in order. EOF waits for the exit status: ControlMaster clients that see EOF first
/// sometimes lose the status and exit with 255.
async fn carry<D: Door>(
    live: &Live<D>,
    write: &ChannelWriteHalf<Msg>,
    messages: &mut mpsc::Receiver<ToEngineer>,
    notices: &mut broadcast::Receiver<String>,
    on_terminal: bool,
) -> Result<Carried, russh::Error> {
    let mut eof = false;
    let mut exited = false;
    let mut listening = on_terminal;
    loop {
        let message = tokio::select! {
            biased;
            line = notices.recv(), if listening => {
                match line {
                    Ok(line) => write.extended_data_bytes(STDERR, lines(true, &line, None)).await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => listening = false,
                }
                continue;
            }
            message = messages.recv() => message,
        };
        match message {
            Some(ToEngineer::Data(bytes)) => {
                live.control.room().await;
                write.data_bytes(bytes).await?;
            }
            Some(ToEngineer::Stderr(bytes)) => {
                live.control.room().await;
                write.extended_data_bytes(STDERR, bytes).await?;
            }
            Some(ToEngineer::Exit(exit)) if !exited => {
                exited = true;
                send_exit(live, write, exit).await?;
                if std::mem::take(&mut eof) {
                    write.eof().await?;
                }
            }
            Some(ToEngineer::Eof) if exited => write.eof().await?,
            Some(ToEngineer::Eof) => eof = true,
            Some(ToEngineer::Exit(_)) => {}
            Some(ToEngineer::Close) | None => break,
        }
    }
    Ok(Carried { eof, exited })
}

async fn send_exit<D: Door>(
    live: &Live<D>,
    write: &ChannelWriteHalf<Msg>,
    exit: Exit,
) -> Result<(), russh::Error> {
    match exit {
        Exit::Status(status) => write.exit_status(status).await,
        Exit::Signal { name, core_dumped } => {
            let Some(handle) = live.handle.get() else { return Err(russh::Error::Disconnect) };
            handle
                .exit_signal_request(write.id(), signal(&name), core_dumped, String::new(), String::new())
                .await
                .map_err(|()| russh::Error::SendError)
        }
    }
}

fn signal(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    }
}

/// A signal's name as the client sent it, if it can be one.
pub fn signal_name(signal: Sig) -> Option<String> {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => {
            let fits = (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
            return fits.then_some(name);
        }
    };
    Some(name.to_owned())
}
