"""Error rates of the guards: how often each blocks a healthy round and a faulty one.

    python benchmarks/guards.py runs/tabletop [RUN ...]
    python benchmarks/guards.py --train 20

Healthy: the rounds of finished runs, with held-out pairs, labels and labelled sentences drawn anew
with replacement, one draw a seed. Faulty: the same draws with one thing broken on purpose. Nothing
is trained: draws of one round differ less than rounds of other training seeds would.

With ``--train`` FDPs are trained, each on videos of its own: as always, and with every sentence at
another pair's frames, so that all they can learn is to ignore it.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dynamics.core.config import CONFIGS, GuardConfig, GuardName, LoopConfig
from dynamics.core.config_file import load
from dynamics.core.domain import load_domain
from dynamics.core.progress import silent
from dynamics.core.records import (
    PAIR_SCHEMA,
    TRANSITION_SCHEMA,
    DataRefs,
    GuardResult,
    stable_hash,
)
from dynamics.core.seeds import numpy_rng
from dynamics.data.video import encode
from dynamics.data.video.decode import read_clip
from dynamics.data.video.ingest import clip_reader
from dynamics.evaluation.guards.leakage import count_leakage, leaked_pairs
from dynamics.evaluation.guards.rules import GUARDS, GuardEvidence, evaluate_guards
from dynamics.evaluation.heldout import results_schema
from dynamics.evaluation.probes import NUM_ASKED, Sentences, with_probes
from dynamics.inference.load import load_fdp, load_pair, model_ref
from dynamics.models import load_image_tokenizer
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.pipeline.fit_jobs import fit_jobs
from dynamics.pipeline.prepare import prepare
from dynamics.pipeline.stages import Stages
from dynamics.storage.ledger import Ledger
from dynamics.storage.pairs import write_pairs
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.streams import run_stream
from dynamics.storage.tables import dataset_ref, read_table
from dynamics.studies.guard_checks import with_copier
from dynamics.tabletop.film import filmed_keyframes
from dynamics.training.fit import fit_adapter

TRAINED = (
    "labelled.num_pairs=1024",
    "labelled.num_heldout=100",
    "pool.num_pairs=20",
    "train.first_steps=200",
)
"""Settings of the FDPs that are trained: a quarter of a default run's labels, a third of its
steps."""
PROBED = ("action", "majority_exact", "code_ceiling", "action_margins")
"""Columns of the held-out results that `with_probes` reads and fills in."""
NUM_LEAKED = 30
"""Held-out clips that a draw puts into the pool."""
NUM_ENCODED_ANEW = 150
"""Held-out clips that are encoded anew, at crf 30 instead of 20; draws leak some of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run, read once."""

    rounds: dict[int, GuardEvidence]
    same: np.ndarray
    """bool [B], per held-out pair: its clip is in the pool."""
    alike: np.ndarray
    """bool [B], per held-out pair: it looks like a pool pair."""
    anew: np.ndarray
    """int [A]: rows of the held-out pairs whose clips were encoded anew."""
    found_anew: np.ndarray
    """bool [A], per row in ``anew``: it still looks like its held-out pair."""


Fault = Callable[[GuardEvidence, np.random.Generator, Run], GuardEvidence | None]
"""Breaks one thing of a draw; None where the round has no such thing."""


def read_run(root: Path) -> Run:
    """Read a finished run folder."""
    folder = RunFolder(root.resolve())
    cfg = folder.config()
    stages = Stages(cfg, folder.root)
    images = stages.executor.images
    pool = read_table(folder.pool, PAIR_SCHEMA)
    heldout = read_table(folder.heldout, TRANSITION_SCHEMA)
    labelled = read_table(folder.labelled, TRANSITION_SCHEMA, ["action"])
    same_B, alike_B = leaked_pairs(pool, heldout, images)
    results = {n: _heldout_results(stages, heldout, n) for n in range(cfg.rounds + 1)}
    ledger = Ledger(folder.ledger)
    rounds = {
        n: GuardEvidence(
            results=results[n],
            heldout=heldout,
            labelled_actions=labelled["action"].to_pylist(),
            leakage=count_leakage(same_B, alike_B),
            labels=pa.concat_tables(ledger.iter_decided(n)) if n else None,
            first_results=results[0] if n else None,
            domain=load_domain(cfg),
        )
        for n in results
    }
    again, where = _encoded_anew(cfg, folder, heldout, images)
    return Run(
        rounds=rounds,
        same=same_B,
        alike=alike_B,
        anew=np.array(where),
        found_anew=leaked_pairs(again, heldout.take(where), images)[1],
    )


def _heldout_results(stages: Stages, heldout: pa.Table, round_id: int) -> pa.Table:
    """The round's held-out results; older runs lack the column `action_margins`, added here."""
    schema = results_schema(stages.cfg.evaluate.best_of)
    results = read_table(stages.folder.results(round_id), schema)
    if results["action_margins"].null_count < results.num_rows:
        return results
    finished = stages.finished(round_id)
    assert finished is not None
    labelled = read_table(stages.folder.labelled, TRANSITION_SCHEMA, ["action"])
    sentences = Sentences(labelled["action"].to_pylist(), load_domain(stages.cfg))
    _, fdp = load_pair(finished[0], stages.cfg.model)
    return with_probes(results, heldout, fdp, sentences, stages.cfg, round_id, NUM_ASKED)


