// Reading recordings. Their bytes come from devices and are hostile: sizes are bounded, kinds of events are
// listed, and everything ends as text.

export const MAX_COLS = 500;
export const MAX_ROWS = 200;

export type CastEvent = [atMs: number, kind: 'o' | 'r', data: string];

export interface Cast {
  cols: number;
  rows: number;
  events: CastEvent[];
  /** Lines that were not events, for example the last one of a recording that is still written. */
  skipped: number;
}

function size(value: unknown, fallback: number, max: number): number {
  return typeof value === 'number' && Number.isInteger(value) && value > 0 ? Math.min(value, max) : fallback;
}

function json(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

/**
 * asciicast v2. Only output and resizes are kept: no theme (it could hide text), no input, no markers. Times
 * never run backwards.
 */
export function readCast(text: string): Cast {
  const lines = text.split('\n');
  const header = json(lines[0] ?? '');
  if (typeof header !== 'object' || header === null || (header as { version?: unknown }).version !== 2)
    throw new Error('This is not an asciicast of version 2.');
  const { width, height } = header as { width?: unknown; height?: unknown };
  const cast: Cast = {
    cols: size(width, 80, MAX_COLS),
    rows: size(height, 24, MAX_ROWS),
    events: [],
    skipped: 0,
  };
  let atMs = 0;
  for (const line of lines.slice(1)) {
    if (line.trim() === '') continue;
    const event = json(line);
    if (!Array.isArray(event) || typeof event[0] !== 'number' || typeof event[2] !== 'string') {
      cast.skipped += 1;
      continue;
    }
    const [at, kind, data] = event as [number, unknown, string];
    if (Number.isFinite(at)) atMs = Math.max(atMs, at * 1000);
    if (kind === 'o') cast.events.push([atMs, 'o', data]);
    else if (kind === 'r') {
      const [, cols, rows] = /^(\d{1,5})x(\d{1,5})$/.exec(data) ?? [];
      if (cols && rows)
        cast.events.push([atMs, 'r', `${size(+cols, 80, MAX_COLS)}x${size(+rows, 24, MAX_ROWS)}`]);
    }
  }
  return cast;
}

export interface Chunk {
  stream: 'stdout' | 'stderr';
  text: string;
}

/**
 * Output of a command without a PTY: lines of `{"t": ms, "stream": "stdout" | "stderr", "data": <base64>}`. Neighbours of
 * one stream become one chunk; characters cut in two by the network are put together again.
 */
export function readOutput(text: string): { chunks: Chunk[]; skipped: number } {
  const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  const chunks: Chunk[] = [];
  let skipped = 0;
  const add = (stream: Chunk['stream'], said: string) => {
    if (!said) return;
    const last = chunks.at(-1);
    if (last?.stream === stream) last.text += said;
    else chunks.push({ stream, text: said });
  };
  for (const line of text.split('\n')) {
    if (line.trim() === '') continue;
    const entry = json(line) as { stream?: unknown; data?: unknown } | undefined | null;
    const stream = entry?.stream;
    const bytes = typeof entry?.data === 'string' ? base64(entry.data) : undefined;
    if ((stream !== 'stdout' && stream !== 'stderr') || !bytes) {
      skipped += 1;
      continue;
    }
    add(stream, decoders[stream].decode(bytes, { stream: true }));
  }
  add('stdout', decoders.stdout.decode());
  add('stderr', decoders.stderr.decode());
  for (const chunk of chunks) chunk.text = chunk.text.replace(/\r\n/g, '\n');
  return { chunks, skipped };
}

function base64(text: string): Uint8Array | undefined {
  try {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  } catch {
    return undefined;
  }
}

export interface TimelineEvent {
  /** Milliseconds since the session began. */
  at: number | undefined;
  kind: string;
  facts: [name: string, value: string][];
}

/** The events file: lines of `{"t": <ms since the session began>, "event": <kind>, …facts}`. */
export function readEvents(text: string): { events: TimelineEvent[]; skipped: number } {
  const events: TimelineEvent[] = [];
  let skipped = 0;
  for (const line of text.split('\n')) {
    if (line.trim() === '') continue;
    const entry = json(line);
    if (
      typeof entry !== 'object' ||
      entry === null ||
      !('event' in entry) ||
      typeof entry.event !== 'string'
    ) {
      skipped += 1;
      continue;
    }
    const { t, event, pty, ...facts } = entry as { t?: unknown; event: string } & Record<string, unknown>;
    events.push({
      at: typeof t === 'number' && Number.isFinite(t) ? t : undefined,
      kind: event.replaceAll('_', ' '),
      facts: [
        ...Object.entries(facts).flatMap(([name, value]) => factsOf(name.replaceAll('_', ' '), value)),
        ...terminalOf(pty),
      ],
    });
  }
  return { events, skipped };
}

/** `xterm 80×24`. The modes of the terminal are in the file, for who needs them. */
function terminalOf(pty: unknown): [string, string][] {
  if (typeof pty !== 'object' || pty === null) return [];
  const { term, size } = pty as { term?: unknown; size?: { cols?: unknown; rows?: unknown } | null };
  const measure = size?.cols && size.rows ? ` ${String(size.cols)}×${String(size.rows)}` : '';
  return [['terminal', `${typeof term === 'string' ? term : ''}${measure}`.trim() || 'of unknown kind']];
}

/** One line for each plain value: `pty size cols`. The text of a thing is the thing. */
function factsOf(name: string, value: unknown, depth = 0): [string, string][] {
  if (value === null || value === undefined) return [];
  if (typeof value !== 'object') return [[name, String(value)]];
  if (Array.isArray(value) || depth === 3) return [[name, JSON.stringify(value)]];
  return Object.entries(value).flatMap(([part, inner]) =>
    factsOf(part === 'text' ? name : `${name} ${part.replaceAll('_', ' ')}`, inner, depth + 1),
  );
}

/** What was done to a file over SFTP. */
export interface FileLine {
  at: number | undefined;
  /** `put`, `get`, `list`, or the operation as the protocol calls it. */
  verb: string;
  path: string;
  /** New name, target of a link. */
  to?: string;
  bytes?: number;
  sha256?: string;
  /** Why there is no hash, what the device refused, what it listed. */
  note?: string;
}

/** Operations that every client does all the time, and that only look. */
const LOOKING = new Set([
  'stat',
  'lstat',
  'fstat',
  'realpath',
  'readlink',
  'expand_path',
  'home_directory',
  'statvfs',
  'fstatvfs',
  'fsync',
  'limits',
  'users_groups_by_id',
]);

interface SftpEvent {
  t?: unknown;
  event?: unknown;
  op?: unknown;
  path?: { text?: unknown } | null;
  to?: { text?: unknown } | null;
  result?: unknown;
  entries?: unknown;
  read?: Moved | null;
  written?: Moved | null;
  why?: unknown;
}
interface Moved {
  bytes?: unknown;
  sha256?: unknown;
  why_none?: unknown;
}

/** The operations on files among the events of a session: transfers with size and hash, and what changed. */
export function readFiles(text: string): FileLine[] {
  const files: FileLine[] = [];
  const word = (value: unknown) => (typeof value === 'string' ? value.replaceAll('_', ' ') : undefined);
  for (const line of text.split('\n')) {
    if (!line.includes('"sftp')) continue;
    const event = json(line) as SftpEvent | null | undefined;
    if (typeof event !== 'object' || event === null) continue;
    const at = typeof event.t === 'number' && Number.isFinite(event.t) ? event.t : undefined;
    if (event.event === 'sftp_unreadable') files.push({ at, verb: 'ended', path: '', note: word(event.why) });
    if (event.event !== 'sftp' || typeof event.op !== 'string') continue;
    const ok = event.result === 'ok';
    const path = typeof event.path?.text === 'string' ? event.path.text : '';
    const note = ok ? undefined : word(event.result);
    if (event.op === 'close') {
      for (const [verb, moved] of [
        ['get', event.read],
        ['put', event.written],
      ] as const)
        if (moved)
          files.push({
            at,
            verb,
            path,
            bytes: typeof moved.bytes === 'number' ? moved.bytes : undefined,
            sha256: typeof moved.sha256 === 'string' ? moved.sha256 : undefined,
            note: [note, moved.why_none ? `no hash: ${word(moved.why_none) ?? ''}` : undefined]
              .filter(Boolean)
              .join('; '),
          });
    } else if (event.op === 'closedir')
      files.push({ at, verb: 'list', path, note: `${String(event.entries ?? 0)} names` });
    else if (!LOOKING.has(event.op) && !(ok && (event.op === 'open' || event.op === 'opendir')))
      files.push({
        at,
        verb: word(event.op) ?? '',
        path,
        to: typeof event.to?.text === 'string' ? event.to.text : undefined,
        note,
      });
  }
  return files;
}
