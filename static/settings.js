import { Live, agreed, api, attempt, bytes, copy, every, fill, find, list, notice, number, onAct, path, say,
  settings, time } from "./core.js";
import { fileState } from "./configfile.js";

const text = find("#text");
const numbers = find("#numbers");
let saved = "";
let version = null;

// --- config.yaml -----------------------------------------------------------------------------

async function loadText() {
  if (!settings.may_edit_config) {
    const { path: file, ...config } = await api("/api/config");
    text.value = JSON.stringify(config, null, 2);
    saved = text.value;
    text.readOnly = true;
    find("#path").textContent = file;
    showProblems([], null);
    return;
  }
  showText(await api("/api/config/text"));
}

function showText(file) {
  text.value = file.text;
  saved = text.value; // in which every line ends with one character
  version = file.version;
  find("#path").textContent = file.path;
  text.readOnly = !file.writable;
  find("#save").hidden = !file.writable;
  find("#changed").hidden = true;
  showProblems(file.problems, null);
  edited();
}

/** Whether the file is applied by itself, why it is not in use as it is, and its text as it is. */
async function showFile() {
  const { watched, why, version: onDisk } = await fileState();
  const element = find("#watched");
  const text = why ?? (watched ? say("file_watched") : "");
  if (element.textContent !== text) element.textContent = text;
  element.className = why === null ? "quiet small" : "notice warn pre";
  if (settings.may_edit_config) await follow(onDisk);
}

/** Shows the text of another version on the disk; where it would replace what was typed, says so. */
async function follow(onDisk) {
  const notice = find("#changed");
  if (onDisk === version) notice.hidden = true;
  else if (notice.hidden || !edited()) {
    const file = await api("/api/config/text");
    if (!edited()) showText(file);
    else if (isSaved(file)) version = file.version;
    else notice.hidden = false;
  }
}

/** After a restart of the program the same text has another version. */
const isSaved = (file) => file.text.replaceAll("\r\n", "\n") === saved;

function showProblems(problems, models) {
  const bad = new Set(problems.map((problem) => problem.line));
  const count = text.value.split("\n").length;
  const lines = Array.from({ length: count }, (_, i) => {
    const line = document.createElement(bad.has(i + 1) ? "b" : "span");
    line.textContent = `${bad.has(i + 1) ? "▸" : ""}${i + 1}\n`;
    return line;
  });
  numbers.replaceChildren(...lines);
  numbers.scrollTop = text.scrollTop;
  text.setAttribute("aria-invalid", problems.length > 0);
  find("#checked").textContent = problems.length ? say("problems", { count: problems.length })
    : models ? say("no_problems", { count: models.length }) : "";
  find("#checked").className = problems.length ? "small bad-text" : "small quiet";
  list(find("#problems"), problems, (one) => `${one.line}\n${one.message}`, () => copy("problem"),
    (item, one) => {
      item.dataset.line = one.line;
      fill(item, { line: say("line", { line: one.line }), message: one.message });
    });
}

/** Selects a line of the text, and has it in sight. */
function goTo(line) {
  const lines = text.value.split("\n");
  const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
  text.focus();
  text.setSelectionRange(start, start + (lines[line - 1]?.length ?? 0));
  text.scrollTop = (text.scrollHeight / lines.length) * Math.max(0, line - 5);
}

function edited() {
  const isChanged = text.value !== saved;
  find("#undo").hidden = !isChanged;
  return isChanged;
}

let checks = 0;

async function check() {
  const ours = ++checks;
  const { problems, models } = await api("/api/config/check",
    { method: "POST", body: { text: text.value } });
  if (ours === checks) showProblems(problems, models);
}

async function write() {
  const put = () => api("/api/config/text", { method: "PUT", body: { text: text.value, version } });
  try {
    return await put();
  } catch (error) {
    if (error.code !== "config_changed") throw error;
    const file = await api("/api/config/text");
    if (!isSaved(file)) throw error;
    version = file.version;
    return put();
  }
}

async function save() {
  text.readOnly = true; // what would be typed meanwhile would be lost
  try {
    const done = await write();
    showApplied(done);
    await loadText();
    await loadData();
  } catch (error) {
    if (error.problems) showProblems(error.problems, null);
    if (error.code === "config_changed") find("#changed").hidden = false;
    throw error;
  } finally {
    text.readOnly = false;
  }
}

function showApplied({ models, restart_needed_for: restart }) {
  const applied = say("applied", { count: models.length });
  if (restart.length) notice(`${applied}\n${say("restart_for", { keys: restart.join(", ") })}`, "warn");
  else notice(applied);
}

