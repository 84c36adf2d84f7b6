//! The arithmetic of an update, counted.

use tinygpt_model::GptConfig;

/// The floating-point operations of the matrix products of one update with `rows` windows of `cols` tokens; a
/// multiply-add is two. With N = rows * cols tokens, the multiply-adds of the forward pass are
///
/// - linear layers: `3 C^2` (queries, keys and values), `C^2`, `4 C^2` and `4 C^2` for each token and block: `12 C^2 N L`;
/// - attention: query p (counted from 1) sees p keys, each of which costs `C` for its score and `C` for its value, in
///   each block: `rows * L * 2 C * cols (cols + 1) / 2`;
/// - the head: `V C N`.
///
/// The backward pass does each product twice more, once for the gradient of either operand. Nothing else is counted:
/// norms, activations, softmax, AdamW, nor what an engine computes anew to save memory.
pub fn of_update(config: &GptConfig, rows: usize, cols: usize) -> f64 {
    let GptConfig { n_layer, n_embd, vocab_size, .. } = *config;
    let [b, t, l, c, v] = [rows, cols, n_layer, n_embd, vocab_size].map(|n| n as f64);
    let tokens = b * t;
    let linear = 12.0 * c * c * tokens * l;
    let attention = b * l * c * t * (t + 1.0);
    let head = v * c * tokens;
    2.0 * 3.0 * (linear + attention + head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tinygpt_model::{Activation, param_specs};

    fn shape(n_layer: usize, n_embd: usize, vocab_size: usize) -> GptConfig {
        let activation = Activation::Gelu;
        GptConfig { vocab_size, block_size: 64, n_layer, n_head: 1, n_embd, dropout: 0.0, bias: false, activation }
    }

    /// The multiply-adds of the forward pass by the products themselves: one for each element of a matrix and token, and
    /// for each pair of a query and a key that it sees.
    fn counted(config: &GptConfig, rows: usize, cols: usize) -> usize {
        let matrices = param_specs(config).into_iter().filter(|spec| spec.decays() && !spec.name.contains("wpe"));
        let elements: usize = matrices.map(|spec| spec.len()).sum();
        let pairs: usize = (0..cols).map(|query| (0..cols).filter(|&key| key <= query).count()).sum();
        rows * (cols * elements + config.n_layer * pairs * 2 * config.n_embd)
    }

    #[test]
    fn the_formula_counts_what_the_products_do() {
        for (config, rows, cols) in
            [(shape(1, 1, 2), 1, 1), (shape(2, 6, 11), 3, 5), (shape(4, 128, 65), 12, 64), (shape(3, 32, 500), 2, 17)]
        {
            assert_eq!(of_update(&config, rows, cols), 6.0 * counted(&config, rows, cols) as f64);
        }
    }

    #[test]
    fn an_update_of_small_is_3_8_gflop() {
        assert_eq!(of_update(&shape(4, 128, 65), 12, 64), 3_815_571_456.0);
    }
}
