/**
 * The chat page's program, as text for the browser: the conversation and what is shown of it. Whatever comes from the server
 * becomes text nodes, never HTML. The conversation lives in this script's memory alone.
 */

export const chatScript = `'use strict';
(() => {
  const $ = (id) => document.getElementById(id);
  const NEAR_END_PX = 80;
  const SAMPLING = { temperature: 'temperature', topP: 'top_p', topK: 'top_k', maxTokens: 'max_tokens', seed: 'seed' };

  let language = (navigator.language || 'en').toLowerCase().startsWith('zh') ? 'zh' : 'en';
  let conversation = []; // {role, content} as sent, with the element that shows each
  let running = null; // the AbortController of the answer in progress
  let model = '';

  const say = (name) => TEXTS[language][name];

  // ---- texts -------------------------------------------------------------------------------------------------------

  function translate(root) {
    const each = (attribute, apply) => {
      for (const node of root.querySelectorAll('[' + attribute + ']')) apply(node, say(node.getAttribute(attribute)));
    };
    each('data-text', (node, text) => { node.textContent = text; });
    each('data-label', (node, text) => {
      node.setAttribute('aria-label', text);
      if (node.tagName === 'BUTTON') node.title = text;
    });
    each('data-placeholder', (node, text) => { node.placeholder = text; });
  }

  function setLanguage(next) {
    language = next;
    document.documentElement.lang = next === 'zh' ? 'zh-CN' : 'en';
    document.title = say('title') + ' · sigmoe';
    translate(document);
    for (const turn of conversation) if (turn.figures) showFigures(turn);
  }

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.dataset.text = text;
    return node;
  }

  // ---- the server --------------------------------------------------------------------------------------------------

  async function introduce() {
    try {
      await server.ready((percent) => {
        problem(say('loading') + (Number.isFinite(percent) ? ' (' + Math.floor(percent) + '%)' : '…'));
      });
      const facts = await server.facts();
      model = facts.model;
      $('model').textContent = model;
      $('disclaimer').textContent = facts.disclaimer || '';
      $('disclaimer').hidden = $('disclaimer').textContent === '';
      $('system').placeholder = facts.systemPrompt || '';
      problem('');
    } catch (error) {
      problem(explain(error));
    }
  }

  function explain(error) {
    if (error.text === 'needsKey') openSettings(true);
    return error.text ? say(error.text) + error.detail : error.message;
  }

  function requestBody() {
    const system = $('system').value.trim();
    const messages = conversation.filter((turn) => turn.content !== '').map(({ role, content }) => ({ role, content }));
    const body = {
      model: model || undefined,
      messages: system === '' ? messages : [{ role: 'system', content: system }].concat(messages),
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    };
    for (const [id, name] of Object.entries(SAMPLING)) if ($(id).value !== '') body[name] = Number($(id).value);
    return body;
  }

  // ---- one answer --------------------------------------------------------------------------------------------------

  async function answer() {
    const body = requestBody();
    const turn = addTurn('assistant', '');
    const controller = new AbortController();
    running = controller;
    showRunning();
    const started = performance.now();
    try {
      for await (const chunk of server.chat(body, controller.signal)) take(turn, chunk, performance.now() - started);
    } catch (error) {
      if (controller.signal.aborted) turn.ended = 'stopped';
      else fail(turn, explain(error));
    }
    if (running !== controller) return; // a new conversation was begun meanwhile
    running = null;
    finish(turn);
  }

  function take(turn, chunk, elapsed) {
    if (chunk.usage) turn.tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) return;
    const delta = choice.delta;
    const reasoning = delta.reasoning || delta.reasoning_content || '';
    const content = delta.content || '';
    if (reasoning !== '' || content !== '') {
      turn.firstMs ??= elapsed;
      turn.lastMs = elapsed;
    }
    const follow = isAtEnd();
    if (reasoning !== '') {
      turn.fold.hidden = false;
      if (turn.content === '' && !turn.folded) turn.fold.open = true;
      turn.thoughts.append(reasoning);
    }
    if (content !== '') {
      if (turn.content === '') turn.fold.open = false;
      turn.content += content;
      turn.text.append(content);
    }
    if (choice.finish_reason === 'length') turn.ended = 'cutOff';
    showFigures(turn);
    if (follow) toEnd();
  }

  function finish(turn) {
    turn.node.classList.remove('answering');
    turn.text.normalize();
    turn.thoughts.normalize();
    turn.below.hidden = false;
    turn.copy.hidden = turn.content === '';
    showFigures(turn);
    showRunning();
    $('status').textContent = say(turn.ended === 'stopped' ? 'stopped' : 'done');
    toEnd();
    $('message').focus();
  }

  function showFigures(turn) {
    const parts = [];
    if (turn.tokens > 0) parts.push(turn.tokens + ' ' + say('tokens'));
    const seconds = (turn.lastMs - turn.firstMs) / 1000;
    if (turn.tokens > 1 && seconds > 0) parts.push(((turn.tokens - 1) / seconds).toFixed(1) + ' ' + say('perSecond'));
    if (turn.firstMs !== undefined) parts.push(say('firstToken') + ' ' + Math.round(turn.firstMs) + ' ms');
    if (turn.ended) parts.push(say(turn.ended));
    turn.figures.textContent = parts.join(' · ');
  }

  // ---- turns -------------------------------------------------------------------------------------------------------

  function addTurn(role, content) {
    const node = element('article', 'turn ' + role);
    const text = element('div', 'text');
    text.textContent = content;
    node.append(element('h2', '', role === 'user' ? 'you' : 'assistant'));
    const turn = { role, content, node, text };
    if (role === 'assistant') addAnswerParts(turn);
    else node.append(text);
    translate(node);
    $('welcome').hidden = true;
    $('log').append(node);
    conversation.push(turn);
    toEnd();
    return turn;
  }

  function addAnswerParts(turn) {
    turn.tokens = 0;
    turn.fold = element('details', 'reasoning');
    turn.fold.hidden = true;
    const summary = element('summary', '', 'reasoning');
    summary.addEventListener('click', () => { turn.folded = turn.fold.open; });
    turn.thoughts = element('div', 'text thoughts');
    turn.fold.append(summary, turn.thoughts);
    turn.below = element('div', 'below');
    turn.copy = element('button', 'copy', 'copy');
    turn.again = element('button', 'again', 'again');
    turn.figures = element('span', 'figures');
    for (const button of [turn.copy, turn.again]) button.type = 'button';
    turn.copy.hidden = true;
    turn.copy.addEventListener('click', () => copy(turn));
    turn.again.addEventListener('click', regenerate);
    turn.below.append(turn.copy, turn.again, turn.figures);
    turn.node.classList.add('answering');
    turn.node.append(turn.fold, turn.text, turn.below);
  }

  function fail(turn, message) {
    const node = element('p', 'failure');
    node.setAttribute('role', 'alert');
    node.textContent = message;
    turn.text.after(node);
  }

  async function copy(turn) {
    try {
      await navigator.clipboard.writeText(turn.content);
    } catch {
      // Without https there is no clipboard API: select a copy of the text and ask the document.
      const area = document.createElement('textarea');
      area.value = turn.content;
      document.body.append(area);
      area.select();
      document.execCommand('copy');
      area.remove();
    }
    turn.copy.textContent = say('copied');
    $('status').textContent = say('copied');
    setTimeout(() => { turn.copy.textContent = say('copy'); }, 1500);
  }

  function regenerate() {
    if (running !== null || !controlsAreValid()) return;
    conversation.pop().node.remove();
    answer();
  }

  // ---- the page around it ------------------------------------------------------------------------------------------

  const isAtEnd = () => $('log').scrollHeight - $('log').scrollTop - $('log').clientHeight < NEAR_END_PX;
  const toEnd = () => { $('log').scrollTop = $('log').scrollHeight; };

  function problem(text) {
    $('problem').textContent = text;
    $('problem').hidden = text === '';
  }

  function showRunning() {
    const busy = running !== null;
    $('send').hidden = busy;
    $('stop').hidden = !busy;
    $('log').setAttribute('aria-busy', String(busy));
    if (busy) $('status').textContent = say('answering');
    const last = conversation.at(-1);
    for (const turn of conversation) if (turn.again) turn.again.hidden = busy || turn !== last;
  }

  function openSettings(open) {
    $('settings').hidden = !open;
    $('toggle-settings').setAttribute('aria-expanded', String(open));
  }

  function controlsAreValid() {
    const wrong = [...$('controls').elements].find((field) => !field.checkValidity());
    if (!wrong) return true;
    openSettings(true);
    wrong.reportValidity();
    return false;
  }

  function send() {
    const text = $('message').value.trim();
    if (text === '' || running !== null || !controlsAreValid()) return;
    problem('');
    $('message').value = '';
    grow();
    addTurn('user', text);
    answer();
  }

  function grow() {
    $('message').style.height = 'auto';
    $('message').style.height = $('message').scrollHeight + 'px';
    $('send').disabled = $('message').value.trim() === '';
  }

  function reset() {
    if (running !== null) running.abort();
    running = null;
    for (const turn of conversation) turn.node.remove();
    conversation = [];
    showRunning();
    $('welcome').hidden = false;
    problem('');
    $('message').focus();
  }

  function switchTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
  }

  $('composer').addEventListener('submit', (event) => { event.preventDefault(); send(); });
  $('controls').addEventListener('submit', (event) => event.preventDefault());
  $('message').addEventListener('input', grow);
  $('message').addEventListener('keydown', (event) => {
    // While an input method composes (Chinese), Enter takes the candidate.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && !event.isComposing && running !== null) running.abort();
  });
  $('stop').addEventListener('click', () => running && running.abort());
  $('new-chat').addEventListener('click', reset);
  $('language').addEventListener('click', () => setLanguage(language === 'en' ? 'zh' : 'en'));
  $('theme').addEventListener('click', switchTheme);
  $('toggle-settings').addEventListener('click', () => openSettings($('settings').hidden));
  $('key').addEventListener('change', () => {
    server.key = $('key').value.trim();
    introduce();
  });

  $('key').value = server.key;
  setLanguage(language);
  grow();
  introduce();
})();
`;
