//! The scores of attention in a GPT-2 of `transformers`, which may be scaled in other ways than here.

use serde_json::Value;

use super::flag;
use crate::GptConfig;

/// How a GPT-2 of `transformers` scales the scores of attention. Here they are divided by `sqrt(head_size)` and by nothing
/// else. The scores are linear in the queries, and the queries in their weights: the difference goes into these when they are
/// read, so that no backend needs to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) struct AttentionScale {
    /// `scale_attn_weights`: they are divided by `sqrt(head_size)`.
    by_head_size: bool,
    /// `scale_attn_by_inverse_layer_idx`: those of the block `i`, from 0, are divided by `i + 1`.
    by_layer: bool,
}

impl Default for AttentionScale {
    fn default() -> Self {
        Self { by_head_size: true, by_layer: false }
    }
}

/// What the weights and the bias of queries, keys and values are multiplied by: the first `columns` of `width` by `factor`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::checkpoint) struct QueryScale {
    columns: usize,
    width: usize,
    factor: f32,
}

impl AttentionScale {
    /// That of a `config.json`.
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        Ok(Self {
            by_head_size: flag(value, "scale_attn_weights", true)?,
            by_layer: flag(value, "scale_attn_by_inverse_layer_idx", false)?,
        })
    }

    /// What the parameter of this name is multiplied by, if it is.
    pub(in crate::checkpoint) fn of_param(self, name: &str, config: &GptConfig) -> Option<QueryScale> {
        if self == Self::default() {
            return None;
        }
        let (block, module) = name.strip_prefix("transformer.h.")?.split_once('.')?;
        if !["attn.c_attn.weight", "attn.c_attn.bias"].contains(&module) {
            return None;
        }
        let by_head_size = if self.by_head_size { 1.0 } else { (config.head_size() as f64).sqrt() };
        let by_layer = if self.by_layer { block.parse::<usize>().ok()? as f64 + 1.0 } else { 1.0 };
        let qkv = config.heads().qkv();
        Some(QueryScale { columns: qkv[0], width: qkv.iter().sum(), factor: (by_head_size / by_layer) as f32 })
    }
}

impl QueryScale {
    /// Multiplies a parameter `(.., width)`.
    pub(in crate::checkpoint) fn apply(self, param: &mut [f32]) {
        for row in param.chunks_exact_mut(self.width) {
            row[..self.columns].iter_mut().for_each(|x| *x *= self.factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_alone_are_scaled_and_those_of_later_blocks_less() {
        let config = GptConfig { n_embd: 16, n_head: 4, ..GptConfig::default() };
        let scale = AttentionScale { by_head_size: false, by_layer: true };
        let of = |name: &str| scale.of_param(name, &config);
        let expected = |factor| Some(QueryScale { columns: 16, width: 48, factor });
        assert_eq!(of("transformer.h.0.attn.c_attn.weight"), expected(2.0));
        assert_eq!(of("transformer.h.3.attn.c_attn.bias"), expected(0.5));
        for name in ["transformer.h.0.attn.c_proj.weight", "transformer.wte.weight"] {
            assert_eq!(of(name), None);
        }
        assert_eq!(AttentionScale::default().of_param("transformer.h.0.attn.c_attn.weight", &config), None);
        let mut rows = [1.0, 1.0, 1.0, 3.0, 3.0, 3.0];
        QueryScale { columns: 1, width: 3, factor: 2.0 }.apply(&mut rows);
        assert_eq!(rows, [2.0, 1.0, 1.0, 6.0, 3.0, 3.0]);
    }
}
