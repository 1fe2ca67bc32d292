// Sorts a table by a column when its head is pressed; rows without a value stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const number = (text) => parseFloat(text.replace("\u2212", "-").replace(/[,\s]/g, ""));
  const value = (row, index) => row.cells[index].textContent.trim();
  const compare = (index) => (a, b) => {
    const texts = [value(a, index), value(b, index)];
    if (texts[0] === "" || texts[1] === "") return (texts[0] === "") - (texts[1] === "");
    const [x, y] = texts.map(number);
    const order = isNaN(x) || isNaN(y) ? texts[0].localeCompare(texts[1]) : x - y;
    const down = table.dataset.order === "descending";
    return down ? -order : order;
  };
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      table.dataset.order = order;
      body.append(...[...body.rows].sort(compare(index)));
    });
  });
}
