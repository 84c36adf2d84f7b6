//! Every operation on every level.

use super::*;

/// f16 of every kind: zeros, the smallest and the largest subnormal and normal numbers, infinities, NaN, and some between.
const HALVES: [u16; LANES] = [
    0, 0x8000, 1, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x3c00, 0xb800, 0x2e66, 0x5640, 0x0155,
    0xc248,
];

/// The results of every operation on a few vectors, as bits.
struct AllOperations;

impl Kernel for AllOperations {
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
        push(s.load_f16(&HALVES));
        push(s.add(va, vb));
        push(s.sub(va, vb));
        push(s.mul_add(va, vb, va));
        push(s.max(va, vb));
        push(s.keep(0b1010_0110_1100_0101, va));
        push(s.mul(va, vb));
        push(s.div(va, vb));
        push(s.sqrt(s.mul(va, va)));
        push(exp(s, s.sub(va, s.splat(20.0))));
        push(s.exp2_eighths(s.load(&std::array::from_fn(|i| 12_582_912.0 - (i * 63) as f32 + 200.0))));
        let (pa, pb) = (s.pairs_bf16(va, vb), s.pairs_bf16(vb, s.splat(1.01)));
        push(pa);
        push(s.neighbours_bf16(va, vb));
        push(s.dot_bf16(pa, pb, va));
        let vectors = std::array::from_fn(|i| s.add(va, s.splat(i as f32)));
        let rows = s.transpose(vectors);
        for row in rows {
            let mut lanes = [0.0; LANES];
            s.store(row, &mut lanes);
            out.extend(lanes.map(f32::to_bits));
        }
        out.push(u32::from(s.ge(va, vb)));
        out.push(u32::from(s.gt(va, vb)));
        let mut with_nan = a;
        with_nan[5] = f32::NAN;
        with_nan[12] = f32::NAN;
        out.push(u32::from(s.unordered(s.load(&with_nan), vb)));
        out.push(u32::from(s.not_lt(s.load(&with_nan), vb)));
        out.push(u32::from(s.not_lt(vb, s.load(&with_nan))));
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
        out.push(s.largest(va).to_bits());
        out.push(s.largest(vb).to_bits());
        let mut bytes = [0; LANES];
        s.store_bytes(s.mul(va, vb), &mut bytes);
        out.extend(bytes.map(u32::from));
        out.extend(s.sums(vectors).map(f32::to_bits));
        out
    }
}

#[test]
fn every_level_gives_the_same_bits() {
    let expected = SimdLevel::SCALAR.run(AllOperations);
    for level in SimdLevel::available() {
        assert_eq!(level.run(AllOperations), expected, "{level:?}");
        assert_eq!(level.run_bf16(AllOperations), expected, "{level:?}, bf16");
        assert_eq!(level.run_int8(AllOperations), expected, "{level:?}, int8");
    }
}

#[test]
fn the_scalar_level_does_what_the_names_say() {
    let bits = SimdLevel::SCALAR.run(AllOperations);
    assert_eq!(f32::from_bits(bits[0]), 1.5);
    for (i, &power) in bits[12 * 16..13 * 16].iter().enumerate() {
        let exact = ((200.0 - 63.0 * i as f64) / 8.0).exp2();
        assert!((f64::from(f32::from_bits(power)) / exact - 1.0).abs() < 6e-8);
    }
    let lane = |j: usize| (j as f32 - 7.3) * 1.7;
    let [.., largest] = bits[..bits.len() - 2 * LANES - 1] else { panic!("there are more") };
    assert_eq!(f32::from_bits(largest), lane(15));
    for (at, &bits) in bits[16 * 16..32 * 16].iter().enumerate() {
        assert_eq!(f32::from_bits(bits), lane(at / LANES) + (at % LANES) as f32, "transposed, {at}");
    }
}

