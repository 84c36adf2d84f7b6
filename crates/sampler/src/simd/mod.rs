//! Sixteen f32 lanes on every processor, with the same bits from each: what the sampler and the model's CPU engine are
//! written in.
//!
//! A [`Simd`] value is proof that its instructions may run: one is made only inside [`SimdLevel::run`], under the
//! `target_feature` that [`SimdLevel::detect`] found. Each operation is one IEEE operation on each of sixteen lanes,
//! whatever the width of the registers, so every level computes the same numbers.
//!
//! Why `unsafe` here: the vector intrinsics of a processor may only run where it has them, which the type system
//! cannot know. The proof above is the whole argument; loads and stores go through references to sixteen floats.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod exp;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

pub use bf16::to_bf16;
pub use exp::{exp, exp2_of_eighths};

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen floats in memory.
pub type Lanes = [f32; LANES];

/// The operations of a level, on vectors of sixteen f32 lanes. Masks have bit i for lane i.
pub trait Simd: Copy {
    /// A vector.
    type V: Copy;

    /// How many vectors the registers hold.
    const VECTORS: usize;

    /// The same number in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// From memory.
    fn load(self, from: &Lanes) -> Self::V;
    /// From bf16: the upper halves of floats.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::V;
    /// From integers.
    fn load_i8(self, from: &[i8; LANES]) -> Self::V;
    /// To memory.
    fn store(self, v: Self::V, to: &mut Lanes);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The square root.
    fn sqrt(self, v: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each pair; of no use where one is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The lanes in which `a >= b`.
    fn ge(self, a: Self::V, b: Self::V) -> u16;
    /// The lanes in which `a > b`.
    fn gt(self, a: Self::V, b: Self::V) -> u16;
    /// The lanes in which either is NaN.
    fn unordered(self, a: Self::V, b: Self::V) -> u16;
    /// The lanes of the mask, and +0 elsewhere.
    fn keep(self, mask: u16, v: Self::V) -> Self::V;
    /// `2^(i / 8)` where `n` is `1.5 * 2^23 + i` for an integer i between -1000 and 1000; arbitrary elsewhere.
    fn power_of_eighths(self, n: Self::V) -> Self::V;
    /// The sum of the lanes, always in this order: lane i + 8 is added to lane i, then i + 4, i + 2 and i + 1.
    fn sum(self, v: Self::V) -> f32;
    /// Moves the lanes of the mask together to the front and writes all sixteen; the lanes behind them are arbitrary.
    fn compress(self, mask: u16, v: Self::V, to: &mut Lanes);
    /// [`Simd::compress`] for masks that rarely have more than eight lanes.
    #[inline(always)]
    fn compress_few(self, mask: u16, v: Self::V, to: &mut Lanes) {
        self.compress(mask, v, to);
    }
    /// [`Simd::compress`] of the numbers `first..first + 16`.
    fn compress_range(self, mask: u16, first: u32, to: &mut [u32; LANES]);
    /// [`Simd::compress`] of integers.
    fn compress_integers(self, mask: u16, from: &[u32; LANES], to: &mut [u32; LANES]);
    /// Pairs of bf16: lane i holds the bits of `low[i]` in its lower half and those of `high[i]` in its upper one, both
    /// by [`to_bf16`].
    #[inline(always)]
    fn pairs_bf16(self, low: Self::V, high: Self::V) -> Self::V {
        bf16::pairs(self, low, high)
    }
    /// Pairs of neighbours in bf16: of `first` in the lower eight lanes, of `second` in the upper ones.
    #[inline(always)]
    fn neighbours_bf16(self, first: Self::V, second: Self::V) -> Self::V {
        bf16::neighbours(self, first, second)
    }
    /// `c + a b` over pairs of bf16: the product of the upper halves is added first, then that of the lower ones.
    /// Subnormal numbers may count as zero.
    #[inline(always)]
    fn dot_bf16(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        bf16::dot(self, a, b, c)
    }
}

/// `2^(i / 8)` for i from 0 to 7, rounded.
const EIGHTHS: [f32; 8] =
    [1.0, 1.090_507_7, 1.189_207_1, 1.296_839_6, std::f32::consts::SQRT_2, 1.542_210_8, 1.681_792_9, 1.834_008_1];

/// Work that is written once for all levels. `run` and all that it calls with `s` must be `inline(always)`, or the
/// instructions are not those of the level.
pub trait Kernel {
    /// What it computes.
    type Output;
    /// The work, with the instructions that `s` stands for.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A set of vector instructions that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimdLevel {
    // Non-exhaustive, so that other crates get one from `available` only.
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    #[non_exhaustive]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    #[non_exhaustive]
    Avx2,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    #[non_exhaustive]
    Neon,
    /// No vector instructions.
    #[non_exhaustive]
    Scalar,
}

impl SimdLevel {
    /// The best level of this processor.
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// All levels of this processor, the best first.
    pub fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::is_available() {
                levels.push(Self::Avx512);
            }
            if avx2::is_available() {
                levels.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            levels.push(Self::Neon);
        }
        levels.push(Self::Scalar);
        levels
    }

