"""Cards: README.md with the YAML header that the Hugging Face hub reads, from Jinja templates.

Their content comes from the run's own files. Names of classes and words
of labels may come from other people's videos, so they are escaped.
"""

import html
import re
from typing import Any, Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from dynamics.core.config import PACKAGE_ROOT
from dynamics.core.records import Estimate, RoundReport
from dynamics.exports.labels import LINEAGE_SCHEMA, AcceptedLabels
from dynamics.exports.rounds import ExportedRound
from dynamics.storage.pairs import is_whole
from dynamics.storage.tables import dataset_ref
from dynamics.training.loss import Task

OWN_LICENCE = "apache-2.0"
_NAMES: dict[Task, str] = {"idm": "inverse", "fdp": "forward"}
_KIND_PREFIX = "eval/fdp_success_"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def model_card(origin: ExportedRound, task: Task) -> str:
    """The card of one adapter."""
    report, cfg = origin.report, origin.cfg
    shipped = cfg.base_path().is_relative_to(PACKAGE_ROOT)
    header = {
        "base_model": cfg.base_path().name,
        "library_name": "peft",
        "license": OWN_LICENCE if shipped else "other",
        **({} if shipped else {"license_name": "as-the-base-model"}),
        "tags": [
            "lora",
            "world-model",
            {"idm": "inverse-dynamics", "fdp": "forward-dynamics"}[task],
        ],
    }
    return _render(
        "model_card.md.j2",
        header,
        origin=origin,
        report=report,
        task=task,
        shipped=shipped,
        lora=cfg.train.lora,
        train=cfg.train.of(task),
        data=_data_digests(origin),
        metrics=_metrics(report),
        kinds=_kinds(report),
    )


def dataset_card(
    labels: AcceptedLabels, *, layout: Literal["hf", "lerobot"], header: dict[str, Any]
) -> str:
    """The card of exported labels; call it when all rows were read.

    ``header`` extends the YAML header, its tags are added.
    """
    filmed = not labels.origin.cfg.pool.parts
    own = {
        "license": OWN_LICENCE if filmed else "other",
        **({} if filmed else {"license_name": "as-the-source-videos"}),
        "task_categories": ["robotics"] if layout == "lerobot" else ["image-to-image"],
        "size_categories": [_size(len(labels))],
        "tags": ["world-model", "inverse-dynamics", *header.get("tags", ())],
    }
    return _render(
        "dataset_card.md.j2",
        {**own, **{key: value for key, value in header.items() if key != "tags"}},
        labels=labels,
        layout=layout,
        filmed=filmed,
        lineage=labels.lineage(),
        columns=LINEAGE_SCHEMA.names,
        report=labels.origin.report,
        metrics=_metrics(labels.origin.report, "label/"),
    )


def _render(template: str, header: dict[str, Any], **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("dynamics.exports", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["md"] = _markdown
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n\n{environment.get_template(template).render(**values)}"


def _markdown(text: object) -> str:
    """One line that means only itself in Markdown and in HTML."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", line)


def _metrics(report: RoundReport, prefix: str = "") -> dict[str, Estimate]:
    return {
        name: value
        for name, value in sorted(report.metrics.items())
        if name.startswith(prefix) and not name.startswith(_KIND_PREFIX)
    }


def _kinds(report: RoundReport) -> list[tuple[str, Estimate]]:
    """Success per action type, worst first."""
    found = [
        (name.removeprefix(_KIND_PREFIX), value)
        for name, value in report.metrics.items()
        if name.startswith(_KIND_PREFIX)
    ]
    return sorted(found, key=lambda one: one[1].value)


def _data_digests(origin: ExportedRound) -> dict[str, str]:
    """sha256 of the tables that are still in the run folder."""
    tables = {
        "training set": origin.run.training_set(origin.round_id),
        "labelled set": origin.run.labelled,
        "unlabelled pool": origin.run.pool,
        "held-out pairs": origin.run.heldout,
    }
    return {name: dataset_ref(path).digest for name, path in tables.items() if is_whole(path)}


def _size(num_rows: int) -> str:
    return next((name for limit, name in _SIZES if num_rows < limit), "n>1M")
