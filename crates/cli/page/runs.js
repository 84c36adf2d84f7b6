// The runs below the folder: their curves as they grow, their samples, their configuration.

import { get } from "./api.js";
import { LineChart, swatch } from "./chart.js";
import { ago, byId, bytes, h, integer, short, showError } from "./dom.js";
import { onChange, state } from "./state.js";

// Milliseconds between two looks at the folder while the view is open.
const EVERY = 1000;
// Records of a run that are read at a time. More than a chart has pixels for; the server keeps the extremes and the last.
const MOST = 4000;

const FIGURES = [
  { key: "loss", label: "Loss, nats a token", train: "loss", eval: "val_loss", level: "floor" },
  { key: "bits", label: "Bits a byte", eval: "bits_per_byte" },
  { key: "lr", label: "Learning rate", train: "lr" },
  { key: "norm", label: "Gradient norm", train: "grad_norm" },
  { key: "speed", label: "Tokens a second", train: "tokens_per_s" },
];

// By name: `{ run, records, next, look, row }`, and the samples once they were asked for.
const known = new Map();
const shown = new Set();
let chosen = null;
let chart;
let looks = 0;
let timer = 0;
let looking = false;

export function startRuns() {
  chart = new LineChart(byId("runs-chart"));
  byId("figure").append(...FIGURES.map(({ key, label }) => h("option", { value: key }, label)));
  for (const id of ["figure", "across", "log"]) byId(id).addEventListener("change", drawChart);
  byId("runs-numbers").addEventListener("toggle", showPoints);
  byId("sample").addEventListener("input", () => {
    const run = known.get(chosen);
    if (run) run.follow = Number(byId("sample").value) === run.samples.length - 1;
    showSample();
  });
  onChange((changed) => changed.has("tab") && state.tab === "runs" && look());
  document.addEventListener("visibilitychange", () => !document.hidden && look());
}

/** Looks at the folder now and, while the view is open, again and again. */
async function look() {
  clearTimeout(timer);
  if (looking || state.tab !== "runs" || document.hidden) return;
  looking = true;
  try {
    const { runs } = await get("/api/runs");
    showTable(runs);
    // A run that cannot be read keeps no other from being shown.
    await Promise.all([...shown].map((name) => tried(name, readMetrics)));
    drawChart();
    if (chosen) await tried(chosen, readSamples);
    showTroubles();
  } catch (error) {
    showError(byId("runs-error"), error);
  } finally {
    looking = false;
    if (state.tab === "runs") timer = setTimeout(look, EVERY);
  }
}

/** Reads something of a run, and keeps what went wrong with it, until it goes well. */
async function tried(name, read) {
  try {
    await read(name);
    known.get(name)?.troubles.delete(read);
  } catch (error) {
    known.get(name)?.troubles.set(read, error);
  }
}

/** Says of each run that could not be read why not. */
function showTroubles() {
  const troubles = [...known].flatMap(([name, entry]) => [...entry.troubles.values()].map(({ message }) => `${name}: ${message}`));
  showError(byId("runs-error"), troubles.length ? troubles.join(" ") : null);
}

function showTable(runs) {
  byId("runs-empty").hidden = runs.length > 0;
  byId("runs-body").hidden = runs.length === 0;
  const names = new Set(runs.map(({ name }) => name));
  for (const [name, { row }] of known) {
    if (names.has(name)) continue;
    row.remove();
    known.delete(name);
    if (shown.delete(name)) drawChart();
    if (chosen === name) chosen = null;
  }
  const body = byId("runs-table").tBodies[0];
  runs.forEach((run, n) => {
    const isNew = !known.has(run.name);
    const entry = known.get(run.name) ?? newEntry(run.name);
    // A run that begins anew in the same folder has fewer steps than it had.
    if (entry.run && run.step < entry.run.step) forget(entry);
    entry.run = run;
    fillRow(entry);
    if (body.rows[n] !== entry.row) body.insertBefore(entry.row, body.rows[n] ?? null);
    // The chart begins with the newest run and those that train; a run that begins later joins them.
    if (isNew && (n === 0 || run.state === "running")) toggle(run.name, true);
  });
  if (chosen === null && runs.length > 0) choose(runs[0].name);
}

