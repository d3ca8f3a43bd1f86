// Per-token rewards of a response: a strip of tokens, a chart, and one slider that reads both.

import { h, letter, reward, svg } from "./dom.js";

/** @typedef {import("./api.js").Step} Step */

const HEIGHT = 220, LEFT = 46, RIGHT = 22, TOP = 12, BOTTOM = 30;
/** Colours of the scale on either side of nothing; style.css has `up1` to `up4`, `down1` to `down4`. */
const SHADES = 4;

/**
 * All responses in one chart and a strip each. A token's colour is what it changed: the reward of the
 * response up to it, less that up to the token before.
 * @param {Step[][]} responses
 * @returns {HTMLElement}
 */
export function tokenRewardsView(responses) {
  const widest = Math.max(...responses.flatMap((steps) => changes(steps).map(Math.abs)), 1e-9);
  const chart = chartOf(responses);
  return h("section", { class: "token-rewards", "aria-label": "Per-token rewards of the responses" },
    h("h2", {}, "Per-token rewards"),
    h("p", { class: "soft" },
      "The reward if the response ended at this token. The colour shows the change by the token, up to ",
      `±${reward(widest)}: `,
      h("span", { class: "token down4" }, "lower"), " ", h("span", { class: "token" }, "same"), " ",
      h("span", { class: "token up4" }, "higher"), "."),
    h("figure", {}, chart.element),
    ...responses.map((steps, index) => stripOf(steps, index, widest, (at) => chart.mark(index, at))),
  );
}

/** What each token changed; the first has nothing before it. @param {Step[]} steps */
function changes(steps) {
  return steps.map((step, at) => (at === 0 ? 0 : step.reward - (steps[at - 1]?.reward ?? 0)));
}

/**
 * @param {Step[]} steps
 * @param {number} index
 * @param {number} widest
 * @param {(at: number) => void} onMove
 */
function stripOf(steps, index, widest, onMove) {
  const name = `Response ${letter(index)}`;
  if (steps.length === 0) return h("p", { class: "soft" }, `${name} has no tokens.`);
  const moved = changes(steps);
  const tokens = steps.map((step, at) => {
    const shade = Math.ceil((SHADES * Math.abs(moved[at] ?? 0)) / widest - 0.25);
    const kind = shade < 1 ? "" : ` ${(moved[at] ?? 0) < 0 ? "down" : "up"}${shade}`;
    return h("span", { class: `token${kind}`, "data-at": at }, shown(step.text));
  });
  const strip = h("p", { class: "strip", "aria-hidden": true }, ...tokens);
  const slider = h("input", {
    type: "range", min: 0, max: steps.length - 1, value: steps.length - 1, step: 1,
    id: `token-${index}`, "aria-label": `${name}, token`, oninput: () => move(Number(slider.value)),
  });
  const readout = h("output", { for: slider.id });
  let before = tokens[0];

  /** @param {number} at */
  function move(at) {
    const step = steps[at];
    if (step === undefined) return;
    before?.classList.remove("here");
    before = tokens[at];
    before?.classList.add("here");
    slider.value = String(at);
    const change = at === 0 ? "" : `, ${reward(moved[at] ?? 0, true)}`;
    const place = `token ${at + 1} of ${steps.length}`;
    slider.setAttribute("aria-valuetext", `${place}: ${step.text.trim() || "white space"}, reward ${reward(step.reward)}${change}`);
    readout.replaceChildren(
      h("span", { class: "soft" }, `${place} `), h("b", {}, shown(step.text).trim() || "␣"),
      h("span", { class: "soft" }, " reward "), reward(step.reward), at === 0 ? "" : ` (${reward(moved[at] ?? 0, true)})`);
    onMove(at);
  }
  for (const kind of ["pointerover", "click"]) {
    strip.addEventListener(kind, (event) => {
      const at = event.target instanceof HTMLElement ? event.target.dataset["at"] : undefined;
      if (at !== undefined) move(Number(at));
    });
  }
  move(steps.length - 1);
  return h("div", { class: "reading" },
    h("label", { for: slider.id }, h("span", { class: `key line${index % 6}` }), name),
    readout, slider, strip);
}

/** White space that would not be seen. @param {string} text */
function shown(text) {
  return text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t") || "∅";
}

/**
 * @param {Step[][]} responses
 * @returns {{element: SVGElement, mark: (index: number, at: number) => void}}
 */
function chartOf(responses) {
  // Drawn about as wide as it is shown, so that its letters are as large as the page's.
  const width = matchMedia("(max-width: 40rem)").matches ? 340 : 640;
  const all = responses.flat().map((step) => step.reward);
  const ticks = niceTicks(Math.min(...all), Math.max(...all));
  const low = ticks[0] ?? 0, high = ticks.at(-1) ?? 1;
  const longest = Math.max(...responses.map((steps) => steps.length), 2);
  /** @param {number} at */
  const x = (at) => LEFT + (at / (longest - 1)) * (width - LEFT - RIGHT);
  /** @param {number} value */
  const y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const ends = responses.map((steps, index) => `${letter(index)} ${reward(steps.at(-1)?.reward ?? 0)}`);
  const element = svg("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", class: "chart",
    "aria-label": `Reward over tokens. At the end: ${ends.join(", ")}.`,
  });
  for (const tick of ticks) {
    element.append(
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick), class: "grid" }),
      svg("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick, ticks)));
  }
  for (const at of [0, longest - 1]) {
    element.append(svg("text", { x: x(at), y: HEIGHT - 10, "text-anchor": at === 0 ? "start" : "end" }, String(at + 1)));
  }
  element.append(svg("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 10, "text-anchor": "middle" }, "tokens of the response"));
  const marks = responses.map((steps, index) => {
    const points = steps.map((step, at) => `${x(at).toFixed(1)},${y(step.reward).toFixed(1)}`);
    const last = steps.at(-1);
    const dot = svg("circle", { r: 4.5, class: `dot line${index % 6}` });
    element.append(svg("polyline", { points: points.join(" "), class: `curve line${index % 6}` }), dot);
    if (last !== undefined) {
      element.append(svg("text", { x: x(steps.length - 1) + 8, y: y(last.reward) + 4, class: "name" }, letter(index)));
    }
    return dot;
  });
  /** @param {number} index @param {number} at */
  function mark(index, at) {
    const step = responses[index]?.[at];
    marks[index]?.setAttribute("cx", String(x(at)));
    marks[index]?.setAttribute("cy", String(y(step?.reward ?? 0)));
  }
  return { element, mark };
}

/** Round numbers that hold all values between them. @param {number} least @param {number} most */
function niceTicks(least, most) {
  const span = Math.max(most - least, 1e-6);
  const power = 10 ** Math.floor(Math.log10(span / 4));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => span / size <= 5) ?? span;
  const first = Math.floor(least / step), last = Math.max(Math.ceil(most / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, number) => (first + number) * step);
}

/** @param {number} tick @param {number[]} ticks */
function tickText(tick, ticks) {
  const step = (ticks[1] ?? 1) - (ticks[0] ?? 0);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return (tick < -step / 2 ? "−" : "") + Math.abs(tick).toFixed(digits);
}
