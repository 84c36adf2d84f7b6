//! The parameters, and the matrices among them once more in the order in which products read them.

use tinygpt_sampler::simd::SimdLevel;

use super::{
    layout::{Affine, Layout},
    operand::Packed,
    rows::Aligned,
};
use crate::{GptConfig, Precision, Result, params::check_values};

/// A linear layer's weights `(in, out)`, packed for both directions.
#[derive(Debug)]
pub(super) struct Linear {
    at: Affine,
    /// `(in, out)`, for the forward pass.
    pub(super) packed: Packed,
    /// `(out, in)`, for the gradient of the input.
    pub(super) transposed: Packed,
}

impl Linear {
    fn new(precision: Precision, at: &Affine, n_in: usize, n_out: usize) -> Self {
        let (packed, transposed) = (Packed::new(precision, n_in, n_out), Packed::new(precision, n_out, n_in));
        Self { at: at.clone(), packed, transposed }
    }

    fn pack(&mut self, level: SimdLevel, params: &[f32]) {
        let w = &params[self.at.weight.clone()];
        self.packed.pack(level, w);
        self.transposed.pack_transposed(level, w);
    }
}

/// The linear layers of a block.
#[derive(Debug)]
pub(super) struct BlockWeights {
    pub(super) c_attn: Linear,
    pub(super) attn_proj: Linear,
    pub(super) c_fc: Linear,
    pub(super) mlp_proj: Linear,
}

/// All parameters.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) layout: Layout,
    pub(super) flat: Aligned,
    pub(super) blocks: Vec<BlockWeights>,
    /// The token embeddings as the head: `(C, V)`.
    pub(super) head: Packed,
    /// `(V, C)`.
    pub(super) head_transposed: Packed,
}

impl Weights {
    pub(super) fn new(config: &GptConfig, precision: Precision, level: SimdLevel, values: &[Vec<f32>]) -> Result<Self> {
        config.validate()?;
        let layout = Layout::new(config);
        let (c, v) = (config.n_embd, config.vocab_size);
        let blocks = layout
            .blocks
            .iter()
            .map(|at| BlockWeights {
                c_attn: Linear::new(precision, &at.c_attn, c, 3 * c),
                attn_proj: Linear::new(precision, &at.attn_proj, c, c),
                c_fc: Linear::new(precision, &at.c_fc, c, 4 * c),
                mlp_proj: Linear::new(precision, &at.mlp_proj, 4 * c, c),
            })
            .collect();
        let flat = Aligned::zeros(layout.len());
        let (head, head_transposed) = (Packed::new(precision, c, v), Packed::new(precision, v, c));
        let mut weights = Self { layout, flat, blocks, head, head_transposed };
        weights.layout.fill(values, &mut weights.flat)?;
        weights.pack(level);
        Ok(weights)
    }

    /// Takes the changed parameters over into the packed copies.
    pub(super) fn pack(&mut self, level: SimdLevel) {
        let flat = &self.flat;
        for block in &mut self.blocks {
            for linear in [&mut block.c_attn, &mut block.attn_proj, &mut block.c_fc, &mut block.mlp_proj] {
                linear.pack(level, flat);
            }
        }
        let wte = &flat[self.layout.wte.clone()];
        self.head.pack_transposed(level, wte);
        self.head_transposed.pack(level, wte);
    }

    pub(super) fn weight(&self, at: &Affine) -> &[f32] {
        &self.flat[at.weight.clone()]
    }

    pub(super) fn bias(&self, at: &Affine) -> Option<&[f32]> {
        at.bias.clone().map(|range| &self.flat[range])
    }
}

impl Layout {
    /// Writes values given in parameter order into a flat buffer.
    ///
    /// # Errors
    /// When their number or sizes are not those of the parameters.
    pub fn fill(&self, values: &[Vec<f32>], flat: &mut [f32]) -> Result<()> {
        check_values(&self.specs, values)?;
        for (range, values) in self.ranges.iter().zip(values) {
            flat[range.clone()].copy_from_slice(values);
        }
        Ok(())
    }

    /// The values of a flat buffer, in parameter order.
    pub fn split(&self, flat: &[f32]) -> Vec<Vec<f32>> {
        self.ranges.iter().map(|range| flat[range.clone()].to_vec()).collect()
    }
}
