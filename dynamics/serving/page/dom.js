// Small pieces of the page, without markup in strings.

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/** A new element; properties are set as they are, `aria-*`, `for` and `role` as attributes. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A frame, pixel by pixel while it is small. */
export function frame(base64, alt, className = "frame") {
  return el("img", { className, alt, src: `data:image/png;base64,${base64}` });
}

/** A number with a real minus sign, and none before zero. */
export const number = (value, digits = 1) =>
  value
    .toFixed(digits)
    .replace(/^-(?=0\.0*$)/, "")
    .replace("-", "−");

/** One line, or nothing, in an element that is hidden while it is empty. */
export function say(element, text) {
  element.textContent = text;
  element.hidden = !text;
}
