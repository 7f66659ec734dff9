"use strict";
// Reads the server's JSON every few seconds, shows progress and tables, and keeps the reader's choices in the address's hash.

const EVERY = 5000; // milliseconds between two looks at what is shown
const UNREADABLE = "cannot be read"; // the state of a run with a harmed file; its note says which
const BAD = ["failed", "lost", "diverged", UNREADABLE];

const byId = (id) => document.getElementById(id);

/** Make an element with attributes (`text` is its text) and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Make a table of a view: headings, whether columns are numbers, rows of text. */
function tableOf(view) {
  const kind = (column) => (view.are_numbers[column] ? {} : { class: "text" });
  const head = view.headings.map((text, column) => make("th", { scope: "col", text, ...kind(column) }));
  const rows = view.rows.map((row) => make("tr", {}, ...row.map((text, column) => make("td", { text, ...kind(column) }))));
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}

/** One JSON of the server, which is asked for again only where it is another one by now. */
class Source {
  constructor(url, use) {
    this.url = url;
    this.use = use;
    this.tag = null;
  }

  /** Ask the server and show what it has; what was asked for before another source took this one's place is not shown. */
  async read() {
    const headers = this.tag === null ? {} : { "If-None-Match": this.tag };
    const [response, text] = await answerTo(this.url, { cache: "no-store", headers });
    if (!sources.includes(this) || response.status === 304) return;
    if (!response.ok) throw new Error(text.trim());
    try {
      this.use(JSON.parse(text));
    } catch (error) {
      console.warn(error);
      throw new Error(`this page cannot show ${this.url} (${error.name}: ${error.message})`);
    }
    this.tag = response.headers.get("ETag"); // only now: what could not be shown is asked for again
  }
}

/** Return a response and its text; an Error that says so where the server does not answer. */
async function answerTo(url, options) {
  try {
    const response = await fetch(url, options);
    return [response, await response.text()];
  } catch {
    throw new Error("the server does not answer");
  }
}

const sources = [];
let isAsked = false; // whether something has changed that must be read before the next look
let ring = () => {};

function wake() {
  isAsked = true;
  ring();
}

/** Read all sources, again and again; a hidden page asks for nothing. */
async function follow() {
  for (;;) {
    isAsked = false;
    if (!document.hidden) {
      let problem = "";
      for (const source of [...sources]) {
        try {
          if (sources.includes(source)) await source.read();
        } catch (error) {
          if (!sources.includes(source)) continue;
          problem = `${error.message}. Shown is what was read last; it is asked for again.`;
        }
      }
      byId("alert").hidden = !problem;
      byId("alert").textContent = problem;
    }
    if (!isAsked) {
      await new Promise((done) => {
        ring = done;
        setTimeout(done, EVERY);
      });
    }
  }
}

/** What the reader chose, in the hash: a name that is missing there stands for everything. */
const choice = {
  get(name) {
    return new URLSearchParams(location.hash.slice(1)).getAll(name);
  },
  set(name, values) {
    const parameters = new URLSearchParams(location.hash.slice(1));
    parameters.delete(name);
    for (const value of values) parameters.append(name, value);
    const hash = parameters.toString();
    history.replaceState(null, "", location.pathname + (hash ? `#${hash}` : ""));
  },
  /** Return those of all options that are chosen. */
  among(name, options) {
    const values = choice.get(name);
    return values.length ? options.filter((option) => values.includes(String(option))) : options;
  },
};

function stateOf(run) {
  if (run.state === UNREADABLE) return [make("strong", { text: run.state, class: "bad" }), `: ${run.note}`];
  const parts = [`${run.done.toLocaleString("en")} of ${run.total.toLocaleString("en")} stages are done`];
  if (run.left) parts.push(`about ${run.left} left`);
  if (run.num_failures) parts.push(`${run.num_failures} failed or diverged`);
  return [make("strong", { text: run.state, class: BAD.includes(run.state) ? "bad" : null }), `: ${parts.join(", ")}`];
}

const noteOf = (run) => (run.state === UNREADABLE ? "" : run.note);

function reported(run) {
  if (!run.reported) return "";
  return `reported ${new Date(run.reported * 1000).toLocaleString()}${run.host ? ` by ${run.host}` : ""}`;
}

function showSweeps(runs) {
  byId("none").hidden = runs.length > 0;
  const rows = runs.map((run) =>
    make("li", {},
      make("a", { href: `runs/${encodeURIComponent(run.run)}`, text: run.run }),
      make("p", {}, ...stateOf(run)),
      make("progress", { max: run.total || 1, value: run.done, "aria-label": `Stages of ${run.run} that are done` }),
      make("p", { class: "soft", text: [reported(run), noteOf(run)].filter(Boolean).join("; ") })));
  const focused = document.activeElement.getAttribute?.("href");
  byId("sweeps").replaceChildren(...rows);
  if (focused) byId("sweeps").querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

function showProgress(run) {
  document.title = `${run.name}: raylth`;
  byId("name").textContent = run.name;
  byId("state").replaceChildren(...stateOf(run));
  byId("bar").max = run.total || 1;
  byId("bar").value = run.done;
  const pace = [run.speed, run.elapsed && `elapsed ${run.elapsed}`, run.used && `used so far: ${run.used}`];
  if (run.ended_workers) pace.push(`workers that ended: ${run.ended_workers}`);
  byId("pace").textContent = [...pace, reported(run)].filter(Boolean).join("; ");
  byId("note").textContent = noteOf(run);
  const headings = run.stages.length ? Object.keys(run.stages[0]) : [];
  const rows = run.stages.map((stage) => headings.map((name) => String(stage[name])));
  byId("stages").replaceChildren(tableOf({ headings, are_numbers: headings.map((_, column) => column > 0), rows }));
  const failures = byId("failures");
  failures.hidden = run.num_failures === 0;
  failures.querySelector("ul").replaceChildren(...run.failures.map((one) =>
    make("li", { text: `${one.state}: ${one.stage}: ${one.error}${one.blocks ? ` (blocks ${one.blocks} more)` : ""}` })));
  const more = run.num_failures - run.failures.length;
  failures.querySelector("p").textContent = more > 0 ? `and ${more} more` : "";
}

/** Go to a place of the page without a hash, which holds the choices. */
function jump(event) {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  const place = byId(link.getAttribute("href").slice(1));
  place.scrollIntoView();
  place.setAttribute("tabindex", "-1");
  place.focus({ preventScroll: true });
}

if (location.search) history.replaceState(null, "", location.pathname + location.hash); // the token is a cookie by now
document.addEventListener("click", jump);
document.addEventListener("visibilitychange", wake);
document.addEventListener("DOMContentLoaded", () => {
  if (byId("sweeps")) sources.push(new Source("sweeps.json", showSweeps));
  if (byId("progress")) {
    const run = encodeURIComponent(byId("progress").dataset.run);
    sources.push(new Source(`${run}/progress.json`, showProgress), new Source(`${run}/data.json`, showData));
  }
  follow();
});
