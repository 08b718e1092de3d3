// The page: what is on it, and what its controls do.

const DATA = JSON.parse(byId("data").textContent);
const BLOCKS = [...document.querySelectorAll("script.block")];
const inflated = new Map();
const FIRST_CURVES = [
  "reward/mean", "reward/verdict", "zv/frac_flat", "response_length/mean", "response_length/truncated_frac", "actor/entropy",
  "mismatch/k3_kl", "mismatch/logprob_abs_mean", "actor/pg_clipfrac", "actor/cut_grad_frac", "actor/grad_norm",
  "router/flip_rate", "router/max_violation", "reward/invalid", "perf/tokens_per_s", "sched/tail_idle_frac",
];

function main() {
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  addEventListener("beforeprint", () => redraw(true));
  showFindings();
  showCurves();
  showRun();
  showRollouts();
}

// ---- what is wrong

function showFindings() {
  const several = DATA.runs.length > 1;
  byId("findings").replaceChildren(...DATA.runs.flatMap((run) => [
    several ? el("h3", { class: "said" }, visible(run.name)) : null,
    ...run.findings.map((f) => el("p", { class: "finding" }, el("b", {}, f.rule), `: ${f.text} `, el("a", { href: "#curves", onclick: () => showCurve(f.metric) }, "its curve"))),
    run.findings.length ? null : el("p", { class: "fine" }, "Nothing that the rules know of."),
    ...run.missing.map((line) => el("p", { class: "missing said" }, `Missing: ${visible(line)}`)),
  ]).filter((child) => child !== null));
}

// ---- curves

const weight = () => Number(byId("smoothing").value);

function showCurves() {
  const keys = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.metrics)))].sort();
  const evaluated = keys.filter((key) => /^eval\/.*\/accuracy$/.test(key));
  [...evaluated, ...FIRST_CURVES.filter((key) => keys.includes(key))].forEach(addCurve);
  if (!keys.length) byId("curve-grid").replaceChildren(el("p", { class: "missing" }, "No step has been logged."));
  byId("metric").replaceChildren(el("option", { value: "" }, "\u2026"), ...keys.map((key) => el("option", { value: key }, visible(key))));
  byId("metric").addEventListener("change", (event) => showCurve(event.target.value));
  byId("log").addEventListener("change", () => redraw());
  byId("smoothing").addEventListener("input", () => {
    byId("smoothing-shown").value = weight() ? `moving average, weight ${weight()}; thin: as logged` : "off";
    redraw();
  });
}

function addCurve(key) {
  if (!key) return;
  const id = `curve ${key}`;
  if (!byId(id)) {
    const host = el("div", { id });
    byId("curve-grid").append(host);
    figure(host, visible(key), () => curveTraces(DATA.runs, key, weight()), () => ({
      yaxis: { type: byId("log").checked ? "log" : "linear" }, xaxis: { title: { text: "step" } }, hovermode: "x",
    }));
  }
}

function showCurve(key) {
  addCurve(key);
  byId(`curve ${key}`)?.scrollIntoView({ block: "nearest" });
}

// ---- what is of one run

const state = { run: 0, step: "" };

function showRun() {
  const runs = DATA.runs.map((run, i) => el("option", { value: i }, visible(run.name)));
  for (const select of document.querySelectorAll(".run-choice")) {
    select.replaceChildren(...runs.map((option) => option.cloneNode(true)));
    select.addEventListener("change", () => chooseRun(Number(select.value)));
  }
  for (const select of document.querySelectorAll(".step-choice")) {
    select.addEventListener("change", () => chooseStep(select.value));
  }
  byId("flow").addEventListener("change", showLedger);
  chooseRun(0);
}

function chooseRun(run) {
  state.run = run;
  const steps = Object.keys(DATA.runs[run].phases);
  for (const select of document.querySelectorAll(".run-choice")) select.value = run;
  for (const select of document.querySelectorAll(".step-choice")) {
    select.replaceChildren(...steps.map((step) => el("option", { value: step }, step)));
  }
  showLedger();
  showLengths();
  chooseStep(steps.at(-1) ?? "");
}

function chooseStep(step) {
  state.step = step;
  for (const select of document.querySelectorAll(".step-choice")) select.value = step;
  showRouter();
  showTime();
}

const nothing = (host, why) => byId(host).replaceChildren(el("p", { class: "missing" }, why));

