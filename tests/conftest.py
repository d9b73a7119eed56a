import torch
from hypothesis import settings

from lens.model_specs import import_torchvision

torch.set_num_threads(1)
# Before anything imports transformers or timm, which import torchvision.
import_torchvision()

# The same examples in every run, so that a change is judged by what it changes. To look for new ones:
# ``pytest --hypothesis-profile=default``.
settings.register_profile("suite", derandomize=True)
settings.load_profile("suite")
