//! A program that runs, what it said, and how it ended.

use crate::{PATIENCE, eventually, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Heard = Arc<Mutex<Vec<u8>>>;

/// A child with its three streams. Dropped, it is ended.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    out: Heard,
    err: Heard,
    readers: Vec<JoinHandle<()>>,
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Done {
    pub name: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Done {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test unless the program ended with 0.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> Self {
        self.with(0)
    }

    #[track_caller]
    #[must_use]
    pub fn with(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "wanted {text:?} on stderr of {self}");
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self}"))
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}\nstdout: {}\nstderr: {}", self.name, self.status, self.out(), self.stderr)
    }
}

fn listen(mut from: impl Read + Send + 'static) -> (Heard, JoinHandle<()>) {
    let heard = Heard::default();
    let into = heard.clone();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            into.lock().unwrap().extend_from_slice(&buffer[..n]);
        }
    });
    (heard, reader)
}

impl Program {
    pub fn start(mut command: Command) -> Self {
        let name = format!("{command:?}");
        let name = name.chars().take(400).collect();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (out, first) = listen(child.stdout.take().unwrap());
        let (err, second) = listen(child.stderr.take().unwrap());
        let stdin = child.stdin.take();
        Self { name, child, stdin, out, err, readers: vec![first, second] }
    }

    /// Runs it to its end, with this on its standard input.
    pub fn run(command: Command, input: &[u8]) -> Done {
        let mut program = Self::start(command);
        program.send(input);
        program.finish()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        if let Some(stdin) = &mut self.stdin {
            // A program that ended does not read; how it ended says more than the broken pipe.
            let _ = stdin.write_all(bytes).and_then(|()| stdin.flush());
        }
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.out.lock().unwrap()).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.err.lock().unwrap()).into_owned()
    }

    /// Waits until standard output holds `text`.
    pub fn shows(&mut self, text: &str) {
        eventually(&format!("{text:?} from {}", self.name), || {
            if self.out().contains(text) {
                return Some(());
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                // What it said last may still be on its way to us.
                std::thread::sleep(Duration::from_millis(200));
                assert!(self.out().contains(text), "{status} before {text:?}: {} {}", self.out(), self.err());
            }
            None
        });
    }

    /// Waits until standard error holds `text`.
    pub fn complains(&self, text: &str) {
        until(&format!("{text:?} on stderr of {}", self.name), || self.err().contains(text));
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        // Gone already is as good.
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Closes its standard input and waits for its end.
    pub fn finish(mut self) -> Done {
        self.stdin = None;
        self.end()
    }

    /// Waits for its end, its standard input open.
    pub fn ends(mut self) -> Done {
        self.end()
    }

    fn end(&mut self) -> Done {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{} does not end\nstdout: {}\nstderr: {}",
                self.name,
                self.out(),
                self.err()
            );
            std::thread::sleep(Duration::from_millis(3));
        };
        // A grandchild may hold a pipe open; what the program itself said is here by then.
        let drained = Instant::now();
        while !self.readers.iter().all(JoinHandle::is_finished) && drained.elapsed() < Duration::from_secs(2)
        {
            std::thread::sleep(Duration::from_millis(3));
        }
        Done { name: self.name.clone(), status, stdout: self.out.lock().unwrap().clone(), stderr: self.err() }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
