"""`kairos record`, `kairos record-libero`: episodes of the simulators, in files."""

from __future__ import annotations

from kairos_env.cli.options import Fields
from kairos_env.collect import demonstrations, recorder


def record(config: Fields[recorder.RecordConfig]) -> int:
    """Records, or goes on recording."""
    folder = recorder.record(config)
    print(f"recorded into {folder}")
    return 0


def record_libero(config: Fields[demonstrations.RecordLiberoConfig]) -> int:
    """Records demonstrations; 1 if there are fewer than asked for."""
    recorded = demonstrations.record_libero(config)
    print(recorded.table())
    return int(bool(recorded.short))
