"""The benchmark of the image tokenizer runs, with a tiny network on the CPU."""

import json
import subprocess
import sys

import pytest

from dynamics.core.config import REPOSITORY_ROOT


@pytest.mark.slow
def test_the_encode_benchmark_measures_every_way_of_encoding():
    command = [sys.executable, "benchmarks/encode.py", "--tiny", "--frames", "4", "--repeats", "1"]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, check=True)
    found = json.loads(done.stdout)
    for name in ("codes and features, one pass", "decode"):
        assert found[f"{name}, float32 batch 4"] > 0
        assert found[f"{name}, bfloat16 batch 1"] > 0
    assert found["share of equal codes, bfloat16"] > 0.5
    assert found["distinct codes"] > 100
