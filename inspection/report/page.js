"use strict";
// Draws the report from the data in the page. All texts become text nodes: nothing of a dataset is read as HTML.

const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const MOST_ROWS = 300;
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");

const count = (n) => (n == null ? "–" : whole.format(Math.round(n)));
const real = (n) => (n == null ? "–" : Math.abs(n) >= 1e6 ? whole.format(Math.round(n)) : String(Number(n.toPrecision(6))));
const short = (n) => {
  if (n == null) return "–";
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (Math.abs(n) >= limit) return (n / (unit === "k" ? 1e3 : limit)).toPrecision(3) + " " + unit;
  return count(n);
};
const hoursOf = (h) => (h == null ? "unknown" : h >= 100 ? count(h) + " h" : h >= 1 ? h.toFixed(1) + " h" : (h * 60).toFixed(1) + " min");
const share = (part, all) => (all ? ((100 * part) / all).toFixed(1) + " %" : "–");
const sum = (values) => values.reduce((total, value) => total + value, 0);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes))
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value != null) made.setAttribute(key, value);
  made.append(...children.filter((child) => child != null).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

// A table of columns {title, of(row), number, id, sort}.
function table(columns, rows, { onselect, selected, heads } = {}) {
  const kind = (column) => (column.number ? "n" : column.id ? "id" : null);
  const head = element("tr", {}, ...columns.map((column, at) => element("th", { class: kind(column), scope: "col" }, heads ? heads(column, at) : column.title)));
  const body = rows.map((row) => {
    const cells = columns.map((column) => element("td", { class: kind(column), "data-column": column.title }, column.of(row)));
    const line = element("tr", {}, ...cells);
    if (onselect) {
      line.tabIndex = 0;
      line.setAttribute("aria-selected", String(row === selected));
      line.addEventListener("click", () => onselect(row));
      line.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), onselect(row)));
    }
    return line;
  });
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

const wide = (made) => element("div", { class: "wide" }, made);
function tile(name, value, more) {
  const what = value === "1" ? name.replace(/s$/, "") : name;
  return element("div", { class: "tile", "data-tile": name }, element("b", {}, value), element("span", {}, more ? `${what}, ${more}` : what));
}

async function unpacked() {
  const packed = Uint8Array.from(atob(byId("data").textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// --- plots -----------------------------------------------------------------------------------------------------

const views = new Map();
const made = new Map();

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["ink", "soft", "line", "kept", "dropped", "accent"].map((name) => [name, style.getPropertyValue("--" + name).trim()]));
}

function config() {
  const { ink, soft, line } = colours();
  const font = "system-ui, 'DejaVu Sans', sans-serif";
  return {
    background: "transparent", font,
    view: { stroke: null },
    axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 400, labelLimit: 140 },
    legend: { labelColor: ink, titleColor: soft, orient: "bottom", title: null, labelLimit: 220, symbolOpacity: 1, columns: narrow.matches ? 2 : 4 },
    title: { color: ink, anchor: "start", fontSize: 13, fontWeight: 600 },
  };
}

async function plot(id, spec) {
  made.set(id, spec);
  const figure = byId(id);
  if (views.has(id)) views.get(id).finalize();
  views.delete(id);
  figure.replaceChildren();
  const full = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", height: 240, autosize: { type: "fit-x", contains: "padding" }, ...spec(), config: config() };
  const drawn = await vegaEmbed(figure, full, { renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false } });
  if (made.get(id) !== spec) return drawn.finalize();
  views.set(id, drawn);
  follow();
}

// The slider may have moved while a plot was drawn.
function follow() {
  signal("plot-curve", "at", stop / data.steps);
  if (chosen) for (const id of ["plot-returns", "plot-distribution"]) signal(id, "limit", limitOf(chosen));
}

function forget(id) {
  if (views.has(id)) views.get(id).finalize();
  views.delete(id);
  made.delete(id);
}

function signal(id, name, value) {
  const drawn = views.get(id);
  if (drawn) drawn.view.signal(name, value).runAsync();
}

