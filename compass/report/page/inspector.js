// One group: its prompt, its rollouts side by side, and their tokens in colour.

const TOKENS_AT_ONCE = 2000;
const COLD = "0, 114, 178", WARM = "213, 94, 0";

/** What a token's colour says: `shade(values)` is [rgb, strength 0 to 1]. */
const COLOURINGS = {
  none: { shade: () => null, legend: [] },
  probability: {
    shade: (t) => [WARM, 1 - Math.exp(t.logprob)],
    legend: [[WARM, 0, "certain"], [WARM, 1, "unlikely"]],
  },
  entropy: {
    shade: (t) => [COLD, Math.min(1, t.entropy / 2)], trained: true,
    legend: [[COLD, 0, "0 nats"], [COLD, 1, "2 nats or more"]],
  },
  "entropy group": {
    shade: (t) => [COLD, t.uncertain], trained: true,
    legend: [[COLD, 1, "ESPO's uncertain group"], [COLD, 0, "the rest"]],
  },
  advantage: {
    shade: (t) => [t.advantage < 0 ? WARM : COLD, Math.min(1, Math.abs(t.advantage) / 2)], trained: true,
    legend: [[WARM, 1, "-2"], [COLD, 0, "0"], [COLD, 1, "+2"]],
  },
  gap: {
    shade: (t) => [t.gap < 0 ? WARM : COLD, t.gap === 0 ? 0 : Math.max(0, Math.log10(Math.abs(t.gap)) + 7) / 7], trained: true,
    legend: [[WARM, 1, "trainer finds it less likely"], [COLD, 1, "more likely"], [COLD, 0, "same within 1e-7 nats"]],
  },
  flips: {
    shade: (t) => [WARM, t.flips ? 0.4 + 0.6 * Math.min(1, t.flips / 4) : 0], trained: true,
    legend: [[WARM, 1, "routes flipped (underlined too)"], [WARM, 0, "as recorded"]],
  },
};

const paint = (rgb, strength) => `rgba(${rgb}, ${(0.55 * strength).toFixed(3)})`;

class Inspector {
  /** `read(i)`: a promise of the planes of rollout i; `moved(i, colour)`: it shows another one. */
  constructor(host, data, read, moved) {
    Object.assign(this, { host, data, read, moved, colour: "entropy", shown: [], group: null });
  }

  /** A group, with one of its rollouts, and beside it another where there is one. */
  async open(group, rollout = group.first, beside = null) {
    Object.assign(this, { group, rollout, beside });
    const wanted = [rollout, beside].filter((i) => i !== null);
    const planes = await Promise.all(wanted.map((i) => this.read(i)));
    if (this.rollout !== rollout || this.beside !== beside || this.group !== group) return;
    this.shown = wanted.map((i, k) => new TokenText(this.data, i, planes[k]));
    this.host.replaceChildren(this.head(), this.siblings(), this.controls(), el("div", { class: "side" }, ...this.shown.map((s) => this.side(s))));
    this.paint();
    this.moved(rollout, this.colour);
  }

  head() {
    const prompt = this.data.prompts[this.group.prompt];
    const title = `${this.data.runs[this.group.run].name}, step ${this.group.step}, prompt ${prompt.id}`;
    return el("div", {},
      el("h3", { class: "said" }, visible(title)),
      facts([["domain", prompt.domain], ["expected", prompt.expected], ["group", savedText(this.group.saved)]]),
      el("details", {}, el("summary", {}, "prompt"), el("div", { class: "said" }, visible(prompt.prompt))));
  }

  siblings() {
    const r = this.data.rollouts;
    const button = (i) => el("button", {
      type: "button", "aria-pressed": String(i === this.rollout), onclick: () => this.open(this.group, i, this.beside),
    }, `${mark(r.verdict[i])} ${r.sample[i]} \u00b7 ${shown(r.reward[i])} \u00b7 ${r.tokens[i]}${r.added[i] ? " +" : ""}`);
    const members = this.members();
    return el("div", { class: "siblings", role: "group", "aria-label": "Siblings: sample, reward, tokens" }, ...members.map(button));
  }

  controls() {
    const beside = choice({ id: "beside" }, [["", "nothing"], ...this.members().map((i) => [i, `sample ${this.data.rollouts.sample[i]}`])], this.beside ?? "");
    beside.addEventListener("change", () => this.open(this.group, this.rollout, beside.value === "" ? null : Number(beside.value)));
    const colour = choice({ id: "colour" }, Object.keys(COLOURINGS).map((name) => [name, name]), this.colour);
    colour.addEventListener("change", () => this.recolour(colour.value));
    this.legend = el("span", { class: "legend" });
    return el("p", { class: "controls" }, el("label", {}, "colour ", colour), el("label", {}, "beside it ", beside),
      el("a", { id: "link", href: linkOf(this.data.rollouts, this.rollout, this.colour) }, "link"), this.legend);
  }

