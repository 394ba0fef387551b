"""All commands by their words: what each is for, examples, and the function that it calls."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        summary: a line for the list.
        examples: for its own help.
        home: ``module:function`` in this folder; the function's parameters are the options, see `options`.
        environment: variables that must be set before torch is imported; what the user set stays. By default threads
            that wait sleep: spinning on a busy machine was measured to cost four times the processor time.
    """

    summary: str
    examples: str
    home: str
    environment: Mapping[str, str] = field(default_factory=lambda: {"OMP_WAIT_POLICY": "PASSIVE"})

    def load(self) -> Callable[..., int]:
        """Imports the command's function."""
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)
        module, _, name = self.home.partition(":")
        function: Callable[..., int] = getattr(importlib.import_module(f"kairos_env.cli.{module}"), name)
        return function

    def about(self) -> str:
        """The first paragraphs of its help."""
        sentence = self.summary[0].upper() + self.summary[1:] + ("" if self.summary[-1] == "?" else ".")
        return f"{sentence}\n\nexamples:\n{indented(self.examples)}"


@dataclass(frozen=True)
class Group:
    """Commands under a common word; the summary is a sentence."""

    summary: str
    examples: str
    commands: Mapping[str, Command | Group]


_CONTINUED = "A run that was stopped goes on when the same command is given again."

