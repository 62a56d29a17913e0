"""Times the layers of `shared/benches/workloads` in PyTorch beside ours, and prints a table.

    python tests/bench/kernels_pytorch.py KERNELS [--threads 2] [--rounds 3] [--filter TEXT]

KERNELS is the compiled example of this name. It tells which layers there are, and times one whenever
it is given its number, so that both sides take turns at each layer and see the same machine. The best
time of all rounds counts, for both.
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
NORM_GROUPS = 32


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


def convolution(layer):
    shape, kernel, outputs = layer["input"], layer["kernel"], layer["outputs"]
    weight = [outputs, shape[1] // layer["groups"], *kernel]
    if len(kernel) == 3 and kernel[1:] == [1, 1]:
        # Over frames: as the original has it, each place is an item; its copies are left out.
        batch, channels, frames, height, width = shape
        shape, kernel = [batch * height * width, channels, frames], kernel[:1]
        weight = [*weight[:2], *kernel]
    padding = [layer["dilation"] * (size - 1) // 2 for size in kernel]
    function = [F.conv1d, F.conv2d, F.conv3d][len(kernel) - 1]

    def apply(x, w):
        return function(x, w, None, layer["stride"], padding, layer["dilation"], layer["groups"])

    return [shape, weight], apply


def group_norm(layer):
    shape = layer["input"]
    ones = [1] * (len(shape) - 2)

    def apply(x, scale, shift):
        y = F.group_norm(x, NORM_GROUPS) * (1 + scale.view(*shape[:2], *ones))
        return F.silu(y + shift.view(*shape[:2], *ones))

    return [shape, shape[:2], shape[:2]], apply


def workload(layer):
    """Shapes of the inputs, and the function of them."""
    match layer["kind"]:
        case "convolution":
            return convolution(layer)
        case "linear":
            return [[layer["rows"], layer["inputs"]], [layer["outputs"], layer["inputs"]]], F.linear
        case "product":
            batch, rows, depth, columns = (layer[n] for n in ("batch", "rows", "depth", "columns"))
            return [[batch, rows, depth], [batch, depth, columns]], torch.bmm
        case "attention":
            shape = [layer[n] for n in ("batch", "heads", "length", "size")]
            return [shape] * 3, F.scaled_dot_product_attention
        case "group_norm":
            return group_norm(layer)
        case "layer_norm":
            shape = [layer["rows"], layer["channels"]]
            return [shape] * 2, lambda x, r: F.layer_norm(x + r, shape[1:])
        case "batch_norm":
            return [layer["input"]], lambda x: F.batch_norm(x, None, None, training=True)
        case "upsample":
            return [layer["input"]], lambda x: F.interpolate(x, scale_factor=2, mode="nearest")
        case "pool":
            return [layer["input"]], lambda x: F.avg_pool2d(x, 2)
        case "silu":
            return [[layer["elements"]]], F.silu


def pytorch_times(layer):
    shapes, apply = workload(layer)
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def forward_and_backward():
        y = apply(*inputs)
        torch.autograd.grad(y, inputs, torch.ones_like(y))

    with torch.inference_mode():
        forward = best_ms(lambda: apply(*inputs))
    return {"forward_ms": forward, "forward_backward_ms": best_ms(forward_and_backward)}


def title(layer):
    sizes = lambda values: "x".join(map(str, values))
    match layer["kind"]:
        case "convolution":
            parts = [sizes(layer["input"]), "->", str(layer["outputs"]), "k", sizes(layer["kernel"])]
            for name, letter in [("stride", "s"), ("dilation", "d"), ("groups", "g")]:
                if layer[name] != 1:
                    parts += [letter, str(layer[name])]
            return " ".join(parts)
        case kind:
            values = [value for name, value in layer.items() if name not in ("kind", "model")]
            flat = [number for value in values for number in (value if isinstance(value, list) else [value])]
            return f"{kind} {sizes(flat)}"


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", help="the compiled example")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--filter", default="", help="only layers and models with this in their title")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ours = subprocess.Popen(
        [arguments.kernels, str(arguments.threads)],
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
    print(f"{'':34} {'':>6} {'forward':^23}   {'forward and backward':^23}")
    print(f"{'layer':34} {'% peak':>6}" + 2 * f" {'ours':>7} {'PyTorch':>7} {'ratio':>7}  ")
    ratios = {"forward_ms": [], "forward_backward_ms": []}
    model = None
    for number, layer in enumerate(layers):
        name = title(layer)
        if arguments.filter not in f"{layer['model']}: {name}":
            continue
        if layer["model"] != model:
            model = layer["model"]
            print(model)
        rounds = [(our_times(number), pytorch_times(layer)) for _ in range(arguments.rounds)]
        cells = []
        for pass_, all_ratios in ratios.items():
            own, other = (min(times[side][pass_] for times in rounds) for side in (0, 1))
            all_ratios.append(own / other)
            cells.append(f" {own:7.3f} {other:7.3f} {own / other:7.2f}  ")
        share = 100 * max(times[0]["of_peak"] for times in rounds)
        print(f"  {name:32} {share:6.0f}{''.join(cells)}", flush=True)
    ours.stdin.close()
    print("ratio: our time over PyTorch's, below 1 ours is faster; % peak: of a matrix product, or of a")
    print("copy for what does little else than read and write, in our forward pass")
    for pass_, values in ratios.items():
        if values:
            print(
                f"{pass_.removesuffix('_ms').replace('_', ' and ')}: best {min(values):.2f}, "
                f"worst {max(values):.2f}, geometric mean {geometric_mean(values):.2f}"
            )


if __name__ == "__main__":
    main()
