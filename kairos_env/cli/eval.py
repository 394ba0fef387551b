"""`kairos eval`: policies against the simulators, imagination against reality."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Callable

from kairos_env.cli.options import add_options, read_options

Run = Callable[[argparse.Namespace], int]
Build = Callable[[argparse.ArgumentParser], Run]


def _measurement(module: str, config_name: str, run_name: str) -> Build:
    """A command of `kairos eval`: a flat config, and a function of it whose result is printed as a table."""

    def build(parser: argparse.ArgumentParser) -> Run:

        home = importlib.import_module(module)
        config_class, measure = getattr(home, config_name), getattr(home, run_name)
        add_options(parser, config_class, aliases={"policies": "--policy", "output": "--out"})

        def run(args: argparse.Namespace) -> int:
            config = read_options(args, config_class)
            report = measure(config, progress=True)
            print(f"{report.table()}\n\nwritten to {config.output}")
            return int(bool(getattr(report, "errors", 0)))

        return run

    return build


def _benchmark(benchmark: str) -> Build:
    """A command of `kairos eval` that runs a benchmark."""

    def build(parser: argparse.ArgumentParser) -> Run:
        from kairos_env.eval.closed_loop.benchmark import describe, evaluate
        from kairos_env.eval.closed_loop.benchmark_jobs import BenchmarkConfig

        add_options(parser, BenchmarkConfig, ["benchmark"], {"policies": "--policy", "output": "--out"})
        parser.set_defaults(output=f"runs/{benchmark}")

        def run(args: argparse.Namespace) -> int:
            config = dataclasses.replace(read_options(args, BenchmarkConfig), benchmark=benchmark)
            if config.dry_run:
                print(describe(config))
                return 0
            report = evaluate(config, progress=True)
            print(f"{report.table()}\n\n{report.timing()}\n\nwritten to {config.output}")
            return int(bool(report.errors))

        return run

    return build


def probe(parser: argparse.ArgumentParser) -> Run:
    from kairos_env.eval.imagination.probe import ProbeConfig, train_probe

    add_options(parser, ProbeConfig, aliases={"output": "--out"})

    def run(args: argparse.Namespace) -> int:
        config = read_options(args, ProbeConfig)
        probe = train_probe(config, progress=True)
        print("on held-out real frames: " + ", ".join(f"{name} {value}" for name, value in probe.floor.items()))
        print(f"written to {config.output}")
        return 0

    return run


def table(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders with results.jsonl: shards, or several runs")
    parser.add_argument("--out", help="where to write the report; the default is the folder, if there is only one")
    parser.add_argument("--published", action="store_true", help="also print what others published")

    def run(args: argparse.Namespace) -> int:
        from kairos_env.eval.report.benchmark import make_benchmark_report
        from kairos_env.eval.rows import read_runs

        if args.out is None and len(args.runs) > 1:
            raise ValueError(f"{len(args.runs)} runs become one report: say where with --out")
        report = make_benchmark_report(read_runs(args.runs))
        out = args.out or args.runs[0]
        report.save(out, args.runs)
        published = f"{report.published()}\n\n" if args.published else ""
        print(f"{report.table()}\n\n{published}{report.timing()}\n\nwritten to {out}")
        return 0

    return run


def compare(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("first", metavar="RUN_A", help="folder with results.jsonl")
    parser.add_argument("second", metavar="RUN_B", help="another one, or the same with other policies")
    parser.add_argument("--policy-a", help="which policy of the first run, if it has several")
    parser.add_argument("--policy-b", help="which policy of the second run")
    parser.add_argument("--json", action="store_true", help="print JSON")

    def run(args: argparse.Namespace) -> int:
        from kairos_env.eval.report.compare import compare_runs, comparison_dict, comparison_text

        comparison = compare_runs(args.first, args.second, args.policy_a, args.policy_b)
        print(json.dumps(comparison_dict(comparison), indent=1) if args.json else comparison_text(comparison))
        return 0

    return run


closed_loop = _measurement("kairos_env.eval.closed_loop.episodes", "EvalConfig", "evaluate")
imagination = _measurement("kairos_env.eval.imagination.measure", "ImaginationConfig", "run_imagination")
correlation = _measurement("kairos_env.eval.imagination.correlation", "CorrelationConfig", "success_correlation")
libero = _benchmark("libero")
libero_plus = _benchmark("libero-plus")
