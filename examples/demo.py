"""What `make demo` runs: a ResNet-50, traced, looked up, drawn and saved."""

from pathlib import Path

import torch

import lens
from lens.model_specs import import_torchvision

OUT = Path("out")


def main() -> None:
    torch.manual_seed(0)
    model = import_torchvision().models.resnet50().eval()
    images = torch.randn(1, 3, 224, 224)

    with torch.no_grad():
        history = lens.trace(model, images)
    print(history)

    print("\nLayers, looked up in the ways of the paper:")
    for key in ("conv2d_3_8", "conv2d_3", "layer1.0.conv2", "layer4", "fc", 2, -5):
        entry = history[key]
        print(f"  history[{key!r}]".ljust(30), f"{entry!r}, mean {entry.tensor_contents.mean():+.4f}")
    entry = history["layer1.0"]
    print(f"\n{entry.layer_label}: parents {entry.parent_layers}, children {entry.child_layers},")
    print(f"  {entry.min_distance_from_input} to {entry.max_distance_from_input} operations from the input")

    correct = lens.validate_saved_activations(model, images)
    print(f"\nAll saved activations are right: {correct}")

    print("\nWritten:")
    print(f"  picture  {Path(history.draw(OUT / 'resnet50.svg')).resolve()}")
    print(f"  trace    {Path(history.save(OUT / 'resnet50.lens')).resolve()}")


if __name__ == "__main__":
    main()
