"""Example scenes: photographs of tabletops that no clip of the run shows."""

from dynamics.core.config import LoopConfig
from dynamics.core.domain import ExampleScene
from dynamics.core.places import Place
from dynamics.core.seeds import numpy_rng
from dynamics.data.video.filmed import filmed_states
from dynamics.tabletop.language import say
from dynamics.tabletop.render import snapshot
from dynamics.tabletop.scene import Scene, apply, sample_action, sample_scene

NUM_SCENES = 6
NUM_ACTIONS = 5


def example_scenes(cfg: LoopConfig, data: Place) -> list[ExampleScene]:
    """The same scenes every time, each with actions that are possible one after the other.

    They have random numbers of their own; a scene that a clip shows is drawn again.
    """
    seen = filmed_states(data)
    world = cfg.world
    scenes = []
    for number in range(NUM_SCENES):
        rng = numpy_rng(cfg.seed, "serving-scenes", number)
        scene = sample_scene(rng, world.grid, world.min_objects, world.max_objects)
        while scene.to_text() in seen:
            scene = sample_scene(rng, world.grid, world.min_objects, world.max_objects)
        actions: list[str] = []
        state: Scene | None = scene
        for _ in range(NUM_ACTIONS):
            assert state is not None  # sample_action only offers possible actions
            action = sample_action(rng, state, min_objects=world.min_objects)
            actions.append(say(action, rng))
            state = apply(state, action)
        frame = snapshot([scene], world, rng)[0]
        scenes.append(ExampleScene(name=f"table {number + 1}", frame=frame, actions=actions))
    return scenes
