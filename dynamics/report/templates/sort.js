// A click on a column's heading sorts its table, a second click the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}

function sort(table, head) {
  const [body] = table.tBodies;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const text = (row) => row.cells[head.cellIndex].textContent.trim();
  const order = (one, other) => {
    const [a, b] = [one, other].map((row) => Number.parseFloat(text(row).replaceAll(",", "")));
    if (Number.isNaN(a) || Number.isNaN(b)) return text(one).localeCompare(text(other));
    return a - b;
  };
  body.append(...[...body.rows].sort((one, other) => (down ? order(other, one) : order(one, other))));
}
