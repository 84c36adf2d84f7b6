//! What goes through a network for one batch: the spread of the output of each operation, of its gradient, and of each
//! parameter and its gradient. By it initial values can be compared before anything is trained.

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use serde::Serialize;

use super::{CausalMask, Gpt, Mode, Pass};
use crate::{
    Network, Result,
    ops::{self, Op, Tape, Tokens},
};

/// How numbers are spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// The square root of their mean squared distance from it.
    pub std: f64,
    /// The largest magnitude.
    pub largest: f64,
    /// The share of them that is zero.
    pub zeros: f64,
}

/// The output of an operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValueSpread {
    /// The block that it is in; none before the first and behind the last.
    pub layer: Option<usize>,
    /// The module of its parameters or, where it has none, its block: `h.0.attn.c_attn`, `h.0`.
    pub module: String,
    /// What is computed: `Linear`, `Attention`, and `Head` for the logits.
    pub operation: &'static str,
    /// Over positions and channels.
    pub activations: Spread,
    /// The gradients of the mean loss.
    pub gradients: Spread,
}

/// A parameter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParamSpread {
    /// Its name.
    pub name: String,
    /// Of its elements.
    pub weights: Spread,
    /// The gradients of the mean loss.
    pub gradients: Spread,
}

/// What one batch says of a network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The mean cross-entropy, in nats a token.
    pub loss: f64,
    /// The output of each operation, in their order, and the logits at the end. Dropout is off, and not listed.
    pub values: Vec<ValueSpread>,
    /// In parameter order.
    pub params: Vec<ParamSpread>,
}

impl Spread {
    /// The spread of the elements of a tensor of any shape.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of(x: &Tensor) -> Result<Self> {
        let x: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let mean_of = |f: &dyn Fn(f64) -> f64| x.iter().map(|&x| f(f64::from(x))).sum::<f64>() / x.len() as f64;
        let mean = mean_of(&|x| x);
        let std = mean_of(&|x| (x - mean).powi(2)).sqrt();
        let largest = x.iter().fold(0.0, |largest: f64, &x| largest.max(f64::from(x).abs()));
        Ok(Self { mean, std, largest, zeros: mean_of(&|x| f64::from(x == 0.0)) })
    }
}

impl Gpt {
    /// Computes a batch, `tokens (B, T)` and the `targets (B * T)` that follow them, forward and backward without dropout, and
    /// keeps everything. The logits are held at once, as `(B * T, V)`.
    ///
    /// # Errors
    /// As [`Gpt::losses`].
    pub fn inspect(&self, tokens: &Tokens, targets: &Tensor) -> Result<Inspection> {
        self.check_positions(tokens.ids.dim(1)?)?;
        let (forward, tape) = Tape::record(&self.params, || {
            let values = self.all_values(tokens)?;
            let x = &values[self.net.head.x.0];
            let x = ops::reshape(x, (x.elem_count() / x.dim(2)?, x.dim(2)?))?; // (B, T, C) to (B * T, C)
            let logits = ops::linear(&x, &ops::transpose(self.head())?, None, self.precision)?; // (B * T, V)
            let logits = self.capped(logits)?;
            Ok::<_, crate::ModelError>((ops::cross_entropy(&logits, targets)?, logits, values))
        });
        let (losses, logits, values) = forward?;
        let n = losses.elem_count() as f64;
        let mut seen = HashMap::new();
        let each = losses.ones_like()?.affine(1.0 / n, 0.0)?;
        let mut grads = tape.backward_seen_by(&losses, each, |id, grad| drop(seen.insert(id, grad.clone())))?;

        let gradient = |grad: Option<Tensor>, of: &str| {
            grad.ok_or_else(|| candle_core::Error::Msg(format!("{of} has no gradient")))
        };
        let spread = |module: &str, operation, value: &Tensor| -> Result<ValueSpread> {
            Ok(ValueSpread {
                layer: module.strip_prefix("h.").and_then(|name| name.split('.').next()?.parse().ok()),
                module: module.to_owned(),
                operation,
                activations: Spread::of(value)?,
                gradients: Spread::of(&gradient(seen.get(&value.id()).cloned(), module)?)?,
            })
        };
        let ops = self.net.ops.iter().zip(modules(&self.net)).filter(|(op, _)| !matches!(op, Op::ApplyDropout(_)));
        let mut spreads = ops
            .map(|(op, module)| spread(&module, op.name(), &values[op.get().output().0]))
            .collect::<Result<Vec<_>>>()?;
        spreads.push(spread("", "Head", &logits)?);
        let params = self.net.params.iter().zip(&self.params).map(|(spec, param)| {
            Ok(ParamSpread {
                name: spec.name.clone(),
                weights: Spread::of(param)?,
                gradients: Spread::of(&gradient(grads.take(param), &spec.name)?)?,
            })
        });
        let loss = Spread::of(&losses)?.mean;
        Ok(Inspection { loss, values: spreads, params: params.collect::<Result<_>>()? })
    }

    /// Every value of the network, `(B, T, channels)` each.
    pub(super) fn all_values(&self, tokens: &Tokens) -> Result<Vec<Tensor>> {
        let mode = Mode::FullSequence { dropout: None, mask: CausalMask::default(), precision: self.precision };
        let values = vec![None; self.net.cols.len()];
        let mut pass = Pass { mode, tokens, params: &self.params, dtype: self.dtype, operands: &[], values };
        for op in &self.net.ops {
            let value = op.get().forward(&mut pass)?;
            pass.values[op.get().output().0] = Some(value);
        }
        Ok(pass.values.into_iter().flatten().collect())
    }
}

/// The module of each operation: that of its parameters or, where it has none, the block of the operation before it.
fn modules(net: &Network) -> Vec<String> {
    let mut modules: Vec<String> = Vec::new();
    let mut from = 0;
    for &end in &net.param_ends {
        let own = net.params[from..end].first().and_then(|spec| spec.name.rsplit_once('.'));
        let block = || match modules.last().map(|module| module.split('.').collect::<Vec<_>>()).as_deref() {
            Some(["h", block, ..]) => format!("h.{block}"),
            _ => String::new(),
        };
        modules.push(own.map_or_else(block, |(module, _)| module.trim_start_matches("transformer.").to_owned()));
        from = end;
    }
    modules
}
