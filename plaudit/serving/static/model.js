// Model: what is recorded of it, and the papers that lie beside it.

import { metadata, hasToken, paper, paperAddress } from "./api.js";
import { byId, h } from "./dom.js";
import { save } from "./rows.js";

/** @type {Record<string, {words: string, file: string}>} */
const PAPERS = {
  report: { words: "Report", file: "report.html" },
  card: { words: "Model card", file: "README.md" },
};
/** What OpenAI's clients read, and nobody else. */
const NOT_SHOWN = new Set(["object", "created", "owned_by"]);
/** @type {Record<string, string>} */
const NAMES = {
  max_length: "maximum length in tokens", reward_std: "reward standard deviation", ece: "ECE",
  ece_stored: "ECE with the stored temperature", accuracy_ci95: "accuracy, 95% CI",
  chose_checkpoint: "data used to choose the checkpoint",
};
const LONG = 200;

/** @param {string} name @param {(error: unknown) => void} say */
export async function showModel(name, say) {
  try {
    const found = await metadata(name);
    const beside = Object.keys(PAPERS).filter((kind) => found[kind] === true);
    byId("papers", HTMLParagraphElement).replaceChildren(
      ...(beside.length > 0 ? beside.map((kind) => link(name, kind, say))
        : [h("span", { class: "soft" }, "This model has no report and no model card.")]));
    const known = Object.entries(found).filter(([key]) => !(key in PAPERS) && !NOT_SHOWN.has(key));
    byId("metadata", HTMLDivElement).replaceChildren(list(Object.fromEntries(known)));
  } catch (error) {
    say(error);
  }
}

/**
 * A link, or where the server asks for a token, which a link cannot carry, a download.
 * @param {string} name @param {string} kind @param {(error: unknown) => void} say
 */
function link(name, kind, say) {
  const { words, file } = PAPERS[kind] ?? { words: kind, file: kind };
  if (!hasToken()) return h("a", { class: "button", href: paperAddress(name, kind), target: "_blank", rel: "noopener" }, words);
  return h("button", { type: "button", onclick: () => {
    paper(name, kind).then((blob) => save(blob, file), say);
  } }, `Download ${words.toLowerCase()}`);
}

/** @param {Record<string, unknown>} found @returns {HTMLElement} */
function list(found) {
  return h("dl", {}, ...Object.entries(found).flatMap(([key, value]) => [
    h("dt", {}, NAMES[key] ?? key.replaceAll("_", " ")), h("dd", {}, shown(value)),
  ]));
}

/** Numbers to four digits; the report has all. @param {unknown} value @returns {Node | string} */
function shown(value) {
  if (value === null || value === undefined) return h("span", { class: "soft" }, "none");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  if (Array.isArray(value) && value.every((item) => typeof item !== "object")) return value.map(shown).join(", ") || "none";
  if (typeof value === "object" && !Array.isArray(value)) {
    return Object.keys(value).length > 0 ? list(/** @type {Record<string, unknown>} */ (value)) : "none";
  }
  const words = typeof value === "string" ? value : JSON.stringify(value, null, 1);
  if (words.length <= LONG && !words.includes("\n")) return words || h("span", { class: "soft" }, "empty");
  return h("details", {}, h("summary", {}, `${words.length.toLocaleString("en")} characters`), h("pre", {}, words));
}
