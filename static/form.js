// A form in a dialog, and its fields as the API takes them.

import { all, attempt, find } from "./core.js";

/** What is no number is sent as it was typed, to be refused. */
export const integerOf = (text, empty) => {
  const typed = text.trim();
  if (typed === "") return empty;
  return /^\d{1,15}$/.test(typed) ? Number(typed) : typed;
};

/** Of a field for date and time, in the reader's zone. */
export const momentOf = (text) => (text ? new Date(text).toISOString() : null);

/** What such a field shows for a moment. */
export function textOf(iso) {
  if (!iso) return "";
  const moment = new Date(iso);
  return new Date(moment - moment.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

export class Form {
  #dialog;
  #error;

  constructor(id) {
    this.#dialog = find(`#${id}`);
    this.form = find("form", this.#dialog);
    this.#error = find("[data-part=error]", this.form);
    find("[data-close]", this.form).addEventListener("click", () => this.close());
  }

  open(first) {
    this.#showError(null);
    this.#dialog.showModal();
    first.focus();
  }

  close() {
    this.#dialog.close();
  }

  onSubmit(act) {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(() => this.refusing(act), find("[type=submit]", this.form));
    });
  }

  /** Where `act` is refused the dialog stays, with the reason and its field. */
  async refusing(act) {
    try {
      await act();
    } catch (error) {
      if (!this.#dialog.open) throw error;
      this.#showError(error);
    }
  }

  #showError(error) {
    this.#error.hidden = !error;
    this.#error.textContent = error?.message ?? "";
    for (const field of all("[aria-invalid]", this.form)) field.removeAttribute("aria-invalid");
    const field = this.form.elements[error?.param?.split(/[.[]/)[0]];
    if (field instanceof HTMLElement) {
      field.setAttribute("aria-invalid", "true");
      field.focus();
    }
  }
}
