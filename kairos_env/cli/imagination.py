"""`kairos eval imagination`, `calibration`, `correlation`, `probe`, `state-model`: imagination against reality."""

from __future__ import annotations

from kairos_env.cli.options import Fields
from kairos_env.cli.proposal import next_command
from kairos_env.cli.values import print_json
from kairos_env.eval.controls.state_training import StateTrainingConfig, run_state_training
from kairos_env.eval.imagination.calibration import CalibrationConfig, run_calibration
from kairos_env.eval.imagination.correlation import CorrelationConfig, success_correlation
from kairos_env.eval.imagination.evaluate import ImaginationConfig, run_imagination
from kairos_env.eval.imagination.probe import ProbeConfig, train_probe


def imagination(config: Fields[ImaginationConfig]) -> int:
    """Measures imagined rollouts."""
    report = run_imagination(config, progress=True, say=print)
    print(f"{report.table()}\n\nwritten to {config.output}")
    if config.data:
        print(f"next:    {next_command('demo', config.model, config.data, config.feature_map)}")
    return 0


def calibration(config: Fields[CalibrationConfig]) -> int:
    """Measures whether expected errors and success are the true ones."""
    report = run_calibration(config, progress=True)
    print(f"{report.table()}\n\nwritten to {config.output}")
    return 0


def correlation(config: Fields[CorrelationConfig]) -> int:
    """Correlates imagined with real success; 1 if an episode ended in an error."""
    report = success_correlation(config, progress=True)
    print(f"{report.table()}\n\nwritten to {config.output}")
    return int(bool(getattr(report, "errors", 0)))


def probe(config: Fields[ProbeConfig]) -> int:
    """Trains the reader of positions."""
    trained = train_probe(config, progress=True)
    print("on held-out real frames: " + ", ".join(f"{name} {value}" for name, value in trained.floor.items()))
    print(f"written to {config.output}")
    return 0


def state_model(config: Fields[StateTrainingConfig]) -> int:
    """Trains the control of the video model."""
    _, report = run_state_training(config, progress=print)
    print_json(report)
    print(f"written to {config.output}")
    return 0
