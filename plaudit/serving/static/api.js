// The server, in words: one function per route, and errors as sentences.

/**
 * @typedef {{role: string, content: unknown}} Message
 * @typedef {string | Message[]} Text
 * @typedef {{text: string, reward: number}} Step the reward if the response ended here
 * @typedef {{
 *   model: string, rewards: number[], win_probabilities: number[], ranks: number[],
 *   tokens: number[], token_rewards?: Step[][] | null, outputs?: Record<string, number>[] | null,
 *   spread?: number[] | null, lower_bound?: number[] | null,
 *   usage: {prompt_tokens: number, computed_tokens: number, total_tokens: number},
 * }} Rewards
 */

const KEY = "plaudit-token";
/** Statuses that pass by themselves. */
const BUSY = [429, 502, 503, 504];
const TRIES = 5;

/** What a person is told. `status` is 0 where no answer came; `param` is the field that is meant. */
export class ServerError extends Error {
  /** @param {string} sentence @param {number} status @param {string | null} param */
  constructor(sentence, status, param) {
    super(sentence);
    this.status = status;
    this.param = param;
  }
}

/** Kept for this tab alone. @param {string} value */
export function keepToken(value) {
  sessionStorage.setItem(KEY, value);
}

export function hasToken() {
  return sessionStorage.getItem(KEY) !== null;
}

/**
 * Prompt and responses scored; a busy server is asked again, as it says when.
 * @param {string} model
 * @param {Text} prompt
 * @param {Text[]} responses
 * @param {{fields?: Record<string, boolean>, signal: AbortSignal}} options what to add to the rewards
 * @returns {Promise<Rewards>}
 */
export async function score(model, prompt, responses, { fields = {}, signal }) {
  const body = JSON.stringify({ model, prompt, responses, ...fields });
  const headers = { "Content-Type": "application/json" };
  for (let attempt = 1; ; attempt++) {
    const answer = await send("v1/rewards", { method: "POST", body, headers, signal });
    if (answer.ok) return /** @type {Promise<Rewards>} */ (answer.json());
    if (!BUSY.includes(answer.status) || attempt === TRIES) throw await problem(answer);
    const named = Number(answer.headers.get("Retry-After"));
    await pause(named > 0 ? Math.min(named, 30) : 0.5 * 2 ** attempt * Math.random(), signal);
  }
}

/** @returns {Promise<{id: string}[]>} */
export async function models() {
  return /** @type {{data: {id: string}[]}} */ (await read("v1/models")).data;
}

/** @param {string} name @returns {Promise<Record<string, unknown>>} */
export async function metadata(name) {
  return /** @type {Record<string, unknown>} */ (await read(`v1/models/${encodeURIComponent(name)}`));
}

/** Whether the server asks for a token. @returns {Promise<boolean>} */
export async function asksForToken() {
  return /** @type {{token: boolean}} */ (await read("page.json")).token;
}

/** The server's own description of its routes. @returns {Promise<unknown>} */
export async function openapi() {
  return read("openapi.json");
}

/** @param {string} name @param {string} paper @returns {Promise<Blob>} */
export async function paper(name, paper) {
  const answer = await send(paperAddress(name, paper), {});
  if (!answer.ok) throw await problem(answer);
  return answer.blob();
}

/** @param {string} name @param {string} paper */
export function paperAddress(name, paper) {
  return `models/${encodeURIComponent(name)}/${paper}`;
}

/** @param {string} address @returns {Promise<unknown>} */
async function read(address) {
  const answer = await send(address, {});
  if (!answer.ok) throw await problem(answer);
  return answer.json();
}

/** @param {string} address @param {RequestInit} options @returns {Promise<Response>} */
async function send(address, options) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(KEY);
  if (token !== null) headers.set("Authorization", `Bearer ${token}`);
  try {
    return await fetch(address, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("The server is unreachable; check that it is running.", 0, null);
  }
}

/** @param {Response} answer @returns {Promise<ServerError>} */
async function problem(answer) {
  const busy = "The server is busy; try again in a moment.";
  const said = BUSY.includes(answer.status) ? busy : `The server returned HTTP ${answer.status}.`;
  try {
    const { message, param } = (await answer.json()).error;
    return new ServerError(message, answer.status, param);
  } catch {
    // A proxy's page says less than the status.
    return new ServerError(said, answer.status, null);
  }
}

/** @param {number} seconds @param {AbortSignal} signal @returns {Promise<void>} */
function pause(seconds, signal) {
  return new Promise((done, stopped) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), stopped(signal.reason)));
  });
}
