// The dialog that shows a secret which nobody can be shown again.

import { find, say } from "./core.js";

const dialog = find("#secret");
const text = find("#secret-text");

export function showSecret(title, secret) {
  find("#secret-title").textContent = title;
  find("#secret-copied").textContent = "\u00a0";
  text.value = secret;
  dialog.showModal();
  text.select();
}

find("#secret-copy").addEventListener("click", async () => {
  text.select();
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(text.value);
  } catch {
    isCopied = document.execCommand("copy"); // also where there is no https
  }
  find("#secret-copied").textContent = say(isCopied ? "copied" : "not_copied");
});
// Not by the way: only who says so has it.
dialog.addEventListener("cancel", (event) => event.preventDefault());
dialog.addEventListener("close", () => { text.value = ""; });
