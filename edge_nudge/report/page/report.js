"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const card = byId("card");
  const words = [...document.querySelectorAll("#words .w")];
  const parts = new Map();
  for (const element of document.querySelectorAll("[data-n]")) {
    const n = Number(element.dataset.n);
    if (!parts.has(n)) parts.set(n, []);
    parts.get(n).push(element);
  }
  let marked = [];
  let current = -1;
  let isPinned = false;

  // The card says what the row of the word says, and comes where the word is; native hints would come in its way.
  for (const word of words) word.removeAttribute("title");
  for (const title of document.querySelectorAll(".tok > title, .dot > title")) title.remove();
  document.querySelector(".keys").hidden = false;

  function text(tag, content, className) {
    const element = document.createElement(tag);
    element.textContent = content;
    if (className) element.className = className;
    return element;
  }

  function fill(n) {
    const row = byId(`word-${n}`);
    const headings = [...row.closest("table").tHead.rows[0].cells].map((cell) => cell.textContent);
    const cells = [...row.cells];
    const title = text("h4", "");
    title.append(...cells[1].cloneNode(true).childNodes);
    const who = text("p", "");
    who.append(...cells[2].cloneNode(true).childNodes);
    who.querySelector("br").replaceWith(" · ");
    const facts = document.createElement("dl");
    for (const i of [3, 4, 5, 7]) {
      const value = document.createElement("dd");
      value.append(...cells[i].cloneNode(true).childNodes);
      facts.append(text("dt", headings[i]), value);
    }
    const choices = document.createElement("div");
    choices.append(...cells[6].cloneNode(true).childNodes);
    const lists = [...choices.querySelectorAll("ol")];
    if (!isPinned && lists.length > 2) {
      for (const list of lists.slice(2)) list.remove();
      choices.append(text("p", `and ${lists.length - 2} more tokens: click to see them`, "cut"));
    }
    card.replaceChildren(title, who, facts, choices);
    card.className = (row.classList.contains("nudging") ? "nudging" : "base") + (isPinned ? " pinned" : "");
  }

  function place(element) {
    const at = element.getClientRects()[0] ?? element.getBoundingClientRect();
    const gap = 10;
    card.hidden = false;
    const size = card.getBoundingClientRect();
    const left = Math.max(gap, Math.min(at.left, innerWidth - size.width - gap));
    const below = at.bottom + gap + size.height <= innerHeight || at.top < innerHeight / 2;
    const top = below ? Math.min(at.bottom + gap, innerHeight - size.height - gap) : at.top - gap - size.height;
    card.style.left = `${left}px`;
    card.style.top = `${Math.max(gap, top)}px`;
  }

  function mark(n) {
    for (const element of marked) element.classList.remove("on");
    marked = parts.get(n) ?? [];
    for (const element of marked) element.classList.add("on");
  }

  function show(n, element) {
    mark(n);
    fill(n);
    place(element);
  }

  function close() {
    isPinned = false;
    card.hidden = true;
    mark(-1);
  }

  function go(n) {
    if (!words.length) return;
    current = Math.max(0, Math.min(words.length - 1, n));
    isPinned = true;
    words[current].scrollIntoView({ block: "nearest" });
    show(current, words[current]);
  }

  function target(event) {
    return event.target instanceof Element ? event.target.closest("[data-n]") : null;
  }

  document.addEventListener("pointerover", (event) => {
    const element = target(event);
    if (element && !isPinned && event.pointerType !== "touch") show(Number(element.dataset.n), element);
  });
  document.addEventListener("pointerout", (event) => {
    if (!isPinned && target(event)) close();
  });
  document.addEventListener("click", (event) => {
    const element = target(event);
    if (element) {
      current = Number(element.dataset.n);
      isPinned = true;
      show(current, element);
    } else if (!card.contains(event.target)) {
      close();
    }
  });
  addEventListener("scroll", () => { if (!isPinned) close(); }, { passive: true });

  function nextHandoff(step) {
    for (let n = current + step; n >= 0 && n < words.length; n += step) {
      if (words[n].classList.contains("turn")) return go(n);
    }
  }

  const theme = byId("theme");
  const themes = { auto: "", light: "light", dark: "dark" };
  function changeTheme() {
    const names = Object.keys(themes);
    const shown = names.find((name) => themes[name] === (document.documentElement.dataset.theme ?? ""));
    const name = names[(names.indexOf(shown) + 1) % names.length];
    if (themes[name]) document.documentElement.dataset.theme = themes[name];
    else delete document.documentElement.dataset.theme;
    theme.textContent = `Colours: ${name}`;
  }
  theme.hidden = false;
  theme.addEventListener("click", changeTheme);

  const filters = ["only-all", "only-base", "only-nudging", "only-unsure"];
  const keys = {
    ArrowRight: () => go(current + 1),
    ArrowLeft: () => go(current - 1),
    n: () => nextHandoff(1),
    p: () => nextHandoff(-1),
    i: () => byId("with-instead").click(),
    s: () => byId("with-shade").click(),
    c: changeTheme,
    Escape: close,
  };
  filters.forEach((id, i) => { keys[i + 1] = () => byId(id).click(); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isArrow = event.key.startsWith("Arrow");
    if (isArrow && event.target instanceof HTMLInputElement && event.target.type === "radio") return;
    const act = Object.hasOwn(keys, event.key) ? keys[event.key] : null;
    if (!act) return;
    event.preventDefault();
    act();
  });
})();
