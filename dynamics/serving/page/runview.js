// One roll-out of one round: a strip of frames, and every step with its candidates.

import { el, frame, number } from "./dom.js";
import { Player } from "./player.js";

const NARROWEST_NATS = 5; // bars of a step span at least this, so that small differences look small

const RULES = "the domain's rules, followed from the first picture, lead to";

/** ✓ or ✗ with words, or nothing where nobody knows; `before` is the verdict on the step before. */
export function mark(matches, before = true) {
  if (matches === null || matches === undefined) return null;
  if (matches) return el("span", { className: "mark right", title: `${RULES} this` }, "✓ right");
  const text = before === false ? "✗ still wrong" : "✗ wrong";
  return el("span", { className: "mark wrong", title: `${RULES} something else` }, text);
}

export class RunView {
  /** `request` is what was asked for; `branch(frame, actions)` goes on from another candidate. */
  constructor(title, note, request, branch) {
    const { actions, n: numCandidates } = request;
    this.title = title;
    this.actions = actions;
    this.branch = branch;
    this.record = { request, messages: [] };
    this.player = new Player(title.toLowerCase().replace(" ", "-"));
    this.verdicts = []; // one a step: true, false, or null where nobody knows
    this.numCandidates = numCandidates;
    this.frames = [];
    this.state = el("p", { className: "faint run-state" }, "asking …");
    this.strip = el("ol", { className: "strip", "aria-label": "All frames" });
    this.steps = el("ol", { className: "steps" });
    this.verdict = el("p", { className: "verdict", hidden: true });
    this.problem = el("p", { className: "notice", role: "alert", hidden: true });
    this.element = el(
      "article",
      { className: "run", "aria-label": title },
      el("header", {}, el("h3", {}, title, " ", el("small", {}, note)), this.state),
      this.strip,
      this.player.element,
      this.verdict,
      this.problem,
      this.steps,
    );
  }

  start(message) {
    this.record.messages.push(message);
    this.add(message.source, "start");
    this.wait(0);
  }

  step(message) {
    this.record.messages.push(message);
    this.steps.lastElementChild?.classList.contains("waiting") &&
      this.steps.lastElementChild.remove();
    this.add(message.image, `${message.index + 1}`);
    this.steps.append(this.stepItem(message));
    this.verdicts.push(message.matches_ground_truth ?? null);
    if (message.index + 1 < this.actions.length) this.wait(message.index + 1);
    return this.spoken(message);
  }

  end(message) {
    this.record.messages.push(message);
    this.state.textContent = `total score ${number(message.total)}`;
    const shown = this.frames.slice(1);
    const changed = message.frames.some((image, index) => image !== shown[index]);
    if (changed) {
      this.strip.replaceChildren();
      const [source] = this.frames;
      this.frames = [];
      this.add(source, "start");
      message.frames.forEach((image, index) => this.add(image, `${index + 1}`));
    }
    this.conclude(message, changed);
    this.player.offer(this.frames, ["the given picture", ...this.actions], this.record);
  }

  conclude(message, changed) {
    const parts = [];
    const known = mark(message.matches_ground_truth);
    if (known) {
      parts.push(
        known,
        message.matches_ground_truth
          ? " The last frame is where the actions lead."
          : " The last frame is not where the actions lead.",
      );
    }
    if (changed)
      parts.push(
        " The path that is best at the end differs from the favourites along the way: the frames above are its own.",
      );
    this.verdict.replaceChildren(...parts);
    this.verdict.hidden = !parts.length;
  }

  stop(text) {
    this.steps.querySelector(".waiting")?.remove();
    this.state.textContent = text;
  }

  fail(text) {
    this.stop("");
    this.strip.hidden = !this.frames.length;
    this.problem.textContent = text;
    this.problem.hidden = false;
  }

  add(image, caption) {
    this.frames.push(image);
    this.strip.append(el("li", {}, frame(image, `frame: ${caption}`), el("span", {}, caption)));
  }

  wait(index) {
    this.state.textContent = `step ${index + 1} of ${this.actions.length}`;
    const drawing = `drawing ${this.numCandidates} candidate${this.numCandidates === 1 ? "" : "s"} …`;
    this.steps.append(
      el(
        "li",
        { className: "step waiting" },
        el("span", { className: "frame big blank", "aria-hidden": "true" }),
        el(
          "div",
          { className: "step-text" },
          this.heading(index, this.actions[index]),
          el("p", { className: "faint" }, drawing),
        ),
      ),
    );
  }

  heading(index, action) {
    return el("h4", {}, el("span", { className: "faint" }, `${index + 1}`), " ", action);
  }

  stepItem(message) {
    const score = message.scores[message.chosen];
    const paths = message.num_prefixes > 1 ? ` · ${message.num_prefixes} paths in the race` : "";
    const facts = el("p", { className: "facts" });
    const known = mark(message.matches_ground_truth, this.verdicts.at(-1));
    if (known) facts.append(known, " · ");
    facts.append(`score\u00a0${number(score)} · total\u00a0${number(message.total)}${paths}`);
    return el(
      "li",
      { className: "step" },
      frame(message.image, `after “${message.action}”`, "frame big"),
      el("div", { className: "step-text" }, this.heading(message.index, message.action), facts),
      this.candidates(message),
    );
  }

  /** A candidate's frame: a button where another one could have been chosen. */
  candidate(message, index, name) {
    const { candidates, chosen, index: step } = message;
    if (!candidates) return null;
    const picture = frame(candidates[index], name);
    if (index === chosen) return picture;
    const title = `Go on from candidate ${index + 1}`;
    const onclick = () => this.branch(candidates[index], this.actions.slice(step + 1));
    return el("button", { type: "button", className: "branch", title, onclick }, picture);
  }

  candidates(message) {
    const { scores, chosen } = message;
    const best = Math.max(...scores);
    const span = Math.max(NARROWEST_NATS, best - Math.min(...scores));
    const items = scores.map((score, index) => {
      const kept = index === chosen;
      const fill = el("span");
      fill.style.width = `${Math.max(3, 100 * (1 - (best - score) / span))}%`;
      const name = `candidate ${index + 1}${kept ? ", chosen" : ""}: score ${number(score)}`;
      return el(
        "li",
        { className: kept ? "candidate chosen" : "candidate", title: name },
        this.candidate(message, index, name),
        el("span", { className: "bar", "aria-hidden": "true" }, fill),
        el("span", { className: "score" }, number(score)),
        el("span", { className: "tag" }, kept ? "chosen" : ""),
      );
    });
    return el(
      "ol",
      { className: "candidates", "aria-label": "Candidates with the verifier's scores" },
      ...items,
    );
  }

  spoken(message) {
    const matches = message.matches_ground_truth ?? null;
    const known = matches === null ? "" : matches ? ", right" : ", wrong";
    return `Step ${message.index + 1} of ${this.actions.length}, ${message.action}: candidate ${message.chosen + 1} of ${message.scores.length} chosen, score ${number(message.scores[message.chosen])}${known}.`;
  }
}
