from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import row

from kairos_env.cli import main as cli
from kairos_env.eval.report.compare import compare
from kairos_env.eval.rows import ResultsFile, Row
from kairos_env.eval.statistics import paired_difference


def outcomes(pairs: str, policy: str, which: int, **kwargs: Any) -> Iterator[Row]:
    """Rows of one policy from pairs such as ``"sf sf ff"``."""
    for i, pair in enumerate(pairs.split()):
        yield row(f"t{i}", {"s": "success", "f": "failure", "e": "error"}[pair[which]], policy=policy, **kwargs)


def test_comparison_on_common_jobs() -> None:
    pairs = "ss ss sf sf sf sf sf sf fs ff ff se es ee"
    first = [*outcomes(pairs, "new", 0), row("only", policy="new")]
    found = compare(reversed(first), outcomes(pairs, "old", 1))
    total = found.groups["total"]
    assert (total.both, total.only_first, total.only_second, total.neither, total.pairs) == (2, 6, 1, 2, 11)
    assert total.rates == (8 / 11, 3 / 11)
    assert total.difference == paired_difference(6, 1, 11)
    # by hand: of seven fair coins, no more than one or at least six show the same side
    assert total.p_value == pytest.approx(float(Fraction(2 * (1 + 7), 2**7)))
    assert found.unpaired == (2, 1), "the partner of an error stays alone"
    assert list(found.groups) == ["total", "camera", "libero_object"]
    assert (found.first, found.second) == ("new", "old")


def test_comparison_keeps_scenes_of_ours_apart() -> None:
    first = [*outcomes("sf ff", "new", 0), row("x", policy="new", dimension="light", ours=True)]
    second = [*outcomes("sf ff", "old", 1), row("x", "failure", policy="old", dimension="light", ours=True)]
    found = compare(first, second)
    assert list(found.groups) == ["total", "camera", "libero_object", "scenes of ours"]
    assert found.groups["total"].pairs == 2 and found.groups["scenes of ours"].only_first == 1


def test_comparison_refuses_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="the first run has policies a, b; say which one with --policy-a"):
        compare([row(policy="a"), row(policy="b")], [row(policy="c")])
    with pytest.raises(ValueError, match="no job in common"):
        compare([row(state=1)], [row(state=2)])
    with pytest.raises(ValueError, match="the second run has no results"):
        compare([row()], [])


def write_run(folder: Path, rows: list[Row], **config: Any) -> Path:
    with ResultsFile(folder / "results.jsonl") as results:
        for item in rows:
            results.append(item)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = "ss sf sf fs ff"
    a = write_run(tmp_path / "a", list(outcomes(pairs, "new", 0, prompt="bddl")), wait_steps=10)
    b = write_run(tmp_path / "b", list(outcomes(pairs, "old", 1, prompt="official")), wait_steps=30)
    assert cli.main(["eval", "compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "20.0 [" in text and "1.000" in text, "2 against 1 of 5 pairs"
    assert "differ in wait_steps: 10 | 30" in text and "differ in prompt: bddl | official" in text
    assert cli.main(["eval", "compare", str(a), str(b), "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert groups["total"]["only_first"] == 2 and groups["total"]["p_value"] == 1.0

    assert cli.main(["eval", "table", str(a), str(b)]) == 2
    assert "say where with --out" in capsys.readouterr().err
    assert cli.main(["eval", "table", str(a), str(b), "--out", str(tmp_path / "all"), "--published"]) == 0
    text = capsys.readouterr().out
    assert "libero-plus, new: subset: 5 of 10,030" in text and "Kairos (joint)" in text and "h on 64" in text
    assert sorted(os.listdir(tmp_path / "all")) == ["report.html", "report.json", "timing.json"]

    assert cli.main(["eval", "compare", str(a), str(tmp_path / "none")]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    assert cli.main(["eval", "compare", str(a), str(b), "--policy-a", "newer"]) == 2
    assert "no policy 'newer'; it has new" in capsys.readouterr().err
