import { Live, all, api, copy, fill, find, isAdmin, list, money, number, offer, query, say, send,
  settings, span, toClipboard } from "./core.js";
import { stateName, why } from "./steering.js";

const ID_HEADER = "X-LLM-Manager-Request";
const PRICE_TRIES = 10;
const models = new Map();
/** In memory alone: neither the address nor the browser keeps it. */
const apiKey = () => find("#as-key").value.trim();

/** One way to try a model. `body` makes the request, `begin` and `show` say what came. */
class Kind {
  #halt = null;

  constructor(id, endpoint, { body, begin = () => {}, show, end = () => {} }) {
    this.root = find(`#${id}`);
    this.form = find("form", this.root);
    this.mode = this.root.dataset.mode;
    this.endpoint = endpoint;
    this.does = { body, begin, show, end };
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.form.addEventListener("input", () => this.showCurl());
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.part("halt", "data-halt").addEventListener("click", () => this.halt());
    find("[data-copy]", this.form).addEventListener("click", () => toClipboard(this.part("curl").textContent));
  }

  part(name, attribute = null) {
    return find(attribute ? `[${attribute}]` : `[data-part=${name}]`, this.root);
  }

  get model() {
    return this.form.elements.model.value;
  }

  /** Offers the models of its mode. */
  offer(views) {
    const select = this.form.elements.model;
    const names = views.filter((view) => view.mode === this.mode).map((view) => view.name);
    offer(select, names.map((name) => new Option(name, name)));
    this.part("none").hidden = names.length > 0;
    this.form.hidden = names.length === 0;
    this.showCurl();
  }

