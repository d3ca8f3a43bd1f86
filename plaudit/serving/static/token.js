// The token that a server may ask for, and one place for what went wrong; of every page.

import { asksForToken, hasToken, keepToken, ServerError } from "./api.js";
import { byId } from "./dom.js";

const form = byId("token-form", HTMLFormElement);
const token = byId("token", HTMLInputElement);
const problem = byId("problem", HTMLParagraphElement);

/**
 * Fill the page by `begin` as soon as the token is there, and again with every other token.
 * @param {() => Promise<void>} begin
 * @returns {(error: unknown) => void} tells what went wrong, or with null that nothing does any more
 */
export function beginWithToken(begin) {
  /** @param {unknown} error */
  function say(error) {
    problem.hidden = error === null;
    problem.textContent = error instanceof Error ? error.message : error === null ? "" : String(error);
    if (error instanceof ServerError && error.status === 401) {
      problem.textContent = "The server rejected this token; enter another one.";
      ask();
    }
  }

  function ask() {
    form.hidden = false;
    token.focus();
  }

  async function tryToBegin() {
    try {
      if ((await asksForToken()) && !hasToken()) {
        ask();
        return;
      }
      await begin();
      form.hidden = true;
      say(null);
    } catch (error) {
      say(error);
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    keepToken(token.value);
    token.value = "";
    void tryToBegin();
  });
  void tryToBegin();
  return say;
}