const verdicts = () => ({ domain: ["kept", "dropped"], range: [colours().kept, colours().dropped] });
const KINDS = ["text", "image", "discrete", "continuous", "separator", "discrete action", "continuous action"];
const PALETTE = ["#4c78a8", "#72b7b2", "#eeca3b", "#f58518", "#8a8f99", "#b279a2", "#e45756"];
const legendColours = (names) => ({ domain: names, range: names.map((_, at) => PALETTE[at % PALETTE.length]) });

// --- the report ------------------------------------------------------------------------------------------------

const data = await unpacked();
for (const task of data.tasks)
  for (const [name, differences] of Object.entries(task.stops ?? {})) {
    let total = 0;
    task.stops[name] = differences.map((difference) => (total += difference));
  }
const withEpisodes = data.datasets.map((dataset, at) => at).filter((at) => !data.datasets[at].holds_documents);
const tasksOf = data.datasets.map((_, at) => data.tasks.filter((task) => task.dataset === at));
const isScan = data.content === "scan";

let stop = data.start;
let chosen = null;
let order = { column: null, down: true };
let showAll = false;

// What a stop keeps of some tasks of a dataset. Tokens of rows that are not stored are estimated from their steps.
function keptAt(tasks, at, hz) {
  const of = (name) => sum(tasks.map((task) => task.stops?.[name][at] ?? 0));
  const guessed = tasks.filter((task) => task.stops?.unstored_steps[at]);
  const unknown = guessed.filter((task) => task.tokens_a_step == null).length;
  const estimated = sum(guessed.map((task) => task.stops.unstored_steps[at] * (task.tokens_a_step ?? 0)));
  const steps = of("steps");
  return { episodes: of("episodes"), steps, tokens: of("tokens") + estimated, estimated, unknown, hours: hz ? steps / hz / 3600 : null };
}

const tokensText = (now) => (now.unknown && !now.tokens ? "unknown" : now.estimated ? "≈ " + short(now.tokens) : count(now.tokens));

function drawOverview() {
  const kept = sum(data.datasets.map((item) => item.kept)), found = sum(data.datasets.map((item) => item.found));
  byId("title").textContent = data.card.title;
  byId("summary").textContent = data.card.summary;
  document.title = `${data.card.title}: a finished ${data.content}`;
  const tokens = isScan ? null : sum(data.datasets.map((item) => item.tokens ?? 0));
  byId("tiles").replaceChildren(
    tile("datasets", count(data.datasets.length)),
    tile("tasks", count(data.tasks.length)),
    tile("kept", count(kept), share(kept, found)),
    tile("dropped", count(found - kept)),
    tile("tokens", tokens == null ? "–" : short(tokens), isScan ? "a scan stores none" : null),
  );
  const known = data.datasets.some((item) => item.hz);
  const rows = table(
    [
      { title: "dataset", of: (item) => item.name },
      { title: "kind", of: (item) => item.kind.replaceAll("_", " ") },
      { title: "found", number: true, of: (item) => count(item.found) },
      { title: "kept", number: true, of: (item) => count(item.kept) },
      { title: "dropped", number: true, of: (item) => count(item.found - item.kept) },
      { title: "tokens", number: true, of: (item) => count(item.tokens) },
      ...(known ? [{ title: "hours", number: true, of: (item) => (item.hz ? hoursOf(sum(tasksOf[data.datasets.indexOf(item)].map((task) => task.steps)) / item.hz / 3600) : "–") }] : []),
      { title: "weight", number: true, of: (item) => real(item.weight) },
    ],
    data.datasets,
  );
  const notes = data.datasets.flatMap((item) => item.notes.map((note) => element("p", { class: "note" }, `${item.name}: ${note}`)));
  byId("datasets").replaceChildren(wide(rows), ...notes);
}

