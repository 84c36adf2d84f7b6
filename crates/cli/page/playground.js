// The playground: a text as it is made, and what the model thought at each of its tokens.

import { aborted, stream } from "./api.js";
import { surpriseChart } from "./chart.js";
import { bits, byId, h, integer, percent, setData, showError, visible } from "./dom.js";
import { rulesCard } from "./rules.js";
import { RULES, onChange, rules, state, update } from "./state.js";
import { TokenText, shadeLegend, shadeOf } from "./tokens.js";

let models;
let text;
// What the text is: `{ text, kind: "prompt" | "chosen" | "drawn", ... }`, with the server's figures of all but the prompt.
let tokens = [];
let running = null;

/** Sets the view up. `model()` is the model that is chosen, `defaults()` its rules. */
export function startPlayground({ model, defaults }) {
  models = model;
  rulesCard(byId("playground-rules"), "playground", { maxTokens: true, defaults });
  text = new TokenText(byId("text-tokens"), "The text. The arrow keys move from token to token.", showToken);
  shadeLegend(byId("shades"));
  const prompt = byId("prompt");
  const showPrompt = () => prompt.value !== state.prompt && (prompt.value = state.prompt);
  prompt.addEventListener("input", () => update({ prompt: prompt.value }));
  byId("generate").addEventListener("click", () => generate([], state.prompt));
  byId("stop").addEventListener("click", stop);
  byId("playground").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      generate([], state.prompt);
    } else if (event.key === "Escape") {
      if (running) stop();
      else if (text.selected >= 0) closeToken();
    }
  });
  byId("shade").addEventListener("change", shade);
  byId("copy").addEventListener("click", copy);
  byId("to-sampler").addEventListener("click", toSampler);
  byId("to-attention").addEventListener("click", () => {
    update({ tab: "attention", text: before(tokens.length) });
    byId("tab-attention").focus();
  });
  byId("token-close").addEventListener("click", closeToken);
  new ResizeObserver(drawSurprise).observe(byId("text"));
  onChange((changed) => {
    if (changed.has("prompt")) showPrompt();
    if (["prompt", "model", "max_tokens", ...RULES].some((key) => changed.has(key))) showCommand(state.prompt);
  });
  showPrompt();
  shade();
  showCommand(state.prompt);
}

const stop = () => running?.abort();

/** Generates after `kept`, tokens that stay as they are; `prompt` is the text that the model goes on from. */
async function generate(kept, prompt) {
  stop();
  if (!models()) return;
  const mine = new AbortController();
  running = mine;
  const began = performance.now();
  let drawn = 0;
  let ended = null;
  tokens = kept;
  text.truncate(kept.length);
  showError(byId("generate-error"), null);
  showCommand(prompt);
  working(true);
  try {
    const body = { model: state.model, prompt, max_tokens: state.max_tokens, ...rules(), sample: 0, stop: [], top: 10 };
    for await (const event of stream("/api/generate", body, mine.signal)) {
      // What a newer request has replaced may still arrive.
      if (running !== mine) return;
      if (event.prompt) {
        if (kept.length === 0) event.prompt.forEach((token) => addToken({ ...token, kind: "prompt" }));
      } else if (event.ended_by) {
        ended = event.ended_by;
        // Text that was held back, since it might have become a stop or a character.
        if (event.piece && drawn > 0) tokens.at(-1).piece += event.piece;
      } else {
        drawn += 1;
        addToken({ ...event, kind: "drawn" });
      }
    }
  } catch (error) {
    if (running !== mine) return;
    if (aborted(error)) ended = "you";
    else showError(byId("generate-error"), error);
  }
  if (running !== mine) return;
  running = null;
  working(false);
  byId("generate-status").textContent = ended === null ? "" : summary(drawn, ended, (performance.now() - began) / 1000);
  drawSurprise();
}

const ENDS = { stop: "ended by the model", length: "as long as asked for", grammar: "ended by the grammar", you: "stopped" };

function summary(drawn, ended, seconds) {
  const count = `${integer(drawn)} token${drawn === 1 ? "" : "s"}`;
  if (drawn === 0) return `${count}, ${ENDS[ended] ?? ended}`;
  const mean = tokens.slice(-drawn).reduce((sum, token) => sum + bits(-token.logprob), 0) / drawn;
  return `${count}, ${ENDS[ended] ?? ended}: ${mean.toFixed(2)} bits a token, ${integer(drawn / seconds)} tokens/s`;
}

function working(busy) {
  byId("stop").disabled = !busy;
  byId("text").setAttribute("aria-busy", String(busy));
  if (busy) byId("generate-status").textContent = "Generating…";
}

function addToken(token) {
  byId("text-empty").hidden = true;
  byId("to-attention").hidden = false;
  tokens.push(token);
  if (token.kind === "prompt") return text.add(token.text, "prompt");
  const surprisal = bits(-token.logprob);
  text.add(token.text, `${token.kind} ${shadeOf(surprisal)}`, `${visible(token.text)}, ${surprisal.toFixed(1)} bits`);
}

