// Short vectors, aligned as on the device, where one instruction loads them.
#pragma once

#define EMULATED_VECTOR(T, NAME, ALIGN2, ALIGN4)                                                       \
  struct alignas(ALIGN2) NAME##2 { T x, y; };                                                          \
  struct NAME##3 { T x, y, z; };                                                                       \
  struct alignas(ALIGN4) NAME##4 { T x, y, z, w; };                                                    \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                           \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                                   \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR(char, char, 2, 4)
EMULATED_VECTOR(unsigned char, uchar, 2, 4)
EMULATED_VECTOR(short, short, 4, 8)
EMULATED_VECTOR(unsigned short, ushort, 4, 8)
EMULATED_VECTOR(int, int, 8, 16)
EMULATED_VECTOR(unsigned, uint, 8, 16)
EMULATED_VECTOR(long long, longlong, 16, 16)
EMULATED_VECTOR(unsigned long long, ulonglong, 16, 16)
EMULATED_VECTOR(float, float, 8, 16)
EMULATED_VECTOR(double, double, 16, 16)
#undef EMULATED_VECTOR
