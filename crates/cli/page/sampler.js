// The sampler: the distribution of one next token, as the rules shape it.

import { aborted, post } from "./api.js";
import { bits, byId, debounce, h, integer, percent, setData, showError, visible } from "./dom.js";
import { Lesson } from "./inverse.js";
import { rulesCard } from "./rules.js";
import { RULES, contextText, onChange, rules, state, update } from "./state.js";

const DRAWS = 1000;
const FEW = 20;
const MANY = 100;
// The lesson draws a bar for each kept token, up to so many.
const MOST_BARS = 2000;
const RULE_NAMES = { top_k: "top-k", top_p: "top-p", min_p: "min-p" };

let lesson;
let rows = [];
let limit = FEW;
let pending = null;
let stale = true;
let sample = 0;
let playing = false;
let next = null;

export function startSampler({ model, defaults }) {
  rulesCard(byId("sampler-rules"), "sampler", { maxTokens: false, defaults });
  lesson = new Lesson({ chart: byId("lesson-chart"), said: byId("lesson-said"), draws: byId("lesson-draws") });
  const context = byId("context");
  const show = () => context.value !== contextText() && (context.value = contextText());
  context.addEventListener("input", () => update({ context: context.value }));
  byId("more").addEventListener("click", () => {
    limit = limit === FEW ? MANY : FEW;
    refresh();
  });
  byId("lesson-step").addEventListener("click", () => {
    play(false);
    step();
  });
  byId("lesson-play").addEventListener("click", () => play(!playing));
  byId("lesson-reset").addEventListener("click", () => {
    play(false);
    sample = 0;
    lesson.clear();
  });
  const soon = debounce(() => refresh(), 120);
  onChange((changed) => {
    if (changed.has("context") || changed.has("prompt")) show();
    if (["context", "prompt", "model", ...RULES].some((key) => changed.has(key))) stale = true;
    if (state.tab !== "sampler") play(false);
    if (state.tab === "sampler" && stale) soon();
  });
  show();

  async function refresh() {
    if (!model()) return;
    stale = false;
    pending?.abort();
    const mine = new AbortController();
    pending = mine;
    try {
      const answer = await ask({ limit, draws: DRAWS }, mine.signal);
      showError(byId("sampler-error"), null);
      next = answer;
      showFigures(answer);
      showRows(answer);
      // A rule moved: the bars are others, and the draws begin again.
      sample = 0;
      const named = answer.tokens.filter((token) => token.p_kept > 0).length;
      const whole = answer.kept <= named ? answer
        : await ask({ limit: Math.min(answer.vocab_size, MOST_BARS), draws: 0 }, mine.signal);
      lesson.setDistribution(whole);
    } catch (error) {
      if (aborted(error)) return;
      stale = true;
      play(false);
      showError(byId("sampler-error"), error);
    } finally {
      if (pending === mine) pending = null;
    }
  }
}

const ask = (more, signal) =>
  post("/api/next", { model: state.model, prompt: contextText(), ...rules(), sample: 0, ...more }, signal);

function showFigures(answer) {
  const figure = (name, id, value, shown, why) => {
    const data = h("data", { id: `figure-${id}` });
    setData(data, value, shown);
    return h("div", {}, h("dt", {}, name), h("dd", {}, data, h("small", {}, why)));
  };
  const token = ({ text }) => visible(text);
  const { draw, argmax } = answer;
  byId("sampler-figures").replaceChildren(
    figure("Kept tokens", "kept", answer.kept, integer(answer.kept), `of ${integer(answer.vocab_size)}`),
    figure("Kept mass", "mass", answer.kept_mass, percent(answer.kept_mass), "of the probability"),
    figure("Entropy before", "before", answer.entropy_before, `${bits(answer.entropy_before).toFixed(2)} bits`, "the model's own"),
    figure("Entropy after", "after", answer.entropy_after, `${bits(answer.entropy_after).toFixed(2)} bits`, "after the rules"),
    figure("Most probable", "argmax", argmax.id, token(argmax), "what greedy takes"),
    figure("Drawn", "draw", draw.id, token(draw), `at ${draw.uniform.toFixed(4)}, by seed ${state.seed}`),
  );
}

