//! The network: GPT-2, or what the keys of `[model]` make of it. Written once and executed by every backend: candle tensors
//! (`tensors/`), training and decoding on the CPU (`cpu/`). Parameters, initial values, weight decay, FLOPs and memory are
//! derived from it.
//!
//! Each line is an operation of `ops/`, whose file holds its forward and backward pass and its form in decoding.

use crate::{
    GptConfig,
    config::{GPT2_STD, Norm, Position},
    dropout::DropoutSite,
    plan::{Network, NetworkBuilder},
};

/// The network of a configuration. Shapes are those of one sequence of `T` positions, with `C = n_embd`, and `A = n_head * head_size`,
/// which is `C` unless `head_size` says otherwise; with fewer heads of keys and values than of queries, `3A` is less.
pub fn network(config: &GptConfig) -> Network {
    let c = config.n_embd;
    let (heads, hidden) = (config.heads(), config.hidden());
    let [a, ..] = heads.qkv();
    let std = |n_in, n_out| config.init.std(n_in, n_out);
    // GPT-2 scales the projections back into the residual stream, so that its variance does not grow with depth.
    let residual_std = |n_in| std(n_in, c) / (2.0 * config.n_layer as f64).sqrt();
    let norm = |net: &mut NetworkBuilder, x, name: &str| match config.norm {
        Norm::Layer => net.layer_norm(x, name),
        Norm::Rms => net.rms_norm(x, name),
    };
    let mut net = NetworkBuilder::new(config);

    let (mut x, wte) = net.embedding("transformer.wte", config.vocab_size, c, GPT2_STD); // (T, C)
    if config.position == Position::Learned {
        x = net.positions(x, "transformer.wpe", GPT2_STD); // (T, C)
    }
    x = net.dropout(x, DropoutSite::Embedding);
    for layer in 0..config.n_layer {
        let name = |module: &str| format!("transformer.h.{layer}.{module}");

        // x + attention(norm(x))
        let h = norm(&mut net, x, &name("ln_1")); // (T, C)
        let mut h = net.linears(h, &name("attn.c_attn"), &heads.qkv(), std(c, a)); // (T, 3A): queries, keys, values
        if config.qk_norm {
            h = net.qk_norm(h, heads, &name("attn")); // (T, 3A)
        }
        if config.position == Position::Rope {
            h = net.rope(h, heads, config.rope_frequencies()); // (T, 3A)
        }
        let h = net.attention(h, heads, DropoutSite::Attention(layer)); // (T, A)
        let h = net.linear(h, &name("attn.c_proj"), c, residual_std(a)); // (T, C)
        let h = net.dropout(h, DropoutSite::AttentionResidual(layer));
        x = net.add(x, h);

        // x + mlp(norm(x))
        let h = norm(&mut net, x, &name("ln_2")); // (T, C)
        let h = match config.mlp.activation() {
            Some(activation) => {
                let h = net.linear(h, &name("mlp.c_fc"), hidden, std(c, hidden)); // (T, H), H = 4C in GPT-2
                net.activation(h, activation) // (T, H)
            }
            None => {
                let h = net.linears(h, &name("mlp.c_fc"), &[hidden; 2], std(c, hidden)); // (T, 2H): gates, and what they gate
                net.swiglu(h) // (T, H)
            }
        };
        let h = net.linear(h, &name("mlp.c_proj"), c, residual_std(hidden)); // (T, C)
        let h = net.dropout(h, DropoutSite::MlpResidual(layer));
        x = net.add(x, h);
    }
    let h = norm(&mut net, x, "transformer.ln_f"); // (T, C)
    let head = if config.tie_embeddings { wte } else { net.head_matrix("lm_head", config.vocab_size, c, GPT2_STD) };
    net.head(h, head) // (T, V)
}
