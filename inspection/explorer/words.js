// Paragraphs, lines to copy, and a file to download.
export function render({ model }) {
  const root = document.createElement("div");
  const draw = () => {
    const { lines = [], code = "", link = null, style = "" } = model.data;
    root.className = `words ${style}`;
    root.replaceChildren(...lines.map((line) => {
      const text = document.createElement("p");
      text.textContent = line;
      return text;
    }));
    if (link) {
      const anchor = document.createElement("a");
      Object.assign(anchor, { href: link.href, download: link.name, textContent: link.text });
      anchor.className = "download";
      root.append(anchor);
    }
    if (code) {
      const block = document.createElement("pre");
      block.textContent = code;
      root.append(block);
    }
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
