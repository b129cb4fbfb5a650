// The grid of rows: it grows as it is scrolled, and is walked through with the keyboard.
import { byId, make, visible } from "./dom.js";

export class Grid {
  // events: open(row), toggle(row), more(row), less(row): what is done with a card. chosen: the set of selected rows.
  constructor(events, chosen) {
    this.place = byId("grid");
    this.events = events;
    this.chosen = chosen;
    this.cards = [];
    this.turn = 0;
    this.at = 0;
    this.place.addEventListener("click", (event) => this.clicked(event));
    this.place.addEventListener("keydown", (event) => this.pressed(event));
    this.place.addEventListener("focusin", (event) => this.focused(event));
    this.watcher = new IntersectionObserver((seen) => seen.some((it) => it.isIntersecting) && this.grow(), { rootMargin: "800px", scrollMargin: "800px" });
    this.watcher.observe(byId("end"));
  }

  // next(offset, signal) → {rows, more}
  show(dataset, next) {
    this.abort?.abort();
    this.abort = new AbortController();
    this.dataset = dataset;
    this.next = next;
    this.turn += 1;
    this.cards = [];
    this.at = 0;
    this.more = true;
    this.growing = false;
    this.place.replaceChildren();
    byId("end").textContent = "";
    return this.grow();
  }

  async grow() {
    if (this.growing || !this.more || !this.next) return;
    this.growing = true;
    const turn = this.turn;
    byId("grid").setAttribute("aria-busy", "true");
    try {
      const page = await this.next(this.cards.length, this.abort.signal);
      if (turn !== this.turn) return;
      this.more = page.more && page.rows.length > 0;
      this.add(page.rows);
      if (!this.more) byId("end").textContent = this.cards.length ? "That is all." : "No row is left.";
    } catch (problem) {
      if (turn !== this.turn || problem.name === "AbortError") return;
      this.more = false;
      this.events.failed(problem);
    } finally {
      if (turn === this.turn) {
        this.growing = false;
        this.place.setAttribute("aria-busy", "false");
        // What was added may not fill the screen: the watcher tells of changes only.
        this.watcher.unobserve(byId("end"));
        this.watcher.observe(byId("end"));
      }
    }
  }

  add(rows) {
    for (const row of rows) {
      const card = this.card(row);
      this.cards.push({ row, card });
      this.place.append(card);
    }
    if (this.cards.length && this.at < this.cards.length) this.cards[this.at].card.tabIndex = 0;
  }

  card(row) {
    const frame = make("div", { class: "frame" });
    if (this.dataset.pictures) {
      const picture = make("img", { loading: "lazy", alt: "", src: this.dataset.picture(row.row, 256) });
      picture.addEventListener("error", () => frame.replaceChildren("no picture"));
      frame.append(picture);
    } else frame.append("no picture");
    const caption = make("p", { dir: "auto" }, visible(row.caption ?? row.key));
    if (row.cut) caption.append("…");
    const card = make("div", {
      class: "card", role: "option", tabindex: -1, "data-place": this.cards.length,
      "aria-selected": this.chosen.has(row.row), "aria-label": visible(row.caption || row.key).slice(0, 200),
    }, frame);
    if (row.score !== undefined) card.append(make("div", { class: "score" }, row.score.toFixed(3)));
    card.append(caption);
    return card;
  }

  repaint() {
    for (const { row, card } of this.cards) card.setAttribute("aria-selected", this.chosen.has(row.row));
  }

  focusAt(place) {
    if (!this.cards.length) return;
    const to = Math.max(0, Math.min(place, this.cards.length - 1));
    this.cards[to].card.focus();
    if (to >= this.cards.length - 2 * this.across()) this.grow();
  }

  // However the focus came to a card: keys act on that one.
  focused(event) {
    const card = event.target.closest(".card");
    if (!card) return;
    if (this.cards[this.at]) this.cards[this.at].card.tabIndex = -1;
    this.at = Number(card.dataset.place);
    card.tabIndex = 0;
  }

  across() {
    return getComputedStyle(this.place).gridTemplateColumns.split(" ").length;
  }

  clicked(event) {
    const card = event.target.closest(".card");
    if (!card) return;
    this.focusAt(Number(card.dataset.place));
    const { row } = this.cards[this.at];
    if (event.ctrlKey || event.metaKey || event.shiftKey) this.events.toggle(row);
    else this.events.open(row);
  }

  pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { row } = this.cards[this.at] ?? {};
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.across(), ArrowDown: this.across() };
    const deeds = { Enter: "open", " ": "toggle", m: "more", l: "less" };
    if (event.key in steps) this.focusAt(this.at + steps[event.key]);
    else if (event.key === "Home") this.focusAt(0);
    else if (event.key === "End") this.focusAt(this.cards.length - 1);
    else if (event.key in deeds && row) this.events[deeds[event.key]](row);
    else return;
    event.preventDefault();
  }
}
