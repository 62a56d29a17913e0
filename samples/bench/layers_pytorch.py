"""Times the layers of `shared/examples/layers.rs` in PyTorch beside ours, and prints a table.

    python samples/bench/layers_pytorch.py LAYERS [--threads 2] [--rounds 3]

LAYERS is the compiled example. It tells which layers there are, and times one whenever it is given
its number, so that both sides take turns at each layer and see the same machine. The best time of
all rounds counts, for both. Backward is the gradients at input and weight together.
"""

import argparse
import json
import math
import subprocess
import time

import torch
import torch.nn.functional as F

MIN_RUNS = 3
MIN_SECONDS = 0.1


def best_ms(job):
    """The best of at least MIN_RUNS runs that take at least MIN_SECONDS, after one."""
    job()
    begin, runs, best = time.perf_counter(), 0, math.inf
    while runs < MIN_RUNS or time.perf_counter() - begin < MIN_SECONDS:
        start = time.perf_counter()
        job()
        best = min(best, 1e3 * (time.perf_counter() - start))
        runs += 1
    return best


def apply(layer, x, weight):
    kernel = layer["kernel"]
    if not kernel:
        return F.linear(x, weight)
    padding = [layer["dilation"] * (size - 1) // 2 for size in kernel]
    convolution = F.conv1d if len(kernel) == 1 else F.conv2d
    return convolution(x, weight, None, layer["stride"], padding, layer["dilation"], layer["groups"])


def pytorch_times(layer):
    x = torch.randn(layer["input"], requires_grad=True)
    shape = [layer["outputs"], layer["input"][1] // layer["groups"], *layer["kernel"]]
    weight = torch.randn(shape, requires_grad=True)
    y = apply(layer, x, weight)
    gradient = torch.ones_like(y)
    with torch.inference_mode():
        forward = best_ms(lambda: apply(layer, x, weight))
    backward = best_ms(lambda: torch.autograd.grad(y, (x, weight), gradient, retain_graph=True))
    return {"forward_ms": forward, "backward_ms": backward}


def title(layer):
    parts = ["x".join(map(str, layer["input"])), "->", str(layer["outputs"])]
    if layer["kernel"]:
        parts += ["k", "x".join(map(str, layer["kernel"]))]
    for name, letter in [("stride", "s"), ("dilation", "d"), ("groups", "g")]:
        if layer[name] != 1:
            parts += [letter, str(layer[name])]
    return " ".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", help="the compiled example")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ours = subprocess.Popen(
        [arguments.layers, str(arguments.threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    layers = [json.loads(line) for line in iter(ours.stdout.readline, "\n")]

    def our_times(number):
        ours.stdin.write(f"{number}\n")
        return json.loads(ours.stdout.readline())

    print(f"PyTorch {torch.__version__}, {arguments.threads} threads each, best of all runs, ms")
    print(f"{'':28} {'forward':^23}   {'backward':^23}")
    print(f"{'layer':28}" + 2 * f" {'ours':>7} {'PyTorch':>7} {'ratio':>7}  ")
    ratios = {"forward_ms": [], "backward_ms": []}
    for number, layer in enumerate(layers):
        rounds = [(our_times(number), pytorch_times(layer)) for _ in range(arguments.rounds)]
        cells = []
        for pass_, all_ratios in ratios.items():
            own, other = (min(times[side][pass_] for times in rounds) for side in (0, 1))
            all_ratios.append(own / other)
            cells.append(f" {own:7.3f} {other:7.3f} {own / other:7.2f}  ")
        print(f"{title(layer):28}{''.join(cells)}", flush=True)
    ours.stdin.close()
    print("ratio: our time over PyTorch's; below 1 ours is faster")
    for pass_, all_ratios in ratios.items():
        mean = math.exp(sum(map(math.log, all_ratios)) / len(all_ratios))
        print(
            f"{pass_.removesuffix('_ms')}: best {min(all_ratios):.2f}, worst {max(all_ratios):.2f}, "
            f"geometric mean {mean:.2f}"
        )


if __name__ == "__main__":
    main()
