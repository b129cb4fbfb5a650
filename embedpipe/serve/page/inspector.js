// One row, whole: its picture, caption, metadata, place and neighbours.
import { byId, make, visible } from "./dom.js";

const SAME = 0.96; // the cosine from which a neighbour is called a near-duplicate

export class Inspector {
  constructor(events) {
    this.events = events;
    this.place = byId("inspector");
  }

  get open() {
    return !this.place.hidden;
  }

  close() {
    this.place.hidden = true;
    this.row = null;
  }

  async show(dataset, row, side) {
    this.row = row;
    this.place.hidden = false;
    byId("inspector-title").textContent = `Row ${row}`;
    const details = byId("details");
    details.replaceChildren("…");
    const found = await dataset.row(row);
    if (this.row !== row) return;
    const { caption, ...rest } = found.metadata;
    details.replaceChildren(this.actions(found));
    if (dataset.pictures) {
      const picture = make("img", { alt: caption ? visible(caption.slice(0, 200)) : `row ${row}`, src: dataset.picture(row, 1024) });
      picture.addEventListener("error", () => picture.replaceWith(make("p", {}, "no picture")));
      details.append(picture);
    }
    details.append(make("p", { class: "caption", dir: "auto", tabindex: 0, "aria-label": "Caption" }, visible(caption ?? "(no caption)")));
    details.append(make("h2", {}, "Neighbours"), this.neighbours(dataset, row, side));
    details.append(make("h2", {}, "Metadata"), table(rest), make("h2", {}, "Where it lies"), table(found.place));
    byId("inspector-title").focus();
  }

  actions(found) {
    const row = { row: found.row, key: found.metadata.key, caption: found.metadata.caption };
    const button = (text, deed) => make("button", { type: "button", onclick: () => this.events[deed](row) }, text);
    return make(
      "div", { class: "actions" }, button("More like this", "more"), button("Less like this", "less"),
      button("Select or not", "toggle"), button("Close", "close"),
    );
  }

  neighbours(dataset, row, side) {
    const place = make("div", { class: "near" }, "…");
    dataset.neighbours(row, side).then(({ rows }) => {
      place.replaceChildren(...rows.map((near) => {
        const said = `${near.score.toFixed(3)}${near.score >= SAME ? " near-duplicate" : ""}`;
        const button = make("button", {
          type: "button", "aria-label": `${said}: ${visible(near.caption ?? near.key).slice(0, 200)}`,
          onclick: () => this.events.open(near),
        });
        if (dataset.pictures) button.append(make("img", { alt: "", loading: "lazy", src: dataset.picture(near.row, 128) }));
        button.append(said);
        return button;
      }));
    }, (problem) => place.replaceChildren(problem.message));
    return place;
  }
}

function table(values) {
  const lines = Object.entries(values).map(([name, value]) => {
    const said = value === null ? "—" : typeof value === "object" ? JSON.stringify(value) : String(value);
    return make("tr", {}, make("th", { scope: "row" }, visible(name)), make("td", {}, make("div", { dir: "auto" }, visible(said))));
  });
  return make("table", {}, make("tbody", {}, ...lines));
}
