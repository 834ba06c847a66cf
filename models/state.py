"""The state of a family as bytes: safetensors, sorted by name, and nothing that runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..study.errors import WireError
from .base import Family


def tensors_of(family: Family) -> dict[str, Tensor]:
    """Return copies of all tensors of the family on the CPU, sorted by name."""
    state = family.state_dict()
    return {name: state[name].detach().cpu().clone() for name in sorted(state)}


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the tensors as safetensors; equal tensors give equal bytes, whatever their order.

    Raises:
        WireError: a tensor holds NaN or infinity.
    """
    _refuse_non_finite(tensors)
    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def from_bytes(data: bytes, *, expected: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the tensors in `data`, bit for bit as `to_bytes` was given them.

    Args:
        data: safetensors.
        expected: tensors whose names, shapes and dtypes `data` must have, exactly.

    Raises:
        WireError: the bytes are not safetensors, a tensor holds NaN or infinity, or the tensors
            are not those expected.
    """
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        raise WireError("the tensors are truncated or not safetensors") from None
    if expected is not None:
        refuse_unlike(tensors, expected)
    _refuse_non_finite(tensors)
    return {name: tensors[name] for name in sorted(tensors)}


def load_into(family: Family, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the family, whole: every name, shape and dtype must be the family's own.

    Raises:
        WireError: they are not; the family is then as it was.
    """
    refuse_unlike(tensors, family.state_dict())
    _refuse_non_finite(tensors)
    family.load_state_dict(dict(tensors))


def stage_tensors(family: Family, stage: str) -> dict[str, Tensor]:
    """Return the family's tensors of one stage, in the family's order.

    They are those whose names begin, up to the first dot, as those of the stage's parameters do;
    no two stages of a family share such a part.

    Raises:
        PlanError: the family has no such stage.
    """
    parts = {_part(name) for step in family.steps(stage) for name in step.parameters}
    return {name: t for name, t in family.state_dict().items() if _part(name) in parts}


def load_stage(family: Family, stage: str, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of one stage into the family, from a file of that stage or of a whole model.

    Tensors of other parts are left out, so that the released weights of any family with the same
    part do: the codes and critic of a vqgan start a latent-diffusion and a vq-transformer. Within
    the stage's parts every name, shape and dtype must be the family's own.

    Raises:
        PlanError: the family has no such stage.
        WireError: the tensors do not fit; the family is then as it was.
    """
    wanted = stage_tensors(family, stage)
    parts = {_part(name) for name in wanted}
    found = {name: tensor for name, tensor in tensors.items() if _part(name) in parts}
    refuse_unlike(found, wanted)
    _refuse_non_finite(found)
    family.load_state_dict(found, strict=False)


def refuse_unlike(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise WireError unless names, shapes and dtypes of the two are the same."""
    odd = sorted(set(tensors) ^ set(expected))
    if odd:
        raise WireError(
            "the tensors have missing or foreign names",
            got=f"{len(tensors)}, among them or missing {', '.join(odd[:3])[:200]}",
            expected=f"the {len(expected)} of the family",
        )
    for name, model in expected.items():
        tensor = tensors[name]
        if tensor.shape != model.shape or tensor.dtype != model.dtype:
            raise WireError(
                f"the tensor {name} has another shape or type",
                got=f"{tuple(tensor.shape)} {tensor.dtype}",
                expected=f"{tuple(model.shape)} {model.dtype}",
            )


def _refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    for name in sorted(tensors):
        if not bool(torch.isfinite(tensors[name]).all()):
            raise WireError(f"the tensor {name[:200]} holds NaN or infinity", expected="finite")


def _part(name: str) -> str:
    """Return the part of the family that a tensor's name begins with."""
    return name.partition(".")[0]