def _encoded_anew(
    cfg: LoopConfig, folder: RunFolder, heldout: pa.Table, images: ImageTokenizer
) -> tuple[pa.Table, list[int]]:
    """Held-out clips after another encoding, as pool pairs, and their held-out rows."""
    spec = clip_reader(filmed_keyframes(cfg.world, "heldout"), cfg.pool, images).spec
    rows, where = [], []
    with (
        TemporaryDirectory() as temporary,
        patch.dict(encode.X264_OPTIONS, {"crf": "30"}),
    ):
        path = Path(temporary, "again.mp4")
        for row, name in enumerate(heldout["clip_path"].to_pylist()[:NUM_ENCODED_ANEW]):
            with av.open(str(folder.data / "heldout" / "clips" / name)) as clip:
                frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
            encode.write_mp4(path, np.stack(frames), cfg.world.fps)
            found = read_clip(path, spec).frames
            if len(found) != 2:
                continue  # another encoding may hide a small change from the key frames
            source, target = images.encode(found)
            sha256 = stable_hash("again", row)
            rows.append({"clip_sha256": sha256, "source_codes": source, "target_codes": target})
            where.append(row)
    return pa.Table.from_pylist(rows), where


def draw(evidence: GuardEvidence, run: Run, rng: np.random.Generator) -> GuardEvidence:
    """The round with held-out pairs, labels and labelled sentences drawn anew."""
    rows = rng.integers(evidence.results.num_rows, size=evidence.results.num_rows)
    said = evidence.labelled_actions
    drawn = replace(
        evidence,
        results=evidence.results.take(rows),
        heldout=evidence.heldout.take(rows),
        labelled_actions=[said[row] for row in rng.integers(len(said), size=len(said))],
        leakage=count_leakage(run.same[rows], run.alike[rows]),
    )
    if evidence.first_results is None or evidence.labels is None:
        return drawn
    labels = rng.integers(evidence.labels.num_rows, size=evidence.labels.num_rows)
    return replace(
        drawn,
        first_results=evidence.first_results.take(rows),
        labels=evidence.labels.take(labels),
    )


def copies(evidence: GuardEvidence, rng: np.random.Generator, run: Run) -> GuardEvidence:
    """A copier in the FDP's place."""
    return with_copier(evidence)


def ignores_its_sentence(
    evidence: GuardEvidence, rng: np.random.Generator, run: Run
) -> GuardEvidence:
    """What the FDP finds likely has nothing to do with which of the sentences is the true one."""
    margins = []
    for own in evidence.results["action_margins"].to_pylist():
        if own:
            scores = np.array([0.0, *(-margin for margin in own)])
            place = rng.integers(len(scores))
            own = (scores[place] - np.delete(scores, place)).tolist()
        margins.append(own)
    return replace(evidence, results=_with(evidence.results, "action_margins", margins))


