"""Reward, return and actions over the steps of an episode, with the present step marked."""

from collections.abc import Callable, Sequence

from bokeh.events import Tap
from bokeh.models import BasicTicker, ColumnDataSource, HoverTool, Legend, Span
from bokeh.plotting import figure

from gatokit.inspection.explorer.playing import Line, PlayedEpisode

MOST_ACTIONS = 8
"""Components of an action that are drawn."""
_COLORS = ("#2f86a6", "#d07d31", "#7a9a3a", "#a05fa5", "#c0564b", "#5b74c9", "#9a8438", "#4a9c8c")
_SOFT = "#848b98"
"""Of axes; it can be read on white and on black."""
_EDGE = ":host { clip-path: inset(1px 0 0 2px); }"
"""Bokeh clears a canvas up to half a pixel from its edge, and would leave there what was drawn before."""


class StepPlots:
    """The plots of one episode; ``go`` is called with the step that somebody clicks on."""

    def __init__(self, played: PlayedEpisode, go: Callable[[int], None]) -> None:
        self._last, self._go = played.episode.steps - 1, go
        actions, components = played.actions(MOST_ACTIONS)
        title = "" if components <= MOST_ACTIONS else f"{MOST_ACTIONS} of {components} components of the action"
        self._marks: list[Span] = []
        discrete = all(field.kind == "discrete" for field in played.episode.spec.action)
        self.figures = [self._figure("", [line], False, 120) for line in played.rewards()]
        self.figures.append(self._figure(title, actions, discrete, 170))

    def mark(self, step: int) -> None:
        """Marks a step."""
        for mark in self._marks:
            mark.location = step

    def _figure(self, title: str, lines: Sequence[Line], steps: bool, height: int) -> figure:
        drawn = figure(
            title=title or None,
            height=height,
            sizing_mode="stretch_width",
            tools="xpan,xwheel_zoom,reset",
            toolbar_location=None,
            background_fill_color=None,
            border_fill_color=None,
            outline_line_color=None,
            stylesheets=[_EDGE],
            x_range=(-0.5, max(self._last, 1) + 0.5),
        )
        items = []
        for color, line in zip(_COLORS, lines, strict=False):
            source = ColumnDataSource({"step": line.steps, "value": line.values})
            draw = drawn.step if steps else drawn.line
            more = {"mode": "center"} if steps else {}
            glyph = draw("step", "value", source=source, color=color, line_width=1.6, name=line.name, **more)
            items.append((line.name, [glyph]))
        legend = Legend(
            items=items, orientation="horizontal", label_text_color=_SOFT, label_text_font_size="11px",
            background_fill_color=None, border_line_color=None, padding=0, margin=0, spacing=10, glyph_width=14,
        )  # fmt: skip
        drawn.add_layout(legend, "above")
        drawn.add_tools(HoverTool(tooltips=[("$name", "@value{0.[00000]}"), ("step", "@step")], mode="mouse"))
        if title:
            drawn.title.update(text_color=_SOFT, text_font_style="normal", text_font_size="12px")
        drawn.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
        if steps:
            drawn.yaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
        for axis in (*drawn.xaxis, *drawn.yaxis):
            axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = _SOFT
            axis.major_label_text_color = _SOFT
        drawn.grid.grid_line_color = _SOFT
        drawn.grid.grid_line_alpha = 0.2
        mark = Span(location=0, dimension="height", line_color=_COLORS[4], line_width=1.5, line_dash="4 2")
        drawn.add_layout(mark)
        drawn.on_event(Tap, lambda event: self._go(min(max(round(event.x), 0), self._last)))
        self._marks.append(mark)
        return drawn
