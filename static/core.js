// What all pages share: requests to the API, filling templates, live events.

import { none, say } from "./format.js";

export * from "./format.js";

// --- the API ---------------------------------------------------------------------------------

let token = document.querySelector("meta[name=csrf-token]").content;

// The page's stream of events, and whether its session has ended.
let live = null;
let isSignedOut = false;

/** Shows, once, that the session has ended, and ends all requests: they would be refused. */
function showSignedOut() {
  if (isSignedOut) return;
  const link = document.createElement("a");
  link.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
  link.textContent = say("sign_in");
  const element = document.createElement("p");
  element.className = "notice warn";
  element.append(`${say("session_ended")} `, link);
  find("#notices").replaceChildren(element);
  isSignedOut = true;
  live?.end();
}

/** As `fetch`; notices that the session has ended. */
async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.status === 401 && (await codeOf(answer)) === "sign_in_needed") showSignedOut();
  return answer;
}

async function codeOf(answer) {
  const content = await answer.clone().json().catch(() => null);
  return content?.error?.code;
}

/** The token of the session of now: pages that were opened together may have begun others. */
async function newToken() {
  const page = await (await fetch(location.pathname)).text();
  const found = new DOMParser().parseFromString(page, "text/html");
  return found.querySelector("meta[name=csrf-token]")?.content ?? token;
}

/** As `fetch`, with the token of the page: who is signed in asks, and no foreign page. */
export async function send(path, options) {
  const withToken = () => ask(path, { ...options,
    headers: { ...options.headers, "X-CSRFToken": token } });
  const answer = await withToken();
  if (answer.status !== 403 || (await codeOf(answer)) !== "page_outdated") return answer;
  token = await newToken();
  return withToken();
}

/** What the API answers with; an Error with its message where it refuses or cannot be reached. */
export async function api(path, { method = "GET", body, signal } = {}) {
  if (isSignedOut) throw new Error(say("session_ended"));
  let answer;
  try {
    answer = await (method === "GET" ? ask(path, { signal }) : send(path, { method, signal,
      headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) }));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(say("unreachable"));
  }
  const isJson = answer.headers.get("Content-Type")?.startsWith("application/json");
  const content = isJson ? await answer.json() : await answer.text();
  if (!answer.ok) {
    const error = new Error(content.error?.message ?? `${answer.status}`);
    Object.assign(error, { status: answer.status, ...content.error });
    throw error;
  }
  return content;
}

export const path = (...parts) => parts.map((part) => `/${encodeURIComponent(part)}`).join("");

/** A query string of what is neither null nor empty. */
export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== "");
  return `?${new URLSearchParams(given)}`;
}

// --- the document ----------------------------------------------------------------------------

export const find = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** A copy of a template's one element. */
export const copy = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/**
 * Puts values where a template names them: `data-text` (as text or as an element), `data-show`,
 * `data-title`, `data-href`, `data-aria` (the name for a screen reader), `data-state`. Nothing here ever reads a value as markup.
 */
export function fill(root, values) {
  for (const element of [root, ...root.querySelectorAll("*")]) {
    const { text, show, title, href, state, aria } = element.dataset;
    if (text in values) put(element, values[text]);
    if (show in values) element.hidden = !values[show];
    if (title in values) element.title = values[title] ?? "";
    if (href in values) element.setAttribute("href", values[href]);
    if (aria in values) element.setAttribute("aria-label", values[aria]);
    if (state in values) element.className = `state ${values[state]}`;
  }
  return root;
}

function put(element, value) {
  if (value instanceof Node) element.replaceChildren(value);
  else if (element.textContent !== String(value ?? none)) element.textContent = value ?? none;
}

/**
 * Shows a list: one element an item, kept from one call to the next by its key, so that what has
 * the focus keeps it. `make(item)` makes an element, `show(element, item)` fills it.
 */
export function list(parent, items, key, make, show) {
  const before = new Map(all(":scope > [data-key]", parent).map((e) => [e.dataset.key, e]));
  let last = null;
  for (const item of items) {
    const name = String(key(item));
    const element = before.get(name) ?? make(item);
    before.delete(name);
    element.dataset.key = name;
    show(element, item);
    const next = last ? last.nextElementSibling : parent.firstElementChild;
    if (next !== element) parent.insertBefore(element, next);
    last = element;
  }
  for (const stale of before.values()) stale.remove();
}

/**
 * Shows items as the rows of the table `id`; without any, the element `no-id` in its place.
 * `values(item, row)` are what `fill` puts into a row, which is a copy of the template.
 */
export function table(id, items, key, template, values) {
  find(`#${id}`).hidden = !items.length;
  const empty = find(`#no-${id}`);
  if (empty) empty.hidden = items.length > 0;
  list(find(`#${id} tbody`), items, key, () => copy(template),
    (row, item) => fill(row, values(item, row)));
}

/** Explains colours: `parts` are `{name, color, text}`, the colour a class of the style sheet. */
export function legend(parent, parts) {
  list(parent, parts, (part) => part.name, () => {
    const entry = document.createElement("li");
    entry.append(document.createElement("span"), document.createElement("span"));
    return entry;
  }, (entry, part) => {
    entry.firstChild.className = `swatch ${part.color}`;
    entry.lastChild.textContent = part.text;
  });
}

/** Offers these options behind the first `kept` ones, and keeps what is chosen, else `chosen`. */
export function offer(select, options, kept = 0, chosen = select.value) {
  const wanted = select.value || chosen;
  select.replaceChildren(...[...select.options].slice(0, kept), ...options);
  if ([...select.options].some((option) => option.value === wanted)) select.value = wanted;
}

