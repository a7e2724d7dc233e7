import { Live, agreed, all, api, attempt, copy, every, fill, find, list, money, notice, number, onAct,
  path, say, time } from "./core.js";
import { Form, integerOf, momentOf, textOf } from "./form.js";
import { showSecret } from "./secret.js";

const STATES = { active: "ok", expired: "stale", revoked: "error" };
const NEARLY = 0.9; // of a budget
let keys = [];
let models = [];

// --- the list --------------------------------------------------------------------------------

const limited = (now, limit) => (limit === null ? number(now)
  : say("of_limit", { now: number(now), limit: number(limit) }));

function show() {
  const wanted = find("#wanted").value.toLowerCase();
  const isOver = find("#over").checked;
  const shown = keys.filter((key) => (isOver || key.state !== "revoked")
    && `${key.name}\n${key.owner}`.toLowerCase().includes(wanted));
  find("#no-keys").hidden = keys.length > 0;
  find("#filter").hidden = keys.length === 0;
  find("#keys-panel").hidden = keys.length === 0;
  find("#over-label").hidden = !keys.some((key) => key.state === "revoked");
  find("#count").textContent = say("keys_shown", { shown: shown.length, count: keys.length });
  list(find("#keys tbody"), shown, (key) => key.name, () => copy("key-row"), showKey);
}

function showKey(row, key) {
  const { name, now, budget } = key;
  const spent = budget?.period === "day" ? now.spent_today : now.spent_this_month;
  fill(row, {
    name,
    owner: key.owner,
    hints: key.secrets.map(hintOf).join("\n"),
    state_name: say(`key_${key.state}`),
    state_class: STATES[key.state],
    requests: say("requests_now", { count: limited(now.requests, key.requests_per_minute) }),
    tokens: say("tokens_now", { count: limited(now.tokens, key.tokens_per_minute) }),
    in_flight: limited(now.in_flight, key.max_concurrency),
    spent: money(spent),
    spent_exact: spent,
    models: key.models === null ? say("all_models") : key.models.join(", "),
    raw: key.raw ? say("raw_key") : "",
    expires: key.expires_at ? time(key.expires_at) : say("never"),
    priority: number(key.priority),
    may_change: key.state !== "revoked",
    change_title: say("change_key", { name }),
    rotate_title: say("rotate_key", { name }),
    revoke_title: say("revoke_key", { name }),
  });
  const part = find("[data-part=budget]", row);
  const used = budget && Number(budget.amount) ? Number(spent) / Number(budget.amount) : 0;
  const isUsedUp = budget !== null && Number(spent) >= Number(budget.amount);
  part.textContent = budget === null ? say("this_month")
    : say(`of_budget_${budget.period}`, { amount: money(budget.amount) });
  part.className = `small block ${isUsedUp ? "bad-text" : used >= NEARLY ? "warn-text" : "quiet"}`;
}

function hintOf(secret) {
  if (secret.valid_until === null) return `…${secret.hint}`;
  return say("hint_until", { hint: secret.hint, until: time(secret.valid_until).textContent });
}

async function load() {
  ({ keys } = await api("/api/keys"));
  show();
}

find("#filter").addEventListener("submit", (event) => event.preventDefault());
find("#wanted").addEventListener("input", show);
find("#over").addEventListener("change", show);

// --- making one, and changing it -------------------------------------------------------------

const editor = new Form("editor");
const { elements } = editor.form;
let edited = null;
let before = {};

function values() {
  const [amount, period] = [elements.budget.value.trim(), elements.period.value];
  return {
    owner: elements.owner.value.trim(),
    models: elements.every.checked ? null
      : all("#picks input:checked").map((pick) => pick.value),
    requests_per_minute: integerOf(elements.requests_per_minute.value, null),
    tokens_per_minute: integerOf(elements.tokens_per_minute.value, null),
    max_concurrency: integerOf(elements.max_concurrency.value, null),
    budget: amount ? { amount, period } : null,
    expires_at: momentOf(elements.expires_at.value),
    priority: integerOf(elements.priority.value, 0),
    raw: elements.raw.checked,
  };
}

