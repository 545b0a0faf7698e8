// The playground: a conversation, its settings, and the key.
//
// Owns what happens when something is clicked or typed. Never reads bytes (stream.js), never draws words (answer.js).
//
// 1. The key is kept in the session storage of this tab alone, and leaves the address bar before anything is asked.
// 2. What was shown stays in the conversation, also after a stop; a question without any answer goes back to its box.
// 3. A number that is not given is not sent: the server's own default is the only one.

import { Details, Turn, shown } from "./answer.js";
import { ApiError, chunks, request } from "./stream.js";

const byId = (id) => document.getElementById(id);
const [prompt, send, stop, clear, turns] = ["prompt", "send", "stop", "clear", "turns"].map(byId);
const [settings, gamma, own, rule, fold] = ["settings", "gamma", "own", "rule", "fold"].map(byId);

const N_ALTERNATIVES = 5;
const LOADING_POLL_MS = 1000;
const KEY_NAME = "edge-nudge key";

const RULES = {
  top_prob: {
    max: 1, step: 0.01, usual: 0.4,
    help: "The base model writes where its top‑1 probability is at least gamma. Lower: more of the base model.",
  },
  margin: {
    max: 1, step: 0.01, usual: 0.2,
    help: "The base model writes where its best token leads the second by at least gamma. Lower: more of the base model.",
  },
  entropy: {
    max: 6, step: 0.05, usual: 2,
    help: "The base model writes where its entropy is at most gamma nats. Higher: more of the base model.",
  },
  token: {
    max: 1, step: 0.01, usual: 0.4,
    help: "The base model writes where the token it draws has at least probability gamma. Lower: more of the base model.",
  },
  bet: {
    max: 1, step: 0.01, usual: 0.2,
    help: "The base model writes where its token is at most gamma less probable than the nudging model’s best one. Higher: more of the base model.",
  },
  blend: {
    max: 1, step: 0.01, usual: 0.4,
    help: "The base model writes where its top‑1 probability is at least gamma; elsewhere a token is drawn from a mix of both models. Lower: more of the base model.",
  },
  "base-only": { help: "The base model writes alone, for comparison." },
  "nudging-only": { help: "The nudging model writes alone, for comparison." },
};

let messages = []; // the conversation so far, without the system message
let running = null; // AbortController of the answer that is being written
let modelId = null;
let statusText = "";
let isMeeting = false;

// --- the key ---

let keyInMemory = null; // where the browser refuses storage
let asking = null;

function storedKey() {
  try {
    return sessionStorage.getItem(KEY_NAME) ?? keyInMemory;
  } catch {
    return keyInMemory;
  }
}

function keepKey(key) {
  keyInMemory = key;
  try {
    sessionStorage.setItem(KEY_NAME, key);
  } catch {
    // Kept for as long as the page is open.
  }
}

/** Take `#key=...` out of the address, as it is, or percent-encoded. */
function takeKeyFromAddress() {
  const match = /^#key=(.+)$/.exec(location.hash);
  if (!match) return false;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    keepKey(decodeURIComponent(match[1]));
  } catch {
    keepKey(match[1]);
  }
  return true;
}

/** Ask the reader for the key; null where they would not say. Two questions at once are one. */
function askKey(wasRefused) {
  asking ??= new Promise((resolve) => {
    const [dialog, input] = [byId("key-dialog"), byId("key")];
    byId("key-why").textContent = wasRefused
      ? "The key you gave was refused."
      : "It was shown, or set, where the server was started. This tab forgets it when it is closed.";
    input.value = "";
    let given = null;
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      given = input.value.trim() || null;
      dialog.close();
    };
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      if (given !== null) keepKey(given);
      input.value = "";
      asking = null;
      resolve(given);
    };
    dialog.showModal();
    input.focus();
  });
  return asking;
}

/** Ask for an address with the key, and for the key where the server wants one. */
async function requestWithKey(path, options = {}) {
  for (;;) {
    const key = storedKey();
    try {
      return await request(path, { ...options, key });
    } catch (error) {
      if (error.status !== 401) throw error;
      if (key === storedKey() && (await askKey(key !== null)) === null) {
        throw new ApiError("This server answers only with its key.", { status: 401 });
      }
    }
  }
}

