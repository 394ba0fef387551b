"""`kairos data`: recorded datasets, prepared for training."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

from kairos_env.cli.options import add_options, read_options

Run = Callable[[argparse.Namespace], int]


def encode(parser: argparse.ArgumentParser) -> Run:
    from kairos_env.collect.encode import EncodeConfig
    from kairos_env.collect.encode import encode as fill_cache

    add_options(parser, EncodeConfig, aliases={"feature_map": "--map"})

    def run(args: argparse.Namespace) -> int:
        config = read_options(args, EncodeConfig)
        cache = fill_cache(config)
        print(
            f"{len(cache)} episodes, {sum(cache.frames):,} frames, {cache.nbytes / 2**20:.1f} MiB of latents by "
            f"{config.model}: {config.out}\n"
            f"train:   kairos train init={config.model} data.path={config.out}"
        )
        return 0

    return run


def export(parser: argparse.ArgumentParser) -> Run:
    from kairos_env.collect.export import ExportConfig
    from kairos_env.collect.export import export as write_dataset

    add_options(parser, ExportConfig, aliases={"source": "--from", "tasks": "--task"})

    def run(args: argparse.Namespace) -> int:
        config = read_options(args, ExportConfig)
        writer = write_dataset(config)
        kind = "imagined" if writer.imagined else "recorded"
        print(f"{writer.episodes} {kind} episodes, {writer.frames} frames: {writer.folder}")
        return 0

    return run


def replay(parser: argparse.ArgumentParser) -> Run:
    from kairos_env.collect.replay import replay_all

    add = parser.add_argument
    add("paths", nargs="+", metavar="path", help="recordings of kairos record-libero, or <suite>_<index>.npz")
    add("--limit", type=int, default=0, metavar="N", help="at most so many of each path (default: all)")
    add("--least", type=float, default=0.95, metavar="SHARE", help="share that must end as recorded (default: 0.95)")
    add("--home", default="", help="folder of the installed simulator; by default the usual one")

    def run(args: argparse.Namespace) -> int:
        if args.limit < 0 or not 0 <= args.least <= 1:
            raise ValueError(f"--limit must be at least 0 and --least in 0 ... 1, got {args.limit} and {args.least}")
        results = replay_all(args.paths, args.limit, args.home)
        if not results:
            raise ValueError(f"{', '.join(args.paths)}: there is no demonstration")
        for one in results:
            if not one.agrees:
                print(f"ended otherwise: {one.name} (the hand was up to {100 * one.apart:.1f} cm away)")
        good = sum(one.agrees for one in results)
        apart = 1000 * median(one.apart for one in results)
        print(
            f"{good} of {len(results)} demonstrations end as they did; at most {apart:.2g} mm away (median over them)"
        )
        return int(good < args.least * len(results))

    return run
