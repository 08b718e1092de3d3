// Charts, each drawn when it comes into view.

// Okabe and Ito's colours, told apart by colour-blind eyes.
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#f0e442"];
const PHASES = ["rollout", "reward_wait", "rank_wait", "old_logprobs", "update", "checkpoint", "load_weights"];

const charts = new Map();

/** The library reads a little markup in labels; of ours none is any. */
const label = (text) => visible(String(text)).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/** A figure whose traces come from `traces()`, drawn when first seen and at every `redraw`. */
function figure(host, caption, traces, layout = {}) {
  const plot = el("div", { class: "plot" });
  host.replaceChildren(el("figure", { role: "group", "aria-label": caption }, el("figcaption", {}, caption), plot));
  const chart = { plot, draw: () => drawNow(plot, traces, layout), seen: false };
  charts.set(host, chart);
  whenSeen.observe(plot);
  return chart;
}

const whenSeen = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((e) => e.isIntersecting)) {
    whenSeen.unobserve(entry.target);
    for (const chart of charts.values()) {
      if (chart.plot === entry.target) {
        chart.seen = true;
        chart.draw();
      }
    }
  }
}, { rootMargin: "150px" });

function drawNow(plot, traces, layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name));
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const base = {
    height: 250, margin: { l: 45, r: 10, t: 10, b: 35 }, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 11 }, showlegend: false,
    hovermode: "closest", legend: { orientation: "h", y: -0.2 },
  };
  const own = typeof layout === "function" ? layout() : layout;
  const merged = { ...base, ...own, xaxis: { ...axis, ...own.xaxis }, yaxis: { ...axis, ...own.yaxis } };
  Plotly.react(plot, traces(), merged, { responsive: true, displaylogo: false });
}

/** Draw again what has been drawn; `everything`: and what nobody has looked at. */
function redraw(everything = false) {
  for (const [host, chart] of charts) {
    if (!host.isConnected) charts.delete(host);
    else if (chart.seen || everything) chart.draw();
  }
}

/** Curves of a metric: a line for each run, a band for runs that differ in their seed alone. */
function curveTraces(runs, key, weight) {
  const traces = [];
  const families = new Map();
  for (const run of runs.filter((r) => key in r.metrics)) {
    families.set(run.family, [...(families.get(run.family) ?? []), run]);
  }
  for (const [family, members] of families) {
    const colour = PALETTE[family % PALETTE.length];
    traces.push(...(members.length > 1 ? bandTraces(members, key, weight, colour) : lineTraces(members[0], key, weight, colour)));
  }
  return traces;
}

function lineTraces(run, key, weight, colour) {
  const raw = run.metrics[key];
  const line = { type: "scatter", mode: run.steps.length > 1 ? "lines" : "markers", x: run.steps, connectgaps: true };
  const name = label(run.name);
  const traces = [{ ...line, y: raw, name, line: { color: colour, width: 1.5 }, opacity: weight > 0 ? 0.3 : 1 }];
  if (weight > 0) {
    traces.push({ ...line, y: smooth(raw, weight), name: `${name} (smoothed)`, line: { color: colour, width: 2 } });
  }
  return traces;
}

function bandTraces(members, key, weight, colour) {
  const of = band(members.map((run) => ({ steps: run.steps, values: run.metrics[key] })));
  const name = `${label(members[0].name)} and ${members.length - 1} more seeds`;
  const edge = { type: "scatter", mode: "lines", x: of.steps, line: { width: 0 }, hoverinfo: "skip" };
  const traces = [
    { ...edge, y: of.low },
    { ...edge, y: of.high, fill: "tonexty", fillcolor: `${colour}40` },
    { type: "scatter", mode: "lines", x: of.steps, y: of.mean, name: `${name}: mean`, line: { color: colour, width: 1.5 }, opacity: weight > 0 ? 0.4 : 1 },
  ];
  if (weight > 0) {
    traces.push({ type: "scatter", mode: "lines", x: of.steps, y: smooth(of.mean, weight), name: `${name}: mean (smoothed)`, line: { color: colour, width: 2 } });
  }
  return traces;
}

