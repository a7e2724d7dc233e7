import { Live, api, find } from "./core.js";
import { LogView } from "./logview.js";

const LINES = 2000;
const whose = find("#whose");
const log = new LogView(find("#log"));
const asked = new URLSearchParams(location.search).get("of") ?? "program";

function follow() {
  log.clear(whose.value.replace(/^model\//, ""));
  history.replaceState(null, "", `/logs?of=${encodeURIComponent(whose.value)}`);
  live.follow(whose.value, LINES);
}

const live = new Live([], {
  lines: (lines) => log.add(lines),
  log_begins: () => log.clear(),
}, showNames);

async function showNames() {
  const { models } = await api("/api/models");
  const chosen = whose.value;
  const options = models.map(({ name }) => new Option(name, `model/${name}`));
  whose.replaceChildren(whose.options[0], ...options);
  whose.value = [...whose.options].some((option) => option.value === chosen) ? chosen : "program";
}

whose.addEventListener("change", follow);
showNames().catch(() => {}).then(() => {
  if ([...whose.options].some((option) => option.value === asked)) whose.value = asked;
  follow();
});
