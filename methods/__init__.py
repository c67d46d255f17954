"""The methods that ship with dstbench: names and where they live; nothing heavy is imported to list them."""

from suite.registry import Entry

ZHU = "Zhu & Gupta 2017, arXiv 1710.01878"
SET = "Mocanu et al., Nature Communications 2018, arXiv 1707.04780"
RIGL = "Evci et al., ICML 2020, arXiv 1911.11134"
BREGMAN = "Bungert et al., JMLR 2022, arXiv 2105.04319"
MULTILEVEL = "Lunk, Scott & Bungert 2026, arXiv 2602.03535"
STATIC = "Liu et al., ICLR 2022, arXiv 2202.02643"

METHODS = (
    Entry("dense", "methods.dense:Dense", "dense", sparse=False),
    Entry("dense:sgd", "methods.dense:Dense", "dense", presets={"rule": "sgd"}, sparse=False),
    Entry("dense:adam", "methods.dense:Dense", "dense", presets={"rule": "adam"}, sparse=False),
    Entry("static", "methods.static:Static", "static", STATIC),
    Entry("magnitude", "methods.magnitude:Magnitude", "dense-to-sparse", ZHU),
    Entry("set", "methods.dynamic:SET", "dynamic", SET),
    Entry("rigl", "methods.dynamic:RigL", "dynamic", RIGL),
    Entry("linbreg", "methods.bregman:LinBreg", "bregman", BREGMAN),
    Entry("linbreg:ema", "methods.bregman:LinBreg", "bregman", BREGMAN, presets={"momentum": "ema"}),
    Entry("linbreg:heavy_ball", "methods.bregman:LinBreg", "bregman", BREGMAN, presets={"momentum": "heavy_ball"}),
    Entry("adabreg", "methods.bregman:AdaBreg", "bregman", BREGMAN),
    Entry("ml_linbreg", "methods.bregman:MLLinBreg", "bregman", MULTILEVEL),
    Entry(
        "ml_linbreg:heavy_ball", "methods.bregman:MLLinBreg", "bregman", MULTILEVEL, presets={"momentum": "heavy_ball"}
    ),
)
