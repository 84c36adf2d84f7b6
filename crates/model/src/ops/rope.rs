//! Rotary position embedding: pairs of channels of queries and keys are rotated by angles proportional to the position, so
//! that scores depend on distances (Su et al., 2021, "RoFormer"). Channel `i` of a head of `hs` is paired with channel
//! `i + hs / 2`, as Llama and Qwen do, and turns by the position times its frequency ([`RopeFrequencies`]).

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};
use tinygpt_sampler::simd::{Kernel, Simd, SimdLevel};

use super::{
    Operation,
    kernels::QkNormRope,
    launches::{cat_last, count_launch},
    tape,
};
use crate::{
    Result,
    config::{Heads, RopeFrequencies},
    cpu::{
        decode::{DecodeOp, DecodeSetup, DecodeStep},
        rows::Rows,
        training::{TrainOp, TrainPass, TrainSetup},
        vectors,
    },
    plan::{NetworkBuilder, Value},
    tensors::{Fusion, Pass},
};

/// The cosines and sines of all angles, computed when the first is asked for: a network that is only measured has none.
#[derive(Debug)]
pub(crate) struct Angles {
    block_size: usize,
    frequencies: RopeFrequencies,
    /// `hs / 2`.
    pairs: usize,
    tables: OnceLock<Tables>,
    /// The tables on the device that asked for them first: a network is on one.
    on_device: OnceLock<[Tensor; 2]>,
}

/// `(block_size, hs / 2)` each.
#[derive(Debug)]
struct Tables {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    fn new(block_size: usize, head_size: usize, frequencies: RopeFrequencies) -> Self {
        Self { block_size, frequencies, pairs: head_size / 2, tables: OnceLock::new(), on_device: OnceLock::new() }
    }

    fn tables(&self) -> &Tables {
        self.tables.get_or_init(|| {
            let Self { block_size, frequencies, pairs, .. } = *self;
            let rates = frequencies.of_pairs(pairs);
            let angle = |i: usize| (i / pairs) as f64 * rates[i % pairs];
            let table = |f: fn(f64) -> f64| (0..block_size * pairs).map(|i| f(angle(i)) as f32).collect();
            Tables { cos: table(f64::cos), sin: table(f64::sin) }
        })
    }

    /// The tables of cosines and sines on a device, `(block_size, hs / 2)` each, which are uploaded once.
    pub(crate) fn on_device(&self, device: &Device) -> candle_core::Result<[Tensor; 2]> {
        if let Some(tables) = self.on_device.get()
            && tables[0].device().same_device(device)
        {
            return Ok(tables.clone());
        }
        let Tables { cos, sin } = self.tables();
        let upload = |table: &[f32]| count_launch(Tensor::from_slice(table, (self.block_size, self.pairs), device));
        let tables = [upload(cos)?, upload(sin)?];
        // Where those of another device are held, these serve this call alone.
        self.on_device.get_or_init(|| tables.clone());
        Ok(tables)
    }

    /// The cosines and sines of a position, `(hs / 2)` each.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let Tables { cos, sin } = self.tables();
        let range = position * self.pairs..(position + 1) * self.pairs;
        (&cos[range.clone()], &sin[range])
    }
}

/// Rotary position embedding of queries and keys; values are unchanged.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    /// Queries, keys and values of all heads side by side, `(T, (nh + 2 nkv) hs)`.
    pub(crate) x: Value,
    pub(crate) y: Value,
    heads: Heads,
    pub(crate) angles: Arc<Angles>,
}

impl NetworkBuilder {
    /// Rotary position embedding of the queries and keys in `qkv (T, (nh + 2 nkv) hs)`, whose shape it keeps.
    pub fn rope(&mut self, qkv: Value, heads: Heads, frequencies: RopeFrequencies) -> Value {
        let cols = self.cols[qkv.0];
        // All layers share one table of angles.
        let same = self.ops.iter().find_map(|op| match op {
            super::Op::Rope(rope) => Some(Arc::clone(&rope.angles)),
            _ => None,
        });
        let angles =
            same.unwrap_or_else(|| Arc::new(Angles::new(self.config.block_size, heads.head_size, frequencies)));
        let y = self.value(cols);
        self.push(Rope { x: qkv, y, heads, angles })
    }
}

