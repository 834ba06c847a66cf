"""Feature extractors: what makes of a volume the numbers that FID, KID and coverage compare."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ...study.errors import PlanError, VerificationError, VolumeError, WireError
from ...study.files import write
from ..state import from_bytes, refuse_unlike
from .encoder import LEAST_SIDE, Encoder, OnSphere
from .medicalnet import medicalnet

CONTRASTIVE = "contrastive encoder, trained on phantoms"
_CONTRASTIVE = re.compile(CONTRASTIVE + r"( of \d{1,4} x \d{1,4} x \d{1,4} voxels)?")
KIND = "extractor"
"""The key of the safetensors header that says what the file holds; MedicalNet's have none."""


@dataclass(frozen=True)
class Extractor:
    """A network that turns each volume alone into features, in the form of one file.

    Attributes:
        name: what reports call it.
        digest: SHA-256 of `content`, in hexadecimal.
        content: the file, safetensors.
        network: in evaluation mode; (1, 1, D, H, W) to (1, F).
    """

    name: str
    digest: str
    content: bytes = field(repr=False)
    network: nn.Module = field(repr=False)

    def features(self, volumes: Tensor) -> npt.NDArray[np.float64]:
        """Return (n, F) features of volumes (n, 1, D, H, W) in [-1, 1], on the volumes' device.

        Volumes pass one at a time: none changes another's features, and memory does not grow.

        Raises:
            VolumeError: the shape is another, a side is under 16 voxels or a voxel is not finite.
        """
        if volumes.ndim != 5 or volumes.shape[1] != 1 or min(volumes.shape[2:]) < LEAST_SIDE:
            raise VolumeError(
                "the extractor cannot pass these volumes",
                got=tuple(volumes.shape),
                expected=f"(n, 1, D, H, W) with sides of {LEAST_SIDE} or more",
            )
        if len(volumes) == 0 or not bool(torch.isfinite(volumes).all()):
            raise VolumeError("no volumes, or a voxel that is not finite")
        network = self.network.to(volumes.device)
        with torch.no_grad():
            rows = [network(volume[None].float()) for volume in volumes]
        return torch.cat(rows).cpu().numpy().astype(np.float64)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            DiskError: it cannot be written.
        """
        write(path, self.content)


def contrastive(encoder: Encoder, shape: Sequence[int] = ()) -> Extractor:
    """Return an extractor of a trained encoder, its features on a sphere.

    Equal weights give equal bytes.

    Args:
        encoder: trained.
        shape: (D, H, W) of the phantoms that it learned from, which its name then says.
    """
    name = f"{CONTRASTIVE} of {' x '.join(map(str, shape))} voxels" if shape else CONTRASTIVE
    state = nn.Sequential(encoder, OnSphere()).state_dict()
    tensors = {name: x.detach().cpu().contiguous() for name, x in state.items()}
    # one key only: more would be written in an order that changes
    return read_extractor(save(tensors, metadata={KIND: name}))


def load_extractor(path: Path, sha256: str) -> Extractor:
    """Read MedicalNet's weights, or a contrastive encoder's, from a safetensors file.

    Raises:
        PlanError: there is no such file, or as in `read_extractor`.
        VerificationError: the file's SHA-256 is another; nothing of it was read then.
    """
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise PlanError(f"the extractor {path} cannot be read: {fault.strerror}") from None
    return read_extractor(content, sha256)


def read_extractor(content: bytes, sha256: str | None = None) -> Extractor:
    """Return the extractor that a file's bytes hold.

    The header says what they are; a file whose header does not is MedicalNet's, ResNet-10 or 50,
    with its tensors named as in the published files (with or without "module." before them).

    Args:
        content: safetensors.
        sha256: what their SHA-256 must be, 64 hexadecimal digits; None for one's own bytes.

    Raises:
        PlanError: not safetensors, a tensor is missing, strange, misshapen or not finite, or the
            header names another kind of extractor.
        VerificationError: the SHA-256 is another.
    """
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise VerificationError(
            "the extractor's file is not the one that was named", got=digest, expected=sha256
        )
    try:
        tensors = from_bytes(content)
        kind = _kind(content)
        if kind is not None and _CONTRASTIVE.fullmatch(kind):
            name, network = kind, _encoder()
        elif kind is None:
            tensors = {name.removeprefix("module."): x for name, x in tensors.items()}
            name, network = _medicalnet(tensors)
        else:
            raise PlanError("unknown kind of extractor", got=kind[:80], expected=CONTRASTIVE)
        refuse_unlike(tensors, network.state_dict())
    except WireError as fault:
        raise PlanError(
            f"this is no feature extractor: {fault.what}",
            got=fault.got,
            expected=fault.expected,
            hint="give MedicalNet's ResNet-10 or ResNet-50 in safetensors, or an encoder that "
            "voxfed trained",
        ) from None
    network.load_state_dict(tensors, assign=True)
    return Extractor(name, digest, content, network.eval().requires_grad_(False))


def _kind(content: bytes) -> str | None:
    """Return what the header of well-formed safetensors says of the file, if anything."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    kind: str | None = header.get("__metadata__", {}).get(KIND)
    return kind


def _encoder() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(Encoder(), OnSphere())


def _medicalnet(tensors: dict[str, Tensor]) -> tuple[str, nn.Module]:
    depth = 50 if "layer1.0.conv3.weight" in tensors else 10
    return f"MedicalNet ResNet-{depth}", medicalnet(depth)
