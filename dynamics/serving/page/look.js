// A person's own picture beside what the model sees of it, and whether it is like its training.

import { $, number, say } from "./dom.js";
import { address } from "./pictures.js";

export class Look {
  /** `ask` takes a picture in base64 and gives a LookReply. */
  constructor(ask) {
    this.ask = ask;
    this.image = null;
  }

  /** Show a picture, or hide with null; gives its square, or null where there is none to show. */
  async show(image) {
    this.image = image;
    $("look").hidden = true;
    say($("unlike"), "");
    if (!image) return null;
    try {
      const reply = await this.ask(image);
      if (this.image !== image) return null;
      this.tell(reply);
      return reply.source;
    } catch (error) {
      if (this.image === image) say($("unlike"), error.message);
      return null;
    }
  }

  tell({ source, seen, error, limit }) {
    $("look-source").src = address(source);
    $("look-seen").src = address(seen);
    const usual = limit === null ? "" : `; held-out frames of this run lose at most ${number(limit)}`;
    $("look-text").textContent = `A pixel loses ${number(error)} of 255 on average${usual}.`;
    $("look").hidden = false;
    if (limit === null || error <= limit) return;
    const what = "This picture is unlike what the model was trained on";
    say($("unlike"), `${what}: what it draws of it means little.`);
  }
}
