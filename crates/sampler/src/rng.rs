//! Philox4x32-10, the counter-based random generator of the whole workspace: draws of tokens, initial weights, dropout
//! masks, training windows, stories and noise.
//!
//! A counter-based generator is a keyed bijection: block `n` is computed from `(key, n)` alone. Any number can be
//! computed without those before it, in any order and on any thread, so resuming a run needs no generator state.
//!
//! [`philox_at`] gives the block of a place in an [`RngDomain`], [`unit_f64`] makes a uniform number of two of its
//! words, [`box_muller`] two normal numbers of all four, and [`uniform`] is the number that decides the draw of a token.
//!
//! Source: Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3* (SC 2011). The tests have the
//! known answers of the Random123 distribution of its authors.

/// The constants of the paper.
const MULTIPLIER_0: u64 = 0xD251_1F53;
const MULTIPLIER_1: u64 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;
const ROUNDS: usize = 10;

/// What a random number is for. Blocks of different domains of one seed are never the same.
///
/// The discriminants enter the counter and so are part of the program's results: add domains, never renumber one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RngDomain {
    /// Draws of tokens; see [`uniform`].
    Sampling = 1,
    /// Initial weights of the model.
    Init = 2,
    /// Dropout masks.
    Dropout = 3,
    /// Starts of the training windows.
    Windows = 4,
    /// Choices of the grammar that the synthetic stories are made from.
    Stories = 5,
    /// Gumbel noise.
    Noise = 6,
    /// The order of shuffled words and random characters, the texts that a text is compared with.
    Text = 7,
    /// The coin of a sampling rule; see [`xtc_coin`].
    Xtc = 8,
    /// Initial weights of adapters.
    Adapter = 9,
}

/// One block of Philox4x32 with ten rounds: for each `key`, a bijection of the 128-bit `counter` (lowest word first).
#[inline]
#[must_use]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox4x32_10_batch(counter.map(|word| [word]), key).map(|[word]| word)
}

/// [`philox4x32_10`] of N counters under one key; `counters[w][n]` is word w of counter n.
///
/// Called from a [`Kernel`](crate::simd::Kernel), the loops over N compile to vector instructions: sixteen blocks cost
/// little more than one.
#[inline(always)]
#[must_use]
pub fn philox4x32_10_batch<const N: usize>(mut counters: [[u32; N]; 4], key: [u32; 2]) -> [[u32; N]; 4] {
    let [mut k0, mut k1] = key;
    for round in 0..ROUNDS {
        if round > 0 {
            k0 = k0.wrapping_add(WEYL_0);
            k1 = k1.wrapping_add(WEYL_1);
        }
        let [c0, c1, c2, c3] = counters;
        for n in 0..N {
            let product_0 = MULTIPLIER_0 * u64::from(c0[n]);
            let product_1 = MULTIPLIER_1 * u64::from(c2[n]);
            counters[0][n] = (product_1 >> 32) as u32 ^ c1[n] ^ k0;
            counters[1][n] = product_1 as u32;
            counters[2][n] = (product_0 >> 32) as u32 ^ c3[n] ^ k1;
            counters[3][n] = product_0 as u32;
        }
    }
    counters
}

/// The block of `(seed, domain, a, b)`: four independent 32-bit words.
///
/// The key is the seed; the counter is, lowest word first, `[a low, a high, b, domain]`. That map is injective, so no
/// two places share a block. Typically `a` is the number of an element (divided by four, as the words of a block serve
/// four neighbours) and `b` that of a tensor, layer or step.
#[inline]
#[must_use]
pub fn philox_at(seed: u64, domain: RngDomain, a: u64, b: u32) -> [u32; 4] {
    philox4x32_10([low(a), high(a), b, domain as u32], [low(seed), high(seed)])
}

