// The activations of the MLP with their derivatives.
#pragma once

// `x Phi(x)`, Phi the normal distribution's.
struct Gelu {
    static __device__ __forceinline__ float value(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
    static __device__ __forceinline__ float derivative(float x) {
        return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.39894228040143268f * expf(-0.5f * x * x);
    }
};

// `0.5 x (1 + tanh(u))`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
struct GeluNew {
    static constexpr float ROOT = 0.79788456080286536f, CUBE = 0.044715f;
    static __device__ __forceinline__ float gate(float x) { return tanhf(ROOT * x * (1.0f + CUBE * x * x)); }
    static __device__ __forceinline__ float value(float x) { return 0.5f * x * (1.0f + gate(x)); }
    static __device__ __forceinline__ float derivative(float x) {
        const float t = gate(x);
        return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * ROOT * (1.0f + 3.0f * CUBE * x * x);
    }
};

struct Relu2 {
    static __device__ __forceinline__ float value(float x) { return x > 0.0f ? x * x : (x == x ? 0.0f : x); }
    static __device__ __forceinline__ float derivative(float x) { return x > 0.0f ? 2.0f * x : (x == x ? 0.0f : x); }
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
