// What a roll-out is asked for besides picture and actions: read from the form, kept in the address.

import { $ } from "./dom.js";

const NUMBERS = ["n", "beam", "temperature", "seed"];
/** Name of every verifier to its label and its description. */
let verifiers = {};

/** Fill the choices from ModelsReply. */
export function offer(models) {
  $("n").max = models.max_samples;
  $("beam").max = models.max_beam;
  $("n").defaultValue = $("n").value = models.num_samples;
  verifiers = Object.fromEntries(
    Object.entries(models.verifiers).map(([name, line]) => [name, line.split(": ", 2)]),
  );
  $("verifier").replaceChildren(
    ...Object.entries(verifiers).map(
      ([name, [label]]) =>
        new Option(
          `${label} (${name})`,
          name,
          name === models.verifier,
          name === models.verifier,
        ),
    ),
  );
  const rounds = [...models.rounds].sort((a, b) => b.round - a.round);
  const names = rounds.map((one) => [roundName(one), `${one.round}`]);
  $("round").replaceChildren(
    ...rounds.map((one, index) => new Option(...names[index], one.promoted, one.promoted)),
  );
  $("versus").replaceChildren(
    new Option("nothing", ""),
    ...names.map((name) => new Option(...name)),
  );
}

const roundName = (one) =>
  `${one.round}${one.promoted ? ", promoted" : ""}${one.round === 0 ? ", labelled set only" : ""}`;

/** The fields of a request, without picture and actions; the round is one of `rounds()`. */
export function sampling() {
  const numbers = NUMBERS.map((name) => [name, $(name).valueAsNumber]);
  return { ...Object.fromEntries(numbers), verifier: $("verifier").value, candidates: true };
}

/** One or two rounds, each once. */
export function rounds() {
  const chosen = [$("round").value, $("versus").value].filter((text) => text !== "");
  return [...new Set(chosen)].map(Number);
}

/** The first field that cannot be sent, in one line; empty when all can. */
export function problem() {
  const wrong = NUMBERS.map($).find((input) => !input.checkValidity());
  if (!wrong) return "";
  $("options").open = true;
  wrong.focus();
  const name = document.querySelector(`label[for=${wrong.id}]`).textContent;
  return `${name} must be a number from ${wrong.min} to ${wrong.max}${wrong.id === "temperature" ? "" : ", without a fraction"}.`;
}

/** Explain the verifier, and say in the closed options what stands in them. */
export function describe() {
  $("verifier-hint").textContent = verifiers[$("verifier").value]?.[1] ?? "";
  const parts = [`${$("n").value} candidates`, `seed ${$("seed").value}`];
  if ($("beam").value !== "1") parts.splice(1, 0, `beam ${$("beam").value}`);
  $("options-summary").textContent = parts.join(" · ");
}

/**
 * Settings as the part of an address behind `#`; only what is not the default, unless it is
 * `whole`: defaults change, with the promoted round for one.
 */
export function toHash(place, actions, whole) {
  const query = new URLSearchParams(place);
  for (const action of actions) query.append("action", action);
  for (const name of NUMBERS) {
    if (whole || $(name).value !== $(name).defaultValue) query.set(name, $(name).value);
  }
  for (const name of ["verifier", "round", "versus"]) {
    const usual = [...$(name).options].find((option) => option.defaultSelected)?.value ?? "";
    if (whole || $(name).value !== usual) query.set(name, $(name).value);
  }
  return query.toString();
}

/** Put an address's settings into the form; its scene, picture and actions come back. */
export function fromHash(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  for (const name of NUMBERS) {
    const input = $(name);
    input.value = query.get(name) ?? input.defaultValue;
    if (!input.checkValidity()) input.value = input.defaultValue;
  }
  for (const name of ["verifier", "round", "versus"]) {
    const options = [...$(name).options];
    const wanted = options.find((option) => option.value === query.get(name));
    (wanted ?? options.find((option) => option.defaultSelected) ?? options[0]).selected = true;
  }
  const [scene, picture] = ["scene", "picture"].map((name) => query.get(name));
  return { scene, picture, actions: query.getAll("action") };
}
