"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const get = (id) => document.getElementById(id);
const make = (name, text) => Object.assign(document.createElement(name), { textContent: text });

// A number in about four digits; the exact one stands in the data.
function told(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en").replace("-", "−");
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(4));
  return text.replaceAll("-", "−");
}

// ---- enlarging, and stepping through a strip

const viewer = get("viewer");
const names = Object.keys(data.strips);
let strip = "", step = 0, opener = null;

function sources(name) {
  const found = {};
  for (const button of all("button.open[data-strip]")) {
    const image = button.dataset.strip === name && button.querySelector("img");
    if (image) found[place(name, +button.dataset.step)] = image;
  }
  return found;
}

const place = (name, at) => (at < 0 ? data.strips[name].steps.length - 1 : at);

function show() {
  const { name, steps } = data.strips[strip];
  const one = steps[step], image = sources(strip)[step];
  const big = get("viewer-image");
  big.src = image ? image.src : "";
  big.alt = one.prompt;
  big.classList.toggle("tiny", Boolean(image && image.closest(".tiny")));
  get("viewer-where").textContent = one.where || `iteration ${one.at} · ${name}`;
  get("viewer-prompt").textContent = one.prompt;
  get("viewer-scores").replaceChildren(...Object.entries(one.scores).map(([key, value]) => {
    const row = make("span", "");
    row.append(make("i", key), make("b", told(value)));
    return row;
  }));
  const slider = get("viewer-slider");
  slider.max = steps.length - 1;
  slider.value = step;
  slider.disabled = steps.length < 2;
  get("viewer-back").disabled = step === 0;
  get("viewer-on").disabled = step === steps.length - 1;
  get("viewer-up").disabled = get("viewer-down").disabled = names.length < 2;
  const link = get("viewer-link");
  link.hidden = !one.link;
  if (one.link) link.href = one.link;
}

function go(by) {
  const last = data.strips[strip].steps.length - 1;
  step = Math.min(last, Math.max(0, step + by));
  show();
}

function change(by) {
  const at = data.strips[strip].steps[step].at;
  strip = names[(names.indexOf(strip) + by + names.length) % names.length];
  const steps = data.strips[strip].steps;  // the nearest iteration that the other strip has
  step = steps.reduce((best, one, k) => (Math.abs(one.at - at) < Math.abs(steps[best].at - at) ? k : best), 0);
  show();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.open");
  if (!button || !data.strips[button.dataset.strip]) return;
  opener = button;
  strip = button.dataset.strip;
  step = place(strip, +button.dataset.step);
  show();
  viewer.showModal();
});
viewer.addEventListener("keydown", (event) => {
  const act = { ArrowLeft: () => go(-1), ArrowRight: () => go(1), ArrowUp: () => change(-1), ArrowDown: () => change(1),
    Home: () => go(-1e9), End: () => go(1e9) }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
viewer.addEventListener("close", () => opener && opener.focus());
get("viewer-back").addEventListener("click", () => go(-1));
get("viewer-on").addEventListener("click", () => go(1));
get("viewer-up").addEventListener("click", () => change(-1));
get("viewer-down").addEventListener("click", () => change(1));
get("viewer-close").addEventListener("click", () => viewer.close());
get("viewer-slider").addEventListener("input", (event) => { step = +event.target.value; show(); });

// ---- reading numbers off a chart

function reader(figure) {
  const chart = data.charts[figure.dataset.chart];
  if (!chart) return;
  const xs = [...new Set(chart.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const readout = figure.querySelector(".readout");
  let at = xs.length - 1;
  const drawings = all("svg.chart", figure);
  const visible = () => Math.max(0, drawings.findIndex((svg) => svg.getClientRects().length));

  function read(k) {
    at = Math.min(xs.length - 1, Math.max(0, k));
    const x = xs[at], which = visible(), [first, last, start, end] = chart.scale[which][0];
    const pixel = start + ((x - first) / (last - first)) * (end - start);
    all(".cursor", figure).forEach((mark) => mark.remove());
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "path");
    mark.setAttribute("class", "cursor");
    mark.setAttribute("d", `M${pixel} 6V${chart.scale[which][1][2]}`);
    drawings[which].append(mark);
    const words = [make("b", told(Math.floor(x)))];
    for (const line of chart.lines) {
      const k = line.x.indexOf(x);
      if (k < 0) continue;
      const name = chart.lines.length > 1 ? ` ${line.name} ` : " ";
      const span = line.low && line.low[k] !== null ? ` [${told(line.low[k])}, ${told(line.high[k])}]` : "";
      words.push(" ·", make("span", name), make("b", told(line.y[k])), span);
    }
    readout.replaceChildren(`${chart.axis} `, ...words);
  }

  function leave() {
    all(".cursor", figure).forEach((mark) => mark.remove());
    readout.replaceChildren();
  }

  figure.addEventListener("pointermove", (event) => {
    const which = visible(), box = drawings[which].getBoundingClientRect();
    const [first, last, start, end] = chart.scale[which][0];
    const wide = drawings[which].viewBox.baseVal.width;
    const x = first + (((event.clientX - box.left) / box.width) * wide - start) / (end - start) * (last - first);
    read(xs.reduce((best, value, k) => (Math.abs(value - x) < Math.abs(xs[best] - x) ? k : best), 0));
  });
  figure.addEventListener("pointerleave", leave);
  figure.addEventListener("blur", leave);
  figure.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    read(readout.textContent ? at + by : by < 0 ? 0 : xs.length - 1);
  });
}
all("figure[data-chart]").forEach(reader);

// ---- sorting a table, searching prompts, copying

function sorter(table) {
  const heads = all("thead th", table), body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numbers = button.dataset.kind === "number";
      const key = (row) => {
        const cell = row.cells[column];
        if (!numbers) return cell.textContent.trim().toLowerCase();
        const value = cell.querySelector("data");
        return value ? +value.value : NaN;
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (!numbers) return (down ? -1 : 1) * a.localeCompare(b, "en");
        if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);  // what has no number stands last either way
        return down ? b - a : a - b;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
all("table.sortable").forEach(sorter);

const search = get("search");
if (search) search.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const one of all("[data-prompt]")) {
    const text = one.dataset.prompt.toLowerCase();
    const wanted = words.every((word) => text.includes(word));
    one.classList.toggle("gone", !wanted);
    count += wanted && one.closest("#prompt-table") ? 1 : 0;
  }
  get("found").textContent = words.length ? `${count} prompt${count === 1 ? "" : "s"}` : "";
});

for (const button of all(".copier")) button.addEventListener("click", async () => {
  const text = button.parentElement.querySelector("pre").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
    button.textContent = "selected";
  }
});

// ---- while training runs: the page is read again when its server has something new

if (data.live) setInterval(async () => {
  try {
    const answer = await fetch("/state", { cache: "no-store" });
    const state = await answer.text();
    get("pulse").textContent = "live";
    if (answer.ok && state !== data.live && !viewer.open && !(search && search.value)) location.reload();
  } catch {
    get("pulse").textContent = "server has ended";
  }
}, 3000);
