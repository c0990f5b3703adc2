"""The study's published page and plots against its JSON."""

import pytest

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.storage.run_folder import read_json
from dynamics.studies.experiments import FRESH_SEEDS
from dynamics.studies.results import Results
from dynamics.studies.runner import RESULTS_FILE, published

DOCS = REPOSITORY_ROOT / "docs"


@pytest.fixture(scope="module")
def results() -> Results:
    return Results.from_json(read_json(DOCS / "study" / RESULTS_FILE))


def test_the_published_page_is_the_rendering_of_its_json(results: Results) -> None:
    assert results.world == "tabletop"
    assert (DOCS / "RESULTS.md").read_text() == published(DOCS)


def test_the_published_study_ran_on_seeds_that_nothing_was_chosen_on(results: Results) -> None:
    assert results.seeds == FRESH_SEEDS
    assert 0 not in results.seeds


def test_the_readme_shows_the_three_curves() -> None:
    readme = (REPOSITORY_ROOT / "README.md").read_text()
    for name in ("ease", "rounds", "verification-round-3-t-1.0"):
        assert f"](docs/study/{name}.png)" in readme
        assert (DOCS / "study" / f"{name}.png").is_file()
