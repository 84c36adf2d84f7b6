//! The operations of training and decoding as CUDA kernels: `crates/model/kernels/*.cu`, called from the operations whose tensor compositions
//! they equal. `tinygpt selftest` holds each to its composition on the device itself.

use candle_core::{DType, Tensor};
use tinygpt_sampler::kernels::{Arg, Kernels};

use crate::Dropout;

/// The names of a kernel for values in f32, bf16 and f16, from the parts of what they have in common.
macro_rules! for_each_element {
    ($($part:literal),+) => {
        [concat!($($part),+, "_float"), concat!($($part),+, "_bf16"), concat!($($part),+, "_f16")]
    };
}

pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod decode;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod norm;
mod qk_norm_rope;
mod residual;

pub(crate) use qk_norm_rope::{QkNormParams, QkNormRope};
pub(crate) use residual::{residual_norm, residual_sum};

/// The device's kernels for these tensors: they take contiguous ones in f32.
pub(crate) fn kernels_for(tensors: &[&Tensor]) -> Option<Kernels> {
    let suits = |x: &&Tensor| x.dtype() == DType::F32 && x.is_contiguous();
    tensors.iter().all(suits).then(|| Kernels::of(tensors[0].device())).flatten()
}

/// The device's kernels for values in f32, bf16 or f16, contiguous ones, and which of these.
pub(crate) fn kernels_for_values(x: &Tensor) -> Option<(Kernels, Element)> {
    let element = Element::of(x)?;
    x.is_contiguous().then(|| Kernels::of(x.device())).flatten().map(|kernels| (kernels, element))
}

/// The type of values in memory; all kernels compute in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    Bf16,
    F16,
}

impl Element {
    pub(crate) fn of(x: &Tensor) -> Option<Self> {
        Self::of_type(x.dtype())
    }

    pub(crate) fn of_type(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::BF16 => Some(Self::Bf16),
            DType::F16 => Some(Self::F16),
            _ => None,
        }
    }

    fn dtype(self) -> DType {
        self.pick([DType::F32, DType::BF16, DType::F16])
    }

    /// The kernel for this type, of those for f32, bf16 and f16.
    fn pick<T>(self, [f32, bf16, f16]: [T; 3]) -> T {
        match self {
            Self::F32 => f32,
            Self::Bf16 => bf16,
            Self::F16 => f16,
        }
    }
}

/// Whether a tensor begins at a multiple of 16 bytes, as kernels that load vectors need it. Memory does, and a view may not.
fn is_aligned(x: &Tensor) -> bool {
    (x.layout().start_offset() * x.dtype().size_in_bytes()).is_multiple_of(16)
}

/// Dropout as kernels take it: the key and the words of its masks, the threshold and the scale.
fn dropout_args(dropout: Option<(&Dropout, u32)>) -> [Arg<'static>; 6] {
    let Some((dropout, site)) = dropout else {
        return [Arg::U32(0), Arg::U32(0), Arg::U32(0), Arg::U32(0), Arg::U32(0), Arg::F32(1.0)];
    };
    let [k0, k1, w2, w3] = dropout.site_words(site);
    [
        Arg::U32(k0),
        Arg::U32(k1),
        Arg::U32(w2),
        Arg::U32(w3),
        Arg::U32(dropout.hash_threshold()),
        Arg::F32(dropout.scale()),
    ]
}
