"""What the benchmarks share: building, a demonstration of their own, rows and the table."""

import getpass
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
# Results stand in the checkout, wherever the compiler puts its own things.
RESULTS = ROOT / "target" / "bench"
WORK = TARGET / "bench-work"
DEVICE = "gw-0043"


def say(text):
    print(f"== {text}", file=sys.stderr, flush=True)


def die(text, hint=None):
    print(f"error: {text}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(1)


def run(command, **options):
    """Runs it, or ends everything with what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        die(f"{' '.join(map(str, command))} ended with {done.returncode}", (done.stderr or done.stdout).strip()[-2000:])
    return done.stdout


def need(why, **packages):
    """Debian packages by the command each of them brings."""
    paths = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for command, package in packages.items() if not shutil.which(command.replace("_", "-"), path=paths)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        die(f"missing {why}: {' '.join(missing)}", "install them with this system's package manager, then run this again")
    say(f"Installing {why}: {' '.join(missing)}")
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    run([*sudo, "apt-get", "update", "-qq"])
    run([*sudo, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing])


def cargo(*arguments, env=None):
    say("cargo " + " ".join(arguments))
    if subprocess.run(["cargo", *arguments], cwd=ROOT, env=env).returncode != 0:
        die("the build failed")


def release(*more):
    """The folder of the release builds, made fresh; or DAYPASS_BENCH_PROGRAMS, where they were built before, the
    device's program perhaps as devices have it."""
    if built := os.environ.get("DAYPASS_BENCH_PROGRAMS"):
        return pathlib.Path(built).absolute()
    packages = [part for name in ("daypass-broker", "daypass", "daypass-shim", *more) for part in ("-p", name)]
    cargo("build", "--locked", "--release", *packages)
    return TARGET / "release"


class Demo:
    """A demonstration of its own: a broker on any ports, two devices, four people. Ends with the `with`."""

    def __init__(self, programs, name):
        self.programs = programs
        self.dir = WORK / name
        self.process = None
        self.https_port = 0

    def __enter__(self):
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        with open(self.dir / "broker.log", "wb") as log:
            self.process = subprocess.Popen(
                [self.programs / "daypass-broker", "demo", "--dir", self.dir, "--programs", self.programs, "--quiet"]
                + ["--https-port", str(self.https_port), "--ssh-port", "0", "--idp-port", "0"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        try:
            endpoints = self.dir / "endpoints.json"
            await_(90, "the demonstration starts", lambda: endpoints.exists() or self.process.poll() is not None)
            if self.process.poll() is not None:
                die("the demonstration ended at once", (self.dir / "broker.log").read_text()[-2000:])
            self.endpoints = json.loads(endpoints.read_text())
            self.environment = {
                key: value for key, value in os.environ.items() if key not in ("DAYPASS_PROFILE", "DAYPASS_BROKER")
            } | {"DAYPASS_HOME": self.endpoints["daypass_home"], "SHLVL": "1"}  # As in a terminal.
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return False

    def engineer(self, *arguments):
        """A command line of the engineer."""
        return [self.programs / "daypass", "--profile", "engineer", *arguments]

    def operator(self, *arguments):
        """What an operator's command line answers, as JSON."""
        command = [self.programs / "daypass", "--profile", "operator", "--json", *arguments]
        return json.loads(run(command, env=self.environment, stdin=subprocess.DEVNULL))

    def token(self, uses=1):
        """A join token for devices of the lab."""
        return self.operator("device", "enrol-token", "--line", "edge-gateway", "--label", "env=lab", "--uses", str(uses))["token"]

    def port(self):
        """Of the API and the devices."""
        return urllib.parse.urlsplit(self.endpoints["url"]).port

    def let_in(self, device=DEVICE):
        """Policy lets the engineer onto a device of the lab for half an hour by itself."""
        run(
            self.engineer("ssh", device, "-l", "diag", "--channel", "shell,exec,sftp", "--reason", "benchmark", "--", "true"),
            env=self.environment, stdin=subprocess.DEVNULL,
        )

    def shim(self):
        """The process of the device's program."""
        return next(
            pid for pid in children(self.process.pid)
            if f"/{DEVICE}/" in pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        )


class FarDevice:
    """One more device of a demonstration, whose connection goes through a port of the caller's."""

    def __init__(self, demo, id, port):
        self.demo, self.id, self.port, self.process = demo, id, port, None

    def __enter__(self):
        folder = self.demo.dir / "far" / self.id
        folder.mkdir(parents=True)
        config = folder / "device.toml"
        config.write_text(
            f'broker_url = "https://127.0.0.1:{self.port}"\nstate_dir = "{folder}/state"\n'
            f'logins = {{ diag = "{getpass.getuser()}" }}\nreconnect_max_s = 10\n'
        )
        shim = self.demo.programs / "daypass-shim"
        run([shim, "enrol", self.demo.token(), "--device", self.id, "--serial-number", self.id, "--config", config])
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen([shim, "run", "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        await_(30, f"{self.id} connects", lambda: self.demo.operator("device", "show", self.id)["online"])
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        return False


def await_(seconds, what, condition):
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            die(f"waited {seconds} s in vain: {what}")
        time.sleep(0.1)


def children(pid):
    """Direct children."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def cpu_seconds(pid, children=False):
    """Of user and system; with those of the children that have ended."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11 : 15 if children else 13])) / os.sysconf("SC_CLK_TCK")


def quiet(pid):
    """Waits until the process does nothing more: what it does after one measurement is no part of the next."""
    before = cpu_seconds(pid)
    for _ in range(60):
        time.sleep(0.5)
        now = cpu_seconds(pid)
        if now - before < 0.02:
            return
        before = now


def row(name, unit, ours, peer=None, at_most=None, at_least=None, of="ratio"):
    """One result. The bound is on the ratio to the peer, or with `of="ours"` on our own figure."""
    ratio = None if peer is None else ours / peer
    judged = ours if of == "ours" else ratio
    wanted, holds = None, None
    if at_most is not None:
        wanted, holds = f"{of} <= {at_most}", judged <= at_most
    if at_least is not None:
        wanted, holds = f"{of} >= {at_least}", judged >= at_least
    shown = lambda value: None if value is None else round(value, 3)
    return {"name": name, "unit": unit, "ours": shown(ours), "peer": shown(peer), "ratio": shown(ratio),
            "wanted": wanted, "holds": holds}


def report(name, rows):
    """Prints the table and writes target/bench/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    heads = ["name", "unit", "ours", "peer", "ratio", "wanted", "holds"]
    text = lambda value: {None: "-", True: "yes", False: "NO"}.get(value, str(value)) if not isinstance(value, float) else f"{value:g}"
    lines = [heads] + [[text(entry[head]) for head in heads] for entry in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    print()
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    # Whatever else the machine does falls on both sides, but not evenly.
    print(f"\n{os.cpu_count()} processors, load {os.getloadavg()[1]:.1f} over the last five minutes")
    print(f"written to {(RESULTS / f'{name}.json').relative_to(ROOT)}")
