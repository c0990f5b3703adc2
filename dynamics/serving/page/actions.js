// The list of actions: one a row, to be edited, moved and removed; several pasted lines make rows.
// Rows are text areas only so that a long sentence wraps: a line end never gets into one.

import { el } from "./dom.js";

export class ActionList {
  /** `list` is an `ol`; `changed` is called after every change. */
  constructor(list, changed) {
    this.list = list;
    this.changed = changed;
    this.maxRows = 16;
    this.maxChars = 512;
    this.edited = false;
  }

  /** The sentences, without empty rows. */
  get value() {
    return this.inputs.map((input) => input.value.trim()).filter(Boolean);
  }

  set value(sentences) {
    this.list.replaceChildren(...sentences.map((text) => this.row(text)));
    this.renumber();
  }

  get inputs() {
    return [...this.list.querySelectorAll("textarea")];
  }

  /** Add a row at the end, or fill the first empty one. */
  add(text = "") {
    const empty = this.inputs.find((input) => !input.value.trim());
    if (empty) {
      empty.value = text;
      this.touch();
      return empty;
    }
    return this.insert(this.list.lastElementChild, text);
  }

  /** Insert a row after another one; null when the list is full. */
  insert(after, text) {
    if (this.list.children.length >= this.maxRows) return null;
    const row = this.row(text);
    if (after) after.after(row);
    else this.list.append(row);
    this.touch();
    return row.querySelector("textarea");
  }

  row(text) {
    const input = el("textarea", {
      rows: 1,
      value: text,
      maxLength: this.maxChars,
      spellcheck: false,
      autocomplete: "off",
      placeholder: "e.g. push the red ring left",
    });
    const button = (sign, name, act) =>
      el("button", { type: "button", className: "plain sign", title: name, onclick: act }, sign);
    const row = el(
      "li",
      {},
      input,
      button("↑", "Move up", () => this.move(row, -1)),
      button("↓", "Move down", () => this.move(row, 1)),
      button("×", "Remove", () => this.remove(row)),
    );
    input.addEventListener("input", () => this.touch());
    input.addEventListener("keydown", (event) => this.enter(event, row));
    input.addEventListener("paste", (event) => this.paste(event, row));
    return row;
  }

  enter(event, row) {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey || event.isComposing) return;
    event.preventDefault();
    const next = row.nextElementSibling?.querySelector("textarea") ?? this.insert(row, "");
    next?.focus();
  }

  paste(event, row) {
    const lines = event.clipboardData
      .getData("text")
      .split(/\r?\n/)
      .map((line) => line.trim());
    const [first, ...others] = lines.filter(Boolean);
    if (!others.length) return;
    event.preventDefault();
    const input = row.querySelector("textarea");
    input.value = input.value ? `${input.value} ${first}` : first;
    let last = row;
    for (const line of others) last = this.insert(last, line)?.closest("li") ?? last;
    last.querySelector("textarea").focus();
    this.touch();
  }

  move(row, by) {
    const other = by < 0 ? row.previousElementSibling : row.nextElementSibling;
    if (!other) return;
    const focused = document.activeElement;
    if (by < 0) other.before(row);
    else other.after(row);
    focused.focus();
    this.touch();
  }

  remove(row) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    if (next) next.querySelector("textarea").focus();
    else this.insert(null, "").focus();
    this.touch();
  }

  touch() {
    this.edited = true;
    this.renumber();
    this.changed();
  }

  renumber() {
    [...this.list.children].forEach((row, index) => {
      row.querySelector("textarea").setAttribute("aria-label", `Action ${index + 1}`);
      for (const button of row.querySelectorAll("button")) {
        button.setAttribute("aria-label", `${button.title}: action ${index + 1}`);
      }
    });
  }
}