  curl(body = this.does.body(this.form.elements)) {
    const text = JSON.stringify(body);
    const quoted = text.replaceAll("'", String.raw`'\''`);
    const url = `${location.origin}${this.endpoint}`;
    const key = apiKey() || !settings.models_are_open ? ` \\\n  -H "Authorization: Bearer $KEY"` : "";
    return `curl ${url}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
  }

  /** That of what would be sent now. After an answer it stays that of what was sent. */
  showCurl() {
    this.part("curl").textContent = this.model ? this.curl() : "";
  }

  /** While nothing has come yet: what the model does. */
  showProgress() {
    const view = models.get(this.model);
    if (!this.#halt || this.hasAnswer || !view) return;
    const text = view.state === "ready" ? say("waits_for_answer")
      : [`${view.name}: ${stateName(view.state)}`, why(view)].filter(Boolean).join(" · ");
    this.part("progress").textContent = text;
  }

  halt() {
    this.#halt?.abort();
  }

  async send() {
    if (this.#halt) return;
    this.#halt = new AbortController();
    this.hasAnswer = false;
    const body = this.does.body(this.form.elements);
    this.part("curl").textContent = this.curl(body);
    this.#toggle(true);
    this.part("error").hidden = true;
    this.part("facts").hidden = true;
    this.does.begin(this, body);
    this.showProgress();
    const began = performance.now();
    try {
      const answer = await asCaller(this.endpoint, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
        signal: this.#halt.signal,
      });
      const id = answer.headers.get(ID_HEADER);
      if (!answer.ok) throw new Error(await messageOf(answer));
      const usage = answer.headers.get("Content-Type")?.startsWith("text/event-stream")
        ? await this.#readStream(answer) : await this.#readWhole(answer);
      const shown = this.#showFacts(id, body.model, usage, performance.now() - began);
      shown.catch(() => {}); // the answer is there; the stream shows that nothing answers now
    } catch (error) {
      if (error.name === "AbortError") this.part("progress").textContent = say("halted");
      else this.#fail(error instanceof TypeError ? say("unreachable") : error.message);
    } finally {
      this.#halt = null;
      this.#toggle(false);
      this.does.end(this);
    }
  }

  #toggle(sending) {
    this.part("send", "data-send").setAttribute("aria-disabled", sending);
    this.part("halt", "data-halt").hidden = !sending;
    if (!sending && this.hasAnswer) this.part("progress").textContent = "";
  }

  #fail(message) {
    const box = this.part("error");
    box.textContent = message;
    box.hidden = false;
    this.part("progress").textContent = "";
  }

  async #readWhole(answer) {
    const content = await answer.json();
    this.hasAnswer = true;
    this.does.show(this, content);
    return content.usage;
  }

  async #readStream(answer) {
    let usage = null;
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      this.hasAnswer = true;
      this.part("progress").textContent = "";
      usage = event.usage ?? usage;
      this.does.show(this, event);
    }
    return usage;
  }

  /** First what is known at once; the cost when the worker has counted it. */
  async #showFacts(id, model, usage, ms) {
    const facts = this.part("facts");
    const shown = { time: span(ms / 1000), tokens: "–", speed: "–", cost: "…" };
    if (usage) shown.tokens = say("tokens_both", { prompt: number(usage.prompt_tokens ?? 0),
      completion: number(usage.completion_tokens ?? 0) });
    fill(facts, { ...shown, link: `/requests?id=${encodeURIComponent(id)}` });
    facts.hidden = false;
    for (let i = 0; i < PRICE_TRIES; i++) {
      // It is among the newest; asked for alone it would not be there yet for some milliseconds.
      const { requests } = await api(`/api/usage/requests${query({ model, limit: 20 })}`);
      const row = requests.find((one) => one.id === id);
      if (row) {
        const first = row.first_byte_at && Date.parse(row.first_byte_at) - Date.parse(row.started_at);
        const seconds = (Date.parse(row.ended_at) - Date.parse(row.first_byte_at)) / 1000;
        fill(facts, {
          tokens: say("tokens_both", { prompt: number(row.prompt_tokens),
            completion: number(row.completion_tokens) }),
          speed: row.streamed && seconds > 0
            ? say("speed_of", { speed: number(row.completion_tokens / seconds, 1) }) : "–",
          time: say("time_of", { whole: span(ms / 1000), first: span(first / 1000) }),
          cost: row.cost === null ? "…" : money(row.cost),
        });
        if (row.cost !== null) return;
      }
      await new Promise((resolve) => { setTimeout(resolve, 500); });
    }
    fill(facts, { cost: say("not_priced") });
  }
}

/** As whoever has the key that was typed in; else an admin as such, and a viewer as nobody. */
function asCaller(endpoint, options) {
  const key = apiKey();
  if (key) {
    const headers = { ...options.headers, Authorization: `Bearer ${key}` };
    return fetch(endpoint, { ...options, headers, credentials: "omit" });
  }
  return isAdmin ? send(endpoint, options) : fetch(endpoint, options);
}

async function messageOf(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `${answer.status}: ${text.slice(0, 500)}`;
  }
}

/** The JSON of each event of a stream. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split(/[\r\n]+/);
    held = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

/** A number where one was typed in, else what was typed, for the model's server to refuse. */
function optional(name, text) {
  if (text.trim() === "") return {};
  return { [name]: Number.isFinite(Number(text)) ? Number(text) : text };
}

// --- chat ------------------------------------------------------------------------------------

let conversation = [];

function saidBy(role, text) {
  const element = document.createElement("div");
  element.className = `said ${role}`;
  element.textContent = text;
  find("#said").append(element);
  find("#said").scrollTop = find("#said").scrollHeight;
  return element;
}

const chat = new Kind("chat", "/v1/chat/completions", {
  body: ({ model, system, prompt, temperature, max_tokens }) => ({
    model: model.value,
    messages: [
      ...(system.value ? [{ role: "system", content: system.value }] : []),
      ...conversation,
      ...(prompt.value ? [{ role: "user", content: prompt.value }] : []),
    ],
    ...optional("temperature", temperature.value),
    ...optional("max_tokens", max_tokens.value),
    stream: true,
  }),
  begin(kind) {
    const { prompt } = kind.form.elements;
    conversation.push({ role: "user", content: prompt.value });
    saidBy("user", prompt.value);
    kind.answer = null;
    kind.text = "";
    prompt.value = "";
  },
  show(kind, event) {
    const piece = event.choices?.[0]?.delta?.content ?? event.choices?.[0]?.delta?.reasoning_content;
    if (!piece) return;
    kind.answer ??= saidBy("assistant", "");
    kind.text += piece;
    kind.answer.append(piece);
    find("#said").scrollTop = find("#said").scrollHeight;
  },
  end(kind) {
    if (!conversation.length) return; // forgotten meanwhile
    if (kind.text) conversation.push({ role: "assistant", content: kind.text });
    else {
      // Not answered: it may be sent again, as it was or changed.
      kind.form.elements.prompt.value ||= conversation.pop().content;
      all("#said > .user").at(-1).remove();
    }
  },
});

find("#forget").addEventListener("click", () => {
  chat.halt();
  conversation = [];
  find("#said").replaceChildren();
  chat.showCurl();
  chat.form.elements.prompt.focus();
});

// --- the others ------------------------------------------------------------------------------

const kinds = {
  chat,
  completion: new Kind("completion", "/v1/completions", {
    body: ({ model, prompt, temperature, max_tokens }) => ({
      model: model.value,
      prompt: prompt.value,
      ...optional("temperature", temperature.value),
      ...optional("max_tokens", max_tokens.value),
      stream: true,
    }),
    begin(kind, { prompt }) {
      const answer = kind.part("answer");
      const given = document.createElement("span");
      given.className = "quiet";
      given.textContent = prompt;
      answer.replaceChildren(given);
      answer.hidden = false;
    },
    show: (kind, event) => kind.part("answer").append(event.choices?.[0]?.text ?? ""),
  }),
  embeddings: new Kind("embeddings", "/v1/embeddings", {
    body: ({ model, one, other }) => ({ model: model.value, input: [one.value, other.value] }),
    show(kind, { data }) {
      const [one, other] = data.map((entry) => entry.embedding);
      kind.part("answer").textContent = say("similarity",
        { similarity: number(cosine(one, other), 4), size: number(one.length) });
      kind.part("answer").hidden = false;
    },
  }),
  rerank: new Kind("rerank", "/v1/rerank", {
    body: ({ model, query, documents }) => ({
      model: model.value,
      query: query.value,
      documents: documents.value.split("\n").filter((line) => line.trim()),
    }),
    begin: (kind, { documents }) => { kind.documents = documents; },
    show(kind, { results }) {
      const ranked = results.toSorted((one, other) => other.relevance_score - one.relevance_score);
      kind.part("answer").hidden = false;
      list(find("tbody", kind.part("answer")), ranked, (one) => one.index, () => copy("ranked"),
        (row, one) => fill(row, { document: kind.documents[one.index],
          score: number(one.relevance_score, 4) }));
    },
  }),
};

function cosine(one, other) {
  const product = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  return product(one, other) / Math.sqrt(product(one, one) * product(other, other));
}

function choose(name) {
  for (const [each, kind] of Object.entries(kinds)) kind.root.hidden = each !== name;
  history.replaceState(null, "", `/playground?kind=${name}`);
}

find("#as-key").addEventListener("input", () => {
  for (const kind of Object.values(kinds)) kind.showCurl();
});
find("#kinds").addEventListener("change", (event) => choose(event.target.value));
const wanted = new URLSearchParams(location.search);
const asked = find(`#kinds input[value="${CSS.escape(wanted.get("kind") ?? "chat")}"]`);
if (asked) {
  asked.checked = true;
  choose(asked.value);
}

new Live(["model"], {
  model(view) {
    models.set(view.name, view);
    for (const kind of Object.values(kinds)) kind.showProgress();
  },
}, async () => {
  const { models: views } = await api("/api/models");
  for (const view of views) models.set(view.name, view);
  for (const kind of Object.values(kinds)) kind.offer(views);
  const modes = Object.values(kinds).map((kind) => kind.mode);
  const names = views.filter((view) => !modes.includes(view.mode)).map((view) => view.name);
  find("#untried").hidden = names.length === 0;
  find("#untried").textContent = say("untried", { names: names.join(", ") });
});
