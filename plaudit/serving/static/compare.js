// Compare: a prompt, two responses or more, and what the model makes of them.

import { tokenRewardsView } from "./token-rewards.js";
import { metadata, score, ServerError } from "./api.js";
import { byId, counted, h, letter, percent, reward } from "./dom.js";

/** @typedef {import("./api.js").Rewards} Rewards */

const EXAMPLE = {
  prompt: "What does str.strip do?",
  responses: [
    "Return a copy of the string with leading and trailing whitespace removed. If chars is given and not None, remove characters in chars instead.",
    "Return a copy of the string with whitespace whitespace leading removed trailing. If is chars given and None not, remove in chars characters instead.",
  ],
};
const ROLES = ["system", "user", "assistant", "tool"];

const form = byId("compare-form", HTMLFormElement);
const prompt = byId("prompt", HTMLTextAreaElement);
const turns = byId("turns", HTMLDivElement);
const responses = byId("responses", HTMLDivElement);
const scores = byId("scores", HTMLDivElement);
const summary = byId("summary", HTMLParagraphElement);
const results = byId("results", HTMLDivElement);
let running = new AbortController();

/**
 * @param {() => string} model the name that is chosen
 * @param {(error: unknown) => void} say what a failure is told to
 */
export function setUpCompare(model, say) {
  setResponses(["", ""]);
  setTurns([["user", ""]]);
  byId("add-response", HTMLButtonElement).onclick = () => addResponse("").focus();
  byId("add-turn", HTMLButtonElement).onclick = () => addTurn(nextRole(), "").focus();
  byId("clear", HTMLButtonElement).onclick = () => show({ prompt: "", responses: ["", ""] });
  byId("example", HTMLButtonElement).onclick = () => show(EXAMPLE);
  form.addEventListener("change", chooseKind);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void run(model(), say);
  });
}

/** @param {string} model @param {(error: unknown) => void} say */
async function run(model, say) {
  running.abort();
  const { signal } = (running = new AbortController());
  say(null);
  results.setAttribute("aria-busy", "true");
  summary.textContent = "Scoring…";
  try {
    const texts = areas(responses).map((area) => area.value);
    const [found, note] = await ask(model, texts, signal);
    summary.textContent = inWords(found) + note;
    scores.replaceChildren(table(found), ...(found.token_rewards ? [tokenRewardsView(found.token_rewards)] : []));
    if (matchMedia("(max-width: 60rem)").matches) results.scrollIntoView({ block: "start" });
  } catch (error) {
    if (signal.aborted) return;
    summary.textContent = "Not scored.";
    scores.replaceChildren();
    say(error);
  }
  results.removeAttribute("aria-busy");
}

/**
 * The rewards with what the model has beside them, and why those of tokens are missing where it has
 * no such thing. The outputs of an ensemble are shown as their spread.
 * @param {string} model @param {string[]} texts @param {AbortSignal} signal
 * @returns {Promise<[Rewards, string]>}
 */
async function ask(model, texts, signal) {
  const { outputs, lower_bound_k } = await metadata(model);
  const uncertainty = lower_bound_k !== null;
  const fields = { outputs: outputs !== null && !uncertainty, uncertainty };
  const token_rewards = byId("token-rewards", HTMLInputElement).checked;
  try {
    return [await score(model, prompted(), texts, { fields: { ...fields, token_rewards }, signal }), ""];
  } catch (error) {
    if (!(error instanceof ServerError) || error.param !== "token_rewards") throw error;
    return [await score(model, prompted(), texts, { fields, signal }), ` ${error.message}`];
  }
}

/** @param {Rewards} found */
function inWords(found) {
  const tied = found.ranks.filter((rank) => rank === 1).length;
  const best = letter(found.ranks.indexOf(1));
  const chance = percent(found.win_probabilities[found.ranks.indexOf(1)] ?? 0);
  const { computed_tokens, total_tokens } = found.usage;
  const [computed, total] = [computed_tokens, total_tokens].map((count) => count.toLocaleString("en"));
  return (found.rewards.length === 1 ? `A has reward ${reward(found.rewards[0] ?? 0)}.`
    : tied > 1 ? `${counted(tied, "response")} share the highest reward.`
    : `${best} has the highest reward and wins with probability ${chance}.`)
    + ` Computed ${computed} of ${total} tokens${computed === total ? "." : "; the others are shared or cached."}`;
}

/**
 * One row per response: rank, reward with a bar from the mean, probability, details, tokens.
 * @param {Rewards} found
 */