impl Operation for Rope {
    fn inputs(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn output(&self) -> Value {
        self.y
    }

    fn in_place(&self) -> bool {
        true
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        let past = pass.past();
        let x = pass.value(self.x)?;
        if let Some(kernel) = QkNormRope::new(&x, self.heads, None, Some((&self.angles, past)))? {
            return Ok(kernel.apply(&x)?);
        }
        // Angles times values would lose what bf16 does not hold.
        let y = self.tensors(&tape::cast(&x, pass.dtype())?, past)?;
        Ok(tape::cast(&y, x.dtype())?)
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.rope(self.x, Arc::clone(&self.angles), self.y)
    }

    fn training(&self, _: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        Box::new(self.clone())
    }

    fn decoding<'a>(&self, _: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        Some(Box::new(self.clone()))
    }
}

/// On candle tensors.
impl Rope {
    /// Rotates `qkv (B, T, (nh + 2 nkv) hs)` at the positions from `past` on.
    fn tensors(&self, qkv: &Tensor, past: usize) -> candle_core::Result<Tensor> {
        let y = self.rotated(qkv, past, false)?;
        let rope = self.clone();
        // A rotation is orthogonal: its gradient is the inverse rotation.
        tape::record("rope", [qkv], &y, move |dy| Ok([rope.rotated(dy, past, true)?]));
        Ok(y)
    }

    /// Rotates `qkv (B, T, (nh + 2 nkv) hs)`, or turns it `back`.
    fn rotated(&self, qkv: &Tensor, past: usize, back: bool) -> candle_core::Result<Tensor> {
        let (b, t, cols) = qkv.dims3()?;
        let Heads { n_head, n_kv_head, head_size: hs } = self.heads;
        let (rotated, pairs) = (n_head + n_kv_head, self.angles.pairs);
        let table = |table: &Tensor| {
            table.narrow(0, past, t)?.to_dtype(qkv.dtype())?.reshape((t, 1, pairs)) // (T, hs / 2) to (T, 1, hs / 2)
        };
        let [cos, sin] = self.angles.on_device(qkv.device())?;
        let (cos, sin) = (table(&cos)?, table(&sin)?);
        let heads = qkv.reshape((b, t, rotated + n_kv_head, hs))?; // (B, T, (nh + 2 nkv) hs) to (B, T, nh + 2 nkv, hs)
        let half = |i: usize| {
            count_launch(heads.narrow(2, 0, rotated)?.narrow(3, i * pairs, pairs)?.contiguous()) // (B, T, nh + nkv, hs / 2)
        };
        let (low, high) = (half(0)?, half(1)?);
        let times = |x: &Tensor, factor: &Tensor| count_launch(x.broadcast_mul(factor));
        let (of_low, of_high) = (times(&low, &sin)?, times(&high, &sin)?);
        let (low, high) = (times(&low, &cos)?, times(&high, &cos)?);
        // The sines of the inverse rotation are negative.
        let turned = if back {
            [count_launch(low + of_high)?, count_launch(high - of_low)?]
        } else {
            [count_launch(low - of_high)?, count_launch(high + of_low)?]
        };
        let qk = cat_last(&turned)?.reshape((b, t, rotated * hs))?; // (B, T, nh + nkv, hs) to (B, T, (nh + nkv) hs)
        cat_last(&[qk, count_launch(qkv.narrow(2, rotated * hs, cols - rotated * hs)?.contiguous())?])
    }
}

impl TrainOp for Rope {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let y = pass.values.rows_mut(self.y, &mut pass.scratch.rows);
        for i in 0..pass.t {
            self.rotate(pass.level, i, 1.0, y, i);
        }
    }

    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        let dy = pass.grads.rows_mut(self.y, &mut pass.scratch.rows);
        for i in 0..pass.t {
            self.rotate(pass.level, i, -1.0, dy, i);
        }
    }
}

impl DecodeOp for Rope {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        let (level, positions) = (step.level, step.positions);
        let y = step.values.rows_mut(self.y);
        for i in 0..step.n {
            self.rotate(level, positions.of(i), 1.0, y, i);
        }
    }
}

impl Rope {
    /// Rotates the queries and keys in row `i` by the angles of a position times `sign`.
    fn rotate(&self, level: SimdLevel, position: usize, sign: f32, rows: &mut Rows, i: usize) {
        let (cos, sin) = self.angles.at(position);
        let [q, k, _] = self.heads.qkv();
        level.run(RotateHeads { cos, sin, sign, heads: &mut rows.row_mut(i)[..q + k] });
    }
}

