// Tables that sort by their headings and are filtered by the form above them. A table tells its figures when it changes.

const cellValue = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;

function sortTable(table, column, descending) {
  const numeric = table.tHead.rows[0].cells[column].classList.contains("number");
  const rows = [...table.tBodies[0].rows];
  const missing = (text) => text === "";
  rows.sort((a, b) => {
    const first = cellValue(a, column), second = cellValue(b, column);
    if (missing(first) || missing(second)) return missing(first) - missing(second);
    const order = numeric ? Number(first) - Number(second) : first.localeCompare(second, "en");
    return descending ? -order : order;
  });
  table.tBodies[0].append(...rows);
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function filterTable(table, form) {
  const wanted = [...form.querySelectorAll("select")].filter((it) => it.value !== "");
  const text = form.querySelector("input[type=search]").value.toLowerCase();
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const fits = wanted.every((it) => cellValue(row, Number(it.dataset.column)) === it.value)
      && (text === "" || row.textContent.toLowerCase().includes(text));
    row.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  form.querySelector("output").textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
}

function prepareTable(table) {
  const changed = () => table.dispatchEvent(new CustomEvent("changed"));
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.querySelector("button")?.addEventListener("click", () => {
      sortTable(table, column, heading.getAttribute("aria-sort") === "ascending");
      changed();
    });
  });
  const form = document.querySelector(`form[data-table="${table.id}"]`);
  form?.addEventListener("input", () => { filterTable(table, form); changed(); });
  form?.addEventListener("submit", (event) => event.preventDefault());
  form?.addEventListener("reset", () => setTimeout(() => { filterTable(table, form); changed(); }));
}
