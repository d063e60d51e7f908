// People, requests, sessions and recordings to look at: ordinary ones, and hostile ones.

const MINUTE = 60_000;

export const people = {
  ana: { id: 'P-0000000A', email: 'ana@example.com', name: 'Ana Silva', teams: ['support'] },
  ben: { id: 'P-0000000B', email: 'ben@example.com', name: 'Ben Okafor', teams: ['support-leads'] },
  chloe: { id: 'P-0000000C', email: 'chloe@example.com', name: 'Chloe Martin', teams: ['security'] },
};

const everyone = ['list_devices', 'list_requests', 'list_sessions', 'read_product_lines', 'read_request'];

export const may = {
  ana: [...everyone, 'connect', 'cancel', 'read_session', 'replay'],
  ben: [...everyone, 'approve', 'revoke_grant'],
  chloe: [...everyone, 'read_session', 'replay', 'watch', 'review', 'end_session', 'revoke_grant'],
};

export const ref = ({ id, email, name }) => ({ id, email, name });

/** Text that would do harm in a careless page: markup, escapes, and marks that reorder what is read. */
export const HOSTILE =
  '<img src=x onerror="window.pwned=1"><script>window.pwned=2</script> \u001b]0;owned\u0007 pay \u202eload\u2069 {@html 1} javascript:window.pwned=3';

const osc8 = '\u001b]8;;https://evil.example/?steal\u001b\\click me\u001b]8;;\u001b\\';
const title = '\u001b]0;owned by the terminal\u0007\u001b]2;owned by the terminal\u0007';
const clipboard = '\u001b]52;c;' + Buffer.from('rm -rf /').toString('base64') + '\u0007';

function cast(lines) {
  let at = 0;
  const events = [];
  for (const [gap, text] of lines) {
    at += gap;
    events.push(JSON.stringify([Number(at.toFixed(3)), 'o', text]));
  }
  return (
    [JSON.stringify({ version: 2, width: 80, height: 20, timestamp: 1795000000 }), ...events].join('\n') +
    '\n'
  );
}

const prompt = '\u001b[1;32mdiag@gw-0042\u001b[0m:\u001b[1;34m~\u001b[0m$ ';

const terminal = cast([
  [0.1, prompt],
  [0.4, 'uptime\r\n 10:41:07 up 31 days,  2:14,  load average: 0.08, 0.03, 0.01\r\n' + prompt],
  [0.5, title + clipboard],
  [0.2, 'ls\r\n' + osc8 + '  \u001b[34mlogs\u001b[0m  \u001b[32mmodem-reset\u001b[0m\r\n' + prompt],
  [0.3, '<img src=x onerror="window.pwned=4">\r\n' + prompt],
  [9, 'logread | tail -2\r\n'],
  [
    0.2,
    '\u001b[33mwarn\u001b[0m modem: no carrier (ttyUSB2)\r\n\u001b[31merr\u001b[0m  modem: reset failed, code 7\r\n' +
      prompt,
  ],
  [0.6, 'exit\r\n'],
]);

const hugeHeader = cast([[0.1, 'an honest screen']]).replace('"width":80', '"width":1000000000');

const output = (lines) =>
  lines
    .map(([stream, text], i) =>
      JSON.stringify({ t: i * 40, stream, data: Buffer.from(text).toString('base64') }),
    )
    .join('\n') + '\n';

