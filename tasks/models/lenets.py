"""Two small convolutional networks for digits and for clothes of 28x28 pixels."""

from __future__ import annotations

from torch import nn

from dstbench.tasks.models.perceptrons import Size


def lenet5(
    in_chans: int = 1, num_classes: int = 10, img_size: Size = 28, channels: tuple[int, int, int] = (20, 50, 500)
) -> nn.Module:
    """LeNet-5 as Caffe has it, of 431,080 parameters: (N, in_chans, H, W) -> (N, num_classes).

    Its width is scaled by `channels`: of two convolutions and of the hidden layer.

    Reference: LeCun et al. 1998, Gradient-based learning applied to document recognition; sizes of Caffe's
        examples/mnist/lenet, ReLU after each convolution as in github.com/TimDettmers/sparse_learning.
    """
    return _two_convolutions(in_chans, num_classes, img_size, channels)


def cnn2022(
    in_chans: int = 1, num_classes: int = 10, img_size: Size = 28, channels: tuple[int, int, int] = (64, 64, 128)
) -> nn.Module:
    """The Fashion-MNIST network of 4,160 kernels and 132,352 linear weights: (N, in_chans, H, W) -> (N, num_classes).

    Its width is scaled by `channels`: of two convolutions and of the hidden layer.

    Reference: Bungert et al. 2022, arXiv 2105.04319; github.com/TimRoith/BregmanLearning, models/mnist_conv.py.
    """
    return _two_convolutions(in_chans, num_classes, img_size, channels)


def _two_convolutions(in_chans: int, num_classes: int, img_size: Size, channels: tuple[int, int, int]) -> nn.Module:
    """5x5 convolutions without padding, each with ReLU and 2x2 max-pooling, then two linear layers."""
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
    if height < 1 or width < 1:
        raise ValueError(f"img_size is {img_size}: two 5x5 convolutions and poolings need at least 16 pixels a side")
    first, second, hidden = channels
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(in_chans, first, 5))
    net.add_module("relu1", nn.ReLU())
    net.add_module("pool1", nn.MaxPool2d(2))
    net.add_module("conv2", nn.Conv2d(first, second, 5))
    net.add_module("relu2", nn.ReLU())
    net.add_module("pool2", nn.MaxPool2d(2))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc1", nn.Linear(second * height * width, hidden))
    net.add_module("relu3", nn.ReLU())
    net.add_module("fc2", nn.Linear(hidden, num_classes))
    return net
