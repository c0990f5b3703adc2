"""The campaign of faults: what was tried, what held, and the table docs/RELIABILITY.md.

    python benchmarks/faults.py                 all of it, an hour on 2 cores
    python benchmarks/faults.py --only 2 7 8    some; the table keeps what was found before
    python benchmarks/faults.py --only 8 --flips 20 --cuts 5 --every 10

benchmarks/faults.yaml lists the 43 faults: each is tried by tests, by a function here, or says why
it is not. The functions work on runs of two rounds in this process, without Ray: an unbroken one
says what every other one must come to, byte by byte. Each case goes on in a forked process.
"""

import argparse
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import load
from dynamics.core.errors import UserError, as_user_error
from dynamics.exports import export_run
from dynamics.inference.load import load_pair
from dynamics.pipeline.verify import verify
from dynamics.report.page import collect, render
from dynamics.storage.run_folder import RunFolder, write_json
from tests.runs import results, run_local
from tests.serving import free_port

LIST, TABLE = ROOT / "benchmarks" / "faults.yaml", ROOT / "docs" / "RELIABILITY.md"
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
CALLS = ("open", "write", "fsync", "replace", "link", "mkdir", "rename", "unlink")
"""Functions of os that the project's own writes go through."""
NUMBERS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
UNREAD = ("report.html", ".lock")
"""Files of a run without a digest: a page for people, made anew, and a lock."""


@dataclass
class Found:
    """What a fault came to."""

    tried: int = 0
    held: int = 0
    lost: list[str] = field(default_factory=list)
    """What did not hold, a line each."""
    drawn: str = ""
    """What was drawn how often; empty for tests alone."""
    seconds: int = 0
    seed: int | None = None
    date: str = ""

    def note(self, held: bool, case: str, cases: int = 1) -> None:
        """Count a case, or several at once, of which one is lost where they did not hold."""
        self.tried += cases
        self.held += cases if held else cases - 1
        if not held:
            self.lost.append(case)

    def add(self, other: "Found") -> None:
        """Count the cases of another way to try the same fault."""
        self.tried += other.tried
        self.held += other.held
        self.lost += other.lost


