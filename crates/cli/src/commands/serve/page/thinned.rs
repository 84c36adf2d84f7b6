//! The lines of long runs, of which a chart shows some.

use tinygpt_trainer::metrics::{Metrics, RowKind};

/// The figures that charts show.
const FIGURES: [fn(&Metrics) -> Option<f64>; 6] = [
    |row| row.loss,
    |row| row.lr,
    |row| row.grad_norm,
    |row| row.tokens_per_s,
    |row| row.val_loss,
    |row| row.bits_per_byte,
];

/// At most so many of some lines, in their order: of each stretch of steps those with the smallest and the largest value of each
/// figure, and of each kind the last one. No peak is lost, and a chart of them looks like one of all.
pub fn thinned(rows: Vec<Metrics>, most: usize) -> Vec<Metrics> {
    if rows.len() <= most {
        return rows;
    }
    let steps = || rows.iter().map(|row| row.step);
    let (first, last) = (steps().min().unwrap_or(0), steps().max().unwrap_or(0));
    let figures: Vec<_> = FIGURES.into_iter().filter(|figure| rows.iter().any(|row| figure(row).is_some())).collect();
    let stretches = (most.saturating_sub(2) / (2 * figures.len()).max(1)).max(1);
    let width = (last - first) / stretches as u64 + 1;
    let mut is_kept = vec![false; rows.len()];
    for figure in figures {
        // The lines with the smallest and the largest value.
        let mut extremes: Vec<Option<[(usize, f64); 2]>> = vec![None; stretches];
        for (at, row) in rows.iter().enumerate() {
            let Some(value) = figure(row) else { continue };
            let [low, high] = extremes[((row.step - first) / width) as usize].get_or_insert([(at, value); 2]);
            if value < low.1 {
                *low = (at, value);
            }
            if value > high.1 {
                *high = (at, value);
            }
        }
        extremes.into_iter().flatten().flatten().for_each(|(at, _)| is_kept[at] = true);
    }
    for kind in [RowKind::Train, RowKind::Eval] {
        if let Some(at) = rows.iter().rposition(|row| row.kind == kind) {
            is_kept[at] = true;
        }
    }
    rows.into_iter().zip(is_kept).filter_map(|(row, is_kept)| is_kept.then_some(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Updates with evaluations in between; every figure has a peak of its own.
    fn rows(n: u64) -> Vec<Metrics> {
        let train = |step: u64| Metrics {
            loss: Some(if step == n / 3 { 99.0 } else { 5.0 + 1.0 / (step + 1) as f64 }),
            grad_norm: Some(if step == n / 2 { 1e4 } else { 1.0 }),
            lr: Some(step as f64),
            ..Metrics::new(RowKind::Train, step)
        };
        let eval = |step: u64| Metrics {
            val_loss: Some(if step == n / 10 * 7 { -3.0 } else { 5.0 }),
            ..Metrics::new(RowKind::Eval, step)
        };
        (0..n).flat_map(|step| [Some(train(step)), (step % 10 == 0).then(|| eval(step))]).flatten().collect()
    }

    #[test]
    fn few_lines_stay_as_they_are() {
        assert_eq!(thinned(rows(90), 100), rows(90));
        assert_eq!(thinned(Vec::new(), 100), []);
    }

    #[test]
    fn many_lines_become_so_many_at_most_with_every_peak_and_the_last_of_each_kind() {
        let all = rows(30_000);
        for most in [100, 1000] {
            // At once, and in parts as a file is read.
            let in_parts = all.chunks(7000).fold(Vec::new(), |mut read, part| {
                read.extend_from_slice(part);
                thinned(read, most)
            });
            for few in [thinned(all.clone(), most), in_parts] {
                assert!(few.len() <= most && few.len() > most / 10, "{}", few.len());
                assert!(few.is_sorted_by_key(|row| row.step));
                let value_at =
                    |step, of: fn(&Metrics) -> Option<f64>| few.iter().filter(|row| row.step == step).find_map(of);
                assert_eq!(value_at(10_000, |row| row.loss), Some(99.0));
                assert_eq!(value_at(15_000, |row| row.grad_norm), Some(1e4));
                assert_eq!(value_at(21_000, |row| row.val_loss), Some(-3.0));
                assert_eq!(value_at(29_999, |row| row.lr), Some(29_999.0));
                assert_eq!(few.iter().rfind(|row| row.kind == RowKind::Eval).map(|row| row.step), Some(29_990));
            }
        }
    }

    #[test]
    fn steps_that_are_all_the_same_are_one_stretch() {
        let same: Vec<_> = rows(500).into_iter().map(|row| Metrics { step: 7, ..row }).collect();
        assert!(thinned(same, 100).len() <= 12);
    }
}
