// The page: puts the parts together, runs roll-outs, keeps the address up to date.

import { ActionList } from "./actions.js";
import { Between } from "./between.js";
import { showContrast } from "./contrast.js";
import { $, el, say } from "./dom.js";
import { Gallery, OWN } from "./gallery.js";
import { Look } from "./look.js";
import { forLink, fromLink, pictureIn, toBase64 } from "./pictures.js";
import { RunView } from "./runview.js";
import * as service from "./service.js";
import * as settings from "./settings.js";

const PREFILLED = 3;
const CONTRAST = "held out";
const ADDRESS_PAUSE_MS = 400; // browsers refuse an address that changes with every key
const LARGEST_PIXELATED_PX = 128;

let addressLater = 0; // the timer of the next change of the address
let running = null; // the AbortController of the run in progress
let asking = null; // the promise of a key that is being asked for
let ownLink = ""; // the person's own picture, as the model gets it, for the address

const gallery = new Gallery($("scenes"), chosePicture);
const actions = new ActionList($("actions"), changed, (action) =>
  service.unknownWords({ action, round: settings.rounds()[0] }).catch(() => ({})),
);
const between = new Between((pictures) =>
  withKey(() => service.label({ ...pictures, round: settings.rounds()[0] })),
);

const look = new Look((image) =>
  withKey(() => service.look({ image, round: settings.rounds()[0] })),
);

/** Ask; where the service wants a key, ask the person for it and then the service again. */
async function withKey(ask) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 401) throw error;
      asking ??= askForKey(error.message).finally(() => (asking = null));
      await asking;
    }
  }
}

function askForKey(why) {
  const dialog = $("key-dialog");
  $("key-hint").textContent = service.key.get() ? `The key was not taken: ${why}` : why;
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue !== "use")
          reject(new service.Failure("Without its API key the service does not answer."));
        else resolve(service.key.set($("key").value));
      },
      { once: true },
    );
  });
}

async function boot() {
  try {
    const models = await withKey(service.models);
    settings.offer(models);
    actions.maxRows = models.max_steps;
    actions.maxChars = models.max_action_chars;
    $("about").textContent = about(models);
    document.title = `${models.name}: what does an action do to a picture?`;
    const { scenes, contrast } = await withKey(service.scenes);
    gallery.show(scenes);
    if (contrast) offerContrast(contrast);
  } catch (error) {
    $("about").textContent = "Not connected.";
    say($("error"), `${error.message} Reload the page to try again.`);
    return;
  }
  applyHash();
  $("run").disabled = false;
  $("copy-curl").disabled = false;
}

function about({ name, family, frame_px: side, rounds }) {
  const promoted = rounds.find((one) => one.promoted);
  const round = promoted ? `round ${promoted.round} is promoted` : "no round is promoted";
  return `Run ${name} · ${family} · sees ${side} × ${side} pixels · ${round}`;
}

/** Show what the rounds changed; its scene is the last one of the gallery. */
function offerContrast(contrast) {
  const { source: image, action } = contrast;
  gallery.put({ name: CONTRAST, image, actions: [action] });
  showContrast(contrast, ([first, last]) => {
    actions.edited = false;
    gallery.choose(CONTRAST);
    [$("round").value, $("versus").value] = [last, first];
    changed();
    run();
  });
}

function applyHash() {
  const wanted = settings.fromHash(location.hash);
  actions.edited = wanted.actions.length > 0;
  actions.value = wanted.actions.length ? wanted.actions.slice(0, actions.maxRows) : [""];
  const first = gallery.pictures.keys().next().value;
  if (wanted.picture) gallery.own(fromLink(wanted.picture));
  else if (!(wanted.scene && gallery.choose(wanted.scene)) && first) gallery.choose(first);
  changed();
}

