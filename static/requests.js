import { Live, api, attempt, copy, every, fill, find, isAdmin, legend, list, money, number, onAct, path,
  query, say, secondsSince, span, table, time } from "./core.js";

const PAGE = 50;
const CLIENT_CLOSED = 499; // the client disconnected, which is no fault
const form = find("#asked");
let inFlight = [];
let past = [];
let next = null;
let isFirstPage = true;

const between = (from, to) => (from && to ? (Date.parse(to) - Date.parse(from)) / 1000 : null);
const nameOf = (request) => request.model || request.asked_for || say("no_model");

// --- in flight -------------------------------------------------------------------------------

function showNow() {
  find("#now-count").textContent = inFlight.length ? number(inFlight.length) : "";
  const shown = inFlight.slice(0, 200);
  table("now", shown, (one) => one.id, "now-row", (one) => ({
    model: nameOf(one),
    state: one.state,
    state_name: say(`request_${one.state}`),
    age: span(Math.max(0, Math.round(secondsSince(one.started_at)))),
    waited: span(between(one.started_at, one.leased_at)),
    tokens: one.completion_tokens ? number(one.completion_tokens) : "–",
    endpoint: one.endpoint,
    key: one.key,
  }));
}

// --- past ------------------------------------------------------------------------------------

function asked() {
  const { model, key, status, text, end } = form.elements;
  return {
    model: model.value,
    key: key.value,
    status: status.value,
    text: text.value,
    end: end.value ? Date.parse(end.value) / 1000 : null,
  };
}

async function loadFirst() {
  const answer = await api(`/api/usage/requests${query({ ...asked(), limit: PAGE })}`);
  past = answer.requests;
  next = answer.next;
  isFirstPage = true;
  find("#newest").hidden = true;
  showPast();
}

async function loadOlder() {
  const values = { ...asked(), limit: PAGE, cursor: next };
  const answer = await api(`/api/usage/requests${query(values)}`);
  past = [...past, ...answer.requests];
  next = answer.next;
  isFirstPage = false;
  showPast();
}

function showPast() {
  find("#older").hidden = next === null;
  // An answer covers so many requests and no more: what is rare may be further back.
  find("#searched").textContent = next === null ? "" : say("requests_shown", { count: past.length });
  find("#csv").href = `/api/usage/requests${query({ ...asked(), format: "csv" })}`;
  table("past", past, (one) => one.id, "past-row", (one) => {
    const started = time(one.started_at);
    return {
      started,
      open_title: `${started.textContent}: ${say("open_request", { name: nameOf(one) })}`,
      model: nameOf(one),
      asked_for: one.asked_for,
      status: String(one.status),
      state: one.status < 400 ? "ok" : one.status === CLIENT_CLOSED ? "" : "error",
      error: one.error,
      prompt: number(one.prompt_tokens),
      completion: one.estimated ? `≈ ${number(one.completion_tokens)}` : number(one.completion_tokens),
      first: span(between(one.started_at, one.first_byte_at)),
      whole: span(between(one.started_at, one.ended_at)),
      cost: money(one.cost),
      cost_exact: one.cost,
    };
  });
  find("#no-past").hidden ||= next !== null;
}

// --- one of them -----------------------------------------------------------------------------

function showOne(one) {
  const dialog = find("#one");
  const answering = between(one.first_byte_at, one.ended_at);
  const cached = one.cached_tokens ? say("cached", { count: number(one.cached_tokens) }) : null;
  fill(dialog, {
    started: time(one.started_at),
    model: one.model || say("no_model"),
    asked_for: one.asked_for,
    status: String(one.status),
    error: one.error,
    endpoint: one.endpoint + (one.streamed ? ` · ${say("streamed")}` : ""),
    mode: [one.mode, one.scheme].filter(Boolean).join(", ") || "–",
    key: one.key || "–",
    tokens: [say("tokens_both", { prompt: number(one.prompt_tokens),
      completion: number(one.completion_tokens) }), cached,
    one.estimated ? say("estimated") : null].filter(Boolean).join(" · "),
    speed: one.streamed && answering
      ? say("speed_of", { speed: number(one.completion_tokens / answering, 1) }) : "–",
    cost: one.cost === null ? say("not_priced")
      : one.price === null ? money(one.cost)
        : say("cost_by", { cost: one.cost, currency: money(one.cost), price: one.price,
          tier: one.tier === null ? "–" : one.tier + 1 }),
    id: one.id,
  });
  showTimeline(one);
  if (!dialog.open) dialog.showModal();
}