function edit(key) {
  edited = key;
  find("#editor-title").textContent = key ? say("change_key", { name: key.name }) : say("new_key");
  find("#editor-yes").textContent = say(key ? "save" : "make");
  elements.name.value = key?.name ?? "";
  elements.name.readOnly = key !== null;
  find("#own-secret").hidden = key !== null;
  elements.owner.value = key?.owner ?? "";
  elements.every.checked = !key?.models;
  const names = [...new Set([...models, ...(key?.models ?? [])])];
  list(find("#picks"), names, (name) => name, () => copy("pick"), (item, name) => {
    find("span", item).textContent = name;
    const pick = find("input", item);
    pick.value = name;
    pick.checked = key?.models?.includes(name) ?? false;
  });
  for (const name of ["requests_per_minute", "tokens_per_minute", "max_concurrency"]) {
    elements[name].value = key?.[name] ?? "";
  }
  elements.budget.value = key?.budget?.amount ?? "";
  elements.period.value = key?.budget?.period ?? "month";
  elements.expires_at.value = textOf(key?.expires_at);
  elements.priority.value = key?.priority ?? 0;
  elements.raw.checked = key?.raw ?? false;
  showPicks();
  before = values();
  editor.open(key ? elements.owner : elements.name);
}

function showPicks() {
  find("#picks").hidden = elements.every.checked;
}

elements.every.addEventListener("change", showPicks);
find("#editor").addEventListener("close", () => { elements.secret.value = ""; });
find("#add").addEventListener("click", () => edit(null));

editor.onSubmit(async () => {
  const given = values();
  if (edited === null) {
    const own = elements.secret.value ? { secret: elements.secret.value } : {};
    const made = await api("/api/keys", { method: "POST",
      body: { name: elements.name.value.trim(), ...own, ...given } });
    editor.close();
    if (made.secret) showSecret(say("secret_of_key", { name: made.name }), made.secret);
    else notice(say("key_made", { name: made.name }));
  } else {
    // Only what was changed here: somebody else may have changed the rest meanwhile.
    const isChanged = ([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name]);
    const body = Object.fromEntries(Object.entries(given).filter(isChanged));
    await api(`/api/keys${path(edited.name)}`, { method: "PATCH", body });
    editor.close();
    notice(say("key_saved", { name: edited.name }));
  }
  await load();
});

// --- a new secret, and the end ---------------------------------------------------------------

const rotation = new Form("rotation");
let rotated = "";

rotation.onSubmit(async () => {
  const hours = integerOf(rotation.form.elements.keep_old_hours.value, "");
  const made = await api(`/api/keys${path(rotated)}/rotate`,
    { method: "POST", body: { keep_old_hours: hours } });
  rotation.close();
  showSecret(say("secret_of_key", { name: rotated }), made.secret);
  await load();
});

const acts = {
  change: (key) => edit(key),
  rotate({ name }) {
    rotated = name;
    find("#rotation-title").textContent = say("rotate_key", { name });
    rotation.form.reset();
    rotation.open(rotation.form.elements.keep_old_hours);
  },
  async revoke({ name }) {
    if (!(await agreed(say("agree_revoke_key", { name }), say("revoke")))) return;
    await api(`/api/keys${path(name)}`, { method: "DELETE" });
    notice(say("key_is_revoked", { name }));
    await load();
  },
};

onAct(find("#keys"), (act, name, button) =>
  attempt(async () => acts[act](keys.find((key) => key.name === name)), button));

new Live([], {}, async () => {
  const configured = await api("/api/models");
  models = configured.models.map((view) => view.name);
  await load();
});
every(5, () => load().catch(() => {})); // the stream shows when nothing answers
