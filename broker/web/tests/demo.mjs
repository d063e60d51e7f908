// Starts the demonstration (a broker, two simulated devices, four people) and its command line, and ends
// everything that was started, by process id.

import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = fileURLToPath(new URL('..', import.meta.url));
const programs = resolve(here, process.env.DAYPASS_TEST_PROGRAMS ?? '../../target/debug');

/** A running program: what it says is kept, and can be waited for. */
class Program {
  out = '';
  err = '';
  code = undefined;
  #waiting = new Set();

  constructor(name, args, env = {}) {
    this.name = `${name.split('/').at(-1)} ${args.join(' ')}`;
    this.child = spawn(name, args, { env: { ...process.env, ...env }, stdio: 'pipe' });
    this.child.stdout.on('data', (bytes) => this.#said('out', bytes));
    this.child.stderr.on('data', (bytes) => this.#said('err', bytes));
    // Whoever ended no longer reads.
    this.child.stdin.on('error', () => {});
    this.ended = new Promise((done) => {
      const over = (code) => {
        this.code ??= code;
        this.#said('err', '');
        done(this);
      };
      this.child.on('error', (error) => ((this.err += error.message), over(-1)));
      this.child.on('close', (code, signal) => over(code ?? signal));
    });
  }

  #said(where, bytes) {
    this[where] += bytes;
    for (const look of this.#waiting) look();
  }

  /** The match of `pattern` in what the program said, as soon as it is there. */
  async until(pattern, { where = 'out', seconds = 30 } = {}) {
    let look;
    let timer;
    try {
      return await new Promise((found, failed) => {
        const fail = (why) => failed(new Error(`${this.name}: ${why}\n${this.out}\n${this.err}`));
        look = () => {
          const match = pattern.exec(this[where]);
          if (match) found(match);
          else if (this.code !== undefined) fail(`ended with ${this.code} without saying ${pattern}`);
        };
        timer = setTimeout(() => fail(`did not say ${pattern}`), seconds * 1000);
        this.#waiting.add(look);
        look();
      });
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(look);
    }
  }

  /** How it ended; it has some seconds for that. */
  async end({ seconds = 30 } = {}) {
    let timer;
    const late = new Promise((_, failed) => {
      timer = setTimeout(
        () => failed(new Error(`${this.name} does not end\n${this.out}\n${this.err}`)),
        seconds * 1000,
      );
    });
    try {
      return await Promise.race([this.ended, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async stop(signal = 'SIGTERM') {
    if (this.code !== undefined) return;
    this.child.kill(signal);
    await this.end({ seconds: 20 }).catch(() => {
      this.child.kill('SIGKILL');
      return this.ended;
    });
  }
}

export async function startDemo() {
  const dir = await mkdtemp(join(tmpdir(), 'daypass-journey-'));
  const started = [];
  const start = (...how) => {
    const program = new Program(...how);
    started.push(program);
    return program;
  };
  const broker = start(join(programs, 'daypass-broker'), [
    ...['demo', '--dir', join(dir, 'demo'), '--programs', programs, '--quiet'],
    ...['--https-port', '0', '--ssh-port', '0', '--idp-port', '0'],
  ]);

  async function stop() {
    // Those of the command line first, the broker with its devices last.
    for (const program of started.reverse()) await program.stop();
    await rm(dir, { recursive: true, force: true });
  }

  try {
    const endpoints = JSON.parse(await whenWritten(join(dir, 'demo', 'endpoints.json'), broker));
    // Undefined ones are left out: those of whoever runs the test do not matter.
    const env = {
      DAYPASS_HOME: endpoints.daypass_home,
      DAYPASS_PROFILE: undefined,
      DAYPASS_BROKER: undefined,
    };
    const { daypass } = endpoints;
    return {
      ...endpoints,
      dir,
      broker,
      stop,
      /** The command line as one of the four. */
      cli: (profile, ...args) => start(daypass, ['--profile', profile, ...args], env),
      /** The same at a terminal of 80 columns, as `script` makes one. */
      terminal: (profile, ...args) => {
        const words = [daypass, '--profile', profile, ...args].map((word) => `'${word}'`).join(' ');
        return start('script', ['-qfec', `stty cols 80 rows 20; exec ${words}`, '/dev/null'], env);
      },
      /** The command line of a machine that nobody signed in on yet. */
      elsewhere: (...args) => start(daypass, ['--home', join(dir, 'elsewhere'), ...args], env),
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function whenWritten(path, broker) {
  const late = Date.now() + 90_000;
  for (;;) {
    try {
      return await readFile(path, 'utf8');
    } catch (error) {
      if (error.code !== 'ENOENT' || broker.code !== undefined || Date.now() > late)
        throw new Error(`the demonstration did not start\n${broker.out}\n${broker.err}`, { cause: error });
      await new Promise((done) => setTimeout(done, 100));
    }
  }
}
