"""The section of a search's page about held-out text that stands in the training text, too."""

from __future__ import annotations

from html import escape

from adept_ray.report.html import NONE, list_definitions, make_scrollable
from adept_ray.report.records import Contamination, Piece

CONTAMINATION = "Held-out text in the training text"
"""Heading of the section."""
HEADINGS = ("held out", "texts", "as a whole", "most of it", "a part", "clean")
NOTE = (
    "Words are compared in lower case and without punctuation; 13 in a row are a match (GPT-3, arXiv "
    "2005.14165, appendix C). As a whole: all of the text stands in one training document. Most of it: 80 % "
    "of its words or more lie in matches. A part: 20 % or more. Clean: fewer (both bounds: Llama 2, arXiv "
    "2307.09288, appendix A.6). The whole training split was looked through, though a run may read less of "
    "it. Text that says the same in other words isn't found."
)


def build_contamination_section(found: Contamination) -> str:
    """How many texts of each held-out piece training text has, and what they share."""
    first, *others = map(escape, HEADINGS)
    head = f'<th class="words">{first}</th>' + "".join(f"<th>{text}</th>" for text in others)
    rows = "".join(format_piece(piece) for piece in found.pieces)
    table = f'<table class="trials"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return (
        f"<p>{escape(express_contamination(found))}</p>{make_scrollable(table, 'Held-out texts')}"
        f'{list_examples(found)}<p class="note">{escape(NOTE)}</p>{describe_corpora(found)}'
    )


def express_contamination(found: Contamination) -> str:
    """The sum of it in a sentence or two."""
    shared, every = (sum(getattr(p, name) for p in found.pieces) for name in ("shared", "texts"))
    sides = " and ".join(f"{count:,} {side} ones" for side, count in found.trained_on.items())
    said = f"{shared:,} of {every:,} held-out texts share passages with the training documents ({sides})."
    return f"{said} What was gained on them may be memory." if shared else said


def format_piece(piece: Piece) -> str:
    """A row of the table."""
    counts = (piece.texts, piece.whole, piece.most, piece.part, piece.texts - piece.shared)
    cells = "".join(f"<td>{format_part(count, piece.texts)}</td>" for count in counts[1:])
    return f'<tr><td class="words">{escape(piece.name)}</td><td>{piece.texts:,}</td>{cells}</tr>'


def format_part(count: int, of: int) -> str:
    """A count and its share; a dash for none."""
    return f"{count:,} ({100 * count / of:.1f} %)" if count else NONE


def list_examples(found: Contamination) -> str:
    """Passages that are in both, a few of each piece."""
    items = "".join(
        f"<dt>{escape(piece.name)}, {100 * each.share:.0f} %</dt><dd>{escape(each.passage)}</dd>"
        for piece in found.pieces
        for each in piece.examples
    )
    return f"<h3>What they share, for example</h3><dl>{items}</dl>" if items else ""


def describe_corpora(found: Contamination) -> str:
    """How many documents each corpus has, and how many of them aren't taken."""
    corpora = {name: corpus.describe(name) for name, corpus in found.corpora.items()}
    return f"<h3>Documents of each corpus</h3>{list_definitions(corpora)}" if corpora else ""
