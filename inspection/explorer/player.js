// A time step: its images and values, and a slider over all steps. It asks for a step, and draws the answer.
export function render({ model }) {
  let playing = false, waiting = null, timer = null;
  const slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "time step" });
  const label = make("output", {});
  const button = make("button", { class: "play", title: "play or stop (space)" });
  const rate = make("select", { "aria-label": "steps a second" });
  for (const number of [2, 5, 10, 20, 50]) rate.append(make("option", { value: number }, `${number} steps/s`));
  rate.value = "10";
  const images = make("div", { class: "images" });
  const values = make("div", { class: "values" });
  const controls = make("div", { class: "controls" },
    make("button", { title: "step before (←)", onclick: () => move(-1) }, "‹"), button,
    make("button", { title: "next step (→)", onclick: () => move(1) }, "›"), slider, label, rate);
  const root = make("div", { class: "player", tabindex: 0 }, controls, make("div", { class: "step" }, images, values));

  // One request at a time: the newest wanted step follows when the answer is drawn.
  let asked = null;
  const want = (step) => {
    const last = model.data.steps - 1;
    step = Math.min(last, Math.max(0, step));
    slider.value = step;
    if (asked !== null) { waiting = step; return; }
    if (step === model.data.step) return;
    asked = step;
    model.send_msg({ step });
  };
  const move = (by) => { stop(); want(Number(slider.value) + by); };
  const stop = () => { playing = false; clearTimeout(timer); button.textContent = "▶"; };
  const tick = () => {
    if (model.data.step >= model.data.steps - 1) { stop(); return; }
    timer = setTimeout(() => want(model.data.step + 1), 1000 / Number(rate.value));
  };
  const play = () => {
    if (playing) { stop(); return; }
    playing = true;
    button.textContent = "❚❚";
    if (model.data.step >= model.data.steps - 1) want(0); else tick();
  };
  button.addEventListener("click", play);
  slider.addEventListener("input", () => { if (playing) stop(); want(Number(slider.value)); });
  root.addEventListener("keydown", (event) => {
    if (event.target === rate || event.target === slider) return;
    const does = { ArrowLeft: () => move(-1), ArrowRight: () => move(1), " ": play }[event.key];
    if (does && event.target === root) { does(); event.preventDefault(); }
  });

  const imageOf = new Map();
  const drawImages = (data) => {
    const names = data.images.map((item) => item.name).join("\n");
    if (images.dataset.names !== names) {
      images.dataset.names = names;
      imageOf.clear();
      images.replaceChildren(...data.images.map(({ name }) => {
        const image = make("img", { alt: name });
        imageOf.set(name, image);
        return make("figure", {}, image, make("figcaption", {}));
      }));
    }
    for (const { name, url, about, height, width } of data.images) {
      const image = imageOf.get(name);
      image.src = url;
      image.dataset.small = Math.max(height, width) < 200 ? "yes" : "no";
      image.nextSibling.textContent = `${name}, ${about}`;
    }
  };
  const drawValues = (data) => {
    values.replaceChildren(...data.values.map(({ field, name, text, kind }) =>
      make("div", { class: `value ${kind}`, "data-field": field },
        make("span", { class: "name" }, name),
        make("span", { class: "text" }, text))));
  };
  const draw = () => {
    const data = model.data;
    root.hidden = !data.steps;
    if (!data.steps) { stop(); return; }
    const answered = asked === data.step;
    if (data.episode !== root.dataset.episode) { stop(); asked = null; waiting = null; }
    root.dataset.episode = data.episode;
    root.dataset.step = data.step;
    slider.max = data.steps - 1;
    label.textContent = `step ${data.step.toLocaleString("en")} of ${data.steps.toLocaleString("en")}`;
    drawImages(data);
    drawValues(data);
    if (answered) asked = null;
    if (asked === null && waiting !== null) { const next = waiting; waiting = null; want(next); }
    else if (asked === null) { slider.value = data.step; if (playing) tick(); }
  };
  stop();
  model.on("data", draw);
  draw();
  return root;
}
