"""`make compare`: two policies, or two files of stored answers, on the same pairs: is B better than A?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dig_rl.durable import write_durably
from dig_rl.errors import ConfigError
from dig_rl.evaluation.comparison import compare
from dig_rl.evaluation.overview import BOOTSTRAP
from dig_rl.reporting.evaluation_plots import draw_comparison
from dig_rl.reporting.evaluation_tables import comparison_lines, comparison_markdown, verdict_sentence
from launch.evaluate import Source, add_data_options, answers_of, open_source
from launch.terminal import end_with_message


def main() -> None:
    """Parse arguments, answer or read both, compare, write, print."""
    parser = argparse.ArgumentParser(prog="make compare", description=__doc__)
    parser.add_argument("--a", required=True, help="policy folder, run folder or predictions file (A=)")
    parser.add_argument("--b", required=True, help="the same, to be compared with A (B=)")
    add_data_options(parser)
    parser.add_argument("--out", type=Path, default=Path("runs", "compare"), help="folder to write (OUT=)")
    arguments = parser.parse_args()
    a, b = (open_source(name, arguments) for name in (arguments.a, arguments.b))
    _check_alike(a, b)
    out: Path = arguments.out
    (pairs_a, _), (pairs_b, _) = answers_of(a, out / "a"), answers_of(b, out / "b")
    differences = compare(pairs_a, pairs_b, b.config.evaluation.match_iou)
    facts = {
        "A": a.facts["source"],
        "B": b.facts["source"],
        "data": b.facts["data"],
        "answers": f"A {a.facts['answers']}, B {b.facts['answers']}",
        "found": b.facts["found"],
    }
    sentence = verdict_sentence(differences)
    contents = {
        "facts": facts,
        "pairs": len(pairs_b),
        "verdict": sentence,
        "intervals": {"method": "paired percentile bootstrap over pairs", **BOOTSTRAP},
        "differences": [row._asdict() for row in differences],
    }
    out.mkdir(parents=True, exist_ok=True)
    title = f"{arguments.a} (A) and {arguments.b} (B)"
    write_durably(out / "comparison.json", json.dumps(contents, indent=2) + "\n")
    page = comparison_markdown(title, facts, differences) + "\n![](comparison.png)\n"
    write_durably(out / "comparison.md", page)
    draw_comparison(differences, out / "comparison.png", title)
    print(
        f"{len(pairs_b)} pairs\n{comparison_lines(differences)}\n\n{sentence}\n"
        f"written to {out}: comparison.md, .json and .png"
    )


def _check_alike(a: Source, b: Source) -> None:
    """Refuse to compare different questions, before an engine is started."""
    settings_a, settings_b = (
        {
            "evaluation.match_iou": source.config.evaluation.match_iou,
            "data.box_target": source.config.data.box_target,
            "pairs": [(truth.example.pair_id, truth.example.target_boxes_px) for truth in source.truths],
        }
        for source in (a, b)
    )
    different = [name for name in settings_a if settings_a[name] != settings_b[name]]
    if different:
        raise ConfigError(
            f"A and B can only be compared on the same questions, but differ in {', '.join(different)} (A has "
            f"{a.facts['data']}, B has {b.facts['data']}); name one DATA= and SPLIT= for both, other keys by SET="
        )


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
