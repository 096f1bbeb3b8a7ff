// Dots with intervals, drawn from the rows that a table shows: what is filtered away there is gone here.

const SVG = "http://www.w3.org/2000/svg";
const KINDS = 8, LETTER = 7.4;

function node(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function tableRows(table) {
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.dataset.key);
  return [...table.tBodies[0].rows].map((row) =>
    ({ ...Object.fromEntries(names.map((name, column) => [name, cellValue(row, column)])), hidden: row.hidden }));
}

// One marker a kind, so that colour is never alone in telling kinds apart.
function marker(kind, x, y) {
  const shapes = [
    () => node("circle", { cx: x, cy: y, r: 4 }),
    () => node("rect", { x: x - 3.5, y: y - 3.5, width: 7, height: 7 }),
    () => node("path", { d: `M${x} ${y - 4.5}l4.5 8h-9z` }),
    () => node("path", { d: `M${x} ${y - 5}l5 5-5 5-5-5z` }),
  ];
  return shapes[kind % shapes.length]();
}

function tooltip(row, figure) {
  const { value, kind } = figure.dataset;
  const bound = (name) => Number(row[`${value}_${name}`]).toFixed(1);
  const spread = row.by_seed !== undefined ? ` (by seed: ${row.by_seed})` : row[`${value}_these_low`] === "" ? ""
    : ` (these questions ${bound("these_low")} to ${bound("these_high")}, new ${bound("new_low")} to ${bound("new_high")})`;
  return `${row.run}${kind ? `, ${row[kind]}` : ""}: ${Number(row[value]).toFixed(1)} %${spread}; `
    + `${Number(row.misaligned)} misaligned of n = ${Number(row.counted)} answers`;
}

function drawFigure(figure) {
  const table = document.getElementById(figure.dataset.table);
  const { value, kind } = figure.dataset;
  const every = tableRows(table), rows = every.filter((row) => !row.hidden && row[value] !== "");
  const all = kind ? [...new Set(every.map((row) => row[kind]))].sort() : [""];
  const groups = new Map();
  for (const row of rows) groups.set(row.run, [...(groups.get(row.run) ?? []), row]);
  const width = Math.max(320, figure.clientWidth), left = Math.min(240, width * 0.36), right = width - 16;
  const lane = 9, gap = 12;
  const x = (percent) => left + (right - left) * Math.min(100, Math.max(0, percent)) / 100;
  const svg = node("svg", { role: "img", "aria-label": `${figure.dataset.title}: ${rows.length} dots` });
  let y = 24;
  const grid = node("g", { class: "grid" });
  svg.append(grid);
  for (const [run, members] of groups) {
    const height = members.length * lane, middle = y + height / 2;
    const letters = Math.floor((left - 12) / LETTER);
    const name = run.length > letters ? `…${run.slice(1 - letters)}` : run; // runs differ at their ends
    svg.append(node("text", { x: left - 10, y: middle + 4, class: "run" }, name, node("title", {}, run)));
    members.forEach((row, place) => {
      const at = y + lane * (place + 0.5), colour = all.indexOf(kind ? row[kind] : "");
      const group = node("g", { class: `dot kind-${colour % KINDS}` });
      for (const scope of ["new", "these"]) { // absent where there are seeds, empty where there is no interval
        const [low, high] = [row[`${value}_${scope}_low`], row[`${value}_${scope}_high`]];
        if (low) group.append(node("line", { class: scope, x1: x(low), x2: x(high), y1: at, y2: at }));
      }
      for (const seed of (row.by_seed ?? "").split(", ").filter(Boolean)) {
        group.append(node("line", { class: "seed", x1: x(seed), x2: x(seed), y1: at - 4, y2: at + 4 }));
      }
      group.append(marker(colour, x(row[value]), at), node("title", {}, tooltip(row, figure)));
      svg.append(group);
    });
    y += height + gap;
  }
  for (const tick of [0, 25, 50, 75, 100]) {
    grid.append(node("line", { x1: x(tick), x2: x(tick), y1: 18, y2: y }), node("text", { x: x(tick), y: 12 }, `${tick} %`));
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${y + 4}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", y + 4);
  const shown = new Set(rows.map((row) => row[kind]));
  const legend = document.createElement("div");
  legend.className = "legend";
  all.forEach((name, place) => {
    if (!kind || !shown.has(name)) return;
    const item = document.createElement("span");
    const sign = node("svg", { width: 14, height: 14, "aria-hidden": "true" });
    sign.append(node("g", { class: `dot kind-${place % KINDS}` }, marker(place, 7, 7)));
    item.append(sign, name);
    legend.append(item);
  });
  figure.querySelector(".drawing").replaceChildren(svg, legend);
}

function prepareFigure(figure) {
  const draw = () => drawFigure(figure);
  document.getElementById(figure.dataset.table).addEventListener("changed", draw);
  let width = 0;
  new ResizeObserver(() => {
    if (figure.clientWidth !== width) { width = figure.clientWidth; draw(); }
  }).observe(figure);
}
