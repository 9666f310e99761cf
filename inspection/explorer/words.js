// Paragraphs, lines to copy, and a file to download.
export function render({ model }) {
  const root = make("div");
  const draw = () => {
    const { lines = [], code = "", link = null, style = "" } = model.data;
    root.className = `words ${style}`;
    root.replaceChildren(
      ...lines.map((line) => make("p", {}, line)),
      ...(link ? [make("a", { class: "download", href: link.href, download: link.name }, link.text)] : []),
      ...(code ? [make("pre", {}, code)] : []));
  };
  let revealed;
  model.on("data", () => {
    draw();
    const { reveal } = model.data;
    if (reveal && reveal !== revealed) root.scrollIntoView({ behavior: "smooth", block: "nearest" });
    revealed = reveal;
  });
  draw();
  return root;
}
