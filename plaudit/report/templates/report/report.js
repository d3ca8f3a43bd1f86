"use strict";
// Searching, sorting and reading tokens one by one. Without it the page shows the same facts.
(() => {
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    return element;
  };

  // Missing values last, numbers by size, words by the reader's alphabet.
  const order = (left, right, direction) => {
    if (left === "" || right === "") return (left === "") - (right === "");
    const [a, b] = [Number(left), Number(right)];
    const numbers = !Number.isNaN(a) && !Number.isNaN(b);
    return direction * (numbers ? a - b : left.localeCompare(right));
  };

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v ?? cell.textContent.trim();
  };

  const sortBy = (table, heading, column) => {
    const before = heading.getAttribute("aria-sort");
    const descending = before === "none" ? "first" in heading.dataset : before === "ascending";
    for (const other of heading.parentNode.cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => order(a, b, descending ? -1 : 1));
    body.append(...rows.map(([, row]) => row));
  };

  for (const table of document.querySelectorAll("table.data")) {
    if (table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      if (heading.classList.contains("fixed")) return;
      const button = make("button", "sort", heading.textContent);
      button.type = "button";
      heading.replaceChildren(button);
      heading.setAttribute("aria-sort", "none");
      if (heading.classList.contains("n")) heading.dataset.first = "largest";
      button.addEventListener("click", () => sortBy(table, heading, column));
    });
  }

  const searchField = (tools, label, items) => {
    const field = document.createElement("input");
    field.type = "search";
    const status = make("span", "soft", `${items.length} shown`);
    status.setAttribute("role", "status");
    const words = items.map(() => null);
    field.addEventListener("input", () => {
      const asked = field.value.trim().toLowerCase();
      let shown = 0;
      items.forEach((item, place) => {
        words[place] ??= item.textContent.toLowerCase();
        item.hidden = !words[place].includes(asked);
        shown += !item.hidden;
      });
      status.textContent = `${shown} of ${items.length} shown`;
    });
    const wrapper = make("label", "", label);
    wrapper.append(field);
    tools.append(wrapper, status);
  };

  const sortField = (tools, list, items) => {
    const field = document.createElement("select");
    for (const [text, key, direction] of [
      ["the surest first", "probability", -1],
      ["the largest difference first", "difference", -1],
      ["by source", "source", 1],
      ["by id", "id", 1],
    ]) {
      const option = new Option(text, key);
      option.dataset.direction = direction;
      field.append(option);
    }
    field.addEventListener("change", () => {
      const direction = Number(field.selectedOptions[0].dataset.direction);
      const sorted = [...items].sort((a, b) =>
        order(a.dataset[field.value], b.dataset[field.value], direction));
      list.append(...sorted);
    });
    const wrapper = make("label", "", "Order ");
    wrapper.append(field);
    tools.append(wrapper);
  };

  for (const block of document.querySelectorAll("[data-search]")) {
    const list = block.querySelector(".mistakes");
    const items = [...block.querySelectorAll(list ? ".mistakes > details" : "tbody > tr")];
    if (items.length < 4) continue;
    const tools = make("div", "tools", "");
    searchField(tools, block.dataset.search, items);
    if (list) sortField(tools, list, items);
    block.prepend(tools);
  }

  // A token's number without a pointer: arrow keys, or a touch.
  for (const box of document.querySelectorAll(".tokens")) {
    const tokens = [...box.querySelectorAll("span[title]")];
    const said = make("p", "soft said", "");
    said.setAttribute("role", "status");
    box.after(said);
    box.tabIndex = 0;
    let place = -1;
    const go = (to) => {
      if (!tokens.length) return;
      tokens[place]?.classList.remove("at");
      place = Math.min(Math.max(to, 0), tokens.length - 1);
      tokens[place].classList.add("at");
      said.textContent = `“${tokens[place].textContent}”: ${tokens[place].title}`;
    };
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      go(place + step);
    });
    box.addEventListener("click", (event) => {
      const found = tokens.indexOf(event.target);
      if (found >= 0) go(found);
    });
  }
})();
