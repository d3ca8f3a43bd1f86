// The page: its parts and the model that is chosen.

import { models } from "./api.js";
import { setUpCompare } from "./compare.js";
import { byId, h } from "./dom.js";
import { showModel } from "./model.js";
import { setUpRows } from "./rows.js";
import { beginWithToken } from "./token.js";

const PARTS = ["compare", "file", "model"];

const choice = byId("models", HTMLSelectElement);

/** Show the part that the address names. */
function turn() {
  const part = PARTS.find((name) => `#${name}` === location.hash) ?? "compare";
  for (const name of PARTS) byId(name, HTMLElement).hidden = name !== part;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${part}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (part === "model" && choice.value !== "") void showModel(choice.value, say);
}

async function begin() {
  const names = (await models()).map((model) => model.id);
  choice.replaceChildren(...names.map((name) => h("option", {}, name)));
  choice.disabled = names.length < 2;
  turn();
}

turn();
const say = beginWithToken(begin);
setUpCompare(() => choice.value, say);
setUpRows(() => choice.value, say);
choice.addEventListener("change", turn);
addEventListener("hashchange", () => {
  turn();
  scrollTo(0, 0);
});
