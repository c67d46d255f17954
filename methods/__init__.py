"""The methods that ship with dstbench: names and where they live; nothing heavy is imported to list them."""

from dstbench import by_full_name
from dstbench.suite.registry import Entry

by_full_name(__name__)

ZHU = "Zhu & Gupta 2017, arXiv 1710.01878"
SET = "Mocanu et al., Nature Communications 2018, arXiv 1707.04780"
RIGL = "Evci et al., ICML 2020, arXiv 1911.11134"
BREGMAN = "Bungert et al., JMLR 2022, arXiv 2105.04319"
MULTILEVEL = "Lunk, Scott & Bungert 2026, arXiv 2602.03535"
STATIC = "Liu et al., ICLR 2022, arXiv 2202.02643"
SNIP = "Lee et al., ICLR 2019, arXiv 1810.02340"
GRASP = "Wang et al., ICLR 2020, arXiv 2002.07376"
SYNFLOW = "Tanaka et al., NeurIPS 2020, arXiv 2006.05467"
ONESHOT = "Han et al., NeurIPS 2015, arXiv 1506.02626"
IMP = "Frankle & Carbin, ICLR 2019, arXiv 1803.03635; Renda et al., ICLR 2020, arXiv 2003.02389"
STE = "Lee et al., 2023 (JaxPruner), arXiv 2304.14082"
STR = "Kusupati et al., ICML 2020, arXiv 2002.03231"
GRANET = "Liu et al., NeurIPS 2021, arXiv 2106.10404"
TOPKAST = "Jayakumar et al., NeurIPS 2020, arXiv 2106.03517"
ACDC = "Peste et al., NeurIPS 2021, arXiv 2106.12379"
SNFS = "Dettmers & Zettlemoyer 2019, arXiv 1907.04840"
MEST = "Yuan et al., NeurIPS 2021, arXiv 2110.14032"
SRIGL = "Lasby et al., ICLR 2024, arXiv 2305.02299"
DSR = "Mostafa & Wang, ICML 2019, arXiv 1902.05967"
DEEP_R = "Bellec et al., ICLR 2018, arXiv 1711.05136"
GSE = "Heddes et al. 2024, arXiv 2401.06898"
WANDA = "Sun et al., ICLR 2024, arXiv 2306.11695"
WOODFISHER = "Singh & Alistarh, NeurIPS 2020, arXiv 2004.14340"
CHT = "Zhang et al., ICLR 2024; Zhang et al., NeurIPS 2025, arXiv 2501.19107"
CHASE = "Yin et al., NeurIPS 2023, arXiv 2305.19454"
RMDA = "Huang & Lee, ICLR 2022, arXiv 2112.02612"
DESSILBI = "Fu et al., ICML 2020, arXiv 2007.02010"
SPRED = "Ziyin & Wang, ICML 2023, arXiv 2210.01212"
SIGN_IN = "Gadhikar et al., NeurIPS 2025, arXiv 2504.12801"
HAM = "Jacobs et al., ICLR 2026, arXiv 2506.02630"
SAM = "Foret et al., ICLR 2021, arXiv 2010.01412; Ji et al., NeurIPS 2024"
BLOCKS = "Evci et al., ICML 2020, arXiv 1911.11134; Hoefler et al., JMLR 2021, arXiv 2102.00554"
SVITE = "Chen et al., NeurIPS 2021, arXiv 2106.04533"
DEPGRAPH = "Fang et al., CVPR 2023, arXiv 2301.12900"
SR_STE = "Zhou et al., ICLR 2021, arXiv 2102.04010"

CHTS = {"score": "ch2_l3n", "soft": True, "overlap": 1.0}
WHOLE = {"start_density": 1.0}
SOFT = {"soft": 0.05, "mutation": 0.0, "init": "dense"}
LAYER = {"scope": "layer"}
BLOCKS8 = {"regularizer": "block8", **LAYER}
ITOP = {"alpha": 0.5, "floor": 0.005, "stop": 1.0, "after_step": True}