function sankeyTrace({ nodes, links }) {
  return [{
    type: "sankey", valueformat: ",.0f",
    node: { label: nodes, pad: 18, thickness: 14, color: nodes.map((_, i) => PALETTE[i % PALETTE.length]) },
    link: {
      source: links.map((l) => l.from), target: links.map((l) => l.to), value: links.map((l) => l.value),
      color: "rgba(128,128,128,0.35)",
    },
  }];
}

/** Share of choices that flipped, by layer and step. */
function flipTraces(run) {
  const layers = Object.keys(run.metrics).filter((key) => key.startsWith("router/flip_rate/layer_")).sort();
  return [{
    type: "heatmap", colorscale: "Cividis", x: run.steps, y: layers.map((key) => Number(key.split("_").at(-1))),
    z: layers.map((key) => run.metrics[key]), hovertemplate: "step %{x}, layer %{y}: %{z:.2%}<extra></extra>",
  }];
}

function loadTraces(run, step) {
  return [{
    type: "heatmap", colorscale: "Cividis", z: run.load[step] ?? [], zmin: 0,
    hovertemplate: "layer %{y}, expert %{x}: %{z:.2f} of an even share<extra></extra>",
  }];
}

function lengthTraces(run) {
  const { steps, edges, counts } = run.lengths;
  const middle = edges.slice(0, -1).map((edge, i) => Math.sqrt(edge * Math.max(edge, edges[i + 1] - 1)));
  const share = (of) => of.map((n) => n / Math.max(1, of.reduce((a, b) => a + b, 0)));
  const byStep = counts.map(share);
  const told = middle.map((_, i) => steps.map(() => `${edges[i]} to ${edges[i + 1] - 1} tokens`));
  return [
    {
      type: "heatmap", colorscale: "Cividis", x: steps, y: middle, customdata: told, name: "share",
      z: middle.map((_, i) => byStep.map((of) => of[i])), hovertemplate: "step %{x}, %{customdata}: %{z:.1%}<extra></extra>",
    },
    { type: "scatter", mode: "lines", name: "mean", x: run.steps, y: run.metrics["response_length/mean"] ?? [], line: { color: "#d55e00", width: 2 } },
  ];
}

function phaseTraces(run) {
  const keys = Object.keys(run.metrics).filter((key) => key.startsWith("timing_s/") && key !== "timing_s/step");
  const order = (key) => (PHASES.indexOf(key.slice(9)) + PHASES.length + 1) % (PHASES.length + 1);
  const bars = keys.sort((a, b) => order(a) - order(b)).map((key) => ({
    type: "bar", name: key.slice(9), x: run.steps, y: run.metrics[key], marker: { color: phaseColour(key.slice(9)) },
  }));
  const line = (key, name, dash) => ({
    type: "scatter", mode: "lines", name, x: run.steps, y: run.metrics[key], yaxis: "y2", line: { color: isDark() ? "#fff" : "#000", width: 1, dash },
  });
  return "sched/tail_idle_frac" in run.metrics ? [...bars, line("sched/tail_idle_frac", "tail idle (right)", "dot")] : bars;
}

const phaseColour = (name) => PALETTE[(PHASES.indexOf(name) + PALETTE.length) % PALETTE.length];

/** Who did what when in one step. */
function ganttTraces(run, step) {
  const ranks = run.phases[step] ?? [];
  const names = [...new Set(ranks.flatMap((r) => r.spans.map(([name]) => name)))].filter((name) => name !== "step");
  return names.map((name) => {
    const spans = ranks.flatMap((r) => r.spans.filter(([n]) => n === name).map(([, begin, end]) => [r.rank, begin, end]));
    return {
      type: "bar", orientation: "h", name: label(name), marker: { color: phaseColour(name) },
      y: spans.map(([rank]) => `rank ${rank}`), base: spans.map(([, begin]) => begin), x: spans.map(([, begin, end]) => end - begin),
      customdata: spans.map(([, begin, end]) => `${shown(begin)} to ${shown(end)} s`), hovertemplate: "%{y}: %{fullData.name}, %{customdata}<extra></extra>",
    };
  });
}
