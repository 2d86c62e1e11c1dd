/**
 * The chat page's HTML. Texts are filled in by chat_script.ts from texts.ts: `data-text` is content, `data-label` the accessible
 * name, `data-placeholder` the placeholder. Links are relative, so the page also works below a path of a reverse proxy.
 */

const setting = (id: string, attributes: string): string => `
        <label class="field" for="${id}"><span data-text="${id}"></span>
          <input id="${id}" type="number" autocomplete="off" data-placeholder="unset" ${attributes}></label>`;

export const markup = `<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <meta name="referrer" content="no-referrer">
  <title>sigmoe</title>
  <link rel="icon" href="page/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="page/style.css">
  <script src="page/texts.js" defer></script>
  <script src="page/server.js" defer></script>
  <script src="page/chat.js" defer></script>
</head>
<body>
  <header>
    <h1><img src="page/icon.svg" alt="" width="22" height="22"> sigmoe</h1>
    <span id="model"></span>
    <nav>
      <button id="new-chat" type="button" data-text="newChat"></button>
      <button id="language" type="button" data-text="language" data-label="languageLabel"></button>
      <button id="theme" type="button" data-label="theme"><span aria-hidden="true">◐</span></button>
      <button id="toggle-settings" type="button" aria-expanded="false" aria-controls="settings" data-text="settings"></button>
    </nav>
  </header>
  <div id="body">
    <main>
      <div id="log" role="log" tabindex="0" data-label="conversation">
        <p id="welcome" data-text="welcome"></p>
      </div>
      <form id="composer">
        <p id="problem" role="alert" hidden></p>
        <div id="entry">
          <textarea id="message" rows="1" autocomplete="off" data-label="message" data-placeholder="message" autofocus></textarea>
          <button id="send" type="submit" data-text="send"></button>
          <button id="stop" type="button" data-text="stop" hidden></button>
        </div>
        <p class="hint" data-text="keys"></p>
        <p id="disclaimer" hidden></p>
        <p id="status" role="status"></p>
      </form>
    </main>
    <aside id="settings" data-label="settings" hidden>
      <form id="controls" novalidate>
        <label class="field wide" for="system"><span data-text="system"></span>
          <textarea id="system" rows="4" autocomplete="off"></textarea>
          <small data-text="systemHint"></small></label>${setting('temperature', 'min="0" max="100" step="any" inputmode="decimal"')}${setting(
            'topP',
            'min="0.000001" max="1" step="any" inputmode="decimal"',
          )}${setting('topK', 'min="0" step="1" inputmode="numeric"')}${setting('maxTokens', 'min="1" step="1" inputmode="numeric"')}${setting('seed', 'min="0" step="1" inputmode="numeric"')}
        <label class="field wide" for="key"><span data-text="key"></span>
          <input id="key" type="password" autocomplete="off" spellcheck="false">
          <small data-text="keyHint"></small></label>
      </form>
    </aside>
  </div>
</body>
</html>
`;

export const icon = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#0f766e"/><path d="M5 24c7 0 8-1.5 11-8s4-8 11-8" fill="none" stroke="#fff" stroke-width="3.2" stroke-linecap="round"/></svg>`;
