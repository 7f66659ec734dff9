"use strict";
// Draws the points that the server sends: nothing is computed here but what is shown. `page.js` comes first.

const MOST_PANELS = 24;
const FIELDS = { widths: "width", sparsities: "sparsity", rewinds: "rewind_epoch" }; // choice -> column
const MEASURES = { test_accuracy: "test accuracy (%)", train_loss: "training loss (nats)" };
const CONFIG = { displayModeBar: false, responsive: true }; // its buttons are many stops of the Tab key
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)");

let data = null;
let curves = null; // the source of the cell that is shown
let curvePoints = [];
const views = {}; // of the tables below figures, by the figure's name

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const ink = (colour) => (/^(black|#000(000)?)$/i.test(colour) ? css("--ink") : colour);
const is = (value) => value !== null && value !== undefined;
const show = (value, digits) => (is(value) ? value.toFixed(digits) : "");
const showP = (p) => (is(p) && p < 0.001 ? "< 0.001" : show(p, 3));
const distinct = (values) => [...new Set(values)];

/** Return a table by column as rows. */
function rowsOf(columns) {
  const names = Object.keys(columns);
  return names.length ? columns[names[0]].map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]]))) : [];
}

/** Return a colour with an alpha of 0.15, for bands. */
function faded(colour) {
  const hex = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(colour);
  return hex ? `rgba(${hex.slice(1).map((part) => parseInt(part, 16)).join(", ")}, 0.15)` : "rgba(127, 127, 127, 0.15)";
}

const between = (row, digits, unit) =>
  is(row.low) ? `<br>95 % interval ${show(row.low, digits)} to ${show(row.high, digits)}${unit}` : "";

/** Return what is chosen of everything: names of arms, and values of a cell's columns. */
function chosen() {
  const found = { arms: choice.among("arms", data.arms.map((arm) => arm.label)) };
  for (const [name, column] of Object.entries(FIELDS)) found[name] = choice.among(name, data.choices[column]);
  return found;
}

/** Whether a row is of the chosen cells; what a column's choices do not have, such as a dense network's, always is. */
function isShown(row, picked) {
  return Object.entries(FIELDS).every(([name, column]) =>
    !data.choices[column].includes(row[column]) || picked[name].includes(row[column]));
}

function drawChoice(name, options) {
  const box = byId(`choice-${name}`);
  box.hidden = options.length < 2;
  const key = JSON.stringify(options);
  if (box.dataset.options !== key) { // what is focused stays so
    const focused = box.contains(document.activeElement) ? document.activeElement.value : null;
    box.dataset.options = key;
    box.querySelector("div").replaceChildren(...options.map((option) =>
      make("label", { title: option.title },
        make("input", { type: "checkbox", name, value: option.value }), ...mark(option), option.text)));
    if (focused !== null) [...box.querySelectorAll("input")].find((input) => input.value === focused)?.focus();
  }
  const picked = choice.among(name, options.map((option) => option.value));
  for (const input of box.querySelectorAll("input")) input.checked = picked.includes(input.value);
  for (const glyph of box.querySelectorAll("[data-colour]")) glyph.style.color = ink(glyph.dataset.colour);
}

const mark = (look) =>
  look.glyph ? [make("span", { "aria-hidden": "true", "data-colour": look.colour, text: look.glyph })] : [];

function drawChoices() {
  byId("choices").hidden = data.arms.length === 0;
  drawChoice("arms", data.arms.map((arm) =>
    ({ value: arm.label, text: arm.label, title: arm.summary, glyph: arm.glyph, colour: arm.colour })));
  for (const [name, column] of Object.entries(FIELDS)) {
    drawChoice(name, data.choices[column].map((value) => ({ value: String(value), text: String(value) })));
  }
}

/** Fill a select, keep what is chosen, and return it; the default is the first or the last option. */
function drawSelect(id, options, fallback) {
  const select = byId(id);
  const key = JSON.stringify(options);
  if (select.dataset.options !== key) {
    select.dataset.options = key;
    select.replaceChildren(...options.map(([value, text]) => make("option", { value, text })));
  }
  const wanted = choice.get(id)[0];
  select.value = options.some(([value]) => value === wanted) ? wanted : fallback;
  return select.value;
}

