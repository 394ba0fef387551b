"""`kairos train-report`, `card` and `push`: what a training did, as a page and as a card, and its model shared."""

from __future__ import annotations

from pathlib import Path

from kairos_env.cli.options import Positional


def report(run: Positional[Path]) -> int:
    """Writes the page of a training run.

    Args:
        run: folder of `kairos train`, finished or not, or of a model that brought its log.
    """
    from kairos_env.eval.report.training import training_text, write_training_page

    page = write_training_page(run)
    print(f"{training_text(run)}\n\nwritten to {page}")
    return 0


def card(model: Positional[Path], measured: tuple[Path, ...] = (), name: str = "") -> int:
    """Writes the card of a trained model anew.

    Args:
        model: its folder.
        measured: folders of `kairos eval closed-loop`, `imagination` and `calibration` whose tables it gets.
        name: of the model; by default that of its folder.
    """
    from kairos_env.eval.report.measured import add_to_card
    from kairos_env.training.card import write_card

    for run in measured:
        print(f"{run}: {add_to_card(model, run)}")
    print(f"written to {write_card(model, name)}")
    return 0


def push(model: Positional[Path], name: Positional[str], private: bool = False, revision: str | None = None) -> int:
    """Uploads a model's folder to the Hugging Face hub.

    Args:
        model: its folder.
        name: owner/name of the repository, which is made if it is not there.
        private: a new repository is seen by its owner only.
        revision: branch; by default the main one.
    """
    from kairos_env.world_model.hub import push_to_hub

    print(f"{push_to_hub(model, name, private, revision)}\nanywhere: kairos play --model {name}")
    return 0
