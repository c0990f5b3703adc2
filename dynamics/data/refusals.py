"""Sentences for reject reasons that the user can do something about."""

from dynamics.data.links import ALLOWED

_SENTENCES = {
    "symlink": "the link leads out of the folder; to follow it, name the folder that it leads to "
    f"in {ALLOWED}",
    "dangling_link": "the link leads to nothing; fetch the file (dvc pull, git annex get, or the "
    "download again)",
    "path_outside": "the name is absolute, a URL, or leads out of the folder; write it relative to "
    "the folder",
    "git_lfs": "a pointer of Git LFS lies in place of the file; run git lfs pull",
    "git_annex": "a pointer of git-annex lies in place of the file; run git annex get",
    "ambiguous_name": "several files have this name but for case or accents; write it as it is",
    "timeout": "the decoder used more processor time than the clip's length allows; raise "
    "decode_timeout_s or decode_cpu_per_s (of ingest: --timeout, --cpu-per-s)",
    "tar_unreadable": "no plain or gzip tar; pack it again",
}


def way_out(reason: str) -> str:
    """What to do about a reason, after a colon; "" where there is nothing to do."""
    return f": {_SENTENCES[reason]}" if reason in _SENTENCES else ""
