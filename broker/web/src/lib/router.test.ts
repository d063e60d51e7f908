import { describe, expect, it } from 'vitest';
import { nextOf, routeOf, signInAddress, titleOf } from './router';

describe('rooms', () => {
  it('finds each room by its address', () => {
    expect(routeOf('/')).toEqual({ room: 'home' });
    expect(routeOf('/requests/')).toEqual({ room: 'requests' });
    expect(routeOf('/requests/R-7K2M9QXD')).toEqual({ room: 'request', id: 'R-7K2M9QXD' });
    expect(routeOf('/sessions/s-7k2m9qxd')).toEqual({ room: 'session', id: 'S-7K2M9QXD' });
    expect(routeOf('/device')).toEqual({ room: 'device' });
  });

  it('takes nothing else for an id', () => {
    for (const path of [
      '/requests/S-7K2M9QXD',
      '/requests/R-7K2M9QX',
      '/requests/R-7K2M9QXU',
      '/requests/..%2fme',
      '/requests/R-7K2M9QXD/approve',
      '/sessions/',
      '/login',
      '/v1/me',
    ]) {
      const room = routeOf(path).room;
      expect(['lost', 'sessions'], path).toContain(room);
    }
  });

  it('comes back after sign-in to a room of this console and to nowhere else', () => {
    expect(nextOf('/device', '?code=ABCD-EFGH')).toBe('/device?code=ABCD-EFGH');
    for (const path of ['//evil.example', '/\\evil.example', '///evil.example/requests', '/elsewhere'])
      expect(nextOf(path, ''), path).toBe('/');
    expect(signInAddress('/requests', '?a=b&c=d')).toBe('/login?next=%2Frequests%3Fa%3Db%26c%3Dd');
  });

  it('puts nothing into the title but words of its own and checked ids', () => {
    expect(titleOf(routeOf('/requests/r-7k2m9qxd'))).toBe('R-7K2M9QXD · Daypass');
    expect(titleOf(routeOf('/<b>'))).toBe('Nothing here · Daypass');
  });
});
