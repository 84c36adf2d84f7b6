// Floats of 16 bits: half and bfloat16. Arithmetic is that of the device: each operation is rounded once, to nearest even.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace emulated {

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Rounds to float such that rounding on to fewer bits gives what rounding at once would have: an inexact result is odd.
template <class Wide>
inline float round_to_odd(Wide wide) {
  float f = static_cast<float>(wide);
  if (static_cast<Wide>(f) == wide || wide != wide || std::isinf(f)) return f;
  uint32_t bits = bit_cast<uint32_t>(f);
  if (bits & 1) return f;
  // The neighbour on the other side of `wide`.
  return bit_cast<float>(std::fabs(static_cast<Wide>(f)) > std::fabs(wide) ? bits - 1 : bits + 1);
}

// A cast of a float to an integer as the instruction `cvt` of a GPU makes it: truncated, at the ends of the range the last value;
// of NaN 0, and of or to 64 bits the highest bit alone. Types below 32 bits keep the low bits of one with 32.
template <class Integer, class Float>
inline Integer saturating_cast(Float value) {
  if constexpr (sizeof(Integer) < 4) {
    return static_cast<Integer>(saturating_cast<std::conditional_t<std::is_signed_v<Integer>, int32_t, uint32_t>>(value));
  } else {
    using Limits = std::numeric_limits<Integer>;
    if (value != value) {
      bool wide = sizeof(Integer) == 8 || sizeof(Float) == 8;
      return wide ? static_cast<Integer>(uint64_t{1} << (8 * sizeof(Integer) - 1)) : Integer{0};
    }
    if (value <= static_cast<Float>(Limits::lowest())) return Limits::lowest();
    if (value >= static_cast<Float>(Limits::max())) return Limits::max();
    return static_cast<Integer>(value);
  }
}

template <class To, class From>
inline void convert(To &to, From from) {
  if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>)
    to = saturating_cast<To>(from);
  else
    to = from;
}

struct HalfFormat {
  static constexpr uint16_t nan = 0x7fff;
  static uint16_t from_float(float f) { return f != f ? nan : static_cast<uint16_t>(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT)); }
  static float to_float(uint16_t bits) { return _cvtsh_ss(bits); }
};

