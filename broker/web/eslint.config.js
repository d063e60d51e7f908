import js from '@eslint/js';
import svelte from 'eslint-plugin-svelte';
import globals from 'globals';
import ts from 'typescript-eslint';
import svelteConfig from './svelte.config.js';

export default ts.config(
  { ignores: ['dist/', 'src/api/types.gen.ts'] },
  js.configs.recommended,
  ...ts.configs.strict,
  ...svelte.configs.recommended,
  {
    languageOptions: { globals: { ...globals.browser } },
    rules: {
      // Recorded bytes and other people's words are shown as text, never as markup.
      'no-restricted-properties': [
        'error',
        { property: 'innerHTML', message: 'Text reaches the page as text nodes only.' },
        { property: 'outerHTML', message: 'Text reaches the page as text nodes only.' },
        { property: 'insertAdjacentHTML', message: 'Text reaches the page as text nodes only.' },
      ],
      'svelte/no-at-html-tags': 'error',
      // The router works on plain same-origin links.
      'svelte/no-navigation-without-resolve': 'off',
    },
  },
  {
    files: ['**/*.svelte', '**/*.svelte.ts'],
    languageOptions: { parserOptions: { parser: ts.parser, svelteConfig } },
    rules: {
      // A style attribute in markup is blocked by the content security policy.
      'svelte/no-inline-styles': 'error',
    },
  },
  { files: ['mock/**', 'tests/**', '*.js'], languageOptions: { globals: { ...globals.node } } },
);
