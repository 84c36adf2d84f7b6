//! SIMD vectors of sixteen f32 lanes that compute the same bits on every processor. The host sampler, the model's CPU
//! engine and the optimizer are written in them; they live in this crate because it is the lowest of the workspace.
//!
//! A [`Kernel`] is written once, over any [`Simd`], and runs by [`SimdLevel::run`] with the instructions chosen at run
//! time: AVX-512, AVX2, NEON or none ([`SimdLevel::detect`]). Each operation is one IEEE operation on each of sixteen lanes, whatever the width
//! of the registers, so every level gives the same numbers.
//!
//! ```
//! use tinygpt_sampler::simd::{Kernel, LANES, Lanes, Simd, SimdLevel};
//!
//! /// Multiplies every element by a factor.
//! struct Scale<'a>(&'a mut [Lanes], f32);
//!
//! impl Kernel for Scale<'_> {
//!     type Output = ();
//!
//!     #[inline(always)]
//!     fn run<S: Simd>(self, s: S) {
//!         for x in self.0 {
//!             s.store(s.mul(s.load(x), s.splat(self.1)), x);
//!         }
//!     }
//! }
//!
//! let mut vectors = [[1.5; LANES]; 3];
//! SimdLevel::detect().run(Scale(&mut vectors, 2.0));
//! assert_eq!(vectors, [[3.0; LANES]; 3]);
//! ```
//!
//! # Why this is `unsafe`, and sound
//!
//! The vector intrinsics of a processor may only run where it has them, which the type system does not know. A [`Simd`]
//! value is the proof: one is made only in [`SimdLevel::run`], [`SimdLevel::run_bf16`] and [`SimdLevel::run_int8`], and a
//! [`SimdLevel`] only from what the processor was found to have. Both have private fields, and [`Simd`] cannot be implemented elsewhere.
//! Loads and stores go through references to whole vectors, so no operation reaches out of bounds.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod choice;
mod exp;
mod f16;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

pub use bf16::to_bf16;
pub use choice::SimdError;
pub use exp::exp;
pub(crate) use exp::exp2_scaled_of;

use sealed::Sealed;
use std::fmt;

/// The number of lanes of a vector.
pub const LANES: usize = 16;

/// A vector in memory.
pub type Lanes = [f32; LANES];

/// The bytes of a vector.
pub const VECTOR_BYTES: usize = 4 * LANES;

mod sealed {
    /// Makes [`Simd`](super::Simd) a closed set of types.
    pub trait Sealed {}
}

/// The operations of a SIMD level on vectors of sixteen lanes, of f32 or i32. Bit i of a mask stands for lane i.
pub trait Simd: Sealed + Copy {
    /// A vector of f32 in registers.
    type V: Copy;
    /// A vector of i32 in registers, or of four bytes a lane.
    type I: Copy;

    /// The number of vectors that the registers hold at once.
    const VECTORS: usize;

    /// A vector with the same number in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// Loads a vector.
    fn load(self, from: &Lanes) -> Self::V;
    /// Loads sixteen bf16, given as their bits, and widens them.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::V;
    /// Loads sixteen f16, given as their bits, and widens them.
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::V {
        self.load(&from.map(f16::to_f32))
    }
    /// Loads sixty-four bytes, four a lane.
    fn load_bytes(self, from: &[u8; VECTOR_BYTES]) -> Self::I;
    /// A vector with the same integer in every lane.
    fn splat_i32(self, x: i32) -> Self::I;
    /// Converts integers to the nearest f32, ties to even.
    fn to_f32(self, v: Self::I) -> Self::V;
    /// The lower and the upper half of each byte, as bytes of 0 to 15.
    fn nibbles(self, v: Self::I) -> [Self::I; 2];
    /// Dot products of bytes, added to `c`: in each lane, the products of the four u8 of `a` and the four i8 of `b`. The sum is
    /// exact modulo 2^32.
    fn dot_u8_i8(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
    /// Stores a vector.
    fn store(self, v: Self::V, to: &mut Lanes);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The square root of each lane.
    fn sqrt(self, v: Self::V) -> Self::V;
    /// `a * b + c`, rounded once (fused).
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of `a` and `b`; any number where one of them is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The mask of the lanes with `a >= b`.
    fn ge(self, a: Self::V, b: Self::V) -> u16;
    /// The mask of the lanes with `a > b`.
    fn gt(self, a: Self::V, b: Self::V) -> u16;
    /// The mask of the lanes without `a < b`: with `a >= b`, and those in which `a` or `b` is NaN.
    fn not_lt(self, a: Self::V, b: Self::V) -> u16;
    /// The mask of the lanes in which `a` or `b` is NaN.
    fn unordered(self, a: Self::V, b: Self::V) -> u16;
    /// `v` in the lanes of the mask, +0 in the others.
    fn keep(self, mask: u16, v: Self::V) -> Self::V;
    /// `2^(i / 8)` for lanes `n = 1.5 * 2^23 + i` with an integer i between -1000 and 1000; any number for other lanes.
    #[doc(hidden)]
    fn exp2_eighths(self, n: Self::V) -> Self::V;
    /// The sum of the lanes, in this order at every level: lane i + 8 is added to lane i, then lane i + 4, i + 2 and i
    /// + 1.
    fn sum(self, v: Self::V) -> f32;
    /// [`Simd::sum`] of each of sixteen vectors.
    #[inline(always)]
    fn sums(self, v: [Self::V; LANES]) -> Lanes {
        v.map(|v| self.sum(v))
    }
    /// The largest lane, of numbers.
    fn largest(self, v: Self::V) -> f32;
    /// Stores the lowest byte of the bits of each lane.
    fn store_bytes(self, v: Self::V, to: &mut [u8; LANES]);
    /// Stores the lanes of the mask next to each other at the front of `to`. The rest of `to` becomes arbitrary.
    fn compress(self, mask: u16, v: Self::V, to: &mut Lanes);
    /// [`Simd::compress`], faster for masks that rarely have more than eight lanes.
    #[inline(always)]
    fn compress_few(self, mask: u16, v: Self::V, to: &mut Lanes) {
        self.compress(mask, v, to);
    }
    /// [`Simd::compress`] of the integers `first..first + 16`, which wrap around.
    fn compress_range(self, mask: u16, first: u32, to: &mut [u32; LANES]);
    /// [`Simd::compress`] of sixteen integers.
    fn compress_integers(self, mask: u16, from: &[u32; LANES], to: &mut [u32; LANES]);
    /// Transposes sixteen vectors: lane j of vector i goes to lane i of vector j.
    #[inline(always)]
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut lanes = [[0.0; LANES]; LANES];
        for (row, lanes) in rows.into_iter().zip(&mut lanes) {
            self.store(row, lanes);
        }
        std::array::from_fn(|j| self.load(&std::array::from_fn(|i| lanes[i][j])))
    }
    /// Rounds two vectors to bf16 ([`to_bf16`]) and interleaves them: lane i has the bits of `low[i]` in its lower and
    /// those of `high[i]` in its upper half.
    #[inline(always)]
    fn pairs_bf16(self, low: Self::V, high: Self::V) -> Self::V {
        bf16::pairs(self, low, high)
    }
    /// Rounds two vectors to bf16 and packs them: lane i has the elements 2i and 2i + 1 of `first` followed by
    /// `second`.
    #[inline(always)]
    fn neighbours_bf16(self, first: Self::V, second: Self::V) -> Self::V {
        bf16::neighbours(self, first, second)
    }
    /// Dot products of pairs of bf16, added to `c`: in each lane, first the product of the upper halves of `a` and `b`,
    /// then that of the lower halves. Subnormal numbers may count as zero.
    #[inline(always)]
    fn dot_bf16(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        bf16::dot(self, a, b, c)
    }
}

