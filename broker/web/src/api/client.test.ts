import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  address,
  ApiError,
  brokerSkewMs,
  cookie,
  getJson,
  onSignedOut,
  path,
  post,
  problemOf,
} from './client';

const answer = (
  body: unknown,
  status = 200,
  type = 'application/json',
  headers: Record<string, string> = {},
) =>
  new Response(body === undefined ? null : typeof body === 'string' ? body : JSON.stringify(body), {
    status,
    headers: { 'content-type': type, ...headers },
  });

const fetched = vi.fn<typeof fetch>();

beforeEach(() => {
  vi.stubGlobal('fetch', fetched);
  document.cookie = 'daypass-csrf=a-token';
});
afterEach(() => {
  fetched.mockReset();
  vi.unstubAllGlobals();
  onSignedOut(() => undefined);
});

const sent = () => {
  const [where, init] = fetched.mock.calls[0] ?? [];
  return { where, init, headers: new Headers(init?.headers) };
};

describe('asking the broker', () => {
  it('sends the CSRF token with unsafe methods and only with them', async () => {
    fetched.mockImplementation(() => Promise.resolve(answer({})));
    await post('/v1/requests/R-7K2M9QXD/deny', { comment: 'no' });
    expect(sent().headers.get('x-csrf-token')).toBe('a-token');
    expect(sent().init).toMatchObject({ method: 'POST', credentials: 'same-origin', redirect: 'error' });
    fetched.mockClear();
    await getJson('/v1/me');
    expect(sent().headers.has('x-csrf-token')).toBe(false);
  });

  it('leaves out filters that say nothing', () => {
    expect(address('/v1/requests', { state: undefined, mine: false, device: '', after: null })).toBe(
      '/v1/requests',
    );
    expect(address('/v1/requests', { mine: true, device: 'a&b' })).toBe(
      '/v1/requests?mine=true&device=a%26b',
    );
  });

  it('escapes each part of a path', () => {
    expect(path('v1', 'cli-sign-ins', '../me?x#y')).toBe('/v1/cli-sign-ins/..%2Fme%3Fx%23y');
  });

  it('reads one cookie among others', () => {
    expect(cookie('b', 'a=1; b=2=3; xb=4')).toBe('2=3');
    expect(cookie('c', 'a=1; xc=2')).toBeUndefined();
  });

  it('takes 204 for an answer without a body', async () => {
    fetched.mockResolvedValue(new Response(null, { status: 204 }));
    expect(await post('/logout')).toBeUndefined();
  });
});

describe('refusals', () => {
  it('carry the title, detail and hint of the broker', async () => {
    fetched.mockResolvedValue(
      answer(
        {
          type: 'tag:daypass,2026:too-long',
          title: 'Too long',
          status: 422,
          detail: 'd',
          hint: 'h',
          code: 'too-long',
        },
        422,
        'application/problem+json',
      ),
    );
    const refusal: unknown = await getJson('/v1/x').catch((cause: unknown) => cause);
    expect(refusal).toBeInstanceOf(ApiError);
    expect((refusal as ApiError).problem).toMatchObject({
      title: 'Too long',
      detail: 'd',
      hint: 'h',
      code: 'too-long',
      status: 422,
    });
  });

  it('of 401 say that nobody is signed in', async () => {
    const out = vi.fn();
    onSignedOut(out);
    fetched.mockResolvedValue(answer({ title: 'You are not signed in' }, 401, 'application/problem+json'));
    await expect(getJson('/v1/me')).rejects.toMatchObject({ status: 401 });
    expect(out).toHaveBeenCalledOnce();
  });

  it('that are not problems are still readable, and never shown as they came', async () => {
    for (const strange of [
      answer('<h1>Bad gateway</h1>', 502, 'text/html'),
      answer('{broken', 502, 'application/problem+json'),
      answer('null', 502, 'application/problem+json'),
      answer({ title: { html: '<b>' } }, 502, 'application/problem+json'),
    ])
      expect(await problemOf(strange)).toMatchObject({ title: 'The broker answered 502', status: 502 });
  });

  it('of the network name the broker and what to do', async () => {
    fetched.mockRejectedValue(new TypeError('failed'));
    await expect(getJson('/v1/me')).rejects.toMatchObject({ problem: { code: 'unreachable', status: 0 } });
  });
});

describe('the broker’s clock', () => {
  it('is followed when this one is wrong', async () => {
    const date = (ms: number) => ({ date: new Date(Date.now() + ms).toUTCString() });
    fetched.mockResolvedValueOnce(answer({}, 200, 'application/json', date(3_600_000)));
    await getJson('/v1/me');
    expect(brokerSkewMs()).toBeGreaterThan(3_590_000);
    fetched.mockResolvedValueOnce(answer({}, 200, 'application/json', date(0)));
    await getJson('/v1/me');
    expect(brokerSkewMs()).toBe(0);
  });
});
