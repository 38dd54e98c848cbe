"use strict";

const byId = (id) => document.getElementById(id);
const choices = ["measure", "first", "second", "order"];

// The view lives in the address's fragment: #ANCHOR&q=SEARCH&sort.TABLE=COLUMN&measure=...&first=...&second=...
// A plain #ANCHOR, as a link of this page gives, moves there and keeps the rest of the view.
function readFragment() {
  const parts = location.hash.slice(1).split("&");
  let anchor = "";
  if (!parts[0].includes("=")) {
    try {
      anchor = decodeURIComponent(parts.shift());
    } catch {
      anchor = ""; // not the encoding of any text
    }
  }
  return { anchor, values: new URLSearchParams(parts.join("&")) };
}

const view = readFragment();

function writeFragment() {
  const values = Array.from(view.values).filter(([, value]) => value);
  const text = [encodeURIComponent(view.anchor), new URLSearchParams(values).toString()].filter(Boolean).join("&");
  history.replaceState(null, "", text ? `#${text}` : "#");
}

function keep(name, value) {
  view.values.set(name, value);
  writeFragment();
}

function goToAnchor() {
  document.querySelectorAll(".here").forEach((item) => item.classList.remove("here"));
  const target = view.anchor && byId(view.anchor);
  if (!target) return;
  if (target.tagName === "TR") target.classList.add("here");
  target.scrollIntoView();
}

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

function sortBy(table, column, direction) {
  const headers = Array.from(table.tHead.rows[0].cells);
  headers.forEach((other) => other.removeAttribute("aria-sort"));
  headers[column].setAttribute("aria-sort", direction);
  sortRows(table, column, direction === "ascending");
}

const sortKey = (table) => `sort.${table.caption.id}`;

function makeSortable(table) {
  const body = table.tBodies[0];
  const original = Array.from(body.rows);
  const headers = Array.from(table.tHead.rows[0].cells);
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      const next = !before ? header.dataset.first : before === "ascending" ? "descending" : "ascending";
      sortBy(table, column, next);
      keep(sortKey(table), `${column}${next[0]}`);
    });
  });
  return () => {
    const [, column, direction] = /^(\d{1,3})([ad])$/.exec(view.values.get(sortKey(table)) || "") || [];
    if (column !== undefined && Number(column) < headers.length) {
      sortBy(table, Number(column), direction === "a" ? "ascending" : "descending");
    } else {
      headers.forEach((header) => header.removeAttribute("aria-sort"));
      body.append(...original);
    }
  };
}

const sorters = Array.from(document.querySelectorAll("table.sortable"), makeSortable);

// The search: every word must be in the section's title, in a row's texts, or in a column's header. Words that only
// headers have choose columns.
const textOf = (item) => item.textContent.toLowerCase();

function headOf(header) {
  const copy = header.cloneNode(true);
  copy.querySelectorAll(".unseen").forEach((part) => part.remove());
  return textOf(copy);
}

function filterTable(table, words) {
  const headers = Array.from(table.tHead.rows[0].cells);
  const heads = headers.map(headOf);
  const rows = Array.from(table.tBodies[0].rows);
  const names = rows.map((row) => Array.from(row.querySelectorAll("th, td:not(.num)"), textOf).join(" "));
  const inHeaders = (word) => heads.slice(1).some((head) => head.includes(word));
  const ofColumns = words.filter((word) => inHeaders(word) && !names.some((name) => name.includes(word)));
  const whole = table.classList.contains("whole-columns");
  const columns = heads.map((head, place) => !place || whole || ofColumns.every((word) => head.includes(word)));
  const some = columns.some((shown, place) => place && shown);
  headers.forEach((header, place) => (header.hidden = !columns[place]));
  rows.forEach((row, place) => {
    row.hidden = !some || !words.every((word) => ofColumns.includes(word) || names[place].includes(word));
    Array.from(row.cells).forEach((cell, column) => (cell.hidden = !columns[column]));
  });
  const shown = rows.filter((row) => !row.hidden).length;
  table.parentElement.hidden = words.length > 0 && !shown;
  return shown;
}

function search() {
  const query = view.values.get("q") || "";
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  let total = 0;
  for (const section of document.querySelectorAll("main > section")) {
    if (section.dataset.off) continue;
    const title = textOf(section.querySelector("h2")) + (section.dataset.title || "");
    const left = words.filter((word) => !title.includes(word));
    let shown = 0;
    for (const table of section.querySelectorAll("table")) shown += filterTable(table, left);
    total += shown;
    for (const item of section.querySelectorAll(".item")) {
      item.hidden = !left.every((word) => textOf(item).includes(word));
      shown += !item.hidden;
    }
    section.hidden = words.length > 0 && !shown;
  }
  byId("search-count").textContent = words.length ? `${total} row${total === 1 ? "" : "s"}` : "";
}

