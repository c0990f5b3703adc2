"""What tests of the service share."""

import base64
import io
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from dynamics.core.config import LoopConfig
from dynamics.serving import in_process
from dynamics.serving.service import RoundService
from dynamics.storage.run_folder import RunFolder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def png(size: tuple[int, int] = (48, 48), mode: str = "RGB", colour: Any = 0) -> str:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def local_service(cfg: LoopConfig, folder: Path) -> RoundService:
    """The service of a run in this process, no round promoted yet."""

    return in_process.local_service(cfg, RunFolder(folder))


def copy_of(run: Path, target: Path) -> Path:
    """A run to break, without its videos."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("clips", "mlartifacts"))
    return target


def damage(adapter: Path) -> None:
    """Another byte in the middle of an adapter's weights."""
    path = next(adapter.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and bodies of server-sent events."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def figures(url: str, **options: Any) -> dict[str, float]:
    """Prometheus' figures by name with labels."""
    lines = httpx.get(f"{url}/metrics", timeout=30, **options).text.splitlines()
    values = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in values}