def says_one_thing(
    evidence: GuardEvidence, rng: np.random.Generator, run: Run
) -> GuardEvidence | None:
    """All labels are one sentence."""
    return _favouring(evidence, rng, 1.0)


def favours_one_thing(
    evidence: GuardEvidence, rng: np.random.Generator, run: Run
) -> GuardEvidence | None:
    """A fifth of the labels are one sentence."""
    return _favouring(evidence, rng, 0.2)


def drops_a_type(
    evidence: GuardEvidence, rng: np.random.Generator, run: Run
) -> GuardEvidence | None:
    """The filter also drops every label of the most common action type."""
    return _dropping(evidence, 1)


def drops_three_types(
    evidence: GuardEvidence, rng: np.random.Generator, run: Run
) -> GuardEvidence | None:
    """The filter also drops every label of the three most common action types, of six."""
    return _dropping(evidence, 3)


def _dropping(evidence: GuardEvidence, num_types: int) -> GuardEvidence | None:
    if evidence.labels is None:
        return None
    kinds = [evidence.domain.kind(action) for action in evidence.labels["action"].to_pylist()]
    common = {kind for kind, _ in Counter(kinds).most_common(num_types)}
    decided = evidence.labels["accepted"].to_pylist()
    accepted = [accept and kind not in common for accept, kind in zip(decided, kinds, strict=True)]
    return replace(evidence, labels=_with(evidence.labels, "accepted", accepted))


def errs_as_surely(
    evidence: GuardEvidence, rng: np.random.Generator, run: Run
) -> GuardEvidence | None:
    """A third of the IDM's correct answers are wrong, with the same likelihoods."""
    if evidence.first_results is None:
        return None
    correct = evidence.results["idm_correct"].to_pylist()
    correct = [bool(answer and rng.random() >= 1 / 3) for answer in correct]
    return replace(evidence, results=_with(evidence.results, "idm_correct", correct))


def leaks_one_clip(evidence: GuardEvidence, rng: np.random.Generator, run: Run) -> GuardEvidence:
    """One held-out clip lies in the pool."""
    same_B = run.same.copy()
    same_B[rng.integers(len(same_B))] = True
    return replace(evidence, leakage=count_leakage(same_B, run.alike))


def leaks_clips_encoded_anew(
    evidence: GuardEvidence, rng: np.random.Generator, run: Run
) -> GuardEvidence:
    """`NUM_LEAKED` held-out clips lie in the pool with other bytes."""
    leaked = rng.choice(len(run.anew), NUM_LEAKED, replace=False)
    alike_B = run.alike.copy()
    alike_B[run.anew[leaked]] |= run.found_anew[leaked]
    return replace(evidence, leakage=count_leakage(run.same, alike_B))


FAULTS: dict[str, tuple[GuardName, Fault]] = {
    "the FDP copies": ("copy_rate", copies),
    "the FDP ignores its sentence": ("action_sensitivity", ignores_its_sentence),
    "all labels are one sentence": ("caption_collapse", says_one_thing),
    "a fifth of the labels is one sentence": ("caption_collapse", favours_one_thing),
    "the filter drops the most common type": ("type_skew", drops_a_type),
    "the filter drops three of six types": ("type_skew", drops_three_types),
    "as sure, a third of the correct ones wrong": ("calibration_drift", errs_as_surely),
    "one held-out clip in the pool": ("leakage", leaks_one_clip),
    f"{NUM_LEAKED} clips encoded anew in the pool": ("leakage", leaks_clips_encoded_anew),
}


def _favouring(
    evidence: GuardEvidence, rng: np.random.Generator, share: float
) -> GuardEvidence | None:
    if evidence.labels is None:
        return None
    actions = evidence.labels["action"].to_pylist()
    favourite = actions[int(rng.integers(len(actions)))]
    said = [favourite if rng.random() < share else action for action in actions]
    return replace(evidence, labels=_with(evidence.labels, "action", said))


def _with(table: pa.Table, column: str, values: Sequence[Any]) -> pa.Table:
    """The table with a column's values replaced, of the same type."""
    place = table.column_names.index(column)
    field = table.schema.field(column)
    return table.set_column(place, field.name, pa.array(values, field.type))


