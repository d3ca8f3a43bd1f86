// The page: its parts, the model that is chosen, the token, and one place for what went wrong.

import { asksForToken, hasToken, keepToken, models, ServerError } from "./api.js";
import { setUpCompare } from "./compare.js";
import { byId, h } from "./dom.js";
import { showModel } from "./model.js";
import { setUpRows } from "./rows.js";

const PARTS = ["compare", "file", "model"];

const choice = byId("models", HTMLSelectElement);
const tokenForm = byId("token-form", HTMLFormElement);
const token = byId("token", HTMLInputElement);
const problem = byId("problem", HTMLParagraphElement);

/** Tell what went wrong, or with null that nothing does any more. @param {unknown} error */
function say(error) {
  problem.hidden = error === null;
  problem.textContent = error instanceof Error ? error.message : error === null ? "" : String(error);
  if (error instanceof ServerError && error.status === 401) {
    problem.textContent = "The server does not take this token; enter another.";
    askForToken();
  }
}

function askForToken() {
  tokenForm.hidden = false;
  token.focus();
}

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
  try {
    if ((await asksForToken()) && !hasToken()) {
      askForToken();
      return;
    }
    const names = (await models()).map((model) => model.id);
    choice.replaceChildren(...names.map((name) => h("option", {}, name)));
    choice.disabled = names.length < 2;
    tokenForm.hidden = true;
    say(null);
    turn();
  } catch (error) {
    say(error);
  }
}

setUpCompare(() => choice.value, say);
setUpRows(() => choice.value, say);
choice.addEventListener("change", turn);
addEventListener("hashchange", () => {
  turn();
  scrollTo(0, 0);
});
tokenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(token.value);
  token.value = "";
  void begin();
});
turn();
void begin();