class Campaign:
    """A calm run in ``folder``, which the cases are compared with.

    Args:
        folder: Empty; everything is written below.
        cfg: Of the runs.
        counts: How many cases a function draws, by its name.
        seed: Of what is drawn.
    """

    def __init__(
        self, folder: Path, cfg: LoopConfig, counts: dict[str, int], seed: int = 0
    ) -> None:
        self.folder, self.cfg, self.counts, self.seed = folder, cfg, counts, seed
        self.calm = folder / "calm"

    def make_calm(self) -> None:
        """The unbroken run, its seconds and its number of disk calls."""
        start = time.monotonic()
        assert self._forked(lambda: self._write_calm()) == 0, self._log.read_text()
        self.seconds = time.monotonic() - start
        self.num_calls = int((self.folder / "calls").read_text())

    def take_calm(self, run: Path) -> None:
        """A finished run of ``cfg`` as the unbroken one."""
        shutil.copytree(run, self.calm)
        self._run(self.calm)  # it records this configuration's free keys, as every resume does

    def kills(self) -> Found:
        """SIGKILL at moments of a run, then the same command: the same bytes, all sound."""
        found, rng = self._found("kills"), random.Random(self.seed)
        for number in range(self.counts["kills"]):
            moment = rng.uniform(0.02, 0.98) * self.seconds
            here = self.folder / f"kill-{number}"
            child = self._fork(lambda here=here: self._run(here))
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found.note(self._goes_on(here), f"killed after {moment:.1f} s")
            shutil.rmtree(here, ignore_errors=True)
        return found

    def refusals(self) -> Found:
        """A disk call fails: one line with the place; the same command gives the same bytes."""
        found, rng = self._found("refusals"), random.Random(self.seed)
        for number in range(self.counts["refusals"]):
            point, refusal = rng.randrange(self.num_calls), rng.choice(NUMBERS)
            here = self.folder / f"refusal-{number}"
            status = self._forked(lambda here=here, p=point, r=refusal: self._refused(here, p, r))
            case = f"{errno.errorcode[refusal]} at call {point}"
            found.note(status == 0 and self._goes_on(here), case)
            shutil.rmtree(here, ignore_errors=True)
        return found

    def damage(self) -> Found:
        """Bytes flipped, files cut short or deleted: named, and of no effect on any use."""
        found, rng = self._found("flips", "cuts", "every"), random.Random(self.seed)
        assert self._forked(lambda: self._use(self.calm, Path(), "calm")) == 0, (
            self._log.read_text()
        )
        files = [
            path.relative_to(self.calm)
            for path in sorted(self.calm.rglob("*"))
            if path.is_file() and path.name not in UNREAD
        ]
        cases = [("flip", rng.choice(files)) for _ in range(self.counts["flips"])]
        cases += [("cut", rng.choice(files)) for _ in range(self.counts["cuts"])]
        cases += [("delete", name) for name in files[:: self.counts["every"]]]
        for number, (kind, name) in enumerate(cases):
            # Under the same name, which the page shows.
            here = shutil.copytree(self.calm, self.folder / f"damage-{number}" / self.calm.name)
            _damage(here / name, kind, rng)
            status = self._forked(lambda case=(here, name, str(number)): self._use(*case))
            if status:
                found.note(False, f"{kind} {name}: a traceback")
            else:
                found.note(*self._judged(kind, name, str(number)))
            shutil.rmtree(here.parent)
        return found

    def overload(self) -> Found:
        """Ten times the capacity of the calm run's service."""
        return self._served("overload")

    def kills_of_replicas(self) -> Found:
        """Six replicas of the calm run's service killed under load."""
        return self._served("kill")

    def soak(self) -> Found:
        """The calm run's service under load for long."""
        return self._served("soak", "soak_minutes")

    def _served(self, section: str, *counts: str) -> Found:
        """What a section of benchmarks/serving.py wants, a case each."""
        found, out = self._found(*counts), self.folder / section
        command = [sys.executable, str(ROOT / "benchmarks" / "serving.py"), str(self.calm)]
        command += ["--sections", section, "--port", str(free_port()), "--out", str(out)]
        command += [f"--{name.replace('_', '-')}={self.counts[name]}" for name in counts]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            found.note(False, f"{section}: {done.stderr[-500:]}")
            return found
        (written,) = out.glob("*.json")
        for line in json.loads(written.read_text())["lines"]:
            if line["holds"] is not None:
                case = f"{line['what']}: {line['value']}, wanted {line['wanted']}"
                found.note(line["holds"], case)
        return found

    def _found(self, *counts: str) -> Found:
        drawn = ", ".join(f"{name.replace('_', ' ')} {self.counts[name]}" for name in counts)
        return Found(drawn=drawn, seed=self.seed)

    def _judged(self, kind: str, name: Path, number: str) -> tuple[bool, str]:
        """Whether a damage was named, and every use refused it or came to the same without it.

        A file that nobody needs any more may be deleted. Shown, and no loss: a page or a card that
        lacks what was deleted, a curve that was cut short, an export whose frames are drawn from
        codes where a video is damaged.
        """
        calm, used = (json.loads((self.folder / f"used-{n}").read_text()) for n in ("calm", number))
        calm["resume"].pop(name.as_posix(), None)
        effects = [use for use in calm if used[use] not in ("refused", calm[use])]
        named = used["verify"] != calm["verify"]
        shown = {"verify"}
        if named and kind == "delete":
            shown |= {"report", "adapters"}
        shown |= {"export"} if name.suffix == ".mp4" else set()
        shown |= {"report"} if (kind, name.suffix) == ("cut", ".jsonl") else set()
        effects = sorted({*effects} - shown)
        held = (named or kind == "delete") and not effects
        return held, f"{kind} {name}: {'' if named else 'not '}named, other {', '.join(effects)}"

    def _use(self, run: Path, damaged: Path, number: str) -> None:
        """Every use of a run: a digest of what it comes to, or "refused"."""
        folder = RunFolder(run)
        out = self.folder / f"out-{number}"

        def exported(form: str) -> bytes:
            export_run(folder, form, out / form, 1, lambda *_, **__: None)
            files = sorted(path for path in (out / form).rglob("*") if path.is_file())
            return b"".join(path.read_bytes() for path in files)

        def served() -> bytes:
            report = folder.report(1)
            if report is None:  # as `dynamics serve` says
                raise UserError(f"{run} has not finished round 1")
            models = folder.models(report, self.cfg.base_path())
            load_pair(models, self.cfg.model)
            return models.idm_digest.encode()

        def resumed() -> dict[str, str]:
            run_local(self.cfg, run)
            files = results(run)
            files.pop(damaged.as_posix(), None)  # nothing but its own damage
            return {name: sha256(payload).hexdigest() for name, payload in files.items()}

        uses: dict[str, Callable[[], Any]] = {
            "verify": lambda: "\n".join(verify(folder)[1]).encode(),
            "report": lambda: render(collect(folder)).encode(),
            "export": lambda: exported("aurora"),
            "adapters": lambda: exported("adapters"),
            "serve": served,
            "resume": resumed,
        }
        found: dict[str, Any] = {}
        for name, use in uses.items():
            try:
                made = use()
                found[name] = sha256(made).hexdigest() if isinstance(made, bytes) else made
            except Exception as error:
                if as_user_error(error) is None:
                    raise
                found[name] = "refused"
        shutil.rmtree(out, ignore_errors=True)
        (self.folder / f"used-{number}").write_text(json.dumps(found))

    def _write_calm(self) -> None:
        with _disk(-1, 0) as seen:
            self._run(self.calm)
        write_json(RunFolder(self.calm).done, {"rounds": self.cfg.rounds})  # as the command does
        (self.folder / "calls").write_text(str(next(seen)))

    def _run(self, here: Path) -> None:
        run_local(self.cfg, here)

    def _refused(self, here: Path, point: int, number: int) -> None:
        """A run whose disk refuses a call; an error that is no line with a place is one of ours."""
        try:
            with _disk(point, number):
                self._run(here)
        except Exception as error:
            line = as_user_error(error)
            if line is None or "/" not in str(line):
                raise

    def _goes_on(self, here: Path) -> bool:
        def again() -> None:
            self._run(here)
            assert results(here) == results(self.calm)
            problems = verify(RunFolder(here))[1]
            assert not problems, problems

        return self._forked(again) == 0

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _fork(self, work: Callable[[], None]) -> int:
        """A process that does some work; torch and Arrow start their threads only there."""
        child = os.fork()
        if child:
            return child
        with self._log.open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                work()
            except BaseException:
                traceback.print_exc()
                log.flush()
                os._exit(1)
            os._exit(0)

    def _forked(self, work: Callable[[], None]) -> int:
        status = os.waitpid(self._fork(work), 0)[1]
        if status:
            with (self.folder / "failures").open("a") as failures:
                failures.write(self._log.read_text()[-3000:] + "\n----\n")
        return status


