import { Live, all, api, attempt, bytes, copy, dateOf, daysAfter, every, fill, find, list, money, notice, number,
  offer, onAct, path, query, say, short, span, table, time } from "./core.js";
import { integerOf } from "./form.js";

const MAX_MONTHS = 60;
const editor = find("#editor");
let models = [];
let versions = [];

// --- statement -------------------------------------------------------------------------------

const month = find("#month");
const after = (text) => {
  const [year, number_] = text.split("-").map(Number);
  return `${number_ === 12 ? year + 1 : year}-${String((number_ % 12) + 1).padStart(2, "0")}`;
};

const before = (text) => daysAfter(`${text}-01`, -1).slice(0, 7);

function showMonths(oldest) {
  const last = dateOf(Date.now()).slice(0, 7);
  const found = [];
  for (let one = last; one >= oldest && found.length < MAX_MONTHS; one = before(one)) found.push(one);
  const name = new Intl.DateTimeFormat(document.documentElement.lang,
    { year: "numeric", month: "long", timeZone: "UTC" });
  const chosen = new URLSearchParams(location.search).get("month");
  offer(month, found.map((one) =>
    new Option(name.format(new Date(`${one}-15T00:00:00Z`)), one)), 0, chosen);
}

const range = () => ({ start: `${month.value}-01`, end: `${after(month.value)}-01` });

async function loadStatement() {
  const sums = await api(`/api/usage/summary${query({ ...range(), group: "model" })}`);
  const rows = sums.groups.map((row) => ({ ...row, key: row.model, name: row.model || say("no_model") }));
  const whole = { ...sums, key: "\n", name: say("in_all") };
  const isEmpty = !rows.length;
  table("statement", isEmpty ? [] : [...rows, whole], (row) => row.key, "statement-row",
    (row) => ({
      name: row.name,
      requests: number(row.requests),
      prompt: number(row.prompt_tokens),
      completion: number(row.completion_tokens),
      tokens_cost: money(row.cost_tokens, sums.currency),
      run: row.run_seconds ? span(row.run_seconds) : "–",
      hours_cost: money(row.cost_hours, sums.currency),
      adjustments: Number(row.adjustments) ? money(row.adjustments, sums.currency) : "–",
      cost: money(row.cost, sums.currency),
      cost_exact: `${row.cost} ${sums.currency}`,
    }));
  const notes = [
    sums.unpriced ? say("unpriced", { count: short(sums.unpriced) }) : null,
    sums.pending ? say("pending", { count: short(sums.pending) }) : null,
    sums.estimated ? say("estimated_count", { count: short(sums.estimated) }) : null,
  ].filter(Boolean);
  isDue ||= sums.pending > 0;
  find("#unpriced").hidden = !notes.length;
  find("#unpriced").textContent = notes.join(" · ");
}

async function makeBill() {
  const asked = month.value;
  const made = await api("/api/exports?wait=1", { method: "POST", body: { month: asked } });
  if (made.done) {
    const link = find("#made");
    link.href = `/api/exports${path(made.file)}`;
    link.textContent = say("download", { file: made.file });
    link.hidden = false;
    notice(say(made.complete ? "bill_made" : "bill_part_made", { file: made.file }));
  } else notice(say("bill_waits"), "warn");
  await loadExports();
}

// --- bills that were made --------------------------------------------------------------------

async function loadExports() {
  const { exports, orders, schedule } = await api("/api/exports");
  const { schedule: cron, period, next_at: next } = schedule ?? {};
  const planned = document.createDocumentFragment();
  if (schedule === null) planned.append(say("no_schedule"));
  else planned.append(say("schedule", { cron, period: say(`each_${period}`) }), " ", time(next));
  find("#schedule").replaceChildren(planned);
  list(find("#orders"), orders, (order) => order.subject, () => document.createElement("li"),
    (item, order) => {
      item.className = order.error ? "bad-text" : "quiet";
      item.textContent = order.error
        ? say("bill_failed", { subject: order.subject, error: order.error })
        : say("bill_ordered", { subject: order.subject });
    });
  table("exports", exports, (one) => one.file, "export-row", (one) => ({
    period: one.complete ? one.period : say("bill_part", { period: one.period }),
    link: `/api/exports${path(one.file)}`,
    made: time(one.made_at),
    size: bytes(one.bytes),
  }));
}

// --- prices ----------------------------------------------------------------------------------

const model = find("#model");

/** A tier's range in words, "" where it takes every request. */
function rangeOf(tier) {
  const part = (low, high, what) => {
    if (low === 0 && high === -1) return null;
    if (high === -1) return say(`${what}_above`, { low: number(low) });
    return say(`${what}_between`, { low: number(low), high: number(high) });
  };
  return [part(tier.min_input, tier.max_input, "prompt"),
    part(tier.min_output, tier.max_output, "answer")].filter(Boolean).join(", ");
}

