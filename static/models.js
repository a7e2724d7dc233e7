import { Live, agreed, api, attempt, copy, drawn, every, fill, find, list, megabytes, notice, number, onAct, path, say,
  secondsSince, settings, span, time } from "./core.js";
import { outcomeOf } from "./dryrun.js";
import { EntryDialog } from "./entry.js";
import { LogView } from "./logview.js";
import { Steering, canStart, canStop, isOn, isRemote, stateName, why } from "./steering.js";

const CAPTURE_MINUTES = 10;
const models = new Map();
const dry = new Map();
const steering = new Steering();
const log = new LogView(find("#log"));
let busy = {};
let devices = [];
let followed = new URLSearchParams(location.search).get("log");

// --- cards ---------------------------------------------------------------------------------

const show = drawn(() => {
  const wanted = find("#wanted").value.toLowerCase();
  const state = find("#state").value;
  const views = [...models.values()].filter((view) => {
    const names = [view.name, ...view.aliases].join("\n").toLowerCase();
    const isOfState = state === "" || (state === "on" ? isOn(view) : view.state === state);
    return names.includes(wanted) && isOfState;
  });
  find("#no-models").hidden = models.size > 0;
  find("#filter").hidden = models.size === 0;
  find("#count").textContent = say("models_shown", { shown: views.length, count: models.size });
  list(find("#cards"), views, (view) => view.name, () => copy("card"), showCard);
});

function showCard(card, view) {
  const now = busy[view.name] ?? { in_flight: 0, waiting: 0, completion_tokens_per_second: 0 };
  const { name } = view;
  card.setAttribute("aria-current", name === followed);
  fill(card, {
    name,
    aliases: view.aliases.join(", "),
    state: view.state,
    state_name: stateName(view.state),
    waits: view.waits_for && why(view),
    why: !view.waits_for && why(view),
    mode: view.mode,
    url: view.url,
    scheme: view.scheme,
    passed_over: Object.entries(view.schemes_passed_over)
      .map(([scheme, reason]) => say("scheme_why", { scheme, reason })).join("\n"),
    pid: view.pid,
    process: [view.pid, view.port].filter(Boolean).join(", "),
    memory: memoryOf(view),
    needs: needsOf(view),
    busy: isOn(view) && [
      say("busy", { in_flight: number(now.in_flight), waiting: number(now.waiting) }),
      now.completion_tokens_per_second
        ? say("speed_of", { speed: number(now.completion_tokens_per_second, 1) }) : null,
    ].filter(Boolean).join(" · "),
    started: view.started_at && !isRemote(view)
      ? say("ago", { span: span(Math.round(secondsSince(view.started_at))),
        took: span(view.start_seconds) })
      : null,
    last_used: view.last_used_at && time(view.last_used_at),
    idle: idleOf(view, now),
    can_start: canStart(view),
    can_stop: canStop(view),
    can_try: canStart(view) && !isRemote(view),
    start_title: say("start_it", { name }),
    stop_title: say("stop_it", { name }),
    restart_title: say("restart_it", { name }),
    dry_title: say("dry_it", { name }),
    log_title: say("log_of", { name }),
    dry: dry.get(name),
    captured: view.capture_until
      && say("captured_until", { time: time(view.capture_until, "clock").textContent }),
    can_capture: !view.capture_until,
    capture_title: say("capture_it", { name }),
    can_edit: settings.may_edit_config,
    edit_title: say("edit_it", { name }),
    remove_title: say("remove_model", { name }),
  });
}

function memoryOf({ name, ram_mb: ram }) {
  const held = devices.flatMap((device) => device.models
    .filter((model) => model.name === name)
    .map((model) => say(model.measured_mb === null ? "memory_declared" : "memory_measured", {
      device: device.name,
      mb: megabytes(model.measured_mb ?? model.declared_mb),
      declared: megabytes(model.declared_mb),
    })));
  return [...held, ram === null ? null : say("memory_ram", { mb: megabytes(ram) })].filter(Boolean).join("\n");
}

/** What each scheme is placed with, and what else is known of it. */
function needsOf({ memory }) {
  return memory.flatMap(({ scheme, basis, devices: named, problem }) => [
    ...named.map((device) => {
      const known = ["declared", "measured", "estimated"].filter((each) => device[`${each}_mb`] !== null)
        .map((each) => say(`need_${each}`, { mb: megabytes(device[`${each}_mb`]) }));
      if (basis === "whole") known.unshift(say("need_whole"));
      return say("need_of", { scheme, device: device.name, figures: known.join(" · ") });
    }),
    basis === "whole" && problem && say("need_problem", { scheme, reason: problem }),
  ]).filter(Boolean).join("\n");
}

