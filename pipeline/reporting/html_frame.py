"""What stands around the text and the figures of an HTML page: its style and its one script.

Kept in a module and not beside it, so that whatever depends on the page depends on them.
"""

STYLE = """\
:root {
  color-scheme: light dark;
  --background: #ffffff; --text: #1f2328; --muted: #656d76; --grid: #d8dee4; --shade: #f6f8fa; --link: #0969da;
}
@media (prefers-color-scheme: dark) {
  :root {
    --background: #0d1117; --text: #e6edf3; --muted: #8d96a0; --grid: #30363d; --shade: #161b22; --link: #58a6ff;
  }
}
body { margin: 0; background: var(--background); color: var(--text); font: 16px/1.6 system-ui, sans-serif; }
main { max-width: 900px; margin: 0 auto; padding: 32px 24px 96px; }
h1, h2 { border-bottom: 1px solid var(--grid); padding-bottom: 0.3em; line-height: 1.25; }
h2 { margin-top: 2em; }
a { color: var(--link); }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1em 0; }
th, td { border: 1px solid var(--grid); padding: 6px 13px; }
td[style*="right"] { white-space: nowrap; }
tr:nth-child(2n) { background: var(--shade); }
code { background: var(--shade); border-radius: 6px; padding: 0.15em 0.4em; font-size: 87%; }
pre { background: var(--shade); border-radius: 6px; padding: 16px; line-height: 1.45; white-space: pre-wrap; }
pre code { padding: 0; }
details { margin: 1em 0; }
summary { cursor: pointer; color: var(--muted); }
.wide { margin: 1em 0; overflow-x: auto; }
"""

SCRIPT = """\
// Draws the page's figures with plotly in the colours of the reader's scheme, and again when the scheme changes.
const figures = document.getElementById("figures").textContent;
const colours = JSON.parse(document.getElementById("colours").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function draw() {
  const scheme = colours[dark.matches ? "dark" : "light"];
  const coloured = JSON.parse(figures, (_, value) =>
    typeof value === "string" && value.startsWith("@") && value.slice(1) in scheme ? scheme[value.slice(1)] : value);
  for (const [id, { data, layout }] of Object.entries(coloured)) {
    // Named one by one: plotly's own choice has a button that uploads the figure to its makers.
    const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
    const config = { responsive: true, displaylogo: false, displayModeBar: true, modeBarButtons: buttons };
    Plotly.react(id, data, layout, config);
  }
}

draw();
dark.addEventListener("change", draw);
"""
