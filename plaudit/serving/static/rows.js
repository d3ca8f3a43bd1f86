// File: rows of JSON Lines, read, scored a few at a time, sorted and given back.

import { score, ServerError } from "./api.js";
import { byId, counted, h, letter, reward } from "./dom.js";

/**
 * @typedef {import("./api.js").Text} Text
 * @typedef {{
 *   line: number, source: Record<string, unknown>, prompt: Text, responses: Text[], pair: boolean,
 *   rewards: number[] | null, reason: string | null,
 * }} Row
 */

const AT_ONCE = 4;
const SHOWN = 500;
const LARGEST = 32 * 1024 * 1024;
const EXAMPLE = [
  { prompt: "What does str.strip do?", chosen: "Return a copy of the string with leading and trailing whitespace removed.", rejected: "Return a copy of the string with leading whitespace whitespace whitespace." },
  { prompt: [{ role: "user", content: "What does len return?" }], responses: ["Return the number of items in a container.", "Return the number of items in a contianer.", "Return the"] },
];

const text = byId("rows", HTMLTextAreaElement);
const pick = byId("pick", HTMLInputElement);
const drop = byId("drop", HTMLDivElement);
const cancel = byId("cancel", HTMLButtonElement);
const download = byId("download", HTMLButtonElement);
const progress = byId("progress", HTMLProgressElement);
const summary = byId("file-summary", HTMLParagraphElement);
const table = byId("table", HTMLDivElement);

/** @type {Row[]} */
let rows = [];
let running = new AbortController();
let order = { column: "Line", down: false };

/**
 * @param {() => string} model the name that is chosen
 * @param {(error: unknown) => void} say what a failure is told to
 */
export function setUpRows(model, say) {
  byId("file-form", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    void run(model(), say);
  });
  cancel.onclick = () => running.abort();
  download.onclick = () => save(new Blob(rows.map((row) => `${JSON.stringify(scored(row))}\n`)), "scored.jsonl");
  byId("rows-example", HTMLButtonElement).onclick = () => {
    text.value = EXAMPLE.map((row) => `${JSON.stringify(row)}\n`).join("");
  };
  pick.onchange = () => void take(pick.files?.[0], say);
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    void take(event.dataTransfer?.files[0], say);
  });
}

/** @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** @param {File | undefined} file @param {(error: unknown) => void} say */
async function take(file, say) {
  if (file === undefined) return;
  if (file.size > LARGEST) {
    say(new Error(`${file.name} has ${Math.round(file.size / 2 ** 20)} MB, and the limit is 32 MB; run plaudit score instead.`));
    return;
  }
  say(null);
  text.value = await file.text();
}

/** @param {string} model @param {(error: unknown) => void} say */
async function run(model, say) {
  running.abort();
  const { signal } = (running = new AbortController());
  say(null);
  rows = read(text.value);
  order = { column: "Line", down: false };
  if (rows.length === 0) {
    say(new Error("No rows; paste JSON Lines or choose a file."));
    return;
  }
  const waiting = rows.filter((row) => row.reason === null);
  let done = rows.length - waiting.length;
  progress.hidden = false;
  progress.max = rows.length;
  progress.value = done;
  cancel.disabled = false;
  download.disabled = true;
  summary.textContent = `Scoring ${counted(rows.length, "row")}…`;
  const next = waiting.values();
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, async () => {
      for (const row of next) {
        await scoreRow(row, model, signal);
        progress.value = ++done;
      }
    }));
  } catch (error) {
    if (running.signal !== signal) return;
    if (!signal.aborted) say(error);
    running.abort();
  }
  rows.forEach((row) => {
    if (row.rewards === null) row.reason ??= "not scored";
  });
  progress.hidden = true;
  cancel.disabled = true;
  download.disabled = false;
  summary.textContent = inWords();
  draw();
}

/**
 * A row that the server rejects has its reason; what concerns all rows is thrown.
 * @param {Row} row @param {string} model @param {AbortSignal} signal
 */
async function scoreRow(row, model, signal) {
  try {
    row.rewards = (await score(model, row.prompt, row.responses, { signal })).rewards;
  } catch (error) {
    if (!(error instanceof ServerError) || ![400, 413, 422].includes(error.status)) throw error;
    row.reason = error.message;
  }
}

function inWords() {
  const done = rows.filter((row) => row.rewards !== null);
  const pairs = done.filter((row) => row.pair);
  const right = pairs.filter((row) => margin(row) > 0).length;
  const ties = pairs.filter((row) => margin(row) === 0).length;
  return `${counted(done.length, "row")} of ${rows.length.toLocaleString("en")} scored`
    + (done.length < rows.length ? `, ${counted(rows.length - done.length, "row")} not scored (see the last column)` : "")
    + (pairs.length > 0 ? `. Chosen ranks higher in ${right.toLocaleString("en")} of ${counted(pairs.length, "pair")}`
      + (ties > 0 ? `, ${counted(ties, "tie")}` : "") : "")
    + ".";
}

/** The first reward less the best of the others: of a pair, chosen less rejected. @param {Row} row */
function margin(row) {
  const [first, ...others] = row.rewards ?? [];
  return first === undefined || others.length === 0 ? Number.NaN : first - Math.max(...others);
}

