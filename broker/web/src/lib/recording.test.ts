import { describe, expect, it } from 'vitest';
import { MAX_COLS, readCast, readEvents, readFiles, readOutput } from './recording';

const lines = (...entries: unknown[]) => entries.map((entry) => JSON.stringify(entry)).join('\n') + '\n';
const header = { version: 2, width: 80, height: 24 };
const b64 = (text: string) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

describe('a terminal recording', () => {
  it('keeps output and resizes, in milliseconds', () => {
    expect(readCast(lines(header, [0.5, 'o', 'hi'], [1, 'r', '100x40'])).events).toEqual([
      [500, 'o', 'hi'],
      [1000, 'r', '100x40'],
    ]);
  });

  it('keeps no theme, input or markers: they could hide or add what was not on screen', () => {
    const cast = readCast(
      lines(
        { ...header, theme: { fg: '#000000', bg: '#000000' } },
        [0, 'i', 'secret'],
        [0, 'm', 'label'],
        [0, 'o', 'x'],
      ),
    );
    expect(cast).toEqual({ cols: 80, rows: 24, events: [[0, 'o', 'x']], skipped: 0 });
  });

  it('bounds the size of the screen', () => {
    expect(readCast(lines({ version: 2, width: 1e9, height: -3 }))).toMatchObject({
      cols: MAX_COLS,
      rows: 24,
    });
    const resized = readCast(lines(header, [0, 'r', '99999x99999'], [0, 'r', '1e9x5'], [0, 'r', '0x0']));
    expect(resized.events.map(([, , data]) => data)).toEqual(['500x200', '80x24']);
  });

  it('never runs backwards, and passes over a last line that is still written', () => {
    const cast = readCast(lines(header, [5, 'o', 'a'], [1, 'o', 'b'], ['x', 'o', 'c']) + '[6,"o","cut o');
    expect(cast.events.map(([at]) => at)).toEqual([5000, 5000]);
    expect(cast.skipped).toBe(2);
  });

  it('says so when it is none', () => {
    for (const text of ['', 'not json', 'null', lines({ version: 3 })])
      expect(() => readCast(text)).toThrow();
  });
});

describe('the output of a command', () => {
  it('puts neighbours of one stream and cut characters together', () => {
    const [a, b] = [b64('é').slice(0, 2) + '==', btoa('\u00a9')];
    const { chunks } = readOutput(
      lines(
        { stream: 'stdout', data: a },
        { stream: 'stdout', data: b },
        { stream: 'stderr', data: b64('no\r\n') },
      ),
    );
    expect(chunks).toEqual([
      { stream: 'stdout', text: 'é' },
      { stream: 'stderr', text: 'no\n' },
    ]);
  });

  it('counts what it cannot read', () => {
    const broken = lines({ stream: 'stdout', data: '%%%' }, { stream: 'other', data: '' }, null, 7) + 'x\n';
    expect(readOutput(broken)).toEqual({ chunks: [], skipped: 5 });
  });
});

describe('the events of a session', () => {
  it('become a moment, a kind and facts', () => {
    const opened = {
      t: 5,
      event: 'channel_opened',
      kind: 'exec',
      command: { text: 'uptime', base64: 'dXA=' },
      pty: { term: 'xterm', size: { cols: 80, rows: 24 }, modes: [[1, 3]] },
      signal: null,
    };
    expect(readEvents(lines(opened)).events).toEqual([
      {
        at: 5,
        kind: 'channel opened',
        facts: [
          ['kind', 'exec'],
          ['command', 'uptime'],
          ['command base64', 'dXA='],
          ['terminal', 'xterm 80×24'],
        ],
      },
    ]);
  });

  it('may be broken without breaking the others', () => {
    expect(readEvents('{\n[]\nnull\n{"t":1}\n' + lines({ t: 'x', event: 'notice' }))).toEqual({
      events: [{ at: undefined, kind: 'notice', facts: [] }],
      skipped: 4,
    });
  });

  it('do not nest without end', () => {
    const deep = '{"a":'.repeat(50) + '1' + '}'.repeat(50);
    expect(readEvents(`{"event":"x","deep":${deep}}\n`).events[0]?.facts[0]?.[0]).toBe('deep a a a');
  });
});

describe('what was done to files', () => {
  const sftp = (facts: object) => ({ t: 5, event: 'sftp', channel: 0, result: 'ok', ...facts });

  it('tells transfers with size and hash, changes and refusals, and not what only looks', () => {
    const files = readFiles(
      lines(
        sftp({ op: 'lstat', path: { text: '/a' } }),
        sftp({ op: 'open', path: { text: '/a' } }),
        sftp({ op: 'close', path: { text: '/a' }, written: { bytes: 5, sha256: 'ab', whole: true } }),
        sftp({
          op: 'close',
          path: { text: '/b' },
          read: { bytes: 7, sha256: null, why_none: 'out_of_order' },
        }),
        sftp({ op: 'rename', path: { text: '/a' }, to: { text: '/c' } }),
        sftp({ op: 'open', path: { text: '/d' }, result: 'permission_denied' }),
        { t: 6, event: 'sftp_asked', op: 'mkdir', path: { text: '/e' } },
        { t: 7, event: 'exited', channel: 0 },
      ),
    );
    expect(files).toEqual([
      { at: 5, verb: 'put', path: '/a', bytes: 5, sha256: 'ab', note: '' },
      { at: 5, verb: 'get', path: '/b', bytes: 7, sha256: undefined, note: 'no hash: out of order' },
      { at: 5, verb: 'rename', path: '/a', to: '/c', note: undefined },
      { at: 5, verb: 'open', path: '/d', to: undefined, note: 'permission denied' },
    ]);
  });

  it('passes over what does not read', () => {
    expect(readFiles('{"event":"sftp"\nnull\n{"event":"sftp"}\n{"event":"sftp","op":7}\n')).toEqual([]);
    expect(readFiles(lines(sftp({ op: 'close', path: 7, read: 'x', written: null })))).toHaveLength(1);
  });
});