const shade = () => byId("text").classList.toggle("shaded", byId("shade").checked);

/** The text before token `index`, as the server would be given it. */
const before = (index) => tokens.slice(0, index).map((token) => token.piece ?? token.text).join("");

function showToken(index) {
  const token = tokens[index];
  byId("token-detail").hidden = !token?.top;
  byId("token").classList.toggle("open", token !== undefined);
  byId("token-title").replaceChildren("Token", ...(token ? [" ", h("span", { class: "mono" }, visible(token.text))] : []));
  drawSurprise();
  const words = { prompt: "A part of the prompt: the model did not draw it.", chosen: "You chose it in the model's place." };
  byId("token-empty").textContent = token ? words[token.kind] ?? "" : "No token is chosen.";
  byId("token-empty").hidden = token?.kind === "drawn";
  if (!token?.top) return;
  const figure = (name, value, shown, why) => {
    const data = h("data");
    setData(data, value, shown);
    return h("div", {}, h("dt", {}, name), h("dd", {}, data, why && h("small", {}, why)));
  };
  byId("token-figures").replaceChildren(
    figure("Probability", Math.exp(token.logprob), percent(Math.exp(token.logprob))),
    figure("Rank", token.rank, integer(token.rank), `of ${integer(models().vocab_size)}`),
    figure("Surprisal", bits(-token.logprob), `${bits(-token.logprob).toFixed(2)} bits`),
    figure("Entropy", bits(token.entropy), `${bits(token.entropy).toFixed(2)} bits`, "the surprise it expected"),
  );
  byId("alternatives").replaceChildren(...token.top.map((other) => alternative(index, token, other)));
}

function alternative(index, token, other) {
  const p = Math.exp(other.logprob);
  const drawn = other.id === token.id;
  const fill = h("span", { class: "fill" });
  fill.style.inlineSize = `${100 * Math.exp(other.logprob - token.top[0].logprob)}%`;
  // A piece of a character cannot be said in a prompt.
  const sayable = !other.text.includes("\ufffd") && other.text !== "";
  return h("li", {}, h("button", {
    type: "button", class: drawn ? "own" : "", disabled: !sayable, onclick: () => goOn(index, other),
    "aria-label": `Go on with ${visible(other.text)}, ${percent(p)}${drawn ? ", the one that is there" : ""}`,
  }, h("span", { class: "name mono" }, visible(other.text)), h("span", { class: "track" }, fill),
    h("data", { class: "value", value: p }, percent(p))));
}

/** Goes on from before token `index` with another in its place. */
function goOn(index, other) {
  const prompt = before(index) + other.text;
  const { entropy, top } = tokens[index];
  stop();
  text.truncate(index);
  tokens = tokens.slice(0, index);
  addToken({ ...other, piece: other.text, rank: top.indexOf(other) + 1, entropy, top, kind: "chosen" });
  text.select(index);
  // The button that was pressed is gone.
  text.buttons[index].focus({ preventScroll: true });
  generate(tokens, prompt);
}

function toSampler() {
  update({ tab: "sampler", context: before(text.selected) });
  byId("tab-sampler").focus();
}

/** Chooses no token, and leaves the keyboard where the token was. */
function closeToken() {
  const button = text.buttons[text.selected];
  text.select(-1);
  button?.focus();
}

function drawSurprise() {
  const drawn = tokens.filter((token) => token.top);
  byId("surprise").hidden = drawn.length < 2 || running !== null;
  if (byId("surprise").hidden) return;
  const node = byId("surprise-chart");
  const marked = drawn.indexOf(tokens[text.selected]);
  node.replaceChildren(surpriseChart(node.clientWidth, drawn.map((token) => ({
    surprisal: bits(-token.logprob), entropy: bits(token.entropy), shade: shadeOf(bits(-token.logprob)),
  })), marked));
}

const quote = (text) => (/^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function showCommand(prompt) {
  const { seed, temperature, top_k, top_p, min_p, max_tokens } = state;
  const said = quote(prompt);
  byId("command").textContent = [
    "tinygpt generate", `--checkpoint ${quote(models()?.path ?? "RUN")}`,
    // A prompt that begins like an option is taken for one, unless it is joined to its own.
    ...(prompt === "" ? [] : [prompt.startsWith("-") ? `--prompt=${said}` : `--prompt ${said}`]),
    `--seed ${seed}`, `--temperature ${temperature ?? 1}`, `--top-k ${top_k ?? 0}`, `--top-p ${top_p ?? 1}`,
    ...(min_p ? [`--min-p ${min_p}`] : []), `--max-new-tokens ${max_tokens ?? 0}`,
  ].join(" ");
}

async function copy() {
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    button.textContent = "Copied";
  } catch {
    // Without the right to write, the text is selected, for Ctrl+C.
    getSelection().selectAllChildren(byId("command"));
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
