"""`kairos play`: drive the imagined robot in a browser page on this machine."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kairos_env.records import Observation

STARTS = 16  # of a recording, at most


def run(
    model: str = "kairos-tiny",
    task: str | None = None,
    start: str = "dataset",
    data: str = "",
    map: str = "",
    steps: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    port: int = 0,
    out: Path = Path("runs/play"),
    open: bool = False,
) -> int:
    """Serves the page until Ctrl-C.

    Args:
        model: bundled name or model folder.
        task: task to begin with; by default the model's first.
        start: where a reset begins: dataset (real observations that ship with the model), or the id of a simulator.
        data: a recording, from whose first observations a reset begins instead; of one that the model was trained on,
            those of the episodes that were held out.
        map: what the features of a LeRobot dataset mean, as in training.
        steps: denoising steps a frame; by default the model's own number.
        device: cpu, cuda, ...
        seed: of starts and imagination.
        port: on 127.0.0.1; 0 is a free one.
        out: where videos go.
        open: open the page in the default browser.
    """
    from kairos_env.play.server import PlayServer
    from kairos_env.play.session import PlaySession
    from kairos_env.training.held_out import unseen_episodes
    from kairos_env.world_model.model import WorldModel

    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; legal are 0 (a free port) to 65535")
    world_model = WorldModel.from_pretrained(model, device=device)
    if world_model.untrained:
        print(f"Nobody taught this model {', '.join(world_model.untrained)}: the page leaves it out.")
    begin: str | list[Observation] = start
    if data:
        unseen = unseen_episodes(model, world_model.imagined_spec, data, map)
        print(unseen.note)
        begin = [episode.observation(0) for episode in unseen.read(STARTS)]
    make_session = functools.partial(PlaySession, world_model, begin, task=task, steps=steps, seed=seed, folder=out)
    with PlayServer(make_session, port=port) as server:
        print(f"Drive the imagined robot at\n\n  {server.url}\n")
        print("The address holds this run's key and works on this machine only. Ctrl-C stops.", flush=True)
        if open:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("\nstopped")
    return 0
