"""Accepted labels that people name again, without seeing them: how many are wrong?"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dynamics.annotate.answers import Answer, Shot, agreed
from dynamics.annotate.candidates import Candidate
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA
from dynamics.data.video.sources import Clip
from dynamics.evaluation.audit import LabelAudit, audit
from dynamics.serving.model_registry import promoted_rounds
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import RunFolder, write_json
from dynamics.storage.tables import iter_table, read_table

_SHOT = ("pair_id", "clip_path", "clip_class", "frame0", "frame1", "t0_s", "t1_s")


class Audit:
    """The labels that a run's last promoted round accepted.

    Attributes:
        labels: their label_id by pair.
        words: sentences of the run's labelled set, counted: people choose among them.

    Raises:
        UserError: no promoted round has accepted labels.
    """

    def __init__(self, run: RunFolder) -> None:
        rounds = [n for n, report in promoted_rounds(run).items() if report.num_accepted]
        if not rounds:
            raise UserError(f"{run.root} has no promoted round with accepted labels to audit")
        self._run, self._round = run, max(rounds)
        self._accepted: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        columns = ["label_id", "pair_id", "action"]
        for rows in Ledger(run.ledger).iter_accepted(self._round, columns):
            ids, pairs, actions = (rows[name].to_pylist() for name in columns)
            self._accepted |= zip(ids, actions, strict=True)
            self.labels |= zip(pairs, ids, strict=True)
        labelled = read_table(run.labelled, TRANSITION_SCHEMA, ["action"])
        self.words = Counter(labelled["action"].to_pylist())

    def drawn(self, clips: Mapping[str, Clip], answered: Iterable[Shot]) -> "Drawn":
        """The pairs that nobody has named yet, in random order.

        Raises:
            UserError: none of the labels is about one of the clips.
        """
        rows = (
            row
            for table in iter_table(self._run.pool, PAIR_SCHEMA, _SHOT)
            for row in table.to_pylist()
            if row["pair_id"] in self.labels and row["clip_path"] in clips
        )
        # A label's key is a hash, so its order is a random one, and always the same.
        shots = sorted((Shot(**row) for row in rows), key=lambda shot: self.labels[shot.pair_id])
        if not shots:
            raise UserError(
                f"no clip of the accepted labels lies in this folder; give the one that the pool "
                f"of {self._run.root} was read from"
            )
        known = {shot.pair_id for shot in answered}
        return Drawn([shot for shot in shots if shot.pair_id not in known], clips)

    def counts(self, answer: Answer) -> bool:
        """True for an answer about a label of this audit, drawn for it."""
        return answer.label != "" and self.labels.get(answer.shot.pair_id) == answer.label

    def keep(self, by_name: Mapping[str, Sequence[Answer]]) -> LabelAudit:
        """Compare all answers with the labels, and keep the figures in the run's round."""
        ours = {who: [one for one in said if self.counts(one)] for who, said in by_name.items()}
        said: dict[str, str | None] = {one.label: None for each in ours.values() for one in each}
        said |= {answers[0].label: answers[0].action for answers in agreed(ours)}
        found = audit(self._round, self._accepted, said, load_domain(self._run.config()))
        write_json(self._run.audit(self._round), found.to_json())
        return found


class Drawn:
    """Pairs in a given order; what a `Session` needs of `Candidates`."""

    complete, failed, num_bad = True, None, 0

    def __init__(self, shots: Iterable[Shot], clips: Mapping[str, Clip]) -> None:
        self._waiting, self._clips = deque(shots), clips
        self.num_read = len(clips)

    def start(self) -> None:
        """Nothing has to be read."""

    def stop(self) -> None:
        """Nothing is read."""

    @property
    def num_waiting(self) -> int:
        """Pairs that were not asked about."""
        return len(self._waiting)

    def take(self) -> Candidate | None:
        """The next pair."""
        if not self._waiting:
            return None
        shot = self._waiting.popleft()
        return Candidate(shot=shot, clip=self._clips[shot.clip_path], features=np.zeros(0))