/// Rotates every head by the same angles.
struct RotateHeads<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    sign: f32,
    /// `(heads, hs)`.
    heads: &'a mut [f32],
}

impl Kernel for RotateHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { cos, sin, sign, heads } = self;
        let sign = s.splat(sign);
        for head in heads.chunks_exact_mut(2 * cos.len()) {
            let (low, high) = head.split_at_mut(cos.len());
            for v in 0..vectors::count(cos) {
                let (cos, sin) = (vectors::get(s, cos, v), s.mul(vectors::get(s, sin, v), sign));
                let (a, b) = (vectors::get(s, low, v), vectors::get(s, high, v));
                vectors::set(s, low, v, s.sub(s.mul(a, cos), s.mul(b, sin)));
                vectors::set(s, high, v, s.mul_add(a, sin, s.mul(b, cos)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::{GptConfig, plan::ParamSpec};

    fn heads(n_head: usize, n_kv_head: usize, head_size: usize) -> Heads {
        Heads { n_head, n_kv_head, head_size }
    }

    /// The definition, at position `past + t`: pairs of channels turn by `position theta^(-2 i / hs)`.
    fn expected(qkv: &[f64], t: usize, heads: Heads, past: usize, theta: f64) -> Vec<f64> {
        let (mut y, hs) = (qkv.to_vec(), heads.head_size);
        for (position, row) in y.chunks_mut(heads.qkv().iter().sum()).enumerate() {
            for head in row.chunks_mut(hs).take(heads.n_head + heads.n_kv_head) {
                for i in 0..hs / 2 {
                    let angle = (past + position % t) as f64 * theta.powf(-2.0 * i as f64 / hs as f64);
                    let (a, b) = (head[i], head[i + hs / 2]);
                    head[i] = a * angle.cos() - b * angle.sin();
                    head[i + hs / 2] = b * angle.cos() + a * angle.sin();
                }
            }
        }
        y
    }

    #[test]
    fn queries_and_keys_turn_by_their_position_behind_the_past_and_values_stay() {
        for (b, t, heads, past) in [
            (1, 1, heads(1, 1, 2), 0),
            (2, 5, heads(3, 3, 4), 0),
            (1, 3, heads(2, 1, 6), 7),
            (3, 2, heads(4, 2, 34), 9),
        ] {
            let config = GptConfig { block_size: past + t, ..GptConfig::default() };
            let cols: usize = heads.qkv().iter().sum();
            let mut net = NetworkBuilder::new(&config);
            let qkv = net.value(cols);
            net.rope(qkv, heads, RopeFrequencies::unscaled(70.0));
            let Some(crate::ops::Op::Rope(rope)) = net.ops.last() else { panic!("a rope") };
            let values: Vec<f64> = (0..b * t * cols).map(|i| ((i * 37) % 101) as f64 / 50.0 - 1.0).collect();
            let x = Tensor::from_slice(&values, (b, t, cols), &Device::Cpu).unwrap();
            let y = rope.tensors(&x, past).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let expected = expected(&values, t, heads, past, 70.0);
            // The angles' sines are f32.
            assert!(y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{b} {t} {heads:?} {past}");
        }
    }

    #[test]
    fn it_launches_what_the_table_of_operations_says() {
        let angles = Arc::new(Angles::new(5, 4, RopeFrequencies::unscaled(70.0)));
        // The tables are uploaded once for all layers.
        angles.on_device(&Device::Cpu).unwrap();
        let rope = Rope { x: Value(0), y: Value(0), heads: heads(3, 3, 4), angles };
        let x = Tensor::zeros((2, 5, 36), DType::F32, &Device::Cpu).unwrap();
        crate::ops::take_launches();
        let (y, tape) = crate::ops::Tape::record(std::slice::from_ref(&x), || rope.tensors(&x, 0).unwrap());
        assert_eq!(crate::ops::take_launches(), 13);
        tape.backward(&y, y.ones_like().unwrap()).unwrap();
        assert_eq!(crate::ops::take_launches(), 13);
    }

    #[test]
    fn a_network_that_is_only_measured_computes_no_angles() {
        let position = crate::config::Position::Rope;
        let huge = GptConfig { block_size: 1 << 24, n_embd: 1 << 14, n_head: 1, position, ..GptConfig::default() };
        let elements: usize = crate::param_specs(&huge).iter().map(ParamSpec::len).sum();
        assert!(elements > 1 << 30);
    }
}
