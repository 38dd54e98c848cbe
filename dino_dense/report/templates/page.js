"use strict";

// Tables sort by a click on a column's header, or Enter or Space on it. Cells without a number stay last.
function sortRows(table, column, ascending) {
  const body = table.tBodies[0];
  const cell = (row) => row.cells[column];
  const compareText = new Intl.Collator("en", { numeric: true }).compare;
  const numeric = table.tHead.rows[0].cells[column].classList.contains("num");
  const compare = (a, b) => {
    if (!numeric) return compareText(cell(a).textContent.trim(), cell(b).textContent.trim());
    return Number(cell(a).dataset.value) - Number(cell(b).dataset.value);
  };
  const hasValue = (row) => !numeric || cell(row).dataset.value !== undefined;
  const rows = Array.from(body.rows);
  const known = rows.filter(hasValue).sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
  body.append(...known, ...rows.filter((row) => !hasValue(row)));
}

function makeSortable(table) {
  const headers = Array.from(table.tHead.rows[0].cells);
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      const next = !before ? header.dataset.first : before === "ascending" ? "descending" : "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", next);
      sortRows(table, column, next === "ascending");
    });
  });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => (item.open = true)));
