"use strict";
// Sorts tables by a click on a head, finds rows by a word, opens everything for paper.
(() => {
  const LONG = 12;

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : null;
  };

  // Rows without a number stay last whichever way the numbers go; equal rows keep their order.
  const compare = (column, isNumber, sign) => (one, other) => {
    if (!isNumber) {
      const texts = [one, other].map((row) => row.cells[column].textContent);
      return sign * texts[0].localeCompare(texts[1], "en", { numeric: true });
    }
    const [a, b] = [keyOf(one, column), keyOf(other, column)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a - b);
  };

  const sort = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const rises = heads[column].getAttribute("aria-sort") === "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", rises ? "descending" : "ascending");
    const isNumber = heads[column].classList.contains("number");
    const rows = [...table.tBodies[0].rows];
    rows.sort(compare(column, isNumber, rises ? -1 : 1));
    table.tBodies[0].append(...rows);
  };

  const addFinder = (table) => {
    const rows = [...table.tBodies[0].rows];
    const find = document.createElement("input");
    find.type = "search";
    find.className = "find";
    find.placeholder = `find in ${rows.length} rows`;
    find.setAttribute("aria-label", find.placeholder);
    find.addEventListener("input", () => {
      const word = find.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(word);
    });
    table.parentElement.before(find);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) =>
      head.querySelector("button").addEventListener("click", () => sort(table, column)));
    if (table.tBodies[0].rows.length > LONG) addFinder(table);
  }

  for (const image of document.querySelectorAll("figure img"))
    image.addEventListener("click", () => image.closest("figure").classList.toggle("whole"));

  const shut = [];
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open])")) {
      one.open = true;
      shut.push(one);
    }
  });
  addEventListener("afterprint", () => {
    while (shut.length) shut.pop().open = false;
  });
})();
