// "What happened between two pictures?": two slots and the action that the IDM names.

import { $, number, say } from "./dom.js";
import { address, pictureIn, toBase64 } from "./pictures.js";

export class Between {
  /** `ask` takes `{before, after}` and gives a LabelReply. */
  constructor(ask) {
    this.ask = ask;
    this.pictures = { before: null, after: null };
    for (const side of ["before", "after"]) this.wire(side);
    $("ask").addEventListener("click", () => this.answer());
    $("take").addEventListener("click", () => this.take());
  }

  /** The pair that "Take the last step" takes. */
  offer(before, after) {
    this.pair = { before, after };
    $("take").disabled = false;
  }

  wire(side) {
    const slot = $(side);
    slot
      .querySelector("input")
      .addEventListener("change", (event) => this.file(side, event.target.files[0]));
    slot.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      slot.classList.remove("over");
      this.file(side, pictureIn(event.dataTransfer));
    });
  }

  async file(side, file) {
    if (!file) return;
    try {
      this.put(side, await toBase64(file));
    } catch (error) {
      this.say(error.message, true);
    }
  }

  take() {
    this.put("before", this.pair.before);
    this.put("after", this.pair.after);
    this.answer();
  }

  put(side, base64) {
    this.pictures[side] = base64;
    const image = $(side).querySelector("img");
    image.src = address(base64);
    image.alt = side;
    image.hidden = false;
    $("ask").disabled = !(this.pictures.before && this.pictures.after);
    this.say("");
  }

  async answer() {
    this.say("looking …");
    try {
      const { action, logprob, round } = await this.ask(this.pictures);
      if (!action) this.say("The model found no end to its sentence.");
      else
        this.say(
          `“${action}”: round ${round} gives this sentence a probability of ${percent(logprob)} (log-probability ${number(logprob, 2)}).`,
        );
    } catch (error) {
      this.say(error.message, true);
    }
  }

  say(text, wrong = false) {
    say($("answer"), text);
    $("answer").classList.toggle("notice", wrong);
  }
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "less than 0.1 %" : `${share.toFixed(share < 10 ? 1 : 0)} %`;
}
