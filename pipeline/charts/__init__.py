"""Charts as Vega-Lite specs (https://vega.github.io/vega-lite/): `specs` builds them, `pages` draws them."""
