//! The peak memory of a step of the device path, in units of its logits. Measured on the CPU, as the allocator of a GPU
//! sees the same tensors. A program of its own, since the counting allocator is global.

use candle_core::{Device, Tensor};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use tinygpt_sampler::{DeviceRow, DeviceSampler, SamplingParams, uniform};

/// The system's allocator, with a count of the bytes in use and their peak.
struct CountingAllocator;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)]
// SAFETY: both methods only count, and pass their arguments on to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller fulfils the contract of the method, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller fulfils the contract of the method, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Logits whose probability is spread over thousands of tokens.
fn logits(rows: usize, vocab: usize) -> Tensor {
    let spread = |n: usize| {
        let u = uniform(3, (n / vocab) as u64, (n % vocab) as u64);
        (12.0 * u * u * u) as f32
    };
    Tensor::from_vec((0..rows * vocab).map(spread).collect::<Vec<_>>(), (rows, vocab), &Device::Cpu)
        .expect("as many numbers as the shape says")
}

#[test]
// `--nocapture` shows the measured values.
#[allow(clippy::print_stderr)]
fn a_step_takes_no_more_memory_than_documented() {
    let default = SamplingParams::default();
    let max_memory = [
        ("greedy", SamplingParams { temperature: 0.0, ..default.clone() }, 1.25),
        ("temperature", default.clone(), 6.0),
        ("top-k", SamplingParams { top_k: 50, ..default.clone() }, 1.25),
        ("top-k + top-p", SamplingParams { top_k: 50, top_p: 0.9, ..default.clone() }, 1.25),
        ("top-p of few", SamplingParams { top_p: 0.9, temperature: 0.002, ..default.clone() }, 6.0),
        ("top-p by search", SamplingParams { top_p: 0.9, ..default }, 10.0),
    ];
    for (rows, vocab) in [(1, 50_257), (16, 50_257), (4, 128_256), (2, 262_144)] {
        let logits = logits(rows, vocab);
        let places: Vec<_> =
            (0..rows as u64).map(|sequence| DeviceRow { history: &[], sequence, position: 0 }).collect();
        for (name, params, max) in &max_memory {
            let mut sampler = DeviceSampler::new(params.clone()).unwrap();
            let before = LIVE.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            // The first step, which uploads the constants too.
            let (_, cost) = sampler.sample_counted(&logits, &places).unwrap();
            assert_eq!(cost.readbacks > 1, *name == "top-p by search");
            let taken = (PEAK.load(Ordering::Relaxed) - before) as f64 / (4 * rows * vocab) as f64;
            eprintln!("{rows} x {vocab}, {name}: {taken:.2} times the logits, beside them");
            // Small buffers that are not tensors, and allocations of other threads.
            let small_buffers = f64::from(1 << 14) / (4 * rows * vocab) as f64;
            assert!(taken <= max + small_buffers, "{name}: {taken}");
        }
    }
}
