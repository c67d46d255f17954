// Sorting by a column and filtering of long tables; without a script the page lacks these two and nothing else.
const order = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.order === undefined ? cell.textContent : Number(cell.dataset.order.replace("inf", "Infinity"));
};
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
const sort = (head, body) => {
  const falling = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = [...body.rows].sort((a, b) => compare(order(a, head.cellIndex), order(b, head.cellIndex)));
  body.append(...(falling ? rows.reverse() : rows));
};
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0];
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head, body));
    head.append(button);
  }
  if (body.rows.length <= 16) continue;
  const filter = document.createElement("input");
  const frame = table.parentNode;
  filter.type = "search";
  filter.className = "filter";
  filter.placeholder = "Filter rows";
  filter.setAttribute("aria-label", `Filter rows of ${frame.getAttribute("aria-label")}`);
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  frame.before(filter);
}
document.documentElement.dataset.ready = "";
