// The activations of the MLP with their derivatives.
#pragma once

// `x Phi(x)`, Phi the normal distribution's. `2 Phi(-t)` is 2 to the power of a polynomial in `t >= 0` without a constant, which was
// fitted so that the error of `x Phi(x)` is least: 2e-8 beside rounding. Behind t = 7, where Phi(-t) is below 2e-12, it falls on.
struct Gelu {
    // `Phi(-|x|)`.
    static __device__ __forceinline__ float tail(float x) {
        const float t = fabsf(x);
        float power = -2.2340182e-6f;
        power = fmaf(power, t, 3.2467240e-5f);
        power = fmaf(power, t, -1.5496361e-4f);
        power = fmaf(power, t, -2.0760800e-4f);
        power = fmaf(power, t, 7.1481233e-3f);
        power = fmaf(power, t, -5.2548174e-2f);
        power = fmaf(power, t, -4.5919386e-1f);
        power = fmaf(power, t, -1.1511065f);
        return 0.5f * exp2f(power * t);
    }
    static __device__ __forceinline__ float phi(float x) { return x < 0.0f ? tail(x) : 1.0f - tail(x); }
    static __device__ __forceinline__ float value(float x) { return x * phi(x); }
    static __device__ __forceinline__ float derivative(float x) {
        return fmaf(x * 0.39894228040143268f, exp2f(-0.72134752044448171f * x * x), phi(x));
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
