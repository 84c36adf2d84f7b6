//! The host path against the definition: the same kept tokens and the same drawn token on random rows of mixed rules,
//! at every SIMD level.

use super::{Row, Sampler};
use crate::oracle::{self, DrawNumbers};
use crate::simd::SimdLevel;
use crate::test_rows::{BOUNDARY, TestRng, random_row, random_rules};

/// Compares one row of up to `max_size` logits for each case. Panics at a difference where the definition has no
/// boundary nearby, and if more than 0.2% of the rows differ near one. `--nocapture` shows how many do.
#[allow(clippy::print_stderr)]
fn compare(cases: std::ops::Range<u64>, max_size: usize) {
    let levels = SimdLevel::available();
    let count = cases.end - cases.start;
    let mut near = 0;
    for case in cases {
        let mut rng = TestRng::new(case);
        let logits = random_row(&mut rng, max_size);
        let (params, history) = random_rules(&mut rng, logits.len());
        let row = Row { logits: &logits, history: &history, sequence: case, position: 3 };
        let numbers = DrawNumbers::at(&params, row.sequence, row.position);
        let expected = oracle::sample_with(&logits, &params, &history, numbers);
        // The bans of n-grams may leave nothing of a short row.
        let Ok(expected) = expected else {
            let mut sampler = Sampler::new(params).unwrap();
            assert_eq!(sampler.sample_row(&logits, &history, case, 3).unwrap_err(), expected.unwrap_err());
            continue;
        };
        let mut answers = levels.iter().map(|&level| {
            let mut sampler = Sampler::with_level(params.clone(), level).unwrap();
            let token = sampler.sample_row(&logits, &history, case, 3).unwrap();
            (token, sampler.distribution(&row).unwrap())
        });
        let (token, distribution) = answers.next().unwrap();
        for other in answers {
            assert_eq!((token, &distribution), (other.0, &other.1), "levels differ in case {case}");
        }
        if token != expected.token || distribution.kept() != expected.kept {
            let margin = expected.margin;
            assert!(
                margin < BOUNDARY,
                "case {case}: token {token} of {} kept instead of {} of {} (margin {margin:e}) {params:?}",
                distribution.kept().len(),
                expected.token,
                expected.kept.len(),
            );
            near += 1;
        } else {
            for (p, q) in distribution.probs().iter().zip(&expected.probs) {
                // The error of the weight grows with the distance of the logit from the largest, which is rounded to
                // f32.
                let tolerance = (1.0 - q.max(1e-300).ln()) * 2e-7 * q + 1e-30;
                assert!((p - q).abs() <= tolerance, "case {case}: probability {p} instead of {q}");
            }
        }
    }
    eprintln!("{near} of {count} rows differ, a boundary of the definition being within 2^-20");
    assert!(near * 500 <= count, "{near} of {count}");
}

#[test]
fn small_rows_equal_the_oracle() {
    compare(0..16_000, 600);
}

#[test]
fn large_rows_equal_the_oracle() {
    compare(16_000..16_600, 60_000);
}

#[test]
#[ignore = "the full comparison of 100,000 rows; a minute or more"]
fn a_hundred_thousand_rows_equal_the_oracle() {
    compare(0..90_000, 2_000);
    compare(90_000..100_000, 60_000);
}
