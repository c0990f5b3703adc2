// The list of actions: one a row, to be edited, moved and removed; several pasted lines make rows.
// Rows are text areas only so that a long sentence wraps: a line end never gets into one.

import { el } from "./dom.js";

const READ_PAUSE_MS = 350;

export class ActionList {
  /**
   * `list` is an `ol`; `changed` is called after every change; `unknown` gives the words of a
   * sentence that the model does not know, each with the nearest known one.
   */
  constructor(list, changed, unknown) {
    this.list = list;
    this.changed = changed;
    this.unknown = unknown;
    this.later = 0;
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
      el("div", { className: "typed" }, input, el("div", { className: "ink", "aria-hidden": "true" })),
      button("↑", "Move up", () => this.move(row, -1)),
      button("↓", "Move down", () => this.move(row, 1)),
      button("×", "Remove", () => this.remove(row)),
    );
    input.addEventListener("input", () => {
      this.touch();
      this.read(row);
    });
    input.addEventListener("keydown", (event) => this.enter(event, row));
    input.addEventListener("paste", (event) => this.paste(event, row));
    if (text && this.edited) this.check(row);
    return row;
  }

  /** Check a row's words once its person has stopped typing. */
  read(row) {
    this.underline(row, {});
    clearTimeout(this.later);
    this.later = setTimeout(() => this.check(row), READ_PAUSE_MS);
  }

  async check(row) {
    const { value } = row.querySelector("textarea");
    if (!value.trim()) return;
    const unknown = await this.unknown(value);
    if (row.querySelector("textarea").value === value) this.underline(row, unknown);
  }

  /** Underline unknown words, and offer the nearest known ones below the row. */
  underline(row, unknown) {
    const input = row.querySelector("textarea");
    const words = Object.entries(unknown);
    input.ariaInvalid = words.length ? "true" : null;
    row.querySelector(".ink").replaceChildren(
      ...(words.length ? input.value.split(/(\s+)/) : []).map((part) =>
        el("span", { className: Object.hasOwn(unknown, part) ? "unknown" : "" }, part),
      ),
    );
    row.querySelector(".nearest")?.remove();
    if (!words.length) return;
    const offer = ([word, nearest]) =>
      el(
        "button",
        { type: "button", className: "plain", onclick: () => this.replace(row, word, nearest) },
        nearest,
      );
    const hint = el("p", { className: "hint nearest", role: "status" });
    for (const one of words) hint.append(`The model does not know “${one[0]}”. `, offer(one), "? ");
    row.append(hint);
  }

  replace(row, word, nearest) {
    const input = row.querySelector("textarea");
    const parts = input.value.split(/(\s+)/);
    input.value = parts.map((part) => (part === word ? nearest : part)).join("");
    input.focus();
    this.touch();
    this.underline(row, {});
    this.check(row);
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
