// The dialog that adds a model to the config, or changes one's entry.

import { agreed, all, api, attempt, bytes, copy, find, list, megabytes, notice, number, path, say,
  short } from "./core.js";
import { outcomeOf } from "./dryrun.js";
import { Form } from "./form.js";

const OWN = "own"; // the engine's id, too
const HUB = "hub";
const TYPING_MS = 400;
const OWN_EXAMPLE = `mode: Chat
Default:
  command: [my-server, --port, "\${PORT}"]`;

export class EntryDialog {
  #form = new Form("entry");
  #fields = this.#form.form.elements;
  #onSaved;
  #offers = { files: [], engines: [], devices: [] };
  #edited = null; // the model whose entry is changed, with the file's version; null: one is added
  #proposed = ""; // the entry as it was proposed
  #isNamed = false; // by the reader
  #typing = null;
  #fault = ""; // why there is no entry for what is chosen
  #isProposing = false;
  #proposals = 0;
  #checks = 0;
  #isRunning = () => false; // the model that is changed

  /** `onSaved(name, isToStart)` is called when the config has it. */
  constructor(onSaved) {
    this.#onSaved = onSaved;
    const fields = this.#fields;
    fields.file.addEventListener("change", () => this.#choose());
    fields.engine.addEventListener("change", () => this.#suggestDevices());
    fields.model.addEventListener("change", () => this.#propose());
    fields.context.addEventListener("change", () => this.#propose(Number(fields.context.value)));
    find("#offer-devices").addEventListener("change", () => this.#propose());
    fields.name.addEventListener("input", () => {
      this.#isNamed = fields.name.value.trim() !== "";
      this.#soon(() => this.#renamed());
    });
    fields.entry.addEventListener("input", () => this.#soon(() => this.#check()));
    find("#entry-only").addEventListener("click", (event) =>
      attempt(() => this.#form.refusing(() => this.#save(false)), event.currentTarget));
    this.#form.onSubmit(() => this.#save(this.#edited === null));
  }

  /** Adds one. */
  async add() {
    this.#offers = await api("/api/config/files");
    this.#edited = null;
    this.#isNamed = false;
    this.#show(say("add_model"), say("save_and_start"));
    this.#fields.name.value = "";
    this.#setEntry("");
    const { files, folders, notes } = this.#offers;
    const usable = files.filter((file) => !file.error && this.#enginesFor(file.kind).length);
    this.#fields.file.replaceChildren(
      ...usable.map((file) => new Option(
        [file.path.split(/[/\\]/).at(-1), file.quantisation, bytes(file.bytes)].join(" · "), file.path)),
      new Option(say("from_hub"), HUB), new Option(say("own_command"), OWN));
    const faults = files.filter((file) => file.error).map((file) => file.error);
    this.#notes = [...faults, ...notes];
    find("#offer-no-folders").hidden = folders.length > 0;
    if (!usable.length && this.#enginesFor(null).every((engine) => engine.unavailable)) {
      this.#fields.file.value = OWN;
    }
    this.#form.open(this.#fields.file);
    await this.#choose();
  }

  /** Changes the entry of one that the config has; `isRunning()` is asked whether it runs. */
  async change(name, isRunning) {
    const { entry, version } = await api(`/api/config/models${path(name)}`);
    this.#edited = { name, version };
    this.#isRunning = isRunning;
    this.#show(say("change_model", { name }), say("save"));
    this.#fields.name.value = name;
    this.#setEntry(entry);
    this.#form.open(this.#fields.entry);
    await this.#check();
  }

  #notes = [];

  #show(title, yes) {
    const isNew = this.#edited === null;
    find("#entry-title").textContent = title;
    find("#entry-yes").textContent = yes;
    find("#entry-only").hidden = !isNew;
    find("#offer").hidden = !isNew;
    find("#name-note").hidden = isNew;
    this.#fields.name.readOnly = !isNew;
    this.#fields.entry.placeholder = "";
    clearTimeout(this.#typing);
    this.#begin();
  }

  /** Nothing that was asked before is answered any more. Returns the number of what is asked now. */
  #begin() {
    this.#checks += 1;
    this.#proposals += 1;
    this.#isProposing = false;
    this.#fault = "";
    this.#say("", false);
    this.#showSaves();
    return this.#proposals;
  }

  /** There is nothing to save while nothing is proposed for what is chosen. */
  #showSaves() {
    const { name, entry } = this.#fields;
    const isUnsure = this.#isProposing || this.#fault !== "";
    entry.readOnly = isUnsure;
    for (const button of [find("#entry-only"), find("#entry-yes")]) {
      button.disabled = isUnsure || !name.value.trim() || !entry.value.trim();
    }
  }

  // --- what is proposed --------------------------------------------------------------------

  get #file() {
    return this.#offers.files.find((file) => file.path === this.#fields.file.value) ?? null;
  }

  get #engine() {
    return this.#offers.engines.find((engine) => engine.id === this.#fields.engine.value) ?? null;
  }

  /** For a kind of GGUF; null: for what is no GGUF. Those first that can be run here. */
  #enginesFor(kind) {
    return this.#offers.engines
      .filter((engine) => engine.has_command && (kind === null ? !engine.kinds.length : engine.kinds.includes(kind)))
      .sort((one, other) => Number(one.unavailable !== null) - Number(other.unavailable !== null));
  }

  async #choose() {
    const chosen = this.#fields.file.value;
    const file = this.#file;
    const engines = chosen === OWN ? [] : this.#enginesFor(file?.kind ?? null);
    this.#fields.engine.replaceChildren(...engines.map((engine) => {
      const option = new Option([engine.title, engine.unavailable].filter(Boolean).join(": "), engine.id);
      option.disabled = engine.unavailable !== null;
      return option;
    }));
    this.#fields.engine.value = engines.find((engine) => !engine.unavailable)?.id ?? "";
    this.#fields.entry.placeholder = chosen === OWN ? OWN_EXAMPLE : "";
    find("#offer-hub").hidden = chosen !== HUB;
    find("#offer-how").hidden = chosen === OWN;
    find("#offer-where").hidden = chosen === OWN || !this.#cards.length;
    find("#offer-context").hidden = true;
    this.#showFacts(file);
    await this.#suggestDevices();
  }

  get #cards() {
    return this.#offers.devices.filter((device) => device.kind !== "cpu");
  }

  #showFacts(file) {
    const facts = file && [file.name, say(`kind_${file.kind}`), file.architecture,
      say("parameters", { count: short(file.parameters) }), file.quantisation, bytes(file.bytes),
      file.context && say("trained_context", { context: number(file.context) })];
    find("#offer-facts").textContent = [facts && facts.filter(Boolean).join(" · "), ...this.#notes]
      .filter(Boolean).join("\n");
  }

  /** The largest card that the engine runs on; where the model is too large for it, the processor. */
  async #suggestDevices() {
    const kinds = this.#engine?.device_kinds ?? [];
    const cards = this.#cards.filter((card) => kinds.includes(card.kind))
      .sort((one, other) => (other.total_mb ?? 0) - (one.total_mb ?? 0));
    this.#showDevices(cards.length ? [cards[0].id] : [], []);
    const { fits } = (await this.#propose()) ?? { fits: [] };
    const fit = fits.find((one) => one.device === cards[0]?.name);
    if (fit && fit.largest === null && kinds.includes("cpu")) {
      this.#showDevices([], fits);
      await this.#propose();
    }
  }

  get #devices() {
    const ids = all("#offer-devices input:checked").map((pick) => pick.value);
    return this.#cards.filter((card) => ids.includes(card.id)).map((card) => card.name);
  }

  #showDevices(checked, fits) {
    list(find("#offer-devices"), this.#cards, (card) => card.id, () => copy("pick"), (item, card) => {
      const pick = find("input", item);
      pick.value = card.id;
      if (checked) pick.checked = checked.includes(card.id);
      const fit = fits.find((one) => one.device === card.name);
      find("span", item).textContent = [card.name, fit && this.#fitOf(fit)].filter(Boolean).join(": ");
    });
  }

  #fitOf({ largest, needs }) {
    return largest === null
      ? say("too_small", { mb: megabytes(needs[0].device_mb), context: number(needs[0].context) })
      : say("fits_up_to", { context: number(largest) });
  }

  #context() {
    const { value } = this.#fields.context;
    return value === "" ? null : Number(value);
  }

  /** What is asked for; null: nothing yet. */
  #wanted(context) {
    const { file, engine, model, name } = this.#fields;
    const [isHub, hubName] = [file.value === HUB, model.value.trim()];
    if (file.value === OWN || (isHub && engine.value && !hubName)) return null;
    const body = { engine: engine.value, devices: this.#devices };
    if (this.#file) body.file = this.#file.path;
    if (isHub) body.model = hubName;
    if (context) body.context = context;
    if (this.#isNamed) body.name = name.value.trim();
    return body;
  }

  /** Asks for an entry, unless the one that is there was changed by hand and is to stay. */
  async #propose(context = null) {
    if (this.#edited) return null;
    if (!this.#isAsProposed && !(await agreed(say("agree_propose"), say("replace")))) return null;
    const asked = this.#begin();
    this.#setEntry("");
    if (!this.#isNamed) this.#fields.name.value = "";
    const body = this.#wanted(context);
    if (!body) return null;
    if (!body.engine) {
      this.#refuse([say("no_engine"), ...[...this.#fields.engine.options].map(({ text }) => text)].join("\n"));
      return null;
    }
    this.#isProposing = true;
    this.#showSaves();
    let found;
    try {
      found = await api("/api/config/propose", { method: "POST", body });
    } catch (error) {
      if (asked === this.#proposals) this.#refuse(error.message);
      return null;
    }
    if (asked !== this.#proposals) return null;
    this.#isProposing = false;
    if (!this.#isNamed) this.#fields.name.value = found.name;
    this.#setEntry(found.entry);
    this.#showDevices(null, found.fits);
    this.#showContexts(found);
    await this.#check();
    return found;
  }

  /** Of what is chosen no entry can be made. */
  #refuse(message) {
    this.#isProposing = false;
    this.#fault = message;
    this.#say(message, true);
    this.#showSaves();
  }

  /** Those for the first of the devices that are chosen, or for the processor. */
  #showContexts({ fits, context }) {
    const [device] = this.#devices;
    const fit = fits.find((one) => (device ? one.device === device : one.is_host));
    find("#offer-context").hidden = !fit;
    this.#fields.context.replaceChildren(...(fit?.needs ?? []).map((need) => {
      const values = { context: number(need.context), mb: megabytes(need.device_mb) };
      const isFitting = need.device_mb <= fit.total_mb;
      return new Option(say(isFitting ? "context_takes" : "context_too_large", values), need.context);
    }));
    this.#fields.context.value = context ?? "";
  }

  get #isAsProposed() {
    return this.#fields.entry.value === this.#proposed;
  }

  #setEntry(text) {
    this.#proposed = text;
    this.#fields.entry.value = text;
    this.#showSaves();
  }

  // --- what would come of it ---------------------------------------------------------------

  #soon(act) {
    this.#showSaves();
    clearTimeout(this.#typing);
    this.#typing = setTimeout(act, TYPING_MS);
  }

  /** The name of a container is made of the model's. */
  async #renamed() {
    this.#typing = null;
    if (this.#isProposing || (this.#proposed && this.#isAsProposed)) await this.#propose(this.#context());
    else await this.#check();
  }

  async #check() {
    clearTimeout(this.#typing);
    this.#typing = null;
    this.#showSaves();
    if (this.#fault || this.#isProposing) return undefined;
    const asked = ++this.#checks;
    const [name, entry] = [this.#fields.name.value.trim(), this.#fields.entry.value];
    if (!name || !entry.trim()) return this.#say("", false);
    try {
      const { problems, warnings, start } = await api("/api/config/preview",
        { method: "POST", body: { name, entry } });
      if (asked !== this.#checks) return undefined;
      const lines = [...problems, ...warnings].map(({ line, message }) =>
        (line === null ? message : `${line ? say("line", { line }) : say("the_name")}: ${message}`));
      const would = start && (this.#edited && this.#isRunning() ? say("goes_on", { name })
        : outcomeOf(start, this.#offers.devices));
      this.#say([...lines, would].filter(Boolean).join("\n"), problems.length > 0);
    } catch (error) {
      if (asked === this.#checks) this.#say(error.message, true);
    }
    return undefined;
  }

  #say(text, isBad) {
    const element = find("#entry-checked");
    element.textContent = text;
    element.classList.toggle("bad-text", isBad);
    this.#fields.entry.setAttribute("aria-invalid", isBad);
  }

  async #save(isToStart) {
    const { name, entry } = this.#fields;
    if (this.#edited) {
      const { name: model, version } = this.#edited;
      await api(`/api/config/models${path(model)}`,
        { method: "PUT", body: { entry: entry.value, version } });
      this.#form.close();
      notice(say("entry_saved", { name: model }));
      return this.#onSaved(model, false);
    }
    if (this.#typing !== null) await this.#renamed();
    if (this.#fault) return undefined;
    const added = name.value.trim();
    await api("/api/config/models", { method: "POST", body: { name: added, entry: entry.value } });
    this.#form.close();
    notice(say("entry_added", { name: added }));
    return this.#onSaved(added, isToStart);
  }
}
