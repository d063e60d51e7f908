// Where we are, on the history API. Plain links work; this only saves the page load.

import { routeOf } from './router';

class Place {
  pathname = $state(window.location.pathname);
  search = $state(window.location.search);
  route = $derived(routeOf(this.pathname));
  query = $derived(new URLSearchParams(this.search));

  constructor() {
    window.addEventListener('popstate', () => this.#read());
  }

  go(to: string): void {
    window.history.pushState(null, '', to);
    this.#read();
    window.scrollTo(0, 0);
  }

  /** Changes the address without a step back: filters. */
  replace(to: string): void {
    window.history.replaceState(null, '', to);
    this.#read();
  }

  #read(): void {
    this.pathname = window.location.pathname;
    this.search = window.location.search;
  }
}

export const place = new Place();

/** Takes over clicks on links to rooms; leaves every other link, and every modified click, to the browser. */
export function followLinks(event: MouseEvent): void {
  if (event.defaultPrevented || event.button !== 0) return;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = event.target instanceof Element ? event.target.closest('a') : null;
  if (!link || link.target || link.hasAttribute('download') || link.origin !== window.location.origin) return;
  if (routeOf(link.pathname).room === 'lost') return;
  event.preventDefault();
  place.go(link.pathname + link.search);
}