/** The cells of one row, which stay while its numbers change, so that the bars move. */
function newRow() {
  const data = () => h("data");
  const part = (name) => h("span", { class: name });
  const row = {
    name: h("span", { class: "mono" }), tag: h("span", { class: "tag" }),
    kept: data(), tempered: data(), plain: data(), drawn: data(), expected: data(),
    barTempered: part("bar-tempered"), barKept: part("bar-kept"), tick: part("bar-plain"), dot: part("bar-drawn"),
  };
  const cell = (child, classes) => h("td", { class: classes }, child);
  row.node = h("tr", {}, h("th", { scope: "row" }, row.name, row.tag),
    h("td", { class: "bars" }, h("div", { class: "bar", "aria-hidden": "true" }, row.barTempered, row.barKept, row.tick, row.dot)),
    cell(row.kept), cell(row.tempered, "more"), cell(row.plain, "more"), cell(row.drawn), cell(row.expected, "more"));
  return row;
}

function showRows(answer) {
  const { tokens, rest, draws, draw } = answer;
  const body = byId("distribution").tBodies[0];
  while (rows.length < tokens.length) {
    rows.push(newRow());
    body.append(rows.at(-1).node);
  }
  for (const extra of rows.splice(tokens.length)) extra.node.remove();
  // The longest bar is as long as there is room for.
  const most = Math.max(...tokens.flatMap((token) => [token.p, token.p_tempered, token.p_kept, token.count / draws]));
  const length = (p) => `${(100 * p) / most}%`;
  tokens.forEach((token, n) => {
    const row = rows[n];
    row.node.className = token.cut_by ? "cut" : token.id === draw.id ? "own" : "";
    row.node.dataset.id = token.id;
    row.node.dataset.logit = token.logit;
    row.node.dataset.cut = token.cut_by ?? "";
    row.name.textContent = visible(token.text);
    row.tag.textContent = token.id === draw.id ? "drawn" : "";
    row.barTempered.style.inlineSize = length(token.p_tempered);
    row.barKept.style.inlineSize = length(token.p_kept);
    row.tick.style.insetInlineStart = length(token.p);
    row.dot.style.insetInlineStart = length(token.count / draws);
    row.dot.hidden = token.count === 0;
    showNumbers(row, token, draws);
  });
  byId("at-temperature").textContent = `At T = ${state.temperature.toFixed(2)}`;
  showRest(body, rest, draws);
  byId("more").hidden = answer.vocab_size <= FEW;
  byId("more").textContent = limit === FEW ? "Show more tokens" : "Show fewer tokens";
}

function showNumbers(row, token, draws) {
  setData(row.kept, token.p_kept, token.cut_by ? `cut by ${RULE_NAMES[token.cut_by] ?? token.cut_by}` : percent(token.p_kept));
  setData(row.tempered, token.p_tempered, percent(token.p_tempered));
  setData(row.plain, token.p, percent(token.p));
  setData(row.drawn, token.count, integer(token.count));
  setData(row.expected, token.p_kept * draws, (token.p_kept * draws).toFixed(1));
}

function showRest(body, rest, draws) {
  body.querySelector(".rest")?.remove();
  if (rest.tokens === 0) return;
  body.append(h("tr", { class: "rest" }, h("th", { scope: "row", colspan: 2 }, `${integer(rest.tokens)} more tokens together`),
    h("td", {}, rest.p_kept === 0 ? "–" : percent(rest.p_kept)), h("td", { class: "more" }), h("td", { class: "more" }, percent(rest.p)),
    h("td", {}, integer(rest.count)), h("td", { class: "more" }, (rest.p_kept * draws).toFixed(1))));
}

/** One draw: the number of sequence `sample`, the next of which is another number at the same position. */
async function step() {
  if (!next) return false;
  const [mine, from] = [sample, next];
  sample += 1;
  try {
    const { draw } = await ask({ sample: mine, limit: 1, draws: 0 });
    // A rule that moved meanwhile has changed what is drawn from.
    if (next === from) await lesson.show(draw);
    return true;
  } catch (error) {
    showError(byId("sampler-error"), error);
    return false;
  }
}

// A loop of draws ends where another one, or a pause, has begun since.
let loops = 0;

async function play(on) {
  if (on === playing) return;
  playing = on;
  loops += 1;
  const mine = loops;
  byId("lesson-play").textContent = on ? "Pause" : "Play";
  while (playing && loops === mine) {
    if (!(await step())) return play(false);
    await new Promise((resolve) => setTimeout(resolve, 700));
  }
}
