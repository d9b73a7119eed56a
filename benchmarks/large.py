"""A transformer with 70 billion parameters, traced on the meta device in a fresh process: nothing is allocated."""

import json
import subprocess
import sys
import time
from itertools import pairwise

import torch

import lens
from benchmarks.resident import peak_memory
from lens.model_specs import import_torchvision

TOKENS = 4096


def measure() -> list[dict]:
    """Seconds and peak memory of building the model and of tracing it."""
    output = subprocess.run([sys.executable, "-m", "benchmarks.large"], capture_output=True, text=True, check=True)
    return [json.loads(output.stdout.splitlines()[-1])]


def markdown(results: list[dict]) -> str:
    row = results[0]
    return (
        f"Llama, {row['parameters'] / 1e9:.1f} billion parameters, {row['tokens']} tokens: built in "
        f"{row['build']:.1f} s, forward {row['plain']:.2f} s, traced in {row['trace']:.1f} s, {row['ops']} operations, "
        f"{row['values'] / 2**30:.1f} GiB of values described; peak memory of the process "
        f"{row['peak'] / 2**20:.0f} MB, of which imports {row['imports'] / 2**20:.0f} MB.\n"
    )


def main() -> None:
    import_torchvision()  # which transformers imports, if it is there
    from transformers import LlamaConfig, LlamaModel

    imports = peak_memory()
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        use_cache=False,
    )
    times = [time.perf_counter()]
    with torch.device("meta"):
        model = LlamaModel(config).eval()
        tokens = torch.zeros((1, TOKENS), dtype=torch.long)
        # Without a mask transformers looks at the numbers in the positions, and meta tensors have none.
        mask = torch.zeros((1, 1, TOKENS, TOKENS), dtype=torch.bool)
    times.append(time.perf_counter())
    with torch.no_grad():
        model(tokens, attention_mask=mask)
        times.append(time.perf_counter())
        history = lens.trace(model, tokens, {"attention_mask": mask})
    times.append(time.perf_counter())
    build, plain, trace = (after - before for before, after in pairwise(times))
    print(
        json.dumps(
            {
                "parameters": history.total_params,
                "tokens": tokens.numel(),
                "ops": len(history.graph.ops),
                "values": history.tensor_fsize_total,
                "build": build,
                "plain": plain,
                "trace": trace,
                "imports": imports,
                "peak": peak_memory(),
            }
        )
    )


if __name__ == "__main__":
    main()
