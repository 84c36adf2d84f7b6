// Loads and stores of `N` consecutive numbers, as f32, in as few instructions as there are 16 bytes. What is loaded must not change
// during a launch.
#pragma once
#include "element.cuh"

// A bf16 is the upper half of an f32.
__device__ __forceinline__ void unpack(float *to, unsigned pair, const bf16 *) {
    to[0] = __uint_as_float(pair << 16);
    to[1] = __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ void unpack(float *to, unsigned pair, const f16 *) {
    to[0] = __half2float(__ushort_as_half((unsigned short)pair));
    to[1] = __half2float(__ushort_as_half((unsigned short)(pair >> 16)));
}
__device__ __forceinline__ unsigned pack(float low, float high, const bf16 *) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(low)) | (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16;
}
__device__ __forceinline__ unsigned pack(float low, float high, const f16 *) {
    return __half_as_ushort(__float2half_rn(low)) | (unsigned)__half_as_ushort(__float2half_rn(high)) << 16;
}

// `N` numbers in registers, as they are in memory.
template <int N, class T>
struct Packed {
    static_assert(N == 1 || N == 4 || N == 8, "a number, or 8 or 16 bytes of 16-bit ones");
    static constexpr int WORDS = N == 1 ? 1 : N / 2;
    unsigned words[WORDS];

    __device__ __forceinline__ void load(const T *from) {
        if constexpr (N == 1) {
            words[0] = __ldg(reinterpret_cast<const unsigned short *>(from));
        } else if constexpr (N == 4) {
            const uint2 x = __ldg(reinterpret_cast<const uint2 *>(from));
            words[0] = x.x, words[1] = x.y;
        } else {
            const uint4 x = __ldg(reinterpret_cast<const uint4 *>(from));
            words[0] = x.x, words[1] = x.y, words[2] = x.z, words[3] = x.w;
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < WORDS; i++) words[i] = 0;
    }
    __device__ __forceinline__ void get(float (&to)[N]) const {
        if constexpr (N == 1) {
            float both[2];
            unpack(both, words[0], static_cast<const T *>(nullptr));
            to[0] = both[0];
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) unpack(to + 2 * i, words[i], static_cast<const T *>(nullptr));
        }
    }
};

template <int N>
struct Packed<N, float> {
    float numbers[N];

    __device__ __forceinline__ void load(const float *from) {
        if constexpr (N == 1) {
            numbers[0] = __ldg(from);
        } else {
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                const float4 x = __ldg(reinterpret_cast<const float4 *>(from + i));
                numbers[i] = x.x, numbers[i + 1] = x.y, numbers[i + 2] = x.z, numbers[i + 3] = x.w;
            }
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < N; i++) numbers[i] = 0.0f;
    }
    __device__ __forceinline__ void get(float (&to)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = numbers[i];
    }
};

template <int N, class T>
__device__ __forceinline__ void load(float (&to)[N], const T *from) {
    Packed<N, T> packed;
    packed.load(from);
    packed.get(to);
}

template <int N>
__device__ __forceinline__ void store(float *to, const float (&x)[N]) {
    if constexpr (N == 1) {
        *to = x[0];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) *reinterpret_cast<float4 *>(to + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
}

template <int N, class T>
__device__ __forceinline__ void store(T *to, const float (&x)[N]) {
    if constexpr (N == 1) {
        *to = from_float<T>(x[0]);
    } else if constexpr (N == 4) {
        *reinterpret_cast<uint2 *>(to) = make_uint2(pack(x[0], x[1], to), pack(x[2], x[3], to));
    } else {
        *reinterpret_cast<uint4 *>(to) =
            make_uint4(pack(x[0], x[1], to), pack(x[2], x[3], to), pack(x[4], x[5], to), pack(x[6], x[7], to));
    }
}
