// The lesson of the inverse CDF: a uniform number chooses a height, and the bar that it meets is the token.

import { calm, h, percent, s, visible } from "./dom.js";

const HEIGHT = 280;
const [LEFT, RIGHT, TOP, BOTTOM] = [40, 10, 12, 34];
// Where the names of the tokens stand.
const NAMES = HEIGHT - BOTTOM + 17;
const MILLISECONDS = 1300;
// So many draws are listed.
const LISTED = 8;

export class Lesson {
  /** `nodes` are where the chart, the sentence and the list go. */
  constructor(nodes) {
    this.nodes = nodes;
    this.bars = [];
    this.shown = null;
    this.drawn = null;
    new ResizeObserver(() => this.#paint()).observe(nodes.chart);
  }

  /**
   * The distribution to draw from, an answer of `/api/next`. Where it names some of the kept tokens only, the others' share is
   * spread over the bars in proportion, so that these end near their true heights, and the last is at 1.
   */
  setDistribution(next) {
    const named = next.tokens.filter((token) => token.p_kept > 0).sort((a, b) => a.id - b.id);
    const total = named.reduce((sum, token) => sum + token.p_kept, 0) || 1;
    let from = 0;
    this.bars = named.map((token) => {
      const bar = { ...token, from, to: from + token.p_kept / total };
      from = bar.to;
      return bar;
    });
    this.missing = next.kept > named.length ? { tokens: next.kept - named.length, p: next.rest.p_kept } : null;
    this.clear();
  }

  /** Forgets the draws. */
  clear() {
    this.shown = null;
    this.nodes.draws.replaceChildren();
    this.nodes.said.textContent = this.missing
      ? `The ${this.bars.length} most probable of the kept tokens are drawn as bars; the other ${this.missing.tokens} share ${percent(this.missing.p)}.`
      : `${this.bars.length} token${this.bars.length === 1 ? " is" : "s are"} kept.`;
    this.#paint();
  }

  /** Shows a draw, `{ id, text, uniform, from, to }`; the promise is kept when it has been seen, or another one has replaced it. */
  show(draw) {
    this.shown = { draw, at: 0 };
    if (calm()) return Promise.resolve(this.#finish());
    const began = performance.now();
    return new Promise((resolve) => {
      const tick = (now) => {
        // Another draw, or another distribution, may have taken the place of this one.
        if (this.shown?.draw !== draw) return resolve();
        this.shown.at = Math.min(1, (now - began) / MILLISECONDS);
        if (this.shown.at >= 1) return resolve(this.#finish());
        this.#move();
        requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
    });
  }

  #finish() {
    const { draw } = this.shown;
    this.shown.at = 1;
    const [u, from, to] = [draw.uniform, draw.from, draw.to].map((x) => x.toFixed(4));
    this.nodes.said.textContent = `The number ${u} falls between ${from} and ${to}: the token is ${visible(draw.text)}`;
    this.nodes.draws.prepend(h("li", {}, h("data", { value: draw.uniform }, u), " → ", h("span", { class: "mono" }, visible(draw.text))));
    while (this.nodes.draws.children.length > LISTED) this.nodes.draws.lastChild.remove();
    this.#move();
  }

  /** Draws the bars, which stay while a draw moves over them. */
  #paint() {
    const width = this.nodes.chart.clientWidth;
    if (width === 0) return;
    const { bars } = this;
    const svg = s("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
    const across = (width - LEFT - RIGHT) / Math.max(1, bars.length);
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(s("line", { x1: LEFT, x2: width - RIGHT, y1: toY(tick), y2: toY(tick), class: "grid" }),
        s("text", { x: LEFT - 6, y: toY(tick) + 4, class: "axis-text", "text-anchor": "end" }, String(tick)));
    }
    const gap = across > 6 ? Math.min(4, across * 0.15) : 0;
    const named = across > 22;
    const pieces = bars.map((bar, n) => {
      const box = { x: LEFT + n * across + gap / 2, width: Math.max(0.3, across - gap) };
      const piece = s("rect", { ...box, y: toY(bar.to), height: Math.max(0.5, toY(bar.from) - toY(bar.to)), class: "piece" });
      const name = named ? nameOf(bar, LEFT + (n + 0.5) * across, across) : null;
      svg.append(...[s("rect", { ...box, y: toY(bar.from), height: toY(0) - toY(bar.from), class: "below" }), piece, name].filter(Boolean));
      return { piece, name };
    });
    const over = s("g");
    svg.append(over);
    this.drawn = { svg, over, pieces, across, named, width, hit: null };
    this.nodes.chart.replaceChildren(svg);
    this.#move();
  }

  /** The number rises to its height, goes across to the bar that it meets, and down to the token. */
  #move() {
    if (!this.drawn) return;
    const { svg, over, pieces, across, named, width, hit } = this.drawn;
    const said = this.shown?.at === 1 ? `; ${this.nodes.said.textContent}` : "";
    svg.setAttribute("aria-label", `Cumulative probabilities of ${this.bars.length} tokens${said}`);
    hit?.piece.classList.remove("hit");
    hit?.name?.classList.remove("bold");
    over.replaceChildren();
    if (!this.shown) return;
    const { draw, at } = this.shown;
    // The bar is found by its token, since one that is drawn in proportion may end a little before the true one.
    const met = this.bars.findIndex((bar) => bar.id === draw.id);
    const [rise, go, fall] = [ease(at / 0.3), ease((at - 0.3) / 0.35), ease((at - 0.65) / 0.25)];
    const height = toY(draw.uniform * rise);
    const target = met < 0 ? width - RIGHT : LEFT + (met + 0.5) * across;
    over.append(s("line", { x1: LEFT, x2: LEFT + (target - LEFT) * go, y1: height, y2: height, class: "ray" }));
    if (met >= 0 && fall > 0) {
      pieces[met].piece.classList.add("hit");
      pieces[met].name?.classList.add("bold");
      this.drawn.hit = pieces[met];
      over.append(s("line", { x1: target, x2: target, y1: height, y2: height + (toY(0) + 5 - height) * fall, class: "ray" }));
      if (at === 1 && !named) {
        const anchor = target < width / 4 ? "start" : target > (width * 3) / 4 ? "end" : "middle";
        over.append(s("text", { x: target, y: NAMES, class: "axis-text bold", "text-anchor": anchor }, visible(draw.text)));
      }
    }
    over.append(s("circle", { cx: LEFT, cy: height, r: 5, class: "number" }),
      s("text", { x: LEFT + 9, y: height < 21 ? height + 16 : height - 7, class: "axis-text bold halo" }, (draw.uniform * rise).toFixed(4)));
  }
}

const toY = (p) => TOP + (1 - p) * (HEIGHT - TOP - BOTTOM);
const ease = (t) => 1 - (1 - Math.min(1, Math.max(0, t))) ** 3;

/** The name below a bar, as much of it as there is room for. */
function nameOf(bar, x, across) {
  const room = Math.max(1, Math.floor(across / 7.5));
  const text = visible(bar.text);
  const cut = text.length > room ? `${text.slice(0, Math.max(1, room - 1))}…` : text;
  return s("text", { x, y: NAMES, class: "axis-text", "text-anchor": "middle" }, cut);
}
