// A broker to look at: serves dist/ under the broker's content security policy and answers the API from
// memory. Plain Node. For tests and for work on the console; it decides nothing and protects nothing.
//
//   node mock/server.mjs            http://127.0.0.1:5180, sign in as ana, ben or chloe by ?as=

import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { may, people, ref, world } from './fixtures.mjs';

const DIST = fileURLToPath(new URL('../dist/', import.meta.url));

export const CSP =
  "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data:; " +
  "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.md': 'text/plain; charset=utf-8',
};

/** Starts a mock; `as` is who signs in when nobody is named. */
export function start({ port = 0, as = 'ben' } = {}) {
  const state = { ...world(), signsInAs: as, waiters: new Set(), log: [] };
  const server = createServer((request, response) => {
    handle(state, request, response).catch((cause) => {
      const problem = cause.problem ?? {
        status: 500,
        title: 'The mock failed',
        code: 'mock',
        detail: String(cause),
      };
      response.writeHead(problem.status, { 'content-type': 'application/problem+json' });
      response.end(JSON.stringify({ type: 'about:blank', ...problem }));
    });
  });
  return new Promise((ready) => {
    server.listen(port, '127.0.0.1', () => {
      const url = `http://127.0.0.1:${server.address().port}`;
      const stop = () => new Promise((done) => (server.closeAllConnections(), server.close(done)));
      ready({ url, state, stop, changed: () => changed(state) });
    });
  });
}

class Refusal extends Error {
  constructor(status, title, detail, hint, code = 'refused') {
    super(title);
    this.problem = { status, title, detail, hint, code };
  }
}

function changed(state) {
  for (const wake of state.waiters) wake();
  state.waiters.clear();
}

function cookies(request) {
  return Object.fromEntries(
    (request.headers.cookie ?? '')
      .split('; ')
      .flatMap((pair) => (pair.includes('=') ? [pair.split('=', 2)] : [])),
  );
}

async function body(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  const text = Buffer.concat(parts).toString();
  return text ? JSON.parse(text) : {};
}

function json(response, value, status = 200) {
  response.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store' });
  response.end(JSON.stringify(value));
}

async function handle(state, request, response) {
  const url = new URL(request.url, 'http://mock');
  const path = url.pathname;
  const jar = cookies(request);
  const who = people[jar['mock-session']];
  if (request.method === 'POST') state.log.push(`${request.method} ${path}`);

  if (path === '/login') {
    const as = url.searchParams.get('as') ?? state.signsInAs;
    response.writeHead(302, {
      location: url.searchParams.get('next') ?? '/',
      'set-cookie': [
        `mock-session=${as}; HttpOnly; SameSite=Lax; Path=/`,
        `daypass-csrf=token-of-${as}; SameSite=Lax; Path=/`,
      ],
    });
    return response.end();
  }
  if (!path.startsWith('/v1/') && path !== '/logout') return page(response, path);
  if (path === '/v1/broker')
    return json(response, {
      version: '0.1.0',
      url: 'https://daypass.example.com',
      ssh_host: 'daypass.example.com',
      ssh_port: 2222,
      host_suffix: 'daypass',
      host_cas: [],
      user_cas: [],
      identity_cas: [],
      broker_keys: [],
    });
  if (!who)
    throw new Refusal(401, 'You are not signed in', undefined, 'Sign in and try again.', 'not-signed-in');
  if (request.method === 'POST' && request.headers['x-csrf-token'] !== jar['daypass-csrf'])
    throw new Refusal(
      403,
      'The request did not come from the console',
      'The CSRF token is missing or wrong.',
    );
  if (path === '/logout') {
    response.writeHead(204, {
      'set-cookie': ['mock-session=; Max-Age=0; Path=/', 'daypass-csrf=; Max-Age=0; Path=/'],
    });
    return response.end();
  }
  return api(state, who, jar['mock-session'], request, response, url);
}

async function page(response, path) {
  const file = normalize(join(DIST, path));
  const inside = file.startsWith(DIST) && extname(file) in TYPES;
  const name = inside ? file : join(DIST, 'index.html');
  let content;
  try {
    content = await readFile(name);
  } catch {
    throw new Refusal(404, 'Not found', `${path} is not in dist/.`, 'Run “npm run build” first.');
  }
  response.writeHead(200, {
    'content-type': TYPES[extname(name)],
    'content-security-policy': CSP,
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'same-origin',
  });
  response.end(content);
}

function seen(request, me, name) {
  const answered = request.answers.some((answer) => answer.by.id === me.id);
  return {
    ...request,
    may_answer:
      request.state === 'pending' &&
      may[name].includes('approve') &&
      request.person.id !== me.id &&
      !answered,
  };
}