function drawThreshold() {
  const input = byId("stop");
  input.max = String(data.steps);
  input.value = String(stop);
  input.addEventListener("input", () => moveTo(Number(input.value)));
  plot("plot-curve", () => ({
    title: "share kept at each threshold",
    params: [{ name: "at", value: stop / data.steps }],
    layer: [
      {
        data: { values: withEpisodes.flatMap((at) => Array.from({ length: data.steps + 1 }, (_, k) => ({ F: k / data.steps, share: data.datasets[at].found ? keptAt(tasksOf[at], k).episodes / data.datasets[at].found : 0, dataset: data.datasets[at].name }))) },
        mark: { type: "line", interpolate: "step-after", strokeWidth: 2 },
        encoding: {
          x: { field: "F", type: "quantitative", scale: { domain: [0, 1] }, title: "F, of the expert return" },
          y: { field: "share", type: "quantitative", scale: { domain: [0, 1] }, axis: { format: ".0%" }, title: null },
          color: { field: "dataset", type: "nominal", scale: legendColours(withEpisodes.map((at) => data.datasets[at].name)) },
        },
      },
      { data: { values: [{}] }, transform: [{ calculate: "at", as: "F" }], mark: { type: "rule", strokeDash: [4, 3], color: colours().ink }, encoding: { x: { field: "F", type: "quantitative" } } },
    ],
  }));
}

function moveTo(next) {
  stop = next;
  const f = stop / data.steps;
  byId("fraction").textContent = f.toFixed(3);
  const lines = withEpisodes.map((at) => ({ dataset: data.datasets[at], now: keptAt(tasksOf[at], stop, data.datasets[at].hz) }));
  const total = { episodes: sum(lines.map((line) => line.now.episodes)), tokens: sum(lines.map((line) => line.now.tokens)), estimated: sum(lines.map((line) => line.now.estimated)), unknown: sum(lines.map((line) => line.now.unknown)) };
  const found = sum(lines.map((line) => line.dataset.found)), kept = sum(lines.map((line) => line.dataset.kept));
  const timed = lines.filter((line) => line.now.hours != null);
  const difference = total.episodes - kept;
  byId("then").replaceChildren(
    tile("kept at F", count(total.episodes), difference ? `${difference > 0 ? "+" : ""}${count(difference)}` : "as now"),
    tile("dropped at F", count(found - total.episodes), share(found - total.episodes, found)),
    tile("tokens at F", tokensText(total)),
    tile("hours at F", timed.length ? hoursOf(sum(timed.map((line) => line.now.hours))) : "unknown", timed.length && timed.length < lines.length ? `of ${timed.length} of ${lines.length} datasets` : null),
  );
  byId("then-datasets").replaceChildren(wide(table(
    [
      { title: "dataset", of: (line) => line.dataset.name },
      { title: "kept", number: true, of: (line) => count(line.dataset.kept) },
      { title: "kept at F", number: true, of: (line) => count(line.now.episodes) },
      { title: "dropped at F", number: true, of: (line) => count(line.dataset.found - line.now.episodes) },
      { title: "tokens", number: true, of: (line) => count(line.dataset.tokens) },
      { title: "tokens at F", number: true, of: (line) => tokensText(line.now) },
      { title: "hours at F", number: true, of: (line) => hoursOf(line.now.hours) },
    ],
    lines,
  )));
  const notes = [];
  if (total.estimated) notes.push(`≈ estimated: ${short(total.estimated)} of the tokens are of episodes that are not stored, from their steps.`);
  if (total.unknown) notes.push(`Tokens of ${count(total.unknown)} tasks are left out: they have text and nothing of them is stored.`);
  if (lines.length < data.datasets.length) notes.push("Documents have no threshold and are not counted here.");
  byId("estimate").textContent = notes.join(" ");
  follow();
  for (const cell of document.querySelectorAll("#task-table td[data-column='kept at F']")) cell.textContent = count(cell.closest("tr").task?.stops?.episodes[stop]);
  if (chosen) {
    const place = byId("task-at");
    if (place) place.textContent = atText(chosen);
  }
}

function limitOf(task) {
  const f = stop / data.steps, expert = task.expert_return;
  if (expert == null || !task.stops) return null;
  return task.random == null ? expert - (1 - f) * Math.abs(expert) : task.random + f * (expert - task.random);
}