let typing = null;
text.addEventListener("input", () => {
  edited();
  clearTimeout(typing);
  typing = setTimeout(() => attempt(check), 400);
});
text.addEventListener("scroll", () => { numbers.scrollTop = text.scrollTop; });
find("#save").addEventListener("click", (event) => attempt(save, event.currentTarget));
find("#undo").addEventListener("click", () => {
  text.value = saved;
  edited();
  attempt(check);
});
find("#load-again").addEventListener("click", () => attempt(async () => {
  if (!edited() || (await agreed(say("agree_reload"), say("discard")))) await loadText();
}));
find("#reload").addEventListener("click", (event) => attempt(async () => {
  if (edited() && !(await agreed(say("agree_reload"), say("discard")))) return;
  const { removes } = await fileState();
  if (removes && !(await agreed(say("agree_apply", { removes }), say("apply")))) return;
  showApplied(await api("/api/config/reload", { method: "POST" }));
  await loadText();
  await showFile();
}, event.currentTarget));
find("#problems").addEventListener("click", (event) => {
  const item = event.target.closest("[data-line]");
  if (item && event.target.closest("button")) goTo(Number(item.dataset.line));
});
addEventListener("beforeunload", (event) => { if (edited()) event.preventDefault(); });

// --- about and data --------------------------------------------------------------------------

async function loadAbout() {
  const about = await api("/api/about");
  fill(find("#about"), { ...about, started: time(about.started_at), pid: String(about.pid) });
  find("#data-dir").textContent = about.data_dir;
  const facts = Object.entries(about.packages).flatMap(([name, found]) => {
    const [term, value] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    value.textContent = found ?? "–";
    return [term, value];
  });
  find("#packages").replaceChildren(...facts);
  const sizes = [...about.sizes, { name: say("free"), bytes: about.disk_free_bytes, complete: true }];
  list(find("#sizes tbody"), sizes, (one) => one.name, () => copy("size-row"), (row, one) => {
    fill(row, { name: one.name, size: `${one.complete ? "" : "≥ "}${bytes(one.bytes)}` });
  });
}

async function loadData() {
  const data = await api("/api/data");
  const { worker, orders, backups } = data;
  const behind = say("behind", { count: number(data.unbilled_requests) });
  find("#worker").textContent = `${say(worker.alive ? "worker_on" : "worker_off")} · ${behind}`;
  find("#worker").classList.toggle("bad-text", !worker.alive);
  list(find("#orders"), orders, (one) => `${one.kind} ${one.subject}`,
    () => document.createElement("li"), (item, one) => {
      item.className = one.error ? "bad-text" : "quiet";
      item.textContent = [say(`order_${one.kind}`), one.subject, one.error].filter(Boolean).join(" · ");
    });
  find("#backups").hidden = !backups.length;
  list(find("#backups tbody"), backups, (one) => one.file, () => copy("backup-row"), (row, one) => {
    fill(row, { file: one.file, made: time(one.made_at), size: bytes(one.bytes) });
  });
}

/** Counts what is stored: with millions of requests that takes seconds. */
async function loadStored() {
  const { models } = await api("/api/data/models");
  find("#counting").hidden = true;
  find("#stored").hidden = !models.length;
  find("#nothing-stored").hidden = models.length > 0;
  list(find("#stored tbody"), models, (one) => one.name, () => copy("stored-row"), (row, one) => {
    fill(row, {
      name: one.name || say("no_model"),
      note: one.configured ? "" : say("not_configured"),
      requests: number(one.requests),
      oldest: time(one.oldest_at, "date"),
      newest: time(one.newest_at, "date"),
      runs: number(one.runs),
      delete_title: say("delete_it", { name: one.name || say("no_model") }),
    });
    find("[data-act=delete]", row).hidden = !one.name;
  });
}

/** Has the worker run a task, and waits for that. */
function runTask(call, outcome) {
  return async (event) => {
    await attempt(async () => {
      const done = await api(`${call}?wait=1`, { method: "POST" });
      notice(say(done.done ? outcome : "ordered"), done.done ? "good" : "warn");
      await Promise.all([loadData(), loadAbout()]);
    }, event.currentTarget);
  };
}

find("#backup").addEventListener("click", runTask("/api/data/backup", "backed_up"));
find("#vacuum").addEventListener("click", runTask("/api/data/vacuum", "vacuumed"));
onAct(find("#stored"), (_, name, button) => attempt(async () => {
  if (!(await agreed(say("agree_delete", { name }), say("delete")))) return;
  const done = await api(`/api/data/models${path(name)}?wait=1`, { method: "DELETE" });
  notice(say(done.done ? "deleted" : "ordered", { name }));
  await Promise.all([loadData(), loadAbout(), loadStored()]);
}, button));

new Live([], {}, async () => {
  // What is being typed in outlives a lost connection.
  const shown = edited() ? showFile() : loadText().then(showFile);
  await Promise.all([shown, loadAbout(), loadData()]);
  await loadStored();
});
every(5, () => showFile().catch(() => {})); // the stream shows when nothing answers
