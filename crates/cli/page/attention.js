// Attention: for a text, a layer and a head, what each token looks at.

import { aborted, post } from "./api.js";
import { byId, debounce, h, percent, s, showError, visible } from "./dom.js";
import { attentionText, onChange, state, update } from "./state.js";
import { TokenText } from "./tokens.js";

// Pixels of a cell below which the names beside the map would overlap, and the room that they take.
const LEAST_NAMED = 11;
const ROOM = 76;
const LISTED = 8;

let text;
let answer = null;
let pending = null;
let stale = true;
let model;

export function startAttention(context) {
  model = context.model;
  text = new TokenText(byId("attention-tokens"), "The tokens. The arrow keys choose the one that looks.", showToken);
  const input = byId("attention-text");
  const show = () => input.value !== attentionText() && (input.value = attentionText());
  input.addEventListener("input", () => update({ text: input.value }));
  for (const key of ["layer", "head"]) byId(key).addEventListener("change", () => update({ [key]: Number(byId(key).value) }));
  const soon = debounce(refresh, 150);
  onChange((changed) => {
    if (changed.has("text") || changed.has("prompt")) show();
    if (changed.has("model") || changed.has("layer") || changed.has("head")) fillChoices();
    if (["text", "prompt", "model", "layer", "head"].some((key) => changed.has(key))) stale = true;
    if (state.tab === "attention" && stale) soon();
  });
  show();
  new ResizeObserver(drawMap).observe(byId("map"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
}

function fillChoices() {
  const of = model();
  if (!of) return;
  for (const [id, count, key] of [["layer", of.n_layer, "layer"], ["head", of.n_head, "head"]]) {
    const select = byId(id);
    if (select.options.length !== count) {
      select.replaceChildren(...Array.from({ length: count }, (_, n) => h("option", { value: n }, `${n + 1} of ${count}`)));
    }
    // A model with fewer layers than the one before, or an address, may ask for one that is not there.
    if (state[key] >= count) update({ [key]: 0 });
    select.value = state[key];
  }
}

async function refresh() {
  if (!model()) return;
  stale = false;
  pending?.abort();
  const empty = attentionText() === "";
  byId("attention-empty").hidden = !empty;
  if (empty) {
    answer = null;
    byId("attention-body").hidden = true;
    return showError(byId("attention-error"), null);
  }
  const mine = new AbortController();
  pending = mine;
  try {
    const { layer, head } = state;
    answer = await post("/api/attention", { model: state.model, text: attentionText(), layer, head }, mine.signal);
    showError(byId("attention-error"), null);
    byId("attention-body").hidden = false;
    const was = text.selected;
    const same = sameTokens(answer.tokens);
    text.truncate(0);
    answer.tokens.forEach((token) => (text.add(token.text, "weighed").dataset.id = token.id));
    // Another head of the same text keeps the token that was chosen.
    text.select(same && was >= 0 ? was : answer.tokens.length - 1);
  } catch (error) {
    if (aborted(error)) return;
    stale = true;
    answer = null;
    byId("attention-body").hidden = true;
    showError(byId("attention-error"), error);
  }
}

const sameTokens = (tokens) =>
  tokens.length === text.buttons.length && tokens.every(({ id }, n) => String(id) === text.buttons[n].dataset.id);

/** Bars behind the tokens that this one looked at, and the largest of them as a list. */
function showToken(index) {
  const row = answer?.weights[index];
  if (!row) return;
  const most = Math.max(...row);
  text.buttons.forEach((button, n) => {
    button.style.setProperty("--weight", n <= index ? `${((100 * row[n]) / most).toFixed(1)}%` : "0%");
    button.classList.toggle("later", n > index);
  });
  const name = (n) => visible(answer.tokens[n].text);
  byId("looked-title").replaceChildren(h("span", { class: "mono" }, name(index)), ` (position ${index}) looked at`);
  const order = row.map((weight, n) => ({ weight, n })).sort((a, b) => b.weight - a.weight || a.n - b.n).slice(0, LISTED);
  byId("looked").replaceChildren(...order.map(({ weight, n }) => {
    const fill = h("span", { class: "fill" });
    fill.style.inlineSize = `${(100 * weight) / most}%`;
    return h("li", { class: "row" }, h("span", { class: "name mono" }, name(n)), h("span", { class: "track" }, fill),
      h("data", { class: "value", value: weight }, percent(weight)));
  }));
  drawMap();
}

/** The map, on a canvas since a text of 256 tokens has 32,896 weights; the names and the frame are SVG over it. */
function drawMap() {
  const node = byId("map");
  if (!answer || node.clientWidth === 0) return;
  const { tokens, weights } = answer;
  const n = tokens.length;
  const cellBeside = (room) => Math.max(1, Math.floor(Math.min(30, (node.clientWidth - room - 4) / n)));
  const names = cellBeside(ROOM) >= LEAST_NAMED;
  const room = names ? ROOM : 4;
  const cell = cellBeside(room);
  const size = cell * n;
  const ratio = devicePixelRatio || 1;
  const canvas = h("canvas", { width: Math.round(size * ratio), height: Math.round(size * ratio), "aria-hidden": "true" });
  Object.assign(canvas.style, { inlineSize: `${size}px`, blockSize: `${size}px`, insetInlineStart: `${room}px`, insetBlockStart: `${room}px` });
  const paint = canvas.getContext("2d");
  paint.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  paint.fillStyle = style.getPropertyValue("--heat");
  weights.forEach((row, i) => row.forEach((weight, j) => {
    paint.globalAlpha = Math.sqrt(weight);
    paint.fillRect(j * cell, i * cell, cell, cell);
  }));
  const [width, height] = [size + room + 2, size + room + 2];
  const over = s("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Attention of ${n} tokens, layer ${state.layer + 1}, head ${state.head + 1}. The tokens beside it can be chosen one by one.`,
  });
  const at = (k) => room + k * cell;
  over.append(s("path", { d: staircase(n, cell, room), class: "frame" }));
  if (names) {
    const cut = (k) => (visible(tokens[k].text).length > 10 ? `${visible(tokens[k].text).slice(0, 9)}…` : visible(tokens[k].text));
    for (let k = 0; k < n; k += 1) {
      const [x, y] = [at(k) + cell / 2, room - 5];
      const classes = k === text.selected ? "axis-text mono bold" : "axis-text mono";
      over.append(s("text", { x: room - 5, y: at(k) + cell / 2 + 4, "text-anchor": "end", class: classes }, cut(k)),
        s("text", { x, y, transform: `rotate(-60 ${x} ${y})`, class: "axis-text mono" }, cut(k)));
    }
  }
  if (text.selected >= 0) {
    over.append(s("rect", { x: room, y: at(text.selected), width: cell * (text.selected + 1), height: cell, class: "chosen-row" }));
  }
  const cellAt = (event) => {
    const box = over.getBoundingClientRect();
    const [i, j] = [event.clientY - box.top, event.clientX - box.left].map((pixel) => Math.floor((pixel - room) / cell));
    return i >= 0 && i < n && j >= 0 && j <= i ? [i, j] : null;
  };
  over.addEventListener("click", (event) => cellAt(event) && text.select(cellAt(event)[0]));
  over.addEventListener("pointermove", (event) => {
    const [i, j] = cellAt(event) ?? [];
    const name = (k) => visible(tokens[k].text);
    byId("map-said").textContent = i === undefined ? "" : `${name(i)} → ${name(j)}: ${percent(weights[i][j])}`;
  });
  node.style.blockSize = `${height}px`;
  node.replaceChildren(canvas, over);
}

/** The outline of the lower triangle. */
function staircase(n, cell, room) {
  let path = `M${room} ${room}`;
  for (let k = 0; k < n; k += 1) path += `H${room + (k + 1) * cell}V${room + (k + 1) * cell}`;
  return `${path}H${room}Z`;
}