const atText = (task) => (task.stops ? `At F = ${(stop / data.steps).toFixed(3)}, returns from ${real(limitOf(task))} on: ${count(task.stops.episodes[stop])} kept, ${count(task.found - task.stops.episodes[stop])} dropped.` : "No threshold can be worked out.");

const TASK_COLUMNS = [
  { title: "dataset", of: (task) => data.datasets[task.dataset].name, value: (task) => data.datasets[task.dataset].name },
  { title: "task", of: (task) => task.name, value: (task) => task.name },
  { title: "found", number: true, of: (task) => count(task.found), value: (task) => task.found },
  { title: "kept", number: true, of: (task) => count(task.kept), value: (task) => task.kept },
  { title: "kept at F", number: true, of: (task) => count(task.stops?.episodes[stop]), value: (task) => task.stops?.episodes[stop] ?? -1 },
  { title: "expert return", number: true, of: (task) => real(task.expert_return), value: (task) => task.expert_return ?? -Infinity },
  { title: "threshold", number: true, of: (task) => real(task.threshold), value: (task) => task.threshold ?? -Infinity },
  { title: "steps kept", number: true, of: (task) => count(task.steps), value: (task) => task.steps },
  { title: "tokens", number: true, of: (task) => count(task.tokens), value: (task) => task.tokens ?? -1 },
];

function drawTasks() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let rows = data.tasks.filter((task) => words.every((word) => `${data.datasets[task.dataset].name}/${task.name}`.toLowerCase().includes(word)));
  if (order.column != null) {
    const { value } = TASK_COLUMNS[order.column];
    const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
    rows = [...rows].sort((a, b) => (order.down ? -1 : 1) * compare(a, b));
  }
  const shown = showAll ? rows : rows.slice(0, MOST_ROWS);
  const scroll = byId("task-table").scrollTop;
  const heads = (column, at) => element("button", { type: "button", onclick: () => { order = { column: at, down: order.column === at ? !order.down : !!column.number }; drawTasks(); } }, column.title + (order.column === at ? (order.down ? " ▾" : " ▴") : ""));
  const drawn = table(TASK_COLUMNS, shown, { onselect: choose, selected: chosen, heads });
  drawn.querySelectorAll("tbody tr").forEach((line, at) => { line.task = shown[at]; });
  const more = shown.length < rows.length ? element("p", {}, element("button", { type: "button", onclick: () => { showAll = true; drawTasks(); } }, `show all ${count(rows.length)}`)) : null;
  byId("task-table").replaceChildren(drawn, ...(more ? [more] : []));
  byId("task-table").scrollTop = scroll;
  byId("found").textContent = rows.length === data.tasks.length ? `${count(rows.length)} tasks` : `${count(rows.length)} of ${count(data.tasks.length)} tasks`;
}

function choose(task) {
  chosen = task;
  for (const line of document.querySelectorAll("#task-table tbody tr")) line.setAttribute("aria-selected", String(line.task === task));
  for (const id of ["plot-returns", "plot-distribution", "plot-lengths"]) forget(id);
  const figures = ["plot-returns", "plot-distribution", "plot-lengths"].map((id) => element("figure", { id }));
  const reasons = task.reasons.map(([reason, lost]) => `${count(lost)} ${reason ?? "unknown"}`).join(", ");
  const about = `${count(task.kept)} of ${count(task.found)} kept${reasons ? "; dropped: " + reasons : ""}. Expert return ${real(task.expert_return)}, threshold ${task.threshold == null ? "none" : real(task.threshold)}.`;
  byId("task").replaceChildren(
    element("h3", { id: "task-name" }, `${data.datasets[task.dataset].name} / ${task.name}`),
    element("p", {}, about),
    element("p", { id: "task-at" }, atText(task)),
    element("div", { class: "plots" }, ...figures),
    element("div", { id: "films" }, ...task.films.map(drawFilm)),
  );
  if (!task.points) {
    byId("task").append(element("p", { class: "note" }, task.sound ? "Returns are drawn of the largest tasks only." : "No episode of this task has a return."));
  } else {
    plot("plot-returns", () => returnsPlot(task));
    plot("plot-distribution", () => distributionPlot(task));
  }
  if (task.lengths && task.lengths.edges.length === 2 && task.lengths.edges[1] - task.lengths.edges[0] === 1)
    byId("films").before(element("p", { class: "note" }, `Every episode has ${count(task.lengths.edges[0])} steps with an action.`));
  else if (task.lengths) plot("plot-lengths", () => lengthsPlot(task));
}

