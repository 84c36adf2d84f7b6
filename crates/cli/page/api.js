// Requests to the server that the page came from: JSON, streams of events, and the key.

import { byId, showError } from "./dom.js";

const KEY = "tinygpt-api-key";

/** What the server refused, in its words, or that there was no answer. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const aborted = (error) => error?.name === "AbortError";

/** The answer to a GET. */
export const get = (path, signal) => request(path, { signal }).then(json);

/** The answer to a POST of JSON. */
export const post = (path, body, signal) => request(path, posting(body, signal)).then(json);

/** The events of a POST, each parsed, until `[DONE]`. Aborting the signal closes the connection, which stops the server's work. */
export async function* stream(path, body, signal) {
  const response = await request(path, posting(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw aborted(error) ? error : new ApiError("The connection broke off in the middle of the text.");
    });
    if (done) throw new ApiError("The server ended the text without saying so.");
    const events = (rest + value).split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data === "") continue;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ApiError(parsed.error.message);
      yield parsed;
    }
  }
}

const posting = (body, signal) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
  signal,
});

async function request(path, options) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (aborted(error)) throw error;
      throw new ApiError("The server does not answer. Is `tinygpt serve` still running?");
    }
    if (response.ok) return response;
    const refusal = await refusalOf(response);
    if (response.status !== 401) throw refusal;
    // Another request may have asked meanwhile.
    if (sessionStorage.getItem(KEY) !== key) continue;
    // Views ask again and again by themselves; the reader, who has said no, is asked again after doing something.
    if (declined || !(await askForKey(key !== null))) throw refusal;
  }
}

const json = (response) =>
  response.json().catch((error) => {
    throw aborted(error) ? error : new ApiError("The server's answer broke off.");
  });

async function refusalOf(response) {
  const body = await response.json().catch(() => null);
  const wait = response.headers.get("retry-after");
  const message = body?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new ApiError(wait === null ? message : `${message} Try again in ${wait} s.`, response.status);
}

let asking = null;
let declined = false;
for (const action of ["click", "keydown"]) addEventListener(action, () => (declined = false), { capture: true });

/** Asks for the key once, however many requests wait for it; whether there is a new one. */
function askForKey(refused) {
  asking ??= new Promise((resolve) => {
    const [dialog, form, input] = [byId("key-dialog"), byId("key-form"), byId("key")];
    let given = false;
    const submit = (event) => {
      event.preventDefault();
      // A header holds Latin letters alone; a key with others could not be sent.
      if (!/^[\x21-\x7e]+$/.test(input.value)) return showError(byId("key-error"), "A key is made of ASCII letters, digits and signs.");
      sessionStorage.setItem(KEY, input.value);
      given = true;
      dialog.close();
    };
    const cancel = () => dialog.close();
    showError(byId("key-error"), refused ? "The server refused this key." : null);
    input.value = "";
    form.addEventListener("submit", submit);
    byId("key-cancel").addEventListener("click", cancel);
    const closed = () => {
      form.removeEventListener("submit", submit);
      byId("key-cancel").removeEventListener("click", cancel);
      asking = null;
      declined = !given;
      resolve(given);
    };
    dialog.addEventListener("close", closed, { once: true });
    dialog.showModal();
  });
  return asking;
}
