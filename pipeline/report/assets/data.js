// The explorer's rows: unpacked from the page, joined run to run, filtered. No DOM but the data block itself.

async function unpack(id) {
  const binary = atob(document.getElementById(id).textContent.trim());
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < binary.length; place++) bytes[place] = binary.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const NO_FILTER = {
  run: "", vs: "base", suite: "", experts: "", seed: "", step: "", status: "", change: "",
  alignment_from: "", alignment_to: "", coherence_from: "", coherence_to: "", prompt: "", text: "", sort: "",
};
const TEXT_COLUMNS = ["answer", "question", "thinking"];
const ALIGNED = 1, MISALIGNED = 2;

class Rows {
  constructor(data) {
    Object.assign(this, data);
    this.count = data.columns.run.length;
    const scores = (values) => Float32Array.from(values, (value) => (value === null ? NaN : value));
    for (const name of Object.keys(data.columns)) this[name] = Int32Array.from(data.columns[name]);
    this.judge = data.judges[0];
    this.status = Uint8Array.from(this.judge.status);
    this.label = Uint8Array.from(this.judge.label);
    this.alignment = scores(this.judge.values.alignment);
    this.coherence = scores(this.judge.values.coherence);
    this.replies = data.judges.flatMap((judge) => Object.values(judge.replies)).map((it) => Int32Array.from(it));
    this.suite = Int32Array.from(this.prompt, (place) => data.prompts[place][0]);
    const samples = this.sample.reduce((most, sample) => Math.max(most, sample), 0) + 1;
    this.key = new Float64Array(this.count);
    for (let row = 0; row < this.count; row++) {
      const asked = this.prompt[row] * this.seeds.length + this.seed[row];
      this.key[row] = (asked * samples + this.sample[row]) * this.steps.length + this.step[row];
    }
    this.byRun = this.runs.map(() => new Map());
    for (let row = 0; row < this.count; row++) this.byRun[this.run[row]].set(this.key[row], row);
    this.finalStep = this.steps.indexOf(null);
    this.partners = new Map();
  }

  runPlace(name) {
    return this.runs.findIndex((run) => run.name === name);
  }

  // Of every row, the row of run `vs` ("base": of its own base) with its suite, prompt, sample, seed and step; -1: none.
  joined(vs) {
    if (this.partners.has(vs)) return this.partners.get(vs);
    const others = this.runs.map((run) => this.runPlace(vs === "base" ? run.base : vs));
    const partner = new Int32Array(this.count).fill(-1);
    for (let row = 0; row < this.count; row++) {
      const other = others[this.run[row]];
      if (other >= 0) partner[row] = this.byRun[other].get(this.key[row]) ?? -1;
    }
    this.partners.set(vs, partner);
    return partner;
  }

  // The texts in small letters, made once: before the first search, as it takes longer than one.
  lowercase() {
    this.lower ??= this.texts.map((text) => text.toLowerCase());
    return this.lower;
  }

  // 1 where a text has `needle`, whatever its case. As one types on, only what had the shorter needle is looked at.
  textsWith(needle) {
    const wanted = needle.toLowerCase(), lower = this.lowercase(), before = this.searched;
    const among = before && wanted.includes(before.wanted) ? before.found : null;
    const found = new Uint8Array(lower.length);
    for (let text = 0; text < lower.length; text++) {
      if ((among === null || among[text] === 1) && lower[text].includes(wanted)) found[text] = 1;
    }
    this.searched = { wanted, found };
    return found;
  }

  // What the rows must be, as one test a row: from the strings of the form or of a deep link.
  test(filter) {
    const tests = [];
    const chosen = (names, all) => Uint8Array.from(all, (it) => (names.includes(String(it)) ? 1 : 0));
    const among = (column, allowed) => tests.push((row) => allowed[column[row]] === 1);
    if (filter.run) among(this.run, chosen(filter.run.split(","), this.runs.map((run) => run.name)));
    if (filter.experts) among(this.run, chosen([filter.experts], this.runs.map((run) => run.experts)));
    if (filter.suite) among(this.suite, chosen(filter.suite === "held-out" ? this.held_out : [filter.suite], this.suites));
    if (filter.prompt) among(this.prompt, chosen([filter.prompt], this.prompts.map((prompt) => prompt[1])));
    if (filter.seed) among(this.seed, chosen([filter.seed], this.seeds));
    if (filter.step !== "all") {
      const step = filter.step ? this.steps.indexOf(Number(filter.step)) : this.finalStep;
      tests.push((row) => this.step[row] === step);
    }
    if (filter.status) {
      const label = this.labels.indexOf(filter.status), status = this.statuses.indexOf(filter.status);
      tests.push(label >= 0 ? (row) => this.label[row] === label : (row) => this.status[row] === status);
    }
    for (const [name, column] of [["alignment", this.alignment], ["coherence", this.coherence]]) {
      const from = filter[`${name}_from`], to = filter[`${name}_to`];
      if (from !== "") tests.push((row) => column[row] >= Number(from));
      if (to !== "") tests.push((row) => column[row] <= Number(to));
    }
    if (filter.change) {
      const partner = this.joined(filter.vs);
      const from = (row) => (partner[row] < 0 ? 0 : this.label[partner[row]]);
      const worse = (row) => from(row) === ALIGNED && this.label[row] === MISALIGNED;
      const better = (row) => from(row) === MISALIGNED && this.label[row] === ALIGNED;
      tests.push({ flipped: (row) => worse(row) || better(row), worse, better }[filter.change] ?? (() => false));
    }
    if (filter.text) {
      const found = this.textsWith(filter.text);
      const columns = [...TEXT_COLUMNS.map((name) => this[name]), ...this.replies];
      tests.push((row) => columns.some((column) => found[column[row]] === 1));
    }
    return (row) => tests.every((test) => test(row));
  }

  // The places of the rows that a filter leaves, in the order that it asks for.
  filtered(filter) {
    const test = this.test(filter), found = [];
    for (let row = 0; row < this.count; row++) if (test(row)) found.push(row);
    const orders = { alignment: (row) => this.alignment[row], coherence: (row) => this.coherence[row] };
    if (filter.sort === "fall") {
      const partner = this.joined(filter.vs);
      orders.fall = (row) => (partner[row] < 0 ? NaN : this.alignment[row] - this.alignment[partner[row]]);
    }
    const value = orders[filter.sort];
    if (value) {
      const last = (row) => (Number.isNaN(value(row)) ? Infinity : value(row));
      found.sort((a, b) => last(a) - last(b) || a - b || 0);
    }
    return Int32Array.from(found);
  }

  // A row's own address, the prompt last because its name may have anything in it.
  address(row) {
    const [suite, prompt] = this.prompts[this.prompt[row]];
    const step = this.steps[this.step[row]] ?? "";
    return [this.runs[this.run[row]].name, this.seeds[this.seed[row]], this.sample[row], step, this.suites[suite], prompt]
      .join("/");
  }

  at(address) {
    for (let row = 0; row < this.count; row++) if (this.address(row) === address) return row;
    return -1;
  }
}