METHODS = (
    Entry("dense", "dstbench.methods.dense:Dense", "dense", sparse=False),
    Entry("dense:sgd", "dstbench.methods.dense:Dense", "dense", presets={"rule": "sgd"}, sparse=False),
    Entry("dense:adam", "dstbench.methods.dense:Dense", "dense", presets={"rule": "adam"}, sparse=False),
    Entry("small_dense", "dstbench.methods.small_dense:SmallDense", "control", RIGL),
    Entry("small_dense:flops", "dstbench.methods.small_dense:SmallDense", "control", RIGL, presets={"match": "flops"}),
    Entry("static", "dstbench.methods.static:Static", "static", STATIC),
    Entry("static:erk_plus", "dstbench.methods.static:Static", "static", STATIC, presets={"allocation": "erk_plus"}),
    Entry("snip", "dstbench.methods.at_init:SNIP", "static", SNIP, version=2),
    Entry("grasp", "dstbench.methods.at_init:GraSP", "static", GRASP, version=2),
    Entry("synflow", "dstbench.methods.at_init:SynFlow", "static", SYNFLOW, version=2),
    Entry("magnitude", "dstbench.methods.magnitude:Magnitude", "dense-to-sparse", ZHU),
    Entry("oneshot", "dstbench.methods.finetune:OneShot", "dense-to-sparse", ONESHOT),
    Entry("oneshot:180_20", "dstbench.methods.finetune:OneShot", "dense-to-sparse", ONESHOT, presets={"at": 0.9}),
    Entry("imp", "dstbench.methods.finetune:IMP", "dense-to-sparse", IMP),
    Entry("imp:lr", "dstbench.methods.finetune:IMP", "dense-to-sparse", IMP, presets={"rewind": "lr"}),
    Entry("wanda", "dstbench.methods.saliency:Wanda", "dense-to-sparse", WANDA),
    Entry("woodfisher", "dstbench.methods.saliency:WoodFisher", "dense-to-sparse", WOODFISHER),
    Entry("ste", "dstbench.methods.straight_through:STE", "dense-to-sparse", STE),
    Entry("str", "dstbench.methods.str:STR", "dense-to-sparse", STR),
    Entry("granet", "dstbench.methods.granet:GraNet", "dense-to-sparse", GRANET, version=2),
    Entry("granet:dense", "dstbench.methods.granet:GraNet", "dense-to-sparse", GRANET, version=2, presets=WHOLE),
    Entry("set", "dstbench.methods.dynamic:SET", "dynamic", SET),
    Entry("set:itop", "dstbench.methods.dynamic:SET", "dynamic", SET, version=2, presets=ITOP),
    Entry("rigl", "dstbench.methods.dynamic:RigL", "dynamic", RIGL),
    Entry("rigl:itop", "dstbench.methods.dynamic:RigL", "dynamic", RIGL, version=2, presets=ITOP),
    Entry("rigl:svite", "dstbench.methods.dynamic:RigL", "dynamic", RIGL, version=2, presets={**ITOP, "stop": 0.8}),
    Entry("rigl:ml_linbreg", "dstbench.methods.dynamic:RigL", "dynamic", RIGL, presets={"stop": 1.0}),
    Entry("snfs", "dstbench.methods.snfs:SNFS", "dynamic", SNFS, version=2),
    Entry("mest", "dstbench.methods.mest:MEST", "dynamic", MEST, version=2),
    Entry("mest:em_s", "dstbench.methods.mest:MEST", "dynamic", MEST, version=2, presets=SOFT),
    Entry("topkast", "dstbench.methods.topkast:TopKAST", "dynamic", TOPKAST, version=2),
    Entry("dsr", "dstbench.methods.dsr:DSR", "dynamic", DSR, version=2),
    Entry("deep_rewiring", "dstbench.methods.deep_rewiring:DeepRewiring", "dynamic", DEEP_R, version=2),
    Entry("gse", "dstbench.methods.gse:GSE", "dynamic", GSE),
    Entry("cht", "dstbench.methods.cht:CHT", "dynamic", CHT),
    Entry("cht:s", "dstbench.methods.cht:CHT", "dynamic", CHT, presets=CHTS),
    Entry("cht:ss", "dstbench.methods.cht:CHT", "dynamic", CHT, presets={**CHTS, "start_density": 0.5}),
    Entry("chase", "dstbench.methods.chase:Chase", "dynamic", CHASE, version=2),
    Entry("acdc", "dstbench.methods.acdc:ACDC", "dynamic", ACDC),
    Entry("prox_sgd", "dstbench.methods.controls:ProxSGD", "control", BREGMAN),
    Entry("masked_sgd", "dstbench.methods.controls:MaskedSGD", "control", MULTILEVEL),
    Entry("linbreg", "dstbench.methods.bregman:LinBreg", "bregman", BREGMAN),
    Entry("linbreg:ema", "dstbench.methods.bregman:LinBreg", "bregman", BREGMAN, presets={"momentum": "ema"}),
    Entry(
        "linbreg:heavy_ball", "dstbench.methods.bregman:LinBreg", "bregman", BREGMAN, presets={"momentum": "heavy_ball"}
    ),
    Entry("linbreg:layer", "dstbench.methods.bregman:LinBreg", "bregman", BREGMAN, presets=LAYER),
    Entry("linbreg:row", "dstbench.methods.bregman:LinBreg", "structured", BREGMAN, presets={"regularizer": "row"}),
    Entry(
        "linbreg:kernel", "dstbench.methods.bregman:LinBreg", "structured", BREGMAN, presets={"regularizer": "kernel"}
    ),
    Entry("linbreg:head", "dstbench.methods.bregman:LinBreg", "structured", BREGMAN, presets={"regularizer": "head"}),
    Entry("nuclear_linbreg", "dstbench.methods.low_rank:NuclearLinBreg", "bregman", BREGMAN, sparse=False),
    Entry("adabreg", "dstbench.methods.bregman:AdaBreg", "bregman", BREGMAN),
    Entry("ml_linbreg", "dstbench.methods.bregman:MLLinBreg", "bregman", MULTILEVEL),
    Entry(
        "ml_linbreg:heavy_ball",
        "dstbench.methods.bregman:MLLinBreg",
        "bregman",
        MULTILEVEL,
        presets={"momentum": "heavy_ball"},
    ),
    Entry("ml_linbreg:layer", "dstbench.methods.bregman:MLLinBreg", "bregman", MULTILEVEL, presets=LAYER),
    Entry("rmda", "dstbench.methods.dual_averaging:RMDA", "bregman", RMDA),
    Entry("dessilbi", "dstbench.methods.split:DessiLBI", "bregman", DESSILBI, version=2),
    Entry("spred", "dstbench.methods.factors:Spred", "bregman", SPRED, presets={"on": "oneshot"}),
    Entry("spred:gradual", "dstbench.methods.factors:Spred", "bregman", SPRED, presets={"on": "magnitude"}),
    Entry("srigl", "dstbench.methods.structured:SRigL", "structured", SRIGL, version=2),
    Entry("nm", "dstbench.methods.structured:NM", "structured", SR_STE),
    Entry("depgraph", "dstbench.methods.depgraph:DepGraph", "structured", DEPGRAPH),
    Entry("block_rigl", "dstbench.methods.blocks:BlockRigL", "structured", BLOCKS),
    Entry("block_rigl:2", "dstbench.methods.blocks:BlockRigL", "structured", BLOCKS, presets={"height": 2}),
    Entry("block_rigl:4", "dstbench.methods.blocks:BlockRigL", "structured", BLOCKS, presets={"height": 4}),
    Entry("linbreg:block8", "dstbench.methods.bregman:LinBreg", "structured", BREGMAN, presets=BLOCKS8),
    Entry("ml_linbreg:block8", "dstbench.methods.bregman:MLLinBreg", "structured", MULTILEVEL, presets=BLOCKS8),
    Entry("s2vite", "dstbench.methods.svite:S2ViTE", "structured", SVITE, version=2),
    Entry("sign_in", "dstbench.methods.factors:SignIn", "wrapper", SIGN_IN, presets={"on": "static"}, version=2),
    Entry("sign_in:rigl", "dstbench.methods.factors:SignIn", "wrapper", SIGN_IN, presets={"on": "rigl"}, version=2),
    Entry("sign_in:acdc", "dstbench.methods.factors:SignIn", "wrapper", SIGN_IN, presets={"on": "acdc"}, version=2),
    Entry("ham", "dstbench.methods.ham:HAM", "wrapper", HAM, presets={"on": "rigl"}),
    Entry("ham:static", "dstbench.methods.ham:HAM", "wrapper", HAM, presets={"on": "static"}),
    Entry("ham:acdc", "dstbench.methods.ham:HAM", "wrapper", HAM, presets={"on": "acdc"}),
    Entry("sam", "dstbench.methods.sam:SAM", "wrapper", SAM, presets={"on": "rigl"}),
    Entry("sam:static", "dstbench.methods.sam:SAM", "wrapper", SAM, presets={"on": "static"}),
    Entry("sam:dense", "dstbench.methods.sam:SAM", "wrapper", SAM, presets={"on": "dense"}),
    Entry("sam:s2", "dstbench.methods.sam:SAM", "wrapper", SAM, presets={"on": "rigl", "single": True}),
)

LEFT_OUT = """## Left out

BiDST (ICML 2024) and NeurRev (ICLR 2024) have no usable reference code, and their papers leave too much open to
implement them faithfully. EAST (arXiv 2411.13545) changes the network itself (DyReLU, shared weights) beside the masks,
and the schedule of its density is not specified closely enough. PILoT (arXiv 2408.09966) is `spred` with balanced
factors and a weight decay that rises while the L1 norm is above a bound and is then turned off: bound, factor and
schedule are not public closely enough.
"""
