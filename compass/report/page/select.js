// Groups of rollouts, what passes a filter, and numbers for curves. Nothing here touches the page.

/** Rollouts lie by run, step, group and sample; a group is a stretch of them. */
function groupsOf(rollouts) {
  const groups = [];
  const n = rollouts.run.length;
  for (let first = 0, i = 1; i <= n; i++) {
    const same = i < n && ["run", "step", "group"].every((k) => rollouts[k][i] === rollouts[k][first]);
    if (!same) {
      groups.push(groupOf(rollouts, first, i));
      first = i;
    }
  }
  return groups;
}

function groupOf(rollouts, first, end) {
  const members = [...Array(end - first).keys()].map((i) => first + i);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const of = (key) => members.map((i) => rollouts[key][i]).filter((value) => value !== null);
  return {
    first, end,
    run: rollouts.run[first], step: rollouts.step[first], group: rollouts.group[first],
    prompt: rollouts.prompt[first], saved: rollouts.saved_by[first],
    verdict: of("verdict").length ? mean(of("verdict")) : null,
    reward: of("reward").length ? mean(of("reward")) : null,
    length: mean(of("tokens")),
  };
}

/** One of right, part, wrong, invalid. */
function judgement(verdict) {
  if (verdict === null) return "invalid";
  return verdict >= 1 ? "right" : verdict <= 0 ? "wrong" : "part";
}

/** Groups of which at least one rollout passes. An empty value of `wanted` asks for nothing.
 *  `haystack(i)`: all there is to read of rollout i, in small letters. */
function select(groups, rollouts, prompts, wanted, haystack) {
  const text = wanted.text.toLowerCase();
  const passes = (i) =>
    (!wanted.verdict || judgement(rollouts.verdict[i]) === wanted.verdict) &&
    (!wanted.finish || rollouts.finish_reason[i] === wanted.finish) &&
    (!text || haystack(i).includes(text));
  return groups.filter((group) => {
    if (wanted.run !== "" && group.run !== Number(wanted.run)) return false;
    if (wanted.saved && group.saved !== wanted.saved) return false;
    if (wanted.domain && prompts[group.prompt].domain !== wanted.domain) return false;
    if (wanted.step && group.step !== Number(wanted.step)) return false;
    for (let i = group.first; i < group.end; i++) if (passes(i)) return true;
    return false;
  });
}

/** By a key of the groups; nulls last either way, ties as they lie. */
function sorted(groups, key, descending) {
  const sign = descending ? -1 : 1;
  return [...groups].sort((a, b) => {
    if (a[key] === null || b[key] === null) return (a[key] === null) - (b[key] === null);
    const order = a[key] < b[key] ? -1 : a[key] > b[key] ? 1 : 0;
    return sign * order || a.first - b.first;
  });
}

/** Exponential moving average without the pull of its start; null where nothing was logged. */
function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** Lowest, mean and highest value of several runs at each step that any of them has. */
function band(curves) {
  const at = new Map();
  for (const { steps, values } of curves) {
    steps.forEach((step, i) => {
      if (values[i] !== null) at.set(step, [...(at.get(step) ?? []), values[i]]);
    });
  }
  const steps = [...at.keys()].sort((a, b) => a - b);
  const over = (f) => steps.map((step) => f(at.get(step)));
  return {
    steps,
    low: over((v) => Math.min(...v)),
    high: over((v) => Math.max(...v)),
    mean: over((v) => v.reduce((a, b) => a + b, 0) / v.length),
  };
}

/** What stays after each stage, from what each stage saved: flows of a Sankey diagram. */
function flowOf(saved, skipped) {
  const stages = ["base", "expand", "reshape", "residual"];
  const names = {
    base: "differ at once", expand: "saved by expansion", reshape: "saved by reshaping",
    residual: "trained by RL-ZVP", none: "train nothing",
  };
  const nodes = [], links = [];
  const node = (label) => nodes.push(label) - 1;
  let left = stages.reduce((sum, stage) => sum + (saved[stage] ?? 0), saved.none ?? 0);
  let from = node("rolled out");
  if (skipped > 0) {
    const drawn = node("drawn");
    links.push({ from: drawn, to: node("skipped by the pre-filter"), value: skipped });
    links.push({ from: drawn, to: from, value: left });
  }
  stages.forEach((stage, i) => {
    const value = saved[stage] ?? 0;
    if (value > 0) links.push({ from, to: node(names[stage]), value });
    left -= value;
    if (left <= 0) return;
    const last = i === stages.length - 1;
    const to = node(last ? names.none : "still flat");
    links.push({ from, to, value: left });
    from = to;
  });
  return { nodes, links };
}

/** Text in which nothing is invisible or turns what stands around it: controls become signs. */
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) =>
    c === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0)),
  ).replace(/[\u0080-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) =>
    `\u27e8U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`,
  );
}

/** A place that a link can name. */
function linkOf(rollouts, i, colour) {
  const place = ["run", "step", "group", "sample"].map((key) => rollouts[key][i]);
  return `#rollout=${place.join(".")}&colour=${colour}`;
}

/** The rollout and colouring that a link names; null for any other. */
function placeOf(hash, rollouts) {
  const found = /^#rollout=(\d+)\.(\d+)\.(\d+)\.(\d+)(?:&colour=([a-z ]+))?$/.exec(decodeURIComponent(hash));
  if (!found) return null;
  const keys = ["run", "step", "group", "sample"];
  const i = rollouts.run.findIndex((_, i) => keys.every((key, k) => rollouts[key][i] === Number(found[k + 1])));
  return i < 0 ? null : { rollout: i, colour: found[5] ?? null };
}