/** Shows the outcome of something, where a screen reader announces it. */
export function notice(text, kind = "good") {
  if (isSignedOut) return; // which is shown in that place
  const element = document.createElement("p");
  element.className = `notice ${kind}`;
  element.textContent = text;
  const close = document.createElement("button");
  close.className = "plain";
  close.setAttribute("aria-label", say("close"));
  close.textContent = "×";
  close.addEventListener("click", () => element.remove());
  element.append(close);
  find("#notices").replaceChildren(element);
  if (kind === "good") setTimeout(() => element.remove(), 8000);
}

/** Does it, and says what went wrong. The button that asked for it is off meanwhile. */
export async function attempt(act, button = null) {
  if (button?.getAttribute("aria-disabled") === "true") return undefined; // a double click
  button?.setAttribute("aria-disabled", "true");
  try {
    return await act();
  } catch (error) {
    notice(error.message, "bad");
    return undefined;
  } finally {
    button?.removeAttribute("aria-disabled");
  }
}

let question = Promise.resolve();

/** Whether the reader agrees. */
export async function agreed(text, yes) {
  await question; // "close" comes some time after a dialog has closed: it is not the next one's
  const dialog = find("#question");
  find("#question-text").textContent = text;
  find("#question-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  question = new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
  return question;
}

/** Calls `act` where an element inside of `root` that has `data-act` is clicked. */
export function onAct(root, act) {
  root.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (button && button.getAttribute("aria-disabled") !== "true") {
      act(button.dataset.act, button.closest("[data-key]")?.dataset.key, button);
    }
  });
}

/** Copies text; where the browser forbids that (no https), selects nothing and says so. */
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    notice(say("copied"));
  } catch {
    notice(say("not_copied"), "bad");
  }
}

// --- live ------------------------------------------------------------------------------------

const LOG_LINES = 1000;

/**
 * One stream of events for the page. `handlers` has a function for each kind; `begin` is called
 * each time that it is connected, to ask for what has no events. A hidden tab holds
 * no connection: browsers allow six to a server, and the seventh tab would hang.
 */
export class Live {
  #source = null;
  #retry = null;
  #kinds;
  #handlers;
  #begin;
  #log = null;
  #lost = false;

  /** `log` is what `follow` takes, for a page that shows one from the start. */
  constructor(kinds, handlers, begin = () => {}, log = null) {
    this.#kinds = kinds;
    this.#log = log === null ? null : { log, lines: LOG_LINES };
    this.#handlers = handlers;
    this.#begin = begin;
    live = this;
    document.addEventListener("visibilitychange", () => this.#watch());
    addEventListener("pagehide", () => this.#close());
    addEventListener("pageshow", (event) => event.persisted && this.#watch());
    this.#watch();
  }

  /** Adds the lines of a log to the stream: "program", "model/NAME", or null for none. */
  follow(log) {
    this.#log = log === null ? null : { log, lines: LOG_LINES };
    this.#close();
    this.#watch();
  }

  /** There is nothing to be had until somebody has signed in, maybe in another tab. */
  end() {
    this.#close();
    this.#show(false);
  }

  #watch() {
    if (document.hidden) this.#close();
    else if (this.#source === null) this.#open();
  }

  #open() {
    clearTimeout(this.#retry);
    const asked = query({ only: this.#kinds.join(","), ...this.#log });
    // An empty list of kinds has to stay there: without it all of them come.
    const source = new EventSource(`/api/events${this.#kinds.length ? asked : `${asked}&only=`}`);
    this.#source = source;
    for (const [kind, handle] of Object.entries(this.#handlers)) {
      source.addEventListener(kind, (event) => handle(JSON.parse(event.data)));
    }
    source.addEventListener("open", () => {
      if (isSignedOut) find("#notices").replaceChildren();
      isSignedOut = false;
      this.#show(true);
      if (this.#log) this.#handlers.log_begins?.();
      attempt(async () => this.#begin());
    });
    source.addEventListener("error", async () => {
      // After a refusal the browser would not try again, and else in its own time.
      this.#close();
      this.#show(false);
      await api("/api/session").catch(() => {}); // a stream does not say why it is refused
      if (isSignedOut) return;
      clearTimeout(this.#retry);
      this.#retry = setTimeout(() => this.#watch(), 1000);
    });
  }

  #close() {
    clearTimeout(this.#retry);
    this.#source?.close();
    this.#source = null;
  }

  #show(connected) {
    const element = find("#connection");
    if (!connected) this.#lost = true;
    element.dataset.state = connected ? "on" : "off";
    const text = say(connected ? "live" : isSignedOut ? "signed_out" : "not_connected");
    if (element.textContent !== text) element.textContent = text;
    document.body.classList.toggle("lost", !connected);
    if (connected && this.#lost) {
      this.#lost = false;
      notice(say("connected_again"));
    }
  }
}

/** Calls it every so many seconds while the page is visible. */
export function every(seconds, act) {
  setInterval(() => document.hidden || act(), seconds * 1000);
}

/** The same act, once before the next picture however often it is asked for until then. */
export function drawn(act) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      act();
    });
  };
}

// --- every page ------------------------------------------------------------------------------

for (const select of all("[data-submits]")) {
  select.addEventListener("change", () => {
    select.form.elements.back.value = location.pathname + location.search;
    select.form.requestSubmit();
  });
}
