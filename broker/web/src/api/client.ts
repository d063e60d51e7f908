// One way to the broker: same-origin cookie, CSRF header on unsafe methods, problem+json as ApiError.

import type { Problem } from './types';

/** A refusal or failure that can be shown as it is: title, detail, hint. */
export class ApiError extends Error {
  constructor(readonly problem: Problem) {
    super(problem.detail ?? problem.title);
    this.name = 'ApiError';
  }

  get status(): number {
    return this.problem.status;
  }
}

export interface Call {
  method?: 'GET' | 'POST';
  query?: Record<string, string | number | boolean | null | undefined>;
  body?: unknown;
  signal?: AbortSignal | undefined;
}

let signedOut: () => void = () => undefined;

/** What happens when the broker says 401: the session is over, or never was. */
export function onSignedOut(act: () => void): void {
  signedOut = act;
}

let skewMs = 0;

/** How far the broker's clock is ahead of this one, so that a phone's wrong clock does not misstate a window. */
export function brokerSkewMs(): number {
  return skewMs;
}

export function cookie(name: string, jar: string = document.cookie): string | undefined {
  for (const part of jar.split(';')) {
    const at = part.indexOf('=');
    if (at > 0 && part.slice(0, at).trim() === name) return part.slice(at + 1).trim();
  }
  return undefined;
}

export function address(path: string, query: Call['query'] = {}): string {
  const words = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== '' && value !== false)
      words.set(key, String(value));
  }
  const text = words.toString();
  return text ? `${path}?${text}` : path;
}

/** A path from its parts, each one escaped: an id from an address bar cannot reach another route. */
export function path(...parts: (string | number)[]): string {
  return '/' + parts.map((part) => encodeURIComponent(part)).join('/');
}

async function send(where: string, { method = 'GET', query, body, signal }: Call): Promise<Response> {
  const headers = new Headers({ accept: 'application/json, application/problem+json' });
  if (method !== 'GET') headers.set('x-csrf-token', cookie('daypass-csrf') ?? '');
  if (body !== undefined) headers.set('content-type', 'application/json');
  let response: Response;
  try {
    response = await fetch(address(where, query), {
      method,
      headers,
      credentials: 'same-origin',
      redirect: 'error',
      cache: 'no-store',
      body: body === undefined ? null : JSON.stringify(body),
      signal: signal ?? null,
    });
  } catch (cause) {
    if (signal?.aborted) throw cause;
    throw new ApiError({
      type: 'about:blank',
      title: 'The broker did not answer',
      status: 0,
      detail: 'The connection failed before an answer came.',
      hint: 'Check your connection and try again.',
      code: 'unreachable',
    });
  }
  const date = Date.parse(response.headers.get('date') ?? '');
  // The header counts whole seconds: less than a few of them is not a difference.
  if (!Number.isNaN(date)) skewMs = Math.abs(date - Date.now()) > 5000 ? date - Date.now() : 0;
  if (response.ok) return response;
  const problem = await problemOf(response);
  if (response.status === 401) signedOut();
  throw new ApiError(problem);
}

export async function problemOf(response: Response): Promise<Problem> {
  const fallback: Problem = {
    type: 'about:blank',
    title: response.status === 401 ? 'You are not signed in' : `The broker answered ${response.status}`,
    status: response.status,
    code: 'unexplained',
  };
  if (!(response.headers.get('content-type') ?? '').includes('json')) return fallback;
  try {
    const said: unknown = await response.json();
    if (typeof said !== 'object' || said === null) return fallback;
    const word = (key: string): string | undefined => {
      const value = (said as Record<string, unknown>)[key];
      return typeof value === 'string' && value !== '' ? value : undefined;
    };
    return {
      ...fallback,
      title: word('title') ?? fallback.title,
      code: word('code') ?? fallback.code,
      type: word('type') ?? fallback.type,
      detail: word('detail') ?? null,
      hint: word('hint') ?? null,
    };
  } catch {
    return fallback;
  }
}

export async function getJson<T>(where: string, call: Omit<Call, 'method' | 'body'> = {}): Promise<T> {
  return (await (await send(where, call)).json()) as T;
}

export async function getText(where: string, signal?: AbortSignal): Promise<string> {
  return (await send(where, { signal })).text();
}

/** Posts, and reads the answer if there is one (204 has none). */
export async function post<T>(where: string, body?: unknown): Promise<T> {
  const response = await send(where, { method: 'POST', body });
  return (response.status === 204 ? undefined : await response.json()) as T;
}
