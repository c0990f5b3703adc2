"""State and physics of the tabletop.

A scene is a square grid; a cell holds nothing or one object. Objects are told apart by kind
(colour and shape), and no kind occurs twice, so "the red ring" always names one object.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Colour = Literal["red", "green", "blue", "yellow"]
Shape = Literal["square", "ring", "cross"]
Direction = Literal["left", "right", "up", "down"]
Side = Literal["left of", "right of", "above", "below"]
ActionType = Literal["move", "slide", "put", "swap", "remove", "paint"]

COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
SIDES: tuple[Side, ...] = get_args(Side)
ACTION_TYPES: tuple[ActionType, ...] = get_args(ActionType)
NUM_KINDS = len(COLOURS) * len(SHAPES)

_STEP: dict[str, tuple[int, int]] = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (-1, 0),
    "below": (1, 0),
}


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """The look of an object."""

    colour: Colour
    shape: Shape

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def index(self) -> int:
        """1..12; 0 is the empty cell."""
        return 1 + COLOURS.index(self.colour) * len(SHAPES) + SHAPES.index(self.shape)


KINDS: tuple[Kind, ...] = tuple(Kind(colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True, slots=True)
class Scene:
    """A state of the table: the kind of object in each cell."""

    grid: int
    cells: tuple[int, ...]
    """``grid * grid`` kind indices, row by row; 0 = empty."""

    def cell_of(self, kind: Kind) -> int | None:
        """The cell of the object, None when it is not on the table."""
        try:
            return self.cells.index(kind.index)
        except ValueError:
            return None

    @property
    def objects(self) -> list[Kind]:
        """The kinds on the table, in cell order."""
        return [KINDS[index - 1] for index in self.cells if index]

    def neighbour(self, cell: int, step: str) -> int | None:
        """The cell one step (a direction or a side) away, None beyond the edge."""
        row, column = divmod(cell, self.grid)
        row, column = row + _STEP[step][0], column + _STEP[step][1]
        inside = 0 <= row < self.grid and 0 <= column < self.grid
        return row * self.grid + column if inside else None

    def to_text(self) -> str:
        """Canonical text: ``4:0,0,3,...``; equal scenes have equal text."""
        return f"{self.grid}:" + ",".join(map(str, self.cells))

    @classmethod
    def from_text(cls, text: str) -> "Scene":
        """Inverse of `to_text`."""
        grid, _, cells = text.partition(":")
        return cls(int(grid), tuple(int(cell) for cell in cells.split(",")))


@dataclass(frozen=True, slots=True)
class Move:
    """Move an object one cell; it pushes the whole chain of objects in front."""

    obj: Kind
    direction: Direction


@dataclass(frozen=True, slots=True)
class Slide:
    """Slide an object until the edge or another object."""

    obj: Kind
    direction: Direction


@dataclass(frozen=True, slots=True)
class Put:
    """Put an object into the free cell at one side of another object."""

    obj: Kind
    side: Side
    other: Kind


@dataclass(frozen=True, slots=True)
class Swap:
    """Swap the places of two objects."""

    obj: Kind
    other: Kind


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove an object from the table."""

    obj: Kind


@dataclass(frozen=True, slots=True)
class Paint:
    """Paint an object; impossible when that kind is on the table already."""

    obj: Kind
    colour: Colour


Action = Move | Slide | Put | Swap | Remove | Paint


def action_type(action: Action) -> ActionType:
    """The name of the action's type."""
    return ACTION_TYPES[(Move, Slide, Put, Swap, Remove, Paint).index(type(action))]


