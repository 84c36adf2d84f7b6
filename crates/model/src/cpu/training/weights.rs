//! The parameters, flat, and packed copies of the matrices that products read.

use tinygpt_sampler::simd::SimdLevel;

use super::layout::ParamLayout;
use crate::{
    Result,
    cpu::{CpuPrecision, operand::PackedOperand, rows::Aligned},
    plan::{Network, ParamId},
};

/// A weight matrix `(rows, cols)` packed as the right operand of products, as it is and transposed.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    /// `(rows, cols)`.
    pub(crate) weight: PackedOperand,
    /// `(cols, rows)`.
    pub(crate) transposed: PackedOperand,
}

impl PackedMatrix {
    fn new(precision: CpuPrecision, rows: usize, cols: usize) -> Self {
        Self {
            weight: PackedOperand::new(precision, rows, cols),
            transposed: PackedOperand::new(precision, cols, rows),
        }
    }

    fn pack(&mut self, level: SimdLevel, values: &[f32]) {
        self.weight.pack(level, values);
        self.transposed.pack_transposed(level, values);
    }
}

/// All parameters of a network.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) layout: ParamLayout,
    /// All parameters, at the ranges of `layout`.
    pub(crate) flat: Aligned,
    /// The packed copy of each parameter that products read, in parameter order.
    packed: Vec<Option<PackedMatrix>>,
}

impl Weights {
    /// Copies and packs parameter values given in parameter order.
    pub(crate) fn new(net: &Network, precision: CpuPrecision, level: SimdLevel, values: &[Vec<f32>]) -> Result<Self> {
        let layout = ParamLayout::new(net);
        let mut flat = Aligned::zeros(layout.len());
        layout.fill(values, &mut flat)?;
        let mut packed: Vec<Option<PackedMatrix>> = layout.specs.iter().map(|_| None).collect();
        for param in net.matmul_params() {
            if let [rows, cols] = layout.specs[param.0].shape[..] {
                packed[param.0] = Some(PackedMatrix::new(precision, rows, cols));
            }
        }
        let mut weights = Self { layout, flat, packed };
        weights.pack(level);
        Ok(weights)
    }

    /// Packs the matrices anew, after the flat parameters have changed.
    pub(crate) fn pack(&mut self, level: SimdLevel) {
        for (packed, range) in self.packed.iter_mut().zip(&self.layout.ranges) {
            if let Some(packed) = packed {
                packed.pack(level, &self.flat[range.clone()]);
            }
        }
    }

    /// The values of a parameter.
    pub(crate) fn param(&self, param: ParamId) -> &[f32] {
        &self.flat[self.layout.range(param)]
    }

    /// The packed copy of a matrix that products read.
    #[expect(clippy::expect_used, reason = "`Network::matmul_params` names all of them")]
    pub(crate) fn packed(&self, param: ParamId) -> &PackedMatrix {
        self.packed[param.0].as_ref().expect("a matrix that products read")
    }
}
