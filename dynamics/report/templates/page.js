// Headings sort their table, the other way round at a second click; Escape closes enlarged pictures.
for (const table of document.querySelectorAll("table:not(.frames)")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const box of document.querySelectorAll(".zoom :checked")) box.checked = false;
});

function sort(table, head) {
  const [body] = table.tBodies;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const cell = (row) => row.cells[head.cellIndex];
  const text = (row) => cell(row).textContent.trim().replace(/^[✓✗] /, "");
  const order = (one, other) => {
    // Rows without a value come last both ways.
    const [none, last] = [one, other].map((row) => cell(row).querySelector(".none") !== null);
    if (none || last) return none - last;
    const [a, b] = [one, other].map((row) => Number.parseFloat(text(row).replaceAll(",", "")));
    const found = Number.isNaN(a - b) ? text(one).localeCompare(text(other)) : a - b;
    return down ? -found : found;
  };
  body.append(...[...body.rows].sort(order));
}
