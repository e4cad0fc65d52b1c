"""Encoders of raw inputs: widths, and that an instance's representation is its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from calmrl_prob.encoders import ConvEncoder, TextEncoder, VideoEncoder, WaveformEncoder, log_spectrogram
from calmrl_prob.errors import ArgumentError, DataError

GENERATOR = torch.Generator().manual_seed(0)
CASES: dict[str, tuple[nn.Module, Tensor]] = {
    "image": (ConvEncoder(3, 6, channels=(4, 8)), torch.randn(5, 3, 16, 16, generator=GENERATOR)),
    "video": (VideoEncoder(3, 6, channels=(4, 8)), torch.randn(5, 4, 3, 16, 16, generator=GENERATOR)),
    "waveform": (WaveformEncoder(6, channels=(8, 8)), torch.randn(5, 1000, generator=GENERATOR)),
    "text": (TextEncoder(20, 6, width=8), torch.randint(20, (5, 7), generator=GENERATOR)),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_representation_depends_on_its_own_input_alone(kind: str) -> None:
    encoder, inputs = CASES[kind]
    together = encoder(inputs)
    assert together.shape == (5, 6)
    assert torch.allclose(together[2:3], encoder(inputs[2:3]), atol=1e-5)
    assert len(together.unique(dim=0)) == 5
    together.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) and bool((p.grad != 0).any()) for p in encoder.parameters())  # type: ignore[union-attr]


def test_padding_changes_nothing_and_no_words_at_all_are_finite() -> None:
    encoder = CASES["text"][0]
    words = torch.tensor([[4, 9, 3]])
    assert torch.allclose(encoder(words), encoder(nn.functional.pad(words, (0, 5))), atol=1e-6)
    assert bool(encoder(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all())
    assert not torch.allclose(encoder(words), encoder(words.flip(1)))  # order tells


def test_the_spectrogram_is_that_of_its_windows() -> None:
    wave = torch.randn(2, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = log_spectrogram(wave, window=100, hop=50)
    hann = torch.hann_window(100, dtype=torch.float64)
    direct = torch.stack([torch.fft.rfft(wave[:, s : s + 100] * hann).abs().log1p() for s in range(0, 201, 50)], dim=2)
    assert torch.allclose(found, direct, atol=1e-12)


def test_a_video_run_backwards_is_another() -> None:
    encoder, videos = CASES["video"]
    assert not torch.allclose(encoder(videos), encoder(videos.flip(1)), atol=1e-4)
    still = videos[:, :1].expand(-1, 4, -1, -1, -1)
    assert torch.allclose(encoder(still), encoder(still.flip(1)))


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="at least 128 samples, got 100"):
        WaveformEncoder(3)(torch.zeros(1, 100))
    with pytest.raises(DataError, match="tokens: expected whole numbers from 0 to 4, got 0 to 5"):
        TextEncoder(5, 3)(torch.tensor([[0, 5]]))
    for make in (
        lambda: ConvEncoder(3, 3, dropout=1.0),
        lambda: VideoEncoder(3, 3, dropout=1.0),
        lambda: WaveformEncoder(3, dropout=-0.1),
        lambda: TextEncoder(3, 3, dropout=2.0),
    ):
        with pytest.raises(ArgumentError, match="dropout: expected a share"):
            make()
    with pytest.raises(ArgumentError, match="channels: expected a whole number of at least 1, got 0"):
        ConvEncoder(0, 3)
