"""Transformers on sequences of tokens: a GPT, and an encoder that classifies."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def gpt(
    vocab: int = 65,
    block: int = 64,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    tied: bool = True,
) -> nn.Module:
    """nanoGPT without biases: tokens (N, T) with T up to `block` -> logits of the next token (N, T, vocab).

    Defaults are its network for a CPU; `block=256, width=384, depth=6, heads=6, dropout=0.2` is that for a GPU. `width`
    scales it, a multiple of `heads`. The head shares the matrix of the token embedding, as in nanoGPT, and with it
    stays dense; `tied=False` gives it a matrix of its own.

    Reference: Karpathy 2022, github.com/karpathy/nanoGPT, model.py; Radford et al. 2019, GPT-2.
    """
    return GPT(vocab, block, width, depth, heads, dropout, tied)


class Attention(nn.Module):
    """Causal self-attention of several heads, its three projections in one matrix, laid out and named as timm's."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}; a multiple of the {heads} heads is needed")
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.num_heads, self.dropout = heads, dropout

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> the same shape."""
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        rate = self.dropout if self.training else 0.0
        found = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        return self.proj(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each behind a norm and within a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attn = Attention(width, heads, dropout)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> the same shape."""
        x = x + self.drop(self.attn(self.ln_1(x)))
        return x + self.drop(self.fc2(nn.functional.gelu(self.fc1(self.ln_2(x)))))


class GPT(nn.Module):
    """The network of `gpt`."""

    def __init__(self, vocab: int, block: int, width: int, depth: int, heads: int, dropout: float, tied: bool) -> None:
        super().__init__()
        self.block = block
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(block, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:  # what ends a residual starts smaller, that their sum keeps its size
                ends = name.endswith(("proj.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if ends else 0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) -> (N, T, vocab); ValueError for more tokens than positions."""
        if tokens.shape[1] > self.block:
            raise ValueError(f"{tokens.shape[1]} tokens, and the network has positions for {self.block} (`block`)")
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.drop(self.tokens(tokens) + self.positions(places)))))


def transformer_classifier(
    vocab: int = 16,
    block: int = 64,
    num_classes: int = 10,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
) -> nn.Module:
    """torch's nn.TransformerEncoder as a classifier: tokens (N, T) with T up to `block` -> (N, num_classes).

    Norms come first; the mean over the tokens goes to one linear layer. `width` scales it, a multiple of `heads`; the
    perceptrons within are four times as wide. torch copies one layer `depth` times; here each copy gets a start of its
    own.

    Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3; norms first: Xiong et al. 2020, arXiv 2002.04745.
    """
    return Classifier(vocab, block, num_classes, width, depth, heads, dropout)


class Classifier(nn.Module):
    """The network of `transformer_classifier`."""

    def __init__(
        self, vocab: int, block: int, num_classes: int, width: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}; a multiple of the {heads} heads is needed")
        self.block = block
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(block, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) -> (N, num_classes); ValueError for more tokens than positions."""
        if tokens.shape[1] > self.block:
            raise ValueError(f"{tokens.shape[1]} tokens, and the network has positions for {self.block} (`block`)")
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.encoder(self.tokens(tokens) + self.positions(places)).mean(1))
