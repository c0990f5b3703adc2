// The pictures to begin with: the service's scenes and one of the person's own, as radio buttons.

import { el } from "./dom.js";
import { address } from "./pictures.js";

export const OWN = "your own";

export class Gallery {
  /** `changed` is called with the chosen `{name, image, actions}`. */
  constructor(container, changed) {
    this.container = container;
    this.changed = changed;
    this.pictures = new Map();
  }

  /** What is chosen: `{name, image, actions}`, or undefined. */
  get chosen() {
    return this.pictures.get(this.container.querySelector("input:checked")?.value);
  }

  /** Show the scenes; none is chosen yet. */
  show(scenes) {
    this.container.replaceChildren();
    for (const scene of scenes) this.put(scene);
  }

  /** Choose by name; false when there is no such picture. */
  choose(name) {
    const input = [...this.container.querySelectorAll("input")].find((one) => one.value === name);
    if (!input) return false;
    input.checked = true;
    this.changed(this.chosen);
    return true;
  }

  /** Add or replace the person's own picture, and choose it. */
  own(image) {
    this.container.querySelector(`input[value="${OWN}"]`)?.closest("label").remove();
    this.put({ name: OWN, image, actions: [] });
    this.choose(OWN);
  }

  put(picture) {
    this.pictures.set(picture.name, picture);
    const input = el("input", {
      type: "radio",
      name: "picture",
      value: picture.name,
      onchange: () => this.changed(this.chosen),
    });
    const image = el("img", { className: "frame", alt: "", src: address(picture.image) });
    this.container.append(
      el("label", { className: "scene" }, input, image, el("span", {}, picture.name)),
    );
  }
}
