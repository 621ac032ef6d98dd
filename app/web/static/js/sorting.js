// Tables whose head sorts them: `data-kind="n"` by number, `data-value` of a cell wins over its text.

/** Turn the headings of a table into buttons. */
export function makeSortable(table) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sortBy(table, column, head));
  }
}

function sortBy(table, column, head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const isNumber = head.dataset.kind === "n";
  const sorted = [...table.tBodies[0].rows].sort((one, other) => compare(one, other, column, isNumber, down ? -1 : 1));
  table.tBodies[0].append(...sorted);
}

// What has no value comes last, whichever way.
function compare(one, other, column, isNumber, sign) {
  const [a, b] = [valueOf(one, column), valueOf(other, column)];
  if (a === "" || b === "") return (a === "") - (b === "");
  return sign * (isNumber ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
}

// A cell may span several columns: they share its value.
function valueOf(row, column) {
  let place = 0;
  for (const cell of row.cells) {
    place += cell.colSpan;
    if (column < place) return cell.dataset.value ?? cell.textContent.trim();
  }
  return "";
}
