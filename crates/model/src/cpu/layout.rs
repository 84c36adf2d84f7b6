//! Where each parameter lies in a flat buffer.

use std::ops::Range;

use crate::{GptConfig, ParamSpec, param_specs};

/// A weight with its optional bias.
#[derive(Debug, Clone)]
pub(super) struct Affine {
    pub(super) weight: Range<usize>,
    pub(super) bias: Option<Range<usize>>,
}

#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) ln_1: Affine,
    pub(super) c_attn: Affine,
    pub(super) attn_proj: Affine,
    pub(super) ln_2: Affine,
    pub(super) c_fc: Affine,
    pub(super) mlp_proj: Affine,
}

/// The parameters in parameter order, each from a cache line on.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Names, shapes and initial values.
    pub specs: Vec<ParamSpec>,
    /// Where each of them lies.
    pub ranges: Vec<Range<usize>>,
    pub(super) wte: Range<usize>,
    pub(super) wpe: Range<usize>,
    pub(super) blocks: Vec<Block>,
    pub(super) ln_f: Affine,
}

impl Layout {
    pub(super) fn new(config: &GptConfig) -> Self {
        let specs = param_specs(config);
        let mut end = 0;
        let ranges: Vec<Range<usize>> = specs
            .iter()
            .map(|spec| {
                let range = end..end + spec.len();
                end = range.end.next_multiple_of(16);
                range
            })
            .collect();
        // `param_specs` gives them in this order.
        let mut rest = ranges.iter().cloned();
        let mut next = || rest.next().unwrap_or_default();
        let (wte, wpe) = (next(), next());
        let mut affine = || Affine { weight: next(), bias: config.bias.then(&mut next) };
        let blocks = (0..config.n_layer)
            .map(|_| Block {
                ln_1: affine(),
                c_attn: affine(),
                attn_proj: affine(),
                ln_2: affine(),
                c_fc: affine(),
                mlp_proj: affine(),
            })
            .collect();
        let ln_f = affine();
        Self { specs, ranges, wte, wpe, blocks, ln_f }
    }

    /// The length of a buffer for all of them.
    #[expect(clippy::len_without_is_empty, reason = "no model is without parameters")]
    pub fn len(&self) -> usize {
        self.ranges.last().map_or(0, |range| range.end.next_multiple_of(16))
    }
}
