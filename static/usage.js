import { Chart, colorOf, summarize } from "./chart.js";
import { Live, all, api, attempt, copy, dateOf, daysAfter, every, fill, find, legend, list, money, number, query, say,
  short, span, time } from "./core.js";

const DAY = 86_400_000;
const MAX_SHOWN = 7;
const form = find("#asked");
const chart = new Chart(find("#chart"), {});
let sums = null;
let series = null;
let sort = { by: "cost", up: false };

// --- what is asked for -----------------------------------------------------------------------

/** The range as the API takes it. */
function rangeOf(name) {
  const now = Date.now();
  if (name === "10m") return { start: Math.floor(now / 1000) - 600 };
  if (name === "own") {
    const { from, to } = form.elements;
    const end = to.value ? daysAfter(to.value, 1) : "";
    return { start: from.value || dateOf(now), end };
  }
  const days = { today: 0, "7d": 6, "30d": 29 }[name];
  return { start: daysAfter(dateOf(now), -days) };
}

function asked() {
  const { range, model, key } = form.elements;
  // A key of no name is one too: that of requests without a key.
  const only = { model: model.value, key: key.value === "none" ? null : key.value };
  return { ...rangeOf(range.value), ...only };
}

const isShort = () => form.elements.range.value === "10m";

function address(call, values) {
  const text = query(values);
  return `/api/usage/${call}${text}${form.elements.key.value === "none" ? "&key=" : ""}`;
}

let waiting = null;

async function load() {
  waiting?.abort();
  const ours = new AbortController();
  waiting = ours;
  const { signal } = ours;
  const values = asked();
  const group = form.elements.group.value;
  const forSums = { ...values, group, ...(isShort() ? { round: "10s" } : {}) };
  const isLatency = measure() === "latency";
  const forSeries = { ...values, ...(isShort() ? { bucket: "10s" } : {}),
    ...(isLatency ? {} : { group }) };
  try {
    [sums, series] = await Promise.all([
      api(address("summary", forSums), { signal }),
      api(address("series", forSeries), { signal }),
    ]);
  } catch (error) {
    if (error.name === "AbortError") return;
    throw error;
  }
  find("#csv-table").href = address("summary", { ...forSums, format: "csv" });
  find("#csv-series").href = address("series", { ...forSeries, format: "csv" });
  find("#csv-requests").href = address("requests", { ...values, format: "csv" });
  showSums();
  showChart();
  showTable();
}

// --- what is shown ---------------------------------------------------------------------------

function showSums() {
  const rate = sums.cache_hit_rate;
  fill(find("#tiles"), {
    requests: short(sums.requests),
    errors: say("failed_count", { count: short(sums.errors) }),
    prompt: short(sums.prompt_tokens),
    cached: rate === null ? "" : say("from_cache", { part: `${number(rate * 100, 1)} %` }),
    completion: short(sums.completion_tokens),
    speed: sums.tokens_per_second === null ? ""
      : say("speed_of", { speed: number(sums.tokens_per_second, 1) }),
    cost: money(sums.cost, sums.currency),
    cost_exact: `${sums.cost} ${sums.currency}`,
    cost_note: sums.pending ? say("pending", { count: short(sums.pending) })
      : say("cost_parts", { tokens: money(sums.cost_tokens, sums.currency),
        hours: money(sums.cost_hours, sums.currency) }),
    first: milliseconds(sums.first_byte_ms.p50),
    first_note: say("p95", { value: milliseconds(sums.first_byte_ms.p95) }),
  });
  find("#nothing").hidden = sums.requests > 0 || Number(sums.cost) !== 0;
  find("#short-note").hidden = !isShort();
  const range = document.createDocumentFragment();
  range.append(time(sums.start), " – ", time(sums.end));
  find("#span").replaceChildren(range);
}

const milliseconds = (ms) => (ms === null ? "–" : span(ms / 1000));
const measure = () => find("input[name=measure]:checked").value;
const nameOf = (name) => name || say("nobody");

