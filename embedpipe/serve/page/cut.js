// The cut: a condition written by hand, sliders over numbers and checkboxes of categories, and what they keep.
import { byId, counted, later, make, makeSvg, say, visible } from "./dom.js";

const STEPS = 1000; // of a slider
const SHOWN = ["similarity", "width", "height", "caption_length"];
const FIXED = new Set(["key", "image_path", "caption", "url", "sha256", "src_shard", "src_index", "extra", "image_norm",
  "text_norm", "text_tokens_cut", "caption_words", "aspect_ratio", ...SHOWN]);
const MOST_CATEGORIES = 40; // a column with more is shown when it is asked for

const quoted = (name) => `"${name}"`;
const literal = (value) => (typeof value === "boolean" ? String(value) : `'${value.replaceAll("'", "''")}'`);

export class CutPanel {
  // changed(): called when the cut is another.
  constructor(changed) {
    this.changed = changed;
    this.soon = later(120, () => this.apply());
    byId("condition").addEventListener("submit", (event) => { event.preventDefault(); this.apply(); });
    byId("where").addEventListener("change", () => this.apply());
    byId("uncut").addEventListener("click", () => { this.clear(); this.apply(); });
    byId("more").addEventListener("change", () => this.addColumn());
    for (const id of ["sort", "descending", "saved"]) byId(id).addEventListener("change", () => this.apply());
  }

  async open(dataset) {
    this.dataset = dataset;
    const usable = dataset.columns.filter((it) => it.kind !== "other" && !it.name.includes('"'));
    const passed = usable.filter((it) => !FIXED.has(it.name)).slice(0, 8).map((it) => it.name);
    const names = new Set(usable.map((it) => it.name));
    this.columns = [...SHOWN.filter((name) => names.has(name)), ...passed];
    this.wanted = new Set();
    this.limits = new Map();
    byId("more").replaceChildren(make("option", { value: "" }, "…"), ...usable.map((it) => make("option", { value: it.name }, it.name)));
    const numbers = usable.filter((it) => it.kind === "number");
    byId("sort").replaceChildren(make("option", { value: "" }, "their order"), ...numbers.map((it) => make("option", { value: it.name }, it.name)));
    this.clear();
    this.drawn = new Map();
    byId("columns").replaceChildren();
    await this.refresh();
  }

  clear() {
    byId("where").value = "";
    byId("saved").value = "";
    this.limits = new Map();
    for (const { reset } of this.drawn?.values() ?? []) reset();
  }

  get sort() {
    return { sort: byId("sort").value || null, descending: byId("descending").checked };
  }

  get cut() {
    const written = byId("where").value.trim();
    const parts = [...this.limits.values()].filter(Boolean);
    const where = [...(written ? [parts.length ? `(${written})` : written] : []), ...parts].join(" and ");
    return { where, selection: byId("saved").value || null };
  }

  apply() {
    this.refresh();
    this.changed();
  }

  addColumn() {
    const name = byId("more").value;
    byId("more").value = "";
    if (!name) return;
    this.wanted.add(name);
    if (!this.columns.includes(name)) this.columns.push(name);
    this.refresh();
  }

  async refresh() {
    this.abort?.abort();
    this.abort = new AbortController();
    try {
      const found = await this.dataset.cut({ cut: this.cut, columns: this.columns, bins: 40 }, this.abort.signal);
      const unknown = found.unknown ? `, of ${counted(found.unknown)} not known` : "";
      say("counts", `${counted(found.kept)} of ${counted(found.rows)} kept, ${counted(found.dropped)} dropped${unknown}`);
      for (const column of found.columns) this.draw(column, found.rows);
    } catch (problem) {
      if (problem.name !== "AbortError") say("counts", problem.message, true);
    }
  }

  draw(column, rows) {
    if (!this.drawn.has(column.column)) {
      const asked = this.wanted.has(column.column);
      const empty = column.missing === rows || (column.kind === "number" && column.least === column.most);
      const many = column.kind === "category" && (column.distinct > MOST_CATEGORIES || column.distinct < 2);
      if (!asked && (empty || many)) {
        this.columns = this.columns.filter((name) => name !== column.column);
        return;
      }
      const made = column.kind === "number" ? this.slider(column) : this.facets(column);
      this.drawn.set(column.column, made);
      byId("columns").append(made.place);
    }
    this.drawn.get(column.column).update(column);
  }

