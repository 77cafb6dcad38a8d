"""What of the engine for CUDA can be checked without a device: its network, and the sizes of its batches."""

import pytest
import torch
from torch import nn

from captionlib.config import Preprocessing
from captionlib.engines.cuda_engine import PixelNetwork, padded_size
from captionlib.images.pixels import normalize


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, images):
        return self.convolution(images).flatten(2).transpose(1, 2)


def test_the_network_normalises_as_the_other_engines_do():
    preprocessing = Preprocessing(size=4, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
    encoder = Flat().eval()
    pixels = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = encoder(normalize(pixels, preprocessing))
    found = PixelNetwork(encoder, preprocessing, torch.float32)(pixels)
    assert found.shape == (2, 4, 4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("num_images", "largest", "always", "expected"),
    [(512, 512, False, 512), (300, 512, False, 512), (256, 512, False, 256), (1, 512, False, 1), (1, 512, True, 512)],
)
def test_a_batch_is_filled_up_to_a_size_that_is_known(num_images, largest, always, expected):
    assert padded_size(num_images, largest, always=always) == expected
