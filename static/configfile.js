// config.yaml on the disk, as far as it is watched.

import { api, say } from "./core.js";

/** `watched`, and `why` the file as it is on the disk is not in use: null where it is. */
export async function fileState() {
  const { watched, problems, waiting } = await api("/api/config/file");
  if (waiting) return { watched, why: say("file_waits", { why: waiting.message }) };
  if (!problems.length) return { watched, why: null };
  const lines = problems.map(({ line, message }) => [say("line", { line }), message].filter(Boolean).join(": "));
  return { watched, why: say("file_has_problems", { problems: lines.join("\n") }) };
}
