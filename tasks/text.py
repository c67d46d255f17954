"""Character language models: tiny Shakespeare in nanoGPT's two published sizes, and the text that every Python ships.

nanoGPT reports the mean over random windows of the last tenth; ours is over every window of it, in two halves.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dstbench.suite.recipe import Recipe
from dstbench.tasks.language import LanguageTask
from dstbench.tasks.models import gpt

# nanoGPT: AdamW, 100 steps of warm-up, cosine from 1e-3 to 1e-4, decay 0.1, clipped to norm 1.
GPT_TINY = LanguageTask(
    name="text/gpt_tiny",
    model=gpt,
    arguments={"depth": 4, "heads": 4, "width": 128},
    widths={"width": 4},
    data="tinyshakespeare",
    vocab=65,
    block=64,
    recipe=Recipe(
        steps=2000,
        batch=12,
        lr={"sgd": 0.1, "adam": 1e-3},
        weight_decay={"sgd": 1e-4, "adam": 0.1},
        plain_scale=0.3,
        optimizer="adam",
        betas=(0.9, 0.99),
        warmup=0.05,
        last=0.1,
        clip=1.0,
    ),
    source="Karpathy 2022, github.com/karpathy/nanoGPT, README: on a CPU, 1.88 after 2,000 steps",
    chance=math.log(65),
    target=1.95,
)

GPT_SMALL = replace(
    GPT_TINY,
    name="text/gpt_small",
    arguments={"depth": 6, "heads": 6, "width": 384, "dropout": 0.2},
    widths={"width": 6},
    block=256,
    recipe=replace(GPT_TINY.recipe, steps=5000, batch=64, warmup=0.02),
    source="Karpathy 2022, github.com/karpathy/nanoGPT, README: on a GPU, 1.4697 after 5,000 steps",
    target=1.55,
)

GPT_EMBEDDED = replace(
    GPT_TINY,
    name="text/gpt_embedded",
    data="embedded_text",
    source="ours: nanoGPT's recipe for a CPU on another text",
    unit="bytes",
    vocab=256,
    chance=math.log(256),
    target=1.8,
)
