//! Shapes that are impossible, and the parameter counts of those that are known.

use super::*;

fn recipe(n_layer: usize, n_head: usize, n_embd: usize, block_size: usize) -> GptConfig {
    GptConfig {
        vocab_size: 65,
        block_size,
        n_layer,
        n_head,
        n_embd,
        dropout: 0.0,
        bias: false,
        mlp: Mlp::Gelu,
        ..GptConfig::default()
    }
}

#[test]
fn the_recipes_have_the_published_parameter_counts() {
    assert_eq!(recipe(4, 4, 128, 64).n_params(), 804_096);
    assert_eq!(recipe(6, 6, 384, 256).n_params(), 10_745_088);
}

#[test]
fn the_parameters_of_gpt2_124m_are_counted_with_their_biases() {
    let config = GptConfig { vocab_size: 50257, bias: true, ..recipe(12, 12, 768, 1024) };
    assert_eq!(config.n_params(), 124_439_808);
}

#[test]
fn an_impossible_shape_is_refused_and_its_field_named() {
    let good = recipe(4, 4, 128, 64);
    assert!(good.validate().is_ok());
    let rope = GptConfig { position: Position::Rope, ..good.clone() };
    // Heads of a size of their own need not share out the channels.
    assert!(GptConfig { n_head: 3, head_size: 10, ..rope.clone() }.validate().is_ok());
    for (config, field) in [
        (GptConfig { vocab_size: 0, ..good.clone() }, "vocab_size"),
        (GptConfig { block_size: 0, ..good.clone() }, "block_size"),
        (GptConfig { n_layer: 0, ..good.clone() }, "n_layer"),
        (GptConfig { n_head: 0, ..good.clone() }, "n_head"),
        (GptConfig { n_head: 3, ..good.clone() }, "n_embd"),
        (GptConfig { n_embd: 1 << 30, ..good.clone() }, "n_embd"),
        (GptConfig { head_size: 1 << 23, ..good.clone() }, "head_size"),
        (GptConfig { head_size: 5, ..rope.clone() }, "head_size"),
        (GptConfig { n_embd: 132, n_head: 12, ..rope.clone() }, "n_embd"),
        (GptConfig { norm_eps: 1e-13, ..good.clone() }, "norm_eps"),
        (GptConfig { norm_eps: -1e-5, ..good.clone() }, "norm_eps"),
        (GptConfig { norm_eps: f64::NAN, ..good.clone() }, "norm_eps"),
        (GptConfig { rope_theta: 0.5, ..rope.clone() }, "rope_theta"),
        (GptConfig { rope_factor: 0.5, ..rope.clone() }, "rope_factor"),
        (GptConfig { rope_low_freq_factor: 0.0, ..rope.clone() }, "rope_low_freq_factor"),
        (GptConfig { rope_high_freq_factor: 1.0, ..rope.clone() }, "rope_high_freq_factor"),
        (GptConfig { rope_high_freq_factor: f64::INFINITY, ..rope.clone() }, "rope_high_freq_factor"),
        (GptConfig { rope_scaling: RopeScaling::Llama3, ..rope.clone() }, "rope_original_block_size"),
        (GptConfig { rope_scaling: RopeScaling::Linear, ..good.clone() }, "rope_scaling"),
        (GptConfig { dropout: 1.0, ..good.clone() }, "dropout"),
        (GptConfig { dropout: f64::NAN, ..good.clone() }, "dropout"),
    ] {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.starts_with(&format!("model.{field} = ")), "{message}");
    }
}
