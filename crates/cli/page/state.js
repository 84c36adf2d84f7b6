// What the views share, and its copy in the address, so that a reload or a link shows the same again.

export const TABS = ["playground", "sampler", "runs", "attention"];

// `null` is "not chosen yet": a model's own defaults, or the text of the playground, hold in its place.
const INITIAL = {
  tab: "playground",
  model: null,
  prompt: "Once",
  context: null,
  text: null,
  temperature: null,
  top_k: null,
  top_p: null,
  min_p: null,
  seed: 1,
  max_tokens: null,
  layer: 0,
  head: 0,
};
const WHOLE = new Set(["top_k", "seed", "max_tokens", "layer", "head"]);
const NUMBERS = new Set([...WHOLE, "temperature", "top_p", "min_p"]);
// A longer text stays out of the address.
const LONGEST_TEXT = 1500;

export const state = { ...INITIAL };

/** The sampling rules of a request; the server's names. */
export const RULES = ["temperature", "top_k", "top_p", "min_p", "seed"];
export const rules = () => Object.fromEntries(RULES.map((key) => [key, state[key]]));
export const contextText = () => state.context ?? state.prompt;
export const attentionText = () => state.text ?? state.prompt;

const listeners = [];

/** Calls `f(changed)` after each change, with the set of keys that changed. */
export const onChange = (f) => listeners.push(f);

/** Tells the listeners of keys, as if they had changed. */
export function announce(keys) {
  for (const listener of listeners) listener(new Set(keys));
}

/** Changes some keys, tells the listeners, and keeps the address up to date. */
export function update(changes) {
  const changed = new Set(Object.keys(changes).filter((key) => state[key] !== changes[key]));
  if (changed.size === 0) return;
  Object.assign(state, changes);
  writeAddress(changed.has("tab"));
  announce(changed);
}

let timer = 0;

/** Browsers refuse more than some 200 changes of the address in 30 s, which a slider would be. */
function writeAddress(newPage) {
  if (newPage) return history.pushState(null, "", address());
  timer ||= setTimeout(() => {
    timer = 0;
    history.replaceState(null, "", address());
  }, 300);
}

function address() {
  const kept = Object.entries(state).filter(
    ([key, value]) => key !== "tab" && value !== INITIAL[key] && value !== null && String(value).length <= LONGEST_TEXT,
  );
  const query = new URLSearchParams(kept).toString();
  return `#${state.tab}${query && `?${query}`}`;
}

/** Takes over what the address says. What it leaves out, or what is no number where one must be, is as at first. */
export function readAddress() {
  const [tab, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
  const read = { ...INITIAL, tab: TABS.includes(tab) ? tab : INITIAL.tab };
  for (const [key, value] of new URLSearchParams(query)) {
    if (!Object.hasOwn(INITIAL, key) || key === "tab") continue;
    const number = Number(value);
    if (!NUMBERS.has(key)) read[key] = value;
    else if (value !== "" && number >= 0 && (WHOLE.has(key) ? Number.isSafeInteger(number) : Number.isFinite(number))) read[key] = number;
  }
  const changed = new Set(Object.keys(read).filter((key) => state[key] !== read[key]));
  Object.assign(state, read);
  announce(changed);
}
