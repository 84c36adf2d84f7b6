// The sliders of the sampling rules. Two views show them, over one state.

import { h } from "./dom.js";
import { state, update, onChange } from "./state.js";

// The server takes no more.
const MAX_TOKENS = 65536;
const off = (value, at) => (value === at ? "off" : null);
const SLIDERS = [
  { key: "temperature", label: "Temperature", max: 2, step: 0.05, hint: "Divides the logits; 0 is greedy",
    say: (v) => (v === 0 ? "greedy" : v.toFixed(2)) },
  { key: "top_k", label: "Top-k", max: 100, step: 1, hint: "Keeps the k most probable tokens; 0 is off",
    say: (v) => off(v, 0) ?? String(v) },
  { key: "top_p", label: "Top-p", max: 1, step: 0.01, hint: "Keeps the smallest set of this probability; 1 is off",
    say: (v) => off(v, 1) ?? v.toFixed(2) },
  { key: "min_p", label: "Min-p", max: 1, step: 0.01, hint: "Keeps what has this share of the largest probability; 0 is off",
    say: (v) => off(v, 0) ?? v.toFixed(2) },
];

/** Fills a card with the sliders, the seed and, if asked for, the number of tokens. `id` begins the elements' ids. */
export function rulesCard(card, id, { maxTokens, defaults }) {
  const reset = h("button", { type: "button", class: "quiet", onclick: () => update(defaults()) }, "Reset");
  card.append(
    h("div", { class: "card-head" }, h("h2", {}, "Sampling"), reset),
    ...SLIDERS.map((slider) => sliderOf(slider, id)),
    numberOf("seed", "Seed", id, { min: 0, max: Number.MAX_SAFE_INTEGER },
      h("button", { type: "button", onclick: () => update({ seed: Math.floor(Math.random() * 1e6) }) }, "New")),
    ...(maxTokens ? [numberOf("max_tokens", "Tokens at most", id, { min: 1, max: MAX_TOKENS })] : []),
  );
}

function sliderOf({ key, label, max, step, hint, say }, id) {
  const output = h("output", { for: `${id}-${key}` });
  const input = h("input", {
    type: "range", id: `${id}-${key}`, min: 0, max, step, "aria-describedby": `${id}-${key}-hint`,
    oninput: () => update({ [key]: Number(input.value) }),
  });
  const show = () => {
    const value = state[key] ?? 0;
    // A value from a run or from the address may lie beyond the slider, which would move it.
    if (value > Number(input.max)) input.max = value;
    if (Number(input.value) !== value) input.value = value;
    // A range between two steps is set to the nearer one; the output says what holds.
    output.textContent = say(value);
    input.setAttribute("aria-valuetext", say(value));
    input.classList.toggle("off", say(value) === "off");
  };
  onChange((changed) => changed.has(key) && show());
  show();
  return h("div", { class: "slider" }, h("label", { for: input.id }, label), output, input,
    h("span", { class: "hint soft", id: `${id}-${key}-hint` }, hint));
}

function numberOf(key, label, id, { min, max }, beside = null) {
  const input = h("input", {
    type: "number", id: `${id}-${key}`, min, max, step: 1, inputmode: "numeric",
    oninput: () => input.value !== "" && input.checkValidity() && update({ [key]: Number(input.value) }),
    // What is no number in the range is taken back.
    onchange: () => show(),
  });
  const show = () => {
    if (input.value !== String(state[key])) input.value = state[key] ?? "";
  };
  onChange((changed) => changed.has(key) && show());
  show();
  return h("div", { class: "number" }, h("label", { for: input.id }, label), h("span", { class: "pair" }, input, beside));
}
