//! QK-norm: RMSNorm over each head's queries and keys, with one weight for the queries of all heads and one for the keys
//! (Dehghani et al., 2023, "Scaling Vision Transformers to 22 Billion Parameters"; Henry et al., 2020; here as in Qwen3).

use candle_core::Tensor;
use tinygpt_sampler::simd::{Kernel, Simd, SimdLevel};

use super::{
    Operation, Rope,
    kernels::{QkNormParams, QkNormRope},
    launches::{cat_last, count_launch},
    rms_norm::{self, normalize_row, weight_grad_row},
    tape,
};
use crate::{
    Result,
    config::{Heads, Norm},
    cpu::{
        decode::{DecodeOp, DecodeSetup, DecodeStep},
        rows::Rows,
        training::{ParamLayout, TrainOp, TrainPass, TrainSetup},
        vectors,
    },
    plan::{Init, Network, NetworkBuilder, ParamId, Role, Value},
    tensors::{Fusion, Pass},
};

/// RMSNorm of each head's queries and keys; values are unchanged.
#[derive(Debug, Clone)]
pub(crate) struct QkNorm {
    /// Queries, keys and values of all heads side by side, `(T, (nh + 2 nkv) hs)`.
    x: Value,
    pub(crate) y: Value,
    heads: Heads,
    /// `(hs)`, of the queries.
    q_weight: ParamId,
    /// `(hs)`, of the keys.
    k_weight: ParamId,
    eps: f64,
}

impl NetworkBuilder {
    /// RMSNorm of each head's queries and keys, with the epsilon of the configuration: `(T, (nh + 2 nkv) hs)` to the same shape.
    pub fn qk_norm(&mut self, qkv: Value, heads: Heads, module: &str) -> Value {
        let mut weight =
            |name: &str| self.param(format!("{module}.{name}.weight"), &[heads.head_size], Role::Norm, Init::Ones);
        let (q_weight, k_weight) = (weight("q_norm"), weight("k_norm"));
        let (y, eps) = (self.value(self.cols[qkv.0]), self.config.norm_eps(Norm::Rms));
        self.push(QkNorm { x: qkv, y, heads, q_weight, k_weight, eps })
    }
}

impl QkNorm {
    /// The heads of queries and of keys, each with their weight.
    fn parts(&self) -> [(usize, ParamId); 2] {
        [(self.heads.n_head, self.q_weight), (self.heads.n_kv_head, self.k_weight)]
    }

    fn weights<'a>(&self, pass: &Pass<'a>) -> [&'a Tensor; 2] {
        self.parts().map(|(_, weight)| pass.param(weight))
    }

    fn kernel_norms<'a>(&self, pass: &Pass<'a>) -> QkNormParams<'a> {
        QkNormParams { weights: self.weights(pass), eps: self.eps }
    }

    /// The output of `rope`, which rotates what this one norms: by one kernel for both. Nothing where there is none.
    pub(crate) fn forward_rotated(&self, rope: &Rope, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        let (x, angles) = (pass.value(self.x)?, (&*rope.angles, pass.past()));
        let kernel = QkNormRope::new(&x, self.heads, Some(self.kernel_norms(pass)), Some(angles))?;
        Ok(kernel.map(|kernel| kernel.apply(&x)).transpose()?)
    }
}

