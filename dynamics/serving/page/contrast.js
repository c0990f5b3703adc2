// What the rounds have changed: a held-out pair that the first draws wrong and the last right.

import { $, el, frame } from "./dom.js";
import { mark } from "./runview.js";

const FLIP_MS = 1200;
const NUM_FLIPS = 4; // what moves by itself for more than 5 seconds needs a button that stops it

/** Show a Contrast; `run` asks both rounds, which are its argument. */
export function showContrast(contrast, run) {
  const rounds = Object.keys(contrast.drawn).sort((one, other) => one - other);
  const [first, last] = rounds;
  const count = (value) => value.toLocaleString("en");
  const drawn = [
    [contrast.drawn[first], `round ${first}`, mark(false)],
    [contrast.drawn[last], `round ${last}`, mark(true)],
    [contrast.target, "truth", null],
  ].map(([image, caption, known]) => {
    const shown = frame(image, `held-out frame: ${caption}`);
    return { image, caption, known, shown };
  });
  $("contrast").replaceChildren(
    el("h2", { id: "contrast-title" }, "What the rounds have changed"),
    el("h3", {}, `“${contrast.action}”`),
    el(
      "ol",
      { className: "drawn" },
      el("li", {}, frame(contrast.source, "held-out frame: before"), "before"),
      ...drawn.map(({ shown, caption, known }) => el("li", {}, shown, `${caption} `, known)),
    ),
    el(
      "p",
      { className: "hint" },
      `A held-out scene, chosen because round ${first} draws it wrong and round ${last} right. So it is with ${count(contrast.num_gained)} of ${count(contrast.num_pairs)} held-out pairs; with ${count(contrast.num_lost)} it is the other way round.`,
    ),
    el("button", { type: "button", onclick: () => run(rounds) }, "Ask both rounds"),
  );
  $("contrast").hidden = false;
  play(drawn, contrast.source);
}

/** Let what was drawn begin as the source, twice. */
function play(drawn, source) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  let flips = 0;
  const timer = setInterval(() => {
    flips += 1;
    if (flips === NUM_FLIPS) clearInterval(timer);
    const after = flips % 2 === 0;
    for (const { shown, image } of drawn)
      shown.src = `data:image/png;base64,${after ? image : source}`;
  }, FLIP_MS);
}
