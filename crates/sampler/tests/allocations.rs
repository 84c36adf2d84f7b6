//! The host sampler allocates nothing after the first token. A program of its own, since the counting allocator is
//! global.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use tinygpt_sampler::{Row, Sampler, SamplingParams, uniform};

/// The system's allocator, with a count of its allocations.
struct CountingAllocator;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)]
// SAFETY: both methods only count, and pass their arguments on to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller fulfils the contract of the method, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller fulfils the contract of the method, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn nothing_is_allocated_per_token_after_the_first() {
    let logits: Vec<f32> = (0..20_000).map(|n| (uniform(1, 2, n) * 9.0) as f32).collect();
    let history: Vec<u32> = (0..50).collect();
    let default = SamplingParams::default();
    for params in [
        default.clone(),
        SamplingParams { temperature: 0.0, ..default.clone() },
        SamplingParams { top_k: 50, top_p: 0.9, ..default.clone() },
        SamplingParams { top_k: 9000, ..default.clone() },
        SamplingParams { top_p: 0.9, min_p: 0.01, ..default.clone() },
        SamplingParams { top_p: 0.999_99, ..default.clone() },
        SamplingParams { repetition_penalty: 1.2, ..default },
    ] {
        let mut sampler = Sampler::new(params.clone()).expect("valid rules");
        let rows: Vec<Row<'_>> =
            (0..3).map(|sequence| Row { logits: &logits, history: &history, sequence, position: 0 }).collect();
        let mut tokens = Vec::new();
        sampler.sample_batch_into(&rows, &mut tokens);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..5 {
            sampler.sample_batch_into(&rows, &mut tokens);
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before, "{params:?}");
    }
}
