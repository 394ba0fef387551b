"""What a run owns: folder, configuration, one writer at a time, files written whole or not at all, worker processes."""

from kairos_env.runs.checksums import (
    damaged_files,
    file_sha256,
    require_sound,
    stored_checksums,
    write_checksums,
)
from kairos_env.runs.files import (
    append_jsonl,
    atomic_write,
    put_in_place,
    read_jsonl,
    remove_leftovers,
    temporary_for,
    write_bytes,
    write_json,
    write_text,
)
from kairos_env.runs.folder import ConfigMismatch, describe_machine, open_run
from kairos_env.runs.initial_states import INITIAL_STATES, check_initial_states, split_initial_states
from kairos_env.runs.lock import FolderInUse, WriteLock
from kairos_env.runs.spelling import did_you_mean
from kairos_env.runs.workers import exit_with_parent, single_threaded_workers, stopped_by_signals

__all__ = [
    "ConfigMismatch",
    "FolderInUse",
    "INITIAL_STATES",
    "WriteLock",
    "append_jsonl",
    "atomic_write",
    "check_initial_states",
    "damaged_files",
    "describe_machine",
    "did_you_mean",
    "exit_with_parent",
    "file_sha256",
    "open_run",
    "put_in_place",
    "read_jsonl",
    "remove_leftovers",
    "require_sound",
    "single_threaded_workers",
    "split_initial_states",
    "stopped_by_signals",
    "stored_checksums",
    "temporary_for",
    "write_bytes",
    "write_checksums",
    "write_json",
    "write_text",
]
