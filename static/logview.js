// A log: its lines as they come, with search, levels, pause and download.

import { all, find, say } from "./core.js";

const MAX_LINES = 5000;
const BAD = /\b(error|fatal|critical|exception|traceback|panic|failed)\b/i;
const WARN = /\b(warn|warning)\b/i;

/** One log in an element made from the template "log-view". */
export class LogView {
  #lines;
  #count;
  #search;
  #only;
  #pause;
  #waiting = [];
  #isStale = false; // the lines will come again

  constructor(root) {
    this.root = root;
    this.#lines = find(".log", root);
    this.#count = find("[data-count]", root);
    this.#search = find("input[type=search]", root);
    this.#only = find("[data-only]", root);
    this.#pause = find("[data-pause]", root);
    this.#search.addEventListener("input", () => this.#filter());
    this.#only.addEventListener("change", () => this.#filter());
    this.#pause.addEventListener("click", () => this.#setPaused(!this.#isPaused()));
    find("[data-save]", root).addEventListener("click", () => this.#save());
  }

  /** Begins again with this log; its name is that of the file that is saved. */
  clear(name = this.name) {
    this.name = name;
    this.#waiting = [];
    this.#lines.replaceChildren();
    this.#setPaused(false);
    this.#filter();
  }

  /** The same log from its last lines on, after a connection that was lost. A reader who has
   * paused goes on reading what is there. */
  begin() {
    this.#waiting = [];
    this.#isStale = this.#isPaused();
    if (!this.#isStale) this.#lines.replaceChildren();
    this.#showCount();
  }

  add(lines) {
    if (this.#isPaused()) {
      this.#waiting = [...this.#waiting, ...lines].slice(-MAX_LINES);
      this.#showCount();
      return;
    }
    const box = this.#lines;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const added = lines.map((line) => this.#line(line));
    box.append(...added);
    while (box.childElementCount > MAX_LINES) box.firstElementChild.remove();
    if (isAtEnd) box.scrollTop = box.scrollHeight;
    this.#showCount();
  }

  #line(text) {
    const line = document.createElement("div");
    line.textContent = text;
    if (text.startsWith("# ")) line.className = "title";
    else if (BAD.test(text)) line.className = "bad";
    else if (WARN.test(text)) line.className = "warn";
    this.#filterLine(line);
    return line;
  }

  #isPaused() {
    return this.#pause.getAttribute("aria-pressed") === "true";
  }

  #setPaused(paused) {
    this.#pause.setAttribute("aria-pressed", paused);
    if (!paused && this.#isStale) {
      this.#isStale = false;
      this.#lines.replaceChildren();
    }
    if (!paused && this.#waiting.length) {
      const waiting = this.#waiting;
      this.#waiting = [];
      this.add(waiting);
    }
  }

  #filter() {
    for (const line of this.#lines.children) this.#filterLine(line);
    this.#lines.scrollTop = this.#lines.scrollHeight;
    this.#showCount();
  }

  #filterLine(line) {
    const wanted = this.#search.value.toLowerCase();
    const text = line.textContent;
    const at = wanted ? text.toLowerCase().indexOf(wanted) : -1;
    const isOfLevel = this.#only.value === "" || line.className === "bad"
      || (this.#only.value === "warn" && line.className === "warn");
    line.hidden = (wanted !== "" && at < 0) || !isOfLevel;
    if (at >= 0) {
      const mark = document.createElement("mark");
      mark.textContent = text.slice(at, at + wanted.length);
      line.replaceChildren(text.slice(0, at), mark, text.slice(at + wanted.length));
    } else if (line.firstElementChild) {
      line.textContent = text;
    }
  }

  #showCount() {
    const lines = [...this.#lines.children];
    const shown = lines.filter((line) => !line.hidden).length;
    const text = say("lines_shown", { shown, count: lines.length });
    this.#count.textContent = this.#waiting.length
      ? `${text} · ${say("lines_waiting", { count: this.#waiting.length })}` : text;
  }

  #save() {
    const text = all("div", this.#lines).map((line) => `${line.textContent}\n`).join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = `${this.name.replaceAll(/[^\p{L}\p{N}._-]+/gu, "_")}.log`;
    link.click();
    URL.revokeObjectURL(link.href);
  }
}