impl Operation for QkNorm {
    fn inputs(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn output(&self) -> Value {
        self.y
    }

    fn in_place(&self) -> bool {
        true
    }

    fn kept_floats(&self, _: &Network, t: usize) -> usize {
        let Heads { n_head, n_kv_head, head_size } = self.heads;
        t * (n_head + n_kv_head) * (head_size + 1) + 2 * head_size
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        let x = pass.value(self.x)?; // (B, T, (nh + 2 nkv) hs)
        if let Some(kernel) = QkNormRope::new(&x, self.heads, Some(self.kernel_norms(pass)), None)? {
            return Ok(kernel.apply(&x)?);
        }
        let qkv = tape::cast(&x, pass.dtype())?;
        let weights = self.weights(pass);
        let (heads, eps) = (self.heads, self.eps);
        let y = by_head(&qkv, heads, |i, part| rms_norm::value(part, weights[i], eps))?;
        let (input, held) = (qkv.clone(), weights.map(Tensor::clone));
        tape::record("qk norm", [&qkv, weights[0], weights[1]], &y, move |dy| {
            let x = split(&input, heads)?;
            let mut d_weights = Vec::with_capacity(2);
            let dx = by_head(dy, heads, |i, dy| {
                let [dx, dw] = rms_norm::gradients(&x[i], &held[i], eps, dy)?;
                d_weights.push(dw);
                Ok(dx)
            })?;
            let [dq, dk] = [0, 1].map(|i| d_weights[i].clone());
            Ok([dx, dq, dk])
        });
        Ok(tape::cast(&y, x.dtype())?)
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.qk_norm(self.x, (self.parts().map(|(_, weight)| weight), self.eps), self.y)
    }

    fn training(&self, setup: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        let Heads { n_head, n_kv_head, head_size } = self.heads;
        let normed = (n_head + n_kv_head) * head_size;
        Box::new(QkNormTape {
            op: self.clone(),
            inputs: Rows::zeros(setup.block_size, normed),
            rrms: Rows::zeros(setup.block_size, n_head + n_kv_head),
            dw: [vec![0.0; head_size], vec![0.0; head_size]],
        })
    }

    fn decoding<'a>(&self, setup: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        Some(Box::new(DecodeQkNorm {
            op: self.clone(),
            weights: self.parts().map(|(_, weight)| setup.param(weight)),
            input: vec![0.0; (self.heads.n_head + self.heads.n_kv_head) * self.heads.head_size],
            rrms: vec![0.0; self.heads.n_head + self.heads.n_kv_head],
        }))
    }
}

/// Queries and keys of `qkv (B, T, (nh + 2 nkv) hs)` by heads, `(B, T, heads, hs)` each.
fn split(qkv: &Tensor, heads: Heads) -> candle_core::Result<[Tensor; 2]> {
    let (b, t, _) = qkv.dims3()?;
    let (hs, [q, k, _]) = (heads.head_size, heads.qkv());
    let part = |from: usize, cols: usize| {
        count_launch(qkv.narrow(2, from, cols)?.contiguous())?.reshape((b, t, cols / hs, hs)) // (B, T, heads * hs) to (B, T, heads, hs)
    };
    Ok([part(0, q)?, part(q, k)?])
}

/// Applies `f` to the heads of queries (0) and of keys (1), `(B, T, heads, hs)`, and leaves values as they are.
fn by_head(
    qkv: &Tensor,
    heads: Heads,
    mut f: impl FnMut(usize, &Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let [q, k, v] = heads.qkv();
    let mut parts = Vec::with_capacity(3);
    for (i, (part, cols)) in split(qkv, heads)?.iter().zip([q, k]).enumerate() {
        let (b, t, _) = qkv.dims3()?;
        parts.push(f(i, part)?.reshape((b, t, cols))?); // (B, T, heads, hs) to (B, T, heads * hs)
    }
    parts.push(count_launch(qkv.narrow(2, q + k, v)?.contiguous())?);
    cat_last(&parts)
}

/// QK-norm with its tape of one sequence.
#[derive(Debug)]
struct QkNormTape {
    op: QkNorm,
    /// Queries and keys, which the outputs overwrite, `(block_size, (nh + nkv) hs)`.
    inputs: Rows,
    /// The reciprocal root mean square of each head, `(block_size, nh + nkv)`.
    rrms: Rows,
    /// The gradients of both weights, `(hs)` each, summed over the sequence.
    dw: [Vec<f32>; 2],
}

impl TrainOp for QkNormTape {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let weights = self.op.parts().map(|(_, weight)| pass.weights.param(weight));
        let x = pass.values.rows_mut(self.op.y, &mut pass.scratch.rows);
        for i in 0..pass.t {
            let (input, rrms) = (self.inputs.row_mut(i), self.rrms.row_mut(i));
            forward(pass.level, &self.op, weights, x.row_mut(i), input, rrms);
        }
    }

    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        let hs = self.op.heads.head_size;
        let weights = self.op.parts().map(|(_, weight)| pass.weights.param(weight));
        let dx = pass.grads.rows_mut(self.op.y, &mut pass.scratch.rows);
        self.dw.iter_mut().for_each(|dw| dw.fill(0.0));
        for i in 0..pass.t {
            let (mut dx, mut x, mut rrms) = (dx.row_mut(i), self.inputs.row(i), self.rrms.row(i));
            for (((heads, _), w), dw) in self.op.parts().into_iter().zip(weights).zip(&mut self.dw) {
                let (dx_part, x_part, r);
                (dx_part, dx) = dx.split_at_mut(heads * hs);
                (x_part, x) = x.split_at(heads * hs);
                (r, rrms) = rrms.split_at(heads);
                pass.level.run(Backward { w, dw, dx: dx_part, x: x_part, rrms: r });
            }
        }
    }

    fn add_vector_grads(&self, layout: &ParamLayout, grads: &mut [f32]) {
        for ((_, weight), dw) in self.op.parts().into_iter().zip(&self.dw) {
            layout.add(weight, dw, grads);
        }
    }
}