    /// Whether this processor multiplies pairs of bf16 faster than floats (AVX512-BF16).
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Avx512 && avx512::has_bf16();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// [`SimdLevel::run`] for a kernel of bf16, with the instructions for it where the processor has them.
    #[inline]
    pub fn run_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        if self.has_bf16() {
            // SAFETY: the processor has these features.
            return unsafe { avx512::run_bf16(kernel) };
        }
        self.run(kernel)
    }

    /// Runs a kernel with the instructions of this level.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `available` makes this value only where the processor has these features.
            Self::Avx512 => unsafe { avx512::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx2 => unsafe { avx2::run(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Self::Neon => unsafe { neon::run(kernel) },
            Self::Scalar => kernel.run(scalar::Scalar),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on a few vectors, as bits.
    struct Everything;

    impl Kernel for Everything {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<u32> {
            let a: Lanes = std::array::from_fn(|i| (i as f32 - 7.3) * 1.7);
            let mut b: Lanes = std::array::from_fn(|i| ((i * 37) % 16) as f32 * 0.9 - 6.0);
            b[3] = a[3];
            let (va, vb) = (s.load(&a), s.load(&b));
            let mut out = Vec::new();
            let mut push = |v: S::V| {
                let mut lanes = [0.0; LANES];
                s.store(v, &mut lanes);
                out.extend(lanes.map(f32::to_bits));
            };
            push(s.splat(1.5));
            push(s.load_bf16(&std::array::from_fn(|i| (a[i].to_bits() >> 16) as u16)));
            push(s.load_i8(&std::array::from_fn(|i| (i as i8 - 7).wrapping_mul(18))));
            push(s.add(va, vb));
            push(s.sub(va, vb));
            push(s.mul_add(va, vb, va));
            push(s.max(va, vb));
            push(s.keep(0b1010_0110_1100_0101, va));
            push(s.mul(va, vb));
            push(s.div(va, vb));
            push(s.sqrt(s.mul(va, va)));
            push(exp(s, s.sub(va, s.splat(20.0))));
            push(s.power_of_eighths(s.load(&std::array::from_fn(|i| 12_582_912.0 - (i * 63) as f32 + 200.0))));
            let (pa, pb) = (s.pairs_bf16(va, vb), s.pairs_bf16(vb, s.splat(1.01)));
            push(pa);
            push(s.neighbours_bf16(va, vb));
            push(s.dot_bf16(pa, pb, va));
            out.push(u32::from(s.ge(va, vb)));
            out.push(u32::from(s.gt(va, vb)));
            let mut with_nan = a;
            with_nan[5] = f32::NAN;
            with_nan[12] = f32::NAN;
            out.push(u32::from(s.unordered(s.load(&with_nan), vb)));
            out.push(s.sum(va).to_bits());
            for mask in [0u16, 1, 0x8000, 0xffff, 0b1010_0110_1100_0101] {
                let count = mask.count_ones() as usize;
                let mut floats = [0.0; LANES];
                s.compress(mask, va, &mut floats);
                out.extend(floats[..count].iter().map(|x| x.to_bits()));
                floats = [0.0; LANES];
                s.compress_few(mask, va, &mut floats);
                out.extend(floats[..count].iter().map(|x| x.to_bits()));
                let mut numbers = [0; LANES];
                s.compress_range(mask, 1000, &mut numbers);
                out.extend(&numbers[..count]);
                s.compress_integers(mask, &std::array::from_fn(|i| i as u32 * 3), &mut numbers);
                out.extend(&numbers[..count]);
            }
            out
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let expected = SimdLevel::Scalar.run(Everything);
        for level in SimdLevel::available() {
            assert_eq!(level.run(Everything), expected, "{level:?}");
            assert_eq!(level.run_bf16(Everything), expected, "{level:?}, bf16");
        }
    }

    #[test]
    fn the_scalar_level_does_what_the_names_say() {
        let bits = SimdLevel::Scalar.run(Everything);
        assert_eq!(f32::from_bits(bits[0]), 1.5);
        for (i, &power) in bits[12 * 16..13 * 16].iter().enumerate() {
            let exact = ((200.0 - 63.0 * i as f64) / 8.0).exp2();
            assert!((f64::from(f32::from_bits(power)) / exact - 1.0).abs() < 6e-8);
        }
    }
}