function table(found) {
  const details = detailsOf(found);
  const mean = found.rewards.reduce((sum, value) => sum + value, 0) / found.rewards.length;
  const reach = Math.max(...found.rewards.map((value) => Math.abs(value - mean)), 1e-9);
  const rows = found.rewards.map((value, index) => {
    const rank = found.ranks[index] ?? 0;
    return h("tr", rank === 1 ? { class: "best" } : {},
      h("th", { scope: "row" }, letter(index)),
      h("td", {}, h("span", { class: "rank" }, `${rank}`)),
      h("td", {}, h("span", { class: "n" }, reward(value)), offset((value - mean) / reach)),
      h("td", {}, h("span", { class: "n" }, percent(found.win_probabilities[index] ?? 0)), share(found.win_probabilities[index] ?? 0)),
      ...Object.values(details).map((values) => h("td", { class: "n" }, reward(values[index] ?? 0))),
      h("td", { class: "n" }, (found.tokens[index] ?? 0).toLocaleString("en")));
  });
  return h("div", { class: "scroll", role: "region", "aria-label": "Rewards", tabindex: 0 }, h("table", { class: "scores" },
    h("caption", {}, "Reward bars start at the mean of these responses."),
    h("thead", {}, h("tr", {}, ...["Response", "Rank", "Reward", "Win probability", ...Object.keys(details), "Tokens"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows)));
}

/** Columns of numbers beside the rewards, by their heading. @param {Rewards} found */
function detailsOf({ spread, lower_bound, outputs }) {
  const names = Object.keys(outputs?.[0] ?? {});
  /** @type {Record<string, number[]>} */
  const details = Object.fromEntries(names.map((name) => [name, (outputs ?? []).map((one) => one[name] ?? 0)]));
  return { ...(spread && { Spread: spread }), ...(lower_bound && { "Lower bound": lower_bound }), ...details };
}

/** A bar from the middle, left below the mean and right above. @param {number} part from -1 to 1 */
function offset(part) {
  const bar = h("i", { class: part < 0 ? "down" : "up" });
  bar.style.width = `${50 * Math.abs(part)}%`;
  bar.style.left = `${50 + 50 * Math.min(part, 0)}%`;
  return h("span", { class: "bar middle", "aria-hidden": true }, bar);
}

/** @param {number} part from 0 to 1 */
function share(part) {
  const bar = h("i", { class: "part" });
  bar.style.width = `${100 * part}%`;
  return h("span", { class: "bar", "aria-hidden": true }, bar);
}

// ---- the form ------------------------------------------------------------------------------------

/** @param {{prompt: string, responses: string[]}} what */
function show(what) {
  running.abort();
  byId("compare-form", HTMLFormElement).reset();
  prompt.value = what.prompt;
  setResponses(what.responses);
  setTurns([["user", what.prompt]]);
  chooseKind();
  scores.replaceChildren();
  summary.textContent = "";
  prompt.focus();
}

/** @returns {import("./api.js").Text} */
function prompted() {
  if (kind() === "text") return prompt.value;
  return areas(turns).map((area) => ({
    role: area.closest(".turn")?.querySelector("select")?.value ?? "user",
    content: area.value,
  }));
}

function kind() {
  return String(new FormData(form).get("kind"));
}

function chooseKind() {
  byId("prompt-text", HTMLDivElement).hidden = kind() !== "text";
  byId("prompt-turns", HTMLDivElement).hidden = kind() === "text";
}

/** @param {HTMLElement} inside */
function areas(inside) {
  return [...inside.querySelectorAll("textarea")];
}

/** @param {string[]} texts */
function setResponses(texts) {
  responses.replaceChildren();
  texts.forEach(addResponse);
}

/** @param {string} text */
function addResponse(text) {
  return addEntry(responses, h("label", {}), text, 4);
}

/** @param {string[][]} pairs of role and text */
function setTurns(pairs) {
  turns.replaceChildren();
  pairs.forEach(([role, text]) => addTurn(role ?? "user", text ?? ""));
}

/** @param {string} role @param {string} text */
function addTurn(role, text) {
  const choice = h("select", {}, ...ROLES.map((name) => h("option", { selected: name === role }, name)));
  return addEntry(turns, h("div", { class: "row" }, h("label", {}), choice), text, 2);
}

function nextRole() {
  const roles = [...turns.querySelectorAll("select")].map((choice) => choice.value);
  return roles.at(-1) === "user" ? "assistant" : "user";
}

/**
 * A text field with its label and a button that takes it away.
 * @param {HTMLElement} list
 * @param {HTMLElement} head
 * @param {string} text
 * @param {number} rows
 */
function addEntry(list, head, text, rows) {
  const area = h("textarea", { rows });
  area.value = text;
  const button = h("button", { type: "button", class: "quiet", onclick: () => {
    const next = entry.nextElementSibling ?? entry.previousElementSibling;
    entry.remove();
    number(list);
    next?.querySelector("textarea")?.focus();
  } }, "Remove");
  const entry = h("div", { class: "turn" }, h("div", { class: "head" }, head, button), area);
  list.append(entry);
  number(list);
  return area;
}

/** Name the entries of a list anew, in order. @param {HTMLElement} list */
function number(list) {
  const noun = list === turns ? "Turn" : "Response";
  const least = list.children.length === 1;
  [...list.children].forEach((entry, index) => {
    const name = `${noun} ${list === turns ? index + 1 : letter(index)}`;
    const label = entry.querySelector("label"), area = entry.querySelector("textarea");
    const button = entry.querySelector("button"), choice = entry.querySelector("select");
    if (label === null || area === null || button === null) return;
    area.id = `${noun.toLowerCase()}-${index}`;
    label.htmlFor = area.id;
    label.textContent = name;
    choice?.setAttribute("aria-label", `Role of turn ${index + 1}`);
    button.setAttribute("aria-label", `Remove ${noun.toLowerCase()} ${name.split(" ")[1]}`);
    button.disabled = least;
  });
}
