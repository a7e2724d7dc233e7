// Texts, numbers and times, in the language of the page.

const json = (id) => JSON.parse(document.getElementById(id).textContent);
const words = json("words");
export const settings = json("settings");
export const isAdmin = settings.role === "admin";
const language = document.documentElement.lang;

/** The text for a key in the page's language; `{name}` is replaced by a value of that name. */
export function say(key, values = {}) {
  const text = words[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

// --- numbers and times ---------------------------------------------------------------------

export const none = "–";
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