function forget(entry) {
  Object.assign(entry, { records: [], next: 0, samples: [], nextSample: 0 });
}

function newEntry(name) {
  const check = h("input", { type: "checkbox", "aria-label": `${name} in the chart`, onchange: () => toggle(name, check.checked) });
  const look = looks++;
  const cells = Object.fromEntries(["step", "loss", "size", "saved", "state"].map((key) => [key, h("td")]));
  const button = h("button", { type: "button", class: "link", "aria-pressed": "false", onclick: () => choose(name) }, name);
  const row = h("tr", {}, h("td", { class: "mark" }, check, swatch(look)), h("th", { scope: "row" }, button), ...Object.values(cells));
  const entry = { look, check, cells, button, row, records: [], next: 0, samples: [], nextSample: 0, follow: true, troubles: new Map() };
  known.set(name, entry);
  return entry;
}

function fillRow({ run, cells }) {
  const set = (cell, text) => cell.textContent !== text && (cell.textContent = text);
  set(cells.step, run.max_steps === null ? integer(run.step) : `${integer(run.step)} / ${integer(run.max_steps)}`);
  set(cells.loss, run.best_loss === null ? "–" : run.best_loss.toFixed(4));
  set(cells.size, bytes(run.bytes));
  set(cells.saved, run.saved === null ? "–" : ago(run.saved));
  set(cells.state, run.reason ? `${run.state}: ${run.reason.replaceAll("_", " ")}` : run.state);
  cells.state.className = `state ${run.state}`;
}

async function toggle(name, on) {
  known.get(name).check.checked = on;
  if (on) shown.add(name);
  else {
    shown.delete(name);
    known.get(name).troubles.delete(readMetrics);
  }
  if (on) await tried(name, readMetrics);
  showTroubles();
  drawChart();
}

const pathOf = (name) => `/api/runs/${encodeURIComponent(name)}`;

/** Reads what was written since the last time; of what became too much, all again, which the server thins out. */
async function readMetrics(name) {
  const entry = known.get(name);
  if (!entry || entry.reading) return;
  entry.reading = true;
  try {
    const from = entry.records.length > 2 * MOST ? 0 : entry.next;
    const { records, next } = await get(`${pathOf(name)}/metrics?from=${from}&most=${MOST}`);
    // A shorter file than the one that was read is another one, and is read from its start.
    if (next < from) Object.assign(entry, { records: [], next: 0 });
    else Object.assign(entry, { records: from === 0 ? records : entry.records.concat(records), next });
  } finally {
    entry.reading = false;
  }
}

/** What the chart shows of the runs, as the choices above it say. */
function chartData() {
  const figure = FIGURES.find(({ key }) => key === byId("figure").value);
  const across = byId("across").value;
  const series = [];
  const levels = new Map();
  for (const name of [...known.keys()].filter((key) => shown.has(key))) {
    const { records, look } = known.get(name);
    const pick = (kind, key) => records
      .filter((record) => record.kind === kind && Number.isFinite(record[key]) && Number.isFinite(record[across]))
      .map((record) => [record[across], record[key]]);
    const both = Boolean(figure.train && figure.eval);
    if (figure.train) series.push({ name: both ? `${name}, training` : name, look, points: pick("train", figure.train), thin: both });
    if (figure.eval) series.push({ name: both ? `${name}, validation` : name, look, points: pick("eval", figure.eval), dots: true });
    const level = figure.level && records.findLast((record) => Number.isFinite(record[figure.level]))?.[figure.level];
    if (level) levels.set(level.toFixed(4), level);
  }
  return { figure, across, series, levels: [...levels.values()].map((y) => ({ y, name: `floor ${y.toFixed(3)}` })) };
}

