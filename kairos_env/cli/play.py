"""`kairos play`: drive the imagined robot in a browser page on this machine."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

SIMULATOR = "Kairos-Robosuite-v0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `kairos play`."""
    parser.add_argument("--model", default="kairos-tiny", help="bundled name or model folder (default: %(default)s)")
    parser.add_argument("--task", default=None, help="task to begin with (default: the model's first)")
    parser.add_argument(
        "--starts",
        choices=("bundled", "simulator"),
        default="bundled",
        help="where a reset begins: real observations shipped with the model, or the real simulator",
    )
    parser.add_argument("--steps", type=int, default=None, help="denoising steps a frame (default: the model's own)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of starts and imagination (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--out", type=Path, default=Path("runs/play"), help="where videos go (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in the default browser")


def main(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C; returns 0, or 2 when it cannot start (the reason is printed)."""
    from rich.console import Console

    from kairos_env.play.server import PlayServer
    from kairos_env.play.session import PlaySession
    from kairos_env.world_model.model import WorldModel

    console = Console(highlight=False, soft_wrap=True)
    if not 0 <= args.port <= 65535:
        console.print(f"--port is {args.port}; legal are 0 (a free port) to 65535")
        return 2
    try:
        model = WorldModel.from_pretrained(args.model, device=args.device)
        start = "dataset" if args.starts == "bundled" else SIMULATOR
        make_session = functools.partial(
            PlaySession, model, start, task=args.task, steps=args.steps, seed=args.seed, folder=args.out
        )
        server = PlayServer(make_session, port=args.port)
    except (ValueError, OSError, ImportError, RuntimeError) as error:  # each says what to do
        console.print(f"cannot play: {error}", markup=False)
        return 2
    with server:
        console.print(f"Drive the imagined robot at\n\n  {server.url}\n", markup=False)
        console.print("The address holds this run's key and works on this machine only. Ctrl-C stops.")
        if args.open:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            console.print("\nstopped")
    return 0
