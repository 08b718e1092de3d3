// A list of any length of which only what is in view exists.

const ROW_HEIGHT = 34;

class VirtualList {
  /** `row(item)`: children of a row; `open(item)`: it was chosen. */
  constructor(host, row, open) {
    Object.assign(this, { host, row, open, items: [], at: -1, rows: new Map() });
    this.space = el("div", { role: "presentation" });
    host.append(this.space);
    host.addEventListener("scroll", () => this.render());
    host.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.render()).observe(host);
  }

  show(items) {
    const chosen = this.items[this.at];
    this.items = items;
    this.at = items.indexOf(chosen);
    this.space.style.height = `${items.length * ROW_HEIGHT}px`;
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.host.scrollTop = Math.max(0, this.at) * ROW_HEIGHT;
    this.render();
  }

  render() {
    const first = Math.max(0, Math.floor(this.host.scrollTop / ROW_HEIGHT) - 4);
    const end = Math.min(this.items.length, first + Math.ceil(this.host.clientHeight / ROW_HEIGHT) + 8);
    for (const [i, row] of this.rows) {
      if (i < first || i >= end) {
        row.remove();
        this.rows.delete(i);
      }
    }
    for (let i = first; i < end; i++) if (!this.rows.has(i)) this.add(i);
  }

  add(i) {
    const row = el("div", {
      class: "row", role: "option", id: `row-${i}`, "aria-selected": String(i === this.at),
      "aria-setsize": this.items.length, "aria-posinset": i + 1, onclick: () => this.choose(i),
    }, ...this.row(this.items[i]));
    row.style.top = `${i * ROW_HEIGHT}px`;
    this.rows.set(i, row);
    this.host.append(row);
  }

  /** Mark a row and bring it into view. */
  mark(i) {
    this.rows.get(this.at)?.setAttribute("aria-selected", "false");
    this.at = i;
    const top = i * ROW_HEIGHT;
    if (top < this.host.scrollTop) this.host.scrollTop = top;
    if (top + ROW_HEIGHT > this.host.scrollTop + this.host.clientHeight) {
      this.host.scrollTop = top + ROW_HEIGHT - this.host.clientHeight;
    }
    this.render();
    this.rows.get(i)?.setAttribute("aria-selected", "true");
    this.host.setAttribute("aria-activedescendant", `row-${i}`);
  }

  choose(i) {
    if (!this.items.length) return;
    this.mark(Math.min(this.items.length - 1, Math.max(0, i)));
    this.open(this.items[this.at]);
  }

  key(event) {
    const page = Math.floor(this.host.clientHeight / ROW_HEIGHT);
    const to = {
      ArrowDown: this.at + 1, ArrowUp: this.at - 1, PageDown: this.at + page, PageUp: this.at - page,
      Home: 0, End: this.items.length - 1,
    }[event.key];
    if (to === undefined && event.key !== "Enter") return;
    event.preventDefault();
    if (event.key === "Enter") this.choose(this.at);
    else if (this.items.length) this.mark(Math.min(this.items.length - 1, Math.max(0, to)));
  }
}
