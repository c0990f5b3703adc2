// The service's own description of its API, as tables.

import { $, el } from "./dom.js";

const JSON_TYPE = "application/json";
const EVENTS_TYPE = "text/event-stream";

let components = {};

/** A schema without references; of "this or null" the first. */
function resolved(schema = {}) {
  if (schema.$ref) return resolved(components[schema.$ref.split("/").pop()]);
  if (schema.anyOf) return resolved(schema.anyOf.find((one) => one.type !== "null"));
  return schema;
}

function typeName(schema) {
  const plain = resolved(schema);
  if (plain.enum) return plain.enum.join(", ");
  if (plain.type === "array") return `list of ${typeName(plain.items)}s`;
  if (plain.type === "object") return plain.title;
  return `${plain.type}${range(plain)}`;
}

function range(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  if (low === undefined && high === undefined) return "";
  const above = schema.exclusiveMinimum === undefined ? "" : "above ";
  return high === undefined ? `, from ${low}` : `, ${above}${low} to ${high}`;
}

function usual(schema, name, parent) {
  if (parent.required?.includes(name)) return "needed";
  return schema.default === undefined || schema.default === null ? "" : `default ${schema.default}`;
}

function table(schema, isRequest) {
  const parent = resolved(schema);
  const rows = Object.entries(parent.properties ?? {}).map(([name, field]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", {}, typeName(field)),
      isRequest ? el("td", {}, usual(field, name, parent)) : null,
      el("td", {}, (field.description ?? resolved(field).description ?? "").replaceAll("``", "")),
    ),
  );
  return el("div", { className: "scroll" }, el("table", {}, el("tbody", {}, ...rows)));
}

function part(title, schema, isRequest = false) {
  return [el("h3", {}, title), table(schema, isRequest)];
}

function route(path, method, one) {
  const request = one.requestBody?.content[JSON_TYPE]?.schema;
  const content = one.responses["200"]?.content ?? {};
  const reply = content[JSON_TYPE]?.schema;
  const events = Object.entries(content[EVENTS_TYPE]?.["x-events"] ?? {});
  return el(
    "section",
    {},
    el("h2", {}, el("small", {}, method.toUpperCase()), ` ${path}`),
    el("p", {}, one.description ?? one.summary),
    ...(request ? part("Request", request, true) : []),
    ...(resolved(reply).properties ? part("Reply", reply) : []),
    ...events.flatMap(([name, schema]) => part(`Event ${name}`, schema)),
  );
}

async function show() {
  const reply = await fetch("openapi.json");
  if (!reply.ok) throw new Error(`status ${reply.status}`);
  const description = await reply.json();
  components = description.components?.schemas ?? {};
  const routes = Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => route(path, method, one)),
  );
  const refusals = el(
    "p",
    { className: "hint" },
    "Every error is JSON with one line, detail: 401 without the right key (Authorization: Bearer KEY), 413 too large, 422 invalid, 503 busy, with Retry-After.",
  );
  $("routes").replaceChildren(refusals, ...routes);
}

show().catch((error) => {
  $("routes").replaceChildren(
    el("p", { className: "notice" }, `The service does not describe itself: ${error.message}.`),
  );
});
