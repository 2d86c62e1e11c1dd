/** The chat page on the real server and the bundled model: what its user sees when nothing is a stub. */
import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Model } from '../../lib/index.js';
import { buildApp } from '../../lib/server/app.js';
import { nano } from '../helpers/files.js';
import { chromiumPath, launch, openPage } from './browser.js';

if (chromiumPath === undefined) console.log('NOT RUN: the chat page on the real server: no Chromium here');

describe.skipIf(chromiumPath === undefined)('the chat page on the real server', () => {
  let browser: Browser;
  let model: Model;

  beforeAll(async () => {
    [browser, model] = await Promise.all([launch(), Model.load(nano)]);
  });
  afterAll(async () => {
    await browser?.close();
    await model?.dispose();
  });

  const question = '糖尿病有哪些症状？';

  test('streams the answer the library gives, and stops the engine on request', async () => {
    const app = buildApp(model, { modelName: 'nano', disclaimer: 'For testing only.' });
    const url = await app.listen({ port: 0, host: '127.0.0.1' });
    const { page, requests, complaints, close } = await openPage(browser, url);
    await page.getByText('nano', { exact: true }).waitFor();
    expect(await page.locator('#disclaimer').textContent()).toBe('For testing only.');
    await page.getByRole('button', { name: 'Settings' }).click();
    await page.getByLabel('Temperature').fill('0');
    await page.getByLabel('Max tokens').fill('40');
    const box = page.getByRole('textbox', { name: 'Your message' });
    await box.fill(question);
    await box.press('Enter');
    await page.locator('.assistant:not(.answering) .figures', { hasText: 'tokens/s' }).waitFor();
    const messages = [{ role: 'user' as const, content: question }];
    const { text, usage } = await model.generate({ messages, temperature: 0, maxTokens: 40 }).result;
    expect(await page.locator('.assistant > .text').textContent()).toBe(text);
    expect(await page.locator('.figures').textContent()).toContain(`${usage.completionTokens} tokens · `);

    await page.getByLabel('Max tokens').fill('1800');
    await page.getByRole('button', { name: 'New conversation' }).click();
    await box.fill(question);
    await box.press('Enter');
    await page.locator('.assistant > .text:not(:empty)').waitFor();
    await box.press('Escape');
    await expect.poll(() => model.stats().running).toBe(0);
    expect(requests.filter((each) => !each.startsWith(`${url}/`))).toEqual([]);
    expect(complaints).toEqual([]);
    await close();
    await app.close();
  });

  test('where keys are set, the page itself asks for one, as the password of the browser', async () => {
    const app = buildApp(model, { modelName: 'nano', keys: [{ id: 'ward', key: 'k-123' }] });
    const url = await app.listen({ port: 0, host: '127.0.0.1' });
    expect((await fetch(url)).status).toBe(401);
    const context = await browser.newContext({ locale: 'en-GB', httpCredentials: { username: 'any', password: 'k-123' } });
    const page = await context.newPage();
    await page.goto(url);
    await page.getByText('nano', { exact: true }).waitFor();
    const box = page.getByRole('textbox', { name: 'Your message' });
    await page.getByRole('button', { name: 'Settings' }).click();
    await page.getByLabel('Max tokens').fill('5');
    await box.fill(question);
    await box.press('Enter');
    await page.locator('.assistant:not(.answering) > .text:not(:empty)').waitFor();
    await context.close();
    await app.close();
  });
});
