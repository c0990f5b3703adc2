// Plays a finished roll-out: one large frame, a slider that the arrow keys move, files to keep.

import { el } from "./dom.js";
import { film } from "./service.js";

const FRAME_MS = 900;

export class Player {
  /** `name` begins the names of the files. */
  constructor(name) {
    this.name = name;
    this.timer = 0;
    this.picture = el("img", { className: "frame", alt: "" });
    this.caption = el("p", { className: "player-caption" });
    this.slider = el("input", { type: "range", min: 0, step: 1, "aria-label": "Frame" });
    this.slider.addEventListener("input", () => this.pause() || this.show());
    this.button = el("button", { type: "button", onclick: () => this.toggle() }, "Play");
    this.element = el(
      "div",
      { className: "player", hidden: true },
      this.picture,
      el(
        "div",
        {},
        this.caption,
        this.slider,
        el(
          "p",
          { className: "go" },
          this.button,
          this.keeper("GIF", () => this.keepFilm("gif")),
          this.keeper("MP4", () => this.keepFilm("mp4")),
          this.keeper("JSON", () => this.keepJson()),
        ),
      ),
    );
  }

  keeper(name, onclick) {
    const title = `Download as ${name}`;
    return el("button", { type: "button", className: "plain", title, onclick }, name);
  }

  /** Offer frames with captions; `record` is what the JSON file holds. */
  offer(frames, captions, record) {
    Object.assign(this, { frames, captions, record });
    this.slider.max = frames.length - 1;
    this.slider.value = frames.length - 1;
    this.element.hidden = false;
    this.show();
  }

  show() {
    const at = this.slider.valueAsNumber;
    this.picture.src = `data:image/png;base64,${this.frames[at]}`;
    this.picture.alt = this.captions[at];
    this.caption.textContent = `${at} of ${this.frames.length - 1}: ${this.captions[at]}`;
    this.slider.setAttribute("aria-valuetext", this.caption.textContent);
  }

  toggle() {
    if (this.timer) return this.pause();
    this.button.textContent = "Pause";
    if (this.slider.value === this.slider.max) this.slider.value = 0;
    this.show();
    this.timer = setInterval(() => {
      this.slider.stepUp();
      this.show();
      if (this.slider.value === this.slider.max) this.pause();
    }, FRAME_MS);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = 0;
    this.button.textContent = "Play";
  }

  async keepFilm(kind) {
    try {
      const content = await film({ frames: this.frames, kind, seconds: FRAME_MS / 1000 });
      keep(`${this.name}.${kind}`, content);
    } catch (error) {
      this.caption.textContent = error.message;
    }
  }

  keepJson() {
    const record = JSON.stringify(this.record, null, 1);
    keep(`${this.name}.json`, new Blob([record], { type: "application/json" }));
  }
}

function keep(name, content) {
  const href = URL.createObjectURL(content);
  el("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}
