"""The contact sheet of a small folder of real clips."""

import re
import shutil

import numpy as np
import pytest

from dynamics.core.config import KeyframeConfig, PoolConfig
from dynamics.core.progress import silent
from dynamics.data.units import Encoding
from dynamics.data.video.encode import write_mp4
from dynamics.data.video.ingest import Folder, FolderError, ingest_videos
from dynamics.report import sheet
from tests.made_data import film

KEYFRAMES = KeyframeConfig(top_k=6, spacing_frames=3)


class BlindTokenizer:
    """One code a frame, its mean brightness: movement changes nothing."""

    frame_px, bars, num_tokens, num_codes = 32, None, 1, 4

    def encode(self, frames_BHW3):
        return self.encode_with_features(frames_BHW3)[0]

    def encode_with_features(self, frames_BHW3):
        features_BLD = frames_BHW3.mean((1, 2, 3)).reshape(-1, 1, 1)
        return (features_BLD[..., 0] // 64).astype(np.int64), features_BLD

    def decode(self, codes_BL):
        shades = (codes_BL * 64 + 32).astype(np.uint8)[:, :, None, None]
        return np.broadcast_to(shades, (len(codes_BL), 32, 32, 3)).copy()


def written(root, out, keyframes=KEYFRAMES):
    images = BlindTokenizer()
    folder = Folder(root=root, keyframes=keyframes)
    pool = PoolConfig(path=root, max_bad_fraction=1)
    encoding = Encoding(codes=out / "codes", load=lambda _: images, decide=lambda *_: "float32")
    try:
        _, (report,) = ingest_videos([folder], out / "p.parts", pool, images, encoding)
    except FolderError as error:
        report = error.report
    path = out / "pairs.html"
    reader = sheet.sheet_reader(folder, pool, images)
    sheet.write_sheet(path, folder, report, reader, images, silent)
    return path.read_text(), report


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("in")
    for number in range(3):
        write_mp4(root / f"push_{number}.mp4", film([number, 4 + number, 8 + number]), 6)
    still = film([50, 50, 50])
    write_mp4(root / "idle.mp4", still, 6)
    write_mp4(root / "cut.mp4", np.concatenate([still[:9], 255 - still[:9]]), 6)
    shutil.copy(root / "push_0.mp4", root / "push_0_again.mp4")
    (root / "broken <b>.mp4").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    return written(clips, tmp_path_factory.mktemp("out"))


def test_every_clip_is_shown_with_its_pairs_or_named_with_its_reason(made):
    page, report = made
    cards = {re.search("<h3>(.*?)<", card)[1]: card for card in page.split('<li class="clip ')[1:]}
    assert list(cards) == ["cut.mp4", "idle.mp4", "push_0.mp4", "push_1.mp4", "push_2.mp4"]
    for name, verdict in (("push_1", "kept"), ("idle", "near copy"), ("cut", "shot cut")):
        assert f"</b>{verdict}<br>" in cards[f"{name}.mp4"]
    shown = sum(card.count("<b>") for card in cards.values())
    assert shown == report.num_pairs + sum(report.rejects[f"pair/{one}"] for one in sheet.WORDS)
    left_out = page.split('id="left-out"')[1]
    assert "push_0_again.mp4" in left_out
    assert "broken &lt;b&gt;.mp4" in left_out
    assert "unreadable: 1" in left_out


def test_pairs_that_the_tokenizer_cannot_tell_apart_stand_out(made):
    page, report = made
    assert page.count("same codes</li>") == report.num_pairs == 3
    assert f"In {report.num_pairs} of {report.num_pairs} kept pairs both frames have the" in page


def test_the_sheet_asks_for_nothing_and_runs_nothing(made):
    page, _ = made
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"<script|https?://|url\(", page)
    assert set(re.findall(r'src="([^,]*),', page)) == {"data:image/webp;base64"}


@pytest.mark.slow
def test_a_large_folder_without_any_pair_is_sampled_and_paged(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "MOST_CLIPS", 4)
    monkeypatch.setattr(sheet, "_PAGE_CLIPS", 3)
    page, report = written(clips, tmp_path, KEYFRAMES.model_copy(update={"min_change": 0.9}))
    assert report.num_pairs == 0
    assert "</b>near copy<br>" in page
    assert page.count('<li class="clip ') == 4
    assert page.count('<section class="page"') == 2
    assert "4 of 6 clips are shown" in page


def test_a_strip_keeps_to_its_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
    small, large = (len(sheet._strip(noise, noise, budget)) for budget in (40_000, 400_000))
    assert small < 40_000 * 4 / 3 + 100 < large
