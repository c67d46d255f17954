"""Networks by name: counts, shapes, gradients at the start, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.suite.heads import attention
from dstbench.suite.meters.crosscheck import counted, ptflops_macs
from dstbench.suite.meters.flops import measure
from dstbench.suite.model import SparseModel
from dstbench.tasks import models
from dstbench.tasks.models.perceptrons import SReLU

GREY, RGB, LARGE = (1, 28, 28), (3, 32, 32), (3, 224, 224)


class Row(NamedTuple):
    """A network and its counts; `published`, in millions, where no task has it: else see published_counts.csv."""

    model: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    arguments: Mapping[str, Any] = MappingProxyType({})
    published: tuple[float, float] | None = None


GPU = {"block": 256, "width": 384, "depth": 6, "heads": 6}
IMAGENET = {"img_size": 224, "patch_size": 16, "num_classes": 1000}
TABLE = [
    Row("lenet300", GREY, 266_610, 266_200),
    Row("lenet5", GREY, 431_080, 2_293_000),
    Row("mlp2022", GREY, 173_890, 784 * 200 + 200 * 80 + 80 * 10),
    Row("mlp1024", RGB, 3_676_682, 3072 * 1024 + 1024 * 512 + 512 * 10),
    Row("set_mlp", RGB, 20_373_010, 3072 * 4000 + 4000 * 1000 + 1000 * 4000 + 4000 * 10),
    Row("autoencoder2022", GREY, 3_692_640, 6 * 784 * 784),
    Row("cnn2022", GREY, 236_618, 7_607_552),
    Row("resnet20", RGB, 269_722, 40_551_040),
    Row("resnet32", RGB, 464_154, 68_862_592),
    Row("resnet56", RGB, 853_018, 125_485_696),
    Row("resnet32", RGB, 1_860_522, 275_612_928, {"width": 32, "shortcut": "B"}),
    Row("resnet18_small", RGB, 11_173_962, 555_422_720),
    Row("resnet50_small", RGB, 23_520_842, 1_297_829_888),
    Row("vgg16", RGB, 14_724_042, 313_201_664),
    Row("vgg19", RGB, 20_035_018, 398_136_320),
    Row("wrn16_4", RGB, 2_748_890, 392_612_352),
    Row("wrn22_2", RGB, 1_079_642, 157_730_048),
    Row("wrn28_10", RGB, 36_479_194, 5_243_328_768),
    Row("resnet9", RGB, 6_573_120, 379_261_952, published=(6.57312, 379.27)),  # anantgupta129/ERA-V1, session10
    Row("mixer", RGB, 1_132_170, 75_891_968),
    # timm's mixer_s16_224: its results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv
    Row("mixer", LARGE, 18_528_264, 3_776_958_464, IMAGENET | {"embed_dim": 512}, (18.53, 3790)),
    Row("gpt", (64,), 804_096, 55_058_432),
    Row("gpt", (256,), 10_745_088, 3_026_288_640, GPU),
    Row("transformer_classifier", (64,), 105_866, 7_340_672),
]
IDS = [f"{row.model}-{'x'.join(map(str, row.shape))}-{len(row.arguments)}" for row in TABLE]
SMALL = {
    "mlp": {"inputs": 3 * 16 * 16, "hidden": (6, 5), "outputs": 5},
    "lenet300": {"hidden": (6, 5)},
    "mlp2022": {"hidden": (6, 5)},
    "mlp1024": {"hidden": (6, 5)},
    "resnet": {"channels": (4, 6, 8, 10), "layers": (1, 1, 1, 1)},
    "resnet18_small": {"channels": (4, 6, 8, 10)},
    "resnet50_small": {"channels": (4, 6, 8, 10)},
    "set_mlp": {"hidden": (8, 6, 8), "dropout": 0.0},
    "vgg16": {"channels": (4, 4, 6, 6, 6)},
    "vgg19": {"channels": (4, 4, 6, 6, 6)},
    "wrn16_4": {"channels": (4, 6, 8, 10)},
    "wrn22_2": {"channels": (4, 6, 8, 10)},
    "wrn28_10": {"channels": (4, 6, 8, 10)},
    "resnet9": {"channels": (4, 6, 8, 10)},
    "lenet5": {"channels": (4, 6, 8)},
    "cnn2022": {"channels": (4, 6, 8)},
    "autoencoder2022": {"hidden": 9},
    "resnet20": {"width": 4},
    "resnet32": {"width": 4, "shortcut": "B"},
    "resnet56": {"width": 4},
    "mixer": {"embed_dim": 8, "depth": 2},
    "token_mlp": {"vocab": 7, "length": 9, "hidden": (6, 5), "outputs": 5},
    "gpt": {"vocab": 7, "block": 9, "width": 8, "depth": 2},
    "transformer_classifier": {"vocab": 7, "block": 9, "width": 8, "depth": 2},
}
SEQUENCES = ("gpt", "transformer_classifier")


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def built(row):
    """The network of a row and an example, on `meta`, where nothing is computed."""
    with torch.device("meta"):
        fits = {"in_chans": row.shape[0]} if len(row.shape) == 3 else {}
        net = models.get(row.model)(**fits, **row.arguments)
        whole = {"dtype": torch.long} if len(row.shape) == 1 else {}
        return net, torch.zeros(1, *row.shape, **whole)


def small(name):
    """A tiny network of five classes, and four inputs."""
    torch.manual_seed(0)
    if name in SEQUENCES:
        classes = {"num_classes": 5} if name == "transformer_classifier" else {}
        return models.get(name)(**SMALL[name], **classes), torch.randint(7, (4, 9))
    factory = models.get(name)
    if name == "token_mlp":
        return factory(**SMALL[name]), torch.randint(7, (4, 9))
    known = {"in_chans": 3, "num_classes": 5, "img_size": 16}
    taken = factory.__code__.co_varnames[: factory.__code__.co_argcount]
    return factory(**{k: v for k, v in known.items() if k in taken}, **SMALL[name]), torch.randn(4, 3, 16, 16)


def test_every_network_is_in_both_tables():
    assert {row.model for row in TABLE} == {*models.names()} - {"mlp", "resnet", "token_mlp"} and set(SMALL) == {
        *models.names()
    }


@pytest.mark.parametrize("row", TABLE, ids=IDS)
def test_counts_are_those_of_the_table_and_the_published_ones(row):
    net, x = built(row)
    assert parameters(net) == row.parameters and counted(net, x) == 2 * row.macs
    if row.published:
        assert (row.parameters / 1e6, row.macs / 1e6) == pytest.approx(row.published, rel=0.005)


CHEAP = [row for row in TABLE if row.model in ("lenet5", "cnn2022", "set_mlp", "vgg16", "resnet9", *SEQUENCES)]
DEAR = [pytest.param(row, marks=pytest.mark.slow) for row in TABLE if row not in CHEAP]


@pytest.mark.parametrize("row", [*CHEAP, *DEAR], ids=lambda row: f"{row.model}-{len(row.arguments)}")
def test_multiply_adds_agree_with_the_flops_meter_and_with_ptflops(row):
    net, x = built(row)
    passes = measure(net, x)
    assert not passes.uncounted and sum(passes.forward.values()) + passes.rest_forward == 2 * row.macs
    attended = 0
    if row.model == "gpt":  # ptflops knows no scaled_dot_product_attention
        attended = 2 * x.shape[1] ** 2 * net.norm.weight.numel() * len(net.blocks)
    assert ptflops_macs(net, x) + attended == pytest.approx(row.macs, rel=0.02)


@pytest.mark.parametrize("name", models.names())
def test_every_weight_of_a_fresh_network_has_a_gradient(name):
    net, x = small(name)
    out = net(x)
    wanted = {"gpt": (4, 9, 7), "autoencoder2022": x.shape}.get(name, (4, 5))
    assert out.shape == wanted and out.isfinite().all()
    (out * torch.randn_like(out)).sum().backward()
    still = [n for n, p in net.named_parameters() if p.dim() > 1 and not p.grad.abs().sum() > 0]
    assert not still


ALIKE = {"resnet18_small", "resnet32", "resnet56", "vgg19", "wrn22_2", "wrn28_10", "mlp1024", "mlp2022"}


@pytest.mark.parametrize("name", sorted({*models.names()} - ALIKE))
def test_every_matrix_and_kernel_becomes_a_layer(name):
    net, x = small(name)
    kinds = nn.Linear | nn.Conv2d
    weights = [m.weight for m in net.modules() if isinstance(m, kinds)]
    weights += [m.in_proj_weight for m in net.modules() if isinstance(m, nn.MultiheadAttention)]
    tied = {net.head.weight} if name == "gpt" else set()
    model = SparseModel(net, x)
    assert model.maskable == sum(w.numel() for w in weights if w not in tied)


def test_names_load_nothing():
    code = "import sys; from dstbench.tasks import models; assert models.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
    assert models.mlp is models.get("mlp") and models.mlp.__module__.endswith(".perceptrons")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown model 'resnet_20'; did you mean resnet20.*, or timm:NAME"):
        models.get("resnet_20")
    with pytest.raises(AttributeError, match="has no attribute 'resnet19'"):
        _ = models.resnet19


@pytest.mark.parametrize(
    "name, arguments, wanted",
    [
        ("lenet5", {"img_size": 12}, "img_size is 12: .*at least 16 pixels a side"),
        ("vgg19", {"img_size": (8, 32)}, r"img_size is \(8, 32\): four poolings need at least 16"),
        ("resnet9", {"img_size": 4}, "img_size is 4: three poolings need at least 8"),
        ("resnet20", {"shortcut": "C"}, "shortcut is 'C'; choose one of A, B"),
        ("gpt", {"width": 10}, "width is 10; a multiple of the 4 heads"),
        ("transformer_classifier", {"width": 10}, "width is 10; a multiple of the 4 heads"),
    ],
)
def test_sizes_that_do_not_fit(name, arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        models.get(name)(**arguments)


@pytest.mark.parametrize("name", SEQUENCES)
def test_more_tokens_than_positions(name):
    net, x = small(name)
    with pytest.raises(ValueError, match=r"10 tokens, and the network has positions for 9 \(`block`\)"):
        net(torch.zeros(1, 10, dtype=torch.long))
    assert net(x[:, :3]).shape[0] == 4


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "vgg16", "resnet20", "wrn16_4", "resnet9", "mixer"])
def test_images_need_not_be_square(name):
    options = {k: v for k, v in SMALL.get(name, {}).items()}
    sized = {} if name in ("resnet20", "wrn16_4") else {"img_size": (16, 24)}
    assert models.get(name)(in_chans=2, num_classes=3, **sized, **options)(torch.zeros(2, 2, 16, 24)).shape == (2, 3)


def test_srelu_by_hand():
    unit = SReLU(3)
    for name, value in (
        ("t_left", [-1, 0, 0.5]),
        ("a_left", [0.1, 0.2, 2]),
        ("t_right", [3, -1, 0]),
        ("a_right", [2, 0, 1]),
    ):
        getattr(unit, name).data = torch.tensor(value, dtype=torch.float64)
    x = torch.linspace(-3, 3, 21, dtype=torch.float64)[:, None].expand(21, 3)
    left, right = np.array([-1, 0, 0.5]), np.array([2, 1, 0.5])
    numbers = x.numpy()
    below = left + np.array([0.1, 0.2, 2]) * (numbers - left)
    above = right + np.array([2, 0, 1]) * (numbers - right)
    expected = np.where(numbers < left, below, np.where(numbers > right, above, numbers))
    np.testing.assert_allclose(unit(x).detach().numpy(), expected)
    fresh = SReLU(1000)
    assert fresh.t_left.eq(0).all() and fresh.a_right.eq(1).all() and 4.5 < fresh.t_right.max() <= 5
    assert fresh.a_left.min() >= 0 and 0.9 < fresh.a_left.max() <= 1


def test_shortcuts_of_option_a_have_no_weights():
    ours, x = models.resnet20(width=4), torch.randn(2, 4, 8, 8)
    found = ours.layer2[0].shortcut(x)
    assert found.shape == (2, 8, 4, 4) and found[:, :4].equal(x[:, :, ::2, ::2]) and not found[:, 4:].any()
    assert (
        not [*ours.layer2[0].shortcut.parameters()]
        and len([*models.resnet20(width=4, shortcut="B").layer2[0].shortcut.parameters()]) == 3
    )


def test_gpt_sees_no_token_before_its_time():
    net, x = small("gpt")
    later = x.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 7
    assert torch.allclose(net(x)[:, :5], net(later)[:, :5], atol=1e-6) and not torch.allclose(net(x), net(later))


def test_gpt_attends_as_written_out_and_starts_as_nanogpt():
    net, _ = small("gpt")
    attn, x = net.blocks[0].attn, torch.randn(2, 5, 8)
    q, k, v = (p.view(2, 5, 4, 2).transpose(1, 2) for p in attn.qkv(x).split(8, dim=2))
    scores = (q @ k.transpose(-2, -1) / 2**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(attn(x), expected)
    whole = models.gpt()
    assert whole.blocks[3].fc1.weight.detach().std() == pytest.approx(0.02, rel=0.05)
    assert whole.blocks[3].fc2.weight.detach().std() == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert len(attention(whole)) == 4, "methods that drop whole heads find them"


def test_the_head_of_the_gpt_is_the_embedding_unless_it_is_untied():
    tied, apart = models.gpt(), models.gpt(tied=False)
    assert tied.head.weight is tied.tokens.weight and parameters(apart) - parameters(tied) == 65 * 128
    found = [SparseModel(net, torch.randint(65, (2, 64))) for net in (tied, apart)]
    names = [{layer.name for layer in model.layers} for model in found]
    assert names[1] - names[0] == {"head"} and "tokens.weight" in found[0].left_dense


def test_layers_of_the_encoder_start_apart():
    first, second = models.transformer_classifier().encoder.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_set_mlp_drops_and_the_autoencoder_keeps_the_shape_of_the_image():
    assert sum(isinstance(m, nn.Dropout) for m in models.set_mlp(hidden=(8, 6, 8))) == 3
    assert [m.out_features for m in models.autoencoder2022(hidden=20) if isinstance(m, nn.Linear)] == [20] * 5 + [784]
