// The page comes alive: tables and figures at once, the explorer after the first paint or when it is asked for.

let explorer = null;

function onKey(event) {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?" && !typing) {
    byId("keys").showModal();
  } else if (explorer && event.key === "/" && !typing) {
    event.preventDefault();
    byId("answers").scrollIntoView();
    const { text, prompt } = explorer.form.elements;
    (explorer.rows.answers ? text : prompt).focus();
  } else if (explorer && (event.key === "j" || event.key === "k") && !typing) {
    explorer.choose(explorer.chosen + (event.key === "j" ? 1 : -1));
  } else if (explorer && event.key === "Escape" && explorer.form.contains(event.target)) {
    explorer.list.focus();
  }
}

async function startExplorer() {
  byId("gate")?.remove();
  byId("explorer").hidden = false;
  byId("count").textContent = "Unpacking the answers …";
  try {
    explorer = new Explorer(new Rows(await unpack("rows")));
    (window.requestIdleCallback ?? setTimeout)(() => explorer.rows.lowercase());
  } catch (error) {
    byId("count").textContent = `The answers cannot be shown: ${error.message}. This page needs a browser of 2023 or later.`;
    throw error;
  }
}

document.querySelectorAll("table.sortable").forEach(prepareTable);
document.querySelectorAll("figure[data-table]").forEach(prepareFigure);
document.addEventListener("keydown", onKey);
byId("keys-button").addEventListener("click", () => byId("keys").showModal());
if (byId("gate")) byId("open-gate").addEventListener("click", startExplorer);
else requestAnimationFrame(() => setTimeout(startExplorer));
