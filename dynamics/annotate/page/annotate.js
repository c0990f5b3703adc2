// One pair after the other: the film, the sentence, the keys. Requests: dynamics/annotate/server.py.

import { $, el, say } from "./dom.js";

const POLL_MS = 400;
const LOOP_MS = 2400; // a film never takes longer
const LIST = 12;
const sentence = $("sentence");
let state = null;
let film = null; // {image, columns, width, height, times, ends, at, playing}
let chosen = -1; // in the list of words
let shownWords = [];
let busy = false;

async function send(path, body) {
  const options = body && {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The command does not answer. Is it still running? Nothing that was saved is lost.");
  }
  const reply = await response.json();
  if (!response.ok) throw new Error(reply.detail);
  return reply;
}

const picture = (pair, name) => `v1/pairs/${pair}/${name}`;

async function loaded(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  return image;
}

/** What a pair's film needs; asked for ahead, so that the next pair is there at once. */
const films = new Map();
function filmOf(pair) {
  if (!films.has(pair)) {
    const got = Promise.all([send(`v1/pairs/${pair}`), loaded(picture(pair, "film.jpg")),
      loaded(picture(pair, "source.png")), loaded(picture(pair, "target.png"))]);
    got.catch(() => films.delete(pair));
    films.set(pair, got);
  }
  return films.get(pair);
}

async function showPair() {
  const task = state.task;
  for (const known of films.keys()) {
    if (known !== task?.pair && !state.next.includes(known)) films.delete(known);
  }
  film = null;
  if (!task) return;
  const [about, image, source, target] = await filmOf(task.pair);
  if (state.task?.pair !== task.pair) return;
  $("source").src = source.src;
  $("target").src = target.src;
  await Promise.all([$("source").decode(), $("target").decode()]);
  const canvas = $("film");
  [canvas.width, canvas.height] = [about.width, about.height];
  document.documentElement.style.setProperty("--shape", `${about.width} / ${about.height}`);
  const times = about.times_s;
  const length = times.at(-1) - times[0] || 1;
  film = { image, ...about, times: times.map((t) => (t - times[0]) / length), at: 0, playing: true };
  film.ms = Math.min(LOOP_MS, Math.max(800, length * 1000));
  film.began = performance.now();
  $("clip").textContent = `${task.clip}, ${task.from_s.toFixed(1)} s to ${task.to_s.toFixed(1)} s`;
  const [from, to] = about.ends.map((at) => film.times[at] * 100);
  $("span").style.left = `${from}%`;
  $("span").style.width = `${to - from}%`;
  say($("play"), "Pause");
  state.next.forEach((pair) => filmOf(pair).catch(() => {}));
}

function draw(now) {
  if (film) {
    if (film.playing) {
      const share = ((now - film.began) / film.ms) % 1.15; // it rests on the last frame
      const later = film.times.findIndex((t) => t > share);
      film.at = later < 0 ? film.times.length - 1 : Math.max(0, later - 1);
    }
    const { columns, width, height, at, image } = film;
    const x = (at % columns) * width;
    const y = Math.floor(at / columns) * height;
    $("film").getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
    $("now").style.left = `calc(${film.times[at] * 100}% - 2px)`;
  }
  requestAnimationFrame(draw);
}

function step(by) {
  if (!film) return;
  film.playing = false;
  film.at = (film.at + by + film.times.length) % film.times.length;
  say($("play"), "Play");
}

function togglePlay() {
  if (!film) return;
  film.playing = !film.playing;
  film.began = performance.now() - film.times[film.at] * film.ms;
  say($("play"), film.playing ? "Pause" : "Play");
}

/** The sentences in which every written word begins a word, those that begin so first. */
function matching(written) {
  const parts = written.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (text) => {
    const words = text.toLowerCase().split(/\s+/);
    return parts.every((part) => words.some((word) => word.startsWith(part)));
  };
  const begins = (text) => text.toLowerCase().startsWith(written.toLowerCase());
  const found = state.words.filter(([text]) => fits(text));
  return [...found.filter(([text]) => begins(text)), ...found.filter(([text]) => !begins(text))];
}

/** The rest of the word that is being written, or the next one, as used before after its neighbour. */
function nextWord() {
  const written = sentence.value.toLowerCase().split(/\s+/);
  const part = written.pop();
  const before = written.at(-1) ?? "";
  if (!part && !before) return "";
  const tally = new Map();
  for (const [text, count] of state.words) {
    const words = text.split(" ");
    words.forEach((word, at) => {
      if (word.length <= part.length || !word.toLowerCase().startsWith(part)) return;
      const follows = (words[at - 1] ?? "").toLowerCase() === before;
      if (follows || part) tally.set(word, (tally.get(word) ?? 0) + count * (follows ? 1000 : 1));
    });
  }
  const [best] = [...tally].sort((one, other) => other[1] - one[1]);
  return best ? best[0].slice(part.length) : "";
}

function showWords() {
  $("ghost").replaceChildren(el("b", {}, sentence.value), state ? nextWord() : "");
  shownWords = state ? matching(sentence.value.trim()).slice(0, LIST) : [];
  chosen = Math.min(chosen, shownWords.length - 1);
  $("words").replaceChildren(...shownWords.map(([text, count], at) => {
    const hint = !sentence.value && at < 9 ? el("kbd", {}, String(at + 1)) : el("span");
    const item = el("li", { role: "option", id: `word-${at}` }, hint, el("span", {}, text), el("small", {}, String(count)));
    item.setAttribute("aria-selected", String(at === chosen));
    item.addEventListener("click", () => answer("action", text));
    return item;
  }));
  sentence.setAttribute("aria-activedescendant", chosen >= 0 ? `word-${chosen}` : "");
}

