import importlib
from collections.abc import Iterator

import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import with_overrides
from dynamics.storage.run_folder import RunFolder
from tests.doors.recipes import followed
from tests.made_data import picture, write_clip
from tests.runs import LocalRun, run_local

FILMED = (
    "filter.score=brevity",
    "filter.rule={kind: above_median, margin: 0.0}",
    "serve.verifier=half_idm",
    "train.objective=focal",
    "model.decoder=row_by_row",
)
"""Settings that take the new names, on the filmed tabletop."""


@pytest.fixture(scope="package")
def older_run(local_run: LocalRun) -> RunFolder:
    """A run from before anything new was registered."""
    return RunFolder(local_run.folder)


@pytest.fixture(scope="package")
def new_names(older_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every recipe of CONTRIBUTING is followed."""
    with followed(tmp_path_factory.mktemp("new")):
        yield


@pytest.fixture(scope="package")
def filmed_run(
    small: LoopConfig, new_names: None, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """The tiny loop with everything new that a filmed run can take."""
    threads = importlib.import_module("dynamics.pipeline.threads")
    run = RunFolder(tmp_path_factory.mktemp("filmed"))
    cfg = with_overrides(small, FILMED)
    run_local(cfg, run.root, executor=threads.ThreadsExecutor(cfg, run))
    return run


@pytest.fixture(scope="package")
def real_run(
    small: LoopConfig, new_names: None, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """The tiny loop with everything new that a run on real files can take."""
    root = tmp_path_factory.mktemp("real")
    for number in range(4):
        write_clip(
            root / "clips" / f"{('push', 'swap')[number % 2]}-{number}.mp4",
            range(9 * number, 9 * number + 6),
        )
    lines = []
    for number in range(12):
        names = [f"{number}-{end}.png" for end in ("source", "target")]
        for step, name in enumerate(names):
            (root / name).write_bytes(picture(7 * number + 3 * step))
        lines.append("\t".join([*names, f"{('push', 'swap')[number % 2]} ring"]))
    (root / "pairs.tsv").write_text("\n".join(lines))
    overrides = (
        "model.family=mirrored",
        "domain=kitchen",
        "labelled.dataset=tsv",
        f"labelled.path={root}",
        "pool.source=prefixed",
        f"pool.path={root / 'clips'}",
        "pool.keyframes.spacing_frames=4",
    )
    run_local(with_overrides(small, overrides), root / "run")
    return RunFolder(root / "run")
