import { Live, agreed, api, attempt, copy, every, fill, find, isAdmin, list, notice, onAct, path, query,
  say, settings, table, time } from "./core.js";
import { Form, momentOf } from "./form.js";

// --- accounts --------------------------------------------------------------------------------

async function loadAccounts() {
  const { accounts } = await api("/api/accounts");
  list(find("#accounts tbody"), accounts, (one) => one.name, newAccountRow, (row, one) => {
    const { name } = one;
    fill(row, {
      name,
      is_me: name === settings.name,
      since: time(one.created_at, "date"),
      role_title: say("role_of", { name }),
      password_title: say("password_of", { name }),
      sign_out_title: say("sign_out_of", { name }),
      remove_title: say("remove_it", { title: name }),
    });
    find("select", row).value = one.role;
  });
}

function newAccountRow({ name }) {
  const row = copy("account-row");
  const select = find("select", row);
  select.addEventListener("change", () => attempt(async () => {
    const role = select.value;
    try {
      await api(`/api/accounts${path(name)}`, { method: "PATCH", body: { role } });
    } catch (error) {
      await loadAccounts(); // it is as it was
      throw error;
    }
    if (name === settings.name) location.reload(); // who may do less sees less
    else {
      notice(say("role_is", { name, role: say(role) }));
      await loadAll();
    }
  }));
  return row;
}

function accountForm() {
  const form = new Form("account");
  const { elements } = form.form;
  let changed = null;

  function open(name) {
    changed = name;
    form.form.reset();
    find("#account-title").textContent = name === null ? say("new_account") : say("password_of", { name });
    elements.name.value = name ?? "";
    elements.name.readOnly = name !== null;
    find("[data-part=role]", form.form).hidden = name !== null;
    find("#signs-out").hidden = name === null;
    form.open(name === null ? elements.name : elements.password);
  }

  form.onSubmit(async () => {
    const [name, role, password] = ["name", "role", "password"].map((field) => elements[field].value);
    if (changed === null) {
      await api("/api/accounts", { method: "POST", body: { name, role, password } });
    } else await api(`/api/accounts${path(changed)}`, { method: "PATCH", body: { password } });
    form.close();
    notice(say(changed === null ? "account_added" : "password_set", { name }));
    await loadAll();
  });
  return open;
}

const accountActs = {
  async sign_out(name) {
    await api(`/api/accounts${path(name)}/sign-out`, { method: "POST" });
    notice(say("is_signed_out", { name }));
  },
  async remove(name) {
    if (!(await agreed(say("agree_remove_account", { name }), say("remove")))) return;
    await api(`/api/accounts${path(name)}`, { method: "DELETE" });
    notice(say("is_removed", { name }));
  },
};

// --- tokens ----------------------------------------------------------------------------------

async function loadTokens() {
  const { tokens } = await api("/api/tokens");
  table("tokens", tokens, (one) => one.name, "token-row", (one) => ({
    name: one.name,
    hint: `…${one.hint}`,
    role: say(one.role),
    by: one.created_by,
    since: time(one.created_at, "date"),
    expires: one.expires_at ? time(one.expires_at) : say("never"),
    is_expired: one.is_expired,
    revoke_title: say("revoke_key", { name: one.name }),
  }));
}

function tokenForm(showSecret) {
  const form = new Form("token");
  const { elements } = form.form;
  form.onSubmit(async () => {
    const body = { name: elements.name.value, role: elements.role.value,
      expires_at: momentOf(elements.expires_at.value) };
    const made = await api("/api/tokens", { method: "POST", body });
    form.close();
    showSecret(say("secret_of_token", { name: made.name }), made.secret);
    await loadAll();
  });
  return () => {
    form.form.reset();
    form.open(elements.name);
  };
}

async function revokeToken(name) {
  if (!(await agreed(say("agree_revoke_token", { name }), say("revoke")))) return;
  await api(`/api/tokens${path(name)}`, { method: "DELETE" });
  notice(say("key_is_revoked", { name }));
  await loadAll();
}

// --- who changed what ------------------------------------------------------------------------

