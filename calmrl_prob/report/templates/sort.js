"use strict";
// A click on a heading sorts by that column, the next one turns the order around. Cells without a number come last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  for (const [column, heading] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map((row) => {
        const text = row.cells[column].textContent.trim();
        return { row, text, number: parseFloat(text.replace("\u2212", "-")) };
      });
      const numeric = keyed.every((entry) => ["-", ""].includes(entry.text) || !Number.isNaN(entry.number));
      keyed.sort((a, b) => {
        const empty = numeric ? Number.isNaN(a.number) - Number.isNaN(b.number) : (a.text === "-") - (b.text === "-");
        if (empty) return empty;
        const order = numeric ? a.number - b.number || 0 : a.text.localeCompare(b.text, "en", { numeric: true });
        return down ? -order : order;
      });
      body.append(...keyed.map((entry) => entry.row));
    });
  }
}
// What an address points to is shown, folded or not.
const unfold = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", unfold);
unfold();
