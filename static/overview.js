import { Chart, colorOf, summarize } from "./chart.js";
import { Live, api, copy, dateOf, daysAfter, drawn, every, fill, find, legend, list, megabytes, money, number, onAct, query,
  say, secondsSince, short, span, table, time } from "./core.js";
import { fileState } from "./configfile.js";
import { Steering, canStart, canStop, pageOf, stateName, why } from "./steering.js";

const MAX_SPEEDS = 600;
const models = new Map();
let busy = {};
let failures = [];
let file = { why: null };
const steering = new Steering();
const chart = new Chart(find("#speed"), { low: true, series: [{ label: "", color: "s0" }] });
let speeds = [];
let endOfSpeeds = 0;

// --- models --------------------------------------------------------------------------------

const showModels = drawn(() => {
  const views = [...models.values()];
  table("models", views, (view) => view.name, "model-row", (view) => {
    const now = busy[view.name] ?? {};
    return {
      name: view.name,
      link: pageOf(view.name),
      state: view.state,
      state_name: stateName(view.state),
      why: why(view),
      in_flight: number(now.in_flight ?? 0),
      waiting: number(now.waiting ?? 0),
      speed: now.completion_tokens_per_second ? number(now.completion_tokens_per_second, 1) : "–",
      can_start: canStart(view),
      can_stop: canStop(view),
      start_title: say("start_it", { name: view.name }),
      stop_title: say("stop_it", { name: view.name }),
    };
  });
  showTrouble();
});

function showTrouble() {
  const waiting = [...models.values()].filter((view) => view.waits_for || view.last_error);
  const items = [
    ...(file.why === null ? [] : [{
      key: "config",
      state: "failed",
      state_name: say("not_in_use"),
      name: "config.yaml",
      link: "/settings",
      when: "",
      why: file.why,
    }]),
    ...waiting.map((view) => ({
      key: `model ${view.name}`,
      state: view.waits_for ? "waiting" : "failed",
      state_name: stateName(view.state),
      name: view.name,
      link: pageOf(view.name),
      when: view.waits_for ? span(secondsSince(view.waits_for.since)) : "",
      why: why(view),
    })),
    ...failures.map((request) => ({
      key: request.id,
      state: "error",
      state_name: String(request.status),
      name: request.model || request.asked_for || say("no_model"),
      link: `/requests${query({ status: "error", model: request.model })}`,
      when: time(request.started_at, "clock"),
      why: request.error ?? "",
    })),
  ];
  find("#trouble").hidden = !items.length;
  list(find("#trouble-list"), items, (item) => item.key, () => copy("trouble-item"), fill);
}

onAct(find("#models"), (verb, name, button) => steering.command(verb, name, button));
find("#stop-all").addEventListener("click", (event) => steering.stopAll(event.currentTarget));

// --- devices -------------------------------------------------------------------------------

function showDevices({ devices, faults }) {
  find("#no-devices").hidden = devices.length > 0;
  list(find("#devices"), devices, (device) => device.id, () => copy("device"), (item, device) => {
    const load = device.load === null ? null : say("load", { load: number(device.load * 100) });
    const heat = device.temperature_c === null ? null : `${number(device.temperature_c)} °C`;
    const of = device.total_mb ?? device.budget_mb;
    const used = of === null ? null : say("used", { used: megabytes(device.used_mb), total: megabytes(of) });
    const age = device.read_at ? Math.round(secondsSince(device.read_at)) : null;
    const read = age === null ? null : age < 3 ? say("read_now") : say("read", { span: span(age) });
    fill(item, {
      name: device.name,
      stale: device.stale,
      exclusive: device.exclusive,
      numbers: [used, load, heat, read].filter(Boolean).join(" · "),
    });
    showShare(item, device, of);
  });
  list(find("#faults"), Object.entries(faults), ([plugin]) => plugin,
    () => document.createElement("li"),
    (item, [plugin, fault]) => { item.textContent = `${plugin}: ${fault}`; });
}

