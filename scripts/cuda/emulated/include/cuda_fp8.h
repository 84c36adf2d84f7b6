// What lets candle's kernels with this type compile. The program has no fp8.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

enum __nv_fp8_interpretation_t { __NV_E4M3 };

namespace emulated {

inline float e4m3_to_float(unsigned char bits) {
  int exponent = bits >> 3 & 15, mantissa = bits & 7;
  float f = exponent == 15 && mantissa == 7 ? NAN : exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
  return bits & 128 ? -f : f;
}

// To nearest even, and at most the largest finite value.
inline unsigned char float_to_e4m3(float f) {
  if (f != f) return 0x7f;
  unsigned char sign = std::signbit(f) ? 0x80 : 0;
  float size = fabsf(f);
  unsigned char best = 0;
  for (unsigned char bits = 1; bits < 0x7f; bits++) {
    float now = fabsf(e4m3_to_float(bits) - size), before = fabsf(e4m3_to_float(best) - size);
    if (now < before || (now == before && bits % 2 == 0)) best = bits;
  }
  return sign | best;
}

}  // namespace emulated

struct __nv_fp8_e4m3 {
  unsigned char __x;
  __nv_fp8_e4m3() = default;
  template <class T>
  explicit __nv_fp8_e4m3(T number) : __x(emulated::float_to_e4m3(static_cast<float>(number))) {}
  explicit operator float() const { return emulated::e4m3_to_float(__x); }
};
inline __half_raw __nv_cvt_fp8_to_halfraw(unsigned char bits, __nv_fp8_interpretation_t) { return emulated::e4m3_to_float(bits); }