def results(
    runs: Sequence[Run], num_seeds: int, limits: GuardConfig
) -> Iterator[tuple[str, GuardResult]]:
    """Case and result of every guard on healthy draws, of the guard in question on faulty ones."""
    for number, run in enumerate(runs):
        for round_id, evidence in run.rounds.items():
            for seed in range(num_seeds):
                rng = numpy_rng("guards", number, round_id, seed)
                drawn = draw(evidence, run, rng)
                for result in evaluate_guards(drawn, limits):
                    yield "healthy", result
                for case, (name, breaks) in FAULTS.items():
                    broken = breaks(drawn, rng, run)
                    result = None if broken is None else GUARDS[name](broken, limits)
                    if result is not None:
                        yield case, result


def trained_results(num_seeds: int, limits: GuardConfig) -> Iterator[tuple[str, GuardResult]]:
    """What the guard on the sentence says of FDPs that were trained with and without its help."""
    for seed in range(num_seeds):
        cfg = load(CONFIGS / "tabletop.yaml", [f"seed={seed}", *TRAINED])
        with TemporaryDirectory() as temporary:
            folder = RunFolder(Path(temporary))
            images = load_image_tokenizer(cfg.model.family, cfg.base_path())
            data = prepare(cfg, folder, images, run_stream, silent)
            labelled = read_table(data.labelled, TRANSITION_SCHEMA)
            said = numpy_rng("shuffled", seed).permutation(labelled["action"].to_pylist()).tolist()
            for case, table in (
                ("the FDP is trained", labelled),
                ("trained on shuffled sentences", _with(labelled, "action", said)),
            ):
                place = folder.root / f"{case}.parts"
                write_pairs(place, table, TRANSITION_SCHEMA, folder.codes)
                yield case, _judged(cfg, folder, place, data, limits)


def _judged(
    cfg: LoopConfig, folder: RunFolder, transitions: Path, data: DataRefs, limits: GuardConfig
) -> GuardResult:
    """The guard's result for an FDP that is trained on a table."""
    job = fit_jobs(cfg, folder, dataset_ref(transitions), None, 0)["fdp"]
    job = replace(job, out=transitions / "fdp", checkpoint_dir=transitions / "checkpoints")
    fit_adapter(job)
    fdp = load_fdp(model_ref(job.base, job.out, job.out), cfg.model)
    heldout = read_table(data.heldout, TRANSITION_SCHEMA)
    actions = read_table(data.labelled, TRANSITION_SCHEMA, ["action"])["action"].to_pylist()
    domain = load_domain(cfg)
    columns = [results_schema(()).field(name) for name in PROBED]
    asked = pa.Table.from_pylist(heldout.select(["action"]).to_pylist(), pa.schema(columns))
    evidence = GuardEvidence(
        results=with_probes(
            asked, heldout, fdp, Sentences(actions, domain), cfg, 0, heldout.num_rows
        ),
        heldout=heldout,
        labelled_actions=actions,
        leakage=count_leakage(*np.zeros((2, heldout.num_rows), bool)),
        domain=domain,
    )
    result = GUARDS["action_sensitivity"](evidence, limits)
    assert result is not None
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how often each guard blocks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="finished run folders")
    parser.add_argument("--train", type=int, default=0, metavar="N", help="FDPs of each kind")
    parser.add_argument("--seeds", type=int, default=20, help="draws a round")
    parsed = parser.parse_args(arguments)
    found: dict[tuple[GuardName, str], list[GuardResult]] = {}
    limits = GuardConfig()
    for case, result in chain(
        results([read_run(path) for path in parsed.runs], parsed.seeds, limits),
        trained_results(parsed.train, limits),
    ):
        found.setdefault((result.name, case), []).append(result)
    print("| guard | rounds | blocked | value | limit |")
    print("| --- | --- | --- | --- | --- |")
    for name in GUARDS:
        for (guard, case), some in found.items():
            if guard == name:
                values = [result.value for result in some]
                blocked = sum(not result.passed for result in some)
                print(
                    f"| `{name}` | {case} | {blocked} of {len(some)} | {min(values):.3g} to "
                    f"{max(values):.3g} | {some[0].limit:g} |"
                )


if __name__ == "__main__":
    main()
