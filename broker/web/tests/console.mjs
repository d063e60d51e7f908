// The console in a real Chromium, against the mock broker and under the broker's content security policy.
// Needs `npm run build` first. CHROMIUM names the browser; /usr/bin/chromium otherwise.

import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { chromium } from 'playwright-core';
import { start } from '../mock/server.mjs';

const ARGS = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

let browser;
let mock;
let context;
let page;
/** What went wrong on any page of the test: policy violations, script errors, dialogs, foreign addresses. */
let alarms;

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ARGS,
  });
});
after(() => browser?.close());

beforeEach(async () => {
  mock = await start();
  alarms = [];
  await open();
});
afterEach(async () => {
  await context.close();
  await mock.stop();
  assert.deepEqual(alarms, []);
});

async function open(options = {}) {
  await context?.close();
  context = await browser.newContext({ viewport: { width: 390, height: 844 }, ...options });
  context.setDefaultTimeout(10_000);
  await context.exposeBinding('alarm', (_, text) => alarms.push(text));
  await context.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) =>
      window.alarm(
        `policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`,
      ),
    );
    navigator.clipboard.writeText = (text) => window.alarm(`clipboard: ${text}`);
    document.execCommand = (command) => window.alarm(`execCommand: ${command}`);
    window.open = (url) => window.alarm(`open: ${url}`);
  });
  context.on('request', (request) => {
    const url = request.url();
    if (!url.startsWith(mock.url) && !/^(data|blob):/.test(url)) alarms.push(`foreign request: ${url}`);
  });
  page = await context.newPage();
  page.on('pageerror', (error) => alarms.push(`script: ${error.message}`));
  page.on('dialog', (dialog) => (alarms.push(`dialog: ${dialog.message()}`), dialog.dismiss()));
  context.on('page', (other) => alarms.push(`new page: ${other.url()}`));
  page.on('console', (message) => {
    // The browser itself reports refused answers; everything else in red is ours.
    if (message.type() === 'error' && !message.text().startsWith('Failed to load resource'))
      alarms.push(`console: ${message.text()}`);
  });
}

const id = (name) => page.getByTestId(name);

async function as(name, path) {
  await page.goto(`${mock.url}/login?as=${name}&next=${encodeURIComponent(path)}`);
  await id('me').waitFor();
}

const untilSays = (locator, text) => locator.filter({ hasText: text }).first().waitFor();

/** No room is wider than the screen. */
async function fits() {
  const over = await page.evaluate(() => document.documentElement.scrollWidth - screen.width);
  assert.ok(over <= 0, `${page.url()} is ${over} px too wide`);
}

describe('signing in and out', () => {
  it('leads from any room to the sign-in and back to that room', async () => {
    await page.goto(`${mock.url}/requests/R-7K2M9QXD`);
    await id('sign-in').click();
    await id('approve').waitFor();
    assert.equal(new URL(page.url()).pathname, '/requests/R-7K2M9QXD');
    await id('sign-out').click();
    await id('sign-in').waitFor();
    await page.goto(`${mock.url}/requests`);
    await id('sign-in').waitFor();
  });

  it('shows the sign-in again when the session is over', async () => {
    await as('ben', '/requests/R-7K2M9QXD');
    await id('approve').waitFor();
    await context.clearCookies({ name: 'mock-session' });
    await id('approve').click();
    await id('sign-in').waitFor();
    assert.match(await id('sign-in').getAttribute('href'), /next=%2Frequests%2FR-7K2M9QXD$/);
  });

  it('says so when the broker refuses for want of the CSRF token', async () => {
    await as('ben', '/requests/R-7K2M9QXD');
    await id('approve').waitFor();
    await context.clearCookies({ name: 'daypass-csrf' });
    await id('approve').click();
    await untilSays(id('trouble'), 'CSRF');
    assert.equal(mock.state.requests[0].state, 'pending');
  });
});

describe('confirming a CLI sign-in', () => {
  it('shows who asks and confirms on purpose only', async () => {
    await as('ana', '/device?code=abcdefgh');
    await untilSays(id('shown-code'), 'ABCD-EFGH');
    await untilSays(page.locator('main'), 'ana-laptop');
    await untilSays(page.locator('main'), '198.51.100.7');
    await untilSays(page.locator('main'), 'Confirm only what you started yourself');
    await fits();
    assert.ok(!mock.state.log.some((line) => line.startsWith('cli')), 'a look confirms nothing');
    await id('confirm-code').click();
    await id('confirmed').waitFor();
    assert.ok(mock.state.log.includes('cli sign-in ABCD-EFGH true'));
  });

  it('takes a typed code, refuses, and names a code that is none', async () => {
    await as('ana', '/device');
    await id('code').fill('zzzz-zzzz');
    await id('find-code').click();
    await untilSays(id('trouble'), 'ZZZZ-ZZZZ');
    await id('code').fill('ev1l code');
    await id('find-code').click();
    await id('refuse-code').click();
    await id('refused').waitFor();
    assert.ok(mock.state.log.includes('cli sign-in EV1L-CODE false'));
  });
});

