// Texts and images of a document in reading order.
export function render({ model }) {
  const root = make("div", { class: "parts" });
  const draw = () => {
    root.replaceChildren(...(model.data.parts ?? []).map((part) => "text" in part
      ? make("p", {}, part.text)
      : make("figure", {}, make("img", { src: part.url, alt: "image" }), make("figcaption", {}, part.about))));
  };
  model.on("data", draw);
  draw();
  return root;
}
