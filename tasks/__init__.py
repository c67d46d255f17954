"""The tasks that ship with dstbench: names and where they live; nothing heavy is imported to list them."""

from dstbench import by_full_name
from dstbench.suite.registry import Entry

by_full_name(__name__)

TASKS = (
    Entry("digits/mlp", "dstbench.tasks.digits:MLP", family="digits"),
    Entry("digits/resnet", "dstbench.tasks.digits:RESNET", family="digits"),
    Entry("digits/vit", "dstbench.tasks.digits:VIT", family="digits"),
    Entry("cifar10/resnet18", "dstbench.tasks.cifar10:RESNET18", family="cifar10"),
    Entry("cifar10/vit_tiny", "dstbench.tasks.cifar10:VIT_TINY", family="cifar10"),
)
