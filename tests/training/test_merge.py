"""Merging: each method against values by hand, and two models as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from moving_square import SPEC, config, moving_square

from kairos_env.cli import main as cli
from kairos_env.datasets.hdf5.recorded import EpisodeWriter
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.lineage import MERGED, model_lineage
from kairos_env.training.merge import MergeConfig, dare, merge_models, merged, soup, ties, wudi
from kairos_env.world_model.model import WorldModel

NONE = torch.Generator()
TASK = {"push": TASKS["push"]}


def test_soup_is_the_mean_of_the_parents() -> None:
    base = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    parents = [{"w": torch.tensor(w), "n": torch.tensor(3)} for w in ([2.0, 2.0], [4.0, 0.0])]
    found = merged(base, parents, "soup", MergeConfig())
    assert found["w"].tolist() == [3.0, 1.0] and found["n"] == 3
    assert merged(base, parents, "soup", MergeConfig(scale=0.5))["w"].tolist() == [2.0, 1.5]


def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    learned = torch.tensor([[4.0, -3.0, 0.1, 0.0], [2.0, 5.0, -0.2, 0.0]])
    found = ties(learned, MergeConfig(density=0.5), NONE)
    assert found.tolist() == [3.0, 5.0, 0.0, 0.0]  # the second entry's sign is the second's; small ones are trimmed


def test_dare_keeps_a_share_and_the_expectation() -> None:
    learned = torch.ones(2, 100_000)
    found = dare(learned, MergeConfig(density=0.25), torch.Generator().manual_seed(0))
    assert abs(float(found.mean()) - 1) < 0.02
    assert sorted(set(found.tolist())) == [0.0, 2.0, 4.0]  # none, one or both of two, each enlarged by four
    again = dare(learned, MergeConfig(density=0.25), torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


def test_wudi_leaves_each_parents_inputs_alone() -> None:
    """Parents that learned of inputs at right angles do not interfere: their sum is right for both."""
    one, other = torch.zeros(4, 6), torch.zeros(4, 6)
    one[:, :3], other[:, 3:] = torch.eye(4, 3), torch.eye(4, 3).flip(0)
    learned = torch.stack([one, other])
    torch.testing.assert_close(wudi(learned, MergeConfig(), NONE), one + other, atol=1e-2, rtol=0)
    alike = torch.stack([one, one])  # of the same inputs the sum is too much
    found = wudi(alike, MergeConfig(wudi_lr=0.03), NONE)
    torch.testing.assert_close(found, one, atol=2e-2, rtol=0)
    assert wudi(torch.tensor([[1.0], [3.0]]), MergeConfig(), NONE).tolist() == [2.0]  # no matrix: the mean


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, two models that moved away from it, and a recording that none has seen."""
    folder = tmp_path_factory.mktemp("family")
    base = WorldModel.from_preset("debug", SPEC, TASK)
    base.save_pretrained(folder / "base")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in base.named_parameters():
                if not key.startswith("tokenizer."):
                    parameter.add_(0.05 * torch.randn_like(parameter))
        base.save_pretrained(folder / name)
        base = WorldModel.from_pretrained(folder / "base")
    with EpisodeWriter(folder / "seen" / "shard_0.hdf5", SPEC) as writer:
        for i in range(2):
            writer.add(moving_square(i))
    return folder


def test_the_best_of_all_ways_is_kept(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(family / name) for name in ("one", "two")]
    words = ["--base", str(family / "base"), "--data", str(family / "seen"), "--out", str(tmp_path / "m")]
    assert cli.main(["merge", *names, *words, "--wudi-steps", "3", "--frames", "4"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{method}" in said for method in ("soup", "ties", "dare", "wudi")) and said.count("<- kept") == 1
    notes = json.loads((tmp_path / "m" / MERGED).read_text())
    losses = {name: next(iter(values.values())) for name, values in notes["losses"].items()}
    methods = ("soup", "ties", "dare", "wudi")
    assert notes["chosen"] == min(methods, key=lambda method: losses[method])
    assert losses["soup"] < max(losses[name] for name in names)
    assert [len(each["parents"]) for each in model_lineage(tmp_path / "m")] == [0, 0, 2]
    found = WorldModel.from_pretrained(tmp_path / "m")
    found.imagine(found.observe(moving_square(5).observation(0)), moving_square(5).actions[None])
    assert cli.main(["merge", *names, *words]) == 2
    assert "is there already" in capsys.readouterr().err


def test_models_that_do_not_fit_are_refused(family: Path, tmp_path: Path) -> None:
    other = WorldModel.from_preset("debug", SPEC, TASK, seed=5)
    other.save_pretrained(tmp_path / "other")
    data, out = [str(family / "seen")], tmp_path / "out"
    with pytest.raises(ValueError, match="other has another tokenizer than .*base"):
        merge_models([str(family / "one"), str(tmp_path / "other")], str(family / "base"), data, out, MergeConfig())
    with pytest.raises(ValueError, match="merging takes a base and two or more models"):
        merge_models([str(family / "one")], str(family / "base"), data, out, MergeConfig())
    with pytest.raises(ValueError, match="name one or more recordings"):
        merge_models([str(family / "one")] * 2, str(family / "base"), [], out, MergeConfig())
    assert config(tmp_path).preset == "debug" and not out.exists()
    assert soup(torch.ones(2, 3), MergeConfig(), NONE).tolist() == [1, 1, 1]