const OVER_TIME = ["kept", "dropped", "moving average", "expert return", "threshold", "at F"];
const OVER_RETURNS = OVER_TIME.filter((name) => name !== "moving average");

function lineColours(names) {
  const { kept, dropped, ink, soft } = colours();
  const all = { kept, dropped, "moving average": ink, "expert return": "#8f6bb3", threshold: soft, "at F": "#d64550" };
  return { domain: names, range: names.map((name) => all[name]) };
}

function rules(task, axis, names) {
  const fixed = [["expert return", task.expert_return], ["threshold", task.threshold]].filter(([, value]) => value != null).map(([what, value]) => ({ what, value }));
  const colour = { color: { field: "what", type: "nominal", scale: lineColours(names) } };
  const at = { field: "value", type: "quantitative" };
  return [
    { data: { values: fixed }, mark: { type: "rule", strokeWidth: 1.5 }, encoding: { [axis]: at, ...colour } },
    { data: { values: [{ what: "at F" }] }, transform: [{ calculate: "limit", as: "value" }, { filter: "isValid(datum.value)" }], mark: { type: "rule", strokeWidth: 1.5, strokeDash: [5, 3] }, encoding: { [axis]: at, ...colour } },
  ];
}

function returnsPlot(task) {
  const { points, curves } = task;
  const values = points.place.map((place, at) => ({ place, value: points.value[at], what: points.kept[at] ? "kept" : "dropped", agent: points.agents[points.agent[at]] || "–" }));
  const means = curves.flatMap((curve) => curve.place.map((place, at) => ({ place, value: curve.mean[at], agent: curve.agent || "–", what: "moving average", window: curve.window })));
  const x = { field: "place", type: "quantitative", title: task.agents > 1 ? "episode in the order of its agent" : "episode in collection order", axis: { tickMinStep: 1, format: ",d" } };
  const y = { field: "value", type: "quantitative", title: null, scale: { zero: false } };
  const colour = { field: "what", type: "nominal", scale: lineColours(OVER_TIME) };
  const some = values.length < task.sound ? ` (${count(values.length)} of ${count(task.sound)} episodes)` : "";
  return {
    title: "returns in collection order" + some,
    params: [{ name: "limit", value: limitOf(task) }],
    layer: [
      { data: { values: means }, mark: { type: "line", strokeWidth: 1.5 }, encoding: { x, y, color: colour, detail: { field: "agent" }, tooltip: [{ field: "value", title: "mean" }, { field: "window" }, { field: "agent" }] } },
      { data: { values }, mark: { type: "point", filled: true, size: 28, opacity: 0.7 }, encoding: { x, y, color: colour, tooltip: [{ field: "value", title: "return" }, { field: "what", title: "verdict" }, { field: "agent" }, { field: "place", title: "episode" }] } },
      ...rules(task, "y", OVER_TIME),
    ],
  };
}

function binsPlot(bins, title) {
  const values = [];
  bins.kept.forEach((kept, at) => {
    for (const [what, n] of [["kept", kept], ["dropped", bins.dropped[at]]]) if (n) values.push({ low: bins.edges[at], high: bins.edges[at + 1], n, what });
  });
  return {
    data: { values },
    mark: { type: "bar", binSpacing: 1 },
    encoding: {
      x: { field: "low", bin: { binned: true }, type: "quantitative", title },
      x2: { field: "high" },
      y: { field: "n", type: "quantitative", stack: true, title: "episodes", axis: { tickMinStep: 1 } },
      color: { field: "what", type: "nominal", scale: verdicts() },
      order: { field: "what", sort: "descending" },
      tooltip: [{ field: "low", title: "from" }, { field: "high", title: "to" }, { field: "what", title: "verdict" }, { field: "n", title: "episodes" }],
    },
  };
}