  slider(column) {
    const { column: name, least, most } = column;
    const whole = Number.isInteger(least) && Number.isInteger(most) && this.dataset.columns.find((it) => it.name === name).type.startsWith("int");
    const at = (step) => {
      const value = least + ((most - least) * step) / STEPS;
      return whole ? Math.round(value) : value;
    };
    const shown = (value) => (whole ? counted(value) : Number(value.toPrecision(4)).toString());
    const range = (value, said) => make("input", { type: "range", min: 0, max: STEPS, value, "aria-label": `${name}: ${said}` });
    const low = range(0, "at least");
    const high = range(STEPS, "at most");
    const chart = makeSvg("svg", { role: "img", viewBox: "0 0 100 40", preserveAspectRatio: "none" });
    const ends = make("div", { class: "ends" });
    const moved = () => {
      const [from, to] = [Number(low.value), Number(high.value)];
      const parts = [];
      if (from > 0) parts.push(`${quoted(name)} >= ${number(at(from))}`);
      if (to < STEPS) parts.push(`${quoted(name)} <= ${number(at(to))}`);
      this.limits.set(name, parts.join(" and "));
      low.setAttribute("aria-valuetext", shown(at(from)));
      high.setAttribute("aria-valuetext", shown(at(to)));
      ends.replaceChildren(make("span", {}, shown(at(from))), make("span", {}, shown(at(to))));
    };
    for (const input of [low, high]) input.addEventListener("input", () => { moved(); this.soon(); });
    const place = make("fieldset", {}, make("legend", {}, visible(name)));
    if (least === null) place.append("no values");
    else { place.append(chart, low, high, ends); moved(); }
    return {
      place,
      reset: () => { low.value = 0; high.value = STEPS; if (least !== null) moved(); },
      update: (found) => least !== null && bars(chart, found),
    };
  }

  facets(column) {
    const name = column.column;
    const place = make("fieldset", {}, make("legend", {}, visible(name)));
    const lines = new Map();
    const ticked = () => {
      const values = [...lines.values()].filter((it) => it.box.checked).map((it) => literal(it.value));
      this.limits.set(name, values.length ? `${quoted(name)} in (${values.join(", ")})` : "");
    };
    for (const { value } of column.values) {
      const box = make("input", { type: "checkbox", onchange: () => { ticked(); this.soon(); } });
      const counts = make("small");
      lines.set(value, { box, counts, value });
      place.append(make("label", { class: "facet" }, box, make("span", { dir: "auto" }, visible(String(value)).slice(0, 200)), counts));
    }
    if (column.distinct > column.values.length) place.append(make("p", {}, `and ${counted(column.distinct - column.values.length)} more values`));
    return {
      place,
      reset: () => { for (const { box } of lines.values()) box.checked = false; ticked(); },
      update: (found) => {
        for (const it of found.values) lines.get(it.value).counts.textContent = `${counted(it.kept)} of ${counted(it.all)}`;
      },
    };
  }
}

// As the grammar of conditions takes it: a minus before a number is an operator, so both forms are fine.
const number = (value) => (Number.isInteger(value) ? value.toFixed(0) : String(value));

function bars(chart, found) {
  const tallest = Math.max(1, ...found.all);
  const wide = 100 / found.all.length;
  const bar = (kind, place, count) => makeSvg("rect", {
    class: kind, x: place * wide, y: 40 - (38 * count) / tallest, width: wide * 0.9, height: (38 * count) / tallest,
  });
  chart.replaceChildren(
    ...found.all.map((count, place) => bar("all", place, count)),
    ...found.kept.map((count, place) => bar("kept", place, count)),
  );
  const sum = (counts) => counts.reduce((a, b) => a + b, 0);
  chart.setAttribute("aria-label", `${found.column}: ${counted(sum(found.kept))} of ${counted(sum(found.all))} kept`);
}
