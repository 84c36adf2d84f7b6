// Charts, in SVG.

import { h, s, short } from "./dom.js";

/** Some `count` round numbers from `low` to `high`. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((size) => size >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let n = first; n * step <= high + step * 1e-9; n += 1) found.push(Number((n * step).toPrecision(12)));
  return found;
}

/** Round numbers whose logarithms are some way apart; those of `ticks` where less than a power of ten is shown. */
export function logTicks(low, high, count) {
  if (high / low < 8) return ticks(low, high, count).filter((tick) => tick > 0);
  const decades = Math.log10(high / low);
  const steps = decades * 3 <= count ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(decades / count));
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += every) {
    for (const step of steps) {
      const tick = Number((step * 10 ** power).toPrecision(12));
      if (tick >= low && tick <= high) found.push(tick);
    }
  }
  return found;
}

/** At most two points for each pixel across, the least and the largest, in their order. */
function thinned(points, toX, width) {
  if (points.length <= 2 * width) return points;
  const columns = new Map();
  for (const point of points) {
    const column = Math.floor(toX(point[0]));
    const now = columns.get(column);
    if (!now) columns.set(column, [point, point]);
    else if (point[1] < now[0][1]) now[0] = point;
    else if (point[1] > now[1][1]) now[1] = point;
  }
  return [...columns.values()].flatMap(([low, high]) => (low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
}

const extent = (values) => [Math.min(...values), Math.max(...values)];
const reduceExtent = (series, axis) =>
  extent(series.flatMap(({ points }) => (points.length ? extentOf(points, axis) : [])));

function extentOf(points, axis) {
  let [low, high] = [Infinity, -Infinity];
  for (const point of points) {
    low = Math.min(low, point[axis]);
    high = Math.max(high, point[axis]);
  }
  return [low, high];
}

/** Lines over a common pair of axes, that follow the width of the page and the pointer. */
export class LineChart {
  constructor(node) {
    this.node = node;
    this.tip = h("div", { class: "tip", hidden: true });
    this.what = null;
    node.classList.add("line-chart");
    new ResizeObserver(() => this.#paint()).observe(node);
    node.addEventListener("pointermove", (event) => this.#point(event));
    node.addEventListener("pointerleave", () => this.#unpoint());
  }

  /**
   * Draws `{ label, xLabel, yLabel, log, series, levels }`. A series is `{ name, look, points, thin, dots }`: `look` is the number of
   * its colour and dashes, `points` are pairs in rising x. A level is `{ y, name }`, a horizontal line.
   */
  draw(what) {
    this.what = what;
    this.#paint();
  }

  #paint() {
    const { what, node } = this;
    const width = node.clientWidth;
    if (!what || width === 0) return;
    const height = Math.round(Math.min(380, Math.max(220, width * 0.45)));
    const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": what.label });
    const positive = ([, y]) => Number.isFinite(y) && (!what.log || y > 0);
    const series = what.series.map((line) => ({ ...line, points: line.points.filter(positive) })).filter((line) => line.points.length);
    if (series.length === 0) {
      svg.append(s("text", { x: width / 2, y: height / 2, class: "axis-text", "text-anchor": "middle" }, what.empty));
      this.scale = null;
      node.replaceChildren(svg, this.tip);
      return;
    }
    const levels = what.levels.filter(({ y }) => !what.log || y > 0);
    const [left, right, top, bottom] = [52, 12, 22, 40];
    let [x0, x1] = reduceExtent(series, 0);
    let [y0, y1] = extent([...reduceExtent(series, 1), ...levels.map(({ y }) => y)]);
    if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
    if (what.log) {
      const room = Math.max((y1 / y0) ** 0.04, 1.01);
      [y0, y1] = [y0 / room, y1 * room];
    } else {
      const room = (y1 - y0) * 0.04 || Math.abs(y0) * 0.1 || 1;
      [y0, y1] = [y0 - (y0 >= 0 ? Math.min(room, y0) : room), y1 + room];
    }
    const onY = what.log ? Math.log : (y) => y;
    const toX = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
    const toY = (y) => top + ((onY(y1) - onY(y)) / (onY(y1) - onY(y0))) * (height - top - bottom);
    for (const tick of (what.log ? logTicks : ticks)(y0, y1, height / 50)) {
      const y = Math.round(toY(tick)) + 0.5;
      svg.append(s("line", { x1: left, x2: width - right, y1: y, y2: y, class: "grid" }),
        s("text", { x: left - 8, y: y + 4, class: "axis-text", "text-anchor": "end" }, short(tick)));
    }
    for (const tick of ticks(x0, x1, width / 90)) {
      const x = toX(tick);
      svg.append(s("text", { x, y: height - bottom + 18, class: "axis-text", "text-anchor": "middle" }, short(tick)));
    }
    svg.append(
      s("text", { x: left, y: 12, class: "axis-text" }, what.yLabel + (what.log ? ", logarithmic" : "")),
      s("text", { x: width - right, y: height - 4, class: "axis-text", "text-anchor": "end" }, what.xLabel));
    for (const { y, name } of levels) {
      svg.append(s("line", { x1: left, x2: width - right, y1: toY(y), y2: toY(y), class: "level" }),
        s("text", { x: left + 6, y: toY(y) - 5, class: "axis-text" }, name));
    }
    for (const { look, points, thin, dots } of series) {
      const shown = thinned(points, toX, width);
      const path = shown.map(([x, y]) => `${toX(x).toFixed(1)},${toY(y).toFixed(1)}`).join(" ");
      svg.append(s("polyline", { points: path, ...strokeOf(look, thin) }));
      if (dots && shown.length < width / 8) {
        svg.append(...shown.map(([x, y]) => s("circle", { cx: toX(x).toFixed(1), cy: toY(y).toFixed(1), r: 3, class: `dot ${inkOf(look)}` })));
      }
    }
    this.cross = s("line", { y1: top, y2: height - bottom, class: "cross", visibility: "hidden" });
    svg.append(this.cross);
    this.scale = { toX, x0, x1, left, right, width, series, bottom: height - bottom };
    node.replaceChildren(svg, this.tip);
  }

  #unpoint() {
    this.tip.hidden = true;
    this.cross?.setAttribute("visibility", "hidden");
  }

  #point(event) {
    const { scale } = this;
    if (!scale) return;
    const { left: offset } = this.node.getBoundingClientRect();
    const { toX, x0, x1, left, right, width, series } = scale;
    const share = (event.clientX - offset - left) / (width - left - right);
    if (share < -0.02 || share > 1.02) return this.#unpoint();
    const wanted = x0 + share * (x1 - x0);
    const found = series.map((line) => ({ line, point: nearest(line.points, wanted) }));
    const x = found.map(({ point }) => point[0]).reduce((a, b) => (Math.abs(a - wanted) <= Math.abs(b - wanted) ? a : b));
    this.cross.setAttribute("x1", toX(x));
    this.cross.setAttribute("x2", toX(x));
    this.cross.setAttribute("visibility", "visible");
    this.tip.replaceChildren(
      h("div", { class: "soft" }, `${this.what.xLabel} ${short(x)}`),
      ...found.filter(({ point }) => point[0] === x).map(({ line, point }) =>
        h("div", {}, swatch(line.look, line.thin), ` ${line.name}: ${short(point[1])}`)));
    this.tip.hidden = false;
    const room = width - this.tip.offsetWidth - 8;
    this.tip.style.left = `${Math.max(0, toX(x) + 12 > room ? toX(x) - 12 - this.tip.offsetWidth : toX(x) + 12)}px`;
  }
}

/** The point whose x is nearest, by bisection. */
function nearest(points, x) {
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= x) low = middle;
    else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}

const DASHES = [null, "10 4", "2 4", "10 4 2 4"];
const inkOf = (look) => `ink${look % 7}`;

/** Seven colours and four dashes have no common divisor, so a second round of the colours has other dashes. */
const strokeOf = (look, thin) => ({
  class: `line ${inkOf(look)}${thin ? " thin" : ""}`, "stroke-dasharray": thin ? null : DASHES[look % DASHES.length],
});

/** A short piece of a series' line. */
export const swatch = (look, thin = false) =>
  s("svg", { class: "swatch", width: 28, height: 10, "aria-hidden": "true" },
    s("line", { x1: 1, x2: 27, y1: 5, y2: 5, ...strokeOf(look, thin) }));

/** Bars of surprisal and a line of entropy, in bits, one of each for every token. */
export function surpriseChart(width, tokens, marked) {
  const [left, top, height, bottom] = [28, 6, 110, 6];
  const most = Math.max(1, ...tokens.map((token) => Math.max(token.surprisal, token.entropy)));
  const across = (width - left) / tokens.length;
  const toY = (value) => top + (1 - value / most) * (height - top - bottom);
  const mean = (key) => (tokens.reduce((sum, token) => sum + token[key], 0) / tokens.length).toFixed(2);
  const largest = Math.max(...tokens.map(({ surprisal }) => surprisal)).toFixed(2);
  const label = `Surprisal of ${tokens.length} tokens: ${mean("surprisal")} bits on average, ${largest} at most; `
    + `the entropy was ${mean("entropy")} bits on average`;
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of ticks(0, most, 3)) {
    svg.append(s("line", { x1: left, x2: width, y1: toY(tick), y2: toY(tick), class: "grid" }),
      s("text", { x: left - 6, y: toY(tick) + 4, class: "axis-text", "text-anchor": "end" }, short(tick)));
  }
  tokens.forEach(({ surprisal, shade }, n) => svg.append(s("rect", {
    x: (left + n * across).toFixed(2), width: Math.max(0.5, across - (across > 4 ? 1 : 0)).toFixed(2),
    y: toY(surprisal).toFixed(2), height: (toY(0) - toY(surprisal)).toFixed(2), class: `surprise ${shade}${n === marked ? " marked" : ""}`,
  })));
  const line = tokens.map(({ entropy }, n) => `${(left + (n + 0.5) * across).toFixed(1)},${toY(entropy).toFixed(1)}`).join(" ");
  svg.append(s("polyline", { points: line, class: "line entropy" }));
  return svg;
}