async function api(state, me, name, request, response, url) {
  const [, , noun, id, verb, number] = url.pathname.split('/').map(decodeURIComponent);
  const query = url.searchParams;
  const post = request.method === 'POST';

  if (noun === 'me') return json(response, { ...me, signed_in_at: Date.now() - 600_000, may: may[name] });

  if (noun === 'cli-sign-ins') {
    const found = state.cliSignIns.get(id);
    if (!found)
      throw new Refusal(404, 'No such code', `No sign-in waits with ${id}.`, undefined, 'unknown-code');
    if (!post) return json(response, found);
    state.log.push(`cli sign-in ${id} ${(await body(request)).confirm}`);
    state.cliSignIns.delete(id);
    response.writeHead(204);
    return response.end();
  }

  if (noun === 'requests' && !id) {
    const items = state.requests
      .map((one) => seen(one, me, name))
      .filter((one) => !query.get('state') || one.state === query.get('state'))
      .filter((one) => query.get('mine') !== 'true' || one.person.id === me.id)
      .filter((one) => query.get('answerable') !== 'true' || one.may_answer)
      .filter((one) => !query.get('device') || one.device === query.get('device'));
    return json(response, paged(items, query));
  }

  if (noun === 'requests') {
    const found = state.requests.find((one) => one.id === id);
    if (!found)
      throw new Refusal(
        404,
        'No such request',
        `There is no request ${id} that you may see.`,
        'Check the link.',
      );
    if (post) await act(state, found, verb, me, await body(request));
    const waits = Number(query.get('wait_s') ?? 0);
    if (waits && found.state === query.get('state')) {
      await new Promise((done) => {
        const timer = setTimeout(done, waits * 1000);
        state.waiters.add(() => (clearTimeout(timer), done()));
      });
    }
    return json(response, seen(found, me, name));
  }

  if (noun === 'sessions' && !id) {
    const items = state.sessions
      .filter((one) => query.get('live') !== 'true' || one.state !== 'ended')
      .filter((one) => !query.get('device') || one.device === query.get('device'))
      .filter((one) => !query.get('person') || one.person.id === query.get('person'));
    return json(response, paged(items, query));
  }

  if (noun === 'sessions') {
    const found = state.sessions.find((one) => one.id === id);
    if (!found) throw new Refusal(404, 'No such session', `There is no session ${id} that you may see.`);
    if (verb === 'recordings') {
      const content = state.contents[`${id}/${number}`];
      if (content === undefined) throw new Refusal(404, 'No such recording');
      const kind = found.recordings.find((one) => one.number === Number(number))?.kind;
      const type = kind === 'asciicast' ? 'application/x-asciicast' : 'application/x-ndjson';
      response.writeHead(200, { 'content-type': type });
      return response.end(content);
    }
    if (post && verb === 'end') {
      const { reason } = await body(request);
      Object.assign(found, {
        state: 'ended',
        ended_at: Date.now(),
        end_reason: 'ended_by_person',
        end_detail: `${me.email}: ${reason}`,
      });
    }
    return json(response, found);
  }

  throw new Refusal(404, 'Not found', `${url.pathname} is not here.`);
}

function paged(items, query, size = 50) {
  const after = items.findIndex((one) => one.id === query.get('after')) + 1;
  const page = items.slice(after, after + size);
  return { items: page, next: after + size < items.length ? page.at(-1).id : null };
}

async function act(state, found, verb, me, sent) {
  const now = Date.now();
  const answer = (verdict) => ({
    by: ref(me),
    at: now,
    verdict,
    comment: sent.comment ?? null,
    teams: me.teams,
    duration_s: sent.duration_s ?? null,
    channels: sent.channels ?? null,
  });
  if (verb !== 'revoke' && found.state !== 'pending')
    throw new Refusal(
      409,
      'Already answered',
      `Request ${found.id} is ${found.state}.`,
      'Load the page again.',
    );
  switch (verb) {
    case 'approve':
      found.answers.push(answer('approve'));
      found.state = 'granted';
      found.grant = {
        state: 'live',
        channels: sent.channels ?? found.channels,
        starts_at: now,
        ends_at: now + (sent.duration_s ?? found.duration_s) * 1000,
        ended_by: null,
      };
      break;
    case 'deny':
      if (!sent.comment) throw new Refusal(422, 'A comment is needed', 'Say why.');
      found.answers.push(answer('deny'));
      found.state = 'denied';
      break;
    case 'cancel':
      found.state = 'cancelled';
      break;
    case 'revoke':
      found.grant = { ...found.grant, state: 'revoked', ends_at: now, ended_by: me.email };
      break;
    default:
      throw new Refusal(404, 'No such act');
  }
  changed(state);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const mock = await start({ port: Number(process.env.PORT ?? 5180), as: process.env.AS ?? 'ben' });
  console.log(`${mock.url}  (sign in as ana, ben or chloe: /login?as=ana)`);
}
