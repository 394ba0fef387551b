"""The imagined step and the decoder as compiled functions, for one-pass models on a CPU."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kairos_env.world_model.attention.visibility import LayerMemory
from kairos_env.world_model.compiled import Compiled
from kairos_env.world_model.engines import VARIABLES, EngineError, choose
from kairos_env.world_model.gated_delta_net import GatedDeltaState
from kairos_env.world_model.interface import SmallInterface
from kairos_env.world_model.one_pass import Known, imagine_frame
from kairos_env.world_model.state import StepOutput, WorldState
from kairos_env.world_model.streaming import StreamingPasses
from kairos_env.world_model.tokenizers.image import Tokenizer

READ = ("latent", "proprio", "reward", "success", "objects", "errors", "own_errors")  # what a step reads of its frame


def use_engine(model: StreamingPasses, name: str | None = None, dtype: torch.dtype = torch.float32) -> None:
    """Lets an engine of `engines` compute a model's imagined steps and pictures; by default the automatic one.

    Args:
        dtype: that the model computes in.

    Raises:
        EngineError: the engine asked for cannot run here, or not this model.
    """
    chosen, asked = choose("step", model.device, dtype, name), name or os.environ.get(VARIABLES["step"])
    interface = model.interface
    fits = isinstance(interface, SmallInterface) and model.config.one_pass and model.config.prediction == "sample"
    if asked and chosen != "eager" and not fits:
        raise EngineError(
            f"the step engine {chosen!r} computes small models with one pass a step, and {model.config.preset!r} is "
            "none; use engine 'eager'" + ("" if name else f" ({VARIABLES['step']})")
        )
    model.compiled = None
    if isinstance(interface, SmallInterface):
        interface.decode_latents = interface.tokenizer.decode
        if fits and chosen != "eager":
            model.compiled = CompiledStep(model, chosen, strict=bool(asked))
            interface.decode_latents = CompiledDecoder(interface.tokenizer, chosen)


class CompiledStep:
    """`imagine_frame` with one denoising step.

    Args:
        engine: see `Compiled`.
        strict: more denoising steps, which draw noise and are not compiled, are an error instead of computed eagerly.
    """

    def __init__(self, model: StreamingPasses, engine: str, strict: bool) -> None:
        self._model, self._engine, self._strict = model, engine, strict
        self._functions: dict[tuple[str, ...], Compiled] = {}

    def __call__(self, state: WorldState, action: Tensor, steps: int) -> StepOutput:
        """See `imagine_frame`.

        Raises:
            EngineError: several denoising steps.
        """
        if steps > 1:
            if self._strict:
                raise EngineError(
                    f"the step engine {self._engine!r} takes one denoising step, not {steps}; use engine 'eager'"
                )
            return imagine_frame(self._model, state, action, steps)
        if state.own_errors is None:
            state = dataclasses.replace(state, own_errors=state.errors)
        tensors = state.tensors()
        names = tuple(tensors)
        if names not in self._functions:
            self._functions[names] = Compiled(partial(_imagine, self._model, names), self._model, self._engine)
        dit, time = self._model.mixture.video_dit, state.past[:, None]
        known = (*dit.rotations(time, self._model.grid), dit.embed_level(torch.ones_like(time, dtype=torch.float32)))
        uncertainty, *changed = self._functions[names](action, *known, *tensors.values())
        after = _after(state, dict(zip(_changed(tensors), changed, strict=True)))
        return StepOutput(
            after, after.latent, after.proprio, after.reward, after.success, uncertainty, after.objects, after.errors
        )


def _imagine(
    model: StreamingPasses,
    names: tuple[str, ...],
    action: Tensor,
    cos: Tensor,
    sin: Tensor,
    level: Tensor,
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    """The uncertainty of a step, then what it changes of the tensors of a state; see `_changed`."""
    before = dict(zip(names, tensors, strict=True))
    out = imagine_frame(model, WorldState.of_tensors(before), action, 1, Known((cos, sin), level))
    after = out.state.tensors()
    return (out.uncertainty, *(after[name] for name in _changed(before)))


def _changed(tensors: dict[str, Tensor]) -> list[str]:
    """Names of what a step computes anew: of remembered frames only the newest, the others move up by one.

    Nothing is computed of what is empty (objects where no data taught them, frames of a layer that remembers none).
    """
    newest = {name.rsplit(".", 1)[0]: name for name in tensors if ".keys." in name or ".values." in name}
    delta = [name for name in tensors if name.endswith((".recurrent", ".conv"))]
    return [name for name in (*READ, *newest.values(), *delta) if tensors[name].numel()]


def _after(state: WorldState, new: dict[str, Tensor]) -> WorldState:
    """The state after a step that changed ``new``."""
    layers = []
    for index, memory in enumerate(state.layers):
        at = f"layers.{index}."
        newest = f"{len(memory.keys) - 1}"
        keys, values, delta = memory
        if f"{at}keys.{newest}" in new:
            keys = (*keys[1:], new[f"{at}keys.{newest}"])
            values = (*values[1:], new[f"{at}values.{newest}"])
        if delta is not None:
            delta = GatedDeltaState(new[f"{at}recurrent"], new[f"{at}conv"])
        layers.append(LayerMemory(keys, values, delta))
    read: dict[str, Any] = {name: new[name] for name in READ if name in new}
    return dataclasses.replace(state, layers=tuple(layers), past=state.past + 1, **read)


class CompiledDecoder:
    """`Tokenizer.decode`, compiled; pictures have 256 levels and bear bfloat16, of which nothing is remembered."""

    def __init__(self, tokenizer: Tokenizer, engine: str) -> None:
        self._run = Compiled(partial(_decode, tokenizer), tokenizer, engine, exact=False)

    def __call__(self, latents: Tensor) -> Tensor:
        return self._run(latents)[0]


def _decode(tokenizer: Tokenizer, latents: Tensor) -> tuple[Tensor]:
    return (tokenizer.decode(latents),)
