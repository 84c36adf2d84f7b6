// Elements, and numbers and texts as people read them. Nothing here or elsewhere writes HTML: texts of models are text nodes.

/** The element of this id. */
export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A new element: `h("p", { class: "soft", onclick: f }, "text", child)`. */
export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** A new element of SVG. */
export const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Shows a message where something went wrong, or hides it for `null`. */
export function showError(node, error) {
  const message = error === null ? "" : error.message ?? String(error);
  node.hidden = message === "";
  if (node.textContent !== message) node.textContent = message;
}

/** A function that calls `f` once it has not been called for this many milliseconds. */
export function debounce(f, milliseconds) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...args), milliseconds);
  };
}

/** Whether the reader asked for less motion. */
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A text whose control characters can be seen: line breaks as in keyboards' signs, the others by Unicode's pictures of them. */
export const harmless = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥")
  .replace(/[\0-\x1f\x7f]/g, (control) => (control === "\x7f" ? "␡" : String.fromCharCode(0x2400 + control.charCodeAt(0))));

/** The text of a token on one line: white space can be seen. */
export const visible = (text) => harmless(text).replaceAll(" ", "␣");

/** A probability as a percentage of about three digits. */
export function percent(p) {
  const value = p * 100;
  if (value === 0) return "0 %";
  if (value < 0.01) return `${value.toExponential(0)} %`;
  // What rounds to 100 % without being it would be read as certainty.
  if (value >= 99.95 && value < 100) return `${Math.min(value, 99.99).toFixed(2)} %`;
  return `${value.toFixed(value < 10 ? 2 : 1)} %`;
}

export const bits = (nats) => nats / Math.LN2;

export const integer = (n) => Math.round(n).toLocaleString("en");

/** A number of four digits or so, for axes' labels and tables. */
export function short(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-3) return x.toExponential(2).replace("e+", "e");
  return size >= 1000 ? integer(x) : String(Number(x.toPrecision(4)));
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? n : n.toFixed(1)} ${units[unit]}`;
}

/** How long ago, from seconds of Unix. */
export function ago(seconds) {
  const passed = Math.max(0, Date.now() / 1000 - seconds);
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return new Date(seconds * 1000).toISOString().slice(0, 10);
}

/** A number that a program can read in full: `<data value="0.1234567">12.3 %</data>`. */
export function setData(node, value, text) {
  node.value = String(value);
  node.textContent = text;
}