function showShare(item, device, total) {
  const parts = device.models.map((model) => ({
    name: model.name,
    mb: model.measured_mb ?? model.declared_mb,
    text: model.measured_mb === null
      ? say("declared", { name: model.name, mb: megabytes(model.declared_mb) })
      : say("measured", { name: model.name, mb: megabytes(model.measured_mb),
        declared: megabytes(model.declared_mb) }),
    color: `c${colorOf(model.name)}`,
  }));
  const rest = (device.used_mb ?? 0) - parts.reduce((sum, part) => sum + part.mb, 0);
  if (rest > 0) {
    parts.push({ name: " ", mb: rest, color: "other",
      text: say("others", { mb: megabytes(rest) }) });
  }
  const share = find("[data-part=share]", item);
  share.setAttribute("aria-label", parts.map((part) => part.text).join("; ") || say("unused"));
  const scale = Math.max(total ?? 0, parts.reduce((sum, part) => sum + part.mb, 0), 1);
  list(share, parts, (part) => part.name, () => document.createElement("span"), (bar, part) => {
    bar.className = part.color;
    bar.style.width = `${(part.mb / scale) * 100}%`;
  });
  legend(find("[data-part=key]", item), parts);
}

// --- speed ---------------------------------------------------------------------------------

async function beginSpeeds() {
  const { history } = await api("/api/activity");
  speeds = history.completion_tokens;
  endOfSpeeds = Math.round(Date.parse(history.end) / 1000);
  showSpeeds();
}

function showSpeeds() {
  const missing = Array(Math.max(0, MAX_SPEEDS - speeds.length)).fill(0);
  const values = smooth([...missing, ...speeds].slice(-MAX_SPEEDS));
  const times = values.map((_, i) => endOfSpeeds - MAX_SPEEDS + 1 + i);
  const { highest } = summarize([values]);
  chart.show(times, [values], say("speed_chart", { highest, now: number(values.at(-1), 1) }));
}

/** Over five seconds, as the speed of now is: answers that come whole are lumps. */
function smooth(values) {
  let sum = 0;
  return values.map((value, i) => {
    sum += value - (i >= 5 ? values[i - 5] : 0);
    return sum / 5;
  });
}

function showThroughput(now) {
  busy = now.models;
  fill(find("#tiles"), {
    speed: number(now.completion_tokens_per_second, 1),
    speed_note: say("prompt_speed", { speed: number(now.prompt_tokens_per_second, 1) }),
    in_flight: number(now.in_flight),
    in_flight_note: say("waiting_count", { count: number(now.waiting) }),
  });
  showModels();
  const at = Math.round(Date.parse(now.at) / 1000);
  if (speeds.length && at > endOfSpeeds) {
    speeds = [...speeds, now.second.completion_tokens].slice(-MAX_SPEEDS);
    endOfSpeeds = at;
    showSpeeds();
  }
}

// --- today ---------------------------------------------------------------------------------

async function showToday() {
  const today = dateOf(Date.now());
  const yesterday = daysAfter(today, -1);
  const summary = (values) => api(`/api/usage/summary${query(values)}`);
  const [sums, before, requests] = await Promise.all([
    summary({ start: today }),
    summary({ start: yesterday, end: today }),
    api(`/api/usage/requests${query({ status: "error", start: today, limit: 5 })}`),
  ]);
  const tokens = (one) => one.prompt_tokens + one.completion_tokens;
  fill(find("#tiles"), {
    requests: short(sums.requests),
    requests_note: sums.errors
      ? say("yesterday_failed", { value: short(before.requests), failed: short(sums.errors) })
      : say("yesterday", { value: short(before.requests) }),
    tokens: short(tokens(sums)),
    tokens_note: say("yesterday", { value: short(tokens(before)) }),
    cost: money(sums.cost, sums.currency),
    cost_exact: `${sums.cost} ${sums.currency}`,
    cost_note: say("yesterday", { value: money(before.cost, before.currency) }),
  });
  failures = requests.requests;
  showTrouble();
}

// --- live ----------------------------------------------------------------------------------

let isDue = false;

async function refreshToday() {
  isDue = false;
  await showToday().catch(() => { isDue = true; });
}

async function loadModels() {
  const [{ models: views }, state] = await Promise.all([api("/api/models"), fileState()]);
  file = state;
  models.clear();
  for (const view of views) models.set(view.name, view);
  showModels();
}

new Live(["model", "devices", "throughput"], {
  model(view) {
    models.set(view.name, view);
    steering.seen(view);
    showModels();
  },
  devices: showDevices,
  throughput(now) {
    isDue ||= now.second.requests > 0;
    showThroughput(now);
  },
}, async () => {
  await Promise.all([loadModels(), beginSpeeds(), api("/api/devices").then(showDevices), refreshToday()]);
});

every(10, () => {
  if (isDue) refreshToday();
  loadModels().catch(() => {}); // a reload of the config may have brought others
});
// Hours cost without a request, and a day ends.
every(30, refreshToday);