def apply(scene: Scene, action: Action) -> Scene | None:
    """The scene after the action.

    An action that is blocked (a chain against the edge, an occupied or missing cell beside the
    other object, a colour that would make a kind twice) gives an equal scene; None when an
    object that the action names is not on the table.
    """
    here = scene.cell_of(action.obj)
    if here is None:
        return None
    match action:
        case Move(direction=direction):
            return _shift_chain(scene, here, direction)
        case Slide(direction=direction):
            return _relocate(scene, here, _end_of_slide(scene, here, direction))
        case Put(side=side, other=other):
            there = scene.cell_of(other)
            if there is None or other == action.obj:
                return None
            return _relocate(scene, here, scene.neighbour(there, side))
        case Swap(other=other):
            there = scene.cell_of(other)
            if there is None:
                return None
            return _with(scene, {here: scene.cells[there], there: scene.cells[here]})
        case Remove():
            return _with(scene, {here: 0})
        case Paint(colour=colour):
            painted = Kind(colour, action.obj.shape).index
            return scene if painted in scene.cells else _with(scene, {here: painted})


def _with(scene: Scene, changes: dict[int, int]) -> Scene:
    cells = list(scene.cells)
    for cell, value in changes.items():
        cells[cell] = value
    return Scene(scene.grid, tuple(cells))


def _relocate(scene: Scene, here: int, there: int | None) -> Scene:
    if there is None or scene.cells[there]:
        return scene
    return _with(scene, {here: 0, there: scene.cells[here]})


def _end_of_slide(scene: Scene, here: int, direction: Direction) -> int | None:
    end = None
    ahead = scene.neighbour(here, direction)
    while ahead is not None and not scene.cells[ahead]:
        end = ahead
        ahead = scene.neighbour(ahead, direction)
    return end


def _shift_chain(scene: Scene, here: int, direction: Direction) -> Scene:
    chain = [here]
    ahead = scene.neighbour(here, direction)
    while ahead is not None and scene.cells[ahead]:
        chain.append(ahead)
        ahead = scene.neighbour(ahead, direction)
    if ahead is None:
        return scene
    targets = [*chain[1:], ahead]
    return _with(
        scene, {here: 0} | {to: scene.cells[at] for at, to in zip(chain, targets, strict=True)}
    )


def transition_key(source: Scene, target: Scene) -> int:
    """32-bit name of a transition, to tell which ones a data set has seen."""
    text = f"{source.to_text()}>{target.to_text()}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def all_actions(scene: Scene) -> list[Action]:
    """Every action on the scene's objects that changes it, in a fixed order."""
    actions: list[Action] = []
    for obj in sorted(scene.objects):
        actions += [Move(obj, direction) for direction in DIRECTIONS]
        actions += [Slide(obj, direction) for direction in DIRECTIONS]
        for other in sorted(scene.objects):
            if other != obj:
                actions += [Put(obj, side, other) for side in SIDES]
                actions.append(Swap(obj, other))
        actions.append(Remove(obj))
        actions += [Paint(obj, colour) for colour in COLOURS]
    return [action for action in actions if apply(scene, action) not in (None, scene)]


def sample_scene(rng: np.random.Generator, grid: int, min_objects: int, max_objects: int) -> Scene:
    """A scene with distinct kinds in distinct cells."""
    count = int(rng.integers(min_objects, max_objects + 1))
    cells = np.zeros(grid * grid, dtype=np.int64)
    where = rng.permutation(grid * grid)[:count]
    cells[where] = 1 + rng.permutation(NUM_KINDS)[:count]
    return Scene(grid, tuple(cells.tolist()))


def sample_action(rng: np.random.Generator, scene: Scene, min_objects: int = 1) -> Action:
    """An action that changes the scene: the type uniform among the possible ones, then the rest.

    Removal is left out while it would leave fewer than ``min_objects`` on the table.
    """
    by_type: dict[ActionType, list[Action]] = {}
    for action in all_actions(scene):
        if isinstance(action, Remove) and len(scene.objects) <= min_objects:
            continue
        by_type.setdefault(action_type(action), []).append(action)
    kinds = sorted(by_type)
    choices = by_type[kinds[int(rng.integers(len(kinds)))]]
    return choices[int(rng.integers(len(choices)))]