function idleOf(view, now) {
  if (view.state !== "ready" || now.in_flight || now.waiting) return null;
  if (view.idle_stop_at) {
    const left = Math.max(0, Math.round(-secondsSince(view.idle_stop_at)));
    return say("idle_stop", { span: span(left) });
  }
  return view.in_flight || view.waiting ? null : say("never_stops");
}

find("#filter").addEventListener("submit", (event) => event.preventDefault());
find("#wanted").addEventListener("input", show);
find("#state").addEventListener("change", show);
find("#stop-all").addEventListener("click", (event) => steering.stopAll(event.currentTarget));
onAct(find("#cards"), (act, name, button) => {
  if (act === "log") follow(name);
  else if (act === "dry") attempt(() => tryOut(name), button);
  else if (act === "capture") attempt(() => capture(name), button);
  else if (act === "release") attempt(() => keep(name, 0), button);
  else if (act === "edit") attempt(() => dialog.change(name, () => isOn(models.get(name))), button);
  else if (act === "remove") attempt(() => remove(name), button);
  else {
    dry.delete(name);
    steering.command(act, name, button);
  }
});

async function capture(name) {
  if (await agreed(say("agree_capture", { name }), say("record"))) await keep(name, CAPTURE_MINUTES);
}

const keep = (name, minutes) => api(`/api/models${path(name)}/capture`, { method: "POST", body: { minutes } });

/** Says what a start would do, which changes nothing. */
async function tryOut(name) {
  const would = await api(`/api/models${path(name)}/start?dry_run=1`, { method: "POST" });
  dry.set(name, outcomeOf(would, devices));
  show();
}

// --- the config ----------------------------------------------------------------------------

const dialog = settings.may_edit_config ? new EntryDialog(async (name, isToStart) => {
  dry.delete(name);
  await load();
  if (!isToStart) return;
  follow(name);
  await steering.command("start", name, null);
}) : null;

find("#add-model")?.addEventListener("click", (event) => attempt(() => dialog.add(), event.currentTarget));

async function remove(name) {
  if (!(await agreed(say("agree_remove_model", { name }), say("remove")))) return;
  await api(`/api/config/models${path(name)}`, { method: "DELETE" });
  if (followed === name) follow(null);
  notice(say("model_removed", { name }));
  await load();
}

// --- log -----------------------------------------------------------------------------------

function follow(name) {
  showLog(name);
  const address = name === null ? "/models" : `/models?log=${encodeURIComponent(name)}`;
  history.replaceState(null, "", address);
  live.follow(logOf(name));
  find("#log-panel").scrollIntoView({ block: "nearest" });
}

function logOf(name) {
  return name === null ? null : `model/${name}`;
}

function showLog(name) {
  followed = name;
  find("#log-panel").hidden = name === null;
  find("#both").classList.toggle("on", name !== null);
  show();
  if (name === null) return;
  find("#log-title").textContent = say("log_of", { name });
  find("#all-runs").href = `/logs?of=${encodeURIComponent(`model/${name}`)}`;
  log.clear(name);
}

find("#close-log").addEventListener("click", () => follow(null));

/** Takes all models as they are now; when one is idle no event says until when it stays. */
async function load() {
  const { models: views } = await api("/api/models");
  models.clear();
  for (const view of views) models.set(view.name, view);
  show();
}

// --- live ----------------------------------------------------------------------------------

const live = new Live(["model", "devices", "throughput"], {
  model(view) {
    models.set(view.name, view);
    steering.seen(view);
    show();
  },
  devices(snapshot) {
    devices = snapshot.devices;
    show();
  },
  throughput(now) {
    busy = now.models;
    show();
  },
  lines: (lines) => log.add(lines),
  log_begins: () => log.begin(),
}, async () => {
  await Promise.all([load(), api("/api/devices").then((snapshot) => { devices = snapshot.devices; })]);
  if (followed !== null && !models.has(followed)) follow(null);
  show();
}, logOf(followed));
if (followed !== null) showLog(followed);
if (dialog && new URLSearchParams(location.search).has("add")) attempt(() => dialog.add());
every(1, show);
every(5, () => load().catch(() => {})); // the stream shows when nothing answers
