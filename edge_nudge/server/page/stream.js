// What goes over the wire: one question out, the events of its answer in.
//
// Owns the SSE parser, the request and the sentences for what can go wrong. Never touches the document.
//
// 1. Any cut of the bytes gives the same events: lines and characters are put together before they are read.
// 2. An answer is over at its `[DONE]`; a stream that ends before is an error, never a short answer.
// 3. Addresses are relative to the page, so that it works behind a proxy under any path.

/** An answer of the server that is no success; `status` 0 where there was none. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** Turns bytes, in pieces of any size, into the `data` of server-sent events. */
export class EventReader {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];
  #isBehindReturn = false;

  /** Takes some bytes and returns the events that are whole now. */
  push(bytes) {
    const text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return [];
    // CR, LF and CR LF end a line; the LF of a CR at the end of the last piece ends nothing more.
    const lines = (this.#rest + (this.#isBehindReturn ? text.replace(/^\n/, "") : text)).split(/\r\n|\n|\r/);
    this.#isBehindReturn = text.endsWith("\r");
    this.#rest = lines.pop();
    return lines.flatMap((line) => this.#line(line));
  }

  #line(line) {
    if (line === "") {
      const data = this.#data;
      this.#data = [];
      return data.length ? [data.join("\n")] : [];
    }
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "data") this.#data.push(value);
    return [];
  }
}

/** Asks for an address below the page; raises ApiError for anything but success. */
export async function request(path, { key = null, body = null, signal = null } = {}) {
  const headers = new Headers(body === null ? {} : { "content-type": "application/json" });
  try {
    if (key) headers.set("authorization", `Bearer ${key}`);
  } catch {
    throw new ApiError("The key has characters that no key has.", { status: 401 });
  }
  let response;
  try {
    response = await fetch(path, {
      method: body === null ? "GET" : "POST",
      headers,
      body: body === null ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "same-origin", // a proxy in front may have asked for a password
      redirect: "error", // the key goes nowhere else
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached. Does it still run?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Yields the chunks of an answer as they come; leaving the loop early closes the connection. Raises ApiError. */
export async function* chunks(response, signal) {
  const reader = response.body.getReader();
  const events = new EventReader();
  try {
    for (;;) {
      const { done, value } = await taken(reader, signal);
      if (done) throw new ApiError("The connection ended before the answer did.");
      for (const data of events.push(value)) {
        if (data === "[DONE]") return;
        yield chunkOf(data);
      }
    }
  } finally {
    // The server works for as long as the connection is open.
    await reader.cancel().catch(() => {});
  }
}

async function taken(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The connection broke before the answer was finished.");
  }
}

function chunkOf(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiError(`The server sent a line that is no JSON: ${data.slice(0, 80)}`);
  }
  if (chunk.error) throw new ApiError(inWords(chunk.error) ?? "The server reported an error without words.");
  return chunk;
}

async function refusal(response) {
  const { status } = response;
  const text = await response.text().catch(() => "");
  let error = null;
  try {
    ({ error } = JSON.parse(text));
  } catch {
    // Not an answer of the API: something in between.
  }
  const seconds = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  return new ApiError(inWords(error) ?? `The server answered ${status} ${response.statusText}`.trim() + ".", {
    status,
    code: error?.code ?? null,
    retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
}

function inWords(error) {
  const message = typeof error === "string" ? error : error?.message;
  return typeof message === "string" && message !== "" ? message : null;
}
