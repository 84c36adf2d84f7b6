//! The maps of attention on a page.

use super::{
    charts,
    figures::Attention,
    page::{chart, shown},
};

/// The most bytes that all attention maps take: the page shall stay below 2 MB.
const MAP_BYTES: usize = 1_000_000;
/// How many tokens maps have: the first number with which all fit.
const MAP_TOKENS: [usize; 4] = [32, 24, 16, 12];

/// The maps of all heads, as many tokens of them as fit, or those of some layers.
pub fn body(of: &Attention) -> anyhow::Result<String> {
    let n_layer = of.maps.len();
    let drawn = |n: usize, layers: &[usize]| -> anyhow::Result<String> {
        layers.iter().map(|&layer| layer_maps(of, layer, n)).collect()
    };
    let all: Vec<usize> = (0..n_layer).collect();
    let (mut n, mut layers, mut maps) = (0, all.clone(), String::new());
    for tokens in MAP_TOKENS {
        n = tokens.min(of.tokens.len());
        maps = drawn(n, &all)?;
        if maps.len() <= MAP_BYTES {
            break;
        }
    }
    if maps.len() > MAP_BYTES {
        // Layers of equal size: as many as fit, from the first to the last.
        let fit = (MAP_BYTES * n_layer / maps.len()).max(1);
        layers = (0..fit).map(|i| if fit == 1 { 0 } else { i * (n_layer - 1) / (fit - 1) }).collect();
        maps = drawn(n, &layers)?;
    }
    let which = if layers.len() < n_layer {
        format!("{} of {n_layer} layers are shown. ", layers.len())
    } else {
        String::new()
    };
    let tokens: String = of.tokens[..n].iter().map(|token| format!("<span>{}</span>", shown(token))).collect();
    Ok(format!(
        "<p>Each row is a token of this text and each column a token that it may look at; bright is much. A row sums to 1, and \
         nothing looks ahead. {which}Below each map is the mean weight of the token itself, of the one before it and of the \
         first.</p>\n<p class=\"tokens\">{tokens}</p>\n{maps}"
    ))
}

fn layer_maps(of: &Attention, layer: usize, n: usize) -> anyhow::Result<String> {
    let mut body = format!("<h3>Layer {layer}</h3>\n<div class=\"maps\">\n");
    for (head, map) in of.maps[layer].iter().enumerate() {
        let mean = |key: fn(usize) -> Option<usize>| {
            let weights: Vec<f64> = (1..n).filter_map(|query| Some(map[query][key(query)?])).collect();
            weights.iter().sum::<f64>() / weights.len().max(1) as f64
        };
        let (own, before, first) = (mean(Some), mean(|query| query.checked_sub(1)), mean(|_| Some(0)));
        let means = format!("itself {own:.2}, before {before:.2}, first {first:.2}");
        let label = format!("Attention of layer {layer}, head {head}. Mean weights: {means}");
        body += &chart(&charts::attention(&of.tokens, map, n), &label, &format!("head {head}: {means}"))?;
    }
    Ok(body + "</div>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads that look at the token before them, in a text of 32 tokens.
    fn of(n_layer: usize, n_head: usize) -> Attention {
        let row = |query: usize| (0..32).map(|key| f64::from(u8::from(key == query.saturating_sub(1)))).collect();
        let map: Vec<Vec<f64>> = (0..32).map(row).collect();
        let tokens = (0..32).map(|i| format!("<{i}>")).collect();
        Attention { tokens, maps: vec![vec![map; n_head]; n_layer] }
    }

    #[test]
    fn every_head_has_a_map_and_what_it_looks_at_in_words() {
        let body = body(&of(2, 3)).unwrap();
        assert_eq!((body.matches("<svg ").count(), body.matches("<h3>Layer ").count()), (6, 2));
        assert!(body.contains("head 2: itself 0.00, before 1.00, first 0.03"), "{body}");
        assert!(body.contains("<span>&lt;31&gt;</span>") && !body.contains("layers are shown"));
    }

    #[test]
    fn many_maps_are_cut_to_fewer_tokens_and_then_to_some_layers() {
        // Maps that are all of one colour in a row cost little; every second key looked at costs most.
        let mut many = of(12, 12);
        for map in many.maps.iter_mut().flatten() {
            for (query, row) in map.iter_mut().enumerate() {
                row.iter_mut().enumerate().for_each(|(key, p)| *p = if key <= query { (key % 2) as f64 } else { 0.0 });
            }
        }
        let fewer = body(&many).unwrap();
        assert!(fewer.len() < 1_200_000 && fewer.contains(" of 12 layers are shown"), "{}", fewer.len());
        assert!(fewer.contains("<h3>Layer 0</h3>") && fewer.contains("<h3>Layer 11</h3>"));
        assert!(!fewer.contains("&lt;12&gt;"), "twelve tokens");
    }
}
