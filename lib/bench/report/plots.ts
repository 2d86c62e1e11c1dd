/** Plots as inline SVG: no script, colours from the page's style, a title that can be read aloud. */

export interface Series {
  name: string;
  points: readonly (readonly [number, number])[];
}

export interface Plot {
  title: string;
  xLabel: string;
  yLabel: string;
  series: readonly Series[];
  /** A dot on every point: for few of them. */
  dots?: boolean;
}

const WIDTH = 560;
const HEIGHT = 300;
const LEFT = 64;
const RIGHT = 16;
const TOP = 14;
const BOTTOM = 46;
const COLOURS = 6;

export function plotSvg({ title, xLabel, yLabel, series, dots = false }: Plot): string {
  const points = series.flatMap((each) => each.points);
  const xTicks = ticks(Math.max(0, ...points.map(([x]) => x)));
  const yTicks = ticks(Math.max(0, ...points.map(([, y]) => y)));
  const x = scale(xTicks, LEFT, WIDTH - RIGHT);
  const y = scale(yTicks, HEIGHT - BOTTOM, TOP);
  const parts = [
    ...yTicks.map((tick) => {
      const line = `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(tick)}" y2="${y(tick)}"/>`;
      return `${line}<text x="${LEFT - 8}" y="${y(tick)}" dy=".32em" text-anchor="end">${short(tick)}</text>`;
    }),
    ...xTicks.map((tick) => `<text x="${x(tick)}" y="${HEIGHT - BOTTOM + 18}" text-anchor="middle">${short(tick)}</text>`),
    `<text x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 8}" text-anchor="middle">${escapeHtml(xLabel)}</text>`,
    `<text transform="translate(14 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">${escapeHtml(yLabel)}</text>`,
    ...series.map(({ points: each }, i) => {
      const path = each.map(([px, py]) => `${x(px)},${y(py)}`).join(' ');
      const marks = dots
        ? each.map(([px, py]) => `<circle class="fill${i % COLOURS}" cx="${x(px)}" cy="${y(py)}" r="3.5"/>`)
        : [];
      return `<polyline class="line${i % COLOURS}" points="${path}"/>${marks.join('')}`;
    }),
  ];
  const legend = series.map(({ name }, i) => `<span><i class="fill${i % COLOURS}"></i>${escapeHtml(name)}</span>`);
  return (
    `<figure><figcaption>${escapeHtml(title)}</figcaption>` +
    `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escapeHtml(title)}">${parts.join('')}</svg>` +
    `${series.length > 1 ? `<p class="legend">${legend.join('')}</p>` : ''}</figure>`
  );
}

/** The share of samples at or below each value, thinned to what a screen can show. */
export function cumulative(ascending: readonly number[], most = 200): [number, number][] {
  const n = ascending.length;
  const steps = Math.min(n, most);
  return Array.from({ length: steps }, (_, i) => {
    const rank = steps === 1 ? n - 1 : Math.round((i * (n - 1)) / (steps - 1));
    return [ascending[rank] ?? 0, (100 * (rank + 1)) / n];
  });
}

/** Round numbers from 0 to at least `most`: about five steps of 1, 2 or 5 times a power of ten. */
export function ticks(most: number): number[] {
  const rough = (most > 0 && Number.isFinite(most) ? most : 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const count = Math.ceil((most > 0 ? most : 1) / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

function scale(axis: readonly number[], from: number, to: number): (value: number) => number {
  const most = axis.at(-1) ?? 1;
  return (value) => Math.round((from + ((to - from) * value) / most) * 100) / 100;
}

function short(value: number): string {
  return value >= 10_000 ? `${Number((value / 1000).toPrecision(6))}k` : String(value);
}

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