describe('requests', () => {
  it('that wait for me are at home, by themselves', async () => {
    await as('ben', '/');
    await id('request-row').first().waitFor();
    await fits();
    await page.getByRole('link', { name: 'R-7K2M9QXD' }).click();
    await untilSays(page.locator('h1'), 'R-7K2M9QXD');
    assert.equal(await page.evaluate(() => document.activeElement.tagName), 'H1');
    await page.goBack();
    await untilSays(page.locator('h1'), 'Waiting for you');
  });

  it('show an approver everything the answer needs', async () => {
    await as('ben', '/requests/R-7K2M9QXD');
    await untilSays(id('reason'), 'drops its connection every night');
    const text = await page.locator('main').innerText();
    for (const word of [
      'Ana Silva',
      'ana@example.com',
      'gw-0042',
      'edge-gateway',
      'diag',
      'SUP-4711',
      'shell',
      'exec',
      '1 h',
      'needs one approval by a support lead',
      'support-leads',
      'Nobody has answered yet',
    ])
      assert.ok(text.includes(word), word);
    await fits();
  });

  it('are approved for less', async () => {
    await as('ben', '/requests/R-7K2M9QXD');
    await id('duration').selectOption('1800');
    await id('channel-exec').uncheck();
    await id('comment').fill('Half an hour.');
    await untilSays(id('approve'), 'Approve less: 30 min');
    await id('approve').click();
    await untilSays(id('answer'), 'Half an hour.');
    await untilSays(id('state'), 'live');
    const { grant, answers } = mock.state.requests[0];
    assert.deepEqual(grant.channels, ['shell']);
    assert.equal(grant.ends_at - grant.starts_at, 1_800_000);
    assert.equal(answers[0].duration_s, 1800);
  });

  it('are approved as asked without restating the terms', async () => {
    await as('ben', '/requests/R-7K2M9QXD');
    await id('approve').click();
    await untilSays(id('state'), 'live');
    assert.deepEqual(
      mock.state.requests[0].answers.map(({ duration_s, channels }) => [duration_s, channels]),
      [[null, null]],
    );
  });

  it('need a channel to be approved and a comment to be refused', async () => {
    await as('ben', '/requests/R-7K2M9QXD');
    await id('channel-exec').uncheck();
    await id('channel-shell').uncheck();
    await id('approve').click();
    await untilSays(page.getByRole('alert'), 'at least one channel');
    await id('deny').click();
    await untilSays(page.getByRole('alert'), 'Say why you refuse');
    assert.ok(await id('comment').evaluate((field) => field === document.activeElement));
    assert.equal(mock.state.log.length, 0);
    await id('comment').fill('Not tonight.');
    await id('deny').click();
    await untilSays(id('state'), 'refused');
    assert.equal(mock.state.requests[0].answers[0].comment, 'Not tonight.');
  });

  it('change by themselves on the page of whoever waits', async () => {
    const held = page.waitForRequest(/wait_s=25/);
    await as('ana', '/requests/R-7K2M9QXD');
    await id('cancel').waitFor();
    assert.equal(await id('approve').count(), 0, 'nobody answers their own request');
    await held;
    mock.state.requests[0].state = 'lapsed';
    mock.changed();
    await untilSays(id('state'), 'lapsed');
    await untilSays(id('news'), 'R-7K2M9QXD is now lapsed');
    assert.equal(await id('cancel').count(), 0);
  });

  it('are withdrawn by whoever asked', async () => {
    await as('ana', '/requests/R-7K2M9QXD');
    await id('cancel').click();
    await untilSays(id('state'), 'cancelled');
  });

  it('that became a live grant are revoked with a reason', async () => {
    await as('ben', '/requests/R-11VEGRNT');
    await id('revoke').click();
    await id('revoke-confirm').click();
    await untilSays(page.getByRole('alert'), 'Say why');
    await id('revoke-reason').fill('The window is not needed any more.');
    await id('revoke-confirm').click();
    await untilSays(id('state'), 'revoked');
    await fits();
  });

  it('are filtered, and the filter is in the address', async () => {
    await as('ana', '/requests');
    await id('request-row').first().waitFor();
    await fits();
    await id('filter-state').selectOption('denied');
    await page.waitForURL(/state=denied/);
    await page.waitForFunction(() => document.querySelectorAll('[data-testid=request-row]').length === 1);
    await id('filter-mine').check();
    await id('filter-device').fill('gw-0042');
    await id('filter-device').press('Enter');
    await untilSays(page.locator('.empty'), 'No request matches');
    await page.reload();
    assert.equal(await id('filter-state').inputValue(), 'denied');
    assert.ok(await id('filter-mine').isChecked());
  });

  it('that are not there say so, and an address that is no room too', async () => {
    await as('ben', '/requests/R-00000000');
    await untilSays(id('trouble'), 'No such request');
    await page.goto(`${mock.url}/elsewhere`);
    await untilSays(page.locator('h1'), 'Nothing here');
  });
});