/// A uniform number in `[0, 1)` of the upper 53 bits of two words: `k / 2^53` for a uniform integer `k`.
#[inline]
#[must_use]
pub fn unit_f64(low: u32, high: u32) -> f64 {
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Two independent normal numbers with mean 0 and standard deviation `std`, from the four words of a block.
///
/// They are `r cos(2 pi v)` and `r sin(2 pi v)` with `r = std sqrt(-2 ln(1 - u))`, where the first two words give the
/// uniform number u and the last two v ([`unit_f64`]). As `1 - u` is at least `2^-53`, the numbers lie within 8.6
/// standard deviations.
///
/// Source: Box and Muller, *A note on the generation of random normal deviates* (1958).
#[inline]
#[must_use]
pub fn box_muller([w0, w1, w2, w3]: [u32; 4], std: f64) -> [f64; 2] {
    let (u, v) = (unit_f64(w0, w1), unit_f64(w2, w3));
    // 1 - u lies in (0, 1], where the logarithm is finite.
    let radius = std * (-2.0 * (1.0 - u).ln()).sqrt();
    let angle = std::f64::consts::TAU * v;
    [radius * angle.cos(), radius * angle.sin()]
}

/// The uniform number in `[0, 1)`, of 53 bits, that decides the draw of `(seed, sequence, position)`.
///
/// It takes two blocks, since a 64-bit sequence and a 64-bit position leave no room for the domain in one counter:
///
/// 1. `[k0, k1, k2, k3] = philox_at(seed, RngDomain::Sampling, sequence, 0)`;
/// 2. `philox4x32_10([position low, position high, k2, k3], [k0, k1])`, whose first two words go to [`unit_f64`].
///
/// The first block is a bijection of its counter, so the 128 bits `k` differ for all sequences of a seed, and no two
/// `(sequence, position)` pairs of a seed share both key and counter of the second block.
#[inline]
#[must_use]
pub fn uniform(seed: u64, sequence: u64, position: u64) -> f64 {
    let [w0, w1, _, _] = sampling_block(seed, sequence, position);
    unit_f64(w0, w1)
}

/// The uniform number in `[0, 1)` that decides whether XTC acts at `(seed, sequence, position)`: [`uniform`] in a domain of
/// its own.
#[inline]
#[must_use]
pub fn xtc_coin(seed: u64, sequence: u64, position: u64) -> f64 {
    let [w0, w1, _, _] = block_of(RngDomain::Xtc, seed, sequence, position);
    unit_f64(w0, w1)
}

/// The whole block of a draw; [`uniform`] uses its first two words, a draw from an alias table all four.
#[inline]
pub(crate) fn sampling_block(seed: u64, sequence: u64, position: u64) -> [u32; 4] {
    block_of(RngDomain::Sampling, seed, sequence, position)
}

/// The block of a position of a sequence.
#[inline]
fn block_of(domain: RngDomain, seed: u64, sequence: u64, position: u64) -> [u32; 4] {
    let [k0, k1, k2, k3] = philox_at(seed, domain, sequence, 0);
    philox4x32_10([low(position), high(position), k2, k3], [k0, k1])
}

fn low(x: u64) -> u32 {
    x as u32
}

fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, answer) in cases {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    #[test]
    fn uniforms_use_53_bits_and_stay_below_one() {
        assert_eq!(unit_f64(0, 0), 0.0);
        assert_eq!(unit_f64(u32::MAX, u32::MAX), 1.0 - 1.0 / (1u64 << 53) as f64);
        assert_eq!(unit_f64(1 << 11, 0), 1.0 / (1u64 << 53) as f64);
    }

    #[test]
    fn normal_numbers_have_their_mean_and_deviation_and_are_finite_at_the_ends() {
        let pairs = (0..20_000u64).map(|n| box_muller(philox_at(3, RngDomain::Noise, n, 0), 2.0));
        let normals: Vec<f64> = pairs.flatten().collect();
        let n = normals.len() as f64;
        let mean = normals.iter().sum::<f64>() / n;
        let variance = normals.iter().map(|x| x * x).sum::<f64>() / n;
        // Five standard errors: 5 * 2 / sqrt(n), and 5 * 4 * sqrt(2 / n).
        assert!(mean.abs() < 0.05 && (variance - 4.0).abs() < 0.15, "{mean} {variance}");
        assert_eq!(box_muller([0; 4], 1.0), [0.0; 2]);
        let [largest, _] = box_muller([u32::MAX, u32::MAX, 0, 0], 1.0);
        assert!((8.5..8.6).contains(&largest), "{largest}");
    }

    #[test]
    fn a_uniform_depends_on_each_of_seed_sequence_and_position() {
        let base = uniform(1, 2, 3);
        assert_eq!(base, uniform(1, 2, 3));
        for other in [
            uniform(2, 2, 3),
            uniform(1, 3, 3),
            uniform(1, 2, 4),
            uniform(1 << 40, 2, 3),
            uniform(1, 1 << 40, 3),
            uniform(1, 2, 1 << 40),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(base, xtc_coin(1, 2, 3));
    }

    #[test]
    fn domains_of_one_seed_are_different() {
        use RngDomain::*;
        let blocks = [Sampling, Init, Dropout, Windows, Stories, Noise, Text, Xtc, Adapter]
            .map(|domain| philox_at(7, domain, 0, 0));
        for i in 0..blocks.len() {
            for j in 0..i {
                assert_ne!(blocks[i], blocks[j]);
            }
        }
    }

    #[test]
    fn uniforms_are_uniform_along_sequences_and_along_positions() {
        let cells = 64;
        let draws = 64_000u64;
        for along_sequences in [false, true] {
            let mut counts = vec![0u64; cells];
            for i in 0..draws {
                let u = if along_sequences { uniform(9, i, 0) } else { uniform(9, 0, i) };
                counts[(u * cells as f64) as usize] += 1;
            }
            let expected = draws as f64 / cells as f64;
            let chi2: f64 = counts.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
            // 63 degrees of freedom: mean 63, standard deviation 11.2.
            assert!((20.0..135.0).contains(&chi2), "{chi2}");
        }
    }
}