COMMANDS: Mapping[str, Command | Group] = {
    "demo": Command(
        "imagine beside reality, plan, act: the main job",
        "kairos demo\nkairos demo --model kairos-libero --short\n"
        "kairos demo --model runs/my-arm/model --data datasets/my-arm",
        "demo:run",
    ),
    "play": Command(
        "drive the imagined robot in a browser page on this machine",
        "kairos play\nkairos play --model kairos-libero --start Kairos-LIBERO-v0\n"
        "kairos play --model runs/my-arm/model --data datasets/my-arm",
        "play:run",
    ),
    "serve": Command(
        "serve a policy to clients on this or another computer, those of openpi and other systems included",
        "kairos serve\nkairos serve --policy policy --model kairos-libero --port 8000\n"
        "kairos serve --model runs/my-arm/model --host 0.0.0.0 --token-file token.txt --certificate cert.pem "
        "--private-key key.pem\n"
        "kairos eval closed-loop --policy 'remote(url=ws://127.0.0.1:8000)'",
        "serve:run",
    ),
    "record": Command(
        "record episodes of any simulator into a folder of HDF5 files",
        "kairos record --out runs/record --episodes 2000 --workers 2\n"
        "kairos record --out runs/heldout --episodes 100 --first-initial-state 1000000\n"
        "kairos record --out runs/push --tasks push --behaviours expert=0.5,random=0.5\n"
        "kairos record --out runs/own --simulator Kairos-LIBERO-v0 --tasks 'libero_object/*' --model kairos-libero\n"
        + _CONTINUED,
        "record:record",
    ),
    "record-libero": Command(
        "record demonstrations of LIBERO's tasks by the scripted expert, in LIBERO's own files",
        "kairos record-libero --out runs/libero --tasks 'libero_object/*' --initial-states 0-39 --per-task 20\n"
        "kairos record-libero --out runs/full --options camera_size=128 --decisions 400\n"
        "kairos record-libero --out runs/milk --tasks '*milk*' --behaviours disturbed_expert --noise 0.3\n"
        + _CONTINUED,
        "record:record_libero",
    ),
    "record-robotwin": Command(
        "record demonstrations of RoboTwin's tasks by its own experts",
        "kairos record-robotwin --out runs/robotwin --tasks stack_blocks_two,handover_block --per-task 50\n"
        + _CONTINUED,
        "record:record_robotwin",
    ),
    "record-films": Command(
        "make captioned films of moving bodies, or of a hand at the table top, to learn from without actions",
        "kairos record-films --out runs/physics --scene physics --clips 400 --seconds 4\n"
        "kairos record-films --out runs/hands --scene hands --clips 400\n" + _CONTINUED,
        "record:record_films",
    ),
    "data": Group(
        "Look at recorded datasets and prepare them for training.",
        "kairos data inspect lerobot/pusht --save map.json",
        {
            "inspect": Command(
                "what a dataset holds, what its numbers mean, what is wrong with it, and the training that suits it",
                "kairos data inspect datasets/my-arm\n"
                "kairos data inspect datasets/libero_object\n"
                "kairos data inspect lerobot/pusht --save map.json\n"
                "kairos data inspect lerobot/pusht --map map.json",
                "inspect:run",
            ),
            "encode": Command(
                "pictures to latents, once: training then decodes none",
                "kairos data encode --data runs/lerobot --model kairos-tiny --out runs/cache\n"
                "kairos data encode --data lerobot/pusht --map map.json --size 64,64 --out runs/pusht --workers 2\n"
                "kairos data encode --data datasets/my-arm --size 48,64 --rate 5 --out runs/cache\n"
                "kairos data encode --data runs/lerobot --out runs/cache --verify\n" + _CONTINUED,
                "data:encode",
            ),
            "export": Command(
                "recorded or imagined episodes as a LeRobot dataset, or as RoboTwin's files",
                "kairos data export --from runs/record --out runs/lerobot\n"
                "kairos data export --from runs/record --task push,lift --images png --out runs/exact\n"
                "kairos data export --from runs/robotwin --layout robotwin-2.0 --out runs/for-robotwin\n"
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
        "kairos train --data.path runs/record --out runs/tiny\n"
        "kairos train --preset debug --model.steps 200 --tokenizer.steps 200 --data.path runs/record --out runs/debug\n"
        "kairos train --device cuda --preset small --data.path runs/record --data.more runs/push --out runs/small\n"
        "kairos train --config runs/tiny/config.json --seed 1 --out runs/again\n"
        "kairos train --data.path datasets/my-arm --data.size 48,64 --data.rate 5 --out runs/my-arm\n"
        "kairos train --data.path runs/record --out runs/long --model.steps 20000 --snapshot-every 1000 "
        "--log tensorboard\n"
        "kairos train --data.path runs/record --out runs/long --model.steps 20000 --model.lr 7e-4 --change\n"
        "kairos train --curriculum laptop --plan\n" + _CONTINUED,
        "train:run",
    ),
    "merge": Command(
        "models that went on from one base as one model: soup, TIES, DARE, WUDI, the best on held-out episodes",
        "kairos merge runs/push/model runs/lift/model --base kairos-tiny --data runs/push-record,runs/lift-record "
        "--out runs/merged",
        "merge:run",
    ),
    "train-report": Command(
        "curves, validation and film strips of a training run as one page, also while it runs",
        "kairos train-report runs/tiny\nkairos train-report runs/tiny/model",
        "training_report:report",
    ),
    "card": Command(
        "the card of a trained model: data, recipe, time, validation, and what evaluations measured",
        "kairos card runs/tiny/model\nkairos card runs/tiny/model --measured runs/closed-loop,runs/imagination",
        "training_report:card",
    ),
    "push": Command(
        "a finished model and its card to the Hugging Face hub",
        "kairos push runs/tiny/model me/tiny\nkairos push runs/tiny/model me/tiny --private",
        "training_report:push",
    ),
    "generate": Command(
        "generate video clips with a 4B model from a prompt, an image or a file of jobs",
        "kairos generate --model models/4b-robot --prompt 'the robot opens the drawer' --seed 1\n"
        "kairos generate --model models/4b-robot --image start.png --fit crop --prompt 'it lifts the red cup'\n"
        "kairos generate --model models/4b-robot --jobs jobs.json --steps 30 --out runs/clips\n"
        "kairos generate --miniature 4b-robot --prompt 'only to see the pipeline run'\n"
        "Jobs whose clips are there are not run again.",
        "generate:run",
    ),
    "convert": Command(
        "turn published 4B weights into a model folder that names its release, and back",
        "kairos convert kairos-4B-robot-LIBERO-plus.safetensors --check\n"
        "kairos convert kairos-4B-robot-LIBERO-plus.safetensors --vae Wan2.1_VAE.pth "
        "--text Qwen/Qwen2.5-VL-7B-Instruct\n"
        "kairos convert model.safetensors --release 4b-robot --dtype bf16 --out models/robot\n"
        "kairos convert models/robot --to-published --out robot.safetensors",
        "convert:run",
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
            "libero-pro": Command(
                "success rates on LIBERO-Pro's 16 suites; needs `kairos sims install`",
                "kairos eval libero-pro --policy policy --model runs/libero/model --trials 10 --workers 2\n"
                "kairos eval libero-pro --policy policy --suites libero_object_swap,libero_object_task\n" + _CONTINUED,
                "eval:libero_pro",
            ),
            "libero": Command(
                "success rates on LIBERO; needs `kairos sims install`",
                "kairos eval libero --policy policy --model runs/libero/model --suites libero_object --trials 10\n"
                "kairos eval libero --policy 'replay(path=runs/demos)' --trials 10 --workers 2\n" + _CONTINUED,
                "eval:libero",
            ),
            "robotwin": Command(
                "success rates on RoboTwin's tasks; needs `kairos sims install robotwin`",
                "kairos eval robotwin --policy expert --tasks stack_blocks_two --episodes 20\n"
                "kairos eval robotwin --model runs/arms/model --tasks stack_blocks_two,handover_block --protocol A "
                "--workers 2\n" + _CONTINUED,
                "eval:robotwin",
            ),
            "imagination": Command(
                "imagined rollouts beside real ones under the same actions, with controls",
                "kairos eval imagination --out runs/imagination\n"
                "kairos eval imagination --model runs/tiny/model --data runs/heldout --horizons 1,5,10,20",
                "imagination:imagination",
            ),
            "calibration": Command(
                "are expected errors and success true? reliability, rank correlation, horizon of trust",
                "kairos eval calibration --model runs/tiny/model\n"
                "kairos eval calibration --data runs/heldout --horizons 1,5,10,20\n"
                "kairos card runs/tiny/model --measured runs/calibration",
                "imagination:calibration",
            ),
            "correlation": Command(
                "does success in imagination predict success in the simulator?",
                "kairos eval correlation --workers 2\n"
                "kairos eval correlation --policy policy,policy+noise=1.0,random --tasks push --episodes 50\n"
                + _CONTINUED,
                "imagination:correlation",
            ),
            "rewards": Command(
                "what solving and not solving a task earn, by each form of the reward",
                "kairos eval rewards\nkairos eval rewards --tasks reach,push --episodes 100 --discount 0.9",
                "reinforcement:rewards",
            ),
            "practice": Command(
                "reinforcement learning in imagination only, judged in the simulator",
                "kairos eval practice --task reach --algorithm ppo\n"
                "kairos eval practice --task lift --algorithm sac --agents 2 --episodes 20 --decisions 20000",
                "reinforcement:practice",
            ),
            "probe": Command(
                "train the independent reader of positions that imagined frames are measured with",
                "kairos eval probe --data runs/record --out runs/probe",
                "imagination:probe",
            ),
            "state-model": Command(
                "train a small model of the true state, with which planning in pixels is compared",
                "kairos eval state-model --data runs/record --out runs/state-model\n"
                "kairos eval closed-loop --policies cem,state_cem --state-model runs/state-model",
                "imagination:state_model",
            ),
        },
    ),
    "verify-files": Command(
        "compare what was saved with its checksums: models, checkpoints, states, recordings, latents",
        "kairos verify-files runs/tiny\nkairos verify-files runs/record/shard_0000.hdf5\n"
        "kairos verify-files runs/tiny/model --write",
        "files:verify",
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
                "kairos sims install libero\nkairos sims install libero-pro\n"
                "kairos sims install libero-plus --assets assets.zip\nkairos sims install lerobot-robots\n"
                "kairos sims install libero --assets small --mujoco 3.3.2 --home sims/small --dry-run\n"
                "kairos sims install robotwin --assets datasets/RoboTwin2.0\n"
                "The same command again completes or repairs what is there.",
                "sims:install",
            ),
            "check": Command(
                "an installation: versions, drawing, tasks, assets; or whether a simulator keeps the contract",
                "kairos sims check libero\nkairos sims check libero --start 130\nkairos sims check robotwin\n"
                "kairos sims check Kairos-Robosuite-v0\nkairos sims check my_arm:make",
                "sims:check",
            ),
        },
    ),
    "robotwin": Group(
        "Let RoboTwin's own scripts evaluate a policy of Kairos; ask RoboTwin's experts.",
        "kairos robotwin plugin --root RoboTwin\nkairos robotwin seeds --tasks handover_block",
        {
            "plugin": Command(
                "write a policy folder into a checkout of RoboTwin, which asks `kairos serve`",
                "kairos robotwin plugin --root RoboTwin\nkairos robotwin plugin --root RoboTwin --url ws://gpu-box:8000",
                "robotwin:plugin",
            ),
            "seeds": Command(
                "which seeds RoboTwin's experts solve, noted for evaluations",
                "kairos robotwin seeds\nkairos robotwin seeds --tasks stack_blocks_two --count 100 --first 200000",
                "robotwin:seeds",
            ),
        },
    ),
    "robot": Group(
        "Real robots that LeRobot drives, and fakes of them, behind a safety layer.",
        "kairos robot find\nkairos robot check my-arm.json\nkairos robot run my-arm.json --model runs/my-arm/model",
        {
            "find": Command("ports and cameras of this machine; opens none", "kairos robot find", "robot:find"),
            "check": Command(
                "what a robot is: joints, units, limits, rates; sends nothing",
                "kairos robot check my-arm.json\nkairos robot check fake:so101",
                "robot:check",
            ),
            "teleop": Command(
                "let a leader arm move a robot",
                "kairos robot teleop my-arm.json --leader leader.json --armed-by Ada",
                "robot:teleop",
            ),
            "record": Command(
                "demonstrations of a leader arm as a LeRobot dataset, commanded and sent actions both",
                "kairos robot record my-arm.json --leader leader.json --out datasets/my-arm --episodes 50",
                "robot:record",
            ),
            "replay": Command(
                "play a recorded episode on a robot",
                "kairos robot replay my-arm.json --data datasets/my-arm --episode 3",
                "robot:replay",
            ),
            "run": Command(
                "run a policy on a robot",
                "kairos robot run my-arm.json --model runs/my-arm/model --episodes 5\n"
                "kairos robot run fake:so101 --policy random --episodes 1 --decisions 20",
                "robot:run",
            ),
            "fake": Command(
                "a fake arm on a pseudo-terminal, for LeRobot's tools and ours",
                "kairos robot fake --robot so101 --out my-fake.json\nkairos robot fake --robot koch",
                "robot:fake",
            ),
        },
    ),
    "completion": Command(
        "a script that completes commands and options in your shell",
        "kairos completion bash > ~/.local/share/bash-completion/completions/kairos\n"
        "kairos completion zsh > ~/.kairos.zsh\n"
        "kairos completion fish > ~/.config/fish/completions/kairos.fish\n"
        "bash and fish find their files there; .zshrc has to source its own.",
        "completion:run",
    ),
    "doctor": Command(
        "what is installed, which off-screen renderer works, what each extra needs",
        "kairos doctor\nkairos doctor --json",
        "doctor:run",
    ),
}

ROOT = Group(
    "A trained world-action model of a robot as a Gymnasium environment: step it, plan in it, act with it.",
    "kairos demo\nkairos record --help",
    COMMANDS,
)


def indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