@contextmanager
def _disk(point: int, number: int) -> "Iterator[count[int]]":
    """Disk calls of the body fail from the ``point``-th on for one call; yields their count."""
    seen, real = count(), {name: getattr(os, name) for name in CALLS}

    def patched(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if next(seen) == point:
                where = None if name in ("write", "fsync") else str(arguments[0])
                raise OSError(number, os.strerror(number), where)
            return real[name](*arguments, **named)

        return call

    for name in CALLS:
        setattr(os, name, patched(name))
    try:
        yield seen
    finally:
        for name, call in real.items():
            setattr(os, name, call)


def _damage(path: Path, kind: str, rng: random.Random) -> None:
    payload = bytearray(path.read_bytes())
    if kind == "delete" or not payload:
        path.unlink()
    elif kind == "cut":
        path.write_bytes(payload[: rng.randrange(len(payload))])
    else:
        payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        path.write_bytes(payload)


def small_config() -> LoopConfig:
    """Two rounds of a few seconds, on the base of a stored run."""
    return load(
        ROOT / "tests" / "test-3x3.yaml",
        [
            f"model.base={ROOT / 'tests' / 'data' / 'run-2' / 'base'}",
            "labelled={num_pairs: 20, num_heldout: 6}",
            "pool.num_pairs=20",
            "label={batch_size: 8, shard_rows: 8}",
            "train={first_steps: 20, round_steps: 20, checkpoint_every: 8, learning_rate: 0.02}",
            "evaluate.num_best_of_items=2",
            "serve.enabled=false",
        ],
    )


def by_tests(tests: Sequence[str]) -> Found:
    """The cases of some tests; skipped ones were not tried."""
    found = Found()
    with TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", *tests]
        subprocess.run(
            [*command, f"--junitxml={report}"], cwd=ROOT, check=False, stdout=subprocess.DEVNULL
        )
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {inner.tag for inner in case}
            if "skipped" not in kinds:
                name = f"{case.get('classname')}::{case.get('name')}"
                said = {one.get("name"): one.get("value") for one in case.iter("property")}
                found.note(not kinds & {"failure", "error"}, name, int(said.get("cases") or 1))
    return found


def table(faults: dict[int, dict[str, Any]], known: dict[str, Any]) -> str:
    """docs/RELIABILITY.md."""
    lines = [
        "# Reliability: what was tried, what held",
        "",
        "Written by `python benchmarks/faults.py` (`--only 2 7` tries some again); the list is",
        "benchmarks/faults.yaml, the figures are benchmarks/results/faults.json. A case is a kill,",
        "a refused call, a damaged file, or a case of a test; tests of many say how many. Runs of",
        "two rounds on the smallest base, on CPUs. The long form is the command alone, an hour",
        "on 2 cores: 60 kills, 100 refusals, 200 flips, 60 cuts, every file deleted, 5 minutes",
        "of load. A row with fewer says so.",
        "",
        "| # | fault | tried | held | lost | date | open |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, fault in faults.items():
        found = known.get(str(number))
        figures = (
            [found["tried"], found["held"], found["tried"] - found["held"], found["date"]]
            if found
            else ["not measured", "", "", ""]
        )
        drawn = f" ({found['drawn']})" if found and found["drawn"] else ""
        cells = [number, fault["what"] + drawn, *figures, fault.get("open", "")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lost = [(n, case) for n, found in known.items() for case in found["lost"]]
    if lost:
        lines += ["", "## Lost", "", *(f"- {number}: {case}" for number, case in lost)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try the faults, keep what was found after each, print what did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the list; default: all")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--refusals", type=int, default=100)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=60)
    parser.add_argument("--every", type=int, default=1, help="delete every n-th file")
    parser.add_argument("--soak-minutes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--own", action="store_true", help="without the tests")
    chosen = parser.parse_args()
    faults = yaml.safe_load(LIST.read_text())
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with TemporaryDirectory(prefix="faults-") as scratch:
        campaign = Campaign(Path(scratch), small_config(), vars(chosen), chosen.seed)
        for number, fault in faults.items():
            own = fault.get("own")
            tests = () if chosen.own else fault.get("tests", ())
            if (chosen.only and number not in chosen.only) or not (own or tests):
                continue
            start, found = time.monotonic(), Found()
            if own:
                if not campaign.calm.exists():
                    campaign.make_calm()
                found = getattr(campaign, own)()
            if tests:
                found.add(by_tests(tests))
            found.seconds = round(time.monotonic() - start)
            found.date = datetime.now(UTC).date().isoformat()
            known[str(number)] = asdict(found)
            print(
                f"{number}: {found.held} of {found.tried} held, {found.seconds} s",
                *found.lost,
                sep="\n  ",
            )
            RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        TABLE.write_text(table(faults, known))
        failures = Path(scratch, "failures")
        if failures.exists():
            print(failures.read_text())


if __name__ == "__main__":
    main()