function lengthsPlot(task) {
  const drawn = binsPlot(task.lengths, "steps with an action");
  drawn.encoding.x.axis = { format: ",d", tickMinStep: 1 };
  return { ...drawn, title: "lengths of episodes" };
}

function distributionPlot(task) {
  const { data: own, mark, encoding } = binsPlot(task.returns, "return");
  return {
    title: "distribution of returns",
    params: [{ name: "limit", value: limitOf(task) }],
    layer: [{ data: own, mark, encoding: { ...encoding, color: { ...encoding.color, scale: lineColours(OVER_RETURNS) } } }, ...rules(task, "x", OVER_RETURNS)],
  };
}

function drawFilm(film) {
  const about = [film.agent ? `agent ${film.agent}` : null, `${count(film.steps)} step${film.steps === 1 ? "" : "s"}`, `${count(film.tokens)} tokens`, `return ${real(film.episode_return)}`, film.split === "held_out" ? "held out" : null];
  const frames = film.frames.map((frame) =>
    element("div", { class: "frame" },
      ...Object.entries(frame.images).filter(([, url]) => url).map(([name, url]) => element("img", { src: url, alt: `${name}, step ${frame.step}` })),
      element("p", { class: "soft" }, `step ${frame.step}`, frame.flags.length ? ` (${frame.flags.join(", ")})` : ""),
      ...Object.entries(frame.texts).map(([name, text]) => element("p", {}, `${name}: ${text}`)),
      ...Object.entries(frame.action).map(([name, value]) => element("p", {}, `${name} ${value}`)),
      element("p", {}, `reward ${real(frame.reward)}`),
      ...Object.entries(frame.values).map(([name, value]) => element("p", { class: "soft" }, `${name} ${value}`)),
    ));
  const tokens = table(
    [
      { title: "token", number: true, of: (token) => count(token.at) },
      { title: "id", number: true, of: (token) => String(token.id) },
      { title: "kind", of: (token) => token.kind },
      { title: "position", number: true, of: (token) => (token.position == null ? "–" : String(token.position)) },
      { title: "field", of: (token) => token.field },
      { title: "value", of: (token) => token.value },
    ],
    film.tokens_shown,
  );
  return element("div", { class: "film" },
    element("p", {}, element("b", {}, film.label), " ", element("code", {}, film.id)),
    element("p", { class: "soft" }, about.filter(Boolean).join(", ")),
    element("div", { class: "frames" }, ...frames),
    element("div", { class: "sparks" }, ...film.lines.filter((line) => line.steps.length > 1).map(drawSpark)),
    element("details", {}, element("summary", {}, `tokens of the first step (${film.tokens_shown.length < film.first_step_tokens ? `${film.tokens_shown.length} of ` : ""}${count(film.first_step_tokens)})`), wide(tokens)),
  );
}

function drawSpark(line) {
  const width = 150, height = 34;
  const low = Math.min(...line.values), high = Math.max(...line.values), last = line.steps.at(-1) || 1;
  const at = (value) => (high > low ? height - 2 - ((value - low) / (high - low)) * (height - 4) : height / 2);
  const path = line.values.map((value, n) => `${n ? "L" : "M"}${((line.steps[n] / last) * width).toFixed(1)} ${at(value).toFixed(1)}`).join("");
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("width", width);
  drawing.setAttribute("height", height);
  const curve = document.createElementNS("http://www.w3.org/2000/svg", "path");
  curve.setAttribute("d", path);
  drawing.append(curve);
  return element("div", { class: "spark" }, drawing, `${line.name}, ${real(low)} to ${real(high)}`);
}

