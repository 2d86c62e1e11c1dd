"""What PyTorch reaches on the same card: FP8 grouped GEMM of the model's experts, 8192^3 products, prefill attention.

The bar for `sigmoe bench kernels` in the same job. Random data, medians, device times; weights lie in several copies, more than
a cache holds. PyTorch's grouped product excludes quantisation, gather, SwiGLU and the weighted sum, which ours includes.

    python3 torch_grouped.py [--out FILE] [--ours FILE]

Medians are of single runs, which a card may take at a higher clock than its power limit allows for long; "sustained" is what
`sigmoe_cuda_gemm_bench sustain` measures of ours.

--ours: what `sigmoe_bench kernels --rows 1,8,16,64,256,512 --out FILE` wrote in the same job; both in one table.
"""
import argparse
import json

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

EXPERTS, WIDTH, INNER = 256, 4096, 1024
ROWS = (1, 8, 16, 64, 256, 512)
rows_out = []


def median_us(work, repeats=20):
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return sorted(times)[len(times) // 2]


def sustained_us(work, seconds=1.0):
    """The time of one while a second's worth of them runs: at the card's power limit, as a prompt is read."""
    repeats = max(1, int(seconds * 1e6 / median_us(work, 5)))
    for _ in range(2):  # the first second warms the card
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            work()
        stop.record()
        stop.synchronize()
    return start.elapsed_time(stop) * 1e3 / repeats


def report(what, us, bytes_moved=0, flop=0):
    line = {"what": what, "us": round(us, 2)}
    if bytes_moved:
        line["TBps"] = round(bytes_moved / us * 1e-6, 3)
    if flop:
        line["TFLOPS"] = round(flop / us * 1e-6, 1)
    rows_out.append(line)
    print("  ".join(f"{value}" if key == "what" else f"{key} {value}" for key, value in line.items()), flush=True)


def random_bf16(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def ceilings():
    size = 8192
    a, b = random_bf16(size, size), random_bf16(size, size)
    report("bf16 8192^3", median_us(lambda: a @ b.t()), flop=2 * size**3)
    a8, b8, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device="cuda")
    product = lambda: torch._scaled_mm(a8, b8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    report("fp8 8192^3", median_us(product), flop=2 * size**3)
    report("fp8 8192^3, sustained", sustained_us(product), flop=2 * size**3)
    data = torch.randint(0, 2**31 - 1, (2**30,), device="cuda", dtype=torch.int32)
    report("read stream (sum of 4 GiB)", median_us(lambda: data.view(torch.float32).sum()), bytes_moved=4 * 2**30)


def grouped(name, n, k):
    weights = random_bf16(EXPERTS, n, k).to(torch.float8_e4m3fn).transpose(-2, -1)
    weight_scales = torch.rand(EXPERTS, n, device="cuda") * 0.01
    for rows in ROWS:
        x = random_bf16(EXPERTS * rows, k).to(torch.float8_e4m3fn)
        scales = torch.rand(EXPERTS * rows, device="cuda")
        offsets = torch.arange(1, EXPERTS + 1, device="cuda", dtype=torch.int32) * rows
        work = lambda: torch._scaled_grouped_mm(
            x, weights, scales, weight_scales, offs=offsets, out_dtype=torch.bfloat16, use_fast_accum=True)
        moved = EXPERTS * (n * k + rows * (k + 2 * n))
        flop = 2 * EXPERTS * rows * n * k
        report(f"fp8 grouped {name}, {rows} rows each", median_us(work), moved, flop)
        if rows >= 256:
            report(f"fp8 grouped {name}, {rows} rows each, sustained", sustained_us(work), moved, flop)


def attention(tokens):
    q = random_bf16(1, 32, tokens, 128)
    k, v = random_bf16(1, 4, tokens, 128), random_bf16(1, 4, tokens, 128)
    flop = 4 * 32 * 128 * tokens * (tokens + 1) / 2
    for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention", SDPBackend.FLASH_ATTENTION)):
        with sdpa_kernel(backend):
            work = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            try:
                report(f"bf16 causal attention of {tokens}, {name}", median_us(work), flop=flop)
            except RuntimeError as error:
                print(f"{name}: not run: {str(error).splitlines()[0]}")


def beside_ours(path):
    """Both products of an expert layer: PyTorch's two, ours with all that belongs to the op."""
    with open(path, encoding="utf-8") as file:
        ours = {row["rowsPerExpert"]: row for row in json.load(file)["rows"] if row["part"] == "experts, none shared"}
    us = {line["what"]: line["us"] for line in rows_out}
    table = []
    print("rows each | PyTorch gate-up + down us | ours us | ours of PyTorch's")
    for rows in (rows for rows in ROWS if rows in ours):
        gate_up, down = (us[f"fp8 grouped {name}, {rows} rows each"] for name in ("gate-up", "down"))
        own = ours[rows]["milliseconds"] * 1e3
        table.append({"rowsPerExpert": rows, "pytorchUs": round(gate_up + down, 2), "us": round(own, 2)})
        print(f"{rows:9} | {gate_up:8.1f} + {down:8.1f} = {gate_up + down:8.1f} | {own:8.1f} | {own / (gate_up + down):.3f}")
    return table


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--ours")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__, "CUDA", torch.version.cuda)
    ceilings()
    grouped("gate-up", 2 * INNER, WIDTH)
    grouped("down", WIDTH, INNER)
    for tokens in (2048, 8192):
        attention(tokens)
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows_out}
    if options.ours:
        result["experts"] = beside_ours(options.ours)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
