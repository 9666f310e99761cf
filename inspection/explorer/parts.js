// Texts and pictures of a document in reading order.
export function render({ model }) {
  const root = document.createElement("div");
  root.className = "parts";
  const draw = () => {
    root.replaceChildren(...(model.data.parts ?? []).map((part) => {
      if ("text" in part) {
        const text = document.createElement("p");
        text.textContent = part.text;
        return text;
      }
      const figure = document.createElement("figure");
      const image = document.createElement("img");
      image.src = part.url;
      image.alt = "picture";
      const about = document.createElement("figcaption");
      about.textContent = part.about;
      figure.append(image, about);
      return figure;
    }));
  };
  model.on("data", draw);
  draw();
  return root;
}
