// What all pages share: words, numbers, times, asking the API, filling templates, live events.

const json = (id) => JSON.parse(document.getElementById(id).textContent);
const words = json("words");
export const settings = json("settings");
export const isAdmin = settings.role === "admin";
const language = document.documentElement.lang;

/** The words for a key in the page's language; `{name}` is replaced by a value of that name. */
export function say(key, values = {}) {
  const text = words[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

// --- numbers and times ---------------------------------------------------------------------

const none = "–";
const formats = new Map();

function format(value, options) {
  const key = JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(language, options));
  return formats.get(key).format(value);
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return none;
  return format(value, { maximumFractionDigits: digits });
}

/** A large number in short, as 1.2M. */
export function short(value) {
  if (value === null || value === undefined) return none;
  if (Math.abs(value) < 10_000) return number(value, value < 10 ? 2 : 0);
  return format(value, { notation: "compact", maximumFractionDigits: 2 });
}

/** An exact decimal string as money. Small sums keep the digits that tell them apart. */
export function money(amount, currency = settings.currency) {
  if (amount === null || amount === undefined) return none;
  const size = Math.abs(Number(amount));
  const digits = size === 0 || size >= 1 ? 2 : Math.min(9, 2 + Math.ceil(-Math.log10(size)));
  const options = { minimumFractionDigits: 2, maximumFractionDigits: Math.max(2, digits) };
  try {
    return format(amount, { ...options, style: "currency", currency,
      currencyDisplay: "narrowSymbol" });
  } catch {
    return `${format(amount, options)} ${currency}`; // no code that Intl knows, such as "points"
  }
}

export function bytes(value) {
  if (value === null || value === undefined) return none;
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  let size = value;
  let unit = 0;
  for (; size >= 1000 && unit < units.length - 1; unit++) size /= 1000;
  const digits = size < 10 && unit ? 1 : 0;
  return format(size, { style: "unit", unit: units[unit], maximumFractionDigits: digits });
}

export const megabytes = (mb) => bytes(mb === null || mb === undefined ? mb : mb * 1_000_000);

/** A span in its two largest units, as 3 min 5 s. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return none;
  const unit = (value, name, digits = 0) =>
    format(value, { style: "unit", unit: name, maximumFractionDigits: digits });
  if (seconds < 1) return unit(seconds * 1000, "millisecond");
  if (seconds < 10) return unit(seconds, "second", 2);
  const whole = Math.round(seconds);
  const parts = [
    [Math.floor(whole / 86400), "day"],
    [Math.floor(whole / 3600) % 24, "hour"],
    [Math.floor(whole / 60) % 60, "minute"],
    [whole % 60, "second"],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  const shown = parts.slice(first, first + 2).filter(([value]) => value > 0);
  return shown.map(([value, name]) => unit(value, name)).join(" ");
}

const asTime = (options) => new Intl.DateTimeFormat(language, options);
const timeFormats = {
  full: asTime({ dateStyle: "medium", timeStyle: "medium" }),
  clock: asTime({ timeStyle: "medium" }),
  date: asTime({ dateStyle: "medium" }),
};

/** A moment in the reader's zone, as an element that knows the exact one. */
export function time(iso, kind = "full") {
  if (!iso) return none;
  const element = document.createElement("time");
  element.dateTime = iso;
  element.title = iso;
  element.textContent = timeFormats[kind].format(new Date(iso));
  return element;
}

/** The date of a moment (ms) in the zone that bills are made in, as 2026-11-23. */
export function dateOf(ms) {
  return new Intl.DateTimeFormat("sv-SE", { timeZone: settings.timezone, dateStyle: "short" })
    .format(ms);
}

/** A date so many days after another one, or before; both as 2026-11-23. */
export function daysAfter(date, days) {
  const noon = Date.parse(`${date}T12:00:00Z`); // no zone's clocks change a date by their hour
  return new Date(noon + days * 86_400_000).toISOString().slice(0, 10);
}

export const secondsSince = (iso) => (Date.now() - Date.parse(iso)) / 1000;

// --- the API ---------------------------------------------------------------------------------

let token = document.querySelector("meta[name=csrf-token]").content;

// The page's stream of events, and whether its session has ended.
let live = null;
let isOut = false;

/** Says so, once, and asks nothing more: all of it would be refused. */
function leave() {
  if (isOut) return;
  const link = document.createElement("a");
  link.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
  link.textContent = say("sign_in");
  const element = document.createElement("p");
  element.className = "notice warn";
  element.append(`${say("session_ended")} `, link);
  find("#notices").replaceChildren(element);
  isOut = true;
  live?.end();
}

/** As `fetch`; sees that the session has ended. */
async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.status === 401 && (await codeOf(answer)) === "sign_in_needed") leave();
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
  if (isOut) throw new Error(say("session_ended"));
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
  for (const gone of before.values()) gone.remove();
}

/** Tells the outcome of something, where a screen reader hears it. */
export function notice(text, kind = "good") {
  if (isOut) return; // which is told in that place
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

/** Whether the reader agrees. */
export function agreed(text, yes) {
  const dialog = find("#question");
  find("#question-text").textContent = text;
  find("#question-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
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
 * each time that it is connected, to ask for what has no events. A tab that nobody looks at holds
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
      if (isOut) find("#notices").replaceChildren();
      isOut = false;
      this.#show(true);
      if (this.#log) this.#handlers.log_begins?.();
      attempt(async () => this.#begin());
    });
    source.addEventListener("error", async () => {
      // After a refusal the browser would not try again, and else in its own time.
      this.#close();
      this.#show(false);
      await api("/api/session").catch(() => {}); // a stream does not say why it is refused
      if (isOut) return;
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
    const text = say(connected ? "live" : isOut ? "signed_out" : "not_connected");
    if (element.textContent !== text) element.textContent = text;
    document.body.classList.toggle("lost", !connected);
    if (connected && this.#lost) {
      this.#lost = false;
      notice(say("connected_again"));
    }
  }
}

/** Calls it every so many seconds while the page is looked at. */
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
