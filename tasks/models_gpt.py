"""A GPT for characters in nanoGPT's sizes, and a perceptron over tokens."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Attention to earlier places and a perceptron of four times the width, each behind a norm and with a bypass."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        y = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self.drop(self.proj(y.transpose(1, 2).reshape(n, t, c)))
        return x + self.drop(self.fc2(nn.functional.gelu(self.fc1(self.norm2(x)))))


class GPT(nn.Module):
    """Tokens (N, T), T at most `block`, -> logits of the next token (N, T, vocab)."""

    def __init__(self, vocab: int, block: int, layers: int, heads: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(block, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                last = name.endswith(("proj.weight", "fc2.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def gpt(vocab: int, block: int, layers: int, heads: int, width: int, dropout: float = 0.0) -> nn.Module:
    """nanoGPT's network without biases; its head is tied to the embedding, and so is no Layer.

    Reference: Karpathy, github.com/karpathy/nanoGPT, model.py; Radford et al. 2019, GPT-2.
    """
    return GPT(vocab, block, layers, heads, width, dropout)


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
