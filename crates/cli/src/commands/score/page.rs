//! The page of a scored text: one file that needs nothing else, light and dark.

use std::fmt::Write as _;

use super::{
    ScoreReport, TextScore, Token,
    shade::{SHADES, legend, shade},
    visible,
};
use crate::{html::escape, output::harmless};

const STYLE: &str = "\
:root { color-scheme: light dark; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 16px/1.6 system-ui, sans-serif; background: #fff; color: #1f2328; }
.text, .legend span { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.text { line-height: 2; }
.text span { position: relative; padding: .15em 0; cursor: default; box-shadow: inset -1px 0 0 #80808080; }
.text span:hover, .text span:focus { outline: 2px solid currentColor; }
.text span:hover::after, .text span:focus::after { content: attr(data-tip); position: absolute; left: 0; top: 1.9em; z-index: 1; \
padding: .4em .7em; border: 1px solid #59626d; border-radius: .3em; background: #fff; color: #1f2328; white-space: pre; font-size: 14px; line-height: 1.4; }
.legend span { padding: .15em .6em; }
.s1 { background: #fff3cd; } .s2 { background: #fed98e; } .s3 { background: #fe9929; }
.s4 { background: #d95f0e; color: #000; } .s5 { background: #8c2d04; color: #fff; }
@media (prefers-color-scheme: dark) {
body { background: #15181d; color: #e6eaef; }
.text span:hover::after, .text span:focus::after { background: #15181d; color: #e6eaef; }
.s1 { background: #33290f; } .s2 { background: #574210; } .s3 { background: #7d5a0c; }
.s4 { background: #c98a1b; color: #000; } .s5 { background: #ffd166; color: #000; }
}
";

/// The text coloured by surprisal; under the pointer, or the focus, a token's figures.
pub fn html(report: &ScoreReport) -> String {
    let TextScore { logprob, perplexity, bits_per_byte } = report.score;
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>tinygpt score</title>\n<style>\n{STYLE}</style>\n<p>{}: log-probability {logprob:.3} nats, perplexity \
         {perplexity:.3}, {bits_per_byte:.4} bits/byte, {} tokens</p>\n<p class=\"legend\">surprisal in bits: ",
        escape(&report.run),
        report.tokens.len()
    );
    for shade in 0..SHADES {
        let _ = write!(page, "<span class=\"s{shade}\">{}</span>", legend(shade));
    }
    page += "</p>\n<div class=\"text\">";
    for token in &report.tokens {
        let shown = harmless(&token.text).replace('\n', "⏎\n");
        let (shade, tip) = (shade(token.bits()), escape(&tip(token)));
        let _ = write!(page, "<span class=\"s{shade}\" tabindex=\"0\" data-tip=\"{tip}\">{}</span>", escape(&shown));
    }
    page + "</div>\n</html>\n"
}

fn tip(token: &Token) -> String {
    let mut tip = format!(
        "{}  probability {:.6}, {:.2} bits\nrank {}, expected {:.2} bits",
        visible(&token.text),
        token.logprob.exp(),
        token.bits(),
        token.rank,
        token.entropy / std::f64::consts::LN_2
    );
    for top in &token.top {
        let _ = write!(tip, "\n{:.6}  {}", top.logprob.exp(), visible(&top.text));
    }
    harmless(&tip).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn a_page_quotes_its_tokens_and_loads_nothing() {
        let page = html(&report());
        assert!(page.contains("data-tip=\"⏎  probability 0.001000, 9.97 bits\nrank 7, expected"), "{page}");
        assert!(page.contains(">\\x1b&lt;</span>") && page.contains("<span class=\"s5\" tabindex=\"0\""), "{page}");
        assert!(!page.contains("http") && !page.contains('\x1b') && !page.contains("<script"));
    }
}