// What each call does, in words; what is done from a shell is recorded in words.
const DONE = {
  "signed in": "did_sign_in",
  "first password": "did_first_password",
  "POST /api/models/{name}/start": "did_start",
  "POST /api/models/{name}/stop": "did_stop",
  "POST /api/models/{name}/restart": "did_restart",
  "POST /api/models/{name}/capture": "did_capture",
  "POST /api/models/stop": "did_stop_all",
  "GET /unload": "did_stop_all",
  "POST /unload": "did_stop_all",
  "PUT /api/models/{name}/price": "did_price",
  "POST /api/adjustments": "did_adjust",
  "POST /api/exports": "did_export",
  "POST /api/config/reload": "did_reload",
  "PUT /api/config/text": "did_config",
  "POST /api/config/models": "did_add_model",
  "PUT /api/config/models/{name}": "did_change_model",
  "DELETE /api/config/models/{name}": "did_remove_model",
  "DELETE /api/data/models/{name}": "did_delete",
  "POST /api/data/reprice": "did_reprice",
  "POST /api/data/vacuum": "did_vacuum",
  "POST /api/data/backup": "did_back_up",
  "POST /api/keys": "did_add_key",
  "PATCH /api/keys/{name}": "did_change_key",
  "POST /api/keys/{name}/rotate": "did_rotate_key",
  "DELETE /api/keys/{name}": "did_revoke_key",
  "POST /api/accounts": "did_add_account",
  "PATCH /api/accounts/{name}": "did_change_account",
  "DELETE /api/accounts/{name}": "did_remove_account",
  "POST /api/accounts/{name}/sign-out": "did_sign_out",
  "POST /api/tokens": "did_add_token",
  "DELETE /api/tokens/{name}": "did_remove_token",
};
let entries = [];
let next = null;

/** Each value with its path, one a line: `budget.amount: 10`. */
function lines(value, at = "") {
  if (value === null || typeof value !== "object") return [`${at}: ${value ?? "–"}`];
  if (Array.isArray(value) && value.every((one) => one === null || typeof one !== "object")) {
    return [`${at}: ${value.join(", ")}`];
  }
  return Object.entries(value).flatMap(([name, one]) => lines(one, at ? `${at}.${name}` : name));
}

async function loadAudit() {
  const answer = await api("/api/audit");
  const oldest = answer.audit.at(-1)?.id;
  // What was loaded of older ones stays, unless others would be missing between the two.
  const place = entries.findIndex((one) => one.id === oldest);
  const older = place === -1 ? [] : entries.slice(place + 1);
  if (!older.length) next = answer.next;
  entries = [...answer.audit, ...older];
  showAudit();
}

async function loadOlder() {
  const answer = await api(`/api/audit${query({ cursor: next })}`);
  entries = [...entries, ...answer.audit];
  next = answer.next;
  showAudit();
}

function showAudit() {
  find("#older").hidden = next === null;
  table("audit", entries, (one) => one.id, "audit-row", (one) => ({
    at: time(one.at),
    who: one.who,
    address: one.address,
    what: one.action in DONE ? say(DONE[one.action]) : one.action,
    action: one.action,
    subject: one.subject,
    detail: lines(one.detail).join("\n"),
  }));
}

// --- the page --------------------------------------------------------------------------------

async function loadAll() {
  await Promise.all([loadAccounts(), loadTokens(), loadAudit()]);
}

if (isAdmin) {
  const { showSecret } = await import("./secret.js");
  const openAccount = accountForm();
  find("#add-account").addEventListener("click", () => openAccount(null));
  find("#add-token").addEventListener("click", tokenForm(showSecret));
  find("#older").addEventListener("click", (event) => attempt(loadOlder, event.currentTarget));
  onAct(find("#accounts"), (act, name, button) => attempt(async () => {
    if (act === "password") openAccount(name);
    else {
      await accountActs[act](name);
      await loadAll();
    }
  }, button));
  onAct(find("#tokens"), (_, name, button) => attempt(() => revokeToken(name), button));
  every(10, () => loadAll().catch(() => {})); // the stream shows when nothing answers
}
new Live([], {}, isAdmin ? loadAll : undefined);