export function world(now = Date.now()) {
  const request = (fields) => ({
    person: ref(people.ana),
    device: 'gw-0042',
    product_line: 'edge-gateway',
    login: 'diag',
    channels: ['shell', 'exec'],
    duration_s: 3600,
    ticket: null,
    emergency: false,
    why: [],
    approver_teams: ['support-leads', 'safety'],
    answers: [],
    grant: null,
    ...fields,
  });
  const answer = (by, verdict, at, more = {}) => ({
    by: ref(by),
    at,
    verdict,
    comment: null,
    teams: by.teams,
    duration_s: null,
    channels: null,
    ...more,
  });

  const requests = [
    request({
      id: 'R-7K2M9QXD',
      state: 'pending',
      reason:
        'The modem at the customer’s site drops its connection every night.\nI want to read its log and reset it.',
      ticket: 'SUP-4711',
      asked_at: now - 4 * MINUTE,
      lapses_at: now + 56 * MINUTE,
      why: ['Access to an important-1 product needs one approval by a support lead.'],
    }),
    request({
      id: 'R-E4SCAPE0',
      state: 'pending',
      person: { id: 'P-0000000X', email: 'x@example.com"><b>', name: 'Eve \u202e<b>nimdA' },
      device: 'gw-0043',
      channels: ['shell', 'exec', 'sftp', 'forward'],
      duration_s: 28800,
      emergency: true,
      reason: HOSTILE,
      ticket: HOSTILE.slice(0, 90),
      asked_at: now - 11 * MINUTE,
      lapses_at: now + 49 * MINUTE,
      why: ['Emergency access is granted for at most 8 hours and is always reviewed.', HOSTILE],
    }),
    request({
      id: 'R-0WNREQ01',
      state: 'pending',
      person: ref(people.ben),
      reason: 'Look at the disk of the test bench',
      asked_at: now - 20 * MINUTE,
      lapses_at: now + 40 * MINUTE,
      why: ['Support leads need another lead’s approval.'],
    }),
    request({
      id: 'R-11VEGRNT',
      state: 'granted',
      reason: 'Reset the modem',
      ticket: 'SUP-4690',
      asked_at: now - 21 * MINUTE,
      lapses_at: now + 39 * MINUTE,
      why: ['Access to an important-1 product needs one approval by a support lead.'],
      answers: [
        answer(people.ben, 'approve', now - 18 * MINUTE, {
          comment: 'Half an hour is enough for a reset.',
          duration_s: 1800,
          channels: ['shell'],
        }),
      ],
      grant: {
        state: 'live',
        channels: ['shell'],
        starts_at: now - 18 * MINUTE,
        ends_at: now + 12 * MINUTE,
        ended_by: null,
      },
    }),
    request({
      id: 'R-DEN1ED00',
      state: 'denied',
      reason: 'Copy the customer’s database',
      device: 'gw-0043',
      channels: ['sftp'],
      asked_at: now - 1500 * MINUTE,
      lapses_at: now - 1440 * MINUTE,
      answers: [
        answer(people.ben, 'deny', now - 1490 * MINUTE, { comment: 'Not without the customer’s consent.' }),
      ],
    }),
    request({
      id: 'R-EXP1RED0',
      state: 'granted',
      reason: 'Read the log',
      duration_s: 900,
      asked_at: now - 3000 * MINUTE,
      lapses_at: now - 2900 * MINUTE,
      grant: {
        state: 'expired',
        channels: ['shell', 'exec'],
        starts_at: now - 3000 * MINUTE,
        ends_at: now - 2985 * MINUTE,
        ended_by: null,
      },
    }),
  ];

  const recording = (number, kind, content, channel, closed = true) => ({
    number,
    kind,
    channel,
    bytes: Buffer.byteLength(content),
    sha256: closed ? 'a3f1c09d5e7b24688d1f0c3b5a79e2d4f6081b3c5d7e9fa0b1c2d3e4f5061728' : null,
    closed,
  });
  const session = (fields) => ({
    request: 'R-EXP1RED0',
    person: ref(people.ana),
    device: 'gw-0042',
    login: 'diag',
    state: 'ended',
    ended_at: null,
    end_reason: null,
    end_detail: null,
    client_address: '198.51.100.7:51514',
    ...fields,
  });

  const start = now - 2999 * MINUTE;
  const events =
    [
      {
        t: 0,
        event: 'session_opened',
        session: 'S-7K2M9QXD',
        request: 'R-EXP1RED0',
        person: people.ana.id,
        email: people.ana.email,
        device: 'gw-0042',
        login: 'diag',
        client_address: '198.51.100.7:51514',
      },
      {
        t: 900,
        event: 'channel_opened',
        channel: 1,
        kind: 'shell',
        pty: { term: 'xterm-256color', size: { cols: 80, rows: 20 } },
        recording: 1,
      },
      {
        t: 5200,
        event: 'channel_opened',
        channel: 2,
        kind: 'exec',
        command: { text: 'cat /etc/os-release; ' + HOSTILE },
        recording: 2,
      },
      { t: 6100, event: 'exited', channel: 2, status: 0 },
      { t: 6100, event: 'channel_closed', channel: 2, input_bytes: 0, stdout_bytes: 128, stderr_bytes: 42 },
      {
        t: 9000,
        event: 'channel_refused',
        kind: 'auth-agent@openssh.com',
        why: 'agent forwarding is not a channel',
      },
      { t: 60_000, event: 'notice', text: 'Access ends in one minute.' },
      { t: 65_200, event: 'session_ended', reason: 'closed' },
    ]
      .map((event) => JSON.stringify(event))
      .join('\n') + '\n';
  const said = output([
    ['stdout', 'NAME="OpenWrt"\nVERSION="24.10.2"\n'],
    ['stderr', 'cat: /etc/motd: No such file or directory\n'],
    ['stdout', title + osc8 + '\n<script>window.pwned=5</script>\n'],
  ]);

  const contents = {
    'S-7K2M9QXD/0': events,
    'S-7K2M9QXD/1': terminal,
    'S-7K2M9QXD/2': said,
    'S-11VE0000/0':
      JSON.stringify({ t: 0, event: 'session_opened', device: 'gw-0042', login: 'diag' }) + '\n',
    'S-11VE0000/1': terminal.slice(0, -9),
    'S-BR0KEN00/1': hugeHeader,
    'S-BR0KEN00/2': 'not a recording\n',
  };

  const sessions = [
    session({
      id: 'S-11VE0000',
      request: 'R-11VEGRNT',
      state: 'open',
      started_at: now - 6 * MINUTE,
      recordings: [
        recording(0, 'events', contents['S-11VE0000/0'], null, false),
        recording(1, 'asciicast', contents['S-11VE0000/1'], 1, false),
      ],
    }),
    session({
      id: 'S-7K2M9QXD',
      started_at: start,
      ended_at: start + 65_200,
      end_reason: 'closed',
      recordings: [
        recording(0, 'events', events, null),
        recording(1, 'asciicast', terminal, 1),
        recording(2, 'output', said, 2),
      ],
    }),
    session({
      id: 'S-BR0KEN00',
      device: 'gw-0043',
      started_at: start - 500 * MINUTE,
      ended_at: start - 498 * MINUTE,
      end_reason: 'recorder_failed',
      end_detail: 'No space left on device ' + HOSTILE,
      recordings: [
        recording(1, 'asciicast', contents['S-BR0KEN00/1'], 1),
        recording(2, 'asciicast', contents['S-BR0KEN00/2'], 2),
      ],
    }),
  ];

  const cliSignIns = new Map([
    [
      'ABCD-EFGH',
      {
        user_code: 'ABCD-EFGH',
        client: 'daypass 0.1.0 on ana-laptop (Linux)',
        address: '198.51.100.7',
        asked_at: now - 20_000,
        expires_at: now + 580_000,
      },
    ],
    [
      'EV1L-CODE',
      {
        user_code: 'EV1L-CODE',
        client: HOSTILE,
        address: '203.0.113.9',
        asked_at: now - 20_000,
        expires_at: now + 580_000,
      },
    ],
  ]);

  return { requests, sessions, contents, cliSignIns };
}