function showLedger() {
  const run = DATA.runs[state.run];
  const ofGroups = Object.fromEntries(Object.entries(run.ledger).map(([stage, of]) => [stage, of.saved]));
  ofGroups.none = run.ledger.residual?.out ?? 0;
  const isTokens = byId("flow").value === "tokens";
  const flow = isTokens ? flowOf(run.savedTokens, 0) : flowOf(ofGroups, run.ledger.prefilter?.saved ?? 0);
  if (!flow.links.length) return nothing("ledger", "No account of the stages.");
  const what = isTokens ? "Tokens of groups, by what made the group train; steps on disk" : "Groups of all steps logged, through the stages";
  figure(byId("ledger"), what, () => sankeyTrace(flow), { height: 300 });
  byId("ledger").append(ledgerTable(run.ledger));
}

function ledgerTable(ledger) {
  const fields = ["in", "saved", "out", "tokens"];
  return el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "stage"), ...fields.map((field) => el("th", { scope: "col" }, field)))),
    el("tbody", {}, ...Object.entries(ledger).map(([stage, of]) => el("tr", {}, el("th", { scope: "row" }, stage), ...fields.map((field) => el("td", {}, of[field].toLocaleString("en")))))));
}

function showRouter() {
  const run = DATA.runs[state.run];
  const title = (x, y) => ({ xaxis: { title: { text: x } }, yaxis: { title: { text: y } } });
  if (!Object.keys(run.metrics).some((key) => key.startsWith("router/flip_rate/"))) nothing("flip-map", "No replayed routes.");
  else figure(byId("flip-map"), "Choices of experts that the live router would not make, by layer and step", () => flipTraces(run), title("step", "MoE layer"));
  if (!run.load[state.step]?.length) nothing("expert-load", "No recorded expert load.");
  else figure(byId("expert-load"), `Load of each expert in step ${state.step}, over an even share`, () => loadTraces(run, state.step), title("expert", "MoE layer"));
}

function showLengths() {
  const run = DATA.runs[state.run];
  if (!run.lengths.steps.length) return nothing("length-map", "No rollouts on disk.");
  figure(byId("length-map"), "Share of completions by length, and their mean, over steps", () => lengthTraces(run), {
    yaxis: { type: "log", title: { text: "tokens" } }, xaxis: { title: { text: "step" } },
  });
}

function showTime() {
  const run = DATA.runs[state.run];
  if (!("timing_s/step" in run.metrics)) nothing("phases", "No times logged.");
  else figure(byId("phases"), "Seconds of each phase on rank 0, and the share of slots idle at the tail", () => phaseTraces(run), {
    barmode: "stack", showlegend: true, height: 320, xaxis: { title: { text: "step" } }, yaxis: { title: { text: "seconds" } }, yaxis2: { overlaying: "y", side: "right", range: [0, 1] },
  });
  if (!run.phases[state.step]) nothing("gantt", "No ranks' times on disk.");
  else figure(byId("gantt"), `What each rank did in step ${state.step}, in seconds since its begin; between rank_wait and old_logprobs it packs`, () => ganttTraces(run, state.step), {
    barmode: "overlay", showlegend: true, height: 320, xaxis: { title: { text: "seconds" } },
  });
}

// ---- rollouts

/** Planes of a rollout; its block is inflated the first time. */
async function read(i) {
  const { perBlock } = DATA.codes, number = Math.floor(i / perBlock);
  if (!inflated.has(number)) inflated.set(number, inflate(BLOCKS[number].textContent));
  const first = number * perBlock, end = first + perBlock;
  return planesOf(await inflated.get(number), i - first, DATA.rollouts.tokens.slice(first, end), DATA.rollouts.bytes.slice(first, end));
}

const haystacks = [];

/** All there is to read of a rollout; completions once they have been inflated. */
function haystack(i) {
  if (haystacks[i] === undefined) {
    const r = DATA.rollouts, prompt = DATA.prompts[r.prompt[i]];
    haystacks[i] = [prompt.id, prompt.prompt, prompt.expected, r.answer[i], r.reason[i]].join("\n").toLowerCase();
  }
  return haystacks[i];
}

let completionsRead = null;

/** Let searches look into completions too. */
async function readCompletions(progress) {
  const decoder = new TextDecoder();
  for (let i = 0; i < DATA.rollouts.run.length; i++) {
    const planes = await read(i);
    haystacks[i] = `${haystack(i)}\n${decoder.decode(planes.text).toLowerCase()}`;
    if (i % 500 === 0) progress(i / DATA.rollouts.run.length);
  }
}

