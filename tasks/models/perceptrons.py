"""Perceptrons: networks of fully connected layers on the pixels of an image."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

Size = int | tuple[int, int]


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Module:
    """A perceptron with ReLU and without norm: (N, ...) flattened to (N, inputs) -> (N, outputs)."""
    net = nn.Sequential(nn.Flatten())
    for depth, (fan_in, fan_out) in enumerate(pairwise((inputs, *hidden, outputs)), 1):
        if depth > 1:
            net.add_module(f"relu{depth - 1}", nn.ReLU())
        net.add_module(f"fc{depth}", nn.Linear(fan_in, fan_out))
    return net


def pixels(in_chans: int, img_size: Size) -> int:
    """Numbers in an image; `img_size` is its side, or height and width."""
    return in_chans * (img_size**2 if isinstance(img_size, int) else math.prod(img_size))


def lenet300(
    in_chans: int = 1, num_classes: int = 10, img_size: Size = 28, hidden: tuple[int, ...] = (300, 100)
) -> nn.Module:
    """LeNet-300-100: (N, in_chans, H, W) -> (N, num_classes), its width scaled by `hidden`.

    Reference: LeCun et al. 1998, Gradient-based learning applied to document recognition, section III.
    """
    return mlp(pixels(in_chans, img_size), hidden, num_classes)


def mlp2022(
    in_chans: int = 1, num_classes: int = 10, img_size: Size = 28, hidden: tuple[int, ...] = (200, 80)
) -> nn.Module:
    """The MLP 784-200-80-10: (N, in_chans, H, W) -> (N, num_classes), its width scaled by `hidden`.

    Weights are Kaiming-normal, biases uniform from 0 to 1 / sqrt(fan_in), as the authors' code draws them. That code
    applies ReLU to the logits too; here they are linear.

    Reference: Bungert et al. 2022, arXiv 2105.04319; github.com/TimRoith/BregmanLearning, models/aux_funs.py.
    """
    net = mlp(pixels(in_chans, img_size), hidden, num_classes)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.uniform_(layer.bias, 0, layer.in_features**-0.5)
    return net


def mlp1024(
    in_chans: int = 3, num_classes: int = 10, img_size: Size = 32, hidden: tuple[int, ...] = (1024, 512)
) -> nn.Module:
    """The MLP 3072-1024-512-10: (N, in_chans, H, W) -> (N, num_classes), its width scaled by `hidden`.

    Reference: Nowak et al. 2023, Fantastic weights and how to find them, arXiv 2306.12230.
    """
    return mlp(pixels(in_chans, img_size), hidden, num_classes)


class SReLU(nn.Module):
    """The S-shaped rectifier: the identity between two thresholds of each unit, and lines beyond them.

    Left of t_left the slope is a_left, right of t_left + abs(t_right) it is a_right; all four are learned. They begin
    as in keras-contrib, which the authors of SET used: t_left 0, a_left in [0, 1], t_right in [0, 5], a_right 1.

    Reference: Jin et al. 2016, arXiv 1512.07030, equation 1.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.t_left = nn.Parameter(torch.zeros(units))
        self.a_left = nn.Parameter(torch.rand(units))
        self.t_right = nn.Parameter(5 * torch.rand(units))
        self.a_right = nn.Parameter(torch.ones(units))

    def forward(self, x: Tensor) -> Tensor:
        """(N, units) -> (N, units)."""
        right = self.t_left + self.t_right.abs()
        middle = torch.minimum(torch.maximum(x, self.t_left), right)
        below, above = (x - self.t_left).clamp(max=0), (x - right).clamp(min=0)
        return middle + self.a_left * below + self.a_right * above


def set_mlp(
    in_chans: int = 3,
    num_classes: int = 10,
    img_size: Size = 32,
    hidden: tuple[int, ...] = (4000, 1000, 4000),
    dropout: float = 0.3,
) -> nn.Module:
    """SET's perceptron of SReLU: (N, in_chans, H, W) -> (N, num_classes), its width scaled by `hidden`.

    The authors leave the last layer `fc4` dense.

    Reference: Mocanu et al. 2018, Nature Communications 9:2383, doi 10.1038/s41467-018-04316-3;
        github.com/dcmocanu/sparse-evolutionary-artificial-neural-networks, SET-MLP-Keras-Weights-Mask.
    """
    net, inputs = nn.Sequential(nn.Flatten()), pixels(in_chans, img_size)
    for depth, (fan_in, fan_out) in enumerate(pairwise((inputs, *hidden)), 1):
        net.add_module(f"fc{depth}", nn.Linear(fan_in, fan_out))
        net.add_module(f"srelu{depth}", SReLU(fan_out))
        net.add_module(f"drop{depth}", nn.Dropout(dropout))
    net.add_module(f"fc{len(hidden) + 1}", nn.Linear(hidden[-1] if hidden else inputs, num_classes))
    return net


def autoencoder2022(in_chans: int = 1, img_size: Size = 28, layers: int = 7, hidden: int | None = None) -> nn.Module:
    """A denoiser of seven layers of 784 units, six matrices between them: (N, in_chans, H, W) -> the same shape.

    Trained with row groups it finds an hourglass by itself. Its width is scaled by `hidden`, the units of the inner
    layers (None: as many as pixels). The authors' code applies ReLU to the output too; here it is linear.

    Reference: Bungert et al. 2022, arXiv 2105.04319; github.com/TimRoith/BregmanLearning, notebooks/Skip-Encoder.
    """
    shape = (in_chans, *((img_size, img_size) if isinstance(img_size, int) else img_size))
    size = math.prod(shape)
    net = mlp(size, (hidden or size,) * (layers - 2), size)
    assert isinstance(net, nn.Sequential)
    net.add_module("image", nn.Unflatten(1, shape))
    return net


class OneHot(nn.Module):
    """Tokens (N, T) -> float32 (N, T x vocab)."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens[..., None] == torch.arange(self.vocab, device=tokens.device)).float().flatten(1)


def token_mlp(vocab: int, length: int, hidden: tuple[int, ...], outputs: int) -> nn.Module:
    """A perceptron with ReLU over one-hot tokens: (N, length) -> (N, outputs); its first layer may be sparse too."""
    net = nn.Sequential(OneHot(vocab))
    for depth, (fan_in, fan_out) in enumerate(pairwise((length * vocab, *hidden, outputs)), 1):
        if depth > 1:
            net.add_module(f"relu{depth - 1}", nn.ReLU())
        net.add_module(f"fc{depth}", nn.Linear(fan_in, fan_out))
    return net
