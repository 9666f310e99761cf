// A page of a table. Cells are texts; the model's data is what widgets.table_data makes.
// The end of an id says the most: what is cut of a long one is its middle.
const TAIL = 22;

export function render({ model }) {
  const root = make("div", { class: "table" });
  const send = (message) => model.send_msg(message);

  const head = (data) =>
    make("tr", {},
      ...(data.ticked ? [make("th", { class: "tick" })] : []),
      ...data.columns.map((column) => {
        const sorted = data.sort === column.name;
        const arrow = sorted ? (data.descending ? " ▼" : " ▲") : "";
        const label = column.name + arrow;
        return make("th",
          { class: column.number ? "n" : null, title: column.about || null,
            "aria-sort": sorted ? (data.descending ? "descending" : "ascending") : null },
          column.sorts ? make("button", { onclick: () => send({ sort: column.name }) }, label) : label);
      }));

  const row = (data, cells, place) => {
    const opens = data.opens;
    const open = () => opens && send({ open: place });
    const line = make("tr", {
      "aria-selected": place === data.marked ? "true" : null,
      tabindex: opens ? "0" : null,
      onclick: open,
      onkeydown: (event) => { if (event.key === "Enter" && event.target === line) open(); },
    });
    if (data.ticked) {
      const box = make("input", {
        type: "checkbox", "aria-label": "select " + cells[0],
        onchange: () => send({ tick: [place, box.checked] }),
      });
      box.checked = data.ticked[place];
      line.append(make("td", { class: "tick", onclick: (event) => event.stopPropagation() }, box));
    }
    cells.forEach((text, at) => {
      const { name, number, style } = data.columns[at];
      const wide = style === "wide";
      const cut = data.fixed && wide && text.length > TAIL;
      line.append(make("td", { class: number ? "n" : style || null, "data-column": name, title: data.fixed && !number ? text : null },
        ...(cut ? [make("div", { class: "cut" }, make("span", {}, text.slice(0, -TAIL)), make("b", {}, text.slice(-TAIL)))]
          : [text])));
    });
    return line;
  };

  const pager = (data) => {
    const { begin, total, size, rows, unit } = data;
    const to = (at, text, title) =>
      make("button", { class: "page", title, disabled: at === null, onclick: () => send({ begin: at }) }, text);
    const last = Math.max(0, Math.floor((total - 1) / size) * size);
    const [before, after] = [begin > 0, begin + rows.length < total];
    return make("div", { class: "pager" },
      to(before ? 0 : null, "«", "first page"),
      to(before ? Math.max(0, begin - size) : null, "‹", "page before"),
      make("span", {}, `${(begin + 1).toLocaleString("en")}–${(begin + rows.length).toLocaleString("en")} of ` +
        `${total.toLocaleString("en")} ${unit}`),
      to(after ? begin + size : null, "›", "next page"),
      to(after ? last : null, "»", "last page"));
  };

  // What is ticked or open changes in place, so that the focus stays.
  const update = ({ ticked, marked }) => {
    [...root.querySelectorAll("tbody tr")].forEach((line, place) => {
      if (ticked) line.querySelector("input").checked = ticked[place];
      if (place === marked) line.setAttribute("aria-selected", "true");
      else line.removeAttribute("aria-selected");
    });
  };
  let drawn = null;

  const draw = () => {
    const data = model.data;
    if (!data.columns) return;
    const { marked, ticked, ...rest } = data;
    const content = JSON.stringify([rest, ticked === null]);
    if (content === drawn) {
      update(data);
      return;
    }
    drawn = content;
    root.dataset.begin = data.begin;
    if (!data.rows.length) {
      root.replaceChildren(make("p", { class: "empty" }, data.empty || "Nothing here."));
      return;
    }
    const table = make("table", { class: data.fixed ? "fixed" : null },
      make("thead", {}, head(data)),
      make("tbody", {}, ...data.rows.map((cells, place) => row(data, cells, place))));
    const scroll = root.querySelector(".scroll")?.scrollLeft ?? 0;
    const box = make("div", { class: "scroll" }, table);
    root.replaceChildren(box, ...(data.total > data.rows.length ? [pager(data)] : []));
    box.scrollLeft = scroll;
  };

  model.on("data", draw);
  draw();
  return root;
}
