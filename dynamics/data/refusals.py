"""Sentences for reject reasons that the user can do something about."""

from dynamics.data.links import ALLOWED

SKIPPED = "skipped "
"""Begins the reason of files that are nothing to a source: ``skipped .txt``, ``skipped hidden``."""
_TARS = "the source webdataset reads videos in tars: pool.source (of ingest: --source webdataset)"
_CONVERT = "make it a video that is read, e.g. ffmpeg -i FILE FILE.mp4"
_TAR_SUFFIXES = (".tar", ".tgz", ".gz")
_PACKED_SUFFIXES = (".zip", ".rar", ".7z", ".bz2", ".xz", ".zst")
ARCHIVES = frozenset((*_TAR_SUFFIXES, *_PACKED_SUFFIXES))
_SKIPPED = (
    dict.fromkeys(_TAR_SUFFIXES, _TARS)
    | dict.fromkeys(_PACKED_SUFFIXES, "unpack it")
    | dict.fromkeys((".gif", ".wmv", ".asf", ".vob", ".ogv", ".mxf", ".rmvb"), _CONVERT)
    | dict.fromkeys((".part", ".crdownload", ".tmp"), "a download that has not ended")
)
_SENTENCES = {SKIPPED + suffix: sentence for suffix, sentence in _SKIPPED.items()} | {
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
    "archive": "labelled sets are read unpacked; unpack it",
    "tar_unreadable": "no plain or gzip tar; pack it again",
    "tar_member": "a link, a device, or larger than 4 GiB; pack the file itself, or unpack the tar",
}


def way_out(reason: str) -> str:
    """What to do about a reason, after a colon; "" where there is nothing to do."""
    return f": {_SENTENCES[reason]}" if reason in _SENTENCES else ""
