// What pages of reports have in common.

// Elements, with attributes and children; text is text only.
function make(name, attributes, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "rect", "g", "title", "polyline"].includes(name);
  const it = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) it.addEventListener(key.slice(2), value); else it.setAttribute(key, value);
  }
  return add(it, ...children);
}
// Adds the children that are there.
function add(it, ...children) {
  it.append(...children.filter(child => child !== null && child !== undefined));
  return it;
}
const color = stage => `var(--${stage}, var(--soft))`;
function time(ns) {
  if (ns === null || ns === undefined) return "n/a";
  if (ns < 0) return `−${time(-ns)}`;
  const units = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]];
  for (const [factor, unit] of units) if (ns >= factor) return `${Number((ns / factor).toPrecision(3))}\u00a0${unit}`;
  return `${ns < 10 && ns > 0 && ns % 1 ? ns.toFixed(1) : Math.round(ns)}\u00a0ns`;
}
// A number stays on the line of its unit.
const unbroken = text => text.replace(/(\d) (ns|µs|ms|s|%)(?![A-Za-z])/g, "$1\u00a0$2");
const wide = (...rows) => make("div", { class: "wide" }, make("table", {}, ...rows));
const grouped = n => Number(n).toLocaleString("en-GB");
const percent = (part, whole) => whole > 0 ? `${(part / whole * 100).toFixed(1)}\u00a0%` : "–";

// Powers of ten; where fewer than three of them fit, steps between them; at least both ends.
function ticks(from, to) {
  let all = [];
  for (const steps of [[1], [1, 2, 5], [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]]) {
    all = [];
    for (let power = Math.floor(Math.log10(from)); power <= Math.ceil(Math.log10(to)); power++) {
      all.push(...steps.map(step => Number((step * 10 ** power).toPrecision(3))).filter(value => value >= from && value <= to));
    }
    if (all.length > 2) break;
  }
  return all.length > 1 ? all : [...new Set([from, to])];
}
const caption = (x, y, text, anchor) => make("text", { x, y, "text-anchor": anchor || "end" }, text);
