// One answer on the page: its words by author, what each of them says about itself, and its totals.
//
// Owns the look of an answer and the box with the details of a word. Never asks the server for anything.
//
// 1. Text becomes text nodes only. What would reorder, hide or break text is shown as an escape (`\u202e`).
// 2. The author of a word is its colour and its line; neither is the only sign.
// 3. The words of an answer are one stop of the Tab key; arrow keys walk along them.
// 4. Read aloud is whole sentences, not tokens.
// 5. Words go onto the page once in a frame: each time costs a layout of the whole answer.

// The set of the terminal: C0 but tab and newline, DEL, C1; separators; bidi embeddings, overrides and isolates;
// invisible operators that no script needs; interlinear annotation; lone surrogates.
const HIDDEN = new RegExp(
  "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200b\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ufff9-\\ufffb\\ud800-\\udfff]",
  "u",
);

const REASONS = {
  opening: "It opens the answer.",
  unsure: "The base model was not sure enough here.",
  base_end: "The base model ended, or began another turn of its own.",
  loop: "The base model repeated itself; the repetition was dropped.",
  unusable: "The base model's token was no text.",
  confident: "The base model was sure enough.",
  agreed: "The base model's best token begins the nudging model's next word.",
  blended: "The base model was not sure enough here; this was drawn from the mix of both models.",
  policy: "The rule lets this model write alone.",
};

const ENDINGS = {
  end_of_generation: "ended by itself",
  control_token: "ended at a control token",
  restart_guard: "ended where the base model ended",
  stop_string: "ended at a stop string",
  loop: "ended: it could only repeat itself",
  max_tokens: "cut at max tokens",
  base_context: "cut: the base model's context is full",
  nudging_context: "cut: the nudging model's context is full",
  max_turns: "cut at the most turns",
  cancelled: "cancelled",
};

const LONGEST_SENTENCE = 400; // characters; what has no sentences is read aloud in pieces

