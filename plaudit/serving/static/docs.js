// The page of the API: the server's OpenAPI document as tables.

import { openapi } from "./api.js";
import { byId, h } from "./dom.js";
import { beginWithToken } from "./token.js";

/**
 * @typedef {{
 *   $ref?: string, type?: string, const?: unknown, enum?: unknown[], items?: Schema,
 *   anyOf?: Schema[], oneOf?: Schema[], properties?: Record<string, Schema>, required?: string[],
 *   description?: string, default?: unknown,
 * }} Schema
 * @typedef {{description?: string, content?: Record<string, {schema?: Schema, example?: unknown}>}} Content
 * @typedef {{
 *   summary: string, description?: string, tags: string[], requestBody?: Content,
 *   responses: Record<string, Content>,
 * }} Operation
 * @typedef {{
 *   info: {version: string}, paths: Record<string, Record<string, Operation>>,
 *   components: {schemas: Record<string, Schema>},
 * }} OpenApi
 */

const JSON_TYPE = "application/json";
/** @type {Record<string, string>} */
const NAMES = { string: "text", integer: "integer", boolean: "boolean" };

/** A type in words, shapes as links to their tables. @param {Schema} schema @returns {(string | Node)[]} */
function typeOf(schema) {
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices !== undefined) {
    const known = choices.filter((choice) => choice.type !== "null");
    return known.flatMap((choice, index) => (index ? [" or ", ...typeOf(choice)] : typeOf(choice)));
  }
  if (schema.$ref !== undefined) {
    const name = schema.$ref.slice(schema.$ref.lastIndexOf("/") + 1);
    return [h("a", { href: `#${name}` }, name)];
  }
  if (schema.items !== undefined) {
    const element = typeOf(schema.items);
    return element.length > 1 ? ["list of (", ...element, ")"] : ["list of ", ...element];
  }
  const values = schema.enum ?? (schema.const === undefined ? [] : [schema.const]);
  if (values.length) return [values.map((value) => JSON.stringify(value)).join(" or ")];
  return [NAMES[schema.type ?? ""] ?? schema.type ?? "any"];
}

/** A text whose `code` is marked. @param {string} text @returns {(string | Node)[]} */
function words(text) {
  return text.split(/`+([^`]+)`+/).map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

/** @param {Record<string, Schema>} properties @param {string[]} required */
function fields(properties, required) {
  const rows = Object.entries(properties).map(([name, field]) => {
    const silent = field.default === undefined || field.default === null || field.const !== undefined;
    const more = silent ? "" : ` Default: \`${JSON.stringify(field.default)}\`.`;
    return h(
      "tr", {},
      h("th", { scope: "row" }, h("code", {}, name), required.includes(name) && " *"),
      h("td", {}, ...typeOf(field)),
      h("td", {}, ...words((field.description ?? "") + more)),
    );
  });
  const heads = ["field, * required", "type", "meaning"].map((text) => h("th", { scope: "col" }, text));
  return h("table", {}, h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...rows));
}

/** @param {string} name @param {Content | undefined} content */
function exchanged(name, content) {
  const sent = content?.content?.[JSON_TYPE];
  if (sent?.schema === undefined || !Object.keys(sent.schema).length) return null;
  return h("p", {}, `${name}: `, ...typeOf(sent.schema));
}

/** Addresses that do the same, with one description. @param {[string, Operation][]} same */
function operation(same) {
  const first = /** @type {Operation} */ (same[0]?.[1]);
  const example = first.requestBody?.content?.[JSON_TYPE]?.example;
  return h(
    "section", {},
    h("h2", {}, first.summary),
    h("p", {}, ...same.flatMap(([address]) => [h("code", { class: "address" }, address), " "])),
    h("p", {}, ...words(first.description ?? "")),
    exchanged("Request", first.requestBody),
    example !== undefined && h("pre", {}, h("code", {}, JSON.stringify(example, null, 2))),
    exchanged("Response", first.responses["200"]),
  );
}

/** @param {OpenApi} api */
function shown(api) {
  /** @type {Map<string, [string, Operation][]>} */
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, found] of Object.entries(methods)) {
      const key = `${found.tags.join()} ${found.summary}`;
      const same = groups.get(key) ?? [];
      groups.set(key, [...same, [`${method.toUpperCase()} ${path}`, found]]);
    }
  }
  const errors = Object.entries([...groups.values()][0]?.[0]?.[1].responses ?? {})
    .filter(([status]) => status >= "400")
    .map(([status, { description = "" }]) =>
      h("tr", {}, h("th", { scope: "row" }, status), h("td", {}, description)),
    );
  const shapes = Object.entries(api.components.schemas).map(([name, schema]) =>
    h(
      "section", { id: name, tabindex: -1 },
      h("h3", {}, name),
      h("p", {}, ...words(schema.description ?? "")),
      schema.properties === undefined
        ? h("p", {}, ...typeOf(schema))
        : fields(schema.properties, schema.required ?? []),
    ),
  );
  return [
    ...[...groups.values()].map(operation),
    h("h2", {}, "Errors"),
    h("p", {}, "The body of every error response is an ", h("a", { href: "#ErrorBody" }, "ErrorBody"), "."),
    h("table", {}, h("tbody", {}, ...errors)),
    h("h2", {}, "Schemas"),
    ...shapes,
  ];
}

beginWithToken(async () => {
  const description = /** @type {OpenApi} */ (await openapi());
  byId("operations", HTMLDivElement).replaceChildren(...shown(description));
  if (location.hash !== "") document.getElementById(location.hash.slice(1))?.scrollIntoView();
});
