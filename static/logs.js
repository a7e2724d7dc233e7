import { Live, api, attempt, find, offer, path, query, say } from "./core.js";
import { LogView } from "./logview.js";

const LINES = 2000; // of a run that is over
const whose = find("#whose");
const run = find("#run");
const log = new LogView(find("#log"));
const asked = new URLSearchParams(location.search).get("of") ?? "program";
let runs = [];
let live = null;

const model = () => (whose.value === "program" ? null : whose.value.replace(/^model\//, ""));

function follow() {
  log.clear(model() ?? "llm-manager");
  history.replaceState(null, "", `/logs?of=${encodeURIComponent(whose.value)}`);
  find("#ended").hidden = true;
  live.follow(whose.value);
}

/** Shows a run that is over, which nothing is added to. */
async function showRun() {
  const one = runs.find(({ id }) => id === run.value);
  if (!one) {
    follow();
    return;
  }
  live.follow(null);
  log.clear(`${model()}-${one.started_at}`);
  const ended = find("#ended");
  ended.textContent = one.ended_at ? one.end_reason : "";
  ended.hidden = !ended.textContent;
  const text = await api(`/api/models${path(model())}/logs${query({ lines: LINES, run: one.id })}`);
  log.add(text === "" ? [] : text.replace(/\n$/, "").split("\n"));
}

async function showRuns() {
  find("#run-label").hidden = model() === null;
  runs = model() === null ? [] : (await api(`/api/models${path(model())}/runs`)).runs;
  const format = new Intl.DateTimeFormat(document.documentElement.lang,
    { dateStyle: "medium", timeStyle: "medium" });
  const options = runs.filter((one) => one.has_log).map((one) => {
    const end = one.ended_at === null ? say("run_goes_on") : one.end_reason.split("\n")[0];
    return new Option(`${format.format(new Date(one.started_at))}: ${end.slice(0, 80)}`, one.id);
  });
  offer(run, options, 1);
}

async function showNames() {
  const { models } = await api("/api/models");
  const chosen = whose.value;
  const options = models.map(({ name }) => new Option(name, `model/${name}`));
  offer(whose, options, 1);
  if (live && whose.value !== chosen) follow(); // its model was removed
}

const handlers = {
  // A run that begins or ends is one more to choose from.
  model: (view) => view.name === model() && showRuns().catch(() => {}),
  lines: (lines) => log.add(lines),
  log_begins: () => log.begin(),
};

whose.addEventListener("change", () => {
  run.value = "";
  attempt(showRuns);
  follow();
});
run.addEventListener("change", () => attempt(showRun));
attempt(async () => {
  await showNames();
  if ([...whose.options].some((option) => option.value === asked)) whose.value = asked;
  log.clear(model() ?? "llm-manager");
  await showRuns();
}).then(() => { live = new Live(["model"], handlers, showNames, whose.value); });
