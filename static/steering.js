// Models as several pages show them: their states in words, why, and steering them.

import { agreed, api, attempt, notice, number, path, say, span } from "./core.js";

const AT_REST = ["stopped", "failed"];
// On its way a restart is stopped, and so may a start be that is asked for during a stop.
const SETTLED = { start: ["ready", "failed"], restart: ["ready", "failed"], stop: AT_REST };

export const stateName = (state) => say(`state_${state}`);
export const canStart = (view) => [...AT_REST, "sleeping", "stopping"].includes(view.state);
export const isOn = (view) => !AT_REST.includes(view.state);
// Its server is started and stopped by others; after a change of the config an own one may still run.
export const isRemote = (view) => view.url !== null && view.port === null;
export const canStop = (view) => isOn(view) && !isRemote(view);
export const pageOf = (name) => `/models?log=${encodeURIComponent(name)}`;

/** Why it waits or failed, or why it runs in this scheme; "" where there is nothing to say. */
export function why(view) {
  if (view.waits_for) {
    const { reason, waits_for: others, place_in_line: place } = view.waits_for;
    const parts = [reason, others.length ? say("waits_for", { models: others.join(", ") }) : null,
      say("place", { place })];
    return parts.filter(Boolean).join(" · ");
  }
  return view.last_error ?? "";
}

/** Starts, stops and restarts models, and shows how that ended when the events say so. */
export class Steering {
  #asked = new Map();

  /** Takes a model's latest view. */
  seen(view) {
    const verb = this.#asked.get(view.name);
    if (verb && SETTLED[verb].includes(view.state)) this.#showOutcome(view);
  }

  async command(verb, name, button) {
    await attempt(async () => {
      if (verb !== "start" && !(await this.#isAgreed(verb, name))) return;
      const answer = await api(`/api/models${path(name)}/${verb}`, { method: "POST" });
      this.#asked.set(name, verb);
      // It may have ended before its answer came: that event had nothing to show.
      const isSettled = SETTLED[verb].includes(answer.state);
      this.seen(isSettled ? answer : await api(`/api/models${path(name)}`));
    }, button);
  }

  /** Whether nobody would miss its answer, or the reader wants it all the same. */
  async #isAgreed(verb, name) {
    // Asked now: no event reports each request.
    const { in_flight: count } = await api(`/api/models${path(name)}`);
    return count === 0 || agreed(say(`agree_${verb}`, { name, count: number(count) }), say(verb));
  }

  async stopAll(button) {
    if (!(await agreed(say("agree_stop_all"), say("stop_all")))) return;
    await attempt(async () => {
      await api("/api/models/stop", { method: "POST" });
      notice(say("stopping_all"));
    }, button);
  }

  #showOutcome(view) {
    this.#asked.delete(view.name);
    const { name, state } = view;
    if (isRemote(view) && state === "ready") {
      notice(say("answers", { name }));
    } else if (isRemote(view)) {
      notice(say("does_not_answer", { name, why: why(view) }), "bad");
    } else if (state === "ready") {
      notice(say("is_ready", { name, seconds: span(view.start_seconds), scheme: view.scheme }));
    } else if (state === "failed") {
      notice(say("did_not_start", { name, why: why(view) }), "bad");
    } else {
      notice(say("is_stopped", { name }));
    }
  }
}