function showRollouts() {
  const r = DATA.rollouts, groups = groupsOf(r);
  byId("held").textContent = r.run.length
    ? `${r.run.length.toLocaleString("en")} rollouts of ${groups.length.toLocaleString("en")} groups${DATA.leftOut ? `; ${DATA.leftOut.toLocaleString("en")} more are on disk` : ""}. Numbers of tokens are rounded to 8 bits here, and exact on disk.`
    : "No rollouts on disk.";
  if (!r.run.length) return;
  const remember = (i, colour) => history.replaceState(null, "", linkOf(r, i, colour));
  const inspector = new Inspector(byId("inspector"), DATA, read, remember);
  const list = new VirtualList(byId("list"), rowOf, (group) => inspector.open(group));
  const refresh = makeFilters(groups, list);
  const follow = () => {
    const place = placeOf(location.hash, r);
    if (!place) return;
    const group = groups.find((g) => g.first <= place.rollout && place.rollout < g.end);
    if (place.colour in COLOURINGS) inspector.colour = place.colour;
    if (list.items.includes(group)) list.mark(list.items.indexOf(group));
    inspector.open(group, place.rollout).then(() => byId("rollouts").scrollIntoView());
  };
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => hotkey(event, list, inspector));
  refresh();
  follow();
}

function rowOf(group) {
  const prompt = DATA.prompts[group.prompt], r = DATA.rollouts;
  const marks = r.verdict.slice(group.first, group.end).map(mark).join("");
  return [
    DATA.runs.length > 1 ? el("span", {}, visible(DATA.runs[group.run].name)) : null,
    el("span", {}, `step ${group.step}`),
    el("span", { class: "marks" }, marks),
    el("span", {}, `${shown(group.reward, 2)} \u00b7 ${Math.round(group.length)} tok`),
    el("span", {}, group.saved),
    el("span", { class: "text" }, visible(`${prompt.id} ${prompt.prompt.slice(-120)}`).replaceAll("\n", " ")),
  ];
}

function makeFilters(groups, list) {
  const r = DATA.rollouts, several = DATA.runs.length > 1;
  const distinct = (values) => [...new Set(values)];
  const of = (name, id, options) => [name, choice({ id }, [["", "any"], ...options], "")];
  const same = (values) => values.map((value) => [value, visible(String(value))]);
  const selects = [
    several ? of("run", "f-run", DATA.runs.map((run, i) => [i, visible(run.name)])) : null,
    of("step", "f-step", same(distinct(r.step).sort((a, b) => a - b))),
    of("verdict", "f-verdict", same(["right", "part", "wrong", "invalid"])),
    of("group saved by", "f-saved", same(distinct(r.saved_by))),
    of("domain", "f-domain", same(distinct(DATA.prompts.map((p) => p.domain)))),
    of("end", "f-finish", same(distinct(r.finish_reason))),
  ].filter((item) => item !== null);
  const search = el("input", { id: "f-text", type: "search", placeholder: "prompt, answer, reason, completion" });
  const order = choice({ id: "f-order" }, [["first", "as written"], ["step", "step"], ["verdict", "mean verdict"], ["reward", "mean reward"], ["length", "mean length"]], "first");
  const down = el("input", { id: "f-down", type: "checkbox" });
  const value = (id) => byId(id)?.value ?? "";
  const refresh = () => {
    const wanted = { run: value("f-run"), step: value("f-step"), verdict: value("f-verdict"), saved: value("f-saved"), domain: value("f-domain"), finish: value("f-finish"), text: search.value };
    const found = sorted(select(groups, r, DATA.prompts, wanted, haystack), order.value, down.checked);
    list.show(found);
    byId("shown").textContent = `${found.length.toLocaleString("en")} groups shown`;
  };
  byId("filters").replaceChildren(
    el("label", {}, "search ", search),
    ...selects.map(([name, select]) => el("label", {}, `${name} `, select)),
    el("label", {}, "order ", order), el("label", {}, down, " descending"));
  search.addEventListener("focus", () => {
    completionsRead ??= readCompletions((share) => (byId("shown").textContent = `reading completions, ${Math.round(100 * share)} %`)).then(refresh);
  });
  byId("filters").addEventListener("input", refresh);
  return refresh;
}

function hotkey(event, list, inspector) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = {
    "/": () => byId("f-text").focus(), j: () => list.choose(list.at + 1), k: () => list.choose(list.at - 1),
    "[": () => inspector.step(-1), "]": () => inspector.step(1), c: () => inspector.nextColour(),
  }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

main();
document.documentElement.dataset.ready = "true";
