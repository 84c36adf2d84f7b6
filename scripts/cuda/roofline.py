#!/usr/bin/env python3
"""An update and a token on paper: the tables of docs/kernels.md.

    scripts/cuda/roofline.py

Bytes and multiply-adds are those of this program's kernels and of the products between them (crates/model/src/ops/,
crates/*/kernels/); cards are their makers' figures. A kernel takes the longer of its bytes and its arithmetic at the shares of
the peaks below, which are assumptions. Nothing here was measured.
"""

CARDS = {  # bytes a second, f32 and bf16 operations a second (sums in f32)
    "H100 SXM": (3.35e12, 67e12, 989e12),
    "RTX 4090": (1.008e12, 82.6e12, 165e12),
}
OF_BANDWIDTH = 0.8
OF_PRODUCTS = 0.6  # cuBLAS
OF_ATTENTION = {"f32": 0.35, "bf16": 0.25}  # these kernels: no copies ahead, no cp.async
LAUNCH = 4e-6  # the host's time to queue one operation, which the device does not wait for unless it is faster

SHAPES = {
    "shakespeare-baby, 64 x 256": dict(b=64, t=256, c=384, layers=6, heads=6, v=65, dropout=True),
    "124M, 16 x 1024": dict(b=16, t=1024, c=768, layers=12, heads=12, v=50304, dropout=False),
}


def update(shape, precision):
    """(name, bytes, operations, kind) of each operation of an update."""
    b, t, c, layers, heads, v = (shape[k] for k in ("b", "t", "c", "layers", "heads", "v"))
    n = b * t
    e = 2 if precision == "bf16" else 4  # bytes of a value between products
    nc = n * c
    ops = []

    def add(name, count, nbytes, flops=0.0, kind="bytes"):
        ops.append((name, count * nbytes, count * flops, kind, count))

    def product(name, n_in, n_out, rows=n, repeat=layers):
        w = n_in * n_out
        add(name + ", forward", repeat, e * (rows * (n_in + n_out) + w), 2 * rows * w, "product")
        add(name + ", gradient of the input", repeat, e * (rows * (n_in + n_out) + w), 2 * rows * w, "product")
        add(name + ", gradient of the matrix", repeat, e * (rows * (n_in + n_out) + w), 2 * rows * w, "product")

    product("queries, keys, values", c, 3 * c)
    product("projection", c, c)
    product("MLP, up", c, 4 * c)
    product("MLP, down", 4 * c, c)
    product("head", c, v, repeat=1)
    # The first norm is alone; each other one has the residual sum before it.
    add("norms, forward", 1, (4 + e) * nc)
    add("norms, backward", 1, (4 + e + 4 + 4) * nc)
    add("residual sums with dropout and norm, forward", 2 * layers, (8 + 2 * e) * nc)
    of_branch = e if shape["dropout"] or precision == "bf16" else 0
    add("residual sums with dropout and norm, backward", 2 * layers, (4 + e + 4 + 4 + of_branch) * nc)
    add("GELU, forward", layers, 2 * e * 4 * nc)
    add("GELU, backward", layers, 3 * e * 4 * nc)
    half = 2 * b * heads * (t * t / 2) * (c // heads)  # operations of one product over what a position sees
    add("attention, forward", layers, e * 4 * nc, 2 * half, "attention")
    add("attention, gradient of queries", layers, e * 6 * nc, 3 * half, "attention")
    add("attention, gradients of keys and values", layers, e * 7 * nc, 4 * half, "attention")
    add("cross-entropy, forward and backward", 1, 3 * e * n * v)
    add("head again", 1, e * (n * (c + v) + v * c), 2 * n * c * v, "product")
    add("embeddings", 1, (4 + 8 + 8) * nc)
    parameters = 12 * layers * c * c + v * c
    add("norm of the gradients, AdamW", 1, (4 + 16 + 12) * parameters)
    if precision == "bf16":
        add("matrices to bf16", 1, 6 * parameters)
    return ops


def seconds(op, card, precision):
    _, nbytes, flops, kind, _ = op
    bandwidth, f32, bf16 = CARDS[card]
    peak = bf16 if precision == "bf16" else f32
    share = OF_ATTENTION[precision] if kind == "attention" else OF_PRODUCTS
    return max(nbytes / (bandwidth * OF_BANDWIDTH), flops / (peak * share))


def token(card, layers, c, v, context, nbytes):
    parameters = 12 * layers * c * c + v * c
    return (nbytes * parameters + 8 * layers * context * c) / (CARDS[card][0] * OF_BANDWIDTH)


def main():
    for name, shape in SHAPES.items():
        print(f"\n| {name} | GB | TFLOP | " + " | ".join(f"{card}, {p}, ms" for card in CARDS for p in ("f32", "bf16")) + " |")
        print("| --- | --- | --- |" + " --- |" * (2 * len(CARDS)))
        groups = {}
        for precision in ("f32", "bf16"):
            for op in update(shape, precision):
                group = op[0].split(",")[0] if op[3] != "product" else "products"
                for card in CARDS:
                    at = groups.setdefault(group, {"f32": [0, 0], "bf16": [0, 0], "s": {}})
                    at["s"][card, precision] = at["s"].get((card, precision), 0.0) + seconds(op, card, precision)
                groups[group][precision][0] += op[1]
                groups[group][precision][1] += op[2]
        total = {}
        for group, at in groups.items():
            nbytes, flops = at["bf16"] if at["bf16"][0] else at["f32"]
            cells = []
            for card in CARDS:
                for precision in ("f32", "bf16"):
                    s = at["s"].get((card, precision), 0.0)
                    total[card, precision] = total.get((card, precision), 0.0) + s
                    cells.append(f"{1e3 * s:.2f}")
            print(f"| {group} | {nbytes / 1e9:.1f} | {flops / 1e12:.2f} | " + " | ".join(cells) + " |")
        print("| all | | | " + " | ".join(f"**{1e3 * total[card, p]:.1f}**" for card in CARDS for p in ("f32", "bf16")) + " |")
    print("\n| a token of 124M, 1024 positions | " + " | ".join(CARDS) + " |\n| --- | --- | --- |")
    for weights, nbytes in (("f32", 4), ("bf16", 2)):
        print(f"| bytes, weights in {weights}, ms | " + " | ".join(f"{1e3 * token(card, 12, 768, 50257, 1024, nbytes):.2f}" for card in CARDS) + " |")


if __name__ == "__main__":
    main()
