"use strict";
// Searching, sorting, shortening and reading tokens one by one. Without it the page shows the same
// content.
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
    body.dispatchEvent(new Event("sorted"));
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

  // Of a long list the first entries, until more is asked for; a search looks through all.
  const MOST = 10;

  const searchField = (tools, label, onInput) => {
    const field = document.createElement("input");
    field.type = "search";
    field.addEventListener("input", () => onInput(field.value.trim().toLowerCase()));
    const wrapper = make("label", "", label);
    wrapper.append(field);
    const status = make("span", "soft", "");
    status.setAttribute("role", "status");
    tools.append(wrapper, status);
    return status;
  };

  const sortField = (tools, list, onSort) => {
    const field = document.createElement("select");
    for (const [text, key, direction] of [
      ["most confident first", "probability", -1],
      ["largest difference first", "difference", -1],
      ["by source", "source", 1],
      ["by id", "id", 1],
    ]) {
      const option = new Option(text, key);
      option.dataset.direction = direction;
      field.append(option);
    }
    field.addEventListener("change", () => {
      const direction = Number(field.selectedOptions[0].dataset.direction);
      const sorted = [...list.children].sort((a, b) =>
        order(a.dataset[field.value], b.dataset[field.value], direction));
      list.append(...sorted);
      onSort();
    });
    const wrapper = make("label", "", "Order ");
    wrapper.append(field);
    tools.append(wrapper);
  };

  // `list` holds the entries; `block`, where there is one, gets a search field.
  const shorten = (list, block) => {
    const total = list.children.length;
    if (total < 4) return;
    const words = new Map();
    const wordsOf = (item) => {
      if (!words.has(item)) words.set(item, item.textContent.toLowerCase());
      return words.get(item);
    };
    const button = make("button", "all", "");
    button.type = "button";
    let query = "";
    let all = total <= MOST + 3;
    let status;
    const show = () => {
      const items = [...list.children];
      const found = query ? items.filter((item) => wordsOf(item).includes(query)) : items;
      const shown = new Set(all || query ? found : found.slice(0, MOST));
      for (const item of items) item.hidden = !shown.has(item);
      button.hidden = all || query !== "";
      button.textContent = `Show all ${total}`;
      if (status) status.textContent = `${shown.size} of ${total} shown`;
    };
    button.addEventListener("click", () => {
      all = true;
      show();
      // The button is hidden: keyboard focus moves to the first row that it showed.
      const next = list.children[MOST];
      next.tabIndex = -1;
      next.focus({ preventScroll: true });
    });
    if (block) {
      const tools = make("div", "tools", "");
      status = searchField(tools, block.dataset.search, (asked) => { query = asked; show(); });
      if (list.classList.contains("mistakes")) sortField(tools, list, show);
      block.prepend(tools);
    }
    (list.closest(".scroll") ?? list).after(button);
    list.addEventListener("sorted", show);
    show();
  };

  for (const table of document.querySelectorAll(".scroll > table")) {
    const headings = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, column) => {
        if (cell.tagName === "TD" && cell.textContent.trim() && cell.colSpan === 1 && !cell.classList.contains("name")) {
          cell.dataset.label = headings[column];
        }
      });
    }
  }
  for (const table of document.querySelectorAll("table.data")) {
    shorten(table.tBodies[0], table.closest("[data-search]"));
  }
  for (const list of document.querySelectorAll(".mistakes")) {
    shorten(list, list.closest("[data-search]"));
  }

  // A table that is wider than its place is shown row by row. What is closed has no width yet.
  const tables = [...document.querySelectorAll(".scroll > table")];
  const fit = () => {
    for (const table of tables) table.classList.remove("blocks");
    const wide = tables.filter((table) => table.offsetWidth > table.parentNode.clientWidth);
    for (const table of wide) table.classList.add("blocks");
    // What still scrolls is reached by keyboard, so that arrow keys move it.
    for (const place of document.querySelectorAll(".scroll, .text")) {
      const scrolls = place.scrollWidth > place.clientWidth || place.scrollHeight > place.clientHeight;
      place.toggleAttribute("tabindex", scrolls);
      if (!scrolls) continue;
      place.tabIndex = 0;
      place.setAttribute("role", "group");
      place.setAttribute("aria-label", place.querySelector("caption")?.textContent.trim() || (place.matches(".text") ? "Text" : "Table"));
    }
  };
  addEventListener("resize", fit);
  document.addEventListener("toggle", fit, true);

  // Parts are collapsed at first. On a wide screen some are open, on paper all.
  const folds = [...document.querySelectorAll(".fold")];
  if (matchMedia("(min-width: 60rem)").matches) {
    for (const fold of folds) fold.open = "wide" in fold.dataset;
  }
  addEventListener("beforeprint", () => { for (const fold of folds) fold.open = true; });
  const reveal = () => {
    let part = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (; part; part = part.parentElement) if (part.matches(".fold")) part.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
  fit();

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