// --- the server ---

function showStatus(text, state) {
  const line = byId("model");
  if (statusText !== text) line.replaceChildren(...shown(text)); // the same again would be read aloud again
  statusText = text;
  line.dataset.state = state;
}

/** Find out which pair is served; while it loads, ask again. */
async function meet() {
  if (isMeeting) return;
  isMeeting = true;
  try {
    for (let why = await whyNotReady(); why !== null; why = await whyNotReady()) {
      showStatus(why, "loading");
      await new Promise((resolve) => setTimeout(resolve, LOADING_POLL_MS));
    }
    const { data } = await (await requestWithKey("v1/models")).json();
    modelId = data?.[0]?.id ?? null;
    showStatus(modelId ?? "", "ready");
  } catch (error) {
    showStatus(error.status === 401 ? "a key is needed" : "no connection", "failed");
  } finally {
    isMeeting = false;
  }
}

async function whyNotReady() {
  try {
    await request("health");
    return null;
  } catch (error) {
    if (error.status !== 503) throw error;
    return error.code === "loading" ? "loading the models" : error.message;
  }
}

// --- the settings ---

const number = (id) => (byId(id).value === "" ? null : byId(id).valueAsNumber);

function bodyFor(question) {
  const system = byId("system").value;
  const body = {
    messages: [
      ...(system.trim() ? [{ role: "system", content: system }] : []),
      ...messages,
      { role: "user", content: question },
    ],
    stream: true,
    stream_options: { include_usage: true },
    rule: rule.value,
  };
  if (modelId !== null) body.model = modelId;
  if (!own.checked && RULES[rule.value].max) body.gamma = gamma.valueAsNumber;
  const numbers = { max_tokens: "max-tokens", temperature: "temperature", seed: "seed" };
  for (const [name, id] of Object.entries(numbers)) {
    const value = number(id);
    if (value !== null) body[name] = value;
  }
  if (byId("alternatives").checked) Object.assign(body, { logprobs: true, top_logprobs: N_ALTERNATIVES });
  return body;
}

function areSettingsGood() {
  if (settings.checkValidity()) return true;
  fold.open = true; // the browser points at the field, which has to be there
  settings.reportValidity();
  return false;
}

function showGamma() {
  const { max } = RULES[rule.value];
  gamma.disabled = own.disabled = !max;
  gamma.classList.toggle("unused", own.checked);
  const nats = rule.value === "entropy" ? " nats" : "";
  const value = `${gamma.valueAsNumber.toFixed(2)}${nats}`;
  byId("gamma-shown").textContent = !max || own.checked ? "" : value;
  gamma.setAttribute("aria-valuetext", own.checked ? "the pair's own" : value);
}

function showRule() {
  const { max, step, usual, help } = RULES[rule.value];
  if (max) {
    Object.assign(gamma, { max: String(max), step: String(step) });
    gamma.value = String(usual);
  }
  byId("gamma-help").textContent = help;
  showGamma();
}

// --- the conversation ---

/** Keep the end in sight, unless the reader has scrolled away from it. */
function follow(change) {
  const root = document.scrollingElement;
  const isAtEnd = root.scrollHeight - root.scrollTop - root.clientHeight < 60;
  const result = change();
  if (isAtEnd) root.scrollTop = root.scrollHeight;
  return result;
}

function say(sentence) {
  const line = document.createElement("p");
  line.textContent = sentence;
  byId("spoken").append(line);
}

function setRunning(controller) {
  const hadFocus = [send, stop].includes(document.activeElement);
  running = controller;
  send.hidden = controller !== null;
  stop.hidden = controller === null;
  clear.disabled = turns.childElementCount === 0;
  if (hadFocus) (controller === null ? prompt : stop).focus();
}