struct BFloat16Format {
  static constexpr uint16_t nan = 0x7fff;
  static uint16_t from_float(float f) {
    uint32_t bits = bit_cast<uint32_t>(f);
    return f != f ? nan : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static float to_float(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// Operators and functions are friends and no templates, so that arguments convert as in CUDA's headers.
template <class Format>
struct SmallFloat {
  uint16_t __x;

  SmallFloat() = default;
  SmallFloat(float f) : __x(Format::from_float(f)) {}
  // Other numbers have up to 64 bits, which a long double holds.
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T> && !std::is_same_v<T, float>>>
  SmallFloat(T number) : __x(Format::from_float(sizeof(T) <= 2 ? static_cast<float>(number) : round_to_odd(static_cast<long double>(number)))) {}

  static SmallFloat from_bits(uint16_t bits) {
    SmallFloat result;
    result.__x = bits;
    return result;
  }

  float wide() const { return Format::to_float(__x); }
  operator float() const { return wide(); }
  operator double() const { return wide(); }
  explicit operator bool() const { return (__x & 0x7fff) != 0; }
  template <class T, class = std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool>>>
  operator T() const { return saturating_cast<T>(wide()); }

  using S = SmallFloat;
  friend S operator+(S a, S b) { return S(a.wide() + b.wide()); }
  friend S operator-(S a, S b) { return S(a.wide() - b.wide()); }
  friend S operator*(S a, S b) { return S(a.wide() * b.wide()); }
  friend S operator/(S a, S b) { return S(a.wide() / b.wide()); }
  friend S operator-(S a) { return from_bits(a.__x ^ 0x8000); }
  friend S &operator+=(S &a, S b) { return a = a + b; }
  friend S &operator-=(S &a, S b) { return a = a - b; }
  friend S &operator*=(S &a, S b) { return a = a * b; }
  friend S &operator/=(S &a, S b) { return a = a / b; }
  friend bool operator==(S a, S b) { return a.wide() == b.wide(); }
  friend bool operator!=(S a, S b) { return a.wide() != b.wide(); }
  friend bool operator<(S a, S b) { return a.wide() < b.wide(); }
  friend bool operator<=(S a, S b) { return a.wide() <= b.wide(); }
  friend bool operator>(S a, S b) { return a.wide() > b.wide(); }
  friend bool operator>=(S a, S b) { return a.wide() >= b.wide(); }

  friend S __hadd(S a, S b) { return a + b; }
  friend S __hsub(S a, S b) { return a - b; }
  friend S __hmul(S a, S b) { return a * b; }
  friend S __hdiv(S a, S b) { return a / b; }
  friend S __hneg(S a) { return -a; }
  friend S __habs(S a) { return from_bits(a.__x & 0x7fff); }
  friend S __hfma(S a, S b, S c) { return S(double{a.wide()} * double{b.wide()} + double{c.wide()}); }
  friend bool __hisnan(S a) { return a.wide() != a.wide(); }
  friend int __hisinf(S a) { return std::isinf(a.wide()) ? (a.__x >> 15 ? -1 : 1) : 0; }
  friend S __hmax(S a, S b) { return S(fmaxf(a.wide(), b.wide())); }
  friend S __hmin(S a, S b) { return S(fminf(a.wide(), b.wide())); }
  friend S __hmax_nan(S a, S b) { return __hisnan(a) || __hisnan(b) ? from_bits(Format::nan) : __hmax(a, b); }
  friend S __hmin_nan(S a, S b) { return __hisnan(a) || __hisnan(b) ? from_bits(Format::nan) : __hmin(a, b); }
  friend bool __heq(S a, S b) { return a == b; }
  friend bool __hne(S a, S b) { return a != b; }
  friend bool __hlt(S a, S b) { return a < b; }
  friend bool __hle(S a, S b) { return a <= b; }
  friend bool __hgt(S a, S b) { return a > b; }
  friend bool __hge(S a, S b) { return a >= b; }
  friend S hsqrt(S a) { return S(sqrtf(a.wide())); }
  friend S hrsqrt(S a) { return S(1 / sqrtf(a.wide())); }
  friend S hrcp(S a) { return S(1 / a.wide()); }
  friend S hexp(S a) { return S(expf(a.wide())); }
  friend S hexp2(S a) { return S(exp2f(a.wide())); }
  friend S hlog(S a) { return S(logf(a.wide())); }
  friend S hsin(S a) { return S(sinf(a.wide())); }
  friend S hcos(S a) { return S(cosf(a.wide())); }
};

// Two beside each other, as one word of 32 bits.
template <class Format>
struct alignas(4) SmallFloat2 {
  SmallFloat<Format> x, y;

  using V = SmallFloat2;
  friend V operator+(V a, V b) { return {a.x + b.x, a.y + b.y}; }
  friend V operator-(V a, V b) { return {a.x - b.x, a.y - b.y}; }
  friend V operator*(V a, V b) { return {a.x * b.x, a.y * b.y}; }
  friend V operator/(V a, V b) { return {a.x / b.x, a.y / b.y}; }
  friend V __hadd2(V a, V b) { return a + b; }
  friend V __hsub2(V a, V b) { return a - b; }
  friend V __hmul2(V a, V b) { return a * b; }
  friend V __hdiv2(V a, V b) { return a / b; }
  friend V __h2div(V a, V b) { return a / b; }
  friend V __hneg2(V a) { return {-a.x, -a.y}; }
  friend V __hmax2(V a, V b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
  friend V __hmin2(V a, V b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
  friend V __hfma2(V a, V b, V c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
};

}  // namespace emulated
