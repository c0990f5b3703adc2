"""Pointers that version control leaves in place of large files."""

_BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": "git_lfs",
    b"/annex/objects/": "git_annex",
}
HEAD_BYTES = max(map(len, _BEGINNINGS))


def pointer_kind(head: bytes) -> str | None:
    """``git_lfs`` or ``git_annex`` when a file that begins so is a pointer, None for any other."""
    return next((kind for begin, kind in _BEGINNINGS.items() if head.startswith(begin)), None)
