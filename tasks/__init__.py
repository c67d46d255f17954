"""The tasks that ship with dstbench: names and where they live; nothing heavy is imported to list them."""

from dstbench import by_full_name
from dstbench.suite.registry import Entry

by_full_name(__name__)

FAMILIES = {  # the constants of `tasks/<family>.py`, in lower case
    "digits": "mlp resnet vit",
    "mnist": "lenet300 lenet5 mlp2022",
    "fashion_mnist": "cnn2022 set_mlp lenet300 autoencoder",
    "cifar10": "resnet18 resnet20 resnet32 resnet50 resnet56 vgg16 vgg19 wrn28_10 wrn22_2 mlp1024 set_mlp vit_tiny "
    "mixer resnet9_fast",
    "cifar100": "resnet18 resnet20 resnet32 resnet50 resnet56 vgg16 vgg19 wrn28_10 wrn22_2 mlp1024 vit_tiny mixer",
    "tiny_imagenet": "resnet18 vgg16 wrn28_10",
    "imagenet": "resnet50 deit_tiny deit_small vit_base",
    "text": "gpt_tiny gpt_small gpt_embedded",
    "tabular": "breast_cancer wine iris diabetes",
    "denoise": "mnist digits",
    "hard": "modular_addition addition listops sparse_parity mnist1d",
    "theory": "least_squares least_squares_noisy logistic logistic_minibatch",
}
VERSIONS = {"cifar10/resnet18": 2}  # of those that were changed
TASKS = tuple(
    Entry(
        f"{family}/{name}",
        f"dstbench.tasks.{family}:{name.upper()}",
        family=family,
        version=VERSIONS.get(f"{family}/{name}", 1),
    )
    for family, names in FAMILIES.items()
    for name in names.split()
)