function inWords(tier) {
  const parts = [say("tier_says", { input: money(tier.input), output: money(tier.output) })];
  if (tier.support_cache) {
    parts.push(say("tier_cache", { read: money(tier.cache_read), write: money(tier.cache_write) }));
  }
  const requests = rangeOf(tier);
  return requests ? `${requests}: ${parts.join(", ")}` : parts.join(", ");
}

async function loadPrices() {
  if (!model.value) return;
  ({ prices: versions } = await api(`/api/prices${query({ model: model.value })}`));
  const now = Date.now();
  const inForce = versions.filter((one) => Date.parse(one.effective_from) <= now).at(-1);
  find("#no-versions").hidden = versions.length > 0;
  list(find("#versions"), versions.toReversed(), (one) => one.id, () => copy("version"),
    (element, one) => {
      const isForEver = Date.parse(one.effective_from) === 0;
      fill(element, {
        from: isForEver ? say("from_the_first") : time(one.effective_from),
        in_force: one === inForce,
        number: say("price_number", { id: one.id }),
        per_hour: one.per_hour === null ? "" : say("an_hour", { amount: money(one.per_hour) }),
        take_title: say("take_it", { id: one.id }),
      });
      list(find("[data-part=tiers]", element), one.tiers.map((tier, i) => ({ tier, i })),
        ({ i }) => i, () => document.createElement("li"),
        (item, { tier }) => { item.textContent = inWords(tier); });
    });
  edit(inForce);
}

/** Begins a new version from this one. */
function edit(version) {
  editor.elements.per_hour.value = version?.per_hour ?? "";
  editor.elements.effective_from.value = "";
  find("#tiers").replaceChildren();
  for (const tier of version?.tiers ?? [{ input: "", output: "" }]) addTier(tier);
  quote();
}

function addTier(tier) {
  const element = copy("tier");
  for (const [name, value] of Object.entries(tier)) {
    const input = find(`[data-field=${name}]`, element);
    if (input.type === "checkbox") input.checked = value;
    else input.value = name.startsWith("max_") && value === -1 ? "" : value;
  }
  find("#tiers").append(element);
  showTiers();
}

function showTiers() {
  all("#tiers > .tier").forEach((element, i) => {
    const title = say("tier_number", { number: i + 1 });
    const { min_input, max_input, min_output, max_output } = valuesOf(element);
    const whole = (text, open) => (/^\d+$/.test(text) ? Number(text) : open);
    const range_ = rangeOf({ min_input: whole(min_input, 0), max_input: whole(max_input, -1),
      min_output: whole(min_output, 0), max_output: whole(max_output, -1) });
    fill(element, { title, range: range_ || say("all_requests"), remove_title: say("remove_it", { title }) });
    find("[data-part=cache]", element).hidden = !find("[data-field=support_cache]", element).checked;
  });
}

function valuesOf(element) {
  return Object.fromEntries(all("[data-field]", element).map((input) =>
    [input.dataset.field, input.type === "checkbox" ? input.checked : input.value.trim()]));
}

/** What was typed in, as the API takes it; what is no number is sent as it is, to be refused. */
function price() {
  const tiers = all("#tiers > .tier").map((element) => {
    const tier = valuesOf(element);
    return { ...tier,
      min_input: integerOf(tier.min_input, 0), max_input: integerOf(tier.max_input, -1),
      min_output: integerOf(tier.min_output, 0), max_output: integerOf(tier.max_output, -1) };
  });
  const perHour = editor.elements.per_hour.value.trim();
  return { ...(perHour ? { per_hour: perHour } : {}), ...(tiers.length ? { tiers } : {}) };
}

function showError(error) {
  const box = find("#price-error");
  box.hidden = !error;
  box.textContent = error?.message ?? "";
  for (const input of all("[aria-invalid]", editor)) input.removeAttribute("aria-invalid");
  const place = /^tiers\[(\d+)\]\.(\w+)$/.exec(error?.param ?? "");
  const input = place
    ? find(`[data-field=${place[2]}]`, all("#tiers > .tier")[Number(place[1])])
    : editor.elements[error?.param];
  if (input instanceof HTMLElement) {
    input.setAttribute("aria-invalid", "true");
    input.closest("details")?.setAttribute("open", "");
  }
}

let quoted = 0;

