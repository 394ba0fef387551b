"""`kairos sims`: the simulators beside the bundled one, in environments of their own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from kairos_env.sims.install import PACKAGES, Request, check, install
from kairos_env.sims.libero.tasks import ASSETS_ADVICE, BENCHMARKS, Catalogue, home_folder

Run = Callable[[argparse.Namespace], int]

_MARKS = {"ok": "ok", "note": "--", "problem": "!!"}


def _add_install_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `kairos sims install`."""
    parser.add_argument("simulator", choices=BENCHMARKS, help="libero-plus is LIBERO and its 10,030 perturbed tasks")
    _add_home(parser)
    parser.add_argument("--python", type=Path, help="interpreter for the environment, 3.11 to 3.13 (this one)")
    parser.add_argument("--mujoco", default=PACKAGES["mujoco"], help="version; from 3.3.3 on pictures are darker")
    parser.add_argument("--benchmark", type=Path, help="checkout of LIBERO-plus, or a folder prepared from one")
    parser.add_argument("--assets", type=Path, help="folder, zip or tar of meshes, textures and scenes")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")


def _install_simulator(args: argparse.Namespace) -> int:
    """`kairos sims install`."""
    python, source, assets = (_absolute(path) for path in (args.python, args.benchmark, args.assets))
    request = Request(args.simulator, _home(args), python, args.mujoco, source, assets)
    install(request, say=lambda text: print(f"- {text}", flush=True), only_plan=args.dry_run)
    if args.dry_run:
        return 0
    catalogue = Catalogue.open(request.home)
    tasks = catalogue.tasks(args.simulator)
    whole = sum(not catalogue.missing(task) for task in tasks)
    print(f"{args.simulator} is installed in {request.home}: {len(tasks)} tasks, {whole} of them with all assets")
    if whole < len(tasks):
        print(f"{ASSETS_ADVICE[args.simulator]}; give them with --assets. `kairos sims check` lists what is missing")
    return 0


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `kairos sims check`."""
    parser.add_argument("simulator", choices=BENCHMARKS)
    _add_home(parser)


def _check_simulator(args: argparse.Namespace) -> int:
    """`kairos sims check`; 1 if something is broken."""
    findings = check(_home(args), args.simulator)
    for finding in findings:
        print(f"{_MARKS[finding.status]} {finding.name:<13} {finding.text}")
        if finding.remedy:
            print(f"{'':<17}{finding.remedy}")
    return int(any(finding.status == "problem" for finding in findings))


def _add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `kairos sims list`."""
    _add_home(parser)


def _list_simulators(args: argparse.Namespace) -> int:
    """`kairos sims list`."""
    home = _home(args)
    print(f"{'robosuite':<13}comes with Kairos: reach, push, lift, place")
    for benchmark in BENCHMARKS:
        try:
            catalogue = Catalogue.open(home)
            tasks = catalogue.tasks(benchmark)
        except (FileNotFoundError, ValueError):
            print(f"{benchmark:<13}not installed: kairos sims install {benchmark}")
            continue
        whole = sum(not catalogue.missing(task) for task in tasks)
        suites = len({task.suite for task in tasks})
        print(f"{benchmark:<13}{len(tasks)} tasks in {suites} suites, {whole} with all assets; {home}")
    return 0


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, help=f"folder of the installation ({home_folder()})")


def _home(args: argparse.Namespace) -> Path:
    return home_folder() if args.home is None else _absolute(args.home)  # type: ignore[return-value]


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


def _command(declare: Callable[[argparse.ArgumentParser], None], run: Run) -> Callable[[argparse.ArgumentParser], Run]:
    def build(parser: argparse.ArgumentParser) -> Run:
        declare(parser)
        return run

    return build


install_simulator = _command(_add_install_arguments, _install_simulator)
check_simulator = _command(_add_check_arguments, _check_simulator)
list_simulators = _command(_add_list_arguments, _list_simulators)
