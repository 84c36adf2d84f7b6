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
    for (config, field) in [
        (GptConfig { vocab_size: 0, ..good.clone() }, "vocab_size"),
        (GptConfig { block_size: 0, ..good.clone() }, "block_size"),
        (GptConfig { n_layer: 0, ..good.clone() }, "n_layer"),
        (GptConfig { n_head: 0, ..good.clone() }, "n_head"),
        (GptConfig { n_head: 3, ..good.clone() }, "n_embd"),
        (GptConfig { n_embd: 1 << 30, ..good.clone() }, "n_embd"),
        (GptConfig { dropout: 1.0, ..good.clone() }, "dropout"),
        (GptConfig { dropout: f64::NAN, ..good.clone() }, "dropout"),
    ] {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.starts_with(&format!("model.{field} = ")), "{message}");
    }
}