/// `2^(i / 8)`, i = 0 to 7.
const EXP2_EIGHTHS: [f32; 8] =
    [1.0, 1.090_507_7, 1.189_207_1, 1.296_839_6, std::f32::consts::SQRT_2, 1.542_210_8, 1.681_792_9, 1.834_008_1];

/// A computation that is written once for all SIMD levels.
///
/// `run`, and every function that it calls with `s`, must be `#[inline(always)]`: only code inlined into
/// [`SimdLevel::run`] is compiled for the instructions of the level. Without, the results are the same, but slow.
pub trait Kernel {
    /// The result.
    type Output;
    /// Computes the result with the instructions of `s`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A set of vector instructions that this processor has.
///
/// Its Debug text is `Avx512`, `Avx2`, `Neon` or `Scalar`.
// The field is private for safety: with `Isa::Avx512` on a processor without AVX-512, `run` would be undefined
// behaviour.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SimdLevel(Isa);

/// The instruction set of a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isa {
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// No vector instructions.
    Scalar,
}

impl fmt::Debug for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl SimdLevel {
    /// The level without vector instructions, which every processor has.
    pub const SCALAR: Self = Self(Isa::Scalar);

    /// All levels of this processor, the best first.
    pub fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::is_available() {
                levels.push(Self(Isa::Avx512));
            }
            if avx2::is_available() {
                levels.push(Self(Isa::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            levels.push(Self(Isa::Neon));
        }
        levels.push(Self::SCALAR);
        levels
    }

    /// Its name: `avx512`, `avx2`, `neon` or `scalar`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
            Isa::Scalar => "scalar",
        }
    }

    /// Whether the processor has instructions for dot products of bf16 (AVX512-BF16), and this is the level that uses
    /// them.
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Isa::Avx512 && avx512::has_bf16();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Runs a kernel that uses the bf16 operations: with the instructions for them if [`SimdLevel::has_bf16`], else as
    /// [`SimdLevel::run`].
    #[inline]
    pub fn run_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        if self.has_bf16() {
            // SAFETY: `has_bf16` has found all features that `run_bf16` needs.
            return unsafe { avx512::run_bf16(kernel) };
        }
        self.run(kernel)
    }

    /// Runs a kernel that uses [`Simd::dot_u8_i8`]: with the instruction for it where the processor has it (AVX512-VNNI) and
    /// this is the level that uses it, else as [`SimdLevel::run`].
    #[inline]
    pub fn run_int8<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Isa::Avx512 && avx512::has_vnni() {
            // SAFETY: `has_vnni` has found all features that `run_vnni` needs.
            return unsafe { avx512::run_vnni(kernel) };
        }
        self.run(kernel)
    }

    /// Runs a kernel with the instructions of this level.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `available` alone makes this value, where the processor has all features that `run` needs.
            Isa::Avx512 => unsafe { avx512::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as for AVX-512.
            Isa::Avx2 => unsafe { avx2::run(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as for AVX-512.
            Isa::Neon => unsafe { neon::run(kernel) },
            Isa::Scalar => kernel.run(scalar::Scalar),
        }
    }
}

#[cfg(test)]
mod tests;
