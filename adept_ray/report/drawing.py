"""What all figures share: colours and style, axes, marks and files; no window, no global state."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adept_ray.config.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours, told apart with any colour vision; marks differ in shape as well.
BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#1f2933", "#7b8794"
DARK_ORANGE = "#a84a00"  # orange that is dark enough to read
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
LINES = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", INK)
WHITE_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1}

STYLE: dict[str, object] = {
    "font.size": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": "#52606d",
    "axes.edgecolor": "#9aa5b1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
    "xtick.color": "#9aa5b1",
    "ytick.color": "#9aa5b1",
    "xtick.labelcolor": "#52606d",
    "ytick.labelcolor": "#52606d",
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "savefig.dpi": 160,
    "text.parse_math": False,  # names are shown as they are, dollar signs too
    "svg.fonttype": "none",  # text stays text: searchable, small, in the reader's own font
    "svg.hashsalt": "adept_ray",
}
# Date would make every file differ; the others are Matplotlib's address and RDF namespaces.
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def apply_style() -> Iterator[None]:
    """Draw in our style, whatever the reader has set."""
    from matplotlib import style

    with style.context(["default", STYLE]):  # "default" shuts out the reader's own matplotlibrc
        yield


def make_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


Places = Mapping[str, tuple[float, float]]
HALF, WIDE, NARROW = (4.3, 3.5), (9.6, 3.4), (4.3, 3.6)  # inches; a phone gets NARROW in place of WIDE


def place_targets(axes: Axes, places: Places) -> None:
    """Put an unseen mark on each place, under its name as id: readers point at it or tab to it."""
    for name, (x, y) in places.items():
        axes.plot([x], [y], "o", color=INK, markersize=13, alpha=0, gid=name, zorder=9, label="_")


def format_tick(value: float, _position: float = 0) -> str:
    """A number on an axis, with a true minus."""
    return f"{value:g}".replace("-", "−")


def use_whole_numbers(axes: Axes, most: int) -> None:
    """Number the x axis with whole numbers, at most so many."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure to `path` and return it; the suffix says PNG or SVG.

    Raises :class:`UserError` for another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise UserError(f"{path}: a figure is written as .png or .svg, not '{path.suffix}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".svg":
        path.write_text(format_svg(figure), encoding="utf-8")
    else:
        with apply_style():
            figure.savefig(path)
    return path


def format_svg(figure: Figure) -> str:
    """A figure as an SVG document.

    ``savefig`` would draw it twice: once without a file, to find its bounds, which nothing here asks for.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    with apply_style():
        FigureCanvasSVG(figure).print_svg(text, metadata=NO_METADATA)
    return text.getvalue()