function chosePicture(picture) {
  if (!actions.edited && picture.actions.length)
    actions.value = picture.actions.slice(0, PREFILLED);
  $("examples").hidden = !picture.actions.length;
  $("chips").replaceChildren(
    ...picture.actions.map((text) =>
      el("button", { type: "button", className: "chip", onclick: () => addAction(text) }, text),
    ),
  );
  showLook(picture.name === OWN ? picture.image : null);
  changed();
}

async function showLook(image) {
  ownLink = "";
  const square = await look.show(image);
  if (!square) return;
  ownLink = forLink(square);
  changed();
}

function addAction(text) {
  say($("note"), actions.add(text) ? "" : `A roll-out has at most ${actions.maxRows} actions.`);
}

function changed() {
  settings.describe();
  clearTimeout(addressLater);
  addressLater = setTimeout(updateAddress, ADDRESS_PAUSE_MS);
}

/** Write the address; a `whole` one draws the same also when the service's defaults differ. */
function updateAddress(whole = false) {
  clearTimeout(addressLater);
  const { name, image } = gallery.chosen ?? {};
  const picture = whole && name === CONTRAST ? forLink(image) : ownLink;
  const scene = name && !isOwn() ? { scene: name } : {};
  const told = actions.edited || whole ? actions.value : [];
  const hash = settings.toHash(picture ? { picture } : scene, told, whole);
  history.replaceState(null, "", `#${hash}`);
}

const isOwn = () => gallery.chosen?.name === OWN;

/** What stands in the way of a run, in one line; empty when nothing does. */
function problem() {
  if (!gallery.chosen) return "Choose a picture first.";
  if (!actions.value.length) {
    actions.inputs[0]?.focus();
    return "Write at least one action first.";
  }
  return settings.problem();
}

const request = (round) => ({
  image: gallery.chosen.image,
  actions: actions.value,
  ...settings.sampling(),
  round,
});

async function run() {
  const wrong = problem();
  say($("error"), wrong);
  if (wrong || running) return;
  running = new AbortController();
  const runs = settings.rounds().map(request);
  const views = runs.map(
    (body) => new RunView(`Round ${body.round}`, roundNote(body.round), body, branch),
  );
  $("intro").hidden = $("contrast").hidden = true;
  say($("difference"), "");
  $("columns").className = runs.length > 1 ? "two" : "one";
  $("columns").replaceChildren(...views.map((view) => view.element));
  showRunning(true);
  const ended = await Promise.all(runs.map((body, index) => play(body, views[index])));
  showRunning(false);
  running = null;
  if (ended.every(Boolean) && views.length > 1) say($("difference"), difference(...views));
}

/** Begin again from a frame that was drawn and not chosen, with the actions that were left. */
function branch(image, left) {
  if (running) return;
  gallery.own(image);
  actions.edited = true;
  actions.value = left.length ? left : [""];
  if (left.length) run();
  else say($("note"), "The frame is your picture now: write what to do with it.");
  changed();
}

const roundNote = (round) =>
  [...$("round").options]
    .find((option) => option.value === `${round}`)
    .text.split(", ")
    .slice(1)
    .join(", ");

/** Follow one roll-out to its end; false when it did not get there. */
async function play(body, view) {
  const { signal } = running;
  try {
    await withKey(async () => {
      for await (const { name, message } of service.rollout(body, signal)) {
        if (name === "start") view.start(message);
        if (name === "step") tell(view, message);
        if (name === "end") view.end(message);
      }
    });
    return true;
  } catch (error) {
    if (error.name === "AbortError") view.stop("stopped");
    else view.fail(error.message);
    if (!["AbortError", "Failure"].includes(error.name)) console.error(error); // a fault of ours
    return false;
  }
}

function tell(view, message) {
  $("status").textContent = `${view.title}. ${view.step(message)}`;
  between.offer(...view.frames.slice(-2));
}

