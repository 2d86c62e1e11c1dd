/** The chat page in a real browser: what is sent, what is shown, and that nothing leaves for anywhere else. */
import { Script } from 'node:vm';
import fastify from 'fastify';
import type { Browser, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { pageFiles, pageRoutes } from '../../lib/server/page/routes.js';
import { chromiumPath, launch, openPage } from './browser.js';
import { type Stub, startStub } from './stub.js';

describe('without a browser', () => {
  test('every file is served with a policy that allows its own server alone', async () => {
    const app = fastify();
    await app.register(pageRoutes);
    for (const [path, { type, body }] of pageFiles()) {
      const response = await app.inject(path);
      expect(response.statusCode).toBe(200);
      expect(response.headers['content-type']).toBe(type);
      expect(response.headers['cache-control']).toBe('no-store');
      expect(response.headers['content-security-policy']).toContain("default-src 'none'");
      expect(response.headers['content-security-policy']).not.toMatch(/unsafe|\*|https?:/);
      expect(response.body).toBe(body);
    }
  });

  test('no file names another host, and the page has neither inline script nor inline style', () => {
    for (const { body } of pageFiles().values()) {
      expect(body.replace('http://www.w3.org/2000/svg', '')).not.toMatch(/(https?:)?\/\/[\w-]+\.\w/);
    }
    const html = pageFiles().get('/')?.body ?? '';
    expect(html).not.toMatch(/<script(?![^>]*src=)|<style|\son\w+=|style=/);
  });

  test('the scripts are valid and never write HTML', () => {
    for (const [path, { body }] of pageFiles()) {
      if (!path.endsWith('.js')) continue;
      expect(() => new Script(body)).not.toThrow();
      expect(body).not.toMatch(/innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|indexedDB|cookie/);
    }
  });
});

if (chromiumPath === undefined)
  console.log('NOT RUN: the chat page in a browser: no Chromium here (SIGMOE_CHROMIUM names one)');

describe.skipIf(chromiumPath === undefined)('in Chromium', () => {
  let browser: Browser;
  let stub: Stub;
  let opened: Awaited<ReturnType<typeof openPage>>;
  let page: Page;

  beforeAll(async () => {
    browser = await launch();
  });
  afterAll(() => browser?.close());
  beforeEach(async () => {
    stub = await startStub();
    opened = await openPage(browser, stub.url);
    page = opened.page;
    await page.getByText('stub-model').waitFor();
  });
  afterEach(async () => {
    await opened.close();
    await stub.app.close();
    // Every request of every test, the favicon included, went to the page's own server; nothing broke the policy.
    expect(opened.requests.length).toBeGreaterThan(5);
    expect(opened.requests.filter((url) => !url.startsWith(`${stub.url}/`))).toEqual([]);
    expect(opened.complaints.filter((line) => !/status of (401|503)/.test(line))).toEqual([]);
  });

  const message = () => page.getByRole('textbox', { name: 'Your message' });
  const answers = () => page.locator('.assistant > .text');
  const send = async (text: string) => {
    await message().fill(text);
    await message().press('Enter');
  };
  const complete = (n = 1) => page.locator('.assistant:not(.answering)').nth(n - 1);
  const finished = async (n = 1) => complete(n).locator('.below').waitFor();

  test('streams an answer, folds its reasoning, shows its speed, keeps the conversation', async () => {
    stub.steps = [
      { reasoning: 'let me ' },
      { reasoning: 'see' },
      { content: 'Rest' },
      { content: ' and water.' },
      { finish: 'stop' },
    ];
    await send('What helps?');
    await finished();
    expect(await answers().textContent()).toBe('Rest and water.');
    expect(await page.locator('.thoughts').textContent()).toBe('let me see');
    expect(await page.locator('.thoughts').isVisible()).toBe(false);
    await page.getByText('Reasoning').click();
    expect(await page.locator('.thoughts').isVisible()).toBe(true);
    expect(await page.locator('.figures').textContent()).toMatch(/^4 tokens · .*first token \d+ ms$/);
    await send('And then?');
    await finished(2);
    expect(stub.bodies[1]).toMatchObject({
      model: 'stub-model',
      stream: true,
      messages: [
        { role: 'user', content: 'What helps?' },
        { role: 'assistant', content: 'Rest and water.' },
        { role: 'user', content: 'And then?' },
      ],
    });
  });

  test('markup in questions, answers, errors and the disclaimer stays text', async () => {
    const attack = '<img src=x onerror="document.title=1"><script>document.title=2</script>';
    stub.steps = [{ reasoning: attack }, { content: attack }, { error: attack }];
    await send(attack);
    await finished();
    expect(await answers().textContent()).toBe(attack);
    expect(await page.locator('.user .text').textContent()).toBe(attack);
    expect(await page.locator('.failure').textContent()).toBe(attack);
    expect(await page.locator('#disclaimer').textContent()).toBe('Not medical <b>advice</b>.');
    expect(await page.locator('#log img, #log script, #disclaimer b').count()).toBe(0);
    expect(await page.title()).toBe('Chat · sigmoe');
  });

  test.each(['the Stop button', 'Escape'])('%s ends the stream, at the server too', async (means) => {
    stub.steps = [{ content: 'One' }, 'wait'];
    await send('Count');
    await page.locator('.assistant .text', { hasText: 'One' }).waitFor();
    if (means === 'Escape') await page.keyboard.press('Escape');
    else await page.getByRole('button', { name: 'Stop' }).click();
    await finished();
    expect(await answers().textContent()).toBe('One');
    expect(await page.locator('.figures').textContent()).toContain('stopped');
    await expect.poll(() => stub.dropped).toBe(1);
  });

  test('controls reach the request, and what is empty is left to the server', async () => {
    stub.steps = [{ content: 'ok' }, { finish: 'stop' }];
    await page.getByRole('button', { name: 'Settings' }).click();
    await page.getByLabel('System prompt').fill('Be brief.');
    await page.getByLabel('Temperature').fill('0.3');
    await page.getByLabel('Top k').fill('20');
    await page.getByLabel('Max tokens').fill('64');
    await page.getByLabel('Seed').fill('7');
    await send('Hello');
    await finished();
    const { messages, stream, stream_options, ...sampling } = stub.bodies[0] ?? {};
    expect(sampling).toEqual({ model: 'stub-model', temperature: 0.3, top_k: 20, max_tokens: 64, seed: 7 });
    expect(messages).toEqual([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'Hello' },
    ]);
    await page.getByLabel('Top p').fill('3');
    await send('Again');
    expect(stub.bodies).toHaveLength(1);
    expect(await message().inputValue()).toBe('Again');
  });

  test('Enter sends, unless it starts a line or takes a candidate of an input method', async () => {
    stub.steps = [{ content: 'ok' }, { finish: 'stop' }];
    await message().fill('one');
    await message().press('Shift+Enter');
    await page.keyboard.type('two');
    const composing = { key: 'Enter', isComposing: true, bubbles: true, cancelable: true };
    await message().dispatchEvent('keydown', composing);
    expect(await message().inputValue()).toBe('one\ntwo');
    expect(stub.bodies).toEqual([]);
    await message().press('Enter');
    await finished();
    expect(stub.bodies[0]?.messages).toEqual([{ role: 'user', content: 'one\ntwo' }]);
  });

  test('regenerates the last answer, copies it, begins anew', async () => {
    stub.steps = [{ content: 'first' }, { finish: 'length' }];
    await send('Say');
    await finished();
    expect(await page.locator('.figures').textContent()).toContain('cut off');
    stub.steps = [{ content: 'second' }, { finish: 'stop' }];
    await page.getByRole('button', { name: 'Regenerate' }).click();
    await page.locator('.assistant .text', { hasText: 'second' }).waitFor();
    await finished();
    expect(await answers().allTextContents()).toEqual(['second']);
    expect(stub.bodies[1]?.messages).toEqual(stub.bodies[0]?.messages);
    await page.context().grantPermissions(['clipboard-read', 'clipboard-write']);
    await page.getByRole('button', { name: 'Copy' }).click();
    await page.getByRole('button', { name: 'Copied' }).waitFor();
    // The clipboard is read by pasting.
    await message().focus();
    await page.keyboard.press('Control+V');
    expect(await message().inputValue()).toBe('second');
    await page.getByRole('button', { name: 'New conversation' }).click();
    expect(await page.locator('.turn').count()).toBe(0);
  });

  test('asks for a key where the server does, and keeps it in the tab alone', async () => {
    stub.requiredKey = 'k-123';
    await page.reload();
    await page.getByText('This server asks for an API key').waitFor();
    await page.getByLabel('API key').fill('k-123');
    await page.getByLabel('API key').blur();
    await page.locator('#problem').waitFor({ state: 'hidden' });
    stub.steps = [{ content: 'ok' }, { finish: 'stop' }];
    await send('Hello');
    await finished();
    expect(stub.keys).toEqual(['Bearer k-123']);
    const kept = 'JSON.stringify([Object.values(sessionStorage), localStorage.length, document.cookie])';
    expect(await page.evaluate(kept)).toBe('[["k-123"],0,""]');
  });

  test('says how far a model that loads has come, and is ready when it is', async () => {
    stub.loading = 42;
    await page.reload();
    await page.getByText('The model is loading (42%)').waitFor();
    stub.loading = undefined;
    await page.getByText('stub-model').waitFor();
    expect(await page.locator('#problem').isVisible()).toBe(false);
  });

  test('speaks Chinese to a Chinese browser and changes language on request', async () => {
    const chinese = await openPage(browser, stub.url, 'zh-CN');
    await chinese.page.getByText('stub-model').waitFor();
    expect(await chinese.page.locator('html').getAttribute('lang')).toBe('zh-CN');
    expect(await chinese.page.getByRole('button', { name: '发送' }).count()).toBe(1);
    await chinese.page.getByRole('button', { name: 'Switch to English' }).click();
    expect(await chinese.page.getByRole('button', { name: 'Send' }).count()).toBe(1);
    await chinese.close();
    await page.getByRole('button', { name: '切换到中文' }).click();
    expect(await page.getByRole('textbox', { name: '您的消息' }).count()).toBe(1);
  });

  test('every control has a name that can be spoken', async () => {
    await page.getByRole('button', { name: 'Settings' }).click();
    const tree = await page.locator('body').ariaSnapshot();
    expect(tree.match(/- (button|textbox|spinbutton)/g)?.length).toBeGreaterThan(9);
    expect(tree).not.toMatch(/- (button|textbox|spinbutton)(:|$| \[)/m);
  });

  test('a lost connection and a refusal are said in place', async () => {
    stub.steps = [{ content: 'half' }, { error: 'the engine stopped' }];
    await send('Hello');
    await finished();
    expect(await page.getByRole('alert').filter({ hasText: 'the engine stopped' }).count()).toBe(1);
    await stub.app.close();
    await page.getByRole('button', { name: 'Regenerate' }).click();
    await page.getByText('The server cannot be reached.').waitFor();
    opened.complaints.splice(0); // the browser reports the refused connection by itself
  });
});
