//! QK-norm and rotary positions, each alone or one behind the other.

use candle_core::{DType, Result, Tensor, bail};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::{
    Element, kernels_for, kernels_for_values,
    norm::{SHARED, sum_rows},
};
use crate::{
    config::Heads,
    ops::{Angles, launches::count_launch, tape},
};

const MODULE: Module = Module { name: "qk_norm_rope", ptx: include_str!("../../../kernels/qk_norm_rope.ptx") };

/// The warps of a block, each with a head.
const WARPS: usize = 8;

/// The heads of a block of the backward pass, which leaves one row of sums: enough blocks for a large card, few rows to sum after.
const HEADS: usize = 128;

/// The norms of queries and of keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QkNormParams<'a> {
    /// `(hs)` each.
    pub(crate) weights: [&'a Tensor; 2],
    pub(crate) eps: f64,
}

/// The norms of queries and keys in `(B, T, (nh + 2 nkv) hs)`, their rotation, or the norms and then the rotation.
#[derive(Debug)]
pub(crate) struct QkNormRope {
    kernels: Kernels,
    element: Element,
    heads: Heads,
    /// The weights of the norms of queries and of keys, `(hs)` each.
    norms: Option<[Tensor; 2]>,
    /// The epsilon of these norms.
    eps: f64,
    /// The cosines and sines, `(block_size, hs / 2)` each.
    angles: Option<[Tensor; 2]>,
    /// The positions before the first.
    past: usize,
}

impl QkNormRope {
    /// Nothing where there is no kernel for `qkv`; `angles` come with the number of positions before the first.
    pub(crate) fn new(
        qkv: &Tensor,
        heads: Heads,
        norms: Option<QkNormParams<'_>>,
        angles: Option<(&Angles, usize)>,
    ) -> Result<Option<Self>> {
        // A warp's sums of both weights are in shared memory.
        let suits =
            |norms: &QkNormParams<'_>| kernels_for(&norms.weights).is_some() && shared(heads.head_size) <= SHARED;
        let Some((kernels, element)) = kernels_for_values(qkv).filter(|_| norms.as_ref().is_none_or(suits)) else {
            return Ok(None);
        };
        let past = angles.map_or(0, |(_, past)| past);
        let angles = angles.map(|(angles, _)| angles.on_device(qkv.device())).transpose()?;
        let eps = norms.map_or(0.0, |norms| norms.eps);
        let norms = norms.map(|norms| norms.weights.map(Tensor::clone));
        Ok(Some(Self { kernels, element, heads, norms, eps, angles, past }))
    }

    /// Applies them to `qkv (B, T, (nh + 2 nkv) hs)`, recorded.
    pub(crate) fn apply(self, qkv: &Tensor) -> Result<Tensor> {
        let y = self.forward(qkv)?;
        let Some([q, k]) = self.norms.clone() else {
            tape::record("rope", [qkv], &y, move |dy| Ok([self.backward(&dy.contiguous()?, None)?]));
            return Ok(y);
        };
        let x = qkv.clone();
        tape::record("qk norm", [qkv, &q, &k], &y, move |dy| {
            let hs = self.heads.head_size;
            let sums = self.kernels.output((self.all_heads(dy).div_ceil(HEADS), 2 * hs), DType::F32)?;
            let dx = self.backward(&dy.contiguous()?, Some((&x, &sums)))?;
            let sums = sum_rows(&self.kernels, &sums, Element::F32)?; // (blocks, 2 hs) to (2 hs)
            Ok([dx, sums.narrow(0, 0, hs)?, sums.narrow(0, hs, hs)?])
        });
        Ok(y)
    }

    fn forward(&self, qkv: &Tensor) -> Result<Tensor> {
        let y = self.kernels.output(qkv.shape(), qkv.dtype())?;
        let args = [&[Arg::Tensor(qkv), Arg::Tensor(&y)][..], &self.args(qkv)?].concat();
        let grid = Grid::new(self.all_heads(qkv).div_ceil(WARPS), 32 * WARPS as u32);
        let name = self.element.pick(for_each_element!("qk_norm_rope_forward"));
        count_launch(self.kernels.launch(MODULE, name, grid, &args).map(|()| y))
    }

    /// The gradient of `qkv` from that of the result. With norms `x` is their input, and each block of the kernel leaves its
    /// part of the gradients of both weights in its row of `sums (blocks, 2 hs)`.
    fn backward(&self, dy: &Tensor, norms: Option<(&Tensor, &Tensor)>) -> Result<Tensor> {
        if Element::of(dy) != Some(self.element) {
            bail!("the gradient of queries and keys is {:?}", dy.dtype());
        }
        let dx = self.kernels.output(dy.shape(), dy.dtype())?;
        let (x, sums) = norms.unzip();
        let args = [Arg::optional(x), Arg::Tensor(dy), Arg::Tensor(&dx), Arg::optional(sums)];
        let args = [&args[..], &self.args(dy)?, &[Arg::U32(HEADS as u32)]].concat();
        let shared = if norms.is_some() { shared(self.heads.head_size) as u32 } else { 0 };
        let grid = Grid { shared, ..Grid::new(self.all_heads(dy).div_ceil(HEADS), 32 * WARPS as u32) };
        let name = self.element.pick(for_each_element!("qk_norm_rope_backward"));
        count_launch(self.kernels.launch(MODULE, name, grid, &args).map(|()| dx))
    }

    /// The arguments of both directions: weights, angles, and the shape of `qkv`.
    fn args(&self, qkv: &Tensor) -> Result<Vec<Arg<'_>>> {
        let Heads { n_head, n_kv_head, head_size } = self.heads;
        let pairs = [&self.norms, &self.angles];
        let mut args: Vec<_> =
            pairs.iter().flat_map(|pair| [0, 1].map(|i| Arg::optional(pair.as_ref().map(|pair| &pair[i])))).collect();
        args.push(Arg::U64(self.all_heads(qkv) as u64));
        args.extend([qkv.dim(1)?, self.past, n_head, n_kv_head, head_size].map(|n| Arg::U32(n as u32)));
        args.push(Arg::F32(self.eps as f32));
        Ok(args)
    }

    /// The heads of queries, keys and values of all positions.
    fn all_heads(&self, qkv: &Tensor) -> usize {
        qkv.elem_count() / self.heads.head_size
    }
}

/// The bytes of shared memory of the backward pass of norms.
fn shared(head_size: usize) -> usize {
    4 * WARPS * 2 * head_size
}
