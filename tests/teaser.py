"""The animated picture of the README, from a finished run of the default.

python -m tests.teaser runs/tabletop docs/rollout.gif
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import dynamics
from dynamics.core.animation import gif
from dynamics.core.domain import load_domain

SCENE = "table 4"
SIDE, MARGIN, HEAD, FOOT = 256, 24, 64, 64
INK, FAINT, PAPER, GREEN, RED = "#1c2026", "#68707a", "#fafaf8", "#1f8a50", "#c93c37"


def drawn(columns: dict[str, dynamics.Episode], step: int) -> Image.Image:
    """All columns after ``step`` actions; 0 is the given picture."""
    width = MARGIN + len(columns) * (SIDE + MARGIN)
    canvas = Image.new("RGB", (width, HEAD + SIDE + FOOT), PAPER)
    pen = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(17), ImageFont.load_default(14)
    first = next(iter(columns.values()))
    said = first.steps[step - 1].action if step else "the given picture"
    pen.text((MARGIN, 12), f"{step}  {said}" if step else said, INK, large)
    for number, (name, episode) in enumerate(columns.items()):
        left = MARGIN + number * (SIDE + MARGIN)
        frame = episode.frames[step].resize((SIDE, SIDE), Image.Resampling.NEAREST)
        canvas.paste(frame, (left, HEAD - 16))
        pen.text((left, HEAD + SIDE - 6), name, FAINT, small)
        if step:
            right = episode.steps[step - 1].matches_ground_truth
            verdict = "as it should be" if right else "wrong"
            pen.text((left, HEAD + SIDE + 16), verdict, GREEN if right else RED, small)
    return canvas


def frames(run: dynamics.Run) -> Iterator[Image.Image]:
    scenes = load_domain(run.config).examples(run.folder / "data")
    scene = next(one for one in scenes if one.name == SCENE)
    last = run.rounds[-1]
    columns = {
        "round 0: learnt from 4,096 labels": run.round(0).rollout(scene.frame, scene.actions),
        f"round {last}: and from its own labels": run.round(last).rollout(
            scene.frame, scene.actions
        ),
    }
    for step in range(len(scene.actions) + 1):
        yield drawn(columns, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.write_bytes(gif(list(frames(dynamics.open(asked.run))), seconds=1.6))


if __name__ == "__main__":
    main()
