import os

import pytest

from dynamics.core.images import PictureError, read_picture
from dynamics.data.labelled.paths import MAX_IMAGE_BYTES, ImageFile, Refused, Root


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "root"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"a")
    return folder


def reason_of(root, name) -> str:
    with pytest.raises(Refused) as caught:
        Root(root).find(name)
    return str(caught.value)


OUTSIDE = [
    "../outside/secret.png",
    "images/../../outside/secret.png",
    "images/../images/a.png",
    "..",
    "/etc/passwd",
    "//etc/passwd",
    "file:///etc/passwd",
    "http://example.org/a.png",
    "https://example.org/a.png",
    "data:image/png;base64,AAAA",
    "C:/a.png",
    "images\\..\\a.png",
    "images/a.png\0.txt",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_elsewhere_are_refused(root, name):
    assert reason_of(root, name) == "path_outside"


@pytest.mark.parametrize("name", [None, "", 7, ["images/a.png"], {"path": "images/a.png"}])
def test_what_is_no_name_is_refused(root, name):
    assert reason_of(root, name) == "no_path"


def test_links_out_of_the_root_are_refused_and_links_within_are_followed(root, tmp_path):
    (root / "out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "dangling.png").symlink_to(root / "nothing.png")
    (root / "within.png").symlink_to(root / "images" / "a.png")
    (root / "same").symlink_to(root / "images")
    assert reason_of(root, "out.png") == "symlink"
    assert reason_of(root, "folder/secret.png") == "symlink"
    assert reason_of(root, "loop.png") == "not_a_file"
    assert reason_of(root, "dangling.png") == "missing_file"
    for name in ("within.png", "same/a.png"):
        assert ImageFile(Root(root).find(name), name).read() == b"a"


def test_a_root_whose_name_begins_another_is_not_that_other(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2" / "a.png").write_bytes(b"a")
    (tmp_path / "root" / "a.png").symlink_to(tmp_path / "root-2" / "a.png")
    assert reason_of(tmp_path / "root", "a.png") == "symlink"


def test_missing_files_folders_and_pipes_are_told_apart(root):
    os.mkfifo(root / "pipe.png")
    assert reason_of(root, "images/b.png") == "missing_file"
    assert reason_of(root, "images/a.png/b.png") == "missing_file"
    assert reason_of(root, "x" * 5000) == "missing_file"
    assert reason_of(root, "images") == "not_a_file"
    assert reason_of(root, "pipe.png") == "not_a_file"


def test_a_file_that_became_a_link_a_pipe_or_nothing_is_not_read(root, tmp_path):
    path = Root(root).find("images/a.png")
    image = ImageFile(path, "images/a.png")
    path.unlink()
    with pytest.raises(Refused, match="missing_file"):
        image.read()
    path.symlink_to(tmp_path / "outside" / "secret.png")
    with pytest.raises(Refused, match="missing_file"):
        image.read()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Refused, match="not_a_file"):
        image.read()


def test_a_huge_file_is_refused_by_its_size_and_an_empty_one_by_the_reader_of_pictures(root):
    path = root / "images" / "b.png"
    with path.open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(Refused, match="file_size"):
        ImageFile(path, "b").read()
    path.write_bytes(b"")
    with pytest.raises(PictureError) as caught:
        read_picture(ImageFile(path, "b").read())
    assert caught.value.reason == "unreadable"
