//! What the library calls: proofs, channels, and what is asked on them.

use super::{Broken, Connection, Judged, Proven, refused_certificate};
use crate::gateway::channel::{Asked, signal_name};
use crate::gateway::door::{Door, Refusal, RefusedKind};
use crate::gateway::forward;
use crate::gateway::gate::{Allowed, NotAllowed, Purpose, Wish, pty, window};
use crate::gateway::jump::{self, Jump};
use crate::gateway::live::{Entry, SessionEntry, Waiting};
use crate::gateway::pipe::pipe;
use crate::session::wire::{FromEngineer, input};
use daypass_protocol::ssh_key::Certificate;
use daypass_protocol::tunnel::open::{MAX_ENV, MAX_ENV_VALUE, env_is_allowed};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, Pty, Sig};
use tokio::time::timeout;
use tracing::info;

fn answer(yes: bool, id: ChannelId, session: &mut Session) -> Result<(), Broken> {
    let answered = if yes { session.channel_success(id) } else { session.channel_failure(id) };
    Ok(answered?)
}

impl<D: Door> Handler for Connection<D> {
    type Error = Broken;

    /// An offer proves nothing and decides nothing. It is the same call for a bare key and for a
    /// certificate over it, so it cannot refuse either.
    async fn auth_publickey_offered(&mut self, _: &str, _: PublicKeyOffer<'_>) -> Result<Auth, Broken> {
        self.proven = None;
        Ok(Auth::Accept)
    }

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Broken> {
        self.proven = None;
        let inside = self.live.inside.clone();
        let known = timeout(inside.limits.step, inside.door.bare_key(key.public_key)).await;
        let known = known.ok().flatten();
        let refusal = known.clone().unwrap_or_else(|| Refusal::new("a key without an identity certificate"));
        self.record(&NotAllowed { kind: RefusedKind::BareKey, refusal })?;
        Ok(match known {
            Some(refusal) => self.last_word(&refusal),
            None => Auth::reject(),
        })
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Broken> {
        // Nothing of an earlier attempt survives, under this user name or another.
        self.proven = None;
        match self.judge(user, certificate).await {
            Ok(proven) => {
                self.proven = Some(proven);
                Ok(Auth::Accept)
            }
            Err(Judged::Stranger) => {
                self.record(&refused_certificate(Refusal::new("a certificate of nobody known here")))?;
                Ok(Auth::reject())
            }
            Err(Judged::Known(why)) => {
                self.record(&why)?;
                Ok(self.last_word(&why.refusal))
            }
        }
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Broken> {
        let proven = self.proven()?;
        let client = self.client(session);
        info!(purpose = ?proven.purpose, kex = client.kex, client = client.version, "proven");
        self.live.authenticated.cancel();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Broken> {
        if let Err(why) = self.ask(Wish::SessionChannel)?.and_then(|_| self.count()) {
            return self.refuse_open(reply, &why).await;
        }
        // Without its read half the library's loop never waits for this channel.
        let (_, write) = channel.split();
        let id = write.id();
        let (queue, engineer) = input(self.live.relief());
        let waiting = Waiting { write, engineer, pty: None, env: Vec::new() };
        let entry = SessionEntry::new(queue, waiting, self.live.gone.child_token());
        self.live.channels().insert(id, Entry::Session(entry));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Broken> {
        let asked = self.ask(Wish::DirectTcpip { host, port })?;
        match asked.and_then(|allowed| self.count().map(|()| allowed)) {
            Ok(Allowed::Jump(device)) => {
                let (_, write) = channel.split();
                let (pipe_in, out, stream) = pipe(self.live.relief());
                self.live.channels().insert(write.id(), Entry::Jump(Some(pipe_in)));
                let person = self.proven()?.person.clone();
                let jump = Jump { reply, write, out, stream };
                self.live.spawn(jump::run(self.live.clone(), person, device, jump));
                Ok(())
            }
            Ok(Allowed::Open(kind)) => {
                let Proven { person, purpose } = self.proven()?;
                let Purpose::Session { login, device } = purpose else { return Err(Broken::NotProven) };
                let asked = Asked::<D> {
                    person: person.clone(),
                    device: device.clone(),
                    login: login.clone(),
                    client: self.client(session),
                    kind,
                    env: Vec::new(),
                };
                let (_, write) = channel.split();
                let (queue, input) = input(self.live.relief());
                let gone = self.live.gone.child_token();
                let entry = Entry::Session(SessionEntry::begun(queue, gone.clone()));
                self.live.channels().insert(write.id(), entry);
                let start = forward::Start { asked, input, write, reply, gone };
                self.live.spawn(forward::run(self.live.clone(), start));
                Ok(())
            }
            Ok(Allowed::SessionChannel) => Err(Broken::NotProven),
            Err(why) => self.refuse_open(reply, &why).await,
        }
    }

    async fn channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Broken> {
        match self.ask(Wish::X11)? {
            Err(why) => self.refuse_open(reply, &why).await,
            Ok(_) => Err(Broken::NotProven),
        }
    }

    async fn channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Broken> {
        match self.ask(Wish::RemoteForward)? {
            Err(why) => self.refuse_open(reply, &why).await,
            Ok(_) => Err(Broken::NotProven),
        }
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Broken> {
        match self.ask(Wish::StreamLocal)? {
            Err(why) => self.refuse_open(reply, &why).await,
            Ok(_) => Err(Broken::NotProven),
        }
    }

    async fn data(&mut self, id: ChannelId, bytes: &[u8], _: &mut Session) -> Result<(), Broken> {
        self.live.take(id, bytes).map_err(|_| Broken::WindowIgnored)
    }

    /// No channel of ours takes extended data from a client. It counts against the window, and goes.
    async fn extended_data(&mut self, _: ChannelId, _: u32, _: &[u8], _: &mut Session) -> Result<(), Broken> {
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.live.next_window()
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Broken> {
        match self.live.channels().get_mut(&id) {
            Some(Entry::Jump(pipe)) => *pipe = None,
            Some(Entry::Session(entry)) => {
                // A channel that nobody takes from any more is being closed already.
                let _ = entry.push(FromEngineer::Eof);
            }
            None => {}
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Broken> {
        if let Some(Entry::Session(entry)) = self.live.channels().remove(&id) {
            entry.gone.cancel();
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        width_px: u32,
        height_px: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Broken> {
        let asked = pty(term, window(cols, rows, width_px, height_px), modes);
        let taken = match (self.live.channels().get_mut(&id), asked) {
            (Some(Entry::Session(SessionEntry { waiting: Some(waiting), .. })), Some(asked)) => {
                let first = waiting.pty.is_none();
                waiting.pty.get_or_insert(asked);
                first
            }
            _ => false,
        };
        answer(taken, id, session)
    }

    /// Names that may not travel are ignored, as sshd's AcceptEnv does.
    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Broken> {
        let fits = env_is_allowed(name) && value.len() <= MAX_ENV_VALUE && !value.contains('\0');
        let taken = match self.live.channels().get_mut(&id) {
            Some(Entry::Session(SessionEntry { waiting: Some(waiting), .. }))
                if fits && waiting.env.len() < MAX_ENV =>
            {
                waiting.env.push((name.to_owned(), value.to_owned()));
                true
            }
            _ => false,
        };
        answer(taken, id, session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Broken> {
        self.start(id, session, Wish::Shell)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Broken> {
        self.start(id, session, |pty| Wish::Exec(command, pty))
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Broken> {
        self.start(id, session, |_| Wish::Subsystem(name))
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        cols: u32,
        rows: u32,
        width_px: u32,
        height_px: u32,
        session: &mut Session,
    ) -> Result<(), Broken> {
        let size = window(cols, rows, width_px, height_px);
        if let Some(Entry::Session(entry)) = self.live.channels().get_mut(&id) {
            match &mut entry.waiting {
                Some(Waiting { pty: Some(pty), .. }) => pty.size = size,
                Some(_) => {}
                None => {
                    let _ = entry.push(FromEngineer::Resize(size));
                }
            }
        }
        session.channel_success(id)?;
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, session: &mut Session) -> Result<(), Broken> {
        if let (Some(name), Some(Entry::Session(entry))) =
            (signal_name(signal), self.live.channels().get_mut(&id))
            && entry.waiting.is_none()
        {
            let _ = entry.push(FromEngineer::Signal(name));
        }
        session.channel_success(id)?;
        Ok(())
    }

    async fn agent_request(&mut self, id: ChannelId, session: &mut Session) -> Result<bool, Broken> {
        if let Err(why) = self.ask(Wish::Agent)? {
            self.refuse_aside(id, &why, session)?;
        }
        Ok(false)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Broken> {
        if let Err(why) = self.ask(Wish::X11)? {
            self.refuse_aside(id, &why, session)?;
        }
        session.channel_failure(id)?;
        Ok(())
    }

    async fn tcpip_forward(&mut self, _: &str, _: &mut u32, session: &mut Session) -> Result<bool, Broken> {
        self.refuse_global(Wish::RemoteForward, session)
    }

    async fn streamlocal_forward(&mut self, _: &str, session: &mut Session) -> Result<bool, Broken> {
        self.refuse_global(Wish::StreamLocal, session)
    }
}
