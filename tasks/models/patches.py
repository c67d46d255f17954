"""timm's MLP-Mixer on patches of small images; its Vision Transformer takes such images by arguments."""

from __future__ import annotations

from torch import nn

from dstbench.tasks.models.perceptrons import Size


def mixer(
    in_chans: int = 3,
    num_classes: int = 10,
    img_size: Size = 32,
    patch_size: int = 4,
    embed_dim: int = 128,
    depth: int = 8,
    mlp_ratio: tuple[float, float] = (0.5, 4.0),
) -> nn.Module:
    """timm's MLP-Mixer on patches of 4x4: (N, in_chans, H, W) -> (N, num_classes).

    `embed_dim` scales the width; `mlp_ratio` are the widths within the products over tokens and over channels, in
    units of it. timm starts the head at zero, which leaves all below it without a gradient; here it starts as other
    layers do.

    Reference: Tolstikhin et al. 2021, arXiv 2105.01601, table 1.
    """
    from timm.models.mlp_mixer import MlpMixer

    net = MlpMixer(
        num_classes=num_classes,
        img_size=img_size,  # type: ignore[arg-type]
        in_chans=in_chans,
        patch_size=patch_size,
        num_blocks=depth,
        embed_dim=embed_dim,
        mlp_ratio=mlp_ratio,
    )
    nn.init.xavier_uniform_(net.head.weight)  # type: ignore[arg-type]
    return net
