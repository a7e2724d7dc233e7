// config.yaml on the disk, as far as it is watched.

import { api, say } from "./core.js";

/**
 * `watched`, the `version` on the disk, and `why` the file as it is there is not in use: null where
 * it is. `removes` says which models it removes, where it waits because of them.
 */
export async function fileState() {
  const { watched, version, problems, waiting } = await api("/api/config/file");
  const state = { watched, version, why: null, removes: null };
  if (waiting) {
    const removes = waiting.code === "removes_models" ? waiting.message : null;
    return { ...state, removes, why: say("file_waits", { why: waiting.message }) };
  }
  if (!problems.length) return state;
  const lines = problems.map(({ line, message }) => [say("line", { line }), message].filter(Boolean).join(": "));
  return { ...state, why: say("file_has_problems", { problems: lines.join("\n") }) };
}
