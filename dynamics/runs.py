"""The Python API of a finished run: its rounds' models in this process, its labels as tables.

    run = dynamics.open("runs/tabletop")
    run.labels(3).to_pandas()
    model = run.round(3)
    model.predict("table.png", "remove the red ring", n=8).image.show()

A picture is a path, encoded bytes, a PIL picture or uint8 [H, W, 3]. Answers are those of the
service (`dynamics.client`), bit for bit, and have the same types.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from dynamics.core.animation import FORMATS, animation
from dynamics.core.config import LoopConfig, VerifierName
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.core.places import Place, as_place
from dynamics.core.quiet import quiet_transformers
from dynamics.core.records import RoundReport
from dynamics.storage.files import write_bytes
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from dynamics.client import End, Prediction, Step
    from dynamics.client.client import Picture
    from dynamics.serving.model_worker import InferenceRequest, ModelWorker
    from dynamics.serving.schemas import LabelReply, Sampling

__all__ = ["Episode", "Round", "Run", "open"]

RequestT = TypeVar("RequestT", bound="Sampling")


def open(run: str | Path) -> "Run":
    """The run in a folder or store (``runs/tabletop``, ``s3://lab/runs/first``); loads no model.

    Raises:
        UserError: no run lies there, or one of another version.
    """
    quiet_transformers()
    folder = RunFolder(as_place(str(run)).expanduser().absolute())
    return Run(folder, folder.config())


class Run:
    """A run; made by `open`.

    Attributes:
        config: its resolved configuration.
    """

    def __init__(self, folder: RunFolder, config: LoopConfig) -> None:
        self._folder = folder
        self.config = config

    @property
    def folder(self) -> Place:
        """The run folder."""
        return self._folder.root

    @property
    def rounds(self) -> list[int]:
        """Numbers of the finished rounds."""
        return [report.round_id for report in self.reports()]

    def reports(self) -> list[RoundReport]:
        """What was measured, by round: ``.metrics["eval/fdp_success"].value``."""
        return self._folder.reports(self.config.rounds)

    def round(self, number: int | None = None) -> "Round":
        """A round's models, by default those of the last promoted one; they load at first use.

        Raises:
            UserError: the round is not finished.
        """
        reports = {report.round_id: report for report in self.reports()}
        promoted = [number for number, report in reports.items() if report.promoted]
        if number is None and promoted:
            number = promoted[-1]
        if number is None or number not in reports:
            known = ", ".join(map(str, reports)) or "none"
            raise UserError(f"{self.folder} has no finished round {number}; finished: {known}")
        return Round(self._folder, self.config, reports[number])

    def labels(self, number: int) -> "pa.Table":
        """The labels that a round gave the pool, with the filter's decisions.

        Columns: those of ``LABEL_SCHEMA`` (``pair_id``, ``action``, ``scores`` ...), then
        ``accepted``, ``score`` and ``reason``. ``.to_pandas()`` gives a data frame.

        Raises:
            UserError: the round labelled nothing (round 0), or is not finished.
        """
        import pyarrow as pa

        return pa.concat_tables(Ledger(self._folder.ledger).iter_decided(number))

    def __repr__(self) -> str:
        return f"<Run {self.folder}, rounds {self.rounds}>"


class Round:
    """The IDM and FDP of a round; made by `Run.round`.

    Attributes:
        report: what was measured of it.
    """

    def __init__(self, folder: RunFolder, config: LoopConfig, report: RoundReport) -> None:
        self._folder = folder
        self._config = config
        self.report = report

    def predict(self, image: "Picture", action: str, **sampling: Any) -> "Prediction":
        """The frame after an action: the best of ``n`` candidates.

        Args:
            image: the frame before it.
            action: a sentence, e.g. ``push the red ring left``.
            **sampling: ``n``, ``temperature``, ``seed``, ``verifier`` and ``candidates``, as in
                `dynamics.client.Client.predict`.

        Raises:
            UserError: picture, action or option cannot be used.
        """
        from dynamics.client.client import encode_image, to_prediction
        from dynamics.serving.schemas import PredictRequest
        from dynamics.serving.sessions import PredictSession

        content = encode_image(image)
        request = _request(PredictRequest, image=content, action=action, **sampling)
        self._worker.check_action(action)
        session = PredictSession(
            self._worker, self._domain, self._frame(content), request, [action],
            self._verifier(request),
        )  # fmt: skip
        return to_prediction(self._answer(session.request(action), request))

    def rollout(
        self, image: "Picture", actions: Sequence[str], *, beam: int = 1, **sampling: Any
    ) -> "Episode":
        """Several actions in a row, each from the frame that the one before it led to.

        Args:
            image: the first frame.
            actions: sentences.
            beam: sequences of frames that are kept after each step.
            **sampling: as in `predict`.

        Raises:
            UserError: picture, an action or option cannot be used.
        """
        from dynamics.client.client import decode_image, encode_image, to_end, to_step
        from dynamics.serving.schemas import RolloutRequest
        from dynamics.serving.sessions import RolloutSession

        content = encode_image(image)
        request = _request(
            RolloutRequest, image=content, actions=list(actions), beam=beam, **sampling
        )
        for action in actions:
            self._worker.check_action(action)
        session = RolloutSession(
            self._worker, self._domain, self._frame(content), request, self._verifier(request)
        )
        source = decode_image(session.start().source)
        made = [self._answer(session.request(action), request) for action in actions]
        assert session.end is not None  # the last step has set it
        return Episode(source=source, steps=tuple(map(to_step, made)), end=to_end(session.end))

    def label(self, before: "Picture", after: "Picture") -> "LabelReply":
        """The action that the IDM sees between two frames, with its log-probability."""
        from dynamics.client.client import encode_image
        from dynamics.serving.model_worker import Pair
        from dynamics.serving.service import label_reply

        pair = Pair(self._frame(encode_image(before)), self._frame(encode_image(after)))
        return label_reply(self._worker, self._worker.label([pair])[0])

    @cached_property
    def _worker(self) -> "ModelWorker":
        """The models, loaded."""
        from dynamics.inference.load import load_pair
        from dynamics.serving.model_worker import ModelWorker, for_clients

        models = self._folder.models(self.report, self._config.base_path())
        pair = load_pair(models, for_clients(self._config.model))
        return ModelWorker(self.report.round_id, *pair, self._config.label.max_action_tokens)

    @cached_property
    def _domain(self) -> Any:
        return load_domain(self._config)

    def _frame(self, content: str) -> "np.ndarray":
        """The picture as the model sees it, uint8 [H, W, 3]."""
        from dynamics.serving.images import fitted

        return fitted(content, self._worker.images)

    def _verifier(self, request: "Sampling") -> VerifierName:
        return request.verifier or self._config.serve.verifier

    def _answer(self, inference: "InferenceRequest", request: "Sampling") -> Any:
        from dynamics.inference.sampling import SamplingParams

        count = request.n or self._config.serve.num_samples
        sampling = SamplingParams(num_samples=count, temperature=request.temperature)
        (answer,) = self._worker.predict([inference], sampling)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __repr__(self) -> str:
        return f"<Round {self.report.round_id} of {self._folder.root}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A roll-out that is finished."""

    source: "Image.Image"
    """The given picture as the model saw it."""
    steps: "tuple[Step, ...]"
    """One an action, each with its chosen frame, candidates and scores."""
    end: "End"
    """The best sequence of frames; with a beam it may differ from the steps'."""

    @property
    def frames(self) -> "list[Image.Image]":
        """The source, then a frame an action."""
        return [self.source, *self.end.frames]

    def save(self, path: str | Path, *, seconds: float = 1.0) -> None:
        """Write the frames as an animation, each shown for ``seconds``.

        Raises:
            UserError: the name ends neither in ``.gif`` nor in ``.mp4``.
        """
        place = Path(path)
        kind = place.suffix.removeprefix(".")
        if kind not in FORMATS:
            raise UserError(f"{path} must end in .gif or .mp4")
        write_bytes(place, animation(self.frames, kind, seconds=seconds))


def _request(kind: type[RequestT], **fields: Any) -> RequestT:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from error