const MEASURES = {
  tokens: (bucket) => bucket.prompt_tokens + bucket.completion_tokens,
  requests: (bucket) => bucket.requests,
  cost: (bucket) => Number(bucket.cost),
};

function showChart() {
  const buckets = series.buckets;
  const starts = [...new Set(buckets.map((bucket) => bucket.start))];
  const times = timesOf(starts);
  if (measure() === "latency") {
    const lines = [["first_byte_ms", "p50", "s0"], ["first_byte_ms", "p95", "s1"],
      ["whole_ms", "p50", "s4"], ["whole_ms", "p95", "s3"]];
    show(times, lines.map(([what, part, color]) => ({
      label: say(`${what}_${part}`),
      color,
      values: buckets.map((bucket) => bucket[what][part]),
    })), { stacked: false, format: milliseconds });
    return;
  }
  const value = MEASURES[measure()];
  const places = new Map(times.map((moment, i) => [moment, i]));
  const groups = new Map();
  for (const bucket of buckets) {
    const name = bucket[series.group];
    if (!groups.has(name)) groups.set(name, times.map(() => 0));
    groups.get(name)[places.get(Date.parse(bucket.start) / 1000)] += value(bucket);
  }
  const sum = (values) => values.reduce((one, other) => one + other, 0);
  const ordered = [...groups].sort(([, one], [, other]) => sum(other) - sum(one));
  const shown = ordered.slice(0, MAX_SHOWN)
    .map(([name, values]) => ({ label: nameOf(name), color: `s${colorOf(name)}`, values }));
  const rest = ordered.slice(MAX_SHOWN).map(([, values]) => values);
  if (rest.length) {
    const values = times.map((_, i) => sum(rest.map((one) => one[i])));
    shown.push({ label: say("all_others"), color: "field", values });
  }
  show(times, shown.length ? shown : [{ label: "", color: "s0", values: times.map(() => 0) }],
    { stacked: true, format: measure() === "cost" ? (one) => money(one) : short });
}

/** Every bucket's start in epoch seconds, those with nothing in them too. */
function timesOf(starts) {
  const [low, high] = [Date.parse(series.start), Date.parse(series.end)];
  const step = { "10s": 10_000, minute: 60_000, hour: 3_600_000 }[series.bucket];
  const found = new Set(starts.map((start) => Date.parse(start) / 1000));
  if (step) {
    for (let ms = low; ms < high; ms += step) found.add(ms / 1000);
  } else {
    for (let ms = low; ms < high; ms += DAY) {
      // A day that has nothing in it: its place in the chart is near enough to its midnight.
      const start = ms / 1000;
      if (![...found].some((one) => Math.abs(one - start) < DAY / 2000)) found.add(start);
    }
  }
  return [...found].sort((one, other) => one - other);
}

function show(times, lines, options) {
  const series_ = lines.map(({ label, color }) => ({ label, color, bars: options.stacked }));
  const values = lines.map((line) => line.values);
  const { sum, highest } = summarize(values);
  const what = say(`measure_${measure()}`);
  chart.show(times, values, say("chart_says", { what, sum, highest }), series_, options);
  legend(find("#key"), lines.filter((line) => line.label).map(({ label, color }) =>
    ({ name: label, text: label, color: color === "field" ? "other" : color.replace("s", "c") })));
}