/** What a comparison comes to: right steps where they are known, else where the frames part. */
function difference(...views) {
  if (views.every(({ verdicts }) => !verdicts.includes(null))) {
    const counts = views.map(({ title, verdicts }) => {
      return `${verdicts.filter(Boolean).length} of ${verdicts.length} by ${title.toLowerCase()}`;
    });
    return `Right steps: ${counts.join(", ")}.`;
  }
  const [one, other] = views;
  const at = one.frames.findIndex((image, index) => image !== other.frames[index]);
  return at < 0 ? "Both draw the same frames." : `Their frames differ from step ${at} on.`;
}

function showRunning(now) {
  const hadFocus = [$("run"), $("stop")].includes(document.activeElement);
  $("run").hidden = now;
  $("stop").hidden = !now;
  $("result").setAttribute("aria-busy", `${now}`);
  if (hadFocus) $(now ? "stop" : "run").focus();
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const { top } = $("result").getBoundingClientRect();
  if (now && (top < 0 || top > innerHeight - 120)) {
    $("result").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  }
  if (!now) $("status").textContent += " Finished.";
}

function curl() {
  const lines = JSON.stringify(request(settings.rounds()[0])).replaceAll("'", "\\u0027");
  const key = service.key.get() ? ' -H "authorization: Bearer $API_KEY"' : "";
  const url = new URL("v1/rollouts", document.baseURI);
  return `curl -N ${url} -H 'content-type: application/json'${key} -d @- <<'JSON'\n${lines}\nJSON\n`;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say($("note"), `${what} is in the clipboard.`);
  } catch {
    say($("note"), "This browser does not let the page use the clipboard.");
  }
}

async function bring(file) {
  if (!file) return;
  try {
    gallery.own(await toBase64(file));
    say($("error"), "");
  } catch (error) {
    say($("error"), error.message);
  }
}

function nextTheme() {
  const order = ["system", "light", "dark"];
  const now = document.documentElement.dataset.theme ?? "system";
  showTheme(order[(order.indexOf(now) + 1) % order.length]);
}

function showTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = `Theme: ${theme}`;
  localStorage.setItem("dynamics-theme", theme);
}

function wireForm() {
  $("setup").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("setup").addEventListener("input", changed);
  $("add").addEventListener("click", () => {
    const input = actions.add();
    if (input) input.focus();
    else addAction("");
  });
  $("new-seed").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 1e6);
    changed();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("copy-curl").addEventListener("click", () => {
    const wrong = problem();
    say($("error"), wrong);
    if (!wrong) copy(curl(), "The request, as a curl command,");
  });
  $("copy-link").addEventListener("click", () => {
    updateAddress(true);
    const lacks = "without your picture, which is too large for a link: take the JSON of a run,";
    const what = "The link to these settings";
    copy(location.href, isOwn() && !ownLink ? `${what}, ${lacks}` : what);
  });
  $("theme").addEventListener("click", nextTheme);
  $("file").addEventListener("change", (event) => bring(event.target.files[0]));
}

/** Small frames are shown pixel by pixel; photographs would look torn that way. */
function smoothPhotos({ target }) {
  if (target instanceof HTMLImageElement) {
    target.classList.toggle("smooth", target.naturalWidth > LARGEST_PIXELATED_PX);
  }
}

function wireDocument() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("key-dialog").open) running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("run").disabled) run();
  });
  document.addEventListener("paste", (event) => {
    const isText = event.target.matches?.("input, textarea") && event.clipboardData.getData("text");
    if (!isText) bring(pictureIn(event.clipboardData));
  });
  document.addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    bring(pictureIn(event.dataTransfer));
  });
  for (const zone of [$("drop"), $("before"), $("after")]) {
    zone.addEventListener("dragenter", () => zone.classList.add("over"));
    for (const end of ["dragleave", "drop"])
      zone.addEventListener(end, () => zone.classList.remove("over"));
  }
  addEventListener("hashchange", applyHash);
  document.addEventListener("load", smoothPhotos, true);
}

showTheme(document.documentElement.dataset.theme ?? "system");
wireForm();
wireDocument();
boot();
