"""Alignments in files: what is embedded, imputed and retrieved with them is the same, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import calmrl_prob as cal
from calmrl_prob import encoders as library
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.encoders import (
    Autoencoder,
    ConvEncoder,
    LinearEncoder,
    MLPEncoder,
    ResidualEncoder,
    TextEncoder,
    VideoEncoder,
    WaveformEncoder,
    from_recipe,
    recipe,
)
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.training import Alignment, align
from tests.cases.training_cases import DIMS, data, encoders, run


def loaded(found: Alignment, path: Path, own: dict[str, nn.Module] | None = None) -> Alignment:
    cal.save(found, path)
    again = cal.load(path, encoders=own)
    assert isinstance(again, Alignment)
    return again


def test_embedding_imputing_and_retrieving_are_the_same_bits(tmp_path: Path) -> None:
    found, rows = run(dropout=0.1, validation=data(40, seed=1)), data(seed=2)
    again = loaded(found, tmp_path / "alignment.safetensors")
    assert repr(again) == repr(found)
    assert again.history.equals(found.history)
    shown, others = found.represent(rows), again.represent(rows)
    one, other = found.generative_model, again.generative_model
    assert one is not None
    assert other is not None
    imputed, imputed_again = cal.impute(one, shown), cal.impute(other, others)
    for name in DIMS:
        assert torch.equal(shown[name].nan_to_num(), others[name].nan_to_num())
        assert torch.equal(imputed.mean[name], imputed_again.mean[name])
    ranked, ranked_again = (
        cal.retrieve(model, given.select(["text"]), given.select(["image"]), top_k=5)
        for model, given in ((one, shown.subset(rows.complete_rows())), (other, others.subset(rows.complete_rows())))
    )
    assert (ranked.top_scores == ranked_again.top_scores).all()
    with pytest.raises(ArgumentError, match="objective: an alignment from a file has none; to train on, use align"):
        again.module.objective(None)  # type: ignore[arg-type]


ENCODERS = [
    nn.Linear(3, 2, bias=False),
    LinearEncoder(3, 2),
    MLPEncoder(3, 2, (), 0.5),
    MLPEncoder(3, 2, (4, 5), 0.2),
    Autoencoder(3, 2, (5,)),
    ResidualEncoder(nn.Linear(3, 2), ()),
    ResidualEncoder(LinearEncoder(3, 2), (4,), 0.1),
    ConvEncoder(3, 8, (4, 6)),
    WaveformEncoder(8, (4, 6), 32, 16, 0.1),
    TextEncoder(10, 8, 5, 0.3),
    VideoEncoder(3, 8, (4, 6), 0.1),
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: type(encoder).__name__)
def test_every_encoder_of_this_package_is_made_again_without_memory_or_chance(encoder: nn.Module) -> None:
    found = recipe(encoder)
    assert found is not None
    before = torch.random.get_rng_state()
    again = from_recipe(found, most_layers=9)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.is_meta for parameter in again.parameters())
    assert repr(again) == repr(encoder)
    assert recipe(again) == found
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in encoder.state_dict().items()
    }


def test_no_encoder_of_this_package_is_left_out() -> None:
    public = [getattr(library, name) for name in library.__all__]
    modules = {kind for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert {type(encoder) for encoder in ENCODERS} == {nn.Linear, *modules}


def test_what_was_changed_after_it_was_made_has_no_recipe() -> None:
    other, longer, hooked = MLPEncoder(3, 2, (4,)), MLPEncoder(3, 2, (4,)), MLPEncoder(3, 2, (4,))
    other[1] = nn.ReLU()
    longer.append(nn.Tanh())
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    for encoder in (other, longer, hooked, nn.Sequential(nn.Linear(3, 2))):
        assert recipe(encoder) is None


class Own(nn.Module):
    """A user's module, with a buffer and in double precision."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.map = nn.Linear(DIMS["text"], width)
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.map(inputs) * self.scale


def test_a_users_own_module_is_given_and_filled(tmp_path: Path) -> None:
    path, rows = tmp_path / "own.safetensors", data(seed=2)
    found = align(data(), {**encoders(), "text": Own()}, OBJECTIVES["pairwise"](), max_epochs=1)
    own = Own()
    again = loaded(found, path, {"text": own})
    assert again.encoders["text"] is own
    assert torch.equal(found.represent(rows)["text"].nan_to_num(), again.represent(rows)["text"].nan_to_num())
    made_by = r"encoders: that of 'text' was made by .*test_stored\.Own, not by this package.*pass it: load\(path, enc"
    with pytest.raises(ArgumentError, match=made_by):
        cal.load(path)
    wide = Own(9)
    before = wide.map.weight.clone()
    with pytest.raises(ArgumentError, match=r"'text' was saved with 'map.bias' of \(6,\) .*the one given has \(9,\)"):
        cal.load(path, encoders={"text": wide})
    assert torch.equal(wide.map.weight, before)
    with pytest.raises(ArgumentError, match=r"'map.bias' of .*float32, and the one given has .*float64"):
        cal.load(path, encoders={"text": Own().double()})
    with pytest.raises(ArgumentError, match=r"encoders: expected modalities of .*, got 'video'; leave it out"):
        cal.load(path, encoders={"video": own})
    with pytest.raises(ArgumentTypeError, match=r"encoders: expected nn.Module for 'text', got 3"):
        cal.load(path, encoders={"text": 3})  # type: ignore[dict-item]
    cal.save(cal.SharedLatentModel({"a": 2}, 1), path)
    with pytest.raises(ArgumentError, match=r"encoders: .* holds a SharedLatentModel, which has none"):
        cal.load(path, encoders={"text": own})
