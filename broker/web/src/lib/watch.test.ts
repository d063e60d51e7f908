import { afterEach, expect, it, vi } from 'vitest';
import type { Request } from '../api/types';
import { backoffMs, watchRequest } from './watch';

const request = (state: Request['state'], grant?: 'live' | 'expired') =>
  new Response(JSON.stringify({ id: 'R-7K2M9QXD', state, grant: grant ? { state: grant } : null }), {
    headers: { 'content-type': 'application/json' },
  });

afterEach(() => vi.unstubAllGlobals());

it('follows a waiting request by long poll until it is settled', async () => {
  const fetched = vi
    .fn<typeof fetch>()
    .mockResolvedValueOnce(request('pending'))
    .mockResolvedValueOnce(request('denied'));
  vi.stubGlobal('fetch', fetched);
  const seen: string[] = [];
  await watchRequest(
    'R-7K2M9QXD',
    { seen: (one) => seen.push(one.state), troubled: (cause) => expect(cause).toBeUndefined() },
    new AbortController().signal,
  );
  expect(seen).toEqual(['pending', 'denied']);
  expect(fetched.mock.calls.map(([where]) => where)).toEqual([
    '/v1/requests/R-7K2M9QXD',
    '/v1/requests/R-7K2M9QXD?wait_s=25&state=pending',
  ]);
});

it('stops at a refusal instead of asking on', async () => {
  const fetched = vi
    .fn<typeof fetch>()
    .mockImplementation(() => Promise.resolve(new Response('', { status: 404 })));
  vi.stubGlobal('fetch', fetched);
  const troubled = vi.fn();
  await watchRequest('R-7K2M9QXD', { seen: () => undefined, troubled }, new AbortController().signal);
  expect(fetched).toHaveBeenCalledOnce();
  expect(troubled).toHaveBeenCalledWith(expect.objectContaining({ status: 404 }));
});

it('waits longer after each failure, to half a minute', () => {
  expect([0, 1, 2, 9].map((failures) => backoffMs(failures, () => 1))).toEqual([1000, 2000, 4000, 30_000]);
  expect(backoffMs(9, () => 0)).toBe(15_000);
});