/** The row as it came, with its rewards or the reason why it has none. @param {Row} row */
function scored(row) {
  return row.rewards === null
    ? { ...row.source, rewards: null, rewards_reason: row.reason }
    : { ...row.source, rewards: row.rewards };
}

// ---- the table -----------------------------------------------------------------------------------

/** @type {Record<string, (row: Row) => number | string>} */
const COLUMNS = {
  Line: (row) => row.line,
  Prompt: (row) => plain(row.prompt),
  Rewards: (row) => Math.max(...(row.rewards ?? [Number.NaN])),
  Best: (row) => (row.rewards === null ? "" : letter(row.rewards.indexOf(Math.max(...row.rewards)))),
  Margin: margin,
  "Not scored": (row) => row.reason ?? "",
};

/** The first rows in the chosen order; values that are missing come last. */
function draw() {
  const of = COLUMNS[order.column] ?? margin;
  const sign = order.down ? -1 : 1;
  const sorted = [...rows].sort((a, b) => {
    const left = of(a), right = of(b);
    if (Number.isNaN(left) || Number.isNaN(right)) return Number(Number.isNaN(left)) - Number(Number.isNaN(right));
    return left < right ? -sign : left > right ? sign : a.line - b.line;
  });
  const heads = Object.keys(COLUMNS).map((column) => h("th", {
    scope: "col", "aria-sort": order.column !== column ? "none" : order.down ? "descending" : "ascending",
  }, h("button", { type: "button", class: "quiet", onclick: () => sortBy(column) }, column)));
  table.hidden = false;
  table.replaceChildren(h("table", {},
    rows.length > SHOWN && h("caption", {}, `The first ${SHOWN} of ${rows.length.toLocaleString("en")} rows in this order; the download has all rows.`),
    h("thead", {}, h("tr", {}, ...heads)),
    h("tbody", {}, ...sorted.slice(0, SHOWN).map(line))));
}

/** @param {string} column */
function sortBy(column) {
  order = { column, down: order.column === column && !order.down };
  draw();
  const heads = [...table.querySelectorAll("th button")];
  /** @type {HTMLElement | undefined} */ (heads[Object.keys(COLUMNS).indexOf(column)])?.focus();
}

/** @param {Row} row */
function line(row) {
  const gap = margin(row);
  return h("tr", {},
    h("td", { class: "n" }, String(row.line)),
    h("td", {}, plain(row.prompt)),
    h("td", { class: "n" }, (row.rewards ?? []).map((value) => reward(value)).join("  ")),
    h("td", {}, String(COLUMNS["Best"]?.(row))),
    h("td", { class: "n" }, Number.isNaN(gap) ? "" : reward(gap, true)),
    h("td", {}, row.reason ?? ""));
}

/** The last turn, shortened. @param {Text} what */
function plain(what) {
  const content = typeof what === "string" ? what : what.at(-1)?.content ?? "";
  const words = (typeof content === "string" ? content : JSON.stringify(content)).trim();
  return words.length > 120 ? `${words.slice(0, 119)}…` : words;
}

// ---- reading -------------------------------------------------------------------------------------

/** Every line that is not blank; a line that cannot be read has its reason. @param {string} lines */
export function read(lines) {
  /** @type {Row[]} */
  const found = [];
  lines.split("\n").forEach((content, index) => {
    if (content.trim() === "") return;
    /** @type {Row} */
    const row = { line: index + 1, source: { line: content }, prompt: "", responses: [], pair: false, rewards: null, reason: null };
    try {
      row.source = parsed(content);
      Object.assign(row, understood(row.source));
    } catch (error) {
      row.reason = error instanceof Error ? error.message : String(error);
    }
    found.push(row);
  });
  return found;
}

/** @param {string} content @returns {Record<string, unknown>} */
function parsed(content) {
  /** @type {unknown} */
  let found;
  try {
    found = JSON.parse(content);
  } catch {
    throw new Error("Invalid JSON; expected one object per line.");
  }
  if (found === null || typeof found !== "object" || Array.isArray(found)) throw new Error("Expected an object with prompt and responses.");
  return /** @type {Record<string, unknown>} */ (found);
}

/** What is asked of the server; whether texts are texts is for it to say. @param {any} source @returns {Partial<Row>} */
function understood(source) {
  if (Array.isArray(source.responses) && source.prompt !== undefined) {
    return { prompt: source.prompt, responses: source.responses };
  }
  const { chosen, rejected } = source;
  if (chosen === undefined || rejected === undefined) throw new Error("Expected prompt with responses, or prompt with chosen and rejected.");
  if (source.prompt !== undefined) return { prompt: source.prompt, responses: [chosen, rejected], pair: true };
  if (!Array.isArray(chosen) || !Array.isArray(rejected)) throw new Error("The row has no prompt; plaudit score can split the prompt from chosen and rejected.");
  return { ...split(chosen, rejected), pair: true };
}

/**
 * Whole conversations without a prompt: what both begin with is the prompt.
 * @param {import("./api.js").Message[]} chosen
 * @param {import("./api.js").Message[]} rejected
 */
function split(chosen, rejected) {
  const longest = Math.min(chosen.length, rejected.length) - 1;
  let shared = 0;
  while (shared < longest && JSON.stringify(chosen[shared]) === JSON.stringify(rejected[shared])) shared++;
  return { prompt: chosen.slice(0, shared), responses: [chosen.slice(shared), rejected.slice(shared)] };
}