function layoutOf(x, y, more = {}) {
  const [text, line, back] = [css("--ink"), css("--line"), css("--back")];
  const axis = { gridcolor: line, linecolor: line, zeroline: false, automargin: true };
  return {
    margin: { l: 50, r: 12, t: 8, b: 44 }, paper_bgcolor: back, plot_bgcolor: back, font: { color: text, size: 12 },
    showlegend: false, hovermode: "closest", uirevision: "keep", dragmode: coarse.matches ? false : "zoom",
    hoverlabel: { bgcolor: css("--ground"), bordercolor: line, font: { color: text } },
    xaxis: { ...axis, title: { text: x }, ...more.xaxis }, yaxis: { ...axis, title: { text: y }, ...more.yaxis },
    shapes: more.shapes ?? [], height: more.height ?? 300,
  };
}

/** Draw panels of a section, in the places that they already have, and a legend above them. */
function drawPanels(name, panels, looks) {
  const section = byId(`section-${name}`);
  const holder = section.querySelector(".panels");
  const there = new Map([...holder.querySelectorAll("figure")].map((figure) => [figure.dataset.key, figure]));
  const shown = panels.slice(0, MOST_PANELS);
  section.querySelector(".left-out").textContent = panels.length > shown.length
    ? `Drawn are ${shown.length} of ${panels.length} panels: choose fewer.` : "";
  const figures = shown.map((panel) =>
    there.get(panel.key) ?? make("figure", { "data-key": panel.key }, make("h3"), make("div", { class: "plot" })));
  for (const [key, figure] of there) if (!shown.some((panel) => panel.key === key)) Plotly.purge(figure.lastChild);
  const legend = make("p", { class: "legend" }, ...looks.map((look) => make("span", {}, ...mark(look), ` ${look.label}`)));
  for (const glyph of legend.querySelectorAll("[data-colour]")) glyph.style.color = ink(glyph.dataset.colour);
  holder.replaceChildren(legend, ...figures);
  shown.forEach((panel, number) => {
    const [heading, plot] = figures[number].children;
    heading.textContent = panel.title;
    plot.style.height = `${panel.layout.height}px`;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${panel.about}: ${panel.title || "all"}. The same numbers are in the table below.`);
    Plotly.react(plot, panel.traces, panel.layout, CONFIG);
  });
}

/** Show the numbers of a figure where its reader opens them: columns are [heading, value of a row, whether a number]. */
function drawNumbers(name, columns, rows) {
  views[name] = () => tableOf({
    headings: columns.map(([heading]) => heading), are_numbers: columns.map(([, , isNumber]) => isNumber ?? true),
    rows: rows.map((row) => columns.map(([, value]) => String(value(row) ?? ""))),
  });
  fillNumbers(name);
}

function fillNumbers(name) {
  const details = byId(`${name}-numbers`);
  details.querySelector(".scroll").replaceChildren(...(details.open && views[name] ? [views[name]()] : []));
}

const CELL_COLUMNS = [["width", (row) => row.width], ["sparsity", (row) => row.sparsity], ["k", (row) => row.rewind_epoch]];

function looksOf(labels) {
  return data.arms.filter((arm) => labels.includes(arm.label));
}

function drawAccuracy(picked) {
  const all = rowsOf(data.accuracy);
  byId("section-accuracy").hidden = all.length === 0;
  const against = drawSelect("against", [["sparsity", "sparsity"], ["rewind", "rewind point"]], "sparsity");
  const [x, by] = against === "sparsity" ? ["sparsity", "rewind_epoch"] : ["rewind_epoch", "sparsity"];
  const rows = all.filter((row) => isShown(row, picked) && picked.arms.includes(row.label));
  const dense = rowsOf(data.dense);
  const level = dense.filter((row) => picked.widths.includes(row.width)).map((row) => row.mean);
  const ends = [...level, ...rows.flatMap((row) => [row.mean, row.low, row.high])].filter(is);
  const pad = 0.05 * (Math.max(...ends) - Math.min(...ends)) || 1;
  const yaxis = ends.length ? { range: [Math.min(...ends) - pad, Math.max(...ends) + pad] } : {};
  const panels = [];
  for (const width of picked.widths) {
    for (const value of by === "sparsity" ? picked.sparsities : picked.rewinds) {
      const mine = rows.filter((row) => row.width === width && row[by] === value);
      if (!mine.length) continue;
      const places = mine.map((row) => row[x]);
      const line = dense.filter((row) => row.width === width && is(row.mean)).map((row) => ({
        name: "dense", mode: "lines", x: [Math.min(...places), Math.max(...places)], y: [row.mean, row.mean],
        text: Array(2).fill(`dense: ${show(row.mean, 2)} %${between(row, 2, " %")}<br>n = ${row.n}`),
        hovertemplate: "%{text}<extra></extra>", line: { color: css("--ink"), width: 1, dash: "dash" },
      }));
      panels.push({
        key: `${against}/${width}/${value}`, about: "Test accuracy in percent",
        title: `${by === "sparsity" ? "sparsity" : "k ="} ${value}${data.choices.width.length > 1 ? `, width ${width}` : ""}`,
        traces: [...line, ...looksOf(picked.arms).map((look) => accuracyTrace(look, x, mine))],
        layout: layoutOf(x === "sparsity" ? "sparsity of the mask" : "rewind point k (epochs)", "test accuracy (%)", { yaxis }),
      });
    }
  }
  drawPanels("accuracy", panels, looksOf(picked.arms));
  drawNumbers("accuracy", [
    ...CELL_COLUMNS, ["arm", (row) => row.label, false], ["mean (%)", (row) => show(row.mean, 2)],
    ["95 % interval, lower", (row) => show(row.low, 2)], ["95 % interval, upper", (row) => show(row.high, 2)],
    ["standard deviation", (row) => show(row.std, 2)], ["n", (row) => row.n], ["lost", (row) => row.lost],
  ], rows);
}

function accuracyTrace(look, x, rows) {
  const mine = rows.filter((row) => row.label === look.label && is(row.mean)).sort((one, other) => one[x] - other[x]);
  const of = (name) => mine.map((row) => row[name]);
  return {
    name: look.label, mode: "lines+markers", x: of(x), y: of("mean"),
    error_y: { type: "data", symmetric: false, array: of("plus"), arrayminus: of("minus"), thickness: 1.2, width: 4 },
    line: { color: ink(look.colour), dash: look.dash, width: 1.8 }, marker: { symbol: look.symbol, size: 8 },
    text: mine.map((row) => `${row.label}: ${show(row.mean, 2)} %${between(row, 2, " %")}<br>sparsity ${row.sparsity}, ` +
      `k = ${row.rewind_epoch}, n = ${row.n}${row.lost ? `, ${row.lost} lost` : ""}`),
    hovertemplate: "%{text}<extra></extra>",
  };
}

function drawContrasts(picked) {
  const name = (row) => `${row.label} − ${row.against}`;
  const all = rowsOf(data.contrasts);
  byId("section-contrasts").hidden = all.length === 0;
  const effects = rowsOf(data.effects).map((row) => [
    name(row), show(row.difference, 1), is(row.low) ? `${show(row.low, 1)} to ${show(row.high, 1)}` : "", String(row.n),
    `${row.cells} of ${row.cells_all}`, showP(row.p), showP(row.p_holm),
  ]);
  const headings = ["contrast", "difference", "95 % interval", "n", "cells", "p", "p, Holm-corrected"];
  byId("effects").replaceChildren(tableOf({ headings, are_numbers: headings.map((_, i) => i > 0), rows: effects }));
  const open = all.filter((row) => picked.arms.includes(row.label) && picked.arms.includes(row.against));
  const names = distinct(open.map(name));
  const wanted = drawSelect("contrast", names.map((text) => [text, text]), names[0] ?? "");
  const rows = open.filter((row) => name(row) === wanted && isShown(row, picked));
  const panels = distinct(rows.map((row) => row.width)).map((width) => {
    const mine = rows.filter((row) => row.width === width);
    const look = looksOf(mine.map((row) => row.label))[0];
    const of = (column) => mine.map((row) => row[column]);
    return {
      key: `${width}`, about: `${wanted}, percentage points`, title: data.choices.width.length > 1 ? `width ${width}` : wanted,
      traces: [{
        name: wanted, mode: "markers", x: of("difference"), y: mine.map((row) => `S = ${row.sparsity}, k = ${row.rewind_epoch}`),
        error_x: { type: "data", symmetric: false, array: of("plus"), arrayminus: of("minus"), thickness: 1.4, width: 4 },
        marker: { symbol: look.symbol, size: 8, color: ink(look.colour) },
        text: mine.map((row) => `${wanted}: ${show(row.difference, 2)} points${between(row, 2, "")}<br>sparsity ${row.sparsity}, ` +
          `k = ${row.rewind_epoch}, n = ${row.n}, ${row.design}${is(row.p_holm) ? `<br>p, Holm-corrected ${showP(row.p_holm)}` : ""}`),
        hovertemplate: "%{text}<extra></extra>",
      }],
      layout: layoutOf("percentage points", "", {
        yaxis: { autorange: "reversed", type: "category" }, height: 90 + 26 * mine.length,
        shapes: [{ type: "line", x0: 0, x1: 0, y0: 0, y1: 1, yref: "paper", line: { color: css("--ink"), width: 1 } }],
      }),
    };
  });
  drawPanels("contrasts", panels, []);
  drawNumbers("contrasts", [
    ...CELL_COLUMNS, ["contrast", name, false], ["difference (points)", (row) => show(row.difference, 2)],
    ["95 % interval, lower", (row) => show(row.low, 2)], ["95 % interval, upper", (row) => show(row.high, 2)],
    ["n", (row) => row.n], ["p, Holm-corrected", (row) => showP(row.p_holm)], ["comparison", (row) => row.design, false],
  ], rows);
}

/** Return the traces of a mean with its band. */
function banded(look, rows, x, low, high, text) {
  const of = (name) => rows.map((row) => row[name]);
  const none = { mode: "lines", line: { width: 0 }, hoverinfo: "skip", x: of(x) };
  const withBand = rows.some((row) => is(row[low]));
  const band = withBand ? [
    { ...none, name: `${look.label}: lower`, y: of(low) },
    { ...none, name: `${look.label}: upper`, y: of(high), fill: "tonexty", fillcolor: faded(ink(look.colour)) },
  ] : [];
  return [...band, {
    name: look.label, mode: rows.length > 40 ? "lines" : "lines+markers", x: of(x), y: of("mean"), text: rows.map(text),
    hovertemplate: "%{text}<extra></extra>", line: { color: ink(look.colour), dash: look.dash, width: 1.6 },
    marker: { symbol: look.symbol, size: 5 },
  }];
}

function drawCurves(picked) {
  const cells = rowsOf(data.curve_cells);
  byId("section-curves").hidden = cells.length === 0;
  if (!cells.length) {
    followCurves(null);
    return;
  }
  const text = (cell) => (is(cell.sparsity) ? `width ${cell.width}, sparsity ${cell.sparsity}, k = ${cell.rewind_epoch}`
    : `dense, width ${cell.width}`);
  const id = drawSelect("cell", cells.map((cell) => [cell.id, text(cell)]), cells.at(-1).id);
  followCurves(id);
  const looks = [{ label: "dense", colour: "black", symbol: "circle", dash: "solid", glyph: "●" }, ...looksOf(picked.arms)];
  const panels = Object.keys(MEASURES).map((measure) => {
    const mine = curvePoints.filter((row) => row.measure === measure);
    const traces = looks.flatMap((look) => {
      const rows = mine.filter((row) => row.label === look.label);
      const hover = (row) => `${row.label}: ${show(row.mean, 3)}${is(row.std) ? ` ± ${show(row.std, 3)}` : ""}<br>epoch ${row.epoch}, n = ${row.n}`;
      return rows.length ? banded(look, rows, "epoch", "lower", "upper", hover) : [];
    });
    return { key: measure, about: MEASURES[measure], title: MEASURES[measure], traces, layout: layoutOf("epoch", MEASURES[measure]) };
  }).filter((panel) => panel.traces.length);
  drawPanels("curves", panels, looks);
  drawNumbers("curves", [
    ["measure", (row) => MEASURES[row.measure], false], ["arm", (row) => row.label, false], ["epoch", (row) => row.epoch],
    ["mean", (row) => show(row.mean, 4)], ["standard deviation", (row) => show(row.std, 4)], ["n", (row) => row.n],
  ], curvePoints.filter((row) => looks.some((look) => look.label === row.label)));
}

/** Ask for the curves of a cell from now on, instead of those of another one, which are gone at once; null: of none. */
function followCurves(id) {
  const url = id === null ? null : `${encodeURIComponent(byId("progress").dataset.run)}/curves/${encodeURIComponent(id)}.json`;
  if (curves?.url === url) return;
  if (curves) sources.splice(sources.indexOf(curves), 1);
  curvePoints = [];
  curves = null;
  if (url === null) return;
  curves = new Source(url, (columns) => {
    curvePoints = rowsOf(columns);
    drawCurves(chosen());
  });
  sources.push(curves);
  wake();
}

function drawLines(picked) {
  const kind = (row) => JSON.stringify([row.name, row.width, row.sparsity, row.rewind_epoch, row.imp_round, row.match_method]);
  const all = rowsOf(data.lines);
  byId("section-lines").hidden = all.length === 0;
  const rows = all.filter((row) => isShown(row, picked));
  const panels = distinct(rows.map(kind)).map((key) => {
    const mine = rows.filter((row) => kind(row) === key);
    const hover = (row) => `${row.correction}: ${show(row.mean, 2)} %<br>range ${show(row.low, 2)} to ${show(row.high, 2)} %` +
      `<br>at ${row.alpha}, n = ${row.n}`;
    const traces = data.corrections.flatMap((look) => {
      const points = mine.filter((row) => row.correction === look.label);
      return points.length ? banded(look, points, "alpha", "low", "high", hover) : [];
    });
    return { key, about: "Test error in percent", title: mine[0].name, traces,
      layout: layoutOf("from the first (0) to the second (1)", "test error (%)") };
  });
  drawPanels("lines", panels, data.corrections.filter((look) => rows.some((row) => row.correction === look.label)));
  drawNumbers("lines", [
    ["line", (row) => row.name, false], ["width", (row) => row.width], ["correction", (row) => row.correction, false],
    ["place", (row) => row.alpha], ["mean (%)", (row) => show(row.mean, 2)], ["lowest", (row) => show(row.low, 2)],
    ["highest", (row) => show(row.high, 2)], ["n", (row) => row.n],
  ], rows);
}

function drawAll() {
  if (data === null) return;
  drawChoices();
  const picked = chosen();
  drawAccuracy(picked);
  drawContrasts(picked);
  drawCurves(picked);
  drawLines(picked);
}

function showTables() {
  const open = new Set([...byId("tables").querySelectorAll("details[open]")].map((details) => details.id));
  byId("section-tables").hidden = data.tables.length === 0;
  byId("tables").replaceChildren(...data.tables.map((table) => {
    const region = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": table.title }, tableOf(table));
    const notes = table.notes.map((text) => make("p", { class: "soft", text }));
    const parts = [make("summary", { text: table.title }), make("p", { class: "soft", text: table.text }), ...notes, region];
    const details = make("details", { id: `table-${table.name}` }, ...parts);
    details.open = open.has(details.id);
    return details;
  }));
  const missing = data.missing.map((one) => `${one.title}: ${one.reason}`).join("; ");
  byId("missing").textContent = missing && `Not listed. ${missing}.`;
}

function showData(found) {
  data = found;
  byId("notes").replaceChildren(...data.notes.map((text) => make("li", { text })));
  byId("section-findings").hidden = data.findings.length === 0;
  byId("findings").replaceChildren(...data.findings.map(([first, ...details]) =>
    make("li", {}, first, ...(details.length ? [make("span", { class: "detail", text: details.join(" ") })] : []))));
  byId("lost").hidden = data.lost === null;
  byId("lost").querySelector("div").replaceChildren(...(data.lost ? [tableOf(data.lost)] : []));
  byId("section-more").hidden = data.arms.length === 0 && data.lines.alpha === undefined;
  showTables();
  drawAll();
}

function showMore(found) {
  const figures = found.figures.map((figure) => make("figure", {},
    make("h3", { text: figure.title }),
    make("img", { src: `data:image/svg+xml;base64,${figure.svg}`, width: figure.width, height: figure.height,
      alt: `${figure.title}: ${figure.text}` }),
    make("figcaption", { class: "soft", text: figure.text })));
  const missing = found.missing.map((one) => `${one.title}: ${one.reason}`).join("; ");
  const rest = make("p", { class: "soft", text: missing && `Not drawn. ${missing}.` });
  byId("more").querySelector("div").replaceChildren(...figures, rest);
}

document.addEventListener("change", (event) => {
  const input = event.target;
  if (input.type === "checkbox") {
    const all = [...input.closest("fieldset").querySelectorAll("input")];
    const picked = all.filter((one) => one.checked).map((one) => one.value);
    choice.set(input.name, picked.length === all.length ? [] : picked.length ? picked : [""]);
  } else if (input.tagName === "SELECT") choice.set(input.id, [input.value]);
  drawAll();
});
document.addEventListener("toggle", (event) => {
  const details = event.target;
  if (details.classList.contains("numbers")) fillNumbers(details.id.replace("-numbers", ""));
  if (details.id === "more" && details.open && !details.dataset.isFollowed) {
    details.dataset.isFollowed = "yes";
    sources.push(new Source(`${encodeURIComponent(byId("progress").dataset.run)}/figures.json`, showMore));
    wake();
  }
}, true);
document.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", drawAll);
dark.addEventListener("change", drawAll);
