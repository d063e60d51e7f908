import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  plugins: [svelte()],
  // The broker serves the console under a policy that allows nothing inline: everything is a file with a hash.
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    sourcemap: false,
    license: { fileName: 'licenses.md' },
  },
  server: { proxy: { '/v1': 'http://127.0.0.1:5180', '/login': 'http://127.0.0.1:5180' } },
  test: { environment: 'happy-dom', include: ['src/**/*.test.ts'] },
});
