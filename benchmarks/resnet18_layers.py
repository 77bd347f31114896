"""ResNet-18's different convolutions on a VTA, as the papers number them; C2p is C2 with a 1x1 kernel."""

from __future__ import annotations

from oneshot_ml2.workload.conv2d import Conv2d

LAYERS = {
    "C2": Conv2d(1, 64, 56, 56, 64, 3, 3, padding=1),
    "C2p": Conv2d(1, 64, 56, 56, 64, 1, 1),
    "C3": Conv2d(1, 64, 56, 56, 128, 3, 3, stride=2, padding=1),
    "C4": Conv2d(1, 64, 56, 56, 128, 1, 1, stride=2),
    "C5": Conv2d(1, 128, 28, 28, 128, 3, 3, padding=1),
    "C6": Conv2d(1, 128, 28, 28, 256, 3, 3, stride=2, padding=1),
    "C7": Conv2d(1, 128, 28, 28, 256, 1, 1, stride=2),
    "C8": Conv2d(1, 256, 14, 14, 256, 3, 3, padding=1),
    "C9": Conv2d(1, 256, 14, 14, 512, 3, 3, stride=2, padding=1),
    "C10": Conv2d(1, 256, 14, 14, 512, 1, 1, stride=2),
    "C11": Conv2d(1, 512, 7, 7, 512, 3, 3, padding=1),
}
