// What a start would do, in words.

import { megabytes, say } from "./core.js";

/** `would` is what a dry run answers, `devices` those of the machine. */
export function outcomeOf(would, devices) {
  const memory = Object.entries(would.memory_mb ?? {}).filter(([, mb]) => mb > 0)
    .map(([id, mb]) => `${devices.find((device) => device.id === id)?.name ?? id}: ${megabytes(mb)}`);
  const models = [...(would.stops ?? []), ...(would.waits_for ?? [])].join(", ");
  const outcome = say(`dry_${would.action}`, { scheme: would.scheme, models, reason: would.reason });
  const passed = Object.entries(would.schemes_passed_over ?? {})
    .map(([scheme, reason]) => say("scheme_why", { scheme, reason }));
  const takes = memory.length ? say("takes", { memory: memory.join(", ") }) : null;
  return [outcome, takes, ...passed].filter(Boolean).join("\n");
}