function drawMixture() {
  const kinds = data.datasets.flatMap((item) => KINDS.filter((kind) => item.kinds[kind]).map((kind) => ({ dataset: item.name, kind, tokens: item.kinds[kind] })));
  const names = data.datasets.map((item) => item.name);
  const y = { field: "dataset", type: "nominal", sort: names, title: null };
  const height = Math.max(80, 26 * names.length + 20);
  if (kinds.length) {
    plot("plot-kinds", () => ({
      title: "tokens by dataset and kind" + (isScan ? ", estimated from steps" : ""),
      height,
      data: { values: kinds },
      mark: "bar",
      encoding: { y, x: { field: "tokens", type: "quantitative", title: null, axis: { format: "~s", tickCount: 6 } }, color: { field: "kind", type: "nominal", scale: { domain: KINDS, range: PALETTE } }, order: { field: "kind" }, tooltip: [{ field: "dataset" }, { field: "kind" }, { field: "tokens", format: "," }] },
    }));
    byId("kinds").replaceChildren(wide(table(
      [{ title: "dataset", of: (item) => item.name + (item.kinds_estimated ? " (estimated)" : "") }, ...KINDS.filter((kind) => data.datasets.some((item) => item.kinds[kind])).map((kind) => ({ title: kind, number: true, of: (item) => count(item.kinds[kind]) }))],
      data.datasets.filter((item) => Object.keys(item.kinds).length),
    )));
  }
  const weight = sum(data.datasets.map((item) => item.weight));
  const stored = sum(data.datasets.map((item) => sum(Object.values(item.kinds))));
  const parts = data.datasets.flatMap((item) => [
    { dataset: item.name, what: "weight in the config", part: item.weight / weight },
    ...(item.of_run ? [{ dataset: item.name, what: "weight in the run", part: item.of_run.asked }, { dataset: item.name, what: "windows drawn", part: item.of_run.drawn }] : []),
    ...(stored && !isScan ? [{ dataset: item.name, what: "tokens", part: sum(Object.values(item.kinds)) / stored }] : []),
  ]);
  const order = ["weight in the config", "weight in the run", "windows drawn", "tokens"];
  plot("plot-weights", () => ({
    title: "shares of the mixture",
    height: Math.max(100, 34 * names.length + 20),
    data: { values: parts },
    mark: "bar",
    encoding: { y, yOffset: { field: "what", sort: order }, x: { field: "part", type: "quantitative", title: null, axis: { format: ".0%" } }, color: { field: "what", type: "nominal", scale: legendColours(order.filter((what) => parts.some((part) => part.what === what))) }, tooltip: [{ field: "dataset" }, { field: "what" }, { field: "part", format: ".2%" }] },
  }));
  byId("weights-note").textContent = data.datasets.some((item) => item.of_run) ? "Windows drawn are the first 1,000 or more of the run that was given." : "A run draws windows by weight; --run R shows what it draws." + (isScan ? " A scan knows no text: its tokens are not counted." : "");
}

