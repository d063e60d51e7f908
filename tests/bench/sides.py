"""The two sides of a comparison: OpenSSH's client through our gateway, and through one sshd to a second."""

import os
import pathlib
import shutil
import socket
import subprocess
import time

import bench

MEGABYTES = int(os.environ.get("DAYPASS_BENCH_MB", "300"))
CIPHERS = {"AES-GCM": "aes128-gcm@openssh.com", "ChaCha20": "chacha20-poly1305@openssh.com"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def sftp_server():
    """The one that the device's program finds too."""
    for folder in ("lib/openssh", "libexec", "lib", "libexec/openssh"):
        if (server := pathlib.Path("/usr") / folder / "sftp-server").exists():
            return server
    bench.die("there is no sftp-server", "install openssh-sftp-server")


class Peer:
    """Two private sshds on loopback, and the client's configuration through the first to the second."""

    def __enter__(self):
        self.dir = bench.WORK / "sshd"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            # Where sshd locks itself in before anybody is known.
            pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("client", "host"):
            bench.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / name])
        shutil.copy(self.dir / "client.pub", self.dir / "authorized_keys")
        self.processes, self.ports = [], []
        try:
            for _ in range(2):
                self.start(free_port())
            for port in self.ports:
                bench.await_(10, f"sshd on {port}", lambda: answers(port))
        except BaseException:
            self.__exit__()
            raise
        host = " ".join((self.dir / "host.pub").read_text().split()[:2])
        (self.dir / "known_hosts").write_text("".join(f"[127.0.0.1]:{port} {host}\n" for port in self.ports))
        self.config = f"""
Host *
    HostName 127.0.0.1
    IdentityFile "{self.dir}/client"
    IdentitiesOnly yes
    PreferredAuthentications publickey
    UserKnownHostsFile "{self.dir}/known_hosts"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
Host jump
    Port {self.ports[0]}
Host device
    Port {self.ports[1]}
    ProxyJump jump
"""
        return self

    def with_device_behind(self, port):
        """The same two servers; the way to the second leads through this port."""
        host = (self.dir / "host.pub").read_text().split()[:2]
        with open(self.dir / "known_hosts", "a") as known:
            known.write(f"[127.0.0.1]:{port} {' '.join(host)}\n")
        return self.config + f"""
Host far
    Port {port}
    ProxyJump jump
"""

    def start(self, port):
        path = self.dir / f"sshd-{port}"
        path.write_text(f"""
ListenAddress 127.0.0.1:{port}
HostKey {self.dir}/host
AuthorizedKeysFile {self.dir}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
PermitRootLogin yes
Subsystem sftp {sftp_server()}
MaxStartups 100:30:100
LogLevel ERROR
""")
        sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
        log = open(self.dir / f"sshd-{port}.log", "wb")
        self.processes.append(subprocess.Popen([sshd, "-D", "-e", "-f", path], stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        self.ports.append(port)

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
            process.wait()
        return False


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as tried:
            return tried.recv(4) == b"SSH-"
    except OSError:
        return False


class Side:
    """One of the two: how its client is called."""

    def __init__(self, name, config, host, environment):
        self.name, self.host, self.environment = name, host, environment
        # What this side still does when a measurement is over, waited for before the other's turn.
        self.settle = lambda: None
        self.files = {}
        for cipher, algorithm in CIPHERS.items():
            # First wins, so this holds on both hops.
            self.files[cipher] = bench.WORK / f"ssh-{name}-{cipher}"
            # Newer clients send keystrokes at a beat of their own, which is not what is measured.
            quiet = "IgnoreUnknown ObscureKeystrokeTiming\nObscureKeystrokeTiming no\nBatchMode yes\nLogLevel ERROR\n"
            self.files[cipher].write_text(f"Ciphers {algorithm}\n{quiet}{config}")

    def ssh(self, cipher, command):
        return ["ssh", "-F", str(self.files[cipher]), self.host, command]

    def prompt(self, cipher):
        """Milliseconds until the first word of a command on a terminal."""
        start = time.monotonic()
        client = subprocess.Popen(
            ["ssh", "-tt", *self.ssh(cipher, "printf ready; exec cat")[1:]], env=self.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        seen = b""
        while b"ready" not in seen:
            part = os.read(client.stdout.fileno(), 4096)
            if not part:
                bench.die(f"{self.name}: the terminal ended at once with {client.wait()}")
            seen += part
        took = time.monotonic() - start
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()
        return 1000 * took

    def timed(self, cipher, command, **streams):
        """Seconds."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | streams
        start = time.monotonic()
        done = subprocess.run(self.ssh(cipher, command), env=self.environment, stderr=subprocess.PIPE, **streams)
        took = time.monotonic() - start
        if done.returncode != 0:
            bench.die(f"{self.name}: {command} ended with {done.returncode}", done.stderr.decode(errors="replace"))
        return took

    def connect(self, cipher):
        return 1000 * self.timed(cipher, "true")

    def download(self, cipher):
        """Through a pipe that counts, so that nothing but all of it passes."""
        start = time.monotonic()
        client = subprocess.Popen(
            self.ssh(cipher, f"head -c {MEGABYTES}000000 /dev/zero"), env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )
        count = 0
        while part := os.read(client.stdout.fileno(), 1 << 18):
            count += len(part)
        client.stdout.close()
        status = client.wait()
        took = time.monotonic() - start
        if status != 0 or count != MEGABYTES * 1_000_000:
            bench.die(f"{self.name}: {count} bytes came back, status {status}")
        return MEGABYTES / took

    def upload(self, cipher):
        feed = subprocess.Popen(["head", "-c", f"{MEGABYTES}000000", "/dev/zero"], stdout=subprocess.PIPE)
        read, write = os.pipe()
        took = self.timed(cipher, "wc -c", stdin=feed.stdout, stdout=write)
        os.close(write)
        count = os.read(read, 64).strip()
        os.close(read)
        feed.stdout.close()
        feed.wait()
        if int(count) != MEGABYTES * 1_000_000:
            bench.die(f"{self.name}: {count} bytes arrived")
        return MEGABYTES / took

    def copy(self, batch, to):
        """Seconds of one `sftp` with this batch, into a folder that is then compared and removed."""
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        start = time.monotonic()
        done = subprocess.run(
            ["sftp", "-q", "-F", str(self.files["AES-GCM"]), "-b", "-", self.host],
            input=batch.encode(), env=self.environment, capture_output=True,
        )
        took = time.monotonic() - start
        if done.returncode != 0:
            bench.die(f"{self.name}: {batch.strip()} ended with {done.returncode}", done.stderr.decode(errors="replace"))
        return took


def daypass_config(demo):
    """What `daypass setup` gives to ssh, without the command it runs first: SSH is measured here."""
    home = pathlib.Path(demo.endpoints["daypass_home"])
    include = next(home.rglob("engineer/ssh_include"))
    return include.read_text().split("\nMatch ", 1)[0]


def jump_config(demo):
    """The same, with the gateway as a jump host."""
    suffix = demo.endpoints["host_suffix"]
    jump = f"Host *.{suffix}\n    ProxyJump daypass-gateway-engineer\n    ProxyUseFdpass no\n"
    return jump + daypass_config(demo)
