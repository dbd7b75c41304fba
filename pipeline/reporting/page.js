// Draws the page's figures with plotly in the colours of the reader's scheme, and again when the scheme changes.
const figures = document.getElementById("figures").textContent;
const colours = JSON.parse(document.getElementById("colours").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function draw() {
  const scheme = colours[dark.matches ? "dark" : "light"];
  const coloured = JSON.parse(figures, (_, value) =>
    typeof value === "string" && value.startsWith("@") && value.slice(1) in scheme ? scheme[value.slice(1)] : value);
  for (const [id, { data, layout }] of Object.entries(coloured)) {
    Plotly.react(id, data, layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
  }
}

draw();
dark.addEventListener("change", draw);
