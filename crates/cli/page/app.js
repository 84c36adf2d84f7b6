// The page of `tinygpt serve`: the views, the model, and what starts them.

import { get } from "./api.js";
import { startAttention } from "./attention.js";
import { byId, h, integer, showError } from "./dom.js";
import { startPlayground } from "./playground.js";
import { startRuns } from "./runs.js";
import { startSampler } from "./sampler.js";
import { TABS, announce, onChange, readAddress, state, update } from "./state.js";

// Milliseconds between two looks at the models, which `--reload` may have read again.
const EVERY = 15000;

let models = [];
const model = () => models.find(({ id }) => id === state.model) ?? null;

/** The sampling rules that a run was made for. */
function defaults() {
  const { temperature, top_k, top_p, max_new_tokens } = model()?.defaults ?? {};
  return { temperature: temperature ?? 1, top_k: top_k ?? 0, top_p: top_p ?? 1, min_p: 0, max_tokens: max_new_tokens ?? 100 };
}

/** Where the address names no model that is served, the first one is shown. */
function chooseModel() {
  if (models.length > 0 && model() === null) update({ model: models[0].id });
}

/** What nobody has chosen is as the model's run has it. */
function fillIn() {
  const unset = Object.entries(defaults()).filter(([key]) => state[key] === null);
  update(Object.fromEntries(unset));
}

function showTab() {
  for (const tab of TABS) {
    const on = tab === state.tab;
    byId(tab).hidden = !on;
    byId(`tab-${tab}`).setAttribute("aria-selected", String(on));
    byId(`tab-${tab}`).tabIndex = on ? 0 : -1;
  }
  const title = byId(`tab-${state.tab}`).textContent;
  document.title = `${title} – tinygpt`;
}

function startTabs() {
  for (const [n, tab] of TABS.entries()) {
    const button = byId(`tab-${tab}`);
    button.addEventListener("click", () => update({ tab }));
    button.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: n + TABS.length - 1, ArrowRight: n + 1, Home: 0, End: TABS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      update({ tab: TABS[to % TABS.length] });
      byId(`tab-${TABS[to % TABS.length]}`).focus();
    });
  }
}

function showModels() {
  const select = byId("model");
  const ids = models.map(({ id }) => id);
  if (ids.join("\n") !== [...select.options].map(({ value }) => value).join("\n")) {
    select.replaceChildren(...ids.map((id) => h("option", { value: id }, id)));
  }
  select.disabled = models.length < 2;
  if (state.model !== null) select.value = state.model;
  const of = model();
  byId("facts").textContent = of === null ? "" : [
    `${integer(of.parameters)} parameters`,
    // An n-gram model has no layers.
    of.n_layer === 0 ? null : `${of.n_layer} layers of ${of.n_head} heads`,
    `context ${integer(of.block_size)}`,
    `${integer(of.vocab_size)} tokens`, of.step === null ? null : `step ${integer(of.step)}`,
    of.val_loss === null ? null : `loss ${of.val_loss.toFixed(3)}`,
  ].filter((fact) => fact !== null).join(" · ");
}

/** Asks which models are served. */
async function readModels() {
  const { step } = model() ?? {};
  try {
    ({ models } = await get("/api/models"));
  } catch (error) {
    return showError(byId("trouble"), error);
  }
  const none = models.length === 0;
  showError(byId("trouble"), none
    ? "No model is served. Start with `tinygpt serve RUN`; `tinygpt train --config tiny` makes a run in 20 seconds."
    : null);
  chooseModel();
  fillIn();
  showModels();
  // The weights are newer than those of what is shown.
  if (step !== undefined && model()?.step !== step) announce(["model"]);
}

startTabs();
byId("model").addEventListener("change", () => update({ model: byId("model").value }));
readAddress();
const context = { model, defaults };
startPlayground(context);
startSampler(context);
startRuns();
startAttention(context);
onChange((changed) => {
  if (changed.has("tab")) {
    showTab();
    // The key may have been declined.
    if (models.length === 0) readModels();
  }
  if (changed.has("model")) showModels();
});
showTab();
addEventListener("popstate", () => {
  readAddress();
  chooseModel();
  fillIn();
});
await readModels();
announce(Object.keys(state));
setInterval(() => document.hidden || readModels(), EVERY);