  side(text) {
    const r = this.data.rollouts, i = text.rollout;
    const parts = r.parts[i].map(([name, value]) => `${name} ${shown(value)}`).join(", ");
    return el("article", { "aria-label": `sample ${r.sample[i]}` },
      facts([
        ["sample", `${r.sample[i]}${r.added[i] ? ", added by expansion" : ""}`],
        ["verdict", r.verdict[i] === null ? "invalid" : shown(r.verdict[i])],
        ["reward", `${shown(r.reward[i])}${r.shaped_reward[i] === r.reward[i] ? "" : `, shaped ${shown(r.shaped_reward[i])}`}`],
        ["advantage", `${shown(r.advantage[i])}${r.trained[i] ? `, minibatch ${r.minibatch[i]}` : ", not trained"}`],
        ["answer", r.answer[i]], ["reason", r.reason[i] || null], ["breakdown", parts || null],
        ["tokens", `${r.tokens[i]}, ${r.finish_reason[i]}`],
      ]), text.element, text.told);
  }

  recolour(name) {
    this.colour = name;
    this.paint();
    byId("link").setAttribute("href", linkOf(this.data.rollouts, this.rollout, name));
    this.moved(this.rollout, name);
  }

  paint() {
    byId("colour").value = this.colour;
    for (const text of this.shown) text.paint(this.colour);
    this.legend.replaceChildren(...COLOURINGS[this.colour].legend.map(([rgb, strength, says]) => {
      const swatch = el("i");
      swatch.style.background = paint(rgb, strength);
      return el("span", {}, swatch, says);
    }));
  }

  members() {
    return [...Array(this.group.end - this.group.first).keys()].map((k) => this.group.first + k);
  }

  /** The next sibling, or the one before. */
  step(by) {
    if (!this.group) return;
    const n = this.group.end - this.group.first;
    this.open(this.group, this.group.first + (this.rollout - this.group.first + by + n) % n, this.beside);
  }

  nextColour() {
    const names = Object.keys(COLOURINGS);
    if (this.group) this.recolour(names[(names.indexOf(this.colour) + 1) % names.length]);
  }
}

/** A completion as tokens; more of a long one come as it is scrolled. */
class TokenText {
  constructor(data, rollout, planes) {
    Object.assign(this, { data, rollout, planes, at: -1, colour: "none" });
    this.pieces = piecesOf(planes);
    this.element = el("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": `Completion of sample ${data.rollouts.sample[rollout]}` });
    this.told = el("div", { class: "told", "aria-live": "polite" });
    this.element.addEventListener("mouseover", (event) => this.tell([...this.element.children].indexOf(event.target)));
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("scroll", () => this.more());
    this.grow();
  }

  grow() {
    const from = this.element.childElementCount;
    const spans = this.pieces.slice(from, from + TOKENS_AT_ONCE).map((piece) => el("span", {}, visible(piece).replaceAll("\n", "\u21b5\n")));
    this.element.append(...spans);
    spans.forEach((span, k) => this.paintOne(span, from + k));
  }

  more() {
    const { scrollTop, clientHeight, scrollHeight } = this.element;
    if (scrollTop + clientHeight > scrollHeight - 400 && this.element.childElementCount < this.pieces.length) this.grow();
  }

  values(i) {
    const codes = this.data.codes, planes = this.planes;
    const of = Object.fromEntries(Object.entries(valueOf).map(([name, f]) => [name, f(planes[name][i], codes)]));
    return { ...of, flips: planes.flips[i], uncertain: planes.uncertain[i] };
  }

  paint(colour) {
    this.colour = colour;
    [...this.element.children].forEach((span, i) => this.paintOne(span, i));
  }

  paintOne(span, i) {
    const trained = this.data.rollouts.trained[this.rollout];
    const { shade, trained: asks } = COLOURINGS[this.colour];
    const is = asks && !trained ? null : shade(this.values(i));
    span.style.backgroundColor = is === null ? "" : paint(...is);
    span.classList.toggle("flipped", this.colour === "flips" && this.planes.flips[i] > 0);
  }

  tell(i) {
    if (i < 0 || i >= this.pieces.length) return;
    this.element.children[this.at]?.classList.remove("at");
    this.at = i;
    this.element.children[i].classList.add("at");
    const t = this.values(i);
    const trained = this.data.rollouts.trained[this.rollout]
      ? `, entropy ${shown(t.entropy, 2)}, advantage ${shown(t.advantage, 2)}, gap ${t.gap === 0 ? "below 1e-7" : shown(t.gap, 2)}, flips ${t.flips}`
      : ", not trained";
    this.told.textContent = `token ${i}: probability about ${shown(Math.exp(t.logprob), 2)}${trained}`;
  }

  key(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    this.tell(Math.min(this.element.childElementCount - 1, Math.max(0, this.at + by)));
    this.element.children[this.at]?.scrollIntoView({ block: "nearest" });
  }
}

const mark = (verdict) => ({ right: "\u2713", part: "\u25d0", wrong: "\u2717", invalid: "?" })[judgement(verdict)];

const savedText = (saved) => ({
  base: "its first rollouts differ", expand: "saved by expansion", reshape: "saved by reshaping",
  residual: "flat, trained by RL-ZVP", none: "flat, trains nothing",
})[saved] ?? saved;

function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined);
  return el("dl", { class: "facts" }, ...known.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { class: "said" }, visible(String(value)))]));
}
