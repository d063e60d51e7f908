// One day with the real broker, real devices (simulated ones, in the demonstration), the real command line
// and a real Chromium. Needs the programs: DAYPASS_TEST_PROGRAMS names their folder, ../../target/debug
// otherwise. The tests are chapters of one story and run in order.

import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { after, afterEach, before, describe, it } from 'node:test';
import { chromium } from 'playwright-core';
import { startDemo } from './demo.mjs';

const PHONE = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true };
const DESK = { viewport: { width: 1280, height: 860 }, colorScheme: 'dark' };

let demo;
let browser;
/** What went wrong on any page: policy violations, script errors, red lines of the console, foreign addresses. */
let alarms = [];
/** Refusals that a chapter provokes, as `404 /v1/sessions/S-…`. */
let expected = new Set();
let approver;
let reviewer;
let engineer;

before(async () => {
  [demo, browser] = await Promise.all([
    startDemo(),
    chromium.launch({
      executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
      args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-sync'],
    }),
  ]);
});
after(async () => {
  await browser?.close();
  await demo?.stop();
});
afterEach(() => {
  const seen = alarms;
  alarms = [];
  expected = new Set();
  assert.deepEqual(seen, []);
});

/** A browser of one person, in which every page is watched. */
async function newBrowser(options) {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, ...options });
  context.setDefaultTimeout(20_000);
  await context.exposeBinding('alarm', (_, text) => alarms.push(text));
  await context.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) =>
      window.alarm(`policy: ${event.violatedDirective} ${event.blockedURI}`),
    );
  });
  context.on('request', (request) => {
    const { origin, protocol } = new URL(request.url());
    if (![demo.url, demo.issuer].includes(origin) && !['data:', 'blob:'].includes(protocol))
      alarms.push(`foreign request: ${request.url()}`);
  });
  context.on('response', (response) => {
    const answer = `${response.status()} ${new URL(response.url()).pathname}`;
    // The console asks who is signed in before anybody is.
    if (response.status() >= 400 && answer !== '401 /v1/me' && !expected.has(answer)) alarms.push(answer);
  });
  const page = await context.newPage();
  page.on('pageerror', (error) => alarms.push(`script: ${error.message}`));
  page.on('console', (message) => {
    // Refused answers are counted above.
    if (message.type() === 'error' && !message.text().startsWith('Failed to load resource'))
      alarms.push(`console: ${message.text()}`);
  });
  return page;
}

/** At a page that asks to sign in: there and back again, as a person does it. */
async function signIn(page, persona, name) {
  await page.getByTestId('sign-in').click();
  await page.waitForURL(`${demo.issuer}/**`);
  await page.locator(`#${persona}`).click();
  await says(page.getByTestId('me'), name);
}

const says = (locator, text) => locator.filter({ hasText: text }).first().waitFor();

const requestsOf = async (profile, ...filter) => {
  const listed = await demo.cli(profile, 'requests', '--json', ...filter).end();
  assert.equal(listed.code, 0, listed.err);
  const answer = JSON.parse(listed.out);
  return answer.items ?? answer;
};

/** No room is wider than the screen. */
async function fits(page) {
  const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(over <= 0, `${page.url()} is ${over} px too wide`);
}

async function runs(word) {
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (line.split('\0')[0].endsWith('sleep') && line.includes(word)) return true;
  }
  return false;
}