// The samples of two checkpoints, side by side.
const minus = (text) => text.replace("-", "\u2212");

function element(name, text, ...classes) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.classList.add(...classes);
  return made;
}

// A long name with allowed line breaks after its separators.
function breakable(name) {
  return name.split(/(?<=[_:/.,-])/).flatMap((part) => [part, document.createElement("wbr")]);
}

function path(d, name) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "path");
  made.setAttribute("d", d);
  made.setAttribute("class", name);
  return made;
}

// A bar from 0 to the difference, on the range of the shown rows.
function differencePlot(value, low, high) {
  const place = (x) => (4 + (92 * (x - low)) / (high - low || 1)).toFixed(2);
  const plot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const facts = { class: "plot", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" };
  Object.entries(facts).forEach(([name, text]) => plot.setAttribute(name, text));
  plot.append(path("M0 5H100", "scale"), path(`M${place(0)} 0V10`, "mark"));
  plot.append(path(`M${place(0)} 5H${place(value)}`, "bar"), path(`M${place(value)} 5h.01`, "dot"));
  return plot;
}

function makeSamples(section) {
  const measures = JSON.parse(section.dataset.samples);
  const inputs = Object.fromEntries(choices.map((name) => [name, byId(`samples-${name}`)]));
  const [table] = section.querySelectorAll("table");
  const more = byId("samples-more");
  const few = 20;
  let all = false;
  section.hidden = false;
  document.querySelector('nav a[href="#samples"]').hidden = false;
  const fill = (select, texts) =>
    select.replaceChildren(...texts.map((text, place) => new Option(text, String(place))));
  fill(inputs.measure, measures.map((measure) => `${measure.label} ${measure.metric}`));

  // Names, not positions, so that a link still holds for a page with more checkpoints.
  function load() {
    const value = (name) => view.values.get(name);
    const measure = Math.max(0, measures.findIndex((one) => `${one.label} ${one.metric}` === value("measure")));
    const { checkpoints } = measures[measure];
    fill(inputs.first, checkpoints);
    fill(inputs.second, checkpoints);
    const first = Math.max(0, checkpoints.indexOf(value("first")));
    const second = checkpoints.indexOf(value("second"));
    inputs.measure.value = String(measure);
    inputs.first.value = String(first);
    inputs.second.value = String(second >= 0 && second !== first ? second : first === 0 ? 1 : 0);
    const orders = Array.from(inputs.order.options, (option) => option.value);
    inputs.order.value = orders.includes(value("order")) ? value("order") : orders[0];
    draw();
  }

  function save() {
    const { checkpoints } = measures[inputs.measure.value];
    const chosen = (name) => inputs[name].selectedOptions[0].textContent;
    const values = { measure: chosen("measure"), first: chosen("first"), second: chosen("second") };
    Object.entries({ ...values, order: inputs.order.value }).forEach(([name, value]) => view.values.set(name, value));
    writeFragment();
    return checkpoints;
  }

  function ordered(measure, first, second) {
    const rows = measure.values
      .map((values, row) => ({ row, a: values[first], b: values[second], d: values[second] - values[first] }))
      .filter(({ a, b }) => a !== null && b !== null);
    const pictured = ({ row }) => (shownOf(measure, row, first, second) ? 1 : 0);
    const key = { largest: ({ d }) => Math.abs(d), worse: gain(measure, -1), better: gain(measure, 1) };
    const size = key[inputs.order.value];
    return rows.sort((x, y) => size(y) - size(x) || pictured(y) - pictured(x)).slice(0, measure.sure);
  }

  const gain = (measure, sign) => ({ d }) => sign * (measure.higher ? d : -d);

  function shownOf(measure, row, first, second) {
    const shown = measure.shown[row];
    return shown && shown[first] !== undefined && shown[second] !== undefined
      ? [first, second].map((checkpoint) => measure.pictures[shown[checkpoint]])
      : null;
  }

  function draw() {
    const measure = measures[inputs.measure.value];
    const [first, second] = [Number(inputs.first.value), Number(inputs.second.value)];
    const places = measure.unit === "%" ? 1 : 3;
    const show = (value) => minus(value.toFixed(places));
    const signed = (value) => (value > 0 ? "+" : "") + show(value);
    const rows = ordered(measure, first, second);
    const few_or_all = all ? rows : rows.slice(0, few);
    const ends = [0, ...few_or_all.map(({ d }) => d)];
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const heads = table.tHead.rows[0].cells;
    heads[1].replaceChildren(...breakable(measure.checkpoints[first]));
    heads[2].replaceChildren(...breakable(measure.checkpoints[second]));
    heads[3].textContent = `second \u2212 first${measure.unit ? `, ${measure.unit}` : ""} ${measure.higher ? "\u2191" : "\u2193"}`;
    const made = few_or_all.map(({ row, a, b, d }) => {
      const line = document.createElement("tr");
      const name = element("th", measure.samples[row], "name");
      name.scope = "row";
      const change = element("td", "", "num");
      const better = gain(measure, 1)({ d });
      change.append(element("span", signed(d), "value", better > 0 ? "gain" : better < 0 ? "loss" : "same"));
      change.append(differencePlot(d, low, high));
      line.append(name, element("td", show(a), "num"), element("td", show(b), "num"), change);
      return line;
    });
    table.tBodies[0].replaceChildren(...made);
    const counts = ["better", "worse"].map((_, place) => rows.filter((row) => gain(measure, place ? -1 : 1)(row) > 0));
    const part = measure.sure < measure.total;
    byId("samples-text").textContent =
      `${measure.metric}${measure.unit ? ` in ${measure.unit}` : ""}, ${measure.higher ? "higher" : "lower"} is better. ` +
      (part
        ? `The page has the ${rows.length} largest of ${measure.total} samples, in this order.`
        : `${rows.length} sample${rows.length === 1 ? "" : "s"}: the second checkpoint is better in ` +
          `${counts[0].length}, worse in ${counts[1].length}.`);
    more.hidden = rows.length <= few;
    more.textContent = all ? `Show the first ${few}` : `Show all ${rows.length}`;
    section.dataset.title = ` ${measure.label} ${measure.metric}`.toLowerCase();
    drawPictures(measure, few_or_all, first, second, show, signed);
    search();
  }

  function drawPictures(measure, rows, first, second, show, signed) {
    const pairs = rows
      .map((line) => ({ ...line, shown: shownOf(measure, line.row, first, second) }))
      .filter(({ shown }) => shown)
      .filter(({ shown }, place, list) => list.findIndex((other) => other.shown[0] === shown[0]) === place)
      .slice(0, 8);
    const made = pairs.map(({ row, a, b, d, shown }) => {
      const block = element("div", "", "item", "pair");
      const wide = shown.some((picture) => picture.width > 2.2 * picture.height);
      const pictures = element("div", "", "two", ...(wide ? ["wide"] : []));
      shown.forEach((picture, place) => {
        const figure = document.createElement("figure");
        const image = document.createElement("img");
        const name = measure.checkpoints[place ? second : first];
        Object.assign(image, { width: picture.width, height: picture.height, src: picture.source });
        image.alt = `${measure.samples[row]} with ${name}`;
        figure.append(image, element("figcaption", `${name}: ${show(place ? b : a)}`));
        pictures.append(figure);
      });
      const title = element("h3", "");
      title.append(element("span", measure.samples[row], "name"), ` ${signed(d)}`);
      block.append(title, pictures);
      return block;
    });
    byId("samples-pictures").replaceChildren(...made);
  }

  inputs.measure.addEventListener("change", () => {
    all = false;
    const { checkpoints } = measures[inputs.measure.value];
    const names = ["first", "second"].map((name) => inputs[name].selectedOptions[0].textContent);
    view.values.set("measure", inputs.measure.selectedOptions[0].textContent);
    names.forEach((name, place) => view.values.set(place ? "second" : "first", checkpoints.includes(name) ? name : ""));
    load();
    save();
  });
  ["first", "second"].forEach((name, place) =>
    inputs[name].addEventListener("change", () => {
      const other = inputs[place ? "first" : "second"];
      const last = measures[inputs.measure.value].checkpoints.length - 1;
      if (other.value === inputs[name].value) other.value = String(Number(other.value) < last ? Number(other.value) + 1 : 0);
      save();
      draw();
    })
  );
  inputs.order.addEventListener("change", () => {
    save();
    draw();
  });
  byId("samples-swap").addEventListener("click", () => {
    [inputs.first.value, inputs.second.value] = [inputs.second.value, inputs.first.value];
    save();
    draw();
  });
  more.addEventListener("click", () => {
    all = !all;
    draw();
  });
  return load;
}

const samples = byId("samples");
const loadSamples = samples ? makeSamples(samples) : () => {};
const box = byId("search");

function showView() {
  box.value = view.values.get("q") || "";
  sorters.forEach((sorter) => sorter());
  loadSamples();
  search();
  goToAnchor();
}

box.form.hidden = false;
box.form.addEventListener("submit", (event) => event.preventDefault());
box.addEventListener("input", () => {
  keep("q", box.value.trim());
  search();
});
addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    box.focus();
  } else if (event.key === "Escape" && event.target === box) {
    box.value = "";
    keep("q", "");
    search();
  }
});
addEventListener("hashchange", () => {
  const next = readFragment();
  view.anchor = next.anchor;
  if (Array.from(next.values).length) view.values = next.values;
  else writeFragment();
  showView();
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => (item.open = true)));
showView();
