"""The command line, and the only place where every part of the package is joined.

Nothing heavy is imported before the command is known, so that ``kairos --help`` answers at once. A command
is a module of this folder with ``add_arguments(parser)`` and ``main(args)``, or a function ``build(parser) -> run``
there that declares its options and returns what to call with them.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kairos_env.runs import did_you_mean

Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Command:
    """One command: a line for the list, examples for its own help, and its home: ``"demo"`` or ``"eval:table"``."""

    summary: str
    examples: str
    home: str

    def build(self, parser: argparse.ArgumentParser) -> Run:
        """Declares the options; what to call with them."""
        module, _, name = self.home.partition(":")
        home = importlib.import_module(f"kairos_env.cli.{module}")
        if name:
            run: Run = getattr(home, name)(parser)
            return run
        home.add_arguments(parser)
        main: Run = home.main
        return main


@dataclass(frozen=True)
class Group:
    """Commands under a common word; the summary is a sentence."""

    summary: str
    examples: str
    commands: Mapping[str, Command | Group]


_CONTINUED = "A run that was stopped goes on when the same command is given again."

COMMANDS: Mapping[str, Command | Group] = {
    "demo": Command("imagine beside reality, plan, act: the main job", "kairos demo\nkairos demo --help", "demo"),
    "play": Command(
        "drive the imagined robot in a browser page on this machine", "kairos play\nkairos play --port 8000", "play"
    ),
    "record": Command(
        "record episodes of the simulator into a folder of HDF5 files",
        "kairos record --out runs/record --episodes 2000 --workers 2\n"
        "kairos record --out runs/heldout --episodes 100 --first-initial-state 1000000\n"
        "kairos record --out runs/push --tasks push --behaviours expert=0.5,random=0.5\n" + _CONTINUED,
        "record:record",
    ),
    "record-libero": Command(
        "record demonstrations of LIBERO's tasks by the scripted expert, in LIBERO's own files",
        "kairos record-libero --out runs/libero --suites libero_object --states 0-39 --per-task 20\n"
        "kairos record-libero --out runs/full --action-repeat 1 --camera-size 128 --rendering official\n"
        "kairos record-libero --out runs/milk --suites libero_object --tasks 7 --noisy 1 --noise 0.3\n" + _CONTINUED,
        "record:record_libero",
    ),
    "data": Group(
        "Look at recorded datasets and prepare them for training.",
        "kairos data inspect lerobot/pusht --save map.json",
        {
            "inspect": Command(
                "what a LeRobot dataset holds, what its features mean, what is wrong with it",
                "kairos data inspect datasets/my-arm\n"
                "kairos data inspect lerobot/pusht --save map.json\n"
                "kairos data inspect lerobot/pusht --map map.json",
                "inspect",
            ),
            "encode": Command(
                "pictures to latents, once: training then decodes none",
                "kairos data encode --data runs/lerobot --model kairos-tiny --out runs/cache\n"
                "kairos data encode --data lerobot/pusht --map map.json --out runs/pusht --workers 2\n"
                "kairos data encode --data runs/lerobot --out runs/cache --verify\n" + _CONTINUED,
                "data:encode",
            ),
            "export": Command(
                "recorded or imagined episodes as a LeRobot dataset",
                "kairos data export --from runs/record --out runs/lerobot\n"
                "kairos data export --from runs/record --task push,lift --images png --out runs/exact\n"
                "kairos data export --imagine 20 --task push --policy policy --out runs/imagined\n"
                "kairos data export --imagine 50 --model runs/tiny/model --start runs/record --out runs/imagined",
                "data:export",
            ),
            "replay": Command(
                "play the actions of LIBERO demonstrations again in the simulator: do they still succeed?",
                "kairos data replay runs/libero\nkairos data replay runs/libero --limit 20 --least 0.9",
                "data:replay",
            ),
        },
    ),
    "train": Command(
        "train tokenizer and world-action model on recorded episodes, on CPU or GPU",
        "kairos train data.path=runs/record out=runs/tiny\n"
        "kairos train preset=debug model.steps=200 tokenizer.steps=200 data.path=runs/record out=runs/debug\n"
        "kairos train device=cuda preset=small data.path=runs/record data.more=[runs/push] out=runs/small\n"
        + _CONTINUED,
        "train",
    ),
    "generate": Command(
        "generate video clips with a 4B model from a prompt, an image or a file of jobs",
        "kairos generate --model models/4b-robot --prompt 'the robot opens the drawer' --seed 1\n"
        "kairos generate --model models/4b-robot --image start.png --fit crop --prompt 'it lifts the red cup'\n"
        "kairos generate --model models/4b-robot --jobs jobs.json --steps 30 --out runs/clips\n"
        "kairos generate --miniature 4b-robot --prompt 'only to see the pipeline run'\n"
        "Jobs whose clips are there are not run again.",
        "generate",
    ),
    "convert": Command(
        "turn published 4B weights into a model folder that names its release, and back",
        "kairos convert kairos-4B-robot-LIBERO-plus.safetensors --check\n"
        "kairos convert kairos-4B-robot-LIBERO-plus.safetensors --vae Wan2.1_VAE.pth "
        "--text Qwen/Qwen2.5-VL-7B-Instruct\n"
        "kairos convert model.safetensors --release 4b-robot --dtype bf16 --out models/robot\n"
        "kairos convert models/robot --to-published --out robot.safetensors",
        "convert",
    ),
    "eval": Group(
        "Measure policies against the simulator, and imagination against reality.",
        "kairos eval closed-loop --policy random,expert,policy --episodes 50 --workers 2",
        {
            "closed-loop": Command(
                "success rates of policies and planners in a simulator, with intervals",
                "kairos eval closed-loop --policy random,expert,policy --episodes 50 --workers 2\n"
                "kairos eval closed-loop --policy best_of_n,'cem(horizon=8)' --tasks push --out runs/plan\n"
                "kairos eval closed-loop --policy policy,policy+noise=0.5 --videos 3\n" + _CONTINUED,
                "eval:closed_loop",
            ),
            "table": Command(
                "the table of benchmark runs from their rows: coverage, intervals, failures, beside others",
                "kairos eval table runs/libero-plus --published\n"
                "kairos eval table runs/shard-1 runs/shard-2 --out runs/all",
                "eval:table",
            ),
            "compare": Command(
                "two benchmark runs on their common jobs: difference with interval, exact McNemar test",
                "kairos eval compare runs/base runs/tuned\n"
                "kairos eval compare runs/both runs/both --policy-a expert --policy-b random --json",
                "eval:compare",
            ),
            "libero-plus": Command(
                "success rates on LIBERO-plus, by dimension of the perturbation; needs `kairos sims install`",
                "kairos eval libero-plus --model runs/libero/model --sample 140 --workers 2 --out runs/plus\n"
                "kairos eval libero-plus --policy expert --dimensions camera,noise --suites libero_object --dry-run\n"
                "kairos eval libero-plus --policy '4b(statistics=stats.json)' --model models/4b --device cuda "
                "--slots 12 --batch 12 --protocol kairos-published\n"
                "kairos eval libero-plus --policy mine:make --shard 3/8 --out runs/mine\n" + _CONTINUED,
                "eval:libero_plus",
            ),
            "libero": Command(
                "success rates on LIBERO; needs `kairos sims install`",
                "kairos eval libero --policy policy --model runs/libero/model --suites libero_object --trials 10\n"
                "kairos eval libero --policy 'replay(path=runs/demos)' --trials 10 --workers 2\n" + _CONTINUED,
                "eval:libero",
            ),
            "imagination": Command(
                "imagined rollouts beside real ones under the same actions, with controls",
                "kairos eval imagination --out runs/imagination\n"
                "kairos eval imagination --model runs/tiny/model --data runs/heldout --horizons 1,5,10,20",
                "eval:imagination",
            ),
            "correlation": Command(
                "does success in imagination predict success in the simulator?",
                "kairos eval correlation --workers 2\n"
                "kairos eval correlation --policy policy,policy+noise=1.0,random --tasks push --episodes 50\n"
                + _CONTINUED,
                "eval:correlation",
            ),
            "probe": Command(
                "train the independent reader of positions that imagined frames are measured with",
                "kairos eval probe --data runs/record --out runs/probe",
                "eval:probe",
            ),
        },
    ),
    "sims": Group(
        "Simulators that need an environment of their own.",
        "kairos sims list\nkairos sims install libero",
        {
            "list": Command(
                "which simulators there are, and which are installed",
                "kairos sims list",
                "sims:list_simulators",
            ),
            "install": Command(
                "build the environment of a simulator, with exact versions, and its task files",
                "kairos sims install libero --assets libero-assets\n"
                "kairos sims install libero-plus --benchmark LIBERO-plus --assets assets.zip\n"
                "kairos sims install libero --mujoco 3.3.2 --home sims/libero --dry-run\n"
                "The same command again completes or repairs what is there.",
                "sims:install_simulator",
            ),
            "check": Command(
                "interpreter, versions, drawing, which tasks can be run, which assets are missing",
                "kairos sims check libero\nkairos sims check libero-plus --home sims/libero",
                "sims:check_simulator",
            ),
        },
    ),
    "doctor": Command(
        "what is installed, which off-screen renderer works, what each extra needs",
        "kairos doctor\nkairos doctor --json",
        "doctor",
    ),
}

ROOT = Group(
    "A trained world-action model of a robot as a Gymnasium environment: step it, plan in it, act with it.",
    "kairos demo\nkairos record --help",
    COMMANDS,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 for success, 1 if the command itself reports a failure, 2 for a wrong request, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        from kairos_env import __version__

        print(f"kairos {__version__}")
        return 0
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    name, node = "kairos", ROOT
    found: Command | Group = ROOT
    while isinstance(found, Group):
        node = found
        if not words or words[0] in ("-h", "--help"):
            print(_overview(name, node))
            return 0 if words else 2
        word = words.pop(0)
        if word not in node.commands:
            print(_unknown(name, node, word), file=sys.stderr)
            return 2
        name, found = f"{name} {word}", node.commands[word]
    try:
        return _execute(name, found, words)
    except KeyboardInterrupt:
        print("\nstopped; what was written is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        # These are how the package says that a request cannot be met; anything else is a bug and is shown whole.
        if traceback:
            raise
        print(f"{name}: {error}\n(add --traceback to see where)", file=sys.stderr)
        return 2


def _execute(name: str, command: Command, words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=name,
        description=command.summary[0].upper() + command.summary[1:] + ("" if command.summary[-1] == "?" else "."),
        epilog="examples:\n" + _indented(command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = command.build(parser)
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:  # argparse has printed the help or the error
        return stop.code if isinstance(stop.code, int) else 2
    return run(args)


def _overview(name: str, group: Group) -> str:
    width = max(map(len, group.commands))
    lines = {word: c.summary[0].lower() + c.summary[1:].rstrip(".") for word, c in group.commands.items()}
    listed = "\n".join(f"  {word:<{width}}  {text}" for word, text in lines.items())
    return (
        f"{group.summary}\n\nusage: {name} <command> [options]\n\n{listed}\n\n"
        f"examples:\n{_indented(group.examples)}\n\n{name} <command> --help tells more."
    )


def _unknown(name: str, group: Group, word: str) -> str:
    return f"{name}: no command {word!r}; {did_you_mean(word, group.commands)}"


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