describe('a day with Daypass', { timeout: 300_000 }, () => {
  it('the approver answers the waiting request on a phone, with less than was asked', async () => {
    approver = await newBrowser(PHONE);
    const front = await approver.goto(demo.url);
    assert.match(front.headers()['content-security-policy'], /default-src 'none'/);
    await signIn(approver, 'approver', 'Ben Okafor');
    await says(approver.locator('h1'), 'Waiting for you');
    await fits(approver);

    await says(approver.getByTestId('request-row'), 'Modem drops every night');
    await approver.getByTestId('request-row').getByRole('link').click();
    await says(approver.getByTestId('reason'), 'customer reports no data since 02:10');
    await says(approver.locator('main'), 'ana@example.com');
    await fits(approver);
    await approver.getByTestId('duration').selectOption('900');
    await approver.getByTestId('channel-shell').uncheck();
    await approver.getByTestId('comment').fill('Single commands will do.');
    await says(approver.getByTestId('approve'), 'Approve less: 15 min');
    await approver.getByTestId('approve').click();
    await says(approver.getByTestId('state'), 'live');
    await says(approver.getByTestId('answer'), 'allowed less: 15 min exec');
    await says(approver.getByTestId('answer'), 'Single commands will do.');
    await fits(approver);

    const [{ grant }] = await requestsOf('engineer');
    assert.deepEqual(grant.channels, ['exec']);
    assert.equal(grant.ends_at - grant.starts_at, 900_000);
  });

  it('the engineer runs a command under that grant', async () => {
    const ssh = await demo.cli('engineer', 'ssh', 'gw-0042', '--', 'printf hello-%s journey').end();
    assert.equal(ssh.code, 0, ssh.err);
    assert.equal(ssh.out, 'hello-journey');
  });

  it('a shell was not granted, so the engineer asks again; the approver sees it come and the engineer gets in', async () => {
    await approver.goto(demo.url);
    await approver.getByTestId('nothing-waiting').waitFor();
    const shell = demo.terminal('engineer', 'ssh', 'gw-0042', '--reason', 'The log alone does not tell');
    await shell.until(/R-[0-9A-Z]{8} waits for somebody of support-leads/);

    await says(approver.getByTestId('request-row'), 'The log alone does not tell');
    await says(approver.getByTestId('news'), 'A new request waits for your answer.');
    await approver.getByTestId('request-row').getByRole('link').click();
    await approver.getByTestId('approve').click();
    await says(approver.getByTestId('state'), 'live');

    await shell.until(/R-[0-9A-Z]{8} is granted/);
    shell.child.stdin.write('printf "screen-%s\\n" $((6*7))\nexit 3\n');
    await shell.until(/screen-42/);
    assert.equal((await shell.end()).code, 3, 'the exit code of the device');
  });

  it('the reviewer replays both', async () => {
    reviewer = await newBrowser(DESK);
    await reviewer.goto(`${demo.url}/sessions`);
    await signIn(reviewer, 'reviewer', 'Chloe Martin');
    const rows = reviewer.getByTestId('session-row');
    await rows.nth(1).waitFor();
    assert.equal(await rows.count(), 2);

    await rows.first().getByRole('link').click();
    const replay = reviewer.getByTestId('replay');
    await reviewer.getByTestId('replay-speed').selectOption('8');
    await replay.locator('.ap-overlay-start, .ap-playback-button').first().click();
    await says(replay.locator('.ap-term-text'), 'screen-42');
    await says(reviewer.getByTestId('timeline'), '80×20');
    await says(reviewer.getByTestId('timeline'), 'status 3');
    await says(reviewer.locator('main'), 'Ana Silva');
    await fits(reviewer);

    await reviewer.goBack();
    await rows.nth(1).getByRole('link').click();
    await says(reviewer.getByTestId('output'), 'hello-journey');
    await says(reviewer.getByTestId('timeline'), 'printf hello-%s journey');
    await says(reviewer.getByTestId('timeline'), 'session ended');
    await fits(reviewer);
    const [download] = await Promise.all([
      reviewer.waitForEvent('download'),
      reviewer.getByRole('link', { name: /^Save S-.*-1\.ndjson$/ }).click(),
    ]);
    const saved = await readFile(await download.path(), 'utf8');
    assert.ok(saved.includes(Buffer.from('hello-journey').toString('base64')), saved);
  });

  it('the reviewer ends a running session, and what it ran on the device is stopped', async () => {
    await reviewer.goto(`${demo.url}/sessions`);
    await says(reviewer.locator('main'), 'Nobody is on a device now');
    const word = `${600 + Math.random()}`;
    const ssh = demo.cli('engineer', 'ssh', 'gw-0042', '--', `echo begun; sleep ${word}`);
    await ssh.until(/begun/);
    assert.ok(await runs(word));

    await says(reviewer.getByTestId('session-row').first(), 'live');
    await reviewer.getByTestId('session-row').first().getByRole('link').click();
    await says(reviewer.getByTestId('output'), 'begun');
    await reviewer.getByTestId('end-session').click();
    await reviewer.getByTestId('end-session-confirm').click();
    await says(reviewer.getByRole('alert'), 'Say why');
    assert.equal(ssh.code, undefined, 'without a reason nothing is ended');
    await reviewer.getByTestId('end-session-reason').fill('Wrong customer.');
    await reviewer.getByTestId('end-session-confirm').click();
    await says(reviewer.getByTestId('state'), 'ended');
    await says(reviewer.locator('main'), 'Wrong customer.');

    const { code, err } = await ssh.end({ seconds: 15 });
    assert.notEqual(code, 0);
    assert.match(err, /Wrong customer\./, 'the engineer is told why');
    for (const late = Date.now() + 10_000; await runs(word);)
      assert.ok(Date.now() < late, 'the command still runs on the device');
  });

  it('a session is shown to its person and to reviewers, not to others', async () => {
    const path = new URL(reviewer.url()).pathname;
    await approver.goto(`${demo.url}/sessions`);
    await says(approver.locator('main'), 'No ended session that you may see');
    assert.equal(await approver.getByTestId('session-row').count(), 0);
    expected = new Set([`404 /v1${path}`, `404 /v1${path}/recordings/1`]);
    await approver.goto(demo.url + path);
    await says(approver.getByTestId('trouble'), 'that you may see');
    const recording = await approver.request.get(`${demo.url}/v1${path}/recordings/1`);
    assert.equal(recording.status(), 404);
    assert.equal((await reviewer.request.get(`${demo.url}/v1${path}/recordings/1`)).status(), 200);
  });

  it('the engineer signs a new command line in, by the code', async () => {
    const trust = ['--no-browser', '--broker', demo.url, '--fingerprint', demo.https_fingerprint];
    const login = demo.elsewhere('--profile', 'fresh', 'login', ...trust);
    const [address] = await login.until(/https:\S+code=\S+/, { where: 'err' });
    const [code] = /[A-Z]{4}-[A-Z]{4}/.exec(address);

    engineer = await newBrowser(PHONE);
    await engineer.goto(address);
    await signIn(engineer, 'engineer', 'Ana Silva');
    await says(engineer.getByTestId('shown-code'), code);
    await fits(engineer);
    assert.equal(login.code, undefined, 'a look confirms nothing');
    await engineer.getByTestId('confirm-code').click();
    await engineer.getByTestId('confirmed').waitFor();
    const done = await login.end();
    assert.equal(done.code, 0, done.err);
    assert.match((await demo.elsewhere('--profile', 'fresh', 'whoami').end()).out, /ana@example\.com/);

    const other = demo.elsewhere('--profile', 'other', 'login', ...trust);
    const [refusable] = await other.until(/https:\S+code=\S+/, { where: 'err' });
    await engineer.goto(refusable);
    await engineer.getByTestId('refuse-code').click();
    await engineer.getByTestId('refused').waitFor();
    assert.notEqual((await other.end()).code, 0);
    assert.notEqual((await demo.elsewhere('--profile', 'other', 'whoami').end()).code, 0);

    await engineer.goto(`${demo.url}/sessions`);
    await engineer.getByTestId('session-row').nth(2).waitFor();
    await fits(engineer);
  });

  it('pages of other origins can do nothing with the approver’s cookies', async () => {
    const asked = await demo
      .cli('engineer', 'request', 'gw-0042', '-l', 'diag', '--for', '20m', '--reason', 'One more look')
      .end();
    assert.equal(asked.code, 0, asked.err);
    const [{ id }] = await requestsOf('engineer', '--state', 'pending');

    // Another port of this machine: another origin, but the same site, so that SameSite does not help.
    const context = approver.context();
    const other = 'https://127.0.0.1:44999';
    const form = (path) => `<form method="post" enctype="text/plain" action="${demo.url}${path}">
      <input name='{"comment":"' value='"}'><button>Win a prize</button></form>`;
    const paths = [`/v1/requests/${id}/approve`, '/logout'];
    const body = `<!doctype html>${paths.map(form).join('')}<iframe src="${demo.url}/requests/${id}"></iframe>`;
    context.removeAllListeners('request');
    await context.route(`${other}/**`, (route) => route.fulfill({ body, contentType: 'text/html' }));
    expected = new Set([...paths.map((path) => `403 ${path}`)]);
    const page = await context.newPage();
    for (const [i, path] of paths.entries()) {
      await page.goto(other);
      assert.ok(page.frames()[1].url().startsWith('chrome-error:'), 'the console is in no frame');
      const [posted] = await Promise.all([
        page.waitForResponse(demo.url + path),
        page.getByRole('button').nth(i).click(),
      ]);
      assert.match((await posted.request().allHeaders()).cookie, /__Host-daypass=/, 'the cookies were sent');
      assert.equal(posted.status(), 403);
    }
    await page.goto(other);
    const read = await page.evaluate(
      async ([me, approve]) => {
        const kept = () => 'kept away';
        const headers = { 'x-csrf-token': 'a guess', 'content-type': 'application/json' };
        return Promise.all([
          fetch(me, { credentials: 'include' }).then((answer) => answer.text(), kept),
          fetch(approve, { method: 'POST', credentials: 'include', headers, body: '{}' }).then(String, kept),
        ]);
      },
      [`${demo.url}/v1/me`, demo.url + paths[0]],
    );
    assert.deepEqual(read, ['kept away', 'kept away']);
    await page.close();
    const [{ state }] = await requestsOf('engineer', '--state', 'pending');
    assert.equal(state, 'pending');
    await approver.goto(`${demo.url}/requests/${id}`);
    await approver.getByTestId('approve').waitFor();
  });

  it('who signs out is out, and an old cookie opens nothing', async () => {
    const context = approver.context();
    const kept = await context.cookies();
    assert.ok(kept.some(({ name, httpOnly, secure }) => name === '__Host-daypass' && httpOnly && secure));
    await approver.getByTestId('sign-out').click();
    await approver.getByTestId('sign-in').waitFor();
    await context.clearCookies();
    await context.addCookies(kept);
    await approver.goto(`${demo.url}/requests`);
    await approver.getByTestId('sign-in').waitFor();
    assert.equal((await approver.request.get(`${demo.url}/v1/me`)).status(), 401);
  });

  it('these tests would notice a violation of the policy', async () => {
    await engineer.evaluate(() => {
      const script = document.createElement('script');
      script.textContent = 'window.pwned = true';
      document.body.append(script);
    });
    for (const late = Date.now() + 10_000; !alarms.some((alarm) => alarm.startsWith('policy: script-src'));) {
      assert.ok(Date.now() < late, alarms.join('\n'));
      await engineer.evaluate(() => new Promise(requestAnimationFrame));
    }
    assert.equal(await engineer.evaluate(() => window.pwned), undefined);
    alarms = [];
  });
});