describe('sessions', () => {
  it('list the live ones first', async () => {
    await as('chloe', '/sessions');
    await id('session-row').first().waitFor();
    await untilSays(id('session-row').first(), 'S-11VE0000');
    assert.equal(await id('session-row').count(), 3);
    await fits();
  });

  it('are ended with a reason', async () => {
    await as('chloe', '/sessions/S-11VE0000');
    await id('end-session').click();
    await id('end-session-reason').fill('Wrong device.');
    await id('end-session-confirm').click();
    await untilSays(id('state'), 'ended');
    await untilSays(page.locator('main'), 'chloe@example.com: Wrong device.');
    assert.equal(await id('end-session').count(), 0);
  });

  it('are not offered to be ended by who may not', async () => {
    await as('ben', '/sessions/S-11VE0000');
    await id('replay').waitFor();
    assert.equal(await id('end-session').count(), 0);
  });

  it('replay what the screen showed, and obey nothing in it', async () => {
    await as('chloe', '/sessions/S-7K2M9QXD');
    await id('replay-speed').selectOption('8');
    await id('replay').locator('.ap-overlay-start, .ap-playback-button').first().click();
    await untilSays(id('replay').locator('.ap-term-text'), 'reset failed, code 7');
    await untilSays(id('replay').locator('.ap-term-text'), 'click me');
    await fits();
    assert.equal(await id('replay').locator('a, img, iframe, script, object, embed').count(), 0);
    assert.equal(await page.title(), 'S-7K2M9QXD · Daypass');
    await untilSays(id('timeline'), 'agent forwarding');
    await assertHarmless();
  });

  it('show a command’s output as text', async () => {
    await as('chloe', '/sessions/S-7K2M9QXD');
    await id('recording-2').click();
    await untilSays(id('output'), 'No such file or directory');
    const text = await id('output').innerText();
    assert.ok(text.includes('^[]0;owned by the terminal^G'), text);
    assert.ok(text.includes('<script>window.pwned=5</script>'), text);
    assert.equal(await id('output').locator('a, img, script').count(), 0);
    await assertHarmless();
  });

  it('with a recording that lies about its size or is none stay usable', async () => {
    await as('chloe', '/sessions/S-BR0KEN00');
    await id('replay').locator('.ap-overlay-start, .ap-playback-button').first().click();
    await untilSays(id('replay').locator('.ap-term-text'), 'an honest screen');
    await id('recording-2').click();
    await untilSays(id('trouble'), 'not an asciicast');
    await assertHarmless();
  });
});

async function assertHarmless() {
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  assert.equal(await page.locator('a[href^="javascript:"], a[href*="evil"], main img').count(), 0);
  const inline = await page.evaluate(
    () => document.querySelectorAll('main script, main [onerror], main style').length,
  );
  assert.equal(inline, 0);
}

describe('hostile words', () => {
  for (const path of [
    '/',
    '/requests',
    '/requests/R-E4SCAPE0',
    '/device?code=EV1L-CODE',
    '/sessions/S-BR0KEN00',
  ])
    it(`are only text at ${path}`, async () => {
      await as('ben', path);
      await untilSays(page.locator('main'), '<script>window.pwned=2</script>');
      assert.ok(!(await page.locator('main').textContent()).includes('\u202e'), 'no mark that reorders');
      await assertHarmless();
      await fits();
    });
});

describe('on a desk, in the dark', () => {
  it('each room stands under the same policy', async () => {
    await open({ viewport: { width: 1280, height: 860 }, colorScheme: 'dark' });
    await as('ben', '/');
    for (const path of [
      '/',
      '/requests',
      '/requests/R-7K2M9QXD',
      '/sessions',
      '/sessions/S-7K2M9QXD',
      '/device',
    ]) {
      await page.goto(mock.url + path);
      await page.locator('h1').waitFor();
      await fits();
    }
  });

  it('is worked by keyboard alone', async () => {
    await open({ viewport: { width: 1280, height: 860 } });
    await as('ben', '/requests/R-7K2M9QXD');
    await id('approve').waitFor();
    const reached = [];
    for (let i = 0; i < 30 && reached.at(-1) !== 'approve'; i += 1) {
      await page.keyboard.press('Tab');
      reached.push(
        await page.evaluate(() => document.activeElement?.dataset?.testid ?? document.activeElement?.tagName),
      );
    }
    assert.equal(reached.at(-1), 'approve', reached.join(' '));
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.equal(outline, 'solid', 'focus is visible');
    await page.keyboard.press('Enter');
    await untilSays(id('state'), 'live');
  });
});

it('the test would notice a violation of the policy', async () => {
  await as('ben', '/');
  await page.evaluate(() => {
    const script = document.createElement('script');
    script.textContent = 'window.pwned = 9';
    document.body.append(script);
  });
  await page.waitForFunction(() => document.scripts.length > 1);
  for (let i = 0; i < 100 && !alarms.some((alarm) => alarm.startsWith('policy: script-src')); i += 1)
    await page.evaluate(() => new Promise(requestAnimationFrame));
  assert.ok(
    alarms.some((alarm) => alarm.startsWith('policy: script-src')),
    alarms.join('\n'),
  );
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  alarms = [];
});
