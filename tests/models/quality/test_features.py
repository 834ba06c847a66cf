"""An extractor is the file that was named, whole, and nothing else."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor
from voxfed.models.quality.encoder import Encoder
from voxfed.models.quality.features import contrastive, load_extractor, read_extractor
from voxfed.models.quality.medicalnet import medicalnet
from voxfed.study.errors import PlanError, VerificationError, VolumeError


def volumes(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder()


def weights() -> dict[str, Tensor]:
    """Return MedicalNet's tensors by name, with values of no meaning."""
    return {
        name: torch.ones(x.shape, dtype=x.dtype) for name, x in medicalnet(10).state_dict().items()
    }


def named(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_saved_extractor_is_read_back(tmp_path: Path) -> None:
    """A coordinator keeps the encoder: the digest is the file's, and features keep every bit."""
    first = contrastive(encoder())
    first.save(tmp_path / "encoder.safetensors")
    second = load_extractor(tmp_path / "encoder.safetensors", first.digest.upper())
    assert second.name == first.name == "contrastive encoder, trained on phantoms"
    assert second.digest == named((tmp_path / "encoder.safetensors").read_bytes())
    some = volumes(2, 1, 16, 16, 16)
    assert np.array_equal(first.features(some), second.features(some))


def test_a_report_says_what_phantoms_an_encoder_learned_from() -> None:
    """The shape comes with the file; a name that somebody made up is none of ours."""
    made = contrastive(encoder(), (16, 24, 32))
    assert made.name == "contrastive encoder, trained on phantoms of 16 x 24 x 32 voxels"
    assert read_extractor(made.content).name == made.name
    other = made.content.replace(b"phantoms of 16", b"phantoms in 16")
    assert len(other) == len(made.content)
    assert other != made.content
    with pytest.raises(PlanError, match="unknown kind"):
        read_extractor(other)


def test_equal_weights_are_one_file() -> None:
    """Two coordinators who trained alike name the same digest; other weights have another."""
    assert contrastive(encoder()).content == contrastive(encoder()).content
    assert contrastive(encoder()).digest != contrastive(encoder(1)).digest


def test_features_are_those_of_each_volume_alone() -> None:
    """The rows do not depend on how many volumes come together, to the bit."""
    extractor, some = contrastive(encoder()), volumes(3, 1, 16, 18, 20)
    together = extractor.features(some)
    assert together.shape == (3, 64)
    assert together.dtype == np.float64
    assert np.array_equal(together[1:2], extractor.features(some[1:2]))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_medicalnet_is_known_by_its_tensors(prefix: str, tmp_path: Path) -> None:
    """Published weights say nothing of themselves, and some were saved from a parallel model."""
    content = save({prefix + name: x for name, x in weights().items()}, metadata={"format": "pt"})
    (tmp_path / "weights.safetensors").write_bytes(content)
    extractor = load_extractor(tmp_path / "weights.safetensors", named(content))
    assert extractor.name == "MedicalNet ResNet-10"
    assert extractor.features(volumes(1, 1, 16, 16, 16)).shape == (1, 512)
    assert not extractor.network.training


def test_another_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Bytes that are not even safetensors fail by their digest: nothing parsed them."""
    (tmp_path / "weights.safetensors").write_bytes(b"changed on the way")
    with pytest.raises(VerificationError, match=named(b"changed on the way")):
        load_extractor(tmp_path / "weights.safetensors", "0" * 64)


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    """A path with a slip in it is a wrong option, not a traceback."""
    with pytest.raises(PlanError, match="cannot be read"):
        load_extractor(tmp_path / "none.safetensors", "0" * 64)


def short(tensors: dict[str, Tensor]) -> None:
    del tensors["layer3.0.bn1.running_var"]


def long(tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"] = torch.zeros(2, 2)


def wide(tensors: dict[str, Tensor]) -> None:
    tensors["bn1.bias"] = torch.zeros(65)


def half(tensors: dict[str, Tensor]) -> None:
    tensors["bn1.bias"] = torch.zeros(64, dtype=torch.float16)


def endless(tensors: dict[str, Tensor]) -> None:
    tensors["bn1.bias"] = torch.full((64,), torch.inf)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (short, "missing or foreign names.*layer3.0.bn1.running_var"),
        (long, "missing or foreign names.*fc.weight"),
        (wide, "bn1.bias has another shape"),
        (half, "bn1.bias has another shape or type"),
        (endless, "NaN or infinity"),
        (dict.clear, "missing or foreign names"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_that_do_not_fit_are_refused(harm, words: str) -> None:  # type: ignore[no-untyped-def]
    """Half a network would still give numbers, and they would mean nothing."""
    tensors = weights()
    harm(tensors)
    with pytest.raises(PlanError, match=words):
        read_extractor(save(tensors))


@pytest.mark.parametrize("content", [b"", b"12345678", save({})[:5], b"\xff" * 64])
def test_garbage_is_refused(content: bytes) -> None:
    """A file that is no safetensors gets one clear line, even where its digest was given."""
    with pytest.raises(PlanError, match="no feature extractor"):
        read_extractor(content, named(content))


def test_another_kind_is_refused() -> None:
    """An extractor of a later version is not taken for MedicalNet."""
    content = save({"a": torch.zeros(1)}, metadata={"extractor": "something new"})
    with pytest.raises(PlanError, match="unknown kind of extractor"):
        read_extractor(content)


@pytest.mark.parametrize(
    "some",
    [
        torch.zeros(1, 2, 16, 16, 16),
        torch.zeros(1, 1, 16, 16, 15),
        torch.zeros(1, 16, 16, 16),
        torch.zeros(0, 1, 16, 16, 16),
        torch.full((1, 1, 16, 16, 16), torch.nan),
    ],
    ids=["channels", "side", "axes", "none", "nan"],
)
def test_volumes_that_cannot_pass_are_refused(some: Tensor) -> None:
    """A wrong shape or a NaN is an error here, not a NaN in a table."""
    with pytest.raises(VolumeError):
        contrastive(encoder()).features(some)
