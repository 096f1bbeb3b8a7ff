// The explorer: a form of filters, a list that draws only the rows in sight, and the answer that is chosen, beside
// the other run's. Everything from data goes in as text (textContent), never as markup.

const ROW_HEIGHT = 74, SPARE_ROWS = 6, SNIPPET = 160;
// Characters that hide or turn text: controls, bidi controls, zero widths, tags. Newlines and tabs are shown as such.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]|[\u{e0000}-\u{e007f}]/gu;

const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Text of a model, a judge or a prompt, with what cannot be seen made visible and its direction kept to itself.
function modelText(name, text, className) {
  const made = element(name, { class: className, dir: "auto" });
  let end = 0;
  for (const match of text.matchAll(UNSEEN)) {
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    made.append(text.slice(end, match.index), element("span", { class: "unseen" }, `U+${code}`));
    end = match.index + match[0].length;
  }
  made.append(text.slice(end));
  return made;
}

const score = (value) => (value === null || Number.isNaN(value) ? "–" : String(Math.round(value * 10) / 10));

class Explorer {
  constructor(rows) {
    this.rows = rows;
    this.form = byId("filters");
    this.list = byId("list");
    this.canvas = byId("list-rows");
    this.detail = byId("detail");
    this.filter = { ...NO_FILTER };
    this.found = new Int32Array();
    this.chosen = -1; // a place in `found`
    this.fillForm();
    this.form.addEventListener("input", () => this.fromForm());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("reset", () => setTimeout(() => this.fromForm()));
    this.list.addEventListener("scroll", () => this.draw(), { passive: true });
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("[data-place]");
      if (row) this.choose(Number(row.dataset.place));
    });
    this.list.addEventListener("keydown", (event) => this.move(event));
    window.addEventListener("hashchange", () => this.fromAddress());
    new ResizeObserver(() => this.draw()).observe(this.list);
    this.fromAddress();
    setTimeout(() => rows.textsWith(" ")); // the first search need not wait for the texts in lower case
  }

  fillForm() {
    const { rows, form } = this;
    const fill = (name, values) => form.elements[name].append(...values.map((value) => element("option", {}, String(value))));
    const names = rows.runs.map((run) => run.name);
    fill("run", names);
    fill("vs", names);
    fill("suite", rows.suites);
    fill("seed", rows.seeds);
    fill("experts", [...new Set(rows.runs.map((run) => run.experts))].sort());
    const along = rows.steps.filter((step) => step !== null).sort((a, b) => a - b);
    fill("step", along);
    form.elements.step.closest("label").hidden = along.length === 0;
    form.elements.text.closest("label").hidden = !rows.answers;
  }

  fromForm() {
    for (const name of Object.keys(NO_FILTER)) this.filter[name] = this.form.elements[name].value;
    this.apply();
    this.write();
  }

  // Filter and choice as the address has them: #run=...&prompt=...&at=...; another fragment is a place on the page.
  fromAddress() {
    const fragment = location.hash.slice(1);
    if (fragment.includes("=")) {
      const given = new URLSearchParams(fragment);
      for (const name of Object.keys(NO_FILTER)) this.filter[name] = given.get(name) ?? NO_FILTER[name];
      this.toForm();
      this.apply(given.get("at"));
      byId("answers").scrollIntoView();
    } else if (this.found.length === 0) {
      this.apply();
    }
  }

  toForm() {
    for (const [name, value] of Object.entries(this.filter)) {
      const field = this.form.elements[name];
      field.value = value;
      if (field.value !== value) { // several runs, which a claim's link asks for
        field.append(element("option", { value, class: "several" }, `${value.split(",").length} runs of a claim`));
        field.value = value;
      }
    }
  }

  apply(address) {
    const before = this.chosen >= 0 ? this.found[this.chosen] : -1;
    this.found = this.rows.filtered(this.filter);
    this.partner = this.filter.vs ? this.rows.joined(this.filter.vs) : new Int32Array(this.rows.count).fill(-1);
    const wanted = address ? this.rows.at(address) : before;
    this.chosen = Math.max(this.found.indexOf(wanted), this.found.length ? 0 : -1);
    const counts = { coherent: 0, misaligned: 0 };
    for (const row of this.found) {
      counts.coherent += this.rows.label[row] > 0 ? 1 : 0;
      counts.misaligned += this.rows.label[row] === MISALIGNED ? 1 : 0;
    }
    byId("count").textContent = `${this.found.length.toLocaleString("en")} of ${this.rows.count.toLocaleString("en")} `
      + `answers; ${counts.misaligned.toLocaleString("en")} misaligned of ${counts.coherent.toLocaleString("en")} counted`;
    this.canvas.style.height = `${this.found.length * ROW_HEIGHT}px`;
    this.list.scrollTop = Math.max(0, this.chosen - 1) * ROW_HEIGHT;
    this.draw();
    this.show();
  }

  write() {
    const given = new URLSearchParams();
    for (const [name, value] of Object.entries(this.filter)) if (value !== NO_FILTER[name]) given.set(name, value);
    if (this.chosen > 0) given.set("at", this.rows.address(this.found[this.chosen]));
    const text = given.toString();
    history.replaceState(null, "", text ? `#${text}` : "#answers");
  }

  choose(place) {
    if (place < 0 || place >= this.found.length) return;
    this.chosen = place;
    const top = place * ROW_HEIGHT, height = this.list.clientHeight;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    if (top + ROW_HEIGHT > this.list.scrollTop + height) this.list.scrollTop = top + ROW_HEIGHT - height;
    this.draw();
    this.show();
    this.write();
  }

  move(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW_HEIGHT) - 1);
    const places = {
      ArrowDown: this.chosen + 1, ArrowUp: this.chosen - 1, PageDown: Math.min(this.chosen + page, this.found.length - 1),
      PageUp: Math.max(this.chosen - page, 0), Home: 0, End: this.found.length - 1,
    };
    if (!(event.key in places) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.choose(places[event.key]);
  }

  // Only the rows in sight are in the document: forty thousand scroll as forty do.
  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
    const last = Math.min(this.found.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW_HEIGHT) + SPARE_ROWS);
    const drawn = [];
    for (let place = first; place < last; place++) drawn.push(this.line(place));
    this.canvas.replaceChildren(...drawn);
    if (this.chosen >= 0) this.list.setAttribute("aria-activedescendant", `row-${this.found[this.chosen]}`);
    else this.list.removeAttribute("aria-activedescendant");
  }

  line(place) {
    const { rows } = this, row = this.found[place], other = this.partner[row];
    const [suite, prompt] = rows.prompts[rows.prompt[row]];
    const step = rows.steps[rows.step[row]];
    const made = element("div", {
      id: `row-${row}`, role: "option", "data-place": place, "aria-selected": String(place === this.chosen),
      "aria-setsize": this.found.length, "aria-posinset": place + 1,
    });
    made.style.top = `${place * ROW_HEIGHT}px`;
    const where = `${rows.suites[suite]} · ${prompt} · seed ${rows.seeds[rows.seed[row]]} · ${rows.sample[row] + 1}`
      + (step === null ? "" : ` · step ${step}`);
    const scores = other < 0 ? score(rows.alignment[row]) : `${score(rows.alignment[other])} → ${score(rows.alignment[row])}`;
    made.append(
      element("div", { class: "line" }, element("b", {}, rows.runs[rows.run[row]].name), element("span", { class: "scores" }, scores)),
      element("div", { class: "line" }, this.chip(row), element("span", { class: "where" }, where)),
    );
    if (rows.answers) made.append(modelText("div", rows.texts[rows.answer[row]].slice(0, SNIPPET).replace(/\s+/g, " "), "snippet"));
    return made;
  }

  chip(row) {
    const { rows } = this, label = rows.labels[rows.label[row]], status = rows.statuses[rows.status[row]];
    const text = rows.label[row] === 0 && status !== "scored" ? status : rows.label[row] === 0 ? "incoherent" : label;
    return element("span", { class: `chip ${rows.label[row] === MISALIGNED ? "bad" : rows.label[row] === ALIGNED ? "good" : "other"}` }, text);
  }

  show() {
    const { rows } = this;
    if (this.chosen < 0) {
      this.detail.replaceChildren(element("p", { class: "note" }, "No answer fits these filters."));
      return;
    }
    const row = this.found[this.chosen], other = this.partner[row];
    const [suite, prompt] = rows.prompts[rows.prompt[row]];
    const heading = element("h3", {}, `${rows.suites[suite]} · ${prompt}`);
    const link = element("a", { href: `#run=${encodeURIComponent(rows.runs[rows.run[row]].name)}&step=all&at=${encodeURIComponent(rows.address(row))}` }, "link to this answer");
    const parts = [element("div", { class: "line" }, heading, link)];
    if (rows.answers) parts.push(element("h4", {}, "Question"), modelText("div", rows.texts[rows.question[row]], "text question"));
    const sides = element("div", { class: "sides" }, this.side(row, "A"));
    if (other >= 0) sides.append(this.side(other, "B"));
    else if (this.filter.vs) sides.append(element("p", { class: "note" }, this.alone(row)));
    parts.push(sides);
    this.detail.replaceChildren(...parts);
  }

  alone(row) {
    const run = this.rows.runs[this.rows.run[row]];
    if (this.filter.vs === "base" && run.base === null) return "This run is a base, or has none in the study: nothing stands beside it.";
    return "Run B has no answer with this suite, prompt, sample, seed and step.";
  }

  side(row, letter) {
    const { rows } = this, run = rows.runs[rows.run[row]];
    const made = element("section", { class: "side", "aria-label": `Run ${letter}` });
    const step = rows.steps[rows.step[row]];
    made.append(
      element("div", { class: "line" }, element("h4", {}, `${letter}: ${run.name}`), this.chip(row)),
      element("p", { class: "note" }, `experts: ${run.experts}; data: ${run.data ?? "none"}; seed ${rows.seeds[rows.seed[row]]}, sample ${rows.sample[row] + 1}`
        + (step === null ? "" : `, adapter of step ${step}`) + (rows.cut[row] ? "; cut at the token limit" : "")),
    );
    if (rows.answers && rows.texts[rows.thinking[row]] !== "") {
      const thinking = element("details", {}, element("summary", {}, "Thinking"), modelText("div", rows.texts[rows.thinking[row]], "text"));
      made.append(thinking);
    }
    if (rows.answers) made.append(modelText("div", rows.texts[rows.answer[row]], "text answer"));
    made.append(this.scores(row));
    return made;
  }

  // A line a judge and aspect: what it amounts to, and what the judge said.
  scores(row) {
    const { rows } = this;
    const head = ["judge", "aspect", "score", ...(rows.answers ? ["reply"] : [])];
    const table = element("table", { class: "scores-table" }, element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))));
    const body = element("tbody");
    for (const judge of rows.judges) {
      for (const [aspect, values] of Object.entries(judge.values)) {
        const value = values[row], status = rows.statuses[judge.status[row]];
        const shown = value === null ? (status === "scored" ? "–" : status) : typeof value === "string" ? value : score(value);
        const line = element("tr", {}, element("td", {}, judge.name), element("th", { scope: "row" }, aspect), element("td", { class: "number" }, shown));
        if (rows.answers) line.append(modelText("td", rows.texts[judge.replies[aspect][row]] || "–", "text reply"));
        body.append(line);
      }
    }
    table.append(body);
    return element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Scores" }, table);
  }
}