function drawChart() {
  const { figure, across, series, levels } = chartData();
  const last = series.filter(({ points }) => points.length).map(({ name, points }) => `${name} ${short(points.at(-1)[1])}`).join("; ");
  chart.draw({
    label: `${figure.label} across ${across === "step" ? "steps" : "seconds"}. Last values: ${last || "none"}`,
    xLabel: across === "step" ? "step" : "second", yLabel: figure.label, log: byId("log").checked, series, levels,
    empty: shown.size === 0 ? "No run is chosen for the chart" : "Nothing of this figure was written yet",
  });
  const named = series.filter(({ points }) => points.length);
  byId("runs-legend").replaceChildren(...named.map(({ name, look, thin }) => h("span", { class: "entry" }, swatch(look, thin), ` ${name}`)));
  byId("runs-status").textContent = [...shown].some((name) => known.get(name)?.run?.state === "running") ? "Growing while it trains" : "";
  showPoints();
}

/** The chart as a table, for those who do not see it; the evaluations where there are any. */
function showPoints() {
  if (!byId("runs-numbers").open) return;
  const { figure, across, series } = chartData();
  const wanted = series.filter(({ points, thin }) => points.length && !thin);
  const xs = [...new Set(wanted.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
  const columns = wanted.map(({ points }) => new Map(points));
  byId("runs-points").replaceChildren(
    h("caption", { class: "unseen" }, figure.label),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, across === "step" ? "Step" : "Second"),
      ...wanted.map(({ name }) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...xs.slice(-500).map((x) => h("tr", {}, h("th", { scope: "row" }, short(x)),
      ...columns.map((column) => h("td", {}, column.has(x) ? short(column.get(x)) : "–"))))));
}

/** Shows the samples and the configuration of a run. */
async function choose(name) {
  known.get(chosen)?.button.setAttribute("aria-pressed", "false");
  // Of samples that are not looked at any more nobody would see that they are read again.
  known.get(chosen)?.troubles.delete(readSamples);
  chosen = name;
  known.get(name).button.setAttribute("aria-pressed", "true");
  byId("run-name").textContent = name;
  byId("config").textContent = "";
  showError(byId("run-error"), null);
  showSamples();
  try {
    const { toml } = await get(`${pathOf(name)}/config`);
    if (chosen !== name) return;
    byId("config").textContent = toml;
    await readSamples(name);
  } catch (error) {
    if (chosen === name) showError(byId("run-error"), error);
  }
}

async function readSamples(name) {
  const entry = known.get(name);
  if (!entry || entry.readingSamples) return;
  entry.readingSamples = true;
  try {
    const { records, next } = await get(`${pathOf(name)}/samples?from=${entry.nextSample}`);
    if (next < entry.nextSample) Object.assign(entry, { samples: [], nextSample: 0 });
    else {
      entry.nextSample = next;
      entry.samples.push(...records);
    }
    if (chosen === name) showSamples();
  } finally {
    entry.readingSamples = false;
  }
}

function showSamples() {
  const entry = known.get(chosen);
  const { samples } = entry;
  byId("samples-empty").hidden = samples.length > 0 || entry.nextSample > 0;
  byId("samples").hidden = samples.length === 0;
  const slider = byId("sample");
  slider.max = Math.max(0, samples.length - 1);
  slider.disabled = samples.length < 2;
  // The slider stays with the newest sample, unless the reader moved it to another.
  if (entry.follow) slider.value = slider.max;
  showSample();
}

function showSample() {
  const { samples } = known.get(chosen);
  const record = samples[Number(byId("sample").value)];
  if (!record) return;
  const label = `after step ${integer(record.step)}`;
  byId("sample-step").textContent = label;
  byId("sample").setAttribute("aria-valuetext", label);
  byId("sample-text").replaceChildren(h("span", { class: "soft" }, record.prompt ?? ""), record.text);
}
