"""Requests for the best of 8, as the service answers them, alone and in company.

python -m benchmarks request                # 8 requests, the shipped checkpoint
python -m benchmarks request --shape mid    # 2 requests of 32 codes
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.engine_frame import Cases, Size, frames, model, run
from dynamics.core.registry import imported
from dynamics.inference.best_of_n import Prediction
from dynamics.inference.decoder import DECODERS
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.idm import InverseDynamics
from dynamics.inference.sampling import SamplingParams
from dynamics.serving.model_worker import InferenceRequest, ModelWorker

_ACTIONS = "push the red ring left", "remove the blue cross"


def cases(size: Size) -> tuple[Cases, Callable[[Mapping[str, Any]], Any]]:
    """The service's engine and the others, all requests at once; and its own one at a time."""
    vlm = model(size.shape)
    num = 8 if size.shape == "tiny" else 2
    if size.shape != "tiny":
        vlm.tokens.num_image_tokens = 32
    sampling = SamplingParams(num_samples=size.samples, temperature=1.0)
    requests = [
        InferenceRequest(
            source=partial(lambda row: row, source[None]),
            action=_ACTIONS[row % 2],
            seeds=partial(lambda row: [row], row),
            verifier="noisy_channel",
            finish=lambda prediction: prediction,
        )
        for row, source in enumerate(frames(vlm, num))
    ]

    def worker(engine: str) -> ModelWorker:
        decoder = imported(DECODERS[engine])
        idm, fdp = decoder(vlm, "idm"), decoder(vlm, "fdp")
        return ModelWorker(0, InverseDynamics(idm, ""), ForwardDynamics(fdp, ""), 10)

    workers = {engine: worker(engine) for engine in ("steady", "dynamic_cache", "shared_prefix")}

    def together(engine: str) -> list[Prediction]:
        return workers[engine].predict(requests, sampling)

    def alone() -> list[Prediction]:
        return [workers["steady"].predict([one], sampling)[0] for one in requests]

    def check(results: Mapping[str, Any]) -> str:
        ours, single = results["steady, at once"], results["steady, one at a time"]
        for one, other in zip(ours, single, strict=True):
            if (one.scores != other.scores).any() or (one.best != other.best).any():
                raise SystemExit("a request differs alone and in company")
        for name in ("dynamic_cache, at once", "shared_prefix, at once"):
            if any((a.best != b.best).any() for a, b in zip(ours, results[name], strict=True)):
                raise SystemExit(f"{name} chose another frame")
        return "frames of all engines; scores to the bit alone and in company"

    at_once = {f"{engine}, at once": partial(together, engine) for engine in workers}
    return {**at_once, "steady, one at a time": alone}, check


if __name__ == "__main__":
    run("request", cases)