/// Sums of products of bytes, small enough to be exact in f32: those of some bytes, and the least and the largest.
struct ByteProducts<'a> {
    unsigned: &'a [u8; VECTOR_BYTES],
    signed: &'a [u8; VECTOR_BYTES],
}

impl Kernel for ByteProducts<'_> {
    type Output = [Lanes; 5];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [Lanes; 5] {
        let (unsigned, signed) = (s.load_bytes(self.unsigned), s.load_bytes(self.signed));
        let [lower, upper] = s.nibbles(unsigned);
        let (start, largest) = (s.splat_i32(-1_000_007), s.splat_i32(-1));
        let sums = [
            s.dot_u8_i8(unsigned, signed, start),
            s.dot_u8_i8(lower, signed, start),
            s.dot_u8_i8(upper, signed, start),
            s.dot_u8_i8(largest, s.splat_i32(0x7f7f_7f7f), start),
            s.dot_u8_i8(largest, s.splat_i32(i32::from_le_bytes([0x80; 4])), start),
        ];
        sums.map(|sum| {
            let mut lanes = [0.0; LANES];
            s.store(s.to_f32(sum), &mut lanes);
            lanes
        })
    }
}

#[test]
fn products_of_bytes_are_summed_exactly() {
    let unsigned: [u8; VECTOR_BYTES] = std::array::from_fn(|i| (i * 151 + 255) as u8);
    let signed: [u8; VECTOR_BYTES] = std::array::from_fn(|i| (i * 89 + 128) as u8);
    let sum = |byte: &dyn Fn(usize) -> i32, lane: usize| {
        (4 * lane..4 * lane + 4).map(|i| byte(i) * i32::from(signed[i].cast_signed())).sum::<i32>()
    };
    let bytes: [&dyn Fn(usize) -> i32; 3] =
        [&|i| unsigned[i].into(), &|i| (unsigned[i] & 15).into(), &|i| (unsigned[i] >> 4).into()];
    for level in SimdLevel::available() {
        for found in [
            level.run(ByteProducts { unsigned: &unsigned, signed: &signed }),
            level.run_int8(ByteProducts { unsigned: &unsigned, signed: &signed }),
        ] {
            for lane in 0..LANES {
                for (found, byte) in found.iter().zip(bytes) {
                    assert_eq!(found[lane], (sum(byte, lane) - 1_000_007) as f32, "{level:?}, {lane}");
                }
                assert_eq!(found[3][lane], (4 * 255 * 127 - 1_000_007) as f32, "{level:?}");
                assert_eq!(found[4][lane], (-4 * 255 * 128 - 1_000_007) as f32, "{level:?}");
            }
        }
    }
}

#[test]
fn f16_are_widened_exactly_on_every_level() {
    struct Widen(u16);
    impl Kernel for Widen {
        type Output = Lanes;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Lanes {
            let mut lanes = [0.0; LANES];
            s.store(s.load_f16(&std::array::from_fn(|i| self.0 + i as u16)), &mut lanes);
            lanes
        }
    }
    for level in SimdLevel::available() {
        for first in (0..=u16::MAX).step_by(LANES) {
            for (i, widened) in level.run(Widen(first)).into_iter().enumerate() {
                let bits = first + i as u16;
                let (exponent, fraction) = (bits >> 10 & 31, f64::from(bits & 1023) / 1024.0);
                let magnitude = match exponent {
                    0 => fraction * 2f64.powi(-14),
                    31 if fraction == 0.0 => f64::INFINITY,
                    31 => f64::NAN,
                    _ => (1.0 + fraction) * 2f64.powi(i32::from(exponent) - 15),
                };
                let exact = if bits >> 15 == 1 { -magnitude } else { magnitude } as f32;
                let same = if exact.is_nan() { widened.is_nan() } else { widened.to_bits() == exact.to_bits() };
                assert!(same, "{level:?}, {bits:04x}: {widened}");
            }
        }
    }
}