/** Waited for its model, then for the first byte, then for the rest. */
function showTimeline(one) {
  const ends = [
    ["waited", one.started_at, one.leased_at ?? one.ended_at, "s5"],
    ["first", one.leased_at, one.first_byte_at ?? one.ended_at, "s1"],
    ["answered", one.first_byte_at, one.ended_at, "s0"],
  ];
  const whole = Math.max(between(one.started_at, one.ended_at), 0.001);
  const parts = ends.filter(([, from, to]) => from && to).map(([what, from, to, color]) => ({
    name: what,
    color: color.replace("s", "c"),
    left: between(one.started_at, from) / whole,
    width: between(from, to) / whole,
    text: say(`part_${what}`, { span: span(between(from, to)) }),
  }));
  find("#track").setAttribute("aria-label", parts.map((part) => part.text).join("; "));
  const bar = () => document.createElement("span");
  list(find("#track"), parts, (part) => part.name, bar, (element, part) => {
    element.className = part.color;
    element.style.left = `${part.left * 100}%`;
    element.style.width = `${part.width * 100}%`;
  });
  legend(find("#track-key"), parts);
}

async function open(id) {
  // Again: its cost may be known by now.
  const one = await api(`/api/usage/requests${path(id)}`);
  const { captures } = isAdmin ? await api("/api/captures") : { captures: [] };
  find("#capture").hidden = !captures.some((kept) => kept.id === id);
  if (!find("#capture").hidden) showCapture(await api(`/api/captures${path(id)}`));
  showOne(one);
}

// --- what was recorded -----------------------------------------------------------------------

/** Says of which models whole requests are recorded. */
function showCaptured(models) {
  list(find("#captured"), models.filter((one) => one.capture_until), (one) => one.name,
    () => copy("captured-row"), (row, { name, capture_until: until }) => fill(row, {
      text: say("captured_of", { name, time: time(until, "clock").textContent }),
    }));
}

function showCapture({ method, target, status, request, answer }) {
  const cut = (part) => part && !part.is_whole
    && say("not_whole", { kept: number(part.body.length), size: number(part.size) });
  const headers = (part) => part?.headers.map(([name, value]) => `${name}: ${value}`).join("\n");
  fill(find("#capture"), {
    capture_line: `${method} ${target} → ${status ?? "–"}`,
    request_headers: headers(request),
    request_body: request.body,
    request_cut: cut(request),
    answer_headers: headers(answer),
    answer_body: answer?.body,
    answer_cut: cut(answer),
  });
}

// --- choosing, live --------------------------------------------------------------------------

function search() {
  const { end, ...kept } = asked();
  history.replaceState(null, "", `/requests${query(kept)}`);
  attempt(loadFirst);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
form.addEventListener("change", search);
find("#older").addEventListener("click", (event) => attempt(loadOlder, event.currentTarget));
find("#newest").addEventListener("click", search);
onAct(find("#past"), (_, id, button) => attempt(() => open(id), button));

const given = new URLSearchParams(location.search);
for (const name of ["model", "key", "status", "text"]) {
  if (given.get(name)) form.elements[name].value = given.get(name);
}
if (given.get("id")) attempt(() => open(given.get("id")));

let isDue = false;
new Live(["requests", "throughput"], {
  requests(now) {
    inFlight = now;
    showNow();
  },
  throughput(now) {
    isDue ||= now.second.requests > 0;
  },
}, async () => {
  const { models } = await api("/api/models");
  showCaptured(models);
  find("#names").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  await loadFirst();
});
every(1, showNow);
every(5, () => api("/api/models").then(({ models }) => showCaptured(models)).catch(() => {}));
every(3, () => {
  if (!isDue) return;
  isDue = false;
  if (isFirstPage && scrollY < 400 && !form.elements.end.value) loadFirst().catch(() => {});
  else find("#newest").hidden = false;
});