/** Make an element with text and children; strings become text nodes. */
export function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Return nodes for a text of unknown origin: text nodes, and marked escapes for what would not be seen. */
export function shown(text) {
  const nodes = [];
  let plain = "";
  for (const character of text) {
    if (!HIDDEN.test(character)) {
      plain += character;
      continue;
    }
    if (plain) nodes.push(plain);
    plain = "";
    const code = character.codePointAt(0);
    const escape = code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
    nodes.push(element("span", "escape", escape));
  }
  if (plain) nodes.push(plain);
  return nodes;
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;

const pieces = new WeakMap(); // element of a word -> { text, nudge, tokens, turn }

/** One turn of the conversation: question, answer, totals, error. */
export class Turn {
  text = "";
  gamma = null; // where the rule compares it with the top-1 probability; known in the end
  #written = { base: 0, nudging: 0 }; // tokens
  #spoken = "";
  #fresh = document.createDocumentFragment(); // words that wait for the next frame
  #frame = 0;
  #hasStop = false; // of the Tab key
  #words;
  #totals;
  #say;
  #follow;

  /** `say` reads a sentence aloud, `copy` takes this turn, `follow` makes a change of the page that adds to it. */
  constructor(question, { say, copy, follow }) {
    this.#say = say;
    this.#follow = follow;
    this.#words = element("div", "words");
    this.#words.dir = "auto";
    this.#words.setAttribute("role", "group");
    this.#words.setAttribute("aria-label", "Answer");
    this.#totals = element("p", "totals");
    const asked = element("div", "question", ...shown(question));
    asked.dir = "auto";
    this.copyButton = element("button", "quiet copy", "Copy answer");
    this.copyButton.type = "button";
    this.copyButton.hidden = true;
    this.copyButton.addEventListener("click", () => copy(this));
    this.element = element(
      "article", "turn busy", asked, this.#words, element("div", "under", this.#totals, this.copyButton),
    );
    this.element.setAttribute("aria-busy", "true");
  }

  /** Add a piece: its text, what the chunk says about it, and its tokens where they were asked for. */
  add(text, nudge, tokens) {
    this.text += text;
    if (nudge?.author in this.#written) this.#written[nudge.author] += nudge.n_tokens ?? 0;
    const word = element("span", "word");
    const [, before, core, after] = /^(\s*)(.*?)(\s*)$/s.exec(text);
    word.append(...shown(core));
    if (nudge && core) {
      word.classList.add(nudge.author === "nudging" ? "nudging" : "base");
      pieces.set(word, { text, nudge, tokens, turn: this });
      word.tabIndex = this.#hasStop ? -1 : 0;
      this.#hasStop = true;
    }
    // Blanks stay outside: a line under them would join words that are not joined.
    this.#fresh.append(...shown(before), ...(core ? [word] : []), ...shown(after));
    this.#frame ||= requestAnimationFrame(() => this.#show());
  }

  #show() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#speak(this.#fresh.textContent);
    this.#follow(() => this.#words.append(this.#fresh));
  }

  #speak(text, isLast = false) {
    this.#spoken += text;
    const { length } = this.#spoken;
    const whole = isLast ? length : /^.*[.!?。！？:;\n](?=\s)/s.exec(this.#spoken)?.[0].length;
    const end = whole ?? (length > LONGEST_SENTENCE ? length : 0);
    if (end === 0) return;
    const sentence = this.#spoken.slice(0, end).trim();
    this.#spoken = this.#spoken.slice(end);
    if (sentence) this.#say(sentence);
  }

  /** Finish with what is known of the whole answer, and with the words of an error where there is one. */
  end(seen, error) {
    if (["top_prob", "blend"].includes(seen.nudge?.rule) && is(seen.nudge.gamma)) this.gamma = seen.nudge.gamma;
    this.#show();
    this.#speak("", true);
    this.element.classList.remove("busy");
    this.element.removeAttribute("aria-busy");
    for (const part of totalsOf(seen, this.#written)) this.#totals.append(element("span", "part", ...shown(part)));
    if (error !== null) {
      const shownError = element("p", "error", ...shown(error));
      shownError.setAttribute("role", "alert");
      this.element.append(shownError);
    }
    this.copyButton.hidden = this.text === "";
  }
}

/** Say the totals of an answer as the terminal does; what comes only with the end is missing where it was stopped. */
function totalsOf({ nudge, timings, finishReason, firstWordMs, isStopped, isDrawn }, written) {
  const nWritten = written.base + written.nudging;
  const ratio = nudge?.ratio_tokens ?? (nWritten ? written.nudging / nWritten : null);
  const nTokens = timings?.predicted_n ?? (nWritten || null);
  const rate = nudge?.total_s > 0 ? nTokens / nudge.total_s : timings?.predicted_per_second;
  const firstWord = nudge?.first_piece_s ?? (firstWordMs === null ? null : firstWordMs / 1000);
  const ofCharacters = is(nudge?.ratio_chars) ? ` (${percent(nudge.ratio_chars)} of characters)` : "";
  const ending = ENDINGS[nudge?.finish_detail] ?? finishReason;
  return [
    is(ratio) && `nudging ratio ${percent(ratio)}${ofCharacters}`,
    is(nudge?.handoffs) && counted(nudge.handoffs, "handoff"),
    is(nudge?.gamma) && `gamma ${nudge.gamma}`,
    is(nTokens) && counted(nTokens, "token"),
    is(rate) && `${rate.toFixed(1)} tokens/s`,
    is(firstWord) && `first word ${firstWord.toFixed(2)} s`,
    isDrawn && is(nudge?.seed) && `seed ${nudge.seed}`,
    isStopped ? "stopped by you" : ending,
  ].filter(Boolean);
}

const is = Number.isFinite;
const counted = (count, name) => `${count} ${name}${count === 1 ? "" : "s"}`;

/** The box beside a word: pointing shows it, keyboard focus shows it, Escape closes it. */
export class Details {
  #box;
  #word = null;
  #leaving = 0;

  constructor(box, area) {
    this.#box = box;
    // A finger points by tapping: it gives the focus, or at least a click.
    area.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "touch") this.#enter(event.target.closest(".word"));
    });
    area.addEventListener("pointerout", (event) => {
      if (event.pointerType !== "touch") this.#leaveSoon();
    });
    area.addEventListener("click", (event) => this.#enter(event.target.closest(".word")));
    document.addEventListener("pointerdown", (event) => {
      if (!event.target.closest(".word, .details")) this.hide();
    });
    box.addEventListener("pointerenter", () => clearTimeout(this.#leaving));
    box.addEventListener("pointerleave", () => this.#leaveSoon());
    area.addEventListener("focusin", (event) => this.#enter(event.target.closest(".word")));
    area.addEventListener("focusout", () => this.hide());
    area.addEventListener("keydown", (event) => this.#walk(event));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.hide();
    });
    addEventListener("scroll", () => this.#place(), { capture: true, passive: true });
    addEventListener("resize", () => this.#place());
  }

  hide() {
    clearTimeout(this.#leaving);
    this.#word?.removeAttribute("aria-describedby");
    this.#word?.classList.remove("open");
    this.#word = null;
    this.#box.hidden = true;
  }

  #enter(word) {
    if (!word || !pieces.has(word)) return;
    clearTimeout(this.#leaving);
    if (word === this.#word) return;
    this.hide();
    this.#word = word;
    word.classList.add("open");
    word.setAttribute("aria-describedby", this.#box.id);
    this.#box.replaceChildren(...describe(pieces.get(word)));
    this.#box.hidden = false;
    this.#place();
  }

  // The pointer may go over to the box; and a word that has the focus keeps it open.
  #leaveSoon() {
    clearTimeout(this.#leaving);
    this.#leaving = setTimeout(() => {
      const focused = document.activeElement?.closest(".word") ?? null;
      if (focused?.matches(":focus-visible")) this.#enter(focused);
      else this.hide();
    }, 150);
  }

  #walk(event) {
    const word = event.target.closest(".word");
    if (!word || event.ctrlKey || event.metaKey || event.altKey) return;
    const words = [...word.parentElement.querySelectorAll(".word[tabindex]")];
    const at = words.indexOf(word);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: words.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = words[Math.min(Math.max(to, 0), words.length - 1)];
    word.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  #place() {
    if (!this.#word) return;
    const { clientWidth, clientHeight } = document.documentElement;
    const word = this.#word.getClientRects()[0] ?? this.#word.getBoundingClientRect();
    const { width, height } = this.#box.getBoundingClientRect();
    const gap = 8;
    const left = Math.min(Math.max(word.left - 12, gap), Math.max(clientWidth - width - gap, gap));
    const below = word.bottom + gap;
    const top = below + height <= clientHeight - gap ? below : Math.max(word.top - height - gap, gap);
    this.#box.style.setProperty("left", `${left}px`);
    this.#box.style.setProperty("top", `${top}px`);
  }
}

function describe({ text, nudge, tokens, turn }) {
  const isNudging = nudge.author === "nudging";
  const nodes = [
    element(
      "p", "who",
      element("span", isNudging ? "written nudging" : "written", ...shown(text.trim())),
      ` ${isNudging ? "nudging model" : "base model"}`,
    ),
    element("p", "why", ...shown(REASONS[nudge.reason] ?? String(nudge.reason ?? "").replaceAll("_", " "))),
  ];
  if (is(nudge.top_prob)) {
    const sure = element("span", "", "Base model's top-1 probability ", element("b", "", percent(nudge.top_prob)));
    const compared = turn.gamma === null ? [] : [" ", element("span", "", `gamma ${turn.gamma}`)];
    nodes.push(element("p", "sure", sure, ...compared), bar(nudge.top_prob, turn.gamma));
  } else {
    nodes.push(element("p", "sure", "The base model was not asked here."));
  }
  // The rest of a token whose beginning is in the word before has no score of its own.
  const scored = (tokens ?? []).filter((token) => is(token.logprob) && (token.logprob !== 0 || token.top_logprobs?.length));
  if (scored.length) nodes.push(element("div", "tokens", ...scored.map(tokenTable)));
  return nodes;
}

function bar(share, mark = null) {
  const made = element("div", "bar");
  made.style.setProperty("--share", String(Math.min(Math.max(share, 0), 1)));
  if (mark !== null && mark <= 1) {
    made.classList.add("marked");
    made.style.setProperty("--mark", String(mark));
  }
  return made;
}

function tokenTable(written) {
  const { token, bytes, top_logprobs: others = [] } = written;
  // Two tokens that are no whole characters can look the same.
  const isWritten = (other) => other.token === token && String(other.bytes) === String(bytes);
  const rows = others.map((other) => tokenRow(other, isWritten(other)));
  if (!others.some(isWritten)) rows.push(tokenRow(written, true));
  return element("table", "token", element("caption", "unseen", "Token and alternatives"), element("tbody", "", ...rows));
}

function tokenRow({ token, logprob }, isChosen) {
  const share = Math.exp(logprob);
  // Blanks are part of a token, and here they are to be seen.
  const name = element("th", "", ...shown(token.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥")));
  name.scope = "row";
  return element("tr", isChosen ? "chosen" : "", name, element("td", "", bar(share)), element("td", "", percent(share)));
}