function showTable() {
  const rows = sums.groups.map((row) => ({ ...row, name: row[sums.group],
    first_ms: row.first_byte_ms.p95, whole_ms: row.whole_ms.p95 }));
  const value = (row) => (sort.by === "name" ? row.name : Number(row[sort.by] ?? -1));
  rows.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    const order = typeof a === "string" ? a.localeCompare(b) : a - b;
    return sort.up ? order : -order;
  });
  list(find("#table tbody"), rows, (row) => row.name, () => copy("row"), (element, row) => {
    fill(element, {
      name: nameOf(row.name),
      requests: number(row.requests),
      errors: number(row.errors),
      prompt_tokens: number(row.prompt_tokens),
      cached_tokens: number(row.cached_tokens),
      completion_tokens: number(row.completion_tokens),
      tokens_per_second: number(row.tokens_per_second, 1),
      first_ms: milliseconds(row.first_ms),
      whole_ms: milliseconds(row.whole_ms),
      run_seconds: row.run_seconds ? span(row.run_seconds) : "–",
      cost: money(row.cost, sums.currency),
      cost_exact: `${row.cost} ${sums.currency}`,
    });
  });
}

// --- choosing --------------------------------------------------------------------------------

for (const head of all("#table th[data-sort]")) {
  find("button", head).addEventListener("click", () => {
    sort = { by: head.dataset.sort, up: sort.by === head.dataset.sort ? !sort.up : false };
    for (const other of all("#table th[data-sort]")) {
      const is = other === head ? (sort.up ? "ascending" : "descending") : "none";
      other.setAttribute("aria-sort", is);
    }
    showTable();
  });
}

function changed() {
  const { range, from, to, group, model, key } = form.elements;
  find("#own").hidden = range.value !== "own";
  if (range.value === "own" && !from.value) {
    from.value = daysAfter(dateOf(Date.now()), -6);
    to.value = dateOf(Date.now());
  }
  const own = range.value === "own" ? { from: from.value, to: to.value } : {};
  const kept = { range: range.value, ...own, group: group.value, model: model.value,
    key: key.value, measure: measure() };
  history.replaceState(null, "", `/usage${query(kept)}`);
  attempt(load);
}

function restore() {
  const kept = new URLSearchParams(location.search);
  for (const name of ["range", "from", "to", "group"]) {
    const [field, value] = [form.elements[name], kept.get(name)];
    const isChoice = field instanceof HTMLSelectElement;
    const isThere = !isChoice || [...field.options].some((option) => option.value === value);
    if (value && isThere) field.value = value;
  }
  const drawn = find(`input[name=measure][value="${CSS.escape(kept.get("measure") ?? "")}"]`);
  if (drawn) drawn.checked = true;
  for (const name of ["model", "key"]) {
    const wanted = kept.get(name);
    if (wanted) form.elements[name].add(new Option(wanted === "none" ? say("nobody") : wanted, wanted, true, true));
  }
}

/** Models and keys that there are: those of the last 30 days, and those of the config. */
async function choices() {
  const start = daysAfter(dateOf(Date.now()), -29);
  const [models, keys, configured] = await Promise.all([
    api(`/api/usage/summary${query({ start, group: "model" })}`),
    api(`/api/usage/summary${query({ start, group: "key" })}`),
    api("/api/models"),
  ]);
  const names = { model: new Set(configured.models.map((view) => view.name)), key: new Set() };
  for (const row of models.groups) if (row.model) names.model.add(row.model);
  for (const row of keys.groups) names.key.add(row.key || "none");
  for (const [name, found] of Object.entries(names)) {
    const select = form.elements[name];
    const have = new Set([...select.options].map((option) => option.value));
    for (const value of found) {
      if (!have.has(value)) select.add(new Option(value === "none" && name === "key" ? say("nobody") : value, value));
    }
  }
}

form.addEventListener("change", changed);
form.addEventListener("submit", (event) => event.preventDefault());
find("#measure").addEventListener("change", changed);
restore();
changed();

let isDue = false;
let since = 0;
new Live(["throughput"], {
  throughput: (now) => { isDue ||= now.second.requests > 0; },
}, async () => {
  await choices();
});
every(5, () => {
  since += 5;
  // The last minutes move on even when nothing happens; the longer ranges when something did.
  if (!sums || !(isShort() || (isDue && since >= 10))) return;
  isDue = false;
  since = 0;
  load().catch(() => {}); // the stream shows when nothing answers
});
