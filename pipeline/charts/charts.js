// Draws the page's charts in the colours of the reader's scheme and the width of the window, and again when one changes.
const { charts, themes } = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = {};

function sized(spec, width) {
  if (!spec.hconcat) return { ...spec, width, autosize: { type: "fit-x", contains: "padding" } };
  const { hconcat, ...rest } = spec;
  const columns = Math.max(1, Math.min(hconcat.length, Math.floor(width / 270)));
  const panel = (width - 2 * 8 + 24 - 12) / columns - 24 - 48;
  const spacing = { column: 24 + 48, row: 80 };
  return { ...rest, columns, spacing, bounds: "flush", concat: hconcat.map((part) => ({ ...part, width: panel })) };
}

async function draw() {
  const theme = themes[dark.matches ? "dark" : "light"];
  for (const [id, spec] of Object.entries(charts)) {
    const element = document.getElementById(id);
    const width = element.clientWidth;
    const columns = Math.max(1, Math.floor((width - 80) / spec.usermeta.legendColumn));
    const labelLimit = Math.floor((width - 80) / columns) - 45;
    const config = { ...theme, legend: { ...theme.legend, columns, labelLimit } };
    const actions = { export: true, source: false, compiled: false, editor: false };
    // ast: expressions are interpreted, so that the page needs no eval().
    const options = { config, actions, ast: true, renderer: "svg", downloadFileName: id };
    views[id]?.finalize();
    const tooltip = { theme: dark.matches ? "dark" : "light" };
    views[id] = await vegaEmbed(element, sized(spec, width), { ...options, tooltip });
  }
}

let timer, width = innerWidth;
draw();
dark.addEventListener("change", draw);
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(timer);
  timer = setTimeout(draw, 100);
});
