"""Small encoders of raw inputs: images, videos, waveforms and captions to representations of one width.

Any ``nn.Module`` from (n, ...) to (n, D) serves in ``calmrl_prob.training.align``; these are sized for a CPU. They
normalise within an instance, never over a batch, so that an instance's representation does not depend on which others
it came with.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from calmrl_prob._support.arguments import whole_number
from calmrl_prob.errors import ArgumentError, DataError


def log_spectrogram(waveforms: Tensor, window: int = 128, hop: int = 64) -> Tensor:
    """Magnitudes of the short-time spectrum, log(1 + |STFT|), of Hann windows within the waveform.

    Args:
        waveforms: (n, T), T at least ``window``.
        window: samples of a window.
        hop: samples from one window to the next.

    Returns:
        (n, window // 2 + 1, F) with F = 1 + (T - window) // hop frames, in float32 or wider.

    Raises:
        ArgumentError: a waveform is shorter than the window.

    Example:
        >>> tone = torch.sin(torch.arange(1024) * 2 * torch.pi * 16 / 128)[None]  # 16 periods in a window
        >>> log_spectrogram(tone).shape, int(log_spectrogram(tone)[0, :, 3].argmax())
        (torch.Size([1, 65, 15]), 16)
    """
    if waveforms.shape[-1] < window:
        raise ArgumentError(f"waveforms: expected at least {window} samples, got {waveforms.shape[-1]}.")
    wide = waveforms.to(torch.promote_types(waveforms.dtype, torch.float32))
    hann = torch.hann_window(window, dtype=wide.dtype, device=wide.device)
    return torch.stft(wide, window, hop, window=hann, center=False, return_complex=True).abs().log1p()


class ConvEncoder(nn.Module):
    """Images to representations: convolutions that halve both sides, then an average over what is left of each quarter.

    Args:
        in_channels: of the images.
        out_features: D.
        channels: of the convolutions; each halves height and width, which must not fall below 2.
        dropout: share of the pooled features dropped in training, in [0, 1).

    Raises:
        ArgumentError: a size is below 1, or ``dropout`` out of range.

    Example:
        >>> ConvEncoder(3, 8, channels=(4, 6))(torch.zeros(5, 3, 16, 16)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self, in_channels: int, out_features: int, channels: Sequence[int] = (16, 32, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [whole_number("channels", width, least=1) for width in (in_channels, *channels)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(_share(dropout)))
        self.head = nn.Linear(4 * widths[-1], whole_number("out_features", out_features, least=1))

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) to (n, D)."""
        mapped: Tensor = self.head(self.layers(images))
        return mapped


class VideoEncoder(nn.Module):
    """Videos to representations: convolutions over frames and places at once, then averages over halves of each side.

    Beside the frames stand their differences to the frame before, so that motion is seen from the first layer on.

    Args:
        in_channels: of a frame.
        out_features: D.
        channels: of the convolutions; each halves height and width, and the second one on time too, none of which
            must fall below 2.
        dropout: share of the pooled features dropped in training, in [0, 1).

    Raises:
        ArgumentError: a size is below 1, or ``dropout`` out of range.

    Example:
        >>> VideoEncoder(3, 8, channels=(4, 6))(torch.zeros(5, 8, 3, 16, 16)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self, in_channels: int, out_features: int, channels: Sequence[int] = (12, 24, 48), dropout: float = 0.0
    ) -> None:
        super().__init__()
        frame = whole_number("channels", in_channels, least=1)
        widths = [2 * frame, *(whole_number("channels", width, least=1) for width in channels)]
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(pairwise(widths)):
            stride = (1 if place == 0 else 2, 2, 2)
            layers += [nn.Conv3d(before, after, 3, stride=stride, padding=1), nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Dropout(_share(dropout)))
        self.head = nn.Linear(8 * widths[-1], whole_number("out_features", out_features, least=1))

    def forward(self, videos: Tensor) -> Tensor:
        """(n, T, C, H, W) to (n, D)."""
        steps = videos.diff(dim=1, prepend=videos[:, :1])
        mapped: Tensor = self.head(self.layers(torch.cat([videos, steps], dim=2).transpose(1, 2)))
        return mapped


class WaveformEncoder(nn.Module):
    """Waveforms to representations: a log spectrogram, convolutions over time, and averages over quarters of it.

    The spectrogram frees what follows from the phase, which is chance; frequencies are its channels.

    Args:
        out_features: D.
        channels: of the convolutions over frames; each but the first halves their number.
        window, hop: of :func:`log_spectrogram`.
        dropout: share of the pooled features dropped in training, in [0, 1).

    Raises:
        ArgumentError: a size is below 1, or ``dropout`` out of range.

    Example:
        >>> WaveformEncoder(8, channels=(4, 6))(torch.zeros(5, 1024)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        out_features: int,
        channels: Sequence[int] = (64, 64),
        window: int = 128,
        hop: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.window, self.hop = whole_number("window", window, least=2), whole_number("hop", hop, least=1)
        widths = [whole_number("channels", width, least=1) for width in (self.window // 2 + 1, *channels)]
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(pairwise(widths)):
            stride = 1 if place == 0 else 2
            layers += [nn.Conv1d(before, after, 3, stride=stride, padding=1), nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Dropout(_share(dropout)))
        self.head = nn.Linear(4 * widths[-1], whole_number("out_features", out_features, least=1))

    def forward(self, waveforms: Tensor) -> Tensor:
        """(n, T) to (n, D)."""
        frames = log_spectrogram(waveforms, self.window, self.hop).to(self.head.weight.dtype)
        mapped: Tensor = self.head(self.layers(frames))
        return mapped


class TextEncoder(nn.Module):
    """Captions to representations: embeddings, a convolution over neighbouring words, and the mean over all words.

    Padding, token 0, changes nothing: its embedding is zero and it is left out of the mean.

    Args:
        num_tokens: size of the vocabulary, padding included.
        out_features: D.
        width: of the embeddings.
        dropout: share of the averaged features dropped in training, in [0, 1).

    Raises:
        ArgumentError: a size is below 1, or ``dropout`` out of range.

    Example:
        >>> encoder = TextEncoder(10, 8)
        >>> short, padded = torch.tensor([[3, 4]]), torch.tensor([[3, 4, 0, 0]])
        >>> torch.allclose(encoder(short), encoder(padded), atol=1e-6)
        True
    """

    def __init__(self, num_tokens: int, out_features: int, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        width = whole_number("width", width, least=1)
        self.embedding = nn.Embedding(whole_number("num_tokens", num_tokens, least=1), width, padding_idx=0)
        self.neighbours = nn.Conv1d(width, width, 3, padding=1)
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(_share(dropout)),
            nn.Linear(2 * width, whole_number("out_features", out_features, least=1)),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, L) int64, 0 = padding, to (n, D).

        Raises:
            DataError: a token is not in the vocabulary.
        """
        most = self.embedding.num_embeddings
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < most:
            raise DataError(
                f"tokens: expected whole numbers from 0 to {most - 1}, got {int(tokens.min())} to {int(tokens.max())}; "
                "num_tokens must be the size of the vocabulary, padding included."
            )
        words = self.embedding(tokens)
        words = words + nn.functional.gelu(self.neighbours(words.mT)).mT
        present = (tokens != 0).to(words.dtype)[:, :, None]
        mapped: Tensor = self.head((words * present).sum(dim=1) / present.sum(dim=1).clamp(min=1))
        return mapped


def _share(dropout: float) -> float:
    if not 0 <= dropout < 1:
        raise ArgumentError(f"dropout: expected a share from 0 to below 1, got {dropout!r}.")
    return dropout
