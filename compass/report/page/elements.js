// Elements. Text only ever becomes text nodes: markup in it stays what was written.

/** An element with properties (`class`, `on...` listeners, attributes) and children. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null).map((c) => (typeof c === "number" ? String(c) : c)));
  return element;
}

const byId = (id) => document.getElementById(id);

/** A choice; `options` are [value, text]. */
function choice(properties, options, value) {
  const select = el("select", properties, ...options.map(([v, text]) => el("option", { value: v }, text)));
  select.value = value;
  return select;
}

/** A number for reading. */
function shown(value, digits = 3) {
  if (value === null || value === undefined) return "\u2013";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

const isDark = () => document.documentElement.dataset.theme === "dark";
