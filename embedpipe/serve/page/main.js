// The page: one data set at a time, a query of terms, a cut, a grid, an inspector and a selection.
import { ask, DataSet } from "./api.js";
import { CutPanel } from "./cut.js";
import { byId, counted, make, say, visible } from "./dom.js";
import { Grid } from "./grid.js";
import { Inspector } from "./inspector.js";

const PAGE = 60;
const state = { datasets: [], dataset: null, terms: [], chosen: new Set(), kept: new Set() };

const deeds = {
  open: (row) => inspector.show(state.dataset, row.row, side()).catch(failed),
  close: () => { inspector.close(); grid.focusAt(grid.at); },
  toggle: (row) => {
    if (!state.chosen.delete(row.row)) state.chosen.add(row.row);
    choose();
  },
  more: (row) => add({ row: row.row, weight: 1 }, row.caption || row.key),
  less: (row) => add({ row: row.row, weight: -1 }, row.caption || row.key),
  failed: (problem) => failed(problem),
};
const grid = new Grid(deeds, state.chosen);
const inspector = new Inspector(deeds);
const panel = new CutPanel(() => show());

const side = () => byId("side").value;
const failed = (problem) => problem.name !== "AbortError" && say("status", problem.message, true);

function show() {
  const { dataset, terms } = state;
  const cut = panel.cut;
  const begun = performance.now();
  let first = true;
  const told = (page) => {
    if (!first) return page;
    first = false;
    const took = `${Math.round(performance.now() - begun)} ms`;
    say("status", terms.length ? `Nearest first (${took})` : `${counted(page.total)} rows (${took})`);
    return page;
  };
  if (!terms.length) {
    return grid.show(dataset, (offset, signal) => dataset.list({ cut, ...panel.sort, offset, limit: PAGE }, signal).then(told));
  }
  const wordy = terms.some((it) => it.term.text !== undefined || it.term.image !== undefined);
  say("status", wordy && !dataset.encoder.loaded ? "Loading the model, which takes a while the first time …" : "Searching …");
  const body = { terms: terms.map((it) => it.term), modality: side(), cut, limit: PAGE };
  return grid.show(dataset, (offset, signal) => dataset.search({ ...body, offset }, signal).then((page) => {
    if (wordy) dataset.encoder.loaded = true;
    return told(page);
  }));
}

function add(term, said, picture = null) {
  state.terms.push({ term, said, picture });
  drawTerms();
  return show();
}

function drawTerms() {
  byId("terms").replaceChildren(...state.terms.map((it, place) => {
    const sign = it.term.weight < 0 ? "less like" : "more like";
    const item = make("li", {});
    if (it.picture) item.append(make("img", { alt: "", src: it.picture }));
    item.append(
      make("span", { dir: "auto" }, visible(it.said).slice(0, 120)),
      make("button", { type: "button", "aria-label": `${sign}: turn it round`, onclick: () => { it.term.weight *= -1; drawTerms(); show(); } }, it.term.weight < 0 ? "−" : "+"),
      make("button", { type: "button", "aria-label": `Take away ${visible(it.said).slice(0, 60)}`, onclick: () => { state.terms.splice(place, 1); drawTerms(); show(); } }, "×"),
    );
    return item;
  }));
}

function searched(event) {
  event.preventDefault();
  const words = byId("words").value.trim();
  state.terms = state.terms.filter((it) => it.term.text === undefined && it.term.key === undefined);
  byId("words").select();
  if (!words) { drawTerms(); return show(); }
  const key = words.startsWith("key:") ? words.slice(4).trim() : null;
  return add(key === null ? { text: words, weight: 1 } : { key, weight: 1 }, words);
}

async function pictured(file) {
  if (!file || !file.type.startsWith("image/")) return;
  const url = await new Promise((done, wrong) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => wrong(reader.error);
    reader.readAsDataURL(file);
  });
  state.terms = state.terms.filter((it) => it.term.image === undefined);
  await add({ image: url, weight: 1 }, file.name || "a picture", URL.createObjectURL(file));
}

