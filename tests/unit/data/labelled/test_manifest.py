"""Texts of manifests as people have them: read, or a line that says what was found."""

import gzip
import json

import pytest

from dynamics.core.errors import UserError
from dynamics.data.labelled.manifest import read_rows

ROWS = [{"instruction": "pousse la bille à gauche", "input": "a.png"}, {"instruction": "é"}]
TEXT = json.dumps(ROWS, ensure_ascii=False)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_rows_are_read_in_every_unicode_encoding(tmp_path, encoding):
    path = tmp_path / "train.json"
    path.write_bytes(TEXT.encode(encoding))
    assert read_rows(path) == ROWS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"<html>404", "it begins with '<html>404'"),
        (TEXT[:-20].encode(), "the file may be cut"),
        (TEXT.replace("}]", "},]").encode(), "a comma stands before it"),
        (gzip.compress(TEXT.encode()), "is a gzip file; unpack it"),
        (b"PK\x03\x04", "is a zip file; unpack it"),
        (TEXT.encode("latin-1"), "iconv"),
        (b'{"data": []}', "jq .data"),
        (b'{"1": {"label": "a"}, "2": {"label": "b"}}', r"jq '\[\.\[\]\]'"),
        (b'{\n"id": 1\n}\n{\n"id": 2\n}', "jq -s"),
    ],
)
def test_what_is_no_manifest_is_named(tmp_path, content, said):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)
