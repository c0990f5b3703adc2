"""Labelled and held-out set: no video or picture is in both, and equal seeds split equally."""

from collections import Counter
from collections.abc import Mapping, Sequence

from dynamics.core.errors import UserError
from dynamics.core.records import stable_hash
from dynamics.data.labelled.listing import LabelledPair


def split(
    pairs: Sequence[LabelledPair], fraction: float, seed: int
) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Labelled and held-out pairs, each in a drawn order.

    Pairs that share a source, also over other pairs, stay together. Whole groups are held out, in
    an order that ``seed`` draws, as long as they fit into ``fraction`` of the pairs; when none
    fits, the smallest is.

    Raises:
        UserError: everything comes from one source.
    """
    groups = grouped(pairs)
    if len(groups) < 2:
        raise UserError(
            f"all labelled pairs ({len(pairs):,}) come from one source ({pairs[0].sources[0]}): "
            "none can be held out; name pairs of other clips, too, or set labelled.heldout_path to "
            "another part of the data set"
        )
    order = sorted(groups, key=lambda group: stable_hash(seed, "heldout", group[0].sources[0]))
    room = round(fraction * len(pairs))
    heldout: list[LabelledPair] = []
    rest: list[list[LabelledPair]] = []
    for group in order:
        if len(heldout) + len(group) <= room:
            heldout += group
        else:
            rest.append(group)
    if not heldout:
        smallest = min(rest, key=len)
        rest.remove(smallest)
        heldout = smallest
    if not rest:  # a fraction near 1
        raise UserError("labelled.heldout_fraction leaves no pair to train on; lower it")
    return drawn([pair for group in rest for pair in group], seed), drawn(heldout, seed)


def drawn(pairs: Sequence[LabelledPair], seed: int) -> list[LabelledPair]:
    """The pairs in an order that only they and the seed decide: its first part is a fair sample."""
    return sorted(pairs, key=lambda pair: stable_hash(seed, "drawn", _key(pair)))


def capped(pairs: Sequence[LabelledPair], most: Mapping[str, int]) -> list[LabelledPair]:
    """The first ``most[class]`` pairs of every class that is named there, all of the others.

    Raises:
        UserError: a class is named that no pair has.
    """
    known = sorted({pair.clip_class for pair in pairs})
    if unknown := sorted(set(most) - set(known)):
        raise UserError(
            f"labelled.max_pairs names {', '.join(unknown)}, but the classes of the data set are "
            f"{', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
        )
    seen: Counter[str] = Counter()
    found = []
    for pair in pairs:
        seen[pair.clip_class] += 1
        if seen[pair.clip_class] <= most.get(pair.clip_class, len(pairs)):
            found.append(pair)
    return found


def _key(pair: LabelledPair) -> str:
    return "\x1f".join((pair.name, repr(getattr(pair.frames, "span_s", None)), pair.action))


def grouped(pairs: Sequence[LabelledPair]) -> list[list[LabelledPair]]:
    """Pairs that share a source, directly or over others; in the order of their first pairs."""
    parent: dict[str, str] = {}

    def find(source: str) -> str:
        parent.setdefault(source, source)
        while parent[source] != source:
            parent[source] = parent[parent[source]]  # halves the way for the next one
            source = parent[source]
        return source

    for pair in pairs:
        first = find(pair.sources[0])
        for other in pair.sources[1:]:
            parent[find(other)] = first
    groups: dict[str, list[LabelledPair]] = {}
    for pair in pairs:
        groups.setdefault(find(pair.sources[0]), []).append(pair)
    return list(groups.values())