async function ask(question) {
  for (const failed of turns.querySelectorAll(".failed")) failed.remove();
  byId("blank").hidden = true;
  byId("spoken").replaceChildren();
  const controller = new AbortController();
  const turn = new Turn(question, { say, copy, follow });
  turns.append(turn.element);
  setRunning(controller);
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;

  const seen = { nudge: null, timings: null, finishReason: null, firstWordMs: null, isStopped: false };
  seen.isDrawn = number("temperature") > 0;
  let error = null;
  let isKeyMissing = false;
  try {
    await read(turn, bodyFor(question), controller.signal, seen);
  } catch (raised) {
    seen.isStopped = controller.signal.aborted;
    if (!seen.isStopped) error = wordsOf(raised);
    isKeyMissing = raised.status === 401;
  }
  if (!turn.element.isConnected) return; // cleared while it was written
  follow(() => turn.end(seen, error));
  if (seen.finishReason === null && turn.text === "") giveBack(question, turn);
  else messages.push({ role: "user", content: question }, { role: "assistant", content: turn.text });
  setRunning(null);
  const isKnown = byId("model").dataset.state === "ready";
  if (!isKeyMissing && (error !== null || !isKnown)) meet(); // something changed on the other side
}

async function read(turn, body, signal, seen) {
  const start = performance.now();
  const response = await requestWithKey("v1/chat/completions", { body, signal });
  for await (const chunk of chunks(response, signal)) {
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content;
    if (text) {
      seen.firstWordMs ??= performance.now() - start;
      turn.add(text, chunk.nudge ?? null, choice.logprobs?.content ?? null);
    }
    if (choice?.finish_reason) {
      seen.finishReason = choice.finish_reason;
      seen.nudge = chunk.nudge ?? null;
      seen.timings = chunk.timings ?? null;
    }
  }
}

function giveBack(question, turn) {
  turn.element.classList.add("failed");
  if (prompt.value === "") {
    prompt.value = question;
    fit();
  }
}

function wordsOf(error) {
  if (!(error instanceof ApiError)) {
    console.error(error);
    return "This page went wrong; the browser's console says where.";
  }
  const again = error.retryAfter === null ? "" : ` Try again in ${error.retryAfter} s.`;
  const message = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  return /[.!?]$/.test(message) ? message + again : `${message}.${again}`;
}

async function copy(turn) {
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(turn.text);
  } catch {
    isCopied = copyBySelection(turn.text);
  }
  turn.copyButton.textContent = isCopied ? "Copied" : "Could not copy";
  setTimeout(() => (turn.copyButton.textContent = "Copy answer"), 2000);
}

// A page that came over plain HTTP from another machine has no clipboard of its own.
function copyBySelection(text) {
  const box = document.createElement("textarea");
  box.value = text;
  box.className = "unseen";
  document.body.append(box);
  box.select();
  const isCopied = document.execCommand("copy");
  box.remove();
  return isCopied;
}

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + prompt.offsetHeight - prompt.clientHeight}px`;
}

// --- what is clicked and typed ---

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = prompt.value;
  if (running || !question.trim() || !areSettingsGood()) return;
  prompt.value = "";
  fit();
  ask(question);
});
prompt.addEventListener("keydown", (event) => {
  // An input method uses Enter to take a word; a keyboard on glass has no Shift+Enter.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
  event.preventDefault();
  byId("ask").requestSubmit();
});
prompt.addEventListener("input", fit);
stop.addEventListener("click", () => running?.abort());
clear.addEventListener("click", () => {
  running?.abort();
  messages = [];
  turns.replaceChildren();
  byId("spoken").replaceChildren();
  byId("blank").hidden = false;
  details.hide();
  setRunning(null);
  prompt.focus();
});
settings.addEventListener("submit", (event) => event.preventDefault());
rule.addEventListener("change", showRule);
own.addEventListener("change", showGamma);
gamma.addEventListener("input", () => {
  own.checked = false;
  showGamma();
});
addEventListener("hashchange", () => {
  if (takeKeyFromAddress()) meet();
});
const touch = matchMedia("(pointer: coarse)");
const narrow = matchMedia("(max-width: 56rem)");
const foldWhereNarrow = () => (fold.open = !narrow.matches);
narrow.addEventListener("change", foldWhereNarrow);

const details = new Details(byId("details"), turns);
foldWhereNarrow();
takeKeyFromAddress();
showRule();
fit();
meet();
prompt.focus();
