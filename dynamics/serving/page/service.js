// Requests to the service and its event stream. The messages: dynamics/serving/schemas.py.

const KEY = "dynamics-api-key";

/** What went wrong, in one line that a person can read. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "Failure";
    this.status = status;
  }
}

/** The API key, of this tab only. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function reason(response) {
  let detail = `The service answered with status ${response.status}.`;
  try {
    const reply = await response.json();
    if (typeof reply.detail === "string") detail = reply.detail;
  } catch {
    // Something between here and the service has answered; its status has to do.
  }
  if (response.status !== 503 && response.status !== 429) return detail;
  const wait = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  return `The service is busy (${detail}). Try again in ${wait > 1 ? `${wait} seconds` : "a moment"}.`;
}

async function send(path, body, signal) {
  const headers = {};
  if (body) headers["content-type"] = "application/json";
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service does not answer. Is it still running?");
  }
  if (!response.ok) throw new Failure(await reason(response), response.status);
  return response;
}

/** What the service can do: ModelsReply. */
export const models = async () => (await send("v1/models")).json();

/** The scenes at hand, and what the rounds changed: ScenesReply. */
export const scenes = async () => (await send("v1/scenes")).json();

/** A picture as the model sees it: LookReply. */
export const look = async (body) => (await send("v1/look", body)).json();

/** Words of an action that the model does not know, each with the nearest known one. */
export const unknownWords = async (body) => (await (await send("v1/words", body)).json()).unknown;

/** A film of frames, as Blob; the body is an AnimationRequest. */
export const film = async (body) => (await send("v1/animations", body)).blob();

/** The action between two pictures: LabelReply. */
export const label = async (body) => (await send("v1/label", body)).json();

/** The events of a roll-out, `{name, message}`, as they arrive; the last one is `end`. */
export async function* rollout(body, signal) {
  const response = await send("v1/rollouts", body, signal);
  try {
    for await (const { name, data } of readEvents(response.body)) {
      const message = JSON.parse(data);
      if (name === "error") throw new Failure(message.detail);
      yield { name, message };
      if (name === "end") return;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Failure) throw error;
    throw new Failure("The connection to the service broke off.");
  }
  throw new Failure("The service ended the roll-out before its last step.");
}

/** Server-sent events of a byte stream; EventSource cannot send a body. */
export async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let name = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    // A CR at the very end may be half of a CRLF: it waits for what comes next.
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length) yield { name: name || "message", data: data.join("\n") };
        name = "";
        data = [];
        continue;
      }
      const [, field, text] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
      if (field === "event") name = text ?? "";
      if (field === "data") data.push(text ?? "");
    }
  }
}