function drawDocuments() {
  const withDocuments = data.datasets.filter((item) => item.holds_documents);
  const images = data.datasets.flatMap((item) => item.images.map(([height, width, n]) => ({ dataset: item.name, size: `${height} x ${width}`, n })));
  if (!images.length && (isScan || !withDocuments.length)) return byId("documents").remove();
  const sizes = withDocuments.flatMap((item) => item.sizes.map(([bit, n]) => ({ dataset: item.name, size: bit ? `${2 ** (bit - 1)}–${2 ** bit - 1}` : "0", bit, n })));
  if (sizes.length && !isScan)
    plot("plot-sizes", () => ({
      title: "documents by tokens",
      data: { values: sizes },
      mark: "bar",
      encoding: { x: { field: "size", type: "ordinal", sort: [...sizes].sort((a, b) => a.bit - b.bit).map((item) => item.size), title: "tokens", axis: { labelAngle: -40 } }, y: { field: "n", type: "quantitative", title: "documents" }, color: { field: "dataset", type: "nominal", scale: legendColours(withDocuments.map((item) => item.name)) }, tooltip: [{ field: "dataset" }, { field: "size", title: "tokens" }, { field: "n", title: "documents" }] },
    }));
  const most = 25;
  const top = Object.values(images.reduce((all, item) => ({ ...all, [item.size]: { size: item.size, n: (all[item.size]?.n ?? 0) + item.n } }), {})).sort((a, b) => b.n - a.n);
  const kept = new Set(top.slice(0, most).map((item) => item.size));
  const shown = images.filter((item) => kept.has(item.size));
  if (shown.length)
    plot("plot-images", () => ({
      title: "images by size, height x width" + (top.length > most ? ` (${most} of ${count(top.length)} sizes)` : ""),
      height: Math.max(80, 18 * kept.size),
      data: { values: shown },
      mark: "bar",
      encoding: { y: { field: "size", type: "nominal", sort: [...kept], title: null }, x: { field: "n", type: "quantitative", title: "images", axis: { format: "~s", tickMinStep: 1, tickCount: 5 } }, color: { field: "dataset", type: "nominal", scale: legendColours([...new Set(shown.map((item) => item.dataset))]) }, tooltip: [{ field: "dataset" }, { field: "size" }, { field: "n", title: "images", format: "," }] },
    }));
  byId("images-note").textContent = withDocuments.filter((item) => item.counted != null && item.counted < item.records).map((item) => `${item.name}: images of ${count(item.counted)} of ${count(item.records)} records, evenly spaced.`).join(" ");
  byId("excerpts").replaceChildren(...withDocuments.filter((item) => item.excerpts.length).flatMap((item) => [
    element("h3", {}, `first documents of ${item.name}`),
    element("div", { class: "excerpts" }, ...item.excerpts.map((document_) => element("div", { class: "excerpt" },
      element("p", { class: "soft" }, element("code", {}, document_.id), `, ${count(document_.tokens)} tokens`),
      ...document_.parts.map((part) => (part.image ? element("img", { src: part.image, alt: `image of ${part.size}` }) : element("p", {}, part.text ?? "an image")))))),
  ]));
}

function drawDrops() {
  const rows = data.datasets.flatMap((item) => item.drops.map((drop) => ({ ...drop, dataset: item.name })));
  if (!rows.length) return byId("drop-table").replaceChildren(element("p", {}, "Nothing was dropped."));
  byId("drop-table").replaceChildren(wide(table(
    [
      { title: "dataset", of: (row) => row.dataset },
      { title: "reason", of: (row) => row.reason },
      { title: "dropped", number: true, of: (row) => count(row.count) },
      { title: "what it means", of: (row) => row.meaning },
      { title: "such as", id: true, of: (row) => element("span", {}, ...row.examples.flatMap((id, at) => (at ? [element("br"), id] : [id]))) },
    ],
    rows,
  )));
}

function drawCard() {
  byId("card-body").replaceChildren(
    element("p", {}, data.card.summary),
    ...data.card.sections.flatMap((section) => [
      element("h3", {}, section.title),
      wide(table(section.columns.map((title, at) => ({ title, number: section.right.includes(at), id: title === "digest", of: (row) => row[at] })), section.rows)),
    ]),
  );
}

function drawNavigation() {
  byId("nav").replaceChildren(...[...document.querySelectorAll("main section")].map((section) => element("a", { href: "#" + section.id }, section.querySelector("h2").textContent)));
}

drawOverview();
if (data.tasks.length) {
  drawThreshold();
  drawTasks();
  byId("search").addEventListener("input", () => { showAll = false; drawTasks(); });
  choose(data.tasks.find((task) => task.points) ?? data.tasks[0]);
  moveTo(stop);
} else {
  byId("threshold").remove();
  byId("tasks").remove();
}
drawMixture();
drawDocuments();
drawDrops();
drawCard();
drawNavigation();
for (const query of [dark, narrow]) query.addEventListener("change", () => { for (const [id, spec] of [...made]) plot(id, spec); });
document.body.dataset.ready = "yes";
