/** The chat page's style: two palettes, one column, settings beside it where there is room. No fonts or images from outside. */

export const style = `:root {
  color-scheme: light;
  --ground: #f6f6f3; --surface: #ffffff; --line: #dedfd9; --text: #20262a; --soft: #5f6b70;
  --accent: #0f766e; --on-accent: #ffffff; --mine: #e6efec; --alarm: #a4262c; --alarm-ground: #fbeaea;
}
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) {
  color-scheme: dark;
  --ground: #14181a; --surface: #1c2225; --line: #30383c; --text: #e4e8e6; --soft: #9aa6a9;
  --accent: #5bb8ac; --on-accent: #0c1514; --mine: #22302e; --alarm: #ff9c9c; --alarm-ground: #3a2224;
} }
:root[data-theme=dark] {
  color-scheme: dark;
  --ground: #14181a; --surface: #1c2225; --line: #30383c; --text: #e4e8e6; --soft: #9aa6a9;
  --accent: #5bb8ac; --on-accent: #0c1514; --mine: #22302e; --alarm: #ff9c9c; --alarm-ground: #3a2224;
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
html, body { height: 100%; margin: 0; }
body {
  display: flex; flex-direction: column; background: var(--ground); color: var(--text);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif;
}
header { display: flex; align-items: center; gap: .75rem; padding: .6rem 1.25rem; border-bottom: 1px solid var(--line); }
h1 { display: flex; align-items: center; gap: .5rem; margin: 0; font-size: 1.05rem; font-weight: 600; }
#model { color: var(--soft); font-size: .9rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
nav { display: flex; gap: .4rem; margin-left: auto; flex-wrap: wrap; justify-content: flex-end; }
button {
  font: inherit; font-size: .9rem; color: var(--text); background: transparent; cursor: pointer;
  border: 1px solid var(--line); border-radius: .6rem; padding: .3rem .75rem;
}
button:hover { border-color: var(--accent); }
button[aria-expanded=true] { background: var(--mine); border-color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
#body { flex: 1; min-height: 0; display: flex; }
main { flex: 1; min-width: 0; display: flex; flex-direction: column; }
#log { flex: 1; overflow-y: auto; padding: 1.5rem 1.25rem 1rem; }
#log:focus-visible { outline-offset: -4px; }
#log > * { max-width: 46rem; margin: 0 auto 1.4rem; }
#welcome { margin-top: 18vh; text-align: center; color: var(--soft); }
.turn h2 { margin: 0 0 .2rem; font-size: .8rem; font-weight: 600; color: var(--soft); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.user .text { background: var(--mine); border-radius: .9rem; padding: .6rem .95rem; }
.user { display: flex; flex-direction: column; align-items: flex-end; padding-left: 12%; }
.answering .text::after { content: ''; display: inline-block; width: .5em; height: 1em; margin-left: .1em; vertical-align: -.15em;
  background: var(--accent); border-radius: 2px; animation: breathe 1.2s ease-in-out infinite; }
@keyframes breathe { 50% { opacity: .15; } }
@media (prefers-reduced-motion: reduce) { .answering .text::after { animation: none; } }
.reasoning { margin: .2rem 0 .7rem; border-left: 3px solid var(--line); padding-left: .9rem; color: var(--soft); font-size: .93rem; }
.reasoning summary { cursor: pointer; }
.below { display: flex; align-items: center; gap: .5rem; flex-wrap: wrap; margin-top: .5rem; min-height: 1.9rem; }
.below button { font-size: .8rem; padding: .1rem .6rem; color: var(--soft); }
.figures { color: var(--soft); font-size: .8rem; font-variant-numeric: tabular-nums; }
.failure, #problem { color: var(--alarm); background: var(--alarm-ground); border-radius: .6rem; padding: .5rem .8rem; overflow-wrap: anywhere; }
.failure { margin-top: .4rem; }
#composer { width: 100%; max-width: 48.5rem; margin: 0 auto; padding: 0 1.25rem .8rem; }
#problem { margin: 0 0 .6rem; }
#entry { display: flex; align-items: flex-end; gap: .5rem; background: var(--surface); border: 1px solid var(--line);
  border-radius: 1rem; padding: .5rem .5rem .5rem .9rem; box-shadow: 0 1px 5px rgb(0 0 0 / 5%); }
#entry:focus-within { border-color: var(--accent); }
textarea, input { font: inherit; color: inherit; background: var(--surface); border: 1px solid var(--line); border-radius: .6rem; padding: .4rem .6rem; width: 100%; }
#message { border: 0; outline: 0; padding: .25rem 0 .3rem; resize: none; max-height: 40vh; background: transparent; }
#send, #stop { border-radius: .75rem; padding: .35rem 1rem; white-space: nowrap; }
#send { background: var(--accent); border-color: var(--accent); color: var(--on-accent); }
#send:disabled { opacity: .45; cursor: default; }
.hint, #disclaimer { margin: .4rem .3rem 0; color: var(--soft); font-size: .8rem; text-align: center; }
#status { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
#settings { width: 20rem; border-left: 1px solid var(--line); overflow-y: auto; padding: 1.25rem; background: var(--surface); }
#controls { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem .8rem; }
.field { display: block; font-size: .9rem; }
.field > span { display: block; margin-bottom: .2rem; }
.field small { display: block; margin-top: .2rem; color: var(--soft); font-size: .8rem; line-height: 1.4; }
.wide { grid-column: 1 / -1; }
input:user-invalid { border-color: var(--alarm); }
@media (max-width: 760px) {
  #model, .hint { display: none; }
  header { padding: .5rem .75rem; }
  #body { position: relative; }
  #settings { position: absolute; inset: 0; width: auto; border: 0; }
  .user { padding-left: 6%; }
}
`;
