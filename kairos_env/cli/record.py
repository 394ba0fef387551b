"""`kairos record`, `kairos record-libero`: episodes of the simulators, in files."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from kairos_env.cli.options import add_options, read_options

Run = Callable[[argparse.Namespace], int]


def record(parser: argparse.ArgumentParser) -> Run:
    from kairos_env.collect.recorder import RecordConfig
    from kairos_env.collect.recorder import record as run_recorder

    add_options(parser, RecordConfig, aliases={"first_initial_state": "--first-initial-state-id"})

    def run(args: argparse.Namespace) -> int:
        folder = run_recorder(read_options(args, RecordConfig))
        print(f"recorded into {folder}")
        return 0

    return run


def record_libero(parser: argparse.ArgumentParser) -> Run:
    from kairos_env.collect.demonstrations import RecordLiberoConfig
    from kairos_env.collect.demonstrations import record_libero as run_recorder

    add_options(parser, RecordLiberoConfig)

    def run(args: argparse.Namespace) -> int:
        recorded = run_recorder(read_options(args, RecordLiberoConfig))
        print(recorded.table())
        return int(bool(recorded.short))

    return run
