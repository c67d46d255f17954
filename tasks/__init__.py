"""The tasks that ship with dstbench: names and where they live; nothing heavy is imported to list them."""

from suite.registry import Entry

TASKS = (
    Entry("digits/mlp", "tasks.digits:MLP", family="digits"),
    Entry("digits/resnet", "tasks.digits:RESNET", family="digits"),
    Entry("digits/vit", "tasks.digits:VIT", family="digits"),
    Entry("cifar10/resnet18", "tasks.cifar10:RESNET18", family="cifar10"),
    Entry("cifar10/vit_tiny", "tasks.cifar10:VIT_TINY", family="cifar10"),
)
