// The rooms and their addresses.

export type Route =
  | { room: 'home' }
  | { room: 'requests' }
  | { room: 'request'; id: string }
  | { room: 'sessions' }
  | { room: 'session'; id: string }
  | { room: 'device' }
  | { room: 'lost' };

const REQUEST = /^\/requests\/(R-[0-9A-HJKMNP-TV-Z]{8})$/;
const SESSION = /^\/sessions\/(S-[0-9A-HJKMNP-TV-Z]{8})$/;

/** Which room an address leads to. Ids are read in either case: they survive a telephone call. */
export function routeOf(pathname: string): Route {
  const path = pathname.length > 1 ? pathname.replace(/\/$/, '') : pathname;
  switch (path) {
    case '/':
      return { room: 'home' };
    case '/requests':
      return { room: 'requests' };
    case '/sessions':
      return { room: 'sessions' };
    case '/device':
      return { room: 'device' };
  }
  const [, top, last, more] = path.split('/');
  if (more === undefined && top !== undefined && last !== undefined) {
    const spelled = `/${top}/${last.toUpperCase()}`;
    const request = REQUEST.exec(spelled)?.[1];
    if (request) return { room: 'request', id: request };
    const session = SESSION.exec(spelled)?.[1];
    if (session) return { room: 'session', id: session };
  }
  return { room: 'lost' };
}

/** Where to come back to after sign-in: a path of this console, never another host (`//host`, `/\host`). */
export function nextOf(pathname: string, search: string): string {
  if (routeOf(pathname).room === 'lost' || /^\/[/\\]/.test(pathname)) return '/';
  return pathname + search;
}

export function signInAddress(pathname: string, search: string): string {
  return `/login?next=${encodeURIComponent(nextOf(pathname, search))}`;
}

export function titleOf(route: Route): string {
  switch (route.room) {
    case 'home':
      return 'Daypass';
    case 'requests':
      return 'Requests · Daypass';
    case 'request':
      return `${route.id} · Daypass`;
    case 'sessions':
      return 'Sessions · Daypass';
    case 'session':
      return `${route.id} · Daypass`;
    case 'device':
      return 'Confirm a sign-in · Daypass';
    case 'lost':
      return 'Nothing here · Daypass';
  }
}