async function quote() {
  const ours = ++quoted;
  const given = price();
  const isWhole = (given.tiers ?? []).every((tier) => tier.input && tier.output);
  if (!isWhole || Object.keys(given).length === 0) {
    // Incomplete as yet, which is no error.
    showError(null);
    find("#quote").textContent = "–";
    return;
  }
  const sample = Object.fromEntries(
    ["prompt_tokens", "cached_tokens", "completion_tokens", "seconds"].map((name) => {
      const text = editor.elements[name].value.trim();
      return [name, /^\d{1,15}(\.\d{1,3})?$/.test(text) ? Number(text) : text || 0];
    }));
  try {
    const answer = await api("/api/prices/quote", { method: "POST", body: { ...given, ...sample } });
    if (ours !== quoted) return;
    showError(null);
    const tier = answer.tier === null ? say("no_tier") : say("tier_number", { number: answer.tier + 1 });
    const parts = say("quote", { cost: money(answer.cost, answer.currency), tier,
      tokens: money(answer.cost_tokens, answer.currency),
      hours: money(answer.cost_hours, answer.currency) });
    find("#quote").textContent = [parts, ...answer.warnings].join("\n");
  } catch (error) {
    if (ours !== quoted) return;
    find("#quote").textContent = "–";
    showError(error);
  }
}

async function save() {
  const from = editor.elements.effective_from.value;
  const body = { ...price(), ...(from ? { effective_from: new Date(from).toISOString() } : {}) };
  try {
    const made = await api(`/api/models${path(model.value)}/price`, { method: "PUT", body });
    showError(null);
    notice([say("price_saved", { id: made.id }), ...made.warnings].join("\n"),
      made.warnings.length ? "warn" : "good");
    await loadPrices();
  } catch (error) {
    showError(error);
  }
}

let typing = null;
editor.addEventListener("input", () => {
  showTiers();
  clearTimeout(typing);
  typing = setTimeout(quote, 250);
});
editor.addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(save, find("button.primary", editor));
});
find("#add-tier").addEventListener("click", () => {
  const last = all("#tiers > .tier").at(-1);
  // The next one begins where the last one ends.
  addTier({ input: "", output: "", min_input: (last && valuesOf(last).max_input) || 0 });
  quote();
});
find("#tiers").addEventListener("click", (event) => {
  if (event.target.closest("[data-act=remove]")) {
    event.target.closest(".tier").remove();
    showTiers();
    quote();
  }
});
onAct(find("#versions"), (_, id) => edit(versions.find((one) => String(one.id) === id)));
model.addEventListener("change", () => attempt(loadPrices));

// --- adjustments -----------------------------------------------------------------------------

const adjust = find("#adjust");

async function loadAdjustments() {
  const { adjustments, currency } = await api(`/api/adjustments${query(range())}`);
  table("adjustments", adjustments, (one) => one.id, "adjustment-row", (one) => ({
    at: time(one.at, "date"),
    whose: [one.model, one.key].filter(Boolean).join(", ") || "–",
    note: one.note,
    amount: money(one.amount, currency),
    exact: one.amount,
  }));
}

adjust.addEventListener("submit", (event) => {
  event.preventDefault();
  const { model: whose, amount: sum, note } = adjust.elements;
  const isThisMonth = month.value === dateOf(Date.now()).slice(0, 7);
  attempt(async () => {
    const body = { model: whose.value, amount: sum.value.trim(), note: note.value,
      ...(isThisMonth ? {} : { at: range().start }) };
    await api("/api/adjustments", { method: "POST", body });
    adjust.reset();
    notice(say("adjusted"));
    await Promise.all([loadAdjustments(), loadStatement()]);
  }, find("button", adjust));
});

// --- the page --------------------------------------------------------------------------------

async function loadMonth() {
  history.replaceState(null, "", `/billing${query({ month: month.value })}`);
  find("#made").hidden = true;
  await Promise.all([loadStatement(), loadAdjustments()]);
}

month.addEventListener("change", () => attempt(loadMonth));
find("#make").addEventListener("click", (event) => attempt(makeBill, event.currentTarget));

let isDue = false;
let hasBegun = false;
new Live(["throughput"], {
  throughput: (now) => { isDue ||= now.second.requests > 0; },
}, async () => {
  const [configured, data] = await Promise.all([api("/api/models"), api("/api/data")]);
  models = configured.models.map((view) => view.name);
  showMonths(dateOf(data.oldest_at ? Date.parse(data.oldest_at) : Date.now()).slice(0, 7));
  find("#no-models").hidden = models.length > 0;
  editor.hidden = !models.length;
  for (const select of [model, adjust.elements.model]) {
    const chosen = select === model ? new URLSearchParams(location.search).get("model") : "";
    offer(select, models.map((name) => new Option(name, name)), select === model ? 0 : 1, chosen);
  }
  await Promise.all([loadMonth(), loadExports()]);
  // What is being typed in outlives a lost connection.
  if (!hasBegun) await loadPrices();
  hasBegun = true;
});
every(10, () => {
  if (!isDue) return;
  isDue = false;
  loadStatement().catch(() => {});
});
