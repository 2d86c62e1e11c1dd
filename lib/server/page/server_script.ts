/**
 * The part of the chat page's program that talks to the server, as text for the browser: /health, /v1/models, /version, and
 * /v1/chat/completions as any client uses it. The API key lives in sessionStorage, which ends with the tab.
 */

export const serverScript = String.raw`'use strict';
const server = (() => {
  const KEY = 'sigmoe.key';
  const RETRY_MS = 1000;

  // What went wrong, as the name of a text of the page or in the words of the server.
  class Failure extends Error {
    constructor(text, detail) {
      super(text);
      this.text = text;
      this.detail = detail === undefined ? '' : ' ' + detail;
    }
  }

  function headers(extra) {
    const key = sessionStorage.getItem(KEY) || '';
    return key === '' ? extra : Object.assign({ authorization: 'Bearer ' + key }, extra);
  }

  async function open(path, options) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      throw error.name === 'AbortError' ? error : new Failure('unreachable');
    }
    if (response.ok) return response;
    if (response.status === 401) throw new Failure('needsKey');
    const { error } = await response.json().catch(() => ({}));
    throw error && error.message ? new Error(error.message) : new Failure('failed', response.status);
  }

  // Resolves when the model is loaded; says how far it has come meanwhile.
  async function ready(onPercent) {
    for (;;) {
      let health;
      try {
        health = await fetch('health');
      } catch {
        throw new Failure('unreachable');
      }
      const { status, percent } = await health.json().catch(() => ({}));
      if (status !== 'loading') return;
      onPercent(percent);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  // Who answers, and what its operator wants every reader to know.
  async function facts() {
    const [models, version] = await Promise.all(
      ['v1/models', 'version'].map(async (path) => (await open(path, { headers: headers({}) })).json()),
    );
    return { model: models.data[0].id, disclaimer: version.disclaimer, systemPrompt: version.default_system_prompt };
  }

  // The chunks of an answer as they arrive.
  async function* chat(body, signal) {
    const response = await open('v1/chat/completions', {
      method: 'POST',
      headers: headers({ 'content-type': 'application/json' }),
      body: JSON.stringify(body),
      signal,
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw signal.aborted ? error : new Failure('broken');
      });
      if (done) throw new Failure('broken');
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith('data:')) continue;
        const data = line.slice(5).trim();
        if (data === '[DONE]') return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        yield chunk;
      }
    }
  }

  return {
    ready,
    facts,
    chat,
    get key() {
      return sessionStorage.getItem(KEY) || '';
    },
    set key(value) {
      sessionStorage.setItem(KEY, value);
    },
  };
})();
`;