function choose() {
  byId("chosen").textContent = `${counted(state.chosen.size)} selected`;
  grid.repaint();
}

async function listSaved() {
  const { selections } = await state.dataset.selections();
  const rows = (it) => (it.rows === null ? "" : ` (${counted(it.rows)})`);
  byId("saved").replaceChildren(make("option", { value: "" }, "all rows"), ...selections.map((it) => make("option", { value: it.name }, it.name + rows(it))));
}

async function saved(event) {
  event.preventDefault();
  const whole = event.submitter?.value === "cut";
  const name = byId("name").value.trim();
  try {
    const rows = whole ? { cut: panel.cut } : { rows: [...state.chosen] };
    const found = await state.dataset.save({ name, replace: byId("replace").checked, ...rows });
    say("said", `Saved ${counted(found.rows)} rows as ${found.path}. Use it: embedpipe filter ${state.dataset.path} OUT --keys '${found.path}'`);
    if (!whole) for (const row of state.chosen) state.kept.add(row);
    const before = byId("saved").value;
    await listSaved();
    byId("saved").value = before;
  } catch (problem) {
    say("said", problem.message, true);
  }
}

async function openDataset(name) {
  state.dataset = state.datasets.find((it) => it.name === name);
  state.terms = [];
  state.chosen.clear();
  state.kept.clear();
  inspector.close();
  drawTerms();
  choose();
  const { dataset } = state;
  document.title = `${dataset.name} — embedpipe`;
  for (const option of byId("side").options) {
    option.disabled = !dataset.modalities.some((it) => it.name === option.value && it.searchable);
  }
  if (byId("side").selectedOptions[0]?.disabled) byId("side").value = [...byId("side").options].find((it) => !it.disabled)?.value ?? "image";
  byId("file").disabled = !dataset.encoder.usable;
  byId("words").placeholder = dataset.encoder.usable ? "Words, or key:000000012 — drop or paste a picture" : "key:000000012 (no model is loaded here)";
  await listSaved();
  await panel.open(dataset);
  await show();
}

function keyed(event) {
  const writing = event.target.closest("input:not([type=checkbox], [type=range]), select, textarea, dialog[open]");
  if (event.key === "Escape" && inspector.open && !writing) deeds.close();
  if (writing || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "/") byId("words").focus();
  else if (event.key === "s") byId("name").focus();
  else if (event.key === "?") byId("keys").showModal();
  else return;
  event.preventDefault();
}

function theme(choice) {
  if (choice) document.documentElement.dataset.theme = choice;
  try {
    if (choice) localStorage.setItem("theme", choice);
    else theme(localStorage.getItem("theme"));
  } catch { /* no storage: the system's choice */ }
}

function listen() {
  byId("search").addEventListener("submit", searched);
  byId("side").addEventListener("change", () => state.terms.length && show());
  byId("file").addEventListener("change", () => { pictured(byId("file").files[0]).catch(failed); byId("file").value = ""; });
  byId("dataset").addEventListener("change", () => openDataset(byId("dataset").value).catch(failed));
  byId("selection").addEventListener("submit", saved);
  byId("choose-shown").addEventListener("click", () => { for (const it of grid.cards) state.chosen.add(it.row.row); choose(); });
  byId("choose-none").addEventListener("click", () => { state.chosen.clear(); choose(); });
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    theme(dark ? "light" : "dark");
  });
  document.addEventListener("keydown", keyed);
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((it) => it.type.startsWith("image/"));
    if (file) { event.preventDefault(); pictured(file).catch(failed); }
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", name === "dragover");
      if (name === "drop") pictured(event.dataTransfer.files[0]).catch(failed);
    });
  }
  addEventListener("beforeunload", (event) => {
    if ([...state.chosen].some((row) => !state.kept.has(row))) event.preventDefault();
  });
}

theme(null);
listen();
try {
  state.datasets = (await ask("/api/datasets")).map((it) => new DataSet(it));
  byId("dataset").replaceChildren(...state.datasets.map((it) => make("option", { value: it.name }, it.name)));
  await openDataset(state.datasets[0].name);
} catch (problem) {
  failed(problem);
}