#[derive(Debug)]
struct DecodeQkNorm<'a> {
    op: QkNorm,
    weights: [&'a [f32]; 2],
    /// `((nh + nkv) hs)`.
    input: Vec<f32>,
    /// `(nh + nkv)`.
    rrms: Vec<f32>,
}

impl DecodeOp for DecodeQkNorm<'_> {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        let x = step.values.rows_mut(self.op.y);
        for i in 0..step.n {
            forward(step.level, &self.op, self.weights, x.row_mut(i), &mut self.input, &mut self.rrms);
        }
    }
}

/// Overwrites the queries and keys of one position with their norms. `input ((nh + nkv) hs)` gets what they were, and
/// `rrms (nh + nkv)` the reciprocal root mean squares.
fn forward(
    level: SimdLevel,
    op: &QkNorm,
    weights: [&[f32]; 2],
    mut x: &mut [f32],
    mut input: &mut [f32],
    mut rrms: &mut [f32],
) {
    for ((heads, _), w) in op.parts().into_iter().zip(weights) {
        let n = heads * op.heads.head_size;
        let (x_part, input_part, r);
        (x_part, x) = x.split_at_mut(n);
        (input_part, input) = input.split_at_mut(n);
        (r, rrms) = rrms.split_at_mut(heads);
        input_part.copy_from_slice(x_part);
        level.run(Forward { w, eps: op.eps as f32, x: input_part, y: x_part, rrms: r });
    }
}

/// Normalizes each head.
struct Forward<'a> {
    w: &'a [f32],
    eps: f32,
    /// `(heads, hs)`.
    x: &'a [f32],
    /// `(heads, hs)`.
    y: &'a mut [f32],
    /// `(heads)`.
    rrms: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hs = self.w.len();
        for ((x, y), rrms) in self.x.chunks_exact(hs).zip(self.y.chunks_exact_mut(hs)).zip(self.rrms) {
            *rrms = normalize_row(s, x, (self.w, self.eps), y);
        }
    }
}

struct Backward<'a> {
    w: &'a [f32],
    /// `(hs)`, added to.
    dw: &'a mut [f32],
    /// The gradients of the outputs, overwritten with those of the inputs, `(heads, hs)`.
    dx: &'a mut [f32],
    /// `(heads, hs)`.
    x: &'a [f32],
    /// `(heads)`.
    rrms: &'a [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    /// With `g = dy w` and `z` the normed head: `dx = rrms (g - z mean(g z))`.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, dw, dx, x, rrms } = self;
        let hs = w.len();
        for ((dx, x), &rrms) in dx.chunks_exact_mut(hs).zip(x.chunks_exact(hs)).zip(rrms) {
            let mean_gz = s.splat(weight_grad_row(s, x, rrms, w, dx, dw));
            let rrms = s.splat(rrms);
            for v in 0..vectors::count(x) {
                let z = s.mul(vectors::get(s, x, v), rrms);
                let across = s.sub(vectors::get(s, dx, v), s.mul(z, mean_gz));
                vectors::set(s, dx, v, s.mul(across, rrms));
            }
        }
    }
}
