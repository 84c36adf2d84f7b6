// A text as its tokens, each a button. They are spans, since a `button` of HTML is a box of its own and lines would break
// within words. One of them is in the order of the Tab key; the arrow keys move among them.

import { h, harmless, visible } from "./dom.js";

// The shades of `tinygpt score`: where each begins, in bits.
const FROM_BITS = [0, 1, 2, 4, 6, 8];

/** The class of the shade of a surprisal in bits. */
export const shadeOf = (surprisal) => `s${FROM_BITS.findLastIndex((from) => surprisal >= from)}`;

/** The legend of the shades. */
export function shadeLegend(node) {
  node.append("Surprisal in bits ", ...FROM_BITS.map((from, n) =>
    h("span", { class: `s${n}` }, n + 1 < FROM_BITS.length ? `${from}–${FROM_BITS[n + 1]}` : `${from}+`)));
}

export class TokenText {
  /** Fills `node`. `label` names the group; `onSelect(index)` is called when a token is chosen, -1 for none. */
  constructor(node, label, onSelect) {
    this.node = node;
    this.onSelect = onSelect;
    this.buttons = [];
    this.selected = -1;
    node.setAttribute("role", "group");
    node.setAttribute("aria-label", label);
    node.addEventListener("click", (event) => this.#pick(event.target));
    node.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Removes the tokens from `length` on. */
  truncate(length) {
    for (const button of this.buttons.splice(length)) {
      while (button.nextSibling?.nodeName === "BR") button.nextSibling.remove();
      button.remove();
    }
    if (this.selected >= length) this.select(-1);
  }

  /** Adds a token; its classes say what it is. `label` is read out in the place of the text. */
  add(text, classes, label) {
    const shown = harmless(text);
    const button = h("span", {
      role: "button", class: `token ${classes}`, tabindex: this.buttons.length === 0 ? 0 : -1, "aria-pressed": "false",
      "aria-label": label ?? visible(text),
    }, shown === "" ? "∅" : shown);
    button.dataset.index = this.buttons.length;
    this.buttons.push(button);
    this.node.append(button, ...Array.from(text.matchAll("\n"), () => h("br")));
    return button;
  }

  /** Chooses a token, or none for -1. */
  select(index) {
    this.buttons[this.selected]?.setAttribute("aria-pressed", "false");
    this.selected = index;
    const button = this.buttons[index];
    if (button) {
      for (const other of this.node.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
      button.tabIndex = 0;
      button.setAttribute("aria-pressed", "true");
    }
    this.onSelect(index);
  }

  #pick(target) {
    const button = target.closest("[data-index]");
    if (button) this.select(Number(button.dataset.index));
  }

  #key(event) {
    const at = Number(event.target.dataset?.index ?? NaN);
    if (Number.isNaN(at) || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.buttons.length - 1;
    const to = {
      Enter: at, " ": at, ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last,
      ArrowUp: event.key === "ArrowUp" && this.#line(at, -1), ArrowDown: event.key === "ArrowDown" && this.#line(at, 1),
    }[event.key];
    if (to === undefined || to < 0 || to > last) return;
    event.preventDefault();
    this.select(to);
    this.buttons[to].focus();
  }

  /** The token of the next line in a direction that is nearest across. */
  #line(at, direction) {
    const middle = (button) => {
      const [box] = button.getClientRects();
      return [(box.left + box.right) / 2, box.top];
    };
    const [x, y] = middle(this.buttons[at]);
    let best = at;
    let line = null;
    for (let n = at + direction; n >= 0 && n < this.buttons.length; n += direction) {
      const [here, top] = middle(this.buttons[n]);
      if (Math.abs(top - y) < 4) continue;
      line ??= top;
      if (Math.abs(top - line) >= 4) break;
      if (best === at || Math.abs(here - x) < Math.abs(middle(this.buttons[best])[0] - x)) best = n;
    }
    return best;
  }
}