function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function showState() {
  const { counts, agreement: said, task, offer = task?.offer } = state;
  const parts = [`${counts.named} named`, count(state.words.length, "sentence", "sentences")];
  if (counts.no_change) parts.push(`${counts.no_change} no change`);
  if (counts.unsure) parts.push(`${counts.unsure} unsure`);
  if (counts.skip) parts.push(`${counts.skip} skipped`);
  if (said.own[1]) parts.push(`same again ${said.own[0]} of ${said.own[1]}`);
  if (said.others[1]) parts.push(`as others ${said.others[0]} of ${said.others[1]}`);
  say($("progress"), parts.join(" · "));
  const read = state.complete ? "" : `, ${state.read.toLocaleString("en")} read so far`;
  const bad = state.bad ? `, ${state.bad.toLocaleString("en")} without a pair` : "";
  $("about").textContent = `${state.who} · ${count(state.clips, "clip", "clips")}${read}${bad}`;
  const offered = offer?.action;
  $("offer").hidden = !offered;
  if (offered) {
    $("offer").replaceChildren("The model says: ", el("b", {}, offered),
      el("span", { className: "faint" }, ` ${Math.round(100 * offer.confidence)} % a word. `),
      el("kbd", {}, "Enter"), " accepts, ", el("kbd", {}, "Tab"), " to mend");
  }
  if (state.failed) say($("error"), `No further clips are read: ${state.failed}`);
  if (!task && state.complete) $("clip").textContent = "Every pair is answered. Ctrl-C ends the command.";
  document.body.classList.toggle("busy", !task);
  $("undo").disabled = !state.turn;
  showWords();
}

async function show(next) {
  const other = next.task?.pair !== state?.task?.pair || next.turn !== state?.turn;
  state = next;
  showState();
  if (!other) return;
  sentence.value = "";
  chosen = -1;
  showWords();
  sentence.focus({ preventScroll: true });
  try {
    await showPair();
    if (film) document.body.dataset.turn = state.turn; // the pair is on the screen
  } catch (error) {
    say($("error"), `${error.message || "The pair cannot be shown."} Skip it, or reload the page.`);
  }
}

async function change(path, body) {
  if (busy || !state) return;
  busy = true;
  say($("error"), "");
  try {
    await show(await send(path, { turn: state.turn, ...body }));
  } catch (error) {
    say($("error"), error.message);
    state = await send("v1/state").catch(() => state);
  } finally {
    busy = false;
  }
}

function answer(kind, action = "") {
  if (state?.task) change("v1/answers", { pair: state.task.pair, kind, action });
}

const offered = () => state?.task?.offer?.action ?? "";

function save() {
  const text = chosen >= 0 ? shownWords[chosen][0] : sentence.value.trim() || offered();
  if (text) answer("action", text);
}

function write(text) {
  sentence.value = text;
  chosen = -1;
  showWords();
}

const WHEN_EMPTY = {
  "0": () => answer("no_change"),
  "?": () => answer("unsure"),
  " ": togglePlay,
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
};

function key(event) {
  const empty = !sentence.value;
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  let act = null;
  if (event.key === "Enter") act = save;
  else if (event.key === "Escape") act = empty ? () => answer("skip") : () => write("");
  else if (event.key === "ArrowDown") act = () => (chosen = Math.min(chosen + 1, shownWords.length - 1), showWords());
  else if (event.key === "ArrowUp") act = () => (chosen = Math.max(chosen - 1, -1), showWords());
  else if (event.key === "Tab" && !event.shiftKey && plain) {
    const word = nextWord();
    const text = chosen >= 0 ? shownWords[chosen][0] : offered() || shownWords[0]?.[0];
    if (chosen < 0 && word) act = () => write(`${sentence.value}${word} `);
    else if ((chosen >= 0 || empty) && text) act = () => write(text);
  } else if (empty && event.key === "z" && (event.ctrlKey || event.metaKey)) act = () => change("v1/undo", {});
  else if (empty && plain && WHEN_EMPTY[event.key]) act = WHEN_EMPTY[event.key];
  else if (empty && plain && /^[1-9]$/.test(event.key) && shownWords[event.key - 1]) {
    const [text] = shownWords[event.key - 1];
    act = () => answer("action", text);
  }
  if (!act || event.isComposing) return;
  event.preventDefault();
  act();
}

async function poll() {
  if (!busy && !(state?.task && state.next.length) && !(state?.complete && !state.waiting)) {
    try {
      await show(await send("v1/state"));
      if (!state.failed) say($("error"), "");
    } catch (error) {
      say($("error"), error.message);
    }
  }
  setTimeout(poll, POLL_MS);
}

sentence.addEventListener("keydown", key);
sentence.addEventListener("input", () => {
  chosen = -1;
  showWords();
});
document.addEventListener("keydown", (event) => {
  // Wherever the focus is, letters go into the sentence.
  if (event.target === document.body) sentence.focus({ preventScroll: true });
});
$("save").addEventListener("click", save);
$("undo").addEventListener("click", () => change("v1/undo", {}));
$("play").addEventListener("click", togglePlay);
document.querySelectorAll("[data-kind]").forEach((button) => {
  button.addEventListener("click", () => answer(button.dataset.kind));
});
requestAnimationFrame(draw);
poll();
